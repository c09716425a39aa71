"""A program as a user would write it. `make lint` checks its types; nothing runs it."""

from typing import Any, assert_type

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred

from msgservice import Client, Limits, Node, Receipt, Receiver, Reject, Retry, Status, connect
from msgservice.client.receipt import Receipts
from msgservice.errors import NoReceiver, NotDelivered
from msgservice.identity.rules import Rules
from msgservice.identity.users import User, Users
from msgservice.receiver.received import ReceivedMessage


async def produce(reactor: Any) -> dict[str, Status]:
    client = await connect(reactor, "tcp:127.0.0.1:7410", name="shop")
    assert_type(client, Client)
    receipt = await client.send("orders.new", {"id": 17}, headers={"colour": "red"}, id="o-17")
    assert_type(receipt, Receipt)
    assert_type(receipt.position, int | None)
    assert_type(receipt.receivers, tuple[str, ...])
    try:
        await receipt.acknowledged("billing")
        await receipt.acknowledged()
    except NotDelivered as error:
        assert_type(error.receiver, str)
        assert_type(error.state, str)
    except NoReceiver as error:
        assert_type(error.subject, str)
    assert_type(await receipt.settled(), dict[str, Status])
    receipts = await client.send_many("orders.new", [b"one", b"two"], to=["billing"])
    assert_type(receipts, Receipts)
    for one in receipts:
        assert_type(one, Receipt)
    waiting = client.send("orders.new", "text", require=True)
    assert_type(waiting, Deferred[Receipt])
    waiting.cancel()
    answer = await client.request("prices.get", {"sku": "x"}, timeout=5)
    assert_type(answer, Any)
    await client.close()
    return receipt.statuses


def handle(message: ReceivedMessage) -> None:
    assert_type(message.subject, str)
    assert_type(message.body, bytes)
    assert_type(message.headers, dict[str, str])
    assert_type(message.id, str | None)
    assert_type(message.position, int)
    if message.content is None:
        raise Reject("nothing in it")
    raise Retry(5.0)


async def handle_later(message: ReceivedMessage) -> None:
    await Deferred.fromCoroutine(store([message]))


async def store(messages: list[ReceivedMessage]) -> None:
    del messages


async def consume(reactor: Any) -> None:
    receiver = Receiver(reactor, name="billing", handler=handle, threads=4)
    receiver.attach("tcp:127.0.0.1:7410", subjects=["orders.>"])
    await receiver.stop()
    dialled = Receiver(reactor, name="archive", handler=store, batch=True, order="none")
    await dialled.listen("tcp:7420")
    Receiver(reactor, name="later", handler=handle_later, limits=Limits(max_batch=8192))


def embed(reactor: Any, parent: MultiService) -> None:
    node = Node(reactor, "var/embedded", limits=Limits(heartbeat=5))
    assert_type(node, Node)
    node.setServiceParent(parent)
    assert_type(node.client("inside"), Client)
    shop = User(name="shop", uids=(1000,), rules=Rules(send=["orders.>"]))
    users = Users([shop], secret=bytes(32))
    asking = Node(reactor, "data", users=users, without_login={"unix:node.sock": "shop"})
    asking.client("shop", principal="shop")
    asking.attach(Receiver(reactor, name="shop.bills", handler=print), principal="shop")
    assert_type(asking.reload_users(users), bool)


def embed_in_a_program() -> MultiService:
    from twisted.internet import reactor

    parent = MultiService()
    Node(reactor, "data").setServiceParent(parent)
    Receiver(reactor, name="billing", handler=print).setServiceParent(parent)
    return parent
