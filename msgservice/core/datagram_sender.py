"""The sending half of a session: messages get nonces, travel in chunks, and are settled.

Called by `core.datagram_session`. A *chunk* is a run of consecutive messages that shares a
datagram, or one large message that is sent in pieces; it is what is lost and sent again. A message
is open from the moment it is packed until its nonce is handled (or given up), exactly once each.
The token that was handed in with a message comes back in `settled` (empty reply) or `answered` (a
reply, or a failure). Not here: when something is lost (`core.recovery`), how much may leave
(`core.congestion`).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import NamedTuple

from msgservice.core.datagram_wire import (
    FRAGMENT,
    FRAGMENT_HEAD,
    PART_OF_MESSAGE,
    RUN_COUNT_MAX,
    RUN_HEAD,
    decode_run,
    encode_run,
)

Token = object
# Settled chunks at the front are dropped in strides: deleting from a list's front moves all of it.
STRIDE = 256


# A message's reply: its token, its ordinal, REPLY_OK or REPLY_FAILED, the body.
Answer = tuple[Token, int, int, bytes]


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
                 "remaining", "tokens", "transmissions")  # fmt: skip

    def __init__(self, first: int, tokens: list[Token], payload: bytes, data: bytes | None) -> None:
        self.first = first
        self.count = self.remaining = len(tokens)
        self.tokens = tokens
        self.payload = payload
        self.data = data
        self.received = False
        self.transmissions = 0
        self.arrived: set[int] | None = None  # offsets of a large message's pieces
        self.arrived_bytes = 0

    def bodies(self) -> list[bytes]:
        """Return the messages again: all of them, the settled ones too."""
        if self.data is not None:
            return [self.data]
        return decode_run(self.payload, 0, len(self.payload))[1]


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
    """What a handler answered; remembered until it has arrived."""

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


_SETTLED: Token = object()


class SendingHalf:
    """Open messages of one session, in rising order of nonce."""

    __slots__ = (
        "_head",
        "_large",
        "answered",
        "carried",
        "chunks",
        "credit_bytes",
        "credit_messages",
        "firsts",
        "next_nonce",
        "open",
        "ordinal_base",
        "packed_bytes",
        "queue",
        "retransmit",
        "settled",
    )  # fmt: skip

    def __init__(
        self,
        queue: SendQueue,
        settled: list[Token],
        answered: list[Answer],
        *,
        credit_messages: int,
        credit_bytes: int,
    ) -> None:
        self.queue = queue
        self.settled = settled
        self.answered = answered
        self.credit_messages = credit_messages
        self.credit_bytes = credit_bytes
        self.next_nonce = 1
        # The ordinals of the first nonces, then ordinal_base + n is that of nonce n.
        self.carried: list[int] = []
        self.ordinal_base = 0
        self.open = 0
        self.packed_bytes = 0
        self.retransmit: list[Chunk | Piece] = []
        self.firsts: list[int] = []
        self.chunks: list[Chunk] = []
        self._head = 0
        self._large: tuple[Chunk, int] | None = None  # being cut, and how far

    def begin(self, queue: SendQueue) -> None:
        """Send the messages of this queue from now on; none was sent before."""
        assert self.next_nonce == 1, self.next_nonce
        self.queue = queue
        self.ordinal_base = queue.first_ordinal - 1
        self.carried, queue.carried = queue.carried, []

    # --- getters

    def ordinal(self, nonce: int) -> int:
        """Return which message of the address this is, counted from 0 over all sessions."""
        if nonce <= len(self.carried):
            return self.carried[nonce - 1]
        return self.ordinal_base + nonce

    @property
    def floor(self) -> int:
        """The lowest nonce that is open, or the next."""
        chunks, at = self.chunks, self._head
        while at < len(chunks) and not chunks[at].remaining:
            at += 1
        if at == len(chunks):
            return self.next_nonce
        chunk = chunks[at]
        for index, token in enumerate(chunk.tokens):
            if token is not _SETTLED:
                return chunk.first + index
        raise AssertionError("a chunk with open messages has none")

    def is_open(self, nonce: int) -> bool:
        """Whether the nonce was sent and is not settled."""
        at = bisect_right(self.firsts, nonce, self._head) - 1
        if at < self._head:
            return False
        chunk = self.chunks[at]
        index = nonce - chunk.first
        return index < chunk.count and chunk.remaining > 0 and chunk.tokens[index] is not _SETTLED

    def open_messages(self) -> Iterator[tuple[int, int]]:
        """Yield (nonce, transmissions of its chunk) of what is open."""
        for chunk in self.chunks[self._head :]:
            for index, token in enumerate(chunk.tokens):
                if token is not _SETTLED:
                    yield chunk.first + index, chunk.transmissions

    @property
    def cutting(self) -> bool:
        """Whether a large message is being sent in pieces."""
        return self._large is not None

    # --- to the world

    def take_new(self, room: int) -> Chunk | Piece | None:
        """Return the next chunk or piece that fits `room` bytes; None if none, or no credit is
        left."""
        if self._large is not None:
            return self._next_piece(room)
        queue = self.queue
        bodies, head = queue.bodies, queue.head
        waiting = len(bodies) - head
        if not waiting:
            return None
        allowed = self.credit_messages - self.next_nonce + 1
        if allowed < 1:
            if self.open:
                return None
            allowed = 1  # one may always be sent when nothing is open
        used = RUN_HEAD.size + 2 + len(bodies[head])
        if used > room:
            return self._cut_large(room)
        stop = head + min(waiting, allowed, RUN_COUNT_MAX)
        end = head + 1
        while end < stop:
            longer = used + len(bodies[end]) + 2
            if longer > room:
                break
            used = longer
            end += 1
        count = end - head
        size = used - RUN_HEAD.size - 2 * count
        if self.packed_bytes + size > self.credit_bytes and self.open:
            return None
        self.packed_bytes += size
        queue.waiting_bytes -= size
        first = self.next_nonce
        chunk = Chunk(first, queue.tokens[head:end], encode_run(first, bodies[head:end]), None)
        queue.head = end
        if end == len(bodies) or end >= 4096:
            queue.drop_taken()
        self._add(chunk)
        return chunk

    def _add(self, chunk: Chunk) -> None:
        self.firsts.append(chunk.first)
        self.chunks.append(chunk)
        self.next_nonce += chunk.count
        self.open += chunk.count

    def _cut_large(self, room: int) -> Chunk | Piece | None:
        queue = self.queue
        data = queue.bodies[queue.head]
        if self.packed_bytes + len(data) > self.credit_bytes and self.open:
            return None
        self.packed_bytes += len(data)
        queue.waiting_bytes -= len(data)
        chunk = Chunk(self.next_nonce, [queue.tokens[queue.head]], b"", data)
        queue.head += 1
        queue.drop_taken()
        self._add(chunk)
        self._large = (chunk, 0)
        return self._next_piece(room)

    def _next_piece(self, room: int) -> Piece:
        assert self._large is not None
        chunk, offset = self._large
        assert chunk.data is not None
        length = min(room - FRAGMENT_HEAD.size, len(chunk.data) - offset)
        behind = offset + length
        self._large = (chunk, behind) if behind < len(chunk.data) else None
        return Piece(chunk, offset, length)

    def take_lost(self) -> Chunk | Piece | None:
        """Return what is to be sent again next, or None."""
        retransmit = self.retransmit
        while retransmit:
            item = retransmit.pop(0)
            if isinstance(item, Chunk):
                if not item.received and item.remaining:
                    return item
            elif not item.needless:
                return item
        return None

    # --- from the world

    def receive_handled(self, first: int, last: int) -> int:
        """Settle the nonces from `first` to `last` with an empty reply; return how many were
        open."""
        chunks, at = self.chunks, self._head
        before = self.open
        settled = self.settled
        end = len(chunks)
        if at == end or last < chunks[at].first:
            return 0
        if first > chunks[at].first:
            at = max(at, bisect_right(self.firsts, first, at) - 1)
        while at < end:
            chunk = chunks[at]
            low = chunk.first
            if low > last:
                break
            high = low + chunk.count - 1
            if first <= low and high <= last and chunk.remaining == chunk.count:
                settled += chunk.tokens
                self.open -= chunk.count
                chunk.remaining = 0
                chunk.tokens = []
            elif chunk.remaining:
                tokens = chunk.tokens
                for index in range(max(first, low) - low, min(last, high) - low + 1):
                    token = tokens[index]
                    if token is not _SETTLED:
                        settled.append(token)
                        tokens[index] = _SETTLED
                        chunk.remaining -= 1
                        self.open -= 1
            at += 1
        self._drop_settled()
        return before - self.open

    def receive_reply(self, nonce: int, status: int, body: bytes) -> bool:
        """Settle one nonce with its reply; return whether it was open."""
        if len(self.chunks) == 1:
            only = self.chunks[0]
            if only.first == nonce and only.count == 1 and only.remaining:
                # One request and its reply: the usual case of a conversation.
                self.answered.append((only.tokens[0], self.ordinal(nonce), status, body))
                only.remaining = self.open = 0
                only.tokens = []
                self.chunks.clear()
                self.firsts.clear()
                return True
        at = bisect_right(self.firsts, nonce, self._head) - 1
        if at < self._head:
            return False
        chunk = self.chunks[at]
        index = nonce - chunk.first
        if not chunk.remaining or index >= chunk.count or chunk.tokens[index] is _SETTLED:
            return False
        token = chunk.tokens[index]
        self.answered.append((token, self.ordinal(nonce), status, body))
        chunk.tokens[index] = _SETTLED
        chunk.remaining -= 1
        self.open -= 1
        if not chunk.remaining:
            chunk.tokens = []
            self._drop_settled()
        return True

    def _drop_settled(self) -> None:
        chunks, at = self.chunks, self._head
        end = len(chunks)
        while at < end and not chunks[at].remaining:
            at += 1
        if at == end:
            chunks.clear()
            self.firsts.clear()
            at = 0
        elif at >= STRIDE:
            del chunks[:at]
            del self.firsts[:at]
            at = 0
        self._head = at

    def give_up(self, ordinal: int) -> list[Token]:
        """Settle all open messages below `ordinal` without an answer; return their tokens."""
        tokens: list[Token] = []
        chunks = self.chunks
        for at in range(self._head, len(chunks)):
            chunk = chunks[at]
            if self.ordinal(chunk.first) >= ordinal:
                break
            for index in range(chunk.count if chunk.remaining else 0):
                if self.ordinal(chunk.first + index) >= ordinal:
                    break
                token = chunk.tokens[index]
                if token is not _SETTLED:
                    tokens.append(token)
                    chunk.tokens[index] = _SETTLED
                    chunk.remaining -= 1
                    self.open -= 1
            if not chunk.remaining:
                chunk.tokens = []
                chunk.received = True  # what is still to be sent of it is not sent again
                if self._large is not None and self._large[0] is chunk:
                    self._large = None
        self._drop_settled()
        return tokens

    def take_open(self) -> tuple[list[bytes], list[Token], list[int]]:
        """Return what is open, to be sent in another session; this half is of no use afterwards.

        Returns bodies, tokens and ordinals, as `SendQueue.put_back` takes them.
        """
        bodies: list[bytes] = []
        tokens: list[Token] = []
        ordinals: list[int] = []
        for chunk in self.chunks[self._head :]:
            if not chunk.remaining:
                continue
            for nonce, (body, token) in enumerate(
                zip(chunk.bodies(), chunk.tokens, strict=True), chunk.first
            ):
                if token is not _SETTLED:
                    bodies.append(body)
                    tokens.append(token)
                    ordinals.append(self.ordinal(nonce))
        self.chunks.clear()
        self.firsts.clear()
        self._head = self.open = 0
        return bodies, tokens, ordinals + self.carried[self.next_nonce - 1 :]
