"""One connection of a node, dialled or accepted: who it is, and what it is for.

A peer may hand messages in (an `Ingress`), may be a receiver (an `Outlet` is attached), and may
ask requests. The node speaks after it was greeted, since what it says depends on who is there.
"""

from __future__ import annotations

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from msgservice.connection import Connection
from msgservice.core.frames import (
    BYE_CLOSING,
    BYE_PAUSED,
    BYE_REMOVED,
    BYE_REPLACED,
    BYE_SETTLED,
    VERSION,
    Ack,
    Frame,
    Hello,
    HelloOptions,
    Nack,
    Note,
    ReceiveOptions,
    Reply,
    Request,
    Transfer,
)
from msgservice.core.subjects import check_name
from msgservice.errors import (
    BadSubject,
    ConnectionLimit,
    FrameTooLarge,
    LimitReached,
    NameMismatch,
    NotAuthenticated,
    ProtocolError,
    UnexpectedFrame,
)
from msgservice.message import count_of, decode_messages
from msgservice.node.admin import busy, refusal_of
from msgservice.node.ingress import Ingress
from msgservice.node.outlet import Outlet
from msgservice.node.shared import Shared
from msgservice.node.went_back import went_back
from msgservice.records import Resume, SenderFloor


class Peer:
    """See the module (`connection.Owner`). `expected`: the outlet that was dialled, or None."""

    _logger = Logger()

    def __init__(self, node: Shared, expected: Outlet | None = None) -> None:
        self.name = ""
        self.connection: Connection | None = None
        self.ingress: Ingress | None = None
        self.outlet: Outlet | None = None
        self.leaving = False
        self.ended_by_us = False  # the node closes it, without a goodbye where it dials no more
        self.has_settled = False  # the sender needs nothing any more that is known of it
        self.number = 0  # rises with each connection of the node
        self.attached = False  # the outlet is ours now
        self._node = node
        self._expected = expected
        self._resume: Resume | None = None
        self._inbox: str | None = None
        self._epoch = ""  # of the incarnation that was said
        self._abort: IDelayedCall | None = None
        self._requests = 0  # calls that are being answered, and the frames they came in
        self._answering = 0
        self._sent_any = False
        self._room_waiters: list[Deferred[None]] = []

    # --- `connection.Owner`

    def channel_up(self, connection: Connection) -> None:
        """The node waits to be greeted."""
        self.connection = connection
        self._node.connections.up(self)

    def greeted(self, connection: Connection, hello: Hello) -> None:
        """Check who it is; answer once a receiver that is new is stored."""
        check_name(hello.name)
        check_name(hello.incarnation)
        channel = connection.channel
        assert channel is not None
        # Where a peer is proves him only where nobody else can be; a key does everywhere.
        trusted = channel.local_only or channel.proven or self._node.insecure
        if not trusted and self._expected is None:
            raise NotAuthenticated("this listener takes local connections only")
        self.name = hello.name
        receive = hello.options.receive
        if self._expected is not None:
            self._check_expected(self._expected, hello)
            self._node.connections.hold_check(self._expected)
            outlet: Outlet | None = self._expected
        elif receive is not None:
            try:
                outlet = self._node.receivers.attaching(hello.name, receive)
            except LimitReached as error:
                raise ConnectionLimit(error.limit, error.value) from None
            except ValueError as error:
                raise BadSubject(", ".join(receive.subjects or ()), str(error)) from None
        else:
            outlet = None
        # What is not a receiver has taken nothing: its ranges count as everything else it says.
        session = connection.session
        session.ranges_max = outlet.resume_ranges_max if outlet else 0
        session.ranges_kept = outlet.resume_ranges if outlet else 1
        self.outlet = outlet
        self._inbox = hello.options.inbox
        stored = self._node.receivers.stored()
        stored.addCallback(lambda _: self._answer(hello))
        stored.addErrback(self._not_answered)

    def _check_expected(self, outlet: Outlet, hello: Hello) -> None:
        if hello.options.receive is None or hello.name != outlet.name:
            raise NameMismatch(
                f"dialled receiver {outlet.name!r}, but {hello.name!r} answered"
                + ("" if hello.options.receive is not None else ", which does not receive")
            )

    def _not_answered(self, failure: Failure) -> None:
        self._logger.failure("greeting {name}", failure, name=self.name)
        if self.connection is not None:
            self.connection.abort()

    def _answer(self, hello: Hello) -> None:
        connection, node, outlet = self.connection, self._node, self.outlet
        if connection is None or connection.gone:
            return
        limits = node.limits
        incarnation = node.log_id
        receive = None
        if outlet is not None:
            self._epoch = outlet.row.epoch
            incarnation = f"{node.log_id}.{outlet.row.number}"
            if self._epoch:
                incarnation += f".{self._epoch}"
            receive = ReceiveOptions(order=outlet.row.order)
        taken = node.log.resume(hello.name, hello.incarnation)
        self.ingress = Ingress(
            node,
            connection,
            hello.name,
            hello.incarnation,
            node.clock,
            self._close_if_done,
            len(taken.ranges),
        )
        connection.hello(
            Hello(
                VERSION,
                node.node_name,
                incarnation,
                HelloOptions(
                    max_batch=limits.max_batch,
                    heartbeat=int(limits.heartbeat * 1000),
                    window=(limits.window_messages, limits.window_bytes),
                    requests=limits.requests,
                    receive=receive,
                ),
            )
        )
        connection.resume(taken)

    def opened(self, connection: Connection, resume: Resume) -> None:
        """Feed it, if it is a receiver; tell it its states, if it wants them."""
        node = self._node
        assert self.ingress is not None
        assert connection.session.peer is not None
        if not node.connections.opened(self):
            return
        status_from = connection.session.peer.options.status_from
        if status_from is not None:
            incarnation = connection.session.peer.incarnation
            node.commits.floor(
                SenderFloor(sender=self.name, incarnation=incarnation, status_from=status_from)
            )
            self.ingress.watch = node.tracker.watch(self, self.name, incarnation, status_from)
        outlet = self.outlet
        if outlet is None:
            return
        comparing = Deferred.fromCoroutine(
            went_back(node.log, node.tail.next_number, outlet, resume)
        )
        comparing.addCallback(lambda error: self._compared(outlet, resume, error))
        comparing.addErrback(self._not_answered)

    def _compared(self, outlet: Outlet, resume: Resume, error: ProtocolError | None) -> None:
        """Go on with a receiver whose RESUME was held against the log."""
        connection = self.connection
        if connection is None or connection.gone or self.leaving:
            return
        if outlet.row.removed:  # since it was greeted
            self.leave(BYE_REMOVED, "removed")
        elif outlet.row.paused:
            self.leave(BYE_PAUSED, "paused")
        elif outlet.row.epoch != self._epoch:
            connection.abort()  # greeted under the incarnation that another connection ended
        elif error is not None:
            outlet.last_error = str(error)
            self._logger.error(
                "{error}; going on as a new incarnation towards it: all that waits for it is sent,"
                " some of it perhaps again",
                error=str(error),
            )
            self._node.receivers.begin_anew(outlet.row)
            connection.fail(error)
        else:
            self._take_place(connection, outlet, resume)

    def _take_place(self, connection: Connection, outlet: Outlet, resume: Resume) -> None:
        node = self._node
        if node.connections.replace(outlet, self):
            self.attached = True
            outlet.attach(connection, resume, self._inbox)
            node.dispatch.connected(outlet)

    def takes(self, frame: Frame) -> bool:
        """Whether a frame is looked at now; one that is answered needs room for the answer."""
        kind = type(frame)
        if kind is Transfer:
            assert self.connection is not None
            return self.connection.has_room
        if kind is Request:
            assert self.connection is not None
            return self.connection.has_room and self._answering < self._node.limits.answering
        return True

    def received(self, connection: Connection, frame: Frame) -> None:
        """Pass a frame to whom it concerns."""
        if type(frame) is Transfer:
            assert self.ingress is not None
            self._sent_any = True
            try:
                self.ingress.received(frame)
            except ProtocolError:
                self._store()  # what was taken in before; the turn has no regular end now
                raise
        elif type(frame) is Ack or type(frame) is Nack:
            if self.attached and self.outlet is not None:
                self.outlet.received(frame)
            elif self.outlet is None:
                raise UnexpectedFrame(type(frame).__name__, "not receiving")
            # of one that was replaced: its answers no longer count
        elif type(frame) is Request:
            self._request(frame)
        elif type(frame) is Note:
            if self.attached and self.outlet is not None:
                self.outlet.note(frame.sequence, frame.attempts, frame.reason)
        elif type(frame) is Reply:
            pass  # the node asks nobody; a late reply is dropped (SEMANTICS 30)
        else:
            raise UnexpectedFrame(type(frame).__name__, "talking to a node")

    def turn_ended(self, connection: Connection) -> None:
        """Store what came, send what may be sent."""
        self._store()
        if self.attached and self.outlet is not None:
            self.outlet.turn_ended()
        self._close_if_done()

    def _store(self) -> None:
        if self._sent_any:
            self._sent_any = False
            self._node.commits.kick()

    def writable(self, connection: Connection) -> None:
        """The transport has room again."""
        self._tell_room()
        if self.attached and self.outlet is not None:
            self.outlet.pump()

    def peer_leaves(self, connection: Connection, code: int, reason: str) -> None:
        """It sends nothing more; what it was given may still be answered."""
        self.has_settled = code == BYE_SETTLED
        self.leave(BYE_CLOSING, "goodbye")

    def lost(self, connection: Connection, reason: str) -> None:
        """The connection has gone."""
        self._store()
        if self._abort is not None:
            self._abort.cancel()
            self._abort = None
        if self.ingress is not None:
            self.ingress.stop()
            if self.ingress.watch is not None:
                self._node.tracker.unwatch(self.ingress.watch)
        lost = not (self.leaving or self.ended_by_us)
        self.detach("" if self.leaving else reason, lost=lost)  # a goodbye is no error
        self._tell_room()
        if self._expected is not None and not self.attached:
            self._expected.last_error = reason
        self._node.connections.gone(self)

    # --- what the node does with it

    @property
    def dialled(self) -> bool:
        """Whether the node made the connection."""
        return self._expected is not None

    @property
    def gone(self) -> bool:
        """Whether the connection has ended."""
        return self.connection is None or self.connection.gone

    def tell(self, frames: list[Frame]) -> None:
        """Send these (`tracker.Told`). What no frame can hold ends this connection alone."""
        try:
            self._send(frames)
        except FrameTooLarge as error:
            assert self.connection is not None
            self.connection.fail(error)

    def _send(self, frames: list[Frame]) -> None:
        if self.connection is not None and not self.connection.gone:
            if self.ingress is not None:
                self.ingress.send_owed()  # audiences are named in it, which these may refer to
            self.connection.send_now(frames)

    @property
    def is_writable(self) -> bool:
        """Whether the transport has room (`tracker.Told`)."""
        return self.connection is not None and self.connection.is_writable

    def fault(self, failure: Failure) -> None:
        """Telling it failed for a fault of ours: this connection ends (`tracker.Told`)."""
        if self.connection is not None:
            self.connection.fault(f"sender {self.name!r}", failure)

    def room(self) -> Deferred[None]:
        """Fire when the transport has room for more, or has gone (`tracker.Told`)."""
        if self.connection is None or self.connection.gone or self.connection.is_writable:
            return succeed(None)
        waiter: Deferred[None] = Deferred()
        self._room_waiters.append(waiter)
        return waiter

    def _tell_room(self) -> None:
        waiters, self._room_waiters = self._room_waiters, []
        for waiter in waiters:
            waiter.callback(None)

    def detach(self, reason: str, *, lost: bool = False) -> None:
        """The receiver behind it is no longer ours. `lost`: its process may have died."""
        outlet = self.outlet
        if self.attached and outlet is not None:
            self.attached = False
            self._node.dispatch.disconnected(outlet)
            outlet.detach(reason, lost=lost)

    def leave(self, code: int, reason: str, *, lost: bool = False) -> None:
        """Send nothing more; close when all is answered, or when its time is over.

        `lost`: it is replaced by another process, so its own may have died (SEMANTICS 14).
        """
        connection = self.connection
        if connection is None or connection.gone:
            return
        if self.leaving and code != BYE_REPLACED:
            return
        lost = lost and not self.leaving
        self.leaving = True
        connection.bye(code, reason)
        if code == BYE_REPLACED:
            # Also when it was about to leave and waits for answers: its place is needed now.
            self.detach(reason, lost=lost)
            delay = self._node.limits.replaced_timeout
            if self._abort is None:
                self._abort = self._node.clock.callLater(delay, self._abort_now)
        else:
            if self.ingress is not None:
                self.ingress.flush()
            self._close_if_done()

    def _close_if_done(self) -> None:
        """After a BYE: close when what was in flight, both ways, is answered."""
        if not self.leaving or self.connection is None or self.connection.gone:
            return
        if self.attached and self.outlet is not None and not self.outlet.idle:
            return
        if self.ingress is None or not self.ingress.waiting:
            self.connection.close()

    def _abort_now(self) -> None:
        self._abort = None
        if self.connection is not None:
            self.connection.abort()

    # --- requests

    def _request(self, frame: Request) -> None:
        calls = count_of(frame.messages)
        if self._requests + calls > self._node.limits.requests:
            self._send([busy(frame, calls, self._node.limits.requests)])
            return
        decode_messages(frame.messages)  # raises `MalformedFrame`
        self._requests += calls
        self._answering += 1
        local = self.connection is not None and getattr(
            self.connection.channel, "local_only", False
        )
        answer: Deferred[Reply] = self._node.answer(frame, local)
        answer.addBoth(self._answered, calls)

    def _answered(self, reply: Reply | Failure, calls: int) -> None:
        self._requests -= calls
        self._answering -= 1
        if self.connection is not None:
            self.connection.go_on_soon()
        if isinstance(reply, Failure):
            self._logger.failure("a request of {name}", reply, name=self.name)
            return
        try:
            self._send([reply])
        except FrameTooLarge as error:
            self.tell([refusal_of(reply, str(error))])
