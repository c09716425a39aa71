"""Runs that wait until they are due, in every log: SEMANTICS 15 and 16, DELIVERY 36 and 43."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from msgservice.errors import ContentChanged, LogDamaged, LogFull
from msgservice.limits import Limits as AnyLimits
from msgservice.message import Status
from msgservice.records import (
    NOBODY,
    NOT_YET,
    Batch,
    Cancel,
    Known,
    Piece,
    RefusedBatch,
    Resume,
    StatusFrom,
    hash_of,
)
from tests.kit import door
from tests.kit.limits import Limits
from tests.kit.logs import NOW, SMALL, ContractDriver, Driver, make_batch, numbers

KINDS = ["sqlite", "memory", "dicts"]
Open = Callable[..., ContractDriver]
LATER = NOW + 60_000
BEGIN = (0, 0)


@pytest.fixture(params=KINDS)
def open_log(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    opened: list[ContractDriver] = []

    def open_one(limits: AnyLimits = SMALL) -> ContractDriver:
        log = ContractDriver(request.param, tmp_path / "log", limits).open()
        opened.append(log)
        return log

    yield open_one
    for log in opened:
        log.close()


def delayed(sequence: int = 1, *bodies: bytes, due_at: int = LATER, **more: Any) -> Batch:
    return make_batch(NOBODY, sequence, bodies or (b"a",), due_at=due_at, **more)


def due(log: ContractDriver, to: int = LATER, after: tuple[int, int] = BEGIN) -> list[Batch]:
    return log.wait(log.log.due(to, after, 100))


def move(log: ContractDriver, members: tuple[int, ...] = (1,), to: int = LATER) -> list[Batch]:
    batches = due(log, to)
    for batch in batches:
        if not batch.addressed:
            batch.audience = log.log.audience(members)
    return log.appended(due=batches, now=to).stored


def test_43_a_run_that_is_due_later_is_accepted_and_has_no_number(open_log: Open) -> None:
    log = open_log()
    log.receivers(1)
    batch = delayed(1, b"a", b"b")
    appended = log.appended(batch)
    assert [batch] == appended.outcomes
    assert (0, []) == (batch.number, appended.stored)
    assert LATER == log.log.next_due()
    assert batch.size == log.log.room().used
    assert [] == due(log, LATER - 1)
    (found,) = due(log)
    assert (batch.messages, batch.subject, 1, 2) == (
        found.messages,
        found.subject,
        found.sequence,
        found.count,
    )
    for again in (False, True):
        if again:
            log.reopen()
        assert Resume(3, (), (1, 2, batch.crc)) == log.resume("shop", "i1")
        assert (LATER, batch.size) == (log.log.next_due(), log.log.room().used)
    assert [] == log.wait(log.log.audit())


def test_43_what_is_due_goes_to_the_end_in_the_order_of_due_and_then_of_acceptance(
    open_log: Open,
) -> None:
    log = open_log()
    log.receivers(1)
    log.append(
        delayed(1, b"late", due_at=LATER + 5),
        delayed(2, b"first"),
        delayed(3, b"second"),
        delayed(4, b"early", due_at=LATER - 9),
        delayed(5, b"third"),
    )
    audience = log.log.audience([1])
    log.append(make_batch(audience, 6))
    stored = move(log)
    assert [4, 2, 3, 5] == [batch.sequence for batch in stored]
    assert [2, 3, 4, 5] == [batch.number for batch in stored]
    assert [6, 4, 2, 3, 5] == [batch.sequence for batch in log.read([audience])]
    assert LATER + 5 == log.log.next_due()
    assert [] == due(log)
    log.progress(1, stored[-1].last, settled={3: 5})
    assert [0] == log.unaccounted()
    log.reopen()
    assert LATER + 5 == log.log.next_due()
    assert [1] == [batch.sequence for batch in move(log, to=LATER + 5)]
    assert log.log.next_due() is None
    assert [] == log.wait(log.log.audit())


def test_a_page_of_what_is_due_goes_on_behind_the_one_before(open_log: Open) -> None:
    log = open_log()
    log.append(*[delayed(n, due_at=LATER + n // 3) for n in range(1, 10)])
    found, after = [], BEGIN
    while page := log.wait(log.log.due(LATER + 3, after, 2)):
        found += [batch.sequence for batch in page]
        after = (page[-1].due_at, page[-1].delayed_id)
    assert [*range(1, 10)] == found


def test_43_what_comes_again_is_known_while_it_waits_and_when_it_was_moved(open_log: Open) -> None:
    log = open_log()
    log.receivers(1)
    log.append(delayed(1, b"a", b"b"))
    whole = log.append(delayed(1, b"a", b"b"), delayed(2, b"b"))
    assert Known((Piece(1, 2, NOBODY, 0, LATER),)) == whole[0]
    assert Known((Piece(2, 2, NOBODY, 0, LATER),)) == whole[1]
    (changed,) = log.append(delayed(1, b"a", b"c"))
    assert isinstance(changed, RefusedBatch)
    assert isinstance(changed.error, ContentChanged)
    (grown,) = log.append(delayed(1, b"a", b"b", b"c"))
    assert isinstance(grown, Known)
    assert (Piece(1, 2, NOBODY, 0, LATER), Piece(3, 3, NOBODY, 0, LATER)) == grown.pieces
    stored = move(log)
    assert [1, 3] == [batch.sequence for batch in stored]
    log.reopen()
    (again,) = log.append(delayed(1, b"a", b"b", b"c"))
    assert isinstance(again, Known)
    assert [stored[0].first, stored[1].first] == [piece.position for piece in again.pieces]
    assert [] == log.wait(log.log.audit())


def test_what_comes_twice_in_one_group_waits_once(open_log: Open) -> None:
    log = open_log()
    first, second = log.append(delayed(1, b"a"), delayed(1, b"a"))
    assert isinstance(first, Batch)
    assert Known((Piece(1, 1, NOBODY, 0, LATER),)) == second
    assert 1 == len(due(log))


def test_what_is_due_is_moved_once_however_often_it_is_handed_in(open_log: Open) -> None:
    log = open_log()
    log.receivers(1)
    log.append(delayed(1))
    one, other = due(log), due(log)
    one[0].audience = other[0].audience = log.log.audience([1])
    assert [1] == numbers(log.appended(due=[*one, *other]).stored)
    other = [other[0]]
    assert [] == log.appended(due=other).stored
    assert [1] == [batch.number for batch in log.read([log.log.audience([1])])]


def test_what_stays_before_what_is_moved_is_due_first(open_log: Open) -> None:
    """One that found no place for its receivers, say."""
    log = open_log()
    log.receivers(1)
    ids = ((0, "second"),)
    log.append(delayed(1), delayed(2, due_at=LATER + 1, ids=ids), delayed(3, due_at=LATER + 9))
    held, second = due(log, LATER + 1)
    second.audience = log.log.audience([1])
    assert [1] == numbers(log.appended(due=[second]).stored)
    for again in (False, True):
        if again:
            log.reopen()
        assert LATER == log.log.next_due()
        assert log.wait(log.log.find_delayed("second")) is None
        assert [] == log.wait(log.log.audit())
    held.audience = log.log.audience([1])
    assert [2] == numbers(log.appended(due=[held]).stored)
    assert LATER + 9 == log.log.next_due()


def test_what_is_cancelled_beside_what_is_moved_leaves_nothing(open_log: Open) -> None:
    log = open_log()
    log.receivers(1)
    log.append(delayed(1), delayed(2), delayed(3, b"3", b"4"), delayed(5, due_at=LATER + 9))
    batches = due(log)[:2]
    for batch in batches:
        batch.audience = log.log.audience([1])
    appended = log.appended(
        due=batches, cancel=[Cancel("shop", "i1", 2, 3), Cancel("shop", "i1", 5, 5)]
    )
    assert ([1, 2], [((3, 3),), ((5, 5),)]) == (numbers(appended.stored), appended.cancelled)
    assert LATER == log.log.next_due(), "of the third a half waits"
    assert [4] == [batch.sequence for batch in move(log)]
    for again in (False, True):
        if again:
            log.reopen()
        assert log.log.next_due() is None
        assert [] == log.wait(log.log.audit())


def test_what_comes_again_in_the_group_in_which_it_moves_is_known(open_log: Open) -> None:
    log = open_log()
    log.receivers(1)
    log.append(delayed(1, b"a", b"b"))
    (batch,) = due(log)
    batch.audience = log.log.audience([1])
    appended = log.appended(delayed(1, b"a", b"b"), due=[batch])
    (again,) = appended.outcomes
    assert isinstance(again, Known)
    assert [(1, 2, batch.first)] == [(p.first, p.last, p.position) for p in again.pieces]
    assert [batch] == appended.stored


def test_43_what_is_due_finds_room_in_a_full_log(open_log: Open) -> None:
    log = open_log(Limits(reserve_bytes=8 << 20, max_bytes=1 << 20))
    log.receivers(1)
    big = b"x" * 600_000
    log.append(delayed(1, big))
    audience = log.log.audience([1])
    (refused,) = log.append(make_batch(audience, 2, [big]))
    assert isinstance(refused, RefusedBatch)
    assert isinstance(refused.error, LogFull)
    (refused,) = log.append(delayed(2, big))
    assert isinstance(refused, RefusedBatch)
    log.append(make_batch(audience, 2, [b"y" * 440_000]))
    before = log.log.room().used
    assert [1] == [batch.sequence for batch in move(log)]
    assert before == log.log.room().used


def test_43_its_sender_is_kept_while_it_waits(open_log: Open) -> None:
    log = open_log(Limits(reserve_bytes=8 << 20, incarnations=1, sender_days=0.0001))
    log.append(delayed(1))
    log.append(make_batch(NOBODY, 1, incarnation="i2"))
    for hour in range(3):
        while log.wait(log.log.retain(hour * 100_000_000)):
            pass
    assert 2 == log.resume("shop", "i1").floor
    (again,) = log.append(delayed(1))
    assert isinstance(again, Known)
    log.receivers(1)
    assert [1] == [batch.sequence for batch in move(log)]


def test_43_named_receivers_are_kept_while_it_waits(open_log: Open) -> None:
    log = open_log()
    log.receivers(1, 2)
    batch = delayed(1, addressed=True)
    batch.audience = log.log.audience([1, 2])
    log.append(batch)
    log.append(removed=[2])
    for hour in range(3):
        while log.wait(log.log.retain(hour * 100_000_000)):
            pass
    log.reopen()
    log.receivers(3)
    (moved,) = move(log)
    assert (1, 2) == moved.audience.members
    page = log.wait(log.log.history("shop", "i1", 1, 10))
    assert [(2, Status.REMOVED)] == [(state.receiver, state.status) for state in page.states]
    assert [0, 0] == log.unaccounted()


@pytest.mark.parametrize(
    ("first", "last", "left"),
    [(1, 5, []), (1, 2, [(3, 5)]), (4, 9, [(1, 3)]), (3, 3, [(1, 2), (4, 5)]), (6, 9, [(1, 5)])],
)
def test_49_what_waits_is_cancelled_message_by_message(
    open_log: Open, first: int, last: int, left: list[tuple[int, int]]
) -> None:
    log = open_log()
    log.receivers(1)
    bodies = (b"1", b"2", b"3", b"4", b"5")
    log.append(delayed(1, *bodies, ids=((0, "one"), (2, "three"), (4, "five"))))
    log.append(delayed(6, b"6", sender="web"), delayed(10, b"x", due_at=LATER + 1, after=0))
    appended = log.appended(cancel=[Cancel("shop", "i1", first, last, "enough")])
    gone = [(first, min(last, 5))] if first < 6 else []
    assert [tuple(gone)] == appended.cancelled
    log.reopen()
    page = log.wait(log.log.delayed(BEGIN, 10))
    assert [*left, (6, 6), (10, 10)] == [(one.first, one.last) for one in page]
    states = log.wait(log.log.history("shop", "i1", 1, 10)).states
    assert gone == [(one.first, one.last) for one in states if one.receiver == NOT_YET]
    for state in states:
        assert (Status.CANCELLED, "enough") == (state.status, state.reason)
    found = log.wait(log.log.find_delayed("three")) or log.wait(log.log.find_finished("three"))
    assert found is not None  # as cancelled, where it was
    assert (NOT_YET in found.states, found.due > 0) == (first <= 3 <= last, not first <= 3 <= last)
    stored = [b for b in move(log) if b.sender == "shop"]
    assert left == [(b.sequence, b.sequence + b.count - 1) for b in stored]
    assert [] == log.wait(log.log.audit())
    (again,) = log.append(delayed(1, *bodies))
    assert isinstance(again, Known)
    assert () == again.fresh


def test_a_run_of_which_a_part_was_cancelled_is_not_moved_as_it_was(open_log: Open) -> None:
    log = open_log()
    log.receivers(1)
    log.append(delayed(1, b"1", b"2", b"3"))
    batches = due(log)
    log.append(cancel=[Cancel("shop", "i1", 2, 2)])
    batches[0].audience = log.log.audience([1])
    assert [] == log.appended(due=batches).stored
    assert 0 == batches[0].number
    assert [1, 3] == [batch.sequence for batch in move(log)]


def test_43_behind_a_run_of_which_a_part_was_cancelled_nothing_goes_before_what_is_left(
    open_log: Open,
) -> None:
    log = open_log()
    log.receivers(1)
    log.append(delayed(1), delayed(2, b"2", b"3", b"4"), delayed(5))
    batches = due(log)
    log.append(cancel=[Cancel("shop", "i1", 3, 3)])
    for batch in batches:
        batch.audience = log.log.audience([1])
    assert [1] == [batch.sequence for batch in log.appended(due=batches).stored]
    assert [2, 4, 5] == [batch.sequence for batch in move(log)]


def test_nothing_of_others_or_of_what_was_moved_is_cancelled(open_log: Open) -> None:
    log = open_log()
    log.receivers(1)
    log.append(delayed(1), delayed(2, due_at=LATER + 1))
    move(log)
    cancel = [Cancel("shop", "i1", 1, 1), Cancel("web", "i1", 2, 2), Cancel("shop", "i2", 2, 2)]
    assert [(), (), ()] == log.appended(cancel=cancel).cancelled
    assert [2] == [one.first for one in log.wait(log.log.delayed(BEGIN, 10))]


def test_what_is_cancelled_twice_in_one_group_is_cancelled_once(open_log: Open) -> None:
    log = open_log()
    log.append(delayed(1, b"1", b"2", b"3", b"4"))
    cancel = [Cancel("shop", "i1", 2, 3), Cancel("shop", "i1", 1, 3), Cancel("shop", "i1", 3, 4)]
    assert [((2, 3),), ((1, 1),), ((4, 4),)] == log.appended(cancel=cancel).cancelled
    assert (None, 0) == (log.log.next_due(), log.log.room().used)
    assert [] == log.wait(log.log.audit())


def test_54_states_of_before_what_its_sender_wants_are_kept_for_others(open_log: Open) -> None:
    log = open_log()
    log.append(delayed(1), delayed(2))
    log.append(statuses_from=[StatusFrom(sender="shop", incarnation="i1", status_from=2)])
    log.append(cancel=[Cancel("shop", "i1", 1, 1), Cancel("shop", "i1", 2, 2)])
    page = log.wait(log.log.history("shop", "i1", 1, 10))
    assert {1, 2} == {at for one in page.states for at in range(one.first, one.last + 1)}
    assert () == page.gone


def test_its_sender_is_told_what_waits_among_the_rest(open_log: Open) -> None:
    log = open_log()
    log.receivers(1)
    audience = log.log.audience([1])
    log.append(make_batch(audience, 1), delayed(2, b"a", b"b"), make_batch(audience, 4))
    page = log.wait(log.log.history("shop", "i1", 1, 10))
    assert [(1, 1, 0), (2, 3, LATER), (4, 4, 0)] == [(p.first, p.last, p.due) for p in page.pieces]
    assert () == page.gone
    page = log.wait(log.log.history("shop", "i1", 3, 1))
    assert [(3, 3, LATER)] == [(p.first, p.last, p.due) for p in page.pieces]
    assert 4 == page.next


def test_what_waits_is_found_by_its_names(open_log: Open) -> None:
    log = open_log()
    log.append(
        delayed(1, b"a", b"b", ids=((1, "mine"),)), delayed(1, sender="web", ids=((0, "mine"),))
    )
    name = f"shop/{hash_of('i1')}/2"
    for identity in (name, "mine"):
        found = log.wait(log.log.find_delayed(identity, ["shop"]))
        assert found is not None
        assert ("shop", 2, LATER, 0) == (found.sender, found.sequence, found.due, found.position)
    newest = log.wait(log.log.find_delayed("mine"))
    assert newest is not None
    assert "web" == newest.sender
    assert log.wait(log.log.find_delayed("mine", ["nobody"])) is None
    log.append(cancel=[Cancel("shop", "i1", 2, 2, "why")])
    for identity in (name, "mine"):
        gone = log.wait(log.log.find_finished(identity, senders=["shop"]))
        assert gone is not None
        assert {NOT_YET: (Status.CANCELLED, 0, "why")} == gone.states
        assert ("shop", 2, 0) == (gone.sender, gone.sequence, gone.due)
        assert not gone.removed
    newest = log.wait(log.log.find_delayed("mine"))  # … of those that wait still
    assert newest is not None
    assert "web" == newest.sender
    assert log.wait(log.log.find_delayed("mine", ["nobody"])) is None
    log.append(statuses_from=[StatusFrom(sender="shop", incarnation="i1", status_from=3)])
    assert log.wait(log.log.find_delayed("mine", ["shop"])) is None
    assert log.wait(log.log.find_finished("mine", senders=["nobody"])) is None
    assert log.wait(log.log.find_finished("mine", senders=["shop"])) == gone


def test_what_was_moved_is_found_by_the_id_of_its_sender(open_log: Open) -> None:
    log = open_log()
    log.receivers(1)
    log.append(delayed(1, b"a", b"b", ids=((1, "mine"),)))
    (moved,) = move(log)
    found = log.wait(log.log.find("mine"))
    assert found is not None
    assert moved.first + 1 == found.position
    assert log.wait(log.log.find_delayed("mine")) is None


# --- damage ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        "delete from delayed where sequence = 1",
        "update delayed set row_crc = row_crc + 1 where sequence = 1",
        "update head set delayed_count = 1",
        "update head set delayed_size = 0",
        "update head set delayed_last = 0",
    ],
)
def test_43_a_log_that_lacks_what_waits_is_not_opened(log_folder: Driver, change: str) -> None:
    log = log_folder
    log.append(delayed(1), delayed(2))
    with door.by_hand(log.log._store.db) as db:
        db.execute(change)
    log.close()
    log._make()
    with pytest.raises(LogDamaged, match="delayed"):
        log.wait(log.log.open())


@pytest.mark.parametrize(
    "change",
    [
        "update delayed set due_at = due_at - 1 where sequence = 1",
        "update delayed set subject = 'x' where sequence = 1",
        "update delayed set frame = cast(frame || x'00' as blob) where sequence = 1",
        "update delayed set frame = zeroblob(length(frame)) where sequence = 1",
        "update delayed_id set name = 'other'",
        "delete from delayed_id",
    ],
)
def test_43_the_audit_finds_a_row_that_was_changed(log_folder: Driver, change: str) -> None:
    log = log_folder
    log.append(delayed(1, ids=((0, "mine"),)), delayed(2))
    with door.by_hand(log.log._store.db) as db:
        db.execute(change)
    assert 1 <= len(log.wait(log.log.audit()))
    if "delayed_id" not in change:
        with pytest.raises(LogDamaged, match="delayed"):
            due(log)


@pytest.fixture
def log_folder(tmp_path: Path) -> Driver:
    return Driver("sqlite", tmp_path / "log", SMALL).open()
