"""The limits of sessions, and why they are what they are."""

from __future__ import annotations

from dataclasses import dataclass

from msgservice.arguments import check_limits

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionLimits:
    """The limits of a central or a remote; times in seconds, sizes in bytes."""

    payload_bytes: int = 64 * MIB
    """One message as it travels. A longer prefix ends the connection before it is read."""
    queue_messages: int = 10_000
    """Messages that wait, or wait for an answer, towards one side; more are refused."""
    queue_bytes: int = 64 * MIB
    """… and this is how many bytes those may have."""
    connections_max: int = 10_000
    """Connections of one listener; those beyond are closed as they are accepted."""
    connections_per_host: int = 5_000
    """Connections of one host, of those."""
    first_seconds: float = 30.0
    """From a connection to its first whole payload; then it may say nothing for as long as it
    likes. Not at a remote without acknowledgements, to which a central has nothing to say at
    first."""
    remotes_max: int = 10_000
    """Remotes of one central; a hello beyond is refused. Those of one host that have not joined may
    be half of it."""
    remotes_per_host: int = 1_000
    """Remotes of one host, whatever their ids, joined or not; a hello beyond is refused."""
    sessions_kept: int = 10_000
    """Ended sessions of which the central remembers how far it had come, oldest forgotten first; so
    too of those that have not heard of failures, where these are more than `queue_bytes` over all.
    """
    unhandled_messages: int = 1_000
    """Messages of one connection whose handlers have not ended; it is not read from meanwhile. Who
    acknowledges has no more than that on their way, so that acknowledgements are read."""
    unhandled_bytes: int = 4 * MIB
    """The same in bytes, as they travelled. One message is always taken."""
    decoding_bytes: int = 256 * MIB
    """Payloads being decoded or handled over all connections; none is read from meanwhile, but of
    remotes that have joined, which have `unhandled_bytes` each. Those that are not whole may have
    as much: above, the one begun first ends with its connection."""
    thread_bytes: int = 64 * 1024
    """A payload above this is decoded on a thread."""
    port_min: int = 1_024
    """The lowest port that a hello may announce."""
    dial_timeout: float = 5.0
    """One attempt to connect."""
    join_timeout: float = 10.0
    """From the connection dialled back to the remote's `joined`, while no message of one that was
    there before arrives; and for an answer of `accept`."""
    redial_seconds: float = 30.0
    """For how long a central dials a remote that went away; then it has left."""
    write_timeout: float = 60.0
    """A side that takes nothing of what waits for it for so long is disconnected."""
    ack_messages: int = 1_000
    """An acknowledgement waits for others to the end of the reactor's turn, or until so many."""
    stop_seconds: float = 10.0
    """How long a stop waits for handlers that run, and then as long for what is being written."""

    @property
    def window(self) -> tuple[int, int]:
        """The window of the other side: messages, and bytes of them, on their way unanswered."""
        return int(self.unhandled_messages), int(self.unhandled_bytes)

    def __post_init__(self) -> None:
        check_limits(self)  # with a window of 0 nobody could send anything
