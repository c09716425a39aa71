"""Each part of a node alone, with doubles of what it works with (`tests/kit/doubles.py`)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, cast

import msgspec
import pytest
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.logger import LogEvent, capturedLogs, formatEvent
from twisted.python.failure import Failure

from msgservice.administration import PAGE_ROWS
from msgservice.clock import Time
from msgservice.core.frames import (
    BYE_PAUSED,
    VERSION,
    Ack,
    AudienceFrame,
    Hello,
    HelloOptions,
    Nack,
    ReceiveOptions,
    Reply,
    Request,
    Routed,
    StatusFrame,
    Transfer,
)
from msgservice.core.refusal import Refusal
from msgservice.core.runs import Run, Settled
from msgservice.core.session import State as SessionState
from msgservice.credentials import NOBODY as STRANGER
from msgservice.credentials import THIS_PROCESS
from msgservice.errors import (
    BadSubject,
    LogFailed,
    LogUnavailable,
    MalformedFrame,
    NameHeld,
    NotAuthenticated,
    Refused,
)
from msgservice.limits import Limits
from msgservice.message import Action, Status, WireMessage, decode_messages, encode_messages
from msgservice.node.acceptance import Acceptance
from msgservice.node.admin import Admin
from msgservice.node.admin_pages import STEP, Page, message_part
from msgservice.node.commits import Commits
from msgservice.node.connections import Connections
from msgservice.node.dead_letters import DeadLetters
from msgservice.node.directory import Directory
from msgservice.node.dispatch import JUDGE_EVERY, Dispatch
from msgservice.node.due import Due
from msgservice.node.gate import LISTENER
from msgservice.node.greeting import Greeter, Guest
from msgservice.node.ingress import Ingress
from msgservice.node.intake import Intake, Sender
from msgservice.node.loaded_bytes import LoadedBytes
from msgservice.node.operations import Operations, StatusAt
from msgservice.node.outlet import READ_AGAIN, UNLOAD_AFTER, Outlet
from msgservice.node.outlet_progress import Decreed, OutletProgress
from msgservice.node.peer import Peer
from msgservice.node.receivers import Receivers
from msgservice.node.replies import busy
from msgservice.node.responders import Responders
from msgservice.node.retained import RetainedIndex
from msgservice.node.rights import ANYONE
from msgservice.node.seldom import Seldom
from msgservice.node.status_frames import FRAMES_MAX, STATUS_RANGES_MAX, StatusFrames
from msgservice.node.stored_bytes import QueuedBytes, StoredBytes
from msgservice.node.supply import State
from msgservice.node.tail import Tail
from msgservice.node.tracker import GonePiece, News, States, Tracker
from msgservice.node.upkeep import RETAIN_EVERY, Upkeep
from msgservice.node.visits import NAME_SHOWN, REASON_SHOWN, Visits
from msgservice.node.went_back import went_back
from msgservice.receiver_options import ReceiverOptions
from msgservice.records import (
    NOBODY,
    Account,
    Appended,
    Audience,
    Batch,
    Found,
    History,
    Piece,
    ReceiverRow,
    Resume,
    Room,
    StateRange,
    position_of,
)
from msgservice.transport.reach import Reach
from tests.kit.doubles import double
from tests.kit.logs import make_batch
from tests.kit.passes import a_gate, at_home, from_afar

LIMITS = Limits()
DUE = Due(Time(Clock()))
BILLING = Audience(1, (1,), stored=True)


def never(*args: object) -> None:
    raise AssertionError(f"called with {args}")


def run_of(*bodies: bytes) -> msgspec.Raw:
    return msgspec.Raw(encode_messages([WireMessage(body) for body in bodies]))


def stored(batch: Batch, number: int = 1) -> Batch:
    batch.number = number
    return batch


def a_log(**more: Any) -> Any:
    """A log with room, that knows no sender."""
    methods = {
        "room": lambda: Room(used=0, maximum=1000, free=1000, full=None),
        "resume": lambda sender, incarnation: Resume(),
        "dead_bytes": lambda number: 0,
        "dead_count": lambda number: 2 * number,
        "take_forgotten": list,
    }
    return double(**(methods | more))


def an_outlet(row: ReceiverRow | None = None, *, clock: Clock | None = None, **more: Any) -> Outlet:
    time = Time(clock or Clock())
    collaborators: dict[str, Any] = {
        "log": a_log(),
        "tail": Tail(1, 1_000_000),
        "commits": double(),
        "tracker": double(),
        "promises": double(),
        "time": time,
        "limits": LIMITS,
        "retry_delay": lambda attempts, options: 1.0,
        "letters": double(room=lambda row: 1_000_000, due=lambda row, size: None),
        "stored": StoredBytes(),
        "loaded": LoadedBytes(LIMITS.loaded_bytes),
        "due": Due(time),
    }
    row = row or ReceiverRow(number=1, name="billing", cursor=position_of(1) - 1)
    return Outlet(row, (), **(collaborators | more))


def a_connection(**more: Any) -> Any:
    """A connection whose session is open, of a receiver that names no limits."""
    peer = Hello(VERSION, "billing", "i1", HelloOptions(window=(1000, 1_000_000)))
    attributes = {
        "is_gone": False,
        "may_send": True,
        "is_writable": True,
        "has_room": True,
        "channel": double(credentials=THIS_PROCESS),
        "session": double(peer_hello=peer, state=SessionState.GREETED, peer_features=frozenset()),
    }
    return double(**(attributes | more))


# --- what comes in


@pytest.fixture
def acceptance() -> Acceptance:
    directory = double(audience=lambda subject, path=(): BILLING)
    return Acceptance(
        directory,
        double(),
        a_log(),
        retained=RetainedIndex(LIMITS),
        log_id="log",
        limits=LIMITS,
        due=Due(Time(Clock())),
        seldom=double(),
        promises=int,
    )


def test_acceptance_makes_of_a_run_the_batch_that_is_stored(acceptance: Acceptance) -> None:
    transfer = Transfer(5, "orders.new", run_of(b"one", b"two"))
    messages, known = acceptance.decode(transfer)
    raw = memoryview(transfer.messages)
    audience = acceptance.audience(
        ANYONE, transfer, messages, raw.nbytes, known=known, sender="shop"
    )
    batch = acceptance.batch(
        transfer,
        messages,
        raw,
        audience,
        sender="shop",
        incarnation="i",
        incarnation_hash="h",
        scope="sender shop",
    )
    assert (BILLING, 5, 2) == (batch.audience, batch.sequence, batch.count)
    assert bytes(raw) == bytes(batch.messages)
    assert batch.origin is not None
    assert ("log",) == batch.origin.path


def test_acceptance_refuses_what_only_a_node_may_say(acceptance: Acceptance) -> None:
    transfer = Transfer(5, "orders.new", run_of(b"one"), flags=2)
    messages, known = acceptance.decode(transfer)
    with pytest.raises(Refused, match="replay"):
        acceptance.audience(ANYONE, transfer, messages, 10, known=known, sender="shop")


def test_acceptance_takes_no_run_of_nothing(acceptance: Acceptance) -> None:
    with pytest.raises(MalformedFrame):
        acceptance.decode(Transfer(5, "orders.new", run_of()))


def test_acceptance_says_who_is_too_far_behind() -> None:
    behind = double(full=lambda audience: "billing is behind")
    acceptance = Acceptance(
        double(),
        behind,
        a_log(),
        retained=RetainedIndex(LIMITS),
        log_id="log",
        limits=LIMITS,
        due=Due(Time(Clock())),
        seldom=double(),
        promises=int,
    )
    assert "billing is behind" == acceptance.full(BILLING)


def an_ingress(
    connection: Any, *, commits: Any = None, senders: Any = None, **more: Any
) -> Ingress:
    directory = double(audience=lambda subject, path=(): BILLING)
    intake = Intake(
        acceptance=Acceptance(
            directory,
            double(),
            a_log(),
            retained=RetainedIndex(LIMITS),
            log_id="log",
            limits=LIMITS,
            due=Due(Time(Clock())),
            seldom=double(),
            promises=int,
        ),
        commits=commits or double(uncommitted_bytes=0),
        senders=senders or double(),
        retained=RetainedIndex(LIMITS),
        limits=LIMITS,
    )
    collaborators: dict[str, Any] = {
        "rights": ANYONE,
        "intake": intake,
        "clock": Clock(),
        "limits": LIMITS,
        "said": 0,
        "answered": lambda: None,
        "by_key": lambda piece: None,
    }
    return Ingress(connection, Sender.of("shop", "i1"), **(collaborators | more))


def test_ingress_acknowledges_what_is_stored_and_nothing_before() -> None:
    connection, commits, told = a_connection(), double(uncommitted_bytes=0), []
    ingress = an_ingress(connection, commits=commits, answered=lambda: told.append(1))
    ingress.received(Transfer(1, "orders.new", run_of(b"one", b"two")))
    ingress.flush()
    assert ([], []) == (connection.told("send_now"), told)
    ((batch, _),) = commits.told("batch")
    ingress.stored(batch, batch)
    ingress.flush()
    (((ack,),),) = connection.told("send_now")
    assert (Ack([(1, 2)]), [1]) == (ack, told)


@pytest.mark.parametrize("is_gone_first", [False, True])
def test_ingress_keeps_nothing_of_a_sender_that_has_gone(is_gone_first: bool) -> None:
    """What was stored behind its back, or waits for room to be told, is not waited for."""
    connection, commits = a_connection(is_writable=False), double(uncommitted_bytes=0)
    ingress = an_ingress(connection, commits=commits)
    ingress.status_frames = double(named=set(), routed=lambda piece: [])
    ingress.received(Transfer(1, "orders.new", run_of(b"one", b"two")))
    ((batch, _),) = commits.told("batch")
    if is_gone_first:
        connection.is_gone = True
        ingress.stop()
        ingress.stored(batch, batch)
        ingress.flush()
    else:
        ingress.stored(batch, batch)
        assert ingress.waiting == 1
        connection.is_gone = True
        ingress.stop()
    assert ingress.waiting == 0


def test_ingress_pauses_the_senders_when_too_much_is_not_committed() -> None:
    connection, senders = a_connection(), double()
    much = double(uncommitted_bytes=LIMITS.uncommitted_bytes + 1)
    ingress = an_ingress(connection, commits=much, senders=senders)
    ingress.received(Transfer(1, "orders.new", run_of(b"one")))
    assert [()] == senders.told("pause_senders")
    assert connection.told("pause")


# --- the log


def a_commits(log: Any, clock: Clock, **more: Any) -> Commits:
    functions: dict[str, Any] = {
        "after_group": lambda batches: None,
        "due_now": lambda: 0,
        "fatal": never,
        "letters_told": lambda progress: [],
        "routed": never,
    }
    return Commits(
        log,
        audiences=double(version=0),
        retained=RetainedIndex(LIMITS),
        time=Time(clock),
        seldom=Seldom(clock),
        **(functions | more),
    )


def test_commits_put_into_the_next_group_what_comes_while_one_runs() -> None:
    groups: list[tuple[Any, Deferred[Any]]] = []

    def append(group: Any) -> Deferred[Any]:
        groups.append((group, Deferred()))
        return groups[-1][1]

    after: list[list[Batch]] = []
    commits = a_commits(
        double(append=append, append_now=lambda group: None), Clock(), after_group=after.append
    )
    source = double()
    first, second, third = (make_batch(BILLING, sequence) for sequence in (1, 2, 3))
    commits.batch(first, source)
    commits.kick()
    for batch in (second, third):
        commits.batch(batch, source)
        commits.kick()
    assert [[first]] == [group.batches for group, _ in groups]
    groups[0][1].callback(Appended([first], [first]))
    assert [second, third] == groups[1][0].batches
    assert ([[first]], [(first, first)]) == (after, source.told("stored"))


def test_commits_tell_the_source_that_its_group_failed() -> None:
    log = double(
        append=lambda group: fail(LogUnavailable("the disk says no")),
        append_now=lambda group: None,
    )
    commits, source = a_commits(log, Clock()), double()
    commits.batch(make_batch(BILLING), source)
    commits.kick()
    assert ["failed", "flush"] == [name for name, _ in source.calls]
    assert 0 == commits.uncommitted_bytes


def test_upkeep_lets_the_log_retain_once_a_second() -> None:
    clock = Clock()
    log = a_log(retain=lambda now, here, left: succeed(False))
    upkeep = Upkeep(
        log,
        commits=double(take_refusals=lambda: (None, 0)),
        connections=double(take_presence=lambda: ([("shop", "i1")], [])),
        directory=double(),
        dispatch=double(refusing=0),
        tell_expiring=lambda: None,
        time=Time(clock),
        fatal=never,
    )
    upkeep.start()
    clock.pump([RETAIN_EVERY] * 3)
    assert [(at, [("shop", "i1")], []) for at in (1000, 2000, 3000)] == log.told("retain")
    upkeep.stop()
    assert [] == clock.getDelayedCalls()


def test_upkeep_goes_on_while_the_disk_has_no_room_and_logs_no_failure() -> None:
    clock = Clock()
    log = a_log(retain=lambda now, here, left: fail(LogUnavailable("the disk is full")))
    upkeep = Upkeep(
        log,
        commits=double(take_refusals=lambda: (None, 0)),
        connections=double(take_presence=lambda: ([], [])),
        directory=double(),
        dispatch=double(refusing=0),
        tell_expiring=lambda: None,
        time=Time(clock),
        fatal=never,
    )
    upkeep.start()
    clock.pump([RETAIN_EVERY] * 2)
    assert [1000, 2000] == [at for at, *_ in log.told("retain")]  # a logged failure fails a test
    upkeep.stop()


def test_upkeep_goes_on_after_a_fault_of_its_own(logged_failures: list[LogEvent]) -> None:
    clock = Clock()
    log = a_log(retain=lambda now, here, left: succeed(False))

    def collect() -> None:
        raise ValueError("a fault of ours")

    upkeep = Upkeep(
        log,
        commits=double(take_refusals=lambda: (None, 0)),
        connections=double(take_presence=lambda: ([], [])),
        directory=double(collect=collect),
        dispatch=double(refusing=0),
        tell_expiring=lambda: None,
        time=Time(clock),
        fatal=never,
    )
    upkeep.start()
    clock.pump([RETAIN_EVERY] * 3)
    assert [1000, 2000, 3000] == [at for at, *_ in log.told("retain")]
    upkeep.stop()
    assert [] == clock.getDelayedCalls()
    assert len(logged_failures) == 3
    logged_failures.clear()


def test_upkeep_says_that_the_log_cannot_go_on() -> None:
    clock = Clock()
    told: list[LogFailed] = []
    upkeep = Upkeep(
        a_log(retain=lambda now, here, left: fail(LogFailed("gone"))),
        commits=double(take_refusals=lambda: (None, 0), is_stopped=False),
        connections=double(take_presence=lambda: ([], [])),
        directory=double(),
        dispatch=double(refusing=0),
        tell_expiring=lambda: None,
        time=Time(clock),
        fatal=told.append,
    )
    upkeep.start()
    clock.advance(RETAIN_EVERY)
    assert ["gone"] == [str(error) for error in told]


def test_upkeep_looks_at_certificates_at_the_start_and_once_an_hour(
    logged_failures: list[LogEvent],
) -> None:
    clock = Clock()
    log = a_log(retain=lambda now, here, left: succeed(False))
    looked: list[float] = []

    def look() -> None:
        looked.append(clock.seconds())
        raise OSError("a file of ours")

    upkeep = Upkeep(
        log,
        commits=double(take_refusals=lambda: (None, 0)),
        connections=double(take_presence=lambda: ([], [])),
        directory=double(),
        dispatch=double(refusing=0),
        tell_expiring=look,
        time=Time(clock),
        fatal=never,
    )
    upkeep.start()
    clock.pump([RETAIN_EVERY] * 7202)
    upkeep.stop()
    assert [1.0, 3601.0, 7201.0] == looked
    assert 7202 == len(log.told("retain"))  # whatever was wrong with them
    assert 3 == len(logged_failures)
    logged_failures.clear()


# --- who receives what


def test_directory_tells_of_an_audience_when_it_is_used_first() -> None:
    made: list[Audience] = []
    log = a_log(audience=lambda members: Audience(7, members))
    directory = Directory(log, LIMITS, made.append, never)
    directory.add(directory.new_row("billing", ["orders.>"]))
    found = [directory.audience("orders.new"), directory.audience("orders.new")]
    assert made == [found[0]]
    assert found[1] is found[0]
    assert ["billing"] == directory.names(found[0])


class AskedReceivers:
    """`Receivers` on a real directory, and doubles of all else."""

    def __init__(self, **more: Any) -> None:
        self.dead_bytes = 0
        log = a_log(
            accounts=lambda numbers=None: succeed([]), dead_bytes=lambda number: self.dead_bytes
        )
        self.stored: list[Deferred[None]] = []
        self.directory = Directory(log, LIMITS, lambda made: None, lambda unmade: None)
        self.commits = double(receiver=self._store, removal=self._store)
        self.connections = double(links={}, undial=lambda outlet: succeed(None))
        self.dispatch = Dispatch(
            Tail(1, 1), StoredBytes(), LIMITS, Clock(), never, double(), double()
        )
        self.dead_letters = DeadLetters(
            log=log,
            limits=LIMITS,
            seldom=double(),
            clock=Clock(),
            pause=lambda row, reason: self.receivers.pause_full(row, reason),
        )
        self.receivers = Receivers(
            retained=RetainedIndex(LIMITS),
            log=log,
            tail=Tail(3, 1),
            commits=self.commits,
            tracker=double(),
            promises=double(),
            directory=self.directory,
            dispatch=self.dispatch,
            gate=a_gate(),
            make_outlet=lambda row, exceptions: an_outlet(row),
            connections=self.connections,
            dead_letters=self.dead_letters,
            away=double(),
            replayer=double(),
            limits=LIMITS,
            time=Time(Clock()),
            rng=lambda: 0.5,
        )

    def _store(self, changed: object, replay: object = None, join: Any = None) -> Deferred[None]:
        self.stored.append(Deferred())
        return self.stored[-1]

    def on_disk(self) -> None:
        waiting, self.stored = self.stored, []
        for one in waiting:
            one.callback(None)


def test_receivers_make_one_that_attaches_and_say_when_that_is_stored() -> None:
    asked = AskedReceivers()
    outlet = asked.receivers.attaching("billing", ["orders.>"], None, at_home())
    assert asked.directory.named("billing") is outlet.row
    assert position_of(3) - 1 == outlet.row.cursor  # what comes from now on
    when: list[None] = []
    asked.receivers.stored().addCallback(when.append)
    assert [] == when
    asked.on_disk()
    assert [None] == when


def test_receivers_wait_for_no_change_that_comes_later() -> None:
    asked = AskedReceivers()
    told: list[int] = []
    for n in range(20):  # one is stored, and another has come by then: there is never none
        asked.receivers.attaching("toggling", [f"orders.{n}"], None, at_home())
        asked.receivers.stored().addCallback(lambda _: told.append(len(told)))
        if n:
            asked.stored.pop(0).callback(None)
        assert list(range(n)) == told
    asked.on_disk()
    assert list(range(20)) == told


def test_receivers_of_the_configuration_are_stored_together_and_only_where_they_change() -> None:
    asked = AskedReceivers()
    rows = [
        ReceiverRow(number=0, name=f"r{n}", patterns=("orders.>",), cursor=-1) for n in range(5)
    ]
    done: list[object] = []
    Deferred.fromCoroutine(asked.receivers.configure(rows)).addBoth(done.append)
    assert ([None], 5) == (done, len(asked.stored))  # a disk that takes nothing keeps nobody
    asked.on_disk()
    Deferred.fromCoroutine(asked.receivers.configure(rows)).addBoth(done.append)
    assert ([None, None], []) == (done, asked.stored)
    rows[0].patterns = ("bills.>",)
    Deferred.fromCoroutine(asked.receivers.configure(rows[:4])).addBoth(done.append)
    assert 2 == len(asked.stored)  # the one that changed, and the one that is an operator's now
    rows[1].patterns = ("a", "a")
    Deferred.fromCoroutine(asked.receivers.configure(rows)).addBoth(done.append)
    assert isinstance(done[-1], Failure)
    assert done[-1].check(BadSubject)


def test_receivers_dial_one_that_was_added_while_they_run_only() -> None:
    asked = AskedReceivers()
    for name, dialled in (("before", 0), ("since", 2)):  # one that is there is dialled by `start`
        done: list[ReceiverRow] = []
        adding = asked.receivers.add(name, ["orders.>"], address="tcp:127.0.0.1:1")
        Deferred.fromCoroutine(adding).addCallback(done.append)
        asked.on_disk()
        assert [name] == [row.name for row in done]
        assert dialled == len(asked.connections.told("dial"))
        asked.receivers.start()


def test_receivers_pause_one_with_too_many_dead_letters() -> None:
    asked = AskedReceivers()
    outlet = asked.receivers.attaching("billing", ["orders.>"], None, at_home())
    asked.dead_bytes = LIMITS.dead_bytes_max
    asked.dead_letters.due(outlet.row, asked.dead_bytes)
    run = Run(1, 1, "a", None, b"", 1, 0)
    asked.dead_letters.stored(outlet.row, [Settled(run, 1, 1, Status.DEAD)])
    assert outlet.row.options.paused
    ((sent_away, code, reason),) = asked.connections.told("send_away")
    assert (outlet, BYE_PAUSED) == (sent_away, code)
    assert "dead_bytes" in reason


# --- what goes out


def test_dispatch_feeds_who_follows_and_pumps_who_is_connected() -> None:
    clock, tail = Clock(), Tail(1, 1_000_000)
    dispatch = Dispatch(tail, StoredBytes(), LIMITS, clock, never, double(), double())
    follows, lags, away = (
        double(
            row=ReceiverRow(number=number, name=str(number)),
            audiences=set(),
            connection=connection,
            supply=double(state=state),
            progress=double(queued=QueuedBytes(StoredBytes(), ())),
            caught_up=True,
        )
        for number, connection, state in (
            (1, 1, State.FOLLOWS),
            (2, 1, State.LAGS),
            (3, None, State.AWAY),
        )
    )
    for outlet in (follows, lags, away):
        dispatch.add(outlet)
    audience = Audience(1, (1, 2, 3))
    dispatch.audience_made(audience)
    batch = stored(make_batch(audience))
    dispatch.stored([batch])
    assert 2 == tail.next_number
    outlets = (follows, lags, away)
    assert [1, 0, 0] == [len(outlet.supply.told("feed")) for outlet in outlets]
    assert [1, 1, 0] == [len(outlet.told("pump")) for outlet in outlets]


def test_dispatch_suspends_who_is_too_far_behind() -> None:
    clock, suspended, stored_bytes = Clock(), [], StoredBytes()
    dispatch = Dispatch(
        Tail(1, 1_000_000),
        stored_bytes,
        LIMITS,
        clock,
        lambda row, yes: suspended.append((row.name, yes)),
        double(),
        double(),
    )
    options = ReceiverOptions(on_full="suspend", backlog_bytes=10)
    outlet = an_outlet(ReceiverRow(number=1, name="slow", options=options), stored=stored_bytes)
    dispatch.add(outlet)
    audience = Audience(1, (1,))
    dispatch.audience_made(audience)
    dispatch.stored([stored(make_batch(audience, bodies=[b"x" * 20]))])
    clock.advance(JUDGE_EVERY)
    assert [("slow", True)] == suspended
    assert dispatch.full(audience) is not None


def test_outlet_sends_what_the_tail_has_and_stores_what_was_answered() -> None:
    tail, commits, connection = Tail(1, 1_000_000), double(), a_connection()
    outlet = an_outlet(tail=tail, commits=commits)
    outlet.audiences.add(BILLING.number)
    batch = stored(make_batch(BILLING, bodies=[b"one", b"two"]))
    tail.append(batch)
    outlet.attach(connection, Resume(), None)
    (((transfer,),),) = connection.told("send_now")
    assert (batch.first, "orders.new") == (transfer.sequence, transfer.subject)
    assert not outlet.idle
    outlet.received(Ack([(batch.first, batch.last)]))
    outlet.turn_ended()
    assert outlet.idle
    assert (outlet.progress,) in commits.told("progress")


def test_outlet_reads_from_the_log_what_the_tail_has_no_more() -> None:
    page = [stored(make_batch(BILLING))]
    pages = [page, []]
    log = a_log(read=lambda audiences, after, to, size, count: succeed(pages.pop(0)))
    outlet = an_outlet(log=log, tail=Tail(2, 1), limits=LIMITS)
    outlet.audiences.add(BILLING.number)
    connection = a_connection()
    outlet.attach(connection, Resume(), None)
    ((frames,),) = connection.told("send_now")
    assert [page[0].first] == [frame.sequence for frame in frames]


def test_outlet_unloads_when_it_stays_away_and_has_one_timer() -> None:
    tail, clock = Tail(1, 1_000_000), Clock()
    outlet = an_outlet(tail=tail, clock=clock)
    outlet.audiences.add(BILLING.number)
    tail.append(stored(make_batch(BILLING)))
    for seconds, open_runs in ((UNLOAD_AFTER - 1, 1), (UNLOAD_AFTER, 0)):
        outlet.attach(a_connection(), Resume(), None)
        assert [] == clock.getDelayedCalls()
        outlet.detach("", lost=False)
        assert 1 == len(clock.getDelayedCalls())
        clock.advance(seconds)
        assert open_runs == outlet.backlog.open_runs
    outlet.detach("again", lost=False)
    outlet.stop()
    assert [] == clock.getDelayedCalls()


def test_outlet_reads_the_log_again_a_while_after_a_page_that_could_not_be_read(
    logged_failures: list[LogEvent],
) -> None:
    pages: list[Deferred[list[Batch]]] = []

    def read(*asked: object) -> Deferred[list[Batch]]:
        pages.append(Deferred())
        return pages[-1]

    clock = Clock()
    outlet = an_outlet(log=a_log(read=read), tail=Tail(2, 1), clock=clock)
    outlet.attach(a_connection(), Resume(), None)
    pages[0].errback(LogUnavailable("no disk"))
    assert "no disk" in outlet.trouble
    assert 1 == len(pages)
    clock.advance(READ_AGAIN)
    assert 2 == len(pages)
    outlet.detach("", lost=False)
    pages[1].errback(LogUnavailable("still none"))
    clock.advance(READ_AGAIN)
    assert 2 == len(pages)
    assert 2 == len(logged_failures)
    logged_failures.clear()


def test_outlet_that_could_read_the_log_again_shows_no_error(
    logged_failures: list[LogEvent],
) -> None:
    pages: list[Deferred[list[Batch]]] = []

    def read(*asked: object) -> Deferred[list[Batch]]:
        pages.append(Deferred())
        return pages[-1]

    clock = Clock()
    outlet = an_outlet(log=a_log(read=read), tail=Tail(2, 1), clock=clock)
    outlet.attach(a_connection(), Resume(), None)
    pages[0].errback(LogUnavailable("no disk"))
    clock.advance(READ_AGAIN)
    assert "no disk" in outlet.trouble
    pages[1].callback([])
    assert "" == outlet.trouble
    assert 1 == len(logged_failures)
    logged_failures.clear()


def test_outlet_progress_hands_a_group_what_was_settled_and_tells_it_when_it_is_stored() -> None:
    commits, tracker = double(), double()
    letters = double(room=lambda row: 1_000_000, due=lambda row, size: None)
    outlet = an_outlet(commits=commits, tracker=tracker, letters=letters)
    batch = stored(make_batch(BILLING))
    outlet.backlog.offer(
        Run(batch.first, 1, "orders.new", None, batch.messages, batch.size, batch.first - 1, batch)
    )
    outlet.attach(a_connection(), Resume(), None)
    outlet.received(Nack(batch.first, batch.last, Action.DEAD, 0, "no"))
    outlet.turn_ended()
    progress = outlet.progress.take_progress(1_000_000)
    assert {Status.DEAD: 1} == progress.settled
    (letter,) = progress.dead
    assert ("no", [b"a"]) == (letter.reason, [m.body for m in decode_messages(letter.message)])
    assert ([], []) == (tracker.told("settled"), letters.told("stored"))
    outlet.progress.progress_stored()
    assert 1 == len(tracker.told("settled"))
    assert [outlet.row] == [row for row, _ in letters.told("stored")]


def settled(position: int, status: Status = Status.ACKNOWLEDGED, reason: str = "") -> Settled:
    """One message of a batch of its own that is settled."""
    batch = stored(make_batch(BILLING), position >> 16)
    run = Run(
        batch.first, 1, "orders.new", None, batch.messages, batch.size, batch.first - 1, batch
    )
    run.attempts = 1
    return Settled(run, run.first, run.last, status, Refusal(Action.DEAD, reason, 0))


def an_outlet_progress(**more: Any) -> OutletProgress:
    row = ReceiverRow(number=1, name="billing", cursor=position_of(1) - 1)
    collaborators: dict[str, Any] = {
        "commits": double(),
        "tracker": double(),
        "promises": double(settled=lambda *_: None, decreed=lambda *_: None),
        "time": Time(Clock()),
        "letters": double(room=lambda row: 1_000_000, due=lambda row, size: None),
    }
    backlog = more.pop("backlog")
    queued = QueuedBytes(StoredBytes(), ())
    return OutletProgress(double(row=row), backlog, (), queued, **(collaborators | more))


def test_outlet_progress_is_stored_when_every_group_with_it_is() -> None:
    one = settled(position_of(1))
    waiting = [[one], []]
    backlog = double(
        settled=[None], failed=[], take_settled=lambda: waiting.pop(0), take_failed=list,
        cursor=one.last, committed=0,
    )  # fmt: skip
    commits, tracker = double(), double()
    progress = an_outlet_progress(backlog=backlog, commits=commits, tracker=tracker)
    progress.queued.add(1000)
    progress.gather()
    assert [(progress,)] == commits.told("progress")
    assert not progress.is_stored
    fired: list[None] = []
    progress.all_stored().addCallback(fired.append)
    group = progress.take_progress(1_000_000)
    assert (one.last, {Status.ACKNOWLEDGED: 1}) == (group.cursor, group.settled)
    assert 1000 - group.settled_bytes == progress.queued.look() < 1000
    progress.progress_failed()
    assert (1000, []) == (progress.queued.look(), tracker.told("settled"))
    assert group.settled == progress.take_progress(1_000_000).settled
    progress.progress_stored()
    assert [("billing", [one])] == tracker.told("settled")
    assert (True, [None]) == (progress.is_stored, fired)


def test_outlet_progress_is_stored_to_a_moment_although_more_was_settled_since() -> None:
    came = [[settled(position_of(number))] for number in (1, 2, 3)]
    backlog = double(
        settled=[None], failed=[], take_settled=lambda: came.pop(0), take_failed=list,
        cursor=position_of(3), committed=0,
    )  # fmt: skip
    progress = an_outlet_progress(backlog=backlog)
    fired: list[str] = []

    def wait(name: str, waiter: Deferred[None]) -> None:
        waiter.addCallback(lambda _: fired.append(name))

    progress.gather()
    wait("no range was decreed", progress.decreed_stored())
    assert ["no range was decreed"] == fired
    progress.take_progress(1_000_000)
    progress.gather()
    wait("two", progress.all_stored())
    decreed = Decreed(position_of(4), position_of(5), 2, 10, [], Status.EXPIRED, "over")
    progress.decreed([decreed])
    wait("decreed", progress.decreed_stored())
    progress.progress_stored()
    assert ["no range was decreed"] == fired
    progress.take_progress(1_000_000)
    progress.gather()
    progress.progress_failed()
    progress.take_progress(1_000_000)
    wait("all", progress.all_stored())
    progress.decreed([decreed])
    assert ["no range was decreed"] == fired
    progress.progress_stored()
    assert ["two", "decreed", "all"] == fired[1:]
    assert not progress.is_stored


def test_outlet_progress_says_that_a_dead_letter_waits_for_the_log() -> None:
    dead = settled(position_of(1), Status.DEAD, "no")
    backlog = double(
        settled=[None], failed=[], take_settled=lambda: [dead], take_failed=list,
        cursor=dead.last, committed=0,
    )  # fmt: skip
    progress = an_outlet_progress(backlog=backlog)
    progress.gather()
    progress.take_progress(1_000_000)
    assert not progress.letters_wait
    progress.progress_failed()
    assert progress.letters_wait
    assert ["no"] == [letter.reason for letter in progress.take_progress(1_000_000).dead]
    progress.progress_stored()
    assert not progress.letters_wait
    assert [([dead],)] == backlog.told("letters_stored")


def test_that_a_dead_letter_waits_is_told_whoever_comes_and_goes_meanwhile() -> None:
    outlet = an_outlet()
    batch = stored(make_batch(BILLING))
    outlet.backlog.offer(
        Run(batch.first, 1, "orders.new", None, batch.messages, batch.size, batch.first - 1, batch)
    )
    outlet.attach(a_connection(), Resume(), None)
    outlet.received(Nack(batch.first, batch.last, Action.DEAD, 0, "no"))
    outlet.turn_ended()
    outlet.progress.take_progress(1_000_000)
    outlet.progress.progress_failed()
    outlet.detach("went home", lost=False)
    outlet.attach(a_connection(), Resume(), None)
    assert "could not store a dead letter" in outlet.trouble
    outlet.progress.take_progress(1_000_000)
    outlet.progress.progress_stored()
    assert "" == outlet.trouble


def test_status_frames_name_an_audience_once_on_a_connection() -> None:
    status_frames = StatusFrames(double(names=lambda audience: ["billing"]), "i1", 1)
    batches = [stored(make_batch(BILLING, number), number) for number in (1, 2)]
    frames = [status_frames.routed(batch) for batch in batches]
    assert [[AudienceFrame, Routed], [Routed]] == [[type(f) for f in one] for one in frames]


def test_status_frames_are_so_many_at_once_and_lose_nothing_between_two_times() -> None:
    status_frames = StatusFrames(double(names=lambda audience: ["billing"]), "i1", 5)
    ranges = tuple((n, n) for n in range(1, 2 * STATUS_RANGES_MAX + 2, 2))
    pieces = [Piece(n, n, BILLING, n << 16) for n in range(1, FRAMES_MAX + 10)]
    news: Iterator[News] = iter([*pieces, States("billing", Status.DEAD, ranges, "no")])
    taken = [status_frames.take(news) for _ in range(2)]
    assert [False, True] == [is_all for _, is_all in taken]
    first, second = (frames for frames, _ in taken)
    assert FRAMES_MAX == len(first)
    routed = [frame.first for frame in first + second if isinstance(frame, Routed)]
    assert [*range(5, FRAMES_MAX + 10)] == routed
    states = [frame for frame in second if isinstance(frame, StatusFrame)]
    assert [*ranges] == [one for frame in states for one in frame.ranges]
    assert all(len(frame.ranges) <= STATUS_RANGES_MAX for frame in states)
    assert {("i1", "billing", Status.DEAD, "no")} == {
        (frame.incarnation, frame.receiver, frame.state, frame.reason) for frame in states
    }


class ToldProducer:
    """A `Told` that notes the news, `takes` of them at a time."""

    is_gone = False
    takes = 1000

    def __init__(self) -> None:
        self.is_writable = True
        self.news: list[News] = []

    def tell(self, news: Iterator[News]) -> bool:
        for number, one in enumerate(news, 1):
            self.news.append(one)
            if number == self.takes:
                return False
        return True

    def room(self) -> Deferred[None]:
        return succeed(None)

    def fault(self, failure: Failure) -> None:
        failure.raiseException()


class TellsProducers:
    """A `Tracker` with one sender that wants its states from sequence 1 on."""

    def __init__(self) -> None:
        self.history = History(pieces=(), states=(), next=None)
        log = double(history=lambda *asked: succeed(self.history))
        directory = double(numbered=lambda number: ReceiverRow(number=number, name="billing"))
        clock = Clock()
        self.tracker = Tracker(log, directory, clock, clock.seconds)
        self.told = ToldProducer()
        self.watch = self.tracker.watch(self.told, "shop", "i1", 1)


def test_tracker_tells_a_range_of_what_a_group_settled() -> None:
    scene = TellsProducers()
    batch = stored(make_batch(BILLING, 11, [b"a", b"b", b"c"]))
    run = Run(
        batch.first, 3, "orders.new", None, batch.messages, batch.size, batch.first - 1, batch
    )
    settled = Settled(run, batch.first, batch.last, Status.ACKNOWLEDGED)
    scene.tracker.settled("billing", [settled])
    assert [] == scene.told.news
    scene.tracker.flush()
    assert [States("billing", Status.ACKNOWLEDGED, ((11, 13),), "")] == scene.told.news
    scene.tracker.settled("billing", [settled])
    scene.told.is_writable = False
    acknowledged = StateRange(1, Status.ACKNOWLEDGED, 11, 13)
    scene.history = History((), (acknowledged,), None)
    scene.tracker.flush()  # there is no room: the log says it, from where it was left off
    assert [GonePiece(11, 13, (1,)), scene.told.news[0]] == scene.told.news[1:]


def test_tracker_tells_a_page_of_the_past_in_as_many_parts_as_there_is_room_for() -> None:
    scene = TellsProducers()
    scene.told.takes = 1
    pieces = (Piece(1, 2, BILLING, 1 << 16), Piece(6, 6, BILLING, 2 << 16))
    states = (StateRange(1, Status.DEAD, 2, 4, "no"),)
    scene.history = History(pieces, states, None, gone=((5, 5),))
    scene.tracker.tell_all_again()
    assert [
        *pieces,
        GonePiece(3, 4, (1,)),
        Piece(5, 5, NOBODY, 0),
        States("billing", Status.DEAD, ((2, 4),), "no"),
    ] == scene.told.news


# --- connections


def a_newcomer() -> Any:
    return double(is_leaving=False, principal=None, door=LISTENER)


def some_responders() -> Responders:
    clock = Clock()
    return Responders(clock=clock, now=clock.seconds, limits=LIMITS)


def a_greeter(**more: Any) -> Greeter:
    collaborators: dict[str, Any] = {
        "name": "node-1",
        "log_id": "log",
        "gate": a_gate(),
        "log": a_log(),
        "tail": Tail(1, 1),
        "receivers": double(stored=lambda: succeed(None)),
        "places": double(),
        "responders": some_responders(),
        "limits": LIMITS,
    }
    return Greeter(**(collaborators | more))


def test_greeter_answers_when_a_receiver_that_is_new_is_stored() -> None:
    outlet, waiter = an_outlet(), Deferred[None]()
    receivers = double(
        attaching=lambda name, patterns, order, who, start, *, retained, shared: outlet,
        stored=lambda: waiter,
    )
    visitor, connection = a_newcomer(), a_connection()
    hello = Hello(VERSION, "billing", "i1", HelloOptions(receive=ReceiveOptions(subjects=["a.>"])))
    a_greeter(receivers=receivers).greeted(visitor, connection, hello, None)
    ((guest,),) = visitor.told("admitted")
    assert ("billing", outlet) == (guest.name, guest.outlet)
    assert [] == connection.told("hello")
    waiter.callback(None)
    ((said,),) = connection.told("hello")
    assert ("node-1", "log.1") == (said.name, said.incarnation)
    assert [(Resume(),)] == connection.told("resume")
    assert [(guest, 0)] == visitor.told("answering")


def test_greeter_lets_only_local_peers_in_unless_they_prove_a_key() -> None:
    hello = Hello(VERSION, "shop", "i1", HelloOptions())
    far = a_connection(channel=double(credentials=STRANGER))
    with pytest.raises(NotAuthenticated):
        a_greeter().greeted(a_newcomer(), far, hello, None)
    proven = a_connection(channel=double(credentials=replace(STRANGER, key_id=1)))
    a_greeter().greeted(a_newcomer(), proven, hello, None)
    assert proven.told("hello")


def test_greeter_begins_anew_towards_a_receiver_that_has_more_than_the_log() -> None:
    outlet, receivers = an_outlet(), double()
    visitor, connection = a_newcomer(), a_connection()
    guest = Guest(
        "billing", "i1", outlet, None, was_paused=False, order="strict", allowed=at_home()
    )
    a_greeter(receivers=receivers).opened(visitor, connection, guest, Resume(floor=position_of(9)))
    assert [(outlet.row,)] == receivers.told("begin_anew")
    assert connection.told("fail")
    assert [] == visitor.told("seated")


def test_greeter_seats_a_receiver_with_nothing_against_it() -> None:
    outlet, visitor = an_outlet(), a_newcomer()
    a_greeter().opened(
        visitor,
        a_connection(),
        Guest("billing", "i1", outlet, None, was_paused=False, order="strict", allowed=at_home()),
        Resume(),
    )
    assert [(outlet, Resume())] == visitor.told("seated")


def test_went_back_reads_the_log_for_what_was_taken_and_not_answered() -> None:
    outlet = an_outlet()
    batch = stored(make_batch(BILLING))
    asked: list[Sequence[object]] = []

    def read(*args: object) -> Deferred[list[Batch]]:
        asked.append(args)
        return succeed([batch])

    results: list[object] = []
    for crc in (batch.crc, batch.crc + 1):
        resume = Resume(floor=batch.last + 1, last=(batch.first, batch.last, crc))
        comparing = went_back(a_log(read=read), 2, outlet, resume)
        Deferred.fromCoroutine(comparing).addCallback(results.append)
    assert 2 == len(asked)
    assert [True, False] == [result is None for result in results]


def a_peer(expected: Outlet | None = None, **more: Any) -> Peer:
    collaborators: dict[str, Any] = {
        "gate": a_gate(),
        "greeter": double(),
        "intake": double(),
        "commits": double(),
        "directory": double(),
        "tracker": double(),
        "dispatch": double(),
        "register": double(opened=lambda peer: True, replace=lambda outlet, peer: True),
        "requests": double(),
        "responders": some_responders(),
        "clock": Clock(),
        "limits": LIMITS,
    }
    return Peer(expected, **(collaborators | more))


def test_peer_feeds_a_receiver_that_was_seated_and_lets_go_of_it_when_it_is_lost() -> None:
    dispatch, connection, outlet = double(), a_connection(), an_outlet()
    peer = a_peer(dispatch=dispatch)
    peer.channel_up(connection)
    guest = Guest(
        "billing", "i1", outlet, None, was_paused=False, order="strict", allowed=at_home()
    )
    peer.admitted(guest)
    peer.answering(guest, 0)
    peer.seated(outlet, Resume())
    fed_by = [outlet.connection]
    peer.lost(connection, "cut")
    fed_by.append(outlet.connection)
    assert [connection, None] == fed_by
    assert ["connected", "disconnected"] == [name for name, _ in dispatch.calls]


def test_peer_answers_no_more_requests_at_once_than_it_said() -> None:
    answers: list[Deferred[Reply]] = []

    def answer(request: Request, local: bool) -> Deferred[Reply]:
        answers.append(Deferred())
        return answers[-1]

    connection = a_connection()
    peer = a_peer(requests=double(answer=answer), limits=Limits(requests=2))
    peer.channel_up(connection)
    guest = Guest("shop", "i1", None, None, was_paused=False, allowed=at_home())
    peer.admitted(guest)
    for number in (1, 2, 3):
        peer.received(connection, Request(number, "$node.info", run_of(b"{}")))
    assert 2 == len(answers)
    (((refusal,),),) = connection.told("send_now")
    assert [(3, False)] == [(number, ok) for number, ok, _ in refusal.replies]


def some_connections(**more: Any) -> Connections:
    collaborators: dict[str, Any] = {
        "dispatch": double(),
        "visits": double(),
        "transports": double(),
        "reach": Reach(),
        "provers": {},
        "time": Time(Clock()),
        "gate": a_gate(),
        "limits": LIMITS,
    }
    return Connections(lambda expected: a_peer(expected), **(collaborators | more))


def one_of(incarnation: str) -> Any:
    hello = Hello(VERSION, "shop", incarnation, HelloOptions())
    connection = a_connection(session=double(peer_hello=hello))
    return double(connection=connection, is_next_node=False)


@pytest.mark.parametrize(("second", "replaced"), [("i1", 1), ("i2", 0)])
def test_connections_let_the_newest_of_an_incarnation_win(second: str, replaced: int) -> None:
    connections = some_connections()
    older, newer = one_of("i1"), one_of(second)
    for number, peer in enumerate((older, newer)):
        connections.up(peer)
        peer.number = number
        assert connections.opened(peer)
    assert replaced == len(older.told("leave"))
    assert [] == newer.told("leave")


def test_connections_dial_a_receiver_with_an_address_once() -> None:
    link = double()
    transports = double(find=lambda address: double(connector=lambda *args: link))
    connections = some_connections(transports=transports)
    outlet = an_outlet(ReceiverRow(number=1, name="billing", address="tcp:127.0.0.1:1"))
    connections.dial(outlet)
    connections.dial(outlet)
    assert [()] == link.told("startService")
    connections.undial(outlet)
    assert ({}, [()]) == (connections.links, link.told("stopService"))


def test_connections_hold_a_name_that_changes_hands_too_often() -> None:
    connections = some_connections(limits=Limits(replacements=1))
    outlet = an_outlet()
    for number, incarnation in enumerate(("i1", "i2", "i3")):
        peer = one_of(incarnation)
        peer.number = number
        connections.replace(outlet, peer)
    with pytest.raises(NameHeld):
        connections.hold_check(outlet)


# --- administration


def an_admin(**more: Any) -> Admin:
    return Admin(some_operations(**more), double(), a_gate(), LIMITS)


def some_operations(**more: Any) -> Operations:
    collaborators: dict[str, Any] = {
        "name": "node-1",
        "log_id": "log",
        "listeners": ["tcp:127.0.0.1:1"],
        "log": a_log(),
        "directory": double(),
        "dispatch": double(),
        "rates": {},
        "connections": double(peers={}, links={}, receivers_here=set),
        "receivers": double(
            add=None,
            change=None,
            pause=None,
            remove=None,
            own=None,
            account=lambda name: succeed(
                Account(receiver=1, routed=5, queued=3, settled={Status.DEAD: 4})
            ),
        ),
        "replayer": double(of=lambda number: None),
        "tail": Tail(3, 1),
        "away": double(limit=lambda row: 0, since=lambda row: None, stays=lambda row: ""),
        "dead_letters": double(full=lambda row: None, new=3, requeued=2, dropped=1),
        "letters": double(),
        "upkeep": double(refused=None),
        "acceptance": double(looped=0),
        "tracker": double(),
        "purge": double(),
        "delayed": double(page=None, cancel=None),
        "undo": double(),
        "loaded": LoadedBytes(LIMITS.loaded_bytes),
        "responders": some_responders(),
        "promises": double(open=0, kept=0, broken=0),
        "reload": lambda: succeed([]),
        "retained": RetainedIndex(LIMITS),
        "time": Time(Clock()),
    }
    return Operations(**(collaborators | more))


def ask(admin: Admin, subject: str, arguments: object, *, local: bool = True) -> tuple[bool, Any]:
    replies: list[Reply] = []
    request = Request(1, subject, run_of(json.dumps(arguments).encode()))
    who = at_home() if local else from_afar()
    admin.answer(request, who).addCallback(replies.append)
    ((_, ok, raw),) = replies[0].replies
    body = msgspec.msgpack.decode(raw, type=WireMessage).body
    return ok, json.loads(body) if ok else body.decode()


def test_admin_says_what_the_node_is() -> None:
    ok, said = ask(an_admin(), "$node.info", {})
    assert ok
    assert ("node-1", "log", ["tcp:127.0.0.1:1"]) == (
        said["name"],
        said["log_id"],
        said["listeners"],
    )


def test_admin_answers_local_connections_only() -> None:
    ok, why = ask(an_admin(), "$node.info", {}, local=False)
    assert (False, "administration is open to local connections only") == (ok, why)


def test_admin_lists_receivers_with_their_accounts() -> None:
    row = ReceiverRow(number=1, name="billing")
    admin = an_admin(
        log=a_log(
            accounts=lambda numbers: succeed(
                [Account(receiver=1, routed=3, queued=1, settled={Status.ACKNOWLEDGED: 2})]
            )
        ),
        directory=double(names_after=lambda name, count: ["billing"], named=lambda name: row),
        dispatch=double(
            outlets={1: an_outlet()}, backlog_bytes_max=lambda row: 7, refuses=lambda number: False
        ),
    )
    ok, said = ask(admin, "$node.receivers.list", {})
    (one,) = said["receivers"]
    assert (True, 1, {"acknowledged": 2}) == (ok, one["queued"], one["settled"])
    assert ("strict", 7) == (one["order"], one["backlog_bytes"])


def test_admin_says_how_many_messages_a_removal_is_about() -> None:
    said = ask(an_admin(), "$node.receivers.remove", {"name": "billing"})
    assert (True, {"queued": 3, "dead": 2}) == said


def test_operations_tell_a_status_as_it_is_in_flight() -> None:
    found = Found(
        position=65536,
        sender="shop",
        incarnation="i",
        sequence=1,
        subject="a",
        size=1,
        stored_at=0,
        states={1: (Status.QUEUED, 2, "slow"), 9: (Status.QUEUED, 0, "")},
    )
    operations = some_operations(
        log=a_log(find=lambda id_, after, count, senders: succeed(found)),
        directory=double(numbered={1: ReceiverRow(number=1, name="billing")}.get),
        dispatch=double(status_of=lambda number, position, stored: Status.SENT),
    )
    told: list[Any] = []
    Deferred.fromCoroutine(operations.status("log:65536", 0, 10)).addCallback(told.append)
    assert [(found, [StatusAt(1, "billing", Status.SENT, 2, "slow")])] == told


def test_busy_answers_each_call_of_a_request() -> None:
    (reply,) = busy(Request(5, "a", run_of(b"1", b"2")), 2, 7)
    assert [(5, False), (6, False)] == [(number, ok) for number, ok, _ in reply.replies]


# --- answers in pages


def test_a_page_takes_rows_until_one_does_not_fit() -> None:
    limits = Limits(max_batch=4096)
    page = Page(1000, limits)
    taken = 0
    while page.takes and page.add(f"row{taken}", {"text": "x" * 100}):
        taken += 1
    assert (page.full, page.takes, taken) == (True, False, len(page.rows))
    assert 1024 < len(msgspec.json.encode(page.rows)) <= 2048
    assert message_part(limits) <= 2048


def test_a_page_takes_one_row_however_long_it_is() -> None:
    page = Page(1000, Limits(max_batch=4096))
    assert page.add("long", "x" * 10_000)
    assert not page.add("short", 1)


def test_a_page_has_no_more_rows_than_were_asked_for_and_looks_after_some() -> None:
    assert (1, PAGE_ROWS) == (Page(0, LIMITS).rows_max, Page(10**9, LIMITS).rows_max)
    page = Page(STEP + 5, LIMITS)
    steps = []
    while page.takes:
        steps.append(page.step)
        taken = [page.add(f"{len(steps)}-{number}", number) for number in range(page.step)]
        assert all(taken)
    assert [STEP, 5] == steps


# --- who comes and goes


def a_visitor(name: str | None = "shop", **more: Any) -> Any:
    hello = None if name is None else Hello(VERSION, name, "i1", HelloOptions())
    connection = double(
        session=double(peer_hello=hello, failed=False),
        peer_address="tcp:127.0.0.1:1",
        peer_error=None,
        error="closed\nby the other side",
    )
    return double(**({"connection": connection, "is_dialled": False, "goodbye": ""} | more))


class Said:
    """Stands for `Seldom`: notes what was said about which thing."""

    def __init__(self) -> None:
        self.things: list[Any] = []
        self.is_stopped = False

    def say(self, thing: Any, tell: Any, *, kind: Any = None) -> None:
        self.things.append(thing)
        with capturedLogs() as logged:
            tell(1)
            tell(7)
        self.texts = [str(formatEvent(event)) for event in logged]

    def stop(self) -> None:
        self.is_stopped = True


@pytest.fixture
def said() -> Said:
    return Said()


def test_visits_tell_who_came_and_who_went(said: Said) -> None:
    visits, peer = Visits(cast("Seldom", said)), a_visitor()
    visits.came(peer)
    assert said.texts[0] == "sender shop has come, from tcp:127.0.0.1:1"
    visits.went(peer)
    one, more = said.texts
    assert one.startswith("sender shop at tcp:127.0.0.1:1 has gone: closed")
    assert "\n" not in one
    assert "has gone 7 times" in more


def test_visits_tell_who_was_not_let_in_and_who_said_nothing(said: Said) -> None:
    visits = Visits(cast("Seldom", said))
    visits.went(a_visitor("no name\n" * 50, goodbye="x" * 1000, is_dialled=True))
    one, more = said.texts
    assert "was not let in: " in one
    assert "was not let in 7 times" in more
    assert len(one) < NAME_SHOWN + REASON_SHOWN + 200
    assert "\n" not in one
    visits.went(a_visitor(None))
    assert said.texts[1].startswith("7 connection(s) ended before they said who they are")
    assert ["peer-refused", "connection-unknown"] == [thing[0] for thing in said.things]


def test_visits_stop_with_the_node(said: Said) -> None:
    Visits(cast("Seldom", said)).stop()
    assert said.is_stopped
