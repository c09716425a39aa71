"""A11: token buckets per receiver and a parent for all."""

from __future__ import annotations

import random

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from msgservice.limits import Rate
from msgservice.node.pace import RateLimits


def passed(
    clock: Clock, limits: RateLimits, names: list[str], seconds: int, size: int
) -> list[int]:
    """Ask without pause for each name; return how many messages of `size` bytes each got."""
    counts = [0] * len(names)

    def again(index: int, _: None = None) -> None:
        d = limits.receiver(names[index]).spend(1, size)
        d.addCallback(lambda _: counts.__setitem__(index, counts[index] + 1))
        d.addCallback(lambda _: clock.callLater(0, again, index))
        d.addErrback(lambda failure: failure.trap(CancelledError))

    for index in range(len(names)):
        again(index)
    clock.pump([0.01] * (seconds * 100))
    for name in names:
        limits.remove(name)
    return counts


def test_A11_the_long_run_rate_is_never_above_and_hardly_below_the_limit() -> None:
    clock = Clock()
    limits = RateLimits(clock)
    limits.receiver("a", Rate(messages=50, burst_seconds=1))
    (count,) = passed(clock, limits, ["a"], 60, 100)
    assert 50 * 60 * 0.95 <= count <= 50 * 60 + 50


def test_A11_bytes_are_limited_as_well() -> None:
    clock = Clock()
    limits = RateLimits(clock)
    limits.receiver("a", Rate(messages=1000, bytes=10_000, burst_seconds=1))
    (count,) = passed(clock, limits, ["a"], 30, 500)
    assert 0.95 * 30 * 20 <= count <= 30 * 20 + 20


def test_A11_a_burst_is_as_large_as_the_bucket_and_no_larger() -> None:
    clock = Clock()
    limits = RateLimits(clock)
    receiver = limits.receiver("a", Rate(messages=10, burst_seconds=2))
    ds = [receiver.spend(1, 1) for _ in range(100)]
    assert 20 == sum(d.called for d in ds)
    assert 80 == receiver.waiting
    clock.pump([0.01] * 100)
    assert 29 <= sum(d.called for d in ds) <= 30
    limits.remove("a")
    for d in ds:
        d.addErrback(lambda failure: failure.trap(CancelledError))


def test_A11_the_parent_bounds_the_sum() -> None:
    clock = Clock()
    limits = RateLimits(clock, total=Rate(messages=60, burst_seconds=1))
    for name in "ab":
        limits.receiver(name, Rate(messages=50, burst_seconds=1))
    counts = passed(clock, limits, ["a", "b"], 60, 10)
    assert 0.95 * 60 * 60 <= sum(counts) <= 60 * 60 + 60
    assert min(counts) > 0


def test_A11_what_is_larger_than_the_bucket_passes_at_the_rate() -> None:
    clock = Clock()
    limits = RateLimits(clock)
    receiver = limits.receiver("a", Rate(bytes=1000, burst_seconds=1))
    d = receiver.spend(1, 10_000)
    clock.pump([0.05] * 170)
    assert not d.called
    clock.pump([0.05] * 20)
    assert d.called


def test_requests_pass_in_the_order_asked_and_a_cancelled_one_leaves_the_line() -> None:
    clock = Clock()
    receiver = RateLimits(clock).receiver("a", Rate(messages=1, burst_seconds=1))
    order: list[int] = []
    ds: list[Deferred[None]] = []
    rng = random.Random(1)
    for number in range(6):
        d = receiver.spend(1, rng.randrange(100))
        d.addCallbacks(lambda _, n=number: order.append(n), lambda f: f.trap(CancelledError))
        ds.append(d)
    ds[3].cancel()
    clock.pump([0.1] * 60)
    assert [0, 1, 2, 4, 5] == order


def test_no_limit_is_no_wait() -> None:
    receiver = RateLimits(Clock()).receiver("a")
    assert all(receiver.spend(1000, 10**9).called for _ in range(1000))


@pytest.mark.parametrize("value", [0, -1, float("inf"), float("nan")])
def test_a_rate_that_lets_nothing_through_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        Rate(messages=value)
