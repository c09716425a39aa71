"""Dials an address of acknowledged UDP, and again when its session has gone: `IConnector`.

Each connector has a socket of its own. `HOST` may be a name; it is looked up before each attempt.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from msgservice.clock import monotonic_of, timed
from msgservice.core.backoff import Backoff
from msgservice.errors import CannotListen
from msgservice.interfaces import IChannel, IChannelUser, IConnector
from msgservice.limits import Limits
from msgservice.transport.addresses import (
    LOOPBACK,
    ip_of,
    is_local_host,
)
from msgservice.transport.udp.addresses import check_dial, is_insecure, read_key
from msgservice.transport.udp.bearer import Bearer, UdpChannel
from msgservice.waiters import Waiters

# One attempt to open a session.
DIAL_TIMEOUT = 30.0
ANY = "0.0.0.0"  # noqa: S104  # for peers beyond loopback: with a key, or by order


@implementer(IConnector)
class UdpConnector(Service):
    """An `IConnector` over UDP: one session at a time."""

    log = Logger()

    def __init__(
        self,
        *,
        reactor: Any,
        address: str,
        make_user: Callable[[], IChannelUser],
        limits: Limits,
        rng: Callable[[], float],
        entropy: Callable[[int], bytes],
    ) -> None:
        parsed = check_dial(address)
        self.address = address
        self.attempts = 0
        self.last_error: str | None = None
        self.channel: IChannel | None = None
        self._host, self._port = parsed.host_and_port()
        self._key = read_key(parsed)
        self._insecure = is_insecure(parsed)
        self._timeout = parsed.number("timeout", DIAL_TIMEOUT)
        self._reactor = timed(reactor)
        self._now = monotonic_of(reactor)
        self._make_user = make_user
        self._limits = limits
        self._bearer: Bearer | None = None
        self._wait: IDelayedCall | None = None
        self._dialling: IDelayedCall | None = None
        self._warned = False
        self._told_refusal = ""  # the last one that was warned of
        self._is_closing = False  # it was stopped, and its channel has not gone yet
        self._stopped: Waiters[None] = Waiters()
        self._rng = rng
        self._entropy = entropy
        self._backoff = Backoff(
            delay_min=limits.link_delay_min,
            delay_max=limits.link_delay_max,
            healthy=limits.link_healthy,
            rng=rng,
        )

    # --- getters

    @property
    def failures(self) -> int:
        """Failures in a row."""
        return self._backoff.failures

    @property
    def next_attempt_in(self) -> float | None:
        """Seconds until the next attempt; None while there is a connection, or an attempt."""
        if self._wait is None:
            return None
        return max(0.0, self._wait.getTime() - float(self._reactor.seconds()))

    # --- verbs

    def startService(self) -> None:
        """Begin to dial; while it still stops, as soon as it has stopped."""
        if not self.running:
            super().startService()
            if not self._is_closing:
                self._dial()

    def poke(self) -> None:
        """Dial now, if waiting: there is a sign of life from the other side."""
        self._backoff.poke(self._now())
        if self._wait is not None:
            self._wait.reset(0)

    def stopService(self) -> Deferred[None]:
        """Send what is queued, close, stop dialling. Safe to call twice, and before any start."""
        super().stopService()
        if self._wait is not None:
            self._wait.cancel()
            self._wait = None
        if self.channel is None:
            self._end_attempt()
            return succeed(None)
        self._is_closing = True
        stopped = self._stopped.wait()
        self.channel.close()  # within limits.close_timeout
        return stopped

    # --- one attempt

    def _dial(self) -> None:
        self._wait = None
        self.attempts += 1
        self._dialling = self._reactor.callLater(self._timeout, self._too_slow)
        if ip_of(self._host) is not None:
            self._dial_address(self._host, self.attempts)
            return
        looked_up: Deferred[str] = self._reactor.resolve(self._host)
        now = (self.attempts,)
        looked_up.addCallbacks(
            self._dial_address, self._not_found, callbackArgs=now, errbackArgs=now
        )

    def _dial_address(self, host: str, attempt: int) -> None:
        if attempt != self.attempts or self._dialling is None:
            return  # it was given up meanwhile
        local = is_local_host(host)
        interface = ("::1" if local else "::") if ":" in host else (LOOPBACK if local else ANY)
        bearer = Bearer(
            self._reactor,
            make_user=self._user,
            limits=self._limits,
            key=self._key,
            insecure=self._insecure,
            established=self._established,
            gone=self._gone,
            rng=self._rng,
            entropy=self._entropy,
        )
        try:
            bearer.listen(0, interface)
            bearer.dial(host, self._port)
        except (CannotListen, OSError) as error:
            bearer.close()
            self._failed(str(error))
            return
        self._bearer = bearer

    def _not_found(self, failure: Failure, attempt: int) -> None:
        if attempt == self.attempts and self._dialling is not None:
            self._failed(failure.getErrorMessage())

    def _user(self) -> IChannelUser:
        # Called when the session stands; the channel says `channel_opened` next.
        if self._dialling is not None:
            self._dialling.cancel()
            self._dialling = None
        user = self._make_user()
        bearer = self._bearer
        assert bearer is not None
        self.channel = bearer.channels[-1]
        return user

    def _too_slow(self) -> None:
        self._dialling = None
        self._failed(f"no answer within {self._timeout:g} s")

    def _failed(self, reason: str, refusal: str | None = None) -> None:
        self.last_error = refusal or reason
        self._end_attempt()
        if refusal is not None:
            self._backoff.refused()
        if refusal != self._told_refusal if refusal is not None else not self._warned:
            self._warned = True
            self._told_refusal = refusal or ""
            self.log.warn(
                "no connection to {address}: {reason} (will be tried again)",
                address=self.address,
                reason=self.last_error,
            )
        if self.running:
            delay = self._backoff.failed(self._now())
            self._wait = self._reactor.callLater(delay, self._dial)

    def _end_attempt(self) -> None:
        if self._dialling is not None:
            self._dialling.cancel()
            self._dialling = None
        bearer, self._bearer = self._bearer, None
        if bearer is not None:
            bearer.close()

    def _established(self, channel: UdpChannel) -> None:
        self._backoff.established(self._now())
        self.last_error = None
        if self._warned:
            self._warned = False
            self.log.info("connected to {address} again", address=self.address)

    def _gone(self, channel: UdpChannel, reason: str) -> None:
        if self.channel is not channel:
            return
        self.channel = None
        if not self._is_closing:
            self._failed(reason, getattr(channel.user, "refusal", None))
            return
        self._is_closing = False
        self._end_attempt()
        if self.running:  # started again meanwhile; not from inside the bearer that ends
            self._wait = self._reactor.callLater(0, self._dial)
        self._stopped.fire(None)
