"""The client's receipts and its outbox file, with a real node behind a link that holds and cuts.

Answers are lost at any frame, retention takes what is settled meanwhile, producers are killed and
come back on their files, or on an older copy of them, and nodes are killed and come back.
"""

from __future__ import annotations

import random
import shutil
from typing import ClassVar

from tests.machines.service import HeldPipe, ServiceMachine, _let_go


class ClientMachine(ServiceMachine):
    """See the module."""

    OPERATIONS: ClassVar[dict[str, int]] = {
        "send": 40,
        "attach": 10,
        "mood": 8,
        "leave": 4,
        "pass_time": 12,
        "hold_answers": 8,
        "hold_sends": 4,
        "let_go": 8,
        "cut": 8,
        "kill_producer": 4,
        "copy_files": 4,
        "restore_files": 3,
        "fail_group": 3,
        "hold_group": 5,
        "release_group": 6,
        "restart": 3,
        "look_at_backlogs": 3,
        "jump": 2,
    }
    ALWAYS = frozenset({"send", "attach", "pass_time", "release_group", "let_go"})

    def _near(self, rng: random.Random) -> HeldPipe | None:
        producer = rng.choice(self.producers)
        connector = producer.connector
        near = connector.near if connector is not None and producer.client is not None else None
        return None if near is None or near.is_down else near

    def do_hold_answers(self, rng: random.Random) -> None:
        """What the node says waits on its way to the producer."""
        near = self._near(rng)
        if near is not None and isinstance(near.other, HeldPipe):
            near.other.is_held = True

    def do_hold_sends(self, rng: random.Random) -> None:
        near = self._near(rng)
        if near is not None:
            near.is_held = True

    def do_let_go(self, rng: random.Random) -> None:
        near = self._near(rng)
        if near is not None:
            _let_go(near)

    def do_cut(self, rng: random.Random) -> None:
        """The connection goes, with what was under way."""
        near = self._near(rng)
        if near is not None:
            near.cut()

    def do_kill_producer(self, rng: random.Random) -> None:
        producer = rng.choice(self.producers)
        if producer.client is not None:
            producer.kill()
            self.settle(rng.choice([0.0, 3.0]))
            producer.start()

    def do_copy_files(self, rng: random.Random) -> None:
        """A backup of the outbox is made."""
        for producer in self.producers:
            if producer.on_disk and producer.folder.exists():
                producer.copy = self.folder / f"{producer.name}-copy"
                shutil.rmtree(producer.copy, ignore_errors=True)
                ignored = shutil.ignore_patterns("*.lock")
                shutil.copytree(producer.folder, producer.copy, ignore=ignored)
                producer.copied = sum(1 for one in producer.messages if one.fired)

    def do_restore_files(self, rng: random.Random) -> None:
        """An older copy takes the place of the outbox: what is newer is gone, nothing else."""
        producer = rng.choice(self.producers)
        if producer.copy is None or producer.client is None:
            return
        producer.kill()
        shutil.rmtree(producer.folder)
        shutil.copytree(producer.copy, producer.folder)
        for number, message in enumerate(producer.messages):
            if number >= producer.copied:
                message.is_lost = True  # unless the node has it
        producer.went_back = True
        producer.start()
