"""What counts as a message's attempt at a node: its receiver's answers, and lost connections."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from zope.interface import implementer

from msgservice.core.frames import (
    BYE_PAUSED,
    BYE_REPLACED,
    VERSION,
    Ack,
    Hello,
    HelloOptions,
    ReceiveOptions,
    Transfer,
)
from msgservice.interfaces import ITransport
from msgservice.limits import Limits
from msgservice.log.memory import MemoryLog
from msgservice.message import Status
from msgservice.node.outlet import UNLOAD_AFTER, Outlet
from msgservice.records import Resume
from msgservice.testing.transport import ChecksNothing
from msgservice.transport.local import local_connector
from tests.kit.nodes import FailingLog, NodeWorld, ScriptedPeer, state_of

ORDERS = {"subjects": ["orders.>"]}


class Probed:
    """A node whose receiver has lost its connection with one message in flight.

    What it is given next is alone, so that one more loss is the message's attempt.
    """

    def __init__(self, limits: Limits | None = None) -> None:
        self.world = NodeWorld(limits or Limits(retry_delay_max=1.0))
        self.shop = self.world.peer("shop", status_from=1)
        self.receiver = self.world.peer("billing", receive=ORDERS)
        self.shop.transfer(1, "orders.new", [b"one"])
        self.world.settle()
        self.receiver.connection.abort()
        self.world.settle()
        assert self.outlet.backlog.limit.most == 1
        self.receiver = self.come("r1")

    @property
    def outlet(self) -> Outlet:
        (outlet,) = self.world.node.parts.dispatch
        return outlet

    def come(self, incarnation: str, **receive: Any) -> ScriptedPeer:
        peer = self.world.peer("billing", incarnation=incarnation, receive=ORDERS | receive)
        assert peer.bodies() == [b"one"]
        return peer

    def attempts(self) -> int:
        said, answer = self.shop.request("$node.status", {"id": self.identity()})
        assert said, answer
        attempts: int = answer["receivers"]["billing"]["attempts"]
        return attempts

    def identity(self) -> str:
        (outlet,) = self.world.node.parts.dispatch
        return f"log:{outlet.backlog.cursor + 1}"


def _pause(probed: Probed) -> None:
    assert probed.shop.request("$node.receivers.pause", {"name": "billing"})[0]
    assert probed.receiver.bye is not None
    assert probed.receiver.bye[0] == BYE_PAUSED


def _the_same_process_dials_again(probed: Probed) -> None:
    old, probed.receiver = probed.receiver, probed.come("r1")
    assert old.bye is not None
    assert old.bye[0] == BYE_REPLACED


def _another_takes_its_place_after_a_goodbye(probed: Probed) -> None:
    probed.receiver.connection.bye()
    probed.world.settle()
    probed.receiver = probed.come("r2")


def _a_newcomer_wants_another_order(probed: Probed) -> None:
    probed.receiver = probed.come("r2", order="none")


def _the_order_is_changed(probed: Probed) -> None:
    asked = {"name": "billing", "order": "none"}
    assert probed.shop.request("$node.receivers.change", asked)[0]
    assert probed.receiver.bye is not None


def _it_says_goodbye_and_goes(probed: Probed) -> None:
    probed.receiver.connection.bye()
    probed.world.settle()
    probed.receiver.connection.abort()


def _the_node_stops(probed: Probed) -> None:
    world = probed.world
    world.node.stopService()
    world.settle(2 * world.limits.stop_timeout + 2)
    world.start()
    probed.shop = world.peer("shop", status_from=1)


ON_PURPOSE: list[Callable[[Probed], None]] = [
    _pause,
    _the_same_process_dials_again,
    _another_takes_its_place_after_a_goodbye,
    _a_newcomer_wants_another_order,
    _the_order_is_changed,
    _it_says_goodbye_and_goes,
    _the_node_stops,
]


@pytest.mark.parametrize("ends", ON_PURPOSE, ids=[one.__name__[1:] for one in ON_PURPOSE])
def test_14_a_connection_that_ends_on_purpose_is_nobodys_attempt(
    ends: Callable[[Probed], None],
) -> None:
    probed = Probed()
    ends(probed)
    probed.world.settle()
    assert probed.attempts() == 0


@pytest.mark.parametrize("ends", [_pause, _the_order_is_changed, _it_says_goodbye_and_goes])
def test_14_a_connection_that_ends_on_purpose_does_not_make_flights_smaller(
    ends: Callable[[Any], None],
) -> None:
    world = NodeWorld()
    shop = world.peer("shop")
    flown: Any = type("Flown", (), {"world": world, "shop": shop})()
    flown.receiver = world.peer("billing", receive=ORDERS)
    shop.transfer(1, "orders.new", [b"%d" % n for n in range(8)])
    world.settle()
    ends(flown)
    world.settle()
    shop.request("$node.receivers.resume", {"name": "billing"})
    again = world.peer("billing", receive=ORDERS)
    assert len(again.bodies()) == 8


def test_14_a_connection_that_is_lost_is_an_attempt_of_what_was_alone() -> None:
    probed = Probed()
    probed.receiver.connection.abort()
    probed.world.settle()
    assert probed.attempts() == 1


class Victim(ScriptedPeer):
    """Acknowledges what it is given, up to the message that it dies of."""

    died = False

    def turn_ended(self, connection: Any) -> None:
        for transfer in self.take(Transfer):
            self.died = self.died or b"poison" in bytes(transfer.messages)
            if not self.died:
                self.ack(transfer)


@pytest.mark.parametrize("other_lanes", [0, 3])
def test_14_a_message_that_processes_die_of_unseen_is_found(other_lanes: int) -> None:
    """Where no close travels, all that shows is that another process comes in its place."""
    limits = Limits(max_attempts=3, retry_delay_max=0.1, retry_delay_min=0.1, replacements=100)
    world = NodeWorld(limits)
    shop = world.peer("shop", status_from=1)
    world.peer("billing", incarnation="r0", receive=ORDERS)
    shop.transfer(1, "orders.new", [b"poison"])
    for n in range(other_lanes):
        shop.transfer(2 + n, f"orders.{n}", [b"fine"])
    world.settle()
    for life in range(1, 12):
        world.peer("billing", incarnation=f"r{life}", receive=ORDERS, kind=Victim)
        world.settle(0.5)
    told = shop.statuses()
    assert told.pop(("billing", Status.DEAD)) == [(1, 1)]
    assert sum(last - first + 1 for ranges in told.values() for first, last in ranges) == (
        other_lanes
    )


@implementer(ITransport)
class Here(ChecksNothing):
    """Dials a receiver that is a `ScriptedPeer` of the test's."""

    schemes = ("here",)

    def __init__(self, world: NodeWorld, kind: type[ScriptedPeer] = ScriptedPeer) -> None:
        self.world = world
        self.kind = kind
        self.peers: list[ScriptedPeer] = []

    def connector(self, reactor: Any, address: str, make_user: Any, limits: Limits) -> Any:
        return local_connector(
            make_user, self._make_far, lambda: succeed(None), reactor, limits, address
        )

    def _make_far(self) -> Any:
        options = HelloOptions(receive=ReceiveOptions(subjects=["orders.>"]))
        peer = self.kind(self.world, Hello(VERSION, "billing", "r1", options), Resume())
        self.peers.append(peer)
        return peer.connection

    def listen(self, reactor: Any, address: str, make_user: Any, limits: Limits) -> Any:
        raise NotImplementedError


def _another_address(world: NodeWorld) -> None:
    receivers = world.node.parts.receivers
    changed = receivers.change("billing", address="here:b")
    Deferred.fromCoroutine(changed)


def _no_longer(world: NodeWorld) -> None:
    world.node.stopService()
    world.settle(2 * world.limits.stop_timeout + 2)


@pytest.mark.parametrize("ends", [_another_address, _no_longer])
def test_14_a_receiver_that_is_dialled_no_more_is_nobodys_attempt(
    ends: Callable[[NodeWorld], None],
) -> None:
    world = NodeWorld(Limits(stop_timeout=1.0))
    here = Here(world)
    world.node.transports.register(here)
    shop = world.peer("shop")
    assert shop.request(
        "$node.receivers.add", {"name": "billing", "subjects": ["orders.>"], "address": "here:a"}
    )[0]
    shop.transfer(1, "orders.new", [b"one"])
    world.settle()
    here.peers[-1].connection.abort()
    world.settle(2 * world.limits.link_delay_min)
    (outlet,) = world.node.parts.dispatch
    assert outlet.backlog.limit.most == 1
    assert here.peers[-1].bodies() == [b"one"]
    ends(world)
    world.settle()
    assert here.peers[-1 if ends is _no_longer else -2].lost_because is not None
    assert [] == [run.attempts for run in outlet.backlog._open if run.attempts]


def test_14_a_dialled_receiver_that_goes_by_itself_is_an_attempt() -> None:
    world = NodeWorld(Limits(retry_delay_max=1.0))
    here = Here(world)
    world.node.transports.register(here)
    shop = world.peer("shop")
    asked = {"name": "billing", "subjects": ["orders.>"], "address": "here:a"}
    assert shop.request("$node.receivers.add", asked)[0]
    shop.transfer(1, "orders.new", [b"one"])
    world.settle()
    for _ in range(2):
        here.peers[-1].connection.abort()
        world.settle(2 * world.limits.link_delay_min)
    (outlet,) = world.node.parts.dispatch
    assert [1] == [run.attempts for run in outlet.backlog._open]


@pytest.mark.parametrize("is_dialled", [False, True])
def test_a_receiver_that_is_paused_says_why_also_when_its_connection_has_ended(
    is_dialled: bool,
) -> None:
    world = NodeWorld(Limits(stop_timeout=1.0))
    here = Here(world)
    world.node.transports.register(here)
    shop = world.peer("shop")
    if is_dialled:
        asked = {"name": "billing", "subjects": ["orders.>"], "address": "here:a"}
        assert shop.request("$node.receivers.add", asked)[0]
        receiver = here.peers[-1]
    else:
        receiver = world.peer("billing", receive=ORDERS)
    world.settle()
    receivers = world.node.parts.receivers
    Deferred.fromCoroutine(receivers.pause("billing", True, "paused: too many dead letters"))
    world.settle(2 * world.limits.stop_timeout + 2)
    assert receiver.lost_because is not None
    assert "paused: too many dead letters" == state_of(world, "billing").last_error


class Tried:
    """A run of five messages that its receiver was given; an older one is open, or none is."""

    def __init__(self, *, is_older_open: bool, order: str) -> None:
        clock, limits = Clock(), Limits(retry_delay_max=1.0)
        self.log = FailingLog(MemoryLog(reactor=clock, limits=limits))
        self.world = world = NodeWorld(limits, log=self.log, clock=clock)
        self.receive = ORDERS | {"order": order}
        self.shop = shop = world.peer("shop", status_from=1)
        self.receiver = world.peer("billing", receive=self.receive)
        if is_older_open:
            shop.transfer(1, "orders.older", [b"older"])
        shop.transfer(2, "orders.new", [b"0", b"1", b"2", b"3", b"4"])
        world.settle()
        self.first = self.receiver.take(Transfer)[-1].sequence

    def hold(self) -> None:
        """A group is under way until the log is released: all that comes is in the next one."""
        self.log.hold = True
        self.shop.transfer(7, "nobody", [b"5"])
        self.world.settle()

    def nack(self, first: int, last: int, reason: str) -> None:
        self.receiver.nack(self.first + first, self.first + last, 1, 0, reason)
        self.world.settle(3)  # it is sent again

    def ack(self, *ranges: tuple[int, int]) -> None:
        self.receiver.connection.send(
            Ack([(self.first + first, self.first + last) for first, last in ranges])
        )
        self.world.settle()

    def lose(self) -> None:
        self.receiver.connection.abort()
        self.world.settle()
        self.receiver = self.world.peer("billing", receive=self.receive)
        self.world.settle(3)

    def restart(self) -> None:
        self.world.node.stopService()
        self.world.settle(self.world.limits.stop_timeout + 1)
        self.world.start()

    def known(self) -> dict[int, tuple[int, str]]:
        """Attempts and reason of what is open, by its place in the run, as the log has them."""
        known = {}
        for place in range(5):
            found: list[Any] = []
            self.world.log.find(f"log:{self.first + place}").addCallback(found.append)
            self.world.settle()
            for status, attempts, reason in found[0].states.values():
                if status is Status.QUEUED:
                    known[place] = attempts, reason
        return known

    def in_memory(self) -> dict[int, tuple[int, str]]:
        """The same, as the outlet has it when it has loaded what is open."""
        (outlet,) = self.world.node.parts.dispatch
        return {
            place: (run.attempts, run.reason)
            for place in range(5)
            for run in outlet.backlog.open_between(self.first + place, self.first + place)
        }


def _acked_in_part(tried: Tried) -> dict[int, tuple[int, str]]:
    tried.nack(0, 4, "a")
    tried.nack(0, 4, "b")
    tried.ack((0, 1))
    return dict.fromkeys((2, 3, 4), (2, "b"))


def _acked_in_many_parts(tried: Tried) -> dict[int, tuple[int, str]]:
    tried.nack(0, 4, "a")
    tried.ack((0, 0), (3, 3))
    return dict.fromkeys((1, 2, 4), (1, "a"))


def _acked_behind_what_is_open(tried: Tried) -> dict[int, tuple[int, str]]:
    tried.nack(0, 4, "a")
    tried.ack((1, 1), (3, 3))
    return dict.fromkeys((0, 2, 4), (1, "a"))


def _a_part_failed_again(tried: Tried) -> dict[int, tuple[int, str]]:
    tried.nack(0, 4, "a")
    tried.nack(0, 1, "b")
    return dict.fromkeys((0, 1), (2, "b")) | dict.fromkeys((2, 3, 4), (1, "a"))


def _parts_failed_again_and_were_acked(tried: Tried) -> dict[int, tuple[int, str]]:
    tried.nack(0, 4, "a")
    tried.ack((1, 1), (3, 3))
    tried.nack(0, 0, "b")
    return {0: (2, "b"), 2: (1, "a"), 4: (1, "a")}


def _a_part_is_dead(tried: Tried) -> dict[int, tuple[int, str]]:
    tried.nack(0, 4, "a")
    tried.receiver.nack(tried.first, tried.first + 1, 2, 0, "never")
    tried.world.settle()
    return dict.fromkeys((2, 3, 4), (1, "a"))


def _one_was_alone_when_the_connection_was_lost(tried: Tried) -> dict[int, tuple[int, str]]:
    tried.nack(0, 4, "a")
    while (outlet := next(iter(tried.world.node.parts.dispatch))).backlog.limit.most != 1:
        tried.lose()
    if outlet.backlog.cursor < tried.first - 1:
        return dict.fromkeys(range(5), (1, "a"))  # the older one was alone
    tried.lose()
    lost = (2, "connection lost while it was handled")
    return {0: lost} | dict.fromkeys((1, 2, 3, 4), (1, "a"))


def _acked_when_it_was_loaded_anew(tried: Tried) -> dict[int, tuple[int, str]]:
    tried.nack(0, 4, "a")
    tried.receiver.connection.bye()
    tried.world.settle()
    tried.receiver.connection.abort()
    tried.world.settle(UNLOAD_AFTER + 1)
    assert not tried.in_memory()
    tried.receiver = tried.world.peer("billing", receive=tried.receive)
    tried.world.settle(3)
    tried.ack((1, 2))
    return dict.fromkeys((0, 3, 4), (1, "a"))


ANSWERS: list[Callable[[Tried], dict[int, tuple[int, str]]]] = [
    _acked_in_part,
    _acked_in_many_parts,
    _acked_behind_what_is_open,
    _a_part_failed_again,
    _parts_failed_again_and_were_acked,
    _a_part_is_dead,
    _one_was_alone_when_the_connection_was_lost,
    _acked_when_it_was_loaded_anew,
]


@pytest.mark.parametrize("in_one_group", [False, True], ids=["groups", "one group"])
@pytest.mark.parametrize(
    ("order", "is_older_open"),
    [("strict", False), ("strict", True), ("none", True)],
    ids=["at the cursor", "above it", "above it, without order"],
)
@pytest.mark.parametrize("answer", ANSWERS, ids=[one.__name__[1:] for one in ANSWERS])
def test_14_attempts_and_reasons_of_a_run_outlive_a_restart_however_it_was_answered(
    answer: Callable[[Tried], dict[int, tuple[int, str]]],
    is_older_open: bool,
    in_one_group: bool,
    order: str,
) -> None:
    tried = Tried(is_older_open=is_older_open, order=order)
    if in_one_group:
        tried.hold()
    expected = answer(tried)
    tried.log.release()
    tried.world.settle(1)
    assert tried.in_memory() == expected
    assert tried.known() == expected
    tried.restart()
    assert tried.known() == expected
    tried.receiver = tried.world.peer("billing", receive=tried.receive)
    tried.world.settle(3)
    assert tried.in_memory() == expected
    # What is answered in part after that is known by the next start.
    first = min(expected)
    tried.ack((first, first))
    del expected[first]
    tried.restart()
    assert tried.known() == expected


def _answer_at_random(tried: Tried, rng: random.Random) -> None:
    (outlet,) = tried.world.node.parts.dispatch
    flying = [run for run in outlet.backlog.runs_in_flight() if run.first >= tried.first]
    what = rng.choice(["nack", "nack", "ack", "ack", "lose", "hold", "release"])
    if what == "hold" and not tried.log.hold:
        tried.log.hold = True
    elif what == "release":
        tried.log.release()
        tried.world.settle()
    elif what == "lose":
        tried.lose()
    elif what == "nack" and flying:
        run = rng.choice(flying)
        first = rng.randint(run.first, run.last) - tried.first
        tried.nack(first, rng.randint(first, run.last - tried.first), f"{rng.random()}")
    elif what == "ack" and flying:
        places = [n - tried.first for run in flying for n in range(run.first, run.last + 1)]
        taken = rng.sample(places, min(len(places), rng.choice([1, 1, 2])))
        tried.ack(*((place, place) for place in sorted(taken)))


@pytest.mark.parametrize("seed", range(16))
def test_14_the_log_has_the_attempts_of_all_that_is_open(seed: int) -> None:
    rng = random.Random(seed)
    tried = Tried(is_older_open=rng.random() < 0.5, order=rng.choice(["strict", "none"]))
    for _ in range(12):
        _answer_at_random(tried, rng)
        if not tried.log.hold:
            assert tried.known() == tried.in_memory()
    tried.log.release()
    tried.world.settle(1)
    expected = tried.in_memory()
    assert tried.known() == expected
    tried.restart()
    tried.receiver = tried.world.peer("billing", receive=tried.receive)
    tried.world.settle(3)
    assert tried.known() == tried.in_memory() == expected


def test_14_why_a_receiver_waits_is_told_also_after_a_restart() -> None:
    tried = Tried(is_older_open=False, order="strict")
    tried.receiver.nack(tried.first, tried.first, 1, 60_000, "no printer\nTraceback")
    tried.world.settle()
    assert state_of(tried.world, "billing").last_error == "no printer"
    tried.restart()
    tried.world.peer("billing", receive=tried.receive)
    state = state_of(tried.world, "billing")
    assert (state.last_error, state.attempts) == ("no printer", 1)
