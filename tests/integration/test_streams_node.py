"""Streams with a node that is killed with SIGKILL: who resumes has no gap and no duplicate."""

from __future__ import annotations

import json
import random
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
import trustme
from twisted.internet import reactor
from twisted.internet.defer import Deferred, DeferredQueue, gatherResults
from twisted.internet.endpoints import HostnameEndpoint, connectProtocol, wrapClientTLS
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.ssl import (
    Certificate,
    PrivateCertificate,
    optionsForClientTLS,
    trustRootFromCertificates,
)
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.internet.utils import getProcessOutputAndValue
from twisted.python.failure import Failure

from msgservice import Limits, Node, connect
from msgservice.faces.streams import Closed, NodeStreams, RemoteStream, serve
from msgservice.faces.streams.service import NodeWithStreams
from tests.integration.daemon import BIN, running
from tests.kit.nest import Forked
from tests.kit.ports import free_port
from tests.soak.points import NODE

KILLS = 6
EACH = 400
ROOT = Path(__file__).resolve().parents[2]
LIMITS = Limits(link_delay_min=0.05, link_delay_max=0.2)
ensure = pytest_twisted.ensureDeferred


class Kept:
    """A queue that keeps what is put, and tells when there are so many."""

    def __init__(self) -> None:
        self.had: list[Any] = []
        self._wanted = 0
        self._waiter: Deferred[None] | None = None

    def put(self, message: Any) -> None:
        self.had.append(message)
        if self._waiter is not None and len(self.had) >= self._wanted:
            waiter, self._waiter = self._waiter, None
            waiter.callback(None)

    def when(self, count: int) -> Deferred[None]:
        waiter: Deferred[None] = Deferred()
        if len(self.had) >= count:
            waiter.callback(None)
        else:
            self._wanted, self._waiter = count, waiter
        return waiter


class Child:
    """The node's process, killed and begun again."""

    def __init__(self, folder: Path) -> None:
        self.node, self.streams = free_port(), free_port()
        self._words = [
            *(sys.executable, "-m", "tests.integration.streams_child"),
            *(str(folder), str(self.node), str(self.streams)),
        ]
        self.process: Any = None

    async def start(self, *point: str) -> None:
        words = [*self._words, *point]
        self.process = Forked(words, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert await deferToThread(self.process.stdout.readline) == "listens\n"

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.mark.timeout(120)
@ensure
async def test_rule_5_4_a_killed_node_leaves_neither_gap_nor_duplicate_to_who_resumes(
    tmp_path: Path,
) -> None:
    rng = random.Random(5)
    child = Child(tmp_path / "node")
    await child.start()
    remote = RemoteStream("127.0.0.1", child.streams, reactor, rng=lambda: 0.2)
    kept = Kept()
    client = await connect(reactor, f"tcp:127.0.0.1:{child.node}", name="shop", limits=LIMITS)
    remote.listen("k", kept, resume=True)
    # One that has come tells that it listens, and has a token from then on.
    first = 0
    while not kept.had:
        first += 1
        await client.send("streams.k", -first)
        await deferLater(reactor, 0.02)
    try:
        sent = 0
        for _ in range(KILLS):
            sending = []
            for _ in range(EACH):
                sending.append(client.send("streams.k", sent))
                sent += 1
            await deferLater(reactor, rng.random() * 0.15)
            child.kill()
            await child.start()
            await gatherResults(sending)
        await kept.when(kept.had.index(0) + sent if 0 in kept.had else sent + 1)
        numbers = [number for number in kept.had if number >= 0]
        assert numbers == list(range(sent))
        await client.close()
        await remote.close()
    finally:
        child.kill()


@pytest.mark.timeout(120)
@ensure
async def test_rule_5_3_a_header_that_was_stored_survives_a_kill_and_is_never_half(
    tmp_path: Path,
) -> None:
    """A header counts the puts before it: who joins has it, and then those behind it, no other."""
    child = Child(tmp_path / "node")
    await child.start()
    client = await connect(reactor, f"tcp:127.0.0.1:{child.node}", name="shop", limits=LIMITS)
    remote = RemoteStream("127.0.0.1", child.streams, reactor, rng=lambda: 0.2)
    try:
        sent = 0
        for _ in range(3):
            sending = []
            for _ in range(100):
                sent += 1
                # One message, which is both: put into the stream, and its header from then on.
                sending.append(client.send("streams.k", sent, retain=True))
            await gatherResults(sending[:50])
            child.kill()  # the others may be stored or not; they are sent again
            await child.start()
            await gatherResults(sending)
            kept = Kept()
            remote.listen("k", kept)
            await kept.when(1)
            await client.send("streams.k", sent + 1, retain=True)
            sent += 1
            await kept.when(2)
            assert kept.had == [sent - 1, sent]
            remote.hangup("k", kept)
        await client.send("streams.k", b"", headers={"stream": "delete"}, retain=True)
        child.kill()
        await child.start()
        kept = Kept()
        remote.listen("k", kept)
        while not kept.had:
            sent += 1
            await client.send("streams.k", sent)
            await deferLater(reactor, 0.02)
        assert kept.had[0] > 303  # no header
        await client.close()
        await remote.close()
    finally:
        child.kill()


DURABLE = "msgservice.faces.streams.durable"
AT = {name: NODE[name] for name in (
    "before the commit", "after the commit", "before the mark", "after the mark", "before the ACK",
    "after the ACK", "in the fan-out", "when progress is taken",
)} | {
    "before it is handed on": (DURABLE, "NodeStreams", "_received", "before"),
    "after it was handed on": (DURABLE, "NodeStreams", "_received", "after"),
    "before its publisher knows": (DURABLE, "NodeStreams", "_settle", "before"),
    "before one who joins is given the header": (DURABLE, "NodeStreams", "_joined", "before"),
    "after one who joins was given the header": (DURABLE, "NodeStreams", "_joined", "after"),
    "before one who resumes is given a page": (DURABLE, "NodeStreams", "_paged", "before"),
    "after one who resumes was given a page": (DURABLE, "NodeStreams", "_paged", "after"),
}  # fmt: skip
ONCE_A_LISTENER = ("_joined", "_paged")
ROUNDS_MAX = 20_000  # far more than come before one that resumes has dialled again


class Writer(Protocol):
    """A publisher by plain lines, which asks after each round whether it is stored."""

    def __init__(self) -> None:
        self._rest = b""
        self.answers: DeferredQueue[bool] = DeferredQueue()

    def dataReceived(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            assert line.startswith(b'{"action":"list"'), line
            self.answers.put(True)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.answers.put(False)

    def round(self, number: int) -> Deferred[bool]:
        """Set the header and put its number; fires with whether both are known to be stored."""
        for action in ("header", "put"):
            line = {"action": action, "stream": "k", "message": number}
            self.transport.write(json.dumps(line).encode() + b"\n")  # type: ignore[union-attr]
        self.transport.write(b'{"action":"list"}\n')  # type: ignore[union-attr]
        return self.answers.get()


class Playing:
    """Lives of a node that are ended at named points, and what must be so of each."""

    def __init__(self, folder: Path) -> None:
        self.child = Child(folder)
        self.attempted = 0
        self.confirmed: list[int] = []
        self.resumed = Kept()
        self.joined: list[tuple[int, int, Kept]] = []  # confirmed and attempted then, what it had

    def remote(self, *, reconnect: bool) -> RemoteStream:
        return RemoteStream(
            "127.0.0.1", self.child.streams, reactor, reconnect=reconnect, rng=lambda: 0.2
        )

    async def life(self, *point: str) -> None:
        """Begin a life, and write until it has ended; without a point one round alone."""
        await self.child.start(*point)
        where = HostnameEndpoint(reactor, "127.0.0.1", self.child.streams)
        writer = await connectProtocol(where, Writer())
        joins = self.remote(reconnect=False)
        joined = Kept()
        joins.listen("k", joined)
        known = self.confirmed[-1] if self.confirmed else 0
        before = self.attempted
        for _ in range(ROUNDS_MAX):
            self.attempted += 1
            if await writer.round(self.attempted):
                self.confirmed.append(self.attempted)
            else:
                break
            if not point:
                break
        else:
            raise AssertionError(f"{point} is not passed")
        if point:
            assert await deferToThread(self.child.process.wait) == -signal.SIGKILL
            self.child.process.stdout.close()
        self.joined.append((known, self.attempted, joined))
        await joins.close()
        assert before < self.attempted

    def check(self) -> None:
        """Say that nobody missed or doubled anything."""
        had = [one for one in self.resumed.had if isinstance(one, int)]
        if had[:1] == had[1:2]:
            del had[0]  # the header, when it began to listen between that and its own put
        assert had == sorted(set(had))
        assert set(self.confirmed) <= set(had) <= set(range(1, self.attempted + 1))
        for known, attempted, joined in self.joined:
            numbers = [one for one in joined.had if isinstance(one, int)]
            if not numbers:
                continue  # it came too late, or was cut off before
            header, *puts = numbers
            assert known <= header <= attempted
            behind = [one for one in had if one >= header]
            if puts[:1] != [header]:  # the header was read before its own put, or behind it
                behind = [one for one in behind if one > header]
            assert puts == behind[: len(puts)]


@pytest.mark.timeout(300)
@ensure
async def test_rules_5_3_and_5_4_a_node_killed_at_named_points_loses_nothing(
    tmp_path: Path,
) -> None:
    rng = random.Random(11)
    playing = Playing(tmp_path / "node")
    await playing.child.start()
    remote = playing.remote(reconnect=True)
    remote.listen("k", playing.resumed, resume=True)
    where = HostnameEndpoint(reactor, "127.0.0.1", playing.child.streams)
    writer = await connectProtocol(where, Writer())
    while not playing.resumed.had:  # it listens, and has a token from here on
        playing.attempted += 1
        assert await writer.round(playing.attempted)
    playing.confirmed = list(playing.resumed.had)
    playing.child.kill()
    try:
        for place in AT.values():
            visits = 1 if place[2] in ONCE_A_LISTENER else rng.randint(3, 12)
            await playing.life(*map(str, place), str(visits))
        await playing.life()
        while playing.attempted not in playing.resumed.had:
            await playing.resumed.when(len(playing.resumed.had) + 1)
        playing.check()
        assert len(playing.confirmed) > 20
        assert sum(len(one.had) > 1 for _, _, one in playing.joined) > 3
    finally:
        playing.child.kill()
        await remote.close()


@ensure
async def test_a_remote_stream_puts_and_listens_at_a_node(tmp_path: Path) -> None:
    node = Node(reactor, tmp_path / "node")
    node.startService()
    await node.when_ready()
    streams = NodeStreams(reactor, node)
    server = serve(0, reactor, streams)
    remote = RemoteStream("127.0.0.1", server.port, reactor)
    queue: DeferredQueue[Any] = DeferredQueue()
    remote.put("k", "before")
    remote.listen("k", queue, resume=True)
    while not server.streams():
        await deferLater(reactor, 0.01)
    for number in range(500):
        remote.put("k", number)
    got: list[Any] = []
    while 499 not in got:
        got.append(await queue.get())
    # They go by two connections: whether the first came before the listener is not said.
    assert [one for one in got if one != "before"] == list(range(500))
    assert got.count("before") <= 1
    await remote.close()
    await server.stopService()
    await node.stopService()


WITH_A_USER = """
[[listen]]
address = "tcp:{node}:interface=127.0.0.1"

[[listen]]
address = "tcp:{streams}"
face = "streams"
login = "none"
user = "board"

[[user]]
name = "board"
send = ["streams.>"]
receive = ["streams.>"]
"""
WITHOUT = """
[listen]
tcp = "tcp:{node}:interface=127.0.0.1"
streams = "tcp:{streams}"
"""


@pytest.mark.parametrize("text", [WITH_A_USER, WITHOUT], ids=["user", "nobody"])
@ensure
async def test_decision_21_streams_are_served_as_the_configuration_says(
    text: str, tmp_path: Path
) -> None:
    ports = {"node": free_port(), "streams": free_port()}
    (tmp_path / "node.toml").write_text(text.format(**ports))
    command = ("twist", "--log-format=text", "msgservice", "--config", "node.toml")
    with running(*command, cwd=tmp_path) as daemon:
        await deferToThread(daemon.wait_for, f"streams at tcp:127.0.0.1:{ports['streams']}")
        remote = RemoteStream("127.0.0.1", ports["streams"], reactor)
        kept = Kept()
        remote.listen("k", kept, resume=True)
        while not kept.had:
            remote.put("k", "come")
            await deferLater(reactor, 0.05)
        remote.put("k", "last")
        while kept.had[-1] != "last":
            await kept.when(len(kept.had) + 1)
        await remote.close()
        assert await deferToThread(daemon.stop) == -signal.SIGTERM
        assert "stopped" in daemon.said


SEALED = """
[listen]
tcp = "tcp:{node}:interface=127.0.0.1"
streams = "tls:{streams}:interface=0.0.0.0"

[tls]
certificate = "server.pem"
client_roots = "ca.pem"
"""


def tls_remote(port: int, folder: Path, certificate: str | None) -> RemoteStream:
    roots = trustRootFromCertificates([Certificate.loadPEM((folder / "ca.pem").read_bytes())])
    mine = None
    if certificate is not None:
        mine = PrivateCertificate.loadPEM((folder / certificate).read_bytes())
    options = optionsForClientTLS("127.0.0.1", trustRoot=roots, clientCertificate=mine)
    where = wrapClientTLS(options, HostnameEndpoint(reactor, "127.0.0.1", port))
    return RemoteStream("", 0, reactor, endpoint=where, reconnect=False)


@ensure
async def test_a_node_says_where_its_streams_are(tmp_path: Path) -> None:
    node = Node(reactor, tmp_path / "node")
    service = NodeWithStreams(reactor, node, "tcp:0:interface=127.0.0.1")
    for _ in range(2):
        service.startService()
        await node.when_ready()
        server = service.server
        assert server is not None
        client = node.client("asker")
        info = await client.request("$node.info", {})
        assert [f"streams at tcp:127.0.0.1:{server.port}"] == info["listeners"]
        await client.close()
        await service.stopService()


@pytest.mark.filterwarnings("ignore:Passing pyOpenSSL:DeprecationWarning")
@ensure
async def test_decision_21_streams_beyond_this_machine_ask_for_certificates(
    tmp_path: Path,
) -> None:
    ca = trustme.CA()
    (tmp_path / "ca.pem").write_bytes(ca.cert_pem.bytes())
    for name in ("server", "client"):
        made = ca.issue_cert("127.0.0.1")
        pem = made.private_key_pem.bytes() + made.cert_chain_pems[0].bytes()
        (tmp_path / f"{name}.pem").write_bytes(pem)
    ports = {"node": free_port(), "streams": free_port()}
    (tmp_path / "node.toml").write_text(SEALED.format(**ports))
    command = ("twist", "--log-format=text", "msgservice", "--config", "node.toml")
    with running(*command, cwd=tmp_path) as daemon:
        await deferToThread(daemon.wait_for, "streams at ")
        turned_away: DeferredQueue[Any] = DeferredQueue()
        stranger = tls_remote(ports["streams"], tmp_path, None)
        stranger.listen("k", turned_away)
        assert await turned_away.get() == Closed("k", "lost")
        queue: DeferredQueue[Any] = DeferredQueue()
        remote = tls_remote(ports["streams"], tmp_path, "client.pem")
        remote.listen("k", queue, resume=True)
        while not queue.pending:
            remote.put("k", "come")
            await deferLater(reactor, 0.05)
        assert await queue.get() == "come"
        await remote.close()
        await stranger.close()
        options = "trustRoots=ca.pem:certificate=client.pem:privateKey=client.pem"
        at = f"tls:127.0.0.1:{ports['streams']}:{options}"
        put = await getProcessOutputAndValue(
            str(BIN / "msgservice"), ["streams", "put", "k", "1", "--at", at], path=tmp_path
        )
        assert put == (b"1 put into k\n", b"", 0)


@ensure
async def test_decision_21_a_unix_socket_of_the_configuration_is_its_owners(
    tmp_path: Path,
) -> None:
    text = f"""[listen]\ntcp = "tcp:{free_port()}"\nstreams = "unix:streams"\n"""
    (tmp_path / "node.toml").write_text(text)
    command = ("twist", "--log-format=text", "msgservice", "--config", "node.toml")
    for _ in range(2):  # a killed one leaves its socket
        with running(*command, cwd=tmp_path) as daemon:
            await deferToThread(daemon.wait_for, "streams at unix:")
            assert stat.S_IMODE((tmp_path / "streams").stat().st_mode) == 0o600
            daemon.send(signal.SIGKILL)
            await deferToThread(daemon.ended)
