"""What a producer is told of messages that the log has let go: that they are taken, at least."""

from __future__ import annotations

import itertools
import random

import pytest
from twisted.internet.defer import succeed
from twisted.internet.task import Clock

from msgservice.core.frames import AudienceFrame, Routed
from msgservice.limits import INTEGER_MAX, Limits
from msgservice.log.memory import MemoryLog
from msgservice.message import Status
from msgservice.node import status_frames
from msgservice.node.tracker import GonePiece, _gone_pieces
from msgservice.records import NOBODY, History, Piece, StateRange
from tests.bounds.meter import Meter
from tests.kit.nodes import FailingLog, NodeWorld

KEEP_NOTHING = Limits(keep_seconds=0.0, keep_bytes=0)


@pytest.mark.parametrize("receives", [False, True], ids=["nobody", "one"])
def test_26_send_fires_though_the_ack_was_lost_and_the_batch_has_gone(receives: bool) -> None:
    clock = Clock()
    log = FailingLog(MemoryLog(reactor=clock, limits=KEEP_NOTHING))
    world = NodeWorld(KEEP_NOTHING, log=log, clock=clock)
    if receives:
        world.peer("billing", receive={"subjects": [">"]}, answering=True)
    client = world.node.client("shop")
    world.settle(1)
    log.hold = True
    fired: list[object] = []
    client.send("a", b"one").addBoth(fired.append)
    world.settle()
    client._connector.stopService()
    assert client._hop.connection is not None
    client._hop.connection.abort()
    world.settle()
    log.release()
    world.settle(5)
    assert log.room().used == 0
    client._connector.startService()
    world.settle(30)
    assert len(fired) == 1
    assert client.unanswered == 0


def test_8_telling_of_what_has_gone_takes_no_audience() -> None:
    limits = Limits(audiences=8, keep_seconds=0.0, keep_bytes=0)
    world = NodeWorld(limits)
    names = ["a", "b", "c", "d"]
    receivers = [world.peer(n, receive={"subjects": ["x.>"]}, answering=True) for n in names]
    shop = world.peer("shop", status_from=1)
    shop.transfer(1, "y", [b"mine"], to=["a"])
    world.settle(0.2)
    shop.transfer(2, "y", [b"mine"], to=["b"])
    world.settle(3)
    shop.connection.abort()
    world.settle()
    other = world.peer("other")
    subsets = [list(c) for k in (2, 3, 4) for c in itertools.combinations(names, k)]
    for sequence, subset in enumerate(subsets[:4], 1):
        other.transfer(sequence, f"z.{sequence}", [b"x"], to=subset)
        world.settle()
    for _ in range(70):  # more than half of all sets are known: those that nothing has are let go
        world.settle(60)
    for receiver in receivers:
        receiver.answering = False
    for sequence, subset in enumerate(subsets, 5):
        other.transfer(sequence, f"z.{sequence}", [b"x"], to=subset)
        world.settle()
    known = dict(world.log._audiences)
    rows = [world.node.parts.directory.named(name) for name in ("a", "b")]
    assert not {(row.number,) for row in rows} & {one.members for one in known.values()}
    back = world.peer("shop", status_from=1)
    assert back.lost_because is None
    named = {frame.audience: frame.receivers for frame in back.take(AudienceFrame)}
    routed = [(r.first, r.last, named[r.audience], r.position) for r in back.take(Routed)]
    assert routed == [(1, 1, ["a"], 0), (2, 2, ["b"], 0)]
    assert world.log._audiences == known


def test_8_numbers_of_what_has_gone_come_round_and_are_named_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(status_frames, "GONE_AUDIENCES_MAX", 2)
    world = NodeWorld()
    for name in ("a", "b", "c"):
        world.peer(name, receive={"subjects": ["x.>"]})
    shop = world.peer("shop", status_from=1)
    states = tuple(
        StateRange(receiver, Status.ACKNOWLEDGED, n, n)
        for n, receiver in enumerate([1, 2, 3, 2, 1], 1)
    )
    with monkeypatch.context() as patch:
        patch.setattr(world.log, "history", lambda *_: succeed(History((), states, None)))
        world.node.parts.tracker.tell_all_again()
        world.settle()
    frames = shop.frames
    named: dict[int, list[str]] = {}
    found = []
    for frame in frames:
        if isinstance(frame, AudienceFrame):
            named[frame.audience] = frame.receivers
        elif isinstance(frame, Routed):
            found.append((frame.first, named[frame.audience]))
    assert found == [(1, ["a"]), (2, ["b"]), (3, ["c"]), (4, ["b"]), (5, ["a"])]
    assert set(named) == {INTEGER_MAX, INTEGER_MAX - 1}
    assert shop.lost_because is None


def rejected_by(receivers: int, each: int, count: int = 2000) -> History:
    """Receivers each of which has rejected some of so many messages and taken the others."""
    rng, states = random.Random(1), []
    for receiver in range(1, receivers + 1):
        at = 1
        for sequence in sorted(rng.sample(range(2, count), each)):
            states.append(StateRange(receiver, Status.ACKNOWLEDGED, at, sequence - 1))
            states.append(StateRange(receiver, Status.DEAD, sequence, sequence, "no"))
            at = sequence + 1
        states.append(StateRange(receiver, Status.ACKNOWLEDGED, at, count))
    states.sort(key=lambda state: (state.first, state.receiver))
    return History((), tuple(states), None)


def test_8_what_has_gone_is_one_piece_as_long_as_its_receivers_are_the_same() -> None:
    units = []
    for each in (8, 16):
        page, meter = rejected_by(50, each), Meter()
        with meter.turn("a page"):
            pieces = list(_gone_pieces(page))
        assert pieces == [GonePiece(1, 2000, tuple(range(1, 51)))]
        units.append(meter.units)
    assert units[1] <= 2.5 * units[0]


def test_8_pieces_of_what_has_gone_are_made_as_they_are_told() -> None:
    """One that begins for each receiver: no turn makes them all."""
    count = 400
    states = tuple(StateRange(n, Status.ACKNOWLEDGED, n, count) for n in range(1, count + 1))
    pieces = iter(_gone_pieces(History((), states, None)))
    first = next(pieces)
    assert first == GonePiece(1, 1, (1,))
    meter = Meter()
    with meter.turn("the next ten"):
        ten = list(itertools.islice(pieces, 10))
    assert [len(piece.members) for piece in ten] == list(range(2, 12))
    assert meter.units < 300


@pytest.mark.parametrize("seed", range(50))
def test_8_pieces_of_what_has_gone_name_who_has_a_state(seed: int) -> None:
    rng = random.Random(seed)
    held = [(n, n + rng.randint(0, 3)) for n in range(1, 60, 10) if rng.random() < 0.5]
    states = []
    for receiver in (3, 1, 7):
        at = rng.randint(1, 5)
        while at < 60:
            last = at + rng.randint(0, 9)
            status = rng.choice([Status.ACKNOWLEDGED, Status.DEAD])
            states.append(StateRange(receiver, status, at, last))
            at = last + rng.choice([1, 1, 4])
    states.sort(key=lambda state: (state.first, state.receiver))
    pieces = tuple(Piece(first, last, NOBODY, 1) for first, last in held)
    found = list(_gone_pieces(History(pieces, tuple(states), None)))
    said = {n: piece.members for piece in found for n in range(piece.first, piece.last + 1)}
    expected = {}
    for sequence in range(1, 80):
        members = {s.receiver for s in states if s.first <= sequence <= s.last}
        if members and not any(first <= sequence <= last for first, last in held):
            expected[sequence] = tuple(sorted(members))
    assert said == expected
    assert all(a.last < b.first for a, b in itertools.pairwise(found))
    assert all(a.last + 1 < b.first or a.members != b.members for a, b in itertools.pairwise(found))
