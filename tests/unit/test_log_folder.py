"""The data folder: lock, filesystem, versions, migrations, reserve (SEMANTICS 19, 33)."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import apsw
import pytest

from msgservice.client.outbox_file import OutboxFile
from msgservice.disk import database
from msgservice.disk.filesystem import check_filesystem, filesystem_of
from msgservice.disk.folder import Reserve
from msgservice.errors import DataFolderUnusable, LogDamaged, LogLocked
from msgservice.limits import Limits
from msgservice.log.copying import copy_log
from msgservice.log.schema import SCHEMA
from msgservice.message import Status
from msgservice.receiver.inbox.file import InboxFile
from msgservice.receiver_options import ReceiverOptions
from msgservice.records import Batch, Known
from tests.kit.logs import Driver, make_batch
from tests.kit.threads import ThreadCalls

MOUNTS = b"""\
/dev/sda1 / ext4 rw 0 0
srv:/export /mnt/share nfs4 rw 0 0
/dev/sdb1 /mnt/share/local xfs rw 0 0
srv:/b /mnt/with\\040space cifs rw 0 0
host /home/u/remote fuse.sshfs rw 0 0
/dev/sdc1 /mnt/f\xfcr btrfs rw 0 0
/dev/sdc2 /mnt/f\xc3\xbcr\x0c\\134\\011 bcachefs rw 0 0
/dev/sdd1 /mnt/over ext4 rw 0 0
/dev/sdd2 /mnt/over btrfs rw 0 0
/dev/sdd3 /mnt ext4 rw 0 0
a line that is cut
"""


@pytest.fixture
def mounts(tmp_path: Path) -> Path:
    path = tmp_path / "mounts"
    path.write_bytes(MOUNTS)
    return path


def test_33_a_folder_is_held_by_one_log(tmp_path: Path) -> None:
    log = Driver("sqlite", tmp_path / "data").open()
    with pytest.raises(LogLocked, match=f"process {os.getpid()}") as told:
        Driver("sqlite", tmp_path / "data").open()
    assert told.value.holder == f"process {os.getpid()}"
    log.close()
    Driver("sqlite", tmp_path / "data").open().close()


def test_33_the_lock_names_another_process_and_goes_with_it(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from msgservice.disk.folder import FolderLock\n"
        "FolderLock(Path(sys.argv[1]) / 'lock').acquire(); print('held', flush=True); input()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdin is not None
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(LogLocked, match=f"process {holder.pid}"):
            Driver("sqlite", tmp_path).open()
    finally:
        holder.kill()
        holder.wait()
        holder.stdin.close()
        holder.stdout.close()
    Driver("sqlite", tmp_path).open().close()


def test_an_open_that_failed_lets_go_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "log.db").write_bytes(b"this is no database" * 1000)
    for _ in range(2):
        with pytest.raises(LogDamaged):
            Driver("sqlite", tmp_path).open()


@pytest.mark.parametrize(
    ("folder", "kind"),
    [
        ("/srv/x", "ext4"),
        ("/mnt/share", "nfs4"),
        ("/mnt/share/deep/er", "nfs4"),
        ("/mnt/shared", "ext4"),
        ("/mnt/share/local/x", "xfs"),
        ("/mnt/with space/x", "cifs"),
        ("/home/u/remote", "fuse.sshfs"),
        (os.fsdecode(b"/mnt/f\xfcr/x"), "btrfs"),
        ("/mnt/f\u00fcr\f\\\t/x", "bcachefs"),
        ("/mnt/over/x", "btrfs"),
        ("/mnt/share/../over", "btrfs"),
    ],
)
def test_33_the_filesystem_of_a_folder_is_found(folder: str, kind: str, mounts: Path) -> None:
    assert filesystem_of(Path(folder), mounts) == kind


def test_33_the_filesystem_behind_a_link_is_found(tmp_path: Path, mounts: Path) -> None:
    (tmp_path / "link").symlink_to("/mnt/over")
    assert filesystem_of(tmp_path / "link" / "x", mounts) == "btrfs"


def test_33_without_a_table_of_mounts_a_filesystem_is_unknown(tmp_path: Path) -> None:
    assert filesystem_of(tmp_path, tmp_path / "mounts") == "unknown"


def test_33_a_network_filesystem_is_refused(mounts: Path) -> None:
    with pytest.raises(DataFolderUnusable, match="nfs4 is a network filesystem"):
        check_filesystem(Path("/mnt/share/data"), mounts)
    check_filesystem(Path("/mnt/share/local"), mounts)


@pytest.fixture
def open_umask() -> Iterator[None]:
    before = os.umask(0o000)
    yield
    os.umask(before)


@pytest.fixture
def on_ext4(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("msgservice.disk.database.filesystem_of", lambda folder: "ext4")


def modes(folder: Path) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}


@pytest.mark.usefixtures("open_umask", "on_ext4")
def test_all_files_of_a_log_are_their_owners_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir(mode=0o755)
    log = Driver("sqlite", tmp_path / "data", Limits(reserve_bytes=4096)).open()
    log.append(make_batch(log.log.audience([1])))
    files = ["log.db", "log.db-shm", "log.db-wal", "log.mark", "lock", "reserve"]
    assert modes(log.folder) == dict.fromkeys(files, 0o600)
    copy_log(log.folder, tmp_path / "copy")
    assert set(modes(tmp_path / "copy").values()) == {0o600}
    log.close()
    longer = replace(SCHEMA, steps=(*SCHEMA.steps, "create table extra(a)"))
    monkeypatch.setattr("msgservice.log.sqlite.SCHEMA", longer)
    Driver("sqlite", log.folder).open().close()
    assert modes(log.folder)[f"log.db.before-{longer.newest}"] == 0o600


@pytest.mark.usefixtures("open_umask", "on_ext4")
def test_outboxes_and_inboxes_are_their_owners_alone(tmp_path: Path) -> None:
    calls = ThreadCalls()
    outbox = OutboxFile(tmp_path / "outbox.db", reactor=calls)
    inbox = InboxFile(tmp_path / "inbox.db", reactor=calls)
    calls.wait(outbox.open())
    calls.wait(inbox.open())
    assert set(modes(tmp_path).values()) == {0o600}
    assert len(modes(tmp_path)) == 10
    for file in (outbox, inbox):
        calls.wait(file.close())


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataFolderUnusable, match="Not a directory"):
        Driver("sqlite", tmp_path / "file" / "data").open()


def test_an_affected_sqlite_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(apsw, "sqlite_lib_version", lambda: "3.51.2")
    with pytest.raises(DataFolderUnusable, match=r"SQLite 3\.51\.2 can corrupt"):
        Driver("sqlite", tmp_path).open()
    monkeypatch.setattr(apsw, "sqlite_lib_version", lambda: "3.51.3")
    Driver("sqlite", tmp_path).open().close()


def names_of(db: apsw.Connection, kind: str) -> set[str]:
    found = db.execute("select name from sqlite_schema where type = ?", (kind,))
    return {name for (name,) in found if not name.startswith("sqlite_")}


def columns_of(db: apsw.Connection) -> set[tuple[str, str]]:
    """Return each column of each table of a database, with its table."""
    asked = "select m.name, c.name from sqlite_master m, pragma_table_info(m.name) c"
    return {(table, column) for table, column in db.execute(asked + " where m.type = 'table'")}


def test_a_log_of_version_1_keeps_its_receivers_and_batches(tmp_path: Path) -> None:
    log = Driver("sqlite", tmp_path).open()
    log.receivers(1, 2)
    batch = make_batch(log.log.audience([1, 2]))
    log.append(batch)
    log.progress(1, batch.last, settled={Status.ACKNOWLEDGED: 1}, settled_bytes=batch.size)
    log.reopen()
    rows = log.snapshot.receivers
    log.close()
    db = apsw.Connection(str(tmp_path / "log.db"))
    first = apsw.Connection(":memory:")
    first.execute(SCHEMA.steps[0])
    for kind in ("trigger", "index", "table"):
        for name in names_of(db, kind) - names_of(first, kind):
            db.execute(f"drop {kind} {name}")
    for table, column in columns_of(db) - columns_of(first):  # that later versions have added
        db.execute(f"alter table {table} drop column {column}")
    db.execute("alter table receiver add column routed_base integer not null default 0")
    assert columns_of(db) == columns_of(first)
    first.close()
    db.pragma("user_version", 1)
    db.close()
    log = Driver("sqlite", tmp_path).open()
    newest = SCHEMA.newest
    assert log.snapshot.notices[0] == (
        f"log.db is migrated from version 1 to {newest}; copy in log.db.before-{newest}"
    )
    assert rows == log.snapshot.receivers
    assert (ReceiverOptions(), False) == (rows[0].options, rows[0].suspended)
    assert [0, 1] == [a.queued for a in log.wait(log.log.accounts())]
    (outcome,) = log.append(make_batch(log.log.audience([1, 2])))
    assert isinstance(outcome, Known)
    rows[1].options = ReceiverOptions(on_full="suspend")
    log.append(receivers=[rows[1]])
    log.reopen()
    assert ["refuse", "suspend"] == [row.options.on_full for row in log.snapshot.receivers]
    log.close()


def test_durability_is_set_explicitly(tmp_path: Path) -> None:
    log = Driver("sqlite", tmp_path).open()
    db = database.connect(str(tmp_path / "log.db"))
    found = {
        name: db.pragma(name)
        for name in ("journal_mode", "synchronous", "wal_autocheckpoint", "mmap_size")
    }
    db.close()
    assert found == {
        "journal_mode": "wal",
        "synchronous": 2,
        "wal_autocheckpoint": 0,
        "mmap_size": 0,
    }
    log.close()


# --- the reserve ---------------------------------------------------------------------------------


def test_19_the_reserve_is_really_allocated(tmp_path: Path) -> None:
    reserve = Reserve(tmp_path, 1024 * 1024)
    assert reserve.make()
    assert (tmp_path / "reserve").stat().st_blocks * 512 >= 1024 * 1024
    assert reserve.give_up()
    assert not (tmp_path / "reserve").exists()
    assert not reserve.give_up()


def test_19_no_reserve_is_made_of_room_that_is_not_there(tmp_path: Path) -> None:
    class Tight(Reserve):
        def free(self) -> int:
            return 1024 * 1024

    reserve = Tight(tmp_path, 1024 * 1024)
    assert not reserve.make()
    assert not (tmp_path / "reserve").exists()


def test_19_accepting_stops_at_the_low_watermark(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    size = 1024 * 1024
    log = Driver("sqlite", tmp_path, Limits(reserve_bytes=size)).open()
    audience = log.log.audience([1])
    monkeypatch.setattr(Reserve, "free", lambda self: size // 4 - 1)
    (refused,) = log.append(make_batch(audience, 1))
    assert not isinstance(refused, Batch | Known)
    assert "free on the disk" in str(log.log.room().full)
    monkeypatch.setattr(Reserve, "free", lambda self: size // 2 - 1)  # below twice the watermark
    (refused,) = log.append(make_batch(audience, 1))
    assert not isinstance(refused, Batch | Known)
    monkeypatch.setattr(Reserve, "free", lambda self: size // 2)
    (stored,) = log.append(make_batch(audience, 1))
    assert isinstance(stored, Batch)
    log.close()


def test_a_drained_backlog_gives_its_pages_back(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from msgservice.log import retention

    monkeypatch.setattr(retention, "FREE_PAGES_KEPT", 64)
    log = Driver(
        "sqlite", tmp_path, Limits(reserve_bytes=1024, keep_seconds=0, keep_bytes=0)
    ).open()
    log.receivers(1)
    audience = log.log.audience([1])
    batches = [make_batch(audience, i, [os.urandom(20_000)]) for i in range(1, 300)]
    log.append(*batches)
    log.reopen()
    large = (tmp_path / "log.db").stat().st_size
    log.progress(1, batches[-1].last, settled={3: 299})
    for _ in range(20):
        log.wait(log.log.retain(batches[0].stored_at + 1))
    log.reopen()
    small = (tmp_path / "log.db").stat().st_size
    assert large > 5_000_000
    assert small < 1_000_000
    log.close()


def test_a_crash_image_opens_with_all_that_was_told(tmp_path: Path) -> None:
    log = Driver("sqlite", tmp_path / "live").open()
    audience = log.log.audience([1])
    for i in range(1, 20):
        log.append(make_batch(audience, i))
        image = tmp_path / f"image{i}"
        shutil.copytree(log.folder, image)
        crashed = Driver("sqlite", image).open()
        read = crashed.read([crashed.log.audience([1])])
        assert [batch.sequence for batch in read] == list(range(1, i + 1))
        crashed.close()
    log.close()
