"""kill -9 of a real node at each named point of what becomes of a message (DELIVERY 38-49).

Between accepting, moving, expiring, cancelling, dead-lettering, requeueing, replaying and
retaining: the node is killed before the commit that has it, after that, and when all were told;
then it is started again. A producer with an outbox on disk and a receiver with an inbox on disk
live through all of that. In the end nothing is lost, nothing has happened twice past the inbox, no
final state has changed, and producers know what became of everything.
"""

from __future__ import annotations

import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor as installed_reactor
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread

from msgservice import (
    Client,
    Limits,
    Promise,
    PromiseOutcome,
    Receiver,
    Reject,
    Status,
    connect,
)
from msgservice.errors import MsgServiceError
from msgservice.waiters import Waiters
from tests.kit.logs import recounted
from tests.kit.nest import Forked
from tests.kit.ports import free_port
from tests.soak.points import NODE

ROOT = Path(__file__).parents[2]
reactor: Any = installed_reactor
pytestmark = pytest.mark.timeout(240)
LIMITS = Limits(link_delay_min=0.02, link_delay_max=0.1, stop_timeout=5, window_messages=32)
POINTS = ("before commit", "after commit", "told")
FINAL = {Status.ACKNOWLEDGED, Status.EXPIRED, Status.DEAD, Status.CANCELLED, Status.REMOVED}


class World:
    """A node that dies where it is told to, and a producer and a receiver that do not."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.address = f"tcp:127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None
        self.ended: Waiters[int] = Waiters()
        self.client: Client
        self.admin: Client
        self.receipts: dict[bytes, Any] = {}
        self.final: dict[bytes, dict[str, Status]] = {}  # what was told as final, when it was
        self.rejects = False
        self.waits: Deferred[None] | None = None  # what a handler waits for
        self._closing: list[Callable[[], Any]] = []

    async def open(self) -> None:
        """Connect, once the first node is there."""
        self.client = await connect(
            reactor, self.address, name="shop", limits=LIMITS, outbox=self.folder / "outbox.db"
        )
        self.admin = await connect(reactor, self.address, name="admin", limits=LIMITS)
        self._closing = [self.client.close, self.admin.close]

    def attach(
        self, name: str = "billing", worker: str = "", options: Any = None, **more: Any
    ) -> Receiver:
        """A receiver whose handler writes each body into its inbox, or rejects it.

        `worker`: which one of a receiver that several share.
        """

        def handle(message: Any, transaction: Any) -> None:
            if self.rejects:
                raise Reject("not now")
            transaction.execute("create table if not exists done(body)")
            transaction.execute("insert into done values (?)", (message.body,))

        inbox = self.folder / f"{worker or name}.db"
        receiver = Receiver(
            reactor, name=name, handler=handle, inbox=str(inbox), limits=LIMITS, **options or {}
        )
        receiver.attach(self.address, subjects=["s.>"], **more)
        self._closing.append(receiver.stop)
        return receiver

    def done(self, name: str = "billing") -> list[bytes]:
        """Return what the handler's effects say, once each time that it was handled."""
        with sqlite3.connect(self.folder / f"{name}.db") as db:
            if not db.execute("select 1 from sqlite_master where name = 'done'").fetchall():
                return []
            return [body for (body,) in db.execute("select body from done order by rowid")]

    async def lives(self, point: str, kind: str) -> None:
        """Start the node, which dies at the point, unless that is "never"."""
        command = [sys.executable, "-m", "tests.integration.points_child"]
        self.process = Forked(
            [*command, str(self.folder / "node"), str(self.port), point, kind],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert self.process.stdout is not None
        ready = await deferToThread(self.process.stdout.readline)
        may_be_before = kind in ("decide", "purge") or point in NODE  # see `died`
        assert ready == b"ready\n" or may_be_before
        self.ended = Waiters()
        waiting = deferToThread(self.process.wait, 200)
        waiting.addCallbacks(self.ended.fire, lambda _: None)
        if not self._closing:
            await self.open()
        await self.or_death(self.admin.when_connected())

    async def or_death(self, waiter: Deferred[Any]) -> None:
        """Wait for this, or for the end of the node: it may come by its point at any moment."""
        done: Deferred[None] = Deferred()
        first = lambda _: None if done.called else done.callback(None)  # noqa: E731
        waiter.addBoth(first)
        assert self.process is not None
        if self.process.poll() is None:
            self.ended.wait().addBoth(first)
            await done

    async def died(self) -> None:
        assert self.process is not None
        assert await deferToThread(self.process.wait, 100) == -signal.SIGKILL
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.note()

    async def dies(self) -> None:
        """Kill the node now."""
        assert self.process is not None
        self.process.kill()
        await self.died()

    def note(self) -> None:
        """No state that was told as final has become another."""
        for body, receipt in self.receipts.items():
            now = {name: state for name, state in receipt.statuses.items() if state in FINAL}
            before = self.final.get(body, {})
            assert before.items() <= now.items(), (body, before, now)
            self.final[body] = now

    async def send(self, subject: str, *bodies: bytes, **more: Any) -> None:
        """Hand over: it is in the outbox, whatever becomes of the node."""
        assert not set(bodies) & set(self.receipts)
        sending = [self.client.send(subject, body, **more) for body in bodies]
        for body, sent in zip(bodies, sending, strict=True):
            self.receipts[body] = await sent

    def ask(self, operation: str, **arguments: Any) -> Deferred[Any]:
        """Ask the node for something; the answer, or None where it died."""
        asked: Deferred[Any] = self.admin.request(f"$node.{operation}", arguments, timeout=10)
        return asked.addErrback(lambda failure: failure.trap(MsgServiceError) and None)

    def cancel(self, *bodies: bytes) -> None:
        """Ask for these not to be sent, be it that they were, or were cancelled before."""
        for body in bodies:
            cancelling = self.client.cancel(self.receipts[body])
            cancelling.addErrback(lambda failure: failure.trap(MsgServiceError) and None)

    async def settled(self, *bodies: bytes) -> dict[bytes, dict[str, Status]]:
        """Wait until all of these, or all there are, are settled, as their producer is told."""
        found = {body: await self.receipts[body].settled() for body in bodies or self.receipts}
        self.note()
        return found

    async def is_whole(self) -> None:
        """What the node has adds up."""
        await self.admin.when_connected()
        assert (await self.ask("audit"))["discrepancies"] == []
        for row in (await self.ask("receivers.list"))["receivers"]:
            assert row["unaccounted"] == 0, row
        assert await deferToThread(recounted, self.folder / "node") == []

    async def close(self) -> None:
        for close in reversed(self._closing):
            await close()
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            await deferToThread(self.process.wait, 60)
            assert self.process.stdout is not None
            self.process.stdout.close()


@pytest_twisted.async_yield_fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(tmp_path)
    try:
        yield world
    finally:
        await world.close()


def in_a_while(seconds: float) -> Deferred[None]:
    """Let so much time pass: something is due by then, or nearly."""
    waiter: Deferred[None] = Deferred()
    reactor.callLater(seconds, waiter.callback, None)
    return waiter


def bodies(kind: str, count: int, life: int) -> list[bytes]:
    return [f"{kind} {life} {number}".encode() for number in range(count)]


@pytest_twisted.ensureDeferred
async def test_43_delayed_messages_are_accepted_and_moved_once(world: World) -> None:
    for kind in ("accept delayed", "move due"):
        for at, point in enumerate(POINTS):
            await world.lives(point, kind)
            if kind == "accept delayed" and not at:
                await world.attach().when_connected()
            await world.send("s.a", *bodies(kind, 5, at), delay=0.4)
            await world.died()
    await world.lives("never", kind)
    found = await world.settled()
    assert [{"billing": Status.ACKNOWLEDGED}] * 30 == [*found.values()]
    assert sorted(world.receipts) == sorted(world.done())
    assert (await world.ask("delayed.list"))["delayed"] == []
    await world.is_whole()


@pytest_twisted.ensureDeferred
async def test_45_a_key_is_one_message_wherever_the_node_dies(world: World) -> None:
    """Two programs of one name hand in each, one of them again after every end of the node."""
    others: dict[bytes, Any] = {}
    delays: tuple[dict[str, Any], ...] = ({}, {"delay": 0.4})
    for delay in delays:
        for at, point in enumerate(POINTS):
            await world.lives(point, "key")
            if not others:
                await world.attach().when_connected()
                other = await connect(
                    reactor,
                    world.address,
                    name="shop",
                    limits=LIMITS,
                    outbox=world.folder / "other.db",
                )
                world._closing.append(other.close)
            body = b"paid %d %d" % (at, len(delay))
            key: dict[str, Any] = {"idempotency_key": body.decode()}
            await world.send("s.a", body, **key, **delay)
            others[body] = await other.send("s.a", body, **key, **delay)
            await world.died()
    await world.lives("never", "key")
    found = await world.settled()
    assert [{"billing": Status.ACKNOWLEDGED}] * 6 == [*found.values()]
    for body, receipt in others.items():
        assert {"billing": Status.ACKNOWLEDGED} == await receipt.settled()
        assert world.receipts[body].position == receipt.position
    assert sorted(others) == sorted(world.done())
    await world.is_whole()


@pytest_twisted.ensureDeferred
async def test_10_a_receiver_is_removed_with_all_that_waits_wherever_the_node_dies(
    world: World,
) -> None:
    for at, point in enumerate(POINTS):
        await world.lives(point, "remove")
        name = f"gone-{at}"
        await world.ask("receivers.add", name=name, subjects=["s.>"])
        sent = bodies(name, 5, at)
        await world.send("s.a", *sent)
        for body in sent:
            await world.receipts[body].accepted
        world.ask("receivers.remove", name=name, confirm=100)
        await world.died()
    await world.lives("never", "remove")
    for at in range(len(POINTS)):  # what was asked for and not stored is asked for again
        await world.ask("receivers.remove", name=f"gone-{at}", confirm=100)
    found = await world.settled()
    assert all({*states.values()} == {Status.REMOVED} for states in found.values()), found
    for at in range(len(POINTS)):
        assert f"gone-{at}" in found[b"gone-%d %d 0" % (at, at)]
    names = [row["name"] for row in (await world.ask("receivers.list"))["receivers"]]
    assert not any(name.startswith("gone") for name in names)
    await world.is_whole()


@pytest_twisted.ensureDeferred
async def test_49_what_is_cancelled_in_time_is_handled_by_nobody_and_all_else_is(
    world: World,
) -> None:
    """Each is cancelled at about the time when it is due: one of the two wins, and stays so."""
    for kind in ("cancel", "move due"):
        for at, point in enumerate(POINTS):
            await world.lives(point, kind)
            if kind == "cancel" and not at:
                await world.attach().when_connected()
            far, near = bodies(f"{kind} far", 2, at), bodies(f"{kind} near", 4, at)
            await world.send("s.a", *far, delay=3600)
            await world.send("s.a", *near, delay=0.5)
            for body in (*far, *near):
                await world.or_death(world.receipts[body].accepted)
            world.cancel(*far, near[0])
            await in_a_while(0.45)
            world.cancel(*near[1:3])
            await world.died()
    await world.lives("never", kind)
    world.cancel(*[body for body in world.receipts if b"far" in body])
    found = await world.settled()
    cancelled = [body for body, states in found.items() if "$delayed" in states]
    assert all(found[body] == {"$delayed": Status.CANCELLED} for body in cancelled)
    handled = [body for body in found if body not in cancelled]
    assert all(found[body] == {"billing": Status.ACKNOWLEDGED} for body in handled)
    assert sorted(handled) == sorted(world.done())
    assert {body for body in found if b"far" in body} <= {*cancelled}
    await world.is_whole()


@pytest_twisted.ensureDeferred
async def test_28_what_workers_share_reaches_one_of_them_and_each_at_most_once(
    world: World,
) -> None:
    """Before its answer is stored a message may go to another one after the end of the node."""
    shared = {"order": "none", "shared": True, "concurrency": 4}
    workers = ("one", "two")
    for at, point in enumerate(POINTS):
        await world.lives(point, "acknowledge")
        if not at:
            for name in workers:
                await world.attach("pool", name, shared).when_connected()
        await world.send("s.a", *bodies("share", 20, at))
        await world.died()
    await world.lives("never", "acknowledge")
    found = await world.settled()
    assert [{"pool": Status.ACKNOWLEDGED}] * 60 == [*found.values()]
    done = [world.done(name) for name in workers]
    for of_one in done:
        assert len(set(of_one)) == len(of_one)
    assert set(world.receipts) == {body for of_one in done for body in of_one}
    await world.is_whole()


@pytest_twisted.ensureDeferred
async def test_38_what_an_undo_has_cancelled_is_handled_by_nobody(world: World) -> None:
    for at, point in enumerate(POINTS):
        await world.lives(point, "purge")
        if not at:
            await world.ask("receivers.add", name="away", subjects=["s.>"])
        sent = bodies("undo", 6, at)
        await world.send("s.a", *sent)
        for body in sent:
            await world.receipts[body].accepted
        undoing = world.client.undo(world.receipts[sent[1]], count=3)
        undoing.addErrback(lambda failure: failure.trap(MsgServiceError) and None)
        await world.died()
    await world.lives("never", "purge")
    late = world.attach("away")
    await late.when_connected()
    found = await world.settled()
    cancelled = {body for body, states in found.items() if states["away"] is Status.CANCELLED}
    assert {b"undo %d %d" % (life, n) for life in (1, 2) for n in (1, 2, 3)} == cancelled
    assert sorted(world.receipts.keys() - cancelled) == sorted(world.done("away"))
    await world.is_whole()


@pytest_twisted.ensureDeferred
async def test_15_what_expires_is_told_so_once_and_delivered_to_nobody(world: World) -> None:
    for at, point in enumerate(POINTS):
        await world.lives(point, "expire")
        if not at:
            await world.attach().when_connected()
            await world.ask("receivers.add", name="away", subjects=["s.>"])
        await world.send("s.a", *bodies("expire", 5, at), ttl=2.0)
        await world.send("s.a", b"stays %d" % at)
        await world.died()
    await world.lives("never", "expire")
    late = world.attach("away")
    found = await world.settled()
    await late.when_connected()
    stays = [b"stays %d" % at for at in range(3)]
    done = world.done("away")
    assert stays == [body for body in done if body in stays]
    for body, states in found.items():
        # Those of a node that died at once may have come just now, with the rest of their time.
        assert states["away"] is (Status.ACKNOWLEDGED if body in done else Status.EXPIRED), body
    first = set(bodies("expire", 5, 0))
    assert not first & {*done}  # they were stored, and over, lives ago
    acknowledged = [b for b, states in found.items() if states["billing"] is Status.ACKNOWLEDGED]
    assert sorted(acknowledged) == sorted(world.done())
    await world.is_whole()


@pytest_twisted.ensureDeferred
async def test_46_dead_letters_are_sent_again_once(world: World) -> None:
    world.rejects = True
    for at, point in enumerate(POINTS):
        await world.lives(point, "dead letter")
        if not at:
            await world.attach().when_connected()
        await world.send("s.a", *bodies("dead", 4, at))
        await world.died()
    for at, point in enumerate(POINTS):
        await world.lives(point, "requeue")
        if not at:
            found = await world.settled()
            assert [{"billing": Status.DEAD}] * 12 == [*found.values()]
            world.rejects = False
        (first, *_) = (await world.ask("dead.list", receiver="billing"))["dead"]
        world.ask("dead.requeue", receiver="billing", of=str(first["position"]))
        await world.died()
    await world.lives("never", "requeue")
    left = (await world.ask("dead.list", receiver="billing"))["dead"]
    assert len(left) == 10  # those of the two commits have gone
    assert (await world.ask("dead.requeue", receiver="billing"))["count"] == 10
    await world.send("s.a", b"last")
    await world.settled(b"last")
    assert sorted(world.receipts) == sorted(world.done())
    assert (await world.ask("dead.list", receiver="billing"))["dead"] == []
    world.note()
    await world.is_whole()


@pytest_twisted.ensureDeferred
async def test_47_a_replay_is_whole_and_in_order_wherever_the_node_dies(world: World) -> None:
    """In the midst of it, and where its receiver becomes a member with the last page."""
    sent = [f"{number:03}".encode() * 40 for number in range(900)]
    await world.lives("before commit", "page")
    for at in range(0, len(sent), 30):
        await world.client.send_many("s.a", sent[at : at + 30])
    world.attach(start="first")
    await world.died()
    for kind, point in (("page", "after commit"), ("page", "told"), ("last page", "before commit")):
        await world.lives(point, kind)
        await world.died()
    await world.lives("after commit", "last page")
    await world.died()
    await world.lives("never", "page")
    await world.send("s.a", b"last")
    await world.settled()
    assert [*sent, b"last"] == world.done()
    await world.is_whole()


@pytest_twisted.ensureDeferred
async def test_48_the_last_one_is_retained_and_each_who_joins_has_it_once(world: World) -> None:
    for at, point in enumerate(POINTS):
        await world.lives(point, "retain")
        await world.send("s.a", b"value %d" % at, retain=True)
        await world.died()
    await world.lives("never", "retain")  # the last one may have been sent to nobody yet
    await world.receipts[b"value 2"].accepted
    await world.dies()
    receivers = []
    for at, point in enumerate(POINTS):
        await world.lives(point, "join")
        receivers.append(world.attach(f"joins-{at}"))
        await world.died()
    await world.lives("before commit", "retain")
    for receiver in receivers:
        await receiver.when_connected()
    await world.send("s.b", b"all are there")
    found = await world.settled(b"all are there")
    assert {f"joins-{at}" for at in range(3)} == {*found[b"all are there"]}
    for at in range(3):
        assert [b"value 2", b"all are there"] == world.done(f"joins-{at}")
    await world.client.send("s.a", b"", retain=True)  # it ends what is retained
    await world.died()
    await world.lives("never", "retain")
    await world.send("s.b", b"it has")
    await world.settled(b"it has")
    assert (await world.ask("retained.list"))["retained"] == []
    await world.is_whole()


@pytest_twisted.ensureDeferred
async def test_48_what_is_due_is_retained_once_it_has_its_place_wherever_the_node_dies(
    world: World,
) -> None:
    for at, point in enumerate(POINTS):
        await world.lives(point, "retain due")
        if not at:
            await world.attach().when_connected()
        await world.send("s.a", b"later %d" % at, delay=0.4, retain=True)
        await world.or_death(world.receipts[b"later %d" % at].accepted)
        await world.send("s.a", b"at once %d" % at, retain=True)
        await world.died()
    await world.lives("never", "retain due")
    found = await world.settled()
    assert [{"billing": Status.ACKNOWLEDGED}] * 6 == [*found.values()]
    assert sorted(world.receipts) == sorted(world.done())
    assert 3 == len([one for one in world.done() if one.startswith(b"later")])
    await world.attach("joins").when_connected()
    await world.send("s.b", b"it has")
    assert {"billing", "joins"} == {*(await world.settled(b"it has"))[b"it has"]}
    # By their numbers in the log, which are the order in which they came to who was there.
    last = [body for body in world.done() if body != b"it has"][-1]
    assert [last, b"it has"] == world.done("joins")
    assert (await world.ask("delayed.list"))["delayed"] == []
    await world.is_whole()


@pytest_twisted.ensureDeferred
async def test_49_a_purge_of_who_takes_its_messages_settles_each_in_one_way(world: World) -> None:
    for at, point in enumerate(POINTS):
        await world.lives(point, "purge")
        if not at:
            await world.attach().when_connected()
        sent = bodies("purge", 200, at)
        await world.send("s.a", *sent)
        assert world.process is not None
        while world.process.poll() is None:
            asked = await world.ask("receivers.purge", name="billing")
            if asked is not None and not asked["count"]:
                await world.send("s.a", *bodies(f"more {len(world.receipts)}", 200, at))
        await world.died()
    await world.lives("never", "purge")
    found = await world.settled()
    states = [state["billing"] for state in found.values()]
    assert {Status.ACKNOWLEDGED, Status.CANCELLED} == {*states}
    acknowledged = [b for b, state in found.items() if state["billing"] is Status.ACKNOWLEDGED]
    assert sorted(acknowledged) == sorted(world.done())
    await world.is_whole()


def decided_in(folder: Path) -> dict[int, tuple[int, int]]:
    """Return what the log says of promises: sequence -> how often it was decided, and how."""
    found: dict[int, tuple[int, int]] = {}
    copy = folder / "looked at"  # whoever closes the log's own file may write into it
    copy.mkdir(exist_ok=True)
    for name in ("log.db", "log.db-wal"):
        (copy / name).unlink(missing_ok=True)
        if (folder / "node" / name).exists():
            shutil.copy(folder / "node" / name, copy)
    with closing(sqlite3.connect(copy / "log.db")) as db:
        for first, last, status in db.execute(
            "select first, last, status from finished where receiver = -1"
        ):
            for sequence in range(first, last + 1):
                times, _ = found.get(sequence, (0, 0))
                found[sequence] = (times + 1, status)
    return found


@pytest_twisted.ensureDeferred
async def test_55_a_promise_is_decided_once_wherever_the_node_dies(world: World) -> None:
    """Some are kept by a receiver that is there, some broken, and some cancel what was not sent."""
    outcomes: dict[bytes, PromiseOutcome] = {}
    waiting: list[Deferred[None]] = []
    kept, broken, cancelling = (
        Promise(need="any", within=600),
        Promise(need=2, within=0.4),
        Promise(need=2, within=0.4, otherwise="cancel"),
    )

    def hear(body: bytes, receipt: Any) -> None:
        def heard(outcome: PromiseOutcome) -> None:
            assert body not in outcomes
            outcomes[body] = outcome

        waiting.append(receipt.promised().addCallback(heard))

    def told() -> dict[bytes, bool]:
        return {body: outcome.kept for body, outcome in outcomes.items()}

    before: dict[bytes, bool] = {}
    stored: dict[int, tuple[int, int]] = {}
    for kind in ("promise", "acknowledge", "purge", "decide"):
        for at, point in enumerate(POINTS):
            await world.lives(point, kind)
            if kind == "promise" and not at:
                await world.attach().when_connected()
                await world.ask("receivers.add", name="away", subjects=["s.>"])
            for name, promise in (("k", kept), ("b", broken), ("c", cancelling)):
                sent = bodies(f"{name} {kind}", 3, at)
                await world.send("s.a", *sent, promise=promise)
                for body in sent:
                    hear(body, world.receipts[body])
            await world.died()
            assert before.items() <= told().items()
            before = told()
            now = decided_in(world.folder)
            assert stored.items() <= now.items(), "what was decided stays so"
            stored = now
    await world.lives("never", kind)
    for waiter in waiting:
        await waiter
    assert before.items() <= told().items()
    assert {body: body.startswith(b"k") for body in world.receipts} == told()
    decided = decided_in(world.folder)
    assert {world.receipts[body].sequence for body in world.receipts} == decided.keys()
    assert {1} == {times for times, _ in decided.values()}
    # What is acknowledged later is told, and changes nothing.
    await world.attach("away").when_connected()
    found = await world.settled()
    for body, states in found.items():
        assert {*states.values()} <= {Status.ACKNOWLEDGED, Status.CANCELLED}
        assert body.startswith(b"c") or Status.CANCELLED not in states.values()
    cancelled = {body for body, states in found.items() if states["away"] is Status.CANCELLED}
    assert cancelled, "none was cancelled"
    for name in ("billing", "away"):
        handled = [body for body, states in found.items() if states[name] is Status.ACKNOWLEDGED]
        assert sorted(handled) == sorted(world.done(name))
    assert decided == decided_in(world.folder)
    await world.is_whole()
