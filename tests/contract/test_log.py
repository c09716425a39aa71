"""The contract of `ILog`, one suite for every implementation."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from zope.interface.verify import verifyObject

from msgservice.errors import (
    ContentChanged,
    LimitReached,
    LogFull,
    NoReceiver,
    UnknownReceiver,
)
from msgservice.interfaces import ILog
from msgservice.limits import Limits
from msgservice.message import Status, decode_messages, header_size, message_sizes, options_of
from msgservice.receiver_options import ReceiverOptions
from msgservice.records import (
    NOBODY,
    NODE,
    Appended,
    Batch,
    DeadLetter,
    Group,
    Known,
    Origin,
    Piece,
    Progress,
    ReceiverRow,
    RefusedBatch,
    Resume,
    StateRange,
    StatusFrom,
    position_of,
)
from tests.kit.logs import NOW, SMALL, ContractDriver, exception, make_batch, numbers

KINDS = ("memory", "sqlite", "dicts")


@pytest.fixture(params=KINDS)
def log(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ContractDriver]:
    driver = ContractDriver(request.param, tmp_path / "data").open()
    yield driver
    driver.close()


def test_provides_the_interface(log: ContractDriver) -> None:
    assert verifyObject(ILog, log.log)


# --- append and read -----------------------------------------------------------------------------


def test_a_new_batch_is_its_own_outcome_and_gets_number_and_time(log: ContractDriver) -> None:
    batch = make_batch(log.log.audience([1]), bodies=[b"x", b"y"])
    outcome = log.append(batch)
    assert [batch] == outcome
    assert outcome[0] is batch
    assert (1, NOW, position_of(1), position_of(1, 1)) == (
        batch.number,
        batch.stored_at,
        batch.first,
        batch.last,
    )


def test_numbers_have_no_gaps_across_groups(log: ContractDriver) -> None:
    audience = log.log.audience([1])
    for group in range(5):
        log.append(*(make_batch(audience, group * 7 + i + 1) for i in range(7)))
    assert list(range(1, 36)) == numbers(log.read([audience]))


@pytest.mark.parametrize("count", [1, 15, 16, 17, 63, 64, 383, 384, 385, 900])
def test_a_group_of_any_size_comes_back_as_it_went_in(log: ContractDriver, count: int) -> None:
    audience = log.log.audience([1])
    bodies = [[b"%d" % i, b"\x00\xff%d" % i] for i in range(count)]
    log.append(*(make_batch(audience, 2 * i + 1, bodies[i]) for i in range(count)))
    read: list[Batch] = []
    while page := log.read([audience], read[-1].last if read else -1):
        read += page
    assert bodies == [[m.body for m in decode_messages(b.messages)] for b in read]
    assert list(range(1, count + 1)) == numbers(read)


def test_what_is_read_is_what_was_stored(log: ContractDriver) -> None:
    audience = log.log.audience([2, 1])
    origin = Origin("far", 9, "abcd", ("n1", "n2"))
    batch = make_batch(
        audience,
        5,
        [b"q"],
        after=0,
        options=options_of(2),
        origin=origin,
        sender="shöp",
        subject="ä,b[1]",
        expires_at=NOW + 7,
    )
    log.append(batch)
    (read,) = log.read([audience])
    for field in Batch.__struct_fields__:
        if field != "ids":
            assert getattr(batch, field) == getattr(read, field), field


def test_what_expires_is_found_in_the_order_of_its_time_with_what_lies_between(
    log: ContractDriver,
) -> None:
    one, two = log.log.audience([1]), log.log.audience([2])
    log.append(
        make_batch(one, 1, [b"a", b"b"], expires_at=500),
        make_batch(two, 3),
        make_batch(two, 4, expires_at=300),
        make_batch(one, 5, expires_at=400, sender="other"),
        make_batch(one, 6, expires_at=900),
    )
    page = log.wait(log.log.expiring((0, 0), 299, 10))
    assert ((), 300) == (page.batches, page.next)
    page = log.wait(log.log.expiring((0, 0), 500, 2))
    assert [(3, 2, 1), (4, 1, 1)] == [batch[:3] for batch in page.batches]
    assert ((), (400, 4), 500) == (page.between, page.at, page.next)
    page = log.wait(log.log.expiring(page.at, 500, 2))
    assert ([(1, 1, 2)], 900) == ([batch[:3] for batch in page.batches], page.next)
    page = log.wait(log.log.expiring((0, 0), 500, 10))
    assert [1, 3, 4] == [batch[0] for batch in page.batches]
    assert ((2, 2),) == page.between
    assert {("shop", "i1", 1, 4), ("other", "i1", 5, 5)} == set(page.senders)
    assert log.wait(log.log.expiring((900, 5), 10_000, 10)).next is None
    if log.kind != "memory":
        log.reopen()
        assert 300 == log.snapshot.expires
        assert [500, None, 300, 400, 900] == [b.expires_at for b in log.read([one, two])]


@pytest.mark.parametrize("wrap", [bytes, memoryview, "raw"])
def test_messages_of_any_buffer_type_are_stored_as_they_are(
    log: ContractDriver, wrap: object
) -> None:
    import msgspec

    audience = log.log.audience([1])
    batch = make_batch(audience)
    plain = bytes(batch.messages)
    batch.messages = msgspec.Raw(plain) if wrap == "raw" else wrap(plain)  # type: ignore[operator]
    log.append(batch)
    assert [plain] == [bytes(b.messages) for b in log.read([audience])]


def test_read_gives_a_batch_whose_last_position_is_above_after(log: ContractDriver) -> None:
    audience = log.log.audience([1])
    log.append(make_batch(audience, 1, [b"1", b"2", b"3"]), make_batch(audience, 4, [b"4"]))
    assert numbers(log.read([audience], position_of(1, 1))) == [1, 2]
    assert numbers(log.read([audience], position_of(1, 2))) == [2]
    assert numbers(log.read([audience], position_of(2, 0))) == []


def test_read_gives_nothing_that_begins_behind_its_end(log: ContractDriver) -> None:
    """A page may be read late: what was stored meanwhile is not in it."""
    audience, other = log.log.audience([1]), log.log.audience([2])
    log.append(make_batch(audience, 1, [b"1", b"2"]), make_batch(other, 3, [b"3"]))
    log.append(make_batch(audience, 4, [b"4"]))
    assert numbers(log.read([audience], to=position_of(3) - 1)) == [1]
    assert numbers(log.read([audience], to=position_of(1))) == [1]
    assert numbers(log.read([audience], to=position_of(3))) == [1, 3]
    assert numbers(log.read([audience], position_of(1, 1), to=position_of(3) - 1)) == []
    assert numbers(log.read([audience, other], to=position_of(1, 1), messages_max=1)) == [1]


def test_read_gives_at_least_one_batch_however_large(log: ContractDriver) -> None:
    audience = log.log.audience([1])
    log.append(*(make_batch(audience, i, [b"x" * 1000]) for i in (1, 2, 3)))
    assert numbers(log.read([audience], -1, bytes_max=10, messages_max=1)) == [1]
    assert numbers(log.read([audience], -1, bytes_max=2100, messages_max=100)) == [1, 2]
    assert numbers(log.read([audience], -1, bytes_max=1 << 20, messages_max=2)) == [1, 2]


def test_read_merges_audiences_in_the_order_of_the_log(log: ContractDriver) -> None:
    """SEMANTICS 24."""
    audiences = [log.log.audience([i]) for i in range(1, 6)]
    plan = [(i * i) % 5 for i in range(200)] + [4] * 100 + [0, 1, 2, 3] * 10
    log.append(*(make_batch(audiences[a], i + 1) for i, a in enumerate(plan)))
    wanted = {1, 4}
    expected = [i + 1 for i, a in enumerate(plan) if a in wanted]
    found: list[int] = []
    while page := log.read(
        [audiences[1], audiences[4]], position_of(found[-1]) if found else -1, messages_max=7
    ):
        found += numbers(page)
    assert expected == found


def test_read_of_no_audience_is_empty(log: ContractDriver) -> None:
    log.append(make_batch(log.log.audience([1])))
    assert log.read([]) == []


def test_equal_sets_of_receivers_are_one_audience(log: ContractDriver) -> None:
    assert log.log.audience([3, 1, 2]) is log.log.audience((1, 2, 3, 3))
    assert log.log.audience([3, 1, 2]).members == (1, 2, 3)
    assert log.log.audience([]) is log.log.audience(())


def test_audiences_are_limited(tmp_path: Path) -> None:
    """SEMANTICS 20."""
    log = ContractDriver("memory", tmp_path, Limits(audiences=3, reserve_bytes=1)).open()
    for i in (1, 2, 3):
        log.append(make_batch(log.log.audience([i]), i))
    with pytest.raises(LimitReached, match="audiences = 3"):
        log.log.audience([4])


def test_an_interned_audience_without_batches_gives_way(tmp_path: Path) -> None:
    log = ContractDriver("memory", tmp_path, Limits(audiences=3, reserve_bytes=1)).open()
    for i in range(1, 10):
        log.log.audience([i])
    assert log.log.audience([10]).members == (10,)


# --- dedupe --------------------------------------------------------------------------------------


def test_1_a_repeat_is_known_at_its_old_position(log: ContractDriver) -> None:
    audience = log.log.audience([1])
    log.append(make_batch(audience, 1, [b"a", b"b"]))
    (outcome,) = log.append(make_batch(audience, 1, [b"a", b"b"]))
    assert Known(pieces=(Piece(1, 2, audience, position_of(1)),)) == outcome
    assert numbers(log.read([audience])) == [1]


def test_2_a_repeat_within_one_group_is_known(log: ContractDriver) -> None:
    audience = log.log.audience([1])
    first, again = log.append(make_batch(audience), make_batch(audience))
    assert isinstance(first, Batch)
    assert Known(pieces=(Piece(1, 1, audience, first.first),)) == again


def test_1_a_lower_sequence_in_a_hole_is_new(log: ContractDriver) -> None:
    audience = log.log.audience([1])
    log.append(make_batch(audience, 10, [b"j"]))
    (outcome,) = log.append(make_batch(audience, 3, [b"c"]))
    assert isinstance(outcome, Batch)
    assert Resume(ranges=((3, 3), (10, 10)), last=(10, 10, log.read([audience])[0].crc)) == (
        log.resume("shop", "i1")
    )


def test_1_a_gap_named_by_after_is_taken_with_the_run(log: ContractDriver) -> None:
    audience = log.log.audience([1])
    log.append(make_batch(audience, 10, [b"j"], after=4))
    assert log.resume("shop", "i1").ranges == ((5, 10),)
    log.append(make_batch(audience, 1, [b"a", b"b", b"c", b"d"], after=0))
    assert (
        log.resume("shop", "i1").floor,
        log.resume("shop", "i1").ranges,
    ) == (11, ())


def test_4_a_run_cut_differently_is_trimmed(log: ContractDriver) -> None:
    audience = log.log.audience([1])
    log.append(make_batch(audience, 3, [b"3", b"4"]))
    (outcome,) = log.append(make_batch(audience, 1, [b"%d" % i for i in range(1, 8)], after=0))
    assert isinstance(outcome, Known)
    assert [(b.sequence, b.sequence + b.count - 1) for b in outcome.fresh] == [(1, 2), (5, 7)]
    assert [
        Piece(1, 2, audience, position_of(2)),
        Piece(3, 4, audience, position_of(1)),
        Piece(5, 7, audience, position_of(3)),
    ] == list(outcome.pieces)
    bodies = {
        batch.sequence + i: m.body
        for batch in log.read([audience])
        for i, m in enumerate(decode_messages(batch.messages))
    }
    assert {i: b"%d" % i for i in range(1, 8)} == bodies
    assert Resume(floor=8, last=(5, 7, outcome.fresh[1].crc)) == log.resume("shop", "i1")


def test_4_other_content_under_a_taken_sequence_is_refused_alone(log: ContractDriver) -> None:
    audience = log.log.audience([1])
    log.append(make_batch(audience, 1, [b"a", b"b"]))
    changed, cut, fine = log.append(
        make_batch(audience, 1, [b"a", b"X"]),
        make_batch(audience, 2, [b"X"]),
        make_batch(audience, 3, [b"c"]),
    )
    for outcome in (changed, cut):
        assert isinstance(outcome, RefusedBatch)
        assert isinstance(outcome.error, ContentChanged)
    assert isinstance(fine, Batch)
    assert log.resume("shop", "i1").floor == 4


def test_4_the_same_content_cut_differently_is_known(log: ContractDriver) -> None:
    audience = log.log.audience([1])
    log.append(make_batch(audience, 1, [b"a", b"b", b"c"]))
    (outcome,) = log.append(make_batch(audience, 2, [b"b"]))
    assert Known(pieces=(Piece(2, 2, audience, position_of(1, 1)),)) == outcome


def test_4_content_is_compared_after_a_restart(log: ContractDriver) -> None:
    audience = log.log.audience([1])
    log.append(make_batch(audience, 1, [b"a"]))
    log.reopen()
    audience = log.log.audience([1])
    same, other = log.append(make_batch(audience, 1, [b"a"]), make_batch(audience, 1, [b"X"]))
    assert isinstance(same, Known)
    assert isinstance(other, RefusedBatch)


def test_5_incarnations_of_a_name_are_senders_of_their_own(log: ContractDriver) -> None:
    audience = log.log.audience([1])
    log.append(make_batch(audience), make_batch(audience, incarnation="i2"))
    log.append(make_batch(audience, bodies=[b"b"], incarnation="i3"))
    assert numbers(log.read([audience])) == [1, 2, 3]
    assert Resume() == log.resume("shop", "i4")


def test_resume_survives_a_restart(log: ContractDriver) -> None:
    audience = log.log.audience([1])
    log.append(*(make_batch(audience, i, [b"%d" % i]) for i in (1, 2, 5, 6, 9)))
    before = log.resume("shop", "i1")
    log.reopen()
    assert before == log.resume("shop", "i1")
    assert (before.floor, before.ranges) == (3, ((5, 6), (9, 9)))


@pytest.mark.parametrize("kind", KINDS)
def test_6_the_floor_passes_nothing_that_is_newer_than_what_resume_names(
    kind: str, tmp_path: Path
) -> None:
    """What was refused there was never taken: a restored outbox may reuse its sequence."""
    log = ContractDriver(kind, tmp_path, Limits(max_bytes=5000, reserve_bytes=64 * 1024)).open()
    log.receivers(1)
    audience = log.log.audience([1])
    log.append(make_batch(audience, 1), make_batch(audience, 2))
    (full,) = log.append(make_batch(audience, 5, [b"x" * 6000], after=4, floor=5))
    assert isinstance(full, RefusedBatch)
    for _ in range(2):
        found = log.resume("shop", "i1")
        assert (found.floor, found.ranges) == (3, ())
        log.reopen()
        audience = log.log.audience([1])
    (reused,) = log.append(make_batch(audience, 3, [b"another"], after=2))
    assert isinstance(reused, Batch)
    # With something newer it holds.
    log.append(make_batch(audience, 6, after=5, floor=5), make_batch(audience, 7, floor=5))
    for _ in range(2):
        found = log.resume("shop", "i1")
        assert (found.floor, found.ranges) == (5, ((6, 7),))
        log.reopen()
    log.close()


# --- room ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_18_a_log_at_its_limit_refuses_but_takes_the_rest_of_the_group(
    kind: str, tmp_path: Path
) -> None:
    log = ContractDriver(kind, tmp_path, Limits(max_bytes=5000, reserve_bytes=64 * 1024)).open()
    log.receivers(1)
    audience = log.log.audience([1])
    first, second, third = log.append(
        make_batch(audience, 1, [b"x" * 3000]),
        make_batch(audience, 2, [b"x" * 3000]),
        make_batch(audience, 3, [b"x"]),
    )
    assert isinstance(first, Batch)
    for outcome in (second, third):  # the third would fit, and would overtake the second
        assert isinstance(outcome, RefusedBatch)
        assert isinstance(outcome.error, LogFull)
        assert outcome.error.delay > 0
    assert log.resume("shop", "i1").floor == 2
    (again,) = log.append(make_batch(audience, 1, [b"x" * 3000]))
    assert isinstance(again, Known)  # a repeat needs no room
    assert 3000 < log.log.room().used <= 5000
    log.close()


# --- receivers, progress and accounts ------------------------------------------------------------


def test_a_new_receiver_starts_just_before_the_first_batch_of_its_group(
    log: ContractDriver,
) -> None:
    """SEMANTICS 9."""
    audience = log.log.audience([1])
    log.append(make_batch(audience, 1), make_batch(audience, 2))
    row = ReceiverRow(number=2, name="b", cursor=-1)
    log.append(make_batch(log.log.audience([1, 2]), 3), receivers=[row])
    assert position_of(3) - 1 == row.cursor
    log.reopen()
    assert [position_of(3) - 1] == [r.cursor for r in log.snapshot.receivers]


def test_a_receiver_comes_back_as_it_was(log: ContractDriver) -> None:
    row = ReceiverRow(
        number=7,
        name="billing",
        address="tcp:127.0.0.1:1",
        patterns=("orders.>", "x.*"),
        configured=True,
        options=ReceiverOptions(
            order="none",
            paused=True,
            window_messages=5,
            window_bytes=6,
            on_full="suspend",
            backlog_bytes=7,
        ),
        suspended=True,
        epoch="0123456789ab",
        owner="shop",
        created_at=NOW,
        cursor=42,
        inbox="box",
    )
    log.append(receivers=[row])
    log.reopen()
    assert [row] == log.snapshot.receivers


def test_a_changed_row_leaves_cursor_and_counts_alone(log: ContractDriver) -> None:
    log.receivers(1)
    audience = log.log.audience([1])
    batch = make_batch(audience)
    log.append(batch)
    log.progress(1, batch.last, settled={Status.ACKNOWLEDGED: 1}, settled_bytes=9, inbox="box")
    log.append(
        receivers=[ReceiverRow(number=1, name="r1", options=ReceiverOptions(paused=True), cursor=5)]
    )
    log.reopen()
    (row,) = log.snapshot.receivers
    assert (True, batch.last, {Status.ACKNOWLEDGED: 1}, 9, "box") == (
        row.options.paused,
        row.cursor,
        row.settled,
        row.settled_bytes,
        row.inbox,
    )


def test_23_accounts_add_up_at_every_step(log: ContractDriver) -> None:
    log.receivers(1, 2)
    both, one = log.log.audience([1, 2]), log.log.audience([1])
    batches = [make_batch(both if i % 3 else one, i * 2 + 1, [b"x", b"y"]) for i in range(30)]
    log.append(*batches)
    accounts = {a.receiver: a for a in log.wait(log.log.accounts())}
    assert (accounts[1].routed, accounts[1].queued, accounts[1].settled) == (60, 60, {})
    assert (accounts[2].routed, accounts[2].queued) == (40, 40)
    # half a batch
    log.progress(1, batches[10].first, settled={Status.ACKNOWLEDGED: 21})
    accounts = {a.receiver: a for a in log.wait(log.log.accounts())}
    assert (accounts[1].routed, accounts[1].queued) == (60, 39)
    # acknowledged out of order, and one dead, above the cursor
    log.progress(
        1,
        batches[10].first,
        exceptions=[
            exception(1, batches[12].first, batches[14].last, Status.ACKNOWLEDGED),
            exception(1, batches[20].first, batches[20].first, Status.DEAD),
            exception(1, batches[21].first, batches[21].first, Status.QUEUED),
        ],
        settled={Status.ACKNOWLEDGED: 6, Status.DEAD: 1},
    )
    accounts = {a.receiver: a for a in log.wait(log.log.accounts())}
    assert accounts[1].queued == 32
    assert log.unaccounted() == [0, 0]
    assert log.wait(log.log.audit()) == []
    log.reopen()
    assert log.unaccounted() == [0, 0]


def test_accounts_name_the_oldest_message_that_waits(log: ContractDriver) -> None:
    log.receivers(1, 2)
    both, other = log.log.audience([1, 2]), log.log.audience([2])
    first, foreign, second, third = batches = [
        make_batch(both, 1, [b"x"] * 3),
        make_batch(other, 4, [b"x"]),
        make_batch(both, 5, [b"x"] * 2),
        make_batch(both, 7, [b"x"]),
    ]
    log.append(*batches)

    def oldest() -> tuple[int, str, int] | None:
        (account,) = log.wait(log.log.accounts([1]))
        at = account.oldest
        return None if at is None else (at.position, at.subject, at.at)

    def waits(batch: Batch, index: int) -> bool:
        return oldest() == (batch.first + index, batch.subject, batch.stored_at)

    assert waits(first, 0)
    log.progress(1, first.first, settled={Status.ACKNOWLEDGED: 1})
    assert waits(first, 1)
    done = exception(1, first.first + 1, second.first, Status.ACKNOWLEDGED)
    log.progress(1, first.first, exceptions=[done], settled={Status.ACKNOWLEDGED: 3})
    assert waits(second, 1)
    tried = exception(1, second.last, second.last, Status.QUEUED)
    log.progress(1, second.first, exceptions=[tried])
    assert waits(second, 1)
    log.progress(1, second.last, settled={Status.ACKNOWLEDGED: 1})
    assert waits(third, 0)
    log.reopen()
    assert waits(third, 0)
    log.progress(1, third.last, settled={Status.ACKNOWLEDGED: 1})
    assert oldest() is None
    assert foreign.number


def test_accounts_say_how_many_bytes_wait(log: ContractDriver) -> None:
    log.receivers(1)
    audience = log.log.audience([1])
    batches = [make_batch(audience, 2 * i + 1, [b"x" * i, b"y"]) for i in range(5)]
    other = make_batch(log.log.audience([]), 100, [b"z" * 500])
    log.append(*batches, other)
    for done in range(6):
        (account,) = log.wait(log.log.accounts())
        assert account.queued_bytes == sum(batch.size for batch in batches[done:])
        if done < 5:
            log.progress(1, batches[done].last, settled={Status.ACKNOWLEDGED: 2})
    log.progress(1, other.last)
    (account,) = log.wait(log.log.accounts())
    assert (account.queued, account.queued_bytes) == (0, 0)


def test_a_batch_that_is_half_done_still_counts_in_bytes(log: ContractDriver) -> None:
    log.receivers(1)
    batch = make_batch(log.log.audience([1]), 1, [b"a", b"b"])
    log.append(batch)
    log.progress(1, batch.first, settled={Status.ACKNOWLEDGED: 1})
    (account,) = log.wait(log.log.accounts())
    rest = make_batch(batch.audience, 1, [b"b"]).size - 1  # the header is the first part's
    assert (account.queued, account.queued_bytes) == (1, rest)


def test_room_is_known_as_soon_as_the_log_is_open(log: ContractDriver) -> None:
    room = log.log.room()
    assert (room.used, room.maximum, room.full) == (0, SMALL.max_bytes, None)
    assert room.free > 0 or not log.log.durable


def test_23_the_audit_finds_a_settled_message_that_was_not_counted(log: ContractDriver) -> None:
    log.receivers(1)
    batch = make_batch(log.log.audience([1]))
    log.append(batch)
    log.progress(1, batch.last)
    assert log.unaccounted() == [1]
    (sentence,) = log.wait(log.log.audit())
    assert "receiver 1: 1 routed, 0 queued, 0 settled" in sentence


def test_a_row_of_exceptions_replaces_those_that_begin_inside_it(log: ContractDriver) -> None:
    log.receivers(1)
    at = position_of(1)
    waiting = [exception(1, at + i, at + i, Status.QUEUED) for i in (10, 12, 14)]
    log.progress(1, 0, exceptions=waiting)
    log.progress(1, 0, exceptions=[exception(1, at + 10, at + 12, Status.ACKNOWLEDGED)])
    log.reopen()
    assert [
        exception(1, at + 10, at + 12, Status.ACKNOWLEDGED),
        exception(1, at + 14, at + 14, Status.QUEUED),
    ] == log.snapshot.exceptions[1]


def test_rows_of_one_group_replace_each_other_in_their_order(log: ContractDriver) -> None:
    log.receivers(1)
    at = position_of(1)
    first = Progress(
        receiver=1,
        cursor=0,
        exceptions=[exception(1, at + i, at + i, Status.QUEUED) for i in (1, 3, 5, 7)],
    )
    second = Progress(
        receiver=1,
        cursor=0,
        exceptions=[
            exception(1, at + 2, at + 5, Status.ACKNOWLEDGED),
            exception(1, at + 7, at + 7, Status.DEAD, reason="no"),
        ],
    )
    log.append(progress=[first, second])
    log.reopen()
    assert log.snapshot.exceptions[1] == [
        exception(1, at + 1, at + 1, Status.QUEUED),
        exception(1, at + 2, at + 5, Status.ACKNOWLEDGED),
        exception(1, at + 7, at + 7, Status.DEAD, reason="no"),
    ]


@pytest.mark.parametrize("seed", range(20))
def test_rows_of_one_group_replace_each_other_as_if_each_came_alone(
    log: ContractDriver, seed: int
) -> None:
    rng = random.Random(seed)
    log.receivers(1, 2)
    at = position_of(1)
    rows = []
    for _ in range(rng.randrange(1, 40)):
        first = at + rng.randrange(30)
        last = first + rng.choice((0, 0, 1, 4, 12))
        rows.append((first, last, rng.choice((Status.QUEUED, Status.ACKNOWLEDGED, Status.DEAD))))
    log.progress(1, 0, exceptions=[exception(1, *row) for row in rows])
    for row in rows:
        log.progress(2, 0, exceptions=[exception(2, *row)])
    log.reopen()
    together, alone = log.snapshot.exceptions[1], log.snapshot.exceptions[2]
    assert together == [exception(1, row.first, row.last, row.status) for row in alone]


@pytest.mark.parametrize("count", [1, 17, 2000])
def test_any_number_of_exceptions_fits_in_a_group(log: ContractDriver, count: int) -> None:
    log.receivers(1)
    at = position_of(1)
    rows = [exception(1, at + 2 * i, at + 2 * i, reason=f"'{i}\"") for i in range(count)]
    letters = [
        DeadLetter(1, at + 2 * i, "shop", "i1", i + 1, "s", b"\x91\xc4\x00", f"{i}", 1, NOW)
        for i in range(count)
    ]
    log.progress(1, 0, exceptions=rows, dead=letters)
    log.reopen()
    assert log.snapshot.exceptions[1] == rows
    assert log.wait(log.log.dead_letters(1, -1, 5000)) == letters


def test_rows_that_the_cursor_has_passed_go_unless_they_say_more(log: ContractDriver) -> None:
    log.receivers(1)
    at = position_of(1)
    log.progress(
        1,
        0,
        exceptions=[
            exception(1, at + 10, at + 10, Status.ACKNOWLEDGED),
            exception(1, at + 11, at + 11, Status.DEAD, reason="no"),
            exception(1, at + 12, at + 12, Status.QUEUED, attempts=2, next_at=5),
            exception(1, at + 13, at + 20, Status.ACKNOWLEDGED),
        ],
    )
    log.progress(1, at + 12)
    log.reopen()
    assert [exception(1, at + 13, at + 20, Status.ACKNOWLEDGED)] == log.snapshot.exceptions[1]
    assert at + 12 == log.snapshot.receivers[0].cursor


def test_a_cursor_never_goes_back(log: ContractDriver) -> None:
    log.receivers(1)
    log.progress(1, position_of(500))
    log.progress(1, position_of(400))
    log.reopen()
    assert position_of(500) == log.snapshot.receivers[0].cursor


def test_10_what_waits_for_a_removed_receiver_is_removed(log: ContractDriver) -> None:
    log.receivers(1, 2)
    audience = log.log.audience([1, 2])
    batches = [make_batch(audience, i) for i in (1, 2, 3, 4)]
    log.append(*batches)
    log.progress(
        1,
        batches[0].last,
        exceptions=[exception(1, batches[2].first, batches[2].last, Status.ACKNOWLEDGED)],
        settled={Status.ACKNOWLEDGED: 2},
    )
    log.append(removed=[1])
    log.reopen()
    removed = next(r for r in log.snapshot.receivers if r.number == 1)
    assert removed.removed
    assert removed.settled == {Status.ACKNOWLEDGED: 2, Status.REMOVED: 2}
    assert [a.receiver for a in log.wait(log.log.accounts())] == [2]
    history = log.wait(log.log.history("shop", "i1", 1, 100))
    assert [
        StateRange(1, Status.ACKNOWLEDGED, 1, 1),
        StateRange(1, Status.REMOVED, 2, 2),
        StateRange(1, Status.ACKNOWLEDGED, 3, 3),
        StateRange(1, Status.REMOVED, 4, 4),
    ] == list(history.states)


@pytest.mark.parametrize("seed", range(6))
def test_10_the_states_at_removed_receivers_are_told_alone_page_by_page(
    log: ContractDriver, seed: int
) -> None:
    rng = random.Random(seed)
    numbers = [1, 2, 3, 4, 5]
    log.receivers(*numbers)
    batches = [
        make_batch(log.log.audience(rng.sample(numbers, rng.randint(0, 5))), 3 * i + 1, [b"x"] * 3)
        for i in range(20)
    ]
    log.append(*batches, make_batch(log.log.audience(numbers), 1, sender="other"))
    for number in numbers:
        mine = [b for b in batches if number in b.audience.members]
        at = rng.randint(0, len(mine))
        settled = {Status.ACKNOWLEDGED: 3 * at}
        log.progress(number, mine[at - 1].last if at else -1, settled=settled)
    removed = rng.sample(numbers, 2)
    log.append(removed=removed)
    if rng.random() < 0.5:
        for elapsed in (0, 1000, 2000):
            log.wait(log.log.retain(elapsed))
    page = log.wait(log.log.history("shop", "i1", 1, 100))
    expected = [state for state in page.states if state.receiver in removed]
    found: list[StateRange] = []
    first: int | None = rng.choice([1, 1, 7])
    begin = first
    while first is not None:
        page = log.wait(log.log.history("shop", "i1", first, rng.randint(1, 4), removed))
        assert (page.pieces, page.gone) == ((), ())
        assert page.next is None or page.next > first
        found += page.states
        first = page.next

    def each(states: list[StateRange]) -> list[tuple[int, int, Status, str]]:
        return sorted(
            (sequence, state.receiver, state.status, state.reason)
            for state in states
            for sequence in range(max(state.first, begin or 1), state.last + 1)
        )

    assert each(found) == each(expected)
    nobody = log.wait(log.log.history("nobody", "i", 1, 10, removed))
    assert (nobody.states, nobody.next) == ((), None)


def test_10_what_a_receiver_settled_in_the_group_of_its_removal_stays_settled(
    log: ContractDriver,
) -> None:
    log.receivers(1, 2)
    audience = log.log.audience([1, 2])
    batches = [make_batch(audience, i) for i in (1, 2, 3, 4)]
    log.append(*batches)
    letter = DeadLetter(1, batches[2].first, "shop", "i1", 3, "orders.new", b"x", "no", 1, NOW)
    step = Progress(
        receiver=1,
        cursor=batches[0].last,
        exceptions=[exception(1, batches[2].first, batches[2].last, Status.DEAD, reason="no")],
        settled={Status.ACKNOWLEDGED: 1, Status.DEAD: 1},
        dead=[letter],
    )
    late = make_batch(audience, 5)
    log.append(late, removed=[1], progress=[step])
    log.reopen()
    removed = next(r for r in log.snapshot.receivers if r.number == 1)
    assert removed.settled == {Status.ACKNOWLEDGED: 1, Status.DEAD: 1, Status.REMOVED: 3}
    history = log.wait(log.log.history("shop", "i1", 1, 100))
    assert [
        StateRange(1, Status.ACKNOWLEDGED, 1, 1),
        StateRange(1, Status.REMOVED, 2, 2),
        StateRange(1, Status.DEAD, 3, 3, "no"),
        StateRange(1, Status.REMOVED, 4, 5),
    ] == _joined(list(history.states))
    assert [letter] == log.wait(log.log.dead_letters(1, 0, 10))
    assert log.wait(log.log.audit()) == []


def _joined(states: list[StateRange]) -> list[StateRange]:
    joined: list[StateRange] = []
    for state in states:
        before = joined[-1] if joined else None
        if before is not None and (before.status, before.last + 1) == (state.status, state.first):
            joined[-1] = StateRange(
                state.receiver, state.status, before.first, state.last, state.reason
            )
        else:
            joined.append(state)
    return joined


@pytest.mark.parametrize("seed", range(12))
def test_18_what_waits_is_counted_exactly_however_it_was_settled(
    log: ContractDriver, seed: int
) -> None:
    rng = random.Random(seed)
    log.receivers(1, 2)
    mine, other = log.log.audience([1]), log.log.audience([2])
    batches: list[Batch] = []
    sequence = 1
    for _ in range(14):
        bodies = [bytes(rng.randrange(1, 400)) for _ in range(rng.choice([1, 1, 3, 20]))]
        batch = make_batch(rng.choice([mine, mine, other]), sequence, bodies)
        sequence += len(bodies)
        log.append(batch)
        batches.append(batch)
    sizes: dict[int, int] = {}
    for batch in batches:
        if batch.audience is mine:
            for index, size in enumerate(message_sizes(batch.messages)):
                header = 0 if index else header_size(batch.messages)
                sizes[batch.first + index] = size + header
    places = sorted(sizes)
    cursor = rng.choice([places[0] - 1, *places[:8]])
    above = [place for place in places if place > cursor]
    rows = []
    while above:
        skip, take = rng.randrange(1, 6), rng.randrange(1, 9)
        part, above = above[skip : skip + take], above[skip + take :]
        if part:
            rows.append(exception(1, part[0], part[-1], Status.ACKNOWLEDGED))
    done = {p for p in places if p <= cursor}
    done |= {p for row in rows for p in places if row.first <= p <= row.last}
    log.progress(1, cursor, exceptions=rows, settled={Status.ACKNOWLEDGED: len(done)})
    account = next(a for a in log.wait(log.log.accounts()) if a.receiver == 1)
    assert account.queued == len(places) - len(done)
    assert account.queued_bytes == sum(sizes[p] for p in places if p not in done)
    assert account.unaccounted == 0


def test_4_the_same_messages_for_another_subject_are_other_content(log: ContractDriver) -> None:
    audience = log.log.audience([1])
    log.append(make_batch(audience, 1, [b"a", b"b"], subject="orders.new"))
    for first, bodies in ((1, [b"a", b"b"]), (2, [b"b"]), (1, [b"a", b"b", b"c"])):
        (outcome,) = log.append(make_batch(audience, first, bodies, subject="orders.old"))
        assert isinstance(outcome, RefusedBatch)
        assert isinstance(outcome.error, ContentChanged)
        (outcome,) = log.append(make_batch(audience, first, bodies[:2], subject="orders.new"))
        assert isinstance(outcome, Known)


def test_4_the_same_messages_in_one_group_for_another_subject_are_other_content(
    log: ContractDriver,
) -> None:
    audience = log.log.audience([1])
    first, second = log.append(
        make_batch(audience, 1, [b"a"], subject="orders.new"),
        make_batch(audience, 1, [b"a"], subject="orders.old"),
    )
    assert isinstance(first, Batch)
    assert isinstance(second, RefusedBatch)


def test_2_what_nobody_is_there_for_any_more_is_known_if_it_was_taken_before(
    log: ContractDriver,
) -> None:
    log.receivers(1)
    audience = log.log.audience([1])
    (taken,) = log.append(make_batch(audience, 1, [b"1", b"2"]))
    assert isinstance(taken, Batch)
    refusal = UnknownReceiver("gone")
    again = make_batch(NOBODY, 1, [b"1", b"2"])
    other = make_batch(NOBODY, 1, [b"1", b"3"])
    more = make_batch(NOBODY, 3, [b"3"])
    stranger = make_batch(NOBODY, 1, [b"1", b"2"], sender="other")
    for batch in (again, other, more, stranger):
        batch.refusal = refusal
    known, changed, *refused = log.append(again, other, more, stranger)
    assert isinstance(known, Known)
    assert known.pieces == (Piece(1, 2, audience, taken.first),)
    assert isinstance(changed, RefusedBatch)
    assert isinstance(changed.error, ContentChanged)
    assert refused == [RefusedBatch(refusal)] * 2
    assert log.resume("other", "i1") == Resume()
    assert log.wait(log.log.audit()) == []


def test_2_what_was_taken_of_a_larger_run_is_known_and_only_the_rest_refused(
    log: ContractDriver,
) -> None:
    """Between two sessions more was added to the run, and whom it was for has gone."""
    log.receivers(1)
    audience = log.log.audience([1])
    low, high = make_batch(audience, 2, [b"2"]), make_batch(audience, 4, [b"4", b"5"], after=3)
    bodies = [b"%d" % n for n in range(1, 7)]
    nobody = NoReceiver("a.b")
    larger = make_batch(NOBODY, 1, bodies, refusal=nobody)
    same_group = log.append(low, high, larger)
    known = Known(
        pieces=(Piece(2, 2, audience, low.first), Piece(4, 5, audience, high.first)),
        refused=((1, 1), (3, 3), (6, 6)),
    )
    log.reopen()
    before = log.resume("shop", "i1")
    later, again, changed = log.append(
        make_batch(NOBODY, 1, bodies, refusal=LogFull("billing is too far behind")),
        make_batch(NOBODY, 1, bodies, refusal=nobody),
        make_batch(NOBODY, 1, [*bodies[:4], b"other", b"6"], refusal=nobody),
    )
    assert same_group[2] == known
    assert isinstance(again, Known)
    assert again.refused == known.refused
    assert [(p.first, p.last, p.position) for p in again.pieces] == [
        (p.first, p.last, p.position) for p in known.pieces
    ]
    assert isinstance(later, RefusedBatch)  # it comes again, and is answered then
    assert isinstance(changed, RefusedBatch)
    assert isinstance(changed.error, ContentChanged)
    assert log.resume("shop", "i1") == before
    assert log.wait(log.log.audit()) == []


def test_4_the_same_messages_for_others_that_to_names_are_other_content(
    log: ContractDriver,
) -> None:
    log.receivers(1, 2)
    one, both = log.log.audience([1]), log.log.audience([1, 2])
    log.append(make_batch(one, 1, [b"a"], addressed=True))
    (outcome,) = log.append(make_batch(both, 1, [b"a"], addressed=True))
    assert isinstance(outcome, RefusedBatch)
    assert isinstance(outcome.error, ContentChanged)
    (outcome,) = log.append(make_batch(one, 1, [b"a"], addressed=True))
    assert isinstance(outcome, Known)
    log.append(make_batch(one, 2, [b"b"]))
    (outcome,) = log.append(make_batch(both, 2, [b"b"]))  # by patterns: those may have changed
    assert isinstance(outcome, Known)


@pytest.mark.parametrize("addressed", [False, True])
def test_4_whether_to_named_the_receivers_belongs_to_the_content(
    log: ContractDriver, addressed: bool
) -> None:
    audience = log.log.audience([1])

    def other_and_same(first: int, bodies: list[bytes]) -> None:
        (other,) = log.append(make_batch(audience, first, bodies, addressed=not addressed))
        assert isinstance(other, RefusedBatch)
        assert isinstance(other.error, ContentChanged)
        (same,) = log.append(make_batch(audience, first, bodies, addressed=addressed))
        assert isinstance(same, Known)

    stored, repeat = log.append(
        make_batch(audience, 1, [b"a", b"b"], options=options_of(4), addressed=addressed),
        make_batch(audience, 1, [b"a", b"b"], addressed=not addressed),  # in one group
    )
    assert isinstance(stored, Batch)
    assert isinstance(repeat, RefusedBatch)
    other_and_same(1, [b"a", b"b"])
    other_and_same(2, [b"b"])  # cut differently
    log.reopen()
    audience = log.log.audience([1])
    other_and_same(1, [b"a", b"b"])
    (read,) = log.read([audience])
    assert read.options == options_of(4)  # what is kept of it does not leave
    assert read.addressed is addressed


# --- history, find, dead letters -----------------------------------------------------------------


def test_11_history_gives_pieces_and_final_states(log: ContractDriver) -> None:
    log.receivers(1, 2)
    audience = log.log.audience([1, 2])
    batches = [make_batch(audience, i, [b"x", b"y"]) for i in (1, 3, 5)]
    log.append(*batches, make_batch(audience, 1, sender="other"))
    log.progress(1, batches[1].last, settled={Status.ACKNOWLEDGED: 4})
    log.progress(
        2,
        batches[0].first,
        exceptions=[exception(2, batches[1].first, batches[1].first, reason="bad")],
        settled={Status.ACKNOWLEDGED: 1, Status.DEAD: 1},
    )
    history = log.wait(log.log.history("shop", "i1", 2, 100))
    assert [
        Piece(2, 2, audience, position_of(1, 1)),
        Piece(3, 4, audience, position_of(2)),
        Piece(5, 6, audience, position_of(3)),
    ] == list(history.pieces)
    assert [
        StateRange(1, Status.ACKNOWLEDGED, 2, 4),
        StateRange(2, Status.DEAD, 3, 3, "bad"),
    ] == list(history.states)
    assert history.next is None


def test_11_what_the_cursor_has_passed_is_settled_whatever_its_attempts_were(
    log: ContractDriver,
) -> None:
    """A NACK names some that wait for their next attempt; then only the first of them are taken."""
    log.receivers(1)
    audience = log.log.audience([1])
    batch = make_batch(audience, 1, [b"1", b"2", b"3", b"4"])
    log.append(batch)
    tried = exception(1, batch.first, batch.last, Status.QUEUED, attempts=1, reason="not now")
    dead = exception(1, batch.first + 1, batch.first + 1, Status.DEAD, attempts=2, reason="never")
    log.progress(1, batch.first - 1, exceptions=[tried])
    log.progress(
        1,
        batch.first + 2,
        exceptions=[dead],
        settled={Status.ACKNOWLEDGED: 2, Status.DEAD: 1},
    )
    log.reopen()
    history = log.wait(log.log.history("shop", "i1", 1, 100))
    assert [
        StateRange(1, Status.ACKNOWLEDGED, 1, 1),
        StateRange(1, Status.DEAD, 2, 2, "never"),
        StateRange(1, Status.ACKNOWLEDGED, 3, 3),
    ] == list(history.states)
    found = [log.wait(log.log.find(f"log:{batch.first + n}")) for n in range(4)]
    assert [one and one.states[1] for one in found] == [
        (Status.ACKNOWLEDGED, 0, ""),
        (Status.DEAD, 2, "never"),
        (Status.ACKNOWLEDGED, 0, ""),
        (Status.QUEUED, 1, "not now"),
    ]
    assert log.wait(log.log.audit()) == []


def test_history_comes_in_pages(log: ContractDriver) -> None:
    audience = log.log.audience([1])
    log.receivers(1)
    log.append(*(make_batch(audience, i) for i in range(1, 11)))
    log.progress(1, position_of(10), settled={Status.ACKNOWLEDGED: 10})
    first: int | None = 1
    pieces: list[Piece] = []
    states: list[StateRange] = []
    pages = 0
    while first is not None:
        page = log.wait(log.log.history("shop", "i1", first, 3))
        pieces += page.pieces
        states += page.states
        first = page.next
        pages += 1
    assert pages == 4
    assert list(range(1, 11)) == [piece.first for piece in pieces]
    assert [(s.first, s.last) for s in states] == [(1, 3), (4, 6), (7, 9), (10, 10)]


def test_history_of_an_unknown_sender_is_empty(log: ContractDriver) -> None:
    history = log.wait(log.log.history("nobody", "i", 1, 10))
    assert (history.pieces, history.states, history.next) == ((), (), None)


def test_7_a_message_is_found_by_each_of_its_names(log: ContractDriver) -> None:
    from hashlib import sha256

    log.receivers(1, 2)
    audience = log.log.audience([1, 2])
    batch = make_batch(audience, 5, [b"x", b"y"], ids=((1, "o-17"),))
    log.append(batch)
    log.progress(1, 0, exceptions=[exception(1, batch.last, batch.last, Status.QUEUED, attempts=3)])
    log.progress(2, batch.last, settled={Status.ACKNOWLEDGED: 2})
    name = f"shop/{sha256(b'i1').hexdigest()[:16]}/6"
    found = [log.wait(log.log.find(identity)) for identity in ("o-17", name, f"log:{batch.last}")]
    assert found[0] == found[1] == found[2]
    assert found[0] is not None
    assert (batch.last, "shop", "i1", 6, "orders.new", NOW) == (
        found[0].position,
        found[0].sender,
        found[0].incarnation,
        found[0].sequence,
        found[0].subject,
        found[0].stored_at,
    )
    assert found[0].states == {1: (Status.QUEUED, 3, ""), 2: (Status.ACKNOWLEDGED, 0, "")}


def test_7_of_an_id_that_several_have_given_the_newest_of_whom_is_asked_for(
    log: ContractDriver,
) -> None:
    audience = log.log.audience([])
    for sender, sequence in (
        ("shop", 1),
        ("shop.till", 1),
        ("other", 1),
        ("shop", 2),
        ("other", 2),
    ):
        log.append(
            make_batch(audience, sequence, sender=sender, incarnation=sender, ids=((0, "17"),))
        )

    def found(*senders: str, identity: str = "17") -> tuple[str, int] | None:
        one = log.wait(log.log.find(identity, 0, None, senders))
        return None if one is None else (one.sender, one.sequence)

    assert ("shop", 2) == found("shop")
    assert ("shop.till", 1) == found("shop.>")
    assert ("shop", 2) == found("shop.>", "shop")
    assert ("other", 2) == found(">")
    assert found() is None
    assert found("nobody") is None
    whole = log.wait(log.log.find("17"))
    assert whole is not None
    assert ("other", 2) == (whole.sender, whole.sequence)
    assert ("other", 2) == found("shop", identity=f"log:{whole.position}")  # that names one


@pytest.mark.parametrize(
    "identity",
    ["", "x", "log:", "log:99999999999999999999999", "log:-1", "log:65537", "a/b/c", "shop/00/1"],
)
def test_what_is_not_there_is_not_found(log: ContractDriver, identity: str) -> None:
    log.append(make_batch(log.log.audience([1])))
    assert log.wait(log.log.find(identity)) is None


def test_12_dead_letters_keep_their_own_copy(log: ContractDriver) -> None:
    log.receivers(1)
    letters = [
        DeadLetter(1, p, "shop", "i1", p, "orders.new", b"\x91\xc4\x01x", "no", 20, NOW)
        for p in (10, 20, 30)
    ]
    log.progress(1, 40, dead=letters)
    log.reopen()
    assert letters[:2] == log.wait(log.log.dead_letters(1, -1, 2))
    assert letters[2:] == log.wait(log.log.dead_letters(1, 20, 2))
    assert log.wait(log.log.dead_letters(2, -1, 2)) == []


def test_19_a_page_of_dead_letters_is_no_longer_than_others(log: ContractDriver) -> None:
    log.receivers(1)
    letters = [
        DeadLetter(1, p, "shop", "i1", p, "orders.new", bytes(1024 * 1024), "no", 20, NOW)
        for p in range(1, 7)
    ]
    log.progress(1, 40, dead=letters)
    assert log.wait(log.log.dead_letters(1, 0, 1000)) == letters[:4]
    assert log.wait(log.log.dead_letters(1, 4, 1000)) == letters[4:]


def test_11_a_floor_for_an_unknown_sender_does_nothing(log: ContractDriver) -> None:
    log.append(statuses_from=[StatusFrom(sender="nobody", incarnation="i", status_from=5)])
    assert Resume() == log.resume("nobody", "i")


# --- all that was stored, and the node's own ------------------------------------------------------


def test_36_append_tells_all_that_was_stored_in_the_order_of_numbers(log: ContractDriver) -> None:
    """Whole, in parts, not at all: who lives on what was stored need not ask for each."""
    audience = log.log.audience([1])
    log.append(make_batch(audience, 2, [b"2"], after=1))
    new = make_batch(audience, 6, [b"6"], incarnation="i2", after=5)
    partly = make_batch(audience, 1, [b"1", b"2", b"3"], after=0)
    again = make_batch(audience, 2, [b"2"], after=1)
    other = make_batch(audience, 2, [b"another"], after=1)
    appended = log.appended(new, partly, again, other)
    first, second, third, fourth = appended.outcomes
    assert first is new
    assert isinstance(second, Known)
    assert isinstance(third, Known)
    assert isinstance(fourth, RefusedBatch)
    assert [2, 3, 4] == numbers(appended.stored)
    assert [6, 1, 3] == [batch.sequence for batch in appended.stored]
    assert (appended.stored[0], *second.fresh) == tuple(appended.stored)


def test_36_append_answers_in_a_later_turn(log: ContractDriver) -> None:
    waiter = log.log.append(Group())
    assert not waiter.called
    assert () == tuple(log.wait(waiter).stored)


def own_batch(log: ContractDriver, body: bytes = b"copy", sequence: int = 9) -> Batch:
    """Return a copy of a message of somebody's, as the node stores it."""
    origin = Origin("shop", sequence, "00ff", (log.log.log_id,))
    return make_batch(log.log.audience([1]), sequence, [body], origin=origin)


def test_36_what_the_node_itself_stores_has_a_sender_and_sequences_of_its_own(
    log: ContractDriver,
) -> None:
    log.append(make_batch(log.log.audience([1]), 9, [b"copy"], after=0))
    before = log.resume("shop", "i1")
    one, two = own_batch(log), own_batch(log)  # twice the same is no duplicate
    appended = log.appended(own=[one, two])
    assert ([], [one, two], [one, two]) == (appended.outcomes, appended.own, appended.stored)
    later = own_batch(log)
    log.reopen()
    assert [later] == log.appended(own=[later]).own
    found = log.read([log.log.audience([1])], position_of(1))
    assert [(NODE, log.log.log_id, n) for n in (1, 2, 3)] == [
        (batch.sender, batch.incarnation, batch.sequence) for batch in found
    ]
    assert [Origin("shop", 9, "00ff", (log.log.log_id,))] * 3 == [batch.origin for batch in found]
    assert before == log.resume("shop", "i1")


def test_36_no_state_of_the_original_is_touched_by_its_copy(log: ContractDriver) -> None:
    log.receivers(1)
    audience = log.log.audience([1])
    log.append(make_batch(audience, 1, [b"m"]))
    log.progress(1, position_of(1), settled={3: 1})
    states = log.wait(log.log.history("shop", "i1", 1, 10)).states
    assert [StateRange(1, Status.ACKNOWLEDGED, 1, 1)] == list(states)
    log.append(own=[own_batch(log, b"m", 1)])
    assert log.unaccounted() == [0]
    log.append(removed=[1])
    assert states == log.wait(log.log.history("shop", "i1", 1, 10)).states


def test_36_the_node_s_own_comes_before_what_others_sent_and_after_receivers(
    log: ContractDriver,
) -> None:
    row = ReceiverRow(number=1, name="r1", patterns=(">",), cursor=-1)
    batch, own = make_batch(log.log.audience([1])), own_batch(log)
    appended = log.appended(batch, own=[own], receivers=[row])
    assert [own, batch] == appended.stored
    assert (1, 2) == (own.number, batch.number)
    assert position_of(1) - 1 == row.cursor


def test_36_the_node_s_own_is_refused_where_there_is_no_room_and_may_come_again(
    tmp_path: Path,
) -> None:
    limits = Limits(reserve_bytes=8 * 1024 * 1024, max_bytes=150, keep_seconds=0)
    log = ContractDriver("memory", tmp_path, limits).open()
    audience = log.log.audience([1])
    one = own_batch(log, b"x" * 100)
    assert [one] == log.appended(own=[one]).own
    late = own_batch(log, b"y" * 100)
    appended = log.appended(make_batch(audience), own=[late])
    assert [RefusedBatch] * 2 == [type(one) for one in (*appended.own, *appended.outcomes)]
    log.receivers(1)
    log.progress(1, one.last, settled={3: 1})
    log.wait(log.log.retain(1))
    log.wait(log.log.retain(2))
    assert [late] == log.appended(own=[late]).own
    assert [1, 2] == [one.sequence, late.sequence]
    log.close()


# --- life ----------------------------------------------------------------------------------------


def test_an_empty_group_does_nothing(log: ContractDriver) -> None:
    assert log.wait(log.log.append(Group())) == Appended([], [])


def test_the_log_id_stays_over_a_restart(log: ContractDriver) -> None:
    before = log.log.log_id
    assert len(before) == 32
    log.reopen()
    assert before == log.log.log_id == log.snapshot.log_id


def test_the_snapshot_names_audiences_and_the_next_number(log: ContractDriver) -> None:
    log.append(make_batch(log.log.audience([1, 2])), make_batch(log.log.audience([]), 2))
    log.reopen()
    assert log.snapshot.next_number == 3
    assert [a.members for a in log.snapshot.audiences] == [(1, 2), ()]
    assert log.log.audience([2, 1]) is log.snapshot.audiences[0]
    assert log.log.audience([9]).number == 3


def test_closing_twice_is_safe(log: ContractDriver) -> None:
    log.close()
    log.close()


def test_numbers_go_on_after_a_restart(log: ContractDriver) -> None:
    log.append(make_batch(log.log.audience([1])))
    log.reopen()
    log.append(make_batch(log.log.audience([1]), 2))
    assert numbers(log.read([log.log.audience([1])])) == [1, 2]
    assert log.wait(log.log.audit()) == []


def test_small_defaults_are_used(log: ContractDriver) -> None:
    assert log.limits == SMALL
