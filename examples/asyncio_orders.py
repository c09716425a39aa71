"""A shop and its billing in one asyncio program: orders are sent, booked in a while, and followed.

    python -m examples.asyncio_orders tcp:127.0.0.1:7410

Start a node first (`msgservice node`). Kill that while this runs, and start it again: nothing is
lost.
"""

from __future__ import annotations

import asyncio
import sys

from msgservice import Reject, aio
from msgservice.errors import NotDelivered
from msgservice.receiver.received import ReceivedMessage

ORDERS = 10


async def book(order: ReceivedMessage) -> None:
    """Book an order, which takes its time: so do many at once."""
    if order.content["id"] == 7:
        raise Reject("nobody books the seventh")
    await asyncio.sleep(0.2)


async def follow(receipt: aio.Receipt) -> None:
    """Say what becomes of an order."""
    try:
        await receipt.acknowledged("billing")
    except NotDelivered as error:
        print(f"order {receipt.id}: {error.state}, {error.reason}")
    else:
        print(f"order {receipt.id}: booked")


async def main(address: str) -> None:
    async with (
        aio.connect(address, name="shop") as client,
        aio.Receiver(name="billing", handler=book, order="none") as receiver,
    ):
        receiver.attach(address, subjects=["orders.>"])
        await receiver.when_connected()
        async with asyncio.TaskGroup() as following:
            for number in range(1, ORDERS + 1):
                receipt = await client.send("orders.new", {"id": number}, id=f"{number}")
                following.create_task(follow(receipt))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m examples.asyncio_orders tcp:127.0.0.1:7410")
    asyncio.run(main(sys.argv[1]))
