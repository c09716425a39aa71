"""Receipts: what `Client.send` and `Client.send_many` give.

Messages that were handed over together share one `client.handed.HandedRun`; a `Receipt` is that
run and an index, made when its Deferred fires. So a receipt costs next to nothing, and what the
node says later is noted once for all of a run.

`AnyReceipt` and `AnyReceipts` are what can be read of one without waiting: the receipts of
`msgservice.aio` and `msgservice.blocking` are these as well, and wait in their own way.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Iterator, Sequence
from enum import Enum, auto
from typing import Any, Generic, NamedTuple, Protocol, TypeVar, overload

import msgspec
from twisted.internet.defer import Deferred, FirstError, fail, gatherResults, succeed
from twisted.python.failure import Failure

from msgservice.arguments import wrong
from msgservice.client.promise import Promise, PromiseCounts, PromiseOutcome
from msgservice.message import PromiseOption, Status

OPEN_RECEIPTS = 1_000_000  # runs whose receipts an outbox's file keeps, unless told otherwise


class Wait(Enum):
    """The event that a waiter of a receipt waits for."""

    ACCEPTED = auto()
    ACKNOWLEDGED = auto()
    SETTLED = auto()
    PROMISED = auto()
    NEWS = auto()


_ACKNOWLEDGED = Wait.ACKNOWLEDGED  # by its name a member of an enum is found slowly


class Change(NamedTuple):
    """One change of what is known of a message, for `Receipt.changes`.

    `receiver`: whose state is final now, `$promise` where the promise is decided, or "" where it is
    known whom the message is for and where it lies (`Receipt.receivers`, `Receipt.position`).
    `status`: that state, None there. `reason`: as the receiver or the node gave it, or "".
    """

    receiver: str
    status: Status | None = None
    reason: str = ""


class Known(NamedTuple):
    """The knowledge of one message, and whether more can come; `error`: why it cannot."""

    changes: list[Change]
    is_over: bool
    error: Exception | None


class Names(Protocol):
    """An audience, by name."""

    @property
    def names(self) -> tuple[str, ...]:
        """The receivers' names."""


class Place(Protocol):
    """The positions of some messages in the node's log, and their audience (ROUTED)."""

    @property
    def first(self) -> int:
        """The sequence of the first of them."""

    @property
    def position(self) -> int:
        """The position of the first; 0: the log no longer has it."""

    @property
    def audience(self) -> Names:
        """The receivers that they are for."""

    @property
    def due(self) -> int:
        """Wall clock, ms: they wait until then; 0: they do not."""

    @property
    def of(self) -> str:
        """The message as which one was taken by its key, of what waits; or ""."""


class AskedRun(Protocol):
    """A run of messages that was handed over, as its receipts ask it."""

    @property
    def subject(self) -> str:
        """The subject that the run was sent to."""

    @property
    def first(self) -> int:
        """The sequence of its first message."""

    @property
    def last(self) -> int:
        """The sequence of its last message."""

    @property
    def count(self) -> int:
        """The number of messages in the run."""

    @property
    def ids(self) -> dict[int, str] | None:
        """Index -> the sender's own id, of those that have one."""

    def piece_of(self, sequence: int) -> Place | None:
        """The piece that this message is in, as ROUTED said, or None."""

    def statuses_of(self, sequence: int) -> dict[str, Status]:
        """The state of one message at each receiver, as far as it is known."""

    def counts(self) -> dict[str, dict[Status, int]]:
        """The number of messages in each state, for each receiver."""

    @property
    def is_promised(self) -> bool:
        """Whether it was sent with a promise."""

    @property
    def promise(self) -> PromiseOption | None:
        """The promise that each of its messages was sent with, or None."""

    def verdict_of(self, sequence: int) -> tuple[Status, str] | None:
        """The decision about the promise of this message, and why, or None."""

    def kept(self) -> int:
        """The number of messages whose promise was kept."""

    def known_of(self, sequence: int) -> Known:
        """The changes of one message so far, in an order in which they can come."""

    def watch(self, wait: Wait, first: int, last: int, name: str | None = None) -> Deferred[Any]:
        """Return a Deferred of its own for this wait, which fires with None."""

    def forget(self, first: int, last: int) -> Deferred[None]:
        """Keep no receipt of these beyond this process; fires when that is on disk."""

    def is_kept_by(self, keeper: object) -> bool:
        """Whether it is of the client whose runs these are."""


# Not tracked by the collector: a program may hold millions, and they refer to nothing but runs.
class AnyReceipt(msgspec.Struct, eq=False, gc=False):
    """The part of a receipt that does not wait: where its message is, as last heard."""

    run: AskedRun
    index: int

    def __repr__(self) -> str:
        return f"<Receipt {self.run.subject!r} sequence {self.sequence} position {self.position}>"

    @property
    def sequence(self) -> int:
        """The number that the message has in its sender's own counting, from 1."""
        return self.run.first + self.index

    @property
    def id(self) -> str | None:
        """The id that the sender gave, or None."""
        return self.run.ids.get(self.index) if self.run.ids is not None else None

    @property
    def promise(self) -> Promise | None:
        """The promise that the message was sent with, or None. `need="any"` is 1."""
        option = self.run.promise
        return None if option is None else Promise.of(option)

    @property
    def position(self) -> int | None:
        """The position of the message in the node's log.

        None while that is unknown: not accepted yet (`outbox=`), or no longer in the log when
        a lost answer was asked for again.
        """
        piece = self.run.piece_of(self.sequence)
        if piece is None or piece.position == 0:
            return None
        return piece.position + self.sequence - piece.first

    @property
    def due(self) -> float | None:
        """When it will be delivered, in seconds since the epoch, while it waits for that."""
        piece = self.run.piece_of(self.sequence)
        return piece.due / 1000 if piece is not None and piece.due else None

    @property
    def taken_as(self) -> str | None:
        """The message that it is, where its idempotency key had been used for one that waits.

        As `SENDER/HASH/SEQUENCE`, by which that is listed, cancelled and asked about. None where it
        is that itself, or waits no more: then its `position` says which message it is.
        """
        piece = self.run.piece_of(self.sequence)
        return piece.of if piece is not None and piece.of else None

    @property
    def receivers(self) -> tuple[str, ...]:
        """The names of those it is for: fixed when it was accepted, `()` before, or for nobody.

        Of a message with a delay, fixed when that is over; `("$delayed",)` where it was cancelled.
        """
        piece = self.run.piece_of(self.sequence)
        return piece.audience.names if piece is not None else ()

    @property
    def statuses(self) -> dict[str, Status]:
        """The `Status` at each receiver, as last heard from the node."""
        return self.run.statuses_of(self.sequence)


class Receipt(AnyReceipt, eq=False, gc=False):
    """One message that was handed over: where it is, and what becomes of it.

    Every call that waits returns a Deferred of its own; cancelling it ends that wait and
    nothing else. Keep the receipt for as long as you want to ask.
    """

    @property
    def accepted(self) -> Deferred[Receipt]:
        """Fires with this receipt when the node has the message on disk.

        Without `outbox=` that is already so. Fails with `Refused`, or `ClientClosed`.
        """
        waiting: Deferred[Any] = self.run.watch(Wait.ACCEPTED, self.sequence, self.sequence)
        return waiting.addCallback(lambda _: self)

    def acknowledged(self, name: str | None = None) -> Deferred[None]:
        """Fires with None when the receiver `name`, or everyone it is for, has acknowledged.

        Fails with `NotDelivered` as soon as one of them has another final state, `NoReceiver`
        if it is for nobody, `Refused` if it was not accepted, `ClientClosed` when the client is
        closed before, `LogWentBack` or `PeerForgot` when nothing more can be known, and
        `Ambiguous` where the node has forgotten how it was settled; with `TypeError` for what is no
        name of one receiver.
        """
        if name is not None and (mistaken := _no_receiver(name)) is not None:
            return fail(mistaken)
        run = self.run
        sequence = run.first + self.index
        return run.watch(_ACKNOWLEDGED, sequence, sequence, name)

    def settled(self) -> Deferred[dict[str, Status]]:
        """Fires with `statuses` once all are final, or can no longer become known. Never fails."""
        waiting: Deferred[Any] = self.run.watch(Wait.SETTLED, self.sequence, self.sequence)
        return waiting.addCallback(lambda _: self.statuses)

    def promised(self) -> Deferred[PromiseOutcome]:
        """Fires with the outcome of its promise, once that is decided: kept, or broken.

        Fails with `ValueError` where it was sent without one, `Refused` if it was not accepted,
        and where the outcome can no longer become known as `acknowledged` does.
        """
        run, sequence = self.run, self.sequence
        if not run.is_promised:
            return fail(ValueError(f"message {sequence} was sent without a promise"))
        waiting: Deferred[Any] = run.watch(Wait.PROMISED, sequence, sequence)
        return waiting.addCallback(self._outcome)

    async def changes(self) -> AsyncGenerator[Change, None]:
        """Iterate over what becomes of it: `async for change in receipt.changes()`.

        First what is known already, then each change as it comes: whom it is for, its final state
        at each of them, and the outcome of its promise. It ends when there is nothing more to come,
        and raises what `acknowledged` fails with where it was not accepted, or nothing more can
        be known. Each iteration begins anew, and none takes anything from another.
        """
        told: set[str] = set()
        is_over = False
        while not is_over:
            changes, is_over, error = await news_of(self, told)
            for change in changes:
                yield change
            if error is not None:
                raise error

    def forget(self) -> Deferred[None]:
        """Have `Client.receipts` list it no more, after a restart either; fires when that is kept.

        Of a client without `outbox=` nothing outlives the process, and it fires at once. This
        receipt goes on as it is. Fails with `LogUnavailable` or `LogFailed`, as `send` does.
        """
        return self.run.forget(self.sequence, self.sequence)

    def _outcome(self, _: object) -> PromiseOutcome:
        verdict = self.run.verdict_of(self.sequence)
        assert verdict is not None
        return PromiseOutcome(verdict[0] is Status.ACKNOWLEDGED, verdict[1], self.statuses)


R = TypeVar("R", bound=AnyReceipt)


class AnyReceipts(ABC, Generic[R]):
    """The receipts of one `send_many`, in the order of its bodies; what does not wait of them."""

    __slots__ = ("_runs",)

    def __init__(self, runs: Sequence[AskedRun]) -> None:
        self._runs = runs

    @abstractmethod
    def _receipt(self, run: AskedRun, index: int) -> R:
        """Return the receipt of one message."""

    def __len__(self) -> int:
        return sum(run.count for run in self._runs)

    def __iter__(self) -> Iterator[R]:
        return (self._receipt(run, index) for run in self._runs for index in range(run.count))

    @overload
    def __getitem__(self, at: int) -> R: ...
    @overload
    def __getitem__(self, at: slice) -> list[R]: ...
    def __getitem__(self, at: int | slice) -> R | list[R]:
        if isinstance(at, slice):
            return list(self)[at]
        left = at + len(self) if at < 0 else at
        for run in self._runs if left >= 0 else ():
            if left < run.count:
                return self._receipt(run, left)
            left -= run.count
        raise IndexError(at)

    def __repr__(self) -> str:
        return f"<Receipts of {len(self)} messages>"

    @property
    def sequence(self) -> int:
        """The sequence of the last message; 0 where there is none."""
        return self._runs[-1].last if self._runs else 0

    def counts(self) -> dict[str, dict[Status, int]]:
        """The number of messages with each `Status`, by receiver."""
        total: dict[str, dict[Status, int]] = {}
        for run in self._runs:
            for name, counts in run.counts().items():
                of_name = total.setdefault(name, {})
                for status, count in counts.items():
                    of_name[status] = of_name.get(status, 0) + count
        return total


class Receipts(AnyReceipts[Receipt]):
    """The receipts of one `send_many`, in the order of its bodies."""

    __slots__ = ()

    def _receipt(self, run: AskedRun, index: int) -> Receipt:
        return Receipt(run, index)

    @property
    def runs(self) -> Sequence[AskedRun]:
        """The runs that the messages were handed over in."""
        return self._runs

    @property
    def accepted(self) -> Deferred[Receipts]:
        """Acceptance of all messages, as `Receipt.accepted`."""
        return self._all(Wait.ACCEPTED).addCallback(lambda _: self)

    def acknowledged(self, name: str | None = None) -> Deferred[None]:
        """Acknowledgement of all messages: fails as soon as one cannot be acknowledged."""
        if name is not None and (mistaken := _no_receiver(name)) is not None:
            return fail(mistaken)
        return self._all(Wait.ACKNOWLEDGED, name).addCallback(_nothing)

    def settled(self) -> Deferred[dict[str, dict[Status, int]]]:
        """Fires when all states are final, with how many have which, by receiver. Never fails."""
        return self._all(Wait.SETTLED).addCallback(lambda _: self.counts())

    def promised(self) -> Deferred[PromiseCounts]:
        """Fires once the promises of all are decided, with how many were kept, and broken.

        Each receipt says of its own message what became of it. Fails as `Receipt.promised`.
        """
        if not all(run.is_promised for run in self._runs):
            return fail(ValueError("the messages were sent without a promise"))
        return self._all(Wait.PROMISED).addCallback(lambda _: self._promises())

    def _promises(self) -> PromiseCounts:
        kept = sum([run.kept() for run in self._runs])
        return PromiseCounts(kept, len(self) - kept)

    def forget(self) -> Deferred[None]:
        """Have `Client.receipts` list none of them any more, as `Receipt.forget`."""
        forgetting = [run.forget(run.first, run.last) for run in self._runs]
        waiting: Deferred[Any] = gatherResults(forgetting, consumeErrors=True)
        return waiting.addCallbacks(_nothing, _first)

    def _all(self, wait: Wait, name: str | None = None) -> Deferred[Any]:
        waits = [run.watch(wait, run.first, run.last, name) for run in self._runs]
        return gatherResults(waits, consumeErrors=True).addErrback(_first)


def news_of(receipt: AnyReceipt, told: set[str]) -> Deferred[Known]:
    """Fire with what is known of a message beyond what was `told`, to which it is added."""
    run, sequence = receipt.run, receipt.sequence
    known = run.known_of(sequence)
    news = [change for change in known.changes if change.receiver not in told]
    told.update([change.receiver for change in news])
    if news or known.is_over:
        return succeed(Known(news, known.is_over, known.error))
    waiting: Deferred[Any] = run.watch(Wait.NEWS, sequence, sequence)
    return waiting.addCallback(lambda _: news_of(receipt, told))


def _no_receiver(name: object) -> TypeError | None:
    if isinstance(name, str):
        return None
    return wrong("name", name, "the name of one receiver, or None for all of them")


def _nothing(_: object) -> None:
    return None


def _first(failure: Failure) -> Failure:
    assert isinstance(failure.value, FirstError), failure
    return failure.value.subFailure
