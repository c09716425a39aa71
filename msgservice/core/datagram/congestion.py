"""How much may be in flight, and how fast it leaves: NewReno with HyStart++, and a pacer.

Called by the sending half of a session with sizes and times; sends nothing and decides nothing
about loss (that is `core.datagram.recovery`). NewReno as in RFC 9002 §7, slow start left early by
HyStart++ (RFC 9406), a reduction undone when every loss behind it is proven wrong. Bytes and
seconds.

A path that loses at random is told from a full one by an experiment. The first loss halves the
window, as everywhere. Where packets that left after that are lost all the same, and no round trip
shows a queue, the loss does not depend on how much is sent: the reduction is undone, and for some
round trips a loss takes off only what exceeds a share that is put up with. Then the experiment is
made again.
"""

from __future__ import annotations

import math

from msgservice.core.datagram.recovery import RoundTrip

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
# So many packets after a reduction show whether less is lost for it.
WATCHED = 16
# A round trip that is longer than the shortest by a quarter, and by so much, shows a queue. A
# busy machine is late by some ms without one; what is shorter is left to the experiment.
QUEUE_MIN = 0.02
QUEUE_DIVISOR = 4
# Round trips for which a path counts as one that loses at random, before it is tried again.
TOLERANCE_ROUNDS = 32
# While it does, the window may exceed what arrives of it by half: a third lost costs nothing.
TOLERANCE = 1.5
# The share that is lost is a mean over about so many packets.
LOSS_MEMORY = 64


class NewReno:
    """Congestion window of one session, in bytes."""

    __slots__ = (
        "_before",
        "_conservative",
        "_conservative_rtt",
        "_event_lost",
        "_event_spurious",
        "_last_round_rtt",
        "_loss",
        "_recovery_start",
        "_round_end",
        "_round_rtt",
        "_round_samples",
        "_tolerates_until",
        "_watched",
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
        self._watched = 0  # packets that are still to show whether the last reduction helped
        self._tolerates_until = -math.inf
        self._loss = 0.0  # the share that is lost, while some of it is put up with
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

    @property
    def watches(self) -> bool:
        """Whether `on_outcome` is to be told what arrives and what is lost."""
        return self._watched > 0 or self._loss > 0

    def on_outcome(self, arrived: int, lost: int, oldest_sent_at: float) -> None:
        """Take note of how many packets arrived and were lost; the oldest of them left then."""
        if self._loss:
            keep = 1 - 1 / LOSS_MEMORY
            self._loss = 1 - (1 - self._loss * keep**arrived) * keep**lost
        if self._watched and oldest_sent_at > self._recovery_start:
            self._watched = max(0, self._watched - arrived)

    def on_lost(
        self, size: int, count: int, newest_sent_at: float, now: float, trip: RoundTrip
    ) -> None:
        """Take note that `count` packets of `size` bytes were lost: at most one reduction per
        round."""
        self.in_flight -= size
        if newest_sent_at <= self._recovery_start:
            self._event_lost += count
            return
        queued = self._shows_queue(trip)
        if self._watched and not queued:
            # As much is lost as before the reduction: it was not for what we sent.
            self._undo()
            self._tolerates_until = now + TOLERANCE_ROUNDS * trip.smoothed
            self._loss = min(count / WATCHED, 1.0)
            self._watched = 0
        reduction = REDUCTION
        if queued or now >= self._tolerates_until:
            self._loss = 0.0
            self._tolerates_until = -math.inf
            self._watched = 0 if queued else WATCHED
        else:
            reduction = max(REDUCTION, TOLERANCE * (1 - self._loss))
        if reduction >= 1:
            return
        self._before = (self.window, self.threshold)
        self._event_lost, self._event_spurious = count, 0
        self._recovery_start = now
        self._conservative = 0
        self.window = max(self.window * reduction, WINDOW_MIN * self.unit)
        self.threshold = self.window

    @staticmethod
    def _shows_queue(trip: RoundTrip) -> bool:
        """Whether packets wait somewhere on the path, as far as the round trips show it."""
        rise = max(QUEUE_MIN, trip.smallest / QUEUE_DIVISOR)
        return min(trip.latest, trip.smoothed) > trip.smallest + rise

    def _undo(self) -> None:
        window, threshold = self._before
        self.window = max(self.window, window)
        self.threshold = max(self.threshold, threshold)
        self._event_lost = self._event_spurious = 0
        self._recovery_start = -math.inf

    def on_spurious(self, count: int) -> None:
        """Take note that `count` packets counted as lost had arrived; undo when all of them had."""
        self._event_spurious += count
        if self._event_lost and self._event_spurious >= self._event_lost:
            self._undo()
            self._watched = 0

    def on_timeouts(self, now: float) -> None:
        """Fall to the least window: several timeouts in a row went unanswered (RFC 9002 §7.6)."""
        self.threshold = max(self.window * REDUCTION, WINDOW_MIN * self.unit)
        self.window = float(WINDOW_MIN * self.unit)
        self._recovery_start = now
        self._event_lost = 0
        self._watched = 0
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
