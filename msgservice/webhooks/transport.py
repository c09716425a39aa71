"""The transport of webhooks: a node's receivers at `https://…`, which are made in this process.

What the node dials is a `Receiver` here, without a socket, as far as the node knows; what that does
with a message is the endpoint's business.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import (
    CancelledError,
    Deferred,
    DeferredLock,
    execute,
    fail,
)
from twisted.internet.defer import TimeoutError as Late
from twisted.internet.interfaces import (
    IDelayedCall,
    IListeningPort,
    IReactorFromThreads,
    IReactorTime,
)
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from msgservice.clock import wall_of
from msgservice.core.backoff import delay_of
from msgservice.errors import BadAddress, LimitReached
from msgservice.installation import installed_version
from msgservice.interfaces import IChannel, IChannelUser, IConnector, INamingTransport
from msgservice.limits import Limits
from msgservice.receiver.received import ReceivedMessage
from msgservice.receiver.receiver import Receiver
from msgservice.records import Reread, Tried
from msgservice.threads import in_daemon_thread
from msgservice.transport.addresses import URL_SCHEMES
from msgservice.transport.local import local_connector
from msgservice.transport.reach import NotReachable, Reach, addresses_of
from msgservice.waiters import Waiters
from msgservice.webhooks.calls import Call, Verdict, call_of, test_call, verdict_of
from msgservice.webhooks.endpoint import DELAY_MAX, DELAY_MIN, Endpoint, reason_of
from msgservice.webhooks.options import WebhookOptions, WebhooksOptions
from msgservice.webhooks.posting import Poster, tls_of
from msgservice.webhooks.urls import check_url, host_of, url_of

# A call that is under way when the node stops has so long to be answered; then it is made again.
STOP_SECONDS = 5.0
TRIES_MAX = 8  # tests at once
# To look up a name before it is dialled: where there is no answer by then, the calls show what
# comes of it.
LOOKUP_SECONDS = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """The content of a webhook's files: what signs its calls, and what makes its TLS."""

    secrets: Sequence[bytes] = field(repr=False)
    tls: Any


def poster_of(reactor: IReactorTime, url: str, options: WebhooksOptions, read: Read) -> Poster:
    """Return the way to make the calls of one webhook."""
    return Poster(
        reactor,
        url,
        reach=Reach(options.networks),
        tls=read.tls,
        timeout=options.timeout,
        concurrency=options.concurrency,
    )


@implementer(INamingTransport)
class WebhookTransport:
    """The transport of `http://`, `https://`, and of both behind `xmlrpc+`.

    `gone(name, reason)`: a receiver's endpoint wants no more. `secrets`: of a receiver, or its node
    where it has none of its own. Files are read in a thread, one after the other, when a receiver
    is dialled.
    """

    schemes = URL_SCHEMES

    def __init__(
        self,
        options: WebhooksOptions | None = None,
        *,
        gone: Callable[[str, str], None] = lambda _name, _reason: None,
        secrets: Callable[[str], Sequence[bytes]] = lambda _name: (),
        rng: Callable[[], float] = lambda: 1.0,
    ) -> None:
        self.options = WebhooksOptions() if options is None else options
        self._gone, self._secrets, self._rng = gone, secrets, rng
        self._trying = 0  # tests that are under way
        # One reads at a time: who is first makes the node's secret, and the others find it.
        self._reading = DeferredLock()

    def check_dial(self, address: str) -> None:
        """See `ITransport`; an IP address has to be one that may be dialled."""
        check_url(address, plain=self.options.plain, reach=Reach(self.options.networks))

    def check_listen(self, address: str) -> str | None:
        """See `ITransport`: nothing listens at a URL."""
        raise BadAddress(address, 'is where a receiver is, not where a node listens: web = "tcp:…"')

    def check_free(self, address: str) -> None:
        """See `ITransport`."""

    def connector(
        self,
        reactor: IReactorTime,
        address: str,
        make_user: Callable[[], IChannelUser],
        limits: Limits,
    ) -> IConnector:
        """See `ITransport`."""
        return self.connector_to(reactor, address, make_user, limits, "webhook")

    def connector_to(
        self,
        reactor: IReactorTime,
        address: str,
        make_user: Callable[[], IChannelUser],
        limits: Limits,
        name: str,
    ) -> IConnector:
        """See `INamingTransport`."""
        self.check_dial(address)
        connector: IConnector = Webhook(
            reactor,
            address,
            make_user,
            limits,
            name,
            options=self.options,
            read=lambda: self._read(reactor, name, url_of(address)[0]),
            check=lambda: self._check(reactor, host_of(address)),
            gone=lambda reason: self._gone(name, reason),
            rng=self._rng,
        )
        return connector

    def listen(
        self,
        reactor: IReactorTime,
        address: str,
        make_user: Callable[[], IChannelUser],
        limits: Limits,
    ) -> Deferred[IListeningPort]:
        """See `ITransport`."""
        return fail(BadAddress(address, "nothing listens at a URL"))

    def _read(self, reactor: IReactorTime, name: str, url: str) -> Deferred[Read]:
        """Fire with the content of a webhook's files; fails with why they cannot be used."""

        def read() -> Read:
            own = self.options.own.get(name, WebhookOptions())
            return Read(secrets=self._secrets(name), tls=tls_of(url, own))

        if not IReactorFromThreads.providedBy(reactor):  # a test's clock has no threads
            return execute(read)
        threads: IReactorFromThreads = reactor
        done: Deferred[Read] = self._reading.run(in_daemon_thread, threads, read)
        return done

    def _check(self, reactor: IReactorTime, host: str) -> Deferred[None]:
        """Fail with `NotReachable` where a host has addresses now, and none that may be dialled.

        What is dialled is asked again each time: this is so that it is known before there is a
        message, and told as what it is.
        """
        reach = Reach(self.options.networks)

        def check(found: list[str]) -> None:
            if found and not any(map(reach.allows, found)):
                reach.check(found[0])

        def late(failure: Failure) -> list[str]:
            failure.trap(Late)
            return []

        found = addresses_of(reactor, host).addTimeout(LOOKUP_SECONDS, reactor)
        return found.addErrback(late).addCallback(check)

    def try_out(self, reactor: IReactorTime, address: str, name: str) -> Deferred[Tried]:
        """See `INamingTransport`: one call by a connection of its own, whatever waits."""
        return Deferred.fromCoroutine(self._try_out(reactor, address, name))

    async def _try_out(self, reactor: IReactorTime, address: str, name: str) -> Tried:
        url, is_xmlrpc = url_of(address)
        if self._trying >= TRIES_MAX:
            raise LimitReached("tests of webhooks at once", TRIES_MAX)
        own = self.options.own.get(name, WebhookOptions())
        self._trying += 1
        begin, poster = reactor.seconds(), None
        try:
            self.check_dial(address)
            read = await self._read(reactor, name, url)
            call = test_call(
                name,
                is_xmlrpc=is_xmlrpc,
                secrets=read.secrets,
                timestamp=wall_of(reactor)() // 1000,
                more=own.headers,
                agent=agent_name(),
            )
            poster = poster_of(reactor, url, self.options, read)
            answer = await poster(call)
        except Exception as error:  # whatever is wrong is what was asked
            return Tried(None, False, reason_of(error), reactor.seconds() - begin)
        finally:
            self._trying -= 1
            if poster is not None:
                await poster.stop()
        verdict, why = verdict_of(answer.code, answer.body, is_xmlrpc=is_xmlrpc)
        return Tried(answer.code, verdict is Verdict.TAKEN, why, reactor.seconds() - begin)

    def reload(self) -> Sequence[Reread]:
        """See `ITransport`: secrets and certificates are read when a receiver is dialled."""
        return []


class _Standing(Service):
    """The service that a receiver starts to be connected: the node does that here."""

    last_error: str | None = None

    def poke(self) -> None:
        """See `IConnector`."""


@implementer(IConnector)
class Webhook(Service):
    """A webhook as a node has it: an `IConnector` to a receiver of this process.

    What is wrong with its endpoint is its `last_error`, for people, although it is connected.
    """

    _logger = Logger()

    def __init__(
        self,
        reactor: IReactorTime,
        address: str,
        make_user: Callable[[], IChannelUser],
        limits: Limits,
        name: str,
        *,
        options: WebhooksOptions,
        read: Callable[[], Deferred[Read]],
        check: Callable[[], Deferred[None]],
        gone: Callable[[str], None],
        rng: Callable[[], float],
    ) -> None:
        # `check` fails with `NotReachable` where it may not be dialled.
        self.address = address
        self._url, self._is_xmlrpc = url_of(address)
        self._reactor, self._name, self._limits = reactor, name, limits
        self._make_user = make_user
        self._options, self._own = options, options.own.get(name, WebhookOptions())
        self._read, self._check, self._gone, self._rng = read, check, gone, rng
        self._reading: Deferred[None] | None = None
        self._secrets: Sequence[bytes] = ()
        self._agent = agent_name()
        self._wall = wall_of(reactor)
        self._error: str | None = None
        self._forbidden = ""
        self._refused = 0  # times in a row that it might not be dialled
        self._again: IDelayedCall | None = None  # when that is looked at again
        self._endpoint: Endpoint | None = None
        self._poster: Poster | None = None
        self._receiver: Receiver | None = None
        self._link: Any = None  # the connector within this process
        self._stopping: Waiters[None] | None = None

    # --- getters

    @property
    def channel(self) -> IChannel | None:
        """See `IConnector`."""
        channel: IChannel | None = None if self._link is None else self._link.channel
        return channel

    @property
    def attempts(self) -> int:
        """See `IConnector`."""
        return 0 if self._link is None else int(self._link.attempts)

    @property
    def failures(self) -> int:
        """See `IConnector`."""
        return self._refused if self._link is None else int(self._link.failures)

    @property
    def last_error(self) -> str | None:
        """Why it has no connection, or why its endpoint takes nothing."""
        endpoint = self._endpoint
        if endpoint is not None and endpoint.trouble:
            return endpoint.trouble
        if self._error is not None:
            return self._error
        error: str | None = None if self._link is None else self._link.last_error
        return error

    @property
    def next_attempt_in(self) -> float | None:
        """Seconds until it is dialled again, or its endpoint is tried again."""
        endpoint = self._endpoint
        if endpoint is not None and endpoint.trouble:
            return endpoint.next_try_in
        if self._again is not None:
            return max(0.0, self._again.getTime() - self._reactor.seconds())
        return None if self._link is None else self._link.next_attempt_in

    @property
    def unwell_since(self) -> float | None:
        """Since when its endpoint takes nothing, seconds of the reactor; None: it does."""
        return None if self._endpoint is None else self._endpoint.unwell_since

    @property
    def forbidden(self) -> str:
        """The option that would let it be dialled, where that is why it is not; else empty."""
        return self._forbidden if self._endpoint is None else self._endpoint.forbidden

    # --- verbs

    def poke(self) -> None:
        """See `IConnector`."""
        if self._again is not None:
            self._again.reset(0)
        if self._link is not None:
            self._link.poke()

    def startService(self) -> None:
        """Make the receiver, and connect the node to it; a reason against that is `last_error`."""
        if self.running:
            return
        super().startService()
        if self._stopping is not None:
            return  # when it has stopped
        self._begin()

    def _begin(self) -> None:
        self._again = None
        self._reading = Deferred.fromCoroutine(self._open())

    async def _open(self) -> None:
        try:
            read = await self._read()
            self._secrets = read.secrets
            await self._check()
            self._poster = poster_of(self._reactor, self._url, self._options, read)
        except CancelledError:  # it stops
            return
        except NotReachable as error:
            self._dial_later(error)
            return
        except Exception as error:  # files that cannot be used: the others are served all the same
            self._error = f"not dialled: {error}"
            self._logger.error(
                "webhook {name} is not dialled: {error}",
                line="not-dialled",
                name=self._name,
                error=str(error),
            )
            return
        self._error, self._forbidden, self._refused = None, "", 0
        self._endpoint = Endpoint(
            self._url,
            make_call=self._call,
            post=self._poster,
            gone=self._gone,
            clock=self._reactor,
            wall=self._wall,
            rng=self._rng,
            asked_max=self._limits.asked_delay_max,
            is_xmlrpc=self._is_xmlrpc,
        )
        receiver = self._receiver = Receiver(
            self._reactor,
            name=self._name,
            handler=self._endpoint.deliver,
            concurrency=self._options.concurrency,
            limits=replace(self._limits, stop_timeout=STOP_SECONDS),
        )
        receiver.attach_through(self._connect, address=self.address)

    def _dial_later(self, error: NotReachable) -> None:
        """Try again later: a name that may not be dialled now may lead somewhere else then."""
        if str(error) != self._error:
            self._logger.error(
                "webhook {name} is not dialled: {error}",
                line="not-dialled",
                name=self._name,
                error=str(error),
            )
        self._error, self._forbidden = str(error), error.key
        self._refused += 1
        delay = delay_of(
            self._refused,
            delay_min=DELAY_MIN,
            delay_max=DELAY_MAX,
            jitter=0.5 + self._rng() / 2,
        )
        self._again = self._reactor.callLater(delay, self._begin)

    def _connect(self, make_far: Callable[[], IChannelUser]) -> _Standing:
        assert self._receiver is not None
        self._link = local_connector(
            self._make_user,
            make_far,
            self._receiver.ready,
            self._reactor,
            self._limits,
            self._name,
        )
        self._link.startService()
        return _Standing()

    def _call(self, message: ReceivedMessage) -> Call:
        return call_of(
            message,
            is_xmlrpc=self._is_xmlrpc,
            secrets=self._secrets,
            timestamp=self._wall() // 1000,
            more=self._own.headers,
            agent=self._agent,
        )

    def stopService(self) -> Deferred[None]:
        """Stop: the node's side ends first, so that no answer is given for what was broken off."""
        super().stopService()
        if self._stopping is not None:
            return self._stopping.wait()
        self._stopping = Waiters()
        waiter = self._stopping.wait()
        stopped = Deferred.fromCoroutine(self._stop())
        stopped.addErrback(lambda failure: self._logger.failure("stopping a webhook", failure))
        stopped.addBoth(self._has_stopped)
        return waiter

    async def _stop(self) -> None:
        again, self._again = self._again, None
        if again is not None:
            again.cancel()
        reading, self._reading = self._reading, None
        if reading is not None:
            reading.cancel()
        link, endpoint, receiver, poster = self._link, self._endpoint, self._receiver, self._poster
        self._link = self._endpoint = self._receiver = self._poster = None
        if link is not None:
            await link.stopService()
        if endpoint is not None:
            endpoint.stop()
        if receiver is not None:
            await receiver.stop()
        if poster is not None:
            await poster.stop()

    def _has_stopped(self, _: object) -> None:
        stopping, self._stopping = self._stopping, None
        if self.running:
            self._begin()
        if stopping is not None:
            stopping.fire(None)


def agent_name() -> str:
    """Return what calls say that they are made by."""
    return f"msgservice/{installed_version()}"
