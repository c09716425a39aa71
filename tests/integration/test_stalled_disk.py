"""A disk that stands still for a while: nothing is lost, and nobody healthy is cut.

In the midst of a commit, of a checkpoint, or of a page that is read; once, or again and again.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.logger import LogEvent

from msgservice import Client, Message, Receipt, Receiver, connect
from msgservice.limits import Limits
from msgservice.log.inline import PAUSE_FACTOR, VARIABLE
from tests.integration.daemon import Daemon, running
from tests.integration.stalling_child import AGAIN_SECONDS, GO_ON, STALL

CHILD = ("-m", "tests.integration.stalling_child")
ROOT = Path(__file__).resolve().parents[2]
ENDS = ("connection-failed", "peer-error")
# Of those at the other end: by what they have said, the node takes them for gone after 1.75 s,
# after 5 s, and later than any disk stands still here.
IMPATIENT = Limits(heartbeat=0.7)
MARGINS = (IMPATIENT, Limits(heartbeat=2.0), Limits())
AROUND = 20  # messages before the one that stalls, and as many with it
SIZE = 1000  # bytes of a message: those are more than a checkpoint comes behind
MODES = ("auto", "on", "off")
# The thread has a group whenever it has something else to do: retention comes once a second. By
# itself the node may also leave any to it, for other commits were slow.
WRITTEN = {"on": "reactor|writer", "off": "writer", "auto": "reactor|writer"}


class Stage:
    """A node on such a disk, and peers with heartbeats of all kinds, over TCP and UDP."""

    def __init__(self, daemon: Daemon, address: str, datagrams: str) -> None:
        self.daemon = daemon
        self.address = address
        self.datagrams = datagrams
        self.taken: dict[str, list[bytes]] = {}
        self.sent: list[bytes] = []
        self.receivers: dict[str, Receiver] = {}
        self.clients: list[Client] = []
        self.shop: Client

    async def attach(self, name: str, address: str, limits: Limits) -> None:
        from twisted.internet import reactor

        bodies = self.taken.setdefault(name, [])

        def handle(message: Message) -> None:
            bodies.append(bytes(message.body))

        receiver = Receiver(reactor, name=name, handler=handle, limits=limits)
        receiver.attach(address, subjects=["jobs.>"])
        self.receivers[name] = receiver
        while not receiver.connected:
            await deferLater(reactor, 0.01)

    async def gather(self) -> None:
        """Have everybody there; the first of these sends."""
        from twisted.internet import reactor

        for place, limits in enumerate(MARGINS):
            await self.attach(f"taker{place}", self.address, limits)
            client = await connect(reactor, self.address, name=f"shop{place}", limits=limits)
            self.clients.append(client)
        await self.attach("datagrams", self.datagrams, IMPATIENT)
        self.shop = self.clients[0]

    def body(self, word: bytes = b"") -> bytes:
        self.sent.append(b"%03d %s" % (len(self.sent), word.ljust(SIZE, b".")))
        return self.sent[-1]

    async def stalled(self, where: str) -> float:
        """Wait until the disk stands still, on such a thread; return when that was."""
        found = await deferToThread(self.daemon.wait_for, rf"stalled (?:{where}) ([\d.]+)")
        return float(found[1])

    async def end(self) -> None:
        """Everybody has all, in order, and leaves; so does the node."""
        assert dict.fromkeys(self.receivers, self.sent) == self.taken
        for client in self.clients:
            await client.close()
        for receiver in self.receivers.values():
            await receiver.stop()
        assert 0 == self.daemon.stop(), self.daemon.said
        # Neither side took the other for gone: no connection has ended but by a goodbye.
        assert "nothing heard" not in self.daemon.said, self.daemon.said


@contextmanager
def staged(folder: Path, how: str, place: str, heartbeat: float = 20.0) -> Iterator[Stage]:
    environment = {VARIABLE: how, "PYTHONPATH": str(ROOT)}
    command = (sys.executable, *CHILD, str(folder / "data"), place, str(heartbeat))
    with running(*command, cwd=folder, environment=environment) as daemon:
        address = f"tcp:127.0.0.1:{daemon.ports()[0]}"
        yield Stage(daemon, address, daemon.wait_for(r"and on (udp:\S+)")[1])


@pytest.fixture(autouse=True)
def nobody_is_cut(logged: list[LogEvent]) -> Iterator[None]:
    yield
    assert [] == [event for event in logged if event.get("line") in ENDS]


@pytest.mark.parametrize("place", ["commit", "checkpoint"])
@pytest.mark.parametrize("how", MODES)
@pytest_twisted.ensureDeferred
async def test_a_disk_that_stands_still_breaks_no_promise_and_cuts_nobody(
    how: str, place: str, tmp_path: Path
) -> None:
    with staged(tmp_path, how, place) as stage:
        await stage.gather()
        send = stage.shop.send
        receipts = [await send("jobs.new", stage.body()) for _ in range(AROUND)]
        stalled = send("jobs.new", stage.body(STALL))
        if place == "commit":
            await stage.stalled(WRITTEN[how])
        # While its group is written, or the write-ahead log is folded in, the rest comes.
        rest = [send("jobs.new", stage.body()) for _ in range(AROUND)]
        if place == "checkpoint":
            await stage.stalled("writer")
        rest += [send("jobs.new", stage.body()) for _ in range(AROUND)]
        receipts += [await stalled, *await gatherResults(rest)]
        for receipt in receipts:
            await receipt.acknowledged()
        await stage.end()


@pytest.mark.parametrize("how", MODES)
@pytest_twisted.ensureDeferred
async def test_a_page_that_is_not_read_holds_up_nobody_but_whom_it_is_for(
    how: str, tmp_path: Path
) -> None:
    with staged(tmp_path, how, "reader") as stage:
        await stage.attach("late", stage.address, IMPATIENT)
        await stage.receivers.pop("late").stop()
        await stage.gather()
        send = stage.shop.send
        receipts = [await send("jobs.new", stage.body()) for _ in range(AROUND)]
        receipts.append(await send("jobs.new", stage.body(STALL)))
        late = Deferred.fromCoroutine(stage.attach("late", stage.address, IMPATIENT))
        await stage.stalled("reader")
        await late
        receipts += [await send("jobs.new", stage.body()) for _ in range(AROUND)]
        for receipt in receipts:
            for name in stage.receivers.keys() - {"late"}:
                await receipt.acknowledged(name)
        assert [] == stage.taken["late"]
        (tmp_path / GO_ON).touch()
        for receipt in receipts:
            await receipt.acknowledged()
        await stage.end()


@pytest_twisted.ensureDeferred
async def test_a_node_that_is_to_be_heard_often_waits_for_no_disk_on_its_reactors_thread(
    tmp_path: Path,
) -> None:
    # By what it says of itself, those who hear nothing of it for 2.5 s take it for gone.
    with staged(tmp_path, "auto", "commit", heartbeat=1.0) as stage:
        await stage.gather()
        receipts = [await stage.shop.send("jobs.new", stage.body()) for _ in range(AROUND)]
        stalled = stage.shop.send("jobs.new", stage.body(STALL))
        await stage.stalled("writer")
        for receipt in [*receipts, await stalled]:
            await receipt.acknowledged()
        await stage.end()


@pytest.mark.parametrize("how", MODES)
@pytest_twisted.ensureDeferred
async def test_a_disk_that_stands_still_again_and_again_holds_the_reactor_up_once_in_a_while(
    how: str, tmp_path: Path
) -> None:
    with staged(tmp_path, how, "commits") as stage:
        await stage.gather()
        receipts: list[Receipt] = []
        on_reactor: list[float] = []
        while len(receipts) < AROUND // 2 or (how == "on" and len(on_reactor) < AROUND // 4):
            sent = stage.shop.send("jobs.new", stage.body(STALL))
            found = await deferToThread(stage.daemon.wait_for, r"stalled (\w+) ([\d.]+)")
            if found[1] == "reactor":
                on_reactor.append(float(found[2]))
            receipts.append(await sent)
        for receipt in receipts:
            await receipt.acknowledged()
        if how == "auto":
            # After each of these all goes to the thread: by the node's own clock, for so long.
            pause = PAUSE_FACTOR * AGAIN_SECONDS
            assert all(pause <= later - one for one, later in pairwise(on_reactor)), on_reactor
        elif how == "off":
            assert [] == on_reactor
        await stage.end()
