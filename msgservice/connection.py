"""A session on a channel: what node, client and receiver have in common on a connection.

Decodes frames, keeps the session's time, and passes to its owner what is the owner's. The owner
is called frame by frame, then once at the end of what one read brought (`turn_ended`): that is
where answers and new transfers leave, so that their number follows the reads, not the messages.

What lives elsewhere: the rules of the session (`core.session`), bytes and sockets (`transport`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from msgservice.core.frames import (
    BYE_CLOSING,
    Frame,
    Hello,
    NotEncodable,
    decode_frame,
    encode_frame,
)
from msgservice.core.reasons import one_line
from msgservice.core.session import (
    PASSED,
    AuthStep,
    Greeted,
    Opened,
    PeerBye,
    PeerError,
    Ponged,
    Session,
    State,
)
from msgservice.credentials import Credentials
from msgservice.errors import ConnectionLimit, ProtocolError, UnexpectedFrame, stays_refused
from msgservice.identity.steps import Compute, Proven, Say
from msgservice.interfaces import IChannel, IChannelUser
from msgservice.limits import Limits
from msgservice.message import UNENCODABLE
from msgservice.records import Resume

# Why a connection is not read from; it is, when no reason is left.
UNCOMMITTED = "uncommitted"  # a node has taken in too much that is not on disk
WINDOW = "window"  # a receiver has more than it offered to take
STOPPING = "stopping"
ANSWERS = "answers"  # the peer has not read its answers

# Frames of one read that are looked at in one turn, of a session that stands: more of them are as
# many answers about one message each, which may cost as much as others should wait.
TURN_FRAMES = 1000
# Turns of the reactor in which what waits in the socket is read before silence ends a connection.
# The first may have none: a clock that jumped has late calls made in the midst of it.
LISTENS = 2
PREFIX_BYTES = 4
RANGE_BYTES = 20  # of a RESUME's range, as encoded, at most


class Owner(Protocol):
    """The owner of a connection. A `ProtocolError` raised by any of these ends the connection."""

    def channel_up(self, connection: Connection) -> None:
        """The channel stands; nothing was said yet. A client says HELLO now."""

    def greeted(self, connection: Connection, hello: Hello) -> None:
        """The other side said HELLO: answer with `hello` (if not done) and `resume`."""

    def opened(self, connection: Connection, resume: Resume) -> None:
        """Transfers may travel now; the other side has taken `resume` of ours."""

    def received(self, connection: Connection, frame: Frame) -> None:
        """A frame of an open session."""

    def turn_ended(self, connection: Connection) -> None:
        """The frames of one read were all passed on; called only while the session is open."""

    def writable(self, connection: Connection) -> None:
        """The transport has room again."""

    def peer_leaves(self, connection: Connection, code: int, reason: str) -> None:
        """The other side said BYE: it sends no more transfers, and closes when all is answered."""

    def lost(self, connection: Connection, reason: str) -> None:
        """The connection has gone. Once, and last."""


class Exchange(Protocol):
    """This side's end of a login, of one connection. All of it raises `NotAuthenticated`."""

    def begin(self) -> bytes:
        """Return what is said first."""

    def receive(self, data: bytes) -> Say | Compute | Proven:
        """Take what the other side says."""

    def resume(self, result: str) -> Say | Compute | Proven:
        """Go on with what `Compute` asked for."""


class Prover(Protocol):
    """The login of this side, which is begun anew on each connection."""

    def exchange(self, credentials: Credentials) -> Exchange:
        """Return the login on a connection; raise `NotAuthenticated` where it may not be used."""

    def compute(self, work: Callable[[], str]) -> Deferred[str]:
        """Fire with what `work` returns, without holding up the reactor."""


class Arrivals(Protocol):
    """The time that a turn has for all who come."""

    def run(self, work: Callable[[], None]) -> Deferred[None]:
        """Fire when this was done: now, or in a later turn. Cancelling it ends the wait."""


_OPEN, _CLOSING = State.OPEN, State.CLOSING  # by name, an enum is asked slowly
_BEFORE_OPEN = (State.GREETING, State.AUTHENTICATING, State.GREETED, State.RESUMING)


@implementer(IChannelUser)
class Connection:
    """A session on a channel. `now` is a monotonic clock.

    Of a read of very many frames some are looked at in the next turn, so that others have theirs.

    `takes` says of a frame that the owner would get whether it is looked at now. Where it is not,
    it waits with what came behind it, and nothing is read, until the channel has room or the owner
    calls `go_on_soon`. So a peer that does not read its answers cannot ask for more of them.

    `auth_received`, which an owner sets with whom others log in, is called with each step of that,
    and answers in its own time with `auth`, and at the end with `authenticated`. With a `prover`
    this side logs in before its owner's HELLO is said, and nothing else is.

    `ponged` is called with the token of a PING that its owner has sent, when that was answered.

    `arrivals`, where there are any, has the time of a turn for what comes before a session is open:
    very many may come together. What finds none waits, and of what follows one read is taken in.
    """

    _logger = Logger()

    def __init__(
        self,
        owner: Owner,
        *,
        clock: IReactorTime,
        now: Callable[[], float],
        limits: Limits,
        takes: Callable[[Frame], bool] | None = None,
        prover: Prover | None = None,
        arrivals: Arrivals | None = None,
        says_why: bool = True,
    ) -> None:
        self.owner = owner
        self.now = now
        self.session = Session(limits, now())
        self.channel: IChannel | None = None
        self.is_writable = True
        self.is_gone = False
        self.auth_received: Callable[[bytes], None] | None = None
        self.ponged: Callable[[int], None] | None = None
        self.error = ""  # why it ended, for people
        self.peer_error = 0  # code of the ERROR frame that ended it, or 0
        self._clock = clock
        self._limits = limits
        self._timer: IDelayedCall | None = None
        self._listened = 0  # turns, before silence ends it
        self._takes = takes
        self._prover = prover
        self._exchange: Exchange | None = None  # of the login that runs
        self._arrivals = arrivals
        self._arriving: Deferred[None] | None = None  # what waits for `arrivals`
        self._says_why = says_why  # in the log, that an error ended it; else the owner does
        self._held: list[bytes] = []  # frames that wait: at most what one delivery brought
        self._is_first = True  # of one delivery, the frame that is looked at
        self.is_look = False  # of one delivery: it came although the node takes in nothing now
        self._going_on: IDelayedCall | None = None
        self._before_open = 0  # bytes
        self._pauses: set[str] = set()  # the reasons
        self._breath: IDelayedCall | None = None  # when it is read from in spite of them

    # --- getters

    @property
    def peer_address(self) -> str:
        """The address of the other side, for people."""
        return self.channel.peer_address if self.channel is not None else "nowhere"

    @property
    def may_send(self) -> bool:
        """Whether transfers may be sent: the session is open and the transport has room."""
        return self.session.state is _OPEN and self.is_writable

    @property
    def refusal(self) -> str | None:
        """Why the connection was refused for good, as `IChannelUser` says; None if it was not."""
        failed = self.session.failed
        code = self.peer_error or (failed.wire_code if failed is not None else 0)
        return self.error if code and stays_refused(code) else None

    @property
    def ends_on_purpose(self) -> bool:
        """Whether a side has said BYE: that it ends is no sign of anything then."""
        return self.session.bye_sent or self.session.bye_received

    @property
    def has_room(self) -> bool:
        """Whether more answers may be queued. In one turn they may be more than is noticed."""
        assert self.channel is not None
        return self.is_writable and (
            self._is_first or self.channel.unsent <= self._limits.answer_bytes
        )

    # --- verbs

    @property
    def is_logging_in(self) -> bool:
        """Whether a login runs, so that `auth` and `authenticated` are looked at."""
        return self.session.state is State.AUTHENTICATING

    def auth(self, data: bytes) -> None:
        """Say a step of a login that runs."""
        self.session.auth(data)
        self._drain()

    def authenticated(self) -> None:
        """The login is over: HELLO comes next."""
        self.session.authenticated(self.now())
        assert self.channel is not None
        self.channel.identified()
        self._drain()
        self._rearm()

    def hello(self, hello: Hello) -> None:
        """Say who this side is; behind a login that runs."""
        self.session.hello(hello)
        self._drain()

    def resume(self, resume: Resume) -> None:
        """Say what was taken of the other side's incarnation."""
        self.session.resume(resume)
        self._drain()

    def send(self, frame: Frame) -> None:
        """Queue one frame; all of one turn leave together. Raises `FrameTooLarge`.

        Behind the ERROR that ends the connection nothing is said, here as below: the other side
        may be one that nothing more may be told, and a channel with much to write lasts on.
        """
        assert self.channel is not None
        if self.session.failed is None:
            self.channel.send(encode_frame(frame))
            self.session.sent_at = self.now()

    def send_all(self, frames: Sequence[Frame], *, is_last: bool = False) -> None:
        """Queue some frames; `is_last`: with the ERROR that ends the connection, if one does."""
        if frames and self.channel is not None and (is_last or self.session.failed is None):
            send = self.channel.send
            for frame in frames:
                send(encode_frame(frame))
            self.session.sent_at = self.now()

    def send_now(self, frames: Sequence[Frame]) -> None:
        """Send some frames, and what is queued before them, now: not at the end of the turn.

        Raises `NotEncodable`, with none of them sent, where one of them has no form.
        """
        if frames and self.channel is not None and self.session.failed is None:
            try:
                encoded = [*map(encode_frame, frames)]
            except UNENCODABLE as error:
                raise NotEncodable(str(error)) from error
            self.session.sent_at = self.now()
            self.channel.send_now(encoded)

    def push(self) -> None:
        """Write what is queued in the midst of a turn: what follows in it takes long."""
        if self.channel is not None and self.session.failed is None:
            self.channel.push()

    def bye(self, code: int = BYE_CLOSING, reason: str = "") -> None:
        """Send no more transfers; the owner calls `close` when what is in flight is answered."""
        self.session.bye(self.now(), code, reason)
        self._drain()
        self._rearm()

    def fail(self, error: ProtocolError) -> None:
        """End the connection and tell the other side why."""
        self.session.fail(error)
        self._drain()

    def close(self) -> None:
        """Send what is queued, then close."""
        if self.channel is not None and not self.is_gone:
            self.session.lost()
            self.channel.close()

    def abort(self) -> None:
        """Close at once; `lost` still follows."""
        if self.channel is not None and not self.is_gone:
            self.channel.abort()

    def fault(self, name: str, failure: Failure) -> None:
        """End it for a fault of our own while `name` was told something; nobody else notices."""
        self._logger.failure(
            "telling {name} at {peer} failed", failure, name=name, peer=self.peer_address
        )
        try:
            self.fail(ProtocolError("internal error"))
        except Exception:
            self._logger.failure("connection to {peer} failed", peer=self.peer_address)
            self.abort()

    # --- what is read

    def pause(self, reason: str) -> None:
        """Stop reading for this reason, until `resume_reading`.

        Not for longer than half a heartbeat at a time: then what comes next is read, be it a PING,
        a BYE or the end, so that a peer that has gone is not kept.
        """
        if not self._pauses:
            self._stop_reading()
        self._pauses.add(reason)

    def resume_reading(self, reason: str) -> None:
        """The reason is gone."""
        if reason not in self._pauses:
            return
        self._pauses.discard(reason)
        if not self._pauses:
            self._read_again()

    def go_on_soon(self) -> None:
        """Frames that `takes` refused may be taken now."""
        if self._held and self._going_on is None and not self.is_gone:
            self._going_on = self._clock.callLater(0, self._go_on)

    def go_on_with(self, call: Callable[[], object]) -> None:
        """Let the owner go on with what a read before brought: as a turn, which ends as one."""
        if self.session.state in (State.OPEN, State.CLOSING):
            self._guard(call)
        if self.session.state in (State.OPEN, State.CLOSING):
            self._guard(lambda: self.owner.turn_ended(self))

    def _stop_reading(self) -> None:
        if self._breath is None and self.channel is not None and not self.is_gone:
            self.session.reading_paused()
            self.channel.pause()
            self._breath = self._clock.callLater(self._limits.heartbeat / 2, self._breathe)

    def _read_again(self) -> None:
        if self._breath is not None:
            self._breath.cancel()
            self._breath = None
        if self.channel is not None and not self.is_gone:
            self.session.reading_resumed(self.now())
            self._rearm()
            self.channel.resume()

    def _breathe(self) -> None:
        self._breath = None
        if ANSWERS in self._pauses:
            # What it does not read is watched by the channel; and what it said waits here.
            self._stop_reading()
        else:
            self._read_again()

    def _go_on(self) -> None:
        self._going_on = None
        self._take_held()

    def _arrived(self) -> None:
        self._arriving = None
        self._take_held()

    def _take_held(self) -> None:
        held, self._held = self._held, []
        if held and not self.is_gone:
            self._take(held, self.now())
            if not self._held:
                self.resume_reading(ANSWERS)

    # --- IChannelUser

    def channel_opened(self, channel: IChannel) -> None:
        """See `IChannelUser`."""
        self.channel = channel
        if self._prover is not None:
            self._guard(lambda: self._log_in(channel.credentials))
        self._guard(lambda: self.owner.channel_up(self))
        self._rearm()

    def frames_received(self, frames: list[bytes]) -> None:
        """See `IChannelUser`."""
        now = self.session.heard_at = self.now()
        if self._held:
            self._held += frames  # was on its way already when reading was stopped
            if self._arriving is not None:
                self.pause(ANSWERS)  # not with the first read: most say no more than that
        elif self._arrivals is not None and self.session.state in _BEFORE_OPEN:
            self._arrive(self._arrivals, frames)
        else:
            self._take(frames, now)
        if self._pauses:
            self._stop_reading()  # again, after it was read from in spite of a reason

    def _arrive(self, arrivals: Arrivals, frames: list[bytes]) -> None:
        self._held = frames
        arriving = arrivals.run(self._arrived).addErrback(self._not_arrived)
        if self._held and not self.is_gone:
            self._arriving = arriving

    def _not_arrived(self, failure: Failure) -> None:
        if failure.check(CancelledError) is None:
            self._logger.failure("connection to {peer} failed", failure, peer=self.peer_address)
            self.abort()

    def _take(self, frames: list[bytes], now: float) -> None:
        session, owner, takes = self.session, self.owner, self._takes
        self._is_first = True
        self.is_look = UNCOMMITTED in self._pauses
        try:
            for at, data in enumerate(frames):
                frame = decode_frame(data)
                state = session.state
                if state is not _OPEN and state in _BEFORE_OPEN:
                    self._count_before_open(len(data))
                elif at >= TURN_FRAMES or (takes is not None and not takes(frame)):
                    self._hold(frames[at:])
                    break
                self._is_first = False
                if state is _OPEN and type(frame) in PASSED:  # as most: the session has no say
                    owner.received(self, frame)
                    continue
                result = session.receive(frame, now)
                if result is frame:
                    owner.received(self, frame)
                elif result is not None:
                    self._event(result)
            state = session.state
            if state is _OPEN or state is _CLOSING:
                owner.turn_ended(self)
        except ProtocolError as error:
            session.fail(error)
        except Exception:
            # Our own fault; this connection ends, the others must not notice.
            self._logger.failure("connection to {peer} failed", peer=self.peer_address)
            session.fail(ProtocolError("internal error"))
        if session.out or session.failed is not None:
            self._drain()
        if self._timer is None:
            self._rearm()

    def _hold(self, frames: list[bytes]) -> None:
        self._held = frames
        self.pause(ANSWERS)
        if not self._is_first:
            self.go_on_soon()  # else nothing changes before there is room, or an answer has left

    def _count_before_open(self, size: int) -> None:
        """Bound the bytes that are taken from an unauthenticated peer, in however many frames."""
        self._before_open += size + PREFIX_BYTES
        limit = self._limits.unauthenticated_bytes
        ranges = self.session.ranges_max if self.session.state is State.RESUMING else 0
        if self._before_open > limit + RANGE_BYTES * ranges:
            raise ConnectionLimit("unauthenticated_bytes", limit)

    def _event(self, event: object) -> None:
        if isinstance(event, Greeted):
            self._rearm()  # its heartbeat may be so short that silence is due before a RESUME
            self.owner.greeted(self, event.hello)
        elif isinstance(event, AuthStep):
            if self.auth_received is None:
                raise UnexpectedFrame("Auth", "nobody logs in here")
            self.auth_received(event.data)
        elif isinstance(event, Opened):
            assert self.channel is not None
            self.channel.established()
            self.owner.opened(self, event.resume)
        elif isinstance(event, Ponged):
            if self.ponged is not None:
                self.ponged(event.token)
        elif isinstance(event, PeerBye):
            self.owner.peer_leaves(self, event.code, event.reason)
        elif isinstance(event, PeerError):
            self.peer_error = event.code
            self.error = f"the other side says: {event.reason} (code {event.code})"
            if self._exchange is not None and event.code == UnexpectedFrame.wire_code:
                # One from before there were logins knows no other word for it.
                self.error = f"no login is offered there: {self.error}"
            if self._says_why:
                self._logger.warn(
                    "{peer}: {error}", line="peer-error", peer=self.peer_address, error=self.error
                )
            self.close()

    def channel_failed(self, error: ProtocolError) -> None:
        """See `IChannelUser`."""
        self.fail(error)

    def channel_writable(self, writable: bool) -> None:
        """See `IChannelUser`."""
        self.is_writable = self.session.has_room = writable
        if writable and not self.is_gone:
            self._guard(lambda: self.owner.writable(self))
            self.go_on_soon()

    def channel_lost(self, reason: str) -> None:
        """See `IChannelUser`."""
        if self.is_gone:
            return
        self.is_gone = True
        self.is_writable = False
        self.session.lost()
        self._held.clear()
        self._exchange = None
        if self._arriving is not None:
            self._arriving.cancel()
            self._arriving = None
        for call in (self._timer, self._breath, self._going_on):
            if call is not None:
                call.cancel()
        self._timer = self._breath = self._going_on = None
        self.error = self.error or one_line(reason)
        try:
            self.owner.lost(self, self.error)
        except Exception:
            self._logger.failure("the end of the connection to {peer}", peer=self.peer_address)

    # --- a login of this side

    def _log_in(self, credentials: Credentials) -> None:
        assert self._prover is not None
        exchange = self._prover.exchange(credentials)
        self.session.auth(exchange.begin())
        self._exchange = exchange
        self.auth_received = lambda data: self._go_through(exchange.receive(data))

    def _go_through(self, step: Say | Compute | Proven) -> None:
        match step:
            case Say():
                self.auth(step.data)
            case Compute():
                assert self._prover is not None
                computing = self._prover.compute(step.work)
                computing.addCallbacks(self._computed, self._not_computed)
                computing.addErrback(lambda failure: self.fault("the login", failure))
            case Proven():
                self._exchange = None
                self.authenticated()

    def _computed(self, result: str) -> None:
        exchange = self._exchange
        if exchange is not None and self.is_logging_in and not self.is_gone:
            self._guard(lambda: self._go_through(exchange.resume(result)))

    def _not_computed(self, failure: Failure) -> None:
        if self.is_gone:
            return
        if isinstance(failure.value, ProtocolError):
            self.fail(failure.value)
        else:
            self.fault("the login", failure)

    # --- inside

    def _guard(self, call: Callable[[], object]) -> None:
        try:
            call()
        except ProtocolError as error:
            self.session.fail(error)
        except Exception:
            self._logger.failure("connection to {peer} failed", peer=self.peer_address)
            self.session.fail(ProtocolError("internal error"))
        self._drain()

    def _drain(self) -> None:
        frames = self.session.take_frames()
        if frames and self.channel is not None and not self.is_gone:
            self.send_all(frames, is_last=True)
        failed = self.session.failed
        if failed is not None and not self.error and not self.is_gone:
            self.error = one_line(str(failed))  # it may quote the other side
            if self._says_why:
                self._logger.warn(
                    "connection to {peer} ended: {error}",
                    line="connection-failed",
                    peer=self.peer_address,
                    error=self.error,
                )
            if self.channel is not None:
                self.channel.close()

    def _rearm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.is_gone:
            return
        due = self.session.next_deadline()
        if due is not None:
            self._timer = self._clock.callLater(max(0.001, due - self.now()), self._fire)

    def _fire(self) -> None:
        self._timer = None
        session = self.session
        if self.channel is not None:
            session.heard(self.channel.heard_at)
        now = self.now()
        if session.is_silent(now) and self._listened < LISTENS:
            # This process may have stood still, and what came meanwhile waits in the socket.
            self._listened += 1
            self._timer = self._clock.callLater(0, self._fire)
            return
        self._listened = 0
        session.receive_time(now)
        self._drain()
        if session.state is State.CLOSED and session.failed is None:
            self.close()  # a BYE whose time is over
        self._rearm()
