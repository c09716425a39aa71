"""Entries of the log: applying one is a pure function, and none is applied twice."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from dataclasses import fields
from functools import cache, partial
from pathlib import Path
from random import Random
from typing import Any

import pytest

from msgservice.core.marks import SenderState
from msgservice.log.entries import Append, DropBatches, Entry, GrowOlder
from msgservice.log.loading import load
from msgservice.log.sqlite import SqliteLog
from msgservice.log.state import ReceiverProgress, State, Totals
from msgservice.records import Appended, Group
from tests.kit import door
from tests.kit.entries import EntryPlay, Replica, apply, tables
from tests.kit.logs import make_batch
from tests.kit.simdisk import SimDisk, SimThreads
from tests.powerloss.histories import Driver as SimDriver
from tests.powerloss.histories import Stopped

ROOT = Path(__file__).parents[2]
SEEDS = 24
STEPS = 150


@cache
def played(seed: int) -> EntryPlay:
    return EntryPlay(seed).run(STEPS)


def differences(one: dict[str, list[Any]], other: dict[str, list[Any]]) -> dict[str, Any]:
    return {
        table: ([r for r in one[table] if r not in other[table]][:3],
                [r for r in other[table] if r not in one[table]][:3])
        for table in one
        if one[table] != other[table]
    }  # fmt: skip


@pytest.mark.parametrize("seed", range(SEEDS))
def test_35_two_logs_that_apply_the_same_entries_are_equal(seed: int, tmp_path: Path) -> None:
    """One in memory, one on disk that saves, folds, and is closed and opened where it likes."""
    play = played(seed)
    expected = play.driver.tables()
    memory = Replica("memory", tmp_path, play.limits).open()
    disk = Replica("sqlite", tmp_path / "data", play.limits).open()
    random = Random(seed)
    for entry in play.entries:
        memory.apply(entry)
        disk.apply(entry)
        what = random.random()
        if what < 0.02:
            disk.reopen()
        elif what < 0.1:
            disk.wait(disk.log._write(disk.log._store.save))
        elif what < 0.15:
            disk.wait(disk.log._write(disk.log._store.checkpoint))
    assert {} == differences(expected, memory.tables())
    assert {} == differences(expected, disk.tables())
    assert play.driver.chain == memory.chain == disk.chain
    disk.close()
    memory.close()


def test_the_play_makes_entries_of_every_kind_in_thousands() -> None:
    kinds: dict[str, int] = {}
    for seed in range(SEEDS):
        for kind, count in played(seed).kinds.items():
            kinds[kind] = kinds.get(kind, 0) + count
    assert {kind.__name__ for kind in Entry.__subclasses__()} == set(kinds)
    assert sum(kinds.values()) > 3500
    assert min(kinds.values()) > 20


def test_the_play_makes_letters_go_and_stay() -> None:
    outcomes = [outcome for seed in range(SEEDS) for outcome in played(seed).letters]
    assert outcomes.count("stored") > 100
    assert outcomes.count("void") > 20
    assert sum(len(outcome) > len("stored") for outcome in outcomes) > 5  # no room


@pytest.mark.parametrize("seed", range(12))
def test_35_after_a_cut_the_rest_leads_to_the_same(seed: int, tmp_path: Path) -> None:
    """The power fails, or the process is killed, at drawn operations of the disk.

    Each time all entries are handed in again from the first on: what is there is known.
    """
    play = EntryPlay(seed + 1000).run(STEPS // 2)
    random = Random(seed)
    driver = SimDriver()
    clock: Any = driver.clock
    disk = SimDisk(tmp_path, random)
    cuts = 0
    while True:
        driver.disk = disk
        disk.cut_at = random.randint(1, 900) if cuts < 8 else None
        log = SqliteLog(
            disk.folder / "data",
            reactor=clock,
            limits=play.limits,
            vfs=disk.vfs,
            files=disk.files,
            threads=SimThreads(clock, lambda: 0.001),
        )
        try:
            driver.wait(log.open())
            for entry in play.entries:
                driver.wait(log._write(partial(apply, log, entry)))
            driver.wait(log._write(log._store.save))
            disk.cut_at = None
            break
        except Stopped:
            cuts += 1
            disk = disk.restart() if random.random() < 0.5 else disk.killed()
    disk.cut_at = None  # one drawn last may lie beyond the entries, in the close
    assert {} == differences(play.driver.tables(), tables(log._store.db))
    driver.wait(log.close())
    disk.close()


@pytest.mark.parametrize("point", ["before commit", "after commit", "before checkpoint"])
def test_35_after_kill_9_at_a_named_point_the_rest_leads_to_the_same(
    point: str, tmp_path: Path
) -> None:
    play = EntryPlay(77).run(STEPS)
    folder = tmp_path / "data"
    (tmp_path / "entries").write_bytes(pickle.dumps(play.entries))
    (tmp_path / "limits").write_bytes(pickle.dumps(play.limits))
    files = [str(tmp_path / "entries"), str(tmp_path / "limits")]
    command = [sys.executable, "-m", "tests.kit.entries_child", str(folder), *files, point]
    for count in (3, 14, 41, 0):
        done = subprocess.run(
            [*command, str(count)], cwd=ROOT, env={**os.environ}, capture_output=True, text=True
        )
        assert (-signal.SIGKILL if count else 0) == done.returncode, done.stderr
    log = Replica("sqlite", folder, play.limits).open()
    assert {} == differences(play.driver.tables(), log.tables())
    assert play.driver.chain == log.chain
    log.close()


def test_an_entry_that_the_log_has_is_known(tmp_path: Path) -> None:
    log = Replica("memory", tmp_path).open()
    log.receivers(1)
    store = log.log._store
    audience = log.log.audience([1])
    entry = store.decide(Group(now=1, batches=[make_batch(audience)]))
    assert [entry.batches[0]] == store.apply(entry).stored
    before = log.tables()
    assert Appended([], []) == store.apply(entry)
    assert before == log.tables()
    older = store.entry(GrowOlder)
    store.apply(older)
    drop = store.entry(DropBatches, frames=[(1, audience.number, entry.batches[0].size)], oldest=2)
    store.apply(drop)
    before = log.tables()
    for again in (older, drop, entry):
        store.apply(again)
    assert before == log.tables()


def test_an_entry_whose_predecessor_is_missing_is_not_applied(tmp_path: Path) -> None:
    log = Replica("memory", tmp_path).open()
    store = log.log._store
    entry = Append(
        number=3,
        commits=0,
        now=1,
        due_now=1,
        receivers=[],
        own=[],
        batches=[],
        progress=[],
        statuses_from=[],
        removed=[],
        full=None,
        used_max=10,
        ranges_max=10,
    )
    with pytest.raises(AssertionError, match="before this one"):
        store.apply(entry)


def test_an_audience_that_went_with_a_commit_that_was_found_later_is_stored_no_more(
    tmp_path: Path,
) -> None:
    """The write failed, and when the log was opened again the entry was there after all."""
    log = Replica("memory", tmp_path).open()
    audience = log.log.audience([1])
    log.append(make_batch(audience))
    store = log.log._store
    with door.by_hand(store.db) as db:
        db.execute("delete from batch; delete from audience; update head set saved = 1")
    assert audience.stored
    store.load()
    assert not audience.stored
    again = log.log.audience([1])
    log.append(make_batch(again, 2))
    assert [1] == [number for number, *_ in log.tables()["audience"]]


# --- the one door ---------------------------------------------------------------------------------


def test_35_nothing_writes_beside_the_door(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of a play: groups, retention, saves, folding, opening again. See tests/contract too."""
    door.watch(monkeypatch)
    for seed in range(3):
        play = EntryPlay(seed).run(STEPS)
        play.driver.reopen()
        disk = Replica("sqlite", tmp_path / str(seed), play.limits).open()
        for entry in play.entries:
            disk.apply(entry)
        disk.wait(disk.log.retain(10**9))
        disk.wait(disk.log.retain(2 * 10**9))
        disk.close()


def test_a_write_beside_the_door_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    door.watch(monkeypatch)
    log = Replica("memory", tmp_path).open()
    store = log.log._store
    with pytest.raises(door.BesideTheDoor):
        log.wait(log.log._write(lambda: store.transact([("delete from finished", ())])))
    log.receivers(1)
    log.wait(log.log._write(store.save))


@pytest.mark.parametrize("seed", range(6))
def test_a_save_changes_nothing_that_the_log_says(seed: int, tmp_path: Path) -> None:
    play = played(seed)
    log = Replica("memory", tmp_path, play.limits).open()
    store = log.log._store
    for entry in play.entries:
        log.apply(entry)
    before = said(load(store.db, {}))
    assert before == said(store.state)
    store.save()
    assert before == said(load(store.db, {})) == said(store.state)


def test_a_sender_that_was_heard_and_then_stores_was_seen_when_a_replay_says_so(
    tmp_path: Path,
) -> None:
    """The log's age lags behind by up to a second; what it says of a sender does not go back."""
    log = Replica("memory", tmp_path).open()
    store, shop = log.log._store, ("shop", "i1")
    audience = log.log.audience([1])
    log.append(make_batch(audience, 1))
    log.wait(log.log.retain(0))
    log.wait(log.log.retain(3_599_500))
    log.append(make_batch(audience, 2))
    log.wait(log.log.retain(3_600_000, {shop}))  # the hour is over: that it was here is written
    log.append(make_batch(audience, 3))
    assert said(load(store.db, {})) == said(store.state)


def said(state: State) -> dict[str, Any]:
    """Return all of a state that somebody may ask for, as plain values."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(one) for key, one in value.items()}
        if isinstance(value, Totals):
            return (value.audience.number, value.audience.members, value.audience.asked_by,
                    value.messages, value.bytes, value.last, value.dropped)  # fmt: skip
        if isinstance(value, SenderState):
            ranges = [] if value.ranges is None else [*value.ranges]
            return (value.id, value.key, value.floor, ranges, value.last, value.status_from,
                    value.seen_at)  # fmt: skip
        if isinstance(value, ReceiverProgress):
            return (value.number, value.cursor, value.removed, value.settled, value.bytes,
                    value.collected, value.inbox)  # fmt: skip
        return value

    assert not len(state.asleep), "what of it is in the table alone is not compared"
    left_out = {"log_id", "saved", "dirty_senders", "dirty_totals", "rows", "asleep"}
    left_out.add("saved_sender")
    return {
        field.name: plain(getattr(state, field.name))
        for field in fields(State)
        if field.name not in left_out
    }
