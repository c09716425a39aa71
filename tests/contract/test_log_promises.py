"""Promises and what is decided about them, in every log: DELIVERY 35, 36 and 55."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from msgservice.core.ranges import RangeSet
from msgservice.limits import Limits as AnyLimits
from msgservice.log.copying import copy_log
from msgservice.message import Status
from msgservice.records import (
    PROMISED,
    Batch,
    OpenPromise,
    Promised,
    PromiseFound,
    StateRange,
    StatusFrom,
    Verdict,
    hash_of,
    position_of,
)
from tests.kit.logs import NOW, SMALL, ContractDriver, make_batch

Open = Callable[..., ContractDriver]
UNTIL = NOW + 60_000


@pytest.fixture(params=["sqlite", "memory", "dicts"])
def open_log(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    opened: list[ContractDriver] = []

    def open_one(limits: AnyLimits = SMALL) -> ContractDriver:
        log = ContractDriver(request.param, tmp_path / "log", limits).open()
        log.receivers(1, 2)
        opened.append(log)
        return log

    yield open_one
    for log in opened:
        log.close()


def promised(log: ContractDriver, sequence: int = 1, count: int = 1, need: int = 1) -> Batch:
    bodies = [b"a"] * count
    audience = log.log.audience([1, 2])
    return make_batch(audience, sequence, bodies, promise=Promised(need, UNTIL, True))


def opened(log: ContractDriver) -> list[tuple[int, int, int]]:
    """Reopen, and return sequence, position and need of each message whose promise is open."""
    log.reopen()
    found: list[tuple[int, int, int]] = []
    for one in log.snapshot.promises:
        assert (one.sender, one.incarnation, one.until, one.cancels) == ("shop", "i1", UNTIL, True)
        found += [
            (sequence, one.position + sequence - one.first, one.need)
            for sequence in range(one.first, one.last + 1)
        ]
    return sorted(found)


def states(log: ContractDriver) -> list[StateRange]:
    page = log.wait(log.log.history("shop", "i1", 1, 100))
    return [state for state in page.states if state.receiver == PROMISED]


def verdict(first: int, last: int, status: Status = Status.EXPIRED) -> Verdict:
    return Verdict("shop", "i1", first, last, status, "why")


def test_55_a_promise_is_open_until_it_is_decided_and_decided_once(open_log: Open) -> None:
    log = open_log()
    log.append(promised(log, 1, 3, need=0))
    # All of the audience is as many as there are.
    assert [(n + 1, position_of(1, n), 2) for n in range(3)] == opened(log)
    assert [] == states(log)
    appended = log.appended(verdicts=[verdict(2, 2), verdict(1, 2, Status.ACKNOWLEDGED)])
    assert [((2, 2),), ((1, 1),)] == appended.decided
    assert [(3, position_of(1, 2), 2)] == opened(log)
    told = {state.first: (state.last, state.status, state.reason) for state in states(log)}
    assert {1: (1, Status.ACKNOWLEDGED, "why"), 2: (2, Status.EXPIRED, "why")} == told
    again = log.appended(verdicts=[verdict(1, 9, Status.ACKNOWLEDGED), verdict(1, 9)])
    assert [((3, 3),), ()] == again.decided
    assert [] == opened(log)
    told = {state.first: (state.last, state.status, state.reason) for state in states(log)}
    assert (2, Status.EXPIRED, "why") == told[2]
    assert [] == log.wait(log.log.audit())


def test_55_a_message_is_found_with_its_promise(open_log: Open) -> None:
    log = open_log()
    log.append(promised(log, 1, 3, need=0), now=NOW)
    log.append(verdicts=[verdict(2, 3)], now=NOW + 5)
    log.append(make_batch(log.log.audience([1, 2]), 4))
    is_open = PromiseFound(2, UNTIL, True)
    broken = PromiseFound(2, UNTIL, True, Status.EXPIRED, "why", NOW + 5)
    expected = [is_open, broken, broken, None]

    def found() -> list[PromiseFound | None]:
        one = log.wait(log.log.find(f"log:{position_of(1)}"))
        name = f"shop/{hash_of('i1')}"
        assert one is not None
        places = [f"log:{position_of(1, n)}" for n in range(3)] + [f"log:{position_of(2)}"]
        by_place = [log.wait(log.log.find(place)) for place in places]
        by_name = [log.wait(log.log.find(f"{name}/{n}")) for n in range(1, 5)]
        assert by_place == by_name
        return [None if one is None else one.promise for one in by_place]

    assert expected == found()
    log.reopen()
    assert expected == found()


def test_55_one_verdict_is_about_many_runs_and_what_is_between_them(open_log: Open) -> None:
    log = open_log()
    log.append(promised(log, 1, 2), promised(log, 3, 2))
    log.append(make_batch(log.log.audience([1, 2]), 5))
    log.append(promised(log, 6, 3))
    assert [((2, 4), (6, 7))] == log.appended(verdicts=[verdict(2, 7)]).decided
    assert [(1, position_of(1), 1), (8, position_of(4, 2), 1)] == opened(log)
    at = {n for one in states(log) for n in range(one.first, one.last + 1)}
    assert {2, 3, 4, 6, 7} == at
    assert [] == log.wait(log.log.audit())


@pytest.mark.parametrize("seed", range(12))
def test_55_each_message_is_decided_once_whatever_verdicts_come_together(
    open_log: Open, seed: int
) -> None:
    rng = random.Random(seed)
    log = open_log()
    needs: dict[int, int] = {}  # of what is open
    at, given = {}, 0
    for number in range(1, 13):  # now and then one without a promise, each in a group of its own
        count, need = rng.choice([1, 1, 2, 4]), rng.choice([1, 1, 2])
        batch = promised(log, given + 1, count, need)
        if rng.random() < 0.2:
            batch.promise = None
        log.append(batch)
        for index in range(count):
            given += 1
            at[given] = position_of(number, index)
            if batch.promise is not None:
                needs[given] = need
    kept: dict[int, Status] = {}
    while needs:
        verdicts = []
        for _ in range(rng.randint(1, 4)):
            first = rng.randint(1, given)
            last = min(given, first + rng.choice([0, 1, 3, 10, 30]))
            status = rng.choice([Status.ACKNOWLEDGED, Status.EXPIRED, Status.DEAD])
            verdicts.append(verdict(first, last, status))
        expected = []
        for one in verdicts:
            decided = [n for n in range(one.first, one.last + 1) if needs.pop(n, 0)]
            kept.update(dict.fromkeys(decided, one.status))
            expected.append(tuple(RangeSet((n, n) for n in decided)))
        assert expected == log.appended(verdicts=verdicts).decided
        assert [(n, at[n], need) for n, need in sorted(needs.items())] == opened(log)
    told = {n: one.status for one in states(log) for n in range(one.first, one.last + 1)}
    assert kept == told
    assert [] == log.wait(log.log.audit())


def test_55_what_is_not_promised_is_not_decided(open_log: Open) -> None:
    log = open_log()
    log.append(make_batch(log.log.audience([1, 2])))
    (never, unknown) = log.appended(
        verdicts=[verdict(1, 1), Verdict("web", "i1", 1, 1, Status.EXPIRED)]
    ).decided
    assert () == never == unknown
    assert [] == states(log)
    assert [] == opened(log)


def test_55_a_run_that_comes_again_is_promised_once(open_log: Open) -> None:
    log = open_log()
    log.append(promised(log, 1, 2))
    log.append(verdicts=[verdict(1, 1)])
    log.append(promised(log, 1, 2), promised(log, 1, 4))
    assert [
        (2, position_of(1, 1), 1),
        (3, position_of(2), 1),
        (4, position_of(2, 1), 1),
    ] == opened(log)


def test_54_what_its_sender_has_heard_of_a_promise_is_kept_for_others(open_log: Open) -> None:
    log = open_log()
    log.append(promised(log, 1, 2))
    log.append(verdicts=[verdict(1, 1)])
    wanted = StatusFrom(sender="shop", incarnation="i1", status_from=2)
    log.append(statuses_from=[wanted])
    assert [(1, 1)] == [(state.first, state.last) for state in states(log)]
    log.append(verdicts=[verdict(2, 2)])
    assert {1, 2} == {at for one in states(log) for at in range(one.first, one.last + 1)}


def test_55_what_was_decided_is_known_as_long_as_what_it_is_about(open_log: Open) -> None:
    log = open_log()
    batch = promised(log, 1, 2)
    log.append(batch)
    log.append(verdicts=[verdict(1, 2)])

    def retain(days: float) -> list[tuple[int, int]]:
        while log.wait(log.log.retain(NOW + int(days * 24 * 3_600_000), [("shop", "i1")])):
            pass
        return [(state.first, state.last) for state in states(log)]

    assert [(1, 2)] == retain(8)  # whoever is away has the message before it
    assert [(1, 2)] == retain(20)
    for receiver in (1, 2):
        log.progress(receiver, batch.last, settled={Status.ACKNOWLEDGED: 2})
    assert [(1, 2)] == retain(21)
    assert log.wait(log.log.find(f"shop/{hash_of('i1')}/1")) is None
    assert [(1, 2)] == retain(27.9)
    assert [] == retain(28.5)


def test_55_a_copy_cancels_nothing(tmp_path: Path) -> None:
    log = ContractDriver("sqlite", tmp_path / "log", SMALL).open()
    log.receivers(1, 2)
    log.append(promised(log))
    log.close()
    copy_log(tmp_path / "log", tmp_path / "copy")
    log = ContractDriver("sqlite", tmp_path / "copy", SMALL).open()
    expected = OpenPromise("shop", "i1", 1, 1, position_of(1), 1, UNTIL, False)
    assert [expected] == list(log.snapshot.promises)
    log.close()
