"""Channels over acknowledged UDP: one session is one channel, its messages are the frames.

A session that is lost ends its channel, and nothing of it is sent again here: the hop above knows
what was not acknowledged, and sends it over whatever connection comes next. Who dials and who
listens is in `udp.endpoint` and `udp.transport`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.interfaces import IAddress, IDelayedCall, IProtocol, IReactorTime
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from msgservice.core.datagram.cookie import Address
from msgservice.core.datagram.limits import DatagramLimits
from msgservice.core.datagram.peers import Effects
from msgservice.core.datagram.receiver import Delivery
from msgservice.core.datagram.session import Session
from msgservice.credentials import NOBODY, Credentials
from msgservice.errors import DeadlinePassed, FrameTooLarge, LimitReached, ProtocolError
from msgservice.interfaces import IChannel, IChannelUser
from msgservice.limits import Limits
from msgservice.transport.addresses import is_local_host, plain_host
from msgservice.transport.owners import ChannelOwner
from msgservice.transport.tcp.pacing import Watch
from msgservice.transport.udp.keyfile import SharedKeys
from msgservice.transport.udp.turns import Turns

# Sent and not yet taken by the peer, beyond which the user is told to stop, and to go on.
QUEUE_BYTES_HIGH = 2 * 1024 * 1024
QUEUE_BYTES_LOW = 512 * 1024


class Accepter(Protocol):
    """The one who makes a protocol for each session of a bearer: a listener, or an attempt."""

    def buildProtocol(self, address: IAddress) -> IProtocol | None:
        """Return the protocol of a session that stands: a `UdpChannel`, perhaps in a wrapper."""

    def opened(self, protocol: IProtocol) -> None:
        """The protocol has its session."""

    def lost(self) -> None:
        """A session has gone, and its protocol was told."""


class SessionTransport:
    """One session, as the transport of its protocol."""

    def __init__(self, bearer: Bearer, session: Session) -> None:
        self.bearer = bearer
        self.session = session

    def getPeer(self) -> IAddress:
        """Return who is at the other end."""
        return udp_address(self.session.address)

    def getHost(self) -> IAddress:
        """Return where this end is."""
        return udp_address(self.bearer.address)

    def loseConnection(self) -> None:
        """End the session."""
        self.bearer.end_session(self.session)

    abortConnection = loseConnection


class _Frame:
    """A frame under way; settled when the peer has taken it."""

    __slots__ = ("_channel", "_size")

    def __init__(self, channel: UdpChannel, size: int) -> None:
        self._channel = channel
        self._size = size

    def settle(self) -> None:
        """Take note that the peer has acknowledged the frame."""
        self._channel.frame_taken(self._size)


@implementer(IChannel)
class UdpChannel(TwistedProtocol):
    """One session, seen as a connection. `make_user` is called once it stands."""

    _log = Logger()

    session: Session
    transport: SessionTransport  # type: ignore[assignment]  # no byte stream
    peer_address = "unknown"
    credentials = NOBODY

    def __init__(
        self, make_user: Callable[[], IChannelUser], limits: Limits, owner: ChannelOwner
    ) -> None:
        self._make_user = make_user
        self._owner = owner
        self._limits = limits
        self._frame_bytes = limits.frame_bytes
        self._queued = 0
        self._told_writable = True
        self._paused = False
        self._held: list[Delivery] = []
        self._deadline: IDelayedCall | None = None
        self._taken = 0  # frames of ours
        self._unread = Watch(limits.write_timeout)
        self._watching: IDelayedCall | None = None
        self._known = False
        self._reason = "closed by the other side, or lost"
        self.user: IChannelUser | None = None
        self.closing = False
        self.is_gone = False

    # --- Twisted's

    def connectionMade(self) -> None:
        """Begin on a session that stands."""
        self._bearer = bearer = self.transport.bearer
        self._turns = bearer.turns
        self.session = session = self.transport.session
        # A frame that the other side would not take fails here, as one beyond our own limit: the
        # connection that it is for ends with the reason, instead of trying it for ever.
        self._frame_bytes = min(self._limits.frame_bytes, session.message_bytes)
        host, port = session.address
        where = f"udp:[{host}]:{port}" if ":" in host else f"udp:{host}:{port}"
        is_local = is_local_host(host)
        # A bearer with keys opens nothing that is not sealed with one.
        key_id = session.key_id if bearer.keys is not None else None
        user = bearer.keys.users.get(session.key_id) if bearer.keys is not None else None
        self.peer_address = where if user is None else f"{where} ({user})"
        self.credentials = Credentials(
            how="udp",
            is_local=is_local,
            address=plain_host(host),
            key_id=key_id,
            key_user=user,
            is_private=is_local or key_id is not None,
        )
        bearer.attach(self)
        try:
            self.user = self._make_user()
        except Exception:  # ends this connection only
            self._log.failure("no user for the connection with {peer}", peer=self.peer_address)
            self._turns.act(self.abort)
            return
        self.user.channel_opened(self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """End with the session: tell the user, once."""
        if self.is_gone:
            return
        self.is_gone = True
        self._held.clear()
        if self._deadline is not None and self._deadline.active():
            self._deadline.cancel()
        if self.user is not None:
            self.user.channel_lost(self._reason)
        self._owner.channel_gone(self, self._reason)

    # --- IChannel

    @property
    def refusal(self) -> str | None:
        """Why the connection ended, where that does not pass by itself (`IChannelUser`)."""
        return getattr(self.user, "refusal", None)

    @property
    def unsent(self) -> int:
        """See `IChannel`."""
        return self._queued

    @property
    def heard_at(self) -> float:
        """See `IChannel`: any datagram of the session, a chunk of a large frame too."""
        return self.session.heard_at

    def send(self, frame: bytes) -> None:
        """See `IChannel`."""
        size = len(frame)
        if size > self._frame_bytes:
            raise FrameTooLarge(size, self._frame_bytes)
        if self.closing or self.is_gone:
            return
        self._queued += size
        self._bearer.send_frame(self, frame, _Frame(self, size))

    def send_now(self, frames: Sequence[bytes]) -> None:
        """See `IChannel`."""
        for frame in frames:
            self.send(frame)
        if not self.is_gone:
            self._turns.flush()

    def push(self) -> None:
        """See `IChannel`: it has left."""

    def identified(self) -> None:
        """See `IChannel`."""
        self._owner.channel_identified(self)

    def established(self) -> None:
        """See `IChannel`."""
        if not self._known:
            self._known = True
            self._bearer.establish(self.session)
            self._owner.channel_established(self)

    def pause(self) -> None:
        """See `IChannel`: what comes is held unhandled, so the peer's window closes."""
        self._paused = True

    def resume(self) -> None:
        """See `IChannel`."""
        self._paused = False
        if self._held:
            self._turns.act(self._hand_on)

    def close(self) -> None:
        """See `IChannel`."""
        if self.closing or self.is_gone:
            return
        self.closing = True
        self._reason = "closed"
        self._deadline = self._later(self._limits.close_timeout, self.abort)
        self._turns.act(self._close_if_sent)

    def abort(self) -> None:
        """See `IChannel`."""
        if not self.is_gone:
            self.closing = True
            if self._reason != "closed":
                self._reason = "aborted"
            self._bearer.end_session(self.session)

    def _later(self, seconds: float, act: Callable[[], None]) -> IDelayedCall:
        call: IDelayedCall = self._turns.reactor.callLater(seconds, act)
        return call

    # --- from the bearer

    def deliver(self, deliveries: list[Delivery]) -> None:
        """Take frames that came, in order."""
        self._held += deliveries
        if not self._paused:
            self._hand_on()

    def _hand_on(self) -> None:
        if self._paused or not self._held:
            return
        held, self._held = self._held, []
        first, (last, bodies, _) = held[0][0], held[-1]
        self._bearer.handled(
            self.session, first, last + len(bodies) - 1, sum([size for _, _, size in held])
        )
        if self.closing or self.is_gone or self.user is None:
            return
        frames = [frame for _, bodies, _ in held for frame in bodies]
        if not self._known:
            size_max = self._limits.unauthenticated_bytes
            for frame in frames:
                if len(frame) > size_max:
                    self._fail(FrameTooLarge(len(frame), size_max))
                    return
        try:
            self.user.frames_received(frames)
        except Exception:  # a user's fault ends its own connection, no other
            self._log.failure("connection with {peer} failed", peer=self.peer_address)
            self.abort()

    def _fail(self, error: ProtocolError) -> None:
        assert self.user is not None
        self._reason = str(error)
        self.user.channel_failed(error)
        self.abort()

    def key_changed(self) -> None:
        """Take note that the key of the session, or its user, is gone: it ends at once."""
        self.closing = True
        self._reason = "its key is not in use any more"

    def frame_taken(self, size: int) -> None:
        """Take note that the peer has taken a frame of ours."""
        self._queued -= size
        self._taken += 1

    def end_turn(self) -> None:
        """Tell the user whether there is room; close when all is sent."""
        if self.is_gone:
            return
        if self.closing:
            self._close_if_sent()
            return
        limit = QUEUE_BYTES_HIGH if self._told_writable else QUEUE_BYTES_LOW
        writable = self._queued <= limit
        if writable is not self._told_writable and self.user is not None:
            self._told_writable = writable
            if not writable and self._watching is None:
                self._watch()
            self.user.channel_writable(writable)

    def _watch(self) -> None:
        """Watch a peer with much unsent for progress: one that reads nothing is cut off.

        Datagrams come from one that answers heartbeats, and no silence shows that it takes nothing.
        """
        self._watching = None
        if self._told_writable or self.closing or self.is_gone:
            return
        if self._unread.stalled((self._taken, self.session.sending.sent_to), self._turns.seconds()):
            self._fail(DeadlinePassed("reading what was sent", self._limits.write_timeout))
        else:
            self._watching = self._later(self._limits.write_timeout / 10, self._watch)

    def _close_if_sent(self) -> None:
        if not self.is_gone and not self._queued:
            self._bearer.end_session(self.session)


class Bearer:
    """The bearer of one socket: its messages are frames, and its sessions are channels."""

    _log = Logger()

    def __init__(
        self,
        reactor: IReactorTime,
        accepter: Accepter,
        *,
        limits: Limits,
        keys: SharedKeys | None,
        insecure: bool,
        rng: Callable[[], float],
        entropy: Callable[[int], bytes],
    ) -> None:
        self.turns = Turns(
            reactor,
            self._take_effects,
            self.close,
            key=None if keys is None else keys.by_number,
            insecure=insecure,
            limits=datagram_limits(limits),
            entropy=entropy,
            jitter=rng,
            ordered=True,
            carry_over=False,
            # Users at one address, as behind one router, or as somebody pretends, are several.
            by_key=keys is not None and bool(keys.users),
        )
        self._endpoint = self.turns.endpoint
        self._seconds = self.turns.seconds
        self.keys = keys
        self._accepter = accepter
        self._protocols: dict[Session, IProtocol] = {}
        self._channels: dict[Session, UdpChannel] = {}
        self._active: dict[UdpChannel, None] = {}

    @property
    def channels(self) -> list[UdpChannel]:
        """The live channels."""
        return list(self._channels.values())

    # --- for channels and connectors

    @property
    def address(self) -> Address:
        """The address that is listened at: (host, port)."""
        return self.turns.address

    def listen(self, port: int, interface: str) -> Address:
        """Open the socket and return its (host, port); see `DatagramPeer.listen`."""
        return self.turns.listen(port, interface)

    def dial(self, host: str, port: int) -> None:
        """Begin a session; from now on nobody else is heard."""
        address = self.turns.check((host, port))  # as the socket writes it
        self.turns.hear_only(address)
        self._endpoint.connect(address, self._seconds())
        self.turns.act(_nothing)

    def send_frame(self, channel: UdpChannel, frame: bytes, token: _Frame) -> None:
        """Queue a frame; all of one turn of the reactor leave together."""
        peer = self._endpoint.peers.get(channel.session.peer)
        if peer is None or peer.session is not channel.session:
            return  # it ended in this very turn, and its user is told next: no other shall have it
        self._active[channel] = None
        try:
            self._endpoint.send(channel.session.peer, frame, token, self._seconds())
        except LimitReached as error:
            # The user went on for 256 MiB after it was told to stop.
            self._log.error(
                "{peer}: {error}", line="peer-error", peer=channel.peer_address, error=error
            )
            self.turns.act(channel.abort)
            return
        if not self.turns.awaited:
            self.turns.soon()

    def handled(self, session: Session, first: int, last: int, size: int) -> None:
        """Let frames count as taken."""
        self._endpoint.handle(session, first, last, size)

    def establish(self, session: Session) -> None:
        """Take as much of a session as of every other: its peer is known."""
        self._endpoint.establish(session)
        self.turns.soon()

    def end_session(self, session: Session) -> None:
        """End a session and its channel; the peer is told."""
        peer = self._endpoint.peers.get(session.peer)
        if peer is not None and peer.session is session:
            self._endpoint.close(session.peer, self._seconds())
        self.turns.act(_nothing)  # the turn that runs has its effects already

    def change_keys(self, keys: SharedKeys) -> int:
        """Use these keys in place of those before; return how many sessions that ends.

        Those of keys that are gone, are others now, or have another user. What is dialled keeps
        its keys until it has ended.
        """
        assert self.keys is not None
        ended = self.keys.ended_by(keys)
        self.keys = keys
        lost = [one for one in self.channels if one.session.key_id in ended]
        for channel in lost:
            channel.key_changed()
        self.turns.change_keys(keys.by_number, ended)
        return len(lost)

    # --- from the turns

    def _take_effects(self, effects: Effects) -> None:
        deliveries, settled, _, _, _, events = effects
        touched = self._active
        self._active = {}
        for token in settled:
            token.settle()  # type: ignore[attr-defined]  # all tokens here are frames
        for session, parts in deliveries:
            channel = self._channel_of(session)
            if channel is not None:
                channel.deliver(parts)
        for event, session in events:
            if event == "opened":
                self._channel_of(session)
            else:
                self._lose(session)
        for channel in [*touched, *self._channels.values()]:
            channel.end_turn()

    def _channel_of(self, session: Session) -> UdpChannel | None:
        channel = self._channels.get(session)
        if channel is None and session not in self._protocols:
            protocol = self._accepter.buildProtocol(udp_address(session.address))
            if protocol is None:
                self.turns.act(lambda: self.end_session(session))
                return None
            self._protocols[session] = protocol
            protocol.makeConnection(SessionTransport(self, session))  # type: ignore[arg-type]  # no byte stream
            self._accepter.opened(protocol)
            channel = self._channels.get(session)
        return channel

    def attach(self, channel: UdpChannel) -> None:
        """Let a channel have what its session brings."""
        self._channels[channel.session] = channel

    def _lose(self, session: Session) -> None:
        protocol = self._protocols.pop(session, None)
        self._channels.pop(session, None)
        if protocol is not None:
            protocol.connectionLost(connectionDone)
            self._accepter.lost()

    def close(self) -> None:
        """End all channels, tell all peers, and close the socket."""
        self.turns.close()
        for session in list(self._protocols):
            self._lose(session)


def udp_address(address: Address) -> IAddress:
    """Return an address as Twisted has it."""
    host, port = address
    kind = IPv6Address if ":" in host else IPv4Address
    return kind("UDP", host, port)


def _nothing() -> None:
    """An act whose turn is all that is wanted."""


def datagram_limits(limits: Limits) -> DatagramLimits:
    """Return the limits of the layer below that fit those of frames."""
    return DatagramLimits(
        message_bytes=limits.frame_bytes,
        unauthenticated_bytes=limits.unauthenticated_bytes,
        window_bytes=max(4 * 1024 * 1024, 2 * limits.frame_bytes),
        queue_bytes=max(256 * 1024 * 1024, 4 * limits.frame_bytes),
        peers=limits.connections,
    )
