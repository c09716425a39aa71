"""`ttl` on every way in, with real nodes: TCP, UDP, in process, the command line, an outbox."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread

from msgservice import Client, Limits, Node, Receiver, Status, connect
from msgservice.errors import Expired, NotDelivered
from tests.integration.command import Command
from tests.kit.ports import free_port

LIMITS = Limits(link_delay_min=0.05, stop_timeout=5)
pytestmark = pytest.mark.timeout(120)


class World:
    """A node with a receiver that is away, and one that is there."""

    def __init__(self, reactor: Any, folder: Path) -> None:
        self.reactor, self.folder = reactor, folder
        self.ports = {"tcp": free_port(), "udp": free_port()}
        self.closing: list[Any] = []
        self.came: list[bytes] = []

    async def start(self) -> None:
        tcp, udp = self.ports["tcp"], self.ports["udp"]
        self.node = Node(
            self.reactor,
            self.folder / "node",
            listen=[f"tcp:{tcp}:interface=127.0.0.1", f"udp:{udp}:interface=127.0.0.1"],
            limits=LIMITS,
            failed=lambda error: pytest.fail(str(error)),
        )
        self.node.startService()
        await self.node.when_ready()
        if self.node.parts.directory.get("away") is None:
            await self.node.add_receiver("away", ["s.>"])

    def attach(self) -> None:
        receiver = Receiver(self.reactor, name="here", handler=self._handle, limits=LIMITS)
        receiver.attach(self.address("tcp"), subjects=["s.>"])
        self.closing.append(receiver.stopService)

    def _handle(self, message: Any) -> None:
        self.came.append(message.body)

    def address(self, way: str) -> str:
        return f"{way}:127.0.0.1:{self.ports[way]}"

    async def client(self, way: str, **options: Any) -> Client:
        if way == "process":
            client = self.node.client("shop")
            await client.when_connected()
        else:
            client = await connect(
                self.reactor, self.address(way), name="shop", limits=LIMITS, **options
            )
        self.closing.append(client.close)
        return client

    async def stop(self) -> None:
        for close in reversed(self.closing):
            await close()
        await self.node.stopService()


@pytest_twisted.async_yield_fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    from twisted.internet import reactor

    world = World(reactor, tmp_path)
    await world.start()
    yield world
    await world.stop()


@pytest.mark.parametrize("outbox", [False, True])
@pytest.mark.parametrize("way", ["tcp", "udp", "process"])
@pytest_twisted.ensureDeferred
async def test_one_that_nobody_got_in_time_is_expired_and_told_so(
    world: World, way: str, outbox: bool, tmp_path: Path
) -> None:
    if way == "process" and outbox:
        pytest.skip("a client of a node's own process has no file")

    client = await world.client(way, **({"outbox": tmp_path / "out.db"} if outbox else {}))
    receipt = await client.send("s.a", b"1", ttl=0.2)
    many = await client.send_many("s.a", [b"2", b"3"], ttl=0.2)
    kept = await client.send("s.a", b"4")
    assert {"away": Status.EXPIRED} == await receipt.settled()
    with pytest.raises(NotDelivered) as caught:
        await receipt.acknowledged()
    assert ("away", "expired", "its ttl was over") == (
        caught.value.receiver,
        caught.value.state,
        caught.value.reason,
    )
    await many.settled()
    assert {"away": Status.QUEUED} == kept.statuses
    account = await world.node.parts.receivers.account("away")
    assert (1, {int(Status.EXPIRED): 3}, 0) == (
        account.queued,
        account.settled,
        account.unaccounted,
    )
    assert [] == await world.node.log.audit()


@pytest_twisted.ensureDeferred
async def test_one_that_is_delivered_in_time_is_acknowledged(world: World) -> None:
    world.attach()
    client = await world.client("tcp")
    while True:
        receipt = await client.send("s.a", b"1", ttl=60)
        if "here" in receipt.receivers:
            break
    await receipt.acknowledged("here")
    assert b"1" in world.came


@pytest_twisted.ensureDeferred
async def test_what_expires_in_the_file_while_no_node_is_there_is_settled_there(
    world: World, tmp_path: Path
) -> None:
    await world.node.stopService()
    client = await connect(
        world.reactor,
        world.address("tcp"),
        name="shop",
        limits=LIMITS,
        outbox=tmp_path / "out.db",
    )
    receipt = await client.send("s.a", b"1", ttl=0.2)
    stays = await client.send("s.a", b"2", ttl=3600)
    with pytest.raises(Expired):
        await receipt.accepted
    assert 1 == client.unanswered
    await client.close()  # it is in the file, and its time goes on
    await world.start()
    client = await world.client("tcp", outbox=tmp_path / "out.db")
    while client.unanswered:
        await deferLater(world.reactor, 0.02)
    found = await world.node.log.find("log:65536")
    assert found is not None
    assert stays.sequence == found.sequence
    page = await world.node.log.read([1], 0, 1 << 40, 1 << 20, 10)
    assert [True] == [batch.expires_at is not None for batch in page]


@pytest_twisted.ensureDeferred
async def test_the_command_line_takes_a_time_and_refuses_what_is_none(world: World) -> None:
    command = Command(world.address("tcp"), world.folder)

    def ask() -> None:
        sent = command("send", "s.a", "hello", "--ttl", "200ms", "--wait", "--json")
        assert 1 == sent.code, sent
        first = json.loads(sent.out.splitlines()[0])
        assert {"away": "expired"} == first["receivers"]
        lines = command("send", "s.a", "--ttl", "5m", stdin=b"one\ntwo\n")
        assert 0 == lines.code, lines
        for wrong, part in (("soon", "30s"), ("-1", "30s"), ("367d", "366 days")):
            refused = command("send", "s.a", "hello", f"--ttl={wrong}")
            assert 2 == refused.code, refused
            assert part in refused.err

    await deferToThread(ask)
