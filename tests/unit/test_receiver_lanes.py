"""A receiver does not hang on a node that sees other lanes than it does (DELIVERY: lanes)."""

from __future__ import annotations

import random
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from msgservice import Retry
from msgservice.core.frames import Nack, Transfer
from msgservice.core.inbox import Answers
from msgservice.core.refusal import Refusal
from msgservice.errors import MalformedFrame
from msgservice.message import Action
from msgservice.receiver.received import ReceivedMessage
from tests.kit.receiver_world import Node, World


@pytest.mark.parametrize("behind", [0, 1, 5])
def test_3_what_a_node_never_sends_again_is_asked_for(behind: int) -> None:
    """One lane here is two there: what the other sent before the retry is waited for for ever."""
    seen: list[bytes] = []

    def handle(message: ReceivedMessage) -> None:
        seen.append(message.body)
        if seen == [b"1"]:
            raise Retry(1.0)

    world = World(handle)
    world.node.offer([b"1"], lane="one")
    world.node.offer([b"2"], lane="other")
    world.node.offer([b"3"], lane="one")
    world.run(5)
    for n in range(behind):
        world.node.offer([b"later"], lane="one" if n % 2 else "other")
    world.run(120)  # a quiet node says PING, which tells that nothing else is on its way
    assert set(seen) >= {b"1", b"2", b"3"}
    assert world.node.backlog.cursor == 3 + behind
    assert world.node.losses == []
    assert world.diallers[0].dialled == 1


@pytest.mark.parametrize("seed", range(4))
def test_3_however_the_lanes_of_the_node_differ_everything_is_handled(seed: int) -> None:
    rng = random.Random(seed)
    seen: list[bytes] = []

    def handle(message: ReceivedMessage) -> None:
        if rng.random() < 0.1:
            raise Retry(0.05)
        seen.append(message.body)

    world = World(handle)
    for n in range(60):
        world.node.offer([b"%d" % n], rng.choice("ab"), lane=rng.choice("xyz"))
        if rng.random() < 0.2:
            world.run(0.1)
    world.run(300)
    assert set(seen) == {b"%d" % n for n in range(60)}
    assert world.node.backlog.cursor == 60
    assert world.node.losses == []


@pytest.mark.parametrize("order", ["strict", "none"])
def test_3_what_is_left_of_an_earlier_incarnation_of_a_node_is_not_handled_among_the_new(
    order: str,
) -> None:
    """The node has removed the receiver, and added it again while its handlers ran."""
    begun: list[bytes] = []
    ends: list[Deferred[None]] = []

    def handle(message: ReceivedMessage) -> Deferred[None]:
        begun.append(message.body)
        ends.append(Deferred())
        return ends[-1]

    world = World(handle, order=order, concurrency=2)
    world.node.offer([b"1", b"2", b"3"])
    world.node.offer([b"4"])
    world.run()
    at_once = [b"1"] if order == "strict" else [b"1", b"2"]
    assert begun == at_once
    node = world.node
    node.incarnation, node.backlog = "log.2", Node(world.clock, order=order).backlog
    world.reconnect()
    node.offer([b"new"])
    node.offer([b"newer"])
    world.run()
    assert begun == at_once
    for end in ends[: len(at_once)]:
        end.callback(None)
    world.run()
    assert begun == [*at_once, *([b"new"] if order == "strict" else [b"new", b"newer"])]
    for end in ends[len(at_once) :]:
        end.callback(None)
    world.run()
    if not ends[-1].called:
        ends[-1].callback(None)
    world.run()
    assert begun == [*at_once, b"new", b"newer"]
    assert node.backlog.cursor == 2
    assert node.losses == ["aborted"]


class Slow:
    """A handler whose calls end when a test says so."""

    def __init__(self) -> None:
        self.begun: list[bytes] = []
        self.ends: list[Deferred[None]] = []

    def __call__(self, message: ReceivedMessage) -> Deferred[None]:
        self.begun.append(message.body)
        self.ends.append(Deferred())
        return self.ends[-1]

    def end_all(self, world: World) -> None:
        while not all(end.called for end in self.ends):
            next(end for end in self.ends if not end.called).callback(None)
            world.run()


def another(world: World, incarnation: str, order: str) -> Node:
    """The same node, as another incarnation, on a connection beside the one that there is."""
    node = Node(world.clock, order=order, incarnation=incarnation)
    world.attach(node)
    world.run()
    node.offer([b"new"])
    node.offer([b"newer"])
    world.run()
    return node


@pytest.mark.parametrize("order", ["strict", "none"])
@pytest.mark.parametrize("incarnation", ["log.2", "log.1.epoch"])
def test_3_another_incarnation_of_the_same_log_ends_the_one_before_connected_or_not(
    order: str, incarnation: str
) -> None:
    slow = Slow()
    world = World(slow, order=order, concurrency=2)
    world.node.offer([b"1", b"2", b"3"])
    world.node.offer([b"4"])
    world.run()
    at_once = [b"1"] if order == "strict" else [b"1", b"2"]
    node = another(world, incarnation, order)
    assert slow.begun == at_once
    assert [(0, "the node has another incarnation for this receiver now")] == world.node.byes
    assert world.node.losses == ["closed"]
    slow.end_all(world)
    assert slow.begun == [*at_once, b"new", b"newer"]
    assert node.backlog.cursor == 2
    assert world.node.acknowledged == []
    assert node.losses == []


@pytest.mark.parametrize("order", ["strict", "none"])
def test_3_a_node_of_another_log_goes_on_until_its_connection_is_lost(order: str) -> None:
    """Another node may have the same name; one whose log was put back never comes again."""
    slow = Slow()
    world = World(slow, order=order, concurrency=3)
    world.node.offer([b"1", b"2", b"3"])
    world.node.offer([b"4", b"5"])
    world.run()
    node = another(world, "other.1", order)
    slow.ends[0].callback(None)
    world.run()
    before = slow.begun[:]
    both = {"strict": [b"1", b"new", b"2"], "none": [b"1", b"2", b"3", b"4"]}
    assert before == both[order]
    assert world.node.losses == []
    world.diallers[0].stopService()
    world.wire.cut()
    world.run()
    slow.end_all(world)
    assert slow.begun == [*before, *(body for body in (b"new", b"newer") if body not in before)]
    assert node.backlog.cursor == 2


def run(sequence: int, nacks: int = 0) -> Transfer:
    return Transfer(sequence, "a", None, nacks=nacks)  # type: ignore[arg-type]  # not looked at


def test_3_a_node_as_it_should_be_is_asked_for_nothing() -> None:
    answers = Answers()
    assert answers.receive(run(1), 1, "a")
    answers.refuse(1, 1, Refusal(Action.RETRY), "a")
    for n in (2, 3, 4):
        assert not answers.receive(run(n), n, "a")
    assert not answers.ask_for_discarded()  # its lane waits for the sender
    for n in (1, 2, 3, 4):
        assert answers.receive(run(n, nacks=1), n, "a")
        answers.take_over(n, n)
    assert not answers.ask_for_discarded()
    assert [frame for frame in answers.take_frames() if isinstance(frame, Nack)][1:] == []


def test_3_what_is_asked_for_in_one_go_is_bounded() -> None:
    answers = Answers()
    assert answers.receive(run(1), 1, "a")
    answers.refuse(1, 1, Refusal(Action.RETRY), "a")
    for n in range(3, 2003, 2):
        assert not answers.receive(run(n), n, "a")
    assert answers.receive(run(1, nacks=1), 1, "a")
    answers.take_frames()
    turns = []
    while answers.ask_for_discarded():
        turns.append(len(answers.take_frames()))
    assert turns == [400, 400, 200]


def test_3_how_long_a_connection_stands_does_not_count_as_what_is_discarded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One lane has always something discarded, so there is never nothing."""
    monkeypatch.setattr("msgservice.core.inbox.WINDOW_MESSAGES_MAX", 4)
    answers = Answers()
    for turn in range(50):
        lane, sequence, nacks = "ab"[turn % 2], 2 * turn + 1, turn
        assert answers.receive(run(sequence, nacks), sequence, lane)
        answers.refuse(sequence, sequence, Refusal(Action.RETRY), lane)
        assert not answers.receive(run(sequence + 1, nacks), sequence + 1, lane)
        if turn:  # the other lane goes on, this one has not yet
            other = "ba"[turn % 2]
            for again in (sequence - 2, sequence - 1):
                assert answers.receive(run(again, nacks + 1), again, other)
                answers.take_over(again, again)


def refused(answers: Answers, sequence: int, lane: str, *, nacks: int = 0, floor: int = 1) -> None:
    transfer = Transfer(sequence, lane, None, nacks=nacks, floor=floor)  # type: ignore[arg-type]  # not looked at
    assert answers.receive(transfer, sequence, lane)
    answers.refuse(sequence, sequence, Refusal(Action.LATER), lane)


@pytest.mark.parametrize("acts", [False, True])
def test_3_lanes_of_a_sender_that_sends_nothing_of_them_again_are_not_kept(acts: bool) -> None:
    answers = Answers()
    for n in range(1, 1000):
        refused(answers, n, f"lane{n}", nacks=(n - 1) * acts, floor=n if not acts else 1)
        assert len(answers._discarding) <= 2


def test_3_lanes_that_are_taken_back_and_below_no_floor_are_bounded_by_the_window() -> None:
    answers = Answers(0, 4)
    for n in range(1, 6):
        refused(answers, n, f"lane{n}")
    with pytest.raises(MalformedFrame, match="more than 4 lanes"):
        refused(answers, 6, "lane6")


def test_3_a_lane_is_discarded_while_anything_of_it_may_come_again() -> None:
    """The floor has passed what was refused, but not what was discarded or is void behind it."""
    answers = Answers()
    refused(answers, 1, "a")
    assert not answers.receive(run(2), 2, "a")
    for floor in (2, 1):
        transfer = Transfer(4, "a", None, floor=floor)  # type: ignore[arg-type]  # not looked at
        assert not answers.receive(transfer, 4, "a")
    transfer = Transfer(5, "a", None, floor=5)  # type: ignore[arg-type]  # not looked at
    assert answers.receive(transfer, 5, "a")
    assert not answers.ask_for_discarded()  # all of it was settled

    answers = Answers()
    assert answers.receive(run(1), 1, "a")
    assert answers.receive(run(2), 2, "a")  # void when the first is refused
    answers.refuse(1, 1, Refusal(Action.LATER), "a")
    transfer = Transfer(3, "a", None, floor=2)  # type: ignore[arg-type]  # not looked at
    assert not answers.receive(transfer, 3, "a")


def test_3_what_is_discarded_at_once_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("msgservice.core.inbox.WINDOW_MESSAGES_MAX", 4)
    answers = Answers()
    assert answers.receive(run(1), 1, "a")
    answers.refuse(1, 1, Refusal(Action.RETRY), "a")
    for n in (3, 5, 7, 9):
        assert not answers.receive(run(n), n, "a")
    with pytest.raises(MalformedFrame):
        answers.receive(run(11), 11, "a")


# --- another order


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("losses", [0, 1, 3])
def test_3_from_none_to_strict_nothing_is_begun_beside_what_still_runs(
    losses: int, fails: bool
) -> None:
    slow = Slow()
    world = World(slow, order="none", concurrency=2)
    for body, subject in [(b"a1", "a"), (b"b1", "b"), (b"a2", "a")]:
        world.node.offer([body], subject)
    world.run()
    assert slow.begun == [b"a1", b"b1"]
    node = world.change_order("strict")
    for body, subject in [(b"a1", "a"), (b"b1", "b"), (b"a2", "a"), (b"a3", "a"), (b"b2", "b")]:
        node.offer([body], subject)
    for _ in range(losses):
        world.reconnect()
    world.run(40)  # heartbeats: what waits is no reason to read what comes behind it
    slow.ends[1].callback(None)
    world.run(1)
    assert slow.begun == [b"a1", b"b1"]
    assert node.acknowledged == []
    if fails:
        slow.ends[0].errback(Retry(0.0))
    else:
        slow.ends[0].callback(None)
    world.run(1)
    slow.end_all(world)
    assert [body for body in slow.begun if body.startswith(b"a")] == [
        *([b"a1"] * fails),
        b"a1",
        b"a2",
        b"a3",
    ]
    assert slow.begun.count(b"b1") == slow.begun.count(b"b2") == 1
    assert node.backlog.cursor == 5
    assert len(node.losses) == 1 + losses


@pytest.mark.parametrize("kind", ["deferred", "batch"])
def test_3_from_strict_to_none_what_waited_behind_what_fails_is_sent_and_answered(
    kind: str,
) -> None:
    """A sender that keeps no order sends again only what it was told of."""
    slow = Slow()
    more: dict[str, Any] = {"batch": True} if kind == "batch" else {}
    world = World((lambda some: slow(some[0])) if more else slow, concurrency=2, **more)
    for body in (b"a1", b"a2", b"a3"):
        world.node.offer([body])
    world.run()
    assert slow.begun == [b"a1"]
    node = world.change_order("none")
    for body in (b"a1", b"a2", b"a3"):
        node.offer([body])
    world.run(1)
    slow.ends[0].errback(Retry(0.0))
    world.run(1)
    slow.end_all(world)
    world.run(5)
    slow.end_all(world)
    assert sorted(slow.begun) == [b"a1", b"a1", b"a2", b"a3"]
    assert node.backlog.cursor == 3
    assert len(node.losses) == 1


def test_3_very_many_lanes_that_are_taken_back_at_once_are_forgotten_in_one_walk() -> None:
    class Counted(dict[Any, Any]):
        walks = 0

        def items(self) -> Any:
            self.walks += 1
            return super().items()

    answers = Answers()
    answers._discarding = discarding = Counted()
    for n in range(1, 1001):
        refused(answers, n, f"lane{n}")
    before = discarding.walks
    transfer = Transfer(1, "lane1", None, nacks=1000)  # type: ignore[arg-type]  # not looked at
    assert answers.receive(transfer, 1, "lane1")
    assert not discarding
    assert discarding.walks == before + 1
