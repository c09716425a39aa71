"""The machines, by name."""

from __future__ import annotations

from tests.machines.client import ClientMachine
from tests.machines.directory import DirectoryMachine
from tests.machines.inbox import InboxMachine
from tests.machines.machine import Machine
from tests.machines.outbox import OutboxMachine
from tests.machines.outbox_stuck import AgainMachine, AwayMachine, DeepMachine

KINDS: dict[str, type[Machine]] = {
    "outbox": OutboxMachine,
    "outbox-again": AgainMachine,
    "outbox-away": AwayMachine,
    "outbox-deep": DeepMachine,
    "inbox": InboxMachine,
    "client": ClientMachine,
    "directory": DirectoryMachine,
}
