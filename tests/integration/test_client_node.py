"""The client with a real node: real sockets, a real log, a producer that is really killed."""

from __future__ import annotations

import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.threads import deferToThread

from msgservice import Client, Limits, Node, Receiver, Status, connect
from msgservice.errors import BadAddress, LogLocked, NoReceiver, NoResponder, UnknownReceiver
from tests.integration.daemon import running
from tests.kit.ports import free_port

CHILD = Path(__file__).with_name("producer_child.py")
LIMITS = Limits(link_delay_min=0.05, stop_timeout=5)


def run(coroutine: Any) -> Any:
    return pytest_twisted.ensureDeferred(coroutine)


class World:
    """A node on a data folder, which may stop and come back on its port; clients and receivers."""

    def __init__(self, reactor: Any, folder: Path) -> None:
        self.reactor = reactor
        self.folder = folder
        self.port = free_port()
        self.closing: list[Any] = []

    async def start(self) -> None:
        self.node = Node(
            self.reactor,
            self.folder / "node",
            listen=[f"tcp:{self.port}:interface=127.0.0.1"],
            limits=LIMITS,
            failed=lambda error: pytest.fail(str(error)),
        )
        self.node.startService()
        await self.node.when_ready()

    @property
    def address(self) -> str:
        return f"tcp:127.0.0.1:{self.port}"

    async def client(self, **options: Any) -> Client:
        client = await connect(self.reactor, self.address, name="shop", limits=LIMITS, **options)
        self.closing.append(client.close)
        return client

    def receiver(self, name: str, handler: Any, *subjects: str) -> Receiver:
        receiver = Receiver(self.reactor, name=name, handler=handler, limits=LIMITS)
        receiver.attach(self.address, subjects=list(subjects))
        self.closing.append(receiver.stopService)
        return receiver

    async def receivers(self, *names: str) -> None:
        """Wait until the node knows these."""
        asker = await self.client()
        while True:
            listed = await asker.request("$node.receivers.list", {})
            if set(names) <= {row["name"] for row in listed["receivers"]}:
                return

    async def stop(self) -> None:
        for close in reversed(self.closing):
            await close()
        await self.node.stopService()


@pytest_twisted.async_yield_fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    from twisted.internet import reactor

    made = World(reactor, tmp_path)
    await made.start()
    yield made
    await made.stop()


@run
async def test_a_message_is_seen_all_the_way(world: World) -> None:
    handled: list[bytes] = []
    world.receiver("billing", lambda message: handled.append(message.body), "orders.>")
    await world.receivers("billing")
    client = await world.client()
    receipt = await client.send("orders.new", {"id": 17})
    await receipt.acknowledged("billing")
    assert {"billing": Status.ACKNOWLEDGED} == receipt.statuses
    assert [b'{"id":17}'] == handled
    receipts = await client.send_many("orders.new", [b"%d" % n for n in range(1000)])
    await receipts.acknowledged()
    assert {"billing": {Status.ACKNOWLEDGED: 1000}} == receipts.counts()
    assert [b"%d" % n for n in range(1000)] == handled[1:]


@run
async def test_the_nodes_refusals_have_their_names(world: World) -> None:
    client = await world.client()
    with pytest.raises(UnknownReceiver) as unknown:
        await client.send("a", b"", to=["nobody"])
    assert unknown.value.name == "nobody"
    with pytest.raises(NoReceiver):
        await client.send("a", b"", require=True)
    receipt = await client.send("a", b"")
    with pytest.raises(NoReceiver):
        await receipt.acknowledged()
    with pytest.raises(NoResponder):
        await client.request("nobody.answers", b"", timeout=5)


@run
async def test_the_node_goes_and_comes_back_and_nothing_is_missing_or_twice(world: World) -> None:
    handled: list[bytes] = []
    world.receiver("billing", lambda message: handled.append(message.body), ">")
    await world.receivers("billing")
    client = await world.client()
    first = [client.send("a", b"%d" % n) for n in range(500)]
    early = await first.pop(0)
    acknowledged = early.acknowledged()
    await world.node.stopService()
    late = [client.send("a", b"%d" % n) for n in range(500, 1000)]
    await world.start()
    for one in [*first, *late]:
        receipt = await one
        await receipt.acknowledged()
    await acknowledged
    assert [b"%d" % n for n in range(1000)] == handled


@run
async def test_an_address_nobody_can_dial_fails_at_once(world: World) -> None:
    with pytest.raises(BadAddress):
        await connect(world.reactor, "pigeon:7410", name="shop")


@run
async def test_connect_can_be_given_up(world: World) -> None:
    waiting = connect(world.reactor, "tcp:127.0.0.1:1", name="shop", limits=LIMITS)
    waiting.cancel()
    with pytest.raises(CancelledError):
        await waiting


@run
async def test_26_an_outbox_on_disk_works_without_a_node_and_delivers_later(
    world: World, tmp_path: Path
) -> None:
    await world.node.stopService()
    path = tmp_path / "outbox.db"
    client = await connect(world.reactor, world.address, name="shop", limits=LIMITS, outbox=path)
    receipt = await client.send("a", b"1")
    assert receipt.position is None
    with pytest.raises(LogLocked):
        await connect(world.reactor, world.address, name="other", outbox=path)
    await client.close()
    again = await connect(world.reactor, world.address, name="shop", limits=LIMITS, outbox=path)
    assert 1 == again.sequence
    second = await again.send("a", b"2")
    await world.start()
    await second.accepted
    assert second.position is not None
    assert 0 == again.unanswered
    await again.close()


@run
async def test_26_a_producer_killed_again_and_again_sends_each_line_once(
    world: World, tmp_path: Path
) -> None:
    count = 20_000
    handled: list[int] = []
    all_handled: Deferred[None] = Deferred()

    def handle(message: Any) -> None:
        handled.append(int(message.body))
        if len(handled) == count:
            all_handled.callback(None)

    world.receiver("billing", handle, "lines")
    await world.receivers("billing")

    def produce(until: str | None) -> None:
        command: list[str | Path] = [
            sys.executable,
            CHILD,
            world.address,
            tmp_path / "outbox.db",
            str(count),
        ]
        with running(*command, cwd=tmp_path) as child:
            child.wait_for(until or "done")
            if until is None:
                assert 0 == child.ended()
            else:
                child.send(signal.SIGKILL)

    for until in ("at 100", "at 3000", "at 7000", "begins", "at 1[0-9]000"):
        await deferToThread(produce, until)
    await deferToThread(produce, None)
    await all_handled
    assert list(range(1, count + 1)) == handled


@run
async def test_a_client_inside_the_node_needs_no_socket(world: World) -> None:
    client = world.node.client("inside")
    receipt = await client.send("a", b"1")
    assert receipt.position is not None
    await client.close()
