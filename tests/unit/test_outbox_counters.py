"""What an outbox counts is what it holds, after any sequence of operations.

Windows, the room for more and what waits are decided by counters that are kept up to date run by
run; here they are compared with a recount of every open run. Runs are cut wherever an answer, a
window or a smaller `batch_max` cuts them, and each piece has an array header of its own.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from msgservice.core.backoff import AGAIN_DELAY_MAX, AGAIN_DELAY_MIN, again_delay
from msgservice.core.refusal import Refusal
from msgservice.core.runs import BEHIND, FLIGHT, READY, WAITING, Run
from msgservice.message import Action, BareMessage, decode_messages, encode_messages
from tests.kit.outbox import Outbox, counted_as, counts


def make_run(first: int, count: int, lane: str | None, after: int) -> Run:
    bodies = [b"%d" % n * (n % 7) for n in range(first, first + count)]
    messages = encode_messages([BareMessage(body) for body in bodies])
    return Run(first, count, lane or "none", lane, messages, len(messages), after)


class CountedOutbox(RuleBasedStateMachine):
    """An outbox, and an owner that answers what was sent as it likes."""

    @initialize(
        ordered=st.booleans(), max_attempts=st.sampled_from([0, 2]), window=st.integers(1, 60)
    )
    def begin(self, ordered: bool, max_attempts: int, window: int) -> None:
        self.now = 0.0
        self.outbox = Outbox(
            ordered=ordered,
            cursor=0,
            window=(window, 600),
            retry_delay=lambda attempts: float(attempts),
            max_attempts=max_attempts,
            behind_max=30,
        )
        self.sent: set[int] = set()  # on this connection
        self.sent_ever: set[int] = set()
        self.runs: list[tuple[int, int, str | None]] = []  # for those that are offered again

    # --- operations

    @rule(
        count=st.integers(1, 20),
        lane=st.sampled_from("ab"),
        gap=st.sampled_from([0, 0, 3]),
    )
    def offer(self, count: int, lane: str, gap: int) -> None:
        outbox = self.outbox
        if self.runs and self.runs[-1][0] > outbox.backlog.loaded_to:
            return  # what was unloaded is offered again first
        first = max(
            outbox.backlog.loaded_to, self.runs[-1][0] + self.runs[-1][1] - 1 if self.runs else 0
        )
        first += 1 + gap
        self.runs.append((first, count, lane if outbox.backlog.ordered else None))
        outbox.backlog.offer(make_run(*self.runs[-1], outbox.backlog.loaded_to))

    @rule()
    def offer_again(self) -> None:
        outbox = self.outbox
        for first, count, lane in self.runs:
            if first > outbox.backlog.loaded_to:
                outbox.backlog.offer(make_run(first, count, lane, outbox.backlog.loaded_to))
            elif first + count - 1 > outbox.backlog.loaded_to:
                outbox.backlog.offer_rest(make_run(first, count, lane, first - 1))

    @precondition(lambda self: not self.outbox.connected)
    @rule(batch_max=st.sampled_from([12, 40, 1 << 20]), taken=st.lists(st.integers(1, 60)))
    def connect(self, batch_max: int, taken: list[int]) -> None:
        if batch_max > 12:
            self.outbox.backlog.receive_resume(
                1, sorted({(n, n) for n in taken if n in self.sent_ever})
            )
        self.outbox.connect(None, batch_max)
        self.sent = set()

    @precondition(lambda self: self.outbox.connected)
    @rule(
        turn=st.sampled_from([1 << 20, 50]),
        allowed=st.sampled_from([None, 0, 3]),
        runs=st.sampled_from([1 << 20, 2]),
    )
    def send(self, turn: int, allowed: int | None, runs: int) -> None:
        allow: Callable[[Run], int] | None = None if allowed is None else (lambda run: allowed)
        for transfer in self.outbox.flight.take_transfers(self.now, allow, turn, runs):
            count = len(decode_messages(transfer.messages))
            self.sent |= set(range(transfer.sequence, transfer.sequence + count))
        self.sent_ever = self.sent_ever | self.sent

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def ack(self, data: st.DataObject) -> None:
        numbers = st.lists(st.sampled_from(sorted(self.sent)), min_size=1, max_size=5, unique=True)
        runs = data.draw(st.sampled_from([1, 2, 1 << 20]))
        self.outbox.flight.receive_acks([(n, n) for n in sorted(data.draw(numbers))], runs)
        self.hear_to_the_end()

    def hear_to_the_end(self) -> None:
        flight = self.outbox.flight
        while not flight.is_answered:
            assert not flight.take_transfers(self.now)
            assert flight.go_on(self.now, 1)

    @precondition(lambda self: self.sent)
    @rule(data=st.data(), length=st.integers(1, 9))
    def ack_in_a_row(self, data: st.DataObject, length: int) -> None:
        first = last = data.draw(st.sampled_from(sorted(self.sent)))
        while last + 1 in self.sent and last < first + length:
            last += 1
        self.outbox.flight.receive_acks([(first, last)], data.draw(st.sampled_from([1, 1 << 20])))
        self.hear_to_the_end()

    @precondition(lambda self: self.sent)
    @rule(
        data=st.data(),
        length=st.integers(0, 5),
        action=st.sampled_from(list(Action)),
        delay=st.sampled_from([0.0, 0.001, 3.0]),
    )
    def nack(self, data: st.DataObject, length: int, action: Action, delay: float) -> None:
        first = last = data.draw(st.sampled_from(sorted(self.sent)))
        while last + 1 in self.sent and last < first + length:
            last += 1
        runs = data.draw(st.sampled_from([1, 2, 1 << 20]))
        flight = self.outbox.flight
        flight.receive_nack(first, last, Refusal(action), delay, self.now, runs)
        self.hear_to_the_end()

    @rule()
    def disconnect(self) -> None:
        self.outbox.disconnect(self.now)
        self.sent = set()

    @precondition(lambda self: not self.outbox.connected)
    @rule()
    def unload(self) -> None:
        self.outbox.backlog.unload()

    @rule(seconds=st.sampled_from([0.01, 0.5, 10.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    # --- the recount

    @invariant()
    def every_counter_is_exact(self) -> None:
        backlog = self.outbox.backlog
        found = dict.fromkeys((READY, FLIGHT, WAITING, BEHIND), (0, 0, 0))
        for run in backlog._open:
            state = counted_as(backlog, run)
            runs, messages, size = found[state]
            assert run.size == len(run.messages)
            assert run.count == len(decode_messages(run.messages))
            found[state] = (runs + 1, messages + run.count, size + run.size)
        assert found[FLIGHT] == counts(backlog.in_flight)
        assert found[READY] == counts(backlog.ready)
        assert found[BEHIND] == counts(backlog.behind)
        assert found[WAITING] == counts(backlog.waiting)
        lanes = backlog._stuck.by_lane.values()
        blocked = [lane for lane in lanes if lane.is_blocked]
        assert sum(len(lane.behind) for lane in blocked) == backlog.behind.runs


CountedOutbox.TestCase.settings = settings(max_examples=150, stateful_step_count=40)
TestCountedOutbox = CountedOutbox.TestCase


# --- 14: how soon a message is sent again


@pytest.mark.parametrize("action", [Action.LATER, Action.RETRY])
def test_14_a_receiver_that_always_says_in_a_millisecond_is_asked_once_a_second(
    action: Action,
) -> None:
    outbox = Outbox(ordered=True, cursor=0, window=(9, 999), retry_delay=lambda attempts: 99.0)
    outbox.backlog.offer(make_run(1, 1, "a", 0))
    outbox.connect(None, 999)
    now, sent, asked = 0.0, 0, []
    while now < 60:
        assert len(outbox.flight.take_transfers(now)) == 1
        sent += 1
        outbox.flight.receive_nack(1, 1, Refusal(action), 0.001, now)
        due = outbox.flight.next_deadline()
        assert due is not None
        asked.append(due - now)
        now = due
    assert asked[:3] == pytest.approx([0.01, 0.02, 0.04])
    assert asked[-1] == pytest.approx(1.0)
    assert sent < 70


def test_14_not_now_without_a_delay_is_this_sides_own_backoff() -> None:
    outbox = Outbox(
        ordered=True, cursor=0, window=(9, 999), retry_delay=lambda attempts: 2.0**attempts
    )
    outbox.backlog.offer(make_run(1, 1, "a", 0))
    outbox.connect(None, 999)
    now = 0.0
    for pause in (2.0, 4.0, 8.0):
        outbox.flight.take_transfers(now)
        outbox.flight.receive_nack(1, 1, Refusal(Action.LATER), 0, now)
        assert outbox.flight.next_deadline() == now + pause
        now += pause


@given(st.floats(0.0001, 1e6), st.integers(1, 10_000))
def test_14_a_longer_delay_is_taken_as_asked(asked: float, times: int) -> None:
    delay = again_delay(asked, times)
    assert delay >= AGAIN_DELAY_MIN
    assert delay == asked or asked < delay <= AGAIN_DELAY_MAX


def test_20_no_more_is_wanted_while_too_many_wait_for_another_try() -> None:
    outbox = Outbox(
        ordered=False,
        cursor=0,
        window=(1000, 1 << 20),
        retry_delay=lambda attempts: 1.0,
        behind_max=10,
    )
    outbox.connect(None, 1 << 20)
    offered = 0
    while outbox.flight.wants and offered < 100:
        offered += 1
        outbox.backlog.offer(make_run(offered, 1, None, offered - 1))
        outbox.flight.take_transfers(0.0)
        outbox.flight.receive_nack(offered, offered, Refusal(Action.LATER), 5.0, 0.0)
    assert (offered, outbox.backlog.open_runs) == (10, 10)
    outbox.flight.take_transfers(5.0)
    outbox.flight.receive_acks([(1, 4)])
    assert outbox.flight.wants
