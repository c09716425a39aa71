"""The offline audit: it finds each thing that does not add up, and shares nothing with the log.

The node's files are written by the real log; what is wrong with them is done with SQL.
"""

from __future__ import annotations

import ast
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import apsw
import pytest

import msgservice.recount
from msgservice.disk.mark import MARK_NAME
from msgservice.limits import BATCH_INDEX_BITS
from msgservice.log.sqlite import LOG_NAME
from msgservice.message import Status
from msgservice.records import DeadLetter, position_of
from msgservice.recount import FINAL, SHIFT, Recount, _Rows, recount
from tests.kit.logs import SMALL, Driver, exception, make_batch

Alter = Callable[..., None]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a log of two receivers, five batches and every kind of state."""
    log = Driver("sqlite", tmp_path / "data", SMALL).open()
    log.receivers(1, 2)
    both, one = log.log.audience([1, 2]), log.log.audience([1])
    batches = [
        make_batch(both, 1, [b"a", b"b", b"c"]),
        make_batch(one, 4, [b"d"], subject="orders.old"),
        make_batch(both, 5, [b"e"] * 20),
        make_batch(both, 1, [b"x", b"y"], sender="other"),
        make_batch(one, 25, [b"f"]),
    ]
    log.append(*batches)
    at = batches[2].first
    rows = [
        exception(1, at + 1, at + 2, Status.ACKNOWLEDGED),
        exception(1, at + 4, at + 4, Status.QUEUED, attempts=2),
        exception(1, at + 5, at + 5, Status.DEAD),
    ]
    letter = DeadLetter(
        receiver=1,
        position=at + 5,
        sender="shop",
        incarnation="i1",
        sequence=10,
        subject="orders.new",
        message=b"\x91\xc4\x01e",
        reason="no",
        attempts=3,
        at=1,
    )
    log.progress(
        1,
        at - 1,
        exceptions=rows,
        settled={Status.ACKNOWLEDGED: 6, Status.DEAD: 1},
        dead=[letter],
    )
    log.progress(2, batches[3].last, settled={Status.ACKNOWLEDGED: 25})
    log.close()
    return tmp_path / "data"


def look(folder: Path, mark: bytes | None = None) -> Recount:
    db = apsw.Connection(str(folder / LOG_NAME), flags=apsw.SQLITE_OPEN_READWRITE)
    try:
        return recount(db.execute, (folder / MARK_NAME).read_bytes() if mark is None else mark)
    finally:
        db.close()


@pytest.fixture
def alter(folder: Path) -> Iterator[Alter]:
    db = apsw.Connection(str(folder / LOG_NAME), flags=apsw.SQLITE_OPEN_READWRITE)

    def alter(text: str, *parameters: object) -> None:
        db.execute(text, parameters)
        assert db.changes(), text

    yield alter
    db.close()


def test_58_what_adds_up_is_counted_for_each_receiver(folder: Path) -> None:
    found = look(folder)
    assert found.discrepancies == []
    assert (found.batches, found.messages, found.waiting, found.unaccounted) == (5, 27, 0, 0)
    first, second = found.receivers
    assert (first.name, first.routed, first.open) == ("r1", 27, 20)
    assert first.settled == {"acknowledged": 6, "dead": 1}
    assert (second.name, second.routed, second.open) == ("r2", 25, 0)
    assert second.settled == {"acknowledged": 25}


WRONG = [
    ("delete from batch where number = 3", "batches 3 to 3 are missing"),
    ("delete from batch where number = 5", "batches 5 to 5 are missing"),
    ("update batch set size = size + 1 where number = 2", "batch 2: its row is not the one"),
    ("update batch set subject = 'x' where number = 2", "batch 2: its row is not the one"),
    ("update batch set expires_at = 7 where number = 4", "batch 4: its row is not the one"),
    ("update batch set flags = 'x' where number = 4", "batch 4: its row has values"),
    (
        "update batch set frame = zeroblob(length(frame)) where number = 1",
        "batch 1: its messages are not those",
    ),
    (
        "update batch set before_messages = before_messages + 1 where number = 3",
        "batch 3: by the rows before it its audience",
    ),
    ("update head set used = used + 1", "the head says"),
    ("update head set chain = chain + 1", "the head has another chain of batch 5"),
    ("update head set delayed_count = 3", "0 delayed rows of 0 bytes are there, the head says 3"),
    ("update audience set messages = messages - 1 where number = 1", "audience 1: its row says"),
    ("delete from audience where number = 2", "audience 2 has batches and no row"),
    ("update progress set cursor = cursor - 1 where receiver = 2", "receiver r2: 25 messages"),
    (
        "update progress set acknowledged_count = 5 where receiver = 1",
        "receiver r1: 27 messages were for it, 20 wait and 6 are settled: 1 unaccounted for",
    ),
    ("update progress set collected = 4 where receiver = 1", "receiver r1: 31 messages"),
    (
        "update progress set dead_count = 0, acknowledged_count = 7 where receiver = 1",
        "receiver r1: 1 messages are dead by their rows, 0 were counted",
    ),
    ("update progress set cursor = 900000 where receiver = 2", "receiver r2 is at 900000"),
    ("delete from progress where receiver = 2", "receiver r2 has no progress"),
    ("delete from receiver where number = 2", "receiver 2 has its progress and no row"),
    ("update exception set last = first + 9 where status = 3", "two final states of message"),
    ("update exception set status = 9 where status = 5", "cannot be"),
    ("update sender set floor = 3, ranges = x'90' where name = 'shop'", "not among those that it"),
    ("delete from sender where name = 'other'", "has messages and no row"),
    ("update batch set sequence = 2 where number = 2", "its messages 2 to 2 are there twice"),
    ("insert into run values (1, 27, 1, 0, 1, 1), (1, 26, 3, 0, 1, 1)", "27 to 27 are there twice"),
    ("insert into message_id values ('o-1', 196628)", "id 'o-1' is of the message 196628"),
    ("update dead set position = 900000", "dead letter 900000 is behind the newest batch"),
    (
        "insert into retained values ('a.b', 900000, 1, 0, x'', x'91')",
        "a.b: what is retained, 900000, is behind",
    ),
    (
        "insert into finished values (1, 1, 1, 5, 3, '', 1, null), (1, 1, 4, 6, 5, '', 1, null)",
        "two states, or none, of 4 at receiver 1",
    ),
    (
        "update audience set members = '[1' where number = 1",
        "audience 1: its members cannot be",
    ),
    (
        "update audience set members = '5' where number = 1",
        "audience 1: its members cannot be",
    ),
    ("update sender set ranges = x'dd' where name = 'shop'", "sender shop: its ranges cannot be"),
    (
        "update progress set cursor = 'x' where receiver = 1",
        "its receivers have values that",
    ),
    ("update batch set count = 'x' where number = 2", "its batches have values that no row has"),
    ("update batch set subject = x'ff' where number = 2", "batch 2: its row"),
    ("update message_id set position = 'x'", "its rows beside the batches have values"),
    ("insert into finished_id values ('o-1', 900, 1, 1)", "id 'o-1' is of a message of sender 900"),
    ("insert into finished values (900, 1, 1, 5, 3, '', 1, null)", "states are kept of sender 900"),
    ("insert into former values (1, 'shop', 'i1', 'h', 1)", "sender shop is kept as forgotten"),
    ("delete from meta where key = 'log_id'", "its head or its id is missing"),
]


def test_58_parts_of_batches_are_counted_as_one_by_one() -> None:
    """By the ranges or by the batches, whichever are fewer: the same."""
    rng = random.Random(58)
    for _ in range(300):
        rows = _Rows()
        positions: set[int] = set()
        for number in sorted(rng.sample(range(1, 30), rng.randint(0, 8))):
            count = rng.randint(1, 5)
            rows.add(number, count)
            positions |= {(number << SHIFT) + index for index in range(count)}
        ends = sorted(
            rng.sample(
                [(n << SHIFT) + i for n in range(31) for i in range(6)], 2 * rng.randint(0, 9)
            )
        )
        ranges = list(zip(ends[::2], ends[1::2], strict=True))
        least = rng.choice([0, *ends, *positions])
        expected = {at for at in positions for low, high in ranges if low <= at <= high}
        assert rows.inside(ranges) == len(expected)
        assert rows.inside(ranges, least) == len({at for at in expected if at >= least})
        for low, high in ranges:
            assert rows.between(low, high) == len({at for at in positions if low <= at <= high})


@pytest.mark.parametrize(("text", "said"), WRONG)
def test_58_what_does_not_add_up_is_said(folder: Path, alter: Alter, text: str, said: str) -> None:
    if text.startswith("update message_id"):
        alter("insert into message_id values ('o-1', 65536)")
    alter(text)
    found = look(folder).discrepancies
    assert [sentence for sentence in found if said in sentence], found


@pytest.mark.parametrize(
    ("table", "which", "rows"),
    [
        ("dead", "true", 1),
        ("exception", "status = 1", 3),
        ("exception", "status = 3", 3),
        ("message_id", "id = 'o-2'", 2),
    ],
)
def test_58_a_row_that_is_lost_is_unaccounted_for(
    folder: Path, alter: Alter, table: str, which: str, rows: int
) -> None:
    """Lost as by a page of an earlier moment: no statement has deleted it."""
    for name in ("o-1", "o-2"):
        alter("insert into message_id values (?, 65536)", name)
    assert [] == look(folder).discrepancies
    db = apsw.Connection(str(folder / LOG_NAME), flags=apsw.SQLITE_OPEN_READWRITE)
    db.execute(f"drop trigger {table}_goes")
    db.close()
    alter(f"delete from {table} where {which}")
    found = look(folder)
    assert f"{table} has {rows - 1} rows, and {rows} were written" in found.discrepancies
    assert found.unaccounted >= 1


def test_58_another_row_in_the_place_of_one_is_unaccounted_for(folder: Path, alter: Alter) -> None:
    alter("update exception set attempts = attempts + 1 where status = 1")
    found = look(folder)
    assert ["exception has other rows than those that were written"] == found.discrepancies
    assert 1 == found.unaccounted


def test_58_rows_are_counted_however_they_come_and_go(folder: Path) -> None:
    log = Driver("sqlite", folder, SMALL).open()
    at = position_of(3)
    for attempts in (3, 4):  # each replaces the row before it
        log.progress(
            1, at - 1, exceptions=[exception(1, at + 4, at + 4, Status.QUEUED, attempts=attempts)]
        )
    log.append(
        make_batch(log.log.audience([1]), 26, [b"g", b"h"], ids=((0, "o-1"), (1, "o-1"))),
        make_batch(log.log.audience([1]), 28, [b"g"], ids=((0, "o-1"),)),
    )
    log.close()
    assert [] == look(folder).discrepancies


def test_58_a_log_that_went_back_is_seen_by_its_mark(folder: Path, alter: Alter) -> None:
    entries = "update progress set cursor = cursor - 1 where receiver = -1"
    alter(entries)
    assert "the mark knows" in look(folder).discrepancies[0]
    assert look(folder, mark=b"").discrepancies == ["the mark has no valid record"]
    alter("update meta set value = 'another' where key = 'log_id'")
    assert "the mark belongs to another log" in look(folder).discrepancies


def test_58_no_more_is_said_than_anybody_reads(folder: Path, alter: Alter) -> None:
    for number in range(1, 200):
        alter("insert into message_id values ('o', ?)", position_of(900 + number))
    assert len(look(folder).discrepancies) == msgservice.recount.FOUND_MAX


def test_58_it_shares_nothing_with_the_node() -> None:
    tree = ast.parse(Path(msgservice.recount.__file__).read_text())
    imported = {
        node.module if isinstance(node, ast.ImportFrom) else name.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in node.names
    }
    assert not [name for name in imported if name is None or name.startswith("msgservice")]


def test_58_its_own_numbers_are_those_of_the_log() -> None:
    assert SHIFT == BATCH_INDEX_BITS
    assert {int(status): status.name.lower() for status in Status if status.final} == FINAL


def test_58_who_was_removed_is_in_no_account_and_no_fault(folder: Path) -> None:
    log = Driver("sqlite", folder, SMALL).open()
    log.append(removed=[1])
    log.append(make_batch(log.log.audience([2]), 26, [b"g"]))
    log.close()
    found = look(folder)
    assert found.discrepancies == []
    assert [(one.name, one.open) for one in found.receivers] == [("r2", 1)]
