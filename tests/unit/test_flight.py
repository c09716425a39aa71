"""The lives of an outbox: what ends with a connection, and what its receiver keeps."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from msgservice.core.backlog import Backlog
from msgservice.core.flight import Flight
from msgservice.core.flight_limit import FlightLimit
from msgservice.core.refusal import Refusal
from msgservice.core.runs import Run
from msgservice.core.tried import Tried
from msgservice.errors import NeverSent
from msgservice.limits import INTEGER_MAX
from msgservice.message import Action, BareMessage, RunOptions, Status, encode_messages

OWN_WINDOW = (100, 10_000)


def run(first: int, count: int = 1) -> Run:
    messages = encode_messages([BareMessage(b"x")] * count)
    return Run(first, count, "a", "a", messages, len(messages), first - 1)


def a_backlog() -> Backlog:
    return Backlog(ordered=True, cursor=0, retry_delay=lambda attempts: 2.0**attempts)


def fly(backlog: Backlog, window: tuple[int, int] | None = None) -> Flight:
    return Flight(backlog, own_window=OWN_WINDOW, window=window, batch_max=10_000)


def test_a_flight_leaves_the_next_no_window_no_nacks_and_nothing_that_was_sent() -> None:
    backlog = a_backlog()
    first = fly(backlog, window=(3, 50))
    backlog.offer(run(1))
    first.take_transfers(0.0)
    first.receive_nack(1, 1, Refusal(Action.LATER), 1.0, 0.0)
    assert [1] == [transfer.nacks for transfer in first.take_transfers(1.0)]
    first.end(1.0, lost=False)
    second = fly(backlog)
    assert OWN_WINDOW == (second.window_messages, second.window_bytes)
    with pytest.raises(NeverSent):
        second.receive_acks([(1, 1)])
    assert [0] == [transfer.nacks for transfer in second.take_transfers(1.0)]


def test_a_backlog_keeps_attempts_cursor_and_flight_limit_over_connections() -> None:
    backlog = a_backlog()
    first = fly(backlog)
    backlog.offer(run(1, 9))
    first.take_transfers(0.0)
    first.receive_acks([(1, 1)])
    first.receive_nack(2, 2, Refusal(Action.RETRY, "no"), 0, 0.0)
    backlog.offer(run(10, 8))
    first.end(0.0, lost=True)
    assert (1, 1) == (backlog.cursor, backlog.waiting.messages)
    assert [1] == [waiting.attempts for waiting in backlog.waiting_runs]
    assert backlog.limit.most is None  # nothing was in flight: the lane waits for its head
    second = fly(backlog)
    backlog.receive_resume(3, [])
    second.take_transfers(0.0)
    second.end(0.0, lost=True)
    assert 3 == backlog.limit.most
    assert [(3, 5)] == [(t.sequence, t.sequence + 2) for t in fly(backlog).take_transfers(0.0)]


def test_a_backlog_has_one_flight_at_a_time() -> None:
    backlog = a_backlog()
    backlog.offer(run(1))
    fly(backlog).take_transfers(0.0)
    with pytest.raises(AssertionError):
        fly(backlog)
    with pytest.raises(AssertionError):
        backlog.unload()


def test_a_flight_limit_grows_when_all_of_a_flight_was_answered_and_ends_at_the_window() -> None:
    limit = FlightLimit()
    limit.lost(16)
    limit.prove([run(1, 2), run(3, 2)])
    limit.answered(run(1, 2))
    limit.grow(16)
    assert (4, True) == (limit.most, limit.is_proving)
    limit.answered(run(3, 2))
    limit.grow(16)
    assert (8, False) == (limit.most, limit.is_proving)
    limit.prove([run(5)])
    limit.answered(run(5))
    limit.begin(1.0, beside_others=False)  # on another connection that answer proves nothing
    limit.grow(16)
    assert 8 == limit.most
    limit.prove([run(6)])
    limit.answered(run(6))
    limit.grow(16)
    assert limit.most is None


def test_a_flight_limit_that_has_ended_waits_for_no_answers() -> None:
    backlog = a_backlog()
    backlog.ordered = False
    large = encode_messages([BareMessage(b"x" * 100)])
    small = range(1, 8)
    for first in small:
        backlog.offer(run(first))
    backlog.offer(Run(8, 1, "a", "a", large, len(large), 7))
    lossy = fly(backlog)
    lossy.take_transfers(0.0)
    lossy.end(0.0, lost=True)
    backlog.offer(run(9))
    backlog.offer(run(10))
    flight = Flight(backlog, own_window=(4, 10_000), window=None, batch_max=50)
    for first in small:
        assert [first] == [t.sequence for t in flight.take_transfers(0.0, bytes_max=1)]
        flight.receive_acks([(first, first)])
    assert (2, True) == (backlog.limit.most, backlog.limit.is_proving)
    # What is too large for this side waits for another: the flight after it is begun at once.
    assert [9, 10] == [t.sequence for t in flight.take_transfers(0.0)]
    flight.receive_acks([(9, 9)])
    assert (None, False) == (backlog.limit.most, backlog.limit.is_proving)


def test_attempts_are_taken_once_and_split_where_a_run_ends() -> None:
    tried = Tried()
    tried.remember({(1, 2): (1, 0.5, ""), (5, 9): (2, 1.5, "no")})
    assert [(5, 6, (2, 1.5, "no"))] == tried.take(4, 6)  # 1 and 2 were passed by: they are settled
    assert [(7, 9, (2, 1.5, "no"))] == tried.take(7, 20)
    assert 0 == len(tried)


def test_51_in_the_largest_window_a_message_that_kills_is_dead_after_20_connections() -> None:
    window, lanes = 65_536, [f"lane {n}" for n in range(9)]
    backlog = Backlog(ordered=True, cursor=0, retry_delay=lambda _: 1.0, max_attempts=4)
    poison = window // 2
    first = 1
    now, connections, sent = 0.0, 0, 0
    died: list[Status] = []
    while not died:
        while backlog.open_messages < 2 * window:  # they never cease
            lane = "bad" if first == poison else lanes[first % 9]
            message = encode_messages([BareMessage(b"x")])
            backlog.offer(Run(first, 1, lane, lane, message, len(message), first - 1))
            first += 1
        flight = Flight(backlog, own_window=(window, INTEGER_MAX), window=None, batch_max=1000)
        connections += 1
        flown = [transfer.sequence for transfer in flight.take_transfers(now)]
        sent += len(flown)
        for _ in range(8):  # a waiting head has its turn when it is due
            if poison in flown:
                break
            flight.receive_acks([(sequence, sequence) for sequence in flown])
            now += 0.5
            flown = [transfer.sequence for transfer in flight.take_transfers(now)]
        flight.end(now, lost=True)
        died = [one.status for one in backlog.take_settled() if one.run.subject == "bad"]
    assert [Status.DEAD] == died
    assert connections <= 20
    assert sent <= 2 * window + 4  # of the flights that were lost: each is half as large


def test_51_who_was_lost_alone_is_alone_until_it_is_answered() -> None:
    backlog = a_backlog()
    backlog.ordered = False
    backlog.offer(run(1))
    for _ in range(2):
        lossy = fly(backlog)
        lossy.take_transfers(0.0)
        lossy.end(0.0, lost=True)
    assert {1} == set(backlog.limit.suspects)
    backlog.offer(run(2))
    flight = fly(backlog)
    assert [2] == [one.sequence for one in flight.take_transfers(0.0)]
    flight.receive_acks([(2, 2)])
    assert backlog.limit.most == 2
    backlog.offer(run(3))
    assert [3] == [one.sequence for one in flight.take_transfers(0.0)]
    (waiting,) = backlog.waiting_runs
    assert [] == flight.take_transfers(waiting.due)  # there is room for two, and not for it
    backlog.offer(run(4))
    flight.receive_acks([(3, 3)])
    assert [1] == [one.sequence for one in flight.take_transfers(waiting.due)]
    flight.receive_acks([(1, 1)])
    assert not backlog.limit.suspects
    assert [4] == [one.sequence for one in flight.take_transfers(waiting.due)]


def lose_alone(backlog: Backlog, begins: float, sent: float, ends: float) -> bool:
    """Let a connection stand from `begins` to `ends`; return whether it was sent the message."""
    flight = Flight(backlog, own_window=OWN_WINDOW, window=None, batch_max=10_000, now=begins)
    flown = flight.take_transfers(sent)
    flight.end(ends, lost=True)
    return bool(flown)


def a_suspicious_backlog(max_losses: int = 3) -> Backlog:
    backlog = Backlog(
        ordered=True,
        cursor=0,
        retry_delay=lambda _: 1.0,
        max_attempts=100,
        max_losses=max_losses,
        outlives_max=60.0,
    )
    backlog.offer(run(1))
    assert lose_alone(backlog, 0.0, 0.0, 1.0)  # of what was in flight, nothing is known yet
    assert lose_alone(backlog, 1.0, 1.0, 3.0)  # a connection stood for 2 s
    assert [1] == [one.attempts for one in backlog.waiting_runs]
    return backlog


def test_51_a_loss_counts_where_the_other_side_outlived_the_last_one_twice() -> None:
    backlog = a_suspicious_backlog()
    flight = Flight(backlog, own_window=OWN_WINDOW, window=None, batch_max=10_000, now=10.0)
    assert [] == flight.take_transfers(10.0)  # it is due, and the other side proves itself first
    assert 14.0 == flight.next_deadline()
    assert [1] == [one.sequence for one in flight.take_transfers(14.0)]
    flight.end(15.0, lost=True)
    assert [2] == [one.attempts for one in backlog.waiting_runs]
    assert not lose_alone(backlog, 15.0, 24.9, 24.9)  # this stood for 5 s, so 10 are needed
    assert lose_alone(backlog, 30.0, 30.0, 31.0)  # … and was lost without it: it need not wait
    assert [2] == [one.attempts for one in backlog.waiting_runs]  # nor does that count
    assert not lose_alone(backlog, 40.0, 49.9, 49.9)
    assert lose_alone(backlog, 60.0, 75.0, 76.0)  # excused, and sent late enough all the same
    assert [Status.DEAD] == [one.status for one in backlog.take_settled()]


def test_51_an_answer_or_another_end_clears_who_is_suspected() -> None:
    backlog = a_suspicious_backlog()
    flight = Flight(backlog, own_window=OWN_WINDOW, window=None, batch_max=10_000, now=10.0)
    flight.take_transfers(14.0)
    flight.end(15.0, lost=False)  # on purpose: that says nothing
    assert [1] == list(backlog.limit.suspects)
    flight = Flight(backlog, own_window=OWN_WINDOW, window=None, batch_max=10_000, now=20.0)
    assert flight.take_transfers(24.0)
    flight.receive_nack(1, 1, Refusal(Action.RETRY, "no"), 0.0, 25.0)
    assert not backlog.limit.suspects
    assert lose_alone(backlog, 30.0, 30.0, 31.0)  # two might have been in flight
    assert lose_alone(backlog, 40.0, 40.0, 41.0)  # it lives, so this is the first
    assert [1] == [one.losses for one in backlog.limit.suspects.values()]


def test_51_without_losses_of_its_own_each_one_alone_is_an_attempt() -> None:
    backlog = a_backlog()
    backlog.offer(run(1))
    for now in (0.0, 10.0, 20.0, 30.0):
        assert lose_alone(backlog, now, now, now + 1.0)
    assert [3] == [one.attempts for one in backlog.waiting_runs]


def test_51_a_connection_that_stood_long_counts_by_how_long_it_had_the_message() -> None:
    backlog = a_suspicious_backlog()
    assert lose_alone(backlog, 1000.0, 9000.0, 9002.0)
    flight = Flight(backlog, own_window=OWN_WINDOW, window=None, batch_max=10_000, now=9010.0)
    assert [] == flight.take_transfers(9010.0)
    assert 9014.0 == flight.next_deadline()


def test_51_who_was_settled_while_nothing_was_loaded_is_no_suspect_any_more() -> None:
    backlog = a_suspicious_backlog()
    backlog.unload()
    backlog.decree(1, 1, Status.CANCELLED, Refusal(Action.DEAD, "purged"))
    backlog.skip_to(1)
    fly(backlog)
    assert not backlog.limit.suspects


def test_22_a_lane_goes_on_behind_a_dead_letter_also_after_its_backlog_was_unloaded() -> None:
    backlog = Backlog(ordered=True, cursor=0, retry_delay=lambda attempts: 1.0, keeps_letters=True)
    backlog.unload()
    flight = fly(backlog)
    backlog.offer(run(1))
    flight.take_transfers(0.0)
    flight.receive_nack(1, 1, Refusal(Action.DEAD, "no"), 0, 0.0)
    letters = backlog.take_settled()
    backlog.offer(run(2))
    assert [] == flight.take_transfers(1.0)
    backlog.letters_stored(letters)
    assert [2] == [transfer.sequence for transfer in flight.take_transfers(1.0)]
    flight.receive_acks([(2, 2)])
    assert 2 == backlog.cursor


def sums(backlog: Backlog) -> list[tuple[int, int, int]]:
    return [(tally.runs, tally.messages, tally.size) for tally in backlog.tallies]


def test_a_run_that_comes_alone_leaves_as_one_that_was_offered() -> None:
    offered, alone = a_backlog(), a_backlog()
    offered.offer(run(3, 2))
    (expected,) = fly(offered).take_transfers(0.0)
    flight = fly(alone)
    lone = run(3, 2)
    assert expected == flight.send_alone(lone)
    assert (sums(offered), offered.loaded_to, offered.pieces) == (
        sums(alone),
        alone.loaded_to,
        alone.pieces,
    )
    assert flight.take_transfers(0.0) == []
    flight.end(1.0, lost=False)
    again = fly(alone)
    assert [3] == [transfer.sequence for transfer in again.take_transfers(2.0)]
    again.receive_acks([(3, 4)])
    assert [lone] == [one.run for one in alone.take_settled()]
    assert alone.idle
    assert 4 == alone.cursor


def _open(backlog: Backlog) -> Flight:
    flight = fly(backlog)
    assert flight.send_alone(run(1)) is not None
    return flight


def _waits(backlog: Backlog) -> Flight:
    flight = _open(backlog)
    flight.receive_nack(1, 1, Refusal(Action.LATER), 1.0, 0.0)
    return flight


def _settled_above(backlog: Backlog) -> Flight:
    backlog.restore([(11, 12)], {})
    return fly(backlog)


def _tried(backlog: Backlog) -> Flight:
    backlog.restore([], {(11, 11): (1, 0.0, "no")})
    return fly(backlog)


def _taken(backlog: Backlog) -> Flight:
    backlog.receive_resume(1, [(10, 11)])
    return fly(backlog)


def _lost(backlog: Backlog) -> Flight:
    backlog.offer(run(1, 8))
    flight = fly(backlog)
    flight.take_transfers(0.0)
    flight.end(0.0, lost=True)
    backlog.acknowledge([(1, 8)])
    assert backlog.limit.most is not None
    return fly(backlog)


def _dead(backlog: Backlog) -> Flight:
    flight = _open(backlog)
    flight.receive_nack(1, 1, Refusal(Action.DEAD), 0, 0.0)
    assert backlog.stuck_lanes
    return flight


@pytest.mark.parametrize(
    "before",
    [_open, _waits, _settled_above, _tried, _taken, _lost, _dead],
    ids=lambda f: f.__name__,
)
def test_where_something_else_is_to_be_asked_nothing_leaves_alone(
    before: Callable[[Backlog], Flight],
) -> None:
    keeps = before is _dead
    backlog = Backlog(
        ordered=True, cursor=0, retry_delay=lambda attempts: 2.0**attempts, keeps_letters=keeps
    )
    flight = before(backlog)
    state = sums(backlog), backlog.loaded_to, backlog.pieces
    assert flight.send_alone(run(10, 2)) is None
    assert state == (sums(backlog), backlog.loaded_to, backlog.pieces)


def test_what_is_large_expires_or_asks_for_more_does_not_leave_alone() -> None:
    large, expiring, named = run(1, 9000), run(1), run(1)
    expiring.expires_at = 1
    named.options = RunOptions(("r1",))
    for one in (large, expiring, named):
        backlog = a_backlog()
        assert fly(backlog).send_alone(one) is None
        assert backlog.idle
