"""SEMANTICS 6: what a receiver says to have taken, held against the log, and what follows."""

from __future__ import annotations

from typing import Any
from zlib import crc32

import pytest
from twisted.internet.task import Clock

from msgservice import Limits
from msgservice.connection import Connection
from msgservice.core.frames import Ack, Frame, Transfer
from msgservice.errors import ContentChanged
from msgservice.log.memory import MemoryLog
from msgservice.message import decode_messages
from msgservice.records import Group, Resume
from tests.kit.nodes import FailingLog, NodeWorld, ScriptedPeer
from tests.unit.test_node_attempts import Here
from tests.unit.test_node_resume import SlowReader

ORDERS = {"subjects": ["orders.>"]}


def world_with_unheard_answers(
    bodies: list[bytes], world: NodeWorld | None = None, **options: Any
) -> tuple[NodeWorld, list[Transfer]]:
    """A node whose receiver got these and went away; nobody heard what it did with them."""
    world = world or NodeWorld()
    billing = world.peer("billing", receive=ORDERS, **options)
    world.peer("shop").transfer(1, "orders.new", bodies)
    world.settle()
    transfers = billing.take(Transfer)
    billing.connection.abort()
    world.settle()
    return world, transfers


def resume_of(transfer: Transfer, crc: int | None = None) -> Resume:
    """What a receiver says that took this run, and all before it."""
    last = transfer.sequence + len(decode_messages(transfer.messages)) - 1
    crc = crc32(transfer.messages) if crc is None else crc
    return Resume(last + 1, (), (transfer.sequence, last, crc))


def taken(receiver: ScriptedPeer) -> list[bytes]:
    """What comes, while it is acknowledged."""
    found: list[bytes] = []
    while transfers := receiver.take(Transfer):
        for transfer in transfers:
            found += [message.body for message in decode_messages(transfer.messages)]
            receiver.ack(transfer)
        receiver.world.settle()
    return found


def incarnation(peer: ScriptedPeer) -> str:
    assert peer.node_hello is not None
    return peer.node_hello.incarnation


@pytest.mark.parametrize("runs", [1, 3], ids=["whole", "cut"])
def test_6_what_was_taken_and_not_heard_of_is_compared_and_settled(runs: int) -> None:
    """The run's own bytes, whole or as the receiver's `max_batch` has it cut."""
    options: dict[str, Any] = {} if runs == 1 else {"max_batch": 100}
    world, transfers = world_with_unheard_answers([b"x" * 80] * 3, **options)
    assert len(transfers) == runs
    billing = world.peer("billing", receive=ORDERS, resume=resume_of(transfers[-1]), **options)
    assert billing.lost_because is None
    assert billing.bodies() == []
    (row,) = world.node.parts.directory
    assert row.epoch == ""


@pytest.mark.parametrize("read", ["at once", "later"])
def test_6_other_content_is_a_new_incarnation_and_all_is_sent(read: str) -> None:
    clock = Clock()
    log: Any = MemoryLog(reactor=clock, limits=Limits())
    if read == "later":
        log = SlowReader(log, clock)
    world, (transfer,) = world_with_unheard_answers(
        [b"one", b"two"], NodeWorld(log=log, clock=clock)
    )
    billing = world.peer("billing", receive=ORDERS, resume=resume_of(transfer, crc=1))
    world.settle(0.1)
    assert billing.lost_because is not None
    assert "other content" in billing.lost_because
    assert billing.bodies() == []
    again = world.peer("billing", receive=ORDERS)
    world.settle(0.1)
    assert incarnation(again) != incarnation(billing)
    assert incarnation(again).startswith(incarnation(billing) + ".")
    assert taken(again) == [b"one", b"two"]


@pytest.mark.parametrize("answered", ["something", "nothing"])
def test_6_a_receiver_that_has_seen_other_content_gets_all_of_a_new_incarnation_and_no_dead_letter(
    answered: str,
) -> None:
    """It was sent that and took nothing of it: its RESUME cannot say so, but it says ERROR 11."""
    world = NodeWorld(limits=Limits(max_attempts=1))
    shop, billing = world.peer("shop"), world.peer("billing", receive=ORDERS)
    shop.transfer(1, "orders.new", [b"one", b"two"])
    world.settle()
    (transfer,) = billing.take(Transfer)
    if answered == "something":
        billing.connection.send(Ack([(transfer.sequence, transfer.sequence)]))
        world.settle()
    billing.connection.fail(ContentChanged(transfer.sequence, transfer.sequence + 1))
    world.settle()
    again = world.peer("billing", receive=ORDERS)
    assert incarnation(again).startswith(incarnation(billing) + ".")
    assert taken(again) == [b"one", b"two"][answered == "something" :]
    world.node.stopService()
    world.settle(world.limits.stop_timeout + 1)
    world.start()
    third = world.peer("billing", receive=ORDERS)
    assert (incarnation(third), taken(third)) == (incarnation(again), [])


def test_6_what_was_in_flight_is_not_suspected_of_ending_a_connection_with_error_11() -> None:
    """A suspect is sent alone, and nothing else of its lane before it is answered (14)."""
    world = NodeWorld()
    shop, billing = world.peer("shop"), world.peer("billing", receive=ORDERS)
    shop.transfer(1, "orders.new", [b"one"])
    world.settle()
    billing.connection.fail(ContentChanged(1 << 16, 1 << 16))
    shop.transfer(2, "orders.new", [b"two"])
    world.settle()
    assert world.peer("billing", receive=ORDERS).bodies() == [b"one", b"two"]


def test_6_an_error_11_of_a_connection_that_was_replaced_or_never_fed_changes_nothing() -> None:
    world, _ = world_with_unheard_answers([b"one"])
    early = world.peer("billing", receive=ORDERS, kind=Slow)
    early.connection.fail(ContentChanged(1, 1))
    world.settle()
    (row,) = world.node.parts.directory
    assert row.epoch == ""
    second = world.peer("billing", receive=ORDERS)
    world.peer("billing", receive=ORDERS)
    second.connection.fail(ContentChanged(1, 1))
    shop = world.peer("another shop")
    shop.connection.fail(ContentChanged(1, 1))
    world.settle()
    assert row.epoch == ""


def test_6_a_run_that_the_log_never_had_is_a_new_incarnation() -> None:
    world, (transfer,) = world_with_unheard_answers([b"one", b"two"])
    beyond = transfer.sequence + 5  # of the same batch number, which had more messages then
    resume = Resume(beyond + 1, (), (transfer.sequence, beyond, 7))
    assert world.peer("billing", receive=ORDERS, resume=resume).lost_because is not None
    assert taken(world.peer("billing", receive=ORDERS)) == [b"one", b"two"]


def test_6_the_new_incarnation_is_on_disk_before_it_is_said_and_stays() -> None:
    clock = Clock()
    log = FailingLog(MemoryLog(reactor=clock, limits=Limits()))
    world, _ = world_with_unheard_answers([b"one"], NodeWorld(log=log, clock=clock))
    log.hold = True
    ahead = Resume(1000 << 16, ())
    assert world.peer("billing", receive=ORDERS, resume=ahead).lost_because is not None
    billing = world.peer("billing", receive=ORDERS)
    assert billing.node_hello is None
    log.release()
    world.settle()
    said = incarnation(billing)
    assert said.count(".") == 2
    world.node.stopService()
    world.settle(world.limits.stop_timeout + 1)
    world.start()
    assert incarnation(world.peer("billing", receive=ORDERS)) == said


class Slow(ScriptedPeer):
    """Does not say RESUME by itself."""

    def greeted(self, connection: Any, hello: Any) -> None:
        self.node_hello = hello


def test_6_one_greeted_under_the_old_incarnation_is_sent_nothing_any_more() -> None:
    world, _ = world_with_unheard_answers([b"one"])
    early = world.peer("billing", receive=ORDERS, kind=Slow)
    ahead = Resume(1000 << 16, ())
    assert world.peer("billing", receive=ORDERS, resume=ahead).lost_because is not None
    early.connection.resume(Resume())
    world.settle()
    assert early.bodies() == []
    assert early.lost_because is not None
    assert world.peer("billing", receive=ORDERS).bodies() == [b"one"]


@pytest.mark.parametrize("change", ["pause", "remove"])
def test_6_one_that_is_paused_or_removed_while_the_log_is_read_is_sent_nothing(
    change: str,
) -> None:
    clock = Clock()
    log = SlowReader(MemoryLog(reactor=clock, limits=Limits()), clock)
    world, (transfer,) = world_with_unheard_answers([b"one"], NodeWorld(log=log, clock=clock))
    shop = world.peer("other")
    billing = world.peer("billing", receive=ORDERS, resume=resume_of(transfer), kind=Slow)
    billing.connection.resume(billing.resume)
    for _ in range(20):
        clock.advance(0)  # the RESUME has come, the page has not
    if change == "pause":
        shop.request("$node.receivers.pause", {"name": "billing"})
    else:
        shop.request("$node.receivers.remove", {"name": "billing", "confirm": 1})
    world.settle(0.1)
    assert billing.bodies() == []
    assert billing.bye is not None


class Contradicts(ScriptedPeer):
    """A receiver that has seen everything before, with other content."""

    def received(self, connection: Connection, frame: Frame) -> None:
        if isinstance(frame, Transfer):
            connection.fail(ContentChanged(frame.sequence, frame.sequence))


def test_6_one_that_contradicts_on_each_connection_is_dialled_and_written_down_rarely(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each time is a change of its row in the log: no more of them than of the connections."""
    world = NodeWorld()
    here = Here(world, kind=Contradicts)
    world.node.transports.register(here)
    shop = world.peer("shop")
    asked = {"name": "billing", "subjects": ["orders.>"], "address": "here:a"}
    assert shop.request("$node.receivers.add", asked)[0]
    shop.transfer(1, "orders.new", [b"one"])
    world.settle()
    groups: list[Group] = []
    append = world.log.append

    def counted(group: Group) -> Any:
        groups.append(group)
        return append(group)

    monkeypatch.setattr(world.log, "append", counted)
    minutes = 10
    for _ in range(minutes):
        world.settle(60)
    dialled = len(here.peers)
    assert 3 < dialled <= minutes * 60 / world.limits.link_delay_max + 8  # and the first doublings
    assert 0 < len(groups) <= dialled
