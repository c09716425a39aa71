"""The broker of one connection: Perspective Broker whose input, output and calls are bounded.

    transport -> dataReceived -> expressions -> calls of objects here, answers to calls of ours
    callRemote, answers -> sendEncoded -> end of the turn -> transport

The wire is Twisted's, and so are references and calls: a plain `PBClientFactory` is at home. What
is different is what the other side may do. Expressions have a budget, and a stranger one for all
that it says (`expressions`); values are looked at before jelly makes anything of them (`jellied`);
only what a table here knows is a command; who does not read its answers is not read from; and what
goes wrong in a call is an error for the caller, in any other place the end of this connection.

Frames are the business of `pb.channel`, what objects there are to be called that of whoever makes
the broker.
"""

from __future__ import annotations

import enum
import inspect
from collections.abc import Callable, Collection
from typing import Any, Final

from twisted.internet.abstract import FileDescriptor
from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.protocols.tls import TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from twisted.spread import pb
from twisted.spread.jelly import InsecureJelly, SecurityOptions
from zope.interface import implementer

from msgservice.clock import monotonic_of
from msgservice.credentials import NOBODY
from msgservice.errors import (
    BadValue,
    ConnectionLimit,
    DeadlinePassed,
    LimitReached,
    MalformedFrame,
    MsgServiceError,
    ProtocolError,
)
from msgservice.limits import Limits
from msgservice.transport.addresses import describe
from msgservice.transport.owners import ChannelOwner
from msgservice.transport.pb import expressions, jellied
from msgservice.transport.pb.expressions import Expressions
from msgservice.transport.tcp.pacing import PROGRESS_BYTES, Progress, Turn
from msgservice.transport.tcp.shown import credentials_of
from msgservice.transport.tcp.sockets import reason_of, tune, unwritten, write_now
from msgservice.waiters import Waiters

# Of one call of a known peer: more than any frame of ours takes, parts included.
CALL_BYTES_MAX = 4 * 1024 * 1024
CALL_OVERHEAD = 4096  # what a call takes besides the frame that it carries
# A login alone takes so much of what a stranger may say in all.
STRANGER_BYTES_MIN = 16 * 1024
# Written and not taken by the kernel, beyond which nothing is read from who does not read. More
# than both sides' frames ever are, or two that wait for each other would wait for ever.
UNREAD_BYTES = 4 * 1024 * 1024
NAME_BYTES_MAX = 64  # of a method
CACHED_MAX = 16  # objects of the other side's that update themselves here
NO_NAMED: Final = [b"dictionary"]  # arguments
TURN_SECONDS = 0.01  # of calls of one connection, before others have their turn
# Why a connection is not read from.
UNREAD: Final = "the other side does not read"
BEHIND: Final = "what was read is not carried out yet"
# What a peer may say, besides the dialect, and with how many arguments.
COMMANDS: Final = {
    b"version": 1,
    b"message": 6,
    b"answer": 2,
    b"error": 2,
    b"decref": 1,
    b"cachemessage": 6,
    b"decache": 1,
    b"uncache": 1,
}


class State(enum.Enum):
    """The state of a broker's connection, from opening to lost, as those of `tcp.channel`."""

    OPENING = enum.auto()  # TLS and the dialect
    OPEN = enum.auto()
    CLOSING = enum.auto()
    LINGERING = enum.auto()
    ABORTED = enum.auto()
    LOST = enum.auto()


ENDED = (State.ABORTED, State.LOST)


@implementer(IPushProducer)
class _Gate:
    """The producer registered with the transport, which calls it as its buffer fills or empties."""

    def __init__(self, broker: BoundedBroker) -> None:
        self._broker = broker

    def pauseProducing(self) -> None:
        self._broker.transport_full()

    def resumeProducing(self) -> None:
        self._broker.transport_drained()

    def stopProducing(self) -> None:
        """`connectionLost` follows."""


class Service(pb.Referenceable):
    """An object that the other side may call: methods that begin with `prefix`, as they are said.

    Arguments that a method does not take are an error for the caller.
    """

    prefix = "remote_"

    def remoteMessageReceived(self, broker: Any, message: str, args: Any, kw: Any) -> Any:
        """Call the method of that name, and return what it returned, jellied."""
        method = getattr(self, f"{self.prefix}{message}", None)
        if method is None:
            raise BadValue("method", f"{message!r} is not there")
        return self.run(method, broker, message, args, kw)

    def run(self, method: Callable[..., Any], broker: Any, message: str, args: Any, kw: Any) -> Any:
        """Call a function, or a coroutine's, and return what it returns, jellied."""
        taken, said = broker.unserialize(args), broker.unserialize(kw)
        if not isinstance(taken, list | tuple) or not isinstance(said, dict):
            raise BadValue("arguments", f"of {message!r} are no list and no dictionary")
        named = {
            key.decode(errors="replace") if isinstance(key, bytes) else key: value
            for key, value in said.items()
        }
        try:
            result = method(*taken, **named)
            if inspect.iscoroutine(result):
                result = Deferred.fromCoroutine(result)
        except TypeError:
            try:
                inspect.signature(method).bind(*taken, **named)
            except TypeError as error:
                raise BadValue("arguments", f"of {message!r}: {error}") from None
            raise
        return broker.serialize(result, None, method, args, kw)


class BoundedBroker(pb.Broker):
    """One connection. `is_dialled`: this end has dialled. `also`: tags of values that are taken.

    A part that carries something over it is told by `opened`, `turn_ended`, `has_failed`,
    `has_room` and `has_gone`, which are for whoever inherits.
    """

    _logger = Logger()

    knownDialects = [b"pb"]
    transport: Any
    peer_address = "unknown"
    credentials = NOBODY

    def __init__(
        self,
        *,
        reactor: IReactorTime,
        limits: Limits,
        owner: ChannelOwner,
        turn: Turn,
        is_dialled: bool,
        security: SecurityOptions | None = None,
        also: Collection[bytes] = (jellied.REMOTE,),
    ) -> None:
        super().__init__(isClient=is_dialled, security=security or jellied.security())
        self.state = State.OPENING
        self.heard_at = 0.0
        self.also = frozenset(also)
        self.is_dialled = is_dialled
        self.factory = self  # type: ignore[assignment]  # what a Broker asks its own for is here
        self.unsafeTracebacks = False
        self._reactor = reactor
        self._now = monotonic_of(reactor)
        self._limits = limits
        self._owner = owner
        self._turn = turn
        self._in_turn = False
        self._scheduled = False
        self._is_identified = False
        self._is_known = False
        self._error: ProtocolError | None = None
        self._was_turned_away = False
        self._stranger_bytes = max(limits.unauthenticated_bytes, STRANGER_BYTES_MIN)
        self._expressions = Expressions(self._budget)
        self._out: list[bytes] = []
        self._is_full = False
        self._drained_count = 0
        self._stops: set[str] = set()  # why nothing is read
        self._room: Waiters[None] = Waiters()
        self._going_on: IDelayedCall | None = None  # with what was read in an earlier turn
        self._calls = 0  # of the other side that are being answered
        self._progress = Progress(limits, "call")
        self._watching: IDelayedCall | None = None
        self._deadline: IDelayedCall | None = None

    # --- for whoever inherits

    def opened(self) -> None:
        """The two speak Perspective Broker: calls may be made."""

    def turn_ended(self) -> None:
        """A delivery, a turn of the reactor, or room in the transport: write what waits."""

    def has_failed(self, error: ProtocolError) -> None:
        """The peer broke a rule; the connection will be closed."""

    def has_gone(self, reason: str) -> None:
        """The connection has gone. Once."""

    def waits(self) -> object:
        """Return a mark of what the peer has still to answer, which changes as it does; or None."""
        return None

    # --- verbs and getters (`Owned`)

    @property
    def refusal(self) -> str | None:
        """Why it ended, where that does not pass by itself (`IChannelUser`)."""
        return None

    @property
    def has_opened(self) -> bool:
        """Whether its peer was let in, or has gone by itself: it was not turned away."""
        return not self._was_turned_away

    @property
    def is_known(self) -> bool:
        """Whether its peer has said who it is, and may be here."""
        return self._is_known

    @property
    def is_writable(self) -> bool:
        """Whether the transport has room."""
        return not self._is_full

    def identified(self) -> None:
        """See `IChannel`."""
        self._is_identified = True
        self._stop_deadline()
        self._owner.channel_identified(self)

    def established(self) -> None:
        """See `IChannel`."""
        if not self._is_known:
            self._is_known = self._is_identified = True
            self._stop_deadline()
            self._owner.channel_established(self)

    def close(self) -> None:
        """See `IChannel`; aborted after `limits.close_timeout`."""
        if self.state is State.OPENING:
            self.abort()
        elif self.state is State.OPEN:
            self.state = State.CLOSING
            self._stop_watching()
            self._stop_deadline()
            self._deadline = self._reactor.callLater(self._limits.close_timeout, self._too_slow)
            self.soon()

    def abort(self) -> None:
        """See `IChannel`."""
        if self.state in ENDED:
            return
        self.state = State.ABORTED
        self._stop_watching()
        self._stop_deadline()
        self._out.clear()
        self.transport.abortConnection()

    def fail(self, error: ProtocolError, *, abort: bool = False) -> None:
        """End the connection for what its peer did."""
        if self._error is not None or self.state not in (State.OPENING, State.OPEN):
            return
        self._error = error
        self.guard(self.has_failed, error)
        if abort or self.state is State.OPENING:
            self.abort()
        else:
            self.close()

    def guard(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Call a user, then write what it sent; its faults end this connection only."""
        outermost, self._in_turn = not self._in_turn, True
        try:
            function(*arguments)
        except Exception:
            self._logger.failure("connection with {peer} failed", peer=self.peer_address)
            self.abort()
        finally:
            if outermost:
                self._in_turn = False
        if outermost:
            self._end_turn()

    def soon(self) -> None:
        """Let `turn_ended` be called when this turn is over, if not before."""
        if not self._in_turn and not self._scheduled:
            self._scheduled = True
            self._turn.add(self)

    def now(self) -> None:
        """Write what waits now, or as soon as the call ends that runs."""
        if not self._in_turn:
            self._end_turn()

    # --- Twisted's

    def connectionMade(self) -> None:  # noqa: D102
        tls = isinstance(self.transport, TLSMemoryBIOProtocol)
        self.peer_address = describe(self.transport.getPeer(), "pbs" if tls else "pb")
        tune(self.transport, self._limits)
        self._deadline = self._reactor.callLater(self._limits.hello_timeout, self._too_slow)
        self.transport.registerProducer(_Gate(self), True)
        self.guard(super().connectionMade)

    def dataReceived(self, chunk: bytes) -> None:  # noqa: D102
        if self._takes_nothing:
            return
        self.heard_at = self._now()
        self._expressions.feed(chunk)
        if self._going_on is None:
            self._take_in()

    @property
    def _takes_nothing(self) -> bool:
        return self.state not in (State.OPENING, State.OPEN) or self._error is not None

    def _take_in(self) -> None:
        """Carry out what was read, for as long as a turn may take; the rest in the next ones."""
        self._going_on = None
        if self._takes_nothing:
            return
        outermost, self._in_turn = not self._in_turn, True
        end = self._now() + TURN_SECONDS
        try:
            for expression in self._expressions.take():
                self._check_total()
                self.callExpressionReceived(expression)
                if self._takes_nothing:
                    break
                if self._now() >= end:
                    self.stop_reading(BEHIND)
                    self._going_on = self._reactor.callLater(0, self._take_in)
                    break
            else:
                self._check_total()
                self.read_on(BEHIND)
        except ProtocolError as error:
            self.fail(error)
        except Exception:
            self._logger.failure("connection with {peer} failed", peer=self.peer_address)
            self.fail(ProtocolError("internal error"))
        finally:
            if outermost:
                self._in_turn = False
        if outermost:
            self._end_turn()
        if self._watching is None and self._expressions.partial:
            self._watch()

    def _budget(self) -> int:
        return CALL_BYTES_MAX if self._is_known else self._stranger_bytes + CALL_OVERHEAD

    def _check_total(self) -> None:
        """Bound all that a stranger says, in however many calls."""
        is_stranger = not (self._is_identified or self.is_dialled)
        if is_stranger and self._expressions.spent > self._stranger_bytes:
            raise ConnectionLimit("unauthenticated_bytes", self._stranger_bytes)

    def connectionReady(self) -> None:  # noqa: D102
        self.state = State.OPEN
        self.credentials = credentials_of(self.transport, is_dialled=self.is_dialled)
        super().connectionReady()

    def clientConnectionMade(self, broker: pb.Broker) -> None:
        """Go on: a broker says so to its factory, which is this one itself."""
        self.opened()

    def connectionLost(self, reason: Failure = connectionDone) -> None:  # noqa: D102
        if self.state is State.LOST:
            return
        by_tls = self.state is State.OPENING and isinstance(self.transport, TLSMemoryBIOProtocol)
        is_stranger = not (self._is_known or self._is_identified)
        self._was_turned_away = is_stranger and (by_tls or self._error is not None)
        self.state = State.LOST
        self._stop_watching()
        self._stop_deadline()
        if self._going_on is not None:
            self._going_on.cancel()
            self._going_on = None
        self._out.clear()
        self._room.fire(None)
        text = str(self._error) if self._error is not None else reason_of(reason, self.transport)
        self.guard(super().connectionLost, reason)
        self.guard(self.has_gone, text)
        self._owner.channel_gone(self, text)

    def unserialize(self, sexp: Any, perspective: Any = None) -> Any:
        """Return a value that was looked at; `BadValue` where none can be made of it."""
        try:
            return super().unserialize(sexp, perspective)
        except (InsecureJelly, TypeError, ValueError, LookupError, AttributeError):
            raise BadValue("argument", "is no value: nothing can be made of it") from None

    def serialize(  # Twisted's
        self,
        object: Any,  # noqa: A002
        perspective: Any = None,
        method: Any = None,
        args: Any = None,
        kw: Any = None,
    ) -> Any:
        """Return a value jellied; `BadValue` where it has no form, of a result for the caller."""
        if isinstance(object, expressions.Encoded):
            return object
        try:
            return super().serialize(object, perspective, method, args, kw)
        except (InsecureJelly, ValueError, TypeError, RecursionError) as error:
            raise BadValue("value", f"has no form that crosses: {error}") from None

    def sendEncoded(self, obj: Any) -> None:
        """Write an expression at the end of the turn; nothing once the connection has ended."""
        if self.state in (State.OPENING, State.OPEN, State.CLOSING):
            self._out.append(expressions.encode(obj))
            self.soon()

    # --- calls

    def callExpressionReceived(self, obj: Any) -> None:  # noqa: D102  # Twisted's
        if self.currentDialect:
            self.expressionReceived(obj)
        elif self.isClient:
            if not isinstance(obj, list) or b"pb" not in obj:
                raise MalformedFrame("the other side does not speak Perspective Broker")
            self.sendEncoded(b"pb")
            self._selectDialect(b"pb")
        elif obj == b"pb":
            self._selectDialect(b"pb")
        else:
            raise MalformedFrame("the other side does not speak Perspective Broker")

    def expressionReceived(self, sexp: Any) -> None:
        """Take a command that a peer may say."""
        if not isinstance(sexp, list) or not sexp or not isinstance(sexp[0], bytes):
            raise MalformedFrame("no command of Perspective Broker")
        name, *arguments = sexp
        if COMMANDS.get(name) != len(arguments):
            raise MalformedFrame(
                f"{jellied.shown(name)!r} with {len(arguments)} arguments is no command of"
                " Perspective Broker"
            )
        getattr(self, f"proto_{name.decode()}")(*arguments)

    def proto_version(self, vnum: Any) -> None:
        """Take the version of the other side."""
        if vnum != self.version:
            raise MalformedFrame(f"version {vnum!r} of Perspective Broker, not {self.version}")

    def proto_message(
        self, requestID: Any, objectID: Any, message: Any, answerRequired: Any, netArgs: Any,
        netKw: Any,
    ) -> None:  # fmt: skip
        """Take a call of an object here."""
        self._called(
            self.localObjectForID, requestID, objectID, message, answerRequired, netArgs, netKw
        )

    def _called(
        self,
        find: Callable[[Any], Any],
        requestID: Any,
        objectID: Any,
        message: Any,
        answerRequired: Any,
        netArgs: Any,
        netKw: Any,
    ) -> None:
        if not isinstance(message, bytes) or len(message) > NAME_BYTES_MAX:
            raise MalformedFrame("a call of a method without a name")
        if not isinstance(requestID, int) or not isinstance(objectID, int | bytes):
            raise MalformedFrame("a call of nothing")
        try:
            if self._calls >= self._limits.requests:
                raise LimitReached("requests", self._limits.requests)
            found = find(objectID)
            if found is None:
                raise BadValue("object", "is not there")
            for value in (netArgs, netKw):
                jellied.check(value, self.also)
            name = message.decode(errors="replace")
            result = found.remoteMessageReceived(self, name, netArgs, netKw)
        except Exception as error:
            self._answer_failed(Failure(error), requestID, bool(answerRequired), found=message)
            return
        if isinstance(result, Deferred):
            self._calls += 1
            result.addBoth(self._ended)
            result.addCallbacks(
                self._answer,
                self._answer_failed,
                callbackArgs=(requestID, bool(answerRequired)),
                errbackArgs=(requestID, bool(answerRequired)),
                errbackKeywords={"found": message},
            )
            result.addErrback(self._fault)
        else:
            self._answer(result, requestID, bool(answerRequired))

    def call_jellied(
        self, command: bytes, target: Any, name: bytes, arguments: Any, named: Any = NO_NAMED
    ) -> Deferred[Any]:
        """Call with arguments that are jellied already; fires with the answer."""
        if self.state is not State.OPEN:
            return fail(pb.DeadReferenceError("the connection has ended"))
        number = self.newRequestID()
        waiting: Deferred[Any] = Deferred()
        assert self.waitingForAnswers is not None
        self.waitingForAnswers[number] = waiting
        self.sendCall(command, number, target, name, 1, arguments, named)
        return waiting

    def as_sent(self, jellied_value: Any) -> Any:
        """Return a result as it is sent; `BadValue` where the other side would not take it."""
        return jellied_value

    def _ended(self, result: Any) -> Any:
        self._calls -= 1
        return result

    def _answer(self, result: Any, number: int, wanted: bool) -> None:
        if not wanted or self.state not in (State.OPEN, State.CLOSING):
            return
        try:
            self.sendCall(b"answer", number, self.as_sent(result))
        except BadValue as error:
            self._answer_failed(Failure(error), number, wanted)
        except (ValueError, TypeError, RecursionError) as error:
            wrong = BadValue("result", f"has no form that crosses: {error}")
            self._answer_failed(Failure(wrong), number, wanted)

    def _answer_failed(
        self, failure: Failure, number: int, wanted: bool, *, found: bytes = b""
    ) -> None:
        error: BaseException | None = failure.value
        assert error is not None
        if not isinstance(error, MsgServiceError):
            self._logger.failure(
                "{peer} called {name}", failure, peer=self.peer_address, name=jellied.shown(found)
            )
        if wanted and self.state in (State.OPEN, State.CLOSING):
            self.sendCall(b"error", number, jellied.told(error))

    def _fault(self, failure: Failure) -> None:
        """A fault of ours, when something was to be answered."""
        self._logger.failure("answering {peer}", failure, peer=self.peer_address)
        self.fail(ProtocolError("internal error"))

    def proto_answer(self, requestID: Any, netResult: Any) -> None:
        """Take the answer to a call of ours."""
        waiting = self._waiting(requestID)
        try:
            jellied.check(netResult, self.also)
            result = self.unserialize(netResult)
        except ProtocolError:
            raise
        except Exception as error:
            waiting.errback(Failure(error))
            return
        waiting.callback(result)

    def proto_error(self, requestID: Any, fail: Any) -> None:
        """Take the failure of a call of ours."""
        error = jellied.failed(fail)
        self._waiting(requestID).errback(Failure(error))

    def _waiting(self, number: Any) -> Deferred[Any]:
        found: Deferred[Any] | None = None
        if isinstance(number, int):
            waiting: dict[int, Deferred[Any]] = self.waitingForAnswers or {}
            found = waiting.pop(number, None)
        if found is None:
            raise MalformedFrame("an answer to nothing that was asked")
        return found

    def proto_decref(self, objectID: Any) -> None:
        """Let go of an object that the other side has no reference to any more."""
        if not isinstance(objectID, int) or objectID not in self.localObjects:
            raise MalformedFrame("an object that is not there is let go")
        super().proto_decref(objectID)

    def cacheLocally(self, cid: Any, instance: Any) -> None:
        """Keep what is the other side's and updates itself: no more than `CACHED_MAX` of it."""
        if len(self.locallyCachedObjects) >= CACHED_MAX:
            raise MalformedFrame(f"more than {CACHED_MAX} objects that update themselves")
        super().cacheLocally(cid, instance)

    def proto_cachemessage(
        self, requestID: Any, objectID: Any, message: Any, answerRequired: Any, netArgs: Any,
        netKw: Any,
    ) -> None:  # fmt: skip
        """Take an update of what is cached here, and is the other side's."""
        if not isinstance(objectID, int) or objectID not in self.locallyCachedObjects:
            raise MalformedFrame("a message to what is not cached here")
        self._called(
            self.cachedLocallyAs, requestID, objectID, message, answerRequired, netArgs, netKw
        )

    def proto_decache(self, objectID: Any) -> None:
        """Let go of what the other side has cached."""
        if not isinstance(objectID, int) or objectID not in self.remotelyCachedObjects:
            raise MalformedFrame("what is not cached is let go")
        super().proto_decache(objectID)

    def proto_uncache(self, objectID: Any) -> None:
        """Forget what was cached here: it was let go, and is not once more when it is deleted."""
        if isinstance(objectID, int):
            found = self.locallyCachedObjects.pop(objectID, None)
            if found is not None:
                found.broker = None

    # --- the transport's buffer

    def transport_full(self) -> None:
        """The transport holds more than it wants; may be called from inside our own write."""
        self._is_full = True
        self.now()

    def transport_drained(self) -> None:
        """The kernel has taken all that the transport held."""
        self._is_full = False
        self._drained_count += 1
        self.read_on(UNREAD)
        self._room.fire(None)
        self.now()

    def stop_reading(self, why: str) -> None:
        """Read nothing more until `read_on` for this, and for whatever else there is."""
        if not self._stops:
            self.transport.pauseProducing()
        self._stops.add(why)

    def read_on(self, why: str) -> None:
        """Read again, unless there is another reason not to."""
        if why in self._stops:
            self._stops.discard(why)
            if not self._stops and self.state not in ENDED:
                self.transport.resumeProducing()

    def room(self) -> Deferred[None]:
        """Fire when the transport has room again, or the connection has ended."""
        return self._room.wait()

    def flush(self) -> None:
        """Write what was queued in this turn."""
        self._scheduled = False
        self.now()

    # --- inside

    def _end_turn(self) -> None:
        if self.state in ENDED or self.state is State.LINGERING:
            return
        outermost, self._in_turn = not self._in_turn, True
        try:
            self.turn_ended()
            if self._out and self.state not in ENDED:
                out, self._out = self._out, []
                write_now(self.transport, out)
        except Exception:
            self._logger.failure("connection with {peer} failed", peer=self.peer_address)
            self.abort()
        finally:
            if outermost:
                self._in_turn = False
        if self.state is State.OPEN:
            if self._is_full and unwritten(self.transport) > UNREAD_BYTES:
                self.stop_reading(UNREAD)
            if self._watching is None and (self._is_full or self.waits() is not None):
                self._watch()
        elif self.state is State.CLOSING and not self.is_waiting():
            self._finish()

    def is_waiting(self) -> bool:
        """Whether something is still to be written."""
        return bool(self._out)

    def _finish(self) -> None:
        """Close, now that everything is with the transport; as `tcp.channel` does."""
        self.state = State.LINGERING
        transport = self.transport
        transport.unregisterProducer()
        transport.resumeProducing()
        if isinstance(transport, FileDescriptor):
            transport.loseWriteConnection()
        else:
            transport.loseConnection()

    def _watch(self) -> None:
        """Look whether the peer makes progress, and again in a while if there is need."""
        self._stop_watching()
        if self.state not in (State.OPENING, State.OPEN):
            return
        now, came = self._now(), self._expressions
        half = (came.completed, came.partial // PROGRESS_BYTES) if came.partial else None
        unread = (self._drained_count, unwritten(self.transport)) if self._is_full else None
        unread = unread if unread is not None else self.waits()  # type: ignore[assignment]
        if (ended := self._progress.ended(half, unread, now)) is not None:
            error, abort = ended
            self.fail(error, abort=abort)
        elif half is not None or unread is not None:
            self._watching = self._reactor.callLater(self._progress.interval, self._look_again)

    def _look_again(self) -> None:
        self._watching = None
        self._watch()

    def _too_slow(self) -> None:
        self._deadline = None
        if self.state in (State.OPENING, State.OPEN):
            self.fail(DeadlinePassed("login", self._limits.hello_timeout), abort=True)
        else:
            self.abort()

    def _stop_watching(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            self._watching = None

    def _stop_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
