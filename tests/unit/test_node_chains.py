"""Chains, one connection at a time: what a node says to the next, and what it takes from others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from msgservice.connection import Connection
from msgservice.core.frames import (
    VERSION,
    Ack,
    Frame,
    Hello,
    HelloOptions,
    Nack,
    Promised,
    Transfer,
)
from msgservice.credentials import THIS_PROCESS
from msgservice.errors import BadValue, PathTooLong
from msgservice.identity.rules import Rules
from msgservice.identity.users import User
from msgservice.limits import Limits
from msgservice.log.memory import MemoryLog
from msgservice.message import (
    FLAG_REPLAY,
    FLAG_RETAIN,
    FLAG_RETAIN_ONLY,
    FLAG_RETAINED,
    Action,
    PromiseOption,
    decode_messages,
    encode_bodies,
)
from msgservice.node.gate import Door
from msgservice.node.operations import NEXT_NODE_SECONDS
from msgservice.receiver_options import ReceiverOptions
from msgservice.records import PATH_MAX, Origin, Resume
from msgservice.testing.network import CALM, FaultyWorld
from msgservice.testing.transport import FaultyTransport
from tests.kit.nodes import FailingLog, NodeWorld, ScriptedPeer, state_of
from tests.kit.passes import users_of

FAR = "f" * 32  # log id of the node that passes on
HASH = "0" * 16


def origin(*path: str, sender: str = "shop", sequence: int = 1) -> Origin:
    return Origin(sender, sequence, HASH, path)


def run_of(*bodies: bytes) -> msgspec.Raw:
    return msgspec.Raw(encode_bodies(bodies))


def edge_operator(world: NodeWorld) -> ScriptedPeer:
    return world.peer("operator")


def passing_on(world: NodeWorld, name: str = "edge", **more: Any) -> ScriptedPeer:
    """A node that has dialled this one, to pass messages on."""
    more = {"incarnation": f"{FAR}.1", "node": name, **more}
    return world.peer(name, **more)


# --- what is taken from a node


def test_a_node_hands_in_what_others_have_sent_and_the_path_grows() -> None:
    world = NodeWorld()
    billing = world.peer("billing", receive={"subjects": [">"]})
    edge = passing_on(world)
    assert edge.node_hello is not None
    assert edge.node_hello.options.node == edge.node_hello.name
    edge.transfer(1, "orders.new", [b"one"], origin=origin(FAR, sequence=9))
    world.settle()
    assert [Ack([(1, 1)])] == edge.take(Ack)
    (transfer,) = billing.take(Transfer)
    assert Origin("shop", 9, HASH, (FAR, world.log.log_id)) == transfer.origin


def test_no_node_is_named_in_the_hello_of_a_producer() -> None:
    world = NodeWorld()
    shop = world.peer("shop")
    assert shop.node_hello is not None
    assert shop.node_hello.options.node is None


WRONG = {
    "no origin": {},
    "another node's log is the newest": {"origin": origin(FAR, "e" * 32)},
    "no path": {"origin": origin()},
    "a reserved sender": {"origin": origin(FAR, sender="$node")},
    "a path of what is no word": {"origin": origin("a b", FAR)},
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_forged_origin_is_refused_and_nothing_else(wrong: str) -> None:
    world = NodeWorld()
    edge = passing_on(world)
    edge.transfer(1, "orders.new", [b"one"], **WRONG[wrong])
    edge.transfer(2, "orders.new", [b"two"], origin=origin(FAR))
    world.settle()
    (nack,) = edge.take(Nack)
    assert (1, 1, Action.REFUSED) == (nack.first, nack.last, nack.action)
    assert [Ack([(2, 2)])] == edge.take(Ack)


def test_a_producer_says_no_origin() -> None:
    world = NodeWorld()
    shop = world.peer("shop")
    shop.transfer(1, "orders.new", [b"one"], origin=origin(FAR))
    world.settle()
    (nack,) = shop.take(Nack)
    assert "'origin' is taken from nodes only" == nack.reason


def test_a_path_that_is_too_long_ends_as_a_dead_letter_at_its_sender() -> None:
    world = NodeWorld()
    edge = passing_on(world)
    longest = [f"{number:032x}" for number in range(PATH_MAX - 1)]
    edge.transfer(1, "orders.new", [b"one"], origin=origin(*longest, FAR))
    edge.transfer(2, "orders.new", [b"two"], origin=origin(*longest[1:], FAR))
    world.settle()
    (nack,) = edge.take(Nack)
    assert (1, 1, Action.DEAD) == (nack.first, nack.last, nack.action)
    assert PathTooLong.refusal_code == nack.code
    assert [Ack([(2, 2)])] == edge.take(Ack)


def test_what_comes_back_is_acknowledged_counted_and_goes_to_nobody() -> None:
    world = NodeWorld()
    billing = world.peer("billing", receive={"subjects": [">"]})
    edge = passing_on(world)
    own = world.log.log_id
    edge.transfer(1, "orders.new", [b"one", b"two"], origin=origin(own, FAR))
    world.settle()
    assert [Ack([(1, 2)])] == edge.take(Ack)
    assert [] == billing.bodies()
    assert 2 == world.node.parts.operations.info().looped


def test_what_comes_back_goes_to_nobody_either_when_that_is_decided_again() -> None:
    clock = Clock()
    log = FailingLog(MemoryLog(reactor=clock, limits=Limits()))
    world = NodeWorld(log=log, clock=clock)
    edge = passing_on(world)
    log.hold = True
    edge.transfer(1, "orders.new", [b"one"], origin=origin(FAR))
    world.settle()
    edge.transfer(2, "orders.new", [b"two"], origin=origin(world.log.log_id, FAR))
    world.settle()
    billing = world.peer("billing", receive={"subjects": [">"]})
    log.release()
    world.settle()
    assert [Ack([(1, 1)]), Ack([(2, 2)])] == edge.take(Ack)
    assert [] == billing.bodies()


def retained_of(world: NodeWorld) -> list[tuple[str, bytes]]:
    """The subject and body of each message that a node retains."""
    found: list[Any] = []
    world.log.retained("", 10).addCallback(found.extend)
    world.settle()
    return [
        (one.subject, message.body)
        for one in found
        for message in decode_messages(msgspec.Raw(one.message))
    ]


def test_what_comes_back_takes_the_place_of_nothing_that_is_retained() -> None:
    world = NodeWorld()
    shop = world.peer("shop")
    shop.transfer(1, "state.a", [b"old"], flags=FLAG_RETAIN)
    shop.transfer(2, "state.a", [b"new"], flags=FLAG_RETAIN)
    world.settle()
    edge = passing_on(world)
    edge.transfer(1, "state.a", [b"old"], origin=origin(world.log.log_id, FAR), flags=FLAG_RETAIN)
    both = FLAG_RETAIN | FLAG_RETAIN_ONLY
    edge.transfer(2, "state.b", [b"old"], origin=origin(world.log.log_id, FAR), flags=both)
    world.settle()
    assert [Ack([(1, 2)])] == edge.take(Ack)
    assert [("state.a", b"new")] == retained_of(world)


def test_what_was_retained_before_a_node_was_made_a_receiver_is_retained_there_if_nothing_is() -> (
    None
):
    world = NodeWorld()
    billing = world.peer("billing", receive={"subjects": [">"]})
    edge = passing_on(world)
    edge.transfer(1, "state.a", [b"first"], origin=origin(FAR), flags=FLAG_RETAINED)
    edge.transfer(2, "state.a", [b"second"], origin=origin(FAR, sequence=2), flags=FLAG_RETAINED)
    world.settle()
    edge.transfer(3, "state.a", [b"third"], origin=origin(FAR, sequence=3), flags=FLAG_RETAINED)
    world.settle()
    assert [3] == [ack.ranges[-1][-1] for ack in edge.take(Ack)][-1:]
    assert [] == edge.take(Nack)
    assert [("state.a", b"first")] == retained_of(world)
    assert [b"first", b"second", b"third"] == billing.bodies()


def test_what_was_only_to_be_retained_and_is_sent_again_takes_no_newer_ones_place() -> None:
    world = NodeWorld()
    billing = world.peer("billing", receive={"subjects": [">"]})
    edge = passing_on(world)
    again = FLAG_REPLAY | FLAG_RETAIN | FLAG_RETAIN_ONLY
    edge.transfer(1, "state.a", [b"first"], origin=origin(FAR), flags=again)
    world.settle()
    edge.transfer(2, "state.a", [b"old"], origin=origin(FAR, sequence=2), flags=again)
    world.settle()
    assert [Ack([(1, 1)]), Ack([(2, 2)])] == edge.take(Ack)
    assert [("state.a", b"first")] == retained_of(world)
    assert [] == billing.bodies()
    edge.transfer(3, "state.a", [b"x"], origin=origin(FAR, sequence=3), flags=again & ~8)
    edge.transfer(4, "state.b", [b"y"], origin=origin(FAR, sequence=4), flags=again & ~8)
    world.settle()
    assert [b"x", b"y"] == billing.bodies()
    assert [("state.a", b"first"), ("state.b", b"y")] == sorted(retained_of(world))


def test_a_message_is_found_behind_the_first_node_by_who_sent_it_there() -> None:
    world = NodeWorld()
    world.peer("billing", receive={"subjects": [">"]}, answering=True)
    edge, shop = passing_on(world), world.peer("shop", incarnation="here")
    edge.transfer(1, "orders.new", [b"one", b"two"], origin=origin(FAR, sequence=9))
    shop.transfer(1, "orders.new", [b"another"])
    world.settle()
    operator = world.peer("operator")
    for sequence, at in ((9, 0), (10, 1)):
        ok, told = operator.request("$node.status", {"id": f"shop/{HASH}/{sequence}"})
        assert ok, told
        assert ((1 << 16) + at, "acknowledged") == (
            told["position"],
            told["receivers"]["billing"]["status"],
        )
    for unknown in (f"shop/{HASH}/11", f"till/{HASH}/9"):
        assert not operator.request("$node.status", {"id": unknown})[0]


def test_nobody_but_a_node_says_that_this_was_retained() -> None:
    world = NodeWorld()
    shop = world.peer("shop")
    shop.transfer(1, "state.a", [b"one"], flags=FLAG_RETAINED)
    world.settle()
    (nack,) = shop.take(Nack)
    assert "taken from nodes only" in nack.reason


def test_what_comes_back_with_a_delay_goes_to_nobody_when_it_is_due() -> None:
    world = NodeWorld()
    billing = world.peer("billing", receive={"subjects": [">"]})
    edge = passing_on(world)
    edge.transfer(1, "a.b", [b"mine"], origin=origin(world.log.log_id, FAR), delay=100)
    edge.transfer(2, "a.b", [b"other"], origin=origin("e" * 32, FAR, sequence=2), delay=100)
    for _ in range(3):
        world.settle()
        world.clock.advance(1)
    world.settle()
    assert [b"other"] == billing.bodies()


def test_idempotency_keys_of_a_chain_count_at_its_first_node_only() -> None:
    world = NodeWorld()
    billing = world.peer("billing", receive={"subjects": [">"]})
    edge = passing_on(world)
    keyed = msgspec.Raw(msgspec.msgpack.encode([[b"one", None, None, "k"]]))
    for sequence, sender in ((1, "shop"), (2, "web")):
        edge.connection.send(
            Transfer(sequence, "orders.new", keyed, origin=origin(FAR, sender=sender))
        )
    world.settle()
    assert [] == edge.take(Nack)
    assert [b"one", b"one"] == billing.bodies()


def test_the_lanes_of_two_producers_of_one_node_are_two() -> None:
    """A NACK of one must not discard the other's, which the node does not take back."""
    world = NodeWorld(limits=Limits(max_batch=4096, max_bytes=65536, backlog_bytes=4096))
    world.peer("billing", receive={"subjects": [">"]})
    edge = passing_on(world)
    for sequence, sender in enumerate(("shop", "shop", "shop", "web"), 1):
        body = b"x" * 3000
        edge.transfer(sequence, "orders.new", [body], origin=origin(FAR, sender=sender))
        world.settle(0.3)
    nacks = edge.take(Nack)
    assert [(3, Action.LATER), (4, Action.LATER)] == [(one.first, one.action) for one in nacks]


@pytest.mark.parametrize(
    ("options", "incarnation"),
    [({"node": "other"}, f"{FAR}.1"), ({"node": "edge", "receive": {"subjects": [">"]}}, FAR)],
)
def test_a_hello_of_a_node_that_contradicts_itself_is_refused(
    options: dict[str, Any], incarnation: str
) -> None:
    world = NodeWorld()
    edge = world.peer("edge", incarnation=incarnation, **options)
    assert edge.node_hello is None
    assert edge.lost_because is not None


def test_a_node_that_dials_itself_is_refused() -> None:
    world = NodeWorld()
    edge = world.peer("edge", incarnation=f"{world.log.log_id}.1", node="edge")
    assert edge.node_hello is None
    assert edge.connection.peer_error


# --- rights


def come(world: NodeWorld, user: str) -> ScriptedPeer:
    door = Door(asks=False, user=user)
    return passing_on(world, user, door=door, shown=THIS_PROCESS)


def test_only_who_may_relay_hands_in_what_others_have_sent() -> None:
    users = users_of(
        User(name="edge", rules=Rules(send=[">"], relay=True)),
        User(name="shop", rules=Rules(send=[">"])),
    )
    world = NodeWorld(users=users)
    edge = come(world, "edge")
    edge.transfer(1, "orders.new", [b"one"], origin=origin(FAR))
    world.settle()
    assert [Ack([(1, 1)])] == edge.take(Ack)
    shop = come(world, "shop")
    assert shop.node_hello is None
    assert "relay" in (shop.lost_because or "")


# --- what is passed on


class FarNode:
    """A node that was dialled, which says what a test tells it to (`connection.Owner`)."""

    def __init__(self, world: FaultyWorld, answer: Hello | None, resume: Resume) -> None:
        self.hello: Hello | None = None
        self.frames: list[Frame] = []
        self.lost_because = ""
        self.answers_up_to: int | None = None  # so many frames
        self.refuses = ""  # a subject, for now
        self.rejects = False  # whatever comes
        self._answer, self._resume = answer, resume
        self.connection = Connection(
            self, clock=world.clock, now=world.clock.seconds, limits=world.limits
        )

    def channel_up(self, connection: Connection) -> None:
        pass

    def greeted(self, connection: Connection, hello: Hello) -> None:
        self.hello = hello
        if self._answer is not None:
            connection.hello(self._answer)
            connection.resume(self._resume)

    def opened(self, connection: Connection, resume: Resume) -> None:
        pass

    def received(self, connection: Connection, frame: Frame) -> None:
        self.frames.append(frame)
        if type(frame) is not Transfer:
            return
        if self.rejects:
            connection.send(Nack(frame.sequence, frame.sequence, Action.DEAD, 0, "no"))
        elif frame.subject == self.refuses:
            connection.send(Nack(frame.sequence, frame.sequence, Action.LATER, 3000, "full"))
        elif self.answers_up_to is None or len(self.frames) <= self.answers_up_to:
            connection.send(Ack([(frame.sequence, frame.sequence)]))

    def turn_ended(self, connection: Connection) -> None:
        pass

    def writable(self, connection: Connection) -> None:
        pass

    def peer_leaves(self, connection: Connection, code: int, reason: str) -> None:
        pass

    def lost(self, connection: Connection, reason: str) -> None:
        self.lost_because = reason


class Dialling:
    """A node that has the receiver `centre` at `node:faulty:centre`, where a `FarNode` answers."""

    def __init__(
        self, answer: HelloOptions | None, *, name: str = "centre", incarnation: str = FAR
    ) -> None:
        self.far: list[FarNode] = []
        self.net = net = FaultyWorld(1, faults=CALM)
        self.hello = None if answer is None else Hello(VERSION, name, incarnation, answer)
        self.resume = Resume()
        self.answers_up_to: int | None = None

        def make() -> Connection:
            self.far.append(FarNode(net, self.hello, self.resume))
            self.far[-1].answers_up_to = self.answers_up_to
            return self.far[-1].connection

        transport = FaultyTransport(net)
        transport.listen(None, "faulty:centre", make, net.limits)
        self.world = NodeWorld(clock=net.clock, transports=[transport])
        self.add()
        self.settle()

    def settle(self) -> None:
        self.world.settle()
        self.net.run(0.1)
        self.world.settle()

    def add(self, patterns: Sequence[str] = (">",), **more: Any) -> None:
        receivers = self.world.node.parts.receivers
        made = Deferred.fromCoroutine(
            receivers.add("centre", patterns, address="node:faulty:centre", **more)
        )
        made.addErrback(self.failed)

    def failed(self, failure: Any) -> None:
        self.failure = failure.value


def test_a_node_says_hello_first_as_a_sender_that_is_a_node() -> None:
    dialling = Dialling(HelloOptions(node="centre"))
    hello, log_id = dialling.far[0].hello, dialling.world.log.log_id
    assert hello is not None
    assert hello.name == hello.options.node == dialling.world.node.parts.operations.info().name
    assert hello.options.receive is None
    number = dialling.world.node.parts.directory.named("centre").number
    assert f"{log_id}.{number}" == hello.incarnation


def test_a_node_that_was_meant_and_not_said_is_hinted_at() -> None:
    dialling = Dialling(None)
    receivers = dialling.world.node.parts.receivers
    made = receivers.add("meant", ["a.>"], address="faulty:centre")
    Deferred.fromCoroutine(made).addErrback(dialling.failed)
    dialling.settle()
    dialling.net.run(dialling.world.limits.hello_timeout + 1)
    ok, told = dialling.world.peer("asker").request("$node.receivers.list", {})
    assert ok
    errors = {row["name"]: row["last_error"] for row in told["receivers"]}
    assert "if a node is there, its address is node:" in errors["meant"]
    assert "not within" in errors["centre"]
    assert "its address" not in errors["centre"]


def test_what_is_passed_on_has_its_origin_and_asks_for_nobody() -> None:
    dialling = Dialling(HelloOptions(node="centre"))
    world, far = dialling.world, dialling.far[0]
    shop = world.peer("shop", status_from=1)
    shop.transfer(1, "orders.new", [b"one"], flags=4)
    dialling.settle()
    (transfer,) = [frame for frame in far.frames if type(frame) is Transfer]
    assert 0 == transfer.flags
    assert transfer.origin is not None
    assert ("shop", 1, (world.log.log_id,)) == (
        transfer.origin.sender,
        transfer.origin.sequence,
        transfer.origin.path,
    )
    assert {("centre", 3): [(1, 1)]} == shop.statuses()  # acknowledged: it is on that disk


def test_what_is_only_retained_is_retained_at_the_next_node_and_delivered_to_nobody() -> None:
    dialling = Dialling(HelloOptions(node="centre"))
    world, only = dialling.world, FLAG_RETAIN | FLAG_RETAIN_ONLY
    billing = world.peer("billing", receive={"subjects": [">"]})
    shop = world.peer("shop", status_from=1)
    shop.transfer(1, "state.a", [b"one"], flags=only)
    dialling.settle()
    shop.transfer(2, "state.a", [b""], flags=only)
    dialling.settle()
    assert [(b"one", only), (b"", only)] == passed_on(dialling)
    assert {("centre", 3): [(1, 1), (2, 2)]} == shop.statuses()
    assert [] == billing.bodies()
    edge = passing_on(world, incarnation=f"{'e' * 32}.1")
    edge.transfer(1, "state.b", [b"two"], origin=origin("e" * 32), flags=only)
    edge.transfer(2, "state.c", [b"three"], origin=origin(FAR, "e" * 32, sequence=2), flags=only)
    dialling.settle()
    assert [("state.b", b"two"), ("state.c", b"three")] == retained_of(world)
    assert (b"two", only) == passed_on(dialling)[-1]  # the other has been there
    assert [] == billing.bodies()
    changing = world.node.parts.receivers.change("centre", address="faulty:a-receiver")
    Deferred.fromCoroutine(changing).addErrback(dialling.failed)
    dialling.settle()
    shop.transfer(3, "state.a", [b"four"], flags=only)
    dialling.settle()
    assert 0 == state_of(world, "centre").queued


def test_46_what_was_only_to_be_retained_is_so_too_when_its_dead_letter_is_sent_again() -> None:
    dialling = Dialling(HelloOptions(node="centre"))
    world, far = dialling.world, dialling.far[0]
    shop, only = world.peer("shop"), FLAG_RETAIN | FLAG_RETAIN_ONLY
    other = world.peer("other", receive={"subjects": ["b"]})
    for number, flags in ((1, only), (2, FLAG_RETAIN), (3, 0)):
        far.rejects = True
        shop.transfer(number, f"state.{number}", [b"%d" % number], flags=flags)
        dialling.settle()
    far.rejects = False
    far.frames.clear()
    ok, told = shop.request("$node.dead.requeue", {"receiver": "centre"})
    assert (ok, told["count"]) == (True, 3)
    dialling.settle()
    assert [
        (b"1", FLAG_REPLAY | only),
        (b"2", FLAG_REPLAY | FLAG_RETAIN),
        (b"3", FLAG_REPLAY),
    ] == passed_on(dialling)
    # Here it is what was sent last.
    assert [("state.1", b"1"), ("state.2", b"2")] == sorted(retained_of(world))
    far.rejects = True
    shop.transfer(4, "state.4", [b"4"], flags=only)
    dialling.settle()
    ok, told = shop.request("$node.dead.requeue", {"receiver": "centre", "to": "other"})
    assert (ok, told["count"]) == (True, 1)
    (transfer,) = other.take(Transfer)
    assert FLAG_REPLAY == transfer.flags


def test_46_a_dead_letter_goes_to_no_node_where_its_message_has_been() -> None:
    dialling = Dialling(HelloOptions(node="centre"))
    world, far = dialling.world, dialling.far[0]
    billing = world.peer("billing", receive={"subjects": [">"]})
    edge = passing_on(world, incarnation=f"{'e' * 32}.1")
    for number, path in ((1, ("e" * 32,)), (2, (FAR, "e" * 32))):
        edge.transfer(number, "orders.new", [b"x"], origin=origin(*path, sequence=number))
        dialling.settle()
        for transfer in billing.take(Transfer):
            billing.nack(transfer.sequence, transfer.sequence, Action.DEAD, 0, "no")
        dialling.settle()
    far.frames.clear()
    asked = {"receiver": "billing", "to": "centre"}
    for more in ({}, {"dry_run": True}, {"of": f"shop/{HASH}/2"}):
        ok, told = edge_operator(world).request("$node.dead.requeue", asked | more)
        assert not ok
        assert f"shop/{HASH}/2 has been at node 'centre'" in told
    assert [] == far.frames
    ok, told = edge_operator(world).request("$node.dead.requeue", asked | {"of": f"shop/{HASH}/1"})
    assert (ok, told["count"]) == (True, 1)
    dialling.settle()
    assert [(b"x", FLAG_REPLAY)] == passed_on(dialling)


def test_what_was_only_retained_and_lost_is_not_delivered_when_it_is_sent_again() -> None:
    dialling = Dialling(HelloOptions(node="centre"))
    shop = dialling.world.peer("shop")
    shop.transfer(1, "state.a", [b"one"])
    dialling.settle()
    shop.transfer(2, "state.a", [b"two"], flags=FLAG_RETAIN | FLAG_RETAIN_ONLY)
    shop.transfer(3, "state.a", [b"three"])
    dialling.settle()
    comes_back(dialling, "e" * 32, Resume(floor=(1 << 16) + 1))
    assert [(b"three", FLAG_REPLAY)] == passed_on(dialling)


def test_nothing_goes_back_to_a_node_where_it_has_been() -> None:
    dialling = Dialling(HelloOptions(node="centre"))
    world, far = dialling.world, dialling.far[0]
    other = "e" * 32
    centre = world.peer("centre", incarnation=f"{FAR}.7", node="centre")
    centre.transfer(1, "orders.new", [b"from centre"], origin=origin(FAR))
    centre.transfer(2, "orders.new", [b"over another"], origin=origin(other, FAR))
    dialling.settle()
    assert [Ack([(1, 2)])] == centre.take(Ack)
    assert [] == [frame for frame in far.frames if type(frame) is Transfer]


ANSWERS = {
    "an older node, or a receiver": (HelloOptions(), {}, "does not say that it is a node"),
    "another name": (HelloOptions(node="edge"), {"name": "edge"}, "but 'edge' answered"),
}


@pytest.mark.parametrize("answer", ANSWERS)
def test_a_node_that_is_not_who_was_dialled_gets_nothing(answer: str) -> None:
    options, more, expected = ANSWERS[answer]
    dialling = Dialling(options, **more)
    shop = dialling.world.peer("shop")
    shop.transfer(1, "orders.new", [b"one"])
    dialling.settle()
    assert not any(type(frame) is Transfer for far in dialling.far for frame in far.frames)
    assert expected in state_of(dialling.world, "centre").last_error


def test_what_is_no_node_any_more_gets_all_that_matches_wherever_it_has_been() -> None:
    dialling = Dialling(HelloOptions(node="centre"))
    world, parts = dialling.world, dialling.world.node.parts
    changing = parts.receivers.change("centre", address="faulty:a-receiver")
    Deferred.fromCoroutine(changing).addErrback(dialling.failed)
    dialling.settle()
    other = world.peer("other", incarnation=f"{FAR}.7", node="other")
    other.transfer(1, "orders.new", [b"from there"], origin=origin(FAR))
    dialling.settle()
    assert 1 == state_of(world, "centre").queued


def test_what_has_become_a_node_is_sent_nothing_of_what_it_took_before_it_was_one() -> None:
    dialling = Dialling(HelloOptions(node="centre"))
    world, receivers = dialling.world, dialling.world.node.parts.receivers
    billing = world.peer("billing", receive={"subjects": [">"]}, inbox="its-file")
    billing.answering = True
    shop = world.peer("shop")
    shop.transfer(1, "orders.new", [b"one"])
    dialling.settle()
    assert 1 == state_of(world, "billing").settled["acknowledged"]
    billing.connection.abort()
    dialling.hello = Hello(VERSION, "billing", "d" * 32, HelloOptions(node="billing"))
    changing = receivers.change("billing", address="node:faulty:centre")
    Deferred.fromCoroutine(changing).addErrback(dialling.failed)
    for _ in range(10):
        dialling.net.run(1)
        dialling.world.settle()
    assert state_of(world, "billing").connected
    assert [] == passed_on(dialling)


def test_a_node_that_was_dialled_hands_in_nothing() -> None:
    dialling = Dialling(HelloOptions(node="centre"))
    far = dialling.far[0]
    far.connection.send(Transfer(1, "orders.new", run_of(b"x"), origin=origin(FAR)))
    dialling.settle()
    assert far.connection.is_gone
    assert "the other way" in far.lost_because


def test_55_a_next_node_is_one_receiver_and_the_promise_goes_no_further() -> None:
    dialling = Dialling(HelloOptions(node="centre"))
    shop = dialling.world.peer("shop", status_from=1)
    promise = PromiseOption(1, 60_000)
    shop.connection.send(Promised(1, "orders.new", run_of(b"one"), promise=promise))
    dialling.settle()
    (passed_on,) = [one for one in dialling.far[0].frames if isinstance(one, Transfer)]
    assert Transfer is type(passed_on)
    assert ("$promise", 3) in shop.statuses()


def test_55_a_node_that_passes_on_asks_for_no_promise() -> None:
    world = NodeWorld()
    world.peer("billing", receive={"subjects": [">"]})
    edge = passing_on(world)
    promise = PromiseOption(1, 60_000)
    edge.connection.send(
        Promised(1, "orders.new", run_of(b"one"), promise=promise, origin=origin(FAR))
    )
    world.settle()
    (nack,) = edge.take(Nack)
    assert "a promise is given to a producer, not to a node" in nack.reason


def test_a_node_gets_each_lane_in_order_or_is_no_receiver() -> None:
    dialling = Dialling(HelloOptions(node="centre"))
    receivers = dialling.world.node.parts.receivers
    with pytest.raises(BadValue, match="towards a node"):
        receivers.add(
            "other", [">"], ReceiverOptions(order="none"), address="node:faulty:centre"
        ).send(None)
    with pytest.raises(BadValue, match="towards a node"):
        receivers.change("centre", order="none").send(None)


def test_the_nodes_own_subjects_are_passed_on_to_nobody() -> None:
    dialling = Dialling(HelloOptions(node="centre"))
    receivers = dialling.world.node.parts.receivers
    with pytest.raises(BadValue, match="no other node takes it"):
        receivers.add("other", ["a.>", "$dead.>"], address="node:faulty:centre").send(None)
    with pytest.raises(BadValue, match="no other node takes it"):
        receivers.change("centre", patterns=["$dead.billing"]).send(None)


def test_no_sender_takes_the_place_of_a_node_that_was_dialled() -> None:
    dialling = Dialling(HelloOptions(node="centre"))
    dialling.world.peer("centre", incarnation=FAR)
    for _ in range(5):
        dialling.net.run(1)
        dialling.settle()
    assert not dialling.far[0].connection.is_gone
    assert 1 == len(dialling.far)


def test_the_id_of_a_copied_log_ends_the_path_of_what_was_stored_before() -> None:
    assert ("a", "b") == origin("a").passed_on("b").path
    assert ("a", "b") == origin("a", "b").passed_on("b").path
    full = origin(*map(str, range(PATH_MAX)))
    assert PATH_MAX == len(full.passed_on("b").path)
    assert "b" == full.passed_on("b").path[-1]


# --- a node that forgets


def passed_on(dialling: Dialling) -> list[tuple[bytes, int]]:
    """The bodies and flags of all that was passed on over the newest connection."""
    return [
        (message.body, frame.flags)
        for frame in dialling.far[-1].frames
        if type(frame) is Transfer
        for message in decode_messages(frame.messages)
    ]


def comes_back(dialling: Dialling, incarnation: str, resume: Resume, name: str = "centre") -> None:
    """The node that was dialled is dialled again, and says that it has this log."""
    dialling.hello = Hello(VERSION, name, incarnation, HelloOptions(node=name))
    dialling.resume = resume
    dialling.far[-1].connection.abort()
    for _ in range(10):
        dialling.net.run(1)
        dialling.world.settle()


def with_three_taken() -> Dialling:
    dialling = Dialling(HelloOptions(node="centre"))
    shop = dialling.world.peer("shop")
    for number in (1, 2, 3):
        shop.transfer(number, "orders.new", [b"%d" % number])
        dialling.settle()
    assert [(b"1", 0), (b"2", 0), (b"3", 0)] == passed_on(dialling)
    return dialling


@pytest.mark.parametrize("incarnation", ["e" * 32, FAR])
def test_what_a_node_has_lost_is_sent_again_and_no_cursor_goes_back(incarnation: str) -> None:
    dialling = with_three_taken()
    row = dialling.world.node.parts.directory.named("centre")
    cursor = row.cursor
    comes_back(dialling, incarnation, Resume(floor=(1 << 16) + 1))
    assert [(b"2", FLAG_REPLAY), (b"3", FLAG_REPLAY)] == passed_on(dialling)
    assert row.cursor > cursor


def test_a_node_whose_log_is_another_one_gets_all_that_is_kept() -> None:
    dialling = with_three_taken()
    comes_back(dialling, "e" * 32, Resume())
    assert [b"1", b"2", b"3"] == [body for body, _ in passed_on(dialling)]


def test_a_node_that_has_forgotten_who_was_away_gets_nothing_twice() -> None:
    dialling = with_three_taken()
    dialling.hello = None  # nobody answers
    dialling.far[-1].connection.abort()
    for _ in range(64):
        dialling.net.run(60)
        dialling.world.settle()
    comes_back(dialling, FAR, Resume())
    assert [] == passed_on(dialling)


def test_a_node_that_was_here_a_moment_ago_and_knows_nothing_has_lost_it() -> None:
    dialling = with_three_taken()
    comes_back(dialling, FAR, Resume())
    assert [b"1", b"2", b"3"] == [body for body, _ in passed_on(dialling)]


def test_a_copy_of_a_nodes_log_that_has_all_gets_nothing_twice() -> None:
    dialling = with_three_taken()
    comes_back(dialling, "e" * 32, Resume(floor=(3 << 16) + 1))
    assert [] == passed_on(dialling)


@pytest.mark.parametrize("incarnation", ["e" * 32, FAR])
def test_what_a_node_has_lost_below_something_that_it_has_is_sent_again(incarnation: str) -> None:
    """Stored before it: of another lane, while the first was refused for a while."""
    dialling = with_three_taken()
    comes_back(dialling, incarnation, Resume(floor=(1 << 16) + 1, ranges=((3 << 16, 3 << 16),)))
    assert (b"2", FLAG_REPLAY) in passed_on(dialling)


def test_what_a_node_does_not_have_and_never_acknowledged_is_not_lost() -> None:
    dialling = Dialling(HelloOptions(node="centre"))
    shop = dialling.world.peer("shop")
    dialling.far[-1].refuses = "orders.old"
    for number, subject in enumerate(("orders.new", "orders.old", "orders.new"), 1):
        shop.transfer(number, subject, [b"%d" % number])
        dialling.settle()
    comes_back(dialling, FAR, Resume(floor=(1 << 16) + 1, ranges=((3 << 16, 3 << 16),)))
    assert [(b"2", 0)] == passed_on(dialling)


def test_what_a_node_has_lost_above_what_it_never_acknowledged_is_sent_again() -> None:
    dialling = Dialling(HelloOptions(node="centre"))
    shop = dialling.world.peer("shop")
    dialling.far[-1].refuses = "orders.old"
    for number, subject in enumerate(("orders.old", *["orders.new"] * 3), 1):
        shop.transfer(number, subject, [b"%d" % number])
        dialling.settle()
    has = ((2 << 16, 2 << 16), (3 << 16, 3 << 16))
    comes_back(dialling, FAR, Resume(floor=1 << 16, ranges=has))
    assert [(b"1", 0), (b"4", FLAG_REPLAY)] == sorted(passed_on(dialling))


def test_a_node_with_an_empty_log_gets_what_is_retained_first_as_one_that_was_just_made() -> None:
    dialling = with_three_taken()
    shop = dialling.world.peer("web")
    shop.transfer(1, "state.a", [b"old"], flags=FLAG_RETAIN)
    shop.transfer(2, "state.a", [b"new"], flags=FLAG_RETAIN)
    dialling.settle()
    comes_back(dialling, "e" * 32, Resume())
    assert passed_on(dialling)[:2] == [(b"new", FLAG_RETAINED), (b"1", FLAG_REPLAY)]
    has_all = Resume(floor=dialling.world.node.parts.tail.next_number << 16)
    comes_back(dialling, "e" * 32, has_all)
    assert [] == passed_on(dialling)
    comes_back(dialling, "d" * 32, has_all)  # a copy of that has it
    assert [] == passed_on(dialling)


def test_a_node_with_an_empty_log_is_sent_on_though_it_gets_nothing_that_is_retained(
    logged: list[Any],
) -> None:
    dialling = Dialling(HelloOptions(node="centre"))
    shop = dialling.world.peer("shop")
    for number in range(1, 4):
        shop.transfer(number, f"state.{number}", [b"%d" % number], flags=FLAG_RETAIN)
        dialling.settle()
    dialling.world.node.parts.receivers._retained._limits = Limits(retained_at_join=2)
    comes_back(dialling, "e" * 32, Resume())
    assert [(b"1", 2), (b"2", 2), (b"3", 2)] == passed_on(dialling)
    (told,) = [event for event in logged if "what is retained here" in event["log_format"]]
    assert "retained_at_join" in told["why"]


def test_copies_that_a_node_has_lost_are_sent_again() -> None:
    dialling = with_three_taken()
    comes_back(dialling, "e" * 32, Resume(floor=(1 << 16) + 1))
    assert [(b"2", FLAG_REPLAY), (b"3", FLAG_REPLAY)] == passed_on(dialling)
    comes_back(dialling, "d" * 32, Resume(floor=(4 << 16) + 1))
    assert [(b"3", FLAG_REPLAY)] == passed_on(dialling)


def test_what_a_node_has_lost_is_sent_again_once_however_often_it_loses_it() -> None:
    dialling = with_three_taken()
    for letter in "edcba":
        comes_back(dialling, letter * 32, Resume(floor=(1 << 16) + 1))
        assert [b"2", b"3"] == [body for body, _ in passed_on(dialling)]


@pytest.mark.parametrize("is_passed_on", [False, True])
def test_what_a_node_has_lost_comes_once_though_it_is_too_large_to_name_its_original(
    *, is_passed_on: bool
) -> None:
    dialling = Dialling(HelloOptions(node="centre"))
    world = dialling.world
    body = b"x" * (world.limits.max_batch - 40)
    if is_passed_on:
        edge = passing_on(world, incarnation=f"{'e' * 32}.1")
        edge.transfer(1, "orders.new", [body], origin=origin("e" * 32))
    else:
        world.peer("shop").transfer(1, "orders.new", [body])
    dialling.settle()
    for letter in "dcba":
        comes_back(dialling, letter * 32, Resume())
        assert [body] == [one for one, _ in passed_on(dialling)]


def test_what_a_node_has_lost_expires_when_it_would_have() -> None:
    dialling = with_three_taken()
    shop = dialling.world.peer("web")
    for number, ttl in ((1, 1000), (2, 60_000)):
        shop.transfer(number, "orders.new", [b"ttl %d" % ttl], ttl=ttl)
        dialling.settle()
    dialling.net.run(2)
    comes_back(dialling, "e" * 32, Resume(floor=(3 << 16) + 1))
    (again,) = [frame for frame in dialling.far[-1].frames if type(frame) is Transfer]
    assert again.ttl is not None
    assert 40_000 < again.ttl < 60_000
    assert [b"ttl 60000"] == [body for body, _ in passed_on(dialling)]


def test_what_a_new_incarnation_knows_nothing_of_is_not_lost() -> None:
    dialling = with_three_taken()
    parts = dialling.world.node.parts
    parts.receivers.begin_anew(parts.directory.named("centre"))
    comes_back(dialling, FAR, Resume())
    assert [] == passed_on(dialling)


SIZE, COUNT = 400_000, 30  # more than a replay copies at once


@pytest.mark.parametrize("runs", ["lost", "rewind", "start"])
def test_what_a_node_has_lost_while_a_replay_runs_is_sent_again(runs: str) -> None:
    dialling = Dialling(HelloOptions(node="centre"))
    shop = dialling.world.peer("shop")
    receivers = dialling.world.node.parts.receivers
    for number in range(1, COUNT + 1):
        shop.transfer(number, "orders.new", [b"%02d" % number + b"x" * SIZE])
        dialling.settle()
    if runs == "start":  # as a receiver, which it was then
        dialling.hello = Hello(VERSION, "other", FAR, HelloOptions(node="other"))
        dialling.answers_up_to = 3
        other = dialling.world.peer(
            "other", receive={"subjects": [">"], "start": "first"}, inbox="its-file"
        )
        dialling.settle()
        other.connection.abort()
        changing = receivers.change("other", address="node:faulty:centre")
        Deferred.fromCoroutine(changing).addErrback(dialling.failed)
        for _ in range(30):
            dialling.net.run(1)
            dialling.settle()
    elif runs == "rewind":
        dialling.far[-1].answers_up_to = len(dialling.far[-1].frames) + 3
        Deferred.fromCoroutine(receivers.rewind("centre", 1 << 16, COUNT << 16))
        for _ in range(10):
            dialling.settle()
    else:
        dialling.answers_up_to = 3
        comes_back(dialling, "e" * 32, Resume())
    name = "centre" if runs != "start" else "other"
    row = dialling.world.node.parts.directory.named(name)
    (running,) = dialling.world.node.parts.replayer._running.values()
    assert (runs, False) == (running.replay.kind, running.replay.is_over)
    assert running.replay.copied > 3
    dialling.answers_up_to = None
    before = len(dialling.far)
    comes_back(dialling, "d" * 32, Resume(), name)
    for _ in range(30):
        dialling.settle()
    again = [
        message.body[:2]
        for far in dialling.far[before:]
        for frame in far.frames
        if type(frame) is Transfer
        for message in decode_messages(frame.messages)
    ]
    assert {b"%02d" % number for number in range(1, COUNT + 1)} == set(again)
    assert not dialling.world.node.parts.replayer.runs(row.number)


def test_56_next_nodes_that_say_nothing_are_waited_for_together() -> None:
    """Each has some seconds; whoever asks does not wait for one behind the other."""
    dialling = Dialling(HelloOptions(node="centre"))
    world, net = dialling.world, dialling.net
    names = ("centre", "east", "west", "south")
    for name in names[1:]:
        hello = Hello(VERSION, name, FAR, HelloOptions(node=name))

        def make(hello: Hello = hello) -> Connection:
            dialling.far.append(FarNode(net, hello, Resume()))
            return dialling.far[-1].connection

        transport = FaultyTransport(net)
        transport.listen(None, f"faulty:{name}", make, net.limits)
        receivers = world.node.parts.receivers
        Deferred.fromCoroutine(receivers.add(name, [">"], address=f"node:faulty:{name}"))
    dialling.settle()
    shop = world.peer("shop", status_from=1)
    shop.transfer(1, "orders.new", [b"one"])
    dialling.settle()
    assert {(name, 3) for name in names} == set(shop.statuses())
    operations = world.node.parts.operations
    asking = Deferred.fromCoroutine(operations.why_all(f"log:{1 << 16}"))
    net.run(NEXT_NODE_SECONDS + 1)
    causes = asking.result
    assert isinstance(causes, list), "it waits for one after the other"
    assert [(name, kind) for name in names for kind in ("acknowledged", "unsaid")] == [
        (one.receiver or one.node, one.kind) for one in causes
    ]
