"""The states of a receiver: every event in every one of them."""

from collections.abc import Callable
from typing import Any, cast

import pytest
from twisted.application.service import MultiService, Service
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from msgservice.errors import CannotListen, LogFailed, LogLocked
from msgservice.interfaces import IChannelUser, IConnector
from msgservice.receiver.receiver import Receiver, State
from tests.kit.doubles import double
from tests.kit.receiver_world import results_of

IDLE, OPENING, GIVING_UP, READY, STOPPING = State


class HeldInbox:
    """A stored inbox that opens and closes when a test says so."""

    inbox = "one"

    def __init__(self) -> None:
        self.opening: Deferred[str] = Deferred()
        self.closing: Deferred[None] = Deferred()
        self.log: list[str] = []

    def open(self) -> Deferred[str]:
        self.log.append("open")
        self.opening = Deferred()
        return self.opening

    def close(self) -> Deferred[None]:
        self.log.append("close")
        self.closing = Deferred()
        return self.closing


class Ports:
    """A transport whose ports are counted while they are open."""

    def __init__(self) -> None:
        self.open = 0
        self.closing: Deferred[None] | None = None  # fires when a port has closed; None: at once

    def find(self, description: str) -> Any:
        return self

    def check_listen(self, address: str) -> None:
        """All of them may be opened."""

    def listen(self, *_: object) -> Deferred[Any]:
        self.open += 1
        opened: Deferred[Any] = Deferred()
        opened.callback(double(stopListening=self._close))
        return opened

    def _close(self) -> Deferred[None] | None:
        self.open -= 1
        return self.closing


class World:
    """A receiver with a stored inbox, a node that it dials, and ports."""

    def __init__(self) -> None:
        self.inbox = HeldInbox()
        self.ports = Ports()
        self.receiver = Receiver(
            Clock(),
            name="billing",
            handler=lambda message: None,
            inbox=cast("Any", self.inbox),
            transports=cast("Any", self.ports),
        )
        self.receiver.setServiceParent(MultiService())
        self.dialler = Service()
        self.receiver.attach_through(self._dial, address="a node")
        self.stops: list[Deferred[None]] = []

    def _dial(self, make_user: Callable[[], IChannelUser]) -> IConnector:
        return cast("IConnector", self.dialler)

    def start(self) -> None:
        self.receiver.startService()

    def stop(self) -> None:
        self.stops.append(self.receiver.stop())

    def opened(self) -> None:
        self.inbox.opening.callback("one")

    def unusable(self) -> None:
        self.inbox.opening.errback(LogLocked("inbox.db", "somebody"))

    def closed(self) -> None:
        self.inbox.closing.callback(None)

    def failed(self) -> None:
        self.receiver._inbox_failed(LogFailed("it cannot be written"))

    @property
    def now(self) -> tuple[State, bool]:
        return self.receiver._state, bool(self.receiver.running)


# Where a receiver is, and whether it is to work: how it gets there.
WAYS: dict[tuple[State, bool], list[str]] = {
    (IDLE, False): [],
    (OPENING, True): ["start"],
    (GIVING_UP, False): ["start", "stop"],
    (GIVING_UP, True): ["start", "stop", "start"],
    (READY, True): ["start", "opened"],
    (STOPPING, False): ["start", "opened", "stop"],
    (STOPPING, True): ["start", "opened", "stop", "start"],
}
# What else happens in each; `start`, `stop` and `failed` may in all.
OPENINGS = {
    ((OPENING, True), "opened"): (READY, True),
    ((OPENING, True), "unusable"): (IDLE, False),
    ((GIVING_UP, False), "opened"): (STOPPING, False),
    ((GIVING_UP, False), "unusable"): (IDLE, False),
    ((GIVING_UP, True), "opened"): (STOPPING, True),
    ((GIVING_UP, True), "unusable"): (OPENING, True),
    ((STOPPING, False), "closed"): (IDLE, False),
    ((STOPPING, True), "closed"): (OPENING, True),
}
NEXT = OPENINGS | {
    ((IDLE, False), "start"): (OPENING, True),
    ((IDLE, False), "stop"): (IDLE, False),
    ((IDLE, False), "failed"): (IDLE, False),
    ((OPENING, True), "start"): (OPENING, True),
    ((OPENING, True), "stop"): (GIVING_UP, False),
    ((OPENING, True), "failed"): (OPENING, True),
    ((GIVING_UP, False), "start"): (GIVING_UP, True),
    ((GIVING_UP, False), "stop"): (GIVING_UP, False),
    ((GIVING_UP, False), "failed"): (GIVING_UP, False),
    ((GIVING_UP, True), "start"): (GIVING_UP, True),
    ((GIVING_UP, True), "stop"): (GIVING_UP, False),
    ((GIVING_UP, True), "failed"): (GIVING_UP, True),
    ((READY, True), "start"): (READY, True),
    ((READY, True), "stop"): (STOPPING, False),
    ((READY, True), "failed"): (STOPPING, False),
    ((STOPPING, False), "start"): (STOPPING, True),
    ((STOPPING, False), "stop"): (STOPPING, False),
    ((STOPPING, False), "failed"): (STOPPING, False),
    ((STOPPING, True), "start"): (STOPPING, True),
    ((STOPPING, True), "stop"): (STOPPING, False),
    ((STOPPING, True), "failed"): (STOPPING, True),
}


def world_in(state: State, is_wanted: bool) -> World:
    world = World()
    for step in WAYS[state, is_wanted]:
        getattr(world, step)()
    assert (state, is_wanted) == world.now
    return world


def test_all_states_and_events_are_decided() -> None:
    assert set(State) == {state for state, _ in WAYS}
    assert set(NEXT) == {(at, event) for at in WAYS for event in ("start", "stop", "failed")} | set(
        OPENINGS
    )


@pytest.mark.parametrize(("at", "event"), NEXT)
def test_an_event_in_a_state_leads_where_the_table_says(at: tuple[State, bool], event: str) -> None:
    world = world_in(*at)
    getattr(world, event)()
    assert NEXT[at, event] == world.now
    is_ready = world.receiver._state is READY
    assert is_ready == bool(world.dialler.running)
    ready = results_of(world.receiver.ready())
    if event == "unusable" and world.receiver._state is IDLE:
        assert [type(failure.value) for failure in ready] == [LogLocked]
    else:
        assert [None] * is_ready == ready
    # Who waits for an end is told when there is one, and not before.
    has_ended = world.receiver._state in (IDLE, OPENING)
    assert [has_ended] * len(world.stops) == [bool(stop.called) for stop in world.stops]


@pytest.mark.parametrize("at", WAYS)
def test_from_everywhere_a_stop_ends_in_an_end(at: tuple[State, bool]) -> None:
    world = world_in(*at)
    world.stop()
    if world.receiver._state is GIVING_UP:
        world.opened()
    if world.receiver._state is STOPPING:
        world.closed()
    assert ((IDLE, False), 0) == (world.now, world.dialler.running)
    assert all(stop.called for stop in world.stops)
    assert world.inbox.log.count("open") == world.inbox.log.count("close")


@pytest.mark.parametrize("at", WAYS)
def test_a_port_is_opened_when_the_receiver_is_ready_and_only_then(at: tuple[State, bool]) -> None:
    world = world_in(*at)
    told: list[Any] = []
    world.receiver.listen("tcp:7420").addBoth(told.append)
    state, is_wanted = at
    if state in (GIVING_UP, STOPPING) and not is_wanted:
        assert [CannotListen] == [failure.type for failure in told]
        return
    if state is IDLE:
        world.start()
    while world.receiver._state is not READY:
        assert ([], 0) == (told, world.ports.open)
        (world.closed if world.receiver._state is STOPPING else world.opened)()
    assert ([told[0]], 1) == (world.receiver.ways[1:], world.ports.open)


def test_a_stop_is_over_when_its_port_is_closed() -> None:
    world = world_in(READY, True)
    world.receiver.listen("tcp:7420")
    world.ports.closing = Deferred()
    world.stop()
    world.start()
    assert ["open"] == world.inbox.log
    world.ports.closing.callback(None)
    assert ["open", "close"] == world.inbox.log
    world.closed()
    world.opened()
    assert ((READY, True), 1) == (world.now, world.ports.open)


def test_a_port_is_closed_by_every_stop() -> None:
    world = world_in(READY, True)
    world.receiver.listen("tcp:7420")
    for _ in range(3):
        assert world.ports.open == 1
        world.stop()
        assert world.ports.open == 0
        world.closed()
        world.start()
        world.opened()
