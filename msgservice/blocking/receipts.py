"""Receipts that block: what `Client.send` and `Client.send_many` of this package give.

What the node says of a message is noted on the reactor's thread, so it is asked for there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

from twisted.internet.defer import Deferred

from msgservice.blocking.thread import ReactorThread
from msgservice.client import receipt as twisted
from msgservice.client.promise import PromiseCounts, PromiseOutcome
from msgservice.client.receipt import AnyReceipt, AnyReceipts, AskedRun, Change, news_of
from msgservice.message import Status

T = TypeVar("T")


class Receipt(AnyReceipt, eq=False, gc=False):
    """One message that was handed over: where it is, and what becomes of it.

    Calls that wait take a `timeout` in seconds, after which they raise `TimeoutError` and the
    message goes on; without one they wait as long as calls of the client do. Keep the receipt for
    as long as you want to ask.
    """

    thread: ReactorThread
    timeout: float | None = None

    @property
    def position(self) -> int | None:
        """The position of the message in the node's log; None while that is unknown."""
        return self._asked(lambda receipt: receipt.position)

    @property
    def due(self) -> float | None:
        """When it will be delivered, in seconds since the epoch, while it waits for that."""
        return self._asked(lambda receipt: receipt.due)

    @property
    def receivers(self) -> tuple[str, ...]:
        """The names of those it is for: fixed when it was accepted."""
        return self._asked(lambda receipt: receipt.receivers)

    @property
    def statuses(self) -> dict[str, Status]:
        """The `Status` at each receiver, as last heard from the node."""
        return self._asked(lambda receipt: receipt.statuses)

    @property
    def accepted(self) -> Receipt:
        """This receipt, when the node has the message on disk: at once, unless with `outbox=`.

        Raises `Refused`, or `ClientClosed`.
        """
        self._waited(lambda receipt: receipt.accepted, None)
        return self

    def acknowledged(self, name: str | None = None, *, timeout: float | None = None) -> None:
        """Wait until the receiver `name`, or everyone it is for, has acknowledged.

        Raises what `acknowledged` of Twisted's receipt fails with: `NotDelivered` as soon as one of
        them has another final state, `NoReceiver` if it is for nobody.
        """
        self._waited(lambda receipt: receipt.acknowledged(name), timeout)

    def settled(self, *, timeout: float | None = None) -> dict[str, Status]:
        """Return `statuses` once all are final, or can no longer become known."""
        return self._waited(lambda receipt: receipt.settled(), timeout)

    def promised(self, *, timeout: float | None = None) -> PromiseOutcome:
        """Return the outcome of its promise, once that is decided: kept, or broken.

        Raises `ValueError` where it was sent without one.
        """
        return self._waited(lambda receipt: receipt.promised(), timeout)

    def changes(self, *, timeout: float | None = None) -> Iterator[Change]:
        """Iterate over what becomes of it: `for change in receipt.changes()`.

        As `changes` of Twisted's receipt: whom it is for, its final state at each of them, and the
        outcome of its promise, as they come. Raises where no more can be known; `timeout`: of each.
        """
        told: set[str] = set()
        is_over = False
        while not is_over:
            changes, is_over, error = self._waited(lambda receipt: news_of(receipt, told), timeout)
            yield from changes
            if error is not None:
                raise error

    def forget(self, *, timeout: float | None = None) -> None:
        """Have `Client.receipts` list it no more, after a restart either.

        Returns when that is on disk. Raises `LogUnavailable` or `LogFailed`, as `send` does.
        """
        self._waited(lambda receipt: receipt.forget(), timeout)

    def _waited(self, asked: Callable[[twisted.Receipt], Deferred[T]], timeout: float | None) -> T:
        receipt = twisted.Receipt(self.run, self.index)
        patience = self.timeout if timeout is None else timeout
        waited: T = self.thread.wait(lambda: asked(receipt), patience)
        return waited

    def _asked(self, asked: Callable[[AnyReceipt], T]) -> T:
        receipt = AnyReceipt(self.run, self.index)
        told: T = self.thread.call(lambda: asked(receipt))
        return told


class Receipts(AnyReceipts[Receipt]):
    """The receipts of one `send_many`, in the order of its bodies. `timeout` as of `Receipt`."""

    __slots__ = ("_thread", "_timeout")

    def __init__(
        self, made: twisted.Receipts, thread: ReactorThread, timeout: float | None
    ) -> None:
        super().__init__(made.runs)
        self._thread, self._timeout = thread, timeout

    def _receipt(self, run: AskedRun, index: int) -> Receipt:
        return Receipt(run, index, self._thread, self._timeout)

    @property
    def accepted(self) -> Receipts:
        """These receipts, when the node has all messages on disk, as `Receipt.accepted`."""
        self._waited(lambda receipts: receipts.accepted, None)
        return self

    def acknowledged(self, name: str | None = None, *, timeout: float | None = None) -> None:
        """Wait until all are acknowledged; raises as soon as one cannot be."""
        self._waited(lambda receipts: receipts.acknowledged(name), timeout)

    def settled(self, *, timeout: float | None = None) -> dict[str, dict[Status, int]]:
        """Return how many have which status, by receiver, when all states are final."""
        return self._waited(lambda receipts: receipts.settled(), timeout)

    def promised(self, *, timeout: float | None = None) -> PromiseCounts:
        """Return how many promises were kept, and broken, once all are decided.

        Raises what `Receipt.promised` does.
        """
        return self._waited(lambda receipts: receipts.promised(), timeout)

    def forget(self, *, timeout: float | None = None) -> None:
        """Have `Client.receipts` list none of them any more, as `Receipt.forget`."""
        self._waited(lambda receipts: receipts.forget(), timeout)

    def counts(self) -> dict[str, dict[Status, int]]:
        """The number of messages with each `Status`, by receiver."""
        receipts = twisted.Receipts(self._runs)
        told: dict[str, dict[Status, int]] = self._thread.call(receipts.counts)
        return told

    def _waited(self, asked: Callable[[twisted.Receipts], Deferred[T]], timeout: float | None) -> T:
        receipts = twisted.Receipts(self._runs)
        patience = self._timeout if timeout is None else timeout
        waited: T = self._thread.wait(lambda: asked(receipts), patience)
        return waited
