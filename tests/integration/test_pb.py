"""Frames over Perspective Broker: a node whose hops are PB, on real sockets, as over TCP."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor as installed_reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from msgservice import Receiver, connect
from msgservice.client.client import Client
from msgservice.credentials import Credentials
from msgservice.errors import BadAddress, InsecureListener
from msgservice.identity.passwords import PasswordRecord
from msgservice.identity.rules import Rules
from msgservice.identity.users import User, Users
from msgservice.limits import Limits
from msgservice.node.node import Node
from msgservice.receiver.received import ReceivedMessage
from msgservice.records import ReceiverRow
from msgservice.transport.addresses import check_listener
from msgservice.transport.pb.channel import CALL_BYTES
from msgservice.transport.registry import Transports
from tests.kit.certificates import Authority
from tests.kit.ports import free_port

reactor: Any = installed_reactor
pytestmark = pytest.mark.timeout(60)
QUICK = Limits(link_delay_min=0.01, link_delay_max=0.05, close_timeout=1.0, stop_timeout=4.0)


class House:
    """A node, and who came to it; `end` stops all of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.node: Node | None = None
        self.clients: list[Client] = []
        self.receivers: list[Receiver] = []

    async def start(self, listen: str = "pb:0", **options: Any) -> str:
        """Start a node, and return the address to dial."""
        self.node = Node(reactor, self.folder, listen=[listen], limits=QUICK, **options)
        self.node.startService()
        await self.node.when_ready()
        scheme, _, port = self.node.listeners[0].split(":")
        return f"{scheme}:{'localhost' if scheme == 'pbs' else '127.0.0.1'}:{port}"

    async def stop(self) -> None:
        if self.node is not None:
            await self.node.stopService()
            self.node = None

    async def connect(self, address: str, name: str = "shop", **options: Any) -> Client:
        client = await connect(reactor, address, name=name, limits=QUICK, **options)
        self.clients.append(client)
        return client

    def receiver(self, handler: Any, name: str = "billing") -> Receiver:
        receiver = Receiver(reactor, name=name, handler=handler, limits=QUICK)
        self.receivers.append(receiver)
        return receiver

    async def end(self) -> None:
        for client in self.clients:
            await client.close()
        for receiver in self.receivers:
            await receiver.stop()
        await self.stop()


@pytest_twisted.async_yield_fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    house = House(tmp_path / "data")
    yield house
    await house.end()


class Taken:
    """A handler that keeps what it gets; `all_there` fires when it has so many."""

    def __init__(self, count: int) -> None:
        self.bodies: list[bytes] = []
        self.count = count
        self.all_there: Deferred[None] = Deferred()

    def __call__(self, message: ReceivedMessage) -> None:
        self.bodies.append(bytes(message.body))
        if len(self.bodies) == self.count:
            self.all_there.callback(None)


@pytest_twisted.ensureDeferred
async def test_messages_go_from_a_client_to_an_attached_receiver_in_order(house: House) -> None:
    address = await house.start()
    taken = Taken(5000)
    house.receiver(taken).attach(address, subjects=["orders.>"])
    client = await house.connect(address)
    bodies = [b"%d" % n for n in range(5000)]
    await house.receivers[0].when_connected()
    receipt = await client.send_many("orders.new", bodies)
    await taken.all_there
    assert taken.bodies == bodies
    await receipt.acknowledged("billing")


@pytest_twisted.ensureDeferred
async def test_a_node_dials_a_receiver_that_listens(house: House) -> None:
    taken = Taken(1)
    port = free_port()
    house.receiver(taken).listen(f"pb:{port}")
    row = ReceiverRow(number=0, name="billing", address=f"pb:127.0.0.1:{port}", patterns=("a.>",))
    client = await house.connect(await house.start(receivers=[row]))
    receipt = await client.send("a.b", b"by pb")
    await receipt.acknowledged("billing")
    assert [b"by pb"] == taken.bodies


@pytest_twisted.ensureDeferred
async def test_a_message_larger_than_a_call_goes_in_parts(house: House) -> None:
    address = await house.start()
    taken = Taken(2)
    house.receiver(taken).attach(address, subjects=["orders.>"])
    client = await house.connect(address)
    large = bytes(range(256)) * 3000
    assert len(large) > CALL_BYTES
    await house.receivers[0].when_connected()
    await client.send("orders.new", large)
    await client.send("orders.new", b"small")
    await taken.all_there
    assert [large, b"small"] == taken.bodies


@pytest_twisted.ensureDeferred
async def test_what_was_not_acknowledged_is_sent_again_once_when_the_node_is_back(
    house: House,
) -> None:
    port = free_port()
    address = await house.start(f"pb:{port}")
    taken = Taken(201)
    house.receiver(taken).attach(address, subjects=["orders.>"])
    client = await house.connect(address)
    await house.receivers[0].when_connected()
    await client.send("orders.new", b"first")
    waiting = [client.send("orders.new", b"%d" % n) for n in range(100)]
    await house.stop()
    waiting += [client.send("orders.new", b"%d" % n) for n in range(100, 200)]
    await house.start(f"pb:{port}")
    for one in waiting:
        await one
    await taken.all_there
    assert [b"first", *(b"%d" % n for n in range(200))] == taken.bodies


@pytest_twisted.ensureDeferred
async def test_a_login_goes_over_pb_and_a_wrong_one_is_refused(house: House) -> None:
    user = User(
        name="shop", password=PasswordRecord.of("abc", iterations=4096), rules=Rules(send=(">",))
    )
    address = await house.start(users=Users([user], secret=bytes(32)))
    client = await house.connect(address, user="shop", password="abc")
    receipt = await client.send("orders.new", b"x")
    assert receipt.position
    other = connect(reactor, address, name="shop.two", user="shop", password="abd", limits=QUICK)
    other.addErrback(lambda failure: None)
    await deferLater(reactor, 0.05)
    assert not other.called
    other.cancel()


@pytest_twisted.ensureDeferred
async def test_with_tls_the_connection_shows_what_tls_says(house: House, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    listen = authority.listener().replace("tls:", "pbs:")
    address = await house.start(listen)
    client = await house.connect(f"{address}:trustRoots={authority.ca_file}")
    assert (await client.send("orders.new", b"x")).position
    assert house.node is not None
    (peer,) = house.node.parts.connections.peers
    assert peer.connection is not None
    assert peer.connection.channel is not None
    shown: Credentials = peer.connection.channel.credentials
    assert ("tls", True) == (shown.how, shown.binding is not None)


def test_a_listener_beyond_loopback_needs_tls_and_users() -> None:
    pb = Transports().find("pb:1")
    with pytest.raises(InsecureListener, match="pbs:"):
        check_listener(pb, "pb:7411:interface=", insecure=False, asks=True)
    check_listener(pb, "pb:7411", insecure=False)
    with pytest.raises(BadAddress, match="expected pb:HOST:PORT"):
        pb.check_dial("pb:7411")
    with pytest.raises(BadAddress, match="unknown option"):
        pb.check_dial("pb:host:7411:trustRoots=x")
