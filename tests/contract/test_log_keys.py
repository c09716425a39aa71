"""Idempotency keys, in every log: once whatever is handed in, told to all who did (45)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from msgservice.errors import Forbidden, KeyReused, LimitReached, LogFull, NoReceiver
from msgservice.limits import Limits
from msgservice.message import Status
from msgservice.records import (
    NOBODY,
    NOT_YET,
    Audience,
    Batch,
    Cancel,
    History,
    KeyUse,
    Known,
    Outcome,
    Piece,
    Progress,
    RefusedBatch,
    StateRange,
    hash_of,
)
from tests.kit.logs import NOW, ContractDriver, make_batch

SMALL = Limits(
    reserve_bytes=64 * 1024,
    keep_seconds=0,
    keep_bytes=0,
    idempotency_keys=4,
    idempotency_key_seconds=100.0,
)
HOUR = 3_600_000
KINDS = ["memory", "sqlite", "dicts"]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=KINDS)
def log(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ContractDriver]:
    driver = ContractDriver(request.param, tmp_path, SMALL).open()
    driver.receivers(1, 2)
    yield driver
    driver.close()


def use(name: str = "k", content: str = "paid") -> KeyUse:
    return KeyUse(name.encode().rjust(16), content.encode().rjust(16), name)


def keyed(audience: Audience, sequence: int = 1, name: str = "k", **more: Any) -> Batch:
    content = more.pop("content", "paid")
    body = more.pop("body", b"paid")
    return make_batch(audience, sequence, [body], key=use(name, content), **more)


def position(outcome: Outcome) -> int:
    assert isinstance(outcome, Batch | Known)
    return outcome.first if isinstance(outcome, Batch) else outcome.pieces[0].position


def told(log: ContractDriver, incarnation: str, first: int = 1) -> History:
    return log.wait(log.log.history("shop", incarnation, first, 100))


def test_45_a_key_is_stored_once_whoever_comes_with_it_and_whenever(log: ContractDriver) -> None:
    audience = log.log.audience([1, 2])
    first, second = log.append(
        keyed(audience), keyed(audience, incarnation="i2", ids=((0, "mine"),))
    )
    (third,) = log.append(keyed(audience, 7, incarnation="i3", after=0))
    assert isinstance(first, Batch)
    assert isinstance(second, Known)
    assert isinstance(third, Known)
    assert second.by_key
    assert third.by_key
    assert [position(one) for one in (second, third)] == [first.first, first.first]
    assert second.pieces[0].audience is third.pieces[0].audience is audience
    assert [batch.number for batch in log.read([audience])] == [first.number]
    found = log.wait(log.log.find("mine"))
    assert found is not None
    assert found.position == first.first
    assert log.resume("shop", "i3").floor == 8


def test_45_a_message_is_found_by_its_key_and_a_sender_by_its_hash(log: ContractDriver) -> None:
    audience = log.log.audience([1])
    log.append(keyed(audience), keyed(audience, incarnation="i2"))
    (run,) = log.append(make_batch(audience, 2, [b"a", b"bc"]))
    assert isinstance(run, Batch)
    log.append(keyed(NOBODY, 5, name="late", due_at=LATER))
    for _ in range(2):
        whose = log.wait(log.log.of_key(use().digest))
        assert whose == f"shop/{hash_of('i1')}/1"
        assert log.wait(log.log.of_key(use("late").digest)) == f"shop/{hash_of('i1')}/5"
        assert log.wait(log.log.of_key(use("other").digest)) is None
        assert log.wait(log.log.incarnation("shop", hash_of("i2"))) == "i2"
        assert log.wait(log.log.incarnation("other", hash_of("i2"))) is None
        heads = log.wait(log.log.heads([run.number, 99]))
        assert heads == {run.number: (2, run.size)}
        log.reopen()


def test_45_a_run_with_a_key_is_stored_once_as_a_whole(log: ContractDriver) -> None:
    """Of a sender that hands in none again, as those are that have no session."""
    audience = log.log.audience([1])

    def run(incarnation: str, content: str = "three") -> Batch:
        bodies = [b"a", b"b", b"c"]
        return make_batch(
            audience, 1, bodies, incarnation=incarnation, key=use(content=content), floor=1
        )

    (first,) = log.append(run("i1"))
    (second, other) = log.append(run("i2"), run("i3", "other"))
    assert isinstance(first, Batch)
    assert isinstance(second, Known)
    (piece,) = second.pieces
    assert (1, 3, first.first) == (piece.first, piece.last, piece.position)
    assert isinstance(other, RefusedBatch)
    assert isinstance(other.error, KeyReused)
    (behind,) = log.append(make_batch(audience, 4, [b"d"], incarnation="i2", floor=4))
    assert isinstance(behind, Batch)
    assert [3, 1] == [batch.count for batch in log.read([audience])]
    assert 5 == log.resume("shop", "i2").floor
    assert [] == log.wait(log.log.audit())
    log.reopen()
    assert 5 == log.resume("shop", "i2").floor
    (again,) = log.append(run("i4"))
    assert isinstance(again, Known)
    assert again.pieces[0].position == first.first


def test_45_a_repeat_of_what_was_taken_by_its_key_is_told_the_same(log: ContractDriver) -> None:
    audience = log.log.audience([1])
    (first,) = log.append(keyed(audience))
    again = keyed(audience, incarnation="i2", body=b"paid")
    twice = log.append(again, keyed(audience, incarnation="i2"))
    (later,) = log.append(keyed(audience, incarnation="i2"))
    assert [position(one) for one in (*twice, later)] == [position(first)] * 3
    log.append(progress=[Progress(receiver=1, cursor=position(first), settled={3: 1})])
    while log.wait(log.log.retain(HOUR)):
        pass
    (gone,) = log.append(keyed(audience, incarnation="i2"))
    assert isinstance(gone, Known)
    assert gone.pieces[0].audience is audience


def test_45_another_content_is_refused_and_takes_nothing(log: ContractDriver) -> None:
    audience = log.log.audience([1])
    _, refused = log.append(keyed(audience), keyed(audience, 2, content="owed"))
    (later,) = log.append(keyed(audience, 1, incarnation="i2", content="owed"))
    for outcome in (refused, later):
        assert isinstance(outcome, RefusedBatch)
        assert isinstance(outcome.error, KeyReused)
        assert outcome.error.key == "k"
    assert log.resume("shop", "i2").floor == 1


def test_45_more_keys_than_the_limit_are_refused_by_its_name_and_their_lane_waits(
    log: ContractDriver,
) -> None:
    audience = log.log.audience([1])
    outcomes = log.append(
        *[keyed(audience, number, f"k{number}") for number in range(1, 7)],
        keyed(audience, 7, "k1"),
        make_batch(audience, 8),
        make_batch(audience, 9, subject="other"),
    )
    assert [type(one) for one in outcomes] == [Batch] * 4 + [RefusedBatch] * 4 + [Batch]
    assert isinstance(outcomes[4], RefusedBatch)
    assert isinstance(outcomes[4].error, LimitReached)
    assert (outcomes[4].error.limit, outcomes[4].error.value) == ("idempotency_keys", 4)
    (known,) = log.append(keyed(audience, 1, "k1"))  # a repeat is none
    assert position(known) == position(outcomes[0])
    log.wait(log.log.retain(0))
    log.wait(log.log.retain(99_000))
    (still,) = log.append(keyed(audience, 5, "k5"))
    assert isinstance(still, RefusedBatch)
    while log.wait(log.log.retain(101_000)):
        pass
    (new,) = log.append(keyed(audience, 5, "k5"))
    assert isinstance(new, Batch)


def test_45_a_key_that_is_over_may_be_used_again(log: ContractDriver) -> None:
    audience = log.log.audience([1])
    log.wait(log.log.retain(0))
    (first,) = log.append(keyed(audience))
    while log.wait(log.log.retain(101_000)):
        pass
    (second,) = log.append(keyed(audience, 2, content="owed"))
    assert isinstance(second, Batch)
    assert position(second) > position(first)


def test_45_a_key_is_stored_once_where_a_floor_makes_room_for_its_sender_s_ranges(
    tmp_path: Path, kind: str
) -> None:
    """The ranges of the sender are as many as are kept, until the floor that it comes with."""
    log = ContractDriver(kind, tmp_path, replace(SMALL, sender_ranges=2)).open()
    log.receivers(1)
    audience = log.log.audience([1])
    first, *_ = log.append(
        keyed(audience), *(make_batch(audience, n, [b"x"], incarnation="i2") for n in (3, 6))
    )
    (again,) = log.append(keyed(audience, 9, incarnation="i2", after=8, floor=7))
    assert isinstance(again, Known)
    assert again.by_key
    assert position(again) == position(first)
    new, twice = log.append(  # the same within one group
        keyed(audience, 2, name="other"),
        *(make_batch(audience, n, [b"x"], incarnation="i3") for n in (3, 6)),
        keyed(audience, 9, incarnation="i3", name="other", after=8, floor=7),
    )[::3]
    assert isinstance(twice, Known)
    assert twice.by_key
    assert position(twice) == position(new)
    assert log.resume("shop", "i3").floor == 7
    assert len(log.read([audience])) == 6
    log.close()


def test_45_a_known_key_waits_for_its_sender_s_ranges_as_any_message_does(
    tmp_path: Path, kind: str
) -> None:
    """Also where nobody is there any more: what is known of it says what became of it."""
    log = ContractDriver(kind, tmp_path, replace(SMALL, sender_ranges=2)).open()
    log.receivers(1)
    audience = log.log.audience([1])
    first, *_ = log.append(
        keyed(audience), *(make_batch(audience, n, [b"x"], incarnation="i2") for n in (3, 6))
    )
    refused = log.append(
        keyed(audience, 9, incarnation="i2", after=8),
        make_batch(audience, 10, [b"x"], incarnation="i2"),
    )
    refused += log.append(
        keyed(audience, 12, incarnation="i2", after=11, refusal=NoReceiver("nobody"))
    )
    for outcome in refused:
        assert isinstance(outcome, RefusedBatch)
        assert isinstance(outcome.error, LimitReached)
        assert outcome.error.limit == "sender_ranges"
    for n in (1, 4):
        log.append(make_batch(audience, n, [b"x", b"x"], incarnation="i2"))
    taken = log.append(
        keyed(audience, 9, incarnation="i2", after=8),
        keyed(audience, 12, incarnation="i2", after=8, refusal=NoReceiver("nobody")),
    )
    assert [position(one) for one in taken] == [position(first)] * 2
    log.close()


def test_45_no_copy_and_nothing_of_the_nodes_own_uses_a_key(log: ContractDriver) -> None:
    audience = log.log.audience([1])
    (first,) = log.append(keyed(audience))
    own = [keyed(audience), keyed(audience, name="new")]
    (again,) = log.append(keyed(audience, incarnation="i2", name="new"), own=own)
    assert isinstance(again, Batch)
    assert len({position(first), own[0].first, own[1].first, again.first}) == 4


def test_45_who_came_second_hears_what_becomes_of_it(log: ContractDriver) -> None:
    """From the log too, when the batch has gone and when it came after that."""
    audience = log.log.audience([1, 2])
    (first,) = log.append(keyed(audience))
    log.append(keyed(audience, 3, incarnation="i2", after=0))
    log.append(make_batch(audience, 4, incarnation="i2"))
    log.append(progress=[Progress(receiver=1, cursor=position(first), settled={3: 1})])
    page = told(log, "i2")
    assert page.by_key == (3,)
    assert [(piece.first, piece.position) for piece in page.pieces] == [
        (3, position(first)),
        (4, position(first) + (1 << 16)),
    ]
    assert page.states == (StateRange(1, Status.ACKNOWLEDGED, 3, 3),)
    log.append(progress=[Progress(receiver=2, cursor=position(first), settled={3: 1})])
    while log.wait(log.log.retain(HOUR)):
        pass
    page = told(log, "i2")
    states = (StateRange(1, Status.ACKNOWLEDGED, 3, 3), StateRange(2, Status.ACKNOWLEDGED, 3, 3))
    assert (page.by_key, page.states) == ((), states)
    # The key itself is over: the node ran for an hour. That of the next one is not.
    (other,) = log.append(keyed(audience, 5, incarnation="i2"))
    log.append(
        progress=[
            Progress(receiver=number, cursor=position(other), settled={3: 2}) for number in (1, 2)
        ]
    )
    while log.wait(log.log.retain(HOUR + 2_000)):
        pass
    (known,) = log.append(keyed(audience, 9, incarnation="i4", after=0))
    assert isinstance(known, Known)
    assert known.by_key
    assert [(state.first, state.status) for state in told(log, "i4").states] == [
        (9, Status.ACKNOWLEDGED)
    ] * 2


def test_45_a_key_that_is_known_is_taken_though_nobody_is_there_any_more(
    log: ContractDriver,
) -> None:
    audience = log.log.audience([1])
    (first,) = log.append(keyed(audience))
    nobody = NoReceiver("orders.new")
    (known,) = log.append(keyed(audience, incarnation="i2", refusal=nobody))
    (new,) = log.append(keyed(audience, 2, "other", incarnation="i2", refusal=nobody))
    assert position(known) == position(first)
    assert isinstance(new, RefusedBatch)
    assert new.error is nobody


def test_45_keys_and_what_was_taken_by_them_are_known_after_a_restart(log: ContractDriver) -> None:
    audience = log.log.audience([1])
    (first,) = log.append(keyed(audience))
    log.append(keyed(audience, 4, incarnation="i2", after=0))
    log.reopen()
    audience = log.log.audience([1])
    assert log.resume("shop", "i2").floor == 5
    again, other, new, more = log.append(
        keyed(audience, 4, incarnation="i2", after=0),
        keyed(audience, incarnation="i3"),
        keyed(audience, 2, "new"),
        keyed(audience, 3, "more"),
    )
    assert position(again) == position(other) == position(first)
    assert position(new) > position(first)
    # Keys, and what was taken by them, are as many as before: one and one, and then two and two.
    assert isinstance(more, RefusedBatch)


def test_45_what_its_sender_may_not_send_or_has_no_room_is_not_taken_by_its_key(
    log: ContractDriver,
) -> None:
    audience = log.log.audience([1])
    log.append(keyed(audience))
    for why in (Forbidden("send", "orders.new"), LimitReached("backlog_bytes", 1), LogFull("full")):
        (outcome,) = log.append(keyed(audience, incarnation="i2", refusal=why))
        assert isinstance(outcome, RefusedBatch)
        assert outcome.error is why
    assert log.resume("shop", "i2").floor == 1


# --- of what waits until it is due


LATER = NOW + 60_000


def history(log: ContractDriver, sender: str) -> History:
    incarnation = make_batch(NOBODY, 1, [b""]).incarnation
    page: History = log.wait(log.log.history(sender, incarnation, 1, 100))
    return page


# As which message others are taken while it waits.
FIRST = f"shop/{hash_of(make_batch(NOBODY, 1, [b'']).incarnation)}/1"


def waiting(log: ContractDriver, sequence: int = 1, **more: Any) -> Outcome:
    (outcome,) = log.append(keyed(NOBODY, sequence, due_at=LATER, **more))
    return outcome


def move(log: ContractDriver, members: tuple[int, ...] = (1,)) -> None:
    batches: list[Batch] = log.wait(log.log.due(LATER, (0, 0), 100))
    for batch in batches:
        batch.audience = log.log.audience(members)
    log.appended(due=batches, now=LATER)


def test_45_a_key_of_what_waits_answers_before_it_is_due_and_after(log: ContractDriver) -> None:
    assert isinstance(waiting(log), Batch)
    again = waiting(log, 7, sender="other")
    assert again == Known(pieces=(Piece(7, 7, NOBODY, 0, LATER, FIRST),), by_key=True)
    repeat = waiting(log, 7, sender="other")
    assert isinstance(repeat, Known)
    assert again.pieces == repeat.pieces
    assert 1 == len(log.wait(log.log.delayed((0, 0), 10)))
    page = history(log, "other")
    assert ((Piece(7, 7, NOBODY, 0, LATER, FIRST),), (7,)) == (page.pieces, page.by_key)
    (without,) = log.append(keyed(log.log.audience([1]), 3, sender="third"))
    assert without == Known(pieces=(Piece(3, 3, NOBODY, 0, LATER, FIRST),), by_key=True)
    assert isinstance(waiting(log, 2, content="owed"), RefusedBatch)
    move(log)
    for sender, at in (("shop", 1), ("other", 7), ("third", 3)):
        (piece,) = history(log, sender).pieces
        assert (piece.first, piece.position, piece.due) == (at, 1 << 16, 0)
    late = waiting(log, 9, sender="late")
    assert isinstance(late, Known)
    assert [(9, 1 << 16, 0)] == [(p.first, p.position, p.due) for p in late.pieces]
    assert [] == log.wait(log.log.audit())


def test_45_who_came_second_finds_what_waits_by_its_own_name(log: ContractDriver) -> None:
    waiting(log)
    waiting(log, 7, sender="other")
    incarnation = make_batch(NOBODY, 1, [b""]).incarnation
    for name, sequence in (("shop", 1), ("other", 7)):
        identity = f"{name}/{hash_of(incarnation)}/{sequence}"
        found = log.wait(log.log.find_delayed(identity))
        assert found is not None
        assert (found.sender, found.sequence, found.due) == ("shop", 1, LATER)
    assert log.wait(log.log.find_delayed(f"other/{hash_of(incarnation)}/8")) is None


def test_45_who_came_second_finds_it_by_its_own_id_while_it_waits_and_then(
    log: ContractDriver,
) -> None:
    waiting(log)
    waiting(log, 7, sender="other", ids=((0, "mine"),))
    for number in range(2):
        found = log.wait(log.log.find_delayed("mine"))
        assert found is not None
        assert (found.sender, found.sequence, found.due) == ("shop", 1, LATER)
        assert log.wait(log.log.find_delayed("mine", ["other"])) is None
        assert log.wait(log.log.find("mine")) is None
        if not number:
            log.reopen()
    move(log)
    for number in range(2):
        assert log.wait(log.log.find_delayed("mine")) is None
        for senders in (None, ["shop"]):
            found = log.wait(log.log.find("mine", senders=senders))
            assert found is not None
            assert (found.position, found.sender) == (1 << 16, "shop")
        assert log.wait(log.log.find("mine", senders=["other"])) is None
        if not number:
            log.reopen()
    log.append(progress=[Progress(receiver=1, cursor=1 << 16, settled={3: 1})])
    while log.wait(log.log.retain(HOUR)):
        pass
    assert log.wait(log.log.find("mine")) is None
    gone = log.wait(log.log.find_finished("mine"))
    assert gone is not None
    assert (gone.removed, gone.states) == (True, {1: (Status.ACKNOWLEDGED, 0, "")})
    assert [] == log.wait(log.log.audit())


def test_45_who_came_second_finds_it_by_its_own_id_when_it_was_cancelled(
    log: ContractDriver,
) -> None:
    waiting(log)
    waiting(log, 7, sender="other", ids=((0, "mine"),))
    incarnation = make_batch(NOBODY, 1, [b""]).incarnation
    log.appended(cancel=[Cancel("shop", incarnation, 1, 1, "no longer")])
    assert log.wait(log.log.find_delayed("mine")) is None
    found = log.wait(log.log.find_finished("mine"))
    assert found is not None
    assert (found.removed, found.states) == (False, {0: (Status.CANCELLED, 0, "no longer")})


def test_45_in_one_group_a_key_of_what_waits_is_used_once(log: ContractDriver) -> None:
    first, second = log.append(
        keyed(NOBODY, 1, due_at=LATER), keyed(NOBODY, 1, sender="other", due_at=LATER)
    )
    assert isinstance(first, Batch)
    assert second == Known(pieces=(Piece(1, 1, NOBODY, 0, LATER, FIRST),), by_key=True)
    assert 1 == len(log.wait(log.log.delayed((0, 0), 10)))


def test_45_who_came_second_hears_that_it_was_cancelled_and_so_does_who_comes_then(
    log: ContractDriver,
) -> None:
    waiting(log)
    waiting(log, 7, sender="other")
    batch = keyed(NOBODY, 5, sender="third", due_at=LATER)
    wanted = Cancel("shop", batch.incarnation, 1, 1, "no longer")
    assert [((1, 1),)] == log.appended(batch, cancel=[wanted]).cancelled
    late = waiting(log, 9, sender="late")
    assert late == Known(pieces=(Piece(9, 9, NOBODY, 0),), by_key=True)
    for sender, at in (("shop", 1), ("other", 7), ("third", 5), ("late", 9)):
        page = history(log, sender)
        assert page.pieces == (), sender
        assert page.states == (StateRange(NOT_YET, Status.CANCELLED, at, at, "no longer"),), sender
    assert [] == log.wait(log.log.delayed((0, 0), 10))
    assert [] == log.wait(log.log.audit())


def test_45_keys_of_what_waits_are_known_after_a_restart(log: ContractDriver) -> None:
    waiting(log)
    waiting(log, 7, sender="other")
    log.reopen()
    assert isinstance(waiting(log, 2, sender="late"), Known)
    (piece,) = history(log, "other").pieces
    assert (piece.first, piece.due, piece.of) == (7, LATER, FIRST)
    again = waiting(log, 7, sender="other")
    assert isinstance(again, Known)
    assert [piece] == [*again.pieces]
    move(log)
    log.reopen()
    (piece,) = history(log, "other").pieces
    assert (piece.position, piece.due) == (1 << 16, 0)
    assert isinstance(waiting(log, 3, sender="late"), Known)


def test_45_whom_it_names_is_told_with_it(log: ContractDriver) -> None:
    both = log.log.audience([1, 2])
    (first,) = log.append(keyed(both, 1, due_at=LATER, addressed=True))
    assert isinstance(first, Batch)
    (second,) = log.append(keyed(both, 4, sender="other", due_at=LATER, addressed=True))
    assert second == Known(pieces=(Piece(4, 4, both, 0, LATER, FIRST),), by_key=True)


def test_45_a_key_of_what_waits_is_remembered_from_when_it_is_due(log: ContractDriver) -> None:
    """For a hundred seconds then; it waits for two hours."""
    (first,) = log.append(keyed(NOBODY, 1, due_at=NOW + 2 * HOUR))
    assert isinstance(first, Batch)
    log.wait(log.log.retain(0))
    for elapsed in (101_000, 2 * HOUR):
        while log.wait(log.log.retain(elapsed)):
            pass
        assert isinstance(log.append(keyed(NOBODY, 2, due_at=NOW + 2 * HOUR))[0], Known)
    while log.wait(log.log.retain(2 * HOUR + 101_000)):
        pass
    assert isinstance(log.append(keyed(NOBODY, 3, due_at=NOW + 9 * HOUR))[0], Batch)


def test_17_45_a_key_of_what_waits_is_known_though_a_wall_clock_was_ahead(
    log: ContractDriver,
) -> None:
    log.append(make_batch(log.log.audience([1]), 1), now=NOW + 100 * HOUR)
    (first,) = log.append(keyed(NOBODY, 2, due_at=NOW + 2 * HOUR), due_now=NOW)
    assert isinstance(first, Batch)
    log.wait(log.log.retain(0))
    while log.wait(log.log.retain(2 * HOUR)):
        pass
    assert isinstance(log.append(keyed(NOBODY, 3, due_at=NOW + 2 * HOUR))[0], Known)
