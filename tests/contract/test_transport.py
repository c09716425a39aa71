"""What every `ITransport` keeps, and that one which a plugin brings is used like ours.

One process alone has no transport: its channels and its connector (`transport/local.py`) are in
`test_channel` and `test_connector`.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor as twisted_reactor
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.interfaces import IListeningPort
from twisted.internet.task import deferLater
from twisted.plugin import IPlugin
from zope.interface import implementer
from zope.interface.verify import verifyObject

from msgservice import connect
from msgservice.config import addresses
from msgservice.config.config import Flags, load_config
from msgservice.errors import BadAddress, CannotListen
from msgservice.interfaces import IConnector, ITransport
from msgservice.limits import Limits
from msgservice.log.memory import MemoryLog
from msgservice.node.node import Node
from msgservice.receiver.receiver import Receiver
from msgservice.records import ReceiverRow
from msgservice.testing.network import CALM, FaultyWorld
from msgservice.testing.transport import FaultyTransport
from msgservice.transport import registry
from msgservice.transport.registry import Transports
from tests.kit.certificates import Authority
from tests.kit.channels import Recorder
from tests.kit.ports import free_port

reactor: Any = twisted_reactor
LIMITS = Limits(link_delay_min=0.01, link_delay_max=0.05)


class Net:
    """One transport, an address that it listens at, and how that is dialled."""

    def __init__(
        self, transport: ITransport, listened: str, dialled: str, world: FaultyWorld | None = None
    ) -> None:
        self.transport = transport
        self.listened = listened
        self.dialled = dialled
        self.accepted: list[Recorder] = []
        self._world = world
        self._reactor = reactor if world is None else world.clock
        self._ports: list[IListeningPort] = []
        self._connectors: list[IConnector] = []

    def _accept(self) -> Recorder:
        user = Recorder()
        user.on_opened = lambda channel: channel.established()
        user.on_frames = user.send_back
        self.accepted.append(user)
        return user

    def listen(self, address: str | None = None) -> Deferred[IListeningPort]:
        listening: Deferred[IListeningPort] = self.transport.listen(
            self._reactor, address or self.listened, self._accept, LIMITS
        )
        listening.addCallback(self._note)
        return listening

    def _note(self, port: IListeningPort) -> IListeningPort:
        self._ports.append(port)
        return port

    async def stop_listening(self) -> None:
        while self._ports:
            stopped = self._ports.pop().stopListening()
            if stopped is not None:
                await stopped

    def connector(self, address: str, user: Recorder) -> IConnector:
        made: IConnector = self.transport.connector(self._reactor, address, lambda: user, LIMITS)
        self._connectors.append(made)
        return made

    def dial(self, user: Recorder) -> IConnector:
        connector = self.connector(self.dialled, user)
        connector.startService()
        return connector

    async def until(self, condition: Callable[[], bool]) -> None:
        """Let things happen until this holds; the timeout of the test ends it otherwise."""
        while not condition():
            if self._world is None:
                await deferLater(reactor, 0.005)
            else:
                self._world.run(0.1)

    async def close(self) -> None:
        ends: list[None] = []
        for connector in self._connectors:
            connector.stopService().addCallback(ends.append)
        await self.until(lambda: len(ends) == len(self._connectors))
        await self.stop_listening()


def over_tcp(folder: Path) -> Net:
    port = free_port()
    return Net(Transports().tcp, f"tcp:{port}", f"tcp:127.0.0.1:{port}")


def over_tls(folder: Path) -> Net:
    port = free_port()
    authority = Authority(folder)
    listened = authority.listener().replace("tls:0:", f"tls:{port}:")
    return Net(Transports().tcp, listened, f"tls:localhost:{port}:trustRoots={authority.ca_file}")


def over_a_unix_socket(folder: Path) -> Net:
    return Net(Transports().tcp, f"unix:{folder}/n.sock", f"unix:{folder}/n.sock")


def over_pb(folder: Path) -> Net:
    port = free_port()
    return Net(Transports().find("pb:1"), f"pb:{port}", f"pb:127.0.0.1:{port}")


def over_pb_with_tls(folder: Path) -> Net:
    port = free_port()
    authority = Authority(folder)
    listened = authority.listener().replace("tls:0:", f"pbs:{port}:")
    dialled = f"pbs:localhost:{port}:trustRoots={authority.ca_file}"
    return Net(Transports().find("pbs:1"), listened, dialled)


def over_udp(folder: Path) -> Net:
    port = free_port(socket.SOCK_DGRAM)
    return Net(Transports().find("udp:1"), f"udp:{port}", f"udp:127.0.0.1:{port}")


def over_the_faulty_world(folder: Path) -> Net:
    world = FaultyWorld(1, faults=CALM, limits=LIMITS)
    return Net(FaultyTransport(world), "faulty:node", "faulty:node", world)


@pytest_twisted.async_yield_fixture(
    params=[
        over_tcp,
        over_tls,
        over_a_unix_socket,
        over_udp,
        over_pb,
        over_pb_with_tls,
        over_the_faulty_world,
    ]
)
async def net(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Net]:
    net: Net = request.param(tmp_path)
    yield net
    await net.close()


def test_it_is_a_transport_of_the_schemes_that_its_addresses_begin_with(net: Net) -> None:
    assert verifyObject(ITransport, net.transport)
    assert {net.listened.partition(":")[0], net.dialled.partition(":")[0]} <= {
        *net.transport.schemes
    }


@pytest_twisted.ensureDeferred
async def test_each_connection_has_a_user_of_its_own_at_both_ends(net: Net) -> None:
    assert verifyObject(IListeningPort, await net.listen())
    one, two = Recorder(), Recorder()
    assert verifyObject(IConnector, net.dial(one))
    net.dial(two)
    await net.until(lambda: one.channel is not None and two.channel is not None)
    for user, frame in ((one, b"of one"), (two, b"of two")):
        assert user.channel is not None
        user.channel.established()
        user.send(frame)
    await net.until(lambda: bool(one.frames) and bool(two.frames))
    assert ([b"of one"], [b"of two"]) == (one.frames, two.frames)
    assert sorted(user.frames[0] for user in net.accepted) == [b"of one", b"of two"]


@pytest_twisted.ensureDeferred
async def test_a_connector_dials_until_somebody_listens(net: Net) -> None:
    user = Recorder()
    connector = net.dial(user)
    await net.until(lambda: connector.failures > 0)
    assert connector.last_error
    await net.listen()
    await net.until(lambda: user.channel is not None)


@pytest_twisted.ensureDeferred
async def test_nobody_comes_to_a_port_that_has_stopped(net: Net) -> None:
    await net.listen()
    await net.stop_listening()
    connector = net.dial(Recorder())
    await net.until(lambda: connector.failures > 0)
    assert net.accepted == []


@pytest_twisted.ensureDeferred
async def test_an_address_is_free_until_somebody_listens_there(net: Net) -> None:
    net.transport.check_free(net.listened)
    await net.listen()
    with pytest.raises(CannotListen):
        net.transport.check_free(net.listened)
    with pytest.raises(CannotListen):
        await net.listen()
    await net.stop_listening()
    net.transport.check_free(net.listened)


@pytest_twisted.ensureDeferred
async def test_files_that_have_not_changed_change_nothing_when_they_are_read(net: Net) -> None:
    await net.listen()
    user = Recorder()
    net.dial(user)
    await net.until(lambda: user.channel is not None)
    read = net.transport.reload()
    assert {one.address for one in read} <= {net.listened, net.dialled}
    assert {(False, None)} >= {(one.changed, one.problem) for one in read}
    user.send(b"still there")
    await net.until(lambda: user.frames == [b"still there"])


def test_addresses_that_work_pass_and_leave_nothing(net: Net) -> None:
    net.transport.check_dial(net.dialled)
    assert net.transport.check_listen(net.listened) is None
    net.transport.check_free(net.listened)


@pytest_twisted.ensureDeferred
async def test_one_that_cannot_be_is_refused_when_asked_and_when_used(net: Net) -> None:
    wrong = f"{net.transport.schemes[0]}:"
    with pytest.raises(BadAddress):
        net.transport.check_dial(wrong)
    with pytest.raises(BadAddress):
        net.connector(wrong, Recorder())
    with pytest.raises(BadAddress):
        net.transport.check_listen(wrong)
    with pytest.raises(BadAddress):
        await net.listen(wrong)


# --- one that is not ours


@implementer(IPlugin)
class PigeonTransport(FaultyTransport):
    """One that msgservice has never heard of."""

    schemes = ("pigeon",)


NODE = """
[listen]
pigeon = ["pigeon:node", "pigeon:tower"]

[[receiver]]
name = "billing"
address = "pigeon:billing"
subjects = ["orders.>"]
"""


def test_a_transport_is_one_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    world = FaultyWorld(1, faults=CALM, limits=Limits())
    pigeons = PigeonTransport(world)
    monkeypatch.setattr(
        registry, "getPlugins", lambda kind: [pigeons] if kind is ITransport else []
    )
    addresses._transports.cache_clear()
    (tmp_path / "node.toml").write_text(NODE)
    config = load_config(tmp_path / "node.toml", Flags())
    flagged = load_config(None, Flags(listen=("pigeon:coop",), data=str(tmp_path / "data")))
    addresses._transports.cache_clear()
    assert ["pigeon:coop"] == [one.address for one in flagged.listen]
    (billing,) = config.receivers
    for one in config.listen:
        Transports().find(one.address).check_free(one.address)

    node = Node(
        world.clock,
        MemoryLog(reactor=world.clock, limits=config.limits),
        listen=[one.address for one in config.listen],
        receivers=[
            ReceiverRow(
                number=0, name=billing.name, address=billing.address, patterns=billing.subjects
            )
        ],
    )
    node.startService()
    got: list[bytes] = []
    dialled = Receiver(
        world.clock, name="billing", handler=lambda message: got.append(bytes(message.body))
    )
    dialled.listen("pigeon:billing")
    attached = Receiver(
        world.clock, name="audit", handler=lambda message: got.append(bytes(message.body))
    )
    attached.attach("pigeon:tower", subjects=["orders.>"])
    world.run(1)

    async def send() -> None:
        client = await connect(world.clock, "pigeon:node", name="shop")
        await client.send("orders.new", b"by air")

    ensureDeferred(send())
    world.run(5)
    assert got == [b"by air", b"by air"]
