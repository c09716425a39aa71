"""Which senders are remembered: who of them is here, was heard, or said goodbye (SEMANTICS 11).

A sender's marks stay as long as it may come back, and longer than any of its messages. Which entry
forgets it is decided here; batches, states and sets of receivers go in `retention.py`, and what a
RESUME that meets a pass is told, `resumed.py` keeps.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from msgservice.core.marks import Key, SenderState
from msgservice.disk.database import as_json, rows
from msgservice.limits import SENDER_KNOWN_SECONDS
from msgservice.log.entries import Forget, ForgetSenders
from msgservice.log.resumed import Resumed
from msgservice.log.store import Store
from msgservice.records import Group

DAY = 24 * 3600 * 1000
LOOK_AGAIN = 60 * 1000  # ms between two looks for what may be forgotten before its time, at most
CROWD = 10  # times `incarnations`
GROWN_DIVISOR = 8  # by what part of them more senders there are for a look before its time
FORGET_MAX = 1000  # senders, audiences, or receivers of one call

_ASLEEP = """
select id, name, incarnation from sender
where (seen_at <= ?2 or id in (select value from json_each(?1)))
    and id not in (select value from json_each(?3))
    and not exists (select 1 from batch where sender = id)
    and not exists (select 1 from delayed where delayed.sender = sender.id)
order by id not in (select value from json_each(?1)), seen_at, id limit ?4
"""


class Senders:
    """The presence of a log's senders, by the age of the log; on the writer's thread."""

    def __init__(self, store: Store) -> None:
        self.resumed = Resumed()  # told their marks while retention runs
        self._store = store
        # Age when senders were last here without storing anything, since they were last written.
        self._heard: dict[Key, int] = {}
        # The numbers of those that said goodbye with all answered, since the start.
        self._left: set[int] = set()
        # When there was last nobody to forget before the time; how many were away then, and of
        # those here and away had said goodbye.
        self._looked_at: int | None = None
        self._away_then = self._left_then = 0

    def note(self, here: Collection[Key], left: Collection[Key]) -> None:
        """Senders are away from when they were last here, however quiet they were."""
        state, heard, age = self._store.state, self._heard, self._store.age
        for key in left:
            if (known := state.sender(key)) is not None:  # else it sent nothing
                self._left.add(known.id)
        for key in here:
            if state.wake(key):
                self._left.discard(state.senders[key].id)
                heard[key] = age

    def hear(self, group: Group) -> None:
        """Not all of a group was stored: its senders were here all the same."""
        for batch in group.batches:
            key = (batch.sender, batch.incarnation)
            if key in self._store.state.senders:
                self._heard[key] = self._store.age

    def rest(self, here: Collection[Key]) -> None:
        """Have those that are away sleep, where more of them are awake than are to be remembered.

        So memory holds who is here and a few more, however many the file remembers.
        """
        if len(self._store.state.senders) - len(here) > self._store.limits.incarnations:
            self._put_to_sleep(here)

    def forget_absent(self, here: Collection[Key]) -> bool:
        """Forget senders that stayed away for `sender_days`; more?"""
        store = self._store
        self._put_to_sleep(here)
        away = store.age - int(store.limits.sender_days * DAY)
        return self._forget(away - 1, [], FORGET_MAX)

    def forget_early(self, here: Collection[Key]) -> bool:
        """Forget senders before their time, where more are away than are to be remembered; more?

        Those first that said goodbye when all was answered; then, oldest first, those that have
        been away for an hour, and beyond ten times the limit any that are away. One that was cut
        off a moment ago comes back, and what it sends again then must be known.
        """
        store = self._store
        limit, before = store.limits.incarnations, self._known
        count = before - len(here)
        if count <= limit or not self._is_time_to_look(count):
            return False
        self._put_to_sleep(here)
        present = {key for key in here if key in store.state.senders}
        away = before - len(present)
        known = SENDER_KNOWN_SECONDS * 1000 if away <= CROWD * limit else 0
        more = self._forget(store.age - known, [*self._left], away - limit)
        if self._known == before:
            self._looked_at = store.age
            self._away_then, self._left_then = count, len(self._left)
        return more

    def _is_time_to_look(self, away: int) -> bool:
        """Whether there may be somebody to forget before the time; so many are `away`.

        A look goes through all of them, and where it was in vain the next is in a minute: sooner
        when there are ten times too many since, and an eighth more than that look found, or when an
        eighth more have said goodbye.
        """
        store = self._store
        if self._looked_at is None or store.age - self._looked_at >= LOOK_AGAIN:
            return True
        limit, then = store.limits.incarnations, self._left_then
        crowd = max(CROWD * limit, self._away_then + self._away_then // GROWN_DIVISOR)
        return away > crowd or len(self._left) > then + max(limit, then) // GROWN_DIVISOR

    @property
    def _known(self) -> int:
        """The number of senders that the log knows."""
        state = self._store.state
        return len(state.senders) + len(state.asleep)

    def _seen(self, sender: SenderState) -> int:
        """Return the age of the log when a sender was last here, or last sent something."""
        return max(sender.seen_at, self._heard.get(sender.key, 0))

    def _put_to_sleep(self, here: Collection[Key]) -> None:
        """Have all that are away sleep, once the table has all that is known of them.

        On a full disk it does not: they stay awake, and none of them is forgotten.
        """
        store = self._store
        if self._heard:
            senders = store.state.senders
            store.apply(
                store.entry(
                    Forget,
                    age=store.grown(at_least=1),  # none was heard later than that
                    audiences=[],
                    receivers=[],
                    seen=[
                        (senders[key].id, self._seen(senders[key]))
                        for key in self._heard
                        if key in senders
                    ],
                )
            )
            self._heard.clear()
        store.save()
        state, present = store.state, set(here)
        for key in [*state.senders]:
            if key not in present and key not in state.dirty_senders:
                state.put_to_sleep(key)

    def _forget(self, seen_to: int, left: Sequence[int], count: int) -> bool:
        """Forget `count` that are asleep, of whose messages none is in the log; more?

        Those of these numbers first that `left`, then, oldest first, those last seen at this age.
        """
        store = self._store
        awake = as_json([*store.state.senders_by_id])
        found = rows(store.db, _ASLEEP, (as_json(left), seen_to, awake, min(count, FORGET_MAX)))
        ids = {(name, incarnation): number for number, name, incarnation in found}
        keys = self.resumed.let_go([*ids])
        if not keys:
            return False  # there were none, or all of them came back
        numbers = [ids[key] for key in keys]
        store.apply(store.entry(ForgetSenders, senders=numbers))
        self._left.difference_update(numbers)
        return len(found) == FORGET_MAX
