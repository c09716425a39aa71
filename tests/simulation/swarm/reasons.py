"""Questions why in a swarm (DELIVERY 56): programs ask where their messages are, and why.

What is named is so at that time: who is said to be away has no session, who is said to have a
message was sent it, what is said to be tried again was refused or lost, and what it waits behind is
of its lane. Of a message that is not through there always is an answer, for each receiver of its
audience; and what is said to be final is that from then on, as what was told before is said.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from msgservice.administration import Cause
from msgservice.errors import MsgServiceError, UnknownMessage
from msgservice.message import Status
from msgservice.node import why
from tests.simulation.swarm.family import Family

if TYPE_CHECKING:
    from tests.simulation.swarm.checkers import Check
    from tests.simulation.swarm.parties import Sent
    from tests.simulation.swarm.world import World

RECENT = 8  # of the newest messages of a program one is picked
FINAL = {status.name.lower(): status for status in Status if status.final}
OF_NOBODY = {why.NOBODY, why.REMOVED_FROM_LOG}
STORED_WITHIN = 10.0  # seconds from an answer until it is on disk, where the disk works


@dataclass(eq=False)
class Asked:
    """A question, and what was so when it was asked.

    `sessions`: who had one. `paused`: who was. `final`: what its program had been told. `is_own`:
    the program asked by its receipt, and not the node itself by its position.
    """

    sent: Sent
    at: float
    is_own: bool
    sessions: set[Any]
    paused: set[str]
    final: dict[str, Status]
    causes: list[Cause] | None = None
    error: Exception | None = None
    answered_at: float = math.inf


class Reasons(Family):
    """See the module."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.asked: list[Asked] = []

    def do_why(self, who: str, which: int, by_node: bool) -> None:
        """Let a program ask about one of its messages, or whoever runs the node."""
        world, producer = self.world, self.world.producers[who]
        mine = [one for one in producer.sent if one.receipt is not None]
        mine = [one for one in mine if one.life == producer.lives]
        client, service = producer.client, world.node.service
        if client is None or not producer.is_up or not mine:
            return
        sent = mine[-1 - which % min(len(mine), RECENT)]
        assert sent.receipt is not None
        position = sent.receipt.position
        is_own = not by_node or position is None
        if not is_own and not (world.node.is_up and service.is_running):
            return
        final = {name: one for name, one in sent.receipt.statuses.items() if one.final}
        asked = Asked(sent, world.now, is_own, self._sessions(), self._paused(), final)
        self.asked.append(asked)
        answer: Deferred[list[Cause]] = (
            client.explain(sent.receipt) if is_own else service.why(f"log:{position}")
        )
        answer.addBoth(self._answered, asked)

    def _sessions(self) -> set[Any]:
        """The open sessions of receivers at the node, as taps of its channels."""
        return {
            tap
            for tap in self.world.node.taps
            if tap.has_resumed and not (tap.is_gone or tap.is_ending)
        }

    def _paused(self) -> set[str]:
        world = self.world
        if not (world.node.is_up and world.node.service.is_running):
            return set()
        return {row.name for row in world.node.service.parts.directory if row.options.paused}

    def _answered(self, result: list[Cause] | Failure, asked: Asked) -> None:
        asked.answered_at = self.world.now
        if isinstance(result, Failure):
            assert isinstance(result.value, Exception)
            asked.error = result.value
            if not isinstance(result.value, MsgServiceError):
                self.witness.note("a question fails", result.getTraceback()[-600:])
            return
        asked.causes = result
        sign, what = self._judge(asked, result)
        if sign:
            self.witness.note(sign, f"{what}; {asked.sent.body[:40]!r}, asked at {asked.at:.3f}")

    # --- what must be so at once

    def _judge(self, asked: Asked, causes: list[Cause]) -> tuple[str, str]:
        for cause in causes:
            if cause.node:
                continue
            if cause.kind not in why.KINDS or not cause.sentence.strip():
                return "a cause says nothing", f"{cause}"
            if (cause.kind in FINAL or cause.status in FINAL) and cause.kind != cause.status:
                return "a cause is of another state", f"{cause}"
            before = asked.final.get(cause.receiver)
            if before is not None and cause.status != before.name.lower():
                return "final, and told as open", f"told {before.name} before, and now {cause}"
            if (said := self._is_untrue(asked, cause)) and not self._may_be_other(asked):
                return "a cause is not so", f"{said}: {cause}"
        return "", ""

    def _may_be_other(self, asked: Asked) -> bool:
        """Whether a log was put back since, or before."""
        producer = self.world.producers[asked.sent.producer]
        return max(self.world.log_restored_at, producer.restored_at) >= 0

    def _is_untrue(self, asked: Asked, cause: Cause) -> str:
        """Return what is so instead, or nothing."""
        world, witness, sent = self.world, self.witness, asked.sent
        name, kind = cause.receiver, cause.kind
        who = (name, sent.body)
        if kind == why.NOBODY:
            return "it has an audience" if sent.audience else ""
        if kind == why.DELAYED_UNTIL:
            return "it is not delayed" if sent.delay is None else ""
        if name not in world.receivers or sent.key is not None:
            return ""
        if kind == why.AWAY:
            stays = {tap for tap in self._sessions() & asked.sessions if tap.peer == name}
            return "it has a session" if stays else ""
        if kind == why.PAUSED:
            return "it is not paused" if name not in asked.paused | self._paused() else ""
        here = {tap.peer for tap in self._sessions() | asked.sessions}
        if kind in (why.IN_FLIGHT, why.PROBING, why.IN_LINE, why.TOO_LARGE) and name not in here:
            return "it has no session"
        if kind in (why.IN_FLIGHT, why.PROBING):
            if who not in witness.fed_at:
                return "it was not sent"
            return self._was_heard(asked, name)
        if kind in (why.RETRYING, why.REFUSING):
            if who not in witness.refused_by and not (
                kind == why.RETRYING and witness.losses[name]
            ):
                return "it was not refused"
            return self._was_heard(asked, name)
        if kind == why.BEHIND:
            return self._is_not_behind(asked, cause)
        return ""

    def _was_heard(self, asked: Asked, name: str) -> str:
        """What was answered, and heard, some time before the question is not open."""
        world = self.world
        heard = self.witness.answered_at.get((name, asked.sent.body), math.inf)
        if heard >= asked.at - STORED_WITHIN:
            return ""
        died = any(heard <= at <= heard + STORED_WITHIN for at in world.node.died_at)
        faulty = any(op.kind in ("disk", "sync", "power") for op in world.plan.ops)
        copies = self.witness.copies.get((name, asked.sent.body))
        return "" if died or faulty or copies else f"it was answered at {heard:.3f}"

    def _is_not_behind(self, asked: Asked, cause: Cause) -> str:
        sent, behind = asked.sent, cause.behind
        assert sent.receipt is not None
        if behind is None:
            return "behind what is not said"
        own = sent.receipt.position
        if own is not None and behind.position >= own:
            return "what it is behind comes later"
        if behind.subject != sent.subject:
            return "what it is behind is of another lane"
        return ""

    # --- what must be so in the end

    def check(self, check: Check) -> None:
        """See `Family`."""
        for asked in self.asked:
            if not self._may_be_other(asked) and not self.world.jumped_days:
                self._check_asked(check, asked)

    def _check_asked(self, check: Check, asked: Asked) -> None:
        sent = asked.sent
        is_known = sent.accepted_at is not None and sent.accepted_at < asked.at
        what = f"{sent.body[:40]!r}, asked at {asked.at:.3f}: {asked.causes}"
        is_there = asked.is_own or self.is_open(sent, asked.answered_at)
        if isinstance(asked.error, UnknownMessage) and is_known and sent.audience and is_there:
            check.fail("no answer to why", f"{asked.error}; {what}")
        if asked.causes is None:
            return
        if not asked.causes:
            check.fail("no answer to why", what)
        self._check_final(check, asked, what)
        names = [one.receiver for one in asked.causes if one.kind != why.LEFT_OUT and not one.node]
        if is_known and sent.delay is None and sent.key is None:
            of_nobody = {one.kind for one in asked.causes} & OF_NOBODY
            if not of_nobody and sorted(names) != sorted(sent.audience):
                check.fail("why is told of others", f"{sorted(names)}, of {sent.audience}: {what}")

    def _check_final(self, check: Check, asked: Asked, what: str) -> None:
        """What is said to be final is that in the end."""
        sent, producer = asked.sent, self.world.producers[asked.sent.producer]
        if sent.life != producer.lives or not producer.is_up or self.world.is_blocked:
            return
        assert sent.receipt is not None
        for cause in asked.causes or ():
            told = sent.receipt.statuses.get(cause.receiver)
            status = FINAL.get(cause.kind)
            if cause.node or status is None or told is None:
                continue
            if told.final and told is not status:
                check.fail("why says another state than is told", f"{told.name}; {what}")
