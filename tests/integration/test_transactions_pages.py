"""The pages on transactions and on Flask: their programs and commands do what they say."""

from __future__ import annotations

import json
import os
import shlex
import sqlite3
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor as installed_reactor
from twisted.internet.task import deferLater

from msgservice.outbox.table import OutboxTable
from tests.docs.programs import DOCS, blocks, typed, write
from tests.integration.command import Command
from tests.integration.daemon import PATIENCE, Daemon, running
from tests.kit.nest import run
from tests.kit.postgres import needs_server, server

PAGE, FLASK = "transactions.md", "flask.md"
OUTBOX = OutboxTable()
reactor: Any = installed_reactor


@pytest.fixture(autouse=True)
def no_billing(msgservice: Command) -> Iterator[None]:
    """Remove the receiver that all programs have made, with what waits for it."""
    yield
    msgservice("receivers", "remove", "billing", "--yes")


def line(page: str, part: str) -> str:
    """Return the one line that a page has people type with this in it."""
    (found,) = [one for one in typed(page) if part in one]
    return found


def python(folder: Path, *words: str, **environment: str) -> tuple[int, str, str]:
    done = run(
        [sys.executable, *words],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder)} | environment,
        timeout=PATIENCE,
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def relay(msgservice: Command, typed_line: str, **environment: str) -> Any:
    words = shlex.split(typed_line)
    return running(
        *words,
        "--poll",
        "0.02",
        cwd=msgservice.folder,
        environment={"MSGSERVICE_NODE": msgservice.node} | environment,
    )


def heard(msgservice: Command, count: int = 1) -> list[Any]:
    """Return the contents of the next messages for billing."""
    told = msgservice("listen", "billing", "--count", str(count))
    return [json.loads(text) for text in told.out.splitlines()]


def settled(db: Any) -> list[str]:
    while True:
        cursor = db.cursor()
        cursor.execute("select state from msgservice_outbox order by id")
        states = [state for (state,) in cursor.fetchall()]
        db.rollback()
        if not {"waiting", "handed"} & {*states}:
            return states


# --- transactions


def test_an_order_and_its_message_or_neither(msgservice: Command, tmp_path: Path) -> None:
    write(PAGE, tmp_path, msgservice.node)
    added = msgservice(*shlex.split(line(PAGE, "receivers add"))[1:])
    assert 0 == added.code, added
    assert (0, "order 1\n", "") == python(tmp_path, *line(PAGE, "order.py espresso").split()[1:])
    code, out, err = python(tmp_path, *line(PAGE, "order.py nothing").split()[1:])
    assert (1, "", "there is no such item\n") == (code, out, err)
    with (
        closing(sqlite3.connect(tmp_path / "shop.db")) as db,
        relay(msgservice, line(PAGE, "relay --database")),
    ):
        assert [{"id": 1, "item": "espresso"}] == heard(msgservice)
        assert ["acknowledged"] == settled(db)
        assert [(1, "espresso")] == db.execute("select * from orders").fetchall()
        (became,) = [text for text in blocks(PAGE, "python") if "def became" in text]
        namespace: dict[str, Any] = {}
        exec(became, namespace)
        told = namespace["became"](OUTBOX, db, 1)
        assert ("acknowledged", {"billing": "acknowledged"}, None) == told
        assert "finished, and deleted since" == namespace["became"](OUTBOX, db, 2)
        (again,) = blocks(PAGE, "sql")
        db.execute("update msgservice_outbox set state = 'dead'")
        db.executescript(again)
        assert [{"id": 1, "item": "espresso"}] == heard(msgservice)
        assert ["acknowledged"] == settled(db)


@needs_server
def test_the_program_for_postgresql(msgservice: Command, tmp_path: Path) -> None:
    psycopg = pytest.importorskip("psycopg")
    write(PAGE, tmp_path, msgservice.node)
    msgservice("receivers", "add", "billing", "orders.>")
    with server() as made:
        there = {"SHOP_DB": made.dsn}
        words = line(PAGE, "book.py espresso").split()[1:]
        assert (0, "row 1\n", "") == python(tmp_path, *words, **there)
        with (
            relay(msgservice, line(PAGE, "relay --connect"), **there),
            closing(psycopg.connect(made.dsn)) as db,
        ):
            assert [{"item": "espresso"}] == heard(msgservice)
            assert ["acknowledged"] == settled(db)
        asyncs = [text for text in blocks(PAGE, "python") if "async def book" in text]
        program = "\n".join(
            [
                "import asyncio, os, psycopg",
                "from msgservice.outbox.table import OutboxTable",
                *asyncs,
                "async def main():",
                "    where = os.environ['SHOP_DB']",
                "    async with await psycopg.AsyncConnection.connect(where) as connection:",
                "        await book(connection, OutboxTable(), {'id': 2})",
                "asyncio.run(main())",
            ]
        )
        assert (0, "", "") == python(tmp_path, "-c", program, **there)
        with closing(psycopg.connect(made.dsn)) as db:
            bodies = db.execute("select body from msgservice_outbox order by id").fetchall()
            assert [b'{"item":"espresso"}', b'{"id":2}'] == [bytes(body) for (body,) in bodies]


@pytest_twisted.ensureDeferred
async def test_a_relay_in_a_twisted_program(msgservice: Command, tmp_path: Path) -> None:
    (block,) = [text for text in blocks(PAGE, "python") if "async def begin" in text]
    namespace: dict[str, Any] = {}
    exec(
        block.replace("tcp:127.0.0.1:7410", msgservice.node).replace(
            '"relay.db"', repr(str(tmp_path / "relay.db"))
        ),
        namespace,
    )
    with closing(sqlite3.connect(tmp_path / "shop.db")) as db:
        OUTBOX.create(db)
        relay = await namespace["begin"](reactor, f"sqlite:///{tmp_path / 'shop.db'}")
        OUTBOX.enqueue(db, "for.nobody", b"")
        db.commit()
        relay.wake()
        while ["nobody"] != [s for (s,) in db.execute("select state from msgservice_outbox")]:
            await deferLater(reactor, 0.01)
        await relay.stop()


@pytest.mark.parametrize("ends", ["commit", "rollback"])
def test_within_a_session_of_sqlalchemy(tmp_path: Path, ends: str) -> None:
    sqlalchemy, orm = pytest.importorskip("sqlalchemy"), pytest.importorskip("sqlalchemy.orm")
    engine = sqlalchemy.create_engine(f"sqlite:///{tmp_path / 'shop.db'}")
    with closing(sqlite3.connect(tmp_path / "shop.db")) as db:
        OUTBOX.create(db)
        with orm.Session(engine) as session:
            session.execute(sqlalchemy.text("create table if not exists orders(item text)"))
            session.execute(sqlalchemy.text("insert into orders values ('espresso')"))
            OUTBOX.enqueue(session.connection().connection.driver_connection, "a", b"")
            getattr(session, ends)()
        engine.dispose()
        counts = [
            db.execute(f"select count(*) from {table}").fetchone()[0]
            for table in ("orders", "msgservice_outbox")
        ]
    assert [ends == "commit"] * 2 == counts


DJANGO = """
import sys
import django
from django.conf import settings
settings.configure(DATABASES={"default": {
    "ENGINE": "django.db.backends.sqlite3", "NAME": "shop.db"}})
django.setup()
from django.db import connection, transaction
from msgservice.outbox.table import OutboxTable
outbox = OutboxTable()
with transaction.atomic():
    outbox.create(connection.connection)
    connection.cursor().execute("create table if not exists orders(item text)")
try:
    with transaction.atomic():
        connection.cursor().execute("insert into orders values ('espresso')")
        outbox.enqueue(connection.connection, "orders.new", {"id": 1})
        if sys.argv[1] == "fails":
            raise ValueError
except ValueError:
    pass
"""


def test_within_a_transaction_of_django(tmp_path: Path) -> None:
    pytest.importorskip("django")
    (tmp_path / "shop.py").write_text(DJANGO)
    for how, expected in (("fails", 0), ("works", 1)):
        assert (0, "", "") == python(tmp_path, "shop.py", how)
        with closing(sqlite3.connect(tmp_path / "shop.db")) as db:
            for table in ("orders", "msgservice_outbox"):
                assert (expected,) == db.execute(f"select count(*) from {table}").fetchone()


# --- Flask


def asked(where: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    """Return status and JSON of what a shop answers."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(
        where + path, data, {"content-type": "application/json"} | headers
    )
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        text = error.read()
        return error.code, json.loads(text) if text.startswith(b"{") else None


def serving(app: str, folder: Path) -> Any:
    pytest.importorskip("flask")
    return running(sys.executable, "-m", "flask", "--app", app, "run", "--port", "0", cwd=folder)


def address_of(shop: Daemon) -> str:
    return shop.wait_for(r"Running on (http://\S+)")[1]


def test_a_shop_in_flask_stores_orders_at_the_node(msgservice: Command, tmp_path: Path) -> None:
    write(FLASK, tmp_path, msgservice.node)
    assert "flask --app shop run" in (DOCS / FLASK).read_text()
    msgservice(*shlex.split(line(FLASK, "receivers add"))[1:])
    with serving("shop", tmp_path) as shop:
        where = address_of(shop)
        key = {"Idempotency-Key": "o-1"}
        first = asked(where, "/orders", {"item": "espresso"}, **key)
        again = asked(where, "/orders", {"item": "espresso"}, **key)
        other = asked(where, "/orders", {"item": "latte"})
        assert [201, 201, 201] == [status for status, _ in (first, again, other)]
        assert first == again != other
        reused = asked(where, "/orders", {"item": "latte"}, **key)
        assert (409, {"error": "this Idempotency-Key was another order's"}) == reused
        with serving("shop", tmp_path) as worker:  # another process of the server
            assert first == asked(address_of(worker), "/orders", {"item": "espresso"}, **key)
        assert [{"item": "espresso"}, {"item": "latte"}] == heard(msgservice, 2)


def test_the_shop_says_that_a_node_is_away(msgservice: Command, tmp_path: Path) -> None:
    written = write(FLASK, tmp_path, "tcp:127.0.0.1:1")["shop.py"]
    written.write_text(written.read_text().replace("timeout=5", "timeout=0.2"))
    with serving("shop", tmp_path) as shop:
        told = asked(address_of(shop), "/orders", {"item": "espresso"})
        assert (503, {"error": "not stored yet, send it again"}) == told


def test_a_shop_in_flask_with_an_outbox_of_its_own(msgservice: Command, tmp_path: Path) -> None:
    write(FLASK, tmp_path, msgservice.node)
    assert "`flask --app shop_db make-tables`" in (DOCS / FLASK).read_text()
    pytest.importorskip("flask")
    made = python(tmp_path, "-m", "flask", "--app", "shop_db", "make-tables")
    assert (0, "") == made[:2], made
    msgservice("receivers", "add", "billing", "orders.>")
    with serving("shop_db", tmp_path) as shop:
        where = address_of(shop)
        told = asked(where, "/orders", {"item": "espresso"})
        assert (201, {"order": 1, "row": 1}) == told
        assert 500 == asked(where, "/orders", {"item": "nothing"})[0]
        assert (200, {"state": "waiting", "receivers": {}}) == asked(where, "/messages/1")
        with (
            closing(sqlite3.connect(tmp_path / "shop.db")) as db,
            relay(msgservice, line(FLASK, "msgservice relay")),
        ):
            assert [{"id": 1, "item": "espresso"}] == heard(msgservice)
            assert ["acknowledged"] == settled(db)
        told = asked(where, "/messages/1")
        assert (200, {"state": "acknowledged", "receivers": {"billing": "acknowledged"}}) == told
        assert (404, {}) == asked(where, "/messages/2")


def test_the_request_of_the_page_is_what_curl_sends(msgservice: Command, tmp_path: Path) -> None:
    """With the `curl` of this machine, where that knows `--json` (7.82)."""
    words = shlex.split(line(FLASK, "curl"))
    known = subprocess.run(["curl", "--help", "all"], capture_output=True, text=True, check=False)
    if "--json" not in known.stdout:
        pytest.skip("this curl has no --json")
    write(FLASK, tmp_path, msgservice.node)
    with serving("shop", tmp_path) as shop:
        where = address_of(shop)
        here = [word.replace("http://127.0.0.1:5000", where) for word in words]
        done = subprocess.run(
            [*here, "--silent", "--write-out", "%{http_code}"],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=True,
        )
        assert done.stdout.endswith("201"), done.stdout
