"""The bytes that wait for a receiver, as the backlog limit counts them (18), are those that do."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock

from msgservice.core.frames import Ack, Transfer
from msgservice.limits import Limits
from msgservice.log.accounts import SPLIT_MAX
from msgservice.log.memory import MemoryLog
from msgservice.message import Action, WireMessage, decode_messages, encode_messages
from msgservice.node.outlet import UNLOAD_AFTER
from msgservice.node.purge import Purged
from tests.kit.nodes import FailingLog, NodeWorld

ORDERS = {"subjects": ["orders.>"]}

Step = tuple[str, int, int]
steps = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.integers(1, 40), st.integers(0, 300)),
        # from which of those that came, and how many in a row
        st.tuples(st.just("ack"), st.integers(0, 50), st.integers(1, 20)),
        st.tuples(st.just("dead"), st.integers(0, 50), st.integers(1, 20)),
        st.tuples(st.just("later"), st.integers(0, 50), st.integers(1, 20)),
        st.tuples(st.just("again"), st.integers(0, 50), st.integers(1, 3)),
        st.tuples(st.just("reconnect"), st.just(0), st.just(0)),
        st.tuples(st.just("log fails"), st.just(0), st.just(0)),
    ),
    max_size=25,
)


def header(count: int) -> int:
    return 1 if count < 16 else 3


@settings(max_examples=60)
@given(steps=steps, order=st.sampled_from(["strict", "none"]))
def test_18_what_waits_for_a_receiver_is_counted_to_the_byte(steps: list[Step], order: str) -> None:
    clock = Clock()
    limits = Limits(retry_delay_min=0.1)
    log = FailingLog(MemoryLog(reactor=clock, limits=limits))
    world = NodeWorld(limits=limits, log=log, clock=clock)
    receive = ORDERS | {"order": order}
    shop, billing = world.peer("shop"), world.peer("billing", receive=receive)
    waiting: dict[int, int] = {}  # position -> bytes of it
    came: set[int] = set()  # on this connection
    sequence, batches = 1, 0
    fails = False  # the next group that holds nothing but progress
    for what, one, two in steps:
        for transfer in billing.take(Transfer):
            count = len(decode_messages(transfer.messages))
            came |= set(range(transfer.sequence, transfer.sequence + count))
        in_a_row = sorted(came & waiting.keys())[one:][:two]
        in_a_row = [n for i, n in enumerate(in_a_row) if n == in_a_row[0] + i]
        if what == "send":
            bodies = [b"x" * (two + i) for i in range(one)]
            shop.transfer(sequence, "orders.new", bodies)
            sequence += one
            batches += 1
            for index, body in enumerate(bodies):
                waiting[batches << 16 | index] = len(msgspec.msgpack.encode(WireMessage(body)))
            waiting[batches << 16] += header(one)
        elif what == "ack" and in_a_row:
            for position in in_a_row:
                del waiting[position]
            billing.connection.send(_ack(in_a_row))
        elif what in ("dead", "later", "again") and in_a_row:
            action = {"dead": Action.DEAD, "later": Action.LATER, "again": Action.RETRY}[what]
            billing.nack(in_a_row[0], in_a_row[-1], action, 50)
            if what == "dead":
                for position in in_a_row:
                    del waiting[position]
        elif what == "reconnect":
            billing.connection.abort()
            world.settle()
            billing = world.peer("billing", receive=receive)
            came = set()
        log.fail_next = fails and what in ("ack", "dead") and bool(in_a_row)
        fails = what == "log fails" or (fails and not log.fail_next)
        world.settle(1.2)
        [outlet] = world.node.parts.dispatch.outlets.values()
        assert outlet.progress.queued.look() == sum(waiting.values())
    world.node.stopService()
    world.settle()


def _ack(positions: list[int]) -> Ack:
    return Ack([(positions[0], positions[-1])])


def test_18_a_header_that_is_wider_than_it_must_be_is_counted_as_it_came() -> None:
    world = NodeWorld()
    shop = world.peer("shop")
    billing = world.peer("billing", receive=ORDERS)
    parts = encode_messages([WireMessage(b"a"), WireMessage(b"b")])[1:]
    wide = msgspec.Raw(b"\xdd\x00\x00\x00\x02" + parts)
    shop.connection.send(Transfer(1, "orders.new", wide))
    world.settle(0.3)
    [outlet] = world.node.parts.dispatch.outlets.values()
    assert outlet.progress.queued.look() == 5 + len(parts)
    [transfer] = billing.take(Transfer)
    first = transfer.sequence
    billing.connection.send(_ack([first]))
    world.settle(0.3)
    assert outlet.progress.queued.look() == len(parts) // 2
    billing.connection.send(_ack([first + 1]))
    world.settle(0.3)
    assert outlet.progress.queued.look() == 0


BODIES = [b"x" * 3000, b"y", b"z" * 40, b"w" * 900, b""]


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("answered", [[0], [1, 2], [0, 3], [4]], ids=str)
@pytest.mark.parametrize("fails", [False, True])
def test_18_of_a_batch_that_is_cancelled_in_part_nothing_is_left(
    answered: list[int], *, restarted: bool, fails: bool
) -> None:
    """Nobody has read how large the messages are that were not loaded; the others were counted."""
    clock, limits = Clock(), Limits()
    log = FailingLog(MemoryLog(reactor=clock, limits=limits))
    world = NodeWorld(limits=limits, log=log, clock=clock)
    receive = ORDERS | {"order": "none"}
    shop, billing = world.peer("shop"), world.peer("billing", receive=receive)
    shop.transfer(1, "orders.new", BODIES)
    world.settle()
    for index in answered:
        billing.connection.send(_ack([(1 << 16) + index]))
        world.settle(0.1)
    billing.connection.abort()
    world.settle(UNLOAD_AFTER + 1)
    if restarted:
        world.node.stopService()
        world.settle(1)
        world.start()
        world.settle(limits.link_delay_max + limits.hello_timeout + 1)
    log.fail_next = fails
    done: list[Purged] = []
    world.node.purge("billing").addCallback(done.append)
    world.settle(1)
    assert [len(BODIES) - len(answered)] == [purged.count for purged in done]
    [outlet] = world.node.parts.dispatch.outlets.values()
    assert outlet.progress.queued.look() == 0
    assert not outlet.progress.split


def test_18_of_many_batches_that_were_settled_in_part_before_a_start_nothing_is_left() -> None:
    """What of those beyond the first was settled is not looked at when the node starts."""
    world = NodeWorld()
    receive = ORDERS | {"order": "none"}
    shop, billing = world.peer("shop"), world.peer("billing", receive=receive)
    count = SPLIT_MAX + 5
    for number in range(count):
        shop.transfer(2 * number + 1, "orders.new", [b"x" * number, b"y"])
    world.settle()
    for number in range(1, count + 1):
        billing.connection.send(_ack([(number << 16) + number % 2]))
    world.settle(0.1)
    world.node.stopService()
    world.settle(1)
    world.start()
    billing = world.peer("billing", receive=receive)
    world.settle(1)
    for transfer in billing.take(Transfer):
        billing.ack(transfer)
        world.settle(0.1)
    [outlet] = world.node.parts.dispatch.outlets.values()
    assert outlet.backlog.cursor >= count << 16
    assert outlet.progress.queued.look() == 0
    assert not outlet.progress.split
