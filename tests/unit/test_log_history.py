"""Pages of a sender's history: nothing is left out, whatever outlived its batch (SEMANTICS 11)."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import pytest

from msgservice.disk.database import connect
from msgservice.log import history, queries, staging
from msgservice.log.base import read_transaction
from msgservice.message import Status
from msgservice.records import ExceptionRow, Group, History, Progress, position_of
from tests.kit.logs import NOW, Driver, exception, make_batch

Row = tuple[int, int, int, int, str]  # receiver, first, last, status, reason


def log_with(folder: Path, finished: list[Row]) -> Driver:
    """A log in which sender 1 has these rows of removed batches, and batches behind them."""
    log = Driver("memory", folder).open()
    log.receivers(1)
    audience = log.log.audience([1])
    log.append(*[make_batch(audience, kept_from(finished) + 3 * n, [b"x"] * 3) for n in range(5)])
    log.log._store.db.executemany(
        "insert into finished(sender, receiver, first, last, status, reason, at)"
        " values (1, ?, ?, ?, ?, ?, ?)",
        [(*row, NOW) for row in finished],
    )
    return log


def kept_from(finished: list[Row]) -> int:
    return max((row[2] for row in finished), default=0) + 1


def kept(pages: list[History]) -> list[int]:
    """The sequences that are still in the log, as told."""
    pieces = [piece for page in pages for piece in page.pieces]
    return [n for piece in pieces for n in range(piece.first, piece.last + 1)]


def pages_of(log: Driver, first: int = 1, pieces: int = 1000) -> list[History]:
    pages = []
    at: int | None = first
    while at is not None:
        page = log.wait(log.log.history("shop", "i1", at, pieces))
        assert all(at <= state.first <= state.last for state in page.states)
        if page.next is not None:
            assert page.next > at
            assert all(state.last < page.next for state in page.states)
        pages.append(page)
        at = page.next
    return pages


def told(pages: list[History]) -> dict[tuple[int, int], tuple[int, str]]:
    """(receiver, sequence) -> state and reason; each is told once."""
    found: dict[tuple[int, int], tuple[int, str]] = {}
    for page in pages:
        for state in page.states:
            for sequence in range(state.first, state.last + 1):
                assert (state.receiver, sequence) not in found
                found[state.receiver, sequence] = (int(state.status), state.reason)
    return found


def expected(finished: list[Row], first: int = 1) -> dict[tuple[int, int], tuple[int, str]]:
    return {
        (receiver, sequence): (status, reason)
        for receiver, low, high, status, reason in finished
        for sequence in range(max(low, first), high + 1)
    }


def test_11_a_long_history_is_told_whole(tmp_path: Path) -> None:
    finished = [
        (receiver, n, n + step - 1, 5 - 2 * (n // step % 2), "")
        for receiver, step in ((1, 1), (2, 3), (3, 50_000), (4, 100_000))
        for n in range(1, 100_001, step)
    ]
    assert len(finished) > 130_000
    log = log_with(tmp_path, finished)
    pages = pages_of(log)
    assert told(pages) == expected(finished)
    assert max(len(page.states) for page in pages) <= history.FINISHED_PAGE
    # One receiver with many takes what the others leave.
    assert len(pages) <= 2 * len(finished) / history.FINISHED_PAGE
    begin = kept_from(finished)
    assert kept(pages) == list(range(begin, begin + 15))


@pytest.mark.parametrize("seed", range(30))
def test_11_every_page_goes_on_where_the_one_before_ended(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(seed)
    monkeypatch.setattr(history, "FINISHED_PAGE", rng.choice([1, 4, 20]))
    finished: list[Row] = []
    for receiver in range(1, rng.randint(1, 6)):
        at = rng.randint(1, 20)
        while at < 200:
            length = rng.choice([1, 1, 2, 30])
            reason = rng.choice(["", 'a "reason"\\', "nul \0, \n and ü"])
            finished.append((receiver, at, at + length - 1, rng.choice([3, 5]), reason))
            at += length + rng.choice([0, 0, 3])
    log = log_with(tmp_path, finished)
    first = rng.randint(1, 150)
    pages = pages_of(log, first, rng.randint(1, 6))
    assert told(pages) == expected(finished, first)
    begin = kept_from(finished)
    assert kept(pages) == list(range(max(first, begin), begin + 15))


def test_a_page_of_large_audiences_has_fewer_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "MEMBERS_MAX", 25)
    log = Driver("memory", tmp_path).open()
    numbers = list(range(1, 11))
    log.receivers(*numbers)
    audience = log.log.audience(numbers)
    log.append(*[make_batch(audience, n) for n in range(1, 8)])
    pages = pages_of(log)
    assert [len(page.pieces) for page in pages] == [2, 2, 2, 1]
    assert [piece.first for page in pages for piece in page.pieces] == list(range(1, 8))
    wide = log.log.audience(list(range(1, 40)))
    log.append(make_batch(wide, 8))
    assert [len(page.pieces) for page in pages_of(log)][-1] == 1  # one alone, however wide


def test_a_page_ends_inside_a_batch_where_it_must(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "FINISHED_PAGE", 2)
    log = Driver("memory", tmp_path).open()
    log.receivers(1)
    batch = make_batch(log.log.audience([1]), 1, [b"x"] * 10)
    log.append(batch)
    log.log._store.db.executemany(
        "insert into finished values (1, 9, ?, ?, 5, '', 0, null)", [(n, n) for n in range(1, 11)]
    )
    log.progress(1, batch.last, settled={Status.ACKNOWLEDGED: 10})
    pages = pages_of(log)
    assert len(pages) > 2
    assert kept(pages) == list(range(1, 11))
    pieces = [piece for page in pages for piece in page.pieces]
    assert [piece.position - batch.first for piece in pieces] == [p.first - 1 for p in pieces]
    (own,) = [state for state in pages[0].states if state.receiver == 1]
    assert (own.status, own.first, own.last) == (Status.ACKNOWLEDGED, 1, pieces[0].last)


def lines_run(call: Callable[[], object], module: ModuleType = history) -> int:
    """How many lines of a module run: steps, whatever the machine."""
    count = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal count
        if frame.f_code.co_filename != module.__file__:
            return None
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return count


def test_a_batch_of_many_exceptions_takes_steps_in_proportion() -> None:
    def steps(count: int) -> int:
        rows = [ExceptionRow(1, 2 * n, 2 * n, Status.DEAD) for n in range(count)]
        return lines_run(lambda: history.segments(0, 2 * count, -1, rows))

    assert steps(2000) < 2.5 * steps(1000)


def test_a_group_of_many_exceptions_takes_steps_in_proportion(tmp_path: Path) -> None:
    log = Driver("memory", tmp_path).open()
    log.receivers(1, 2, 3)
    store = log.log._store

    def work(receiver: int, count: int) -> int:
        at = position_of(1)
        rows = [exception(receiver, at + 2 * n, at + 2 * n) for n in range(count)]
        step = Progress(receiver=receiver, cursor=0, exceptions=rows[::-1])
        return lines_run(lambda: store.append(Group(now=NOW, progress=[step])), staging)

    assert work(2, 2000) < 2.5 * work(1, 1000)


def test_a_page_of_many_batches_with_exceptions_takes_steps_in_proportion(tmp_path: Path) -> None:
    log = Driver("memory", tmp_path).open()
    log.receivers(1)
    audience = log.log.audience([1])
    log.append(*[make_batch(audience, 1 + 3 * n, [b"x"] * 3) for n in range(800)])
    store = log.log._store
    rows = [
        (1, position_of(number, 1), position_of(number, 1), int(Status.DEAD))
        for number in range(1, 801)
    ]
    store.db.executemany(
        "insert into exception(receiver, first, last, status, attempts, next_at, reason)"
        " values (?, ?, ?, ?, 1, 0, 'never')",
        rows,
    )

    def page(pieces: int) -> History:
        return history.history(store.db, store.state, "shop", "i1", 1, pieces)

    assert [state.first for state in page(800).states] == [2 + 3 * n for n in range(800)]
    assert lines_run(lambda: page(800)) < 2.5 * lines_run(lambda: page(400))


def test_where_exceptions_overlap_the_one_that_begins_later_says_more() -> None:
    rows = [
        ExceptionRow(1, 2, 9, Status.ACKNOWLEDGED),
        ExceptionRow(1, 4, 6, Status.DEAD),
        ExceptionRow(1, 5, 5, Status.EXPIRED),
        ExceptionRow(1, 20, 30, Status.DEAD),
    ]
    parts = history.segments(1, 22, 2, rows)
    assert [part[:3] for part in parts] == [
        (1, 1, Status.ACKNOWLEDGED),
        (2, 3, Status.ACKNOWLEDGED),
        (4, 4, Status.DEAD),
        (5, 5, Status.EXPIRED),
        (6, 6, Status.DEAD),
        (7, 9, Status.ACKNOWLEDGED),
        (10, 19, Status.QUEUED),
        (20, 22, Status.DEAD),
    ]


# --- tables and state of two moments -------------------------------------------------------------


class BetweenCommitAndAdoption:
    """What a reader finds in the tables while the writer has not adopted what it committed."""

    def __init__(self, log: Driver, ask: Callable[[Any, Any], Any]) -> None:
        self.found: Any = None
        self._log, self._ask = log, ask
        store = log.log._store
        self._transact = store.transact
        store.transact = self._committing  # type: ignore[method-assign]

    def _committing(self, operations: Any) -> None:
        self._transact(operations)
        store = self._log.log._store
        db = connect(str(self._log.folder / "log.db"), readonly=True)
        with read_transaction(db):
            self.found = self._ask(db, store.state)
        db.close()


def test_8_a_page_between_commit_and_adoption_has_the_audience_of_a_new_set(tmp_path: Path) -> None:
    """It said that nobody gets the message, at a position of its own: a send failed for that."""
    log = Driver("sqlite", tmp_path).open()
    log.receivers(1, 2)
    log.append(make_batch(log.log.audience([1])))
    seen = BetweenCommitAndAdoption(
        log, lambda db, state: history.history(db, state, "shop", "i1", 1, 1000)
    )
    log.append(make_batch(log.log.audience([1, 2]), 2))
    assert [(1, 1, (1,)), (2, 2, (1, 2))] == [
        (piece.first, piece.last, piece.audience.members) for piece in seen.found.pieces
    ]
    assert seen.found.pieces[1].audience.number == log.log.audience([1, 2]).number
    log.close()


def test_11_a_message_of_a_new_sender_is_found_between_commit_and_adoption(tmp_path: Path) -> None:
    log = Driver("sqlite", tmp_path).open()
    log.receivers(1)
    name = f"log:{position_of(1)}"
    seen = BetweenCommitAndAdoption(log, lambda db, state: history.find(db, state, name))
    log.append(make_batch(log.log.audience([1])))
    assert (seen.found.sender, list(seen.found.states)) == ("shop", [1])
    seen._ask = lambda db, state: queries.batches_of(db, state, [1, 2])
    log.append(make_batch(log.log.audience([1]), sender="web"))
    assert [("shop", (1,)), ("web", (1,))] == [
        (batch.sender, batch.audience.members) for batch in seen.found
    ]
    log.close()


def test_11_a_page_of_before_its_audience_was_forgotten_has_it(tmp_path: Path) -> None:
    log = Driver("sqlite", tmp_path).open()
    log.receivers(1)
    log.append(make_batch(log.log.audience([1])))
    log.progress(1, position_of(1), settled={int(Status.ACKNOWLEDGED): 1})
    db = connect(str(tmp_path / "log.db"), readonly=True)
    with read_transaction(db):
        assert db.execute("select count(*) from batch").get == 1  # of this moment from now on
        log.log.want_room("audiences")
        while log.wait(log.log.retain(0)):
            pass
        state = log.log._store.state
        assert state.totals == {}
        page = history.history(db, state, "shop", "i1", 1, 1000)
        found = history.find(db, state, f"log:{position_of(1)}")
    db.close()
    assert [(1,)] == [piece.audience.members for piece in page.pieces]
    assert found is not None
    assert list(found.states) == [1]
    log.close()


def test_a_position_of_too_many_digits_is_unknown(tmp_path: Path) -> None:
    log = Driver("sqlite", tmp_path).open()
    assert log.wait(log.log.find("log:" + "9" * 5000)) is None
    log.close()
