"""How much may be in flight, and how fast it leaves: NewReno with HyStart++, and a pacer.

Called by the sending half of a session with sizes and times; sends nothing and decides nothing
about loss (that is `core.recovery`). NewReno as in RFC 9002 §7, slow start left early by HyStart++
(RFC 9406), a reduction undone when every loss behind it is proven wrong. Bytes and seconds.
"""

from __future__ import annotations

import math

WINDOW_INITIAL = 10  # datagrams (RFC 9002 §7.2)
WINDOW_MIN = 2  # datagrams
REDUCTION = 0.5
# HyStart++ (RFC 9406 §4.3)
ROUND_SAMPLES = 8
RTT_THRESHOLD_MIN = 0.004
RTT_THRESHOLD_MAX = 0.016
RTT_DIVISOR = 8
CONSERVATIVE_DIVISOR = 4
CONSERVATIVE_ROUNDS = 5
# A burst may hold what leaves in this time: finer timers than that cost more than they smooth.
BURST_SECONDS = 0.002
RTT_UNKNOWN = 0.1


class NewReno:
    """Congestion window of one session, in bytes."""

    __slots__ = (
        "_before",
        "_conservative",
        "_conservative_rtt",
        "_event_lost",
        "_event_spurious",
        "_last_round_rtt",
        "_recovery_start",
        "_round_end",
        "_round_rtt",
        "_round_samples",
        "in_flight",
        "size_max",
        "threshold",
        "unit",
        "window",
    )  # fmt: skip

    def __init__(self, datagram_bytes: int, window_bytes_max: int) -> None:
        self.unit = datagram_bytes
        self.size_max = max(window_bytes_max, WINDOW_INITIAL * datagram_bytes)
        self.window = float(WINDOW_INITIAL * datagram_bytes)
        self.threshold = math.inf
        self.in_flight = 0
        self._recovery_start = -math.inf
        self._before = (self.window, self.threshold)
        self._event_lost = 0
        self._event_spurious = 0
        # HyStart++ counts round trips by packet number.
        self._round_end = 0
        self._round_rtt = math.inf
        self._last_round_rtt = math.inf
        self._round_samples = 0
        self._conservative = 0
        self._conservative_rtt = math.inf

    @property
    def slow_start(self) -> bool:
        """Whether the window still doubles each round trip."""
        return self.window < self.threshold

    def on_acknowledged(self, size: int, sent_at: float) -> None:
        """Grow: `size` bytes arrived while the window, not the application, held back.

        `sent_at` is when they left: what left before the last reduction does not count.
        """
        if sent_at <= self._recovery_start:
            return
        if self.window < self.threshold:
            self.window += size / CONSERVATIVE_DIVISOR if self._conservative else size
        else:
            self.window += self.unit * size / self.window
        self.window = min(self.window, self.size_max)

    def on_rtt(self, rtt: float, acknowledged: int, next_number: int) -> None:
        """Take a round-trip sample for HyStart++; `acknowledged`, `next_number`: packet numbers."""
        if self.window >= self.threshold:
            return
        if acknowledged >= self._round_end:
            self._round_end = next_number
            self._last_round_rtt = self._round_rtt
            self._round_rtt = math.inf
            self._round_samples = 0
            if self._conservative:
                self._conservative += 1
                if self._conservative > CONSERVATIVE_ROUNDS:
                    self.threshold = self.window
                    return
        self._round_rtt = min(self._round_rtt, rtt)
        self._round_samples += 1
        if self._round_samples < ROUND_SAMPLES:
            return
        if self._conservative:
            if self._round_rtt < self._conservative_rtt:
                self._conservative = 0
        elif math.isfinite(self._last_round_rtt):
            eighth = self._last_round_rtt / RTT_DIVISOR
            rise = max(RTT_THRESHOLD_MIN, min(eighth, RTT_THRESHOLD_MAX))
            if self._round_rtt >= self._last_round_rtt + rise:
                self._conservative = 1
                self._conservative_rtt = self._round_rtt

    def on_lost(self, size: int, count: int, newest_sent_at: float, now: float) -> None:
        """Take note that `count` packets of `size` bytes were lost: at most one reduction per
        round."""
        self.in_flight -= size
        if newest_sent_at <= self._recovery_start:
            self._event_lost += count
            return
        self._before = (self.window, self.threshold)
        self._event_lost, self._event_spurious = count, 0
        self._recovery_start = now
        self._conservative = 0
        self.window = max(self.window * REDUCTION, WINDOW_MIN * self.unit)
        self.threshold = self.window

    def on_spurious(self, count: int) -> None:
        """Take note that `count` packets counted as lost had arrived; undo when all of them had."""
        self._event_spurious += count
        if self._event_lost and self._event_spurious >= self._event_lost:
            window, threshold = self._before
            self.window = max(self.window, window)
            self.threshold = max(self.threshold, threshold)
            self._event_lost = self._event_spurious = 0
            self._recovery_start = -math.inf

    def on_timeouts(self, now: float) -> None:
        """Fall to the least window: several timeouts in a row went unanswered (RFC 9002 §7.6)."""
        self.threshold = max(self.window * REDUCTION, WINDOW_MIN * self.unit)
        self.window = float(WINDOW_MIN * self.unit)
        self._recovery_start = now
        self._event_lost = 0
        self._conservative = 0


class Pacer:
    """Spreads a window over its round trip (RFC 9002 §7.7): a token bucket in bytes."""

    __slots__ = ("_at", "_burst_min", "_rate", "_tokens")

    def __init__(self, datagram_bytes: int) -> None:
        self._burst_min = float(WINDOW_INITIAL * datagram_bytes)
        self._tokens = self._burst_min
        self._rate = 0.0
        self._at = 0.0

    def budget(self, now: float, window: float, rtt: float, *, slow_start: bool) -> float:
        """Return the bytes that may leave now."""
        rate = self._rate = (2.0 if slow_start else 1.25) * window / (rtt or RTT_UNKNOWN)
        burst = max(self._burst_min, rate * BURST_SECONDS)
        self._tokens = min(burst, self._tokens + (now - self._at) * rate)
        self._at = now
        return self._tokens

    def spend(self, size: int) -> None:
        """Take `size` bytes out; the bucket may go below zero by one datagram."""
        self._tokens -= size

    def next_at(self, size: int) -> float:
        """Return when `size` bytes may leave again, and at least half a burst's time has passed."""
        return self._at + max((size - self._tokens) / self._rate, BURST_SECONDS / 2)
