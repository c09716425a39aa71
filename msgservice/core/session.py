"""One connection's life, from HELLO to BYE: who the other side is, and whether it lives. Sans-IO.

    state          what it means                              goes on with
    GREETING       the other side's HELLO has not come        HELLO -> RESUMING, or GREETED where
                                                              ours was not said; AUTH, ours or
                                                              theirs -> AUTHENTICATING
    AUTHENTICATING the two are proving who they are           authenticated() -> GREETING
    GREETED        our own HELLO waits: what a node says in   hello() -> RESUMING
                   it is not stored yet
    RESUMING       its last RESUME has not come               RESUME without `more` -> OPEN
    OPEN           everything may travel                      BYE, close() -> CLOSING
    CLOSING        no new transfers; answers still travel     all answered, or deadline -> CLOSED
    CLOSED         nothing is taken any more

`receive` decides every pair of state and frame (`TABLE`): a frame is taken here, passed to the
owner, ignored, or an `UnexpectedFrame`. What AUTH carries is for whoever knows the users; here it
has its turns: one side says one, then the other. A HELLO that is to be said waits until the login
is over, so nothing is said to a node that has not proved itself. What TRANSFER, ACK and the others
mean is the business of the outbox and the inbox behind; how frames travel is the channel's.
"""

from __future__ import annotations

import enum
from typing import Final

from msgservice.core.features import features_of
from msgservice.core.frames import (
    BYE_CLOSING,
    KINDS,
    RESUME_RANGES_SAID,
    VERSION,
    Ack,
    AudienceFrame,
    Auth,
    Bye,
    Cancel,
    Delivery,
    ErrorFrame,
    Frame,
    Hello,
    Nack,
    Note,
    Ping,
    Pong,
    Promised,
    Reply,
    Request,
    ResumeFrame,
    Routed,
    StatusFrame,
    Transfer,
    wrong_ranges,
)
from msgservice.core.ranges import Range
from msgservice.errors import (
    DeadlinePassed,
    HalfOpen,
    MalformedFrame,
    NotSupported,
    ProtocolError,
    UnexpectedFrame,
    WrongVersion,
)
from msgservice.limits import RESUME_RANGES_TOTAL_MAX, Limits
from msgservice.records import Resume


class State(enum.Enum):
    """The state of a session, from greeting to closed (table of the module)."""

    GREETING = enum.auto()
    AUTHENTICATING = enum.auto()
    GREETED = enum.auto()
    RESUMING = enum.auto()
    OPEN = enum.auto()
    CLOSING = enum.auto()
    CLOSED = enum.auto()

    acts: dict[type, Act]  # its row of `TABLE`: members of an enum hash slowly


class Act(enum.Enum):
    """The action for a frame in a state."""

    TAKE = enum.auto()  # here
    PASS = enum.auto()  # to the owner
    IGNORE = enum.auto()
    REFUSE = enum.auto()  # UnexpectedFrame


_HOP: Final = (Ack, Nack, StatusFrame, Routed, Request, Reply, AudienceFrame, Note, Cancel)
_ALWAYS: Final[dict[type, Act]] = {Ping: Act.TAKE, Pong: Act.TAKE, ErrorFrame: Act.TAKE}


def _row(hop: Act, **special: Act) -> dict[type, Act]:
    row: dict[type, Act] = {}
    row.update((kind, hop) for kind in _HOP)
    row.update(_ALWAYS)
    for kind in (Hello, Transfer, Auth, Bye, ResumeFrame):
        row[kind] = special.get(kind.__name__, Act.REFUSE)
    row[Delivery] = row[Promised] = row[Transfer]
    return row


_CLOSED: dict[type, Act] = {}
_CLOSED.update((kind, Act.IGNORE) for kind in KINDS)

TABLE: Final[dict[State, dict[type, Act]]] = {
    State.GREETING: _row(Act.REFUSE, Hello=Act.TAKE, Auth=Act.TAKE, Bye=Act.TAKE),
    State.AUTHENTICATING: _row(Act.REFUSE, Auth=Act.TAKE, Bye=Act.TAKE),
    # RESUME follows both HELLOs: what was taken is of an incarnation that was not said yet.
    State.GREETED: _row(Act.REFUSE, Bye=Act.TAKE),
    State.RESUMING: _row(Act.REFUSE, ResumeFrame=Act.TAKE, Bye=Act.TAKE),
    State.OPEN: _row(Act.PASS, Transfer=Act.PASS, Bye=Act.TAKE),
    # A transfer that crossed our BYE is not answered: the sender keeps it and sends it again.
    # Nor is a HELLO or an AUTH: a side that stops may say BYE to one that has only just connected.
    State.CLOSING: _row(
        Act.PASS,
        Hello=Act.IGNORE,
        Transfer=Act.IGNORE,
        Auth=Act.IGNORE,
        Bye=Act.TAKE,
        ResumeFrame=Act.IGNORE,
    ),
    State.CLOSED: dict.fromkeys(KINDS, Act.IGNORE),
}
for _state, _acts in TABLE.items():
    _state.acts = _acts
# What `Session.receive` gives to its owner while the session is open.
PASSED: Final = frozenset(kind for kind, act in TABLE[State.OPEN].items() if act is Act.PASS)


class Greeted:
    """Event: the other side's HELLO came. The owner answers with `Session.greet`, or `fail`."""

    __slots__ = ("hello",)

    def __init__(self, hello: Hello) -> None:
        self.hello = hello


class AuthStep:
    """Event: the other side's next step of a login. The owner answers with `Session.auth`, ends the
    login with `authenticated`, or `fail`s.
    """

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data


class Opened:
    """Event: the session is open. `resume`: what the other side has taken of ours."""

    __slots__ = ("resume",)

    def __init__(self, resume: Resume) -> None:
        self.resume = resume


class PeerBye:
    """Event: the other side sends no more transfers; it closes when all is answered."""

    __slots__ = ("code", "reason")

    def __init__(self, code: int, reason: str) -> None:
        self.code, self.reason = code, reason


class PeerError:
    """Event: the other side says what we did wrong, and closes."""

    __slots__ = ("code", "reason")

    def __init__(self, code: int, reason: str) -> None:
        self.code, self.reason = code, reason


class Ponged:
    """Event: the other side has answered a PING with a token, and so taken all that came before."""

    __slots__ = ("token",)

    def __init__(self, token: int) -> None:
        self.token = token


Event = Greeted | AuthStep | Opened | PeerBye | PeerError | Ponged


# What is waited for before a session is open, for people on both sides. Whoever has heard a HELLO
# and has not answered waits for its own disk: the other side has done its part.
_AWAITED = {
    State.GREETING: "HELLO",
    State.AUTHENTICATING: "the login",
    State.GREETED: "the answer to HELLO from this side's disk",
    State.RESUMING: "RESUME",
}


class Session:
    """The state machine of one connection. Times are seconds of the owner's monotonic clock.

    `take_frames` gives what to send, `failed` is set (to a `ProtocolError`) when the connection
    must end: the owner sends what is left, and closes.
    """

    def __init__(self, limits: Limits, now: float) -> None:
        self.state = State.GREETING
        self.peer_hello: Hello | None = None
        self.failed: ProtocolError | None = None
        self._hello_sent = False
        self._logs_in = False  # this side does: it said the first AUTH
        self._hello_due: Hello | None = None  # it waits for the end of the login
        self._is_authenticated = False  # the login is over
        self._owes_auth = False  # in a login it is this side's turn
        self.bye_sent = False
        self.bye_received = False
        # Of the other side's RESUME: what ends the connection, and what is looked at. The owner may
        # know better.
        self.ranges_max = self.ranges_kept = RESUME_RANGES_TOTAL_MAX
        self.has_room = True  # for answers: else one PONG waits, that of the last PING
        self._limits = limits
        self.out: list[Frame] = []  # to be sent: see `take_frames`
        self.heard_at = now  # set by who reads, or by `heard`
        self.sent_at = now  # set by who sends
        self._greeting_until: float | None = now + limits.hello_timeout
        self._closing_until: float | None = None
        self._heartbeat = limits.heartbeat
        self._silence = limits.heartbeat * limits.silence
        self._floor = 1
        self._ranges: list[Range] = []  # the first ones, and the last that was said
        self._ranges_said = 0
        self._paused = False
        self._pong: Pong | None = None

    # --- getters

    @property
    def is_open(self) -> bool:
        """Whether transfers may be sent."""
        return self.state is State.OPEN

    def next_deadline(self) -> float | None:
        """When `receive_time` is to be called next."""
        if self.state is State.CLOSED:
            return None
        due = [self.sent_at + self._heartbeat]
        if not self._paused:
            due.append(self.heard_at + self._silence)
        if self._greeting_until is not None:
            due.append(self._greeting_until)
        if self._closing_until is not None:
            due.append(self._closing_until)
        return min(due)

    def is_silent(self, now: float) -> bool:
        """Whether the other side was not heard for so long that it counts as gone."""
        return not self._paused and now >= self.heard_at + self._silence

    # --- from the world

    def heard(self, now: float) -> None:
        """Bytes were received, be it a part of a frame: the other side lives."""
        if now > self.heard_at:
            self.heard_at = now

    def reading_paused(self) -> None:
        """Reading is paused: from now on silence says nothing of the other side."""
        self._paused = True

    def reading_resumed(self, now: float) -> None:
        """Reading is resumed: silence is counted from now."""
        self._paused = False
        self.heard_at = now

    def receive(self, frame: Frame, now: float) -> Frame | Event | None:
        """Take a frame. Returns it where it is the owner's business, or what happened, or None.

        Raises nothing: what the other side did wrong ends in `failed`.
        """
        act = self.state.acts[type(frame)]
        if self.bye_received and isinstance(frame, Transfer) and self.state is State.CLOSING:
            act = Act.REFUSE  # it crossed nothing: its sender had said that none would follow
        if act is Act.PASS:
            return frame
        if act is Act.IGNORE:
            return None
        try:
            if act is Act.REFUSE:
                state = "behind BYE" if self.bye_received else self.state.name.lower()
                raise UnexpectedFrame(type(frame).__name__, state)
            return self._take(frame, now)
        except ProtocolError as error:
            self.fail(error)
            return None

    def _take(self, frame: Frame, now: float) -> Event | None:
        match frame:
            case Hello():
                return self._take_hello(frame)
            case ResumeFrame():
                return self._take_resume(frame, now)
            case Ping():
                if self.has_room:
                    self.out.append(Pong(frame.token))
                else:
                    # It hears us all the time that it reads: one answer says as much as many.
                    self._pong = Pong(frame.token)
            case Pong():
                # That it was heard is all it is for, but where somebody asked by a token.
                return Ponged(frame.token) if frame.token else None
            case Auth():
                return self._take_auth(frame)
            case Bye():
                self.bye_received = True
                self._begin_closing(now)
                return PeerBye(frame.code, frame.reason)
            case ErrorFrame():
                self.state = State.CLOSED
                return PeerError(frame.code, frame.reason)
            case _:
                raise AssertionError(frame)  # the table sends nothing else here
        return None

    @property
    def peer_features(self) -> frozenset[str]:
        """The features that the other side's HELLO has named, as far as they are known here."""
        hello = self.peer_hello
        return frozenset() if hello is None else features_of(hello.options.features)

    def _take_auth(self, frame: Auth) -> Event:
        if self._owes_auth:
            raise UnexpectedFrame("Auth", "the one before is not answered")
        if self._is_authenticated:
            raise UnexpectedFrame("Auth", "the login is over")
        if self._hello_sent:
            raise UnexpectedFrame("Auth", "behind HELLO")
        self.state = State.AUTHENTICATING
        self._owes_auth = True
        return AuthStep(frame.data)

    def _take_hello(self, hello: Hello) -> Event:
        if hello.version != VERSION:
            raise WrongVersion(hello.version, VERSION)
        if hello.options.auth:
            raise NotSupported(f"authentication by {', '.join(map(repr, hello.options.auth))}")
        if hello.options.heartbeat:
            interval = min(max(hello.options.heartbeat / 1000, 0.1), 3600.0)
            self._silence = interval * self._limits.silence
        self.peer_hello = hello
        self.state = State.RESUMING if self._hello_sent else State.GREETED
        return Greeted(hello)

    def _take_resume(self, frame: ResumeFrame, now: float) -> Event | None:
        if self._ranges and (wrong := wrong_ranges(frame.ranges, self._ranges[-1][1])):
            raise MalformedFrame(f"ResumeFrame: {wrong}")
        self._floor = max(self._floor, frame.floor)
        self._ranges_said += len(frame.ranges)
        if self._ranges_said > self.ranges_max:
            raise MalformedFrame(f"RESUME of more than {self.ranges_max} ranges")
        self._ranges += frame.ranges
        del self._ranges[self.ranges_kept - 1 : -1]
        if frame.more:
            if len(frame.ranges) >= RESUME_RANGES_SAID:  # as many as may follow, on a slow link
                self._greeting_until = now + self._limits.hello_timeout
            return None
        self.state = State.OPEN
        self._greeting_until = None
        return Opened(Resume(self._floor, tuple(self._ranges), frame.last))

    def receive_time(self, now: float) -> None:
        """A deadline may have passed: send a PING, or fail."""
        if self.state is State.CLOSED:
            return
        if self._greeting_until is not None and now >= self._greeting_until:
            self.fail(DeadlinePassed(_AWAITED[self.state], self._limits.hello_timeout))
        elif self.is_silent(now):
            self.fail(HalfOpen(self._silence))
        elif self._closing_until is not None and now >= self._closing_until:
            self.state = State.CLOSED
        elif now >= self.sent_at + self._heartbeat:
            self.out.append(Ping(0))

    # --- verbs

    def auth(self, data: bytes) -> None:
        """Say a step of a login: a client its first before all else, else the answer to one."""
        assert self.state is State.AUTHENTICATING or not self._hello_sent, self.state
        self._logs_in = self._logs_in or not self._owes_auth
        self.state = State.AUTHENTICATING
        self._owes_auth = False
        self.out.append(Auth(data))

    def authenticated(self, now: float) -> None:
        """Go on with HELLO: the login is over, and has taken no time from what follows."""
        assert self.state is State.AUTHENTICATING, self.state
        self.state = State.GREETING
        self._is_authenticated, self._owes_auth = True, False
        self._greeting_until = now + self._limits.hello_timeout
        hello, self._hello_due = self._hello_due, None
        if hello is not None:
            self.hello(hello)

    def hello(self, hello: Hello) -> None:
        """Send HELLO, behind the login if there is one.

        A client does so at once, a node when it was greeted.
        """
        if self.state is State.CLOSED:
            return
        if self._logs_in and not self._is_authenticated:
            self._hello_due = hello
            return
        self._hello_sent = True
        if self.state is State.GREETED:
            self.state = State.RESUMING
        self.out.append(hello)

    def resume(self, resume: Resume) -> None:
        """Send RESUME, what was taken of the other side's incarnation, after both HELLOs."""
        ranges = list(resume.ranges)
        starts = list(range(0, len(ranges), RESUME_RANGES_SAID)) or [0]
        for at in starts:
            part = ranges[at : at + RESUME_RANGES_SAID]
            more = at != starts[-1]
            self.out.append(ResumeFrame(resume.floor, part, resume.last, more))

    def bye(self, now: float, code: int = BYE_CLOSING, reason: str = "") -> None:
        """Send no more transfers; the connection ends when what is in flight is answered."""
        if self.bye_sent or self.state is State.CLOSED:
            return
        self.bye_sent = True
        self.out.append(Bye(code, reason))
        self._begin_closing(now)

    def _begin_closing(self, now: float) -> None:
        self.state = State.CLOSING
        self._greeting_until = None
        if self._closing_until is None:
            self._closing_until = now + self._limits.bye_timeout

    def fail(self, error: ProtocolError) -> None:
        """The connection must end, and the other side is told why."""
        if self.state is State.CLOSED:
            return
        self.state = State.CLOSED
        self.failed = error
        self.out.append(ErrorFrame(error.wire_code, str(error)[:1000]))

    def lost(self) -> None:
        """The connection has gone."""
        self.state = State.CLOSED

    # --- to the world

    def take_frames(self) -> list[Frame]:
        """Return the frames to send now."""
        if self._pong is not None and self.has_room:
            self.out.append(self._pong)
            self._pong = None
        if not self.out:
            return self.out
        frames, self.out = self.out, []
        return frames
