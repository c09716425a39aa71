"""Receipts whose waits are futures: what `Client.send` and `Client.send_many` give."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any, TypeVar

from twisted.internet.defer import Deferred

from msgservice.aio.loop import future_of
from msgservice.client import receipt as twisted
from msgservice.client.promise import PromiseCounts, PromiseOutcome
from msgservice.client.receipt import AnyReceipt, AnyReceipts, AskedRun, Change, news_of
from msgservice.message import Status

T = TypeVar("T")


class Receipt(AnyReceipt, eq=False, gc=False):
    """One message that was handed over: where it is, and what becomes of it.

    Every call that waits returns a future of its own; cancelling it ends that wait and nothing
    else. Keep the receipt for as long as you want to ask.
    """

    @property
    def accepted(self) -> asyncio.Future[Receipt]:
        """Done with this receipt when the node has the message on disk.

        Without `outbox=` that is already so. Fails with `Refused`, or `ClientClosed`.
        """
        return _future(self._twisted().accepted, lambda _: self)

    def acknowledged(self, name: str | None = None) -> asyncio.Future[None]:
        """Done when the receiver `name`, or everyone it is for, has acknowledged.

        Fails as `acknowledged` of Twisted's receipt does: with `NotDelivered` as soon as one of
        them has another final state, with `NoReceiver` if it is for nobody.
        """
        return _future(self._twisted().acknowledged(name), _same)

    def settled(self) -> asyncio.Future[dict[str, Status]]:
        """Done with `statuses` once all are final, or can no longer become known. Never fails."""
        return _future(self._twisted().settled(), _same)

    def promised(self) -> asyncio.Future[PromiseOutcome]:
        """Done with the outcome of its promise, once that is decided: kept, or broken.

        Fails with `ValueError` where it was sent without one.
        """
        return _future(self._twisted().promised(), _same)

    async def changes(self) -> AsyncGenerator[Change, None]:
        """Iterate over what becomes of it: `async for change in receipt.changes()`.

        As `changes` of Twisted's receipt: whom it is for, its final state at each of them, and the
        outcome of its promise, as they come. Raises where no more can be known.
        """
        told: set[str] = set()
        is_over = False
        while not is_over:
            changes, is_over, error = await _future(news_of(self, told), _same)
            for change in changes:
                yield change
            if error is not None:
                raise error

    def forget(self) -> asyncio.Future[None]:
        """Have `Client.receipts` list it no more, after a restart either; done when that is kept.

        Fails with `LogUnavailable` or `LogFailed`, as `send` does.
        """
        return _future(self._twisted().forget(), _same)

    def _twisted(self) -> twisted.Receipt:
        return twisted.Receipt(self.run, self.index)


class Receipts(AnyReceipts[Receipt]):
    """The receipts of one `send_many`, in the order of its bodies."""

    __slots__ = ()

    def _receipt(self, run: AskedRun, index: int) -> Receipt:
        return Receipt(run, index)

    @property
    def accepted(self) -> asyncio.Future[Receipts]:
        """Acceptance of all messages, as `Receipt.accepted`."""
        return _future(self._twisted().accepted, lambda _: self)

    def acknowledged(self, name: str | None = None) -> asyncio.Future[None]:
        """Acknowledgement of all messages: fails as soon as one cannot be acknowledged."""
        return _future(self._twisted().acknowledged(name), _same)

    def settled(self) -> asyncio.Future[dict[str, dict[Status, int]]]:
        """Done when all states are final, with how many have which, by receiver. Never fails."""
        return _future(self._twisted().settled(), _same)

    def promised(self) -> asyncio.Future[PromiseCounts]:
        """Done once the promises of all are decided, with how many were kept, and broken.

        Fails as `Receipt.promised`.
        """
        return _future(self._twisted().promised(), _same)

    def forget(self) -> asyncio.Future[None]:
        """Have `Client.receipts` list none of them any more, as `Receipt.forget`."""
        return _future(self._twisted().forget(), _same)

    def _twisted(self) -> twisted.Receipts:
        return twisted.Receipts(self._runs)


def receipt_of(made: twisted.Receipt) -> Receipt:
    """Return the same receipt, which waits by futures."""
    return Receipt(made.run, made.index)


def receipts_of(made: twisted.Receipts) -> Receipts:
    """Return the same receipts, which wait by futures."""
    return Receipts(made.runs)


def _future(deferred: Deferred[Any], convert: Callable[[Any], T]) -> asyncio.Future[T]:
    return future_of(deferred, asyncio.get_running_loop(), convert)


def _same(result: T) -> T:
    return result
