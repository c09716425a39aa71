"""One channel over a transport in memory: writes of one turn, limits, deadlines, closing."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.error import ConnectionAborted, ConnectionDone
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import LogEvent
from twisted.python.failure import Failure
from zope.interface.verify import verifyObject

from msgservice.errors import DeadlinePassed, FrameTooLarge
from msgservice.interfaces import IChannel, IChannelUser
from msgservice.limits import Limits
from msgservice.transport.owners import Owned
from msgservice.transport.tcp.channel import PIECE_BYTES, QUEUE_BYTES, ChannelState, FrameProtocol
from msgservice.transport.tcp.pacing import Turn
from msgservice.transport.tcp.sockets import shorten
from tests.kit.channels import Recorder

LIMITS = Limits()


def framed(*frames: bytes) -> bytes:
    return b"".join(struct.pack("!I", len(frame)) + frame for frame in frames)


class Transport(StringTransport):
    """Counts writes, says when it is full, and reports its loss as real ones do: later."""

    def __init__(self, clock: Clock, peer: IAddress) -> None:
        super().__init__(peerAddress=peer)
        self.clock = clock
        self.writes = 0
        self.room = 0  # how much it takes before it is full, if it can be
        self.protocol: Any = None

    def writeSequence(self, data: Iterable[bytes]) -> None:
        self.writes += 1
        super().writeSequence(data)
        if self.room and len(self.value()) > self.room and self.producer is not None:
            self.producer.pauseProducing()

    def take(self) -> bytes:
        """What the kernel takes: all of it; then there is room again."""
        taken: bytes = self.value()
        self.clear()
        if self.producer is not None:
            self.producer.resumeProducing()
        return taken

    def loseConnection(self) -> None:
        if not self.disconnecting:
            super().loseConnection()
            if not self.room:
                self.clock.callLater(0, self._lost, ConnectionDone())

    def abortConnection(self) -> None:
        if not self.disconnected:
            self.disconnected = True
            self.clock.callLater(0, self._lost, ConnectionAborted())

    def _lost(self, why: Exception) -> None:
        assert self.protocol is not None
        self.protocol.connectionLost(Failure(why))


class Owner:
    def __init__(self) -> None:
        self.established = 0
        self.gone: list[str] = []

    def channel_identified(self, channel: Owned) -> None:
        pass

    def channel_established(self, channel: Owned) -> None:
        self.established += 1

    def channel_gone(self, channel: Owned, reason: str) -> None:
        self.gone.append(reason)


class World:
    """One channel that stands, unless `connect` is False."""

    def __init__(
        self,
        *,
        limits: Limits = LIMITS,
        peer: IAddress | None = None,
        make_user: Callable[[], IChannelUser] | None = None,
        room: int = 0,
    ) -> None:
        self.clock = Clock()
        self.user = Recorder()
        self.owner = Owner()
        self.turn = Turn(self.clock)
        self.channel = FrameProtocol(
            reactor=self.clock,
            make_user=make_user or (lambda: self.user),
            limits=limits,
            owner=self.owner,
            turn=self.turn,
        )
        self.transport = Transport(self.clock, peer or IPv4Address("TCP", "127.0.0.1", 5))
        self.transport.protocol = self.channel
        self.transport.room = room
        self.channel.makeConnection(self.transport)

    def end_turn(self) -> None:
        self.clock.advance(0)

    def pass_seconds(self, seconds: float) -> None:
        for _ in range(int(seconds * 10)):
            self.clock.advance(0.1)


def test_a_channel_is_an_ichannel() -> None:
    assert verifyObject(IChannel, World().channel)


def test_the_recorder_of_the_tests_is_an_ichanneluser() -> None:
    assert verifyObject(IChannelUser, Recorder())


# --- receiving


def test_all_frames_of_one_delivery_are_handed_over_as_one_list() -> None:
    world = World()
    world.channel.dataReceived(framed(b"a", b"", b"ccc") + framed(b"half")[:5])
    world.channel.dataReceived(framed(b"half")[5:])
    assert world.user.values("frames") == [[b"a", b"", b"ccc"], [b"half"]]


def test_the_user_is_told_of_a_delivery_only_when_a_frame_is_whole() -> None:
    world = World()
    world.channel.dataReceived(framed(b"abc")[:6])
    assert world.user.names() == ["opened"]


def test_a_peer_that_is_not_known_yet_may_send_small_frames_only() -> None:
    world = World()
    world.channel.dataReceived(framed(b"hello") + struct.pack("!I", 65_537))
    assert world.user.frames == [b"hello"]
    (error,) = world.user.values("failed")
    assert isinstance(error, FrameTooLarge)
    assert (error.size, error.size_max) == (65_537, 65_536)


def test_a_peer_that_is_known_may_send_frames_up_to_the_limit() -> None:
    world = World()
    world.channel.established()
    body = bytes(LIMITS.frame_bytes)
    world.channel.dataReceived(framed(body))
    assert [body] == world.user.frames


def test_a_frame_that_makes_the_peer_known_may_be_followed_by_a_large_one_in_one_delivery() -> None:
    world = World()
    world.user.on_frames = lambda frames: world.channel.established()
    body = bytes(200_000)
    data = framed(b"resume", body, b"more")
    world.channel.dataReceived(data[:65_536])
    world.channel.dataReceived(data[65_536:])
    assert [b"resume", body, b"more"] == world.user.frames
    assert world.user.values("failed") == []


def test_a_frame_too_large_ends_the_connection_after_the_frames_before_it() -> None:
    world = World()
    world.channel.established()
    world.user.on_failed = lambda error: world.channel.send(b"error")
    world.channel.dataReceived(framed(b"good") + struct.pack("!I", LIMITS.frame_bytes + 1))
    world.channel.dataReceived(framed(b"late") + b"x" * 1000)
    assert world.channel._splitter.partial == 0
    assert framed(b"error") == world.transport.value()
    world.end_turn()
    assert world.transport.disconnecting
    world.end_turn()
    assert world.user.names() == ["opened", "frames", "failed", "lost"]
    assert world.user.frames == [b"good"]


def test_established_is_told_to_the_owner_once() -> None:
    world = World()
    world.channel.established()
    world.channel.established()
    assert world.owner.established == 1


def test_pause_and_resume_reach_the_transport() -> None:
    world = World()
    world.channel.pause()
    assert world.transport.producerState == "paused"
    world.channel.resume()
    assert world.transport.producerState == "producing"


# --- sending


def test_what_is_sent_in_one_turn_leaves_in_one_write() -> None:
    world = World()
    for frame in (b"a", b"b", b"c"):
        world.channel.send(frame)
    assert world.transport.value() == b""
    world.end_turn()
    assert framed(b"a", b"b", b"c") == world.transport.value()
    assert world.transport.writes == 1


def test_what_is_sent_while_frames_are_received_leaves_with_that_delivery() -> None:
    world = World()
    world.user.on_frames = lambda frames: list(map(world.channel.send, frames))
    world.channel.dataReceived(framed(b"a", b"b"))
    assert framed(b"a", b"b") == world.transport.value()
    assert world.transport.writes == 1


def test_what_is_sent_when_the_channel_opens_leaves_at_once() -> None:
    user = Recorder()
    user.on_opened = lambda channel: channel.send(b"hello")
    world = World(make_user=lambda: user)
    assert framed(b"hello") == world.transport.value()


def test_what_is_sent_now_leaves_at_once_and_leaves_nothing_for_the_end_of_the_turn() -> None:
    world = World()
    world.channel.send_now([b"a", b"b"])
    assert world.transport.writes == 1
    assert not world.clock.getDelayedCalls()


class _WrappingProtocol(Protocol):
    """As Twisted's endpoints have it, between a transport and what a factory has made."""

    def __init__(self, inner: object) -> None:
        self._wrappedProtocol: Any = inner

    def dataReceived(self, data: bytes) -> None:
        self._wrappedProtocol.dataReceived(data)


class Counted(_WrappingProtocol):
    """A program's own: it does something with what comes."""

    count = 0

    def dataReceived(self, data: bytes) -> None:
        self.count += len(data)
        super().dataReceived(data)


def test_relays_of_twisted_are_passed_by_and_no_others() -> None:
    world = World()
    for relay, is_passed in (
        (_WrappingProtocol(world.channel), True),
        (_WrappingProtocol(_WrappingProtocol(world.channel)), True),
        (_WrappingProtocol(Counted(world.channel)), False),
        (_WrappingProtocol(Recorder()), False),
        (Counted(world.channel), False),
    ):
        transport = Transport(world.clock, IPv4Address("TCP", "127.0.0.1", 5))
        transport.protocol = relay
        shorten(transport, world.channel)
        assert is_passed is (relay.dataReceived == world.channel.dataReceived)
    transport.protocol = world.channel
    shorten(transport, world.channel)
    assert "dataReceived" not in vars(world.channel)


def test_what_is_pushed_leaves_while_the_user_goes_on() -> None:
    world = World()
    seen: list[bytes] = []

    def received(_: object) -> None:
        world.channel.send_now([b"a"])
        seen.append(world.transport.value())
        world.channel.push()
        seen.append(world.transport.value())
        world.channel.send_now([b"b"])

    world.user.on_frames = received
    world.channel.dataReceived(framed(b"go"))
    assert [b"", framed(b"a")] == seen
    assert framed(b"a", b"b") == world.transport.value()


def test_what_is_pushed_beyond_the_room_is_watched_and_leaves_when_there_is_some() -> None:
    world = World(room=1)

    def received(_: object) -> None:
        world.channel.send_now([b"a"])
        world.channel.push()

    world.user.on_frames = received
    world.channel.dataReceived(framed(b"go"))
    assert world.channel._watching is not None
    world.channel.send_now([b"b"])
    assert framed(b"a") == world.transport.take()
    assert framed(b"b") == world.transport.value()


def test_channels_of_one_factory_share_the_end_of_the_turn() -> None:
    world = World()
    world.channel.send(b"a")
    world.channel.send(b"b")
    assert len(world.clock.getDelayedCalls()) == 1
    world.end_turn()
    assert world.clock.getDelayedCalls() == []


def test_a_frame_too_large_is_refused_at_the_sender_and_nothing_of_it_leaves() -> None:
    world = World()
    world.channel.send(b"a")
    with pytest.raises(FrameTooLarge) as caught:
        world.channel.send(bytes(LIMITS.frame_bytes + 1))
    world.channel.send(b"b")
    world.end_turn()
    assert LIMITS.frame_bytes == caught.value.size_max
    assert framed(b"a", b"b") == world.transport.value()


def test_the_user_is_never_called_from_inside_send() -> None:
    world = World(room=1)
    for _ in range(4):
        world.channel.send(bytes(QUEUE_BYTES))
    assert world.user.names() == ["opened"]


def test_the_user_is_told_when_the_queue_is_full_and_when_it_is_empty_again() -> None:
    world = World(room=1)
    for _ in range(4):
        world.channel.send(bytes(QUEUE_BYTES))
    world.end_turn()
    assert world.user.values("writable") == [False]
    for _ in range(3):
        world.transport.take()
        assert world.user.values("writable") == [False]
    world.transport.take()
    assert world.user.values("writable") == [False, True]


def test_a_queue_that_is_not_long_does_not_stop_the_user() -> None:
    world = World(room=1)
    world.channel.send(b"first")
    world.end_turn()
    world.channel.send(bytes(QUEUE_BYTES - 4))
    world.end_turn()
    assert world.user.values("writable") == []


def test_what_is_sent_when_there_is_room_again_leaves_at_once() -> None:
    world = World(room=1)
    world.user.on_writable = lambda writable: world.channel.send(b"next") if writable else None
    world.channel.send(b"first")
    world.end_turn()
    world.channel.send(bytes(QUEUE_BYTES))
    world.end_turn()
    assert framed(b"first") == world.transport.take()
    world.transport.room = 0
    assert framed(bytes(QUEUE_BYTES))[:PIECE_BYTES] == world.transport.value()[:PIECE_BYTES]
    world.transport.take()
    assert world.transport.value().endswith(framed(b"next"))


def test_the_transport_is_given_no_more_than_a_piece_beyond_what_fills_it() -> None:
    limits = Limits(max_batch=8 * 1024 * 1024)
    world = World(room=1, limits=limits)
    world.channel.send(bytes(4 * PIECE_BYTES))
    world.end_turn()
    assert len(world.transport.value()) == PIECE_BYTES


@given(
    st.lists(st.lists(st.integers(0, 3 * PIECE_BYTES), max_size=4), max_size=6),
    st.sampled_from([0, 1, 70_000]),
    st.lists(st.booleans(), min_size=30, max_size=30),
)
def test_every_byte_leaves_once_and_in_order(
    turns: list[list[int]], room: int, takes: list[bool]
) -> None:
    world = World(room=room)
    number = itertools.count()
    sent, left = [], b""
    for sizes, take in zip(turns, takes, strict=False):
        for size in sizes:
            frame = bytes([next(number) % 256]) * size
            world.channel.send(frame)
            sent.append(frame)
        world.end_turn()
        if take:
            left += world.transport.take()
    while more := world.transport.take():
        left += more
    assert framed(*sent) == left
    writable = [True, *world.user.values("writable")]
    assert all(a is not b for a, b in itertools.pairwise(writable))
    assert writable[-1]


# --- deadlines


def test_a_peer_that_reads_nothing_is_dropped_when_its_time_is_over() -> None:
    world = World(room=1)
    world.channel.send(b"first")
    world.pass_seconds(29.9)
    assert world.user.values("failed") == []
    world.pass_seconds(4)
    (error,) = world.user.values("failed")
    assert isinstance(error, DeadlinePassed)
    assert world.transport.disconnected
    assert world.user.names() == ["opened", "failed", "lost"]


def test_a_peer_on_a_slow_link_is_not_dropped_while_the_kernel_takes_a_part() -> None:
    world = World(room=1)
    transport: Any = world.transport
    transport.dataBuffer, transport.offset = bytes(256 * 1024), 0
    world.channel.send(bytes(300_000))
    world.end_turn()
    for _ in range(8):
        world.pass_seconds(LIMITS.write_timeout - 5)
        transport.offset += 1000
    assert not world.transport.disconnected
    world.pass_seconds(2 * LIMITS.write_timeout)
    assert world.transport.disconnected


def test_a_peer_that_reads_slowly_is_not_dropped() -> None:
    world = World(room=1)
    for _ in range(20):
        world.channel.send(bytes(PIECE_BYTES - 4))
    for _ in range(20):
        world.pass_seconds(25)
        world.transport.take()
    assert world.user.values("failed") == []


def test_half_a_frame_is_waited_for_no_longer_than_its_time() -> None:
    world = World()
    world.user.on_failed = lambda error: world.channel.send(b"error")
    world.channel.dataReceived(framed(b"abc")[:5])
    world.pass_seconds(29.9)
    assert world.user.values("failed") == []
    world.pass_seconds(4)
    (error,) = world.user.values("failed")
    assert isinstance(error, DeadlinePassed)
    assert framed(b"error") == world.transport.value()
    assert world.user.is_lost


def test_a_frame_that_comes_byte_by_byte_is_not_progress() -> None:
    world = World()
    for byte in framed(bytes(100))[:40]:
        world.channel.dataReceived(bytes([byte]))
        world.pass_seconds(1)
    assert world.user.is_lost


def test_a_large_frame_on_a_slow_line_is() -> None:
    world = World()
    world.channel.established()
    data = framed(bytes(1024 * 1024))
    for at in range(0, len(data), 64 * 1024):
        world.channel.dataReceived(data[at : at + 64 * 1024])
        world.pass_seconds(25)
    assert len(world.user.frames) == 1
    assert not world.user.is_lost


def test_a_whole_frame_ends_the_wait() -> None:
    world = World()
    for _ in range(5):
        world.channel.dataReceived(framed(b"abc")[:5])
        world.pass_seconds(20)
        world.channel.dataReceived(framed(b"abc")[5:])
    world.pass_seconds(100)
    assert not world.user.is_lost
    assert world.clock.getDelayedCalls() == []


def test_time_in_which_we_do_not_read_does_not_count() -> None:
    world = World()
    world.channel.dataReceived(framed(b"abc")[:5])
    world.channel.pause()
    world.pass_seconds(100)
    assert not world.user.is_lost
    world.channel.resume()
    world.pass_seconds(40)
    assert world.user.is_lost


# --- closing


def test_close_sends_what_is_queued_then_closes() -> None:
    world = World()
    world.channel.send(b"last")
    world.channel.close()
    world.channel.send(b"too late")
    world.end_turn()
    assert framed(b"last") == world.transport.value()
    assert world.transport.producer is None
    assert world.transport.disconnecting
    world.end_turn()
    assert world.user.names() == ["opened", "lost"]
    assert world.clock.getDelayedCalls() == []


def test_close_waits_for_a_full_transport() -> None:
    world = World(room=1)
    world.channel.send(b"first")
    world.end_turn()
    world.channel.send(b"last")
    world.channel.close()
    world.end_turn()
    assert not world.transport.disconnecting
    world.transport.take()
    assert framed(b"last") == world.transport.value()
    assert world.transport.disconnecting


@pytest.mark.parametrize("queued", [True, False], ids=["queued", "written"])
def test_a_close_that_takes_too_long_is_an_abort(queued: bool) -> None:
    world = World(room=1)
    world.channel.send(b"first")
    world.end_turn()
    if queued:
        world.channel.send(b"last")
    world.channel.close()
    world.pass_seconds(4.9)
    assert not world.transport.disconnected
    world.pass_seconds(0.2)
    assert world.transport.disconnected
    assert world.user.is_lost


def test_nothing_is_received_after_close() -> None:
    world = World()
    world.channel.close()
    world.channel.dataReceived(framed(b"late"))
    world.end_turn()
    assert world.user.names() == ["opened", "lost"]


def test_abort_drops_what_is_queued() -> None:
    world = World()
    world.channel.send(b"never")
    world.channel.abort()
    world.end_turn()
    assert world.transport.value() == b""
    assert world.user.names() == ["opened", "lost"]


def test_the_owner_and_the_user_are_told_why_it_ended() -> None:
    world = World()
    world.channel.connectionLost(Failure(ConnectionDone()))
    assert world.user.values("lost") == world.owner.gone == ["Connection was closed cleanly"]


def test_the_fault_of_the_peer_is_the_reason_of_the_loss() -> None:
    world = World()
    world.channel.dataReceived(struct.pack("!I", 2**31))
    world.pass_seconds(1)
    assert world.user.values("lost") == ["frame of 2147483648 bytes, at most 65536 allowed"]


# --- faults of the user end this connection only


@pytest.mark.parametrize("where", ["on_frames", "on_opened", "on_failed", "on_writable"])
def test_a_user_that_raises_loses_its_connection_and_no_more(
    where: str, logged_failures: list[LogEvent]
) -> None:
    def boom(_: object) -> None:
        raise RuntimeError("a fault of the user")

    user = Recorder()
    setattr(user, where, boom)
    world = World(make_user=lambda: user, room=1)
    world.channel.dataReceived(framed(b"a"))
    for _ in range(3):
        world.channel.send(bytes(QUEUE_BYTES))
    world.end_turn()
    world.channel.dataReceived(struct.pack("!I", 2**31))
    world.end_turn()
    assert world.transport.disconnected
    assert user.names()[-1] == "lost"
    (event,) = logged_failures
    assert event["log_failure"].check(RuntimeError)
    logged_failures.clear()


def test_a_connection_without_a_user_is_dropped(logged_failures: list[LogEvent]) -> None:
    def boom() -> IChannelUser:
        raise RuntimeError("no user today")

    world = World(make_user=boom)
    world.channel.dataReceived(framed(b"a"))
    world.end_turn()
    assert world.transport.disconnected
    assert len(world.owner.gone) == 1
    logged_failures.clear()


# --- who is there


@pytest.mark.parametrize(
    ("address", "peer", "where", "local"),
    [
        (IPv4Address("TCP", "127.0.0.1", 5), "tcp:127.0.0.1:5", "127.0.0.1", True),
        (IPv4Address("TCP", "192.0.2.1", 5), "tcp:192.0.2.1:5", "192.0.2.1", False),
        (IPv6Address("TCP", "::ffff:192.0.2.1", 5), None, "192.0.2.1", False),
        (IPv6Address("TCP", "2001:DB8:0::1", 5), None, "2001:db8::1", False),
        (IPv6Address("TCP", "::ffff:127.0.0.1", 5), None, "127.0.0.1", True),
        (UNIXAddress("/run/a"), "unix:/run/a", "unix", True),
        (UNIXAddress(None), "unix", "unix", True),
    ],
    ids=str,
)
def test_the_channel_says_where_the_peer_is(
    address: IAddress, peer: str | None, where: str, local: bool
) -> None:
    channel = World(peer=address).channel
    shown = channel.credentials
    assert (where, local) == (shown.address, shown.is_local)
    assert local is shown.is_private  # what is not on this machine can be read on its way
    assert peer in (None, channel.peer_address)


# --- every state and every input


def into(state: ChannelState) -> World:
    world = World(room=1)
    if state is ChannelState.OPENING:
        world.channel.state = state  # as a TLS connection before its handshake is done
        world.user.events.clear()
    elif state is ChannelState.CLOSING:
        world.channel.send(b"first")
        world.end_turn()
        world.channel.send(b"second")
        world.channel.close()
        world.end_turn()
    elif state is ChannelState.LINGERING:
        world.channel.send(b"first")
        world.channel.close()
        world.end_turn()
    elif state is ChannelState.ABORTED:
        world.channel.abort()
    elif state is ChannelState.LOST:
        world.channel.connectionLost(Failure(ConnectionDone()))
    assert state is world.channel.state
    return world


INPUTS: dict[str, Callable[[World], Any]] = {
    "send": lambda world: world.channel.send(b"frame"),
    "send now": lambda world: world.channel.send_now([b"frame"]),
    "push": lambda world: world.channel.push(),
    "established": lambda world: world.channel.established(),
    "pause": lambda world: world.channel.pause(),
    "resume": lambda world: world.channel.resume(),
    "close": lambda world: world.channel.close(),
    "abort": lambda world: world.channel.abort(),
    "data": lambda world: world.channel.dataReceived(framed(b"frame")),
    "too large": lambda world: world.channel.dataReceived(b"\xff" * 4),
    "half": lambda world: world.channel.dataReceived(b"\0\0\0\1"),
    "full": lambda world: world.channel.transport_full(),
    "drained": lambda world: world.channel.transport_drained(),
    "flush": lambda world: world.channel.flush(),
    "handshake": lambda world: world.channel.handshakeCompleted(),
    "lost": lambda world: world.channel.connectionLost(Failure(ConnectionDone())),
    "a minute": lambda world: world.pass_seconds(60),
}


def outcome(state: ChannelState, first: str, second: str) -> str | None:
    """Return what is wrong after these two inputs and an abort, if anything."""
    world = into(state)
    already = len(world.user.frames)
    if state is ChannelState.OPENING and "handshake" in (first, second):
        world.transport.unregisterProducer()  # it was registered on the way into this state
    INPUTS[first](world)
    INPUTS[second](world)
    world.channel.abort()
    world.end_turn()
    names = world.user.names()
    # The user is told of the end if it was told of the beginning; the owner always.
    if names.count("lost") != ("opened" in names) and state is not ChannelState.OPENING:
        return f"user told {names}"
    if names and names[-1] != "lost":
        return f"user told {names}"
    if len(world.owner.gone) != 1:
        return f"owner told {world.owner.gone}"
    if state not in (ChannelState.OPEN, ChannelState.OPENING) and already != len(world.user.frames):
        return f"received {world.user.frames}"
    if world.clock.getDelayedCalls():
        return f"left {world.clock.getDelayedCalls()}"
    return None


@pytest.mark.parametrize("state", ChannelState)
@pytest.mark.parametrize("first", INPUTS)
def test_every_state_takes_every_two_inputs(state: ChannelState, first: str) -> None:
    wrong = {second: outcome(state, first, second) for second in INPUTS}
    assert dict.fromkeys(INPUTS) == wrong


# --- Twisted's contract


def test_part_of_a_frame_counts_as_heard() -> None:
    world = World()
    world.pass_seconds(10)
    world.channel.dataReceived(b"\0\0\x03\xe8x")
    assert 0 == len(world.user.frames)
    assert world.clock.seconds() == world.channel.heard_at
