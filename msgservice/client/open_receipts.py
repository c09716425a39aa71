"""The open receipts of an outbox, by sequence: which of them have come to their end (DELIVERY 53).

A producer's file has a row for each run whose receipts are open. Nobody in memory need hold any of
them, so what the node says is kept here as ranges: whom messages are for, who is done with them,
which promises are decided. What has become final of rows that this process wrote, or gave out, is
to be deleted; of what an earlier process left it waits until it is asked for.

Sans-IO: `client.disk` feeds it, and has the file do what follows. What one message's states are is
not kept here (`client.handed`).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence

from msgservice.core.ranges import Range, RangeSet

Names = tuple[str, ...]
STALE_MIN = 1024  # of audiences that nobody asks for any more, before they are all looked at


class Audiences:
    """The audiences of sequences, as ranges that do not overlap; None: they wait until due."""

    __slots__ = ("_firsts", "_lasts", "_names")

    def __init__(self) -> None:
        self._firsts: list[int] = []
        self._lasts: list[int] = []
        self._names: list[Names | None] = []

    def __len__(self) -> int:
        """The number of ranges."""
        return len(self._firsts)

    def within(self, first: int, last: int) -> Iterator[tuple[int, int, Names | None]]:
        """The parts of `first` to `last` whose audience is known, rising."""
        at = bisect_left(self._lasts, first)
        while at < len(self._firsts) and self._firsts[at] <= last:
            yield max(first, self._firsts[at]), min(last, self._lasts[at]), self._names[at]
            at += 1

    def set(self, first: int, last: int, names: Names | None) -> None:
        """Set the audience of all from `first` to `last`, whatever it was."""
        at = len(self._firsts)
        if at and first <= self._lasts[-1]:
            # Each reconnection says it all anew: what is so already moves no entry of many.
            found = bisect_left(self._lasts, first)
            is_held = self._firsts[found] <= first and last <= self._lasts[found]
            if is_held and self._names[found] == names:
                return
            self.cut(first, last)
            at = bisect_left(self._firsts, first)
        if at and self._lasts[at - 1] == first - 1 and self._names[at - 1] == names:
            self._lasts[at - 1] = last
        else:
            self._firsts.insert(at, first)
            self._lasts.insert(at, last)
            self._names.insert(at, names)
            at += 1
        is_joined = at < len(self._firsts) and self._firsts[at] == last + 1
        if is_joined and self._names[at] == names:
            self._lasts[at - 1] = self._lasts[at]
            del self._firsts[at], self._lasts[at], self._names[at]

    def keep(self, ranges: RangeSet) -> None:
        """Forget the audiences of all but these."""
        kept = Audiences()
        for first, last in ranges:
            for low, high, names in self.within(first, last):
                kept.set(low, high, names)
        self._firsts, self._lasts, self._names = kept._firsts, kept._lasts, kept._names

    def cut(self, first: int, last: int) -> None:
        """Forget the audience of all from `first` to `last`."""
        low = bisect_left(self._lasts, first)
        high = bisect_right(self._firsts, last)
        if low >= high:
            return
        rest: list[tuple[int, int, Names | None]] = []
        if self._firsts[low] < first:
            rest.append((self._firsts[low], first - 1, self._names[low]))
        if self._lasts[high - 1] > last:
            rest.append((last + 1, self._lasts[high - 1], self._names[high - 1]))
        self._firsts[low:high] = [part[0] for part in rest]
        self._lasts[low:high] = [part[1] for part in rest]
        self._names[low:high] = [part[2] for part in rest]


class OpenReceipts:
    """The open receipts of one outbox file.

    `given`: the last sequence that was ever given; `rows`: those that the file has; `promised`: of
    those, with a promise; `unanswered`: that the node has not answered; `over`: of which no more
    can be known, or that the program forgot.
    """

    def __init__(
        self,
        given: int = 0,
        rows: Iterable[Range] = (),
        *,
        promised: Iterable[Range] = (),
        unanswered: Iterable[Range] = (),
        over: Iterable[Range] = (),
        forgotten: Iterable[Range] = (),
    ) -> None:
        self.left = RangeSet(rows)  # by an earlier process, and not given out by this one
        self.open = self.left.copy()  # their end is not known
        self.ended = RangeSet()  # of those that are left: to be told to whoever asks
        self.lost = RangeSet()  # of these: no more can be heard, and the file says why
        self.done = RangeSet([(1, given)])  # their rows have gone, or are to go
        self._promised = RangeSet(promised)
        self._unanswered = RangeSet(unanswered)
        # Also of some that are open no more: to cut each out of very many would take long.
        self._audiences = Audiences()
        self._stale = 0  # how often one may have come to be there in vain
        self._final: dict[str, RangeSet] = {}  # receiver -> sequences with a final state there
        # What ROUTED said last: of runs in a row mostly the same, so it is written down together.
        self._routed: tuple[int, int, Names, bool, bool] | None = None
        self._touched = RangeSet()
        self.said = 0  # how often something was said of some, since it was looked at
        self._gone: list[Range] = []  # that were added to `done`, and nobody was told
        self.kept = RangeSet()  # of those that are left: they are listed until they are forgotten
        # Of those that have ended, what has become so, and what was listed again since that was
        # taken.
        self._aging: list[tuple[Range, bool]] = []
        for first, last in self.left:
            self.done.remove(first, last)
        for first, last in forgotten:
            self.forget(first, last)
        for first, last in over:
            self.end(first, last)
        self._gone.clear()

    # --- rows

    def add(self, first: int, last: int, *, promised: bool) -> None:
        """A row was written, by this process: its messages are not answered."""
        self.open.add(first, last)
        self._unanswered.add(first, last)
        if promised:
            self._promised.add(first, last)

    def skip(self, first: int, last: int) -> None:
        """Sequences that have no row."""
        self.done.add(first, last)

    def drop_below(self, sequence: int) -> None:
        """All rows below this have gone: they were too many."""
        for first, last in self.open.within(1, sequence - 1):
            self._done(first, last)
        for first, last in self.ended.within(1, sequence - 1):
            self._done(first, last)
        self.left.remove_below(sequence)
        self.kept.remove_below(sequence)

    def listed(self, first: int, last: int, count: int) -> list[Range]:
        """Return what is to be listed of these, rising: `count` at most."""
        parts: list[Range] = []
        for low, high in self.done.missing(first, last):
            if count <= 0:
                break
            high = min(high, low + count - 1)
            count -= high - low + 1
            parts.append((low, high))
        return parts

    def give_out(self, ranges: Sequence[Range], *, keep: bool = False) -> bool:
        """Receipts of these are given to the program; return whether an earlier process left any.

        Of those all is to be told anew: it may have been told before anybody asked. And where no
        more can be heard, that is told by now. `keep`: they stay until they are forgotten.
        """
        self._note_routed()
        given = [part for first, last in ranges for part in self.left.within(first, last)]
        self._aging += [
            (part, True) for first, last in given for part in self.ended.within(first, last)
        ]
        if keep:
            for first, last in ranges:
                self.left.add(first, last)
                self.kept.add(first, last)
            return bool(given)
        for first, last in given:
            self.left.remove(first, last)
            self.kept.remove(first, last)
            for low, high in self.lost.within(first, last):
                self._done(low, high)
            for low, high in self.ended.within(first, last):
                self.ended.remove(low, high)
                self.open.add(low, high)
            for low, high in self.open.within(first, last):
                self._clear(low, high)
                self._audiences.cut(low, high)
        return bool(given)

    def is_unanswered(self, first: int, last: int) -> bool:
        """Whether the node has not answered some of these."""
        return self._unanswered.overlaps(first, last)

    def answered_within(self, first: int, last: int) -> list[Range]:
        """The parts of these that are open and were answered, rising."""
        return [
            part
            for low, high in self.open.within(first, last)
            for part in self._unanswered.missing(low, high)
        ]

    # --- from the world

    def answered(self, first: int, last: int) -> None:
        """The node has acknowledged these."""
        self._unanswered.remove(first, last)
        self._touched.add(first, last)
        self.said += 1

    def routed(self, first: int, last: int, names: Names, *, is_known: bool, is_due: bool) -> None:
        """ROUTED came. `is_known`: the node has the messages; `is_due`: they wait no more."""
        self.said += 1
        before = self._routed
        if before is not None:
            begin, end, *facts = before
            if end == first - 1 and facts == [names, is_known, is_due]:
                self._routed = (begin, last, names, is_known, is_due)
                return
            self._note_routed()
        self._routed = (first, last, names, is_known, is_due)

    def _note_routed(self) -> None:
        if self._routed is None:
            return
        (first, last, names, is_known, is_due), self._routed = self._routed, None
        for low, high in self.open.within(first, last):
            if not is_known and not names and is_due:
                # It knows no more than that it took them: whoever they were for, nothing comes.
                self._promised.remove(low, high)
            self._audiences.set(low, high, names if is_due else None)
            self._touched.add(low, high)

    def final(self, receiver: str, first: int, last: int) -> None:
        """STATUS came: these have a final state at a receiver."""
        parts = self.open.within(first, last)
        if parts:
            final = self._final.get(receiver)
            if final is None:
                final = self._final[receiver] = RangeSet()
            for low, high in parts:
                final.add(low, high)
                self._touched.add(low, high)
            self.said += 1

    def decided(self, first: int, last: int) -> None:
        """STATUS came from `$promise`: the promises of these are decided."""
        self._promised.remove(first, last)
        self._touched.add(first, last)
        self.said += 1

    def end(self, first: int, last: int) -> None:
        """No more will be heard of these: they were not taken, or the node has lost them."""
        self._unanswered.remove(first, last)
        for low, high in self.open.within(first, last):
            for a, b in self.left.within(low, high):
                self.lost.add(a, b)
            self._end(low, high)

    def forget(self, first: int, last: int) -> None:
        """The program wants to know no more of these."""
        self.left.remove(first, last)
        self.kept.remove(first, last)
        for low, high in self.open.within(first, last):
            self._done(low, high)
        for low, high in self.ended.within(first, last):
            self._done(low, high)

    def take_gone(self) -> list[Range]:
        """Look at what has changed; return ranges that hold all rows which may go by now."""
        self._note_routed()
        touched, self._touched = self._touched, RangeSet()
        self.said = 0
        for first, last in touched:
            for low, high in self.open.within(first, last):
                for a, b, names in [*self._audiences.within(low, high)]:
                    if names is not None:
                        for one in self._over(a, b, names):
                            self._end(*one)
        gone, self._gone = self._gone, []
        if gone and not self.open:
            self._audiences, self._stale = Audiences(), 0
            self._final.clear()
        if self._stale > STALE_MIN + len(self._audiences) // 2:
            self._audiences.keep(self.open)
            self._stale = 0
        # A row goes when all of it is done, and may have been so in parts.
        whole = (self.done.range_of(first) for first, _ in gone)
        return list(dict.fromkeys([one for one in whole if one is not None]))

    def take_aging(self) -> list[tuple[Range, Range, bool]]:
        """Return what has come to its end, and is left; or was, and is listed once more (True).

        With the range in which a row that is to age lies whole: as far as all of that has ended.
        """
        aging, self._aging = self._aging, []
        return [
            (part, self.ended.range_of(part[0]) or part, is_listed) for part, is_listed in aging
        ]

    # --- inside

    def _over(self, first: int, last: int, names: Names) -> Sequence[Range]:
        """The parts that are final everywhere, answered, and without an open promise."""
        parts: list[Range] = [(first, last)]
        for name in names:
            final = self._final.get(name)
            if final is None:
                return ()
            parts = [one for low, high in parts for one in final.within(low, high)]
        for still in (self._unanswered, self._promised):
            if still:
                parts = [one for low, high in parts for one in still.missing(low, high)]
        return parts

    def _end(self, first: int, last: int) -> None:
        for low, high in self.left.within(first, last):
            self._clear(low, high)
            self.open.remove(low, high)
            self.ended.add(low, high)
            self._aging.append(((low, high), False))
        for low, high in self.left.missing(first, last):
            self._done(low, high)

    def _done(self, first: int, last: int) -> None:
        self._clear(first, last)
        self.open.remove(first, last)
        self.ended.remove(first, last)
        self.lost.remove(first, last)
        self.done.add(first, last)
        self._promised.remove(first, last)
        self._gone.append((first, last))

    def _clear(self, first: int, last: int) -> None:
        for name in {n for _, _, names in self._audiences.within(first, last) for n in names or ()}:
            final = self._final.get(name)
            if final is not None:
                final.remove(first, last)
                if not final:
                    del self._final[name]
        self._stale += 1
