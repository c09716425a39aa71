"""The producer's side for programs that block: `connect`, `Client`, and `Responder`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Unpack, cast

from twisted.internet.defer import Deferred

from msgservice.blocking.around import Around, blocks, blocks_for, calls
from msgservice.blocking.receipts import Receipt, Receipts
from msgservice.blocking.thread import ReactorThread, reactor_thread
from msgservice.client import client as twisted
from msgservice.client.connect import ConnectArguments
from msgservice.client.connect import connect as connect_twisted
from msgservice.client.responding import Asked
from msgservice.client.responding import Responder as TwistedResponder
from msgservice.errors import check_runs, check_takes
from msgservice.receiver.handling.threads import HandlerThreads

THREADS = 4  # that handlers run on, where a program does not say how many


class Responder(Around[TwistedResponder]):
    """The answering of requests on some subjects; `Client.respond` makes it."""

    def __init__(
        self, made: TwistedResponder, thread: ReactorThread, handlers: HandlerThreads
    ) -> None:
        super().__init__(made, thread)
        self._handlers = handlers

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

    when_ready = blocks_for(TwistedResponder.when_ready, lambda self, _: cast("Responder", self))

    def close(self) -> None:
        """Take no calls any more, answer those that came, leave.

        Handlers have half of `limits.stop_timeout`; nobody waits for what they answer later. In a
        process that was forked since, nothing is done.
        """
        if self.thread.is_here:
            self.thread.wait(self.twisted.close)
            self.thread.tell(self._handlers.stop)

    def __enter__(self) -> Responder:
        self.when_ready()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Client(Around[twisted.Client]):
    """Hands messages to one node, from any thread. Make one with `connect`, or of `Node.client`.

    The calls are those of Twisted's client, and wait for what those fire with. `timeout`: seconds
    that each waits at most, then it raises `TimeoutError`: the wait has ended, and what was begun
    may still happen. In a `with` block it is closed at the end; what is open at the end of the
    process is closed then.
    """

    def __init__(
        self, client: twisted.Client, thread: ReactorThread, timeout: float | None = None
    ) -> None:
        super().__init__(client, thread, timeout)

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

    def within(self, seconds: float | None) -> Client:
        """Return this client with another timeout: `client.within(5).send(...)`."""
        return Client(self.twisted, self.thread, seconds)

    # --- what the node is asked

    send = blocks_for(
        twisted.Client.send,
        lambda self, made: Receipt(made.run, made.index, self.thread, self.timeout),
    )
    send_many = blocks_for(
        twisted.Client.send_many, lambda self, made: Receipts(made, self.thread, self.timeout)
    )
    receipts = blocks_for(
        twisted.Client.receipts,
        lambda self, listed: [
            Receipt(one.run, one.index, self.thread, self.timeout) for one in listed
        ],
    )
    cancel = blocks(twisted.Client.cancel)
    undo = blocks(twisted.Client.undo)
    explain = blocks(twisted.Client.explain)
    request = blocks(twisted.Client.request)
    when_connected = blocks_for(twisted.Client.when_connected, lambda self, _: cast("Client", self))

    def respond(
        self,
        subject: str | Sequence[str],
        handler: Callable[[Asked], Any],
        *,
        concurrency: int | None = None,
        threads: int = THREADS,
    ) -> Responder:
        """Answer requests on a subject or pattern, or several, from when a connection stands.

        `handler(asked)` runs on one of `threads` threads and returns the content of the answer, as
        for `send`. Other arguments and errors are those of `respond` of Twisted's client.
        """
        check_runs(handler)
        check_takes(handler, "the request")
        handlers = HandlerThreads(threads, self.name, self.thread.reactor)

        def answer(asked: Asked) -> Deferred[Any]:
            return handlers.result_of(handler, asked)

        made: TwistedResponder = self.thread.call(
            lambda: self.twisted.respond(subject, answer, concurrency=concurrency)
        )
        return Responder(made, self.thread, handlers)

    # --- its life

    def close(self) -> None:
        """Take nothing more, wait for the answers that are due, leave.

        As `close` of Twisted's client: within `limits.stop_timeout`, what is unanswered then fails
        with `ClientClosed`. In a process that was forked since, nothing is done: the connection is
        the other's.
        """
        if self.thread.is_usable:
            self.thread.wait(self._close)

    def _close(self) -> Deferred[None]:
        self.thread.closes_at_end.pop(self.twisted, None)
        return self.twisted.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def connect(
    address: str, *, name: str, timeout: float | None = None, **arguments: Unpack[ConnectArguments]
) -> Client:
    """Dial a node; return a `Client` when the first session stands.

    `timeout`: seconds that this and each later call of the client waits at most, then it raises
    `TimeoutError`; None: without end. All else is as of `msgservice.connect`, its errors too.
    """
    thread = reactor_thread()

    def dial() -> Deferred[twisted.Client]:
        dialling = connect_twisted(thread.reactor, address, name=name, **arguments)
        return dialling.addCallback(connected)

    def connected(client: twisted.Client) -> twisted.Client:
        thread.closes_at_end[client] = client.close
        return client

    def unwanted(client: twisted.Client) -> None:
        del thread.closes_at_end[client]
        client.close()

    try:
        made = thread.wait(dial, timeout, unwanted)
    except TimeoutError:
        raise TimeoutError(
            f"no connection to {address} within {timeout:g} s: is a node listening there?"
            " (standard error says why, where the program has no log)"
        ) from None
    return Client(made, thread, timeout)
