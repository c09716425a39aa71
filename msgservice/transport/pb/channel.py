"""Frames over Perspective Broker: one connection as an `IChannel`, either end.

    dialler   root.open(near end)          -> the listener's near end
    both      far end.frames([frame, ...]) -> None, when they were handed on
              far end.part(bytes)          -> None: the next frame begins with it

All frames of a reactor turn travel in one call, up to `CALL_BYTES`; a larger frame goes in parts,
for no string of banana is longer than 640 KiB. A call is answered when its frames were handed on:
that is how a side is paused, since answers to calls of its own come by the same connection, and
have to be read. So at most `WINDOW_BYTES` are under way unanswered, and what one may hold that does
not hand on is bounded.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure
from twisted.spread import pb
from zope.interface import implementer

from msgservice.errors import (
    DeadlinePassed,
    FrameTooLarge,
    MalformedFrame,
    ProtocolError,
    WindowExceeded,
)
from msgservice.interfaces import IChannel, IChannelUser
from msgservice.limits import Limits
from msgservice.transport.owners import ChannelOwner
from msgservice.transport.pb.broker import ENDED, BoundedBroker, Service, State
from msgservice.transport.tcp.pacing import Turn

CALL_BYTES = 512 * 1024  # of frames in one call
CALL_FRAMES = 1000
STRANGER_BYTES = 4096  # the same, before the other side knows this one
WINDOW_BYTES = 2 * CALL_BYTES  # called and not answered
QUEUE_BYTES = 256 * 1024  # waiting here beyond that, above which the user is told to stop
# What another end may have unanswered here: its window, and the call that it may begin within it.
HELD_BYTES_MAX = 2 * WINDOW_BYTES
CALL_COST = 64  # of a frame in a call, besides its bytes


class _End(Service):
    """The end of a channel that the other side calls."""

    prefix = "perspective_"

    def __init__(self, channel: PbChannel) -> None:
        self._channel = channel

    def perspective_frames(self, frames: Any) -> Deferred[None] | None:
        """Take frames, in order."""
        return self._channel.frames_came(frames)

    def perspective_part(self, data: Any) -> Deferred[None] | None:
        """Take the beginning, or the next part, of the frame that the next `frames` begins with."""
        return self._channel.part_came(data)


class Root(Service):
    """The object that a listener shows to everybody."""

    def __init__(self, channel: PbChannel) -> None:
        self._channel = channel

    def remote_open(self, far: Any) -> pb.Referenceable:
        """Open the channel of this connection, of which there is one."""
        return self._channel.far_opens(far)


@implementer(IChannel)
class PbChannel(BoundedBroker):
    """The channel of one connection. `make_user` is called once both ends have called each other.

    `make_root`: the object that others find here; the channel's own for None.
    """

    def __init__(
        self,
        *,
        reactor: IReactorTime,
        make_user: Callable[[], IChannelUser],
        limits: Limits,
        owner: ChannelOwner,
        turn: Turn,
        is_dialled: bool = False,
        make_root: Callable[[PbChannel], Root] = Root,
    ) -> None:
        super().__init__(
            reactor=reactor, limits=limits, owner=owner, turn=turn, is_dialled=is_dialled
        )
        self._make_user = make_user
        self._user: IChannelUser | None = None
        self._near = _End(self)
        self._far: pb.RemoteReference | None = None
        self._queue: deque[bytes] = deque()
        self._queued = 0  # bytes
        self._offset = 0  # of the first in the queue, what went in parts already
        self._unanswered = 0  # bytes
        self._answers = 0
        self._told_writable = True
        self._parts: list[bytes] = []
        self._parts_bytes = 0
        self._is_paused = False
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._to_answer: list[Deferred[None]] = []
        self._half_frame_since = 0.0
        if not is_dialled:
            self.setNameForLocal("root", make_root(self))

    # --- IChannel

    @property
    def refusal(self) -> str | None:
        """Why it ended, where that does not pass by itself (`IChannelUser`)."""
        return getattr(self._user, "refusal", None)

    @property
    def unsent(self) -> int:
        """See `IChannel`: what waits here, and what was not answered."""
        return self._queued + self._unanswered

    def send(self, frame: bytes) -> None:
        """See `IChannel`; dropped once the channel is closed."""
        self._put((frame,))
        self.soon()

    def send_now(self, frames: Sequence[bytes]) -> None:
        """See `IChannel`; dropped once the channel is closed."""
        try:
            self._put(frames)
        finally:
            self.now()

    def push(self) -> None:
        """See `IChannel`: it leaves when the call that runs ends."""

    def _put(self, frames: Sequence[bytes]) -> None:
        size_max, is_open = self._limits.frame_bytes, self.state is State.OPEN
        for frame in frames:
            if len(frame) > size_max:
                raise FrameTooLarge(len(frame), size_max)
            if is_open:
                self._queue.append(bytes(frame))
                self._queued += len(frame) + CALL_COST

    def pause(self) -> None:
        """See `IChannel`: what comes is held, and its calls are answered later."""
        if self.state is State.OPEN:
            self._is_paused = True

    def resume(self) -> None:
        """See `IChannel`."""
        if self.state is State.OPEN and self._is_paused:
            self._is_paused = False
            if self._to_answer:
                self._reactor.callLater(0, self._hand_on_held)

    def abort(self) -> None:
        """See `IChannel`."""
        self._drop()
        super().abort()

    # --- opening

    def opened(self) -> None:
        """Perspective Broker stands: who dialled asks for the other end."""
        if self.is_dialled:
            opening = self.remoteForName("root").callRemote("open", self._near)
            opening.addCallbacks(self._far_opened, self._not_opened)

    def _far_opened(self, far: Any) -> None:
        if not isinstance(far, pb.RemoteReference):
            self.fail(MalformedFrame("no channel is offered there"))
        elif self.state is State.OPEN:
            self._begin(far)

    def _not_opened(self, failure: Failure) -> None:
        self.fail(MalformedFrame(f"no channel is offered there: {failure.getErrorMessage()}"))

    def far_opens(self, far: Any) -> pb.Referenceable:
        """The dialler has called: return this end; `ProtocolError` where it does so twice."""
        if not isinstance(far, pb.RemoteReference):
            raise MalformedFrame("a channel has an end that can be called")
        if self._far is not None:
            raise MalformedFrame("this connection has its channel already")
        self._begin(far)
        return self._near

    def _begin(self, far: pb.RemoteReference) -> None:
        self._far = far
        # From here on the session has its deadlines.
        self._stop_deadline()
        try:
            self._user = self._make_user()
        except Exception:
            self._logger.failure("no user for the connection with {peer}", peer=self.peer_address)
            self.abort()
            return
        self.guard(self._user.channel_opened, self)

    # --- what comes

    @property
    def _frame_bytes_max(self) -> int:
        size_max = self._limits.frame_bytes
        return size_max if self._is_known else min(size_max, self._limits.unauthenticated_bytes)

    def part_came(self, data: Any) -> Deferred[None] | None:
        """Keep a part of a frame."""
        if not isinstance(data, bytes) or self._user is None or not data:
            raise self._wrong(MalformedFrame("a part of a frame that is none"))
        if not self._parts:
            self._half_frame_since = self._now()
        self._parts.append(data)
        self._parts_bytes += len(data)
        if self._parts_bytes > self._frame_bytes_max:
            raise self._wrong(FrameTooLarge(self._parts_bytes, self._frame_bytes_max))
        self._watch_parts()
        return None

    def frames_came(self, frames: Any) -> Deferred[None] | None:
        """Hand frames on, or hold them while paused: then the answer comes later."""
        if not isinstance(frames, list) or not frames or self._user is None:
            raise self._wrong(MalformedFrame("a call with no frames"))
        if self._parts and isinstance(frames[0], bytes):
            self._parts.append(frames[0])
            frames[0] = b"".join(self._parts)
            self._parts, self._parts_bytes = [], 0
        size, size_max = 0, self._frame_bytes_max
        for frame in frames:
            if not isinstance(frame, bytes):
                raise self._wrong(MalformedFrame("a frame is bytes"))
            size += len(frame)
            if len(frame) > size_max:
                raise self._wrong(FrameTooLarge(len(frame), size_max))
        if not self._is_paused and not self._to_answer:
            self.guard(self._hand_on, frames)
            return None
        self._held += frames
        self._held_bytes += size
        if self._held_bytes > max(HELD_BYTES_MAX, 2 * self._limits.frame_bytes):
            raise self._wrong(WindowExceeded("bytes", self._held_bytes, HELD_BYTES_MAX))
        answer: Deferred[None] = Deferred()
        self._to_answer.append(answer)
        return answer

    def _wrong(self, error: ProtocolError) -> ProtocolError:
        self.fail(error)
        return error

    def _hand_on(self, frames: list[bytes]) -> None:
        if self.state is State.OPEN and self._error is None:
            assert self._user is not None
            self._user.frames_received(frames)

    def _hand_on_held(self) -> None:
        if self._is_paused or not self._to_answer or self.state is not State.OPEN:
            return
        held, self._held, self._held_bytes = self._held, [], 0
        answers, self._to_answer = self._to_answer, []
        self.guard(self._hand_on, held)
        for answer in answers:
            answer.callback(None)

    def _watch_parts(self) -> None:
        if self._watching is None:
            self._watch()

    # --- what leaves

    def turn_ended(self) -> None:
        """Call with what waits, as far as the transport and the other side have room."""
        if self._far is None:
            return
        is_closing = self.state is State.CLOSING
        while self._queue and (
            is_closing or (self.is_writable and self._unanswered < WINDOW_BYTES)
        ):
            self._call_next(self._far)
        if self.state is State.OPEN:
            high = 0 if not self._told_writable else QUEUE_BYTES
            writable = self._queued <= high
            if writable is not self._told_writable and self._user is not None:
                self._told_writable = writable
                self.guard(self._user.channel_writable, writable)

    def _call_next(self, far: pb.RemoteReference) -> None:
        queue = self._queue
        first = queue[0]
        left = len(first) - self._offset
        if left > CALL_BYTES:
            piece = first[self._offset : self._offset + CALL_BYTES]
            self._offset += CALL_BYTES
            self._queued -= CALL_BYTES
            self._call(far, "part", piece, CALL_BYTES)
            return
        frames: list[bytes] = []
        # To who does not know this side yet: all that it takes of a stranger is little.
        size, size_max = 0, CALL_BYTES if self._is_known else STRANGER_BYTES
        while queue and len(frames) < CALL_FRAMES:
            frame = queue[0]
            if self._offset:
                frame = frame[self._offset :]
            if frames and size + len(frame) > size_max:
                break
            queue.popleft()
            self._offset = 0
            frames.append(frame)
            size += len(frame) + CALL_COST
        self._queued -= size
        self._call(far, "frames", frames, size)

    def _call(self, far: pb.RemoteReference, name: str, what: Any, size: int) -> None:
        self._unanswered += size
        called: Deferred[Any] = far.callRemote(name, what)
        called.addCallbacks(self._answered, self._not_answered, callbackArgs=(size,))

    def _answered(self, _: Any, size: int) -> None:
        self._unanswered -= size
        self._answers += 1
        self.soon()

    def _not_answered(self, failure: Failure) -> None:
        """Wait: an end that does not take frames says why in one of its own, and closes."""

    def waits(self) -> object:
        """See `BoundedBroker`."""
        return ("answers", self._answers) if self._unanswered else None

    def is_waiting(self) -> bool:
        """See `BoundedBroker`."""
        return bool(self._out or (self._queue and self._far is not None))

    def _watch(self) -> None:
        if self._parts and self.state is State.OPEN:
            timeout = self._limits.frame_timeout
            since = self._now() - self._half_frame_since
            if since >= timeout * (1 + self._parts_bytes // CALL_BYTES):
                self.fail(DeadlinePassed("the rest of a frame", timeout))
        super()._watch()
        if self._parts and self._watching is None and self.state is State.OPEN:
            interval = self._limits.frame_timeout / 10
            self._watching = self._reactor.callLater(interval, self._look_again)

    # --- the end

    def has_failed(self, error: ProtocolError) -> None:
        """See `BoundedBroker`."""
        if self._user is not None:
            self._user.channel_failed(error)
        elif self.is_known and self.state not in ENDED:  # of a stranger its owner tells
            self._logger.warn(
                "{peer}: {error}", line="peer-error", peer=self.peer_address, error=str(error)
            )

    def has_gone(self, reason: str) -> None:
        """See `BoundedBroker`."""
        self._drop()
        if self._user is not None:
            self._user.channel_lost(reason)

    def _drop(self) -> None:
        self._queue.clear()
        self._queued = self._unanswered = self._offset = 0
        self._held, self._held_bytes = [], 0
        self._parts, self._parts_bytes = [], 0
        self._to_answer = []
