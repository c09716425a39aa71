"""What a paused receiver says it has taken counts, whatever of it is loaded.

Its RESUME comes with each try; it gets nothing all the same.
"""

from __future__ import annotations

import pytest
from twisted.internet.defer import Deferred, fail
from twisted.internet.task import Clock
from twisted.logger import LogEvent

from msgservice import Limits
from msgservice.core.frames import Transfer
from msgservice.core.ranges import RangeSet
from msgservice.errors import LogUnavailable
from msgservice.log.memory import MemoryLog
from msgservice.message import Status
from msgservice.node.outlet import UNLOAD_AFTER
from msgservice.node.supply import Supply
from msgservice.records import Batch, Resume
from tests.kit.nodes import LateLog, NodeWorld

ORDERS = {"subjects": ["orders.>"]}


class PausedAfterAll:
    """A paused receiver that has taken the first and the third of four runs, of which it was sent
    three, and has answered none; nothing of them is loaded any more, or in the tail.
    """

    def __init__(self, *, restarted: bool = False, tail_bytes: int = 1) -> None:
        clock = Clock()
        limits = Limits(tail_bytes=tail_bytes, window_messages=3)
        self.log = LateLog(MemoryLog(reactor=clock, limits=limits))
        self.world = world = NodeWorld(limits, log=self.log, clock=clock)
        self.shop = world.peer("shop", status_from=1)
        billing = world.peer("billing", receive=ORDERS)
        for sequence in range(1, 5):
            self.shop.transfer(sequence, f"orders.{sequence}", [b"%d" % sequence])
            world.settle()
        self.sent = [transfer.sequence for transfer in billing.take(Transfer)]
        assert len(self.sent) == 3
        assert self.shop.request("$node.receivers.pause", {"name": "billing"})[0]
        billing.connection.abort()
        if restarted:
            world.node.stopService()
            world.settle(limits.stop_timeout + 1)
            world.start()
            self.shop = world.peer("shop", status_from=1)
        world.settle(UNLOAD_AFTER + 1)
        self.shop = world.peer("shop", status_from=1)
        self.outlet = world.node.parts.dispatch.outlets[1]
        assert self.outlet.backlog.loaded_to == self.outlet.backlog.cursor

    def says_it_has_taken(self, *taken: int) -> None:
        ranges = tuple((self.sent[n], self.sent[n]) for n in taken)
        peer = self.world.peer("billing", receive={}, resume=Resume(1, ranges))
        assert (peer.bye, peer.bodies()) == (None, [])
        peer.connection.abort()


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("tail_bytes", [1, 1 << 20])
def test_what_a_paused_receiver_has_taken_counts_also_when_nothing_is_loaded(
    restarted: bool, tail_bytes: int
) -> None:
    paused = PausedAfterAll(restarted=restarted, tail_bytes=tail_bytes)
    paused.says_it_has_taken(0, 2)
    paused.world.settle(1)
    statuses = paused.shop.statuses()
    assert RangeSet(statuses.pop(("billing", Status.ACKNOWLEDGED))).within(1, 9) == [(1, 1), (3, 3)]
    assert statuses == {}
    assert paused.outlet.backlog.idle  # what it was loaded for is settled
    assert paused.shop.request("$node.receivers.remove", {"name": "billing", "confirm": 2})[0]
    paused.world.settle(1)
    states = world_states(paused.world)
    assert states == {
        ("billing", Status.ACKNOWLEDGED): [(1, 1), (3, 3)],
        ("billing", Status.REMOVED): [(2, 2), (4, 4)],
    }


def world_states(world: NodeWorld) -> dict[tuple[str, int], list[tuple[int, int]]]:
    """All states, as a producer is told them that comes back."""
    found = world.peer("shop", status_from=1).statuses()
    return {state: list(RangeSet(ranges)) for state, ranges in found.items()}


def test_a_removal_waits_for_what_a_paused_receiver_has_just_said_it_has_taken() -> None:
    paused = PausedAfterAll()
    paused.log.is_late = True
    paused.says_it_has_taken(0, 1, 2)
    told: list[int] = []
    removing = Deferred.fromCoroutine(paused.world.node.remove_receiver("billing"))
    removing.addCallback(told.append)
    paused.world.settle(1)
    assert told == []
    paused.log.go_on()
    paused.world.settle(1)
    assert told == [4]  # that waited when it was asked for
    assert world_states(paused.world) == {
        ("billing", Status.ACKNOWLEDGED): [(1, 3)],
        ("billing", Status.REMOVED): [(4, 4)],
    }


def test_a_paused_receiver_that_goes_on_while_the_log_is_read_for_it_gets_the_rest() -> None:
    paused = PausedAfterAll()
    paused.log.is_late = True
    paused.says_it_has_taken(0)
    paused.says_it_has_taken(0, 1)
    assert paused.shop.request("$node.receivers.resume", {"name": "billing"})[0]
    ranges = ((paused.sent[0], paused.sent[1]),)
    billing = paused.world.peer("billing", receive={}, resume=Resume(1, ranges))
    assert billing.bodies() == []
    paused.log.go_on()
    paused.world.settle(1)
    assert billing.bodies() == [b"3", b"4"]


def test_a_page_that_cannot_be_read_for_a_paused_receiver_is_read_when_it_comes_again(
    logged_failures: list[LogEvent],
) -> None:
    paused = PausedAfterAll()
    read, paused.log.read = paused.log.read, lambda *_: fail(LogUnavailable("no"))  # type: ignore[method-assign]  # a test's fault
    paused.says_it_has_taken(0)
    assert len(logged_failures) == 1
    logged_failures.clear()
    paused.log.read = read  # type: ignore[method-assign]  # as it was
    paused.says_it_has_taken(0)
    assert paused.shop.statuses() == {("billing", Status.ACKNOWLEDGED): [(1, 1)]}


def test_for_a_paused_receiver_no_more_is_loaded_than_for_a_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However far it says to have taken; and no page behind that."""
    paused = PausedAfterAll(tail_bytes=1 << 20)
    loaded: list[int] = []

    def load(supply: Supply, batch: Batch) -> None:
        loaded.append(batch.number)
        original(supply, batch)

    original = Supply.load
    monkeypatch.setattr(Supply, "load", load)
    for sequence in range(5, 50):
        paused.shop.transfer(sequence, "orders.x", [b"x"])
    paused.world.settle()
    top = paused.world.node.parts.tail.next_number - 1 << 16
    paused.world.peer("billing", receive={}, resume=Resume(1, ((top, top),)))
    assert loaded == [1, 2, 3]  # the window of the node for it
    assert paused.outlet.backlog.open_runs == 0
    loaded.clear()
    paused.says_it_has_taken(0)
    assert loaded == [1, 2, 3]  # one page: there would be room for another
