"""What a sender that comes back is told of long ago: all of it, page by page (SEMANTICS 11)."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred, fail
from twisted.internet.task import Clock
from twisted.logger import LogEvent

from msgservice import Limits
from msgservice.connection import Connection
from msgservice.core.frames import Ack, Hello, Routed, Transfer
from msgservice.core.ranges import RangeSet
from msgservice.errors import LogUnavailable
from msgservice.log import history
from msgservice.log.memory import MemoryLog
from msgservice.message import Action, Status, decode_messages
from msgservice.transport import local
from msgservice.transport.local import LocalChannel
from tests.kit.nodes import NodeWorld, ScriptedPeer

ORDERS = {"subjects": ["orders.>"], "order": "none"}
KEEP_NOTHING = Limits(keep_seconds=0, keep_bytes=0)
COUNT = 400
RUN = 4000
MANY = 50 * RUN


class CountingLog:
    """A log that counts the pages asked of it."""

    def __init__(self, log: MemoryLog) -> None:
        self._log = log
        self.pages = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    def history(self, *arguments: Any) -> Deferred[Any]:
        self.pages += 1
        page: Deferred[Any] = self._log.history(*arguments)
        return page


class Deaf(ScriptedPeer):
    """Reads nothing from when its session is open."""

    def greeted(self, connection: Connection, hello: Hello) -> None:
        super().greeted(connection, hello)
        assert connection.channel is not None
        connection.channel.pause()


def world_with_a_past(monkeypatch: pytest.MonkeyPatch) -> tuple[NodeWorld, CountingLog]:
    """Of a shop's messages every second was dead; the log has let all of them go."""
    monkeypatch.setattr(history, "FINISHED_PAGE", 20)
    clock = Clock()
    log = CountingLog(MemoryLog(reactor=clock, limits=KEEP_NOTHING))
    world = NodeWorld(KEEP_NOTHING, log=log, clock=clock)
    shop = world.peer("shop", status_from=1)
    billing = world.peer("billing", receive=ORDERS)
    shop.transfer(1, "orders.new", [b"x"] * COUNT)
    world.settle()
    (transfer,) = billing.take(Transfer)
    first = transfer.sequence
    for n in range(0, COUNT, 2):
        billing.nack(first + n, first + n, Action.DEAD, reason="never")
    billing.connection.send(Ack([(first + n, first + n) for n in range(1, COUNT, 2)]))
    world.settle(5)
    shop.connection.abort()
    world.settle()
    assert world.log.room().used == log.dead_bytes(1) > 0  # dead letters, and nothing else
    log.pages = 0
    return world, log


def expected() -> dict[tuple[str, int], RangeSet]:
    return {
        ("billing", Status.DEAD): RangeSet((n, n) for n in range(1, COUNT, 2)),
        ("billing", Status.ACKNOWLEDGED): RangeSet((n, n) for n in range(2, COUNT + 1, 2)),
    }


def told(peer: ScriptedPeer) -> dict[tuple[str, int], RangeSet]:
    return {key: RangeSet(ranges) for key, ranges in peer.statuses().items()}


def test_11_a_history_of_many_pages_is_told_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    world, log = world_with_a_past(monkeypatch)
    shop = world.peer("shop", status_from=1)
    assert told(shop) == expected()
    assert log.pages > 10


def test_11_a_sender_that_does_not_read_is_told_no_more_than_it_has_room_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world, log = world_with_a_past(monkeypatch)
    monkeypatch.setattr(local, "BUFFER_MAX", 100)
    shop = world.peer("shop", status_from=1, kind=Deaf)
    for _ in range(10):
        world.settle()
    assert 0 < log.pages <= 3
    assert shop.connection.channel is not None
    shop.connection.channel.resume()
    for _ in range(50):
        world.settle()
    assert told(shop) == expected()


def test_10_receivers_removed_while_a_history_is_told_are_told_after_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world, log = world_with_a_past(monkeypatch)
    other = world.peer("other")
    other.transfer(1, "orders.old", [b"x"])
    for name in ("a", "b", "c"):
        world.peer(name, receive={"subjects": ["bills.>"]}).connection.abort()
    shop = world.peer("shop", status_from=1)
    shop.transfer(COUNT + 1, "bills.new", [b"x"])
    world.settle()
    told(shop)
    log.pages = 0
    for name in ("a", "b", "c"):
        Deferred.fromCoroutine(world.node.remove_receiver(name))
    for _ in range(10):
        world.settle()
    removed = {key: ranges for key, ranges in told(shop).items() if key[1] == Status.REMOVED}
    assert removed == {(n, Status.REMOVED): RangeSet([(401, 401)]) for n in ("a", "b", "c")}
    assert log.pages < 50  # of 20 or 21 each: once, and once more for all that came meanwhile


def test_11_a_sender_that_does_not_read_is_told_changes_from_the_log_when_it_reads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(local, "BUFFER_MAX", 64 * 1024)
    world = NodeWorld()
    shop = world.peer("shop", status_from=1, kind=Deaf)
    billing = world.peer("billing", receive=ORDERS)
    assert isinstance(shop.connection.channel, LocalChannel)
    for first in range(1, MANY, RUN):  # all of it now: who does not read is not read from later
        shop.transfer(first, "orders.new", [b"x"] * RUN)
        world.settle()
    assert shop.connection.channel.incoming_bytes < local.BUFFER_MAX
    queued = answered = 0
    while answered < MANY:
        transfers = billing.take(Transfer)
        assert transfers
        for transfer in transfers:
            count = len(decode_messages(transfer.messages))
            answered += count
            for odd in (0, 1):  # each other one: a state is a range of its own
                positions = range(transfer.sequence + odd, transfer.sequence + count, 2)
                billing.connection.send(Ack([(n, n) for n in positions]))
                world.settle()
        queued = max(queued, shop.connection.channel.incoming_bytes)
    assert local.BUFFER_MAX < queued < 2 * local.BUFFER_MAX
    shop.connection.channel.resume()
    for _ in range(10):
        world.settle()
    assert told(shop) == {("billing", Status.ACKNOWLEDGED): RangeSet([(1, MANY)])}
    assert RangeSet((one.first, one.last) for one in shop.take(Routed)) == RangeSet([(1, MANY)])


class UnreadableLog(CountingLog):
    """A log whose pages fail as long as `broken`."""

    broken = True

    def history(self, *arguments: Any) -> Deferred[Any]:
        page = super().history(*arguments)
        return fail(LogUnavailable("the disk says no")) if self.broken else page


def test_11_a_page_that_cannot_be_read_is_read_again_while_its_sender_is_there(
    monkeypatch: pytest.MonkeyPatch, logged_failures: list[LogEvent]
) -> None:
    world, log = world_with_a_past(monkeypatch)
    broken = UnreadableLog(log._log)
    monkeypatch.setattr(world.node.parts.tracker, "_log", broken)
    shop = world.peer("shop", status_from=1)
    assert broken.pages == 1
    world.clock.pump([0.5] * 240)
    assert 5 <= broken.pages <= 8  # after 1, 2, 4 ... seconds
    assert {} == told(shop)
    broken.broken = False
    world.clock.pump([0.5] * 120)
    world.settle()
    assert told(shop) == expected()
    assert shop.lost_because is None
    broken.broken = True
    other = world.peer("other", status_from=1)
    pages = broken.pages
    other.connection.abort()
    world.clock.pump([0.5] * 240)
    assert broken.pages == pages  # nobody is there to be told
    logged_failures.clear()
