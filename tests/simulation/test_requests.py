"""Requests as DELIVERY 57 has them: each answered once or failed, typed, under faults and kills."""

from __future__ import annotations

from collections import Counter

import pytest
from twisted.python.failure import Failure

from msgservice.testing.network import CALM, Faults
from tests.simulation.requests import Play
from tests.simulation.seeds import seeds


@pytest.mark.parametrize("seed", seeds(30))
def test_57_each_request_is_answered_once_or_fails_and_no_answer_reaches_another(
    seed: int,
) -> None:
    Play(seed).run()


@pytest.mark.parametrize("seed", range(1000, 1003))
def test_57_links_that_fail_ask_nobody_twice(seed: int) -> None:
    Play(seed, faults=Faults()).run()


def test_57_the_plays_are_not_empty() -> None:
    ends: Counter[str] = Counter()
    lies = 0
    for seed in range(8):
        play = Play(seed, faults=CALM if seed % 2 else Faults())
        play.run()
        lies += play.lies
        for call in play.calls:
            outcome = call.outcome
            is_error = isinstance(outcome, Failure)
            ends[type(outcome.value).__name__ if is_error else type(outcome).__name__] += 1
    assert {"bytes", "RequestTimeout", "ResponderLost", "NoResponder", "Busy"} <= set(ends)
    assert {"RequestFailed", "Ambiguous", "CancelledError"} <= set(ends)
    assert ends["bytes"] > 100
    assert lies > 10
