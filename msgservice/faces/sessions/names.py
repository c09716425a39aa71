"""Logging over TCP under its old names: a server of records, and a logger that sends to one.

    RemoteMessagingSender (a Logger) ─► RemoteMessagingSocketHandler ─► Hop ─► a server of records
    RemoteMessagingServer ◄─ a Listener ◄─ any `logging.handlers.SocketHandler`

What the original had and these names promise; sessions proper are `central` and `remote`. A record
waits, bounded, while the server is away, and is sent again where its kernel did not have it; what
the server's program did with it, this wire cannot tell.
"""

from __future__ import annotations

import logging
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from logging.handlers import DEFAULT_TCP_LOGGING_PORT
from typing import Any

from twisted.internet.defer import Deferred, gatherResults, maybeDeferred, succeed
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.interfaces import IAddress, IStreamClientEndpoint, IStreamServerEndpoint
from twisted.internet.ssl import CertificateOptions
from twisted.logger import Logger
from twisted.python.threadable import isInIOThread

from msgservice.clock import timed
from msgservice.faces.sessions.content.records import RecordsCodec
from msgservice.faces.sessions.envelope import Item, Message
from msgservice.faces.sessions.errors import RemoteLeft, SessionError
from msgservice.faces.sessions.handlers import Handlers, Job, SessionMessage
from msgservice.faces.sessions.hop import Account, Hop
from msgservice.faces.sessions.limits import SessionLimits
from msgservice.faces.sessions.listener import LISTEN, Inbound, Listener
from msgservice.faces.sessions.outgoing import Entry
from msgservice.faces.sessions.sender import Sender
from msgservice.waiters import Waiters

NAME_MAX = 1_000  # characters of the name of a logger; a record with a longer one is the root's


class RemoteMessagingError(SessionError):
    """A record that could not be taken: the queue towards its server is full, or it was closed."""


def handle_by_name(record: logging.LogRecord) -> None:
    """Hand a record to the handlers of its name, as the server of the logging cookbook does.

    Where nobody here has asked for that logger, to those of the nearest one above it: names are the
    other side's to choose, and a logger that was made stays for ever.
    """
    known, name = logging.root.manager.loggerDict, record.name
    if not isinstance(name, str) or len(name) > NAME_MAX:
        name = ""
    logger = known.get(name)
    if isinstance(logger, logging.Logger):
        logger.handle(record)
        return
    while name and not isinstance(logger, logging.Logger):
        name = name.rpartition(".")[0]
        logger = known.get(name)
    (logger if isinstance(logger, logging.Logger) else logging.root).callHandlers(record)


class RemoteMessagingServer:
    """A server of log records, from any number of clients at once, in the order of each.

    Args:
        handler: called with a `logging.LogRecord`; by default its logger handles it.
        reactor: clock, sockets and threads; by default the one that is installed.
        listen: a Twisted endpoint or its description; by default a port that the kernel chooses.
        threads: so many threads for the handler, which may block then.
    """

    def __init__(
        self,
        handler: Callable[[logging.LogRecord], object] = handle_by_name,
        *,
        reactor: Any = None,
        listen: str | IStreamServerEndpoint = LISTEN,
        threads: int = 0,
        codec: RecordsCodec | None = None,
        tls: CertificateOptions | None = None,
        limits: SessionLimits | None = None,
        insecure: bool = False,
    ) -> None:
        reactor = reactor if reactor is not None else installed_reactor()
        self._handler = handler
        self._listener = Listener(
            reactor,
            user=self,
            listen=listen,
            codec=(codec or RecordsCodec()).without_controls(),
            limits=limits,
            tls=tls,
            insecure=insecure,
        )
        limits = self._listener.limits
        self._handlers = Handlers(reactor, self._handle, threads=threads, limits=limits)

    @property
    def serverAddress(self) -> tuple[str, int] | None:
        """The host and port that it listens at; None before `start`."""
        return self._listener.address

    @property
    def serverIP(self) -> str | None:
        """The host that it listens at."""
        return self.serverAddress[0] if self.serverAddress is not None else None

    @property
    def serverPort(self) -> int | None:
        """The port that it listens at."""
        return self.serverAddress[1] if self.serverAddress is not None else None

    def start(self) -> Deferred[IAddress]:
        """Listen; fires with the address, for TCP at once. Fails with `CannotListen`."""
        return self._listener.listen()

    def stop(self) -> Deferred[None]:
        """End; fires when all connections have, and the handlers that run."""
        ended = gatherResults([self._listener.stop(), self._handlers.stop()])
        return ended.addCallback(lambda _: None)

    def connection_opened(self, inbound: Inbound) -> None:
        """See `ListenerUser`."""

    def connection_lost(self, inbound: Inbound, reason: str) -> None:
        """See `ListenerUser`."""

    def item_received(self, inbound: Inbound, item: Item, size: int) -> None:
        """See `ListenerUser`."""
        assert isinstance(item, Message)  # see `without_controls`
        if item.failure is not None:  # of a numbered one, which nobody here answers
            self._handlers.fail(inbound, item.failure, inbound.peer)
            return
        message = SessionMessage(item.content, None, inbound.peer, record=item.record)
        outcome = self._handlers.submit(inbound, message)
        if isinstance(outcome, Job):
            inbound.hold(size)
            outcome.then(lambda _: inbound.release(size))

    def _handle(self, message: SessionMessage) -> object:
        fields = dict(message.record or {"msg": message.content})
        fields.update(msg=message.content, args=None)
        return self._handler(logging.makeLogRecord(fields))


class RemoteMessagingSocketHandler(logging.Handler):
    """A handler of log records that sends them to a server of records.

    It may be used from any thread, and while it sends: an object that is collected then may log.
    What was handed over waits for the reactor's next turn, within the same limits.
    """

    _log = Logger()

    def __init__(
        self,
        host: str,
        port: int = DEFAULT_TCP_LOGGING_PORT,
        *,
        reactor: Any = None,
        endpoint: IStreamClientEndpoint | None = None,
        limits: SessionLimits | None = None,
    ) -> None:
        super().__init__()
        self._reactor: Any = timed(reactor if reactor is not None else installed_reactor())
        self._limits = limits = limits or SessionLimits()
        self._codec = RecordsCodec()
        self._account = Account(  # what has been let in has its place
            replace(limits, queue_messages=sys.maxsize, queue_bytes=sys.maxsize)
        )
        if endpoint is None:
            endpoint = HostnameEndpoint(self._reactor, host, port, timeout=limits.dial_timeout)
        self._sender = Sender(self._reactor, endpoint, self, limits=limits, redial_seconds=None)
        self._hop = Hop(
            self._reactor,
            account=self._account,
            sender=self._sender,
            codec=self._codec,
            limits=limits,
            acks=False,
        )
        self._is_started = self._is_closed = self._has_ended = False
        self._ends: Waiters[None] = Waiters()
        # Whoever logs adds at one end, and the reactor takes at the other one, without a lock: what
        # it collects meanwhile may log, and whose record is being made may wait for the reactor.
        self._handed: deque[bytes] = deque()
        self._handed_bytes = self._taken_bytes = 0  # of all, ever
        self._is_due = False  # whether `_take` is to be called

    @property
    def queued(self) -> int:
        """Records that the server's kernel has not acknowledged."""
        return self._account.outgoing.messages + len(self._handed)

    def emit(self, record: logging.LogRecord) -> None:
        """Send a record. Raises `RemoteMessagingError` where the queue is full, or it is closed.

        One that cannot be pickled goes to `handleError`, as with any handler of logging.
        """
        try:
            prepared = self._codec.prepare_record(record)
        except Exception:
            self.handleError(record)
            return
        self.acquire()  # as `handle` has done: it is reentrant
        try:
            self._check(len(prepared))
            self._handed_bytes += len(prepared)
            self._handed.append(prepared)
        finally:
            self.release()
        if (
            not self._is_due
        ):  # not at once where this is the reactor's thread: it may be sending now
            self._is_due = True
            self._reactor.callFromThread(self._take)

    def flushed(self) -> Deferred[None]:
        """Fire when the server's kernel has all that was sent until now."""
        self._take()
        last = self._last
        return last.acknowledged() if last is not None else succeed(None)

    def close(self) -> Deferred[None]:  # type: ignore[override]  # logging looks at no result
        """Send what waits, for `stop_seconds` at most, then end; fires then.

        What the server did not take is given up, and the log says how much; `flushed` fails then.
        """
        super().close()
        self.acquire()  # what is let in before that is sent
        was_closed, self._is_closed = self._is_closed, True
        self.release()
        ended = succeed(None) if self._has_ended else self._ends.wait()
        if was_closed:
            return ended
        if isInIOThread():
            self._finish()
        else:
            self._reactor.callFromThread(self._finish)
        return ended

    # --- from its client

    def sender_connected(self) -> None:
        """See `SenderUser`."""
        self._hop.connected()
        self._hop.open()

    def sender_writable(self) -> None:
        """See `SenderUser`."""
        self._hop.pump()

    def sender_lost(self, reason: str) -> None:
        """See `SenderUser`."""
        self._hop.close()

    def sender_gave_up(self, reason: str) -> None:
        """See `SenderUser`. It never does."""

    # --- inside

    _last: Entry | None = None

    def _check(self, size: int) -> None:
        """Raise `RemoteMessagingError` where a record of this size cannot be taken."""
        if self._is_closed:
            raise RemoteMessagingError("the sender is closed")
        limits, outgoing, queued = self._limits, self._account.outgoing, self.queued
        if queued >= limits.queue_messages:
            raise RemoteMessagingError(f"the queue is full: {queued} records wait")
        handed_bytes = self._handed_bytes - self._taken_bytes
        if queued and outgoing.bytes + handed_bytes + size > limits.queue_bytes:
            raise RemoteMessagingError(f"the queue is full: limit queue_bytes of {queued} records")

    def _take(self) -> None:
        """Let what was handed over wait for the server."""
        self._is_due = False  # before it looks: what is handed over behind that look makes it due
        handed = self._handed
        if handed and not self._is_started:
            self._is_started = True
            self._sender.start()
        while handed:  # each is counted where it was until it is where it comes
            self._last = Entry(handed[0])
            self._account.outgoing.add(self._last)
            self._taken_bytes += len(handed.popleft())
        self._hop.pump()

    def _finish(self) -> None:
        flushed = self.flushed()
        timer = self._reactor.callLater(self._limits.stop_seconds, self._give_up)

        def stop(_: object) -> Deferred[None]:
            if timer.active():
                timer.cancel()
            self._hop.close()
            return self._sender.stop()

        def ended(_: object) -> None:
            self._has_ended = True
            self._ends.fire(None)

        flushed.addErrback(lambda _: None).addCallback(stop).addCallback(ended)

    def _give_up(self) -> None:
        given_up = self._account.outgoing.end()
        self._log.warn("{count} log records are not sent: no server", count=len(given_up))
        for entry in given_up:
            entry.settle(RemoteLeft("the server did not take it in time"))


class RemoteMessagingSender(logging.Logger):
    """A logger whose records go to one server of records: `info`, `debug`, `error`, `close`.

    Args:
        name: of the logger, and so in the records.
        host, port: of the server.
        logLevel: what is below it is not sent.
        reactor: by default the one that is installed.
    """

    def __init__(
        self,
        name: str,
        host: str,
        port: int = DEFAULT_TCP_LOGGING_PORT,
        logLevel: int = logging.DEBUG,
        *,
        reactor: Any = None,
        endpoint: IStreamClientEndpoint | None = None,
        limits: SessionLimits | None = None,
    ) -> None:
        super().__init__(name, logLevel)
        self.handler = RemoteMessagingSocketHandler(
            host, port, reactor=reactor, endpoint=endpoint, limits=limits
        )
        self.addHandler(self.handler)

    def close(self) -> Deferred[None]:
        """Send what waits, then end; fires then."""
        return maybeDeferred(self.handler.close)


def installed_reactor() -> Any:
    """Return the reactor of this process, for those of these names that are not given one."""
    from twisted.internet import reactor  # noqa: TID251  # the old names take none

    return reactor
