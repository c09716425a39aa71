"""Rates of receivers, and of all together, in a node on virtual time (A11)."""

from __future__ import annotations

import random
from typing import Any

import pytest
from twisted.internet.task import Clock

from msgservice.connection import Connection
from msgservice.core.frames import Frame, Transfer
from msgservice.core.runs import Run
from msgservice.limits import Rate
from msgservice.message import Action, WireMessage, decode_messages, encode_messages
from msgservice.node.pace import RateLimits
from tests.kit.nodes import NodeWorld, ScriptedPeer

ORDERS = {"subjects": ["orders.>"]}
STEP = 0.01  # seconds


class Meter:
    """Notes when a receiver's messages come, and acknowledges them."""

    def __init__(self, world: NodeWorld, name: str, receive: dict[str, Any] = ORDERS) -> None:
        self.world = world
        self.peer: ScriptedPeer = world.peer(name, receive=receive)
        self.came: list[tuple[float, int, int]] = []  # when, messages, bytes
        self.bodies: list[bytes] = []
        self._times: list[float] = []
        self._times += [world.clock.seconds() for f in self.peer.frames if isinstance(f, Transfer)]
        self.peer.received = self._received  # type: ignore[method-assign]  # notes when

    def _received(self, connection: Connection, frame: Frame) -> None:
        self.peer.frames.append(frame)
        if isinstance(frame, Transfer):
            self._times.append(self.world.clock.seconds())

    def look(self) -> None:
        times, self._times = self._times, []
        for when, transfer in zip(times, self.peer.take(Transfer), strict=True):
            messages = decode_messages(transfer.messages)
            self.bodies += [message.body for message in messages]
            self.came.append((when, len(messages), len(memoryview(transfer.messages))))
            self.peer.ack(transfer)

    def most_above(self, rate: float, index: int) -> float:
        """By how much what came, in any stretch of time, was more than `rate` let through."""
        most, level, before = 0.0, 0.0, 0.0
        for when, *amounts in self.came:
            level = max(0.0, level - (when - before) * rate) + amounts[index]
            most, before = max(most, level), when
        return most


def run(world: NodeWorld, seconds: float, *meters: Meter) -> None:
    for _ in range(round(seconds / STEP)):
        world.clock.advance(STEP)
        for _ in range(5):  # what was sent has come
            world.clock.advance(0)
        for meter in meters:
            meter.look()


def numbered(first: int, count: int, size: int = 0) -> list[bytes]:
    return [str(n).encode().ljust(size) for n in range(first, first + count)]


def sent(world: NodeWorld, runs: list[list[bytes]], subject: str = "orders.new") -> None:
    shop = world.peer("shop-" + subject)
    sequence = 1
    for bodies in runs:
        shop.transfer(sequence, subject, bodies)
        sequence += len(bodies)


def test_A11_messages_never_come_faster_than_the_rate_and_hardly_slower() -> None:
    world = NodeWorld(rates={"billing": Rate(messages=50)})
    meter = Meter(world, "billing")
    counts = [1, 7, 30, 2, 200, 1, 1, 90, 3, 400] * 5
    sent(world, [numbered(1000 * n, count) for n, count in enumerate(counts)])
    run(world, 60, meter)
    assert 50 + 1e-6 >= meter.most_above(50, 0)
    assert 0.95 * 60 * 50 <= len(meter.bodies) <= 60 * 50 + 50


def test_A11_bytes_never_come_faster_than_the_rate_and_hardly_slower() -> None:
    world = NodeWorld(rates={"billing": Rate(bytes=10_000, burst_seconds=0.5)})
    meter = Meter(world, "billing")
    rng = random.Random(11)
    runs = [[bytes(rng.randrange(900)) for _ in range(rng.randrange(1, 40))] for _ in range(60)]
    sent(world, runs)
    run(world, 30, meter)
    assert 5000 + 1e-6 >= meter.most_above(10_000, 1)
    came = sum(size for _, _, size in meter.came)
    assert 0.95 * 30 * 10_000 <= came <= 30 * 10_000 + 5000


def test_A11_after_a_pause_a_bucketful_comes_at_once_and_no_more() -> None:
    world = NodeWorld(rates={"billing": Rate(messages=10, burst_seconds=3)})
    meter = Meter(world, "billing")
    sent(world, [numbered(n, 1) for n in range(100)])
    world.settle()
    meter.look()
    assert 30 == len(meter.bodies)


def test_A11_order_is_kept_and_nothing_is_lost_or_doubled() -> None:
    world = NodeWorld(rates={"billing": Rate(messages=200, bytes=4000)})
    meter = Meter(world, "billing")
    counts = [1, 300, 2, 64, 1, 1, 128]
    runs, first = [], 0
    for count in counts:
        runs.append(numbered(first, count))
        first += count
    sent(world, runs)
    run(world, 10, meter)
    assert numbered(0, sum(counts)) == meter.bodies


def test_A11_a_run_larger_than_the_bucket_comes_in_pieces_of_it() -> None:
    world = NodeWorld(rates={"billing": Rate(messages=10)})
    meter = Meter(world, "billing")
    sent(world, [numbered(0, 100)])
    run(world, 11, meter)
    assert numbered(0, 100) == meter.bodies
    assert max(count for _, count, _ in meter.came) <= 10


def test_A11_a_message_larger_than_the_bucket_passes_and_is_paid_for_by_what_follows() -> None:
    world = NodeWorld(rates={"billing": Rate(bytes=1000)})
    meter = Meter(world, "billing")
    sent(world, [[b"a"], [bytes(5000)], [b"z"]])
    run(world, 1, meter)
    assert [b"a", bytes(5000)] == meter.bodies
    run(world, 2, meter)
    assert 2 == len(meter.bodies)
    run(world, 3, meter)
    assert b"z" == meter.bodies[-1]


def test_A11_who_has_no_rate_waits_for_nobody() -> None:
    world = NodeWorld(rates={"billing": Rate(messages=1)})
    slow, fast = Meter(world, "billing"), Meter(world, "archive")
    sent(world, [numbered(0, 500)])
    world.settle()
    fast.look()
    assert numbered(0, 500) == fast.bodies
    slow.look()
    assert len(slow.bodies) <= 1
    assert world.node.parts.dispatch.outlets[2].pace is None


def test_A11_the_rate_of_all_bounds_the_sum_and_is_shared() -> None:
    world = NodeWorld(rate=Rate(messages=100))
    # One has large runs and the other single messages: neither keeps the other out.
    a = Meter(world, "a", {"subjects": ["a"]})
    b = Meter(world, "b", {"subjects": ["b"]})
    sent(world, [numbered(0, 4000)], "a")
    sent(world, [numbered(n, 1) for n in range(4000)], "b")
    run(world, 30, a, b)
    both = Meter.__new__(Meter)
    both.came = sorted(a.came + b.came)
    assert 100 + 1e-6 >= both.most_above(100, 0)
    assert 0.95 * 30 * 100 <= len(a.bodies) + len(b.bodies)
    assert 0.8 <= len(a.bodies) / len(b.bodies) <= 1.25


def test_A11_one_that_waits_for_its_own_rate_takes_no_room_from_the_others() -> None:
    world = NodeWorld(rate=Rate(messages=100), rates={"slow": Rate(messages=1)})
    slow = Meter(world, "slow", {"subjects": ["a"]})
    fast = Meter(world, "fast", {"subjects": ["b"]})
    sent(world, [numbered(0, 4000)], "a")
    sent(world, [numbered(0, 4000)], "b")
    run(world, 20, slow, fast)
    assert 20 <= len(slow.bodies) <= 21
    assert 0.95 * 20 * 99 <= len(fast.bodies)


def test_A11_what_was_waiting_when_the_connection_went_comes_on_the_next_and_is_counted() -> None:
    world = NodeWorld(rates={"billing": Rate(messages=10)})
    meter = Meter(world, "billing")
    sent(world, [numbered(0, 40)])
    run(world, 1, meter)
    meter.peer.connection.abort()
    world.settle()
    again = Meter(world, "billing", {})
    run(world, 4, again)
    assert numbered(0, 40) == meter.bodies + again.bodies
    meter.came += again.came
    assert 10 + 1e-6 >= meter.most_above(10, 0)


def test_A11_a_retry_waits_for_the_rate_too_and_leaves_no_timer_spinning() -> None:
    world = NodeWorld(rates={"billing": Rate(messages=1, burst_seconds=10)})
    billing = world.peer("billing", receive=ORDERS)
    sent(world, [numbered(0, 10)])
    world.settle()
    (transfer,) = billing.take(Transfer)
    billing.nack(transfer.sequence, transfer.sequence + 9, Action.RETRY, delay=1)
    world.settle()
    fired = 0
    call_later = world.clock.callLater

    def counted(delay: float, *args: object, **kwargs: object) -> object:
        nonlocal fired
        fired += 1
        return call_later(delay, *args, **kwargs)  # type: ignore[arg-type]  # passed on

    world.clock.callLater = counted  # type: ignore[method-assign,assignment]  # a spy
    world.settle(0.9)
    assert [] == billing.take(Transfer)
    assert fired < 20
    world.settle(12)
    assert numbered(0, 5) == billing.bodies()


def test_the_list_of_receivers_shows_the_rate_and_the_log_does_not_keep_it() -> None:
    world = NodeWorld(rates={"billing": Rate(messages=10)})
    shop = world.peer("shop")
    for name in ("archive", "billing"):
        world.peer(name, receive=ORDERS)
    ok, answer = shop.request("$node.receivers.list", {})
    assert ok
    assert [None, {"messages": 10, "bytes": None, "burst_seconds": 1.0}] == [
        row["rate"] for row in answer["receivers"]
    ]
    world.node.stopService()
    world.settle(world.limits.stop_timeout + 1)
    world.rates = None
    world.start()
    assert all(outlet.pace is None for outlet in world.node.parts.dispatch)


def test_A11_who_goes_away_leaves_the_line() -> None:
    world = NodeWorld(rate=Rate(messages=10))
    a = Meter(world, "a", {"subjects": ["a"]})
    b = Meter(world, "b", {"subjects": ["b"]})
    sent(world, [numbered(0, 40)], "a")
    world.settle()
    a.peer.connection.abort()
    world.settle()
    sent(world, [numbered(0, 40)], "b")
    run(world, 1, b)
    before = len(b.bodies)
    run(world, 2, b)
    assert (10, 20) == (before, len(b.bodies) - before)


def test_A11_room_that_was_reserved_and_not_needed_is_given_back() -> None:
    clock = Clock()
    limits = RateLimits(clock, total=Rate(messages=10))
    pace, other = limits.pace(), limits.pace()
    assert pace is not None
    assert other is not None
    one = Run(1, 1, "s", None, encode_messages([WireMessage(b"")]), 10, 0)
    pace.begin(20, 200)
    assert [1] * 10 == [pace.allow(one) for _ in range(10)]
    assert 0 == pace.allow(one)  # a place for five of those that are ready
    pace.end()
    clock.advance(0.5)
    pace.begin(20, 200)
    assert 1 == pace.allow(one)
    pace.end()  # the others need it no more
    other.begin(4, 40)
    assert [1, 1, 1, 1, 0] == [other.allow(one) for _ in range(5)]


@pytest.mark.parametrize("rate", [None, Rate(), Rate(burst_seconds=3)])
def test_what_limits_nothing_is_no_pace(rate: Rate | None) -> None:
    assert RateLimits(Clock()).pace(rate) is None


@pytest.mark.parametrize("value", [0, -1, float("inf"), float("nan")])
def test_a_rate_that_lets_nothing_through_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        Rate(messages=value)
