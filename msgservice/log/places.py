"""Up to which batch settled history gives way to sets of receivers without a place (SEMANTICS 19).

A set has a place while a row of the log refers to it, and rows go from the oldest on. So history
gives way oldest first, up to the last batch of as many sets as are to make room, and never from the
first batch on that a receiver waits for: behind that no row would go, and nothing be gained.
"""

from __future__ import annotations

from msgservice.disk.database import as_json, one
from msgservice.log.state import Totals
from msgservice.log.store import HEADROOM_DIVISOR, Store
from msgservice.records import Audience, number_of

PINNED = 2**62  # beyond every position
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


def settled_to(store: Store, total: Totals) -> int:
    """Return the position up to which every receiver of an audience is past its batches."""
    state = store.state
    settled = PINNED
    for number in total.audience.members:
        at = state.receivers.get(number)
        if at is None:
            return -1  # not made yet: it wants all
        if not at.removed:
            settled = min(settled, at.cursor)
    return settled


def gives_way_below(store: Store) -> int:
    """Return the number of the batch below which all history gives way; it is settled."""
    limits, wanted = store.limits, store.places_wanted
    values = {
        "audiences": limits.audiences,
        "to_audiences": limits.to_audiences_max,
        "sender_audiences": limits.sender_audiences,
    }
    last_batches: dict[tuple[str, str], list[int]] = {key: [] for key in wanted if key[0] in values}
    if not last_batches:
        return 0
    for total in store.state.totals.values():
        if not total.audience.waiting:
            for key in _places_of(total.audience):
                if key in last_batches:
                    last_batches[key].append(total.last)
    waited_for = _first_waited_for(store)
    below = 0
    for (limit, _sender), found in last_batches.items():
        found.sort()
        value = values[limit]
        share = max(1, value // HEADROOM_DIVISOR, min(value // 2, SETS_MIN))
        below = max([below, *(last + 1 for last in found[:share] if last < waited_for)])
    return below


def _places_of(audience: Audience) -> list[tuple[str, str]]:
    """Return the places that a set takes, as `Store.places_wanted` names them."""
    if audience.asked_by is None:
        return [("audiences", "")]
    return [("audiences", ""), ("to_audiences", ""), ("sender_audiences", audience.asked_by)]


def _first_waited_for(store: Store) -> int:
    """Return the number of the first batch that a receiver waits for."""
    behind = [
        (total.audience.number, number_of(position), position)
        for total in store.state.totals.values()
        if number_of(position := settled_to(store, total)) <= total.last
    ]
    found = one(store.db, _WAITED_FOR, (as_json(behind),)) if behind else None
    return PINNED if found is None else int(found)
