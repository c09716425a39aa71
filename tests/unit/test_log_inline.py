"""Groups that are written on the reactor's thread: which these are, and when all go to the other.

The rule alone, and real logs whose points say on which thread they are.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest
from twisted.internet.task import Clock

from msgservice.errors import BadValue
from msgservice.limits import Limits
from msgservice.log.inline import (
    INLINE_BATCHES,
    INLINE_BYTES,
    INLINE_PROGRESS,
    INLINE_ROWS,
    PAUSE_FACTOR,
    PAUSE_MAX,
    PAUSE_MIN,
    QUICK,
    RECENT,
    STALLED,
    VARIABLE,
    Inline,
    InlineCommits,
    inline_commits,
)
from msgservice.log.memory import MemoryLog
from msgservice.log.sqlite import SqliteLog
from msgservice.message import Status
from msgservice.records import (
    Audience,
    Batch,
    Cancel,
    DeadLetter,
    ExceptionRow,
    Group,
    LettersTaken,
    Progress,
    ReceiverRow,
)
from tests.kit.faulty_vfs import faulty_vfs
from tests.kit.logs import NOW, make_batch
from tests.kit.threads import ThreadCalls

BILLING = Audience(1, (1,), stored=True)
BATCH = make_batch(BILLING)
ROW = ExceptionRow(1, 1, 1, Status.EXPIRED, 0, 0, "")
LETTER = DeadLetter(
    receiver=1,
    position=1,
    sender="shop",
    incarnation="i1",
    sequence=1,
    subject="s",
    message=b"",
    reason="",
    attempts=1,
    at=NOW,
)


def some_progress(**more: Any) -> Progress:
    return Progress(receiver=1, cursor=1, **more)


# --- the rule


@pytest.mark.parametrize(
    "group",
    [
        Group(batches=[BATCH]),
        Group(batches=[BATCH] * INLINE_BATCHES),
        Group(progress=[some_progress(exceptions=[ROW] * INLINE_ROWS)]),
        Group(progress=[some_progress()] * INLINE_PROGRESS, batches=[BATCH]),
    ],
)
def test_small_groups_are_written_on_the_reactors_thread(group: Group) -> None:
    assert Inline("auto", Limits()).takes(group, INLINE_BYTES, 0.0)
    assert not Inline("off", Limits()).takes(group, 0, 0.0)


@pytest.mark.parametrize(
    "group",
    [
        Group(batches=[BATCH] * (INLINE_BATCHES + 1)),
        Group(progress=[some_progress()] * (INLINE_PROGRESS + 1)),
        Group(progress=[some_progress(exceptions=[ROW] * 200)] * 2),
        Group(progress=[some_progress(dead=[LETTER])]),
        Group(receivers=[ReceiverRow(number=1, name="r1")], batches=[BATCH]),
        Group(own=[BATCH]),
        Group(removed=[1]),
        Group(letters=[LettersTaken(1, [1], [])]),
        Group(due=[BATCH]),
        Group(cancel=[Cancel("shop", "i1", 1, 1)]),
    ],
)
@pytest.mark.parametrize("how", ["auto", "on"])
def test_others_are_not(how: InlineCommits, group: Group) -> None:
    assert not Inline(how, Limits()).takes(group, 0, 0.0)


@pytest.mark.parametrize("how", ["auto", "on"])
def test_nor_are_many_bytes(how: InlineCommits) -> None:
    assert not Inline(how, Limits()).takes(Group(batches=[BATCH]), INLINE_BYTES + 1, 0.0)


@pytest.mark.parametrize("limits", [Limits(heartbeat=3.0), Limits(heartbeat=5.0, silence=1.5)])
def test_heartbeats_that_leave_no_margin_keep_the_disk_off_the_reactors_thread(
    limits: Limits,
) -> None:
    group = Group(batches=[BATCH])
    assert not Inline("auto", limits).takes(group, 0, 0.0)
    assert Inline("on", limits).takes(group, 0, 0.0)
    assert Inline("auto", Limits(heartbeat=5.0)).takes(group, 0, 0.0)


class Ruled:
    """A rule, and the time."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.rule = Inline("auto", Limits())

    def commits(self, *seconds: float) -> None:
        for one in seconds:
            assert self.takes
            self.now += one
            self.rule.took(one, self.now)

    @property
    def takes(self) -> bool:
        return self.rule.takes(Group(batches=[BATCH]), 0, self.now)

    def pause(self) -> float:
        """Return how long none is written so, from now on."""
        begin, step = self.now, PAUSE_MIN / 4
        while not self.takes:
            self.now += step
        return round(self.now - begin, 1)


def test_a_disk_that_stalls_is_noticed_after_one_commit() -> None:
    ruled = Ruled()
    ruled.commits(*[0.0002] * RECENT, STALLED + 2)
    assert not ruled.takes
    assert PAUSE_MAX == ruled.pause()
    ruled.commits(0.0002)


def test_slow_commits_are_few_or_all_go_to_the_thread() -> None:
    ruled = Ruled()
    for _ in range(5):  # one of a hundred
        ruled.commits(QUICK * 2, *[0.0002] * (RECENT - 1))
    ruled.commits(QUICK * 2, *[0.0002] * (RECENT - 2), QUICK * 2)
    assert not ruled.takes


def test_a_disk_that_stays_slow_takes_a_fiftieth_of_the_time() -> None:
    ruled = Ruled()
    ruled.commits(QUICK * 2, QUICK * 2)
    began, slow = ruled.now, 0.0
    for _ in range(100):
        ruled.pause()
        ruled.commits(QUICK * 2)  # one is enough: the spell goes on
        slow += QUICK * 2
    assert slow <= (ruled.now - began) / 50


@pytest.mark.parametrize("seconds", [STALLED * 1.5, 2.0, 10.0])
def test_a_disk_that_stalls_again_and_again_holds_the_reactor_up_once_in_each_pause(
    seconds: float,
) -> None:
    ruled, random = Ruled(), Random(f"stalls {seconds}")
    began, stalls = ruled.now, 50
    for _ in range(stalls):
        ruled.commits(*[0.0002] * random.choice((0, 1, RECENT, RECENT * 3)), seconds)
        ruled.pause()
    pause = min(PAUSE_FACTOR * seconds, PAUSE_MAX)
    assert stalls * (seconds + pause) <= ruled.now - began


@pytest.mark.parametrize(
    ("seconds", "pause"), [(STALLED * 2, 10), (STALLED * 3, 15), (1.2, 60), (30.0, 60)]
)
def test_the_slower_a_commit_the_longer_is_none_written_so(seconds: float, pause: float) -> None:
    ruled = Ruled()
    ruled.commits(seconds)
    assert pause == ruled.pause()


def test_what_was_slow_for_a_moment_is_forgotten_in_a_second() -> None:
    ruled = Ruled()
    for _ in range(5):
        ruled.commits(QUICK * 1.01, QUICK * 1.01)
        assert 1 <= ruled.pause() <= 1.25
        ruled.commits(*[0.0002] * RECENT)


def test_the_variable_has_three_values(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert ["auto", "on", "off"] == [inline_commits(said) for said in ("auto", "on", "off")]
    monkeypatch.setenv(VARIABLE, "yes")
    with pytest.raises(BadValue, match=f"{VARIABLE} is auto, on or off, not 'yes'"):
        SqliteLog(tmp_path, reactor=ThreadCalls(), limits=Limits())


# --- real logs


class Calls(ThreadCalls):
    """What threads hand in, and a time that a test moves."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.seconds = self.clock.seconds


class Written:
    """A log with a receiver, and on which thread its points were."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.calls = Calls()
        self.points: list[tuple[str, bool]] = []
        self.log = SqliteLog(
            folder, reactor=self.calls, limits=Limits(), faults=self._note, **options
        )
        self.calls.wait(self.log.open())
        self.calls.wait(
            self.log.append(Group(now=NOW, receivers=[ReceiverRow(number=1, name="r1")]))
        )
        self.audience = self.log.audience([1])
        self._sequence = 0
        self.points.clear()

    def _note(self, point: str) -> None:
        self.points.append((point, threading.current_thread() is threading.main_thread()))

    def group(self) -> Group:
        self._sequence += 1
        return Group(now=NOW, batches=[make_batch(self.audience, self._sequence)])

    def stored(self) -> int:
        batches: list[Batch] = self.calls.wait(
            self.log.read([self.audience.number], 0, 1 << 40, 1 << 20, 1 << 20)
        )
        return sum(batch.count for batch in batches)


@contextmanager
def written(folder: Path, **options: Any) -> Iterator[Written]:
    made = Written(folder, **options)
    try:
        yield made
    finally:
        made.calls.wait(made.log.close())


def test_a_group_is_written_where_it_is_asked_for(tmp_path: Path) -> None:
    with written(tmp_path, inline="auto") as made:
        appended = made.log.append_now(made.group())
        assert appended is not None
        assert [1] == [batch.number for batch in appended.stored]
        assert [("before commit", True), ("after commit", True)] == made.points
        made.points.clear()
        made.calls.wait(made.log.append(made.group()))
        assert [("before commit", False), ("after commit", False)] == made.points
        assert 2 == made.stored()


def test_not_where_it_is_switched_off(tmp_path: Path) -> None:
    with written(tmp_path, inline="off") as made:
        assert made.log.append_now(made.group()) is None
        assert [] == made.points


def test_nor_where_each_group_waits_for_its_mark(tmp_path: Path) -> None:
    with written(tmp_path, inline="on", mark="strict") as made:
        assert made.log.append_now(made.group()) is None


def retained(made: Written) -> Any:
    return made.log.retain(1000)


def cleared(made: Written) -> Any:
    return made.log.clear_retained(["s"])


@pytest.mark.parametrize("work", [retained, cleared])
def test_the_connection_has_one_owner_at_a_time(
    work: Callable[[Written], Any], tmp_path: Path
) -> None:
    with written(tmp_path, inline="on") as made:
        working = work(made)
        # Whether it is done by now or not: nobody here knows yet.
        assert made.log.append_now(made.group()) is None
        made.calls.wait(working)
        assert made.log.append_now(made.group()) is not None


def test_the_write_ahead_log_is_folded_in_by_the_thread(tmp_path: Path) -> None:
    with written(tmp_path, inline="on") as made:
        made.log._store.wrote(1 << 30)
        assert made.log.append_now(made.group()) is not None
        assert made.log.append_now(made.group()) is None  # the thread is at it
        made.calls.wait(made.log.retain(1000))
        folded = [here for point, here in made.points if point == "before checkpoint"]
        assert folded
        assert not any(folded)
        assert made.log.append_now(made.group()) is not None


def test_a_stall_in_the_midst_is_waited_for_once(tmp_path: Path) -> None:
    with faulty_vfs() as faults, written(tmp_path, inline="auto", vfs="faulty") as made:

        def stall(name: str) -> bool:
            made.calls.clock.advance(2.0)
            return False

        assert made.log.append_now(made.group()) is not None
        faults.sync = stall
        assert made.log.append_now(made.group()) is not None
        faults.sync = lambda name: False
        assert made.log.append_now(made.group()) is None
        made.calls.wait(made.log.append(made.group()))
        made.calls.clock.advance(PAUSE_MAX)
        assert made.log.append_now(made.group()) is not None
        # Those that were put off were not stored.
        assert 4 == made.stored()


def test_a_log_in_memory_is_never_quick_unless_it_is_told_to_be(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for said, is_quick in ((None, False), ("auto", False), ("off", False), ("on", True)):
        monkeypatch.delenv(VARIABLE, raising=False)
        if said is not None:
            monkeypatch.setenv(VARIABLE, said)
        clock = Clock()
        log = MemoryLog(reactor=clock, limits=Limits())
        opened = log.open()
        clock.advance(0)
        assert opened.called
        found = log.append_now(Group(now=NOW, batches=[BATCH]))
        assert is_quick is (found is not None)
        pending = log.clear_retained(["s"])  # something else is to be written first
        assert log.append_now(Group(now=NOW, batches=[BATCH])) is None
        clock.advance(0)
        assert pending.called
