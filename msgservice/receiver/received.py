"""The message that a handler gets, and what it came with.

One small object for each message, made whole by the decoder; all that a run has in common is kept
once, in a `RunFacts` that its messages point to. What is not asked for is not computed.

A message gets its `run` and its `number` from the decoder too, which asks for defaults: what the
run has in common from a context variable, the number from a counter. Setting both from a loop
over the messages costs 20 ns more for each of them, a tenth of all (bench/handling.py).
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from itertools import count
from typing import Any, cast

import msgspec

from msgservice.errors import MalformedFrame
from msgservice.message import FLAG_REPLAY, FLAG_RETAINED, UNDECODABLE, Headers, Name
from msgservice.records import Origin

Decode = Callable[[bytes, Headers | None], Any]


class RunFacts:
    """The facts that the messages of one run have in common.

    `sequence`: of its first message, as the node counts towards this receiver. `base`: the
    `number` of its first message. `ttl`: ms that were left of its time when it came, or None;
    `expires_at`: when that is over, ms by the wall clock of this machine.
    `attempts`, `stored_at` (ms): what its node says, or 0.
    """

    __slots__ = (
        "attempts",
        "base",
        "decode",
        "expires_at",
        "flags",
        "node",
        "origin",
        "sequence",
        "stored_at",
        "subject",
        "ttl",
    )

    def __init__(
        self,
        sequence: int,
        subject: str,
        node: str,
        origin: Origin | None,
        flags: int,
        decode: Decode,
        ttl: int | None = None,
        expires_at: int | None = None,
    ) -> None:
        self.ttl, self.expires_at = ttl, expires_at
        self.attempts = self.stored_at = 0
        self.sequence, self.subject, self.node = sequence, subject, node
        self.origin, self.flags, self.decode = origin, flags, decode
        self.base = 0


class _Number(int):
    """The type of `ReceivedMessage.number`: one that no wire can make."""


_run_being_decoded: ContextVar[RunFacts] = ContextVar("run")
_next_number = cast("Callable[[], _Number]", count().__next__)


class _Content:
    """The decoded content. A class that no wire can make: see `ReceivedMessage`."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


class ReceivedMessage(msgspec.Struct, array_like=True, gc=False, eq=False):
    """A message as a handler gets it. Not to be changed.

    `body`: bytes. `id`: the name that its sender gave it, or None. `run`: what it has in common
    with the others of its run. `number`: rises by one with each message that was decoded.
    """

    body: bytes
    _headers: Headers | None = None
    id: Name | None = None
    _key: Name | None = None
    # Not the wire's from here on, though a peer can send elements in their place: then the
    # decoder asks `_instead`, and a content counts only where it is a `_Content`.
    run: RunFacts = msgspec.field(default_factory=_run_being_decoded.get)
    number: _Number = msgspec.field(default_factory=_next_number)
    _content: Any = None

    @property
    def subject(self) -> str:
        """The subject that the message was sent to."""
        return self.run.subject

    @property
    def index(self) -> int:
        """The index of the message in its run."""
        return self.number - self.run.base

    @property
    def headers(self) -> Headers:
        """The headers of the message, a dict of str; empty where it has none."""
        return {} if self._headers is None else self._headers

    @property
    def content(self) -> Any:
        """The body, decoded as `headers["content-type"]` says; bytes where it says nothing.

        Decoded when first asked for. Raises `ValueError` where the body is not what it says.
        """
        content = self._content
        if type(content) is not _Content:
            self._content = content = _Content(self.run.decode(self.body, self._headers))
        return content.value

    @property
    def sender(self) -> str:
        """The name of the client that sent it first, however many nodes ago."""
        run = self.run
        return run.node if run.origin is None else run.origin.sender

    @property
    def sequence(self) -> int:
        """The number that its sender gave it, rising; unique with `sender` and its incarnation."""
        run = self.run
        first = run.sequence if run.origin is None else run.origin.sequence
        return first + self.index

    @property
    def position(self) -> int:
        """The position in the log of the node that sent it here; rising, unique in that log."""
        run = self.run
        return run.sequence + self.index

    @property
    def origin(self) -> Origin | None:
        """The origin of its run: first sender, incarnation (hashed), nodes passed.

        Its `sequence` is that of the first message of the run; this message's is `sequence`.
        """
        run = self.run
        return run.origin

    @property
    def replay(self) -> bool:
        """Whether it was sent again on purpose: by a rewind, or from the dead letters."""
        return bool(self.run.flags & FLAG_REPLAY)

    @property
    def retained(self) -> bool:
        """Whether it is what was retained of its subject when this receiver joined."""
        return bool(self.run.flags & FLAG_RETAINED)

    @property
    def ttl(self) -> float | None:
        """The seconds that were left of its `ttl` when it came here; None: it never expires."""
        left = self.run.ttl
        return None if left is None else left / 1000

    @property
    def expires_at(self) -> float | None:
        """The time when its `ttl` is over, in seconds since the epoch; None: it never is.

        By the wall clock of this machine as it was when the message came: `ttl` behind that. So no
        clocks have to agree; what the message was under way is not counted.
        """
        at = self.run.expires_at
        return None if at is None else at / 1000

    @property
    def attempts(self) -> int:
        """The number of attempts at it that have failed before this one, as its node counts them.

        What a node does not call an attempt is not among them: that a message comes again is not.
        """
        run = self.run
        return run.attempts

    @property
    def stored_at(self) -> float | None:
        """The time when the node that sent it here had stored it, in seconds since the epoch.

        By the wall clock of that node. None: the node says nothing of it.
        """
        at = self.run.stored_at
        return at / 1000 if at else None

    @property
    def identity(self) -> str:
        """`sender/incarnation/sequence`: the same on every node of a chain (SEMANTICS 7)."""
        origin = self.origin
        incarnation = "" if origin is None else origin.incarnation
        return f"{self.sender}/{incarnation}/{self.sequence}"

    def __repr__(self) -> str:
        return f"<message {self.identity} on {self.subject}, {len(self.body)} bytes>"


def _instead(kind: type, value: object) -> object:
    """Return what belongs where the wire had an element that is not its to give."""
    return _run_being_decoded.get() if kind is RunFacts else _Number(_next_number())


_decode = msgspec.msgpack.Decoder(list[ReceivedMessage], dec_hook=_instead).decode


def decode_received(
    messages: bytes | memoryview | msgspec.Raw, run: RunFacts
) -> list[ReceivedMessage]:
    """Return the messages of a run; `MalformedFrame` if it is none."""
    _run_being_decoded.set(run)
    run.base = _next_number() + 1
    try:
        return _decode(messages)
    except UNDECODABLE as error:
        raise MalformedFrame(f"messages: {error}") from None
