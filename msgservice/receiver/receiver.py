"""The receiving side's public face: `Receiver`.

    node ─ TRANSFER ─► way ─► inbox ─► handling ─► your handler
         ◄─ ACK, NACK ─┘                │ its outcome
                       └◄───────────────┘

Here: what a user says about a receiver, its nodes, starting and stopping. Connections live in
`receiver.ways`, order, turns and outcomes in `handling`, what was taken in `core.inbox`.
"""

from __future__ import annotations

import inspect
import uuid
from collections.abc import Callable, Sequence
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import Any, Required, TypedDict, cast

from twisted.application.service import Service
from twisted.internet.defer import Deferred, fail, gatherResults, succeed
from twisted.internet.interfaces import (
    IDelayedCall,
    IReactorCore,
    IReactorFromThreads,
    IReactorTime,
)
from twisted.logger import Logger
from twisted.python.failure import Failure

from msgservice.arguments import check_flags, check_kind, check_methods, reactor_first
from msgservice.clock import check_reactor_runs, monotonic_of, timed
from msgservice.codecs import decode_content
from msgservice.connection import Prover
from msgservice.core.frames import ReceiveOptions
from msgservice.core.marks import SHARED_RANGES_MAX
from msgservice.core.subjects import check_name, check_pattern
from msgservice.errors import (
    CannotListen,
    LimitReached,
    LogFailed,
    MsgServiceError,
    check_runs,
    check_takes,
)
from msgservice.identity.prover import prover_of
from msgservice.interfaces import IChannelUser, IConnector
from msgservice.limits import INTEGER_MAX, Limits, is_integer, messages_and_bytes
from msgservice.receiver.handling.engine import Handling
from msgservice.receiver.handling.threads import ThreadedHandling
from msgservice.receiver.handling.transactions import StoredHandling, StoredInbox, takes_transaction
from msgservice.receiver.inbox.file import InboxFile
from msgservice.receiver.received import Decode
from msgservice.receiver.reception import Reception
from msgservice.receiver.ways import Attachment, Dial, FindsTransport, Listening, Way
from msgservice.receiver_options import NONE, ORDERS, STRICT
from msgservice.transport.addresses import check_listener
from msgservice.transport.registry import Transports
from msgservice.unlogged import speak
from msgservice.waiters import Waiters

LISTEN_AGAIN_SECONDS = 5.0  # between two tries to open a port that was open before
CONCURRENCY = 100  # asynchronous handlers that run at once; the window alone would allow 65,536


class State(Enum):
    """The state of a receiver. Whether it is to work is Twisted's `running`."""

    IDLE = "idle"
    OPENING = "opening"  # its stored inbox
    GIVING_UP = "giving up"  # … and it is to stop as soon as that is done
    READY = "ready"  # nodes may connect
    STOPPING = "stopping"


class ReceiverArguments(TypedDict, total=False):
    """The arguments of `Receiver` but its reactor, for receivers that are made around one.

    They have no handler where the program takes the messages one by one (`receiver.deliveries`).
    """

    name: Required[str]
    handler: Callable[..., Any]
    batch: bool
    threads: int
    inbox: str | Path | StoredInbox | None
    order: str
    window: int | tuple[int, int] | None
    shared: bool
    concurrency: int
    limits: Limits | None
    transports: FindsTransport | None
    decode: Decode
    incarnation: str | None


class Receiver(Service):
    """A named receiver of messages, and the handler that gets them.

    It works from its first `attach` or `listen` on, and stops before the reactor does; as a child
    of a service, from the service's start to its stop. `handler(message)` returns None, a Deferred,
    or is a coroutine function; see docs/receiver.md for what its outcome means. With `batch` it
    gets a list of messages, which are acknowledged or sent again as one; with `threads` it may
    block; with `inbox` (a file) what it writes through the inbox's transaction happens once; with
    both, it blocks and returns its writes.

    `order`: "strict" or "none"; what the node answers holds. `window`: how much is taken
    unanswered, `(messages, bytes)` or messages. `concurrency`: asynchronous handlers at once.
    `shared`: this is one of several workers of its name, each of which gets messages of its own
    (order "none"); its window is twice `concurrency`, unless it says another. `transports`: finds
    the transport of an address. `decode(body, headers)` makes `message.content`.

    Raises `BadName`, and `ValueError` or `TypeError` for arguments that cannot be.
    """

    logger = Logger()

    @reactor_first(
        "Receiver(reactor, name=..., handler=...)",
        "; msgservice.aio.Receiver and msgservice.blocking.Receiver need none",
    )
    def __init__(
        self,
        reactor: IReactorTime,
        *,
        name: str,
        handler: Callable[..., Any],
        batch: bool = False,
        threads: int = 0,
        inbox: str | Path | StoredInbox | None = None,
        order: str = STRICT,
        window: int | tuple[int, int] | None = None,
        shared: bool = False,
        concurrency: int = CONCURRENCY,
        limits: Limits | None = None,
        transports: FindsTransport | None = None,
        decode: Decode = decode_content,
        incarnation: str | None = None,
    ) -> None:
        check_reactor_runs(reactor, "msgservice.aio.Receiver(name=..., handler=...)")
        speak()
        name = check_name(name)
        if not callable(handler):
            raise TypeError(f"handler must be callable, not {handler!r}")
        check_runs(handler)
        if inbox is None or not takes_transaction(handler):
            check_takes(handler, "a list of messages" if batch else "the message")
        if order not in ORDERS:
            allowed = " or ".join(f'"{one}"' for one in ORDERS)
            raise ValueError(f"order must be {allowed}, not {order!r}")
        check_flags(batch=batch, shared=shared)
        check_methods("a function is needed", ("__call__",), decode=decode)
        if not (inbox is None or isinstance(inbox, str | Path)):
            check_methods("the path of a file is needed", ("open",), inbox=inbox)
        if incarnation is not None:
            check_kind(str, "text is needed", incarnation=incarnation)
        if transports is not None:
            check_methods("Transports are needed", ("find",), transports=transports)
        if limits is not None:
            check_kind(Limits, "Limits are needed", limits=limits)
        if shared and order != NONE:
            raise ValueError('shared needs order="none"')
        if not is_integer(threads) or not is_integer(concurrency):
            raise TypeError("threads and concurrency must be integers")
        if threads < 0:
            raise ValueError(f"threads must be 0 or more, not {threads}")
        if concurrency < 1:
            raise ValueError(f"concurrency must be 1 or more, not {concurrency}")
        if threads and inspect.iscoroutinefunction(handler):
            raise TypeError("a coroutine function cannot run on threads")
        self._core = reactor if IReactorCore.providedBy(reactor) else None
        self._at_shutdown: object = None
        self.reactor = reactor = timed(reactor)
        now = monotonic_of(reactor)
        self.name: str = name
        self.limits = limits if limits is not None else Limits()
        self.transports: FindsTransport = Transports() if transports is None else transports
        self.ways: list[Way] = []
        self._opening: dict[Listening, IDelayedCall] = {}  # to be tried again
        self._shared = shared
        self._state = State.IDLE
        self._inbox_path = inbox if isinstance(inbox, str | Path) else None
        self._why = ""  # the inbox cannot be used
        self._error: BaseException | None = None  # … as an error
        self._ready: Waiters[None] = Waiters()
        self._stopped: Waiters[None] = Waiters()
        how: dict[str, Any] = {"name": name, "clock": reactor, "now": now, "batch": batch}
        self.handling: Handling
        if inbox is not None:
            self.handling = StoredHandling(
                handler,
                inbox=self._make_inbox(inbox) if isinstance(inbox, str | Path) else inbox,
                failed=self._inbox_failed,
                threads=threads,
                concurrency=threads or concurrency,
                **how,
            )
        elif threads:
            self.handling = ThreadedHandling(handler, threads=threads, **how)
        else:
            self.handling = Handling(handler, concurrency=concurrency, **how)
        self._reception = Reception(
            name=name,
            incarnation=uuid.uuid4().hex if incarnation is None else incarnation,
            order=order,
            window=_window(
                (2 * (threads or concurrency)) if shared and window is None else window, self.limits
            ),
            shared=shared,
            limits=self.limits,
            reactor=reactor,
            now=now,
            decode=decode,
            handling=self.handling,
            ways=self.ways,
        )

    # --- getters

    @property
    def incarnation(self) -> str:
        """The life of this receiver that nodes hear of: its inbox file's, or one of this object."""
        return self._reception.incarnation

    @property
    def connected(self) -> bool:
        """Whether messages can arrive from any node."""
        return any(way.connected for way in self.ways)

    def when_connected(self) -> Deferred[None]:
        """Fire when messages can arrive from a node, which knows the name then; at once if so."""
        return succeed(None) if self.connected else self._reception.openings.wait()

    # --- verbs

    def attach(
        self,
        address: str,
        *,
        subjects: Sequence[str] | None = None,
        start: str | int | datetime = "new",
        retained: bool = True,
        user: str | None = None,
        password: str | None = None,
        token: str | None = None,
    ) -> Attachment:
        """Dial a node, for ever, and receive what matches `subjects` from it.

        `subjects`: patterns; None: those that the node's configuration has for this name.
        `start`: "new", "first", a position or a time (aware datetime), from which on a receiver
        that the node does not know yet gets messages. `retained`: whether such a one has what is
        retained of its subjects first, `message.retained`; with a `start`, what of it has left the
        log.
        `user` with `password`, or `token`: the login at that node, as with `connect`. Raises
        `BadAddress`, `BadSubject`, `BadValue`.
        """
        transport = self.transports.find(address)
        prover = prover_of(self.reactor, user=user, password=password, token=token)

        def dial(make_user: Callable[[], IChannelUser]) -> IConnector:
            return transport.connector(self.reactor, address, make_user, self.limits)

        return self.attach_through(
            dial,
            address=address,
            subjects=subjects,
            start=start,
            retained=retained,
            prover=prover,
        )

    def attach_through(
        self,
        dial: Dial,
        *,
        address: str,
        subjects: Sequence[str] | None = None,
        start: str | int | datetime = "new",
        retained: bool = True,
        prover: Prover | None = None,
    ) -> Attachment:
        """Attach by any means: `dial(make_user)` returns the service that connects.

        It calls `make_user() -> IChannelUser` for each channel. `address` is for people.
        `prover`: the login.
        """
        check_flags(retained=retained)
        receive = ReceiveOptions(
            subjects=_patterns(subjects, self.limits),
            start=_start(start),
            retained=retained,
            order=self._reception.order,
            shared=self._shared,
        )
        attachment = Attachment(self._reception, address, receive, dial, prover)
        self.ways.append(attachment)
        if self._state is State.READY:
            attachment.start()
        elif not self.running and self.parent is None:
            self.startService()
        elif self._why:
            attachment.says(self._why)
        return attachment

    def listen(self, address: str, *, insecure: bool = False) -> Deferred[Listening]:
        """Let nodes dial in; fire with the `Listening` (an `IListeningPort`) when it is open.

        `address`: a server endpoint, `tcp:7420`; loopback unless it says another interface, which
        needs `insecure=True`. Fails with `CannotListen`, `InsecureListener`, `BadAddress`. What
        such a receiver gets is in the node's configuration.
        """
        check_flags(insecure=insecure)
        receive = ReceiveOptions(order=self._reception.order, shared=self._shared)
        listening = Listening(self._reception, self.transports, address, receive)

        async def open_port() -> Listening:
            check_listener(self.transports.find(address), address, insecure=insecure)
            while self._state is not State.READY:
                if not self.running and self._state is not State.IDLE:
                    raise CannotListen(address, "the receiver was stopped")
                await self.ready()
            await listening.start()
            self.ways.append(listening)
            return listening

        if not self.running and self.parent is None:
            self.startService()
        return Deferred.fromCoroutine(open_port())

    def stop(self) -> Deferred[None]:
        """Take no more, let handlers end, send their answers, close; fire when all is done.

        Handlers have `limits.stop_timeout` seconds; then they are cancelled, and what they had
        is sent again when the receiver is back, not counted as an attempt. A node has
        `limits.close_timeout` seconds to say that it has stored what was answered. Cancelling the
        Deferred stops the wait only. Safe to call twice.
        """
        Service.stopService(self)  # it may have been started again while it stops
        if self._state is State.IDLE:
            return succeed(None)
        waiter = self._stopped.wait()
        if self._state in (State.OPENING, State.READY):
            is_open = self._state is State.READY
            self._state = State.STOPPING if is_open else State.GIVING_UP
            stopped = Deferred.fromCoroutine(self._stop(is_open))
            stopped.addErrback(lambda failure: self.logger.failure("stopping", failure))
            stopped.addBoth(self._has_stopped)
            stopped.addErrback(lambda failure: self.logger.failure("starting again", failure))
        return waiter

    def _has_stopped(self, _: object) -> None:
        self._state = State.IDLE
        if self._at_shutdown is not None and self._core is not None:
            self._core.removeSystemEventTrigger(self._at_shutdown)
            self._at_shutdown = None
        stopped = self._stopped.take()
        if self.running:
            self._start()
        stopped.fire(None)

    async def _stop(self, is_open: bool) -> None:
        if not is_open:
            try:
                await self._ready.wait()
            except MsgServiceError:
                return  # it never was
        for call in self._opening.values():
            call.cancel()
        self._opening.clear()
        for way in self.ways:
            way.stop_taking()
        await self.handling.stop(self.limits.stop_timeout)
        self.handling.stop_threads()
        lost = []
        for way in self.ways:
            lost += [connection.when_lost for connection in way.connections]
        await gatherResults([Deferred.fromCoroutine(self._leave(way)) for way in self.ways])
        for each in lost:
            await each
        if self._reception.inbox is not None:
            await self._reception.inbox.close()
        for way in self.ways:
            if self._why:
                way.says(self._why)

    async def _leave(self, way: Way) -> None:
        """Say goodbye on the connections of a way, and close them when the nodes have said theirs.

        In the turn in which they have: else the connection would end, and be made anew.
        """
        await way.say_bye()
        await way.stop()

    def ready(self) -> Deferred[None]:
        """Fire when nodes may connect: the stored inbox is open, or there is none.

        Fails with what opening it failed with, also when that was before: `LogLocked`,
        `LogTooNew`, `LogDamaged`, `DataFolderUnusable`. Cancelling it stops the wait only.
        """
        if self._state is State.IDLE and self._error is not None:
            return fail(self._error)
        return succeed(None) if self._state is State.READY else self._ready.wait()

    # --- IService

    def startService(self) -> None:  # noqa: D102  # Twisted's
        if self.running:
            return
        Service.startService(self)
        if self._state is State.IDLE:  # else when it has stopped
            self._start()

    def _start(self) -> None:
        self._stop_with_reactor()
        self.handling.start()
        self._why, self._error = "", None
        self._state = State.OPENING
        if isinstance(self.handling, StoredHandling):
            if self._inbox_path is not None:  # one is opened once
                self.handling.inbox = self._make_inbox(self._inbox_path)
            opening = self.handling.inbox.open().addCallbacks(self._begin, self._inbox_unusable)
            opening.addErrback(lambda failure: self.logger.failure("starting", failure))
        else:
            self._begin()

    def _stop_with_reactor(self) -> None:
        """Say goodbye before the reactor ends, where no parent does: that is no lost connection."""
        if self._core is None or self.parent is not None or self._at_shutdown is not None:
            return

        def stop() -> Deferred[None]:
            self._at_shutdown = None
            return self.stop()

        self._at_shutdown = self._core.addSystemEventTrigger("before", "shutdown", stop)

    def _begin(self, inbox: str = "") -> None:
        is_wanted = self._state is State.OPENING
        self._state = State.READY if is_wanted else State.STOPPING
        for way in self.ways if is_wanted else ():
            if isinstance(way, Attachment):
                way.start()
            elif isinstance(way, Listening):
                self._listen_again(way)
        self._ready.fire(None)

    def _listen_again(self, way: Listening, *, is_told: bool = False) -> None:
        self._opening.pop(way, None)
        opened = way.start()
        opened.addCallbacks(self._listens, self._not_listening, errbackArgs=(way, is_told))

    def _listens(self, way: Listening) -> None:
        way.says("")
        if self._state is not State.READY:
            way.stop_taking()  # it was stopped while the port was opened

    def _not_listening(self, failure: Failure, way: Listening, is_told: bool) -> None:
        way.says(failure.getErrorMessage())
        if not is_told:
            self.logger.error(
                "receiver {receiver} cannot listen again on {address}, and tries on: {error}",
                receiver=self.name,
                address=way.address,
                error=failure.getErrorMessage(),
            )
        if self._state is State.READY:
            self._opening[way] = self.reactor.callLater(
                LISTEN_AGAIN_SECONDS, self._listen_again, way, is_told=True
            )

    def _inbox_unusable(self, failure: Failure) -> None:
        if self._state is State.OPENING:  # else it has still to stop, and perhaps to start again
            self._state = State.IDLE
            self.running = 0
        self._error = failure.value
        self._why = failure.getErrorMessage()
        for way in self.ways:
            way.says(self._why)
        self.logger.error(
            "receiver {receiver} does not start: {error}", receiver=self.name, error=self._why
        )
        self._ready.fail(failure)

    def _inbox_failed(self, error: LogFailed) -> None:
        """Take nothing more: what is on disk is no longer known (SEMANTICS 19)."""
        if self._state is State.READY:
            self._why, self._error = str(error), error
            self.logger.critical(
                "receiver {receiver} stops: {error}", receiver=self.name, error=self._why
            )
            self.stop()

    def _make_inbox(self, path: str | Path) -> StoredInbox:
        return InboxFile(
            path,
            reactor=cast("IReactorFromThreads", self.reactor),
            ranges_max=SHARED_RANGES_MAX if self._shared else 0,
        )

    def stopService(self) -> Deferred[None]:  # noqa: D102  # Twisted's
        return self.stop()


def _window(window: int | tuple[int, int] | None, limits: Limits) -> tuple[int, int]:
    if window is None:
        return limits.window_messages, limits.window_bytes
    return messages_and_bytes(
        "window", (window, limits.window_bytes) if isinstance(window, int | float) else window
    )


def _patterns(subjects: Sequence[str] | None, limits: Limits) -> list[str] | None:
    if subjects is None:
        return None
    if isinstance(subjects, str):
        raise TypeError(f"subjects is a list of patterns, not {subjects!r}")
    if not subjects:
        raise ValueError("subjects has no patterns; leave it out for those the node has")
    if len(subjects) > limits.patterns:
        raise LimitReached("patterns", limits.patterns)
    return [check_pattern(pattern) for pattern in subjects]


def _start(start: str | int | datetime) -> str | int:
    if isinstance(start, datetime):
        if start.tzinfo is None:
            raise ValueError(f"start {start} has no time zone")
        return f"@{start.isoformat()}"
    if isinstance(start, int) and is_integer(start):
        if not 0 <= start <= INTEGER_MAX:
            raise ValueError(f"start must be from 0 to {INTEGER_MAX}, not {start}")
        return start
    if not isinstance(start, str) or (start not in ("new", "first") and not start.startswith("@")):
        raise ValueError(f'start must be "new", "first", a position or a time, not {start!r}')
    return start
