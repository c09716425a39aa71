"""The names behind an audience, in frames that every side takes, and back. Sans-IO.

A subject may have tens of thousands of receivers; their names travel in parts, each of which fits
in any frame (PROTOCOL: AUDIENCE). What an audience is stands in `records`.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgservice.core.frames import AudienceFrame
from msgservice.errors import MalformedFrame

PART_BYTES = 8000  # of the names of one frame: fits in 8 KiB, so in any frame that a side takes
NAME_HEADER = 2  # bytes of msgpack before a name, at most
# What both sides go by, whatever their own limits are: a node takes so many sets for told on one
# connection, then tells them anew, and a set that has gone may have its number taken away. So a
# producer that keeps the last of both knows every number that it is told.
TOLD_MAX = 10_000
# The audiences of what has gone are the log's no more: they have numbers of their own, the highest
# there are, for so many sets at once; then the number of the oldest is given to another set.
GONE_AUDIENCES_MAX = 1000
# Names of one audience that a producer takes at least: a node may have more receivers than the
# producer's own limit says.
AUDIENCE_NAMES_MAX = 100_000


def split_audience(number: int, names: Sequence[str]) -> list[AudienceFrame]:
    """Return the frames that name an audience: all but the last say that `more` follows."""
    frames: list[AudienceFrame] = []
    part: list[str] = []
    size = 0
    for name in names:
        size += len(name.encode()) + NAME_HEADER
        if size > PART_BYTES:
            frames.append(AudienceFrame(number, part, True))
            part, size = [], len(name.encode()) + NAME_HEADER
        part.append(name)
    frames.append(AudienceFrame(number, part))
    return frames


class AudienceParts:
    """Puts the parts of one connection together, `names_max` names in one audience at most."""

    __slots__ = ("_names", "_names_max", "_number")

    def __init__(self, names_max: int) -> None:
        self._names_max = names_max
        self._number: int | None = None  # of the audience whose parts are coming
        self._names: list[str] = []

    def receive(self, frame: AudienceFrame) -> tuple[int, list[str]] | None:
        """Take a part; return the number and all names once the last has come.

        Raises `MalformedFrame`.
        """
        if self._number not in (None, frame.audience):
            raise MalformedFrame(f"AUDIENCE {frame.audience} amid the parts of {self._number}")
        self._names += frame.receivers
        if len(self._names) > self._names_max:
            raise MalformedFrame(f"AUDIENCE of more than {self._names_max} receivers")
        if frame.more:
            self._number = frame.audience
            return None
        names, self._names, self._number = self._names, [], None
        if len(set(names)) != len(names):
            raise MalformedFrame(f"AUDIENCE {frame.audience}: a receiver is named twice")
        return frame.audience, names
