"""A remote of sessions: its server, its one client to the central, and its end.

    IDLE ─ start ─► SAYING_HELLO ─ Welcome ─► JOINED ─ the client is lost ─► SAYING_HELLO
                        └─ silence, Shutdown, stop ─► ENDING ─► ENDED

It ends by itself when the central says so, or has been silent for too long. With `acks=False` it
speaks as the original did: nothing is numbered, joined is who is connected, since nobody answers,
what the central's kernel has counts as acknowledged, and whoever connects is taken for the central.
"""

from __future__ import annotations

import random
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from math import inf
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, fail, maybeDeferred, succeed
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.interfaces import (
    IDelayedCall,
    IReactorTime,
    IStreamClientEndpoint,
    IStreamServerEndpoint,
)
from twisted.internet.ssl import CertificateOptions
from twisted.logger import Logger
from twisted.python.failure import Failure

from msgservice.arguments import check_flags, check_functions, check_methods, check_seconds
from msgservice.clock import monotonic_of, timed
from msgservice.faces.listening import ListeningService
from msgservice.faces.sessions.content.codec import ISessionCodec
from msgservice.faces.sessions.envelope import (
    Ack,
    Heartbeat,
    Hello,
    Item,
    Joined,
    Message,
    Shutdown,
    Welcome,
    check_host,
    check_id,
)
from msgservice.faces.sessions.errors import BadAck, BadPayload, NotJoined
from msgservice.faces.sessions.handlers import Handlers, Job, SessionMessage, check_thread
from msgservice.faces.sessions.hop import Account, Hop, prepare
from msgservice.faces.sessions.limits import SessionLimits
from msgservice.faces.sessions.listener import LISTEN, Inbound, Listener, spelled
from msgservice.faces.sessions.outgoing import Entry
from msgservice.faces.sessions.sender import DIALS_MIN, Sender
from msgservice.transport.addresses import ip_of, is_local_host
from msgservice.waiters import Waiters

LISTEN_IPV6 = r"tcp6:0:interface=\:\:1"
LOOK_SECONDS = 1.0  # between two looks whether the central is heard
EVERYWHERE = frozenset({"::", "0.0.0.0"})  # noqa: S104  # compared, not bound
CENTRAL = "central"  # the key of its messages


@dataclass(frozen=True, slots=True)
class Ended:
    """The end of a remote: `by` is "central", "silence" or "stop"."""

    by: str
    reason: str | None = None


class State(Enum):
    """The state of a remote (picture of the module)."""

    IDLE = "idle"
    SAYING_HELLO = "saying hello"
    JOINED = "joined"
    ENDING = "ending"
    ENDED = "ended"


class Remote(ListeningService):
    """A remote: says hello to its central, and stays until it is told to end or hears nothing.

    Args:
        reactor: clock, sockets and threads.
        central: where the central listens: `(host, port)`, or a Twisted endpoint.
        listen: its own server, a Twisted endpoint or its description; by default a port that the
            kernel chooses, of loopback: where `central` says `::1`, of that.
        id: the name by which it is known over restarts, one that a receiver can have, of at most
            200 characters; at a central with a node, messages wait for it then.
        codec: what content may be, the same as the central's (`SafeCodec()`).
        on_message: the handler, called with a `SessionMessage`, one at a time and in order. It may
            return a Deferred or be a coroutine function; with `threads` it may block.
        on_joined: called when the central has answered, each time; without `acks`, when connected.
        on_shutdown: called with an `Ended`, before anything closes.
        threads: so many threads of its own for `on_message`; 0: it runs on the reactor.
        heartbeat_timeout: seconds without a heartbeat after which it ends; they begin when it has
            reached the central, and while that gives no answer not again with the next hello.
        announce_host: the host that the central dials; by default whence the hello comes.
        acks: whether both sides number and acknowledge; else whoever reaches its server is taken
            for its central.
        tls: for its server, `twisted.internet.ssl.CertificateOptions`.
        insecure: whether its server may listen to others than this machine unauthenticated.
        rng: floats from 0 to 1, for the pauses between attempts to dial.

    Raises `ValueError` where `central` is at an address that is not of this machine and there is no
    `listen`: it would dial what nobody listens at; `BadControl` for an `announce_host` that is no
    host.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: IReactorTime,
        central: tuple[str, int] | IStreamClientEndpoint,
        *,
        listen: str | IStreamServerEndpoint | None = None,
        id: str | None = None,  # noqa: A002  # the name that the field has everywhere
        codec: ISessionCodec | None = None,
        on_message: Callable[[SessionMessage], object] | None = None,
        on_joined: Callable[[], object] | None = None,
        on_shutdown: Callable[[Ended], object] | None = None,
        threads: int = 0,
        heartbeat_timeout: float = 15.0,
        announce_host: str | None = None,
        acks: bool = True,
        tls: CertificateOptions | None = None,
        limits: SessionLimits | None = None,
        insecure: bool = False,
        rng: Callable[[], float] = random.random,
    ) -> None:
        if heartbeat_timeout != inf:
            check_seconds(heartbeat_timeout=heartbeat_timeout)
        check_flags(acks=acks)
        check_methods("a function is needed", ("__call__",), rng=rng)
        if isinstance(central, tuple):
            if [type(part) for part in central] != [str, int] or not 0 < central[1] < 65_536:
                raise ValueError(f"central = {central}: a host and a port are needed")
        elif not IStreamClientEndpoint.providedBy(central):
            raise TypeError(f"central = {central!r}: a host and a port, or an endpoint, are needed")
        if isinstance(listen, str) and listen.lower().startswith("unix:") and acks:
            raise ValueError(f"listen = {listen!r}: a port is needed, that the central can dial")
        if listen is None:
            is_dialled = acks and announce_host is None
            listen = _near(central[0], is_dialled) if isinstance(central, tuple) else LISTEN
        self._reactor = timed(reactor)
        self._now = monotonic_of(reactor)
        check_functions(on_joined=on_joined, on_shutdown=on_shutdown)
        self._listener = Listener(
            reactor,
            user=self,
            listen=listen,
            codec=codec,
            limits=limits,
            tls=tls,
            insecure=insecure,
            may_be_silent=not acks,  # a central says nothing then before its next heartbeat
        )
        self._codec, self._limits = self._listener.codec, self._listener.limits
        limits = self._limits
        self.id = check_id(id) if id is not None else None
        self._on_joined, self._on_shutdown = on_joined, on_shutdown
        self._timeout = heartbeat_timeout
        self._announce_host = check_host(announce_host)
        self._acks = acks
        self.state = State.IDLE
        self.last_heartbeat: float | None = None
        self._session = ""
        self._nonce = ""
        self._account = Account(limits)
        self._from_central: Inbound | None = None  # the connection that it dialled back
        self._alive_at = 0.0  # of the first connection without answer, or of the last heartbeat
        self._looked_at = 0.0
        self._is_unanswered = False  # it has reached somebody since it was joined
        self._silence: IDelayedCall | None = None
        self._joins: Waiters[None] = Waiters()
        self._end: Ended | None = None
        self._ends_waited_for: Waiters[Ended] = Waiters()
        self._ending: Waiters[None] | None = None
        if isinstance(central, tuple):
            host, port = central
            central = HostnameEndpoint(self._reactor, host, port, timeout=limits.dial_timeout)
        self._sender = Sender(
            self._reactor,
            central,
            self,
            limits=limits,
            redial_seconds=None,
            # In time for its own end, and for a central that waits for its answer to a welcome.
            pause_max=min(heartbeat_timeout, limits.join_timeout) / DIALS_MIN,
            on_reached=self._reached,
            rng=rng,
        )
        self._hop = Hop(
            self._reactor,
            account=self._account,
            sender=self._sender,
            codec=self._codec,
            limits=limits,
            acks=acks,
        )
        self._handlers = Handlers(reactor, on_message, threads=threads, limits=limits)

    # --- start and end

    @property
    def address(self) -> tuple[str, int] | None:
        """The address of its own server; None before `start` has fired."""
        return self._listener.address

    @property
    def session(self) -> str | None:
        """The name of the session, None before the first."""
        return self._session or None

    @property
    def is_joined(self) -> bool:
        """Whether messages can leave now."""
        return self.state is State.JOINED

    def start(self) -> Deferred[tuple[str, int]]:
        """Listen, then dial the central; fires with the own address. Fails with `CannotListen`."""
        check_thread()
        if self.state is not State.IDLE:
            raise RuntimeError("a remote starts once; make another one")
        Service.startService(self)
        self.state = State.SAYING_HELLO
        d = self._listener.listen()
        return d.addCallbacks(self._listening, self._not_listening)

    def _begin(self) -> Deferred[tuple[str, int]]:
        return self.start()

    def _listening(self, _: object) -> tuple[str, int]:
        if self.state is State.SAYING_HELLO:
            self._sender.start()
        address = self.address
        assert address is not None
        return address

    def _not_listening(self, failure: Failure) -> Failure:
        if self.state is State.SAYING_HELLO:
            self.state = State.IDLE
        return failure

    def stopService(self) -> Deferred[None]:
        """End: handlers that run end and are answered, what is written leaves.

        The central is not told; what has not begun is not answered.
        """
        check_thread()
        super().stopService()
        return self._finish(Ended("stop"))

    def when_joined(self) -> Deferred[None]:
        """Fire when the central has answered; at once where it has. `NotJoined` after the end."""
        check_thread()
        if self.state is State.ENDED:
            return fail(NotJoined("this remote has ended"))
        return succeed(None) if self.is_joined else self._joins.wait()

    def when_shut_down(self) -> Deferred[Ended]:
        """Fire when the remote has ended, whoever wished it; at once where it has."""
        check_thread()
        if self.state is State.ENDED and self._end is not None:
            return succeed(self._end)
        return self._ends_waited_for.wait()

    # --- sending

    def send(self, content: Any) -> Deferred[Entry]:
        """Send to the central; fires with a receipt once it waits in memory.

        `receipt.acknowledged()` fires when the central's handler has ended. Fails with `QueueFull`,
        `MessageTooLarge`, `NotJoined` after the end; `TypeError` for content that the codec does
        not know. Raises `RuntimeError` on a thread of handlers.
        """
        check_thread()
        try:
            if self.state in (State.ENDING, State.ENDED):
                raise NotJoined("this remote has ended")
            entry = Entry(prepare(self._codec, content, self._limits))
            self._hop.add(entry)
        except Exception:
            return fail(Failure())
        return succeed(entry)

    # --- from its client

    def sender_connected(self) -> None:
        """See `SenderUser`."""
        self._hop.connected()
        address = self.address
        assert address is not None
        self._look_where_it_is_dialled(address[0])
        self._nonce = secrets.token_hex(8)
        hello = Hello(
            port=address[1],
            host=self._announce_host,
            id=self.id,
            acks=self._acks,
            previous=self._account.incoming.previous,
            nonce=self._nonce if self._acks else None,
            payload_bytes=self._limits.payload_bytes if self._acks else None,
            window=self._limits.window if self._acks else None,
        )
        self._hop.control(hello)
        if not self._acks:  # to those who speak so nobody says that they are joined
            self._join()

    def _look_where_it_is_dialled(self, server: str) -> None:
        """Say so where the central will dial what the own server does not listen at."""
        dialled = self._announce_host or self._sender.host
        if not self._acks or dialled is None or ip_of(dialled) is None or ip_of(server) is None:
            return
        if server in EVERYWHERE:
            is_there = server == "::" or ip_of(spelled(dialled)).version == 4  # type: ignore[union-attr]  # it is an address
        else:
            is_there = spelled(server) == spelled(dialled)
        if not is_there:
            self._log.warn(
                "the central will dial {dialled}, but the server of this remote listens at "
                "{server}: say `listen`, or `announce_host`",
                dialled=dialled,
                server=server,
            )

    def _reached(self) -> None:
        if not self._is_unanswered:  # else whom nobody answers says hello for ever
            self._is_unanswered = True
            self._alive_at = self._looked_at = self._now()
        if self._silence is None:
            seconds = min(self._timeout, LOOK_SECONDS)
            self._silence = self._reactor.callLater(seconds, self._look_for_life)

    def sender_writable(self) -> None:
        """See `SenderUser`."""
        self._hop.writable()

    def sender_lost(self, reason: str) -> None:
        """See `SenderUser`."""
        self._log.info("connection with the central is lost: {reason}", reason=reason)
        self._hop.close()
        if self.state is State.JOINED:
            self.state = State.SAYING_HELLO

    def sender_gave_up(self, reason: str) -> None:
        """See `SenderUser`. It never does: silence ends a remote."""

    # --- from the listener

    def connection_opened(self, inbound: Inbound) -> None:
        """See `ListenerUser`."""

    def connection_lost(self, inbound: Inbound, reason: str) -> None:
        """See `ListenerUser`. The central dials again, or the silence is too long."""
        if inbound is self._from_central:
            self._from_central = None

    def item_received(self, inbound: Inbound, item: Item, size: int) -> None:
        """See `ListenerUser`."""
        if not self._acks:
            self._from_central = inbound  # not who connected first: that says nothing
            if type(item) is Message and isinstance(item.logged, Heartbeat | Shutdown):
                item = item.logged  # a central of those times speaks through a logger, too
        is_central = inbound is self._from_central
        try:
            match item:
                case Message():
                    self._message(inbound, item, size)
                case Welcome() if self._acks:
                    self._welcome(inbound, item)
                case Heartbeat() if is_central:
                    self.last_heartbeat = self._alive_at = self._now()
                    self._is_unanswered = False
                case Ack() if is_central:
                    if self._acks and self._account.incoming.is_idle:
                        inbound.prove()
                    self._hop.acknowledged(item)
                case Shutdown() if is_central:
                    self._shutdown(item)
                case Shutdown() | Heartbeat() | Ack():
                    pass  # of a session before this one: it is nothing to this one
                case _:
                    inbound.abort(f"{type(item).__name__.lower()} has no meaning here")
        except (BadAck, BadPayload) as error:
            inbound.abort(str(error))

    def _welcome(self, inbound: Inbound, item: Welcome) -> None:
        if item.nonce != self._nonce or self.state in (State.ENDING, State.ENDED):
            inbound.abort("a welcome that is not the answer to this hello")
            return
        self._from_central = inbound
        if item.session != self._session:
            continues = item.previous is not None
            upto = item.previous[1] if item.previous is not None else 0
            self._hop.close()
            self._account.begin(item.session, continues=continues, upto=upto)
            self._account.confirmed(item.payload_bytes, item.window)
            self._session = item.session
        if self._account.incoming.is_idle:
            inbound.prove()
        self._hop.control(Joined(item.session))
        self._is_unanswered = False
        self._join()

    def _join(self) -> None:
        self.state = State.JOINED
        self._hop.open()
        if self._on_joined is not None:
            d = maybeDeferred(self._on_joined)
            d.addErrback(lambda f: self._log.failure("an event of a remote", f))
        self._joins.fire(None)

    def _message(self, inbound: Inbound, item: Message, size: int) -> None:
        incoming = None
        if item.session is not None and item.number is not None:
            incoming = self._account.incoming
            if not incoming.accept(item.session, item.number):
                self._hop.handled(incoming)
                return
        key = CENTRAL if incoming is not None or inbound is self._from_central else None
        number = item.number
        message = SessionMessage(item.content, key, inbound.peer, item.session, number, item.record)
        outcome = (
            self._handlers.submit(key or inbound, message)
            if item.failure is None
            else self._handlers.fail(key or inbound, item.failure, inbound.peer)
        )
        waits = isinstance(outcome, Job)

        def ended(failure: str | None) -> None:
            if waits:
                inbound.release(size)
            if incoming is not None and number is not None:
                incoming.done(number, failure)
                self._hop.handled(incoming)

        if isinstance(outcome, Job):
            inbound.hold(size)
            outcome.then(ended)
        else:
            ended(outcome)

    def _shutdown(self, item: Shutdown) -> None:
        if not self._acks:
            self._handlers.after(CENTRAL, lambda _: self._shut_down(item))
            return
        incoming = self._account.incoming
        if item.session is None or item.number is None:
            return
        if not incoming.accept(item.session, item.number):
            self._hop.handled(incoming)
            return
        number = item.number

        def done(_: str | None) -> None:
            incoming.done(number)
            if incoming is self._account.incoming:
                self._shut_down(item)

        self._handlers.after(CENTRAL, done)

    def _shut_down(self, item: Shutdown) -> None:
        self._finish(Ended("central", item.reason))

    # --- inside

    def _look_for_life(self) -> None:
        """End where the central has been silent for too long; a look is at most a second late."""
        self._silence = None
        now = self._now()
        inbound = self._from_central
        # What is on its way cannot be heard before: bytes of a message that arrive, and what we
        # do not read ourselves.
        if (
            inbound is not None
            and (
                inbound.is_paused or (inbound.has_partial and inbound.received_at > self._looked_at)
            )
        ) or now - self._looked_at > 2 * LOOK_SECONDS:
            self._alive_at += now - self._looked_at
        self._looked_at = now
        rest = self._alive_at + self._timeout - now
        if rest <= 0:
            self._finish(Ended("silence", f"no heartbeat for {self._timeout} s"))
        else:
            self._silence = self._reactor.callLater(min(rest, LOOK_SECONDS), self._look_for_life)

    def _finish(self, end: Ended) -> Deferred[None]:
        if self.state is State.ENDED:
            return succeed(None)
        if self._ending is None:
            self._ending = Waiters()
            self._end = end
            d = Deferred.fromCoroutine(self._close(end))
            d.addErrback(lambda f: self._log.failure("end of a remote", f))
            d.addBoth(self._ended, end)
        ending = self._ending
        return ending.wait() if ending is not None else succeed(None)

    async def _close(self, end: Ended) -> None:
        if self._on_shutdown is not None:
            told = maybeDeferred(self._on_shutdown, end)
            try:
                await told.addTimeout(self._limits.stop_seconds, self._reactor)
            except BaseException:
                self._log.failure("an event of a remote")
        handlers = self._handlers.stop()
        if end.by != "silence":  # else nobody hears their answers, nor what they send
            await handlers
        if end.by == "central" and self._acks and self.state is State.SAYING_HELLO:
            # Its client is broken, and the last word would be lost with all answers before it.
            back = self._joins.wait().addTimeout(self._limits.stop_seconds, self._reactor)
            await back.addErrback(lambda _: None)
        self._hop.end()
        self.state = State.ENDING
        if self._silence is not None and self._silence.active():
            self._silence.cancel()
        self._silence = None
        self._hop.close()
        await self._sender.stop()
        await self._listener.stop()
        await handlers
        self._account.end("the remote ended")

    def _ended(self, _: object, end: Ended) -> None:
        self.state = State.ENDED
        ending, self._ending = self._ending, None
        if ending is not None:
            ending.fire(None)
        self._joins.fail(NotJoined("this remote has ended"))
        self._ends_waited_for.fire(end)


def _near(host: str, is_dialled: bool) -> str:
    """Return where a remote listens whose central is at a host, so that this can dial it."""
    ip = ip_of(host)
    if ip is None or (is_local_host(host) and ip_of(spelled(host)).version == 4):  # type: ignore[union-attr]  # it is an address
        return LISTEN
    if is_local_host(host):
        return LISTEN_IPV6
    if not is_dialled:
        return LISTEN
    raise ValueError(
        f"listen: by default the server of a remote is of loopback, where a central at {host} "
        "cannot dial it; an address that it can is needed"
    )
