"""What an inbox takes, answers and discards: SEMANTICS 1 to 4, each test with its rule's number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from zlib import crc32

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from msgservice.core.frames import Ack, Nack, Transfer, encode_frame
from msgservice.core.inbox import (
    ACK_RANGES_MAX,
    REASON_BYTES_MAX,
    RECEIVED_MAX,
    REJECTED_MAX,
    Answers,
    Arrival,
    Inbox,
    sendable,
)
from msgservice.core.marks import HOLES_MAX, SAMPLE_BYTES, Marks, fingerprint
from msgservice.core.ranges import RangeSet
from msgservice.core.refusal import Refusal
from msgservice.errors import ContentChanged, MalformedFrame
from msgservice.limits import FRAME_OVERHEAD, RUNS_REMEMBERED
from msgservice.message import Action, BareMessage, encode_messages
from msgservice.records import Origin, Resume

ONE = msgspec.Raw(b"\x91\x91\xc4\x00")
RETRY, DEAD, LATER = Action.RETRY, Action.DEAD, Action.LATER


def run(sequence: int, bodies: Sequence[bytes], subject: str = "a", **more: Any) -> Transfer:
    messages = encode_messages([BareMessage(body) for body in bodies])
    return Transfer(sequence, subject, msgspec.Raw(messages), **more)


class Peer:
    """An inbox, with a sender whose messages are their own numbers."""

    def __init__(self, *, ordered: bool = True, marks: Marks | None = None) -> None:
        self.inbox = Inbox(marks, ordered=ordered)

    def send(self, first: int, last: int, subject: str = "a", **more: Any) -> Arrival | None:
        bodies = [b"%d" % n for n in range(first, last + 1)]
        return self.inbox.receive_transfer(run(first, bodies, subject, **more), len(bodies))

    def new(self, first: int, last: int, subject: str = "a", **more: Any) -> Arrival:
        arrival = self.send(first, last, subject, **more)
        assert arrival is not None
        return arrival

    def take(self, first: int, last: int, subject: str = "a", **more: Any) -> None:
        arrival = self.new(first, last, subject, **more)
        for low, high in arrival.parts:
            self.inbox.taken(arrival, low, high)

    def refuse(self, arrival: Arrival, first: int, last: int, action: Action) -> None:
        self.inbox.refused(arrival, first, last, Refusal(action, "no"))

    @property
    def acked(self) -> list[tuple[int, int]]:
        return [pair for ack in self.answers if isinstance(ack, Ack) for pair in ack.ranges]

    @property
    def answers(self) -> list[Ack | Nack]:
        return self.inbox.answers.take_frames()


@pytest.fixture
def peer() -> Peer:
    return Peer()


# --- 1: ranges, not a high mark


def test_1_a_lower_sequence_that_was_not_seen_is_no_repeat(peer: Peer) -> None:
    peer.take(10, 12)
    assert peer.new(5, 6).parts == [(5, 6)]


def test_1_a_repeat_is_below_the_floor_or_in_a_range_and_is_acknowledged_again(peer: Peer) -> None:
    peer.take(1, 3)
    assert peer.acked == [(1, 3)]
    assert peer.send(1, 3) is None
    assert peer.acked == [(1, 3)]
    peer.take(4, 4, floor=4)
    assert peer.inbox.marks.floor == 4
    assert peer.acked == [(4, 4)]
    assert peer.send(2, 3) is None
    assert peer.acked == [(2, 3)]


def test_1_the_gap_that_after_names_is_taken_with_the_run(peer: Peer) -> None:
    peer.take(1, 2)
    peer.take(10, 11, after=2)
    assert peer.acked == [(1, 11)]
    assert list(peer.inbox.marks.taken) == [(1, 11)]


def test_1_an_acknowledgement_runs_over_no_hole_that_after_does_not_name(peer: Peer) -> None:
    peer.take(1, 2)
    peer.take(10, 11)
    assert peer.acked == [(1, 2), (10, 11)]
    assert list(peer.inbox.marks.taken) == [(1, 2), (10, 11)]


def test_1_a_gap_is_not_taken_when_only_the_end_of_the_run_is(peer: Peer) -> None:
    arrival = peer.new(10, 12, after=5)
    peer.refuse(arrival, 10, 10, DEAD)
    peer.inbox.taken(arrival, 11, 12)
    assert peer.acked == [(11, 12)]
    assert list(peer.inbox.marks.taken) == [(11, 12)]


def test_1_the_floor_lets_marks_go(peer: Peer) -> None:
    peer.take(1, 5)
    peer.take(9, 9)
    peer.take(20, 20, floor=4)
    assert peer.inbox.marks.floor == 4
    assert list(peer.inbox.marks.taken) == [(4, 5), (9, 9), (20, 20)]


def test_1_a_floor_never_goes_back(peer: Peer) -> None:
    peer.take(1, 5)
    peer.take(20, 20, floor=4)
    peer.take(21, 21, floor=3)
    assert peer.inbox.marks.floor == 4


def test_6_what_was_rejected_or_given_up_is_in_no_mark_whatever_the_floor(peer: Peer) -> None:
    """A log that goes back has it open again: named as taken, it would count as acknowledged."""
    peer.take(1, 2)
    peer.refuse(peer.new(3, 3, "b"), 3, 3, DEAD)
    peer.refuse(peer.new(4, 4, "c"), 4, 4, RETRY)  # and is given up
    peer.take(5, 6, floor=5)
    peer.take(7, 7, floor=7)
    resume = peer.inbox.marks.resume()
    assert (resume.floor, resume.ranges) == (3, ((5, 7),))
    assert peer.new(3, 4, "other lane").parts == [(3, 4)]


def test_6_of_many_holes_below_what_is_settled_the_newest_are_kept(peer: Peer) -> None:
    for n in range(2, 2 * HOLES_MAX + 22, 2):
        peer.take(n, n, floor=n)
    marks = peer.inbox.marks
    assert (marks.floor, len(marks.taken)) == (19, HOLES_MAX + 1)  # one is not settled yet
    assert marks.missing(1, 20) == [(19, 19)]


def test_1_nothing_that_waits_behind_a_nack_is_ever_covered(peer: Peer) -> None:
    stuck = peer.new(1, 1, "a")
    peer.refuse(stuck, 1, 1, RETRY)
    peer.take(2, 3, "b")  # its sender does not say `after`: 1 is open
    assert peer.acked == [(2, 3)]
    assert peer.inbox.marks.missing(1, 1) == [(1, 1)]


def test_1_resume_says_floor_ranges_and_the_newest_run_with_its_whole_crc(peer: Peer) -> None:
    peer.take(1, 2)
    peer.take(9, 10, floor=2)
    resume = peer.inbox.marks.resume()
    assert (resume.floor, resume.ranges) == (2, ((2, 2), (9, 10)))
    assert resume.last == (9, 10, crc32(encode_messages([BareMessage(b"9"), BareMessage(b"10")])))


def test_1_the_newest_run_is_the_highest_not_the_one_that_ended_last(peer: Peer) -> None:
    lower = peer.new(1, 2, "a")
    peer.take(3, 4, "b")
    peer.inbox.taken(lower, 1, 2)
    last = peer.inbox.marks.last
    assert last is not None
    assert last[:2] == (3, 4)


def test_1_marks_that_were_stored_are_where_they_were() -> None:
    peer = Peer(marks=Marks(5, RangeSet([(8, 9)]), (8, 9, 17)))
    assert peer.inbox.marks.resume().last == (8, 9, 17)
    assert peer.send(8, 9) is None
    assert peer.send(3, 4) is None
    assert peer.new(5, 7).parts == [(5, 7)]


# --- 2: taking and taken


def test_2_a_repeat_of_what_is_being_handled_is_answered_when_that_ends(peer: Peer) -> None:
    arrival = peer.new(1, 3)
    assert peer.send(1, 3) is None
    assert peer.answers == []
    peer.inbox.taken(arrival, 1, 3)
    assert peer.acked == [(1, 3)]


def test_2_it_is_answered_on_the_connection_that_it_came_on_last(peer: Peer) -> None:
    arrival = peer.new(1, 3)
    peer.inbox.reconnect()
    assert peer.send(1, 3) is None
    peer.inbox.taken(arrival, 1, 3)
    assert peer.acked == [(1, 3)]


def test_2_what_has_not_come_on_this_connection_is_not_answered_on_it(peer: Peer) -> None:
    arrival = peer.new(1, 3)
    peer.inbox.reconnect()
    peer.inbox.taken(arrival, 1, 3)
    assert peer.answers == []
    assert peer.send(1, 3) is None
    assert peer.acked == [(1, 3)]


def test_2_what_was_owed_on_the_connection_before_is_not_said_on_this_one(peer: Peer) -> None:
    peer.take(1, 3)
    peer.inbox.reconnect()
    assert peer.answers == []


def test_2_of_what_came_in_part_that_part_is_refused(peer: Peer) -> None:
    arrival = peer.new(1, 4)
    peer.inbox.reconnect()
    assert peer.send(1, 2) is None
    peer.refuse(arrival, 1, 4, RETRY)
    assert [(n.first, n.last) for n in peer.answers if isinstance(n, Nack)] == [(1, 2)]


def test_2_what_was_given_up_is_new_when_it_comes_again(peer: Peer) -> None:
    peer.new(1, 3)
    peer.inbox.abandoned(2, 3)
    assert peer.new(1, 3).parts == [(2, 3)]


def test_2_what_is_with_the_handler_is_known(peer: Peer) -> None:
    arrival = peer.new(1, 3)
    peer.inbox.taken(arrival, 1, 1)
    assert peer.send(1, 3) is None
    assert peer.new(1, 4).parts == [(4, 4)]


# --- 3: lanes


@pytest.mark.parametrize("action", [RETRY, LATER])
def test_3_a_lane_is_discarded_unanswered_until_its_sender_has_heard_of_the_nack(
    peer: Peer, action: Action
) -> None:
    arrival = peer.new(1, 3)
    peer.inbox.taken(arrival, 1, 1)
    peer.refuse(arrival, 2, 2, action)
    assert [(a.first, a.last, a.action) for a in peer.answers if isinstance(a, Nack)] == [
        (2, 2, action)
    ]
    assert peer.send(4, 5) is None
    assert peer.send(6, 6, nacks=0) is None
    assert peer.answers == []
    assert peer.new(2, 3, nacks=1).parts == [(2, 3)]
    assert peer.new(4, 5, nacks=1).parts == [(4, 5)]


def test_3_other_lanes_go_on(peer: Peer) -> None:
    peer.refuse(peer.new(1, 1, "a"), 1, 1, RETRY)
    assert peer.send(2, 2, "a") is None
    assert peer.new(3, 3, "b").parts == [(3, 3)]


def test_3_a_lane_is_a_subject_of_one_first_sender(peer: Peer) -> None:
    mine, other = Origin("shop", 1, "x"), Origin("mill", 1, "y")
    peer.refuse(peer.new(1, 1, origin=mine), 1, 1, RETRY)
    assert peer.send(2, 2, origin=mine) is None
    assert peer.new(3, 3, origin=other).parts == [(3, 3)]


def test_3_two_lanes_wait_each_for_its_own_nack(peer: Peer) -> None:
    peer.refuse(peer.new(1, 1, "a"), 1, 1, RETRY)
    peer.refuse(peer.new(2, 2, "b"), 2, 2, RETRY)
    assert peer.new(1, 1, "a", nacks=1).parts == [(1, 1)]
    assert peer.send(2, 2, "b", nacks=1) is None
    assert peer.new(2, 2, "b", nacks=2).parts == [(2, 2)]


def test_3_a_rejection_settles_the_message_and_the_lane_goes_on(peer: Peer) -> None:
    arrival = peer.new(1, 3)
    peer.refuse(arrival, 1, 1, DEAD)
    peer.inbox.taken(arrival, 2, 3)
    assert peer.new(4, 4).parts == [(4, 4)]
    assert [type(answer) for answer in peer.answers] == [Ack, Nack]


def test_3_a_rejection_is_repeated_when_the_message_comes_again(peer: Peer) -> None:
    peer.refuse(peer.new(1, 3), 2, 2, DEAD)
    peer.inbox.abandoned(1, 3)
    peer.inbox.reconnect()
    assert peer.new(1, 3).parts == [(1, 1), (3, 3)]
    assert [(n.first, n.last, n.action, n.reason) for n in peer.answers if isinstance(n, Nack)] == [
        (2, 2, DEAD, "no")
    ]


def test_3_rejections_below_the_floor_are_forgotten(peer: Peer) -> None:
    peer.refuse(peer.new(1, 1), 1, 1, DEAD)
    peer.take(2, 2, floor=2)
    assert peer.inbox._rejected == {}


def test_3_what_the_floor_has_passed_takes_no_place_of_rejections_above_it() -> None:
    """Without order a later message may be rejected first."""
    peer = Peer(ordered=False)
    far = REJECTED_MAX + 1000
    peer.refuse(peer.new(far, far), far, far, DEAD)
    peer.refuse(peer.new(1, 999), 1, 999, DEAD)
    peer.take(1000, 1000, floor=1000)
    assert [*peer.inbox._rejected] == [far]
    peer.refuse(peer.new(1001, far - 1), 1001, far - 1, DEAD)
    assert far in peer.inbox._rejected
    peer.inbox.reconnect()
    assert peer.send(far, far) is None  # it is refused again, and not handled


def test_3_rejections_are_bounded() -> None:
    peer = Peer(ordered=False)
    for first in range(1, REJECTED_MAX + 2000, 1000):
        peer.refuse(peer.new(first, first + 999), first, first + 999, DEAD)
    assert len(peer.inbox._rejected) == REJECTED_MAX


def test_3_without_order_nothing_is_discarded() -> None:
    peer = Peer(ordered=False)
    arrival = peer.new(1, 3)
    peer.refuse(arrival, 2, 2, RETRY)
    peer.inbox.taken(arrival, 3, 3)
    assert peer.new(4, 5).parts == [(4, 5)]
    assert peer.new(2, 2).parts == [(2, 2)]


def test_3_a_new_connection_discards_nothing(peer: Peer) -> None:
    peer.refuse(peer.new(1, 1), 1, 1, RETRY)
    peer.inbox.reconnect()
    assert peer.new(1, 1).parts == [(1, 1)]


def test_3_a_sender_that_has_heard_more_nacks_than_were_sent_is_wrong(peer: Peer) -> None:
    with pytest.raises(MalformedFrame, match="nacks 1, only 0 were sent"):
        peer.send(1, 1, nacks=1)


# --- 4: cut differently, content changed


def test_4_what_was_taken_is_trimmed_and_the_rest_is_new(peer: Peer) -> None:
    peer.take(3, 4)
    peer.answers.clear()
    arrival = peer.new(1, 6)
    assert arrival.parts == [(1, 2), (5, 6)]
    assert peer.acked == [(3, 4)]
    peer.inbox.taken(arrival, 1, 2)
    peer.inbox.taken(arrival, 5, 6)
    assert list(peer.inbox.marks.taken) == [(1, 6)]


def test_4_what_is_being_handled_is_trimmed_too_and_not_answered_yet(peer: Peer) -> None:
    peer.new(1, 3)
    assert peer.new(1, 5).parts == [(4, 5)]
    assert peer.answers == []


def test_4_an_acknowledgement_may_end_inside_a_run(peer: Peer) -> None:
    arrival = peer.new(1, 5)
    peer.inbox.taken(arrival, 1, 2)
    assert peer.acked == [(1, 2)]


def crc_of(first: int, last: int) -> int:
    return crc32(encode_messages([BareMessage(b"%d" % n) for n in range(first, last + 1)]))


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("action", [None, RETRY, LATER])
def test_6_resume_names_a_run_that_was_taken_in_part_up_to_there(
    ordered: bool, action: Action | None
) -> None:
    """Else a log that went back gives these sequences to others, which are then called taken."""
    peer = Peer(ordered=ordered)
    arrival = peer.new(1, 40)
    assert peer.inbox.marks.last is None
    peer.inbox.taken(arrival, 1, 1)
    assert peer.inbox.marks.last == (1, 1, crc_of(1, 1))
    peer.inbox.taken(arrival, 2, 20)
    assert peer.inbox.marks.last == (1, 20, crc_of(1, 20))
    if action is not None:
        peer.refuse(arrival, 21, 40, action)
    assert peer.inbox.marks.last == (1, 20, crc_of(1, 20))


def test_6_resume_names_the_highest_part_of_a_run_that_was_taken_out_of_order() -> None:
    peer = Peer(ordered=False)
    arrival = peer.new(1, 5)
    peer.inbox.taken(arrival, 4, 4)
    assert peer.inbox.marks.last == (1, 4, crc_of(1, 4))
    peer.inbox.taken(arrival, 2, 2)
    assert peer.inbox.marks.last == (1, 4, crc_of(1, 4))


def test_6_resume_names_what_was_rejected_for_it_would_be_rejected_again_unseen(
    peer: Peer,
) -> None:
    peer.take(1, 2)
    peer.refuse(peer.new(3, 5), 3, 4, DEAD)
    assert peer.inbox.marks.resume().last == (3, 4, crc_of(3, 4))


@pytest.mark.parametrize("ordered", [True, False])
def test_6_resume_names_the_newest_run_while_any_is_with_the_handler(ordered: bool) -> None:
    """A repeat of one that is being handled is answered when that ends, as if it were the same."""
    peer = Peer(ordered=ordered)
    peer.take(1, 2)
    lower, higher = peer.new(3, 5, "lower"), peer.new(6, 9, "higher")
    peer.inbox.reconnect()
    assert peer.inbox.resume() == Resume(1, ((1, 2),), (6, 9, crc_of(6, 9)))
    peer.inbox.taken(higher, 6, 7)
    assert peer.inbox.resume().last == (6, 9, crc_of(6, 9))
    peer.refuse(higher, 8, 9, RETRY)  # but the run before it is still with the handler
    assert peer.inbox.resume().last == (6, 9, crc_of(6, 9))
    peer.inbox.taken(lower, 3, 5)
    assert peer.inbox.resume().last == (6, 7, crc_of(6, 7))


def test_6_resume_names_what_came_again_in_other_cuts_by_where_it_ends() -> None:
    peer = Peer(ordered=False)
    whole = peer.new(1, 9)
    peer.refuse(whole, 1, 2, RETRY)
    peer.new(1, 2)
    assert peer.inbox.resume().last == (1, 9, crc_of(1, 9))


def test_6_resume_names_no_run_that_was_given_up_where_nothing_is_with_the_handler(
    peer: Peer,
) -> None:
    peer.take(1, 2)
    peer.refuse(peer.new(3, 5, "b"), 3, 5, RETRY)
    assert peer.inbox.resume().last == (1, 2, crc_of(1, 2))


def test_6_the_floor_passes_nothing_that_is_newer_than_what_resume_names(peer: Peer) -> None:
    """What was given up there and never taken here is named by nothing: its sequence may be reused.

    A log that went back gives it to another message, which must not be a repeat.
    """
    peer.take(1, 2)
    for n in (3, 4):  # refused until the sender gives it up
        peer.refuse(peer.new(n, n, f"lane{n}", floor=n), n, n, RETRY)
    again = peer.inbox.marks.resume()
    assert (again.floor, again.ranges, again.last) == (3, (), (1, 2, crc_of(1, 2)))
    assert peer.new(3, 4, "other lane").parts == [(3, 4)]


def test_6_the_floor_passes_no_hole_when_something_newer_is_answered(peer: Peer) -> None:
    peer.take(1, 2)
    arrival = peer.new(5, 6, floor=5)
    assert peer.inbox.marks.floor == 3
    peer.refuse(arrival, 5, 5, DEAD)
    assert peer.inbox.marks.floor == 3
    peer.inbox.taken(arrival, 6, 6)
    assert (peer.inbox.marks.floor, list(peer.inbox.marks.taken)) == (3, [(6, 6)])


def test_4_the_same_sequences_with_other_content_are_an_error(peer: Peer) -> None:
    peer.take(1, 2)
    with pytest.raises(ContentChanged) as caught:
        peer.inbox.receive_transfer(run(1, [b"1", b"other"]), 2)
    assert (caught.value.first, caught.value.last) == (1, 2)


def test_4_the_same_messages_for_another_subject_are_other_content(peer: Peer) -> None:
    peer.take(1, 2, "orders.new")
    assert peer.send(1, 2, "orders.new") is None
    with pytest.raises(ContentChanged):
        peer.send(1, 2, "orders.old")


def test_4_also_while_they_are_being_handled(peer: Peer) -> None:
    peer.new(1, 2)
    with pytest.raises(ContentChanged):
        peer.inbox.receive_transfer(run(1, [b"1", b"other"]), 2)


def test_4_the_content_of_the_last_runs_is_known_and_no_more(peer: Peer) -> None:
    for n in range(1, RUNS_REMEMBERED + 3):
        peer.take(n, n)
    assert peer.send(1, 1) is None  # forgotten, and noted again
    with pytest.raises(ContentChanged):
        peer.inbox.receive_transfer(run(5, [b"other"]), 1)


@pytest.mark.parametrize("size", [10, 4 * SAMPLE_BYTES + 1, 100_000])
@pytest.mark.parametrize("at", ["beginning", "middle", "end"])
def test_4_a_fingerprint_sees_beginning_middle_end_and_size(size: int, at: str) -> None:
    content = bytes(size)
    changed = bytearray(content)
    changed[{"beginning": 0, "middle": size // 2, "end": size - 1}[at]] = 1
    prints = {fingerprint(content), fingerprint(bytes(changed)), fingerprint(content + b"\0")}
    assert len(prints) == 3


# --- bad input and bounds


@pytest.mark.parametrize(
    ("first", "last", "more", "reason"),
    [
        (2**53 - 1, 2**53, {}, "pass 2^53"),
        (5, 6, {"after": 5}, "after 5 is not below"),
    ],
)
def test_a_run_that_cannot_be_is_malformed(
    peer: Peer, first: int, last: int, more: dict[str, Any], reason: str
) -> None:
    with pytest.raises(MalformedFrame, match=reason.replace("^", r"\^")):
        peer.send(first, last, **more)


def test_an_acknowledgement_of_many_ranges_is_cut_into_frames_that_any_side_takes(
    peer: Peer,
) -> None:
    top = 2**52
    for n in range(top, top + 2 * ACK_RANGES_MAX + 2, 2):
        peer.take(n, n)
    frames = peer.answers
    assert [len(frame.ranges) for frame in frames if isinstance(frame, Ack)] == [
        ACK_RANGES_MAX,
        1,
    ]
    assert all(len(encode_frame(frame)) <= FRAME_OVERHEAD for frame in frames)


@given(st.text(st.characters(), max_size=6000))
def test_any_text_can_be_sent_as_a_reason(text: str) -> None:
    sent = sendable(text)
    assert len(sent.encode()) <= REASON_BYTES_MAX
    assert len(encode_frame(Nack(2**53 - 1, 2**53 - 1, 1, 2**53 - 1, sent))) <= FRAME_OVERHEAD
    assert sendable("kept as it is") == "kept as it is"


def test_everything_that_is_let_through_is_owed_until_it_is_said(peer: Peer) -> None:
    assert not peer.inbox.answers.owes
    peer.take(1, 1)
    assert peer.inbox.answers.owes
    assert peer.answers
    assert not peer.inbox.answers.owes


def test_1_what_the_sender_has_settled_is_not_remembered_for_answers() -> None:
    answers = Answers()
    for n in range(2, 200, 2):  # each refused, and left for ever
        assert answers.receive(Transfer(n, "a", ONE, floor=n), n, "a")
        answers.refuse(n, n, Refusal(Action.REFUSED), "a")
    assert len(answers.received) <= 2
    assert len(answers.take_frames()) == 99


def test_1_holes_without_end_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("msgservice.core.inbox.RECEIVED_MAX", 10)
    answers = Answers()
    for n in range(2, 22, 2):
        assert answers.receive(Transfer(n, "a", ONE), n, "a")
    assert answers.receive(Transfer(3, "a", ONE), 3, "a")  # it fills one
    assert answers.receive(Transfer(24, "a", ONE), 24, "a")
    with pytest.raises(MalformedFrame):
        answers.receive(Transfer(26, "a", ONE), 26, "a")


def test_1_what_was_said_to_be_taken_may_lie_between_what_comes_again() -> None:
    """A window as large as may be leaves so many ranges where its answers were lost."""
    count = 2 * RECEIVED_MAX
    marks = Marks(1, RangeSet([(n, n) for n in range(2, 2 * count + 2, 2)]))
    inbox = Inbox(marks, ordered=False)
    inbox.reconnect()
    for n in range(1, 2 * count + 3, 2):
        assert inbox.answers.receive(Transfer(n, "a", ONE), n, None)
