"""Why a message is where it is: each cause, and what would unblock it (DELIVERY 56)."""

from __future__ import annotations

from typing import Any, cast

import msgspec
import pytest
from msgspec import Raw
from twisted.internet.task import Clock

from msgservice.core.backlog import Backlog
from msgservice.core.frames import Ack, Note, Request, Transfer
from msgservice.core.runs import Run
from msgservice.limits import Rate
from msgservice.log.memory import MemoryLog
from msgservice.message import Action, WireMessage, encode_messages
from msgservice.node.why import KINDS
from tests.kit.limits import Limits
from tests.kit.nodes import FailingLog, NodeWorld, ScriptedPeer

ORDERS = {"subjects": ["orders.>"]}
TOLD: set[str] = set()  # kinds, over all tests of this file


class World(NodeWorld):
    """A node with a receiver, a producer and an operator."""

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        self.billing = self.peer("billing", receive=ORDERS)
        self.shop, self.operator = self.peer("shop"), self.peer("operator")
        self._sequence = 0

    def send(self, *bodies: bytes, subject: str = "orders.new", **more: Any) -> None:
        self.shop.transfer(self._sequence + 1, subject, list(bodies), **more)
        self._sequence += len(bodies)
        self.settle()

    def causes(self, position: int, asks: ScriptedPeer | None = None) -> list[dict[str, Any]]:
        ok, page = (asks or self.operator).request("$node.why", {"id": f"log:{position}"})
        assert ok, page
        TOLD.update(one["kind"] for one in page["causes"])
        return list(page["causes"])

    def why(self, position: int) -> dict[str, Any]:
        (one,) = self.causes(position)
        return one

    def ask(self, operation: str, **arguments: Any) -> Any:
        ok, answer = self.operator.request(f"$node.{operation}", arguments)
        assert ok, answer
        self.settle()
        return answer

    def first(self) -> int:
        """The position of the first message that the receiver was sent and has not answered."""
        return self.billing.take(Transfer)[0].sequence


def test_56_what_was_sent_waits_for_its_answer_and_is_acknowledged_then() -> None:
    world = World()
    world.send(b"one")
    (transfer,) = world.billing.take(Transfer)
    at = transfer.sequence
    told = world.why(at)
    assert ("billing", "sent", "in_flight") == (told["receiver"], told["status"], told["kind"])
    assert told["sentence"].startswith("It was sent to billing, which has not answered yet")
    world.billing.ack(transfer)
    world.settle(1)
    told = world.why(at)
    assert ("acknowledged", "acknowledged") == (told["status"], told["kind"])
    assert told["sentence"] == "billing has acknowledged it."


def test_56_what_a_receiver_says_that_it_tries_by_itself_is_said_while_it_has_it() -> None:
    world = World()
    world.send(b"one")
    at = world.first()
    world.billing.connection.send(Note(at, 3, "no bank\nTraceback"))
    world.settle()
    told = world.why(at)
    assert ("sent", "in_flight") == (told["status"], told["kind"])
    assert told["sentence"].endswith("which has tried it 3 times by itself: no bank.")


def test_56_a_sentence_has_the_error_of_a_handler_and_not_its_traceback() -> None:
    world = World()
    world.send(b"one")
    at = world.first()
    world.send(b"two")
    world.billing.nack(at, at, Action.RETRY, 60_000, "no bank\nTraceback\n  File")
    world.settle()
    told = world.why(at)
    assert "billing has failed with it once: no bank." in told["sentence"]
    assert "Traceback" not in told["sentence"]
    assert told["reason"] == "no bank\nTraceback\n  File"


class Link:
    """The connector of a receiver that the node dials, as a test has it."""

    last_error: str | None = None
    next_attempt_in: float | None = None
    unwell_since: float | None = None
    forbidden = ""


def dialled(world: World, address: str) -> Link:
    """Let the receiver be one that the node dials at this address."""
    (row,) = world.node.parts.directory
    row.address = address
    link = Link()
    world.node.parts.connections.links[row.number] = cast("Any", link)
    return link


@pytest.mark.parametrize("address", ["https://shop.example/hook", "tcp:shop.example:7420"])
def test_56_of_one_that_is_reached_and_takes_nothing_its_last_error_is_said(address: str) -> None:
    world = World()
    world.send(b"one")
    link = dialled(world, address)
    begin = world.clock.seconds()
    link.last_error, link.next_attempt_in, link.unwell_since = "it says 503", 4.0, begin
    world.settle(30)
    at = world.first()
    told = world.why(at)
    assert ("sent", "refusing") == (told["status"], told["kind"])
    assert told["sentence"] == "billing takes nothing now: it says 503."
    assert address in told["help"]
    now = int(world.clock.seconds() * 1000)
    assert now + 4000 == pytest.approx(told["next_try_at"], abs=5)
    assert now - told["since"] == pytest.approx((world.clock.seconds() - begin) * 1000, abs=5)
    link.forbidden = "networks of [webhook]"
    assert "to networks of [webhook]" in world.why(at)["help"]
    link.forbidden = ""
    how = world.ask("receivers.why", name="billing")
    assert ("failing", told["since"]) == (how["health"], how["health_since"])
    (trouble,) = how["troubles"]
    assert (trouble["since"], "it says 503" in trouble["sentence"]) == (told["since"], True)


def test_56_who_may_not_be_dialled_is_said_to_need_the_option_that_allows_it() -> None:
    world = World()
    world.send(b"one")
    at = world.first()
    link = dialled(world, "tcp:10.0.0.1:7420")
    link.last_error, link.forbidden = "10.0.0.1 is none", "networks of [node]"
    world.billing.connection.abort()
    world.settle()
    told = world.why(at)
    assert ("away", True) == (told["kind"], "10.0.0.1 is none" in told["sentence"])
    assert "to networks of [node]" in told["help"]
    (trouble,) = world.ask("receivers.why", name="billing")["troubles"]
    assert told["help"] == trouble["help"]
    (row,) = world.node.parts.directory
    del world.node.parts.connections.links[row.number]
    told = world.why(at)
    assert told["sentence"].startswith("billing is not reached at tcp:10.0.0.1:7420")
    assert "It is not dialled" in told["help"]


def test_56_who_is_away_is_named_with_since_when() -> None:
    world = World()
    world.send(b"one")
    at = world.first()
    world.billing.connection.abort()
    world.settle()
    gone = world.clock.seconds()
    world.settle(30)
    told = world.why(at)
    assert ("away", "queued") == (told["kind"], told["status"])
    assert told["sentence"].startswith("billing is away")
    assert told["since"] == pytest.approx(
        int(world.clock.seconds() * 1000) - (world.clock.seconds() - gone) * 1000, abs=5
    )
    assert told["command"] == "msgservice peek billing"
    how = world.ask("receivers.why", name="billing")
    assert ("away", "away") == (how["health"], how["troubles"][0]["kind"])
    assert how["sentence"] == how["troubles"][0]["sentence"]


def test_56_the_last_error_of_who_is_away_is_called_that() -> None:
    world = World()
    world.send(b"one")
    at = world.first()
    world.billing.connection.abort()
    world.settle()
    said = "billing is away (its last error: aborted by the other side)"
    assert world.why(at)["sentence"].startswith(said)


def test_56_who_is_paused_or_going_gets_nothing() -> None:
    world = World()
    world.ask("receivers.pause", name="billing")
    world.send(b"one")
    (found,) = world.ask("peek", receiver="billing")["messages"]
    told = world.why(found["position"])
    assert ("paused", "msgservice receivers resume billing") == (told["kind"], told["command"])
    how = world.ask("receivers.why", name="billing")
    assert "paused" == how["health"]
    world.ask("receivers.resume", name="billing")
    assert "well" not in how


def test_56_a_retry_says_how_often_why_and_when_and_what_lies_behind_it_waits() -> None:
    world = World()
    world.send(b"one", b"two")
    at = world.first()
    world.billing.nack(at, at, Action.RETRY, 60_000, "no database")
    world.settle()
    told = world.why(at)
    assert ("retrying", 1, "no database") == (told["kind"], told["attempts"], told["reason"])
    assert told["sentence"] == "billing has failed with it once: no database."
    assert (
        int(world.clock.seconds() * 1000)
        < told["next_try_at"]
        <= int(world.clock.seconds() * 1000) + 60_000
    )
    behind = world.why(at + 1)
    assert ("behind", {"position": at, "subject": "orders.new"}) == (
        behind["kind"],
        behind["behind"],
    )
    assert behind["sentence"].startswith(f"It waits behind the message log:{at} of its lane")
    assert behind["command"] == f"msgservice why log:{at}"
    world.send(b"three")  # not loaded, or queued behind it: the same
    assert "behind" == world.why(at + 65536)["kind"]
    world.send(b"other", subject="orders.old")
    assert "in_flight" == world.why(at + 2 * 65536)["kind"]


def test_56_not_now_is_no_attempt() -> None:
    world = World()
    world.send(b"one")
    at = world.first()
    world.billing.nack(at, at, Action.LATER, 5_000, "no room here")
    world.settle()
    told = world.why(at)
    assert ("refusing", 0) == (told["kind"], told["attempts"])
    assert told["sentence"] == "billing takes it later, it says: no room here."


def test_56_a_dead_letter_says_what_it_died_of() -> None:
    world = World()
    world.send(b"one")
    at = world.first()
    world.billing.nack(at, at, Action.DEAD, 0, "no such account")
    world.settle(1)
    told = world.why(at)
    assert ("dead", "dead") == (told["kind"], told["status"])
    assert told["sentence"].endswith("it is a dead letter: no such account.")
    assert told["command"] == f"msgservice dead show billing log:{at}"
    assert world.ask("receivers.why", name="billing")["troubles"][0]["kind"] == "dead_letters"


def test_56_a_message_alone_in_flight_is_being_probed() -> None:
    world = World()
    world.send(b"one")
    at = world.first()
    for _ in range(3):
        world.billing.connection.abort()
        world.settle(1)
        world.billing = world.peer("billing", receive=ORDERS)
        world.settle(1)
        if world.why(at)["kind"] == "probing":
            break
    told = world.why(at)
    assert "probing" == told["kind"]
    assert "alone" in told["sentence"]


def test_56_what_is_too_large_for_a_connection_says_so() -> None:
    world = World()
    world.billing.connection.abort()
    world.settle()
    world.send(b"x" * 20_000)
    world.send(b"behind it")
    (found, behind) = world.ask("peek", receiver="billing")["messages"]
    world.billing = world.peer("billing", receive=ORDERS, max_batch=10_000)
    world.settle(1)
    told = world.why(found["position"])
    assert "too_large" == told["kind"], told
    assert "billing takes 10,000 at once" in told["sentence"]
    assert "behind" == world.why(behind["position"])["kind"]


def test_56_each_that_is_too_large_says_so_not_only_the_last() -> None:
    world = World()
    world.billing.connection.abort()
    world.settle()
    for subject in ("orders.a", "orders.b"):
        world.send(b"x" * 20_000, subject=subject)
    found = world.ask("peek", receiver="billing")["messages"]
    world.billing = world.peer("billing", receive=ORDERS, max_batch=10_000)
    world.settle(1)
    assert ["too_large"] * 2 == [world.why(one["position"])["kind"] for one in found]


def test_56_a_look_is_not_at_all_that_waits_for_another_attempt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World()
    for lane in range(20):
        world.send(b"one", b"two", subject=f"orders.{lane}")
    sequences = [one.sequence for one in world.billing.take(Transfer)]
    for sequence in sequences:
        world.billing.nack(sequence, sequence, int(Action.RETRY), 60_000, "not now")
    world.settle()

    def refused(backlog: Backlog) -> list[Run]:
        raise AssertionError("all of them were looked at")

    monkeypatch.setattr(Backlog, "waiting_runs", property(refused))
    for sequence in sequences:
        assert "retrying" == world.why(sequence)["kind"]
        told = world.why(sequence + 1)
        assert ("behind", sequence) == (told["kind"], told["behind"]["position"])


def test_56_what_waits_for_the_rate_of_its_receiver_says_so() -> None:
    world = World(rates={"billing": Rate(messages=1)})
    world.send(*[b"x"] * 20)
    at = world.first()
    told = world.why(at + 19)
    assert "in_line" == told["kind"]
    assert "its rate allows" in told["sentence"]


def test_56_what_is_in_line_says_behind_what() -> None:
    world = World(limits=Limits(window_messages=1))
    world.send(b"one", subject="orders.a")
    world.send(b"two", subject="orders.b")
    at = world.first()
    told = world.why(at + 65536)
    assert "in_line" == told["kind"], told
    assert "It is in line: billing is connected" in told["sentence"]


def test_56_what_was_purged_or_is_for_nobody_or_whose_receiver_is_gone() -> None:
    world = World()
    world.send(b"one", subject="nobody.listens")
    told = world.why(65536)
    assert ("", "nobody") == (told["receiver"], told["kind"])
    assert "nobody.listens" in told["sentence"]
    world.ask("receivers.pause", name="billing")
    world.send(b"two")
    world.send(b"three")
    world.ask("receivers.purge", name="billing", end=2 * 65536)
    world.settle(1)
    assert "cancelled" == world.why(2 * 65536)["kind"]
    confirm = world.ask("receivers.remove", name="billing")["queued"]
    world.ask("receivers.remove", name="billing", confirm=confirm)
    world.settle(1)
    assert "removed" == world.why(3 * 65536)["kind"]


def test_56_what_expires_says_that_its_time_was_over() -> None:
    world = World()
    world.ask("receivers.pause", name="billing")
    world.send(b"one", ttl=1000)
    (found,) = world.ask("peek", receiver="billing")["messages"]
    world.settle(120)
    told = world.why(found["position"])
    assert ("expired", "expired") == (told["kind"], told["status"])


def test_56_who_was_suspended_then_was_left_out() -> None:
    world = World()
    world.ask(
        "receivers.add", name="slow", subjects=["orders.>"], on_full="suspend", backlog_bytes=3000
    )
    for _ in range(6):
        world.send(b"x" * 1500)
        world.settle(1)
    ok, page = world.operator.request("$node.why", {"id": f"log:{6 * 65536}"})
    assert ok, page
    TOLD.update(one["kind"] for one in page["causes"])
    (left_out,) = [one for one in page["causes"] if one["kind"] == "left_out"]
    assert ("slow", "msgservice rewind slow --suspended") == (
        left_out["receiver"],
        left_out["command"],
    )


def test_56_what_waits_until_it_is_due_says_until_when() -> None:
    world = World()
    world.shop.transfer(1, "orders.new", [b"later"], delay=60_000)
    world.settle()
    ok, page = world.operator.request("$node.delayed.list", {})
    assert ok, page
    (row,) = page["delayed"]
    ok, page = world.operator.request("$node.why", {"id": row["sender"]})
    assert ok, page
    (told,) = page["causes"]
    TOLD.add(told["kind"])
    assert ("delayed", row["due"]) == (told["kind"], told["next_try_at"])
    assert told["command"] == f"msgservice delayed cancel {row['sender']}"


def test_56_of_who_is_well_there_is_no_trouble() -> None:
    world = World()
    how = world.ask("receivers.why", name="billing")
    assert ("up", [], "billing is connected, and nothing waits for it.") == (
        how["health"],
        how["troubles"],
        how["sentence"],
    )
    world.send(b"one")
    how = world.ask("receivers.why", name="billing")
    assert how["sentence"] == (
        f"billing is connected, and gets what waits for it: 1 message waits. The oldest is"
        f" log:{world.first()}."
    )
    ok, said = world.operator.request("$node.receivers.why", {"name": "nobody"})
    assert not ok
    assert "nobody" in said
    ok, said = world.operator.request("$node.why", {"id": "log:99"})
    assert not ok


def failing() -> tuple[World, FailingLog]:
    clock, limits = Clock(), Limits(max_attempts=1)
    log = FailingLog(MemoryLog(reactor=clock, limits=limits))
    return World(clock=clock, log=log, limits=limits), log


def test_56_behind_a_dead_letter_that_is_not_stored_yet() -> None:
    world, log = failing()
    world.send(b"one", b"two")
    at = world.first()
    log.hold = True
    world.billing.nack(at, at, Action.RETRY, 0, "no such account")  # the last attempt it had
    world.settle(0.5)
    told = world.why(at + 1)
    assert "letter" == told["kind"], told
    log.release()
    world.settle(1)
    assert "in_flight" == world.why(at + 1)["kind"]


def test_56_who_is_being_removed_gets_nothing_more() -> None:
    world, log = failing()
    world.send(b"one")
    at = world.first()
    log.hold = True
    request = {"name": "billing", "confirm": 1}
    encoded = msgspec.Raw(encode_messages([WireMessage(msgspec.json.encode(request))]))
    world.peer("other").connection.send(Request(1, "$node.receivers.remove", encoded))
    world.settle(0.1)
    assert "removing" == world.why(at)["kind"]
    log.release()
    world.settle(1)
    assert "removed" == world.why(at)["kind"]


def test_56_answers_of_settled_positions_need_no_receiver() -> None:
    world = World()
    world.send(b"one")
    at = world.first()
    world.billing.connection.send(Ack([(at, at)]))
    world.settle(1)
    ok, page = world.operator.request("$node.why", {"id": f"log:{at}", "after": 99})
    assert ok, page
    assert (page["causes"], page["next"]) == ([], None)


def test_54_of_what_has_left_the_log_and_was_for_nobody_that_is_said() -> None:
    world = World(limits=Limits(keep_seconds=0.0, keep_bytes=0))
    message = WireMessage(b"x", id="mine")
    world.shop.connection.send(Transfer(1, "elsewhere", Raw(encode_messages([message]))))
    for _ in range(3):
        world.settle()
        world.clock.advance(2)
    ok, page = world.operator.request("$node.why", {"id": "mine"})
    assert ok, page
    TOLD.update(one["kind"] for one in page["causes"])
    assert ["left"] == [one["kind"] for one in page["causes"]]
    assert page["removed"]


def test_56_every_kind_is_told_by_a_test_of_this_file() -> None:
    """It counts what the tests before it were told: run with the whole file."""
    assert set(KINDS) - {"unsaid"} == TOLD  # that one is said of chains: `test_chains`
