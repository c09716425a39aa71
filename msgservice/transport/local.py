"""Channels inside one process: a client or receiver of the embedding program, without a socket.

Both ends are `IChannel`s; what one sends reaches the other in a later turn of the reactor, as a
list, so that neither is ever called from inside its own call. What travels are the same frames
as on a socket.
"""

from __future__ import annotations

from typing import Any

from zope.interface import implementer

from msgservice.errors import FrameTooLarge
from msgservice.interfaces import IChannel, IChannelUser
from msgservice.limits import Limits

BUFFER_MAX = 4 * 1024 * 1024  # bytes on their way before the sender is told to wait


@implementer(IChannel)
class LocalChannel:
    """One end of a pair."""

    local_only = True

    def __init__(self, user: IChannelUser, peer: str, limits: Limits, clock: Any) -> None:
        self.user = user
        self.peer = peer
        self.other: LocalChannel | None = None
        self._limits = limits
        self._clock = clock
        self.incoming: list[bytes] = []
        self.incoming_bytes = 0
        self._due = False
        self._paused = False
        self.other_full = False
        self.lost: str | None = None
        self._gone = False

    def send(self, frame: bytes) -> None:
        """See `IChannel`."""
        if len(frame) > self._limits.frame_bytes:
            raise FrameTooLarge(len(frame), self._limits.frame_bytes)
        other = self.other
        if other is None or self.lost is not None:
            return
        other.incoming.append(frame)
        other.incoming_bytes += len(frame)
        other.soon()
        if other.incoming_bytes > BUFFER_MAX and not self.other_full:
            self.other_full = True
            self._clock.callLater(0, self._tell_full)

    def _tell_full(self) -> None:
        if self.other_full and not self._gone:
            self.user.channel_writable(False)

    def established(self) -> None:
        """See `IChannel`: within one process everybody is known."""

    def pause(self) -> None:
        """See `IChannel`."""
        self._paused = True

    def resume(self) -> None:
        """See `IChannel`."""
        self._paused = False
        self.soon()

    def close(self) -> None:
        """See `IChannel`."""
        self._end("closed")

    def abort(self) -> None:
        """See `IChannel`."""
        self.incoming.clear()
        self._end("aborted")

    def _end(self, reason: str) -> None:
        if self.lost is None:
            self.lost = reason
            self.soon()
            if self.other is not None and self.other.lost is None:
                self.other.lost = f"{reason} by the other side"
                self.other.soon()

    def soon(self) -> None:
        """Deliver what came, and the end, in a later turn."""
        if not self._due and not self._gone:
            self._due = True
            self._clock.callLater(0, self._deliver)

    def _deliver(self) -> None:
        self._due = False
        if self._gone:
            return
        if self.incoming and not self._paused:
            frames, self.incoming = self.incoming, []
            self.incoming_bytes = 0
            other = self.other
            if other is not None and other.other_full:
                other.other_full = False
                self._clock.callLater(0, other.tell_room)
            self.user.frames_received(frames)
        if self.lost is not None and not self._gone and (not self.incoming or self._paused):
            self._gone = True
            self.user.channel_lost(self.lost)

    def tell_room(self) -> None:
        """The other end has taken what was on its way."""
        if not self._gone:
            self.user.channel_writable(True)


def connect_locally(
    near: IChannelUser, far: IChannelUser, *, clock: Any, limits: Limits, name: str
) -> LocalChannel:
    """Connect two users; return the near one's channel. Both are told in later turns."""
    left = LocalChannel(near, "this process", limits, clock)
    right = LocalChannel(far, f"this process ({name})", limits, clock)
    left.other, right.other = right, left
    clock.callLater(0, near.channel_opened, left)
    clock.callLater(0, far.channel_opened, right)
    return left
