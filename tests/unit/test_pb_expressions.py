"""Expressions of banana: the same wire as Twisted's, in linear time and within a budget."""

from __future__ import annotations

import random
import tracemalloc
from typing import Any

import pytest
from twisted.spread import banana

from msgservice.errors import MalformedFrame
from msgservice.transport.pb.expressions import DEPTH_MAX, Expressions, encode

BUDGET = 64 * 1024
VALUES: list[Any] = [
    [],
    [[], [[]]],
    [b"version", 6],
    [b"message", 1, b"root", b"login", 1, [b"tuple", b"alice"], [b"dictionary"]],
    [0, 1, -1, 127, 128, 2**31 - 1, 2**31, -(2**31), -(2**31) - 1, 2**200, -(2**200)],
    [1.5, -0.0, b"", b"x" * 1000],
]


def received(data: bytes, sizes: list[int], budget: int = BUDGET) -> list[Any]:
    came, decoder, at = [], Expressions(lambda: budget), 0
    for size in [*sizes, len(data)]:
        decoder.feed(data[at : at + size])
        came += list(decoder.take())
        at += size
    return came


def theirs(value: Any) -> bytes:
    """Return what Twisted writes in the dialect of Perspective Broker."""
    written: list[bytes] = []
    writer = banana.Banana()
    writer.setPrefixLimit(64)
    writer.currentDialect = b"pb"
    writer._encode(value, written.append)
    return b"".join(written)


@pytest.mark.parametrize("value", VALUES)
def test_what_is_encoded_is_what_twisted_encodes(value: Any) -> None:
    assert theirs(value) == encode(value)


@pytest.mark.parametrize("seed", range(20))
def test_expressions_come_whole_however_they_are_cut(seed: int) -> None:
    rng = random.Random(seed)
    data = b"".join(encode(value) for value in VALUES)
    sizes = [rng.choice((1, 1, 2, 3, 7, 100)) for _ in range(len(data))]
    assert received(data, sizes) == VALUES


def test_a_long_string_in_many_pieces_costs_its_length_once() -> None:
    data = encode([bytes(512 * 1024)])
    decoder = Expressions(lambda: 1024 * 1024)
    looked = 0

    class Counted(Expressions):
        def _token(self, data: bytes, at: int) -> tuple[tuple[Any, ...], int]:
            nonlocal looked
            looked += 1
            return super()._token(data, at)

    decoder = Counted(lambda: 1024 * 1024)
    came: list[Any] = []
    for at in range(0, len(data), 100):
        decoder.feed(data[at : at + 100])
        came += list(decoder.take())
    assert [[bytes(512 * 1024)]] == came
    assert looked < 10


@pytest.mark.parametrize(
    "data",
    [
        b"\x7f" * 65,  # a number without an end
        bytes((0x7F, 0x7F, 0x7F, 0x7F, 0x7F, 0x7F, 0x82)),  # a length that nothing has
        bytes((0x7F, 0x7F, 0x7F, 0x82)),  # a string of more than the budget
        bytes((0x7F, 0x7F, 0x7F, 0x80)),  # a list of more than the budget
        b"\x01\x80" * (DEPTH_MAX + 1),
        b"\x00\x87",  # a word that is not in the vocabulary
        b"\x00\xff",
    ],
)
def test_what_is_none_or_too_large_is_refused_as_soon_as_it_is_seen(data: bytes) -> None:
    with pytest.raises(MalformedFrame):
        received(data, [])
    with pytest.raises(MalformedFrame):
        received(data, [1] * len(data))


ENDLESS = {
    "numbers": b"\x00\x81",
    "empty strings": b"\x00\x82",
    "empty lists": b"\x00\x80",
    "lists of lists": b"\x01\x80\x02\x80\x00\x81",
    "long strings": b"\x00\x01\x82" + bytes(128),
}


def say_without_end(decoder: Expressions, begin: bytes, piece: bytes) -> None:
    while True:
        decoder.feed(begin)
        for _ in range(600):
            decoder.feed(piece)
            list(decoder.take())


@pytest.mark.parametrize("kind", ENDLESS)
def test_a_list_that_never_ends_takes_no_more_memory_than_the_budget(kind: str) -> None:
    decoder = Expressions(lambda: BUDGET)
    begin = bytes((0x7F, 0x07, 0x80))  # a list of 1,023
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        with pytest.raises(MalformedFrame):
            say_without_end(decoder, begin, ENDLESS[kind])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak - before < BUDGET + 16 * 1024
