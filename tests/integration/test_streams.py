"""Streams over real sockets: `serve`, `RemoteStream`, TLS, and a client as plain as `nc`."""

from __future__ import annotations

import json
import os
import random
import socket
import stat
import threading
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
import trustme
from twisted.internet import reactor
from twisted.internet.defer import Deferred, DeferredQueue
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.protocol import Protocol, ServerFactory
from twisted.internet.ssl import (
    Certificate,
    PrivateCertificate,
    optionsForClientTLS,
    trustRootFromCertificates,
)
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread

from msgservice.errors import Ambiguous, BadValue, CannotListen, LimitReached
from msgservice.faces import streams
from msgservice.faces.streams import (
    Closed,
    Join,
    MessageStream,
    Progress,
    RemoteStream,
    StreamLimits,
    serve,
)
from tests.kit.ports import free_port

HOST = "127.0.0.1"
ensure = pytest_twisted.ensureDeferred


class Listening(MessageStream):
    """A stream that tells when a header is asked for: somebody has begun to listen then."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: DeferredQueue[str] = DeferredQueue()

    def __getitem__(self, key: Any) -> Any:
        self.asked.put(key)
        return super().__getitem__(key)


@ensure
async def test_remote_streams_listen_put_and_end() -> None:
    stream = Listening()
    server = serve(0, reactor, stream)
    remote = RemoteStream(HOST, server.port)
    first: DeferredQueue[Any] = DeferredQueue()
    second: DeferredQueue[Any] = DeferredQueue()
    stream["job"] = Join(1, 10)
    remote.listen("job", first)
    remote.listen("job", second)
    for queue in (first, second):
        assert await queue.get() == Join(1, 10)
    remote.put("job", Progress(2, 10))
    remote["job"] = Join(2, 10)  # nobody who listens is told
    remote.put("job", "text\n")
    for queue in (first, second):
        assert [await queue.get(), await queue.get()] == [Progress(2, 10), "text\n"]
    late: DeferredQueue[Any] = DeferredQueue()
    remote.listen("job", late)
    assert await late.get() == Join(2, 10)
    remote.hangup("job", first)
    remote.put("job", 3)
    assert [await second.get(), await late.get()] == [3, 3]
    remote.close("job")
    assert [await second.get(), await late.get()] == [Closed("job"), Closed("job")]
    assert first.pending == []
    remote.listen("job", first)
    assert await first.get() == Join(2, 10)  # the header outlives a close …
    del remote["job"]
    assert await first.get() == Closed("job")
    assert stream["job"] is None  # … and no delete
    await remote.close()
    with pytest.raises(BadValue):
        remote.put("job", 4)
    await server.stopService()


@ensure
async def test_a_remote_stream_tells_of_a_lost_connection_and_listens_again() -> None:
    stream, port = MessageStream(), free_port()
    server = serve(port, reactor, stream)
    stream["k"] = "before"
    remote = RemoteStream(HOST, port, reactor, rng=lambda: 0.1)
    queue: DeferredQueue[Any] = DeferredQueue()
    remote.listen("k", queue)
    assert await queue.get() == "before"
    await server.stopService()
    assert await queue.get() == Closed("k", "lost")
    stream["k"] = "after"
    server = serve(port, reactor, stream)
    assert await queue.get() == "after"
    remote.put("k", 1)
    assert await queue.get() == 1
    await remote.close()
    await server.stopService()
    assert queue.pending == []


@ensure
async def test_a_remote_stream_that_does_not_reconnect_ends_with_its_connection() -> None:
    stream, port = Listening(), free_port()
    server = serve(port, reactor, stream)
    remote = RemoteStream(HOST, port, reactor, reconnect=False)
    queue: DeferredQueue[Any] = DeferredQueue()
    remote.listen("k", queue)
    assert await stream.asked.get() == "k"
    await server.stopService()
    assert await queue.get() == Closed("k", "lost")
    assert remote._listening == []
    await remote.close()


@ensure
async def test_what_a_remote_stream_cannot_write_is_bounded_and_said() -> None:
    limits = StreamLimits(unsent_bytes=10_000, line_bytes=5_000, write_seconds=0.2)
    remote = RemoteStream(HOST, free_port(), reactor, limits=limits)  # where nobody listens
    for _ in range(60):
        remote.put("k", "x" * 100)
    with pytest.raises(LimitReached, match="unsent_bytes"):
        remote.put("k", "x" * 1_000 + "y" * 1_500)
    with pytest.raises(LimitReached, match="line_bytes"):
        remote.put("k", "x" * 5_000)
    with pytest.raises(BadValue, match="cannot be encoded"):
        remote.put("k", float("nan"))
    with pytest.raises(Ambiguous):
        await remote.close()


@ensure
async def test_a_queue_that_raises_loses_nothing_for_others(logged_failures: list[Any]) -> None:
    server = serve(0, reactor, stream := MessageStream())
    stream["k"] = 1
    remote = RemoteStream(HOST, server.port, reactor)

    class Raising:
        def put(self, message: Any) -> None:
            raise RuntimeError("mine")

    queue: DeferredQueue[Any] = DeferredQueue()
    remote.listen("k", Raising())
    assert await told(logged_failures)
    remote.listen("k", queue)
    assert await queue.get() == 1
    remote.hangup(None, queue)
    await remote.close()
    await server.stopService()
    logged_failures.clear()


async def told(failures: list[Any]) -> bool:
    for _ in range(500):
        if failures:
            return True
        await deferLater(reactor, 0.01)
    return False


def ask_plainly(port: int, *lines: bytes) -> bytes:
    """Do what `nc` does with these lines on its input, and return what it prints."""
    with socket.create_connection((HOST, port), timeout=30) as plain:
        plain.sendall(b"".join(lines))
        received = b""
        while more := plain.recv(65_536):
            received += more
        return received


@ensure
async def test_a_client_as_plain_as_nc_works() -> None:
    server = serve(0, reactor, MessageStream())
    received = await deferToThread(
        ask_plainly,
        server.port,
        b'{"action": "header", "stream": "job1", "message": {"k": 3, "n": 10}}\r\n',
        b'{"action": "listen", "stream": "job1"}\n',
        b'{"action": "put", "stream": "job1", "message": [1, 2.5, "x"]}\n',
        b'{"action": "delete", "stream": "job1"}\n',
        b'{"action": "close"}\n',
    )
    assert received == (
        b'{"action":"put","stream":"job1","message":{"k":3,"n":10}}\n'
        b'{"action":"put","stream":"job1","message":[1,2.5,"x"]}\n'
        b'{"action":"close","stream":"job1"}\n'
    )
    await server.stopService()


@ensure
async def test_a_thousand_that_join_and_leave_at_random_miss_and_double_nothing() -> None:
    stream = MessageStream()
    server = serve(0, reactor, stream)
    rng = random.Random(7)
    errors: list[tuple[int, int]] = []
    last = seen = 0

    class Checked:
        """A queue whose first message is the header, and that counts on from there."""

        def __init__(self) -> None:
            self.expected: int | None = None
            self.is_over = False

        def put(self, message: Any) -> None:
            nonlocal seen
            if self.is_over or isinstance(message, Closed):
                return
            if self.expected is not None and message != self.expected:
                errors.append((message, self.expected))
            self.expected = message + 1
            seen += 1

    stream["k"] = 0
    remotes: list[tuple[RemoteStream, Checked]] = []
    for _ in range(60):
        for _ in range(17):
            remote, queue = RemoteStream(HOST, server.port, reactor), Checked()
            remote.listen("k", queue)
            remotes.append((remote, queue))
        rng.shuffle(remotes)
        joined = [one for one in remotes if one[1].expected is not None]
        for remote, queue in joined[rng.randint(20, 100) :]:
            queue.is_over = True
            remotes.remove((remote, queue))
            remote.close()
        for _ in range(rng.randint(1, 20)):
            last += 1
            stream["k"] = last
            stream.put("k", last)
        await deferLater(reactor, 0)
    assert errors == []
    assert seen > 1_000
    for remote, queue in remotes:
        queue.is_over = True
        await remote.close()
    await server.stopService()


@pytest.mark.parametrize(("option", "mode"), [("", 0o600), (":mode=660", 0o660)])
@ensure
async def test_decision_21_a_unix_socket_is_its_owners_unless_it_is_said(
    option: str, mode: int, tmp_path: Path
) -> None:
    path = tmp_path / "streams"
    before = os.umask(0)
    try:
        server = serve(f"unix:{path}{option}", reactor, MessageStream())
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == mode
    await server.stopService()


@ensure
async def test_decision_20_a_port_that_is_taken_is_said_at_once() -> None:
    server = serve(0, reactor, MessageStream())
    with pytest.raises(CannotListen, match="in use"):
        serve(server.port, reactor, MessageStream())
    await server.stopService()


@pytest.mark.filterwarnings("ignore:Passing pyOpenSSL:DeprecationWarning")
@ensure
async def test_decision_21_with_verified_certificates_it_may_listen_everywhere() -> None:
    ca = trustme.CA()
    issued = ca.issue_cert(HOST)
    pem = issued.private_key_pem.bytes() + issued.cert_chain_pems[0].bytes()
    mine, authority = PrivateCertificate.loadPEM(pem), Certificate.loadPEM(ca.cert_pem.bytes())
    stream = MessageStream()
    server = serve("tcp:0:interface=0.0.0.0", reactor, stream, tls=mine.options(authority))
    roots = trustRootFromCertificates([authority])

    def remote(certificate: Any) -> RemoteStream:
        options = optionsForClientTLS(HOST, trustRoot=roots, clientCertificate=certificate)
        where = wrapClientTLS(options, HostnameEndpoint(reactor, HOST, server.port))
        limits = StreamLimits(write_seconds=3600)  # nothing is cut off: it ends by itself
        return RemoteStream("", 0, reactor, endpoint=where, reconnect=False, limits=limits)

    stream["k"] = "for those with a certificate"
    known, unknown = remote(mine), remote(None)
    queue: DeferredQueue[Any] = DeferredQueue()
    turned_away: DeferredQueue[Any] = DeferredQueue()
    known.listen("k", queue)
    unknown.listen("k", turned_away)
    assert await queue.get() == "for those with a certificate"
    assert await turned_away.get() == Closed("k", "lost")
    known.put("k", "x" * 500_000)
    assert await queue.get() == "x" * 500_000
    await known.close()
    await unknown.close()
    await server.stopService()


@ensure
async def test_must_hold_a_replaced_codec_changes_what_is_made_afterwards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Upper:
        @staticmethod
        def encode(value: Any) -> str:
            return json.dumps(value).swapcase()

        @staticmethod
        def decode(data: bytes) -> Any:
            return json.loads(data.decode().swapcase())

    before = serve(0, reactor, MessageStream())
    monkeypatch.setattr(streams, "codec", Upper)
    after = serve(0, reactor, stream := MessageStream())
    assert (before.codec, after.codec) == (streams.JsonCodec, Upper)
    stream["k"] = {"a": "Text"}
    remote = RemoteStream(HOST, after.port, reactor)
    queue: DeferredQueue[Any] = DeferredQueue()
    remote.listen("k", queue)
    assert await queue.get() == {"a": "Text"}
    received = await deferToThread(
        ask_plainly, after.port, b'{"ACTION": "LISTEN", "STREAM": "K"}\n{"ACTION":"CLOSE"}\n'
    )
    assert received == b'{"ACTION": "PUT", "STREAM": "K", "MESSAGE": {"A": "tEXT"}}\n'
    await remote.close()
    await after.stopService()
    await before.stopService()


@ensure
async def test_rule_5_8_threads_put_while_remotes_listen() -> None:
    stream = Listening()
    server = serve(0, reactor, stream)
    remote = RemoteStream(HOST, server.port, reactor)
    queue: DeferredQueue[Any] = DeferredQueue()
    remote.listen("k", queue)
    assert await stream.asked.get() == "k"
    count = 500

    def putting(name: int) -> None:
        for number in range(count):
            stream.put("k", [name, number])

    workers = [threading.Thread(target=putting, args=(name,)) for name in range(3)]
    for worker in workers:
        worker.start()
    got = [await queue.get() for _ in range(3 * count)]
    for worker in workers:
        worker.join()
    for name in range(3):
        assert [number for one, number in got if one == name] == list(range(count))
    await remote.close()
    await server.stopService()


@ensure
async def test_a_server_whose_line_is_too_long_is_left_and_dialled_again() -> None:
    made: DeferredQueue[Any] = DeferredQueue()

    class Flood(Protocol):
        def connectionMade(self) -> None:
            made.put(self)
            self.transport.write(b"x" * 100_000)  # type: ignore[union-attr]

    factory: Any = ServerFactory.forProtocol(Flood)
    port: Any = reactor.listenTCP(0, factory, interface=HOST)
    limits = StreamLimits(line_bytes=1_000)
    remote = RemoteStream(HOST, port.getHost().port, reactor, limits=limits, rng=lambda: 0.0)
    queue: DeferredQueue[Any] = DeferredQueue()
    remote.listen("k", queue)
    for _ in range(2):
        await made.get()
        assert await queue.get() == Closed("k", "lost")
    await remote.close()
    stopped: Deferred[None] = port.stopListening()
    await stopped
