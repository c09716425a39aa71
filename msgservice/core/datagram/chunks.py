"""Chunks of a session: the queue that waits, messages, replies, pieces of large ones.

Values with what is known of each; `core.datagram.sender` and `core.datagram.receiver` decide. A
*chunk* is a run of consecutive messages that shares a datagram, or one large message that is sent
in pieces; it is what is lost and sent again.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import NamedTuple

from msgservice.core.datagram.wire import (
    FRAGMENT,
    FRAGMENT_HEAD,
    PART_OF_MESSAGE,
    decode_run,
)

Token = object

# A message's reply: its token, its ordinal, REPLY_OK or REPLY_FAILED, the body.
Answer = tuple[Token, int, int, bytes]
# A message that was never sent: its token, its size, and the size that the other side takes.
TooLarge = tuple[Token, int, int]


class SendQueue:
    """Messages that wait for one address, in order; outlives sessions. Tokens beside the bodies."""

    __slots__ = ("bodies", "carried", "enqueued", "head", "tokens", "waiting_bytes")

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.tokens: list[Token] = []
        self.head = 0
        self.enqueued = 0  # messages ever handed in: the ordinal of the next
        # Ordinals of the first messages here, which come from a session that was lost: those
        # between them were settled in it. Whatever session begins takes them over.
        self.carried: list[int] = []
        self.waiting_bytes = 0

    def __len__(self) -> int:
        return len(self.bodies) - self.head

    @property
    def first_ordinal(self) -> int:
        """The ordinal of the first message that waits, if no other was settled before it."""
        return self.enqueued - len(self.bodies) + self.head

    @property
    def first_waiting(self) -> int:
        """The ordinal of the first message that waits, or of the next one that is handed in."""
        return self.carried[0] if self.carried else self.first_ordinal

    def drop_taken(self) -> None:
        """Give back the memory of what was taken."""
        if self.head == len(self.bodies):
            self.bodies.clear()
            self.tokens.clear()
            self.head = 0
        elif self.head >= 4096:
            del self.bodies[: self.head]
            del self.tokens[: self.head]
            self.head = 0

    def put_back(self, bodies: list[bytes], tokens: list[Token], ordinals: list[int]) -> None:
        """Put messages before all others: their session was lost.

        `ordinals`: of them, and of those that had been put back before and still wait.
        """
        self.carried = ordinals
        self.bodies[: self.head] = bodies
        self.tokens[: self.head] = tokens
        self.head = 0
        self.waiting_bytes += sum(map(len, bodies))

    def take_larger(self, size_max: int) -> list[TooLarge]:
        """Take out the messages above `size_max` bytes; before any session has the queue."""
        bodies, tokens = self.bodies[self.head :], self.tokens[self.head :]
        sizes = list(map(len, bodies))
        if max(sizes, default=0) <= size_max:
            return []
        # Ordinals are counted from the end, so those before what is taken out are written down.
        known, first = self.carried, self.first_ordinal
        ordinals = known + list(range(first + len(known), self.enqueued))
        found = [index for index, size in enumerate(sizes) if size > size_max]
        kept = [index for index, size in enumerate(sizes) if size <= size_max]
        before = max(found[-1], len(known))
        self.carried = [ordinals[index] for index in kept if index < before]
        self.bodies = [bodies[index] for index in kept]
        self.tokens = [tokens[index] for index in kept]
        self.head = 0
        self.waiting_bytes -= sum([sizes[index] for index in found])
        return [(tokens[index], sizes[index], size_max) for index in found]

    def take_below(self, ordinal: int) -> list[Token]:
        """Take out the messages below `ordinal`, and return their tokens."""
        carried = self.carried
        count = bisect_left(carried, ordinal)
        if count == len(carried):
            count = max(count, min(ordinal - self.first_ordinal, len(self)))
        del carried[:count]
        end = self.head + count
        tokens = self.tokens[self.head : end]
        self.waiting_bytes -= sum(map(len, self.bodies[self.head : end]))
        self.head = end
        self.drop_taken()
        return tokens


class Chunk:
    """Consecutive messages of one datagram, or one large message (`data` set, `payload` empty)."""

    __slots__ = ("arrived", "arrived_bytes", "count", "data", "first", "payload", "received",
                 "remaining", "step", "tokens", "transmissions")  # fmt: skip

    def __init__(self, first: int, tokens: list[Token], payload: bytes, data: bytes | None) -> None:
        self.first = first
        self.count = self.remaining = len(tokens)
        self.tokens = tokens
        self.payload = payload
        self.data = data
        self.received = False
        self.transmissions = 0
        self.step = 1  # where all is settled: so many chunks further some may be open
        self.arrived: set[int] | None = None  # offsets of a large message's pieces
        self.arrived_bytes = 0

    def tries(self, asked: list[int]) -> int:
        """Return how often the messages were sent again or asked after; `asked`: for each ask, the
        nonce up to which it asked."""
        return max(0, self.transmissions - 1) + len(asked) - bisect_right(asked, self.first)

    def bodies(self) -> list[bytes]:
        """Return the messages again: all of them, the settled ones too."""
        if self.data is not None:
            return [self.data]
        return decode_run(self.payload, 0, len(self.payload))[1]


class Control(NamedTuple):
    """The control blocks of a packet, to be sent anew if it is lost."""

    handled: list[tuple[int, int]]
    acknowledged: int  # the newest packet that it acknowledged
    credit: bool


class Piece(NamedTuple):
    """A part of a large message or of a large reply."""

    owner: Chunk | Reply
    offset: int
    length: int

    def encode(self) -> bytes:
        """Return the FRAGMENT block."""
        owner = self.owner
        data = owner.data
        assert data is not None
        status = owner.status if isinstance(owner, Reply) else PART_OF_MESSAGE
        head = FRAGMENT_HEAD.pack(
            FRAGMENT, status, owner.first, len(data), self.offset, self.length
        )
        return head + data[self.offset : self.offset + self.length]

    @property
    def needless(self) -> bool:
        """Whether this piece has arrived, or its owner as a whole."""
        owner = self.owner
        return owner.received or (owner.arrived is not None and self.offset in owner.arrived)

    def receive_arrival(self) -> bool:
        """Take note that the piece arrived; return whether that made its owner whole."""
        owner = self.owner
        data = owner.data
        assert data is not None
        if owner.arrived is None:
            owner.arrived = set()
        if self.offset not in owner.arrived:
            owner.arrived.add(self.offset)
            owner.arrived_bytes += self.length
        return owner.arrived_bytes == len(data)


class Reply:
    """The reply of a handler, kept for retransmission until it is acknowledged."""

    __slots__ = (
        "arrived",
        "arrived_bytes",
        "data",
        "first",
        "received",
        "sending",
        "status",
        "transmissions",
    )

    def __init__(self, nonce: int, status: int, data: bytes) -> None:
        self.first = nonce
        self.status = status
        self.data = data
        self.received = False
        self.sending = False
        self.transmissions = 0
        self.arrived: set[int] | None = None
        self.arrived_bytes = 0

    def cut(self, room: int) -> list[Piece]:
        """Return the reply in pieces that fit `room` bytes; they are sent again one by one, never
        the whole, so `sending` stays set."""
        step = room - FRAGMENT_HEAD.size
        return [
            Piece(self, offset, min(step, len(self.data) - offset))
            for offset in range(0, len(self.data), step)
        ]
