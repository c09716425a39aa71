"""The node: an `IService` that opens the log, listens and dials, and stops in an order.

What the parts do is written in them, and how they are put together in `assembly`. This module is
starting, and stopping so that nothing is lost.
"""

from __future__ import annotations

import os
import random
import secrets
from collections.abc import Callable, Coroutine, Mapping, Sequence
from datetime import datetime
from functools import partial, wraps
from pathlib import Path
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar, cast

from twisted.application.service import IService, Service
from twisted.internet.defer import Deferred, DeferredLock, fail, gatherResults, succeed
from twisted.internet.defer import TimeoutError as TookTooLong
from twisted.internet.interfaces import IListeningPort, IReactorFromThreads, IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from msgservice.administration import Cause
from msgservice.arguments import check_flags, check_kind, reactor_first
from msgservice.client.client import Client
from msgservice.clock import Time, check_reactor_runs
from msgservice.core.subjects import STREAMS, check_name, check_subject, exact
from msgservice.errors import (
    BadSubject,
    LogFailed,
    MsgServiceError,
    NotAllowed,
    NotAuthenticated,
    check_runs,
)
from msgservice.identity.login_files import FileProver
from msgservice.identity.users import Users
from msgservice.interfaces import IChannelUser, IConnector, ILog
from msgservice.limits import Limits, Rate
from msgservice.log.sqlite import SqliteLog
from msgservice.message import decode_messages
from msgservice.node.assembly import Facts, Parts, assemble
from msgservice.node.gate import LISTENER, OWN, Door
from msgservice.node.letters import Letters
from msgservice.node.process import end_process
from msgservice.node.purge import Purged
from msgservice.node.receivers import Receivers
from msgservice.receiver.receiver import Receiver
from msgservice.receiver.ways import Attachment
from msgservice.records import USERS, ReceiverRow, Reread, position_of
from msgservice.threads import in_daemon_thread
from msgservice.transport.addresses import check_listener, check_web_listener
from msgservice.transport.http.channel import HttpChannel
from msgservice.transport.local import local_connector
from msgservice.transport.pb.transport import PbTransport
from msgservice.transport.reach import Network, Reach
from msgservice.transport.registry import Transports
from msgservice.transport.tcp.profiles import TlsProfiles
from msgservice.waiters import Waiters
from msgservice.webhooks.options import WebhooksOptions, secrets_of
from msgservice.webhooks.transport import WebhookTransport


class StreamHeader(NamedTuple):
    """The header of a stream: its body, None where there is none. `newest`: as of that position."""

    body: bytes | None
    newest: int


class StreamMessages(NamedTuple):
    """A page of a stream, in its order: position, body and headers of each message.

    `is_gap`, `newest`, `last`: as of `records.StreamPage`.
    """

    messages: list[tuple[int, bytes, Mapping[str, str] | None]]
    is_gap: bool
    newest: int
    last: int


LAST_GROUP = 1.0  # seconds that a stop gives the disk in any case


P = ParamSpec("P")
T = TypeVar("T")


def _of_receivers(
    method: Callable[Concatenate[Receivers, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[Node, P], Coroutine[Any, Any, T]]:
    """Return a method of the node that is this one of its receivers."""

    @wraps(method)
    async def of_receivers(self: Node, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await method(self.parts.receivers, *args, **kwargs)

    return of_receivers


@implementer(IService)
class Node(Service):
    """A node on a log, an `IService`: `setServiceParent` or `startService` it.

    `data`: the folder of its log, made if missing, or an `ILog`. `listen`: endpoint strings, none
    by default (an embedded node needs none: `node.client`). `web`: the same, for HTTP; `web_hosts`:
    names by which it is asked there, besides localhost and its addresses; `web_bodies`: bodies of
    messages may be saved there. `receivers`: rows from
    the configuration, brought into the log at start. `users`: who may come, and do what; without
    any who comes is believed. `read_users`: reads them instead, in a thread, at each start and for
    `reload`. `without_login`: addresses of `listen` that ask for no login, and the user whom
    everybody is who comes there. `insecure`: a login, or where there are no users everybody, is
    also taken where others read along; without it the start fails there with `InsecureListener`.
    `networks`: in which receivers are dialled besides public addresses, where there are users and
    the address is none of `receivers`.
    `tls`: what addresses with TLS leave out. `logins`: files with the logins at nodes that are
    dialled, by the names of these. `webhooks`: of receivers at URLs. `rates`: what each
    receiver may get, by its name; `rate`: what all of them may get together. `rng`: for the jitter
    of delays. `failed`: called with the error when it cannot start or go on, and the process must
    end then; by default that is logged and the process ends with status 1.
    """

    _logger = Logger()

    @reactor_first("Node(reactor, folder)")
    def __init__(
        self,
        reactor: IReactorTime,
        data: str | os.PathLike[str] | ILog,
        *,
        name: str = "",
        listen: Sequence[str] = (),
        web: Sequence[str] = (),
        web_hosts: Sequence[str] = (),
        web_bodies: bool = False,
        receivers: Sequence[ReceiverRow] = (),
        limits: Limits | None = None,
        insecure: bool = False,
        networks: Sequence[Network] = (),
        users: Users | None = None,
        read_users: Callable[[], Users] | None = None,
        without_login: Mapping[str, str] | None = None,
        tls: TlsProfiles | None = None,
        logins: Mapping[str, str | os.PathLike[str]] | None = None,
        webhooks: WebhooksOptions | None = None,
        rate: Rate | None = None,
        rates: Mapping[str, Rate] | None = None,
        rng: Callable[[], float] | None = None,
        failed: Callable[[Exception], None] | None = None,
    ) -> None:
        check_reactor_runs(reactor, "msgservice.aio.reactor() as the reactor")
        self._reactor = reactor
        self.time = Time(reactor)
        self.limits = Limits() if limits is None else limits
        check_kind(Limits, "Limits are needed", limits=self.limits)
        check_flags(insecure=insecure, web_bodies=web_bodies)
        self._folder = Path(data).absolute() if isinstance(data, str | os.PathLike) else None
        self.log: ILog = self._make_log() if self._folder is not None else cast("ILog", data)
        self.ports: list[IListeningPort] = []
        self.listeners: list[str] = []  # the same for people, each with its own scheme
        self._rng = rng or random.SystemRandom().random
        self.transports = Transports(rng=self._rng, tls=tls)
        self._provers = {
            check_name(name): FileProver(reactor, Path(file).absolute())
            for name, file in (logins or {}).items()
        }
        self._webhooks = WebhooksOptions(plain=insecure) if webhooks is None else webhooks
        self.transports.register(
            WebhookTransport(
                self._webhooks,
                gone=self._webhook_gone,
                secrets=lambda name: secrets_of(self._webhooks.own.get(name), self._folder),
                rng=self._rng,
            )
        )
        self.is_running = False
        self.node_name = self._name = check_name(name) if name else ""
        self.log_id = ""
        self._insecure = insecure
        self._reach = Reach(networks, "networks of [node]")
        self._users = users
        self._read_users = read_users
        self._reloading = DeferredLock()  # the last one that was asked for counts
        self._doors = {
            exact(address): Door(asks=False, user=check_name(user))
            for address, user in (without_login or {}).items()
        }
        for what, addresses in (("listen", listen), ("web", web), ("web_hosts", web_hosts)):
            if isinstance(addresses, str):
                raise TypeError(f"{what} is a list of addresses, not {addresses!r}")
        if not (users is None or isinstance(users, Users)):
            raise TypeError(f"users must be Users(...), not {users!r}")
        self._listen = tuple([exact(address) for address in listen])
        self._web = tuple([exact(address) for address in web])
        self._web_hosts = tuple(web_hosts)
        self._web_bodies = web_bodies
        self._configured = tuple(receivers)
        for row in self._configured:
            if not isinstance(row, ReceiverRow):
                raise TypeError(f"receivers must be rows (ReceiverRow), not {row!r}")
        self._rate = rate
        self._rates = dict(rates or {})
        if failed is not None:
            check_runs(failed, "failed")
        self._failed = failed or self._end_process
        self._holding: LoopingCall | None = None  # says that files were replaced, until the stop
        self._parts: Parts | None = None
        self._ready: Waiters[None] = Waiters()
        self._stopped: Waiters[None] = Waiters()
        self._was_started = False
        self._error: Exception | None = None  # why the last start failed
        self._starting: Deferred[None] | None = None  # from the start on, until it has stopped
        self._is_stopping = False

    @property
    def parts(self) -> Parts:
        """The parts, once the log is open."""
        if self._parts is None:
            raise RuntimeError("the node has not opened its log: wait for when_ready")
        return self._parts

    @property
    def dead_letters(self) -> Letters:
        """The dead letters of its receivers: listed, shown, sent again, dropped.

        `RuntimeError` before the log is open.
        """
        return self.parts.letters

    def purge(
        self, receiver: str, subject: str | None = None, *, dry_run: bool = False
    ) -> Deferred[Purged]:
        """Cancel what waits for a receiver now, all or of a subject or pattern.

        Fires when that is on disk, with how many messages that were, how many bytes they have, and
        how many are in flight, which are left to their answer. `dry_run`: only say so. Fails with
        `UnknownReceiver` or `BadSubject`; `RuntimeError` before the log is open.
        """
        return Deferred.fromCoroutine(self.parts.purge.all(receiver, subject, dry_run=dry_run))

    def why(self, message: str) -> Deferred[list[Cause]]:
        """Say why a message is where it is; fires with the cause at each receiver.

        `message`: `log:POSITION`, `SENDER/HASH/SEQUENCE` as `msgservice status` shows it, or the id
        its sender gave. Fails with `UnknownMessage`; `RuntimeError` before the log is open.
        """
        return Deferred.fromCoroutine(self.parts.operations.why_all(message))

    # --- starting

    def startService(self) -> None:
        """Open the log, then listen and dial; `when_ready` fires when that is done.

        It may be started again once it was stopped; while it stops, it is when it has. Each start
        has a new log of the folder; an `ILog` that was given is opened again, if it can be.
        """
        if self.running:
            return
        super().startService()
        if self._starting is None:  # else when it has stopped
            self._begin()

    def _begin(self) -> None:
        if self._was_started and self._folder is not None:  # one is opened once
            self.log = self._make_log()
        self._was_started = True
        self._parts = self._error = None
        self.ports, self.listeners = [], []
        self._starting = Deferred.fromCoroutine(self._start())
        self._starting.addErrback(self._not_started)

    def _make_log(self) -> SqliteLog:
        assert self._folder is not None
        return SqliteLog(
            self._folder, reactor=cast("IReactorFromThreads", self._reactor), limits=self.limits
        )

    def when_ready(self) -> Deferred[None]:
        """Fire once the node listens. Each caller gets its own Deferred.

        Fails with what the start failed with, also when that was before. One that is not started
        is waited for.
        """
        if self.is_running:
            return succeed(None)
        if self._error is not None:
            return fail(self._error)
        return self._ready.wait()

    async def _start(self) -> None:
        snapshot = await self.log.open()
        for notice in snapshot.notices:
            self._logger.warn("{notice}", line="file-notice", notice=notice)
        self.log_id = snapshot.log_id
        self.node_name = self._name or f"node-{snapshot.log_id[:8]}"
        if self._read_users is not None:
            # What is asked to be read anew meanwhile is read behind this, and has the last word.
            await self._reloading.run(lambda: self._users_now().addCallback(self._are_users))
        parts = self._parts = assemble(
            self.log,
            snapshot,
            facts=Facts(
                self.node_name, self.log_id, self.listeners, listens=lambda: self.is_running
            ),
            time=self.time,
            limits=self.limits,
            users=self._users,
            insecure=self._insecure,
            reach=self._reach,
            web_hosts=self._web_hosts,
            web_bodies=self._web_bodies,
            transports=self.transports,
            provers=self._provers,
            reload=self.reload,
            rate=self._rate,
            rates=self._rates,
            rng=self._rng,
            fatal=self._fatal,
        )
        if self._insecure:
            self._logger.warn(
                "insecure = true: whoever is between this node and its peers can read and change"
                " what they say, and be one of them{login}",
                line="insecure",
                login="" if parts.gate.asks else "; nobody is configured, so names are believed",
            )
        await parts.receivers.configure(self._configured)
        parts.dispatch.begin(await self.log.accounts())
        for description in self._listen:
            door = self._doors.get(description, LISTENER)
            transport = self.transports.find(description)
            check_listener(
                transport,
                description,
                insecure=self._insecure,
                asks=parts.gate.asks and door.asks,
            )
            make_user = partial(parts.connections.make_user, door)
            if isinstance(transport, PbTransport):
                port = await transport.listen_with(
                    self.time.clock,
                    description,
                    make_user,
                    self.limits,
                    make_root=partial(parts.perspectives.root, door),
                )
            else:
                port = await transport.listen(self.time.clock, description, make_user, self.limits)
            self._listens(port, _describe(description, port))
        for description in self._web:
            await self._listen_web(parts, description)
        parts.receivers.start()
        parts.replayer.start()
        self.is_running = True
        parts.upkeep.start()
        parts.due.start()
        self._ready.fire(None)

    async def _listen_web(self, parts: Parts, description: str) -> None:
        door, tcp = self._doors.get(description, LISTENER), self.transports.tcp
        asks = parts.gate.asks and door.asks
        check_web_listener(tcp, description, insecure=self._insecure, asks=asks)
        channel = partial(HttpChannel, server=parts.web, door=door)
        port = await tcp.listen_for(self.time.clock, description, channel, self.limits)
        self._listens(port, _describe_web(description, port))

    def _listens(self, port: IListeningPort, listener: str) -> None:
        self.ports.append(port)
        self.listeners.append(listener)
        self._logger.info("listening on {listener}", line="listening", listener=listener)

    def _not_started(self, failure: Failure) -> None:
        assert isinstance(failure.value, Exception)
        self._error = failure.value
        try:
            self._failed(failure.value)
        except Exception:
            self._logger.failure("telling that the node has not started")
        self._ready.fail(failure)

    def _fatal(self, error: LogFailed) -> None:
        self._logger.critical("{error}", line="fatal", error=str(error))
        self.parts.connections.refuse()
        self.parts.connections.abort()
        self.parts.perspectives.stop()
        self.parts.intake.stop()
        self._failed(error)

    def _end_process(self, error: Exception) -> None:
        if self._holding is None:
            self._holding = end_process(self._reactor, error)

    # --- what is read anew

    def reload(self) -> Deferred[list[Reread]]:
        """Read the certificates and keys of addresses in use anew, and the users, as files changed.

        Fires with what came of each. What cannot be used is logged, and what was before goes on.
        Connections stand, but for those whose key or user is gone, or may do something else now.
        """
        return self._reloading.run(lambda: Deferred.fromCoroutine(self._reload()))

    async def _reload(self) -> list[Reread]:
        read = self.transports.reload()
        if self._read_users is not None:
            try:
                users = await self._users_now()
                changed = self.reload_users(users)
                if users or changed:  # else there is nothing to say of them
                    read.append(Reread(USERS, changed, None))
            except (MsgServiceError, OSError) as error:
                self._logger.error(
                    "users cannot be read, those before go on: {error}",
                    line="users-not-read",
                    error=str(error),
                )
                read.append(Reread(USERS, False, str(error)))
        return read

    def _users_now(self) -> Deferred[Users]:
        assert self._read_users is not None
        return in_daemon_thread(cast("IReactorFromThreads", self._reactor), self._read_users)

    def _are_users(self, users: Users) -> None:
        self._users = users

    def reload_users(self, users: Users) -> bool:
        """Let these users in from now on, with these rights; returns whether they are others.

        Connections of those that are gone, or may do something else now, end; receivers that may
        no longer be dialled are not, and none is sent more of what its user may no longer receive.
        Raises `BadValue` where there were users and none is left.
        """
        before, parts = self._users, self._parts
        if parts is not None:
            parts.gate.replace(users)
            parts.connections.end_what_holds_no_more()
            parts.perspectives.end_what_holds_no_more()
            parts.web.end_what_holds_no_more()
            parts.receivers.users_changed()
        self._users = users
        if before is None:
            return bool(users)
        return len(before) != len(users) or bool(before.replaced_by(users))

    # --- for programs that embed a node

    add_receiver = _of_receivers(Receivers.add)
    change_receiver = _of_receivers(Receivers.change)
    pause_receiver = _of_receivers(Receivers.pause)
    remove_receiver = _of_receivers(Receivers.remove)

    def _webhook_gone(self, name: str, reason: str) -> None:
        """The endpoint of a webhook wants no more: its receiver is paused, and keeps what waits."""
        row = self.parts.directory.get(name)
        if row is not None:
            self.parts.receivers.pause_full(row, f"paused: {reason}")

    # --- inside this process

    def client(self, name: str, *, principal: str = "", **options: Any) -> Client:
        """Return a started client of this node, without a socket; close it before the node stops.

        `principal`: the user that it acts for, with its rights and under one of its names; empty:
        this program itself, which may do all. `options`: as for `Client` (`require`, `held`).
        Usable at once; `when_connected` fires when the node has started. Raises `NotAuthenticated`
        for a user that is not configured, `NotAllowed` where `name` is none of its names; users
        that are read at the start are not known before, nor is what a reload says later: then
        `why()` says it.
        """
        if principal:
            self._check_acts_for(principal, name)
        client = Client(
            reactor=self.time.clock,
            name=name,
            connector_factory=lambda make_user: self.connector(make_user, name, principal),
            limits=self.limits,
            new_incarnation=lambda: secrets.token_hex(16),
            **options,
        )
        client.start()
        return client

    def _check_acts_for(self, user: str, name: str) -> None:
        """Raise now what the gate would say: nobody but this program can set it right."""
        users = self._check_configured(user)
        if users is not None and not users.may_be_called(user, name):
            raise NotAllowed(user, f"be called {name!r}")

    def _check_configured(self, user: str) -> Users | None:
        """Raise unless this user is configured; return who is, None where that is not read yet."""
        if self._read_users is not None and self._parts is None:
            return None
        users = self._users
        if not users or user not in users:
            raise NotAuthenticated(f"user {user!r} is not configured")
        return users

    def connector(
        self, make_user: Callable[[], IChannelUser], name: str, principal: str = ""
    ) -> IConnector:
        """Return an `IConnector` to this node, without a socket. `principal`: as of `client`."""
        door = Door(asks=False, user=check_name(principal)) if principal else OWN
        connector: IConnector = local_connector(
            make_user,
            lambda: self.parts.connections.make_user(door),
            self.when_ready,
            self.time.clock,
            self.limits,
            name,
        )
        return connector

    def attach(
        self,
        receiver: Receiver,
        subjects: Sequence[str] | None = None,
        *,
        principal: str = "",
        start: str | int | datetime = "new",
        retained: bool = True,
    ) -> Attachment:
        """Attach a receiver of this process, without a socket, as `Receiver.attach` does.

        `principal`: as of `client`; raises `NotAuthenticated` for one that is not configured. What
        else speaks against it, its name or `subjects`, the attachment's `error` says. `start`,
        `retained`: as of `Receiver.attach`.
        """
        if principal:
            self._check_configured(principal)
        return receiver.attach_through(
            lambda make_user: self.connector(make_user, receiver.name, principal),
            address="this process",
            subjects=subjects,
            start=start,
            retained=retained,
        )

    async def read_stream(
        self, subject: str, after: int | None, bytes_max: int, *, principal: str = ""
    ) -> StreamMessages:
        """Return a page of what was sent to a subject below `streams.`, behind a position.

        `after`: None for all that is kept. `bytes_max`: of the page, about. It may have no message
        although there are some behind its `last`; what has expired is left out. `principal`: as of
        `client`. Raises `NotAllowed` where it may not receive that subject, `NotAuthenticated`, and
        `BadSubject`.
        """
        self._check_stream(subject, principal)
        page = await self.log.of_stream(subject, after, bytes_max)
        now = self.time.wall()
        return StreamMessages(
            [
                (position, message.body, message.headers)
                for batch in page.batches
                if not (batch.expires_at is not None and batch.expires_at <= now)
                for position, message in enumerate(
                    decode_messages(batch.messages), position_of(batch.number)
                )
                if after is None or position > after
            ],
            page.is_gap,
            page.newest,
            page.last,
        )

    async def read_stream_header(self, subject: str, *, principal: str = "") -> StreamHeader:
        """Return what is retained of a subject below `streams.`, as of one position.

        Whoever reads from that position on has all that was stored since. `principal` and errors:
        as of `read_stream`.
        """
        self._check_stream(subject, principal)
        found = await self.log.stream_header(subject)
        kept = found.retained
        if kept is None or 0 < kept.expires_at <= self.time.wall():
            return StreamHeader(None, found.newest)
        (message,) = decode_messages(kept.message)
        return StreamHeader(message.body, found.newest)

    def _check_stream(self, subject: str, principal: str) -> None:
        if not check_subject(subject).startswith(STREAMS):
            raise BadSubject(subject, f"only what is below {STREAMS!r} can be read")
        self.parts.gate.acting_for(principal).check_receives([subject])

    # --- stopping

    def stopService(self) -> Deferred[None]:
        """Stop in the order that loses nothing, within `limits.stop_timeout`.

        A disk that takes nothing is given a last second: what it was not given was acknowledged
        to nobody, and is sent again.
        """
        super().stopService()
        if self._starting is None:
            return succeed(None)  # it never was, or has stopped
        waiter = self._stopped.wait()
        if not self._is_stopping:
            self._is_stopping = True
            stopping = Deferred.fromCoroutine(self._stop(self._starting))
            stopping.addBoth(self._has_stopped)
            stopping.addErrback(lambda failure: self._logger.failure("starting again", failure))
        return waiter

    def _has_stopped(self, result: Failure | None) -> None:
        self._starting, self._is_stopping = None, False
        stopped = self._stopped.take()
        if self.running:  # it was started meanwhile
            self._begin()
        if isinstance(result, Failure):
            self._logger.failure("stopping", result)
            stopped.fail(result)
        else:
            stopped.fire(None)

    async def _stop(self, starting: Deferred[None]) -> None:
        # It cannot be left half-way: what it has still to open would be closed by nobody.
        started: Deferred[None] = Deferred()
        starting.chainDeferred(started)
        await started
        self.is_running = False
        if self._holding is not None:
            self._holding.stop()
            self._holding = None
        parts = self._parts
        if parts is not None:
            parts.receivers.stop()
            parts.replayer.stop()
            parts.undo.stop()
            parts.observer.stop()
            parts.connections.refuse()
            parts.upkeep.stop()
            parts.due.stop()
        await gatherResults([_listening_stopped(port) for port in self.ports])
        if parts is not None:
            parts.perspectives.stop()
            parts.web.refuse_new()
            until = self.time.now() + self.limits.stop_timeout
            await parts.connections.stop()
            parts.responders.stop()
            parts.dispatch.stop()
            stored = parts.commits.idle()
            stored.addTimeout(max(LAST_GROUP, until - self.time.now()), self.time.clock)
            stored.addErrback(self._not_idle)
            await stored
            parts.commits.stop()
            parts.intake.stop()
            await parts.web.until_gone()
            parts.dead_letters.stop()
            parts.seldom.stop()
            parts.gate.stop()
            parts.tracker.stop()
        await self.log.close()
        self._logger.info("stopped", line="stopped")

    def _not_idle(self, failure: Failure) -> None:
        failure.trap(TookTooLong)
        self._logger.error(
            "stopped without its last group: the log did not take it in time", line="stopped-early"
        )


def _listening_stopped(port: IListeningPort) -> Deferred[Any]:
    stopped: Deferred[Any] = port.stopListening() or succeed(None)
    return stopped


def _describe_web(description: str, port: IListeningPort) -> str:
    """Return the address of a web listener as a browser takes it; of a Unix socket, its path."""
    scheme, colon, where = _describe(description, port).partition(":")
    if scheme == "unix":
        return f"http+unix:{where}"
    return f"{'http' if scheme == 'tcp' else 'https'}{colon}//{where}/"


def _describe(description: str, port: IListeningPort) -> str:
    host = port.getHost()
    number = getattr(host, "port", None)
    if number is None:
        return description
    name = str(getattr(host, "host", ""))
    where = f"[{name}]" if ":" in name else name
    return f"{description.split(':')[0]}:{where}:{number}"
