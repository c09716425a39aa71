"""Shared receivers in a swarm (DELIVERY 52): workers of one name, each killed and cut by itself.

A message is with one worker at a time. So where a handler of one begins with a message that it was
given, no other has it that was given it too, unless the node was told since that the other's
connection had gone; who has it is seen at the handlers, and whether the connection counts at the
node. That each message comes through, that
nothing is acknowledged that none has handled, and that it adds up, is judged as of any receiver
(`checkers`): what the workers of a pool have handled is its history.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred

from msgservice import Receiver, Reject, Retry
from tests.simulation.swarm.family import Family
from tests.simulation.swarm.parties import Handling, Party, ReceiverParty

if TYPE_CHECKING:
    from tests.simulation.swarm.plan import Part
    from tests.simulation.swarm.world import World


class WorkerParty(Party):
    """The process of one worker. What it has in hand, by what the node calls it: `busy`."""

    def __init__(self, world: World, pool: PoolParty, number: int) -> None:
        super().__init__(world, pool.name, "receiver")
        self.pool = pool
        self.number = number
        self.busy: dict[tuple[str, int], object] = {}  # -> the node's seat for it, then
        self.incarnation = ""
        self.attachment: Any = None

    def begin(self) -> None:
        """See `Party`."""
        pool, options, clock = self.pool, self.pool.part.options, self.clock
        history = Handling()
        pool.histories.append(history)
        self.busy = {}
        self.incarnation = f"{self.name}-{self.number}-{self.lives}"
        seconds, fails = options.get("pause", 0.0), options.get("fails", 0.0)
        random, busy = self.world.random, self.busy

        async def handle(message: Any) -> None:
            key = (message.run.node + str(pool.node_incarnation(self)), message.position)
            seat = pool.seat(self, message.position)
            if seat is not None:
                pool.begins(self, key)
            busy[key] = seat
            try:
                if seconds:
                    pause: Deferred[None] = Deferred()
                    clock.callLater(random.uniform(0, seconds), pause.callback, None)
                    await pause
                body = bytes(message.body)
                if pool.poisons(self, body):
                    await Deferred()
                if not self.world.is_healed and random.random() < fails:
                    raise random.choice((Reject("not this one"), Retry(None), Retry(0.5)))
                pool.ever.add(body)
                history.bodies.append(body)
                origin = message.origin
                history.lanes.append(origin.incarnation if origin is not None else "")
            finally:
                del busy[key]

        self.receiver = Receiver(
            clock,
            name=self.name,
            handler=handle,
            order="none",
            shared=True,
            window=options.get("window"),
            concurrency=options.get("concurrency", 3),
            limits=self.world.limits,
            transports=self.transports(),
            incarnation=self.incarnation,
        )
        self.attachment = self.receiver.attach_through(
            self.connector,
            address=self.world.address_of_node(self.name),
            subjects=pool.patterns,
            prover=self.prover(),
        )

    def stop(self) -> None:
        """See `Party`."""
        self.receiver.stop()


class PoolParty(ReceiverParty):
    """The workers of a shared receiver. As a party it is all of them."""

    def __init__(self, world: World, part: Part) -> None:
        super().__init__(world, part)
        self.order = "none"
        self.workers = [
            WorkerParty(world, self, number) for number in range(part.options["workers"])
        ]

    @property
    def is_up(self) -> bool:
        """See `Party`: whether any of them is."""
        return any(one.is_up for one in self.workers)

    def start(self) -> None:
        """See `Party`."""
        self.is_leaving = False
        for one in self.workers:
            if one.is_leaving:
                one.kill()
            one.start()

    def begin(self) -> None:
        """See `Party`: it has no process of its own."""

    def leave(self) -> None:
        """See `Party`."""
        self.is_leaving = True
        for one in self.workers:
            one.leave()

    def stop(self) -> None:
        """See `Party`: each of them stops."""

    def kill(self) -> None:
        """See `Party`."""
        for one in self.workers:
            one.kill()

    def hold(self, held: bool, way: str) -> None:
        """See `Party`."""
        for one in self.workers:
            one.hold(held, way)

    def cut(self) -> None:
        """See `Party`."""
        for one in self.workers:
            one.cut()

    def comes_back(self) -> None:
        """See `ReceiverParty`."""
        for one in self.workers:
            if one.is_up and one.attachment.is_over:
                one.attachment.start()

    # --- who has a message

    def seat(self, worker: WorkerParty, position: int) -> object:
        """The place of a worker at the node, if this message was sent there; or None.

        What came by a connection before may be another's by the time that it is handled.
        """
        for seat in self._seats():
            hello = seat.connection.session.peer_hello
            if hello is not None and hello.incarnation == worker.incarnation:
                backlog = seat.outlet.backlog
                there = [
                    backlog.carriers.get(run.first)
                    for run in backlog.open_between(position, position)
                ]
                return seat if seat.flight in there else None
        return None

    def node_incarnation(self, worker: WorkerParty) -> str:
        """What the node is to a worker now: of another, a position is another message."""
        for connection in worker.attachment.connections:
            node = connection._node
            if node is not None:
                return str(node.incarnation)
        return ""

    def _seats(self) -> list[Any]:
        node = self.world.node
        if not (node.is_up and node.service.is_running):
            return []
        row = self.world.row_of(self.name)
        outlet = node.service.parts.dispatch.outlets.get(row.number) if row is not None else None
        return list(getattr(outlet, "seats", ()))

    def begins(self, worker: WorkerParty, key: tuple[str, int]) -> None:
        """A worker's handler begins with a message that it was given, and has to answer."""
        seats = self._seats()
        for other in self.workers:
            held = other.busy.get(key)
            if other is not worker and held is not None and held in seats and other.is_up:
                self.world.witness.note(
                    "two workers have one message",
                    f"{worker.incarnation} begins with {key}, which {other.incarnation} has",
                )

    def poisons(self, worker: WorkerParty, body: bytes) -> bool:
        """Let a worker die, if this message is one that kills."""
        if self.world.poison.get(body) != self.name:
            return False
        worker.clock.callLater(0, self.world.die_of_poison, worker, body)
        return True


class Pools(Family):
    """See the module."""

    def do_kill_worker(self, who: str, number: int, seconds: float) -> None:
        """Kill one worker; it is started again after a while."""
        worker = self._worker(who, number)
        worker.kill()
        self.world.net.clock.callLater(seconds, worker.start)

    def do_cut_worker(self, who: str, number: int) -> None:
        """Cut the connection of one worker: it is alive, and what it has in hand is another's."""
        self._worker(who, number).cut()

    def do_stop_worker(self, who: str, number: int, seconds: float) -> None:
        """Stop one worker in order."""
        worker = self._worker(who, number)
        worker.leave()

        def again() -> None:
            worker.kill()
            worker.start()

        self.world.net.clock.callLater(seconds + self.world.limits.stop_timeout, again)

    def _worker(self, who: str, number: int) -> WorkerParty:
        pool = self.world.receivers[who]
        assert isinstance(pool, PoolParty)
        return pool.workers[number % len(pool.workers)]
