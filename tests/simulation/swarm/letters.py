"""Dead letters in a swarm (DELIVERY 46): sent again and dropped by an operator, whoever dies then.

What was told as dead is a letter of its receiver's until somebody drops it or sends it again: in
the file there is one, or a copy has come to whom it was sent, and no more copies than it was sent
again. What was dropped comes to nobody. In the end all that are left are sent again, and come.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from msgservice.message import Status
from msgservice.node.letters import Wanted
from tests.simulation.swarm.family import Family

if TYPE_CHECKING:
    from tests.simulation.swarm.checkers import Check
    from tests.simulation.swarm.parties import Sent
    from tests.simulation.swarm.world import World

LAST_SECONDS = 120.0  # until what is sent again in the end has come
REPLAY = 2  # the flag

_decode = msgspec.msgpack.Decoder().decode


@dataclass
class Act:
    """An act of the operator's on all letters of a receiver, and the letters that there were.

    It is also on what becomes a letter before it has looked, which may be seconds later.
    """

    what: str  # drop, requeue
    who: str
    target: str
    at: float
    letters: dict[int, bytes]  # position -> body
    size: int = 0
    done_at: float = math.inf
    outcome: str = ""  # done, failed; empty: it is not known


class Letters(Family):
    """See the module."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.acts: list[Act] = []

    def do_requeue(self, who: str, to: str | None) -> None:
        """Send all letters of a receiver again, to it or to another."""
        self._act("requeue", who, to or who)

    def do_drop(self, who: str) -> None:
        """Drop all letters of a receiver."""
        self._act("drop", who, who)

    def _act(self, what: str, who: str, target: str) -> None:
        world = self.world
        if world.row_of(who) is None or world.row_of(target) is None:
            return
        letters = self.there(who)
        act = Act(what, who, target, world.now, letters, sum(map(len, letters.values())))
        self.acts.append(act)
        service = world.node.service.dead_letters
        to = None if target == who else target
        doing = (
            service.requeue(who, Wanted(), to) if what == "requeue" else service.drop(who, Wanted())
        )

        def done(result: object) -> None:
            act.done_at = world.now
            act.outcome = "failed" if isinstance(result, Failure) else "done"
            if isinstance(result, Failure):
                world.admin_failed(result)

        Deferred.fromCoroutine(doing).addBoth(done)

    def there(self, who: str) -> dict[int, bytes]:
        """The letters of a receiver that are in the file, by position."""
        row = self.world.row_of(who)
        if row is None:
            return {}
        found = self.world.node.log._store.db.execute(
            "select position, message from dead where receiver = ?", (row.number,)
        )
        return {position: _decode(message)[0][0] for position, message in found.fetchall()}

    def waiting_besides(self, name: str) -> int:
        """See `Family`."""
        return sum(act.size + 200 * len(act.letters) for act in self.acts if act.target == name)

    def letters_again(self, name: str) -> int:
        """See `Family`."""
        return sum(act.what == "requeue" and act.target == name for act in self.acts)

    # --- what must be so

    def finish(self, check: Check) -> None:
        """See `Family`. All that is left is sent again."""
        world = self.world
        if world.is_blocked or world.poison or not self.acts:
            return
        for name in list(world.receivers):
            if self.there(name):
                self._act("requeue", name, name)
        last = [act for act in self.acts if act.at == world.now]
        if not last:
            return
        if not world.run_until(lambda: all(self._is_over(act) for act in last), LAST_SECONDS):
            left = {act.who: (act, self.there(act.who)) for act in last if not self._is_over(act)}
            check.fail("letters are not sent again", f"{left}")
        world.run(5.0)

    def _is_over(self, act: Act) -> bool:
        if act.outcome == "failed":
            return True  # for room, say
        come = self.witness.copies
        return act.outcome == "done" and all(
            (act.target, body) in come for body in act.letters.values()
        )

    def check(self, check: Check) -> None:
        """See `Family`."""
        world = self.world
        for sent in world.messages:
            if sent.receipt is None or not self.is_judged(sent):
                continue
            for name, status in sent.receipt.statuses.items():
                if status is Status.DEAD and name in world.receivers and not world.removed[name]:
                    self._check_kept(check, sent, name)
        self._check_copies(check)
        for act in self.acts:
            if act.outcome != "done" or act.at <= world.log_restored_at:
                continue
            for position in self.there(act.who):
                if position in act.letters:
                    check.fail("dealt with, and still a letter", f"{position} of {act.who}: {act}")
            if act.what == "drop":
                self._check_dropped(check, act)

    def _check_kept(self, check: Check, sent: Sent, name: str) -> None:
        """What is dead is a letter, or was dropped, or its copy has come."""
        world = self.world
        acts = [act for act in self.acts if act.who == name]
        if any(act.what == "drop" for act in acts) or sent.body in self.there(name).values():
            return
        targets = {act.target for act in acts}
        if any(self.witness.copies.get((one, sent.body)) for one in targets):
            return
        if not any(world.removed[one] or one in world.blocked for one in targets):
            check.fail("a dead letter is lost", f"{sent.body[:40]!r} of {name}: {acts}")

    def _check_copies(self, check: Check) -> None:
        """No more copies than letters that were sent again, and no letter besides them.

        One receiver can have two letters of a body: its own, and that of a copy.
        """
        world = self.world
        requeues = [act for act in self.acts if act.what == "requeue"]
        for (name, body), copies in self.witness.copies.items():
            sent = world.sent.get(body)
            if sent is None or not self.is_judged(sent):
                continue
            replays = [place for place, (flags, _) in copies.items() if flags & REPLAY]
            again = sum(family.copies_besides(name) for family in world.families) + sum(
                max(1, list(act.letters.values()).count(body))
                for act in requeues
                if act.target == name
            )
            if len(replays) > again:
                check.fail("sent again too often", f"{body[:40]!r} to {name}: {copies}")
        for name in world.receivers:
            for body, count in Counter(self.there(name).values()).items():
                sent = world.sent.get(body)
                copies = self.witness.copies.get((name, body), {})
                if sent is not None and self.is_judged(sent) and count > 1 + len(copies):
                    check.fail("dead more than once", f"{body[:40]!r} of {name}")

    def _check_dropped(self, check: Check, act: Act) -> None:
        """What was dropped comes to nobody."""
        again = [one for one in self.acts if one.what == "requeue"]
        if any(
            one.who == act.who and one.at <= act.done_at and one.done_at >= act.at for one in again
        ):
            return
        # A message may be a letter of several receivers, by the same position.
        sent = {(one.target, position) for one in again for position in one.letters}
        for (name, body), copies in self.witness.copies.items():
            if any(family.copies_besides(name) for family in self.world.families):
                continue  # it may have acknowledged what was another's letter
            for flags, of in copies.values():
                if not flags & REPLAY or not of.startswith("log:"):
                    continue
                position = int(of.removeprefix("log:"))
                if (
                    position in act.letters
                    and (name, position) not in sent
                    and not any(
                        one.target == name
                        and one.who != act.who
                        and self._may_have_met(check, one, body)
                        for one in again
                    )
                ):
                    check.fail("dropped, and sent again", f"{body[:40]!r} to {name}: {act}")

    def _may_have_met(self, check: Check, act: Act, body: bytes) -> bool:
        """Whether a message may have become a letter of the receiver's while an act ran."""
        end = min([act.done_at, *(at for at in self.world.node.died_at if at >= act.at)])
        if (act.who, body) in self.witness.rejected:
            return self.witness.answered_at.get((act.who, body), math.inf) <= end
        sent = self.world.sent.get(body)  # when it was given up is not known
        return sent is not None and sent.at <= end and check.may_be_given_up(sent, act.who)
