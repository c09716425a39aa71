"""A fault of our own at the end of a handler: it is logged, and ends its connection, no more.

Never swallowed by a Deferred or a thread: then nothing of the lane would be answered again, and a
place of `concurrency` would be gone.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred, succeed
from twisted.logger import LogEvent

from msgservice.core.inbox import Inbox
from msgservice.errors import Retry
from msgservice.receiver.handling.work import NodeIncarnation
from tests.kit.receiver_world import World


class Kind:
    """A way to handle messages; each is noted when its handler begins."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.begun: list[bytes] = []
        self.waiting: list[Deferred[None]] = []
        self.fails: Exception | None = None  # what the handlers of "bad" raise

    def note(self, message: Any) -> None:
        self.begun.append(message.body)
        if message.body == b"bad" and self.fails is not None and self.begun.count(b"bad") == 1:
            raise self.fails

    def plain(self) -> dict[str, Any]:
        return {"handler": self.note}

    def batch(self) -> dict[str, Any]:
        def handle(messages: Any) -> None:
            for one in messages:
                self.note(one)

        return {"handler": handle, "batch": True}

    def later(self) -> dict[str, Any]:
        def handle(message: Any) -> Deferred[None]:
            self.waiting.append(Deferred())
            return self.waiting[-1].addCallback(lambda _: self.note(message))

        return {"handler": handle, "concurrency": 2}

    def fired(self) -> dict[str, Any]:
        return {"handler": lambda message: succeed(message).addCallback(self.note)}

    def threads(self) -> dict[str, Any]:
        return {"handler": self.note, "threads": 2}

    def transaction(self) -> dict[str, Any]:
        return {"handler": lambda message, transaction: self.note(message), "inbox": self.path}

    def computed(self) -> dict[str, Any]:
        return {"handler": self.note, "inbox": self.path, "concurrency": 2}

    def end_all(self, world: World) -> None:
        waiting, self.waiting = self.waiting, []
        for one in waiting:
            one.callback(None)
        world.run()


KINDS = [
    Kind.plain,
    Kind.batch,
    Kind.later,
    Kind.fired,
    Kind.threads,
    Kind.transaction,
    Kind.computed,
]


class Fault:
    """The first call of a method fails, by a fault of ours."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: type, name: str) -> None:
        self.error: Exception | None = ValueError("a fault of ours")
        method: Callable[..., Any] = getattr(owner, name)

        def faulty(*arguments: Any, **more: Any) -> Any:
            error, self.error = self.error, None
            if error is not None:
                raise error
            return method(*arguments, **more)

        monkeypatch.setattr(owner, name, faulty)


@pytest.mark.parametrize("order", ["strict", "none"])
@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (Inbox, "taken"),
        (Inbox, "refused"),
        (NodeIncarnation, "release"),
        (NodeIncarnation, "flush"),
    ],
    ids=["taken", "refused", "release", "flush"],
)
@pytest.mark.parametrize("make", KINDS)
def test_a_fault_at_the_end_of_a_handler_ends_the_connection_and_all_is_handled_on_the_next(
    make: Callable[[Kind], dict[str, Any]],
    owner: type,
    name: str,
    order: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    logged_failures: list[LogEvent],
) -> None:
    kind = Kind(tmp_path / "inbox.db")
    kind.fails = Retry(0.01) if name == "refused" else None
    made = make(kind)
    world = World(made.pop("handler"), order=order, attach=False, **made)
    world.attachment = world.attach(world.node)
    world.until(lambda: world.attachment.connected)
    fault = Fault(monkeypatch, owner, name)
    world.node.offer([b"bad"], "a")
    world.node.offer([b"1", b"2"], "a")
    world.node.offer([b"3"], "b")

    def is_done() -> bool:
        for _ in range(6):
            kind.end_all(world)
            world.run(1)
        return fault.error is None and world.node.backlog.cursor == 4

    world.until(is_done)
    assert any("internal error" in loss for loss in world.node.losses), world.node.losses
    assert set(kind.begun) == {b"bad", b"1", b"2", b"3"}
    assert len(world.node.losses) == 1
    assert world.receiver.handling._calls == set()
    node = world.receiver.handling.nodes["node", "log.1"]
    assert (node.works, node.held_messages) == (0, 0)
    assert {str(event["log_failure"].value) for event in logged_failures} == {"a fault of ours"}
    logged_failures.clear()
    world.stop()
