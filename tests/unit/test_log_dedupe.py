"""What a sender's state remembers, against the plainest possible model (SEMANTICS 1, 4)."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any
from zlib import crc32

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from msgservice.core.marks import SenderState
from msgservice.core.ranges import RangeSet
from msgservice.errors import ContentChanged, LimitReached, LogFull, NoReceiver
from msgservice.limits import Limits
from msgservice.log import dedupe, queries, repeats
from msgservice.message import MessageParts, array_headers
from msgservice.records import NOBODY, Batch, Known, RefusedBatch
from tests.kit.logs import ContractDriver, Driver, make_batch

RUNS = st.lists(st.tuples(st.integers(1, 60), st.integers(1, 12)), max_size=30)


@given(RUNS)
def test_1_taken_is_the_union_of_all_that_was_taken(runs: list[tuple[int, int]]) -> None:
    sender = SenderState(1, ("shop", "i1"), 0)
    model: set[int] = set()
    for first, count in runs:
        last = first + count - 1
        expected = sorted(set(range(first, last + 1)) - model)
        found = [n for low, high in sender.missing(first, last) for n in range(low, high + 1)]
        assert found == expected
        before = sender.copy()
        sender.take(first, last)
        assert [
            n for low, high in before.missing(first, last) for n in range(low, high + 1)
        ] == expected, "a copy was changed"
        model.update(range(first, last + 1))
    floor = next(n for n in range(1, 100) if n not in model)
    assert sender.floor == floor
    above = RangeSet((n, n) for n in sorted(model) if n > floor)
    assert (sender.ranges or RangeSet()) == above


@settings(max_examples=60)
@given(RUNS, st.integers(0, 30))
def test_4_each_sequence_is_stored_once_whatever_the_cuts(
    runs: list[tuple[int, int]], split: int
) -> None:
    """Runs in any order and overlap, in two groups with a restart between them."""
    log = Driver("memory", Path()).open()

    def append(some: list[tuple[int, int]]) -> None:
        audience = log.log.audience([1])
        group = [
            make_batch(audience, first, [b"%d" % n for n in range(first, first + count)])
            for first, count in some
        ]
        for batch, outcome in zip(group, log.append(*group), strict=True):
            assert not isinstance(outcome, RefusedBatch)
            if isinstance(outcome, Known):
                covered = [n for p in outcome.pieces for n in range(p.first, p.last + 1)]
                assert covered == list(range(batch.sequence, batch.sequence + batch.count))
                assert all(p.position for p in outcome.pieces)

    append(runs[:split])
    log.reopen()
    append(runs[split:])
    stored: list[int] = []
    for batch in log.read([log.log.audience([1])], messages_max=10_000):
        stored += range(batch.sequence, batch.sequence + batch.count)
    expected = {n for first, count in runs for n in range(first, first + count)}
    assert sorted(stored) == sorted(expected)
    assert log.wait(log.log.audit()) == []
    log.close()


class Producer:
    """What a producer knows of its messages, held against what the log says (SEMANTICS 1, 2)."""

    def __init__(self, rng: random.Random, log: ContractDriver) -> None:
        self.rng, self.log = rng, log
        log.receivers(1)
        self.audience = log.log.audience([1])
        self.sizes: dict[int, int] = {}  # of all that were given
        self.stored: set[int] = set()
        self.refused: set[int] = set()

    def run(self, busy: set[int]) -> Batch:
        """One that is open comes again, perhaps larger; or a new one, of whose some are refused."""
        rng = self.rng
        settled = self.stored | self.refused
        given = [n for n in self.sizes if n not in settled and n not in busy]
        if not given or rng.random() < 0.4:
            given = [len(self.sizes) + 1]
        first = rng.choice(given)
        last = first + rng.choice([0, 0, 1, 3])
        for number in range(first, last + 1):
            self.sizes.setdefault(number, rng.choice([1, 300]))
        busy.update(range(first, last + 1))
        after = first - 1
        while after in self.refused:
            after -= 1
        floor = next(n for n in range(1, len(self.sizes) + 2) if n not in settled)
        is_refused = rng.random() < 0.2
        return make_batch(
            NOBODY if is_refused else self.audience,
            first,
            [b"%d" % n * self.sizes[n] for n in range(first, last + 1)],
            subject="a",
            after=after,
            floor=0 if is_refused else floor,
            refusal=NoReceiver("a") if is_refused else None,
        )

    def step(self) -> None:
        busy: set[int] = set()
        batches = [self.run(busy) for _ in range(self.rng.randint(1, 4))]
        for batch, outcome in zip(batches, self.log.append(*batches), strict=True):
            numbers = set(range(batch.sequence, batch.sequence + batch.count))
            if outcome is batch:
                assert not numbers & self.stored, "stored twice"
                self.stored |= numbers
            elif isinstance(outcome, Known):
                new = {n for b in outcome.fresh for n in range(b.sequence, b.sequence + b.count)}
                assert not new & self.stored, "stored twice"
                self.stored |= new
                no = {n for low, high in outcome.refused for n in range(low, high + 1)}
                assert not no & self.stored, "stored, and refused for good"
                assert numbers - no <= self.stored | self.refused, "known, and never stored"
                self.refused |= no
            else:
                assert isinstance(outcome, RefusedBatch)
                if isinstance(outcome.error, NoReceiver):
                    assert not numbers & self.stored, "stored, and refused for good"
                    self.refused |= numbers
                else:
                    assert isinstance(outcome.error, LogFull | LimitReached)
        resume = self.log.resume("shop", "i1")
        said = {n for low, high in resume.ranges for n in range(low, high + 1)}
        said.update(range(1, resume.floor))
        assert self.stored <= said <= self.stored | self.refused


@pytest.mark.parametrize("kind", ["memory", "dicts"])
@pytest.mark.parametrize("ranges", [1, 2, 3])
def test_1_whatever_is_refused_resume_says_what_was_stored(
    kind: str, ranges: int, tmp_path: Path
) -> None:
    for seed in range(25):
        rng = random.Random(seed)
        limits = Limits(
            reserve_bytes=8 << 20,
            keep_seconds=0,
            sender_ranges=ranges,
            max_bytes=rng.choice([2000, 10**9]),
        )
        log = ContractDriver(kind, tmp_path / str(seed), limits).open()
        producer = Producer(rng, log)
        for _ in range(rng.randint(5, 40)):
            producer.step()
        log.close()


RUN = [b"%03d" % n * 20 for n in range(512)]


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
@pytest.mark.parametrize("together", [False, True])
def test_4_single_messages_of_a_large_run_cost_one_look_at_it_for_a_group(
    kind: str, together: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`together`: the run is part of the very group in which they come again."""
    taken_apart: list[int] = []

    class Counted(MessageParts):
        __slots__ = ()

        def __init__(self, messages: bytes) -> None:
            taken_apart.append(len(messages))
            super().__init__(messages)

    monkeypatch.setattr(dedupe, "MessageParts", Counted)
    monkeypatch.setattr(repeats, "MessageParts", Counted)
    log = Driver(kind, tmp_path).open()
    asked: list[object] = []
    runs_of = queries.runs_of

    def counted(*args: Any) -> list[repeats.TakenRun]:
        asked.append(args)
        return runs_of(*args)

    monkeypatch.setattr(queries, "runs_of", counted)
    audience = log.log.audience([1])
    run = make_batch(audience, 1, RUN)
    singles = [make_batch(audience, n, [body]) for n, body in enumerate(RUN, 1)]
    halves = [make_batch(audience, n, RUN[n - 1 : n + 1]) for n in range(1, len(RUN), 2)]
    if not together:
        log.append(run)
    group = [*singles, *halves]
    outcomes = log.append(run, *group) if together else log.append(*group)
    assert all(isinstance(one, Known) and not one.fresh for one in outcomes[-len(group) :])
    assert sum(taken_apart) <= 2 * run.size + 2 * sum(batch.size for batch in group)
    assert len(asked) <= (len(group) if together else 1)
    log.close()


@settings(max_examples=100)
@given(RUNS, RUNS, st.sets(st.integers(1, 72), max_size=2), st.booleans())
def test_4_other_content_is_noticed_whatever_the_cuts(
    runs: list[tuple[int, int]], again: list[tuple[int, int]], changed: set[int], together: bool
) -> None:
    """What is still in the log, however it was stored, is compared message by message."""
    log = Driver("memory", Path()).open()
    audience = log.log.audience([1])

    def batches(some: list[tuple[int, int]], other: set[int]) -> list[Batch]:
        return [
            make_batch(
                audience,
                first,
                [b"-%d" % n if n in other else b"+%d" % n for n in range(first, first + count)],
            )
            for first, count in some
        ]

    stored = {n for first, count in runs for n in range(first, first + count)}
    first, second = batches(runs, set()), batches(again, changed)
    outcomes = (
        log.append(*first, *second) if together else [*log.append(*first), *log.append(*second)]
    )
    said = dict.fromkeys(stored, b"+")
    for batch, outcome in zip(second, outcomes[len(first) :], strict=True):
        content = {
            n: b"-" if n in changed else b"+"
            for n in range(batch.sequence, batch.sequence + batch.count)
        }
        differs = any(said.get(n, sign) != sign for n, sign in content.items())
        refused = isinstance(outcome, RefusedBatch) and isinstance(outcome.error, ContentChanged)
        assert refused == differs
        if not refused:
            said = content | said
    log.close()


def test_4_a_run_whose_header_is_longer_than_it_need_be_is_known_in_any_cut() -> None:
    """Another program's encoder may write the number of messages in more bytes."""
    log = Driver("memory", Path()).open()
    audience = log.log.audience([1])

    def long_headed(first: int, bodies: list[bytes]) -> Batch:
        batch = make_batch(audience, first, bodies)
        messages = array_headers(len(bodies))[0] + bytes(batch.messages)[1:]
        return msgspec.structs.replace(
            batch, messages=messages, size=len(messages), crc=crc32(messages)
        )

    bodies = [b"%d" % n for n in range(8)]
    log.append(long_headed(1, bodies[:3]), long_headed(4, bodies[3:]))
    again = (long_headed(1, bodies), make_batch(audience, 3, bodies[2:5]))
    assert all(isinstance(outcome, Known) for outcome in log.append(*again))
    log.close()
