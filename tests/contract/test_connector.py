"""What every `IConnector` of ours keeps, whatever it dials: TCP, acknowledged UDP, this process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet import error
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import (
    IListeningPort,
    IProtocol,
    IProtocolFactory,
    IStreamClientEndpoint,
)
from twisted.internet.task import Clock
from twisted.logger import LogEvent
from twisted.test.iosim import FakeTransport, IOPump, connect
from zope.interface import implementer
from zope.interface.verify import verifyObject

from msgservice.interfaces import IConnector
from msgservice.limits import Limits
from msgservice.testing.network import CALM, FaultyWorld
from msgservice.testing.transport import Process
from msgservice.transport.dialling import Connector
from msgservice.transport.local import local_connector
from msgservice.transport.owners import ChannelOwner, Nobody
from msgservice.transport.pb.channel import PbChannel
from msgservice.transport.tcp.channel import FrameProtocol
from msgservice.transport.tcp.pacing import Turn
from msgservice.transport.udp.transport import UdpTransport
from tests.kit.channels import Recorder

LIMITS = Limits()


class Party:
    """A connector, not started, and the users of both ends of its connections, in order.

    While `reachable` is False nobody answers it. `wait` lets time pass, and all happen.
    """

    def __init__(self) -> None:
        self.near: list[Recorder] = []
        self.far: list[Recorder] = []
        self.reachable = True
        self.connector: IConnector = self.make()

    def make(self) -> IConnector:
        raise NotImplementedError

    def wait(self, seconds: float = 1.0) -> None:
        raise NotImplementedError

    def make_near(self) -> Recorder:
        self.near.append(Recorder())
        return self.near[-1]

    def make_far(self) -> Recorder:
        self.far.append(Recorder())
        return self.far[-1]

    def start(self) -> None:
        self.connector.startService()
        self.wait()

    def lose(self, refusal: str | None = None) -> None:
        """Let the other side end the connection."""
        self.near[-1].refusal = refusal
        channel = self.far[-1].channel
        assert channel is not None
        channel.abort()
        # Less than any delay: it has not been dialled again.
        self.wait(0.1)

    def wait_for_the_next_attempt(self) -> float:
        delay: float | None = self.connector.next_attempt_in
        assert delay is not None
        self.wait(delay)
        self.wait(0.1)
        return delay


@implementer(IStreamClientEndpoint)
class OverTcp(Party):
    def make(self) -> IConnector:
        self.clock = Clock()
        self.pumps: list[IOPump] = []
        turn = Turn(self.clock)
        made: IConnector = Connector(
            reactor=self.clock,
            address="tcp:node.example:7410",
            endpoint=self,
            make_channel=lambda owner: self.protocol(self.make_near, owner, turn),
            limits=LIMITS,
            rng=lambda: 1.0,
        )
        return made

    def protocol(
        self, make_user: Callable[[], Recorder], owner: ChannelOwner, turn: Turn
    ) -> FrameProtocol:
        return FrameProtocol(
            reactor=self.clock, make_user=make_user, limits=LIMITS, owner=owner, turn=turn
        )

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        if not self.reachable:
            return fail(error.ConnectionRefusedError())
        near: Any = protocolFactory.buildProtocol(None)  # type: ignore[arg-type]  # not looked at
        far = self.protocol(self.make_far, Nobody(), Turn(self.clock))
        self.pumps.append(
            connect(
                far, FakeTransport(far, isServer=True), near, FakeTransport(near, isServer=False),
                clock=self.clock,
            )
        )  # fmt: skip
        return succeed(near)

    def wait(self, seconds: float = 1.0) -> None:
        for _ in range(10):
            self.clock.advance(seconds / 10)
            for pump in self.pumps:
                pump.flush()


class OverPb(OverTcp):
    def protocol(  # type: ignore[override]  # the same steps with another channel
        self, make_user: Callable[[], Recorder], owner: ChannelOwner, turn: Turn
    ) -> PbChannel:
        return PbChannel(
            reactor=self.clock,
            make_user=make_user,
            limits=LIMITS,
            owner=owner,
            turn=turn,
            is_dialled=not isinstance(owner, Nobody),
        )


class OverUdp(Party):
    def make(self) -> IConnector:
        self.world = FaultyWorld(1, faults=CALM, limits=LIMITS)
        self.process = Process(self.world, "node")
        self.port: IListeningPort | None = None
        return self.transport().connector(
            Process(self.world, "client").clock,
            "udp:127.0.0.1:7410:timeout=1",
            self.make_near,
            LIMITS,
        )

    def transport(self) -> UdpTransport:
        return UdpTransport(rng=lambda: 1.0, entropy=self.world.random.randbytes)

    def wait(self, seconds: float = 1.0) -> None:
        if self.reachable and self.port is None:
            listening = self.transport().listen(
                self.process.clock, "udp:7410", self.make_far, LIMITS
            )
            listening.addCallback(self._listens)
        elif not self.reachable and self.port is not None:
            self.port.stopListening()
            self.port = None
        self.world.run(seconds)

    def _listens(self, port: IListeningPort) -> None:
        self.port = port


class InThisProcess(Party):
    def make(self) -> IConnector:
        self.clock = Clock()
        made: IConnector = local_connector(
            self.make_near, self.make_far, self.when_ready, self.clock, LIMITS, "shop"
        )
        return made

    def when_ready(self) -> Deferred[None]:
        return succeed(None) if self.reachable else fail(RuntimeError("no node"))

    def wait(self, seconds: float = 1.0) -> None:
        self.clock.pump([seconds / 10] * 10)
        self.clock.pump([0] * 10)


@pytest.fixture(params=[OverTcp, OverPb, OverUdp, InThisProcess])
def party(request: pytest.FixtureRequest) -> Party:
    made: Party = request.param()
    return made


def test_a_connector_is_an_iconnector(party: Party) -> None:
    assert verifyObject(IConnector, party.connector)


def test_it_dials_when_started_and_hands_the_connection_to_a_user(party: Party) -> None:
    assert (0, None) == (party.connector.attempts, party.connector.channel)
    party.start()
    assert ["opened"] == party.near[0].names() == party.far[0].names()
    assert party.near[0].channel is party.connector.channel
    assert (1, 0) == (party.connector.attempts, party.connector.failures)
    assert party.connector.next_attempt_in is None


def test_every_connection_has_users_of_its_own(party: Party) -> None:
    party.start()
    for _ in range(2):
        party.lose()
        party.wait_for_the_next_attempt()
    assert [["opened", "lost"]] * 2 + [["opened"]] == [user.names() for user in party.near]
    assert party.near[2].channel is party.connector.channel


def test_a_connection_that_is_lost_at_once_is_dialled_more_and_more_seldom(party: Party) -> None:
    party.start()
    delays = []
    for _ in range(4):
        party.lose()
        delays.append(round(party.wait_for_the_next_attempt()))
    assert sorted(delays) == delays
    assert [1, 2, 4] == delays[-3:]
    assert 4 == party.connector.failures


def test_nobody_there_is_told_once_and_tried_again(party: Party, logged: list[LogEvent]) -> None:
    party.reachable = False
    party.start()
    for _ in range(30):
        party.wait()
    assert [] == party.near
    assert 3 <= party.connector.failures
    assert party.connector.last_error
    told = [event for event in logged if "no connection" in str(event.get("log_format"))]
    assert [party.connector.address] == [event["address"] for event in told]


def test_a_refusal_is_told_and_tried_again_only_now_and_then(party: Party) -> None:
    party.start()
    party.lose("another name is configured")
    assert "another name is configured" == party.connector.last_error
    delay = party.connector.next_attempt_in
    assert delay is not None
    assert LIMITS.link_delay_max - 1 < delay <= LIMITS.link_delay_max


def test_only_a_connection_that_stayed_healthy_clears_the_count(party: Party) -> None:
    party.start()
    for _ in range(3):
        party.lose()
        party.wait_for_the_next_attempt()
    assert 3 == party.connector.failures
    channel = party.near[-1].channel
    assert channel is not None
    channel.established()
    assert party.connector.last_error is None
    party.wait(LIMITS.link_healthy + 1)
    party.lose()
    assert 1 == party.connector.failures


def test_a_poke_dials_at_once(party: Party) -> None:
    party.start()
    party.lose("not like this")
    party.connector.poke()
    party.wait()
    assert 2 == party.connector.attempts
    assert ["opened"] == party.near[1].names()


def test_stopping_sends_what_is_queued_closes_and_dials_no_more(party: Party) -> None:
    party.start()
    party.near[0].send(b"bye")
    stopped = party.connector.stopService()
    party.wait()
    assert stopped.called
    assert [b"bye"] == party.far[0].frames
    assert party.near[0].is_lost
    assert party.far[0].is_lost
    party.wait(100)
    assert (1, None) == (party.connector.attempts, party.connector.channel)
    assert party.connector.next_attempt_in is None


def test_stopping_while_nobody_answers_ends_the_attempt(party: Party) -> None:
    party.reachable = False
    party.wait(0)
    party.connector.startService()
    stopped = party.connector.stopService()
    party.wait()
    assert stopped.called
    party.reachable = True
    party.wait(100)
    assert (1, None) == (party.connector.attempts, party.connector.channel)
    assert [] == party.near


def test_stopping_is_safe_twice_and_before_any_start(party: Party) -> None:
    before = party.connector.stopService()
    party.wait()
    party.start()
    first, second = party.connector.stopService(), party.connector.stopService()
    party.wait()
    assert all(stopped.called for stopped in (before, first, second))


def test_it_can_be_started_again(party: Party) -> None:
    party.start()
    party.connector.stopService()
    party.wait()
    party.start()
    assert 2 == party.connector.attempts
    assert ["opened"] == party.near[1].names()
