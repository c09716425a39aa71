"""The view of a node's receivers, which updates itself at whoever has it (`pb.Cacheable`).

One view for all: Perspective Broker closes a connection beyond 1,024 cached objects. Its rows are
looked at every `VIEW_EVERY` while somebody watches, some of them in each turn, and what has changed
is noted for each watcher by name. A watcher has one update under way: the next leaves when that was
answered, and what changes meanwhile, however often, is one row in it. So who does not read costs
names, and its connection ends as any does that is not read.

    getStateToCacheAndObserveFor -> nothing yet, and `is_complete` False
    observe_rows({name: row}, [name that has gone], is_complete)

Who may watch is asked by `perspectives`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.spread import pb
from twisted.spread.jelly import jelly

from msgservice.node.troubles import HEALTHS, UP
from msgservice.records import ReceiverRow
from msgservice.transport.pb.expressions import Encoded, encode
from msgservice.transport.pb.jellied import security

VIEW_EVERY = 0.25  # seconds between two looks at all receivers
UPDATE_EVERY = 0.1  # between two updates of one watcher, at least
PAGE_ROWS = 140  # of one update
LOOK_ROWS = 500  # of one turn
_BASICS = security()
TAG = b"msgservice.ReceiversView"  # what Perspective Broker calls it


class Row(NamedTuple):
    """A receiver as it is seen."""

    connected: bool
    paused: bool
    suspended: bool
    refuses: bool
    cursor: int  # the position up to which all of its messages are settled
    workers: int = 0  # its connections that are fed
    health: str = UP

    def pair(self, name: str) -> Encoded:
        """Return it as it travels, a pair of a dictionary: made once for all who watch."""
        pieces = [_PAIR, encode(jelly(name, _BASICS)), _STATE]
        for field, value in zip(_FIELDS, self, strict=True):
            pieces += (field, encode(value) if type(value) is int else _TOLD[value])
        return Encoded(b"".join(pieces))


# What is the same in each row, encoded once: a list of two, the dictionary, and its keys.
_PAIR = encode([0, 0]).removesuffix(encode(0) * 2)
_STATE = encode([b"dictionary", *[0] * len(Row._fields)]).removesuffix(encode(0) * len(Row._fields))
_FIELDS = tuple([_PAIR + encode(jelly(field, _BASICS)) for field in Row._fields])
_TOLD: dict[Any, bytes] = {
    value: encode(jelly(value, _BASICS)) for value in (True, False, *HEALTHS)
}


class ReceiversView(pb.Cacheable):
    """The view of one node. `rows`: all receivers; `look`: one as it is now, or None; `here`: the
    numbers of those that are connected.
    """

    _logger = Logger()

    def __init__(
        self,
        *,
        clock: IReactorTime,
        rows: Callable[[], Iterable[ReceiverRow]],
        here: Callable[[], set[int]],
        look: Callable[[ReceiverRow, bool], Row | None],
    ) -> None:
        self.clock = clock
        self.known: dict[str, Row] = {}
        self.pairs: dict[str, Encoded] = {}  # of those that are known
        self._rows = rows
        self._here = here
        self._look = look
        self._watchers: dict[Any, _Watcher] = {}  # by connection
        self._timer: IDelayedCall | None = None
        self._looking: Iterator[None] | None = None
        self.has_looked = False  # at all of them, once, since somebody watches

    @property
    def watchers(self) -> int:
        """The number of those that watch."""
        return len(self._watchers)

    # --- Twisted's

    def getTypeToCopyFor(self, perspective: Any) -> bytes:
        """Return what it is called, whatever the class is called here."""
        return TAG

    def getStateToCacheAndObserveFor(self, perspective: Any, observer: Any) -> dict[str, Any]:
        """Return the state that a new watcher begins with: nothing; pages follow."""
        watcher = self._watchers[observer.broker] = _Watcher(self, observer)
        watcher.changed.update(self.known)
        if self._timer is None and self._looking is None:
            self._begin()
        watcher.later()
        return {"rows": {}, "is_complete": False}

    def stoppedObserving(self, perspective: Any, observer: Any) -> None:
        """Forget a watcher that has let go of it, or whose connection has ended."""
        watcher = self._watchers.pop(observer.broker, None)
        if watcher is not None:
            watcher.stop()
        if not self._watchers:
            self.stop()

    def stop(self) -> None:
        """Look no more, and forget what was seen."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._looking = None
        self.known, self.pairs = {}, {}
        self.has_looked = False

    # --- looking

    def _begin(self) -> None:
        self._timer = None
        self._looking = self._look_at_all()
        self._go_on()

    def _go_on(self) -> None:
        self._timer = None
        looking = self._looking
        if looking is None:
            return
        try:
            next(looking)
        except StopIteration:
            self._looking = None
            self._timer = self.clock.callLater(VIEW_EVERY, self._begin)
        except Exception:
            self._logger.failure("looking at the receivers")
            self._looking = None
            self._timer = self.clock.callLater(VIEW_EVERY, self._begin)
        else:
            self._timer = self.clock.callLater(0, self._go_on)

    def _look_at_all(self) -> Iterator[None]:
        """Look at some in each turn, and note what has changed."""
        rows, here = list(self._rows()), self._here()
        changed: set[str] = set()
        names: set[str] = set()
        known = self.known
        for at, row in enumerate(rows):
            if at and not at % LOOK_ROWS:
                self._note(changed)
                changed = set()
                yield
            seen = self._look(row, row.number in here)
            if seen is None:
                continue
            names.add(row.name)
            if known.get(row.name) != seen:
                known[row.name] = seen
                self.pairs[row.name] = seen.pair(row.name)
                changed.add(row.name)
        gone = [name for name in known if name not in names]
        for name in gone:
            del known[name], self.pairs[name]
        first, self.has_looked = not self.has_looked, True
        self._note(changed.union(gone), always=first)

    def _note(self, changed: set[str], *, always: bool = False) -> None:
        if changed or always:
            for watcher in list(self._watchers.values()):
                watcher.changed |= changed
                watcher.later()


class _Watcher:
    """Whoever watches: what has changed since it was told, and the update that is under way."""

    def __init__(self, view: ReceiversView, observer: Any) -> None:
        self.changed: set[str] = set()
        self._view = view
        self._observer = observer
        self._is_complete = False  # it was told all once
        self._is_under_way = False
        self._is_stopped = False
        self._timer: IDelayedCall | None = None
        self._told_at = 0.0

    def later(self) -> None:
        """Tell it when its time has come, unless an update is under way."""
        if self._is_under_way or self._is_stopped or self._timer is not None:
            return
        if not self.changed and (self._is_complete or not self._view.has_looked):
            return
        due = self._told_at + UPDATE_EVERY - self._view.clock.seconds()
        self._timer = self._view.clock.callLater(min(max(0.0, due), UPDATE_EVERY), self._tell)

    def stop(self) -> None:
        """Tell it nothing more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._is_stopped = True

    def _tell(self) -> None:
        self._timer = None
        if not self._observer.broker.is_writable:
            # It does not read what it was told: looked at again, until its connection is given up.
            self._told_at = self._view.clock.seconds()
            self.later()
            return
        page = [self.changed.pop() for _ in range(min(PAGE_ROWS, len(self.changed)))]
        pairs = self._view.pairs
        rows = [b"dictionary", *[pairs[name] for name in page if name in pairs]]
        gone = [name for name in page if name not in pairs]
        is_complete = self._is_complete or (self._view.has_looked and not self.changed)
        self._is_complete = is_complete
        self._is_under_way = True
        self._told_at = self._view.clock.seconds()
        broker = self._observer.broker
        arguments = [b"tuple", rows, jelly(gone, _BASICS), jelly(is_complete, _BASICS)]
        telling = broker.call_jellied(
            b"cachemessage", broker.cachedRemotelyAs(self._view), b"rows", arguments
        )
        telling.addCallbacks(self._told, self._not_told)

    def _told(self, _: Any) -> None:
        self._is_under_way = False
        self.later()

    def _not_told(self, failure: Failure) -> None:
        """Stay quiet: the connection has ended, or this watcher takes no updates."""
