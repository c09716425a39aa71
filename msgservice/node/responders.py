"""Requests between peers: who answers which subjects, and which call waits for whom (DELIVERY 57).

    REQUEST of an asker ─► ask ─► a run for each responder that gets some of its calls ─► REQUEST
    REPLY of a responder ─► answered ─► what is owed to each asker ─► REPLY

Nothing is stored. A call stands in one table, by a number of this node's, from `ask` until it is
answered, its time is over, or one of the two connections has gone; so it is answered once, or fails
once, and an answer that comes later finds nothing. What is to be said to anybody is gathered, and
leaves at the end of the turn: until then a call was not written, and goes to the next responder
where the first has gone. Afterwards it may have been handled, and goes to nobody else.

Who may ask and answer what is the gate's to say, the form of a HELLO the greeting's; the node's own
subjects are answered in `admin`.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple, Protocol

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from msgservice.administration import RequestCounts
from msgservice.core.frames import Answer, Reply, Request
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

    def ask(self, requests: list[Request]) -> None:
        """Send it calls."""

    def has_answered(self) -> None:
        """Nothing that it was asked is unanswered any more."""


class Own(Protocol):
    """The handler of requests on the node's own subjects (`admin`)."""

    def answer(self, request: Request, who: Pass) -> Deferred[Reply]:
        """Answer each call of a request, as far as who asks may."""


class Responder:
    """A connection that answers requests on some subjects. `room`: calls that it takes at once.

    `batch_max`: bytes of messages in one frame to it. `pending`: calls given to it and not
    answered. `queued`: of those the runs that were not written yet, with their messages.
    """

    __slots__ = ("batch_max", "end", "number", "patterns", "pending", "queued", "room", "runs")

    def __init__(
        self, end: End, patterns: Sequence[str], *, number: int, room: int, batch_max: int
    ) -> None:
        self.end = end
        self.patterns = tuple(dict.fromkeys(patterns))
        self.number = number
        self.room, self.batch_max = room, batch_max
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

    def __lt__(self, other: _Run) -> bool:
        return self.first < other.first  # in the heap, of those that are due together


class _Turn:
    """The responders of some subjects, and whose turn it is: on all of these together."""

    __slots__ = ("at", "of")

    def __init__(self, of: tuple[Responder, ...]) -> None:
        self.of = of
        self.at = 0


class Responders:
    """The responders of a node, and the calls that wait for them.

    `late`: answers that came when nobody waited for them any more, or a second time. `stray`:
    answers to calls that were given to another connection, or to nobody.
    """

    def __init__(self, *, clock: IReactorTime, now: Callable[[], float], limits: Limits) -> None:
        self.late = self.stray = 0
        self._clock, self._now, self._limits = clock, now, limits
        self._matcher: SubjectMatcher[Responder] = SubjectMatcher()
        self._here: dict[Responder, None] = {}
        self._turns: dict[str, _Turn] = {}  # by subject; those of the same responders are one
        self._among: dict[tuple[Responder, ...], _Turn] = {}
        self._among_size = 0
        self._joined = 0
        self._next = ID_FIRST
        self._calls: dict[int, _Run] = {}
        self._asked: dict[Asker, dict[_Run, None]] = {}
        self._dues: list[tuple[float, _Run]] = []
        self._runs = 0
        self._owed: dict[Asker, list[Answer]] = {}
        self._asking: dict[Responder, None] = {}  # with something queued
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
            responders=len(self), pending=self.pending, late=self.late, stray=self.stray
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

    def join(self, end: End, patterns: Sequence[str], *, room: int, batch_max: int) -> Responder:
        """A connection answers these from now on; it takes `room` calls at once.

        Raises `ConnectionLimit` as `check_room` does.
        """
        self.check_room(patterns)
        self._joined += 1
        room = min(room, self._limits.responding)
        responder = Responder(end, patterns, number=self._joined, room=room, batch_max=batch_max)
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

    def forget(self, asker: Asker) -> None:
        """An asker has gone: what it is answered goes to nobody."""
        self._owed.pop(asker, None)
        for run in list(self._asked.get(asker, ())):
            self._end(run)
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
        self._calls.update(dict.fromkeys(range(first, first + count), run))
        self._asked.setdefault(asker, {})[run] = None
        responder.runs[run] = None
        responder.pending += count
        responder.queued[run] = messages
        self._asking[responder] = None
        self._runs += 1
        heapq.heappush(self._dues, (wait.due, run))
        if len(self._dues) > 2 * self._runs + DUES_SPARE:
            self._dues = [each for each in self._dues if each[1].left]
            heapq.heapify(self._dues)
        if self._timer is None or wait.due < self._timer_due:
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
            asked.pop(run, None)
            if not asked:
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

    def _fail(self, run: _Run, error: MsgServiceError) -> None:
        """Tell the asker of a run what its calls that still wait fail with."""
        asker, shift = run.asker, run.shift
        said = refusal(str(error), error.refusal_code)
        answers = [(number + shift, False, said) for number in self._end(run)]
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
        for responder in asking:
            queued, responder.queued = responder.queued, {}
            now = self._now()
            requests = []
            for run, messages in queued.items():
                left = max(1, int((run.wait.due - now) * 1000))
                requests.append(Request(run.first, run.subject, msgspec.Raw(messages), left))
            if requests:
                responder.end.ask(requests)
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
