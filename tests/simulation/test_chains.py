"""Chains as SEMANTICS 29 has them: nodes that pass on lose and double nothing, in order."""

from __future__ import annotations

import pytest

from tests.kit.faulty import CALM, Faults
from tests.simulation.chains import Chain

LINE = {"edge": ["mid"], "mid": ["centre"], "centre": []}
PAIR = {"left": ["right"], "right": ["left"]}
RING = {"a": ["b"], "b": ["c"], "c": ["a"]}
BOTH_WAYS = {"a": ["b", "c"], "b": ["c", "a"], "c": ["a", "b"]}
SHAPES = {"line": LINE, "pair": PAIR, "ring": RING, "both ways": BOTH_WAYS}


@pytest.mark.parametrize("shape", SHAPES)
def test_each_way_brings_a_message_once(shape: str) -> None:
    Chain(1, SHAPES[shape], faults=CALM).play(60)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(3))
def test_links_that_fail_lose_and_double_nothing(shape: str, seed: int) -> None:
    Chain(100 + seed, SHAPES[shape], faults=Faults()).play(60)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(3))
def test_nodes_that_are_killed_lose_and_double_nothing(shape: str, seed: int) -> None:
    chain = Chain(200 + seed, SHAPES[shape], faults=Faults())
    chain.play(80, kills=True)
    assert sum(node.kills for node in chain.nodes.values()) > 0


def test_a_ring_of_three_both_ways_brings_each_message_once_for_each_path() -> None:
    chain = Chain(7, BOTH_WAYS, faults=CALM)
    assert 1 == chain.ways("a", "a")
    assert 2 == chain.ways("a", "c")  # directly, and by way of b
    assert 1 == Chain(8, RING, faults=CALM).ways("a", "c")
