"""Shapes of log records: what of a payload was read before, so that it need not be read again.

A logger sends the same bytes around each of its messages, but for three times:

    head ─ text of the message ─ middle ─ created, msecs, relativeCreated ─ last
    head ─ text of the message ─ last                       a record without these times

A piece is kept once it is known to hold nothing but texts, numbers and None, one after the other:
so a payload that is made of such pieces is one mapping, and no opcode of it can do anything else.
What has another shape is nothing to this module: `restricted` reads each opcode of that.
"""

from __future__ import annotations

import re
from struct import Struct

PIECE_BYTES = 1_024
PIECES_MAX = 1_000  # of each kind; beyond all are forgotten, and read again

_BEGIN = b"}q\0("  # a mapping, put into the memo as number 0, and what follows goes into it
_END = b"u."
_MESSAGE = b"X\x03\0\0\0msgq"
_KEY = len(_MESSAGE) + 1  # with the number in the memo
_TEXT = ord("X")
_length = Struct("<I").unpack_from
_times = re.compile(
    rb"X\x07\0\0\0createdq.(G.{8}X\x05\0\0\0msecsq.G.{8}X\x0f\0\0\0relativeCreatedq.G.{8})",
    re.DOTALL,
).search
# Nothing takes number 0 from the memo, or puts another thing there: that would be the mapping.
_scalars = re.compile(
    rb"(?:N|K.|M..|J.{4}|G.{8}|h[^\0]|I0[01]\n|L-?[0-9]{1,39}L\n)*+", re.DOTALL
).match
_memo = re.compile(rb"(?:q[^\0])?", re.DOTALL).match


class Shapes:
    """The pieces that were read."""

    def __init__(self) -> None:
        self._heads: set[bytes] = set()
        self._middles: set[bytes] = set()
        self._lasts: set[bytes] = set()

    def has(self, payload: bytes) -> bool:
        """Whether a payload is a mapping of texts, numbers and None, as a log record is."""
        at = payload.find(_MESSAGE, 0, PIECE_BYTES) + _KEY
        if at < _KEY or len(payload) < at + 5 or payload[at] != _TEXT:
            return False
        end = at + 5 + _length(payload, at + 1)[0]
        if len(payload) - end > 64 and (times := _times(payload, end, end + PIECE_BYTES)):
            begin, last_at = times.span(1)
            middle = payload[end:begin]
            if middle not in self._middles and not _learn(self._middles, middle, 0):
                return False
        else:
            last_at = end
        last = payload[last_at:]
        if last not in self._lasts and not (
            last[-len(_END) :] == _END and _learn(self._lasts, last, 0, len(_END))
        ):
            return False
        head = payload[:at]
        return head in self._heads or (
            head[: len(_BEGIN)] == _BEGIN and _learn(self._heads, head, len(_BEGIN))
        )


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
