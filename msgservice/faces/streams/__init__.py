"""Message streams: messages by key to whoever listens now, in this process and over the network.

`message_stream` is the stream of this process. `serve` puts one on a port, `RemoteStream` is one
from elsewhere. `codec` encodes and decodes the lines of servers and `RemoteStream`s that are made
from then on: put another object with `encode` and `decode` in its place to change it.
"""

from __future__ import annotations

from typing import Any

from msgservice.arguments import check_flags, check_port
from msgservice.faces.streams import remote as _remote
from msgservice.faces.streams.content import JsonCodec, StreamCodec, register
from msgservice.faces.streams.durable import NodeStreams
from msgservice.faces.streams.monitor import (
    Abort,
    Complete,
    Error,
    Improvement,
    Join,
    Log,
    Monitor,
    MonitorMessage,
    Progress,
    Start,
)
from msgservice.faces.streams.remote import Closed
from msgservice.faces.streams.served import Served
from msgservice.faces.streams.server import StreamServer
from msgservice.faces.streams.stream import MessageStream, message_stream
from msgservice.stream_limits import StreamLimits

__all__ = [
    "Abort",
    "Closed",
    "Complete",
    "Error",
    "Improvement",
    "Join",
    "JsonCodec",
    "Log",
    "MessageStream",
    "Monitor",
    "MonitorMessage",
    "NodeStreams",
    "Progress",
    "RemoteStream",
    "Start",
    "StreamCodec",
    "StreamLimits",
    "StreamServer",
    "codec",
    "message_stream",
    "register",
    "serve",
]

codec: StreamCodec = JsonCodec


def serve(
    port: int | str,
    reactor: Any,
    stream: MessageStream | Served = message_stream,
    *,
    insecure: bool = False,
    **options: Any,
) -> StreamServer:
    """Return a server that listens: a service, `stopService` ends it.

    `stream`: a `MessageStream`, or the `NodeStreams` of a node that has started.
    `port`: of loopback, 0 for one that is free (`.port` tells); with `insecure` of every
    interface. Or an endpoint string. `options`: those of `StreamServer`. Raises `CannotListen`,
    `InsecureListener` and `BadAddress`; `TypeError` and `ValueError` for what is no port.
    """
    if not isinstance(port, str):
        check_port(port, 0)
    check_flags(insecure=insecure)
    interface = "" if insecure else ":interface=127.0.0.1"
    listen = port if isinstance(port, str) else f"tcp:{port}{interface}"
    options.setdefault("codec", codec)
    server = StreamServer(reactor, stream, listen=listen, insecure=insecure, **options)
    server.privilegedStartService()
    server.startService()
    return server


class RemoteStream(_remote.RemoteStream):
    """The streams of a server, from elsewhere, with the `codec` of this module.

    All else is `remote.RemoteStream`'s.
    """

    def __init__(self, host: str, port: int, reactor: Any = None, **options: Any) -> None:
        options.setdefault("codec", codec)
        super().__init__(host, port, reactor, **options)
