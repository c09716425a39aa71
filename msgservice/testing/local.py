"""A node of this process with a socket, for programs of all kinds: `LocalNode`.

It runs on the reactor of `msgservice.blocking`, in a thread of its own, with a log on disk and real
time. The program under test dials it, whatever it is: by `address`.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Unpack

from twisted.internet.defer import Deferred

from msgservice import blocking
from msgservice.blocking.thread import reactor_thread
from msgservice.client.connect import ConnectArguments
from msgservice.node.node import Node
from msgservice.receiver.received import ReceivedMessage
from msgservice.receiver.receiver import ReceiverArguments

SAID_MAX = 10  # subjects in the error of what did not come
WAIT_SECONDS = 30.0  # for what a test waits for, where it says nothing else


class LocalNode:
    """A node that listens on 127.0.0.1 from its start to its stop, as often as it is started.

    `folder`: of its log. `options`: those of `Node` (`limits`, `users`). Its port is one that was
    free, and stays the same. In a `with` block it is started and stopped; the fixture
    `msgservice_node` is one.
    """

    def __init__(self, folder: str | Path, **options: Any) -> None:
        self._folder = Path(folder)
        self._options = options
        self._thread = reactor_thread()
        self._port = 0
        self._node: Node | None = None
        self._open: list[blocking.Client | blocking.Receiver] = []

    @property
    def address(self) -> str:
        """The address that programs dial."""
        if not self._port:
            raise RuntimeError("the node was not started yet: it has no address")
        return f"tcp:127.0.0.1:{self._port}"

    def start(self) -> LocalNode:
        """Start it, and return it when it listens; raises what the start fails with."""
        if self._node is not None:
            raise RuntimeError("the node runs")
        self._node = self._thread.wait(self._start)
        return self

    async def _started(self, node: Node) -> Node:
        await node.when_ready()
        self._port = node.ports[0].getHost().port  # type: ignore[attr-defined]  # of TCP
        return node

    def _start(self) -> Deferred[Node]:
        node = Node(
            self._thread.reactor,
            self._folder,
            listen=[f"tcp:{self._port}:interface=127.0.0.1"],
            failed=lambda error: None,  # which the start raises
            **self._options,
        )
        node.startService()
        return Deferred.fromCoroutine(self._started(node))

    def stop(self) -> None:
        """Stop it, as an operator does: what it has stored is there at its next start."""
        node, self._node = self._node, None
        if node is not None:
            self._thread.wait(node.stopService)

    def connect(
        self,
        name: str = "test",
        timeout: float | None = WAIT_SECONDS,
        **more: Unpack[ConnectArguments],
    ) -> blocking.Client:
        """Return a blocking client of it, which is closed with it."""
        client = blocking.connect(self.address, name=name, timeout=timeout, **more)
        self._open.append(client)
        return client

    def receiver(
        self, subjects: Sequence[str] | None = None, **arguments: Unpack[ReceiverArguments]
    ) -> blocking.Receiver:
        """Return a blocking receiver that is attached to it, which is stopped with it."""
        receiver = blocking.Receiver(**arguments)
        self._open.append(receiver)
        receiver.attach(self.address, subjects=subjects)
        receiver.when_connected()
        return receiver

    def collect(self, *subjects: str, name: str = "collector") -> Collected:
        """Return what collects and acknowledges all that is sent to these patterns from now on."""
        collected = Collected()
        self.receiver(list(subjects) or [">"], name=name, handler=collected.add, threads=1)
        return collected

    def close(self) -> None:
        """Close what was made of it, and stop it."""
        opened, self._open = self._open, []
        for one in opened:
            if isinstance(one, blocking.Client):
                one.close()
            else:
                one.stop()
        self.stop()

    def __enter__(self) -> LocalNode:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()


class Collected:
    """The messages that have come, in their order. `messages`: those that are here by now."""

    def __init__(self) -> None:
        self.messages: list[ReceivedMessage] = []
        self._changed = threading.Condition()

    def add(self, message: ReceivedMessage) -> None:
        """Collect a message."""
        with self._changed:
            self.messages.append(message)
            self._changed.notify_all()

    def wait(self, count: int = 1, timeout: float = WAIT_SECONDS) -> list[ReceivedMessage]:
        """Return all messages when there are so many; `TimeoutError` where that takes longer."""
        with self._changed:
            if not self._changed.wait_for(lambda: len(self.messages) >= count, timeout):
                came = [message.subject for message in self.messages]
                raise TimeoutError(
                    f"{len(came)} messages within {timeout:g} s, not {count};"
                    f" the last were on {came[-SAID_MAX:]}"
                )
            return list(self.messages)
