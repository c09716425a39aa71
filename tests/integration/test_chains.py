"""Chains of real nodes: each a process of its own, killed with kill -9 in the middle of a load.

What a producer hands in at one node is handled at each node of the chain once and in its order.
The producers and receivers live here, all the time, so what is handled twice is a fault. What a
chain is that no process is needed for is in tests/simulation/test_chains.py.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor as installed_reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread

from msgservice import Limits, Receiver, Status, connect
from tests.integration.command import Command
from tests.integration.daemon import Daemon, running
from tests.kit.certificates import Authority
from tests.kit.nest import Forked
from tests.kit.ports import free_port

reactor: Any = installed_reactor
pytestmark = pytest.mark.timeout(240)
LIMITS = Limits(link_delay_min=0.05, link_delay_max=0.2)
ROOT = Path(__file__).resolve().parents[2]
SURVIVOR = Path(__file__).with_name("receipts_child.py")
KILLS = 3  # of each node
LEAST = 100  # messages that are on the first node's disk between two kills


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await deferLater(reactor, 0.005)


class Site:
    """A node in a process of its own, and of it here a producer and a receiver of everything.

    `door`: where the two come in.
    """

    def __init__(self, folder: Path, name: str, configuration: str = "") -> None:
        self.folder = folder / name
        self.folder.mkdir()
        self.name = name
        self.port = free_port()
        self.door = f"tcp:127.0.0.1:{self.port}"
        self.configuration = configuration or f'[listen]\ntcp = "tcp:{self.port}"\n'
        self.process: Forked | None = None
        self.handled: list[bytes] = []
        self.paths: list[tuple[bytes, tuple[str, ...]]] = []
        self.sent: list[tuple[bytes, Any]] = []  # with the receipt
        self.failed: list[Any] = []
        self.count = 0
        self.is_sending = False
        self._open: list[Deferred[Any]] = []

    def passes_on(self, far: str, address: str) -> None:
        """Have everything passed on to this node."""
        self.configuration += (
            f'[[receiver]]\nname = "{far}"\naddress = "node:{address}"\nsubjects = [">"]\n'
        )

    def start(self) -> None:
        (self.folder / "node.toml").write_text(
            f'[node]\nname = "{self.name}"\ndata = "node"\n'
            "[limits]\nlink_delay_min = 0.05\nlink_delay_max = 0.2\n" + self.configuration
        )
        command = ("twist", "--log-format=text", "msgservice", "--config", "node.toml")
        with (self.folder / "node.out").open("ab") as output:
            self.process = Forked(command, cwd=self.folder, stdout=output, stderr=output)

    def end(self) -> None:
        """End it as kill -9 does."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def kill(self) -> None:
        """End it as kill -9 does, and let it come back."""
        self.end()
        self.start()

    async def join(self) -> None:
        """Let the producer and the receiver come."""
        name = self.name
        self.client: Any = await connect(reactor, self.door, name=f"by-{name}", limits=LIMITS)
        self.receiver = Receiver(reactor, name=f"at-{name}", handler=self._handle, limits=LIMITS)
        attachment = self.receiver.attach(self.door, subjects=["load.>"])
        await until(lambda: attachment.connected)

    def _handle(self, message: Any) -> None:
        body = bytes(message.body)
        self.handled.append(body)
        self.paths.append((body, message.origin.path))

    def send(self, count: int) -> None:
        for _ in range(count):
            self.count += 1
            body = f"{self.name} {self.count}".encode()
            sending = self.client.send(f"load.{self.name}", body)
            sending.addCallbacks(
                lambda receipt, body=body: self.sent.append((body, receipt)), self.failed.append
            )
            self._open.append(sending)

    async def load(self) -> None:
        """Send until told otherwise; return when the node has all of it."""
        self.is_sending = True
        while self.is_sending:
            if self.count - len(self.sent) < 500:
                self.send(20)
            await deferLater(reactor, 0.01)
        await gatherResults(self._open)

    async def more(self) -> None:
        """Wait until so many more are on the node's disk."""
        before = len(self.sent)
        await until(lambda: len(self.sent) >= before + LEAST or bool(self.failed))

    async def leave(self) -> None:
        self.is_sending = False
        if hasattr(self, "client"):
            await self.client.close()
        if hasattr(self, "receiver"):
            await self.receiver.stop()
        if self.process is not None:
            self.end()

    def of(self, other: Site) -> list[bytes]:
        """Return what was handled here of what was handed in at another, in its order."""
        begins = f"{other.name} ".encode()
        return [body for body in self.handled if body.startswith(begins)]


class Sites:
    """The nodes of one test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.all: list[Site] = []

    def add(self, name: str, configuration: str = "") -> Site:
        self.all.append(Site(self.folder, name, configuration))
        return self.all[-1]

    async def begin(self) -> None:
        for site in self.all:
            site.start()
        for site in self.all:
            await site.join()

    async def kill_each(self, *senders: Site) -> None:
        """Kill every node in turn, at any moment of a load from these; then wait for it all."""
        seed = random.randrange(1 << 32)
        print(f"seed {seed}")
        chance = random.Random(seed)
        loads = [Deferred.fromCoroutine(site.load()) for site in senders]
        for _ in range(KILLS):
            for site in self.all:
                for sender in senders:
                    await sender.more()
                await deferLater(reactor, chance.uniform(0.0, 0.15))
                site.kill()
        for sender in senders:
            await sender.more()
            sender.is_sending = False
        await gatherResults(loads)
        assert [] == [failure for site in senders for failure in site.failed]


@pytest_twisted.async_yield_fixture
async def sites(tmp_path: Path) -> AsyncIterator[Sites]:
    sites = Sites(tmp_path)
    yield sites
    for site in sites.all:
        await site.leave()


# --- an edge and a centre


def by_tcp(folder: Path, centre: Site) -> str:
    return centre.door


def by_pb(folder: Path, centre: Site) -> str:
    port = free_port()
    centre.configuration += f'pb = "pb:{port}"\n'
    return f"pb:127.0.0.1:{port}"


def with_user(centre: Site, listener: str, known_by: str = "") -> None:
    """Have the centre's nodes come by a door where the user `edge` is known; others as `local`."""
    centre.configuration = (
        f'[[listen]]\naddress = "{listener}"\n'
        f'[[listen]]\naddress = "tcp:{centre.port}"\nlogin = "none"\nuser = "local"\n'
        f'[[user]]\nname = "local"\nnames = [">"]\nreceive = [">"]\nsend = [">"]\n'
        f'[[user]]\nname = "edge"\n{known_by}send = ["load.>"]\nrelay = true\n'
    )


def by_tls(folder: Path, centre: Site) -> str:
    authority, port = Authority(folder), free_port()
    key, chain = authority.issue("localhost")
    roots = f"trustRoots={authority.ca_file}"
    with_user(
        centre,
        f"tls:{port}:interface=127.0.0.1:privateKey={key}:certificate={chain}:{roots}",
        'certificate = "dns:edge.example.org"\n',
    )
    key, chain = authority.issue("edge.example.org")
    return f"tls:localhost:{port}:{roots}:privateKey={key}:certificate={chain}"


def by_udp(folder: Path, centre: Site) -> str:
    port, key = free_port(socket.SOCK_DGRAM), os.urandom(32).hex()
    (folder / "edge.key").write_text(key)
    keys = folder / "keys"
    keys.write_text(f"1 edge {key}\n")
    keys.chmod(0o600)
    with_user(centre, f"udp:{port}:interface=127.0.0.1:keys={keys}")
    return f"udp:127.0.0.1:{port}:key={folder}/edge.key:keyId=1"


@pytest.mark.parametrize("way", [by_tcp, by_pb, by_tls, by_udp])
@pytest_twisted.ensureDeferred
async def test_an_edge_and_a_centre_are_killed_and_nothing_is_lost_or_comes_twice(
    sites: Sites, tmp_path: Path, way: Callable[[Path, Site], str]
) -> None:
    centre, edge = sites.add("centre"), sites.add("edge")
    edge.passes_on("centre", way(tmp_path, centre))
    await sites.begin()
    await sites.kill_each(edge)
    for _, receipt in edge.sent:
        await receipt.acknowledged("centre")  # it is on the centre's disk
        await receipt.acknowledged("at-edge")
    await until(lambda: len(centre.handled) >= edge.count <= len(edge.handled))
    expected = [f"edge {number}".encode() for number in range(1, edge.count + 1)]
    assert expected == centre.handled == edge.handled
    hops = {(receipt.statuses["centre"], receipt.statuses["at-edge"]) for _, receipt in edge.sent}
    assert {(Status.ACKNOWLEDGED, Status.ACKNOWLEDGED)} == hops


@pytest_twisted.ensureDeferred
async def test_an_edge_keeps_everything_while_its_centre_is_away(sites: Sites) -> None:
    centre, edge = sites.add("centre"), sites.add("edge")
    edge.passes_on("centre", centre.door)
    await sites.begin()
    centre.end()
    edge.send(300)
    await until(lambda: len(edge.sent) == 300 == len(edge.handled))
    edge.kill()  # what waits is on its disk
    edge.send(300)
    await until(lambda: len(edge.sent) == 600 == len(edge.handled))
    assert not any(receipt.statuses["centre"].final for _, receipt in edge.sent)
    assert [] == centre.handled
    centre.start()
    for _, receipt in edge.sent:
        await receipt.acknowledged("centre")
    await until(lambda: len(centre.handled) >= 600)
    assert edge.handled == centre.handled


@pytest.mark.parametrize("point", ["kept", "accepted"])
@pytest_twisted.ensureDeferred
async def test_53_receipts_survive_their_process_and_the_nodes_of_a_chain(
    sites: Sites, tmp_path: Path, point: str
) -> None:
    """A next node has acknowledged what is on its disk; what its receivers do, nobody is told."""
    centre, edge = sites.add("centre"), sites.add("edge")
    edge.passes_on("centre", centre.door)
    await sites.begin()
    centre.end()
    outbox = tmp_path / "outbox.db"
    words = (sys.executable, SURVIVOR, edge.door, outbox, "load.survive", point, "6")
    with running(*words, cwd=tmp_path) as child:
        assert -signal.SIGKILL == await deferToThread(child.ended), child.said
    edge.kill()
    client = await connect(reactor, edge.door, name="survivor", limits=LIMITS, outbox=outbox)
    receipts = await client.receipts()
    assert 2 <= len(receipts) == client.sequence
    for receipt in receipts:
        await receipt.acknowledged("at-edge")
        assert not receipt.statuses["centre"].final
    edge.kill()
    centre.start()
    for receipt in receipts:
        statuses = await receipt.settled()
        assert {"centre": Status.ACKNOWLEDGED, "at-edge": Status.ACKNOWLEDGED} == statuses
    assert [] == await client.receipts()
    await client.close()
    expected = [b"%d" % receipt.sequence for receipt in receipts]
    await until(lambda: len(centre.handled) >= len(expected))
    assert expected == centre.handled == edge.handled


# --- a ring


@pytest_twisted.ensureDeferred
async def test_a_ring_of_three_that_are_killed_brings_each_message_once(sites: Sites) -> None:
    """One way round: from each node to each other there is one way that passes none twice."""
    ring = [sites.add(name) for name in ("a", "b", "c")]
    for site, far in zip(ring, [*ring[1:], ring[0]], strict=True):
        site.passes_on(far.name, far.door)
    await sites.begin()
    await sites.kill_each(*ring)
    total = sum(site.count for site in ring)
    for site in ring:
        await until(lambda: len(site.handled) >= total)  # noqa: B023  # it is over in this turn
        for other in ring:
            sent = [f"{other.name} {number}".encode() for number in range(1, other.count + 1)]
            assert sent == site.of(other)
        assert total == len(site.handled)


@pytest_twisted.ensureDeferred
async def test_a_ring_in_which_each_passes_on_to_both_brings_each_message_once_for_each_way(
    sites: Sites,
) -> None:
    ring = [sites.add(name) for name in ("a", "b", "c")]
    for site in ring:
        for far in ring:
            if far is not site:
                site.passes_on(far.name, far.door)
    await sites.begin()
    await sites.kill_each(*ring)
    total = sum(site.count for site in ring)
    for site in ring:
        # Its own once; what the others have sent directly, and by way of the third.
        expected = Counter(body for body, _ in site.sent)
        for other in ring:
            if other is not site:
                expected.update({body: 2 for body, _ in other.sent})
        size = 2 * total - site.count
        await until(lambda: len(site.handled) >= size)  # noqa: B023  # it is over in this turn
        assert expected == Counter(site.handled)
        assert len(set(site.paths)) == len(site.paths)  # each by another way


# --- the pages' examples, as they are typed


class Tac:
    """`twistd -ny` of a file of tac/, with other ports, in a folder of its own."""

    def __init__(self, folder: Path, name: str) -> None:
        self.ports = {"7410": str(free_port()), "7411": str(free_port())}
        shutil.copytree(ROOT / "tac", folder / "tac")
        for file in (folder / "tac").glob("*.toml"):
            text = file.read_text()
            for written, port in self.ports.items():
                text = text.replace(written, port)
            file.write_text(text)
        first, second = self.ports.values()
        self.first = Command(f"tcp:127.0.0.1:{first}", folder)
        self.second = Command(f"tcp:127.0.0.1:{second}", folder)
        self.daemon = Daemon(
            *("twistd", "-ny", "tac/" + name, "--pidfile="),
            cwd=folder,
            environment={"PYTHONPATH": str(ROOT)},
        )
        self.daemon.wait_for(rf"listening on tcp:127\.0\.0\.1:({first}|{second})")
        self.daemon.wait_for(rf"listening on tcp:127\.0\.0\.1:({first}|{second})")


@pytest.fixture
def tac(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Tac]:
    made = Tac(tmp_path, request.param)
    yield made
    made.daemon.close()


@pytest.mark.parametrize("tac", ["edge.tac"], indirect=True)
def test_the_page_s_edge_passes_on_what_is_sent_to_it(tac: Tac) -> None:
    edge, centre = tac.first, tac.second
    assert 0 == centre("receivers", "add", "billing", "orders.>").code
    sent = edge("send", "orders.new", '{"id": 17}', "--id", "o-17", "--wait")
    assert 0 == sent.code, sent
    assert "acknowledged" in edge("status", "o-17").out
    assert (1, 0) == (centre.receiver("billing")["queued"], edge.receiver("centre")["queued"])
    got = json.loads(centre("listen", "billing", "--count", "1", "--json").out)
    assert ("o-17", '{"id": 17}') == (got["id"], got["text"])
    assert "centre" in edge("status", got["sender"]).out  # the identity is the producer's
    assert ["billing", "acknowledged"] == centre("status", "o-17").out.split()[-3:-1]


@pytest.mark.parametrize("tac", ["pair.tac"], indirect=True)
def test_the_page_s_pair_has_all_of_both_at_both(tac: Tac) -> None:
    for node in (tac.first, tac.second):
        assert 0 == node("receivers", "add", "here", "a.>").code
    for node, body in ((tac.first, "by left"), (tac.second, "by right")):
        assert 0 == node("send", "a.b", body).code
    for node in (tac.first, tac.second):
        got = node("listen", "here", "--count", "2", "--json").out.splitlines()
        assert {"by left", "by right"} == {json.loads(line)["text"] for line in got}


@pytest_twisted.ensureDeferred
async def test_a_node_to_pass_on_to_is_added_by_the_page_s_command(
    sites: Sites, tmp_path: Path
) -> None:
    centre, edge = sites.add("centre"), sites.add("edge")
    await sites.begin()
    command = Command(edge.door, tmp_path)
    added = await deferToThread(
        command, "receivers", "add", "centre", "load.>", "--address", f"node:{centre.door}"
    )
    assert 0 == added.code, added
    edge.send(10)
    await until(lambda: len(centre.handled) == 10 == len(edge.handled))
    assert edge.handled == centre.handled
