"""An outbox as tests of `core/` drive it: a backlog, and the flight of the connection it has.

Owners of the product (`node.outlet`, `client.hop`) hold the two themselves.
"""

from __future__ import annotations

from collections.abc import Callable

from msgservice.core.backlog import Backlog
from msgservice.core.flight import Flight
from msgservice.core.refusal import Refusal
from msgservice.core.runs import BEHIND, READY, Run, Tally


def counts(tally: Tally) -> tuple[int, int, int]:
    """Return how many runs there are in a state, their messages, and bytes."""
    return tally.runs, tally.messages, tally.size


def counted_as(backlog: Backlog, run: Run) -> int:
    """Return the state that an open run counts in: in its lane's queue, that which the lane is."""
    if run.state == BEHIND and not backlog._stuck.by_lane[run.lane].is_blocked:
        return READY
    return run.state


class Outbox:
    """A backlog towards one receiver, and at most one flight of it."""

    def __init__(
        self,
        *,
        ordered: bool,
        cursor: int,
        window: tuple[int, int],
        retry_delay: Callable[[int], float],
        max_attempts: int = 0,
        behind_max: int = 10_000,
        behind_bytes_max: int = 16 * 1024 * 1024,
        larger_is_dead: bool = False,
        keeps_letters: bool = False,
        letters_room: Callable[[Run, Refusal], int] | None = None,
    ) -> None:
        self.backlog = Backlog(
            ordered=ordered,
            cursor=cursor,
            retry_delay=retry_delay,
            max_attempts=max_attempts,
            behind_max=behind_max,
            behind_bytes_max=behind_bytes_max,
            keeps_letters=keeps_letters,
            letters_room=letters_room,
        )
        self.window = window
        self.larger_is_dead = larger_is_dead
        self.flights: list[Flight] = []  # none, or one

    @property
    def connected(self) -> bool:
        return bool(self.flights)

    @property
    def flight(self) -> Flight:
        (flight,) = self.flights
        return flight

    def connect(self, window: tuple[int, int] | None, batch_max: int) -> None:
        """A connection stands; RESUME was given to the backlog before."""
        assert not self.flights
        self.flights = [
            Flight(
                self.backlog,
                own_window=self.window,
                window=window,
                batch_max=batch_max,
                larger_is_dead=self.larger_is_dead,
            )
        ]

    def disconnect(self, now: float, *, lost: bool = True) -> None:
        """The connection has gone, if there is one, and its flight with it."""
        while self.flights:
            self.flights.pop().end(now, lost=lost)
