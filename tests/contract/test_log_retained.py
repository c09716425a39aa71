"""Retained messages of any log: the last of each subject, and who joins has them (DELIVERY 48)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from msgservice.limits import INTEGER_MAX, Limits
from msgservice.message import (
    FLAG_REPLAY,
    FLAG_RETAIN,
    FLAG_RETAINED,
    Status,
    decode_messages,
    options_of,
)
from msgservice.records import (
    LEFT_OUT,
    NODE,
    REWIND,
    START,
    Batch,
    Join,
    Progress,
    ReceiverRow,
    Replay,
    ReplayPage,
    Retained,
    hash_of,
    position_of,
)
from tests.kit.logs import NOW, ContractDriver, make_batch

LIMITS = Limits(reserve_bytes=64 * 1024, keep_seconds=0, keep_bytes=0)
KEEP = options_of(FLAG_RETAIN)


@pytest.fixture(params=["memory", "sqlite", "dicts"])
def log(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ContractDriver]:
    driver = ContractDriver(request.param, tmp_path, LIMITS).open()
    driver.receivers(1)
    yield driver
    driver.close()


def kept(log: ContractDriver, sequence: int, subject: str, *bodies: bytes, **more: Any) -> Batch:
    audience = log.log.audience([1])
    return make_batch(audience, sequence, bodies, subject=subject, options=KEEP, **more)


def retained(log: ContractDriver, after: str = "", count: int = 100) -> list[Retained]:
    return log.wait(log.log.retained(after, count))


def bodies(log: ContractDriver) -> dict[str, bytes]:
    return {one.subject: decode_messages(one.message)[0].body for one in retained(log)}


def join(log: ContractDriver, number: int, *patterns: str, before: tuple[str, ...] = ()) -> Join:
    return Join(number, log.log.audience([number]), patterns, before)


def row(number: int) -> ReceiverRow:
    return ReceiverRow(number=number, name=f"r{number}", patterns=(">",), cursor=-1)


def joined(log: ContractDriver, number: int, *batches: Batch, **more: Any) -> list[Batch]:
    """What is stored for a receiver that joins with a group."""
    group = log.appended(*batches, receivers=[row(number)], joins=[join(log, number, ">")], **more)
    return [batch for batch in group.stored if number in batch.audience.members]


def test_48_the_last_of_a_subject_in_number_order_is_retained(log: ContractDriver) -> None:
    first = log.appended(
        kept(log, 1, "a", b"1", b"2"), kept(log, 3, "b", b"3"), kept(log, 4, "a", b"4", b"5")
    )
    sizes = {(one.subject, one.size, 0) for one in retained(log)}
    assert set(first.retained) == sizes
    assert bodies(log) == {"a": b"5", "b": b"3"}
    (one, _) = retained(log)
    assert one.position == first.stored[2].last
    assert (one.origin.sender, one.origin.sequence) == ("shop", 5)
    assert one.origin.incarnation == hash_of("i1")
    assert [one.subject for one in retained(log, "a")] == ["b"]
    assert [one.subject for one in retained(log, "", 1)] == ["a"]


def test_48_an_empty_body_clears_and_a_copy_of_the_nodes_own_retains_nothing(
    log: ContractDriver,
) -> None:
    log.append(kept(log, 1, "a", b"1"), kept(log, 2, "b", b"2"))
    cleared = log.appended(kept(log, 3, "a", b"3", b""))
    assert cleared.retained == [("a", 0, 0)]
    audience = log.log.audience([1])
    again = options_of(FLAG_RETAIN | FLAG_REPLAY)
    own = make_batch(audience, 5, subject="c", options=again)
    assert log.appended(own=[own]).retained == []
    assert bodies(log) == {"b": b"2"}
    (of_another,) = log.appended(make_batch(audience, 5, subject="c", options=again)).retained
    assert of_another[0] == "c"


def test_48_who_joins_has_them_first_and_the_rest_of_its_group_behind(
    log: ContractDriver,
) -> None:
    log.append(kept(log, 1, "a", b"1"), kept(log, 2, "b", b"2"), kept(log, 3, "a", b"3"))
    both = log.log.audience([1, 2])
    group = [
        make_batch(both, 4, [b"4"], subject="a", options=KEEP),
        make_batch(both, 5, [b"5"], subject="a"),
    ]
    stored = joined(log, 2, *group)
    told = [(one.subject, decode_messages(one.messages)[0].body) for one in stored]
    assert told == [("b", b"2"), ("a", b"3"), ("a", b"4"), ("a", b"5")]
    flags = [one.options.flags & FLAG_RETAINED for one in stored]
    assert flags == [FLAG_RETAINED, FLAG_RETAINED, 0, 0]
    copy = stored[1]
    assert copy.sender == NODE
    assert copy.origin is not None
    assert (copy.origin.sender, copy.origin.sequence) == ("shop", 3)
    assert log.log.audience([2]) is copy.audience
    assert bodies(log)["a"] == b"4"
    read = log.read([copy.audience, both])
    assert [one.number for one in read] == [one.number for one in stored]
    assert read[0].options.flags == FLAG_RETAINED
    assert log.unaccounted() == [0, 0]


def test_48_only_the_subjects_that_it_had_not_before(log: ContractDriver) -> None:
    log.append(*[kept(log, at, subject, b"x") for at, subject in enumerate(("a.1", "a.2", "b"), 1)])
    group = log.appended(joins=[join(log, 1, "a.*", "b", before=("a.1", "z"))])
    assert sorted(batch.subject for batch in group.stored) == ["a.2", "b"]


def test_48_what_has_expired_comes_to_nobody(log: ContractDriver) -> None:
    log.append(kept(log, 1, "a", b"1", expires_at=NOW + 10), kept(log, 2, "b", b"2"))
    (copy,) = joined(log, 2, now=NOW + 10)
    assert copy.subject == "b"
    log.append(kept(log, 3, "a", b"3", expires_at=NOW + 20))
    copies = {one.subject: one.expires_at for one in joined(log, 3, now=NOW + 19)}
    assert copies == {"a": NOW + 20, "b": None}


def test_17_48_nothing_expires_by_a_wall_clock_that_was_ahead_once(log: ContractDriver) -> None:
    log.append(kept(log, 1, "a", b"1", expires_at=NOW + 10))
    log.append(kept(log, 2, "b", b"2"), now=NOW + 1_000_000, due_now=NOW + 1)
    assert [one.subject for one in joined(log, 2, due_now=NOW + 9)] == ["a", "b"]
    assert [one.subject for one in joined(log, 3, due_now=NOW + 10)] == ["b"]


def test_48_who_is_not_there_gets_none(log: ContractDriver) -> None:
    log.append(kept(log, 1, "a", b"1"))
    log.append(removed=[1])
    assert log.appended(joins=[join(log, 1, ">"), join(log, 7, ">")]).stored == []


def test_48_they_stay_when_their_batches_have_gone_and_over_restarts(log: ContractDriver) -> None:
    (one,) = log.append(kept(log, 1, "a", b"1"))
    assert isinstance(one, Batch)
    log.append(progress=[Progress(receiver=1, cursor=one.last, settled={3: 1})])
    while log.wait(log.log.retain(3_600_000)):
        pass
    if log.kind != "memory":
        log.reopen()
        assert list(log.snapshot.retained) == [(one.subject, retained(log)[0].size, 0)]
    assert bodies(log) == {"a": b"1"}
    (copy,) = joined(log, 2)
    assert decode_messages(copy.messages)[0].body == b"1"


def test_48_what_is_cleared_by_people_goes_whether_it_is_there_or_not(
    log: ContractDriver,
) -> None:
    log.append(kept(log, 1, "a", b"1"), kept(log, 2, "b", b"2"))
    log.wait(log.log.clear_retained(["a", "nothing"]))
    assert bodies(log) == {"b": b"2"}


def test_48_of_what_has_expired_the_log_lets_go_and_of_nothing_newer(log: ContractDriver) -> None:
    log.append(
        kept(log, 1, "a", b"1", expires_at=NOW + 5),
        kept(log, 2, "b", b"2", expires_at=NOW + 5),
        kept(log, 3, "c", b"3", expires_at=NOW + 6),
        kept(log, 4, "d", b"4"),
    )
    appended = log.appended(kept(log, 5, "b", b"5", expires_at=NOW + 9))
    assert [(subject, at) for subject, _, at in appended.retained] == [("b", NOW + 9)]
    log.wait(log.log.clear_retained(["a", "b", "c", "d", "nothing"], NOW + 5))
    assert bodies(log) == {"b": b"5", "c": b"3", "d": b"4"}
    if log.kind != "memory":
        log.reopen()
        times = {subject: at for subject, _, at in log.snapshot.retained}
        assert times == {"b": NOW + 9, "c": NOW + 6, "d": 0}


@pytest.mark.parametrize("kind", [START, LEFT_OUT])
def test_48_history_has_the_original_and_no_copy_that_others_got(
    log: ContractDriver, kind: str
) -> None:
    log.append(kept(log, 1, "a", b"1"))
    assert len(joined(log, 2)) == len(joined(log, 3)) == 1
    log.receivers(4)
    last = position_of(log.snapshot.next_number + 10)
    asked = log.log.replay(Replay(4, kind, 0, 0, last), [">"], 1 << 20, 1 << 20)
    (copy,) = log.wait(asked).copies
    assert copy.origin is not None
    assert (copy.origin.sender, copy.origin.sequence) == ("shop", 1)


@pytest.mark.parametrize(
    ("below", "next_page", "has"),
    [
        (position_of(2), None, ["a"]),  # the rest of its history is still to come
        (position_of(3), position_of(3), ["a", "b"]),  # a page of before is stored with the change
        (position_of(2), position_of(3), ["a"]),  # … and one by the subjects that it has now
        (INTEGER_MAX, None, ["a"]),  # the last page has found no room: it is read again
        (INTEGER_MAX, INTEGER_MAX, ["a", "b", "c"]),  # … and was stored
    ],
)
def test_48_who_starts_and_gets_more_subjects_has_the_rest_as_history(
    log: ContractDriver, below: int, next_page: int | None, has: list[str]
) -> None:
    log.append(kept(log, 1, "a", b"1"))
    log.append(kept(log, 2, "b", b"2"))
    log.append(kept(log, 3, "c", b"3"))
    start = Replay(2, START, 0, 0, INTEGER_MAX)
    log.append(receivers=[row(2)], replays=[start])
    moved = msgspec.structs.replace(start, next=position_of(2))
    log.append(pages=[ReplayPage(0, moved)])
    wanted = join(log, 2, ">")
    wanted.below = below
    pages = []
    if next_page is not None:
        end = INTEGER_MAX - 1 if next_page == INTEGER_MAX else INTEGER_MAX
        then = msgspec.structs.replace(moved, next=next_page, end=end)
        pages = [ReplayPage(moved.next, then)]
    stored = log.appended(joins=[wanted], pages=pages).stored
    assert [batch.subject for batch in stored] == has


def test_48_who_starts_at_a_time_has_what_was_retained_before(log: ContractDriver) -> None:
    log.append(kept(log, 1, "a", b"1"))
    log.append(kept(log, 2, "b", b"2"), now=NOW + 5)
    start = Replay(2, START, 0, 0, INTEGER_MAX, since=NOW + 3)
    log.append(receivers=[row(2)], replays=[start])
    wanted = join(log, 2, ">")
    wanted.below = 0
    assert [batch.subject for batch in log.appended(joins=[wanted]).stored] == ["a"]


def let_go_of(log: ContractDriver, *batches: Any) -> None:
    """Receiver 1 has had these, and the log has nothing of them any more."""
    for batch in batches:
        log.append(progress=[Progress(receiver=1, cursor=batch.last, settled={3: 1})])
    log.wait(log.log.retain(0))
    while log.wait(log.log.retain(3_600_000)):
        pass


@pytest.mark.parametrize(
    ("asked", "has"),
    [((0, 0), ["a", "b"]), ((position_of(2), 0), ["b"]), ((0, NOW + 5), ["b"]), (None, ["a", "b"])],
)
def test_48_who_starts_with_history_has_what_of_it_has_left_the_log(
    log: ContractDriver, asked: tuple[int, int] | None, has: list[str]
) -> None:
    """Or gets more subjects before it has all of that."""
    log.append(first := kept(log, 1, "a", b"1"))
    log.append(second := kept(log, 2, "b", b"2"), now=NOW + 5)
    let_go_of(log, first, second)
    log.append(kept(log, 3, "c", b"3"))
    kept_from = log.log.kept_from()
    assert position_of(2) < kept_from <= position_of(3)
    start = Replay(2, START, kept_from, kept_from, INTEGER_MAX)
    wanted = join(log, 2, ">")
    wanted.asked = asked
    group = log.appended(receivers=[row(2)], replays=[start], joins=[wanted])
    assert [batch.subject for batch in group.stored] == has
    asked_for = msgspec.structs.replace(start, end=position_of(log.snapshot.next_number + 9))
    history = log.wait(log.log.replay(asked_for, [">"], 1 << 20, 1 << 20)).copies
    assert [one.subject for one in history] == ["c"]


def test_13_a_copy_that_its_receiver_has_acknowledged_is_rewound(log: ContractDriver) -> None:
    log.append(kept(log, 1, "a", b"1"))
    (copy,) = joined(log, 2)
    log.progress(2, copy.last, settled={Status.ACKNOWLEDGED: 1})
    asked = log.log.replay(Replay(2, REWIND, 0, 0, copy.last), [">"], 1 << 20, 1 << 20)
    assert [one.subject for one in log.wait(asked).copies] == ["a"]


def test_48_a_full_log_gives_who_joins_its_copies_all_the_same(tmp_path: Path) -> None:
    limits = Limits(reserve_bytes=64 * 1024, keep_seconds=0, max_bytes=1000)
    log = ContractDriver("sqlite", tmp_path, limits).open()
    log.receivers(1)
    log.append(kept(log, 1, "a", b"1" * 990))
    stored = joined(log, 2, kept(log, 2, "b", b"2"))
    assert [batch.subject for batch in stored] == ["a"]
    log.close()
