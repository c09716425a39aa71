"""One accepted connection: a Twisted protocol on one side, a handler's mailboxes on the other.

    socket -> dataReceived -> handler's inbox          handler's outbox -> write -> socket
              end of input -> handler's control        handler's signal -> close

What holds, whatever ends the connection:

* The handler gets one `socketShutdown`, when it has taken all inbound data and has run once more.
  A handler that leaves data unread gets it after it has run twice without taking any.
* What the handler sends before it takes that message, or in the same step as its own closing
  signal, is written before the close. What it sends later is discarded.
* A close ends our side of the stream first and drains the other for `linger_deadline`: closing a
  socket with unread data makes the kernel reset it, and a reset destroys what is still on its way.
* Memory: `inbox_bytes_max` and one read inwards, `outbox_bytes_max` and one step's output outwards;
  beyond that the transport is paused, or the handler not resumed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from enum import Enum
from typing import Any
from typing import Protocol as Shape  # Twisted has a Protocol too

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.interfaces import (
    IDelayedCall,
    IHalfCloseableProtocol,
    INegotiated,
    IPushProducer,
    ITCPTransport,
)
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from msgservice.faces.axon.AxonExceptions import BadComponent
from msgservice.faces.axon.Component import component, process_of
from msgservice.faces.axon.Ipc import socketShutdown
from msgservice.faces.axon.mailbox import Mailbox
from msgservice.faces.axon.scheduler import Scheduler
from msgservice.faces.chassis.boxes import SignalBox, SocketBox, announce_end
from msgservice.faces.chassis.limits import ChassisLimits

# What is handed to the transport at a time. Its own buffer asks us to pause beyond 64 KiB; smaller
# pieces than this would add a turn of the reactor to each.
PIECE_BYTES = 128 * 1024
HANDLER_INBOXES = ("inbox", "control")
HANDLER_OUTBOXES = ("outbox", "signal")


class Server(Shape):
    """A chassis server, as its connections see it."""

    @property
    def limits(self) -> ChassisLimits:
        """The limits of each connection."""

    def connection_made(self, connection: Connection) -> None:
        """Give the new connection its handler."""

    def connection_lost(self, connection: Connection) -> None:
        """Forget the connection."""


class Input(Enum):
    """The state of the incoming direction: what the handler still has to get."""

    OPEN = "open"
    ENDING = "ending"  # nothing more comes; the handler is not told yet
    TOLD = "told"


class Output(Enum):
    """The state of the outgoing direction: what the peer still has to get."""

    OPEN = "open"
    FLUSHING = "flushing"  # closing; something may still have to be written
    SHUT = "shut"  # all is written and our side ended; waiting for the peer's end
    LOST = "lost"


@implementer(IHalfCloseableProtocol, IPushProducer)
class Connection(Protocol):
    """Feeds one handler from one socket. Made by `ChassisFactory`."""

    _log = Logger()
    # A TCP, TLS or Unix transport; Twisted's own annotation is what they all have in common.
    transport: Any = None

    def __init__(self, server: Server, scheduler: Scheduler) -> None:
        self._server = server
        self._scheduler = scheduler
        self._limits = server.limits
        self._input = Input.OPEN
        self._output = Output.OPEN
        self._handler: component | None = None
        self._source = Mailbox("socket", None, bytes_max=self._limits.inbox_bytes_max)
        self._sink = SocketBox(self._write, bytes_max=self._limits.outbox_bytes_max)
        self._unwritten: deque[bytes] | None = None
        self._writing_paused = False
        self._reading_paused = False
        self._peer_ended = False
        self._deadline: IDelayedCall | None = None
        self._write_watch: IDelayedCall | None = None
        self._written = False

    # --- What others may know ---------------------------------------------------------------------

    @property
    def socket(self) -> Any:
        """The transport's socket, for `getpeername` and the like."""
        return getattr(self.transport, "socket", None)

    @property
    def handler(self) -> component | None:
        """The handler that serves the connection; None until it is attached."""
        return self._handler

    def addresses(self) -> dict[str, Any]:
        """Return `peer`, `peerport`, `localip`, `localport`; other than TCP has no port but 0."""
        peer, peerport = _host_and_port(self.transport.getPeer())
        localip, localport = _host_and_port(self.transport.getHost())
        return {"peer": peer, "peerport": peerport, "localip": localip, "localport": localport}

    # --- The handler ------------------------------------------------------------------------------

    def attach(self, handler: component) -> None:
        """Wire `handler` to this connection, and activate it. What came meanwhile is in its inbox.

        Raises `BadComponent` if it is no component, or lacks one of the four boxes.
        """
        if not isinstance(handler, component):
            raise BadComponent(handler, "the factory of a protocol must return a component")
        for boxes, names in (
            (handler.inboxes, HANDLER_INBOXES),
            (handler.outboxes, HANDLER_OUTBOXES),
        ):
            for name in names:
                if name not in boxes:
                    raise BadComponent(handler, f"a handler needs the box {name!r}")
        self._handler = handler
        handler.inboxes["inbox"].bytes_max = self._limits.inbox_bytes_max
        self._source.link_to(handler.inboxes["inbox"])
        handler.outboxes["outbox"].link_to(self._sink)
        handler.outboxes["signal"].link_to(SignalBox(self._close_asked))
        process_of(handler).watch(self._handler_ended)
        handler.activate(self._scheduler)
        if self._input is not Input.OPEN:  # it ended before there was a handler
            self._tell()

    def _handler_ended(self, failure: Failure | None) -> bool:
        if failure is not None:
            self._log.failure(
                "handler {handler} of {peer} failed",
                failure,
                handler=self._handler.name if self._handler is not None else None,
                peer=self.transport.getPeer(),
            )
        self._input = Input.TOLD
        self.close()
        return True

    # --- From the socket --------------------------------------------------------------------------

    def connectionMade(self) -> None:
        """Announce the connection to the server, which makes and attaches a handler."""
        if ITCPTransport.providedBy(self.transport):
            # A peer that vanished, or that ended its side and went away, is found in the end.
            self.transport.setTcpKeepAlive(True)
        self.transport.registerProducer(self, True)
        self._scheduler.enter(self._server.connection_made, self)

    def dataReceived(self, data: bytes) -> None:
        """Pass `data` to the handler, and stop reading while it has too much."""
        if self._input is not Input.OPEN or self._output is not Output.OPEN:
            return  # closing: drained, so that the close is no reset
        box = self._source.final()
        self._scheduler.enter(box.put, data)
        if box.full and not self._reading_paused and self._output is Output.OPEN:
            self._reading_paused = True
            self.transport.pauseProducing()
            box.when_room(self._read_on)

    def readConnectionLost(self) -> None:
        """The peer has ended its side; the handler may still answer."""
        self._peer_ended = True
        if self._output is Output.OPEN:
            self._arm(self._limits.half_close_deadline, self.close)
            self._scheduler.enter(self._end_input)
        elif self._output is Output.SHUT:
            self._lose()

    def writeConnectionLost(self) -> None:
        """The outgoing direction ended: all that was to be written is with the kernel."""
        if self._output is Output.FLUSHING:
            self._output = Output.SHUT
            self._end_write_watch()
            self._scheduler.enter(self._end_input)
            if self._peer_ended:
                self._lose()
            else:
                self._arm(self._limits.linger_deadline, self._lose)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The connection is over, by whichever side."""
        if self._unwritten:
            self._log.info(
                "{peer} was lost with {size} bytes not yet written: {reason}",
                peer=self._peer(),
                size=self._sink.bytes_held,
                reason=reason.getErrorMessage(),
            )
        self._output = Output.LOST
        self._disarm()
        self._end_write_watch()
        self._unwritten = None
        self._scheduler.enter(self._lost)

    def _lost(self) -> None:
        self._sink.make_room()
        self._end_input()
        self._server.connection_lost(self)

    def _read_on(self) -> None:
        if self._reading_paused:
            self._reading_paused = False
            if self._output is not Output.LOST and not self._peer_ended:
                self.transport.resumeProducing()

    # --- The end of input -------------------------------------------------------------------------

    def _end_input(self) -> None:
        if self._input is Input.OPEN:
            self._input = Input.ENDING
            if self._handler is not None:
                self._tell()

    def _tell(self) -> None:
        announce_end(self._source.final(), self._tell_now)

    def _tell_now(self) -> None:
        handler = self._handler
        if self._input is Input.TOLD or handler is None or process_of(handler).stopped:
            return
        self._input = Input.TOLD
        control = handler.inboxes["control"].deliver(socketShutdown())
        if control is handler.inboxes["control"]:
            control.on_take = self._control_taken
        # Else a part of the handler takes it, and others may still have something to send: then
        # its signal, its end or the half-close deadline says that it is done.

    def _control_taken(self) -> None:
        assert self._handler is not None
        control = self._handler.inboxes["control"]
        if not any(isinstance(message, socketShutdown) for message in control):
            control.on_take = None
            self._close_asked()

    # --- To the socket ----------------------------------------------------------------------------

    def _write(self, data: bytes) -> None:
        if self._output is not Output.OPEN or not data:
            return
        if self._peer_ended and self._deadline is not None:
            self._arm(self._limits.half_close_deadline, self.close)
        if not self._writing_paused and len(data) <= PIECE_BYTES:
            self.transport.write(data)
            return
        if self._unwritten is None:
            self._unwritten = deque()
        if len(data) <= PIECE_BYTES:
            self._unwritten.append(data)
        else:
            # Piece by piece, so that progress shows when a slow peer takes a large message.
            view = memoryview(data)
            for start in range(0, len(view), PIECE_BYTES):
                self._unwritten.append(bytes(view[start : start + PIECE_BYTES]))
        self._sink.bytes_held += len(data)
        self._write_on()
        if self._sink.bytes_held >= self._sink.bytes_max:
            self._sink.full = True

    def _write_on(self) -> None:
        unwritten = self._unwritten
        while unwritten and not self._writing_paused:
            piece = unwritten.popleft()
            if unwritten and len(piece) + len(unwritten[0]) <= PIECE_BYTES:
                pieces = [piece]
                size = len(piece)
                while unwritten and size + len(unwritten[0]) <= PIECE_BYTES:
                    size += len(unwritten[0])
                    pieces.append(unwritten.popleft())
                piece = b"".join(pieces)
            self._sink.bytes_held -= len(piece)
            self.transport.write(piece)

    def pauseProducing(self) -> None:
        """The transport's buffer is full: keep what comes until it asks for more."""
        self._writing_paused = True
        self._watch_writes()

    def resumeProducing(self) -> None:
        """The transport has written what it had; may come twice in a row."""
        self._writing_paused = False
        self._written = True
        self._write_on()
        if self._output is Output.FLUSHING:
            self._flush_on()
        elif self._sink.full and 2 * self._sink.bytes_held <= self._sink.bytes_max:
            self._scheduler.enter(self._sink.make_room)

    def stopProducing(self) -> None:
        """The transport is gone; `connectionLost` follows and says so."""

    # --- Closing ----------------------------------------------------------------------------------

    def _close_asked(self) -> None:
        # After the step: what it sends in the same step as its signal is still delivered.
        self._scheduler.after_step(self.close)

    def close(self) -> None:
        """Write what was sent, then close. What is sent from now on is discarded."""
        if self._output is not Output.OPEN:
            return
        self._output = Output.FLUSHING
        self._disarm()
        if self._reading_paused:
            self._reading_paused = False
            if not self._peer_ended:
                self.transport.resumeProducing()
        self._sink.bytes_max = 0  # never full again: nobody waits for what is discarded
        self._scheduler.enter(self._sink.make_room)
        self._flush_on()

    def stop(self) -> None:
        """End the input here, as if the peer had, and close when the handler has answered it.

        The server's own deadline ends what takes too long.
        """
        if self._output is not Output.OPEN:
            return
        if self._handler is None or process_of(self._handler).stopped:
            self.close()
        elif self._input is Input.TOLD:
            self._close_asked()
        else:
            self._scheduler.enter(self._end_input)

    def abort(self) -> None:
        """Drop the connection and what is unwritten. Returns nothing; `connectionLost` follows."""
        if self._output is not Output.LOST:
            self.transport.abortConnection()

    def _flush_on(self) -> None:
        self._watch_writes()
        if self._unwritten:
            return
        self._unwritten = None
        self.transport.unregisterProducer()
        plain = ITCPTransport.providedBy(self.transport)  # TCP or Unix
        if plain and not self._peer_ended and not INegotiated.providedBy(self.transport):
            self.transport.loseWriteConnection()
        else:
            # Nothing can be unread after the peer's end; TLS announces its own end here.
            self.transport.loseConnection()

    def _watch_writes(self) -> None:
        # One delayed call for many pauses: it looks whether anything was written meanwhile.
        if self._write_watch is None and self._limits.write_deadline is not None:
            self._written = False
            clock = self._scheduler.clock
            self._write_watch = clock.callLater(self._limits.write_deadline, self._look_at_writes)

    def _look_at_writes(self) -> None:
        self._write_watch = None
        if not self._writing_paused and self._output is not Output.FLUSHING:
            return
        if self._written:
            self._watch_writes()
            return
        self._log.warn(
            "{peer} took nothing of what was written for {seconds} s: aborted",
            peer=self._peer(),
            seconds=self._limits.write_deadline,
        )
        self.abort()

    def _end_write_watch(self) -> None:
        if self._write_watch is not None:
            self._write_watch.cancel()
            self._write_watch = None

    def _lose(self) -> None:
        self._disarm()
        self.transport.loseConnection()

    def _peer(self) -> object:
        return self.transport.getPeer()

    def _arm(self, seconds: float | None, call: Callable[[], None]) -> None:
        self._disarm()
        if seconds is not None:
            self._deadline = self._scheduler.clock.callLater(seconds, self._overdue, call)

    def _overdue(self, call: Callable[[], None]) -> None:
        self._deadline = None
        call()

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def _host_and_port(address: object) -> tuple[str, int]:
    if isinstance(address, IPv4Address | IPv6Address):
        return address.host, address.port
    name = getattr(address, "name", None)  # a Unix socket: its path, or nothing
    return (name.decode(errors="replace") if isinstance(name, bytes) else str(name or "")), 0
