"""Channels inside one process: a client or receiver of the embedding program, without a socket.

Both ends are `IChannel`s; what one sends reaches the other in a later turn of the reactor, as a
list, so that neither is ever called from inside its own call. What travels are the same frames
as on a socket.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from twisted.application.service import Service
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure
from zope.interface import implementer

from msgservice.clock import monotonic_of
from msgservice.errors import FrameTooLarge
from msgservice.interfaces import IChannel, IChannelUser, IConnector
from msgservice.limits import Limits
from msgservice.waiters import Waiters

BUFFER_MAX = 4 * 1024 * 1024  # bytes on their way before the sender is told to wait


@implementer(IChannel)
class LocalChannel:
    """One end of a pair."""

    local_only = True
    proven = False

    def __init__(self, user: IChannelUser, peer: str, limits: Limits, clock: IReactorTime) -> None:
        self.user = user
        self.peer = peer
        self.other: LocalChannel | None = None
        self._limits = limits
        self._clock = clock
        self.incoming: list[bytes] = []
        self.incoming_bytes = 0
        self.heard_at = 0.0
        self._due = False
        self._paused = False
        self.other_full = False
        self.lost: str | None = None
        self._gone = False

    @property
    def unsent(self) -> int:
        """See `IChannel`."""
        return self.other.incoming_bytes if self.other is not None else 0

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

    def send_now(self, frames: Sequence[bytes]) -> None:
        """See `IChannel`: what is sent is with the other side at once."""
        for frame in frames:
            self.send(frame)

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
        self.incoming.clear()
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
            self.heard_at = monotonic_of(self._clock)()
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
    near: IChannelUser, far: IChannelUser, *, clock: IReactorTime, limits: Limits, name: str
) -> LocalChannel:
    """Connect two users; return the near one's channel. Both are told in later turns."""
    left = LocalChannel(near, "this process", limits, clock)
    right = LocalChannel(far, f"this process ({name})", limits, clock)
    left.other, right.other = right, left
    clock.callLater(0, near.channel_opened, left)
    clock.callLater(0, far.channel_opened, right)
    return left


@implementer(IConnector)
class LocalConnector(Service):
    """Keeps one local connection to `make_far`'s side, and makes it again when it ends."""

    address = "this process"

    def __init__(
        self,
        make_user: Callable[[], IChannelUser],
        make_far: Callable[[], IChannelUser],
        when_ready: Callable[[], Deferred[None]],
        clock: IReactorTime,
        limits: Limits,
        name: str,
    ) -> None:
        self.channel: LocalChannel | None = None
        self.attempts = 0
        self.failures = 0
        self.last_error: str | None = None
        self._make_user = make_user
        self._make_far = make_far
        self._when_ready = when_ready
        self._clock = clock
        self._limits = limits
        self._peer_name = name
        self._is_closing = False  # it was stopped, and its channel has not gone yet
        self._stopped: Waiters[None] = Waiters()
        self._dialling: Deferred[None] | None = None  # until the node is ready
        self._due: IDelayedCall | None = None

    @property
    def next_attempt_in(self) -> float | None:
        """See `IConnector`."""
        if self._due is None:
            return None
        return float(max(0.0, self._due.getTime() - self._clock.seconds()))

    def poke(self) -> None:
        """See `IConnector`."""

    def startService(self) -> None:
        """Begin to dial; while it still stops, as soon as it has stopped."""
        if not self.running:
            super().startService()
            if not self._is_closing:
                self._dial()

    def _dial(self) -> None:
        self._due = None
        self.attempts += 1
        dialling = self._dialling = self._when_ready()
        # The node that does not start says so itself.
        dialling.addCallbacks(
            self._connect, self._not_ready, callbackArgs=(dialling,), errbackArgs=(dialling,)
        )

    def _not_ready(self, failure: Failure, dialling: Deferred[None]) -> None:
        if self._dialling is dialling:
            self._dialling = None
            self.failures += 1
            self.last_error = failure.getErrorMessage()

    def _connect(self, _: None, dialling: Deferred[None]) -> None:
        if self._dialling is dialling:
            self._dialling = None
            watched = _Watched(self._make_user(), self)
            self.channel = connect_locally(
                watched,
                self._make_far(),
                clock=self._clock,
                limits=self._limits,
                name=self._peer_name,
            )

    def lost(self, reason: str, refusal: str | None) -> None:
        """The channel has gone."""
        self.channel = None
        self.last_error = refusal or reason
        self.failures += 1
        was_closing, self._is_closing = self._is_closing, False
        if self.running:
            limits = self._limits
            delay = limits.link_delay_min if refusal is None else limits.link_delay_max
            self._due = self._clock.callLater(0 if was_closing else delay, self._dial)
        self._stopped.fire(None)

    def stopService(self) -> Deferred[None]:
        """See `IService`."""
        super().stopService()
        if self._due is not None:
            self._due.cancel()
            self._due = None
        if (dialling := self._dialling) is not None:
            self._dialling = None
            dialling.cancel()
        if self.channel is None:
            return succeed(None)
        self._is_closing = True
        waiter = self._stopped.wait()
        self.channel.close()
        return waiter


@implementer(IChannelUser)
class _Watched:
    """Passes everything on, and tells the connector about the end."""

    def __init__(self, user: IChannelUser, connector: LocalConnector) -> None:
        self._connector = connector
        self._user = user
        self.channel_opened = user.channel_opened
        self.frames_received = user.frames_received
        self.channel_failed = user.channel_failed
        self.channel_writable = user.channel_writable

    def channel_lost(self, reason: str) -> None:
        self._user.channel_lost(reason)
        self._connector.lost(reason, getattr(self._user, "refusal", None))
