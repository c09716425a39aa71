"""The producer's API: `Client`; `client.connect` makes one that dials.

    send, send_many -> flow (gathering, room, disk) -> hop (sequences, outbox, session)
    node's answers -> hop -> handed.HandedRun -> Deferreds and `Receipt`s

What cancelling means, everywhere here: the wait ends, with `CancelledError`; the message or the
request itself is not called back and may still be delivered. Only cancelling the Deferred of
`connect` stops what it began: the dialling.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from threading import get_ident
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import msgspec
from msgspec import Raw
from twisted.application.service import IService, Service
from twisted.internet.defer import Deferred, fail, gatherResults, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python import threadable
from twisted.python.failure import Failure

from msgservice.administration import (
    DELAYED_CANCEL,
    RETELL,
    UNDO,
    WHY,
    Cause,
    UndoTold,
    WhyPage,
    undone_too,
)
from msgservice.arguments import check_counts, check_flags
from msgservice.client.flow import Flow
from msgservice.client.gathering import BARE_OVERHEAD, Gathering, check_alone
from msgservice.client.handed import joined
from msgservice.client.hop import Listed, NodeHop
from msgservice.client.promise import Promise
from msgservice.client.receipt import AnyReceipt, AnyReceipts, Receipt, Receipts
from msgservice.client.requests import Requests
from msgservice.client.responding import Handler, Responder
from msgservice.client.shutdown import Shutdown, State
from msgservice.clock import SteadyClock, monotonic_of, timed
from msgservice.connection import Connection, Prover
from msgservice.core.frames import Reply
from msgservice.core.runs import Run, Settled
from msgservice.core.subjects import (
    check_name,
    check_pattern,
    check_subject,
    exact,
    is_reserved,
)
from msgservice.errors import (
    BadSubject,
    BadValue,
    ClientClosed,
    NoResponder,
    RequestFailed,
    UnknownMessage,
)
from msgservice.interfaces import IChannelUser, IConnector
from msgservice.limits import INTEGER_MAX, Limits, is_integer, messages_and_bytes
from msgservice.message import Headers
from msgservice.records import identity_of
from msgservice.waiters import Waiters

# What may be handed over and not accepted yet, the window included; `send` fails beyond it.
HELD_MESSAGES = 1_000_000
HELD_BYTES = 256 * 1024 * 1024
# Of one page of receipts: about a KiB of memory each, as long as they are held.
RECEIPTS_PAGE, RECEIPTS_MAX = 1000, 10_000
_OPEN = State.OPEN  # by its name a member of an enum is found slowly
if TYPE_CHECKING:
    from msgservice.client.disk import DiskOutbox

ConnectorFactory = Callable[[Callable[[], IChannelUser]], IConnector]


@dataclass(frozen=True, slots=True, kw_only=True)
class Why:
    """The state of the connection to the node, for people."""

    connected: bool
    error: str | None  # the last one, or None
    attempts: int  # failures in a row
    next_try: float | None  # seconds until it dials again, while it waits
    unanswered: int  # messages handed over that the node has not answered yet
    refusal: str | None = None  # why it takes nothing of them for now, where it said so
    code: int = 0  # of the ERROR that ended the last connection, of either side; or 0
    # TLS came to nothing for a certificate, of either side: it is tried again, and fails again
    # until that is another, or trusted.
    by_certificate: bool = False

    def __str__(self) -> str:
        state = "connected" if self.connected else f"not connected ({self.error or 'dialling'})"
        again = "" if self.next_try is None else f", next try in {self.next_try:.1f} s"
        waits = f", refused for now: {self.refusal}" if self.refusal else ""
        tries = "" if self.connected else f", {self.attempts} failures in a row{again}"
        return f"{state}{tries}, {self.unanswered} unanswered{waits}"


class Client:
    """Hands messages to one node. Make one with `connect`, or embed one (see `start`).

    `connector_factory(make_user)` returns the `IConnector` that keeps the connection: a socket's,
    or one inside the process. `window`: (messages, bytes) unanswered at once, and where `blocked`
    begins; `held`: (messages, bytes) beyond which `send` fails. `require`: the default of `send`.
    `new_incarnation` returns a fresh secret text (SEMANTICS 5). `outbox`: opened by
    `client.disk.open_outbox`; the client closes it. It brings its own incarnation, and `held`
    should be its limit too. `prover`: the login at the node.
    """

    # What waits for one message of `send`, made before anything is changed. A client of
    # `msgservice.aio` has futures of its loop here, and its `send` is this one: an adapter around
    # each Deferred would take four times as long as the future (bench/programs.py).
    new_waiter: Callable[[], Deferred[Receipt]] = Deferred

    _logger = Logger()

    def __init__(
        self,
        *,
        reactor: IReactorTime,
        name: str,
        connector_factory: ConnectorFactory,
        limits: Limits,
        new_incarnation: Callable[[], str],
        window: tuple[int, int] | None = None,
        held: tuple[int, int] = (HELD_MESSAGES, HELD_BYTES),
        require: bool = False,
        outbox: DiskOutbox | None = None,
        prover: Prover | None = None,
    ) -> None:
        reactor = timed(reactor)
        self.name = name = check_name(name)
        self._disk = outbox
        self._has_said_what_is_listed = False
        self._connecting: Waiters[Client] = Waiters()
        self._thread = get_ident()
        now = monotonic_of(reactor)
        window = (limits.window_messages, limits.window_bytes) if window is None else window
        window, held = messages_and_bytes("window", window), messages_and_bytes("held", held)
        steady = SteadyClock(reactor)
        self._gathering = Gathering(limits, window[0], require=require, now=steady.now)
        self._growing = self._gathering.open
        self._run_messages = self._gathering.run_messages
        self._hop = NodeHop(
            self,
            name=name,
            incarnation=new_incarnation() if outbox is None else outbox.incarnation,
            new_incarnation=(
                (lambda: succeed(new_incarnation())) if outbox is None else outbox.file.renew
            ),
            sequence=0 if outbox is None else outbox.given,
            disk=outbox,
            window=window,
            clock=reactor,
            now=now,
            steady=steady,
            limits=limits,
            prover=prover,
        )
        self._flow = Flow(
            hop=self._hop,
            gathering=self._gathering,
            disk=outbox,
            reactor=reactor,
            limits=limits,
            window=window,
            held=held,
            wrote=lambda: self._shutdown.look(),
        )
        if outbox is not None:
            self._flow.give_room(-outbox.left_messages, -outbox.left_bytes)
        self._asked = ""  # the subject of the newest request
        self._requests = Requests(
            clock=reactor, now=now, pending_max=limits.requests, bytes_max=limits.window_bytes
        )
        self._connector = connector_factory(self._hop.connect)
        self._connector_factory = connector_factory
        self._new_incarnation, self._prover = new_incarnation, prover
        self._limits, self._reactor, self._now = limits, reactor, now
        self._responders: dict[Responder, None] = {}
        self._shutdown = Shutdown(
            hop=self._hop,
            flow=self._flow,
            requests=self._requests,
            connector=self._connector,
            connecting=self._connecting,
            disk=outbox,
            reactor=reactor,
            stop_timeout=limits.stop_timeout,
        )
        self._attempts_at_error = 0  # how often was dialled when the hop's last error came

    # --- getters

    @property
    def connected(self) -> bool:
        """Whether a session with the node stands."""
        return self._hop.is_connected

    @property
    def unanswered(self) -> int:
        """Messages handed over that the node has not answered."""
        return self._flow.unanswered

    @property
    def blocked(self) -> bool:
        """Whether the window is full of unanswered messages: what is sent now waits.

        A program that does not await its sends should stop until this is False again. With
        `outbox=` the disk takes what the window does not: then, whether that is (nearly) full.
        """
        return self._flow.blocked

    @property
    def sequence(self) -> int:
        """The last sequence that was ever given; with `outbox=`, the last one on disk.

        Of one producer that sends nothing else, it says how many of its messages were handed
        over: after a crash it goes on from there.
        """
        return self._hop.sequence if self._disk is None else self._disk.sequence

    @property
    def room(self) -> tuple[int, int]:
        """Messages and bytes that may be handed over now, before `held` is reached."""
        return self._flow.room_messages, self._flow.room_bytes

    @property
    def next_sequence(self) -> int:
        """The sequence that is given next: of `hand_over`, that of its first message."""
        return self._hop.sequence + 1

    def why(self) -> Why:
        """The state of the connection: last error, attempts, next try."""
        connector = self._connector
        error: str | None = self._hop.last_error
        code = self._hop.last_code
        if not error or connector.attempts > self._attempts_at_error:
            error = connector.last_error or error
        if (failed := self._hop.failed) is not None:  # while it closes it is the same already
            error, code = str(failed), failed.wire_code
        return Why(
            connected=self.connected,
            error=None if self.connected else error or None,
            attempts=connector.failures,
            next_try=connector.next_attempt_in,
            unanswered=self.unanswered,
            refusal=self._hop.refusal or None,
            code=0 if self.connected else code,
            by_certificate=not self.connected
            and bool(getattr(connector, "is_by_certificate", False)),
        )

    # --- sending

    def send(
        self,
        subject: str,
        content: Any,
        *,
        to: Sequence[str] | None = None,
        headers: Headers | None = None,
        id: str | None = None,  # noqa: A002 - the name that the field has everywhere
        require: bool | None = None,
        idempotency_key: str | None = None,
        ttl: float | None = None,
        delay: float | None = None,
        retain: bool | Literal["only"] = False,
        promise: Promise | None = None,
    ) -> Deferred[Receipt]:
        """Hand over one message; fires with its `Receipt` when the node has it on disk.

        `content`: bytes as they are; text, and what JSON can say, by their codec, named in
        `headers["content-type"]`. `to`: names of receivers, instead of those whose patterns
        match. `id`: the sender's own name for it. `require`: refuse it if it is for nobody.
        `idempotency_key`: what the message is about, in 1 to 255 bytes: with one that was used
        within the last day, by this user or name, it is not stored again, and its receipt is that
        of the message that was. `delay`: seconds from this call until it is delivered, 366 days at
        most; it fires when the node keeps it, and who gets it is decided when it is due. `ttl`:
        seconds from now, at most 366 days, above `delay`; where it was not delivered by then it is
        `expired`. `promise`: have the node say in time whether so many receivers have acknowledged
        it (`Promise`); `Receipt.promised()` fires with what became of that. Not with a `delay` or a
        key.

        Fails at once, with nothing sent, with `BadSubject`, `BadName`, `MessageTooLarge`,
        `TypeError` (content without a form), `BadValue` (`ttl`, `delay`, `promise`),
        `LimitReached` (too much is held), `NotSupported` (the node that was reached last does not
        offer `to`, `require`, `ttl`, `delay`, keys or promises), `ClientClosed`; after the node's
        answer with `UnknownReceiver`, `NoReceiver`, `TooFewReceivers`, `KeyReused` or `Refused`;
        with `Expired` when its ttl was over before the node was given it; with `ClientClosed` (an
        `Ambiguous`) when the client is closed before the answer. Cancelling ends the wait only.
        """
        if (
            type(content) is bytes
            and to is None
            and headers is None
            and id is None
            and require is None
            and idempotency_key is None
            and delay is None
            and not retain
        ):
            # The usual case, and the one that is measured: another body for a run that grows.
            try:
                gather = self._growing.get(subject)
            except TypeError:  # it cannot be a key, so it is no subject either
                gather = None
            if gather is None:
                if ttl is None and promise is None and len(content) <= self._gathering.begin_bytes:
                    waiter = self._begin(subject, content)
                    if waiter is not None:
                        return waiter
            elif gather.plain and gather.bare and gather.ttl == ttl and gather.promise is promise:
                flow = self._flow
                size = len(content) + BARE_OVERHEAD
                filled = gather.size + size
                if filled <= gather.limit and size <= flow.room_bytes and flow.room_messages > 0:
                    waiter = self.new_waiter()
                    gather.size = filled
                    flow.room_bytes -= size
                    flow.room_messages -= 1
                    gather.items.append(content)
                    waiters = gather.waiters
                    waiters.append(waiter)
                    if len(waiters) >= self._run_messages:
                        self._gathering.cut(gather)
                    return waiter
        waiter = self.new_waiter()
        self._check_thread()
        try:
            self._send(
                waiter,
                subject,
                content,
                to,
                headers,
                id,
                require,
                idempotency_key,
                ttl,
                retain,
                delay,
                promise,
            )
        except Exception as error:  # also whatever content raises that is asked for its form
            waiter.errback(error)
        return waiter

    def _begin(self, subject: str, body: bytes) -> Deferred[Receipt] | None:
        """Hand over a plain body that begins a run, which is to be as `send` has looked at it.

        None: it is to be looked at in full.
        """
        flow, size = self._flow, len(body) + BARE_OVERHEAD
        if (
            size > flow.room_bytes
            or flow.room_messages <= 0
            or self._shutdown.state is not _OPEN
            or get_ident() != self._thread
        ):
            return None
        waiter = self.new_waiter()
        if not self._gathering.begin(subject, body, waiter):
            return None
        flow.room_bytes -= size
        flow.room_messages -= 1
        if not self._hop.is_telling:  # else it is handed over behind that
            flow.schedule()
        return waiter

    def _check_thread(self) -> None:
        """Raise `RuntimeError` on a thread that is neither the reactor's nor who made this.

        Once for each run: a message that joins one of this turn is not looked at.
        """
        here = get_ident()
        if here != self._thread and threadable.ioThread not in (None, here):
            raise RuntimeError(
                "a client of Twisted is used on its reactor's thread alone: call it by"
                " reactor.callFromThread (twisted.internet.threads.blockingCallFromThread waits),"
                " or use msgservice.blocking, whose clients are for every thread"
            )

    def _send(
        self,
        waiter: Deferred[Receipt],
        subject: str,
        content: Any,
        to: Sequence[str] | None,
        headers: Headers | None,
        own_id: str | None,
        require: bool | None,
        key: str | None,
        ttl: float | None,
        retain: bool | Literal["only"],
        delay: float | None,
        promise: Promise | None,
    ) -> None:
        gathering = self._gathering
        self._shutdown.check_open()
        subject = gathering.check_subject(subject)
        check_alone(key, promise)
        options = gathering.options(to, require, ttl, retain, delay, promise)
        if key is not None:
            key = gathering.check_key(key)
        item, size = gathering.prepare(content, headers, own_id, gathering.limit_of(options), key)
        self._flow.take_room(1, size)
        if key is None:
            gather = gathering.gather(subject, options, ttl, promise)
        else:
            gather = gathering.alone(subject, options)
        if gather.size + size > gather.limit:
            gathering.cut(gather)
            gather = gathering.gather(subject, options, ttl, promise)
        gather.add(item, size, own_id, waiter)
        if key is not None or len(gather.waiters) >= self._run_messages:
            gathering.cut(gather)
        self._flow.schedule()

    def send_many(
        self,
        subject: str,
        bodies: Sequence[Any],
        *,
        to: Sequence[str] | None = None,
        headers: Headers | None = None,
        require: bool | None = None,
        ttl: float | None = None,
        delay: float | None = None,
        promise: Promise | None = None,
    ) -> Deferred[Receipts]:
        """Hand over some messages of one subject; fires with `Receipts` when all are on disk.

        The fast path: one Deferred for all. Each of `bodies` is content as for `send`, and each
        message has the same `headers`, `ttl`, `delay` and `promise`. Errors as for `send`; those
        before sending are about the whole call, a refusal by the node may be about a part of it:
        then some of the others may have been accepted. Cancelling ends the wait only.
        """
        self._check_thread()
        try:
            self._shutdown.check_open()
            gathering = self._gathering
            subject = gathering.check_subject(subject)
            options = gathering.options(to, require, ttl, delay=delay, promise=promise)
            runs = gathering.prepare_run(subject, bodies, options, headers)
            self._flow.take_room(sum(run.count for run in runs), sum(run.size for run in runs))
        except Exception as error:  # see `send`
            return fail(error)
        waiter = joined([run.source for run in runs])
        for run in runs:
            gathering.put(run)
        self._flow.schedule()
        return waiter

    def hand_over(self, runs: Sequence[Run]) -> Deferred[Receipts]:
        """Hand over runs as they are, at once and in this order; fires as `send_many` does.

        For what counts its messages by their sequences (`msgservice.outbox`), of a client that
        sends nothing else: the first has `next_sequence`, each other the one behind. Where it fails
        for want of room (`LimitReached`, `OutboxFull`), or with `ClientClosed`, none was given.
        """
        try:
            self._shutdown.check_open()
            self._flow.take_room(sum(run.count for run in runs), sum(run.size for run in runs))
        except Exception as error:  # see `send`
            return fail(error)
        waiter = joined([run.source for run in runs])
        for run in runs:
            self._gathering.put(run)
        self._flow.hand_over()
        return waiter

    def cancel(self, message: str | AnyReceipt, reason: str = "") -> Deferred[None]:
        """Have the node not send a message that waits until it is due; fires when that is stored.

        `message`: its receipt, the `id` that was given, or `SENDER/INCARNATION/SEQUENCE` as
        `msgservice status` shows it. From then on it has the state `cancelled` at `$delayed`, with
        this reason. Fails with `UnknownMessage` where it does not wait (any more), is the receipt
        of another client, or is another's and this one may not cancel those; with `TypeError` for
        what is no message; and as `request` does.
        """
        try:
            id_ = self._identity_of(message)
            asked = {"id": id_, "reason": exact(reason, "reason")}
        except (TypeError, UnknownMessage) as error:
            return fail(error)

        asking = self.request(DELAYED_CANCEL.right, asked)
        return asking.addCallbacks(lambda _: None, partial(_unknown, id_))

    def explain(self, message: str | AnyReceipt) -> Deferred[list[Cause]]:
        """Ask why a message is where it is; fires with the cause at each receiver.

        `message`: as for `cancel`, or `log:POSITION`. Each `Cause` says in a sentence what there is
        to say, and what would help. Fails with `UnknownMessage`, for the receipt of another client
        and where it is another's and this one may not ask about those as well; with `TypeError` for
        what is no message; and as `request` does.
        """
        try:
            id_ = self._identity_of(message)
        except (TypeError, UnknownMessage) as error:
            return fail(error)
        asking = Deferred.fromCoroutine(self._explain(id_))
        return asking.addErrback(partial(_unknown, id_))

    def undo(
        self,
        message: str | AnyReceipt | None = None,
        count: int = 1,
        reason: str = "",
        *,
        key: str | None = None,
    ) -> Deferred[UndoTold]:
        """Cancel what is surely not sent yet of a message; fires with the exact account, on disk.

        `message`: as for `explain`; or the idempotency `key` that this client, or another of its
        user, has sent it with. `count`: of messages, that one and those that its sender sent
        next. `UndoTold.receivers` says for each receiver how many are `cancelled`, `in_flight`
        (left to their answer), or had which final status; these add up to the audience. Errors are
        those of `explain`, and `ValueError` for a count below 1.
        """
        try:
            check_counts(1, count=count)
            asked: dict[str, Any] = {"count": count, "reason": exact(reason, "reason")}
            if (message is None) is (key is None):
                raise TypeError("undo takes a message or a key, one of both")
            if message is not None:
                asked["id"] = id_ = self._identity_of(message)
            elif key is not None:
                asked |= {"key": exact(key, "key"), "sender": self.name}
                id_ = asked["key"]
            asking = Deferred.fromCoroutine(self._undo(asked))
        except (TypeError, ValueError, UnknownMessage) as error:
            return fail(error)
        return asking.addErrback(partial(_unknown, id_))

    async def _undo(self, asked: dict[str, Any]) -> UndoTold:
        told = page = msgspec.convert(await self.request(UNDO.right, asked), UndoTold)
        while page.next is not None:
            asked |= {"id": page.next, "count": page.left, "key": ""}
            page = msgspec.convert(await self.request(UNDO.right, asked), UndoTold)
            told = undone_too(told, page)
        return told

    async def _explain(self, id_: str) -> list[Cause]:
        causes: list[Cause] = []
        asked: str = id_
        after: int | None = 0
        while after is not None:
            answer = await self.request(WHY.right, {"id": asked, "after": after})
            page = msgspec.convert(answer, WhyPage)
            causes += page.causes
            after = page.next
            if page.position:  # its id may be given again meanwhile
                asked = f"log:{page.position}"
        return causes

    def _identity_of(self, message: str | AnyReceipt) -> str:
        """Return what the node knows a message by. Raises `TypeError`, and `UnknownMessage`.

        The latter for the receipt of another client: its sequence is another message here.
        """
        if isinstance(message, AnyReceipt):
            if not message.run.is_kept_by(self._hop.runs):
                said = f"no message of this client, {self.name!r}: the receipt is another's"
                raise UnknownMessage(f"{self.name}/?/{message.sequence}", said)
            return self._identity(message.sequence)
        if isinstance(message, AnyReceipts):
            raise TypeError("message is one receipt of these: receipts[0], say")
        return exact(message, "message")

    def _identity(self, sequence: int) -> str:
        return identity_of(self.name, self._hop.incarnation, sequence)

    def receipts(
        self, after: int = 0, limit: int = RECEIPTS_PAGE, *, keep: bool = False
    ) -> Deferred[list[Receipt]]:
        """List the receipts that are open, rising; fires with the next `limit` beyond `after`.

        With `outbox=` those of earlier processes too: of what was handed over, and has not come to
        its end at every receiver, or had, and nobody was told. What is known of them by now the
        node says again, and `Receipt.changes` and all that waits gives it. One that was listed here
        is told to its end once: then it is listed no more. Without a file, or beyond its
        `open_receipts`, those that somebody still holds.

        `after`: the `sequence` of the last that was listed. `keep`: they are listed until
        `Receipt.forget`, whatever they were told, which needs a file. Fails with `ValueError` for a
        number that cannot be, or `keep` without `outbox=`; with `ClientClosed`, and for what keeps
        the file from being read: `LogDamaged`, `LogUnavailable`.
        """
        try:
            self._shutdown.check_open()
            check_counts(0, after=after)
            check_counts(1, limit=limit)
            check_flags(keep=keep)
            if self._disk is None:
                if keep:
                    raise BadValue("keep", "needs a client with outbox=, whose file keeps them")
                self._say_what_is_listed()
        except (TypeError, ValueError, ClientClosed) as error:
            return fail(error)
        listing = self._hop.receipts(after, min(limit, RECEIPTS_MAX), keep=keep)
        return listing.addCallback(self._listed)

    def _say_what_is_listed(self) -> None:
        """Somebody may look for what an earlier process has sent: say once where that stands."""
        if not self._has_said_what_is_listed:
            self._has_said_what_is_listed = True
            self._logger.warn(
                "{name}: receipts() of a client without outbox= lists those alone that this process"
                " holds: with outbox=FILE those of earlier processes too",
                name=self.name,
            )

    def _listed(self, listed: Listed) -> list[Receipt]:
        if listed.again is not None:
            self._have_told(*listed.again)
        return listed.receipts

    def _have_told(self, first: int, last: int) -> None:
        """Ask the node what became of these; without a connection, the next one begins with it."""
        connection = self._hop.connection
        if connection is not None and self.connected:
            asked = {"id": self._identity(first), "count": last - first + 1}
            asking = self.request(RETELL.right, asked)
            asking.addCallbacks(
                lambda _: self._hop.was_told(),
                self._not_told,
                errbackArgs=(connection, first, last),
            )

    def _not_told(self, failure: Failure, connection: Connection, first: int, last: int) -> None:
        error = failure.value
        if isinstance(error, NoResponder):  # it does not know how, but says it to who comes anew
            self._hop.tell_all_again(connection)
        elif isinstance(error, RequestFailed) and error.code == UnknownMessage.refusal_code:
            pass  # it has nothing of these: what is stored of them later is told then
        elif connection is self._hop.connection:
            self._hop.ask_later(self._have_told, first, last)

    def request(
        self, subject: str, content: Any, timeout: float = 30, *, headers: Headers | None = None
    ) -> Deferred[Any]:
        """Ask whoever answers on `subject`; fires with the content of the answer.

        That is the node on its own subjects (`$node.info`), and on others whoever says so with
        `respond`: one of them, in turn. Not stored, and sent at most once. `timeout` in seconds.
        Fails with `NoResponder`, `Busy` (all of them have as much as they take), `RequestTimeout`,
        `RequestFailed` (the other side says why), `Ambiguous` (a connection was lost after it was
        sent, `ResponderLost` where it was that of who was asked), `LimitReached`
        (`limits.requests` are pending, or `limits.window_bytes` of them), or as `send` does before
        sending. Cancelling ends the wait; one that was not sent is not sent then, and of one that
        was the node and who was asked are told.
        """
        self._check_thread()
        try:
            self._shutdown.check_open()
            if subject is not self._asked:  # what is asked again and again is looked at once
                self._asked = subject = check_subject(subject)
            limit = self._gathering.limit_of()
            item: bytes | Raw
            if type(content) is bytes and headers is None and len(content) < limit // 2:
                # The usual case, and the one that is measured (bench.rpc): it is a body already.
                item, size = content, len(content) + BARE_OVERHEAD
            else:
                item, size = self._gathering.prepare(content, headers, None, limit)
            try:
                can_be = 0 < timeout <= TIMEOUT_MAX
            except TypeError:
                raise TypeError(f"timeout is a number of seconds, not {timeout!r}") from None
            if not can_be:
                raise ValueError(
                    f"timeout must be above 0, at most {TIMEOUT_MAX:g} s, not {timeout!r}"
                )
        except Exception as error:  # see `send`
            return fail(error)
        return self._requests.call(subject, item, size, timeout)

    def respond(
        self,
        subject: str | Sequence[str],
        handler: Handler,
        *,
        concurrency: int | None = None,
    ) -> Responder:
        """Answer requests on a subject or pattern, or several, from when a connection stands.

        `handler(asked)` returns the content of the answer, as for `send`, or a Deferred or
        coroutine of it. Where it fails its asker gets `RequestFailed`: with the sentence and code
        of a `RequestFailed` that it raised, else with the name of the error's type alone.
        `concurrency`: calls at once, `limits.requests` if left out; beyond it the node asks
        another. It is cancelled where nobody waits for its answer any more.

        Each responder has a connection of its own, which dials again when it is lost. Raises
        `BadSubject` (of subjects that begin with `$` too), `BadValue`, `ClientClosed`, and
        `TypeError` for a handler that is none, or whose body would never run.
        """
        self._shutdown.check_open()
        if not callable(handler):
            raise TypeError(f"handler must be callable, not {handler!r}")
        subjects = [subject] if isinstance(subject, str) else list(subject)
        patterns = [check_pattern(exact(each, "subject")) for each in subjects]
        for pattern in patterns:
            if is_reserved(pattern):
                raise BadSubject(pattern, "requests on subjects that begin with '$' are the node's")
        if not patterns:
            raise BadValue("subject", "must be one at least")
        limits = self._limits
        at_once = limits.requests if concurrency is None else concurrency
        if not is_integer(at_once) or not 0 < at_once <= INTEGER_MAX:
            raise BadValue("concurrency", f"must be an integer above 0, not {at_once!r}")
        responder = Responder(
            name=self.name,
            patterns=patterns,
            handler=handler,
            concurrency=int(at_once),
            incarnation=self._new_incarnation(),
            connector_factory=self._connector_factory,
            clock=self._reactor,
            now=self._now,
            limits=limits,
            prover=self._prover,
            ended=lambda one: self._responders.pop(one, None),
        )
        self._responders[responder] = None
        return responder

    # --- hop.HopUser

    def opened(self, connection: Connection) -> None:
        """See `HopUser`."""
        self._gathering.fit(self._hop.batch_max)
        self._gathering.offered(connection.session.peer_features)
        self._requests.opened(connection, self._hop.batch_max)
        self._connecting.fire(self)

    def settled(self, settled: list[Settled]) -> None:
        """See `HopUser`."""
        self._flow.settled(settled)

    def answers_applied(self) -> None:
        """See `HopUser`."""
        gathering = self._gathering
        if gathering.open or gathering.whole:
            self._flow.go_on()
        if self._shutdown.state is not _OPEN:
            self._shutdown.look()

    def replied(self, reply: Reply) -> None:
        """See `HopUser`."""
        self._requests.replied(reply)

    def closed(self, reason: str) -> None:
        """See `HopUser`."""
        self._attempts_at_error = self._connector.attempts
        self._requests.lost()
        self._shutdown.look()

    def replaced(self) -> None:
        """See `HopUser`."""
        self._shutdown.replaced()
        for responder in list(self._responders):
            responder.close()

    # --- its life

    def start(self) -> None:
        """Begin to dial; for clients that were not made by `connect`.

        Raises `ClientClosed` for one that was closed: that is for ever.
        """
        self._shutdown.check_open()
        self._connector.startService()

    def when_connected(self) -> Deferred[Client]:
        """Fires with the client when a session stands; at once if one does."""
        try:
            self._shutdown.check_open()
        except ClientClosed as closed:
            return fail(closed)
        if self.connected:
            return succeed(self)
        return self._connecting.wait()

    def close(self) -> Deferred[None]:
        """Take nothing more, wait for the answers that are due, leave; fires when done.

        Takes at most `limits.stop_timeout`. What the node has not answered by then, or when
        there is no connection, fails with `ClientClosed`; it may still be stored. With `outbox=`
        a connection is waited for too, what an earlier process left included, and what stays in
        the file is logged; `unanswered` is how much. Safe to call twice. Cancelling ends the wait
        only. Its responders are closed as well.
        """
        closing = self._shutdown.close()
        if not self._responders:
            return closing
        ends = [closing, *(responder.close() for responder in list(self._responders))]
        return gatherResults(ends).addCallback(lambda _: None)

    def as_service(self) -> IService:
        """Return an `IService` that starts and closes this client, for `setServiceParent`."""
        service: IService = _ClientService(self)
        return service


TIMEOUT_MAX = 24 * 3600.0  # seconds; a request that may take longer is a message


class _ClientService(Service):
    """A Twisted service around a client: closes it when the service stops."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def startService(self) -> None:
        super().startService()
        self._client.start()

    def stopService(self) -> Deferred[None]:
        super().stopService()
        return self._client.close()


def _unknown(id_: str, failure: Failure) -> NoReturn:
    """Raise what a request has failed with, and `UnknownMessage` as that."""
    error = failure.value
    if isinstance(error, RequestFailed) and error.code == UnknownMessage.refusal_code:
        raise UnknownMessage(id_, str(error)) from None
    failure.raiseException()
    raise AssertionError  # it does not return
