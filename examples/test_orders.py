"""Tests of a program that uses msgservice, as its authors would write them.

    python -m pytest examples/test_orders.py

The program is the billing of a shop: it books each order once, though messages may come twice.
"""

from __future__ import annotations

from typing import Any

import pytest

from msgservice import Client, Receiver, Retry, blocking
from msgservice.receiver.received import ReceivedMessage
from msgservice.testing import Faults, LocalNode, World


class Billing:
    """The program that is tested."""

    def __init__(self) -> None:
        self.booked: dict[str, Any] = {}
        self.is_open = True

    def handle(self, order: ReceivedMessage) -> None:
        if not self.is_open:
            raise Retry(60)
        self.booked[order.identity] = order.content


def billing_of(world: World, billing: Billing) -> Receiver:
    return world.receiver(["orders.>"], name="billing", handler=billing.handle)


def orders(client: Client, count: int) -> None:
    for number in range(count):
        client.send("orders.new", number)


def test_orders_come_to_billing(msgservice_node: LocalNode) -> None:
    billing = Billing()
    msgservice_node.receiver(["orders.>"], name="billing", handler=billing.handle)
    with blocking.connect(msgservice_node.address, name="shop") as client:
        client.send("orders.new", {"id": 17}).acknowledged(timeout=30)
    assert list(billing.booked.values()) == [{"id": 17}]


def test_a_closed_billing_books_when_it_is_open_again(msgservice_world: World) -> None:
    billing = Billing()
    billing.is_open = False
    msgservice_world.wait(billing_of(msgservice_world, billing).when_connected())
    orders(msgservice_world.client("shop"), 3)
    msgservice_world.run(300)
    assert billing.booked == {}
    billing.is_open = True
    msgservice_world.run(61)
    assert list(billing.booked.values()) == [0, 1, 2]


@pytest.mark.parametrize("seed", range(5))
def test_a_billing_that_is_killed_books_the_rest_when_it_is_back(seed: int) -> None:
    world = World(seed, faults=Faults())
    billing = Billing()
    world.wait(billing_of(world, billing).when_connected())
    orders(world.client("shop"), 20)
    world.run_until(lambda: len(billing.booked) > 0)
    world.kill("billing")
    world.kill_node()
    world.run(10)
    world.start_node()
    billing_of(world, billing)
    world.run_until(lambda: len(billing.booked) == 20)
    world.close()
