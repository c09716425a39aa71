"""Stretches of batches: what a receiver is to get, or not any more, seen without its messages.

A stretch is as many batches as follow each other for one receiver: what lies between them is for
others. So one range says what became of all of them, however many holes it has. Which they are is
found out by who settles them (`expiry`); what of them is still open, by the receiver's outlet.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

from msgservice.node.stored_bytes import Part
from msgservice.records import position_of


class Head(NamedTuple):
    """A batch without its messages: how many, in how many bytes."""

    number: int
    audience: int
    messages: int
    size: int


class Stretch:
    """Batches that follow each other for a receiver, rising; of them `first` to `last` alone."""

    __slots__ = ("_bytes", "_firsts", "_heads", "_messages", "first", "last")

    def __init__(
        self, heads: Sequence[Head], first: int | None = None, last: int | None = None
    ) -> None:
        self._heads = heads
        self._firsts = [position_of(head.number) for head in heads]
        self._messages = list(accumulate([head.messages for head in heads], initial=0))
        self._bytes = list(accumulate([head.size for head in heads], initial=0))
        self.first = self._firsts[0] if first is None else first
        self.last = self._firsts[-1] + heads[-1].messages - 1 if last is None else last

    def counted(self, first: int, last: int) -> tuple[int, int]:
        """Return the messages between two positions, and their bytes.

        Of a batch that is cut the bytes are taken to be spread evenly: its messages are not read.
        """
        messages, size = self._below(last + 1)
        before = self._below(first)
        return messages - before[0], size - before[1]

    def cut(self, first: int, last: int) -> list[Part]:
        """Return the parts between two positions of batches of which not all lies there."""
        parts = []
        for position in (first, last):
            at = bisect_right(self._firsts, position) - 1
            if at < 0:
                continue
            head, begin = self._heads[at], self._firsts[at]
            low, high = max(first, begin), min(last, begin + head.messages - 1)
            if 0 < high - low + 1 < head.messages:
                messages, size = self.counted(low, high)
                part = Part(head.number, messages, size, head.messages, head.size)
                if part not in parts:
                    parts.append(part)
        return parts

    def _below(self, position: int) -> tuple[int, int]:
        at = bisect_left(self._firsts, position) - 1
        if at < 0:
            return 0, 0
        head = self._heads[at]
        inside = min(position - self._firsts[at], head.messages)
        part = head.size * inside // head.messages
        return self._messages[at] + inside, self._bytes[at] + part
