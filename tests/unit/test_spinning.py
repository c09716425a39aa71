"""Waiting awake: when it is tried, when it is given up, and what it reads."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from twisted.internet.interfaces import IReactorFDSet
from twisted.internet.task import Clock
from zope.interface import implementer

from msgservice.transport.udp.peer import DatagramPeer
from msgservice.transport.udp.socket import DatagramSocket
from msgservice.transport.udp.spinning import (
    SPINS_MAX,
    WANTED_MAX,
    WANTED_MIN,
    Spin,
    SpinningSocket,
)

SPIN = 0.0001


class Ticks:
    """A clock that goes on by `step` at each look, and does something at some of them."""

    def __init__(self, step: float = SPIN / 10) -> None:
        self.now = 0.0
        self.step = step
        self.looks = 0
        self.act: Callable[[int], None] = lambda looks: None

    def __call__(self) -> float:
        self.now += self.step
        self.looks += 1
        self.act(self.looks)
        return self.now


def short_wait(spin: Spin) -> None:
    spin.end()
    spin.wake()


def test_a_few_short_waits_in_a_row_make_it_pay() -> None:
    spin = Spin(SPIN, Ticks())
    for _ in range(WANTED_MIN - 1):
        short_wait(spin)
        assert not spin.pays(1)
    short_wait(spin)
    assert spin.pays(1)


def test_a_long_wait_or_two_datagrams_at_once_end_the_conversation() -> None:
    clock = Ticks()
    spin = Spin(SPIN, clock)
    for _ in range(WANTED_MIN):
        short_wait(spin)
    assert not spin.pays(2)
    assert not spin.pays(1)
    for _ in range(WANTED_MIN):
        short_wait(spin)
    assert spin.pays(1)
    spin.end()
    clock.now += 1.0
    spin.wake()
    assert not spin.pays(1)


def test_what_is_in_vain_is_tried_four_times_as_rarely_up_to_a_bound() -> None:
    spin = Spin(SPIN, Ticks())
    wanted = WANTED_MIN
    while True:
        for _ in range(wanted - 1):
            short_wait(spin)
            assert not spin.pays(1)
        short_wait(spin)
        assert spin.pays(1)
        spin.fail()
        if wanted == WANTED_MAX:
            break
        wanted = min(4 * wanted, WANTED_MAX)
    for _ in range(20):
        spin.succeed()
    for _ in range(WANTED_MIN):
        short_wait(spin)
    assert spin.pays(1)


@implementer(IReactorFDSet)
class FakeReactor(Clock):
    """Takes the descriptor and does nothing with it: the test calls `doRead`."""

    def addReader(self, reader: Any) -> None:
        self.reader = reader

    def removeReader(self, reader: Any) -> None:
        pass

    removeWriter = addWriter = removeReader

    def removeAll(self) -> list[Any]:
        return []

    getReaders = getWriters = removeAll


@pytest.fixture
def outside() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.bind(("127.0.0.1", 0))
        yield made


def watched(
    clock: Ticks, taken: list[bytes], turns: list[int], known: set[tuple[str, int]]
) -> DatagramSocket:
    return SpinningSocket(
        FakeReactor(),
        receive=lambda data, segment, address: taken.append(data),
        turn=lambda: turns.append(len(taken)),
        known=known,
        ignores=lambda letter: letter == ord("i"),
        interface="127.0.0.1",
        port=0,
        buffer_bytes=65_536,
        spin=Spin(SPIN, clock),
    )


def test_a_conversation_is_read_awake_but_not_for_ever(outside: socket.socket) -> None:
    clock = Ticks()
    taken: list[bytes] = []
    turns: list[int] = []
    sock = watched(clock, taken, turns, {outside.getsockname()})
    for number in range(WANTED_MIN):
        outside.sendto(b"%d" % number, sock.address)
        sock.doRead()
    assert [b"0", b"1", b"2", b"3"] == taken[:WANTED_MIN]
    # One that is in vain: nothing came, and the clock decided so.
    looks = clock.looks
    outside.sendto(b"4", sock.address)
    sock.doRead()
    assert clock.looks - looks < 20

    # From now on the other side answers whenever the clock is looked at.
    clock.act = lambda looks: outside.sendto(b"x%d" % looks, sock.address)  # type: ignore[assignment]  # the count is not looked at
    before = 0
    for _ in range(4 * WANTED_MIN + 2):
        before = len(turns)
        sock.doRead()
    assert len(turns) - before <= SPINS_MAX + 1
    sock.close()


def test_a_flood_of_strangers_is_dropped_unread_and_what_is_known_behind_it_is_taken(
    outside: socket.socket,
) -> None:
    taken: list[bytes] = []
    turns: list[int] = []
    sock = watched(Ticks(), taken, turns, {outside.getsockname()})
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        for number in range(100):
            stranger.sendto(b"ignored %d" % number, sock.address)
        stranger.sendto(b"heard", sock.address)
    outside.sendto(b"important", sock.address)
    for _ in range(3):
        sock.doRead()

    assert [b"heard", b"important"] == taken
    sock.close()


def test_a_spin_that_cannot_be_is_refused() -> None:
    for spin in (-1.0, 0.5):
        with pytest.raises(ValueError, match="spin must be from 0"):
            DatagramPeer(FakeReactor(), spin=spin, seconds=lambda: 0.0)
