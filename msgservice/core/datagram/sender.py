"""The sending half of a session: messages get nonces, travel in chunks, and are settled.

Called by `core.datagram.packing` and `core.datagram.session`. A message is open from the moment it
is packed until its nonce is handled (or given up), exactly once each. The token that was handed in
with a message comes back in `settled` (empty reply) or `answered` (a reply, or a failure). Not
here: packets, what is lost of them and how much may leave (`core.datagram.flight`).

Fields without an underscore are read by others, and changed here only.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator

from msgservice.core.datagram.asks import Asks
from msgservice.core.datagram.chunks import Answer, Chunk, Piece, SendQueue, Token
from msgservice.core.datagram.limits import DatagramLimits
from msgservice.core.datagram.reassembly import Reassembly
from msgservice.core.datagram.wire import (
    FRAGMENT_HEAD,
    RUN,
    RUN_COUNT_MAX,
    RUN_HEAD,
    RUN_OF_ONE,
    encode_run,
    lengths_struct,
)

# Settled chunks at the front are dropped in strides: deleting from a list's front moves all of it.
STRIDE = 256

_SETTLED: Token = object()


class SendingHalf:
    """Open messages of one session, in rising order of nonce."""

    __slots__ = (
        "_bases",
        "_head",
        "_large",
        "_limits",
        "_replies_partial",
        "answered",
        "asks",
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
        "settled",
        "spent",
    )  # fmt: skip

    def __init__(
        self,
        queue: SendQueue,
        settled: list[Token],
        answered: list[Answer],
        limits: DatagramLimits,
        *,
        credit_messages: int,
        credit_bytes: int,
    ) -> None:
        self.asks = Asks()
        self.spent = False  # messages were given up: nonces are missing for ever
        self.queue = queue
        self.settled = settled
        self.answered = answered
        self.credit_messages = credit_messages
        self.credit_bytes = credit_bytes
        self.next_nonce = 1
        # A message's ordinal counts it over all sessions with the address; nonces begin anew with
        # each. Messages that an earlier session left get the first nonces; their ordinals:
        self.carried: list[int] = []
        # of a later nonce n it is ordinal_base + n.
        self.ordinal_base = 0
        # Queued messages that are given up get no nonce, and raise the base for those behind them.
        # Each entry: nonces below the first number have the second as their base.
        self._bases: list[tuple[int, int]] = []
        self.open = 0
        self.packed_bytes = 0
        self.firsts: list[int] = []
        self.chunks: list[Chunk] = []
        self._head = 0
        self._large: tuple[Chunk, int] | None = None  # being cut, and how far
        self._limits = limits
        self._replies_partial: Reassembly | None = None

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
        for behind, base in self._bases:
            if nonce < behind:
                return base + nonce
        return self.ordinal_base + nonce

    def skip_waiting(self, count: int) -> None:
        """Take note that so many messages at the head of the queue will get no nonce."""
        sent = self.next_nonce - 1
        if sent > len(self.carried):
            lowest = self.firsts[self._head] if self._head < len(self.firsts) else self.next_nonce
            self._bases = [pair for pair in self._bases if pair[0] > lowest]
            self._bases.append((self.next_nonce, self.ordinal_base))
        del self.carried[sent : sent + count]
        self.ordinal_base += count

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

    def take_only(self, room: int) -> Chunk | None:
        """Return the only message that waits as a chunk, or None where that needs more thought:
        its body has no `room`, or credit is wanting."""
        queue, nonce = self.queue, self.next_nonce
        data = queue.bodies[queue.head]
        size = len(data)
        if (
            size > room
            or nonce > self.credit_messages
            or self.packed_bytes + size > self.credit_bytes
        ):
            return None
        payload = RUN_OF_ONE.pack(RUN, 1, nonce, size) + data
        chunk = Chunk(nonce, queue.tokens[queue.head :], payload, None)
        chunk.transmissions = 1
        self.firsts.append(nonce)
        self.chunks.append(chunk)
        self.next_nonce = nonce + 1
        self.open += 1
        self.packed_bytes += size
        queue.waiting_bytes -= size
        queue.bodies.clear()
        queue.tokens.clear()
        queue.head = 0
        return chunk

    def take_run(self, room: int, bytes_max: float, head_bytes: int) -> list[Chunk]:
        """Return new chunks that fill `room` each, until their datagrams reach `bytes_max`.

        The same as `take_new` for each, in one loop with everything at hand, which takes half the
        time (bench/udp.py, many_256). What needs care is left to that: large messages, the end of
        the queue, and where credit ends. `head_bytes`: of a datagram, besides what is in it.
        """
        queue = self.queue
        bodies, tokens, head = queue.bodies, queue.tokens, queue.head
        # The last datagram may have room for an acknowledgement.
        total = len(bodies) - 1
        nonce, credit = self.next_nonce, self.credit_messages
        packed, packed_max = self.packed_bytes, self.credit_bytes
        room_bodies = room - RUN_HEAD.size
        head_bytes += RUN_HEAD.size
        pack_head, join = RUN_HEAD.pack, b"".join
        spent = 0
        chunks: list[Chunk] = []
        while head < total and spent < bytes_max:
            stop = min(total, head + RUN_COUNT_MAX, head + credit - nonce + 1)
            end = head
            left = room_bodies
            lengths: list[int] = []
            while end < stop:
                size = len(bodies[end])
                left -= size + 2
                if left < 0:
                    break
                lengths.append(size)
                end += 1
            if left >= 0 or end == head:
                break
            size = sum(lengths)
            if packed + size > packed_max:
                break
            packed += size
            count = end - head
            payload = join(
                (
                    pack_head(RUN, count, nonce),
                    lengths_struct(count).pack(*lengths),
                    *bodies[head:end],
                )
            )
            chunk = Chunk(nonce, tokens[head:end], payload, None)
            chunk.transmissions = 1
            chunks.append(chunk)
            spent += head_bytes + size + 2 * count
            nonce += count
            head = end
        if chunks:
            self.firsts += [chunk.first for chunk in chunks]
            self.chunks += chunks
            queue.waiting_bytes -= packed - self.packed_bytes
            queue.head = head
            queue.drop_taken()
            self.packed_bytes = packed
            self.open += nonce - self.next_nonce
            self.next_nonce = nonce
        return chunks

    def take_ask(self) -> bytes:
        """Return the ASK block after all that is open."""
        return self.asks.take(self.floor, self.next_nonce)

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

    @property
    def sent_to(self) -> tuple[int, int]:
        """The progress of sending: the next nonce, and the place in a large message."""
        return self.next_nonce, 0 if self._large is None else self._large[1]

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

    # --- from the world

    def receive_credit(self, messages: int, size: int) -> None:
        """Take what the other side grants; credit never falls."""
        self.credit_messages = max(self.credit_messages, messages)
        self.credit_bytes = max(self.credit_bytes, size)

    def receive_reply_piece(
        self, nonce: int, status: int, total: int, offset: int, data: bytes
    ) -> None:
        """Take a piece of a large reply; ValueError where it contradicts the others."""
        if total > self._limits.message_bytes:
            raise ValueError("total of a fragment")
        if not self.is_open(nonce):
            return  # settled or given up: whatever comes of it is needed no more
        partial = self._replies_partial
        if partial is None:
            limits = self._limits
            partial = Reassembly(limits.congestion_bytes + limits.message_bytes)
            self._replies_partial = partial
        whole = partial.receive(nonce, total, offset, data)
        if whole is not None:
            self.receive_reply(nonce, status, whole)

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
            if not chunk.remaining:
                at = self._behind_settled(at)
                continue
            high = low + chunk.count - 1
            if first <= low and high <= last and chunk.remaining == chunk.count:
                settled += chunk.tokens
                self.open -= chunk.count
                chunk.remaining = 0
                chunk.tokens = []
            else:
                tokens = chunk.tokens
                start, stop = max(first, low) - low, min(last, high) - low + 1
                if tokens[start:stop].count(_SETTLED) == stop - start:
                    stop = start  # said before: nothing is done for each
                for index in range(start, stop):
                    token = tokens[index]
                    if token is not _SETTLED:
                        settled.append(token)
                        tokens[index] = _SETTLED
                        chunk.remaining -= 1
                        self.open -= 1
            at += 1
        self._drop_settled()
        if before != self.open:
            self.asks.progress()
        return before - self.open

    def _behind_settled(self, at: int) -> int:
        """Return the place of the first chunk from `at` on in which something may be open.

        Settled chunks are walked over once, however often their nonces are said to be handled.
        """
        chunks, start = self.chunks, at
        end = len(chunks)
        while at < end and not chunks[at].remaining:
            at += chunks[at].step
        while start < at:
            chunk = chunks[start]
            step, chunk.step = chunk.step, at - start
            start += step
        return at

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
                self.asks.progress()
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
        self.asks.progress()
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

    def exhausted(self, ordinal: int, retries: int) -> bool:
        """Whether `give_up` would find anything."""
        asked = self.asks.asked
        for chunk in self.chunks[self._head :]:
            if self.ordinal(chunk.first) >= ordinal:
                break
            if chunk.remaining and chunk.tries(asked) >= retries:
                for nonce, token in enumerate(chunk.tokens, chunk.first):
                    if token is not _SETTLED and self.ordinal(nonce) < ordinal:
                        return True
        return False

    def give_up(self, ordinal: int, retries: int) -> list[Token]:
        """Settle the messages below `ordinal` that were retried often enough; return their tokens.

        `retries`: retransmissions and asks that a message must have had.
        """
        asked = self.asks.asked
        tokens: list[Token] = []
        chunks = self.chunks
        for at in range(self._head, len(chunks)):
            chunk = chunks[at]
            if self.ordinal(chunk.first) >= ordinal:
                break
            if chunk.tries(asked) < retries:
                continue
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
        if tokens:
            self.spent = True
        return tokens

    def take_open(self) -> tuple[list[bytes], list[Token], list[int]]:
        """Return the open messages, for another session; this half is of no use afterwards.

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
