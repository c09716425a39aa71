"""Connections that a listener accepts, up to a limit: who makes room, and who is turned away."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.address import IPv4Address
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.logger import LogEvent, formatEvent

from msgservice.limits import Limits
from msgservice.transport.tcp.channel import FrameProtocol
from msgservice.transport.tcp.listening import (
    PATIENCE,
    TOLD_SECONDS,
    ChannelFactory,
    ConnectionCount,
)
from tests.kit.channels import Recorder
from tests.unit.test_tcp import Transport

LIMITS = Limits(connections=3, hello_timeout=10)
HERE = IPv4Address("TCP", "127.0.0.1", 5)


class Door:
    """A listener, with a transport in memory for each who comes."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.count = ConnectionCount()
        self.factory = ChannelFactory(
            reactor=self.clock, make_user=Recorder, limits=LIMITS, count=self.count
        )

    def come(self, peer: IAddress = HERE) -> Protocol:
        protocol = self.factory.buildProtocol(peer)
        transport: Any = Transport(self.clock, peer)
        transport.protocol = protocol
        protocol.makeConnection(transport)
        return protocol

    def user(self) -> FrameProtocol:
        channel = self.come()
        assert isinstance(channel, FrameProtocol)
        channel.established()
        return channel


def is_gone(channel: Protocol) -> bool:
    transport: Any = channel.transport
    return bool(transport.disconnected)


def test_who_has_said_nothing_for_longest_makes_room_for_who_comes() -> None:
    door = Door()
    user = door.user()
    first = door.come()
    door.clock.advance(1)
    second = door.come()
    newcomer = door.come()
    assert [False, True, False, False] == [is_gone(one) for one in (user, first, second, newcomer)]
    assert isinstance(newcomer, FrameProtocol)
    door.clock.advance(0)
    assert (3, 0) == (door.count.open, door.count.refused)
    door.clock.advance(1)
    door.user()
    door.user()
    assert is_gone(second)
    assert is_gone(newcomer)
    door.clock.advance(0)
    assert is_gone(door.come())
    assert not is_gone(user)
    assert (3, 1) == (door.count.open, door.count.refused)
    assert {} == door.count.strangers


def test_who_has_only_just_come_makes_no_room() -> None:
    door = Door()
    kept = [door.come() for _ in range(3)]
    door.clock.advance(LIMITS.hello_timeout * PATIENCE - 0.01)
    assert is_gone(door.come())
    assert not any(map(is_gone, kept))
    door.clock.advance(0.02)
    assert not is_gone(door.come())
    assert [True, False, False] == [is_gone(one) for one in kept]


def test_who_has_said_who_he_is_makes_no_room_though_no_session_stands_yet() -> None:
    """The node's answer waits for its disk, and his RESUME may take its time."""
    door = Door()
    greeted = door.come()
    assert isinstance(greeted, FrameProtocol)
    greeted.identified()
    others = [door.come() for _ in range(2)]
    door.clock.advance(LIMITS.hello_timeout - 1)
    assert not is_gone(door.come())
    assert [False, True, False] == [is_gone(one) for one in (greeted, *others)]


def test_who_goes_is_counted_no_more() -> None:
    door = Door()
    for _ in range(10):
        channel = door.come()
        assert isinstance(channel, FrameProtocol)
        channel.abort()
        door.clock.advance(0)
    assert (0, 0, {}) == (door.count.open, door.count.refused, door.count.strangers)


@pytest.mark.parametrize("known", [True, False])
def test_that_the_limit_is_reached_is_one_line_a_minute(
    known: bool, logged: list[LogEvent]
) -> None:
    door = Door()
    for _ in range(3):
        door.user() if known else door.come()

    def lines() -> int:
        return sum("limit connections = 3 reached" in formatEvent(event) for event in logged)

    for _ in range(int(TOLD_SECONDS)):
        door.clock.advance(1)
        door.come()
    assert 1 == lines()
    door.clock.advance(1)
    door.come()
    assert 2 == lines()
