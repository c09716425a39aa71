"""The parts of a datagram session and endpoint, each made alone: what it keeps, and how long."""

from __future__ import annotations

from msgservice.core.datagram.asks import ASK_MAX, Asks
from msgservice.core.datagram.chunks import Chunk, Control
from msgservice.core.datagram.flight import UNPACED, Flight
from msgservice.core.datagram.limits import DatagramLimits
from msgservice.core.datagram.patience import Patience
from msgservice.core.datagram.peers import Peer
from msgservice.core.datagram.receiver import ReceivingHalf
from msgservice.core.datagram.wire import INITIATOR, ChecksumSeal, encode_run

LIMITS = DatagramLimits()
ADDRESS = ("127.0.0.1", 7430)


def flight(late: list[Flight] | None = None) -> tuple[Flight, ReceivingHalf]:
    receiving = ReceivingHalf(LIMITS, ordered=False)
    made = Flight(
        receiving,
        [] if late is None else late,
        identifier=1,
        role=INITIATOR,
        key_id=0,
        seal=ChecksumSeal(),
        datagram_bytes=LIMITS.datagram_bytes,
        congestion_bytes=LIMITS.congestion_bytes,
        jitter=lambda: 0.0,
    )
    return made, receiving


def chunk(nonce: int) -> Chunk:
    return Chunk(nonce, [nonce], encode_run(nonce, [b"x"]), None)


def send(made: Flight, content: object, now: float = 0.0, size: int = 20) -> int:
    return made.send(0, bytes(size), (content,), [], now)


def test_asks_come_after_2_s_and_more_and_more_seldom_until_something_is_settled() -> None:
    asks = Asks()
    waits: list[float] = []
    now = 0.0
    for _ in range(7):
        due = asks.next_deadline(now)
        asks.receive_time(due - 0.001)
        assert not asks.wanted
        asks.receive_time(due)
        assert asks.wanted
        asks.take(1, 5)
        assert not asks.wanted
        waits.append(due - now)
        now = due
    assert [2, 4, 8, 16, 32, ASK_MAX, ASK_MAX] == waits
    asks.progress()
    assert now + 2 == asks.next_deadline(now)


def test_asks_after_what_is_settled_meanwhile_are_forgotten() -> None:
    asks = Asks()
    for next_nonce in (3, 5, 9):
        asks.take(1, next_nonce)
    assert [3, 5, 9] == asks.asked
    asks.take(5, 9)
    assert [9, 9] == asks.asked


def test_a_few_datagrams_may_leave_at_once_and_what_is_beyond_the_window_waits() -> None:
    made, _ = flight()
    assert made.begin()
    unit = LIMITS.datagram_bytes
    assert UNPACED * unit == made.allowance(0.0)
    while made.allowance(0.0) > 0:
        size = send(made, chunk(1), size=unit - 40)
        made.spend(size)
    assert made.congestion.in_flight >= made.congestion.window
    assert not made.begin()


def test_what_was_in_a_lost_packet_goes_back_to_where_it_is_sent_from() -> None:
    made, receiving = flight()
    first = chunk(1)
    send(made, first)
    send(made, Control([(7, 9)], 0, True))
    for nonce in range(2, 6):
        send(made, chunk(nonce))
    made.receive_received((0.0, [(6, 6)]), 0.1)

    assert [(7, 9)] == list(receiving.handled_pending)
    assert receiving.credit_lost
    assert first is made.take_lost()


def test_a_chunk_that_arrived_meanwhile_is_not_sent_again() -> None:
    made, _ = flight()
    first = chunk(1)
    made.put([first, chunk(2)])
    first.received = True
    lost = made.take_lost()
    assert isinstance(lost, Chunk)
    assert 2 == lost.first
    assert made.take_lost() is None


def test_the_acknowledgement_of_the_only_packet_is_looked_at_later() -> None:
    late: list[Flight] = []
    made, _ = flight(late)
    only = chunk(1)
    send(made, only)
    made.receive_received((0.0, [(1, 1)]), 0.1)
    assert [made] == late
    assert not only.received
    made.catch_up()
    assert only.received
    assert 0 == made.congestion.in_flight


def test_a_timeout_sends_the_oldest_again_and_a_repeated_one_the_two_oldest() -> None:
    made, _ = flight()
    chunks = [chunk(nonce) for nonce in (1, 2, 3)]
    for item in chunks:
        send(made, item)
    due = made.recovery.timeout_at()
    assert due is not None
    assert not made.receive_time(due - 0.001)
    assert made.receive_time(due)
    assert (1, chunks[:1]) == made.take_probes()
    assert (0, []) == made.take_probes()
    again = made.recovery.timeout_at()
    assert again is not None
    assert made.receive_time(again)
    assert (2, chunks[:2]) == made.take_probes()


def test_a_probe_passes_over_what_was_handled_and_not_acknowledged() -> None:
    """Its acknowledgement was lost, and what is behind it may be as well."""
    made, _ = flight()
    chunks = [chunk(nonce) for nonce in (1, 2, 3, 4)]
    for item in chunks:
        send(made, item)
    chunks[0].remaining = chunks[2].remaining = 0
    for expected in ((1, [chunks[1]]), (2, [chunks[1], chunks[3]])):
        due = made.recovery.timeout_at()
        assert due is not None
        assert made.receive_time(due)
        assert expected == made.take_probes()


def test_what_waits_fails_only_with_a_peer_that_is_silent_and_was_asked_as_often() -> None:
    patience = Patience(10.0, 2)
    peer = Peer(ADDRESS, LIMITS.message_bytes, 2, 0.0)
    peer.queue.bodies.append(b"x")
    peer.queue.tokens.append("x")
    peer.queue.enqueued = 1
    patience.mark(peer, 0.0)
    assert patience.give_up(peer, 9.9) is None
    peer.tried_at.append(1.0)
    assert [] == patience.give_up(peer, 10.0)  # old enough, and asked only once
    peer.tried_at.append(2.0)
    peer.heard_at = 5.0
    assert [] == patience.give_up(peer, 14.0)  # it was heard meanwhile
    assert [] == patience.give_up(peer, 15.0)  # and not asked since
    peer.tried_at.extend([6.0, 7.0])
    assert ["x"] == patience.give_up(peer, 15.0)
    assert [] == peer.marks
