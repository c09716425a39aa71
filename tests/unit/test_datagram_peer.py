"""`DatagramPeer` on a clock: what the mail of 2004 advised (A4 to A11), and the faults of its
sample.

F ids number the faults of that sample in the order in which they are known: F1 queue a local
variable, F2 node used before it is made, F3 timer with an undefined name, F4 retry ignores its
index, F5 never retransmits, F6 decrements a bare name, F7 re-arms after deleting, F8 never calls
the failure hook, F9 an acknowledgement leaves the timer running, F10 a second message overwrites
the first, F11 acknowledged before the handler ran, F12 duplicates handled twice, F13 text and bytes
mixed, F14 falls through after a case, F15 the wrong size of an acknowledgement.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.error import CannotListenError
from twisted.internet.task import Clock
from twisted.logger import LogEvent

from msgservice.core.datagram.limits import DatagramLimits
from msgservice.errors import (
    CannotListen,
    HandlerFailed,
    InsecureListener,
    LimitReached,
    MessageTooLarge,
    NodeFailure,
    PeerClosed,
    Refused,
)
from msgservice.transport.udp.peer import DatagramPeer
from tests.unit.datagram_net import Address, Net

A: Address = ("127.0.0.1", 1)
B: Address = ("127.0.0.1", 2)


class Recorder(DatagramPeer):
    """Keeps what came; `answer` says what a handler returns."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.handled: list[bytes] = []
        self.failed: list[Address] = []
        self.answer: Any = lambda data: None

    def handle_message(self, data: bytes, address: Address) -> Any:
        self.handled.append(data)
        return self.answer(data)

    def node_failure(self, address: Address) -> None:
        self.failed.append(address)


def pair(net: Net, **options: Any) -> tuple[Recorder, Recorder]:
    return net.add(Recorder, 1, **options), net.add(Recorder, 2, **options)


def result_of(d: Deferred[Any]) -> Any:
    """Return what the Deferred fired with, or the exception; fail if it has not fired."""
    seen: list[Any] = []
    d.addBoth(lambda result: seen.append(getattr(result, "value", result)))
    assert seen, "not fired"
    return seen[0]


def fired(d: Deferred[Any]) -> bool:
    return d.called


# --- A4, A5, A6: the wire ----------------------------------------------------------------------


def test_A4_a_message_larger_than_a_datagram_is_fragmented() -> None:
    net = Net()
    a, b = pair(net)
    d = a.send_message(bytes(50_000), B)
    net.run(2)

    assert b"" == result_of(d)
    assert [bytes(50_000)] == b.handled
    assert max(len(datagram) for _, _, datagram in net.log) <= 1200
    assert len(net.letters("W")) > 40


def test_A4_a_message_larger_than_the_limit_is_an_error_to_the_caller_that_names_it() -> None:
    net = Net()
    a, b = pair(net, limits=DatagramLimits(message_bytes=1000))

    for d in (a.send_message(bytes(1001), B), a.send_messages([b"x", bytes(1001)], B)):
        error = result_of(d)
        assert isinstance(error, MessageTooLarge)
        assert (1001, 1000) == (error.size, error.size_max)
        assert "1000" in str(error)
    net.run(5)
    assert [] == b.handled
    assert [] == net.letters("W")


def test_A4_a_message_larger_than_the_other_side_takes_is_an_error_that_names_its_limit() -> None:
    net = Net()
    a, b = net.add(Recorder, 1), net.add(Recorder, 2, limits=DatagramLimits(message_bytes=1000))
    large = a.send_message(bytes(1001), B)
    run = a.send_messages([b"one", bytes(5000), b"two"], B)
    small = a.send_message(b"small", B)
    net.run(1)

    for d, size in ((large, 1001), (run, 5000), (a.send_message(bytes(2000), B), 2000)):
        error = result_of(d)
        assert isinstance(error, MessageTooLarge)
        assert (size, 1000) == (error.size, error.size_max)
    assert b"" == result_of(small)
    assert [b"one", b"two", b"small"] == b.handled
    assert [] == a.failed


def test_A10_a_reply_larger_than_the_sender_takes_is_a_failure_that_names_its_limit() -> None:
    net = Net()
    a, b = net.add(Recorder, 1, limits=DatagramLimits(message_bytes=50)), net.add(Recorder, 2)
    b.answer = lambda data: bytes(51) if data == b"large" else bytes(50)
    large, fitting = a.send_message(b"large", B), a.send_message(b"fitting", B)
    net.run(1)

    error = result_of(large)
    assert isinstance(error, HandlerFailed)
    assert "message of 51 bytes, at most 50 allowed" == error.reason
    assert bytes(50) == result_of(fitting)


def test_A5_messages_travel_in_W_and_are_answered_by_A_to_their_source() -> None:
    net = Net()
    a, _ = pair(net)
    a.send_message(b"hello", B)
    net.run(1)

    source, to, datagram = net.letters("W")[0]
    assert (A, B) == (source, to)
    assert b"hello" in datagram
    assert (B, A) == net.letters("A")[0][:2]


@pytest.mark.parametrize(
    "junk", [b"", b"X", b"W", b"A", b"W" * 30, b"\xff" * 100, b"Z\x01" + bytes(60)]
)
def test_A6_F14_what_is_no_datagram_of_ours_is_ignored_in_silence(junk: bytes) -> None:
    net = Net()
    a, b = pair(net)
    b.datagramReceived(junk, A)
    net.run(1)

    assert [] == b.handled
    assert [] == net.log
    d = a.send_message(b"still works", B)
    net.run(1)
    assert b"" == result_of(d)


def test_A6_an_acknowledgement_for_nothing_is_ignored() -> None:
    net = Net()
    a, b = pair(net)
    a.send_message(b"one", B)
    net.run(1)
    answers = [datagram for _, _, datagram in net.letters("A")]
    a.send_message(b"two", B)
    for answer in answers:  # replayed, and from another address as well (decision 10)
        a.datagramReceived(answer, B)
        a.datagramReceived(answer, ("127.0.0.1", 9))
    net.run(1)

    assert [b"one", b"two"] == b.handled


# --- A7: retries -------------------------------------------------------------------------------


def test_A7_F5_a_lost_message_is_sent_again() -> None:
    net = Net()
    a, b = pair(net)
    result_of_first = a.send_message(b"warm", B)
    net.run(1)
    assert fired(result_of_first)
    lost: list[bytes] = []

    def lose_first(source: Address, to: Address, datagram: bytes) -> bool:
        if datagram[:1] == b"W" and not lost:
            lost.append(datagram)
            return True
        return False

    net.drop = lose_first
    d = a.send_message(b"again", B)
    net.run(3)

    assert b"" == result_of(d)
    assert [b"warm", b"again"] == b.handled
    assert b"again" in lost[0]


def test_A7_F4_F6_F8_a_dead_node_fails_after_retries_and_time_and_the_hook_is_called_once() -> None:
    net = Net()
    a = net.add(Recorder, 1, send_timeout=2.0, retries=3)
    first, second = a.send_message(b"one", B), a.send_message(b"two", B)
    net.run(5.5)
    assert not fired(first)
    assert [] == a.failed

    net.run(10)
    for d in (first, second):
        error = result_of(d)
        assert isinstance(error, NodeFailure)
        assert B == error.address
    assert [B] == a.failed
    assert {} == dict(a.send_queue)


def test_A7_the_message_has_not_failed_before_so_many_retries_went_out() -> None:
    net = Net()
    a = net.add(Recorder, 1, send_timeout=0.01, retries=3)
    d = a.send_message(b"one", B)
    net.run(2.5)  # the first handshake's timeouts take 1 and 2 seconds or more
    assert not fired(d)

    net.run(20)
    assert isinstance(result_of(d), NodeFailure)
    assert len(net.letters("H")) >= 4


def test_A7_a_node_that_failed_works_again_when_it_is_heard_from() -> None:
    net = Net()
    a = net.add(Recorder, 1, send_timeout=1.0, retries=3)
    failed = a.send_message(b"one", B)
    net.run(20)
    assert isinstance(result_of(failed), NodeFailure)

    b = net.add(Recorder, 2)
    d = a.send_message(b"two", B)
    net.run(5)
    assert b"" == result_of(d)
    assert [b"two"] == b.handled


def test_F7_F9_after_an_answer_no_timer_sends_anything_again() -> None:
    net = Net()
    a, b = pair(net)
    d = a.send_message(b"one", B)
    net.run(1)
    assert b"" == result_of(d)
    sent = len(net.log)

    net.run(300)

    assert sent == len(net.log)
    assert [b"one"] == b.handled


def test_F3_F9_cancelling_the_wait_does_not_stop_the_message() -> None:
    net = Net()
    a, b = pair(net)
    d = a.send_message(b"one", B)
    d.cancel()
    net.run(2)

    assert isinstance(result_of(d), CancelledError)
    assert [b"one"] == b.handled


# --- A8, A9: names and keys --------------------------------------------------------------------


def test_A8_a_subclass_handles_messages_and_failures() -> None:
    net = Net()
    a, b = pair(net, send_timeout=0.5)
    b.answer = lambda data: b"handled"
    d = a.send_message(b"x", B)
    net.run(1)
    assert b"handled" == result_of(d)
    assert [b"x"] == b.handled

    a.send_message(b"x", ("127.0.0.1", 9)).addErrback(lambda failure: None)
    net.run(20)
    assert [("127.0.0.1", 9)] == a.failed


def test_a_peer_may_be_closed_by_what_it_handles_while_a_turn_of_its_own_is_due(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net = Net()
    a, b = pair(net)
    a.send_message(b"first", B)
    net.run(1)
    sent: list[Deferred[bytes]] = []
    arrive = net.arrive

    def arrives(source: Address, to: Address, datagram: bytes) -> None:
        if to == B and not sent:
            # The second finds the first under way: its turn is due when the datagram is read.
            sent.extend(b.send_message(data, A) for data in (b"own", b"more"))
        arrive(source, to, datagram)

    monkeypatch.setattr(net, "arrive", arrives)
    b.answer = lambda data: b.close()
    a.send_message(b"last", B).addErrback(lambda failure: None)
    net.run(1)
    assert [b"first", b"last"] == b.handled
    assert [PeerClosed, PeerClosed] == [type(result_of(one)) for one in sent]


def test_A9_F10_messages_to_one_address_are_in_flight_at_once_and_each_gets_its_own_answer() -> (
    None
):
    net = Net()
    a, b = pair(net)
    b.answer = lambda data: b"re:" + data
    ds = [a.send_message(b"%d" % n, B) for n in range(50)]
    net.run(2)

    assert [b"re:%d" % n for n in range(50)] == [result_of(d) for d in ds]


def test_A9_F1_F2_the_send_queue_lists_what_waits_by_address_and_nonce() -> None:
    net = Net()
    a, b = pair(net)
    waiting: Deferred[bytes] = Deferred()
    b.answer = lambda data: waiting if data == b"2" else None
    for n in range(1, 4):
        a.send_message(b"%d" % n, B)
    assert [(B, 1), (B, 2), (B, 3)] == list(a.send_queue)

    net.run(1)
    assert [(B, 2)] == list(a.send_queue)
    entry = a.send_queue[B, 2]
    assert (B, 2, 1) == (entry.address, entry.nonce, entry.attempts)
    assert entry.next_due is not None
    assert entry.next_due > net.clock.seconds()
    with pytest.raises(KeyError):
        a.send_queue[B, 1]

    waiting.callback(b"late")
    net.run(1)
    assert 0 == len(a.send_queue)


def test_A9_mangle_makes_the_keys_and_a_clash_of_keys_loses_nothing() -> None:
    class Mangled(Recorder):
        def mangle(self, address: Address, nonce: int) -> str:
            return address[0]

    net = Net()
    a, b = net.add(Mangled, 1), net.add(Recorder, 2)
    ds = [a.send_message(b"%d" % n, B) for n in range(3)]
    assert ["127.0.0.1"] * 3 == list(a.send_queue)
    net.run(1)

    assert all(fired(d) for d in ds)
    assert [b"0", b"1", b"2"] == b.handled


# --- A10: replies ------------------------------------------------------------------------------


@pytest.mark.parametrize(("answer", "reply"), [(None, b""), (b"", b""), (b"pong", b"pong"),
                                               (bytes(30_000), bytes(30_000))])  # fmt: skip
def test_A10_the_handlers_answer_fires_the_senders_deferred(
    answer: bytes | None, reply: bytes
) -> None:
    net = Net()
    a, b = pair(net)
    b.answer = lambda data: answer
    d = a.send_message(b"ping", B)
    net.run(2)

    assert reply == result_of(d)


def test_A10_F11_nothing_is_handled_before_the_handlers_deferred_fired() -> None:
    net = Net()
    a, b = pair(net)
    later: Deferred[bytes] = Deferred()
    b.answer = lambda data: later
    d = a.send_message(b"ping", B)
    net.run(10)
    assert not fired(d)

    later.callback(b"done")
    net.run(0.1)
    assert b"done" == result_of(d)
    assert [b"ping"] == b.handled


def test_A10_a_coroutine_may_handle() -> None:
    net = Net()
    a, b = pair(net)

    async def answer(data: bytes) -> bytes:
        return data.upper()

    b.answer = answer
    d = a.send_message(b"ping", B)
    net.run(1)

    assert b"PING" == result_of(d)


@pytest.fixture
def expected(logged_failures: list[LogEvent]) -> Iterator[list[LogEvent]]:
    """Failures that the test expects to be logged."""
    yield logged_failures
    assert logged_failures
    logged_failures.clear()


@pytest.mark.parametrize("kind", [ValueError, SystemExit, GeneratorExit])
def test_F11_a_handler_that_raises_is_answered_as_handled_with_an_error(
    expected: list[LogEvent], kind: type[BaseException]
) -> None:
    net = Net()
    a, b = pair(net)

    def raises(data: bytes) -> None:
        raise kind("no such account")

    b.answer = raises
    d = a.send_message(b"pay", B)
    net.run(60)

    error = result_of(d)
    assert isinstance(error, HandlerFailed)
    assert f"{kind.__name__}: no such account" == error.reason
    assert [b"pay"] == b.handled


def test_a_handlers_deferred_that_fails_is_an_error_too(expected: list[LogEvent]) -> None:
    net = Net()
    a, b = pair(net)
    later: Deferred[bytes] = Deferred()
    b.answer = lambda data: later
    d = a.send_message(b"pay", B)
    net.run(1)
    later.errback(KeyError("gone"))
    net.run(1)

    assert isinstance(result_of(d), HandlerFailed)


def test_one_deferred_for_several_messages_answers_each_of_them(expected: list[LogEvent]) -> None:
    """As a lookup that all of them wait for: the first alone had its reply, or its failure."""
    net = Net()
    a, b = pair(net)
    found: Deferred[bytes] = Deferred()
    missing: Deferred[bytes] = Deferred()
    b.answer = lambda data: found if data == b"found" else missing
    well = [a.send_message(b"found", B) for _ in range(3)]
    badly = [a.send_message(b"missing", B) for _ in range(3)]
    net.run(1)
    found.callback(b"here")
    missing.errback(KeyError("gone"))
    net.run(1)

    assert [b"here"] * 3 == [result_of(d) for d in well]
    assert ["KeyError: 'gone'"] * 3 == [result_of(d).reason for d in badly]


def test_what_is_still_handled_is_not_forgotten_for_want_of_room() -> None:
    """Who waits for an answer asks once a minute at last, and counted as silent then: where more
    came than there is room for, its session was forgotten, and its message handled once more."""
    net = Net()
    a, b = (
        net.add(Recorder, 1, send_timeout=None),
        net.add(Recorder, 2, limits=DatagramLimits(peers=1, idle_timeout=300)),
    )
    later: Deferred[bytes] = Deferred()
    b.answer = lambda data: later if data == b"slow" else None
    d = a.send_message(b"slow", B)
    net.run(300)  # it asks after 2, 6, 14, 30 and 62 seconds, and then once a minute
    for number in range(3, 66):  # newcomers all along the minute between two asks
        newcomer = net.add(Recorder, number, send_timeout=None)
        newcomer.send_message(b"quick", B).addErrback(lambda _: None)
        net.run(1)
        newcomer.close()
    later.callback(b"done")
    net.run(130)

    assert b"done" == result_of(d)
    assert 1 == b.handled.count(b"slow")


def test_F13_a_handler_that_returns_text_is_an_error_that_says_so() -> None:
    net = Net()
    a, b = pair(net)
    b.answer = lambda data: "text"
    d = a.send_message(b"x", B)
    net.run(1)

    assert "returned str, not bytes" in str(result_of(d))


def test_F13_text_is_refused_at_the_sender_and_bytearrays_are_taken() -> None:
    net = Net()
    a, b = pair(net)
    with pytest.raises(TypeError, match="must be bytes, not str"):
        a.send_message("text", B)  # type: ignore[arg-type]  # what is tested
    with pytest.raises(TypeError, match="must be bytes, not str"):
        a.send_messages([b"x", "text"], B)  # type: ignore[list-item]  # what is tested
    a.send_message(bytearray(b"raw"), B)  # type: ignore[arg-type]  # taken all the same
    net.run(1)

    assert [b"raw"] == b.handled


def test_F12_what_is_repeated_for_a_lost_answer_is_handled_once_and_gets_the_first_answer() -> None:
    net = Net()
    a, b = pair(net)
    a.send_message(b"warm", B)
    net.run(1)
    answers = iter(range(100))
    b.answer = lambda data: b"answer %d" % next(answers)
    until = net.clock.seconds() + 8

    net.drop = lambda source, to, datagram: source == B and net.clock.seconds() < until
    d = a.send_message(b"count", B)
    net.run(30)

    assert b"answer 0" == result_of(d)
    assert [b"warm", b"count"] == b.handled
    assert 2 <= sum(b"count" in datagram for _, _, datagram in net.letters("W"))


def test_F15_an_acknowledgement_alone_has_the_size_that_the_page_says() -> None:
    net = Net()
    a, b = pair(net)
    waiting: Deferred[bytes] = Deferred()
    b.answer = lambda data: waiting
    a.send_message(b"x", B)
    net.run(1)

    # header 20, RECEIVED 18, checksum 4; with IPv4 and UDP headers 70 on the wire
    assert 20 + 18 + 4 == len(net.letters("A")[0][2])
    waiting.callback(b"")
    net.run(1)


# --- runs --------------------------------------------------------------------------------------


def test_a_run_has_one_deferred_with_all_replies_in_order() -> None:
    net = Net()
    a, b = pair(net)
    b.answer = lambda data: data * 2 if data[0] % 2 else None
    d = a.send_messages([bytes([n]) for n in range(100)], B)
    net.run(2)

    assert [bytes([n, n]) if n % 2 else b"" for n in range(100)] == result_of(d)
    assert b"" == b"".join(result_of(a.send_messages([], B)))


def come_back(net: Net, peer: Recorder, number: int) -> Recorder:
    """Let a peer begin with nothing at the same address, as after a crash."""
    turns = peer._turns
    turns.closed = True  # nobody is told
    if turns._timer is not None and turns._timer.active():
        turns._timer.cancel()
    made: Recorder = net.add(Recorder, number)
    made.answer = peer.answer
    return made


def test_a_run_of_which_a_part_was_answered_before_the_other_side_came_back() -> None:
    net = Net()
    a, b = pair(net)
    waits: Deferred[bytes] = Deferred()
    b.answer = lambda data: waits if data == b"0" else b"to " + data
    bodies = [b"%d" % number for number in range(5)]
    d = a.send_messages(bodies, B)
    net.run(1)
    b.answer = lambda data: b"to " + data
    b = come_back(net, b, 2)
    net.run(30)

    assert [b"0"] == b.handled  # the others were answered by the one before
    assert [b"to " + body for body in bodies] == result_of(d)


def test_a_side_that_comes_back_and_begins_gets_the_rest_in_order_and_answers_it_right() -> None:
    net = Net()
    a, b = pair(net)
    a.send_messages([b"first"], B)
    net.run(1)
    net.drop = lambda source, to, datagram: source == B
    bodies = [b"%03d" % number + bytes(300) for number in range(200)]
    d = a.send_messages(bodies, B)
    net.run(0.5)
    b = come_back(net, b, 2)
    b.answer = lambda data: data[:3]
    net.drop = lambda source, to, datagram: False
    b.send_message(b"here again", A)
    net.run(60)

    assert bodies == b.handled
    assert [body[:3] for body in bodies] == result_of(d)


def test_a_run_with_a_failed_handler_fails_when_all_are_answered(expected: list[LogEvent]) -> None:
    net = Net()
    a, b = pair(net)

    def answer(data: bytes) -> bytes:
        if data == b"3":
            raise ValueError("three")
        return data

    b.answer = answer
    d = a.send_messages([b"%d" % n for n in range(6)], B)
    net.run(2)

    error = result_of(d)
    assert isinstance(error, HandlerFailed)
    assert error.replies is not None
    assert [b"0", b"1", b"2", b"4", b"5"] == [r for r in error.replies if isinstance(r, bytes)]
    assert 6 == len(b.handled)


def test_a_run_to_a_dead_node_fails_once() -> None:
    net = Net()
    a = net.add(Recorder, 1, send_timeout=0.5)
    d = a.send_messages([b"x"] * 10, B)
    net.run(30)

    assert isinstance(result_of(d), NodeFailure)


# --- limits and addresses ----------------------------------------------------------------------


def test_without_a_key_only_loopback_is_spoken_to() -> None:
    net = Net()
    a = net.add(Recorder, 1)
    assert "beyond loopback" in str(result_of(a.send_message(b"x", ("192.0.2.1", 7))))
    with pytest.raises(InsecureListener):
        a.listen(0, "0.0.0.0")
    for trusted in (
        net.add(Recorder, 2, insecure=True),
        net.add(Recorder, 3, key=bytes(32)),
    ):
        assert not fired(trusted.send_message(b"x", ("192.0.2.1", 7)))


def test_without_a_socket_nothing_is_sent_and_the_reason_is_said() -> None:
    net = Net()
    a = DatagramPeer(net.clock)
    for d in (a.send_message(b"x", B), a.send_messages([b"x", b"y"], B)):
        error = result_of(d)
        assert isinstance(error, Refused)
        assert "call listen() before it sends" in str(error)
    assert not a.send_queue


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("127.0.0.1:7", "an address is (host, port), not '127.0.0.1:7'"),
        (("127.0.0.1",), "an address is (host, port)"),
        (("localhost", 7), "no IP address"),
        (("127.0.0.1", 0), "port 0"),
        (("127.0.0.1", 70_000), "port 70000"),
    ],
)
def test_an_address_that_cannot_be_is_refused_with_the_reason(
    address: Address, reason: str
) -> None:
    a = Net().add(Recorder, 1)
    error = result_of(a.send_message(b"x", address))
    assert isinstance(error, Refused)
    assert reason in str(error)


def test_a_full_queue_refuses_and_names_the_limit() -> None:
    net = Net()
    a = net.add(Recorder, 1, limits=DatagramLimits(queue_messages=3))
    for _ in range(3):
        assert not fired(a.send_message(b"x", B))
    error = result_of(a.send_message(b"x", B))
    assert isinstance(error, LimitReached)
    assert ("queue_messages", 3) == (error.limit, error.value)
    assert isinstance(result_of(a.send_messages([b"x"], B)), LimitReached)


@pytest.mark.parametrize("key", [b"short", {0: bytes(32)}, {1: bytes(31)}, {256: bytes(32)}])
def test_a_key_that_cannot_be_is_refused(key: Any) -> None:
    with pytest.raises(ValueError, match="key"):
        DatagramPeer(Net().clock, key=key)


def test_closing_fails_what_is_under_way_and_the_other_side_forgets_the_session() -> None:
    net = Net()
    a, b = pair(net)
    b.answer = lambda data: Deferred()
    d = a.send_message(b"x", B)
    net.run(1)
    a.close()
    net.run(1)

    assert isinstance(result_of(d), PeerClosed)
    assert isinstance(result_of(a.send_message(b"y", B)), PeerClosed)
    assert A not in b._endpoint.peers
    a.close()


def test_keys_rotate_without_a_pause() -> None:
    net = Net()
    old, new = bytes(32), bytes([1]) * 32
    a = net.add(Recorder, 1, key={1: old})
    b = net.add(Recorder, 2, key={2: new, 1: old})
    c = net.add(Recorder, 3, key={2: new})
    first, second = a.send_message(b"old", B), c.send_message(b"new", B)
    third = a.send_message(b"unknown", ("127.0.0.1", 3))
    net.run(3)

    assert [b"old", b"new"] == sorted(b.handled, reverse=True)
    assert fired(first)
    assert fired(second)
    assert not fired(third)
    assert [] == c.handled
    assert not any(b"unknown" in datagram for _, _, datagram in net.log)


def test_a_handler_may_send_and_close_from_within() -> None:
    net = Net()
    a, b = pair(net)
    b.answer = lambda data: b.send_message(b"back:" + data, A)
    d = a.send_message(b"x", B)
    net.run(2)
    assert b"" == result_of(d)
    assert [b"back:x"] == a.handled

    b.answer = lambda data: b.close()
    a.send_message(b"y", B).addErrback(lambda failure: None)
    net.run(1)
    assert [b"x", b"y"] == b.handled


def test_a_port_in_use_is_told_with_its_name_where_the_reactor_owns_the_socket_too() -> None:
    class Taken(Clock):
        def listenUDP(self, port: int, protocol: Any, interface: str = "", **_: Any) -> None:
            raise CannotListenError(interface, port, OSError("in use"))

    with pytest.raises(CannotListen, match=r"udp:7430:interface=127\.0\.0\.1"):
        DatagramPeer(Taken()).listen(7430)


async def _soon(data: bytes) -> bytes:
    return data * 1000


ANSWERS: dict[str, Any] = {
    "bytes": lambda data: data * 1000,
    "a bytearray": lambda data: bytearray(data * 1000),
    "a coroutine": _soon,
    "a Deferred": lambda data: succeed(data * 1000),
}


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("kind", ANSWERS)
def test_a_peer_that_reads_no_replies_is_handled_no_further_and_later_gets_all(
    kind: str, ordered: bool
) -> None:
    net = Net()
    a, b = pair(net, limits=DatagramLimits(reply_bytes=100_000), ordered=ordered)
    b.answer = ANSWERS[kind]
    warm = a.send_message(b"warm  ", B)
    net.run(1)
    assert b"warm  " * 1000 == result_of(warm)

    net.drop = lambda source, to, datagram: source == B
    messages = [b"%6d" % number for number in range(200)]
    run = a.send_messages(messages, B)
    net.run(20)
    session = b._endpoint.peers[A].session
    assert session is not None
    assert 1 + 16 == len(b.handled)  # 16 replies of 6,000 bytes and 256 are the first too many
    assert session.receiving.reply_bytes < 110_000

    net.drop = lambda source, to, datagram: False
    net.run(200)
    assert [message * 1000 for message in messages] == result_of(run)
    assert sorted([b"warm  ", *messages]) == sorted(b.handled)
    if ordered:
        assert [b"warm  ", *messages] == b.handled
