"""Posts of webhooks: one call over HTTP/1.1, by Twisted's `Agent`, within bounds.

Only what `reach` allows is dialled. No redirect is followed, nothing is decompressed, no proxy of
the environment is asked; of an answer so much is read as people are shown, its head is bounded, and
a call takes so long at most. What the other end does then is its own: a connection that we close
is gone soon after.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IProtocol,
    IProtocolFactory,
    IReactorTime,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.ssl import (
    Certificate,
    PrivateCertificate,
    optionsForClientTLS,
    platformTrust,
    trustRootFromCertificates,
)
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.python.failure import Failure
from twisted.web.client import URI, Agent, HTTPConnectionPool, ResponseDone, ResponseFailed
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgentEndpointFactory, IBodyProducer, IResponse
from zope.interface import implementer

from msgservice.errors import BadAddress
from msgservice.transport.reach import Reach, ReachingReactor
from msgservice.webhooks.calls import ANSWER_MAX, Call
from msgservice.webhooks.endpoint import Answer
from msgservice.webhooks.options import WebhookOptions

IDLE = 60  # seconds that a connection is kept for the next call
HEAD_MAX = 64 * 1024  # bytes that may come for one call, and what one more read brings
CLOSE_SECONDS = 5.0  # for the other end to close, too: with TLS it is asked, and need not answer


class TookTooLong(Exception):
    """A call had no whole answer in time."""


class TooLong(Exception):
    """The answer to a call had a head without an end."""


class _Connection(ProtocolWrapper):
    """One connection, between its socket (or TLS) and who speaks HTTP over it: what bounds it.

    Twisted keeps all lines of a head, and waits for ever for the other end of TLS to close.
    """

    transport: Any

    def __init__(self, factory: _Connections, wrapped: IProtocol, reactor: IReactorTime) -> None:
        super().__init__(factory, wrapped)
        self._reactor = reactor
        self._came = 0  # bytes since a call was made
        self._is_too_long = False
        self._closing: IDelayedCall | None = None

    def write(self, data: bytes) -> None:
        """Write a part of a call."""
        self._came = 0
        super().write(data)

    def writeSequence(self, data: Any) -> None:
        """Write parts of a call."""
        self._came = 0
        super().writeSequence(data)

    def dataReceived(self, data: bytes) -> None:
        """Take what came, unless it is too much."""
        if self._came > HEAD_MAX:
            self._is_too_long = True
            self.transport.abortConnection()
            return
        self._came += len(data)
        super().dataReceived(data)

    def loseConnection(self) -> None:
        """Close; at once, where the other end does not close within a while."""
        super().loseConnection()
        if self._closing is None and self.connected:
            self._closing = self._reactor.callLater(CLOSE_SECONDS, self._close)

    def _close(self) -> None:
        self._closing = None
        self.transport.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Leave no timer, and say why it has ended."""
        if self._closing is not None:
            self._closing.cancel()
            self._closing = None
        if self._is_too_long:
            reason = Failure(TooLong(f"an answer whose head has more than {HEAD_MAX:,} bytes"))
        super().connectionLost(reason)


class _Connections(WrappingFactory[_Connection]):
    """The maker of connections."""

    noisy = False

    def __init__(self, wrapped: IProtocolFactory, reactor: IReactorTime) -> None:
        super().__init__(wrapped)
        self._reactor = reactor

    def buildProtocol(self, addr: IAddress | None) -> _Connection:
        """Return the connection to an address."""
        return _Connection(self, self.wrappedFactory.buildProtocol(addr), self._reactor)


@implementer(IStreamClientEndpoint)
class _Bounded:
    """The endpoint whose connections are bounded."""

    def __init__(self, endpoint: IStreamClientEndpoint, reactor: IReactorTime) -> None:
        self._endpoint, self._reactor = endpoint, reactor

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[Any]:
        """Connect; fires with who speaks over the connection."""
        # Else Twisted's own factory tells the log of each connection that begins or ends.
        vars(protocolFactory)["noisy"] = False
        connecting: Deferred[Any] = self._endpoint.connect(
            _Connections(protocolFactory, self._reactor)
        )
        return connecting.addCallback(lambda connection: connection.wrappedProtocol)


@implementer(IBodyProducer)
class _Body:
    """A body that is there already."""

    def __init__(self, body: bytes) -> None:
        self.length = len(body)
        self._body = body

    def startProducing(self, consumer: Any) -> Deferred[None]:
        """Write all of it."""
        consumer.write(self._body)
        done: Deferred[None] = Deferred()
        done.callback(None)
        return done

    def pauseProducing(self) -> None:
        """All is written."""

    def stopProducing(self) -> None:
        """All is written."""

    def resumeProducing(self) -> None:
        """All is written."""


class _Beginning(Protocol):
    """The reader of the beginning of an answer; a longer one ends its connection."""

    def __init__(self, done: Deferred[bytes]) -> None:
        self._done: Deferred[bytes] | None = done
        self._read = b""

    def dataReceived(self, data: bytes) -> None:
        """Take what came, as far as it is wanted."""
        self._read += data[: ANSWER_MAX - len(self._read)]
        if len(self._read) >= ANSWER_MAX:
            self._end()
            self.stop()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """End: whole, or what there is of it."""
        if reason.check(ResponseDone, PotentialDataLoss):
            self._end()
        elif self._done is not None:
            done, self._done = self._done, None
            done.errback(reason)

    def _end(self) -> None:
        if self._done is not None:
            done, self._done = self._done, None
            done.callback(self._read)

    def stop(self) -> None:
        """Read no more, and end the connection."""
        abort = getattr(self.transport, "abortConnection", None)
        if abort is not None:
            abort()
        elif self.transport is not None:
            self.transport.loseConnection()


@implementer(IAgentEndpointFactory)
class _Endpoints:
    """The endpoints of one webhook: what may be dialled, and the TLS of its options."""

    def __init__(self, reactor: ReachingReactor, tls: Any, timeout: float) -> None:
        self._reactor, self._tls, self._timeout = reactor, tls, timeout

    def endpointForURI(self, uri: URI) -> IStreamClientEndpoint:
        """Return the endpoint of the webhook's URL."""
        host = uri.host.decode("ascii")
        endpoint = HostnameEndpoint(self._reactor, host, uri.port, timeout=self._timeout)
        reactor: Any = self._reactor
        if self._tls is None:
            return _Bounded(endpoint, reactor)
        wrapped: IStreamClientEndpoint = wrapClientTLS(self._tls, endpoint)
        return _Bounded(wrapped, reactor)


def tls_of(url: str, options: WebhookOptions) -> Any:
    """Return what makes the TLS of the connections to a URL; None: it has none. Reads files."""
    uri = URI.fromBytes(url.encode("ascii"))
    if uri.scheme == b"http":
        return None
    roots: Any = platformTrust()
    if options.trust_roots is not None:
        roots = trustRootFromCertificates(_certificates(options.trust_roots.read_bytes()))
    shown: PrivateCertificate | None = None
    if options.certificate is not None:
        key = options.private_key or options.certificate
        pem = options.certificate.read_bytes() + b"\n" + key.read_bytes()
        shown = PrivateCertificate.loadPEM(pem)
    return optionsForClientTLS(uri.host.decode("ascii"), roots, shown)


def _certificates(pem: bytes) -> list[Certificate]:
    end = b"-----END CERTIFICATE-----"
    found = [Certificate.loadPEM(part + end) for part in pem.split(end)[:-1]]
    if not found:
        raise BadAddress("trust_roots", "has no certificate")
    return found


class Poster:
    """The way to make calls of one webhook (`endpoint.Post`). `tls`: as of `tls_of`."""

    def __init__(
        self,
        reactor: IReactorTime,
        url: str,
        *,
        reach: Reach,
        tls: Any,
        timeout: float,
        concurrency: int,
    ) -> None:
        self._reactor = reactor
        self._url = url.encode("ascii")
        self._timeout = timeout
        self._pool = HTTPConnectionPool(reactor)
        self._pool.maxPersistentPerHost = concurrency
        self._pool.cachedConnectionTimeout = IDLE
        self._pool.retryAutomatically = False
        factory = _Endpoints(ReachingReactor(reactor, reach), tls, timeout)
        self._agent = Agent.usingEndpointFactory(reactor, factory, pool=self._pool)

    def __call__(self, call: Call) -> Deferred[Answer]:
        """See `endpoint.Post`."""
        headers = Headers()
        for name, value in call.headers:
            headers.setRawHeaders(name, [value])
        reading: list[_Beginning] = []
        made: Deferred[Any] = self._agent.request(b"POST", self._url, headers, _Body(call.body))
        made.addCallback(self._answered, reading)
        # The time is that of all, the reading included: a slow answer ends as one that never came.
        made.addTimeout(self._timeout, self._reactor, self._late)
        return made.addErrback(self._failed, reading)

    def _answered(self, response: IResponse, reading: list[_Beginning]) -> Deferred[Answer]:
        asked = response.headers.getRawHeaders(b"retry-after") or [b""]
        body: Deferred[bytes] = Deferred()
        beginning = _Beginning(body)
        reading.append(beginning)
        response.deliverBody(beginning)
        return body.addCallback(
            lambda read: Answer(response.code, read, asked[0].decode("latin-1"))
        )

    def _late(self, result: object, seconds: float) -> object:
        if isinstance(result, Failure):
            raise TookTooLong(f"no whole answer within {seconds:g} s")
        return result

    def _failed(self, failure: Failure, reading: list[_Beginning]) -> Failure:
        for one in reading:
            one.stop()
        error = failure.value
        if isinstance(error, ResponseFailed) and error.reasons:
            raise error.reasons[0].value
        failure.trap(Exception)
        return failure

    def stop(self) -> Deferred[None]:
        """Close the connections that are kept; fire when they have gone."""
        closed: Deferred[None] = self._pool.closeCachedConnections()
        return closed
