"""A session: every state and frame decided, every deadline kept (PROTOCOL: HELLO to BYE)."""

from __future__ import annotations

import msgspec
import pytest

from msgservice.core.frames import (
    BYE_REPLACED,
    KINDS,
    RESUME_RANGES_MAX,
    RESUME_RANGES_SAID,
    Ack,
    AudienceFrame,
    Auth,
    Bye,
    Cancel,
    Delivery,
    ErrorFrame,
    Frame,
    Hello,
    HelloOptions,
    Nack,
    Note,
    Ping,
    Pong,
    Reply,
    Request,
    ResumeFrame,
    Routed,
    StatusFrame,
    Transfer,
    decode_frame,
    encode_frame,
)
from msgservice.core.session import (
    AuthStep,
    Greeted,
    Opened,
    PeerBye,
    PeerError,
    Session,
    State,
)
from msgservice.errors import (
    DeadlinePassed,
    HalfOpen,
    MalformedFrame,
    NotSupported,
    ProtocolError,
    UnexpectedFrame,
    WrongVersion,
)
from msgservice.limits import INTEGER_MAX, MAX_BATCH_MIN, RESUME_RANGES_TOTAL_MAX, Limits
from msgservice.records import Resume

LIMITS = Limits(heartbeat=20, silence=2.5, hello_timeout=10, bye_timeout=30)
ONE = msgspec.Raw(b"\x91\x91\xc4\x00")

OWN_HELLO = Hello(1, "node", "log")
SAMPLES: dict[type[Frame], Frame] = {
    Hello: Hello(1, "shop", "i1"),
    Transfer: Transfer(1, "a", ONE),
    Delivery: Delivery(1, "a", ONE, attempts=2, stored_at=3),
    Ack: Ack([(1, 1)]),
    Nack: Nack(1, 1, 1),
    StatusFrame: StatusFrame("i1", "r", 3, [(1, 1)]),
    Routed: Routed(1, 1, 1, 1),
    Request: Request(1, "a", ONE),
    Reply: Reply([]),
    Ping: Ping(7),
    Pong: Pong(7),
    Auth: Auth(b""),
    Bye: Bye(BYE_REPLACED, "replaced"),
    ErrorFrame: ErrorFrame(2, "what was wrong"),
    AudienceFrame: AudienceFrame(1, ["r"]),
    Note: Note(1, 1),
    ResumeFrame: ResumeFrame(1, []),
    Cancel: Cancel([(1, 1)]),
}
HOP: list[type[Frame]] = [
    *(Ack, Nack, StatusFrame, Routed, Request, Reply, AudienceFrame, Note, Cancel)
]

# What becomes of a frame: it is the owner's, an event, an answer, nothing, or the end.
OWNERS, EVENT, ANSWER, NOTHING_HAPPENS, ENDS = "owners", "event", "answer", "nothing", "ends"


def row(
    hop: str, transfer: str, hello: str, resume: str, auth: str, bye: str
) -> dict[type[Frame], str]:
    others: dict[type[Frame], str] = {
        Transfer: transfer,
        Delivery: transfer,
        Hello: hello,
        ResumeFrame: resume,
        Auth: auth,
        Bye: bye,
        Ping: ANSWER,
        Pong: NOTHING_HAPPENS,
        ErrorFrame: EVENT,
    }
    return dict.fromkeys(HOP, hop) | others


EXPECTED: dict[State, dict[type[Frame], str]] = {
    State.GREETING: row(ENDS, ENDS, EVENT, ENDS, EVENT, EVENT),
    State.AUTHENTICATING: row(ENDS, ENDS, ENDS, ENDS, EVENT, EVENT),
    State.GREETED: row(ENDS, ENDS, ENDS, ENDS, ENDS, EVENT),
    State.RESUMING: row(ENDS, ENDS, ENDS, EVENT, ENDS, EVENT),
    State.OPEN: row(OWNERS, OWNERS, ENDS, ENDS, ENDS, EVENT),
    State.CLOSING: row(
        OWNERS, NOTHING_HAPPENS, NOTHING_HAPPENS, NOTHING_HAPPENS, NOTHING_HAPPENS, EVENT
    ),
    State.CLOSED: dict.fromkeys(KINDS, NOTHING_HAPPENS),
}


def begun() -> Session:
    """A session whose own HELLO was said, as a client says it."""
    session = Session(LIMITS, 0.0)
    session.hello(OWN_HELLO)
    session.take_frames()
    return session


def session_in(state: State) -> Session:
    """A client's session, or a node's where only a node has that state."""
    session = begun() if state in (State.RESUMING, State.OPEN) else Session(LIMITS, 0.0)
    if state is State.AUTHENTICATING:
        session.auth(b"I am")
    elif state is not State.GREETING:
        session.receive(SAMPLES[Hello], 0.0)
    if state in (State.CLOSING, State.CLOSED):
        session.hello(OWN_HELLO)
    if state in (State.OPEN, State.CLOSING, State.CLOSED):
        session.receive(SAMPLES[ResumeFrame], 0.0)
    if state is State.CLOSING:
        session.bye(0.0)
    if state is State.CLOSED:
        session.lost()
    session.take_frames()
    assert session.state is state
    return session


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("state", State, ids=lambda state: state.name)
def test_every_pair_of_state_and_frame_is_decided(state: State, kind: type[Frame]) -> None:
    session = session_in(state)
    frame = SAMPLES[kind]
    result = session.receive(frame, 0.0)
    answers = session.take_frames()
    expected = EXPECTED[state][kind]
    assert (expected == OWNERS) == (result is frame)
    assert (expected == EVENT) == isinstance(
        result, Greeted | AuthStep | Opened | PeerBye | PeerError
    )
    assert (expected == ANSWER) == (answers == [Pong(7)])
    assert (expected == ENDS) == (session.failed is not None)
    if expected == ENDS:
        assert session.failed is not None
        assert [ErrorFrame(session.failed.wire_code, str(session.failed))] == answers
        assert session.state is State.CLOSED
    elif expected in (OWNERS, NOTHING_HAPPENS, ANSWER):
        assert session.state is state


@pytest.mark.parametrize(
    "state",
    [State.GREETING, State.AUTHENTICATING, State.GREETED, State.RESUMING, State.OPEN],
    ids=str,
)
def test_a_frame_out_of_its_time_is_named_with_the_state(state: State) -> None:
    session = session_in(state)
    kind = Hello if state is State.OPEN else Transfer
    session.receive(SAMPLES[kind], 0.0)
    assert isinstance(session.failed, UnexpectedFrame)
    assert f"{kind.__name__} frame while {state.name.lower()}" == str(session.failed)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_frame_survives_its_encoding(kind: type[Frame]) -> None:
    frame = SAMPLES[kind]
    assert encode_frame(decode_frame(encode_frame(frame))) == encode_frame(frame)


def test_a_transfer_behind_a_bye_crossed_nothing_and_ends_the_connection() -> None:
    session = session_in(State.OPEN)
    session.receive(Bye(0, "goodbye"), 0.0)
    session.receive(SAMPLES[Transfer], 0.0)
    assert isinstance(session.failed, UnexpectedFrame)
    assert "Transfer frame while behind BYE" == str(session.failed)

    ours = session_in(State.CLOSING)  # we said BYE: what crosses it is left unanswered
    ours.receive(SAMPLES[Transfer], 0.0)
    assert ours.failed is None


# --- opening


@pytest.mark.parametrize("is_first", [True, False])
def test_a_resume_counts_once_both_hellos_were_said(is_first: bool) -> None:
    session = Session(LIMITS, 0.0)
    if is_first:
        session.hello(OWN_HELLO)
    session.receive(SAMPLES[Hello], 0.0)
    if not is_first:
        assert State.GREETED is session.state
        session.hello(OWN_HELLO)
    assert State.RESUMING is session.state
    assert isinstance(session.receive(SAMPLES[ResumeFrame], 0.0), Opened)


def test_hello_gives_the_peer_and_resume_opens() -> None:
    session = begun()
    hello = Hello(1, "shop", "i1", HelloOptions(max_batch=9000))
    greeted = session.receive(hello, 0.0)
    assert isinstance(greeted, Greeted)
    assert greeted.hello is session.peer_hello is hello
    assert session.receive(ResumeFrame(3, [(5, 6)], None, True), 0.0) is None
    assert not session.is_open
    opened = session.receive(ResumeFrame(3, [(8, 9)], (8, 9, 77)), 0.0)
    assert isinstance(opened, Opened)
    assert Resume(3, ((5, 6), (8, 9)), (8, 9, 77)) == opened.resume
    assert session.is_open


@pytest.mark.parametrize("version", [0, 2, 99])
def test_another_version_ends_it_and_both_are_named(version: int) -> None:
    session = begun()
    session.receive(Hello(version, "shop", "i1"), 0.0)
    assert isinstance(session.failed, WrongVersion)
    assert (version, 1) == (session.failed.version, session.failed.supported)
    assert [ErrorFrame(4, str(session.failed))] == session.take_frames()


def test_authentication_that_this_build_has_not_is_refused() -> None:
    session = begun()
    session.receive(Hello(1, "shop", "i1", HelloOptions(auth=["SCRAM-SHA-256"])), 0.0)
    assert isinstance(session.failed, NotSupported)


# --- a login


def node_asked() -> Session:
    """A node's session whose client has said AUTH."""
    session = Session(LIMITS, 0.0)
    step = session.receive(Auth(b"I am"), 0.0)
    assert isinstance(step, AuthStep)
    assert b"I am" == step.data
    return session


def test_a_login_takes_turns_and_the_hello_behind_it_opens() -> None:
    client, node = Session(LIMITS, 0.0), Session(LIMITS, 0.0)
    client.auth(b"1")
    client.hello(OWN_HELLO)  # at once, as every client: it waits

    def cross(sender: Session, other: Session) -> list[object]:
        frames = [decode_frame(encode_frame(frame)) for frame in sender.take_frames()]
        return [other.receive(frame, 0.0) for frame in frames]

    for said in (b"1", b"3"):
        (step,) = cross(client, node)
        assert isinstance(step, AuthStep)
        assert said == step.data
        node.auth(b"2" if said == b"1" else b"4")
        if said == b"3":
            node.authenticated(0.0)
        (step,) = cross(node, client)
        assert isinstance(step, AuthStep)
        if said == b"1":
            client.auth(b"3")
    assert State.AUTHENTICATING is client.state
    client.authenticated(0.0)
    (greeted,) = cross(client, node)
    assert isinstance(greeted, Greeted)
    assert "log" == greeted.hello.incarnation
    assert (State.GREETING, State.GREETED) == (client.state, node.state)
    node.hello(OWN_HELLO)
    assert isinstance(cross(node, client)[0], Greeted)
    client.resume(Resume())
    node.resume(Resume())
    assert isinstance(cross(client, node)[0], Opened)
    assert isinstance(cross(node, client)[0], Opened)


def test_nothing_of_the_client_leaves_before_its_login_is_over() -> None:
    session = Session(LIMITS, 0.0)
    session.auth(b"first")
    session.hello(OWN_HELLO)
    assert [Auth(b"first")] == session.take_frames()
    session.receive(Auth(b"salt"), 1.0)
    assert [] == session.take_frames()
    session.auth(b"proof")
    assert [Auth(b"proof")] == session.take_frames()
    session.receive(Auth(b"signature"), 2.0)
    session.authenticated(2.0)
    assert [OWN_HELLO] == session.take_frames()


@pytest.mark.parametrize("kind", [Hello, Bye, ErrorFrame], ids=lambda kind: kind.__name__)
def test_a_hello_is_not_said_to_a_node_that_proves_nothing(kind: type[Frame]) -> None:
    session = Session(LIMITS, 0.0)
    session.auth(b"first")
    session.hello(OWN_HELLO)
    session.take_frames()
    session.receive(SAMPLES[kind], 0.0)
    assert not [frame for frame in session.take_frames() if isinstance(frame, Hello)]


def test_an_auth_out_of_turn_ends_it() -> None:
    session = node_asked()
    session.receive(Auth(b"and again"), 0.0)
    assert isinstance(session.failed, UnexpectedFrame)
    assert "Auth frame while the one before is not answered" == str(session.failed)


def test_a_second_login_ends_it() -> None:
    session = node_asked()
    session.auth(b"welcome")
    session.authenticated(0.0)
    session.receive(Auth(b"as another"), 0.0)
    assert isinstance(session.failed, UnexpectedFrame)
    assert "Auth frame while the login is over" == str(session.failed)


def test_a_side_that_has_said_hello_hears_no_auth() -> None:
    session = begun()
    session.receive(Auth(b"who are you?"), 0.0)
    assert isinstance(session.failed, UnexpectedFrame)
    assert "Auth frame while behind HELLO" == str(session.failed)


@pytest.mark.parametrize("kind", [Hello, ResumeFrame, Transfer, Request], ids=str)
def test_nothing_else_may_come_while_a_login_runs(kind: type[Frame]) -> None:
    session = node_asked()
    session.receive(SAMPLES[kind], 0.0)
    assert isinstance(session.failed, UnexpectedFrame)
    assert session.state is State.CLOSED


def test_an_auth_that_crosses_a_bye_is_left_unanswered() -> None:
    session = Session(LIMITS, 0.0)
    session.bye(0.0)
    assert session.receive(Auth(b"I am"), 0.0) is None
    assert session.failed is None


def test_the_time_for_a_hello_begins_anew_behind_the_login_and_only_there() -> None:
    session = node_asked()
    session.auth(b"salt")
    session.receive(Auth(b"proof"), 9.0)
    assert 10.0 == session.next_deadline()
    session.authenticated(9.5)
    session.receive_time(10.0)
    assert session.failed is None
    assert 19.5 == session.next_deadline()
    session.receive_time(19.5)
    assert isinstance(session.failed, DeadlinePassed)
    assert "HELLO" == session.failed.what


def test_what_auth_carries_is_not_shown() -> None:
    assert "hunter2" not in repr(Auth(b"hunter2"))
    assert "Auth(7 bytes)" == repr(Auth(b"hunter2"))


def test_resume_of_too_many_ranges_ends_it() -> None:
    session = session_in(State.RESUMING)
    parts = [
        [(n, n) for n in range(low, low + 2 * RESUME_RANGES_MAX, 2)]
        for low in range(1, 2 * RESUME_RANGES_TOTAL_MAX + 2, 2 * RESUME_RANGES_MAX)
    ]
    for part in parts[:-1]:
        session.receive(ResumeFrame(1, part, None, True), 0.0)
    assert session.failed is None
    session.receive(ResumeFrame(1, parts[-1], None, True), 0.0)
    assert isinstance(session.failed, MalformedFrame)


@pytest.mark.parametrize("count", [0, 1, RESUME_RANGES_SAID, RESUME_RANGES_SAID + 1, 2500])
def test_resume_travels_in_as_many_frames_as_it_needs_each_fit_for_any_node(count: int) -> None:
    low = INTEGER_MAX - 2 * count  # as many bytes as they may have
    ranges = tuple((low + n, low + n) for n in range(1, 2 * count, 2))
    sender, other = session_in(State.OPEN), session_in(State.RESUMING)
    sender.resume(Resume(1, ranges, None))
    frames = sender.take_frames()
    assert max(1, -(-count // RESUME_RANGES_SAID)) == len(frames)
    smallest = Limits(max_batch=MAX_BATCH_MIN).frame_bytes
    assert all(len(encode_frame(frame)) <= smallest for frame in frames)
    events = [other.receive(frame, 0.0) for frame in frames]
    assert [None] * (len(frames) - 1) == events[:-1]
    opened = events[-1]
    assert isinstance(opened, Opened)
    assert ranges == opened.resume.ranges


# --- time


@pytest.mark.parametrize(
    ("state", "what"),
    [
        (State.GREETING, "HELLO"),
        (State.AUTHENTICATING, "the login"),
        (State.GREETED, "the answer to HELLO from this side's disk"),  # no fault of the peer
        (State.RESUMING, "RESUME"),
    ],
)
def test_no_hello_or_resume_in_time_ends_it(state: State, what: str) -> None:
    session = session_in(state)
    assert 10.0 == session.next_deadline()
    session.receive_time(9.9)
    assert session.failed is None
    session.receive_time(10.0)
    assert isinstance(session.failed, DeadlinePassed)
    assert (what, 10) == (session.failed.what, session.failed.seconds)
    assert session.next_deadline() is None


def test_an_open_session_has_no_more_deadline_for_its_opening() -> None:
    session = session_in(State.OPEN)
    session.heard(19.0)
    session.receive_time(19.0)
    assert session.failed is None


def test_a_ping_is_sent_when_nothing_was_sent_for_a_heartbeat() -> None:
    session = session_in(State.OPEN)
    session.sent_at = 5.0
    assert 25.0 == session.next_deadline()
    session.receive_time(24.9)
    assert [] == session.take_frames()
    session.receive_time(25.0)
    assert [Ping(0)] == session.take_frames()


def test_silence_of_two_and_a_half_heartbeats_is_half_open() -> None:
    session = session_in(State.OPEN)
    session.heard(10.0)
    session.sent_at = 59.0
    assert 60.0 == session.next_deadline()
    session.receive_time(59.9)
    assert session.failed is None
    session.receive_time(60.0)
    assert isinstance(session.failed, HalfOpen)
    assert 50 == session.failed.seconds


@pytest.mark.parametrize(("told_ms", "silence"), [(4000, 10.0), (1, 0.25), (10**9, 9000.0)])
def test_the_other_sides_heartbeat_decides_how_long_its_silence_may_last(
    told_ms: int, silence: float
) -> None:
    session = begun()
    session.receive(Hello(1, "shop", "i1", HelloOptions(heartbeat=told_ms)), 0.0)
    session.receive(ResumeFrame(1, []), 0.0)
    session.sent_at = silence - 0.01
    session.receive_time(silence - 0.01)
    assert session.failed is None
    session.receive_time(silence)
    assert isinstance(session.failed, HalfOpen)


# --- the end


def test_bye_is_said_once_and_the_session_closes_when_its_time_is_over() -> None:
    session = session_in(State.OPEN)
    session.bye(1.0, 0, "stopping")
    session.bye(2.0, 0, "again")
    assert [Bye(0, "stopping")] == session.take_frames()
    assert not session.is_open
    session.heard(30.0)
    session.sent_at = 30.0
    assert 31.0 == session.next_deadline()
    session.receive_time(31.0)
    assert session.state is State.CLOSED
    assert session.failed is None


def test_a_bye_that_is_answered_keeps_the_first_deadline() -> None:
    session = session_in(State.OPEN)
    session.bye(1.0)
    event = session.receive(Bye(BYE_REPLACED, "replaced"), 20.0)
    assert isinstance(event, PeerBye)
    assert (BYE_REPLACED, "replaced") == (event.code, event.reason)
    assert session.bye_sent
    assert session.bye_received
    session.heard(31.0)
    session.receive_time(31.0)
    assert session.state is State.CLOSED


@pytest.mark.parametrize("state", [State.GREETING, State.AUTHENTICATING, State.RESUMING], ids=str)
def test_a_bye_before_the_session_is_open_still_ends_in_time(state: State) -> None:
    session = session_in(state)
    session.bye(0.0)
    session.heard(29.0)
    session.sent_at = 29.0
    session.receive_time(29.0)
    assert session.failed is None
    session.receive_time(30.0)
    assert session.state is State.CLOSED


def test_the_other_sides_error_closes_and_is_not_answered() -> None:
    session = session_in(State.OPEN)
    event = session.receive(ErrorFrame(9, "bad subject"), 0.0)
    assert isinstance(event, PeerError)
    assert (9, "bad subject") == (event.code, event.reason)
    assert [] == session.take_frames()
    assert session.failed is None


def test_only_the_first_failure_is_told() -> None:
    session = session_in(State.OPEN)
    session.fail(MalformedFrame("first"))
    session.fail(ProtocolError("second"))
    assert [ErrorFrame(2, "first")] == session.take_frames()
    assert "first" == str(session.failed)


def test_a_long_reason_is_cut() -> None:
    session = session_in(State.OPEN)
    session.fail(MalformedFrame("x" * 5000))
    (frame,) = session.take_frames()
    assert isinstance(frame, ErrorFrame)
    assert len(frame.reason) <= 1000


def test_nothing_happens_to_a_closed_session() -> None:
    session = session_in(State.CLOSED)
    session.receive_time(1e9)
    session.bye(0.0)
    session.fail(MalformedFrame("late"))
    assert [] == session.take_frames()
    assert session.failed is None
    assert session.next_deadline() is None


def many_ranges(session: Session, frames: int, seconds: float, each: int) -> None:
    """A RESUME in so many frames, one after each pause of so many seconds."""
    session.receive(Hello(1, "billing", "i1"), 0.0)
    now, low = 0.0, 1
    for left in reversed(range(frames)):
        now += seconds
        session.heard(now)
        session.receive_time(now)
        ranges = [(n, n) for n in range(low, low + 2 * each, 2)]
        low += 2 * each
        session.receive(ResumeFrame(1, ranges, None, bool(left)), now)


def test_a_resume_of_many_ranges_may_take_its_time_on_a_slow_link() -> None:
    session = begun()
    many_ranges(session, 40, 1.5, RESUME_RANGES_SAID)
    assert session.failed is None
    assert session.is_open


@pytest.mark.parametrize("each", [0, 1, RESUME_RANGES_SAID - 1])
def test_a_resume_in_small_frames_gains_no_time(each: int) -> None:
    session = begun()
    many_ranges(session, 40, 1.5, each)
    assert isinstance(session.failed, DeadlinePassed)
