"""`PageSize`: the size of what is done page by page, so that no page takes long.

What a page takes depends on the machine, on what else it has to do and on what is in the page, so
it is measured, and the next one is as large as fits into the time that it may take. A bound in
bytes or in number alone would be too much on one machine and too little on another. What a page is
made of, and when the next one goes, is the business of who has pages; many small works of one turn
are `slices`.
"""

from __future__ import annotations

WEIGHT = 0.3  # of the newest page in what one costs
# A page that others kept from going on counts as no dearer than so often what one costs.
OUTLIER = 3.0


class PageSize:
    """The size of pages that take about `seconds` each, from `least` to `most` of whatever it is.

    `first`: of the first page, of which nothing is known yet.
    """

    __slots__ = ("_cost", "_first", "_least", "_most", "_seconds")

    def __init__(self, *, seconds: float, first: int, least: int, most: int) -> None:
        self._seconds = seconds
        self._first, self._least, self._most = first, least, most
        self._cost: float | None = None  # seconds of one, about; None: none was measured

    @property
    def now(self) -> int:
        """The size of the next page."""
        return self.within(self._seconds)

    def within(self, seconds: float) -> int:
        """The size of a page that is to take so long instead."""
        if self._cost is None:
            return self._first
        if self._cost * self._most <= seconds:
            return self._most
        return max(self._least, round(seconds / self._cost))

    def took(self, size: int, seconds: float) -> None:
        """A page of this size has taken so long. Of none, nothing is learned."""
        if size <= 0:
            return
        cost = max(0.0, seconds) / size
        if self._cost is None:
            self._cost = cost
            return
        if self._cost:
            cost = min(cost, OUTLIER * self._cost)
        self._cost += WEIGHT * (cost - self._cost)
