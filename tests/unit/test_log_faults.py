"""Disks that fail: syncs, writes, no room (SEMANTICS 2, 19; RELIABILITY I15-I17)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from twisted.logger import LogEvent

from msgservice.errors import LogFailed, LogFull, LogUnavailable
from msgservice.limits import INTEGER_MAX, Limits
from msgservice.log.store import Store
from msgservice.message import Status
from msgservice.records import (
    START,
    Batch,
    Known,
    Progress,
    RefusedBatch,
    Replay,
    ReplayPage,
    Resume,
    StatusFrom,
)
from tests.kit.faulty_vfs import Faults, faulty_vfs
from tests.kit.logs import NOW, Driver, make_batch, numbers

WAL = "log.db-wal"


@pytest.fixture
def faults() -> Iterator[Faults]:
    with faulty_vfs() as faults:
        yield faults


@pytest.fixture
def log(faults: Faults, tmp_path: Path) -> Iterator[Driver]:
    driver = Driver("sqlite", tmp_path / "data", vfs="faulty").open()
    yield driver
    faults.sync = faults.write = faults.full = lambda name: False
    driver.close()


def once(name: str) -> Callable[[str], bool]:
    """Return a fault that strikes this file once."""
    left = [name]

    def strikes(other: str) -> bool:
        if left and other == name:
            left.clear()
            return True
        return False

    return strikes


def test_19_every_commit_is_synced_before_it_is_told(log: Driver, faults: Faults) -> None:
    audience = log.log.audience([1])
    for i in range(1, 11):
        before = faults.syncs.count(WAL)
        log.append(make_batch(audience, i))
        assert faults.syncs.count(WAL) > before


@pytest.mark.parametrize("fault", ["sync", "write"])
def test_19_a_group_whose_sync_fails_is_not_told_and_can_be_handed_in_again(
    log: Driver, faults: Faults, fault: str
) -> None:
    log.receivers(1)
    audience = log.log.audience([1])
    log.append(make_batch(audience, 1))
    setattr(faults, fault, once(WAL))
    batch = make_batch(audience, 2)
    try:
        log.append(batch, progress=[Progress(receiver=1, cursor=1 << 16)])
    except LogUnavailable:
        # as if it had never been handed in
        assert (batch.number, batch.stored_at) == (0, 0)
        assert log.resume("shop", "i1").floor == 2
        assert numbers(log.read([audience])) == [1]
    else:
        pytest.fail("the injected fault did not strike")
    faults.syncs.clear()
    (outcome,) = log.append(make_batch(audience, 2))
    assert isinstance(outcome, Batch)
    assert numbers(log.read([audience])) == [1, 2]
    assert log.wait(log.log.audit()) == []
    log.reopen()
    assert numbers(log.read([log.log.audience([1])])) == [1, 2]


def test_19_after_a_failed_sync_every_page_is_written_anew_and_synced(
    log: Driver, faults: Faults
) -> None:
    audience = log.log.audience([1])
    log.append(make_batch(audience, 1))
    faults.syncs.clear()
    faults.sync = once(WAL)
    with pytest.raises(LogUnavailable):
        log.append(make_batch(audience, 2))
    assert "log.db" in faults.syncs[1:], "the file was not synced by a checkpoint"


def test_19_a_log_that_cannot_be_made_whole_fails_for_good(log: Driver, faults: Faults) -> None:
    audience = log.log.audience([1])
    log.append(make_batch(audience, 1))
    faults.sync = lambda name: True
    for _ in range(3):
        with pytest.raises(LogFailed):
            log.append(make_batch(audience, 2))
    faults.sync = lambda name: False
    with pytest.raises(LogFailed):
        log.append(make_batch(audience, 2))
    assert log.resume("shop", "i1").floor == 2


def test_19_what_was_told_survives_a_failed_sync_and_a_crash(
    log: Driver, faults: Faults, tmp_path: Path
) -> None:
    import shutil

    audience = log.log.audience([1])
    told = []
    for i in range(1, 40):
        if i % 7 == 0:
            faults.sync = once(WAL)
        try:
            log.append(make_batch(audience, i, [b"%d" % i]))
        except LogUnavailable:
            (outcome,) = log.append(make_batch(audience, i, [b"%d" % i]))
            assert isinstance(outcome, Batch | Known)
        told.append(i)
    shutil.copytree(log.folder, tmp_path / "crashed")
    crashed = Driver("sqlite", tmp_path / "crashed").open()
    read = crashed.read([crashed.log.audience([1])])
    assert told == [batch.sequence for batch in read]
    crashed.close()


# --- room ----------------------------------------------------------------------------------------


def test_19_on_a_full_disk_batches_are_refused_and_the_rest_is_stored(
    log: Driver, faults: Faults
) -> None:
    """The disk has room again only when the reserve is given up."""
    log.receivers(1)
    audience = log.log.audience([1])
    first = make_batch(audience, 1)
    log.append(first)
    reserve = log.folder / "reserve"
    assert reserve.exists()
    faults.full = lambda name: reserve.exists()
    batch = make_batch(audience, 2)
    (outcome,) = log.append(
        batch,
        progress=[Progress(receiver=1, cursor=first.last, settled={Status.ACKNOWLEDGED: 1})],
        statuses_from=[StatusFrom(sender="shop", incarnation="i1", status_from=2)],
    )
    assert isinstance(outcome, RefusedBatch)
    assert isinstance(outcome.error, LogFull)
    assert outcome.error.delay > 0
    assert not reserve.exists()
    assert batch.number == 0
    assert log.resume("shop", "i1").floor == 2
    assert log.unaccounted() == [0]
    assert log.log.room().full is not None
    # made anew before anything is accepted again
    (outcome,) = log.append(make_batch(audience, 2))
    assert isinstance(outcome, RefusedBatch), "accepted on the blocks of the reserve"
    faults.full = lambda name: False
    (outcome,) = log.append(make_batch(audience, 2))
    assert isinstance(outcome, Batch)
    assert reserve.exists()
    assert log.log.room().full is None
    log.reopen()
    assert log.snapshot.receivers[0].cursor == first.last


def test_47_what_is_due_waits_for_who_is_to_become_a_member_with_a_page_without_room(
    log: Driver, faults: Faults
) -> None:
    """It was decided for the new member, who has not had its history: it would come before that."""
    log.receivers(1)
    delayed = make_batch(log.log.audience([]), 1, due_at=NOW)
    log.append(delayed)
    start = Replay(2, START, 0, 0, INTEGER_MAX)
    log.receivers(2)
    log.append(replays=[start])
    reserve = log.folder / "reserve"
    faults.full = lambda name: reserve.exists()

    def group() -> dict[str, Any]:
        (due,) = log.wait(log.log.due(NOW, (0, 0), 10))
        due.audience = log.log.audience([1, 2])
        over = msgspec.structs.replace(start, next=1, end=0)
        return {"pages": [ReplayPage(0, over)], "due": [due]}

    appended = log.appended(**group())
    assert isinstance(appended.pages[0], LogFull)
    assert appended.stored == []
    assert log.log.next_due() == NOW
    faults.full = lambda name: False
    appended = log.appended(**group())
    assert appended.pages == ["stored"]
    assert [batch.sequence for batch in appended.stored] == [1]
    assert log.log.next_due() is None
    assert log.wait(log.log.audit()) == []


def test_43_what_is_due_moves_on_the_blocks_of_the_reserve(log: Driver, faults: Faults) -> None:
    log.receivers(1)
    log.append(make_batch(log.log.audience([]), 1, due_at=NOW))
    reserve = log.folder / "reserve"
    faults.full = lambda name: reserve.exists()
    (due,) = log.wait(log.log.due(NOW, (0, 0), 10))
    due.audience = log.log.audience([1])
    refused = make_batch(log.log.audience([1]), 2)
    appended = log.appended(refused, due=[due])
    assert [batch.sequence for batch in appended.stored] == [1]
    assert isinstance(appended.outcomes[0], RefusedBatch)
    assert log.log.next_due() is None


def test_19_a_disk_too_full_even_for_states_is_unavailable_not_broken(
    log: Driver, faults: Faults
) -> None:
    log.receivers(1)
    audience = log.log.audience([1])
    log.append(make_batch(audience, 1))
    faults.full = lambda name: True
    with pytest.raises(LogUnavailable):
        log.append(make_batch(audience, 2), progress=[Progress(receiver=1, cursor=1 << 16)])
    faults.full = lambda name: False
    (outcome,) = log.append(make_batch(audience, 2))
    assert isinstance(outcome, Batch)
    assert log.wait(log.log.audit()) == []


def test_19_retention_takes_the_reserve_on_a_full_disk(faults: Faults, tmp_path: Path) -> None:
    limits = Limits(reserve_bytes=64 * 1024, keep_seconds=0, keep_bytes=0)
    log = Driver("sqlite", tmp_path / "data", limits, vfs="faulty").open()
    log.receivers(1)
    audience = log.log.audience([1])
    batches = [make_batch(audience, i, [b"x" * 3000]) for i in range(1, 20)]
    log.append(*batches)
    log.progress(1, batches[-1].last, settled={Status.ACKNOWLEDGED: 19})
    reserve = log.folder / "reserve"
    faults.full = lambda name: reserve.exists()
    while log.wait(log.log.retain(NOW + 1)):
        pass
    assert log.log.room().used == 0
    faults.full = lambda name: False
    log.close()


@pytest.mark.parametrize("what", ["sync", "write"])
@pytest.mark.parametrize("name", [WAL, "log.db"])
def test_19_a_disk_that_fails_once_while_the_log_is_closed_fails_no_stop(
    faults: Faults, tmp_path: Path, what: str, name: str
) -> None:
    """What was told is written anew and synced, as after any failed sync."""
    log = Driver("sqlite", tmp_path / "data", vfs="faulty").open()
    log.receivers(1)
    audience = log.log.audience([1])
    log.append(*[make_batch(audience, i) for i in range(1, 20)])
    struck: list[str] = []
    strikes = once(name)

    def fail(other: str) -> bool:
        if strikes(other):
            struck.append(other)
            return True
        return False

    setattr(faults, what, fail)
    log.close()
    assert struck == [name]
    again = Driver("sqlite", tmp_path / "data", vfs="faulty").open()
    assert numbers(again.read([again.log.audience([1])])) == [*range(1, 20)]
    assert again.wait(again.log.audit()) == []
    again.close()


def test_an_unknown_failure_of_one_group_leaves_no_trace(tmp_path: Path) -> None:
    """SEMANTICS 2: dedupe, counters and numbers are as before."""
    strike: list[str] = []

    def faults(point: str) -> None:
        if point in strike:
            raise RuntimeError(point)

    log = Driver("sqlite", tmp_path, faults=faults).open()
    log.receivers(1)
    audience = log.log.audience([1])
    log.append(make_batch(audience, 1))
    strike.append("before commit")
    batch = make_batch(audience, 2, incarnation="i1")
    new = make_batch(log.log.audience([1, 9]), 1, incarnation="i2")
    with pytest.raises(RuntimeError, match="before commit"):
        log.append(batch, new, progress=[Progress(receiver=1, cursor=5, settled={3: 1})])
    strike.clear()
    assert (batch.number, new.number) == (0, 0)
    assert not new.audience.stored
    assert log.resume("shop", "i2") == Resume()
    log.append(batch, new)
    assert numbers(log.read([audience, new.audience])) == [1, 2, 3]
    assert log.unaccounted() == [0]
    assert log.wait(log.log.audit()) == []
    log.close()


def test_19_the_wal_stays_small_beside_readers_that_never_rest(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Their short transactions overlap, so there is always somebody somewhere in the WAL."""
    import threading

    from msgservice.disk import database
    from msgservice.log import store

    monkeypatch.setattr(store, "CHECKPOINT_BYTES", 64 * 1024)
    monkeypatch.setattr(store, "WAL_BYTES", 256 * 1024)
    log = Driver("sqlite", tmp_path).open()
    audience = log.log.audience([1])
    done = threading.Event()

    def read() -> None:
        reader = database.connect(str(tmp_path / "log.db"), readonly=True)
        while not done.is_set():
            reader.execute("begin")
            reader.execute("select max(number) from batch").fetchall()
            done.wait(0.003)
            reader.execute("rollback")
        reader.close()

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    largest = 0
    for i in range(1, 201):
        log.append(make_batch(audience, i, [b"x" * 20_000]))
        largest = max(largest, (tmp_path / "log.db-wal").stat().st_size)
    done.set()
    for reader in readers:
        reader.join()
    log.close()
    assert largest < 1024 * 1024


def test_a_fault_of_our_own_while_the_log_is_folded_in_is_logged(
    log: Driver, monkeypatch: pytest.MonkeyPatch, logged_failures: list[LogEvent]
) -> None:
    faults = [ValueError("a fault of ours")]

    def checkpoint(self: Store, **more: bool) -> None:
        if faults:
            raise faults.pop()

    audience = log.log.audience([1])
    monkeypatch.setattr(Store, "wants_checkpoint", property(lambda self: True))
    monkeypatch.setattr(Store, "checkpoint", checkpoint)
    log.append(make_batch(audience, 1))
    log.append(make_batch(audience, 2))  # behind it
    assert [str(event["log_failure"].value) for event in logged_failures] == ["a fault of ours"]
    logged_failures.clear()
