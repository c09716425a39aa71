"""Pages of a backlog: what one costs the reader does not grow with what waits behind it."""

from __future__ import annotations

from pathlib import Path

from msgservice.records import Batch
from tests.kit.logs import Driver, make_batch

STEPS = 10  # of SQLite's virtual machine, between two counts
GROWTH = 1.5  # of what a page costs with ten times as much behind it
RUN, PAGE = 200, 4096  # messages


def cost_of_a_page(waiting: int) -> tuple[int, list[Batch]]:
    """Return the steps of SQLite that the first page of so many runs takes, and the page."""
    log = Driver("memory", Path())
    log.open()
    audience = log.log.audience([1])
    bodies = [b"a"] * RUN
    log.append(*(make_batch(audience, RUN * n + 1, bodies) for n in range(waiting)))
    steps = [0]

    def progress() -> bool:
        steps[0] += STEPS
        return False

    db = log.log._store.db
    db.set_progress_handler(progress, STEPS)
    try:
        page = log.read([audience], bytes_max=1 << 22, messages_max=PAGE)
    finally:
        db.set_progress_handler(None)
    return steps[0], page


def test_a_page_costs_the_same_however_much_waits_behind_it() -> None:
    (few, short), (many, page) = cost_of_a_page(40), cost_of_a_page(400)
    assert PAGE // RUN == len(short) == len(page)
    assert 0 < many <= GROWTH * few, (few, many)


def test_a_page_of_small_runs_is_as_full_as_one_of_large_ones() -> None:
    log = Driver("memory", Path())
    log.open()
    audience, other = log.log.audience([1]), log.log.audience([2])
    log.append(*(make_batch(other if n % 3 else audience, n + 1) for n in range(3000)))
    page = log.read([audience], bytes_max=1 << 22, messages_max=900)
    assert [*range(1, 2700, 3)] == [batch.number for batch in page]
