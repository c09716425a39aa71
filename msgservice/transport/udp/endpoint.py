"""The endpoint of a dialled address of acknowledged UDP: one attempt to open a session is one
`connect`.

Each attempt has a socket of its own, which ends with its session. `HOST` may be a name; it is
looked up before each attempt. Whether and when to try again is `transport.dialling`'s.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IProtocol,
    IProtocolFactory,
    IReactorCore,
    IReactorTime,
    IStreamClientEndpoint,
)
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from msgservice.errors import BadAddress, CannotListen
from msgservice.limits import Limits
from msgservice.transport.addresses import LOOPBACK, ip_of, is_local_host
from msgservice.transport.reach import NotReachable, check_reach
from msgservice.transport.udp.addresses import check_dial, is_insecure, read_shared
from msgservice.transport.udp.bearer import Bearer
from msgservice.transport.udp.keyfile import SharedKeys

# One attempt to open a session.
DIAL_TIMEOUT = 30.0
ANY = "0.0.0.0"  # noqa: S104  # for peers beyond loopback: with a key, or by order


@implementer(IStreamClientEndpoint)
class UdpEndpoint:
    """An address that is dialled; BadAddress where it cannot be.

    Its key is read anew for each attempt, so that one that was replaced is used from the next on.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: IReactorTime,
        address: str,
        limits: Limits,
        *,
        rng: Callable[[], float],
        entropy: Callable[[int], bytes],
    ) -> None:
        parsed = check_dial(address)
        self._reactor = reactor
        self._limits = limits
        self._rng = rng
        self._entropy = entropy
        self._host, self._port = parsed.host_and_port()
        self._parsed = parsed
        self._keys = read_shared(parsed)
        self._told = ""  # why a file that has changed cannot be used
        self._insecure = is_insecure(parsed)
        self._timeout = parsed.number("timeout", DIAL_TIMEOUT)

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        """See `IStreamClientEndpoint`."""
        attempt = _Attempt(self._reactor, protocolFactory, self._timeout)
        if ip_of(self._host) is not None:
            self._dial(self._host, attempt)
        else:
            looked_up: Deferred[str] = cast("IReactorCore", self._reactor).resolve(self._host)
            looked_up.addCallback(self._dial, attempt).addErrback(attempt.fail)
        return attempt.connected

    def _dial(self, host: str, attempt: _Attempt) -> None:
        if attempt.is_over:
            return
        try:
            check_reach(self._reactor, host)
        except NotReachable as error:
            attempt.fail(Failure(error))
            return
        local = is_local_host(host)
        interface = ("::1" if local else "::") if ":" in host else (LOOPBACK if local else ANY)
        bearer = Bearer(
            self._reactor,
            attempt,
            limits=self._limits,
            keys=self._read_again(),
            insecure=self._insecure,
            rng=self._rng,
            entropy=self._entropy,
        )
        attempt.bearer = bearer
        try:
            bearer.listen(0, interface)
            bearer.dial(host, self._port)
        except (CannotListen, OSError) as error:
            attempt.fail(Failure(error))

    def _read_again(self) -> SharedKeys | None:
        """Return the key as its file is now, where it can be used."""
        try:
            self._keys, self._told = read_shared(self._parsed), ""
        except BadAddress as error:
            if self._told != str(error):
                self._told = str(error)
                self._log.error(
                    "a key cannot be read, the one before goes on: {error}",
                    line="key-not-read",
                    error=self._told,
                )
        return self._keys


class _Attempt:
    """One attempt: the accepter of its bearer, which has one session."""

    def __init__(self, reactor: IReactorTime, factory: IProtocolFactory, timeout: float) -> None:
        self.connected: Deferred[IProtocol] = Deferred(lambda _: self._end())
        self.bearer: Bearer | None = None
        self.is_over = False
        self._factory = factory
        self._timeout = timeout
        self._deadline: IDelayedCall | None = reactor.callLater(timeout, self._too_slow)

    def _too_slow(self) -> None:
        self._deadline = None
        self.fail(
            Failure(
                TimeoutError(
                    f"no answer within {self._timeout:g} s (nobody is there, or has this key)"
                )
            )
        )

    def fail(self, reason: Failure) -> None:
        """End the attempt: no session came of it."""
        if not self.is_over:
            self._end()
            self.connected.errback(reason)

    def _end(self) -> None:
        self.is_over = True
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        if self.bearer is not None:
            self.bearer.close()

    # --- from the bearer

    def buildProtocol(self, address: IAddress) -> IProtocol | None:
        """See `Accepter`."""
        return None if self.is_over else self._factory.buildProtocol(address)

    def opened(self, protocol: IProtocol) -> None:
        """See `Accepter`."""
        self.is_over = True
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        self.connected.callback(protocol)

    def lost(self) -> None:
        """See `Accepter`: the socket was for that session alone."""
        assert self.bearer is not None
        self.bearer.close()
