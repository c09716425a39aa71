"""Promises as a program sees them: `send(..., promise=)` and `Receipt.promised` (DELIVERY 55).

SEMANTICS 31.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from msgservice import Promise, PromiseCounts, PromiseOutcome
from msgservice.core.frames import Ack, Transfer
from msgservice.errors import BadValue, ClientClosed, NotSupported, Refused, TooFewReceivers
from msgservice.message import Status
from tests.kit.clients import ClientWorld
from tests.kit.nodes import NodeWorld

PAGE = Path(__file__).resolve().parents[2] / "docs" / "client.md"


class World(NodeWorld):
    """A node with a hotel and an airline, and a client in its process."""

    def __init__(self) -> None:
        super().__init__()
        subjects = {"subjects": ["trips.>"]}
        self.hotel = self.peer("hotel", receive=subjects)
        self.airline = self.peer("airline", receive=subjects)
        self.client = self.node.client("desk")
        self.settle()

    def now(self, waiter: Deferred[Any]) -> Any:
        results: list[Any] = []
        waiter.addBoth(results.append)
        self.settle()
        (result,) = results
        if hasattr(result, "raiseException"):
            result.raiseException()
        return result

    def answer(self, *peers: Any) -> None:
        for peer in peers:
            for transfer in peer.take(Transfer):
                peer.ack(transfer)
        self.settle()


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"need": 0, "within": 1}, "need"),
        ({"need": -1, "within": 1}, "need"),
        ({"need": True, "within": 1}, "need"),
        ({"need": "some", "within": 1}, "need"),
        ({"need": 1.0, "within": 1}, "need"),
        ({"within": 0}, "within"),
        ({"within": -1}, "within"),
        ({"within": float("nan")}, "within"),
        ({"within": "60"}, "within"),
        ({"within": 367 * 24 * 3600}, "within"),
        ({"within": 1, "otherwise": "undo"}, "otherwise"),
    ],
)
def test_55_a_promise_that_cannot_be_says_which_field(asked: dict[str, Any], field: str) -> None:
    with pytest.raises(BadValue) as caught:
        Promise(**asked)
    assert field in str(caught.value)


def test_55_a_receipt_fires_with_the_outcome_and_the_table() -> None:
    world = World()
    receipt = world.now(world.client.send("trips.book", b"", promise=Promise(within=10)))
    promised = receipt.promised()
    world.answer(world.hotel)
    assert not promised.called
    world.answer(world.airline)
    table = {"hotel": Status.ACKNOWLEDGED, "airline": Status.ACKNOWLEDGED}
    assert PromiseOutcome(True, "", table) == world.now(promised)
    assert PromiseOutcome(True, "", table) == world.now(receipt.promised())  # asked later


def test_55_a_broken_promise_says_why_and_who() -> None:
    world = World()
    world.airline.connection.abort()
    world.settle()
    promise = Promise(need=2, within=10, otherwise="cancel")
    receipt = world.now(world.client.send("trips.book", b"", promise=promise))
    promised = receipt.promised()
    world.answer(world.hotel)
    world.settle(11)
    outcome = world.now(promised)
    assert (outcome.kept, outcome.reason) == (False, "the time of its promise was over")
    assert outcome.receivers == {"hotel": Status.ACKNOWLEDGED, "airline": Status.CANCELLED}


def test_55_messages_of_one_turn_share_a_run_and_each_has_its_outcome() -> None:
    world = World()
    promise = Promise(need="any", within=10)
    sent = [world.client.send("trips.book", b"%d" % n, promise=promise) for n in range(3)]
    receipts = [world.now(one) for one in sent]
    (transfer,) = world.hotel.take(Transfer)
    promised = [receipt.promised() for receipt in receipts]
    world.hotel.ack(transfer)
    world.settle()
    assert [True] * 3 == [world.now(one).kept for one in promised]
    assert 3 == world.node.parts.promises.kept


def test_55_all_of_a_send_many_have_a_promise_each() -> None:
    world = World()
    promise = Promise(need=2, within=10)
    receipts = world.now(world.client.send_many("trips.book", [b"1", b"2", b"3"], promise=promise))
    promised = receipts.promised()
    (transfer,) = world.hotel.take(Transfer)
    world.hotel.ack(transfer)
    (transfer,) = world.airline.take(Transfer)
    world.airline.connection.send(Ack([(transfer.sequence, transfer.sequence + 1)]))
    world.settle()
    assert not promised.called
    assert world.now(receipts[1].promised()).kept
    world.settle(11)
    assert PromiseCounts(2, 1) == world.now(promised)
    assert not world.now(receipts[2].promised()).kept
    plain = world.now(world.client.send_many("trips.book", [b"4"]))
    with pytest.raises(ValueError, match="without a promise"):
        world.now(plain.promised())


@pytest.mark.parametrize("more", [{"delay": 5}, {"retain": "only"}, {"idempotency_key": "k"}])
def test_55_what_does_not_go_with_a_promise_is_refused_before_it_is_sent(
    more: dict[str, Any],
) -> None:
    world = World()
    with pytest.raises(Refused) as caught:
        world.now(world.client.send("trips.book", b"", promise=Promise(within=1), **more))
    assert "promise" in str(caught.value)


def test_55_too_few_receivers_fail_the_send() -> None:
    world = World()
    with pytest.raises(TooFewReceivers) as caught:
        world.now(world.client.send("trips.book", b"", promise=Promise(need=3, within=1)))
    assert "the promise needs 3 receivers, the message is for 2" == str(caught.value)
    with pytest.raises(TooFewReceivers):
        world.now(world.client.send("nobody.there", b"", promise=Promise(within=1)))


def test_55_a_message_without_a_promise_has_no_outcome() -> None:
    world = World()
    receipt = world.now(world.client.send("trips.book", b""))
    with pytest.raises(ValueError, match="without a promise"):
        world.now(receipt.promised())


def test_55_a_client_that_stops_before_hears_that_it_did() -> None:
    world = World()
    receipt = world.now(world.client.send("trips.book", b"", promise=Promise(need=1, within=60)))
    promised = receipt.promised()
    world.client.close()
    world.settle(30)
    with pytest.raises(ClientClosed):
        world.now(promised)


def test_55_a_node_that_does_not_offer_it_is_not_asked() -> None:
    world = ClientWorld()
    world.client._gathering.offered({"to"})
    sent = world.client.send("a", b"", promise=Promise(within=1))
    failed: list[Any] = []
    sent.addErrback(failed.append)
    world.settle()
    assert [NotSupported] == [one.type for one in failed]


def test_55_the_saga_of_the_page_gives_back_what_was_booked() -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (program,) = [block for block in blocks if "async def book" in block]
    names: dict[str, Any] = {}
    exec(program, names)
    world = World()
    world.airline.connection.abort()
    world.settle()
    done = Deferred.fromCoroutine(names["book"](world.client, 7))
    world.settle()
    world.answer(world.hotel)
    world.settle(61)
    assert done.called
    assert world.now(done) is False
    (given_back,) = world.hotel.take(Transfer)
    assert "trips.give_back" == given_back.subject
    world.airline = world.peer("airline", receive={"subjects": ["trips.>"]})
    world.settle(1)
    assert [] == world.airline.bodies()
    again = Deferred.fromCoroutine(names["book"](world.client, 8))
    world.settle()
    world.answer(world.hotel, world.airline)
    assert world.now(again) is True
