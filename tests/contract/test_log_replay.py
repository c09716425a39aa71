"""Replays in a log: what is copied, that a page is stored whole, and what stays for it (47)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from zlib import crc32

import msgspec
import pytest

from msgservice.core.copies import REPLAY_OF
from msgservice.errors import LogFull
from msgservice.limits import INTEGER_MAX
from msgservice.message import (
    FLAG_REPLAY,
    FLAG_RETAIN,
    FLAG_RETAIN_ONLY,
    FLAG_RETAINED,
    Status,
    WireMessage,
    decode_messages,
    encode_messages,
    options_of,
)
from msgservice.records import (
    LEFT_OUT,
    LOST,
    NODE,
    OF_ACKNOWLEDGED,
    REWIND,
    START,
    Appended,
    Batch,
    Copies,
    ExceptionRow,
    Group,
    RefusedBatch,
    Replay,
    ReplayPage,
    position_of,
)
from tests.kit.limits import Limits
from tests.kit.logs import NOW, ContractDriver, make_batch

KINDS = ["sqlite", "memory", "dicts"]
KEEP_NOTHING = Limits(reserve_bytes=64 * 1024, keep_seconds=0, keep_bytes=0)
PAGE = 4 * 1024 * 1024
SIZE = 1024 * 1024
ALL = position_of(1000) - 1


@pytest.fixture(params=KINDS)
def log(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ContractDriver]:
    driver = ContractDriver(request.param, tmp_path / "data", KEEP_NOTHING).open()
    driver.receivers(1, 2)
    yield driver
    assert driver.wait(driver.log.audit()) == []
    assert not any(driver.unaccounted())
    driver.reopen()
    assert driver.wait(driver.log.audit()) == []
    driver.close()


def replay(kind: str = REWIND, first: int = 0, end: int = ALL, receiver: int = 1) -> Replay:
    return Replay(receiver, kind, first, first, end)


def ask(
    log: ContractDriver, of: Replay, patterns: Sequence[str] = (">",), size: int = PAGE
) -> Copies:
    found = log.wait(log.log.replay(of, patterns, size, SIZE))
    counted = log.wait(log.log.replay(of, patterns, PAGE, SIZE, True))
    assert not counted.copies
    assert counted.messages >= found.messages
    return found


def begin(log: ContractDriver, of: Replay) -> Replay:
    log.wait(log.log.append(Group(now=NOW, replays=[of])))
    return of


def page_of(log: ContractDriver, of: Replay, found: Copies, **row: int) -> ReplayPage:
    for batch in found.copies:
        batch.audience = log.log.audience([of.receiver])
    moved = msgspec.structs.replace(
        of, next=found.next, copied=of.copied + found.messages, skipped=found.skipped
    )
    return ReplayPage(of.next, msgspec.structs.replace(moved, **row), found.copies)


def store(log: ContractDriver, *pages: ReplayPage, batches: Sequence[Batch] = ()) -> Appended:
    return log.wait(log.log.append(Group(now=NOW, pages=[*pages], batches=[*batches])))


def bodies(batches: Sequence[Batch]) -> list[bytes]:
    return [message.body for batch in batches for message in decode_messages(batch.messages)]


def acknowledge(log: ContractDriver, receiver: int, last: int, count: int) -> None:
    log.progress(receiver, last, settled={Status.ACKNOWLEDGED: count})


def test_47_a_rewind_copies_what_its_receiver_has_acknowledged(log: ContractDriver) -> None:
    both, other = log.log.audience([1, 2]), log.log.audience([2])
    log.append(
        make_batch(both, 1, [b"a", b"b"]), make_batch(other, 3, [b"x"]), make_batch(both, 4, [b"c"])
    )
    acknowledge(log, 1, position_of(1, 1), 2)
    found = ask(log, replay())
    assert [b"a", b"b"] == bodies(found.copies)
    assert (2, ALL + 1, 0) == (found.messages, found.next, found.skipped)
    acknowledge(log, 1, position_of(3), 1)
    assert [b"a", b"b", b"c"] == bodies(ask(log, replay()).copies)


def test_47_a_rewind_copies_nothing_that_ended_otherwise_or_waits(log: ContractDriver) -> None:
    audience = log.log.audience([1])
    log.append(make_batch(audience, 1, [b"%d" % n for n in range(8)]))
    first = position_of(1)
    rows = [
        ExceptionRow(1, first + 1, first + 1, Status.DEAD, reason="no"),
        ExceptionRow(1, first + 4, first + 5, Status.ACKNOWLEDGED),
        ExceptionRow(1, first + 6, first + 6, Status.QUEUED, attempts=1),
    ]
    settled = {Status.ACKNOWLEDGED: 4, Status.DEAD: 1}
    log.progress(1, first + 2, exceptions=rows, settled=settled)
    assert [b"0", b"2", b"4", b"5"] == bodies(ask(log, replay()).copies)


def test_47_a_replay_ends_inside_batches(log: ContractDriver) -> None:
    audience = log.log.audience([1])
    log.append(*[make_batch(audience, n, [b"%d" % n, b"%d" % (n + 1)]) for n in (1, 3, 5)])
    acknowledge(log, 1, position_of(3, 1), 6)
    part = replay(first=position_of(1, 1), end=position_of(3))
    found = ask(log, part)
    assert [b"2", b"3", b"4", b"5"] == bodies(found.copies)
    assert position_of(3, 1) == found.next


def test_47_a_copy_is_its_original_but_for_its_place_and_says_whose_it_is(
    log: ContractDriver,
) -> None:
    audience = log.log.audience([1])
    whole = [WireMessage(b"a", {"kind": "x"}, "id-1", "key"), WireMessage(b"b")]
    batch = make_batch(audience, 5, [b"", b""], after=0, ids=((0, "id-1"),))
    batch.messages = encode_messages(whole)
    batch.size = len(batch.messages)
    batch.crc = crc32(batch.messages)
    log.append(batch)
    acknowledge(log, 1, position_of(1, 1), 2)
    row = begin(log, replay())
    appended = store(log, page_of(log, row, ask(log, row)))
    assert ["stored"] == appended.pages
    (copy,) = appended.stored
    assert (NODE, log.log.log_id, 1) == (copy.sender, copy.incarnation, copy.sequence)
    assert copy.origin is not None
    assert ("shop", 5) == (copy.origin.sender, copy.origin.sequence)
    assert FLAG_REPLAY == copy.options.flags
    told = [{"kind": "x", REPLAY_OF: f"log:{position_of(1)}"},
            {REPLAY_OF: f"log:{position_of(1, 1)}"}]  # fmt: skip
    assert told == [message.headers for message in decode_messages(copy.messages)]
    assert ["id-1", None] == [message.id for message in decode_messages(copy.messages)]
    found = log.wait(log.log.find("id-1"))
    assert found is not None
    assert position_of(1) == found.position  # the id goes on to name the original


def test_47_no_copy_is_copied_again(log: ContractDriver) -> None:
    log.append(make_batch(log.log.audience([1]), 1, [b"a"]))
    acknowledge(log, 1, position_of(1), 1)
    row = begin(log, replay(end=position_of(2) - 1))
    store(log, page_of(log, row, ask(log, row)))
    acknowledge(log, 1, position_of(2), 1)
    again = ask(log, replay())
    assert [b"a"] == bodies(again.copies)
    assert again.copies[0].origin is not None
    assert 1 == again.messages


def test_47_a_start_copies_what_matches_and_was_for_all_who_match(log: ContractDriver) -> None:
    other, nobody = log.log.audience([2]), log.log.audience([])
    log.append(
        make_batch(other, 1, [b"a"]),
        make_batch(nobody, 2, [b"b"]),
        make_batch(other, 3, [b"to"], addressed=True),
        make_batch(other, 4, [b"c"], subject="elsewhere"),
        make_batch(other, 5, [b"d"]),
    )
    log.receivers(3)
    begun = replay(START, end=position_of(6) - 1, receiver=3)
    found = ask(log, begun, ["orders.*"])
    assert [b"a", b"b", b"d"] == bodies(found.copies)
    assert position_of(6) == found.next


@pytest.mark.parametrize(
    ("kind", "deadline"), [(REWIND, None), (LOST, NOW), (START, NOW), (LEFT_OUT, NOW)]
)
def test_44_history_expires_when_its_original_does_and_a_rewind_does_not(
    log: ContractDriver, kind: str, deadline: int | None
) -> None:
    """A rewind is of what was acknowledged in time, and somebody asks for it."""
    receiver = 1 if kind in OF_ACKNOWLEDGED else 2
    log.append(make_batch(log.log.audience([1]), 1, [b"a"], expires_at=NOW))
    acknowledge(log, 1, position_of(1), 1)
    row = begin(log, replay(kind, end=position_of(2) - 1, receiver=receiver))
    store(log, page_of(log, row, ask(log, row)))
    (copy,) = log.read([log.log.audience([receiver])])[-1:]
    assert copy.options.flags == FLAG_REPLAY
    assert deadline == copy.expires_at
    if receiver == 1:
        acknowledge(log, 1, copy.last, 1)


def test_48_of_what_was_only_retained_nobody_was_left_out(log: ContractDriver) -> None:
    only = options_of(FLAG_RETAIN | FLAG_RETAIN_ONLY)
    log.append(
        make_batch(log.log.audience([]), 1, [b"a"], options=only),
        make_batch(log.log.audience([]), 2, [b"b"]),
        make_batch(log.log.audience([1]), 3, [b"c"], options=only),
    )
    acknowledge(log, 1, position_of(3), 1)
    assert [b"b"] == bodies(ask(log, replay(LEFT_OUT)).copies)
    for kind in (REWIND, LOST):
        assert [] == ask(log, replay(kind)).copies


def test_61_what_came_as_a_replay_from_another_node_is_no_copy_of_this_one(
    log: ContractDriver,
) -> None:
    log.receivers(3)
    log.append(make_batch(log.log.audience([1]), 1, [b"a"], options=options_of(FLAG_REPLAY)))
    log.append(make_batch(log.log.audience([1]), 2, [b"b"], options=options_of(FLAG_RETAINED)))
    acknowledge(log, 1, position_of(2), 2)
    assert [b"a", b"b"] == bodies(ask(log, replay()).copies)
    assert [b"a", b"b"] == bodies(ask(log, replay(START, receiver=3)).copies)


def test_61_copies_that_were_lost_are_copied_unless_their_originals_are(
    log: ContractDriver,
) -> None:
    audience = log.log.audience([1])
    log.append(make_batch(audience, 1, [b"a", b"b", b"c"]))
    acknowledge(log, 1, position_of(1, 2), 3)
    first = position_of(1, 1)
    for _ in range(3):  # each loss copies each message once
        row = begin(log, replay(LOST, first, position_of(20)))
        found = ask(log, row)
        assert ([b"b", b"c"], 2) == (bodies(found.copies), found.messages)
        store(log, page_of(log, row, found))
        (copy,) = log.read([audience])[-1:]
        acknowledge(log, 1, copy.last, 2)
    assert [b"c"] == bodies(ask(log, replay(LOST, copy.last)).copies)
    assert [] == bodies(ask(log, replay(REWIND, copy.last)).copies)


def test_61_copies_that_were_lost_are_copied_where_their_original_ended_otherwise(
    log: ContractDriver,
) -> None:
    log.append(make_batch(log.log.audience([1]), 1, [b"a", b"b"]))
    dead = ExceptionRow(1, position_of(1), position_of(1), Status.DEAD, reason="no")
    settled = {Status.ACKNOWLEDGED: 1, Status.DEAD: 1}
    log.progress(1, position_of(1, 1), exceptions=[dead], settled=settled)
    again = make_batch(log.log.audience([1]), options=options_of(FLAG_REPLAY))
    again.messages = encode_messages([WireMessage(b"a", {REPLAY_OF: f"log:{position_of(1)}"})])
    again.size, again.crc = len(again.messages), crc32(again.messages)
    log.wait(log.log.append(Group(now=NOW, own=[again])))
    acknowledge(log, 1, position_of(2), 1)
    assert [b"b", b"a"] == bodies(ask(log, replay(LOST, end=position_of(20))).copies)


def test_47_what_a_receiver_was_left_out_of_is_copied_without_what_it_had(
    log: ContractDriver,
) -> None:
    with_it, without = log.log.audience([1, 2]), log.log.audience([2])
    log.append(make_batch(with_it, 1, [b"a"]), make_batch(without, 2, [b"b"]))
    assert [b"b"] == bodies(ask(log, replay(LEFT_OUT)).copies)


def test_47_pages_follow_each_other_without_a_gap(log: ContractDriver) -> None:
    audience, other = log.log.audience([1]), log.log.audience([1, 2])
    batches = [make_batch(audience if n % 3 else other, n, [b"%d" % n]) for n in range(1, 30)]
    log.append(*batches)
    acknowledge(log, 1, position_of(29), 29)
    row = begin(log, replay(end=position_of(30) - 1))
    copied: list[bytes] = []
    while not row.is_over:
        found = ask(log, row, size=3 * batches[0].size)
        page = page_of(log, row, found)
        assert ["stored"] == store(log, page).pages
        copied += bodies(page.copies)
        row = page.replay
        if log.kind != "memory":
            log.reopen()
            assert [row] == list(log.snapshot.replays)
    assert [b"%d" % n for n in range(1, 30)] == copied
    assert 29 == row.copied


def test_47_a_page_of_another_moment_is_void_and_changes_nothing(log: ContractDriver) -> None:
    log.append(make_batch(log.log.audience([1]), 1, [b"a"]))
    acknowledge(log, 1, position_of(1), 1)
    row = begin(log, replay(end=position_of(2) - 1))
    page = page_of(log, row, ask(log, row))
    again = page_of(log, row, ask(log, row))
    assert ["stored", "void"] == store(log, page, again).pages
    assert ["void"] == store(log, page_of(log, row, ask(log, row))).pages
    assert 2 == len(log.read([log.log.audience([1])]))
    nobodys = ReplayPage(0, replay(receiver=7), [])
    assert ["void"] == store(log, nobodys).pages


def test_47_what_a_replay_is_to_copy_stays(log: ContractDriver) -> None:
    audience, other = log.log.audience([1]), log.log.audience([2])
    for n in (1, 2, 3):
        log.append(make_batch(audience, n, [b"a%d" % n]))
    log.append(make_batch(other, 4, [b"other"]))
    row = begin(log, replay(first=position_of(2), end=position_of(4) - 1))
    acknowledge(log, 1, position_of(4), 3)
    acknowledge(log, 2, position_of(4), 1)
    drop(log)
    assert [2, 3] == [batch.number for batch in log.read([audience])]
    assert [] == log.read([other])
    assert position_of(1) < log.log.kept_from() <= position_of(2)
    store(log, page_of(log, row, ask(log, row)))
    drop(log)
    assert [5, 6] == [batch.number for batch in log.read([audience])]  # the copies wait


@pytest.mark.parametrize("kind", [START, LEFT_OUT])
def test_47_all_stays_that_a_replay_by_subject_may_copy(log: ContractDriver, kind: str) -> None:
    other = log.log.audience([2])
    log.append(make_batch(other, 1, [b"a"]))
    log.append(make_batch(other, 2, [b"b"]))
    acknowledge(log, 2, position_of(2), 2)
    row = begin(log, replay(kind, first=position_of(2), end=INTEGER_MAX))
    drop(log)
    assert [2] == [batch.number for batch in log.read([other])]
    begin(log, msgspec.structs.replace(row, end=row.next - 1))  # called off
    drop(log)
    assert [] == log.read([other])


def test_47_what_retention_has_taken_is_counted(log: ContractDriver) -> None:
    """Of a batch behind an open one its row stays, and says how many messages there were."""
    first, second = log.log.audience([1, 2]), log.log.audience([1])
    log.append(make_batch(first, 1, [b"a"]))
    log.append(make_batch(second, 2, [b"b", b"c"]))
    acknowledge(log, 1, position_of(2, 1), 3)
    drop(log)
    found = ask(log, replay())
    assert [b"a"] == bodies(found.copies)
    assert (0 if log.kind == "dicts" else 2) == found.skipped  # which keeps no rows
    acknowledge(log, 2, position_of(1), 1)


def drop(log: ContractDriver) -> None:
    for n in range(4):
        while log.wait(log.log.retain(NOW + n)):
            pass


def test_47_a_removal_takes_the_replay_along(log: ContractDriver) -> None:
    row = begin(log, replay())
    log.append(removed=[1])
    assert ["void"] == store(log, page_of(log, row, ask(log, row))).pages
    begin(log, row)
    log.reopen()
    assert [] == [*log.snapshot.replays]


@pytest.mark.parametrize("kind", KINDS)
def test_47_a_page_without_room_is_not_stored_at_all(kind: str, tmp_path: Path) -> None:
    """It may have a page more than others, since what it copies goes when it has gone on."""
    limits = replace(KEEP_NOTHING, max_bytes=10 * 1024 * 1024)
    log = ContractDriver(kind, tmp_path, limits).open()
    log.receivers(1, 2)
    both = log.log.audience([1, 2])
    for n in range(1, 11):
        log.append(make_batch(both, n, [b"x" * (1024 * 1024 - 4096)]))
    acknowledge(log, 1, position_of(10), 10)
    row = begin(log, replay(end=position_of(11) - 1))
    page = page_of(log, row, ask(log, row, size=3_500_000))
    batch = make_batch(both, 11, [b"y" * 200_000])
    appended = store(log, page, batches=[batch])
    assert ["stored"] == appended.pages
    assert [RefusedBatch] == [type(one) for one in appended.outcomes]
    row = page.replay
    page = page_of(log, row, ask(log, row, size=3_500_000))
    before = log.log.room().used
    (outcome,) = store(log, page).pages
    assert isinstance(outcome, LogFull)
    assert before == log.log.room().used
    acknowledge(log, 1, position_of(13), 3)
    acknowledge(log, 2, position_of(10), 10)
    drop(log)
    assert ["stored"] == store(log, page).pages
    log.close()


@pytest.mark.parametrize("kind", KINDS)
def test_47_where_the_last_page_of_a_start_has_no_room_nothing_of_its_group_is_stored(
    kind: str, tmp_path: Path
) -> None:
    """Those batches are for a receiver that would have them before its history."""
    limits = replace(KEEP_NOTHING, max_bytes=1000)
    log = ContractDriver(kind, tmp_path, limits).open()
    log.receivers(1, 2)
    row = begin(log, replay(START, end=INTEGER_MAX))
    large = Copies([make_batch(log.log.audience([1]), 1, [b"x" * (PAGE + 2000)])], 0, 1, 1, 0)
    page = page_of(log, row, large, next=position_of(1), end=position_of(1) - 1)
    appended = store(log, page, batches=[make_batch(log.log.audience([1, 2]), 1)])
    assert [LogFull] == [type(one) for one in appended.pages]
    assert [RefusedBatch] == [type(one) for one in appended.outcomes]
    page = page_of(log, row, Copies([], position_of(1), 0, 0, 0), end=position_of(1) - 1)
    appended = store(log, page, batches=[make_batch(log.log.audience([1, 2]), 1)])
    assert ["stored"] == appended.pages
    assert 1 == len(appended.stored)
    log.close()


def test_47_times_of_rows_do_not_go_back(log: ContractDriver) -> None:
    audience = log.log.audience([1])
    times = [NOW, NOW + 5, NOW - 1000, NOW + 9]
    for n, now in enumerate(times, 1):
        log.wait(log.log.append(Group(now=now, batches=[make_batch(audience, n)])))
    assert [NOW, NOW + 5, NOW + 5, NOW + 9] == [b.stored_at for b in log.read([audience])]
    asked = {NOW - 1: 1, NOW: 1, NOW + 1: 2, NOW + 5: 2, NOW + 6: 4, NOW + 10: 5}
    for at, number in asked.items():
        assert position_of(number) == log.wait(log.log.position_at(at))
    since = msgspec.structs.replace(
        replay(START, end=position_of(5) - 1, receiver=3), since=NOW + 1
    )
    assert 3 == ask(log, since).messages
    if log.kind != "memory":
        log.reopen()
        log.wait(log.log.append(Group(now=NOW, batches=[make_batch(audience, 5)])))
        assert NOW + 9 == log.read([audience])[-1].stored_at
