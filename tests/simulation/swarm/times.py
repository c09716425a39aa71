"""Lifetimes and delays in a swarm (DELIVERY 38, 39, 43, 44), by the clock of the world.

Lifetimes: nothing is expired before its time, nor once its receiver has acknowledged it; nothing
is sent to a receiver when its time is over; and it ends in one state, which is told.
Delays: nothing is delivered before it is due, nor moved twice; what is due goes in the order of
that; a cancel is answered by what is so. Where the wall clock jumps, times are not judged.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from twisted.python.failure import Failure

from msgservice.errors import Expired, UnknownMessage
from msgservice.message import Status
from tests.simulation.swarm.family import Family

if TYPE_CHECKING:
    from tests.simulation.swarm.checkers import Check
    from tests.simulation.swarm.parties import Sent

TICK = 0.005  # seconds: what is said in milliseconds is cut off, once on each hop
TURN = 0.05  # seconds between a decision of the node's and the frame
STORED_WITHIN = 10.0  # seconds from an answer until it is on disk, where the disk works
HELD_SECONDS = 70.0  # of a node that finds its clock far ahead
DELAYED = "$delayed"


class Lifetimes(Family):
    """See the module."""

    def do_short(self, who: str, subject: str, count: int, size: int, ttl: float) -> None:
        """Hand over what expires."""
        self.world.producers[who].send(subject, count, size, None, False, ttl=ttl)

    def may_fail(self, sent: Sent, error: Exception) -> bool:
        """See `Family`. The node was not given it in time."""
        is_over = sent.ttl is not None and self.world.now >= sent.at + sent.ttl - TICK
        return isinstance(error, Expired) and is_over

    def check(self, check: Check) -> None:
        """See `Family`."""
        for sent in self.world.sent.values():
            if sent.ttl is None or sent.receipt is None or not self.is_judged(sent):
                continue
            for name, status in sent.receipt.statuses.items():
                if status is Status.EXPIRED:
                    self._check_expired(check, sent, name)
        self._check_not_late(check)

    def _check_expired(self, check: Check, sent: Sent, name: str) -> None:
        world, witness = self.world, self.witness
        told = witness.told_expired.get((sent.producer, name, sent.body))
        what = f"{sent.body[:40]!r} at {name}, sent at {sent.at:.3f} with {sent.ttl} s"
        assert sent.ttl is not None
        if told is None:
            check.fail("expired, and was not told", what)
        elif told < sent.at + sent.ttl - TICK and not world.jumped_days:
            check.fail("expired before its time", f"{what}, told at {told:.3f}")
        heard = witness.heard_at.get((name, sent.body))
        if (name, sent.body) in witness.copies:
            heard = None  # as somebody else's letter that was sent again to this one
        if heard is not None and not self._may_be_lost(name, heard):
            check.fail("expired after it was acknowledged", f"{what}, acknowledged at {heard:.3f}")

    def _may_be_lost(self, name: str, heard: float) -> bool:
        """Whether an answer may not have come to the log: the node died, or its disk was full."""
        world = self.world
        return (
            any(heard <= at <= heard + STORED_WITHIN for at in world.node.died_at)
            or any(op.kind in ("disk", "sync") for op in world.plan.ops)
            or bool(world.removed.get(name))
        )

    def _check_not_late(self, check: Check) -> None:
        world, witness = self.world, self.witness
        if world.jumped_days or world.log_restored_at >= 0:
            return
        for (name, body), at in witness.fed_at.items():
            over = witness.lives_until.get(body)
            if over is not None and at > over + TURN:
                check.fail("sent when it was over", f"{body[:40]!r} to {name} at {at:.3f}, {over}")


@dataclass
class CallBack:
    """A cancel of a message that waits, and what it was answered."""

    at: float
    answered_at: float | None = None
    outcome: str = ""  # cancelled, unknown; empty: it is not known


class Delays(Family):
    """See the module."""

    def do_later(
        self, who: str, subject: str, count: int, delay: float, to: tuple[str, ...] | None
    ) -> None:
        """Hand over what is to be delivered later."""
        self.world.producers[who].send(subject, count, 0, to, False, delay=delay)

    def do_later_short(self, who: str, subject: str, count: int, delay: float, ttl: float) -> None:
        """Hand over what is to be delivered later, and soon then."""
        self.world.producers[who].send(subject, count, 0, None, False, delay=delay, ttl=ttl)

    def do_call_back(self, who: str, which: int) -> None:
        """Cancel what was handed over before, whether or not it still waits."""
        producer = self.world.producers[who]
        sent = [
            one
            for one in producer.sent
            if one.delay is not None and one.life == producer.lives and one.receipt is not None
        ]
        if not sent or producer.client is None or not producer.is_up:
            return
        one = sent[-1 - which % min(len(sent), 6)]
        assert one.receipt is not None
        call = CallBack(self.world.now)
        one.calls.append(call)

        def answered(result: Any) -> None:
            call.answered_at = self.world.now
            if not isinstance(result, Failure):
                call.outcome = "cancelled"
            elif result.check(UnknownMessage):
                call.outcome = "unknown"

        producer.client.cancel(one.receipt).addBoth(answered)

    @property
    def drain_seconds(self) -> float:
        """See `Family`."""
        world = self.world
        left = [
            sent.at + sent.delay - world.now
            for sent in world.sent.values()
            if sent.delay is not None
        ]
        return max(0.0, *left, 0.0) + HELD_SECONDS * world.jumped_days if left else 0.0

    # --- what must be so

    def check(self, check: Check) -> None:
        """See `Family`."""
        moved: list[tuple[int, Sent, int]] = []  # due, its message, position
        for sent in self.world.sent.values():
            if sent.delay is None or not self.is_judged(sent):
                continue
            places = self.witness.places.get(sent.body, {})
            self._check_due(check, sent, min(places.values(), default=None))
            self._check_calls(check, sent, is_moved=bool(places))
            due = self.witness.due_of.get(sent.body)
            # What was not stored yet when it was due is moved behind what was.
            was_there = sent.accepted_at is not None and sent.accepted_at < sent.at + sent.delay
            if due is not None and was_there and len(places) == 1:
                moved.append((due, sent, next(iter(places))[1]))
        self._check_order(check, moved)

    def _check_due(self, check: Check, sent: Sent, came: float | None) -> None:
        assert sent.delay is not None
        if came is not None and came < sent.at + sent.delay - TICK and not self.world.jumped_days:
            what = f"{sent.body[:40]!r}, sent at {sent.at:.3f} with {sent.delay} s"
            check.fail("delivered before it is due", f"{what}, came at {came:.3f}")

    def _check_calls(self, check: Check, sent: Sent, *, is_moved: bool) -> None:
        world, calls = self.world, sent.calls
        what = f"{sent.body[:40]!r}, {calls}"
        outcomes = {call.outcome for call in calls}
        if "cancelled" in outcomes and is_moved:
            check.fail("delivered though it was cancelled", what)
        statuses = sent.receipt.statuses if sent.receipt is not None else {}
        is_cancelled = statuses.get(DELAYED) is Status.CANCELLED
        if is_cancelled and is_moved:
            check.fail("told as cancelled, and delivered", what)
        undone = world.undos.touches(sent)  # perhaps with those sent before it
        if is_cancelled and not outcomes - {"unknown"} and not undone:
            check.fail("cancelled, and nobody was told so", what)
        alive = sent.life == world.producers[sent.producer].lives and sent.settled is not None
        if "cancelled" in outcomes and alive and not is_cancelled:
            check.fail("cancelled, and told otherwise", f"{what}: {statuses}")
        assert sent.delay is not None
        first = calls[0] if calls else None
        if (
            first is not None
            and first.outcome == "unknown"
            and sent.accepted_at is not None
            and sent.accepted_at < first.at
            and first.answered_at is not None
            and first.answered_at < sent.at + sent.delay - TICK
            and not undone
            and not world.jumped_days
        ):
            check.fail("a cancel does not find what waits", what)

    def _check_order(self, check: Check, moved: list[tuple[int, Sent, int]]) -> None:
        """What was due first has the lower position; of one sender also what was sent first."""
        world = self.world
        limits = world.limits
        places = min(limits.to_audiences_max, limits.sender_audiences, limits.audiences)
        if world.jumped_days or places < 100:
            return
        moved.sort(key=lambda one: (one[0], one[1].producer, one[1].life, one[1].number))
        for (due, sent, position), (next_due, behind, next_position) in pairwise(moved):
            same = (sent.producer, sent.life) == (behind.producer, behind.life)
            if position > next_position and (due < next_due or same):
                check.fail(
                    "due first, and moved behind",
                    f"{sent.body[:40]!r} of {due} at {position}, {behind.body[:40]!r} of {next_due}"
                    f" at {next_position}",
                )
