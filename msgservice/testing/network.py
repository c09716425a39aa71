"""A network of one seed, in virtual time: channels between two users that fail in every way.

    world = FaultyWorld(seed=7)
    pair = world.keep_connected(make_client_user, make_node_user)   # dials again by itself
    ...
    world.run(60)             # faults happen
    world.heal()              # from now on everything works
    world.run_until(lambda: everything_delivered(), seconds_max=600)

`world.clock` is a Twisted `Clock`: give it to whatever wants a reactor's time, and
`world.clock.seconds` to whatever wants a monotonic `now`. `world.random` is the one source of
chance; draw your own faults (a disk that is slow, a handler that raises) from it too. The same
seed gives the same history as long as the code under test draws from nothing else.

What happens to a link, by `Faults`: frames arrive late, together or one by one (`split`), a
direction stands still for a while (`hold`), the connection is cut at any moment, with any part of
what was on its way lost, each direction its own; and the two ends learn of that at different
times, up to `half_open` seconds apart, so that the dialler may be back before the other end has
missed it. Nothing is reordered, duplicated or changed within a connection: TCP promises that much.
Of datagrams nothing is promised at all: `testing.datagrams`.

The channels keep the whole contract of `IChannel`, limits included, and check their users': one
that raises fails the run. `crash` ends one side without a word to it, as a killed process ends.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from twisted.internet.task import Clock
from zope.interface import implementer

from msgservice.credentials import THIS_PROCESS
from msgservice.errors import FrameTooLarge
from msgservice.interfaces import IChannel, IChannelUser
from msgservice.limits import Limits

BUFFER_BYTES = 256 * 1024  # on its way in one direction before the sender is told to wait


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """How a world fails. Times in seconds, chances from 0 to 1; `cut` and `hold` for each delivery,
    those of datagrams for each datagram.

    The defaults are rough weather; `CALM` is none at all.
    """

    delay: tuple[float, float] = (0.001, 0.2)
    split: float = 0.5  # a delivery brings only a part of what has arrived
    hold: float = 0.02
    hold_seconds: tuple[float, float] = (0.5, 8.0)
    cut: float = 0.02
    half_open: float = 5.0
    redial: tuple[float, float] = (0.01, 3.0)
    # --- of datagrams
    loss: float = 0.05
    duplicate: float = 0.05  # another copy comes within `hold_seconds`
    reorder: float = 0.3  # it takes any time of `delay`; the others its least
    damage: float = 0.01  # a bit is changed
    busy: float = 0.1  # the process reads its socket only after any time of `delay`
    partition: float = 0.001  # from then on nothing passes between two processes
    partition_seconds: tuple[float, float] = (0.5, 80.0)


CALM = Faults(
    delay=(0.001, 0.001),
    split=0.0,
    hold=0.0,
    cut=0.0,
    half_open=0.0,
    redial=(0.01, 0.01),
    loss=0.0,
    duplicate=0.0,
    reorder=0.0,
    damage=0.0,
    busy=0.0,
    partition=0.0,
)


class FaultyWorld:
    """The clock, the chance, the weather, and every link that was made."""

    def __init__(
        self, seed: int, *, faults: Faults | None = None, limits: Limits | None = None
    ) -> None:
        self.seed = seed
        self.clock = Clock()
        self.random = random.Random(seed)
        self.faults = Faults() if faults is None else faults
        self.limits = Limits() if limits is None else limits
        self.links: list[FaultyLink] = []
        self.shared: dict[str, Any] = {}  # of transports and the like, in this world
        self.story: list[str] = []  # what the world did, for people and to compare two runs

    def tell(self, what: str) -> None:
        """Write an event into the story."""
        self.story.append(f"{self.clock.seconds():10.4f} {what}")

    def between(self, span: tuple[float, float]) -> float:
        """Draw a number of seconds."""
        return self.random.uniform(*span)

    def happens(self, chance: float) -> bool:
        """Draw whether something happens; draws nothing for what never does."""
        return chance > 0 and self.random.random() < chance

    def heal(self) -> None:
        """No more faults from now on; what is lost stays lost, what is held comes when due."""
        self.tell("healed")
        self.faults = CALM

    def connect(self, left: IChannelUser, right: IChannelUser) -> FaultyLink:
        """Connect two users; each is told in a later turn. `left` is who dialled."""
        link = FaultyLink(self, len(self.links) + 1, left, right)
        self.links.append(link)
        return link

    def keep_connected(
        self, make_left: Callable[[], IChannelUser], make_right: Callable[[], IChannelUser]
    ) -> FaultyPair:
        """Connect two sides for as long as the pair is not stopped."""
        return FaultyPair(self, make_left, make_right)

    def run(self, seconds: float) -> None:
        """Let time pass, one event after the other."""
        end = self.clock.seconds() + seconds
        while (due := self._next()) is not None and due <= end:
            self.clock.advance(max(0.0, due - self.clock.seconds()))
        self.clock.advance(max(0.0, end - self.clock.seconds()))

    def run_until(self, condition: Callable[[], object], *, seconds_max: float) -> None:
        """Let time pass until `condition()`; `AssertionError` if that takes too long.

        Looks after every event, so a condition must be cheap.
        """
        end = self.clock.seconds() + seconds_max
        while not condition():
            due = self._next()
            if due is None or due > end:
                raise AssertionError(
                    f"seed {self.seed}: not within {seconds_max:g} s (virtual);"
                    f" the last of the story:\n" + "\n".join(self.story[-20:])
                )
            self.clock.advance(max(0.0, due - self.clock.seconds()))

    def _next(self) -> float | None:
        calls = self.clock.getDelayedCalls()
        return min(call.getTime() for call in calls) if calls else None


class FaultyLink:
    """One connection. `left` and `right` are its two `FaultyChannel`s."""

    def __init__(
        self, world: FaultyWorld, number: int, left: IChannelUser, right: IChannelUser
    ) -> None:
        self.world = world
        self.number = number
        self.is_cut = False
        self.left = FaultyChannel(self, left, f"faulty:{number}:right")
        self.right = FaultyChannel(self, right, f"faulty:{number}:left")
        self.left.other, self.right.other = self.right, self.left
        world.tell(f"link {number} stands")
        for channel in (self.left, self.right):
            world.clock.callLater(0, channel.open)

    @property
    def is_over(self) -> bool:
        """Whether both users were told of the end (or crashed)."""
        return self.left.is_gone and self.right.is_gone

    def cut(self, reason: str = "cut") -> None:
        """Break the connection now: of what is on its way, a random part still arrives."""
        if self.is_cut:
            return
        self.is_cut = True
        world = self.world
        kept = []
        for channel in (self.left, self.right):
            kept.append(world.random.randint(0, len(channel.incoming)))
            while len(channel.incoming) > kept[-1]:
                channel.incoming.pop()
        world.tell(f"link {self.number} {reason}, {kept} frames still arrive")
        for channel in (self.left, self.right):
            world.clock.callLater(
                world.between((0.0, world.faults.half_open)), channel.miss, reason
            )

    def crash(self, channel: FaultyChannel) -> None:
        """End one side without a word to its user, as if its process were killed."""
        if not channel.is_gone:
            self.world.tell(f"link {self.number}: the side at {channel.other.peer_address} crashes")
            channel.gone()
            self.cut("peer crashed")


@implementer(IChannel)
class FaultyChannel:
    """One end of a link. What the other end sent waits in `incoming`."""

    credentials = THIS_PROCESS
    unsent = 0
    heard_at = 0.0
    other: FaultyChannel

    def __init__(self, link: FaultyLink, user: IChannelUser, peer: str) -> None:
        self.peer_address = peer
        self.user = user
        self.incoming: deque[bytes] = deque()
        self.is_gone = False  # the user was told, or has crashed
        self.when_gone: Callable[[], None] = lambda: None
        self.when_established: Callable[[], None] = lambda: None
        self.is_known = False
        self.link = link
        self._world = link.world
        self._is_open = False
        self._closed = False  # by our own user: nothing is sent or received any more
        self._end: str | None = None  # why it ends, when what is on its way has arrived
        self._paused = False
        self._due = False
        self._written: list[bytes] = []  # in this turn
        self.is_writable = True

    # --- IChannel

    def send(self, frame: bytes) -> None:
        """See `IChannel`."""
        size_max = self._world.limits.frame_bytes
        if len(frame) > size_max:
            raise FrameTooLarge(len(frame), size_max)
        if self._closed or self.is_gone:
            return
        if not self._written:
            self._world.clock.callLater(0, self._flush)
        self._written.append(bytes(frame))

    def send_now(self, frames: Sequence[bytes]) -> None:
        """See `IChannel`: what is sent goes into the link at the end of the turn, as all does."""
        for frame in frames:
            self.send(frame)

    def push(self) -> None:
        """See `IChannel`: it leaves at the end of the turn."""

    def identified(self) -> None:
        """See `IChannel`."""

    def established(self) -> None:
        """See `IChannel`."""
        if not self.is_known:
            self.is_known = True
            self.when_established()

    def pause(self) -> None:
        """See `IChannel`."""
        self._paused = True

    def resume(self) -> None:
        """See `IChannel`."""
        self._paused = False
        self.soon()

    def close(self) -> None:
        """See `IChannel`."""
        if not self._closed and not self.is_gone:
            self._closed = True
            self._paused = False
            self._world.tell(f"link {self.link.number}: closed, not by {self.peer_address}")
            self.incoming.clear()
            # After the flush of this turn: what was sent before arrives before the end does.
            self._world.clock.callLater(0, self.other.ends, "closed by the other side")
            self._world.clock.callLater(0, self.ends, "closed")

    def abort(self) -> None:
        """See `IChannel`."""
        if not self.is_gone:
            self._closed = True
            self._paused = False
            self._written.clear()
            self.incoming.clear()
            self.link.cut("aborted")

    # --- what the link and the test do with this end

    def crash(self) -> None:
        """See `FaultyLink.crash`."""
        self.link.crash(self)

    def open(self) -> None:
        """Tell the user that the connection stands."""
        if not self.is_gone:
            self._is_open = True
            self.user.channel_opened(self)
            self.soon()

    def ends(self, reason: str) -> None:
        """The connection ends when what is on its way has arrived."""
        if self._end is None:
            self._end = reason
        self.soon()

    def miss(self, reason: str) -> None:
        """This end notices that the connection is broken."""
        self.ends(f"connection lost: {reason}")

    def gone(self) -> None:
        """This end is over."""
        self.is_gone = True
        self.when_gone()

    # --- inside

    def _flush(self) -> None:
        written, self._written = self._written, []
        if self.is_gone or self.link.is_cut or not written:
            return
        self.other.incoming.extend(written)
        self.other.soon()
        if self.is_writable and self.other.waiting_bytes > BUFFER_BYTES and not self._closed:
            self.is_writable = False
            self.user.channel_writable(False)

    @property
    def waiting_bytes(self) -> int:
        """On its way to this end."""
        return sum(map(len, self.incoming))

    def soon(self) -> None:
        """Let what has come be handed over, in its time."""
        if not self._due and not self.is_gone and self._is_open:
            self._due = True
            world = self._world
            delay = world.between(world.faults.delay)
            if world.happens(world.faults.hold):
                held = world.between(world.faults.hold_seconds)
                world.tell(
                    f"link {self.link.number}: for {held:g} s nothing reaches"
                    f" {self.other.peer_address}"
                )
                delay += held
            world.clock.callLater(delay, self._deliver)

    def _deliver(self) -> None:
        self._due = False
        world = self._world
        if self.is_gone:
            return
        if world.happens(world.faults.cut):
            self.link.cut()
        if self.incoming and not self._paused:
            self._hand_over()
            self._tell_room()
            if self.incoming:
                self.soon()
                return
        if self._end is not None and (not self.incoming or self._paused) and not self.is_gone:
            world.tell(f"link {self.link.number}: {self.other.peer_address} knows: {self._end}")
            self.gone()
            self.user.channel_lost(self._end)

    def _hand_over(self) -> None:
        world = self._world
        count = len(self.incoming)
        if world.happens(world.faults.split):
            count = world.random.randint(1, count)
        frames: list[bytes] = []
        for _ in range(count):
            if not self.incoming:
                break  # the user has closed or aborted
            frame = self.incoming.popleft()
            if len(frame) > world.limits.unauthenticated_bytes and not self.is_known:
                if frames:  # they may make the peer known
                    self.user.frames_received(frames)
                    frames = []
                if not self.is_known and not self._closed:
                    self.user.channel_failed(
                        FrameTooLarge(len(frame), world.limits.unauthenticated_bytes)
                    )
                    self.close()
            frames.append(frame)
        if not self._closed:
            self.user.frames_received(frames)

    def _tell_room(self) -> None:
        other = self.other
        if not other.is_writable and self.waiting_bytes <= BUFFER_BYTES // 4:
            other.is_writable = True
            self._world.clock.callLater(0, other.tell_writable)

    def tell_writable(self) -> None:
        """There is room again on the way to the other end."""
        if not self.is_gone and not self._closed:
            self.user.channel_writable(True)


class FaultyPair:
    """Two sides, connected again whenever the left one notices that they are not."""

    def __init__(
        self,
        world: FaultyWorld,
        make_left: Callable[[], IChannelUser],
        make_right: Callable[[], IChannelUser],
    ) -> None:
        self.world = world
        self.dialled = 0
        self.stopped = False
        self.link: FaultyLink | None = None
        self._make_left = make_left
        self._make_right = make_right
        self._dial()

    def cut(self) -> None:
        """Break the connection, if there is one."""
        if self.link is not None:
            self.link.cut()

    def crash_left(self) -> None:
        """Kill the left side; it comes back as a new user."""
        if self.link is not None:
            self.link.crash(self.link.left)

    def crash_right(self) -> None:
        """Kill the right side; the left one dials until it is back."""
        if self.link is not None:
            self.link.crash(self.link.right)

    def stop(self) -> None:
        """Dial no more."""
        self.stopped = True

    def _dial(self) -> None:
        if self.stopped:
            return
        self.dialled += 1
        self.link = self.world.connect(self._make_left(), self._make_right())
        self.link.left.when_gone = self._redial

    def _redial(self) -> None:
        self.world.clock.callLater(self.world.between(self.world.faults.redial), self._dial)


def lossless(faults: Faults) -> Faults:
    """The same weather without cuts: everything arrives, late."""
    return replace(faults, cut=0.0)
