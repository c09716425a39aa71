"""One session between two addresses: both halves, packets in both directions, and their timers.

Called by `core.datagram.endpoint`, which owns the handshake and knows the addresses. Datagrams go
in through `receive_packet`, come out of `take_datagrams`; `next_deadline` says when to call
`receive_time`. Everything that asks for an acknowledgement is kept in `Recovery` until it arrived
or is lost; what was in it is then sent again in a new packet, if it is still needed.
"""

from __future__ import annotations

from msgservice.core.datagram.output import SessionOutput
from msgservice.core.datagram.recovery import TIMEOUTS_PERSISTENT

# Asking after messages that arrived and are not handled: 2 s, doubling to 60 s (PROTOCOL §UDP).
ASK_MIN = 2.0
ASK_MAX = 60.0


class Session(SessionOutput):
    """One session of acknowledged UDP: its timers, and both its directions."""

    __slots__ = ()

    def receive_time(self, now: float) -> None:
        """Do what is due: declare losses, probe, ask."""
        self.catch_up()
        recovery = self.recovery
        if recovery.loss_at is not None and now >= recovery.loss_at:
            lost = recovery.detect(now)
            if lost:
                self._receive_lost(lost, now)
        due = recovery.timeout_at()
        if due is not None and now >= due:
            recovery.receive_timeout(now)
            self.counters.timeouts += 1
            if recovery.timeouts >= TIMEOUTS_PERSISTENT:
                self.congestion.on_timeouts(now)
            self._probes = 1 if recovery.timeouts == 1 else 2
            self.tried_at.append(now)
        if self._ask_at is not None and now >= self._ask_at:
            self._ask_pending = True
            self._ask_at = None
        keepalive = self._limits.keepalive
        if keepalive and now >= self.heard_at + keepalive and not recovery.in_flight:
            self._ask_pending = True

    # --- from the application

    def close(self) -> None:
        """Tell the peer that this session ends, with the next datagrams taken."""
        self._close_pending = True

    # --- to the world

    @property
    def urgent_deadline(self) -> bool:
        """Whether something may be due earlier than an acknowledgement's delay from now."""
        return self._blocked_until is not None or self.recovery.loss_at is not None

    def next_deadline(self, now: float) -> float | None:
        """Return when `receive_time` and `take_datagrams` are to be called next."""
        self.catch_up()
        recovery = self.recovery
        deadlines = [
            recovery.loss_at,
            recovery.timeout_at(),
            self.receiving.ack_due,
            self._blocked_until,
        ]
        if self.sending.open and not recovery.in_flight:
            if self._ask_at is None:
                self._ask_at = now + min(ASK_MIN * 2 ** min(self._asks, 8), ASK_MAX)
            deadlines.append(self._ask_at)
        else:
            self._ask_at = None
        if self._limits.keepalive and not recovery.in_flight:
            deadlines.append(self.heard_at + self._limits.keepalive)
        return min((at for at in deadlines if at is not None), default=None)
