"""The client's side of the hop to its node: sequences, backlog, and the session on a connection.

It takes runs (`number`, `offer`), sends them as the window allows, and applies what the node says
to the runs that stand behind the receipts. Which connections there are is the connector's
business; gathering, limits and the public API are the client's.

Invariants: a sequence is given once per incarnation and never again; what was offered stays until
the node has acknowledged or refused it; nothing is sent before the node's RESUME was applied.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from msgservice.client.acked import Acked, highest_of
from msgservice.client.handed import HandedRun
from msgservice.client.receipt import Receipt
from msgservice.client.runs import HandedRuns
from msgservice.clock import SteadyClock
from msgservice.connection import Connection, Prover
from msgservice.core import features
from msgservice.core.audiences import (
    AUDIENCE_NAMES_MAX,
    GONE_AUDIENCES_MAX,
    TOLD_MAX,
    AudienceParts,
)
from msgservice.core.backlog import Backlog
from msgservice.core.backoff import delay_of
from msgservice.core.flight import Flight
from msgservice.core.frames import (
    BYE_REPLACED,
    VERSION,
    Ack,
    AudienceFrame,
    Frame,
    Hello,
    HelloOptions,
    Nack,
    NotEncodable,
    Reply,
    Routed,
    StatusFrame,
    Transfer,
)
from msgservice.core.ranges import Range
from msgservice.core.reasons import one_line
from msgservice.core.refusal import Refusal, refusal_in
from msgservice.core.runs import EXPIRED_REASON, Run, Settled, first_of
from msgservice.core.subjects import Checked, check_name, check_names, check_word
from msgservice.errors import (
    Ambiguous,
    ContentChanged,
    Expired,
    LogUnavailable,
    LogWentBack,
    MalformedFrame,
    MessageTooLarge,
    MsgServiceError,
    PeerForgot,
    ProtocolError,
    UnexpectedFrame,
    refused,
)
from msgservice.limits import MAX_BATCH_MIN, Limits
from msgservice.message import (
    STATUSES,
    Action,
    Status,
    count_of,
    cut_messages,
    join_messages,
)
from msgservice.records import DELAYED, PROMISE, Resume

if TYPE_CHECKING:
    from msgservice.client.disk import DiskOutbox
    from msgservice.client.receipt_rows import Row

RESERVED = (DELAYED, PROMISE)  # which a STATUS may be from, and no receiver is called
FACTOR = 10  # a node may have been given so many times the receivers that this side knows of
AUDIENCES_MAX = TOLD_MAX + GONE_AUDIENCES_MAX
# Runs that are looked at and sent in one turn of the reactor: a window may be very many small ones.
TURN_RUNS = 1024
_ACKNOWLEDGED = Status.ACKNOWLEDGED  # by its name a member of an enum is found slowly
EXPIRE_EVERY = 250  # ms between two looks at all that waits


class Listed(NamedTuple):
    """Open receipts, and of which sequences the node is to say the states again, if of any."""

    receipts: list[Receipt]
    again: Range | None


class HopUser(Protocol):
    """The user of a hop: the client, which is told what the session brings."""

    def opened(self, connection: Connection) -> None:
        """A session is open: requests may be sent on its connection."""

    def settled(self, settled: list[Settled]) -> None:
        """Messages were settled, and have left the outbox; their receipts are told next."""

    def answers_applied(self) -> None:
        """The answers that one read brought were all applied: the window may have room again."""

    def replied(self, reply: Reply) -> None:
        """A REPLY came: answers to requests."""

    def closed(self, reason: str) -> None:
        """The session has gone, or could not be opened."""

    def replaced(self) -> None:
        """Another connection has this name and incarnation: do not come back."""


class NodeHop:
    """The client's hop to its node, as `connection.Owner` of its connections.

    `sequence`: the last one that was ever given. `new_incarnation` fires with a fresh secret
    (SEMANTICS 5), kept where the outbox is kept. `disk`: the outbox, where it is a file; see
    `client.disk.DiskOutbox`. What an earlier process left in it is
    read as the node takes it. `prover`: the login at the node, or None.
    """

    __slots__ = (
        "_acked",
        "_audience_parts",
        "_behind",
        "_clock",
        "_disk",
        "_early",
        "_expiring",
        "_expiring_at",
        "_has_sent_enough",
        "_hello_due",
        "_is_reading",
        "_is_renewing",
        "_is_stopped",
        "_left_to",
        "_limits",
        "_new_incarnation",
        "_not_told",
        "_not_told_times",
        "_now",
        "_prover",
        "_receivers",
        "_renewal",
        "_renewing_failed",
        "_retelling",
        "_steady",
        "_timer",
        "_user",
        "_window",
        "backlog",
        "batch_max",
        "connection",
        "flight",
        "incarnation",
        "is_telling",
        "last_code",
        "last_error",
        "name",
        "peer_name",
        "refusal",
        "runs",
        "sequence",
    )

    _logger = Logger()

    def __init__(
        self,
        user: HopUser,
        *,
        name: str,
        incarnation: str,
        new_incarnation: Callable[[], Deferred[str]],
        sequence: int,
        disk: DiskOutbox | None,
        window: tuple[int, int],
        clock: IReactorTime,
        now: Callable[[], float],
        steady: SteadyClock,
        limits: Limits,
        prover: Prover | None = None,
    ) -> None:
        self.name = name
        self.incarnation = incarnation
        self.sequence = sequence
        self.runs = HandedRuns(disk)
        self.connection: Connection | None = None
        self.batch_max = limits.max_batch  # of the node, as last heard
        self.peer_name = ""
        # Those who waited for what a read brought are told: `HopUser.answers_applied` follows.
        self.is_telling = False
        self.last_error = ""
        self.last_code = 0  # of the ERROR that ended the connection before, or 0
        self.refusal = ""  # why the node takes nothing of what it was sent last; no error
        loaded = disk.take_loaded() if disk is not None else []
        self.backlog = Backlog(
            ordered=True,
            cursor=loaded[0].first - 1 if loaded else sequence,
            retry_delay=lambda attempts: delay_of(
                attempts, delay_min=limits.link_delay_min, delay_max=limits.link_delay_max
            ),
            gives_up_sent=False,  # the node may have it, and says what became of it
        )
        # What an earlier process had may have been sent by it.
        self.backlog.landed_to = 0 if disk is None else sequence
        self.flight: Flight | None = None  # of the connection, from when its session is open
        self._user = user
        self._new_incarnation = new_incarnation
        self._disk = disk
        self._clock, self._now, self._limits = clock, now, limits
        self._steady = steady
        self._expiring: IDelayedCall | None = None  # when the first of what waits does
        self._expiring_at = 0
        self._prover = prover
        self._window = window
        self._audience_parts = AudienceParts(0)  # of the connection
        self._receivers = Checked(check_name, limits.subjects)
        self._is_stopped = False
        self._timer: IDelayedCall | None = None
        self._has_sent_enough = False  # in this turn
        self._is_renewing = False  # the next incarnation is on its way to the disk
        self._renewing_failed = 0  # times in a row
        self._renewal: IDelayedCall | None = None  # the next try
        # Of which the node could not say again what became of it, how often in a row, and when it
        # is asked once more.
        self._not_told: Range | None = None
        self._not_told_times = 0
        self._retelling: IDelayedCall | None = None
        self._hello_due: Connection | None = None  # it waits for that
        self._acked = (
            Acked(sequence, ())
            if disk is None
            else Acked(sequence, disk.left_ranges, disk.log_id, disk.untaken)
        )
        self._left_to = sequence  # up to here it is what an earlier process left
        self._is_reading = False  # the next page of that
        if disk is not None:
            disk.keep_time(steady.now, int(limits.finished_days * 24 * 3600 * 1000))
        self._early: list[Frame] | None = None  # that came before the session could begin
        self._behind: list[Run] = []  # new ones, that wait until all of it was read
        self._take_up(loaded)
        if not self._has_more:
            self.backlog.skip_to(sequence)

    # --- getters

    @property
    def is_connected(self) -> bool:
        """Whether a session stands."""
        return self.flight is not None

    @property
    def failed(self) -> ProtocolError | None:
        """The error that the connection ends for that there still is; None: it does not end so."""
        connection = self.connection
        return None if connection is None else connection.session.failed

    def is_busy(self, messages: int) -> bool:
        """Whether the node has so many messages to answer, or half of its window; or is away."""
        flight = self.flight
        return flight is None or self.backlog.in_flight.messages >= min(
            messages, flight.window_messages // 2 or 1
        )

    # --- verbs

    def connect(self) -> Connection:
        """Return a connection of this hop, for a channel that is about to open."""
        return Connection(
            self, clock=self._clock, now=self._now, limits=self._limits, prover=self._prover
        )

    def number(self, runs: Sequence[Run]) -> None:
        """Number runs: give each its sequences."""
        sequence = self.sequence
        for run in runs:
            run.after, run.first = sequence, sequence + 1
            self.runs.add(run.source, run.first)
            sequence += run.count
        self.sequence = sequence

    @property
    def _has_more(self) -> bool:
        return self._disk is not None and self._disk.file.has_more

    def offer(self, runs: Sequence[Run]) -> None:
        """Send runs, in rising order, retransmitted until acknowledged; `pump` afterwards."""
        if self._disk is not None and (self._is_reading or self._disk.file.has_more):
            self._behind += runs
        else:
            self._offer(runs)

    def send(self, runs: Sequence[Run]) -> None:
        """Offer runs and send what the window has room for; at once where one comes alone."""
        connection, flight = self.connection, self.flight
        if (
            len(runs) == 1
            and self._disk is None
            and connection is not None
            and flight is not None
            and not (self._is_stopped or self._has_sent_enough)
            and connection.may_send
        ):
            run, backlog = runs[0], self.backlog
            run.after = backlog.loaded_to  # as `_offer` has it
            backlog.committed = backlog.cursor
            transfer = flight.send_alone(run)
            if transfer is not None:
                self._send_transfers(connection, flight, [transfer])
                return
        self.offer(runs)
        self.pump()

    def receipts(self, after: int, limit: int, *, keep: bool) -> Deferred[Listed]:
        """Return the next open receipts beyond `after`, and of what the node is to be asked again.

        `keep`: they stay open until they are forgotten. Fails with what keeps the outbox's file
        from being read.
        """
        if self._disk is None:
            return succeed(Listed(self.runs.receipts(after, limit), None))
        self._disk.flush()  # what has ended is not listed
        reading = self._disk.file.receipts_page(after, limit)
        return reading.addCallback(self._give_out, self._disk, after, limit, keep=keep)

    def _give_out(
        self, rows: Sequence[Row], disk: DiskOutbox, after: int, limit: int, *, keep: bool
    ) -> Listed | Deferred[Listed]:
        if not all(disk.has_read(row) for row in rows):
            return self.receipts(after, limit, keep=keep)  # more was noted of them meanwhile
        disk.flush()
        found: list[Receipt] = []
        again: list[Range] = []
        for row in rows:
            run = self.runs.find(row.first)
            is_new = run is None
            if run is None:
                run = disk.taken_up(row)
            elif run.ids is None:
                run.ids = row.ids
            parts = disk.receipts.listed(max(row.first, after + 1), row.last, limit - len(found))
            if not parts:
                continue  # all of it was told, and its row is to go
            if is_new:
                self.runs.take_up(run, row.first)
            indexes = [at - row.first for low, high in parts for at in range(low, high + 1)]
            found += [Receipt(run, index) for index in indexes]
            if disk.receipts.give_out(parts, keep=keep) or is_new:
                again.append((row.first, row.last))
        return Listed(found, (again[0][0], again[-1][1]) if again else None)

    def tell_all_again(self, connection: Connection) -> None:
        """Have the node say all states anew: on another connection, unless this has gone."""
        if connection is self.connection:
            connection.abort()

    def was_told(self) -> None:
        """The node has said again what became of some."""
        self._not_told_times = 0

    def ask_later(self, ask: Callable[[int, int], None], first: int, last: int) -> None:
        """Ask the node after a pause for what it could not say of these now."""
        if self._is_stopped:
            return
        before = self._not_told
        if before is not None:
            first, last = min(first, before[0]), max(last, before[1])
        self._not_told = first, last
        if self._retelling is None:
            self._not_told_times += 1
            pause = delay_of(
                self._not_told_times,
                delay_min=self._limits.link_delay_min,
                delay_max=self._limits.link_delay_max,
            )
            self._retelling = self._clock.callLater(pause, self._ask, ask)

    def _ask(self, ask: Callable[[int, int], None]) -> None:
        self._retelling = None
        asked, self._not_told = self._not_told, None
        if asked is not None:
            ask(*asked)

    def _take_up(self, runs: Sequence[Run]) -> None:
        """Send runs of an earlier process; their receipts may have been given out before."""
        for run in runs:
            source: HandedRun = run.source
            known = self.runs.find(run.first)
            if known is None:
                self.runs.take_up(source, run.first)
            else:
                known.cost, run.source = source.cost, known
        self._offer(runs)

    def _offer(self, runs: Sequence[Run]) -> None:
        until: int | None = None
        for run in runs:
            at, options = run.expires_at, run.options
            if at is not None:
                if options.ttl is not None:
                    # Of another process it was by a wall clock that may have been ahead.
                    at = run.expires_at = min(at, self._steady.now() + options.ttl)
                if until is None or at < until:
                    until = at
            if options.delay is not None and run.due_at is not None:
                run.due_at = min(run.due_at, self._steady.now() + options.delay)
            run.after = self.backlog.loaded_to  # what lies between was never kept, or is settled
            self.backlog.offer(run)
        if until is not None:
            self._expect(until)

    def _expect(self, at: int) -> None:
        """Something that waits expires at a time: it is settled then, if it still waits."""
        if self._is_stopped or (self._expiring is not None and self._expiring_at <= at):
            return
        if self._expiring is not None:
            self._expiring.cancel()
        self._expiring_at = at
        seconds = max(0.0, (at - self._steady.now()) / 1000)
        self._expiring = self._clock.callLater(seconds, self._expire)

    def _expire(self) -> None:
        self._expiring = None
        self.backlog.expire_all(self._steady.now())
        following = self.backlog.next_expiry()
        if following is not None:
            self._expect(max(following, self._steady.now() + EXPIRE_EVERY))
        self._apply_settled()
        self._user.answers_applied()
        self._flush_receipts()

    def pump(self) -> None:
        """Send the runs that the window has room for, as many as one turn takes."""
        if self._is_stopped or self._has_sent_enough:
            return
        connection, flight = self.connection, self.flight
        if connection is not None and flight is not None and connection.may_send:
            backlog = self.backlog
            disk = self._disk
            # What is settled in memory only may come again after a crash: then the node may not be
            # told that it will not.
            backlog.committed = backlog.cursor if disk is None else disk.file.settled_to
            transfers = flight.take_transfers(self._now(), runs_max=TURN_RUNS)
            self._send_transfers(connection, flight, transfers)
            if disk is not None and disk.file.has_more and not self._is_reading and flight.wants:
                self._read(disk)
            self._has_sent_enough = flight.has_more
        if self._timer is not None or self._has_sent_enough or self.backlog.retries:
            self._rearm()

    def _send_transfers(
        self, connection: Connection, flight: Flight, transfers: Sequence[Transfer]
    ) -> None:
        try:
            connection.send_now(transfers)
        except NotEncodable:
            self._send_each(connection, flight, transfers)
        if self.backlog.settled or self.backlog.failed:
            self._apply_settled()  # what turned out to be too large for the node, or no frame

    def _send_each(
        self, connection: Connection, flight: Flight, transfers: Sequence[Transfer]
    ) -> None:
        """Send the runs that can be sent; one that cannot is refused as if by the node.

        None of them has left so far, and each counts as in flight.
        """
        for transfer in transfers:
            try:
                connection.send_now([transfer])
            except NotEncodable as error:
                first = transfer.sequence
                last = first + count_of(transfer.messages) - 1
                refusal = Refusal(Action.REFUSED, f"it cannot be sent: {error}")
                flight.receive_nack(first, last, refusal, 0, self._now())

    def _read(self, disk: DiskOutbox) -> None:
        """Read more of what an earlier process left: the window has room for it."""
        self._is_reading = True
        reading = disk.read().addCallbacks(self._have_read, self._not_read)
        reading.addErrback(lambda f: self._logger.failure("after reading the outbox", f))

    def _have_read(self, runs: list[Run]) -> None:
        self._is_reading = False
        self._take_up(runs)
        if not self._has_more:
            self.backlog.skip_to(self._left_to)
            behind, self._behind = self._behind, []
            self._offer(behind)
        self.pump()

    def _not_read(self, failure: Failure) -> None:
        self._is_reading = False  # the next answer, or connection, tries again
        self.last_error = f"the outbox cannot be read: {failure.getErrorMessage()}"
        if not self._is_stopped:
            self._logger.failure("{name}: the outbox cannot be read", failure, name=self.name)

    def stop(self) -> None:
        """Send nothing more."""
        self._is_stopped = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._renewal is not None:
            self._renewal.cancel()
            self._renewal = None
        if self._retelling is not None:
            self._retelling.cancel()
            self._retelling = None
        if self._expiring is not None:
            self._expiring.cancel()
            self._expiring = None

    def _rearm(self) -> None:
        flight = self.flight
        due = None
        if flight is not None and self.backlog.retries and not self._is_stopped:
            due = flight.next_deadline()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._has_sent_enough and not self._is_stopped:
            self._timer = self._clock.callLater(0, self._retry)
        elif due is not None:
            self._timer = self._clock.callLater(max(0.001, due - self._now()), self._retry)

    def _retry(self) -> None:
        self._timer = None
        self._has_sent_enough = False
        self.pump()

    # --- connection.Owner

    def channel_up(self, connection: Connection) -> None:
        """See `connection.Owner`."""
        before, self.connection = self.connection, connection
        if before is not None:
            self._leave(before)
            before.abort()
            self._user.closed("another connection took its place")
        if self._is_renewing:
            self._hello_due = connection
        else:
            self._say_hello(connection)

    def _status_from(self) -> int:
        """The first sequence whose states are wanted, by whoever: those in the file wait there."""
        kept = None if self._disk is None else self._disk.receipts_from
        wanted = [first for first in (self.runs.lowest(), kept) if first is not None]
        return min(wanted, default=self.sequence + 1)

    def _say_hello(self, connection: Connection) -> None:
        heartbeat_ms = int(self._limits.heartbeat * 1000)
        options = HelloOptions(
            max_batch=self._limits.max_batch,
            heartbeat=heartbeat_ms,
            status_from=self._status_from(),
            features=list(features.OF_PEERS),
        )
        connection.hello(Hello(VERSION, self.name, self.incarnation, options))

    def greeted(self, connection: Connection, hello: Hello) -> None:
        """See `connection.Owner`. A client takes no transfers, so it has taken none."""
        self.peer_name = check_name(hello.name)
        check_word(hello.incarnation)
        said = hello.options.max_batch
        if said and said < MAX_BATCH_MIN:
            raise MalformedFrame(f"HELLO: max_batch {said}, a node's is at least {MAX_BATCH_MIN}")
        connection.resume(Resume())

    def opened(self, connection: Connection, resume: Resume) -> None:
        """See `connection.Owner`."""
        if connection is not self.connection:
            return
        last, disk = resume.last, self._disk
        if last is None or disk is None or not disk.file.is_unread(last[1]):
            self._opened_with(connection, resume, [])
            return
        # What the node took last is not in memory yet: the file is asked before anything is
        # settled by it, and what the node says meanwhile waits.
        assert connection.channel is not None
        connection.channel.pause()
        self._early = []
        looking = disk.file.between(last[0], last[1])
        looking.addCallback(lambda runs: self._looked(connection, resume, runs))
        looking.addErrback(lambda failure: self._not_looked(connection, failure))

    def _looked(self, connection: Connection, resume: Resume, runs: list[Run]) -> None:
        if connection is not self.connection or connection.is_gone or self._is_stopped:
            return
        early, self._early = self._early, None
        self._opened_with(connection, resume, runs)
        for frame in early or ():
            self.received(connection, frame)
        self.turn_ended(connection)
        if connection.channel is not None:
            connection.channel.resume()

    def _not_looked(self, connection: Connection, failure: Failure) -> None:
        self._not_read(failure)
        connection.abort()

    def _opened_with(self, connection: Connection, resume: Resume, unread: list[Run]) -> None:
        """Begin the session. `unread`: runs of the file where the node's newest run lies."""
        hello = connection.session.peer_hello
        assert hello is not None
        wrong = self._compare(resume, unread, hello.incarnation)
        if wrong is not None:
            self._begin_anew(wrong)
            connection.abort()
            return
        self._acked.log_id = hello.incarnation
        if self._disk is not None:
            self._disk.note_log(hello.incarnation)
        self.batch_max = min(
            hello.options.max_batch or self._limits.max_batch, self._limits.max_batch
        )
        self._audience_parts = AudienceParts(
            max(FACTOR * self._limits.receivers, AUDIENCE_NAMES_MAX)
        )
        self.runs.connected()
        self.backlog.receive_resume(resume.floor, resume.ranges)
        self.flight = Flight(
            self.backlog,
            own_window=self._window,
            window=hello.options.window,
            batch_max=self.batch_max,
            larger_is_dead=True,
            due=self._steady,
        )
        self._user.opened(connection)
        self._apply_settled()
        self._user.answers_applied()
        self._flush_receipts()
        self.pump()

    def received(self, connection: Connection, frame: Frame) -> None:
        """See `connection.Owner`."""
        flight = self.flight
        if connection is not self.connection or flight is None:
            if connection is self.connection and self._early is not None:
                self._early.append(frame)
            return
        match frame:
            case Ack():
                self.refusal = ""
                flight.receive_acks(frame.ranges)
            case Routed():
                self.runs.receive_routed(
                    frame.first, frame.last, frame.audience, frame.position, frame.due, frame.of
                )
            case StatusFrame():
                if frame.receiver not in self._receivers.known and frame.receiver not in RESERVED:
                    self._receivers.look(frame.receiver)
                if frame.incarnation == self.incarnation:
                    status = STATUSES[frame.state]
                    self.runs.receive_status(frame.receiver, status, frame.ranges, frame.reason)
            case AudienceFrame():
                check_names([name for name in frame.receivers if name != DELAYED])
                audience = self._audience_parts.receive(frame)
                if audience is not None:
                    self.runs.receive_audience(*audience, AUDIENCES_MAX)
            case Nack():
                self._note_refusal(frame)
                refusal, delay = refusal_in(frame), frame.delay / 1000
                flight.receive_nack(frame.first, frame.last, refusal, delay, self._now())
            case Reply():
                self._user.replied(frame)
            case _:
                raise UnexpectedFrame(type(frame).__name__, "a client")

    def _note_refusal(self, nack: Nack) -> None:
        """Say once that what was handed over waits, and for what; help the node to take it."""
        if nack.action != Action.LATER:
            return
        if self._disk is not None:
            # It may have no place for more ranges of this sender, and learns of what is settled
            # between them by the floor alone.
            self._disk.file.write_settled()
        if not self.refusal:
            self._logger.warn(
                "{name}: the node takes no more for now: {reason}; what was handed over waits",
                name=self.name,
                reason=one_line(nack.reason),
            )
        self.refusal = one_line(nack.reason) or "no reason was said"

    def turn_ended(self, connection: Connection) -> None:
        """See `connection.Owner`."""
        if connection is self.connection and self.flight is not None:
            backlog = self.backlog
            self.is_telling = True
            try:
                if backlog.settled or backlog.failed:
                    self._apply_settled()
                if self.runs.news:
                    self.runs.tell_news()
            finally:
                self.is_telling = False
                self._user.answers_applied()
            has_more = False
            if self._disk is not None:
                self._flush_receipts()
                has_more = self._disk.file.has_more
            if len(backlog.open_by_first) > backlog.in_flight.runs or has_more:
                self.pump()

    def writable(self, connection: Connection) -> None:
        """See `connection.Owner`."""
        if connection is self.connection:
            self.pump()

    def peer_leaves(self, connection: Connection, code: int, reason: str) -> None:
        """See `connection.Owner`: nothing more is sent there, the answers still count."""
        if connection is self.connection and code == BYE_REPLACED:
            self._logger.error(
                "{name}: another connection has this incarnation: {reason}",
                name=self.name,
                reason=reason,
            )
            self._user.replaced()

    def lost(self, connection: Connection, reason: str) -> None:
        """See `connection.Owner`."""
        if connection is not self.connection:
            return
        self.connection = None
        self._leave(connection)
        self.last_error = reason
        code = connection.peer_error
        failed = connection.session.failed
        self.last_code = code or (0 if failed is None else failed.wire_code)
        if code == ContentChanged.wire_code:
            self._begin_anew(LogWentBack(self.peer_name, self.sequence, self.sequence))
        self._user.closed(reason)

    # --- inside

    def _leave(self, connection: Connection) -> None:
        flight, self.flight = self.flight, None
        self._has_sent_enough = False
        if flight is not None:
            self._acked.left(self._now())
            flight.end(self._now(), lost=not connection.ends_on_purpose)
        self._early = None
        self._apply_settled()
        self.runs.tell_news()
        self._flush_receipts()
        self._rearm()

    def _flush_receipts(self) -> None:
        """Whoever waits was told: what has come to its end need not be kept any more."""
        if self._disk is not None:
            self._disk.flush_soon()

    def _apply_settled(self) -> None:
        """Tell which messages were settled; fires Deferreds, so all else is done before."""
        if self.backlog.failed:
            self.backlog.take_failed()  # nobody here stores attempts
        settled = self.backlog.take_settled()
        if not settled:
            return
        errors: list[MsgServiceError | None] = []
        taken: list[Range] = []  # those of runs in a row together
        for one in settled:
            if one.status is _ACKNOWLEDGED:
                self._acked.add(one.first, one.last)
                errors.append(None)
                if taken and taken[-1][1] == one.first - 1:
                    taken[-1] = (taken[-1][0], one.last)
                else:
                    taken.append((one.first, one.last))
            else:
                errors.append(self._error_of(one))
                was_sent = one.status is not Status.EXPIRED  # of what was, the node would say so
                self._acked.not_taken(one.first, one.last, was_sent=was_sent)
        if self._disk is not None:
            self._disk.note_untaken(self._acked.untaken)
            # Before it is settled in the file: from then on nobody would ask the node again.
            for first, last in taken:
                self._disk.answered(first, last)
            for one, error in zip(settled, errors, strict=True):
                if error is not None:
                    self._disk.refused(one.first, one.last, error, one.refusal)
        self._acked.close_holes(self.backlog.committed, self.sequence)
        self._user.settled(settled)
        for one, error in zip(settled, errors, strict=True):
            handed: HandedRun = one.run.source
            if error is None:
                handed.accepted(one.first, one.last)
            else:
                handed.refused(one.first, one.last, error)

    def _error_of(self, settled: Settled) -> MsgServiceError:
        """The error that a refusal stands for."""
        run, refusal = settled.run, settled.refusal
        if settled.status is Status.EXPIRED:
            return Expired(EXPIRED_REASON)
        if run.size > self.batch_max:
            return MessageTooLarge(run.size, self.batch_max)
        assert refusal is not None
        return refused(refusal.code, refusal.about, one_line(refusal.reason), run.subject)

    def _compare(self, resume: Resume, unread: list[Run], log_id: str) -> LogWentBack | None:
        """Compare the node's RESUME with what this side has sent (SEMANTICS 6)."""
        seen = highest_of(resume)
        if (
            seen > self.sequence
            or self._acked.is_contradicted(resume)
            or (resume.last is not None and self._differs(*resume.last, unread))
        ):
            return LogWentBack(self.peer_name, self.sequence, seen)
        if self._acked.is_forgotten(resume, log_id, self._now()):
            self._logger.info(
                "{name}: {node} has forgotten who was away for so long: all of it was settled",
                name=self.name,
                node=self.peer_name,
            )
            unknown = Ambiguous(f"settled, but {self.peer_name!r} has forgotten how")
            for low, high in self._acked.take_all():
                self.runs.lose(low, high, unknown, answered=True)
        for low, high in self._acked.take_forgotten(resume):
            forgot = PeerForgot(self.peer_name, low, high)
            self._logger.error("{name}: {error}", name=self.name, error=str(forgot))
            self.last_error = str(forgot)
            self.runs.lose(low, high, forgot, answered=True)
        return None

    def _differs(self, first: int, last: int, crc: int, unread: list[Run]) -> bool:
        """Whether the content held here at these sequences differs, however it is cut into runs.

        Where some of them were answered here, nothing is left to compare.
        """
        held = {run.first: run for run in unread}
        held |= {run.first: run for run in self._behind}
        held |= {run.first: run for run in self.backlog.open_between(first, last)}
        at, parts = first, []
        for run in sorted(held.values(), key=first_of):
            if run.last < at or run.first > last:
                continue
            if run.first == first and run.last == last:
                return zlib.crc32(run.messages) != crc
            if run.first > at:
                return False
            end = min(run.last, last)
            parts.append(cut_messages(run.messages, at - run.first, end - run.first + 1))
            at = end + 1
        return at > last and zlib.crc32(join_messages(parts)) != crc

    def _begin_anew(self, error: LogWentBack) -> None:
        """Take a new incarnation: open runs are sent under it, with the same sequences."""
        self._logger.error(
            "{name}: {error}; going on as a new incarnation, what is open is sent again",
            name=self.name,
            error=str(error),
        )
        self.last_error = str(error)
        self._acked.begin_anew()
        if self._disk is not None:
            self._disk.note_untaken(self._acked.untaken)
            # Before it is renewed on disk: under the next incarnation nothing is heard of these.
            self._disk.lose(1, self.sequence, error)
        if not self._is_renewing:
            self._is_renewing = True
            self._renew()
        self.runs.lose(1, self.sequence, error, answered=True)

    def _renew(self) -> None:
        self._renewal = None
        maybeDeferred(self._new_incarnation).addCallbacks(self._renewed, self._not_renewed)

    def _renewed(self, incarnation: str) -> None:
        self.incarnation = incarnation
        self._is_renewing = False
        self._renewing_failed = 0
        due, self._hello_due = self._hello_due, None
        if due is not None and due is self.connection:
            self._say_hello(due)

    def _not_renewed(self, failure: Failure) -> None:
        # Nothing is sent under the old one: connections end for want of a HELLO, and `why` tells.
        self.last_error = f"no new incarnation: {failure.value}"
        if failure.check(MsgServiceError) and not failure.check(LogUnavailable):
            self._logger.failure("{name}: no new incarnation", failure, name=self.name)
            return  # the outbox must be opened again, and fails every `send` as well
        if not self._renewing_failed:
            self._logger.error(
                "{name}: no new incarnation, will be tried again: {error}",
                name=self.name,
                error=str(failure.value),
            )
        if not self._is_stopped:
            self._renewing_failed += 1
            self._renewal = self._clock.callLater(
                delay_of(
                    self._renewing_failed,
                    delay_min=self._limits.link_delay_min,
                    delay_max=self._limits.link_delay_max,
                ),
                self._renew,
            )
