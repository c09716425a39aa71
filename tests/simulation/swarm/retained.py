"""Retained messages in a swarm (DELIVERY 48): replaced, cleared, and had first by who joins late.

Of a receiver that joins: copies come before anything that is new, one of each subject, and that is
the last that was retained before them, by positions; no other, and none where it was cleared. What
was sent behind them comes once, and nothing that was before. What is kept for later alone comes to
nobody else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgservice.errors import ClientClosed
from tests.simulation.swarm.checkers import matches
from tests.simulation.swarm.family import Family
from tests.simulation.swarm.parties import Sent
from tests.simulation.swarm.plan import Part

if TYPE_CHECKING:
    from tests.simulation.swarm.checkers import Check
    from tests.simulation.swarm.world import World

RETAINED = 16  # the flag of a copy
GONE_WITHIN = 1.0  # seconds that what is said in time may take to the node


class Retained(Family):
    """See the module."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.put: dict[str, list[Sent]] = {}  # by subject, what is retained or clears
        self.joined: dict[str, tuple[float, tuple[str, ...]]] = {}

    def do_keep(self, who: str, subject: str, how: str) -> None:
        """Hand over what is retained, or ("clear") ends that."""
        self._keep(who, subject, how)

    def do_keep_later(
        self, who: str, subject: str, how: str, delay: float, ttl: float | None
    ) -> None:
        """Hand over what is retained, or ends that, when it is due."""
        self._keep(who, subject, how, delay=delay, **({} if ttl is None else {"ttl": ttl}))

    def do_keep_short(self, who: str, subject: str, ttl: float) -> None:
        """Hand over what is retained until its time is over."""
        self._keep(who, subject, "keep", ttl=ttl)

    def _keep(self, who: str, subject: str, how: str, **times: float) -> None:
        world, producer = self.world, self.world.producers[who]
        number = world.next_number()
        body = f"{who}-{producer.lives} {subject} {number} ".encode() if how != "clear" else b""
        sent = Sent(body, who, producer.lives, subject, None, world.now, number, retain=how)
        sent.ttl, sent.delay = times.get("ttl"), times.get("delay")
        if producer.hand_over(sent, retain="only" if how == "only" else True, **times):
            if sent.delay is not None:
                producer.sent.append(sent)  # it may be called back
            self.put.setdefault(subject, []).append(sent)
            if body:
                world.sent[body] = sent

    def do_join(self, who: str, patterns: tuple[str, ...]) -> None:
        """A receiver comes that was never there before."""
        world = self.world
        if who not in world.receivers:
            self.joined[who] = (world.now, patterns)
            world.join(Part("scripted", who, {"patterns": patterns}))

    @property
    def drain_seconds(self) -> float:
        """See `Family`. What clears when it is due, too."""
        now = self.world.now
        left = [one.at + (one.delay or 0.0) - now for some in self.put.values() for one in some]
        return max(0.0, *left, 0.0) if left else 0.0

    def waiting_besides(self, name: str) -> int:
        """See `Family`."""
        return sum(len(one.body) + 200 for some in self.put.values() for one in some)

    # --- what must be so

    def check(self, check: Check) -> None:
        """See `Family`."""
        for some in self.put.values():
            for one in some:
                if one.retain == "only" and self.witness.places.get(one.body):
                    check.fail("kept for later, and delivered", f"{one.body!r}")
        if self.world.log_restored_at < 0:
            for name in self.joined:
                self._check_joined(check, name)

    def _check_joined(self, check: Check, name: str) -> None:
        witness = self.witness
        copies: dict[int, bytes] = {}
        for (who, body), places in witness.copies.items():
            if who == name:
                copies |= {
                    position: body
                    for (_, position), (flags, _) in places.items()
                    if flags & RETAINED
                }
        came: dict[int, bytes] = {}
        for (who, _), delivered in witness.delivered.items():
            if who == name:
                came |= delivered.all()
        new = {position: body for position, body in came.items() if position not in copies}
        what = f"{name} has {copies} first, then {sorted(new)[:3]}"
        if copies and new and max(copies) > min(new):
            check.fail("retained, behind what is new", what)
        _, patterns = self.joined[name]
        for subject in dict.fromkeys([*self.put, *(one.subject for one in self.world.messages)]):
            if any(matches(pattern, subject) for pattern in patterns):
                mine = [body for body in copies.values() if self._subject_of(body) == subject]
                if len(mine) > 1:
                    check.fail("retained twice", f"{what}: {mine}")
                self._check_subject(check, name, subject, mine, min(copies, default=None), what)
        if b"" in copies.values():
            check.fail("nothing is retained", what)
        if copies:
            self._check_new(check, name, patterns, min(copies), new, what)

    def _subject_of(self, body: bytes) -> str:
        sent = self.world.sent.get(body)
        if sent is not None:
            return sent.subject
        keyed = [one.subject for some in self.put.values() for one in some if one.body == body]
        return keyed[0] if keyed else ""

    def _position(self, sent: Sent) -> int | None:
        if sent.receipt is not None and sent.receipt.position is not None:
            return sent.receipt.position
        places: dict[Any, float] = self.witness.places.get(sent.body, {}) if sent.body else {}
        return next(iter(places))[1] if len(places) == 1 else None

    def _check_subject(
        self,
        check: Check,
        name: str,
        subject: str,
        mine: list[bytes],
        joined_at: int | None,
        what: str,
    ) -> None:
        """The copy of a subject is what was retained last before it, where all that is known."""
        put = [
            one
            for one in self.put.get(subject, ())
            # What a program had not been told when it ended may be stored.
            if (one.error is None or isinstance(one.error, ClientClosed))
            and not self._is_cancelled(one)
        ]
        # Several with one key have the position of the first.
        known = {position: one for one in put if (position := self._position(one)) is not None}
        if any(self._position(one) is None for one in put):
            return  # of some it is not known whether they were stored, or when
        if any(self.world.producers[one.producer].restored_at >= one.at for one in put):
            return  # an outbox that was put back may have handed some over again, behind others
        if joined_at is None:
            # It may have joined at any moment since: all of it must have been there before.
            came_at, _ = self.joined[name]
            if any(
                one.accepted_at is None
                or max(one.accepted_at, one.at + (one.delay or 0.0)) > came_at
                or one.delay is not None  # when it was moved nobody was told
                for one in put
            ):
                return
            if self.world.row_of(name) is None or not self._was_here(name):
                return
            joined_at = max(known, default=0) + 1
        before = [position for position in known if position < joined_at]
        last = known[max(before)] if before else None
        if last is not None and last.ttl is not None:
            if self.joined[name][0] <= last.at + last.ttl + GONE_WITHIN:
                return  # it may have joined before that was over, or behind it
            last = None
        wanted = [] if last is None or last.retain == "clear" else [last.body]
        if mine != wanted:
            sign = "a wrong message is retained" if mine else "a retained message is missing"
            check.fail(sign, f"{what}; of {subject}: {mine}, and not {wanted}")

    @staticmethod
    def _is_cancelled(sent: Sent) -> bool:
        return sent.receipt is not None and "$delayed" in sent.receipt.statuses

    def _was_here(self, name: str) -> bool:
        """Whether it was greeted, and had time for what it is sent first."""
        return any(who == name for who, _ in self.witness.delivered)

    def _check_new(
        self,
        check: Check,
        name: str,
        patterns: tuple[str, ...],
        joined_at: int,
        new: dict[int, bytes],
        what: str,
    ) -> None:
        """Behind the copies there is no gap, and nothing from before comes."""
        if min(new, default=joined_at) < joined_at:
            check.fail("from before it joined", what)
        for sent in self.world.messages:
            position = self._position(sent)
            if position is None or position < joined_at or sent.retain in ("only", "clear"):
                continue
            if sent.to is not None or sent.ttl is not None or name in self.world.blocked:
                continue
            if sent.promised is not None and sent.promised.cancels:
                continue  # it may have been cancelled where this one had not got it yet
            if self.world.undos.touches(sent):
                continue
            if any(matches(one, sent.subject) for one in patterns) and position not in new:
                check.fail(
                    "a gap behind what is retained", f"{what}; {sent.body[:40]!r} at {position}"
                )
