"""Posts of webhooks: one call over HTTP/1.1, by Twisted's `Agent`, within bounds.

Only what `reach` allows is dialled. No redirect is followed, nothing is decompressed, no proxy of
the environment is asked; of an answer so much is read as people are shown, and a call takes so long
at most.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.error import DNSLookupError
from twisted.internet.interfaces import IReactorTime, IStreamClientEndpoint
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.ssl import (
    Certificate,
    PrivateCertificate,
    optionsForClientTLS,
    platformTrust,
    trustRootFromCertificates,
)
from twisted.python.failure import Failure
from twisted.web.client import URI, Agent, HTTPConnectionPool, ResponseDone, ResponseFailed
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgentEndpointFactory, IBodyProducer, IResponse
from zope.interface import implementer

from msgservice.errors import BadAddress
from msgservice.webhooks.calls import ANSWER_MAX, Call
from msgservice.webhooks.endpoint import Answer
from msgservice.webhooks.options import WebhookOptions
from msgservice.webhooks.reach import Reach, ReachingReactor

IDLE = 60  # seconds that a connection is kept for the next call


class NotReachable(Exception):
    """The address of an endpoint is none that this node may dial."""


class TookTooLong(Exception):
    """A call had no whole answer in time."""


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

    def __init__(self, reactor: ReachingReactor, options: WebhookOptions, timeout: float) -> None:
        self._reactor, self._timeout = reactor, timeout
        self._roots: Any = platformTrust()
        if options.trust_roots is not None:
            self._roots = trustRootFromCertificates(_certificates(options.trust_roots.read_bytes()))
        self._shown: PrivateCertificate | None = None
        if options.certificate is not None:
            key = options.private_key or options.certificate
            self._shown = PrivateCertificate.loadPEM(
                options.certificate.read_bytes() + b"\n" + key.read_bytes()
            )

    def endpointForURI(self, uri: URI) -> IStreamClientEndpoint:
        """Return the endpoint of a URL."""
        host = uri.host.decode("ascii")
        endpoint = HostnameEndpoint(self._reactor, host, uri.port, timeout=self._timeout)
        if uri.scheme == b"http":
            return endpoint
        context = optionsForClientTLS(host, self._roots, self._shown)
        wrapped: IStreamClientEndpoint = wrapClientTLS(context, endpoint)
        return wrapped


def _certificates(pem: bytes) -> list[Certificate]:
    end = b"-----END CERTIFICATE-----"
    found = [Certificate.loadPEM(part + end) for part in pem.split(end)[:-1]]
    if not found:
        raise BadAddress("trust_roots", "has no certificate")
    return found


class Poster:
    """The way to make calls of one webhook (`endpoint.Post`)."""

    def __init__(
        self,
        reactor: IReactorTime,
        url: str,
        *,
        reach: Reach,
        options: WebhookOptions,
        timeout: float,
        concurrency: int,
    ) -> None:
        self._reactor = reactor
        self._reaching = ReachingReactor(reactor, reach)
        self._url = url.encode("ascii")
        self._timeout = timeout
        self._pool = HTTPConnectionPool(reactor)
        self._pool.maxPersistentPerHost = concurrency
        self._pool.cachedConnectionTimeout = IDLE
        self._pool.retryAutomatically = False
        factory = _Endpoints(self._reaching, options, timeout)
        self._agent = Agent.usingEndpointFactory(reactor, factory, pool=self._pool)

    def __call__(self, call: Call) -> Deferred[Answer]:
        """See `endpoint.Post`."""
        headers = Headers()
        for name, value in call.headers:
            headers.setRawHeaders(name, [value])
        reading: list[_Beginning] = []
        self._reaching.refused.clear()
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
        if self._reaching.refused and failure.check(DNSLookupError):
            refused = ", ".join(dict.fromkeys(self._reaching.refused))
            raise NotReachable(f"{refused} is no address that this node may dial (networks)")
        error = failure.value
        if isinstance(error, ResponseFailed) and error.reasons:
            raise error.reasons[0].value
        failure.trap(Exception)
        return failure

    def stop(self) -> Deferred[None]:
        """Close the connections that are kept; fire when they have gone."""
        closed: Deferred[None] = self._pool.closeCachedConnections()
        return closed
