"""Retention, the same for every `ILog` (SEMANTICS 11, 20, 21)."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from msgservice.errors import ContentChanged, LimitReached, NoReceiver
from msgservice.limits import Limits
from msgservice.message import Status
from msgservice.records import (
    Batch,
    DeadLetter,
    Known,
    Piece,
    ReceiverRow,
    RefusedBatch,
    StateRange,
    StatusFrom,
    hash_of,
    position_of,
)
from tests.kit.logs import NOW, ContractDriver, exception, make_batch, numbers

KINDS = ("memory", "sqlite", "dicts")
HOUR = 3600 * 1000
KEEP_NOTHING = Limits(reserve_bytes=64 * 1024, keep_seconds=0, keep_bytes=0, audiences=40)


def drop_all(log: ContractDriver, now: int = NOW + 1) -> int:
    calls = 1
    while log.wait(log.log.retain(now)):
        calls += 1
        assert calls < 1000
    return calls


@pytest.fixture(params=KINDS)
def log(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ContractDriver]:
    driver = ContractDriver(request.param, tmp_path / "data", KEEP_NOTHING).open()
    driver.receivers(1, 2)
    yield driver
    assert driver.wait(driver.log.audit()) == []
    driver.reopen()
    assert driver.wait(driver.log.audit()) == []
    driver.close()


def settle(log: ContractDriver, receiver: int, batch: Batch, count: int) -> None:
    log.progress(receiver, batch.last, settled={Status.ACKNOWLEDGED: count})


def test_21_nothing_goes_before_every_receiver_is_past_it(log: ContractDriver) -> None:
    audience = log.log.audience([1, 2])
    batches = [make_batch(audience, i) for i in (1, 2, 3)]
    log.append(*batches)
    settle(log, 1, batches[2], 3)
    drop_all(log)
    assert numbers(log.read([audience])) == [1, 2, 3]
    settle(log, 2, batches[1], 2)
    drop_all(log)
    assert numbers(log.read([audience])) == [3]
    assert batches[2].size == log.log.room().used
    assert log.unaccounted() == [0, 0]


def test_21_a_batch_that_is_only_half_settled_stays(log: ContractDriver) -> None:
    audience = log.log.audience([1])
    batch = make_batch(audience, 1, [b"a", b"b"])
    log.append(batch)
    log.progress(1, batch.first, settled={Status.ACKNOWLEDGED: 1})
    drop_all(log)
    assert numbers(log.read([audience])) == [1]


def test_21_a_receiver_that_stays_behind_pins_its_own_batches_only(log: ContractDriver) -> None:
    one, two = log.log.audience([1]), log.log.audience([2])
    batches = [make_batch(two if i % 10 == 5 else one, i) for i in range(1, 101)]
    log.append(*batches)
    settle(log, 1, batches[-1], 90)
    drop_all(log)
    assert numbers(log.read([one])) == []
    assert list(range(5, 101, 10)) == numbers(log.read([two]))
    assert sum(b.size for b in batches if b.audience is two) == log.log.room().used
    assert log.unaccounted() == [0, 0]
    log.reopen()
    assert log.unaccounted() == [0, 0]


def test_a_removed_receiver_pins_nothing(log: ContractDriver) -> None:
    audience = log.log.audience([1, 2])
    batch = make_batch(audience)
    log.append(batch)
    settle(log, 1, batch, 1)
    log.append(removed=[2])
    drop_all(log)
    assert log.log.room().used == 0
    states = log.wait(log.log.history("shop", "i1", 1, 10)).states
    assert (
        StateRange(1, Status.ACKNOWLEDGED, 1, 1),
        StateRange(2, Status.REMOVED, 1, 1),
    ) == states


def test_a_receiver_that_was_not_made_yet_pins(log: ContractDriver) -> None:
    audience = log.log.audience([3])
    log.append(make_batch(audience))
    drop_all(log)
    assert numbers(log.read([audience])) == [1]


def test_what_nobody_is_meant_to_get_goes(log: ContractDriver) -> None:
    log.append(make_batch(log.log.audience([])))
    drop_all(log)
    assert log.log.room().used == 0


@pytest.mark.parametrize("kind", KINDS)
def test_settled_batches_are_kept_for_their_time_and_up_to_their_bytes(
    kind: str, tmp_path: Path
) -> None:
    limits = Limits(reserve_bytes=1024, keep_seconds=10, keep_bytes=2500)
    log = ContractDriver(kind, tmp_path, limits).open()
    log.receivers(1)
    audience = log.log.audience([1])
    batches = [make_batch(audience, i, [b"x" * 1000]) for i in (1, 2, 3, 4)]
    for i, batch in enumerate(batches):
        log.append(batch)
        drop_all(log, i * 1000)
    assert len(log.read([audience])) == 4  # not settled
    settle(log, 1, batches[3], 4)
    drop_all(log, 5000)
    assert numbers(log.read([audience])) == [3, 4]  # more than 2,500 bytes otherwise
    drop_all(log, 11_999)
    assert numbers(log.read([audience])) == [3, 4]
    drop_all(log, 12_000)
    assert numbers(log.read([audience])) == [4]  # the third is older than 10 s
    log.reopen()  # where the clock of the next process begins is nothing
    drop_all(log, 700_000)
    assert numbers(log.read([audience])) == [4]
    drop_all(log, 701_000)
    assert numbers(log.read([audience])) == []
    log.close()


def test_5_who_is_connected_is_not_away_however_quiet(log: ContractDriver) -> None:
    audience = log.log.audience([1])
    for name in ("quiet", "gone"):
        batch = make_batch(audience, incarnation=name)
        log.append(batch)
    settle(log, 1, batch, 2)
    here = [("shop", "quiet")]
    for day in range(10):
        log.wait(log.log.retain(day * 24 * HOUR, here))
    assert [log.resume("shop", name).floor for name in ("quiet", "gone")] == [2, 1]
    log.reopen()
    for day in (0, 6):  # away from the last day on
        drop_all(log, day * 24 * HOUR)
    assert log.resume("shop", "quiet").floor == 2
    drop_all(log, 8 * 24 * HOUR)
    assert log.resume("shop", "quiet").floor == 1


FEW = Limits(reserve_bytes=64 * 1024, keep_seconds=0, keep_bytes=0, incarnations=10)


@pytest.mark.parametrize("kind", KINDS)
def test_5_beyond_the_limit_those_go_first_that_said_goodbye(kind: str, tmp_path: Path) -> None:
    log = ContractDriver(kind, tmp_path, FEW).open()
    log.receivers(1)
    audience = log.log.audience([1])
    drop_all(log, 0)
    names = [f"i{number:02}" for number in range(40)]
    batches = [make_batch(audience, incarnation=name) for name in names]
    log.append(*batches)
    settle(log, 1, batches[30], 31)  # the last nine still wait
    here = [("shop", "i00")]
    left = [("shop", name) for name in names[5:20]]

    def known() -> list[str]:
        return [name for name in names if log.resume("shop", name).floor == 2]

    log.wait(log.log.retain(1, here, left))
    assert known() == names[:5] + names[20:]
    log.wait(log.log.retain(2 * HOUR, here))
    drop_all(log, 2 * HOUR + 1)
    assert {"i00", *names[31:]} <= set(known())  # who is here, and of whom something waits
    log.close()


@pytest.mark.parametrize("kind", KINDS)
def test_5_a_crowd_that_was_cut_off_is_bounded_too(kind: str, tmp_path: Path) -> None:
    log = ContractDriver(kind, tmp_path, FEW).open()
    audience = log.log.audience([])
    names = [f"i{number:03}" for number in range(150)]
    log.append(*[make_batch(audience, incarnation=name) for name in names])
    drop_all(log, 0)
    drop_all(log, 1)
    left = [name for name in names if log.resume("shop", name).floor == 2]
    assert len(left) == FEW.incarnations
    log.close()


@pytest.mark.parametrize("goodbye", [False, True], ids=["cut off", "goodbye"])
@pytest.mark.parametrize("kind", KINDS)
def test_5_a_crowd_is_seen_when_it_comes_though_there_was_nobody_to_forget_just_before(
    kind: str, goodbye: bool, tmp_path: Path
) -> None:
    """A look in vain is not repeated for a minute; what comes meanwhile is another matter."""
    log = ContractDriver(kind, tmp_path, FEW).open()
    audience = log.log.audience([])
    few = FEW.incarnations
    most = few + 2 if goodbye else 10 * few
    names = [f"i{number:03}" for number in range(most)]
    log.append(*[make_batch(audience, incarnation=name) for name in names])
    drop_all(log, 0)
    drop_all(log, 1)
    for second in range(1, 31):
        new = [f"s{second:02}-{number}" for number in range(5)]
        log.append(*[make_batch(audience, incarnation=name) for name in new])
        left = [("shop", name) for name in new] if goodbye else []
        now = second * 1000
        while log.wait(log.log.retain(now, (), left)):
            pass
        names += new
        names = [name for name in names if log.resume("shop", name).floor == 2]
        assert few <= len(names) <= most + most // 8 + 5
    log.close()


@pytest.mark.parametrize("kind", KINDS)
def test_5_who_sent_after_he_was_last_seen_here_is_away_from_then_on(
    kind: str, tmp_path: Path
) -> None:
    """A sender may come, send and go between two passes."""
    log = ContractDriver(kind, tmp_path, replace(FEW, incarnations=1)).open()
    audience = log.log.audience([])
    log.append(make_batch(audience, incarnation="old"))
    drop_all(log, 0)
    log.wait(log.log.retain(60_000, [("shop", "old")]))
    for minute, name, sequence in ((50, "old", 2), (51, "new", 1)):
        log.wait(log.log.retain(minute * 60_000))
        log.append(make_batch(audience, sequence, incarnation=name))
    for minute in (62, 63, 64):
        drop_all(log, minute * 60_000)
    assert [log.resume("shop", name).floor for name in ("old", "new")] == [3, 2]
    log.close()


@pytest.mark.parametrize("kind", KINDS)
def test_5_senders_that_sleep_are_known_as_they_were(kind: str, tmp_path: Path) -> None:
    """More are away than memory holds: what they had taken is found again, by whatever asks."""
    limits = replace(FEW, keep_seconds=3600.0, keep_bytes=1 << 30)
    log = ContractDriver(kind, tmp_path, limits).open()
    log.receivers(1)
    audience = log.log.audience([1])
    names = [f"i{number:02}" for number in range(40)]
    log.append(*[make_batch(audience, 1, [b"a", b"b"], incarnation=name) for name in names])
    log.append(make_batch(audience, 9, [b"c"], after=8, incarnation="i07"))
    before = {name: log.resume("shop", name) for name in names}
    asleep = iter(names)

    def sleeps() -> str:
        """One that nothing has asked for since all fell asleep."""
        for second in range(1, 4):
            log.wait(log.log.retain(second * 1000))
        return next(asleep)

    name = sleeps()
    assert log.resume("shop", name) == before[name]
    (outcome,) = log.append(make_batch(audience, 1, [b"a", b"b"], incarnation=sleeps()))
    assert isinstance(outcome, Known)
    assert not outcome.fresh
    (outcome,) = log.append(make_batch(audience, 2, [b"x"], incarnation=sleeps()))
    assert isinstance(outcome, RefusedBatch)
    assert isinstance(outcome.error, ContentChanged)
    (outcome,) = log.append(
        make_batch(audience, 1, [b"a", b"b"], incarnation=sleeps(), refusal=NoReceiver("a"))
    )
    assert isinstance(outcome, Known)
    name = sleeps()
    (piece,) = log.wait(log.log.history("shop", name, 1, 100)).pieces
    assert (piece.first, piece.last) == (1, 2)
    name = sleeps()
    wanted = StatusFrom(sender="shop", incarnation=name, status_from=2)
    log.append(statuses_from=[wanted])
    log.append(make_batch(audience, 3, [b"d"], incarnation=name))
    sleeps()
    assert log.resume("shop", name).floor == 4
    assert log.resume("shop", "i07") == before["i07"]
    sleeps()
    page = log.read([audience])
    assert [batch.incarnation for batch in page[:40]] == names
    assert log.wait(log.log.audit()) == []
    settle(log, 1, page[-1], len(page))
    drop_all(log, 2 * HOUR)
    assert log.read([audience]) == []
    log.close()


def test_19_history_gives_way_to_what_is_to_come(tmp_path: Path) -> None:
    limits = Limits(reserve_bytes=1024, max_bytes=100_000, keep_seconds=3600)
    log = ContractDriver("memory", tmp_path, limits).open()
    log.receivers(1, 2)
    audience = log.log.audience([1])
    sequence = 1
    for _ in range(50):
        batches = [make_batch(audience, sequence + n, [b"x" * 10_000]) for n in range(3)]
        assert log.append(*batches) == batches
        sequence += 3
        settle(log, 1, batches[-1], 3)
    log.wait(log.log.retain(1))
    assert 50_000 < log.log.room().used <= 100_000 - 100_000 // 8
    waiting = [make_batch(audience, sequence + n, [b"x" * 10_000]) for n in range(12)]
    outcomes = log.append(*waiting)
    assert outcomes[:9] == waiting[:9]
    assert all(isinstance(outcome, RefusedBatch) for outcome in outcomes[9:])


@pytest.mark.parametrize(
    ("messages", "reason"), [(1000, ""), (100, "\u2026" * 900)], ids=["", "why"]
)
def test_12_dead_letters_count_and_go_with_their_receiver(
    log: ContractDriver, messages: int, reason: str
) -> None:
    """Their reasons count as well: with a traceback they may be longer than what failed."""
    audience = log.log.audience([1, 2])
    batch = make_batch(audience, 1, [b"x" * 1000])
    log.append(batch)
    body = b"\x91\xc4\x00" * messages
    letter = DeadLetter(1, batch.first, "shop", "i1", 1, "s", body, reason, 1, NOW)
    log.progress(1, batch.last, settled={Status.DEAD: 1}, dead=[letter])
    settle(log, 2, batch, 1)
    drop_all(log)
    assert 3000 < log.log.dead_bytes(1) == log.log.room().used < 3500
    before = log.log.dead_bytes(1)
    log.reopen()
    assert before == log.log.dead_bytes(1) == log.log.room().used
    log.append(removed=[1])
    drop_all(log)
    assert log.log.dead_bytes(1) == log.log.room().used == 0
    assert log.wait(log.log.dead_letters(1, -1, 10)) == []


def test_20_unused_audiences_make_room_although_one_of_all_waits_to_be_stored(
    tmp_path: Path,
) -> None:
    limits = Limits(reserve_bytes=1024, keep_seconds=0, keep_bytes=0, audiences=3)
    log = ContractDriver("memory", tmp_path, limits).open()
    log.receivers(1, 2)
    log.wait(log.log.retain(0))  # the first look for what nobody needs; the next is in an hour
    for n, members in enumerate(([1], [2]), 1):
        batch = make_batch(log.log.audience(members), n)
        log.append(batch)
        settle(log, members[0], batch, 1)
    log.log.audience([1, 2]).waiting += 1  # a batch of it is in no group yet
    with pytest.raises(LimitReached):
        log.log.audience([])
    for minutes in range(1, 4):
        while log.wait(log.log.retain(minutes * 60_000)):
            pass
    log.log.audience([])


def test_20_unused_audiences_make_room_where_a_lower_limit_than_that_of_all_is_reached(
    tmp_path: Path,
) -> None:
    limits = Limits(reserve_bytes=1024, keep_seconds=0, keep_bytes=0, audiences=40)
    log = ContractDriver("memory", tmp_path, limits).open()
    log.receivers(1, 2)
    log.wait(log.log.retain(0))  # the first look for what nobody needs; the next is in an hour
    audience = log.log.audience([1])
    batch = make_batch(audience)
    log.append(batch)
    settle(log, 1, batch, 1)
    log.log.want_room("sender_audiences", "shop")  # as one is told who has made as many as he may
    for minutes in range(1, 4):
        while log.wait(log.log.retain(minutes * 60_000)):
            pass
    assert not audience.stored


@pytest.fixture(params=KINDS)
def keeping(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ContractDriver]:
    """A log that keeps its history for an hour, after its first look for what nobody needs."""
    limits = Limits(
        reserve_bytes=64 * 1024, keep_seconds=3600, sender_audiences=4, to_audiences=3, audiences=9
    )
    driver = ContractDriver(request.param, tmp_path / "data", limits).open()
    driver.receivers(1, 2, 3, 4)
    drop_all(driver, 0)
    yield driver
    assert driver.wait(driver.log.audit()) == []
    driver.reopen()
    assert driver.wait(driver.log.audit()) == []
    driver.close()


def sets_of(log: ContractDriver, *asked: tuple[str | None, list[int]]) -> list[Batch]:
    """One batch for each set of receivers, made by the `to` of a sender, or by a pattern."""
    batches = []
    for sequence, (sender, members) in enumerate(asked, 1):
        audience = log.log.audience(members)
        audience.asked_by = sender
        batches.append(make_batch(audience, sequence))
    assert log.append(*batches) == batches
    return batches


def pass_minutes(log: ContractDriver, minutes: range) -> None:
    for minute in minutes:
        drop_all(log, minute * 60_000)


def kept(log: ContractDriver, batches: list[Batch]) -> list[int]:
    return numbers(log.read([batch.audience for batch in batches]))


@pytest.mark.parametrize(
    ("limit", "sender", "left"),
    [
        ("sender_audiences", "shop", [4, 5, 6, 7]),  # half of four: two sets of this sender
        ("to_audiences", "", [2, 3, 4, 5, 6, 7]),  # of whichever sender
        ("audiences", "", [5, 6, 7]),
        ("removed_receivers", "", [1, 2, 3, 4, 5, 6, 7]),  # history holds no place of these
    ],
)
def test_19_history_gives_way_to_a_set_of_receivers_oldest_first_and_no_more_than_that(
    keeping: ContractDriver, limit: str, sender: str, left: list[int]
) -> None:
    log = keeping
    asked = [("web", [1]), ("shop", [2]), ("shop", [3]), (None, [4]), (None, [1, 2])]
    batches = sets_of(log, *asked, ("shop", [1, 3]), ("web", [2, 3]))
    for number, count in ((1, 3), (2, 3), (3, 3), (4, 1)):
        settle(log, number, batches[-1], count)
    pass_minutes(log, range(1, 4))
    assert [1, 2, 3, 4, 5, 6, 7] == kept(log, batches)
    log.log.want_room(limit, sender)
    pass_minutes(log, range(4, 8))
    assert left == kept(log, batches)
    stored = [batch.number for batch in batches if batch.audience.stored]
    assert left == stored or limit == "removed_receivers"


def test_19_history_behind_what_is_waited_for_does_not_give_way(keeping: ContractDriver) -> None:
    log = keeping
    batches = sets_of(log, ("shop", [1]), (None, [2]), ("shop", [3]))
    settle(log, 1, batches[-1], 1)
    settle(log, 3, batches[-1], 1)
    for minutes in (range(1, 3), range(3, 5)):
        log.log.want_room("sender_audiences", "shop")
        pass_minutes(log, minutes)
        # Nothing is gained by the third: its row stays until the second has gone.
        assert [2, 3] == kept(log, batches)
    settle(log, 2, batches[1], 1)
    log.log.want_room("sender_audiences", "shop")
    pass_minutes(log, range(5, 8))
    assert [] == kept(log, batches)
    assert not any(batch.audience.stored for batch in (batches[0], batches[2]))


def test_19_a_set_has_a_place_seconds_after_it_was_wanted_however_many_were_before(
    keeping: ContractDriver,
) -> None:
    log = keeping
    asked: list[tuple[str | None, list[int]]]
    asked = [("shop", members) for members in ([1], [2], [3], [4], [1, 2], [1, 3])]
    batches = sets_of(log, *asked)
    for number, count in enumerate((3, 2, 2, 1), 1):
        settle(log, number, batches[-1], count)
    for second in range(1, 6, 2):  # half of `sender_audiences` each time
        log.log.want_room("sender_audiences", "shop")
        for now in (second, second + 1):
            drop_all(log, now * 1000)
        assert len(kept(log, batches)) == max(0, 5 - second)


def test_19_what_is_settled_while_a_set_waits_gives_way_as_soon_as_that_took_again(
    keeping: ContractDriver,
) -> None:
    log = keeping
    batches = sets_of(log, ("shop", [1]), ("shop", [2]))
    for second in range(1, 11):
        log.log.want_room("sender_audiences", "shop")
        drop_all(log, second * 1000)
    assert [1, 2] == kept(log, batches)
    settle(log, 1, batches[0], 1)
    for second in range(11, 21):
        log.log.want_room("sender_audiences", "shop")
        drop_all(log, second * 1000)
    assert [2] == kept(log, batches)


def test_19_a_dead_letter_stays_when_the_history_around_it_gives_way(
    keeping: ContractDriver,
) -> None:
    log = keeping
    (batch,) = sets_of(log, ("shop", [1]))
    letter = DeadLetter(1, batch.first, "shop", "i1", 1, "s", b"message", "", 1, NOW)
    log.progress(1, batch.last, settled={Status.DEAD: 1}, dead=[letter])
    log.log.want_room("sender_audiences", "shop")
    pass_minutes(log, range(1, 4))
    assert [] == kept(log, [batch])
    (found,) = log.wait(log.log.dead_letters(1, -1, 10))
    assert b"message" == found.message


def test_12_dead_letters_of_a_removed_receiver_stay_for_a_while_unless_their_room_is_needed(
    tmp_path: Path,
) -> None:
    limits = Limits(reserve_bytes=1024, max_bytes=100_000, keep_seconds=3600)
    log = ContractDriver("memory", tmp_path, limits).open()
    log.receivers(1, 2)
    audience = log.log.audience([1, 2])
    batches = [make_batch(audience, n, [b"x" * 10_000]) for n in (1, 2)]
    log.append(*batches)
    for number, batch in zip((1, 2), batches, strict=True):
        letter = DeadLetter(
            number, batch.first, "shop", "i1", batch.sequence, "s", b"x" * 40_000, "", 1, NOW
        )
        log.progress(number, batch.first, settled={Status.DEAD: 1}, dead=[letter])
    log.append(removed=[1, 2])
    for minutes in (0, 30, 59):
        log.wait(log.log.retain(minutes * 60_000))
        assert log.log.dead_bytes(1) == log.log.dead_bytes(2) > 40_000
    waiting = [make_batch(audience, n, [b"x" * 10_000]) for n in (3, 4)]
    assert log.append(*waiting) == waiting, "refused for what nobody may need"
    assert min(log.log.dead_bytes(1), log.log.dead_bytes(2)) == 0
    while log.wait(log.log.retain(61 * 60_000)):
        pass
    assert 0 == log.log.dead_bytes(1) == log.log.dead_bytes(2)


@pytest.mark.parametrize("kind", ["sqlite", "memory", "dicts"])
def test_12_how_long_dead_letters_outlive_their_receiver_is_counted_over_restarts(
    tmp_path: Path, kind: str
) -> None:
    """`keep_seconds` count from the removal on, while the log is open, however often it is."""
    log = ContractDriver(kind, tmp_path, Limits(reserve_bytes=1024, keep_seconds=3600)).open()
    log.receivers(1)
    (batch,) = batches = [make_batch(log.log.audience([1]), 1)]
    log.append(*batches)
    letter = DeadLetter(1, batch.first, "shop", "i1", 1, "s", b"message", "", 1, NOW)
    log.progress(1, batch.first, settled={Status.DEAD: 1}, dead=[letter])
    log.wait(log.log.retain(0))
    log.append(removed=[1])
    for starts, minutes in ((0, (0, 20)), (10**9, (0, 20)), (5, (0, 19))):
        for minute in minutes:  # by a clock that begins anywhere
            log.wait(log.log.retain(starts + minute * 60_000))
            assert [letter] == log.wait(log.log.dead_letters(1, -1, 10))
        log.reopen()
    for minute in (0, 2):
        log.wait(log.log.retain(minute * 60_000))
    assert [] == log.wait(log.log.dead_letters(1, -1, 10))


def test_one_sender_may_not_leave_holes_without_end(tmp_path: Path) -> None:
    log = ContractDriver("memory", tmp_path, Limits(reserve_bytes=1024, sender_ranges=3)).open()
    audience = log.log.audience([])
    holed = [make_batch(audience, n, after=n - 1) for n in (10, 20, 30)]
    assert log.append(*holed) == holed
    one, joined, other = (
        make_batch(audience, 40, after=39),
        make_batch(audience, 31, after=30),
        make_batch(audience, 1, incarnation="i2"),
    )
    refused, *taken = log.append(one, joined, other)
    assert taken == [joined, other]
    assert isinstance(refused, RefusedBatch)
    assert isinstance(refused.error, LimitReached)
    assert refused.error.limit == "sender_ranges"


def test_11_final_states_outlive_their_batches(log: ContractDriver) -> None:
    audience = log.log.audience([1, 2])
    batches = [make_batch(audience, 2 * i - 1, [b"x", b"y"]) for i in range(1, 6)]
    log.append(*batches)
    log.progress(
        1,
        batches[4].last,
        settled={Status.ACKNOWLEDGED: 9, Status.DEAD: 1},
        exceptions=[exception(1, batches[2].first, batches[2].first, reason="bad")],
    )
    settle(log, 2, batches[4], 10)
    before = log.wait(log.log.history("shop", "i1", 1, 100)).states
    drop_all(log)
    after = log.wait(log.log.history("shop", "i1", 1, 100))
    assert after.pieces == ()
    assert before == after.states
    assert [
        StateRange(1, Status.ACKNOWLEDGED, 1, 4),
        StateRange(2, Status.ACKNOWLEDGED, 1, 10),
        StateRange(1, Status.DEAD, 5, 5, "bad"),
        StateRange(1, Status.ACKNOWLEDGED, 6, 10),
    ] == list(after.states)
    log.reopen()
    assert log.snapshot.exceptions == {}
    assert after == log.wait(log.log.history("shop", "i1", 1, 100))


def test_11_finished_ranges_grow_together_over_calls(log: ContractDriver) -> None:
    audience = log.log.audience([1])
    for i in range(1, 30):
        batch = make_batch(audience, i)
        log.append(batch)
        settle(log, 1, batch, 1)
        drop_all(log)
    states = log.wait(log.log.history("shop", "i1", 1, 100)).states
    assert (StateRange(1, Status.ACKNOWLEDGED, 1, 29),) == states


def test_54_what_a_producer_has_heard_is_kept_for_who_asks(log: ContractDriver) -> None:
    audience = log.log.audience([1])
    batches = [make_batch(audience, i) for i in range(1, 11)]
    log.append(*batches)
    settle(log, 1, batches[4], 5)
    drop_all(log)
    log.append(statuses_from=[StatusFrom(sender="shop", incarnation="i1", status_from=8)])
    settle(log, 1, batches[9], 5)
    drop_all(log)
    states = log.wait(log.log.history("shop", "i1", 1, 100)).states
    assert (StateRange(1, Status.ACKNOWLEDGED, 1, 10),) == states
    log.reopen()
    for sequence in (1, 5, 9):
        identity = f"shop/{hash_of('i1')}/{sequence}"
        assert log.wait(log.log.find(identity)) is None
        found = log.wait(log.log.find_finished(identity))
        assert found is not None
        assert {1: (Status.ACKNOWLEDGED, 0, "")} == found.states
        assert (found.removed, found.position, found.sequence) == (True, 0, sequence)
    assert log.wait(log.log.find_finished(f"shop/{hash_of('i1')}/11")) is None


def test_54_an_id_lives_as_long_as_the_states_of_its_message(log: ContractDriver) -> None:
    audience = log.log.audience([1, 2])
    batch = make_batch(audience, 1, [b"a", b"b", b"c"], ids=((0, "one"), (2, "three")))
    log.append(batch)
    settle(log, 1, batch, 3)
    log.progress(
        2,
        batch.last,
        exceptions=[exception(2, batch.last, batch.last, Status.CANCELLED, reason="not now")],
        settled={Status.ACKNOWLEDGED: 2, Status.CANCELLED: 1},
    )
    drop_all(log)
    assert log.wait(log.log.find("three")) is None
    found = log.wait(log.log.find_finished("three"))
    assert found is not None
    assert found.states == {
        1: (Status.ACKNOWLEDGED, 0, ""),
        2: (Status.CANCELLED, 0, "not now"),
    }
    assert ("shop", "i1", 3) == (found.sender, found.incarnation, found.sequence)
    assert found.removed
    first = log.wait(log.log.find_finished("three", 0, 1))
    second = log.wait(log.log.find_finished("three", 1, 1))
    assert first is not None
    assert second is not None
    assert ([*first.states], first.more) == ([1], True)
    assert ([*second.states], second.more) == ([2], False)
    assert log.wait(log.log.find_finished("two")) is None
    assert log.wait(log.log.find_finished("one", senders=["web"])) is None
    assert log.wait(log.log.find_finished("one", senders=["shop"])) is not None
    drop_all(log, NOW + 7 * 24 * HOUR - HOUR)
    assert log.wait(log.log.find_finished("one")) is not None
    drop_all(log, NOW + 7 * 24 * HOUR + 7 * HOUR)
    assert log.wait(log.log.find_finished("one")) is None
    assert log.wait(log.log.audit()) == []


def test_11_states_go_after_seven_days(log: ContractDriver) -> None:
    audience = log.log.audience([1])
    batch = make_batch(audience)
    log.append(batch)
    settle(log, 1, batch, 1)
    drop_all(log)
    drop_all(log, NOW + 7 * 24 * HOUR)
    assert len(log.wait(log.log.history("shop", "i1", 1, 100)).states) == 1
    drop_all(log, NOW + 7 * 24 * HOUR + 7 * HOUR)
    assert log.wait(log.log.history("shop", "i1", 1, 100)).states == ()


def test_4_content_is_compared_after_the_batch_has_gone(log: ContractDriver) -> None:
    audience = log.log.audience([1])
    batch = make_batch(audience, 1, [b"a"])
    log.append(batch)
    settle(log, 1, batch, 1)
    drop_all(log)
    same, other = log.append(make_batch(audience, 1, [b"a"]), make_batch(audience, 1, [b"X"]))
    assert Known(pieces=(Piece(1, 1, audience, position_of(1)),)) == same
    assert isinstance(other, RefusedBatch)


@pytest.mark.parametrize("addressed", [False, True])
def test_4_whether_to_named_the_receivers_is_compared_after_the_batch_has_gone(
    log: ContractDriver, addressed: bool
) -> None:
    audience = log.log.audience([1])
    batch = make_batch(audience, 1, [b"a"], addressed=addressed)
    log.append(batch)
    settle(log, 1, batch, 1)
    drop_all(log)
    same, other = log.append(
        make_batch(audience, 1, [b"a"], addressed=addressed),
        make_batch(audience, 1, [b"a"], addressed=not addressed),
    )
    assert isinstance(same, Known)
    assert isinstance(other, RefusedBatch)


def test_4_content_is_compared_after_the_batches_have_gone_however_it_is_cut(
    log: ContractDriver,
) -> None:
    audience = log.log.audience([1])
    batches = [make_batch(audience, i, [b"%d" % i]) for i in (1, 2, 3)]
    log.append(*batches)
    settle(log, 1, batches[-1], 3)
    drop_all(log)
    bodies = [b"1", b"2", b"3"]
    (same,) = log.append(make_batch(audience, 1, bodies))
    assert isinstance(same, Known)
    (other,) = log.append(make_batch(audience, 1, [b"1", b"X", b"3"]))
    assert isinstance(other, RefusedBatch)


def test_4_a_repeat_of_what_is_long_forgotten_is_still_known(log: ContractDriver) -> None:
    audience = log.log.audience([1])
    batches = [make_batch(audience, i) for i in range(1, 1100)]
    log.append(*batches)
    settle(log, 1, batches[-1], 1099)
    drop_all(log)
    (outcome,) = log.append(make_batch(audience, 1, [b"a", b"b"]))
    assert isinstance(outcome, Known)
    assert [(p.first, p.last, p.position, p.audience.members) for p in outcome.pieces] == [
        (1, 2, 0, ())
    ]
    (outcome,) = log.append(make_batch(audience, 100))
    assert isinstance(outcome, Known)
    assert position_of(100) == outcome.pieces[0].position


def test_5_an_incarnation_that_stayed_away_is_forgotten_when_all_is_settled(
    log: ContractDriver,
) -> None:
    audience = log.log.audience([1])
    gone, stuck = make_batch(audience), make_batch(audience, incarnation="i2")
    log.append(gone, stuck)
    settle(log, 1, gone, 1)
    drop_all(log)
    drop_all(log, NOW + 8 * 24 * HOUR)
    assert (log.resume("shop", "i1").floor, log.resume("shop", "i2").floor) == (1, 2)
    log.reopen()
    assert (log.resume("shop", "i1").floor, log.resume("shop", "i2").floor) == (1, 2)
    (outcome,) = log.append(make_batch(audience, 2, after=1))
    assert isinstance(outcome, Batch)


def test_20_unused_audiences_are_collected_and_their_counts_kept(log: ContractDriver) -> None:
    log.receivers(*range(3, 31))
    for other in range(3, 31):
        batch = make_batch(log.log.audience([1, other]), other, after=0)
        log.append(batch)
        settle(log, 1, batch, 1)
        settle(log, other, batch, 1)
    drop_all(log)
    assert log.unaccounted() == [0] * 30
    accounts = {a.receiver: a for a in log.wait(log.log.accounts())}
    assert (accounts[1].routed, accounts[30].routed) == (28, 1)
    log.append(make_batch(log.log.audience([1, 3]), 500))
    log.reopen()
    assert [audience.members for audience in log.snapshot.audiences] == [(1, 3)]
    log.append(make_batch(log.log.audience([1, 3]), 501))
    accounts = {a.receiver: a for a in log.wait(log.log.accounts())}
    assert accounts[1].routed == 30
    log.progress(1, position_of(1000), settled={Status.ACKNOWLEDGED: 2})
    log.progress(3, position_of(1000), settled={Status.ACKNOWLEDGED: 2})
    assert {0} == set(log.unaccounted())


@pytest.mark.parametrize("addressed", [False, True])
def test_8_the_number_of_a_collected_audience_is_no_other_audience_s_after_a_restart(
    log: ContractDriver, addressed: bool
) -> None:
    log.receivers(*range(3, 31))
    for other in range(3, 31):
        batch = make_batch(
            log.log.audience([1, other]), other, after=other - 1, addressed=addressed
        )
        log.append(batch)
        settle(log, 1, batch, 1)
        settle(log, other, batch, 1)
    drop_all(log)
    log.reopen()
    assert log.snapshot.audiences == []
    others = [log.log.audience([2, other]) for other in range(3, 31)]
    log.append(*[make_batch(one, n) for n, one in enumerate(others, 500)])
    repeats = [
        msgspec.structs.replace(
            make_batch(log.log.audience([1, other]), other), addressed=addressed
        )
        for other in range(3, 31)
    ]
    for outcome in log.append(*repeats):  # the answers were lost
        assert isinstance(outcome, Known)
        (piece,) = outcome.pieces
        # Nobody where it is not known any more; never who has that number now.
        assert piece.audience.members in ((), (1, piece.first))


def test_ids_go_with_their_batches(log: ContractDriver) -> None:
    audience = log.log.audience([1])
    batch = make_batch(audience, ids=((0, "o-1"),))
    log.append(batch)
    settle(log, 1, batch, 1)
    assert log.wait(log.log.find("o-1")) is not None
    drop_all(log)
    assert log.wait(log.log.find("o-1")) is None


def is_waited_for(batch: Batch, cursor: dict[int, int]) -> bool:
    return any(cursor[receiver] < batch.last for receiver in batch.audience.members)


@pytest.mark.parametrize("seed", range(4))
def test_21_random_histories_stay_whole_and_accounted(log: ContractDriver, seed: int) -> None:
    """Receivers at their own pace, retention at any time; the fixture audits at the end."""
    rng = random.Random(seed)
    log.receivers(3, 4)
    sets = [(1,), (2,), (1, 2), (3, 4), (1, 2, 3, 4), ()]
    sequence = 1
    stored: list[Batch] = []
    cursor = dict.fromkeys((1, 2, 3, 4), 0)
    for step in range(60):
        group = []
        for _ in range(rng.randrange(12)):
            count = rng.randrange(1, 4)
            audience = log.log.audience(rng.choice(sets))
            group.append(make_batch(audience, sequence, [b"%d" % i for i in range(count)]))
            sequence += count
        log.append(*group)
        stored += group
        receiver = rng.choice((1, 2, 3, 4))
        mine = [b for b in stored if receiver in b.audience.members and b.last > cursor[receiver]]
        if mine:
            end = mine[rng.randrange(len(mine))]
            done = sum(b.count for b in mine if b.last <= end.last)
            cursor[receiver] = end.last
            settle(log, receiver, end, done)
        if step % 5 == 4:
            log.wait(log.log.retain(NOW + 1))
        if step == 30:
            log.reopen()
            table = {a.members for a in log.snapshot.audiences}
            assert {b.audience.members for b in stored if is_waited_for(b, cursor)} <= table
    assert {0} == set(log.unaccounted())
    drop_all(log)
    kept = [b.number for b in stored if is_waited_for(b, cursor)]
    audiences = [log.log.audience(members) for members in sets]
    found: list[int] = []
    while page := log.read(audiences, position_of(found[-1], 0xFFFF) if found else -1):
        found += numbers(page)
    assert kept == found


def test_20_an_audience_that_waits_to_be_stored_is_not_given_to_another(
    log: ContractDriver,
) -> None:
    waiting = log.log.audience([1])
    waiting.waiting += 1
    for number in range(2, 2 + 3 * KEEP_NOTHING.audiences):
        log.log.audience([number])
    assert log.log.audience([1]) is waiting
    assert not waiting.is_gone


def test_20_audiences_that_nothing_has_any_more_make_room_within_minutes(
    log: ContractDriver,
) -> None:
    limit = KEEP_NOTHING.audiences
    drop_all(log, NOW)  # it was looked for what may go a moment ago
    log.receivers(*range(3, limit + 2))
    for other in range(2, limit + 2):
        batch = make_batch(log.log.audience([1, other]), other, after=0)
        log.append(batch)
        settle(log, 1, batch, 1)
        settle(log, other, batch, 1)
    with pytest.raises(LimitReached):
        log.log.audience([1])
    drop_all(log)
    drop_all(log, NOW + HOUR // 20)
    assert (1,) == log.log.audience([1]).members


def test_removed_receivers_are_forgotten_when_nothing_refers_to_them(log: ContractDriver) -> None:
    log.receivers(3, 4)
    audience = log.log.audience([1, 3])
    batch = make_batch(audience, 1)
    log.append(batch)
    settle(log, 1, batch, 1)
    settle(log, 3, batch, 1)
    log.append(removed=[3, 4])
    drop_all(log)
    drop_all(log, NOW + 2 * HOUR)  # what became of its message is still known for some days
    assert log.log.take_forgotten() == []
    later = NOW + 8 * 24 * HOUR
    drop_all(log, later)
    drop_all(log, later + HOUR)
    # The highest number stays: numbers are never used again.
    assert log.log.take_forgotten() == [3]
    assert log.log.take_forgotten() == []
    log.reopen()
    assert [row.number for row in log.snapshot.receivers] == [1, 2, 4]


def test_a_change_of_a_receiver_that_comes_after_it_was_forgotten_does_not_bring_it_back(
    log: ContractDriver,
) -> None:
    """It waited for its group while retention had its turn."""
    rows = [ReceiverRow(number=number, name=f"r{number}") for number in (3, 4)]
    log.append(receivers=rows)
    log.append(removed=[3])
    drop_all(log)
    drop_all(log, NOW + 2 * HOUR)
    assert log.log.take_forgotten() == [3]
    log.append(receivers=[rows[0], ReceiverRow(number=6, name="r6"), rows[1]])
    log.append(receivers=[ReceiverRow(number=7, name="r7"), rows[0]])
    log.reopen()
    known = {row.number: row.removed for row in log.snapshot.receivers}
    assert known == dict.fromkeys((1, 2, 4, 6, 7), False)


def test_the_newest_removed_receiver_of_a_name_with_an_owner_is_not_forgotten(
    log: ContractDriver,
) -> None:
    rows = {
        number: ReceiverRow(number=number, name=name, owner=owner)
        for number, name, owner in (
            (3, "billing", "shop"),  # the name was made again, so that one says whose it is
            (4, "billing", "shop"),
            (5, "audit", "shop"),
            (6, "audit", ""),  # let go by the operator when it was made again
            (7, "plain", ""),
            (8, "last", ""),  # the highest number stays
        )
    }
    log.append(receivers=list(rows.values()))
    log.append(removed=list(rows))
    drop_all(log)
    drop_all(log, NOW + 2 * HOUR)
    assert sorted(log.log.take_forgotten()) == [3, 5, 6, 7]
    log.reopen()
    kept = {row.number: (row.owner, row.removed) for row in log.snapshot.receivers}
    assert kept == {1: ("", False), 2: ("", False), 4: ("shop", True), 8: ("", True)}
    rows[4].owner = ""
    log.append(receivers=[rows[4]])
    drop_all(log, NOW + 4 * HOUR)  # a clock that begins anywhere
    drop_all(log, NOW + 6 * HOUR)
    assert log.log.take_forgotten() == [4]


def test_4_the_subject_is_remembered_when_the_row_has_gone(log: ContractDriver) -> None:
    audience = log.log.audience([1])
    batch = make_batch(audience, 1, [b"a"], subject="orders.new")
    log.append(batch)
    settle(log, 1, batch, 1)
    drop_all(log)
    log.reopen()
    assert log.wait(log.log.find(f"log:{batch.first}")) is None
    (outcome,) = log.append(make_batch(audience, 1, [b"a"], subject="orders.old"))
    assert isinstance(outcome, RefusedBatch)
    (outcome,) = log.append(make_batch(audience, 1, [b"a"], subject="orders.new"))
    assert isinstance(outcome, Known)
    (outcome,) = log.append(make_batch(audience, 1, [b"b"], subject="orders.new"))
    assert isinstance(outcome, RefusedBatch)
