"""The deadlines of a backlog: what is loaded and expires, against a walk over all that is open."""

from __future__ import annotations

import random

import pytest

from msgservice.core.backlog import Backlog
from msgservice.core.flight import Flight
from msgservice.core.runs import FLIGHT, STALE_MAX, Run, producer_run
from msgservice.message import Status, encode_bodies


def made(*, gives_up_sent: bool = True, ordered: bool = True) -> Backlog:
    return Backlog(
        ordered=ordered,
        cursor=0,
        retry_delay=lambda attempts: 1.0,
        max_attempts=5,
        gives_up_sent=gives_up_sent,
    )


def flown(backlog: Backlog, messages: int = 1000) -> Flight:
    return Flight(backlog, own_window=(messages, 1 << 20), window=None, batch_max=1 << 20)


def run_of(first: int, count: int, expires_at: int | None, subject: str = "s") -> Run:
    run = producer_run(first, count, subject, encode_bodies([b"x"] * count))
    run.expires_at = expires_at
    return run


def open_runs(backlog: Backlog) -> list[Run]:
    return backlog.open_between(0, backlog.loaded_to)


def walked(backlog: Backlog) -> int | None:
    """When the first expires, by looking at all."""
    allowed = 0 if backlog._gives_up_sent else backlog.landed_to
    times = [
        run.expires_at
        for run in open_runs(backlog)
        if run.expires_at is not None and run.first > allowed
    ]
    return min(times, default=None)


@pytest.mark.parametrize("seed", range(40))
def test_15_what_expires_first_is_what_a_walk_over_all_that_is_open_finds(seed: int) -> None:
    """Over loads, answers to parts, cuts, lost flights and time that passes."""
    rng = random.Random(seed)
    backlog = made(gives_up_sent=seed % 2 == 0, ordered=seed % 3 == 0)
    flight, now, first = flown(backlog, 20), 0, 1
    for _ in range(120):
        match rng.randrange(6):
            case 0 | 1:
                count = rng.randint(1, 5)
                until = None if rng.random() < 0.3 else now + rng.randint(1, 40)
                backlog.offer(run_of(first, count, until, rng.choice("abc")))
                first += count
            case 2:
                flight.take_transfers(float(now))
            case 3:
                low = rng.randint(1, first)
                backlog.acknowledge([(low, min(first - 1, low + rng.randint(0, 3)))])
            case 4 if rng.random() < 0.3:
                flight.end(float(now), lost=rng.random() < 0.5)
                flight = flown(backlog, 20)
            case _:
                now += rng.randint(0, 10)
                backlog.expire_all(now)
                for one in open_runs(backlog):  # what is left of what is over was handed on
                    over = one.expires_at is not None and one.expires_at <= now
                    assert not over or one.state == FLIGHT or one.first <= backlog.landed_to
        assert walked(backlog) == backlog.next_expiry()
    settled = backlog.take_settled()
    expired = [found.run.expires_at for found in settled if found.status is Status.EXPIRED]
    assert expired
    assert all(at is not None and at <= now for at in expired)


def test_what_expires_together_is_settled_in_its_order() -> None:
    backlog = made()
    for first, until in ((1, 30), (2, 10), (3, None), (4, 20)):
        backlog.offer(run_of(first, 1, until))
    backlog.expire_all(30)
    assert [1, 2, 4] == [one.first for one in backlog.take_settled()]
    assert backlog.next_expiry() is None


def test_nothing_is_kept_of_runs_without_a_ttl() -> None:
    backlog = made()
    for first in range(1, 500):
        backlog.offer(run_of(first, 1, None))
    assert [] == backlog._deadlines


def test_as_much_is_kept_as_is_open() -> None:
    backlog = made()
    backlog.offer(run_of(1, 1, 1))  # the first of all, so that no later one is come upon
    for first in range(2, 5000):
        backlog.offer(run_of(first, 1, 10_000 - first))
        backlog.acknowledge([(first, first)])
    assert STALE_MAX + 4 >= len(backlog._deadlines)
    assert 1 == backlog.next_expiry()


def test_what_is_loaded_again_expires_once() -> None:
    backlog = made()
    for _ in range(3):
        backlog.offer(run_of(1, 1, 10))
        backlog.unload()
    backlog.offer(run_of(1, 1, 10))
    backlog.expire_all(10)
    assert [Status.EXPIRED] == [one.status for one in backlog.take_settled()]
