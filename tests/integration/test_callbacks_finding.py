"""A client that finds its server by real datagrams on loopback."""

import socket
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.task import deferLater

from msgservice.faces.callbacks.discovery import ServerBeacon, ServerWatch
from msgservice.faces.callbacks.net import ServerAddress
from msgservice.faces.callbacks.registry import CallbackRegistry
from msgservice.faces.callbacks.service import CallbackClient, CallbackServer
from tests.kit.ports import free_port


@pytest.fixture
def reactor() -> Any:
    from twisted.internet import reactor

    return reactor


@pytest_twisted.ensureDeferred
async def test_client_that_cannot_connect_takes_the_address_it_hears(reactor: Any) -> None:
    registry = CallbackRegistry()
    registry.request_callback("v")(lambda connection: 1)
    server = CallbackServer(reactor, "tcp:0:interface=127.0.0.1", registry=registry)
    address: Any = await server.listen()
    watch = ServerWatch(reactor, port=0)
    watch.startService()
    with socket.socket() as unused:  # bound, and not listening: nobody else gets it meanwhile
        unused.bind(("127.0.0.1", 0))
        await find(reactor, watch, address.port, unused.getsockname()[1])
    await watch.stopService()
    await server.stopService()


async def find(reactor: Any, watch: ServerWatch, port: int, wrong_port: int) -> None:
    own = ServerAddress(host="127.0.0.1", port=port, server_id="0042", start_time=1.0)
    beacon = ServerBeacon(reactor, own, destination=("127.0.0.1", watch.port), period=0.05)
    remembered: list[ServerAddress] = []
    client = CallbackClient(
        reactor,
        port=wrong_port,
        watch=watch,
        pause_seconds=0.01,
        on_server=remembered.append,
    )
    client.startService()
    beacon.startService()
    answer = await client.connection.request("v", timeout=60)
    assert answer == 1
    assert remembered == [own]
    assert (client.host, client.port) == ("127.0.0.1", port)
    await client.stopService()
    await beacon.stopService()


@pytest_twisted.ensureDeferred
async def test_client_that_hears_nothing_goes_on_trying(reactor: Any) -> None:
    registry = CallbackRegistry()
    registry.request_callback("v")(lambda connection: 1)
    watch = ServerWatch(reactor, port=0)
    watch.startService()
    port = free_port()
    client = CallbackClient(
        reactor,
        port=port,
        watch=watch,
        pause_seconds=0.01,
        heard_seconds_max=0.01,
        hearings_max=2,
    )
    client.startService()
    await deferLater(reactor, 0.2)  # some rounds of connecting and of listening
    assert not client.connection.is_connected
    server = CallbackServer(reactor, f"tcp:{port}:interface=127.0.0.1", registry=registry)
    await server.listen()
    assert await client.connection.request("v", timeout=60) == 1
    await client.stopService()
    await watch.stopService()
    await server.stopService()
