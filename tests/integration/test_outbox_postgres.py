"""An outbox table in a real PostgreSQL, through psycopg: concurrent transactions, and a restart."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.threads import deferToThread

from msgservice.errors import OutboxTableTaken
from msgservice.outbox.fates import Fate as Fates
from msgservice.outbox.rows import RelayRows, Step
from msgservice.outbox.table import Fate, OutboxTable
from tests.integration.daemon import running
from tests.integration.relay_child import BATCH, POINTS
from tests.integration.test_outbox_relay import (
    CHILD,
    SUBJECTS,
    Book,
    address,
    by_subject,
    logged,
    receiving,
    relaying,
    until,
)
from tests.kit.postgres import Server, needs_server, server

psycopg = pytest.importorskip("psycopg")
__all__ = ["address"]
TABLE = OutboxTable()
SIZE = 1024 * 1024
pytestmark = [needs_server, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def running_server() -> Iterator[Server]:
    with server() as made:
        yield made


@pytest.fixture
def dsn(running_server: Server) -> str:
    """A server with an empty table."""
    with psycopg.connect(running_server.dsn) as db:
        db.execute("drop table if exists msgservice_outbox, msgservice_outbox_relay")
        TABLE.create(db)
    return running_server.dsn


@pytest.fixture
def db(dsn: str) -> Iterator[Any]:
    with closing(psycopg.connect(dsn)) as connection:
        yield connection


def states(db: Any) -> dict[str, int]:
    found = db.execute("select state, count(*) from msgservice_outbox group by state").fetchall()
    db.rollback()
    return dict(found)


def step(kept: int = 0, **options: Any) -> Step:
    options = {"now": 1, "rows": 100, "size": SIZE, "max_batch": SIZE} | options
    return Step(kept=kept, next=kept + 1, **options)


def relay_rows(dsn: str) -> RelayRows:
    return RelayRows(
        lambda: psycopg.connect(dsn), TABLE, identity="mine", keep=None, keep_failed=None
    )


def test_a_row_is_there_when_its_transaction_is_committed(dsn: str, db: Any) -> None:
    row = TABLE.enqueue(db, "orders.new", {"id": 1}, ttl=60, id="o-1")
    with psycopg.connect(dsn) as other:
        assert {} == states(other)
        db.commit()
        assert {"waiting": 1} == states(other)
        assert Fate("waiting", {}, None, None) == TABLE.fate(other, row)
        TABLE.enqueue_many(other, "orders.new", [b"2", b"3"])
        other.rollback()
    assert {"waiting": 1} == states(db)


class Ours:
    """What a program makes of its rows."""

    def __init__(self, **columns: Any) -> None:
        self.columns = columns


@pytest.mark.parametrize("factory", ["tuple_row", "dict_row", "class_row"])
def test_whatever_a_connection_makes_of_rows(dsn: str, factory: str) -> None:
    made = getattr(psycopg.rows, factory)
    made = made(Ours) if factory == "class_row" else made
    with psycopg.connect(dsn, row_factory=made) as db:
        row = TABLE.enqueue(db, "a", b"\0\xff")
        assert Fate("waiting", {}, None, None) == TABLE.fate(db, row)
    rows = RelayRows(
        lambda: psycopg.connect(dsn, row_factory=made),
        TABLE,
        identity="mine",
        keep=None,
        keep_failed=None,
    )
    assert 1 == rows.step(step()).rows
    rows.step(step(kept=1, fates=[Fates(1, 1, "dead", '{"b":"dead"}', "no")], looks_from=1))
    with psycopg.connect(dsn) as db:
        assert Fate("dead", {"b": "dead"}, "no", 0.001) == TABLE.fate(db, row)
    rows.close()


def test_a_connection_in_autocommit_has_a_transaction_for_each_step(dsn: str, db: Any) -> None:
    def of(identity: str, **options: Any) -> RelayRows:
        return RelayRows(
            lambda: psycopg.connect(dsn, autocommit=True),
            TABLE,
            identity=identity,
            keep=None,
            keep_failed=None,
            **options,
        )

    mine, other = of("mine"), of("other", take_over=True)
    mine.step(step())
    other.step(step())
    row = TABLE.enqueue(db, "a", b"")
    db.commit()
    with pytest.raises(OutboxTableTaken):
        mine.step(step())
    assert Fate("waiting", {}, None, None) == TABLE.fate(db, row)
    for rows in (mine, other):
        rows.close()


@pytest.mark.parametrize("name", ['a"b%s', "public.shop outbox", "Größe"])
def test_a_name_of_any_characters_is_one_name(dsn: str, name: str) -> None:
    table = OutboxTable(name)
    with psycopg.connect(dsn) as db:
        table.create(db)
        table.create(db)
        table.enqueue(db, "a", b"1")
        table.enqueue_many(db, "a", [b"2"])
    rows = RelayRows(
        lambda: psycopg.connect(dsn), table, identity="mine", keep=None, keep_failed=None
    )
    assert 2 == rows.step(step()).rows
    rows.step(step(kept=2, fates=[Fates(1, 2, "acknowledged")], deletes=True, again=True))
    rows.close()


@pytest_twisted.ensureDeferred
async def test_a_program_of_asyncio_executes_the_statement(dsn: str, db: Any) -> None:
    def enqueue() -> None:
        import asyncio

        async def main() -> None:
            async with await psycopg.AsyncConnection.connect(dsn) as connection:
                with pytest.raises(TypeError, match="one that blocks is needed"):
                    TABLE.enqueue(connection, "a", b"")
                await connection.execute(
                    *TABLE.insert("orders.new", {"id": 1}, paramstyle="pyformat", ttl=60)
                )

        asyncio.run(main())

    await deferToThread(enqueue)
    assert {"waiting": 1} == states(db)


def test_rows_that_commit_in_another_order_than_their_ids_are_all_taken(dsn: str, db: Any) -> None:
    rows = relay_rows(dsn)
    with psycopg.connect(dsn) as early:
        first = TABLE.enqueue(early, "a", b"first id")
        second = TABLE.enqueue(db, "a", b"second id")
        assert first < second
        db.commit()
        taken = rows.step(step())
        assert [[second]] == [parcel.rows for parcel in taken.parcels]
        assert 0 == rows.step(step(kept=1)).rows  # nothing of what is not committed
        early.commit()
    assert [[first]] == [parcel.rows for parcel in rows.step(step(kept=1)).parcels]
    rows.close()


def test_many_writers_at_once_and_a_relay_that_looks_all_the_time(dsn: str) -> None:
    """Each writer commits some transactions and rolls others back; all in its order, once."""
    writers, transactions = 6, 30

    def write(writer: int) -> None:
        with psycopg.connect(dsn) as db:
            for number in range(transactions):
                for part in range(3):
                    TABLE.enqueue(db, f"w.{writer}", b"%d.%d" % (number, part))
                if number % 5 == 4:
                    db.rollback()
                else:
                    db.commit()

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(writers)]
    for thread in threads:
        thread.start()
    rows, kept = relay_rows(dsn), 0
    taken: dict[str, list[bytes]] = {}
    while True:
        is_last = not any(thread.is_alive() for thread in threads)
        done = rows.step(step(kept=kept, rows=50))
        for parcel in done.parcels:
            with psycopg.connect(dsn) as db:
                found = db.execute(
                    "select body from msgservice_outbox where id = any(%s) order by sequence",
                    (parcel.rows,),
                ).fetchall()
            taken.setdefault(parcel.run.subject, []).extend(bytes(body) for (body,) in found)
            kept += len(parcel.rows)
        if is_last and not done.rows:
            break
    rows.close()
    expected = [
        b"%d.%d" % (number, part)
        for number in range(transactions)
        if number % 5 != 4
        for part in range(3)
    ]
    assert {f"w.{writer}": expected for writer in range(writers)} == taken
    with psycopg.connect(dsn) as db:
        sequences = db.execute("select sequence from msgservice_outbox order by 1").fetchall()
    assert [(n,) for n in range(1, kept + 1)] == sequences


def test_what_is_committed_before_another_transaction_begins_goes_before_it(dsn: str) -> None:
    """Programs that take turns, on one subject, while a relay looks all the time."""
    writers, turns, turn = 4, 25, threading.Lock()
    written: list[bytes] = []

    def write(writer: int) -> None:
        with psycopg.connect(dsn) as db:
            for number in range(turns):
                with turn:
                    body = b"%d.%d" % (writer, number)
                    TABLE.enqueue(db, "shared", body)
                    db.commit()
                    written.append(body)

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(writers)]
    for thread in threads:
        thread.start()
    rows, kept = relay_rows(dsn), 0
    while kept < writers * turns:
        kept += rows.step(step(kept=kept, rows=3)).rows
    rows.close()
    for thread in threads:
        thread.join()
    with psycopg.connect(dsn) as db:
        found = db.execute("select body from msgservice_outbox order by sequence").fetchall()
    assert written == [bytes(body) for (body,) in found]


def test_a_commit_that_outlives_its_relay_is_waited_for(dsn: str, db: Any) -> None:
    """The relay is killed while the server commits, for a standby say; the next one claims."""
    killed, begun = relay_rows(dsn), relay_rows(dsn)
    killed.step(step())
    db.execute(
        "create or replace function slowly() returns trigger language plpgsql as"
        " 'begin perform pg_advisory_xact_lock(7); return new; end'"
    )
    db.execute(
        "create constraint trigger slowly after update on msgservice_outbox_relay"
        " deferrable initially deferred for each row execute function slowly()"
    )
    first = [TABLE.enqueue(db, "a", b"%d" % number) for number in range(3)]
    db.commit()
    waits = "select count(*) from pg_stat_activity where wait_event_type = 'Lock'"
    with psycopg.connect(dsn) as lock, ThreadPoolExecutor(2) as threads:
        lock.execute("select pg_advisory_xact_lock(7)")
        committing = threads.submit(killed.step, step())
        while db.execute(waits).fetchone() != (1,):
            db.rollback()
        claiming = threads.submit(begun.step, step())
        while db.execute(waits).fetchone() != (2,):
            db.rollback()
        lock.rollback()
        assert 3 == committing.result().rows
        # Nothing of it is in the file, so all of it is taken anew.
        assert [first] == [parcel.rows for parcel in claiming.result().parcels]
    begun.step(step(kept=3, fates=[Fates(1, 3, "acknowledged")]))
    assert {"acknowledged": 3} == states(db)
    for rows in (killed, begun):
        rows.close()


def test_a_row_that_is_deleted_before_it_is_taken_is_not_taken(dsn: str, db: Any) -> None:
    """Its transaction ends after the relay has looked which rows wait."""
    rows = relay_rows(dsn)
    rows.step(step())
    TABLE.enqueue(db, "a", b"withdrawn")
    row = TABLE.enqueue(db, "a", b"sent")
    db.commit()
    waits = "select count(*) from pg_stat_activity where wait_event_type = 'Lock'"
    with psycopg.connect(dsn) as user, ThreadPoolExecutor(1) as threads:
        user.execute("delete from msgservice_outbox where id < %s", (row,))
        taking = threads.submit(rows.step, step())
        while db.execute(waits).fetchone() != (1,):
            db.rollback()
        user.commit()
        assert [[row]] == [parcel.rows for parcel in taking.result().parcels]
    rows.close()


def test_a_reason_in_letters_that_the_database_has_not_is_written_all_the_same(
    running_server: Server,
) -> None:
    with psycopg.connect(running_server.dsn, autocommit=True) as db:
        db.execute("create database latin template template0 encoding 'LATIN1' locale 'C'")
    dsn = running_server.dsn.replace("dbname=postgres", "dbname=latin")
    with closing(psycopg.connect(dsn)) as db:
        TABLE.create(db)
        row = TABLE.enqueue(db, "a", b"")
        db.commit()
        rows = relay_rows(dsn)
        rows.step(step())
        fates = [Fates(1, 1, "dead", '{"billing":"dead"}', "Größe \u4e2d\0")]
        with pytest.raises(UnicodeEncodeError):
            rows.step(step(kept=1, fates=fates))
        rows.step(step(kept=1, fates=fates))
        rows.close()
        fate = TABLE.fate(db, row)
    assert fate is not None
    assert r"Gr\u00f6\u00dfe \u4e2d\u0000" == fate.reason


@pytest.mark.parametrize("point", ["after the assignment", "before the fate is committed"])
@pytest_twisted.ensureDeferred
async def test_a_relay_that_is_killed_loses_nothing_and_hands_nothing_over_twice(
    point: str, tmp_path: Path, address: str, dsn: str, db: Any
) -> None:
    assert point in POINTS
    book, count = Book(rejects=b"3"), 5 * BATCH
    words = (sys.executable, CHILD, address, dsn, "outbox.db")
    async with receiving(address, book):
        for number in range(count):
            TABLE.enqueue(db, f"orders.{number % SUBJECTS}", b"%d" % number)
        db.commit()
        with running(*words, point, "2", cwd=tmp_path) as child:
            assert -signal.SIGKILL == await deferToThread(child.ended), child.said
        with running(*words, "none", "0", cwd=tmp_path) as child:
            assert 0 == await deferToThread(child.ended), child.said
    assert by_subject(count) == book.of
    assert {"acknowledged": count - count // 10, "dead": count // 10} == states(db)


@pytest_twisted.ensureDeferred
async def test_a_server_that_is_restarted_in_the_midst_is_waited_for(
    tmp_path: Path, address: str, running_server: Server, dsn: str
) -> None:
    """Stopped as by a crash, under load: what was committed is sent once, in order."""
    book, total = Book(), 600
    committed = 0

    def write(until_: int) -> None:
        nonlocal committed
        with psycopg.connect(dsn) as db:
            for number in range(committed, until_):
                TABLE.enqueue(db, f"orders.{number % SUBJECTS}", b"%d" % number)
                if number % 20 == 19:
                    db.commit()
                    committed = number + 1

    with logged() as lines:
        async with (
            receiving(address, book),
            relaying(address, tmp_path, connect=lambda: psycopg.connect(dsn), batch=BATCH) as relay,
        ):
            await deferToThread(write, total // 2)
            await until(lambda: relay.handed > 0)
            await deferToThread(running_server.stop)
            await until(lambda: "outbox-table-unavailable" in lines)
            await deferToThread(running_server.start)
            await until(lambda: "outbox-table-available" in lines)
            await deferToThread(write, total)
            with closing(psycopg.connect(dsn)) as db:
                await until(lambda: states(db) == {"acknowledged": total})
    assert by_subject(total) == book.of
