"""Removal and directory: receivers come, change, pause, go and come again under load.

With small limits, with `to=`, with HELLOs that are refused, while groups fail or take long and
the node is killed; against what the model says each of them must get.
"""

from __future__ import annotations

import random
from typing import Any, ClassVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from msgservice.errors import MsgServiceError
from msgservice.receiver_options import ReceiverOptions
from tests.machines.machine import require
from tests.machines.service import PATTERNS, RECEIVERS, SUBJECTS, ModelReceiver, ServiceMachine


class DirectoryMachine(ServiceMachine):
    """See the module."""

    OPERATIONS: ClassVar[dict[str, int]] = {
        "send": 40,
        "send_to": 8,
        "attach": 14,
        "mood": 10,
        "leave": 5,
        "pass_time": 12,
        "add": 5,
        "remove": 6,
        "change": 5,
        "pause": 4,
        "resume": 4,
        "fail_group": 2,
        "hold_group": 5,
        "release_group": 6,
        "read_late": 4,
        "read_on": 5,
        "restart": 3,
        "look_at_backlogs": 3,
        "jump": 1,
    }
    ALWAYS = frozenset({"send", "attach", "pass_time", "release_group", "read_on"})

    def _ask(self, asking: Any) -> None:
        """Ask the node; a refusal is an answer."""
        results: list[Any] = []
        Deferred.fromCoroutine(asking).addBoth(results.append)
        self.settle(1)
        if not results and not self.watched.holds:
            self.settle(5)
            require(results, "an order to the node is never answered")
        if results and isinstance(results[0], Failure):
            failure = results[0]
            require(
                failure.check(MsgServiceError, ValueError),
                f"an order to the node fails: {type(failure.value).__name__}",
                failure.value,
            )
        elif not results:
            self._pending = results

    def do_send_to(self, rng: random.Random) -> None:
        producer = rng.choice(self.producers)
        names = tuple(rng.sample(RECEIVERS, rng.randint(1, 3)))
        if producer.client is not None:
            self._send(producer, rng.choice(SUBJECTS), rng, names)

    def do_add(self, rng: random.Random) -> None:
        options = ReceiverOptions(
            order=rng.choice(["strict", "none"]), on_full=rng.choice(["refuse", "suspend"])
        )
        self._ask(self.node.add_receiver(rng.choice(RECEIVERS), rng.choice(PATTERNS), options))

    def do_remove(self, rng: random.Random) -> None:
        name = rng.choice(RECEIVERS)
        row = self.node.parts.directory.get(name)
        outlet = None if row is None else self.node.parts.dispatch.outlets.get(row.number)
        self._ask(self.node.remove_receiver(name))
        if row is not None and (row.removed or (outlet is not None and outlet.is_going)):
            model = self.receivers.pop(name) if name in self.receivers else None
            self.gone.append(model or ModelReceiver(self, name))

    def do_change(self, rng: random.Random) -> None:
        self._ask(
            self.node.change_receiver(
                rng.choice(RECEIVERS),
                patterns=rng.choice([None, *PATTERNS]),
                order=rng.choice([None, "strict", "none"]),
            )
        )

    def do_pause(self, rng: random.Random) -> None:
        self._ask(self.node.pause_receiver(rng.choice(RECEIVERS), True))

    def do_resume(self, rng: random.Random) -> None:
        self._ask(self.node.pause_receiver(rng.choice(RECEIVERS), False))
