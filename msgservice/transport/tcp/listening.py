"""Accepting connections: each becomes a channel with its own user, up to a limit.

Twisted's `LimitConnectionsByPeer` does not work (it indexes an address object), and counts by
peer where what must be bounded is memory and file descriptors, so the count is our own. Beyond
it whoever has not said for a while who he is makes room: else a stranger that says nothing, on
many connections, would keep all others out. Where there is none, a connection is accepted and
closed at once: left in the kernel's queue, a peer would take it for a node that does not answer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from typing import Protocol as PythonProtocol

from twisted.internet.defer import Deferred, fail
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import (
    IAddress,
    IListeningPort,
    IReactorTime,
    IStreamServerEndpoint,
)
from twisted.internet.protocol import Factory, Protocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from msgservice.clock import monotonic_of, timed
from msgservice.errors import BadAddress, CannotListen
from msgservice.interfaces import IChannelUser
from msgservice.limits import Limits
from msgservice.transport.addresses import describe
from msgservice.transport.owners import ChannelOwner, Owned
from msgservice.transport.probing import told_of
from msgservice.transport.tcp.channel import FrameProtocol
from msgservice.transport.tcp.pacing import Turn

TOLD_SECONDS = 60.0  # between two lines about who was turned away, or about the limit
# Of `hello_timeout`: whoever is here for less may be about to say who he is.
PATIENCE = 0.1


class ConnectionCount:
    """The number of accepted connections that are open, over all listeners that share it.

    `strangers`: those that have not said who they are, each with the time since when, rising.
    """

    def __init__(self) -> None:
        self.open = 0
        self.refused = 0
        self.strangers: dict[Owned, float] = {}


class _Refused(Protocol):
    """A connection beyond the limit. A protocol, not None, which TLS wrappers cannot take."""

    transport: Any

    def connectionMade(self) -> None:
        self.transport.abortConnection()


class MakeChannel(PythonProtocol):
    """The maker of channels that are Twisted's protocols too, `Owned`, and may say `has_opened`."""

    def __call__(
        self,
        *,
        reactor: IReactorTime,
        make_user: Callable[[], IChannelUser],
        limits: Limits,
        owner: ChannelOwner,
        turn: Turn,
    ) -> Any:
        """Return the channel of a connection."""


class ChannelFactory(Factory):
    """Makes a channel of each accepted connection. `make_channel`: of which kind."""

    noisy = False
    _logger = Logger()

    def __init__(
        self,
        *,
        reactor: IReactorTime,
        make_user: Callable[[], IChannelUser],
        limits: Limits,
        count: ConnectionCount,
        make_channel: MakeChannel = FrameProtocol,
    ) -> None:
        self._make_channel = make_channel
        self._reactor = reactor
        self._make_user = make_user
        self._limits = limits
        self._count = count
        self._turn = Turn(reactor)
        self._now = monotonic_of(reactor)
        self._limit_told_at: float | None = None
        self._told_at: float | None = None  # the last line about who was turned away
        self._untold = 0  # turned away since

    def buildProtocol(self, addr: IAddress | None) -> Protocol:  # noqa: D102  # Twisted's
        count, now = self._count, self._now()
        if count.open >= self._limits.connections:
            self._tell_limit(addr, now)
            if not self._made_room(now):
                count.refused += 1
                return _Refused()
        count.open += 1
        channel: Any = self._make_channel(
            reactor=self._reactor,
            make_user=self._make_user,
            limits=self._limits,
            owner=self,
            turn=self._turn,
        )
        count.strangers[channel] = now
        made: Protocol = channel
        return made

    def _made_room(self, now: float) -> bool:
        """End the connection of whoever has not said for the longest time who he is."""
        strangers = self._count.strangers
        oldest = next(iter(strangers), None)
        if oldest is None or now - strangers[oldest] < self._limits.hello_timeout * PATIENCE:
            return False
        del strangers[oldest]
        oldest.abort()
        return True

    def _tell_limit(self, addr: IAddress | None, now: float) -> None:
        if self._limit_told_at is None or now - self._limit_told_at >= TOLD_SECONDS:
            self._limit_told_at = now
            self._logger.warn(
                "limit connections = {limit} reached: whoever does not say who he is makes room"
                " for newcomers, else they are refused, {peer} and others",
                line="connections-full",
                limit=self._limits.connections,
                peer=describe(addr) if addr is not None else "a peer",
            )

    def channel_identified(self, channel: Owned) -> None:
        """See `ChannelOwner`: it makes no room any more, however long the answer takes."""
        self._count.strangers.pop(channel, None)

    def channel_established(self, channel: Owned) -> None:
        """See `ChannelOwner`."""
        self._count.strangers.pop(channel, None)

    def channel_gone(self, channel: Owned, reason: str) -> None:
        """See `ChannelOwner`."""
        self._count.open -= 1
        self._count.strangers.pop(channel, None)
        self._logger.debug("{peer} has gone: {reason}", peer=channel.peer_address, reason=reason)
        if not getattr(channel, "has_opened", True):
            self._tell_turned_away(channel.peer_address, reason)

    def _tell_turned_away(self, peer: str, reason: str) -> None:
        """Say who ended within TLS's handshake, once a minute: no session ever knows of it."""
        now = self._now()
        if self._told_at is not None and now - self._told_at < TOLD_SECONDS:
            self._untold += 1
            return
        self._logger.warn(
            "{peer} was turned away: {reason} ({untold} more since the last such line)",
            line="turned-away",
            peer=peer,
            reason=reason,
            untold=self._untold,
        )
        self._told_at, self._untold = now, 0


def listen_at(
    make_endpoint: Callable[[IReactorTime], IStreamServerEndpoint],
    reactor: IReactorTime,
    address: str,
    *,
    make_channel: MakeChannel,
    make_user: Callable[[], IChannelUser],
    limits: Limits,
    count: ConnectionCount,
) -> Deferred[IListeningPort]:
    """Fire with the port of an endpoint that is made here; also fail with `BadAddress`."""
    reactor = timed(reactor)
    try:
        endpoint = make_endpoint(reactor)
    except BadAddress as error:
        return fail(error)
    factory = ChannelFactory(
        reactor=reactor,
        make_user=make_user,
        limits=limits,
        count=count,
        make_channel=make_channel,
    )
    return listen_on(endpoint, address, factory)


def listen_on(
    endpoint: IStreamServerEndpoint, address: str, factory: ChannelFactory
) -> Deferred[IListeningPort]:
    """Fire with the port; fail with `CannotListen` and the reason for people."""

    def failed(failure: Failure) -> IListeningPort:
        error: Any = failure.value
        if isinstance(error, CannotListenError):
            error = error.socketError  # an OSError, or the sentence below
        if isinstance(error, OSError):
            raise CannotListen(address, told_of(error)) from error
        if error == "Cannot acquire lock":
            raise CannotListen(address, "another process listens there, and holds its lock file")
        failure.raiseException()
        raise AssertionError("raiseException raises")

    listening: Deferred[IListeningPort] = endpoint.listen(factory)
    return listening.addErrback(failed)
