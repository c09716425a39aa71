"""A listener: the server of a side. It receives from any number of connections, and writes nothing.

    bytes ─ FrameSplitter ─► payloads ─ Decoding ─► items ─► ListenerUser
                 ▲ paused while too much of a connection is unhandled, or being decoded

What an item means, and what becomes of a message, is its user's.
"""

from __future__ import annotations

import os
from collections import Counter
from functools import partial
from ipaddress import ip_address
from typing import Any, Protocol

from twisted.internet.defer import Deferred, fail, maybeDeferred, succeed
from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IListeningPort,
    IReactorTime,
    IStreamServerEndpoint,
    ITCPTransport,
)
from twisted.internet.protocol import Factory, connectionDone
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.internet.ssl import CertificateOptions
from twisted.logger import Logger
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure

from msgservice.arguments import check_flags, check_kind, wrong
from msgservice.clock import monotonic_of, timed
from msgservice.core.framing import FrameSplitter
from msgservice.errors import CannotListen, FrameTooLarge, InsecureListener
from msgservice.faces.sessions.content.codec import HEAD_BYTES, ISessionCodec
from msgservice.faces.sessions.content.safe import SafeCodec
from msgservice.faces.sessions.decoding import Budget, Decoding
from msgservice.faces.sessions.envelope import Item, Message
from msgservice.faces.sessions.limits import SessionLimits
from msgservice.transport.addresses import is_local, is_local_host, parse_address
from msgservice.waiters import Waiters

LISTEN = "tcp:0:interface=127.0.0.1"  # a port of loopback that the kernel chooses
BACKLOG = 4_096  # hellos that come at once, when a central is begun again; kernels have less
_HAVE_BACKLOG = frozenset({"tcp", "tcp6", "ssl", "unix"})
UNIX = "unix"  # the host of those who come over a Unix socket


def spelled(host: str) -> str:
    """Return an address as it is always written, IPv4 within IPv6 too; a name as it is."""
    try:
        address = ip_address(host)
    except ValueError:
        return host
    return str(getattr(address, "ipv4_mapped", None) or address)


class ListenerUser(Protocol):
    """The owner of a listener."""

    def connection_opened(self, inbound: Inbound) -> None:
        """Take note of a connection."""

    def item_received(self, inbound: Inbound, item: Item, size: int) -> None:
        """Take an item, in the order of its connection; `size`: of its payload, bytes."""

    def connection_lost(self, inbound: Inbound, reason: str) -> None:
        """Take note that nothing more comes; all that came whole was given before."""


class Inbound(TwistedProtocol):
    """One connection to a listener. `owner`: whatever its user keeps there."""

    _log = Logger()

    def __init__(self, listener: Listener) -> None:
        self.peer = "", 0
        self.owner: Any = None
        self.received_at = 0.0
        self.is_paused = False
        self._listener = listener
        limits = listener.limits
        self._messages_max, self._bytes_max = limits.unhandled_messages, limits.unhandled_bytes
        self._splitter = FrameSplitter(limits.payload_bytes)
        self._held_messages = self._held_bytes = 0
        self._held_small = 0  # the bytes of those that need not be counted once it `is_proven`
        self.is_proven = False
        self._unfinished, self.unfinished_since = 0, 0.0  # bytes of a payload that is not whole
        self._first: IDelayedCall | None = None  # until something whole has come
        self._is_open = False
        self._is_over = False  # nothing more is read
        self._lost: str | None = None
        self._decoding = Decoding(
            listener.reactor,
            codec=listener.codec,
            budget=listener.budget,
            limits=limits,
            give=partial(listener.user.item_received, self),
            fail=self.abort,
            changed=self._look,
        )

    @property
    def host(self) -> str:
        """The host that it comes from; `unix` of a Unix socket."""
        return self.peer[0]

    @property
    def has_partial(self) -> bool:
        """Whether a payload is arriving that is not whole yet."""
        return self._splitter.partial > 0

    @property
    def is_unfinished(self) -> bool:
        """Whether it has to do with the bytes that its listener counts as unfinished."""
        return self._unfinished > 0

    @property
    def is_lost(self) -> bool:
        """Whether it has ended, though what came before that may not be given yet."""
        return self._lost is not None

    def prove(self) -> None:
        """Take it for who was meant: by what it says, it is the other end of a session.

        That has no more on its way than the window that it was told, and what it says beside
        messages must be heard, or who waits for that holds up all others. So the budget of all
        connections is none of its concern, except for messages that alone are larger.
        """
        if not self.is_proven:
            self.is_proven = True
            self._decoding.free_bytes = self._bytes_max
            self._listener.budget.give_back(self._held_small)

    def hold(self, size: int) -> None:
        """Count a message whose handler has not ended."""
        self._held_messages += 1
        self._held_bytes += size
        if size <= self._bytes_max:
            self._held_small += size
        if size > self._decoding.free_bytes:
            self._listener.budget.used += size
        if self._has_enough:
            self._look()

    def release(self, size: int) -> None:
        """Count one off whose handler has."""
        self._held_messages -= 1
        self._held_bytes -= size
        if size <= self._bytes_max:
            self._held_small -= size
        if self.is_paused:
            self._look()
        if size > self._decoding.free_bytes:
            self._listener.budget.give_back(size)

    def abort(self, reason: str) -> None:
        """End the connection, and say why in the log."""
        if self._is_over:
            return
        self._is_over = True
        self._count_unfinished(0)
        self._decoding.stop()
        self._log.warn(
            "connection from {host}:{port} ends: {reason}",
            host=self.peer[0],
            port=self.peer[1],
            reason=reason,
        )
        self.transport.abortConnection()  # type: ignore[union-attr]  # it is connected

    def close(self) -> None:
        """End the connection; what has come whole is still given, unless the budget is spent."""
        if self._decoding.waits_for_budget:  # for as long as handlers run, which a stop limits
            self._decoding.stop()
        if not self._is_over:
            self._is_over = True
            self.transport.abortConnection()  # type: ignore[union-attr]  # it is connected
        else:
            self._look()

    # --- Twisted's

    def connectionMade(self) -> None:  # noqa: D102
        transport: Any = self.transport
        address = transport.getPeer()
        self.peer = spelled(getattr(address, "host", UNIX)), getattr(address, "port", 0)
        if ITCPTransport.providedBy(transport):
            transport.setTcpKeepAlive(True)
        self._is_open = self._listener.opened(self)
        if not self._is_open:
            self._is_over = True
            transport.abortConnection()
            return
        if not self._listener.may_be_silent:
            seconds = self._listener.limits.first_seconds
            self._first = self._listener.reactor.callLater(seconds, self._said_nothing)

    def dataReceived(self, data: bytes) -> None:  # noqa: D102
        if self._is_over or self._decoding.is_ending:
            return
        self.received_at = self._listener.now()
        last: tuple[Message | None, str] | None = None
        try:
            payloads = self._splitter.feed(data)
        except FrameTooLarge as too_large:
            payloads, last = self._splitter.take_complete(), self._too_large(str(too_large))
        if not all(payloads):  # a prefix that says 0
            payloads, last = payloads[: payloads.index(b"")], (None, "a payload of no bytes")
        if payloads and self._first is not None:
            self._stop_first()
        self._decoding.feed(payloads, last)
        unfinished = self._splitter.partial
        if unfinished != self._unfinished and not self._is_over:
            if payloads or not self._unfinished:
                self.unfinished_since = self.received_at
            self._count_unfinished(unfinished)
        self._look()

    def connectionLost(self, reason: Failure = connectionDone) -> None:  # noqa: D102
        self._is_over = True
        self._stop_first()
        self._count_unfinished(0)
        self._lost = reason.getErrorMessage()
        self._look()

    # --- inside

    def _said_nothing(self) -> None:
        self._first = None
        self.abort(f"nothing whole within first_seconds = {self._listener.limits.first_seconds}")

    def _stop_first(self) -> None:
        first, self._first = self._first, None
        if first is not None and first.active():
            first.cancel()

    def _count_unfinished(self, size: int) -> None:
        change, self._unfinished = size - self._unfinished, size
        self._listener.count_unfinished(change)

    def _too_large(self, reason: str) -> tuple[Message | None, str]:
        """Return the message that has failed by its size, if its number has come with its prefix.

        Else it is sent again on the next connection, until that is so.
        """
        numbering = self._listener.codec.numbering(self._splitter.refused[:HEAD_BYTES])
        return (Message(None, *numbering, failure=reason) if numbering else None), reason

    @property
    def _has_enough(self) -> bool:
        """Whether it is to be read no further: what is not handled is as much as may be."""
        messages, size = self._held_messages, self._held_bytes
        if self.is_proven:  # with a window that is full, acknowledgements are read
            return messages > self._messages_max or (messages > 1 and size > self._bytes_max)
        return messages >= self._messages_max or size >= self._bytes_max

    @property
    def _has_room(self) -> bool:
        """Whether it is read again."""
        if self.is_proven:
            return not self._has_enough
        messages, size = self._held_messages, self._held_bytes
        return messages * 2 <= self._messages_max and size * 2 <= self._bytes_max

    def _look(self) -> None:
        """Pause or go on reading; tell the end once all that came is given."""
        is_busy = self._decoding.is_busy
        if self._lost is not None:
            if self._is_open and not self._decoding.has_payloads:
                self._is_open = False
                self._listener.closed(self, self._lost)
            return
        transport: Any = self.transport
        if self._is_over:
            return
        if not self.is_paused:
            if is_busy or self._has_enough:
                self.is_paused = True
                transport.pauseProducing()
        elif not is_busy and self._has_room:
            self.is_paused = False
            transport.resumeProducing()


class _InboundFactory(Factory):
    noisy = False

    def __init__(self, listener: Listener) -> None:
        self._listener = listener

    def buildProtocol(self, addr: IAddress | None) -> Inbound:
        return Inbound(self._listener)


class Listener:
    """The server of a side.

    Args:
        reactor: clock, sockets and threads.
        user: gets what comes.
        listen: a Twisted endpoint or its description.
        codec: of all that comes, since bytes do not tell which it is; None: `SafeCodec()`.
        limits: of its side; None: `SessionLimits()`.
        tls: for TLS; a listener that verifies the certificates of its clients may listen to all.
        insecure: whether one that does not may, too.
        may_be_silent: whether who connects may have nothing to say for longer than `first_seconds`.

    Raises `TypeError` for what is none of these: programs give them to a side as they are.
    """

    def __init__(
        self,
        reactor: IReactorTime,
        *,
        user: ListenerUser,
        listen: str | IStreamServerEndpoint = LISTEN,
        codec: ISessionCodec | None = None,
        limits: SessionLimits | None = None,
        tls: CertificateOptions | None = None,
        insecure: bool = False,
        may_be_silent: bool = False,
    ) -> None:
        codec = codec if codec is not None else SafeCodec()
        limits = limits if limits is not None else SessionLimits()
        if not ISessionCodec.providedBy(codec):
            raise wrong("codec", codec, "a codec of sessions is needed, like SafeCodec()")
        check_kind(SessionLimits, "SessionLimits are needed", limits=limits)
        if tls is not None:
            check_kind(CertificateOptions, "CertificateOptions are needed", tls=tls)
        check_flags(insecure=insecure)
        if not (isinstance(listen, str) or IStreamServerEndpoint.providedBy(listen)):
            raise wrong("listen", listen, "an endpoint or its description is needed")
        self.reactor: Any = timed(reactor)
        self.now = monotonic_of(reactor)
        self._endpoint = listen
        self.codec, self.user, self.limits = codec, user, limits
        self.budget = Budget(limits)
        self._tls = tls
        self._insecure = insecure
        self.may_be_silent = may_be_silent
        self._port: IListeningPort | None = None
        self._is_stopped = self._is_listening = False
        self._connections: set[Inbound] = set()
        self._per_host: Counter[str] = Counter()  # so many of them
        self.unfinished = 0  # bytes of payloads that are not whole, over all connections
        self._all_closed: Waiters[None] = Waiters()

    @property
    def address(self) -> tuple[str, int] | None:
        """The host and port that it listens at; of a Unix socket its path, and 0."""
        if self._port is None:
            return None
        address: Any = self._port.getHost()
        host = getattr(address, "host", None)
        return host or os.fsdecode(address.name), getattr(address, "port", 0)

    def listen(self) -> Deferred[IAddress]:
        """Listen; fires with the address. Fails with `CannotListen`, `InsecureListener`."""
        endpoint = self._endpoint
        if self._is_listening:  # or the first port would stay open for ever
            return fail(CannotListen(str(endpoint), "it listens already"))
        try:
            if isinstance(endpoint, str):
                self._check(endpoint)
                described = _with_backlog(endpoint)
                made: IStreamServerEndpoint = serverFromString(self.reactor, described)
            else:
                made = endpoint
        except Exception:
            return fail(Failure())
        factory: Any = _InboundFactory(self)
        if self._tls is not None:
            factory = TLSMemoryBIOFactory(self._tls, False, factory)
        self._is_listening = True
        d: Deferred[Any] = maybeDeferred(made.listen, factory)
        d.addCallbacks(self._listening, self._not_listening, errbackArgs=(str(endpoint),))
        return d

    def stop(self) -> Deferred[None]:
        """End: nobody connects any more, and all connections; fires when they have ended."""
        self._is_stopped = True
        port, self._port = self._port, None
        stopped = maybeDeferred(port.stopListening) if port is not None else succeed(None)
        return stopped.addCallback(self._close_all)

    # --- from connections

    def opened(self, inbound: Inbound) -> bool:
        """Return whether a connection may stay."""
        if self._is_stopped or len(self._connections) >= self.limits.connections_max:
            return False
        if self._per_host[inbound.host] >= self.limits.connections_per_host:
            return False
        self._connections.add(inbound)
        self._per_host[inbound.host] += 1
        self.user.connection_opened(inbound)
        return True

    def closed(self, inbound: Inbound, reason: str) -> None:
        """Take note of the end of a connection that stayed."""
        self._connections.discard(inbound)
        self._per_host[inbound.host] -= 1
        if not self._per_host[inbound.host]:
            del self._per_host[inbound.host]
        self.user.connection_lost(inbound, reason)
        if not self._connections:
            self._all_closed.fire(None)

    def count_unfinished(self, change: int) -> None:
        """Count bytes of payloads that are not whole; too many end the one begun first."""
        self.unfinished += change
        limit = self.limits.decoding_bytes
        if change > 0 and self.unfinished > limit:
            unfinished = [inbound for inbound in self._connections if inbound.is_unfinished]
            if len(unfinished) > 1:  # one alone is as large as it may be
                first = min(unfinished, key=lambda inbound: inbound.unfinished_since)
                first.abort(f"unfinished payloads are above decoding_bytes = {limit}")

    # --- inside

    @property
    def _may_be_open(self) -> bool:
        if self.codec.trusts:  # whoever reaches it can run code
            return self._verifies
        return self._insecure or self._verifies

    @property
    def _verifies(self) -> bool:
        tls = self._tls
        return tls is not None and bool(tls.verify) and bool(tls.requireCertificate)

    def _check(self, endpoint: str) -> None:
        address = parse_address(endpoint)
        if self._may_be_open or address.scheme == "unix":
            return
        # Twisted's own default is all interfaces.
        if not is_local_host(address.options.get("interface", "")):
            raise InsecureListener(endpoint, self._why_not())

    def _why_not(self) -> str:
        cure = "tls that verifies the certificates of clients"
        if not self.codec.trusts:
            cure += ", or insecure=True"
        return f"it is open to others than this machine: {cure} is needed"

    def _listening(self, port: IListeningPort) -> Any:
        address = port.getHost()
        self._port = port
        if not (self._may_be_open or is_local(address)):
            stopped = self.stop()
            return stopped.addCallback(lambda _: self._refuse(str(address)))
        if self._is_stopped:
            return self.stop().addCallback(lambda _: self._refuse_stopped(str(address)))
        return address

    def _refuse(self, endpoint: str) -> None:
        raise InsecureListener(endpoint, self._why_not())

    def _refuse_stopped(self, endpoint: str) -> None:
        raise CannotListen(endpoint, "it was stopped meanwhile")

    def _not_listening(self, failure: Failure, endpoint: str) -> Any:
        self._is_listening = False
        raise CannotListen(endpoint, failure.getErrorMessage()) from failure.value

    def _close_all(self, _: object) -> Deferred[None]:
        connections = list(self._connections)
        for inbound in connections:
            inbound.close()
        if not self._connections:
            return succeed(None)
        ended = self._all_closed.wait()
        # A payload on a thread, at most: its connection is closed already.
        timer: IDelayedCall = self.reactor.callLater(
            self.limits.stop_seconds, self._all_closed.fire, None
        )

        def stop_timer(result: Any) -> Any:
            if timer.active():
                timer.cancel()
            return result

        return ended.addBoth(stop_timer)


def _with_backlog(endpoint: str) -> str:
    """Return the description of a server that lets so many wait to be accepted, if none is said."""
    address = parse_address(endpoint)
    if address.scheme not in _HAVE_BACKLOG or "backlog" in address.options:
        return endpoint
    return f"{endpoint}:backlog={BACKLOG}"
