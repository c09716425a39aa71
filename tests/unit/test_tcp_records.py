"""A channel over TLS, in memory: what is written and read in one turn is one piece, in order."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable
from typing import Any

import pytest
from OpenSSL import SSL
from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionAborted, ConnectionDone
from twisted.internet.protocol import Factory
from twisted.internet.task import Clock
from twisted.internet.tcp import Connection as TCPConnection
from twisted.internet.testing import StringTransport
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure

from msgservice.core.framing import PREFIX_BYTES, encode_prefix
from msgservice.errors import FrameTooLarge
from msgservice.limits import Limits
from msgservice.transport.addresses import parse_address
from msgservice.transport.owners import Nobody
from msgservice.transport.tcp.channel import PIECE_BYTES, ChannelState, FrameProtocol
from msgservice.transport.tcp.pacing import Turn
from msgservice.transport.tcp.records import READ_BYTES, RECORD_BYTES
from msgservice.transport.tcp.tls import Tls
from tests.kit.certificates import Authority
from tests.kit.channels import Recorder

ROUNDS = 1000  # in which everything has come to rest
HERE = IPv4Address("TCP", "127.0.0.1", 7410)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


class Wire(StringTransport):
    """The transport below TLS: counts writes, and takes up to `room` bytes before it is full."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(peerAddress=HERE)
        self.clock = clock
        self.writes = 0
        self.room = 0
        self.protocol: Any = None
        self.lost = False

    def write(self, data: bytes) -> None:
        if not self.disconnected:
            self.writes += 1
            super().write(data)
            if self.room and len(self.value()) > self.room and self.producer is not None:
                self.producer.pauseProducing()

    def take(self) -> bytes:
        """What the kernel takes: all of it; then there is room again."""
        taken: bytes = self.value()
        self.clear()
        if taken and self.producer is not None:
            self.producer.resumeProducing()
        return taken

    def loseConnection(self) -> None:
        super().loseConnection()
        self.clock.callLater(0, self.lose, ConnectionDone())

    def abortConnection(self) -> None:
        self.disconnected = True
        self.clear()
        self.clock.callLater(0, self.lose, ConnectionAborted())

    @property
    def is_over(self) -> bool:
        """Whether it has ended, and what was written before has left."""
        return self.disconnected or (self.disconnecting and not self.value())

    def lose(self, why: Exception) -> None:
        if not self.lost and not self.value():
            self.lost = self.disconnected = True
            self.protocol.connectionLost(Failure(why))


class End:
    """One end: the user, its channel, TLS, and the wire below it."""

    def __init__(self, clock: Clock, creator: Any, *, is_client: bool) -> None:
        self.user = Recorder()
        self.channel = FrameProtocol(
            reactor=clock,
            make_user=lambda: self.user,
            limits=Limits(),
            owner=Nobody(),
            turn=Turn(clock),
            is_dialled=is_client,
        )
        factory = TLSMemoryBIOFactory(
            creator, is_client, Factory.forProtocol(lambda: self.channel), clock
        )
        self.wire = Wire(clock)
        self.tls: Any = factory.buildProtocol(HERE)
        self.wire.protocol = self.tls

    def start(self) -> None:
        self.tls.makeConnection(self.wire)


def served(authority: Authority) -> Any:
    """What begins the connections of a listener."""
    return Tls().server(parse_address(authority.listener()), wall)


def wall() -> int:
    return int(time.time() * 1000)


def attempt(step: Callable[[], object]) -> bool:
    """Return whether TLS took this step; not, where it has to read first."""
    try:
        step()
    except ssl.SSLWantReadError:
        return False
    return True


class Pair:
    """Two ends with TLS between, and a clock."""

    def __init__(self, authority: Authority, *, starts: bool = True) -> None:
        self.clock = Clock()
        dialled = Tls().client(
            parse_address(f"tls:localhost:7410:trustRoots={authority.ca_file}"), wall
        )
        self.near = End(self.clock, dialled, is_client=True)
        self.far = End(self.clock, served(authority), is_client=False)
        if not starts:
            return
        self.near.start()
        self.far.start()
        self.settle()
        assert [self.near.channel.state, self.far.channel.state] == [ChannelState.OPEN] * 2
        for each in (self.near, self.far):
            each.channel.established()
            each.wire.writes = 0

    def carry(self, sender: End, receiver: End) -> int:
        """Carry what one end has written to the other, as one read; return how much it was."""
        data = sender.wire.take()
        if data and not receiver.wire.lost:
            receiver.tls.dataReceived(data)
        return len(data)

    def settle(self) -> None:
        """Carry, turn by turn, until nothing moves."""
        for _ in range(ROUNDS):
            self.clock.advance(0)
            moved = self.carry(self.near, self.far) + self.carry(self.far, self.near)
            if any(end.wire.is_over for end in (self.near, self.far)):
                for end in (self.near, self.far):
                    end.wire.lose(ConnectionDone())
            now = self.clock.seconds()
            if not moved and all(call.getTime() > now for call in self.clock.getDelayedCalls()):
                return
        raise AssertionError("it does not come to rest")


@pytest.fixture
def pair(authority: Authority) -> Pair:
    return Pair(authority)


def frames_of(*sizes: int) -> list[bytes]:
    return [bytes([number % 256]) * size for number, size in enumerate(sizes)]


# --- what is written


def test_what_is_sent_in_one_turn_leaves_in_one_write_and_not_a_turn_later(pair: Pair) -> None:
    frames = frames_of(*[RECORD_BYTES] * 10)
    pair.near.channel.send_now(frames)
    assert pair.near.wire.writes == 1
    pair.settle()
    assert pair.near.wire.writes == 1
    for frame in frames:
        pair.near.channel.send(frame)
    pair.clock.advance(0)  # the end of the turn, and no other
    assert pair.near.wire.writes == 2
    pair.settle()
    assert pair.far.user.frames == frames * 2


def test_every_byte_leaves_once_and_in_order_however_large(pair: Pair) -> None:
    sizes = [
        0,
        1,
        RECORD_BYTES - PREFIX_BYTES,
        RECORD_BYTES,
        5,
        PIECE_BYTES,
        PIECE_BYTES + 1,
        900_000,
    ]
    frames = frames_of(*sizes)
    for frame in frames:
        pair.near.channel.send(frame)
    pair.near.channel.send_now(frames)
    for frame in frames:
        pair.near.channel.send(frame)
    pair.settle()
    assert pair.far.user.frames == frames * 3
    assert pair.near.channel.unsent == 0


class Reluctant:
    """A connection of TLS that takes `most` records, and then has to read something first."""

    def __init__(self, real: SSL.Connection, most: int) -> None:
        self._real, self.most = real, most

    def send(self, data: Any) -> int:
        if self.most == 0:
            raise SSL.WantReadError
        self.most -= 1
        return int(self._real.send(bytes(data)[:RECORD_BYTES]))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


@pytest.mark.parametrize("most", range(4))
@pytest.mark.parametrize("turns", range(3))
def test_what_tls_does_not_take_goes_before_what_is_sent_behind_it(
    pair: Pair, most: int, turns: int
) -> None:
    pair.near.tls._tlsConnection = reluctant = Reluctant(pair.near.tls.getHandle(), most)
    frames = frames_of(3 * RECORD_BYTES, 10, RECORD_BYTES, 10)
    pair.near.channel.send_now(frames[:1])
    pair.near.channel.send_now(frames[1:2])
    for _ in range(turns):
        pair.clock.advance(0)
    reluctant.most = 1_000_000  # though nothing was read: what waits does so until then
    pair.near.channel.send_now(frames[2:3])
    pair.clock.advance(0)
    pair.near.channel.send_now(frames[3:])
    pair.far.channel.send_now([b"what it has to read"])
    pair.settle()
    assert pair.far.user.frames == frames
    pair.near.wire.writes = 0
    pair.near.channel.send_now(frames)
    assert pair.near.wire.writes == 1  # nothing waits any more


def test_an_error_of_tls_ends_the_connection_and_is_told(pair: Pair) -> None:
    class Failing(Reluctant):
        def send(self, data: Any) -> int:
            raise SSL.Error([("SSL routines", "", "a reason of its own")])

    pair.near.tls._tlsConnection = Failing(pair.near.tls.getHandle(), 0)
    pair.near.channel.send_now([b"x"])
    pair.settle()
    assert pair.near.user.values("lost") == ["TLS: a reason of its own"]
    assert pair.far.user.is_lost
    assert pair.far.user.frames == []


def test_a_full_transport_is_given_no_more_than_a_piece_until_it_is_drained(pair: Pair) -> None:
    near = pair.near
    near.wire.room = 64 * 1024
    frames = frames_of(*[100_000] * 30)
    near.channel.send_now(frames)
    assert PIECE_BYTES <= len(near.wire.value()) < PIECE_BYTES * 1.02  # what TLS adds
    assert near.channel.unsent == sum(map(len, frames)) + 30 * PREFIX_BYTES - PIECE_BYTES
    assert near.user.values("writable") == [False]
    before = len(near.wire.value())
    near.channel.send_now([b"more"])
    assert len(near.wire.value()) == before
    pair.settle()
    assert pair.far.user.frames == [*frames, b"more"]
    assert near.user.values("writable") == [False, True]
    assert near.channel.unsent == 0


def test_a_peer_that_reads_nothing_is_dropped_when_its_time_is_over(pair: Pair) -> None:
    near, limits = pair.near, Limits()
    near.wire.room = 1
    near.channel.send_now([b"x"])
    for _ in range(30):
        pair.clock.advance(limits.write_timeout / 10)
    assert [name for name in near.user.names() if name in ("failed", "lost")] == ["failed", "lost"]


# --- the end


@pytest.mark.parametrize("room", [0, 1])
def test_close_sends_what_was_sent_in_the_same_turn(pair: Pair, room: int) -> None:
    frames = frames_of(10, 3 * RECORD_BYTES, PIECE_BYTES, 1)
    pair.near.wire.room = room
    for frame in frames:
        pair.near.channel.send(frame)
    pair.near.channel.close()
    pair.settle()
    assert pair.far.user.frames == frames
    assert pair.near.user.is_lost
    assert pair.far.user.is_lost


def test_close_sends_what_tls_has_not_taken_yet(pair: Pair) -> None:
    pair.near.tls._tlsConnection = reluctant = Reluctant(pair.near.tls.getHandle(), 1)
    frames = frames_of(2 * RECORD_BYTES, 10)
    for frame in frames:
        pair.near.channel.send(frame)
    pair.near.channel.close()
    pair.clock.advance(0)
    pair.clock.advance(0)
    reluctant.most = 1000
    pair.far.channel.send_now([b"what it has to read"])
    pair.settle()
    assert pair.far.user.frames == frames
    assert pair.far.user.is_lost


def test_abort_drops_what_was_sent_in_the_same_turn_and_nothing_leaves_later(pair: Pair) -> None:
    pair.near.channel.send(b"x" * RECORD_BYTES)
    pair.near.channel.abort()
    pair.near.channel.send_now([b"y"])
    pair.settle()
    assert pair.far.user.frames == []
    assert pair.near.user.is_lost


def test_a_user_that_aborts_what_it_hears_writes_nothing_any_more(pair: Pair) -> None:
    def abort(_frames: list[bytes]) -> None:
        pair.far.channel.send(b"an answer")
        pair.far.channel.abort()
        pair.far.channel.send_now([b"another"])

    pair.far.user.on_frames = abort
    pair.near.channel.send_now(frames_of(*[RECORD_BYTES] * 3))
    pair.settle()
    assert pair.near.user.frames == []
    assert pair.far.user.is_lost


# --- what is read


def test_what_one_read_brought_is_one_delivery(pair: Pair) -> None:
    frames = frames_of(*[2000] * 30)
    pair.near.channel.send_now(frames)
    pair.settle()
    assert pair.far.user.values("frames") == [frames]


def test_a_record_that_is_cut_is_completed_by_the_next_read(pair: Pair) -> None:
    frames = frames_of(10, RECORD_BYTES, 2 * RECORD_BYTES, 10)
    pair.near.channel.send_now(frames)
    data = pair.near.wire.take()
    for start in range(0, len(data), 5000):
        pair.far.tls.dataReceived(data[start : start + 5000])
    assert pair.far.user.frames == frames
    assert 1 < len(pair.far.user.values("frames")) < len(data) // 5000


@pytest.mark.parametrize("is_known", [True, False])
def test_behind_a_read_that_brought_much_the_next_may_bring_more(
    authority: Authority, is_known: bool
) -> None:
    pair = Pair(authority)
    pair.far.channel._known = is_known
    usual = TCPConnection.bufferSize
    with socket.socket() as unused:
        pair.far.tls.transport = below = TCPConnection(unused, pair.far.tls, None)
        for sent, size in (
            (frames_of(100), usual),
            (frames_of(*[1000] * 40), READ_BYTES),
            (frames_of(*[1000] * 100), READ_BYTES),
            (frames_of(100), usual),
        ):
            pair.near.channel.send_now(sent)
            pair.carry(pair.near, pair.far)
            assert below.bufferSize == (size if is_known else usual)


class Socket(TCPConnection):
    """A plain socket below TLS; nothing is read or written but by `turn`."""

    def __init__(self, real: socket.socket, end: End, clock: Clock) -> None:
        real.setblocking(False)
        reactor: Any = self
        super().__init__(real, end.tls, reactor)
        self.connected = 1
        self.callLater = clock.callLater
        end.tls.makeConnection(self)

    def addReader(self, _: Any) -> None: ...
    def removeReader(self, _: Any) -> None: ...
    def addWriter(self, _: Any) -> None: ...
    def removeWriter(self, _: Any) -> None: ...

    def getPeer(self) -> IPv4Address:
        return HERE

    @property
    def held(self) -> int:
        """Bytes that wait for the kernel to take them."""
        return len(self.dataBuffer) - self.offset + self._tempDataLen

    def turn(self) -> None:
        self.doRead()
        if self.held:
            self.doWrite()


def test_no_more_waits_to_be_written_to_who_reads_nothing_because_much_is_read(
    authority: Authority,
) -> None:
    """Twisted has one size for both."""
    pair = Pair(authority, starts=False)
    ends = socket.socketpair()
    near, far = (
        Socket(one, end, pair.clock) for one, end in zip(ends, (pair.near, pair.far), strict=True)
    )
    for _ in range(20):
        near.turn()
        far.turn()
        pair.clock.advance(0)
    for each in (pair.near, pair.far):
        assert each.channel.state is ChannelState.OPEN
        each.channel.established()
    pair.far.channel.send_now(frames_of(50_000))
    near.turn()
    assert near.bufferSize == READ_BYTES
    pair.near.channel.send_now(frames_of(*[10_000] * 300))
    assert 0 < near.held < (TCPConnection.bufferSize + PIECE_BYTES) * 1.02  # what TLS adds
    assert pair.near.user.values("writable") == [False]
    assert near.bufferSize == READ_BYTES
    while near.held:
        far.turn()
        near.turn()
    far.turn()
    assert sum(map(len, pair.far.user.frames)) == 3_000_000
    for one in ends:
        one.close()


def test_frames_before_one_that_is_too_large_are_handed_over(pair: Pair) -> None:
    size = Limits().frame_bytes + 1
    data = encode_prefix(1) + b"x" + encode_prefix(size) + b"y" * 4 * RECORD_BYTES
    pair.near.tls.write(data)
    pair.settle()
    assert pair.far.user.frames == [b"x"]
    (error,) = pair.far.user.values("failed")
    assert isinstance(error, FrameTooLarge)
    assert pair.far.user.is_lost


def test_a_record_that_was_changed_ends_the_connection_behind_those_before_it(pair: Pair) -> None:
    first, second = frames_of(100, 100)
    pair.near.channel.send_now([first])
    pair.near.channel.send_now([second])
    data = bytearray(pair.near.wire.take())
    data[-1] ^= 1
    pair.far.tls.dataReceived(bytes(data))
    pair.settle()
    assert pair.far.user.frames == [first]
    (why,) = pair.far.user.values("lost")
    assert "bad record mac" in why


def test_who_ends_tls_behind_its_last_frames_hears_the_answer_to_them(authority: Authority) -> None:
    pair = Pair(authority)
    far = End(pair.clock, served(authority), is_client=False)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.create_default_context(cafile=str(authority.ca_file))
    client = context.wrap_bio(incoming, outgoing, server_hostname="localhost")

    def carry() -> None:
        pair.clock.advance(0)
        if data := outgoing.read():
            far.tls.dataReceived(data)
        pair.clock.advance(0)
        incoming.write(far.wire.take())

    far.start()
    while not attempt(client.do_handshake):
        carry()
    carry()
    far.channel.established()
    far.user.on_frames = far.user.send_back
    client.write(b"".join(encode_prefix(3) + word for word in (b"one", b"two")))
    attempt(client.unwrap)  # in the same read
    carry()
    assert far.user.values("frames") == [[b"one", b"two"]]
    assert client.read(100) == encode_prefix(3) + b"one" + encode_prefix(3) + b"two"
