"""Some seeds of each model machine; `python -m tests.machines --seeds FIRST-LAST` plays more."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from twisted.logger import LogEvent

from tests.machines.client import ClientMachine
from tests.machines.kinds import KINDS
from tests.machines.machine import Machine, as_test, play, replay, require, search, shrink, steps_of
from tests.machines.service import Producer

SEEDS = {
    "outbox": 400,
    "outbox-again": 120,
    "outbox-away": 120,
    "inbox": 240,
    "client": 60,
    "directory": 60,
}
CHUNKS = 4  # so that two workers share them


@pytest.fixture(autouse=True)
def logged_by_a_machine(logged_failures: list[LogEvent]) -> Iterator[None]:
    """What is logged is looked at by the machines themselves."""
    yield
    logged_failures.clear()


@pytest.mark.parametrize("chunk", range(CHUNKS))
@pytest.mark.parametrize("name", SEEDS)
def test_no_seed_breaks_a_rule(name: str, chunk: int) -> None:
    count = SEEDS[name] // CHUNKS
    found = search(KINDS[name], range(1 + chunk * count, 1 + (chunk + 1) * count))
    for failure in found.values():
        pytest.fail(as_test(shrink(failure)) + failure.told)


class CountingMachine(Machine):
    """Breaks where three of its steps have come, whatever else has."""

    OPERATIONS = {"count": 1, "rest": 3}

    def __init__(self, rng: random.Random) -> None:
        super().__init__(rng)
        self.counted = 0

    def do_count(self, rng: random.Random) -> None:
        self.counted += 1
        require(self.counted < 3, "counted to three")

    def do_rest(self, rng: random.Random) -> None:
        pass


def test_a_failure_is_shrunk_to_what_it_needs_and_told_as_a_test() -> None:
    failure = next(f for seed in range(1, 50) if (f := play(CountingMachine, seed)) is not None)
    smallest = shrink(failure)
    assert ["count"] * 3 == [name for name, _ in smallest.steps]
    assert "counted to three" == smallest.sign
    assert f"replay(CountingMachine, {failure.seed}, [" in as_test(smallest)
    with pytest.raises(AssertionError, match="counted to three"):
        replay(CountingMachine, failure.seed, smallest.steps)


def test_a_seed_plays_the_same_steps_again() -> None:
    for kind in KINDS.values():
        assert steps_of(kind, 7) == steps_of(kind, 7)
        assert steps_of(kind, 7) != steps_of(kind, 8)


def test_a_receipt_may_name_receivers_that_are_gone() -> None:
    """Whom a batch was for is what the log was told of their numbers, not who is there now."""
    steps = [
        ("attach", 1239024493),
        ("send", 2386541275),
        ("attach", 3924259397),
        ("send", 1561662856),
        ("attach", 3637736319),
        ("add", 1567277050),
        ("send", 1853522594),
        ("remove", 3774693373),
        ("hold_group", 3974285349),
        ("add", 1763630857),
        ("remove", 1200285147),
        ("send", 234452903),
        ("send", 1322892968),
        ("send", 721276178),
        ("restart", 1765697047),
    ]
    replay(KINDS["directory"], 710056, steps)


def test_a_send_may_wait_for_a_receiver_whose_dead_letters_are_at_their_limit() -> None:
    steps = [
        ("attach", 3152157987),
        ("restart", 3001074201),
        ("send", 279670894),
        ("send", 3035849395),
        ("mood", 726490548),
        ("send", 532731458),
        ("attach", 1229563958),
        ("send", 954957947),
        ("send", 3902269757),
        ("pass_time", 2145488790),
    ]
    replay(KINDS["client"], 970040, steps)


def test_a_producer_that_is_killed_leaves_no_descriptors() -> None:
    machine = ClientMachine(random.Random(1))
    producer = Producer(machine, "killed", on_disk=True)
    producer.kill()
    opened = [link for link in Path("/proc/self/fd").iterdir() if _leads_to(link, producer.folder)]
    assert [] == opened
    machine.close()


def _leads_to(link: Path, folder: Path) -> bool:
    try:
        return folder in link.readlink().parents
    except OSError:  # the one that lists them
        return False
