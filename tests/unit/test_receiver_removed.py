"""SEMANTICS 10: a receiver that hears of its removal begins nothing more of what it had.

What waited for it was settled as `removed`, and its senders were told so.
"""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from msgservice.core.frames import BYE_REMOVED
from msgservice.receiver.received import ReceivedMessage
from tests.kit.receiver_world import World

ORDERS = ["strict", "none"]


class Slow:
    """A handler whose calls end when a test says so."""

    def __init__(self) -> None:
        self.begun: list[bytes] = []
        self.ends: list[Deferred[None]] = []

    def __call__(self, messages: Any) -> Deferred[None]:
        some = messages if isinstance(messages, list) else [messages]
        self.begun += [one.body for one in some]
        self.ends.append(Deferred())
        return self.ends[-1]

    def end_all(self, world: World) -> None:
        while not all(end.called for end in self.ends):
            next(end for end in self.ends if not end.called).callback(None)
            world.run()


def remove(world: World) -> None:
    """An operator removes the receiver, and the node says so."""
    assert world.node.connection is not None
    world.node.connection.bye(BYE_REMOVED, "removed")
    world.run()
    assert world.attachment.is_over
    assert not world.attachment.connected


def offer(world: World) -> None:
    world.node.offer([b"1", b"2", b"3"], "a")
    world.node.offer([b"4"], "a")
    world.node.offer([b"5", b"6"], "b")
    world.run()


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("order", ORDERS)
def test_10_a_receiver_that_was_removed_begins_nothing_more_and_lets_end_what_runs(
    order: str, batch: bool
) -> None:
    slow = Slow()
    world = World(slow, order=order, batch=batch, concurrency=2)
    offer(world)
    begun = slow.begun[:]
    assert 2 <= len(begun) < 6
    remove(world)
    slow.end_all(world)
    world.run(60)
    assert slow.begun == begun
    sender = world.receiver.handling.senders["node", "log.1"]
    assert (sender.works, sender.held_messages, sender.held_bytes) == (0, 0, 0)
    world.stop()


@pytest.mark.parametrize("order", ORDERS)
def test_10_a_plain_handler_has_none_of_what_waits_for_its_turn_when_the_receiver_is_removed(
    order: str,
) -> None:
    world: World
    seen: list[bytes] = []

    def handle(message: ReceivedMessage) -> None:
        seen.append(message.body)
        world.clock.rightNow += 0.04
        if len(seen) == 20:  # what the node says comes between two turns
            assert world.node.connection is not None
            world.node.connection.bye(BYE_REMOVED, "removed")

    world = World(handle, order=order)
    world.node.offer([b"%d" % n for n in range(1000)])
    world.run()
    assert world.attachment.is_over
    assert len(seen) < 100
    world.run(60)
    assert len(seen) < 100


@pytest.mark.parametrize("order", ORDERS)
def test_10_a_thread_begins_nothing_more_once_the_receiver_is_removed(
    order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("msgservice.receiver.handling.threads.SLICE_SECONDS", 1e9)
    begun: list[bytes] = []
    has_begun, may_end = threading.Semaphore(0), threading.Event()

    def handle(message: ReceivedMessage) -> None:
        begun.append(message.body)
        has_begun.release()
        assert may_end.wait(60)

    world = World(handle, order=order, threads=2)
    offer(world)
    for _ in range(2):
        assert has_begun.acquire(timeout=60)
    remove(world)
    may_end.set()
    world.until(lambda: not world.receiver.handling.in_flight)
    world.stop()
    assert len(begun) == 2


def written(path: Path) -> list[bytes]:
    with sqlite3.connect(path) as db:
        rows = db.execute("select body from done order by n").fetchall()
    db.close()
    return [body for (body,) in rows]


TABLE = "create table if not exists done(body blob, n integer primary key)"


@pytest.mark.parametrize("order", ORDERS)
def test_10_what_waits_for_the_inbox_is_not_handled_once_the_receiver_is_removed(
    order: str, tmp_path: Path
) -> None:
    """A commit runs; what is handed in behind it waits in the file's own queue."""
    path = tmp_path / "inbox.db"

    def handle(message: ReceivedMessage, transaction: Any) -> None:
        transaction.execute(TABLE)
        transaction.execute("insert into done(body) values (?)", (message.body,))

    world = World(handle, order=order, inbox=path, attach=False)
    world.attachment = world.attach(world.node)
    world.until(lambda: world.attachment.connected)
    world.node.offer([b"1"])
    world.node.offer([b"2"])
    world.node.offer([b"3", b"4"])
    world.run()
    remove(world)
    world.until(lambda: not world.receiver.handling.in_flight)
    world.run(60)
    world.stop()
    assert written(path) == [b"1"]


@pytest.mark.parametrize("order", ORDERS)
def test_10_what_was_computed_is_written_and_nothing_more_is_begun_of_a_removed_receiver(
    order: str, tmp_path: Path
) -> None:
    path = tmp_path / "inbox.db"
    slow = Slow()

    def handle(message: ReceivedMessage) -> Deferred[Any]:
        writes = [TABLE, ("insert into done(body) values (?)", (message.body,))]
        return slow(message).addCallback(lambda _: writes)

    world = World(handle, order=order, inbox=path, concurrency=2, attach=False)
    world.attachment = world.attach(world.node)
    world.until(lambda: world.attachment.connected)
    offer(world)
    begun = slow.begun[:]
    assert len(begun) == 2
    remove(world)
    slow.end_all(world)
    world.until(lambda: not world.receiver.handling.in_flight)
    world.stop()
    assert slow.begun == begun
    assert sorted(written(path)) == sorted(begun)


@pytest.mark.parametrize("order", ORDERS)
def test_10_a_removed_receiver_that_is_started_again_goes_on_with_what_is_new(order: str) -> None:
    """The node makes it anew: another number, whose lanes wait for what still runs."""
    slow = Slow()
    world = World(slow, order=order, concurrency=3)
    world.node.offer([b"1", b"2"])
    world.run()
    begun = slow.begun[:]
    remove(world)
    node = world.node
    node.incarnation, node.backlog = "log.2", type(node)(world.clock, order=order).backlog
    world.attachment.start()
    world.run(1)
    node.offer([b"new"])
    world.run()
    slow.end_all(world)
    assert slow.begun == [*begun, b"new"]
    assert node.backlog.cursor == 1
    world.stop()
