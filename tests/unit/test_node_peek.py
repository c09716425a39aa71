"""What waits for a receiver is looked at, and stays what it is (DELIVERY 49)."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from msgservice.core.frames import Ack, Transfer
from msgservice.message import Action, decode_messages
from msgservice.node import peek
from tests.kit.nodes import NodeWorld, ScriptedPeer, state_of

ORDERS = {"subjects": ["orders.>"]}


class World(NodeWorld):
    """A node with a receiver, a producer and an operator."""

    def __init__(self, order: str = "strict") -> None:
        super().__init__()
        self.billing = self.peer("billing", receive=ORDERS | {"order": order})
        self.shop, self.operator = self.peer("shop"), self.peer("operator")
        self._sequence = 0

    def send(self, *bodies: bytes, subject: str = "orders.new") -> None:
        self.shop.transfer(self._sequence + 1, subject, list(bodies))
        self._sequence += len(bodies)
        self.settle()

    def peek(self, **asked: Any) -> tuple[list[dict[str, Any]], int | None]:
        ok, page = self.operator.request("$node.peek", {"receiver": "billing", **asked})
        assert ok, page
        return page["messages"], page["next"]

    def all(self, **asked: Any) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        after: int | None = 0
        while after is not None:
            rows, after = self.peek(after=after, **asked)
            found += rows
        return found

    def body(self, position: int) -> bytes:
        encoded, offset = b"", 0
        while offset is not None:
            asked = {"receiver": "billing", "position": position, "offset": offset}
            ok, part = self.operator.request("$node.peek.get", asked)
            assert ok, part
            encoded += base64.b64decode(part["message"])
            offset = part["next"]
        return decode_messages(encoded)[0].body


def one_answered(peer: ScriptedPeer) -> Transfer:
    (transfer,) = peer.take(Transfer)
    return transfer


def test_49_what_waits_is_told_in_order_and_stays() -> None:
    world = World()
    world.send(b"one", b"two")
    world.send(b"x", subject="other")
    world.send(b"three")
    before = state_of(world, "billing")
    rows = world.all()
    assert ["orders.new"] * 3 == [row["subject"] for row in rows]
    assert [b"one", b"two", b"three"] == [world.body(row["position"]) for row in rows]
    assert {"sent"} == {row["status"] for row in rows}
    assert [1, 2, 4] == [row["sequence"] for row in rows]
    assert before.queued == state_of(world, "billing").queued == 3
    assert [b"one", b"two", b"three"] == world.billing.bodies()


@pytest.mark.parametrize("limit", [1, 2, 100])
def test_49_pages_leave_nothing_out_and_repeat_nothing(limit: int) -> None:
    world = World()
    for number in range(5):
        world.send(b"%d" % number, b"x")
    positions = [row["position"] for row in world.all(limit=limit)]
    assert 10 == len(positions)
    assert sorted(set(positions)) == positions
    assert limit >= len(world.peek(limit=limit)[0]) > 0


def test_49_what_is_settled_is_not_told_wherever_it_lies() -> None:
    world = World("none")
    world.send(b"0", b"1", b"2", b"3")
    transfer = one_answered(world.billing)
    first = transfer.sequence
    world.billing.connection.send(Ack([(first, first), (first + 2, first + 2)]))
    world.settle()
    rows = world.all()
    assert [b"1", b"3"] == [world.body(row["position"]) for row in rows]
    for settled in (first, first + 2, first + 99):
        ok, told = world.operator.request(
            "$node.peek.get", {"receiver": "billing", "position": settled}
        )
        assert (False, f"no message 'log:{settled}' in the log") == (ok, told)


def test_49_what_failed_says_why_and_how_often() -> None:
    world = World()
    world.send(b"poison")
    transfer = one_answered(world.billing)
    world.billing.nack(transfer.sequence, transfer.sequence, Action.RETRY, 60_000, "no database")
    world.settle()
    (row,) = world.all()
    assert ("queued", 1, "no database") == (row["status"], row["attempts"], row["reason"])


def test_49_a_receiver_that_is_away_is_looked_at_too() -> None:
    world = World()
    world.billing.connection.abort()
    world.settle()
    world.send(b"one")
    (row,) = world.all()
    assert ("queued", b"one") == (row["status"], world.body(row["position"]))


def test_49_a_page_looks_at_so_many_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peek, "LOOKED_MAX", 20)
    world = World("none")
    world.send(*[b"x"] * 30)
    first = one_answered(world.billing).sequence
    # All but the first and the last are settled.
    world.billing.connection.send(Ack([(first + 1, first + 28)]))
    world.settle()
    rows, after = world.peek()
    assert (1, True) == (len(rows), after is not None)
    assert 2 == len(world.all())


def test_49_a_large_message_comes_in_parts() -> None:
    world = World()
    world.send(b"y" * 700_000)
    (row,) = world.all()
    assert b"y" * 700_000 == world.body(row["position"])


def test_49_what_is_not_there_is_told_so() -> None:
    world = World()
    ok, told = world.operator.request("$node.peek", {"receiver": "nobody"})
    assert (False, "unknown receiver 'nobody'") == (ok, told)
    assert ([], None) == world.peek()
