"""An outbox table and its relay: real SQLite, a real node, real sockets, kill -9."""

from __future__ import annotations

import shutil
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.application.service import MultiService
from twisted.internet import reactor as installed_reactor
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.logger import globalLogPublisher

from msgservice import Limits, Promise, Receiver, Reject
from msgservice.client.outbox_file import OutboxFile
from msgservice.errors import (
    BadAddress,
    BadName,
    BadValue,
    ClientClosed,
    LogLocked,
    LogUnavailable,
    OutboxTableTaken,
)
from msgservice.outbox import relay as relay_module
from msgservice.outbox.fates import Fates
from msgservice.outbox.relay import Relay
from msgservice.outbox.table import OutboxTable
from tests.integration.command import Command
from tests.integration.daemon import running
from tests.integration.relay_child import BATCH, POINTS
from tests.kit.ports import free_port

CHILD = Path(__file__).with_name("relay_child.py")
LIMITS = Limits(link_delay_min=0.05, link_delay_max=0.2, stop_timeout=5)
SUBJECTS = 3
TABLE = OutboxTable()
reactor: Any = installed_reactor
pytestmark = pytest.mark.timeout(240)


@contextmanager
def node_at(port: int, folder: Path) -> Iterator[str]:
    """A node in a process of its own, on its data folder, and on this port each time."""
    folder.mkdir(exist_ok=True)
    with running("msgservice", "node", "--listen", f"tcp:{port}", cwd=folder) as daemon:
        daemon.ports()
        yield f"tcp:127.0.0.1:{port}"


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    with node_at(free_port(), tmp_path / "node") as address:
        yield address


@pytest.fixture
def db(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(tmp_path / "shop.db")) as connection:
        connection.execute("pragma journal_mode = wal")
        TABLE.create(connection)
        yield connection


@contextmanager
def logged() -> Iterator[list[str]]:
    """The ids of the lines that are logged meanwhile."""
    lines: list[str] = []

    def observer(event: dict[str, Any]) -> None:
        if "line" in event:
            lines.append(event["line"])

    globalLogPublisher.addObserver(observer)  # type: ignore[arg-type]  # an observer is a function
    try:
        yield lines
    finally:
        globalLogPublisher.removeObserver(observer)  # type: ignore[arg-type]  # see above


@asynccontextmanager
async def receiving(
    address: str, handler: Callable[[Any], Any], name: str = "billing", subjects: str = "orders.>"
) -> AsyncIterator[Receiver]:
    receiver = Receiver(reactor, name=name, handler=handler, limits=LIMITS)
    receiver.attach(address, subjects=[subjects])
    await receiver.when_connected()
    try:
        yield receiver
    finally:
        await receiver.stopService()


def relay_of(address: str, folder: Path, **options: Any) -> Relay:
    options.setdefault("name", "shop")
    options.setdefault("outbox", folder / "outbox.db")
    options.setdefault("poll", 0.02)
    options.setdefault("limits", LIMITS)
    if "connect" not in options:
        options["database"] = f"sqlite:///{folder / 'shop.db'}"
    return Relay(reactor, address, **options)


@asynccontextmanager
async def relaying(address: str, folder: Path, **options: Any) -> AsyncIterator[Relay]:
    relay = relay_of(address, folder, **options)
    await relay.start()
    try:
        yield relay
    finally:
        await relay.stop()


def states(db: sqlite3.Connection) -> dict[str, int]:
    found = db.execute("select state, count(*) from msgservice_outbox group by state")
    return dict(found.fetchall())


async def until(holds: Callable[[], Any]) -> None:
    """Return when it holds; the test's own timeout is the end of patience."""
    while not holds():
        await deferLater(reactor, 0.01)


def numbers(db: sqlite3.Connection, count: int, first: int = 0) -> None:
    """Enqueue numbers to some subjects in turn, a few in each transaction."""
    for number in range(first, first + count):
        TABLE.enqueue(db, f"orders.{number % SUBJECTS}", b"%d" % number)
        if number % 7 == 0:
            db.commit()
    db.commit()


def by_subject(count: int) -> dict[str, list[bytes]]:
    return {
        f"orders.{part}": [b"%d" % number for number in range(part, count, SUBJECTS)]
        for part in range(SUBJECTS)
    }


class Book:
    """What a receiver was given, by subject, in order. `rejects`: those that end with this."""

    def __init__(self, rejects: bytes = b"never") -> None:
        self.of: dict[str, list[bytes]] = {}
        self._rejects = rejects

    def __call__(self, message: Any) -> None:
        self.of.setdefault(message.subject, []).append(message.body)
        if message.body.endswith(self._rejects):
            raise Reject("no such customer")


# --- kill -9


@pytest.mark.parametrize("visits", [1, 3])
@pytest.mark.parametrize("point", POINTS)
@pytest_twisted.ensureDeferred
async def test_a_relay_that_is_killed_loses_nothing_and_hands_nothing_over_twice(
    point: str, visits: int, tmp_path: Path, address: str, db: sqlite3.Connection
) -> None:
    book, count = Book(rejects=b"3"), 5 * BATCH
    words = (sys.executable, CHILD, address, f"sqlite:///{tmp_path / 'shop.db'}", "outbox.db")
    async with receiving(address, book):
        numbers(db, count)
        with running(*words, point, str(visits), cwd=tmp_path) as child:
            assert -signal.SIGKILL == await deferToThread(child.ended), child.said
        with running(*words, "none", "0", cwd=tmp_path) as child:
            assert 0 == await deferToThread(child.ended), child.said
    assert by_subject(count) == book.of
    dead = count // 10
    assert {"acknowledged": count - dead, "dead": dead} == states(db)
    told = "select distinct state, receivers, reason from msgservice_outbox order by state"
    assert [
        ("acknowledged", '{"billing":"acknowledged"}', None),
        ("dead", '{"billing":"dead"}', "billing: no such customer"),
    ] == db.execute(told).fetchall()


# --- fates


@pytest_twisted.ensureDeferred
async def test_each_row_says_what_became_of_its_message(
    tmp_path: Path, address: str, db: sqlite3.Connection
) -> None:
    def handle(message: Any) -> None:
        if message.body == b"bad":
            raise Reject("no such customer")

    made: dict[str, tuple[str, bytes, dict[str, Any]]] = {
        "good": ("orders.new", b"1", {}),
        "bad": ("orders.new", b"bad", {}),
        "nobody": ("nothing", b"", {}),
        "refused": ("nothing", b"", {"require": True}),
        "unknown receiver": ("orders.new", b"", {"to": ["ghost"]}),
        "kept": ("orders.new", b"2", {"promise": Promise(within=60)}),
        "broken": ("orders.new", b"bad", {"promise": Promise(within=60)}),
        "key": ("orders.new", b"3", {"idempotency_key": "k", "id": "o-3"}),
        "key again": ("orders.new", b"3", {"idempotency_key": "k"}),
        "delayed": ("orders.new", b"4", {"delay": 0.2}),
    }
    async with receiving(address, handle), relaying(address, tmp_path) as relay:
        rows = {
            name: TABLE.enqueue(db, subject, body, **options)
            for name, (subject, body, options) in made.items()
        }
        db.commit()
        relay.wake()
        await until(lambda: not states(db).keys() & {"waiting", "handed"})
    fates = {name: TABLE.fate(db, row) for name, row in rows.items()}
    assert all(fate is not None and fate.ended_at for fate in fates.values())
    told = {name: fate[:3] for name, fate in fates.items() if fate is not None}
    good = ("acknowledged", {"billing": "acknowledged"}, None)
    bad = {"billing": "dead"}
    assert {
        "good": good,
        "bad": ("dead", bad, "billing: no such customer"),
        "nobody": ("nobody", {}, "nobody receives it"),
        "refused": ("refused", {}, "no receiver for subject 'nothing'"),
        "unknown receiver": ("refused", {}, told["unknown receiver"][2]),
        "kept": ("acknowledged", good[1] | {"$promise": "kept"}, None),
        "broken": ("dead", bad | {"$promise": "broken"}, "billing: no such customer"),
        "key": good,
        "key again": good,
        "delayed": good,
    } == told
    assert "ghost" in (told["unknown receiver"][2] or "")


@pytest_twisted.ensureDeferred
async def test_what_expires_before_the_node_is_there_says_so(
    tmp_path: Path, db: sqlite3.Connection
) -> None:
    port = free_port()
    late = TABLE.enqueue(db, "orders.new", b"late", ttl=0.05)
    TABLE.enqueue(db, "orders.new", b"on time")
    db.commit()
    async with relaying(f"tcp:127.0.0.1:{port}", tmp_path):
        await until(lambda: "expired" in states(db))
        fate = TABLE.fate(db, late)
        assert fate is not None
        assert ("expired", "its ttl was over") == (fate.state, fate.reason)
        assert {"expired": 1, "handed": 1} == states(db)
        with node_at(port, tmp_path / "node"):
            await until(lambda: "nobody" in states(db))


@pytest_twisted.ensureDeferred
async def test_what_waits_for_a_receiver_that_is_away_is_told_by_a_later_process(
    tmp_path: Path, address: str, db: sqlite3.Connection
) -> None:
    """Nobody holds its receipts meanwhile, and there are more than are followed."""
    command, count = Command(address, tmp_path), 3 * BATCH
    await deferToThread(command, "receivers", "add", "billing", "orders.>")
    numbers(db, count)
    async with relaying(address, tmp_path, batch=BATCH) as relay:
        await until(lambda: states(db) == {"handed": count})
        await until(lambda: relay.client.unanswered == 0)
    book = Book()
    async with receiving(address, book):
        await until(lambda: sum(map(len, book.of.values())) == count)
    async with relaying(address, tmp_path) as relay:
        await until(lambda: states(db) == {"acknowledged": count})
        assert 0 == relay.handed
        disk = relay._disk
        assert disk is not None
        await until(lambda: disk is not None and not disk.receipts.ended)
        assert not disk.receipts.open
    assert by_subject(count) == book.of


@pytest_twisted.ensureDeferred
async def test_more_runs_than_are_followed_are_told_all_the_same(
    tmp_path: Path, address: str, db: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_module, "ENDED_EVERY", 0.05)
    command, count = Command(address, tmp_path), 6 * BATCH
    await deferToThread(command, "receivers", "add", "billing", "orders.>")
    numbers(db, count)
    relay = relay_of(address, tmp_path, batch=BATCH)
    relay._fates = Fates(relay._has_news, followed_max=4)
    await relay.start()
    await until(lambda: states(db) == {"handed": count})
    assert 4 == len(relay._fates)
    book = Book()
    async with receiving(address, book):
        await until(lambda: states(db) == {"acknowledged": count})
    assert by_subject(count) == book.of
    await relay.stop()


@pytest_twisted.ensureDeferred
async def test_what_the_node_has_lost_again_is_unknown_and_told(
    tmp_path: Path, db: sqlite3.Connection
) -> None:
    """The node had it on disk, and that was taken away before it was delivered."""
    port = free_port()
    numbers(db, 3)
    with node_at(port, tmp_path / "node") as address:
        await deferToThread(Command(address, tmp_path), "receivers", "add", "billing", "orders.>")
        async with relaying(address, tmp_path) as relay:
            await until(lambda: states(db) == {"handed": 3} and relay.client.unanswered == 0)
    shutil.rmtree(tmp_path / "node")
    async with relaying(f"tcp:127.0.0.1:{port}", tmp_path):
        with node_at(port, tmp_path / "node"):
            await until(lambda: states(db) == {"unknown": 3})
    reasons = db.execute("select distinct reason from msgservice_outbox").fetchall()
    assert all(reason for (reason,) in reasons), reasons


@pytest_twisted.ensureDeferred
async def test_a_row_whose_receipt_is_kept_no_more_says_that_nothing_is_known(
    tmp_path: Path, address: str, db: sqlite3.Connection
) -> None:
    command = Command(address, tmp_path)
    await deferToThread(command, "receivers", "add", "billing", "orders.>")
    numbers(db, 3)
    async with relaying(address, tmp_path) as relay:
        await until(lambda: states(db) == {"handed": 3} and relay.client.unanswered == 0)
    forgotten = await deferToThread(
        command, "receipts", "--outbox", "outbox.db", "--name", "shop", "--forget", "2"
    )
    assert 0 == forgotten.code, forgotten
    async with relaying(address, tmp_path):
        await until(lambda: states(db) == {"handed": 2, "unknown": 1})
    (why,) = db.execute("select reason from msgservice_outbox where state = 'unknown'").fetchone()
    assert "its receipt is kept no more" == why


# --- a node, a disk, a database that are not there


@pytest_twisted.ensureDeferred
async def test_rows_wait_in_the_table_while_the_node_is_away(
    tmp_path: Path, db: sqlite3.Connection
) -> None:
    port, book, count = free_port(), Book(), 100
    few = Limits(link_delay_min=0.05, link_delay_max=0.2, stop_timeout=5, window_messages=30)
    with node_at(port, tmp_path / "node") as address:
        await deferToThread(Command(address, tmp_path), "receivers", "add", "billing", "orders.>")
    numbers(db, count)
    async with relaying(address, tmp_path, limits=few):
        await until(lambda: states(db) == {"handed": 30, "waiting": 70})
        with node_at(port, tmp_path / "node"):
            async with receiving(address, book):
                numbers(db, 20, count)
                await until(lambda: states(db) == {"acknowledged": count + 20})
    assert by_subject(count + 20) == book.of


@pytest_twisted.ensureDeferred
async def test_a_database_that_is_locked_is_told_once_and_tried_again(
    tmp_path: Path, address: str, db: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_module, "SQLITE_WAIT", 0.01)
    monkeypatch.setattr(relay_module, "RETRY_MAX", 0.05)
    book = Book()
    with logged() as lines:
        async with receiving(address, book), relaying(address, tmp_path) as relay:
            numbers(db, 10)
            await until(lambda: states(db) == {"acknowledged": 10})
            db.execute("begin immediate")
            TABLE.enqueue(db, "orders.0", b"10")
            relay._delete_at = 0  # it has something to write
            relay.wake()
            await until(lambda: "outbox-table-unavailable" in lines)
            await until(lambda: relay._tries > 3)
            db.commit()
            await until(lambda: states(db) == {"acknowledged": 11})
    assert 1 == lines.count("outbox-table-unavailable")
    assert 1 == lines.count("outbox-table-available")


@pytest_twisted.ensureDeferred
async def test_a_table_that_is_missing_is_waited_for(tmp_path: Path, address: str) -> None:
    shop = tmp_path / "late.db"
    with logged() as lines, closing(sqlite3.connect(shop)) as db:
        relay = relay_of(address, tmp_path, connect=lambda: sqlite3.connect(shop))
        starting = relay.start()
        await until(lambda: "outbox-table-unavailable" in lines)
        TABLE.create(db)
        TABLE.enqueue(db, "a", b"")
        db.commit()
        await starting
        await until(lambda: states(db) == {"nobody": 1})
        await relay.stop()


@pytest_twisted.ensureDeferred
async def test_an_outbox_without_room_lets_the_rows_wait(
    tmp_path: Path, address: str, db: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sequences of what could not be kept are used up, and nothing counts as handed over."""
    append, fails = OutboxFile.append, [True, True]

    def full(file: OutboxFile, runs: Any) -> Any:
        if runs and fails:
            fails.pop()
            file.sequence = runs[-1].last
            raise_later: Any = append(file, [])
            return raise_later.addCallback(lambda _: _raise(LogUnavailable("no room")))
        return append(file, runs)

    def _raise(error: Exception) -> None:
        raise error

    monkeypatch.setattr(OutboxFile, "append", full)
    book = Book()
    with logged() as lines:
        async with receiving(address, book), relaying(address, tmp_path):
            numbers(db, 9)
            await until(lambda: states(db) == {"acknowledged": 9})
    assert by_subject(9) == book.of
    assert 2 == lines.count("outbox-not-handed")


@pytest_twisted.ensureDeferred
async def test_a_file_with_room_for_few_is_given_few(
    tmp_path: Path, address: str, db: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole batch would never fit, whatever it waits for."""
    append, book = OutboxFile.append, Book()

    def small(file: OutboxFile, runs: Any) -> Any:
        if sum(run.count for run in runs) <= 5:
            return append(file, runs)
        file.sequence = runs[-1].last
        return append(file, []).addCallback(lambda _: _raise())

    def _raise() -> None:
        raise LogUnavailable("no room")

    monkeypatch.setattr(OutboxFile, "append", small)
    monkeypatch.setattr(relay_module, "RETRY_MAX", 0.05)
    numbers(db, 20)
    async with receiving(address, book), relaying(address, tmp_path, batch=16):
        await until(lambda: states(db) == {"acknowledged": 20})
    assert by_subject(20) == book.of


@pytest_twisted.ensureDeferred
async def test_what_was_given_up_is_no_row_that_was_handed_over(
    tmp_path: Path, address: str, db: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sequence that is on disk says nothing of a run that could not be written."""
    append = OutboxFile.append

    def full(file: OutboxFile, runs: Any) -> Any:
        if not runs:
            return append(file, runs)
        file.sequence = runs[-1].last
        return append(file, []).addCallback(lambda _: _raise())

    def _raise() -> None:
        raise LogUnavailable("no room")

    numbers(db, 3)
    with monkeypatch.context() as patched, logged() as lines:
        patched.setattr(OutboxFile, "append", full)
        relay = relay_of(address, tmp_path)
        await relay.start()
        await until(lambda: "outbox-not-handed" in lines)
        await relay.stop()
    async with relaying(address, tmp_path) as relay:
        assert relay._disk is not None
        assert 0 == relay._disk.kept < relay._disk.given
        await until(lambda: states(db) == {"nobody": 3})


# --- whose the table is


@pytest_twisted.ensureDeferred
async def test_one_relay_has_a_table_and_the_second_hears_a_sentence(
    tmp_path: Path, address: str, db: sqlite3.Connection
) -> None:
    numbers(db, 3)
    async with relaying(address, tmp_path) as first:
        await until(lambda: states(db) == {"nobody": 3})
        with pytest.raises(LogLocked):
            await relay_of(address, tmp_path).start()
        second = relay_of(address, tmp_path, outbox=tmp_path / "second.db")
        with pytest.raises(OutboxTableTaken, match="stop that relay, or use its file"):
            await second.start()
        with logged() as lines:
            third = relay_of(address, tmp_path, outbox=tmp_path / "third.db", take_over=True)
            await third.start()
            assert "outbox-table-taken-over" in lines
            numbers(db, 3)
            with pytest.raises(OutboxTableTaken, match="taken over"):
                await first.when_stopped()
            assert "outbox-relay-stopped" in lines
        await until(lambda: states(db) == {"nobody": 6})
        assert 3 == third.handed
        await third.stop()


@pytest_twisted.ensureDeferred
async def test_a_lost_outbox_is_told_and_taking_over_loses_nothing(
    tmp_path: Path, address: str, db: sqlite3.Connection
) -> None:
    """Of what the lost file had, nobody knows what the node was given: it may come twice."""
    dead = f"tcp:127.0.0.1:{free_port()}"
    numbers(db, 6)
    async with relaying(dead, tmp_path):
        await until(lambda: states(db) == {"handed": 6})
    for lost in tmp_path.glob("outbox.db*"):
        lost.unlink()
    with pytest.raises(OutboxTableTaken, match="If the file is lost, take over"):
        await relay_of(address, tmp_path).start()
    book = Book()
    async with receiving(address, book), relaying(address, tmp_path, take_over=True):
        await until(lambda: states(db) == {"acknowledged": 6})
    assert by_subject(6) == book.of


# --- its life


@pytest_twisted.ensureDeferred
async def test_one_file_is_of_one_table_and_says_which(
    tmp_path: Path, address: str, db: sqlite3.Connection
) -> None:
    second = OutboxTable("second_outbox")
    second.create(db)
    numbers(db, 3)
    async with relaying(address, tmp_path):
        await until(lambda: states(db) == {"nobody": 3})
    second.enqueue(db, "orders.new", b"of the second")
    db.commit()
    said = "second_outbox cannot be relayed .* is of the table msgservice_outbox"
    with pytest.raises(OutboxTableTaken, match=said):
        await relay_of(address, tmp_path, table=second).start()
    assert [("waiting",)] == db.execute("select state from second_outbox").fetchall()
    numbers(db, 3)
    async with relaying(address, tmp_path):  # and the first goes on
        await until(lambda: states(db) == {"nobody": 6})
    async with relaying(address, tmp_path, table=second, outbox=tmp_path / "second.db"):
        settled = "select state from second_outbox where state = 'nobody'"
        await until(lambda: bool(db.execute(settled).fetchall()))


@pytest_twisted.ensureDeferred
async def test_a_service_relays_while_it_runs(
    tmp_path: Path, address: str, db: sqlite3.Connection
) -> None:
    relay = relay_of(address, tmp_path)
    with pytest.raises(ClientClosed):
        assert relay.client
    services = MultiService()
    relay.as_service().setServiceParent(services)
    services.startService()
    numbers(db, 3)
    await until(lambda: states(db) == {"nobody": 3})
    await services.stopService()
    await relay.when_stopped()
    with pytest.raises(ClientClosed, match="the relay was stopped"):
        await relay.start()
    await relay.stop()


@pytest_twisted.ensureDeferred
async def test_a_service_that_is_started_again_relays_again(
    tmp_path: Path, address: str, db: sqlite3.Connection
) -> None:
    relay = relay_of(address, tmp_path)
    service = relay.as_service()
    for turn in range(1, 4):
        service.startService()
        numbers(db, 3)
        await until(lambda: states(db) == {"nobody": 3 * turn})  # noqa: B023  # awaited here
        stopping = service.stopService()
        if turn == 2:  # before that stop is over
            service.startService()
            await stopping
            await until(lambda: relay._client is not None)
            stopping = service.stopService()
            service.startService()
            stopping = service.stopService()
        await stopping
    numbers(db, 3)
    assert states(db) == {"nobody": 9, "waiting": 3}
    service.startService()
    await until(lambda: states(db) == {"nobody": 12})
    await service.stopService()
    assert (12, 12) == (relay.handed, relay.settled)


@pytest_twisted.ensureDeferred
async def test_a_service_that_cannot_start_says_so(
    tmp_path: Path, address: str, db: sqlite3.Connection
) -> None:
    async with relaying(address, tmp_path):
        with logged() as lines:
            service = relay_of(address, tmp_path, outbox=tmp_path / "other.db").as_service()
            service.startService()
            await until(lambda: "outbox-relay-not-started" in lines)
            await service.stopService()


@pytest_twisted.ensureDeferred
async def test_a_driver_that_hangs_does_not_hold_up_the_end(
    tmp_path: Path, address: str, db: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    from threading import Event

    monkeypatch.setattr(relay_module, "STEP_PATIENCE", 0.05)
    monkeypatch.setattr(relay_module, "SLOW", 0.01)
    hanging, let_go = Event(), Event()

    def connect() -> sqlite3.Connection:
        hanging.set()
        let_go.wait()
        return sqlite3.connect(tmp_path / "shop.db")

    relay = relay_of(address, tmp_path, connect=connect)
    with logged() as lines:
        starting = relay.start()
        await until(hanging.is_set)
        await until(lambda: "outbox-table-slow" in lines)
    stopping = relay.stop()
    with pytest.raises(ClientClosed, match="stopped"):
        await starting
    await stopping
    let_go.set()


@pytest.mark.parametrize(
    ("error", "options"),
    [
        (BadValue, {"database": "postgresql://localhost/shop"}),
        (BadValue, {"database": "sqlite://shop.db"}),
        (BadValue, {"database": "sqlite:///:memory:"}),
        (BadValue, {"database": None}),
        (BadValue, {"connect": sqlite3.connect}),
        (TypeError, {"connect": "module:function", "database": None}),
        (TypeError, {"outbox": None}),
        (TypeError, {"table": 17}),
        (BadValue, {"table": ""}),
        (BadName, {"name": ""}),
        (BadAddress, {"address": "nonsense"}),
        (ValueError, {"poll": 0}),
        (ValueError, {"batch": 0}),
        (BadValue, {"keep": -1}),
        (BadValue, {"keep_failed": "day"}),
        (TypeError, {"take_over": "yes"}),
        (TypeError, {"limits": 5}),
        (BadValue, {"password": "without a user"}),
    ],
)
def test_a_wrong_argument_is_refused_by_its_name(
    tmp_path: Path, error: type[Exception], options: dict[str, Any]
) -> None:
    given: dict[str, Any] = {
        "address": "tcp:127.0.0.1:1",
        "name": "shop",
        "outbox": tmp_path / "outbox.db",
        "database": "sqlite:///shop.db",
    } | options
    with pytest.raises(error):
        Relay(reactor, given.pop("address"), **given)
    assert [] == list(tmp_path.iterdir())
