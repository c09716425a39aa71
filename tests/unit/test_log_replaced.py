"""Files replaced or removed under who has them open (SEMANTICS 33)."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from twisted.internet.task import Clock
from twisted.logger import LogEvent, formatEvent

from msgservice.client.outbox_file import OutboxFile
from msgservice.core.runs import producer_run
from msgservice.disk.folder import FolderLock
from msgservice.errors import LogFailed, LogLocked, LogReplaced
from msgservice.limits import Limits
from msgservice.log.memory import MemoryLog
from msgservice.node.node import Node
from msgservice.node.process import HOLD_SAYS, end_process
from msgservice.receiver.inbox.file import InboxFile
from tests.kit.logs import Driver, make_batch
from tests.kit.nodes import NodeWorld
from tests.kit.threads import ThreadCalls

LIMITS = Limits(reserve_bytes=64 * 1024)


def replace_all(folder: Path, older: Path) -> None:
    for path in list(older.iterdir()):
        shutil.copy2(path, folder / "new")
        (folder / "new").replace(folder / path.name)


def test_33_replaced_files_are_noticed_and_keep_others_out(tmp_path: Path) -> None:
    log = Driver("sqlite", tmp_path / "data", LIMITS).open()
    audience = log.log.audience([])
    log.append(make_batch(audience, 1))
    log.wait(log.log.retain(0))
    shutil.copytree(log.folder, tmp_path / "older")
    log.append(make_batch(audience, 2))
    replace_all(log.folder, tmp_path / "older")
    with pytest.raises(LogReplaced, match="was replaced while the log was in use"):
        log.wait(log.log.retain(1000))
    with pytest.raises(LogReplaced):
        log.append(make_batch(audience, 3))
    with pytest.raises(LogLocked, match="another process"):
        Driver("sqlite", log.folder, LIMITS).open()
    log.close()
    Driver("sqlite", log.folder, LIMITS).open().close()


@pytest.mark.parametrize(
    "leave",
    [
        shutil.rmtree,
        lambda folder: folder.rename(folder.with_name("elsewhere")),
        lambda folder: (folder / "log.db").unlink(),
    ],
)
def test_33_a_folder_that_went_away_stops_the_log(
    leave: Callable[[Path], object], tmp_path: Path
) -> None:
    log = Driver("sqlite", tmp_path / "data", LIMITS).open()
    leave(log.folder)
    with pytest.raises(LogFailed, match="was removed or moved away") as told:
        log.wait(log.log.retain(0))
    assert not isinstance(told.value, LogReplaced)
    log.close()


def test_a_log_that_begins_is_said(tmp_path: Path) -> None:
    log = Driver("sqlite", tmp_path / "data", LIMITS).open()
    (notice,) = log.snapshot.notices
    assert notice.startswith(f"a new, empty log begins in {tmp_path / 'data'}: if there was one")
    log.reopen()
    assert list(log.snapshot.notices) == []
    log.close()


def test_33_a_lock_on_a_file_that_was_replaced_locks_nobody_out(tmp_path: Path) -> None:
    held = FolderLock(tmp_path / "lock", folder=tmp_path)
    held.acquire()
    (tmp_path / "lock").unlink()
    with pytest.raises(LogLocked, match="another process"):
        FolderLock(tmp_path / "lock", folder=tmp_path).acquire()
    held.release()
    again = FolderLock(tmp_path / "lock", folder=tmp_path)
    again.acquire()
    again.release()


def test_33_a_replaced_outbox_takes_nothing(tmp_path: Path) -> None:
    calls = ThreadCalls()
    box = OutboxFile(tmp_path / "data" / "outbox.db", reactor=calls)
    calls.wait(box.open())
    shutil.copytree(tmp_path / "data", tmp_path / "older")
    replace_all(tmp_path / "data", tmp_path / "older")
    with pytest.raises(LogFailed, match="was replaced or removed while the outbox was in use"):
        calls.wait(box.append([producer_run(1, 1, "a", b"\x91\x91\xc4\x00")]))
    calls.wait(box.close())


def test_33_a_replaced_inbox_handles_nothing(tmp_path: Path) -> None:
    calls = ThreadCalls()
    inbox = InboxFile(tmp_path / "inbox.db", reactor=calls)
    calls.wait(inbox.open())
    (tmp_path / "inbox.db").unlink()
    with pytest.raises(LogFailed, match="was replaced or removed while the inbox was in use"):
        calls.wait(inbox.transaction(lambda t: t.execute("create table mine(body)")))
    calls.wait(inbox.close())


@pytest.mark.parametrize(("replaced", "gone"), [("log.db", None), (None, "data")])
def test_33_a_node_that_is_idle_notices_too(replaced: str | None, gone: str | None) -> None:
    world = NodeWorld()
    shop = world.peer("shop")
    store = world.log._store
    store.watch_files = lambda: SimpleNamespace(replaced=replaced, gone=gone)
    store.begin_watch()
    world.settle(2)
    (error,) = world.failures
    assert isinstance(error, LogReplaced) is (replaced is not None)
    assert isinstance(error, LogFailed)
    assert shop.lost_because is not None
    world.settle(5)
    assert len(world.failures) == 1


class Reactor(Clock):
    running = True

    def stop(self) -> None:
        raise AssertionError("what was acknowledged would go with the process")

    addSystemEventTrigger = stop


def holds(logged: list[LogEvent]) -> int:
    said = [formatEvent(event) or "" for event in logged]
    return sum("and waits to be stopped: log.db was replaced" in line for line in said)


def test_33_a_process_with_replaced_files_stays_until_it_is_stopped(
    logged: list[LogEvent],
) -> None:
    reactor = Reactor()
    end_process(reactor, LogReplaced("log.db was replaced"))
    reactor.advance(HOLD_SAYS)
    assert holds(logged) == len(logged) == 2


def test_33_a_node_that_was_stopped_says_no_more_that_its_files_were_replaced(
    logged: list[LogEvent],
) -> None:
    reactor = Reactor()
    limits = Limits()
    log = MemoryLog(reactor=reactor, limits=limits)
    node = Node(reactor, log, limits=limits, rng=lambda: 1.0)
    for starts in range(2):
        node.startService()
        reactor.pump([0.1] * 50)
        for _ in range(2):  # whoever notices tells
            node._failed(LogReplaced("log.db was replaced"))
        reactor.pump([HOLD_SAYS] * 2)
        assert holds(logged) == 3 * (starts + 1)
        node.stopService()
        reactor.pump([0.1] * 50)
        assert reactor.getDelayedCalls() == []
