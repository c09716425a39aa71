"""What a node acknowledged against what it says that it has: SEMANTICS 6."""

from __future__ import annotations

from msgservice.client.acked import RANGES_MANY, RANGES_MAX, Acked, Untaken, highest_of
from msgservice.records import Resume


def test_what_is_missing_is_told_once() -> None:
    acked = Acked(0, [])
    acked.add(1, 10)
    assert [(3, 4), (8, 10)] == acked.take_forgotten(Resume(3, ((5, 7),)))
    assert [] == acked.take_forgotten(Resume(3, ((5, 7),)))


def test_what_was_never_acknowledged_is_not_missed() -> None:
    acked = Acked(0, [])
    acked.add(1, 4)
    acked.add(6, 10)  # 5 was refused
    assert [] == acked.take_forgotten(Resume(5, ((6, 10),)))
    assert [] == Acked(0, []).take_forgotten(Resume())


def test_another_incarnation_was_acknowledged_nothing() -> None:
    acked = Acked(0, [])
    acked.add(1, 10)
    acked.begin_anew()
    assert [] == acked.take_forgotten(Resume())


def test_after_a_restart_all_that_is_not_open_counts_above_the_nodes_newest() -> None:
    acked = Acked(10, [(5, 6)])
    assert [(9, 10)] == acked.take_forgotten(Resume(3, ((4, 4),), (7, 8, 0)))
    acked = Acked(10, [(5, 6)])
    assert [(1, 4), (7, 10)] == acked.take_forgotten(Resume())


def test_holes_that_the_node_calls_settled_are_closed() -> None:
    acked = Acked(0, [])
    numbers = range(1, 6 * RANGES_MANY, 2)
    for number in numbers:
        acked.add(number, number)
        acked.close_holes(number, number + 1)
        assert len(acked._ranges) <= RANGES_MANY + 2
    newest = tuple((n, n) for n in numbers[-100:])
    assert [] == acked.take_forgotten(Resume(newest[0][0], newest))
    (lowest, *_) = acked.take_forgotten(Resume(1, newest))
    assert lowest[0] == 1
    assert lowest[1] > 4 * RANGES_MANY


def test_6_what_was_refused_above_an_open_message_is_not_missed() -> None:
    """The first is not taken for now, of the rest every second one is refused for good."""
    acked = Acked(0, [])
    numbers = range(2, 6 * RANGES_MANY, 2)
    for number in numbers:
        acked.add(number, number)
        acked.close_holes(0, number + 1)
    taken = tuple((n, n) for n in numbers)
    assert [] == acked.take_forgotten(Resume(1, taken))
    assert [(2, 2)] == acked.take_forgotten(Resume(1, taken[1:]))


def test_6_what_the_node_was_not_told_of_as_settled_is_not_missed() -> None:
    """All that is settled here is so there with the next that it takes, and not before."""
    acked = Acked(0, [])
    numbers = range(2, 4 * RANGES_MANY, 2)
    for number in numbers:
        acked.add(number, number)
        acked.close_holes(number, numbers[-1])  # all were on their way before any was answered
    assert [] == acked.take_forgotten(Resume(1, tuple((n, n) for n in numbers)))
    acked.add(numbers[-1] + 1, numbers[-1] + 1)
    acked.close_holes(numbers[-1] + 1, numbers[-1] + 1)
    assert len(acked._ranges) <= RANGES_MANY


def test_holes_are_bounded_and_the_newest_are_kept() -> None:
    acked = Acked(0, [])
    for number in range(2, 2 * RANGES_MAX + 10, 2):
        acked.add(number, number)
        acked.close_holes(0, number)
    assert len(acked._ranges) <= RANGES_MAX
    assert [] == acked.take_forgotten(Resume(1, tuple(acked._ranges)))
    assert acked._ranges.last == 2 * RANGES_MAX + 8


def test_the_highest_that_a_node_has_seen() -> None:
    assert 0 == highest_of(Resume())
    assert 4 == highest_of(Resume(5))
    assert 9 == highest_of(Resume(5, ((7, 9),)))
    assert 20 == highest_of(Resume(5, ((7, 9),), (15, 20, 1)))


def test_6_the_newest_run_of_a_node_is_none_that_was_never_sent() -> None:
    acked = Acked(0, ())
    acked.not_taken(3, 4, was_sent=False)
    for last, is_so in (
        (None, False),
        ((1, 2, 7), False),
        ((2, 3, 7), True),
        ((4, 9, 7), True),
        ((5, 5, 7), False),
    ):
        assert acked.is_contradicted(Resume(floor=9, last=last)) is is_so
    acked.begin_anew()
    assert not acked.is_contradicted(Resume(floor=9, last=(3, 3, 7)))


def test_of_what_was_never_sent_the_newest_is_compared() -> None:
    acked = Acked(0, ())
    for sequence in range(1, 4 * RANGES_MANY, 2):
        acked.not_taken(sequence, sequence, was_sent=False)
    assert len(acked._unsent) <= RANGES_MANY
    newest = 4 * RANGES_MANY - 1
    assert acked.is_contradicted(Resume(last=(newest, newest, 7)))


def test_6_after_a_restart_what_was_not_taken_is_neither_missed_nor_the_nodes() -> None:
    """The newest are 5, which was refused, and 6 and 7, whose time was over."""
    before = Acked(0, ())
    before.add(1, 4)
    before.not_taken(5, 5, was_sent=True)
    before.not_taken(6, 7, was_sent=False)
    assert [Untaken(6, 7, False), Untaken(5, 5, True)] == before.untaken
    for resume, is_so in (
        (Resume(5, (), (3, 4, 7)), False),
        (Resume(6, (), (5, 5, 7)), False),  # what it refused it may have had before
        (Resume(8, (), (6, 7, 7)), True),
    ):
        acked = Acked(7, (), "", before.untaken)
        assert acked.is_contradicted(resume) is is_so
        assert [] == acked.take_forgotten(resume)
    assert [(1, 4)] == Acked(7, (), "", before.untaken).take_forgotten(Resume())


def test_6_what_was_not_taken_is_of_no_use_below_what_is() -> None:
    acked = Acked(0, ())
    acked.not_taken(1, 1, was_sent=True)
    acked.not_taken(2, 2, was_sent=False)
    acked.not_taken(6, 6, was_sent=False)
    acked.add(4, 4)
    assert [Untaken(6, 6, False)] == acked.untaken
    acked.add(7, 7)
    assert [] == acked.untaken
