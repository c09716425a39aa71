"""Requests in virtual time: who asks, a node, and who answers, each in a process that may die.

    play = Play(seed)
    play.run()

From one seed: who answers what, how many calls at once and how; who asks when, for how long, and
calls it off; which process is killed or closed between any two events, and comes back; and what
links do (`FaultyWorld`). One of those who answer is a liar in some seeds: it answers twice, late,
and what others were asked. What is judged is what handlers saw and askers were told (`check`):

* a request ends, by its timeout at the latest, with its answer or a typed error, and never twice;
* an answer is the one that a handler gave to that request; no handler sees a request twice;
* `NoResponder` and `Busy` are said of what no handler has seen, and will not;
* nothing is left in the node, in who asks and in who answers, once all time is over;
* where links are well, nothing waits at the node a moment after nobody waits for it any more;
* then, with all faults over, everybody is answered, and those who answer are asked in turn.
"""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Any

import msgspec
from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from msgservice.client.client import Client
from msgservice.client.responding import Asked, Responder
from msgservice.core.frames import Reply, Request
from msgservice.errors import (
    Ambiguous,
    Busy,
    ClientClosed,
    LimitReached,
    NoResponder,
    RequestFailed,
    RequestTimeout,
    ResponderLost,
)
from msgservice.log.memory import MemoryLog
from msgservice.message import count_of
from msgservice.node.node import Node
from msgservice.testing.network import CALM, Faults, FaultyWorld
from msgservice.testing.transport import FaultyTransport, Process
from msgservice.transport.registry import Transports
from tests.kit.limits import Limits

LIMITS = Limits(link_delay_max=2.0, heartbeat=2.0, stop_timeout=4.0, hello_timeout=5.0)
SUBJECTS = ("work.a", "work.b", "work.c")
PATTERNS = ("work.a", "work.b", "work.*", ">")
NODE = "faulty:node"
LATE = 0.5  # seconds: a timer of the asker's, and one turn of everybody
MOMENT = 1.0  # until a node has heard what is given up
# What a request may end with, besides its answer.
TYPED = (
    NoResponder,
    Busy,
    RequestTimeout,
    ResponderLost,
    Ambiguous,
    RequestFailed,
    LimitReached,
    ClientClosed,
)


class CheckFailed(AssertionError):
    """Something is not as it must be; the first words are its sign."""


class Party:
    """A program with a client of the node, in a process that may be killed, and comes back."""

    def __init__(self, play: Play, name: str) -> None:
        self.play, self.name = play, name
        self.begin()

    def begin(self) -> None:
        """Start the process anew."""
        world = self.play.world
        self.process = Process(world, self.name)
        clock: Any = self.process.clock
        transports = Transports([FaultyTransport(world, self.process)])
        self.client = Client(
            reactor=clock,
            name=self.name,
            connector_factory=lambda make_user: transports.find(NODE).connector(
                clock, NODE, make_user, LIMITS
            ),
            limits=LIMITS,
            new_incarnation=lambda: world.random.randbytes(8).hex(),
        )
        self.client.start()

    def kill(self) -> None:
        """End it as kill -9 does; it comes back."""
        self.process.kill()
        self.play.world.clock.callLater(self.play.world.between((0.01, 3.0)), self.begin)

    def close(self) -> None:
        """End it as a program does; it comes back."""
        self.client.close().addErrback(self.play.failures.append)
        self.play.world.clock.callLater(self.play.world.between((5.0, 8.0)), self.begin)


class Worker(Party):
    """One who answers; `lies`: sometimes also what it was not asked, twice, and late."""

    def __init__(self, play: Play, name: str, pattern: str, at_once: int, *, lies: bool) -> None:
        self.pattern, self.at_once, self.lies = pattern, at_once, lies
        self.responder: Responder | None = None
        self.handled = 0
        super().__init__(play, name)

    def begin(self) -> None:
        """Start the process anew, and answer."""
        super().begin()
        self.responder = self.client.respond(self.pattern, self._handle, concurrency=self.at_once)
        self.play.note_given(self.responder)
        if self.lies:
            self.play.lie_sometimes(self)

    def _handle(self, asked: Asked) -> Any:
        play, body = self.play, asked.body
        self.handled += 1
        play.seen[body] += 1
        random = play.world.random
        if play.is_healed or random.random() < 0.4:
            return b"answer to " + body
        how = random.random()
        if how < 0.2:
            play.refused.add(body)
            raise RequestFailed("not this one")
        waits: Deferred[bytes] = Deferred()
        if how < 0.9:  # else it never ends
            clock: Any = self.process.clock
            clock.callLater(
                random.uniform(0, 6),
                lambda: None if waits.called else waits.callback(b"answer to " + body),
            )
        return waits


class Call:
    """A request of the play's: what was asked, until when, and what became of it."""

    def __init__(self, body: bytes, asker: Party, due: float) -> None:
        self.body, self.asker, self.due = body, asker, due
        self.process = asker.process
        self.outcome: Any = None
        self.ended_at: float | None = None


class Play:
    """See the module."""

    def __init__(self, seed: int, faults: Faults | None = None) -> None:
        self.world = FaultyWorld(seed, faults=CALM, limits=LIMITS)
        random = self.world.random
        self.failures: list[Any] = []
        self.seen: Counter[bytes] = Counter()
        self.refused: set[bytes] = set()
        self.looks = Random(f"looks {seed}")
        self.calls: list[Call] = []
        self.is_healed = False
        self.store: Any = None
        self.given: dict[int, None] = {}  # numbers that came to who answers
        self.lives = self.lies = 0
        self.begin_node()
        self.askers = [Party(self, f"asker{n}") for n in range(random.randint(1, 3))]
        has_liar = random.random() < 0.4
        self.workers = [
            Worker(
                self,
                f"worker{n}",
                random.choice(PATTERNS),
                random.choice((1, 2, 10, 1000)),
                lies=has_liar and n == 0,
            )
            for n in range(random.randint(1, 4))
        ]
        self.world.run(2)
        self.world.faults = random.choice((CALM, Faults())) if faults is None else faults

    # --- the node

    def begin_node(self) -> None:
        """Start the node, on the log that is there."""
        world = self.world
        self.given = {}
        self.lives += 1
        self.process = Process(world, "node")
        clock: Any = self.process.clock
        log = MemoryLog(reactor=clock, limits=LIMITS, entropy=world.random.randbytes)
        if self.store is not None:
            log._store.db, log._made = self.store.db, True
        self.store = log._store
        self.node = Node(
            clock,
            log,
            name="node",
            listen=[NODE],
            limits=LIMITS,
            rng=world.random.random,
            failed=self.failures.append,
        )
        self.node.transports = Transports([FaultyTransport(world, self.process)])
        self.node.startService()

    def kill_node(self) -> None:
        """End the node as kill -9 does; it comes back."""
        self.process.kill()
        self.world.clock.callLater(self.world.between((0.01, 3.0)), self.begin_node)

    # --- what happens

    def ask(self, asker: Party, subject: str, timeout: float) -> Call:
        """Ask, and note what becomes of it."""
        world = self.world
        body = b"%s %d" % (subject.encode(), len(self.calls))
        call = Call(body, asker, world.clock.seconds() + timeout)
        self.calls.append(call)
        asking = asker.client.request(subject, body, timeout)

        def ended(outcome: Any) -> None:
            if call.ended_at is not None:
                raise CheckFailed(f"ended twice: {body!r}")
            call.outcome, call.ended_at = outcome, world.clock.seconds()

        asking.addBoth(ended)
        if world.random.random() < 0.1:
            world.clock.callLater(world.between((0, timeout)), asking.cancel)
        return call

    def lie_sometimes(self, worker: Worker) -> None:
        """Let a worker answer again what it has answered, late, and what others were asked."""
        world, responder = self.world, worker.responder
        assert responder is not None
        clock: Any = worker.process.clock

        def lie() -> None:
            connection = responder._connection
            if connection is not None and connection.may_send and not self.is_healed:
                own = {key[1] for key in responder._running}
                own |= {call.number for call in responder._waiting}
                raw = msgspec.Raw(msgspec.msgpack.encode([b"a lie"]))
                numbers = [number for number in list(self.given)[-30:] if number not in own]
                if numbers:
                    connection.send(Reply([(number, True, raw) for number in numbers]))
                    self.lies += 1
            clock.callLater(world.between((0.05, 1.0)), lie)

        clock.callLater(world.between((0.05, 1.0)), lie)

    def note_given(self, responder: Responder) -> None:
        """Note which numbers of the node's come to a responder, as long as that node runs."""
        opened, received = responder.opened, responder.received
        lives: dict[Any, int] = {}

        def open_it(connection: Any, resume: Any) -> None:
            lives[connection] = self.lives
            opened(connection, resume)

        def receive(connection: Any, frame: Any) -> None:
            if lives.get(connection) == self.lives and isinstance(frame, Request):
                self.given |= dict.fromkeys(range(frame.id, frame.id + count_of(frame.messages)))
            received(connection, frame)

        responder.opened = open_it  # type: ignore[method-assign]  # a spy
        responder.received = receive  # type: ignore[method-assign]  # a spy

    def run(self, seconds: float = 20.0) -> None:
        """Let things happen for some time; then heal all, and check."""
        world, random = self.world, self.world.random
        end = world.clock.seconds() + seconds
        while world.clock.seconds() < end:
            what = random.random()
            if what < 0.75:
                asker, timeout = random.choice(self.askers), random.choice((0.3, 2.0, 5.0))
                for _ in range(random.choice((1, 1, 3, 20))):
                    self.ask(asker, random.choice(SUBJECTS), timeout)
            elif what < 0.8:
                self._end(random.choice(self.askers))
            elif what < 0.95:
                self._end(random.choice(self.workers))
            elif self.process.clock.alive and self.node.is_running:
                self.kill_node()
            world.run(random.choice((0.0, 0.01, 0.2, 1.0)))
            if world.faults is CALM and self.looks.random() < 0.2:
                self.check_pending()
        self.heal()
        self.check()
        self.check_turns()

    def _end(self, party: Party) -> None:
        if party.process.clock.alive and party.client._shutdown.state.name == "OPEN":
            party.close() if self.world.random.random() < 0.3 else party.kill()

    def heal(self) -> None:
        """End all faults, and let all time be over."""
        self.is_healed = True
        self.world.heal()
        self.world.faults = CALM
        self.world.run(40)

    # --- what must be so

    def check(self) -> None:
        """See the module."""
        if self.failures:
            raise CheckFailed(f"a failure: {self.failures}")
        for call in self.calls:
            self._check_call(call)
        for body, times in self.seen.items():
            if times > 1:
                raise CheckFailed(f"asked twice: {body!r} came to handlers {times} times")
        responders = self.node.parts.responders
        left = (
            responders.pending,
            responders._runs,
            len(responders._asked),
            len(responders._owed),
            len(responders._asking),
            sum(one.pending + len(one.runs) + len(one.queued) for one in responders._here),
            sum(len(party.client._requests) for party in (*self.askers, *self.workers)),
            sum(w.responder.unanswered for w in self.workers if w.responder is not None),
        )
        if any(left):
            raise CheckFailed(f"left behind: {left}")

    def check_pending(self) -> None:
        """After a quiet moment no more calls wait at the node than were waited for before it."""
        waited = sum(call.ended_at is None and call.process.clock.alive for call in self.calls)
        self.world.run(MOMENT)
        is_up = self.process.clock.alive and self.node.is_running
        pending = self.node.parts.responders.pending if is_up else 0
        if pending > waited:
            raise CheckFailed(f"given up and kept: {pending} calls wait, {waited} are waited for")

    def _check_call(self, call: Call) -> None:
        body, outcome = call.body, call.outcome
        if call.ended_at is None:
            if call.process.clock.alive:
                raise CheckFailed(f"never ended: {body!r}")
            return  # its asker was killed
        if call.ended_at > call.due + LATE:
            raise CheckFailed(f"ended late: {body!r}, {call.ended_at - call.due} s")
        if not isinstance(outcome, Failure):
            if outcome != b"answer to " + body:
                raise CheckFailed(f"not its answer: {body!r} got {outcome!r}")
            if not self.seen[body]:
                raise CheckFailed(f"never handled: {body!r}")
            return
        error = outcome.value
        if isinstance(error, CancelledError):
            return
        if not isinstance(error, TYPED):
            raise CheckFailed(f"not typed: {body!r} failed with {error!r}")
        if type(error) is RequestFailed and body not in self.refused:
            raise CheckFailed(f"not refused: {body!r} failed with {error!r}")
        if isinstance(error, NoResponder | Busy) and self.seen[body]:
            raise CheckFailed(f"handled all the same: {body!r}, of which {error!r} was said")

    def check_turns(self) -> None:
        """With all faults over everybody is answered, and those who answer are asked in turn."""
        (asker, *_) = self.askers
        for subject in SUBJECTS:
            able = [
                worker
                for worker in self.workers
                if worker.pattern in (subject, "work.*", ">") and worker.responder is not None
            ]
            before = {worker.name: worker.handled for worker in able}
            count = 4 * len(able)
            calls = []
            for _ in range(count):
                calls.append(self.ask(asker, subject, 30.0))
                self.world.run(0.5)
            self.world.run(1)
            if able:
                wrong = [
                    call
                    for call in calls
                    if isinstance(call.outcome, Failure) and not call.outcome.check(CancelledError)
                ]
                if wrong:
                    raise CheckFailed(f"not answered: {wrong[0].body!r}: {wrong[0].outcome!r}")
                shares = [worker.handled - before[worker.name] for worker in able]
                if set(shares) != {4} and not any(
                    isinstance(call.outcome, Failure) for call in calls
                ):
                    raise CheckFailed(f"not in turn: {shares}")
        self.world.run(40)
        self.check()
