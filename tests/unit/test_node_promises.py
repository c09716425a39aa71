"""Promises at a node: decided once, stored, then told, and never against the statuses (55)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import pytest
from twisted.internet.defer import Deferred

from msgservice.core.frames import Ack, Nack, Promised, StatusFrame, Transfer
from msgservice.errors import LimitReached, TooFewReceivers
from msgservice.message import Action, PromiseOption, Status, WireMessage, encode_messages
from msgservice.node.commits import Commits
from msgservice.records import Group
from tests.kit.inline import by_append
from tests.kit.limits import Limits
from tests.kit.nodes import FailingLog, NodeWorld, ScriptedPeer

ORDERS = {"subjects": ["orders.>"]}
PROMISE = "$promise"
KEPT = (PROMISE, Status.ACKNOWLEDGED)
LATE = (PROMISE, Status.EXPIRED)
IN_VAIN = (PROMISE, Status.DEAD)


class World(NodeWorld):
    """A node with three receivers, and a producer that wants to know."""

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        self.receivers = {name: self.peer(name, receive=ORDERS) for name in ("a", "b", "c")}
        self.shop = self.peer("shop", status_from=1)
        self.sent = 0

    def send(
        self,
        need: int = 1,
        within: int = 10_000,
        *bodies: bytes,
        cancels: bool = False,
        peer: ScriptedPeer | None = None,
        **fields: Any,
    ) -> None:
        bodies = bodies or (b"one",)
        messages = encode_messages([WireMessage(body) for body in bodies])
        promise = PromiseOption(need, within, cancels)
        frame = Promised(
            self.sent + 1, "orders.new", msgspec.Raw(messages), promise=promise, **fields
        )
        self.sent += len(bodies)
        (peer or self.shop).connection.send(frame)
        self.settle()

    def answer(self, name: str, first: int = 0, last: int = 0) -> None:
        """A receiver acknowledges all that it was sent; or positions, of the first batch."""
        peer = self.receivers[name]
        if first:
            peer.connection.send(Ack([((1 << 16) + first - 1, (1 << 16) + last - 1)]))
        else:
            for transfer in peer.take(Transfer):
                peer.ack(transfer)
        self.settle()

    def gone(self, name: str) -> None:
        self.receivers[name].connection.abort()
        self.settle()

    def decided(self) -> dict[tuple[str, int], list[tuple[int, int]]]:
        """What was told of promises, taken out."""
        told: dict[tuple[str, int], list[tuple[int, int]]] = {}
        for frame in self.shop.take(StatusFrame):
            if frame.receiver == PROMISE:
                told.setdefault((frame.receiver, frame.state), []).extend(frame.ranges)
        return told

    def again(self) -> None:
        """The node is killed and starts again; nobody is connected."""
        for peer in (*self.receivers.values(), self.shop):
            peer.connection.abort()
        stopped: list[object] = []
        self.node.stopService().addCallback(stopped.append)
        self.settle(1)
        assert stopped
        self.start()
        self.shop = self.peer("shop", status_from=1)

    def back(self, name: str) -> None:
        self.receivers[name] = self.peer(name, receive=ORDERS)


@contextmanager
def capture_groups(world: World) -> Iterator[list[Group]]:
    groups: list[Group] = []
    append = world.log.append

    def noting(group: Group) -> Deferred[Any]:
        groups.append(group)
        return append(group)

    world.log.append = noting  # type: ignore[method-assign]  # to see what is stored
    by_append(world.log)
    yield groups
    world.log.append = append  # type: ignore[method-assign]  # as it was


def refusal(peer: ScriptedPeer) -> Nack:
    (nack,) = peer.take(Nack)
    return nack


def test_55_a_promise_is_kept_as_soon_as_enough_have_acknowledged() -> None:
    world = World()
    world.send(2)
    world.answer("a")
    assert {} == world.decided()
    world.answer("c")
    assert {KEPT: [(1, 1)]} == world.decided()
    world.settle(30)
    world.answer("b")
    assert {} == world.decided()  # what is acknowledged later changes nothing
    assert (0, 1, 0) == counts(world)
    assert 0 == world.node.parts.promises.count


@pytest.mark.parametrize("cancels", [False, True])
def test_55_a_promise_is_broken_when_its_time_is_over_and_stays_so(cancels: bool) -> None:
    world = World()
    world.send(2, 10_000, cancels=cancels)
    world.answer("a")
    world.settle(9.9)
    assert {} == world.decided()
    world.settle(0.2)
    assert {LATE: [(1, 1)]} == world.decided()
    world.answer("b")
    world.answer("c")
    world.settle(20)
    statuses = world.shop.statuses()
    assert {("b", Status.ACKNOWLEDGED): [(1, 1)], ("c", Status.ACKNOWLEDGED): [(1, 1)]} == statuses
    assert 0 == world.node.parts.promises.count


def test_55_each_message_of_a_run_has_a_promise_of_its_own() -> None:
    world = World()
    world.send(2, 10_000, b"1", b"2", b"3", b"4")
    world.answer("a", 1, 3)
    world.answer("b", 2, 4)
    assert {KEPT: [(2, 3)]} == world.decided()
    world.answer("c", 1, 1)
    assert {KEPT: [(1, 1)]} == world.decided()
    world.settle(10)
    assert {LATE: [(4, 4)]} == world.decided()
    assert 0 == world.node.parts.promises.count


def test_55_whole_and_part_that_are_settled_together_decide_of_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World()
    world.send(1, 10_000, b"1", b"2", b"3", b"4")
    promises = world.node.parts.promises
    with monkeypatch.context() as patched:
        patched.setattr(promises, "flush", lambda: None)
        world.answer("a", 1, 4)
        world.answer("b", 2, 3)
        assert {} == world.decided()
    promises.flush()
    world.settle()
    assert {KEPT: [(1, 4)]} == world.decided()


def test_55_what_is_decided_together_is_one_verdict() -> None:
    world = World()
    for _ in range(20):
        world.send(1)
    with capture_groups(world) as groups:
        world.answer("a", 1, 1)
        world.receivers["a"].connection.send(Ack([(2 << 16, 20 << 16)]))
        world.settle()
    verdicts = [one for group in groups for one in group.verdicts]
    assert [(1, 1), (2, 20)] == [(one.first, one.last) for one in verdicts]
    assert {KEPT: [(1, 1), (2, 20)]} == world.decided()


def test_55_all_is_as_many_as_it_is_for() -> None:
    world = World()
    world.send(0)
    world.answer("a")
    world.answer("b")
    assert {} == world.decided()
    world.answer("c")
    assert {KEPT: [(1, 1)]} == world.decided()


def test_55_a_promise_that_too_few_can_keep_is_broken_at_once() -> None:
    world = World()
    world.send(2)
    for name in ("a", "b"):
        (transfer,) = world.receivers[name].take(Transfer)
        world.receivers[name].nack(transfer.sequence, transfer.sequence, Action.DEAD, 0, "no")
        world.settle()
    assert {IN_VAIN: [(1, 1)]} == world.decided()
    world.answer("c")
    world.settle(20)
    assert {} == world.decided()


def test_55_a_broken_promise_cancels_what_is_surely_not_sent_and_is_told_behind_that() -> None:
    world = World()
    world.gone("c")
    world.send(2, cancels=True)
    world.answer("a")
    world.settle(11)
    told = [(frame.receiver, frame.state) for frame in world.shop.take(StatusFrame)]
    # b has it and has not answered: that is left to its answer.
    assert ("c", Status.CANCELLED) in told
    assert LATE == told[-1]
    assert told.index(("c", Status.CANCELLED)) < told.index(LATE)
    assert ("b", Status.CANCELLED) not in told
    world.back("c")
    world.settle(1)
    assert [] == world.receivers["c"].bodies()
    world.answer("b")
    assert {("b", Status.ACKNOWLEDGED): [(1, 1)]} == world.shop.statuses()


def test_55_without_cancel_a_broken_promise_is_delivered_all_the_same() -> None:
    world = World()
    world.gone("c")
    world.send(3)
    world.settle(11)
    assert {LATE: [(1, 1)]} == world.decided()
    world.back("c")
    world.settle(1)
    assert [b"one"] == world.receivers["c"].bodies()


def test_55_a_restart_goes_on_with_what_is_open_and_decides_by_what_is_stored() -> None:
    world = World()
    world.send(2)
    world.answer("a")
    world.send(1)
    world.answer("b")
    assert {KEPT: [(1, 2)]} == world.decided()
    world.send(2, 60_000)
    world.answer("a")
    world.again()
    assert {KEPT: [(1, 2)]} == world.decided()  # as it was told before
    assert 1 == world.node.parts.promises.count
    world.back("b")
    world.answer("b")
    assert {KEPT: [(3, 3)]} == world.decided()


def test_55_what_was_acknowledged_and_not_decided_at_the_end_is_decided_at_the_next_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World()
    world.send(1, 60_000, b"1", b"2")
    with monkeypatch.context() as patched:
        patched.setattr(Commits, "decide", lambda self, verdict: Deferred())
        world.answer("a", 1, 1)
        assert {} == world.decided()
    world.again()
    assert {KEPT: [(1, 1)]} == world.decided()
    world.settle(100)
    assert {LATE: [(2, 2)]} == world.decided()


def test_55_after_a_start_receivers_have_time_to_say_what_they_have() -> None:
    world = World()
    world.send(1, 10_000, cancels=True)
    world.again()
    world.settle(11)
    assert {} == world.decided()
    world.settle(world.limits.link_delay_max + world.limits.hello_timeout)
    assert {LATE: [(1, 1)]} == world.decided()
    assert {} == world.shop.statuses()  # what may have been handled is not cancelled


def test_55_what_is_on_its_way_to_the_disk_when_its_time_is_over_is_not_broken() -> None:
    world = World()
    world.send(1, 10_000, cancels=True)
    log = Deciding(world.log)
    world.node.parts.commits._log = log  # type: ignore[assignment]  # a double of it
    world.answer("a")
    world.settle(20)
    assert {} == world.decided()
    log.release()
    world.settle(1)
    assert {KEPT: [(1, 1)]} == world.decided()


class Deciding(FailingLog):
    """A log that holds back what decides about promises."""

    def append(self, group: Group) -> Deferred[Any]:
        self.hold = self.hold or bool(group.verdicts)
        return super().append(group)


class Undecided(FailingLog):
    """A log that stores all but what decides about promises."""

    refuses = True

    def append(self, group: Group) -> Deferred[Any]:
        self.fail_next = self.refuses and bool(group.verdicts)
        return super().append(group)


def test_55_a_verdict_whose_group_fails_is_stored_by_another() -> None:
    world = World()
    world.send(1)
    log = Undecided(world.log)
    world.node.parts.commits._log = log  # type: ignore[assignment]  # a double of it
    world.answer("a")
    world.settle(3)
    assert {} == world.decided()
    assert 1 == world.node.parts.promises.count
    log.refuses = False
    world.settle(3)
    assert {KEPT: [(1, 1)]} == world.decided()
    assert 0 == world.node.parts.promises.count


@pytest.mark.parametrize(
    ("promise", "fields", "said"),
    [
        ((4, 1000), {}, "the promise needs 4 receivers, the message is for 3"),
        ((2, 1000), {"to": ("a",)}, "the promise needs 2 receivers, the message is for 1"),
        ((1, 0), {}, "a promise within 0 ms, above 0 and at most 366 days allowed"),
        ((1, 2**40), {}, "above 0 and at most 366 days"),
        ((1, 1000), {"delay": 5}, "a promise and a delay together are not supported"),
        ((1, 1000), {"flags": 9}, "a promise beside retain-only"),
    ],
)
def test_55_what_cannot_be_promised_is_refused(
    promise: tuple[int, int], fields: dict[str, Any], said: str
) -> None:
    world = World()
    world.send(*promise, **fields)
    nack = refusal(world.shop)
    assert nack.action == Action.REFUSED
    assert said in nack.reason
    assert [] == world.receivers["a"].bodies()
    assert 0 == world.node.parts.promises.count


def test_55_all_of_nobody_is_refused_by_its_code() -> None:
    world = NodeWorld()
    shop = world.peer("shop", status_from=1)
    messages = msgspec.Raw(encode_messages([WireMessage(b"")]))
    shop.connection.send(Promised(1, "orders.new", messages, promise=PromiseOption(0, 10)))
    world.settle()
    nack = refusal(shop)
    assert (nack.code, nack.about) == (TooFewReceivers.refusal_code, "0/0")


def test_55_a_key_and_a_promise_together_are_refused() -> None:
    world = World()
    messages = msgspec.Raw(encode_messages([WireMessage(b"", None, None, "k")]))
    world.shop.connection.send(Promised(1, "orders.new", messages, promise=PromiseOption(1, 1000)))
    world.settle()
    assert "idempotency key together" in refusal(world.shop).reason


def test_55_beyond_the_limit_one_more_waits() -> None:
    world = World(limits=Limits(promises=1))
    world.send(1)
    world.send(1)
    nack = refusal(world.shop)
    assert (nack.action, nack.code) == (Action.LATER, LimitReached.refusal_code)
    assert "promises = 1" in nack.reason


def test_55_who_is_removed_before_its_group_starts_does_not_count() -> None:
    world = World()
    messages = msgspec.Raw(encode_messages([WireMessage(b"")]))
    Deferred.fromCoroutine(world.node.remove_receiver("c"))
    world.shop.connection.send(Promised(1, "orders.new", messages, promise=PromiseOption(3, 1000)))
    world.settle(1)
    assert TooFewReceivers.refusal_code == refusal(world.shop).code


def test_55_what_comes_again_is_promised_once() -> None:
    world = World()
    world.send(2)
    world.sent = 0
    other = world.peer("shop", status_from=1)
    world.send(2, peer=other)
    world.shop = other
    assert 1 == world.node.parts.promises.count
    world.answer("a")
    world.answer("b")
    assert {KEPT: [(1, 1)]} == world.decided()


def test_55_a_sender_without_a_promise_is_told_of_none() -> None:
    world = World()
    world.shop.transfer(1, "orders.new", [b"plain"])
    world.settle()
    assert not world.node.parts.promises._open
    for name in world.receivers:
        world.answer(name)
    assert {} == world.decided()
    assert not world.node.parts.promises._open


# --- what becomes of receivers while a promise is open


@pytest.mark.parametrize("how", ["removed", "purged", "undone", "expired"])
def test_55_who_can_acknowledge_it_no_more_breaks_a_promise_that_needs_it(how: str) -> None:
    world = World()
    world.gone("c")
    world.send(3, 60_000, ttl=5_000 if how == "expired" else None)
    world.answer("a")
    operator = world.peer("operator")
    if how == "removed":
        ok, _ = operator.request("$node.receivers.remove", {"name": "c", "confirm": 1})
        assert ok
    elif how == "purged":
        ok, _ = operator.request("$node.receivers.purge", {"name": "c"})
        assert ok
    elif how == "undone":
        ok, told = operator.request("$node.undo", {"id": "log:65536"})
        assert ok
        assert told["receivers"]["c"] == {"cancelled": 1}
    world.settle(6 if how == "expired" else 1)
    ((what, ranges),) = world.decided().items()
    assert (IN_VAIN, {(1, 1)}) == (what, {*ranges})  # once or more: the same may be told again
    world.answer("b")
    world.settle(60)
    assert {} == world.decided()
    assert (0, 0, 1) == counts(world)


def test_55_a_removal_is_looked_up_in_all_that_is_open_some_at_a_time() -> None:
    world = World()
    for number in range(500):
        world.shop.connection.send(
            Promised(
                number + 1,
                "orders.new",
                msgspec.Raw(encode_messages([WireMessage(b"")])),
                promise=PromiseOption(3, 60_000),
            )
        )
    world.settle()
    assert (500, 0, 0) == counts(world)
    ok, _ = world.peer("operator").request("$node.receivers.remove", {"name": "b", "confirm": 500})
    assert ok
    world.settle(1)
    assert (0, 0, 500) == counts(world)
    assert {(1, 500)} == {*world.decided()[IN_VAIN]}


def counts(world: World) -> tuple[int, int, int]:
    promises = world.node.parts.promises
    return promises.open, promises.kept, promises.broken


def test_55_a_receiver_that_is_removed_after_it_has_acknowledged_has_done_so() -> None:
    world = World()
    world.send(2, 60_000)
    world.answer("a")
    ok, _ = world.peer("operator").request("$node.receivers.remove", {"name": "a", "confirm": 0})
    assert ok
    world.settle(1)
    assert {} == world.decided()
    world.answer("b")
    assert {KEPT: [(1, 1)]} == world.decided()


def test_55_who_is_made_later_is_not_asked() -> None:
    world = World()
    world.send(0, 60_000)
    world.receivers["d"] = world.peer("d", receive=ORDERS)
    for name in ("a", "b", "c"):
        world.answer(name)
    assert {KEPT: [(1, 1)]} == world.decided()


def status(world: World, id_: str = "log:65536") -> dict[str, Any]:
    ok, told = world.peer("operator").request("$node.status", {"id": id_})
    assert ok, told
    found: dict[str, Any] = told
    return found


def test_55_what_became_of_it_is_said_as_long_as_its_states() -> None:
    world = World()
    world.send(2, 10_000)
    told = status(world)
    promise = told["promise"]
    at = promise["until"]
    assert {
        "need": 2,
        "until": at,
        "otherwise": "notify",
        "acknowledged": 0,
        "outcome": "open",
        "reason": "",
        "decided_at": None,
    } == promise
    assert 9_000 < at - told["stored_at"] < 11_000
    world.answer("a")
    assert 1 == status(world)["promise"]["acknowledged"]
    world.settle(11)
    broken = status(world)["promise"]
    assert ("broken", "the time of its promise was over", 1) == (
        broken["outcome"],
        broken["reason"],
        broken["acknowledged"],
    )
    world.answer("b")
    world.answer("c")
    assert broken | {"acknowledged": 3} == status(world)["promise"]
    for _ in range(200):  # until retention has taken the message
        world.settle(100)
        if (told := status(world, told["sender"]))["removed"]:
            break
    assert told["removed"]
    assert broken | {"acknowledged": 3} == told["promise"]
    ok, why = world.peer("operator").request("$node.why", {"id": told["sender"]})
    assert ok
    assert told["promise"] == why["promise"]


def test_55_a_page_of_few_receivers_counts_all(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    world.send(3, 10_000)
    world.answer("b")
    world.answer("c")
    asked = {"id": "log:65536", "limit": 1}
    ok, told = world.peer("operator").request("$node.status", asked)
    assert ok
    assert (["a"], 2) == ([*told["receivers"]], told["promise"]["acknowledged"])
    ok, rest = world.peer("operator").request("$node.status", asked | {"after": told["next"]})
    assert ok
    assert rest["promise"] is None, "it is in the first page"


# --- clocks


def test_39_55_a_clock_a_year_ahead_at_a_start_and_back_breaks_nothing_before_its_time() -> None:
    year = 365 * 24 * 3600.0
    world = World()
    world.settle(60)
    world.send(1, 600_000, cancels=True)
    world.again()
    world.clock.rightNow += year
    stopped: list[object] = []
    world.node.stopService().addCallback(stopped.append)
    world.settle(1)
    world.start()
    for _ in range(30):
        world.settle(1)
    assert world.node.parts.due.is_held
    assert 1 == world.node.parts.promises.count
    world.node.stopService()
    world.settle(1)
    world.clock.rightNow -= year
    world.start()
    world.settle(30)
    world.shop = world.peer("shop", status_from=1)
    assert {} == world.decided()
    world.settle(400)
    assert {} == world.decided()
    world.settle(300)
    assert {LATE: [(1, 1)]} == world.decided()
