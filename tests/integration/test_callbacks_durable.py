"""Actions for peers that are away: a real node on disk, the gateway, and peers on real sockets."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from msgservice.errors import UnknownReceiver
from msgservice.faces.callbacks.connection import Connection
from msgservice.faces.callbacks.durable import ActionGateway, DurableActions
from msgservice.faces.callbacks.registry import CallbackRegistry
from msgservice.faces.callbacks.service import CallbackClient, CallbackServer
from msgservice.message import Status
from msgservice.node.node import Node
from msgservice.receiver.receiver import Receiver

ORIGIN = "inside the process"


class World:
    """A node, a server of callbacks with the gateway, and peers."""

    def __init__(self, reactor: Any, folder: Path) -> None:
        self.reactor, self.folder = reactor, folder
        self.peers: list[CallbackClient] = []
        self.failures: list[Exception] = []

    async def start(self, port: int = 0) -> None:
        self.node = Node(self.reactor, self.folder / "node", failed=self.failures.append)
        self.node.startService()
        await self.node.when_ready()
        self.client = self.node.client("commander")
        self.actions = DurableActions(self.client)
        self.gateway = ActionGateway(self.reactor, self.attach)
        self.server = CallbackServer(
            self.reactor,
            f"tcp:{port}:interface=127.0.0.1",
            registry=CallbackRegistry(),
            on_connected=self.gateway.connected,
            on_disconnected=self.gateway.disconnected,
        )
        address: Any = await self.server.listen()
        self.port = address.port

    def attach(self, receiver: Receiver) -> None:
        receiver.attach_through(
            lambda make_user: self.node.connector(make_user, receiver.name), address=ORIGIN
        )

    async def stop(self) -> None:
        await self.server.stopService()
        await self.gateway.stop()
        await self.client.close()
        await self.node.stopService()
        assert not self.failures

    async def peer(self, name: str, got: list[Any], **options: Any) -> CallbackClient:
        registry = CallbackRegistry()
        registry.request_callback("id")(lambda connection: name)
        registry.message_callback("do")(
            lambda connection, *args, **kwargs: got.append((args, kwargs))
        )
        registry.messages.update(options.pop("messages", {}))
        peer = CallbackClient(
            self.reactor, port=self.port, registry=registry, pause_seconds=0.01, **options
        )
        self.peers.append(peer)
        peer.startService()
        await self.until(lambda: name in self.gateway.peers)
        return peer

    async def until(self, done: Callable[[], object]) -> None:
        deadline = self.reactor.seconds() + 60
        while not done():
            assert self.reactor.seconds() < deadline, "did not happen"
            await deferLater(self.reactor, 0.005)

    async def close(self) -> None:
        for peer in self.peers:
            await peer.stopService()
        await self.stop()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    from twisted.internet import reactor

    made = World(reactor, tmp_path)
    pytest_twisted.blockon(Deferred.fromCoroutine(made.start()))
    yield made
    pytest_twisted.blockon(Deferred.fromCoroutine(made.close()))


@pytest_twisted.ensureDeferred
async def test_action_reaches_a_peer_that_is_there(world: World) -> None:
    got: list[Any] = []
    await world.peer("drone-7", got)
    receipt = await world.actions.send_message("drone-7", "do", [1, "zwölf"], {"k": None})
    await receipt.acknowledged("drone-7")
    assert got == [((1, "zwölf"), {"k": None})]


@pytest_twisted.ensureDeferred
async def test_actions_wait_for_a_peer_that_is_away_and_keep_their_order(world: World) -> None:
    got: list[Any] = []
    peer = await world.peer("drone-7", got)
    await peer.stopService()
    await world.until(lambda: not world.gateway.peers)
    receipts = [await world.actions.send_message("drone-7", "do", [n]) for n in range(20)]
    assert receipts[0].statuses["drone-7"] is Status.QUEUED
    assert not got
    await world.peer("drone-7", got)
    for receipt in receipts:
        await receipt.acknowledged("drone-7")
    assert [args[0] for args, _ in got] == list(range(20))


@pytest_twisted.ensureDeferred
async def test_actions_wait_through_a_restart_of_the_node(world: World) -> None:
    got: list[Any] = []
    peer = await world.peer("drone-7", got)
    await peer.stopService()
    await world.until(lambda: not world.gateway.peers)
    await world.actions.send_message("drone-7", "do", [1])
    await world.stop()
    await world.start()
    await world.peer("drone-7", got)
    await world.until(lambda: got)
    assert got == [((1,), {})]


@pytest_twisted.ensureDeferred
async def test_connection_that_breaks_off_has_the_action_sent_again(world: World) -> None:
    seen: list[int] = []

    def break_off(connection: Connection) -> None:
        seen.append(1)
        if len(seen) < 3:
            connection.abort()

    await world.peer("drone-7", [], messages={"break off": break_off})
    receipt = await world.actions.send_message("drone-7", "break off")
    await receipt.acknowledged("drone-7")
    assert len(seen) == 3


@pytest_twisted.ensureDeferred
async def test_peers_get_their_own_actions_only(world: World) -> None:
    got: dict[str, list[Any]] = {"a": [], "b": []}
    for name, list_ in got.items():
        await world.peer(name, list_)
    receipts = [await world.actions.send_message(name, "do", [name]) for name in got]
    for receipt, name in zip(receipts, got, strict=True):
        await receipt.acknowledged(name)
    assert got == {"a": [(("a",), {})], "b": [(("b",), {})]}


@pytest_twisted.ensureDeferred
async def test_peer_that_was_never_there_is_unknown(world: World) -> None:
    with pytest.raises(UnknownReceiver, match="drone-8"):
        await world.actions.send_message("drone-8", "do")
