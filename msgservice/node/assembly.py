"""How a node is put together: every part of it by name, on one page. Read this first.

What there is once for each connection is made in `peer` (Ingress, StatusFrames), once for each
receiver in `outlet` (Supply, OutletProgress).

    transport (tcp, …) ─ Connection ─ Peer ─┬─ Greeter: who is it?
                                            ├─ Ingress ─ Intake ─ Commits ─ ILog
                                            └─ Outlet ─── (progress) ──┘
    Gate: who is it, and what may it do?
    Intake: also for what comes without a connection; it asks Acceptance whether it may be taken.
    Commits ─ after each group ─► Tracker (STATUS) and Dispatch (Tail, Outlet)
    Directory: who receives what, and Receivers, which changes it.  Connections: who is there.
    Operations: what can be asked of it; Admin: … as `$node.*`.  Upkeep: retention.
    Web: what answers over HTTP, a table of paths; it goes by Gate, Intake and Admin, as Peer does.

A part names what it works with in its `__init__`. Where two need each other, one of them asks
through a Protocol in its own file, or a function that is given here. `Node` (`node`) opens
the log, has all of this made, and starts and stops it: it is what programs use, and `service`
makes one of a `Config`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from twisted.internet.defer import Deferred

from msgservice.clock import Time
from msgservice.connection import Prover
from msgservice.core.backoff import delay_of
from msgservice.errors import LogFailed
from msgservice.identity.users import Users
from msgservice.installation import installed_version
from msgservice.interfaces import ILog
from msgservice.limits import Limits, Rate
from msgservice.node.acceptance import Acceptance
from msgservice.node.admin import Admin
from msgservice.node.away import Away
from msgservice.node.commits import Commits
from msgservice.node.connections import Connections
from msgservice.node.dead_letters import DeadLetters
from msgservice.node.delayed import DelayedMessages
from msgservice.node.directory import Directory
from msgservice.node.dispatch import Dispatch
from msgservice.node.due import Due
from msgservice.node.expiry import Expiry
from msgservice.node.gate import Gate
from msgservice.node.greeting import Greeter
from msgservice.node.intake import Intake
from msgservice.node.letters import Events, Letters
from msgservice.node.loaded_bytes import LoadedBytes
from msgservice.node.observe import Observer
from msgservice.node.operations import Operations
from msgservice.node.outlet import Outlet
from msgservice.node.pace import RateLimits
from msgservice.node.peer import Peer
from msgservice.node.perspectives import Perspectives
from msgservice.node.promises import Promises
from msgservice.node.purge import Purge
from msgservice.node.receivers import Receivers
from msgservice.node.replayer import Replayer
from msgservice.node.responders import EveryRequest, Responders
from msgservice.node.retained import ExpiredRetained, RetainedIndex
from msgservice.node.seldom import Seldom
from msgservice.node.shared_outlet import SharedOutlet
from msgservice.node.slices import Slices
from msgservice.node.stored_bytes import StoredBytes
from msgservice.node.tail import Tail
from msgservice.node.tracker import Tracker
from msgservice.node.undo import SECONDS as UNDO_SECONDS
from msgservice.node.undo import Undo
from msgservice.node.upkeep import Upkeep
from msgservice.node.view import ReceiversView
from msgservice.node.visits import Visits
from msgservice.node.web.access import Access
from msgservice.node.web.asking import Asking
from msgservice.node.web.bodies import body_paths
from msgservice.node.web.events import Events as WebEvents
from msgservice.node.web.health import health_paths
from msgservice.node.web.listener import Web
from msgservice.node.web.logging_in import login_paths
from msgservice.node.web.logins import Logins
from msgservice.node.web.messages import Posts
from msgservice.node.web.openapi import openapi_path
from msgservice.node.web.operations import operation_paths
from msgservice.node.web.showing import metrics_paths, page_paths
from msgservice.node.web.xmlrpc import XmlRpc
from msgservice.receiver_options import ReceiverOptions
from msgservice.records import Batch, ExceptionRow, ReceiverRow, Reread, Snapshot
from msgservice.transport.reach import Reach
from msgservice.transport.registry import Transports


@dataclass(frozen=True)
class Facts:
    """The facts that a node says of itself."""

    name: str
    log_id: str
    listeners: Sequence[str]  # grows while the node starts
    listens: Callable[[], bool]


@dataclass(frozen=True)
class Parts:
    """The parts of one node, wired."""

    tail: Tail
    commits: Commits
    dispatch: Dispatch
    directory: Directory
    acceptance: Acceptance
    intake: Intake
    tracker: Tracker
    connections: Connections
    receivers: Receivers
    replayer: Replayer
    gate: Gate
    greeter: Greeter
    operations: Operations
    observer: Observer
    admin: Admin
    perspectives: Perspectives
    web: Web
    web_events: WebEvents
    posts: Posts
    responders: Responders
    upkeep: Upkeep
    seldom: Seldom
    dead_letters: DeadLetters
    away: Away
    due: Due
    letters: Letters
    expiry: Expiry
    promises: Promises
    purge: Purge
    undo: Undo


def assemble(
    log: ILog,
    snapshot: Snapshot,
    *,
    facts: Facts,
    time: Time,
    limits: Limits,
    users: Users | None,
    insecure: bool,
    reach: Reach,
    web_hosts: Collection[str],
    web_bodies: bool,
    transports: Transports,
    provers: Mapping[str, Prover],
    reload: Callable[[], Deferred[list[Reread]]],
    rate: Rate | None,
    rates: Mapping[str, Rate],
    rng: Callable[[], float],
    fatal: Callable[[LogFailed], None],
) -> Parts:
    """Return the parts of a node on an open log, knowing what the log knows; nothing runs yet.

    `fatal` is called with the error when the log, and so the node, cannot go on.
    """

    def after_group(batches: list[Batch]) -> None:
        tracker.flush()
        if batches:
            promises.stored(batches)
            dispatch.stored(batches)
            expiry.stored(batches)
        promises.flush()
        replayer.look()
        delayed.stored()
        expired_retained.stored()
        if connections.has_paused and commits.uncommitted_bytes <= limits.uncommitted_bytes // 2:
            connections.resume_senders()

    def make_peer(dialled: Outlet | None) -> Peer:
        return Peer(
            dialled,
            gate=gate,
            greeter=greeter,
            intake=intake,
            commits=commits,
            directory=directory,
            tracker=tracker,
            dispatch=dispatch,
            register=connections,
            requests=admin,
            responders=responders,
            clock=time.clock,
            limits=limits,
        )

    def retry_delay(attempts: int, options: ReceiverOptions) -> float:
        return delay_of(
            attempts,
            delay_min=options.retry_delay_min or limits.retry_delay_min,
            delay_max=options.retry_delay_max or limits.retry_delay_max,
            # Half of it is certain: a failed handler is not called again at once.
            jitter=0.5 + rng() / 2,
        )

    def make_outlet(row: ReceiverRow, exceptions: Sequence[ExceptionRow]) -> Outlet:
        kind = SharedOutlet if row.options.shared else Outlet
        return kind(
            row,
            exceptions,
            log=log,
            tail=tail,
            commits=commits,
            tracker=tracker,
            promises=promises,
            time=time,
            limits=limits,
            retry_delay=retry_delay,
            letters=dead_letters,
            stored=stored_bytes,
            loaded=loaded_bytes,
            due=due,
            pace=total.pace(rates.get(row.name)),
        )

    # From the log to the receivers.
    due = Due(time, snapshot.wall)
    seldom = Seldom(time.clock)
    away = Away(
        log,
        due=due,
        limits=limits,
        here=lambda: connections.receivers_here(),
        store=lambda row: receivers.moved(row),
        remove=lambda row, is_away: receivers.remove_away(row, is_away),
    )
    dead_letters = DeadLetters(
        log=log,
        limits=limits,
        seldom=seldom,
        clock=time.clock,
        pause=lambda row, reason: receivers.pause_full(row, reason),
    )
    tail = Tail(snapshot.next_number, limits.tail_bytes)
    stored_bytes = StoredBytes()
    loaded_bytes = LoadedBytes(limits.loaded_bytes)
    dispatch = Dispatch(
        tail,
        stored_bytes,
        limits,
        time.clock,
        lambda row, suspended: receivers.set_suspended(row, suspended),
        seldom,
        away,
    )
    directory = Directory(
        log,
        limits,
        dispatch.audience_made,
        dispatch.audience_unmade,
        lambda row: gate.receivable(row),
    )
    retained = RetainedIndex(limits)
    acceptance = Acceptance(
        directory,
        dispatch,
        log,
        retained=retained,
        log_id=facts.log_id,
        limits=limits,
        due=due,
        seldom=seldom,
        promises=lambda: promises.count,
    )
    events = Events(directory, limits)
    tracker = Tracker(log, directory, time.clock, time.now)
    commits = Commits(
        log,
        audiences=acceptance,
        retained=retained,
        time=time,
        after_group=after_group,
        routed=tracker.routed,
        fatal=fatal,
        letters_told=events.of,
        due_now=due.now,
        seldom=seldom,
    )
    delayed = DelayedMessages(log=log, commits=commits, tracker=tracker, due=due, seldom=seldom)
    due.register(delayed)
    expired_retained = ExpiredRetained(log, retained, due)
    due.register(expired_retained)
    expiry = Expiry(
        log,
        due=due,
        tail=tail,
        outlets=dispatch,
        tracker=tracker,
        time=time,
        limits=limits,
        first=snapshot.expires,
    )
    promises = Promises(
        log=log,
        commits=commits,
        tracker=tracker,
        outlets=dispatch,
        settling=expiry,
        due=due,
        time=time,
        limits=limits,
    )
    purge = Purge(log=log, directory=directory, dispatch=dispatch, tail=tail, settling=expiry)
    undo = Undo(
        log=log,
        directory=directory,
        dispatch=dispatch,
        delayed=delayed,
        settling=expiry,
        slices=Slices(time.clock, time.now, UNDO_SECONDS),
        removal=lambda number: receivers.removal(number),
    )
    total = RateLimits(time.clock, total=rate, seconds=time.now)

    # Who is there, and what each may do.
    access = Seldom(time.clock)
    gate = Gate(users, insecure=insecure, time=time, limits=limits, seldom=access)
    connections = Connections(
        make_peer,
        dispatch=dispatch,
        gate=gate,
        visits=Visits(Seldom(time.clock)),
        transports=transports,
        reach=reach,
        provers=provers,
        time=time,
        limits=limits,
    )
    intake = Intake(
        acceptance=acceptance,
        commits=commits,
        senders=connections,
        retained=retained,
        limits=limits,
    )
    replayer = Replayer(
        log=log,
        tail=tail,
        commits=commits,
        directory=directory,
        dispatch=dispatch,
        leave_out=lambda row, first, last: receivers.leave_out(row, first, last),
        has_had=lambda row, position: receivers.has_had(row, position),
        store=lambda row, replay: receivers.store(row, replay),
        may_receive=gate.may_receive,
        limits=limits,
        time=time,
    )
    receivers = Receivers(
        log=log,
        tail=tail,
        commits=commits,
        tracker=tracker,
        promises=promises,
        directory=directory,
        dispatch=dispatch,
        gate=gate,
        make_outlet=make_outlet,
        connections=connections,
        dead_letters=dead_letters,
        away=away,
        replayer=replayer,
        retained=retained,
        limits=limits,
        time=time,
        rng=rng,
    )

    letters = Letters(
        log=log,
        directory=directory,
        backlogs=dispatch,
        commits=commits,
        room=dead_letters,
        limits=limits,
    )

    # What a connection may do.
    responders = Responders(clock=time.clock, now=time.now, limits=limits)
    greeter = Greeter(
        name=facts.name,
        log_id=facts.log_id,
        gate=gate,
        log=log,
        tail=tail,
        receivers=receivers,
        places=connections,
        responders=responders,
        limits=limits,
    )
    upkeep = Upkeep(
        log,
        commits=commits,
        connections=connections,
        directory=directory,
        dispatch=dispatch,
        tell_expiring=transports.tcp.tell_expiring,
        time=time,
        fatal=fatal,
    )
    operations = Operations(
        name=facts.name,
        log_id=facts.log_id,
        listeners=facts.listeners,
        log=log,
        directory=directory,
        dispatch=dispatch,
        rates=rates,
        connections=connections,
        receivers=receivers,
        dead_letters=dead_letters,
        away=away,
        retained=retained,
        replayer=replayer,
        tail=tail,
        letters=letters,
        purge=purge,
        upkeep=upkeep,
        acceptance=acceptance,
        tracker=tracker,
        delayed=delayed,
        undo=undo,
        loaded=loaded_bytes,
        responders=responders,
        promises=promises,
        reload=reload,
        time=time,
    )
    observer = Observer(
        operations,
        counts=dispatch,
        stored_bytes=lambda: stored_bytes.total,
        refused=lambda: upkeep.refusals,
        is_held=lambda: due.is_held,
        time=time,
        limits=limits,
    )
    admin = Admin(operations, observer, gate, limits)
    view = ReceiversView(
        clock=time.clock,
        rows=lambda: list(directory),
        here=connections.receivers_here,
        look=operations.row,
    )
    perspectives = Perspectives(
        view=view,
        instance=facts.log_id,
        gate=gate,
        intake=intake,
        requests=EveryRequest(admin, responders),
        limits=limits,
    )
    posts = Posts(intake, requests=admin, tracker=tracker, time=time, limits=limits)
    web_events = WebEvents(
        observer=observer,
        tracker=tracker,
        requests=admin,
        holds=gate.holds,
        time=time,
        limits=limits,
    )
    web_access = Access(gate, Logins(time.now, limits))
    web = Web(access=web_access, time=time, limits=limits, hosts=web_hosts)
    web.paths.add(
        *page_paths(),
        *login_paths(web_access, gate, web.end_what_holds_no_more),
        *metrics_paths(observer, wall=time.wall, clock=time.clock, limits=limits),
        *health_paths(
            listens=facts.listens,
            failed=lambda: commits.is_stopped,
            full=lambda: bool(log.room().full or upkeep.refused),
        ),
        *posts.paths(),
        *operation_paths(admin, limits.max_batch),
        *body_paths(admin, allowed=web_bodies),
        *web_events.paths(web),
        *Asking(responders, limits).paths(),
        *XmlRpc(posts, admin, limits).paths(),
        openapi_path(web.paths, installed_version()),
    )
    web.ends_with(posts.stop)
    web.ends_with(web_events.stop)
    retained.load(snapshot.retained)
    receivers.load(snapshot)
    directory.load(snapshot.receivers, snapshot.audiences)
    replayer.load(snapshot.replays)
    promises.load(snapshot.promises)
    return Parts(
        tail=tail,
        commits=commits,
        dispatch=dispatch,
        directory=directory,
        acceptance=acceptance,
        intake=intake,
        tracker=tracker,
        connections=connections,
        receivers=receivers,
        replayer=replayer,
        gate=gate,
        greeter=greeter,
        operations=operations,
        observer=observer,
        admin=admin,
        perspectives=perspectives,
        web=web,
        web_events=web_events,
        posts=posts,
        responders=responders,
        upkeep=upkeep,
        seldom=seldom,
        dead_letters=dead_letters,
        away=away,
        due=due,
        letters=letters,
        expiry=expiry,
        promises=promises,
        purge=purge,
        undo=undo,
    )
