"""Dead letters in a log: kept whole; gone in one entry, with what is stored for them (46)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from msgservice.core.copies import REPLAY_OF, copies_of_letters
from msgservice.errors import LogFull
from msgservice.message import FLAG_REPLAY, Status, WireMessage, decode_messages, encode_messages
from msgservice.records import (
    NODE,
    Appended,
    Batch,
    DeadLetter,
    ExceptionRow,
    Group,
    LettersTaken,
    Origin,
    hash_of,
)
from tests.kit.limits import Limits
from tests.kit.logs import NOW, ContractDriver, make_batch

KINDS = ["sqlite", "memory", "dicts"]
SIZE = 1024 * 1024
WHOLE = WireMessage(b"body", {"kind": "x"}, "o-17")


@pytest.fixture(params=KINDS)
def log(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ContractDriver]:
    driver = ContractDriver(request.param, tmp_path / "data", Limits(reserve_bytes=64 * 1024))
    driver.open()
    driver.receivers(1, 2)
    yield driver
    assert driver.wait(driver.log.audit()) == []
    assert not any(driver.unaccounted())
    driver.reopen()
    assert driver.wait(driver.log.audit()) == []
    driver.close()


def letter_of(batch: Batch, at: int = 0, receiver: int = 1, body: bytes = b"body") -> DeadLetter:
    return DeadLetter(
        receiver=receiver,
        position=batch.first + at,
        sender=batch.sender,
        incarnation=batch.incarnation,
        sequence=batch.sequence + at,
        subject=batch.subject,
        message=encode_messages([WireMessage(body, WHOLE.headers, WHOLE.id)]),
        reason="no such customer",
        attempts=3,
        at=NOW,
        flags=4,
        origin=Origin("far", batch.sequence + at, "0a", ("p1",)) if at % 2 else None,
        code=26,
    )


def dead(log: ContractDriver, count: int = 3, receiver: int = 1, size: int = 4) -> list[DeadLetter]:
    """Store so many messages for a receiver, all of which are dead letters now."""
    at = log.log.room().used
    batch = make_batch(log.log.audience([receiver]), 1 + at, [b"x" * size] * count)
    log.append(batch)
    letters = [letter_of(batch, n, receiver, b"x" * size) for n in range(count)]
    rows = [ExceptionRow(receiver, batch.first, batch.last, Status.DEAD, reason="no")]
    log.progress(receiver, batch.last, exceptions=rows, settled={Status.DEAD: count}, dead=letters)
    return letters


def there(log: ContractDriver, receiver: int = 1) -> list[DeadLetter]:
    return log.wait(log.log.dead_letters(receiver, 0, 1000))


def take(log: ContractDriver, *taken: LettersTaken, removed: tuple[int, ...] = ()) -> Appended:
    return log.wait(log.log.append(Group(now=NOW, letters=[*taken], removed=[*removed])))


def again(log: ContractDriver, letters: list[DeadLetter], receiver: int = 1) -> LettersTaken:
    copies = copies_of_letters(letters, SIZE)
    for batch in copies:
        batch.audience = log.log.audience([receiver])
    return LettersTaken(letters[0].receiver, [letter.position for letter in letters], copies)


def drop(letters: list[DeadLetter]) -> LettersTaken:
    return LettersTaken(letters[0].receiver, [letter.position for letter in letters])


def test_46_a_dead_letter_keeps_body_headers_origin_flags_and_code(log: ContractDriver) -> None:
    letters = dead(log)
    assert letters == there(log)
    log.reopen()
    assert letters == there(log)


def test_54_a_message_names_the_copy_that_was_made_of_its_letter(log: ContractDriver) -> None:
    """For the same receiver, or another; as long as there is the letter, no copy is looked for."""
    first, _, third = dead(log)
    found = log.wait(log.log.find(f"log:{first.position}"))
    assert found is not None
    assert ({}, {}) == (found.copies, found.copied_to)
    (copy,) = take(log, again(log, [first])).stored
    (other,) = take(log, again(log, [third], receiver=2)).stored
    for _ in range(2):
        mine = log.wait(log.log.find(f"log:{first.position}"))
        assert mine is not None
        assert ({1: copy.first}, {}) == (mine.copies, mine.copied_to)
        moved = log.wait(log.log.find(f"log:{third.position}"))
        assert moved is not None
        assert ({}, {1: (2, other.first)}) == (moved.copies, moved.copied_to)
        log.reopen()


def test_46_letters_that_are_dropped_go_with_their_bytes(log: ContractDriver) -> None:
    letters = dead(log)
    used = log.log.room().used
    appended = take(log, drop(letters[:2]))
    assert (["stored"], []) == (appended.letters, appended.stored)
    assert letters[2:] == there(log)
    assert letters[2].size == log.log.dead_bytes(1)
    assert 1 == log.log.dead_count(1)
    assert used - letters[0].size - letters[1].size == log.log.room().used
    log.reopen()
    assert letters[2].size == log.log.dead_bytes(1)
    assert 1 == log.log.dead_count(1)
    assert ["stored"] == take(log, drop(letters[2:])).letters
    assert (0, 0) == (log.log.dead_bytes(1), log.log.dead_count(1))
    log.reopen()
    assert (0, 0) == (log.log.dead_bytes(1), log.log.dead_count(1))


def test_46_what_is_sent_again_is_appended_as_its_letter_goes(log: ContractDriver) -> None:
    letters = dead(log, 2)
    appended = take(log, again(log, letters))
    assert (["stored"], []) == (appended.letters, there(log))
    first, second = appended.stored
    for batch, letter in zip((first, second), letters, strict=True):
        (message,) = decode_messages(batch.messages)
        assert (b"xxxx", "o-17") == (message.body, message.id)
        assert {"kind": "x", REPLAY_OF: f"log:{letter.position}"} == message.headers
        assert (NODE, letter.subject, FLAG_REPLAY) == (
            batch.sender,
            batch.subject,
            batch.options.flags,
        )
        assert batch.number > letter.position >> 16
        assert (1,) == batch.audience.members
    assert Origin("shop", letters[0].sequence, hash_of(letters[0].incarnation)) == first.origin
    assert letters[1].origin == second.origin
    # The original stays what it was.
    found = log.wait(log.log.find(f"log:{letters[0].position}"))
    assert found is not None
    assert Status.DEAD == found.states[1][0]


def test_46_letters_may_be_sent_to_another_receiver(log: ContractDriver) -> None:
    letters = dead(log)
    appended = take(log, again(log, letters, 2))
    assert {(2,)} == {batch.audience.members for batch in appended.stored}
    assert ([], []) == (there(log), there(log, 2))


def test_46_letters_that_are_not_all_there_stay_and_nothing_is_stored(log: ContractDriver) -> None:
    letters = dead(log)
    assert ["stored"] == take(log, drop(letters[:1])).letters
    appended = take(log, again(log, letters))
    assert (["void"], []) == (appended.letters, appended.stored)
    assert letters[1:] == there(log)


def test_46_a_letter_goes_once_in_a_group(log: ContractDriver) -> None:
    letters = dead(log)
    appended = take(log, again(log, letters[:2]), again(log, letters[1:]), drop(letters[:1]))
    assert (["stored", "void", "void"], 2) == (appended.letters, len(appended.stored))
    assert letters[2:] == there(log)


@pytest.mark.parametrize("when", ["before", "in the same group"])
def test_46_letters_stay_where_who_is_to_get_them_is_removed(
    log: ContractDriver, when: str
) -> None:
    letters = dead(log)
    taken = again(log, letters, 2)
    if when == "before":
        log.wait(log.log.append(Group(now=NOW, removed=[2])))
    appended = take(log, taken, removed=(2,))
    assert (["void"], []) == (appended.letters, appended.stored)
    assert letters == there(log)


@pytest.mark.parametrize("kind", KINDS)
def test_46_what_finds_no_room_stays_a_letter(kind: str, tmp_path: Path) -> None:
    limits = Limits(reserve_bytes=64 * 1024, max_bytes=100_000, keep_seconds=3600)
    log = ContractDriver(kind, tmp_path, limits).open()
    log.receivers(1, 2)
    letters = dead(log, 1, size=40_000)
    # Of what waits for the other nothing gives way; the letter's room becomes its copy's.
    log.append(make_batch(log.log.audience([2]), 100_000, [b"y" * 19_000]))
    assert ["stored"] == take(log, again(log, letters)).letters
    log.append(make_batch(log.log.audience([2]), 200_000, [b"y" * 19_000]))
    letters = dead(log, 1, size=19_000)
    taken = again(log, letters)
    taken.copies[0].messages = encode_messages([WireMessage(b"z" * 90_000)])
    taken.copies[0].size = len(taken.copies[0].messages)
    appended = take(log, taken)
    assert isinstance(appended.letters[0], LogFull)
    assert ([], letters) == (appended.stored, there(log))
    assert ["stored"] == take(log, drop(letters)).letters
    log.close()
