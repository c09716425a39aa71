"""Up to which batch settled history gives way to sets of receivers without a place (SEMANTICS 19).

A set has a place while a row of the log refers to it, and rows go from the oldest on. So history
gives way oldest first, up to the last batch of as many sets as are to make room, and never from the
first batch on that a receiver waits for: behind that no row would go, and nothing be gained.
"""

from __future__ import annotations

from msgservice.disk.database import as_json, one
from msgservice.limits import PLACES_SECONDS
from msgservice.log.state import State, Totals
from msgservice.log.store import Store
from msgservice.records import OF_ACKNOWLEDGED, Audience, number_of

PINNED = 2**62  # beyond every position
# Of a limit, what is kept free: bytes of `max_bytes`, places of sets.
HEADROOM_DIVISOR = 8
SETS_MIN = 16  # that make room at once, but never more than half of the limit

# The first batch of each of these audiences with a message behind a position, the lowest of all.
_WAITED_FOR = """
select min((
    select number from batch
    where audience = json_extract(a.value, '$[0]')
        and number >= json_extract(a.value, '$[1]')
        and (number << 16 | count - 1) > json_extract(a.value, '$[2]')
    order by number limit 1))
from json_each(?1) as a
"""


def settled_to(state: State, total: Totals) -> int:
    """Return the position up to which every receiver of an audience is past its batches.

    So is every replay that may copy them.
    """
    settled = PINNED
    for number in total.audience.members:
        at = state.receivers.get(number)
        if at is None:
            return -1  # not made yet: it wants all
        if not at.removed:
            settled = min(settled, at.cursor)
    for replay in state.replays.values():
        # What it has still to copy stays: but of what was acknowledged, that may be anybody's.
        if not replay.is_over and (
            replay.kind not in OF_ACKNOWLEDGED or replay.receiver in total.audience.members
        ):
            settled = min(settled, replay.next - 1)
    return settled


def _places_of(audience: Audience) -> list[tuple[str, str]]:
    """Return the places that a set takes, as `Places.wanted` names them."""
    if audience.asked_by is None:
        return [("audiences", "")]
    return [("audiences", ""), ("to_audiences", ""), ("sender_audiences", audience.asked_by)]


class Places:
    """The places that sets of receivers want, and the history that goes for them."""

    def __init__(self, store: Store) -> None:
        # Set anew by the reactor's thread: a new audience or receiver was refused for want of a
        # place. The limit, and of `sender_audiences` whose.
        self.wanted: frozenset[tuple[str, str]] = frozenset()
        # ms after retention last tidied until they are looked for, before their time.
        self.looked_for_after = PLACES_SECONDS * 1000
        self._store = store
        self._below: int | None = None  # number of a batch, once it was looked for

    def want(self, limit: str, sender: str) -> None:
        """A set or receiver finds no place below this limit; on the reactor's thread."""
        place = (limit, sender if limit == "sender_audiences" else "")
        if place not in self.wanted:
            self.wanted |= {place}

    @property
    def are_begun(self) -> bool:
        """Whether the history that goes for them was looked for, and some may be left of it."""
        return self._below is not None

    def begin(self) -> bool:
        """Look for history that goes for them; return whether there is any."""
        below = self._gives_way_below()
        if below > self._store.state.oldest:
            self._below = below
            return True
        return False

    def give_way_below(self) -> int:
        """Return the number of the batch below which all history gives way; it is settled.

        It is looked for once, until `begin_anew`.
        """
        if self._below is None:
            self._below = self._gives_way_below() if self.wanted else 0
        return self._below

    def begin_anew(self) -> None:
        """All that gives way has gone: those that still find no place say so again."""
        self._below = None
        self.looked_for_after = PLACES_SECONDS * 1000
        self.wanted = frozenset()

    def first_waited_for(self) -> int:
        """Return the number of the first batch that a receiver waits for."""
        store = self._store
        behind = [
            (total.audience.number, number_of(position), position)
            for total in store.state.totals.values()
            if number_of(position := settled_to(store.state, total)) <= total.last
        ]
        found = one(store.db, _WAITED_FOR, (as_json(behind),)) if behind else None
        return PINNED if found is None else int(found)

    def _gives_way_below(self) -> int:
        store, wanted = self._store, self.wanted
        limits = store.limits
        values = {
            "audiences": limits.audiences,
            "to_audiences": limits.to_audiences_max,
            "sender_audiences": limits.sender_audiences,
        }
        last_batches: dict[tuple[str, str], list[int]] = {
            key: [] for key in wanted if key[0] in values
        }
        if not last_batches:
            return 0
        for total in store.state.totals.values():
            if not total.audience.waiting:
                for key in _places_of(total.audience):
                    if key in last_batches:
                        last_batches[key].append(total.last)
        waited_for = self.first_waited_for()
        below = 0
        for (limit, _sender), found in last_batches.items():
            found.sort()
            value = values[limit]
            share = max(1, value // HEADROOM_DIVISOR, min(value // 2, SETS_MIN))
            below = max([below, *(last + 1 for last in found[:share] if last < waited_for)])
        return below
