"""Files of a log, an outbox or an inbox that are reached by another name (SEMANTICS 26, 33).

A lock, a mark and a write-ahead log stand beside a file. Two processes that open it by two names
must meet at the same ones.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from msgservice.client.outbox_file import OutboxFile
from msgservice.core.runs import producer_run
from msgservice.errors import DataFolderUnusable, LogLocked
from msgservice.message import encode_bodies
from msgservice.receiver.inbox.file import InboxFile
from tests.kit.logs import Driver
from tests.kit.threads import ThreadCalls


class Opened:
    """An outbox or an inbox in its file; opening it may fail."""

    def __init__(self, kind: type[InboxFile] | type[OutboxFile], path: Path) -> None:
        self.threads = ThreadCalls()
        self.file: Any = kind(path, reactor=self.threads)
        opening: Deferred[Any] = self.file.open()
        self.threads.wait(opening)

    def write(self) -> None:
        """Commit something, so that the mark counts."""
        if isinstance(self.file, InboxFile):
            done: Deferred[Any] = self.file.transaction(
                lambda transaction: transaction.execute("create table if not exists done(body)")
            )
            self.threads.wait(done)
        else:
            run = producer_run(self.file.sequence + 1, 1, "a.b", encode_bodies([b"x"]))
            appending: Deferred[Any] = self.file.append([run])
            self.threads.wait(appending)

    def close(self) -> None:
        closing: Deferred[Any] = self.file.close()
        self.threads.wait(closing)


KINDS = pytest.mark.parametrize("kind", [InboxFile, OutboxFile])


def behind_a_link(path: Path) -> Path:
    link = path.with_name("link.db")
    link.symlink_to(path.name)
    return link


def behind_links(path: Path) -> Path:
    link = behind_a_link(path)
    again = path.with_name("again.db")
    again.symlink_to(link)
    return again


def in_a_linked_folder(path: Path) -> Path:
    folder = path.parent.with_name("linked")
    folder.symlink_to(path.parent)
    return folder / path.name


@pytest.mark.parametrize("other", [behind_a_link, behind_links, in_a_linked_folder])
@pytest.mark.parametrize("turned", [False, True], ids=["", "the link first"])
@KINDS
def test_33_a_file_is_held_whatever_name_leads_to_it(
    kind: type[Any], other: Callable[[Path], Path], turned: bool, tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    path = folder / "file.db"
    names = [path, other(path)]  # the link may be there before the file is
    if turned:
        names.reverse()
    first = Opened(kind, names[0])
    first.write()
    with pytest.raises(LogLocked, match=f"process {os.getpid()}"):
        Opened(kind, names[1])
    first.close()
    again = Opened(kind, names[1])  # with the mark that the other name has left
    again.write()
    again.close()
    Opened(kind, names[0]).close()
    assert not [*folder.glob("link.db?*"), *folder.glob("again.db?*")]  # nothing beside a link


@pytest.mark.parametrize("suffix", ["", ".mark", "-wal"])
@KINDS
def test_33_a_file_that_has_another_name_is_refused_until_that_is_gone(
    kind: type[Any], suffix: str, tmp_path: Path
) -> None:
    path, other = tmp_path / "file.db", tmp_path / "other.db"
    opened = Opened(kind, path)
    opened.write()
    opened.close()
    (tmp_path / "file.db-wal").touch()
    os.link(f"{path}{suffix}", f"{other}{suffix}")
    for _ in range(2):  # what is refused is left unlocked
        with pytest.raises(
            DataFolderUnusable, match=rf"{path.name}{suffix} has another name"
        ) as told:
            Opened(kind, path)
        assert told.value.path == str(path)
    Path(f"{other}{suffix}").unlink()
    Opened(kind, path).close()


@KINDS
def test_a_folder_in_the_place_of_a_file_is_called_one(kind: type[Any], tmp_path: Path) -> None:
    path = tmp_path / "file.db"
    (path / "within").mkdir(parents=True)
    with pytest.raises(DataFolderUnusable, match=r"file\.db is a folder"):
        Opened(kind, path)


@pytest.mark.parametrize("name", ["log.db", "log.mark", "log.db-wal"])
@pytest.mark.parametrize("way", ["hard link", "symbolic link"])
def test_33_a_log_whose_files_have_other_names_is_refused_until_they_are_gone(
    way: str, name: str, tmp_path: Path
) -> None:
    folder, other = tmp_path / "data", tmp_path / "other"
    log = Driver("sqlite", folder).open()
    log.receivers(1)
    log.close()
    other.mkdir()
    file = folder / name
    file.touch()
    if way == "hard link":
        os.link(file, other / name)
    else:
        file.rename(other / name)
        file.symlink_to(other / name)
    for _ in range(2):
        with pytest.raises(DataFolderUnusable, match=rf"{name} (has another name|is a symbolic)"):
            Driver("sqlite", folder).open()
    if way == "symbolic link":
        file.unlink()
        (other / name).rename(file)
    else:
        (other / name).unlink()
    Driver("sqlite", folder).open().close()


def test_33_a_data_folder_behind_a_link_is_held_as_itself(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("data")
    log = Driver("sqlite", tmp_path / "data").open()
    with pytest.raises(LogLocked):
        Driver("sqlite", tmp_path / "link").open()
    log.close()
