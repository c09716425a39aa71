"""A window of small runs is loaded, sent and answered over turns, and none of them is long."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from msgservice.client.hop import TURN_RUNS
from msgservice.core.frames import (
    Ack,
    Frame,
    Nack,
    ReceiveOptions,
    ResumeFrame,
    Transfer,
    decode_frame,
    encode_frame,
)
from msgservice.message import Action
from tests.bounds.meter import LIMIT, Meter
from tests.bounds.stage import NodeStage, TurnClock, hello
from tests.kit.channels import Recorder
from tests.kit.clients import ClientWorld
from tests.kit.node_double import Pipe
from tests.kit.nodes import ScriptedPeer

WINDOW = (1 << 16, 1 << 26)
RUNS = 32_768
NO_LIMIT = 1 << 60


def away(stage: NodeStage, order: str) -> None:
    """A receiver was here, and has gone."""
    peer = stage.peer("billing", receive={"subjects": ["orders.>"], "order": order})
    peer.connection.abort()
    stage.settle()


def come_back(
    stage: NodeStage, order: str, resume: Sequence[Frame], meter: Meter
) -> list[Transfer]:
    """The receiver is here again; return what it is sent."""
    connection = stage.bare()
    greeting = hello("billing", receive=ReceiveOptions(order=order), window=WINDOW)
    stage.feed(connection, [greeting, *map(encode_frame, resume)], meter, Meter(NO_LIMIT))
    channel = connection.channel
    assert isinstance(channel, Pipe)
    far = channel.other
    assert isinstance(far, Pipe)
    recorder = far.user
    assert isinstance(recorder, Recorder)
    frames = [decode_frame(data) for data in recorder.frames]
    return [frame for frame in frames if isinstance(frame, Transfer)]


def test_a_receiver_that_comes_back_to_a_backlog_of_small_runs() -> None:
    stage = NodeStage()
    away(stage, "strict")
    stage.fill(RUNS)
    meter = Meter()
    sent = come_back(stage, "strict", [ResumeFrame(1, [])], meter)
    assert meter.over is None, meter.over
    assert RUNS == len(sent)
    assert sent == sorted(sent, key=lambda transfer: transfer.sequence)


def test_a_resume_that_names_every_other_message() -> None:
    stage, count = NodeStage(), RUNS // 2
    away(stage, "none")
    stage.fill(count, batch=4096)
    taken = [
        (position, position)
        for number in range(1, 1 + count // 4096)
        for position in range(number << 16, (number << 16) + 4096, 2)
    ]
    meter = Meter()
    more = [ResumeFrame(1, taken[at : at + 1000], None, True) for at in range(0, len(taken), 1000)]
    sent = come_back(stage, "none", [*more, ResumeFrame(1, [])], meter)
    assert meter.over is None, meter.over
    assert count // 2 == len(sent)


def test_a_resume_that_has_taken_a_window_of_small_runs_that_are_loaded() -> None:
    stage, billing, sent = sent_all("strict")
    stage.far(billing).channel_lost("gone")
    meter = Meter()
    took = ResumeFrame(1 + sent[-2].sequence, [])
    again = come_back(stage, "strict", [took], meter)
    assert meter.over is None, meter.over
    assert [sent[-1].sequence] == [one.sequence for one in again]


def sent_all(order: str, *, lanes: int = 1) -> tuple[NodeStage, ScriptedPeer, list[Transfer]]:
    stage = NodeStage()
    billing = stage.peer(
        "billing", receive={"subjects": ["orders.>"], "order": order}, window=WINDOW
    )
    stage.fill(RUNS, lanes=lanes)
    sent = billing.take(Transfer)
    assert RUNS == len(sent)
    return stage, billing, sent


def holds_of(sent: Sequence[Transfer]) -> list[tuple[int, int]]:
    """Ranges of all that was sent, as an ACK names them: positions between were never anybody's."""
    ranges: list[tuple[int, int]] = []
    for one in sent:
        after = one.sequence - 1 if one.after is None else one.after
        if ranges and ranges[-1][1] == after:
            ranges[-1] = (ranges[-1][0], one.sequence)
        else:
            ranges.append((one.sequence, one.sequence))
    return ranges


Answers = Callable[[Sequence[Transfer]], list[Frame]]
ANSWERS: dict[str, tuple[str, Answers]] = {
    "taken, in one": ("none", lambda sent: [Ack(holds_of(sent))]),
    "taken, in one, strict": ("strict", lambda sent: [Ack(holds_of(sent))]),
    "taken, in some frames of one read": (
        "none",
        lambda sent: [Ack(holds_of(sent[at : at + 512])) for at in range(0, len(sent), 512)],
    ),
    "again, in one": (
        "none",
        lambda sent: [Nack(*one, Action.RETRY, 60_000) for one in holds_of(sent)],
    ),
    "later, in one": (
        "none",
        lambda sent: [Nack(*one, Action.LATER, 60_000) for one in holds_of(sent)],
    ),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_one_answer_about_a_window_of_small_runs(name: str) -> None:
    order, answers = ANSWERS[name]
    stage, billing, sent = sent_all(order)
    meter = Meter()
    frames = [encode_frame(frame) for frame in answers(sent)]
    stage.feed(stage.far(billing), frames, meter, Meter(NO_LIMIT))
    assert meter.over is None, meter.over
    (found,) = stage.node.parts.dispatch.outlets.values()
    assert found.idle
    assert RUNS == (found.backlog.waiting.runs or RUNS - found.backlog.open_runs)
    assert found.progress.is_stored


def test_what_waits_already_is_not_walked_for_each_nack_about_it() -> None:
    stage, billing, sent = sent_all("none")
    far = stage.far(billing)
    ranges = holds_of(sent[:-1])  # one is in flight all the while
    later = [encode_frame(Nack(*one, Action.LATER, 60_000)) for one in ranges]
    stage.feed(far, later, Meter(NO_LIMIT), Meter(NO_LIMIT))
    meter = Meter()
    again = [encode_frame(Nack(*ranges[0], Action.LATER, 60_000))] * 900
    stage.feed(far, again, meter, Meter(NO_LIMIT))
    assert meter.over is None, meter.over
    assert meter.total <= 2 * LIMIT


def test_a_connection_that_is_lost_with_a_window_of_small_runs_in_flight() -> None:
    stage, billing, sent = sent_all("strict")
    meter = Meter()
    with meter.turn("the end"):
        stage.far(billing).channel_lost("gone")
    assert meter.over is None, meter.over
    again = come_back(stage, "strict", [ResumeFrame(1, [])], Meter(NO_LIMIT))
    assert [one.sequence for one in sent[: RUNS // 4]] == [one.sequence for one in again]


def test_a_client_sends_a_window_of_small_runs_over_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.kit.clients.Clock", TurnClock)
    world = ClientWorld(start=False)
    count = 5 * TURN_RUNS
    for number in range(count):
        world.client.send(f"orders.{number}", b"x")  # a run each
    world.client.start()
    world.node.answering = False
    clock, in_flight, turns = world.clock, world.client._hop.backlog.in_flight, []
    assert isinstance(clock, TurnClock)
    before, is_busy = 0, True
    while is_busy:
        is_busy = clock.turn()
        turns.append(in_flight.runs - before)
        before = in_flight.runs
    assert count == len(world.node.transfers) == sum(turns)
    assert max(turns) <= TURN_RUNS
