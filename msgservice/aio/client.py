"""The producer's side for asyncio: `connect`, `Client`, and `Responder`, which answers requests."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Generator, Sequence
from functools import wraps
from threading import get_ident
from types import TracebackType
from typing import Any, Concatenate, NoReturn, ParamSpec, TypeVar, cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorCore, IReactorTime

from msgservice.aio.around import Around, Handler, calls, waits, waits_for
from msgservice.aio.handlers import on_loop
from msgservice.aio.loop import future_of, reactor
from msgservice.aio.receipts import Receipt, receipt_of, receipts_of
from msgservice.client import client as twisted
from msgservice.client.connect import connect as connect_twisted
from msgservice.client.connect import not_yet
from msgservice.client.receipt import Receipt as TwistedReceipt
from msgservice.client.responding import Responder as TwistedResponder

P = ParamSpec("P")
C = TypeVar("C", bound="Client")


class Responder(Around[TwistedResponder]):
    """The answering of requests on some subjects; `Client.respond` makes it."""

    @property
    def connected(self) -> bool:
        """Whether the node passes requests on to it."""
        return self.twisted.connected

    @property
    def last_error(self) -> str:
        """The reason why it is not connected, for people."""
        return self.twisted.last_error

    @property
    def unanswered(self) -> int:
        """The number of calls that came and are not answered."""
        return self.twisted.unanswered

    when_ready = waits_for(TwistedResponder.when_ready, lambda self, _: cast("Responder", self))
    close = waits(TwistedResponder.close)

    async def __aenter__(self) -> Responder:
        await self.when_ready()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class _Sent(asyncio.Future[Receipt]):
    """The wait for one message: a future that a run fires, which takes it for a Deferred."""

    __slots__ = ()

    def callback(self, receipt: TwistedReceipt) -> None:
        """Fire, unless nobody waits any more."""
        if not self.done():
            self.set_result(Receipt(receipt.run, receipt.index))

    def errback(self, error: BaseException) -> None:
        """Fail, unless nobody waits any more."""
        if not self.done():
            self.set_exception(error)


class Client(Around[twisted.Client]):
    """Hands messages to one node. Make one with `connect`, or of `Node.client`.

    The calls are those of Twisted's client, as futures: each begins at once, in the order of the
    calls, and what cancelling means is the same. As an asynchronous context manager it is closed
    at the end of the block; what is open at the end of the event loop is closed then. The client
    inside is this one's from then on: its `send` gives futures too.
    """

    def __init__(self, client: twisted.Client) -> None:
        super().__init__(client)
        loop, thread = self._loop, self._thread

        def sent() -> _Sent:
            if get_ident() != thread:
                raise self._is_elsewhere()
            return _Sent(loop=loop)

        client.new_waiter = cast("Callable[[], Deferred[TwistedReceipt]]", sent)
        vars(self)["send"] = client.send  # which gives futures now; nothing stands between
        self._at_end = IReactorCore(reactor())
        self._closes: object = self._at_end.addSystemEventTrigger(
            "before", "shutdown", client.close
        )

    # --- getters

    @property
    def name(self) -> str:
        """The name of this sender."""
        return self.twisted.name

    @property
    def connected(self) -> bool:
        """Whether a session with the node stands."""
        return self.twisted.connected

    @property
    def unanswered(self) -> int:
        """Messages handed over that the node has not answered."""
        return self.twisted.unanswered

    @property
    def blocked(self) -> bool:
        """Whether the window is full of unanswered messages: what is sent now waits."""
        return self.twisted.blocked

    @property
    def sequence(self) -> int:
        """The last sequence that was ever given; with `outbox=`, the last one on disk."""
        return self.twisted.sequence

    why = calls(twisted.Client.why)

    # --- what the node is asked

    send = waits_for(twisted.Client.send, lambda _, made: receipt_of(made))
    send_many = waits_for(twisted.Client.send_many, lambda _, made: receipts_of(made))
    receipts = waits_for(
        twisted.Client.receipts, lambda _, listed: [receipt_of(one) for one in listed]
    )
    cancel = waits(twisted.Client.cancel)
    undo = waits(twisted.Client.undo)
    explain = waits(twisted.Client.explain)
    request = waits(twisted.Client.request)
    when_connected = waits_for(twisted.Client.when_connected, lambda self, _: cast("Client", self))

    def respond(
        self, subject: str | Sequence[str], handler: Handler, *, concurrency: int | None = None
    ) -> Responder:
        """Answer requests on a subject or pattern, or several, from when a connection stands.

        `handler(asked)` returns the content of the answer, as for `send`, or is a coroutine
        function. Arguments and errors are those of `respond` of Twisted's client.
        """
        self._of_loop()
        made = self.twisted.respond(subject, on_loop(handler), concurrency=concurrency)
        return Responder(made)

    # --- its life

    def close(self) -> asyncio.Future[None]:
        """Take nothing more, wait for the answers that are due, leave; done when that is.

        As `close` of Twisted's client: within `limits.stop_timeout`, what is unanswered then fails
        with `ClientClosed`.
        """
        loop = self._of_loop()
        closes, self._closes = self._closes, None
        if closes is not None:
            self._at_end.removeSystemEventTrigger(closes)
        return future_of(self.twisted.close(), loop, lambda _: None)

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()


class Connecting:
    """A client that is on its way: to be awaited, or entered by `async with`, which closes it."""

    def __init__(self, future: asyncio.Future[Client]) -> None:
        self._future = future

    def __await__(self) -> Generator[Any, None, Client]:
        return self._connected().__await__()

    async def _connected(self) -> Client:
        future = self._future
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                future.result().close()  # it came at that very moment, and nobody has it
            raise

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(not_yet(name, "`await connect(...)`, or enter it by `async with`"))

    async def __aenter__(self) -> Client:
        self._client = await self._connected()
        return self._client

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()


def _connects(
    method: Callable[Concatenate[IReactorTime, P], Deferred[twisted.Client]],
) -> Callable[P, Connecting]:
    """Return the function without its first argument: the reactor is that of the loop."""

    @wraps(method)
    def connect(*args: P.args, **kwargs: P.kwargs) -> Connecting:
        dialling = method(reactor(), *args, **kwargs)
        loop = asyncio.get_running_loop()
        return Connecting(future_of(dialling, loop, Client, twisted.Client.close))

    _, *others = inspect.signature(method).parameters.values()
    connect.__signature__ = inspect.Signature(others)  # type: ignore[attr-defined]  # for `help`
    return connect


connect = _connects(connect_twisted)
