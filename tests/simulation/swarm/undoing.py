"""Undo in a swarm: programs take back what they sent, by receipt, range, position and key.

Of each account: there is one outcome for each message at each receiver of its audience, so that
they add up to that; what it calls cancelled is handled by nobody afterwards, and told as that; what
it calls final stays what it is; and what it leaves to an answer may have been handed over.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from msgservice.administration import UndoTold
from msgservice.errors import MsgServiceError, UnknownMessage
from msgservice.message import Status
from tests.simulation.swarm.family import Family
from tests.simulation.swarm.retained import Retained
from tests.simulation.swarm.times import CallBack

if TYPE_CHECKING:
    from tests.simulation.swarm.checkers import Check
    from tests.simulation.swarm.parties import ProducerParty, Sent
    from tests.simulation.swarm.world import World

RECENT = 8  # of the newest messages of a program one is picked
FINAL = {status.name.lower(): status for status in Status if status.final} | {
    "cancelled_before": Status.CANCELLED
}
CALLED_OFF = ("cancelled", "cancelled_before")


@dataclass(eq=False)
class Undoing:
    """An undo, and what came of it.

    `first` and `count`: the sequences that it is about; or `key`. `by_position`: by that of the
    first, which the node knows no more when that message has left the log. `sent_to`: by receiver,
    when the node had sent it something last. `told`: None as long as it is not known.
    """

    who: str
    life: int
    at: float
    first: int
    count: int
    key: str | None = None
    by_position: bool = False
    told: UndoTold | None = None
    error: Exception | None = None
    answered_at: float = math.inf
    calls: tuple[CallBack, ...] = ()
    sent_to: dict[str, float] | None = None

    def covers(self, sent: Sent) -> bool:
        """Whether it is about this message, as far as that is known."""
        if sent.producer != self.who:
            return False
        if self.key is not None:
            return sent.key == self.key
        if sent.life != self.life:
            return False
        if sent.receipt is None:  # it may have any sequence
            return self.count > 1
        return self.first <= sent.receipt.sequence < self.first + self.count


class Undos(Family):
    """See the module."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.undos: list[Undoing] = []

    # --- operations

    def do_undo(self, who: str, how: str, which: int, count: int) -> None:
        """Let a program take back something that it sent: "receipt", or by its "position"."""
        producer = self.world.producers[who]
        client = producer.client
        mine = self._mine(producer)
        if client is None or not producer.is_up or not mine:
            return
        one = mine[-1 - which % min(len(mine), RECENT)]
        assert one.receipt is not None
        position = one.receipt.position
        undo = Undoing(who, producer.lives, self.world.now, one.receipt.sequence, count)
        undo.by_position = how == "position" and position is not None
        message = f"log:{position}" if undo.by_position else one.receipt
        self._begin(undo, client.undo(message, count))

    def do_undo_key(self, who: str, slot: int) -> None:
        """Let a program take back what it sent, in whichever life, with a key."""
        producer, key = self.world.producers[who], f"slot-{slot}"
        if producer.client is not None and producer.is_up:
            undo = Undoing(who, producer.lives, self.world.now, 0, 1, key)
            self._begin(undo, producer.client.undo(key=key))

    def _mine(self, producer: ProducerParty) -> list[Sent]:
        """The messages of a program, in this life, that have a sequence, rising."""
        found = {
            sent.receipt.sequence: sent
            for sent in self.world.messages
            if sent.producer == producer.name
            and sent.life == producer.lives
            and sent.receipt is not None
        }
        return [found[sequence] for sequence in sorted(found)]

    def _begin(self, undo: Undoing, undoing: Deferred[UndoTold]) -> None:
        self.undos.append(undo)
        calls = []
        for sent in self.world.messages:
            if sent.delay is not None and undo.covers(sent):
                call = CallBack(self.world.now)
                sent.calls.append(call)
                calls.append(call)
        undo.calls = tuple(calls)
        undoing.addBoth(self._answered, undo)

    def _answered(self, result: UndoTold | Failure, undo: Undoing) -> None:
        undo.answered_at = self.world.now
        if isinstance(result, Failure):
            error = result.value
            assert isinstance(error, Exception)
            undo.error = error
            if not isinstance(error, MsgServiceError):
                self.witness.note("an undo fails", result.getTraceback()[-600:])
            return
        undo.told = result
        undo.sent_to = {}
        for (name, _), at in self.witness.fed_at.items():
            undo.sent_to[name] = max(at, undo.sent_to.get(name, at))

    # --- for what else is judged

    def touches(self, sent: Sent) -> bool:
        """Whether a message may have been undone, as a whole or in part."""
        if not self.undos:
            return False
        alike = [sent]
        if sent.key is not None:
            alike = [
                one
                for one in self.world.messages
                if one.key == sent.key and one.producer == sent.producer
            ]
        return any(undo.covers(one) for undo in self.undos for one in alike)

    def may_be_cancelled(self, sent: Sent, name: str) -> bool:
        """Whether a message was undone at a receiver, or may have been and nobody can say so."""
        if not self.touches(sent):
            return False
        producer = self.world.producers[sent.producer]
        if sent.life != producer.lives or sent.receipt is None:
            return True
        return sent.receipt.statuses.get(name) is Status.CANCELLED

    # --- what must be so

    def check(self, check: Check) -> None:
        """See `Family`."""
        for undo in self.undos:
            producer = self.world.producers[undo.who]
            if max(producer.restored_at, self.world.log_restored_at) >= 0:
                continue
            covered = [sent for sent in self.world.messages if undo.covers(sent)]
            if isinstance(undo.error, UnknownMessage):
                self._check_unknown(check, undo, covered)
            elif undo.told is not None:
                self._check_account(check, undo, undo.told, covered)

    def _said(self, undo: Undoing) -> str:
        return f"{undo}"

    def _is_known(self, sent: Sent, undo: Undoing) -> bool:
        """Whether the node had it when it was asked, and has something to say of it ever since."""
        return (
            sent.accepted_at is not None
            and sent.accepted_at < undo.at
            and (bool(sent.audience) or bool(sent.calls))
            and not self.world.jumped_days
        )

    def _check_unknown(self, check: Check, undo: Undoing, covered: list[Sent]) -> None:
        if undo.key is not None or undo.by_position:
            return  # these are remembered for a while only
        first = [one for one in covered if one.receipt and one.receipt.sequence == undo.first]
        if first and self._is_known(first[0], undo):
            check.fail("an undo does not find what there is", f"{first}: {self._said(undo)}")

    def _check_account(
        self, check: Check, undo: Undoing, told: UndoTold, covered: list[Sent]
    ) -> None:
        strange = {word for of in told.receivers.values() for word in of} - {"in_flight", *FINAL}
        if strange:
            check.fail("an outcome that is none", f"{strange}: {self._said(undo)}")
        for name, outcomes in told.receivers.items():
            if sum(outcomes.values()) > told.messages:
                check.fail("undone oftener than there were", f"{name}: {self._said(undo)}")
        if undo.key is not None:
            self._check_key(check, undo, told, covered)
            return
        self._check_adds_up(check, undo, told, covered)
        known = {one.receipt.sequence for one in covered if one.receipt}
        if len(known) != told.messages or self._clears(undo):
            return
        for name, outcomes in told.receivers.items():
            of = [sent for sent in covered if name in sent.audience]
            self._check_stays(check, undo, name, Counter(outcomes), of)
            self._check_left(check, undo, name, outcomes.get("in_flight", 0), of)

    def _check_key(self, check: Check, undo: Undoing, told: UndoTold, covered: list[Sent]) -> None:
        if told.messages != 1:
            check.fail("a key has other than one message", self._said(undo))
        limits = self.world.limits
        known = [one for one in covered if self._is_known(one, undo) and one.delay is None]
        sizes = {len(one.audience) for one in known if one.receipt and one.receipt.position}
        is_one = limits.idempotency_keys >= 100 and len({one.body for one in covered}) == 1
        total = sum(sum(outcomes.values()) for outcomes in told.receivers.values())
        if known and is_one and sizes and total not in sizes:
            check.fail("an undo does not add up", f"{total} of {sizes}: {self._said(undo)}")

    def _check_adds_up(
        self, check: Check, undo: Undoing, told: UndoTold, covered: list[Sent]
    ) -> None:
        """One outcome for each message at each of its audience, or until it is due, at one."""
        sequences = {one.receipt.sequence for one in covered if one.receipt is not None}
        known = [sent for sent in covered if self._is_known(sent, undo)]
        total = sum(sum(outcomes.values()) for outcomes in told.receivers.values())
        least = sum(1 if sent.delay is not None else len(sent.audience) for sent in known)
        if total < least or told.messages < len(known):
            check.fail("an undo does not add up", f"{total}, {least} at least: {self._said(undo)}")
        is_whole = all(sent.receipt is not None for sent in covered) and not any(
            sent.delay is not None or sent.key is not None for sent in covered
        )
        is_whole = is_whole and len(sequences) == told.messages and not self._clears(undo)
        most = sum(len(sent.audience) for sent in covered)
        untold = [sent for sent in covered if sent.accepted_at is None]
        if is_whole and not untold and total > most:
            check.fail("an undo does not add up", f"{total}, {most} at most: {self._said(undo)}")

    def _clears(self, undo: Undoing) -> bool:
        """Whether it is about something that clears a subject: that is not among the messages.

        And one of these may have left the log, so that as many are known as there are.
        """
        (retained,) = [one for one in self.world.families if isinstance(one, Retained)]
        put = [sent for some in retained.put.values() for sent in some]
        return any(sent.retain == "clear" and undo.covers(sent) for sent in put)

    def _check_stays(
        self, check: Check, undo: Undoing, name: str, outcomes: Counter[str], of: list[Sent]
    ) -> None:
        """What is called cancelled is handled by nobody, and what is final stays so."""
        world = self.world
        receiver, producer = world.receivers.get(name), world.producers[undo.who]
        called_off = sum(outcomes[word] for word in CALLED_OFF)
        plain = all(sent.key is None and not sent.retain and sent.receipt for sent in of)
        if receiver is not None and plain:
            # As somebody else's letter that was sent again to this one it may be.
            copies = self.witness.copies
            handled = sum(
                sent.body in receiver.ever and (name, sent.body) not in copies for sent in of
            )
            if handled > len(of) - called_off:
                check.fail(
                    "undone, and handled",
                    f"{name}: {handled} of {len(of)}: {self._said(undo)}",
                )
        if undo.life != producer.lives or not producer.is_up or not plain:
            return
        states = Counter(sent.receipt.statuses.get(name) for sent in of if sent.receipt is not None)
        for status in set(FINAL.values()):
            said = sum(outcomes[word] for word, one in FINAL.items() if one is status)
            if states[status] < said and not world.is_blocked:
                check.fail(
                    "undone as what it is not",
                    f"{name}: {said} {status.name}, in the end {dict(states)}: {self._said(undo)}",
                )

    def _check_left(
        self, check: Check, undo: Undoing, name: str, in_flight: int, of: list[Sent]
    ) -> None:
        """What is left to an answer may have been handed over: to a receiver that got something."""
        world = self.world
        if not in_flight or undo.sent_to is None or not of:
            return
        begun = min(sent.at for sent in of)
        started = max((at for at in world.node.began_at if at <= undo.answered_at), default=0.0)
        if started >= begun or undo.sent_to.get(name, -1.0) >= begun or world.removed.get(name):
            return
        check.fail("left to an answer, and never sent", f"{name}: {self._said(undo)}")
