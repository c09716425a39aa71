"""Copies of logs have a name of their own (SEMANTICS 6)."""

from __future__ import annotations

from pathlib import Path

import pytest

from msgservice.errors import DataFolderUnusable
from msgservice.log.copying import copy_log
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
