"""Files over a `Connection` on real sockets: whole, confined, interrupted, on full disks."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from twisted.internet import defer
from twisted.internet.protocol import Factory, Protocol
from twisted.logger import LogEvent

from msgservice.errors import (
    PathRefused,
    RequestFailed,
    TransferFailed,
)
from msgservice.faces.callbacks.connection import Connection
from msgservice.faces.callbacks.files import IncomingFile
from tests.kit.callbacks_vectors import VECTORS
from tests.kit.callbacks_world import ENCODER, HELLO, Raw, World, failure_of, in_reactor

pytest_plugins = ["tests.kit.callbacks_fixtures"]


# --- files ----------------------------------------------------------------------------------------

SIZES = [0, 1, 9, 300_000, 3_000_000]


@pytest.mark.parametrize("size", SIZES)
@in_reactor
async def test_pushed_file_is_confirmed_and_whole(world: World, size: int) -> None:
    content = os.urandom(size)
    (world.client_folder / "source").write_bytes(content)
    placed: list[str] = []
    await world.serve(on_file=lambda connection, path: placed.append(path))
    client = await world.ours()
    progress: list[tuple[int, int]] = []
    sent = await client.push_file("source", "copy", progress=lambda *at: progress.append(at))
    assert (size, True) == (sent.size, sent.confirmed)
    assert content == (world.server_folder / "copy").read_bytes()
    assert [path.name for path in world.server_folder.iterdir()] == ["copy"]
    assert placed == ["copy"]
    assert (size, size) == progress[-1]
    assert sorted(progress) == progress


@pytest.mark.parametrize("size", SIZES)
@in_reactor
async def test_fetched_file_is_whole(world: World, size: int) -> None:
    content = os.urandom(size)
    (world.server_folder / "source").write_bytes(content)
    await world.serve()
    client = await world.client()
    progress: list[tuple[int, int]] = []
    path = await client.fetch_file("source", "copy", progress=lambda *at: progress.append(at))
    assert world.client_folder / "copy" == path
    assert content == path.read_bytes()
    if size:
        assert (size, size) == progress[-1]


@in_reactor
async def test_file_and_what_follows_it_keep_their_order(world: World) -> None:
    world.registry.request_callback("size")(
        lambda connection, name: (world.server_folder / name).stat().st_size
    )
    await world.serve()
    client = await world.client()
    (world.client_folder / "source").write_bytes(bytes(100_000))
    pushed = [client.push_file("source", f"copy{n}") for n in range(5)]
    assert await client.request("size", ["copy4"]) == 100_000
    await defer.gatherResults(pushed)


@in_reactor
async def test_fetched_file_without_a_path_goes_to_its_base_name_under_the_root(
    world: World,
) -> None:
    (world.server_folder / "deep").mkdir()
    (world.server_folder / "deep" / "name").write_bytes(b"x")
    await world.serve()
    client = await world.client()
    assert world.client_folder / "name" == await client.fetch_file("deep/name")
    assert (world.client_folder / "name").read_bytes() == b"x"
    assert "no base name" in await failure_of(client.fetch_file("deep/.."), PathRefused)


@in_reactor
async def test_callback_of_a_file_gets_true_or_false(world: World) -> None:
    (world.server_folder / "source").write_bytes(b"x")
    await world.serve()
    client = await world.ours()
    got: list[Any] = []
    for name in ("source", "missing"):
        client.get_file(
            name,
            "copy",
            lambda *args, **kwargs: got.append((args, kwargs)),
            (1,),
            {"k": 2},
        )
    await world.until(lambda: len(got) == 2)
    assert {True, False} == {args[1] for args, _ in got}
    for args, kwargs in got:
        assert (client, 1) == (args[0], args[2])
        assert kwargs == {"filepath": "copy", "k": 2}


@pytest.mark.parametrize(
    "path", ["../outside", "/etc/hostname", "link", "link/outside", "", "a\0b"]
)
@in_reactor
async def test_paths_out_of_the_root_are_refused(world: World, path: str, tmp_path: Path) -> None:
    (tmp_path / "outside").write_bytes(b"secret")
    (world.server_folder / "link").symlink_to(tmp_path)
    (world.client_folder / "source").write_bytes(b"overwritten")
    await world.serve()
    client = await world.ours()
    assert "refused" in await failure_of(client.push_file("source", path), TransferFailed)
    assert "refused" in await failure_of(client.fetch_file(path, "stolen"), RequestFailed)
    assert (tmp_path / "outside").read_bytes() == b"secret"
    assert [entry.name for entry in world.client_folder.iterdir()] == ["source"]
    assert [entry.name for entry in world.server_folder.iterdir()] == ["link"]
    raw = await world.raw()
    await raw.gets(HELLO)
    raw.send(ENCODER.file_push(path, 3) + b"abc" + VECTORS["get_file_request"])
    raw.send(ENCODER.request("filetransfer", "0001", (), {"filepath": path}))
    world.registry.request_callback("v")(lambda connection: 1)
    raw.send(ENCODER.request("v", "0002"))
    await raw.gets(ENCODER.response("v", "0002", 1))


@in_reactor
async def test_without_a_root_no_file_goes_either_way(world: World) -> None:
    (world.client_folder / "source").write_bytes(b"x")
    await world.serve(files=None)
    client = await world.ours()
    assert "no folder for files" in await failure_of(
        client.push_file("source", "x"), TransferFailed
    )
    assert "no folder for files" in await failure_of(client.fetch_file("x"), RequestFailed)


@in_reactor
async def test_file_that_cannot_be_read_here_fails_at_once(world: World) -> None:
    await world.serve()
    client = await world.client()
    await failure_of(client.push_file("missing", "x"), FileNotFoundError)
    await failure_of(client.push_file(world.client_folder, "x"), PathRefused)
    client.send_file("missing", "x")


@in_reactor
async def test_full_disk_fails_the_file_and_nothing_else(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.registry.request_callback("v")(lambda connection: 1)
    real = IncomingFile.write

    def write(self: IncomingFile, data: Any) -> None:
        if self.position + len(data) > 1_000_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(self, data)

    (world.client_folder / "source").write_bytes(bytes(5_000_000))
    (world.server_folder / "copy").write_bytes(b"old")
    (world.server_folder / "big").write_bytes(bytes(5_000_000))
    await world.serve()
    client = await world.ours()
    monkeypatch.setattr(IncomingFile, "write", write)
    text = await failure_of(client.push_file("source", "copy"), TransferFailed)
    assert "No space left on device" in text
    text = await failure_of(client.fetch_file("big"), TransferFailed)
    assert "No space left on device" in text
    assert await client.request("v") == 1
    assert {"copy", "big"} == {path.name for path in world.server_folder.iterdir()}
    assert (world.server_folder / "copy").read_bytes() == b"old"
    assert [path.name for path in world.client_folder.iterdir()] == ["source"]


@in_reactor
async def test_file_that_shrinks_while_it_is_sent_ends_the_connection(world: World) -> None:
    source = world.client_folder / "source"
    source.write_bytes(bytes(5_000_000))
    await world.serve()
    client = await world.ours()

    def shrink(done: int, total: int) -> None:
        os.truncate(source, 1000)

    text = await failure_of(client.push_file("source", "x", progress=shrink), TransferFailed)
    assert "shrank below 5000000 bytes" in text
    await world.until(lambda: not list(world.server_folder.glob("x")))


@in_reactor
async def test_wrong_checksum_fails_the_file(world: World) -> None:
    got: list[Connection] = []
    await world.serve(on_connected=got.append)
    raw = await world.raw()
    extra = {"x-transfer": "t", "x-offset": 0, "x-checksum": "sha256"}
    raw.send(HELLO + ENCODER.file_push("copy", 3, extra) + b"abc")
    raw.send(ENCODER.extension("checksum", {"sha256": "00"}))
    await world.until(lambda: b"was sent" in raw.got)
    assert not list(world.server_folder.iterdir())


@in_reactor
async def test_broken_push_goes_on_where_it_was(world: World) -> None:
    content = os.urandom(20_000_000)
    (world.client_folder / "source").write_bytes(content)
    await world.serve()
    client = await world.ours(resume_queue=True)
    broken = False

    def break_off(done: int, total: int) -> None:
        nonlocal broken
        if done > 8_000_000 and not broken:
            broken = True
            client.abort()

    read: list[int] = []

    def watch(done: int, total: int) -> None:
        read.append(done)
        break_off(done, total)

    sent = await client.push_file("source", "copy", progress=watch)
    assert broken
    assert sent.confirmed
    assert content == (world.server_folder / "copy").read_bytes()
    assert [path.name for path in world.server_folder.iterdir()] == ["copy"]
    # The second time it did not begin at the beginning.
    restart = next(at for at, before in zip(read[1:], read, strict=False) if at < before)
    assert restart > 1_000_000


@in_reactor
async def test_broken_fetch_goes_on_where_it_was(world: World) -> None:
    content = os.urandom(20_000_000)
    (world.server_folder / "source").write_bytes(content)
    await world.serve()
    client = await world.ours()
    broken = False
    read: list[int] = []

    def watch(done: int, total: int) -> None:
        nonlocal broken
        read.append(done)
        if done > 8_000_000 and not broken:
            broken = True
            client.abort()

    path = await client.fetch_file("source", "copy", progress=watch)
    assert broken
    assert content == path.read_bytes()
    assert {"copy"} == {path.name for path in world.client_folder.iterdir()}
    assert sorted(read) == read  # no byte came twice
    assert read[-1] == 20_000_000


@in_reactor
async def test_file_that_changed_meanwhile_starts_again(world: World) -> None:
    source = world.server_folder / "source"
    source.write_bytes(os.urandom(20_000_000))
    await world.serve()
    client = await world.ours()
    content = os.urandom(20_000_000)
    broken = False

    def watch(done: int, total: int) -> None:
        nonlocal broken
        if done > 8_000_000 and not broken:
            broken = True
            source.write_bytes(content)
            client.abort()

    path = await client.fetch_file("source", "copy", progress=watch)
    assert broken
    assert content == path.read_bytes()


@in_reactor
async def test_interrupted_file_goes_whole_to_a_peer_of_others(world: World) -> None:
    content = os.urandom(30_000_000)  # more than the system's buffers hold
    (world.client_folder / "source").write_bytes(content)
    seen: list[Raw] = []

    class Old(Factory):
        noisy = False

        def buildProtocol(self, addr: Any) -> Protocol:
            seen.append(Raw(world))
            return seen[-1]

    port = world.reactor.listenTCP(0, Old(), interface="127.0.0.1")
    client = await world.client(port=port.getHost().port, resume_queue=True, announce=False)
    done = client.push_file("source", "copy")
    await world.until(lambda: len(seen[0].got) > 1_000_000)
    seen[0].transport.abortConnection()
    assert not (await done).confirmed
    expected = ENCODER.file_push("copy", len(content)) + content
    await world.until(lambda: len(seen[-1].got) == len(expected))
    assert expected == seen[-1].got
    await world.clients[0].stopService()
    await port.stopListening()
    await world.until(lambda: all(raw.is_lost for raw in seen))


@in_reactor
async def test_cancelled_fetch_leaves_nothing(world: World) -> None:
    world.registry.request_callback("v")(lambda connection: 1)
    (world.server_folder / "source").write_bytes(bytes(20_000_000))
    await world.serve()
    client = await world.ours()
    d = client.fetch_file("source", "copy", progress=lambda done, total: d.cancel())
    await failure_of(d, defer.CancelledError)
    assert await client.request("v") == 1
    await world.until(lambda: not list(world.client_folder.iterdir()))


@in_reactor
async def test_progress_function_may_raise(world: World, logged_failures: list[LogEvent]) -> None:
    (world.client_folder / "source").write_bytes(bytes(1_000_000))
    await world.serve()
    client = await world.ours()
    sent = await client.push_file("source", "copy", progress=lambda done, total: 1 / 0)
    assert sent.confirmed
    await client.fetch_file("copy", "back", progress=lambda done, total: 1 / 0)
    assert len(logged_failures) == 2
    logged_failures.clear()
