"""Replays over real sockets and files: inboxes, and a node that is killed in the midst of one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor as installed_reactor
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread

from msgservice import Limits, Node, Receiver, connect
from msgservice.core.copies import REPLAY_OF
from tests.kit.nest import Forked
from tests.kit.ports import free_port

ROOT = Path(__file__).parents[2]
reactor: Any = installed_reactor
pytestmark = pytest.mark.timeout(120)
QUICK = Limits(link_delay_min=0.01, link_delay_max=0.05, stop_timeout=2.0)


class Taken:
    """What a handler got, and a wait for so many of it, begun before they come."""

    def __init__(self) -> None:
        self.messages: list[Any] = []
        self._wanted: list[tuple[int, Deferred[None]]] = []

    def until(self, count: int) -> Deferred[None]:
        waiter: Deferred[None] = Deferred()
        self._wanted.append((count, waiter))
        self._look()
        return waiter

    def add(self, message: Any) -> None:
        self.messages.append(message)
        self._look()

    def _look(self) -> None:
        for wanted in [one for one in self._wanted if one[0] <= len(self.messages)]:
            self._wanted.remove(wanted)
            wanted[1].callback(None)


@pytest_twisted.ensureDeferred
async def test_13_an_inbox_takes_a_replay_for_a_message_of_its_own(tmp_path: Path) -> None:
    listen = f"tcp:{free_port()}:interface=127.0.0.1"
    node = Node(reactor, tmp_path / "node", listen=[listen], limits=QUICK)
    node.startService()
    await node.when_ready()
    client = await connect(reactor, node.listeners[0], name="shop", limits=QUICK)
    receipts = await client.send_many("a.b", [b"1", b"2", b"3"])
    taken = Taken()

    def handle(message: Any, transaction: Any) -> None:
        transaction.execute("create table if not exists done(body)")
        transaction.execute("insert into done values (?)", (message.body,))
        reactor.callFromThread(taken.add, message)

    inbox = str(tmp_path / "inbox.db")
    receiver = Receiver(reactor, name="billing", handler=handle, inbox=inbox, limits=QUICK)
    history = taken.until(3)
    receiver.attach(node.listeners[0], subjects=["a.>"], start="first")
    await history
    # Until its history is over nothing is for it at once, and a receipt of that names nobody.
    while not await _has_no_replay(client, "billing"):
        pass
    live = taken.until(4)
    await (await client.send("a.b", b"4")).acknowledged()
    await live
    again = taken.until(5)
    position = taken.messages[3].position
    answer = await client.request(
        "$node.receivers.rewind", {"name": "billing", "first": position, "end": position}
    )
    assert answer["replay"]["first"] == position
    await again
    told = [(m.body, m.replay, m.headers.get(REPLAY_OF)) for m in taken.messages]
    first = receipts[0].position
    assert first is not None
    history_of = [(b"%d" % (n + 1), True, f"log:{first + n}") for n in range(3)]
    assert told == [*history_of, (b"4", False, None), (b"4", True, f"log:{position}")]
    assert taken.messages[3].identity == taken.messages[4].identity
    assert [m.sender for m in taken.messages] == ["shop"] * 5
    await receiver.stop()
    await client.close()
    await node.stopService()


async def _has_no_replay(client: Any, name: str) -> bool:
    replay = (await client.request("$node.receivers.replay", {"name": name}))["replay"]
    return replay is None or replay["over"]


class Child:
    """A node in a process of its own (`replay_child`)."""

    def __init__(self, folder: Path, port: int, point: str, count: int) -> None:
        command = [sys.executable, "-m", "tests.integration.replay_child"]
        self.process = Forked(
            [*command, str(folder), str(port), point, str(count)],
            cwd=ROOT,
            env={**os.environ},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"ready\n"

    def end(self) -> None:
        self.process.terminate()
        self.process.wait(30)
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.mark.parametrize("point", ["before commit", "after commit"])
@pytest.mark.parametrize("kind", ["rewind", "start"])
@pytest_twisted.ensureDeferred
async def test_47_kill_9_in_the_midst_of_a_replay_neither_repeats_nor_skips(
    kind: str, point: str, tmp_path: Path
) -> None:
    port = free_port()
    address = f"tcp:127.0.0.1:{port}"
    child = await deferToThread(Child, tmp_path / "node", port, point, 0)
    client = await connect(reactor, address, name="shop", limits=QUICK)
    taken, count = Taken(), 400
    receiver = Receiver(reactor, name="billing", handler=taken.add, limits=QUICK)
    had = 0
    if kind == "rewind":
        receiver.attach(address, subjects=["a.>"])
        await receiver.when_connected()
        had = count
    live = taken.until(had)
    bodies = [b"%d" % n * 100 for n in range(count)]
    for at in range(0, count, 40):
        await client.send_many("a.b", bodies[at : at + 40])
    await live
    await client.close()
    child.end()
    all_of_it = taken.until(had + count)
    for deaths in (1, 2, 4, 0):
        child = await deferToThread(Child, tmp_path / "node", port, point, deaths)
        client = await connect(reactor, address, name="admin", limits=QUICK)
        if deaths == 1 and kind == "start":
            receiver.attach(address, subjects=["a.>"], start="first")
        elif deaths == 1:
            asked = client.request("$node.receivers.rewind", {"name": "billing"})
            asked.addErrback(lambda _: None)  # it dies before it answers, or after
        if deaths:
            assert await deferToThread(child.process.wait, 60) == -signal.SIGKILL
            assert child.process.stdout is not None
            child.process.stdout.close()
        else:
            await all_of_it
            told = (await client.request("$node.receivers.replay", {"name": "billing"}))["replay"]
            assert (told["copied"], told["skipped"]) == (count, 0)
            assert (await client.request("$node.audit", {}))["discrepancies"] == []
        await client.close()
    copies = [message.body for message in taken.messages if message.replay]
    assert copies == bodies
    await receiver.stop()
    child.end()
