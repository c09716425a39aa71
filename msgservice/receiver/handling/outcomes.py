"""What a handler said, as the wire has it: an action, a delay, a reason."""

from __future__ import annotations

import math

from twisted.python.failure import Failure

from msgservice.errors import Reject, Retry
from msgservice.limits import INTEGER_MAX
from msgservice.message import Action

TRACEBACK_CHARS_MAX = 3000  # of the reason of a NACK; the innermost part of it says most


def judge(failure: Failure) -> tuple[Action, int, str] | None:
    """Return what the sender is asked for, or None for an error that the handler did not mean.

    Action, delay in ms (0: the sender's own backoff), reason.
    """
    error = failure.value
    if isinstance(error, Retry):
        return Action.RETRY, _milliseconds(error.delay), error.reason
    if isinstance(error, Reject):
        return Action.DEAD, 0, error.reason
    return None


def _milliseconds(delay: float | None) -> int:
    """Return a delay as NACK has it: 0 is the sender's own backoff, so no delay at all is 1 ms."""
    if delay is None or not math.isfinite(delay):
        return 0
    return min(max(1, round(delay * 1000)), INTEGER_MAX)


def describe_failure(failure: Failure) -> str:
    """Return the error, then the innermost part of the traceback, as text for people."""
    kind = failure.type.__name__ if failure.type is not None else "Failure"
    traceback = failure.getTraceback()
    if len(traceback) > TRACEBACK_CHARS_MAX:
        traceback = "…" + traceback[-TRACEBACK_CHARS_MAX:]
    return f"{kind}: {failure.getErrorMessage()}"[:500] + "\n" + traceback
