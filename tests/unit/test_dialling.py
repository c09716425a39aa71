"""The connector: it keeps one connection, backs off from a peer that is no good, and stops."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from twisted.internet import error
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import IAddress, IProtocol, IProtocolFactory, IStreamClientEndpoint
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import LogEvent
from twisted.python.failure import Failure
from zope.interface import implementer
from zope.interface.verify import verifyObject

from msgservice.connection import Connection
from msgservice.core.frames import (
    VERSION,
    ErrorFrame,
    Frame,
    Hello,
    HelloOptions,
    encode_frame,
)
from msgservice.core.framing import encode_prefix
from msgservice.errors import BadAddress
from msgservice.interfaces import IConnector
from msgservice.limits import Limits
from msgservice.transport.dialling import Connector
from msgservice.transport.local import local_connector
from msgservice.transport.registry import Transports
from msgservice.transport.tcp.channel import FrameProtocol
from msgservice.transport.tcp.pacing import Turn
from msgservice.waiters import Waiters
from tests.kit.channels import Recorder


class Peer:
    """The other end of one connection; `lose` loses it, at once or on `abort` and `close` only."""

    def __init__(self, protocol: IProtocol) -> None:
        self.protocol = protocol
        self.transport = StringTransport()
        protocol.makeConnection(self.transport)

    def say(self, frame: Frame) -> Peer:
        data = encode_frame(frame)
        self.protocol.dataReceived(encode_prefix(len(data)) + data)
        return self

    def lose(self) -> None:
        self.protocol.connectionLost(Failure(error.ConnectionDone()))


@implementer(IStreamClientEndpoint)
class Endpoint:
    def __init__(self) -> None:
        self.dialled: list[tuple[IProtocolFactory, Deferred[IProtocol]]] = []
        self.cancelled = 0
        self.called_off_with: Exception | None = None  # instead of `CancelledError`

    def connect(self, factory: IProtocolFactory) -> Deferred[IProtocol]:
        attempt: Deferred[IProtocol] = Deferred(self._cancel)
        self.dialled.append((factory, attempt))
        return attempt

    def _cancel(self, attempt: Deferred[IProtocol]) -> None:
        self.cancelled += 1
        if self.called_off_with is not None:
            attempt.errback(self.called_off_with)

    def accept(self) -> Peer:
        factory, attempt = self.dialled[-1]
        address: IAddress = StringTransport().getPeer()
        protocol = factory.buildProtocol(address)
        assert protocol is not None
        peer = Peer(protocol)
        attempt.callback(protocol)
        return peer

    def refuse(self) -> None:
        self.dialled[-1][1].errback(error.ConnectionRefusedError())


class Silent:
    """The owner of a connection that says nothing and takes all (`connection.Owner`)."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None


class World:
    """A connector with delays of 0.5 s doubling to 30 s, without jitter, started."""

    def __init__(self, *, start: bool = True, real_users: bool = False) -> None:
        self.real_users = real_users
        self.clock = Clock()
        self.endpoint = Endpoint()
        self.users: list[Recorder] = []
        self.connector = Connector(
            reactor=self.clock,
            address="tcp:node.example:7410",
            endpoint=self.endpoint,
            make_channel=lambda owner: FrameProtocol(
                reactor=self.clock,
                make_user=self.make_user,
                limits=Limits(),
                owner=owner,
                turn=Turn(self.clock),
            ),
            limits=Limits(),
            rng=lambda: 1.0,
        )
        if start:
            self.connector.startService()

    def make_user(self) -> Recorder | Connection:
        if self.real_users:
            clock = self.clock
            return Connection(Silent(), clock=clock, now=clock.seconds, limits=Limits())
        self.users.append(Recorder())
        return self.users[-1]

    @property
    def dialled(self) -> int:
        return len(self.endpoint.dialled)

    def stop(self) -> Deferred[None]:
        stopping = self.connector.stopService()
        self.clock.pump([0, 0])
        return stopping


def test_a_connector_is_an_iconnector() -> None:
    assert verifyObject(IConnector, World(start=False).connector)


def test_it_dials_when_started_and_hands_the_connection_to_a_user() -> None:
    world = World(start=False)
    assert world.dialled == 0
    world.connector.startService()
    assert (world.dialled, world.connector.attempts) == (1, 1)
    assert world.connector.channel is None
    world.endpoint.accept()
    assert world.connector.channel is world.users[0].channel
    assert world.connector.next_attempt_in is None


def test_every_connection_has_its_own_user() -> None:
    world = World()
    for _ in range(2):
        world.endpoint.accept().lose()
        world.clock.advance(60)
    assert [user.names() for user in world.users] == [["opened", "lost"]] * 2


def test_refusals_back_off_and_are_told() -> None:
    world = World()
    delays = []
    for _ in range(8):
        world.endpoint.refuse()
        delay = world.connector.next_attempt_in
        assert delay is not None
        delays.append(delay)
        world.clock.advance(delay)
    assert delays == [0.5, 1, 2, 4, 8, 16, 30, 30]
    assert (world.connector.attempts, world.connector.failures) == (9, 8)
    assert world.connector.last_error == "Connection was refused by other side"


def test_a_peer_that_accepts_and_drops_is_dialled_more_and_more_seldom() -> None:
    world = World()
    delays = []
    for _ in range(5):
        world.endpoint.accept().lose()
        delay = world.connector.next_attempt_in
        assert delay is not None
        delays.append(delay)
        world.clock.advance(delay)
    assert delays == [0.5, 1, 2, 4, 8]
    assert world.connector.last_error == "Connection was closed cleanly"


@pytest.mark.parametrize("code", [8, 12, 13, 15, 18])
def test_a_peer_that_refuses_for_good_is_asked_again_only_now_and_then(
    code: int, logged: list[LogEvent]
) -> None:
    world = World(real_users=True)
    for _ in range(3):
        world.endpoint.accept().say(ErrorFrame(code, "not like this")).lose()
        assert world.connector.next_attempt_in == 30.0
        assert world.connector.last_error == f"the other side says: not like this (code {code})"
        world.clock.advance(30.0)
    # A peer that passes things again is dialled as one that was away.
    world.endpoint.accept().say(ErrorFrame(17, "held")).lose()
    assert world.connector.next_attempt_in == 4.0
    told = [event for event in logged if event.get("address") == "tcp:node.example:7410"]
    assert [f"the other side says: not like this (code {code})"] == [e["reason"] for e in told]
    world.stop()


@pytest.mark.parametrize("code", [1, 7, 11, 14, 17, 19])
def test_what_passes_by_itself_is_tried_again_soon(code: int) -> None:
    world = World(real_users=True)
    world.endpoint.accept().say(ErrorFrame(code, "not now")).lose()
    assert world.connector.next_attempt_in == 0.5
    world.stop()


def test_one_that_this_side_refuses_is_dialled_only_now_and_then() -> None:
    world = World(real_users=True)
    world.endpoint.accept().say(Hello(VERSION + 1, "node", "log-1", HelloOptions())).lose()
    assert world.connector.next_attempt_in == 30.0
    assert "version" in (world.connector.last_error or "")
    world.stop()


def test_inside_one_process_too_it_is_dialled_only_now_and_then() -> None:
    clock = Clock()
    near = Recorder()
    near.refusal = "another name is configured"
    connector = local_connector(
        lambda: near, Recorder, lambda: succeed(None), clock, Limits(), "node"
    )
    connector.startService()
    assert connector.channel is not None
    clock.pump([0, 0])
    connector.channel.abort()
    clock.pump([0, 0])
    assert (connector.next_attempt_in, connector.last_error) == (30.0, near.refusal)
    connector.stopService()


def test_only_a_connection_that_stayed_healthy_clears_the_count() -> None:
    world = World()
    for _ in range(4):
        world.endpoint.refuse()
        world.clock.advance(30)
    peer = world.endpoint.accept()
    assert world.users[0].channel is not None
    world.users[0].channel.established()
    assert world.connector.last_error is None
    world.clock.advance(60)
    peer.lose()
    assert world.connector.next_attempt_in == 0.5


def test_a_poke_dials_at_once_and_forgets_the_failures() -> None:
    world = World()
    for _ in range(7):
        world.endpoint.refuse()
        world.clock.advance(world.connector.next_attempt_in or 0.0)
    world.endpoint.refuse()
    dialled = world.dialled
    world.connector.poke()
    world.clock.advance(0)
    assert dialled + 1 == world.dialled
    world.endpoint.refuse()
    assert world.connector.next_attempt_in == 0.5


@pytest.mark.parametrize("connected", [True, False], ids=["connected", "dialling"])
def test_a_poke_disturbs_nothing_when_there_is_nothing_to_hurry(connected: bool) -> None:
    world = World()
    if connected:
        world.endpoint.accept()
    world.connector.poke()
    world.clock.advance(100)
    assert world.dialled == 1


def test_stopping_sends_what_is_queued_and_closes() -> None:
    world = World()
    peer = world.endpoint.accept()
    assert world.connector.channel is not None
    world.connector.channel.send(b"bye")
    stopping = world.stop()
    assert peer.transport.value() == b"\0\0\0\3bye"
    assert peer.transport.disconnecting
    assert not stopping.called
    peer.lose()
    world.clock.advance(0)
    assert stopping.called
    world.clock.advance(100)
    assert world.dialled == 1
    assert world.connector.channel is None


def test_stopping_does_not_wait_without_end_for_a_connection_that_is_never_lost() -> None:
    world = World()
    peer = world.endpoint.accept()
    stopping = world.stop()
    world.clock.advance(4.9)
    assert not peer.transport.disconnected
    world.clock.advance(0.2)
    assert peer.transport.disconnected  # aborted after `close_timeout` …
    assert not stopping.called
    world.clock.advance(5)
    world.clock.advance(0)
    assert stopping.called  # … and given up after `stop_timeout`


def test_stopping_while_dialling_cancels_the_attempt() -> None:
    world = World()
    assert world.stop().called
    assert world.endpoint.cancelled == 1
    assert world.clock.getDelayedCalls() == []


def test_an_attempt_that_is_called_off_is_no_failure(logged: list[LogEvent]) -> None:
    world = World()
    world.endpoint.called_off_with = error.ConnectingCancelledError(StringTransport().getPeer())
    assert world.stop().called
    assert world.endpoint.cancelled == 1
    assert world.connector.last_error is None
    assert [] == [event for event in logged if event["log_level"].name == "warn"]


def test_an_attempt_that_fails_while_it_stops_is_not_said_to_be_tried_again(
    logged: list[LogEvent],
) -> None:
    world = World()
    world.endpoint.called_off_with = error.ConnectionRefusedError()
    assert world.stop().called
    assert [] == [event for event in logged if event["log_level"].name == "warn"]


def test_an_attempt_without_an_answer_is_told_before_it_ends(logged: list[LogEvent]) -> None:
    world = World()
    world.clock.advance(1.4)
    assert world.connector.last_error is None
    world.clock.advance(0.2)
    assert world.connector.last_error == "no answer for 1.5 s"
    (event,) = [event for event in logged if event["log_level"].name == "warn"]
    assert event["reason"] == "no answer for 1.5 s"
    world.endpoint.accept()
    world.clock.advance(100)
    assert world.stop().called is False
    assert 1 == len([event for event in logged if event["log_level"].name == "warn"])


def test_a_connection_behind_which_nobody_answers_is_told(logged: list[LogEvent]) -> None:
    world = World(real_users=True)
    world.endpoint.accept()
    world.clock.advance(1.4)
    assert world.connector.last_error is None
    world.clock.advance(0.2)
    assert world.connector.last_error == "no answer for 1.5 s"
    (event,) = [event for event in logged if event["log_level"].name == "warn"]
    assert event["reason"] == "no answer for 1.5 s"


def test_stopping_while_waiting_dials_no_more() -> None:
    world = World()
    world.endpoint.refuse()
    assert world.stop().called
    world.clock.advance(100)
    assert world.dialled == 1
    assert world.connector.next_attempt_in is None


def test_stopping_is_safe_twice_and_before_any_start() -> None:
    world = World(start=False)
    assert world.stop().called
    world = World()
    peer = world.endpoint.accept()
    first, second = world.stop(), world.stop()
    peer.lose()
    world.clock.advance(0)
    assert first.called
    assert second.called
    assert world.stop().called
    assert world.clock.getDelayedCalls() == []


def test_it_can_be_started_again() -> None:
    world = World()
    peer = world.endpoint.accept()
    stopping = world.stop()
    stopping.addCallback(lambda _: world.connector.startService())
    peer.lose()
    world.clock.advance(0)
    assert world.dialled == 2


def test_one_that_is_started_while_it_closes_dials_when_it_has_closed() -> None:
    world = World()
    peer = world.endpoint.accept()
    stopping = world.stop()
    world.connector.startService()
    world.clock.advance(1)
    assert (world.dialled, stopping.called, world.connector.running) == (1, False, 1)
    peer.lose()
    world.clock.advance(0)
    assert (world.dialled, stopping.called, world.connector.running) == (2, True, 1)
    world.endpoint.accept().lose()
    world.clock.advance(0.5)
    assert world.dialled == 3


def test_what_was_asked_for_last_counts_while_it_closes() -> None:
    world = World()
    peer = world.endpoint.accept()
    world.stop()
    world.connector.startService()
    stopping = world.stop()
    peer.lose()
    world.clock.advance(100)
    assert (world.dialled, stopping.called, world.connector.running) == (1, True, 0)
    assert world.clock.getDelayedCalls() == []


def test_one_that_is_started_in_the_turn_in_which_it_stopped_dials() -> None:
    world = World()
    world.connector.stopService()  # its attempt is cancelled at once, and that is told in a turn
    world.connector.startService()
    world.clock.advance(0)
    assert (world.dialled, world.connector.running) == (2, 1)


def test_who_waits_no_more_for_it_to_stop_does_not_make_it_dial() -> None:
    world = World()
    peer = world.endpoint.accept()
    stopping = world.stop()
    stopping.addErrback(lambda failure: failure.trap(CancelledError))
    stopping.cancel()
    peer.lose()
    world.clock.advance(100)
    assert world.dialled == 1


def test_a_connection_that_is_lost_long_after_it_was_stopped_is_not_dialled_again() -> None:
    world = World()
    peer = world.endpoint.accept()
    stopping = world.stop()
    world.clock.pump([6, 5, 0])
    assert stopping.called
    peer.lose()
    world.clock.advance(100)
    assert world.dialled == 1
    world.connector.startService()
    assert world.dialled == 2


class Local:
    """A connector to a node of this process; `ready` fires those who wait for the node."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.ready: Waiters[None] = Waiters()
        self.is_ready = False
        self.near: list[Recorder] = []
        self.connector = local_connector(
            self._make_near, Recorder, self._when_ready, self.clock, Limits(), "node"
        )

    def _make_near(self) -> Recorder:
        self.near.append(Recorder())
        return self.near[-1]

    def _when_ready(self) -> Deferred[None]:
        return succeed(None) if self.is_ready else self.ready.wait()

    def begin(self) -> None:
        self.is_ready = True
        self.ready.fire(None)
        self.clock.pump([0, 0, 0])


def test_inside_one_process_it_waits_for_the_node_once() -> None:
    local = Local()
    for _ in range(3):
        local.connector.startService()
        stopping = local.connector.stopService()
        local.clock.advance(0)
        assert stopping.called
    assert len(local.ready) == 0
    local.connector.startService()
    local.connector.startService()
    local.begin()
    assert len(local.near) == 1
    assert (local.connector.failures, local.connector.last_error) == (0, None)
    local.connector.stopService()
    local.clock.pump([0, 0, 100])
    assert len(local.near) == 1


def test_inside_one_process_too_it_dials_when_it_has_closed() -> None:
    local = Local()
    local.is_ready = True
    local.connector.startService()
    local.clock.pump([0, 0])
    stopping = local.connector.stopService()
    local.connector.startService()
    assert (len(local.near), stopping.called) == (1, False)
    local.clock.pump([0, 0, 0])
    assert (len(local.near), stopping.called) == (2, True)
    assert local.near[0].is_lost
    assert not local.near[1].is_lost
    assert local.connector.channel is local.near[1].channel
    local.clock.advance(100)
    assert len(local.near) == 2
    again = local.connector.stopService()
    local.connector.startService()
    local.connector.stopService()
    local.clock.pump([0, 0, 100])
    assert (len(local.near), again.called) == (2, True)


def test_a_bad_address_is_refused_before_anything_is_dialled() -> None:
    with pytest.raises(BadAddress):
        Transports().tcp.connector(Clock(), "tcp:7410", Recorder, Limits())
