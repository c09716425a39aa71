"""Accounts of many receivers: what they count, and what that costs (SEMANTICS 18, 23)."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from msgservice.log import accounts
from msgservice.message import Status, header_size, message_sizes
from msgservice.records import Account, Batch, Oldest, position_of
from tests.kit.logs import NOW, Driver, exception, make_batch

GROWTH = 2.5  # of what twice the input may cost


def opened() -> Driver:
    return Driver("memory", Path()).open()


class Model:
    """Receivers in many sets, each with a cursor and ranges above it, kept message by message."""

    def __init__(self, rng: random.Random, *, receivers: int, sets: int, batches: int) -> None:
        self.log = opened()
        self.rng = rng
        self.numbers = list(range(1, receivers + 1))
        self.log.receivers(*self.numbers)
        members = [rng.sample(self.numbers, rng.randint(0, receivers)) for _ in range(sets)]
        self.batches: list[Batch] = []
        sequence = 1
        for _ in range(batches):
            bodies = [bytes(rng.randrange(1, 300)) for _ in range(rng.choice([1, 1, 2, 9]))]
            audience = self.log.log.audience(rng.choice(members))
            self.batches.append(make_batch(audience, sequence, bodies))
            sequence += len(bodies)
        self.log.append(*self.batches)
        self.expected = {number: self.settle(number) for number in self.numbers}

    def settle(self, number: int) -> Account:
        rng = self.rng
        sizes: dict[int, int] = {}
        subjects: dict[int, str] = {}
        for batch in self.batches:
            if number in batch.audience.members:
                for index, size in enumerate(message_sizes(batch.messages)):
                    header = 0 if index else header_size(batch.messages)
                    sizes[batch.first + index] = size + header
                    subjects[batch.first + index] = batch.subject
        places = sorted(sizes)
        done = places[: rng.choice([0, 0, len(places) // 2, len(places)])]
        cursor = done[-1] if done else -1
        if len(done) == len(places) or rng.random() < 0.3:
            # It stands where something is that is for others: before what is next for it.
            behind = next((place for place in places if place > cursor), self.batches[-1].last + 1)
            cursor = rng.randint(cursor, behind - 1)
        left = places[len(done) :]
        rows = []
        before = cursor
        while left:
            skip, take = rng.randrange(0, 5), rng.choice([1, 2, 30])
            before = left[skip - 1] if 0 < skip <= len(left) else before
            part, left = left[skip : skip + take], left[skip + take :]
            if part:
                first = rng.choice([before + 1, part[0]])  # as core.backlog, and as a log may have
                rows.append(exception(number, first, part[-1], Status.ACKNOWLEDGED))
                done = [*done, *part]
                before = part[-1]
        settled = {Status.ACKNOWLEDGED: len(done)} if done else {}
        self.log.progress(number, cursor, exceptions=rows, settled=settled)
        open_ = [place for place in places if place not in done]
        return Account(
            receiver=number,
            routed=len(places),
            queued=len(open_),
            settled={int(status): count for status, count in settled.items()},
            queued_bytes=sum(sizes[place] for place in open_),
            oldest=Oldest(open_[0], subjects[open_[0]], NOW) if open_ else None,
        )


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("seed", range(20))
def test_23_accounts_of_many_receivers_in_many_sets_are_exact(
    seed: int, small: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`small`: of a page hold few, and nothing between the ends of a range is looked at."""
    if small:
        monkeypatch.setattr(accounts, "PAGE_RECEIVERS", 3)
        monkeypatch.setattr(accounts, "PAGE_MEMBERSHIPS", 7)
        monkeypatch.setattr(accounts, "PAGE_RANGES", 4)
        monkeypatch.setattr(accounts, "SCANNED_EACH", 0)
    model = Model(random.Random(seed), receivers=12, sets=6, batches=60)
    log = model.log
    assert log.wait(log.log.accounts()) == [model.expected[number] for number in model.numbers]
    some = [7, 3, 99, 1]
    assert log.wait(log.log.accounts(some)) == [model.expected[number] for number in (7, 3, 1)]
    gone = model.rng.sample(model.numbers, 4)
    log.append(removed=gone)
    for number in gone:
        at = log.log._store.state.receivers[number]
        assert sum(at.settled) == model.expected[number].routed
    log.close()


@pytest.mark.parametrize("seed", range(30))
def test_23_ranges_that_begin_and_end_in_no_message_are_counted_as_what_is_in_them(
    seed: int,
) -> None:
    """As what is settled without an answer has them: of one receiver, whose rows nobody shares."""
    rng = random.Random(seed)
    log = opened()
    log.receivers(1)
    audience, others = log.log.audience([1]), log.log.audience([])
    batches: list[Batch] = []
    for _ in range(20):
        whom = rng.choice([audience, audience, others])
        bodies = [b"x"] * rng.choice([1, 1, 2, 3])
        batches.append(make_batch(whom, batches[-1].sequence + 3 if batches else 1, bodies))
    log.append(*batches)
    mine = [at for one in batches if one.audience is audience for at in one_by_one(one)]
    places = sorted({at + more for one in batches for at in one_by_one(one) for more in (0, 1)})
    cursor = at = rng.choice(places)
    done, rows = [place for place in mine if place <= cursor], []
    while behind := [place for place in places if place > at]:
        first = rng.choice([at + 1, behind[0], behind[-1]])
        last = rng.choice([place for place in behind if place >= first] or [first])
        at = last
        rows.append(exception(1, first, last, Status.CANCELLED))
        done += [place for place in mine if first <= place <= last]
    log.progress(1, cursor, exceptions=rows, settled={Status.CANCELLED: len(done)} if done else {})
    (found,) = log.wait(log.log.accounts())
    assert (len(mine) - len(done), 0) == (found.queued, found.unaccounted)
    log.close()


def one_by_one(batch: Batch) -> range:
    return range(batch.first, batch.last + 1)


def test_23_a_range_that_begins_behind_the_last_message_of_the_cursors_batch_is_whole() -> None:
    log = opened()
    log.receivers(1)
    audience = log.log.audience([1])
    log.append(*[make_batch(audience, sequence, [b"x"]) for sequence in range(1, 6)])
    row = exception(1, position_of(1, 1), position_of(3, 65_535), Status.CANCELLED)
    settled = {Status.ACKNOWLEDGED: 1, Status.CANCELLED: 2}
    log.progress(1, position_of(1), exceptions=[row], settled=settled)
    (found,) = log.wait(log.log.accounts())
    assert (2, 0) == (found.queued, found.unaccounted)
    log.append(removed=[1])
    assert [1, 0, 0, 2, 2] == log.log._store.state.receivers[1].settled
    log.close()


def steps(log: Driver, job: Callable[[], object]) -> int:
    """Return what a job costs SQLite, in steps of its virtual machine, about."""
    db, counted = log.log._store.db, 0

    def progress() -> bool:
        nonlocal counted
        counted += 10
        return False

    db.set_progress_handler(progress, 10)
    try:
        job()
    finally:
        db.set_progress_handler(None)
    return counted


def cost_of_accounts(log: Driver, receivers: list[int] | None = None) -> int:
    return steps(log, lambda: log.wait(log.log.accounts(receivers)))


def in_sets(receivers: int, sets: int) -> Driver:
    """A log with so many receivers, half of which are in each of so many sets."""
    log, rng = opened(), random.Random(1)
    numbers = list(range(1, receivers + 1))
    log.receivers(*numbers)
    batches = [
        make_batch(log.log.audience(rng.sample(numbers, receivers // 2)), sequence)
        for sequence in range(1, sets + 1)
    ]
    log.append(*batches)
    return log


def test_23_accounts_of_all_receivers_cost_what_their_sets_are() -> None:
    few, many = (in_sets(receivers, 50) for receivers in (400, 800))
    costs = [cost_of_accounts(log) for log in (few, many)]
    assert costs[1] <= GROWTH * costs[0], costs
    assert costs[0] < 400 * 50 * 3, "steps for each receiver in each set"
    for log in (few, many):
        log.close()


def with_exceptions(count: int, sets: int) -> Driver:
    """A log whose receiver 1 is in so many sets, and has acknowledged every other message."""
    log = opened()
    numbers = list(range(1, sets + 2))
    log.receivers(*numbers)
    audiences = [log.log.audience([1, number]) for number in numbers[1:]]
    others = log.log.audience(numbers[1:])  # a batch of theirs is behind each of its own
    batches = [
        make_batch(others if n % 2 else audiences[n // 2 % sets], n + 1) for n in range(4 * count)
    ]
    log.append(*batches)
    rows = [
        exception(1, before.last + 1, last.last, Status.ACKNOWLEDGED)
        for before, last in zip(batches[::4], batches[2::4], strict=True)
    ]
    log.progress(1, -1, exceptions=rows, settled={Status.ACKNOWLEDGED: count})
    return log


@pytest.mark.parametrize("what", ["account", "removal"])
def test_23_exceptions_and_sets_of_one_receiver_do_not_multiply(what: str) -> None:
    costs: dict[tuple[int, int], int] = {}
    for count, sets in ((200, 20), (400, 20), (200, 40), (400, 40)):
        log = with_exceptions(count, sets)
        if what == "account":
            costs[count, sets] = cost_of_accounts(log, [1])
        else:
            costs[count, sets] = steps(log, partial(log.append, removed=[1]))
        log.close()
    assert costs[400, 40] <= GROWTH * costs[200, 20], costs
    assert costs[400, 20] <= GROWTH * costs[200, 20], costs
    assert costs[200, 40] <= GROWTH * costs[200, 20], costs
    assert costs[400, 40] < 400 * 40 * 10, costs
