"""Packets that arrived, those that are lost, and when to ask: one side of a session.

Part of `core.datagram.flight`. Keeps the packets in flight by packet number, estimates the round
trip (RFC 6298), declares loss by packet and time thresholds (RFC 9002 §6.1) that start at 3 and 9/8
and grow when a loss is proven wrong (RFC 8985's adaptive window in spirit), and runs the timeout: a
probe after two round trips (RFC 8985 §7), and again after waits that double, with jitter (RFC 9002
§6.2). Every transmission has a packet number of its own, so every sample can be used and a needless
retransmission proves itself; Karn's rule is not needed. Times are seconds of the caller's clock.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

RTO_INITIAL = 1.0
RTO_MAX = 60.0
# The longest that a peer waits before it acknowledges (PROTOCOL §UDP).
ACK_DELAY_MAX = 0.025
PACKET_THRESHOLD = 3
TIME_THRESHOLD = 9 / 8
# Proof may raise the thresholds so far: beyond that, waiting costs more than sending again.
PACKET_THRESHOLD_MAX = 1024
TIME_THRESHOLD_MAX = 3.0
GRANULARITY = 0.001
# Packets counted as lost that are remembered, so that a late acknowledgement can prove it wrong.
LOST_MAX = 1024
# A timer of ours that is so late: this side stood still, and measured itself.
STANDSTILL = 1.0
# A round trip that is longer belongs to no path: the other side stood still, or a datagram was held
# back. It counts only where one that left afterwards took as long.
SAMPLE_MAX = 10.0
# Timeouts in a row before the congestion window falls to its least.
TIMEOUTS_PERSISTENT = 3


# A packet in flight: when it left, its size in bytes, and what its owner needs to know. Plain
# tuples: a named one takes ten times as long to make (bench/udp.py, rpc).
Sent = tuple[float, int, tuple[Any, ...]]
# What arrived, what is lost, and how many packets counted as lost had arrived.
Outcome = tuple[list[Sent], list[Sent], int]


class RoundTrip:
    """Round-trip estimate of RFC 6298, in seconds."""

    __slots__ = ("latest", "smallest", "smoothed", "variation")

    def __init__(self) -> None:
        self.latest = 0.0
        self.smallest = math.inf
        self.smoothed = 0.0
        self.variation = 0.0

    def sample(self, rtt: float, delay: float = 0.0) -> None:
        """Take a measurement; `delay`: how long the other side held its answer back."""
        if rtt < 1e-6:
            rtt = 1e-6
        if rtt < self.smallest:
            self.smallest = rtt
        if rtt - delay >= self.smallest:
            rtt -= delay
        self.latest = rtt
        if not self.smoothed:
            self.smoothed, self.variation = rtt, rtt / 2
            return
        self.variation += (abs(self.smoothed - rtt) - self.variation) / 4
        self.smoothed += (rtt - self.smoothed) / 8

    @property
    def timeout(self) -> float:
        """How long to wait for an acknowledgement before asking: at least two round trips (RFC
        8985 §7.2), without backoff."""
        if not self.smoothed:
            return RTO_INITIAL
        spread = max(4 * self.variation, self.smoothed, GRANULARITY)
        return min(self.smoothed + spread + ACK_DELAY_MAX, RTO_MAX)


class Recovery:
    """Packets in flight of one direction of one session."""

    __slots__ = (
        "_doubted", "_jitter", "_lost", "_rto_jitter", "_stood_until", "in_flight", "largest",
        "last_sent_at", "loss_at", "next_number",
        "packet_threshold", "round_trip", "spurious", "time_threshold", "timeouts",
    )  # fmt: skip

    def __init__(self, jitter: Callable[[], float]) -> None:
        self.round_trip = RoundTrip()
        self.in_flight: dict[int, Sent] = {}
        self.next_number = 1
        self.largest = 0
        self.last_sent_at = 0.0
        self.loss_at: float | None = None
        self.timeouts = 0
        self.packet_threshold = PACKET_THRESHOLD
        self.time_threshold = TIME_THRESHOLD
        self.spurious = 0
        self._lost: dict[int, float] = {}
        self._stood_until = -math.inf  # what left earlier measures nothing
        # When a sample above SAMPLE_MAX was left out, and the latest that was taken before it.
        self._doubted = (math.inf, 0.0)
        self._jitter = jitter
        self._rto_jitter = 1.0 + jitter() / 2

    def on_sent(self, at: float, size: int, content: tuple[Any, ...]) -> None:
        """Take note of a packet that asks for an acknowledgement, numbered `next_number`."""
        number = self.next_number
        self.in_flight[number] = (at, size, content)
        self.next_number = number + 1
        self.last_sent_at = at

    def receive_ranges(
        self, ranges: Sequence[tuple[int, int]], delay: float, now: float
    ) -> Outcome:
        """Take an acknowledgement's packet ranges, newest first; ValueError if never sent."""
        newest = ranges[0][1]
        if newest >= self.next_number:
            raise ValueError(f"packet {newest} acknowledged, never sent")
        in_flight = self.in_flight
        arrived: list[Sent] = []
        sent = in_flight.get(newest)
        if sent is not None and len(ranges) == 1 and next(iter(in_flight)) == newest:
            # The oldest in flight and nothing else: the usual case of a conversation. What is
            # still in flight left later, so nothing can be lost.
            del in_flight[newest]
            arrived.append(sent)
            trip = now - sent[0]
            if trip <= STANDSTILL or self._believes(sent[0], now):
                self.round_trip.sample(trip, delay)
        elif in_flight:
            latest = in_flight.get(newest) if newest > self.largest else None
            oldest = next(iter(in_flight))
            for first, last in ranges:
                if last < oldest:
                    break
                low = max(oldest, first)
                if last - low < 2 * len(in_flight):
                    for number in range(low, last + 1):
                        found = in_flight.pop(number, None)
                        if found is not None:
                            arrived.append(found)
                else:
                    numbers = [number for number in in_flight if low <= number <= last]
                    arrived += [in_flight.pop(number) for number in numbers]
            if latest is not None:
                trip = now - latest[0]
                if trip <= STANDSTILL or self._believes(latest[0], now):
                    self.round_trip.sample(trip, delay)
        if newest > self.largest:
            self.largest = newest
        spurious = self._prove(ranges, now) if self._lost else 0
        if self.timeouts and (arrived or spurious):
            self.timeouts = 0
            self._rto_jitter = 1.0 + self._jitter() / 2
        if not in_flight or next(iter(in_flight)) > newest:
            self.loss_at = None
            return arrived, [], spurious
        return arrived, self.detect(now), spurious

    def _believes(self, sent_at: float, now: float) -> bool:
        """Whether a long round trip is one of the path, and not of a side that stood still."""
        if sent_at < self._stood_until:
            return False
        if now > self.last_sent_at + self._wait + STANDSTILL:
            self._stood_until = now
            return False
        if now - sent_at <= SAMPLE_MAX:
            return True
        doubted_at, latest = self._doubted
        if sent_at >= doubted_at and latest == self.round_trip.latest:
            return True
        if sent_at >= doubted_at or doubted_at == math.inf or latest != self.round_trip.latest:
            self._doubted = (now, self.round_trip.latest)
        return False

    def _prove(self, ranges: Sequence[tuple[int, int]], now: float) -> int:
        """Count spurious losses: packets that had arrived. Raise the loss thresholds by them."""
        lost = self._lost
        proven = []
        for first, last in ranges:
            proven += [number for number in lost if first <= number <= last]
        for number in proven:
            sent_at = lost.pop(number)
            distance = self.largest - number + 1
            self.packet_threshold = min(max(self.packet_threshold, distance), PACKET_THRESHOLD_MAX)
            if sent_at >= self._stood_until:
                base = max(self.round_trip.smoothed, GRANULARITY)
                late = (now - sent_at) / base + 1 / 8
                self.time_threshold = min(max(self.time_threshold, late), TIME_THRESHOLD_MAX)
        self.spurious += len(proven)
        return len(proven)

    def detect(self, now: float) -> list[Sent]:
        """Return the packets that are lost by now, and set `loss_at` to when the next would be."""
        self.loss_at = None
        in_flight = self.in_flight
        lost: list[Sent] = []
        if not in_flight:
            return lost
        trip = self.round_trip
        wait = max(self.time_threshold * max(trip.smoothed, trip.latest), GRANULARITY)
        by_number = self.largest - self.packet_threshold
        numbers = []
        for number, sent in in_flight.items():
            if number > self.largest:
                break
            if number <= by_number or sent[0] + wait <= now:
                numbers.append(number)
                lost.append(sent)
            else:
                self.loss_at = sent[0] + wait
                break
        remembered = self._lost
        for number in numbers:
            remembered[number] = in_flight.pop(number)[0]
        while len(remembered) > LOST_MAX:
            del remembered[next(iter(remembered))]
        return lost

    def timeout_at(self) -> float | None:
        """Return when a probe of what is in flight is due."""
        if not self.in_flight:
            return None
        return self.last_sent_at + self._wait

    @property
    def _wait(self) -> float:
        # No least time (RFC 9002 §6.2.1): a probe carries a number of its own, so a needless one
        # spoils no measure, and where a quarter is lost one second each adds up to minutes.
        wait: float = self.round_trip.timeout * 2 ** min(self.timeouts, 16)
        if self.timeouts:
            wait *= self._rto_jitter
        return min(wait, RTO_MAX)

    def receive_timeout(self, now: float) -> None:
        """Take note that the timeout passed: the next is later."""
        if now > self.last_sent_at + self._wait + STANDSTILL:
            self._stood_until = now
        self.timeouts += 1
        self._rto_jitter = 1.0 + self._jitter() / 2
