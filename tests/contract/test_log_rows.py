"""What is promised of logs over a `Store` only: of their rows, and between decision and commit.

Both kinds, since a damaged row does not say which file it was in. What every log promises is in
`test_log.py` and `test_log_retention.py`, which know `ILog` alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from msgservice.core.marks import Key
from msgservice.errors import LogFull
from msgservice.limits import Limits
from msgservice.message import Status
from msgservice.records import Batch, DeadLetter, Known, Progress, RefusedBatch, position_of
from tests.kit.door import by_hand
from tests.kit.logs import Driver, exception, make_batch

LIMITS = Limits(reserve_bytes=64 * 1024, keep_seconds=0, keep_bytes=0)


@pytest.fixture(params=["memory", "sqlite"])
def log(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Driver]:
    driver = Driver(request.param, tmp_path / "data", LIMITS).open()
    yield driver
    driver.close()


def test_a_damaged_row_of_one_receiver_costs_that_receiver_and_not_the_log(log: Driver) -> None:
    log.receivers(1, 2)
    audience = log.log.audience([1, 2])
    batches = [make_batch(audience, i, [b"a", b"b", b"c"]) for i in (1, 4)]
    log.append(*batches)
    first = batches[0].first
    bad = exception(1, first + 2, first, Status.DEAD)
    log.append(progress=[Progress(receiver=1, cursor=first - 1, exceptions=[bad])])
    log.reopen()
    assert log.snapshot.exceptions == {}
    assert ["1 damaged rows" in notice for notice in log.snapshot.notices] == [True]
    clash = exception(1, first, first, Status.QUEUED)
    log.append(progress=[Progress(receiver=1, cursor=first - 1, exceptions=[clash])])
    log.append(removed=[1])
    log.append(make_batch(audience, 7))
    log.reopen()
    removed = next(r for r in log.snapshot.receivers if r.number == 1)
    assert removed.settled == {Status.REMOVED: 6}
    assert log.wait(log.log.audit()) == []


def test_4_of_a_log_without_remembered_subjects_only_the_messages_count(tmp_path: Path) -> None:
    log = Driver("memory", tmp_path, LIMITS).open()
    log.receivers(1)
    audience = log.log.audience([1])
    batch = make_batch(audience, 1, [b"a"], subject="orders.new")
    log.append(batch)
    log.progress(1, batch.last, settled={Status.ACKNOWLEDGED: 1})
    log.wait(log.log.retain(1))
    assert log.log._store.state.oldest == 2
    with by_hand(log.log._store.db) as db:
        db.execute("update run set crc = crc & 4294967295")
    (outcome,) = log.append(make_batch(audience, 1, [b"a"], subject="orders.old"))
    assert isinstance(outcome, Known)
    (outcome,) = log.append(make_batch(audience, 1, [b"b"], subject="orders.new"))
    assert isinstance(outcome, RefusedBatch)
    log.close()


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_5_whom_it_was_decided_to_forget_is_told_so_before_that_is_stored(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who asks between the decision and its commit is not told of marks that go with it."""
    told: list[int] = []
    driver: Driver
    asking = False

    def decided(keys: Sequence[Key]) -> list[Key]:
        nonlocal asking
        asking = True
        return let_go(keys)

    def at(point: str) -> None:
        if asking and point == "before commit":
            driver.log.resume("shop", "i00").addCallback(lambda found: told.append(found.floor))

    driver = Driver(kind, tmp_path, replace(LIMITS, incarnations=10), faults=at).open()
    audience = driver.log.audience([])
    names = [f"i{number:02}" for number in range(12)]
    driver.append(*[make_batch(audience, incarnation=name) for name in names])
    while driver.wait(driver.log.retain(0)):
        pass
    assert driver.resume("shop", "i00").floor == 2
    let_go = driver.log._retention.senders.resumed.let_go
    monkeypatch.setattr(driver.log._retention.senders.resumed, "let_go", decided)
    driver.wait(driver.log.retain(8 * 24 * 3600 * 1000, [("shop", name) for name in names[1:]]))
    asking = False
    assert set(told) == {1}
    assert driver.resume("shop", "i00").floor == 1
    driver.close()


@pytest.mark.parametrize("size", [20, 110, 1_000, 3_000, 9_000])
def test_what_is_left_of_batches_behind_an_open_one_takes_its_own_bytes_only(
    log: Driver, size: int
) -> None:
    log.receivers(1, 2)
    both = log.log.audience([1, 2])
    one = log.log.audience([1])
    log.append(make_batch(both, 1))  # which receiver 2 is away for
    for first in range(2, 602, 100):
        log.append(*(make_batch(one, first + i, [b"a" * size]) for i in range(100)))
    log.progress(1, position_of(601, 0), settled={Status.ACKNOWLEDGED: 601})
    while log.wait(log.log.retain(1)):
        pass
    db = log.log._store.db
    ((rows, kept),) = db.execute("select count(*), count(frame) from batch").fetchall()
    assert (rows, kept) == (601, 1)
    pages = "select page_count - freelist_count from pragma_page_count, pragma_freelist_count"
    ((used,),) = db.execute(pages).fetchall()
    # A page for each table and index that has few rows; 300 bytes are the page's promise.
    ((roots,),) = db.execute("select count(*) from sqlite_schema where rootpage").fetchall()
    assert int(str(used)) * 4096 <= 600 * 300 + int(str(roots)) * 4096
    assert log.wait(log.log.audit()) == []


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_batches_are_refused_when_an_open_one_keeps_too_many_rows_and_taken_when_it_is_settled(
    tmp_path: Path, kind: str
) -> None:
    log = Driver(
        kind, tmp_path / "data", replace(LIMITS, kept_batches=50, keep_seconds=3600)
    ).open()
    log.receivers(1, 2)
    one = log.log.audience([1])
    log.append(make_batch(log.log.audience([2]), 1))
    log.append(*(make_batch(one, i) for i in range(2, 51)))
    (refused,) = log.append(make_batch(one, 51))
    assert isinstance(refused, RefusedBatch)
    assert isinstance(refused.error, LogFull)
    assert "50 batches are kept from the oldest open one on, at most 50" in str(refused.error)
    assert "at most 50 (kept_batches)" in str(log.log.room().full)
    # What others settled gives nothing back while the oldest is open ...
    log.progress(1, position_of(50, 0), settled={Status.ACKNOWLEDGED: 49})
    (refused,) = log.append(make_batch(one, 51))
    assert isinstance(refused, RefusedBatch)
    # ... and all of it, though it is history still, when it is not.
    log.progress(2, position_of(50, 0), settled={Status.ACKNOWLEDGED: 1})
    for now in (1, 2):
        log.wait(log.log.retain(now))
    assert log.log.room().full is None
    log.append(*(make_batch(one, i) for i in range(51, 101)))
    assert log.log.room().full is not None
    log.progress(1, position_of(100, 0), settled={Status.ACKNOWLEDGED: 50})
    log.progress(2, position_of(100, 0))
    (stored,) = log.append(make_batch(one, 101))  # which history gives way to
    assert isinstance(stored, Batch)
    assert log.wait(log.log.audit()) == []
    log.close()


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_history_goes_at_the_limit_of_rows_only_where_rows_go_with_it(
    tmp_path: Path, kind: str
) -> None:
    """A row goes with the rows before it only: history behind an open batch goes for nothing."""
    limits = replace(LIMITS, kept_batches=50, keep_seconds=3600, keep_bytes=10**6)
    log = Driver(kind, tmp_path / "data", limits).open()
    log.receivers(1, 2)
    one, two = log.log.audience([1]), log.log.audience([2])
    opened = {1, 30}  # which receiver 2 is away for
    log.append(*(make_batch(two if i in opened else one, i) for i in range(1, 51)))
    log.progress(1, position_of(50, 0), settled={Status.ACKNOWLEDGED: 48})

    def pass_by(sequence: int) -> None:
        (refused,) = log.append(make_batch(one, sequence))  # which looks for what may give way
        assert isinstance(refused, RefusedBatch)
        for now in (1, 2):
            log.wait(log.log.retain(now))

    def framed() -> list[int]:
        return [batch.number for batch in log.read([one, two])]

    pass_by(51)
    assert framed() == [*range(1, 51)]
    log.progress(2, position_of(1, 0), settled={Status.ACKNOWLEDGED: 1})
    for now in (1, 2):
        log.wait(log.log.retain(now))
    assert framed() == [*range(30, 51)]
    assert log.log.room().full is None
    log.append(*(make_batch(one, i) for i in range(51, 80)))
    log.progress(1, position_of(79, 0), settled={Status.ACKNOWLEDGED: 29})
    pass_by(80)
    assert framed() == [*range(30, 80)]
    assert log.wait(log.log.audit()) == []
    log.close()


def test_who_is_refused_is_told_what_dead_letters_leave_of_the_room(tmp_path: Path) -> None:
    log = Driver("memory", tmp_path, replace(LIMITS, max_bytes=30_000)).open()
    log.receivers(1)
    audience = log.log.audience([1])
    batch = make_batch(audience, 1, [b"a"])
    log.append(batch)
    letter = DeadLetter(1, batch.first, "shop", "i1", 1, "s", b"x" * 25_000, "", 1, 0)
    log.progress(1, batch.last, settled={Status.DEAD: 1}, dead=[letter])
    log.wait(log.log.retain(1))
    room = log.log.room()
    assert room.used == log.log.dead_bytes(1) > 25_000
    (refused,) = log.append(batch := make_batch(audience, 2, [b"b" * 6_000]))
    assert isinstance(refused, RefusedBatch)
    said = f"0 bytes are used of the {30_000 - room.used} that dead letters leave of max_bytes"
    assert said in str(refused.error)
    assert f"{batch.size} more" in str(refused.error)
    log.close()
