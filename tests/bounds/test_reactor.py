"""No turn of the reactor costs more than 50 ms, whatever a peer says: counted, not timed."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable, Iterable
from typing import Any, Literal

import msgspec
import pytest
from twisted.logger import LogEvent

from msgservice.connection import Connection
from msgservice.core.frames import (
    CANCEL_RANGES_MAX,
    KINDS,
    Auth,
    Bye,
    Cancel,
    Frame,
    ReceiveOptions,
    Request,
    ResumeFrame,
    Transfer,
    encode_frame,
)
from msgservice.core.session import State
from msgservice.credentials import THIS_PROCESS
from msgservice.limits import INTEGER_MAX, Limits
from msgservice.message import Status, encode_bodies
from tests.bounds.cases import ANSWERS, largest, reads, smallest
from tests.bounds.meter import LIMIT, Meter, TooMuchWork
from tests.bounds.stage import NodeStage, TurnClock, hello
from tests.kit.clients import ClientWorld
from tests.kit.logins import PASSWORD, LoginGate, QuickProver, users_with
from tests.kit.node_double import Pipe
from tests.kit.receiver_world import World

IN_FLIGHT = 8192
STATES = (
    State.GREETING,
    State.AUTHENTICATING,
    State.RESUMING,
    State.OPEN,
    State.CLOSING,
    State.CLOSED,
)
NO_LIMIT = 1 << 60
GROWTH = 2.5  # of what twice the input may cost
# A frame is not cut over turns.
OF_ONE_FRAME = {
    "taken, every other in one": LIMIT * 12 // 10,  # 4,096 ranges, each of which cuts a run
    "taken, every other run in one": LIMIT // 4,
    "dead, all in one": LIMIT // 15,  # 2,048 letters, each with what it is sent again with
}


@pytest.fixture(autouse=True, scope="module")
def made_before() -> None:
    """What is said is made before the first test, and left out of the collection after each."""
    largest()
    gc.collect()
    gc.freeze()


def hear(connection: Connection, frames: list[bytes], meter: Meter, clock: Any) -> None:
    try:
        with meter.turn("the read"):
            connection.frames_received(frames)
        for _ in range(50):
            if isinstance(clock, TurnClock):
                if not clock.turn(meter):
                    break
            else:
                with meter.turn("a turn"):
                    clock.advance(0)
    except TooMuchWork:
        pass


def node_connection(*, logs_in: bool = False) -> tuple[Connection, Any]:
    stage = NodeStage()
    connection = stage.bare()
    if logs_in:
        users = users_with(shop=PASSWORD)
        LoginGate(stage.clock, users).watch(connection, lambda principal: None)
    return connection, stage.clock


def client_connection(*, logs_in: bool = False) -> tuple[Connection, Any]:
    world = ClientWorld(start=False, prover=QuickProver() if logs_in else None)
    connection = world.client._hop.connect()
    _open(connection, world)
    return connection, world.clock


def receiver_connection(*, logs_in: bool = False) -> tuple[Connection, Any]:
    world = World(attach=False)
    made: list[Any] = []

    class Dialler:
        running = True

        def startService(self) -> None:
            pass

        def stopService(self) -> None:
            pass

    def dial(make_user: Callable[[], Any]) -> Any:
        made.append(make_user)
        return Dialler()

    prover = QuickProver() if logs_in else None
    world.receiver.attach_through(dial, address="bounds", prover=prover)
    connection = made[0]()
    _open(connection, world)
    return connection, world.clock


def _open(connection: Connection, world: Any) -> None:
    pipe = Pipe(world.clock, "peer", world.limits.frame_bytes)
    pipe.user = connection
    connection.channel_opened(pipe)


ROLES = {"node": node_connection, "client": client_connection, "receiver": receiver_connection}


def hello_to(role: str) -> bytes:
    if role == "receiver":
        return hello("node", receive=ReceiveOptions(order="strict"))
    return hello()


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("state", STATES, ids=lambda state: state.name)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_the_largest_and_the_most_frames_of_each_kind_in_each_state(
    role: str, state: State, kind: type, logged_failures: list[LogEvent]
) -> None:
    inputs = [[encode_frame(frame)] for frame in largest()[kind]] + [reads(smallest(kind))]
    for frames in inputs:
        connection, clock = ROLES[role](logs_in=state is State.AUTHENTICATING)
        for frame in said_before(role, state):
            connection.frames_received([frame])
        assert (state is State.AUTHENTICATING) == connection.is_logging_in
        if state is State.CLOSED:
            connection.session.lost()
        meter = Meter()
        hear(connection, frames, meter, clock)
        assert meter.over is None, meter.over
        assert meter.worst[0] <= LIMIT, meter.worst
        if connection.channel is not None:
            connection.channel_lost("over")
    assert not logged_failures


def said_before(role: str, state: State) -> list[bytes]:
    if state is State.AUTHENTICATING:
        # A client has said its first by itself.
        first = QuickProver().exchange(THIS_PROCESS).begin()
        return [encode_frame(Auth(first))] if role == "node" else []
    if state is State.GREETING:
        return []
    if state is State.RESUMING:
        return [hello_to(role)]
    said = [hello_to(role), encode_frame(ResumeFrame(1, []))]
    return [*said, encode_frame(Bye())] if state is State.CLOSING else said


def answered(
    name: str,
    count: int,
    meter: Meter,
    log_meter: Meter,
    inline: Literal["on", "off"] | None = None,
) -> NodeStage:
    """A receiver that was sent so many messages gives these answers."""
    batch, lanes, order, answers = ANSWERS[name]
    stage = NodeStage(inline=inline)
    billing = stage.peer(
        "billing", receive={"subjects": ["orders.>"], "order": order}, window=(1 << 16, 1 << 26)
    )
    stage.fill(count, batch=batch, lanes=lanes)
    sent = billing.take(Transfer)
    frames = (
        reads(answers(sent))
        if count == IN_FLIGHT
        else [encode_frame(frame) for frame in answers(sent)]
    )
    stage.feed(stage.far(billing), frames, meter, log_meter)
    return stage


@pytest.mark.parametrize("name", ANSWERS)
def test_what_a_receiver_answers_in_one_read(name: str) -> None:
    meter = Meter(OF_ONE_FRAME.get(name, LIMIT))
    answered(name, IN_FLIGHT, meter, Meter(NO_LIMIT))
    assert meter.over is None, meter.over


@pytest.mark.parametrize("inline", ["on", "off"])
@pytest.mark.parametrize("name", ANSWERS)
def test_twice_as_many_answers_cost_twice_as_much(name: str, inline: Literal["on", "off"]) -> None:
    totals: list[tuple[int, ...]] = []
    for count in (512, 1024):
        meter, log_meter = Meter(NO_LIMIT), Meter(NO_LIMIT)
        stage = answered(name, count, meter, log_meter, inline)
        costs = [meter.total, log_meter.total]
        if inline == "on":  # half of it may be small enough for the one, and all of it not
            costs = [sum(costs)]
        totals.append((*costs, stage.metered.steps_all))
    for few, many in zip(*totals, strict=True):
        assert many <= GROWTH * few + 20_000, totals


CALLS = Limits().requests
# What an asker may give up in one read: how far apart the ids of its calls are (0: in one frame),
# what it has given up before, and what it says.
GIVEN_UP: dict[str, tuple[int, list[Cancel], Callable[[], Iterable[Frame]]]] = {
    "all": (10, [], lambda: [Cancel([(0, INTEGER_MAX)])]),
    "each alone": (10, [], lambda: (Cancel([(10 * n, 10 * n)]) for n in range(1, CALLS + 1))),
    "every other of a frame": (0, [], lambda: [Cancel([(n, n) for n in range(1, CALLS, 2)])]),
    "the same again and again": (
        0,
        [Cancel([(1, CALLS - 1)])],
        lambda: itertools.repeat(Cancel([(1, CALLS - 1)])),
    ),
    "none, between them": (
        10,
        [],
        lambda: (Cancel([(10 * n + 1, 10 * n + 9)]) for n in itertools.count(1)),
    ),
    "none, in many ranges": (
        10,
        [],
        lambda: itertools.repeat(
            Cancel([(10 * n + 1, 10 * n + 9) for n in range(CANCEL_RANGES_MAX)])
        ),
    ),
}


@pytest.mark.parametrize("name", GIVEN_UP)
def test_what_an_asker_gives_up_in_one_read(name: str) -> None:
    apart, before, said = GIVEN_UP[name]
    stage = NodeStage()
    stage.peer("desk", respond=["a"], features=["cancel"])
    shop = stage.peer("shop")
    for first in [10 * n for n in range(1, CALLS + 1)] if apart else [1]:
        calls = encode_bodies([b""] * (1 if apart else CALLS))
        shop.connection.send(Request(first, "a", msgspec.Raw(calls)))
    for frame in before:
        shop.connection.send(frame)
    stage.settle()
    pending = stage.node.parts.responders.pending
    assert pending == (1 if before else CALLS)
    meter = Meter()
    hear(stage.far(shop), reads(said()), meter, stage.clock)
    assert meter.over is None, meter.over
    left = {"all": 0, "each alone": 0, "every other of a frame": CALLS // 2}.get(name, pending)
    assert left == stage.node.parts.responders.pending


def handed_over(count: int, subjects: int) -> ClientWorld:
    """A client that has sent so many messages, a run each, and has heard nothing yet."""
    world = ClientWorld(limits=Limits(window_messages=1 << 16))
    world.node.answering = False
    for number in range(count):
        world.client.send(f"s.{number % subjects}", b"x").addErrback(lambda failure: None)
    world.settle()
    return world


def test_what_a_node_tells_a_client_in_one_read() -> None:
    for kind in ("routed", "acked", "states", "refused"):
        world = handed_over(4096, 4096)
        connection = world.client._hop.connection
        assert connection is not None
        meter = Meter()
        hear(connection, _told(kind, 4096, world), meter, world.clock)
        assert meter.over is None, (kind, meter.over)


def _told(kind: str, count: int, world: ClientWorld) -> list[bytes]:
    from msgservice.core.frames import Ack, AudienceFrame, Nack, Routed, StatusFrame

    audience = [encode_frame(AudienceFrame(1, ["r1"]))]
    incarnation = world.client._hop.incarnation
    if kind == "routed":
        return audience + reads(Routed(n, n, 1, n) for n in range(1, count))
    if kind == "acked":
        return [encode_frame(Ack([(n, n) for n in range(2, count, 2)]))]
    if kind == "states":
        ranges = [(n, n) for n in range(1, count, 2)]
        return [encode_frame(StatusFrame(incarnation, "r1", int(Status.DEAD), ranges, "no"))]
    return reads(Nack(n, n, 1 + n % 4) for n in range(1, count))
