"""Large messages from their pieces: whole, and in the memory that is meant for them."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Callable

import pytest

from msgservice.core.datagram.reassembly import COST_FACTOR, Reassembly

BYTES_MAX = 1024 * 1024
# What a message's piece has of a datagram of 512 bytes, with a key.
PIECE_LEAST = 512 - 20 - 16 - 24


def fill(made: Reassembly, piece: Callable[[int], tuple[int, int, int, bytes]]) -> int:
    """Put pieces in until one is refused; return how many were taken."""
    count = 0
    while count < 2_000_000:
        try:
            made.receive(*piece(count))
        except ValueError:
            return count
        count += 1
    raise AssertionError("never refused")


DATA = random.Random(1).randbytes(4096)


@pytest.mark.parametrize(
    "piece",
    [
        lambda n: (1, 2**32 - 1, 3 * n, DATA[:2]),
        lambda n: (1, 2**32 - 1, 30 * n, DATA[:9]),
        lambda n: (10**6 + n, 5000, 700, DATA[:1]),
        lambda n: (10**6 + n // 3, 5000, 700 * (n % 3), DATA[:150]),
    ],
    ids=["two bytes each", "nine bytes each", "a message each", "three to a message"],
)
def test_the_smallest_pieces_cost_no_more_memory_than_was_meant(
    piece: Callable[[int], tuple[int, int, int, bytes]],
) -> None:
    made = Reassembly(BYTES_MAX)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        assert fill(made, piece) > 1000
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert most - before <= 1.05 * COST_FACTOR * BYTES_MAX


def test_pieces_that_fill_the_smallest_datagrams_are_taken_up_to_the_last_byte() -> None:
    """The costliest of honest senders: every message has one full piece and one byte more."""
    made = Reassembly(BYTES_MAX)
    total = PIECE_LEAST + 1
    count = BYTES_MAX // total
    for nonce in range(count):
        assert made.receive(nonce, total, 0, DATA[:PIECE_LEAST]) is None
    for nonce in range(count):
        assert DATA[:total] == made.receive(nonce, total, PIECE_LEAST, DATA[PIECE_LEAST:total])

    assert (0, 0) == (made.size, made.promised)
    for nonce in range(count):  # and what it took is free again
        assert made.receive(nonce, total, PIECE_LEAST, DATA[:1]) is None


def test_a_piece_that_is_refused_leaves_nothing_behind() -> None:
    made = Reassembly(100)
    with pytest.raises(ValueError, match="more pieces"):
        made.receive(1, 200, 0, DATA[:101])

    assert 1 not in made
    assert (0, 0) == (made.size, made.promised)
