"""Power failures at drawn moments, and bugs that they must find (RELIABILITY I1, I14, I16)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random

import apsw
import pytest
from twisted.internet.task import Clock

from msgservice.disk import database, guarded
from msgservice.disk.mark import Mark
from msgservice.log import store
from msgservice.log.memory import MemoryLog
from msgservice.log.staging import Operation
from tests.kit.logs import Driver as LogDriver
from tests.kit.simdisk import SECTOR, SimDisk
from tests.powerloss.histories import LIMITS
from tests.powerloss.log_model import LogHistory, check
from tests.powerloss.play import KINDS, found_by, play

# apsw reports what a file raises while something else is raised: a dead disk does so at every call.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

SEEDS = {"log": 30, "outbox": 20, "inbox": 20}  # `make powerloss` cuts at 2,000 points


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_told_outlives_power_failures(kind: str, tmp_path: Path) -> None:
    for seed in range(SEEDS[kind]):
        play(kind, seed, tmp_path / str(seed))


# --- planted bugs --------------------------------------------------------------------------------


def unsynced_commits(patch: pytest.MonkeyPatch) -> None:
    """Commits are told before they are synced."""
    connect = database.connect

    def careless(path: str, **options: object) -> apsw.Connection:
        db = connect(path, **options)  # type: ignore[arg-type]  # as they came
        db.execute("pragma synchronous = off")
        return db

    for module in (store, guarded):
        patch.setattr(module, "connect", careless)


def unsynced_names(patch: pytest.MonkeyPatch) -> None:
    """The folder of a new log is never synced."""
    for module in ("mark", "folder"):
        patch.setattr(f"msgservice.disk.{module}.sync_folder", lambda folder, files: None)


def mark_first(patch: pytest.MonkeyPatch) -> None:
    """The mark is written before the group is committed."""
    transact = store.Store.transact

    def early(self: store.Store, operations: list[Operation]) -> None:
        if self.marks is not None:
            state = self.state
            ahead = Mark(state.log_id, state.next_number + 5, state.commits + 1, 0)
            self.marks.submit(ahead)
            with suppress(OSError):  # the power has failed: what follows is told so
                self.marks.wait(ahead)
        transact(self, operations)

    patch.setattr(store.Store, "transact", early)


@pytest.mark.parametrize(
    ("kind", "plant"),
    [
        ("log", unsynced_commits),
        ("outbox", unsynced_commits),
        ("inbox", unsynced_commits),
        ("log", mark_first),
        ("log", unsynced_names),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_a_planted_bug_is_found(
    kind: str, plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    assert any(found_by(kind, seed) is not None for seed in range(60))


# --- the model, without power failures -----------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_a_log_in_memory_and_the_model_agree(seed: int) -> None:
    driver = LogDriver("memory", Path())
    clock = Clock()
    driver.clock = clock
    random = Random(seed)
    driver.log = MemoryLog(reactor=clock, limits=LIMITS, entropy=random.randbytes)
    driver.open()
    history = LogHistory(random, driver.wait)
    for _ in range(40):
        history.step(driver.log)
    check(driver.log, None, history.model, driver.wait)


# --- the disk itself -----------------------------------------------------------------------------


def test_a_disk_keeps_what_was_synced_and_any_part_of_the_rest(tmp_path: Path) -> None:
    left = set()
    for seed in range(40):
        disk = SimDisk(tmp_path / str(seed), Random(seed))
        disk.made("a")
        disk.sync_names()
        disk.write("a", 0, b"1" * SECTOR)
        disk.sync("a")
        disk.write("a", 0, b"2" * SECTOR + b"3" * SECTOR)
        left.add(disk.restart().copy()["a"])
    one, two, three = b"1" * SECTOR, b"2" * SECTOR, b"3" * SECTOR
    assert {one, two + three, two, one + three} == left


def test_a_sync_that_failed_has_lost_what_it_was_to_sync(tmp_path: Path) -> None:
    disk = SimDisk(tmp_path, Random(1))
    disk.made("a")
    disk.sync_names()
    disk.fail_sync = lambda name: True
    disk.write("a", 0, b"lost")
    with pytest.raises(OSError, match="sync failed"):
        disk.sync("a")
    disk.fail_sync = lambda name: False
    disk.write("a", 4, b"kept")
    disk.sync("a")
    assert b"\0\0\0\0kept" == disk.restart().copy()["a"]


def test_names_are_lost_from_the_newest_on(tmp_path: Path) -> None:
    left = set()
    for seed in range(40):
        disk = SimDisk(tmp_path / str(seed), Random(seed))
        disk.made("a")
        disk.made("b")
        left.add(tuple(sorted(disk.restart().copy())))
    assert {(), ("a",), ("a", "b")} == left
