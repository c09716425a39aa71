"""A node and the streams that it serves, as one service: the streams begin behind it and end first.

What the configuration says about streams becomes this (`tap`); a program may do so as well.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from twisted.application.service import IService, Service
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IStreamServerEndpoint
from twisted.logger import Logger
from zope.interface import implementer

from msgservice.core.subjects import streams_of
from msgservice.errors import MsgServiceError
from msgservice.faces.streams.durable import NodeStreams, StreamsNode
from msgservice.faces.streams.server import StreamServer
from msgservice.stream_limits import StreamLimits


class ServiceNode(StreamsNode, Protocol):
    """A node, as far as this service needs one. `listeners`: where it listens, for people."""

    listeners: list[str]

    def startService(self) -> None:
        """Start it."""

    def stopService(self) -> Any:
        """Stop it; fires when it has stopped."""

    def when_ready(self) -> Deferred[None]:
        """Fire when it listens."""


@implementer(IService)
class NodeWithStreams(Service):
    """A node, and its streams at an address.

    Args:
        listen, described: where, as of `StreamServer`.
        user: as whom all is done that comes by it; empty: this program, which may do all.
        insecure: it may be open to others than this machine.
        failed: called with what keeps the streams from listening.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        node: ServiceNode,
        listen: str | IStreamServerEndpoint,
        *,
        described: str = "",
        user: str = "",
        insecure: bool = False,
        limits: StreamLimits | None = None,
        failed: Callable[[Exception], object] = lambda error: None,
    ) -> None:
        self.node = node
        self.server: StreamServer | None = None
        self._reactor = reactor
        self._listen, self._described = listen, described
        self._user = user
        self._insecure = insecure
        self._limits = limits
        self._failed = failed

    def privilegedStartService(self) -> None:
        """Start nothing yet: a node listens when its log is open."""

    def startService(self) -> None:
        """Start the node, and the streams when it is ready."""
        super().startService()
        self.node.startService()
        # A node that cannot start says so itself, and ends the process.
        self.node.when_ready().addCallbacks(self._begin, lambda _: None)

    def _begin(self, _: object) -> None:
        if not self.running:
            return
        name = streams_of(self._user)
        streams = NodeStreams(self._reactor, self.node, principal=self._user, name=name)
        server = StreamServer(
            self._reactor,
            streams,
            listen=self._listen,
            described=self._described,
            insecure=self._insecure,
            limits=self._limits,
        )
        try:
            server.privilegedStartService()
        except MsgServiceError as error:
            self._log.critical("no streams: {why}", why=str(error))
            self._failed(error)
            return
        server.startService()
        self.node.listeners.append(f"streams at {server.address}")
        self.server = server

    def stopService(self) -> Deferred[None]:
        """Stop the streams, which store what was put, then the node."""
        super().stopService()
        server, self.server = self.server, None
        ended = succeed(None) if server is None else server.stopService()
        ended.addErrback(lambda f: self._log.failure("end of the streams", f))
        return ended.addCallback(lambda _: self.node.stopService())
