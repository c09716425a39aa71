"""What a relay says to the database, step by step: real SQLite, no reactor, no node."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from msgservice import Limits, Promise
from msgservice.core.runs import Run
from msgservice.errors import OutboxTableTaken
from msgservice.message import decode_messages
from msgservice.outbox.fates import Fate
from msgservice.outbox.parcels import TIME_GRAIN, Packing, Row
from msgservice.outbox.relay import sqlite_at
from msgservice.outbox.rows import DELETED_ROWS, RelayRows, Step, Taken
from msgservice.outbox.table import OutboxTable

TABLE = OutboxTable()
MINE, OTHER = "mine", "other"
DAY = 24 * 3600 * 1000
SIZE = 1024 * 1024


class Sql(str):
    """An expression, where a value could not be a parameter."""


class World:
    """A database, and relays of its table that come and go."""

    def __init__(self, path: Path) -> None:
        self.connect = sqlite_at(f"sqlite:///{path}")
        self.db = sqlite3.connect(path)
        TABLE.create(self.db)
        self.open: list[RelayRows] = []

    def relay(self, identity: str = MINE, **options: Any) -> RelayRows:
        options = {"keep": DAY, "keep_failed": 2 * DAY} | options
        connect = options.pop("connect", self.connect)
        rows = RelayRows(connect, TABLE, identity=identity, **options)
        self.open.append(rows)
        return rows

    def enqueue(self, *bodies: bytes, subject: str = "a", **options: Any) -> None:
        for body in bodies:
            TABLE.enqueue(self.db, subject, body, **options)
        self.db.commit()

    def all(self, what: str) -> list[Any]:
        found = self.db.execute(f"select {what} from msgservice_outbox order by id").fetchall()
        return [row[0] if len(row) == 1 else row for row in found]

    def close(self) -> None:
        for rows in self.open:
            rows.close()
        self.db.close()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path / "shop.db")
    yield made
    made.close()


def step(kept: int = 0, given: int | None = None, **options: Any) -> Step:
    options = {"now": 10 * DAY, "rows": 100, "size": SIZE, "max_batch": SIZE} | options
    return Step(kept=kept, next=(kept if given is None else given) + 1, **options)


def bodies(run: Run) -> list[bytes]:
    return [message.body for message in decode_messages(run.messages)]


def taken_bodies(taken: Taken) -> list[list[bytes]]:
    return [bodies(parcel.run) for parcel in taken.parcels]


def test_rows_are_taken_by_subject_in_order_and_each_has_its_sequence(world: World) -> None:
    for number in range(6):
        world.enqueue(b"%d" % number, subject="ab"[number % 2])
    taken = world.relay().step(step())
    assert [[b"0", b"2", b"4"], [b"1", b"3", b"5"]] == taken_bodies(taken)
    assert [("handed", n) for n in (1, 4, 2, 5, 3, 6)] == world.all("state, sequence")
    assert (6, False) == (taken.rows, taken.has_more)


def test_a_step_takes_no_more_rows_and_bytes_than_it_may(world: World) -> None:
    relay = world.relay()
    world.enqueue(*[b"x" * 1000] * 10)
    few = relay.step(step(rows=4))
    assert (4, True) == (few.rows, few.has_more)
    small = relay.step(step(kept=4, size=2500))
    assert (2, True) == (small.rows, small.has_more)
    one = relay.step(step(kept=6, size=1))
    assert 1 == one.rows
    assert 0 == relay.step(step(kept=7, rows=0)).rows
    assert ["handed"] * 7 + ["waiting"] * 3 == world.all("state")


def test_an_order_among_options_of_a_subject_stays(world: World) -> None:
    world.enqueue(b"1")
    world.enqueue(b"2", to=["billing"])
    world.enqueue(b"3", b"4")
    world.enqueue(b"5", idempotency_key="k")
    world.enqueue(b"6", idempotency_key="k")
    world.enqueue(b"7", headers={"n": "1"}, id="o-7")
    taken = world.relay().step(step())
    assert [[b"1"], [b"2"], [b"3", b"4"], [b"5"], [b"6"], [b"7"]] == taken_bodies(taken)
    assert list(range(1, 8)) == world.all("sequence")
    last = taken.parcels[-1].run
    assert {0: "o-7"} == last.source.ids
    (message,) = decode_messages(last.messages)
    assert ({"n": "1"}, "o-7") == (message.headers, message.id)


def test_times_count_from_the_last_that_travels_together(world: World) -> None:
    for ttl in (10, 10, 10):
        TABLE.enqueue(world.db, "a", b"", ttl=ttl, delay=5)
    TABLE.enqueue(world.db, "b", b"", promise=Promise(within=7))
    first = 1000 * TIME_GRAIN
    for row, at in ((1, first), (2, first + TIME_GRAIN - 1), (3, first + TIME_GRAIN), (4, first)):
        world.db.execute("update msgservice_outbox set enqueued_at = ? where id = ?", (at, row))
    world.db.commit()
    runs = [parcel.run for parcel in world.relay().step(step()).parcels]
    assert [2, 1, 1] == [run.count for run in runs]
    assert [first + TIME_GRAIN + 9_999, first + TIME_GRAIN + 10_000, None] == [
        run.expires_at for run in runs
    ]
    assert [first + TIME_GRAIN + 4_999, first + TIME_GRAIN + 5_000, None] == [
        run.due_at for run in runs
    ]
    assert first + 7000 == runs[2].promised_until


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("subject", "a..b", "bad subject"),
        ("subject", "$node.info", "the node's own"),
        ("options", "no json", "malformed"),
        ("options", '{"colour": "red"}', "colour"),
        ("options", '{"ttl": -1}', "ttl"),
        ("options", '{"promise": {"within": 0}}', "within"),
        ("options", '{"promise": {"within": 5}, "idempotency_key": "k"}', "promise"),
        ("headers", '{"n": 1}', "str"),
        ("body", b"x" * SIZE, "message of"),
        ("body", b"x" * (SIZE + 1), "message of"),
        ("headers", " " * (8 * SIZE + 8), "message of"),
        ("enqueued_at", "2026-11-30 02:22:23", "ms since the epoch"),
        ("enqueued_at", b"1", "ms since the epoch"),
        ("subject", Sql("cast(x'ff' as text)"), "utf-8"),
        ("headers", Sql("cast(x'7b22ff227d' as text)"), "utf-8"),
        ("options", Sql("cast(x'ff' as text)"), "malformed"),
    ],
)
def test_a_row_of_somebody_elses_that_cannot_be_sent_says_why(
    world: World, column: str, value: Any, reason: str
) -> None:
    """Rows may be written by SQL of one's own, and nothing there has looked at them."""
    world.enqueue(b"before", b"wrong", b"behind")
    said, given = (value, ()) if isinstance(value, Sql) else ("?", (value,))
    world.db.execute(f"update msgservice_outbox set {column} = {said} where id = 2", given)
    world.db.commit()
    relay = world.relay()
    taken = relay.step(step(size=16 * SIZE))
    found, refused = taken_bodies(taken), taken.refused
    if taken.has_more:  # what is not even read is a batch's end
        taken = relay.step(step(kept=1, size=16 * SIZE))
        found, refused = found + taken_bodies(taken), refused + taken.refused
    assert [b"before", b"behind"] == [one for run in found for one in run]
    assert ["handed", "refused", "handed"] == world.all("state")
    assert reason in world.all("reason")[1]
    assert [None, 10 * DAY, None] == world.all("ended_at")
    assert 1 == refused


@pytest.mark.parametrize(("number", "body"), [("5", b"5"), ("-5", b"-5"), ("1.5", b"1.5")])
def test_a_body_that_sql_wrote_as_a_number_is_its_digits(
    world: World, number: str, body: bytes
) -> None:
    world.db.execute(
        f"insert into msgservice_outbox(enqueued_at, subject, body) values (1.5, 'a', {number})"
    )
    world.db.commit()
    assert [[body]] == taken_bodies(world.relay().step(step()))


def test_a_body_that_is_no_utf_8_is_what_it_is(world: World) -> None:
    world.db.execute(
        "insert into msgservice_outbox(enqueued_at, subject, body)"
        " values (1, 'a', cast(x'ff' as text))"
    )
    world.db.commit()
    assert [[b"\xff"]] == taken_bodies(world.relay().step(step()))


def test_what_is_too_large_is_refused_unread(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    pack = Packing.pack

    def packing(self: Packing, rows: Sequence[Row], *more: Any) -> Any:
        read.extend(len(row.body) for row in rows)
        return pack(self, rows, *more)

    monkeypatch.setattr(Packing, "pack", packing)
    world.enqueue(b"", b"", b"good", b"")
    world.db.execute(
        "update msgservice_outbox set body = zeroblob(?) where body = x''", (2 * SIZE,)
    )
    world.db.commit()
    relay = world.relay()
    taken = relay.step(step())
    assert (2, True) == (taken.refused, taken.has_more)
    assert 1 == relay.step(step(kept=1)).refused
    assert [4] == read
    assert ["refused", "refused", "handed", "refused"] == world.all("state")


@pytest.mark.parametrize("at", [2**63 - 1, 1_800_000_000_000_000_000, -(2**63)])
def test_no_row_was_enqueued_later_than_now(world: World, at: int) -> None:
    """Nanoseconds, say: no frame could carry the time of its promise."""
    world.enqueue(b"", promise=Promise(within=5))
    world.enqueue(b"", ttl=6, delay=5)
    world.db.execute("update msgservice_outbox set enqueued_at = ?", (at,))
    world.db.commit()
    now = 0 if at < 0 else 10 * DAY
    runs = [parcel.run for parcel in world.relay().step(step()).parcels]
    assert (now + 5000, now + 6000) == (runs[0].promised_until, runs[1].expires_at)
    assert now + 5000 == runs[1].due_at


def test_a_body_that_sql_wrote_as_text_is_its_utf_8(world: World) -> None:
    world.db.execute(
        "insert into msgservice_outbox(enqueued_at, subject, body) values (0, 'a', 'größer')"
    )
    world.db.commit()
    assert [["größer".encode()]] == taken_bodies(world.relay().step(step()))


# --- what a restart finds


def test_what_the_file_has_not_kept_waits_again_and_what_it_has_does_not(world: World) -> None:
    world.enqueue(*[b"%d" % number for number in range(6)])
    world.relay().step(step(rows=6))
    again = world.relay().step(step(kept=4, given=6))
    assert [[b"4", b"5"]] == taken_bodies(again)
    assert [1, 2, 3, 4, 7, 8] == world.all("sequence")


def test_a_row_that_commits_behind_a_higher_id_is_not_passed_over(world: World) -> None:
    relay = world.relay()
    world.enqueue(b"5", b"6")
    world.db.execute("update msgservice_outbox set id = id + 4")
    world.db.commit()
    assert [[b"5", b"6"]] == taken_bodies(relay.step(step()))
    world.db.execute(
        "insert into msgservice_outbox(id, enqueued_at, subject, body) values (2, 0, 'a', x'32')"
    )
    world.db.commit()
    assert [[b"2"]] == taken_bodies(relay.step(step(kept=2)))


def test_what_was_not_handed_over_waits_again_without_a_restart(world: World) -> None:
    relay = world.relay()
    world.enqueue(b"1", b"2", b"3")
    relay.step(step(rows=2))
    again = relay.step(step(given=2, again=True))
    assert [[b"1", b"2", b"3"]] == taken_bodies(again)
    assert [3, 4, 5] == world.all("sequence")


def test_another_outbox_is_refused_and_may_take_over(world: World) -> None:
    mine = world.relay()
    world.enqueue(b"1", b"2", b"3")
    mine.step(step(rows=2))
    mine.step(step(kept=2, rows=0, fates=[Fate(1, 1, "acknowledged")]))
    with pytest.raises(OutboxTableTaken, match="is relayed with another outbox file: stop that"):
        world.relay(OTHER).step(step())
    assert ["acknowledged", "handed", "waiting"] == world.all("state")
    taken = world.relay(OTHER, take_over=True).step(step())
    assert [[b"2", b"3"]] == taken_bodies(taken)
    assert (1, []) == (taken.taken_over, taken.older)
    with pytest.raises(OutboxTableTaken, match="was taken over by a relay with another outbox"):
        mine.step(step(kept=2, fates=[Fate(2, 2, "dead", None, "of before")]))
    assert ["acknowledged", "handed", "handed"] == world.all("state")
    with pytest.raises(OutboxTableTaken, match="was taken over by a relay with another outbox"):
        mine.step(step(kept=2))  # it has claimed it anew


def test_a_copy_of_the_file_is_found_out(world: World) -> None:
    mine = world.relay()
    world.enqueue(b"1", b"2")
    mine.step(step(rows=1))
    world.relay().step(step(kept=1))
    with pytest.raises(OutboxTableTaken, match="by a copy of this outbox file"):
        mine.step(step(kept=1, fates=[Fate(1, 1, "acknowledged")]))
    with pytest.raises(OutboxTableTaken, match="by a copy of this outbox file"):
        mine.step(step(kept=1))


def test_an_older_copy_of_the_file_is_told_and_loses_nothing(world: World) -> None:
    mine = world.relay()
    world.enqueue(b"1", b"2", b"3")
    mine.step(step())
    mine.step(step(kept=3, fates=[Fate(2, 2, "acknowledged")]))
    taken = world.relay().step(step(kept=1))
    assert [[b"3"]] == taken_bodies(taken)
    (told,) = taken.older
    assert "ends with 1 and has ended with 3: it is an older copy" in told


def test_an_older_copy_of_the_table_is_told(world: World) -> None:
    world.relay().step(step())
    world.enqueue(b"1")
    taken = world.relay().step(step(kept=5))
    (told,) = taken.older
    assert "the table ends with 0, and the outbox file with 5" in told
    assert [6] == world.all("sequence")


def test_a_table_that_is_put_back_under_a_relay_is_an_older_copy(world: World) -> None:
    relay = world.relay()
    relay.step(step())
    (before,) = world.db.execute("select assigned from msgservice_outbox_relay").fetchone()
    world.enqueue(b"1", b"2")
    relay.step(step())
    relay.close()  # its server fails, and one takes its place that has not the last commit
    world.db.execute("update msgservice_outbox_relay set assigned = ?", (before,))
    world.db.execute("update msgservice_outbox set state = 'waiting', sequence = null")
    world.db.commit()
    taken = relay.step(step(kept=2))
    assert [[b"1", b"2"]] == taken_bodies(taken)
    (told,) = taken.older
    assert "it is an older copy" in told


def test_tables_that_are_made_anew_under_a_relay_are_its_own(world: World) -> None:
    """By a migration, say, of which the connection of the relay sees nothing but other rows."""
    relay = world.relay()
    world.enqueue(b"1", b"2")
    relay.step(step())
    for table in ("msgservice_outbox", "msgservice_outbox_relay"):
        world.db.execute(f"drop table {table}")
    TABLE.create(world.db)
    world.enqueue(b"3")
    taken = relay.step(step(kept=2))
    assert [[b"3"]] == taken_bodies(taken)
    assert [("handed", 3)] == world.all("state, sequence")
    assert taken.taken_over is None


def test_a_table_that_is_put_back_in_place_under_a_relay_is_an_older_copy(world: World) -> None:
    relay = world.relay()
    relay.step(step())
    world.enqueue(b"1", b"2")
    with sqlite3.connect(":memory:") as copy:
        world.db.backup(copy)
        relay.step(step())
        copy.backup(world.db)
    copy.close()
    taken = relay.step(step(kept=2))
    assert [[b"1", b"2"]] == taken_bodies(taken)
    (told,) = taken.older
    assert "it is an older copy" in told


def test_rows_that_nobody_knows_who_has_handed_over_wait_again(world: World) -> None:
    """Their sequences are another file's: they would have the fates of other messages."""
    other = world.relay(OTHER)
    world.enqueue(b"1", b"2")
    other.step(step())
    other.close()
    world.db.execute("delete from msgservice_outbox_relay")
    world.db.commit()
    taken = world.relay().step(step(kept=5))
    assert [[b"1", b"2"]] == taken_bodies(taken)
    assert 2 == taken.taken_over


def test_the_row_of_a_relay_that_was_deleted_under_it_is_written_anew(world: World) -> None:
    mine = world.relay()
    world.enqueue(b"1", b"2")
    mine.step(step())
    world.db.execute("delete from msgservice_outbox_relay")
    world.db.commit()
    fates = [Fate(1, 1, "acknowledged")]
    taken = mine.step(step(kept=2, fates=fates))
    assert ([], None) == (taken.parcels, taken.taken_over)
    assert ["acknowledged", "handed"] == world.all("state")


def test_a_row_that_cannot_be_marked_is_not_handed_over(world: World) -> None:
    """It would wait as before, and be handed over with every look."""
    world.enqueue(b"1", b"2")
    world.db.execute(
        "create trigger kept before update on msgservice_outbox when old.id = 2"
        " begin select raise(ignore); end"
    )
    world.db.commit()
    relay = world.relay()
    with pytest.raises(PermissionError, match="1 of 2 rows could not be marked as handed over"):
        relay.step(step())
    assert ["waiting", "waiting"] == world.all("state")
    world.db.execute("drop trigger kept")
    world.db.commit()
    assert [[b"1", b"2"]] == taken_bodies(relay.step(step()))


def test_a_connection_that_makes_bytes_of_text_will_do(world: World) -> None:
    def connect() -> sqlite3.Connection:
        connection = world.connect()
        connection.text_factory = bytes
        return connection

    world.enqueue(b"1", headers={"n": "1"}, to=["billing"])
    relay = world.relay(connect=connect)
    assert [[b"1"]] == taken_bodies(relay.step(step()))
    relay.step(step(kept=1, fates=[Fate(1, 1, "dead", '{"billing":"dead"}', "no")]))
    world.db.text_factory = bytes
    fate = TABLE.fate(world.db, 1)
    assert fate is not None
    assert ("dead", {"billing": "dead"}, "no") == fate[:3]


@pytest.mark.parametrize(
    "given",
    [
        {"state": "handed"},
        {"state": "Waiting"},
        {"state": "", "sequence": 1},
    ],
)
def test_a_row_in_a_state_that_no_relay_would_look_at_is_refused_by_the_database(
    world: World, given: dict[str, Any]
) -> None:
    row = {"enqueued_at": 1, "subject": "a", "body": b"1"} | given
    names, marks = ", ".join(row), ", ".join(f":{name}" for name in row)
    with pytest.raises(sqlite3.IntegrityError, match="CHECK"):
        world.db.execute(f"insert into msgservice_outbox({names}) values ({marks})", row)


def test_a_file_that_was_replaced_is_opened_anew(world: World, tmp_path: Path) -> None:
    """By a copy of before: the relay would look at what nobody writes to any more."""
    shop, copy = tmp_path / "shop.db", tmp_path / "copy.db"
    relay = world.relay()
    relay.step(step())
    world.enqueue(b"1")
    shutil.copy(shop, copy)
    assert [[b"1"]] == taken_bodies(relay.step(step()))
    world.db.close()
    copy.replace(shop)
    world.db = sqlite3.connect(shop)
    world.enqueue(b"2")
    taken = relay.step(step(kept=1))
    assert [[b"1", b"2"]] == taken_bodies(taken)
    (told,) = taken.older
    assert "it is an older copy" in told
    shop.unlink()
    with pytest.raises(FileNotFoundError):
        relay.step(step(kept=3))


# --- fates


def test_fates_are_written_as_ranges_and_once(world: World) -> None:
    relay = world.relay()
    world.enqueue(*[b"%d" % number for number in range(5)])
    relay.step(step())
    told = '{"billing":"acknowledged"}'
    fates = [
        Fate(1, 3, "acknowledged", told),
        Fate(4, 4, "dead", '{"billing":"dead"}', "billing: no such customer"),
    ]
    relay.step(step(kept=5, fates=fates))
    expected: list[Any] = [("acknowledged", told, None, 10 * DAY)] * 3
    expected += [("dead", '{"billing":"dead"}', "billing: no such customer", 10 * DAY)]
    expected += [("handed", None, None, None)]
    assert expected == world.all("state, receivers, reason, ended_at")
    relay.step(step(kept=5, now=11 * DAY, fates=[Fate(1, 4, "unknown", None, "again")]))
    assert expected == world.all("state, receivers, reason, ended_at")


def test_finished_rows_go_after_their_time_and_failed_ones_later(world: World) -> None:
    relay = world.relay()
    world.enqueue(b"1", b"2", b"3", b"4")
    relay.step(step())
    relay.step(step(kept=4, fates=[Fate(1, 2, "acknowledged"), Fate(3, 3, "dead")]))
    for now, left in ((10, 4), (11, 4), (11.5, 2), (12, 2), (12.5, 1), (99, 1)):
        relay.step(step(kept=4, now=int(now * DAY), deletes=True))
        assert left == len(world.all("id")), now
    assert ["handed"] == world.all("state")


def test_finished_rows_are_deleted_some_at_a_time(world: World) -> None:
    relay = world.relay()
    world.enqueue(*[b""] * (DELETED_ROWS + 1))
    relay.step(step(rows=DELETED_ROWS + 1))
    last = DELETED_ROWS + 1
    relay.step(step(kept=last, fates=[Fate(1, last, "acknowledged")]))
    assert [DELETED_ROWS, 1, 0] == [
        relay.step(step(kept=last, now=20 * DAY, deletes=True)).deleted for _ in range(3)
    ]


def test_rows_that_are_not_kept_go_with_their_fate(world: World) -> None:
    relay = world.relay(keep=0, keep_failed=None)
    world.enqueue(b"1", b"2")
    relay.step(step())
    relay.step(step(kept=2, fates=[Fate(1, 1, "acknowledged"), Fate(2, 2, "dead")]))
    relay.step(step(kept=2, now=1000 * DAY, deletes=True))
    assert [("dead", 2)] == world.all("state, id")


def test_a_row_that_failed_may_be_made_to_wait_again(world: World) -> None:
    """The statement is on the page."""
    relay = world.relay()
    world.enqueue(b"1")
    relay.step(step())
    relay.step(step(kept=1, fates=[Fate(1, 1, "dead", None, "no")]))
    world.db.execute(
        "update msgservice_outbox set state = 'waiting', sequence = null, receivers = null,"
        " reason = null, ended_at = null where state = 'dead'"
    )
    world.db.commit()
    assert [[b"1"]] == taken_bodies(relay.step(step(kept=1)))
    assert [("handed", 2)] == world.all("state, sequence")


def test_rows_that_were_handed_over_are_listed_a_page_at_a_time(world: World) -> None:
    relay = world.relay()
    world.enqueue(b"1", b"2", b"3")
    relay.step(step())
    relay.step(step(kept=3, fates=[Fate(2, 2, "acknowledged")]))
    assert [1, 3] == relay.step(step(kept=3, looks_from=1)).looked_at
    assert [3] == relay.step(step(kept=3, looks_from=2)).looked_at


# --- a database that fails


class Failing(sqlite3.Connection):
    """A connection that fails at a commit: before it, or behind it."""

    fails: str = ""

    def commit(self) -> None:
        if self.fails == "before" and self.in_transaction:
            raise sqlite3.OperationalError("disk I/O error")
        in_transaction = self.in_transaction
        super().commit()
        if self.fails == "behind" and in_transaction:
            raise sqlite3.OperationalError("the answer was lost")


@pytest.mark.parametrize("fails", ["before", "behind"])
def test_a_commit_whose_outcome_is_unknown_is_found_out(
    world: World, tmp_path: Path, fails: str
) -> None:
    made: list[Failing] = []

    def connect() -> sqlite3.Connection:
        made.append(sqlite3.connect(tmp_path / "shop.db", isolation_level=None, factory=Failing))
        return made[-1]

    relay = world.relay(connect=connect)
    relay.step(step())
    world.enqueue(b"1", b"2")
    made[0].fails = fails
    with pytest.raises(sqlite3.OperationalError):
        relay.step(step())
    assert ["handed" if fails == "behind" else "waiting"] * 2 == world.all("state")
    taken = relay.step(step())
    assert 2 == len(made)
    assert [[b"1", b"2"]] == taken_bodies(taken)
    assert [1, 2] == world.all("sequence")
    world.enqueue(b"3")
    assert [[b"3"]] == taken_bodies(relay.step(step(kept=2)))


def test_a_table_that_is_not_there_is_made_only_where_that_is_asked_for(tmp_path: Path) -> None:
    connect: Callable[[], Any] = lambda: sqlite3.connect(tmp_path / "new.db")  # noqa: E731
    options: dict[str, Any] = {"identity": MINE, "keep": None, "keep_failed": None}
    with pytest.raises(sqlite3.OperationalError, match="no such table"):
        RelayRows(connect, TABLE, **options).step(step())
    relay = RelayRows(connect, TABLE, creates=True, **options)
    assert 0 == relay.step(step()).rows
    relay.close()


def test_the_limits_of_the_table_bind_its_relay(world: World) -> None:
    world.enqueue(*[b"x" * 3000] * 4)
    table = OutboxTable(limits=Limits(max_batch=8192))
    relay = RelayRows(world.connect, table, identity=MINE, keep=None, keep_failed=None)
    world.open.append(relay)
    assert [2, 2] == [len(run) for run in taken_bodies(relay.step(step()))]


@pytest.mark.parametrize("take_over", [False, True])
def test_a_file_of_another_table_is_refused_and_both_are_named(
    world: World, take_over: bool
) -> None:
    world.enqueue(b"0", b"1")
    world.relay(OTHER).step(step(rows=1))
    before = world.all("state, sequence")
    said = "msgservice_outbox cannot be relayed .* of the table orders_outbox: each table needs"
    with pytest.raises(OutboxTableTaken, match=said):
        world.relay(take_over=take_over).step(step(kept=7, relayed="orders_outbox"))
    assert before == world.all("state, sequence")
    # One that nobody has relayed yet is left as it is, too.
    world.db.execute("delete from msgservice_outbox_relay")
    world.db.commit()
    with pytest.raises(OutboxTableTaken, match=said):
        world.relay(take_over=take_over).step(step(kept=7, relayed="orders_outbox"))
    assert before == world.all("state, sequence")


def test_a_table_that_was_renamed_is_still_the_one_of_its_file(world: World) -> None:
    world.enqueue(b"0", b"1")
    world.relay().step(step(rows=1))
    taken = world.relay().step(step(kept=1, relayed="as_it_was_called"))
    assert [[b"1"]] == taken_bodies(taken)
