"""Channels inside one process: a client or receiver of the embedding program, without a socket.

Both ends are `IChannel`s; what one sends reaches the other in a later turn of the reactor, as a
list, so that neither is ever called from inside its own call. What travels are the same frames
as on a socket.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IProtocol,
    IProtocolFactory,
    IReactorTime,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from msgservice.clock import monotonic_of
from msgservice.credentials import THIS_PROCESS
from msgservice.errors import FrameTooLarge
from msgservice.interfaces import IChannel, IChannelUser
from msgservice.limits import Limits
from msgservice.transport.dialling import Connector
from msgservice.transport.owners import ChannelOwner, Nobody

BUFFER_MAX = 4 * 1024 * 1024  # bytes on their way before the sender is told to wait
ADDRESS = "this process"


class LocalTransport:
    """One end of a pair, as the transport of its protocol: it knows the channel there."""

    def __init__(self, protocol: IProtocol, peer: str) -> None:
        self.peer_address = peer
        self.channel: LocalChannel | None = None
        self._protocol = protocol
        protocol.makeConnection(self)  # type: ignore[arg-type]  # no byte stream

    def lost(self) -> None:
        """Tell the protocol that the connection has gone."""
        self._protocol.connectionLost(connectionDone)

    def loseConnection(self) -> None:
        """End the connection."""
        assert self.channel is not None
        self.channel.abort()

    abortConnection = loseConnection


@implementer(IChannel)
class LocalChannel(TwistedProtocol):
    """One end of a pair. `make_user` is called once it stands."""

    transport: LocalTransport  # type: ignore[assignment]  # no byte stream
    credentials = THIS_PROCESS
    peer_address = "unknown"
    user: IChannelUser

    def __init__(
        self,
        make_user: Callable[[], IChannelUser],
        limits: Limits,
        clock: IReactorTime,
        owner: ChannelOwner,
    ) -> None:
        self.other: LocalChannel | None = None
        self._make_user = make_user
        self._owner = owner
        self._limits = limits
        self._clock = clock
        self.incoming: list[bytes] = []
        self.incoming_bytes = 0
        self.heard_at = 0.0
        self._known = False
        self._due = False
        self._paused = False
        self.other_full = False
        self.lost: str | None = None
        self._gone = False

    # --- Twisted's

    def connectionMade(self) -> None:
        """Begin; the user is told in a later turn."""
        self.peer_address = self.transport.peer_address
        self.transport.channel = self
        self.user = self._make_user()
        self._clock.callLater(0, self.user.channel_opened, self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """End: tell the user, once."""
        assert self.lost is not None
        self.user.channel_lost(self.lost)
        self._owner.channel_gone(self, self.lost)

    # --- IChannel

    @property
    def refusal(self) -> str | None:
        """Why the connection ended, where that does not pass by itself (`IChannelUser`)."""
        return getattr(self.user, "refusal", None)

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

    def push(self) -> None:
        """See `IChannel`: it has left."""

    def identified(self) -> None:
        """See `IChannel`."""
        self._owner.channel_identified(self)

    def established(self) -> None:
        """See `IChannel`."""
        if not self._known:
            self._known = True
            self._owner.channel_established(self)

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
            self.transport.lost()

    def tell_room(self) -> None:
        """The other end has taken what was on its way."""
        if not self._gone:
            self.user.channel_writable(True)


def join(near: IProtocol, far: IProtocol, name: str) -> LocalChannel:
    """Connect two `LocalChannel`s, wrapped or not; return the near one. `name`: of the near one."""
    left, right = LocalTransport(near, ADDRESS), LocalTransport(far, f"{ADDRESS} ({name})")
    assert left.channel is not None
    assert right.channel is not None
    left.channel.other, right.channel.other = right.channel, left.channel
    return left.channel


@implementer(IStreamClientEndpoint)
class LocalEndpoint:
    """The other side within this process: `make_far` makes its users, once it is ready."""

    def __init__(
        self,
        make_far: Callable[[], IChannelUser],
        when_ready: Callable[[], Deferred[None]],
        clock: IReactorTime,
        limits: Limits,
        name: str,
    ) -> None:
        self._make_far = make_far
        self._when_ready = when_ready
        self._clock = clock
        self._limits = limits
        self._name = name

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        """See `IStreamClientEndpoint`."""
        return self._when_ready().addCallback(self._join, protocolFactory)

    def _join(self, _: None, factory: IProtocolFactory) -> IProtocol:
        near = factory.buildProtocol(None)  # type: ignore[arg-type]  # it has none
        assert near is not None
        far = LocalChannel(self._make_far, self._limits, self._clock, Nobody())
        join(near, far, self._name)
        return near


def local_connector(
    make_user: Callable[[], IChannelUser],
    make_far: Callable[[], IChannelUser],
    when_ready: Callable[[], Deferred[None]],
    clock: IReactorTime,
    limits: Limits,
    name: str,
) -> Connector:
    """Return a connector to `make_far`'s side, which sees the near one under this name."""
    return Connector(
        reactor=clock,
        address=ADDRESS,
        endpoint=LocalEndpoint(make_far, when_ready, clock, limits, name),
        make_channel=lambda owner: LocalChannel(make_user, limits, clock, owner),
        limits=limits,
        rng=lambda: 1.0,  # nobody else dials at the same time
        silence=None,  # a node that starts may take its time
    )
