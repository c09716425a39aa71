"""The accepting state: what was taken of a sender, and the answers owed on one connection. Sans-IO.

`Marks` (`core.marks`) live as long as the sender's incarnation: which of its sequences were taken.
`Answers` live as long as one connection: ACKs and NACKs to send, and the lanes that are discarded
until the sender has heard of a NACK (SEMANTICS 3). A node uses `Answers` and keeps its marks
inside its log; a receiver uses `Inbox`, which is both.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from heapq import heappop, heappush
from zlib import crc32

import msgspec

from msgservice.core.frames import Ack, Nack, Transfer
from msgservice.core.lanes import lane_of
from msgservice.core.marks import Marks
from msgservice.core.ranges import Range, RangeSet
from msgservice.core.refusal import Refusal
from msgservice.errors import MalformedFrame
from msgservice.limits import (
    INTEGER_MAX,
    RESUME_RANGES_TOTAL_MAX,
    WINDOW_MESSAGES_MAX,
)
from msgservice.message import Action, MessageParts
from msgservice.records import Rejected, Resume

ACK_RANGES_MAX = 400  # of one frame: fits in 8 KiB, so in any frame that the other side takes
REASON_BYTES_MAX = 4000  # of a NACK; UTF-8, for the same reason
NACK_BYTES = 32  # of a NACK without its reason, at most
# Ranges above the floor that a sender may leave on one connection, by what it has settled and this
# side has not taken.
RECEIVED_MAX = RESUME_RANGES_TOTAL_MAX + 1
ASKED_MAX = 400  # NACKs at once for what was discarded and did not come again
# Rejections remembered, beyond which the lowest is forgotten; one that is so is handled again.
REJECTED_MAX = 10_000


class Answers:
    """The acknowledgements owed to a sender on one connection, and the lanes discarded there.

    `receive` is called for each TRANSFER; everything it lets through is answered exactly once, by
    `take_over` or `refuse`, in any order.

    What it discards comes again, in order, once the sender has taken the lane back. A sender that
    sees other lanes than this side would wait for ever for an answer to it: what it passes by is
    asked for again (`_pass`, `ask_for_discarded`). A sender as it should be is never asked so, and
    has nothing in flight that it could take back for it.

    `said`: how many ranges this side's RESUME had. What is sent lies between them.
    `has_answered`: whether anything was answered on this connection.
    `window_messages`: what this side takes unanswered, so how many lanes a sender may have in
    flight without having heard of their NACKs.
    """

    __slots__ = (
        "_acked",
        "_discarded",
        "_discarded_ranges",
        "_discarding",
        "_is_shared",
        "_nacks",
        "_received_max",
        "_refusals",
        "_window_messages",
        "has_answered",
        "received",
        "refused_bytes",
    )

    def __init__(
        self,
        said: int = 0,
        window_messages: int = WINDOW_MESSAGES_MAX,
        *,
        is_shared: bool = False,
    ) -> None:
        self.has_answered = False
        self._is_shared = is_shared  # others get what lies between: only what is owed is kept
        self.received = RangeSet()  # what the sender sent here: all that may be answered
        self._received_max = RECEIVED_MAX + said
        self._acked = RangeSet()
        self._refusals: list[Nack] = []
        self.refused_bytes = (
            0  # of these, about: what is refused again and again has no other bound
        )
        self._nacks = 0
        self._window_messages = window_messages
        # lane -> how many NACKs the sender must have acted on, from where it takes back, and what
        # it had sent to: in the order of the first of these
        self._discarding: dict[Hashable, tuple[int, int, int]] = {}
        self._discarded: dict[Hashable, RangeSet] = {}  # lane -> what is to come again
        self._discarded_ranges = 0  # of all lanes

    def receive(self, transfer: Transfer, last: int, lane: Hashable) -> bool:
        """Whether the run is to be looked at; False: its lane is being discarded.

        `lane` None: no order is kept.
        """
        first = transfer.sequence
        if last > INTEGER_MAX:
            raise MalformedFrame(f"sequence {first} and {last - first + 1} messages pass 2^53")
        if transfer.nacks > self._nacks:
            raise MalformedFrame(f"nacks {transfer.nacks}, only {self._nacks} were sent")
        if self._discarding:
            self._taken_back(transfer.nacks, min(transfer.floor, first))
            discarding = self._discarding.get(lane)
            if discarding is not None:
                nacks, low, high = discarding
                self._discarding[lane] = (nacks, low, max(high, last))
                self._discard(first, last, lane)
                return False
        if transfer.floor > first:
            raise MalformedFrame(f"floor {transfer.floor} is above sequence {first}")
        after = transfer.after
        if after is not None and after >= first:
            raise MalformedFrame(f"after {after} is not below sequence {first}")
        received = self.received
        received.add(first if after is None else after + 1, last)
        if len(received.firsts) > 1:  # what the sender calls settled wants no answer any more
            received.remove_below(transfer.floor)
            if len(received.firsts) > self._received_max:
                raise MalformedFrame(f"more than {self._received_max} holes above the floor")
        if self._discarded:
            self._pass(first, last, lane)
        return True

    def _taken_back(self, nacks: int, floor: int) -> None:
        """Forget the lanes that the sender has taken back, or has settled what it had sent of.

        `nacks`, `floor`: as its TRANSFER says. One that acts on no NACK is not kept for.
        """
        discarding = self._discarding
        over = []  # all at once: a dict is searched from its beginning for what was its first
        for lane, (number, _, sent_to) in discarding.items():
            if number > nacks:
                if sent_to >= floor:
                    break
                discarded = self._discarded.pop(lane, None)  # settled, so it does not come again
                self._discarded_ranges -= 0 if discarded is None else len(discarded)
            over.append(lane)
        for lane in over:
            del discarding[lane]
        if len(discarding) > self._window_messages:
            raise MalformedFrame(
                f"more than {self._window_messages} lanes were refused, and not taken back"
            )

    def _discard(self, first: int, last: int, lane: Hashable) -> None:
        if self._discarded_ranges >= WINDOW_MESSAGES_MAX:
            raise MalformedFrame("more runs of lanes that were taken back than any window holds")
        discarded = self._discarded.setdefault(lane, RangeSet())
        before = len(discarded)
        discarded.add(first, last)
        self._discarded_ranges += len(discarded) - before

    def _pass(self, first: int, last: int, lane: Hashable) -> None:
        """A run of the lane is taken; discarded runs of the lane before it were passed by."""
        discarded = self._discarded.get(lane)
        if discarded is not None:
            before = len(discarded)
            discarded.remove(first, last)
            if discarded.first is not None and discarded.first < first:
                for low, high in discarded.within(discarded.first, first - 1):
                    self._ask_for(low, high)
                discarded.remove_below(first)
            self._discarded_ranges += len(discarded) - before
            if not discarded:
                del self._discarded[lane]

    def ask_for_discarded(self, ranges_max: int = ASKED_MAX) -> bool:
        """Ask again for discarded sequences that did not come, though their lane goes on.

        For when nothing has come for long and nothing is being handled. Returns whether there was
        any.
        """
        asked = 0
        for lane in [lane for lane in self._discarded if lane not in self._discarding]:
            discarded = self._discarded[lane]
            for low, high in discarded:
                if asked == ranges_max:
                    return True
                asked += 1
                self._ask_for(low, high)
                discarded.remove(low, high)
                self._discarded_ranges -= 1
            del self._discarded[lane]
        return asked > 0

    def _ask_for(self, first: int, last: int) -> None:
        self._nacks += 1
        self.received.add(first, last)
        self._owe(Nack(first, last, int(Action.LATER), 0, "discarded, not sent again"))

    def _owe(self, nack: Nack) -> None:
        self._refusals.append(nack)
        self.refused_bytes += NACK_BYTES + len(nack.reason) + len(nack.about or "")

    def take_over(self, first: int, last: int) -> None:
        """Acknowledge sequences that were taken, as far as this connection received them."""
        received = self.received
        if received.firsts and received.firsts[-1] <= first and last <= received.lasts[-1]:
            self._acked.add(first, last)  # as most
        else:
            for low, high in received.within(first, last):
                self._acked.add(low, high)
        if self._is_shared:
            received.remove(first, last)

    def refuse(
        self, first: int, last: int, refusal: Refusal, lane: Hashable, delay_ms: int = 0
    ) -> None:
        """Sequences are refused with a NACK. RETRY, LATER: the lane is discarded from here on."""
        action, text = refusal.action, sendable(refusal.reason)
        code, about = refusal.code, refusal.about or None
        self._owe(Nack(first, last, int(action), delay_ms, text, code, about))
        if self._is_shared:
            self.received.remove(first, last)
        if action in (Action.RETRY, Action.LATER):
            self._nacks += 1
            if lane is not None:
                _, low, high = self._discarding.pop(lane, (0, first, last))
                sent_to = max(last, high, self.received.last or 0)
                self._discarding[lane] = (self._nacks, min(first, low), sent_to)

    def discards(self, lane: Hashable, first: int) -> bool:
        """Whether what was let through of this lane from here on is void now.

        That is so behind what was refused, and only there: what came before it is still owed an
        answer, whatever was refused at the door meanwhile.
        """
        discarding = self._discarding.get(lane)
        return discarding is not None and discarding[1] < first

    def take_frames(self) -> list[Ack | Nack]:
        """The answers since the last call, one ACK for all that was taken."""
        frames: list[Ack | Nack] = []
        if self._acked.firsts:
            ranges = self._acked.take_all()
            while len(ranges) > ACK_RANGES_MAX:
                frames.append(Ack(ranges[:ACK_RANGES_MAX]))
                ranges = ranges[ACK_RANGES_MAX:]
            frames.append(Ack(ranges))
        if self._refusals:
            frames += self._refusals
            self._refusals = []
            self.refused_bytes = 0
        if frames:
            self.has_answered = True
        return frames

    @property
    def owes(self) -> bool:
        """Whether there is something to send."""
        return bool(self._acked.firsts or self._refusals)


class Arrival(msgspec.Struct, eq=False):
    """The new parts of a TRANSFER, to be handled: sequences `first` to `last` each."""

    transfer: Transfer
    count: int
    lane: Hashable
    parts: list[Range]
    _begins: MessageParts | None = None  # found when it is named in part

    def up_to(self, last: int) -> tuple[int, int, int]:
        """Return `(first, last, crc)` of the run up to this sequence, as RESUME says it."""
        transfer = self.transfer
        first = transfer.sequence
        count = last - first + 1
        if count == self.count:
            return first, last, crc32(transfer.messages)
        if self._begins is None:
            self._begins = MessageParts(transfer.messages)
        return first, last, self._begins.crc(count)


class Inbox:
    """A receiver's whole state for one sender: marks, what is being handled, answers."""

    def __init__(
        self,
        marks: Marks | None = None,
        *,
        ordered: bool = True,
        rejected: Iterable[Rejected] = (),
        window_messages: int = WINDOW_MESSAGES_MAX,
        is_shared: bool = False,
    ) -> None:
        self._is_shared = is_shared
        self.marks = Marks() if marks is None else marks
        self.ordered = ordered
        self._window_messages = window_messages
        self.answers = Answers(0, window_messages, is_shared=is_shared)
        self._taking = RangeSet()  # given to the handler, not taken yet
        self._newest: Arrival | None = None  # that reaches highest, of those given to the handler
        self._newest_last = 0
        self._rejected: dict[int, str] = {}  # sequence -> reason: no mark, the answer is repeated
        self._rejected_lowest: list[int] = []  # a heap of these sequences
        for first, last, reason in rejected:
            self._reject(first, last, reason)

    def resume(self) -> Resume:
        """The marks as a RESUME frame says them, and as `last` the newest run with the handler.

        A repeat of that is answered when the handler ends, so a log that went back and has given
        its sequences to other messages would have these answered for. Where nothing is with the
        handler, what came and was given up is new when it comes again, whatever it is.
        """
        resume, newest, last = self.marks.resume(), self._newest, self._newest_last
        if not self._taking or newest is None:
            return resume
        if resume.last is not None and last <= resume.last[1]:
            return resume
        return Resume(resume.floor, resume.ranges, newest.up_to(last))

    def reconnect(self) -> None:
        """A new connection of the same sender: nothing is owed on it yet."""
        self.answers = Answers(
            len(self.marks.taken), self._window_messages, is_shared=self._is_shared
        )

    def lane_of(self, transfer: Transfer) -> Hashable:
        """The lane of a run: the first sender's name and the subject, or None."""
        if not self.ordered:
            return None
        return lane_of(transfer.origin, "", transfer.subject)

    def receive_transfer(self, transfer: Transfer, count: int) -> Arrival | None:
        """Return the new part of a run, or None: a duplicate, being handled, or discarded.

        A repeat of what is being handled is answered when that ends (SEMANTICS 2). Raises
        `ContentChanged`.
        """
        first = transfer.sequence
        last = first + count - 1
        lane = lane_of(transfer.origin, "", transfer.subject) if self.ordered else None
        answers = self.answers
        if not answers.receive(transfer, last, lane):
            return None
        marks = self.marks
        marks.settle_below(transfer.floor)
        marks.check(first, last, transfer.messages, transfer.subject)
        parts = marks.missing(first, last)
        if len(parts) != 1 or parts[0] != (first, last):
            for low, high in _gaps(first, last, parts):
                answers.take_over(low, high)
        if self._rejected:
            parts = self._repeat_rejections(parts, lane)
        if self._taking.firsts and self._taking.overlaps(first, last):
            parts = [new for low, high in parts for new in self._taking.missing(low, high)]
        if not parts:
            return None
        for low, high in parts:
            self._taking.add(low, high)
        arrival = Arrival(transfer, count, lane, parts)
        if last >= self._newest_last:
            self._newest, self._newest_last = arrival, last
        return arrival

    def _repeat_rejections(self, parts: list[Range], lane: Hashable) -> list[Range]:
        rejected, lowest, settled = self._rejected, self._rejected_lowest, self.marks.settled
        while lowest and lowest[0] < settled:
            del rejected[heappop(lowest)]
        left = RangeSet(parts)
        for low, high in parts:
            few = len(rejected) <= high - low
            for sequence in [*rejected] if few else range(low, high + 1):
                reason = rejected.get(sequence)
                if reason is not None and low <= sequence <= high:
                    left.remove(sequence, sequence)
                    refusal = Refusal(Action.DEAD, reason)
                    self.answers.refuse(sequence, sequence, refusal, lane)
        return list(left)

    def taken(self, arrival: Arrival, first: int, last: int) -> None:
        """Sequences are taken: the handler is done with them, durably if that was promised."""
        transfer = arrival.transfer
        after = first - 1
        if first == transfer.sequence and transfer.after is not None:
            after = transfer.after
        self._taking.remove(first, last)
        self.marks.take(after, last, arrival)
        self.answers.take_over(after + 1, last)

    def refused(
        self, arrival: Arrival, first: int, last: int, refusal: Refusal, delay_ms: int = 0
    ) -> None:
        """Sequences were refused. RETRY, LATER: all of the arrival from `first` on is given up.

        What of it has not come again on this connection is answered when it does: what was
        given up by being handled, what was rejected by the same answer.
        """
        if refusal.action in (Action.RETRY, Action.LATER):
            self._taking.remove(first, last if arrival.lane is None else arrival.parts[-1][1])
        else:
            self._taking.remove(first, last)
            self.marks.remember(last, arrival)  # it is refused again, without being looked at
            self._reject(first, last, refusal.reason)
        for low, high in self.answers.received.within(first, last):
            self.answers.refuse(low, high, refusal, arrival.lane, delay_ms)

    def _reject(self, first: int, last: int, reason: str) -> None:
        rejected, lowest = self._rejected, self._rejected_lowest
        for sequence in range(first, last + 1):
            if sequence not in rejected:
                heappush(lowest, sequence)
            rejected[sequence] = reason
            if len(rejected) > REJECTED_MAX:
                del rejected[heappop(lowest)]

    def abandoned(self, first: int, last: int) -> None:
        """Messages will be neither handled nor answered: the sender keeps and retransmits them."""
        self._taking.remove(first, last)

    def abandon_all_but(self, kept: list[Range]) -> None:
        """Of all messages only these will be handled or answered: the sender keeps the others."""
        self._taking = RangeSet()
        for low, high in kept:
            self._taking.add(low, high)

    def ask_for_discarded(self) -> bool:
        """See `Answers`; not while anything is with the handler, which its lane may wait for."""
        return not self._taking and self.answers.ask_for_discarded()


def sendable(reason: str) -> str:
    """Return a text that fits into a frame: not too long, and of characters that UTF-8 has."""
    return reason.encode(errors="replace")[:REASON_BYTES_MAX].decode(errors="ignore")


def _gaps(first: int, last: int, parts: list[Range]) -> list[Range]:
    return RangeSet(parts).missing(first, last)
