"""One HTTP client for tests that says bytes by hand, and sees what comes as it comes.

peer = await HttpPeer.dial(port)
answer = await peer.ask("GET", "/healthz")
peer.say(b"...")
answer = await peer.answer()
await peer.until_closed()
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from twisted.internet import reactor as installed_reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, UNIXClientEndpoint
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure

reactor: Any = installed_reactor


@dataclass(frozen=True)
class HttpAnswer:
    """An answer: its headers with names in lower case, the last of each."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class _Raw(Protocol):
    def __init__(self, peer: HttpPeer) -> None:
        self.peer = peer

    def dataReceived(self, data: bytes) -> None:
        self.peer.data += data
        self.peer.look()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.peer.is_closed = True
        self.peer.why = str(reason.value)
        self.peer.look()


class HttpPeer:
    """A connection. `data`: what came, and was taken by nobody."""

    def __init__(self) -> None:
        self.data = b""
        self.is_closed = False
        self.why = ""
        self._waiting: list[tuple[Any, Deferred[None]]] = []
        self.transport: Any = None

    @classmethod
    async def dial(cls, where: int | str) -> HttpPeer:
        """Connect to a port of 127.0.0.1, or to a Unix socket."""
        endpoint: Any = (
            TCP4ClientEndpoint(reactor, "127.0.0.1", where)
            if isinstance(where, int)
            else UNIXClientEndpoint(reactor, where)
        )
        return await cls.dial_at(endpoint)

    @classmethod
    async def dial_at(cls, endpoint: IStreamClientEndpoint) -> HttpPeer:
        peer = cls()
        protocol: Any = await endpoint.connect(Factory.forProtocol(lambda: _Raw(peer)))
        peer.transport = protocol.transport
        return peer

    def say(self, data: bytes) -> None:
        self.transport.write(data)

    def say_request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        """Say a whole request; Host is localhost, a body is JSON, unless headers say otherwise."""
        said = {"Host": "localhost"}
        if body is not None:
            said |= {"Content-Type": "application/json", "Content-Length": str(len(body))}
        said |= headers or {}
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in said.items())]
        self.say("\r\n".join(lines).encode() + b"\r\n\r\n" + (body or b""))

    async def ask(
        self,
        method: str,
        path: str,
        body: bytes | object | None = None,
        headers: dict[str, str] | None = None,
    ) -> HttpAnswer:
        """Say a request, and return its answer."""
        said = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        self.say_request(method, path, said, headers)
        return await self.answer(has_body=method != "HEAD")

    async def head(self) -> HttpAnswer:
        """Return the head of the next answer."""
        await self.until(lambda: b"\r\n\r\n" in self.data)
        head, _, self.data = self.data.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines)
        return HttpAnswer(int(first.split(" ")[1]), {k.lower(): v for k, v in headers.items()}, b"")

    async def answer(self, *, has_body: bool = True) -> HttpAnswer:
        """Return the next answer, whole."""
        head = await self.head()
        if head.status == 100:
            return head
        size = int(head.headers["content-length"]) if has_body else 0
        await self.until(lambda: len(self.data) >= size)
        body, self.data = self.data[:size], self.data[size:]
        return HttpAnswer(head.status, head.headers, body)

    async def until(self, is_so: Any) -> None:
        """Return when it is so of what came; fail where the connection has ended before."""
        if is_so():
            return
        assert not self.is_closed, f"closed: {self.why}, {self.data!r}"
        waiter: Deferred[None] = Deferred()
        self._waiting.append((is_so, waiter))
        await waiter

    async def until_closed(self) -> None:
        if not self.is_closed:
            waiter: Deferred[None] = Deferred()
            self._waiting.append((lambda: self.is_closed, waiter))
            await waiter

    def look(self) -> None:
        waiting, self._waiting = self._waiting, []
        for is_so, waiter in waiting:
            if is_so():
                waiter.callback(None)
            elif self.is_closed:
                waiter.errback(AssertionError(f"closed: {self.why}, {self.data!r}"))
            else:
                self._waiting.append((is_so, waiter))

    async def go(self) -> None:
        self.transport.abortConnection()
        await self.until_closed()
