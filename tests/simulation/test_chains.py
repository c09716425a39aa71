"""Chains as SEMANTICS 29 has them: nodes that pass on lose and double nothing, in order."""

from __future__ import annotations

import errno
from collections import Counter
from pathlib import Path
from random import Random

import pytest
from twisted.internet.defer import Deferred

from msgservice.testing.network import CALM, Faults
from tests.kit.limits import Limits
from tests.kit.simdisk import SimDisk
from tests.simulation.chains import FOR_EVER, Chain, NodeOfChain

LINE = {"edge": ["mid"], "mid": ["centre"], "centre": []}
PAIR = {"left": ["right"], "right": ["left"]}
RING = {"a": ["b"], "b": ["c"], "c": ["a"]}
BOTH_WAYS = {"a": ["b", "c"], "b": ["c", "a"], "c": ["a", "b"]}
PUT_BACK = {"line": "mid", "pair": "right", "ring": "b", "both ways": "b"}
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


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(2))
def test_some_expire_on_the_way_and_no_other_is_lost(shape: str, seed: int) -> None:
    chain = Chain(300 + seed, SHAPES[shape], faults=Faults())
    chain.play(80, kills=True, ttl=(1.0, 5.0, FOR_EVER))
    handled = {body for node in chain.nodes.values() for body in node.handled}
    assert handled & chain.may_expire


@pytest.mark.parametrize("new_id", ["", "f" * 32], ids=["the id that it had", "a new id"])
@pytest.mark.parametrize("shape", ["line", "pair", "ring", "both ways"])
@pytest.mark.parametrize("seed", range(2))
def test_a_log_that_is_put_back_loses_nothing_that_others_have_sent(
    shape: str, seed: int, new_id: str
) -> None:
    """Its receiver is away when that is taken, so the log is where it was last.

    The node before it may have been started anew since, and does not know what was taken.
    """
    chain = Chain(400 + seed, SHAPES[shape], faults=Faults())
    gone, *others = sorted(SHAPES[shape], key=lambda name: name != PUT_BACK[shape])
    chain.send_some(30, others)
    chain.world.run(5)
    snapshot = chain.nodes[gone].snapshot()
    chain.nodes[gone].leave()
    chain.send_some(30, others)
    chain.world.run(30)  # most of it has come there, and is on its disk
    chain.nodes[gone].put_back(snapshot, log_id=new_id)
    if seed:
        for name in others:
            chain.nodes[name].kill()
    chain.nodes[gone].come()
    chain.send_some(30, others)
    chain.world.run(20)
    chain.settle()
    chain.check_put_back(gone)


@pytest.mark.parametrize("shape", ["pair", "ring", "both ways"])
def test_what_is_sent_again_on_purpose_goes_round_no_more_often_than_at_first(shape: str) -> None:
    chain = Chain(500, SHAPES[shape], faults=Faults())
    first, *_ = SHAPES[shape]
    far = SHAPES[shape][first][0]
    chain.play(40)
    before = {name: len(node.handled) for name, node in chain.nodes.items()}
    node = chain.nodes[first].service
    end = node.parts.tail.next_number << 16
    rewinding = Deferred.fromCoroutine(node.parts.receivers.rewind(far, 0, end - 1))
    rewinding.addErrback(chain.failures.append)
    chain.world.run(20)
    chain.settle()
    assert not chain.failures, chain.failures
    for end_at, other in chain.nodes.items():
        came = len(other.handled) - before[end_at]
        # Behind the far node each goes on by all ways that do not pass where it has been.
        assert came == other.replayed
        assert (came > 0) == (end_at != first), (end_at, came)
        assert max(Counter(_paths(other)).values()) <= 2


def _paths(node: NodeOfChain) -> list[tuple[bytes, tuple[str, ...]]]:
    return [(body, path) for body, paths in node.paths.items() for path in paths]


def test_a_ring_of_three_both_ways_brings_each_message_once_for_each_path() -> None:
    chain = Chain(7, BOTH_WAYS, faults=CALM)
    assert 1 == chain.ways("a", "a")
    assert 2 == chain.ways("a", "c")  # directly, and by way of b
    assert 1 == Chain(8, RING, faults=CALM).ways("a", "c")


# --- a full log, and a full disk, in the middle

# Where no link fails, nothing else could keep messages back for so long.
QUIET = (CALM, Faults(), Faults())


@pytest.mark.parametrize("seed", range(3))
def test_a_middle_whose_log_is_full_keeps_nothing_back_once_there_is_room(seed: int) -> None:
    """The centre is away, so what the middle takes fills its log; the edge has the rest."""
    small = Limits(link_delay_max=3.0, retry_delay_max=3.0, max_attempts=1000, max_bytes=60_000)
    chain = Chain(600 + seed, LINE, limits={"mid": small}, faults=QUIET[seed])
    mid, centre = chain.nodes["mid"], chain.nodes["centre"]
    centre.end()
    chain.send_some(120, ["edge"], size=1_000)
    chain.world.run(60)
    assert len(mid.handled) < 120  # it was full, and took no more
    if seed:
        mid.kill()
    centre.begin()
    chain.settle()
    chain.check()
    assert 120 == len(centre.handled) == len(mid.handled)


@pytest.mark.parametrize("seed", range(3))
def test_a_middle_whose_disk_is_full_loses_and_doubles_nothing(seed: int, tmp_path: Path) -> None:
    disk = SimDisk(tmp_path / "disk", Random(seed))
    chain = Chain(700 + seed, LINE, disks={"mid": disk}, faults=QUIET[seed])
    mid, centre = chain.nodes["mid"], chain.nodes["centre"]
    chain.send_some(30, ["edge", "mid"])
    chain.world.run(5)
    assert mid.disk is not None
    mid.disk.full = lambda name: errno.ENOSPC
    chain.send_some(60, ["edge"])
    chain.world.run(30)
    assert len(centre.handled) < 90, "it was full"
    mid.disk.full = lambda name: 0
    if seed:
        mid.kill()
    chain.send_some(30, ["edge", "mid"])
    chain.settle()
    chain.check()
    assert 120 == len(centre.handled) == len(mid.handled)
