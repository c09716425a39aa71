"""The node where two things meet: a stop and load, two connections of a name, page and commit."""

from __future__ import annotations

import weakref
from typing import Any

import msgspec
import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from msgservice import Limits
from msgservice.connection import Connection
from msgservice.core.frames import (
    BYE_CLOSING,
    Ack,
    AudienceFrame,
    Frame,
    Nack,
    ReceiveOptions,
    Request,
    Routed,
    StatusFrame,
    Transfer,
    encode_frame,
)
from msgservice.limits import BATCH_OVERHEAD, FRAME_OVERHEAD
from msgservice.log.memory import MemoryLog
from msgservice.message import Action, Status
from msgservice.node.tail import PLACE_BYTES, Tail
from msgservice.receiver.receiver import Receiver
from msgservice.records import Audience, Group, Resume
from tests.kit.logs import make_batch
from tests.kit.nodes import FailingLog, NodeWorld, ScriptedPeer

ORDERS = {"subjects": ["orders.>"]}


def failing_world(limits: Limits | None = None) -> tuple[NodeWorld, FailingLog]:
    clock = Clock()
    limits = limits or Limits()
    log = FailingLog(MemoryLog(reactor=clock, limits=limits))
    return NodeWorld(limits, log=log, clock=clock), log


# --- stopping


class Streaming(ScriptedPeer):
    """Sends another batch for each that is acknowledged, and never pauses."""

    next = 1

    def received(self, connection: Connection, frame: Frame) -> None:
        if isinstance(frame, Ack):
            for first, last in frame.ranges:
                for _ in range(first, last + 1):
                    self.world.clock.callLater(0.004, self.send_next)

    def send_next(self) -> None:
        self.transfer(self.next, "orders.new", [b"x"])
        self.next += 1


class SlowDisk:
    """A log whose groups take 10 ms."""

    def __init__(self, log: MemoryLog, clock: Clock) -> None:
        self._log, self._clock = log, clock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    def append_now(self, group: Group) -> None:
        """What becomes of a group is decided in `append`."""

    def append(self, group: Group) -> Deferred[Any]:
        later: Deferred[Any] = Deferred()
        self._log.append(group).addCallback(
            lambda outcomes: self._clock.callLater(0.01, later.callback, outcomes)
        )
        return later


def test_21_a_node_stops_within_its_time_while_a_producer_streams() -> None:
    clock = Clock()
    log = SlowDisk(MemoryLog(reactor=clock, limits=Limits()), clock)
    world = NodeWorld(log=log, clock=clock)
    shop = world.peer("shop", kind=Streaming)
    assert isinstance(shop, Streaming)
    for _ in range(20):
        shop.send_next()
        world.clock.advance(0.001)
    stopped: list[Any] = []
    world.node.stopService().addBoth(stopped.append)
    for _ in range(int(world.limits.stop_timeout / 0.005)):
        world.clock.advance(0.005)
    assert stopped == [None]


def test_21_a_node_stops_within_its_time_though_its_disk_takes_nothing() -> None:
    world, log = failing_world()
    shop = world.peer("shop")
    billing = world.peer("billing", receive=ORDERS)
    shop.transfer(1, "orders.new", [b"one"])
    world.settle()
    log.fail_always = True
    billing.ack(billing.take(Transfer)[0])
    world.settle()
    stopped: list[Any] = []
    world.node.stopService().addBoth(stopped.append)
    world.settle(2 * world.limits.stop_timeout + 2)
    assert stopped == [None]


# --- two connections of one receiver


def test_27_a_receiver_that_comes_back_while_its_old_connection_says_goodbye() -> None:
    world = NodeWorld()
    shop = world.peer("shop")
    old = world.peer("billing", receive=ORDERS)
    shop.transfer(1, "orders.new", [b"one"])
    world.settle()
    old.connection.bye()  # it stops, and its handler is not done yet
    world.settle()
    new = world.peer("billing", incarnation="i2", receive=ORDERS)
    world.settle()
    assert new.lost_because is None
    assert new.bodies() == [b"one"]
    world.settle(2 * world.limits.replaced_timeout)
    assert old.lost_because is not None


class Slow(ScriptedPeer):
    """Does not say RESUME by itself."""

    def greeted(self, connection: Connection, hello: Any) -> None:
        self.node_hello = hello


@pytest.mark.parametrize("change", ["pause", "remove"])
def test_10_who_was_greeted_before_its_receiver_was_paused_or_removed_is_fed_nothing(
    change: str,
) -> None:
    world = NodeWorld()
    shop = world.peer("shop", status_from=1)
    world.peer("billing", receive=ORDERS).connection.abort()
    shop.transfer(1, "orders.new", [b"one"])
    world.settle()
    billing = world.peer("billing", receive={}, kind=Slow)
    if change == "pause":
        shop.request("$node.receivers.pause", {"name": "billing"})
    else:
        shop.request("$node.receivers.remove", {"name": "billing", "confirm": 1})
    billing.connection.resume(Resume())
    world.settle()
    assert billing.bodies() == []
    assert not billing.connection.may_send


def test_27_one_that_was_greeted_while_paused_gets_what_it_asked_for_or_nothing() -> None:
    """What it asked for is not looked at while its receiver is paused."""
    world = NodeWorld()
    admin = world.peer("admin")
    world.peer("billing", receive=ORDERS)
    admin.request("$node.receivers.pause", {"name": "billing"})
    world.settle(2)
    billing = world.peer("billing", receive={"subjects": ["bills.>"]}, kind=Slow)
    admin.request("$node.receivers.resume", {"name": "billing"})
    billing.connection.resume(Resume())
    world.settle()
    assert billing.lost_because is not None
    billing = world.peer("billing", receive={"subjects": ["bills.>"]})
    world.peer("shop").transfer(1, "bills.new", [b"one"])
    world.settle()
    assert billing.bodies() == [b"one"]


@pytest.mark.parametrize("order", ["strict", "none"])
def test_3_one_that_was_told_another_order_than_there_is_now_is_fed_nothing(order: str) -> None:
    world = NodeWorld()
    world.peer("billing", receive={**ORDERS, "order": order}).connection.abort()
    world.settle()
    billing = world.peer("billing", receive={}, kind=Slow)
    assert billing.node_hello is not None
    assert billing.node_hello.options.receive == ReceiveOptions(order=order)
    other = "none" if order == "strict" else "strict"
    Deferred.fromCoroutine(world.node.change_receiver("billing", order=other))
    world.settle()
    billing.connection.resume(Resume())
    world.peer("shop").transfer(1, "orders.new", [b"one"])
    world.settle()
    assert billing.bodies() == []
    assert billing.lost_because is not None
    assert world.peer("billing", receive={}).bodies() == [b"one"]


@pytest.mark.parametrize("says", [None, "strict"])
def test_3_a_receiver_whose_order_is_changed_comes_back(says: str | None) -> None:
    """It is not told that another has its name: it would stay away for ever."""
    world = NodeWorld()
    billing = world.peer("billing", receive={**ORDERS, "order": "strict"}, answering=True)
    Deferred.fromCoroutine(world.node.change_receiver("billing", order="none"))
    world.settle()
    assert billing.bye == (BYE_CLOSING, "the receiver's order changed")
    assert billing.lost_because is not None
    world.peer("shop").transfer(1, "orders.new", [b"one"])
    billing = world.peer("billing", receive={"order": says})
    assert billing.bodies() == [b"one"]
    row = world.node.parts.directory.named("billing")
    assert row.options.order == (says or "none")  # what it says itself holds


def test_3_an_attachment_goes_on_after_its_order_was_changed() -> None:
    world = NodeWorld()
    got: list[bytes] = []
    receiver = Receiver(world.clock, name="billing", handler=lambda m: got.append(m.body))
    attachment = world.node.attach(receiver, ["orders.>"])
    world.settle(1)
    Deferred.fromCoroutine(world.node.change_receiver("billing", order="none"))
    world.settle(1)
    world.peer("shop").transfer(1, "orders.new", [b"one"])
    world.settle(30)
    assert (got, attachment.is_over) == ([b"one"], False)
    receiver.stop()
    world.settle(30)


# --- what senders are told


@pytest.mark.parametrize("reads", [True, False])
def test_11_what_a_sender_does_not_ask_for_settles_and_nothing_is_told_it(reads: bool) -> None:
    """Also while its transport is full: what was missed begins nowhere then."""
    world = NodeWorld()
    billing = world.peer("billing", receive=ORDERS)
    world.peer("shop", status_from=1).transfer(1, "orders.new", [b"one"] * 5)
    world.settle()
    shop = world.peer("shop", status_from=6)
    (sender,) = (
        p for p in world.node.parts.connections.peers if p.name == "shop" and not p.is_leaving
    )
    assert sender.connection is not None
    sender.connection.channel_writable(reads)
    for transfer in billing.take(Transfer):
        billing.ack(transfer)
    world.settle(1)
    assert sender.connection.error == ""
    assert shop.lost_because is None
    sender.connection.channel_writable(True)
    shop.transfer(6, "orders.new", [b"six"])
    world.settle()
    for transfer in billing.take(Transfer):
        billing.ack(transfer)
    world.settle(1)
    assert shop.statuses() == {("billing", Status.ACKNOWLEDGED): [(6, 6)]}


class HeldHistory:
    """A log whose next history page comes in the turn in which a group is stored."""

    def __init__(self, log: MemoryLog) -> None:
        self._log = log
        self.hold = False
        self._page: tuple[Deferred[Any], Any] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    def history(self, *arguments: Any) -> Deferred[Any]:
        page: Deferred[Any] = self._log.history(*arguments)
        if not self.hold:
            return page
        waiter: Deferred[Any] = Deferred()
        page.addCallback(lambda found: setattr(self, "_page", (waiter, found)))
        return waiter

    def append_now(self, group: Group) -> None:
        """What becomes of a group is decided in `append`."""

    def append(self, group: Group) -> Deferred[Any]:
        told: Deferred[Any] = Deferred()

        def stored(outcomes: Any) -> None:
            told.callback(outcomes)
            if self._page is not None and group.batches:
                (waiter, found), self._page = self._page, None
                waiter.callback(found)

        self._log.append(group).addCallbacks(stored, told.errback)
        return told


def test_8_an_audience_is_named_before_it_is_used_though_history_and_a_commit_meet() -> None:
    clock = Clock()
    log = HeldHistory(MemoryLog(reactor=clock, limits=Limits()))
    world = NodeWorld(log=log, clock=clock)
    world.peer("billing", receive=ORDERS)
    shop = world.peer("shop", status_from=1)
    shop.transfer(1, "orders.new", [b"one"])
    world.settle()
    shop.connection.abort()
    world.settle()
    log.hold = True
    shop = world.peer("shop", status_from=1)
    shop.transfer(2, "orders.new", [b"two"])
    world.settle()
    told = [frame for frame in shop.frames if isinstance(frame, AudienceFrame | Routed)]
    assert [type(frame) for frame in told] == [AudienceFrame, Routed, Routed]


def test_11_the_audience_of_what_retention_removed_is_told_whole() -> None:
    limits = Limits(keep_seconds=0, keep_bytes=0)
    world = NodeWorld(limits)
    shop = world.peer("shop", status_from=1)
    world.peer("archive", receive=ORDERS, answering=True)
    billing = world.peer("billing", receive=ORDERS)
    shop.transfer(1, "orders.new", [b"one", b"two", b"three"])
    world.settle()
    (transfer,) = billing.take(Transfer)
    billing.nack(transfer.sequence, transfer.sequence, Action.DEAD, reason="never")
    billing.connection.send(Ack([(transfer.sequence + 1, transfer.sequence + 2)]))
    world.settle(5)
    shop.connection.abort()
    world.settle()
    shop = world.peer("shop", status_from=1)
    audiences = {one.audience: one.receivers for one in shop.take(AudienceFrame)}
    receivers: dict[int, list[str]] = {}
    for routed in shop.take(Routed):
        assert routed.position == 0  # the log has let it go
        for sequence in range(routed.first, routed.last + 1):
            receivers[sequence] = audiences[routed.audience]  # the last that is said counts
    assert receivers == {n: ["archive", "billing"] for n in (1, 2, 3)}


def test_what_a_group_that_failed_said_of_waiting_ones_does_not_undo_later_answers() -> None:
    """SEMANTICS 11: acknowledged above the cursor, and then told so to one that reattaches."""
    world, log = failing_world()
    shop = world.peer("shop", status_from=1)
    billing = world.peer("billing", receive=ORDERS | {"order": "none"})
    shop.transfer(1, "orders.new", [b"one"])
    shop.transfer(2, "orders.new", [b"two"])
    shop.transfer(3, "orders.new", [b"three"])
    world.settle()
    _, two, three = billing.take(Transfer)
    log.hold = True
    billing.nack(three.sequence, three.sequence, Action.RETRY, delay=1, reason="later")
    world.settle()
    for _ in range(20):
        world.clock.advance(0.001)
    (again,) = billing.take(Transfer)
    billing.ack(two)
    billing.ack(again)
    world.settle()
    log.refuse()
    world.settle(3)
    shop.connection.abort()
    world.settle()
    shop = world.peer("shop", status_from=1)
    assert shop.statuses() == {("billing", Status.ACKNOWLEDGED): [(2, 3)]}


def test_11_states_are_told_in_frames_that_every_client_takes() -> None:
    world = NodeWorld()
    shop = world.peer("shop", status_from=1)
    billing = world.peer("billing", receive=ORDERS | {"order": "none"})
    shop.transfer(1, "orders.new", [b"x"] * 4000)
    world.settle()
    (transfer,) = billing.take(Transfer)
    first = transfer.sequence
    for start in range(0, 4000, 500):
        billing.connection.send(Ack([(first + n, first + n) for n in range(start, start + 500, 2)]))
    world.settle()
    frames = shop.take(StatusFrame)
    assert sum(len(frame.ranges) for frame in frames) == 2000
    assert max(len(encode_frame(frame)) for frame in frames) <= FRAME_OVERHEAD


# --- bounds


def test_18_who_connects_while_producers_are_paused_is_greeted_and_a_receiver_is_fed() -> None:
    world, log = failing_world(Limits(uncommitted_bytes=1000))
    shop = world.peer("shop")
    world.peer("billing", receive=ORDERS).connection.abort()
    shop.transfer(1, "orders.new", [b"one"])
    world.settle()
    log.hold = True
    shop.transfer(2, "orders.new", [bytes(2000)])
    world.settle()
    late = world.peer("late")
    late.transfer(1, "orders.new", [b"late"])
    billing = world.peer("billing", receive={})
    assert billing.bodies() == [b"one"]
    waited = world.limits.hello_timeout * 2
    world.settle(waited)
    assert (late.lost_because, billing.lost_because) == (None, None)
    assert world.node.parts.commits.uncommitted_bytes < 3000 + 2 * BATCH_OVERHEAD
    log.release()
    world.settle(waited)
    assert [ack.ranges for ack in late.take(Ack)] == [[(1, 1)]]


def test_18_one_that_also_receives_is_paused_when_it_hands_in_too_much() -> None:
    world, log = failing_world(Limits(uncommitted_bytes=10_000))
    world.peer("archive", receive=ORDERS)
    both = world.peer("billing", receive={"subjects": ["bills.>"]})
    log.hold = True
    for n in range(1, 40):
        both.transfer(n, "orders.new", [bytes(1000)])
        world.settle()
    assert world.node.parts.commits.uncommitted_bytes < 20_000
    log.release()
    world.settle(1)
    assert both.take(Ack)[-1].ranges[-1][1] == 39


def test_the_tail_is_bounded_in_memory_however_small_the_batches_are() -> None:
    world = NodeWorld(Limits(tail_bytes=100_000))
    world.peer("archive", receive=ORDERS)
    shop = world.peer("shop")
    for n in range(1, 2001):
        shop.transfer(n, "orders.new", [b"x"])
        if n % 100 == 0:
            world.settle()
    tail = world.node.parts.tail
    assert tail.next_number == 2001
    assert tail.next_number - tail.first_number < 500
    assert tail.bytes <= 100_000


def test_the_tail_is_bounded_in_memory_where_nobody_is_to_get_the_batches() -> None:
    tail = Tail(1, bytes_max=1000)
    for n in range(1, 10_001):
        tail.append(make_batch(Audience(1, ()), n, [b"x" * 1000], number=n))
    assert tail.next_number - tail.first_number == 1000 // PLACE_BYTES
    assert tail.bytes <= 1000


def test_the_tail_lets_go_of_a_batch_when_its_bytes_no_longer_count() -> None:
    tail = Tail(1, bytes_max=100_000)
    audience = Audience(1, (1,))
    held = []
    for n in range(1, 51):
        batch = make_batch(audience, n, number=n)
        batch.messages, batch.size = memoryview(bytes(30_000)), 30_000
        held.append(weakref.ref(batch.messages))
        tail.append(batch)
        del batch
    assert [n for n, one in enumerate(held, 1) if one() is not None] == [48, 49, 50]
    assert tail.first_number == 48


def test_an_audience_too_many_is_refused_and_hurts_nobody() -> None:
    world = NodeWorld(Limits(audiences=3))
    shop, other = world.peer("shop"), world.peer("other")
    names = ["a", "b", "c", "d"]
    for name in names:
        world.peer(name, receive={"subjects": []})
    for n, name in enumerate(names, 1):
        shop.transfer(n, "orders.new", [b"x"], to=[name])
        world.settle()
    other.transfer(1, "orders.new", [b"x"], to=["a"])
    world.settle()
    (nack,) = shop.take(Nack)
    assert (nack.first, nack.last, nack.action) == (4, 4, Action.LATER)
    assert "audiences" in nack.reason
    assert shop.lost_because is None
    assert other.take(Ack) == [Ack([(1, 1)])]


# --- requests


def test_a_request_of_garbage_ends_its_connection_with_an_error() -> None:
    world = NodeWorld()
    shop, other = world.peer("shop"), world.peer("other")
    shop.connection.send(Request(1, "$node.info", msgspec.Raw(b"\xc0")))
    world.settle()
    assert shop.lost_because is not None
    assert "(code 2)" in shop.lost_because
    assert other.lost_because is None


def test_an_answer_too_large_for_a_frame_is_an_error_and_no_silence() -> None:
    world = NodeWorld(Limits(max_batch=4096))
    subjects = [f"{n}.{'x' * 240}" for n in range(60)]  # of one receiver: a page of its own
    Deferred.fromCoroutine(world.node.add_receiver("wide", subjects))
    world.settle()
    shop = world.peer("shop")
    ok, reason = shop.request("$node.receivers.list", {})
    assert not ok
    assert "bytes" in reason


def test_6_what_a_receiver_took_without_being_given_is_an_error_and_settles_nothing() -> None:
    world = NodeWorld()
    shop = world.peer("shop", status_from=1)
    world.peer("billing", receive=ORDERS).connection.abort()
    world.settle()
    ahead = Resume(1000 << 16, ())  # the log went back in time, and the receiver did not
    billing = world.peer("billing", receive={}, resume=ahead)
    shop.transfer(1, "orders.new", [b"one"])
    world.settle()
    assert billing.lost_because is not None
    assert "billing" in billing.lost_because
    assert shop.statuses() == {}
    assert world.peer("billing", receive={}).bodies() == [b"one"]


def test_1_the_floor_rises_though_there_is_always_a_group_under_way() -> None:
    clock = Clock()
    log = SlowDisk(MemoryLog(reactor=clock, limits=Limits()), clock)
    world = NodeWorld(log=log, clock=clock)
    world.peer("billing", receive=ORDERS, answering=True)
    world.settle(0.1)
    shop = world.peer("shop", kind=Streaming)
    assert isinstance(shop, Streaming)
    (outlet,) = world.node.parts.dispatch
    before = outlet.backlog.committed
    for _ in range(20):
        shop.send_next()
        world.clock.advance(0.001)
    for _ in range(400):
        world.clock.advance(0.001)
    assert outlet.backlog.cursor > before
    assert outlet.backlog.committed > before


@pytest.mark.parametrize("then", ["transfer", "garbage"])
def test_what_was_taken_in_before_a_fault_of_the_same_turn_is_stored(then: str) -> None:
    """Nobody else sends anything that would have a group begin."""
    world = NodeWorld()
    billing = world.peer("billing", receive=ORDERS)
    shop = world.peer("shop")
    shop.transfer(1, "orders.new", [b"one"])
    if then == "transfer":
        shop.transfer(2, "orders.new", [])
    else:
        assert shop.connection.channel is not None
        shop.connection.channel.send(b"\xc1")
    world.settle(1)
    assert shop.lost_because is not None
    assert billing.bodies() == [b"one"]


def test_a_receiver_that_says_goodbye_leaves_no_error_behind() -> None:
    world = NodeWorld()
    billing = world.peer("billing", receive={"subjects": ["orders.>"]})
    outlet = world.node.parts.dispatch.outlets[world.node.parts.directory.named("billing").number]
    billing.connection.bye()
    world.settle(1.0)
    assert outlet.connection is None
    assert "" == outlet.last_error

    again = world.peer("billing", receive={"subjects": ["orders.>"]})
    again.connection.abort()
    world.settle(1.0)
    assert outlet.last_error
