"""When to wait awake: a short spin for the next datagram instead of sleeping in the kernel.

A processor that falls asleep between two datagrams takes tens of microseconds to wake, and finds
its caches cold; in a conversation of single requests on one machine that is most of the time (as
`net.core.busy_poll` of Linux knows). So where the last waits were short the socket is watched for
up to `spin` seconds before the reactor sleeps. A spin that was in vain makes the next one four
times as rare: on one processor, or with an answer that takes longer, next to nothing is wasted.
For who has one conversation to do; the node's own links let the reactor sleep.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IReactorTime

from msgservice.transport.udp.socket import DatagramSocket

# Short waits in a row before a spin is tried: at first, and at most.
WANTED_MIN = 4
WANTED_MAX = 4096
# A wait asleep that would have been short enough awake: waking takes its time on both sides.
SHORT = 2.0
# Datagrams of a conversation in a row that are waited for awake: other descriptors want their turn
# as well.
SPINS_MAX = 8


class Spin:
    """Decides whether to wait awake, from how long the waits were and what spinning brought.

    `spin`: seconds of one wait. `seconds`: the clock.
    """

    __slots__ = ("_ended_at", "_short", "_wanted", "seconds", "spin")

    def __init__(self, spin: float, seconds: Callable[[], float]) -> None:
        self.spin = spin
        self.seconds = seconds
        self._ended_at = -math.inf
        self._short = 0
        self._wanted = WANTED_MIN

    def wake(self) -> None:
        """Take note that something came: the reactor was asleep, or elsewhere, until now."""
        if self.seconds() - self._ended_at < SHORT * self.spin:
            self._short += 1
        else:
            self._short = 0

    def pays(self, reads: int) -> bool:
        """Whether to wait awake, after a turn of so many reads."""
        if reads != 1:
            self._short = 0  # no conversation: what comes together is better taken together
        return self._short >= self._wanted

    def end(self) -> None:
        """Take note that the turn is over."""
        self._ended_at = self.seconds()

    def succeed(self) -> None:
        """Take note that a datagram came while waiting awake."""
        self._wanted = max(WANTED_MIN, self._wanted // 2)

    def fail(self) -> None:
        """Take note that nothing came in time."""
        self._short = 0
        self._wanted = min(4 * self._wanted, WANTED_MAX)


class SpinningSocket(DatagramSocket):
    """A socket that is watched awake for a while where `spin` says that it pays."""

    def __init__(self, reactor: IReactorTime, *, spin: Spin, **options: Any) -> None:
        self._spin = spin
        super().__init__(reactor, **options)

    def doRead(self) -> None:
        """See `IReadDescriptor`; then wait awake for what follows."""
        spin = self._spin
        spin.wake()
        reads = self.read_turn()
        for _ in range(SPINS_MAX):
            if not spin.pays(reads):
                break
            reads = self._read_awake(spin)
        spin.end()

    def _read_awake(self, spin: Spin) -> int:
        until = spin.seconds() + spin.spin
        while spin.seconds() < until and not self.closed:
            reads = self.read_turn()
            if reads:
                spin.succeed()
                return reads
        spin.fail()
        return 0
