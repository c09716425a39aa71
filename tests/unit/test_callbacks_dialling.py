"""The callback client while it dials: an attempt that is called off is no failure."""

from __future__ import annotations

import pytest
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectingCancelledError
from twisted.internet.interfaces import IProtocol, IProtocolFactory, IStreamClientEndpoint
from twisted.internet.task import Clock
from twisted.logger import LogEvent
from zope.interface import implementer

from msgservice.faces.callbacks.service import CallbackClient


@implementer(IStreamClientEndpoint)
class Endpoint:
    """Dials until it is called off, which it tells as Twisted's own endpoints do."""

    def __init__(self) -> None:
        self.dialled = 0

    def connect(self, factory: IProtocolFactory) -> Deferred[IProtocol]:
        self.dialled += 1
        address = IPv4Address("TCP", "127.0.0.1", 7400)
        return Deferred(lambda attempt: attempt.errback(ConnectingCancelledError(address)))


@pytest.mark.parametrize("seconds", [0.0, 1.0])
def test_a_dial_that_is_called_off_by_a_stop_is_not_told(
    logged: list[LogEvent], seconds: float
) -> None:
    clock, endpoint = Clock(), Endpoint()
    client = CallbackClient(clock, endpoint=endpoint)
    client.startService()
    clock.advance(seconds)
    assert endpoint.dialled == 1
    stopped = client.stopService()
    clock.advance(100)
    assert stopped.called
    assert endpoint.dialled == 1
    assert [] == [event for event in logged if "reason" in event]
