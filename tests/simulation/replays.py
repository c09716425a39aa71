"""Replays by seed: receivers that begin with history, rewinds, and what suspended ones missed.

A node on a log of plain dicts, peers that speak frames, and random steps: messages, receivers that
come and go and are slow, replays that begin and are called off, a node that is killed between any
two turns and begins again with what its log held. `Sim.play` judges at the end by what the log and
the receivers got, and not by what the replayer says of itself:

* each message is for a receiver once: when it came, or as a copy of a `start`, or of what it was
  left out of; from its `start` on none is missing, and history comes before what is new;
* a rewind has copied, in their order and once, all in its range that had been acknowledged when it
  began, and nothing that never was.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import zip_longest
from random import Random
from typing import Any

from twisted.internet.task import Clock

from msgservice.core.copies import REPLAY_OF
from msgservice.core.frames import Ack, Transfer
from msgservice.core.subjects import matches
from msgservice.limits import INTEGER_MAX
from msgservice.message import FLAG_REPLAY, Status, decode_messages
from msgservice.records import LEFT_OUT, REWIND, START, Batch, Resume, number_of, position_of
from tests.kit.dict_log import Content, DictLog, spans
from tests.kit.limits import Limits
from tests.kit.nodes import NodeWorld, ScriptedPeer

SUBJECTS = ("a.1", "a.2", "b.1")
PATTERNS = (("a.*",), (">",), ("a.1", "b.*"))


class Violation(AssertionError):
    """A rule was broken."""


class Producer(ScriptedPeer):
    """A producer that knows what was not acknowledged."""

    def turn_ended(self, connection: Any) -> None:
        for ack in self.take(Ack):
            for first, last in ack.ranges:
                for sequence in range(first, last + 1):
                    self.world.sim.unacked.pop(sequence, None)  # type: ignore[attr-defined]


class Taker(ScriptedPeer):
    """A receiver that notes what it has taken, when it answers."""

    def turn_ended(self, connection: Any) -> None:
        if not self.answering:
            return
        taken = self.world.sim.taken[self.hello.name]  # type: ignore[attr-defined]
        for transfer in self.take(Transfer):
            for index, _ in enumerate(decode_messages(transfer.messages)):
                taken[transfer.sequence + index] = taken.get(transfer.sequence + index, 0) + 1
            self.ack(transfer)


@dataclass
class Begun:
    """A replay that was begun, and what had been acknowledged of its range by then."""

    kind: str
    first: int
    end: int
    number: int  # its copies are at this batch or behind
    acknowledged: set[int] = field(default_factory=set)
    called_off: int | None = None  # where it would have gone on


@dataclass
class Receiver:
    """What the simulation knows of a receiver."""

    name: str
    patterns: tuple[str, ...]
    first: int  # its messages are those from here on
    peer: Taker | None = None
    replays: list[Begun] = field(default_factory=list)
    was_called_off: bool = False  # its start


class Sim:
    """See the module."""

    def __init__(self, seed: int) -> None:
        self.random = Random(f"replays {seed}")
        pick = self.random.choice
        self.limits = Limits(
            backlog_bytes=pick([1_000, 4_000, 40_000]),
            tail_bytes=pick([4_000, 10**6]),
            window_messages=pick([2, 50, 1000]),
        )
        self.receivers: dict[str, Receiver] = {}
        self.taken: dict[str, dict[int, int]] = {}
        self.unacked: dict[int, tuple[str, bytes]] = {}
        self.next = 1
        self.size = pick([0, 100, 300])
        self.kills = self.counted = 0
        self._begin(None)

    # --- the node

    def _begin(self, content: Content | None) -> None:
        self.clock = Clock()
        self.log = DictLog(reactor=self.clock, limits=self.limits, content=content)
        self.world = NodeWorld(self.limits, log=self.log, clock=self.clock)
        self.world.sim = self  # type: ignore[attr-defined]
        self.shop = self.world.peer("shop", kind=Producer)
        self.admin = self.world.peer("admin")
        for sequence, (subject, body) in list(self.unacked.items()):
            self.shop.transfer(sequence, subject, [body])

    def turns(self, most: int) -> None:
        """Let a few turns happen: what follows meets what is under way."""
        for _ in range(self.random.randint(0, most)):
            self.clock.advance(self.random.choice([0, 0, 0.001]))

    def ask(self, operation: str, **arguments: Any) -> Any:
        ok, answer = self.admin.request(f"$node.receivers.{operation}", arguments)
        return answer["replay"] if ok else None

    # --- steps

    def step(self) -> None:
        kinds = {
            self.send: 10,
            self.come: 2,
            self.go: 1,
            self.slow: 2,
            self.rewind: 2,
            self.call_off: 1,
            self.suspend: 1,
            self.kill: 1,
        }
        self.random.choices([*kinds], [*kinds.values()])[0]()
        self.turns(6)

    def send(self) -> None:
        for _ in range(self.random.choice([1, 1, 5, 30])):
            self._one()

    def _one(self) -> None:
        subject = self.random.choice(SUBJECTS)
        body = b"%d" % self.next + b"." * self.size
        self.unacked[self.next] = (subject, body)
        self.shop.transfer(self.next, subject, [body])
        self.next += 1

    def _meanwhile(self, left: int) -> None:
        """One more message in each of the next turns."""
        self._one()
        if left:
            self.clock.callLater(0, self._meanwhile, left - 1)

    def come(self) -> None:
        """A receiver that is new, or comes back."""
        away = [one for one in self.receivers.values() if one.peer is None]
        if away and (self.random.random() < 0.6 or len(self.receivers) >= 4):
            self._attach(self.random.choice(away), None)
        elif len(self.receivers) < 4:
            name = f"r{len(self.receivers)}"
            behind = position_of(self.log.content.next_number)
            start: str | int = "first"
            if self.random.random() < 0.5:
                start = "new" if self.random.random() < 0.5 else self.random.randint(0, behind)
            patterns = self.random.choice(PATTERNS)
            one = self.receivers[name] = Receiver(name, patterns, 0)
            if self.random.random() < 0.5:
                self._meanwhile(self.random.choice([1, 10, 60]))
            self.taken[name] = {}
            self._attach(one, start)
            if start != "new":
                one.first = start if isinstance(start, int) else 0
                one.replays.append(Begun(START, one.first, INTEGER_MAX, 0))
            else:
                one.first = -1  # with the first that it gets: some are under way

    def _attach(self, one: Receiver, start: str | int | None) -> None:
        taken = sorted(self.taken[one.name])
        peer = self.world.peer(
            one.name,
            receive={"subjects": [*one.patterns], "start": start},
            resume=Resume(1, tuple(spans(taken))),
            answering=self.random.random() < 0.7,
            kind=Taker,
            inbox=f"inbox-{one.name}",
        )
        assert isinstance(peer, Taker)
        assert peer.lost_because is None, peer.lost_because
        one.peer = peer

    def go(self) -> None:
        here = [one for one in self.receivers.values() if one.peer is not None]
        if here:
            one = self.random.choice(here)
            assert one.peer is not None
            one.peer.connection.abort()
            one.peer = None

    def slow(self) -> None:
        for one in self.receivers.values():
            if one.peer is not None:
                one.peer.answering = self.random.random() < 0.6
                one.peer.turn_ended(one.peer.connection)

    def _states(self, one: Receiver) -> set[int]:
        """The originals that a receiver has acknowledged, as the log has it."""
        row = self.world.node.parts.directory.named(one.name)
        at = self.log.content.receivers[row.number]
        return {
            batch.first + index
            for batch in self.log.content.batches.values()
            if row.number in batch.audience.members and not batch.options.flags & FLAG_REPLAY
            for index, state in enumerate(at.states(batch))
            if state[0] is Status.ACKNOWLEDGED
        }

    def rewind(self) -> None:
        if not self.receivers:
            return
        one = self.random.choice([*self.receivers.values()])
        behind = position_of(self.log.content.next_number) - 1
        first = self.random.choice([0, self.random.randint(0, max(0, behind))])
        asked: dict[str, Any] = {"first": first}
        if self.random.random() < 0.3:
            asked = {"suspended": True}
        elif self.random.random() < 0.5:
            asked["end"] = self.random.randint(first, max(first, behind))
        acknowledged = self._states(one)
        number = self.log.content.next_number
        told = self.ask("rewind", name=one.name, **asked)
        if told is not None:
            begun = Begun(told["kind"], told["first"], told["end"], number)
            if told["kind"] == REWIND:
                begun.acknowledged = {
                    position
                    for position in acknowledged
                    if told["first"] <= position <= told["end"]
                }
            one.replays.append(begun)

    def call_off(self) -> None:
        if not self.receivers:
            return
        one = self.random.choice([*self.receivers.values()])
        told = self.ask("rewind_cancel", name=one.name)
        if told is not None and one.replays:
            one.replays[-1].called_off = told["next"]
            if told["kind"] == START and told["next"] <= position_of(self.log.content.next_number):
                one.was_called_off = True

    def suspend(self) -> None:
        if self.receivers:
            row = self.world.node.parts.directory.named(self.random.choice([*self.receivers]))
            self.world.node.parts.receivers.set_suspended(row, not row.suspended)

    def kill(self) -> None:
        self.kills += 1
        for one in self.receivers.values():
            one.peer = None
        self._begin(self.log.content)
        for one in self.receivers.values():
            if self.random.random() < 0.8:
                self._attach(one, "first")  # which counts no more

    # --- the end

    def play(self, steps: int) -> Sim:
        for _ in range(steps):
            self.step()
        for row in self.world.node.parts.directory:
            if row.suspended:
                self.world.node.parts.receivers.set_suspended(row, False)
        for one in self.receivers.values():
            if one.peer is None:
                self._attach(one, None)
        for _ in range(200):
            self._answer()
            running = [
                one
                for one in self.receivers.values()
                if not self.ask("replay", name=one.name)
                or self.ask("replay", name=one.name)["over"]
            ]
            if len(running) == len(self.receivers):
                break
        else:
            raise Violation("a replay does not end")
        for one in self.receivers.values():
            number = self.log.content.next_number
            told = self.ask("rewind", name=one.name, suspended=True)
            if told is not None:
                one.replays.append(Begun(LEFT_OUT, told["first"], told["end"], number))
        for _ in range(60):
            self._answer()
        for one in self.receivers.values():
            self._check(one)
        accounts: list[Any] = []
        self.log.accounts().addCallback(accounts.extend)
        self.world.settle()
        for account in accounts:
            if account.unaccounted or account.queued:
                raise Violation(f"does not add up: {account}")
        return self

    def _answer(self) -> None:
        for one in self.receivers.values():
            assert one.peer is not None
            one.peer.answering = True
            one.peer.turn_ended(one.peer.connection)
        self.world.settle(0.3)

    def _check(self, one: Receiver) -> None:
        number = self.world.node.parts.directory.named(one.name).number
        batches = [*self.log.content.batches.values()]
        originals: dict[int, Batch] = {}  # that match
        live: set[int] = set()
        copied: list[tuple[int, int]] = []  # position of the copy, of its original
        for batch in batches:
            is_its = number in batch.audience.members
            if is_its:
                missing = [p for p in range(batch.first, batch.last + 1)
                           if self.taken[one.name].get(p) != 1]  # fmt: skip
                if missing:
                    raise Violation(f"{one.name} has not taken {missing} once")
            if batch.options.flags & FLAG_REPLAY:
                for index, message in enumerate(decode_messages(batch.messages)):
                    if is_its:
                        of = (message.headers or {})[REPLAY_OF]
                        copied.append((batch.first + index, int(of.removeprefix("log:"))))
                continue
            for position in range(batch.first, batch.last + 1):
                if any(matches(pattern, batch.subject) for pattern in one.patterns):
                    originals[position] = batch
                if is_its:
                    live.add(position)
        self._check_replays(one, copied, live, originals)

    def _check_replays(
        self,
        one: Receiver,
        copied: list[tuple[int, int]],
        live: set[int],
        originals: dict[int, Batch],
    ) -> None:
        had = sorted(live)
        for begun, after in zip_longest(one.replays, one.replays[1:]):
            end = INTEGER_MAX if after is None else after.number
            mine = [of for at, of in copied if begun.number <= number_of(at) < end]
            self.counted += len(mine)
            if mine != sorted(set(mine)):
                raise Violation(f"{one.name}: not in order, or twice: {mine}")
            if begun.kind == REWIND:
                low, high = begun.first, begun.end
                if any(not low <= of <= high or of not in live for of in mine):
                    raise Violation(f"{one.name}: copied what it is not to copy: {begun} {mine}")
                last = high if begun.called_off is None else min(high, begun.called_off - 1)
                wanted = {of for of in begun.acknowledged if of <= last}
                if not wanted <= set(mine):
                    raise Violation(f"{one.name}: skipped {wanted - set(mine)} of {begun}")
                continue
            if begun.kind == START and live and mine:
                latest = max(at for at, of in copied if begun.number <= number_of(at) < end)
                if latest > min(live):
                    raise Violation(f"{one.name}: history behind what is new")
            had += mine
        if len(set(had)) != len(had):
            raise Violation(f"{one.name}: twice {sorted(p for p in had if had.count(p) > 1)}")
        first = one.first if one.first >= 0 else min(had, default=INTEGER_MAX)
        expected = {position for position in originals if position >= first}
        if set(had) - expected:
            raise Violation(f"{one.name}: never for it: {set(had) - expected}")
        if expected - set(had) and not one.was_called_off:
            raise Violation(f"{one.name}: missing {sorted(expected - set(had))}")
