"""A connection of a node whose other end is the test: any frame in, at any moment, and frames out.

Unlike a `ScriptedPeer` of `nodes` it has no session of its own, so it may say what no session says.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from zope.interface import implementer

from msgservice.connection import Connection
from msgservice.core.frames import Frame, decode_frame, encode_frame
from msgservice.credentials import THIS_PROCESS
from msgservice.interfaces import IChannel
from tests.kit.nodes import NodeWorld


@implementer(IChannel)
class Wire:
    """The node's end of a connection whose other end is the test: bytes in, frames out."""

    peer_address = "the test"
    credentials = THIS_PROCESS

    def __init__(self, world: NodeWorld) -> None:
        self.sent: list[Frame] = []
        self.unsent = 0
        self.heard_at = 0.0
        self.is_reading = True
        self.is_closed = False
        self.is_identified = False
        self.is_taken = True  # by the other side, at once
        self.connection = cast("Connection", world.node.parts.connections.make_user())
        self.connection.channel_opened(self)

    def say(self, *frames: Frame) -> None:
        self.connection.frames_received([encode_frame(frame) for frame in frames])

    def take(self, kind: type[Frame]) -> list[Any]:
        return [frame for frame in self.sent if type(frame) is kind]

    def send(self, frame: bytes) -> None:
        self.sent.append(decode_frame(frame))
        if not self.is_taken:
            self.unsent += len(frame)

    def send_now(self, frames: Sequence[bytes]) -> None:
        for frame in frames:
            self.send(frame)

    def push(self) -> None: ...

    def identified(self) -> None:
        self.is_identified = True

    def established(self) -> None: ...

    def pause(self) -> None:
        self.is_reading = False

    def resume(self) -> None:
        self.is_reading = True

    def close(self) -> None:
        self.is_closed = True

    abort = close
