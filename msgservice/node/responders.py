"""Requests between peers: who answers which subjects, and which call waits for whom (DELIVERY 57).

    REQUEST of an asker ─► ask ─► a run for each responder that gets some of its calls ─► REQUEST
    REPLY of a responder ─► answered ─► what is owed to each asker ─► REPLY
    CANCEL of an asker ─► cancel ─► what of it a responder was sent ─► CANCEL

Nothing is stored. A call stands in one table, by a number of this node's, from `ask` until it is
answered, its time is over, or one of the two connections has gone; so it is answered once, or fails
once, and an answer that comes later finds nothing. What is to be said to anybody is gathered, and
leaves at the end of the turn: until then a call was not written, and goes to the next responder
where the first has gone. Afterwards it may have been handled, and goes to nobody else.

A call that nobody waits for any more, given up by its asker or over its time, is forgotten at once.
What was not written of it is not; who was sent it is told, where it listens to that.

Who may ask and answer what is the gate's to say, the form of a HELLO the greeting's; the node's own
subjects are answered in `admin`.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right, insort
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, NamedTuple, Protocol

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from msgservice.administration import RequestCounts
from msgservice.core.frames import Answer, Cancel, Pair, Reply, Request, cancels_of
from msgservice.core.ranges import RangeSet
from msgservice.core.subjects import SubjectMatcher, check_subject, count_tokens, is_reserved
from msgservice.errors import (
    ERROR_HEADER,
    TYPED_CODES,
    BadSubject,
    Busy,
    ConnectionLimit,
    MessageTooLarge,
    MsgServiceError,
    NoResponder,
    RequestTimeout,
    ResponderLost,
    code_said,
)
from msgservice.limits import Limits
from msgservice.message import MessageParts, count_of, decode_message
from msgservice.node.gate import Pass
from msgservice.node.replies import refusal

DUES_SPARE = 1000  # deadlines of runs that have gone, beside one for each that has not
ASKED_SPARE = 64  # runs of an asker that have gone, beside those that have not
# Responders of all turns together that are remembered: of very many sets of them few recur.
TURNS_MAX = 65_536
MS_MAX = 24 * 3600 * 1000  # that a call may wait: as long as a client's may
ID_FIRST: Final = 1
# What the node alone says: a responder that does so passes on what a request of its own has failed
# with. That it takes no more calls, each says for itself.
OURS: Final = TYPED_CODES - {Busy.refusal_code}


class Asker(Protocol):
    """The one who asks: a connection (`peer`), or a part of the node."""

    def told(self, answers: list[Answer]) -> None:
        """Answers to its calls, by its own numbers."""


class End(Protocol):
    """The connection of a responder (`peer`)."""

    @property
    def may_be_asked(self) -> bool:
        """Whether it takes calls now: its session stands, and its transport has room."""

    def ask(self, frames: list[Request | Cancel]) -> None:
        """Send it calls, and which of those before nobody waits for any more."""

    def has_answered(self) -> None:
        """Nothing that it was asked is unanswered any more."""


class Own(Protocol):
    """The handler of requests on the node's own subjects (`admin`)."""

    def answer(self, request: Request, who: Pass) -> Deferred[Reply]:
        """Answer each call of a request, as far as who asks may."""


class Responder:
    """A connection that answers requests on some subjects. `room`: calls that it takes at once.

    `batch_max`: bytes of messages in one frame to it. `pending`: calls given to it and not
    answered. `queued`: of those the runs that were not written yet, with their messages. `listens`:
    whether it hears what is given up.
    """

    __slots__ = (
        "batch_max",
        "end",
        "listens",
        "number",
        "patterns",
        "pending",
        "queued",
        "room",
        "runs",
    )

    def __init__(
        self,
        end: End,
        patterns: Sequence[str],
        *,
        number: int,
        room: int,
        batch_max: int,
        listens: bool,
    ) -> None:
        self.end = end
        self.patterns = tuple(dict.fromkeys(patterns))
        self.number = number
        self.room, self.batch_max, self.listens = room, batch_max, listens
        self.pending = 0
        self.runs: dict[_Run, None] = {}
        self.queued: dict[_Run, bytes | msgspec.Raw] = {}

    @property
    def free(self) -> int:
        """The number of calls that it may be given now."""
        return self.room - self.pending if self.end.may_be_asked else 0


class _Wait(NamedTuple):
    """The time until which calls wait, by the node's clock; and how long that was, in seconds."""

    due: float
    seconds: float


class _Run:
    """Calls that one responder was given together; `shift`: from our numbers to the asker's."""

    __slots__ = ("asker", "first", "last", "left", "responder", "shift", "subject", "wait")

    def __init__(
        self,
        asker: Asker,
        responder: Responder,
        subject: str,
        wait: _Wait,
        *,
        first: int,
        count: int,
        shift: int,
    ) -> None:
        self.asker, self.responder, self.subject = asker, responder, subject
        self.first, self.last, self.left = first, first + count - 1, count
        self.shift = shift
        self.wait = wait

    def part(self, first: int, last: int) -> _Run:
        """Return a run of some of its calls, by our numbers."""
        return _Run(
            self.asker,
            self.responder,
            self.subject,
            self.wait,
            first=first,
            count=last - first + 1,
            shift=self.shift,
        )

    def __lt__(self, other: _Run) -> bool:
        return self.first < other.first  # in the heap, of those that are due together


def _begin_of(run: _Run) -> int:
    """The first number of a run, as its asker has it."""
    return run.first + run.shift


class _Asked:
    """The runs of one asker, by its own numbers, and some that are over. `open`: that are not."""

    __slots__ = ("open", "runs")

    def __init__(self) -> None:
        self.runs: list[_Run] = []
        self.open = 0

    def add(self, run: _Run) -> None:
        """Add a run; most begin behind all others."""
        runs = self.runs
        if len(runs) > 2 * self.open + ASKED_SPARE:
            runs[:] = [each for each in runs if each.left]
        if runs and _begin_of(runs[-1]) > _begin_of(run):
            insort(runs, run, key=_begin_of)
        else:
            runs.append(run)
        self.open += 1

    def within(self, ranges: Iterable[Pair]) -> dict[_Run, list[Pair]]:
        """Return the runs that have calls in these ranges of the asker's numbers, with those.

        Of calls with one number, made while another has it, the newest alone may be found.
        """
        found: dict[_Run, list[Pair]] = {}
        for low, high in ranges:
            for at in range(bisect_right(self.runs, high, key=_begin_of) - 1, -1, -1):
                run = self.runs[at]
                if not run.left:
                    continue
                begin, end = _begin_of(run), run.last + run.shift
                if end >= low:
                    found.setdefault(run, []).append((max(low, begin), min(high, end)))
                if begin <= low:
                    break
        return found


class _Turn:
    """The responders of some subjects, and whose turn it is: on all of these together."""

    __slots__ = ("at", "of")

    def __init__(self, of: tuple[Responder, ...]) -> None:
        self.of = of
        self.at = 0


class Responders:
    """The responders of a node, and the calls that wait for them.

    `given_up`: calls that their askers gave up, or who asked has gone, before an answer. `late`:
    answers that came when nobody waited for them any more, or a second time. `stray`: answers to
    calls that were given to another connection, or to nobody.
    """

    def __init__(self, *, clock: IReactorTime, now: Callable[[], float], limits: Limits) -> None:
        self.given_up = self.late = self.stray = 0
        self._clock, self._now, self._limits = clock, now, limits
        self._matcher: SubjectMatcher[Responder] = SubjectMatcher()
        self._here: dict[Responder, None] = {}
        self._turns: dict[str, _Turn] = {}  # by subject; those of the same responders are one
        self._among: dict[tuple[Responder, ...], _Turn] = {}
        self._among_size = 0
        self._joined = 0
        self._next = ID_FIRST
        self._calls: dict[int, _Run] = {}
        self._asked: dict[Asker, _Asked] = {}
        self._dues: list[tuple[float, _Run]] = []
        self._runs = 0
        self._owed: dict[Asker, list[Answer]] = {}
        self._asking: dict[Responder, None] = {}  # with something queued
        self._unwanted: dict[Responder, list[int]] = {}  # of what it was sent
        self._timer: IDelayedCall | None = None
        self._timer_due = 0.0
        self._flushing: IDelayedCall | None = None
        self._is_stopped = False

    # --- getters

    @property
    def pending(self) -> int:
        """The number of calls that are not answered."""
        return len(self._calls)

    def counts(self) -> RequestCounts:
        """Return how many there are, for people."""
        return RequestCounts(
            responders=len(self),
            pending=self.pending,
            given_up=self.given_up,
            late=self.late,
            stray=self.stray,
        )

    def __len__(self) -> int:
        """The number of responders that are here."""
        return len(self._here)

    # --- who answers

    def check_room(self, patterns: Sequence[str]) -> None:
        """Raise `ConnectionLimit` where one more responder with these finds no room."""
        limits = self._limits
        if len(patterns) > limits.patterns:
            raise ConnectionLimit("patterns", limits.patterns)
        tokens = self._matcher.tokens + sum(map(count_tokens, patterns))
        if tokens > limits.pattern_tokens:
            raise ConnectionLimit("pattern_tokens", limits.pattern_tokens)

    def join(
        self, end: End, patterns: Sequence[str], *, room: int, batch_max: int, listens: bool
    ) -> Responder:
        """A connection answers these from now on; it takes `room` calls at once.

        `listens`: it hears which of its calls nobody waits for any more. Raises `ConnectionLimit`
        as `check_room` does.
        """
        self.check_room(patterns)
        self._joined += 1
        room = min(room, self._limits.responding)
        responder = Responder(
            end, patterns, number=self._joined, room=room, batch_max=batch_max, listens=listens
        )
        for pattern in responder.patterns:
            self._matcher.add(pattern, responder)
        self._here[responder] = None
        self._forget_turns()
        return responder

    def leaves(self, responder: Responder) -> None:
        """A responder is given nothing more; what it was sent it may still answer."""
        if self._here.pop(responder, responder) is responder:
            return
        for pattern in responder.patterns:
            self._matcher.remove(pattern, responder)
        self._forget_turns()
        self._asking.pop(responder, None)
        queued, responder.queued = responder.queued, {}
        for run, messages in queued.items():
            self._end(run)  # it was not written
            self._place(run.asker, run.subject, messages, run.first + run.shift, run.wait)

    def lost(self, responder: Responder) -> None:
        """The connection of a responder has gone: what it was sent may have been handled."""
        self.leaves(responder)
        for run in list(responder.runs):
            self._fail(run, ResponderLost(run.subject))
        self._unwanted.pop(responder, None)

    # --- who asks

    def ask(self, asker: Asker, frame: Request, who: Pass) -> None:
        """Give the calls of a REQUEST, whose messages are well-formed, to who answers them.

        What nobody is given is answered with what speaks against it.
        """
        calls, error = count_of(frame.messages), None
        if not who.allows("request", frame.subject):
            error = who.refusal(frame.subject)
        else:
            try:
                check_subject(frame.subject)
            except BadSubject as wrong:
                error = wrong
        if error is not None:
            self._refuse(asker, frame.id, calls, error)
            return
        seconds = min(frame.timeout, MS_MAX) / 1000
        wait = _Wait(self._now() + seconds, seconds)
        self._place(asker, frame.subject, frame.messages, frame.id, wait)

    def answer(self, request: Request, who: Pass) -> Deferred[Reply]:
        """Ask for a part of the node: fire with the answers to all calls of a request."""
        asker = _Waiting(count_of(request.messages), self.forget)
        self.ask(asker, request, who)
        return asker.answer

    def cancel(self, asker: Asker, ranges: Sequence[Pair]) -> int:
        """An asker gives calls up, by its own numbers: return how many of its own still waited.

        What is none of those is passed over: its answer has crossed this.
        """
        asked = self._asked.get(asker)
        count = 0
        if asked is not None:
            for run, parts in asked.within(ranges).items():
                count += self._take_out(run, parts)
                self._look(run.responder)
        self.given_up += count
        return count

    def forget(self, asker: Asker) -> None:
        """An asker has gone: what it is answered goes to nobody."""
        self._owed.pop(asker, None)
        asked = self._asked.get(asker)
        if asked is not None:
            for run in [run for run in asked.runs if run.left]:
                self.given_up += len(self._drop(run))
                self._look(run.responder)

    # --- from the responders

    def answered(self, responder: Responder, reply: Reply) -> None:
        """Answers of a responder. Raises `MalformedFrame` for what is no message."""
        calls, queued, owed = self._calls, responder.queued, self._owed
        of: _Run | None = None  # most answers are of the run of the one before
        told: list[Answer] = []
        try:
            for number, ok, raw in reply.replies:
                run = calls.get(number)
                if run is None or run.responder is not responder or run in queued:
                    self._count_odd(number, run)
                    continue
                message = decode_message(raw)  # an asker must not end for what it says
                if not ok and code_said((message.headers or {}).get(ERROR_HEADER, "")) in OURS:
                    raw = refusal(message.body.decode("utf-8", "replace"))
                del calls[number]
                if run is not of:
                    of = run
                    told = owed.setdefault(run.asker, [])
                told.append((number + run.shift, ok, raw))
                responder.pending -= 1
                run.left -= 1
                if not run.left:
                    self._over(run)
        finally:
            self._flush_soon()

    def _count_odd(self, number: int, run: _Run | None) -> None:
        if run is None and number < self._next:
            self.late += 1
        else:
            self.stray += 1

    # --- the end

    def stop(self) -> None:
        """Say nothing more, and keep no timer."""
        self._is_stopped = True
        self._flush()
        for timer in (self._timer, self._flushing):
            if timer is not None:
                timer.cancel()
        self._timer = self._flushing = None

    # --- inside: who gets what

    def _turn_of(self, subject: str) -> _Turn | None:
        turn = self._turns.get(subject)
        if turn is None:
            found = self._matcher.match(subject)
            if not found:
                return None
            if len(self._turns) >= self._limits.subjects:
                self._turns.clear()
            turn = self._turn_among(tuple(sorted(found, key=lambda one: one.number)))
            self._turns[subject] = turn
        return turn

    def _turn_among(self, of: tuple[Responder, ...]) -> _Turn:
        turn = self._among.get(of)
        if turn is None:
            if self._among_size + len(of) > TURNS_MAX:
                self._forget_turns()
            self._among_size += len(of)
            turn = self._among[of] = _Turn(of)
        return turn

    def _forget_turns(self) -> None:
        self._turns.clear()
        self._among.clear()
        self._among_size = 0

    def _place(
        self, asker: Asker, subject: str, messages: bytes | msgspec.Raw, number: int, wait: _Wait
    ) -> None:
        """Give calls, the first of which has this number of the asker's, to responders in turn."""
        count = count_of(messages)
        turn = self._turn_of(subject)
        if turn is None:
            self._refuse(asker, number, count, NoResponder(subject))
            return
        begin = 0
        room = self._limits.pending_requests - len(self._calls)
        for responder, share in _shares(turn, min(count, room)):
            part = messages
            if share < count:
                part = MessageParts(messages).run(begin, begin + share)
            self._give(responder, asker, subject, part, number + begin, share, wait)
            begin += share
        if begin < count:
            self._refuse(asker, number + begin, count - begin, Busy(subject))
        self._flush_soon()

    def _give(
        self,
        responder: Responder,
        asker: Asker,
        subject: str,
        messages: bytes | msgspec.Raw,
        number: int,
        count: int,
        wait: _Wait,
    ) -> None:
        if len(memoryview(messages)) > responder.batch_max:
            self._give_parts(responder, asker, subject, messages, number, count, wait)
            return
        first = self._next
        self._next = first + count
        run = _Run(asker, responder, subject, wait, first=first, count=count, shift=number - first)
        self._begin(run)
        responder.queued[run] = messages
        self._asking[responder] = None

    def _begin(self, run: _Run) -> None:
        """Let the calls of a run wait."""
        self._calls.update(dict.fromkeys(range(run.first, run.last + 1), run))
        asked = self._asked.get(run.asker)
        if asked is None:
            asked = self._asked[run.asker] = _Asked()
        asked.add(run)
        run.responder.runs[run] = None
        run.responder.pending += run.left
        self._runs += 1
        due = run.wait.due
        heapq.heappush(self._dues, (due, run))
        if len(self._dues) > 2 * self._runs + DUES_SPARE:
            self._dues = [each for each in self._dues if each[1].left]
            heapq.heapify(self._dues)
        if self._timer is None or due < self._timer_due:
            self._rearm()

    def _give_parts(
        self,
        responder: Responder,
        asker: Asker,
        subject: str,
        messages: bytes | msgspec.Raw,
        number: int,
        count: int,
        wait: _Wait,
    ) -> None:
        """Give calls in as many frames as the responder takes them in."""
        parts, begin = MessageParts(messages), 0
        while begin < count:
            fitting = parts.fitting(begin, count, responder.batch_max)
            if fitting:
                run = parts.run(begin, begin + fitting)
                self._give(responder, asker, subject, run, number + begin, fitting, wait)
            else:
                error = MessageTooLarge(parts.size(begin, begin + 1), responder.batch_max)
                self._refuse(asker, number + begin, 1, error)
            begin += fitting or 1

    # --- inside: the ends of calls

    def _over(self, run: _Run) -> None:
        """No call of a run waits any more."""
        self._runs -= 1
        responder = run.responder
        responder.runs.pop(run, None)
        asked = self._asked.get(run.asker)
        if asked is not None:
            asked.open -= 1
            if not asked.open:
                del self._asked[run.asker]

    def _look(self, responder: Responder) -> None:
        """Tell one that leaves when nothing that it was asked waits any more."""
        if not responder.pending and responder not in self._here:
            responder.end.has_answered()

    def _open(self, run: _Run) -> list[int]:
        """Return the numbers of a run's calls that still wait, and let them wait no longer."""
        calls = self._calls
        if run.left == run.last - run.first + 1:
            numbers = list(range(run.first, run.last + 1))
        else:
            numbers = [number for number in range(run.first, run.last + 1) if number in calls]
        for number in numbers:
            del calls[number]
        run.responder.pending -= len(numbers)
        run.left = 0
        return numbers

    def _end(self, run: _Run) -> list[int]:
        numbers = self._open(run)
        run.responder.queued.pop(run, None)
        self._over(run)
        return numbers

    def _drop(self, run: _Run) -> list[int]:
        """Let nobody wait for the calls of a run any more; return their numbers."""
        was_sent = run not in run.responder.queued
        numbers = self._end(run)
        if was_sent:
            self._tell_unwanted(run.responder, numbers)
        return numbers

    def _tell_unwanted(self, responder: Responder, numbers: Iterable[int]) -> None:
        if responder.listens:
            self._unwanted.setdefault(responder, []).extend(numbers)
            self._flush_soon()

    def _take_out(self, run: _Run, parts: Sequence[Pair]) -> int:
        """Let nobody wait for these calls of a run, by its asker's numbers; return how many did.

        What is left of it are runs of their own, each without a hole: so looking for calls that
        wait no longer never costs more than making them did.
        """
        given_up = {
            number
            for low, high in parts
            for number in range(low - run.shift, high - run.shift + 1)
            if self._calls.get(number) is run
        }
        responder = run.responder
        messages = responder.queued.get(run)
        parts_of = None if messages is None else MessageParts(messages)
        left = RangeSet((number, number) for number in self._end(run) if number not in given_up)
        if parts_of is None:
            self._tell_unwanted(responder, given_up)
        for first, last in left:
            part = run.part(first, last)
            self._begin(part)
            if parts_of is not None:
                responder.queued[part] = parts_of.run(first - run.first, last - run.first + 1)
        return len(given_up)

    def _fail(self, run: _Run, error: MsgServiceError) -> None:
        """Tell the asker of a run what its calls that still wait fail with."""
        asker, shift = run.asker, run.shift
        said = refusal(str(error), error.refusal_code)
        answers = [(number + shift, False, said) for number in self._drop(run)]
        self._owed.setdefault(asker, []).extend(answers)
        self._flush_soon()

    def _refuse(self, asker: Asker, number: int, count: int, error: MsgServiceError) -> None:
        said = refusal(str(error), error.refusal_code)
        answers = [(each, False, said) for each in range(number, number + count)]
        self._owed.setdefault(asker, []).extend(answers)
        self._flush_soon()

    def _expire(self) -> None:
        self._timer = None
        now = self._now()
        while self._dues and self._dues[0][0] <= now:
            _, run = heapq.heappop(self._dues)
            if run.left:
                self._fail(run, RequestTimeout(run.subject, run.wait.seconds))
                self._look(run.responder)
        self._rearm()

    def _rearm(self) -> None:
        dues = self._dues
        while dues and not dues[0][1].left:
            heapq.heappop(dues)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if dues and not self._is_stopped:
            self._timer_due = dues[0][0]
            delay = max(0.001, self._timer_due - self._now())
            self._timer = self._clock.callLater(delay, self._expire)

    # --- inside: what leaves at the end of the turn

    def _flush_soon(self) -> None:
        if self._flushing is None and not self._is_stopped:
            self._flushing = self._clock.callLater(0, self._flush_now)

    def _flush_now(self) -> None:
        self._flushing = None
        self._flush()

    def _flush(self) -> None:
        asking, self._asking = self._asking, {}
        unwanted, self._unwanted = self._unwanted, {}
        for responder in {**unwanted, **asking}:
            # First what takes no place there any more.
            frames: list[Request | Cancel] = [*cancels_of(unwanted.get(responder, ()))]
            queued, responder.queued = responder.queued, {}
            now = self._now()
            for run, messages in queued.items():
                left = max(1, int((run.wait.due - now) * 1000))
                frames.append(Request(run.first, run.subject, msgspec.Raw(messages), left))
            if frames:
                responder.end.ask(frames)
        owed, self._owed = self._owed, {}
        for asker, answers in owed.items():
            asker.told(answers)


class _Waiting:
    """An asker inside the node, which waits for all answers to one request."""

    def __init__(self, count: int, forget: Callable[[Asker], None]) -> None:
        self.answer: Deferred[Reply] = Deferred(lambda _: forget(self))
        self._count = count
        self._answers: list[Answer] = []

    def told(self, answers: list[Answer]) -> None:
        """See `Asker`."""
        self._answers += answers
        if len(self._answers) == self._count:
            self.answer.callback(Reply(self._answers))


def _shares(turn: _Turn, count: int) -> Iterator[tuple[Responder, int]]:
    """Yield who gets how many of so many calls: alike, from whose turn it is, as far as they go."""
    of, size = turn.of, len(turn.of)
    while count > 0:
        free: list[tuple[int, Responder]] = []
        for place in range(turn.at, turn.at + size):
            one = of[place % size]
            if one.free > 0:
                free.append((place, one))
                if len(free) == count:
                    break
        if not free:
            return
        share = -(-count // len(free))
        for place, one in free:
            taken = min(share, one.free, count)
            if taken <= 0:
                break
            turn.at = (place + 1) % size
            count -= taken
            yield one, taken


class EveryRequest:
    """The handler of requests on all subjects: the node's own, and those that responders answer."""

    def __init__(self, own: Own, responders: Responders) -> None:
        self._own, self._responders = own, responders

    def answer(self, request: Request, who: Pass) -> Deferred[Reply]:
        """Answer each call of a request, as far as who asks may."""
        if is_reserved(request.subject):
            return self._own.answer(request, who)
        return self._responders.answer(request, who)
