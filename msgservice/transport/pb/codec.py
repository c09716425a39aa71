"""Instances of a program's classes as bodies of messages, by jelly: an `ICodec`.

A `pb.Copyable` becomes bytes where it is handed over, and one again where it is handled: nodes
between see a body with a content type, whatever carries it. Only the classes that a codec was made
with are taken, of what comes as of what goes; what else a process has registered for Perspective
Broker counts for nothing here.
"""

from __future__ import annotations

from typing import Any

from twisted.python.reflect import qual
from twisted.spread.jelly import InsecureJelly, jelly, unjelly
from zope.interface import implementer

from msgservice.errors import BadValue, MalformedFrame
from msgservice.interfaces import ICodec
from msgservice.transport.pb import jellied
from msgservice.transport.pb.expressions import Expressions, encode

MEMORY_BYTES = 16 * 1024 * 1024  # of one content; a body of lists takes far more than its length


@implementer(ICodec)
class JellyCodec:
    """Basic values, and instances of `classes`, which are `pb.Copyable`.

    What an instance becomes is what `pb.setUnjellyableForClass` says in this process, else one of
    its own class, without a call of `__init__`. `memory_bytes`: what the content of a body may
    take.
    """

    content_type = "application/x-twisted-jelly"

    def __init__(self, *classes: type, memory_bytes: int = MEMORY_BYTES) -> None:
        self._security = jellied.security(*classes)
        self._tags = frozenset(qual(one).encode() for one in classes)
        self._memory_bytes = memory_bytes

    def encode(self, content: Any) -> bytes:
        """Return the bytes of `content`; `TypeError` where it has none."""
        try:
            said = jellied.flattened(jelly(content, self._security))
            jellied.check(said, self._tags)
            self._give_states(said)
            body = encode(said)
            self.decode(body)  # what cannot be read is not sent
        except (InsecureJelly, BadValue, ValueError, TypeError, RecursionError) as error:
            raise TypeError(f"{type(content).__name__} cannot be jellied: {error}") from None
        return body

    def _give_states(self, value: Any) -> None:
        """Give an instance without attributes a state, where Python says that it has none."""
        if isinstance(value, list):
            is_instance = bool(value) and isinstance(value[0], bytes) and value[0] in self._tags
            if is_instance and value[1:] == [[b"None"]]:
                value[1] = [b"dictionary"]
            for part in value:
                self._give_states(part)

    def _check_states(self, value: Any) -> None:
        if isinstance(value, list):
            if value and isinstance(value[0], bytes) and value[0] in self._tags:
                state = value[1] if len(value) == 2 else None
                if not isinstance(state, list) or state[:1] != [b"dictionary"]:
                    raise BadValue("instance", "has a state that is no dictionary")
            for part in value:
                self._check_states(part)

    def decode(self, body: bytes) -> Any:
        """Return the content; `ValueError` where `body` is none, or of classes not taken here."""
        decoder = Expressions(lambda: self._memory_bytes)
        decoder.feed(body)
        try:
            found = list(decoder.take())
            if len(found) != 1 or decoder.partial:
                raise ValueError("body is no jelly: not one expression")
            jellied.check(found[0], self._tags)
            self._check_states(found[0])
            return unjelly(found[0], self._security)
        except (BadValue, MalformedFrame, InsecureJelly, RecursionError) as error:
            raise ValueError(f"body is no jelly: {error}") from None
        except (TypeError, KeyError, AttributeError, IndexError):
            raise ValueError("body is no jelly: nothing can be made of it") from None
