"""Shapes of log records: what of a payload was read before, so that it need not be read again.

A logger sends the same bytes around each of its messages, but for three times:

    head ─ text of the message ─ middle ─ created, msecs, relativeCreated ─ last
    head ─ text of the message ─ last                       a record without these times

A piece is kept once it is known to hold nothing but texts, numbers and None, one after the other:
so a payload that is made of such pieces is one mapping, and no opcode of it can do anything else.
What has another shape is nothing to this module: `restricted` reads each opcode of that.

The same pieces around another text and other times make the same mapping but for those four values,
unless one of them is taken from the memo again, or is a key. That is tried out once, with values
that nobody can guess; from then on nothing of the payload is unpickled.
"""

from __future__ import annotations

import pickle
import re
import secrets
import sys
from struct import Struct
from typing import Any

PIECE_BYTES = 1_024
PIECES_MAX = 1_000  # of each kind; beyond all are forgotten, and read again
RECORDS_MAX = 2_000  # the same, of pieces that stand together; and so many attributes has each:
ATTRIBUTES_MAX = 64

_BEGIN = b"}q\0("  # a mapping, put into the memo as number 0, and what follows goes into it
_END = b"u."
_MESSAGE = b"X\x03\0\0\0msgq"
_KEY = len(_MESSAGE) + 1  # with the number in the memo
_PLACES = PIECE_BYTES + _KEY  # so many places where a text may begin
_TEXT = ord("X")
_length = Struct("<I").unpack_from
_float = Struct(">d").pack
_three = Struct(">x d 13x d 23x d").unpack_from  # the times, from their first opcode on
_TIMES = ("created", "msecs", "relativeCreated")
_CREATED = b"X\x07\0\0\0createdq"
_times = re.compile(
    rb"X\x07\0\0\0createdq.(G.{8}X\x05\0\0\0msecsq.G.{8}X\x0f\0\0\0relativeCreatedq.G.{8})",
    re.DOTALL,
).search
# Nothing takes number 0 from the memo, or puts another thing there: that would be the mapping.
_scalars = re.compile(
    rb"(?:N|K.|M..|J.{4}|G.{8}|h[^\0]|I0[01]\n|L-?[0-9]{1,39}L\n)*+", re.DOTALL
).match
_memo = re.compile(rb"(?:q[^\0])?", re.DOTALL).match


class _Shape:
    """The bytes around the text and the times of records, and one of these without its text."""

    __slots__ = ("around", "begin", "cut", "head", "record", "size", "times_at")

    def __init__(self, around: tuple[bytes, ...], record: dict[str, Any]) -> None:
        self.head, *pieces = around
        self.begin = len(self.head) + 4  # of the text, behind its length
        self.around = tuple(pieces)  # what `cut` takes, from the end of a text on
        lengths = [len(piece) for piece in pieces]
        cut = Struct("8x".join([f"{length}s" for length in lengths]))
        self.cut, self.size = cut.unpack_from, cut.size
        self.times_at = lengths[0] - 1 if len(lengths) > 1 else 0  # from its opcode on
        self.record = record


_NONE = _Shape((b"", b""), {})  # of nothing:
_NONE.begin = sys.maxsize  # no payload is as long


class Shapes:
    """The pieces that were read."""

    def __init__(self) -> None:
        self._heads: set[bytes] = set()
        self._middles: set[bytes] = set()
        self._lasts: set[bytes] = set()
        self._seen: set[int] = set()  # hashes of what stands around them, of records that came
        # What stands around the text and the times; None: these are not all that it depends on.
        self._records: dict[tuple[bytes, ...], _Shape | None] = {}
        # Most come from where the one before came from, else each with so many bytes before its
        # text and behind is of one place in a program.
        self._last = _NONE
        self._recent: dict[int, _Shape] = {}

    def record(self, payload: bytes) -> dict[str, Any] | None:
        """Return the log record of a payload, if the like of it is kept; its `msg` is text.

        Raises `UnicodeDecodeError` for text that is none, or that has half a pair of surrogates.
        """
        shape = self._last
        begin, end = shape.begin, len(payload) - shape.size
        if (
            begin > end
            or not payload.startswith(shape.head)
            or _length(payload, begin - 4)[0] != end - begin
            or shape.cut(payload, end) != shape.around
        ):
            found = self._find(payload)
            if found is None:
                return None
            self._last = shape = found
            begin, end = shape.begin, len(payload) - shape.size
        record = shape.record.copy()
        if shape.times_at:
            times = _three(payload, end + shape.times_at)
            record["created"], record["msecs"], record["relativeCreated"] = times
        record["msg"] = payload[begin:end].decode()
        return record

    def _find(self, payload: bytes) -> _Shape | None:
        """Return what is kept of the like of a payload."""
        at = payload.find(_MESSAGE, 0, PIECE_BYTES) + _KEY
        if not _KEY <= at <= len(payload) - 5:
            return None
        end = at + 5 + _length(payload, at + 1)[0]
        place = (len(payload) - end) * _PLACES + at
        shape = self._recent.get(place)
        if (
            shape is None
            or not payload.startswith(shape.head)
            or shape.cut(payload, end) != shape.around
        ):
            begin = payload.find(_CREATED, end, end + PIECE_BYTES) + len(_CREATED) + 1
            has_times = begin > len(_CREATED)
            after = _after(payload, end, begin) if has_times else (payload[end:],)
            shape = self._records.get((payload[: at + 1], *after))
            if shape is not None:
                self._recent[place] = shape
        return shape

    def keep(self, payload: bytes, value: dict[str, Any]) -> None:
        """Keep the mapping that a payload holds, if its like has come before, it is plain, and all
        of its like differ by no more than their text, which is `msg`, and their times.
        """
        cut = _cut(payload)
        if cut is None:
            return
        at, end, begin, _ = cut
        has_times = begin >= 0
        after = _after(payload, end, begin) if has_times else (payload[end:],)
        around = (payload[: at + 1], *after)
        if (
            around in self._records
            or not self._is_seen_again(hash(around))
            or not self.has(payload)
        ):
            return
        if len(self._records) >= RECORDS_MAX:
            self._records.clear()
            self._recent.clear()
        text, times = secrets.token_hex(16), [secrets.randbits(50) / 1024 for _ in _TIMES]
        other = pickle.loads(_with(around, text, times))  # noqa: S301  # of the same pieces
        expected = {**value, "msg": text}
        if has_times:
            expected.update(zip(_TIMES, times, strict=True))
        is_kept = len(value) <= ATTRIBUTES_MAX and list(other.items()) == list(expected.items())
        # Without its text: that may be as long as a payload, and each has its own.
        self._records[around] = _Shape(around, {**value, "msg": ""}) if is_kept else None

    def _is_seen_again(self, shape: int) -> bool:
        """Whether the like of a record has come before.

        To try out whether it can be kept costs more than to read it twice, and many come but once:
        what has the name of a task in it, or the number of a request.
        """
        if shape in self._seen:
            return True
        if len(self._seen) >= RECORDS_MAX:
            self._seen.clear()
        self._seen.add(shape)
        return False

    def has(self, payload: bytes) -> bool:
        """Whether a payload is a mapping of texts, numbers and None, as a log record is."""
        cut = _cut(payload)
        if cut is None:
            return False
        at, end, begin, last_at = cut
        if begin >= 0:
            middle = payload[end:begin]
            if middle not in self._middles and not _learn(self._middles, middle, 0):
                return False
        last = payload[last_at:]
        if last not in self._lasts and not (
            last[-len(_END) :] == _END and _learn(self._lasts, last, 0, len(_END))
        ):
            return False
        head = payload[:at]
        return head in self._heads or (
            head[: len(_BEGIN)] == _BEGIN and _learn(self._heads, head, len(_BEGIN))
        )


def _cut(payload: bytes) -> tuple[int, int, int, int] | None:
    """Return where the text begins and ends, its opcode included; where the times do, else -1."""
    at = payload.find(_MESSAGE, 0, PIECE_BYTES) + _KEY
    if at < _KEY or len(payload) < at + 5 or payload[at] != _TEXT:
        return None
    end = at + 5 + _length(payload, at + 1)[0]
    if len(payload) - end > 64 and (times := _times(payload, end, end + PIECE_BYTES)):
        return (at, end, *times.span(1))
    return at, end, -1, end


def _after(payload: bytes, end: int, begin: int) -> tuple[bytes, ...]:
    """Return all of a payload behind its text but its three times."""
    return (
        payload[end : begin + 1],
        payload[begin + 9 : begin + 22],
        payload[begin + 30 : begin + 53],
        payload[begin + 61 :],
    )


def _with(around: tuple[bytes, ...], text: str, times: list[float]) -> bytes:
    """Return the payload that has this around a text, and around times if it has any."""
    head, *rest = around
    before = [b"", *map(_float, times)][: len(rest)]
    made = [head, len(text).to_bytes(4, "little"), text.encode()]
    for time, piece in zip(before, rest, strict=True):
        made += [time, piece]
    return b"".join(made)


def _learn(known: set[bytes], piece: bytes, at: int, behind: int = 0) -> bool:
    """Read a piece from `at` to what is `behind` it; keep and return whether it is harmless."""
    end = len(piece) - behind
    if not 0 <= end <= PIECE_BYTES:
        return False
    at = _memo(piece, at).end()  # type: ignore[union-attr]  # it matches nothing, too
    while (at := _scalars(piece, at).end()) < end:  # type: ignore[union-attr]  # so does this
        if piece[at] != _TEXT or at + 5 > end:
            return False
        at += 5 + _length(piece, at + 1)[0]
        if at > end:
            return False
        at = _memo(piece, at).end()  # type: ignore[union-attr]
    if at != end:
        return False
    if len(known) >= PIECES_MAX:
        known.clear()
    known.add(piece)
    return True
