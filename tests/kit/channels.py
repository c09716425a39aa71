"""An `IChannelUser` for tests that writes down what it is told; and two users connected."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from zope.interface import implementer

from msgservice.credentials import THIS_PROCESS, Credentials
from msgservice.errors import ProtocolError
from msgservice.interfaces import IChannel, IChannelUser
from msgservice.limits import Limits
from msgservice.transport.local import LocalChannel, join
from msgservice.transport.owners import Nobody


@implementer(IChannelUser)
class Recorder:
    """`events`: what came, in order, as tuples. `on_*`: what it does then, if anything."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Any]] = []
        self.frames: list[bytes] = []  # all, in order
        self.channel: IChannel | None = None
        self.refusal: str | None = None
        self.on_opened: Callable[[IChannel], object] = lambda channel: None
        self.on_frames: Callable[[list[bytes]], object] = lambda frames: None
        self.on_failed: Callable[[ProtocolError], object] = lambda error: None
        self.on_writable: Callable[[bool], object] = lambda writable: None
        self._waiting: list[tuple[Callable[[], bool], Deferred[None]]] = []

    @property
    def is_lost(self) -> bool:
        return bool(self.events) and self.events[-1][0] == "lost"

    def names(self) -> list[str]:
        return [name for name, _ in self.events]

    def values(self, name: str) -> list[Any]:
        return [value for event, value in self.events if event == name]

    def send(self, frame: bytes) -> None:
        assert self.channel is not None, "no connection"
        self.channel.send(frame)

    def send_back(self, frames: list[bytes]) -> None:
        for frame in frames:
            self.send(frame)

    def until(self, condition: Callable[[], bool]) -> Deferred[None]:
        """Fire as soon as `condition()` holds after some event (or at once)."""
        fired: Deferred[None] = Deferred()
        self._waiting.append((condition, fired))
        self._look()
        return fired

    def until_lost(self) -> Deferred[None]:
        return self.until(lambda: self.is_lost)

    def until_opened(self) -> Deferred[None]:
        return self.until(lambda: self.channel is not None)

    def until_frames(self, count: int) -> Deferred[None]:
        return self.until(lambda: len(self.frames) >= count)

    def _note(self, name: str, value: Any) -> None:
        self.events.append((name, value))
        self._look()

    def _look(self) -> None:
        for condition, fired in list(self._waiting):
            if condition():
                self._waiting.remove((condition, fired))
                fired.callback(None)

    def channel_opened(self, channel: IChannel) -> None:
        self.channel = channel
        self._note("opened", channel)
        self.on_opened(channel)

    def frames_received(self, frames: list[bytes]) -> None:
        self.frames += frames
        self._note("frames", frames)
        self.on_frames(frames)

    def channel_failed(self, error: ProtocolError) -> None:
        self._note("failed", error)
        self.on_failed(error)

    def channel_writable(self, writable: bool) -> None:
        self._note("writable", writable)
        self.on_writable(writable)

    def channel_lost(self, reason: str) -> None:
        self._note("lost", reason)


def connect_locally(
    near: IChannelUser,
    far: IChannelUser,
    *,
    clock: IReactorTime,
    limits: Limits,
    name: str,
    shown: Credentials = THIS_PROCESS,
) -> LocalChannel:
    """Connect two users; return the near one's channel. Both are told in later turns.

    `shown`: what the far one sees of the near one.
    """
    nobody = Nobody()
    other = LocalChannel(lambda: far, limits, clock, nobody)
    other.credentials = shown
    return join(LocalChannel(lambda: near, limits, clock, nobody), other, name)
