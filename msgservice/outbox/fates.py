"""The fates of rows that were handed over: what their receipts say, as ranges of sequences.

Runs are followed, not messages: a run that has news is looked at once, however much came, and what
has come to its end of it is told once. Only so many runs are followed at a time; of the others the
outbox's file knows when they have ended (`client.open_receipts`), and they are followed then.

Who writes the fates into the table is `relay`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import msgspec
from twisted.internet.defer import Deferred

from msgservice.client.handed import HandedRun
from msgservice.client.receipt import Wait
from msgservice.core.ranges import Range, RangeSet
from msgservice.errors import Ambiguous, ClientClosed, Expired, LogWentBack, PeerForgot
from msgservice.message import Status
from msgservice.outbox.sql import ACKNOWLEDGED
from msgservice.records import PROMISE

FOLLOWED_RUNS = 10_000  # some 2 KiB of memory each
LOOKED_AT = 2_000  # messages that are looked at one by one in a turn


class Fate(NamedTuple):
    """The fate of sequences `first` to `last`. `receivers`: JSON, the state at each; or None."""

    first: int
    last: int
    state: str
    receivers: str | None = None
    reason: str | None = None


class Fates:
    """The runs that are followed. `news` is called when there is something to take."""

    def __init__(self, news: Callable[[], None], *, followed_max: int = FOLLOWED_RUNS) -> None:
        self._news = news
        self._followed_max = followed_max
        self._told: dict[HandedRun, RangeSet] = {}  # of the runs that are followed: what was taken
        self._waits: dict[HandedRun, Deferred[Any]] = {}
        self._changed: dict[HandedRun, None] = {}
        self._ranges = RangeSet()  # that are followed, or taken and not written yet

    def __len__(self) -> int:
        """The number of runs that are followed."""
        return len(self._told)

    @property
    def has_news(self) -> bool:
        """Whether there may be something to take."""
        return bool(self._changed)

    @property
    def has_room(self) -> bool:
        """Whether more runs can be followed without letting go of one."""
        return len(self._told) < self._followed_max

    def unfollowed(self, first: int, last: int) -> list[Range]:
        """Return the parts of these that nobody follows."""
        return self._ranges.missing(first, last)

    def follow(self, run: HandedRun) -> None:
        """Follow a run; where they are too many, the one that was followed for longest goes."""
        if run in self._told:
            return
        if not self.has_room:
            self._drop(next(iter(self._told)))
        self._told[run] = RangeSet()
        self._ranges.add(run.first, run.last)
        self._change(run)

    def take(self) -> list[Fate]:
        """Return what has come to its end since, rising within each run; it is told once."""
        fates: list[Fate] = []
        budget = LOOKED_AT
        while self._changed and budget > 0:
            run = next(iter(self._changed))
            del self._changed[run]
            told = self._told[run]
            names = run.acknowledged_by() if not told else None
            if names is not None:
                _add(fates, Fate(run.first, run.last, ACKNOWLEDGED, _all_acknowledged(names)))
                self._end(run)
                continue
            left = told.missing(run.first, run.last)
            for first, last in left:
                budget -= last - first + 1
                for sequence in range(first, last + 1):
                    fate = _fate_of(run, sequence)
                    if fate is not None:
                        told.add(sequence, sequence)
                        _add(fates, fate)
            if told.covers(run.first, run.last):
                self._end(run)
            else:
                self._wait(run)
        return fates

    def written(self, fates: list[Fate]) -> None:
        """These are in the table: nobody need follow them any more."""
        for fate in fates:
            self._ranges.remove(fate.first, fate.last)

    def close(self) -> None:
        """Follow nothing any more."""
        for run in list(self._told):
            self._drop(run)

    # --- inside

    def _wait(self, run: HandedRun) -> None:
        waiting = self._waits[run] = run.watch(Wait.NEWS, run.first, run.last)
        waiting.addCallbacks(lambda _: self._change(run), lambda _: None)

    def _change(self, run: HandedRun) -> None:
        self._waits.pop(run, None)
        if run in self._told:
            self._changed[run] = None
            self._news()

    def _end(self, run: HandedRun) -> None:
        self._told.pop(run, None)

    def _drop(self, run: HandedRun) -> None:
        told = self._told.pop(run)
        self._changed.pop(run, None)
        for first, last in told.missing(run.first, run.last):
            self._ranges.remove(first, last)
        waiting = self._waits.pop(run, None)
        if waiting is not None:
            waiting.cancel()


def _add(fates: list[Fate], fate: Fate) -> None:
    """Add a fate, to the range before it where it is the same."""
    if fates:
        before = fates[-1]
        if before.last + 1 == fate.first and before[2:] == fate[2:]:
            fates[-1] = before._replace(last=fate.last)
            return
    fates.append(fate)


@lru_cache(maxsize=1024)
def _all_acknowledged(names: tuple[str, ...]) -> str:
    return _as_json(dict.fromkeys(names, ACKNOWLEDGED))


def _as_json(receivers: dict[str, str]) -> str:
    return msgspec.json.encode(receivers).decode()


def _fate_of(run: HandedRun, sequence: int) -> Fate | None:
    """Return the fate of one message, or None where it has none yet."""
    changes, is_over, error = run.known_of(sequence)
    if not is_over or isinstance(error, ClientClosed):  # then the next process is told
        return None
    receivers: dict[str, str] = {}
    worst: tuple[str, str | None] = (ACKNOWLEDGED, None)
    for receiver, status, reason in changes:
        if status is None:
            continue
        if receiver == PROMISE:
            receivers[receiver] = "kept" if status is Status.ACKNOWLEDGED else "broken"
            continue
        state = receivers[receiver] = status.name.lower()
        if status is not Status.ACKNOWLEDGED and worst[0] == ACKNOWLEDGED:
            worst = (state, f"{receiver}: {reason}" if reason else receiver)
    if error is not None:
        worst = (_state_of(run, sequence), str(error))
    elif not receivers.keys() - {PROMISE}:
        worst = ("nobody", "nobody receives it")
    return Fate(sequence, sequence, worst[0], _as_json(receivers) if receivers else None, worst[1])


def _state_of(run: HandedRun, sequence: int) -> str:
    """Return the state of a message that was not accepted, or of which no more can be known."""
    error = run.error_of(sequence)
    if error is None or isinstance(error, Ambiguous | PeerForgot | LogWentBack):
        return "unknown"
    return "expired" if isinstance(error, Expired) else "refused"
