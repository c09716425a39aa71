"""The lane of a run, as every side sees it (SEMANTICS 3). Sans-IO."""

from __future__ import annotations

from msgservice.records import Origin


def lane_of(origin: Origin | None, sender: str, subject: str) -> tuple[str, str]:
    """Return the lane: the first sender's name, which is `sender` without origin, and the subject.

    The side that sends, the side that takes in and the one in between ask here, since a lane that
    one of them sees as two is taken back in one half only.
    """
    return (sender if origin is None else origin.sender, subject)
