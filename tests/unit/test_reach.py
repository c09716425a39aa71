"""The reactor by which only what may be dialled is: the address of each socket is what is asked."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.address import IPv4Address
from twisted.internet.endpoints import HostnameEndpoint, TCP4ClientEndpoint
from twisted.internet.interfaces import (
    IHostResolution,
    IReactorPluggableNameResolver,
    IResolutionReceiver,
)
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from zope.interface import implementer

from msgservice.transport.reach import (
    NotReachable,
    Reach,
    ReachingReactor,
    addresses_of,
    networks_of,
)

PUBLIC, INSIDE = "93.184.216.34", "10.0.0.1"
FACTORY = Factory.forProtocol(Protocol)


@implementer(IHostResolution)
class Looking:
    name = "rebinds.example"

    def cancel(self) -> None:
        pass


@implementer(IReactorPluggableNameResolver)
class Net(Clock):
    """A reactor that connects to nobody, and a resolver with another answer each time."""

    def __init__(self, *answers: str) -> None:
        super().__init__()
        self.answers = list(answers)
        self.dialled: list[str] = []
        self.nameResolver: Any = self

    def installNameResolver(self, resolver: Any) -> Any:
        raise AssertionError("nobody does")

    def resolveHostName(
        self, receiver: IResolutionReceiver, hostName: str, portNumber: int = 0, *more: Any
    ) -> IHostResolution:
        looking: IHostResolution = Looking()
        receiver.resolutionBegan(looking)
        receiver.addressResolved(IPv4Address("TCP", self.answers.pop(0), portNumber))
        receiver.resolutionComplete()
        return looking

    def connectTCP(self, host: str, port: int, *arguments: Any, **more: Any) -> None:
        self.dialled.append(host)


def test_a_name_that_has_another_address_each_time_is_dialled_where_it_may_be() -> None:
    net = Net(PUBLIC, INSIDE, PUBLIC)
    endpoint = HostnameEndpoint(ReachingReactor(net, Reach()), "rebinds.example", 7410)
    failures: list[Any] = []
    for _ in range(3):
        endpoint.connect(FACTORY).addErrback(failures.append)
        net.advance(1.0)
    assert [PUBLIC, PUBLIC] == net.dialled
    assert [NotReachable] == [failure.type for failure in failures]


def test_what_a_host_leads_to_is_looked_up_unless_it_is_an_address() -> None:
    net = Net(INSIDE)
    for host, found in (("fd00::1", "fd00::1"), ("10.1.2.3", "10.1.2.3"), ("a.example", INSIDE)):
        told: list[Any] = []
        addresses_of(net, host).addCallback(told.append)
        assert [[found]] == told
    told = []
    looking = Net()
    looking.nameResolver = Silent()
    addresses_of(looking, "a.example").addTimeout(2.0, looking).addErrback(told.append)
    looking.advance(2.0)
    assert 1 == len(told)
    looking.nameResolver.receiver.resolutionComplete()  # too late, and heard by nobody


class Silent:
    """A resolver that does not answer by itself."""

    receiver: Any

    def resolveHostName(self, receiver: Any, hostName: str) -> None:
        self.receiver = receiver
        receiver.resolutionBegan(Looking())


def test_an_address_is_asked_without_a_name() -> None:
    net = Net()
    reach = Reach(networks_of(["10.0.0.0/8"]), "networks of [node]")
    reactor = ReachingReactor(net, reach)
    failures: list[Any] = []
    for host in (INSIDE, "192.168.0.1"):
        TCP4ClientEndpoint(reactor, host, 1).connect(FACTORY).addErrback(failures.append)
    assert [INSIDE] == net.dialled
    told = "192.168.0.1 is no address that this node may dial, unless networks of [node] has it"
    assert told == str(failures[0].value)


@pytest.mark.parametrize("applies", [True, False])
def test_whether_it_is_asked_is_looked_up_each_time(applies: bool) -> None:
    net, now = Net(), [not applies]
    reactor = ReachingReactor(net, Reach(), lambda: now[0])
    now[0] = applies
    failed: list[Any] = []
    TCP4ClientEndpoint(reactor, INSIDE, 1).connect(FACTORY).addErrback(failed.append)
    assert ([] if applies else [INSIDE], applies) == (net.dialled, bool(failed))


def test_it_is_timed_as_the_one_it_is_around() -> None:
    from msgservice.clock import monotonic_of, timed, wall_of

    net = Net()
    reactor: Any = ReachingReactor(net, Reach())
    net.advance(5.0)
    assert timed(reactor) is reactor
    assert (5.0, 5000) == (monotonic_of(reactor)(), wall_of(reactor)())
