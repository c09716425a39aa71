"""What both directions of a session share: its marks and limits, and how a packet is made.

Read and changed by `core.datagram.input` (what comes), `core.datagram.output` (what leaves)
and `core.datagram.session` (time); decides nothing by itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

from msgservice.core.datagram import wire
from msgservice.core.datagram.chunks import Answer, SendQueue
from msgservice.core.datagram.congestion import NewReno, Pacer
from msgservice.core.datagram.limits import DatagramLimits
from msgservice.core.datagram.reassembly import Reassembly
from msgservice.core.datagram.receiver import ReceivingHalf
from msgservice.core.datagram.recovery import Recovery
from msgservice.core.datagram.sender import SendingHalf

DELAY_MAX = 0xFFFFFFFF  # microseconds, of a RECEIVED block


class Control(NamedTuple):
    """The control blocks of a packet, to be sent anew if it is lost."""

    handled: list[tuple[int, int]]
    acknowledged: int  # the newest packet that it acknowledged
    credit: bool


class Counters:
    """Figures of one session, for people."""

    __slots__ = ("asks", "malformed", "messages_again", "messages_sent", "packets_sent",
                 "refused", "timeouts")  # fmt: skip

    def __init__(self) -> None:
        self.asks = 0
        self.malformed = 0
        self.messages_again = 0
        self.messages_sent = 0
        self.packets_sent = 0
        self.refused = 0
        self.timeouts = 0


class SessionState:
    """The state that both directions of a session share."""

    __slots__ = (
        "_ask_at",
        "_ask_pending",
        "_asks",
        "_blocked_until",
        "_close_pending",
        "_credit_lost",
        "_headers",
        "_late",
        "_late_sessions",
        "_limits",
        "_probes",
        "_replies_partial",
        "_room",
        "_window_limited",
        "address",
        "asked",
        "closed_by_peer",
        "congestion",
        "counters",
        "heard_at",
        "identifier",
        "key_id",
        "message_bytes",
        "own_random",
        "pacer",
        "proven",
        "receiving",
        "recovery",
        "role",
        "seal",
        "sending",
        "spent",
        "tried_at",
    )  # fmt: skip

    def __init__(
        self,
        *,
        address: tuple[str, int],
        identifier: int,
        role: int,
        key_id: int,
        seal: wire.Seal,
        own_random: bytes,
        terms: wire.Terms,
        limits: DatagramLimits,
        queue: SendQueue,
        settled: list[object],
        answered: list[Answer],
        late_sessions: list[Any],
        tried_at: deque[float],
        jitter: Callable[[], float],
        ordered: bool,
        now: float,
    ) -> None:
        self.address = address
        self.identifier = identifier
        self.role = role
        self.key_id = key_id
        self.seal = seal
        self.own_random = own_random
        self.heard_at = now
        self.proven = role == wire.INITIATOR
        self.closed_by_peer = False
        self.spent = False  # messages were given up: nonces are missing for ever
        self.tried_at = tried_at  # when retransmissions and asks went out
        self.asked: list[int] = []  # for each ask: all nonces below this were asked after
        self.message_bytes = min(limits.message_bytes, terms.message_bytes_max)  # sent at most
        datagram_bytes = min(limits.datagram_bytes, terms.datagram_bytes_max)
        self._room = datagram_bytes - wire.HEADER_BYTES - seal.overhead
        self._limits = limits
        self.congestion = NewReno(datagram_bytes, limits.congestion_bytes)
        self.pacer = Pacer(datagram_bytes)
        self.recovery = Recovery(jitter)
        self.sending = SendingHalf(
            queue,
            settled,
            answered,
            credit_messages=terms.messages,
            credit_bytes=terms.bytes,
        )
        self.receiving = ReceivingHalf(limits, ordered=ordered)
        self.counters = Counters()
        self._replies_partial: Reassembly | None = None
        # An acknowledgement that is looked at after what is to be said was sent: see `catch_up`.
        self._late: tuple[wire.Received, float] | None = None
        self._late_sessions = late_sessions
        self._headers = (
            wire.HEADER.pack(wire.MESSAGES, wire.VERSION, key_id, role, identifier, 0)[:12],
            wire.HEADER.pack(wire.ACKNOWLEDGEMENT, wire.VERSION, key_id, role, identifier, 0)[:12],
        )
        self._probes = 0
        self._ask_at: float | None = None
        self._asks = 0
        self._ask_pending = False
        self._close_pending = False
        self._credit_lost = False
        self._blocked_until: float | None = None
        self._window_limited = False

    # --- shared steps

    def _progress(self) -> None:
        self._asks = 0
        self._ask_at = None

    def _send(
        self,
        letter: int,
        body: bytes,
        content: tuple[object, ...] | None,
        out: list[bytes],
        now: float,
    ) -> int:
        recovery = self.recovery
        number = recovery.next_number
        datagram = self.seal.close(self._headers[letter] + number.to_bytes(8, "big"), body)
        size = len(datagram)
        if content is not None:
            recovery.on_sent(now, size, content)
            self.congestion.in_flight += size
        else:
            recovery.next_number = number + 1
        self.counters.packets_sent += 1
        out.append(datagram)
        return size

    @property
    def _only_received(self) -> bool:
        """Whether all there is to say besides messages is one range of packets that arrived."""
        receiving = self.receiving
        return not (
            receiving.older
            or receiving.handled_pending
            or self._ask_pending
            or self._credit_lost
            or self._close_pending
            or receiving.credit_wanted
        )

    def _received_block(self, now: float) -> bytes:
        receiving = self.receiving
        receiving.unacknowledged = 0
        receiving.ack_due = None
        receiving.ack_now = False
        largest = receiving.largest
        return wire.RECEIVED_HEAD.pack(
            wire.RECEIVED,
            0,
            min(int((now - receiving.largest_at) * 1e6), DELAY_MAX),
            largest,
            largest - receiving.run_first + 1,
        )
