"""Streams in every `ILog`: what was sent to a subject, by an index, in order; gaps that show."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from msgservice.limits import Limits
from msgservice.log import queries
from msgservice.message import (
    FLAG_REPLAY,
    FLAG_RETAIN,
    FLAG_RETAIN_ONLY,
    FLAG_RETAINED,
    RunOptions,
    Status,
)
from msgservice.records import Batch, StreamHeader, StreamPage, position_of
from tests.kit.logs import NOW, ContractDriver, make_batch, numbers

KINDS = ("memory", "sqlite", "dicts")
KEEP_NOTHING = Limits(reserve_bytes=64 * 1024, keep_seconds=0, keep_bytes=0, audiences=40)
K, L = "streams.k", "streams.l"


@pytest.fixture(params=KINDS)
def log(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ContractDriver]:
    driver = ContractDriver(request.param, tmp_path / "data", KEEP_NOTHING).open()
    driver.receivers(1)
    yield driver
    assert driver.wait(driver.log.audit()) == []
    driver.close()


def page(
    log: ContractDriver, subject: str, after: int | None, bytes_max: int = 1_000_000
) -> StreamPage:
    found: StreamPage = log.wait(log.log.of_stream(subject, after, bytes_max))
    return found


def put(log: ContractDriver, *subjects: str, first: int = 1, **more: Any) -> list[Batch]:
    audience = log.log.audience([1])
    batches = [
        make_batch(audience, first + number, subject=subject, after=0, **more)
        for number, subject in enumerate(subjects)
    ]
    log.append(*batches)
    return batches


def test_rule_5_1_a_stream_is_read_by_its_subject_behind_a_position(log: ContractDriver) -> None:
    put(log, K, L, K, "orders.new", K, "streams.k.more", "streamsk")
    assert numbers(page(log, K, None).batches) == [1, 3, 5]
    assert numbers(page(log, K, position_of(1)).batches) == [3, 5]
    assert numbers(page(log, K, position_of(4)).batches) == [5]
    assert numbers(page(log, L, 0).batches) == [2]
    found = page(log, K, position_of(5))
    assert (found.batches, found.is_gap, found.newest) == ([], False, position_of(8) - 1)
    assert found.last == found.newest
    assert page(log, "streams.unknown", None).batches == []
    log.reopen()
    assert numbers(page(log, K, None).batches) == [1, 3, 5]


def test_rule_5_1_a_position_within_a_batch_gives_that_batch(log: ContractDriver) -> None:
    batch = make_batch(log.log.audience([1]), 1, [b"a", b"b", b"c"], subject=K)
    log.append(batch)
    assert numbers(page(log, K, position_of(1, 1)).batches) == [1]
    assert numbers(page(log, K, position_of(1, 2)).batches) == []


def test_a_page_of_a_stream_has_a_size_and_one_batch_at_least(log: ContractDriver) -> None:
    batches = put(log, *[K] * 5)
    size = batches[0].size
    assert numbers(page(log, K, None, 1).batches) == [1]
    found = page(log, K, position_of(1), 2 * size)
    assert (numbers(found.batches), found.last) == ([2, 3], position_of(4) - 1)
    found = page(log, K, found.last, 2 * size)
    assert (numbers(found.batches), found.last) == ([4, 5], found.newest)
    assert numbers(page(log, K, position_of(4), 2 * size).batches) == [5]


def test_what_a_replay_has_copied_is_no_part_of_a_stream(log: ContractDriver) -> None:
    put(log, K, first=1)
    put(log, K, first=2, options=RunOptions(flags=FLAG_REPLAY))
    put(log, K, first=3)
    assert numbers(page(log, K, None).batches) == [1, 3]


def test_rule_5_4_what_has_gone_is_a_gap_and_never_silent(log: ContractDriver) -> None:
    put(log, K, L, K, K)
    assert not page(log, K, 0).is_gap
    log.progress(1, position_of(4) - 1, settled={Status.ACKNOWLEDGED: 3})
    for _ in range(100):
        if not log.wait(log.log.retain(NOW + 1)):
            break
    left = page(log, K, None)
    assert (numbers(left.batches), left.is_gap) == ([4], False)
    assert page(log, K, 0).is_gap
    assert page(log, K, position_of(1)).is_gap
    after = page(log, K, position_of(4) - 1)
    assert (numbers(after.batches), after.is_gap) == ([4], False)


def test_rule_5_4_what_has_gone_with_the_rest_of_its_batch_is_a_gap(log: ContractDriver) -> None:
    batch = make_batch(log.log.audience([1]), 1, [b"a", b"b", b"c"], subject=K, after=0)
    log.append(batch)
    put(log, L, first=4)
    assert (numbers(page(log, K, position_of(1)).batches), page(log, K, 0).is_gap) == ([1], False)
    log.progress(1, position_of(2) - 1, settled={Status.ACKNOWLEDGED: 3})
    while log.wait(log.log.retain(NOW + 1)):
        pass
    assert page(log, K, position_of(1)).is_gap  # the other two are not there
    assert page(log, K, position_of(1, 1)).is_gap
    assert not page(log, K, position_of(2) - 1).is_gap


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_rule_5_4_what_is_left_out_of_a_page_is_not_the_end(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queries, "PAGE_ROWS", 3)
    log = ContractDriver(kind, tmp_path / "data", KEEP_NOTHING).open()
    log.receivers(1)
    only = RunOptions(flags=FLAG_RETAIN | FLAG_RETAIN_ONLY)
    put(log, K)
    put(log, *[K] * 4, first=2, options=only)
    put(log, K, first=6)
    found = page(log, K, position_of(1))
    for last in (3, 5):
        assert (found.batches, found.last) == ([], position_of(last + 1) - 1)
        found = page(log, K, found.last)
    assert (numbers(found.batches), found.last) == ([6], found.newest)
    log.close()


def test_rule_5_1_what_its_sender_addressed_to_others_was_not_put_there(
    log: ContractDriver,
) -> None:
    put(log, K)
    put(log, K, first=2, addressed=True)
    put(log, K, first=3)
    assert numbers(page(log, K, 0).batches) == [1, 3]


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_rule_5_4_what_a_sender_put_who_is_just_forgotten_is_not_left_out(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = ContractDriver(kind, tmp_path / "data", KEEP_NOTHING).open()
    log.receivers(1)
    put(log, K, K)
    # As where retention goes on between the rows that are read and the senders in memory.
    monkeypatch.setattr(queries, "senders_of", lambda db, state, numbers: {})
    found = page(log, K, position_of(1))
    assert (numbers(found.batches), found.is_gap) == ([2], False)
    log.close()


def test_rule_5_4_the_newest_position_tells_a_token_of_the_future(log: ContractDriver) -> None:
    assert page(log, K, None).newest < position_of(1)
    put(log, L)
    assert page(log, K, None).newest == position_of(2) - 1
    log.reopen()
    assert page(log, K, None).newest == position_of(2) - 1


def test_rule_5_3_a_header_is_what_is_retained_and_says_as_of_when(log: ContractDriver) -> None:
    def header(subject: str = K) -> StreamHeader:
        found: StreamHeader = log.wait(log.log.stream_header(subject))
        return found

    assert header() == StreamHeader(None, position_of(1) - 1)
    only = RunOptions(flags=FLAG_RETAIN | FLAG_RETAIN_ONLY)
    put(log, K, options=only)
    put(log, K, first=2)
    found = header()
    assert found.retained is not None
    assert found.retained.position == position_of(1)
    assert found.newest == position_of(3) - 1
    assert header(L) == StreamHeader(None, position_of(3) - 1)
    log.reopen()
    assert header() == found
    empty = make_batch(log.log.audience([1]), 3, [b""], subject=K, after=0, options=only)
    log.append(empty)
    assert header() == StreamHeader(None, position_of(4) - 1)


@pytest.mark.parametrize("flags", [FLAG_RETAINED, FLAG_RETAIN | FLAG_RETAIN_ONLY])
def test_rule_5_3_headers_and_their_copies_are_nothing_that_was_put(
    log: ContractDriver, flags: int
) -> None:
    put(log, K)
    put(log, K, first=2, options=RunOptions(flags=flags))
    put(log, K, first=3)
    assert numbers(page(log, K, 0).batches) == [1, 3]
