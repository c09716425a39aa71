"""`core.inbox` paired with an outbox over a link that is cut anywhere, against plain sets.

Handlers end whenever they like, also after the connection that brought their message has gone.
The receiver crashes, with its marks on disk or not; the sender restarts from rows that are older
than what was settled. Messages come from several producers, whose name is in their origin: a node
takes no other origin from them.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from dataclasses import dataclass
from typing import ClassVar

from msgservice.core.backlog import Backlog
from msgservice.core.flight import Flight
from msgservice.core.frames import (
    Ack,
    Nack,
    ResumeFrame,
    Transfer,
    decode_frame,
    encode_frame,
)
from msgservice.core.inbox import Arrival, Inbox
from msgservice.core.marks import Marks
from msgservice.core.ranges import RangeSet
from msgservice.core.refusal import Refusal, refusal_in
from msgservice.core.runs import Run
from msgservice.limits import FRAME_OVERHEAD
from msgservice.message import Action, Status, WireMessage, decode_messages, encode_messages
from msgservice.records import Origin, Rejected
from tests.kit.outbox import Outbox
from tests.machines.machine import Machine, Violation, require

DRAIN_TURNS = 2000


@dataclass(frozen=True)
class Sent:
    """One run of the sender's log."""

    first: int
    subject: str
    sender: str
    origin: Origin
    bodies: tuple[bytes, ...]

    @property
    def last(self) -> int:
        return self.first + len(self.bodies) - 1


@dataclass
class Job:
    """A part of an arrival that the handler has, from `at` on."""

    arrival: Arrival
    at: int
    last: int


class InboxMachine(Machine):
    """See the module."""

    OPERATIONS: ClassVar[dict[str, int]] = {
        "append": 30,
        "connect": 20,
        "pump": 30,
        "carry": 30,
        "answer": 25,
        "carry_back": 30,
        "handle": 30,
        "retry": 7,
        "later": 5,
        "reject": 6,
        "cut": 5,
        "cut_behind": 4,
        "crash": 2,
        "restart": 2,
        "commit": 6,
        "pass_time": 12,
    }
    ALWAYS = frozenset({"append", "connect", "pump", "carry", "answer", "carry_back", "handle"})
    STEPS = 200

    def __init__(self, rng: random.Random) -> None:
        super().__init__(rng)
        self.ordered = rng.random() < 0.75
        self.durable = rng.random() < 0.6
        self.window = (rng.choice([2, 10, 1000]), rng.choice([100, 100_000]))
        self.max_attempts = rng.choice([0, 0, 3])
        self.subjects = "ab" if rng.random() < 0.5 else "a"
        self.now = 0.0
        # the sender
        self.log: list[Sent] = []
        self.by_number: dict[int, Sent] = {}
        self.next = 1
        self.offered = 0
        self.final: dict[int, Status] = {}
        self.rows: tuple[int, list[tuple[int, int]], dict[int, Status]] = (0, [], {})
        self.failures: Counter[int] = Counter()
        # the link
        self.out: deque[bytes] = deque()
        self.back: deque[bytes] = deque()
        # the receiver
        self.jobs: list[Job] = []
        self.handled: Counter[int] = Counter()
        self.known: set[int] = set()  # handled, and no crash has forgotten it
        self.rejected: set[int] = set()
        self.received = RangeSet()  # on this connection: what may be answered
        self.nacks = 0
        self.discarding: dict[tuple[str, str], int] = {}  # lane -> until this many are known
        self.through: Counter[int] = Counter()  # received on this connection, per sequence
        self.told: Counter[int] = Counter()  # answered on this connection
        self.outbox = self._new_outbox(0)
        self.inbox = Inbox(ordered=self.ordered)

    def _new_outbox(self, cursor: int) -> Outbox:
        return Outbox(
            ordered=self.ordered,
            cursor=cursor,
            window=self.window,
            retry_delay=lambda attempts: min(2.0 ** (attempts - 1), 8.0),
            max_attempts=self.max_attempts,
        )

    # --- the sender

    @property
    def backlog(self) -> Backlog:
        return self.outbox.backlog

    @property
    def flight(self) -> Flight:
        return self.outbox.flight

    def do_append(self, rng: random.Random) -> None:
        if len(self.log) >= 60:
            return
        self.next += rng.choice([0, 0, 0, 2])
        sender = rng.choice(["x", "y"])
        count = rng.choice([1, 1, 2, 4, 8])
        bodies = tuple(b"%d" % number for number in range(self.next, self.next + count))
        origin = Origin(sender, self.next, "0123456789abcdef", ())
        one = Sent(self.next, rng.choice(self.subjects), sender, origin, bodies)
        self.log.append(one)
        for number in range(one.first, one.last + 1):
            self.by_number[number] = one
        self.next += count

    def _offer(self) -> None:
        while self.offered < len(self.log) and self.flight.wants:
            one = self.log[self.offered]
            self.offered += 1
            if one.last <= self.backlog.loaded_to:
                continue
            messages = encode_messages([WireMessage(body) for body in one.bodies])
            lane = (one.sender, one.subject) if self.ordered else None
            run = Run(
                one.first,
                len(one.bodies),
                one.subject,
                lane,
                messages,
                len(messages),
                self.backlog.loaded_to,
                origin=one.origin,
            )
            if one.first <= self.backlog.loaded_to:
                self.backlog.offer_rest(run)
            else:
                self.backlog.offer(run)

    def do_commit(self, rng: random.Random) -> None:
        self._drain()
        self.rows = (self.backlog.cursor, list(self.backlog.above), dict(self.final))
        self.backlog.committed = max(self.backlog.committed, self.backlog.cursor)

    def do_restart(self, rng: random.Random) -> None:
        self._cut()
        cursor, above, final = self.rows
        self.outbox = self._new_outbox(cursor)
        self.backlog.restore(above, {})
        self.final = dict(final)
        self.offered = 0

    def do_pass_time(self, rng: random.Random) -> None:
        due = self.flight.next_deadline() if self.outbox.connected else None
        if due is not None and rng.random() < 0.6:
            self.now = max(self.now, due)
        else:
            self.now += rng.choice([0.01, 1.0, 10.0])

    # --- the link

    def do_connect(self, rng: random.Random) -> None:
        self._connect()

    def _connect(self) -> None:
        if self.outbox.connected:
            return
        self.inbox.reconnect()
        self.received, self.nacks, self.discarding = RangeSet(), 0, {}
        self.through.clear()
        self.told.clear()
        resume = self.inbox.resume()
        frame = decode_frame(
            encode_frame(ResumeFrame(resume.floor, list(resume.ranges), resume.last))
        )
        assert isinstance(frame, ResumeFrame)
        self.backlog.receive_resume(frame.floor, frame.ranges)
        self._drain()
        self.outbox.connect(None, 10**6)

    def do_cut(self, rng: random.Random) -> None:
        self._cut()

    def do_cut_behind(self, rng: random.Random) -> None:
        """The connection goes, after some of what was under way has arrived, each way."""
        for _ in range(rng.randint(0, len(self.out))):
            self._arrive(self.out.popleft())
        for _ in range(rng.randint(0, len(self.back))):
            self._come_back(self.back.popleft())
        self._cut()

    def _cut(self) -> None:
        for number in range(1, self.next):
            if self.outbox.connected and self.backlog.in_flight_at(number):
                self.failures[number] += 1  # if it was being probed
        self.out.clear()
        self.back.clear()
        self.outbox.disconnect(self.now)
        self._drain()

    def do_pump(self, rng: random.Random) -> None:
        if not self.outbox.connected:
            return
        self._offer()
        self._drain()
        for transfer in self.flight.take_transfers(self.now):
            last = transfer.sequence + len(decode_messages(transfer.messages)) - 1
            for number in range(transfer.sequence, last + 1):
                require(number not in self.final, "sent again what is settled", number)
            self.out.append(encode_frame(transfer))

    def do_carry(self, rng: random.Random) -> None:
        for _ in range(rng.randint(1, 3)):
            if self.out:
                self._arrive(self.out.popleft())

    def do_carry_back(self, rng: random.Random) -> None:
        for _ in range(rng.randint(1, 3)):
            if self.back:
                self._come_back(self.back.popleft())

    # --- the receiver

    def _arrive(self, data: bytes) -> None:
        transfer = decode_frame(data)
        assert isinstance(transfer, Transfer)
        count = len(decode_messages(transfer.messages))
        arrival = self.inbox.receive_transfer(transfer, count)
        lane = (transfer.origin.sender if transfer.origin else "", transfer.subject)
        if transfer.nacks >= self.discarding.get(lane, 0):
            self.discarding.pop(lane, None)
            after = transfer.sequence - 1 if transfer.after is None else transfer.after
            self.received.add(after + 1, transfer.sequence + count - 1)
            for number in range(transfer.sequence, transfer.sequence + count):
                self.through[number] += 1
        if arrival is None:
            return
        for low, high in arrival.parts:
            for number in range(low, high + 1):
                require(number not in self.known, "handled twice", number)
                require(number not in self.rejected, "handled after it was rejected", number)
            self.jobs.append(Job(arrival, low, high))

    def _pick(self, rng: random.Random) -> Job | None:
        if not self.jobs:
            return None
        if not self.ordered:
            return rng.choice(self.jobs)
        lanes = list(dict.fromkeys(job.arrival.lane for job in self.jobs))
        lane = rng.choice(lanes)
        return next(job for job in self.jobs if job.arrival.lane == lane)

    def do_handle(self, rng: random.Random) -> None:
        job = self._pick(rng)
        if job is not None:
            self._handle(job, rng.choice([job.last, rng.randint(job.at, job.last)]))

    def _handle(self, job: Job, last: int) -> None:
        for number in range(job.at, last + 1):
            self._note_handled(number)
        self.inbox.taken(job.arrival, job.at, last)
        job.at = last + 1
        if job.at > job.last:
            self.jobs.remove(job)

    def _note_handled(self, number: int) -> None:
        """A lane is what the first sender sent on one subject; first handlings rise in it."""
        one = self.by_number[number]
        if self.ordered and not self.handled[number]:
            lane = (one.origin.sender, one.subject)
            for before in range(1, number):
                other = self.by_number.get(before)
                if other is not None and (other.origin.sender, other.subject) == lane:
                    require(
                        self.handled[before] or before in self.rejected or before in self.final,
                        "handled out of order",
                        before,
                        number,
                    )
        self.handled[number] += 1
        self.known.add(number)

    def do_retry(self, rng: random.Random) -> None:
        self._refuse(rng, Action.RETRY)

    def do_later(self, rng: random.Random) -> None:
        self._refuse(rng, Action.LATER)

    def do_reject(self, rng: random.Random) -> None:
        self._refuse(rng, Action.DEAD)

    def _refuse(self, rng: random.Random, action: Action) -> None:
        """As the engine does it: what came before is taken, nothing behind it is begun."""
        job = self._pick(rng)
        if job is None:
            return
        at = rng.randint(job.at, job.last)
        last = rng.choice([at, at, rng.randint(at, job.last)])
        if at > job.at:
            self._handle(job, at - 1)
        if action is not Action.DEAD:
            told = len(self.received.within(at, last))  # a NACK each; none if it came before
            self.nacks += told
            one = self.by_number[at]
            if told and self.ordered:
                self.discarding[(one.origin.sender, one.subject)] = self.nacks
        delay_ms = rng.choice([0, 0, 10, 2000])
        self.inbox.refused(job.arrival, at, last, Refusal(action, "no"), delay_ms)
        job.at = last + 1
        if action is Action.DEAD:
            self.rejected.update(range(at, last + 1))
        elif self.ordered:
            for other in [one for one in self.jobs if one.arrival.lane == job.arrival.lane]:
                if other.at <= other.last:
                    self.inbox.abandoned(other.at, other.last)
                self.jobs.remove(other)
            return
        if job.at > job.last:
            self.jobs.remove(job)

    def do_answer(self, rng: random.Random) -> None:
        self._answer()

    def _answer(self) -> None:
        for frame in self.inbox.answers.take_frames():
            if not self.outbox.connected:
                continue
            data = encode_frame(frame)
            require(len(data) <= FRAME_OVERHEAD, "an answer no frame can hold", len(data))
            self.back.append(data)
            if isinstance(frame, Ack):
                answered = [n for low, high in frame.ranges for n in range(low, high + 1)]
            else:
                answered = list(range(frame.first, frame.last + 1))
            for number in answered:
                if number in self.by_number:
                    self.told[number] += 1
                    require(
                        self.told[number] <= self.through[number],
                        "answered more often than it came",
                        number,
                    )

    def do_crash(self, rng: random.Random) -> None:
        """The receiver's process goes; its marks are on disk, or go with it."""
        self._cut()
        self.jobs = []
        if self.durable:
            marks = self.inbox.marks
            kept = Marks(marks.floor, marks.taken.copy(), marks.last)
            rejected = [
                Rejected(low, high, "no") for low, high in RangeSet((n, n) for n in self.rejected)
            ]
            self.inbox = Inbox(kept, ordered=self.ordered, rejected=rejected)
        else:
            self.inbox = Inbox(ordered=self.ordered)
            self.known = set()
            self.rejected = set()

    def _come_back(self, data: bytes) -> None:
        frame = decode_frame(data)
        if isinstance(frame, Ack):
            self.flight.receive_acks(frame.ranges)
        else:
            assert isinstance(frame, Nack)
            if frame.action == Action.RETRY:
                self.failures.update(range(frame.first, frame.last + 1))
            self.flight.receive_nack(
                frame.first,
                frame.last,
                refusal_in(frame),
                frame.delay / 1000,
                self.now,
            )
        self._drain()

    # --- what must hold

    def _drain(self) -> None:
        for one in self.backlog.take_settled():
            for number in range(one.first, one.last + 1):
                require(number not in self.final, "settled twice", number)
                self.final[number] = one.status
                if one.status is Status.ACKNOWLEDGED:
                    require(self.handled[number], "acknowledged and never handled", number)
                else:
                    tries = self.failures[number]
                    given_up = self.max_attempts and tries >= self.max_attempts
                    was_refused = one.reason == "no"
                    require(given_up or was_refused, "dead without a reason", number, one.reason)

    def check(self, after: str) -> None:
        self._drain()
        marks = self.inbox.marks
        require(marks.floor <= self.backlog.committed + 1, "a floor that was never said")
        newest = max(self.known | self.rejected, default=0)
        require(marks.floor <= newest + 1, "a floor above all that was taken or rejected")
        for number in self.by_number:
            is_missing = bool(marks.missing(number, number))
            if number in self.known:
                require(not is_missing, "handled, and not in the marks", number)
            else:
                require(is_missing, "in the marks, and not handled", number)
        taking = {n for job in self.jobs for n in range(job.at, job.last + 1)}
        held = {n for part in self.inbox._taking for n in range(part[0], part[1] + 1)}
        require(held == taking, "what the handler has is not what is noted", held, taking)
        untaken, groups = False, 0
        for number in sorted(self.by_number):
            if marks.taken.last is not None and number > marks.taken.last:
                break
            missing = number not in self.known
            groups += missing and not untaken
            untaken = missing
        most = 2 * (groups + len(self.rejected)) + 2
        require(len(marks.taken) <= most, "more marks than holes", list(marks.taken), groups)

    def finish(self) -> None:
        """Both are well and nothing is cut: all is handled, answered and settled."""
        self._connect()
        rng = random.Random(1)
        for _ in range(DRAIN_TURNS):
            self.do_pump(rng)
            moved = bool(self.out or self.jobs)
            while self.out:
                self._arrive(self.out.popleft())
            while self.jobs:
                self._handle(self.jobs[0], self.jobs[0].last)
            self._answer()
            moved = moved or bool(self.back)
            while self.back:
                self._come_back(self.back.popleft())
            self.check("drain")
            if self.offered == len(self.log) and self.backlog.idle:
                break
            if not moved:
                due = self.flight.next_deadline()
                if due is None:
                    kind = "in flight" if self.backlog.in_flight.messages else "open"
                    raise Violation(f"stuck: {kind}", self.backlog.open_runs)
                self.now = max(self.now, due)
        else:
            raise Violation("not drained", self.backlog.open_runs)
        missing = set(self.by_number) - set(self.final)
        require(not missing, "never settled", sorted(missing)[:5])
        for number, status in self.final.items():
            if status is Status.ACKNOWLEDGED:
                require(self.handled[number], "acknowledged and never handled", number)
        for number in self.by_number:
            if self.handled[number] > 1:
                require(not self.durable, "handled twice", number)
