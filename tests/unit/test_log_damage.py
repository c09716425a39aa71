"""Real damage to real files: never silently fewer batches (SEMANTICS 21, 22; RELIABILITY I15)."""

from __future__ import annotations

import contextlib
import random
import shutil
import threading
from pathlib import Path

import apsw
import pytest

from msgservice.disk.database import one
from msgservice.disk.mark import Mark, MarkFile, MarkWriter, read_mark
from msgservice.errors import DataFolderUnusable, LogDamaged, LogError
from msgservice.log.audit import TABLES
from msgservice.message import Status
from msgservice.records import Batch
from tests.kit.logs import Driver, make_batch

GROUPS = 60


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log as kill -9 leaves it: a folded part in the file, the rest in the WAL; mark synced."""
    folder = tmp_path_factory.mktemp("image")
    log = Driver("sqlite", folder / "live", mark="strict").open()
    log.receivers(1)
    fill(log, 1, GROUPS // 2)
    log.reopen()  # folds the WAL in
    fill(log, GROUPS // 2 + 1, GROUPS)
    shutil.copytree(log.folder, folder / "killed", ignore=shutil.ignore_patterns("reserve"))
    log.close()
    return folder / "killed"


def fill(log: Driver, first: int, last: int) -> None:
    for i in range(first, last + 1):
        batch = make_batch(log.log.audience([1]), i, [b"%d" % i * 50])
        log.append(batch)
        if i % 3 == 0:
            log.progress(1, batch.last, settled={Status.ACKNOWLEDGED: 3})


def content(log: Driver) -> list[tuple[int, bytes]]:
    found: list[Batch] = []
    while page := log.read([log.log.audience([1])], found[-1].last if found else -1):
        found += page
    return [(batch.sequence, bytes(batch.messages)) for batch in found]


@pytest.fixture(scope="module")
def whole(image: Path, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[int, bytes]]:
    copy = tmp_path_factory.mktemp("whole") / "log"
    shutil.copytree(image, copy)
    log = Driver("sqlite", copy).open()
    found = content(log)
    assert [sequence for sequence, _ in found] == list(range(1, GROUPS + 1))
    assert log.unaccounted() == [0]
    log.close()
    return found


def verdict(folder: Path, whole: list[tuple[int, bytes]]) -> str:
    """Open a damaged log as a node does, and audit it; return how it was told, or `harmless`."""
    log = Driver("sqlite", folder)
    try:
        log.open()
    except (LogDamaged, DataFolderUnusable) as error:
        return type(error).__name__
    except LogError as error:
        return type(error).__name__
    try:
        try:
            sentences = log.wait(log.log.audit())
            found = content(log)
        except LogDamaged:
            return "told when read"
        if sentences:
            return "told by the audit"
        assert found == whole, "silently other or fewer batches"
        return "harmless"
    finally:
        with contextlib.suppress(LogError, apsw.Error):  # a damaged file may not close cleanly
            log.close()


def damaged(image: Path, tmp_path: Path, name: str, damage: object) -> Path:
    folder = tmp_path / "damaged"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(image, folder)
    path = folder / name
    data = bytearray(path.read_bytes())
    assert callable(damage)
    damage(data)
    path.write_bytes(data)
    return folder


@pytest.mark.parametrize("name", ["log.db-wal", "log.db", "log.mark"])
def test_no_flipped_bit_goes_unnoticed(
    name: str, image: Path, whole: list[tuple[int, bytes]], tmp_path: Path
) -> None:
    rng = random.Random(name)
    verdicts = []
    for _ in range(60):

        def flip(data: bytearray) -> None:
            at = rng.randrange(len(data))
            data[at] ^= 1 << rng.randrange(8)

        verdicts.append(verdict(damaged(image, tmp_path, name, flip), whole))
    # The assertion is in `verdict`; here, that the flips hit something at all.
    assert any(found != "harmless" for found in verdicts) or name == "log.mark"


@pytest.mark.parametrize("name", ["log.db-wal", "log.db"])
def test_no_cut_goes_unnoticed(
    name: str, image: Path, whole: list[tuple[int, bytes]], tmp_path: Path
) -> None:
    size = (image / name).stat().st_size
    rng = random.Random(name)
    cuts = [0, 1, 32, 4096, size - 1, size - 4120, *(rng.randrange(size) for _ in range(30))]
    for cut in cuts:

        def shorten(data: bytearray, cut: int = cut) -> None:
            del data[cut:]

        found = verdict(damaged(image, tmp_path, name, shorten), whole)
        # A page that is cut off the file may be whole in the WAL; `verdict` compared the content.
        assert found != "harmless" or name == "log.db", f"{name} cut at {cut}"


def test_22_a_wal_that_is_gone_is_reported_with_the_range(image: Path, tmp_path: Path) -> None:
    folder = damaged(image, tmp_path, "log.db-wal", bytearray.clear)
    (folder / "log.db-wal").unlink()
    with pytest.raises(LogDamaged) as told:
        Driver("sqlite", folder).open()
    assert (told.value.first, told.value.last) == (GROUPS // 2 + 1, GROUPS)


def test_22_lost_progress_alone_is_reported(image: Path, tmp_path: Path) -> None:
    log = Driver("sqlite", tmp_path / "live", mark="strict").open()
    log.receivers(1)
    log.append(make_batch(log.log.audience([1])))
    log.reopen()
    log.progress(1, 1 << 16)
    shutil.copytree(log.folder, tmp_path / "killed")
    log.close()
    (tmp_path / "killed" / "log.db-wal").unlink()
    with pytest.raises(LogDamaged, match="changes of receivers"):
        Driver("sqlite", tmp_path / "killed").open()


def test_a_damaged_log_says_so_again_at_the_next_start(image: Path, tmp_path: Path) -> None:
    def flip(data: bytearray) -> None:
        data[len(data) // 2] ^= 1

    folder = damaged(image, tmp_path, "log.db-wal", flip)
    said = []
    for _ in range(2):
        with pytest.raises(LogDamaged) as told:
            Driver("sqlite", folder).open()
        said.append((told.value.first, told.value.last))
    assert said[0] == said[1]
    assert said[0][1] == GROUPS


@pytest.mark.parametrize(
    ("name", "message"),
    [("log.mark", "log.mark, is missing"), ("log.db", "log.db is missing")],
)
def test_22_a_missing_file_is_reported(
    name: str, message: str, image: Path, tmp_path: Path
) -> None:
    folder = damaged(image, tmp_path, name, lambda data: None)
    (folder / name).unlink()
    with pytest.raises(LogDamaged, match=message):
        Driver("sqlite", folder).open()


def test_22_the_mark_of_another_log_is_reported(image: Path, tmp_path: Path) -> None:
    folder = damaged(image, tmp_path, "log.db", lambda data: None)
    file = MarkFile(folder / "log.mark")
    for _ in range(2):
        file.write(Mark("f" * 32, 1, 1, 1))
    file.close()
    with pytest.raises(LogDamaged, match="another log"):
        Driver("sqlite", folder).open()


def test_21_a_row_that_was_deleted_behind_our_back_is_reported(image: Path, tmp_path: Path) -> None:
    folder = damaged(image, tmp_path, "log.db", lambda data: None)
    db = apsw.Connection(str(folder / "log.db"))
    db.execute("delete from batch where number = ?", (GROUPS - 5,))
    db.close()
    with pytest.raises(LogDamaged) as told:
        Driver("sqlite", folder).open()
    assert (told.value.first, told.value.last) == (GROUPS - 5, GROUPS - 5)


@pytest.mark.parametrize(
    "change",
    [
        "update batch set subject = 'other' where number = 3",
        "update batch set sequence = sequence + 1000 where number = 3",
        "update batch set frame = randomblob(size) where number = 3",
        "update batch set before_messages = before_messages + 1 where number = 3",
        "delete from batch where number = 3",
        "update progress set acknowledged_count = acknowledged_count + 1",
    ],
)
def test_21_old_rows_are_checked_by_the_audit(change: str, image: Path, tmp_path: Path) -> None:
    """Number 3 lies below the last clean checkpoint, so the start does not look at it."""
    folder = damaged(image, tmp_path, "log.db", lambda data: None)
    db = apsw.Connection(str(folder / "log.db"))
    db.execute(change)
    db.close()
    log = Driver("sqlite", folder).open()
    assert log.wait(log.log.audit()) != []
    log.close()


@pytest.mark.parametrize(("table", "column"), [("receiver", "number"), ("progress", "receiver")])
def test_a_receiver_of_which_only_a_part_is_there_is_damage(
    table: str, column: str, image: Path, tmp_path: Path
) -> None:
    folder = damaged(image, tmp_path, "log.db", lambda data: None)
    db = apsw.Connection(str(folder / "log.db"))
    db.execute(f"delete from {table} where {column} = 1")
    db.close()
    with pytest.raises(LogDamaged, match="of some receivers only a part is there: 1"):
        Driver("sqlite", folder).open()


@pytest.mark.parametrize("table", TABLES)
def test_the_audit_follows_the_pages_of_every_table(table: str, tmp_path: Path) -> None:
    log = Driver("sqlite", tmp_path / "log").open()
    log.receivers(1)
    fill(log, 1, 3)
    log.close()
    path = log.folder / "log.db"
    db = apsw.Connection(str(path))
    page = one(db, "select rootpage from sqlite_schema where name = ?", (table,))
    db.close()
    data = bytearray(path.read_bytes())
    data[(page - 1) * 4096 + 7] = 99  # free bytes in fragments
    path.write_bytes(data)
    log = Driver("sqlite", log.folder).open()
    assert any(f"table {table}: " in sentence for sentence in log.wait(log.log.audit()))
    log.close()


def test_a_receiver_is_never_given_changed_messages(image: Path, tmp_path: Path) -> None:
    folder = damaged(image, tmp_path, "log.db", lambda data: None)
    db = apsw.Connection(str(folder / "log.db"))
    db.execute("update batch set frame = randomblob(size) where number = 3")
    db.close()
    log = Driver("sqlite", folder).open()
    with pytest.raises(LogDamaged, match="batches 3 to 3"):
        log.read([log.log.audience([1])])
    log.close()


def test_damage_names_batches_where_it_is_about_some() -> None:
    assert str(LogDamaged("pages", 3, 4)) == "log damaged: pages (batches 3 to 4)"
    assert str(LogDamaged("a page cannot be read", 0, 0)) == "log damaged: a page cannot be read"


# --- the mark ------------------------------------------------------------------------------------


def test_a_torn_mark_leaves_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "mark"
    file = MarkFile(path)
    marks = [Mark("a" * 32, number, number, number * 7) for number in (1, 2, 3)]
    for mark in marks:
        file.write(mark)
    file.close()
    assert read_mark(path) == marks[2]
    data = bytearray(path.read_bytes())
    data[20] ^= 1  # the third was written to the first place
    path.write_bytes(data)
    assert read_mark(path) == marks[1]


def test_only_the_newest_mark_need_be_written(tmp_path: Path) -> None:
    writer = MarkWriter(MarkFile(tmp_path / "mark"))
    marks = [Mark("a" * 32, number, 0, 1) for number in range(1, 200)]
    for mark in marks:
        writer.submit(mark)
    writer.wait(marks[-1])
    assert read_mark(tmp_path / "mark") == marks[-1]
    writer.stop()


def switches(thread: int) -> int:
    """How often this thread of ours went to sleep by itself."""
    status = Path(f"/proc/self/task/{thread}/status").read_text()
    return int(status.split("\nvoluntary_ctxt_switches:")[1].split()[0])


def is_asleep(thread: int) -> bool:
    """Whether this thread of ours waits for something; one that was woken does not."""
    return Path(f"/proc/self/task/{thread}/stat").read_text().rpartition(")")[2].split()[0] == "S"


def test_22_marks_that_must_wait_wake_nobody(tmp_path: Path) -> None:
    known = {thread.native_id for thread in threading.enumerate()}
    writer = MarkWriter(MarkFile(tmp_path / "mark"), interval=3600)
    (thread,) = {thread.native_id for thread in threading.enumerate()} - known
    assert thread is not None
    marks = [Mark("a" * 32, number, 0, 1) for number in range(1, 101)]
    writer.submit(marks[0])
    writer.wait(marks[0])
    before = switches(thread)
    for mark in marks[1:]:
        writer.submit(mark)
        while not is_asleep(thread):  # who was woken is to be counted
            pass
    assert switches(thread) - before < 10
    writer.stop()
    assert read_mark(tmp_path / "mark") == marks[-1]


def test_a_stopped_mark_writer_has_written_what_was_waiting(tmp_path: Path) -> None:
    writer = MarkWriter(MarkFile(tmp_path / "mark"))
    writer.submit(Mark("a" * 32, 5, 0, 1))
    writer.stop()
    assert read_mark(tmp_path / "mark") == Mark("a" * 32, 5, 0, 1)
