"""Log lines about what may happen a thousand times a second: one at once, then how many more.

When they come, and how many. What they say is the business of whoever has something to say.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

PERIOD = 60.0  # seconds between two lines about the same thing
THINGS_MAX = 100  # of each kind, of which there are lines in one period; others are only counted


class Seldom:
    """The lines of a node about what may happen often, at most two a period about one thing.

    Of each kind of things there are so many lines: whoever can make one kind happen, strangers say,
    keeps no line of another kind away. Kinds are the callers' to choose, and few.
    """

    _logger = Logger()

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        # Kind and thing -> what happened since its line: how often, and how to tell the last of it.
        self._said: dict[tuple[Hashable, Hashable], tuple[int, Callable[[int], None]]] = {}
        self._kinds: Counter[Hashable] = Counter()  # things of each kind in there
        self._beyond = 0
        self._timer: IDelayedCall | None = None
        self._is_stopped = False

    def say(
        self, thing: Hashable, tell: Callable[[int], None], count: int = 1, *, kind: Hashable = ""
    ) -> None:
        """Write a line about `thing`, which happened `count` times: now, or when its period ends.

        `tell(count)` writes it. What comes before the period has ended is told by the last of
        these, once, with the number of all. `kind`: things of one kind are counted together.
        """
        if self._is_stopped:
            return
        key = (kind, thing)
        known = self._said.get(key)
        if known is not None:
            self._said[key] = (known[0] + count, tell)
        elif self._kinds[kind] < THINGS_MAX:
            self._kinds[kind] += 1
            self._said[key] = (0, tell)
            tell(count)
        else:
            self._beyond += count
        if self._timer is None:
            self._timer = self._clock.callLater(PERIOD, self._period_over)

    def _period_over(self) -> None:
        self._timer = None
        if self._flush():
            self._timer = self._clock.callLater(PERIOD, self._period_over)

    def _flush(self) -> bool:
        """Tell what was counted; return whether there was any."""
        waiting = {thing: one for thing, one in self._said.items() if one[0]}
        for count, tell in waiting.values():
            tell(count)
        if self._beyond:
            self._logger.info(
                "{count} more such lines were left out: a minute has lines about {things} things of"
                " a kind",
                line="lines-left-out",
                count=self._beyond,
                things=THINGS_MAX,
            )
        self._beyond = 0
        self._said = {key: (0, tell) for key, (_, tell) in waiting.items()}
        self._kinds = Counter(kind for kind, _ in waiting)
        return bool(waiting)

    def stop(self) -> None:
        """Tell what was counted, and nothing from now on: no timer is left behind."""
        self._is_stopped = True
        self._flush()
        self._said = {}
        self._kinds.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
