"""A message that kills is found, and none is blamed for what its receiver dies of else (51)."""

from __future__ import annotations

import pytest

from tests.simulation.crashes import Crashes
from tests.simulation.seeds import seeds


@pytest.mark.parametrize("seed", seeds(60))
def test_51_who_kills_is_dead_after_20_connections_and_nobody_else_ever_is(seed: int) -> None:
    Crashes(seed).run()


def test_51_the_plays_are_not_empty() -> None:
    plays = [Crashes(seed).run() for seed in range(24)]
    assert sum(play.own_deaths for play in plays) > 200
    assert sum(bool(play.kills) for play in plays) > 2
    assert any(play.is_shared and play.own_deaths for play in plays)
