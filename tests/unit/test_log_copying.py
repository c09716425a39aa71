"""Copies of logs have a name of their own (SEMANTICS 6)."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path

import apsw
import pytest

from msgservice.errors import DataFolderUnusable, LogDamaged, LogTooNew
from msgservice.log.copying import copy_log
from msgservice.log.schema import SCHEMA
from msgservice.records import Batch, Known
from tests.kit.logs import Driver, make_batch, numbers


def test_6_a_copy_of_a_log_in_use_is_whole_and_has_another_id(tmp_path: Path) -> None:
    log = Driver("sqlite", tmp_path / "data").open()
    log.receivers(1)
    audience = log.log.audience([1])
    log.append(*(make_batch(audience, i) for i in range(1, 50)))
    log.reopen()
    audience = log.log.audience([1])
    log.append(*(make_batch(audience, i) for i in range(50, 100)))
    log_id = copy_log(tmp_path / "data", tmp_path / "copy")
    log.append(make_batch(audience, 100))
    copy = Driver("sqlite", tmp_path / "copy").open()
    assert copy.log.log_id == log_id != log.log.log_id
    assert numbers(copy.read([copy.log.audience([1])])) == list(range(1, 100))
    assert copy.wait(copy.log.audit()) == []
    known, new = copy.append(
        make_batch(copy.log.audience([1]), 99), make_batch(copy.log.audience([1]), 100)
    )
    assert isinstance(known, Known)
    assert isinstance(new, Batch)
    copy.close()
    log.close()


def test_a_copy_never_replaces_a_log(tmp_path: Path) -> None:
    Driver("sqlite", tmp_path / "data").open().close()
    Driver("sqlite", tmp_path / "other").open().close()
    with pytest.raises(DataFolderUnusable, match="already"):
        copy_log(tmp_path / "data", tmp_path / "other")
    with pytest.raises(DataFolderUnusable, match="no log"):
        copy_log(tmp_path / "nothing", tmp_path / "new")


def test_what_is_left_of_a_log_that_is_gone_does_not_get_into_a_copy(tmp_path: Path) -> None:
    """Its write-ahead log was replayed into the copy, which was said to be whole; its mark was held
    against it."""
    log = Driver("sqlite", tmp_path / "data").open()
    log.receivers(1)
    audience = log.log.audience([1])
    log.append(*(make_batch(audience, i) for i in range(1, 50)))
    copy_log(tmp_path / "data", tmp_path / "copy")
    used = Driver("sqlite", tmp_path / "copy").open()
    used.append(*(make_batch(used.log.audience([1]), i) for i in range(50, 100)))
    shutil.copytree(tmp_path / "copy", tmp_path / "killed")
    used.close()
    folder, wal = tmp_path / "killed", tmp_path / "killed" / "log.db-wal"
    (folder / "log.db").unlink()
    with pytest.raises(DataFolderUnusable, match=r"log\.db-wal is in it, of a log that is gone"):
        copy_log(tmp_path / "data", folder)
    wal.unlink()
    log_id = copy_log(tmp_path / "data", folder)
    copy = Driver("sqlite", folder).open()
    assert copy.log.log_id == log_id
    assert numbers(copy.read([copy.log.audience([1])])) == list(range(1, 50))
    copy.close()
    log.close()


def test_a_log_of_an_older_version_is_copied_and_stays_as_it_was(tmp_path: Path) -> None:
    with tarfile.open(Path(__file__).with_name("old_files") / "version_1.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    before = (tmp_path / "log" / "log.db").read_bytes()
    log_id = copy_log(tmp_path / "log", tmp_path / "copy")
    assert (tmp_path / "log" / "log.db").read_bytes() == before
    copy, original = (Driver("sqlite", tmp_path / name).open() for name in ("copy", "log"))
    assert copy.log.log_id == log_id != original.log.log_id
    assert copy.wait(copy.log.audit()) == []
    told = [log.wait(log.log.accounts()) for log in (copy, original)]
    assert told[0] == told[1] != []
    copy.close()
    original.close()


def _with(folder: Path, sql: str) -> None:
    db = apsw.Connection(str(folder / "log.db"))
    db.execute(sql)
    db.close()


def test_what_cannot_be_copied_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    Driver("sqlite", tmp_path / "newer").open().close()
    _with(tmp_path / "newer", f"pragma user_version = {SCHEMA.newest + 1}")
    with pytest.raises(LogTooNew):
        copy_log(tmp_path / "newer", tmp_path / "one")
    Driver("sqlite", tmp_path / "damaged").open().close()
    _with(tmp_path / "damaged", "drop table head")
    with pytest.raises(LogDamaged):
        copy_log(tmp_path / "damaged", tmp_path / "two")
    (tmp_path / "folder" / "log.db").mkdir(parents=True)
    with pytest.raises(DataFolderUnusable, match=r"folder cannot be used: .*unable to open"):
        copy_log(tmp_path / "folder", tmp_path / "three")
    for name in ("one", "two", "three"):
        assert [file.name for file in (tmp_path / name).iterdir()] == ["lock"]
