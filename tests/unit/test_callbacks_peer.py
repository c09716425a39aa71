"""One side of a connection: requests and answers, what survives a lost connection, deadlines."""

import hashlib
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msgservice.errors import LimitReached
from msgservice.faces.callbacks.protocol.events import (
    ActionReceived,
    CallbackLimits,
    ErrorReceived,
    Event,
    Failed,
    FileAnswered,
    FileConfirmed,
    FileData,
    FileEnded,
    FileInterrupted,
    FilePushed,
    FileRequested,
    FileUnsent,
    Ignored,
    MessagesUnsent,
    OffsetAsked,
    OffsetOffered,
    PeerAnnounced,
    Pending,
    RequestLost,
    RequestReceived,
    RequestRefused,
    RequestTimedOut,
    ResponseReceived,
)
from msgservice.faces.callbacks.protocol.extension import HELLO_SECONDS_MAX, RESUME_BYTES_MIN
from msgservice.faces.callbacks.protocol.peer import CallbackPeer
from msgservice.faces.callbacks.protocol.sending import FilePiece
from msgservice.faces.callbacks.protocol.wire import Encoder

ENCODER = Encoder("little")


def make_peer(
    *,
    first_id: int = 0,
    resume_queue: bool = False,
    resend_requests: bool = True,
    announce: bool = False,
    limits: CallbackLimits | None = None,
    connected: bool = True,
) -> CallbackPeer:
    peer = CallbackPeer(
        byteorder="little",
        first_id=first_id,
        resume_queue=resume_queue,
        resend_requests=resend_requests,
        announce=announce,
        limits=limits,
    )
    if connected:
        peer.connected()
    return peer


def output(peer: CallbackPeer, *, bytes_max: int = 1 << 20, now: float = 0.0) -> Iterator[bytes]:
    """What the peer sends until it has no more, files read from their source, a bytes object."""
    while taken := peer.take_output(bytes_max, now=now):
        for piece in taken:
            if isinstance(piece, FilePiece):
                yield piece.source[piece.offset : piece.offset + piece.length]
                if piece.last:
                    peer.finish_file(piece.source, hashlib.sha256(piece.source).hexdigest())
            else:
                yield piece


def sent(peer: CallbackPeer, *, now: float = 0.0) -> bytes:
    data = b"".join(output(peer, now=now))
    peer.sent(len(data))
    return data


def exchange(a: CallbackPeer, b: CallbackPeer) -> tuple[list[Event], list[Event]]:
    """Carry everything both ways until nothing moves; what each of them heard."""
    heard_a: list[Event] = []
    heard_b: list[Event] = []
    while True:
        to_b, to_a = sent(a), sent(b)
        if not to_a and not to_b:
            return heard_a, heard_b
        heard_a += a.receive_data(to_a)
        heard_b += b.receive_data(to_b)


def make_pair(**options: bool) -> tuple[CallbackPeer, CallbackPeer]:
    """Two of ours that have said hello."""
    a = make_peer(announce=True, resume_queue=options.get("resume_queue", False))
    b = make_peer(announce=True)
    assert exchange(a, b) == ([PeerAnnounced()], [PeerAnnounced()])
    return a, b


# --- requests -------------------------------------------------------------------------------------


def test_ids_are_unique_while_pending() -> None:
    peer = make_peer(first_id=9_990)
    ids = [peer.request("x").request_id for _ in range(4_000)]
    peer.forget(peer.pending[0])
    assert {f"{number % 10_000:04d}" for number in range(9_990, 13_990)} == set(ids)
    assert len(ids) == len(set(ids))


def test_an_id_is_not_used_again_soon() -> None:
    peer = make_peer()
    seen = set()
    for _ in range(10_000):
        request = peer.request("x")
        peer.forget(request)
        seen.add(request.request_id)
        sent(peer)
    assert len(seen) == 10_000


def test_request_beyond_the_pending_limit_is_refused() -> None:
    peer = make_peer()
    for _ in range(10_000):
        peer.request("x")
    with pytest.raises(LimitReached, match="pending_max = 10000"):
        peer.request("x")
    peer.forget(peer.pending[5_000])
    assert peer.request("x").request_id == "5000"


@given(st.permutations(range(20)))
def test_answers_out_of_order_find_their_requests(order: list[int]) -> None:
    client, server = make_peer(), make_peer()
    requests = [client.request("square", [n]) for n in range(20)]
    asked = server.receive_data(sent(client))
    for n in order:
        question = asked[n]
        assert isinstance(question, RequestReceived)
        server.respond("square", question.request_id, question.args[0] ** 2)
    expected = [ResponseReceived(requests[n], n * n) for n in order]
    assert expected == client.receive_data(sent(server))
    assert not client.pending


@pytest.mark.parametrize("request_id", ["0001", 7, 7.5, None, [1], {"a": None}])
def test_any_id_is_echoed(request_id: object) -> None:
    peer = make_peer()
    peer.respond("x", request_id, 1)
    assert ENCODER.response("x", request_id, 1) == sent(peer)


def test_requests_with_the_same_id_are_both_answered() -> None:
    peer = make_peer()
    question = ENCODER.request("x", "0001", [1]) + ENCODER.request("x", "0001", [2])
    for event in peer.receive_data(question):
        assert isinstance(event, RequestReceived)
        peer.respond("x", event.request_id, event.args)
    assert ENCODER.response("x", "0001", [1]) + ENCODER.response("x", "0001", [2]) == sent(peer)


def test_answer_nobody_asked_for_is_ignored() -> None:
    peer = make_peer()
    assert [Ignored("response nobody asked for", "x 0000")] == peer.receive_data(
        ENCODER.response("x", "0000", 1)
    )


@pytest.mark.parametrize("request_id", [None, ["0000"], {"0000": 1}, 1.0, True, -1])
def test_answer_with_an_odd_id_is_ignored(request_id: object) -> None:
    peer = make_peer()
    peer.request("x")
    (event,) = peer.receive_data(ENCODER.response("x", request_id, 1))
    assert isinstance(event, Ignored)


def test_answer_with_its_id_as_a_number_is_accepted() -> None:
    peer = make_peer(first_id=7)
    request = peer.request("x")
    assert [ResponseReceived(request, 1)] == peer.receive_data(ENCODER.response("x", 7, 1))


def test_second_answer_is_ignored() -> None:
    peer = make_peer()
    peer.request("x")
    first, second = peer.receive_data(ENCODER.response("x", "0000", 1) * 2)
    assert isinstance(first, ResponseReceived)
    assert isinstance(second, Ignored)


def test_answer_under_a_wrong_name_leaves_the_request_pending() -> None:
    peer = make_peer()
    request = peer.request("x")
    (ignored,) = peer.receive_data(ENCODER.response("y", "0000", 1))
    assert isinstance(ignored, Ignored)
    assert [ResponseReceived(request, 2)] == peer.receive_data(ENCODER.response("x", "0000", 2))


def test_json_answer_to_a_request_for_a_file_is_ignored() -> None:
    peer = make_peer()
    request = peer.request_file("f")
    (ignored,) = peer.receive_data(ENCODER.response("filetransfer", "0000", 1))
    assert isinstance(ignored, Ignored)
    assert (request,) == peer.pending


def test_file_as_answer_to_a_plain_request_is_ignored() -> None:
    peer = make_peer()
    peer.request("x")
    (event,) = peer.receive_data(ENCODER.file_response("0000", 3) + b"abc")
    assert isinstance(event, Ignored)


def test_request_times_out_at_its_time_and_not_before() -> None:
    peer = make_peer()
    request = peer.request("x", timeout=5.0, now=100.0)
    assert peer.next_deadline() == 105.0
    assert not peer.receive_time(104.9)
    assert [RequestTimedOut(request, 5.0)] == peer.receive_time(105.0)
    assert not peer.pending
    assert peer.next_deadline() is None


def test_answered_request_does_not_time_out() -> None:
    peer = make_peer()
    peer.request("x", timeout=5.0)
    peer.receive_data(ENCODER.response("x", "0000", 1))
    assert peer.next_deadline() is None
    assert not peer.receive_time(6.0)


def test_answer_after_the_timeout_is_ignored() -> None:
    peer = make_peer()
    peer.request("x", timeout=5.0)
    peer.receive_time(5.0)
    (event,) = peer.receive_data(ENCODER.response("x", "0000", 1))
    assert isinstance(event, Ignored)


def test_timeouts_of_answered_requests_are_not_kept() -> None:
    peer = make_peer()
    for _ in range(5_000):
        request = peer.request("x", timeout=1e6)
        peer.forget(request)
        sent(peer)
    assert len(peer._timeouts) < 100


def test_timeout_does_not_cut_off_a_file_on_its_way() -> None:
    peer = make_peer()
    request = peer.request_file("f", timeout=5.0)
    peer.receive_data(ENCODER.file_response("0000", 3) + b"a")
    assert not peer.receive_time(5.0)
    events = peer.receive_data(b"bc", 6.0)
    assert FileEnded(None) == events[-1]
    assert request not in peer.pending


# --- what survives a lost connection --------------------------------------------------------------


def test_without_resume_nothing_unsent_survives() -> None:
    peer = make_peer()
    peer.send_message("a")
    peer.send_message("b")
    assert [MessagesUnsent(2)] == peer.disconnected()
    assert not peer.connected()
    assert sent(peer) == b""


def test_interrupted_message_restarts_from_its_first_byte() -> None:
    peer = make_peer(resume_queue=True)
    for name in ("a", "b", "c"):
        peer.send_message(name)
    data = b"".join(output(peer))
    peer.sent(len(ENCODER.action("a")) + 10)
    peer.disconnected()
    peer.connected()
    assert data == ENCODER.action("a") + sent(peer)
    assert peer.is_drained


def test_message_sent_whole_is_not_sent_again() -> None:
    peer = make_peer(resume_queue=True)
    peer.send_message("a")
    sent(peer)
    peer.disconnected()
    peer.connected()
    assert sent(peer) == b""


def test_kept_queue_is_sent_right_after_connecting() -> None:
    peer = make_peer(resume_queue=True, connected=False)
    peer.send_message("a")
    assert sent(peer) == b""
    peer.connected()
    assert ENCODER.action("a") == sent(peer)


def test_half_a_received_message_is_forgotten() -> None:
    peer = make_peer(resume_queue=True)
    assert not peer.receive_data(ENCODER.action("a")[:-1])
    peer.disconnected()
    peer.connected()
    assert [ActionReceived("b", [], {})] == peer.receive_data(ENCODER.action("b"))


def test_interrupted_file_restarts_from_its_first_byte() -> None:
    peer = make_peer(resume_queue=True)
    content = bytes(range(256)) * 1000
    peer.send_file("f", content, len(content))
    pieces = output(peer, bytes_max=1000)
    peer.sent(sum(len(next(pieces)) for _ in range(20)))
    peer.disconnected()
    peer.connected()
    assert ENCODER.file_push("f", len(content)) + content == sent(peer)
    assert peer.is_drained


def test_unanswered_requests_are_sent_again_until_answered_with_their_arguments() -> None:
    peer = make_peer()
    peer.request("x", [1], {"k": "v"})
    first = sent(peer)
    assert ENCODER.request("x", "0000", [1], {"k": "v"}) == first
    for _ in range(3):
        peer.disconnected()
        peer.connected()
        assert first == sent(peer)
    peer.receive_data(ENCODER.response("x", "0000", 1))
    peer.disconnected()
    peer.connected()
    assert sent(peer) == b""


def test_requests_are_sent_again_in_their_order_and_before_what_was_queued() -> None:
    peer = make_peer(resume_queue=True)
    first = peer.request("x").data + peer.request("y").data
    assert first == sent(peer)
    peer.send_message("a")
    peer.disconnected()
    peer.connected()
    assert first + ENCODER.action("a") == sent(peer)


def test_request_that_is_still_queued_is_not_sent_twice() -> None:
    peer = make_peer(resume_queue=True)
    peer.send_message("a")
    request = peer.request("x")
    peer.disconnected()
    peer.connected()
    assert ENCODER.action("a") + request.data == sent(peer)


def test_request_made_while_away_is_sent_on_the_next_connection() -> None:
    peer = make_peer()
    peer.disconnected()
    request = peer.request("x")
    peer.connected()
    assert request.data == sent(peer)


def test_without_resending_requests_are_lost_and_said_to_be() -> None:
    peer = make_peer(resend_requests=False)
    request = peer.request("x")
    sent(peer)
    assert [RequestLost(request)] == peer.disconnected()
    peer.connected()
    assert sent(peer) == b""
    assert not peer.pending


def test_without_resending_a_request_in_the_kept_queue_is_not_lost() -> None:
    peer = make_peer(resend_requests=False, resume_queue=True)
    request = peer.request("x")
    assert not peer.disconnected()
    peer.connected()
    assert request.data == sent(peer)
    assert (request,) == peer.pending


def test_file_that_breaks_off_is_said_to_and_asked_for_again() -> None:
    peer = make_peer()
    request = peer.request_file("f")
    sent(peer)
    peer.receive_data(ENCODER.file_response("0000", 3) + b"ab")
    assert [FileInterrupted()] == peer.disconnected()
    peer.connected()
    assert request.data == sent(peer)
    events = peer.receive_data(ENCODER.file_response("0000", 3) + b"abc")
    assert [FileAnswered(request, 3, 0, False), FileData(memoryview(b"abc")), FileEnded(None)] == (
        events
    )


def test_file_that_is_dropped_is_said_to_be() -> None:
    peer = make_peer()
    content = b"abc"
    peer.send_file("f", content, 3)
    assert [FileUnsent(content)] == peer.disconnected()


# --- limits and deadlines -------------------------------------------------------------------------


def test_queue_limit_refuses_the_next_message_and_keeps_the_rest() -> None:
    peer = make_peer(limits=CallbackLimits(queue_bytes_max=400))
    peer.send_message("stop")
    peer.send_message("stop")
    with pytest.raises(LimitReached, match="queue_bytes_max = 400"):
        peer.send_message("stop")
    with pytest.raises(LimitReached):
        peer.request("x")
    assert not peer.pending
    assert ENCODER.action("stop") * 2 == sent(peer)
    peer.send_message("stop")


@pytest.mark.parametrize("cut", [1, 2, 50, 150])
def test_message_that_trickles_in_ends_the_connection(cut: int) -> None:
    data = ENCODER.action("stop")
    peer = make_peer()
    peer.receive_data(data[:cut], 100.0)
    assert peer.next_deadline() == 160.0
    for second in range(19):  # a byte every 3 s buys no time
        peer.receive_data(data[cut : cut + 1] if second == 0 else b"", 103.0 + 3 * second)
    (failed,) = peer.receive_time(160.0)
    assert isinstance(failed, Failed)
    assert str(failed.error) == "message not within 60 s"
    assert not peer.receive_data(data[cut:], 161.0)


def test_silence_between_messages_is_no_fault() -> None:
    peer = make_peer()
    peer.receive_data(ENCODER.action("stop"), 100.0)
    assert peer.next_deadline() is None


def test_file_may_take_long_but_has_to_move() -> None:
    peer = make_peer()
    peer.receive_data(ENCODER.file_push("f", 10**9), 0.0)
    for step in range(1, 20):
        peer.receive_data(bytes(65_536), 50.0 * step)
        assert 50.0 * step + 60.0 == peer.next_deadline()
    for step in range(59):
        peer.receive_data(b"x", 950.0 + step)
    (failed,) = peer.receive_time(1010.0)
    assert isinstance(failed, Failed)


@pytest.mark.parametrize(
    ("name", "value"),
    [("json_bytes_max", 0), ("header_bytes_max", 65_536), ("pending_max", 10_001)],
)
def test_limits_that_cannot_be_are_refused(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=name):
        CallbackLimits(**{name: value})


# --- our extension --------------------------------------------------------------------------------


def test_nothing_is_announced_unless_asked_to() -> None:
    a, b = make_peer(), make_peer(announce=True)
    heard_a, heard_b = exchange(a, b)
    assert not heard_b
    assert all(isinstance(event, Ignored) for event in heard_a)


def test_error_goes_only_to_a_peer_that_announced_itself() -> None:
    a, b = make_pair()
    request = a.request("x")
    exchange(a, b)
    assert b.refuse("no-callback", "why", {"requested_value": "x", "request_id": "0000"})
    heard, _ = exchange(a, b)
    assert [RequestRefused(request, "no-callback", "why")] == heard
    assert not a.pending


def test_no_error_goes_to_a_peer_of_others() -> None:
    peer = make_peer(announce=True)
    sent(peer)
    peer.receive_data(ENCODER.request("x", "0000"))
    assert not peer.refuse("no-callback", "why", {"requested_value": "x", "request_id": "0000"})
    assert sent(peer) == b""


def test_errors_do_not_pile_up_for_a_peer_that_does_not_read() -> None:
    peer = make_peer(announce=True, limits=CallbackLimits(answer_bytes_max=10_000))
    peer.receive_data(ENCODER.extension("hello", {}))
    for _ in range(1_000):
        peer.refuse("busy", "why", {"request_id": "x" * 500})
    assert peer.queued_bytes < 12_000


def test_error_about_something_else_leaves_requests_alone() -> None:
    a, b = make_pair()
    request = a.request("x")
    exchange(a, b)
    about = {"requested_value": "y", "request_id": "0000"}
    b.refuse("no-callback", "why", about)
    heard, _ = exchange(a, b)
    (event,) = heard
    assert isinstance(event, ErrorReceived)
    assert (request,) == a.pending


def test_file_between_our_own_has_a_checksum() -> None:
    a, b = make_pair()
    a.send_file("f", b"abc", 3, transfer="t")
    _, heard = exchange(a, b)
    assert [
        FilePushed("f", 3, 0, "t", True),
        FileData(memoryview(b"abc")),
        FileEnded(hashlib.sha256(b"abc").hexdigest()),
    ] == heard


def test_empty_file_between_our_own_has_a_checksum() -> None:
    a, b = make_pair()
    a.send_file("f", b"", 0, transfer="t")
    a.send_message("after")
    _, heard = exchange(a, b)
    assert [
        FilePushed("f", 0, 0, "t", True),
        FileEnded(hashlib.sha256(b"").hexdigest()),
        ActionReceived("after", [], {}),
    ] == heard


def test_peer_that_turns_out_old_gets_its_files_byte_for_byte() -> None:
    a = make_peer(announce=True)
    sent(a)
    a.receive_data(ENCODER.action("stop"))
    a.send_file("f", b"abc", 3, transfer="t")
    assert ENCODER.file_push("f", 3) + b"abc" == sent(a)


def test_message_in_place_of_a_checksum_ends_the_connection() -> None:
    _, b = make_pair()
    extra = {"x-transfer": "t", "x-offset": 0, "x-checksum": "sha256"}
    events = b.receive_data(ENCODER.file_push("f", 1, extra) + b"x" + ENCODER.action("stop"))
    assert isinstance(events[-1], Failed)
    assert "checksum of a file was due" in str(events[-1].error)


def test_large_file_asks_first_and_starts_where_the_receiver_says() -> None:
    a, b = make_pair()
    content = bytes(RESUME_BYTES_MIN)
    a.send_file("f", content, len(content), transfer="t")
    a.send_message("behind")
    _, heard = exchange(a, b)
    assert [OffsetAsked("t", "f", len(content))] == heard
    b.extension.send("offset", {"transfer": "t", "offset": 1000, "sha256": "00"})
    heard, _ = exchange(a, b)
    assert [OffsetOffered(content, 1000, "00")] == heard
    a.start_file(content, 1000)
    _, heard = exchange(a, b)
    assert FilePushed("f", len(content), 1000, "t", True) == heard[0]
    received = b"".join(event.data for event in heard if isinstance(event, FileData))
    assert content[1000:] == received
    assert ActionReceived("behind", [], {}) == heard[-1]


def test_both_may_push_large_files_at_once() -> None:
    a, b = make_pair()
    content = bytes(RESUME_BYTES_MIN)
    for peer in (a, b):
        peer.send_file("f", content, len(content), transfer="t")
    heard = exchange(a, b)
    for peer in (a, b):
        peer.extension.send("offset", {"transfer": "t", "offset": 0, "sha256": ""})
    heard = exchange(a, b)
    assert [[OffsetOffered(content, 0, "")]] * 2 == list(heard)


def test_file_does_not_wait_for_ever_for_what_the_receiver_has() -> None:
    a, b = make_pair()
    content = bytes(RESUME_BYTES_MIN)
    a.send_file("f", content, len(content), transfer="t")
    exchange(a, b)
    assert a.next_deadline() == 10.0
    a.receive_time(10.0)
    _, heard = exchange(a, b)
    assert FilePushed("f", len(content), 0, "t", True) == heard[0]


def interrupted_push() -> tuple[CallbackPeer, bytes]:
    a, _ = make_pair(resume_queue=True)
    content = bytes(range(256)) * 10
    a.send_file("f", content, len(content), transfer="t")
    pieces = output(a, bytes_max=1000)
    a.sent(len(next(pieces)) + len(next(pieces)))
    a.disconnected()
    a.connected(50.0)
    return a, content


def test_interrupted_file_waits_for_the_hello_and_asks() -> None:
    a, content = interrupted_push()
    b = make_peer(announce=True)
    b.receive_data(sent(a, now=50.0))
    assert sent(a, now=50.0) == b""
    a.receive_data(sent(b))
    assert [OffsetAsked("t", "f", len(content))] == b.receive_data(sent(a, now=50.0))


def test_interrupted_file_goes_whole_to_a_peer_that_says_no_hello() -> None:
    a, content = interrupted_push()
    sent(a, now=50.0)
    assert a.next_deadline() == 50.0 + HELLO_SECONDS_MAX
    a.receive_time(52.0)
    data = sent(a, now=52.0)
    assert content in data


def test_request_for_a_file_that_broke_off_says_what_is_here() -> None:
    a, b = make_pair()
    request = a.request_file("f")
    exchange(a, b)
    a.have_part(request, 5, "abcd")
    a.disconnected()
    a.connected()
    b.disconnected()
    b.connected()
    _, heard = exchange(a, b)
    assert [PeerAnnounced(), FileRequested("0000", "f", 5, "abcd")] == heard
    b.respond_file("0000", b"0123456789", 10, offset=5)
    heard, _ = exchange(a, b)
    assert FileAnswered(request, 10, 5, True) == heard[0]
    assert FileData(memoryview(b"56789")) == heard[1]


def test_confirmation_of_a_file_is_reported() -> None:
    a, b = make_pair()
    b.extension.send("received", {"transfer": "t"})
    heard, _ = exchange(a, b)
    assert [FileConfirmed("t")] == heard


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("checksum", {"sha256": "00"}),
        ("resume", {}),
        ("resume", {"transfer": "t", "filepath": "f", "size": -1}),
        ("resume", {"transfer": "t", "filepath": 5, "size": 1}),
        ("received", {"transfer": None}),
        ("offset", {"transfer": "t", "offset": "5", "sha256": ""}),
    ],
)
def test_extension_message_that_is_wrong_ends_the_connection(
    kind: str, content: dict[str, object]
) -> None:
    _, b = make_pair()
    (event,) = b.receive_data(ENCODER.extension(kind, content))
    assert isinstance(event, Failed)


def test_abandoned_file_leaves_the_rest_of_the_queue() -> None:
    peer = make_peer()
    content = b"abc"
    peer.send_file("f", content, 3)
    peer.send_message("a")
    assert not peer.abandon_file(content)
    assert ENCODER.action("a") == sent(peer)


def test_token_of_a_request_is_kept() -> None:
    peer = make_peer()
    token = object()
    request: Pending = peer.request("x", token=token)
    assert token is request.token
