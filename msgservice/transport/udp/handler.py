"""The handling of messages that came: who handles them, and what is said of each.

What the handler returns or raises is the answer of one message; all that were handled without one
are told in few ranges. Not here: how answers travel (`core.datagram.endpoint`), and what the other
side's answers settle (`udp.peer`).
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from inspect import iscoroutine
from typing import Any, Protocol, cast

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from msgservice.core.datagram.cookie import Address
from msgservice.core.datagram.endpoint import Endpoint
from msgservice.core.datagram.receiver import Delivery
from msgservice.core.datagram.session import Session
from msgservice.core.datagram.wire import REPLY_FAILED, REPLY_OK
from msgservice.errors import MessageTooLarge
from msgservice.waiters import followed

Result = bytes | None | Deferred[bytes | None] | Coroutine[Any, Any, bytes | None]

# A handler's error is told in so many bytes at most: it is for people, not a channel.
REASON_BYTES_MAX = 1000


class Handler(Protocol):
    """The one who handles messages: a `DatagramPeer`."""

    def handle_message(self, data: bytes, address: Address) -> Result:
        """Handle a message, and return its reply: bytes, None for an empty one, or a Deferred or
        coroutine of either. What it raises is told to the sender."""


class Handling:
    """The handling half of a `DatagramPeer`: runs the handler, and returns replies.

    `answered` is called where an answer came outside a turn: let it leave.
    """

    _log = Logger()

    def __init__(self, endpoint: Endpoint, handler: Handler, answered: Callable[[], None]) -> None:
        self._endpoint = endpoint
        self._handler = handler
        self._answered = answered

    def deliver(self, session: Session, parts: list[Delivery]) -> None:
        """Let the handler have all that came in this turn; say what it handled, in few ranges.

        What comes after a reply with which too many are unread is held back.
        """
        handle, address = self._handler.handle_message, session.address
        receiving = session.receiving
        unread_max = receiving.reply_bytes_max
        start = last = 0
        handled_size = 0
        for at, (first, bodies, size) in enumerate(parts):
            if receiving.reply_bytes > unread_max:
                self._endpoint.hold(session, parts[at:])
                break
            answered: list[int] = []
            nonce = first
            for body in bodies:
                try:
                    result = handle(body, address)
                except BaseException:  # whatever a handler raises is its answer
                    result = cast("Any", Failure())
                if result is not None:
                    self._take_result(result, session, nonce, len(body))
                    answered.append(nonce)
                    if receiving.reply_bytes > unread_max:
                        nonce += 1
                        break
                nonce += 1
            if answered:
                count = nonce - first
                rest = bodies[count:]
                if rest:
                    self._endpoint.hold(session, [(nonce, rest, sum(map(len, rest)))])
                    bodies = bodies[:count]
                self._handle_others(session, first, bodies, answered)
            elif first == last + 1 and last:
                last = nonce - 1
                handled_size += size
            else:
                if last:
                    self._endpoint.handle(session, start, last, handled_size)
                start, last, handled_size = first, nonce - 1, size
        if last:
            self._endpoint.handle(session, start, last, handled_size)

    def _handle_others(
        self, session: Session, first: int, bodies: list[bytes], answered: list[int]
    ) -> None:
        """Settle those of a run that were handled with an empty reply: all between `answered`."""
        start = first
        for nonce in answered:
            if start < nonce:
                self._handle_part(session, first, bodies, start, nonce - 1)
            start = nonce + 1
        last = first + len(bodies) - 1
        if start <= last:
            self._handle_part(session, first, bodies, start, last)

    def _handle_part(
        self, session: Session, first: int, bodies: list[bytes], start: int, last: int
    ) -> None:
        size = sum(map(len, bodies[start - first : last - first + 1]))
        self._endpoint.handle(session, start, last, size)

    def _take_result(self, result: Any, session: Session, nonce: int, size: int) -> None:
        if type(result) is bytes:
            self._reply(result, session, nonce, size)
        elif isinstance(result, Deferred) or iscoroutine(result):
            # The same Deferred may be the reply to other messages too.
            d = followed(result) if isinstance(result, Deferred) else Deferred.fromCoroutine(result)
            d.addBoth(self._later_result, session, nonce, size)
            d.addErrback(
                lambda f: self._log.failure("answer to {address}", f, address=session.address)
            )
        else:
            self._reply(result, session, nonce, size)

    def _later_result(self, result: Any, session: Session, nonce: int, size: int) -> None:
        self._reply(result, session, nonce, size)
        self._answered()

    def _reply(self, result: Any, session: Session, nonce: int, size: int) -> None:
        status = REPLY_OK
        if result is None or (type(result) is bytes and not result):
            self._endpoint.handle(session, nonce, nonce, size)
            return
        if isinstance(result, Failure):
            self._log.failure(
                "handling message {nonce} of {address}",
                result,
                nonce=nonce,
                address=session.address,
            )
            status = REPLY_FAILED
            result = (
                f"{result.type.__name__ if result.type else 'error'}: {result.getErrorMessage()}"
            )
        elif not isinstance(result, bytes | bytearray | memoryview):
            status = REPLY_FAILED
            result = f"TypeError: the handler returned {type(result).__name__}, not bytes"
        elif len(result) > session.message_bytes:
            status = REPLY_FAILED
            result = str(MessageTooLarge(len(result), session.message_bytes))
        if isinstance(result, str):
            result = result.encode(errors="replace")
            result = result[: min(REASON_BYTES_MAX, session.message_bytes)]
        self._endpoint.reply(session, nonce, status, bytes(result), size)
