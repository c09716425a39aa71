"""Files on disk: what a peer may touch, atomic writes, parts that are resumed."""

import fcntl
import hashlib
import os
import stat
import subprocess
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console
from twisted.internet.defer import Deferred

from msgservice.errors import PathRefused, TransferFailed
from msgservice.faces.callbacks.arrival import WAITING_BYTES_MAX, Arrival
from msgservice.faces.callbacks.files import FileRoot, IncomingFile
from msgservice.faces.callbacks.progress import ProgressBar
from msgservice.faces.callbacks.registry import CallbackRegistry


@pytest.fixture
def root(tmp_path: Path) -> FileRoot:
    (tmp_path / "root" / "folder").mkdir(parents=True)
    (tmp_path / "root" / "file").write_bytes(b"content")
    (tmp_path / "outside").write_bytes(b"secret")
    (tmp_path / "root" / "link").symlink_to(tmp_path / "outside")
    (tmp_path / "root" / "out").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "root" / "pipe")
    return FileRoot(tmp_path / "root", sync=False)


REFUSED = [
    ("", "names no file"),
    (None, "names no file"),
    ("a\0b", "names no file"),
    ("..", "leads upwards"),
    ("../outside", "leads upwards"),
    ("folder/../../outside", "leads upwards"),
    ("/etc/hostname", "absolute"),
    ("link", "symbolic link"),
    ("out/outside", "symbolic link"),
    (".", "names a folder"),
    ("folder/", "names a folder"),
    ("folder", "no regular file"),
    ("pipe", "no regular file"),
    (".0123456789abcdef0123456789abcdef.part", "not complete"),
]


@pytest.mark.parametrize(("path", "reason"), REFUSED)
def test_path_out_of_the_root_is_refused_and_named(
    root: FileRoot, path: str | None, reason: str
) -> None:
    with pytest.raises(PathRefused, match=reason):
        root.open_to_send(path)
    if path is not None:
        with pytest.raises(PathRefused, match=reason):
            root.open_to_receive(path, 0)


@given(path=st.text("./ab\0-~\\", max_size=12))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_path_reaches_outside(root: FileRoot, path: str) -> None:
    try:
        file = root.open_to_send(path)
    except (PathRefused, OSError):
        return
    assert file.read(0, file.size, hashed=False) == b"content"
    file.close()


def test_paths_within_the_root_are_found(root: FileRoot) -> None:
    (root.path / "folder" / "deep").write_bytes(b"deep")
    for path, content in (("file", b"content"), ("folder/deep", b"deep"), ("./file", b"content")):
        file = root.open_to_send(path)
        assert content == file.read(0, file.size, hashed=False)
        file.close()


def test_absolute_paths_within_the_root_only_if_so_configured(root: FileRoot) -> None:
    absolute = FileRoot(root.path, allow_absolute=True)
    absolute.open_to_send(str(root.path / "file")).close()
    with pytest.raises(PathRefused, match="outside of the root"):
        absolute.open_to_send("/etc/hostname")
    with pytest.raises(PathRefused, match="leads upwards"):
        absolute.open_to_send(f"{root.path}/../outside")


def test_link_that_appears_meanwhile_is_not_followed(root: FileRoot, tmp_path: Path) -> None:
    incoming = root.open_to_receive("new", 3)
    (root.path / "new").symlink_to(tmp_path / "outside")
    incoming.write(b"new")
    incoming.finish(None)
    assert (tmp_path / "outside").read_bytes() == b"secret"
    assert not (root.path / "new").is_symlink()


def test_file_appears_whole_or_not_at_all(root: FileRoot) -> None:
    incoming = root.open_to_receive("file", 6)
    incoming.write(b"new")
    assert (root.path / "file").read_bytes() == b"content"
    incoming.write(b"new")
    incoming.finish(None)
    assert (root.path / "file").read_bytes() == b"newnew"
    assert not list(root.path.glob(".*.part"))


def test_short_file_does_not_appear(root: FileRoot) -> None:
    incoming = root.open_to_receive("file", 6)
    incoming.write(b"new")
    with pytest.raises(TransferFailed, match="3 of 6 bytes"):
        incoming.finish(None)
    incoming.abandon()
    assert (root.path / "file").read_bytes() == b"content"
    assert not list(root.path.glob(".*.part"))


def test_wrong_checksum_keeps_the_old_file(root: FileRoot) -> None:
    incoming = root.open_to_receive("file", 3, checked=True)
    incoming.write(b"new")
    with pytest.raises(TransferFailed, match="checksum"):
        incoming.finish("00")
    incoming.abandon()
    incoming.abandon()
    assert (root.path / "file").read_bytes() == b"content"


def test_permissions_of_the_file_that_is_replaced_are_kept(root: FileRoot) -> None:
    (root.path / "file").chmod(0o4751)
    incoming = root.open_to_receive("file", 0)
    incoming.finish(None)
    assert stat.S_IMODE((root.path / "file").stat().st_mode) == 0o751


def test_synced_file_is_whole_too(root: FileRoot) -> None:
    incoming = FileRoot(root.path).open_to_receive("file", 3)
    incoming.write(b"new")
    incoming.finish(None)
    assert (root.path / "file").read_bytes() == b"new"


def test_part_of_a_named_transfer_is_found_again(root: FileRoot) -> None:
    first = root.open_to_receive("new", 6, transfer="t", checked=True)
    first.write(b"abc")
    first.abandon(keep=True)
    again = root.open_to_receive("new", 6, transfer="t", checked=True)
    again.recall()
    assert (again.position, again.sha256) == (3, hashlib.sha256(b"abc").hexdigest())
    assert again.restart_at(3)
    again.write(b"def")
    again.finish(hashlib.sha256(b"abcdef").hexdigest())
    assert (root.path / "new").read_bytes() == b"abcdef"


def test_part_may_be_begun_again(root: FileRoot) -> None:
    first = root.open_to_receive("new", 3, transfer="t", checked=True)
    first.write(b"abc")
    assert not first.restart_at(2)
    assert first.restart_at(0)
    first.write(b"xy")
    first.size = 2
    first.finish(hashlib.sha256(b"xy").hexdigest())
    assert (root.path / "new").read_bytes() == b"xy"


def test_same_transfer_twice_at_once_does_not_mix(root: FileRoot) -> None:
    first = root.open_to_receive("new", 3, transfer="t")
    second = root.open_to_receive("new", 3, transfer="t")
    assert (first.transfer, second.transfer) == ("t", None)
    first.write(b"abc")
    second.write(b"xyz")
    second.finish(None)
    first.finish(None)
    assert (root.path / "new").read_bytes() == b"abc"


def test_stale_parts_are_removed_and_others_are_not(root: FileRoot) -> None:
    old = root.open_to_receive("old", 3, transfer="old")
    old.write(b"abc")
    old.abandon(keep=True)
    (part,) = root.path.glob(".*.part")
    os.utime(part, (1000, 1000))
    fresh = root.open_to_receive("fresh", 3, transfer="fresh")
    fresh.abandon(keep=True)
    busy = root.open_to_receive("busy", 3, transfer="busy")
    assert root.remove_stale_parts(before=2000) == 1
    assert len(list(root.path.glob(".*.part"))) == 2
    busy.abandon()


def test_shrunk_file_is_said_to_have(root: FileRoot) -> None:
    file = root.open_to_send("file")
    os.truncate(root.path / "file", 2)
    with pytest.raises(TransferFailed, match="shrank below 7 bytes"):
        file.read(0, 7, hashed=False)
    assert file.hash_of(7) is None
    file.close()
    file.close()


def test_reading_goes_on_after_a_verified_prefix(root: FileRoot) -> None:
    file = root.open_to_send("file")
    hashed = file.hash_of(3)
    assert hashed is not None
    assert hashlib.sha256(b"con").hexdigest() == hashed.hexdigest()
    file.go_on(3, hashed)
    assert file.read(3, 4, hashed=True) == b"tent"
    assert hashlib.sha256(b"content").hexdigest() == file.sha256
    file.close()


def test_name_of_a_transfer_changes_with_the_file(root: FileRoot) -> None:
    file = root.open_to_send("file")
    name = file.transfer("there")
    assert name == root.open_to_send("file").transfer("there")
    assert name != file.transfer("elsewhere")
    (root.path / "file").write_bytes(b"longer content")
    assert name != root.open_to_send("file").transfer("there")


@pytest.mark.parametrize("remote", ["", "a/", "a/..", ".", "a/.", "x\0"])
def test_remote_path_without_a_base_name_is_refused(root: FileRoot, remote: str) -> None:
    with pytest.raises(PathRefused):
        root.local_path(None, remote)


def test_local_path_is_the_base_name_under_the_root(root: FileRoot) -> None:
    assert root.path / "c" == root.local_path(None, "/a/b/c")
    assert root.path / "mine" == root.local_path("mine", "/a/b/c")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 1 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)],
        capture_output=True,
        check=False,
    )
    if done.returncode:
        pytest.skip("may not mount a file system here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_full_disk_is_an_error_and_leaves_the_old_file(small_disk: Path) -> None:
    (small_disk / "file").write_bytes(b"old")
    incoming = FileRoot(small_disk).open_to_receive("file", 10_000_000)
    with pytest.raises(OSError, match="No space left on device"):
        incoming.write(bytes(10_000_000))
    incoming.abandon()
    assert ["file"] == [path.name for path in small_disk.iterdir()]
    assert (small_disk / "file").read_bytes() == b"old"


# --- writing in a thread --------------------------------------------------------------------------


class Threads:
    """Runs what is given to a thread when the test says so."""

    def __init__(self) -> None:
        self.jobs: list[tuple[Deferred[Any], Any, tuple[Any, ...]]] = []

    def run(self, function: Any, *args: Any) -> "Deferred[Any]":
        self.jobs.append((Deferred(), function, args))
        return self.jobs[-1][0]

    def work(self) -> None:
        while self.jobs:
            d, function, args = self.jobs.pop(0)
            try:
                d.callback(function(*args))
            except OSError as error:
                d.errback(error)


class ArrivalWorld:
    def __init__(self, file: IncomingFile) -> None:
        self.threads = Threads()
        self.full: list[bool] = []
        self.failed: list[BaseException] = []
        self.arrival = Arrival(
            file,
            run_in_thread=self.threads.run,
            full=self.full.append,
            failed=lambda arrival, error: self.failed.append(error),
        )


def test_small_file_visits_the_thread_once(root: FileRoot) -> None:
    world = ArrivalWorld(root.open_to_receive("new", 6))
    for data in (b"abc", b"def"):
        world.arrival.write(memoryview(data))
    assert not world.threads.jobs
    done = world.arrival.finish(None)
    assert len(world.threads.jobs) == 1
    world.threads.work()
    assert done.called
    assert (root.path / "new").read_bytes() == b"abcdef"


def test_disk_that_is_slow_stops_the_reading_and_keeps_the_order(root: FileRoot) -> None:
    chunks = [bytes([number]) * 300_000 for number in range(10)]
    world = ArrivalWorld(root.open_to_receive("new", 3_000_000))
    for chunk in chunks:
        world.arrival.write(memoryview(chunk))
    assert world.full == [True]
    assert world.arrival._waiting_bytes > WAITING_BYTES_MAX
    done = world.arrival.finish(None)
    world.threads.work()
    assert world.full == [True, False]
    assert done.called
    assert (root.path / "new").read_bytes() == b"".join(chunks)


def test_error_of_the_disk_is_told_once_and_nothing_more_is_written(
    root: FileRoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(self: IncomingFile, data: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(IncomingFile, "write", write)
    world = ArrivalWorld(root.open_to_receive("new", 3_000_000))
    for _ in range(3):
        world.arrival.write(memoryview(bytes(300_000)))
    world.threads.work()
    world.arrival.write(memoryview(bytes(300_000)))
    assert not world.threads.jobs
    assert len(world.failed) == 1
    world.arrival.abandon()
    assert not list(root.path.glob(".*.part"))


def test_abandoned_file_is_closed_after_the_thread_is_done(root: FileRoot) -> None:
    file = root.open_to_receive("new", 3_000_000)
    world = ArrivalWorld(file)
    world.arrival.write(memoryview(bytes(300_000)))
    world.arrival.abandon()
    assert list(root.path.glob(".*.part"))
    world.threads.work()
    assert not list(root.path.glob(".*.part"))


def test_kept_part_has_all_that_came(root: FileRoot) -> None:
    file = root.open_to_receive("new", 3_000_000, transfer="t", checked=True)
    world = ArrivalWorld(file)
    for _ in range(3):
        world.arrival.write(memoryview(bytes(200_000)))
    world.arrival.abandon(keep=True)
    world.threads.work()
    again = root.open_to_receive("new", 3_000_000, transfer="t", checked=True)
    again.recall()
    assert again.position == 600_000
    again.abandon()


# --- small things ---------------------------------------------------------------------------------


def test_progress_bar_shows_where_it_is_and_takes_any_name() -> None:
    out = StringIO()
    with ProgressBar("[red]{name}", console=Console(file=out, width=120)) as progress:
        progress(0, 2_000_000)
        progress(2_000_000, 2_000_000)
    assert "[red]{name}" in out.getvalue()
    assert "2.0/2.0 MB" in out.getvalue()


def test_registry_replaces_and_falls_back() -> None:
    outer = CallbackRegistry()
    inner = CallbackRegistry(outer)
    outer.message_callback("a")(len)
    assert inner.message("a") is len
    inner.message_callback("a")(abs)
    inner.message_callback("a")(repr)
    assert inner.message("a") is repr
    assert outer.message("a") is len
    assert inner.request("a") is None


def test_part_is_locked_while_it_is_received(root: FileRoot) -> None:
    incoming = root.open_to_receive("new", 3, transfer="t")
    (part,) = root.path.glob(".*.part")
    with part.open() as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    incoming.abandon()
