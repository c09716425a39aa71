"""Keeping one connection to one address: dial, dial again, tell why it does not work.

For every kind of address: a transport says with an endpoint how to dial, and with `make_channel`
what its connections are.

`ClientService` has the states; the handshake is the session's (its `prepareConnection` leaves
connections open and believes in dead ones), and so is the judgement what a success is: the count
of failures is our own, and only a connection that was established and stayed so for a while
clears it (`ClientService` alone takes each connection for a success: it would dial a peer that
accepts and drops at the shortest delay for ever).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

from twisted.application.internet import ClientService
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectingCancelledError
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IProtocol,
    IProtocolFactory,
    IReactorTime,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import Factory
from twisted.logger import ILogObserver, LogEvent, Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from msgservice.clock import monotonic_of
from msgservice.core.backoff import Backoff
from msgservice.interfaces import IChannel, IConnector
from msgservice.limits import Limits
from msgservice.transport.owners import Owned
from msgservice.transport.reach import NotReachable
from msgservice.transport.tcp.sockets import reason_of
from msgservice.unlogged import SAID
from msgservice.waiters import Waiters

# After so long an attempt that goes on is told: until it has ended it is no failure, and whoever
# waits for it would not know what for.
SILENT_SECONDS = 1.5


@implementer(IReactorTime)
class _Clock:
    """The reactor's `callLater` for `ClientService`, remembering the wait between attempts.

    The service makes no other delayed calls, and offers no way to end a wait early.
    """

    def __init__(self, reactor: IReactorTime) -> None:
        self._reactor = reactor
        self.wait: IDelayedCall | None = None

    def seconds(self) -> float:
        seconds: float = self._reactor.seconds()
        return seconds

    def callLater(
        self,
        delay: float,
        callable: Callable[..., Any],  # noqa: A002  # the interface's name for it
        *args: object,
        **kwargs: object,
    ) -> IDelayedCall:
        wait: IDelayedCall = self._reactor.callLater(delay, callable, *args, **kwargs)
        self.wait = wait
        return wait

    def getDelayedCalls(self) -> Sequence[IDelayedCall]:
        calls: Sequence[IDelayedCall] = self._reactor.getDelayedCalls()
        return calls


@implementer(ILogObserver)
class _Silent:
    def __call__(self, event: LogEvent) -> None:
        pass


@implementer(IStreamClientEndpoint)
class _Counted:
    """An endpoint that says when it is dialled and how that failed."""

    def __init__(self, endpoint: IStreamClientEndpoint, connector: Connector) -> None:
        self._endpoint = endpoint
        self._connector = connector

    def connect(self, factory: IProtocolFactory) -> Deferred[IProtocol]:
        self._connector.dial_begins()
        return self._endpoint.connect(factory).addErrback(self._failed)

    def _failed(self, failure: Failure) -> Failure:
        self._connector.dial_ended()
        self._connector.dial_failed(failure)
        return failure


class _Dialled(Factory):
    noisy = False

    def __init__(self, build: Callable[[], Owned]) -> None:
        self._build = build

    def buildProtocol(self, addr: IAddress | None) -> Any:
        return self._build()


@implementer(IConnector)
class Connector(ClientService):
    """An `IConnector` to one address: one connection at a time.

    `make_channel` is given the connector, the owner of the connection, and returns its protocol.
    `silence`: what is told of an attempt that goes on; None: nothing, for it may take its time.
    """

    _logger = Logger()
    # Its own note about every retry would be a line for each receiver that is away, for ever;
    # `_warn_once` says what there is to say.
    _log = Logger(observer=_Silent())

    def __init__(
        self,
        *,
        reactor: IReactorTime,
        address: str,
        endpoint: IStreamClientEndpoint,
        make_channel: Callable[[Connector], Owned],
        limits: Limits,
        rng: Callable[[], float],
        silence: str | None = "no answer",
    ) -> None:
        self.address = address
        self.attempts = 0
        self.last_error: str | None = None
        self.is_by_certificate = False  # why there is none: trying again alone does not help
        self.forbidden = ""  # likewise: the option that would let it be dialled
        self._reactor = reactor
        self._now = monotonic_of(reactor)
        self._make_channel = make_channel
        self._limits = limits
        self._clock = _Clock(reactor)
        self._channel: Owned | None = None
        self._warned = False
        self._told_refusal = ""  # the last one that was warned of
        self._is_stopping = False
        self._is_wanted = False  # started again meanwhile
        self._silence = silence
        self._silent: IDelayedCall | None = None  # when an attempt has had no answer for long
        self._stop_waiters: Waiters[None] = Waiters()
        self._stop_deadline: IDelayedCall | None = None
        self._ending: IDelayedCall | None = None  # the turn in which who waits is told
        self._backoff = Backoff(
            delay_min=limits.link_delay_min,
            delay_max=limits.link_delay_max,
            healthy=limits.link_healthy,
            rng=rng,
        )
        super().__init__(
            _Counted(endpoint, self),
            _Dialled(self._build),
            retryPolicy=self._backoff.policy(self._now),
            clock=self._clock,
        )

    # --- getters

    @property
    def channel(self) -> IChannel | None:
        """The live connection, established or not."""
        return cast("IChannel | None", self._channel)

    @property
    def failures(self) -> int:
        """Failures in a row; what the delays follow."""
        return self._backoff.failures

    @property
    def next_attempt_in(self) -> float | None:
        """Seconds until the next attempt; None while there is a connection, or an attempt."""
        wait = self._clock.wait
        if wait is None or not wait.active():
            return None
        return max(0.0, wait.getTime() - self._clock.seconds())

    # --- verbs

    def poke(self) -> None:
        """Dial now, if waiting: there is a sign of life from the other side."""
        self._backoff.poke(self._now())
        wait = self._clock.wait
        if wait is not None and wait.active():
            wait.reset(0)

    def startService(self) -> None:
        """Begin to dial; while it still stops, as soon as it has stopped."""
        if self._is_stopping:
            self._is_wanted = True
            self.running = 1
        elif not self.running:
            super().startService()

    def stopService(self) -> Deferred[None]:
        """Send what is queued, close, stop dialling; fire within `limits.stop_timeout`.

        `running` is what was asked for last. Safe to call twice, and before any start.
        """
        self._is_stopping = True
        self._is_wanted = False
        self.running = 0
        stopped = self._stop_waiters.wait()
        if self._ending is not None:
            return stopped
        if self._stop_deadline is None:
            self._stop_deadline = self._reactor.callLater(
                self._limits.stop_timeout, self._stop_overdue
            )
        if self._channel is None:
            self._stop_dialling()
        else:
            # First our own way of closing: that of ClientService closes the transport under the
            # queue, and waits without end for a peer that does not read.
            self._channel.close()
        return stopped

    # --- from the channel and the endpoint

    def dial_begins(self) -> None:
        """An attempt begins; it is told when it goes on for long without an answer.

        A connection alone is none: a peer that has stopped has those which its kernel makes.
        """
        self.attempts += 1
        self.dial_ended()
        if self._silence is not None:
            self._silent = self._reactor.callLater(SILENT_SECONDS, self._still_silent)

    def dial_ended(self) -> None:
        """The attempt had an answer, or there will be none."""
        silent, self._silent = self._silent, None
        if silent is not None:
            silent.cancel()

    def _still_silent(self) -> None:
        self._silent = None
        self.attempt_failed(f"{self._silence} for {SILENT_SECONDS:g} s")

    def dial_failed(self, failure: Failure) -> None:
        """Note why an attempt failed; one that was called off, or comes too late, failed for us."""
        # Twisted's endpoints say `ConnectingCancelledError`, whose text is the address.
        called_off = failure.check(CancelledError, ConnectingCancelledError)
        if not called_off and not self._is_stopping:
            self.attempt_failed(reason_of(failure))
            if isinstance(failure.value, NotReachable):
                self.forbidden = failure.value.key

    def attempt_failed(
        self, reason: str, *, refused: bool = False, by_certificate: bool = False
    ) -> None:
        """Note why an attempt failed, or a connection ended; the same refusal is told once."""
        self.last_error = reason
        self.is_by_certificate = by_certificate
        self.forbidden = ""
        if not refused or reason != self._told_refusal:
            self._warn_once(reason if refused else "")

    def channel_identified(self, channel: Owned) -> None:
        """See `ChannelOwner`: who was dialled is known before."""

    def channel_established(self, channel: Owned) -> None:
        """See `ChannelOwner`."""
        self.dial_ended()
        self._backoff.established(self._now())
        self.last_error = None
        self.is_by_certificate = False
        self.forbidden = ""
        if self._warned:
            self._warned = False
            self._logger.info(
                "connected to {address} again",
                line="connected-again",
                address=self.address,
                **{SAID: True},
            )

    def channel_gone(self, channel: Owned, reason: str) -> None:
        """See `ChannelOwner`."""
        if self._channel is not channel:
            return
        self.dial_ended()
        self._channel = None
        if self._is_stopping:
            self._stop_dialling()
        elif (refusal := channel.refusal) is not None:
            self._backoff.refused()
            self.attempt_failed(refusal, refused=True)
        else:
            by_certificate = getattr(channel, "is_by_certificate", False)
            if getattr(self._reactor, "running", True):
                self.attempt_failed(reason, by_certificate=by_certificate)
            # Else the reactor has ended, and its connections with it: nothing is tried again.

    # --- inside

    def _build(self) -> Owned:
        channel = self._make_channel(self)
        # A name with several addresses is dialled at all of them, and two may answer at once:
        # the first is kept, the endpoint drops the other.
        if self._channel is None:
            self._channel = channel
        return channel

    def _stop_dialling(self) -> None:
        super().stopService().addBoth(lambda _: self._stopped())
        self.running = int(self._is_wanted)

    def _stop_overdue(self) -> None:
        self._stop_deadline = None
        self._logger.warn(
            "connection to {address} does not end",
            line="connection-does-not-end",
            address=self.address,
        )
        if self._channel is not None:
            self._channel.abort()
        self._stop_dialling()
        self._stopped()

    def _stopped(self) -> None:
        self.dial_ended()
        if self._stop_deadline is not None:
            self._stop_deadline.cancel()
            self._stop_deadline = None
        # In a turn of its own: ClientService cannot be called from inside its own transitions,
        # and whoever waits may well start or stop this again.
        if self._ending is None and self._is_stopping:
            self._ending = self._reactor.callLater(0, self._end)

    def _end(self) -> None:
        self._ending = None
        self._is_stopping = False
        wanted, self._is_wanted = self._is_wanted, False
        self.running = 0
        if wanted:
            self.startService()
        self._stop_waiters.take().fire(None)

    def _warn_once(self, refusal: str) -> None:
        if not self._warned or refusal:
            self._warned = True
            self._told_refusal = refusal
            self._logger.warn(
                "no connection to {address}: {reason} (tried again, at least every {seconds} s)",
                line="no-connection",
                address=self.address,
                reason=self.last_error,
                seconds=f"{self._limits.link_delay_max:g}",
            )
