"""The node: an `IService` that opens the log, listens, dials, and holds the parts together.

What the parts do is written in them: `ingress` takes in, `commits` stores, `dispatch` and
`outlet` deliver, `tracker` tells, `directory` knows who receives what, `receivers` changes that,
`connections` knows who is there, `admin` answers `$node.*`. This module is their common ground:
starting, retention, and stopping in the order that loses nothing.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from twisted.application.service import IService, Service
from twisted.internet.defer import Deferred, gatherResults, succeed
from twisted.internet.defer import TimeoutError as TookTooLong
from twisted.internet.interfaces import IDelayedCall, IListeningPort
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from msgservice.client.client import Client
from msgservice.clock import monotonic_of, timed, wall_of
from msgservice.core.frames import Reply, Request
from msgservice.errors import LogFailed
from msgservice.interfaces import IChannelUser, IConnector, ILog
from msgservice.limits import Limits, Rate
from msgservice.message import Status
from msgservice.node.admin import Admin
from msgservice.node.commits import Commits
from msgservice.node.connections import Connections
from msgservice.node.directory import Directory
from msgservice.node.dispatch import Dispatch
from msgservice.node.outlet import Outlet
from msgservice.node.outlet_progress import OutletProgress
from msgservice.node.pace import RateLimits
from msgservice.node.receivers import Receivers
from msgservice.node.tail import Tail
from msgservice.node.tracker import Tracker
from msgservice.receiver.receiver import Receiver
from msgservice.receiver.ways import Attachment
from msgservice.records import Batch, ReceiverRow, Snapshot
from msgservice.transport.local import LocalConnector
from msgservice.transport.registry import Transports

RETAIN_EVERY = 1.0  # seconds between two passes of retention
SAY_AGAIN = 60.0  # seconds between two warnings that messages are refused
REFUSED_FOR = 5.0  # seconds without a refusal, until it is said that they are taken again
LAST_GROUP = 1.0  # seconds that a stop gives the disk in any case


@implementer(IService)
class NodeService(Service):
    """See the module. Made by `node.assembly`; usable as a child of any `IServiceCollection`.

    `receivers`: rows from the configuration, brought into the log at start. `rates`: what each
    receiver may get, by its name; `rate`: what all of them may get together. `failed` is called
    with the error when the node cannot go on; the process must end then.
    """

    _logger = Logger()

    def __init__(
        self,
        reactor: Any,
        *,
        log: ILog,
        name: str = "",
        listen: Sequence[str] = (),
        receivers: Sequence[ReceiverRow] = (),
        limits: Limits | None = None,
        insecure: bool = False,
        rate: Rate | None = None,
        rates: Mapping[str, Rate] | None = None,
        rng: Callable[[], float],
        failed: Callable[[Exception], None],
    ) -> None:
        self.clock = reactor = timed(reactor)
        self.log = log
        self.node_name = name
        self.log_id = ""
        self.insecure = insecure
        self.limits = Limits() if limits is None else limits
        self.ports: list[IListeningPort] = []
        self.listeners: list[str] = []  # the same for people, each with its own scheme
        self.transports = Transports(rng=rng)
        self.running_now = False
        self._listen = tuple(listen)
        self._configured = tuple(receivers)
        self._failed = failed
        self._now = monotonic_of(reactor)
        self._wall = wall_of(reactor)
        self._retaining: IDelayedCall | None = None
        self._ready: list[Deferred[None]] = []
        self._refusing = False  # for want of room, and said so
        self._refusals = 0  # runs, since the start
        self._refused_at = self._said_at = 0.0
        self._starting: Deferred[None] | None = None
        self._stopping: Deferred[None] | None = None
        self.connections = Connections(self)
        self.receivers = Receivers(
            self,
            rates=rates or {},
            rate_limits=RateLimits(reactor, total=rate, seconds=self._now),
            rng=rng,
        )
        # For programs that embed a node; what they do is said in `Receivers`.
        self.add_receiver = self.receivers.add
        self.change_receiver = self.receivers.change
        self.pause_receiver = self.receivers.pause
        self.remove_receiver = self.receivers.remove
        self.admin = Admin(self)

    def now(self) -> float:
        """A monotonic clock, seconds."""
        return self._now()

    def wall(self) -> int:
        """The wall clock, milliseconds."""
        return self._wall()

    # --- starting

    def startService(self) -> None:
        """Open the log, then listen and dial; `when_ready` fires when that is done."""
        super().startService()
        self._starting = Deferred.fromCoroutine(self._start())
        self._starting.addErrback(self._not_started)

    def when_ready(self) -> Deferred[None]:
        """Fire once the node listens. Each caller gets its own Deferred."""
        if self.running_now:
            return succeed(None)
        waiter: Deferred[None] = Deferred()
        self._ready.append(waiter)
        return waiter

    async def _start(self) -> None:
        snapshot = await self.log.open()
        self._assemble(snapshot)
        await self.receivers.configure(self._configured)
        for account in await self.log.accounts():
            self.dispatch.outlets[account.receiver].queued_bytes = account.queued_bytes
        self.dispatch.judge(starting=True)
        for description in self._listen:
            port = await self.transports.find(description).listen(
                self.clock, description, self.connections.make_user, self.limits
            )
            self.ports.append(port)
            self.listeners.append(_describe(description, port))
            self._logger.info("listening on {listener}", listener=self.listeners[-1])
        for outlet in self.dispatch:
            if outlet.row.paused:
                outlet.last_error = self.too_many_dead(outlet) or outlet.last_error
            self.connections.dial(outlet)
        self.running_now = True
        self._retaining = self.clock.callLater(RETAIN_EVERY, self._retain)
        waiters, self._ready = self._ready, []
        for waiter in waiters:
            waiter.callback(None)

    def _assemble(self, snapshot: Snapshot) -> None:
        limits = self.limits
        self.log_id = snapshot.log_id
        self.node_name = self.node_name or f"node-{snapshot.log_id[:8]}"
        self.tail = Tail(snapshot.next_number, limits.tail_bytes)
        self.dispatch = Dispatch(self.tail, limits, self.clock, self.receivers.set_suspended)
        self.commits = Commits(
            self.log,
            clock=self.clock,
            wall=self._wall,
            after_group=self._after_group,
            fatal=self._fatal,
        )
        self.directory = Directory(
            self.log, limits, self.dispatch.audience_made, self.dispatch.audience_unmade
        )
        self.tracker = Tracker(self.log, self.directory, self.clock)
        self.receivers.load(snapshot)
        self.directory.load(snapshot.receivers, snapshot.audiences)
        for notice in snapshot.notices:
            self._logger.warn("{notice}", notice=notice)

    def _not_started(self, failure: Failure) -> None:
        assert isinstance(failure.value, Exception)
        self._failed(failure.value)
        waiters, self._ready = self._ready, []
        for waiter in waiters:
            waiter.errback(Failure(failure.value))

    def _fatal(self, error: LogFailed) -> None:
        self._logger.critical("{error}", error=str(error))
        self.connections.refuse()
        self.connections.abort()
        self._failed(error)

    # --- flow

    def log_full(self) -> str | None:
        """See `IngressShared`."""
        return self.log.room().full

    def _after_group(self, batches: list[Batch]) -> None:
        self.tracker.flush()
        self.dispatch.stored(batches)
        if self.commits.uncommitted_bytes <= self.limits.uncommitted_bytes // 2:
            self.connections.resume_senders()

    def _retain(self) -> None:
        self._retaining = None
        here, left = self.connections.take_presence()
        self._say_refusals()
        self.log.retain(int(self.now() * 1000), here, left).addCallbacks(
            self._retained, self._retain_failed
        )

    def _say_refusals(self) -> None:
        """Say that messages are refused for want of room, once in a while, and when that ends."""
        reason, count = self.commits.take_refusals()
        reason = self.log.room().full or reason
        if reason is None:
            if self._refusing and self._now() - self._refused_at >= REFUSED_FOR:
                self._refusing = False
                self._logger.warn("messages are taken again: there is room")
            return
        self._refusals += count
        self._refused_at = self._now()
        if self._refusing and self._now() - self._said_at < SAY_AGAIN:
            return
        self._logger.warn(
            "messages are refused, their senders keep them: {reason} ({count} runs of the log's"
            " groups so far)",
            reason=reason,
            count=self._refusals,
        )
        self._refusing, self._said_at = True, self._now()

    def check_dead_letters(self, outlet: OutletProgress) -> None:
        """Pause a receiver whose dead letters are at their limit (see `DeliveryShared`)."""
        reason = self.too_many_dead(outlet)
        if reason is None or outlet.row.paused or outlet.row.removed:
            return
        self._logger.warn("receiver {name} is {reason}", name=outlet.name, reason=reason)
        paused = Deferred.fromCoroutine(self.receivers.pause(outlet.name, True, reason))
        paused.addErrback(lambda failure: self._logger.failure("pausing a receiver", failure))

    def too_many_dead(self, outlet: OutletProgress) -> str | None:
        """Return why this receiver is to get nothing more until there are fewer, or None."""
        size, limit = self.log.dead_bytes(outlet.row.number), self.limits.dead_bytes_max
        if size < limit:
            return None
        return f"paused: its dead letters take {size} bytes, dead_bytes = {limit}"

    def _retained(self, more: bool) -> None:
        if self.running_now:
            self.directory.collect()
            self._retaining = self.clock.callLater(0.01 if more else RETAIN_EVERY, self._retain)

    def _retain_failed(self, failure: Failure) -> None:
        if isinstance(failure.value, LogFailed):
            if not self.commits.is_stopped:
                self.commits.stop()
                self._fatal(failure.value)
            return
        self._logger.failure("retention", failure)
        self._retained(False)

    # --- inside this process

    def client(self, name: str, **options: Any) -> Client:
        """Return a started client of this node, without a socket; close it before the node stops.

        `options`: as for `Client` (`require`, `held`). Usable at once; `when_connected` fires when
        the node has started.
        """
        client = Client(
            reactor=self.clock,
            name=name,
            connector_factory=lambda make_user: self.connector(make_user, name),
            limits=self.limits,
            new_incarnation=lambda: secrets.token_hex(16),
            **options,
        )
        client.start()
        return client

    def connector(self, make_user: Callable[[], IChannelUser], name: str) -> IConnector:
        """Return an `IConnector` to this node, without a socket."""
        connector: IConnector = LocalConnector(
            make_user, self.connections.make_user, self.when_ready, self.clock, self.limits, name
        )
        return connector

    def attach(self, receiver: Receiver, subjects: Sequence[str] | None = None) -> Attachment:
        """Attach a receiver of this process, without a socket, as `Receiver.attach` does."""
        return receiver.attach_through(
            lambda make_user: self.connector(make_user, receiver.name),
            address="this process",
            subjects=subjects,
        )

    # --- requests

    def answer(self, request: Request, local: bool) -> Deferred[Reply]:
        """See `Shared`."""
        # Not by `insecure` either: that lets peers in, and makes nobody an operator.
        return self.admin.answer(request, local)

    # --- stopping

    def stopService(self) -> Deferred[None]:
        """Stop in the order that loses nothing, within `limits.stop_timeout`.

        A disk that takes nothing is given a last second: what it was not given was acknowledged
        to nobody, and is sent again.
        """
        super().stopService()
        if self._stopping is None:
            self._stopping = Deferred.fromCoroutine(self._stop())
        waiter: Deferred[None] = Deferred()
        self._stopping.addBoth(_pass_on, waiter)
        return waiter

    async def _stop(self) -> None:
        if self._starting is not None:
            # It cannot be left half-way: what it has still to open would be closed by nobody.
            started: Deferred[None] = Deferred()
            self._starting.addBoth(_pass_on, started)
            await started
        self.running_now = False
        self.connections.refuse()
        if self._retaining is not None:
            self._retaining.cancel()
            self._retaining = None
        await gatherResults([_listening_stopped(port) for port in self.ports])
        if hasattr(self, "commits"):
            until = self.now() + self.limits.stop_timeout
            await self.connections.stop()
            self.dispatch.stop()
            stored = self.commits.idle()
            stored.addTimeout(max(LAST_GROUP, until - self.now()), self.clock)
            stored.addErrback(self._not_idle)
            await stored
            self.commits.stop()
        await self.log.close()
        self._logger.info("stopped")

    def _not_idle(self, failure: Failure) -> None:
        failure.trap(TookTooLong)
        self._logger.error("stopped without its last group: the log did not take it in time")

    # --- for people

    def state_of(self, outlet: Outlet) -> dict[str, Any]:
        """What can be said of a receiver without asking the log."""
        link = self.connections.links.get(outlet.row.number)
        waiting = [run for run in outlet.outbox.waiting if run.attempts]
        rate = self.receivers.rates.get(outlet.name)
        return {
            "name": outlet.name,
            "address": outlet.row.address,
            "subjects": list(outlet.row.patterns),
            "order": outlet.row.order,
            "paused": outlet.row.paused,
            "on_full": outlet.row.on_full,
            "backlog_bytes": self.dispatch.backlog_bytes_max(outlet.row),
            "suspended": outlet.row.suspended,
            "rate": None if rate is None else asdict(rate),
            "connected": outlet.connection is not None,
            "cursor": outlet.outbox.cursor,
            "attempts": max([run.attempts for run in waiting], default=0),
            "last_error": outlet.last_error or (getattr(link, "last_error", "") or ""),
            "next_try_s": getattr(link, "next_attempt_in", None)
            if outlet.connection is None
            else min([max(0.0, run.due - self.now()) for run in waiting], default=None),
        }

    def sent(self, number: int, position: int) -> bool:
        """Whether this message is in flight to this receiver now."""
        outlet = self.dispatch.outlets.get(number)
        return outlet is not None and outlet.in_flight(position)

    def status_of(self, number: int, position: int, stored: Status) -> Status:
        """The status to show: `sent` is a view of `queued` (SEMANTICS 10)."""
        if stored is Status.QUEUED and self.sent(number, position):
            return Status.SENT
        return stored


def _pass_on(result: Any, waiter: Deferred[None]) -> Any:
    if isinstance(result, Failure):
        waiter.errback(result)
        return None
    waiter.callback(None)
    return result


def _listening_stopped(port: IListeningPort) -> Deferred[Any]:
    stopped: Deferred[Any] = port.stopListening() or succeed(None)
    return stopped


def _describe(description: str, port: IListeningPort) -> str:
    host = port.getHost()
    number = getattr(host, "port", None)
    if number is None:
        return description
    name = str(getattr(host, "host", ""))
    where = f"[{name}]" if ":" in name else name
    return f"{description.split(':')[0]}:{where}:{number}"
