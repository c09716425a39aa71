"""All receivers together hold no more than `loaded_bytes`, and each of them gets on."""

from __future__ import annotations

import pytest
from twisted.internet.defer import Deferred

from msgservice.core.frames import Transfer
from msgservice.message import Action
from msgservice.node.loaded_bytes import PARTS, RUN_OVERHEAD, LoadedBytes, Share
from msgservice.node.outlet import SHORT_AGAIN, UNLOAD_AFTER, Outlet
from tests.kit.limits import Limits
from tests.kit.nodes import NodeWorld, ScriptedPeer

LIMIT = 100_000
SIZE = 1_000
BATCH = 2 * SIZE + RUN_OVERHEAD  # at most, with what is around a message
COUNT = 200
BOTH = pytest.mark.parametrize("tail_bytes", [1, 1 << 24], ids=["of the log", "of the tail"])


class Lagging:
    """A backlog for each of some receivers, which read, and answer when told to."""

    def __init__(
        self, receivers: int, *, limit: int = LIMIT, tail_bytes: int = 1 << 24, count: int = COUNT
    ) -> None:
        limits = Limits(
            loaded_bytes=limit, tail_bytes=tail_bytes, window_messages=100, window_bytes=1 << 16
        )
        self.world = NodeWorld(limits)
        self.names = [f"r{number}" for number in range(receivers)]
        for name in self.names:
            self.attach(name).connection.abort()
        self.producer = self.world.peer("producer")
        self.stored = 0
        self.store(count)

    def store(self, count: int, lane: str = "orders.eu") -> None:
        for _ in range(count):
            self.stored += 1
            self.producer.transfer(self.stored, lane, [bytes(SIZE)])
            self.world.settle()

    def attach(self, name: str) -> ScriptedPeer:
        peer = self.world.peer(name, receive={"subjects": ["orders.>"]})
        self.world.settle()
        return peer

    def answer(self, peer: ScriptedPeer) -> int:
        """Acknowledge what was sent; return how many frames that were."""
        transfers = peer.take(Transfer)
        for transfer in transfers:
            peer.ack(transfer)
        return len(transfers)

    def outlet(self, name: str) -> Outlet:
        return next(one for one in self.world.node.parts.dispatch if one.name == name)

    @property
    def held(self) -> int:
        """What is loaded, counted anew."""
        backlogs = [one.backlog for one in self.world.node.parts.dispatch]
        return sum(one.open_bytes + RUN_OVERHEAD * one.open_runs for one in backlogs)

    @property
    def told(self) -> int:
        return self.world.node.parts.operations.info().loaded_bytes


@BOTH
def test_many_receivers_that_lag_hold_no_more_than_one_limit_and_a_batch_each(
    tail_bytes: int,
) -> None:
    lagging = Lagging(50, tail_bytes=tail_bytes)
    peers = [lagging.attach(name) for name in lagging.names]
    assert all(peer.take(Transfer) for peer in peers)
    assert LIMIT // 2 < lagging.held <= LIMIT + 50 * BATCH
    assert lagging.told == lagging.held


@BOTH
def test_all_of_them_get_everything_in_the_end(tail_bytes: int) -> None:
    lagging = Lagging(12, tail_bytes=tail_bytes)
    peers = [lagging.attach(name) for name in lagging.names]
    got = [0] * len(peers)
    for _ in range(COUNT):
        for at, peer in enumerate(peers):
            got[at] += lagging.answer(peer)
        lagging.world.settle()
        assert lagging.held <= LIMIT + len(peers) * BATCH
        assert lagging.held <= lagging.told
    assert [COUNT] * len(peers) == got
    assert (0, 0) == (lagging.held, lagging.told)


def test_those_that_answer_get_equal_parts_also_who_came_last() -> None:
    lagging = Lagging(6, count=600)
    peers = [lagging.attach(name) for name in lagging.names]
    for _ in range(2):
        got = [0] * len(peers)
        for _ in range(20):
            for at, peer in enumerate(peers):
                got[at] += lagging.answer(peer)
            lagging.world.settle()
        assert 100 < max(got) < 300, "none is through yet"
    assert max(got) < 1.5 * min(got)


def test_a_receiver_that_lags_alone_has_its_two_windows() -> None:
    lagging = Lagging(2, limit=10 * LIMIT)
    peer = lagging.attach("r0")
    assert 60 <= len(peer.take(Transfer)) <= 66  # window_bytes
    assert lagging.held > 125 * SIZE


@BOTH
def test_who_answers_goes_on_beside_any_number_that_do_not(tail_bytes: int) -> None:
    """A part is always there, and it is enough for several batches at once."""
    lagging = Lagging(20, limit=LIMIT * 100, tail_bytes=tail_bytes)
    loaded = lagging.world.node.parts.operations._loaded
    loaded.limit = LIMIT  # with parts of 10,000 bytes
    for name in lagging.names[1:]:
        lagging.attach(name)
    assert lagging.held > LIMIT - 2 * BATCH
    peer = lagging.attach("r0")
    rounds = 0
    while answered := lagging.answer(peer):
        rounds += 1
        assert answered >= 2
        lagging.world.settle(0.1)  # a page is followed by a rest: somebody has sent just now
    assert rounds <= COUNT // 2
    lagging.store(3)
    assert 3 == lagging.answer(peer)


def test_receivers_that_leave_make_room_at_once_where_it_is_short() -> None:
    lagging = Lagging(9)
    peers = [lagging.attach(name) for name in lagging.names]
    assert lagging.held > LIMIT // 2
    peers[0].connection.abort()
    lagging.world.settle()
    assert lagging.outlet("r0").backlog.idle, "it came first, and holds more than its part"
    for peer in peers[1:]:
        peer.connection.abort()
    lagging.world.settle()
    assert 0 < lagging.held < LIMIT // 2, "who has room keeps what it has for who comes back"
    lagging.world.settle(UNLOAD_AFTER)
    assert (0, 0) == (lagging.held, lagging.told)


def test_a_removed_receiver_holds_nothing() -> None:
    lagging = Lagging(1)
    lagging.attach("r0")
    assert lagging.told
    Deferred.fromCoroutine(lagging.world.node.remove_receiver("r0")).addErrback(lambda _: None)
    lagging.world.settle()
    assert 0 == lagging.told


def test_a_follower_that_answers_nothing_is_fed_within_the_limit() -> None:
    lagging = Lagging(1, count=0)
    peer = lagging.attach("r0")
    for _ in range(COUNT):
        lagging.store(1)
        assert lagging.held <= lagging.told <= LIMIT // 2 + BATCH
    got = 0
    while answered := lagging.answer(peer):
        got += answered
        lagging.world.settle()
    assert COUNT == got
    assert 0 == lagging.told


def test_who_holds_what_waits_alone_looks_for_room_again() -> None:
    """All that it has waits for another attempt: no answer of its own makes room."""
    lagging = Lagging(3, count=0)
    waits = lagging.attach("r0")
    lagging.store(20, "orders.bad")
    for transfer in waits.take(Transfer):
        waits.nack(transfer.sequence, transfer.sequence, Action.RETRY, 3_600_000, "busy")
    lagging.world.settle()
    outlet = lagging.outlet("r0")
    assert 20 == outlet.backlog.waiting.runs + outlet.backlog.behind.runs
    others = [lagging.attach(name) for name in lagging.names[1:]]
    lagging.store(COUNT)
    got = 0
    while answered := lagging.answer(waits):
        got += answered
        lagging.world.settle()
    assert got < COUNT
    assert f"loaded_bytes = {LIMIT}" in outlet.trouble
    for other in others:
        while lagging.answer(other):
            lagging.world.settle()
    assert [] == waits.take(Transfer)
    lagging.world.settle(SHORT_AGAIN)
    while answered := lagging.answer(waits):
        got += answered
        lagging.world.settle()
    assert COUNT == got
    assert "loaded_bytes" not in outlet.trouble


def test_the_least_part_of_a_receiver_does_not_depend_on_the_others() -> None:
    loaded = LoadedBytes(1_000_000)
    first, second = Share(loaded), Share(loaded)
    assert 500_000 == first.look(0)
    assert 0 >= first.look(500_000)
    assert 0 >= first.look(5_000_000)  # a batch may be large
    assert 1_000_000 // PARTS // 2 == second.look(0)
    assert 1 <= second.look(990)
    assert 1 > second.look(1_000)
    assert 5_001_000 == loaded.total
    first.look(0)
    second.look(0)
    assert 0 == loaded.total
