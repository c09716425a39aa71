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
from msgservice.message import WireMessage, decode_messages, encode_messages
from msgservice.records import Group, Resume
from tests.kit.inline import by_append
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
    by_append(world.log)
    minutes = 10
    for _ in range(minutes):
        world.settle(60)
    dialled = len(here.peers)
    assert 3 < dialled <= minutes * 60 / world.limits.link_delay_max + 8  # and the first doublings
    assert 0 < len(groups) <= dialled


# --- one that contradicts tells of the others -----------------------------------------------------


class Remembers(ScriptedPeer):
    """Says what it has taken only to the incarnation of the node that it has it from."""

    known = ""

    def greeted(self, connection: Any, hello: Any) -> None:
        self.node_hello = hello
        connection.resume(self.resume if hello.incarnation == self.known else Resume())


class PutBack:
    """A node whose log is put back, and receivers that have taken what came after the copy."""

    NAMES = ("audit", "billing", "early", "picky")

    def __init__(self) -> None:
        self.world = NodeWorld()
        for name in self.NAMES:
            self.world.peer(name, receive=ORDERS)
        copied = self.restart(lambda db: bytes(db.serialize("main")))
        peers = {name: self.world.peer(name, receive=ORDERS, answering=True) for name in self.NAMES}
        self.known = {name: incarnation(peer) for name, peer in peers.items()}
        self.send(b"old 1", b"old 2", b"same")
        self.restart(lambda db: db.deserialize("main", copied))

    def restart(self, meanwhile: Any = None) -> Any:
        self.world.node.stopService()
        self.world.settle(self.world.limits.stop_timeout + 1)
        found = meanwhile and meanwhile(self.world.log._store.db)
        self.world.start()
        return found

    def send(self, *bodies: bytes) -> None:
        """From a program that begins anew: each a batch of its own."""
        shop = self.world.peer("shop", incarnation=f"of {bodies[0]!r}".replace(" ", "-"))
        for sequence, body in enumerate(bodies, 1):
            shop.transfer(sequence, "orders.new", [body])
            self.world.settle()
        shop.connection.abort()
        self.world.settle()

    def come(self, name: str, *, crc: int | None = None) -> ScriptedPeer:
        """It has taken three batches, and "same" last."""
        crc = crc32(encode_messages([WireMessage(b"same")])) if crc is None else crc
        kind = type("Known", (Remembers,), {"known": self.known[name]})
        resume = Resume((3 << 16) + 1, (), (3 << 16, 3 << 16, crc))
        return self.world.peer(name, receive=ORDERS, resume=resume, kind=kind)

    def epoch(self, name: str) -> str:
        return self.world.node.parts.directory.named(name).epoch


NEW = (b"new 1", b"new 2", b"same")


@pytest.mark.parametrize("killed", [False, True], ids=["at once", "after another start"])
@pytest.mark.parametrize("how", ["ahead", "other content", "error 11"])
def test_6_one_that_contradicts_shows_for_all_that_have_not_come_since_that_the_log_went_back(
    how: str, killed: bool
) -> None:
    """Of billing nothing shows: the log has grown beyond what it took, and its newest is the same.

    It has not had what has those positions now.
    """
    put_back = PutBack()
    if how == "ahead":
        audit = put_back.come("audit")
        put_back.send(*NEW)
    elif how == "other content":
        put_back.send(*NEW)
        audit = put_back.come("audit", crc=7)
    else:
        put_back.send(*NEW)
        audit = put_back.world.peer("audit", receive=ORDERS)
        audit.connection.fail(ContentChanged(1 << 16, 1 << 16))
        put_back.world.settle()
    assert audit.lost_because is not None
    if killed:
        put_back.restart()
    for name in ("billing", "audit"):
        again = put_back.come(name)
        assert incarnation(again) == f"{put_back.known[name]}.{put_back.epoch(name)}"
        assert put_back.epoch(name)
        assert taken(again) == [*NEW]


def test_6_who_has_come_since_the_start_stays_who_it_is() -> None:
    put_back = PutBack()
    put_back.world.peer("early", receive=ORDERS).connection.abort()  # it has taken nothing
    put_back.world.settle()
    put_back.come("audit")
    assert [bool(put_back.epoch(name)) for name in put_back.NAMES] == [True, True, False, True]
    put_back.send(*NEW)
    assert taken(put_back.world.peer("early", receive=ORDERS)) == [*NEW]
    before = put_back.epoch("audit")
    put_back.come("picky", crc=7)  # knows another node than this now: it says nothing
    assert put_back.epoch("audit") == before


def test_6_of_very_many_some_get_another_incarnation_in_each_turn_and_the_one_that_told_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("msgservice.node.receivers.ANEW_A_TURN", 1)
    put_back = PutBack()
    receivers = put_back.world.node.parts.receivers
    audit = put_back.world.node.parts.directory.named("audit")
    receivers.begin_anew(audit)
    assert [bool(put_back.epoch(name)) for name in put_back.NAMES] == [False, True, False, False]
    assert receivers.begins_anew(audit)
    billing = put_back.known["billing"]
    early = put_back.come("early")  # while it is under way
    assert put_back.epoch("early")
    assert early.lost_because is not None or incarnation(early) != put_back.known["early"]
    put_back.world.settle()
    assert all(put_back.epoch(name) for name in put_back.NAMES)
    assert incarnation(put_back.come("billing")).startswith(f"{billing}.")


def test_6_a_node_that_stops_then_gives_all_of_them_another_incarnation_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("msgservice.node.receivers.ANEW_A_TURN", 1)
    put_back = PutBack()
    receivers = put_back.world.node.parts.receivers
    receivers.begin_anew(put_back.world.node.parts.directory.named("audit"))
    put_back.restart()
    assert all(put_back.epoch(name) for name in put_back.NAMES)
