"""One connection of a node, dialled or accepted: who it is, and what it is for.

A peer is greeted first (`greeting`). It may hand messages in then (an `Ingress`), may be a receiver
that an `Outlet` feeds (its seat), and may ask requests. The stages, and what ends each:

                seated    parted      leaves      unseated    lost
    HERE        SEATED    HERE        LEAVING     LEAVING     GONE
    SEATED      -         PARTED      DRAINING    LEAVING     GONE
    PARTED      -         PARTED      LEAVING     LEAVING     GONE
    DRAINING    -         LEAVING     DRAINING    LEAVING     GONE
    LEAVING     -         LEAVING     LEAVING     LEAVING     GONE
    GONE        -         GONE        GONE        GONE        GONE

From DRAINING on a BYE was said, or is when what the receiver has answered is on disk: where it was
the first to say it. In DRAINING the receiver still answers what is in flight to it; in
LEAVING its answers no longer count, or it was never fed. *unseated*: another connection has its
place, or there is no place for it any more. *parted*: there will be none once a removal is on disk;
until then nothing is said, and nothing it answers counts.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from typing import Any, Final, Protocol

import msgspec
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from msgservice.client.requests import Requests as NodeRequests
from msgservice.clock import monotonic_of
from msgservice.connection import Connection
from msgservice.core.features import CANCEL
from msgservice.core.frames import (
    BYE_CLOSING,
    BYE_PAUSED,
    BYE_REPLACED,
    BYE_SETTLED,
    CALLS_MAX,
    Ack,
    Answer,
    Cancel,
    Delivery,
    Frame,
    Hello,
    Nack,
    Note,
    Promised,
    Reply,
    Request,
    Transfer,
)
from msgservice.core.ranges import RangeSet
from msgservice.core.subjects import is_reserved
from msgservice.errors import (
    ContentChanged,
    DeadlinePassed,
    FrameTooLarge,
    LimitReached,
    MalformedFrame,
    NotConnected,
    ProtocolError,
    UnexpectedFrame,
)
from msgservice.identity.principal import Principal
from msgservice.limits import Limits
from msgservice.message import count_of, decode_messages
from msgservice.node.commits import Commits
from msgservice.node.directory import Directory
from msgservice.node.dispatch import Dispatch
from msgservice.node.gate import LISTENER, Gate, Pass
from msgservice.node.greeting import Greeter, Guest
from msgservice.node.ingress import Ingress
from msgservice.node.intake import Intake, Sender, Senders
from msgservice.node.login import PeerLogin
from msgservice.node.outlet import Outlet, Seat
from msgservice.node.replies import busy, cut_answers, refusal, refusal_of
from msgservice.node.responders import Responder, Responders
from msgservice.node.status_frames import StatusFrames
from msgservice.node.tracker import News, Tracker, Watch
from msgservice.records import Piece, Resume, StatusFrom, hash_of
from msgservice.waiters import Waiters

# Seconds that a paused receiver may stay; it says anew what it has taken then. Longer than
# `link_healthy` is at most places, so that it comes back without delay, now and after a resume.
PAUSED_STAY = 65.0
GOODBYE = "goodbye"  # to who said it first
BODY_OVERHEAD = 16  # bytes of a run, at most, that a body has around it
LOOK_EVERY = 60.0  # seconds between two looks at the wall clock, for a login that ends by it


class Register(Senders, Protocol):
    """The register of a node's connections (`connections`)."""

    def up(self, peer: Peer) -> None:
        """A connection stands."""

    def opened(self, peer: Peer) -> bool:
        """The session of a peer is open. Returns whether it may stay."""

    def replace(self, outlet: Outlet, peer: Peer) -> bool:
        """Make a peer its receiver's connection, if it is the newest. Returns whether it is."""

    def gone(self, peer: Peer) -> None:
        """The connection of a peer has ended."""


class Requests(Protocol):
    """The handler of peers' requests (`admin`)."""

    def answer(self, request: Request, who: Pass) -> Deferred[Reply]:
        """Answer each call of a request, as far as who asks may."""


class Stage(enum.Enum):
    """The stage of a node's connection (table of the module)."""

    HERE = enum.auto()
    SEATED = enum.auto()
    PARTED = enum.auto()
    DRAINING = enum.auto()
    LEAVING = enum.auto()
    GONE = enum.auto()


class Event(enum.Enum):
    """The event that ends a stage of a node's connection."""

    SEATED = enum.auto()
    PARTED = enum.auto()
    LEAVES = enum.auto()
    UNSEATED = enum.auto()
    LOST = enum.auto()


STAYING = (Stage.HERE, Stage.SEATED, Stage.PARTED)

# A connection that was seated once is seated no second time.
NEXT: Final = {
    (Stage.HERE, Event.SEATED): Stage.SEATED,
    (Stage.HERE, Event.PARTED): Stage.HERE,
    (Stage.HERE, Event.LEAVES): Stage.LEAVING,
    (Stage.HERE, Event.UNSEATED): Stage.LEAVING,
    (Stage.HERE, Event.LOST): Stage.GONE,
    (Stage.SEATED, Event.PARTED): Stage.PARTED,
    (Stage.SEATED, Event.LEAVES): Stage.DRAINING,
    (Stage.SEATED, Event.UNSEATED): Stage.LEAVING,
    (Stage.SEATED, Event.LOST): Stage.GONE,
    (Stage.PARTED, Event.PARTED): Stage.PARTED,
    (Stage.PARTED, Event.LEAVES): Stage.LEAVING,
    (Stage.PARTED, Event.UNSEATED): Stage.LEAVING,
    (Stage.PARTED, Event.LOST): Stage.GONE,
    (Stage.DRAINING, Event.PARTED): Stage.LEAVING,
    (Stage.DRAINING, Event.LEAVES): Stage.DRAINING,
    (Stage.DRAINING, Event.UNSEATED): Stage.LEAVING,
    (Stage.DRAINING, Event.LOST): Stage.GONE,
    (Stage.LEAVING, Event.PARTED): Stage.LEAVING,
    (Stage.LEAVING, Event.LEAVES): Stage.LEAVING,
    (Stage.LEAVING, Event.UNSEATED): Stage.LEAVING,
    (Stage.LEAVING, Event.LOST): Stage.GONE,
    (Stage.GONE, Event.PARTED): Stage.GONE,
    (Stage.GONE, Event.LEAVES): Stage.GONE,
    (Stage.GONE, Event.UNSEATED): Stage.GONE,
    (Stage.GONE, Event.LOST): Stage.GONE,
}


class Peer:
    """A connection of a node (`connection.Owner`, `greeting.Visitor`, `tracker.Told`).

    `dialled`: the outlet that was dialled, or None.
    """

    __slots__ = (
        "_abort",
        "_answering",
        "_asking",
        "_calls",
        "_clock",
        "_commits",
        "_dialled",
        "_directory",
        "_dispatch",
        "_gate",
        "_goodbye_due",
        "_greeter",
        "_guest",
        "_intake",
        "_limits",
        "_login",
        "_look",
        "_own",
        "_paused",
        "_register",
        "_requests",
        "_responder",
        "_responders",
        "_room",
        "_seat",
        "_sent_any",
        "_tracker",
        "_watch",
        "connection",
        "door",
        "ended_by_us",
        "goodbye",
        "has_settled",
        "ingress",
        "name",
        "number",
        "outlet",
        "principal",
        "stage",
    )

    _logger = Logger()

    def __init__(
        self,
        dialled: Outlet | None = None,
        *,
        gate: Gate,
        greeter: Greeter,
        intake: Intake,
        commits: Commits,
        directory: Directory,
        tracker: Tracker,
        dispatch: Dispatch,
        register: Register,
        requests: Requests,
        responders: Responders,
        clock: IReactorTime,
        limits: Limits,
    ) -> None:
        self.name = ""
        self.door = LISTENER  # the one that it came by
        self.principal: Principal | None = None  # whom a login has shown it to be
        self._login: PeerLogin | None = None
        self.connection: Connection | None = None
        self.ingress: Ingress | None = None
        self.outlet: Outlet | None = None  # of the receiver that it says it is
        self.stage = Stage.HERE
        self.ended_by_us = False  # the node closes it, without a goodbye where it dials no more
        self.goodbye = ""  # the reason that the node gave for letting it go
        # While the goodbye to a receiver waits: fires when what that has answered is on disk.
        self._goodbye_due: Deferred[None] | None = None
        self.has_settled = False  # the sender needs nothing any more that is known of it
        self.number = 0  # rises with each connection of the node
        self._seat: Seat | None = None  # the outlet while it feeds this: SEATED and DRAINING
        self._dialled = dialled
        self._gate = gate
        self._greeter = greeter
        self._intake = intake
        self._commits = commits
        self._directory = directory
        self._tracker = tracker
        self._dispatch = dispatch
        self._register = register
        self._requests = requests
        self._responders = responders
        self._responder: Responder | None = None  # while it answers requests of others
        self._clock = clock
        self._limits = limits
        self._guest: Guest | None = None
        self._watch: Watch | None = None  # of a producer that wants to know states
        self._abort: IDelayedCall | None = None
        self._look: IDelayedCall | None = None  # whether its login has ended by itself
        self._paused: IDelayedCall | None = None  # ends the stay of a receiver that is paused
        self._asking: NodeRequests | None = None  # of a node that was dialled
        self._calls = 0  # that are being answered, and the frames they came in
        self._answering = 0
        self._own: dict[Deferred[Reply], RangeSet] = {}  # of those, the calls that are waited for
        self._sent_any = False
        self._room: Waiters[None] = Waiters()

    # --- `connection.Owner`

    def channel_up(self, connection: Connection) -> None:
        """The node waits to be greeted, or for a login."""
        self.connection = connection
        if self._dialled is not None:  # who it is was known before
            if self._dialled.is_node:
                self._greeter.greet_node(connection, self._dialled)
        else:
            self._login = PeerLogin(self._gate, connection, self._logged_in)
            connection.auth_received = self._login.received
        self._register.up(self)

    def _logged_in(self, principal: Principal) -> None:
        self.principal = principal

    def greeted(self, connection: Connection, hello: Hello) -> None:
        """A HELLO came: the greeter checks it, and answers."""
        self._greeter.greeted(self, connection, hello, self._dialled)

    def opened(self, connection: Connection, resume: Resume) -> None:
        """The session is open: feed a receiver; subscribe a producer that wants states."""
        guest, hello = self._guest, connection.session.peer_hello
        assert guest is not None
        assert hello is not None
        if not self._register.opened(self):
            return
        status_from = hello.options.status_from
        if status_from is not None and self.ingress is not None:
            self._commits.status_from(
                StatusFrom(
                    sender=guest.name, incarnation=guest.incarnation, status_from=status_from
                )
            )
            self.ingress.status_frames = StatusFrames(
                self._directory,
                guest.incarnation,
                status_from,
                whole_reasons=guest.allowed.sees_all,
            )
            self._watch = self._tracker.watch(self, guest.name, guest.incarnation, status_from)
        if self.is_next_node:
            self._asking = NodeRequests(
                clock=self._clock,
                now=monotonic_of(self._clock),
                pending_max=self._limits.requests,
                bytes_max=self._limits.window_bytes,
            )
            self._asking.opened(connection, self._answer_bytes)
        if guest.respond:
            self._responder = self._responders.join(
                self,
                guest.respond,
                room=_said(hello.options.requests, self._limits.requests),
                batch_max=self._answer_bytes,
                listens=CANCEL in connection.session.peer_features,
            )
        self._greeter.opened(self, connection, guest, resume)

    def takes(self, frame: Frame) -> bool:
        """Whether a frame is looked at now; one that is answered needs room for the answer.

        Behind answers about very many messages it waits until these were heard to their end.
        """
        kind, seat = type(frame), self._seat
        if kind is Ack or kind is Nack:
            return seat is None or seat.takes
        if kind is Transfer or kind is Promised or kind is Delivery:
            if self.ingress is None:
                return True  # not greeted, and gone: the session drops it
            connection = self.connection
            assert connection is not None
            # A look is for a PING, a BYE or the end: else each look takes in another read.
            return connection.has_room and self.ingress.has_room and not connection.is_look
        if seat is not None and not seat.takes:
            return False
        if type(frame) is Request:
            assert self.connection is not None
            if not self.connection.has_room:
                return False
            # What others answer takes nothing here: `requests` bounds it.
            return self._answering < self._limits.answering or not is_reserved(frame.subject)
        return True

    def received(self, connection: Connection, frame: Frame) -> None:
        """Pass a frame to whom it concerns."""
        kind = type(frame)
        if kind is Ack or kind is Nack:
            if self._seat is not None:
                self._seat.received(frame)
            elif self.outlet is None:
                raise UnexpectedFrame(kind.__name__, "not receiving")
            # of one that was replaced: its answers no longer count
        elif type(frame) is Transfer or type(frame) is Promised:
            if self.ingress is None:
                raise UnexpectedFrame("Transfer", "what is passed on goes the other way")
            self._sent_any = True
            try:
                self.ingress.received(frame)
            except ProtocolError:
                self._store()  # what was taken in before; the turn has no regular end now
                raise
        elif type(frame) is Request:
            self._request(frame)
        elif type(frame) is Cancel:
            self._give_up(frame)
        elif type(frame) is Note:
            if self._seat is not None:
                self._seat.note(frame.sequence, frame.attempts, frame.reason)
        elif type(frame) is Reply:
            if self._asking is not None:
                self._asking.replied(frame)
            elif self._responder is not None:
                self._responders.answered(self._responder, frame)
            # of one that was asked nothing; who left does not say that it answered
        elif type(frame) is Delivery:
            raise UnexpectedFrame("Transfer", "with what nodes tell their receivers")
        else:
            raise UnexpectedFrame(type(frame).__name__, "talking to a node")

    def turn_ended(self, connection: Connection) -> None:
        """Store what came, send what may be sent."""
        if self._sent_any:
            self._store()
        if self._seat is not None:
            self._seat.turn_ended()
        if self.stage not in STAYING:
            self._close_if_done()

    def _store(self) -> None:
        if self._sent_any:
            self._sent_any = False
            self._commits.kick_soon()

    def writable(self, connection: Connection) -> None:
        """The transport has room again."""
        if self.ingress is not None:
            self.ingress.writable()  # first: what comes from the log may be about it
        self._room.fire(None)
        if self._seat is not None:
            self._seat.pump()

    def peer_leaves(self, connection: Connection, code: int, reason: str) -> None:
        """The peer said BYE: it sends nothing more; what it was given may still be answered."""
        self.has_settled = code == BYE_SETTLED
        seat = self._seat
        if seat is None or self.is_leaving:
            self.leave(BYE_CLOSING, GOODBYE)
            return
        self._happens(Event.LEAVES)
        self.goodbye = GOODBYE
        due = self._goodbye_due = seat.stored()
        due.addCallback(self._goodbye_is_due, connection)
        due.addErrback(lambda failure: failure.trap(CancelledError) and None)
        due.addErrback(self.fault)

    def _goodbye_is_due(self, _: object, connection: Connection) -> None:
        """The answers of a receiver that leaves are on disk, and it may know."""
        self._goodbye_due = None
        self._say_bye(connection, BYE_CLOSING, self.goodbye)

    def _wait_no_more(self) -> bool:
        """Wait no more for what the goodbye waits for; return whether it was to be said."""
        due, self._goodbye_due = self._goodbye_due, None
        if due is not None:
            due.cancel()
        return due is not None

    def lost(self, connection: Connection, reason: str) -> None:
        """The connection has gone."""
        self._wait_no_more()
        self._store()
        if self._guest is not None:
            self._guest.gone()
        if self._abort is not None:
            self._abort.cancel()
            self._abort = None
        if self._login is not None:
            self._login.stop()
        for timer in (self._paused, self._look):
            if timer is not None and timer.active():
                timer.cancel()
        if self.ingress is not None:
            self.ingress.stop()
        if self._asking is not None:
            self._asking.close(NotConnected(reason))
        if self._responder is not None:
            self._responders.lost(self._responder)
        self._responders.forget(self)
        if self._watch is not None:
            self._tracker.unwatch(self._watch)
        leaving, was_here = self.is_leaving, self.stage is Stage.HERE
        contradicts = connection.peer_error == ContentChanged.wire_code
        if contradicts and self._seat is not None:
            assert self._guest is not None
            self._greeter.contradicted(self._guest, self._seat.outlet, reason)
        self._happens(Event.LOST)
        # A goodbye is no error; and what was in flight is not why the two contradict each other.
        by_itself = not (leaving or self.ended_by_us or contradicts)
        self._leave_seat("" if leaving else reason, lost=by_itself)
        self._room.fire(None)
        if self._dialled is not None and was_here:  # it never came to be seated: that is why
            failed = connection.session.failed
            codes = connection.peer_error, failed.wire_code if failed is not None else 0
            waited = DeadlinePassed.wire_code in codes and self._guest is None
            if waited and not self._dialled.is_node:  # two nodes wait for each other so
                reason = f"{reason}; if a node is there, its address is node:…"
            self._dialled.last_error = reason
        self._register.gone(self)

    def _happens(self, event: Event) -> None:
        self.stage = NEXT[self.stage, event]
        if self.is_leaving and self._responder is not None:
            self._responders.leaves(self._responder)

    # --- `greeting.Visitor`

    def admitted(self, guest: Guest) -> None:
        """See `Visitor`."""
        self._guest = guest
        self.name, self.outlet = guest.name, guest.outlet
        self._look_later()

    def answering(self, guest: Guest, said: int) -> None:
        """See `Visitor`."""
        assert self.connection is not None
        self.ingress = Ingress(
            self.connection,
            Sender.of(
                guest.name,
                guest.incarnation,
                guest.allowed.principal.user,
                guest.node_log,
            ),
            rights=guest.allowed,
            intake=self._intake,
            clock=self._clock,
            limits=self._limits,
            said=said,
            answered=self._close_if_done,
            by_key=self._taken_by_key,
        )

    def _taken_by_key(self, piece: Piece) -> None:
        """A message of its was taken by its key: it is told what becomes of the one stored."""
        if self._watch is not None:
            self._tracker.by_key(self._watch, piece)

    def seated(self, outlet: Outlet, resume: Resume) -> None:
        """See `Visitor`: feed it, unless another connection of its is newer."""
        connection, guest = self.connection, self._guest
        assert connection is not None
        assert guest is not None
        if self._register.replace(outlet, self):
            self._happens(Event.SEATED)
            if self.is_next_node:
                self._directory.next_node(outlet.row, guest.node_log)
            self._seat = outlet.attach(connection, resume, guest.inbox)
            self._dispatch.connected(outlet)

    def waits(self) -> None:
        """See `Visitor`."""
        self._paused = self._clock.callLater(PAUSED_STAY, self.leave, BYE_PAUSED, "paused")

    def _look_later(self) -> None:
        """A login that ends by itself is looked at when that is due."""
        assert self._guest is not None
        left = self._gate.seconds_left(self._guest.allowed)
        if left is not None:
            # Not for longer than that at once: the wall clock says when, and may be set.
            delay = min(max(left, 0.0), LOOK_EVERY)
            self._look = self._clock.callLater(delay, self.look_again)

    def look_again(self) -> None:
        """End the connection where its peer would not be let in again as it is."""
        guest = self._guest
        if guest is None or self.connection is None or self.connection.is_gone:
            return
        if self._gate.holds(guest.allowed):
            if self._look is None or not self._look.active():
                self._look_later()
            return
        # At once: what it says from now on counts no more. What it was given comes again, and what
        # it has handed in is known when it comes again.
        self.ended_by_us = True  # so it is not the fault of what was in flight
        self.connection.fail(self._gate.ended(guest.allowed))

    # --- what the node does with it

    @property
    def user(self) -> str:
        """The user that its peer is known to be; empty: nobody yet, or whoever is believed."""
        known = self.principal if self._guest is None else self._guest.allowed.principal
        return "" if known is None else known.user

    @property
    def is_greeted(self) -> bool:
        """Whether its HELLO was taken, and both sides know who the other is."""
        guest = self._guest
        return self.ingress is not None or (guest is not None and self.is_next_node)

    @property
    def is_next_node(self) -> bool:
        """Whether it is a node that was dialled, to pass messages on to."""
        return self._dialled is not None and self._dialled.is_node

    @property
    def is_dialled(self) -> bool:
        """Whether the node made the connection."""
        return self._dialled is not None

    @property
    def is_leaving(self) -> bool:
        """Whether a BYE was said, or the connection has ended."""
        return self.stage not in STAYING

    @property
    def is_gone(self) -> bool:
        """Whether the connection has ended."""
        return self.connection is None or self.connection.is_gone

    def tell(self, news: Iterator[News]) -> bool:
        """See `tracker.Told`. A frame that is too large ends this connection alone."""
        ingress, connection = self.ingress, self.connection
        assert ingress is not None
        assert ingress.status_frames is not None
        frames, is_all = ingress.status_frames.take(news)
        if frames and connection is not None and not connection.is_gone:
            try:
                if ingress.owes:
                    ingress.send_owed()  # as `_send`
                connection.send_now(frames)
            except FrameTooLarge as error:
                connection.fail(error)
        return is_all

    def _tell(self, frames: list[Frame]) -> None:
        try:
            self._send(frames)
        except FrameTooLarge as error:
            assert self.connection is not None
            self.connection.fail(error)

    def _send(self, frames: list[Frame]) -> None:
        if self.connection is not None and not self.connection.is_gone:
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
        if self.connection is None or self.connection.is_gone or self.connection.is_writable:
            return succeed(None)
        return self._room.wait()

    def leave(self, code: int, reason: str, *, lost: bool = False) -> None:
        """Send nothing more; close when all is answered, or when its time is over.

        `lost`: it is replaced by another process, so its own may have died (SEMANTICS 14).
        """
        connection, leaving = self.connection, self.is_leaving
        if connection is None or connection.is_gone:
            return
        if code == BYE_REPLACED:
            # Also when it was about to leave and waits for answers: its place is needed now.
            self._happens(Event.UNSEATED)
            self._wait_no_more()
            self.goodbye = reason
            connection.bye(code, reason)
            self._leave_seat(reason, lost=lost and not leaving)
            delay = self._limits.replaced_timeout
            if self._abort is None:
                self._abort = self._clock.callLater(delay, self._abort_now)
        elif not leaving:
            self._happens(Event.LEAVES)
            self._say_bye(connection, code, reason)

    def part(self, reason: str) -> None:
        """Take no more answers from a receiver, and feed it nothing more; nothing is said yet."""
        self._happens(Event.PARTED)
        self._leave_seat(reason, lost=False)
        self._leave_without()
        self._close_if_done()

    def _leave_without(self) -> None:
        """Say a goodbye that waits: whatever the receiver has answered, it has no place now."""
        if self._wait_no_more() and self.connection is not None:
            self._say_bye(self.connection, BYE_CLOSING, self.goodbye)

    def dismiss(self, code: int, reason: str) -> None:
        """Take no more answers from a receiver, which has no place any more, and leave."""
        connection, leaving = self.connection, self.is_leaving
        self._happens(Event.UNSEATED)
        self._leave_seat(reason, lost=False)
        self._leave_without()
        if not leaving and connection is not None and not connection.is_gone:
            self._say_bye(connection, code, reason)

    def _say_bye(self, connection: Connection, code: int, reason: str) -> None:
        self.goodbye = reason
        connection.bye(code, reason)
        if self.ingress is not None:
            self.ingress.flush()
        self._close_if_done()

    def _leave_seat(self, reason: str, *, lost: bool) -> None:
        seat, self._seat = self._seat, None
        if seat is not None:
            if seat.outlet.workers == 1:
                self._dispatch.disconnected(seat.outlet)
            seat.detach(reason, lost=lost)
            if self.connection is not None:
                self.connection.go_on_soon()  # what waited until its answers were heard to the end

    def _close_if_done(self) -> None:
        """After a BYE: close when what was in flight, both ways, is answered."""
        if not self.is_leaving or self.connection is None or self.connection.is_gone:
            return
        if self._goodbye_due is not None:
            return
        if self._seat is not None and not self._seat.idle:
            return
        if self._responder is not None and self._responder.pending:
            return
        if self.ingress is None or not self.ingress.waiting:
            self.connection.close()

    def _abort_now(self) -> None:
        self._abort = None
        if self.connection is not None:
            self.connection.abort()

    # --- requests

    def ask_node(self, subject: str, arguments: Any, seconds: float) -> Deferred[Any]:
        """Ask the node that was dialled; fires with its answer. Fails as a client's request does.

        It answers as to whoever sends what is passed on: about that, without a right.
        """
        if self._asking is None:
            return fail(NotConnected(f"no session with node {self.name!r}"))
        body = msgspec.json.encode(arguments)
        return self._asking.call(subject, body, len(body) + BODY_OVERHEAD, seconds)

    @property
    def sender_there(self) -> str:
        """The sender that this node is at the one that was dialled, as that tells it."""
        assert self._dialled is not None
        hello = self._greeter.hello_to(self._dialled)
        return f"{hello.name}/{hash_of(hello.incarnation)}"

    def _request(self, frame: Request) -> None:
        calls, calls_max = count_of(frame.messages), self._limits.requests
        frame_max = min(calls_max, CALLS_MAX)
        if calls > frame_max:  # not even when all others are answered
            raise MalformedFrame(f"{calls} calls in a REQUEST, 1 to {frame_max} allowed")
        if self._calls + calls > calls_max:
            self._send([*busy(frame, calls, calls_max)])
            return
        decode_messages(frame.messages)  # raises `MalformedFrame`
        self._calls += calls
        assert self._guest is not None
        if not is_reserved(frame.subject):
            self._responders.ask(self, frame, self._guest.allowed)
            return
        self._answering += 1
        answer: Deferred[Reply] = self._requests.answer(frame, self._guest.allowed)
        self._own[answer] = RangeSet([(frame.id, frame.id + calls - 1)])
        answer.addBoth(self._answered, answer).addErrback(self.fault)

    def _give_up(self, frame: Cancel) -> None:
        """Count what nobody waits for no longer. What the node itself does is done to its end."""
        self._calls -= self._responders.cancel(self, frame.ranges)
        given_up = RangeSet(frame.ranges if self._own else ())
        for waited in self._own.values():
            for part in waited:
                for first, last in given_up.within(*part):
                    waited.remove(first, last)
                    self._calls -= last - first + 1

    def _answered(self, reply: Reply | Failure, answer: Deferred[Reply]) -> None:
        waited = self._own.pop(answer)
        self._calls -= waited.count
        self._answering -= 1
        if self.connection is not None:
            self.connection.go_on_soon()
        if isinstance(reply, Failure):
            self._logger.failure("a request of {name}", reply, name=self.name)
            return
        wanted = [each for each in reply.replies if each[0] in waited]
        if len(wanted) < len(reply.replies):
            reply = Reply(wanted)
        try:
            self._send([reply] if wanted else [])
        except FrameTooLarge as error:
            self._tell([*refusal_of(reply, str(error))])

    # --- `responders.Asker`, and `responders.End`

    @property
    def _answer_bytes(self) -> int:
        """The bytes of messages that one frame to this peer may hold."""
        assert self.connection is not None
        hello, own = self.connection.session.peer_hello, self._limits.max_batch
        return own if hello is None else min(_said(hello.options.max_batch, own), own)

    def told(self, answers: list[Answer]) -> None:
        """See `Asker`. What a peer that does not read would be told goes beyond no window."""
        self._calls -= len(answers)
        if self.is_gone:
            return
        assert self.connection is not None
        assert self.connection.channel is not None
        if self.connection.channel.unsent > self._limits.window_bytes:
            error = LimitReached("window_bytes", self._limits.window_bytes)
            said = refusal(f"answered, but answers are not read: {error}", error.refusal_code)
            answers = [(number, False, said) for number, _, _ in answers]
        self._say([*cut_answers(answers, self._answer_bytes)])

    @property
    def may_be_asked(self) -> bool:
        """See `End`."""
        return self.connection is not None and self.connection.may_send

    def ask(self, frames: list[Request | Cancel]) -> None:
        """See `End`."""
        self._say([*frames])

    def _say(self, frames: list[Frame]) -> None:
        """Send what others have said: where that fails, this connection ends, and no other."""
        try:
            self._tell(frames)
        except Exception:
            self.fault(Failure())

    def has_answered(self) -> None:
        """See `End`."""
        self._close_if_done()


def _said(number: int | None, default: int) -> int:
    """Return what a HELLO says; 0 is as left out."""
    return number or default
