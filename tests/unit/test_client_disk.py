"""A producer whose outbox is on disk: SEMANTICS 26, and 6 over a restart. Real files, real SQLite.

A crash is a copy of the files at that moment, opened by another client: what a kill leaves.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.logger import LogEvent

from msgservice.client.client import Client
from msgservice.client.connect import _with_disk
from msgservice.client.disk import DiskOutbox, open_outbox
from msgservice.client.receipt import OPEN_RECEIPTS
from msgservice.core.features import OF_NODES
from msgservice.core.frames import BYE_CLOSING, Transfer
from msgservice.core.runs import producer_run
from msgservice.errors import (
    ClientClosed,
    Expired,
    LogFailed,
    LogLocked,
    LogUnavailable,
    OutboxFull,
    OutboxOfAnother,
    Refused,
)
from msgservice.message import Action
from tests.kit.clients import ClientWorld, error_of, errors_logged, now
from tests.kit.faulty_vfs import faulty_vfs
from tests.kit.threads import ThreadCalls

BYTES_MAX = 1 << 20


class DiskWorld(ClientWorld):
    """A `ClientWorld` whose client has its outbox in `folder`."""

    def __init__(
        self,
        folder: Path,
        *,
        bytes_max: int = BYTES_MAX,
        receipts_max: int = OPEN_RECEIPTS,
        vfs: str | None = None,
        **options: Any,
    ) -> None:
        self.calls = ThreadCalls()
        self.folder = folder
        opening = open_outbox(
            self.calls,
            folder / "outbox.db",
            bytes_max=bytes_max,
            receipts_max=receipts_max,
            vfs=vfs,
        )
        self.disk: DiskOutbox = self.calls.wait(opening)
        super().__init__(outbox=self.disk, held=(100_000, bytes_max), **options)

    def start(self) -> None:
        self.client.start()
        self.settle()
        # What the node took last may be in pages that are not read: the file is looked at first.
        self.calls.wait(_once(self, lambda: self.client.connected))

    def written(self) -> None:
        """End the turn, and wait until all of it is on disk."""
        self.settle()
        while self.disk.writing:
            call, args, kwargs = self.calls._calls.get(timeout=60)
            call(*args, **kwargs)
        self.settle()

    def crash(self, folder: Path) -> Path:
        """Return a folder with what the disk holds now."""
        shutil.copytree(self.folder, folder, ignore=shutil.ignore_patterns("*.lock"))
        return folder

    def close(self) -> None:
        closed = self.client.close()
        self.written()
        if not self.client.connected:
            self.advance(self.limits.stop_timeout)  # it waits for a node that is away
        self.calls.wait(closed)


def restarted(before: DiskWorld, folder: Path, **options: Any) -> DiskWorld:
    """A new process on what a crash left, with the same node."""
    world = DiskWorld(before.crash(folder), start=False, **options)
    world.node.goes_on(before.node)
    world.node.stored = before.node.stored
    world.start()
    return world


def test_26_send_fires_when_it_is_on_disk_and_accepted_when_the_node_has_it(
    tmp_path: Path,
) -> None:
    world = DiskWorld(tmp_path, start=False)
    sent = world.client.send("a", b"1")
    world.written()
    receipt = now(sent)
    assert (None, (), 1) == (receipt.position, receipt.receivers, receipt.sequence)
    accepted, settled = receipt.accepted, receipt.settled()
    assert not accepted.called
    world.start()
    assert now(accepted) is receipt
    assert (1 << 16, ("r1", "r2")) == (receipt.position, receipt.receivers)
    world.say_acknowledged(1)
    assert 2 == len(now(settled))
    world.close()


def test_5_one_that_comes_back_with_its_disk_does_not_end_its_incarnation(tmp_path: Path) -> None:
    world = DiskWorld(tmp_path)
    world.client.send("a", b"1")
    world.written()
    world.close()
    assert world.node.bodies() == [b"1"]
    assert world.node.byes == [BYE_CLOSING]


def test_26_send_many_fires_when_it_is_on_disk(tmp_path: Path) -> None:
    world = DiskWorld(tmp_path, start=False)
    sent = world.client.send_many("a", [b"1", b"2"])
    world.written()
    receipts = now(sent)
    accepted = receipts.accepted
    world.start()
    assert now(accepted) is receipts
    assert [1 << 16, (1 << 16) + 1] == [receipt.position for receipt in receipts]
    world.close()


def test_26_nothing_travels_before_it_is_on_disk(tmp_path: Path) -> None:
    world = DiskWorld(tmp_path)
    sent = world.client.send("a", b"1")
    world.settle()
    assert [] == world.node.transfers
    assert not sent.called
    world.written()
    assert [b"1"] == world.node.bodies()
    world.close()


def test_26_a_killed_producer_goes_on_from_its_sequence_and_nothing_is_stored_twice(
    tmp_path: Path,
) -> None:
    world = DiskWorld(tmp_path / "first")
    world.node.answering = False
    for number in range(3):
        world.client.send("a", b"%d" % number)
        world.client.send("b", b"%d" % number, to=["billing"], require=True)
    world.written()
    assert 6 == world.client.sequence
    world.client.send("a", b"of a turn that never ended")
    again = restarted(world, tmp_path / "second")
    again.settle()
    assert 6 == again.client.sequence
    assert 6 == len(again.node.stored)
    assert 0 == again.client.unanswered
    sent = again.client.send("a", b"3")
    again.written()
    assert 7 == now(sent).sequence
    assert [b"0", b"1", b"2", b"3"] == again.node.bodies("a")
    assert again.disk.incarnation == again.node.hellos[-1].incarnation == world.disk.incarnation
    again.close()


def test_26_what_an_earlier_process_left_travels_as_it_was_handed_over(tmp_path: Path) -> None:
    world = DiskWorld(tmp_path / "first", start=False)
    world.client.send("a", {"x": 1}, to=["billing"], require=True, id="o-1")
    world.client.send_many("b", [b"1", b"2"])
    world.written()
    again = restarted(world, tmp_path / "second")
    (first,) = [stored for stored in again.node.stored if stored.subject == "a"]
    assert (("billing",), 4, "o-1") == (first.to, first.flags, first.message.id)
    assert [b"1", b"2"] == again.node.bodies("b")
    assert [1, 2, 3] == [stored.sequence for stored in again.node.stored]
    assert 1 == again.node.hellos[-1].options.status_from  # whose receipts are open
    world.close()
    again.close()


@pytest.fixture
def pages_of_three(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("msgservice.client.outbox_left.PAGE_RUNS", 3)


def left_behind(folder: Path, count: int) -> DiskWorld:
    """A producer that was killed with so many runs in its outbox."""
    world = DiskWorld(folder, start=False)
    for number in range(1, count + 1):
        world.client.send("ab"[number % 2], b"%d" % number)
        world.written()
    return world


@pytest.mark.usefixtures("pages_of_three")
@pytest.mark.parametrize("window", [1, 2, 5, 100])
def test_26_what_was_left_is_read_in_pages_and_goes_before_what_is_new(
    tmp_path: Path, window: int
) -> None:
    before = left_behind(tmp_path / "first", 10)
    world = restarted(before, tmp_path / "second", window=(window, BYTES_MAX))
    sent = [world.client.send("a", b"new %d" % n) for n in (1, 2)]
    world.written()
    world.calls.wait(_once(world, lambda: world.client.unanswered == 0))
    receipts = [now(one) for one in sent]
    assert [11, 12] == [receipt.sequence for receipt in receipts]
    assert [b"%d" % n for n in range(1, 11)] + [b"new 1", b"new 2"] == world.node.bodies()
    assert world.client.sequence == 12
    world.client.send("a", b"last")
    world.written()
    assert world.disk.file.settled_to == 12
    world.close()


@pytest.mark.usefixtures("pages_of_three")
def test_26_what_is_not_read_yet_counts_as_held_and_survives_another_crash(
    tmp_path: Path,
) -> None:
    before = left_behind(tmp_path / "first", 10)
    world = restarted(before, tmp_path / "second", window=(1, BYTES_MAX))
    world.node.answering = False
    world.client.send("a", b"new")
    world.written()
    assert world.client.unanswered == 11 - len(world.node.stored) + 1
    again = restarted(world, tmp_path / "third")
    again.calls.wait(_once(again, lambda: again.client.unanswered == 0))
    assert [b"%d" % n for n in range(1, 11)] + [b"new"] == again.node.bodies()
    again.close()


@pytest.mark.usefixtures("pages_of_three")
def test_26_what_the_node_has_of_pages_not_read_is_not_sent_again(
    tmp_path: Path, logged: list[LogEvent]
) -> None:
    before = left_behind(tmp_path / "first", 10)
    world = restarted(before, tmp_path / "second")
    world.calls.wait(_once(world, lambda: world.client.unanswered == 0))
    assert len(world.node.transfers) == 10
    # The crash lost all settlements: the file has them still, the node says that it has them.
    world.node.transfers.clear()
    before.node.goes_on(world.node)
    again = restarted(before, tmp_path / "third")
    again.calls.wait(_once(again, lambda: again.client.unanswered == 0))
    assert again.node.transfers == []
    assert errors_logged(logged) == []
    world.close()
    again.close()


def _once(world: DiskWorld, condition: Any) -> Deferred[None]:
    """Fire when the condition holds; threads are waited for by whoever waits for this."""
    done: Deferred[None] = Deferred()

    def look(*_: object) -> None:
        world.settle()
        if condition():
            done.callback(None)
        else:
            # Behind whatever the outbox's thread does now: no loop that takes all the time.
            world.disk.file._file.submit(lambda: None).addCallback(look)

    look()
    return done


def test_26_the_sequence_counts_whole_turns(tmp_path: Path) -> None:
    world = DiskWorld(tmp_path, start=False)
    for turn in range(1, 4):
        for subject in "abc":
            world.client.send_many(subject, [b"x"] * 250)
        assert (turn - 1) * 750 == world.client.sequence
        world.written()
        assert turn * 750 == world.client.sequence
    world.close()


def test_26_the_limit_of_the_file_fails_with_outbox_full(tmp_path: Path) -> None:
    world = DiskWorld(tmp_path, bytes_max=10_000, start=False)
    fired: list[Deferred[Any]] = [world.client.send("a", b"x" * 1000) for _ in range(9)]
    full = error_of(world.client.send("a", b"x" * 1000), OutboxFull)
    assert 10_000 == full.size_max < full.size
    assert world.client.blocked
    error_of(world.client.send_many("a", [b"x" * 1000]), OutboxFull)
    world.written()
    assert all(one.called for one in fired)
    world.start()
    sent = world.client.send("a", b"x" * 1000)
    world.written()
    assert 10 == now(sent).sequence
    world.close()


def test_26_small_runs_count_for_what_they_take_in_memory(tmp_path: Path) -> None:
    world = DiskWorld(tmp_path, bytes_max=20_000, start=False)
    for _ in range(19):
        world.client.send("a", b"x")
        world.written()  # a turn of its own, so a run of its own
    assert world.client.blocked
    world.client.send("a", b"x")
    world.written()
    error_of(world.client.send("a", b"x"), OutboxFull)
    assert world.client.unanswered == 20
    world.start()
    assert (world.client.unanswered, world.client.blocked) == (0, False)
    assert world.client._flow.room_bytes == 20_000  # all of it was given back
    world.close()


def test_26_what_was_left_counts_against_the_limit(tmp_path: Path) -> None:
    world = DiskWorld(tmp_path / "first", start=False)
    for _ in range(5):
        world.client.send("a", b"x" * 1000)
    world.written()
    again = DiskWorld(world.crash(tmp_path / "second"), bytes_max=5_500, start=False)
    assert 5 == again.client.unanswered
    error_of(again.client.send("a", b"x" * 1000), OutboxFull)
    again.start()
    assert 0 == again.client.unanswered
    world.close()
    again.close()


def test_26_the_file_is_locked(tmp_path: Path) -> None:
    world = DiskWorld(tmp_path, start=False)
    with pytest.raises(LogLocked):
        world.calls.wait(open_outbox(world.calls, tmp_path / "outbox.db", bytes_max=BYTES_MAX))
    world.close()
    other = DiskWorld(tmp_path, start=False)
    other.close()


def test_the_file_is_another_senders_as_long_as_something_of_it_is_open(tmp_path: Path) -> None:
    calls, path = ThreadCalls(), tmp_path / "outbox.db"

    def opened(sender: str) -> Any:
        return calls.wait(open_outbox(calls, path, bytes_max=BYTES_MAX, sender=sender))

    world = DiskWorld(tmp_path, start=False)  # of before there were names in it
    world.client.send("a", b"x")
    world.written()
    world.close()
    calls.wait(opened("shop").file.close())
    with pytest.raises(OutboxOfAnother, match="of the sender 'shop'") as refused:
        opened("cli")
    assert ("shop", str(path)) == (refused.value.sender, refused.value.path)
    disk = opened("shop")  # as it was
    assert 1 == disk.sequence
    calls.wait(disk.forget(1, 1))
    disk.file.settle([(1, 1)])
    calls.wait(disk.file.close())
    calls.wait(opened("cli").file.close())
    calls.wait(opened("shop").file.close())


def test_26_it_is_not_blocked_by_a_node_that_is_away(tmp_path: Path) -> None:
    world = DiskWorld(tmp_path, start=False, window=(2, 1000))
    for _ in range(10):
        world.client.send("a", b"x")
    assert not world.client.blocked
    world.close()


def test_a_full_disk_fails_the_turn_and_the_next_may_pass(
    tmp_path: Path, logged: list[LogEvent]
) -> None:
    world = DiskWorld(tmp_path, start=False)
    db = world.disk.file._file.db
    assert db is not None
    pages = db.execute("pragma page_count").get
    db.execute(f"pragma max_page_count = {pages + 2}")
    lost = world.client.send("a", b"x" * 100_000)
    many = world.client.send_many("b", [b"x" * 100_000])
    world.written()
    error_of(lost, LogUnavailable)
    error_of(many, LogUnavailable)
    assert (0, 0) == (world.client.sequence, world.client.unanswered)
    assert errors_logged(logged)
    db.execute("pragma max_page_count = 1000000")
    kept = world.client.send("a", b"small")
    world.written()
    assert 3 == now(kept).sequence
    world.start()
    assert [b"small"] == world.node.bodies()
    world.close()


def test_19_a_failed_outbox_says_so_until_it_is_opened_again_and_loses_nothing(
    tmp_path: Path, logged: list[LogEvent]
) -> None:
    with faulty_vfs() as faults:
        world = DiskWorld(tmp_path, start=False, vfs="faulty")
        kept = world.client.send("a", b"kept")
        world.written()
        now(kept)
        faults.sync = lambda name: True
        failed = world.client.send("a", b"in doubt")
        world.written()
        assert "close the client, then connect" in str(error_of(failed, LogFailed))
        faults.sync = lambda name: False
        refused = world.client.send("a", b"refused")
        world.written()
        assert str(tmp_path) in str(error_of(refused, LogFailed))
        assert (1, 1) == (world.client.sequence, world.client.unanswered)
        world.start()  # what is on disk travels all the same
        assert [b"kept"] == world.node.bodies()
        world.close()
        again = DiskWorld(tmp_path, vfs="faulty")
        sent = again.client.send("a", b"new")
        again.written()
        now(now(sent).accepted)
        bodies = again.node.bodies()
        assert [b"new"] == [body for body in bodies if body not in (b"kept", b"in doubt")]
        again.close()
        assert errors_logged(logged)


def test_a_refusal_is_told_to_who_waits_and_logged(tmp_path: Path, logged: list[LogEvent]) -> None:
    world = DiskWorld(tmp_path)
    world.node.refusal = lambda transfer: (Action.REFUSED, 0, "not allowed")
    sent = world.client.send("a", b"1")
    world.written()
    error_of(now(sent).accepted, Refused)
    assert {} == now(now(sent).settled())
    (event,) = [e for e in logged if e["log_level"].name == "error"]
    assert (1, 1, "a", "not allowed") == (
        event["first"],
        event["last"],
        event["subject"],
        event["reason"],
    )
    again = restarted(world, tmp_path / "second")
    assert 0 == again.client.unanswered
    world.close()
    again.close()


def refuse_b(transfer: Transfer) -> tuple[Action, int, str] | None:
    return (Action.REFUSED, 0, "no") if transfer.subject == "b" else None


def test_1_what_was_refused_is_below_the_floor_that_a_node_is_told_once_that_is_on_disk(
    tmp_path: Path,
) -> None:
    world = DiskWorld(tmp_path)
    world.node.refusal = refuse_b
    for _ in range(10):
        for subject in "ab":
            world.client.send(subject, b"x")
            world.written()
    # What was settled when a run was written is settled on disk with it, and the node is told.
    assert (world.node.transfers[-1].floor, world.disk.file.settled_to) == (20, 19)
    world.close()


def test_1_the_floor_never_passes_what_a_crash_brings_back(tmp_path: Path) -> None:
    world = DiskWorld(tmp_path / "first")
    world.node.answering = False
    for subject in "abab":
        world.client.send(subject, b"x")
        world.written()
    world.node.refusal = refuse_b
    world.node.answering = True
    world.node.answer()
    world.settle()
    assert (world.client.unanswered, world.disk.file.settled_to) == (0, 0)
    world.node.cut()  # and what it says next is not that these are settled
    world.advance(40.0)
    world.client.send("a", b"new")
    crashed = world.crash(tmp_path / "second")
    assert {t.floor for t in world.node.transfers} <= {0, 1}
    world.written()
    world.close()
    again = DiskWorld(crashed, start=False)
    assert (again.client.unanswered, again.disk.file.settled_to) == (4, 0)
    again.close()


def test_1_a_node_that_has_no_room_for_more_ranges_is_told_of_what_is_settled(
    tmp_path: Path,
) -> None:
    world = DiskWorld(tmp_path)
    world.node.cut()
    world.node.is_up = False
    for subject in "bbba":
        world.client.send(subject, b"x")
        world.written()

    def refuse(transfer: Transfer) -> tuple[Action, int, str] | None:
        if transfer.subject == "b":
            return Action.REFUSED, 0, "no"
        # What comes behind them waits until the node hears that nothing is missing there.
        return (Action.LATER, 0, "no room") if transfer.floor <= 3 else None

    world.node.refusal = refuse
    world.node.is_up = True
    for _ in range(4):
        world.advance(10.0)
        world.calls.wait(world.disk.file.between(0, 0))  # behind all that the thread does
    assert world.node.bodies("a") == [b"x"]
    assert world.client.unanswered == 0
    world.close()


def test_6_a_new_incarnation_is_on_disk_before_it_is_used(
    tmp_path: Path, logged: list[LogEvent]
) -> None:
    world = DiskWorld(tmp_path / "first")
    old = world.disk.incarnation
    world.node.answering = False
    sent = world.client.send("a", b"open")
    world.written()
    world.node.inboxes[old].marks.take(0, 100)
    world.node.cut()
    world.node.answering = True
    world.advance(2.0)
    assert old == world.node.hellos[-1].incarnation
    call, args, kwargs = world.calls._calls.get(timeout=60)
    call(*args, **kwargs)
    world.advance(2.0)
    new = world.node.hellos[-1].incarnation
    assert new != old
    assert now(now(sent).accepted).sequence == 1
    assert errors_logged(logged)
    world.close()
    reopened = DiskWorld(world.crash(tmp_path / "second"), start=False)
    assert (new, 1) == (reopened.disk.incarnation, reopened.client.sequence)
    reopened.close()


def test_6_a_new_incarnation_that_finds_no_room_is_taken_when_there_is_some(
    tmp_path: Path, logged: list[LogEvent]
) -> None:
    with faulty_vfs() as faults:
        world = DiskWorld(tmp_path / "first", vfs="faulty")
        old = world.disk.incarnation
        world.node.answering = False
        sent = world.client.send("a", b"open")
        world.written()
        world.node.inboxes[old].marks.take(0, 100)
        faults.full = lambda name: name.endswith("-wal")
        world.node.cut()
        world.node.answering = True
        for _ in range(4):
            world.advance(5.0)
            world.calls.wait(world.disk.file.between(0, 0))  # behind all that the thread does
        assert (old, 1) == (world.node.hellos[-1].incarnation, world.client.unanswered)
        assert any("no room" in error for error in errors_logged(logged))
        faults.full = lambda name: False
        for _ in range(4):
            world.advance(20.0)
            world.calls.wait(world.disk.file.between(0, 0))
        assert world.node.hellos[-1].incarnation != old
        assert now(now(sent).accepted).sequence == 1
        world.close()


@pytest.mark.parametrize(("told", "again"), [([1] * 6, [6]), ([6], [1] * 6), ([6], [2, 3, 1])])
def test_6_an_older_copy_gives_sequences_anew_however_they_are_cut(
    tmp_path: Path, told: list[int], again: list[int]
) -> None:
    before = DiskWorld(tmp_path / "first")
    older = before.crash(tmp_path / "older")
    send_in_runs(before, "old", told)
    assert len(before.node.stored) == 6
    restored = DiskWorld(older, start=False)
    restored.node.goes_on(before.node)
    send_in_runs(restored, "new", again)
    restored.client.start()
    emptied(restored)
    assert restored.node.bodies() == [b"new %d" % n for n in range(6)]
    for world in (before, restored):
        world.close()


@pytest.mark.usefixtures("pages_of_three")
def test_6_an_older_copy_is_noticed_where_the_newest_run_is_not_read_yet(tmp_path: Path) -> None:
    first = DiskWorld(tmp_path / "first")
    older = first.crash(tmp_path / "older")
    send_in_runs(first, "old", [1] * 8 + [2])
    restored = DiskWorld(older, start=False)
    send_in_runs(restored, "new", [1] * 10)
    again = DiskWorld(restored.crash(tmp_path / "third"), start=False)
    again.node.goes_on(first.node)
    again.client.start()
    emptied(again)
    assert again.node.bodies() == [b"new %d" % n for n in range(10)]
    for world in (first, restored, again):
        world.close()


def emptied(world: DiskWorld) -> None:
    """Let it connect as often as it takes, until the node has all."""

    def is_empty() -> bool:
        world.advance(2.0)
        return world.client.unanswered == 0

    world.calls.wait(_once(world, is_empty))


def send_in_runs(world: DiskWorld, word: str, sizes: list[int]) -> None:
    number = 0
    for size in sizes:
        world.client.send_many("a", [b"%s %d" % (word.encode(), number + n) for n in range(size)])
        number += size
        world.written()


def test_6_a_node_that_forgot_is_reported_after_a_restart_too(
    tmp_path: Path, logged: list[LogEvent]
) -> None:
    world = DiskWorld(tmp_path)
    world.client.send_many("a", [b"x"] * 5)
    world.written()
    world.close()
    again = DiskWorld(tmp_path, start=False)
    again.node.forget()
    again.start()
    assert ["'node' has forgotten sequences 1 to 5, which it had acknowledged"] == errors_logged(
        logged
    )
    again.close()


def test_5_a_node_that_forgot_who_was_long_away_is_no_loss_after_a_restart(
    tmp_path: Path, logged: list[LogEvent]
) -> None:
    world = DiskWorld(tmp_path)
    world.client.send_many("a", [b"x"] * 5)
    world.written()
    world.close()
    again = DiskWorld(tmp_path)
    assert [] == errors_logged(logged)
    sent = again.client.send("a", b"new")
    again.written()
    assert now(now(sent).accepted).sequence == 6
    again.close()
    # What it has of this process it may not lose.
    third = DiskWorld(tmp_path, start=False)
    third.node.forget()
    third.start()
    assert ["'node' has forgotten sequences 1 to 6, which it had acknowledged"] == errors_logged(
        logged
    )
    third.close()


def test_6_what_was_refused_before_a_restart_is_not_taken_for_forgotten(
    tmp_path: Path, logged: list[LogEvent]
) -> None:
    world = DiskWorld(tmp_path)
    world.node.refusal = lambda t: (Action.REFUSED, 0, "no") if t.subject == "b" else None
    for subject in ("a", "b", "a"):
        world.client.send(subject, b"x")
        world.written()
    world.close()
    logged.clear()
    again = restarted(world, tmp_path.with_name("second"))
    assert [] == errors_logged(logged)
    again.close()


@pytest.mark.parametrize("how", ["refused", "expired"])
def test_6_the_newest_that_no_node_has_taken_is_not_taken_for_forgotten_after_a_restart(
    tmp_path: Path, logged: list[LogEvent], how: str
) -> None:
    world = DiskWorld(tmp_path, start=False)
    world.node.features = list(OF_NODES)
    world.start()
    world.client.send("a", b"taken")
    world.written()
    last = newest_untaken(world, how, "a")
    world.close()
    logged.clear()
    again = DiskWorld(tmp_path, start=False)
    again.node.goes_on(world.node)
    again.node.stored = world.node.stored
    again.start()
    assert again.client.sequence == last
    assert [] == errors_logged(logged)
    # What it has taken it may not lose.
    again.close()
    third = DiskWorld(tmp_path, start=False)
    third.node.forget()
    third.start()
    assert ["'node' has forgotten sequences 1 to 1, which it had acknowledged"] == errors_logged(
        logged
    )
    third.close()


def newest_untaken(world: DiskWorld, how: str, subject: str) -> int:
    """Hand over what the node refuses, or what expires before it is there; return its sequence."""
    if how == "refused":
        world.node.refusal = lambda t: (Action.REFUSED, 0, "no")
    else:
        world.node.is_up = False
        world.node.connections[-1].abort()
        world.settle()
    sent = world.client.send(subject, b"untaken", ttl=5.0)
    world.written()
    world.advance(6.0)
    error_of(now(sent).accepted, Refused if how == "refused" else Expired)
    return now(sent).sequence


def test_6_an_older_copy_whose_newest_expired_unsent_is_noticed_after_a_restart_too(
    tmp_path: Path,
) -> None:
    """Else what was handed over before that would be taken for what the node has: a loss."""
    first = DiskWorld(tmp_path / "first")
    older = first.crash(tmp_path / "older")
    send_in_runs(first, "old", [1, 1])
    restored = DiskWorld(older, start=False)
    send_in_runs(restored, "new", [1])
    sent = restored.client.send("a", b"over", ttl=5.0)
    restored.written()
    restored.advance(6.0)
    error_of(now(sent).accepted, Expired)
    restored.close()
    again = DiskWorld(older, start=False)
    again.node.goes_on(first.node)
    again.client.start()
    emptied(again)
    assert again.node.bodies() == [b"new 0"]
    for world in (first, again):
        world.close()


def test_close_writes_what_was_handed_over(tmp_path: Path) -> None:
    world = DiskWorld(tmp_path, start=False)
    sent = world.client.send("a", b"1")
    closed = world.client.close()
    error_of(world.client.send("a", b"2"), ClientClosed)
    world.written()
    world.calls.wait(closed)
    waiting = now(sent).accepted
    error_of(waiting, ClientClosed)
    again = DiskWorld(tmp_path)
    assert [b"1"] == again.node.bodies()
    again.close()


def test_26_close_waits_until_what_was_left_is_sent(tmp_path: Path, logged: list[LogEvent]) -> None:
    before = DiskWorld(tmp_path / "before", start=False)
    before.client.send("a", b"1")
    before.written()
    world = DiskWorld(before.crash(tmp_path / "after"), start=False)
    before.close()
    logged.clear()
    world.client.start()
    closed = world.client.close()  # before it has dialled even once
    world.written()
    world.calls.wait(closed)
    assert [b"1"] == world.node.bodies()
    assert 0 == world.client.unanswered
    assert [] == [event for event in logged if event["log_level"].name == "warn"]


def test_26_close_waits_for_a_node_that_comes_back(tmp_path: Path) -> None:
    world = DiskWorld(tmp_path, start=False)
    world.node.is_up = False
    world.client.start()
    world.client.send("a", b"1")
    world.written()
    closed = world.client.close()
    world.written()
    assert not closed.called
    world.node.is_up = True
    world.advance(0.5)
    world.calls.wait(closed)
    assert [b"1"] == world.node.bodies()
    assert 0 == world.client.unanswered


def test_26_close_says_what_stays_in_the_file(tmp_path: Path, logged: list[LogEvent]) -> None:
    world = DiskWorld(tmp_path, start=False)
    world.node.is_up = False
    world.client.start()
    world.client.send_many("a", [b"1", b"2"])
    world.written()
    closed = world.client.close()
    world.written()
    assert not closed.called
    world.advance(world.limits.stop_timeout)  # and no longer than that
    world.calls.wait(closed)
    assert 2 == world.client.unanswered
    (event,) = [event for event in logged if event["log_level"].name == "warn"]
    assert (2, str(tmp_path / "outbox.db")) == (event["unanswered"], event["path"])


def test_a_connector_that_cannot_be_stopped_does_not_keep_the_outbox(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged_failures: list[LogEvent]
) -> None:
    world = DiskWorld(tmp_path)

    def fails() -> None:
        raise RuntimeError("stop failed")

    monkeypatch.setattr(world.client._connector, "stopService", fails)
    world.close()
    assert ["stop failed"] == [event["log_failure"].getErrorMessage() for event in logged_failures]
    logged_failures.clear()
    DiskWorld(tmp_path, start=False).close()


def test_an_outbox_is_closed_again_where_the_client_cannot_be_made(tmp_path: Path) -> None:
    world = DiskWorld(tmp_path, start=False)

    def fails(disk: DiskOutbox) -> Client:
        raise TypeError("name=5")

    with pytest.raises(TypeError):
        world.calls.wait(_with_disk(world.disk, fails))
    DiskWorld(tmp_path, start=False).close()


class Counted(int):
    """A number that counts what it is compared with."""

    compared = 0

    def __eq__(self, other: object) -> bool:
        Counted.compared += 1
        return int(self) == other

    def __lt__(self, other: int) -> bool:
        Counted.compared += 1
        return int(self).__lt__(other)

    __hash__ = int.__hash__


def test_what_could_not_be_written_is_taken_back_without_a_walk_over_what_is_open(
    tmp_path: Path,
) -> None:
    world = DiskWorld(tmp_path, start=False)
    file = world.disk.file
    runs = [producer_run(first, 1, "a", b"x") for first in range(1, 2001)]
    for run in runs:
        file._add(run)
    file._firsts = [Counted(first) for first in file._firsts]
    Counted.compared = 0
    file._remove(runs[1900:])
    assert Counted.compared <= 100 * 20
    assert list(range(1, 1901)) == [int(first) for first in file._firsts]
    file._remove(runs[:1900])
    world.close()
