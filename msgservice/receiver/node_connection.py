"""The receiver's end of one connection to a node: HELLO, what was taken already, runs, answers.

What it shares with the receiver's other connections is the `Reception`; how the channel came to be
is the business of `receiver.ways`.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

import msgspec
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from msgservice.clock import wall_of
from msgservice.connection import STOPPING, WINDOW, Connection
from msgservice.core.frames import (
    BYE_CLOSING,
    BYE_REMOVED,
    BYE_REPLACED,
    CALLS_MAX,
    VERSION,
    Delivery,
    Frame,
    Hello,
    ReceiveOptions,
    Reply,
    Request,
    Transfer,
    refusals,
)
from msgservice.core.subjects import Checked, check_name, check_subject, check_word
from msgservice.errors import MalformedFrame, NameMismatch, UnexpectedFrame
from msgservice.limits import BATCH_MESSAGES_MAX
from msgservice.message import BareMessage, count_of
from msgservice.receiver.handling.work import NodeIncarnation
from msgservice.receiver.received import RunFacts, decode_received
from msgservice.receiver.reception import Reception
from msgservice.receiver_options import ORDERS, STRICT
from msgservice.records import Resume

ANEW = "another connection of this receiver to the node has ended"
REPLACED = (
    "a newer connection has this receiver's name: stop one of the two, or give one another name"
)
REMOVED = "the receiver was removed from the node"
PAUSED = "the node says: paused"
OUTDATED = "the node has another incarnation for this receiver now"
QUIET_TURNS = 3  # turns without a run before what was discarded is asked for: two PINGs, usually


class Opened(Protocol):
    """The way that a connection came by (`ways.Way`)."""

    @property
    def connections(self) -> Collection[NodeConnection]:
        """The connections of this way that stand."""

    @property
    def reception(self) -> Reception:
        """The reception that the connections of the receiver share."""

    @property
    def receive(self) -> ReceiveOptions:
        """The options that are asked of the nodes that this way leads to."""

    def came(self, connection: NodeConnection) -> None:
        """A connection of this way stands."""

    def gone(self, connection: NodeConnection, reason: str) -> None:
        """A connection of this way has gone, for this reason if no other was said."""

    def says(self, reason: str) -> None:
        """The reason why no messages can arrive, for people."""

    def opened(self, node: str, incarnation: str) -> None:
        """Messages can arrive from a node that is this incarnation to the receiver."""

    def sent_away(self, reason: str, *, replaced: bool) -> None:
        """The node wants no connection of this receiver any more."""

    def stand_in(self, node: NodeIncarnation) -> None:
        """The node preferred a connection of ours that is only being begun anew."""

    def may_come_again(self) -> None:
        """The node said goodbye, and lets it come back."""


class NodeConnection:
    """The owner of one connection to a node (`connection.Owner`)."""

    _logger = Logger()

    connection: Connection

    def __init__(self, way: Opened) -> None:
        self.way = way
        self.takes_messages = False  # messages may come
        self._is_sent_away = False
        self._is_paused = False  # the node says so: it keeps the connection, and sends nothing
        self.when_lost: Deferred[None] = Deferred()
        self._left: Deferred[None] | None = None  # fires when the node has heard our BYE, or late
        self._left_late: IDelayedCall | None = None
        self._reception = way.reception
        self._handling = way.reception.handling
        self._wall = wall_of(way.reception.reactor)
        self._node: NodeIncarnation | None = None
        self._quiet = 0  # turns since the last run
        most = way.reception.limits.subjects
        self._subjects, self._words = Checked(check_subject, most), Checked(check_word, most)

    def channel_up(self, connection: Connection) -> None:
        """Send HELLO: the receiver's name, and its options."""
        self.connection = connection
        self.way.came(self)
        reception = self._reception
        options = reception.hello_options(self.way.receive)
        connection.hello(Hello(VERSION, reception.name, reception.incarnation, options))

    def greeted(self, connection: Connection, hello: Hello) -> None:
        """RESUME is sent with the node's marks; an older connection is not heard any more.

        It is the node that ends the older one: by another address the HELLOs may come in another
        order than the node has seen the connections, and where both decide, both may end.
        """
        check_name(hello.name)
        check_word(hello.incarnation)
        receive = hello.options.receive
        if receive is None:
            raise NameMismatch(f"{hello.name!r} does not send to receivers")
        self._is_paused = receive.paused
        order = receive.order or self._reception.order
        if order not in ORDERS:
            raise MalformedFrame(f"HELLO: order {order!r}")
        node = self._reception.node(hello.name, hello.incarnation)
        older = node.connection
        if older is not None and older.owner in self.way.connections:  # a node dials one at a time
            older.bye(BYE_REPLACED, REPLACED)
            older.close()
        for elder in self._reception.outdated(node):
            assert elder.connection is not None
            owner = elder.connection.owner
            assert isinstance(owner, NodeConnection)
            owner.outdated()
            elder.connection = None
        self._handling.reconnected(node, ordered=order == STRICT)
        node.connection = connection
        self._node = node
        connection.resume(node.inbox.resume())

    def begin_anew(self, node: NodeIncarnation) -> bool:
        """The connection that was heard instead has gone: what came here was not taken.

        Returns whether this one was of that node.
        """
        if self._node is not node:
            return False
        self.connection.bye(BYE_CLOSING, ANEW)
        self.connection.close()
        self.way.says(ANEW)
        return True

    def outdated(self) -> None:
        """The node has come as another incarnation of the same log: what this one is for is over.

        Unlike one that was replaced it may come back: where it does, the node says what holds.
        """
        self.connection.bye(BYE_CLOSING, OUTDATED)
        self.connection.close()
        self.way.says(OUTDATED)

    def say_bye(self) -> Deferred[None]:
        """Say BYE: all that is to be answered was. Fires when the node has stored the answers.

        That is what its own BYE says, which is read behind what it had sent before; an older node
        has only heard them. Fires at once where nothing was answered here or the node has said its
        BYE before, and in any case when the connection has gone, or after `limits.close_timeout`.
        """
        connection, node = self.connection, self._node
        is_heard = node is not None and node.connection is connection
        waits = (
            node is not None
            and is_heard
            and node.inbox.answers.has_answered
            and not connection.ends_on_purpose
            and not connection.is_gone
        )
        connection.bye()
        if not waits:
            return succeed(None)
        left = self._left = Deferred()
        here = self._reception
        self._left_late = here.reactor.callLater(here.limits.close_timeout, self._is_late)
        for reason in (WINDOW, STOPPING):
            connection.resume_reading(reason)
        return left

    def _is_late(self) -> None:
        """The node says nothing: to close in peace would be to wait for it once more."""
        self.connection.abort()
        self._has_left()

    def _has_left(self) -> None:
        late, self._left_late = self._left_late, None
        if late is not None and late.active():
            late.cancel()
        left, self._left = self._left, None
        if left is not None:
            left.callback(None)

    def opened(self, connection: Connection, resume: Resume) -> None:
        """Messages may come. What the node has taken of ours is nothing: we send none."""
        assert self._node is not None
        self.takes_messages = not self._is_paused
        self.way.opened(self._node.name, self._node.incarnation)
        if self._is_paused:
            self.way.says(PAUSED)

    def takes(self, frame: Frame) -> bool:
        """Whether a frame is looked at now; one that is answered needs room for the answer.

        What was taken is acknowledged in ranges, so runs are handled however slowly the node reads.
        But what was rejected is refused again each time that it comes. Where the order has
        changed, they wait for the handlers that run in the order before.
        """
        kind = type(frame)
        if kind is Request:
            return self.connection.has_room
        node = self._node
        if (kind is Delivery or kind is Transfer) and node is not None:
            if node.is_changing:
                return False
            owed = node.inbox.answers.refused_bytes
            return owed <= self._reception.limits.answer_bytes or self.connection.is_writable
        return True

    def received(self, connection: Connection, frame: Frame) -> None:
        """Take a run."""
        if isinstance(frame, Transfer):
            node = self._node
            assert node is not None
            self._quiet = 0
            if self._handling.is_stopping or node.connection is not connection:
                return  # unanswered: it comes again
            raw = frame.messages
            size, most = len(memoryview(raw)), BATCH_MESSAGES_MAX
            # Before they are decoded, which takes long; each has a byte at least.
            if size > most and (count := count_of(raw)) > most:
                raise MalformedFrame(f"TRANSFER of {count} messages, from 1 to {most} are allowed")
            subject, origin = frame.subject, frame.origin
            if subject not in self._subjects.known:
                self._subjects.look(subject)
            if origin is not None:
                known = self._words.known
                if origin.sender not in known or origin.incarnation not in known:
                    self._words.look(origin.sender)
                    self._words.look(origin.incarnation)
            facts = RunFacts(
                frame.sequence,
                subject,
                node.name,
                origin,
                frame.flags,
                self._reception.decode,
            )
            if frame.ttl is not None:
                facts.ttl, facts.expires_at = frame.ttl, self._wall() + frame.ttl
            if type(frame) is Delivery:
                facts.attempts, facts.stored_at = frame.attempts, frame.stored_at
            messages = decode_received(raw, facts)
            arrival = node.inbox.receive_transfer(frame, len(messages))
            if arrival is not None:
                self._handling.take(node, arrival, messages, size)
        elif type(frame) is Request:
            connection.send_all(_refusal(frame))
        else:
            raise UnexpectedFrame(type(frame).__name__, "a receiver listens")

    def turn_ended(self, connection: Connection) -> None:
        """The answers of this turn leave.

        A node that has nothing to send says PING: after some of these without a run, nothing that
        was discarded is on its way any more.
        """
        if self._node is not None:
            self._quiet += 1
            if self._quiet >= QUIET_TURNS and self._node.connection is connection:
                self._node.inbox.ask_for_discarded()
            self._handling.turn_ended(self._node)

    def writable(self, connection: Connection) -> None:
        """The channel has room again: acknowledgements that waited leave."""
        if self._node is not None and self._node.connection is connection:
            self._node.flush()

    def peer_leaves(self, connection: Connection, code: int, reason: str) -> None:
        """Close when all is answered; `turn_ended` follows, and looks for the first time."""
        self.way.says(f"the node says: {reason or 'closing'}")
        self._has_left()
        if code in (BYE_REPLACED, BYE_REMOVED):
            why = REPLACED if code == BYE_REPLACED else REMOVED
            self._logger.warn(
                "receiver {receiver} at {peer} does not come back by itself: {why}",
                receiver=self._reception.name,
                peer=connection.peer_address,
                why=why,
            )
            if code == BYE_REMOVED and self._node is not None:
                self._handling.removed(self._node)
            self._is_sent_away = True
            connection.close()
            self.way.sent_away(why, replaced=code == BYE_REPLACED)
            return
        self.way.may_come_again()
        if self._node is not None and self._node.connection is connection:
            self._node.is_leaving = True
        else:
            connection.close()

    def lost(self, connection: Connection, reason: str) -> None:
        """The connection was lost: the node retransmits on the next what was not answered."""
        self.takes_messages = False
        self.way.gone(self, reason)
        self._has_left()
        node = self._node
        was_its = node is not None and node.connection is connection
        if was_its:
            assert node is not None
            node.connection = None
        self._handling.lost(node if was_its else None)
        if was_its and not self._handling.is_stopping:
            assert node is not None
            away = self._is_sent_away
            begins = [way.node_lost(node, sent_away=away) for way in self._reception.ways]
            if away and any(begins):
                self.way.stand_in(node)
        self.when_lost.callback(None)


def _refusal(request: Request) -> list[Reply]:
    """Return the answer to requests; a receiver of this version has no handler for them."""
    no = msgspec.Raw(msgspec.msgpack.encode(BareMessage(b"requests are not supported")))
    count = count_of(request.messages)
    if count > CALLS_MAX:
        raise MalformedFrame(f"{count} calls in a REQUEST, 1 to {CALLS_MAX} allowed")
    return refusals(range(request.id, request.id + count), no)
