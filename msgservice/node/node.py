"""The node: an `IService` that opens the log, listens, dials, and holds the parts together.

What the parts do is written in them: `ingress` takes in, `commits` stores, `dispatch` and
`outlet` deliver, `tracker` tells, `directory` knows who receives what, `admin` answers
`$node.*`. This module is their common ground: connections, changes of the directory at run
time, starting, and stopping in the order that loses nothing.
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

from msgservice.attachment import Attachment
from msgservice.client import Client
from msgservice.clock import monotonic_of, wall_of
from msgservice.connection import Connection
from msgservice.core.backoff import delay_of
from msgservice.core.frames import (
    BYE_CLOSING,
    BYE_PAUSED,
    BYE_REMOVED,
    BYE_REPLACED,
    ReceiveOptions,
    Reply,
    Request,
)
from msgservice.errors import LogFailed, NameMismatch, NotSupported
from msgservice.interfaces import IChannelUser, IConnector, ILog
from msgservice.limits import INTEGER_MAX, Limits
from msgservice.message import Status
from msgservice.node.admin import Admin
from msgservice.node.commits import Commits
from msgservice.node.directory import Directory
from msgservice.node.dispatch import Dispatch
from msgservice.node.outlet import Outlet
from msgservice.node.peer import Peer
from msgservice.node.tail import Tail
from msgservice.node.tracker import Tracker
from msgservice.receiver import Receiver
from msgservice.records import ON_FULL, Batch, ReceiverRow, Snapshot
from msgservice.transport.local import LocalConnector
from msgservice.transport.rates import Rate, RateLimits
from msgservice.transport.registry import Transports

RETAIN_EVERY = 1.0  # seconds between two passes of retention
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
        self.clock = reactor
        self.log = log
        self.node_name = name
        self.log_id = ""
        self.insecure = insecure
        self.limits = Limits() if limits is None else limits
        self.ports: list[IListeningPort] = []
        self.links: dict[int, IConnector] = {}  # by receiver number
        self.transports = Transports()
        self.peers: dict[Peer, None] = {}
        self._peers_made = 0
        self.running_now = False
        self._listen = tuple(listen)
        self._configured = tuple(receivers)
        self._rng = rng
        self._failed = failed
        self._now = monotonic_of(reactor)
        self._wall = wall_of(reactor)
        self._rates = dict(rates or {})
        self._rate_limits = RateLimits(reactor, total=rate, seconds=self._now)
        self._senders: dict[tuple[str, str], Peer] = {}
        self._receiving: dict[int, Peer] = {}
        self._replaced: dict[int, list[float]] = {}
        self._held: dict[int, float] = {}  # receiver number -> until when its name is held
        self._paused = False
        self._retaining: IDelayedCall | None = None
        self._ready: list[Deferred[None]] = []
        self._stopping: Deferred[None] | None = None
        self._changes = 0  # of the directory, not stored yet
        self._change_waiters: list[Deferred[None]] = []
        self._peers_gone: Deferred[None] | None = None
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
        started = Deferred.fromCoroutine(self._start())
        started.addErrback(self._not_started)

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
        configured = {row.name for row in self._configured}
        for known in self.directory:
            if known.configured and known.name not in configured:
                known.configured = False  # the file no longer says it: it is the operator's now
                self._store(known)
        for row in self._configured:
            await self._configure(row)
        for account in await self.log.accounts():
            self.dispatch.outlets[account.receiver].queued_bytes = account.queued_bytes
        self.dispatch.judge(starting=True)
        for description in self._listen:
            port = await self.transports.find(description).listen(
                self.clock, description, self._make_user, self.limits
            )
            self.ports.append(port)
            self._logger.info("listening on {listener}", listener=_describe(description, port))
        for outlet in self.dispatch:
            self._dial(outlet)
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
        self.dispatch = Dispatch(self.tail, limits, self.clock, self._set_suspended)
        self.commits = Commits(
            self.log,
            clock=self.clock,
            wall=self._wall,
            after_group=self._after_group,
            fatal=self._fatal,
        )
        self.directory = Directory(self.log, limits, self.dispatch.audience_made)
        self.tracker = Tracker(self.log, self.directory)
        for row in snapshot.receivers:
            if not row.removed:
                self.dispatch.add(self._outlet(row, snapshot.exceptions.get(row.number, [])))
        self.directory.load(snapshot.receivers, snapshot.audiences)
        for notice in snapshot.notices:
            self._logger.warn("{notice}", notice=notice)

    def _outlet(self, row: ReceiverRow, exceptions: list[Any]) -> Outlet:
        pace = self._rate_limits.pace(self._rates.get(row.name))
        return Outlet(self, row, exceptions, self._retry_delay, pace)

    def _retry_delay(self, attempts: int) -> float:
        limits = self.limits
        return delay_of(
            attempts,
            delay_min=limits.retry_delay_min,
            delay_max=limits.retry_delay_max,
            # Half of it is certain: a failed handler is not called again at once.
            jitter=0.5 + self._rng() / 2,
        )

    async def _configure(self, wanted: ReceiverRow) -> None:
        row = self.directory.get(wanted.name)
        if row is None:
            await self.add_receiver(
                wanted.name,
                wanted.patterns,
                address=wanted.address,
                order=wanted.order,
                paused=wanted.paused,
                configured=True,
                window=(wanted.window_messages, wanted.window_bytes),
                on_full=wanted.on_full,
                backlog_bytes=wanted.backlog_bytes,
            )
            return
        row.configured = True
        row.window_messages, row.window_bytes = wanted.window_messages, wanted.window_bytes
        row.address = wanted.address
        # Paused at run time stays paused over a restart, whatever the file says.
        row.paused = row.paused or wanted.paused
        row.on_full, row.backlog_bytes = wanted.on_full, wanted.backlog_bytes
        await self.change_receiver(wanted.name, patterns=wanted.patterns, order=wanted.order)

    def _not_started(self, failure: Failure) -> None:
        assert isinstance(failure.value, Exception)
        self._failed(failure.value)
        waiters, self._ready = self._ready, []
        for waiter in waiters:
            waiter.errback(Failure(failure.value))

    def _fatal(self, error: LogFailed) -> None:
        self._logger.critical("{error}", error=str(error))
        for peer in list(self.peers):
            if peer.connection is not None:
                peer.connection.abort()
        self._failed(error)

    # --- connections

    def _make_user(self) -> IChannelUser:
        return self._connection(Peer(self))

    def _connection(self, peer: Peer) -> Connection:
        return Connection(peer, clock=self.clock, now=self._now, limits=self.limits)

    def _dial(self, outlet: Outlet) -> None:
        row = outlet.row
        if row.address is None or row.paused or row.number in self.links:
            return
        link = self.transports.find(row.address).connector(
            self.clock,
            row.address,
            lambda: self._connection(Peer(self, expected=outlet)),
            self.limits,
        )
        self.links[row.number] = link
        link.startService()

    def _undial(self, outlet: Outlet) -> Deferred[Any]:
        link = self.links.pop(outlet.row.number, None)
        if link is None:
            return succeed(None)
        stopped: Deferred[Any] = link.stopService() or succeed(None)
        return stopped

    def peer_up(self, peer: Peer) -> None:
        """See `Shared`."""
        self._peers_made += 1
        peer.number = self._peers_made
        self.peers[peer] = None
        if self._stopping is not None and peer.connection is not None:
            peer.connection.abort()
        elif self._paused and peer.connection is not None and peer.connection.channel is not None:
            peer.connection.channel.pause()

    def peer_opened(self, peer: Peer) -> bool:
        """See `Shared`: newest connection wins per (name, incarnation)."""
        assert peer.connection is not None
        hello = peer.connection.session.peer
        assert hello is not None
        key = (hello.name, hello.incarnation)
        other = self._senders.get(key)
        if other is not None and other is not peer:
            # The newest is the one that was made last, not the one that opened last: the end of
            # a handshake may reach us long after its sender has given that connection up.
            older, newer = sorted((other, peer), key=lambda each: each.number)
            older.leave(BYE_REPLACED, "a newer connection of this sender")
            if newer is other:
                return False
        self._senders[key] = peer
        return True

    def peer_gone(self, peer: Peer) -> None:
        """See `Shared`."""
        self.peers.pop(peer, None)
        connection = peer.connection
        hello = connection.session.peer if connection is not None else None
        if hello is not None and self._senders.get((hello.name, hello.incarnation)) is peer:
            del self._senders[(hello.name, hello.incarnation)]
        if peer.outlet is not None and self._receiving.get(peer.outlet.row.number) is peer:
            del self._receiving[peer.outlet.row.number]
        if self._stopping is not None and not self.peers:
            self._stopped_peers()

    def hold_check(self, outlet: Outlet) -> None:
        """See `Shared` (SEMANTICS 27)."""
        number = outlet.row.number
        if outlet.row.paused:
            raise NotSupported(f"receiving while {outlet.name!r} is paused")
        until = self._held.get(number)
        if until is not None:
            if self.now() < until:
                raise NameMismatch(f"receiver {outlet.name!r} was replaced too often: it is held")
            del self._held[number]

    def replace(self, outlet: Outlet, peer: Peer) -> bool:
        """See `Shared`: newest connection wins per name."""
        number = outlet.row.number
        other = self._receiving.get(number)
        if other is None or other is peer:
            self._receiving[number] = peer
            return True
        older, newer = sorted((other, peer), key=lambda each: each.number)
        older.leave(BYE_REPLACED, "a newer connection of this receiver")
        if newer is other:
            return False
        self._receiving[number] = peer
        now, limits = self.now(), self.limits
        recent = [t for t in self._replaced.get(number, []) if t > now - limits.replacement_window]
        self._replaced[number] = [*recent, now]
        if len(recent) + 1 > limits.replacements:
            self._held[number] = now + limits.replacement_hold
            del self._replaced[number]
            self._logger.warn(
                "receiver {name} was replaced {count} times in {seconds} s: two programs have"
                " its name; it is held",
                name=outlet.name,
                count=len(recent) + 1,
                seconds=limits.replacement_window,
            )
        return True

    # --- flow

    def log_full(self) -> str | None:
        """See `IngressShared`."""
        return self.log.room().full

    def pause_senders(self) -> None:
        """See `IngressShared`."""
        if not self._paused:
            self._paused = True
            for peer in self.peers:
                if peer.ingress is not None and peer.connection is not None:
                    channel = peer.connection.channel
                    if channel is not None and not peer.attached:
                        channel.pause()

    def _after_group(self, batches: list[Batch]) -> None:
        self.tracker.flush()
        self.dispatch.stored(batches)
        if self._paused and self.commits.uncommitted_bytes <= self.limits.uncommitted_bytes // 2:
            self._paused = False
            for peer in list(self.peers):
                if peer.connection is not None and peer.connection.channel is not None:
                    peer.connection.channel.resume()

    def _retain(self) -> None:
        self._retaining = None
        self.log.retain(self.wall()).addCallbacks(self._retained, self._retain_failed)

    def _retained(self, more: bool) -> None:
        if self.running_now:
            self._retaining = self.clock.callLater(0.01 if more else RETAIN_EVERY, self._retain)

    def _retain_failed(self, failure: Failure) -> None:
        self._logger.failure("retention", failure)
        self._retained(False)

    # --- the directory at run time

    def attaching(self, name: str, receive: ReceiveOptions) -> Outlet:
        """See `Shared`: SEMANTICS 27."""
        if receive.shared:
            raise NotSupported("receive.shared")
        if receive.start not in (None, "new"):
            raise NotSupported(f"receive.start = {receive.start!r}")
        if receive.order not in (None, "strict", "none"):
            raise NotSupported(f"receive.order = {receive.order!r}")
        row = self.directory.get(name)
        patterns = tuple(receive.subjects or ())
        if row is None:
            row = self.directory.new_row(name, patterns)
            row.order = receive.order or "strict"
            return self._add(row)
        outlet = self.dispatch.outlets[row.number]
        link = self.links.get(row.number)
        if link is not None:
            link.poke()  # a sign of life (SEMANTICS 14)
        if row.configured:
            if patterns and set(patterns) != set(row.patterns):
                raise NameMismatch(f"the patterns of {name!r} are configured, and other ones")
            if receive.order not in (None, row.order):
                raise NameMismatch(f"the order of {name!r} is configured, and another one")
        elif self._changes_row(row, patterns or row.patterns, receive.order or row.order):
            outlet = self._change(outlet, patterns or row.patterns, receive.order or row.order)
        return outlet

    @staticmethod
    def _changes_row(row: ReceiverRow, patterns: tuple[str, ...], order: str) -> bool:
        return set(patterns) != set(row.patterns) or order != row.order

    def _change(self, outlet: Outlet, patterns: tuple[str, ...], order: str) -> Outlet:
        row = outlet.row
        self.directory.set_patterns(row, patterns)
        if order != row.order:
            older = self._receiving.pop(row.number, None)
            if older is not None:
                older.leave(BYE_REPLACED, "the receiver's order changed")
            row.order = order
            outlet.set_order(order)
        self._store(row)
        return outlet

    def _add(self, row: ReceiverRow) -> Outlet:
        row.created_at = self.wall()
        row.cursor = (self.tail.next_number << 16) - 1
        outlet = self._outlet(row, [])
        self.dispatch.add(outlet)
        self.directory.add(row)
        self._store(row)
        self._logger.info("receiver {name} added: {row}", name=row.name, row=list(row.patterns))
        return outlet

    def _store(self, row: ReceiverRow) -> Deferred[None]:
        self._changes += 1
        stored = self.commits.receiver(row)
        stored.addCallback(self._change_stored)
        return stored

    def _set_suspended(self, row: ReceiverRow, suspended: bool) -> None:
        self.directory.set_suspended(row, suspended)
        self._store(row)

    def _change_stored(self, _: None) -> None:
        self._changes -= 1
        if not self._changes:
            waiters, self._change_waiters = self._change_waiters, []
            for waiter in waiters:
                waiter.callback(None)

    def directory_stored(self) -> Deferred[None]:
        """See `Shared`."""
        if not self._changes:
            return succeed(None)
        waiter: Deferred[None] = Deferred()
        self._change_waiters.append(waiter)
        return waiter

    async def add_receiver(
        self,
        name: str,
        patterns: Sequence[str],
        *,
        address: str | None = None,
        order: str = "strict",
        paused: bool = False,
        configured: bool = False,
        window: tuple[int | None, int | None] = (None, None),
        on_full: str = "refuse",
        backlog_bytes: int = 0,
    ) -> ReceiverRow:
        """Make a receiver; what is sent from now on reaches it. Returns once it is stored.

        `on_full` ("refuse" or "suspend"): what happens when `backlog_bytes` wait for it; 0: the
        limit of the node (SEMANTICS 18).
        """
        if self.directory.get(name) is not None:
            raise ValueError(f"receiver {name!r} is there already")
        if order not in ("strict", "none"):
            raise ValueError(f"order must be 'strict' or 'none', not {order!r}")
        if address is not None:
            self.transports.find(address)
        check_on_full(on_full, backlog_bytes)
        row = self.directory.new_row(name, patterns)
        row.address, row.order, row.paused, row.configured = address, order, paused, configured
        row.window_messages, row.window_bytes = window
        row.on_full, row.backlog_bytes = on_full, backlog_bytes
        outlet = self._add(row)
        await self.directory_stored()
        if self.running_now:
            self._dial(outlet)
        return row

    async def change_receiver(
        self,
        name: str,
        *,
        patterns: Sequence[str] | None = None,
        address: str | None = None,
        order: str | None = None,
        on_full: str | None = None,
        backlog_bytes: int | None = None,
    ) -> ReceiverRow:
        """Change what a receiver gets from now on, where it is dialled, or its backlog's limit."""
        row = self.directory.named(name)
        outlet = self.dispatch.outlets[row.number]
        if order not in (None, "strict", "none"):
            raise ValueError(f"order must be 'strict' or 'none', not {order!r}")
        if address is not None:
            self.transports.find(address)
        check_on_full(on_full or row.on_full, backlog_bytes or 0)
        self._change(
            outlet, tuple(row.patterns if patterns is None else patterns), order or row.order
        )
        if on_full is not None or backlog_bytes is not None:
            row.on_full = on_full or row.on_full
            row.backlog_bytes = row.backlog_bytes if backlog_bytes is None else backlog_bytes
            self._store(row)
        if address is not None and address != row.address:
            row.address = address
            self._store(row)
            await self._undial(outlet)
        await self.directory_stored()
        if self.running_now:
            self.dispatch.judge()
            self._dial(outlet)
        return row

    async def pause_receiver(self, name: str, paused: bool) -> ReceiverRow:
        """Stop delivering to a receiver, or go on; its messages are kept."""
        row = self.directory.named(name)
        outlet = self.dispatch.outlets[row.number]
        row.paused = paused
        stored = self._store(row)
        if paused:
            self._send_away(outlet, BYE_PAUSED, "paused")
            await self._undial(outlet)
        else:
            self._dial(outlet)
        await stored
        return row

    async def remove_receiver(self, name: str) -> int:
        """Remove a receiver; what waited for it is `removed`. Returns how many messages."""
        row = self.directory.named(name)
        outlet = self.dispatch.outlets[row.number]
        queued = await self.queued(row.number)
        self.directory.remove(row)
        self._send_away(outlet, BYE_REMOVED, "removed")
        self.dispatch.remove(outlet)
        removed = self.commits.removal(row.number)
        await self._undial(outlet)
        await removed
        self.tracker.tell_all_again()
        self._logger.info("receiver {name} removed", name=name)
        return queued

    async def queued(self, number: int) -> int:
        """How many messages wait for a receiver."""
        accounts = await self.log.accounts()
        return sum(one.queued for one in accounts if one.receiver == number)

    def _send_away(self, outlet: Outlet, code: int, reason: str) -> None:
        peer = self._receiving.pop(outlet.row.number, None)
        if peer is not None:
            peer.detach(reason)
            peer.leave(code, reason)

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
            make_user, self._make_user, self.when_ready, self.clock, self.limits, name
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
        return self.admin.answer(request, local or self.insecure)

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
        self.running_now = False
        if self._retaining is not None:
            self._retaining.cancel()
            self._retaining = None
        await gatherResults([_listening_stopped(port) for port in self.ports])
        if hasattr(self, "commits"):
            until = self.now() + self.limits.stop_timeout
            await self._stop_peers()
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

    async def _stop_peers(self) -> None:
        gone: Deferred[None] = Deferred()
        self._peers_gone = gone
        links = [self._undial(outlet) for outlet in self.dispatch]
        # Not when all is stored: with a producer that goes on sending, that time never comes.
        for peer in list(self.peers):
            peer.leave(BYE_CLOSING, "the node stops")
        deadline = self.clock.callLater(self.limits.stop_timeout, self._abort_peers)
        if self.peers:
            await gone
        await gatherResults(links)
        if deadline.active():
            deadline.cancel()

    def _abort_peers(self) -> None:
        for peer in list(self.peers):
            if peer.connection is not None:
                peer.connection.abort()

    def _stopped_peers(self) -> None:
        gone, self._peers_gone = self._peers_gone, None
        if gone is not None:
            gone.callback(None)

    # --- for people

    def state_of(self, outlet: Outlet) -> dict[str, Any]:
        """What can be said of a receiver without asking the log."""
        link = self.links.get(outlet.row.number)
        waiting = [run for run in outlet.outbox.waiting if run.attempts]
        rate = self._rates.get(outlet.name)
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


def check_on_full(on_full: str, backlog_bytes: int) -> None:
    """Raise `ValueError` where these cannot be what a receiver's row says."""
    if on_full not in ON_FULL:
        raise ValueError(f"on_full must be 'refuse' or 'suspend', not {on_full!r}")
    if not 0 <= backlog_bytes <= INTEGER_MAX:
        raise ValueError(f"backlog_bytes must be from 0 to {INTEGER_MAX}, not {backlog_bytes}")


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
    return f"{description.split(':')[0]}:{getattr(host, 'host', '')}:{number}"
