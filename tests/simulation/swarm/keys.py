"""Idempotency keys in a swarm (DELIVERY 45): producers come again with theirs, in all their lives.

A key is a slot of a producer's; its scope is the producer, whether it logs in or not. What is said
with it is one content, now and then another one. Of each key: one message is stored, as positions
show at receivers and in receipts, until it may be forgotten; who comes with another content is
refused, and nobody else is.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from msgservice.errors import KeyReused
from tests.simulation.swarm.family import Family
from tests.simulation.swarm.parties import Sent
from tests.simulation.swarm.plan import SUBJECTS
from tests.simulation.swarm.retained import Retained
from tests.simulation.swarm.times import TICK

if TYPE_CHECKING:
    from tests.simulation.swarm.checkers import Check
    from tests.simulation.swarm.world import World

AGE_STEP = 1.5  # seconds: so often the age of a log is counted, by which it remembers a key
FORGOTTEN_WITHIN = 10.0  # seconds, of a key that is over: retention passes once a second


class Keys(Family):
    """See the module."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.uses: dict[tuple[str, int], list[Sent]] = {}  # by producer and slot

    def do_keyed(self, who: str, slot: int, variant: int) -> None:
        """Hand over what has this key, again or for the first time."""
        self._hand_over(who, slot, variant)

    def do_keyed_later(self, who: str, slot: int, variant: int, delay: float) -> None:
        """Hand over what has this key, to be delivered later, with whichever delay."""
        self._hand_over(who, slot, variant, delay=delay)

    def do_keyed_short(self, who: str, slot: int, variant: int, ttl: float) -> None:
        """Hand over what has this key, and expires."""
        self._hand_over(who, slot, variant, ttl=ttl)

    def do_keyed_keep(self, who: str, slot: int, variant: int) -> None:
        """Hand over what has this key, and is retained."""
        sent = self._hand_over(who, slot, variant, retain=True)
        if sent is not None:
            (retained,) = [one for one in self.world.families if isinstance(one, Retained)]
            retained.put.setdefault(sent.subject, []).append(sent)

    def _hand_over(self, who: str, slot: int, variant: int, **options: Any) -> Sent | None:
        producer, now = self.world.producers[who], self.world.now
        uses = self.uses.setdefault((who, slot), [])
        subject = SUBJECTS[slot % 3]
        body = f"{who}-key {subject} {slot}.{variant} ".encode()
        # Who gets it was decided for the first of them.
        at = uses[0].at if uses else now
        sent = Sent(body, who, producer.lives, subject, None, at, 0, key=f"slot-{slot}")
        sent.handed_at, sent.delay, sent.ttl = now, options.get("delay"), options.get("ttl")
        sent.retain = "keep" if options.get("retain") else ""
        if not producer.hand_over(sent, idempotency_key=sent.key, **options):
            return None
        uses.append(sent)
        return sent

    def handed_over(self) -> Iterable[Sent]:
        """See `Family`."""
        return [sent for uses in self.uses.values() for sent in uses]

    def may_fail(self, sent: Sent, error: Exception) -> bool:
        """See `Family`. Where its content is the only one there was, it may not."""
        uses = [one for of in self.uses.values() if sent in of for one in of]
        return isinstance(error, KeyReused) and any(one.body != sent.body for one in uses)

    @property
    def drain_seconds(self) -> float:
        """See `Family`. Beyond the limit of keys a new one waits until others are over."""
        limits, now = self.world.limits, self.world.now
        left = [one.handed_at + (one.delay or one.ttl or 0.0) - now for one in self.handed_over()]
        until_due = max(0.0, *left, 0.0) if left else 0.0
        if not self.uses or limits.idempotency_keys >= 100:
            return until_due
        uses = sum(map(len, self.uses.values()))
        rounds = 2 + uses / limits.idempotency_keys
        return rounds * (limits.idempotency_key_seconds + FORGOTTEN_WITHIN) + until_due

    # --- what must be so

    def check(self, check: Check) -> None:
        """See `Family`."""
        for (who, slot), uses in self.uses.items():
            if uses and uses[0].at > self.world.log_restored_at:
                self._check_stored_once(check, f"key {slot} of {who}", uses)
                self._check_handled(check, uses)
                self._check_due(check, f"key {slot} of {who}", uses)

    def _check_due(self, check: Check, which: str, uses: list[Sent]) -> None:
        """What waits by a key comes when that is due which was taken: no use has it come sooner."""
        due = min(one.handed_at + (one.delay or 0.0) for one in uses)
        for body in {one.body for one in uses}:
            came = min(self.witness.places.get(body, {}).values(), default=math.inf)
            if came < due - TICK and not self.world.jumped_days:
                check.fail("a key has it come before it is due", f"{which}: {came:.3f}, {due:.3f}")

    def _check_stored_once(self, check: Check, which: str, uses: list[Sent]) -> None:
        """One position for each time that a key is remembered, whichever content came with it."""
        known: dict[int, tuple[float, float, bytes]] = {}  # position: not before, not after, body
        begun: dict[bytes, float] = {}
        for one in uses:
            begun[one.body] = min(one.handed_at, begun.get(one.body, math.inf))
        for body, since in begun.items():
            for (_, position), at in self.witness.places.get(body, {}).items():
                known[position] = (since, at, body)
        audiences: dict[int, set[str]] = {}
        for one in uses:
            if one.accepted_at is None or one.receipt is None or one.receipt.position is None:
                continue
            position = one.receipt.position
            before = known.get(position, (begun[one.body], math.inf, one.body))
            if before[2] != one.body:
                check.fail("another content is known", f"{which}: {one.body!r} at {position}")
            known[position] = (before[0], min(before[1], one.accepted_at), one.body)
            names = audiences.setdefault(position, set(one.audience))
            if names != set(one.audience):
                check.fail("a key has two audiences", f"{which}: {names}, {one.audience}")
        remembered = self.world.limits.idempotency_key_seconds - AGE_STEP
        rising = sorted(known)
        for first, second in pairwise(rising):
            if known[second][1] - known[first][0] < remembered:
                check.fail("a key is stored twice", f"{which}: {known[first]}, {known[second]}")

    def _check_handled(self, check: Check, uses: list[Sent]) -> None:
        for body in {one.body for one in uses}:
            places = len(self.witness.places.get(body, {}))
            for receiver in self.world.receivers.values():
                copies = len(self.witness.copies.get((receiver.name, body), {}))
                for history in receiver.histories:
                    if Counter(history.bodies)[body] > places + copies:
                        check.fail("a key is handled twice", f"{receiver.name}: {body!r}")
