"""The lane of a run, as every side sees it (SEMANTICS 3). Sans-IO."""

from __future__ import annotations

from msgservice.records import Origin


def lane_of(origin: Origin | None, sender: str, subject: str) -> tuple[str, str]:
    """Return the lane: the first sender's name, which is `sender` without origin, and the subject.

    The outlet of a node and the inbox behind it ask here, since a lane that one of them sees as two
    is taken back in one half only. A producer has no other sender's runs, so its lanes are subjects
    alone, and so are an ingress's, which takes no origin; `acceptance` goes by incarnation as well,
    for runs of one group only.
    """
    return (sender if origin is None else origin.sender, subject)
