"""A session on a channel: what node, client and receiver have in common on a connection.

Decodes frames, keeps the session's time, and passes to its owner what is the owner's. The owner
is called frame by frame, then once at the end of what one read brought (`turn_ended`): that is
where answers and new transfers leave, so that their number follows the reads, not the messages.

What lives elsewhere: the rules of the session (`core.session`), bytes and sockets (`transport`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from msgservice.core.frames import (
    BYE_CLOSING,
    Frame,
    Hello,
    decode_frame,
    encode_frame,
)
from msgservice.core.session import Greeted, Opened, PeerBye, PeerError, Session, State
from msgservice.errors import ProtocolError
from msgservice.interfaces import IChannel, IChannelUser
from msgservice.limits import Limits
from msgservice.records import Resume


class Owner(Protocol):
    """Who is behind a connection. A `ProtocolError` raised by any of these ends the connection."""

    def channel_up(self, connection: Connection) -> None:
        """The channel stands; nothing was said yet. A client says HELLO now."""

    def greeted(self, connection: Connection, hello: Hello) -> None:
        """The other side said HELLO: answer with `hello` (if not done) and `resume`."""

    def opened(self, connection: Connection, resume: Resume) -> None:
        """Transfers may travel now; the other side has taken `resume` of ours."""

    def received(self, connection: Connection, frame: Frame) -> None:
        """A frame of an open session."""

    def turn_ended(self, connection: Connection) -> None:
        """All frames of one read were passed on; called only while the session is open."""

    def writable(self, connection: Connection) -> None:
        """The transport has room again."""

    def peer_leaves(self, connection: Connection, code: int, reason: str) -> None:
        """The other side said BYE: it sends no more transfers, and closes when all is answered."""

    def lost(self, connection: Connection, reason: str) -> None:
        """The connection has gone. Once, and last."""


@implementer(IChannelUser)
class Connection:
    """See the module. `now` is a monotonic clock, `clock` an `IReactorTime`."""

    _logger = Logger()

    def __init__(
        self, owner: Owner, *, clock: Any, now: Callable[[], float], limits: Limits
    ) -> None:
        self.owner = owner
        self.now = now
        self.session = Session(limits, now())
        self.channel: IChannel | None = None
        self.is_writable = True
        self.gone = False
        self.error = ""  # why it ended, for people
        self.peer_error = 0  # code of the ERROR frame that ended it, or 0
        self._clock = clock
        self._limits = limits
        self._timer: IDelayedCall | None = None

    # --- getters

    @property
    def peer(self) -> str:
        """Where the other side is, for people."""
        return self.channel.peer if self.channel is not None else "nowhere"

    @property
    def is_open(self) -> bool:
        """Whether transfers may be sent: the session is open and the transport has room."""
        return self.session.state is State.OPEN and self.is_writable

    # --- verbs

    def hello(self, hello: Hello) -> None:
        """Say who this side is."""
        self.session.hello(hello)
        self._drain()

    def resume(self, resume: Resume) -> None:
        """Say what was taken of the other side's incarnation."""
        self.session.resume(resume)
        self._drain()

    def send(self, frame: Frame) -> None:
        """Queue one frame; all of one turn leave together. Raises `FrameTooLarge`."""
        assert self.channel is not None
        self.channel.send(encode_frame(frame))
        self.session.sent(self.now())

    def send_all(self, frames: Sequence[Frame]) -> None:
        """Queue some frames."""
        if frames and self.channel is not None:
            send = self.channel.send
            for frame in frames:
                send(encode_frame(frame))
            self.session.sent(self.now())

    def send_now(self, frames: Sequence[Frame]) -> None:
        """Send some frames, and what is queued before them, now: not at the end of the turn."""
        if frames and self.channel is not None:
            self.session.sent(self.now())
            self.channel.send_now([encode_frame(frame) for frame in frames])

    def bye(self, code: int = BYE_CLOSING, reason: str = "") -> None:
        """Send no more transfers; the owner calls `close` when what is in flight is answered."""
        self.session.bye(self.now(), code, reason)
        self._drain()
        self._rearm()

    def fail(self, error: ProtocolError) -> None:
        """End the connection and tell the other side why."""
        self.session.fail(error)
        self._drain()

    def close(self) -> None:
        """Send what is queued, then close."""
        if self.channel is not None and not self.gone:
            self.session.lost()
            self.channel.close()

    def abort(self) -> None:
        """Close at once; `lost` still follows."""
        if self.channel is not None and not self.gone:
            self.channel.abort()

    def fault(self, name: str, failure: Failure) -> None:
        """End it for a fault of our own while `name` was told something; nobody else notices."""
        self._logger.failure("telling {name} at {peer} failed", failure, name=name, peer=self.peer)
        try:
            self.fail(ProtocolError("internal error"))
        except Exception:
            self._logger.failure("connection to {peer} failed", peer=self.peer)
            self.abort()

    # --- IChannelUser

    def channel_opened(self, channel: IChannel) -> None:
        """See `IChannelUser`."""
        self.channel = channel
        self._guard(lambda: self.owner.channel_up(self))
        self._rearm()

    def frames_received(self, frames: list[bytes]) -> None:
        """See `IChannelUser`."""
        now = self.now()
        session, owner = self.session, self.owner
        session.heard(now)
        try:
            for data in frames:
                frame = decode_frame(data)
                result = session.receive(frame, now)
                if result is frame:
                    owner.received(self, frame)
                elif result is not None:
                    self._event(result)
            if session.state in (State.OPEN, State.CLOSING):
                owner.turn_ended(self)
        except ProtocolError as error:
            session.fail(error)
        except Exception:
            # Our own fault; this connection ends, the others must not notice.
            self._logger.failure("connection to {peer} failed", peer=self.peer)
            session.fail(ProtocolError("internal error"))
        self._drain()
        if self._timer is None:
            self._rearm()

    def _event(self, event: object) -> None:
        if isinstance(event, Greeted):
            self.owner.greeted(self, event.hello)
        elif isinstance(event, Opened):
            assert self.channel is not None
            self.channel.established()
            self.owner.opened(self, event.resume)
        elif isinstance(event, PeerBye):
            self.owner.peer_leaves(self, event.code, event.reason)
        elif isinstance(event, PeerError):
            self.peer_error = event.code
            self.error = f"the other side says: {event.reason} (code {event.code})"
            self._logger.warn("{peer}: {error}", peer=self.peer, error=self.error)
            self.close()

    def channel_failed(self, error: ProtocolError) -> None:
        """See `IChannelUser`."""
        self.fail(error)

    def channel_writable(self, writable: bool) -> None:
        """See `IChannelUser`."""
        self.is_writable = writable
        if writable and not self.gone:
            self._guard(lambda: self.owner.writable(self))

    def channel_lost(self, reason: str) -> None:
        """See `IChannelUser`."""
        if self.gone:
            return
        self.gone = True
        self.is_writable = False
        self.session.lost()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.error = self.error or reason
        try:
            self.owner.lost(self, self.error)
        except Exception:
            self._logger.failure("the end of the connection to {peer}", peer=self.peer)

    # --- inside

    def _guard(self, call: Callable[[], None]) -> None:
        try:
            call()
        except ProtocolError as error:
            self.session.fail(error)
        except Exception:
            self._logger.failure("connection to {peer} failed", peer=self.peer)
            self.session.fail(ProtocolError("internal error"))
        self._drain()

    def _drain(self) -> None:
        frames = self.session.take_frames()
        if frames and self.channel is not None and not self.gone:
            self.send_all(frames)
        failed = self.session.failed
        if failed is not None and not self.error and not self.gone:
            self.error = str(failed)
            self._logger.warn(
                "connection to {peer} ended: {error}", peer=self.peer, error=self.error
            )
            if self.channel is not None:
                self.channel.close()

    def _rearm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.gone:
            return
        due = self.session.next_deadline()
        if due is not None:
            self._timer = self._clock.callLater(max(0.001, due - self.now()), self._fire)

    def _fire(self) -> None:
        self._timer = None
        session = self.session
        session.receive_time(self.now())
        self._drain()
        if session.state is State.CLOSED and session.failed is None:
            self.close()  # a BYE whose time is over
        self._rearm()
