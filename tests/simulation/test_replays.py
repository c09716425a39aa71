"""Replays by seed: in order and complete, once, whatever is killed in between (DELIVERY 47)."""

from __future__ import annotations

import os

import pytest

from tests.simulation.replays import Sim

SEEDS = range(int(os.environ.get("REPLAY_SEEDS", "40")))


@pytest.mark.parametrize("seed", SEEDS)
def test_47_replays_are_in_order_and_complete_once(seed: int) -> None:
    Sim(seed).play(60)


def test_the_simulation_plays_what_it_is_for() -> None:
    sims = [Sim(seed).play(60) for seed in range(6)]
    assert sum(sim.kills for sim in sims) > 5
    assert sum(sim.counted for sim in sims) > 300
    kinds = {begun.kind for sim in sims for one in sim.receivers.values() for begun in one.replays}
    assert {"rewind", "start", "suspended"} == kinds
