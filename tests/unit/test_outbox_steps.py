"""What the worst frame of a receiver costs the node's sending side grows as the frame does.

Counted are the calls that are made while it is taken in, of Python and of C, for one size and for
twice that: what is quadratic makes four times as many.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

import pytest

from msgservice.core.frames import Ack, Frame, Nack, Transfer, encode_frame
from msgservice.message import Action
from msgservice.node import outlet_progress
from msgservice.records import Resume
from tests.kit.nodes import NodeWorld, ScriptedPeer

SIZE = 1000
GROWTH_MAX = 2.5  # for twice as much


def calls_of(work: Callable[[], object]) -> int:
    """How many calls this makes."""
    count = 0

    def called(frame: object, event: str, argument: object) -> None:
        nonlocal count
        if event in ("call", "c_call"):
            count += 1

    before = sys.getprofile()
    sys.setprofile(called)
    try:
        work()
    finally:
        sys.setprofile(before)
    return count


def sent(
    count: int, each: int = 1, *, order: str = "strict", lanes: bool = False
) -> tuple[NodeWorld, ScriptedPeer, list[Transfer]]:
    world = NodeWorld()
    billing = world.peer("billing", receive={"subjects": [">"], "order": order})
    shop = world.peer("shop")
    for first in range(1, count + 1, each):
        subject = f"s.{first}" if lanes else "s"
        shop.transfer(first, subject, [b"x"] * min(each, count + 1 - first))
    for _ in range(3):
        world.settle()
    return world, billing, billing.take(Transfer)


def taking(world: NodeWorld, frames: list[Frame]) -> Callable[[], None]:
    connection = next(iter(world.node.parts.dispatch)).connection
    assert connection is not None
    data = [encode_frame(frame) for frame in frames]

    def work() -> None:
        connection.frames_received(data)
        for _ in range(4):
            world.settle()

    return work


def ack_every_second(count: int) -> Callable[[], None]:
    world, _, transfers = sent(count, order="none")
    return taking(world, [Ack([(t.sequence, t.sequence) for t in transfers[1::2]])])


def ack_every_second_of_a_run(count: int) -> Callable[[], None]:
    world, _, (transfer,) = sent(count, count, order="none")
    first = transfer.sequence
    return taking(world, [Ack([(n, n) for n in range(first + 1, first + count, 2)])])


def ack_what_has_gone(count: int) -> Callable[[], None]:
    work = ack_every_second(count)
    work()
    return work


def nack(count: int, *, action: Action, rising: bool, each: int, lanes: bool) -> Callable[[], None]:
    world, _, transfers = sent(count, each, lanes=lanes)
    positions = [t.sequence + n for t in transfers for n in range(each)]
    if not rising:
        positions.reverse()
    return taking(world, [Nack(n, n, int(action), 0, "no") for n in positions])


def reject_all(count: int) -> Callable[[], None]:
    world, _, transfers = sent(count, 100)
    frames: list[Frame] = [Nack(transfers[0].sequence, transfers[-1].sequence + 99, 2, 0, "no")]
    return taking(world, frames)


def reattach(count: int) -> Callable[[], None]:
    """Everything was tried, and every second is taken: what RESUME says, and loading it again."""
    world, billing, transfers = sent(count, order="none")
    frames: list[Frame] = [Nack(t.sequence, t.sequence, 1, 60_000, "no") for t in transfers]
    taking(world, frames)()
    billing.connection.abort()
    world.settle(40)
    backlog = next(iter(world.node.parts.dispatch)).backlog
    assert backlog.idle
    taken = [(t.sequence, t.sequence) for t in transfers[1::2]]

    def work() -> None:
        world.peer(
            "billing",
            receive={"subjects": [">"], "order": "none"},
            resume=Resume(1, tuple(taken), None),
        )
        world.settle()

    return work


ANSWERS: dict[str, Callable[[int], Callable[[], None]]] = {
    "ACK of every second run": ack_every_second,
    "ACK of every second message of one run": ack_every_second_of_a_run,
    "ACK again of what has gone": ack_what_has_gone,
    "NACK dead of a whole window": reject_all,
    "RESUME of every second, all tried before": reattach,
}
NACKS: dict[str, Callable[[int], Callable[[], None]]] = {
    f"NACK {action.name} of each, {'rising' if rising else 'falling'}, {what}": partial(
        nack, action=action, rising=rising, each=each, lanes=lanes
    )
    for action in (Action.RETRY, Action.DEAD)
    for rising in (True, False)
    for what, each, lanes in (
        ("one lane", 1, False),
        ("a lane each", 1, True),
        ("runs of a hundred", 100, False),
    )
}


CASES = ANSWERS | NACKS


@pytest.mark.parametrize("case", CASES)
def test_the_worst_answers_of_a_receiver_cost_what_they_are_long(case: str) -> None:
    once, twice = (calls_of(CASES[case](count)) for count in (SIZE, 2 * SIZE))
    assert twice < GROWTH_MAX * once


def test_dead_letters_go_to_the_log_in_portions_and_the_cursor_with_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(outlet_progress, "DEAD_LETTERS_MAX", 64)
    world, billing, transfers = sent(1000, 100)
    shop = world.peer("shop", status_from=1)
    outlet = next(iter(world.node.parts.dispatch))
    world.settle(1)
    assert outlet.progress.queued.look() > 0
    taken: list[tuple[int, int]] = []
    take = outlet.progress.take_progress

    def counted(letters: int) -> object:
        progress = take(letters)
        taken.append((len(progress.dead), progress.cursor))
        return progress

    monkeypatch.setattr(outlet.progress, "take_progress", counted)
    first = transfers[0].sequence
    billing.connection.send(Nack(first, transfers[-1].sequence + 49, 2, 0, "no"))
    billing.connection.send(Ack([(transfers[-1].sequence + 50, transfers[-1].sequence + 99)]))
    for _ in range(40):
        world.settle()
    assert max(dead for dead, _ in taken) == 64
    assert sum(dead for dead, _ in taken) == 950
    assert [cursor for _, cursor in taken] == sorted({cursor for _, cursor in taken})
    assert outlet.caught_up
    assert outlet.progress.queued.look() == 0
    states = shop.statuses()
    assert sum(last - low + 1 for low, last in states[("billing", 5)]) == 950
    assert sum(last - low + 1 for low, last in states[("billing", 3)]) == 50
