"""The errors of sessions; those of the rest of the service are in `msgservice.errors`."""

from __future__ import annotations

from msgservice.errors import Ambiguous, MsgServiceError


class SessionError(MsgServiceError):
    """Anything that sessions raise on purpose."""


class BadPayload(SessionError, ValueError):
    """A payload that is no item, which ends its connection. Says why, never what was in it."""


class BadControl(BadPayload):
    """A control message with a field that cannot be: `field` names it."""

    def __init__(self, field: str, why: str) -> None:
        super().__init__(f"{field}: {why}")
        self.field, self.why = field, why


class BadAck(SessionError):
    """An acknowledgement of what was never sent in its session: this connection ends."""


class QueueFull(SessionError):
    """The queue towards one side has no room; nothing of the message was taken.

    `limit`: which limit of `SessionLimits`; `size_max`: its value.
    """

    def __init__(self, limit: str, size_max: int) -> None:
        super().__init__(f"the queue is full: limit {limit} = {size_max} reached")
        self.limit, self.size_max = limit, size_max


class NotJoined(SessionError):
    """A remote that is not there, or a remote whose central is not: nothing was sent."""


class RemoteLeft(SessionError, Ambiguous):
    """The session ended before the other side said what became of a message: it may have had it."""
