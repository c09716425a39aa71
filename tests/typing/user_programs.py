"""Programs for asyncio, and ones that block, as a user would write them; nothing runs them."""

import asyncio
from typing import Any, assert_type

from msgservice import Reject, Status, aio, blocking
from msgservice.administration import Cause, UndoTold
from msgservice.client.promise import PromiseCounts, PromiseOutcome
from msgservice.receiver.received import ReceivedMessage


async def handle(message: ReceivedMessage) -> None:
    await asyncio.sleep(0)
    raise Reject("no")


async def with_asyncio(address: str) -> None:
    client = await aio.connect(address, name="shop", outbox="outbox.db", user="shop", password="x")
    assert_type(client, aio.Client)
    sending = client.send("orders.new", {"id": 17}, headers={"colour": "red"}, id="o-17", ttl=5)
    assert_type(sending, asyncio.Future[aio.Receipt])
    receipt = await sending
    assert_type(await receipt.accepted, aio.Receipt)
    assert_type(receipt.position, int | None)
    assert_type(receipt.statuses, dict[str, Status])
    assert_type(await receipt.settled(), dict[str, Status])
    assert_type(await receipt.promised(), PromiseOutcome)
    receipts = await client.send_many("orders.new", [b"one"], to=["billing"])
    assert_type(receipts, aio.Receipts)
    assert_type(receipts[0], aio.Receipt)
    assert_type([each for each in receipts], list[aio.Receipt])  # noqa: C416 - what it iterates over
    assert_type(await receipts.promised(), PromiseCounts)
    assert_type(await client.explain(receipt), list[Cause])
    assert_type(await client.undo("o-17", count=2), UndoTold)
    assert_type(await client.request("prices.get", 1, timeout=5), Any)
    async with client.respond("prices.>", lambda asked: asked.content) as responder:
        assert_type(responder, aio.Responder)
    await client.cancel(receipt)
    await client.close()
    async with aio.connect(address, name="shop") as other:
        assert_type(other, aio.Client)
    async with aio.Receiver(name="billing", handler=handle, order="none") as receiver:
        receiver.attach(address, subjects=["orders.>"])
        await receiver.when_connected()
    async for delivery in aio.Receiver(name="billing"):
        assert_type(delivery, aio.Delivery)
        with delivery as message:
            assert_type(message, ReceivedMessage)


def blocks(address: str) -> None:
    with blocking.connect(address, name="shop", timeout=5, require=True) as client:
        assert_type(client, blocking.Client)
        receipt = client.within(1).send("orders.new", {"id": 17}, idempotency_key="o-17")
        assert_type(receipt, blocking.Receipt)
        receipt.acknowledged("billing", timeout=1)
        assert_type(receipt.accepted, blocking.Receipt)
        assert_type(receipt.position, int | None)
        assert_type(receipt.receivers, tuple[str, ...])
        assert_type(receipt.settled(), dict[str, Status])
        receipts = client.send_many("orders.new", [b"one", "two"])
        assert_type(receipts, blocking.Receipts)
        assert_type(receipts[-1:], list[blocking.Receipt])
        assert_type(receipts.counts(), dict[str, dict[Status, int]])
        assert_type(client.explain(receipt), list[Cause])
        assert_type(client.undo(key="o-17"), UndoTold)
        assert_type(client.request("prices.get", 1), Any)
        with client.respond("prices.>", lambda asked: asked.content, threads=2) as responder:
            assert_type(responder, blocking.Responder)
    receiver = blocking.Receiver(name="billing", handler=print, threads=2)
    assert_type(receiver.attach(address), blocking.Attachment)
    for delivery in blocking.Receiver(name="billing", order="none"):
        with delivery as message:
            assert_type(message, ReceivedMessage)
    assert_type(blocking.Receiver(name="billing").take(timeout=5), blocking.Delivery | None)
