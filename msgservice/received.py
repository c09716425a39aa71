"""What a handler gets: a message, and what it came with.

One small object for each message, made by the decoder; all that a run has in common is kept once,
in a `RunFacts` that its messages point to. What is not asked for is not computed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from msgservice.errors import MalformedFrame
from msgservice.message import FLAG_REPLAY, Headers, Name
from msgservice.records import Origin

Decode = Callable[[bytes, Headers | None], Any]


class RunFacts(msgspec.Struct, frozen=True, gc=False):
    """What the messages of one run have in common."""

    sequence: int  # of its first message, as the node counts towards this receiver
    subject: str
    node: str
    origin: Origin | None
    flags: int
    decode: Decode


class _Content:
    """The decoded content. A class that no wire can make: see `ReceivedMessage`."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


class ReceivedMessage(msgspec.Struct, array_like=True, gc=False, eq=False):
    """A message as a handler gets it. Not to be changed.

    `body`: bytes. `id`: the name that its sender gave it, or None. `run`: what it has in common
    with the others of its run. `index`: its place among them.
    """

    body: bytes
    _headers: Headers | None = None
    id: Name | None = None
    _key: Name | None = None
    # Not the wire's from here on, though a peer can send elements in their place: the first two
    # are set for every message, and the third counts only where it is a `_Content`.
    run: Any = None
    index: Any = 0
    _content: Any = None

    @property
    def subject(self) -> str:
        """What it was sent to."""
        subject: str = self.run.subject
        return subject

    @property
    def headers(self) -> Headers:
        """Its headers, a dict of str; empty where it has none."""
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
        run: RunFacts = self.run
        return run.node if run.origin is None else run.origin.sender

    @property
    def sequence(self) -> int:
        """The number that its sender gave it, rising; unique with `sender` and its incarnation."""
        run: RunFacts = self.run
        first = run.sequence if run.origin is None else run.origin.sequence
        return first + int(self.index)

    @property
    def position(self) -> int:
        """Where it is in the log of the node that sent it here; rising, unique in that log."""
        run: RunFacts = self.run
        return run.sequence + int(self.index)

    @property
    def origin(self) -> Origin | None:
        """Where its run entered the first node: sender, incarnation (hashed), nodes passed.

        Its `sequence` is that of the first message of the run; this message's is `sequence`.
        """
        run: RunFacts = self.run
        return run.origin

    @property
    def replay(self) -> bool:
        """Whether it was sent again on purpose: by a rewind, or from the dead letters."""
        return bool(self.run.flags & FLAG_REPLAY)

    @property
    def identity(self) -> str:
        """`sender/incarnation/sequence`: the same on every node of a chain (SEMANTICS 7)."""
        origin = self.origin
        incarnation = "" if origin is None else origin.incarnation
        return f"{self.sender}/{incarnation}/{self.sequence}"

    def __repr__(self) -> str:
        return f"<message {self.identity} on {self.subject}, {len(self.body)} bytes>"


_decode = msgspec.msgpack.Decoder(list[ReceivedMessage]).decode


def decode_received(messages: bytes | memoryview | msgspec.Raw) -> list[ReceivedMessage]:
    """Return the messages of a run, without what they came with; `MalformedFrame` if it is none."""
    try:
        return _decode(messages)
    except msgspec.MsgspecError as error:
        raise MalformedFrame(f"messages: {error}") from None
