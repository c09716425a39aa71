"""A family of options in a swarm: its operations, what may fail because of them, and its rules.

Each is drawn by itself (`plan`) and judged by itself, by what crossed the boundaries (`witness`)
and what programs were told. An operation `kind` of a plan is `do_<kind>(who, *args)` of one of
them.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import inf
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.simulation.swarm.checkers import Check
    from tests.simulation.swarm.parties import Sent
    from tests.simulation.swarm.world import World


class Family:
    """See the module. What it says nothing of is as for messages without options."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.witness = world.witness

    def handed_over(self) -> Iterable[Sent]:
        """What was handed over, and is not in `World.sent`."""
        return ()

    def may_fail(self, sent: Sent, error: Exception) -> bool:
        """Whether a message may be refused, or not accepted, with this."""
        return False

    @property
    def drain_seconds(self) -> float:
        """How much longer it may take until all is through."""
        return 0.0

    def waiting_besides(self, name: str) -> int:
        """How many bytes may wait for a receiver that nobody handed over for it."""
        return 0

    def copies_besides(self, name: str) -> int:
        """How many copies of a message may come to a receiver but for letters sent again."""
        return 0

    def letters_again(self, name: str) -> int:
        """How often letters were sent again to a receiver."""
        return 0

    def finish(self, check: Check) -> None:
        """Do what is left to do when all is through."""

    def check(self, check: Check) -> None:
        """Raise a `Violation` where a rule was broken; all is through."""

    # --- for those

    def is_open(self, sent: Sent, at: float) -> bool:
        """Whether a message surely waited for somebody's answer at this time."""
        if sent.ttl is not None or sent.promised is not None or self.world.undos.touches(sent):
            return False
        return any(
            name in self.world.receivers
            and not self.world.removed[name]
            and (name, sent.body) not in self.witness.rejected
            and self.witness.answered_at.get((name, sent.body), inf) > at
            for name in sent.audience
        )

    def is_judged(self, sent: Sent) -> bool:
        """Whether a message is known ever since: neither log nor outbox was put back later."""
        restored_at = self.world.producers[sent.producer].restored_at
        return sent.at > max(self.world.log_restored_at, restored_at)
