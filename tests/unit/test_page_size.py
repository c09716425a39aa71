"""Pages that are as large as fits into the time that one may take."""

from __future__ import annotations

from msgservice.node.page_size import PageSize


def sized() -> PageSize:
    return PageSize(seconds=0.02, first=500, least=100, most=2000)


def test_the_first_page_has_the_size_that_is_said() -> None:
    size = sized()
    assert (500, 500) == (size.now, size.within(1.0))
    size.took(0, 5.0)  # of none nothing is learned
    assert 500 == size.now


def test_a_page_is_as_large_as_what_it_costs_allows() -> None:
    size = sized()
    size.took(500, 0.01)
    assert (1000, 500) == (size.now, size.within(0.01))


def test_a_page_is_never_larger_or_smaller_than_said() -> None:
    size = sized()
    size.took(500, 0.0)
    assert 2000 == size.now
    for _ in range(20):
        size.took(100, 10.0)
    assert 100 == size.now


def test_what_pages_cost_is_followed_and_one_that_others_kept_waiting_says_little() -> None:
    size = sized()
    size.took(1000, 0.02)
    size.took(1000, 2.0)
    assert 625 == size.now
    sizes = []
    for _ in range(20):
        size.took(size.now, size.now * 0.00002)
        sizes.append(size.now)
    assert sizes == sorted(sizes)
    assert sizes[-1] == 1000
    for _ in range(20):
        size.took(size.now, size.now * 0.0001)
    assert 200 == size.now


def test_a_clock_that_goes_back_makes_no_page_endless() -> None:
    size = sized()
    size.took(500, -1.0)
    assert 2000 == size.now
