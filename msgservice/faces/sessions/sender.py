"""A sender: the client of a side, one outgoing connection to one server. It sends, and only that.

    Hop ─ write ─► framed ─► transport ─► the peer's kernel
                     room ◄── what the transport has taken

It dials by itself and dials again, from a second on for longer and longer, and so too a server that
accepts and closes. What is unanswered, whether it is sent again, and whether who answers is the one
that was meant, is the `hop`'s and its owner's.
"""

from __future__ import annotations

import fcntl
import random
import struct
import termios
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from twisted.application.internet import ClientService
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IHandshakeListener,
    IPushProducer,
    IReactorTime,
    ISSLTransport,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import Factory, connectionDone
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from msgservice.clock import monotonic_of, timed
from msgservice.core.backoff import Backoff
from msgservice.core.framing import encode_prefix
from msgservice.faces.sessions.limits import SessionLimits
from msgservice.waiters import Waiters

ROOM_BYTES = 256 * 1024  # what the transport may hold beyond what the kernel has taken
DELAY_MIN, DELAY_MAX = 1.0, 30.0  # between attempts, doubling …
DIALS_MIN = 5  # … and never longer than what leaves so many until it would be too late
HEALTHY_SECONDS = 10.0  # a connection that stood for so long was no accident
LOOK_SECONDS = 1.0  # between two looks whether the peer reads, while the transport is full …
LOOKS_MIN = 4  # … and so many in the time that it has, while something waits


class SenderUser(Protocol):
    """The owner of a sender."""

    def sender_connected(self) -> None:
        """Take note that it is connected: what is written from now on leaves."""

    def sender_writable(self) -> None:
        """Write on: there is room again."""

    def sender_lost(self, reason: str) -> None:
        """Take note that the connection has ended; it dials again by itself."""

    def sender_gave_up(self, reason: str) -> None:
        """Take note that it dials no more: `redial_seconds` are over."""


@implementer(IHandshakeListener, IPushProducer)
class _Wire(TwistedProtocol):
    """The connection that is up. What its server writes is dropped: nothing is to come."""

    def __init__(self, sender: Sender) -> None:
        self._sender = sender
        self.is_full = False
        self.written = 0  # bytes given to the transport
        self._is_open = False
        self._handshake: IDelayedCall | None = None

    def connectionMade(self) -> None:
        self._sender.wire_reached()
        if not ISSLTransport.providedBy(self.transport):
            self.handshakeCompleted()
        else:
            self._handshake = self._sender.in_dial_timeout(self.transport.abortConnection)

    def handshakeCompleted(self) -> None:
        transport: Any = self.transport
        if not self._is_open and not transport.disconnecting:
            self._is_open = True
            self._stop_handshake()
            transport.registerProducer(self, True)
            self._sender.wire_opened(self)

    def dataReceived(self, data: bytes) -> None:
        pass

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._stop_handshake()
        self._sender.wire_lost(self, reason.getErrorMessage())

    def _stop_handshake(self) -> None:
        if self._handshake is not None and self._handshake.active():
            self._handshake.cancel()

    def write(self, pieces: list[bytes]) -> None:
        self.written += sum(map(len, pieces))
        self.transport.writeSequence(pieces)  # type: ignore[union-attr]  # it is connected

    def waits(self) -> int:
        """Bytes that the peer's kernel has not acknowledged, as far as can be told."""
        transport: Any = self.transport
        held = len(getattr(transport, "dataBuffer", b"")) - getattr(transport, "offset", 0)
        held += getattr(transport, "_tempDataLen", 0)
        # Of TLS what is not encrypted yet: it gathers what is written in a turn, or a handshake.
        gathered = getattr(getattr(transport, "_aggregator", None), "_buffer", ())
        held += sum(map(len, (*gathered, *getattr(transport, "_appSendBuffer", ()))))
        try:
            raw = fcntl.ioctl(transport.fileno(), termios.TIOCOUTQ, b"\0\0\0\0")
        except (AttributeError, OSError, ValueError):
            return self.written  # nothing can be told
        unread: int = struct.unpack("i", raw)[0]
        return held + unread

    # --- IPushProducer: the transport's buffer fills and empties

    def pauseProducing(self) -> None:
        self.is_full = True
        self._sender.wire_full()

    def resumeProducing(self) -> None:
        self.is_full = False
        self._sender.wire_drained()

    def stopProducing(self) -> None:
        pass


class _WireFactory(Factory):
    noisy = False

    def __init__(self, sender: Sender) -> None:
        self._sender = sender

    def buildProtocol(self, addr: IAddress | None) -> _Wire:
        return _Wire(self._sender)


class Sender:
    """One client: it keeps one connection to one server, until it is stopped or gives up.

    Args:
        reactor: clock and sockets.
        endpoint: the server.
        user: whom it tells.
        redial_seconds: for how long it dials until its user says `established`; None: for ever.
        pause_max: between two attempts.
        on_reached: called when something accepts a connection, before any handshake.
        rng: floats from 0 to 1, for the pauses between attempts.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: IReactorTime,
        endpoint: IStreamClientEndpoint,
        user: SenderUser,
        *,
        limits: SessionLimits,
        redial_seconds: float | None,
        pause_max: float = DELAY_MAX,
        on_reached: Callable[[], object] = lambda: None,
        rng: Callable[[], float] = random.random,
    ) -> None:
        self._reactor = timed(reactor)
        self._now = monotonic_of(reactor)
        self._user: SenderUser | None = user
        self._limits = limits
        self._redial_seconds = redial_seconds
        self.wire_reached = on_reached
        self._away_since = 0.0  # since when it dials, whoever accepted and closed meanwhile
        self._established_at: float | None = None
        if redial_seconds is not None:
            pause_max = min(pause_max, redial_seconds / DIALS_MIN)
        self._backoff = Backoff(
            delay_min=DELAY_MIN,
            delay_max=min(DELAY_MAX, pause_max),
            healthy=HEALTHY_SECONDS,
            rng=rng,
        )
        self._why = "no connection yet"
        self._wire: _Wire | None = None
        self._is_stopping = False
        self._lost: Waiters[None] = Waiters()  # of the wire, once it is stopping
        self._timer: IDelayedCall | None = None  # of giving up, else of what is not read
        self._taken_since: tuple[float, int] | None = None  # when, and bytes until then
        self._service = ClientService(
            endpoint,
            _WireFactory(self),
            retryPolicy=self._backoff.policy(self._now),
            clock=self._reactor,
        )

    @property
    def is_connected(self) -> bool:
        """Whether what is written leaves."""
        return self._wire is not None

    @property
    def room(self) -> int:
        """Bytes that may be written now."""
        wire = self._wire
        if wire is None or wire.is_full or self._is_stopping:
            return 0
        transport: Any = wire.transport
        return max(0, ROOM_BYTES - int(getattr(transport, "_tempDataLen", 0)))

    @property
    def host(self) -> str | None:
        """The own address of the connection, which its server sees unless somebody is between."""
        if self._wire is None:
            return None
        transport: Any = self._wire.transport
        host: str | None = getattr(transport.getHost(), "host", None)
        return host

    def kernel_waits(self) -> int:
        """Bytes written on this connection that the peer's kernel has not acknowledged."""
        return self._wire.waits() if self._wire is not None else 0

    def start(self) -> None:
        """Dial."""
        self._away_since = self._now()
        self._begin_to_wait()
        self._service.startService()

    def established(self, *, is_proven: bool) -> None:
        """Take note that this connection's server is the one that was dialled.

        Unless that `is_proven` the connection has to stand for a while to count as one.
        """
        self._established_at = self._now() + (0 if is_proven else HEALTHY_SECONDS)

    def write(self, payloads: Sequence[bytes]) -> None:
        """Write payloads, each framed; dropped while there is no connection."""
        wire = self._wire
        if wire is not None and not self._is_stopping:
            wire.write([piece for one in payloads for piece in (encode_prefix(len(one)), one)])
            self._look_seldom()

    def abort(self) -> None:
        """End at once; the user hears nothing any more."""
        self._user = None
        self._is_stopping = True
        self._stop_timer()
        if self._wire is not None:
            self._wire.transport.abortConnection()  # type: ignore[union-attr]  # it is connected
        self._service.stopService()

    def stop(self) -> Deferred[None]:
        """End once what was written has left, after `stop_seconds` at the latest; fires then."""
        self._user = None
        self._stop_timer()
        wire, was_stopping, self._is_stopping = self._wire, self._is_stopping, True
        if wire is not None:
            ended = self._lost.wait()
            if not was_stopping:
                transport: Any = wire.transport
                transport.unregisterProducer()  # a transport that has one does not close
                self._timer = self._reactor.callLater(
                    self._limits.stop_seconds, transport.abortConnection
                )
                self._service.stopService()  # it calls `loseConnection`
        else:
            ended = Deferred()
            ended.callback(None)
            self._service.stopService()
        return ended

    # --- from the wire

    def wire_opened(self, wire: _Wire) -> None:
        """Take note of a connection."""
        if self._user is None:
            wire.transport.abortConnection()  # type: ignore[union-attr]  # it is connected
            return
        self._stop_timer()
        self._wire, self._taken_since = wire, None
        self._established_at = None
        self._backoff.established(self._now())
        self._user.sender_connected()

    def in_dial_timeout(self, function: Callable[[], object]) -> IDelayedCall:
        """Call a function once the time of one attempt is over."""
        return self._reactor.callLater(self._limits.dial_timeout, function)

    def wire_lost(self, wire: _Wire, reason: str) -> None:
        """Take note of its end."""
        self._why = reason
        if wire is not self._wire:
            return
        self._wire = None
        self._stop_timer()
        self._lost.fire(None)
        now = self._now()
        if self._established_at is not None and now >= self._established_at:
            self._away_since = now
        if self._user is not None:
            self._begin_to_wait()
            self._user.sender_lost(reason)

    def wire_full(self) -> None:
        """Take note that the transport has enough; a peer that reads nothing is cut off."""
        if not self._is_stopping:
            self._stop_timer()
            self._taken_since = None
            self._look()

    def wire_drained(self) -> None:
        """Take note that the transport wants more."""
        if not self._is_stopping:
            self._stop_timer()
            self._look_seldom()
            if self._user is not None:
                self._user.sender_writable()

    # --- inside

    def _look_seldom(self) -> None:
        """Look later whether what is written is taken: the transport need not be full of it."""
        if self._timer is None and self._wire is not None:
            seconds = self._limits.write_timeout / LOOKS_MIN
            self._timer = self._reactor.callLater(seconds, self._look)

    def _look(self) -> None:
        self._timer = None
        wire = self._wire
        if wire is None or self._is_stopping:
            return
        now, waits = self._now(), wire.waits()
        taken = wire.written - waits
        if not waits or not (taken or wire.is_full):  # or nothing can be told
            self._taken_since = None
            return
        if self._taken_since is None or taken > self._taken_since[1]:
            self._taken_since = now, taken
        if now - self._taken_since[0] >= self._limits.write_timeout:
            self._log.warn("a server has read nothing for {s} s", s=self._limits.write_timeout)
            wire.transport.abortConnection()  # type: ignore[union-attr]  # it is connected
        elif wire.is_full:
            self._timer = self._reactor.callLater(LOOK_SECONDS, self._look)
        else:
            self._look_seldom()

    def _begin_to_wait(self) -> None:
        if self._redial_seconds is not None:
            rest = self._away_since + self._redial_seconds - self._now()
            self._timer = self._reactor.callLater(max(0.0, rest), self._give_up)

    def _give_up(self) -> None:
        self._timer = None
        user = self._user
        self.abort()
        if user is not None:
            user.sender_gave_up(f"not reached for {self._redial_seconds} s: {self._why}")

    def _stop_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()
