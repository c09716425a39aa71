"""Group commit alone: what is told before the next group starts, and what waits for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from zope.interface import implementer

from msgservice.clock import Time
from msgservice.errors import LogFailed, LogFull, LogUnavailable
from msgservice.limits import Limits
from msgservice.node.commits import (
    FEW_BYTES,
    FEW_MESSAGES,
    GATHER,
    LIVE_FOR,
    RETRY_DELAY,
    STATUSES_FROM_MAX,
    Commits,
)
from msgservice.node.retained import RetainedIndex
from msgservice.node.seldom import PERIOD, Seldom
from msgservice.records import (
    Appended,
    Audience,
    Batch,
    Group,
    Progress,
    ReceiverRow,
    RefusedBatch,
    StatusFrom,
)
from tests.kit.doubles import double
from tests.kit.logs import make_batch

BILLING = Audience(1, (1,), stored=True)


def never(*args: object) -> None:
    raise AssertionError(args)


class World:
    """Group commit over a log whose groups end when a test says so.

    Or, where `is_quick`, before the log has returned.
    """

    def __init__(self, *, is_quick: bool = False) -> None:
        self.clock = Clock()
        self.is_quick = is_quick
        self.quick: list[Group] = []
        self.ended: list[LogFailed] = []  # why the node cannot go on
        self.groups: list[Group] = []
        self._ends: list[Deferred[Any]] = []
        self.commits = Commits(
            double(append=self._append, append_now=self._append_now),
            retained=RetainedIndex(Limits()),
            audiences=double(version=0),
            time=Time(self.clock),
            after_group=lambda batches: None,
            routed=never,
            fatal=self.ended.append,
            letters_told=lambda progress: [],
            due_now=lambda: 0,
            seldom=Seldom(self.clock),
        )

    def _append(self, group: Group) -> Deferred[Any]:
        self.groups.append(group)
        self._ends.append(Deferred())
        return self._ends[-1]

    def _append_now(self, group: Group) -> Appended | None:
        if not self.is_quick:
            return None
        self.quick.append(group)
        return Appended([*group.batches], group.batches)

    def end(self, result: Any) -> None:
        """The oldest group under way ends."""
        assert [] == self.ended
        waiter = self._ends.pop(0)
        if isinstance(result, Exception):
            waiter.errback(result)
        else:
            stored = [outcome for outcome in result if isinstance(outcome, Batch)]
            waiter.callback(Appended(result, stored))

    def floor(self, sender: str, status_from: int, incarnation: str = "i1") -> None:
        floor = StatusFrom(sender=sender, incarnation=incarnation, status_from=status_from)
        self.commits.status_from(floor)


class LaneSource:
    """A source that withdraws what waits of it once a run of it was refused."""

    def __init__(self, flushed: Callable[[], None] = lambda: None) -> None:
        self.flush = flushed
        self.refused = False

    def stored(self, batch: Batch, outcome: Any) -> None:
        self.refused = isinstance(outcome, RefusedBatch)

    def failed(self, batches: list[Batch], error: LogUnavailable) -> None:
        self.refused = True

    def withdraw(self, batch: Batch) -> bool:
        return self.refused

    def fault(self, failure: Any) -> None:
        failure.raiseException()


def test_2_nothing_starts_while_it_is_told_what_was_refused() -> None:
    """Who is told first may ask for more: what is behind the refused run is withdrawn before."""
    world = World()
    commits = world.commits
    source = LaneSource()
    refused, behind = (make_batch(BILLING, sequence) for sequence in (1, 2))
    rows = [ReceiverRow(number=number, name=f"r{number}") for number in (1, 2)]
    commits.batch(refused, source)
    commits.receiver(rows[0]).addCallback(lambda _: commits.receiver(rows[1]))
    commits.batch(behind, source)
    world.end([RefusedBatch(LogFull("no room"))])
    assert [([rows[0]], [refused]), ([rows[1]], [])] == [
        (group.receivers, group.batches) for group in world.groups
    ]


def test_2_nothing_starts_while_it_is_told_what_failed() -> None:
    world = World()
    commits = world.commits
    sources = [LaneSource(commits.kick), LaneSource()]
    failed = [make_batch(BILLING, 1, sender=sender) for sender in ("shop", "web")]
    behind = [make_batch(BILLING, 2, sender=sender) for sender in ("shop", "web")]
    for batch, source in zip([*failed, *behind], [*sources, *sources], strict=True):
        commits.batch(batch, source)
        if batch is failed[1]:
            commits.kick()
    world.end(LogUnavailable("the disk says no"))
    world.clock.advance(RETRY_DELAY)
    assert [failed] == [group.batches for group in world.groups]


def test_who_waits_for_nothing_to_be_under_way_may_ask_while_a_group_is_told_about() -> None:
    world = World()
    told: list[None] = []

    async def change_and_wait() -> None:
        await world.commits.receiver(ReceiverRow(number=1, name="r1"))
        await world.commits.idle()
        told.append(None)

    Deferred.fromCoroutine(change_and_wait())
    world.end([])
    assert told == [None]


def test_a_group_that_takes_long_is_told_of_in_the_log_and_so_is_how_many_follow() -> None:
    world = World()
    told: list[tuple[int, float]] = []

    @implementer(ILogObserver)
    def observe(event: LogEvent) -> None:
        if event.get("line") == "commit-slow":
            told.append((event["count"], event["seconds"]))

    globalLogPublisher.addObserver(observe)
    try:
        for seconds in (0.9, 2.5, 1.0, 4.0):
            world.commits.status_from(StatusFrom(sender="shop", incarnation="i1", status_from=2))
            world.commits.kick()
            world.clock.advance(seconds)
            world.end([])
        assert [(1, 2.5)] == told
        world.clock.advance(PERIOD)
        assert [(1, 2.5), (2, 4.0)] == told
    finally:
        globalLogPublisher.removeObserver(observe)


# --- receivers that change ---


def row(number: int, *patterns: str) -> ReceiverRow:
    return ReceiverRow(number=number, name=f"r{number}", patterns=patterns)


def test_however_often_receivers_change_of_each_the_last_row_is_written() -> None:
    """What the log writes goes with the receivers, not with their changes."""
    world = World()
    told: list[int] = []

    def told_of(_: None, change: int) -> None:
        told.append(change)

    for change in range(300):
        changed = world.commits.receiver(row(change % 3, f"a.{change}"))
        changed.addCallback(told_of, change)
    world.end([])
    assert [[row(0, "a.0")], [row(1, "a.298"), row(2, "a.299"), row(0, "a.297")]] == [
        group.receivers for group in world.groups
    ]
    assert told == [0]
    world.end([])
    assert told == [*range(300)]
    assert 2 == len(world.groups)


def test_a_row_that_was_not_stored_gives_way_to_one_that_came_since() -> None:
    world = World()
    for number in (1, 2):
        world.commits.receiver(row(number, "a.old"))
    world.end([])
    world.commits.receiver(row(3, "a.new"))
    world.commits.receiver(row(2, "a.new"))
    world.end(LogUnavailable("the disk says no"))
    world.commits.receiver(row(3, "a.newest"))
    world.clock.advance(RETRY_DELAY)
    assert [row(2, "a.new"), row(3, "a.newest")] == world.groups[-1].receivers


# --- from where on senders want states ---


def test_11_where_a_sender_wants_states_from_is_stored_though_nothing_else_comes() -> None:
    world = World()
    world.floor("shop", 7)
    world.clock.advance(0.1)
    assert [7] == [floor.status_from for group in world.groups for floor in group.statuses_from]


def test_11_one_floor_of_each_sender_waits_the_highest() -> None:
    world = World()
    world.commits.removal(1)  # a group that runs
    for status_from in (*range(1, 500), 3):
        world.floor("shop", status_from)
    world.floor("web", 1)
    world.end([])
    assert [("shop", 499), ("web", 1)] == [
        (floor.sender, floor.status_from) for floor in world.groups[1].statuses_from
    ]


def test_5_floors_that_wait_are_bounded() -> None:
    world = World()
    world.commits.removal(1)
    for number in range(STATUSES_FROM_MAX + 10):
        world.floor("shop", 1, f"i{number}")
    world.end([])
    assert STATUSES_FROM_MAX == len(world.groups[1].statuses_from)


def test_11_the_highest_floor_is_stored_after_a_group_that_failed() -> None:
    world = World()
    world.floor("shop", 3)
    world.floor("web", 8)
    world.clock.advance(0.1)
    world.floor("shop", 5)
    world.floor("web", 2)
    world.end(LogUnavailable("the disk says no"))
    world.clock.advance(RETRY_DELAY)
    assert {"shop": 5, "web": 8} == {
        floor.sender: floor.status_from for floor in world.groups[1].statuses_from
    }


def test_19_who_asks_after_a_group_that_failed_waits_until_the_disk_is_tried_again() -> None:
    """Neither what is told of the failure nor what comes in meanwhile makes it sooner."""
    world = World()
    commits = world.commits
    source = LaneSource(flushed=lambda: world.floor("told", 2))
    commits.batch(make_batch(BILLING, 1), source)
    commits.kick()
    world.end(LogUnavailable("the disk says no"))
    world.floor("shop", 2)
    commits.batch(make_batch(BILLING, 2), source)
    commits.kick()
    world.clock.advance(RETRY_DELAY - 0.1)
    assert len(world.groups) == 1
    world.clock.advance(0.2)
    assert len(world.groups) == 2
    assert {floor.sender for floor in world.groups[1].statuses_from} == {"told", "shop"}
    assert [batch.sequence for batch in world.groups[1].batches] == [2]


class TellingSource(LaneSource):
    """A source that notes what it is told, and may want something then."""

    def __init__(self, told: list[int], wants: Callable[[], None] = lambda: None) -> None:
        super().__init__(wants)
        self._told = told

    def stored(self, batch: Batch, outcome: Any) -> None:
        self._told.append(batch.sequence)


def test_26_a_group_that_was_written_at_once_is_told_before_the_next_which_has_its_own_turn() -> (
    None
):
    world = World(is_quick=True)
    commits = world.commits
    told: list[int] = []

    def more() -> None:
        if len(told) < 3:
            commits.batch(make_batch(BILLING, len(told) + 1), source)
            commits.kick_soon()
            commits.kick()  # nor by who does not wait for others

    source = TellingSource(told, more)
    commits.batch(make_batch(BILLING, 1), source)
    commits.kick_soon()
    assert [] == told  # what comes in the same turn is in the same group
    for count in (1, 2, 3):
        call = world.clock.calls.pop(0)
        assert [] == world.clock.calls
        call.called = 1
        call.func()
        assert [*range(1, count + 1)] == told
        assert count == len(world.quick)
    assert [] == world.groups


def test_26_nothing_is_written_at_once_while_the_group_before_is_to_be_told() -> None:
    world = World()
    commits = world.commits
    told: list[int] = []
    source = TellingSource(told)
    commits.batch(make_batch(BILLING, 1), source)
    commits.kick_soon()
    world.clock.advance(0)
    commits.batch(make_batch(BILLING, 2), source)  # while that is under way
    world.is_quick = True
    world.end(world.groups[0].batches)
    assert [1] == told
    assert [] == world.quick
    world.end(world.groups[1].batches)
    assert [1, 2] == told
    commits.batch(make_batch(BILLING, 3), source)
    commits.kick_soon()
    world.clock.advance(0)
    assert [1, 2, 3] == told
    assert [[3]] == [[batch.sequence for batch in group.batches] for group in world.quick]


def test_26_who_waits_for_quiet_is_told_behind_a_group_that_was_written_at_once() -> None:
    world = World(is_quick=True)
    commits = world.commits
    commits.batch(make_batch(BILLING, 1), TellingSource([], lambda: kept.append(commits.hold())))
    kept: list[Deferred[None]] = []
    commits.kick_soon()
    world.clock.advance(0)
    (hold,) = kept
    assert hold.called
    commits.batch(make_batch(BILLING, 2), TellingSource([]))
    commits.kick_soon()
    world.clock.advance(0)
    assert 1 == len(world.quick)
    commits.go_on()
    world.clock.advance(0)
    assert 2 == len(world.quick)
    assert commits.idle().called


def test_a_group_that_fails_at_once_is_tried_again_after_a_while() -> None:
    world = World(is_quick=True)
    commits = world.commits
    append = world._append_now

    def fails(group: Group) -> Appended | None:
        world.commits._log = double(append=world._append, append_now=append)
        raise LogUnavailable("the disk says no")

    commits._log = double(append=world._append, append_now=fails)
    row = ReceiverRow(number=1, name="r1")
    made = commits.receiver(row)
    commits.status_from(StatusFrom(sender="shop", incarnation="i1", status_from=1))
    world.clock.advance(0)
    world.end([])
    assert made.called
    world.floor("web", 7)
    world.clock.advance(0.01)
    assert [] == world.quick
    world.clock.advance(RETRY_DELAY)
    assert [7] == [one.status_from for group in world.quick for one in group.statuses_from][-1:]


def test_a_fault_while_a_group_is_written_at_once_ends_the_node_as_on_the_thread(
    logged_failures: list[LogEvent],
) -> None:
    world = World(is_quick=True)
    commits = world.commits

    def fails(group: Group) -> Appended | None:
        raise ZeroDivisionError

    commits._log = double(append=world._append, append_now=fails)
    commits.batch(make_batch(BILLING, 1), LaneSource())
    commits.kick_soon()
    world.clock.advance(0)
    assert commits.is_stopped
    assert 1 == len(world.ended)
    assert ["log_failure"] == [key for key in logged_failures[0] if key == "log_failure"]
    logged_failures.clear()


class Answers:
    """Progress of a receiver, that says whose it was."""

    def __init__(self, number: int) -> None:
        self.number = number

    def take_progress(self, letters: int) -> Progress:
        return Progress(receiver=self.number, cursor=0)

    def progress_stored(self) -> None:
        pass

    def progress_failed(self) -> None:
        raise AssertionError(self.number)

    def fault(self, failure: Any) -> None:
        failure.raiseException()


def test_26_nobody_waits_for_the_answers_of_who_has_very_many_to_give() -> None:
    world = World()
    commits, lone, other, behind = world.commits, Answers(1), Answers(2), Answers(3)

    def receivers() -> list[list[int]]:
        return [[one.receiver for one in group.progress] for group in world.groups]

    commits.expect(behind, FEW_MESSAGES + 1)
    commits.progress(behind)
    world.clock.advance(0)
    assert [] == world.groups  # more of its answers come, and share its group
    commits.progress(lone)
    world.clock.advance(0)
    assert [[3, 1]] == receivers()
    commits.progress(behind)
    world.end([])
    world.clock.advance(0)
    assert 1 == len(world.groups)
    world.clock.advance(GATHER)
    assert [[3, 1], [3]] == receivers()
    world.end([])

    commits.expect(other, FEW_MESSAGES)
    commits.progress(lone)
    world.clock.advance(0)
    assert 2 == len(world.groups)  # the other was sent the same, and answers at once
    commits.progress(other)
    commits.expect(other, 0)
    world.clock.advance(0)
    assert [1, 2] == receivers()[-1]
    world.end([])

    commits.expect(behind, 0)
    commits.progress(behind)
    world.clock.advance(0)
    assert [3] == receivers()[-1]


def test_messages_come_alone_while_somebody_sends_and_little_waits_for_the_disk() -> None:
    world = World()
    commits = world.commits

    def send(size: int) -> None:
        commits.batch(make_batch(BILLING, 1, [b"x" * size]), TellingSource([]))
        commits.kick()
        world.end(world.groups[-1].batches)

    assert not commits.is_lone
    world.clock.advance(2 * LIVE_FOR)
    send(100)
    assert commits.is_lone
    send(FEW_BYTES)
    assert not commits.is_lone
    send(100)
    assert commits.is_lone
    world.clock.advance(LIVE_FOR)
    assert not commits.is_lone
