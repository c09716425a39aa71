"""Handlers with a stored inbox: what they write and the mark commit together (SEMANTICS 25).

    handle(message, transaction)   writes at once; all runs that wait share a transaction
    handle(message)                computes, now or in its own time, and returns its writes:
                                   None, a callable that takes the transaction, or a list of
                                   statements, each `sql` or `(sql, parameters)`;
                                   with `threads` it computes on one, and may block

A run is acknowledged after the commit that holds it. The work of a lane is handed in as a whole;
when a message of it fails, a gate keeps what comes behind from being handled before it.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.python.failure import Failure

from msgservice.core.inbox import Arrival
from msgservice.errors import LogError, LogFailed, Reject
from msgservice.limits import TRANSACTION_MESSAGES_MAX
from msgservice.message import Action
from msgservice.receiver.handling.engine import SLICE_SECONDS, Handler, Handling
from msgservice.receiver.handling.threads import HandlerThreads
from msgservice.receiver.handling.work import HandlerCall, Lane, Work
from msgservice.records import Rejected, Resume
from msgservice.waiters import followed

UNAVAILABLE_MS = 1000  # what could not be committed is sent again after this

Item = tuple[int, Any]


class Handled(Protocol):
    """The result of `StoredInbox.run`: so many are committed; the next one raised `error`."""

    @property
    def count(self) -> int:
        """The number of items that are committed."""

    @property
    def error(self) -> BaseException | None:
        """The exception that was raised, or None."""


class Gate(Protocol):
    """A gate that an inbox shuts, and is told by when to stop: see `StoredInbox.run`."""

    is_shut: bool

    @property
    def is_over(self) -> bool:
        """Whether the slice of the turn has passed."""

    def begin(self, until: float | None) -> float:
        """A transaction comes to its run; return when the slice is over."""


class StoredInbox(Protocol):
    """A stored inbox, as far as it is needed here (`receiver.inbox.file.InboxFile`)."""

    inbox: str

    def open(self) -> Deferred[str]:
        """Fire with the inbox's id."""

    def close(self) -> Deferred[None]:
        """Fire when it is closed."""

    def resume(self, sender: str, incarnation: str) -> Resume:
        """Return *now* what was taken."""

    def rejected(self, sender: str, incarnation: str) -> Sequence[Rejected]:
        """Return *now* what was rejected and may come again."""

    def run(
        self,
        sender: str,
        incarnation: str,
        items: Sequence[Item],
        handle: Callable[[Any, Any], object],
        *,
        after: int,
        first: int | None = None,
        arrival: Arrival | None = None,
        floor: int = 0,
        gate: Gate | None = None,
    ) -> Deferred[Any]:
        """Handle and commit; fire with `Handled`.

        Where a message fails, or the commit does, `gate` is shut before anything else is handled.
        """


class _Behind(Exception):
    """A message that waits: for one before it that failed, for the next turn or start.

    Or it is of an earlier incarnation of its node.
    """


class _Gate:
    """Shut by the inbox when a message of a lane has failed: what comes behind is not handled.

    Nor is anything once the receiver stops, or the lane is over, or the slice of the turn.
    """

    __slots__ = ("handler", "handling", "is_shut", "lane", "until")

    def __init__(self, handler: Callable[..., Any], handling: Handling, lane: Lane) -> None:
        self.handler = handler
        self.handling = handling
        self.lane = lane
        self.is_shut = False
        self.until = math.inf

    @property
    def is_over(self) -> bool:
        """See `Gate`."""
        return self.handling.seconds() >= self.until

    def begin(self, until: float | None) -> float:
        """See `Gate`."""
        self.until = self.handling.seconds() + SLICE_SECONDS if until is None else until
        return self.until

    def __call__(self, *arguments: Any) -> Any:
        if self.is_shut or self.handling.is_stopping or self.lane.is_over or self.is_over:
            raise _Behind
        return self.handler(*arguments)


class StoredHandling(Handling):
    """A `Handling` with a stored inbox, which is open while handlers run.

    `failed(error)` is called when the inbox can no longer be written. Raises `ValueError` for a
    handler that wants both a thread and the transaction.
    """

    def __init__(
        self,
        handler: Handler,
        *,
        inbox: StoredInbox,
        failed: Callable[[LogFailed], None],
        batch: bool,
        threads: int = 0,
        **more: Any,
    ) -> None:
        super().__init__(handler, batch=batch, **more)
        self.inbox = inbox
        self._inbox_failed = failed
        self._threads = HandlerThreads(threads, self._name, more["clock"]) if threads else None
        takes = takes_transaction(handler)
        if takes and threads:
            raise ValueError(
                "with threads and inbox a handler gets no transaction: SQLite has one writer, so"
                " handlers that block would wait for each other; take the message only, and"
                " return the writes"
            )
        self._step = self._step_transaction if takes else self._step_computed

    def stop_threads(self) -> None:
        """See `Handling`."""
        if self._threads is not None:
            self._threads.stop()

    # --- handlers that write at once

    def _step_transaction(self, lane: Lane, work: Work) -> bool:
        # Of a lane with order no more than a transaction takes: the rest is stepped when these
        # have ended, as what arrives meanwhile is.
        room = TRANSACTION_MESSAGES_MAX
        works: list[tuple[Work, int, int]] = []
        for each in lane.queue:
            if each.at < each.stop:
                works.append((each, each.at, each.stop))
                room -= 1 if self._batch else each.stop - each.at
            if lane.key is None or room <= 0:
                break
        gate = _Gate(self._handler, self, lane)
        for each, first, stop in works:
            messages = each.messages[first:stop]
            base = each.base
            items: list[Item] = (
                [(base + stop - 1, messages)]
                if self._batch
                else list(enumerate(messages, base + first))
            )
            call = HandlerCall(lane, each, first, stop)
            self._started(call)
            self._run(each, first, items, gate, gate).addBoth(self._committed, call)
        return lane.key is None

    def _committed(self, result: Any, call: HandlerCall) -> None:
        length = call.stop - call.first
        try:
            if isinstance(result, Failure):
                self._ended(call, 0, result, length)
                return
            unit = length if self._batch else 1
            failure = None if result.error is None else Failure(result.error)
            self._ended(call, result.count * unit, failure, unit)
        except Exception:  # a Deferred would swallow it
            self._end_failed(call)

    def _ended(self, call: HandlerCall, done: int, failure: Failure | None, unit: int) -> None:
        if call.lane.key is not None and not call.work.open:
            self._forget(call)  # given up, when one before it failed
        elif failure is not None and failure.check(_Behind):
            work, at = call.work, call.first + done
            if call.lane.key is None:
                if done:
                    self._taken(work, call.first, at)
                call.lane.queue.append(work.node.cut(work, at, call.stop))
            elif done:
                work.at = at
            self._forget(call)
        else:
            super()._ended(call, done, failure, unit)

    # --- handlers that compute first

    def _step_computed(self, lane: Lane, work: Work) -> bool:
        first = work.at
        stop = work.stop if self._batch else first + 1
        messages = work.messages[first:stop]
        unit = messages if self._batch else messages[0]
        computing: Deferred[Any]
        if self._threads is None:
            computing = followed(maybeDeferred(self._handler, unit))
        else:
            # It may wait for a thread that is free, and be over before.
            computing = self._threads.result_of(_Gate(self._handler, self, lane), unit)
        # What was rejected before there was a transaction gets one as well, to be kept in.
        computing.addErrback(_rejection_of).addCallback(self._store, work, first, stop)
        return self._wait_for(lane, work, first, stop, computing)

    def _store(self, writes: Any, work: Work, first: int, stop: int) -> Deferred[None]:
        items = [(work.base + stop - 1, writes)]

        def check(handled: Handled) -> None:
            if handled.error is not None:
                raise handled.error

        return self._run(work, first, items, write).addCallback(check)

    # --- both

    def _run(
        self,
        work: Work,
        first: int,
        items: list[Item],
        handle: Callable[[Any, Any], object],
        gate: Gate | None = None,
    ) -> Deferred[Any]:
        transfer, base = work.arrival.transfer, work.base
        after = base + first - 1
        if first == 0 and transfer.after is not None:
            after = transfer.after
        node = work.node
        return self.inbox.run(
            node.name,
            node.incarnation,
            items,
            handle,
            after=after,
            first=base + first,
            arrival=work.arrival,
            floor=transfer.floor,
            gate=gate,
        )

    def _judge(self, failure: Failure, work: Work, first: int) -> tuple[Action, int, str]:
        error = failure.value
        if not isinstance(error, LogError):
            return super()._judge(failure, work, first)
        if isinstance(error, LogFailed):
            self._inbox_failed(error)
        self._logger.error(
            "receiver {receiver} cannot commit to its inbox: {error}",
            receiver=self._name,
            error=str(error),
        )
        return Action.LATER, UNAVAILABLE_MS, f"inbox: {error}"


def takes_transaction(handler: Callable[..., Any]) -> bool:
    """Return whether a handler takes `(message, transaction)`, or only the message.

    Raises `TypeError` for a coroutine function that wants a transaction: none stays open while
    it waits.
    """
    try:
        inspect.signature(handler).bind(None, None)
    except TypeError:
        return False
    except ValueError:
        return True  # a builtin that does not say: it is plain in any case
    if inspect.iscoroutinefunction(handler):
        raise TypeError(
            "a coroutine function gets no transaction: take the message only, and return the writes"
        )
    return True


def _rejection_of(failure: Failure) -> Any:
    return failure.value if failure.check(Reject) else failure


def write(writes: Any, transaction: Any) -> object:
    """Write the result of a handler, or raise the `Reject` that it raised."""
    if isinstance(writes, Reject):
        raise writes
    if writes is None:
        return None
    if callable(writes):
        return writes(transaction)
    if not isinstance(writes, list | tuple):
        raise TypeError(
            "a handler with an inbox returns None, a callable or a list of statements,"
            f" not {type(writes).__name__}"
        )
    for statement in writes:
        if isinstance(statement, str):
            transaction.execute(statement)
        else:
            sql, parameters = statement
            transaction.execute(sql, parameters)
    return None
