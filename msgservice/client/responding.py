"""Answering requests of others: a connection of its own for each `Client.respond` (DELIVERY 57).

    REQUEST -> received -> handler, call by call -> what it returned -> REPLY, one of a turn

Of its own, so that no answer waits behind what the client sends. Its HELLO says which subjects are
answered; nothing is stored anywhere, and what comes while it is away goes to somebody else. A
handler whose answer nobody waits for any more is cancelled: its time is over, the node says so
(CANCEL), or the connection has gone. Who is asked in turn is the node's to say (`node.responders`).
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from types import CoroutineType
from typing import Any

import msgspec
from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from msgservice.codecs import TextCodec, decode_content, encode_content
from msgservice.connection import Connection, Prover
from msgservice.core import features
from msgservice.core.features import RESPOND
from msgservice.core.frames import (
    ANSWER_BYTES,
    BYE_SETTLED,
    VERSION,
    Answer,
    Cancel,
    Frame,
    Hello,
    HelloOptions,
    Ping,
    Request,
    replies_of,
)
from msgservice.core.ranges import RangeSet
from msgservice.core.reasons import one_line
from msgservice.core.subjects import check_name, check_word
from msgservice.errors import (
    ERROR_HEADER,
    GENERATORS,
    TYPED_CODES,
    Busy,
    ClientClosed,
    MessageTooLarge,
    MsgServiceError,
    NotSupported,
    RequestFailed,
    UnexpectedFrame,
    check_runs,
    check_takes,
    has_not_run,
)
from msgservice.interfaces import IChannelUser, IConnector
from msgservice.limits import MAX_BATCH_MIN, Limits
from msgservice.message import Headers, WireMessage, decode_messages
from msgservice.records import Resume
from msgservice.waiters import Waiters

SLICE_SECONDS = 0.05  # handlers run so long in one turn of the reactor, then others have theirs
ANSWERS_SECONDS = 0.002  # and so long before the answers leave that are there
REASON_MAX = 4096  # characters of what an asker is told
READY = 1  # the token of the PING that shows it
DUES_SPARE = 64  # deadlines of calls that are over, beside one for each that is not

_encode = msgspec.msgpack.Encoder().encode

Handler = Callable[["Asked"], Any]
_Key = tuple[Connection, int]
ConnectorFactory = Callable[[Callable[[], IChannelUser]], IConnector]


class Asked:
    """A request as a handler gets it. `until`: when its asker stops waiting, by `seconds_left`."""

    __slots__ = ("_now", "_until", "body", "headers", "subject")

    def __init__(
        self, subject: str, message: WireMessage, until: float, now: Callable[[], float]
    ) -> None:
        self.subject = subject
        self.body = message.body
        self.headers: Headers = message.headers or {}
        self._until, self._now = until, now

    @property
    def content(self) -> Any:
        """The decoded body; `ValueError` where it is not what its content type says."""
        return decode_content(self.body, self.headers)

    @property
    def seconds_left(self) -> float:
        """The seconds until nobody waits for the answer any more; 0 at least."""
        return max(0.0, self._until - self._now())


class _Call(Asked):
    """A request that has come on a connection, by the node's number."""

    __slots__ = ("connection", "due", "number")

    def __init__(
        self,
        subject: str,
        message: WireMessage,
        due: float,
        now: Callable[[], float],
        number: int,
        connection: Connection,
    ) -> None:
        Asked.__init__(self, subject, message, due, now)
        self.due, self.number, self.connection = due, number, connection


class Responder:
    """The answering of requests on some subjects; `Client.respond` makes it.

    It dials as its client does, and again when it is lost. `connected`: the node passes requests on
    to it. `last_error`: why it does not. `incarnation`: of its connections.
    """

    _logger = Logger()

    def __init__(
        self,
        *,
        name: str,
        patterns: Sequence[str],
        handler: Handler,
        concurrency: int,
        incarnation: str,
        connector_factory: ConnectorFactory,
        clock: IReactorTime,
        now: Callable[[], float],
        limits: Limits,
        prover: Prover | None,
        ended: Callable[[Responder], None],
    ) -> None:
        check_runs(handler)
        check_takes(handler, "the request")
        self.patterns = tuple(patterns)
        self.last_error = ""
        self.connected = False  # the node passes requests on to it
        self._name, self._incarnation = name, incarnation
        self._handler = handler
        self._concurrency = concurrency
        self._clock, self._now, self._limits = clock, now, limits
        self._prover = prover
        self._told_ended = ended
        self._connection: Connection | None = None  # while its session stands
        self._batch_max = limits.max_batch
        self._waiting: deque[_Call] = deque()
        self._running: dict[_Key, Deferred[Any]] = {}
        self._dues: list[tuple[float, int, _Key]] = []  # of what runs, or has run
        self._begun = 0
        self._timer: IDelayedCall | None = None
        self._timer_due = 0.0
        self._owed: list[Answer] = []  # on the connection that stands
        self._turn: IDelayedCall | None = None
        self._is_inside = False  # a turn of the connection: its end follows
        self._ready: Waiters[Responder] = Waiters()
        self._is_closing = self._is_closed = False
        self._closed: Waiters[None] = Waiters()
        self._deadline: IDelayedCall | None = None
        self._connector = connector_factory(self._dialled)
        self._connector.startService()

    # --- getters

    @property
    def unanswered(self) -> int:
        """The number of calls that came and are not answered."""
        return len(self._waiting) + len(self._running)

    # --- verbs

    def when_ready(self) -> Deferred[Responder]:
        """Fires with it when the node passes requests on to it; at once if it does.

        Fails with `ClientClosed` when it is closed first. Cancelling ends the wait only.
        """
        if self.connected:
            return succeed(self)
        if self._is_closing:
            waiter = Deferred[Responder]()
            waiter.errback(ClientClosed("the responder was closed"))
            return waiter
        return self._ready.wait()

    def close(self) -> Deferred[None]:
        """Take no calls any more, answer those that came, leave; fires when that is done.

        Handlers have half of `limits.stop_timeout`, then they are cancelled. Safe to call twice.
        Cancelling ends the wait only.
        """
        if self._is_closed:
            return succeed(None)
        waiter = self._closed.wait()
        if not self._is_closing:
            self._is_closing = True
            self._ready.fail(ClientClosed("the responder was closed"))
            patience = self._limits.stop_timeout / 2
            self._deadline = self._clock.callLater(patience, self._overdue)
            if self._connection is not None:
                self.connected = False
                # The node gives it nothing more, and closes when all is answered.
                self._connection.bye(BYE_SETTLED)
            else:
                self._stop()
        return waiter

    # --- connection.Owner

    def _dialled(self) -> Connection:
        made: Connection = Connection(
            self,
            clock=self._clock,
            now=self._now,
            limits=self._limits,
            prover=self._prover,
            takes=lambda frame: type(frame) is not Request or made.has_room,
        )
        return made

    def channel_up(self, connection: Connection) -> None:
        """See `connection.Owner`."""
        options = HelloOptions(
            max_batch=self._limits.max_batch,
            heartbeat=int(self._limits.heartbeat * 1000),
            requests=self._concurrency,
            features=list(features.OF_RESPONDERS),
            respond=list(self.patterns),
        )
        connection.hello(Hello(VERSION, self._name, self._incarnation, options))

    def greeted(self, connection: Connection, hello: Hello) -> None:
        """See `connection.Owner`."""
        check_name(hello.name)
        check_word(hello.incarnation)
        if RESPOND not in connection.session.peer_features:
            raise NotSupported(f"answering requests at node {hello.name!r}")
        said = hello.options.max_batch or self._limits.max_batch
        self._batch_max = max(MAX_BATCH_MIN, min(said, self._limits.max_batch))
        connection.resume(Resume())

    def opened(self, connection: Connection, resume: Resume) -> None:
        """See `connection.Owner`."""
        if self._is_closing:
            connection.bye(BYE_SETTLED)
            return
        self._connection = connection
        # The node opens its side, and passes requests on, when it has our RESUME: which is before
        # what comes behind that.
        connection.ponged = lambda _: self._is_heard(connection)
        connection.send(Ping(READY))

    def _is_heard(self, connection: Connection) -> None:
        if connection is self._connection and not self._is_closing:
            self.connected = True
            self.last_error = ""
            self._ready.fire(self)

    def received(self, connection: Connection, frame: Frame) -> None:
        """See `connection.Owner`."""
        if type(frame) is Cancel:
            self._give_up_all(connection, RangeSet(frame.ranges))
            return
        if type(frame) is not Request:
            raise UnexpectedFrame(type(frame).__name__, "answering requests")
        subject, now, waiting = frame.subject, self._now, self._waiting
        due = now() + frame.timeout / 1000
        room = self._concurrency - self.unanswered
        self._is_inside = True
        for number, message in enumerate(decode_messages(frame.messages), frame.id):
            if room > 0:
                room -= 1
                waiting.append(_Call(subject, message, due, now, number, connection))
            else:
                self._fail(connection, number, Busy(subject))

    def turn_ended(self, connection: Connection) -> None:
        """See `connection.Owner`: handlers are called, and the answers leave."""
        self._is_inside = False
        self._go_on()

    def writable(self, connection: Connection) -> None:
        """See `connection.Owner`."""

    def peer_leaves(self, connection: Connection, code: int, reason: str) -> None:
        """See `connection.Owner`: what came is answered, then it is closed."""
        self._close_if_done()

    def lost(self, connection: Connection, reason: str) -> None:
        """See `connection.Owner`: nobody hears what its handlers would have answered."""
        self.last_error = reason
        if connection is self._connection:
            self._connection = None
            self.connected = False
            self._owed = []
        self._give_up_all(connection, None)
        if self._is_closing:
            self._stop()

    # --- handlers

    def _go_on(self) -> None:
        """Call handlers, for so long as a turn has; then send what they have answered."""
        waiting, clock, handle = self._waiting, self._now, self._handle
        now = clock()
        until, leaving = now + SLICE_SECONDS, now + ANSWERS_SECONDS
        self._is_inside = True
        try:
            while waiting:
                call = waiting.popleft()
                if call.due > now:  # else its asker was told
                    handle(call)
                now = clock()
                if now >= leaving and waiting:
                    if now >= until:
                        self._soon()
                        break
                    leaving = now + ANSWERS_SECONDS
                    self._flush()
                    if self._connection is not None:
                        self._connection.push()
        finally:
            self._is_inside = False
        self._flush()

    def _soon(self) -> None:
        if self._turn is None:
            self._turn = self._clock.callLater(0, self._next_turn)

    def _next_turn(self) -> None:
        self._turn = None
        self._go_on()

    def _handle(self, call: _Call) -> None:
        try:
            result = self._handler(call)
        except Exception:
            self._failed(call, Failure())
            return
        if type(result) is bytes:
            # The usual case, and the one that is measured (bench.rpc): it is a body already.
            self._answer(call, (result,))
            return
        if isinstance(result, CoroutineType):
            result = maybeDeferred(lambda: result)
        if not isinstance(result, Deferred):
            self._say(call, result)
            return
        key = (call.connection, call.number)
        self._running[key] = result
        self._begun += 1
        heapq.heappush(self._dues, (call.due, self._begun, key))
        if len(self._dues) > 2 * len(self._running) + DUES_SPARE:
            self._dues = [each for each in self._dues if each[2] in self._running]
            heapq.heapify(self._dues)
        result.addBoth(self._ended, key, call)
        if key in self._running and (self._timer is None or call.due < self._timer_due):
            self._rearm()

    def _ended(self, result: Any, key: _Key, call: _Call) -> None:
        if self._running.pop(key, None) is None:
            return  # it was given up: nobody waits for what it says
        if isinstance(result, Failure):
            self._failed(call, result)
        else:
            self._say(call, result)
        if not self._is_inside:
            self._soon()  # the answers of one turn leave together

    def _give_up_all(self, connection: Connection, numbers: RangeSet | None) -> None:
        """Nobody waits for the answers to these calls of a connection any more; None: to any."""
        waiting = self._waiting
        left = [
            one
            for one in waiting
            if one.connection is not connection
            or (numbers is not None and one.number not in numbers)
        ]
        if len(left) < len(waiting):
            waiting.clear()
            waiting += left
        for key in [*self._running]:
            if key[0] is connection and (numbers is None or key[1] in numbers):
                self._give_up(key)

    def _give_up(self, key: _Key) -> None:
        """Cancel a handler; one that goes on all the same takes no place."""
        running = self._running.pop(key, None)
        if running is None:
            return
        try:
            running.cancel()
        except Exception:  # of a canceller, which is the handler's own
            self._logger.failure("{name}: a handler could not be cancelled", name=self._name)

    def _say(self, call: _Call, result: Any) -> None:
        if isinstance(result, GENERATORS):
            self._failed(call, Failure(has_not_run(result)))
            return
        try:
            body, headers = encode_content(result)
            item = (body,) if headers is None else (body, headers)
        except Exception:
            self._failed(call, Failure())
        else:
            self._answer(call, item)

    def _answer(self, call: _Call, item: tuple[Any, ...]) -> None:
        try:
            raw = msgspec.Raw(_encode(item))
        except Exception:
            self._failed(call, Failure())
            return
        connection = call.connection
        size = len(raw) + ANSWER_BYTES
        if size > self._batch_max:
            self._fail(
                connection, call.number, MessageTooLarge(size, self._batch_max, "the answer")
            )
        elif connection is self._connection:
            self._owed.append((call.number, True, raw))

    def _failed(self, call: _Call, failure: Failure) -> None:
        """A handler has failed. Its asker is told what the handler meant to say, or the kind."""
        error = failure.value
        # One of another subject is that of a request of its own: that it was not asked itself, it
        # does not say.
        is_own = isinstance(error, Busy) and error.subject == call.subject
        if not (is_own or isinstance(error, RequestFailed)):
            self._logger.failure(
                "{name}: answering a request on {subject} failed",
                failure,
                name=self._name,
                subject=call.subject,
            )
            error = RequestFailed(f"{type(error).__name__} where it was to be answered")
        assert isinstance(error, MsgServiceError)
        self._fail(call.connection, call.number, error)

    def _fail(self, connection: Connection, number: int, error: MsgServiceError) -> None:
        code = error.refusal_code
        if isinstance(error, RequestFailed):  # whether it was asked, no handler says by a code
            code = 0 if error.code in TYPED_CODES else error.code
        headers = {"content-type": TextCodec.content_type}
        if code:
            headers[ERROR_HEADER] = str(code)
        text = one_line(str(error))[:REASON_MAX]
        raw = msgspec.Raw(_encode((text.encode("utf-8", "replace"), headers)))
        if connection is self._connection:
            self._owed.append((number, False, raw))

    def _flush(self) -> None:
        owed, self._owed = self._owed, []
        connection = self._connection
        if owed and connection is not None and not connection.is_gone:
            connection.send_now([*replies_of(owed, self._batch_max)])
        self._close_if_done()

    # --- deadlines

    def _expire(self) -> None:
        self._timer = None
        now = self._now()
        while self._dues and self._dues[0][0] <= now:
            self._give_up(heapq.heappop(self._dues)[2])
        self._rearm()
        self._soon()

    def _rearm(self) -> None:
        dues = self._dues
        while dues and dues[0][2] not in self._running:
            heapq.heappop(dues)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if dues:
            self._timer_due = dues[0][0]
            delay = max(0.001, self._timer_due - self._now())
            self._timer = self._clock.callLater(delay, self._expire)

    # --- the end

    def _close_if_done(self) -> None:
        connection = self._connection
        if connection is None or connection.is_gone or self.unanswered or self._owed:
            return
        if connection.session.bye_received:
            connection.close()

    def _overdue(self) -> None:
        self._deadline = None
        for key in list(self._running):
            self._give_up(key)
        if self._connection is not None:
            self._connection.abort()
        self._stop()

    def _stop(self) -> None:
        """Dial no more, and keep no timer; whoever waits for the end is told."""
        if self._is_closed:
            return
        self._is_closed = True
        for timer in (self._deadline, self._timer, self._turn):
            if timer is not None and timer.active():
                timer.cancel()
        self._deadline = self._timer = self._turn = None
        self._dues.clear()
        stopping: Deferred[Any] = maybeDeferred(self._connector.stopService)
        stopping.addErrback(lambda f: self._logger.failure("stopping the connector", f))
        stopping.addCallback(lambda _: self._stopped())

    def _stopped(self) -> None:
        self._told_ended(self)
        self._closed.fire(None)
