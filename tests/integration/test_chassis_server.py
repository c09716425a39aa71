"""The chassis on real sockets: construction, factories, listening, data."""

import socket
from collections.abc import Iterator
from typing import Any

import pytest
import pytest_twisted
from twisted.logger import LogEvent

from msgservice.errors import CannotListen
from msgservice.faces import axon as Axon
from msgservice.faces.chassis import (
    ChassisLimits,
    FastRestartServer,
    MoreComplexServer,
    ServerCore,
    SimpleServer,
    TCPServer,
    newCSA,
    shutdownCSA,
)
from tests.integration.chassis_peer import Stage, co_echo, echo, handler, server_of

pytest_plugins = ("tests.integration.chassis_stage",)


# --- Construction ---------------------------------------------------------------------------------


def test_the_default_port_is_1601() -> None:
    assert SimpleServer(protocol=handler(echo)).port == 1601
    assert ServerCore(protocol=handler(echo)).port == 1601


@pytest.mark.parametrize("made", [ServerCore, SimpleServer])
def test_a_server_needs_a_protocol(made: type[ServerCore]) -> None:
    with pytest.raises(TypeError, match="protocol"):
        made(port=0)


def test_a_protocol_that_cannot_be_called_is_named() -> None:
    with pytest.raises(TypeError, match="7"):
        SimpleServer(protocol=7)


def test_a_misspelt_keyword_is_named() -> None:
    with pytest.raises(TypeError, match="prot"):
        SimpleServer(protocol=handler(echo), prot=1)


def test_a_subclass_may_hold_the_keywords_and_add_its_own() -> None:
    class Mine(SimpleServer):
        protocol = handler(echo)
        port = 7
        motto = "none"

    made: Any = Mine(motto="some")
    assert (Mine().port, Mine(port=8).port, made.motto) == (7, 8, "some")


def test_the_aliases_are_the_same_server() -> None:
    assert MoreComplexServer is ServerCore
    assert issubclass(FastRestartServer, ServerCore)
    assert FastRestartServer.socketOptions == (socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)


def test_the_boxes_are_the_documentations() -> None:
    server = ServerCore(protocol=handler(echo))
    assert {"control", "_socketactivity"} <= set(server.inboxes)
    assert "_serversignal" in server.outboxes
    assert isinstance(server, Axon.AdaptiveCommsComponent.AdaptiveCommsComponent)


@pytest.mark.parametrize(
    "wrong", [{"connections_max": 0}, {"inbox_bytes_max": 0}, {"write_deadline": -1}]
)
def test_limits_that_make_no_sense_are_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ChassisLimits(**wrong)


# --- Factories ------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_simple_server_calls_its_factory_without_arguments(stage: Stage) -> None:
    called: list[tuple[Any, Any]] = []

    def factory(*arguments: Any, **keywords: Any) -> Any:
        called.append((arguments, keywords))
        return handler(echo)()

    server = await stage.start(server_of(factory))
    peer = await stage.connect(server)
    peer.transport.write(b"x")
    await peer.gets(b"x")
    assert called == [((), {})]


@pytest_twisted.ensureDeferred
async def test_server_core_calls_its_factory_with_the_four_addresses(stage: Stage) -> None:
    called: list[tuple[Any, Any]] = []

    def factory(*arguments: Any, **keywords: Any) -> Any:
        called.append((arguments, keywords))
        return handler(echo)()

    server = await stage.start(server_of(factory, ServerCore))
    peer = await stage.connect(server)
    peer.transport.write(b"x")
    await peer.gets(b"x")
    expected = {
        "peer": "127.0.0.1",
        "peerport": peer.transport.getHost().port,
        "localip": "127.0.0.1",
        "localport": peer.transport.getPeer().port,
    }
    assert called == [((), expected)]


@pytest_twisted.ensureDeferred
async def test_a_component_class_as_factory_gets_the_addresses_as_attributes(stage: Stage) -> None:
    made = handler(echo)
    server = await stage.start(server_of(made, ServerCore))
    peer = await stage.connect(server)
    peer.transport.write(b"x")
    await peer.gets(b"x")
    one: Any = made.made[0]
    assert (one.peer, one.peerport) == ("127.0.0.1", peer.transport.getHost().port)


@pytest_twisted.ensureDeferred
async def test_the_factory_returns_a_handler_that_the_server_activates(stage: Stage) -> None:
    states: list[bool] = []

    class Watched(SimpleServer):
        def mkProtocolHandler(self, **sock_info: Any) -> Any:
            made = super().mkProtocolHandler(**sock_info)
            states.append(made._process.started)
            return made

    server = await stage.start(server_of(handler(echo), Watched))
    peer = await stage.connect(server)
    peer.transport.write(b"x")
    await peer.gets(b"x")
    assert states == [False]


@pytest_twisted.ensureDeferred
async def test_the_methods_that_can_be_overridden_are_used(stage: Stage) -> None:
    called: list[str] = []

    class Mine(ServerCore):
        def initialiseServerSocket(self) -> None:
            called.append("initialiseServerSocket")
            super().initialiseServerSocket()

        def handleNewConnection(self, newCSAMessage: newCSA) -> None:
            called.append("handleNewConnection")
            assert newCSAMessage.object.socket.getpeername()[0] == "127.0.0.1"
            super().handleNewConnection(newCSAMessage)

        def handleClosedCSA(self, shutdownCSAMessage: shutdownCSA) -> None:
            called.append("handleClosedCSA")
            super().handleClosedCSA(shutdownCSAMessage)

        def mkProtocolHandler(self, **sock_info: Any) -> Any:
            called.append("mkProtocolHandler")
            return super().mkProtocolHandler(**sock_info)

        def main(self) -> Any:
            called.append("main")
            yield from super().main()

        def stop(self) -> Any:
            called.append("stop")
            return super().stop()

    server = await stage.start(server_of(handler(echo), Mine))
    peer = await stage.connect(server)
    peer.transport.write(b"x")
    await peer.gets(b"x")
    peer.transport.loseConnection()
    await peer.lost()
    await stage.until(lambda: not server.connections)
    await server.stop()
    assert called == [
        "main",
        "initialiseServerSocket",
        "handleNewConnection",
        "mkProtocolHandler",
        "handleClosedCSA",
        "stop",
    ]


# --- Listening ------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_it_listens_on_all_interfaces_unless_told_otherwise(stage: Stage) -> None:
    everywhere: Any = await stage.start(server_of(handler(echo), interface=""))
    here: Any = await stage.start(server_of(handler(echo)))
    assert [everywhere.address.host, here.address.host] == ["0.0.0.0", "127.0.0.1"]


@pytest_twisted.ensureDeferred
async def test_a_busy_port_is_an_error(stage: Stage) -> None:
    first: Any = await stage.serve(echo)
    second = server_of(handler(echo), port=first.address.port).activate()
    with pytest.raises(CannotListen, match=str(first.address.port)):
        await second.when_listening()
    assert second._isStopped()


@pytest_twisted.ensureDeferred
async def test_a_busy_port_that_nobody_asks_about_is_logged(
    stage: Stage, logged_failures: list[LogEvent]
) -> None:
    first: Any = await stage.serve(echo)
    second = server_of(handler(echo), port=first.address.port).activate()
    await stage.until(second._isStopped)
    assert [e["log_failure"].type for e in logged_failures] == [CannotListen]
    logged_failures.clear()


@pytest_twisted.ensureDeferred
async def test_socket_options_are_set_before_the_port_is_bound(stage: Stage) -> None:
    option = (socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    first: Any = await stage.serve(echo, socketOptions=option)
    second = await stage.serve(echo, port=first.address.port, socketOptions=option)
    assert second.address == first.address


@pytest_twisted.ensureDeferred
async def test_a_busy_port_is_an_error_with_socket_options_too(stage: Stage) -> None:
    first: Any = await stage.serve(echo)
    option = (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    second = server_of(handler(echo), port=first.address.port, socketOptions=option).activate()
    with pytest.raises(CannotListen, match="in use"):
        await second.when_listening()


@pytest_twisted.ensureDeferred
async def test_tcps_is_the_class_that_listens(stage: Stage) -> None:
    made: list[tuple[Any, Any]] = []

    class Mine(TCPServer):
        def __init__(self, reactor: Any, port: int, **keywords: Any) -> None:
            made.append((port, keywords))
            super().__init__(reactor, port, **keywords)

    server = await stage.serve(echo, TCPS=Mine)
    peer = await stage.connect(server)
    peer.transport.write(b"x")
    await peer.gets(b"x")
    assert made == [(0, {"interface": "127.0.0.1", "socketOptions": None})]


@pytest_twisted.ensureDeferred
async def test_connections_beyond_the_limit_are_closed_and_the_others_served(stage: Stage) -> None:
    server = await stage.serve(echo, limits=ChassisLimits(connections_max=2))
    peers = [await stage.connect(server) for _ in range(2)]
    for peer in peers:
        peer.transport.write(b"x")
        await peer.gets(b"x")
    third = await stage.connect(server)
    assert await third.end() == b""
    peers[0].transport.loseConnection()
    await stage.until(lambda: len(server.connections) == 1)
    fourth = await stage.connect(server)
    fourth.transport.write(b"y")
    await fourth.gets(b"y")


# --- Data -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("main", [echo, co_echo])
@pytest_twisted.ensureDeferred
async def test_bytes_come_back_in_order(main: Any, stage: Stage) -> None:
    peer = await stage.connect(await stage.serve(main))
    sent = b"".join(b"%d," % n for n in range(200_000))
    for start in range(0, len(sent), 1 << 16):
        peer.transport.write(sent[start : start + (1 << 16)])
    await peer.gets(sent)


@pytest_twisted.ensureDeferred
async def test_every_connection_has_its_own_handler_and_its_own_data(stage: Stage) -> None:
    made = handler(echo)
    server = await stage.start(server_of(made))
    peers = [await stage.connect(server) for _ in range(50)]
    for number, peer in enumerate(peers):
        peer.transport.write(b"<%d>" % number * 1000)
    for number, peer in enumerate(peers):
        await peer.gets(b"<%d>" % number * 1000)
    expected = sorted(b"<%d>" % number * 1000 for number in range(50))
    assert sorted(one.data() for one in made.made) == expected


@pytest_twisted.ensureDeferred
async def test_str_is_refused_where_it_is_sent_and_ends_that_connection_only(
    stage: Stage, logged_failures: list[LogEvent]
) -> None:
    def main(self: Any) -> Iterator[Any]:
        while not self.dataReady("inbox"):
            yield 1
        if self.recv("inbox") == b"text":
            self.send(b"before", "outbox")
            self.send("text", "outbox")
        self.send(b"fine", "outbox")

    server = await stage.serve(main)
    bad, good = await stage.connect(server), await stage.connect(server)
    bad.transport.write(b"text")
    assert await bad.end() == b"before"
    good.transport.write(b"bytes")
    assert await good.end() == b"fine"
    assert [e["log_failure"].type for e in logged_failures] == [TypeError]
    logged_failures.clear()


@pytest.mark.parametrize("kind", [bytearray, memoryview])
@pytest_twisted.ensureDeferred
async def test_other_kinds_of_bytes_are_bytes_too(kind: Any, stage: Stage) -> None:
    def main(self: Any) -> Iterator[Any]:
        self.send(kind(b"some bytes"), "outbox")
        yield 1

    peer = await stage.connect(await stage.serve(main))
    assert await peer.end() == b"some bytes"


@pytest_twisted.ensureDeferred
async def test_a_peer_that_does_not_read_is_not_read_from_either(stage: Stage) -> None:
    made = handler(echo)
    limits = ChassisLimits(inbox_bytes_max=65536, outbox_bytes_max=65536)
    server = await stage.start(server_of(made, limits=limits))
    peer = await stage.connect(server)
    peer.transport.pauseProducing()
    sent = bytes(range(256)) * (32 * 1024 * 1024 // 256)
    peer.transport.write(sent)
    await stage.until(lambda: bool(made.made))
    one = made.made[0]
    taken = -1
    while taken != len(one.data()):  # until nothing moves any more
        taken = len(one.data())
        await stage.turn(0.2)
    assert taken < len(sent)
    held = one.inboxes["inbox"].bytes_held, one.outboxes["outbox"].final().bytes_held
    assert max(held) <= 65536 + 65536  # the limit, and one read or one step
    peer.transport.resumeProducing()
    await peer.gets(sent)
