"""Peers that speak raw frames through the real session: one that keeps the rules, two that do not.

`ScriptedParty` is a receiver with a will of its own: it answers late, out of order where there is
none to keep, takes back lanes in parts, has a window and a `max_batch` of its own. It keeps every
rule of the protocol, so everything must reach it. `Wolf` is a hostile receiver, `Stray` a hostile
sender; what is theirs may be lost, what is others' may not.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any
from zlib import crc32

import msgspec

from msgservice.connection import Connection
from msgservice.core.frames import (
    VERSION,
    Ack,
    Hello,
    HelloOptions,
    Nack,
    ReceiveOptions,
    Request,
    ResumeFrame,
    Transfer,
)
from msgservice.core.ranges import RangeSet
from msgservice.message import WireMessage, decode_messages, encode_messages
from msgservice.records import Origin, Resume
from tests.simulation.swarm.parties import Handling, Party, ReceiverParty
from tests.simulation.swarm.plan import Part

if TYPE_CHECKING:
    from tests.simulation.swarm.world import World

AGAIN = (1, 4)

decode_raw = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode


class RawPeer:
    """What stands behind one connection (`connection.Owner`); does nothing by itself."""

    def __init__(self, party: RawParty) -> None:
        self.party = party
        self.is_open = False
        world = party.world
        self.connection = Connection(
            self,
            clock=party.clock,
            now=party.clock.seconds,
            limits=world.limits,
            prover=party.prover(),
        )

    def channel_up(self, connection: Connection) -> None:
        """See `Owner`."""
        connection.hello(self.party.hello())

    def greeted(self, connection: Connection, hello: Hello) -> None:
        """See `Owner`."""
        connection.resume(Resume())

    def opened(self, connection: Connection, resume: Resume) -> None:
        """See `Owner`."""
        self.is_open = True

    def received(self, connection: Connection, frame: Any) -> None:
        """See `Owner`."""

    def turn_ended(self, connection: Connection) -> None:
        """See `Owner`."""

    def writable(self, connection: Connection) -> None:
        """See `Owner`."""

    def peer_leaves(self, connection: Connection, code: int, reason: str) -> None:
        """See `Owner`."""
        self.party.sent_away(code)
        connection.close()

    def lost(self, connection: Connection, reason: str) -> None:
        """See `Owner`."""
        self.is_open = False
        if self.party.peer is self:
            self.party.peer = None


class RawParty(Party):
    """A process that dials the node with a `RawPeer`."""

    peer: RawPeer | None = None
    stays_away = False

    def hello(self) -> Hello:
        """What it says of itself."""
        return Hello(VERSION, self.name, f"{self.name}-{self.lives}", HelloOptions())

    def make_peer(self) -> RawPeer:
        """Return what stands behind the next connection."""
        return RawPeer(self)

    def begin(self) -> None:
        """See `Party`."""
        self.stays_away = False

        def make_user() -> Any:
            self.peer = self.make_peer()
            return self.peer.connection

        self.dialling = self.connector(make_user)
        self.dialling.startService()

    def died(self) -> None:
        """See `Party`."""
        self.peer = None

    def sent_away(self, code: int) -> None:
        """The node says BYE."""
        if code in (1, 2) and self.dialling.running:
            self.stays_away = True
            self.dialling.stopService()

    def stop(self) -> None:
        """See `Party`."""
        self.dialling.stopService()
        self.kill()


# --- one that keeps the rules -------------------------------------------------------------------


class Item:
    """A message that came and is not answered."""

    __slots__ = ("action", "body", "due", "lane", "last", "low", "origin", "sequence", "wakes")

    def __init__(
        self, sequence: int, low: int, last: int, body: bytes, origin: str, lane: Hashable
    ) -> None:
        self.sequence, self.low, self.last = sequence, low, last
        self.body, self.origin, self.lane = body, origin, lane
        self.due = 0.0
        self.wakes = False  # a timer is set for it
        self.action = 0  # 0: ACK


class ScriptedPeer(RawPeer):
    """One connection of a `ScriptedParty`."""

    party: ScriptedParty

    def __init__(self, party: ScriptedParty) -> None:
        super().__init__(party)
        self.far = ""
        self.order = ""  # in force, whatever it asked for
        self.lanes: dict[Hashable, deque[Item]] = {}
        self.pending: set[int] = set()
        self.nacks = 0
        self.discarding: dict[Hashable, int] = {}
        self.acks = RangeSet()

    def greeted(self, connection: Connection, hello: Hello) -> None:
        """See `Owner`."""
        self.far = hello.incarnation
        assert hello.options.receive is not None
        self.order = hello.options.receive.order or ""
        party = self.party
        taken = party.taken.setdefault(self.far, RangeSet())
        # What was rejected or given up leaves holes. The floor passes only the oldest of too many.
        settled = party.floors.get(self.far, 1)
        passed = [one for one in taken if one[0] < settled][:-100]
        floor = min(passed[-1][1] + 1, settled) if passed else 1
        ranges = RangeSet(taken)
        ranges.remove_below(floor)
        connection.resume(Resume(floor, tuple(ranges), last=party.newest(self.far)))

    def received(self, connection: Connection, frame: Any) -> None:
        """See `Owner`."""
        if type(frame) is not Transfer:
            return
        party = self.party
        origin = frame.origin
        sender = origin.sender if origin is not None else ""
        lane: Hashable = (sender, frame.subject)
        if self.order == "strict" and lane in self.discarding:
            if frame.nacks < self.discarding[lane]:
                return
            del self.discarding[lane]
        messages = decode_messages(frame.messages)
        last = frame.sequence + len(messages) - 1
        low = frame.sequence if frame.after is None else frame.after + 1
        taken = party.taken[self.far]
        if frame.floor > party.floors.get(self.far, 1):
            party.floors[self.far] = frame.floor
        for index, message in enumerate(messages):
            sequence = frame.sequence + index
            party.came[self.far, sequence] = (frame.sequence, frame.messages)
            if sequence in taken:
                self.acks.add(sequence, sequence)
            elif (self.far, sequence) in party.dead:
                connection.send(Nack(sequence, sequence, 2, 0, "as said"))
            elif sequence not in self.pending:
                key = lane if self.order == "strict" else sequence
                incarnation = origin.incarnation if origin is not None else ""
                item = Item(sequence, low, last, message.body, incarnation, key)
                self._choose(item)
                self.pending.add(sequence)
                self.lanes.setdefault(key, deque()).append(item)
            low = sequence + 1

    def _choose(self, item: Item) -> None:
        party, world = self.party, self.party.world
        options, random = party.part.options, world.random
        if world.is_healed:
            return
        chance, seconds = options.get("slow", (0.0, 0.0))
        if random.random() < chance:
            item.due = party.clock.seconds() + random.uniform(0, seconds)
        if random.random() < options.get("nacks", 0.0):
            item.action = random.choice(options.get("actions", (1,)))

    def turn_ended(self, connection: Connection) -> None:
        """See `Owner`."""
        for lane in list(self.lanes):
            self.step(lane)
        self.flush()

    def step(self, lane: Hashable) -> None:
        """Answer what is due of a lane."""
        queue = self.lanes.get(lane)
        now = self.party.clock.seconds()
        while queue:
            item = queue[0]
            if item.due > now:
                if not item.wakes:
                    item.wakes = True
                    self.party.clock.callLater(item.due - now + 0.001, self.wake, lane)
                return
            if self.party.poisoned(item.body):
                return
            if item.action:
                self._nack(queue, item)
            else:
                queue.popleft()
                self._take(item)
        self.lanes.pop(lane, None)

    def wake(self, lane: Hashable) -> None:
        """Go on with a lane that was slow."""
        if self.is_open:
            self.step(lane)
            self.flush()

    def hurry(self) -> None:
        """Be slow no more."""
        for lane, queue in list(self.lanes.items()):
            for item in queue:
                item.due = 0.0
            self.step(lane)
        self.flush()

    def _take(self, item: Item) -> None:
        self.pending.discard(item.sequence)
        self.party.taken[self.far].add(item.low, item.sequence)
        self.party.has_answered(self.far, item.sequence)
        self.acks.add(item.low, item.sequence)
        self.party.handle(item)

    def _nack(self, queue: deque[Item], item: Item) -> None:
        self.flush()
        party, action = self.party, item.action
        strict = self.order == "strict"
        last = item.sequence
        if strict:
            with_it = [one.sequence for one in queue if one.last == item.last]
            last = party.world.random.choice(with_it)
        reason = "not now" if action in AGAIN else "never"
        asks = party.part.options.get("asks", 0) if action in AGAIN else 0
        self.connection.send(Nack(item.sequence, last, action, asks, reason))
        gone = list(queue) if action in AGAIN else [o for o in queue if o.sequence <= last]
        if action in AGAIN:
            self.nacks += 1
            if strict:
                self.discarding[item.lane] = self.nacks
        else:
            party.dead.update((self.far, one.sequence) for one in gone)
            party.has_answered(self.far, max(one.sequence for one in gone))
        for one in gone:
            queue.remove(one)
            self.pending.discard(one.sequence)

    def flush(self) -> None:
        """Send the ACKs that are owed."""
        if self.acks and not self.connection.is_gone:
            ranges, self.acks = list(self.acks), RangeSet()
            self.connection.send(Ack(ranges))


class ScriptedParty(ReceiverParty, RawParty):
    """See the module."""

    def __init__(self, world: World, part: Part) -> None:
        super().__init__(world, part)
        self.taken: dict[str, RangeSet] = {}
        self.floors: dict[str, int] = {}  # all below is settled, as the node has said
        self.dead: set[tuple[str, int]] = set()
        # (incarnation, sequence) -> the run that it came in last: its first sequence, its messages
        self.came: dict[tuple[str, int], tuple[int, msgspec.Raw]] = {}
        self.answered: dict[str, tuple[int, int, bytes]] = {}  # the newest run, up to there

    def newest(self, far: str) -> tuple[int, int, int] | None:
        """The run with the newest that was taken or rejected, up to there (SEMANTICS 6)."""
        newest = self.answered.get(far)
        return None if newest is None else (newest[0], newest[1], crc32(newest[2]))

    def has_answered(self, far: str, sequence: int) -> None:
        """A sequence is taken, or refused for good."""
        first, messages = self.came[far, sequence]
        if far not in self.answered or sequence > self.answered[far][1]:
            run = encode_messages(decode_raw(messages)[: sequence - first + 1])
            self.answered[far] = (first, sequence, run)

    def begin(self) -> None:
        """See `Party`."""
        self.taken, self.floors = {}, {}
        self.dead = set()
        self.came, self.answered = {}, {}
        self.histories.append(Handling())
        RawParty.begin(self)

    def make_peer(self) -> RawPeer:
        """See `RawParty`."""
        return ScriptedPeer(self)

    def hello(self) -> Hello:
        """See `RawParty`."""
        options, limits = self.part.options, self.world.limits
        return Hello(
            VERSION,
            self.name,
            f"{self.name}-{self.lives}",
            HelloOptions(
                # What is larger than it takes waits until it takes more.
                max_batch=None if self.world.is_healed else options.get("max_batch"),
                heartbeat=round(limits.heartbeat * 1000),
                window=options.get("window"),
                receive=ReceiveOptions(subjects=list(self.patterns), order=self.order),
            ),
        )

    def handle(self, item: Item) -> None:
        """A message was taken."""
        history = self.histories[-1]
        history.bodies.append(item.body)
        history.lanes.append(item.origin)
        self.ever.add(item.body)

    def comes_back(self) -> None:
        """See `ReceiverParty`."""
        if self.is_up and self.stays_away:
            self.stays_away = False
            self.dialling.startService()

    def hurry(self) -> None:
        """Be slow no more."""
        if isinstance(self.peer, ScriptedPeer) and self.peer.is_open:
            self.peer.hurry()


class Intruder(RawParty):
    """Another program that says it is a receiver of somebody's name, once."""

    def __init__(
        self, world: World, name: str, patterns: tuple[str, ...], order: str | None
    ) -> None:
        super().__init__(world, name, "other")
        self._receive = ReceiveOptions(subjects=list(patterns), order=order)
        self._hellos = self._refusals = 0

    @property
    def was_refused(self) -> bool:
        """Whether each of its HELLOs was answered by an ERROR or a BYE, and nothing else."""
        return self._hellos == self._refusals

    def hello(self) -> Hello:
        """See `RawParty`."""
        self._hellos += 1
        return Hello(VERSION, self.name, "intruder", HelloOptions(receive=self._receive))

    def make_peer(self) -> RawPeer:
        """See `RawParty`."""
        party = self

        class Peer(RawPeer):
            was_admitted = False

            def greeted(self, connection: Connection, hello: Hello) -> None:
                self.was_admitted = True
                connection.abort()

            def lost(self, connection: Connection, reason: str) -> None:
                if connection.peer_error and not self.was_admitted:
                    party._refusals += 1
                super().lost(connection, reason)

        return Peer(self)


# --- those that do not --------------------------------------------------------------------------


def _messages(bodies: list[bytes]) -> msgspec.Raw:
    return msgspec.Raw(encode_messages([WireMessage(body) for body in bodies]))


class Wolf(RawParty):
    """A hostile receiver, which also sends to itself."""

    def __init__(self, world: World, patterns: tuple[str, ...]) -> None:
        super().__init__(world, "wolf", "receiver")
        self.patterns = patterns
        self.sequence = 0
        self.inverts_resume = False
        self.transfers: list[tuple[int, int, int]] = []  # after + 1, first, last

    def begin(self) -> None:
        """See `Party`."""
        self.sequence = 0
        super().begin()

    def hello(self) -> Hello:
        """See `RawParty`."""
        options = HelloOptions(
            window=(1_000_000, 10**8),
            receive=ReceiveOptions(subjects=list(self.patterns), order="strict"),
        )
        return Hello(VERSION, self.name, f"wolf-{self.lives}", options)

    def make_peer(self) -> RawPeer:
        """See `RawParty`."""
        wolf = self
        wolf.transfers = []

        class Peer(RawPeer):
            def greeted(self, connection: Connection, hello: Hello) -> None:
                if wolf.inverts_resume:
                    wolf.inverts_resume = False
                    connection.session.out.append(ResumeFrame(1, [(2**40, 1)]))
                else:
                    connection.resume(Resume())

            def opened(self, connection: Connection, resume: Resume) -> None:
                super().opened(connection, resume)
                taken = max([resume.floor - 1, *(last for _, last in resume.ranges)])
                wolf.sequence = max(wolf.sequence, taken)

            def received(self, connection: Connection, frame: Any) -> None:
                if type(frame) is Transfer:
                    last = frame.sequence + len(decode_messages(frame.messages)) - 1
                    after = frame.sequence - 1 if frame.after is None else frame.after
                    wolf.transfers.append((after + 1, frame.sequence, last))

        return Peer(self)

    def act(self, what: str, args: tuple[Any, ...]) -> None:
        """Do something that a receiver may not do, or should not."""
        peer = self.peer
        if not self.is_up or peer is None or not peer.is_open or peer.connection.is_gone:
            return
        connection, got = peer.connection, self.transfers
        match what:
            case "flood":
                count, size = args
                limits = self.world.limits
                batch = min(256, limits.batch_messages, limits.body_bytes // (size + 20))
                for at in range(0, count, batch):
                    some = min(batch, count - at)
                    bodies = [b"wolf %d " % (self.sequence + i) + b"." * size for i in range(some)]
                    subject = f"flood.{at // batch % 7}"
                    connection.send(
                        Transfer(self.sequence + 1, subject, _messages(bodies), to=("wolf",))
                    )
                    self.sequence += some
            case "nack" if got:
                connection.send(Nack(got[0][1], got[-1][2], args[0], 0, "all of it"))
            case "nack_each" if got:
                for _, first, last in got:
                    for sequence in range(first, last + 1):
                        connection.send(Nack(sequence, sequence, args[0], 0, "this one"))
            case "ack_odd" if got:
                odd = [(s, s) for _, a, b in got for s in range(a, b + 1, 2)]
                size = self.world.limits.frame_bytes // 20
                for at in range(0, len(odd), size):
                    connection.send(Ack(odd[at : at + size]))
            case "ack_inverted" if got:
                connection.send(Ack([(last, first) for _, first, last in got[:500]]))
                connection.send(Ack([(got[-1][2], got[0][1])]))
            case "nack_inverted" if got:
                connection.send(Nack(got[-1][2], got[0][1], args[0], 0, "backwards"))
            case "resume_inverted":
                self.inverts_resume = True
                connection.abort()
            case "away":
                self.dialling.stopService()
                connection.abort()
                self.clock.callLater(args[0], self.dialling.startService)


class Stray(RawParty):
    """A hostile sender."""

    def __init__(self, world: World) -> None:
        super().__init__(world, "stray", "other")
        self.sequence = 0
        self.acked = RangeSet()
        self.again: dict[int, tuple[str, bytes]] = {}  # sequences that were used for another
        # Of those, what was acknowledged as such; and when that connection began.
        self.claimed: list[tuple[str, bytes, float]] = []

    def begin(self) -> None:
        """See `Party`."""
        self.sequence = 0
        super().begin()

    def make_peer(self) -> RawPeer:
        """See `RawParty`."""
        stray = self

        class Peer(RawPeer):
            opened_at = 0.0

            def opened(self, connection: Connection, resume: Resume) -> None:
                super().opened(connection, resume)
                self.opened_at = stray.world.now
                taken = max([resume.floor - 1, *(last for _, last in resume.ranges)])
                stray.sequence = max(stray.sequence, taken)

            def received(self, connection: Connection, frame: Any) -> None:
                if type(frame) is Ack:
                    for first, last in frame.ranges:
                        stray.acked.add(first, last)
                        for sequence in range(first, last + 1):
                            if sequence in stray.again:
                                claimed = stray.again.pop(sequence)
                                stray.claimed.append((*claimed, self.opened_at))

        return Peer(self)

    def act(self, what: str, args: tuple[Any, ...]) -> None:
        """Send what a sender may not send, or should not."""
        peer = self.peer
        if not self.is_up or peer is None or not peer.is_open or peer.connection.is_gone:
            return
        random, connection = self.world.random, peer.connection
        if connection.channel is None:
            return
        match what:
            case "origin":
                for _ in range(args[0]):
                    self.sequence += 1
                    name = random.choice(["shop", "far", "other"])
                    origin = Origin(name, random.randint(1, 30), "0" * 16, ("somewhere",))
                    subject = random.choice(["a.1", "a.2"])
                    body = b"stray %d" % self.sequence
                    connection.send(
                        Transfer(self.sequence, subject, _messages([body]), origin=origin)
                    )
            case "again":
                self._again(connection, args[0])
            case "requests":
                self._ask(connection, *args)
            case "garbage":
                connection.channel.send(random.randbytes(random.randint(1, 60)))

    def _ask(self, connection: Connection, count: int, times: int) -> None:
        """Ask, and ask, and never read an answer."""
        channel: Any = connection.channel
        if connection.is_gone or not times:
            return
        channel.hold(True)
        raw = msgspec.Raw(encode_messages([WireMessage(b"{}")]))
        for at in range(min(count, self.world.limits.requests)):
            connection.send(Request(at + 1, "$node.receivers.list", raw))
        self.clock.callLater(1.0, self._ask, connection, count, times - 1)

    def _again(self, connection: Connection, how: str) -> None:
        """Use sequences again: for other subjects, in other cuts, for other bodies."""
        first = self.sequence + 1
        self.sequence += 2
        bodies = [b"stray again %d" % first, b"stray again %d" % (first + 1)]
        connection.send(Transfer(first, "a.1", _messages(bodies)))

        def second() -> None:
            if connection.is_gone or not self.acked.covers(first, first + 1):
                return
            if how == "subject":
                connection.send(Transfer(first, "a.2", _messages(bodies)))
                self.again.update(
                    (first + index, ("a.2", body)) for index, body in enumerate(bodies)
                )
            elif how == "cut":
                for index, body in enumerate(bodies):
                    connection.send(Transfer(first + index, "a.1", _messages([body])))
            else:
                connection.send(Transfer(first, "a.1", _messages([b"x" + b for b in bodies])))

        self.clock.callLater(self.world.random.choice((1.0, 5.0)), second)
