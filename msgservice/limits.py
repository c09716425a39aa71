"""Every limit of msgservice with its default, its unit and its reason.

One frozen value, `Limits`, is made from the configuration and handed down; nothing reads a
module constant that an operator may want to change. `docs/configuration.md` lists them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

from msgservice.errors import BadValue

TIME_DAYS_MAX = 366  # days that a message may wait by what its sender asks
INTEGER_MAX = 2**53 - 1  # exact in JSON and in every language's double
NAME_BYTES_MAX = 255  # names and subjects, UTF-8
BATCH_INDEX_BITS = 16  # position = batch number << 16 | index in batch
FRAME_OVERHEAD = 8 * 1024  # what a frame may be longer than its messages
MESSAGE_OVERHEAD = 1024  # what the body limit is below `max_batch`
MAX_BATCH_MIN = 4 * MESSAGE_OVERHEAD  # of a node: most of it is left for bodies
# What a side makes may be less (`batch_messages`); what another has made is taken up to this.
BATCH_MESSAGES_MAX = 4096
# Of one transaction of a stored inbox: it is committed before more are handled, so that the reactor
# gets its turn and an ACK does not wait for what came long after it.
TRANSACTION_MESSAGES_MAX = 4096
MAX_BATCH_MAX = 64 * 1024 * 1024
# A window is held in memory for each side of each connection: no more may be asked for.
WINDOW_MESSAGES_MAX = 1024 * 1024
WINDOW_BYTES_MAX = 4 * MAX_BATCH_MAX
# What a batch holds besides its messages: the value, its frame, its place. Measured: a million
# batches of one message would otherwise count a quarter of what they take.
BATCH_OVERHEAD = 1024
# Ranges of one RESUME, over all its frames. What a peer may be left to hold must be no more: it
# could never come back.
RESUME_RANGES_TOTAL_MAX = 100_000
# A sender that is away and did not say that it has ended is known so long at least, but in a crowd
# (SEMANTICS 5).
SENDER_KNOWN_SECONDS = 3600
# Settled history makes room for sets of receivers that find no place at most this often (SEMANTICS
# 19): each time costs a look at all sets.
PLACES_SECONDS = 1
RUNS_REMEMBERED = 1024  # runs of an incarnation whose content is compared (SEMANTICS 4)

# What may be set at most; those not named here are bounded by their kind.
HIGHEST: dict[str, float] = {
    "max_batch": MAX_BATCH_MAX,
    "batch_messages": BATCH_MESSAGES_MAX,
    "window_messages": WINDOW_MESSAGES_MAX,
    "window_bytes": WINDOW_BYTES_MAX,
    "exceptions": RESUME_RANGES_TOTAL_MAX,
    "sender_ranges": RESUME_RANGES_TOTAL_MAX,
    "sender_days": 3660.0,
    "finished_days": 3660.0,
}
SECONDS_MAX = 10 * 366 * 86400.0  # ten years: no timer, and no number of milliseconds, overflows

# What may be set at least: with less something does not work at all, or stands still as soon as
# there is traffic. Those not named here are counts, and work from 1 on.
_SECONDS_MIN = 0.1
_DELAY_MIN = 0.01
LOWEST: dict[str, float] = {
    "max_batch": MAX_BATCH_MIN,
    "window_bytes": MAX_BATCH_MIN,
    "hello_timeout": _SECONDS_MIN,
    "frame_timeout": _SECONDS_MIN,
    "heartbeat": _SECONDS_MIN,
    "silence": 1.5,  # a PING comes after one heartbeat, and needs its way
    "write_timeout": _SECONDS_MIN,
    "close_timeout": _SECONDS_MIN,
    "bye_timeout": _SECONDS_MIN,
    "replaced_timeout": _SECONDS_MIN,
    "unauthenticated_bytes": 4096,  # a HELLO with its name and some patterns
    "answer_bytes": 4096,
    "login_delay": _DELAY_MIN,
    "link_delay_min": _DELAY_MIN,
    "link_delay_max": _DELAY_MIN,
    "link_healthy": _SECONDS_MIN,
    "retry_delay_min": _DELAY_MIN,
    "retry_delay_max": _DELAY_MIN,
    "asked_delay_max": _DELAY_MIN,
    "away_max": _SECONDS_MIN,  # or 0
    "idempotency_key_seconds": _SECONDS_MIN,
    "tail_bytes": 64 * 1024,
    "uncommitted_bytes": 64 * 1024,
    "loaded_bytes": 64 * 1024,
    "audiences": 4,  # three quarters for `to`, and one is left for patterns
    "replacement_window": _SECONDS_MIN,
    "replacement_hold": _SECONDS_MIN,
    "max_bytes": 256 * 1024,  # half of it is one receiver's backlog, a quarter its dead letters
    "backlog_bytes": 64 * 1024,  # or 0
    "reserve_bytes": 1024 * 1024,  # a quarter of it is the write-ahead log of a checkpoint
    "kept_batches": 1000,
    "finished_days": 0.05,
    "sender_days": 0.05,  # more than `SENDER_KNOWN_SECONDS`
    "dead_bytes": 64 * 1024,  # or 0
    "dead_bytes_total": 64 * 1024,  # or 0
    "http_body_bytes": 4096,
    "http_bytes": 64 * 1024,
    "http_event_bytes": 64 * 1024,
    "http_idle": _SECONDS_MIN,
    "http_login_idle": _SECONDS_MIN,
    "http_login_seconds": _SECONDS_MIN,
    "output_bytes": 4096,
    "stop_timeout": _SECONDS_MIN,
}
ZERO_ALLOWED = frozenset(
    {
        "backlog_bytes",
        "away_max",
        "keep_seconds",
        "keep_bytes",
        "dead_bytes",
        "dead_bytes_total",
        "to_audiences",
    }
)


# Limits of which the first may not be above the second: together they could not both hold.
ORDERED: list[tuple[str, str]] = [
    ("link_delay_min", "link_delay_max"),  # delays only grow
    ("retry_delay_min", "retry_delay_max"),
    ("max_batch", "max_bytes"),  # it would be refused "for now", for ever
    ("backlog_bytes", "max_bytes"),  # the log would be full before, for all receivers
]
# Of these the first is a part of the second, which must leave room for the rest.
PARTS: list[tuple[str, str]] = [
    ("dead_bytes", "max_bytes"),
    ("dead_bytes_total", "max_bytes"),
    ("to_audiences", "audiences"),
]


def is_integer(value: object) -> bool:
    """Whether a value is an integer, of a class derived from `int` too, and no boolean."""
    return isinstance(value, int) and not isinstance(value, bool)


def messages_and_bytes(name: str, value: Any) -> tuple[int, int]:
    """Return a window, or another bound in messages and bytes; `BadValue` where it is none."""
    if (
        not isinstance(value, tuple | list)
        or len(value) != 2
        or not all(is_integer(number) and 0 < number <= INTEGER_MAX for number in value)
    ):
        raise BadValue(name, f"must be (messages, bytes), integers above 0, not {value!r}")
    return int(value[0]), int(value[1])


def wrong_with(name: str, value: float) -> str | None:
    """The reason why a limit cannot have this value, whatever the others are; None: it can."""
    zero_allowed = name in ZERO_ALLOWED
    zero = ", or 0" if zero_allowed and name in LOWEST else ""
    is_whole = type(_DEFAULTS[name]) is int
    lowest = LOWEST.get(name, 0 if zero_allowed or not is_whole else 1)
    highest = HIGHEST.get(name, INTEGER_MAX if is_whole else SECONDS_MAX)
    if not is_integer(value) and (is_whole or not isinstance(value, float)):
        return f"must be {'an integer' if is_whole else 'a number'}, not {value!r}"
    if math.isnan(value):
        return "must be a number"
    if value > highest:
        return f"must be at most {_plain(highest)}, not {value}"
    if value < lowest and (value or not zero_allowed):
        return f"must be at least {_plain(lowest)}{zero}, not {value}"
    if not value and not zero_allowed:
        return "must be above 0"
    return None


@dataclass(frozen=True, slots=True)
class Contradiction:
    """Two limits that cannot hold together, and what must be of each as the other is."""

    name: str
    other: str
    reason: str  # what `name` must be
    other_reason: str


def contradictions(limits: Any) -> list[Contradiction]:
    """The pairs that contradict each other in `limits`, which has the fields of `Limits`."""
    found = []
    for pairs, at_most, at_least in (
        (ORDERED, "at most", "at least"),
        (PARTS, "less than", "more than"),
    ):
        for name, other in pairs:
            value, bound = getattr(limits, name), getattr(limits, other)
            if value < bound or (value == bound and pairs is ORDERED):
                continue
            found.append(
                Contradiction(
                    name,
                    other,
                    f"must be {at_most} {other}, which is {bound}, not {value}",
                    f"must be {at_least} {name}, which is {value}, not {bound}",
                )
            )
    return found


def _plain(number: float) -> str:
    return str(int(number)) if number == int(number) else str(number)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """Messages and bytes per second (None: no limit), and how many seconds' worth at once."""

    messages: float | None = None
    bytes: float | None = None
    burst_seconds: float = 1.0

    def __post_init__(self) -> None:
        """Refuse values that would let nothing through, ever."""
        for name in ("messages", "bytes", "burst_seconds"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise BadValue(name, f"must be above 0 and finite, not {value}")

    @property
    def limits(self) -> bool:
        """Whether it limits anything."""
        return self.messages is not None or self.bytes is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits that an operator may set, in `[limits]` of the configuration; all in plain units."""

    # --- frames and batches
    max_batch: int = 1024 * 1024  # bytes of one batch's messages, at most 64 MiB
    batch_messages: int = BATCH_MESSAGES_MAX  # messages of one batch that is made here
    # --- what a side takes unanswered (HELLO `window`)
    window_messages: int = 65_536  # at most 1,048,576
    window_bytes: int = 16 * 1024 * 1024  # at most 256 MiB
    # --- sessions, seconds
    hello_timeout: float = 10.0
    frame_timeout: float = 30.0  # half a frame
    heartbeat: float = 20.0  # PING when nothing was sent for so long
    silence: float = 2.5  # heartbeats without a byte before a connection counts as half-open
    write_timeout: float = 30.0  # a peer that does not read
    close_timeout: float = 5.0  # from closing a connection until it is aborted
    bye_timeout: float = 30.0  # what is in flight may still be answered after BYE
    replaced_timeout: float = 1.0  # a replaced connection is aborted within
    # --- connections
    connections: int = 10_000  # open at once on a node
    # Taken from a peer before its session is open, in all; the ranges of a RESUME apart.
    unauthenticated_bytes: int = 64 * 1024
    answer_bytes: int = 1024 * 1024  # answers that wait for a peer to read, then it is not read
    answering: int = 16  # REQUEST frames of one connection that are answered at once
    # --- logins
    login_failures: int = 10  # a minute, of one user from one address; then none is looked at
    address_failures: int = 100  # a minute, from one address
    login_delay: float = 1.0  # seconds until one that failed is told so
    login_checks: int = 100  # passwords said over HTTP that are looked at, or wait for it
    # --- dialling, seconds
    link_delay_min: float = 0.5
    link_delay_max: float = 30.0
    link_healthy: float = 60.0  # a connection that lived so long resets the backoff
    # --- retries of a message (SEMANTICS 14)
    retry_delay_min: float = 1.0
    retry_delay_max: float = 300.0
    max_attempts: int = 20
    max_losses: int = 5  # of a message that is alone, by a receiver that lives without it
    asked_delay_max: float = 86_400.0  # that a receiver's NACK may ask for
    # --- memory
    tail_bytes: int = 48 * 1024 * 1024  # recent batches kept in RAM, with what they cost besides
    uncommitted_bytes: int = 32 * 1024 * 1024  # taken in, not committed; then producers are paused
    loaded_bytes: int = 256 * 1024 * 1024  # for all receivers: sent and not answered, or to be sent
    # --- tables
    exceptions: int = 10_000  # ranges per receiver (SEMANTICS 20), at most 100,000
    audiences: int = 10_000
    to_audiences: int = 0  # of these, that `to` may make; 0: three quarters
    sender_audiences: int = 1_000  # of these, that the `to` of one sender may make
    receivers: int = 10_000
    away_max: float = 0.0  # seconds away until a receiver is removed; 0: it never is
    promises: int = 100_000  # runs with one that is open; beyond it, one more is refused for now
    idempotency_keys: int = 1_000_000  # remembered; beyond it, a message with a new one is refused
    idempotency_key_seconds: float = 86_400.0  # how long each is, by the age of the log
    retained: int = 50_000  # subjects of which a message is retained
    retained_bytes: int = 256 * 1024 * 1024  # of these messages
    retained_at_join: int = 10_000  # of them, that one receiver gets at first
    retained_at_join_bytes: int = 16 * 1024 * 1024
    removed_receivers: int = 10_000  # that something in the log still refers to
    subjects: int = 10_000  # subjects whose audience is remembered in RAM
    patterns: int = 1_000  # patterns of one receiver
    pattern_tokens: int = 100_000  # of the patterns of all receivers together
    requests: int = 1_000  # pending at once on one connection
    responding: int = 4_096  # of them, that one who answers is given at once, whatever it takes
    pending_requests: int = 100_000  # of all connections together, that wait for who answers
    # --- replacements (SEMANTICS 27)
    replacements: int = 3
    replacement_window: float = 10.0
    replacement_hold: float = 30.0
    # --- the log
    max_bytes: int = 16 * 1024 * 1024 * 1024  # batches not yet removed
    backlog_bytes: int = 0  # per receiver; 0: half of max_bytes
    reserve_bytes: int = 64 * 1024 * 1024
    kept_batches: int = 64 * 1024 * 1024  # whose rows are kept, from the oldest open one on
    keep_seconds: float = 3600.0  # retention: what all have settled is kept so long …
    keep_bytes: int = 256 * 1024 * 1024  # … and at most so much of it
    finished_days: float = 7.0  # what became of messages that have left the log is kept so long
    finished_rows: int = 1_000_000  # of that: of ids, and of states that producers have heard
    sender_days: float = 7.0  # an incarnation away so long, with all settled, is forgotten
    incarnations: int = 1_000  # remembered of senders that are away with all settled
    sender_ranges: int = 10_000  # taken above the floor, of one incarnation; at most 100,000
    dead_bytes: int = 0  # dead letters of one receiver; 0: a quarter of max_bytes
    dead_bytes_total: int = 0  # of all receivers; 0: 3/8 of max_bytes, or dead_bytes if more
    # --- what is shown of it
    observed_a_second: int = 500  # receivers that are looked at while somebody watches
    metrics_receivers: int = 1_000  # that have series of their own in /metrics
    # --- HTTP
    http_body_bytes: int = 16 * 1024 * 1024  # of one request
    http_bytes: int = 64 * 1024 * 1024  # of the bodies of all requests that are not answered
    http_waits: int = 1_000  # posts that wait until their messages are acknowledged; and requests
    http_readers: int = 100  # of events
    http_events: int = 10_000  # that are kept for readers that come back
    http_event_bytes: int = 16 * 1024 * 1024  # … and what they take
    http_idle: float = 60.0  # seconds that a connection may be kept between two requests
    http_logins: int = 1_000  # of browsers
    user_http_logins: int = 20  # … of one user
    http_login_idle: float = 3600.0  # seconds after which a login that is not used ends
    http_login_seconds: float = 12 * 3600.0  # … and one that is used
    # --- what the node says on standard output and error
    output_bytes: int = 1024 * 1024  # that wait for their reader; more is dropped
    # --- stopping
    stop_timeout: float = 10.0

    def __post_init__(self) -> None:
        """Refuse values that cannot work, alone or together, naming the field."""
        for field in fields(self):
            reason = wrong_with(field.name, getattr(self, field.name))
            if reason is not None:
                raise BadValue(field.name, reason)
        for wrong in contradictions(self):
            raise BadValue(wrong.name, wrong.reason)

    @property
    def frame_bytes(self) -> int:
        """The longest frame, in bytes."""
        return self.max_batch + FRAME_OVERHEAD

    @property
    def body_bytes(self) -> int:
        """The largest message body, in bytes."""
        return self.max_batch - MESSAGE_OVERHEAD

    @property
    def to_audiences_max(self) -> int:
        """The number of audiences that `to` may make; the rest is for those that patterns make."""
        return self.to_audiences or -(-self.audiences * 3 // 4)

    @property
    def backlog_bytes_max(self) -> int:
        """The backlog of one receiver at most, in bytes (SEMANTICS 18)."""
        return self.backlog_bytes or self.max_bytes // 2

    @property
    def dead_bytes_max(self) -> int:
        """The dead letters of one receiver at most, in bytes, until it is paused."""
        return self.dead_bytes or self.max_bytes // 4

    @property
    def dead_bytes_total_max(self) -> int:
        """The dead letters of all receivers at most, in bytes, until who makes more is paused."""
        # Less than what the backlog of one subject, half of it, leaves for everybody else.
        return self.dead_bytes_total or max(self.dead_bytes_max, self.max_bytes * 3 // 8)


_DEFAULTS: dict[str, Any] = {field.name: field.default for field in fields(Limits)}
