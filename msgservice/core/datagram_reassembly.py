"""Large messages and replies from their pieces, in bounded memory.

Called by the halves of a session. Only what has arrived takes memory, never what a piece claims. A
piece that contradicts another (other total, other cut) is an error of its peer.
"""

from __future__ import annotations


class _Partial:
    __slots__ = ("have", "pieces", "total")

    def __init__(self, total: int) -> None:
        self.total = total
        self.have = 0
        self.pieces: dict[int, bytes] = {}


class Reassembly:
    """Partial messages by nonce; at most `bytes_max` bytes of pieces."""

    __slots__ = ("_bytes", "_bytes_max", "_partials", "promised")

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._partials: dict[int, _Partial] = {}
        self.promised = 0  # totals of all partial messages

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
        if partial is None:
            partial = self._partials[nonce] = _Partial(total)
            self.promised += total
        elif partial.total != total:
            raise ValueError("total of a message changed")
        known = partial.pieces.get(offset)
        if known is not None:
            if len(known) != len(data):
                raise ValueError("message cut differently")
            return None
        if self._bytes + len(data) > self._bytes_max:
            raise ValueError("more pieces than may be held")
        partial.pieces[offset] = data
        partial.have += len(data)
        self._bytes += len(data)
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
        self.promised -= partial.total
