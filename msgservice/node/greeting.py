"""The greeting of a connection: HELLO, who it is, and RESUME, before anything else is said.

A peer says its name first; it may be turned away by it. The node answers once a receiver that is
new is stored, since its HELLO says the receiver's number. What a receiver says to have taken is
held against the log before it gets anything (`went_back`).

A receiver that is a node itself is greeted the other way round: the node that dials says HELLO
first, as a sender does, and says that it is a node; so does the answer (DELIVERY: chains).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from msgservice.connection import Connection
from msgservice.core import features
from msgservice.core.frames import (
    BYE_PAUSED,
    BYE_REMOVED,
    VERSION,
    Hello,
    HelloOptions,
    ReceiveOptions,
)
from msgservice.core.ranges import Range
from msgservice.core.session import State
from msgservice.core.subjects import check_name, check_pattern, check_word, is_reserved
from msgservice.errors import (
    BadSubject,
    ConnectionLimit,
    LimitReached,
    MalformedFrame,
    NameMismatch,
    NotAllowed,
    NotSupported,
    ProtocolError,
    SharedOtherwise,
)
from msgservice.identity.principal import Principal
from msgservice.interfaces import ILog
from msgservice.limits import Limits
from msgservice.node.gate import Door, Gate, Pass
from msgservice.node.outlet import Outlet
from msgservice.node.tail import Tail
from msgservice.node.went_back import went_back
from msgservice.receiver_options import ORDERS
from msgservice.records import ReceiverRow, Resume


@dataclass(slots=True)
class Guest:
    """The peer that has said HELLO on one connection. `allowed`: what it may do.

    `was_paused`: its receiver, so that what it asked for was not looked at. `order`: in force when
    it had asked, and said, whatever another asks for meanwhile. `epoch`: of the node's incarnation
    that was said. `over`: the node's incarnation towards it before its receiver was removed, where
    it comes back from then; it has no outlet. `waiting`: what it waits for has not been stored yet.
    `node_log`: the id of its log, of a node that passes on what others have sent; or nothing.
    `respond`: patterns of the requests that it answers.
    """

    name: str
    incarnation: str
    outlet: Outlet | None
    inbox: str | None
    was_paused: bool
    order: str = ""
    over: str = ""
    epoch: str = ""
    waiting: Deferred[None] | None = None
    node_log: str = ""
    respond: tuple[str, ...] = ()
    allowed: Pass = field(kw_only=True)

    def gone(self) -> None:
        """The connection has ended: nothing of it is kept for an answer that nobody hears."""
        if self.waiting is not None:
            self.waiting.cancel()


class Visitor(Protocol):
    """A connection that is greeted (`peer`). `principal`: whom a login has shown, or None."""

    principal: Principal | None
    door: Door

    @property
    def is_leaving(self) -> bool:
        """Whether a BYE was said, or the connection has ended."""

    def admitted(self, guest: Guest) -> None:
        """The guest is known; the answer follows when all that was changed for it is stored."""

    def answering(self, guest: Guest, said: int) -> None:
        """The answer leaves now, with `said` ranges in its RESUME; then it may hand in."""

    def seated(self, outlet: Outlet, resume: Resume) -> None:
        """The guest is a receiver, and nothing speaks against feeding it."""

    def waits(self) -> None:
        """The guest is a receiver that is paused: it stays for a while, in case that ends."""

    def leave(self, code: int, reason: str) -> None:
        """Send nothing more; close when all is answered."""


class Attaching(Protocol):
    """The receivers of a node (`receivers`)."""

    def was_removed(self, name: str, number: int) -> bool:
        """Whether the receiver of this name and number was removed, and no other has its name."""

    def check_may_be(self, name: str, who: Pass) -> None:
        """Raise `NotAllowed` unless a peer may be the receiver of this name."""

    def attaching(
        self,
        name: str,
        patterns: Sequence[str],
        order: str | None,
        who: Pass,
        start: str | int | None = None,
        *,
        retained: bool = True,
        shared: bool = False,
    ) -> Outlet:
        """A peer attaches as the receiver of this name; raise what speaks against it."""

    def stored(self) -> Deferred[None]:
        """Fire when all changes so far are stored."""

    def compared(self, row: ReceiverRow) -> None:
        """Nothing of what a receiver has said to have taken speaks against the log."""

    def begins_anew(self, row: ReceiverRow) -> bool:
        """Whether a receiver gets another incarnation in one of the next turns."""

    def begin_anew(self, row: ReceiverRow) -> None:
        """Take another incarnation towards a receiver, which remembers what the log does not have.

        And towards those that have not come since the start: they may, and it would not show.
        """

    async def forgotten(
        self, row: ReceiverRow, missing: Sequence[Range], *, is_empty: bool
    ) -> None:
        """A node does not have these positions, and may have had some: those are sent again.

        Returns once that is stored.
        """


def check_shared(row: ReceiverRow, *, shared: bool) -> None:
    """Raise `SharedOtherwise` where a peer would share a receiver that is not shared, or not."""
    if row.options.shared is not shared:
        raise SharedOtherwise(row.name, shared=row.options.shared)


class Places(Protocol):
    """The holders of receiver names: which connection has each (`connections`)."""

    def hold_check(self, outlet: Outlet) -> None:
        """Raise `NameHeld` while the name is held."""


class Answering(Protocol):
    """The responders of a node (`responders`)."""

    def check_room(self, patterns: Sequence[str]) -> None:
        """Raise `ConnectionLimit` where one more responder with these finds no room."""


class Greeter:
    """Greets the connections of a node, as far as its gate lets them in."""

    _logger = Logger()

    def __init__(
        self,
        *,
        name: str,
        log_id: str,
        gate: Gate,
        log: ILog,
        tail: Tail,
        receivers: Attaching,
        places: Places,
        responders: Answering,
        limits: Limits,
    ) -> None:
        self._gate = gate
        self._name = name
        self._log_id = log_id
        self._log = log
        self._tail = tail
        self._receivers = receivers
        self._places = places
        self._responders = responders
        self._limits = limits

    def greeted(
        self, visitor: Visitor, connection: Connection, hello: Hello, dialled: Outlet | None
    ) -> None:
        """Check a HELLO; answer it once a new receiver is stored.

        `dialled`: the outlet that was dialled, or None.
        """
        check_name(hello.name)
        check_word(hello.incarnation)
        if hello.options.inbox is not None:
            check_word(hello.options.inbox)
        if dialled is not None and dialled.is_node:
            self._answered_by_node(visitor, connection, hello, dialled)
            return
        node_log = self._log_of(hello)
        channel = connection.channel
        assert channel is not None
        # Before anything is looked up, or changed.
        if dialled is not None:
            allowed = self._gate.admit_dialled(dialled.row.owner, channel.credentials)
        else:
            allowed = self._gate.admit(
                visitor.principal, channel.credentials, visitor.door, hello.name
            )
        if node_log:
            self._check_relays(hello.name, allowed)
        respond = self._answers(hello, allowed)
        over = "" if dialled is not None else self._over(hello, allowed)
        outlet = None if over else self._outlet(hello, dialled, allowed)
        # What is not a receiver has taken nothing: its ranges count as everything else it says.
        session = connection.session
        session.ranges_max = outlet.resume_ranges_max if outlet else 0
        session.ranges_kept = outlet.resume_ranges if outlet else 1
        guest = Guest(
            hello.name,
            hello.incarnation,
            outlet,
            hello.options.inbox,
            was_paused=outlet is not None and outlet.row.options.paused,
            order=outlet.row.options.order if outlet is not None else "",
            over=over,
            node_log=node_log,
            respond=respond,
            allowed=allowed,
        )
        visitor.admitted(guest)
        channel.identified()
        stored = guest.waiting = self._receivers.stored()
        # Of very many that came together all are stored with one group.
        arrivals = self._gate.arrivals
        taken = stored.addCallback(lambda _: arrivals.run(lambda: self._resume(guest)))
        answered = taken.addCallback(
            lambda taken: arrivals.run(lambda: self._answer(visitor, connection, guest, taken))
        )
        answered.addErrback(self._not_greeted, connection, guest)

    # --- nodes

    def greet_node(self, connection: Connection, outlet: Outlet) -> None:
        """Say HELLO to a node that was dialled: it takes messages in, as from any sender."""
        connection.hello(self.hello_to(outlet))

    def hello_to(self, outlet: Outlet) -> Hello:
        """Return what this node says to one that it passes messages on to."""
        limits = self._limits
        return Hello(
            VERSION,
            self._name,
            self._incarnation(outlet),
            HelloOptions(
                max_batch=limits.max_batch,
                heartbeat=int(limits.heartbeat * 1000),
                node=self._name,
                features=list(features.OF_NODES),
            ),
        )

    def _answered_by_node(
        self, visitor: Visitor, connection: Connection, hello: Hello, dialled: Outlet
    ) -> None:
        """The node that was dialled has answered: what it has taken follows, in its RESUME."""
        if hello.options.node is None:
            raise NotSupported(
                f"passing on to {hello.name!r}, which does not say that it is a node,"
            )
        if hello.name != dialled.name:
            raise NameMismatch(f"dialled node {dialled.name!r}, but {hello.name!r} answered")
        if hello.incarnation == self._log_id:
            raise NameMismatch(f"dialled node {dialled.name!r} is this node itself")
        self._places.hold_check(dialled)
        channel = connection.channel
        assert channel is not None
        session = connection.session
        session.ranges_max = dialled.resume_ranges_max
        session.ranges_kept = dialled.resume_ranges
        visitor.admitted(
            Guest(
                hello.name,
                hello.incarnation,
                dialled,
                hello.incarnation,  # its log is what remembers: another one has forgotten
                was_paused=dialled.row.options.paused,
                order=dialled.row.options.order,
                epoch=dialled.row.epoch,
                node_log=hello.incarnation,
                allowed=self._gate.admit_dialled(dialled.row.owner, channel.credentials),
            )
        )
        channel.identified()
        connection.resume(Resume())  # nothing is taken this way round

    def _log_of(self, hello: Hello) -> str:
        """Return the log id of a node that says HELLO as a sender; nothing of any other peer."""
        if hello.options.node is None:
            return ""
        log_id = hello.incarnation.partition(".")[0]
        if hello.options.node != hello.name or not log_id:
            raise MalformedFrame("HELLO: `node` is the name, and a log id begins the incarnation")
        if hello.options.receive is not None:
            raise NotSupported("a node that is a receiver by its own HELLO")
        if log_id == self._log_id:
            raise NameMismatch(f"node {hello.name!r} is this node itself")
        return log_id

    def _answers(self, hello: Hello, allowed: Pass) -> tuple[str, ...]:
        """Return the patterns of the requests that a peer answers; raise for those it may not."""
        respond = tuple(map(check_pattern, hello.options.respond or ()))
        if not respond:
            return ()
        if hello.options.node is not None:
            raise NotSupported("a node that answers requests")
        for pattern in respond:
            if is_reserved(pattern):
                raise BadSubject(pattern, "requests on subjects that begin with '$' are the node's")
        try:
            allowed.check_responds(respond)
        except NotAllowed as error:
            self._gate.turned_away(allowed, f"{error}: it may not `receive` that")
            raise
        self._responders.check_room(respond)
        return respond

    def _check_relays(self, name: str, allowed: Pass) -> None:
        if not allowed.allows("relay", ""):
            error = NotAllowed(allowed.principal.user, "relay")
            self._gate.turned_away(allowed, f"{error}: it is node {name!r}, and has no `relay`")
            raise error

    def _incarnation(self, outlet: Outlet) -> str:
        """Return the incarnation of this node towards a receiver."""
        row = outlet.row
        incarnation = f"{self._log_id}.{row.number}"
        return f"{incarnation}.{row.epoch}" if row.epoch else incarnation

    # --- receivers and senders

    def _over(self, hello: Hello, allowed: Pass) -> str:
        """Return what a receiver knows this node as, if it was removed since; else nothing.

        It was away then, and has not heard of it: making it anew is not what it asks for.
        """
        receive = hello.options.receive
        if receive is None or receive.known is None:
            return ""
        check_word(receive.known)
        log_id, number, *_ = [*receive.known.split("."), ""]
        if log_id != self._log_id or not (number.isascii() and number.isdigit()):
            return ""
        if not self._receivers.was_removed(hello.name, int(number)):
            return ""
        self._receivers.check_may_be(hello.name, allowed)
        return receive.known

    def _outlet(self, hello: Hello, dialled: Outlet | None, allowed: Pass) -> Outlet | None:
        receive = hello.options.receive
        if dialled is not None:
            if receive is None or hello.name != dialled.name:
                raise NameMismatch(
                    f"dialled receiver {dialled.name!r}, but {hello.name!r} answered"
                    + ("" if receive is not None else ", which does not receive")
                )
            self._places.hold_check(dialled)
            check_shared(dialled.row, shared=receive.shared)
            return dialled
        if receive is None:
            return None
        if receive.order not in (None, *ORDERS):
            raise NotSupported(f"receive.order = {receive.order!r}")
        try:
            return self._receivers.attaching(
                hello.name,
                receive.subjects or (),
                receive.order,
                allowed,
                receive.start,
                retained=receive.retained,
                shared=receive.shared,
            )
        except LimitReached as error:
            raise ConnectionLimit(error.limit, error.value) from None

    def _resume(self, guest: Guest) -> Deferred[Resume]:
        guest.waiting = None
        return self._log.resume(guest.name, guest.incarnation)

    def _not_greeted(self, failure: Failure, connection: Connection, guest: Guest) -> None:
        if failure.check(CancelledError):
            return  # it has left meanwhile
        error = failure.value
        if isinstance(error, LimitReached):  # no place for what it has lost: it comes again
            connection.fail(ConnectionLimit(error.limit, error.value))
            return
        self._logger.failure("greeting {name}", failure, name=guest.name)
        connection.abort()

    def _answer(
        self, visitor: Visitor, connection: Connection, guest: Guest, taken: Resume
    ) -> None:
        if connection.is_gone or connection.session.state is not State.GREETED:
            return  # it has left meanwhile, or said what it may not say yet
        limits, outlet = self._limits, guest.outlet
        if outlet is not None:
            try:
                self._receivers.check_may_be(guest.name, guest.allowed)
            except NotAllowed as error:  # it was given to somebody else since
                connection.fail(error)
                return
        incarnation = self._log_id
        receive = None
        if outlet is not None:
            guest.epoch = outlet.row.epoch
            incarnation = self._incarnation(outlet)
            receive = ReceiveOptions(
                order=guest.order, paused=guest.was_paused, shared=outlet.row.options.shared
            )
        elif guest.over:
            incarnation, receive = guest.over, ReceiveOptions()
        visitor.answering(guest, len(taken.ranges))
        connection.hello(
            Hello(
                VERSION,
                self._name,
                incarnation,
                HelloOptions(
                    max_batch=limits.max_batch,
                    heartbeat=int(limits.heartbeat * 1000),
                    window=(limits.window_messages, limits.window_bytes),
                    requests=limits.requests,
                    node=self._name if guest.node_log else None,
                    receive=receive,
                    features=list(features.OF_NODES),
                ),
            )
        )
        if guest.over:
            visitor.leave(BYE_REMOVED, "removed")
        else:
            connection.resume(taken)

    def opened(
        self, visitor: Visitor, connection: Connection, guest: Guest, resume: Resume
    ) -> None:
        """Hold a receiver's RESUME against the log, and let it have its place, or not."""
        outlet = guest.outlet
        if outlet is None:
            return
        comparing = Deferred.fromCoroutine(
            went_back(self._log, self._tail.next_number, outlet, resume)
        )
        comparing.addCallback(
            lambda error: self._compared(visitor, connection, guest, outlet, resume, error)
        )
        comparing.addErrback(self._not_greeted, connection, guest)

    def _compared(
        self,
        visitor: Visitor,
        connection: Connection,
        guest: Guest,
        outlet: Outlet,
        resume: Resume,
        error: ProtocolError | None,
        *,
        has_all: bool = False,
    ) -> None:
        if connection.is_gone or visitor.is_leaving:
            return
        if outlet.row.removed:  # since it was greeted
            visitor.leave(BYE_REMOVED, "removed")
        elif outlet.is_going:
            pass  # it gets nothing, and is told when that is on disk
        elif outlet.row.options.paused:
            # What it says of an epoch that is over is of another sender.
            if error is None and outlet.connection is None and self._is_current(outlet, guest):
                self._receivers.compared(outlet.row)
                outlet.hear(connection, resume)
            if guest.was_paused:
                visitor.waits()
            else:
                visitor.leave(BYE_PAUSED, "paused")  # it was not told yet
        elif (
            not self._is_current(outlet, guest)  # another connection has ended it
            or outlet.row.options.order != guest.order
            or guest.was_paused
        ):
            # What was said no longer holds, or what it asked for was passed by: it comes again.
            connection.abort()
        elif error is not None:
            self._begin_anew(outlet, str(error))
            connection.fail(error)
        else:
            forgotten: Sequence[Range] = ()
            is_empty = False
            if outlet.is_node and not has_all:
                forgotten = outlet.forgotten(resume, guest.node_log)
                is_empty = outlet.is_empty_anew(resume, guest.node_log)
            self._receivers.compared(outlet.row)
            if not (forgotten or is_empty):
                visitor.seated(outlet, resume)
                return
            # First it is stored that this is sent again: what is taken next would hide the loss.
            sending = Deferred.fromCoroutine(
                self._receivers.forgotten(outlet.row, forgotten, is_empty=is_empty)
            )
            sending.addCallback(
                lambda _: self._compared(
                    visitor, connection, guest, outlet, resume, None, has_all=True
                )
            )
            sending.addErrback(self._not_greeted, connection, guest)

    def _is_current(self, outlet: Outlet, guest: Guest) -> bool:
        """Whether what was said as to an epoch is of the one that there is."""
        row = outlet.row
        return row.epoch == guest.epoch and not self._receivers.begins_anew(row)

    def contradicted(self, guest: Guest, outlet: Outlet, reason: str) -> None:
        """A seated receiver has ended its connection: a run came to it before with other content.

        Its RESUME names what it took, and nothing of what only came to it. To the same incarnation
        that run would come on each connection, and end it.
        """
        if outlet.row.epoch == guest.epoch and not outlet.row.removed:
            name = outlet.name
            self._begin_anew(outlet, f"{name!r} has seen other content than this log's: {reason}")

    def _begin_anew(self, outlet: Outlet, error: str) -> None:
        outlet.last_error = error
        self._logger.error(
            "{error}; going on as a new incarnation towards it: all that waits for it is sent,"
            " some of it perhaps again",
            line="receiver-knows-more",
            error=error,
        )
        self._receivers.begin_anew(outlet.row)
