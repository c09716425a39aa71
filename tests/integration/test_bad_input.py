"""Bad input to a real node over real sockets: a clear error, nothing lost, nobody else hurt.

Each test has a healthy neighbour on the same node; when the bad one has been answered, a message
of the neighbour must still arrive.
"""

from __future__ import annotations

import os
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest
import pytest_twisted
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import clientFromString
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater

from msgservice import Limits, Node
from msgservice.core.frames import (
    VERSION,
    Ack,
    ErrorFrame,
    Frame,
    Hello,
    HelloOptions,
    Nack,
    ReceiveOptions,
    ResumeFrame,
    Transfer,
    decode_frame,
    encode_frame,
)
from msgservice.errors import (
    CannotListen,
    InsecureListener,
    LogLocked,
    LogTooNew,
    MsgServiceError,
)
from msgservice.identity.users import User, Users
from msgservice.message import Action, BareMessage, encode_messages

T = TypeVar("T")


class RawPeer(Protocol):
    """A socket and the frames that came; says only what a test tells it to."""

    transport: Any

    def __init__(self) -> None:
        self.buffer = b""
        self.frames: list[Frame] = []
        self.waiting: list[tuple[Callable[[], bool], Deferred[None]]] = []
        self.lost = False

    def dataReceived(self, data: bytes) -> None:
        self.buffer += data
        while len(self.buffer) >= 4:
            (length,) = struct.unpack("!I", self.buffer[:4])
            if len(self.buffer) < 4 + length:
                break
            self.frames.append(decode_frame(self.buffer[4 : 4 + length]))
            self.buffer = self.buffer[4 + length :]
        self.look()

    def connectionLost(self, reason: Any = None) -> None:
        self.lost = True
        self.look()

    def look(self) -> None:
        for waiter in list(self.waiting):
            condition, deferred = waiter
            if condition():
                self.waiting.remove(waiter)
                deferred.callback(None)

    async def until(self, condition: Callable[[], bool]) -> None:
        if not condition():
            done: Deferred[None] = Deferred()
            self.waiting.append((condition, done))
            await done

    async def error(self) -> ErrorFrame:
        await self.until(lambda: self.lost)
        (found,) = self.of(ErrorFrame)
        return found

    def of(self, kind: type[T]) -> list[T]:
        found: list[T] = [frame for frame in self.frames if isinstance(frame, kind)]
        return found

    def answers(self) -> int:
        return len(self.of(Ack)) + len(self.of(Nack))

    async def until_answers(self, count: int) -> None:
        await self.until(lambda: self.answers() >= count)

    def write(self, data: bytes) -> None:
        self.transport.write(data)

    def send(self, frame: Frame) -> None:
        data = encode_frame(frame)
        self.write(struct.pack("!I", len(data)) + data)

    async def greet(self, name: str, **options: Any) -> None:
        self.send(Hello(VERSION, name, "i1", HelloOptions(**options)))
        await self.until(lambda: bool(self.of(ResumeFrame)))
        self.send(ResumeFrame(1, []))

    def transfer(self, sequence: int, subject: str, body: bytes, **fields: Any) -> None:
        messages = msgspec.Raw(encode_messages([BareMessage(body)]))
        self.send(Transfer(sequence, subject, messages, **fields))


class Bench:
    """A node, and its neighbour: a sender and a receiver that work."""

    def __init__(self, reactor: Any, data: Path, limits: Limits) -> None:
        self.reactor = reactor
        self.failures: list[Exception] = []
        self.node = Node(
            reactor,
            data,
            listen=["tcp:0:interface=127.0.0.1"],
            limits=limits,
            failed=self.failures.append,
        )
        self.peers: list[RawPeer] = []
        self.sequence = 0

    async def start(self) -> None:
        self.node.startService()
        await self.node.when_ready()
        self.sender = await self.connect()
        await self.sender.greet("neighbour")
        self.receiver = await self.connect()
        await self.receiver.greet("receiver", receive=ReceiveOptions(subjects=["fine.>"]))

    @property
    def port(self) -> int:
        address = self.node.ports[0].getHost()
        assert isinstance(address, IPv4Address)
        return address.port

    async def connect(self) -> RawPeer:
        endpoint = clientFromString(self.reactor, f"tcp:127.0.0.1:{self.port}")
        peer: RawPeer = await endpoint.connect(Factory.forProtocol(RawPeer))
        self.peers.append(peer)
        return peer

    async def check_neighbour(self) -> None:
        """A message of the neighbour is stored, acknowledged and delivered."""
        self.sequence += 1
        before = len(self.receiver.of(Transfer))
        self.sender.transfer(self.sequence, "fine.new", b"still here")
        await self.sender.until(lambda: Ack([(self.sequence, self.sequence)]) in self.sender.frames)
        await self.receiver.until(lambda: len(self.receiver.of(Transfer)) > before)

    async def stop(self) -> None:
        for peer in self.peers:
            peer.transport.abortConnection()
        await self.node.stopService()


PATIENT = Limits(max_batch=64 * 1024)
SHORT = replace(PATIENT, hello_timeout=0.3, frame_timeout=0.3, write_timeout=0.5)
# For tests of the deadlines alone: a machine that is busy elsewhere is no peer that is late.
with_short_deadlines = pytest.mark.parametrize("limits", [SHORT], ids=["short"])


@pytest.fixture
def limits() -> Limits:
    return PATIENT


@pytest_twisted.async_yield_fixture
async def bench(tmp_path: Path, limits: Limits) -> AsyncIterator[Bench]:
    from twisted.internet import reactor

    made = Bench(reactor, tmp_path / "node", limits)
    await made.start()
    yield made
    await made.stop()


def run(coroutine: Any) -> Any:
    return pytest_twisted.ensureDeferred(coroutine)


@run
async def test_oversized_frame_names_size_and_limit(bench: Bench) -> None:
    bad = await bench.connect()
    await bad.greet("bad")
    bad.write(struct.pack("!I", 100_000_000))
    error = await bad.error()
    assert error.code == 3
    assert "100000000" in error.reason
    await bench.check_neighbour()


@run
async def test_malformed_frame(bench: Bench) -> None:
    bad = await bench.connect()
    bad.write(struct.pack("!I", 3) + b"\xc1\xc1\xc1")
    assert (await bad.error()).code == 2
    await bench.check_neighbour()


@run
async def test_a_header_that_is_no_utf8(bench: Bench) -> None:
    bad = await bench.connect()
    await bad.greet("bad")
    message = b"\x92\xc4\x01x\x81\xa1k\xa2\xff\xff"
    data = b"\x94\x02\x01\xa8fine.new\x91" + message
    bad.write(struct.pack("!I", len(data)) + data)
    error = await bad.error()
    assert error.code == 2
    assert "utf-8" in error.reason.lower()
    await bench.check_neighbour()


@run
async def test_wrong_version_names_both(bench: Bench) -> None:
    bad = await bench.connect()
    bad.send(Hello(2, "bad", "i1"))
    assert ErrorFrame(4, "protocol version 2, this side speaks version 1") == await bad.error()
    await bench.check_neighbour()


@run
async def test_unknown_kind(bench: Bench) -> None:
    bad = await bench.connect()
    data = msgspec.msgpack.encode([77, 1])
    bad.write(struct.pack("!I", len(data)) + data)
    assert ErrorFrame(5, "unknown frame kind 77") == await bad.error()
    await bench.check_neighbour()


@run
async def test_integer_beyond_2_53(bench: Bench) -> None:
    bad = await bench.connect()
    await bad.greet("bad")
    data = msgspec.msgpack.encode([2, 2**53, "fine.new", [[b"x"]]])
    bad.write(struct.pack("!I", len(data)) + data)
    error = await bad.error()
    assert error.code == 2
    assert "2^53" in error.reason
    await bench.check_neighbour()


@run
async def test_sequence_and_count_together_beyond_2_53(bench: Bench) -> None:
    bad = await bench.connect()
    await bad.greet("bad")
    messages = msgspec.Raw(encode_messages([BareMessage(b"x"), BareMessage(b"y")]))
    bad.send(Transfer(2**53 - 1, "fine.new", messages))
    assert "2^53" in (await bad.error()).reason
    await bench.check_neighbour()


@with_short_deadlines
@run
async def test_no_hello_in_time(bench: Bench) -> None:
    bad = await bench.connect()
    error = await bad.error()
    assert ErrorFrame(7, "HELLO not within 0.3 s") == error
    await bench.check_neighbour()


@with_short_deadlines
@run
async def test_half_a_frame_for_too_long(bench: Bench) -> None:
    bad = await bench.connect()
    await bad.greet("bad")
    bad.write(struct.pack("!I", 100) + b"half")
    assert (await bad.error()).code == 7
    await bench.check_neighbour()


@run
async def test_transfer_before_hello(bench: Bench) -> None:
    bad = await bench.connect()
    bad.transfer(1, "fine.new", b"x")
    assert (await bad.error()).code == 6
    await bench.check_neighbour()


@run
async def test_bad_subject_is_refused_and_the_connection_lives(bench: Bench) -> None:
    bad = await bench.connect()
    await bad.greet("bad")
    bad.transfer(1, "fine..new", b"x")
    bad.transfer(2, "fine.*", b"x")
    bad.transfer(3, "$node.info", b"x")
    await bad.until(lambda: len(bad.of(Nack)) == 3)
    assert all(n.action == Action.REFUSED for n in bad.of(Nack))
    await bench.check_neighbour()


@run
async def test_bad_name(bench: Bench) -> None:
    bad = await bench.connect()
    bad.send(Hello(VERSION, "not a name", "i1"))
    assert (await bad.error()).code == 8
    await bench.check_neighbour()


@run
async def test_ack_of_what_was_never_sent(bench: Bench) -> None:
    bad = await bench.connect()
    await bad.greet("bad", receive=ReceiveOptions(subjects=["other.>"]))
    bad.send(Ack([(1, 5)]))
    error = await bad.error()
    assert error.code == 10
    assert "1 to 5" in error.reason
    await bench.check_neighbour()


@run
async def test_same_sequence_with_other_content(bench: Bench) -> None:
    bad = await bench.connect()
    await bad.greet("bad")
    bad.transfer(1, "fine.new", b"one")
    await bad.until(lambda: bool(bad.of(Ack)))
    bad.transfer(1, "fine.new", b"other")
    assert (await bad.error()).code == 11
    await bench.check_neighbour()


@run
async def test_batch_larger_than_the_limit(bench: Bench) -> None:
    bad = await bench.connect()
    await bad.greet("bad")
    bad.transfer(1, "fine.new", b"x" * (PATIENT.max_batch + 100))
    await bad.until(lambda: bool(bad.of(Nack)))
    (nack,) = bad.of(Nack)
    assert nack.action == Action.REFUSED
    assert str(PATIENT.max_batch) in nack.reason
    await bench.check_neighbour()


@run
async def test_unknown_receiver_in_to_is_named(bench: Bench) -> None:
    bad = await bench.connect()
    await bad.greet("bad")
    bad.transfer(1, "fine.new", b"x", to=["nobody"])
    await bad.until(lambda: bool(bad.of(Nack)))
    refused = Nack(1, 1, Action.REFUSED, 0, "unknown receiver 'nobody'", 2, "nobody")
    assert [refused] == bad.of(Nack)
    await bench.check_neighbour()


@run
async def test_what_contradicts_itself_is_refused(bench: Bench) -> None:
    bad = await bench.connect()
    await bad.greet("bad")
    bad.transfer(1, "fine.new", b"x", flags=8)
    bad.transfer(2, "fine.new", b"x", flags=1, to=("fine",))
    await bad.until(lambda: len(bad.of(Nack)) == 2)
    for nack, word in zip(bad.of(Nack), ("retain", "'to'"), strict=True):
        assert word in nack.reason
    await bench.check_neighbour()


@run
async def test_a_sender_beyond_the_window_is_told_so_and_loses_nothing(tmp_path: Path) -> None:
    from twisted.internet import reactor

    made = Bench(reactor, tmp_path / "node", Limits(window_messages=10))
    await made.start()
    bad = await made.connect()
    await bad.greet("bad")
    messages = msgspec.Raw(encode_messages([BareMessage(b"x")]))
    frames = [encode_frame(Transfer(n, "fine.new", messages)) for n in range(1, 101)]
    bad.write(b"".join(struct.pack("!I", len(frame)) + frame for frame in frames))
    error = await bad.error()
    assert (error.code, error.reason) == (
        16,
        "11 messages unanswered, at most 10 allowed (window_messages)",
    )
    await made.receiver.until(lambda: len(made.receiver.of(Transfer)) >= 10)
    taken = made.receiver.of(Transfer)
    made.receiver.send(Ack([(taken[0].sequence, taken[-1].sequence)]))
    again = await made.connect()
    await again.greet("bad")
    (resume,) = again.of(ResumeFrame)
    assert resume.floor == 11
    again.transfer(11, "fine.new", b"x")
    await again.until(lambda: Ack([(11, 11)]) in again.frames)
    await made.check_neighbour()
    await made.stop()


@with_short_deadlines
@run
async def test_a_peer_that_does_not_read_is_cut_off_and_loses_nothing(bench: Bench) -> None:
    bad = await bench.connect()
    await bad.greet("deaf", receive=ReceiveOptions(subjects=["big.>"]), window=(65_536, 1 << 30))
    bad.transport.pauseProducing()
    source = await bench.connect()
    await source.greet("source")
    for n in range(1, 257):
        source.transfer(n, "big.new", bytes(60_000))
    await source.until(
        lambda: (
            any((a.ranges[0][0], a.ranges[-1][1]) == (1, 256) for a in source.of(Ack))
            or sum(b - a + 1 for ack in source.of(Ack) for a, b in ack.ranges) >= 256
        )
    )
    while outlet_of(bench.node, "deaf").connection is not None:
        await deferLater(bench.reactor, 0.05, lambda: None)
    await bench.check_neighbour()
    listening = await bench.connect()
    await listening.greet("deaf", receive=ReceiveOptions())
    await listening.until(lambda: bool(listening.of(Transfer)))


def outlet_of(node: Node, name: str) -> Any:
    row = node.parts.directory.named(name)
    return node.parts.dispatch.outlets[row.number]


@run
async def test_a_full_log_refuses_with_a_delay_and_takes_again_when_there_is_room(
    tmp_path: Path,
) -> None:
    from twisted.internet import reactor

    limits = Limits(max_bytes=200_000, keep_seconds=0, keep_bytes=0)
    made = Bench(reactor, tmp_path / "node", limits)
    await made.start()
    # Nobody takes what is sent to `slow`, so that the log fills up.
    slow = await made.connect()
    await slow.greet("slow", receive=ReceiveOptions(subjects=["big.>"]))
    source = await made.connect()
    await source.greet("source")
    sequence = 0
    while not source.of(Nack):
        sequence += 1
        source.transfer(sequence, "big.new", bytes(30_000))
        await source.until_answers(sequence)
        assert sequence < 50
    (nack,) = source.of(Nack)
    assert nack.action == Action.LATER
    assert nack.delay > 0
    assert "full" in nack.reason
    # Room comes when the receiver takes it and retention has passed.
    acked = slow.of(Transfer)
    slow.send(Ack([(acked[0].sequence, acked[-1].sequence)]))
    nacks = 1
    before = len(source.of(Ack))
    while len(source.of(Ack)) == before:
        await deferLater(reactor, nack.delay / 1000, lambda: None)
        source.transfer(sequence, "big.new", bytes(30_000), nacks=nacks)
        await source.until_answers(source.answers() + 1)
        nacks = len(source.of(Nack))
        assert nacks < 20
    await made.stop()


# --- at start


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    made = tmp_path / "node"
    made.mkdir()
    yield made
    made.chmod(0o700)


async def failure_of(data: Path, listen: str = "tcp:0:interface=127.0.0.1") -> Exception:
    from twisted.internet import reactor

    failures: list[Exception] = []
    node = Node(reactor, data, listen=[listen], failed=failures.append)
    node.startService()
    with pytest.raises(MsgServiceError) as caught:
        await node.when_ready()
    assert [caught.value] == failures
    await node.stopService()
    return caught.value


@run
async def test_port_in_use(bench: Bench, tmp_path: Path) -> None:
    port = bench.port
    error = await failure_of(tmp_path / "other", f"tcp:{port}:interface=127.0.0.1")
    assert isinstance(error, CannotListen)
    assert str(port) in str(error)
    await bench.check_neighbour()


@run
async def test_32_a_listener_beyond_this_machine_is_refused(bench: Bench, tmp_path: Path) -> None:
    from twisted.internet import reactor

    listen = "tcp:0:interface=0.0.0.0"
    assert isinstance(await failure_of(tmp_path / "other", listen), InsecureListener)
    shop = User(name="shop", uids=(os.getuid(),))
    configured = Users([shop], secret=b"s" * 32)
    for users, doors in ((configured, {}), (configured, {listen: "shop"})):
        failures: list[Exception] = []
        node = Node(
            reactor,
            tmp_path / "another",
            listen=["tcp:0:interface=127.0.0.1", listen],
            users=users,
            without_login=doors,
            failed=failures.append,
        )
        node.startService()
        with pytest.raises(InsecureListener):
            await node.when_ready()
        await node.stopService()
    await bench.check_neighbour()


@run
async def test_32_a_listener_beyond_this_machine_is_opened_where_that_is_said(
    bench: Bench, tmp_path: Path
) -> None:
    from twisted.internet import reactor

    node = Node(reactor, tmp_path / "other", listen=["tcp:0:interface=0.0.0.0"], insecure=True)
    node.startService()
    await node.when_ready()
    await node.stopService()
    await bench.check_neighbour()


def test_addresses_are_a_list(tmp_path: Path) -> None:
    from twisted.internet import reactor

    with pytest.raises(TypeError, match="listen is a list of addresses, not 'tcp:1'"):
        Node(reactor, tmp_path / "node", listen="tcp:1")


@pytest.mark.parametrize(
    ("name", "value"),
    [("limits", {"window_bytes": 5}), ("users", ["shop"]), ("receivers", ["billing"])],
)
def test_what_a_node_is_made_of_has_its_types(tmp_path: Path, name: str, value: Any) -> None:
    from twisted.internet import reactor

    with pytest.raises(TypeError, match=f"^{name} (must be |= )"):
        Node(reactor, tmp_path / "node", **{name: value})
    assert not (tmp_path / "node").exists()


@run
async def test_data_folder_held_by_another(bench: Bench, tmp_path: Path) -> None:
    error = await failure_of(tmp_path / "node")
    assert isinstance(error, LogLocked)
    assert str(os.getpid()) in str(error)
    await bench.check_neighbour()


@run
async def test_newer_log(folder: Path) -> None:
    from twisted.internet import reactor

    node = Node(reactor, folder)
    node.startService()
    await node.when_ready()
    await node.stopService()
    import apsw

    database = apsw.Connection(str(folder / "log.db"))
    database.execute("pragma user_version = 9999")
    database.close()
    error = await failure_of(folder)
    assert isinstance(error, LogTooNew)
    assert "9999" in str(error)
