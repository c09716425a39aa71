"""What must be so: at every moment, and when all faults are over.

Judged from what crossed the boundaries (`witness`), from what handlers did and senders were told
(`parties`), and from the files. Where the product is asked at all, it is held against these.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Any

from msgservice.message import Status
from msgservice.recount import recount
from msgservice.testing.network import BUFFER_BYTES
from tests.simulation.swarm.accounts import FORBIDDEN
from tests.simulation.swarm.witness import Violation

if TYPE_CHECKING:
    from tests.simulation.swarm.parties import Handling, ReceiverParty, Sent
    from tests.simulation.swarm.world import World

BLOCKED_SECONDS = 600.0  # until what dead letters may hold up is looked for
REFUSAL_GRACE = 5.0  # seconds until what was answered counts no more
REMOVAL_SECONDS = 5.0  # between what a program did about a receiver and what came before it
REST_SECONDS = 60.0  # until what was heard last is stored, told and forgotten
ROW_BYTES = 300  # of a batch's row beside its messages, as docs/configuration.md says
PAGE_SLACK = 400_000  # bytes of a log's file beside its messages: tables, indexes, free pages


def matches(pattern: str, subject: str) -> bool:
    """Whether a pattern matches, said again in few words."""
    for token, found in zip(pattern.split("."), subject.split("."), strict=False):
        if token == ">":
            return True
        if token not in ("*", found):
            return False
    return pattern.count(".") == subject.count(".")


def count_of(world: World, sql: str) -> int:
    """Return the number that a statement finds in the node's log."""
    return int(str(world.node.log._store.db.execute(sql).fetchall()[0][0]))


class Check:
    """See the module."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.witness = world.witness
        self._open: list[Sent] = []  # what is not through yet

    def fail(self, sign: str, what: str) -> None:
        """Raise a `Violation`."""
        raise Violation(sign, f"at {self.world.now:.3f}: {what}")

    # --- at every moment

    def now(self) -> None:
        """What can be seen while it runs."""
        world = self.world
        node = world.node
        if node.failures and node.process.clock.alive:
            if node.is_stored and node.disk.sync_failed:
                # A process may end by that (SEMANTICS 19); whoever watches it starts it again.
                node.kill()
                node.start()
            else:
                self.fail("the node ends", repr(node.failures[0]))
        for found in world.udp_watch.found:
            self.fail("a session of datagrams lies", found)
        limits = world.limits
        # Of one turn there may be more than is noticed, and then `answer_bytes` ends it.
        unread_max = max(BUFFER_BYTES, limits.answer_bytes) + limits.frame_bytes + 128 * 1024
        for tap in world.node.taps:
            channel = tap.channel
            if channel is not None and channel.unread_bytes > unread_max:
                self.fail(
                    "answers pile up", f"{channel.unread_bytes} bytes wait for one peer to read"
                )

    def refusal(self, reason: str) -> None:
        """SEMANTICS 18: who is refused because of a receiver has much waiting for that receiver.

        What may wait is at most all that was handed over, matches and is not answered for long;
        where dead letters may be at a limit, what was rejected waits as well.
        """
        world = self.world
        name = next((name for name in world.receivers if f"'{name}'" in reason), None)
        if name is None or "backlog" not in reason:
            return
        answered_at, before = self.witness.answered_at, world.now - REFUSAL_GRACE
        # What a node heard and did not store before it was killed waits until it is heard again.
        heard = [at for at in self.witness.resumed_at.get(name, ()) if at < before]
        killed = [at for at in world.node.died_at if at > max(heard, default=0.0)]
        before = min([before, *(at - REFUSAL_GRACE for at in killed)])
        if world.log_restored_at >= 0:
            before = min(before, world.log_saved_at)  # what was answered since then waits again
        letters_full = self._letters_may_be_full(name)
        waiting = sum(
            len(sent.body) + 16
            for sent in world.messages
            if (
                answered_at.get((name, sent.body), world.now) >= before
                # What an outbox that was put back hands over again may wait once more.
                or world.producers[sent.producer].restored_at >= 0
                or (letters_full and (name, sent.body) in self.witness.rejected)
            )
            and not (sent.accepted_at is not None and name not in sent.audience and not sent.delay)
        )
        waiting += sum(family.waiting_besides(name) for family in world.families)
        if waiting * 4 < world.limits.backlog_bytes_max:
            self.witness.note(
                "refused for a backlog that is none",
                f"at most {waiting} bytes wait for {name}, and a producer is told: {reason}",
            )

    def _letters_may_be_full(self, name: str) -> bool:
        """Whether a message of this receiver that is rejected may find no room as a letter.

        Letters are made of what ran out of attempts too, which is not heard: half a limit is near.
        """
        sizes: dict[str, int] = {}
        for receiver, body in self.witness.rejected:
            sizes[receiver] = sizes.get(receiver, 0) + len(body) + ROW_BYTES
        limits = self.world.limits
        return (
            sizes.get(name, 0) * 2 >= limits.dead_bytes_max
            or sum(sizes.values()) * 2 >= limits.dead_bytes_total_max
        )

    # --- the end

    @property
    def drain_seconds(self) -> float:
        """How long it may take until all is settled, once nothing fails any more."""
        limits = self.world.limits
        silence = limits.heartbeat * limits.silence
        seconds = 2 * (silence + limits.close_timeout + limits.hello_timeout + limits.bye_timeout)
        seconds += limits.replacement_hold + 4 * limits.link_delay_max
        seconds += 4 * limits.retry_delay_max + 2 * limits.asked_delay_max
        if self.world.poison:
            tries = 10 + min(limits.max_attempts, limits.max_losses)
            seconds += 20.0 * tries * len(self.world.poison)
        places = min(limits.to_audiences_max, limits.sender_audiences, limits.audiences)
        named = sum(one.to is not None for one in self.world.sent.values())
        if places < 100:
            # Sets of receivers that nothing has any more make room within seconds (SEMANTICS 19),
            # and those that were waited for until now within a minute.
            seconds += 60.0 + 10.0 * (1 + named / places)
        if limits.keep_seconds < 3600 and limits.max_bytes < 10**6:
            seconds += limits.keep_seconds * 3
        seconds += 0.1 * len(self.world.sent)
        seconds += sum(family.drain_seconds for family in self.world.families)
        if self.world.over_udp:
            seconds += 200.0
        if self.world.accounts is not None:
            seconds += (
                120.0  # who was locked out has tried too often, and is looked at a minute later
            )
        return seconds

    def drain(self) -> None:
        """Wait until all is through, and nothing of it left; a stall is a violation.

        Through is what has crossed the boundaries: who was to answer a message has done so, and the
        node has heard it; senders were told. Only then is the product asked what it still has.
        """
        world = self.world
        seconds = self.drain_seconds
        end = world.now + seconds
        self._open = list(world.messages)
        # Dead letters stay until an operator comes: what they hold up is not waited for to the end.
        for part in (min(seconds, BLOCKED_SECONDS), seconds - BLOCKED_SECONDS):
            if world.run_until(self._is_through, part):
                self._rest(max(end - world.now, REST_SECONDS))
                return
            self.now()
            if self._dead_letters_block() or self._dead_letters_fill():
                return
        counts = Counter(self._waits(sent) for sent in self._open)
        first = self._open[0]
        room = world.node.log.room()
        sign = self._waits(first)[0]
        if sign == "a send is never answered" and room.full:
            sign = "a settled log refuses"
        whats = ", ".join(f"{count} of: {one} {who}" for (one, who), count in counts.items())
        self.fail(
            sign,
            f"not drained after {seconds:.0f} s: {whats}; first {first.body[:40]!r} sent at"
            f" {first.at:.3f}; {room}; {self.witness.errors[-1:]}; {self._state()}",
        )

    def _state(self) -> str:
        """What the product says of itself, for people."""
        world = self.world
        outlets = [
            f"{outlet.name}: connected {outlet.connection is not None},"
            f" paused {outlet.row.options.paused},"
            f" in flight {outlet.backlog.in_flight.messages}, error {outlet.trouble!r}"
            for outlet in world.node.service.parts.dispatch
        ]
        producers = [
            f"{one.name}: {one.client.why() if one.client is not None else 'no client'}"
            for one in world.producers.values()
        ]
        return "; ".join([*outlets, *producers])

    def _is_through(self) -> bool:
        self._open = [sent for sent in self._open if self._waits(sent)[0]]
        return not self._open

    def _waits(self, sent: Sent) -> tuple[str, str]:
        """Return what a message still waits for, and of whom; empty: nothing."""
        world, witness = self.world, self.witness
        if sent.error is not None:
            return "", ""
        producer = world.producers[sent.producer]
        is_told = sent.life == producer.lives  # the program that has sent it still runs
        if is_told and sent.accepted_at is None:
            return "a send is never answered", producer.name
        if sent.accepted_at is None:
            if not producer.is_stored or sent.kept_at is None:
                return "", ""
            restored = max(producer.restored_at, world.log_restored_at)
            known = sent.body in witness.accepted_over or sent.body in witness.refused
            if not known and sent.at > restored:
                return "an outbox never empties", producer.name
        for name in self._audience_of(sent):
            if not self._is_forgotten(sent) and not self._is_answered(sent, name):
                return "a receiver stalls", name
        if is_told and sent.settled is None and not self._has_no_place(sent):
            return "a receipt never settles", producer.name
        return "", ""

    def _has_no_place(self, sent: Sent) -> bool:
        """Whether what is due has no place: all sets of receivers have messages that are kept.

        It is tried again until one of them makes room (DELIVERY 43), for as long as these are kept.
        """
        world, limits = self.world, self.world.limits
        return (
            sent.delay is not None
            and limits.audiences < 100
            and count_of(world, "select count(*) from audience") >= limits.audiences - 1
            and count_of(world, "select count(*) from delayed") > 0
        )

    def _audience_of(self, sent: Sent) -> tuple[str, ...]:
        """Whom a message is for: as was told, or as it must be where nobody was there to hear it.

        So it is with what a stored outbox sends for a program that has died.
        """
        world = self.world
        witness = self.witness
        if sent.retain == "only":
            return ()
        over = witness.accepted_over.get(sent.body)
        is_moved_untold = (
            sent.delay is not None
            and sent.life != world.producers[sent.producer].lives
            and not (sent.audience or sent.calls)
        )
        if over is None or (
            sent.accepted_at is not None
            and not self._is_accepted_anew(sent)
            and not is_moved_untold
        ):
            return sent.audience
        if sent.kept_at is None or over < world.log_restored_at or sent.body in witness.refused:
            return ()
        return tuple(
            name
            for name, patterns in world.patterns.items()
            if patterns.is_certain
            and (
                any(matches(one, sent.subject) for one in world.receivers[name].patterns)
                if sent.to is None
                else name in sent.to
            )
        )

    def _is_accepted_anew(self, sent: Sent) -> bool:
        """Whether what the log forgot was handed over again, for a program that has died.

        A stored outbox does so, and the audience is decided anew, by who is there (SEMANTICS 8).
        """
        world = self.world
        if sent.accepted_at is None or sent.life == world.producers[sent.producer].lives:
            return False
        return any(
            saved <= sent.accepted_at < restored <= self.witness.accepted_over[sent.body]
            for saved, restored in world.log_gaps
        )

    def _is_forgotten(self, sent: Sent) -> bool:
        """Whether the log that was put back does not know a message; senders were told so."""
        world = self.world
        over = self.witness.accepted_over.get(sent.body, -1.0)
        return over < world.log_restored_at and (
            sent.accepted_at is None or sent.accepted_at >= world.log_saved_at
        )

    def _is_answered(self, sent: Sent, name: str) -> bool:
        """Whether the node has heard of this receiver what becomes of a message, as frames say."""
        world, witness = self.world, self.witness
        who = (name, sent.body)
        return (
            name not in world.receivers
            # How it ends then is not for its receiver to say.
            or (sent.ttl is not None and world.now > sent.at + sent.ttl)
            or (sent.promised is not None and sent.promised.cancels)
            or world.undos.may_be_cancelled(sent, name)
            or who in witness.answered_at
            or who in witness.rejected
            or any(at >= sent.at - REMOVAL_SECONDS for at in world.removed[name])
            or self.may_be_given_up(sent, name)
        )

    def may_be_given_up(self, sent: Sent, name: str) -> bool:
        """Whether a message may be dead, since its attempts failed or a process died of it."""
        world, witness = self.world, self.witness
        losses = witness.losses[name]
        if witness.tries[name, sent.body] + losses >= world.limits.max_attempts:
            return True
        return sent.body in world.poison and losses >= world.limits.max_losses

    def _rest(self, seconds: float) -> None:
        """Wait until the product has nothing in memory of what is through, nor in its log."""
        if self.world.run_until(lambda: not self._left() and not self._queued(), seconds):
            return
        self.now()
        if self._dead_letters_block():
            return
        if queued := self._queued():
            self.fail("a receiver stalls", f"{queued} queued; {self._state()}")
        self.fail("memory is left", f"after {seconds:.0f} s: {self._left()}")

    def _dead_letters_block(self) -> bool:
        """Whether dead letters, which only an operator may delete, take the room of the others."""
        world = self.world
        limit, total_max = world.limits.dead_bytes_max, world.limits.dead_bytes_total_max
        total = sum(self._dead_bytes(row.number) for row in world.node.service.parts.directory)
        for row in world.node.service.parts.directory:
            if row.options.paused and (self._dead_bytes(row.number) >= limit or total >= total_max):
                world.is_blocked = True
                world.blocked.add(row.name)
        return world.is_blocked

    def _dead_letters_fill(self) -> bool:
        """Whether all that waits are sends for which dead letters leave no room.

        They count as used and never go by themselves (`dead_bytes` in docs/configuration.md), each
        receiver may have a quarter of `max_bytes` of them, and a batch is stored whole or not.
        """
        world = self.world
        left = world.limits.max_bytes - sum(
            self._dead_bytes(row.number) for row in world.node.service.parts.directory
        )
        first: dict[str, Sent] = {}
        batches: Counter[str] = Counter()
        for sent in self._open:
            if self._waits(sent)[0] not in ("a send is never answered", "an outbox never empties"):
                return False
            begun = first.setdefault(sent.producer, sent)
            if (sent.subject, sent.to) == (begun.subject, begun.to):
                batches[sent.producer] += len(sent.body) + 16
        world.is_blocked = all(size > left for size in batches.values())
        return world.is_blocked

    def _dead_bytes(self, number: int) -> int:
        # A letter counts with its reason and 128 bytes (docs/configuration.md).
        return count_of(
            self.world,
            "select coalesce(sum(length(message) + length(reason) + 128), 0) from dead"
            f" where receiver = {number}",
        )

    def _queued(self) -> dict[str, int]:
        accounts: list[Any] = []
        world = self.world
        world.node.log.accounts().addCallbacks(accounts.extend, lambda f: accounts.append(None))
        world.run(0.2)
        names = {row.number: row.name for row in world.node.service.parts.directory}
        return {
            names.get(one.receiver, str(one.receiver)): one.queued
            for one in accounts
            if one is not None and one.queued and not names.get(one.receiver, "x").startswith("ex")
        }

    # --- all of it

    def all(self) -> None:
        """Everything that can be judged at the end."""
        world = self.world
        world.run(5.0)
        self._check_taken_in_again()
        for family in world.families:
            family.finish(self)
        self.now()
        for receiver in world.receivers.values():
            if hasattr(receiver, "look"):
                receiver.look()
        for sent in world.messages:
            self._check_sent(sent)
        for family in world.families:
            family.check(self)
        for receiver in world.receivers.values():
            self._check_receiver(receiver)
        self._check_stray()
        self._check_told()
        self._check_left()
        self._check_size()
        self._check_recount()
        if self.witness.found:
            raise self.witness.found[0]

    def _check_recount(self) -> None:
        """The log adds up for a reader that shares nothing with the node (DELIVERY 58)."""
        node = self.world.node
        if node.process.clock.alive and not self.world.is_blocked:
            found = recount(node.log._store.db.execute).discrepancies
            if found:
                self.fail("the recount differs", "; ".join(found[:3]))

    def _check_taken_in_again(self) -> None:
        """Who was suspended, and has got all, is in new audiences again (SEMANTICS 18).

        So is who may receive everything again (SEMANTICS 32).
        """
        world = self.world
        names = [
            name
            for name in sorted(world.suspends | world.blinded)
            if not world.receivers[name].is_dialled
            and any(matches(one, "a.1") for one in world.receivers[name].patterns)
            and (row := world.node.service.parts.directory.get(name)) is not None
            and not row.options.paused
        ]
        if not names or world.is_blocked:
            return
        for name in names:
            # Another program may have said other patterns in its name; it says its own again.
            world.receivers[name].cut()
            world.receivers[name].comes_back()
        world.run(100.0)
        producer = next(iter(world.producers.values()))
        producer.send("a.1", 1, 0, None, False)
        world.run(60.0)
        sent = producer.sent[-1]
        for name in names:
            if sent.accepted_at is not None and name not in sent.audience:
                self.fail("left out for ever", f"{name}, of {sent.body!r}")

    def _check_sent(self, sent: Sent) -> None:
        self._check_allowed(sent)
        places = self.witness.places.get(sent.body, {})
        if len(places) > 1 and sent.key is None and not self._may_repeat(sent.body):
            self.fail("stored twice", f"{sent.body[:40]!r}: {places}")
        if sent.error is None and sent.kept_at is not None and not self._is_forgotten(sent):
            for name in self._audience_of(sent):
                self._check_delivery(sent, name)
            self._check_audience(sent)

    def _check_allowed(self, sent: Sent) -> None:
        """SEMANTICS 32: what nobody may send, or its sender might not, is taken from nobody."""
        world = self.world
        if world.accounts is None:
            return
        if sent.accepted_at is not None and world.accounts.was_forbidden(sent, all_the_time=True):
            self.fail("what is forbidden is taken", f"{sent.body[:40]!r} of {sent.producer}")
        if sent.subject == FORBIDDEN:
            for name, receiver in world.receivers.items():
                if sent.body in receiver.ever:
                    self.fail("what is forbidden is received", f"{sent.body[:40]!r} at {name}")

    def _check_delivery(self, sent: Sent, name: str) -> None:
        world, witness = self.world, self.witness
        receiver = world.receivers.get(name)
        assert sent.receipt is not None
        status = sent.receipt.statuses.get(name)
        who = (name, sent.body)
        short = sent.body[:40]
        if receiver is None:
            if status is Status.ACKNOWLEDGED and who not in witness.answered:
                self.fail("acknowledged, and was not", f"{short!r} at {name}")
            return
        handled = sent.body in receiver.ever
        removed = any(at >= sent.at - REMOVAL_SECONDS for at in world.removed[name])
        if status is Status.ACKNOWLEDGED:
            if who not in witness.answered:
                self.fail("acknowledged, and was not", f"{short!r} at {name}")
            if not handled and receiver.restored_at < 0:
                self.fail("acknowledged, not handled", f"{short!r} at {name}")
        elif status is Status.DEAD:
            if who not in witness.rejected and not self.may_be_given_up(sent, name):
                tried = witness.tries[who] + witness.losses[name]
                self.fail("dead without a reason", f"{short!r} at {name}: {tried} attempts")
        elif status is Status.EXPIRED:
            if sent.ttl is None:
                self.fail("expired, and lives for ever", f"{short!r} at {name}")
        elif status is Status.REMOVED:
            if not removed:
                self.fail("removed, and was not", f"{short!r} at {name}")
        elif status is Status.CANCELLED and (
            sent.promised is not None or world.undos.touches(sent)
        ):
            pass  # `promises` judges it, and `undoing`
        elif not (
            handled
            or removed
            # How it ended is in the log, and its program is no more.
            or (sent.promised is not None and sent.promised.cancels)
            or world.undos.may_be_cancelled(sent, name)
            or who in witness.rejected
            or self.may_be_given_up(sent, name)
            or receiver.restored_at >= 0
            or name in world.blocked
            or sent.ttl is not None  # how it ended is in the log, and its program is no more
        ):
            self.fail("lost", f"{short!r} for {name}, told {status}")

    def _check_audience(self, sent: Sent) -> None:
        """SEMANTICS 8: the audience is one that the patterns in force allowed."""
        world = self.world
        if sent.accepted_at is None or sent.calls or sent.retain == "only":
            return
        assert sent.receipt is not None
        if sent.key is not None and sent.receipt.position is None:
            return  # its message has gone, and with it whom it was for
        # Who gets it is decided when it is due.
        decided_at = sent.accepted_at if sent.delay is None else math.inf
        if sent.delay is not None and not sent.audience:
            return  # whoever was to be told is no more
        if sent.to is not None:
            if not set(sent.audience) <= set(sent.to):
                self.fail("a wrong audience", f"{sent.body[:40]!r}: {sent.audience}")
            return
        for name, patterns in world.patterns.items():
            may = any(
                start <= decided_at and (end is None or end >= sent.at)
                for start, end, some in patterns.spans
                if any(matches(pattern, sent.subject) for pattern in some)
            )
            if name in sent.audience and not may:
                self.fail("a wrong audience", f"{sent.body[:40]!r} is for {name}")
            if patterns.is_certain and may and name not in sent.audience:
                self.fail("a wrong audience", f"{sent.body[:40]!r} is not for {name}")

    def _check_receiver(self, receiver: ReceiverParty) -> None:
        world = self.world
        for life, history in enumerate(receiver.histories):
            who = f"{receiver.name} in life {life + 1}"
            seen: set[bytes] = set()
            for body in history.bodies:
                copies = self.witness.copies.get((receiver.name, body), ())
                if body in seen and not copies and not self._may_repeat(body):
                    self.fail("handled twice", f"{who}: {body[:40]!r}")
                seen.add(body)
            if receiver.order == "strict" and not receiver.order_changed:
                self._check_order(who, receiver, history)
        strange = {
            body for body in receiver.ever if not body.startswith((b"stray", b"wolf", b"xstray"))
        } - {b"", *(sent.body for sent in world.messages)}
        if strange:
            self.fail("never sent", f"{receiver.name} handled {strange}")

    def _may_repeat(self, body: bytes) -> bool:
        sent = self.world.sent.get(body)
        if sent is None:
            return True
        restored = max(self.world.log_restored_at, self.world.producers[sent.producer].restored_at)
        return sent.at <= restored

    def _may_be_refused(self, sent: Sent) -> bool:
        """Whether nobody may have been there for it: none matched, or one was being removed."""
        if sent.require:
            return True
        end = math.inf if sent.accepted_at is None else sent.accepted_at
        return any(
            sent.at - REMOVAL_SECONDS <= at <= end
            for name in sent.to or ()
            for at in self.world.removed.get(name, ())
        )

    def _check_order(self, who: str, receiver: ReceiverParty, history: Handling) -> None:
        last: dict[tuple[str, str, str], tuple[int, bytes]] = {}
        for body, lane in zip(history.bodies, history.lanes, strict=True):
            sent = self.world.sent.get(body)
            if sent is None or sent.delay is not None or self._may_repeat(body):
                continue
            if (receiver.name, body) in self.witness.copies:
                continue  # sent again, late
            if (receiver.name, body) in self.witness.rejected:
                continue  # dead, unless that was not heard: then it comes once more, late
            if self._may_be_refused(sent):
                continue  # and where that was not heard it comes once more, and may be taken, late
            key = (sent.producer, lane, sent.subject)
            before = last.get(key)
            if before is not None and before[0] > sent.number:
                self.fail("out of order", f"{who}: {body[:40]!r} behind {before[1][:40]!r}")
            last[key] = (sent.number, body)

    def _check_stray(self) -> None:
        world = self.world
        if world.stray is None:
            return
        for subject, body, opened_at in world.stray.claimed:
            if opened_at < world.log_restored_at:
                continue
            for name, patterns in world.patterns.items():
                if not patterns.is_certain:
                    continue
                wanted = any(matches(one, subject) for one in patterns.spans[0][2])
                if wanted and (name, subject, body) not in self.witness.delivered_as:
                    self.fail("acknowledged, never delivered", f"{body!r} on {subject} for {name}")

    def _check_told(self) -> None:
        """What was told is what is kept (and asked for by `$node.status`)."""
        world = self.world
        log, node = world.node.log, world.node.service
        for sent in list(world.sent.values())[:200]:
            receipt = sent.receipt
            if receipt is None or receipt.position is None or sent.accepted_at is None:
                continue
            over = self.witness.accepted_over.get(sent.body, -1.0)
            came = self.witness.places.get(sent.body, {})
            if min([over, sent.accepted_at, *came.values()]) < world.log_restored_at:
                continue  # of a log that is no more, or was delivered and perhaps told by one
            found: list[Any] = []
            log.find(f"log:{receipt.position}").addCallbacks(found.append, found.append)
            world.run(0.1)
            if not found or not hasattr(found[0], "states"):
                continue
            for number, (stored, _, _) in found[0].states.items():
                row = node.parts.directory.numbered(number)
                told = receipt.statuses.get(row.name) if row is not None else None
                if row is not None and told is not None and told.final and told is not stored:
                    self.fail(
                        "told otherwise than kept",
                        f"{sent.body[:40]!r} at {row.name}: told {told.name}, kept {stored.name}",
                    )

    def _left(self) -> dict[str, Any]:
        """What the product's memory has of messages, by name: nothing, when all is through."""
        world = self.world
        if not world.node.service.is_running:
            return {"a node that has not begun": 1}  # the power was off just before
        parts = world.node.service.parts
        commits, tracker = parts.commits, parts.tracker
        found: dict[str, Any] = {
            "uncommitted bytes": commits.uncommitted_bytes,
            "sources of a group": len(commits._sources),
            "progress of a group": len(commits._progressing) + len(commits._awaited),
            "senders to be told": len(tracker._touched),
        }
        for watch in tracker._watches.values():
            found[f"{watch.sender}: statuses to be told"] = len(watch.pending)
        for peer in parts.connections.peers:
            ingress = peer.ingress
            if ingress is not None:
                found[f"{peer.name}: taken in and not answered"] = ingress.waiting
                found[f"{peer.name}: messages of those"] = ingress._waiting_messages
                found[f"{peer.name}: bytes of those"] = ingress._waiting_bytes
                found[f"{peer.name}: answers to be sent"] = len(ingress._out)
            found[f"{peer.name}: requests"] = peer._calls + peer._answering
        for outlet in parts.dispatch:
            if outlet.name.startswith("extra"):
                continue  # of receivers that are not there
            backlog = outlet.backlog
            left = {
                "in flight": backlog.in_flight.messages,
                "in flight bytes": backlog.in_flight.size,
                "ready": backlog.ready.messages,
                "ready bytes": backlog.ready.size,
                "behind": backlog.behind.runs,
                "behind bytes": backlog.behind.size,
                "waiting": backlog.waiting.runs,
                "waiting bytes": backlog.waiting.size,
                "lanes": len(backlog._stuck.by_lane),
                "fed": len(outlet.supply.fed),
                "fed bytes": outlet.supply._fed_bytes,
                "held of loaded_bytes": outlet.supply._share._held,
                "notes": len(outlet.notes),
                "queued bytes": outlet.progress.queued.look(),
                "settled, not stored": len(outlet.progress._new) + len(outlet.progress._storing),
                "failed, not stored": len(outlet.progress._failed),
            }
            found |= {f"{outlet.name}: {name}": value for name, value in left.items()}
        for producer in world.producers.values():
            if producer.client is not None:
                found[f"{producer.name}: unanswered"] = producer.client.unanswered
        return {name: value for name, value in found.items() if value}

    def _check_left(self) -> None:
        """Memory: nothing is left of what is settled; what is kept of it has its limit."""
        tail = self.world.node.service.parts.tail
        if tail.bytes > self.world.limits.tail_bytes:
            self.fail("a limit is passed", f"{tail.bytes} bytes in the tail")
        if not self.world.is_blocked and (left := self._left()):
            self.fail("memory is left", str(left))

    def _check_size(self) -> None:
        """The file of the log holds what its limits allow."""
        world = self.world
        limits = world.limits
        pages = "select page_count - freelist_count from pragma_page_count, pragma_freelist_count"
        size = count_of(world, pages) * 4096
        rows = count_of(world, "select count(*) from batch")
        size_max = limits.max_bytes * 2 + PAGE_SLACK + rows * ROW_BYTES
        if limits.max_bytes < 10**6 and size > size_max:
            self.fail("the log outgrows its limit", f"{size} bytes, max_bytes {limits.max_bytes}")
        count = count_of(world, "select count(*) from audience")
        if count > limits.audiences:
            self.fail("a limit is passed", f"{count} audiences, limit {limits.audiences}")
        self._check_dead_letters()

    def _check_dead_letters(self) -> None:
        """Each receiver's, also of those that were removed, and of hostile ones."""
        limits = self.world.limits
        # What has no room is not dead; the last one may reach beyond the limit.
        found = self.world.node.log._store.db.execute(
            "select name, number, sum(length(message)) from dead"
            " join receiver on number = dead.receiver group by number"
        )
        standing, total = {row.number for row in self.world.node.service.parts.directory}, 0
        for name, number, dead in found.fetchall():
            dead_max = limits.dead_bytes_max + limits.max_batch
            if dead > dead_max:
                self.fail(
                    "dead letters without a limit",
                    f"{dead} bytes of {name} ({number}), at most {dead_max} expected",
                )
            total += dead if number in standing else 0
        total_max = limits.dead_bytes_total_max + limits.max_batch
        if total > total_max:
            self.fail(
                "dead letters without a limit",
                f"{total} bytes of all, at most {total_max} expected",
            )
