"""A node and programs of Twisted's kind, in virtual time on a network that loses: `World`.

Everything is the real thing but the clock, the network and the disk: the node's log is in memory,
and outlives a node that is killed. Nothing here takes time, and the same seed gives the same
history, as long as the code under test draws from nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar, Unpack

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from msgservice.client.client import Client
from msgservice.limits import Limits
from msgservice.log.memory import MemoryLog
from msgservice.node.node import Node
from msgservice.receiver.receiver import Receiver, ReceiverArguments
from msgservice.testing.network import CALM, Faults, FaultyWorld
from msgservice.testing.transport import FaultyTransport, Process
from msgservice.transport.registry import Transports

T = TypeVar("T")
NODE = "node"
ADDRESS = f"faulty:{NODE}"
DISK_SECONDS = 0.003  # that a commit takes
WAIT_SECONDS = 300.0  # of virtual time, for what has no time of its own
STORY_LINES = 10  # of the network's, in the error of what does not happen in time


class World:
    """A node, its clients and receivers, a network between them, and the time of all of them.

    `seed`: of all that happens by chance. `faults`: how the network fails; it is calm until
    something else is said, here or as `world.faults`. `limits`: of the node and of all that speaks
    to it. Close it at the end, or use the fixture `msgservice_world`.
    """

    def __init__(
        self, seed: int = 1, *, faults: Faults = CALM, limits: Limits | None = None
    ) -> None:
        self.limits = Limits() if limits is None else limits
        self.network = FaultyWorld(seed, faults=faults, limits=self.limits)
        self.errors: list[Exception] = []  # of a node that could not go on
        self.node: Node | None = None  # while it runs
        self._processes: dict[str, Process] = {}
        self._clients: dict[str, Client] = {}
        self._receivers: dict[str, Receiver] = {}
        self._log: MemoryLog | None = None
        self.start_node()

    # --- time and network

    @property
    def clock(self) -> Clock:
        """The virtual clock, a reactor's time for the code under test."""
        return self.network.clock

    @property
    def faults(self) -> Faults:
        """How the network fails from now on: `Faults()` is rough weather, `CALM` is none."""
        return self.network.faults

    @faults.setter
    def faults(self, faults: Faults) -> None:
        self.network.faults = faults

    def run(self, seconds: float) -> None:
        """Let so much time pass."""
        self.network.run(seconds)
        self._check()

    def run_until(self, condition: Callable[[], object], seconds: float = WAIT_SECONDS) -> None:
        """Let time pass until `condition()` is true; `AssertionError` where that takes longer."""
        self.network.run_until(condition, seconds_max=seconds)
        self._check()

    def wait(
        self, awaited: Deferred[T] | Coroutine[Any, Any, T], seconds: float = WAIT_SECONDS
    ) -> T:
        """Let time pass until a Deferred fires, or a coroutine ends; return its result, or raise.

        `TimeoutError` where that takes longer than `seconds`; it is cancelled then.
        """
        deferred = awaited if isinstance(awaited, Deferred) else Deferred.fromCoroutine(awaited)
        results: list[T | Failure] = []
        deferred.addBoth(results.append)
        try:
            self.network.run_until(lambda: results, seconds_max=seconds)
        except AssertionError:
            deferred.cancel()
            story = "\n".join(self.network.story[-STORY_LINES:])
            raise TimeoutError(
                f"not within {seconds:g} s of virtual time, seed {self.network.seed}; the network"
                f" said last:\n{story}"
            ) from None
        self._check()
        (result,) = results
        if isinstance(result, Failure):
            result.raiseException()
        return result

    def cut(self, name: str) -> None:
        """Cut the connection of a client or receiver: a part of what is on its way is lost."""
        for channel in self._processes[name].channels:
            if not channel.is_gone:
                channel.link.cut()

    # --- the node

    def start_node(self) -> Node:
        """Start the node, with the log that it had; return it when it listens."""
        if self.node is not None:
            raise RuntimeError("the node runs")
        process = self._processes[NODE] = Process(self.network, NODE)
        clock: Any = process.clock
        if self._log is None:
            self._log = MemoryLog(
                reactor=clock,
                limits=self.limits,
                delay=DISK_SECONDS,
                entropy=self.network.random.randbytes,
            )
        else:
            self._log = self._log.left_behind(clock)
        node = self.node = Node(
            clock,
            self._log,
            name=NODE,
            listen=[ADDRESS],
            limits=self.limits,
            rng=self.network.random.random,
            failed=self.errors.append,
        )
        node.transports = Transports([FaultyTransport(self.network, process)])
        node.startService()
        self.wait(node.when_ready())
        return node

    def stop_node(self) -> None:
        """Stop the node as an operator does; `start_node` has it back."""
        if self.node is not None:
            self.wait(self.node.stopService())
            self.node = None

    def kill_node(self) -> None:
        """End the node as kill -9 does, between any two events; `start_node` has it back."""
        if self.node is not None:
            self._processes[NODE].kill()
            self.node = None

    # --- programs

    def client(self, name: str, **options: Any) -> Client:
        """Return a client that dials the node. `options`: as of `Client` (`require`, `held`).

        Usable at once; what it sends waits until there is a connection.
        """
        process, transports = self._process_of(name)
        clock: Any = process.clock
        client = self._clients[name] = Client(
            reactor=clock,
            name=name,
            connector_factory=lambda make_user: transports.find(ADDRESS).connector(
                clock, ADDRESS, make_user, self.limits
            ),
            limits=self.limits,
            new_incarnation=lambda: self.network.random.randbytes(16).hex(),
            **options,
        )
        client.start()
        return client

    def receiver(
        self, subjects: Sequence[str] | None = None, **arguments: Unpack[ReceiverArguments]
    ) -> Receiver:
        """Return a receiver that dials the node. `arguments`: those of `Receiver`.

        It has no `threads`, and no `inbox` that is a file: neither would know the virtual time.
        """
        process, transports = self._process_of(arguments["name"])
        clock: IReactorTime = process.clock
        arguments.setdefault("limits", self.limits)
        arguments.setdefault("transports", transports)
        arguments.setdefault("incarnation", self.network.random.randbytes(16).hex())
        receiver = self._receivers[arguments["name"]] = Receiver(clock, **arguments)
        receiver.attach(ADDRESS, subjects=subjects)
        return receiver

    def kill(self, name: str) -> None:
        """End a client or receiver as kill -9 ends its process: what was in its memory is gone.

        Another one of that name may be made then.
        """
        self._processes.pop(name).kill()
        self._clients.pop(name, None)
        self._receivers.pop(name, None)

    def close(self) -> None:
        """Calm the network, and stop what runs; raises what the node could not go on after."""
        self.network.heal()
        if self.node is not None:
            ends = [each.close() for each in self._clients.values()]
            ends += [each.stop() for each in self._receivers.values()]
            self.wait(gatherResults(ends))
            self.stop_node()
        for process in self._processes.values():
            process.kill()
        self._check()

    def _process_of(self, name: str) -> tuple[Process, Transports]:
        if name in self._processes:
            raise ValueError(f"there is a {name!r} already: kill it first, or choose another name")
        process = self._processes[name] = Process(self.network, name)
        return process, Transports([FaultyTransport(self.network, process)])

    def _check(self) -> None:
        if self.errors:
            raise self.errors[0]
