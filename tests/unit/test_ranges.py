"""`RangeSet` against a plain set of integers."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from msgservice.core.ranges import RangeSet

OPERATIONS = st.lists(st.tuples(st.booleans(), st.integers(0, 60), st.integers(0, 12)), max_size=40)


def build(operations: list[tuple[bool, int, int]]) -> tuple[RangeSet, set[int]]:
    ranges, plain = RangeSet(), set[int]()
    for adding, first, length in operations:
        span = range(first, first + length)
        if adding:
            ranges.add(first, first + length - 1)
            plain |= set(span)
        else:
            ranges.remove(first, first + length - 1)
            plain -= set(span)
    return ranges, plain


def expand(parts: list[tuple[int, int]]) -> set[int]:
    return {n for first, last in parts for n in range(first, last + 1)}


@given(OPERATIONS)
def test_holds_what_a_set_of_integers_holds(operations: list[tuple[bool, int, int]]) -> None:
    ranges, plain = build(operations)
    assert plain == expand(list(ranges))
    assert len(plain) == ranges.count
    assert all((n in ranges) == (n in plain) for n in range(80))


@given(OPERATIONS)
def test_ranges_are_sorted_disjoint_and_never_touch(
    operations: list[tuple[bool, int, int]],
) -> None:
    parts = list(build(operations)[0])
    assert all(first <= last for first, last in parts)
    assert all(a[1] + 1 < b[0] for a, b in itertools.pairwise(parts))


@given(OPERATIONS, st.integers(0, 70), st.integers(1, 20))
def test_questions_about_a_span(
    operations: list[tuple[bool, int, int]], first: int, length: int
) -> None:
    ranges, plain = build(operations)
    last = first + length - 1
    span = set(range(first, last + 1))
    assert (span <= plain) == ranges.covers(first, last)
    assert bool(span & plain) == ranges.overlaps(first, last)
    assert span & plain == expand(ranges.within(first, last))
    assert span - plain == expand(ranges.missing(first, last))


@given(OPERATIONS, st.integers(0, 70))
def test_remove_below(operations: list[tuple[bool, int, int]], floor: int) -> None:
    ranges, plain = build(operations)
    ranges.remove_below(floor)
    assert {n for n in plain if n >= floor} == expand(list(ranges))
