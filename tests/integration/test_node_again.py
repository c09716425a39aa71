"""A node on a data folder that its parent service stops and starts again, over real sockets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.application.service import MultiService
from twisted.internet import reactor as installed_reactor
from twisted.internet.defer import Deferred

from msgservice import Limits, Node, Receiver, connect
from msgservice.errors import CannotListen, ClientClosed
from msgservice.log.sqlite import SqliteLog
from tests.kit.ports import free_port

reactor: Any = installed_reactor
pytestmark = pytest.mark.timeout(60)
QUICK = Limits(link_delay_min=0.01, link_delay_max=0.05, stop_timeout=2.0)


@pytest_twisted.ensureDeferred
async def test_a_service_with_a_node_and_a_receiver_is_stopped_and_started_again(
    tmp_path: Path,
) -> None:
    errors: list[Exception] = []
    seen: list[bytes] = []
    waiting: list[Deferred[None]] = []

    def handle(message: Any) -> None:
        seen.append(bytes(message.body))
        for each in waiting[:]:
            waiting.remove(each)
            each.callback(None)

    listen = f"tcp:{free_port()}:interface=127.0.0.1"
    node = Node(reactor, tmp_path / "node", listen=[listen], limits=QUICK, failed=errors.append)
    receiver = Receiver(reactor, name="billing", handler=handle, limits=QUICK)
    parent = MultiService()
    node.setServiceParent(parent)
    receiver.setServiceParent(parent)
    node.attach(receiver, ["a.>"])
    for number in range(3):
        parent.startService()
        await node.when_ready()
        assert len(node.listeners) == len(node.ports) == 1
        client = await connect(reactor, node.listeners[0], name="shop", limits=QUICK)
        while not receiver.connected:
            await client.request("$node.info", {})
        handled: Deferred[None] = Deferred()
        waiting.append(handled)
        await client.send("a.b", b"%d" % number)
        await handled
        await client.close()
        await parent.stopService()
    assert seen == [b"0", b"1", b"2"]
    assert errors == []


@pytest_twisted.ensureDeferred
async def test_a_node_whose_port_was_taken_is_started_again_when_that_is_free(
    tmp_path: Path,
) -> None:
    errors: list[Exception] = []
    listen = f"tcp:{free_port()}:interface=127.0.0.1"
    first = Node(reactor, tmp_path / "first", listen=[listen], limits=QUICK)
    first.startService()
    await first.when_ready()
    node = Node(reactor, tmp_path / "node", listen=[listen], limits=QUICK, failed=errors.append)
    node.startService()
    for _ in range(2):
        with pytest.raises(CannotListen):
            await node.when_ready()
    await node.stopService()
    await first.stopService()
    node.startService()
    await node.when_ready()
    await node.stopService()
    assert [type(error) for error in errors] == [CannotListen]


@pytest_twisted.ensureDeferred
async def test_a_log_that_a_program_has_made_is_opened_once_and_says_so(tmp_path: Path) -> None:
    errors: list[Exception] = []
    log = SqliteLog(tmp_path / "log", reactor=reactor, limits=QUICK)
    node = Node(reactor, log, limits=QUICK, failed=errors.append)
    node.startService()
    await node.when_ready()
    await node.stopService()
    node.startService()
    with pytest.raises(RuntimeError, match="was opened before: make another"):
        await node.when_ready()
    await node.stopService()
    assert len(errors) == 1


@pytest_twisted.ensureDeferred
async def test_a_client_that_was_closed_is_not_started_again(tmp_path: Path) -> None:
    node = Node(reactor, tmp_path / "node", limits=QUICK)
    node.startService()
    await node.when_ready()
    client = node.client("shop")
    service: Any = client.as_service()
    await client.when_connected()
    await service.stopService()
    with pytest.raises(ClientClosed):
        service.startService()
    assert not client.connected
    await node.stopService()
