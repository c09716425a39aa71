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
from msgservice.log.entries import ForgetSenders
from msgservice.log.resumed import Resumed
from msgservice.log.store import Store
from msgservice.records import Appended, Group

DAY = 24 * 3600 * 1000
LOOK_AGAIN = 60 * 1000  # ms between two looks for what may be forgotten before its time, at most
CROWD = 10  # times `incarnations`
GROWN_DIVISOR = 8  # by what part of them more senders there are for a look before its time
FORGET_MAX = 1000  # senders, audiences, or receivers of one call


class Senders:
    """The presence of a log's senders, by the age of the log; on the writer's thread."""

    def __init__(self, store: Store) -> None:
        self.resumed = Resumed()  # told their marks while retention runs
        self._store = store
        # Age when senders were last here without storing anything, since they were last written.
        self._heard: dict[Key, int] = {}
        # Those that said goodbye with all answered, since the start.
        self._left: set[Key] = set()
        # When there was last nobody to forget before the time; how many were away then, and of
        # those here and away had said goodbye.
        self._looked_at: int | None = None
        self._away_then = self._left_then = 0

    def note(self, here: Collection[Key], left: Collection[Key]) -> None:
        """Senders are away from when they were last here, however quiet they were."""
        senders, heard, age = self._store.state.senders, self._heard, self._store.age
        self._left.update(key for key in left if key in senders)  # not who sent nothing
        self._left.difference_update(here)
        for key in here:
            if key in senders:
                heard[key] = age

    def hear(self, group: Group, appended: Appended) -> None:
        """Senders of what was not stored were here all the same."""
        if len(appended.stored) < len(group.batches) + len(group.own):
            for batch in group.batches:
                key = (batch.sender, batch.incarnation)
                if key in self._store.state.senders:
                    self._heard[key] = self._store.age

    def seen(self) -> list[tuple[int, int]]:
        """Return the numbers of the senders that were heard, and when; for the log to have."""
        senders = self._store.state.senders
        return [
            (senders[key].id, self._seen(senders[key])) for key in self._heard if key in senders
        ]

    def written(self) -> None:
        """What `seen` told is in the log."""
        self._heard.clear()

    def forget_absent(self, here: Collection[Key]) -> bool:
        """Forget senders that stayed away for `sender_days`; more?"""
        store = self._store
        away = store.age - int(store.limits.sender_days * DAY)
        present = set(here)
        known = store.state.senders.values()
        return self._forget([s for s in known if s.key not in present and self._seen(s) < away])

    def forget_early(self, here: Collection[Key]) -> bool:
        """Forget senders before their time, where more are away than are to be remembered; more?

        Those first that said goodbye when all was answered; then, oldest first, those that have
        been away for an hour, and beyond ten times the limit any that are away. One that was cut
        off a moment ago comes back, and what it sends again then must be known.
        """
        store = self._store
        state, limit = store.state, store.limits.incarnations
        count = len(state.senders) - len(here)
        if count <= limit or not self._is_time_to_look(count):
            return False
        present, left = set(here), self._left
        away = [sender for sender in state.senders.values() if sender.key not in present]
        known = SENDER_KNOWN_SECONDS * 1000 if len(away) <= CROWD * limit else 0
        long_ago = store.age - known
        gone = [s for s in away if s.key in left or self._seen(s) <= long_ago]
        gone.sort(key=lambda sender: (sender.key not in left, self._seen(sender)))
        before = len(state.senders)
        more = self._forget(gone, len(away) - limit)
        if len(store.state.senders) == before:
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

    def _seen(self, sender: SenderState) -> int:
        """Return the age of the log when a sender was last here, or last sent something."""
        return max(sender.seen_at, self._heard.get(sender.key, 0))

    def _forget(self, gone: Sequence[SenderState], count: int = FORGET_MAX) -> bool:
        """Forget `count` of these, in their order, of whose messages none is in the log; more?"""
        store = self._store
        state = store.state
        found = rows(
            store.db,
            "select value from json_each(?) where not exists"
            " (select 1 from batch where sender = value) limit ?",
            (as_json([sender.id for sender in gone]), min(count, FORGET_MAX)),
        )
        if not found:
            return False
        keys = self.resumed.let_go([state.senders_by_id[number].key for (number,) in found])
        ids = [state.senders[key].id for key in keys]
        if not ids:
            return False  # all of them came back
        store.apply(store.entry(ForgetSenders, senders=ids))
        self._left.difference_update(keys)
        for key in keys:
            self._heard.pop(key, None)
        return len(found) == FORGET_MAX
