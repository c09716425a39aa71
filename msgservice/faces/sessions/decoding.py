"""Payloads to items: in the order of their connection, large ones on a thread, all within a budget.

Decoding costs memory beyond the payload's own, and time; what is handled is in memory, whether its
connection is open or not. So both over all connections have a limit, and whoever meets it is not
read from until there is room.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure

from msgservice.faces.sessions.content.codec import ISessionCodec
from msgservice.faces.sessions.envelope import Item, Message
from msgservice.faces.sessions.errors import BadPayload
from msgservice.faces.sessions.limits import SessionLimits


class Budget:
    """The bytes of a listener that are being decoded or handled, and who waits.

    Those of connections that have ended count too.
    """

    def __init__(self, limits: SessionLimits) -> None:
        self.used = 0
        self.limit = limits.decoding_bytes
        self._waiting: deque[Callable[[], None]] = deque()

    @property
    def is_spent(self) -> bool:
        """Whether nothing more is to begin."""
        return self.used >= self.limit

    def wait(self, go_on: Callable[[], None]) -> None:
        """Call `go_on` when there is room, in turn."""
        self._waiting.append(go_on)

    def give_back(self, size: int) -> None:
        """Count bytes off that are decoded."""
        self.used -= size
        while self._waiting and not self.is_spent:
            self._waiting.popleft()()


class Decoding:
    """The payloads of one connection on their way to items.

    Args:
        reactor: for threads.
        give: called with each item and the size of its payload, in order.
        fail: called once, with why nothing more is decoded.
        changed: called when `is_busy` may have changed.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        *,
        codec: ISessionCodec,
        budget: Budget,
        limits: SessionLimits,
        give: Callable[[Item, int], None],
        fail: Callable[[str], None],
        changed: Callable[[], None],
    ) -> None:
        self._reactor = reactor
        self._codec = codec
        self._budget = budget
        self._thread_bytes = limits.thread_bytes
        self._give, self._fail, self._changed = give, fail, changed
        self._waiting: deque[bytes] = deque()
        self._last: tuple[Message | None, str] | None = None  # and why nothing is behind it
        self._is_running = False
        self.waits_for_budget = False  # and so for handlers that run
        self._is_over = False
        self.free_bytes = -1  # what is no larger does not wait for the budget, and is not counted

    @property
    def is_busy(self) -> bool:
        """Whether payloads wait or are on a thread, so that no more should be read."""
        return self._is_running or bool(self._waiting)

    @property
    def has_payloads(self) -> bool:
        """Whether payloads wait or are on a thread, so that items are to come."""
        is_running = self._is_running and not self.waits_for_budget
        return bool(self._waiting) or is_running or self._last is not None

    @property
    def is_ending(self) -> bool:
        """Whether nothing is decoded any more behind what waits."""
        return self._last is not None

    def feed(self, payloads: list[bytes], last: tuple[Message | None, str] | None = None) -> None:
        """Decode what has come, as far as the budget goes.

        `last`: a message that stands behind all, if there is one, and why it is the last.
        """
        self._waiting += payloads
        self._last = last
        if not self._is_running:
            self._run()

    def stop(self) -> None:
        """Decode nothing more."""
        self._is_over = True
        self._waiting.clear()
        self._last = None

    def _run(self) -> None:
        self._is_running, self.waits_for_budget = True, False
        waiting, decode, give = self._waiting, self._codec.decode, self._give
        budget, thread_bytes, limit = self._budget, self._thread_bytes, self._budget.limit
        while True:
            if budget.used >= limit and not self._is_free:
                # And nothing more is read, though nothing waits.
                self.waits_for_budget = True
                budget.wait(self._run)
                self._changed()
                return
            if not waiting:
                self._end()
                break
            payload = waiting.popleft()
            size = len(payload)
            if size > thread_bytes:
                counted = size if size > self.free_bytes else 0
                budget.used += counted
                reactor = self._reactor
                pool = reactor.getThreadPool()
                d: Deferred[Any] = deferToThreadPool(reactor, pool, decode, payload)
                d.addCallback(self._decoded, size)
                d.addBoth(self._go_on, counted)
                return
            try:
                give(decode(payload), size)
            except BaseException as error:  # it makes and runs what is the program's
                self._not_decoded(error)
                break
        self._is_running = False
        self._changed()

    def _end(self) -> None:
        """Give the last, if nothing else is to come, and say why it is that."""
        if self._last is None:
            return
        message, reason = self._last
        try:
            if message is not None:
                self._give(message, 0)
        except BaseException as error:
            self._not_decoded(error)
        self.stop()
        self._fail(reason)

    def _decoded(self, item: Item, size: int) -> None:
        if not self._is_over:
            self._give(item, size)

    def _not_decoded(self, error: BaseException | None) -> None:
        if not isinstance(error, BadPayload):
            self._log.failure("what came could not be taken", Failure(error))
        if not self._is_over:
            self.stop()
            self._fail(str(error) if isinstance(error, BadPayload) else "a fault of our own")

    @property
    def _is_free(self) -> bool:
        """Whether what is next may be decoded though the budget is spent."""
        return (len(self._waiting[0]) if self._waiting else 0) <= self.free_bytes

    def _go_on(self, result: object, counted: int) -> None:
        if isinstance(result, Failure):
            self._not_decoded(result.value)
        self._is_running = False
        self._budget.give_back(counted)
        if not self._is_running:
            self._run()
