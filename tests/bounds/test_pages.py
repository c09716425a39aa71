"""Pages of a backlog, and of a replay: what one costs does not grow with what waits behind it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import pytest

from msgservice.limits import INTEGER_MAX, Limits
from msgservice.log.store import CHECKPOINT_BYTES, REPLAY_PAGE_LEAST, Store
from msgservice.records import REWIND, START, Batch, Replay, ReplayPage, position_of
from tests.kit.logs import Driver, make_batch

STEPS = 10  # of SQLite's virtual machine, between two counts
GROWTH = 1.5  # of what a page costs with ten times as much behind it
RUN, PAGE = 200, 4096  # messages


def cost_of_a_page(
    waiting: int, page: Callable[[Driver], Sequence[Batch]]
) -> tuple[int, Sequence[Batch]]:
    """Return the steps of SQLite that the first page of so many runs takes, and the page."""
    log = Driver("memory", Path())
    log.open()
    log.receivers(1)
    audience = log.log.audience([1])
    bodies = [b"a"] * RUN
    log.append(*(make_batch(audience, RUN * n + 1, bodies) for n in range(waiting)))
    log.progress(1, position_of(waiting + 1) - 1)
    steps = [0]

    def progress() -> bool:
        steps[0] += STEPS
        return False

    db = log.log._store.db
    db.set_progress_handler(progress, STEPS)
    try:
        found = page(log)
    finally:
        db.set_progress_handler(None)
    return steps[0], found


def of_backlog(log: Driver) -> Sequence[Batch]:
    return log.read([log.log.audience([1])], bytes_max=1 << 22, messages_max=PAGE)


def of_rewind(log: Driver) -> Sequence[Batch]:
    rewind = Replay(1, REWIND, 0, 0, INTEGER_MAX)
    copies = log.log.replay(rewind, None, PAGE * len(b"a"), Limits().max_batch)
    return log.wait(copies).copies


@pytest.mark.parametrize("page", [of_backlog, of_rewind])
def test_a_page_costs_the_same_however_much_waits_behind_it(
    page: Callable[[Driver], Sequence[Batch]],
) -> None:
    (few, short), (many, found) = cost_of_a_page(40, page), cost_of_a_page(400, page)
    assert 0 < len(short) == len(found) <= PAGE // RUN
    assert 0 < many <= GROWTH * few, (few, many)


def test_pages_of_a_replay_are_folded_in_before_very_many_of_them_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Others wait while they are: so a fold is of a few of them, however small these are."""
    folds: list[int] = []
    stored: list[ReplayPage] = []
    checkpoint = Store.checkpoint

    def counted(self: Store, **more: bool) -> None:
        folds.append(len(stored))
        checkpoint(self, **more)

    log = Driver("memory", Path())
    log.open()
    log.receivers(1)
    row = Replay(1, START, 0, 0, INTEGER_MAX)
    log.append(replays=[row])
    monkeypatch.setattr(Store, "checkpoint", counted)
    each = CHECKPOINT_BYTES // REPLAY_PAGE_LEAST
    for _ in range(3 * each - 1):
        moved = msgspec.structs.replace(row, next=row.next + 1)
        stored.append(ReplayPage(row.next, moved))
        assert ["stored"] == log.appended(pages=stored[-1:]).pages
        row = moved
    assert [each, 2 * each] == folds


def test_a_page_of_small_runs_is_as_full_as_one_of_large_ones() -> None:
    log = Driver("memory", Path())
    log.open()
    audience, other = log.log.audience([1]), log.log.audience([2])
    log.append(*(make_batch(other if n % 3 else audience, n + 1) for n in range(3000)))
    page = log.read([audience], bytes_max=1 << 22, messages_max=900)
    assert [*range(1, 2700, 3)] == [batch.number for batch in page]
