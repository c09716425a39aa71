"""Dead letters at a node: sent again, dropped, and told of as events (DELIVERY 46)."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from msgservice import Limits
from msgservice.core.copies import REPLAY_OF
from msgservice.core.frames import Transfer
from msgservice.core.subjects import SubjectMatcher, check_subject, matches
from msgservice.errors import LogFull, UnknownDeadLetter, UnknownReceiver
from msgservice.identity.rules import Rules
from msgservice.identity.users import User
from msgservice.log.memory import MemoryLog
from msgservice.message import FLAG_REPLAY, Action, WireMessage, decode_messages, encode_messages
from msgservice.node.directory import BacklogFull
from msgservice.node.gate import Door
from msgservice.node.letters import PAGE, Wanted, event_subject
from tests.kit.entries import NoDisk
from tests.kit.nodes import FailingLog, NodeWorld, ScriptedPeer, state_of
from tests.kit.passes import HERE, users_of

ORDERS = {"subjects": ["orders.>"]}


class World(NodeWorld):
    """A node with a receiver that rejects, a producer, and an operator."""

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        self.billing = self.peer("billing", receive=ORDERS)
        self.shop = self.peer("shop", status_from=1)
        self.operator = self.peer("operator")
        self._sequence = 0

    def send(self, body: bytes, subject: str = "orders.new", id_: str | None = None) -> int:
        self._sequence += 1
        messages = encode_messages([WireMessage(body, {"kind": "x"}, id_)])
        self.shop.connection.send(Transfer(self._sequence, subject, msgspec.Raw(messages)))
        self.settle()
        return self._sequence

    def reject(self, peer: ScriptedPeer | None = None, reason: str = "no customer") -> None:
        peer = peer or self.billing
        for transfer in peer.take(Transfer):
            last = transfer.sequence + len(decode_messages(transfer.messages)) - 1
            peer.nack(transfer.sequence, last, Action.DEAD, 0, reason)
            self.settle()

    def dead(self, count: int = 1, body: bytes = b"body") -> list[int]:
        """Let so many messages become dead letters; return their positions."""
        for _ in range(count):
            self.send(body)
            self.reject()
        return self.letters()[-count:]

    def letters(self, receiver: str = "billing", **which: Any) -> list[int]:
        ok, page = self.operator.request("$node.dead.list", {"receiver": receiver, **which})
        assert ok, page
        return [one["position"] for one in page["dead"]]

    def act(self, act: str, **asked: Any) -> Any:
        ok, told = self.operator.request(f"$node.dead.{act}", {"receiver": "billing", **asked})
        assert ok, told
        return told

    def refused(self, act: str, **asked: Any) -> str:
        ok, told = self.operator.request(f"$node.dead.{act}", {"receiver": "billing", **asked})
        assert not ok
        return str(told)

    def fails(self, work: Any, kind: type[Exception]) -> None:
        failed: list[Any] = []
        Deferred.fromCoroutine(work).addErrback(failed.append)
        self.settle()
        assert failed[0].check(kind), failed

    def does(self, work: Any) -> Any:
        done: list[Any] = []
        Deferred.fromCoroutine(work).addBoth(done.append)
        self.settle()
        return done[0]


def test_13_46_a_letter_that_is_sent_again_comes_as_a_new_message_and_is_one_no_more() -> None:
    world = World()
    (position,) = world.dead()
    told = world.act("requeue")
    assert (1, None) == (told["count"], told["next"] and None)
    assert [] == world.letters()
    (transfer,) = world.billing.take(Transfer)
    (message,) = decode_messages(transfer.messages)
    assert b"body" == message.body
    assert {"kind": "x", REPLAY_OF: f"log:{position}"} == message.headers
    assert FLAG_REPLAY == transfer.flags
    assert transfer.origin is not None
    assert ("shop", 1) == (transfer.origin.sender, transfer.origin.sequence)
    world.billing.ack(transfer)
    world.settle()
    # The original is final: it stays what it was, and its producer hears nothing more of it.
    _, found = world.operator.request("$node.status", {"id": f"log:{position}"})
    assert "dead" == found["receivers"]["billing"]["status"]
    assert [("billing", 5)] == [*world.shop.statuses()]
    assert 0 == state_of(world, "billing").unaccounted


def test_46_a_letter_that_is_sent_again_and_rejected_is_one_again_of_the_same_origin() -> None:
    world = World()
    (first,) = world.dead()
    world.act("requeue")
    world.reject()
    (second,) = world.letters()
    assert second > first
    world.act("requeue")
    (transfer,) = world.billing.take(Transfer)
    assert transfer.origin is not None
    assert ("shop", 1) == (transfer.origin.sender, transfer.origin.sequence)
    (message,) = decode_messages(transfer.messages)
    assert message.headers is not None
    assert f"log:{second}" == message.headers[REPLAY_OF]


def test_46_letters_that_are_letters_again_meanwhile_are_sent_again_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Who rejects at once makes new letters while the next page is looked for."""
    world = World()
    first, second = world.dead(2)
    billing, left = world.billing, [6]

    def turn_ended(connection: Any) -> None:
        for transfer in billing.take(Transfer):
            count = len(decode_messages(transfer.messages))
            if left[0] > 0:
                left[0] -= count
                billing.nack(transfer.sequence, transfer.sequence + count - 1, Action.DEAD, 0, "no")

    billing.turn_ended = turn_ended  # type: ignore[method-assign]  # as soon as one comes
    log = world.node.log
    read = log.dead_letters

    def slow(*args: Any) -> Deferred[Any]:
        waiter: Deferred[Any] = Deferred()
        world.clock.callLater(0.2, lambda: read(*args).chainDeferred(waiter))
        return waiter

    monkeypatch.setattr(log, "dead_letters", slow)
    done: list[Any] = []
    Deferred.fromCoroutine(world.node.parts.letters.requeue("billing", Wanted())).addBoth(
        done.append
    )
    world.settle(3.0)
    assert [2] == done
    monkeypatch.undo()
    again = world.letters()
    assert 2 == len(again)
    assert min(again) > second > first


def test_46_letters_are_sent_in_the_order_of_their_positions() -> None:
    world = World()
    for number in range(3):
        world.dead(body=b"%d" % number)
    world.act("requeue")
    world.billing.answering = True
    bodies: list[bytes] = world.billing.bodies()
    assert [b"0", b"1", b"2"] == bodies


def test_46_letters_may_be_sent_to_another_receiver() -> None:
    world = World()
    world.dead()
    audit = world.peer("audit", receive={"subjects": []})
    assert 1 == world.act("requeue", to="audit")["count"]
    assert ([b"body"], []) == (audit.bodies(), world.billing.bodies())
    assert [] == world.letters()


def test_46_letters_that_are_dropped_are_gone_and_their_receiver_may_have_others() -> None:
    limits = Limits(dead_bytes=65536)
    world = World(limits=limits)
    world.dead(body=b"x" * 70_000)
    assert state_of(world, "billing").paused
    ok, told = world.operator.request("$node.receivers.resume", {"name": "billing"})
    assert ok
    assert "dead_bytes = 65536" in told["full"]
    touched = world.act("drop")
    assert (1, True) == (touched["count"], touched["size"] > 70_000)
    assert 0 == state_of(world, "billing").dead_bytes
    ok, told = world.operator.request("$node.receivers.resume", {"name": "billing"})
    assert (True, None) == (ok, told["full"])
    world.settle(3)
    world.billing = world.peer("billing", incarnation="i2", receive=ORDERS)
    world.dead(body=b"x")
    assert 1 == len(world.letters())
    assert not state_of(world, "billing").paused
    (_, info) = world.operator.request("$node.info", {})
    assert {"new": 2, "requeued": 0, "dropped": 1} == info["dead_letters"]


def test_46_a_dry_run_says_which_and_touches_nothing() -> None:
    world = World()
    world.dead(3)
    for act in ("drop", "requeue"):
        assert 3 == world.act(act, dry_run=True)["count"]
    assert 3 == len(world.letters())
    assert [] == world.billing.bodies()


def test_46_letters_are_chosen_by_subject_reason_time_code_and_one() -> None:
    world = World()
    world.send(b"1", "orders.eu.new", "o-1")
    world.reject(reason="no customer 17")
    world.clock.advance(1)
    world.send(b"2", "orders.us.new", "o-2")
    world.reject(reason="bad JSON")
    first, second = world.letters()
    assert [first] == world.letters(subject="orders.eu.>")
    assert [first, second] == world.letters(subject="orders.*.new")
    assert [second] == world.letters(reason="JSON")
    assert [] == world.letters(subject="orders.eu.>", reason="JSON")
    assert [] == world.letters(code=99)
    _, page = world.operator.request("$node.dead.list", {"receiver": "billing"})
    at = [one["at"] for one in page["dead"]]
    assert at[0] < at[1]
    assert [first] == world.letters(until=at[0])
    assert [second] == world.letters(since=at[0] + 1)
    for name in (str(first), f"log:{first}", "o-1", page["dead"][0]["sender"]):
        assert [first] == world.letters(of=name), name
    assert 1 == world.act("drop", of="o-1")["count"]
    assert [second] == world.letters()


def test_46_an_id_that_is_a_number_is_one_unless_a_letter_has_that_position() -> None:
    world = World()
    for id_ in ("1001", "1002", "1003"):
        world.send(b"x", id_=id_)
        world.reject()
    first, second, third = world.letters()
    for id_, position in (("1001", first), ("1002", second), ("1003", third)):
        assert [position] == world.letters(of=id_)
        assert position == world.does(world.node.dead_letters.show("billing", id_)).position
        assert "no dead letter" in world.refused("get", position=int(id_))
        assert [] == world.letters(of=f"log:{id_}")
    world.send(b"x", id_=str(second))
    world.reject()
    assert [second] == world.letters(of=str(second))
    assert 1 == world.act("drop", of=str(second))["count"]
    assert 1 == world.act("requeue", of="1003")["count"]
    assert [first, world.letters()[-1]] == world.letters()
    assert [world.letters()[-1]] == world.letters(of=str(second))


def test_46_what_few_fit_is_found_over_many_pages() -> None:
    world = World()
    for number in range(2 * PAGE + 10):
        world.send(b"x")
        world.reject(reason="this" if number > 2 * PAGE else "that")
    found, after, asked = 0, 0, 0
    while after is not None:
        told = world.act("drop", reason="this", after=after)
        found, after, asked = found + told["count"], told["next"], asked + 1
    assert (9, True) == (found, asked >= 3)


def test_46_what_cannot_be_is_told() -> None:
    world = World()
    world.dead()
    assert "unknown receiver 'nobody'" in world.refused("requeue", to="nobody")
    assert "nobody" in str(world.operator.request("$node.dead.drop", {"receiver": "nobody"}))
    assert "bad subject 'a..b'" in world.refused("drop", subject="a..b")
    world.peer("other", receive={"subjects": ["x"]})
    world.operator.request("$node.receivers.remove", {"name": "other", "confirm": 0})
    assert "other" in world.refused("requeue", to="other")
    letters = world.node.dead_letters
    world.fails(letters.drop("billing", Wanted(of="o-99")), UnknownDeadLetter)
    world.fails(letters.show("billing", 1), UnknownDeadLetter)
    world.fails(letters.requeue("billing", Wanted(), "nobody"), UnknownReceiver)
    assert 1 == len(world.letters())


def test_46_programs_have_the_same_acts() -> None:
    world = World()
    world.dead(3)
    letters = world.node.dead_letters
    found, _ = world.does(letters.list("billing", limit=2))
    assert 2 == len(found)
    assert found[0] == world.does(letters.show("billing", found[0].position))
    assert 1 == world.does(letters.requeue("billing", Wanted(of=str(found[0].position))))
    assert 2 == world.does(letters.drop("billing", Wanted()))
    assert 0 == world.does(letters.drop("billing", Wanted()))


def test_46_a_receiver_whose_backlog_is_full_gets_none() -> None:
    world = World()
    world.dead()
    world.peer("small", receive={"subjects": ["small"]})
    world.operator.request("$node.receivers.change", {"name": "small", "backlog_bytes": 65536})
    world.operator.request("$node.receivers.pause", {"name": "small"})
    world.shop.transfer(100, "small", [b"x" * 70_000], after=1)
    world.settle(1)
    assert "small" in world.refused("requeue", to="small")
    world.fails(world.node.dead_letters.requeue("billing", Wanted(), "small"), BacklogFull)
    assert 1 == len(world.letters())


def test_46_letters_whose_copies_find_no_room_stay_and_that_is_told() -> None:
    limits = Limits(max_bytes=300_000, max_batch=100_000, keep_seconds=0, keep_bytes=0)
    world = World(limits=limits)
    world.dead(2, body=b"x" * 60_000)
    log: Any = world.log
    log._store.reserve = NoDisk()  # there is no room on the disk either
    log._store.reserve.is_full = True
    told = world.refused("requeue")
    assert "0 bytes are free on the disk" in told
    assert (2, []) == (len(world.letters()), world.billing.bodies())
    world.fails(world.node.dead_letters.requeue("billing", Wanted()), LogFull)
    assert 2 == world.act("drop")["count"]  # needs no room


def test_46_a_group_that_fails_leaves_letters_where_they_are() -> None:
    clock = Clock()
    log = FailingLog(MemoryLog(reactor=clock, limits=Limits()))
    world = World(log=log, clock=clock)
    world.dead()
    log.fail_next = True
    assert "the disk says no" in world.refused("requeue")
    world.settle(2)
    assert (1, []) == (len(world.letters()), world.billing.bodies())
    assert 1 == world.act("requeue")["count"]
    assert [b"body"] == world.billing.bodies()


def test_46_letters_that_two_treat_at_once_go_once() -> None:
    clock = Clock()
    log = FailingLog(MemoryLog(reactor=clock, limits=Limits()))
    world = World(log=log, clock=clock)
    world.dead(2)
    log.hold = True
    letters = world.node.dead_letters
    done: list[Any] = []
    for _ in range(2):
        work = letters.requeue("billing", Wanted())
        Deferred.fromCoroutine(work).addBoth(done.append)
        world.settle()
    log.release()
    world.settle()
    assert [0, 2] == sorted(done)
    assert [b"body", b"body"] == world.billing.bodies() + world.billing.bodies()


def test_46_a_receiver_that_is_removed_meanwhile_gets_none() -> None:
    clock = Clock()
    log = FailingLog(MemoryLog(reactor=clock, limits=Limits()))
    world = World(log=log, clock=clock)
    world.dead()
    world.peer("other", receive={"subjects": ["x"]})
    log.hold = True
    world.send(b"y", "nowhere")  # a group under way
    failed: list[Any] = []
    work = world.node.dead_letters.requeue("billing", Wanted(), "other")
    Deferred.fromCoroutine(work).addErrback(failed.append)
    world.settle()
    Deferred.fromCoroutine(world.node.parts.receivers.remove("other"))
    world.settle()
    log.release()
    world.settle()
    assert failed[0].check(UnknownReceiver)
    assert 1 == len(world.letters())


def test_46_who_may_send_letters_again_may_not_choose_who_gets_them() -> None:
    acts = ["$node.dead.>", "$node.receivers.>"]
    ops = User(name="ops", rules=Rules(request=acts, to=["audit"]))
    clerk = User(name="clerk", rules=Rules(request=acts))
    world = NodeWorld(users=users_of(ops, clerk, User(name="audit", rules=Rules())))
    asked = {"receiver": "billing", "to": "audit", "dry_run": True}
    for user, allowed in (("ops", True), ("clerk", False)):
        peer = world.peer(user, door=Door(asks=False, user=user), shown=HERE)
        for name in ("billing", "audit"):
            peer.request("$node.receivers.add", {"name": name, "subjects": []})
        ok, told = peer.request("$node.dead.requeue", asked)
        assert allowed is ok, told
        assert peer.request("$node.dead.requeue", {"receiver": "billing"})[0]
        if not allowed:
            assert "unknown receiver 'audit'" in told


# --- events


def events(peer: ScriptedPeer) -> list[Any]:
    return [msgspec.json.decode(body) for body in peer.bodies()]


def test_46_a_dead_letter_is_told_to_whoever_receives_its_events() -> None:
    world = World()
    watcher = world.peer("watcher", receive={"subjects": ["$dead.>"]})
    one = world.peer("one", receive={"subjects": ["$dead.billing"]})
    other = world.peer("other", receive={"subjects": ["$dead.other"]})
    (position,) = world.dead()
    (event,) = events(watcher)
    assert [event] == events(one)
    assert [] == events(other)
    assert event["position"] == position
    assert ("billing", "orders.new", "no customer") == (
        event["receiver"],
        event["subject"],
        event["reason"],
    )
    assert event["sender"].startswith("shop/")


def test_57_what_begins_with_a_dollar_is_got_by_who_says_so() -> None:
    world = World()
    everything = world.peer("everything", receive={"subjects": [">"]})
    anyone = world.peer("anyone", receive={"subjects": ["*.billing"]})
    world.dead()
    assert [b"body"] == everything.bodies()
    assert [] == anyone.bodies()
    matcher: SubjectMatcher[int] = SubjectMatcher()
    patterns = (">", "*.billing", "$dead.>", "$dead.*", "*.*", "$dead.billing")
    for number, pattern in enumerate(patterns):
        matcher.add(pattern, number)
        assert matches(pattern, "$dead.billing") is (number in (2, 3, 5))
    assert {2, 3, 5} == matcher.match("$dead.billing")
    assert set() == matcher.match("$node.info.x")


def test_46_an_event_that_becomes_a_dead_letter_is_told_to_nobody() -> None:
    world = World()
    watcher = world.peer("watcher", receive={"subjects": ["$dead.>"]})
    world.dead()
    world.reject(watcher)
    assert 1 == len(world.letters("watcher"))
    world.settle(1)
    assert [] == watcher.bodies()


def test_46_without_anybody_who_receives_events_nothing_is_stored() -> None:
    world = World()
    world.dead()
    before = world.node.parts.tail.next_number
    world.dead()
    assert before + 1 == world.node.parts.tail.next_number


def test_46_events_are_in_the_group_that_has_their_letters() -> None:
    clock = Clock()
    log = FailingLog(MemoryLog(reactor=clock, limits=Limits()))
    world = World(log=log, clock=clock)
    watcher = world.peer("watcher", receive={"subjects": ["$dead.>"]})
    world.send(b"body")
    log.fail_next = True
    world.reject()
    assert ([], []) == (watcher.bodies(), world.letters())
    world.settle(2)
    assert (1, 1) == (len(watcher.bodies()), len(world.letters()))


@pytest.mark.parametrize(
    ("name", "subject"),
    [
        ("billing", "$dead.billing"),
        ("a.b", "$dead.a.b"),
        ("a*>", "$dead.a%2A%3E"),
        ("a..b", "$dead.a%2E%2Eb"),
        (".a", "$dead.%2Ea"),
        ("a.", "$dead.a%2E"),
        ("n" * 255, "$dead." + "n" * 249),
        ("é" * 127, "$dead." + "é" * 124),
    ],
)
def test_every_receiver_has_a_subject_for_its_events(name: str, subject: str) -> None:
    assert subject == event_subject(name) == check_subject(subject)
