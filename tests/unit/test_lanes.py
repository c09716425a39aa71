"""A lane is the same one on every side (SEMANTICS 3, DELIVERY 59)."""

from __future__ import annotations

import pytest

from msgservice.core.frames import Transfer
from msgservice.core.inbox import Inbox
from msgservice.core.lanes import lane_of
from msgservice.message import encode_bodies
from msgservice.records import Audience, Batch, Origin
from tests.kit.nodes import NodeWorld


@pytest.mark.parametrize("hop", ["shop", "near-node"])
def test_59_the_outlet_and_the_receiver_see_the_lane_of_the_first_sender(hop: str) -> None:
    world = NodeWorld()
    billing = world.peer("billing", receive={"subjects": [">"]})
    outlet = next(iter(world.node.parts.dispatch))
    raw = encode_bodies([b"x"])
    origin = Origin("shop", 7, "hash", ("there",))
    position = outlet.backlog.loaded_to + 1
    batch = Batch(
        hop,
        "i",
        1,
        1,
        "s",
        Audience(1, ()),
        raw,
        len(raw),
        0,
        0,
        origin=origin,
        number=position >> 16,
    )
    outlet.supply.load(batch)
    (run,) = outlet.backlog.open_between(batch.first, batch.last)
    outlet.pump()
    world.settle()
    (transfer,) = billing.take(Transfer)
    assert run.lane == Inbox().lane_of(transfer) == lane_of(origin, hop, "s") == ("shop", "s")
