"""The progress messages of a long computation, and a `Monitor` that has a method for each.

They are plain objects that travel as `.class`, `.version` and `.state` (`content`). The header of
a computation's stream is normally a `Join`, so that who comes late learns where it is.
"""

from __future__ import annotations

from typing import Any

from msgservice.faces.streams.content import register

_PREFIX = "park.monitor."  # as the original's programs name them


class MonitorMessage:
    """A progress message: two are equal where their class and all that they say are."""

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and vars(other) == vars(self)

    __hash__ = None  # type: ignore[assignment]  # it may be changed, as a header is

    def __repr__(self) -> str:
        said = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({said})"


class Start(MonitorMessage):
    """The computation has begun."""


class Join(MonitorMessage):
    """The state for who comes late: `complete` of `total` steps, and the best `result` so far."""

    def __init__(self, k: float, n: float, partial: Any = None) -> None:
        self.complete, self.total, self.result = k, n, partial


class Progress(MonitorMessage):
    """The computation has done `complete` of `total`, in `units` where they have a name."""

    def __init__(self, k: float, n: float, units: str | None = None) -> None:
        self.complete, self.total, self.units = k, n, units


class Improvement(MonitorMessage):
    """A better `result` was found."""

    def __init__(self, result: Any) -> None:
        self.result = result


class Complete(MonitorMessage):
    """The computation has ended with `result`."""

    def __init__(self, result: Any) -> None:
        self.result = result


class Error(MonitorMessage):
    """The computation has failed; `trace` says where."""

    def __init__(self, trace: str) -> None:
        self.trace = trace


class Abort(MonitorMessage):
    """The computation was ended before its time; `result`: the best until then."""

    def __init__(self, result: Any = None) -> None:
        self.result = result


class Log(MonitorMessage):
    """A `record` for people: plain data."""

    def __init__(self, record: Any) -> None:
        self.record = record


for _class in (Start, Join, Progress, Improvement, Complete, Error, Abort, Log):
    register(_class, _PREFIX + _class.__name__)


class Monitor:
    """A queue that calls a method of its own for each message that is put.

    `onMonitorProgress(message)` for a `Progress`, and so on by the name of the class; where there
    is no such method, `onMonitorMessage(message)`.
    """

    def put(self, message: Any) -> None:
        """Call the method for this message."""
        method = getattr(self, f"onMonitor{type(message).__name__}", None)
        (method or self.onMonitorMessage)(message)

    def onMonitorMessage(self, message: Any) -> None:
        """Take a message that has no method of its own; nothing, unless overridden."""
