"""What every channel over acknowledged UDP must keep, looked at frame by frame.

A watched transport is `transport.udp.transport` with a note of what goes in and comes out of each
session: frames come out as they went in, each once, none left out; and none counts as taken by the
other side before it was handed over there. The rules of delivery alone would hide most of what goes
wrong here: the hop above repairs it. What is found is in `UdpWatch.found`, as sentences.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IListeningPort
from zope.interface import implementer

from msgservice.errors import ProtocolError
from msgservice.interfaces import IChannel, IChannelUser, IConnector, ITransport
from msgservice.limits import Limits
from msgservice.testing.transport import ChecksNothing
from msgservice.transport.udp.bearer import UdpChannel
from msgservice.transport.udp.transport import UdpTransport

Key = tuple[int, int]  # session id, role of the sender
MakeUser = Callable[[], IChannelUser]


class UdpWatch:
    """The sessions of one world, both ends of each, those of killed processes too."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self.frames = 0  # that were handed over
        self.ends: dict[Key, list[WatchedChannel]] = {}

    def add(self, end: WatchedChannel) -> None:
        """Take note of a channel; an id that comes again is a session of its own."""
        self.ends.setdefault(end.key, []).append(end)

    def others(self, end: WatchedChannel) -> list[WatchedChannel]:
        """Return what is, or was, at the other end."""
        identifier, role = end.key
        return self.ends.get((identifier, 1 - role), [])


@implementer(IChannel)
class WatchedChannel:
    """One end: what its user sent, and how many frames it was given."""

    def __init__(self, watch: UdpWatch, channel: UdpChannel) -> None:
        self.key: Key = (channel.session.identifier, channel.session.role)
        self.sent: list[bytes] = []
        self.given = 0
        self.settled = 0
        self.peer_address = channel.peer_address
        self.credentials = channel.credentials
        self.unsent = 0
        self._watch = watch
        self._channel = channel
        self._sources: list[WatchedChannel] | None = None
        self._settle = channel.frame_taken
        setattr(channel, "frame_taken", self._frame_taken)  # noqa: B010  # not its own method
        watch.add(self)

    @property
    def heard_at(self) -> float:
        return self._channel.heard_at

    @property
    def is_deaf(self) -> bool:
        """Whether its user has ended it: what comes is dropped."""
        return self._channel.closing or self._channel.is_gone

    def receive(self, frames: list[bytes]) -> None:
        """Check what is handed to the user."""
        before, self.given = self.given, self.given + len(frames)
        self._watch.frames += len(frames)
        sources = self._sources
        if sources is None:
            sources = self._watch.others(self)
        self._sources = [one for one in sources if one.sent[before : self.given] == frames]
        if sources and not self._sources:
            self._watch.found.append(
                f"{self.peer_address}: frames {before + 1} to {self.given} are not those"
                " that were sent"
            )

    def _frame_taken(self, size: int) -> None:
        self.settled += 1
        others = self._watch.others(self)
        if max((end.given for end in others), default=0) < self.settled and not any(
            end.is_deaf for end in others
        ):
            self._watch.found.append(
                f"{self.peer_address} has taken frame {self.settled}, and its user was not given it"
            )
        self._settle(size)

    # --- IChannel

    def send(self, frame: bytes) -> None:
        """See `IChannel`."""
        is_open = not self.is_deaf
        self._channel.send(frame)
        if is_open:
            self.sent.append(bytes(frame))

    def send_now(self, frames: Sequence[bytes]) -> None:
        """See `IChannel`."""
        is_open = not self.is_deaf
        self._channel.send_now(frames)
        if is_open:
            self.sent += map(bytes, frames)

    def push(self) -> None:
        """See `IChannel`."""
        self._channel.push()

    def identified(self) -> None:
        """See `IChannel`."""
        self._channel.identified()

    def established(self) -> None:
        """See `IChannel`."""
        self._channel.established()

    def pause(self) -> None:
        """See `IChannel`."""
        self._channel.pause()

    def resume(self) -> None:
        """See `IChannel`."""
        self._channel.resume()

    def close(self) -> None:
        """See `IChannel`."""
        self._channel.close()

    def abort(self) -> None:
        """See `IChannel`."""
        self._channel.abort()


@implementer(IChannelUser)
class WatchedUser:
    """Passes everything on, and checks what comes."""

    def __init__(self, watch: UdpWatch, user: IChannelUser) -> None:
        self._watch = watch
        self._user = user
        self._end: WatchedChannel | None = None
        self._is_lost = False

    def channel_opened(self, channel: IChannel) -> None:
        """See `IChannelUser`."""
        assert isinstance(channel, UdpChannel)
        self._end = WatchedChannel(self._watch, channel)
        self._user.channel_opened(self._end)

    def frames_received(self, frames: list[bytes]) -> None:
        """See `IChannelUser`."""
        assert self._end is not None
        if self._is_lost:
            self._watch.found.append(f"{self._end.peer_address}: frames after the end")
        self._end.receive(frames)
        self._user.frames_received(frames)

    def channel_failed(self, error: ProtocolError) -> None:
        """See `IChannelUser`."""
        self._user.channel_failed(error)

    def channel_writable(self, writable: bool) -> None:
        """See `IChannelUser`."""
        self._user.channel_writable(writable)

    def channel_lost(self, reason: str) -> None:
        """See `IChannelUser`."""
        assert self._end is not None
        if self._is_lost:
            self._watch.found.append(f"{self._end.peer_address}: told of the end twice")
        self._is_lost = True
        self._user.channel_lost(reason)


@implementer(ITransport)
class WatchedTransport(ChecksNothing):
    """A `UdpTransport` whose users are watched."""

    schemes = ("udp",)

    def __init__(self, watch: UdpWatch, transport: UdpTransport) -> None:
        self._watch = watch
        self._transport = transport

    def connector(
        self, reactor: Any, address: str, make_user: MakeUser, limits: Limits
    ) -> IConnector:
        """See `ITransport`."""
        return self._transport.connector(reactor, address, self._watched(make_user), limits)

    def listen(
        self, reactor: Any, address: str, make_user: MakeUser, limits: Limits
    ) -> Deferred[IListeningPort]:
        """See `ITransport`."""
        return self._transport.listen(reactor, address, self._watched(make_user), limits)

    def _watched(self, make_user: MakeUser) -> MakeUser:
        return lambda: WatchedUser(self._watch, make_user())
