"""Requests in a swarm (DELIVERY 57): some producers answer, others ask, and each may die.

Each request ends once, by its timeout at the latest, with the answer that a handler gave to it, or
with a typed error; no handler sees one twice; `NoResponder` and `Busy` are said of what no handler
has seen, and none will. Some are given up by who asked: nothing of those stays at the node, however
long they might have waited. What messages cross meanwhile is judged as without any of it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from msgservice.errors import Busy as BusyError
from msgservice.errors import MsgServiceError, NoResponder
from tests.simulation.swarm.family import Family

if TYPE_CHECKING:
    from tests.simulation.swarm.checkers import Check
    from tests.simulation.swarm.world import World

LATE = 2.0  # seconds: a timer, and what a busy world takes
PAUSE_MAX = 3.0


@dataclass(eq=False)
class Call:
    """A request, and what came of it. `life`: of who has asked."""

    token: bytes
    who: str
    life: int
    until: float
    asking: Deferred[Any]
    outcome: Any = None
    is_over: bool = False
    is_given_up: bool = False


class Asking(Family):
    """See the module."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.calls: list[Call] = []
        self.seen: Counter[bytes] = Counter()
        self._random = Random(f"asking {world.plan.seed}")

    def do_answer(self, who: str, pattern: str, concurrency: int) -> None:
        """Let a producer answer what it is asked, for the rest of its life."""
        producer, random = self.world.producers[who], self._random
        client, clock = producer.client, producer.clock if producer.lives else None
        if client is None or clock is None or not producer.is_up:
            return

        def handle(asked: Any) -> Any:
            token = bytes(asked.body)
            self.seen[token] += 1
            if self.seen[token] > 1:
                self.witness.note("a request is asked twice", f"{who} sees {token!r}")
            answer = b"answer to " + token
            if random.random() < 0.5:
                return answer
            later: Deferred[bytes] = Deferred()
            clock.callLater(random.uniform(0, PAUSE_MAX), _fire, later, answer)
            return later

        client.respond(pattern, handle, concurrency=concurrency)

    def do_ask(self, who: str, subject: str, count: int, timeout: float) -> None:
        """Let a producer ask so many times in one turn."""
        producer, now = self.world.producers[who], self.world.now
        client = producer.client
        if client is None or not producer.is_up:
            return
        for _ in range(count):
            token = f"{who} {subject} {len(self.calls)}".encode()
            asking = client.request(subject, token, timeout=timeout)
            call = Call(token, who, producer.lives, now + timeout, asking)
            self.calls.append(call)
            asking.addBoth(self._ended, call)

    def do_give_up(self, who: str, share: float) -> None:
        """Let a producer give up a share of what it has asked and hears no answer to."""
        producer = self.world.producers[who]
        if producer.client is None or not producer.is_up:
            return
        for call in self.calls:
            is_own = call.who == who and call.life == producer.lives and not call.is_over
            if is_own and self._random.random() < share:
                call.is_given_up = True
                call.asking.cancel()

    def _ended(self, outcome: Any, call: Call) -> None:
        if call.is_over:
            self.witness.note("a request ends twice", f"{call}")
        call.outcome, call.is_over = outcome, True
        if self.world.now > call.until + LATE:
            self.witness.note("a request ends late", f"at {self.world.now:.3f}: {call}")
        if not isinstance(outcome, Failure):
            if outcome != b"answer to " + call.token:
                self.witness.note("an answer reaches another", f"{call}")
        elif call.is_given_up and isinstance(outcome.value, CancelledError):
            pass
        elif not isinstance(outcome.value, MsgServiceError):
            self.witness.note("a request ends with no error of its own", f"{call}")

    @property
    def drain_seconds(self) -> float:
        """See `Family`."""
        left = [call.until - self.world.now for call in self.calls if not call.is_over]
        return max([0.0, *left]) + LATE if left else 0.0

    def check(self, check: Check) -> None:
        """See `Family`."""
        for call in self.calls:
            producer = self.world.producers[call.who]
            has_lived = producer.lives == call.life and producer.is_up
            if not call.is_over and has_lived and self.world.now > call.until + LATE:
                check.fail("a request never ends", f"{call}")
            if call.is_over and isinstance(call.outcome, Failure):
                was_not_asked = call.outcome.check(NoResponder, BusyError)
                if was_not_asked and self.seen[call.token]:
                    check.fail("who was asked is said not to be", f"{call}")
        node = self.world.node
        if self.calls and node.is_up and node.service.is_running:
            responders = node.service.parts.responders
            # Of one that was given up nothing is waited for, here or there.
            latest = max([0.0, *(c.until for c in self.calls if not c.is_given_up)]) + PAUSE_MAX
            if responders.pending and self.world.now > latest + LATE:
                check.fail("a call stays at the node", f"{responders.pending}")


def _fire(later: Deferred[bytes], answer: bytes) -> None:
    if not later.called:
        later.callback(answer)
