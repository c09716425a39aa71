"""A listener of sessions on transports in memory: framing, limits, threads, and who may listen."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, succeed
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IListeningPort, IStreamServerEndpoint
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.logger import LogEvent, capturedLogs
from twisted.python.failure import Failure
from zope.interface import implementer

from msgservice.errors import InsecureListener
from msgservice.faces.sessions.central import Central
from msgservice.faces.sessions.content.objects import ObjectsCodec
from msgservice.faces.sessions.content.safe import SafeCodec
from msgservice.faces.sessions.envelope import Item, Message
from msgservice.faces.sessions.limits import SessionLimits
from msgservice.faces.sessions.listener import Inbound, Listener
from msgservice.faces.sessions.remote import Remote

CODEC = SafeCodec()


def framed(*payloads: bytes) -> bytes:
    return b"".join(struct.pack(">L", len(payload)) + payload for payload in payloads)


def message(content: object) -> bytes:
    return CODEC.message(CODEC.prepare(content), None, None)


class Reactor(Clock):
    """A clock with threads whose calls end when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.on_threads: list[Callable[[], None]] = []

    def getThreadPool(self) -> Reactor:
        return self

    def callInThreadWithCallback(
        self, done: Callable[[bool, Any], None], function: Any, *args: Any, **kwargs: Any
    ) -> None:
        def run() -> None:
            try:
                result = function(*args, **kwargs)
            except Exception:
                done(False, Failure())
            else:
                done(True, result)

        self.on_threads.append(run)

    def callFromThread(self, function: Callable[..., Any], *args: Any) -> None:
        function(*args)


@implementer(IListeningPort, IStreamServerEndpoint)
class Endpoint:
    """An endpoint and its port; connections are made by hand."""

    factory: Any = None

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.host = host
        self.is_open = False

    def listen(self, factory: Any) -> Deferred[Any]:
        self.factory, self.is_open = factory, True
        return succeed(self)

    def getHost(self) -> IPv4Address:
        return IPv4Address("TCP", self.host, 9_020)

    def startListening(self) -> None:
        pass

    def stopListening(self) -> Deferred[None]:
        self.is_open = False
        return succeed(None)


class Transport(StringTransport):
    """A transport that says whether it was aborted, and tells its protocol so at once."""

    is_aborted = False

    def abortConnection(self) -> None:
        self.is_aborted = True


class Stage:
    """A listener, and what its user was given."""

    def __init__(self, **limits: Any) -> None:
        self.reactor = Reactor()
        self.got: list[Any] = []
        self.inbounds: list[Inbound] = []
        self.lost: list[Inbound] = []
        self.handle: Callable[[Inbound, Item, int], None] = self.keep
        self.endpoint = Endpoint()
        self.listener = Listener(
            self.reactor, user=self, listen=self.endpoint, limits=SessionLimits(**limits)
        )
        self.listener.listen()

    def connect(self) -> tuple[Any, Transport]:
        inbound = self.endpoint.factory.buildProtocol(None)
        transport = Transport(peerAddress=IPv4Address("TCP", "127.0.0.1", 5_000))
        inbound.makeConnection(transport)
        return inbound, transport

    def keep(self, inbound: Inbound, item: Item, size: int) -> None:
        assert isinstance(item, Message)
        self.got.append(item.content)

    def connection_opened(self, inbound: Inbound) -> None:
        self.inbounds.append(inbound)

    def item_received(self, inbound: Inbound, item: Item, size: int) -> None:
        self.handle(inbound, item, size)

    def connection_lost(self, inbound: Inbound, reason: str) -> None:
        self.lost.append(inbound)


def end(inbound: Any) -> None:
    inbound.connectionLost(Failure(ConnectionDone()))


# --- framing


def test_framing_is_big_endian_of_4_bytes_and_excludes_the_prefix() -> None:
    stage = Stage()
    inbound, _ = stage.connect()
    payload = message("x" * 300)
    inbound.dataReceived(len(payload).to_bytes(4, "big") + payload)
    assert stage.got == ["x" * 300]


@pytest.mark.parametrize("step", [1, 2, 3, 5, 7])
def test_split_prefix_and_payload(step: int) -> None:
    stage = Stage()
    inbound, transport = stage.connect()
    data = framed(*map(message, range(20)))
    for at in range(0, len(data), step):
        inbound.dataReceived(data[at : at + step])
    assert stage.got == list(range(20))
    assert not transport.is_aborted


def test_many_messages_per_connection() -> None:
    stage = Stage()
    inbound, _ = stage.connect()
    inbound.dataReceived(framed(*map(message, range(5_000))))
    assert stage.got == list(range(5_000))


def test_one_message_per_connection() -> None:
    stage = Stage()
    for number in range(50):
        inbound, _ = stage.connect()
        inbound.dataReceived(framed(message(number)))
        end(inbound)
    assert stage.got == list(range(50))
    assert stage.lost == stage.inbounds
    assert len(stage.lost) == 50


def test_many_clients_at_once() -> None:
    stage = Stage()
    inbounds = [stage.connect()[0] for _ in range(20)]
    for number in range(10):
        for who, inbound in enumerate(inbounds):
            data = framed(message([who, number]))
            inbound.dataReceived(data[:7])
        for who, inbound in enumerate(inbounds):
            inbound.dataReceived(framed(message([who, number]))[7:])
    for who in range(20):
        assert [n for w, n in stage.got if w == who] == list(range(10))


def test_an_incomplete_message_is_not_delivered() -> None:
    stage = Stage()
    inbound, _ = stage.connect()
    inbound.dataReceived(framed(message("whole"), message("half"))[:-1])
    assert inbound.has_partial
    end(inbound)
    assert stage.got == ["whole"]
    assert stage.lost == [inbound]


def test_a_zero_length_is_a_protocol_error_behind_what_came_before() -> None:
    stage = Stage()
    inbound, transport = stage.connect()
    inbound.dataReceived(framed(message("before"), b"", message("behind")))
    assert stage.got == ["before"]
    assert transport.is_aborted


def test_a_payload_beyond_its_limit_ends_the_connection_before_it_is_read() -> None:
    stage = Stage(payload_bytes=1_000)
    inbound, transport = stage.connect()
    inbound.dataReceived(framed(message("x" * 900)))
    assert not transport.is_aborted
    inbound.dataReceived(framed(message("before")) + struct.pack(">L", 1_001))
    assert stage.got == ["x" * 900, "before"]
    assert transport.is_aborted


@pytest.mark.parametrize("thread_bytes", [10_000, 500])
def test_a_message_beyond_the_limit_has_failed_by_its_number_behind_what_came_before(
    thread_bytes: int,
) -> None:
    stage = Stage(payload_bytes=1_000, thread_bytes=thread_bytes)
    inbound, transport = stage.connect()
    items: list[Item] = []
    stage.handle = lambda inbound, item, size: items.append(item)
    large = CODEC.message(CODEC.prepare("x" * 5_000), "session", 7)
    inbound.dataReceived(framed(message("x" * 800), large)[:1_500])
    inbound.dataReceived(framed(message("behind"))[:1_500])
    for run in stage.reactor.on_threads:
        assert not transport.is_aborted
        assert items == []
        run()
    why = f"frame of {len(large)} bytes, at most 1000 allowed"
    assert items == [Message("x" * 800), Message(None, "session", 7, failure=why)]
    assert transport.is_aborted
    assert inbound._decoding.has_payloads is False


def test_unidirectional_the_server_sends_nothing() -> None:
    stage = Stage()
    inbound, transport = stage.connect()
    inbound.dataReceived(framed(*map(message, range(100)), b"no message"))
    end(inbound)
    assert transport.value() == b""


def test_connections_beyond_connections_max_are_closed() -> None:
    stage = Stage(connections_max=2)
    first, _ = stage.connect()
    stage.connect()
    third, transport = stage.connect()
    assert transport.is_aborted
    third.dataReceived(framed(message("no")))
    end(third)
    assert stage.lost == []
    end(first)
    fourth, transport = stage.connect()
    fourth.dataReceived(framed(message("yes")))
    assert (stage.got, transport.is_aborted) == (["yes"], False)


def test_connections_of_one_host_beyond_connections_per_host_are_closed() -> None:
    stage = Stage(connections_per_host=2)
    made = [stage.connect() for _ in range(3)]
    assert [transport.is_aborted for _, transport in made] == [False, False, True]
    end(made[2][0])
    assert stage.lost == []
    other = stage.endpoint.factory.buildProtocol(None)
    transport = Transport(peerAddress=IPv4Address("TCP", "127.0.0.2", 5_000))
    other.makeConnection(transport)
    assert not transport.is_aborted
    end(made[0][0])
    assert not stage.connect()[1].is_aborted


def test_a_connection_that_says_nothing_whole_for_first_seconds_is_closed() -> None:
    stage = Stage(first_seconds=5.0)
    (_, silent), (begins, begun), (speaks, spoke) = [stage.connect() for _ in range(3)]
    begins.dataReceived(framed(message("half"))[:-1])
    speaks.dataReceived(framed(message("whole")))
    stage.reactor.advance(5.0)
    assert [transport.is_aborted for transport in (silent, begun, spoke)] == [True, True, False]
    stage.reactor.advance(1e6)  # loggers may have nothing to say
    assert not spoke.is_aborted
    for inbound in stage.inbounds:
        end(inbound)
    assert stage.reactor.getDelayedCalls() == []


@pytest.mark.parametrize(
    ("described", "backlog"),
    [
        ("tcp:1602:interface=127.0.0.1", 4_096),
        (r"tcp6:1602:interface=\:\:1", 4_096),
        ("tcp:1602:interface=127.0.0.1:backlog=7", 7),
    ],
)
def test_as_many_may_wait_to_be_accepted_as_come_when_a_central_is_begun_again(
    described: str, backlog: int
) -> None:
    reactor = MemoryReactorClock()
    Listener(reactor, user=Stage(), listen=described, insecure=True).listen()
    ((_, _, found, _),) = reactor.tcpServers
    assert found == backlog


def test_no_content_of_a_hostile_payload_is_in_the_log() -> None:
    stage = Stage()
    inbound, transport = stage.connect()
    with capturedLogs() as events:
        inbound.dataReceived(framed(b"\x93secret-of-the-sender"))
    assert transport.is_aborted
    assert events
    assert "secret" not in repr(events)


# --- reading pauses


def held(stage: Stage) -> list[tuple[Inbound, int]]:
    holding: list[tuple[Inbound, int]] = []

    def hold(inbound: Inbound, item: Item, size: int) -> None:
        stage.keep(inbound, item, size)
        inbound.hold(size)
        holding.append((inbound, size))

    stage.handle = hold
    return holding


def release(holding: list[tuple[Inbound, int]]) -> None:
    inbound, size = holding.pop(0)
    inbound.release(size)


def test_unhandled_messages_pause_reading_until_half_of_them_are_handled() -> None:
    stage = Stage(unhandled_messages=10)
    holding = held(stage)
    inbound, transport = stage.connect()
    inbound.dataReceived(framed(*map(message, range(9))))
    assert transport.producerState == "producing"
    inbound.dataReceived(framed(message(9)))
    assert (transport.producerState, inbound.is_paused) == ("paused", True)
    for _ in range(4):
        release(holding)
    assert transport.producerState == "paused"
    release(holding)
    assert (transport.producerState, inbound.is_paused) == ("producing", False)


def test_unhandled_bytes_pause_reading_and_one_message_is_always_taken() -> None:
    stage = Stage(unhandled_bytes=1_000)
    holding = held(stage)
    inbound, transport = stage.connect()
    _, other = stage.connect()
    inbound.dataReceived(framed(message("x" * 5_000)))
    assert stage.got == ["x" * 5_000]
    assert transport.producerState == "paused"
    assert other.producerState == "producing"  # each connection for itself
    release(holding)
    assert transport.producerState == "producing"


# --- threads and their budget


def test_a_payload_above_thread_bytes_is_decoded_on_a_thread_in_order() -> None:
    stage = Stage(thread_bytes=1_000)
    inbound, transport = stage.connect()
    big = "x" * 2_000
    inbound.dataReceived(framed(message(1), message(big), message(2), message(3)))
    assert stage.got == [1]
    assert transport.producerState == "paused"
    (run,) = stage.reactor.on_threads
    run()
    assert stage.got == [1, big, 2, 3]
    assert transport.producerState == "producing"


def test_the_decoding_budget_of_all_connections_pauses_and_resumes() -> None:
    stage = Stage(thread_bytes=1_000, decoding_bytes=4_000)
    pairs = [stage.connect() for _ in range(4)]
    for number, (inbound, _) in enumerate(pairs):
        inbound.dataReceived(framed(message([number, "x" * 2_000]), message([number, ""])))
    threads = stage.reactor.on_threads
    assert len(threads) == 2  # the second passes the limit: what has begun is never cut
    late, transport = stage.connect()
    late.dataReceived(framed(message(["late", ""])))
    assert stage.got == []
    assert {t.producerState for _, t in [*pairs, (late, transport)]} == {"paused"}
    threads.pop(0)()
    while threads:
        threads.pop(0)()
    assert [number for number, text in stage.got if text] == [0, 1, 2, 3]
    assert {number for number, text in stage.got if not text} == {0, 1, 2, 3, "late"}
    assert {t.producerState for _, t in [*pairs, (late, transport)]} == {"producing"}
    assert stage.listener.budget.used == 0


def test_what_handlers_have_not_ended_with_counts_over_all_connections_open_or_not() -> None:
    """Short connections leave their messages behind: what is beyond the budget is not read."""
    stage = Stage(decoding_bytes=4_000)
    held: list[tuple[Inbound, int]] = []

    def hold(inbound: Inbound, item: Item, size: int) -> None:
        inbound.hold(size)
        held.append((inbound, size))

    stage.handle = hold
    for _ in range(4):
        inbound, _ = stage.connect()
        inbound.dataReceived(framed(message("x" * 1_500)))
        end(inbound)
    assert len(held) == 3
    assert len(stage.lost) == 3
    late, transport = stage.connect()
    late.dataReceived(framed(message("y" * 1_500))[:100])
    assert transport.producerState == "paused"  # before its payload is whole
    end(late)
    assert len(stage.lost) == 4  # nothing of it waits
    while held:
        inbound, size = held.pop()
        inbound.release(size)
    assert len(stage.lost) == 5
    assert transport.producerState == "paused"
    assert stage.listener.budget.used == 0
    another, transport = stage.connect()
    another.dataReceived(framed(message("z")))
    assert len(held) == 1
    assert transport.producerState == "producing"


def test_what_is_on_a_thread_when_its_connection_ends_is_given_before_the_end() -> None:
    stage = Stage(thread_bytes=1_000)
    inbound, _ = stage.connect()
    inbound.dataReceived(framed(message("x" * 2_000), message("last")))
    end(inbound)
    assert (stage.got, stage.lost) == ([], [])
    stage.reactor.on_threads.pop()()
    assert stage.got == ["x" * 2_000, "last"]
    assert stage.lost == [inbound]


def test_a_bad_payload_on_a_thread_ends_its_connection_only() -> None:
    stage = Stage(thread_bytes=1_000)
    inbound, transport = stage.connect()
    other, _ = stage.connect()
    inbound.dataReceived(framed(b"\xc1" * 2_000, message("behind")))
    stage.reactor.on_threads.pop()()
    other.dataReceived(framed(message("yes")))
    assert (stage.got, transport.is_aborted) == (["yes"], True)
    end(inbound)
    assert stage.lost == [inbound]
    assert stage.listener.budget.used == 0


@pytest.mark.parametrize("size", [10, 2_000])
def test_a_user_that_raises_ends_the_connection_and_it_is_counted_off(
    size: int, logged_failures: list[LogEvent]
) -> None:
    stage = Stage(thread_bytes=1_000, connections_max=1)

    def fail(inbound: Inbound, item: Item, size: int) -> None:
        raise ZeroDivisionError

    stage.handle = fail
    inbound, transport = stage.connect()
    inbound.dataReceived(framed(message("x" * size)))
    for run in stage.reactor.on_threads:
        run()
    assert [event["log_failure"].type for event in logged_failures] == [ZeroDivisionError]
    logged_failures.clear()
    assert transport.is_aborted
    end(inbound)
    assert stage.lost == [inbound]
    _, transport = stage.connect()
    assert not transport.is_aborted


# --- who may listen


@pytest.mark.parametrize("make", ["central", "remote"])
@pytest.mark.parametrize(
    ("where", "codec", "insecure"),
    [
        ("tcp:0", SafeCodec, False),
        ("tcp:0:interface=0.0.0.0", SafeCodec, False),
        ("tcp6:0:interface=\\:\\:", SafeCodec, False),
        ("tcp:0", ObjectsCodec, False),
        ("tcp:0", ObjectsCodec, True),
    ],
)
def test_a_listener_beyond_loopback_is_refused_before_it_is_bound(
    monkeypatch: pytest.MonkeyPatch, make: str, where: str, codec: Any, insecure: bool
) -> None:
    bound: list[str] = []
    monkeypatch.setattr(
        "msgservice.faces.sessions.listener.serverFromString",
        lambda reactor, text: bound.append(text),
    )
    clock = Clock()
    if make == "central":
        listening: Deferred[Any] = Central(
            clock, listen=where, codec=codec(), insecure=insecure
        ).listen()
    else:
        listening = Remote(
            clock,
            TCP4ClientEndpoint(clock, "127.0.0.1", 1),
            listen=where,
            codec=codec(),
            insecure=insecure,
        ).start()
    failures: list[Any] = []
    listening.addErrback(failures.append)
    assert failures[0].check(InsecureListener)
    assert bound == []
    assert clock.getDelayedCalls() == []


def test_an_endpoint_that_turns_out_to_be_beyond_loopback_is_closed_at_once() -> None:
    endpoint = Endpoint(host="0.0.0.0")
    listener = Listener(Clock(), user=Stage(), listen=endpoint)
    failures: list[Any] = []
    listener.listen().addErrback(failures.append)
    assert failures[0].check(InsecureListener)
    assert not endpoint.is_open


def test_insecure_lets_a_safe_codec_listen_to_all() -> None:
    endpoint = Endpoint(host="0.0.0.0")
    Listener(Clock(), user=Stage(), listen=endpoint, insecure=True).listen()
    assert endpoint.is_open


def test_unfinished_payloads_are_bounded_over_all_connections(logged: list[LogEvent]) -> None:
    stage = Stage(decoding_bytes=10_000)
    payload = message("x" * 4_500)
    made = [stage.connect() for _ in range(5)]
    for inbound, transport in made:
        stage.reactor.advance(1.0)
        inbound.dataReceived(framed(payload)[:4_000])
        if transport.is_aborted:
            inbound.connectionLost(Failure(ConnectionDone()))
    # Whose payload is under way for longest ends, each time that there is too much.
    assert [transport.is_aborted for _, transport in made] == [True, True, True, False, False]
    assert stage.listener.unfinished == 8_000
    for inbound, _ in made[3:]:
        inbound.dataReceived(framed(payload)[4_000:])
    assert stage.got == ["x" * 4_500] * 2
    assert stage.listener.unfinished == 0
    reasons = [str(event.get("reason")) for event in logged]
    assert len([reason for reason in reasons if "decoding_bytes = 10000" in reason]) == 3


def test_what_was_unfinished_is_counted_off_with_its_connection() -> None:
    stage = Stage(decoding_bytes=10_000)
    for _ in range(20):
        inbound, transport = stage.connect()
        inbound.dataReceived(framed(b"x" * 9_000)[:4_000])
        inbound.connectionLost(Failure(ConnectionDone()))
        assert not transport.is_aborted
    assert stage.listener.unfinished == 0
    inbound, transport = stage.connect()  # and one alone is bounded by payload_bytes
    inbound.dataReceived(framed(b"x" * 20_000)[:15_000])
    assert not transport.is_aborted
