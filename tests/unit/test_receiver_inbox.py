"""A receiver with a stored inbox: what its handler writes happens once (SEMANTICS 25, 6)."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import threading
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, cast

import apsw
import pytest
from twisted.application.service import MultiService
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import LogEvent

from msgservice.core.frames import Ack
from msgservice.core.marks import Marks
from msgservice.errors import LogLocked, LogUnavailable, Reject, Retry
from msgservice.message import Action, Status
from msgservice.receiver.handling.engine import SLICE_SECONDS
from msgservice.receiver.inbox.file import InboxFile
from msgservice.receiver.received import ReceivedMessage
from msgservice.receiver.receiver import Receiver
from tests.kit.faulty_vfs import faulty_vfs
from tests.kit.receiver_world import Node, ThreadedClock, World, results_of

TABLE = "create table if not exists done(body blob, n integer primary key)"


def insert(message: ReceivedMessage, transaction: Any) -> None:
    transaction.execute(TABLE)
    transaction.execute("insert into done(body) values (?)", (message.body,))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "inbox.db"


def world_of(path: Path, handler: Any = insert, **more: Any) -> World:
    world = World(handler, inbox=path, attach=False, **more)
    world.attachment = world.attach(world.node)
    world.until(lambda: world.attachment.connected)
    return world


def written(path: Path) -> list[bytes]:
    with sqlite3.connect(path) as db:
        rows = db.execute("select body from done order by n").fetchall()
    db.close()
    return [body for (body,) in rows]


def test_25_what_is_written_is_there_when_the_run_is_acknowledged(path: Path) -> None:
    world = world_of(path)
    world.node.offer([b"1", b"2"])
    world.run()
    assert world.node.answers == []  # not before the commit
    world.until(lambda: world.node.answers)
    assert world.node.answers == [Ack([(1, 2)])]
    assert written(path) == [b"1", b"2"]
    world.stop()


def test_25_a_killed_receiver_handles_nothing_twice(path: Path) -> None:
    world = world_of(path)
    world.node.offer([b"1", b"2"])
    world.until(lambda: world.node.backlog.cursor == 2)
    world.stop()
    # Another process: new memory, the same file; and a node that has heard no answer.
    again = World(insert, inbox=path, attach=False)
    again.node.offer([b"1", b"2", b"3"])
    again.attach(again.node)
    again.until(lambda: again.node.backlog.cursor == 3)
    assert again.node.resumes[-1].floor == 3
    again.stop()
    assert written(path) == [b"1", b"2", b"3"]


def test_25_what_the_file_has_taken_is_acknowledged_and_not_handled_again(path: Path) -> None:
    world = world_of(path)
    world.node.offer([b"1", b"2"])
    world.until(lambda: world.node.backlog.cursor == 2)
    node = world.receiver.handling.nodes["node", "log.1"]
    node.inbox.marks = Marks()  # memory has forgotten what the file knows
    again = Node(world.clock)
    world.attach(again)
    again.offer([b"1", b"2"])
    world.until(lambda: again.backlog.cursor == 2)
    world.stop()
    assert written(path) == [b"1", b"2"]


@pytest.mark.parametrize("order", ["strict", "none"])
def test_25_what_waits_for_the_file_is_not_handled_when_its_incarnation_is_over(
    path: Path, order: str
) -> None:
    """A commit runs; what is handed in behind it waits in the file's own queue."""
    world = world_of(path, order=order)
    world.node.offer([b"1"])
    world.node.offer([b"2"])
    world.node.offer([b"3", b"4"])
    world.run()
    node = Node(world.clock, order=order, incarnation="log.2")
    world.attach(node)
    world.run()
    node.offer([b"new"])
    world.until(lambda: node.backlog.cursor == 1)
    world.stop()
    assert written(path) == [b"1", b"new"]


@pytest.mark.parametrize("order", ["strict", "none"])
def test_3_what_waits_for_the_file_is_handled_once_whatever_order_the_node_has_now(
    path: Path, order: str
) -> None:
    world = world_of(path, order=order)
    world.node.offer([b"1"])
    world.node.offer([b"2"])
    world.node.offer([b"3", b"4"])
    world.run()
    node = world.change_order("none" if order == "strict" else "strict")
    for bodies in ([b"1"], [b"2"], [b"3", b"4"], [b"5"]):
        node.offer(bodies)
    world.until(lambda: node.backlog.cursor == 5)
    world.stop()
    assert sorted(written(path)) == [b"1", b"2", b"3", b"4", b"5"]


@pytest.mark.parametrize("order", ["strict", "none"])
def test_25_what_waits_for_a_thread_is_not_begun_when_its_incarnation_is_over(
    path: Path, order: str
) -> None:
    begun: list[bytes] = []
    has_begun, may_end = threading.Event(), threading.Event()

    def handle(message: ReceivedMessage) -> list[Any]:
        begun.append(message.body)
        has_begun.set()
        assert may_end.wait(60)
        return [TABLE, ("insert into done(body) values (?)", (message.body,))]

    world = world_of(path, handle, threads=1, order=order)
    world.node.offer([b"1", b"2"], "a")
    world.node.offer([b"3"], "b")
    world.run()
    assert has_begun.wait(60)
    node = Node(world.clock, order=order, incarnation="log.2")
    world.attach(node)
    world.run()
    may_end.set()
    node.offer([b"new"], "b")
    world.until(lambda: node.backlog.cursor == 1)
    world.stop()
    assert begun == [b"1", b"new"]
    assert written(path) == [b"1", b"new"]


def test_6_hello_names_the_inbox_and_it_is_the_same_after_a_restart(path: Path) -> None:
    world = world_of(path)
    world.stop()
    world.receiver.startService()
    world.until(lambda: world.attachment.connected)
    world.stop()
    inboxes = [hello.options.inbox for hello in world.node.hellos]
    assert len(inboxes) == 2
    assert inboxes[0]
    assert inboxes[0] == inboxes[1]


@pytest.mark.parametrize("order", ["strict", "none"])
@pytest.mark.parametrize("error", [SystemExit(3), GeneratorExit(), asyncio.CancelledError()])
@pytest.mark.parametrize("late", [False, True], ids=["handler", "write"])
def test_14_a_handler_with_a_transaction_that_exits_fails_like_any_other(
    path: Path, order: str, error: BaseException, late: bool, logged_failures: list[LogEvent]
) -> None:
    tries: list[bytes] = []

    def write(message: ReceivedMessage, transaction: Any) -> None:
        insert(message, transaction)
        tries.append(message.body)
        if message.body == b"bad" and tries.count(b"bad") == 1:
            raise error

    def compute(message: ReceivedMessage) -> Any:
        return lambda transaction: write(message, transaction)

    world = world_of(path, compute if late else write, order=order)
    world.node.offer([b"1", b"bad", b"2"], "a")
    world.node.offer([b"3"], "b")
    world.until(lambda: world.node.nacks)
    assert [nack.action for nack in world.node.nacks] == [Action.RETRY]
    assert type(error).__name__ in world.node.nacks[0].reason
    world.run(2)
    world.until(lambda: world.node.backlog.cursor == 4)
    assert [type(event["log_failure"].value) for event in logged_failures] == [type(error)]
    logged_failures.clear()
    assert world.attachment.connected
    world.stop()
    assert sorted(written(path)) == [b"1", b"2", b"3", b"bad"]


@pytest.mark.parametrize("computes", [False, True])
def test_14_a_handler_with_an_inbox_that_returns_a_generator_has_not_run_and_failed(
    path: Path, computes: bool, logged_failures: list[LogEvent]
) -> None:
    def compute(message: ReceivedMessage) -> Any:
        return (one for one in [message])

    def handle(message: ReceivedMessage, transaction: Any) -> Any:
        return compute(message)

    world = world_of(path, compute if computes else handle)
    world.node.offer([b"1"])
    world.until(lambda: world.node.answers)
    [nack] = world.node.nacks
    assert nack.action == Action.RETRY
    assert nack.reason.startswith("TypeError: ")
    assert "generator" in nack.reason
    logged_failures.clear()
    world.stop()


@pytest.mark.parametrize("has_parent", [False, True])
def test_who_asks_a_receiver_whose_inbox_cannot_be_used_is_told_why_at_once(
    path: Path, has_parent: bool
) -> None:
    holder = world_of(path)
    world = World(insert, inbox=path, attach=False)
    parent = MultiService()
    if has_parent:
        world.receiver.setServiceParent(parent)
        parent.startService()
    world.attach(world.node)
    before = results_of(world.receiver.ready())
    world.until(lambda: before)
    after = results_of(world.receiver.ready())
    assert [type(failure.value) for failure in (*before, *after)] == [LogLocked, LogLocked]
    if has_parent:
        listening = results_of(world.receiver.listen("tcp:0"))
        assert [type(failure.value) for failure in listening] == [LogLocked]
    holder.stop()
    world.receiver.startService()
    again = results_of(world.receiver.ready())
    world.until(lambda: again)
    assert again == [None]
    world.stop()


def test_an_inbox_that_a_program_has_made_is_opened_once_and_says_so(path: Path) -> None:
    world = World(lambda message: None, inbox=None, attach=False)
    inbox = InboxFile(path, reactor=cast("Any", world.clock))
    world = World(insert, inbox=inbox, node=world.node, attach=False)
    world.attach(world.node)
    ready = results_of(world.receiver.ready())
    world.until(lambda: ready)
    assert ready == [None]
    world.stop()
    world.receiver.startService()
    [failure] = results_of(world.receiver.ready())
    assert "was opened before: make another" in str(failure.value)
    assert not world.receiver.running


def test_25_writes_whose_parameters_exit_behind_a_rollback_fail_alone(
    path: Path, logged_failures: list[LogEvent]
) -> None:
    """A statement has rolled the transaction back, and the handler leaves by another error."""
    tries: list[bytes] = []

    def handle(message: ReceivedMessage, transaction: Any) -> None:
        insert(message, transaction)
        tries.append(message.body)
        if message.body == b"bad" and tries.count(b"bad") == 1:
            with suppress(apsw.ConstraintError):
                transaction.execute("insert or rollback into done values (?, 1)", (b"x",))
            raise SystemExit(3)

    world = world_of(path, handle)
    world.node.offer([b"1", b"bad"], "a")
    world.node.offer([b"2"], "b")
    world.until(lambda: world.node.nacks)
    assert [nack.action for nack in world.node.nacks] == [Action.RETRY]
    world.run(2)
    world.until(lambda: world.node.backlog.cursor == 3)
    logged_failures.clear()
    world.stop()
    assert sorted(written(path)) == [b"1", b"2", b"bad"]


def test_runs_that_wait_share_a_commit(path: Path) -> None:
    world = world_of(path)
    for _ in range(20):
        world.node.offer([b"x"] * 5)
    world.until(lambda: world.node.backlog.cursor == 100)
    assert len(world.node.answers) < 10
    world.stop()


@pytest.mark.parametrize("order", ["strict", "none"])
def test_a_message_that_fails_is_undone_and_retried_and_those_before_it_stay(
    path: Path, order: str
) -> None:
    tries: list[bytes] = []

    def handle(message: ReceivedMessage, transaction: Any) -> None:
        insert(message, transaction)
        tries.append(message.body)
        if message.body == b"2" and tries.count(b"2") == 1:
            raise Retry(1.0)

    world = world_of(path, handle, order=order)
    world.node.offer([b"1", b"2", b"3"])
    world.until(lambda: world.node.nacks)
    assert world.node.acknowledged[0] == (1, 1)
    world.run(2)
    world.until(lambda: world.node.backlog.cursor == 3)
    world.stop()
    assert sorted(written(path)) == [b"1", b"2", b"3"]
    if order == "strict":
        assert written(path) == [b"1", b"2", b"3"]


def test_a_rejected_message_leaves_nothing_and_the_lane_goes_on_in_order(path: Path) -> None:
    def handle(message: ReceivedMessage, transaction: Any) -> None:
        insert(message, transaction)
        if message.body == b"2":
            raise Reject("no")

    world = world_of(path, handle)
    world.node.offer([b"1", b"2", b"3"])
    world.node.offer([b"4"])
    world.until(lambda: world.node.backlog.cursor == 4)
    assert [nack.action for nack in world.node.nacks] == [Action.DEAD]
    world.stop()
    assert written(path) == [b"1", b"3", b"4"]


def test_3_nothing_of_a_lane_is_written_before_what_failed_in_it(path: Path) -> None:
    failed = False

    def handle(message: ReceivedMessage, transaction: Any) -> None:
        nonlocal failed
        insert(message, transaction)
        if message.body == b"2" and not failed:
            failed = True
            raise Retry(1.0)

    world = world_of(path, handle)
    for body in (b"1", b"2", b"3", b"4"):
        world.node.offer([body])
    world.node.offer([b"other"], "b")
    world.until(lambda: len(world.node.acknowledged) == 2)
    world.run(2)
    world.until(lambda: world.node.backlog.cursor == 5)
    world.stop()
    assert [body for body in written(path) if body != b"other"] == [b"1", b"2", b"3", b"4"]


def test_3_nothing_of_a_lane_is_written_before_what_found_no_room_in_it(path: Path) -> None:
    def handle(message: ReceivedMessage, transaction: Any) -> None:
        insert(message, transaction)
        clock.rightNow += SLICE_SECONDS  # each has a transaction of its own

    with faulty_vfs() as faults:
        clock = ThreadedClock()
        node = Node(clock)
        from_threads: Any = clock
        inbox = InboxFile(path, reactor=from_threads, vfs="faulty")
        world = World(handle, inbox=inbox, attach=False, node=node)
        world.attachment = world.attach(node)
        world.until(lambda: world.attachment.connected)
        commit = inbox._commit
        counts: list[int] = []

        def commit_for_once_without_room(counted: int) -> None:
            counts.append(counted)
            faults.full = lambda name: len(counts) == 2
            commit(counted)

        inbox._commit = commit_for_once_without_room  # type: ignore[method-assign]  # only there
        node.offer([b"0"])
        world.run()
        node.offer([b"1"])  # handed in together when "0" is committed, "2" is handled behind it
        node.offer([b"2"])
        world.run()
        world.until(lambda: node.backlog.cursor == 1)
        world.until(lambda: node.nacks)
        world.run(3)
        world.until(lambda: node.backlog.cursor == 3)
        world.stop()
    assert written(path) == [b"0", b"1", b"2"]
    assert [(nack.first, nack.action) for nack in node.nacks] == [(2, Action.LATER)]


@pytest.mark.parametrize("is_swallowed", [False, True])
def test_25_a_message_that_rolls_the_inbox_back_is_an_attempt_of_it_alone(
    path: Path, is_swallowed: bool, logged_failures: list[LogEvent]
) -> None:
    def handle(message: ReceivedMessage, transaction: Any) -> None:
        insert(message, transaction)
        if message.body == b"poison":
            transaction.execute("create table once(k primary key)")
            transaction.execute("insert into once values (1)")
            try:
                transaction.execute("insert or rollback into once values (1)")
            except Exception:
                if not is_swallowed:
                    raise

    world = world_of(path, handle, node=Node(ThreadedClock(), max_attempts=3))
    world.node.offer([b"poison"])
    world.node.offer([b"other"], "b")
    for attempt in range(1, 4):
        world.until(lambda attempt=attempt: len(world.node.nacks) == attempt)  # type: ignore[misc]  # mypy cannot infer it
        world.run(10)
    world.until(lambda: world.node.acknowledged)
    assert [(s.first, s.status) for s in world.node.settled if s.first == 1] == [(1, Status.DEAD)]
    assert world.receiver.running
    world.stop()
    assert written(path) == [b"other"]
    logged_failures.clear()


def test_a_batch_is_written_and_marked_as_one(path: Path) -> None:
    calls = 0

    def handle(messages: list[ReceivedMessage], transaction: Any) -> None:
        nonlocal calls
        calls += 1
        for message in messages:
            insert(message, transaction)
        if calls == 1:
            raise Retry(1.0)

    world = world_of(path, handle, batch=True)
    world.node.offer([b"1", b"2"])
    world.until(lambda: world.node.nacks)
    world.run(2)
    world.until(lambda: world.node.backlog.cursor == 2)
    world.stop()
    assert (calls, written(path)) == (2, [b"1", b"2"])


# --- handlers that compute first


def statements(message: ReceivedMessage) -> list[Any]:
    return [TABLE, ("insert into done(body) values (?)", (message.body,))]


async def coroutine(message: ReceivedMessage) -> Any:
    return statements(message)


def as_callable(message: ReceivedMessage) -> Any:
    return lambda transaction: insert(message, transaction)


@pytest.mark.parametrize("handler", [statements, coroutine, as_callable])
@pytest.mark.parametrize("order", ["strict", "none"])
def test_25_a_handler_that_computes_first_returns_its_writes(
    path: Path, handler: Any, order: str
) -> None:
    world = world_of(path, handler, order=order)
    world.node.offer([b"1", b"2", b"3"])
    world.until(lambda: world.node.backlog.cursor == 3)
    world.stop()
    assert written(path) == [b"1", b"2", b"3"]


def test_25_no_transaction_is_open_while_a_handler_waits(path: Path) -> None:
    waiting: dict[bytes, Deferred[Any]] = {}

    def handle(message: ReceivedMessage) -> Deferred[Any]:
        waiting[message.body] = Deferred()
        return waiting[message.body]

    world = world_of(path, handle)
    world.node.offer([b"slow"], "a")
    world.node.offer([b"quick"], "b")
    world.run()
    waiting[b"quick"].callback(lambda transaction: transaction.execute(TABLE))
    world.until(lambda: world.node.acknowledged)
    assert world.node.acknowledged == [(2, 2)]
    waiting[b"slow"].callback(None)
    world.until(lambda: world.node.backlog.cursor == 2)
    world.stop()


def test_what_one_deferred_gives_is_written_for_all_messages_that_it_was_returned_for(
    path: Path,
) -> None:
    computed: Deferred[Any] = Deferred()
    world = world_of(path, lambda message: computed)
    world.node.offer([b"1"], "a")
    world.node.offer([b"2"], "b")
    world.run()
    computed.callback([(TABLE, ()), ("insert into done(body) values (?)", (b"each",))])
    world.until(lambda: world.node.backlog.cursor == 2)
    world.stop()
    with sqlite3.connect(path) as db:
        assert [(b"each",)] * 2 == db.execute("select body from done").fetchall()
    db.close()


def test_writes_that_fail_are_undone_and_the_message_is_retried(
    path: Path, logged_failures: list[LogEvent]
) -> None:
    tries = 0

    def handle(message: ReceivedMessage) -> list[Any]:
        nonlocal tries
        tries += 1
        return [*statements(message), "no sql at all"] if tries == 1 else statements(message)

    world = world_of(path, handle)
    world.node.offer([b"1"])
    world.until(lambda: world.node.nacks)
    assert world.node.nacks[0].action == Action.RETRY
    world.run(2)
    world.until(lambda: world.node.backlog.cursor == 1)
    world.stop()
    assert written(path) == [b"1"]
    logged_failures.clear()


def test_a_handler_that_returns_no_writes_but_something_else_is_told(
    path: Path, logged_failures: list[LogEvent]
) -> None:
    world = world_of(path, lambda message: 17)
    world.node.offer([b"1"])
    world.until(lambda: world.node.nacks)
    assert "a callable or a list of statements" in world.node.nacks[0].reason
    world.stop()
    logged_failures.clear()


def test_a_coroutine_function_gets_no_transaction(path: Path) -> None:
    async def handle(message: ReceivedMessage, transaction: Any) -> None:
        pass

    with pytest.raises(TypeError, match="return the writes"):
        Receiver(Clock(), name="r", handler=handle, inbox=path)


def test_a_transaction_goes_to_no_thread_and_the_error_says_what_to_do(path: Path) -> None:
    with pytest.raises(ValueError, match=r"one writer.* return the writes"):
        Receiver(Clock(), name="r", handler=insert, inbox=path, threads=2)


@pytest.mark.parametrize("order", ["strict", "none"])
@pytest.mark.parametrize("batch", [False, True])
def test_25_with_threads_a_handler_blocks_and_returns_its_writes(
    path: Path, order: str, batch: bool
) -> None:
    seen: set[int] = set()
    both = threading.Barrier(2)  # two lanes, or two units, are handled side by side

    def handle(unit: Any) -> Any:
        seen.add(threading.get_ident())
        messages = unit if batch else [unit]
        if messages[0].body in (b"1", b"3"):
            both.wait(60)

        def store(transaction: Any) -> None:
            assert threading.current_thread() is threading.main_thread()
            for message in messages:
                insert(message, transaction)

        return store

    world = world_of(path, handle, threads=2, order=order, batch=batch)
    world.node.offer([b"1", b"2"], "a")
    world.node.offer([b"3", b"4"], "b")
    if order == "none" and not batch:
        both = threading.Barrier(1)
    world.until(lambda: world.node.backlog.cursor == 4)
    world.stop()
    assert threading.main_thread().ident not in seen
    bodies = written(path)
    assert sorted(bodies) == [b"1", b"2", b"3", b"4"]
    if order == "strict":
        assert bodies.index(b"1") < bodies.index(b"2")
        assert bodies.index(b"3") < bodies.index(b"4")
    again = World(handle, inbox=path, attach=False)
    again.node.offer([b"1", b"2", b"3", b"4"])
    again.attach(again.node)
    again.until(lambda: again.node.backlog.cursor == 4)
    again.stop()
    assert len(written(path)) == 4


def test_25_what_fails_or_is_rejected_on_a_thread_is_answered_and_not_written(path: Path) -> None:
    def handle(message: ReceivedMessage) -> list[Any]:
        if message.body == b"2":
            raise Reject("no")
        if message.body == b"3" and not failed:
            failed.append(1)
            raise Retry(0.5)
        return statements(message)

    failed: list[int] = []
    world = world_of(path, handle, threads=2)
    world.node.offer([b"1", b"2", b"3", b"4"])
    world.until(lambda: len(world.node.nacks) == 2)
    world.run(1)
    world.until(lambda: world.node.backlog.cursor == 4)
    world.stop()
    assert [nack.action for nack in world.node.nacks] == [Action.DEAD, Action.RETRY]
    assert written(path) == [b"1", b"3", b"4"]


def test_25_a_thread_that_does_not_end_in_time_writes_nothing(path: Path) -> None:
    begun, may_end, ended = threading.Event(), threading.Event(), threading.Event()

    def handle(message: ReceivedMessage) -> Any:
        begun.set()
        assert may_end.wait(60)
        ended.set()
        return statements(message)

    world = world_of(path, handle, threads=1)
    world.node.offer([b"1"])
    world.run()
    assert begun.wait(60)
    stopped = results_of(world.receiver.stop())
    world.run(11)
    world.until(lambda: stopped)
    may_end.set()
    assert ended.wait(60)
    assert [nack.action for nack in world.node.nacks] == [Action.LATER]
    again = World(insert, inbox=path, attach=False)
    again.node.offer([b"1"])
    again.attach(again.node)
    again.until(lambda: again.node.backlog.cursor == 1)
    again.stop()
    assert written(path) == [b"1"]


# --- trouble


def test_an_inbox_that_another_process_holds_keeps_the_receiver_from_starting(path: Path) -> None:
    holder = world_of(path)
    world = World(insert, inbox=path, attach=False)
    attachment = world.attach(world.node)
    ready = results_of(world.receiver.ready())
    listening = results_of(world.receiver.listen("tcp:0"))
    world.until(lambda: ready and listening)
    assert ready[0].check(LogLocked)
    assert listening[0].check(LogLocked)
    assert not attachment.connected
    assert "is held by" in attachment.error
    holder.stop()
    world.receiver.startService()
    world.until(lambda: attachment.connected)
    world.stop()


def test_a_commit_that_fails_is_no_attempt_and_the_run_comes_again(path: Path) -> None:
    class Full:
        """An inbox with no room, the first time."""

        inbox = "full"

        def __init__(self) -> None:
            self.runs = 0

        def open(self) -> Deferred[str]:
            from twisted.internet.defer import succeed

            return succeed("full")

        def close(self) -> Deferred[None]:
            from twisted.internet.defer import succeed

            return succeed(None)

        def resume(self, sender: str, incarnation: str) -> Any:
            from msgservice.records import Resume

            return Resume()

        def rejected(self, sender: str, incarnation: str) -> tuple[Any, ...]:
            return ()

        def run(self, *arguments: Any, **more: Any) -> Deferred[Any]:
            from twisted.internet.defer import fail, succeed

            from msgservice.receiver.inbox.file import Handled

            self.runs += 1
            if self.runs == 1:
                return fail(LogUnavailable("disk full"))
            return succeed(Handled(2, None))

    world = World(insert, inbox=Full())
    world.node.offer([b"1", b"2"])
    world.run()
    [nack] = world.node.nacks
    assert (nack.first, nack.last, nack.action) == (1, 2, Action.LATER)
    assert "disk full" in nack.reason
    world.run(2)
    assert world.node.backlog.cursor == 2
    assert [run.attempts for run in world.node.backlog.waiting_runs] == []
    world.stop()


@pytest.mark.parametrize("order", ["strict", "none"])
def test_25_what_was_written_before_a_handler_stops_the_receiver_is_acknowledged(
    path: Path, order: str
) -> None:
    def handle(message: ReceivedMessage, transaction: Any) -> None:
        insert(message, transaction)
        if message.body == b"2":
            stopped.append(results_of(world.receiver.stop()))

    stopped: list[Any] = []
    world = world_of(path, handle, order=order)
    world.node.offer([b"1", b"2", b"3"], "a")
    world.node.offer([b"4"], "a")
    world.until(lambda: stopped and stopped[0])
    world.run()
    assert written(path) == [b"1", b"2"]
    assert world.node.answers == [Ack([(1, 2)])]
    assert (world.node.backlog.cursor, world.wire.near.is_gone) == (2, True)


def reject_at_once(message: ReceivedMessage, transaction: Any) -> None:
    insert(message, transaction)
    if message.body == b"2":
        raise Reject("no 2")


def reject_computed(message: ReceivedMessage) -> list[Any]:
    if message.body == b"2":
        raise Reject("no 2")
    return statements(message)


async def reject_in_its_time(message: ReceivedMessage) -> list[Any]:
    return reject_computed(message)


def reject_by_a_write(message: ReceivedMessage) -> Any:
    return lambda transaction: reject_at_once(message, transaction)


@pytest.mark.parametrize(
    "handler", [reject_at_once, reject_computed, reject_in_its_time, reject_by_a_write]
)
@pytest.mark.parametrize("order", ["strict", "none"])
def test_25_a_rejection_is_on_disk_before_it_is_told_and_no_crash_brings_it_back(
    path: Path, tmp_path: Path, handler: Any, order: str
) -> None:
    world = world_of(path, handler, order=order)
    world.node.offer([b"1", b"2", b"3"])
    world.until(lambda: world.node.backlog.cursor == 3)
    # The process is killed now, and the node has heard nothing of it.
    crashed = tmp_path / "crashed" / "inbox.db"
    crashed.parent.mkdir()
    for file in path.parent.glob("inbox.db*"):
        shutil.copy(file, crashed.parent / file.name)
    world.stop()

    handled: list[bytes] = []

    def again(message: ReceivedMessage, transaction: Any) -> None:
        handled.append(message.body)

    restarted = World(again, inbox=crashed, attach=False, order=order)
    restarted.node.offer([b"1", b"2", b"3", b"4"])
    restarted.attach(restarted.node)
    restarted.until(lambda: restarted.node.backlog.cursor == 4)
    assert handled == [b"4"]
    [nack] = restarted.node.nacks
    assert (nack.first, nack.last, nack.action, nack.reason) == (2, 2, Action.DEAD, "no 2")
    restarted.stop()


def test_25_a_rejected_batch_does_not_come_back_either(path: Path) -> None:
    def handle(messages: list[ReceivedMessage], transaction: Any) -> None:
        handled.append(len(messages))
        raise Reject("none of these")

    handled: list[int] = []
    world = world_of(path, handle, batch=True)
    world.node.offer([b"1", b"2", b"3"])
    world.until(lambda: world.node.backlog.cursor == 3)
    world.stop()
    again = World(handle, inbox=path, attach=False, batch=True)
    again.node.offer([b"1", b"2", b"3"])
    again.attach(again.node)
    again.until(lambda: again.node.backlog.cursor == 3)
    assert handled == [3]
    assert [(nack.first, nack.last) for nack in again.node.nacks] == [(1, 1), (2, 2), (3, 3)]
    again.stop()


def test_25_a_rejection_that_is_not_committed_is_not_told(path: Path) -> None:
    with faulty_vfs() as faults:
        clock: Any = ThreadedClock()
        inbox = InboxFile(path, reactor=clock, vfs="faulty")
        world = World(reject_at_once, inbox=inbox, attach=False, node=Node(clock))
        world.attachment = world.attach(world.node)
        world.until(lambda: world.attachment.connected)
        faults.sync = lambda name: True
        world.node.offer([b"2"])
        world.until(lambda: not world.attachment.connected)
        assert [nack.action for nack in world.node.nacks] == [Action.LATER]
        faults.sync = lambda name: False


def test_19_a_failed_inbox_stops_the_receiver_and_starting_it_again_recovers(
    path: Path, monkeypatch: pytest.MonkeyPatch, logged: list[LogEvent]
) -> None:
    monkeypatch.setattr("msgservice.receiver.receiver.InboxFile", partial(InboxFile, vfs="faulty"))
    with faulty_vfs() as faults:
        world = world_of(path)
        world.node.offer([b"1"])
        world.until(lambda: world.node.backlog.cursor == 1)
        faults.sync = lambda name: True
        world.node.offer([b"2"])
        world.until(lambda: not world.attachment.connected and not world.receiver.running)
        world.until(lambda: "startService" in world.attachment.error)
        assert f"the inbox {path} cannot be written" in world.attachment.error
        assert world.node.backlog.cursor == 1
        faults.sync = lambda name: False
        world.receiver.startService()
        world.until(lambda: world.attachment.connected)
        world.node.offer([b"3"])
        world.run(3)
        world.until(lambda: world.node.backlog.cursor == 3)
        world.stop()
    assert written(path) == [b"1", b"2", b"3"]
    assert any(event["log_level"].name == "critical" for event in logged)
    logged.clear()


def _has_more(world: World, seen: list[bytes], count: int) -> bool:
    return len(seen) > count or world.node.backlog.cursor == 101


def test_25_a_transaction_ends_with_the_slice_of_its_turn_and_no_lane_waits_for_another(
    path: Path,
) -> None:
    seen: list[bytes] = []

    def handle(message: ReceivedMessage, transaction: Any) -> None:
        insert(message, transaction)
        world.clock.rightNow += 0.02
        seen.append(message.body)

    world = world_of(path, handle)
    for n in range(10):
        world.node.offer([b"a%d" % (n * 10 + k) for k in range(10)], "a")
    world.node.offer([b"b"], "b")
    longest, count = 0, 0
    while world.node.backlog.cursor < 101:
        world.until(partial(_has_more, world, seen, count))
        longest, count = max(longest, len(seen) - count), len(seen)
    assert longest <= 3 * 3  # transactions of three or so; `until` may see more than one at a time
    assert seen.index(b"b") < 12
    assert [body for body in seen if body != b"b"] == [b"a%d" % n for n in range(100)]
    assert written(path) == seen
    world.stop()
