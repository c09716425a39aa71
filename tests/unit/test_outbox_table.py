"""An outbox table in a real database of SQLite: what `enqueue` writes, and what it refuses."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from msgservice import Limits, Promise
from msgservice.errors import (
    BadName,
    BadSubject,
    BadValue,
    MessageTooLarge,
    Refused,
)
from msgservice.outbox.sql import DIALECTS, STYLES, Names, Wording
from msgservice.outbox.table import Fate, OutboxTable

TABLE = OutboxTable()


@pytest.fixture
def db(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(tmp_path / "shop.db")
    TABLE.create(connection)
    yield connection
    connection.close()


def rows(db: sqlite3.Connection, what: str = "*") -> list[tuple[Any, ...]]:
    return db.execute(f"select {what} from msgservice_outbox order by id").fetchall()


def test_a_row_is_there_when_its_transaction_is_committed_and_not_before(tmp_path: Path) -> None:
    mine, other = (sqlite3.connect(tmp_path / "shop.db") for _ in range(2))
    TABLE.create(mine)
    first = TABLE.enqueue(mine, "orders.new", b"1")
    assert [] == rows(other)
    mine.commit()
    assert [(first, "orders.new", b"1", "waiting", None)] == rows(
        other, "id, subject, body, state, sequence"
    )
    TABLE.enqueue(mine, "orders.new", b"2")
    mine.rollback()
    assert [(first,)] == rows(other, "id")
    for connection in (mine, other):
        connection.close()


def test_a_connection_in_autocommit_commits_the_row_by_itself(tmp_path: Path) -> None:
    mine = sqlite3.connect(tmp_path / "shop.db", isolation_level=None)
    TABLE.create(mine)
    TABLE.enqueue(mine, "a", b"1")
    mine.execute("begin")
    TABLE.enqueue(mine, "a", b"2")
    mine.execute("rollback")
    other = sqlite3.connect(tmp_path / "shop.db")
    assert [(b"1",)] == rows(other, "body")
    for connection in (mine, other):
        connection.close()


def test_content_has_the_form_and_the_header_that_send_gives_it(db: sqlite3.Connection) -> None:
    TABLE.enqueue(db, "a", b"bytes")
    TABLE.enqueue(db, "a", "text")
    TABLE.enqueue(db, "a", {"id": 17}, headers={"trace": "x"})
    assert [
        (b"bytes", None),
        (b"text", '{"content-type":"text/plain; charset=utf-8"}'),
        (b'{"id":17}', '{"trace":"x","content-type":"application/json"}'),
    ] == rows(db, "body, headers")


def test_options_are_json_that_says_what_was_asked(db: sqlite3.Connection) -> None:
    promise = Promise(need=2, within=60, otherwise="cancel")
    TABLE.enqueue(db, "a", b"", to=["billing"], id="o-1", require=True, ttl=30, delay=1.5)
    TABLE.enqueue(db, "a", b"", idempotency_key="k", retain="only")
    TABLE.enqueue(db, "a", b"", promise=promise)
    TABLE.enqueue(db, "a", b"")
    found = [None if text is None else msgspec.json.decode(text) for (text,) in rows(db, "options")]
    assert [
        {"to": ["billing"], "id": "o-1", "require": True, "ttl": 30.0, "delay": 1.5},
        {"idempotency_key": "k", "retain": "only"},
        {"promise": {"within": 60.0, "need": 2, "otherwise": "cancel"}},
        None,
    ] == found


def test_many_are_written_in_their_order(db: sqlite3.Connection) -> None:
    TABLE.enqueue_many(db, "a", [b"1", "2", {"n": 3}], ttl=5)
    TABLE.enqueue_many(db, "a", [])
    assert [(b"1",), (b"2",), (b'{"n":3}',)] == rows(db, "body")
    assert {('{"ttl":5.0}',)} == set(rows(db, "options"))


@pytest.mark.parametrize(
    ("error", "said", "wrong"),
    [
        (BadSubject, "orders..new", {"subject": "orders..new"}),
        (BadSubject, "node's own", {"subject": "$node.info"}),
        (TypeError, "subject is a str", {"subject": 17}),
        (TypeError, "object", {"content": object()}),
        (MessageTooLarge, "message of", {"content": b"x" * Limits().max_batch}),
        (BadName, "is a list of names", {"to": "billing"}),
        (Refused, "names nobody", {"to": []}),
        (Refused, "header", {"headers": {"n": 1}}),
        (BadName, "an id has", {"id": ""}),
        (TypeError, "id is a str", {"id": 5}),
        (BadName, "key", {"idempotency_key": ""}),
        (BadValue, "ttl", {"ttl": -1}),
        (BadValue, "ttl", {"ttl": "5"}),
        (BadValue, "ttl", {"ttl": 1, "delay": 2}),
        (BadValue, "delay", {"delay": float("nan")}),
        (BadValue, "promise", {"promise": 60}),
        (Refused, "promise", {"promise": Promise(within=5), "idempotency_key": "k"}),
        (Refused, "retain", {"retain": "always"}),
        (TypeError, "require", {"require": "no"}),
    ],
)
def test_what_cannot_be_sent_is_refused_and_leaves_no_row(
    db: sqlite3.Connection, error: type[Exception], said: str, wrong: dict[str, Any]
) -> None:
    with pytest.raises(error, match=said):
        TABLE.enqueue(db, **({"subject": "orders.new", "content": b""} | wrong))
    many = {key: value for key, value in wrong.items() if key in ("subject", "to", "ttl", "delay")}
    if many:
        with pytest.raises(error, match=said):
            TABLE.enqueue_many(db, **({"subject": "a", "contents": [b"", b""]} | many))
    assert not db.in_transaction
    assert [] == rows(db)


def test_one_content_is_no_list_of_contents(db: sqlite3.Connection) -> None:
    with pytest.raises(TypeError, match="contents is a list of contents, not str"):
        TABLE.enqueue_many(db, "a", "text")


def test_a_limit_of_the_table_is_the_nodes(db: sqlite3.Connection) -> None:
    small = OutboxTable(limits=Limits(max_batch=8192))
    with pytest.raises(MessageTooLarge):
        small.enqueue(db, "a", b"x" * 8000)
    assert small.enqueue(db, "a", b"x" * 7000) == 1


@pytest.mark.parametrize("wrong", [None, "shop.db", 5])
def test_what_is_no_connection_is_refused_by_name(wrong: Any) -> None:
    with pytest.raises((TypeError, BadValue), match=r"connection|paramstyle"):
        TABLE.enqueue(wrong, "a", b"")
    with pytest.raises(TypeError, match="connection"):
        TABLE.create(wrong)


@dataclass
class Waited:
    """A cursor of a driver for asyncio."""

    async def execute(self, *_: Any) -> None: ...


@dataclass
class Waiting:
    def cursor(self) -> Waited:
        return Waited()


def test_a_connection_for_asyncio_is_told_of_insert() -> None:
    with pytest.raises(TypeError, match="one that blocks is needed; for others there is `insert`"):
        OutboxTable(paramstyle="qmark").enqueue(Waiting(), "a", b"")


def test_a_driver_that_does_not_show_itself_is_told_by_the_table() -> None:
    with pytest.raises(BadValue, match=r"Waiting is not known: OutboxTable\(paramstyle=...\)"):
        TABLE.enqueue(Waiting(), "a", b"")


class Derived(sqlite3.Connection):
    """A connection as programs derive them."""


def test_a_derived_connection_with_rows_of_its_own_will_do(tmp_path: Path) -> None:
    db = sqlite3.connect(tmp_path / "shop.db", factory=Derived)
    db.row_factory = sqlite3.Row
    TABLE.create(db)
    row = TABLE.enqueue(db, "a", b"")
    assert Fate("waiting", {}, None, None) == TABLE.fate(db, row)
    assert TABLE.fate(db, row + 1) is None
    db.row_factory = lambda cursor, row: {
        column[0]: value for column, value in zip(cursor.description, row, strict=True)
    }
    assert Fate("waiting", {}, None, None) == TABLE.fate(db, row)
    db.close()


# --- names and styles


@pytest.mark.parametrize("name", ['a"b', "a%s b", "Größe", "a;b--", "{table}", "order"])
def test_a_name_of_any_characters_is_one_name(tmp_path: Path, name: str) -> None:
    db = sqlite3.connect(tmp_path / "shop.db")
    table = OutboxTable(name)
    table.create(db)
    table.create(db)  # again is nothing
    row = table.enqueue(db, "a", b"")
    assert table.fate(db, row)
    assert {name, f"{name}_relay"} == {
        found
        for (found,) in db.execute("select name from sqlite_master where type = 'table'")
        if found != "sqlite_sequence"
    }
    db.close()


@pytest.mark.parametrize(
    "name",
    ["", "a.b.c", "a\0b", "a\nb", "x" * 49, ".a", "a.", "a_relay", "s.a_waiting", "a_ended"],
)
def test_a_name_that_cannot_be_is_refused(name: str) -> None:
    with pytest.raises(BadValue, match="table"):
        OutboxTable(name)
    with pytest.raises(TypeError, match="table"):
        OutboxTable(17)  # type: ignore[arg-type]  # that is the mistake


def test_a_schema_is_quoted_apart_and_sqlite_has_none() -> None:
    sql = OutboxTable("shop.outbox").sql("postgresql")
    assert 'create table if not exists "shop"."outbox"(' in sql
    assert 'create index if not exists "outbox_waiting" on "shop"."outbox"(id)' in sql
    with pytest.raises(BadValue, match="SQLite has none"):
        OutboxTable("shop.outbox").sql("sqlite")


def test_the_sql_for_migrations_makes_what_create_makes(tmp_path: Path) -> None:
    made, migrated = (sqlite3.connect(tmp_path / name) for name in ("made.db", "migrated.db"))
    TABLE.create(made)
    migrated.executescript(TABLE.sql("sqlite"))
    everything = "select type, name, sql from sqlite_master order by name"
    assert made.execute(everything).fetchall() == migrated.execute(everything).fetchall()
    with pytest.raises(BadValue, match="dialect"):
        TABLE.sql("oracle")
    for connection in (made, migrated):
        connection.close()


@pytest.mark.parametrize(
    ("style", "said", "given"),
    [
        ("qmark", 'x "a%" = ? and ?', (1, 2)),
        ("format", 'x "a%%" = %s and %s', (1, 2)),
        ("pyformat", 'x "a%%" = %s and %s', (1, 2)),
        ("numeric", 'x "a%" = :1 and :2', (1, 2)),
        ("named", 'x "a%" = :p1 and :p2', {"p1": 1, "p2": 2}),
    ],
)
def test_a_statement_is_said_in_the_style_of_the_driver(style: str, said: str, given: Any) -> None:
    wording = Wording(Names("a%"), style)
    assert said == wording.say("x {table} = ? and ?")
    assert given == wording.given((1, 2))


def test_every_style_of_sqlite_writes_the_row(db: sqlite3.Connection) -> None:
    for style in ("qmark", "named", "numeric"):
        sql, parameters = TABLE.insert("a", {"by": style}, paramstyle=style, ttl=9)
        if style == "numeric":  # SQLite knows them as named ones
            sql, parameters = sql, {str(n): one for n, one in enumerate(parameters, start=1)}
        db.execute(sql, parameters)
    assert [(b'{"by":"qmark"}',), (b'{"by":"named"}',), (b'{"by":"numeric"}',)] == rows(db, "body")


def test_a_wrong_style_is_refused() -> None:
    with pytest.raises(BadValue, match="paramstyle"):
        OutboxTable(paramstyle="percent")
    with pytest.raises(TypeError, match="paramstyle"):
        TABLE.insert("a", b"")
    assert set(STYLES) == {"qmark", "format", "pyformat", "numeric", "named"}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_columns_are_those_of_the_page(dialect: str) -> None:
    sql = TABLE.sql(dialect)
    for column in ("enqueued_at", "headers", "options", "state", "sequence", "receivers", "reason"):
        assert f"\n    {column} " in sql
    assert sql.count(";\n") == 5
