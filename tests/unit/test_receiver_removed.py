"""SEMANTICS 10: a receiver that hears of its removal begins nothing more of what it had.

What waited for it was settled as `removed`, and its senders were told so. One that was away then
hears of it when it comes back.
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
from msgservice.receiver.ways import Attachment
from tests.kit.nodes import NodeWorld
from tests.kit.receiver_world import World, results_of
from tests.unit.test_receiver_restored_log import Reached

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
    node = world.receiver.handling.nodes["node", "log.1"]
    assert (node.works, node.held_messages, node.held_bytes) == (0, 0, 0)
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
    world.until(lambda: not world.receiver.handling._calls)
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
    world.until(lambda: not world.receiver.handling._calls)
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
    world.until(lambda: not world.receiver.handling._calls)
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


# --- of one that was away


def cut(reached: Reached) -> None:
    """No connection reaches the node until it listens again."""
    reached.transport.listening.pop("node")
    for peer in list(reached.world.node.parts.connections.peers):
        assert peer.connection is not None
        peer.connection.abort()
    reached.world.settle(1)


@pytest.mark.parametrize("restarted", [False, True], ids=["", "node restarted"])
@pytest.mark.parametrize("way", ["paused", "cut"])
def test_10_a_receiver_that_was_away_when_it_was_removed_is_told_so_and_not_made_anew(
    way: str, restarted: bool
) -> None:
    slow = Slow()
    reached = Reached("attached", slow)
    node, attachment = reached.world.node, reached.receiver.ways[0]
    assert isinstance(attachment, Attachment)
    reached.send(b"1", b"2", b"3")
    assert slow.begun == [b"1"]
    if way == "paused":
        Deferred.fromCoroutine(node.pause_receiver("billing", True))
        reached.world.settle(1)
    else:
        cut(reached)
    assert not attachment.connected
    removed = results_of(Deferred.fromCoroutine(node.remove_receiver("billing")))
    reached.world.settle()
    assert removed == [3]
    if restarted:
        reached.stop()
        reached.start()
    elif way == "cut":
        reached.listen()
    reached.settle()
    assert attachment.is_over
    assert "removed" in attachment.error
    assert [*reached.world.node.parts.directory] == []
    slow.ends[0].callback(None)
    reached.settle()
    assert slow.begun == [b"1"]
    attachment.start()  # whoever asks has it made anew
    reached.settle()
    assert [row.name for row in reached.world.node.parts.directory] == ["billing"]
    reached.send(b"new")
    assert slow.begun == [b"1", b"new"]


def test_10_a_receiver_that_was_removed_and_made_again_while_it_was_away_gets_what_is_new() -> None:
    slow = Slow()
    reached = Reached("attached", slow)
    node = reached.world.node
    reached.send(b"1", b"2")
    cut(reached)
    Deferred.fromCoroutine(node.remove_receiver("billing"))
    reached.world.settle()
    Deferred.fromCoroutine(node.add_receiver("billing", ["a.>"]))
    reached.listen()
    reached.send(b"new")
    for end in slow.ends[:]:
        end.callback(None)
    reached.settle()
    assert slow.begun == [b"1", b"new"]


@pytest.mark.parametrize(
    ("known", "told"),
    [
        ("LOG.1", True),
        ("LOG.1.anepoch", True),
        ("LOG.2", False),  # another receiver's
        ("LOG.3", False),  # another's, which was removed too
        ("LOG.4", False),  # not given yet: this log was put back
        ("LOG.0", False),
        ("LOG.x", False),
        ("LOG.²", False),
        ("LOG", False),
        ("other.1", False),
        (None, False),
    ],
)
def test_10_only_a_receiver_that_the_node_has_removed_is_told_so(
    known: str | None, told: bool
) -> None:
    world = NodeWorld()
    receive: dict[str, Any] = {"subjects": ["a.>"]}
    world.peer("billing", receive=receive).connection.abort()
    world.peer("mail", receive=receive)
    world.peer("stock", receive=receive)
    for name in ("billing", "stock"):
        Deferred.fromCoroutine(world.node.remove_receiver(name))
    world.settle()
    if known is not None:
        known = known.replace("LOG", world.node.log_id)
    peer = world.peer("billing", receive={**receive, "known": known})
    world.settle()
    standing = [row.name for row in world.node.parts.directory]
    assert peer.node_hello is not None
    if told:
        assert peer.bye == (BYE_REMOVED, "removed")
        assert peer.node_hello.incarnation == known
        assert peer.lost_because is not None
        assert standing == ["mail"]
    else:
        assert peer.bye is None
        assert standing == ["mail", "billing"]
