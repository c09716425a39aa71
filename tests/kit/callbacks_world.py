"""Servers, clients and bare sockets for the tests of the callback protocol."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.protocol import Protocol
from twisted.internet.task import deferLater

from msgservice.faces.callbacks.connection import Connection
from msgservice.faces.callbacks.files import FileRoot
from msgservice.faces.callbacks.protocol.wire import Encoder
from msgservice.faces.callbacks.registry import CallbackRegistry
from msgservice.faces.callbacks.service import CallbackClient, CallbackServer

ENCODER = Encoder("little")
HELLO = ENCODER.extension("hello", {})


class World:
    """A server and whatever is connected to it; everything is closed at the end."""

    def __init__(self, reactor: Any, folder: Path) -> None:
        self.reactor = reactor
        self.registry = CallbackRegistry()
        self.server_folder, self.client_folder = folder / "server", folder / "client"
        self.server_folder.mkdir()
        self.client_folder.mkdir()
        self.server: CallbackServer
        self.port = 0
        self.clients: list[CallbackClient] = []
        self.raws: list[Raw] = []

    async def serve(self, **options: Any) -> CallbackServer:
        options.setdefault("registry", self.registry)
        options.setdefault("files", FileRoot(self.server_folder))
        endpoint = options.pop("endpoint", "tcp:0:interface=127.0.0.1")
        self.server = CallbackServer(self.reactor, endpoint, **options)
        address: Any = await self.server.listen()
        self.port = getattr(address, "port", 0)
        return self.server

    async def client(self, **options: Any) -> Connection:
        options.setdefault("registry", self.registry)
        options.setdefault("files", FileRoot(self.client_folder))
        options.setdefault("pause_seconds", 0.01)
        if "endpoint" not in options:
            options.setdefault("port", self.port)
        client = CallbackClient(self.reactor, **options)
        self.clients.append(client)
        client.startService()
        await self.until(lambda: client.connection.is_connected)
        return client.connection

    async def ours(self, **options: Any) -> Connection:
        connection = await self.client(**options)
        await self.until(lambda: connection.peer_is_ours)
        return connection

    async def raw(self) -> "Raw":
        """A peer that knows nothing but bytes."""
        endpoint = TCP4ClientEndpoint(self.reactor, "127.0.0.1", self.port)
        raw: Raw = await connectProtocol(endpoint, Raw(self))
        self.raws.append(raw)
        return raw

    async def until(self, done: Callable[[], object], seconds: float = 60.0) -> None:
        deadline = self.reactor.seconds() + seconds
        while not done():
            assert self.reactor.seconds() < deadline, "did not happen"
            await deferLater(self.reactor, 0.002)

    async def close(self) -> None:
        for client in self.clients:
            await client.stopService()
        for raw in self.raws:
            raw.end()
        if hasattr(self, "server"):
            await self.server.stopService()
        await self.until(lambda: all(raw.is_lost for raw in self.raws))


class Raw(Protocol):
    """Keeps what it gets."""

    transport: Any

    def __init__(self, world: World) -> None:
        self.world = world
        self.got = bytearray()  # it may be tens of megabytes
        self.is_lost = False

    def dataReceived(self, data: bytes) -> None:
        self.got += data

    def connectionLost(self, reason: Any = None) -> None:
        self.is_lost = True

    def send(self, data: bytes) -> None:
        self.transport.write(data)

    def end(self) -> None:
        if not self.is_lost:
            self.transport.abortConnection()

    async def gets(self, expected: bytes) -> None:
        await self.world.until(lambda: len(self.got) >= len(expected))
        assert expected == self.got
        self.got = bytearray()


def in_reactor(function: Any) -> Any:
    return pytest_twisted.ensureDeferred(function)


async def failure_of(d: "Deferred[Any]", kind: type[BaseException]) -> str:
    try:
        value = await d
    except kind as error:
        return str(error)
    raise AssertionError(f"no {kind.__name__}, but {value!r}")
