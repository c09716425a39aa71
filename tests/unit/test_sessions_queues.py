"""The queues of a session: nothing is lost, nothing is handled twice, however connections end.

Both ends of one direction, over a link that is cut anywhere, from seeds; then each rule alone.
"""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from msgservice.faces.sessions.envelope import FAILED_MAX, Ack
from msgservice.faces.sessions.errors import BadAck, BadPayload, QueueFull
from msgservice.faces.sessions.incoming import FAILED_BYTES, Incoming
from msgservice.faces.sessions.outgoing import Entry, Outgoing


def an_outgoing(messages_max: int = 1_000, bytes_max: int = 10_000) -> Outgoing:
    return Outgoing(messages_max=messages_max, bytes_max=bytes_max)


def filled(count: int) -> Outgoing:
    outgoing = an_outgoing()
    outgoing.begin("s1", continues=False)
    for number in range(count):
        outgoing.add(Entry(b"%d" % number))
    return outgoing


def bodies(entries: list[Entry]) -> list[int]:
    return [int(entry.prepared) for entry in entries]


class World:
    """One direction between two processes that live on, and the connections that do not."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.outgoing, self.incoming = an_outgoing(50, 100_000), Incoming()
        self.sessions = 0
        self.added = 0
        self.settled: list[int] = []
        self.failed: list[int] = []  # of the settled, those that were told as failed
        self.handled: list[int] = []
        self.handling: list[tuple[int, int]] = []  # number, body: their handlers run
        self.on_the_way: list[tuple[str, int, int]] = []
        self.answers: list[Ack] = []
        self.begin()

    def begin(self) -> None:
        """A hello, and all that was on its way is lost, acknowledgements or not."""
        previous = self.incoming.previous
        known = previous is not None and previous[0] == self.outgoing.session
        self.sessions += 1
        name = f"s{self.sessions}"
        self.on_the_way.clear()
        self.incoming.say(anew=True)
        if self.random.random() < 0.5:
            self.answers.clear()
        upto = previous[1] if previous is not None and known else 0
        self.settle(self.outgoing.begin(name, continues=known, upto=upto))
        if not known:
            self.incoming = Incoming()
        self.incoming.begin(name)

    def settle(self, entries: list[Entry]) -> None:
        self.settled += bodies(entries)

    def answer(self, ack: Ack) -> None:
        entries = self.outgoing.acknowledge(ack.session, ack.upto)
        self.failed += [int(e.prepared) for e in entries if e.number in dict(ack.failed)]
        self.settle(entries)
        if self.random.random() < 0.5:  # that this was heard may be lost, too
            self.incoming.heard(ack.session, self.outgoing.answered)

    def done(self) -> None:
        number, body = self.handling.pop(0)
        self.handled.append(body)
        self.incoming.done(number, "no" if body % 3 == 0 else None)

    def lose_answers(self) -> None:
        """The connection of acknowledgements is lost, and the session stays."""
        self.answers.clear()
        self.incoming.say(anew=True)

    def cut(self) -> None:
        """The connection of messages is lost, and the session stays."""
        keep = self.random.randrange(len(self.on_the_way) + 1)
        arrived, self.on_the_way = self.on_the_way[:keep], []
        for session, number, body in arrived:
            self.arrive(session, number, body)
        self.outgoing.rewind()

    def arrive(self, session: str, number: int, body: int) -> None:
        if self.incoming.accept(session, number):
            self.handling.append((number, body))

    def step(self) -> None:
        match self.random.randrange(9):
            case 0 | 1:
                try:
                    self.outgoing.add(Entry(b"%d" % self.added))
                    self.added += 1
                except QueueFull:
                    assert self.outgoing.messages == 50
            case 2:
                session = self.outgoing.session
                for entry in self.outgoing.take(self.random.randrange(8)):
                    self.on_the_way.append((session, entry.number, int(entry.prepared)))
            case 3 if self.on_the_way:
                self.arrive(*self.on_the_way.pop(0))
            case 4 if self.handling:
                self.done()
            case 5:
                ack = self.incoming.take_ack(bytes_max=self.random.randrange(500))
                if ack is not None:
                    self.answers.append(ack)
            case 6 if self.answers:
                self.answer(self.answers.pop(0))
            case 8 if self.random.random() < 0.2:
                self.lose_answers()
            case 7 if self.random.random() < 0.2:
                self.begin()
            case 7 if self.random.random() < 0.3:
                self.cut()

    def drain(self) -> None:
        for entry in self.outgoing.take(1_000_000):
            self.on_the_way.append((self.outgoing.session, entry.number, int(entry.prepared)))
        while self.on_the_way:
            self.arrive(*self.on_the_way.pop(0))
        while self.handling:
            self.done()
        while (ack := self.incoming.take_ack(bytes_max=1_000)) is not None:
            self.answer(ack)


@pytest.mark.parametrize("seed", range(200))
def test_between_living_processes_each_message_is_handled_once_and_in_order(seed: int) -> None:
    world = World(seed)
    for _ in range(400):
        world.step()
        assert set(world.settled) <= set(world.handled)  # what is told as handled, was
    world.begin()
    world.drain()
    assert world.handled == list(range(world.added)) == world.settled
    assert world.failed == [n for n in range(world.added) if n % 3 == 0]
    assert world.outgoing.messages == world.outgoing.bytes == 0


def test_what_was_taken_and_is_unanswered_goes_again_under_its_numbers_in_order() -> None:
    outgoing = filled(5)
    taken = outgoing.take(2)
    assert [entry.number for entry in taken] == [1, 2]
    outgoing.rewind()
    assert [(e.number, int(e.prepared)) for e in outgoing.take(100)] == [
        (1, 0),
        (2, 1),
        (3, 2),
        (4, 3),
        (5, 4),
    ]


def test_numbers_go_on_where_the_other_side_remembers_and_begin_anew_where_not() -> None:
    outgoing = filled(4)
    outgoing.take(100)
    assert bodies(outgoing.begin("s2", continues=True, upto=1)) == [0]
    assert [entry.number for entry in outgoing.take(100)] == [2, 3, 4]
    assert outgoing.begin("s3", continues=False) == []
    assert [(e.number, int(e.prepared)) for e in outgoing.take(100)] == [(1, 1), (2, 2), (3, 3)]


def test_an_answer_of_another_session_is_dropped() -> None:
    outgoing = filled(2)
    outgoing.take(100)
    outgoing.begin("s2", continues=True)
    assert outgoing.acknowledge("s1", 2) == []
    assert outgoing.messages == 2


def test_an_answer_that_comes_late_settles_what_waits_to_be_sent_again() -> None:
    outgoing = filled(3)
    outgoing.take(2)
    outgoing.rewind()
    assert bodies(outgoing.acknowledge("s1", 2)) == [0, 1]
    assert [entry.number for entry in outgoing.take(100)] == [3]


@pytest.mark.parametrize("upto", [3, 2**53])
def test_an_answer_to_what_was_never_sent_is_refused(upto: int) -> None:
    outgoing = filled(3)
    outgoing.take(2)
    with pytest.raises(BadAck):
        outgoing.acknowledge("s1", upto)
    assert outgoing.messages == 3


def test_a_full_queue_refuses_and_names_its_limit() -> None:
    outgoing = an_outgoing(messages_max=2, bytes_max=10)
    outgoing.add(Entry(b"x" * 100))  # one is taken whatever its size
    with pytest.raises(QueueFull) as raised:
        outgoing.add(Entry(b"x"))
    assert (raised.value.limit, raised.value.size_max) == ("queue_bytes", 10)
    outgoing.settle_first(0)
    assert [len(entry.prepared) for entry in outgoing.end()] == [100]
    outgoing.add(Entry(b"1"))
    outgoing.add(Entry(b"2"))
    with pytest.raises(QueueFull) as raised:
        outgoing.add(Entry(b"3"))
    assert (raised.value.limit, raised.value.size_max) == ("queue_messages", 2)
    assert bodies(outgoing.take(100)) == [1, 2]


def test_the_end_returns_all_in_order_and_counts_nothing_any_more() -> None:
    outgoing = filled(4)
    outgoing.take(2)
    assert bodies(outgoing.end()) == [0, 1, 2, 3]
    assert (outgoing.messages, outgoing.bytes, outgoing.unanswered) == (0, 0, 0)
    outgoing.add(Entry(b"9"))
    assert [entry.number for entry in outgoing.take(100)] == [3]  # numbers go on


def test_what_has_come_before_is_acknowledged_again_and_not_handled() -> None:
    incoming = Incoming()
    incoming.begin("s1")
    assert incoming.accept("s1", 1)
    incoming.done(1)
    assert (ack := incoming.take_ack()) is not None
    assert ack.upto == 1
    assert incoming.take_ack() is None
    assert not incoming.accept("s1", 1)
    assert incoming.take_ack() == ack  # the first may have been lost


def test_a_message_that_is_missing_is_an_error_within_a_session() -> None:
    incoming = Incoming()
    incoming.begin("s1")
    assert incoming.accept("s1", 4)  # those before have ended with an earlier session
    with pytest.raises(BadPayload, match="number 6 after 4"):
        incoming.accept("s1", 6)


def test_a_message_of_an_older_session_is_dropped() -> None:
    incoming = Incoming()
    incoming.begin("s1")
    incoming.begin("s2")
    assert not incoming.accept("s1", 1)
    assert incoming.take_ack() is None


def test_failures_are_told_with_their_numbers_and_in_parts_where_they_are_many() -> None:
    incoming = Incoming()
    incoming.begin("s1")
    for number in range(1, FAILED_MAX + 3):
        assert incoming.accept("s1", number)
        incoming.done(number, "no")
    first, second = (incoming.take_ack(bytes_max=2**30) for _ in range(2))
    assert first is not None
    assert second is not None
    assert (first.upto, len(first.failed)) == (FAILED_MAX, FAILED_MAX)
    assert (second.upto, len(second.failed)) == (FAILED_MAX + 2, 2)
    assert incoming.take_ack() is None


def test_an_acknowledgement_has_no_more_bytes_of_failures_than_the_other_side_takes() -> None:
    incoming = Incoming()
    incoming.begin("s1")
    for number in range(1, 1_001):
        assert incoming.accept("s1", number)
        incoming.done(number, "é" * 200 if number % 2 else None)
    acks = list(iter(lambda: incoming.take_ack(bytes_max=5_000), None))
    assert acks[-1].upto == 1_000
    assert [number for ack in acks for number, _ in ack.failed] == list(range(1, 1_001, 2))
    for before, ack in pairwise(acks):
        assert before.upto < ack.failed[0][0]
        assert sum(len(reason.encode()) for _, reason in ack.failed) <= 5_000


def test_failures_are_kept_until_they_are_heard_and_said_again_on_a_new_connection() -> None:
    incoming = Incoming()
    incoming.begin("s1")
    for number in range(1, 5):
        assert incoming.accept("s1", number)
        incoming.done(number, "no" if number in (2, 3) else None)
    first = incoming.take_ack()
    assert first is not None
    assert first.failed == ((2, "no"), (3, "no"))
    assert incoming.previous == ("s1", 1)  # else a new session would take them for handled
    incoming.say()
    assert incoming.take_ack() == Ack("s1", 4)
    incoming.say(anew=True)
    assert incoming.take_ack() == first
    incoming.heard("s0", 4)
    assert incoming.previous == ("s1", 1)
    incoming.heard("s1", 2)
    assert incoming.previous == ("s1", 2)
    incoming.heard("s1", 4)
    assert incoming.previous == ("s1", 4)


def test_who_never_hears_of_failures_has_to_come_back_before_they_are_too_many() -> None:
    incoming = Incoming()
    incoming.begin("s1")
    for number in range(1, FAILED_BYTES // (500 + 64) + 2):
        assert incoming.accept("s1", number)
        incoming.done(number, "x" * 500)
    with pytest.raises(BadPayload, match="have failed that it does not hear of"):
        incoming.accept("s1", number + 1)
    incoming.heard("s1", number)
    incoming.begin("s2")
    assert incoming.accept("s2", number + 1)
