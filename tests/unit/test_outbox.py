"""The outbox by its rules, each apart: SEMANTICS 1, 3, 4, 14, window, size, what was never sent.

All of them together, over a link that fails, are in `test_hop`.
"""

from __future__ import annotations

import random

import pytest

from msgservice.core.frames import Transfer, encode_frame
from msgservice.core.refusal import Refusal
from msgservice.core.runs import Run
from msgservice.errors import NeverSent
from msgservice.limits import Limits
from msgservice.message import (
    Action,
    BareMessage,
    RunOptions,
    Status,
    decode_messages,
    encode_messages,
    message_sizes,
)
from tests.kit.outbox import Outbox, counts

WINDOW = (1000, 1 << 20)
BATCH_MAX = 1 << 20


def make_outbox(
    *,
    ordered: bool = True,
    cursor: int = 0,
    window: tuple[int, int] = WINDOW,
    max_attempts: int = 0,
    batch_max: int = BATCH_MAX,
    connected: bool = True,
    larger_is_dead: bool = False,
) -> Outbox:
    outbox = Outbox(
        ordered=ordered,
        cursor=cursor,
        window=window,
        retry_delay=lambda attempts: 2.0**attempts,
        max_attempts=max_attempts,
        larger_is_dead=larger_is_dead,
    )
    if connected:
        outbox.connect(None, batch_max)
    return outbox


def run(first: int, count: int = 1, lane: str = "a", *, after: int | None = None) -> Run:
    """Messages whose bodies are their sequences."""
    messages = encode_messages([BareMessage(b"%d" % n) for n in range(first, first + count)])
    before = first - 1 if after is None else after
    return Run(first, count, lane, lane, messages, len(messages), before)


def offer(outbox: Outbox, *runs: Run) -> list[Transfer]:
    for one in runs:
        outbox.backlog.offer(one)
    return outbox.flight.take_transfers(0.0)


def spans(transfers: list[Transfer]) -> list[tuple[int, int]]:
    """First and last sequence of each, its bodies checked against them."""
    found = []
    for transfer in transfers:
        bodies = [int(m.body) for m in decode_messages(transfer.messages)]
        assert bodies == list(range(transfer.sequence, transfer.sequence + len(bodies)))
        found.append((bodies[0], bodies[-1]))
    return found


def now_sent(outbox: Outbox, now: float) -> list[tuple[int, int]]:
    return spans(outbox.flight.take_transfers(now))


def ack(outbox: Outbox, first: int, last: int) -> None:
    outbox.flight.receive_acks([(first, last)])


def settled(outbox: Outbox) -> list[tuple[int, int, Status]]:
    return [(s.first, s.last, s.status) for s in outbox.backlog.take_settled()]


def assert_empty(outbox: Outbox, cursor: int) -> None:
    assert cursor == outbox.backlog.cursor
    assert outbox.backlog.idle
    assert (0, 0) == (outbox.backlog.in_flight.messages, outbox.backlog.in_flight.size)
    assert not outbox.backlog.above


# --- 1: holes, floor, after


def test_1_after_covers_the_hole_and_the_answer_runs_over_it() -> None:
    outbox = make_outbox()
    transfers = offer(outbox, run(1, 2), run(10, 2, after=2), run(20, after=19))
    assert [None, 2, None] == [t.after for t in transfers]
    ack(outbox, 1, 11)
    assert [(1, 2, Status.ACKNOWLEDGED), (10, 11, Status.ACKNOWLEDGED)] == settled(outbox)
    assert 19 == outbox.backlog.cursor


def test_1_floor_is_what_the_owner_has_committed() -> None:
    outbox = make_outbox()
    offer(outbox, run(1, 5))
    ack(outbox, 1, 5)
    (early,) = offer(outbox, run(6))
    outbox.backlog.committed = outbox.backlog.cursor
    (late,) = offer(outbox, run(7))
    assert (1, 6) == (early.floor, late.floor)


def test_1_the_cursor_is_below_everything_open() -> None:
    outbox = make_outbox(cursor=4)
    assert 4 == outbox.backlog.cursor
    offer(outbox, run(5, 2), run(7, 2), run(9, 2))
    ack(outbox, 9, 10)
    ack(outbox, 5, 6)
    assert 6 == outbox.backlog.cursor
    assert [(9, 10)] == list(outbox.backlog.above)
    ack(outbox, 7, 8)
    assert_empty(outbox, 10)


def test_1_what_was_settled_before_a_restart_is_not_loaded_again() -> None:
    outbox = make_outbox(cursor=2)
    outbox.backlog.restore([(5, 6)], {})
    assert [(3, 4), (7, 8)] == spans(offer(outbox, run(3, 6)))
    ack(outbox, 3, 4)
    ack(outbox, 7, 8)
    assert_empty(outbox, 8)


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("seed", range(40))
def test_1_rows_of_a_file_that_overlap_lose_nothing_and_send_nothing_twice(
    seed: int, ordered: bool
) -> None:
    rng = random.Random(seed)

    def ranges(count: int) -> list[tuple[int, int]]:
        firsts = (rng.randint(1, 40) for _ in range(rng.randint(0, count)))
        return [(first, first + rng.randint(0, 12)) for first in firsts]

    final, tried = ranges(4), ranges(6)
    outbox = make_outbox(ordered=ordered, max_attempts=9)
    outbox.backlog.restore(
        final, {one: (rng.randint(1, 5), rng.uniform(0, 9), "") for one in tried}
    )
    at = 1
    while at <= 60:
        count = rng.randint(1, 7)
        outbox.backlog.offer(run(at, count, rng.choice("ab")))
        at += count
    sent: list[int] = []
    for now in range(20):
        for first, last in spans(outbox.flight.take_transfers(float(now))):
            sent += range(first, last + 1)
            ack(outbox, first, last)
    settled_before = {n for first, last in final for n in range(first, last + 1)}
    assert sorted(sent) == [n for n in range(1, at) if n not in settled_before]
    assert all(status is Status.ACKNOWLEDGED for *_, status in settled(outbox))
    assert_empty(outbox, at - 1)


def test_1_nothing_for_this_receiver_moves_the_cursor() -> None:
    outbox = make_outbox()
    outbox.backlog.skip_to(50)
    assert 50 == outbox.backlog.cursor
    offer(outbox, run(60, after=50))
    outbox.backlog.skip_to(70)
    assert 59 == outbox.backlog.cursor
    ack(outbox, 60, 60)
    assert_empty(outbox, 70)


# --- what was never sent


@pytest.mark.parametrize(("first", "last"), [(0, 1), (1, 4), (4, 4), (100, 100)])
def test_an_answer_for_what_was_never_sent_is_an_error_and_changes_nothing(
    first: int, last: int
) -> None:
    outbox = make_outbox(window=(3, 1 << 20))
    offer(outbox, run(1, 3), run(4, 2))
    with pytest.raises(NeverSent) as failed:
        ack(outbox, first, last)
    assert (first, last) == (failed.value.first, failed.value.last)
    with pytest.raises(NeverSent):
        outbox.flight.receive_nack(first, last, Refusal(Action.DEAD), 0, 0.0)
    assert [] == settled(outbox)
    assert 3 == outbox.backlog.in_flight.messages


def test_an_answer_counts_on_the_connection_that_carried_it_only() -> None:
    outbox = make_outbox()
    offer(outbox, run(1))
    outbox.disconnect(0.0)
    outbox.connect(None, BATCH_MAX)
    with pytest.raises(NeverSent):
        ack(outbox, 1, 1)


# --- 3: lanes


def test_3_nothing_of_a_lane_is_sent_behind_its_stuck_head() -> None:
    outbox = make_outbox()
    offer(outbox, run(1, 3), run(4, 2), run(6, 2, "b"))
    outbox.flight.receive_nack(2, 2, Refusal(Action.RETRY, "busy"), 5.0, 0.0)
    assert [(8, 8)] == spans(offer(outbox, run(8, 1, "b"), run(9)))
    assert 5.0 == outbox.flight.next_deadline()
    assert [] == outbox.flight.take_transfers(4.9)
    (head,) = outbox.flight.take_transfers(5.0)
    assert ([(2, 2)], 1) == (spans([head]), head.nacks)
    assert [] == outbox.flight.take_transfers(5.0)
    ack(outbox, 2, 2)
    rest = outbox.flight.take_transfers(5.0)
    assert [(3, 3), (4, 5), (9, 9)] == spans(rest)
    for first, last in [(1, 1), (3, 3), (4, 5), (6, 7), (8, 8), (9, 9)]:
        ack(outbox, first, last)
    assert_empty(outbox, 9)


def test_3_what_came_before_the_nack_still_waits_for_its_ack() -> None:
    outbox = make_outbox()
    offer(outbox, run(1, 3))
    outbox.flight.receive_nack(3, 3, Refusal(Action.LATER), 1.0, 0.0)
    ack(outbox, 1, 2)
    assert [(1, 2, Status.ACKNOWLEDGED)] == settled(outbox)
    assert [(3, 3)] == now_sent(outbox, 1.0)


@pytest.mark.parametrize("action", [Action.DEAD, Action.REFUSED])
def test_3_a_final_nack_settles_its_messages_and_the_lane_goes_on(action: Action) -> None:
    outbox = make_outbox()
    offer(outbox, run(1, 3), run(4))
    outbox.flight.receive_nack(2, 2, Refusal(action, "no"), 0, 0.0)
    (dead,) = outbox.backlog.take_settled()
    assert (2, 2, Status.DEAD, Refusal(action, "no")) == (
        dead.first,
        dead.last,
        dead.status,
        dead.refusal,
    )
    (next_one,) = offer(outbox, run(5))
    assert (5, 0) == (next_one.sequence, next_one.nacks)
    ack(outbox, 1, 1)
    ack(outbox, 3, 5)
    assert_empty(outbox, 5)


def test_3_without_order_only_the_nacked_message_waits() -> None:
    outbox = make_outbox(ordered=False)
    offer(outbox, run(1, 3), run(4))
    outbox.flight.receive_nack(2, 2, Refusal(Action.RETRY), 5.0, 0.0)
    assert [(5, 5)] == spans(offer(outbox, run(5)))
    ack(outbox, 1, 1)
    ack(outbox, 3, 5)
    assert [(2, 2)] == now_sent(outbox, 5.0)
    ack(outbox, 2, 2)
    assert_empty(outbox, 5)


def test_3_after_a_reconnect_the_unanswered_rises_before_anything_new() -> None:
    outbox = make_outbox()
    offer(outbox, run(1), run(2, 1, "b"), run(3))
    ack(outbox, 2, 2)
    outbox.disconnect(0.0)
    outbox.backlog.offer(run(4, 1, "b"))
    outbox.connect(None, BATCH_MAX)
    assert [(1, 1)] == now_sent(outbox, 0.0)
    ack(outbox, 1, 1)
    assert [(3, 3)] == now_sent(outbox, 0.0)
    ack(outbox, 3, 3)
    assert [(4, 4)] == now_sent(outbox, 0.0)


def test_3_after_a_reconnect_a_stuck_lane_is_still_stuck() -> None:
    outbox = make_outbox()
    offer(outbox, run(1), run(2), run(3, 1, "b"))
    outbox.flight.receive_nack(1, 1, Refusal(Action.RETRY), 10.0, 0.0)
    outbox.disconnect(1.0)
    outbox.connect(None, BATCH_MAX)
    (other,) = outbox.flight.take_transfers(1.0)
    assert (3, 0) == (other.sequence, other.nacks)
    ack(outbox, 3, 3)
    assert [(1, 1)] == now_sent(outbox, 10.0)


# --- 4: answers that do not fall on our cuts


def test_4_an_ack_may_end_inside_a_run() -> None:
    outbox = make_outbox()
    offer(outbox, run(1, 10))
    ack(outbox, 1, 4)
    assert (4, 6) == (outbox.backlog.cursor, outbox.backlog.in_flight.messages)
    ack(outbox, 7, 10)
    ack(outbox, 5, 6)
    assert_empty(outbox, 10)


def test_4_an_ack_may_come_twice() -> None:
    outbox = make_outbox()
    offer(outbox, run(1, 4))
    ack(outbox, 1, 4)
    ack(outbox, 1, 4)
    assert [(1, 4, Status.ACKNOWLEDGED)] == settled(outbox)


def test_4_what_resume_says_is_not_sent_again() -> None:
    outbox = make_outbox(connected=False)
    for one in (run(1, 4), run(5, 4), run(9, 4)):
        outbox.backlog.offer(one)
    outbox.backlog.receive_resume(3, [(6, 7), (11, 12)])
    outbox.connect(None, BATCH_MAX)
    assert [(3, 4), (5, 5), (8, 8), (9, 10)] == now_sent(outbox, 0.0)
    taken = [n for first, last, _ in settled(outbox) for n in range(first, last + 1)]
    assert [1, 2, 6, 7, 11, 12] == taken


def test_4_what_resume_says_of_later_runs_is_settled_when_they_are_loaded() -> None:
    outbox = make_outbox(connected=False)
    outbox.backlog.receive_resume(1, [(3, 4)])
    outbox.connect(None, BATCH_MAX)
    assert [(1, 2), (5, 6)] == spans(offer(outbox, run(1, 6)))
    assert [(3, 4, Status.ACKNOWLEDGED)] == settled(outbox)


# --- 14: attempts


def test_14_retries_double_their_pause_and_end_dead() -> None:
    outbox = make_outbox(max_attempts=3)
    offer(outbox, run(1), run(2))
    now = 0.0
    for pause in (2.0, 4.0):
        outbox.flight.receive_nack(1, 1, Refusal(Action.RETRY, "failed"), 0, now)
        assert now + pause == outbox.flight.next_deadline()
        now += pause
        assert [(1, 1)] == now_sent(outbox, now)
    outbox.flight.receive_nack(1, 1, Refusal(Action.RETRY, "failed"), 0, now)
    assert [(1, 1, Status.DEAD)] == settled(outbox)
    assert [(2, 2)] == now_sent(outbox, now)
    ack(outbox, 2, 2)
    assert_empty(outbox, 2)


def test_14_not_now_is_no_attempt() -> None:
    outbox = make_outbox(max_attempts=2)
    offer(outbox, run(1))
    for now in range(10):
        outbox.flight.receive_nack(1, 1, Refusal(Action.LATER, "full"), 1.0, float(now))
        assert [(1, 1)] == now_sent(outbox, now + 1.0)
    assert [] == settled(outbox)


def test_14_patience_without_end_where_no_most_is_given() -> None:
    outbox = make_outbox()
    offer(outbox, run(1))
    for now in range(100):
        outbox.flight.receive_nack(1, 1, Refusal(Action.RETRY), 1.0, float(now))
        assert [(1, 1)] == now_sent(outbox, now + 1.0)
    assert [] == settled(outbox)


def test_14_attempts_are_kept_over_a_restart() -> None:
    outbox = make_outbox(max_attempts=3, cursor=1)
    outbox.backlog.restore([], {(2, 2): (2, 7.0, "")})
    assert [] == spans(offer(outbox, run(2, 2)))
    assert 7.0 == outbox.flight.next_deadline()
    assert [(2, 2)] == now_sent(outbox, 7.0)
    outbox.flight.receive_nack(2, 2, Refusal(Action.RETRY), 0, 7.0)
    assert [(2, 2, Status.DEAD)] == settled(outbox)
    assert [(3, 3)] == now_sent(outbox, 7.0)


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("again", ["restart", "unload"])
def test_14_attempts_of_messages_that_failed_together_are_kept(again: str, ordered: bool) -> None:
    """A handler of whole batches fails for all of them at once."""
    outbox = make_outbox(max_attempts=3, ordered=ordered)
    offer(outbox, run(1, 5))
    for now in (0.0, 10.0):
        outbox.flight.receive_nack(2, 4, Refusal(Action.RETRY), 0, now)
        ack(outbox, 1, 1)
        outbox.flight.take_transfers(now + 10)
    outbox.disconnect(20.0, lost=False)
    if again == "unload":
        outbox.backlog.unload()
        outbox.connect(None, BATCH_MAX)
        outbox.backlog.offer(run(2, 4))
    else:
        outbox = make_outbox(max_attempts=3, ordered=ordered)
        outbox.backlog.restore([(1, 1), (3, 3)], {(2, 4): (2, 0.0, "")})
        outbox.backlog.offer(run(1, 5))
    tries = {
        n: one.attempts for one in outbox.backlog.open_between(1, 5) for n in (one.first, one.last)
    }
    assert tries == {2: 2, 4: 2, 5: 0}
    outbox.flight.take_transfers(20.0)
    outbox.flight.receive_nack(2, 2, Refusal(Action.RETRY), 0, 20.0)
    assert (2, 2, Status.DEAD) in settled(outbox)


def test_14_after_a_restart_what_is_older_in_the_lane_goes_first() -> None:
    outbox = make_outbox(max_attempts=3)
    outbox.backlog.restore([], {(2, 2): (2, 7.0, "")})
    assert [(1, 1), (2, 2), (3, 3)] == spans(offer(outbox, run(1, 3)))
    outbox.flight.receive_nack(2, 2, Refusal(Action.RETRY), 0, 0.0)
    assert [(2, 2, Status.DEAD)] == settled(outbox)


@pytest.mark.parametrize("ordered", [True, False])
def test_14_a_message_that_waits_after_a_lost_connection_is_not_ready_as_well(
    ordered: bool,
) -> None:
    outbox = make_outbox(ordered=ordered)
    offer(outbox, run(1))
    for _ in range(3):
        outbox.disconnect(0.0)
        outbox.connect(None, BATCH_MAX)
        outbox.flight.take_transfers(100.0)
    outbox.disconnect(100.0)
    assert {1} == {waiting.first for waiting in outbox.backlog.waiting_runs}
    assert (0, 0, 0) == counts(outbox.backlog.ready)


def test_14_a_lost_connection_counts_only_for_one_message_that_was_alone() -> None:
    outbox = make_outbox(max_attempts=2)
    offer(outbox, run(1, 3), run(4, 5, "b"))
    outbox.disconnect(0.0)  # several were in flight: nobody is to blame, but look closer
    outbox.connect(None, BATCH_MAX)
    assert [(1, 2)] == now_sent(outbox, 0.0)
    outbox.disconnect(0.0)
    assert outbox.backlog.limit.most == 1
    outbox.connect(None, BATCH_MAX)
    assert [(1, 1)] == now_sent(outbox, 0.0)
    assert [] == outbox.backlog.take_failed()
    outbox.disconnect(0.0)
    assert [(1, 1)] == [(one.first, one.attempts) for one in outbox.backlog.take_failed()]
    outbox.connect(None, BATCH_MAX)
    assert [(4, 4)] == now_sent(outbox, 0.0)  # the other lane is not behind it
    ack(outbox, 4, 4)
    assert outbox.backlog.limit.most != 1  # another was answered whole
    assert [(5, 6)] == now_sent(outbox, 0.0)
    ack(outbox, 5, 6)
    assert [(7, 8)] == now_sent(outbox, 0.0)
    ack(outbox, 7, 8)
    outbox.backlog.offer(run(9, 1, "b"))
    assert [(1, 1)] == now_sent(outbox, 2.0)  # and this is alone all the same
    outbox.disconnect(2.0)
    answered = [(first, last, Status.ACKNOWLEDGED) for first, last in ((4, 4), (5, 6), (7, 8))]
    assert [*answered, (1, 1, Status.DEAD)] == settled(outbox)


def test_14_flights_grow_by_what_was_answered_whole() -> None:
    outbox = make_outbox(window=(64, 1 << 20))
    offer(outbox, run(1, 16))
    outbox.backlog.offer(run(17, 100, "b"))
    outbox.disconnect(0.0)
    outbox.connect(None, BATCH_MAX)
    assert [(1, 4)] == now_sent(outbox, 0.0)
    ack(outbox, 1, 2)
    for first in range(5, 17, 2):
        assert [(first, first + 1)] == now_sent(outbox, 0.0)
        ack(outbox, first, first + 1)
    assert [(17, 18)] == now_sent(outbox, 0.0)  # 3 and 4 may yet be what it dies of
    ack(outbox, 3, 4)  # the last of what was in flight when the connection was lost
    assert 8 == sum(last - first + 1 for first, last in now_sent(outbox, 0.0)) + 2
    ack(outbox, 17, 24)
    assert 16 == sum(last - first + 1 for first, last in now_sent(outbox, 0.0))
    ack(outbox, 25, 40)
    outbox.flight.take_transfers(0.0)
    ack(outbox, 41, 72)
    assert [(73, 116)] == now_sent(outbox, 0.0)


@pytest.mark.parametrize("answered", ["what came before it", "other lanes", "nothing"])
@pytest.mark.parametrize("at", [1, 2, 40_000, 65_535, 65_536])
def test_14_a_message_that_its_receiver_dies_of_is_found_in_9_lost_connections(
    at: int, answered: str
) -> None:
    outbox = make_outbox(window=(65_536, 1 << 30), max_attempts=3, connected=False)
    for first in range(1, 65_537, 4096):
        outbox.backlog.offer(run(first, 4096))
    other = 70_000
    losses = 0
    while not outbox.backlog.take_failed():
        losses += 1
        assert losses <= 9
        outbox.connect(None, BATCH_MAX)
        for _ in range(40):
            if answered == "other lanes":
                outbox.backlog.offer(run(other, 1, "b", after=other - 1))
                other += 1
            sent = [
                (t.sequence, t.sequence + len(decode_messages(t.messages)) - 1)
                for t in outbox.flight.take_transfers(0.0)
            ]
            for first, last in sent:
                if first > 65_536 or last < at:
                    ack(outbox, first, last)
                elif first < at and answered == "what came before it":
                    ack(outbox, first, at - 1)
            if any(first <= at <= last for first, last in sent) and answered != "other lanes":
                break
        outbox.disconnect(0.0)
    assert {at} == {one.first for one in outbox.backlog.waiting_runs}


# --- window and size


def test_the_window_counts_messages() -> None:
    outbox = make_outbox(window=(5, 1 << 20))
    assert [(1, 2), (3, 4)] == spans(offer(outbox, run(1, 2), run(3, 2), run(5, 2)))
    assert [] == outbox.flight.take_transfers(0.0)
    ack(outbox, 1, 2)
    assert [(5, 6)] == now_sent(outbox, 0.0)


def test_the_window_counts_bytes() -> None:
    size = run(1, 2).size
    outbox = make_outbox(window=(1000, 2 * size))
    assert [(1, 2), (3, 4)] == spans(offer(outbox, run(1, 2), run(3, 2), run(5, 2)))
    assert 2 * size == outbox.backlog.in_flight.size


def test_the_smaller_of_both_sides_windows_holds() -> None:
    outbox = make_outbox(window=(10, 1 << 20), connected=False)
    outbox.connect((2, 1 << 30), BATCH_MAX)
    assert [(1, 2)] == spans(offer(outbox, run(1, 2), run(3)))
    assert (2, 1 << 20) == (outbox.flight.window_messages, outbox.flight.window_bytes)


def test_a_run_beyond_the_window_travels_alone() -> None:
    outbox = make_outbox(window=(2, 1 << 20))
    assert [(1, 5)] == spans(offer(outbox, run(1, 5), run(6)))
    ack(outbox, 1, 5)
    assert [(6, 6)] == now_sent(outbox, 0.0)


def test_it_wants_no_more_than_a_window_ahead() -> None:
    outbox = make_outbox(window=(4, 1 << 20))
    assert outbox.flight.wants
    outbox.backlog.offer(run(1, 4))
    assert not outbox.flight.wants


def test_a_run_is_cut_to_what_the_other_side_takes() -> None:
    outbox = make_outbox(batch_max=20)
    transfers = offer(outbox, run(1, 9))
    assert len(transfers) > 1
    assert all(memoryview(t.messages).nbytes <= 20 for t in transfers)
    numbers = [n for first, last in spans(transfers) for n in range(first, last + 1)]
    assert list(range(1, 10)) == numbers
    ack(outbox, 1, 9)
    assert_empty(outbox, 9)


def test_a_message_too_large_for_the_other_side_is_dead_where_that_is_asked_for() -> None:
    outbox = make_outbox(batch_max=20, larger_is_dead=True)
    messages = encode_messages([BareMessage(b) for b in (b"1", b"x" * 30, b"3")])
    transfers = offer(outbox, Run(1, 3, "a", "a", messages, len(messages), 0))
    bodies = [m.body for t in transfers for m in decode_messages(t.messages)]
    assert [b"1", b"3"] == bodies
    (dead,) = outbox.backlog.take_settled()
    assert (2, 2, Status.DEAD) == (dead.first, dead.last, dead.status)
    assert "the receiver takes 20" in dead.reason
    ack(outbox, 1, 1)
    ack(outbox, 3, 3)
    assert_empty(outbox, 3)


@pytest.mark.parametrize("size", [50_000, 30_000])
def test_names_in_to_leave_less_room_for_messages(size: int) -> None:
    """They were gathered for a side that took more: this one gets smaller frames, or none."""
    names = tuple(f"receiver-{n:05}" for n in range(2000))  # 24,832 bytes more than a frame has
    outbox = make_outbox(batch_max=65_536, larger_is_dead=True)
    messages = encode_messages([BareMessage(b"y" * size), BareMessage(b"y" * 20_000)])
    options = RunOptions(names)
    transfers = offer(outbox, Run(1, 2, "a", "a", messages, len(messages), 0, options=options))
    fits = size == 30_000
    assert [t.sequence for t in transfers] == [1, 2] if fits else [2]
    frame_max = Limits(max_batch=65_536).frame_bytes
    assert all(len(encode_frame(t)) <= frame_max for t in transfers)
    dead = [one.reason for one in outbox.backlog.take_settled()]
    assert [f"message of {size + 5} bytes and 24832 of names in `to`" in r for r in dead] == (
        [] if fits else [True]
    )


@pytest.mark.parametrize("ordered", [True, False])
def test_a_message_too_large_for_the_other_side_waits_for_one_that_takes_it(
    ordered: bool,
) -> None:
    outbox = make_outbox(batch_max=20, ordered=ordered)
    messages = encode_messages([BareMessage(b) for b in (b"1", b"x" * 30, b"3")])
    sent = offer(outbox, Run(1, 3, "a", "a", messages, len(messages), 0), run(4, 1, "b"))
    bodies = [m.body for t in sent for m in decode_messages(t.messages)]
    assert [b"1", b"4"] == bodies if ordered else [b"1", b"3", b"4"] == bodies
    assert outbox.flight.larger is not None
    assert (2, 34) == (outbox.flight.larger.first, outbox.flight.larger.size)
    assert outbox.flight.next_deadline() is None
    assert [] == settled(outbox)
    assert [] == outbox.flight.take_transfers(1e9)
    for transfer in sent:
        ack(outbox, transfer.sequence, transfer.sequence)
    outbox.disconnect(0.0)
    outbox.connect(None, 20)  # it has not grown: nothing is lost, nothing else stands still
    assert [] == outbox.flight.take_transfers(0.0)
    outbox.disconnect(0.0)
    outbox.backlog.unload()
    outbox.backlog.offer_rest(Run(1, 3, "a", "a", messages, len(messages), 0))
    outbox.connect(None, BATCH_MAX)
    assert outbox.flight.larger is None
    assert [2] == [t.sequence for t in outbox.flight.take_transfers(0.0)]
    ack(outbox, 2, 3 if ordered else 2)
    assert outbox.backlog.idle


def test_unloaded_runs_can_be_offered_again() -> None:
    outbox = make_outbox(max_attempts=5)
    offer(outbox, run(1, 2), run(3, 2, "b"), run(5, 2))
    ack(outbox, 3, 4)
    outbox.flight.receive_nack(1, 1, Refusal(Action.RETRY), 9.0, 0.0)
    outbox.disconnect(0.0)
    outbox.backlog.unload()
    assert 0 == outbox.backlog.cursor
    assert outbox.backlog.idle
    for one in (run(1, 2), run(3, 2, "b"), run(5, 2)):
        outbox.backlog.offer(one)
    outbox.connect(None, BATCH_MAX)
    assert [] == outbox.flight.take_transfers(1.0)
    assert [(1, 1)] == now_sent(outbox, 9.0)
    ack(outbox, 1, 1)
    assert [(2, 2), (5, 6)] == now_sent(outbox, 9.0)
    ack(outbox, 2, 2)
    ack(outbox, 5, 6)
    assert_empty(outbox, 6)


def test_3_what_is_older_than_the_head_of_a_stuck_lane_goes_before_it_after_a_reconnect() -> None:
    outbox = make_outbox()
    offer(outbox, run(1, 3))
    outbox.flight.receive_nack(2, 2, Refusal(Action.RETRY), 0.0, 0.0)
    outbox.disconnect(0.0)  # before the ACK of 1 came
    outbox.connect(None, BATCH_MAX)
    assert [(1, 1)] == now_sent(outbox, 100.0)
    ack(outbox, 1, 1)
    assert [(2, 2), (3, 3)] == now_sent(outbox, 100.0)


def test_3_a_lane_that_goes_on_below_where_it_went_on_before_has_its_place_among_others() -> None:
    """What is sent rises, also where two lanes have a queue of their own."""
    outbox = make_outbox()
    flight = outbox.flight
    offer(outbox, run(1, lane="b"), *(run(n) for n in (2, 3, 4)), run(5, lane="b"), run(6))

    def tried_again(sequence: int, now: float, runs_max: int) -> None:
        assert sequence == flight.take_transfers(now, None, runs_max=runs_max)[0].sequence
        ack(outbox, sequence, sequence)

    def busy(sequence: int, now: float) -> None:
        flight.receive_nack(sequence, sequence, Refusal(Action.RETRY), 1.0, now)

    busy(2, 0.0)
    tried_again(2, 1.0, 1)
    assert [(3, 3), (4, 4)] == spans(flight.take_transfers(1.0, None, runs_max=2))  # then 6
    busy(1, 1.0)
    tried_again(1, 2.0, 1)
    busy(4, 2.0)
    busy(3, 2.0)
    tried_again(3, 3.0, 1)
    assert [(4, 4), (5, 5), (6, 6)] == now_sent(outbox, 3.0)
    ack(outbox, 4, 6)
    assert_empty(outbox, 6)


def test_14_a_run_that_waits_is_cut_for_a_receiver_that_is_probed() -> None:
    outbox = make_outbox(max_attempts=3)
    offer(outbox, run(1, 3))
    outbox.flight.receive_nack(1, 3, Refusal(Action.RETRY, "all of it failed"), 1.0, 0.0)
    outbox.disconnect(0.0)
    now, sent = 0.0, []
    for _ in range(4):  # it ends with each try, and never says a word
        outbox.connect(None, BATCH_MAX)
        now += 1000.0
        sent.append(now_sent(outbox, now))
        outbox.disconnect(now)
    assert sent == [[(1, 3)], [(1, 1)], [(1, 1)], [(2, 2)]]
    assert settled(outbox) == [(1, 1, Status.DEAD)]


def test_3_a_lane_taken_back_at_the_first_message_of_its_head_is_taken_back_whole() -> None:
    outbox = make_outbox()
    offer(outbox, run(1, 3), run(4))
    outbox.flight.receive_nack(1, 3, Refusal(Action.LATER, "all three"), 1.0, 0.0)
    assert [(1, 3)] == now_sent(outbox, 1.0)
    outbox.flight.receive_nack(1, 1, Refusal(Action.RETRY, "the first of them"), 1.0, 1.0)
    assert 0 == outbox.backlog.in_flight.messages
    assert [(1, 1)] == now_sent(outbox, 2.0)
    ack(outbox, 1, 1)
    assert [(2, 3), (4, 4)] == now_sent(outbox, 2.0)
    ack(outbox, 2, 4)
    assert_empty(outbox, 4)


def test_20_what_lies_below_what_is_final_is_loaded_whatever_the_limits_say() -> None:
    outbox = Outbox(
        ordered=True, cursor=0, window=(4, 999), retry_delay=lambda attempts: 9.0, behind_max=5
    )
    outbox.backlog.restore([(n, n) for n in range(2, 40, 2)], {})
    loaded = 1
    outbox.connect(None, 999)
    while outbox.backlog.cursor < 39:
        assert outbox.flight.wants
        while outbox.flight.wants and loaded < 40:
            outbox.backlog.offer(run(loaded, lane=f"{loaded}"))
            loaded += 1
        for transfer in outbox.flight.take_transfers(0.0):
            ack(outbox, transfer.sequence, transfer.sequence)
    assert_empty(outbox, 39)


@pytest.mark.parametrize("window", [(0, 0), (10, 0), (0, 1000)])
def test_a_window_of_nothing_gets_one_run_at_a_time(window: tuple[int, int]) -> None:
    outbox = make_outbox(connected=False)
    outbox.connect(window, BATCH_MAX)
    for n in (1, 2, 3):
        assert outbox.flight.wants
        assert [(n, n)] == spans(offer(outbox, run(n)))
        assert [] == outbox.flight.take_transfers(0.0)
        ack(outbox, n, n)


@pytest.mark.parametrize("ordered", [True, False])
def test_14_a_retry_inside_a_run_is_counted_once_when_it_is_loaded_again(ordered: bool) -> None:
    outbox = make_outbox(ordered=ordered)
    offer(outbox, run(1, 300))
    ack(outbox, 1, 1)
    outbox.flight.receive_nack(2, 2, Refusal(Action.RETRY), 1.0, 0.0)
    outbox.disconnect(0.0)
    outbox.backlog.unload()
    outbox.backlog.offer_rest(run(1, 300))
    assert [2] == [one.first for one in outbox.backlog.waiting_runs]
    assert (0 if ordered else 298) == outbox.backlog.ready.messages
    outbox.connect(None, BATCH_MAX)
    for _ in range(30):
        for first, last in now_sent(outbox, 1.0):
            ack(outbox, first, last)
    assert (0, 0, 0) == counts(outbox.backlog.ready)
    assert_empty(outbox, 300)


@pytest.mark.parametrize("ordered", [True, False])
def test_a_retry_that_is_due_and_has_no_room_waits_for_an_answer_and_not_for_a_timer(
    ordered: bool,
) -> None:
    outbox = make_outbox(ordered=ordered, window=(2, 10_000))
    offer(outbox, *(run(n, lane=f"{n}") for n in (1, 2, 3)))
    outbox.flight.receive_nack(1, 1, Refusal(Action.RETRY, "later"), 1.0, 0.0)
    assert len(outbox.flight.take_transfers(0.0)) == 1  # the third takes the room
    assert outbox.flight.take_transfers(1.0) == []
    assert outbox.flight.next_deadline() is None
    ack(outbox, 2, 2)
    assert outbox.flight.next_deadline() == 1.0
    assert [t.sequence for t in outbox.flight.take_transfers(1.0)] == [1]


def test_3_scattered_acknowledgements_of_a_large_run_cut_it_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decoded: list[int] = []

    def sizes(messages: bytes) -> list[int]:
        decoded.append(1)
        return message_sizes(messages)

    # Once for each range would be quadratic.
    monkeypatch.setattr("msgservice.message.message_sizes", sizes)
    outbox = make_outbox(ordered=False)
    large = run(1, 4000)
    outbox.backlog.offer(large)
    assert [(1, 4000)] == now_sent(outbox, 0.0)
    outbox.flight.receive_acks([(n, n) for n in range(2, 4000, 2)])
    assert [1] == decoded
    settled = outbox.backlog.take_settled()
    assert [(n, n) for n in range(2, 4000, 2)] == [(s.first, s.last) for s in settled]
    assert 2001 == outbox.backlog.in_flight.messages
    ack(outbox, 1, 4000)
    assert (0, 0, 4000) == (
        outbox.backlog.in_flight.messages,
        outbox.backlog.in_flight.size,
        outbox.backlog.cursor,
    )


def test_20_at_the_limit_of_exceptions_nothing_new_is_sent() -> None:
    """Not what was loaded before it was reached, either: else a RESUME could not say it all."""
    outbox = Outbox(
        ordered=False, cursor=0, window=(40, 9999), retry_delay=lambda attempts: 9.0, behind_max=10
    )
    outbox.connect(None, BATCH_MAX)
    loaded, sent = 0, 0

    def fill() -> None:
        nonlocal loaded
        while outbox.flight.wants:
            outbox.backlog.offer(run(loaded + 1, 10))
            loaded += 10

    for _ in range(9):
        fill()
        flight = now_sent(outbox, 0.0)
        fill()  # as a node does, while these are on their way
        for n in [n for first, last in flight for n in range(first, last + 1)]:
            sent = max(sent, n)
            if n % 2:
                ack(outbox, n, n)
            else:
                outbox.flight.receive_nack(n, n, Refusal(Action.LATER), 5.0, 0.0)
    assert 10 <= len(outbox.backlog.above) <= 10 + 40 // 2
    for first, _ in now_sent(outbox, 9.0):
        ack(outbox, first, first)
    assert sent < now_sent(outbox, 9.0)[0][0]  # there is room again


def test_what_has_gone_by_turns_from_both_ends_of_the_queue_is_passed_over() -> None:
    outbox = make_outbox()
    offer(outbox, run(1, lane="back"))
    outbox.flight.receive_nack(1, 1, Refusal(Action.RETRY), 1.0, 0.0)
    for first in range(2, 5001):
        outbox.backlog.offer(run(first, lane=["rising", "back"][first % 2]))
    outbox.disconnect(0.5)
    outbox.connect(None, BATCH_MAX)
    outbox.backlog.receive_resume(4999, [])
    sent = outbox.flight.take_transfers(2.0)
    assert [4999, 5000] == [transfer.sequence for transfer in sent]
