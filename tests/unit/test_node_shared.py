"""Shared receivers (52): several connections of one name, each message to one of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from msgservice import Receiver
from msgservice.core.frames import BYE_REPLACED, Ack, Transfer
from msgservice.core.inbox import Inbox
from msgservice.core.marks import Marks
from msgservice.core.shared import SharedFlight
from msgservice.limits import Limits
from msgservice.message import Action, Status, WireMessage, decode_messages, encode_messages
from msgservice.records import Resume
from tests.kit.nodes import NodeWorld, ScriptedPeer, state_of

ORDERS: dict[str, Any] = {"subjects": ["orders.>"], "order": "none", "shared": True}


def worker(world: NodeWorld, incarnation: str, window: int = 4, **more: Any) -> ScriptedPeer:
    return world.peer(
        "pool", incarnation=incarnation, receive=ORDERS, window=(window, 1 << 20), **more
    )


def send(shop: ScriptedPeer, first: int, bodies: Sequence[bytes]) -> None:
    shop.transfer(first, "orders.new", list(bodies))
    shop.world.settle()


def test_28_each_message_goes_to_the_worker_that_has_most_room() -> None:
    world = NodeWorld()
    shop = world.peer("shop", status_from=1)
    small, large = worker(world, "a", window=2), worker(world, "b", window=6)
    for n in range(1, 6):
        send(shop, n, [b"%d" % n])
    had, of_small = large.bodies(), small.bodies()
    assert [b"1", b"2", b"3", b"4"] == had[:4]  # 6, 5, 4, 3 free, against 2
    assert 5 == len(had + of_small)
    send(shop, 6, [b"%d" % n for n in range(6, 20)])
    assert [2, 6] == [len(of_small + small.bodies()), len(had + large.bodies())]  # and no more


def test_52_a_run_is_cut_to_what_is_free_and_after_says_no_more_than_the_sequence() -> None:
    world = NodeWorld()
    shop = world.peer("shop")
    a, b = worker(world, "a"), worker(world, "b")
    send(shop, 1, [b"0"])
    send(shop, 2, [b"%d" % n for n in range(1, 20)])
    found = [a.take(Transfer), b.take(Transfer)]
    assert all(one.after is None for frames in found for one in frames)
    counts = [sum(len(_messages(one)) for one in frames) for frames in found]
    assert [4, 4] == counts
    for one in found[0]:
        a.ack(one)
    world.settle()
    assert 4 == sum(len(_messages(one)) for one in a.take(Transfer))
    assert [] == b.take(Transfer)


def _messages(frame: Transfer) -> list[Any]:
    return list(decode_messages(frame.messages))


def test_28_what_a_worker_had_when_it_died_goes_to_the_others_at_once() -> None:
    world = NodeWorld()
    shop = world.peer("shop", status_from=1)
    a, b = worker(world, "a"), worker(world, "b")
    send(shop, 1, [b"%d" % n for n in range(8)])
    lost = a.bodies()
    assert 4 == len(lost)
    for one in b.take(Transfer):
        b.ack(one)
    world.settle()
    b.frames.clear()
    a.connection.abort()
    world.settle()
    for _ in range(8):
        for one in b.take(Transfer):
            lost = [body for body in lost if body not in [m.body for m in _messages(one)]]
            b.ack(one)
        world.settle()
    assert [] == lost
    told = shop.statuses()["pool", Status.ACKNOWLEDGED]
    assert list(range(1, 9)) == sorted(n for low, high in told for n in range(low, high + 1))
    assert 1 == state_of(world, "pool").workers


def test_52_a_late_answer_to_what_another_has_is_dropped() -> None:
    world = NodeWorld()
    shop = world.peer("shop", status_from=1)
    a = worker(world, "a", window=1)
    send(shop, 1, [b"one"])
    (transfer,) = a.take(Transfer)
    a.nack(transfer.sequence, transfer.sequence, int(Action.LATER), 20, "later")
    world.settle()
    b = worker(world, "b", window=2)
    world.settle(0.1)
    (given,) = b.take(Transfer)  # it was due, and b has more room
    assert [] == a.bodies()
    a.nack(transfer.sequence, transfer.sequence, int(Action.DEAD), 0, "no")
    a.ack(transfer)
    world.settle()
    assert a.lost_because is None
    (outlet,) = world.node.parts.dispatch
    assert 1 == outlet.backlog.in_flight.messages
    b.ack(given)
    world.settle(0.1)
    assert [(1, 1)] == shop.statuses()["pool", Status.ACKNOWLEDGED]
    a.connection.send(Ack([(transfer.sequence, transfer.sequence)]))
    world.settle()
    assert a.lost_because is None
    a.connection.send(Ack([(transfer.sequence + 5, transfer.sequence + 5)]))
    world.settle()
    assert a.lost_because is not None  # that was never sent: a fault, as anywhere


def test_28_the_newest_connection_of_one_incarnation_wins_and_others_stay() -> None:
    world = NodeWorld()
    shop = world.peer("shop")
    a, b = worker(world, "a"), worker(world, "b")
    again = worker(world, "a")
    assert a.bye is not None
    assert a.bye[0] == BYE_REPLACED
    assert b.bye is None
    assert 2 == state_of(world, "pool").workers
    send(shop, 1, [b"%d" % n for n in range(8)])
    assert [4, 4] == [len(peer.bodies()) for peer in (again, b)]
    assert [] == a.bodies()


def test_52_what_is_too_large_for_one_worker_goes_to_another_that_takes_it() -> None:
    world = NodeWorld()
    shop = world.peer("shop", status_from=1)
    small = worker(world, "a", window=8, max_batch=65_536)
    large = worker(world, "b", window=2, max_batch=1 << 20)
    send(shop, 1, [b"x" * 100_000])
    send(shop, 2, [b"1", b"2"])
    assert [b"1", b"2"] == small.bodies()
    assert [100_000] == [len(body) for body in large.bodies()]
    send(shop, 4, [b"y" * 100_000])
    send(shop, 5, [b"z" * 100_000])  # for this one there is no room
    frames = large.take(Transfer)
    assert [b"y" * 100_000] == [m.body for one in frames for m in _messages(one)]
    (outlet,) = world.node.parts.dispatch
    assert "waits: a message of" in outlet.trouble
    large.ack(frames[0])
    world.settle()
    assert [b"z" * 100_000] == large.bodies()
    assert not outlet.trouble
    large.connection.abort()
    world.settle()
    assert [] == small.bodies()
    assert "waits: a message of" in outlet.trouble  # nobody takes it
    worker(world, "c", window=4, max_batch=1 << 20, answering=True)
    world.settle(1)
    assert not outlet.trouble
    told = shop.statuses()["pool", Status.ACKNOWLEDGED]
    assert {1, 4, 5} <= {n for low, high in told for n in range(low, high + 1)}


def test_52_an_answer_asks_not_all_workers_whether_they_have_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = NodeWorld()
    shop = world.peer("shop", status_from=1)
    pool = [worker(world, f"w{n}", window=2) for n in range(60)]
    send(shop, 1, [b"x"] * 300)
    held = {peer: peer.take(Transfer) for peer in pool}
    assert {2} == {sum(len(_messages(one)) for one in frames) for frames in held.values()}
    asked: list[SharedFlight] = []
    taken = SharedFlight.take_transfers

    def take_transfers(self: SharedFlight, *given: Any, **how: Any) -> list[Transfer]:
        asked.append(self)
        return taken(self, *given, **how)

    monkeypatch.setattr(SharedFlight, "take_transfers", take_transfers)
    for peer in pool[:10]:
        for one in held[peer]:
            peer.ack(one)
        world.settle()
        assert sum(len(_messages(one)) for one in peer.take(Transfer)) == 2
    assert len(asked) <= 10 * 5


def test_52_a_view_has_the_workers_of_a_receiver_and_how_it_is() -> None:
    world = NodeWorld()
    shop = world.peer("shop")
    a, _ = worker(world, "a"), worker(world, "b")
    (outlet,) = world.node.parts.dispatch

    def seen() -> tuple[Any, ...]:
        row = world.node.parts.operations.row(outlet.row, outlet.connection is not None)
        assert row is not None
        return row.connected, row.workers, row.health

    assert (True, 2, "up") == seen()
    send(shop, 1, [b"1"])
    (transfer,) = a.take(Transfer)
    a.nack(transfer.sequence, transfer.sequence, int(Action.RETRY), 60_000, "no")
    world.settle()
    assert (True, 2, "failing") == seen()
    a.connection.abort()
    world.settle()
    assert (True, 1, "failing") == seen()
    (ok, _) = shop.request("$node.receivers.pause", {"name": "pool"})
    assert ok
    world.settle(1)
    assert (False, 0, "paused") == seen()


@pytest.mark.parametrize("shared", [True, False])
def test_52_shared_against_unshared_is_refused_both_ways(*, shared: bool) -> None:
    world = NodeWorld()
    first = world.peer("pool", incarnation="a", receive=ORDERS | {"shared": shared})
    other = world.peer("pool", incarnation="b", receive=ORDERS | {"shared": not shared})
    assert other.lost_because is not None
    assert "shared" in other.lost_because
    assert first.lost_because is None
    assert first.bye is None


def test_52_shared_keeps_no_order() -> None:
    world = NodeWorld()
    refused = world.peer("pool", receive={"subjects": ["a"], "order": "strict", "shared": True})
    assert refused.lost_because is not None
    worker(world, "a")
    changed = world.peer(
        "pool", incarnation="b", receive={"subjects": ["a"], "order": "strict", "shared": True}
    )
    assert changed.lost_because is not None
    shop = world.peer("shop")
    said, error = shop.request("$node.receivers.change", {"name": "pool", "order": "strict"})
    assert not said
    assert "shared" in error
    said, error = shop.request(
        "$node.receivers.add", {"name": "other", "subjects": ["a"], "shared": True}
    )
    assert not said
    assert "order" in error


def test_52_what_a_worker_says_to_have_taken_settles_also_what_another_is_asked() -> None:
    """It had handled that when its connection was lost: the other's answer is late."""
    world = NodeWorld()
    shop = world.peer("shop", status_from=1)
    a = worker(world, "a")
    send(shop, 1, [b"one", b"two"])
    taken = [one.sequence for one in a.take(Transfer)]
    b = worker(world, "b")
    a.connection.abort()
    world.settle()
    frames = b.take(Transfer)
    assert frames
    worker(world, "a", resume=Resume(1, ((taken[0], taken[0] + 1),)))
    world.settle(0.1)
    assert [(1, 2)] == shop.statuses()["pool", Status.ACKNOWLEDGED]
    for one in frames:
        b.ack(one)
    world.settle()
    assert b.lost_because is None
    assert 0 == state_of(world, "pool").unaccounted


def test_52_a_message_that_kills_its_workers_is_found_and_others_go_on() -> None:
    world = NodeWorld(Limits(max_attempts=3, retry_delay_min=0.1, retry_delay_max=0.1))
    shop = world.peer("shop", status_from=1)
    worker(world, "first").connection.abort()
    send(shop, 1, [b"poison" if n == 20 else b"%d" % n for n in range(60)])
    handled: set[bytes] = set()
    lives = [0]
    dead: list[Any] = []

    class Dies(ScriptedPeer):
        def turn_ended(self, connection: Any) -> None:
            for one in self.take(Transfer):
                found = [message.body for message in _messages(one)]
                if b"poison" in found:
                    lives[0] += 1
                    self.connection.abort()
                    return
                handled.update(found)
                self.ack(one)

    pool: list[ScriptedPeer] = []
    for life in range(40):
        pool = [peer for peer in pool if peer.lost_because is None]
        while len(pool) < 3:
            pool.append(worker(world, f"w{life}.{len(pool)}", window=16, kind=Dies))
        world.settle(0.2)
        dead += [key for key in shop.statuses() if key[1] == Status.DEAD]
        if dead and len(handled) == 59:
            break
    assert dead
    assert len(handled) == 59
    assert lives[0] <= 4 + 3 + 3


def test_52_real_receivers_share_and_each_message_is_handled_once() -> None:
    world = NodeWorld()
    got: dict[str, list[bytes]] = {"a": [], "b": [], "c": []}
    receivers = []
    for name, handled in got.items():
        receiver = Receiver(
            world.clock,
            name="pool",
            handler=lambda message, handled=handled: handled.append(message.body),
            order="none",
            shared=True,
            concurrency=2,
            incarnation=name,
        )
        world.node.attach(receiver, subjects=["orders.>"])
        receivers.append(receiver)
    world.settle(1)
    shop = world.peer("shop", status_from=1)
    for n in range(50):
        shop.transfer(1 + 10 * n, "orders.new", [b"%d.%d" % (n, m) for m in range(10)])
    world.settle(2)
    everything = sorted(body for handled in got.values() for body in handled)
    assert everything == sorted(b"%d.%d" % (n, m) for n in range(50) for m in range(10))
    assert all(len(handled) > 50 for handled in got.values())
    assert [(1, 500)] == shop.statuses()["pool", Status.ACKNOWLEDGED]


def test_52_a_shared_inbox_keeps_its_newest_ranges_and_says_no_more() -> None:
    inbox = Inbox(Marks(ranges_max=10), ordered=False, is_shared=True)
    raw = msgspec.Raw(encode_messages([WireMessage(b"x")]))
    stuck = inbox.receive_transfer(Transfer(1, "a", raw), 1)
    assert stuck is not None
    for sequence in range(3, 2003, 2):
        arrival = inbox.receive_transfer(Transfer(sequence, "a", raw), 1)
        assert arrival is not None
        inbox.taken(arrival, sequence, sequence)
    resume = inbox.resume()
    assert 10 == len(resume.ranges)
    assert (2001, 2001) == resume.ranges[-1]
    assert 1 == resume.floor
    inbox.answers.take_frames()
    inbox.taken(stuck, 1, 1)  # it is answered however much came since
    assert [Ack([(1, 1)])] == inbox.answers.take_frames()
