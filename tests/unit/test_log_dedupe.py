"""What a sender's state remembers, against the plainest possible model (SEMANTICS 1, 4)."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from msgservice.core.marks import SenderState
from msgservice.core.ranges import RangeSet
from msgservice.records import Known, RefusedBatch
from tests.kit.logs import Driver, make_batch

RUNS = st.lists(st.tuples(st.integers(1, 60), st.integers(1, 12)), max_size=30)


@given(RUNS)
def test_1_taken_is_the_union_of_all_that_was_taken(runs: list[tuple[int, int]]) -> None:
    sender = SenderState(1, ("shop", "i1"), 0)
    model: set[int] = set()
    for first, count in runs:
        last = first + count - 1
        expected = sorted(set(range(first, last + 1)) - model)
        found = [n for low, high in sender.missing(first, last) for n in range(low, high + 1)]
        assert found == expected
        before = sender.copy()
        sender.take(first, last)
        assert [
            n for low, high in before.missing(first, last) for n in range(low, high + 1)
        ] == expected, "a copy was changed"
        model.update(range(first, last + 1))
    floor = next(n for n in range(1, 100) if n not in model)
    assert sender.floor == floor
    above = RangeSet((n, n) for n in sorted(model) if n > floor)
    assert (sender.ranges or RangeSet()) == above


@settings(max_examples=60, deadline=None)
@given(RUNS, st.integers(0, 30))
def test_4_each_sequence_is_stored_once_whatever_the_cuts(
    runs: list[tuple[int, int]], split: int
) -> None:
    """Runs in any order and overlap, in two groups with a restart between them."""
    from pathlib import Path

    log = Driver("memory", Path()).open()

    def append(some: list[tuple[int, int]]) -> None:
        audience = log.log.audience([1])
        group = [
            make_batch(audience, first, [b"%d" % n for n in range(first, first + count)])
            for first, count in some
        ]
        for batch, outcome in zip(group, log.append(*group), strict=True):
            assert not isinstance(outcome, RefusedBatch)
            if isinstance(outcome, Known):
                covered = [n for p in outcome.pieces for n in range(p.first, p.last + 1)]
                assert covered == list(range(batch.sequence, batch.sequence + batch.count))
                assert all(p.position for p in outcome.pieces)

    append(runs[:split])
    log.reopen()
    append(runs[split:])
    stored: list[int] = []
    for batch in log.read([log.log.audience([1])], messages_max=10_000):
        stored += range(batch.sequence, batch.sequence + batch.count)
    expected = {n for first, count in runs for n in range(first, first + count)}
    assert sorted(stored) == sorted(expected)
    assert log.wait(log.log.audit()) == []
    log.close()
