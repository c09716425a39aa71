"""SEMANTICS 6: a node whose log was restored from an older copy, and receivers that remember."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.logger import LogEvent, formatEvent

from msgservice import Client
from msgservice.errors import NotDelivered, Reject, Retry
from msgservice.receiver.ways import Attachment
from tests.integration.test_receivers import QUICK, Scene, until

pytestmark = pytest.mark.timeout(60)


@pytest_twisted.async_yield_fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    scene = Scene(tmp_path)
    await scene.start()
    yield scene
    await scene.stop()


async def send(scene: Scene, *bodies: bytes, taken: bool = True) -> None:
    """Send these from a new producer, each in a batch of its own; wait until they are taken."""
    client: Client = await scene.client()
    for body in bodies:
        receipt = await client.send("a.b", body)
        if taken:
            await receipt.acknowledged()
    await client.close()
    scene.clients.remove(client)


async def attached(scene: Scene, handle: Any, *, stored: bool) -> Attachment:
    """A receiver that handles so, with an inbox on disk or without, and is connected."""
    more: dict[str, Any] = {"inbox": scene.folder / "inbox.db"} if stored else {}
    attachment = scene.receiver(handle, **more).attach(scene.address, subjects=["a.>"])
    await until(lambda: attachment.connected)
    return attachment


async def copy(scene: Scene) -> None:
    """Copy the folder of the node, which is stopped for it."""
    await scene.node.stopService()
    shutil.copytree(scene.folder / "node", scene.folder / "copy")
    await scene.restart()


async def put_back(scene: Scene) -> None:
    """Have the node go on with the copy in the place of its folder."""
    await scene.node.stopService()
    shutil.rmtree(scene.folder / "node")
    shutil.copytree(scene.folder / "copy", scene.folder / "node")
    await scene.restart()


@pytest.mark.parametrize("stored", [False, True], ids=["memory", "inbox"])
@pytest.mark.parametrize("grown", [False, True], ids=["ahead", "grown"])
@pytest_twisted.ensureDeferred
async def test_6_a_receiver_that_has_taken_more_than_a_restored_log_holds_gets_all_that_is_new(
    scene: Scene, grown: bool, stored: bool, logged: list[LogEvent]
) -> None:
    seen: list[bytes] = []

    def handle(message: Any, _transaction: Any = None) -> None:
        seen.append(message.body)

    attachment = await attached(scene, handle, stored=stored)
    await send(scene, b"a1")
    await until(lambda: seen == [b"a1"])
    await attachment.stop()
    await copy(scene)
    attachment.start()
    await until(lambda: attachment.connected)
    await send(scene, b"a2", b"a3")
    await until(lambda: len(seen) == 3)
    await attachment.stop()
    await put_back(scene)
    new = [b"b%d" % n for n in range(5)]
    if grown:
        await send(scene, *new, taken=False)
        attachment.start()
    else:
        attachment.start()
        await until(lambda: any("new incarnation" in (formatEvent(e) or "") for e in logged))
        await until(lambda: attachment.connected)
        await send(scene, *new)
    await until(lambda: new[-1] in seen)
    assert seen == [b"a1", b"a2", b"a3", *new]
    warnings = [text for text in map(formatEvent, logged) if "going on as a new" in (text or "")]
    assert len(warnings) == 1
    # It is the incarnation of this log from now on.
    await scene.restart()
    await until(lambda: attachment.connected)
    await send(scene, b"c1")
    await until(lambda: seen[-1] == b"c1")
    assert len(seen) == 9


@pytest.mark.parametrize("scheme", ["tcp", "udp"])
@pytest.mark.parametrize("outcome", ["given up", "rejected"])
@pytest.mark.parametrize("stored", [False, True], ids=["memory", "inbox"])
@pytest_twisted.ensureDeferred
async def test_6_positions_of_what_a_receiver_refused_are_not_taken_when_a_restored_log_reuses_them(
    tmp_path: Path, stored: bool, outcome: str, scheme: str
) -> None:
    """Nothing of it was taken, so nothing of it may be counted as acknowledged."""
    seen: list[bytes] = []
    scene = Scene(tmp_path, dataclasses.replace(QUICK, max_attempts=1), scheme)
    await scene.start()

    def handle(message: Any, _transaction: Any = None) -> None:
        if message.body.startswith(b"bad"):
            raise Reject("no") if outcome == "rejected" else Retry(0.0)
        seen.append(message.body)

    attachment = await attached(scene, handle, stored=stored)
    await send(scene, b"a1")
    await copy(scene)
    client: Client = await scene.client()
    for body in (b"bad1", b"bad2", b"bad3"):  # the last two say that the ones before are settled
        receipt = await client.send("a.b", body)
        with pytest.raises(NotDelivered):
            await receipt.acknowledged()
    await attachment.stop()
    await put_back(scene)
    new = [b"b%d" % n for n in range(5)]
    await send(scene, *new, taken=False)
    attachment.start()
    await until(lambda: new[-1] in seen)
    assert seen == [b"a1", *new]
    await scene.stop()
