"""The clock of the reactor itself goes back while a node, a producer and a receiver wait."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorCore, IReactorFDSet
from twisted.internet.task import deferLater

from msgservice import Limits, Node, Receiver, connect
from msgservice.clock import timed
from msgservice.receiver.received import ReceivedMessage
from tests.kit.ports import free_port

LIMITS = Limits(link_delay_min=0.4, link_delay_max=0.5, keep_seconds=0)


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def set_back() -> Iterator[Any]:
    """Sets the reactor's clock back by an hour; it is right again after the test."""
    real: Any = reactor

    def set_back() -> None:
        real.seconds = lambda: time.time() - 3600

    yield set_back
    vars(real).pop("seconds", None)


async def until(condition: Any) -> None:
    clock = timed(reactor)
    end = clock.seconds() + 60
    while not condition():
        assert clock.seconds() < end, "not in time"
        await deferLater(clock, 0.01)


def test_a_timed_reactor_is_the_reactor_in_all_but_its_time() -> None:
    one = timed(reactor)
    assert one is timed(reactor) is timed(one)
    assert IReactorCore.providedBy(one)
    assert IReactorFDSet.providedBy(one) == IReactorFDSet.providedBy(reactor)
    assert one.addReader == reactor.addReader


@pytest_twisted.ensureDeferred
async def test_17_all_that_waits_goes_on_when_the_reactors_clock_goes_back(
    tmp_path: Path, port: int, set_back: Any
) -> None:
    address = f"tcp:127.0.0.1:{port}"
    client = await connect(
        reactor, address, name="shop", outbox=tmp_path / "outbox.db", limits=LIMITS
    )
    got: Deferred[bytes] = Deferred()

    def handle(message: ReceivedMessage) -> None:
        got.callback(message.body)

    receiver = Receiver(reactor, name="billing", handler=handle, limits=LIMITS)
    receiver.attach(address, subjects=["orders.>"])
    await until(lambda: client._connector.failures and client._connector.next_attempt_in)
    set_back()
    node = Node(
        reactor, tmp_path / "data", listen=[f"tcp:{port}:interface=127.0.0.1"], limits=LIMITS
    )
    node.startService()
    await until(lambda: client.connected and receiver.connected)
    await client.send("orders.new", b"one")
    await until(lambda: got.called)
    await until(lambda: node.log.room().used == 0)  # retention goes on
    await client.close()
    await receiver.stop()
    await node.stopService()
