"""What a node refuses at the door and what it refuses late, from the log: each is answered."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from msgservice.core.frames import Ack, Nack, Routed, Transfer
from msgservice.errors import LogUnavailable
from msgservice.limits import Limits
from msgservice.log.memory import MemoryLog
from msgservice.message import FLAG_REQUIRE, Action, WireMessage, encode_messages
from msgservice.records import Origin, Resume
from tests.kit.nodes import FailingLog, NodeWorld, ScriptedPeer

LARGE = b"1" * 4200
SIZE = len(encode_messages([WireMessage(LARGE)]))


class FillingUp:
    """Run 1 fills the log; while 2 waits for its commit, 3 of the same lane is refused."""

    def __init__(self) -> None:
        clock = Clock()
        limits = Limits(max_bytes=SIZE, backlog_bytes=1 << 20, keep_seconds=0.0, keep_bytes=0)
        self.log = FailingLog(MemoryLog(reactor=clock, limits=limits))
        self.world = world = NodeWorld(limits, log=self.log, clock=clock)
        self.billing = world.peer("billing", receive={"subjects": [">"]})

    def commit_one(self) -> None:
        """Let the group that is held be stored; the next is held again."""
        held, self.log._held = self.log._held, []
        for group, waiter in held:
            self.log._log.append(group).chainDeferred(waiter)
        self.world.settle()

    def fill(self, shop: ScriptedPeer) -> None:
        self.log.hold = True
        for number, body in enumerate([LARGE, b"two", b"three"], 1):
            shop.transfer(number, "a", [body])
            self.world.settle()
            if number == 2:
                self.commit_one()

    def empty(self) -> None:
        for transfer in self.billing.take(Transfer):
            self.billing.ack(transfer)
        self.world.settle(5)


@pytest.mark.parametrize("end", ["refused by the log", "not stored at all"])
def test_3_a_late_refusal_behind_one_at_the_door_is_answered_too(end: str) -> None:
    full = FillingUp()
    shop = full.world.peer("shop")
    full.fill(shop)
    assert [(n.first, n.action) for n in shop.take(Nack)] == [(3, Action.LATER)]
    if end == "not stored at all":
        full.log.error = LogUnavailable("the disk says no")
        full.log.refuse()
    else:
        full.log.release()
    full.world.settle()
    assert [(n.first, n.action) for n in shop.take(Nack)] == [(2, Action.LATER)]
    assert [frame.ranges for frame in shop.take(Ack)] == [[(1, 1)]]


def test_3_a_client_keeps_its_order_where_the_later_run_is_refused_first() -> None:
    full = FillingUp()
    client = full.world.node.client("shop")
    full.world.settle(1)
    full.log.hold = True
    fired: list[object] = []
    for number, body in enumerate([LARGE, b"two", b"three"], 1):
        client.send("a", body).addBoth(fired.append)
        full.world.settle()
        if number == 2:
            full.commit_one()
    full.log.release()
    full.world.settle()
    bodies: list[bytes] = []
    for _ in range(20):
        for transfer in full.billing.take(Transfer):
            full.billing.frames.append(transfer)
            bodies += full.billing.bodies()
            full.billing.ack(transfer)
        full.world.settle(2)
    assert bodies == [LARGE, b"two", b"three"]
    assert len(fired) == 3


def raw(**fields: Any) -> dict[str, Any]:
    return fields


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        (raw(origin=Origin("other", 7, "0" * 16, ())), "origin"),
        (raw(flags=2), "replay"),
        (raw(flags=64), "flags 64"),
        (raw(flags=1 << 52), "elements"),
    ],
)
def test_60_what_only_nodes_say_and_what_is_not_known_is_refused(
    fields: dict[str, Any], reason: str
) -> None:
    world = NodeWorld()
    billing = world.peer("billing", receive={"subjects": [">"]})
    shop = world.peer("shop")
    shop.transfer(1, "a", [b"x"], **fields)
    shop.transfer(2, "a", [b"y"])
    world.settle()
    (nack,) = shop.take(Nack)
    assert (nack.first, nack.last, nack.action) == (1, 1, Action.REFUSED)
    assert reason in nack.reason
    (transfer,) = billing.take(Transfer)
    assert transfer.origin is not None
    assert (transfer.origin.sender, transfer.origin.sequence) == ("shop", 2)


@pytest.mark.parametrize(
    "array",
    [
        pytest.param(
            [2, 1, "a", [[b"x"]], None, 0, 0, None, None, None, 0, None, None, "more"],
            id="TRANSFER",
        ),
        pytest.param(
            [2, 1, "a", [[b"x"]], *[None, 0, 0, None, None, None, 0], *[None] * 9], id="16"
        ),
        pytest.param([2, 1, "a", [[b"x"], [b"y", None, None, None, 1]]], id="message"),
    ],
)
def test_40_elements_that_are_not_known_are_refused_and_not_stored(array: list[Any]) -> None:
    world = NodeWorld()
    shop = world.peer("shop")
    assert shop.connection.channel is not None
    shop.connection.channel.send(msgspec.msgpack.encode(array))
    world.settle()
    (nack,) = shop.take(Nack)
    assert (nack.first, nack.action) == (1, Action.REFUSED)
    assert "more elements" in nack.reason
    assert shop.lost_because is None


@pytest.mark.parametrize("fields", [raw(to=["billing"]), raw(flags=FLAG_REQUIRE)], ids=str)
@pytest.mark.parametrize("stored", ["when it comes again", "later"])
def test_2_what_was_stored_is_not_refused_when_it_comes_again_and_nobody_is_left(
    stored: str, fields: dict[str, Any]
) -> None:
    clock = Clock()
    log = FailingLog(MemoryLog(reactor=clock, limits=Limits()))
    world = NodeWorld(log=log, clock=clock)
    world.peer("billing", receive={"subjects": ["b"]})
    shop = world.peer("shop")
    log.hold = True
    shop.transfer(1, "b", [b"x"], **fields)
    world.settle()
    shop.connection.abort()
    world.settle()
    shop = world.peer("shop", status_from=1)
    assert shop.node_resume == Resume()
    removing = Deferred.fromCoroutine(world.node.remove_receiver("billing"))
    world.settle()
    if stored != "later":
        log.release()
        world.settle()
    shop.transfer(1, "b", [b"x"], **fields)
    shop.transfer(2, "b", [b"y"], **fields)
    world.settle()
    log.release()
    world.settle()
    assert removing.called
    assert [ack.ranges for ack in shop.take(Ack)] == [[(1, 1)]]
    assert [(nack.first, nack.action) for nack in shop.take(Nack)] == [(2, Action.REFUSED)]
    assert shop.lost_because is None
    assert world.node.parts.commits.uncommitted_bytes == 0
    assert world.resume("shop", "i1").floor == 2


@pytest.mark.parametrize("fields", [raw(to=["billing"]), raw(flags=FLAG_REQUIRE)], ids=str)
@pytest.mark.parametrize("stored", ["when it comes again", "later"])
def test_2_what_was_stored_of_a_run_is_not_refused_with_what_was_added_to_it(
    stored: str, fields: dict[str, Any]
) -> None:
    clock = Clock()
    log = FailingLog(MemoryLog(reactor=clock, limits=Limits()))
    world = NodeWorld(log=log, clock=clock)
    world.peer("billing", receive={"subjects": ["b"]})
    shop = world.peer("shop")
    log.hold = True
    shop.transfer(1, "b", [b"x", b"y"], **fields)
    world.settle()
    shop.connection.abort()
    world.settle()
    shop = world.peer("shop", status_from=1)
    removing = Deferred.fromCoroutine(world.node.remove_receiver("billing"))
    world.settle()
    if stored != "later":
        log.release()
        world.settle()
    shop.transfer(1, "b", [b"x", b"y", b"z"], **fields)
    shop.transfer(4, "b", [b"4"], **fields)
    world.settle()
    log.release()
    world.settle()
    assert removing.called
    assert [ack.ranges for ack in shop.take(Ack)] == [[(1, 2)]]
    told = [(nack.first, nack.last, nack.action) for nack in shop.take(Nack)]
    assert told == [(3, 3, Action.REFUSED), (4, 4, Action.REFUSED)]
    assert {(routed.first, routed.last) for routed in shop.take(Routed)} == {(1, 2)}
    assert shop.lost_because is None
    assert world.node.parts.commits.uncommitted_bytes == 0
    assert world.resume("shop", "i1").floor == 3


def test_2_a_sender_that_is_refused_all_is_not_kept() -> None:
    world = NodeWorld()
    shop = world.peer("shop")
    shop.transfer(1, "b", [b"x"], to=["nobody"])
    shop.transfer(2, "b", [b"x"], flags=FLAG_REQUIRE)
    world.settle()
    assert [nack.action for nack in shop.take(Nack)] == [Action.REFUSED] * 2
    assert ("shop", "i1") not in world.log._store.state.senders
