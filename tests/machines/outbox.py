"""A backlog and its flights against a plain model: what is held, what was sent, who answered what.

The peer is a model too: it obeys the protocol's rules for lanes (a NACK takes its lane back, what
arrives before the sender has heard of it is dropped unanswered) and answers any part in any way.
Answers travel as encoded frames. The owner is played as the node's outlet does it: it offers what
the outbox wants, unloads, restarts from rows that may be older than what was settled.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from math import inf
from typing import ClassVar

from msgservice.core.backlog import Backlog
from msgservice.core.flight import Flight
from msgservice.core.frames import Ack, Frame, Nack, Transfer, decode_frame, encode_frame
from msgservice.core.ranges import RangeSet
from msgservice.core.refusal import Refusal
from msgservice.core.runs import BEHIND, FINAL, FLIGHT, READY, WAITING, Run, Settled
from msgservice.core.tried import Attempts
from msgservice.errors import ProtocolError
from msgservice.limits import INTEGER_MAX
from msgservice.message import Action, Status, WireMessage, decode_messages, encode_messages
from tests.kit.outbox import Outbox, counted_as, counts
from tests.machines.machine import Machine, Violation, require

LANES = ("a", "b", "c")
DRAIN_TURNS = 3000


@dataclass(frozen=True)
class Logged:
    """One batch of the owner's log."""

    first: int
    subject: str
    bodies: tuple[bytes, ...]

    @property
    def last(self) -> int:
        return self.first + len(self.bodies) - 1


@dataclass
class Rows:
    """What of an outbox is on the owner's disk."""

    cursor: int
    above: list[tuple[int, int]]
    tried: dict[tuple[int, int], Attempts]
    final: dict[int, Status]


@dataclass
class Arrived:
    """What the peer let through and has not answered: sequences `first` to `last`."""

    subject: str
    after: int
    first: int
    last: int


class OutboxMachine(Machine):
    """See the module."""

    OPERATIONS: ClassVar[dict[str, int]] = {
        "append": 30,
        "offer": 20,
        "offer_more": 2,
        "connect": 20,
        "pump": 30,
        "pump_part": 5,
        "arrive": 30,
        "take": 20,
        "take_part": 8,
        "take_many": 5,
        "retry": 10,
        "later": 6,
        "reject": 8,
        "deliver": 40,
        "pass_time": 15,
        "cut": 5,
        "unload": 4,
        "commit": 5,
        "restart": 2,
        "change_order": 1,
        "forget": 1,
        "lie": 5,
    }
    ALWAYS = frozenset({"append", "offer", "connect", "pump", "arrive", "take", "deliver"})
    STEPS = 250
    LOG_MAX = 80  # batches

    def __init__(self, rng: random.Random) -> None:
        super().__init__(rng)
        self.ordered = rng.random() < 0.7
        self.window = (rng.choice([1, 3, 10, 1000]), rng.choice([60, 500, 100_000]))
        self.max_attempts = rng.choice([0, 0, 2, 3])
        self.behind_max = rng.choice([2, 5, 50, 10_000])
        self.behind_bytes_max = rng.choice([200, 100_000])
        self.message_max = rng.choice([10, 40, 200])  # bytes of the largest body
        self.keeps_letters = self.message_max != 40  # no draw of its own: seeds stay what they were
        # Letters have no room the first time that a message would be one.
        self.lacks_room = self.keeps_letters and self.behind_bytes_max == 200
        self.had_no_room: set[int] = set()
        self.lacking: set[int] = set()  # on this connection, which ends for it
        self.now = 0.0
        # the owner
        self.log: list[Logged] = []
        self.bodies: dict[int, bytes] = {}
        self.subjects: dict[int, str] = {}
        self.next = 1
        self.offered = 0  # index of the next batch of the log to offer
        self.over_offered = False
        self.final: dict[int, Status] = {}
        self.letters: list[Settled] = []  # dead where order is kept, and not stored
        self.failures: dict[int, int] = {}  # tries that failed, of each message
        self.nacked: set[int] = set()  # told "again" or "later" once
        self.tried: dict[tuple[int, int], Attempts] = {}  # rows of the owner's
        self.rows = Rows(0, [], {}, {})
        self.refuses: set[int] = set()  # the peer said that it is dead
        self.acked: set[int] = set()  # the peer said that it has it
        # the connection
        self.peer_window: tuple[int, int] | None = None
        self.batch_max = 0
        self.sent: set[int] = set()  # on this connection, gaps included
        self.flying: dict[int, int] = {}  # sequence -> bytes of its body
        self.to_peer: deque[Transfer] = deque()
        self.to_owner: deque[bytes] = deque()
        # the peer
        self.taken: set[int] = set()
        self.gaps: set[int] = set()
        self.rejected: set[int] = set()
        self.pending: list[Arrived] = []
        self.nacks = 0
        self.discarding: dict[str, int] = {}
        self.outbox = self._new(0)

    def _new(self, cursor: int) -> Outbox:
        return Outbox(
            ordered=self.ordered,
            cursor=cursor,
            window=self.window,
            retry_delay=lambda attempts: min(2.0 ** (attempts - 1), 8.0),
            max_attempts=self.max_attempts,
            behind_max=self.behind_max,
            behind_bytes_max=self.behind_bytes_max,
            keeps_letters=self.keeps_letters,
            letters_room=self._letters_room if self.lacks_room else None,
        )

    def _letters_room(self, run: Run, refusal: Refusal) -> int:
        numbers = range(run.first, run.last + 1)
        count = next((n for n, at in enumerate(numbers) if at not in self.had_no_room), run.count)
        self.had_no_room.update(numbers[count:])
        self.lacking.update(numbers[count:])
        return count

    # --- the owner

    @property
    def backlog(self) -> Backlog:
        return self.outbox.backlog

    @property
    def flight(self) -> Flight:
        return self.outbox.flight

    @property
    def is_wanted(self) -> bool:
        """Whether the owner loads more: without a connection no more than its own window."""
        if self.outbox.connected:
            return self.flight.wants
        return self.backlog.has_room and self.backlog.ready.messages < self.window[0]

    def do_append(self, rng: random.Random) -> None:
        if len(self.log) >= self.LOG_MAX:
            return
        self.next += rng.choice([0, 0, 0, 1, 7])
        subject = rng.choice(LANES)
        bodies = []
        for number in range(self.next, self.next + rng.choice([1, 1, 2, 5, 9])):
            body = b"%d:" % number + b"x" * rng.choice([0, 5, self.message_max])
            self.bodies[number], self.subjects[number] = body, subject
            bodies.append(body)
        self.log.append(Logged(self.next, subject, tuple(bodies)))
        self.next += len(bodies)

    def do_offer(self, rng: random.Random) -> None:
        backlog = self.backlog
        while self.offered < len(self.log) and self.is_wanted:
            self._offer_next()
        if self.offered == len(self.log) and rng.random() < 0.3:
            backlog.skip_to(self.next - 1)

    def do_offer_more(self, rng: random.Random) -> None:
        """A page holds more than what is wanted, as a page of the log does."""
        for _ in range(rng.randint(1, 4)):
            if self.offered < len(self.log):
                self.over_offered = True
                self._offer_next()

    def _offer_next(self) -> None:
        one = self.log[self.offered]
        self.offered += 1
        backlog = self.backlog
        if one.last <= backlog.loaded_to:
            return
        messages = encode_messages([WireMessage(body) for body in one.bodies])
        lane = ("shop", one.subject) if self.ordered else None
        run = Run(
            one.first,
            len(one.bodies),
            one.subject,
            lane,
            messages,
            len(messages),
            backlog.loaded_to,
        )
        if one.first <= backlog.loaded_to:
            backlog.offer_rest(run)
        else:
            backlog.offer(run)

    def do_unload(self, rng: random.Random) -> None:
        if not self.outbox.connected:
            self._drain()
            self.backlog.unload()
            self.offered = 0

    def do_change_order(self, rng: random.Random) -> None:
        if not self.outbox.connected:
            self._drain()
            self.backlog.unload()
            self.offered = 0
            self.backlog.ordered = self.ordered = not self.ordered

    def do_commit(self, rng: random.Random) -> None:
        backlog = self.backlog
        self._drain()
        if self.letters and rng.random() < 0.3:  # a group takes so many, and not of all that is new
            self._store_letters(rng.randint(1, 3))
            return
        self._store_letters(INTEGER_MAX)
        self._store_tried()
        self.rows = Rows(backlog.cursor, list(backlog.above), dict(self.tried), dict(self.final))
        backlog.committed = max(backlog.committed, backlog.cursor)

    def _store_tried(self) -> None:
        """Attempts are stored as an owner has them: a row replaces those that begin inside it."""
        backlog = self.backlog
        rows = {
            (run.first, run.last): (run.attempts, run.due if run.due < inf else 0.0, run.reason)
            for run in backlog.take_failed()
            if run.state != FINAL and run.first > backlog.cursor and run.first not in backlog.above
        }
        new = RangeSet([*rows, *backlog.above, (0, backlog.cursor)])
        kept = {
            one: tried
            for one, tried in self.tried.items()
            if one[0] not in new or (one[0] <= backlog.cursor < one[1] and one not in rows)
        }
        firsts = {first for first, _ in rows}
        self.tried = {one: tried for one, tried in kept.items() if one[0] not in firsts} | rows
        noted: dict[int, tuple[int, str]] = {}
        for (first, last), (attempts, _, reason) in sorted(self.tried.items()):
            noted |= dict.fromkeys(range(first, last + 1), (attempts, reason))
        for run in backlog._open:
            for number in range(run.first, run.last + 1):
                stored = noted.get(number, (0, ""))
                known = (run.attempts, run.reason)
                require(stored == known, "attempts are not stored", number, stored, known)

    def _store_letters(self, room: int) -> None:
        """The oldest dead letters are stored, as many messages as there is room for."""
        stored: list[Settled] = []
        while self.letters and room:
            one = self.letters.pop(0)
            count = min(room, one.last - one.first + 1)
            room -= count
            at = one.first + count
            if at <= one.last:
                self.letters.insert(0, Settled(one.run, at, one.last, one.status))
            stored.append(Settled(one.run, one.first, at - 1, one.status))
        self.backlog.letters_stored(stored)

    def do_restart(self, rng: random.Random) -> None:
        self._cut()
        rows = self.rows
        self.outbox = self._new(rows.cursor)
        self.backlog.restore(rows.above, rows.tried)
        self.tried = dict(rows.tried)
        self.final = dict(rows.final)
        self.letters = []
        self.offered = 0

    def do_pass_time(self, rng: random.Random) -> None:
        due = self.flight.next_deadline() if self.outbox.connected else None
        if due is not None and rng.random() < 0.5:
            self.now = max(self.now, due)
        else:
            self.now += rng.choice([0.01, 0.3, 2.0, 20.0])

    # --- the connection

    def do_connect(self, rng: random.Random) -> None:
        if self.outbox.connected:
            return
        window = rng.choice([None, (1, 10), (4, 60), (1000, 10**6), (0, 0), (0, 10**6), (10, 0)])
        self._connect(window, rng.choice([10**6, 10**6, 1000, 60]))

    def _connect(self, window: tuple[int, int] | None, batch_max: int) -> None:
        marks = RangeSet((number, number) for number in sorted(self.taken | self.gaps))
        floor = 1
        while marks and marks.covers(floor, floor):
            found = marks.range_of(floor)
            assert found is not None
            floor = found[1] + 1
        marks.remove_below(floor)
        self.acked |= self.taken
        self.backlog.receive_resume(floor, tuple(marks))
        self._drain()
        self.outbox.connect(window, batch_max)
        self.peer_window, self.batch_max = window, batch_max
        self.sent, self.flying = set(), {}
        self.to_peer.clear()
        self.to_owner.clear()
        self.pending, self.discarding, self.nacks = [], {}, 0

    def do_cut(self, rng: random.Random) -> None:
        self._cut(lost=rng.random() < 0.8)

    def _cut(self, *, lost: bool = True) -> None:
        if lost and len(self.flying) == 1:
            (alone,) = self.flying
            self.failures[alone] = self.failures.get(alone, 0) + 1  # if it was being probed
            self.nacked.add(alone)
        self.outbox.disconnect(self.now, lost=lost)
        self._drain()
        self.flying = {}
        self.to_peer.clear()
        self.to_owner.clear()
        self.pending, self.discarding = [], {}
        self.lacking = set()

    def do_forget(self, rng: random.Random) -> None:
        """The peer comes back without its memory."""
        self._cut()
        self.taken, self.gaps, self.rejected = set(), set(), set()

    def do_pump(self, rng: random.Random) -> None:
        if self.outbox.connected:
            self._send(self.flight.take_transfers(self.now))

    def do_pump_part(self, rng: random.Random) -> None:
        if self.outbox.connected:
            transfers = self.flight.take_transfers(
                self.now,
                lambda run: rng.randint(0, run.count),
                rng.choice([1, 60, 10**6]),
                rng.choice([1, 2, 10**6]),
            )
            self._send(transfers)

    def _send(self, transfers: list[Transfer]) -> None:
        self._drain()
        for transfer in transfers:
            self._check_sent(transfer)
            self.to_peer.append(transfer)

    def _check_sent(self, transfer: Transfer) -> None:
        messages = decode_messages(transfer.messages)
        first, count = transfer.sequence, len(messages)
        last = first + count - 1
        after = first - 1 if transfer.after is None else transfer.after
        require(count, "an empty transfer", first)
        require(len(bytes(transfer.messages)) <= self.batch_max, "more than the peer takes", first)
        require(transfer.floor - 1 <= self.backlog.committed, "the floor is not stored", first)
        require(transfer.floor <= first, "the floor is above what is sent", first)
        for number, message in zip(range(first, last + 1), messages, strict=True):
            require(self.bodies.get(number) == message.body, "other content", number, message.body)
            require(self.subjects[number] == transfer.subject, "other subject", number)
            require(number not in self.final, "sent again what is settled", number)
            require(number not in self.flying, "sent what is in flight", number)
        for number in range(after + 1, first):
            open_one = number in self.bodies and number not in self.final
            require(not open_one, "a gap over what is open", after, first, number)
        flying = len(self.flying)
        if flying:
            room, bytes_room = self.window
            if self.peer_window is not None:
                room = min(room, self.peer_window[0])
                bytes_room = min(bytes_room, self.peer_window[1])
            require(flying + count <= room, "more messages than the window", flying, count, room)
            size = sum(self.flying.values()) + sum(len(m.body) for m in messages)
            require(size <= bytes_room, "more bytes than the window", size, bytes_room)
        self._check_order(first, transfer.subject)
        for number, message in zip(range(first, last + 1), messages, strict=True):
            self.flying[number] = len(message.body)
        self.sent.update(range(after + 1, last + 1))

    def _check_order(self, first: int, subject: str) -> None:
        """Nothing of the lane that is lower may be open and not on its way before this."""
        if self.ordered:
            unstored = [one.first for one in self.letters if one.run.subject == subject]
            require(not unstored, "sent behind a dead letter that is not stored", unstored, first)
            for number in self._loaded():
                if number >= first:
                    break
                if self.subjects[number] == subject and number not in self.final:
                    require(number in self.flying, "lane order broken", number, first)
        elif first not in self.nacked:
            for number in self._loaded():
                if number >= first:
                    break
                waits = number not in self.final and number not in self.flying
                if waits and not self._is_too_large(number):
                    require(number in self.nacked, "not in rising order", number, first)

    def _is_too_large(self, number: int) -> bool:
        """Whether the peer takes no message of this size: it waits for one that does."""
        return len(encode_messages([WireMessage(self.bodies[number])])) > self.batch_max

    def _loaded(self) -> Iterator[int]:
        for one in self.log:
            for number in range(one.first, one.last + 1):
                if number > self.backlog.loaded_to:
                    return
                yield number

    # --- the peer

    def do_arrive(self, rng: random.Random) -> None:
        for _ in range(rng.randint(1, 4)):
            if self.to_peer:
                self._arrive(self.to_peer.popleft())

    def _arrive(self, transfer: Transfer) -> None:
        count = len(decode_messages(transfer.messages))
        first, last = transfer.sequence, transfer.sequence + count - 1
        require(transfer.nacks <= self.nacks, "more nacks than were sent", transfer.nacks)
        subject = transfer.subject
        if self.ordered and subject in self.discarding:
            if transfer.nacks < self.discarding[subject]:
                return
            del self.discarding[subject]
        after = first - 1 if transfer.after is None else transfer.after
        for number in range(first, last + 1):
            if number in self.rejected:
                self._answer(Nack(number, number, int(Action.DEAD), 0, "no"))
        parts = RangeSet([(first, last)])
        for number in self.rejected & set(range(first, last + 1)):
            parts.remove(number, number)
        for low, high in parts:
            self.pending.append(Arrived(subject, after if low == first else low - 1, low, high))

    def _answer(self, frame: Frame) -> None:
        self.to_owner.append(encode_frame(frame))

    def _pick(self, rng: random.Random) -> Arrived | None:
        if not self.pending:
            return None
        if not self.ordered:
            return rng.choice(self.pending)
        subject = rng.choice(sorted({one.subject for one in self.pending}))
        return next(one for one in self.pending if one.subject == subject)

    def _take(self, one: Arrived, last: int) -> tuple[int, int]:
        """Handle what arrived, up to `last`; return the range to acknowledge."""
        after = one.after
        for number in range(one.first, last + 1):
            if number in self.taken:
                continue
            if self.ordered:
                lower = [
                    n
                    for n in self._loaded()
                    if n < number
                    and self.subjects[n] == one.subject
                    and n not in self.taken
                    and n not in self.final
                    and n not in self.rejected
                ]
                require(not lower, "handled out of order", lower, number)
            self.taken.add(number)
        self.gaps.update(range(after + 1, one.first))
        if last == one.last:
            self.pending.remove(one)
        else:
            one.first, one.after = last + 1, last
        return after + 1, last

    def do_take(self, rng: random.Random) -> None:
        one = self._pick(rng)
        if one is not None:
            self._answer(Ack([self._take(one, one.last)]))

    def do_take_part(self, rng: random.Random) -> None:
        one = self._pick(rng)
        if one is not None:
            self._answer(Ack([self._take(one, rng.randint(one.first, one.last))]))

    def do_take_many(self, rng: random.Random) -> None:
        """One ACK of many ranges."""
        ranges = RangeSet()
        for _ in range(rng.randint(1, 12)):
            one = self._pick(rng)
            if one is not None:
                ranges.add(*self._take(one, rng.randint(one.first, one.last)))
        if ranges:
            self._answer(Ack(list(ranges)))

    def do_retry(self, rng: random.Random) -> None:
        self._refuse(rng, Action.RETRY)

    def do_later(self, rng: random.Random) -> None:
        self._refuse(rng, Action.LATER)

    def _refuse(self, rng: random.Random, action: Action) -> None:
        one = self._pick(rng)
        if one is None:
            return
        at = rng.randint(one.first, one.last)
        if at > one.first:
            self._answer(Ack([self._take(one, at - 1)]))
        last = rng.choice([at, one.last, rng.randint(at, one.last)])
        self.nacks += 1
        if self.ordered:
            self.discarding[one.subject] = self.nacks
            self.pending = [other for other in self.pending if other.subject != one.subject]
        elif last == one.last:
            self.pending.remove(one)
        else:
            one.first, one.after = last + 1, last
        self._answer(
            Nack(at, last, int(action), rng.choice([0, 0, 10, 3000]), f"again {self.nacks}")
        )

    def do_reject(self, rng: random.Random) -> None:
        one = self._pick(rng)
        if one is None:
            return
        at = rng.randint(one.first, one.last)
        if at > one.first:
            self._answer(Ack([self._take(one, at - 1)]))
        last = rng.randint(at, one.last)
        self.rejected.update(range(at, last + 1))
        if last == one.last:
            self.pending.remove(one)
        else:
            one.first, one.after = last + 1, last
        action = rng.choice([Action.DEAD, Action.REFUSED])
        self._answer(Nack(at, last, int(action), 0, "never"))

    def do_lie(self, rng: random.Random) -> None:
        """An answer about what was not sent, or is answered, or makes no sense: no harm is done."""
        if not self.outbox.connected:
            return
        first = rng.randint(0, self.next + 3)
        ends = [first, rng.choice([rng.randint(0, self.next + 3), first + rng.randint(0, 3)])]
        if any(n in self.bodies and n not in self.final for n in range(ends[0], ends[1] + 1)):
            return  # a peer may say what it likes of what it was given
        first, last = ends
        sensible = set(range(first, last + 1)) <= self.sent and first <= last
        frame = rng.choice(
            [
                Ack([(first, last)]),
                Nack(first, last, rng.choice([1, 2, 3, 4]), 0, "a lie"),
            ]
        )
        before = dict(self.final), self.backlog.cursor
        try:
            self._apply(encode_frame(frame))
        except ProtocolError:
            self._cut()
            return
        if isinstance(frame, Nack) and frame.action in (Action.RETRY, Action.LATER):
            self.nacks += 1
        self._drain()
        require(sensible, "an answer about what was not sent is believed", frame)
        require(before == (self.final, self.backlog.cursor), "a lie changed something", frame)

    def do_deliver(self, rng: random.Random) -> None:
        for _ in range(rng.randint(1, 4)):
            if self.to_owner and self.outbox.connected:
                self._apply(self.to_owner.popleft())
        self._drain()
        if self.lacking and rng.random() < 0.5:
            self._cut(lost=False)

    def _apply(self, data: bytes) -> None:
        frame = decode_frame(data)
        if isinstance(frame, Ack):
            for first, last in frame.ranges:
                answered = set(range(first, last + 1)) & set(self.flying)
                self.acked |= answered
            self.flight.receive_acks(frame.ranges, self._turn(frame.ranges[0][0]))
            self._hear_to_the_end()
            for first, last in frame.ranges:
                require(not self.backlog.open_between(first, last), "half an answer", first, last)
                for number in range(first, last + 1):
                    self.flying.pop(number, None)
            return
        assert isinstance(frame, Nack)
        first, last, action = frame.first, frame.last, Action(frame.action)
        numbers = [number for number in range(first, last + 1) if number in self.flying]
        if action in (Action.DEAD, Action.REFUSED):
            self.refuses.update(numbers)
        elif action is Action.RETRY:
            for number in numbers:
                self.failures[number] = self.failures.get(number, 0) + 1
        refusal = Refusal(action, frame.reason)
        turn = self._turn(first)
        self.flight.receive_nack(first, last, refusal, frame.delay / 1000, self.now, turn)
        self._hear_to_the_end()
        if action in (Action.RETRY, Action.LATER):
            still = [number for number in numbers if self.backlog.in_flight_at(number)]
            require(not still, "half an answer", still)
        for number in numbers:
            if action in (Action.RETRY, Action.LATER) or number not in self.lacking:
                del self.flying[number]
        if action in (Action.RETRY, Action.LATER):
            self.nacked.update(numbers)
            if self.ordered and numbers:
                subject = self.subjects[numbers[0]]
                for number in [n for n in self.flying if n > first]:
                    if self.subjects[number] == subject:
                        del self.flying[number]

    def _turn(self, sequence: int) -> int:
        """How many runs of an answer are heard in one turn."""
        return (1, 2, 10**6)[sequence % 3]

    def _hear_to_the_end(self) -> None:
        while not self.flight.is_answered:
            require(not self.flight.take_transfers(self.now), "sent in the middle of an answer")
            self.flight.go_on(self.now, 1)

    # --- what must hold

    def _drain(self) -> None:
        for one in self.backlog.take_settled():
            self._note(one)

    def _note(self, one: Settled) -> None:
        require(one.first <= one.last, "an empty range is settled", one.first, one.last)
        if self.keeps_letters and one.status is Status.DEAD and one.run.lane is not None:
            self.letters.append(one)
        for number in range(one.first, one.last + 1):
            require(number in self.bodies, "settled what is not there", number)
            require(number not in self.final, "settled twice", number, one.status)
            self.final[number] = one.status
            self.flying.pop(number, None)
            if one.status is Status.ACKNOWLEDGED:
                require(number in self.acked, "acknowledged and never taken", number)
            elif one.status is Status.DEAD:
                tries = self.failures.get(number, 0)
                given_up = self.max_attempts and tries >= self.max_attempts
                require(
                    number in self.refuses or given_up,
                    "dead without a reason",
                    number,
                    one.reason,
                    tries,
                )
            else:
                raise Violation("settled as what cannot be", number, one.status)

    def check(self, after: str) -> None:
        self._drain()  # an offer settles what the peer's RESUME has taken
        backlog = self.backlog
        self._check_counters()
        loaded = set(self._loaded())
        open_ones = {number for number in loaded if number not in self.final}
        cursor = backlog.cursor
        below = {number for number in open_ones if number <= cursor}
        require(not below, "the cursor is above what is open", cursor, below)
        for first, last in backlog.above:
            wrong = open_ones & set(range(first, last + 1))
            require(not wrong, "final above the cursor, and open", wrong)
        require(
            backlog.in_flight.messages == len(self.flying),
            "in flight is not what is unanswered",
            backlog.in_flight.messages,
            sorted(self.flying),
        )
        if not self.over_offered:
            most = self.behind_max + 3 * min(self.window[0], 100) + 100
            found = len(backlog.above) + len(backlog.waiting_runs)
            require(found <= most, "more exceptions than the limit", found, most)

    def _check_counters(self) -> None:
        """The counters are what the open runs add up to."""
        backlog = self.backlog
        sums = {state: [0, 0, 0] for state in (READY, FLIGHT, WAITING, BEHIND)}
        for run in backlog._open:
            of_state = sums[counted_as(backlog, run)]
            of_state[0] += 1
            of_state[1] += run.count
            of_state[2] += run.size
            require(len(bytes(run.messages)) == run.size, "a run's size is wrong", run.first)
        for name, tally, state in (
            ("in flight", backlog.in_flight, FLIGHT),
            ("ready", backlog.ready, READY),
            ("behind", backlog.behind, BEHIND),
            ("waiting", backlog.waiting, WAITING),
        ):
            found = counts(tally)
            require(found == tuple(sums[state]), f"counter: {name}", found, sums[state])

    def _stuck(self) -> str:
        """Say in which way nothing moves any more."""
        backlog = self.backlog
        if backlog.in_flight.messages:
            return "stuck: in flight, and nobody has it"
        if backlog.ready.messages:
            return "stuck: ready, and not sent"
        if backlog.open_runs:
            return "stuck: open, and nothing is due"
        if 0 in (self.flight.window_messages, self.flight.window_bytes):
            return "stuck: no window, nothing is wanted"
        return "stuck: nothing is wanted"

    def finish(self) -> None:
        """The peer answers everything and the owner offers what is wanted: all is settled."""
        self._cut()
        window = random.Random(self.next).choice([None, None, (1, 1), (0, 0), (5, 10**6)])
        self._connect(window, 10**6)
        for _ in range(DRAIN_TURNS):
            moved = False
            while self.offered < len(self.log) and self.flight.wants:
                self._offer_next()
                moved = True
            transfers = self.flight.take_transfers(self.now)
            moved = moved or self.flight.has_more
            self._send(transfers)
            while self.to_peer:
                self._arrive(self.to_peer.popleft())
                moved = True
            while self.pending:
                self._answer(Ack([self._take(self.pending[0], self.pending[0].last)]))
            while self.to_owner:
                self._apply(self.to_owner.popleft())
                moved = True
            self._drain()
            if self.lacking:
                self._cut(lost=False)
                self._connect(window, 10**6)
            self.check("drain")
            if self.offered == len(self.log) and self.backlog.idle:
                break
            if not moved and self.letters:
                self._store_letters(1)
            elif not moved:
                due = self.flight.next_deadline()
                if due is None:
                    raise Violation(
                        self._stuck(), len(self.backlog.above), counts(self.backlog.ready)
                    )
                self.now = max(self.now, due)
        else:
            raise Violation("not drained", self.backlog.open_runs)
        missing = set(self.bodies) - set(self.final)
        require(not missing, "never settled", sorted(missing)[:5])
        backlog = self.backlog
        self._store_letters(INTEGER_MAX)
        backlog.skip_to(self.next - 1)
        require(backlog.cursor == self.next - 1, "the cursor stays behind", backlog.cursor)
        left = (
            list(backlog.above),
            counts(backlog.ready),
            counts(backlog.in_flight),
            counts(backlog.waiting),
            counts(backlog.behind),
            len(backlog.waiting_runs),
            len(backlog._stuck.by_lane),
            len(backlog._tried or ()),
        )
        none = (0, 0, 0)
        require(left == ([], none, none, none, none, 0, 0, 0), "something is left behind", left)
