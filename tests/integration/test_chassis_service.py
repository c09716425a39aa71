"""The chassis over TLS and Unix sockets, as factory and service, under twistd and in `run()`."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
import trustme
from twisted.application.service import IService, MultiService
from twisted.internet.endpoints import (
    TCP4ClientEndpoint,
    TCP4ServerEndpoint,
    UNIXClientEndpoint,
    wrapClientTLS,
)
from twisted.internet.interfaces import (
    IHalfCloseableProtocol,
    IProtocolFactory,
    IPushProducer,
    IStreamServerEndpoint,
)
from twisted.internet.ssl import Certificate, optionsForClientTLS, trustRootFromCertificates
from zope.interface.verify import verifyClass, verifyObject

from msgservice.errors import CannotListen
from msgservice.faces.axon.Ipc import producerFinished
from msgservice.faces.axon.scheduler import scheduler_for
from msgservice.faces.chassis import ChassisFactory, ServerCore, SimpleServer, TCPServer
from msgservice.faces.chassis.connection import Connection
from msgservice.faces.chassis.service import ChassisService
from tests.integration.chassis_peer import Stage, co_echo, echo, handler, server_of
from tests.kit.ports import free_port

pytest_plugins = ("tests.integration.chassis_stage",)

ROOT = Path(__file__).resolve().parents[2]
BIG = 4 * 1024 * 1024


def test_what_twisted_knows_of_us_is_what_it_asks_for(stage: Stage) -> None:
    server = SimpleServer(protocol=handler(echo))
    verifyObject(IProtocolFactory, ChassisFactory(server, stage.reactor))
    verifyObject(IService, ChassisService(server, stage.reactor))
    verifyObject(IStreamServerEndpoint, TCPServer(stage.reactor, 0))
    verifyClass(IHalfCloseableProtocol, Connection)
    verifyClass(IPushProducer, Connection)


# --- Other endpoints ------------------------------------------------------------------------------


def all_then_close(self: Any) -> Iterator[Any]:
    while not self.dataReady("inbox"):
        yield 1
    self.send(b"a" * BIG, "outbox")
    self.send(producerFinished(), "signal")
    yield 1


# Twisted still hands its own certificate objects to pyOpenSSL.
@pytest.mark.filterwarnings("ignore:Passing pyOpenSSL:DeprecationWarning")
@pytest_twisted.ensureDeferred
async def test_tls_echoes_and_delivers_all_before_a_close(stage: Stage, tmp_path: Path) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    key, chain = tmp_path / "key.pem", tmp_path / "chain.pem"
    issued.private_key_pem.write_to_path(str(key))
    issued.cert_chain_pems[0].write_to_path(str(chain))
    endpoint = f"ssl:0:interface=127.0.0.1:privateKey={key}:certKey={chain}"
    root = Certificate.loadPEM(authority.cert_pem.bytes())
    trusted = optionsForClientTLS("localhost", trustRoot=trustRootFromCertificates([root]))
    for main, expected in ((co_echo, b"x" * BIG), (all_then_close, b"a" * BIG)):
        server = await stage.serve(main, endpoint=endpoint)
        address: Any = server.address
        plain = TCP4ClientEndpoint(stage.reactor, "127.0.0.1", address.port)
        peer = await stage.connect_to(wrapClientTLS(trusted, plain))
        peer.transport.write(b"x" * BIG)
        await peer.gets(expected)
        peer.transport.loseConnection()
        assert await peer.lost()
        await stage.until(lambda server=server: not server.connections)  # type: ignore[misc] # a default binds the loop's value


# Twisted compares the path, as bytes, with text; with -bb that is an error.
@pytest.mark.filterwarnings("ignore::BytesWarning")
@pytest.mark.parametrize("main", [echo, all_then_close])
@pytest_twisted.ensureDeferred
async def test_unix_sockets_work_and_have_no_ports(main: Any, stage: Stage, tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    made = handler(main)
    server = await stage.start(ServerCore(protocol=made, endpoint=f"unix:{path}"))
    peer = await stage.connect_to(UNIXClientEndpoint(stage.reactor, path))
    peer.transport.write(b"x")
    peer.half_close()
    assert await peer.end() == (b"x" if main is echo else b"a" * BIG)
    one: Any = made.made[0]
    assert (one.peer, one.peerport, one.localip, one.localport) == ("", 0, path, 0)
    await stage.until(lambda: not server.connections)


@pytest.mark.filterwarnings("ignore::BytesWarning")
@pytest_twisted.ensureDeferred
async def test_an_endpoint_that_cannot_listen_is_an_error_with_its_name(stage: Stage) -> None:
    server = SimpleServer(protocol=handler(echo), endpoint="unix:/no/such/folder/s").activate()
    with pytest.raises(CannotListen, match="/no/such/folder"):
        await server.when_listening()


# --- Factory and service --------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_a_factory_serves_on_a_port_that_others_opened(stage: Stage) -> None:
    server = SimpleServer(protocol=handler(echo))
    endpoint = TCP4ServerEndpoint(stage.reactor, 0, interface="127.0.0.1")
    port: Any = await endpoint.listen(ChassisFactory(server, stage.reactor))
    address = port.getHost()
    peer = await stage.connect_to(TCP4ClientEndpoint(stage.reactor, "127.0.0.1", address.port))
    peer.transport.write(b"x")
    await peer.gets(b"x")
    await port.stopListening()
    assert await peer.end() == b"x"
    await stage.until(server._isStopped)


@pytest_twisted.ensureDeferred
async def test_a_service_listens_from_its_start_to_its_stop(stage: Stage) -> None:
    server = server_of(handler(echo))
    parent = MultiService()
    ChassisService(server, stage.reactor).setServiceParent(parent)
    parent.privilegedStartService()
    address: Any = server.address
    assert address is not None
    parent.startService()
    peer = await stage.connect_to(TCP4ClientEndpoint(stage.reactor, "127.0.0.1", address.port))
    peer.transport.write(b"x")
    await peer.gets(b"x")
    await parent.stopService()
    assert (server._isStopped(), await peer.end()) == (True, b"x")


@pytest_twisted.ensureDeferred
async def test_a_service_that_cannot_listen_does_not_start(stage: Stage) -> None:
    first: Any = await stage.serve(echo)
    second = server_of(handler(echo), port=first.address.port)
    await stage.turn()  # out of the step of the first server, which has said that it listens
    with pytest.raises(CannotListen):
        ChassisService(second, stage.reactor).startService()


@pytest_twisted.ensureDeferred
async def test_a_service_may_be_stopped_before_its_start(stage: Stage) -> None:
    await ChassisService(server_of(handler(echo)), stage.reactor).stopService()


def test_one_reactor_has_one_scheduler(stage: Stage) -> None:
    assert scheduler_for(stage.reactor) is scheduler_for(stage.reactor)


# --- Processes ------------------------------------------------------------------------------------

RUN = """
import sys
from examples.chassis_echo import Echo
from msgservice.faces import axon as Axon
from msgservice.faces.chassis import SimpleServer

class Once(Axon.Component.component):
    Outboxes = ["outbox", "signal", "serversignal"]
    async def main(self):
        await self.recv("inbox")
        self.send(b"stopping", "outbox")
        self.send(Axon.Ipc.serverShutdown(), "serversignal")

server = SimpleServer(protocol=Once if sys.argv[1] == "once" else Echo, port=int(sys.argv[2]))
server.when_listening().addCallbacks(lambda a: print(a.port, flush=True), lambda f: None)
server.run()
print("run() has returned", flush=True)
"""


def run(*arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_run_returns_when_a_handler_has_stopped_the_server() -> None:
    process = run("-c", RUN, "once", "0")
    assert process.stdout is not None
    port = int(process.stdout.readline())
    with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        client.sendall(b"x")
        assert client.recv(100) == b"stopping"
    out, err = process.communicate(timeout=60)
    assert (out, err, process.returncode) == ("run() has returned\n", "", 0)


def test_run_returns_after_an_interrupt_and_delivers_first() -> None:
    process = run("-c", RUN, "echo", "0")
    assert process.stdout is not None
    port = int(process.stdout.readline())
    with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        client.sendall(b"x")
        assert client.recv(100) == b"x"
        process.send_signal(signal.SIGINT)
        assert client.recv(100) == b""
    out, _ = process.communicate(timeout=60)
    assert (out, process.returncode) == ("run() has returned\n", 0)


def test_run_raises_when_the_port_is_busy() -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        process = run("-c", RUN, "echo", str(busy.getsockname()[1]))
        out, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "CannotListen" in err
    assert out == ""


def test_twistd_serves_the_tac_file(tmp_path: Path) -> None:
    port = free_port()
    tac = tmp_path / "chassis.tac"
    tac.write_text((ROOT / "tac" / "chassis.tac").read_text().replace("tcp:1601", f"tcp:{port}"))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    twistd = subprocess.Popen(
        [str(Path(sys.executable).parent / "twistd"), "-n", "-y", str(tac), "--pidfile="],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                client = socket.create_connection(("127.0.0.1", port), timeout=60)
                if client.getsockname() != client.getpeername():
                    break
                client.close()
            except ConnectionRefusedError:
                assert twistd.poll() is None
                assert time.monotonic() < deadline
        with client:
            client.sendall(b"hello")
            assert client.recv(100) == b"hello"
            twistd.send_signal(signal.SIGTERM)
            assert client.recv(100) == b""
        twistd.communicate(timeout=60)
        assert twistd.returncode == -signal.SIGTERM  # after a clean stop, twistd passes it on
    finally:
        twistd.kill()
        twistd.wait()
