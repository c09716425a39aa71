"""Receivers over real sockets, with a real node on a real log; and their handlers' threads."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from socket import SOCK_DGRAM, SOCK_STREAM
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor as installed_reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.protocol import Factory, ProcessProtocol, Protocol
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from msgservice import Client, Limits, Node, Receiver, connect
from msgservice.errors import BadAddress, CannotListen, InsecureListener
from msgservice.receiver.received import ReceivedMessage
from tests.kit.ports import free_port

reactor: Any = installed_reactor
pytestmark = pytest.mark.timeout(60)
QUICK = Limits(link_delay_min=0.01, link_delay_max=0.05, stop_timeout=2.0)


class Scene:
    """A node on a folder, and what was started beside it; all of it is stopped with the test."""

    def __init__(self, folder: Path, node_limits: Limits = QUICK, scheme: str = "tcp") -> None:
        self.folder = folder
        self.node_limits = node_limits
        self.scheme = scheme
        # One to come back to: what the kernel gives may be another's meanwhile.
        self.port = free_port(SOCK_DGRAM if scheme == "udp" else SOCK_STREAM)
        self.node: Node = self._make_node()
        self.receivers: list[Receiver] = []
        self.clients: list[Client] = []

    def _make_node(self) -> Node:
        address = f"{self.scheme}:{self.port}:interface=127.0.0.1"
        return Node(reactor, self.folder / "node", listen=[address], limits=self.node_limits)

    async def start(self) -> None:
        self.node.startService()
        await self.node.when_ready()

    async def restart(self) -> None:
        await self.node.stopService()
        self.node = self._make_node()
        await self.start()

    @property
    def address(self) -> str:
        return f"{self.scheme}:127.0.0.1:{self.port}"

    def receiver(self, handler: Callable[..., Any], name: str = "r", **more: Any) -> Receiver:
        made = Receiver(reactor, name=name, handler=handler, limits=QUICK, **more)
        self.receivers.append(made)
        return made

    async def client(self) -> Client:
        client = await connect(reactor, self.address, name="shop", limits=QUICK)
        self.clients.append(client)
        return client

    async def stop(self) -> None:
        await gatherResults([receiver.stop() for receiver in self.receivers])
        await gatherResults([client.close() for client in self.clients])
        await self.node.stopService()


@pytest_twisted.async_yield_fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    scene = Scene(tmp_path)
    await scene.start()
    yield scene
    await scene.stop()


async def until(condition: Callable[[], object]) -> None:
    """Wait for what others do; the test's own time limit is the end of it."""
    while not condition():
        await deferLater(reactor, 0.005)


BODIES = [b"%d" % n for n in range(1000)]


@pytest_twisted.ensureDeferred
async def test_an_attached_receiver_gets_everything_in_order(scene: Scene) -> None:
    seen: list[bytes] = []
    attachment = scene.receiver(lambda message: seen.append(message.body)).attach(
        scene.address, subjects=["a.>"]
    )
    await until(lambda: attachment.connected)
    client = await scene.client()
    receipt = await client.send_many("a.b", BODIES)
    await receipt.acknowledged()
    assert seen == BODIES


@pytest_twisted.ensureDeferred
async def test_a_listening_receiver_is_dialled_by_the_node(scene: Scene) -> None:
    seen: list[bytes] = []
    receiver = scene.receiver(lambda message: seen.append(message.body))
    port = await receiver.listen("tcp:0")
    host = port.getHost()
    assert host.host == "127.0.0.1"
    await scene.node.add_receiver("r", ["a.>"], address=f"tcp:127.0.0.1:{host.port}")
    await until(lambda: port.connected)
    client = await scene.client()
    receipt = await client.send_many("a.b", BODIES)
    await receipt.acknowledged()
    assert (seen, port.node) == (BODIES, scene.node.node_name)


@pytest_twisted.ensureDeferred
async def test_a_receiver_that_has_stopped_listening_listens_again(scene: Scene) -> None:
    listening = await scene.receiver(lambda message: None).listen("tcp:0")
    await listening.stopListening()
    await listening.stopListening()
    listening.startListening()
    host: Any = listening.getHost()
    endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", host.port)
    protocol: Any = await endpoint.connect(Factory.forProtocol(Protocol))
    protocol.transport.loseConnection()


@pytest_twisted.ensureDeferred
async def test_a_node_that_restarts_finds_its_receivers_and_repeats_nothing(scene: Scene) -> None:
    seen: list[bytes] = []
    holding: list[Deferred[None]] = []

    def handle(message: ReceivedMessage) -> Deferred[None]:
        seen.append(message.body)
        holding.append(Deferred())
        return holding[-1]

    attachment = scene.receiver(handle).attach(scene.address, subjects=["a.>"])
    await until(lambda: attachment.connected)
    client = await scene.client()
    receipt = await client.send_many("a.b", [b"1", b"2"])
    await until(lambda: holding)
    stopping = scene.node.stopService()
    holding.pop().callback(None)
    await stopping
    await until(lambda: not attachment.connected)
    await scene.restart()
    await until(lambda: holding)
    holding.pop().callback(None)
    await receipt.acknowledged()
    assert seen == [b"1", b"2"]


@pytest_twisted.ensureDeferred
async def test_27_the_newer_of_two_with_one_name_has_it(scene: Scene) -> None:
    seen: list[tuple[str, bytes]] = []
    older = scene.receiver(lambda m: seen.append(("older", m.body))).attach(
        scene.address, subjects=["a"]
    )
    await until(lambda: older.connected)
    newer = scene.receiver(lambda m: seen.append(("newer", m.body))).attach(
        scene.address, subjects=["a"]
    )
    await until(lambda: older.is_replaced and not older.connected)
    client = await scene.client()
    await (await client.send("a", b"1")).acknowledged()
    assert seen == [("newer", b"1")]
    assert newer.connected
    assert not older.connected


@pytest_twisted.ensureDeferred
async def test_blocking_handlers_leave_the_reactor_alone(scene: Scene) -> None:
    threads: set[int] = set()
    seen: list[bytes] = []

    def handle(message: ReceivedMessage) -> None:
        threads.add(threading.get_ident())
        seen.append(message.body)

    receiver = scene.receiver(handle, threads=3)
    attachment = receiver.attach(scene.address, subjects=["a"])
    await until(lambda: attachment.connected)
    client = await scene.client()
    await (await client.send_many("a", BODIES)).acknowledged()
    assert seen == BODIES
    assert threading.get_ident() not in threads


def _insert(message: ReceivedMessage, transaction: Any) -> None:
    transaction.execute("create table if not exists done(n integer primary key, body)")
    transaction.execute("insert into done(body) values (?)", (message.body,))


@pytest_twisted.ensureDeferred
async def test_25_with_a_stored_inbox_two_lives_of_a_receiver_write_everything_once(
    scene: Scene,
) -> None:
    from msgservice.receiver.inbox.file import InboxFile

    path = scene.folder / "inbox.db"
    client = await scene.client()
    first = scene.receiver(_insert, inbox=path)
    attachment = first.attach(scene.address, subjects=["a"])
    await until(lambda: attachment.connected)
    receipts: Sequence[Any] = [
        await client.send_many("a", BODIES[at : at + 100]) for at in range(0, 1000, 100)
    ]
    await receipts[0].acknowledged()
    await first.stop()
    second = scene.receiver(_insert, inbox=path)
    second.attach(scene.address, subjects=["a"])
    for receipt in receipts:
        await receipt.acknowledged()
    await second.stop()
    inbox = InboxFile(path, reactor=reactor)
    await inbox.open()
    rows = await inbox.transaction(lambda tx: tx.execute("select body from done order by n"))
    await inbox.close()
    assert [body for (body,) in rows] == BODIES


@pytest_twisted.ensureDeferred
async def test_a_receiver_of_the_nodes_own_process_needs_no_socket(scene: Scene) -> None:
    seen: list[bytes] = []
    attachment = scene.node.attach(scene.receiver(lambda m: seen.append(m.body)), ["a"])
    await until(lambda: attachment.connected)
    client = await scene.client()
    await (await client.send("a", b"1")).acknowledged()
    assert seen == [b"1"]


@pytest_twisted.ensureDeferred
async def test_a_listener_beyond_loopback_is_refused_unless_insecure(scene: Scene) -> None:
    receiver = scene.receiver(print)
    with pytest.raises(InsecureListener):
        await receiver.listen("tcp:0:interface=0.0.0.0")
    with pytest.raises(BadAddress):
        await receiver.listen("pigeon:0")
    with pytest.raises(CannotListen):
        await receiver.listen(f"tcp:{scene.port}:interface=127.0.0.1")
    assert receiver.ways == []


@pytest_twisted.ensureDeferred
async def test_a_node_that_is_not_there_is_dialled_until_it_is(scene: Scene) -> None:
    await scene.node.stopService()
    attachment = scene.receiver(print).attach(scene.address, subjects=["a"])
    await until(lambda: attachment.error)
    assert "refused" in attachment.error
    await scene.restart()
    await until(lambda: attachment.connected)
    assert attachment.error == ""


RECEIVER_PROGRAM = """
import sys
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from msgservice import Limits, Receiver

def handle(message):
    print("handling", flush=True)
    return Deferred(lambda _: None)

receiver = Receiver(reactor, name="r", handler=handle, limits=Limits(stop_timeout=0.2))
receiver.attach(sys.argv[1], subjects=["orders.>"])
reactor.run()
"""


class Program(ProcessProtocol):
    """A process; `said` fires with its first output, `over` when it has ended."""

    def __init__(self) -> None:
        self.said: Deferred[bytes] = Deferred()
        self.over: Deferred[None] = Deferred()

    def outReceived(self, data: bytes) -> None:
        if not self.said.called:
            self.said.callback(data)

    def processEnded(self, reason: Failure) -> None:
        self.over.callback(None)


@pytest_twisted.ensureDeferred
async def test_14_a_program_that_is_told_to_end_says_goodbye_and_that_is_no_attempt(
    scene: Scene,
) -> None:
    client = await scene.client()
    outlets = scene.node.parts.dispatch
    sent = False
    for _ in range(2):
        program = Program()
        command = [sys.executable, "-c", RECEIVER_PROGRAM, scene.address]
        process = reactor.spawnProcess(program, sys.executable, command, env=os.environ)
        await until(lambda: [outlet for outlet in outlets if outlet.connection is not None])
        if not sent:
            await client.send("orders.a", b"1")
            sent = True
        await program.said
        process.signalProcess("TERM")
        await program.over
        await until(lambda: [outlet for outlet in outlets if outlet.connection is None])
    (outlet,) = outlets
    assert [run.attempts for run in outlet.backlog.waiting_runs] == [0]
    assert outlet.last_error == ""


class Worker:
    """One of several receivers that share a name, each over sockets of its own."""

    def __init__(self, scene: Scene, log: list[bytes], dies: Callable[[bytes], bool]) -> None:
        self.held: list[bytes] = []
        self.is_dead = False
        self._log, self._dies = log, dies
        self.receiver = scene.receiver(
            self.handle, name="pool", order="none", shared=True, concurrency=4
        )
        self.attachment = self.receiver.attach(scene.address, subjects=["a.>"])

    def handle(self, message: ReceivedMessage) -> Deferred[None] | None:
        if self.is_dead or self._dies(message.body):
            self.held.append(message.body)
            self.is_dead = True
            return Deferred()  # its process is about to be gone
        self._log.append(message.body)
        return None

    def die(self) -> None:
        self.attachment.stop()
        for connection in self.attachment.connections:
            connection.connection.abort()


@pytest.mark.parametrize("scheme", ["tcp", "udp", "pb"])
@pytest_twisted.ensureDeferred
async def test_52_a_worker_that_dies_leaves_its_share_to_the_others(
    tmp_path: Path, scheme: str
) -> None:
    scene = Scene(tmp_path, scheme=scheme)
    await scene.start()
    log: list[bytes] = []
    workers = [
        Worker(scene, log, lambda body, n=n: n == 0 and body > b"3")  # type: ignore[misc]
        for n in range(3)
    ]
    await until(lambda: all(one.attachment.connected for one in workers))
    client = await scene.client()
    receipts = [await client.send("a.b", body) for body in BODIES[:300]]
    await until(lambda: workers[0].is_dead)
    workers[0].die()
    for receipt in receipts:
        await receipt.acknowledged()
    assert workers[0].held
    assert sorted(log) == sorted(BODIES[:300])  # each once, and what the dead one had as well
    states, _ = await scene.node.parts.operations.receivers("", 100)
    (row,) = [one for one in states if one.name == "pool"]
    assert (getattr(row, "shared", None), row.workers, row.unaccounted) == (True, 2, 0)
    await scene.stop()
