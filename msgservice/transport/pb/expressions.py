"""Expressions of banana, the encoding of Perspective Broker: bytes to expressions, bounded, linear.

The wire is that of `twisted.spread.banana`. Its own decoder copies all that it holds for each
delivery, and bounds each string and the length of each list alone, never an expression: one list
that is never finished takes any memory there is. Here an expression has a budget, which lists,
numbers and empty strings use up as strings do, and a depth. What expressions mean is the broker's.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Any, Final

from twisted.spread.banana import Banana

from msgservice.errors import BadValue, MalformedFrame

LIST, INT, STRING, NEG, FLOAT, LONGINT, LONGNEG, VOCAB = range(0x80, 0x88)
PREFIX_BYTES = 64  # of a number, as Twisted's
LENGTH_PREFIX_BYTES = 5  # of a length
# What an item takes in memory besides its bytes, and a list that is not finished.
ITEM_COST = 64
LIST_COST = 192
DEPTH_MAX = 32
_FLOAT: Final = struct.Struct("!d")
_VOCABULARY: Final[dict[int, bytes]] = dict(Banana.incomingVocabulary)
_CODES: Final[dict[bytes, bytes]] = {
    word: bytes((code, VOCAB)) for code, word in _VOCABULARY.items()
}
_INT_MAX = 2**31 - 1


class Expressions:
    """The decoder of one connection. `budget` returns what an expression may take now, in bytes.

    `spent`: what all that came so far has taken, bytes and memory alike. `partial`: bytes of an
    expression that is not finished; `completed`: those that are.
    """

    def __init__(self, budget: Callable[[], int]) -> None:
        self.spent = 0
        self.completed = 0
        self._budget = budget
        self._chunks: list[bytes] = []
        self._have = 0  # bytes in `_chunks`
        self._need = 1  # bytes without which there is nothing to look at
        self._cost = 0  # of the expression that is not finished
        self._taken = 0  # bytes of it that were looked at
        self._open: list[tuple[int, list[Any]]] = []

    @property
    def partial(self) -> int:
        """Bytes that have come of an expression that is not finished."""
        return self._taken + self._have

    def feed(self, data: bytes) -> None:
        """Take what came; `take` has what is complete."""
        self._chunks.append(data)
        self._have += len(data)

    def take(self) -> Iterator[Any]:
        """Yield each complete expression; `MalformedFrame` for what is none, or is too large."""
        if self._have < self._need:
            # A string that would be too large was refused when its length came.
            return
        data = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        at, self._need = 0, 1
        try:
            while at < len(data):
                was = at
                found, at = self._token(data, at)
                if at == was:
                    break
                self._taken += at - was
                for item in found:
                    yield from self._put(item)
        finally:
            rest = data[at:] if at else data
            self._chunks = [rest] if rest else []
            self._have = len(rest)

    def _token(self, data: bytes, at: int) -> tuple[tuple[Any, ...], int]:
        """Return the item that begins at `at`, if any, and where the next begins."""
        end, size = at, len(data)
        number = shift = 0
        while end < size and (byte := data[end]) < 0x80:
            number |= byte << shift
            shift += 7
            end += 1
        if end - at > PREFIX_BYTES:
            raise MalformedFrame(f"a number of more than {PREFIX_BYTES} bytes")
        if end == size:
            self._need = size - at + 1
            return (), at
        kind, prefix = data[end], end - at
        end += 1
        if kind == STRING:
            self._check_length(prefix)
            if number > self._budget() - self._cost:
                self._over()
            if size - end < number:
                self._need = end - at + number
                return (), at
            self._spend(number + ITEM_COST)
            return (data[end : end + number],), end + number
        if kind == LIST:
            self._check_length(prefix)
            if len(self._open) >= DEPTH_MAX:
                raise MalformedFrame(f"more than {DEPTH_MAX} lists in each other")
            self._spend(LIST_COST)
            if number * ITEM_COST > self._budget() - self._cost:
                self._over()
            if not number:
                return ([],), end
            self._open.append((number, []))
            return (), end
        if kind == FLOAT and size - end < _FLOAT.size:
            self._need = end - at + _FLOAT.size
            return (), at
        self._spend(ITEM_COST + prefix)
        if kind in (INT, LONGINT):
            return (number,), end
        if kind in (NEG, LONGNEG):
            return (-number,), end
        if kind == FLOAT:
            return _FLOAT.unpack_from(data, end), end + _FLOAT.size
        if kind == VOCAB and number in _VOCABULARY:
            return (_VOCABULARY[number],), end
        raise MalformedFrame(
            f"the other side does not speak Perspective Broker: nothing of it begins with {kind:#x}"
        )

    def _put(self, item: Any) -> Iterator[Any]:
        lists = self._open
        while lists:
            count, items = lists[-1]
            items.append(item)
            if len(items) < count:
                return
            lists.pop()
            item = items
        self._cost = self._taken = 0
        self.completed += 1
        yield item

    def _check_length(self, prefix: int) -> None:
        if prefix > LENGTH_PREFIX_BYTES:
            raise MalformedFrame("a length that nothing has")

    def _spend(self, cost: int) -> None:
        self._cost += cost
        self.spent += cost
        if self._cost > self._budget():
            self._over()

    def _over(self) -> None:
        raise MalformedFrame(f"a call of more than {self._budget()} bytes, lists and numbers too")


def cost_of(expression: Any, depth_max: int = DEPTH_MAX) -> int:
    """Return what an expression takes of the budget of `Expressions`, bytes and memory.

    Raises `BadValue` for one that is deeper than those take.
    """
    if isinstance(expression, bytes):
        return len(expression) + ITEM_COST
    if isinstance(expression, list | tuple):
        if not depth_max:
            raise BadValue("argument", f"has more than {DEPTH_MAX} lists in each other")
        return LIST_COST + sum([cost_of(item, depth_max - 1) for item in expression])
    if isinstance(expression, int):
        return ITEM_COST + expression.bit_length() // 7 + 1
    return ITEM_COST


class Encoded:
    """A part of an expression that was encoded before, for many that have it."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data


def encode(expression: Any) -> bytes:
    """Return the bytes of an expression: lists, bytes, integers, floats, and `Encoded` ones."""
    pieces: list[bytes] = []
    _encode(expression, pieces.append)
    return b"".join(pieces)


def _encode(value: Any, write: Callable[[bytes], object]) -> None:
    if isinstance(value, bytes):
        code = _CODES.get(value) if len(value) < 16 else None
        if code is not None:
            write(code)
        else:
            write(_prefix(len(value), STRING))
            write(value)
    elif isinstance(value, list | tuple):
        write(_prefix(len(value), LIST))
        for item in value:
            _encode(item, write)
    elif isinstance(value, Encoded):
        write(value.data)
    elif isinstance(value, int):
        kinds = (INT, LONGINT) if value >= 0 else (NEG, LONGNEG)
        short = _INT_MAX if value >= 0 else _INT_MAX + 1
        number = abs(int(value))
        if number.bit_length() > 7 * PREFIX_BYTES:
            raise ValueError(f"an integer of more than {7 * PREFIX_BYTES} bits")
        write(_prefix(number, kinds[number > short]))
    elif isinstance(value, float):
        write(bytes((FLOAT,)))
        write(_FLOAT.pack(value))
    else:
        raise TypeError(f"banana has no form of {type(value).__name__}")


def _prefix(number: int, kind: int) -> bytes:
    if number < 0x80:
        return bytes((number, kind))
    digits = bytearray()
    while number:
        digits.append(number & 0x7F)
        number >>= 7
    digits.append(kind)
    return bytes(digits)
