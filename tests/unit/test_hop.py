"""Outbox and inbox in pairs over a link that fails, with a handler that fails: SEMANTICS 1-4, 14.

One seed is one history: the link drops connections at any point, frames arrive late, the handler
asks for retries or rejects. After the faults the hop must drain, every message must have been
handled once (or rejected, or dead), and every lane in order.
"""

from __future__ import annotations

import random
from collections import deque

import msgspec
import pytest

from msgservice.core.frames import Ack, Frame, Nack, Transfer, decode_frame, encode_frame
from msgservice.core.inbox import Inbox
from msgservice.core.marks import Marks
from msgservice.core.refusal import Refusal, refusal_in
from msgservice.core.runs import Run
from msgservice.message import (
    Action,
    BareMessage,
    Status,
    decode_messages,
    encode_messages,
)
from tests.kit.outbox import Outbox, counts

WINDOW = (40, 100_000)


class Hop:
    """An outbox and an inbox, the link between, and what the handler was given."""

    def __init__(self, seed: int, *, ordered: bool, keep_marks: bool = True) -> None:
        self.random = random.Random(seed)
        self.now = 0.0
        self.ordered = ordered
        self.outbox = Outbox(
            ordered=ordered,
            cursor=0,
            window=WINDOW,
            retry_delay=lambda attempts: min(2.0**attempts, 8.0),
            max_attempts=6,
        )
        self.inbox = Inbox(Marks(), ordered=ordered)
        self.keep_marks = keep_marks
        self.to_receiver: deque[bytes] = deque()
        self.to_sender: deque[bytes] = deque()
        self.handled: list[tuple[str, int]] = []  # subject, number of the message
        self.final: dict[int, Status] = {}  # by sequence
        self.faults = True
        self.sequence = 0
        self.expected: dict[str, list[int]] = {}
        self.poison: set[int] = set()
        self.rejected: set[int] = set()

    # --- sending side

    def offer(self) -> None:
        subject = self.random.choice(["a", "b", "c"])
        count = self.random.randint(1, 6)
        hole = self.random.choice([0, 0, 3])
        after = self.sequence
        first = self.sequence + 1 + hole
        numbers = list(range(first, first + count))
        messages = encode_messages([BareMessage(str(n).encode()) for n in numbers])
        self.expected.setdefault(subject, []).extend(numbers)
        for n in numbers:
            if self.random.random() < 0.01:
                self.poison.add(n)
            elif self.random.random() < 0.02:
                self.rejected.add(n)
        lane = subject if self.ordered else None
        self.outbox.backlog.offer(Run(first, count, subject, lane, messages, len(messages), after))
        self.sequence = numbers[-1]

    def connect(self) -> None:
        self.to_receiver.clear()
        self.to_sender.clear()
        if not self.keep_marks and self.random.random() < 0.3:
            self.inbox = Inbox(Marks(), ordered=self.ordered)
        self.inbox.reconnect()
        resume = self.inbox.marks.resume()
        self.outbox.backlog.receive_resume(resume.floor, resume.ranges)
        self.outbox.connect(WINDOW, 1 << 20)

    def disconnect(self) -> None:
        self.outbox.disconnect(self.now)

    def pump_out(self) -> None:
        for transfer in self.outbox.flight.take_transfers(self.now):
            self.to_receiver.append(encode_frame(transfer))

    def pump_answers(self, frame: Frame) -> None:
        if isinstance(frame, Ack):
            self.outbox.flight.receive_acks(frame.ranges)
        else:
            assert isinstance(frame, Nack)
            self.outbox.flight.receive_nack(
                frame.first,
                frame.last,
                refusal_in(frame),
                frame.delay / 1000,
                self.now,
            )

    # --- receiving side

    def receive(self, transfer: Transfer) -> None:
        messages = decode_messages(transfer.messages)
        inbox = self.inbox
        arrival = inbox.receive_transfer(transfer, len(messages))
        if arrival is None:
            return
        for start, high in arrival.parts:
            low, done = start, start - 1
            for n in range(start, high + 1):
                outcome = self.outcome(n)
                if outcome is None:
                    self.handled.append((transfer.subject, n))
                    done = n
                    continue
                if done >= low:
                    inbox.taken(arrival, low, done)
                inbox.refused(arrival, n, n, Refusal(outcome, "no"))
                if outcome is Action.DEAD or not self.ordered:
                    low = done = n + 1
                    done -= 1
                    continue
                return
            if done >= low:
                inbox.taken(arrival, low, done)

    def outcome(self, n: int) -> Action | None:
        if n in self.rejected:
            return Action.DEAD
        if n in self.poison:
            return Action.RETRY
        if self.faults and self.random.random() < 0.03:
            return self.random.choice([Action.RETRY, Action.LATER])
        return None

    # --- the world

    def step(self) -> None:
        if not self.outbox.connected:
            self.connect()
        if self.faults and self.random.random() < 0.03:
            self.disconnect()
            return
        self.pump_out()
        if self.to_receiver and self.random.random() < 0.7:
            frame = decode_frame(self.to_receiver.popleft())
            assert isinstance(frame, Transfer)
            self.receive(frame)
        if self.random.random() < 0.5:
            for answer in self.inbox.answers.take_frames():
                self.to_sender.append(encode_frame(answer))
        if self.to_sender and self.random.random() < 0.7:
            self.pump_answers(decode_frame(self.to_sender.popleft()))
        for settled in self.outbox.backlog.take_settled():
            for n in range(settled.first, settled.last + 1):
                assert n not in self.final, "settled twice"
                self.final[n] = settled.status
        if not self.to_receiver and not self.to_sender:
            due = self.outbox.flight.next_deadline()
            if due is not None:
                self.now = max(self.now, due)

    def run(self, offers: int) -> None:
        for _ in range(offers):
            if not self.outbox.connected or self.outbox.flight.wants:
                self.offer()
            self.step()
        self.faults = False
        for _ in range(20_000):
            self.step()
            if self.outbox.backlog.idle:
                return
        pytest.fail("the hop does not drain")


@pytest.mark.parametrize("seed", range(150))
def test_strict_order_each_lane_is_handled_once_and_in_order(seed: int) -> None:
    hop = Hop(seed, ordered=True)
    hop.run(300)
    for subject, numbers in hop.expected.items():
        wanted = [n for n in numbers if n not in hop.rejected and n not in hop.poison]
        assert wanted == [n for s, n in hop.handled if s == subject]
    for n, status in hop.final.items():
        gone = n in hop.rejected or n in hop.poison
        assert (Status.DEAD if gone else Status.ACKNOWLEDGED) == status
    assert hop.sequence == hop.outbox.backlog.cursor
    assert not hop.outbox.backlog.above


@pytest.mark.parametrize("seed", range(100))
def test_without_order_each_message_is_handled_once(seed: int) -> None:
    hop = Hop(seed, ordered=False)
    hop.run(300)
    handled = [n for _, n in hop.handled]
    wanted = {n for numbers in hop.expected.values() for n in numbers}
    wanted -= hop.rejected | hop.poison
    assert len(handled) == len(set(handled))
    assert wanted == set(handled)
    assert hop.sequence == hop.outbox.backlog.cursor


@pytest.mark.parametrize("seed", range(60))
def test_a_receiver_that_forgets_gets_everything_at_least_once(seed: int) -> None:
    hop = Hop(seed, ordered=True, keep_marks=False)
    hop.run(300)
    wanted = {n for numbers in hop.expected.values() for n in numbers}
    assert wanted - hop.rejected - hop.poison <= {n for _, n in hop.handled}
    for subject in hop.expected:
        first_deliveries: list[int] = []
        for s, n in hop.handled:
            if s == subject and n not in first_deliveries:
                first_deliveries.append(n)
        assert sorted(first_deliveries) == first_deliveries


def test_a_run_is_counted_in_bytes_that_its_messages_have() -> None:
    hop = Hop(1, ordered=True)
    hop.run(200)
    backlog = hop.outbox.backlog
    tallies = (backlog.in_flight, backlog.ready, backlog.waiting, backlog.behind)
    assert [(0, 0, 0)] * 4 == [counts(tally) for tally in tallies]
    assert msgspec.msgpack.decode(encode_frame(Ack([(1, 2)]))) == [3, [[1, 2]]]
