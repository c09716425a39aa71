"""The client against a node that speaks the protocol: sending, gathering, refusals, reconnects.

SEMANTICS 1 (floor), 3 (resending in order), 4, 5, 6, 11 (`status_from`), 26 (without `outbox=`).
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import msgspec
import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.logger import LogEvent

from msgservice.client import Client, Receipt
from msgservice.client.acked import RANGES_MANY
from msgservice.client.promise import Promise
from msgservice.core.backlog import Backlog
from msgservice.core.frames import (
    BYE_CLOSING,
    BYE_REPLACED,
    BYE_SETTLED,
    ErrorFrame,
    Nack,
    Transfer,
)
from msgservice.core.inbox import Inbox
from msgservice.core.marks import Marks
from msgservice.errors import (
    Ambiguous,
    BadName,
    BadSubject,
    BadValue,
    ClientClosed,
    ContentChanged,
    LimitReached,
    MessageTooLarge,
    NoReceiver,
    NotSupported,
    NotYetBuilt,
    Refused,
    UnknownReceiver,
)
from msgservice.limits import Limits
from msgservice.message import FLAG_REQUIRE, Action, decode_messages
from tests.kit.clients import ClientWorld, error_of, errors_logged, now
from tests.kit.node_double import Pipe


def counts(transfers: list[Transfer]) -> list[tuple[str, int]]:
    return [(t.subject, len(decode_messages(t.messages))) for t in transfers]


# --- sending


def test_send_fires_when_the_node_has_answered_with_position_and_audience() -> None:
    world = ClientWorld()
    world.node.answering = False
    sent = world.client.send("orders.new", b"one")
    world.settle()
    assert not sent.called
    world.node.answer()
    world.settle()
    receipt = now(sent)
    assert (1, 1 << 16) == (receipt.sequence, receipt.position)
    assert ("r1", "r2") == receipt.receivers
    assert [b"one"] == world.node.bodies()


def test_send_can_be_awaited() -> None:
    world = ClientWorld()

    async def use() -> int:
        receipt = await world.client.send("orders.new", b"one")
        return receipt.sequence

    done = Deferred.fromCoroutine(use())
    world.settle()
    assert 1 == now(done)


def test_content_says_its_type_and_bytes_say_none() -> None:
    world = ClientWorld()
    world.client.send("a", b"bytes")
    world.client.send("a", "text", headers={"x": "1"})
    world.client.send("a", {"id": 17})
    world.settle()
    assert [b"bytes", b"text", b'{"id":17}'] == world.node.bodies()
    headers = [stored.message.headers for stored in world.node.stored]
    assert headers == [
        None,
        {"x": "1", "content-type": "text/plain; charset=utf-8"},
        {"content-type": "application/json"},
    ]


def test_messages_of_one_turn_travel_in_runs_of_one_subject() -> None:
    world = ClientWorld()
    for number in range(300):
        world.client.send(f"s.{number % 3}", str(number).encode())
    world.settle()
    assert [("s.0", 100), ("s.1", 100), ("s.2", 100)] == counts(world.node.transfers)
    for subject in range(3):
        wanted = [str(n).encode() for n in range(subject, 300, 3)]
        assert wanted == world.node.bodies(f"s.{subject}")


def test_a_run_is_cut_at_its_most_messages_and_the_order_holds() -> None:
    world = ClientWorld()
    receipts = [world.client.send("a", str(number).encode()) for number in range(450)]
    world.settle()
    assert [200, 200, 50] == [count for _, count in counts(world.node.transfers)]
    assert [str(number).encode() for number in range(450)] == world.node.bodies()
    assert list(range(1, 451)) == [now(receipt).sequence for receipt in receipts]


def test_a_run_is_cut_at_max_batch() -> None:
    world = ClientWorld(limits=Limits(max_batch=4096))
    for _ in range(10):
        world.client.send("a", b"x" * 1000)
    world.settle()
    assert [4, 4, 2] == [count for _, count in counts(world.node.transfers)]
    assert all(memoryview(t.messages).nbytes <= 4096 for t in world.node.transfers)


def test_other_options_begin_another_run_and_keep_the_order_of_their_subject() -> None:
    world = ClientWorld()
    world.client.send("a", b"1")
    world.client.send("a", b"2", to=["billing"])
    world.client.send("a", b"3", to=["billing"])
    world.client.send("a", b"4")
    world.client.send("a", b"5", require=True)
    world.client.send_many("a", [b"6", b"7"])
    world.client.send("a", b"8")
    world.settle()
    assert [str(n).encode() for n in range(1, 9)] == world.node.bodies()
    assert [None, ("billing",), None, None, None, None] == [t.to for t in world.node.transfers]
    assert [0, 0, 0, FLAG_REQUIRE, 0, 0] == [t.flags for t in world.node.transfers]


def test_require_can_be_the_default() -> None:
    world = ClientWorld(require=True)
    world.client.send("a", b"1")
    world.client.send("a", b"2", require=False)
    world.settle()
    assert [FLAG_REQUIRE, 0] == [t.flags for t in world.node.transfers]


def test_40_what_the_node_does_not_name_is_not_supported_and_not_sent() -> None:
    world = ClientWorld(start=False)
    world.node.features = ["codes", "of tomorrow", "to"]
    world.start()
    client = world.client
    for sent in (
        client.send("a", b"1", require=True),
        client.send("a", b"1", to=["billing"], require=True),
        client.send_many("a", [b"1"], require=True),
    ):
        error = error_of(sent, NotSupported)
        assert "'require' at this node is not supported" == str(error)
    error = error_of(client.send("a", b"1", idempotency_key="k"), NotSupported)
    assert "'keys' at this node is not supported" == str(error)
    named = client.send("a", b"2", to=["billing"])
    world.settle()
    assert [b"2"] == world.node.bodies()
    now(named)


def test_40_where_require_is_the_default_nothing_of_the_fast_path_goes_without_it() -> None:
    world = ClientWorld(require=True, start=False)
    world.node.features = []
    world.start()
    error_of(world.client.send("a", b"1"), NotSupported)
    sent = world.client.send("a", b"2", require=False)
    world.settle()
    now(sent)
    assert [(b"2", 0)] == [(*world.node.bodies(), t.flags) for t in world.node.transfers]


def test_40_what_a_node_of_before_features_has_is_sent_and_another_node_says_anew() -> None:
    world = ClientWorld()
    world.settle()
    assert world.node.hellos[-1].options.features == ["codes"]
    world.client.send("a", b"1", to=["billing"], require=True)
    world.settle()
    world.node.features = []
    world.node.cut()
    world.advance(10)
    error_of(world.client.send("a", b"2", to=["billing"]), NotSupported)
    world.node.features = ["to"]
    world.node.cut()
    world.advance(10)
    world.client.send("a", b"3", to=["billing"])
    world.settle()
    assert [b"1", b"3"] == world.node.bodies()


def test_send_many_is_one_run_and_fires_once_with_all_receipts() -> None:
    world = ClientWorld()
    sent = world.client.send_many("a", [b"1", {"x": 2}, "3"], headers={"h": "v"})
    world.settle()
    receipts = now(sent)
    assert [1, 2, 3] == [receipt.sequence for receipt in receipts]
    assert 3 == len(receipts)
    assert 2 == receipts[1].sequence == receipts[-2].sequence
    with pytest.raises(IndexError):
        receipts[3]
    assert 1 == len(world.node.transfers)
    assert ["v"] * 3 == [(s.message.headers or {})["h"] for s in world.node.stored]


def test_send_many_is_split_where_it_is_too_large_for_a_run() -> None:
    world = ClientWorld(limits=Limits(max_batch=4096, batch_messages=3))
    sent = world.client.send_many("a", [b"x"] * 7)
    large = world.client.send_many("b", [b"y" * 2000] * 3)
    world.settle()
    assert [("a", 3), ("a", 3), ("a", 1), ("b", 2), ("b", 1)] == counts(world.node.transfers)
    assert list(range(1, 8)) == [receipt.sequence for receipt in now(sent)]
    assert [8, 9, 10] == [receipt.sequence for receipt in now(large)]


def test_send_many_of_nothing_fires_with_nothing() -> None:
    world = ClientWorld()
    assert 0 == len(now(world.client.send_many("a", [])))
    assert 0 == world.client.sequence


@pytest.mark.parametrize("bodies", ["xyz", b"xyz", bytearray(b"x"), memoryview(b"x"), {"id": 17}])
def test_send_many_of_one_content_is_refused_and_not_taken_apart(bodies: Any) -> None:
    world = ClientWorld()
    failed = error_of(world.client.send_many("a", bodies), TypeError)
    assert f"bodies is a list of contents, not {type(bodies).__name__}" == str(failed)
    assert 0 == world.client.sequence


def test_send_many_of_what_has_no_length_says_what_it_takes() -> None:
    world = ClientWorld()
    generator: Any = (b"%d" % number for number in range(3))
    failed = error_of(world.client.send_many("a", generator), TypeError)
    assert "bodies is a list of contents, not generator" == str(failed)
    assert 0 == world.client.sequence


@pytest.mark.parametrize("message", [5, None, b"mine"])
def test_what_is_no_message_is_not_cancelled(message: Any) -> None:
    world = ClientWorld()
    failed = error_of(world.client.cancel(message), TypeError)
    assert f"message is a str, not {type(message).__name__}" == str(failed)
    assert not world.node.requests


def test_an_id_stays_with_its_message() -> None:
    world = ClientWorld()
    plain = world.client.send("a", b"1")
    named = world.client.send("a", b"2", id="o-17")
    world.settle()
    assert (None, "o-17") == (now(plain).id, now(named).id)
    assert [None, "o-17"] == [stored.message.id for stored in world.node.stored]


# --- what is refused before anything is sent


@pytest.mark.parametrize(
    ("error", "subject", "content", "options"),
    [
        (BadSubject, "", b"", {}),
        (BadSubject, "orders.*", b"", {}),
        (BadSubject, "$node.info", b"", {}),
        (BadName, "a", b"", {"to": ["no/slash"]}),
        (BadName, "a", b"", {"to": "billing"}),
        (Refused, "a", b"", {"to": []}),
        (BadName, "a", b"", {"id": ""}),
        (BadName, "a", b"", {"id": "é" * 128}),
        (BadName, "a", b"", {"id": "\ud800"}),
        (Refused, "a", b"", {"headers": {"x": 1}}),
        (Refused, "a", b"", {"headers": {"\ud800": "1"}}),
        (TypeError, "a", object(), {}),
        (MessageTooLarge, "a", b"x" * (4096 - 1024 + 1), {}),
        (MessageTooLarge, "a", b"x" * 1000, {"headers": {"x": "y" * 3100}}),
        (BadName, "a", b"", {"idempotency_key": ""}),
        (BadName, "a", b"", {"idempotency_key": "k" * 256}),
        (BadName, "a", b"", {"idempotency_key": "\ud800"}),
        (TypeError, "a", b"", {"idempotency_key": 7}),
        (BadValue, "a", b"", {"delay": -1}),
        (BadValue, "a", b"", {"delay": float("nan")}),
        (BadValue, "a", b"", {"delay": 366 * 24 * 3600 + 0.001}),
        (BadValue, "a", b"", {"delay": "1"}),
        (BadValue, "a", b"", {"delay": 1, "ttl": 1}),
        (Refused, "a", b"", {"retain": True, "to": ["billing"]}),
        (Refused, "a", b"", {"retain": 7}),
        (BadValue, "a", b"", {"promise": object()}),
        (Refused, "a", b"", {"promise": Promise(within=1), "delay": 1}),
        (Refused, "a", b"", {"promise": Promise(within=1), "idempotency_key": "k"}),
    ],
)
def test_bad_input_fails_at_once_and_nothing_is_sent(
    error: type[Exception], subject: str, content: Any, options: dict[str, Any]
) -> None:
    world = ClientWorld(limits=Limits(max_batch=4096))
    failed = error_of(world.client.send(subject, content, **options), error)
    assert str(failed)
    world.settle()
    assert [] == world.node.transfers
    assert 0 == world.client.unanswered


def test_one_bad_body_fails_the_whole_send_many() -> None:
    world = ClientWorld(limits=Limits(max_batch=4096))
    bodies = [b"x", b"x" * 4000]
    assert 4000 == error_of(world.client.send_many("a", bodies), MessageTooLarge).size
    world.settle()
    assert [] == world.node.transfers


def test_the_largest_message_travels() -> None:
    world = ClientWorld(limits=Limits(max_batch=4096))
    sent = world.client.send("a", b"x" * (4096 - 1024))
    world.settle()
    assert now(sent).position


def test_a_node_that_takes_smaller_batches_is_obeyed() -> None:
    world = ClientWorld(start=False)
    early = [world.client.send("a", b"x" * 3000) for _ in range(3)]
    too_large = world.client.send("a", b"x" * 9000)
    world.node.max_batch = 8192
    world.start()
    assert all(now(one).position for one in early)
    assert 8192 == error_of(too_large, MessageTooLarge).size_max
    late = error_of(world.client.send("a", b"x" * 9000), MessageTooLarge)
    assert (9000, 8192 - 1024) == (late.size, late.size_max)


def test_a_node_whose_hello_says_no_bytes_has_said_nothing() -> None:
    world = ClientWorld(start=False)
    world.node.max_batch = 0
    world.start()
    assert now(world.settled(world.client.send("a", b"x" * 9000))).position


def test_a_long_list_of_receivers_takes_its_room_from_the_messages() -> None:
    world = ClientWorld(limits=Limits(max_batch=16384))
    names = [f"receiver-{number:04}" for number in range(1000)]
    for _ in range(20):
        world.client.send("a", b"x" * 500, to=names)
    world.settle()
    assert 20 == len(world.node.stored)
    assert len(world.node.transfers) > 1


# --- refusals of the node


@pytest.mark.parametrize(
    ("said", "kind", "text"),
    [
        (("who?", 2, "nobody"), UnknownReceiver, "unknown receiver 'nobody'"),
        (("nobody there", 3, ""), NoReceiver, "no receiver for subject 'b'"),
        (("later", 4, "ttl"), NotYetBuilt, "ttl is not supported by this version"),
        (("not allowed", 0, ""), Refused, "not allowed"),
        # A sentence is for people, whatever it looks like; a code that is not known is none.
        (("unknown receiver 'nobody'", 0, ""), Refused, "unknown receiver 'nobody'"),
        (("of another version", 999, "x"), Refused, "of another version"),
        (("who?", 2, ""), Refused, "who?"),
    ],
)
def test_a_refusal_fails_the_messages_it_names_and_no_others(
    said: tuple[str, int, str], kind: type[Refused], text: str
) -> None:
    world = ClientWorld()
    world.node.refusal = lambda t: (Action.REFUSED, 0, *said) if t.subject == "b" else None
    good = world.client.send("a", b"1")
    bad = world.client.send("b", b"2")
    also_bad = world.client.send_many("b", [b"3", b"4"])
    world.settle()
    assert now(good).position
    failed = error_of(bad, kind)
    assert (kind, text) == (type(failed), str(failed))
    assert text == str(error_of(also_bad, kind))
    assert 0 == world.client.unanswered


def test_what_is_not_taken_now_is_sent_again_after_its_delay() -> None:
    world = ClientWorld()
    full = [(Action.LATER, 2000, "log full")]
    world.node.refusal = lambda t: full.pop() if full else None
    sent = world.client.send("a", b"1")
    world.settle()
    assert world.client.why().refusal == "log full"
    assert str(world.client.why()).endswith("1 unanswered, refused for now: log full")
    behind = world.client.send("a", b"2")
    world.settle()
    world.clock.advance(1.9)
    world.settle()
    assert not sent.called
    world.clock.advance(0.2)
    world.settle()
    assert (1, 2) == (now(sent).sequence, now(behind).sequence)
    assert [b"1", b"2"] == world.node.bodies()
    assert world.client.why().refusal is None


def test_6_what_was_refused_while_an_earlier_message_waits_is_not_missed() -> None:
    """The floor stands, so the node has a hole for each, and says so."""
    said: dict[str, tuple[Action, int, str]] = {
        "full": (Action.LATER, 10_000, "billing is full"),
        "bad": (Action.REFUSED, 0, "no"),
    }
    world = ClientWorld()
    world.node.refusal = lambda transfer: said.get(transfer.subject.partition(".")[0])
    full = world.client.send("full", b"x")
    for n in range(RANGES_MANY + 300):  # each a run of its own
        world.client.send(f"bad.{n}", b"x").addErrback(lambda failure: failure.trap(Refused))
        world.client.send(f"good.{n}", b"x")
    world.settle()
    world.node.cut()
    world.advance(2.0)
    assert world.client.connected
    assert "connection lost" in world.client._hop.last_error  # and not that it forgot
    assert not full.called


def test_a_node_that_answers_what_was_never_sent_is_left() -> None:
    world = ClientWorld()
    world.node.connection.send(Nack(7, 9, int(Action.REFUSED), 0, "no"))
    world.settle()
    assert "never sent" in str(world.client.why().error)
    world.advance(1.0)
    assert world.client.connected


# --- cancelling (T5)


def test_cancelling_a_send_ends_the_wait_and_the_message_is_delivered() -> None:
    world = ClientWorld()
    cancelled = world.client.send("a", b"1")
    other = world.client.send("a", b"2")
    cancelled.cancel()
    error_of(cancelled, CancelledError)
    world.settle()
    assert now(other).sequence == 2
    assert [b"1", b"2"] == world.node.bodies()


def test_cancelling_send_many_ends_the_wait_and_the_messages_are_delivered() -> None:
    world = ClientWorld()
    cancelled = world.client.send_many("a", [b"1"])
    cancelled.cancel()
    error_of(cancelled, CancelledError)
    world.settle()
    assert [b"1"] == world.node.bodies()


# --- window and backpressure


def test_blocked_says_that_the_window_is_full_and_send_waits_in_order() -> None:
    world = ClientWorld(window=(10, 1 << 20))
    world.node.answering = False
    sent: list[Deferred[Receipt]] = []
    while not world.client.blocked:
        sent.append(world.client.send("a", str(len(sent)).encode()))
    assert 10 == len(sent)
    more = world.client.send("a", b"more")
    world.settle()
    assert 10 == len(world.node.stored)
    assert world.client.blocked
    world.node.answer()
    world.settle()
    assert not world.client.blocked
    assert 11 == now(more).sequence
    assert [*(str(n).encode() for n in range(10)), b"more"] == world.node.bodies()


def test_blocked_counts_bytes_too() -> None:
    world = ClientWorld(window=(1000, 1000))
    world.node.answering = False
    world.client.send("a", b"x" * 990)
    assert not world.client.blocked
    world.client.send("a", b"x" * 10)
    assert world.client.blocked


def test_the_nodes_window_is_obeyed() -> None:
    world = ClientWorld(start=False)
    world.node.window = (5, 1 << 20)
    world.node.answering = False
    world.start()
    for number in range(3):
        world.client.send_many("a", [str(number).encode()] * 4)
    world.settle()
    assert 4 == len(world.node.stored)


@pytest.mark.parametrize("held", [(3, 1 << 20), (100, 30)])
def test_beyond_what_may_be_held_send_fails_and_names_the_limit(held: tuple[int, int]) -> None:
    world = ClientWorld(held=held)
    world.node.answering = False
    for _ in range(3):
        world.client.send("a", b"1234")
    assert "held" in str(error_of(world.client.send("a", b"1234"), LimitReached))
    assert "held" in str(error_of(world.client.send_many("a", [b"1234"]), LimitReached))
    world.settle()
    world.node.answer()
    world.settle()
    assert now(world.settled(world.client.send("a", b"1234"))).sequence == 4


def test_a_transport_that_is_full_is_not_written_to() -> None:
    world = ClientWorld()
    connection = world.client._hop.connection
    assert connection is not None
    connection.channel_writable(False)
    sent = world.client.send("a", b"1")
    world.settle()
    assert [] == world.node.transfers
    connection.channel_writable(True)
    world.settle()
    assert now(sent).sequence == 1


def test_short_runs_wait_for_an_answer_while_much_is_in_flight() -> None:
    world = ClientWorld(window=(100, 1 << 20))
    world.node.answering = False
    world.client.send_many("a", [b"x"] * 60)
    world.settle()
    for _ in range(5):
        world.client.send("b", b"y")
        world.settle()
    assert [("a", 60)] == counts(world.node.transfers)
    world.node.answer()
    world.settle()
    assert [("a", 60), ("b", 5)] == counts(world.node.transfers)


def test_short_runs_do_not_wait_for_long() -> None:
    world = ClientWorld(window=(100, 1 << 20))
    world.node.answering = False
    world.client.send_many("a", [b"x"] * 60)
    world.settle()
    world.client.send("b", b"y")
    world.settle()
    world.advance(0.1)
    assert [("a", 60), ("b", 1)] == counts(world.node.transfers)


# --- reconnecting


def test_what_is_sent_while_away_travels_after_the_reconnect_in_few_runs() -> None:
    world = ClientWorld()
    world.node.is_up = False
    world.node.cut()
    world.settle()
    assert not world.client.connected
    sent = []
    for number in range(10):
        sent.append(world.client.send("a", str(number).encode()))
        world.settle()
    assert "refused" in str(world.advance(2.0).client.why().error)
    world.node.is_up = True
    world.advance(1.0)
    assert list(range(1, 11)) == [now(one).sequence for one in sent]
    assert [("a", 10)] == counts(world.node.transfers)


def test_3_what_was_unanswered_is_sent_again_before_anything_new() -> None:
    world = ClientWorld()
    world.node.answering = False
    first = [world.client.send(subject, b"old") for subject in "abc"]
    world.settle()
    world.node.inboxes.clear()  # it was not stored after all
    world.node.stored.clear()
    world.node.cut()
    late = world.client.send("a", b"new")
    world.node.answering = True
    world.advance(1.0)
    assert [1, 2, 3, 4] == [stored.sequence for stored in world.node.stored]
    assert [1, 2, 3, 4] == [now(one).sequence for one in [*first, late]]


def test_a_lost_answer_fires_when_routed_has_come_after_the_reconnect() -> None:
    world = ClientWorld()
    world.node.answering = False
    sent = world.client.send("a", b"1")
    world.settle()
    world.node.cut()
    world.node.answering = True
    world.advance(1.0)
    receipt = now(sent)
    assert (1 << 16, ("r1", "r2")) == (receipt.position, receipt.receivers)
    assert 1 == len(world.node.transfers), "what was taken is not sent again"
    assert 1 == world.node.hellos[-1].options.status_from


def test_a_lost_answer_for_what_is_no_longer_in_the_log_has_no_position() -> None:
    world = ClientWorld()
    world.node.answering = False
    sent = world.client.send("a", b"1")
    world.settle()
    incarnation = world.node.hellos[-1].incarnation
    routed = world.node.routed[incarnation]
    routed[0] = msgspec.structs.replace(routed[0], position=0)
    world.node.cut()
    world.node.answering = True
    world.advance(1.0)
    assert (None, ("r1", "r2")) == (now(sent).position, now(sent).receivers)


def test_14_a_producer_keeps_nothing_of_the_attempts_that_were_lost() -> None:
    """It stores none of them, and a message that waits for its node for days has many."""
    world = ClientWorld()
    world.node.answering = False
    sent = world.client.send("a", b"1")
    world.settle()
    for _ in range(5):
        world.node.inboxes.clear()  # it was not stored
        world.node.stored.clear()
        world.node.cut()
        world.advance(60.0)
    (run,) = world.client._hop.backlog.open_between(1, 1)
    assert run.attempts > 1
    world.node.connection.send(Nack(1, 1, int(Action.RETRY), 0, "not now"))
    world.settle()
    assert not world.client._hop.backlog.has_failed
    assert not sent.called


def test_1_floor_tells_what_is_settled() -> None:
    world = ClientWorld()
    for _ in range(3):
        world.client.send("a", b"x")
        world.settle()
    assert [1, 2, 3] == [transfer.floor for transfer in world.node.transfers]


def test_11_status_from_is_the_lowest_whose_receipt_is_held_and_unsettled() -> None:
    world = ClientWorld()
    for _ in range(3):
        world.client.send("a", b"x")
        world.settle()
    kept = world.client.send("a", b"x")
    world.settle()
    world.client.send("a", b"x")
    world.settle()
    world.node.cut()
    world.advance(1.0)
    assert now(kept).sequence == world.node.hellos[-1].options.status_from == 4
    world.say_acknowledged(4)
    world.node.cut()
    world.advance(1.0)
    assert 6 == world.node.hellos[-1].options.status_from


def test_5_each_client_is_its_own_incarnation() -> None:
    world = ClientWorld()
    other = world.another_client()
    world.settle()
    assert other.connected
    assert 2 == len({hello.incarnation for hello in world.node.hellos})
    assert {"shop"} == {hello.name for hello in world.node.hellos}


# --- SEMANTICS 6


def test_6_a_node_that_has_seen_more_makes_a_new_incarnation_loudly(
    logged: list[LogEvent],
) -> None:
    world = ClientWorld()
    world.node.answering = False
    open_one = world.client.send("a", b"open")
    world.settle()
    old = world.node.hellos[-1].incarnation
    world.node.inboxes[old].marks.take(0, 100)
    world.node.cut()
    world.node.answering = True
    world.advance(2.0)
    new = world.node.hellos[-1].incarnation
    assert new != old
    assert now(open_one).sequence == 1
    assert (new, b"open") == (world.node.stored[-1].incarnation, world.node.stored[-1].body)
    assert any("has seen sequence 100, this log's highest is 1" in e for e in errors_logged(logged))


def test_6_a_node_that_holds_other_content_makes_a_new_incarnation(
    logged: list[LogEvent],
) -> None:
    world = ClientWorld()
    world.node.answering = False
    open_one = world.client.send("a", b"open")
    world.settle()
    old = world.node.hellos[-1].incarnation
    world.node.inboxes[old].marks = Marks(last=(1, 1, 12345))
    world.node.cut()
    world.node.answering = True
    world.advance(2.0)
    assert world.node.hellos[-1].incarnation != old
    assert now(open_one).sequence == 1
    assert errors_logged(logged)


def test_4_content_changed_as_an_error_makes_a_new_incarnation(logged: list[LogEvent]) -> None:
    world = ClientWorld()
    world.node.answering = False
    old = world.node.hellos[-1].incarnation
    open_one = world.client.send("a", b"open")
    world.settle()
    inbox = world.node.inboxes[old] = Inbox()
    inbox.marks._prints[(1, 1)] = 12345  # what it took before under this sequence was another run
    world.node.cut()
    world.node.answering = True
    world.advance(3.0)
    assert world.node.hellos[-1].incarnation != old
    assert now(open_one).sequence == 1
    assert errors_logged(logged)


def test_6_a_node_that_forgot_is_reported_and_gets_what_is_still_held(
    logged: list[LogEvent],
) -> None:
    world = ClientWorld()
    kept = [world.client.send("a", b"x") for _ in range(5)]
    world.settle()
    waiting = now(kept[0]).acknowledged()
    world.node.answering = False
    held = world.client.send("a", b"held")
    world.settle()
    world.node.forget()
    world.node.cut()
    world.node.answering = True
    world.advance(1.0)
    assert ["'node' has forgotten sequences 1 to 5, which it had acknowledged"] == errors_logged(
        logged
    )
    assert now(held).sequence == 6
    assert "forgotten" in str(error_of(waiting, Exception))
    world.node.cut()
    world.advance(1.0)
    assert 1 == len(errors_logged(logged))


def test_5_a_node_that_forgot_one_who_was_long_away_has_lost_nothing(
    logged: list[LogEvent],
) -> None:
    world = ClientWorld()
    receipt = now(world.settled(world.client.send("a", b"x")))
    waiting = receipt.acknowledged()
    world.node.is_up = False
    world.node.cut()
    world.advance(2 * 3600.0)
    world.node.forget_incarnations()
    world.node.is_up = True
    world.advance(1.0)
    assert world.client.connected
    assert [] == errors_logged(logged)
    assert world.client.why().error is None
    # It was settled, and how is not known there any more.
    assert "forgotten" in str(error_of(waiting, Ambiguous))
    assert now(world.settled(world.client.send("a", b"y"))).sequence == 2
    world.node.cut()
    world.advance(1.0)
    assert [] == errors_logged(logged)


@pytest.mark.parametrize("change", ["another log", "a moment ago"])
def test_6_a_node_that_knows_nothing_has_lost_what_it_would_not_have_forgotten(
    change: str, logged: list[LogEvent]
) -> None:
    world = ClientWorld()
    now(world.settled(world.client.send("a", b"x")))
    if change == "another log":
        world.node.is_up = False
        world.node.cut()
        world.advance(2 * 3600.0)
        world.node.forget()
        world.node.is_up = True
    else:
        world.advance(60.0)
        world.node.cut()
        world.node.forget_incarnations()
    world.advance(1.0)
    assert world.client.connected
    assert ["'node' has forgotten sequences 1 to 1, which it had acknowledged"] == errors_logged(
        logged
    )


def test_6_what_was_refused_is_not_taken_for_forgotten(logged: list[LogEvent]) -> None:
    world = ClientWorld()
    world.node.refusal = lambda t: (Action.REFUSED, 0, "no") if t.subject == "b" else None
    refused = [world.client.send("b", b"x") for _ in range(3)]
    world.client.send("a", b"y")
    world.settle()
    for one in refused:
        error_of(one, Refused)
    world.node.cut()
    world.advance(1.0)
    assert world.client.connected
    assert [] == errors_logged(logged)


# --- the end


def test_close_waits_for_the_answers_and_says_bye() -> None:
    world = ClientWorld()
    world.node.answering = False
    sent = world.client.send("a", b"1")
    closed = world.client.close()
    world.settle()
    assert not closed.called
    error_of(world.client.send("a", b"2"), ClientClosed)
    error_of(world.client.send_many("a", [b"2"]), ClientClosed)
    error_of(world.client.request("a", b"2"), ClientClosed)
    world.node.answer()
    world.settle()
    assert now(sent).position
    assert now(closed) is None
    assert now(world.client.close()) is None
    assert [] == world.node.connections
    assert [] == world.clock.getDelayedCalls()


def test_5_one_that_has_heard_all_answers_ends_its_incarnation() -> None:
    world = ClientWorld()
    sent = world.client.send("a", b"1")
    world.settle()
    assert now(sent).position
    world.client.close()
    world.settle()
    assert world.node.byes == [BYE_SETTLED]


def test_5_one_that_has_not_heard_an_answer_does_not_end_its_incarnation() -> None:
    world = ClientWorld(limits=Limits(stop_timeout=4))
    world.node.answering = False
    error = world.client.send("a", b"1")
    world.client.close()
    world.advance(3.0)
    error_of(error, ClientClosed)
    assert world.node.byes == [BYE_CLOSING]


def test_5_one_that_is_replaced_does_not_end_the_others_incarnation() -> None:
    world = ClientWorld()
    sent = world.client.send("a", b"1")
    world.settle()
    assert now(sent).position
    world.node.connection.bye(BYE_REPLACED, "replaced")
    world.settle()
    assert world.node.byes == [BYE_CLOSING]


def test_close_has_a_deadline_and_what_is_unanswered_is_ambiguous() -> None:
    world = ClientWorld(limits=Limits(stop_timeout=4))
    world.node.answering = False
    sent = world.client.send("a", b"1")
    many = world.client.send_many("a", [b"1"])
    closed = world.client.close()
    world.advance(3.0)
    assert now(closed) is None
    error_of(sent, ClientClosed)
    error_of(many, ClientClosed)
    world.settle()
    assert [] == [call for call in world.clock.getDelayedCalls() if call.active()]


def test_a_connection_that_does_not_end_is_aborted_in_time() -> None:
    world = ClientWorld(limits=Limits(stop_timeout=4))
    channel = world.client._connector.channel
    assert isinstance(channel, Pipe)
    channel.close = lambda: None  # type: ignore[method-assign]  # as a peer that never reads makes it
    closed = world.client.close()
    world.advance(1.9)
    assert not closed.called
    world.advance(0.2)
    assert now(closed) is None
    assert channel.is_down


def test_close_without_a_connection_does_not_wait() -> None:
    world = ClientWorld(start=False)
    sent = world.client.send("a", b"1")
    closed = world.client.close()
    world.settle()
    assert now(closed) is None
    error_of(sent, ClientClosed)
    error_of(world.client.when_connected(), ClientClosed)


def test_close_from_inside_an_answer_leaves_every_answer_told() -> None:
    world = ClientWorld()
    sent = [world.client.send("a", b"x") for _ in range(3)]
    closed: list[Deferred[None]] = []

    def close(receipt: Receipt) -> Receipt:
        closed.append(world.client.close())
        return receipt

    sent[0].addCallback(close)
    world.settle()
    assert [1, 2, 3] == [now(one).sequence for one in sent]
    assert now(closed[0]) is None


def test_a_client_is_a_service_for_those_who_want_one() -> None:
    world = ClientWorld(start=False)
    service = world.client.as_service()
    service.startService()
    world.settle()
    assert world.client.connected
    stopped = service.stopService()
    world.settle()
    assert isinstance(stopped, Deferred)
    assert now(stopped) is None


@pytest.mark.parametrize(("says_bye", "at_once"), [(True, 8), (False, 2)])
def test_14_a_node_that_stops_does_not_make_flights_smaller(says_bye: bool, at_once: int) -> None:
    world = ClientWorld()
    world.node.answering = False
    world.client.send_many("a", [b"1"] * 8)
    world.settle()
    (sent,) = world.node.transfers
    world.node.transfers.clear()
    if says_bye:
        world.node.connection.bye(BYE_CLOSING, "the node stops")
        world.settle()
    world.node.forget()
    world.node.cut()
    world.advance(1.0)
    assert len(decode_messages(sent.messages)) == 8
    assert len(decode_messages(world.node.transfers[0].messages)) == at_once


def test_one_that_is_replaced_does_not_come_back() -> None:
    world = ClientWorld()
    world.node.answering = False
    sent = world.client.send("a", b"1")
    world.settle()
    world.node.connection.bye(1, "replaced")
    world.advance(10.0)
    assert "this name and incarnation" in str(error_of(sent, ClientClosed))
    assert 1 == len(world.node.hellos)


def test_why_tells_error_attempts_and_next_try() -> None:
    world = ClientWorld()
    assert str(world.client.why()) == "connected, 0 unanswered"
    world.node.is_up = False
    world.node.cut()
    world.settle()
    why = world.client.why()
    assert (False, "connection lost", 1) == (why.connected, why.error, why.attempts)
    assert why.next_try is not None
    assert 0 < why.next_try <= 0.5
    assert "not connected (connection lost), 1 failures in a row, next try in" in str(why)


def test_the_backlog_is_the_nodes_own_class() -> None:
    assert isinstance(ClientWorld().client._hop.backlog, Backlog)


def test_names_are_checked() -> None:
    with pytest.raises(BadName):
        Client(
            reactor=Clock(),
            name="no/slash",
            connector_factory=lambda make_user: pytest.fail("dialled"),
            limits=Limits(),
            new_incarnation=lambda: "i",
        )


@pytest.mark.parametrize("name", ["window", "held"])
@pytest.mark.parametrize("value", [(0, 0), (-5, 5), (1, 0), ("a", 1), 5, (1,), (1.5, 2), (True, 2)])
def test_a_bound_that_is_none_is_refused_by_its_name(name: str, value: Any) -> None:
    bound: Any = {name: value}
    with pytest.raises(BadValue, match=rf"^{name} must be \(messages, bytes\)") as caught:
        ClientWorld(**bound)
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "options", "what"),
    [
        ((5, b"1"), {}, "subject"),
        (("a", b"1"), {"id": 5}, "id"),
    ],
)
def test_what_is_no_text_is_named(arguments: Any, options: Any, what: str) -> None:
    error = error_of(ClientWorld().client.send(*arguments, **options), TypeError)
    assert str(error) == f"{what} is a str, not int"


def test_a_new_incarnation_that_raises_once_is_tried_again(logged: list[LogEvent]) -> None:
    world = ClientWorld()
    given = world._incarnations

    def fails() -> Generator[str, None, None]:
        raise OSError("no entropy for a moment")
        yield ""

    world._incarnations = fails()
    world.node.connection.send(ErrorFrame(ContentChanged.wire_code, "other"))
    world.settle()
    assert any("no entropy" in error for error in errors_logged(logged))
    world._incarnations = given
    world.advance(100.0)
    assert world.client.connected
    assert "incarnation-2" == world.node.hellos[-1].incarnation


def released() -> memoryview:
    view = memoryview(b"abc")
    view.release()
    return view


class Formless:
    def __len__(self) -> int:
        raise RuntimeError("asked")


WRONG: dict[str, tuple[type[Exception], Callable[[Any], Deferred[Any]]]] = {
    "a list as subject": (TypeError, lambda c: c.send(["a"], b"x")),
    "a dict as subject": (TypeError, lambda c: c.send({}, b"x")),
    "pairs as headers": (Refused, lambda c: c.send("a", b"x", headers=[("a", "b")])),
    "text as headers": (Refused, lambda c: c.send("a", b"x", headers="a")),
    "a number as name": (Refused, lambda c: c.send("a", "x", headers={5: "x"})),
    "a number as type": (Refused, lambda c: c.send("a", b"x", headers={"content-type": 5})),
    "a number as the type of text": (
        Refused,
        lambda c: c.send("a", "x", headers={"content-type": 5}),
    ),
    "a view that was released": (ValueError, lambda c: c.send("a", released())),
    "such a view among many": (ValueError, lambda c: c.send_many("a", [released()])),
    "bodies that fail": (RuntimeError, lambda c: c.send_many("a", Formless())),
    "pairs as headers of many": (Refused, lambda c: c.send_many("a", [b"x"], headers=[("a", "b")])),
    "text as timeout": (TypeError, lambda c: c.request("$node.info", {}, timeout="5")),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_arguments_fail_the_deferred_and_raise_nothing(wrong: str) -> None:
    world = ClientWorld()
    kind, call = WRONG[wrong]
    error_of(call(world.client), kind)
    assert world.client.unanswered == 0
    sent = world.client.send("a", b"after it")
    world.settle()
    assert now(sent).sequence == 1
