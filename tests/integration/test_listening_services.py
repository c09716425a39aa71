"""Services of faces that listen, below a parent: a port that cannot be had ends the start.

The chassis has its own (`test_chassis_service.py`); the files of `tac/`, `test_sessions_processes`.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import pytest_twisted
from twisted.application.service import MultiService
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IListeningPort, IProtocolFactory, IStreamServerEndpoint
from twisted.logger import LogEvent, LogLevel
from zope.interface import implementer

from msgservice.errors import CannotListen, InsecureListener
from msgservice.faces.callbacks.service import CallbackServer
from msgservice.faces.listening import ListeningService
from msgservice.faces.sessions.central import Central
from msgservice.faces.sessions.remote import Remote
from tests.kit.ports import free_port

Make = Callable[[Any], ListeningService]

MAKERS: dict[str, Make] = {
    "callbacks": lambda listen: CallbackServer(reactor, listen),
    "central": lambda listen: Central(reactor, listen=listen),
    "remote": lambda listen: Remote(reactor, ("127.0.0.1", free_port()), id="shop", listen=listen),
}
each = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


@pytest.fixture
def busy() -> Iterator[str]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield f"tcp:{taken.getsockname()[1]}:interface=127.0.0.1"


@implementer(IStreamServerEndpoint)
class Slow:
    """An endpoint that fails when it is told to, and not before."""

    def __init__(self) -> None:
        self.listening: Deferred[IListeningPort] = Deferred()

    def listen(self, protocolFactory: IProtocolFactory) -> Deferred[IListeningPort]:
        return self.listening


def accepts(address: Any) -> bool:
    host, port = address if isinstance(address, tuple) else (address.host, address.port)
    with socket.create_connection((host, port), timeout=30):
        return True


@each
@pytest_twisted.ensureDeferred
async def test_a_busy_port_is_raised_to_the_parent(make: Make, busy: str) -> None:
    parent = MultiService()
    service = make(busy)
    service.setServiceParent(parent)
    with pytest.raises(CannotListen, match="Address already in use"):
        parent.privilegedStartService()
    assert not service.running
    await service.stopService()


@each
@pytest_twisted.ensureDeferred
async def test_it_listens_once_from_the_privileged_start_on(
    make: Make, logged: list[LogEvent]
) -> None:
    parent = MultiService()
    service: Any = make("tcp:0:interface=127.0.0.1")
    service.setServiceParent(parent)
    parent.privilegedStartService()
    address = service.address
    assert accepts(address)
    parent.startService()
    assert service.address == address
    await parent.stopService()
    assert [] == [event for event in logged if event["log_level"] >= LogLevel.error]


@each
@pytest_twisted.ensureDeferred
async def test_an_endpoint_that_fails_later_is_logged(
    make: Make, logged_failures: list[LogEvent]
) -> None:
    endpoint = Slow()
    service = make(endpoint)
    service.privilegedStartService()
    service.startService()
    assert logged_failures == []
    endpoint.listening.errback(OSError("no address"))
    assert [type(event["log_failure"].value) for event in logged_failures] == [CannotListen]
    logged_failures.clear()
    await service.stopService()


@each
@pytest_twisted.ensureDeferred
async def test_a_start_alone_logs_a_busy_port(
    make: Make, busy: str, logged_failures: list[LogEvent]
) -> None:
    service = make(busy)
    service.startService()
    assert [type(event["log_failure"].value) for event in logged_failures] == [CannotListen]
    logged_failures.clear()
    await service.stopService()


def test_a_listener_that_is_open_to_all_is_raised_too() -> None:
    with pytest.raises(InsecureListener):
        Central(reactor, listen="tcp:0").privilegedStartService()


@pytest_twisted.ensureDeferred
async def test_a_server_that_was_stopped_in_between_listens_at_its_start() -> None:
    service: Any = CallbackServer(reactor, "tcp:0:interface=127.0.0.1")
    service.privilegedStartService()
    await service.stopService()
    service.startService()
    assert accepts(service.address)
    await service.stopService()
