"""Receipts: what a producer sees of its messages (SEMANTICS 8, 10, 11), and T5 for its waits."""

from __future__ import annotations

import gc
import random
import weakref
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred, race
from twisted.logger import LogEvent, formatEvent

from msgservice.cli.exit_codes import ExitCode
from msgservice.cli.send import _settled
from msgservice.cli.session import Session, exit_code
from msgservice.client.handed import AudienceNames, HandedRun, Piece, joined
from msgservice.client.promise import Promise
from msgservice.client.receipt import Receipt, Wait
from msgservice.client.runs import HandedRuns
from msgservice.core.frames import Routed
from msgservice.errors import (
    Ambiguous,
    BadValue,
    ClientClosed,
    LogWentBack,
    NoReceiver,
    NotDelivered,
    PeerForgot,
    Refused,
)
from msgservice.message import Action, Status
from tests.kit.clients import ClientWorld, error_of, now


def sent(world: ClientWorld, subject: str = "a", count: int = 1) -> list[Receipt]:
    waiting = [world.client.send(subject, b"x") for _ in range(count)]
    world.settle()
    return [now(one) for one in waiting]


# --- 8: the audience


def test_8_for_nobody_is_stored_and_acknowledged_fails() -> None:
    world = ClientWorld()
    world.node.audience = lambda transfer: ()
    (receipt,) = sent(world)
    assert ((), {}) == (receipt.receivers, receipt.statuses)
    assert receipt.position is not None
    assert "'a'" in str(error_of(receipt.acknowledged(), NoReceiver))
    assert {} == now(receipt.settled())


def test_8_waiting_for_one_who_is_not_in_the_audience_fails() -> None:
    (receipt,) = sent(ClientWorld())
    failed = error_of(receipt.acknowledged("r9"), NotDelivered)
    assert ("r9", "not in the audience") == (failed.receiver, failed.state)


@pytest.mark.parametrize("name", [["billing"], ("r1", "r2"), 1, b"r1"])
def test_who_is_waited_for_is_one_by_its_name(name: Any) -> None:
    receipts = [*sent(ClientWorld()), now_many(ClientWorld())]
    for receipt in receipts:
        told = str(error_of(receipt.acknowledged(name), TypeError))
        assert "the name of one receiver, or None for all of them" in told


def now_many(world: ClientWorld) -> Any:
    waiting = world.client.send_many("a", [b"1", b"2"])
    world.settle()
    return now(waiting)


# --- without a file


def test_receipts_without_a_file_are_those_of_this_process_and_that_is_said_once(
    logged: list[LogEvent],
) -> None:
    world = ClientWorld()
    assert [] == now(world.client.receipts())
    held = sent(world)
    assert [1] == [one.sequence for one in now(world.client.receipts())]
    assert held
    said = [text for text in map(formatEvent, logged) if "of a client without outbox=" in text]
    assert 1 == len(said)
    assert "with outbox=FILE those of earlier processes too" in said[0]
    told = str(error_of(world.client.receipts(keep=True), BadValue))
    assert "keep needs a client with outbox=" in told


# --- 10: states


def test_10_statuses_follow_what_the_node_says() -> None:
    world = ClientWorld()
    first, second = sent(world, count=2)
    assert {"r1": Status.QUEUED, "r2": Status.QUEUED} == first.statuses
    world.node.say("r1", Status.SENT, (1, 2))
    world.node.say("r2", Status.ACKNOWLEDGED, (1, 1))
    world.settle()
    assert {"r1": Status.SENT, "r2": Status.ACKNOWLEDGED} == first.statuses
    assert {"r1": Status.SENT, "r2": Status.QUEUED} == second.statuses
    world.node.say("r1", Status.QUEUED, (2, 2))
    world.node.say("r1", Status.DEAD, (1, 1), reason="poison")
    world.settle()
    assert {"r1": Status.DEAD, "r2": Status.ACKNOWLEDGED} == first.statuses
    assert {"r1": Status.QUEUED, "r2": Status.QUEUED} == second.statuses


def test_10_acknowledged_fires_when_all_or_the_named_one_have() -> None:
    world = ClientWorld()
    (receipt,) = sent(world)
    everyone, named = receipt.acknowledged(), receipt.acknowledged("r2")
    world.node.say("r2", Status.ACKNOWLEDGED, (1, 1))
    world.settle()
    assert now(named) is None
    assert not everyone.called
    world.node.say("r1", Status.ACKNOWLEDGED, (1, 1))
    world.settle()
    assert now(everyone) is None
    assert now(receipt.acknowledged("r1")) is None


@pytest.mark.parametrize("state", [s for s in Status if s.final and s is not Status.ACKNOWLEDGED])
def test_10_another_final_state_fails_acknowledged_and_never_settled(state: Status) -> None:
    world = ClientWorld()
    (receipt,) = sent(world)
    everyone, other, settled = receipt.acknowledged(), receipt.acknowledged("r2"), receipt.settled()
    world.node.say("r1", state, (1, 1), reason="because")
    world.settle()
    failed = error_of(everyone, NotDelivered)
    assert ("r1", state.name.lower(), "because") == (failed.receiver, failed.state, failed.reason)
    assert not other.called
    assert not settled.called
    world.node.say("r2", Status.ACKNOWLEDGED, (1, 1))
    world.settle()
    assert now(other) is None
    assert {"r1": state, "r2": Status.ACKNOWLEDGED} == now(settled)


def test_10_a_final_state_stays() -> None:
    world = ClientWorld()
    receipts = sent(world, count=3)
    world.node.say("r1", Status.DEAD, (2, 2), reason="no")
    world.node.say("r1", Status.ACKNOWLEDGED, (1, 3))
    world.node.say("r1", Status.SENT, (1, 3))
    world.settle()
    states = [receipt.statuses["r1"] for receipt in receipts]
    assert [Status.ACKNOWLEDGED, Status.DEAD, Status.ACKNOWLEDGED] == states


def test_a_refused_message_settles_with_no_state() -> None:
    world = ClientWorld()
    world.node.answering = False
    run = world.client.send("a", b"1")
    world.settle()
    receipt = Receipt(next(iter(world.client._hop.runs.between(1, 1))), 0)
    waits = receipt.acknowledged(), receipt.accepted, receipt.settled()
    world.node.refusal = lambda transfer: (Action.REFUSED, 0, "no")
    world.node.inboxes.clear()
    world.node.cut()
    world.node.answering = True
    world.advance(1.0)
    error_of(run, Refused)
    error_of(waits[0], Refused)
    error_of(waits[1], Refused)
    assert {} == now(waits[2])


# --- 11: states, told as ranges and told again


def test_11_ranges_reach_over_many_runs_and_subjects() -> None:
    world = ClientWorld()
    receipts = [receipt for subject in "abc" for receipt in sent(world, subject, 3)]
    settled = [receipt.settled() for receipt in receipts]
    world.node.say("r1", Status.ACKNOWLEDGED, (1, 4), (6, 9))
    world.node.say("r2", Status.ACKNOWLEDGED, (1, 9))
    world.settle()
    fired = [index for index, one in enumerate(settled) if one.called]
    assert [0, 1, 2, 3, 5, 6, 7, 8] == fired
    world.node.say("r1", Status.ACKNOWLEDGED, (1, 100))
    world.settle()
    assert now(settled[4])["r1"] is Status.ACKNOWLEDGED


def test_11_states_that_came_while_away_are_told_after_the_reconnect() -> None:
    world = ClientWorld()
    receipts = sent(world, count=2)
    waiting = receipts[1].acknowledged()
    world.node.cut()
    world.settle()
    world.say_acknowledged(1, 2)
    assert not waiting.called
    world.advance(1.0)
    assert now(waiting) is None


def test_5_states_of_another_incarnation_are_not_ours() -> None:
    world = ClientWorld()
    (receipt,) = sent(world)
    world.another_client()
    world.settle()
    assert 2 == len(world.node.connections)
    world.node.say("r1", Status.ACKNOWLEDGED, (1, 1))  # of the newest; told to both
    world.settle()
    assert Status.QUEUED is receipt.statuses["r1"]


# --- waits (T5)


def test_each_wait_is_its_own_and_cancelling_one_leaves_the_others() -> None:
    world = ClientWorld()
    (receipt,) = sent(world)
    waits: list[Deferred[None]] = [receipt.acknowledged() for _ in range(3)]
    waits[1].cancel()
    error_of(waits[1], CancelledError)
    assert isinstance(receipt.run, HandedRun)
    assert 2 == len((receipt.run._watchers or {})[receipt.run.first])
    world.say_acknowledged(1)
    assert [None, None] == [now(waits[0]), now(waits[2])]


def test_a_wait_fires_though_receipt_and_client_were_dropped() -> None:
    world = ClientWorld()
    heard: list[None] = []
    sent(world)[0].acknowledged().addCallback(heard.append)
    gc.collect()
    world.say_acknowledged(1)
    assert [None] == heard


def test_a_callback_may_ask_for_more() -> None:
    world = ClientWorld()
    (receipt,) = sent(world)
    again: list[Deferred[None]] = []
    receipt.acknowledged("r1").addCallback(lambda _: again.append(receipt.acknowledged()))
    world.say_acknowledged(1)
    assert now(again[0]) is None


def test_closing_fails_waits_and_settles_with_what_is_known() -> None:
    world = ClientWorld()
    (receipt,) = sent(world)
    waiting, settled = receipt.acknowledged(), receipt.settled()
    world.node.say("r1", Status.ACKNOWLEDGED, (1, 1))
    world.settle()
    world.client.close()
    world.settle()
    error_of(waiting, ClientClosed)
    assert {"r1": Status.ACKNOWLEDGED, "r2": Status.QUEUED} == now(settled)
    error_of(receipt.acknowledged(), ClientClosed)
    assert now(receipt.acknowledged("r1")) is None


def test_accepted_has_fired_when_there_is_no_outbox_on_disk() -> None:
    (receipt,) = sent(ClientWorld())
    assert now(receipt.accepted) is receipt


# --- Receipts


def test_receipts_wait_for_all_and_count() -> None:
    world = ClientWorld()
    many = world.client.send_many("a", [b"x"] * 5)
    world.settle()
    receipts = now(many)
    waiting, settled = receipts.acknowledged(), receipts.settled()
    one = receipts.acknowledged("r1")
    world.node.say("r1", Status.ACKNOWLEDGED, (1, 5))
    world.node.say("r2", Status.ACKNOWLEDGED, (1, 3))
    world.settle()
    assert now(one) is None
    assert not waiting.called
    world.node.say("r2", Status.EXPIRED, (4, 5))
    world.settle()
    assert "r2" == error_of(waiting, NotDelivered).receiver
    counts = {
        "r1": {Status.ACKNOWLEDGED: 5},
        "r2": {Status.ACKNOWLEDGED: 3, Status.EXPIRED: 2},
    }
    assert counts == now(settled) == receipts.counts()
    assert now(receipts.accepted) is receipts
    assert 5 == receipts.sequence


# --- what is kept


def test_a_run_is_forgotten_with_its_receipts_however_long_receivers_are_away() -> None:
    world = ClientWorld()
    kept = sent(world)
    for _ in range(100):
        sent(world)
    gc.collect()
    assert 1 == len(world.client._hop.runs)
    assert 1 == world.client._hop.runs.lowest()
    run = weakref.ref(kept[0].run)
    kept.clear()
    assert run() is None
    assert world.client._hop.runs.lowest() is None


def test_a_settled_run_is_forgotten_and_its_receipt_still_answers() -> None:
    world = ClientWorld()
    (receipt,) = sent(world)
    world.say_acknowledged(1)
    assert 0 == len(world.client._hop.runs)
    assert {"r1": Status.ACKNOWLEDGED, "r2": Status.ACKNOWLEDGED} == receipt.statuses


def test_routed_with_an_unknown_audience_ends_the_connection() -> None:
    world = ClientWorld()
    world.node.connection.send(Routed(1, 1, 77, 1 << 16))
    world.settle()
    assert "unknown audience 77" in str(world.client.why().error)


def test_6_what_is_forgotten_before_it_was_routed_fails_however_it_was_sent() -> None:
    waiters: list[Deferred[Receipt]] = [Deferred() for _ in range(3)]
    each, many = HandedRun("x", 3, waiters), HandedRun("x", 3, None)
    waited: list[Deferred[object]] = []
    runs = HandedRuns()
    together = joined([many])
    for run, first in ((each, 1), (many, 4)):
        runs.add(run, first)
        run.accepted(first, first + 2)
        waited.append(run.watch(Wait.ACCEPTED, first, first + 2))
    error = PeerForgot("node", 1, 6)
    runs.lose(1, 6, error, answered=True)
    everybody: list[Deferred[Any]] = [*waiters, together, *waited]
    for failed in everybody:
        assert error_of(failed, PeerForgot) is error


def test_6_what_was_accepted_before_the_rest_was_forgotten_stays_so() -> None:
    run, runs = HandedRun("x", 3, None), HandedRuns()
    runs.add(run, 1)
    together = joined([run])
    run.accepted(1, 3)
    run.routed(Piece(1, 1, 7 << 16, AudienceNames(["r"])))
    runs.lose(1, 3, PeerForgot("node", 1, 3), answered=True)
    assert now(run.watch(Wait.ACCEPTED, 1, 1)) is None
    assert error_of(run.watch(Wait.ACCEPTED, 2, 2), PeerForgot)
    assert error_of(run.watch(Wait.ACKNOWLEDGED, 1, 1), PeerForgot)
    assert error_of(together, PeerForgot)


def test_6_a_command_that_waits_says_that_the_state_cannot_become_known() -> None:
    world = ClientWorld()
    (receipt,) = sent(world)
    waiting = Deferred.fromCoroutine(_settled(Session(as_json=True), world.clock, receipt))
    world.node.forget()
    world.node.cut()
    world.advance(1.0)
    assert exit_code(error_of(waiting, PeerForgot)) == ExitCode.NO_ANSWER


def test_6_a_command_that_waits_for_a_log_that_went_back_says_so_too() -> None:
    assert exit_code(LogWentBack("node", 1, 2)) == ExitCode.NO_ANSWER


def test_audiences_of_one_connection_are_bounded_and_the_oldest_goes() -> None:
    runs = HandedRuns()
    for number in range(3):
        runs.receive_audience(number, ["r"], 3)
    runs.receive_audience(0, ["s"], 3)
    runs.receive_audience(3, ["r"], 3)
    assert list(runs._audiences) == [2, 0, 3]
    assert runs._audiences[0].names == ("s",)


def test_8_that_a_message_was_taken_long_ago_changes_nothing_that_is_known_of_it() -> None:
    run = HandedRun("a", 3, None)
    runs = HandedRuns()
    run.numbered(1, runs)
    run.routed(Piece(1, 2, 7 << 16, AudienceNames(["r1"])))
    run.routed(Piece(1, 3, 0, AudienceNames([])))
    assert [run.piece_of(n) for n in (1, 3)] == [
        Piece(1, 2, 7 << 16, run._pieces[0].audience),
        Piece(3, 3, 0, run._pieces[1].audience),
    ]
    assert run._pieces[0].audience.names == ("r1",)


def nothing_known(world: ClientWorld, *ranges: tuple[int, int]) -> None:
    """The node forgets what became of these, and says so at the next connection."""
    incarnation = world.node.hellos[-1].incarnation
    number = world.node._audiences.setdefault((), len(world.node._audiences) + 1)
    world.node.states[incarnation] = []
    world.node.routed[incarnation] = [Routed(*one, number, 0) for one in ranges]
    world.node.cut()
    world.advance(1.0)


def test_53_what_the_node_forgot_while_the_producer_was_away_is_waited_for_no_more() -> None:
    world = ClientWorld()
    known, half, open_ = sent(world, count=3)
    world.node.say("r1", Status.ACKNOWLEDGED, (1, 2))
    world.node.say("r2", Status.ACKNOWLEDGED, (1, 1))
    world.settle()
    settled, acked, named = half.settled(), half.acknowledged(), half.acknowledged("r2")
    waiting, at_r1 = open_.acknowledged(), half.acknowledged("r1")
    nothing_known(world, (1, 2))
    assert {"r1": Status.ACKNOWLEDGED, "r2": Status.QUEUED} == now(settled)
    for one in (acked, named, half.acknowledged()):
        assert "does not know any more" in str(error_of(one, Ambiguous))
    assert now(at_r1) is None
    assert now(known.acknowledged()) is None
    changes = half.run.known_of(2)
    assert (True, Ambiguous) == (changes.is_over, type(changes.error))
    assert (True, None) == known.run.known_of(1)[1:]
    assert not waiting.called
    for name in ("r1", "r2"):
        world.node.say(name, Status.ACKNOWLEDGED, (3, 3))
    world.settle()
    assert now(waiting) is None
    assert 0 == len(world.client._hop.runs)


def test_53_a_state_that_comes_all_the_same_is_told() -> None:
    run = HandedRun("a", 2, None, promise=Promise(within=1).option)
    runs = HandedRuns()
    runs.add(run, 1)
    run.routed(Piece(1, 2, 7 << 16, AudienceNames(["r1"])))
    run.accepted(1, 2)
    promised = run.watch(Wait.PROMISED, 1, 2)
    run.routed(Piece(1, 2, 0, AudienceNames([])))
    assert run.is_settled
    error_of(promised, Ambiguous)
    run.marked("r1", Status.DEAD, 1, 1, "no")
    run.decided(Status.DEAD, 1, 1, "no")
    runs.tell_news()
    assert run.is_settled
    assert (Status.DEAD, "no") == run.verdict_of(1)
    error_of(run.watch(Wait.ACKNOWLEDGED, 1, 1), NotDelivered)
    error_of(run.watch(Wait.ACKNOWLEDGED, 2, 2), Ambiguous)


def test_53_of_many_promises_one_that_the_node_has_forgotten_ends_the_wait() -> None:
    run = HandedRun("a", 2, None, promise=Promise(within=1).option)
    HandedRuns().add(run, 1)
    run.routed(Piece(1, 1, 7 << 16, AudienceNames(["r1"])))
    run.accepted(1, 2)
    run.decided(Status.ACKNOWLEDGED, 1, 1, "")
    promised = run.watch(Wait.PROMISED, 1, 2)
    run.routed(Piece(2, 2, 0, AudienceNames([])))
    error_of(promised, Ambiguous)


def test_53_who_asks_when_the_node_has_forgotten_is_not_told_that_it_was_for_nobody() -> None:
    world = ClientWorld()
    world.node.answering = False
    waiting = world.client.send("a", b"x")
    world.settle()
    nothing_known(world, (1, 1))
    world.node.answering = True
    world.node.answer()
    world.settle()
    receipt = now(waiting)
    assert receipt.position is None
    error_of(receipt.acknowledged(), Ambiguous)
    assert {} == now(receipt.settled())
    assert isinstance(receipt.run.known_of(1).error, Ambiguous)


# --- any order of what can be told, in any cuts, against a plain model


def _ranges(rng: random.Random, first: int, last: int) -> list[tuple[int, int]]:
    """Cut `first` to `last` at random."""
    cuts = sorted({first, *(rng.randint(first, last) for _ in range(rng.randint(0, 3)))})
    return [(low, high - 1) for low, high in zip(cuts, [*cuts[1:], last + 1], strict=True)]


@pytest.mark.parametrize("seed", range(150))
def test_any_cut_of_the_news_gives_what_a_plain_model_gives(seed: int) -> None:
    rng = random.Random(seed)
    count, base = rng.randint(1, 12), rng.randint(1, 50)
    names = ["r1", "r2", "r3"]
    runs = HandedRuns()
    waiters: list[Deferred[Receipt]] = [Deferred() for _ in range(count)]
    run = HandedRun("a", count, list(waiters))
    runs.add(run, base)
    last = base + count - 1
    parts = _ranges(rng, base, last)
    audiences = {part: AudienceNames(rng.sample(names, rng.randint(0, 3))) for part in parts}
    of: dict[int, AudienceNames] = {n: audiences[p] for p in parts for n in range(p[0], p[1] + 1)}
    states: dict[tuple[str, int], Status] = {}
    news: list[tuple[str, tuple[int, int], object]] = []
    news += [("routed", part, audiences[part]) for part in parts for _ in range(rng.randint(1, 2))]
    news += [("accepted", part, None) for part in _ranges(rng, base, last)]
    for name in names:
        for part in _ranges(rng, base, last):
            status = rng.choice([Status.ACKNOWLEDGED, Status.ACKNOWLEDGED, Status.DEAD])
            news += [("marked", part, (name, status))] * rng.randint(1, 2)
    rng.shuffle(news)
    routed: set[int] = set()
    accepted: set[int] = set()
    watches: dict[int, Deferred[dict[str, Status]]] = {}
    for kind, (low, high), value in news:
        numbers = range(low, high + 1)
        if kind == "routed":
            assert isinstance(value, AudienceNames)
            run.routed(Piece(low, high, (7 << 16) + low - base, value))
            routed.update(numbers)
        elif kind == "accepted":
            run.accepted(low, high)
            accepted.update(numbers)
        else:
            assert isinstance(value, tuple)
            name, status = value
            run.marked(name, status, low, high, "why")
            runs.tell_news()
            for number in numbers:
                states.setdefault((name, number), status)
        for index, waiter in enumerate(waiters):
            number = base + index
            assert (number in routed and number in accepted) == waiter.called
            if waiter.called and number not in watches and rng.random() < 0.3:
                watches[number] = now(waiter).settled()
        for number, watch in watches.items():
            final = all((name, number) in states for name in of[number].names)
            assert final == watch.called
    for index, waiter in enumerate(waiters):
        receipt, number = now(waiter), base + index
        assert (7 << 16) + index == receipt.position
        assert {n: states[(n, number)] for n in of[number].names} == receipt.statuses
        dead = [n for n in of[number].names if states[(n, number)] is Status.DEAD]
        if dead:
            assert dead[0] == error_of(receipt.acknowledged(), NotDelivered).receiver
    assert run.is_settled
    assert 0 == len(runs)


def test_a_wait_that_is_told_may_cancel_others_of_the_same_turn() -> None:
    world = ClientWorld()
    (first,), (second,) = sent(world), sent(world, "b")
    waits = [first.acknowledged("r1"), first.acknowledged("r2")]
    raced: Deferred[Any] = race(waits)
    others: list[Deferred[Any]] = [first.acknowledged(), first.settled(), second.acknowledged()]
    world.node.say("r1", Status.ACKNOWLEDGED, (1, 2))
    world.node.say("r2", Status.ACKNOWLEDGED, (1, 2))
    world.settle()
    assert now(raced) == (0, None)
    assert [now(wait) for wait in others] == [None, first.statuses, None]
    assert world.client.connected


def test_a_state_of_one_message_looks_at_the_waits_of_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = ClientWorld()
    receipts = sent(world, count=400)
    waits: list[Deferred[Any]] = [receipt.acknowledged() for receipt in receipts]
    waits += [receipt.settled() for receipt in receipts[300:]]
    looks = 0
    outcome = HandedRun._outcome

    def counted(self: HandedRun, watcher: Any, **said: Any) -> object:
        nonlocal looks
        looks += 1
        return outcome(self, watcher, **said)

    monkeypatch.setattr(HandedRun, "_outcome", counted)
    for name in ("r1", "r2"):
        for receipt in receipts[:300]:
            sequence = receipt.run.first + receipt.index
            world.node.say(name, Status.ACKNOWLEDGED, (sequence, sequence))
            world.settle()
    assert [wait.called for wait in waits] == [True] * 300 + [False] * 200
    assert looks <= 2 * 300
    for wait in waits[300:]:
        wait.addErrback(lambda failure: failure.trap(CancelledError))
        wait.cancel()
    assert not any(isinstance(one.run, HandedRun) and one.run._watchers for one in receipts)
