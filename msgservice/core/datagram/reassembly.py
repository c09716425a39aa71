"""Large messages and replies from their pieces, in bounded memory.

Called by the halves of a session. Only what has arrived takes memory, never what a piece claims. A
piece that contradicts another (other total, other cut) is an error of its peer.

What is counted is what it costs: a piece of one byte takes a hundred times as much.
"""

from __future__ import annotations

# What a piece, and a partial message, cost besides their bytes (CPython 3.11, 64 bits).
PIECE_COST = 160
PARTIAL_COST = 384
# Pieces fill datagrams of 512 bytes at least, so that those of one message may cost 2.6 times its
# bytes: one who is refused cuts smaller ones.
COST_FACTOR = 3


class _Partial:
    __slots__ = ("have", "pieces", "total")

    def __init__(self, total: int) -> None:
        self.total = total
        self.have = 0
        self.pieces: dict[int, bytes] = {}


class Reassembly:
    """Partial messages by nonce; at most `bytes_max` bytes of pieces, and COST_FACTOR times as
    much memory."""

    __slots__ = ("_bytes", "_bytes_max", "_overhead", "_partials", "promised")

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._overhead = 0  # bytes that pieces and partial messages take besides
        self._partials: dict[int, _Partial] = {}
        self.promised = 0  # totals of all partial messages

    def raise_to(self, bytes_max: int) -> None:
        """Let more bytes be held from now on."""
        self._bytes_max = bytes_max

    def __contains__(self, nonce: int) -> bool:
        return nonce in self._partials

    def __len__(self) -> int:
        return len(self._partials)

    @property
    def size(self) -> int:
        """Bytes held."""
        return self._bytes

    def receive(self, nonce: int, total: int, offset: int, data: bytes) -> bytes | None:
        """Take a piece, and return the whole if it was the last; ValueError if it does not fit."""
        if not data or offset + len(data) > total:
            raise ValueError("piece beyond its message")
        partial = self._partials.get(nonce)
        overhead = PIECE_COST
        if partial is None:
            overhead += PARTIAL_COST
        else:
            if partial.total != total:
                raise ValueError("total of a message changed")
            known = partial.pieces.get(offset)
            if known is not None:
                if len(known) != len(data):
                    raise ValueError("message cut differently")
                return None
        size = self._bytes + len(data)
        overhead += self._overhead
        if size > self._bytes_max or size + overhead > COST_FACTOR * self._bytes_max:
            raise ValueError("more pieces than may be held")
        if partial is None:
            partial = self._partials[nonce] = _Partial(total)
            self.promised += total
        partial.pieces[offset] = data
        partial.have += len(data)
        self._bytes = size
        self._overhead = overhead
        if partial.have < total:
            return None
        self._drop(nonce)
        at = 0
        pieces = sorted(partial.pieces.items())
        for place, piece in pieces:
            if place != at:
                raise ValueError("pieces overlap")
            at += len(piece)
        return b"".join([piece for _, piece in pieces])

    def _drop(self, nonce: int) -> None:
        partial = self._partials.pop(nonce)
        self._bytes -= partial.have
        self._overhead -= PARTIAL_COST + PIECE_COST * len(partial.pieces)
        self.promised -= partial.total
