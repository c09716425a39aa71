"""The state of an endpoint for each peer, and what it tells its driver: values, no decisions.

Of a `Peer`, `core.datagram.table` changes the sessions, `core.datagram.handshake` the opening,
`core.datagram.patience` the marks, and `core.datagram.endpoint` the rest.
"""

from __future__ import annotations

import math
from collections import deque
from typing import NamedTuple

from msgservice.core.datagram.chunks import Answer, SendQueue, TooLarge
from msgservice.core.datagram.cookie import Address, PeerKey
from msgservice.core.datagram.receiver import Delivery
from msgservice.core.datagram.recovery import RTO_INITIAL
from msgservice.core.datagram.session import Session


class Mark(NamedTuple):
    """The age of queued messages: all below this ordinal were handed in by `at`."""

    ordinal: int
    at: float


class Opening:
    """A handshake that this side began."""

    __slots__ = (
        "at", "began_at", "cookie", "identifier", "random", "tries", "tries_cookie", "wait",
    )  # fmt: skip

    def __init__(self, identifier: int, random: bytes, now: float) -> None:
        self.identifier = identifier
        self.random = random
        self.cookie = b""
        self.tries = 0
        self.tries_cookie = 0
        self.at = now
        self.began_at = now
        self.wait = RTO_INITIAL  # before an unanswered one is repeated


class Peer:
    """The state of one peer: of an address, or of a key at an address."""

    __slots__ = ("address", "candidate", "due", "failed", "heard_at", "key", "marks",
                 "message_bytes", "opening", "queue", "session", "tried_at")  # fmt: skip

    def __init__(self, key: PeerKey, message_bytes: int, retries: int, now: float) -> None:
        self.key = key
        self.address: Address = key[:2]
        # The largest message that may be queued: with a session, the lesser of both sides'.
        self.message_bytes = message_bytes
        self.queue = SendQueue()
        self.session: Session | None = None
        self.candidate: Session | None = None  # opened by a peer that may have lost the other
        self.opening: Opening | None = None
        self.marks: list[Mark] = []
        # When the last handshakes, retransmissions and asks went out.
        self.tried_at: deque[float] = deque(maxlen=retries)
        self.failed = False
        self.heard_at = now
        self.due = math.inf

    @property
    def first_unsettled(self) -> int:
        """The ordinal of the first message that is open or waits, or of the next one."""
        session = self.session
        if session is not None and session.sending.open:
            return session.sending.ordinal(session.sending.floor)
        return self.queue.first_waiting

    @property
    def idle(self) -> bool:
        """Whether nothing is open or waiting here."""
        return not (
            len(self.queue)
            or self.opening is not None
            or (self.session is not None and self.session.sending.open)
        )


class Effects(NamedTuple):
    """The effects of an endpoint: what its driver is to send and to tell."""

    deliveries: list[tuple[Session, list[Delivery]]]  # new messages: handle them, then say so
    settled: list[object]  # tokens of messages that were handled with an empty reply
    answers: list[Answer]  # replies
    failures: list[tuple[Address, list[object], bool]]  # given up; whether the address is new in it
    too_large: list[TooLarge]  # never sent: more than the other side takes
    events: list[tuple[str, Session]]  # ("opened" or "lost", session)


class Gathered:
    """The effects of an endpoint until its driver takes them; its parts add what is theirs."""

    __slots__ = Effects._fields

    def __init__(self) -> None:
        # Sessions hold on to these two.
        self.settled: list[object] = []
        self.answers: list[Answer] = []
        self.deliveries: list[tuple[Session, list[Delivery]]] = []
        self.failures: list[tuple[Address, list[object], bool]] = []
        self.too_large: list[TooLarge] = []
        self.events: list[tuple[str, Session]] = []

    def take(self) -> Effects:
        """Return the effects since the last call, each exactly once."""
        effects = Effects(
            self.deliveries,
            self.settled[:],
            self.answers[:],
            self.failures,
            self.too_large,
            self.events,
        )
        self.settled.clear()
        self.answers.clear()
        self.deliveries, self.failures = [], []
        self.too_large, self.events = [], []
        return effects


class Waiting(NamedTuple):
    """A message that is not settled; `nonce` is the one it will have, before it was first sent."""

    address: Address
    nonce: int
    attempts: int
    next_due: float | None


class Budget:
    """At most `rate` in a second, a second's worth at once; `next_at`: when one is allowed
    again."""

    __slots__ = ("_at", "_rate", "_tokens", "next_at")

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._tokens = float(rate)
        self._at = 0.0
        self.next_at = 0.0

    def spend(self, now: float) -> bool:
        """Return whether one more is allowed."""
        self._tokens = min(self._rate, self._tokens + (now - self._at) * self._rate)
        self._at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        if self._tokens < 1:
            self.next_at = now + (1 - self._tokens) / self._rate
        return True
