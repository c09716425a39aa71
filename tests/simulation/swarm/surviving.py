"""Receipts that survive in a swarm (DELIVERY 53): of producers whose outbox is a file.

A program that comes back lists what its earlier lives left, follows it (`changes`), and forgets
some. Each message that was kept comes to its end in the receipts of one of its lives, or is still
listed: none is lost. What was forgotten, or told to its end, is listed no more. And what is told is
what was told before, and what the log has.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from msgservice.client.receipt import Receipt
from msgservice.errors import ClientClosed
from msgservice.message import Status
from msgservice.records import PROMISE, hash_of
from tests.simulation.swarm.family import Family

if TYPE_CHECKING:
    from tests.simulation.swarm.checkers import Check
    from tests.simulation.swarm.parties import ProducerParty, Sent
    from tests.simulation.swarm.world import World

PAGE = 7  # so that there are several
LOOKED_AT = 60  # receipts of which the log is asked
TOLD_SECONDS = 60.0  # until all that was listed in the end is told


@dataclass
class Follower:
    """A receipt that a program has listed, and what it was told of it.

    `keep`: it stays until it is forgotten. `is_over`: no more comes. `error`: with this.
    """

    receipt: Receipt
    life: int
    keep: bool
    told: dict[str, Status] = field(default_factory=dict)
    is_over: bool = False
    error: Exception | None = None


@dataclass
class Left:
    """The messages of one producer, by sequence, as its programs know them over all lives.

    `over`: told to the end, by whoever sent it or a later life; `forgotten`: that is on disk;
    `maybe`: it was asked for.
    """

    final: dict[tuple[int, str], Status] = field(default_factory=dict)
    followers: dict[int, list[Follower]] = field(default_factory=dict)
    over: set[int] = field(default_factory=set)
    forgotten: set[int] = field(default_factory=set)
    maybe: set[int] = field(default_factory=set)


class Surviving(Family):
    """See the module."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.by_producer: dict[str, Left] = {}
        self.is_finishing = False

    # --- operations

    def do_list(self, who: str, keep: bool) -> None:
        """Let a program list the receipts that are open, and follow each."""
        self._list(self.world.producers[who], keep=keep)

    def do_forget(self, who: str, at: int) -> None:
        """Let a program forget one of those that it has, sent or listed."""
        producer, left = self.world.producers[who], self._left(who)
        if not producer.is_stored or not producer.is_up or producer.client is None:
            return
        mine = [sent for sent in producer.sent if sent.life == producer.lives and sent.receipt]
        held = [sent.receipt for sent in mine if sent.receipt is not None]
        held += [
            one.receipt
            for some in left.followers.values()
            for one in some
            if one.life == producer.lives
        ]
        if held:
            receipt = held[at % len(held)]
            left.maybe.add(receipt.sequence)
            receipt.forget().addCallbacks(
                lambda _: left.forgotten.add(receipt.sequence), lambda _: None
            )

    def _left(self, who: str) -> Left:
        return self.by_producer.setdefault(who, Left())

    def _list(self, producer: ProducerParty, *, keep: bool, after: int = 0) -> None:
        client = producer.client
        if client is None or not producer.is_stored or not producer.is_up:
            return
        life = producer.lives

        def listed(page: list[Receipt] | Failure) -> None:
            if isinstance(page, Failure):
                if not producer.is_leaving:
                    self.witness.note("receipts are not listed", page.getErrorMessage())
                return
            for receipt in page:
                self._follow(producer, receipt, life, keep=keep)
            if page:
                self._list(producer, keep=keep, after=page[-1].sequence)

        client.receipts(after, PAGE, keep=keep).addBoth(listed)

    def _follow(self, producer: ProducerParty, receipt: Receipt, life: int, *, keep: bool) -> None:
        left, sequence = self._left(producer.name), receipt.sequence
        if sequence in left.forgotten and self._judges(producer):
            self.witness.note("forgotten, and listed", f"{producer.name}: {receipt}")
        followers = left.followers.setdefault(sequence, [])
        before = [one for one in followers if one.life == life and one.is_over and not one.keep]
        # Not at once: what was kept for a while is told anew by the node, before its row goes.
        if before and self.is_finishing and self._judges(producer):
            self.witness.note("told to its end, and listed again", f"{producer.name}: {receipt}")
        follower = Follower(receipt, life, keep)
        followers.append(follower)

        async def follow() -> None:
            async for change in receipt.changes():
                if change.status is not None:
                    follower.told[change.receiver] = change.status
                    self._is_told(producer, sequence, change.receiver, change.status)

        def ended(result: Any) -> None:
            if isinstance(result, Failure):
                error = result.value
                assert isinstance(error, Exception)
                if isinstance(error, ClientClosed):
                    return
                follower.error = error
            follower.is_over = True
            left.over.add(sequence)

        Deferred.fromCoroutine(follow()).addBoth(ended)

    def over(self, sent: Sent) -> None:
        """Its own program has heard what becomes of a message, or why no more can be heard."""
        producer = self.world.producers[sent.producer]
        receipt = sent.receipt
        if not producer.is_stored or receipt is None:
            return
        known = receipt.run.known_of(receipt.sequence)
        if known.is_over and not isinstance(known.error, ClientClosed):
            self._left(producer.name).over.add(receipt.sequence)
            for change in known.changes:
                if change.status is not None:
                    self._is_told(producer, receipt.sequence, change.receiver, change.status)

    def _is_told(self, producer: ProducerParty, sequence: int, name: str, status: Status) -> None:
        before = self._left(producer.name).final.setdefault((sequence, name), status)
        if before is not status and self._judges(producer):
            self.witness.note(
                "a final state changed",
                f"{producer.name} {sequence} at {name}: {before.name}, then {status.name}",
            )

    def _judges(self, producer: ProducerParty) -> bool:
        """Whether nothing was put back, and no days have passed, after which all is forgotten."""
        world = self.world
        restored_at = max(world.log_restored_at, producer.restored_at)
        return restored_at < 0 and not world.jumped_days

    # --- what must be so

    def finish(self, check: Check) -> None:
        """See `Family`: whoever is there lists what is left, and hears it."""
        world = self.world
        some = [one for one in world.producers.values() if one.is_stored and self._judges(one)]
        for producer in some:
            self._list(producer, keep=False)
        world.run(TOLD_SECONDS if some else 0.0)
        self.is_finishing = True
        for producer in some:
            self._list(producer, keep=False)
        world.run(2.0 if some else 0.0)

    def check(self, check: Check) -> None:
        """See `Family`."""
        for producer in self.world.producers.values():
            if not producer.is_stored or not self._judges(producer) or not producer.is_up:
                continue
            left = self._left(producer.name)
            listed = {
                sequence
                for sequence, some in left.followers.items()
                if any(one.life == producer.lives for one in some)
            }
            for sent in producer.sent:
                if sent.receipt is None or sent.kept_at is None:
                    continue
                sequence = sent.receipt.sequence
                if sequence not in left.over | left.maybe | listed:
                    check.fail(
                        "a receipt is lost", f"{producer.name} {sequence}: {sent.body[:40]!r}"
                    )
            for some in left.followers.values():
                for one in some[-1:]:
                    self._check_told(check, producer, one)
            for sequence in [*left.followers][-LOOKED_AT:]:
                self._check_log(check, producer, left, sequence)

    def _check_told(self, check: Check, producer: ProducerParty, one: Follower) -> None:
        """One that was listed in the end is told, unless what it waits for does not come."""
        is_waited_for = one.life == producer.lives and not self.world.is_blocked
        if is_waited_for and not one.is_over and not self._waits(producer, one.receipt):
            check.fail("a receipt is never told", f"{producer.name}: {one.receipt} {one.told}")

    def _waits(self, producer: ProducerParty, receipt: Receipt) -> bool:
        """Whether some receiver of a message has not answered, as far as the program knows.

        Or none can have, for the message is not due yet.
        """
        of = [one for one in producer.sent if _sequence(one) == receipt.sequence]
        if any(self.world.now < one.at + one.delay + TOLD_SECONDS for one in of if one.delay):
            return True
        if not receipt.receivers:
            return not any(one.body in self.witness.accepted_over for one in of)
        return any(not status.final for status in receipt.statuses.values())

    def _check_log(self, check: Check, producer: ProducerParty, left: Left, sequence: int) -> None:
        """What programs were told of a message is what the log has of it, while it has that."""
        world, client = self.world, producer.client
        incarnation = str(getattr(getattr(client, "_hop", None), "incarnation", ""))
        name = f"{producer.name}/{hash_of(incarnation)}/{sequence}"
        found: list[Any] = []
        for find in (world.node.log.find, world.node.log.find_finished):
            if not found or found[-1] is None:
                find(name).addCallbacks(found.append, lambda _: None)
                world.run(0.1)
        if not found or found[-1] is None:
            return
        of = found[-1]
        decided = left.final.get((sequence, PROMISE))
        if decided is not None and of.promise is not None and of.promise.status is not decided:
            check.fail("decided otherwise than a receipt says", f"{name}: {of.promise}, {decided}")
        for number, (stored, _, _) in of.states.items():
            row = world.node.service.parts.directory.numbered(number)
            told = left.final.get((sequence, row.name)) if row is not None else None
            if told is not None and told is not stored:
                check.fail("a receipt says another state", f"{name} at {row}: {told}, {stored}")


def _sequence(sent: Sent) -> int:
    return 0 if sent.receipt is None else sent.receipt.sequence
