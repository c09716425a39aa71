"""The outcome of a handler, as the wire has it: an action, a delay, a reason."""

from __future__ import annotations

import math

from twisted.python import reflect
from twisted.python.failure import Failure

from msgservice.errors import Reject, Retry
from msgservice.limits import INTEGER_MAX
from msgservice.message import Action

TRACEBACK_CHARS_MAX = 3000  # of the reason of a NACK; the innermost part of it says most


class Later(Exception):
    """The outcome of a message that is given back untried: no attempt of it is counted."""


def judge(failure: Failure) -> tuple[Action, int, str] | None:
    """Return what the sender is asked for, or None for an error that the handler did not mean.

    Action, delay in ms (0: the sender's own backoff), reason.
    """
    error = failure.value
    if isinstance(error, Retry):
        delay = error.delay
        # Raised by a program: another type than the signature has must not end in our own code.
        if delay is not None and not isinstance(delay, (int, float)):
            return None
        return Action.RETRY, _milliseconds(delay), _text(error.reason)
    if isinstance(error, Reject):
        return Action.DEAD, 0, _text(error.reason)
    if isinstance(error, Later):
        return Action.LATER, 1, _text(error)  # 0 would be a backoff
    return None


def _text(reason: object) -> str:
    """Return a reason as an exact `str`; one of another type, such as an error, as its text."""
    if isinstance(reason, str):
        return str.__str__(reason)
    if isinstance(reason, Exception):
        return f"{type(reason).__name__}: {reflect.safe_str(reason)}"
    text: str = reflect.safe_repr(reason)
    return text


def _milliseconds(delay: float | None) -> int:
    """Return a delay as NACK has it: 0 is the sender's own backoff, so no delay at all is 1 ms."""
    if delay is None or delay != delay or delay in (math.inf, -math.inf):
        return 0
    return round(min(max(1, delay * 1000), INTEGER_MAX))


def describe_failure(failure: Failure) -> str:
    """Return the error, then the innermost part of the traceback, as text for people."""
    kind = failure.type.__name__ if failure.type is not None else "Failure"
    traceback = failure.getTraceback()
    if len(traceback) > TRACEBACK_CHARS_MAX:
        traceback = "…" + traceback[-TRACEBACK_CHARS_MAX:]
    return f"{kind}: {failure.getErrorMessage()}"[:500] + "\n" + traceback
