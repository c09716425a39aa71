"""`Backoff`: delays double under full jitter, and only a healthy connection clears the count."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.application.internet import ClientService
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IProtocol, IProtocolFactory, IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from zope.interface import implementer

from msgservice.core.backoff import Backoff, delay_of


def make_backoff(jitter: float = 1.0) -> Backoff:
    return Backoff(delay_min=0.5, delay_max=30.0, healthy=60.0, rng=lambda: jitter)


def test_delays_double_up_to_the_maximum() -> None:
    backoff = make_backoff()
    delays = [backoff.failed(0.0) for _ in range(9)]
    assert delays == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]


def test_message_retries_go_from_one_second_to_five_minutes() -> None:
    delays = [delay_of(n, delay_min=1.0, delay_max=300.0) for n in (1, 2, 9, 10, 20)]
    assert delays == [1.0, 2.0, 256.0, 300.0, 300.0]


@given(st.integers(1, 10**6), st.floats(0.0, 1.0))
def test_a_delay_lies_between_nothing_and_its_cap(attempt: int, jitter: float) -> None:
    cap = min(30.0, 0.5 * 2.0 ** min(attempt - 1, 100))
    assert 0.0 <= make_backoff(jitter).delay(attempt) <= cap


def test_full_jitter_is_spread_over_the_whole_delay() -> None:
    generator = random.Random(7)
    backoff = Backoff(delay_min=8.0, delay_max=8.0, healthy=1.0, rng=generator.random)
    delays = sorted(backoff.delay(1) for _ in range(1000))
    assert delays[100] < 1.2
    assert delays[900] > 6.8


def test_a_connection_that_was_healthy_clears_the_count() -> None:
    backoff = make_backoff()
    for _ in range(5):
        backoff.failed(0.0)
    backoff.established(100.0)
    assert backoff.failed(160.0) == 0.5
    assert backoff.failures == 1


def test_a_connection_that_was_dropped_early_does_not() -> None:
    backoff = make_backoff()
    delays = []
    for attempt in range(4):
        backoff.established(attempt * 10.0)
        delays.append(backoff.failed(attempt * 10.0 + 9.0))
    assert delays == [0.5, 1.0, 2.0, 4.0]


def test_a_connection_without_a_handshake_never_counts_as_healthy() -> None:
    backoff = make_backoff()
    backoff.failed(0.0)
    assert backoff.failed(10_000.0) == 1.0


def test_health_is_counted_anew_for_each_connection() -> None:
    backoff = make_backoff()
    backoff.established(0.0)
    backoff.failed(1.0)
    backoff.established(59.0)
    assert backoff.failed(61.0) == 1.0


def test_established_twice_counts_from_the_first() -> None:
    backoff = make_backoff()
    backoff.failed(0.0)
    backoff.established(0.0)
    backoff.established(59.0)
    assert backoff.failed(60.0) == 0.5


def test_a_poke_forgets_the_failures() -> None:
    backoff = make_backoff()
    for _ in range(8):
        backoff.failed(0.0)
    backoff.poke(1.0)
    assert backoff.failed(1.0) == 0.5


def test_a_peer_that_pokes_again_and_again_is_still_left_alone_for_longer() -> None:
    backoff = make_backoff()
    delays = []
    for second in range(5):
        backoff.poke(float(second))
        delays.append(backoff.failed(float(second)))
    assert delays == [0.5, 1.0, 2.0, 4.0, 8.0]
    backoff.poke(60.0)
    assert backoff.failed(60.0) == 0.5


def test_a_clock_that_went_back_does_not_make_us_deaf_to_pokes() -> None:
    backoff = make_backoff()
    backoff.poke(1_000_000.0)
    backoff.failed(0.0)
    backoff.poke(0.0)
    assert backoff.failures == 0


@implementer(IStreamClientEndpoint)
class AcceptAndDrop:
    """A peer that accepts every connection and drops it at once."""

    def __init__(self) -> None:
        self.dialled = 0

    def connect(self, factory: IProtocolFactory) -> Deferred[IProtocol]:
        self.dialled += 1
        protocol = factory.buildProtocol(IPv4Address("TCP", "127.0.0.1", 1))
        assert protocol is not None
        protocol.makeConnection(StringTransport())
        self.protocol = protocol
        return succeed(protocol)

    def drop(self) -> None:
        self.protocol.connectionLost(Failure(ConnectionDone()))


def test_a_peer_that_accepts_and_drops_is_dialled_more_and_more_seldom() -> None:
    clock = Clock()
    endpoint = AcceptAndDrop()
    backoff = make_backoff()
    service = ClientService(
        endpoint,
        Factory.forProtocol(Protocol),
        retryPolicy=backoff.policy(clock.seconds),
        clock=clock,
    )
    service.startService()
    for dialled, delay in [(1, 0.5), (2, 1.0), (3, 2.0), (4, 4.0)]:
        assert dialled == endpoint.dialled
        endpoint.drop()
        clock.advance(delay * 0.99)
        assert dialled == endpoint.dialled
        clock.advance(delay * 0.02)
    endpoint.drop()
    service.stopService()


def test_attempts_are_counted_from_one() -> None:
    with pytest.raises(AssertionError):
        delay_of(0, delay_min=1.0, delay_max=2.0)
