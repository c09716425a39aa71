"""Promises in a swarm (DELIVERY 55): so many receivers acknowledge a message in time, or not.

Each is decided once, and told as it is stored, also when its message has left the log. Kept means
that so many have answered; broken for its time, that the time was over; in vain, that too few were
left. What was cancelled for one is handled by nobody, and is of one that cancels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from twisted.python.failure import Failure

from msgservice import Promise
from msgservice.errors import MsgServiceError, TooFewReceivers
from msgservice.message import Status
from msgservice.node.promises import IN_VAIN, LATE
from msgservice.records import hash_of
from tests.simulation.swarm.family import Family
from tests.simulation.swarm.times import TICK

if TYPE_CHECKING:
    from msgservice import PromiseOutcome
    from tests.simulation.swarm.checkers import Check
    from tests.simulation.swarm.parties import Sent
    from tests.simulation.swarm.world import World

AFTER = 10.0  # seconds behind its time: what a start leaves to receivers, and a disk takes
LOOKED_AT = 100  # promises of one run: each is asked of the log
WORDS = {"kept": Status.ACKNOWLEDGED, LATE: Status.EXPIRED, IN_VAIN: Status.DEAD}


@dataclass
class Promised:
    """The promise of one message, and what its program was told."""

    need: int  # 0: all
    within: float
    cancels: bool
    outcome: PromiseOutcome | None = None
    at: float = 0.0  # when it was told
    error: MsgServiceError | None = None

    def of(self, sent: Sent) -> int:
        """How many that are."""
        return self.need or len(sent.audience)


class Promises(Family):
    """See the module."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.promised: list[Sent] = []

    def do_promise(
        self,
        who: str,
        subject: str,
        count: int,
        need: int,
        within: float,
        cancels: bool,
    ) -> None:
        """Hand over some messages that come with a promise."""
        producer = self.world.producers[who]
        before = len(producer.sent)
        promise = Promise(
            need=need or "all", within=within, otherwise="cancel" if cancels else "notify"
        )
        producer.send(subject, count, 0, None, False, promise=promise)
        for sent in producer.sent[before:]:
            sent.promised = Promised(need, within, cancels)
            self.promised.append(sent)

    def accepted(self, sent: Sent) -> None:
        """Its program hears what becomes of the promise."""
        assert sent.receipt is not None
        promised: Promised | None = sent.promised
        assert promised is not None

        def told(outcome: PromiseOutcome | Failure) -> None:
            promised.at = self.world.now
            if isinstance(outcome, Failure):
                error = outcome.value
                assert isinstance(error, MsgServiceError), error
                promised.error = error
            else:
                promised.outcome = outcome
            self.world.surviving.over(sent)

        sent.receipt.promised().addBoth(told)

    def may_fail(self, sent: Sent, error: Exception) -> bool:
        """See `Family`. Fewer receivers were there."""
        return isinstance(error, TooFewReceivers) and sent.promised is not None

    @property
    def drain_seconds(self) -> float:
        """See `Family`."""
        now = self.world.now
        left = [sent.at + sent.promised.within - now for sent in self.promised]
        return max(0.0, *left, 0.0) + AFTER if left else 0.0

    # --- what must be so

    def check(self, check: Check) -> None:
        """See `Family`."""
        for sent in self.promised:
            if not self.is_judged(sent) or sent.accepted_at is None:
                continue
            promised, producer = sent.promised, self.world.producers[sent.producer]
            lives = sent.life == producer.lives and producer.is_up
            if promised.outcome is not None:
                self._check_outcome(check, sent)
            elif lives and promised.error is None and not self.world.is_blocked:
                check.fail("a promise is never decided", f"{self._said(sent)}")
            self._check_cancelled(check, sent)
        for sent in self.promised[-LOOKED_AT:]:
            if self.is_judged(sent) and sent.accepted_at is not None:
                self._check_kept_as_told(check, sent)
        parts = self.world.node.service.parts
        if parts.promises.open != sum(one.left.count for one in parts.promises._open.values()):
            check.fail("promises are counted wrong", f"{parts.promises.open}")

    def _said(self, sent: Sent) -> str:
        return f"{sent.body[:40]!r} at {sent.at:.3f} for {sent.audience}, {sent.promised}"

    def _check_outcome(self, check: Check, sent: Sent) -> None:
        promised, audience = sent.promised, sent.audience
        outcome, need = promised.outcome, promised.of(sent)
        states = outcome.receivers
        acknowledged = [name for name, one in states.items() if one is Status.ACKNOWLEDGED]
        if outcome.kept:
            if len(acknowledged) < need:
                check.fail("kept, and was not told by whom", self._said(sent))
            for name in acknowledged:
                if (name, sent.body) not in self.witness.answered:
                    check.fail("kept by who did not answer", f"{name}: {self._said(sent)}")
        elif outcome.reason == LATE:
            if promised.at < sent.at + promised.within - TICK and not self.world.jumped_days:
                check.fail("broken before its time", self._said(sent))
        elif outcome.reason == IN_VAIN:
            lost = [one for one in states.values() if one.final and one is not Status.ACKNOWLEDGED]
            # Its program is told of that before it is told where it was undone.
            undone = self.world.undos.touches(sent)
            if len(audience) - len(lost) >= need and not undone:
                check.fail("broken, and could be kept", self._said(sent))
        else:
            check.fail("broken without a reason", self._said(sent))

    def _check_cancelled(self, check: Check, sent: Sent) -> None:
        assert sent.receipt is not None
        for name, status in sent.receipt.statuses.items():
            if status is not Status.CANCELLED or self.world.undos.touches(sent):
                continue
            if not sent.promised.cancels:
                check.fail("cancelled, and was not to be", f"{name}: {self._said(sent)}")
            receiver = self.world.receivers.get(name)
            # As somebody else's letter that was sent again to this one it may be.
            is_copied = (name, sent.body) in self.witness.copies
            if receiver is not None and sent.body in receiver.ever and not is_copied:
                check.fail("cancelled, and handled", f"{name}: {self._said(sent)}")
            outcome = sent.promised.outcome
            if outcome is not None and outcome.kept:
                check.fail("kept, and cancelled", f"{name}: {self._said(sent)}")

    def _check_kept_as_told(self, check: Check, sent: Sent) -> None:
        """What the log says of it, and of its message, also when that has gone (DELIVERY 54)."""
        world = self.world
        assert sent.receipt is not None
        incarnation = self._incarnation(sent)
        if not incarnation:
            return
        name = f"{sent.producer}/{hash_of(incarnation)}/{sent.receipt.sequence}"
        found: list[Any] = []
        for find in (world.node.log.find, world.node.log.find_finished):
            if not found or found[-1] is None:
                find(name).addCallbacks(found.append, lambda _: None)
                world.run(0.1)
        if not found or found[-1] is None:
            return  # kept no more
        of = found[-1]
        if of.promise is None:
            check.fail("a promise is not found", self._said(sent))
        outcome = sent.promised.outcome
        word = outcome and WORDS.get("kept" if outcome.kept else outcome.reason)
        if outcome is not None and of.promise.status is not word:
            check.fail("decided otherwise than told", f"{of.promise}: {self._said(sent)}")
        for number, (stored, _, _) in of.states.items():
            row = world.node.service.parts.directory.numbered(number)
            told = sent.receipt.statuses.get(row.name) if row is not None else None
            if told is not None and told.final and told is not stored:
                check.fail("told otherwise than kept", f"{row}: {stored}, {self._said(sent)}")

    def _incarnation(self, sent: Sent) -> str:
        """The incarnation that a message was sent in, while that is its program's."""
        producer = self.world.producers[sent.producer]
        client: Any = producer.client
        if client is None or sent.life != producer.lives:
            return ""
        return str(client._hop.incarnation)
