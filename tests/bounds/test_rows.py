"""Rows of exceptions that one group stores: twice as many of them cost the writer twice as much."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from twisted.internet.task import Clock

from msgservice.limits import Limits
from msgservice.log.memory import MemoryLog
from msgservice.log.store import Store
from msgservice.message import Status
from msgservice.records import ExceptionRow, Group, Progress, ReceiverRow
from tests.bounds.meter import Meter

GROWTH = 2.5  # of what twice the input may cost
FEW = 1000
BASE = 1 << 16  # the first position of a log
COMPARED = [0]  # positions, each time: the lines that are run do not show a walk in C


def _compared(name: str) -> Callable[[int, int], bool]:
    compare: Callable[[int, int], bool] = getattr(int, name)

    def counted(self: int, other: int) -> bool:
        COMPARED[0] += 1
        return compare(self, other)

    return counted


class Position(int):
    """A position whose comparisons are counted."""

    __lt__, __le__, __gt__, __ge__ = map(_compared, ("__lt__", "__le__", "__gt__", "__ge__"))


def row(first: int, last: int) -> ExceptionRow:
    return ExceptionRow(1, Position(first), Position(last), Status.DEAD, 1, 0, "no")


ROWS: dict[str, Callable[[int], list[ExceptionRow]]] = {
    "apart": lambda n: [row(at, at) for at in range(BASE, BASE + 2 * n, 2)],
    "apart, falling": lambda n: [row(at, at) for at in range(BASE + 2 * n, BASE, -2)],
    "each inside the one before": lambda n: [row(BASE + i, BASE + 2 * n - i) for i in range(n)],
    "each around the one before": lambda n: [row(BASE + n - i, BASE + n + i) for i in range(n)],
}


def cost_of(rows: list[ExceptionRow]) -> tuple[int, int]:
    """Return what a group with these rows costs: lines that are run, and comparisons."""
    clock = Clock()
    log = MemoryLog(reactor=clock, limits=Limits())
    log.open()
    clock.advance(0)
    store: Store = log._store
    store.apply(
        store.decide(Group(receivers=[ReceiverRow(number=1, name="r", patterns=(">",), cursor=-1)]))
    )
    entry = store.decide(Group(progress=[Progress(receiver=1, cursor=0, exceptions=rows)]))
    meter = Meter(1 << 60)
    COMPARED[0] = 0
    with meter.turn("a group"):
        store.apply(entry)
    return meter.units, COMPARED[0]


@pytest.fixture(autouse=True)
def encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes a `Position` for the number that it is."""
    monkeypatch.setattr("msgservice.log.staging.as_json", json.dumps)


@pytest.mark.parametrize("name", ROWS)
def test_twice_as_many_rows_in_one_group_cost_twice_as_much(name: str) -> None:
    few, many = cost_of(ROWS[name](FEW)), cost_of(ROWS[name](2 * FEW))
    for one, other in zip(few, many, strict=True):
        assert 0 < other <= GROWTH * one, (few, many)
