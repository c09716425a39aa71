"""Lines of the log: text from outside is made fit to be shown in them here, whoever has written it.

Each line of ours has an id, the field `line` of its event, which the page for operators explains:
it stands where the line is written, and is shown behind its text.

Names, reasons and what peers say stand in lines of ours as they came. What a terminal would obey,
or what would begin a line of its own, is escaped once: by an observer that comes before those that
write. The edges add it, `tap` and `cli`; where a program begins its own logging, it does.
"""

from __future__ import annotations

from typing import Any, cast

from twisted.logger import ILogObserver, LogEvent, LogPublisher, globalLogPublisher
from twisted.python.failure import Failure

from msgservice.core.reasons import one_line, shown

OURS = __name__.partition(".")[0]
FAILURE = "failure"  # the id of what failed in a way that has no line of its own


def escape(event: LogEvent) -> None:
    """Make the text of an event of ours fit to be shown: an `ILogObserver`, for those behind it.

    Text, and errors, become one line each, and a traceback lines of what can be printed. The id of
    the line is shown behind it; a failure that nobody expected is `failure`.
    """
    namespace = event.get("log_namespace") or ""
    if namespace.partition(".")[0] != OURS:
        return
    for key, value in event.items():
        if key.startswith("log_"):
            continue
        if isinstance(value, str):
            event[key] = one_line(value)
        elif isinstance(value, BaseException):
            event[key] = one_line(str(value))
    failure = event.get("log_failure")
    if isinstance(failure, Failure):
        event["log_failure"] = _ShownFailure(failure)
        event.setdefault("line", FAILURE)
    if "line" in event and event.get("log_format"):
        event["log_format"] = f"{event['log_format']}  [{event['line']}]"


def escape_lines(publisher: LogPublisher = globalLogPublisher) -> None:
    """Let what is logged from now on be escaped, for observers that are added later. Once."""
    observer = cast("ILogObserver", escape)
    publisher.removeObserver(observer)
    publisher.addObserver(observer)


class _ShownFailure(Failure):
    """A failure whose traceback can be printed, whatever its error says."""

    def __init__(self, failure: Failure) -> None:
        # Not made anew: it is no other error, and comes from nowhere else.
        self.__dict__.update(failure.__dict__)

    def getTraceback(self, *args: Any, **options: Any) -> str:
        """Return the traceback, as text that can be printed."""
        return shown(super().getTraceback(*args, **options))
