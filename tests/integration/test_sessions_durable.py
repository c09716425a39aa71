"""Sessions with a node behind the central: what is for a remote with an id outlives it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.logger import LogEvent

from msgservice.errors import UnknownReceiver
from msgservice.faces.sessions.central import Central
from msgservice.faces.sessions.durable import DurableRemotes
from msgservice.faces.sessions.remote import Remote
from msgservice.node.node import Node
from msgservice.receiver.receiver import Receiver

pytestmark = pytest.mark.timeout(120)


@pytest_twisted.async_yield_fixture
async def central(tmp_path: Path) -> AsyncIterator[Central]:
    node = Node(reactor, tmp_path / "node", failed=lambda error: None)
    node.startService()
    await node.when_ready()

    def attach(receiver: Receiver) -> None:
        receiver.attach_through(
            lambda make_user: node.connector(make_user, receiver.name), address="in this process"
        )

    client = node.client("central")
    made = Central(reactor, node=DurableRemotes(reactor, client, attach))
    await made.listen()
    yield made
    await made.stopService()
    await client.close()
    await node.stopService()


def begin(central: Central, on_message: Any, **options: Any) -> Remote:
    address = central.address
    assert address is not None
    remote = Remote(reactor, address, id="shop", on_message=on_message, **options)
    remote.start()
    return remote


async def kill(remote: Remote) -> None:
    """End a remote as SIGKILL does: nothing more is written, or answered."""
    remote._hop.close()
    remote._sender.abort()
    if remote._silence is not None:
        remote._silence.cancel()
    await remote._listener.stop()


@pytest_twisted.ensureDeferred
async def test_an_id_that_was_never_seen_is_unknown(central: Central) -> None:
    with pytest.raises(UnknownReceiver):
        await central.send("shop", 1)


@pytest_twisted.ensureDeferred
async def test_killed_while_messages_are_in_flight_all_come_in_order_and_only_unanswered_twice(
    central: Central,
) -> None:
    first: list[int] = []
    reached: Deferred[None] = Deferred()

    def handle(message: Any) -> Any:
        first.append(message.content)
        if message.content == 7:
            reached.callback(None)
            return Deferred()  # it is at work when it is killed
        return None

    remote = begin(central, handle)
    await central.when_joined("shop")
    receipts = [await central.send("shop", number) for number in range(20)]
    await reached
    await kill(remote)
    second: list[int] = []
    # At another address: the same receiver, with what waits for it.
    again = begin(central, lambda message: second.append(message.content))
    for receipt in receipts:
        await receipt.acknowledged()
    assert again.address != remote.address
    assert first == list(range(8))
    assert second == list(range(second[0], 20))
    assert second[0] <= 7
    assert central.remotes["shop"].address == again.address
    await again.stopService()


@pytest_twisted.ensureDeferred
async def test_a_handler_that_fails_at_a_durable_remote_is_tried_again(
    central: Central, logged_failures: list[LogEvent]
) -> None:
    got: list[str] = []

    def handle(message: Any) -> None:
        got.append(message.content)
        if got == ["a"]:
            raise ValueError("not now")

    remote = begin(central, handle)
    await central.when_joined("shop")
    receipts = [await central.send("shop", text) for text in ("a", "b")]
    for receipt in receipts:
        await receipt.acknowledged()
    assert got == ["a", "a", "b"]
    assert logged_failures
    logged_failures.clear()
    await remote.stopService()


@pytest_twisted.ensureDeferred
async def test_what_is_for_a_remote_without_id_ends_with_its_session(central: Central) -> None:
    address = central.address
    assert address is not None
    got: list[int] = []
    remote = Remote(reactor, address, on_message=lambda message: got.append(message.content))
    member_waits = central.when_joined()
    key = await remote.start()
    member = await member_waits
    assert member.key == key
    await (await central.send(key, 1)).acknowledged()
    left = central.when_left(key)
    await central.shutdown(key)
    await left
    with pytest.raises(Exception, match="is not joined"):
        await central.send(key, 2)
    assert got == [1]
