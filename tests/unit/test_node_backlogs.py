"""Backlogs as dispatch judges them: exact where it matters, and what it costs (SEMANTICS 18)."""

from __future__ import annotations

import random
from typing import Any

import pytest
from twisted.internet.task import Clock

from msgservice.limits import Limits
from msgservice.node import dispatch as dispatch_module
from msgservice.node.dispatch import JUDGE_EVERY, Dispatch
from msgservice.node.stored_bytes import QueuedBytes, StoredBytes
from msgservice.node.supply import State
from msgservice.node.tail import Tail
from msgservice.receiver_options import ReceiverOptions
from msgservice.records import Audience, Batch, ReceiverRow
from tests.bounds.meter import Meter
from tests.kit.doubles import double
from tests.kit.logs import make_batch

LIMIT = 1000


class Scene:
    """A dispatch, and receivers of which nothing but sets and backlogs is real."""

    def __init__(self, receivers: int, *, is_there: bool = False, limit: int = LIMIT) -> None:
        self.clock = Clock()
        self.stored_bytes = StoredBytes()
        self.limit = limit
        self.tail = Tail(1, 1 << 20)
        self.suspended: list[str] = []
        self.dispatch = Dispatch(
            self.tail, self.stored_bytes, Limits(), self.clock, self._suspend, double(), double()
        )
        self.outlets = [self._outlet(number, is_there) for number in range(1, receivers + 1)]
        for outlet in self.outlets:
            self.dispatch.add(outlet)
        self.sets: list[Audience] = []
        self.number = 0

    def _suspend(self, row: ReceiverRow, suspended: bool) -> None:
        row.suspended = suspended

    def _outlet(self, number: int, is_there: bool) -> Any:
        sets: set[int] = set()
        on_full = "suspend" if number % 2 else "refuse"
        return double(
            row=ReceiverRow(
                number=number,
                name=f"r{number}",
                options=ReceiverOptions(on_full=on_full, backlog_bytes=self.limit),
            ),
            name=f"r{number}",
            audiences=sets,
            connection=1 if is_there else None,
            supply=double(state=State.LAGS),
            progress=double(queued=QueuedBytes(self.stored_bytes, sets)),
            caught_up=False,
        )

    def add_sets(self, rng: random.Random, count: int, members: int) -> None:
        numbers = [outlet.row.number for outlet in self.outlets]
        for number in range(len(self.sets) + 1, len(self.sets) + count + 1):
            audience = Audience(number, tuple(sorted(rng.sample(numbers, members))))
            self.sets.append(audience)
            self.dispatch.audience_made(audience)

    def store(self, *audiences: Audience, size: int = 1) -> None:
        batches: list[Batch] = []
        for audience in audiences:
            self.number += 1
            batch = make_batch(audience, self.number, [bytes(size)])
            batch.number = self.number
            batches.append(batch)
        self.dispatch.stored(batches)


def units_of_judging(receivers: int, sets: int) -> int:
    scene = Scene(receivers, limit=1 << 30)
    scene.add_sets(random.Random(1), sets, receivers // 2)
    scene.store(*scene.sets)
    meter = Meter()
    with meter.turn("a judgement"):
        scene.clock.advance(JUDGE_EVERY)
    return meter.units


def test_receivers_that_are_away_cost_a_judgement_one_look_each_however_many_sets_they_are_in() -> (
    None
):
    assert units_of_judging(400, 100) < units_of_judging(400, 10) * 1.1
    assert units_of_judging(400, 100) < 400 * 20, "lines; of a double some more"


def test_18_a_judgement_of_many_that_come_near_to_their_limits_is_cut_and_comes_to_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dispatch_module, "JUDGED_SETS", 1000)
    scene = Scene(200, limit=2000)
    scene.add_sets(random.Random(1), 50, 100)
    scene.store(*scene.sets, size=200)
    looked = 0
    for _ in range(5):  # 200 receivers in 25 sets each
        before = [outlet.progress.queued.at_least for outlet in scene.outlets]
        scene.clock.advance(JUDGE_EVERY)
        after = [outlet.progress.queued.at_least for outlet in scene.outlets]
        changed = [
            outlet for outlet, a, b in zip(scene.outlets, before, after, strict=True) if a != b
        ]
        looked += len(changed)
        assert sum(len(outlet.audiences) for outlet in changed) < 1000 + 50
    assert looked == 200
    assert len(scene.dispatch._full) == 200
    assert sum(outlet.row.suspended for outlet in scene.outlets) == 100


@pytest.mark.parametrize("seed", range(30))
def test_18_who_is_too_far_behind_is_known_at_each_judgement_as_if_all_were_added_up(
    seed: int,
) -> None:
    rng = random.Random(seed)
    scene = Scene(8)
    waits = dict.fromkeys(scene.outlets, 0)
    live: dict[int, Audience] = {}
    full: set[int] = set()
    for _ in range(300):
        what = rng.choice(["store", "store", "store", "settle", "set", "unset", "judge"])
        if what == "set" and len(live) < 6:
            scene.add_sets(rng, 1, rng.randint(1, 8))
            live[scene.sets[-1].number] = scene.sets[-1]
        elif what == "unset" and live:
            audience = live.pop(rng.choice(list(live)))
            scene.dispatch.audience_unmade(audience)
        elif what == "store" and live:
            audience = rng.choice(list(live.values()))
            size = rng.choice([1, 30, 150])
            scene.store(audience, size=size)
            for outlet in waits:
                if outlet.row.number in audience.members:
                    waits[outlet] += make_batch(audience, 1, [bytes(size)]).size
        elif what == "settle":
            outlet = rng.choice(scene.outlets)
            size = rng.randint(0, waits[outlet])
            waits[outlet] -= size
            outlet.progress.queued.add(-size)
        elif what == "judge":
            suspended = {o.row.number for o in scene.outlets if o.row.suspended}
            scene.dispatch.judge()
            full = set()
            for outlet, size in waits.items():
                number = outlet.row.number
                bound = LIMIT // 2 if number in suspended else LIMIT
                assert outlet.row.suspended == (number % 2 == 1 and size >= bound)
                if size >= LIMIT or outlet.row.suspended:
                    full.add(number)
            assert scene.dispatch._full == full
        for outlet, size in waits.items():
            queued = outlet.progress.queued
            assert queued.at_least <= size <= queued.at_most
            if rng.random() < 0.1:
                assert queued.look() == queued.at_least == queued.at_most == size
    scene.dispatch.stop()


def test_a_receiver_that_goes_costs_its_sets_and_not_who_else_is_in_them() -> None:
    units = []
    for receivers in (200, 2000):
        scene = Scene(receivers, is_there=True)
        scene.add_sets(random.Random(1), 100, receivers - 1)
        meter = Meter()
        with meter.turn("a receiver goes"):
            scene.dispatch.disconnected(scene.outlets[-1])
        units.append(meter.units)
        assert all(scene.outlets[-1] not in live for live in scene.dispatch._live.values())
    assert units[1] <= units[0] * 1.1
