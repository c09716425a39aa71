"""The sending half: what is exhausted is what is given up, however chunks and ages overlap."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from msgservice.core.datagram.chunks import SendQueue
from msgservice.core.datagram.limits import DatagramLimits
from msgservice.core.datagram.sender import SendingHalf


def half(bodies: int, room: int) -> SendingHalf:
    """A session that has sent so many small messages, as many in a datagram as fit `room`."""
    queue = SendQueue()
    sending = SendingHalf(
        SendQueue(), [], [], DatagramLimits(), credit_messages=1000, credit_bytes=100_000
    )
    for number in range(bodies):
        queue.bodies.append(b"%3d" % number)
        queue.tokens.append(number)
        queue.enqueued += 1
    sending.begin(queue)
    while sending.take_new(room) is not None:
        pass
    return sending


def test_A7_the_younger_messages_of_a_datagram_are_not_exhausted_with_the_older() -> None:
    sending = half(2, 100)
    (chunk,) = sending.chunks
    chunk.transmissions = 9
    sending.receive_handled(1, 1)

    assert not sending.exhausted(1, 3)
    assert [] == sending.give_up(1, 3)
    assert sending.exhausted(2, 3)
    assert [1] == sending.give_up(2, 3)


@given(
    count=st.integers(1, 12),
    room=st.integers(20, 60),
    tries=st.lists(st.integers(0, 4), min_size=12, max_size=12),
    handled=st.lists(st.integers(1, 12), max_size=12),
    ordinal=st.integers(0, 13),
    retries=st.integers(0, 4),
    asked=st.lists(st.integers(1, 13), max_size=4).map(sorted),
)
def test_A7_exhausted_says_whether_give_up_finds_any(
    count: int, room: int, tries: list[int], handled: list[int], ordinal: int, retries: int,
    asked: list[int],
) -> None:  # fmt: skip
    sending = half(count, room)
    for chunk, transmissions in zip(sending.chunks, tries, strict=False):
        chunk.transmissions = transmissions
    for nonce in handled:
        sending.receive_handled(nonce, nonce)
    for end in asked:
        sending.asks.take(0, end)
    expected = sending.exhausted(ordinal, retries)
    before = sending.open
    given_up = sending.give_up(ordinal, retries)

    assert expected is bool(given_up)
    assert before - len(given_up) == sending.open
    assert not sending.exhausted(ordinal, retries)
