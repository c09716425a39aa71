"""Kill points of the soak: named places in the product at which a process ends itself with SIGKILL.

A point is one method and a side of it, `before` or `after`; `arm` wraps that method in the process
that calls it, so the product itself knows of none of this. What the processes do is in `roles`,
which of them dies where and when in `soak`.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from importlib import import_module
from typing import Any

# name: (module, class or None for a function, attribute, side)
Place = tuple[str, str | None, str, str]

NODE: dict[str, Place] = {
    "before the commit": ("msgservice.log.store", "Store", "transact", "before"),
    "after the commit": ("msgservice.log.store", "Store", "transact", "after"),
    "before the mark": ("msgservice.disk.mark", "MarkFile", "write", "before"),
    "after the mark": ("msgservice.disk.mark", "MarkFile", "write", "after"),
    "before a checkpoint": ("msgservice.log.store", "Store", "checkpoint", "before"),
    "after a checkpoint": ("msgservice.log.store", "Store", "checkpoint", "after"),
    "while it recovers": ("msgservice.log.store", "Store", "load", "after"),
    "before the ACK": ("msgservice.node.ingress", "Ingress", "flush", "before"),
    "after the ACK": ("msgservice.node.ingress", "Ingress", "flush", "after"),
    "before STATUS": ("msgservice.node.tracker", "Tracker", "flush", "before"),
    "after STATUS": ("msgservice.node.tracker", "Tracker", "flush", "after"),
    "in the fan-out": ("msgservice.node.dispatch", "Dispatch", "stored", "before"),
    "at a receiver's answer": ("msgservice.node.outlet", "Outlet", "turn_ended", "before"),
    "when progress is taken": (
        "msgservice.node.outlet_progress",
        "OutletProgress",
        "take_progress",
        "after",
    ),
    "in retention": ("msgservice.log.base", "StoreLog", "retain", "after"),
}
PRODUCER: dict[str, Place] = {
    "before the outbox's commit": (
        "msgservice.client.outbox_file",
        "OutboxFile",
        "_write",
        "before",
    ),
    "after the outbox's commit": ("msgservice.client.outbox_file", "OutboxFile", "_write", "after"),
    "when the node answers": ("msgservice.client.hop", "NodeHop", "turn_ended", "before"),
    "after the node's answer": ("msgservice.client.hop", "NodeHop", "turn_ended", "after"),
    "while the outbox opens": ("msgservice.client.outbox_file", "OutboxFile", "_load", "after"),
}
RECEIVER: dict[str, Place] = {
    "before the inbox's commit": (
        "msgservice.receiver.inbox.file",
        "InboxFile",
        "_commit",
        "before",
    ),
    "after the inbox's commit": ("msgservice.receiver.inbox.file", "InboxFile", "_commit", "after"),
    "while the inbox opens": ("msgservice.receiver.inbox.file", "InboxFile", "_load", "after"),
}
POINTS: dict[str, dict[str, Place]] = {
    "node": NODE,
    "shop": PRODUCER,
    "web": {name: PRODUCER[name] for name in ("when the node answers", "after the node's answer")},
    "once": RECEIVER,
    "udp": {},
    "dialled": {},
}
# Where a process comes by when it starts, and not again.
ONCE_A_LIFE = ("while it recovers", "while the outbox opens", "while the inbox opens")


def every_point() -> dict[tuple[str, str], Place]:
    """Return the points of everybody, by role and name."""
    return {
        (role, name): place for role, all_of in POINTS.items() for name, place in all_of.items()
    }


def find(place: Place) -> tuple[Any, str, Callable[..., Any]]:
    """Return the owner of the method, its name, and the method. `AttributeError`: not there."""
    module, owner, attribute, _ = place
    holder = import_module(module)
    if owner is not None:
        holder = getattr(holder, owner)
    return holder, attribute, getattr(holder, attribute)


def arm(place: Place, visits: int, die: Callable[[], None] | None = None) -> None:
    """End this process at the visit of that number, on whichever thread."""
    holder, attribute, method = find(place)
    before = place[3] == "before"
    left = visits

    def visited(*args: Any, **options: Any) -> Any:
        nonlocal left
        left -= 1
        if before and left == 0:
            (die or _die)()
        result = method(*args, **options)
        if not before and left == 0:
            (die or _die)()
        return result

    setattr(holder, attribute, visited)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
