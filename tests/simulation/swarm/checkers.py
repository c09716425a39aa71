"""What must be so: at every moment, and when all faults are over.

Judged from what crossed the boundaries (`witness`), from what handlers did and senders were told
(`parties`), and from the files. Where the product is asked at all, it is held against these.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgservice.message import Status
from tests.kit.faulty import BUFFER_BYTES
from tests.simulation.swarm.witness import Violation

if TYPE_CHECKING:
    from tests.simulation.swarm.parties import Handling, ProducerParty, ReceiverParty, Sent
    from tests.simulation.swarm.world import World

REFUSAL_GRACE = 5.0  # seconds until what was answered counts no more
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
        unread_max = BUFFER_BYTES + limits.frame_bytes + 128 * 1024
        for tap in world.node.taps:
            channel = tap.channel
            if channel is not None and channel.unread_bytes > unread_max:
                self.fail(
                    "answers pile up", f"{channel.unread_bytes} bytes wait for one peer to read"
                )

    def refusal(self, reason: str) -> None:
        """SEMANTICS 18: who is refused because of a receiver has much waiting for that receiver.

        What may wait is at most all that was handed over, matches and is not answered for long.
        """
        world = self.world
        name = next((name for name in world.receivers if f"'{name}'" in reason), None)
        if name is None or "backlog" not in reason or world.log_restored_at >= 0:
            return
        answered_at, before = self.witness.answered_at, world.now - REFUSAL_GRACE
        waiting = sum(
            len(sent.body) + 16
            for sent in world.sent.values()
            if answered_at.get((name, sent.body), world.now) >= before
            and not (sent.accepted_at is not None and name not in sent.audience)
        )
        if waiting * 4 < world.limits.backlog_bytes_max:
            self.witness.note(
                "refused for a backlog that is none",
                f"at most {waiting} bytes wait for {name}, and a producer is told: {reason}",
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
            seconds += 20.0 * (17 + min(limits.max_attempts, 20)) * len(self.world.poison)
        places = min(limits.to_audiences_max, limits.sender_audiences, limits.audiences)
        named = sum(one.to is not None for one in self.world.sent.values())
        if places < 100:
            # Sets of receivers that nothing has any more make room within two minutes.
            seconds += 120.0 * (1 + named / places)
        if limits.keep_seconds < 3600 and limits.max_bytes < 10**6:
            seconds += limits.keep_seconds * 3
        seconds += 0.1 * len(self.world.sent)
        if self.world.over_udp:
            seconds += 200.0
        return seconds

    def drain(self) -> None:
        """Wait until all is settled; a stall is a violation."""
        world = self.world
        seconds = self.drain_seconds
        if world.run_until(self._is_drained, seconds):
            return
        self.now()
        if self._dead_letters_block():
            return
        what = self._what_is_left()
        self.fail(what[0], f"not drained after {seconds:.0f} s: {what[1]}")

    def _dead_letters_block(self) -> bool:
        """Whether dead letters, which only an operator may delete, take the room of the others."""
        world = self.world
        limit = world.limits.dead_bytes_max
        for row in world.node.service.parts.directory:
            dead = (
                f"select coalesce(sum(length(message)), 0) from dead where receiver = {row.number}"
            )
            if row.paused and count_of(world, dead) * 2 >= limit:
                world.is_blocked = True
        return world.is_blocked

    def _is_drained(self) -> bool:
        world = self.world
        for producer in world.producers.values():
            if producer.client is None or any(self._is_open(one) for one in self._living(producer)):
                return False
            if producer.is_stored and producer.client.unanswered:
                return False
        return not self._queued()

    @staticmethod
    def _living(producer: ProducerParty) -> list[Sent]:
        return [one for one in producer.sent if one.life == producer.lives]

    @staticmethod
    def _is_open(sent: Sent) -> bool:
        return sent.error is None and sent.settled is None

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

    def _what_is_left(self) -> tuple[str, str]:
        world = self.world
        queued = self._queued()
        room = world.node.log.room()
        if queued:
            rows = [
                f"{outlet.name}: {queued[outlet.name]} queued,"
                f" connected {outlet.connection is not None}, paused {outlet.row.paused},"
                f" in flight {outlet.outbox.in_flight_messages}, error {outlet.last_error!r}"
                for outlet in world.node.service.parts.dispatch
                if outlet.name in queued
            ]
            return "a receiver stalls", "; ".join(rows) + f"; {room}"
        for producer in world.producers.values():
            if producer.client is None:
                return "a producer stalls", f"{producer.name} has no client"
            left = [one for one in self._living(producer) if self._is_open(one)]
            unkept = [one for one in left if one.kept_at is None]
            unsettled = [one for one in left if one.accepted_at is not None]
            what = (
                f"{producer.name}: {producer.client.why()}; {len(left)} open, {len(unkept)} of"
                f" them not answered, {len(unsettled)} accepted and not settled, first"
                f" {left[0].body[:40] if left else b''!r} sent at"
                f" {left[0].at if left else 0:.3f}; {room}; {self.witness.errors[-1:]}"
            )
            if unkept or any(one.accepted_at is None for one in left):
                sign = "a send is never answered"
                if room.full:
                    sign = "a settled log refuses"
                return sign, what
            if unsettled:
                return "a receipt never settles", what
            if producer.is_stored and producer.client.unanswered:
                return "an outbox never empties", what
        return "not drained", "?"

    # --- all of it

    def all(self) -> None:
        """Everything that can be judged at the end."""
        world = self.world
        world.run(5.0)
        self._check_taken_in_again()
        self.now()
        for receiver in world.receivers.values():
            if hasattr(receiver, "look"):
                receiver.look()
        for sent in world.sent.values():
            self._check_sent(sent)
        for receiver in world.receivers.values():
            self._check_receiver(receiver)
        self._check_stray()
        self._check_told()
        self._check_left()
        self._check_size()
        if self.witness.found:
            raise self.witness.found[0]

    def _check_taken_in_again(self) -> None:
        """SEMANTICS 18: who was suspended, and has got all, is in new audiences again."""
        world = self.world
        names = [
            name
            for name in sorted(world.suspends)
            if not world.receivers[name].is_dialled
            and any(matches(one, "a.1") for one in world.receivers[name].patterns)
            and (row := world.node.service.parts.directory.get(name)) is not None
            and not row.paused
        ]
        if not names or world.is_blocked:
            return
        producer = next(iter(world.producers.values()))
        producer.send("a.1", 1, 0, None, False)
        world.run(60.0)
        sent = producer.sent[-1]
        for name in names:
            if sent.accepted_at is not None and name not in sent.audience:
                self.fail("left out for ever", f"{name}, of {sent.body!r}")

    def _check_sent(self, sent: Sent) -> None:
        world = self.world
        restored = world.log_restored_at
        if sent.error is None and sent.kept_at is not None:
            over = self.witness.accepted_over.get(sent.body, -1.0)
            saved = world.log_saved_at
            if over < restored and (sent.accepted_at is None or sent.accepted_at >= saved):
                return  # what was put back does not know it, and senders were told so
            for name in sent.audience:
                self._check_delivery(sent, name)
            self._check_audience(sent)

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
        removed = any(at >= sent.at - 5.0 for at in world.removed[name])
        if status is Status.ACKNOWLEDGED:
            if who not in witness.answered and world.log_restored_at < 0:
                self.fail("acknowledged, and was not", f"{short!r} at {name}")
            if not handled and who not in witness.rejected and receiver.restored_at < 0:
                self.fail("acknowledged, not handled", f"{short!r} at {name}")
        elif status is Status.DEAD:
            tried = witness.tries[who] + witness.losses[name]
            if who not in witness.rejected and tried < world.limits.max_attempts:
                self.fail("dead without a reason", f"{short!r} at {name}: {tried} attempts")
        elif status is Status.REMOVED:
            if not removed:
                self.fail("removed, and was not", f"{short!r} at {name}")
        elif not (
            handled
            or removed
            or who in witness.rejected
            or witness.tries[who] + witness.losses[name] >= world.limits.max_attempts
            or receiver.restored_at >= 0
        ):
            self.fail("lost", f"{short!r} for {name}, told {status}")

    def _check_audience(self, sent: Sent) -> None:
        """SEMANTICS 8: the audience is one that the patterns in force allowed."""
        world = self.world
        if world.log_restored_at >= 0 or sent.accepted_at is None:
            return
        if sent.to is not None:
            if not set(sent.audience) <= set(sent.to):
                self.fail("a wrong audience", f"{sent.body[:40]!r}: {sent.audience}")
            return
        for name, patterns in world.patterns.items():
            may = any(
                start <= sent.accepted_at and (end is None or end >= sent.at)
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
                if body in seen and not self._may_repeat(body):
                    self.fail("handled twice", f"{who}: {body[:40]!r}")
                seen.add(body)
            if receiver.order == "strict" and not receiver.order_changed:
                self._check_order(who, receiver, history)
        strange = {
            body for body in receiver.ever if not body.startswith((b"stray", b"wolf", b"xstray"))
        } - set(world.sent)
        if strange:
            self.fail("never sent", f"{receiver.name} handled {strange}")

    def _may_repeat(self, body: bytes) -> bool:
        sent = self.world.sent.get(body)
        if sent is None:
            return True
        restored = max(self.world.log_restored_at, self.world.producers[sent.producer].restored_at)
        return sent.at <= restored

    def _check_order(self, who: str, receiver: ReceiverParty, history: Handling) -> None:
        last: dict[tuple[str, str, str], tuple[int, bytes]] = {}
        for body, lane in zip(history.bodies, history.lanes, strict=True):
            sent = self.world.sent.get(body)
            if sent is None or self._may_repeat(body):
                continue
            if (receiver.name, body) in self.witness.rejected:
                continue  # dead, unless that was not heard: then it comes once more, late
            key = (sent.producer, lane, sent.subject)
            before = last.get(key)
            if before is not None and before[0] > sent.number:
                self.fail("out of order", f"{who}: {body[:40]!r} behind {before[1][:40]!r}")
            last[key] = (sent.number, body)

    def _check_stray(self) -> None:
        world = self.world
        if world.stray is None or world.log_restored_at >= 0:
            return
        for subject, body in world.stray.claimed:
            for name, patterns in world.patterns.items():
                if not patterns.is_certain:
                    continue
                wanted = any(matches(one, subject) for one in patterns.spans[0][2])
                if wanted and (name, subject, body) not in self.witness.delivered_as:
                    self.fail("acknowledged, never delivered", f"{body!r} on {subject} for {name}")

    def _check_told(self) -> None:
        """What was told is what is kept (and asked for by `$node.status`)."""
        world = self.world
        if world.log_restored_at >= 0:
            return
        log, node = world.node.log, world.node.service
        for sent in list(world.sent.values())[:200]:
            receipt = sent.receipt
            if receipt is None or receipt.position is None or sent.accepted_at is None:
                continue
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

    def _check_left(self) -> None:
        """Memory: nothing is left of what is settled."""
        if self.world.is_blocked:
            return
        node = self.world.node.service
        if node.parts.commits.uncommitted_bytes:
            self.fail("memory is left", f"{node.parts.commits.uncommitted_bytes} bytes uncommitted")
        for outlet in node.parts.dispatch:
            outbox = outlet.outbox
            left = {
                "in flight": outbox.in_flight_messages,
                "in flight bytes": outbox.in_flight_bytes,
                "ready": outbox._ready_messages,
                "ready bytes": outbox._ready_bytes,
                "behind": outbox._behind,
                "behind bytes": outbox._behind_bytes,
                "waiting": outbox._waiting,
                "waiting bytes": outbox._waiting_bytes,
                "lanes": len(outbox._lanes),
            }
            if not outlet.name.startswith("extra") and any(left.values()):
                self.fail("memory is left", f"{outlet.name}: {left}")
        for producer in self.world.producers.values():
            if producer.client is not None and producer.client.unanswered:
                self.fail("memory is left", f"{producer.name}: {producer.client.unanswered}")

    def _check_size(self) -> None:
        """The file of the log holds what its limits allow."""
        world = self.world
        limits = world.limits
        pages = "select page_count - freelist_count from pragma_page_count, pragma_freelist_count"
        size = count_of(world, pages) * 4096
        if limits.max_bytes < 10**6 and size > limits.max_bytes * 2 + PAGE_SLACK:
            self.fail("the log outgrows its limit", f"{size} bytes, max_bytes {limits.max_bytes}")
        count = count_of(world, "select count(*) from audience")
        if count > limits.audiences:
            self.fail("a limit is passed", f"{count} audiences, limit {limits.audiences}")
        dead = count_of(world, "select coalesce(sum(length(message)), 0) from dead")
        dead_max = 2 * limits.dead_bytes_max + limits.max_batch
        if dead > dead_max * len(world.receivers):
            self.fail("dead letters without a limit", f"{dead} bytes, at most {dead_max} expected")
