"""What the swarm found once, shrunk: each is played again.

Most of what it finds becomes a test where its kind lives; here is what only the whole system shows.
"""

from __future__ import annotations

from tests.simulation.swarm.plan import Op, Part, Plan
from tests.simulation.swarm.shrink import fails


def test_sets_that_nothing_has_any_more_make_room_below_the_limit_of_all() -> None:
    plan = Plan(
        seed=296,
        limits={"audiences": 8},
        weather={},
        cast=(
            Part(kind="producer", name="shop", options={}),
            Part(kind="receiver", name="library", options={"patterns": ("a.1",)}),
            Part(kind="receiver", name="picky", options={"patterns": ("a.*", "b.>")}),
            Part(kind="scripted", name="scripted", options={"patterns": (">",)}),
        ),
        ops=(Op(at=17.138, kind="names", who="shop", args=(30,)),),
    )
    assert fails(plan) is None
