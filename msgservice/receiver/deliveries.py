"""Messages of a receiver that a program takes one by one, where it has no handler.

The receiver of `msgservice.aio` or `msgservice.blocking` has `Deliveries.handle` as its handler: a
call of it lasts from when the message came until the program has answered its `Delivery`. So all
that holds for handlers holds here: how many may be open at once, order, attempts, stopping.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from types import TracebackType

from twisted.internet.defer import CancelledError, Deferred

from msgservice.errors import Reject, Retry
from msgservice.receiver.received import ReceivedMessage
from msgservice.receiver.receiver import ReceiverArguments

Settle = Callable[[BaseException | None], None]
Taken = tuple[ReceivedMessage, Deferred[None]]  # a message, and what fires with its answer


class Delivery:
    """A message that a program has taken, to be answered once.

    As the `with` statement has it: the block gets the message, and its end is the answer. Where it
    ends the message is acknowledged; where it raises, the message comes again, as with a handler.
    `Retry` and `Reject` are answers and go no further, any other exception does.
    """

    __slots__ = ("_settle", "message")

    def __init__(self, message: ReceivedMessage, settle: Settle) -> None:
        self.message = message
        self._settle = settle

    def __repr__(self) -> str:
        return f"<delivery of {self.message!r}>"

    def acknowledge(self) -> None:
        """Take the message over. The first answer counts, what comes later is not looked at."""
        self._settle(None)

    def refuse(self, error: BaseException) -> None:
        """Answer with what a handler would have raised: `Retry`, `Reject`, or any other error."""
        self._settle(error)

    def __enter__(self) -> ReceivedMessage:
        return self.message

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        self._settle(error)
        return isinstance(error, Retry | Reject)


class Deliveries:
    """The messages that wait to be taken, and who waits for one; all on the reactor's thread.

    As many wait as handlers may run at once (`concurrency`), and of a lane with order one.
    """

    def __init__(self) -> None:
        self._waiting: deque[Taken] = deque()
        self._takers: deque[Deferred[Taken | None]] = deque()
        self._looking: deque[Deferred[None]] = deque()  # those who take for themselves
        self.is_over = False

    def handle(self, message: ReceivedMessage) -> Deferred[None]:
        """The handler: fires when the program has answered, fails with what it has raised."""
        answered: Deferred[None] = Deferred()
        self._waiting.append((message, answered))
        self._serve()
        return answered

    def take(self) -> Deferred[Taken | None]:
        """Fire with the next message and what its answer is told to; None: it is over.

        Cancelling takes nothing.
        """
        taker: Deferred[Taken | None] = Deferred(self._takers.remove)
        self._takers.append(taker)
        self._serve()
        return taker

    def take_now(self) -> Taken | None:
        """Return the next message as `take` does, or None where none waits."""
        self._drop_cancelled()
        if not self._waiting:
            return None
        taken = self._waiting.popleft()
        self.look()  # for others who wait, where there are more
        return taken

    def when_some(self) -> Deferred[None]:
        """Fire when it is worth looking again: a message has come, or it is over.

        One of those who wait is told of a message. Who was told and does not take it calls `look`.
        """
        looking: Deferred[None] = Deferred(self._looking.remove)
        self._looking.append(looking)
        self.look()
        return looking

    def look(self) -> None:
        """Tell one who waits, or all where it is over, to look."""
        self._drop_cancelled()
        while self._looking and (self._waiting or self.is_over):
            self._looking.popleft().callback(None)
            if not self.is_over:
                break

    def put_back(self, taken: Taken | None) -> None:
        """Give this message to somebody else, before all others: nobody has got it."""
        if taken is not None and self.is_over:
            answer(taken[1], CancelledError())
        elif taken is not None:
            self._waiting.appendleft(taken)
            self._serve()

    def end(self) -> None:
        """Nothing is given out any more; what nobody has taken comes again, and has no attempt.

        Called when the receiver stops, which makes a cancelled call of a handler no attempt.
        """
        self.is_over = True
        waiting, self._waiting = self._waiting, deque()
        for _, answered in waiting:
            answer(answered, CancelledError())
        self._serve()

    def _serve(self) -> None:
        while self._takers:
            self._drop_cancelled()
            if self._waiting:
                self._takers.popleft().callback(self._waiting.popleft())
            elif self.is_over:
                self._takers.popleft().callback(None)
            else:
                return
        self.look()

    def _drop_cancelled(self) -> None:
        while self._waiting and self._waiting[0][1].called:
            self._waiting.popleft()


def answer(answered: Deferred[None], error: BaseException | None) -> None:
    """Tell the receiver what became of a message, where that is not known yet."""
    if answered.called:
        return
    if error is None:
        answered.callback(None)
    else:
        answered.errback(error)


def delivery_of(taken: Taken) -> Delivery:
    """Return a delivery that is answered on the reactor's thread."""
    message, answered = taken
    return Delivery(message, lambda error: answer(answered, error))


def handling_of(options: ReceiverArguments) -> Deliveries | None:
    """Return what hands the messages out where no handler was given, and put it in its place."""
    if "handler" in options:
        return None
    for name in ("batch", "threads", "inbox"):
        if options.get(name):
            raise ValueError(f"{name} needs a handler: without one messages are taken one by one")
    deliveries = Deliveries()
    options["handler"] = deliveries.handle
    return deliveries
