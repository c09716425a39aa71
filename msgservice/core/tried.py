"""The attempts of messages that are not loaded: unloaded again, or from before a start. Sans-IO.

They are ranges of sequences, cut as they were when they failed; the runs that hold them may be cut
otherwise when they are loaded. Of what is loaded, the run itself knows its attempts (`core.runs`).
"""

from __future__ import annotations

from collections.abc import Mapping

from msgservice.core.ranges import Range

Attempts = tuple[int, float, str]
"""How many, when the next is due (seconds of the owner's monotonic clock), why the last failed."""


class Tried:
    """The attempts of messages that are not loaded, by range; each is taken once, rising."""

    __slots__ = ("_by_range", "_falling")

    def __init__(self) -> None:
        self._by_range: dict[Range, Attempts] = {}
        self._falling: list[Range] = []  # the keys of that

    def __len__(self) -> int:
        """The number of ranges."""
        return len(self._by_range)

    def remember(self, attempts: Mapping[Range, Attempts]) -> None:
        """Messages with these attempts are not loaded for now."""
        self._by_range.update(attempts)
        self._falling = sorted(self._by_range, reverse=True)

    def take(self, first: int, last: int) -> list[tuple[int, int, Attempts]]:
        """Take out the attempts of `first` to `last`, which are loaded now, and of what is lower.

        What is lower and was not loaded is settled, or gone. What reaches beyond `last` is left:
        the run that is loaded is a part of what was tried, and the rest was final, or follows.
        """
        falling = self._falling
        found: list[tuple[int, int, Attempts]] = []
        behind: dict[Range, Attempts] = {}
        while falling and falling[-1][0] <= last:
            low, high = key = falling.pop()
            tried = self._by_range.pop(key)
            if high > last:
                behind[last + 1, high] = tried
            if high >= first:
                found.append((max(low, first), min(high, last), tried))
        for key, tried in behind.items():
            if key not in self._by_range:
                self._by_range[key] = tried
                falling.append(key)
        return found
