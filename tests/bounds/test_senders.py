"""Twice as much from one sender costs twice as much, whatever its runs are: counted, not timed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations, islice
from typing import Any

import msgspec
import pytest

from msgservice import message
from msgservice.core.frames import Transfer, encode_frame
from msgservice.core.ranges import RangeSet
from msgservice.limits import Limits
from msgservice.message import WireMessage, encode_messages
from tests.bounds.meter import Meter, TooMuchWork
from tests.bounds.stage import NodeStage
from tests.kit.nodes import FailingLog, ScriptedPeer

WORK_IN_C: list[int] = []  # messages that were decoded, ranges that were copied: entries, each time


@pytest.fixture(autouse=True)
def counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lines that are run do not show how long these are."""
    decode, ranges = message._decode_parts, RangeSet.__iter__

    def decoded(messages: Any) -> Any:
        found = decode(messages)
        WORK_IN_C.append(len(found))
        return found

    def copied(self: RangeSet) -> Any:
        WORK_IN_C.append(len(self))
        return ranges(self)

    monkeypatch.setattr(message, "_decode_parts", decoded)
    monkeypatch.setattr(RangeSet, "__iter__", copied)


NO_LIMIT = 1 << 60
GROWTH = 2.5  # of what twice the input may cost
FEW = 256


def a_run(sequence: int, count: int = 1, subject: str = "s") -> Transfer:
    return Transfer(
        sequence, subject, msgspec.Raw(encode_messages([WireMessage(b"x")] * count)), nacks=0
    )


class Sender:
    """A sender, and what the log and the reactor do for what it hands in."""

    def __init__(self, limits: Limits | None = None) -> None:
        WORK_IN_C.clear()
        self.stage = NodeStage(limits)
        self.peer: ScriptedPeer = self.stage.peer("shop")
        commits = self.stage.node.parts.commits
        self.log = FailingLog(commits._log)
        commits._log = self.log  # type: ignore[assignment]  # says what a log says
        self.meter, self.log_meter = Meter(NO_LIMIT), Meter(NO_LIMIT)

    def before(self, runs: Sequence[Transfer]) -> None:
        """Hand in what costs nothing here."""
        for run in runs:
            self.peer.connection.send(run)
        self.stage.settle()
        WORK_IN_C.clear()

    def hand_in(self, runs: Sequence[Transfer]) -> None:
        frames = [encode_frame(run) for run in runs]
        self.stage.feed(self.stage.far(self.peer), frames, self.meter, self.log_meter)

    def go_on(self, end: Callable[[], None]) -> None:
        """The group that was held ends."""
        self.stage.metered.meter = self.log_meter
        try:
            with self.meter.turn("the end of a group"):
                end()
        except TooMuchWork:
            pass
        self.hand_in([])

    @property
    def costs(self) -> tuple[int, ...]:
        steps = self.stage.metered.steps_all
        return self.meter.total, self.log_meter.total, steps, sum(WORK_IN_C)


def again_in_one_group(count: int) -> Sender:
    sender = Sender()
    sender.log.hold = True
    sender.before([a_run(1)])
    for _ in range(2):
        sender.hand_in([a_run(2 + n) for n in range(count)])
    sender.go_on(sender.log.release)
    assert sender.stage.node.parts.commits.uncommitted_bytes == 0
    return sender


def again_in_one_run(count: int) -> Sender:
    """One run over as many that were stored, each alone."""
    sender = Sender()
    sender.before([a_run(1 + n) for n in range(count)])
    sender.hand_in([a_run(1, count)])
    return sender


def holes_filled_by_one_run(count: int) -> Sender:
    sender = Sender()
    sender.before([a_run(2 * n) for n in range(1, count + 1)])
    sender.hand_in([a_run(1, 2 * count + 1)])
    return sender


def holes_filled_each(count: int) -> Sender:
    sender = Sender()
    sender.before([a_run(2 * n) for n in range(1, count + 1)])
    sender.hand_in([a_run(2 * n + 1) for n in range(count)])
    return sender


def refused_and_waiting(count: int, end: str) -> Sender:
    """As many lanes as runs: those of one group are refused while as many wait for the next."""
    sender = Sender(Limits(sender_ranges=100))
    sender.before([a_run(10 + 2 * n) for n in range(100)])
    sender.log.hold = True
    for at in (0, count):
        sender.hand_in([a_run(1000 + 2 * n, subject=f"s{n}") for n in range(at, at + count)])
    sender.go_on(getattr(sender.log, end))
    assert sender.peer.lost_because is None
    return sender


def sets_of_full_receivers(count: int) -> Sender:
    """Each run names another set of receivers that are too far behind."""
    sender = Sender(Limits(backlog_bytes=1))
    names = [f"r{n}" for n in range(20)]
    for name in names:
        sender.stage.peer(name, receive={"subjects": ["x"]}).connection.abort()
    sender.before([a_run(1, subject="x")])
    sender.stage.settle(1.0)
    assert sender.stage.node.parts.dispatch.refusing == len(names)
    sets = list(islice(combinations(names, 10), count))
    sender.hand_in([msgspec.structs.replace(a_run(2 + n), to=to) for n, to in enumerate(sets)])
    return sender


SENDERS: dict[str, Callable[[int], Sender]] = {
    "again in one group": again_in_one_group,
    "again in one run": again_in_one_run,
    "holes filled by one run": holes_filled_by_one_run,
    "holes filled each": holes_filled_each,
    "refused by the log": lambda count: refused_and_waiting(count, "release"),
    "to sets of receivers that are full": sets_of_full_receivers,
    "of a group that fails": lambda count: refused_and_waiting(count, "refuse"),
}


@pytest.mark.parametrize("name", SENDERS)
def test_twice_as_many_runs_cost_twice_as_much(name: str) -> None:
    few, many = SENDERS[name](FEW).costs, SENDERS[name](2 * FEW).costs
    for one, other in zip(few, many, strict=True):
        assert other <= GROWTH * one + 20_000, (few, many)
