"""The central of sessions: its server, the dictionary of its remotes, and a client for each.

    Listener ─ Hello ─► Member (dials back) ─ joined ─► `remotes`
             ─ Message ─► Handlers ─► on_message
    send ─► Account.outgoing ─► Member ─► the remote's server

How one remote is dialled and told is `member`'s; what waits in a node, `durable`'s.
"""

from __future__ import annotations

import random
import secrets
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import Any, Generic, TypeVar

from twisted.application.service import Service
from twisted.internet.defer import (
    CancelledError,
    Deferred,
    TimeoutError,  # noqa: A004  # its own, that `addTimeout` fails with
    fail,
    gatherResults,
    maybeDeferred,
    succeed,
)
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.interfaces import (
    IDelayedCall,
    IReactorTime,
    IStreamClientEndpoint,
    IStreamServerEndpoint,
)
from twisted.internet.ssl import CertificateOptions
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from msgservice.arguments import (
    check_flags,
    check_functions,
    check_methods,
    check_seconds,
    wrong,
)
from msgservice.clock import monotonic_of, timed, wall_of
from msgservice.faces.listening import ListeningService
from msgservice.faces.sessions.content.codec import ISessionCodec
from msgservice.faces.sessions.departed import Departed
from msgservice.faces.sessions.durable import DurableRemotes
from msgservice.faces.sessions.envelope import Ack, Heartbeat, Hello, Item, Joined, Message
from msgservice.faces.sessions.errors import BadAck, BadPayload, NotJoined
from msgservice.faces.sessions.handlers import (
    Handlers,
    Job,
    Outcome,
    SessionMessage,
    check_thread,
)
from msgservice.faces.sessions.hop import Account, prepare
from msgservice.faces.sessions.incoming import Incoming
from msgservice.faces.sessions.limits import SessionLimits
from msgservice.faces.sessions.listener import (
    LISTEN,
    UNIX,
    Inbound,
    Listener,
    spelled,
)
from msgservice.faces.sessions.member import Key, Member, named
from msgservice.faces.sessions.outgoing import Entry
from msgservice.waiters import Waiters

ENDED = "this central has ended"
HELLO_SECONDS = 0.1  # from one hello of a connection to the next
ARRIVING_SECONDS = 5.0  # since its last byte, that a message is taken to be on its way

T = TypeVar("T")

# What a connection gives while `accept` is asked: its bytes, if it is counted, and how it goes on.
_Waited = tuple[int | None, Callable[[], None]]


class _Events(Generic[T]):
    """The waits for what happens to a remote: to one of a key, or to any."""

    def __init__(self) -> None:
        self._waiting: dict[Key | None, Waiters[T]] = {}
        self._swept_at = 16

    def wait(self, key: Key | None) -> Deferred[T]:
        """Return a Deferred of the next event of a key; None: of any."""
        if len(self._waiting) >= self._swept_at:  # of keys for which nobody waits any more
            self._waiting = {k: waiters for k, waiters in self._waiting.items() if waiters}
            self._swept_at = 2 * len(self._waiting) + 16
        return self._waiting.setdefault(key, Waiters()).wait()

    def fire(self, key: Key, event: T) -> None:
        """Tell those who wait for this key, and those who wait for any."""
        for waiters in (self._waiting.pop(key, None), self._waiting.pop(None, None)):
            if waiters is not None:
                waiters.fire(event)

    def fail(self, error: Exception) -> None:
        """Tell all that no event will come."""
        waiting, self._waiting = self._waiting, {}
        for waiters in waiting.values():
            waiters.fail(error)


class Central(ListeningService):
    """The central: remotes say hello to it, and it knows how to reach each.

    Args:
        reactor: clock, sockets and threads.
        listen: where remotes say hello, a Twisted endpoint or its description; by default a port
            of loopback that the kernel chooses, and `address` tells.
        codec: what content may be, for both directions (`SafeCodec()`).
        on_message: the handler, called with a `SessionMessage`; one at a time for each remote, in
            order. It may return a Deferred or be a coroutine function; with `threads` it may block.
        on_joined, on_left: called with the `Member`, and with the reason when it has left.
        threads: so many threads of its own for `on_message`; 0: it runs on the reactor.
        heartbeat: seconds between two.
        node: a `DurableRemotes`: what is for remotes that have an id waits in a node.
        accept: says whether a hello from this connection may join: `accept(hello, inbound)`. It may
            return a Deferred or be a coroutine function, with an answer within `join_timeout`. Only
            True lets in.
        accept_hosts: hosts that a hello may name although it comes from another address.
        tls: for its server, `twisted.internet.ssl.CertificateOptions`; one that verifies clients
            may listen to all.
        dial: makes the endpoint of a remote's server: `dial(host, port)`, for TLS say.
        insecure: whether the server may listen to others than this machine unauthenticated.
        logged_hello: whether the text of a log record may be the hello of its connection, as of
            remotes that say it through a logger. Who can have a text logged there is one then.
        rng: floats from 0 to 1, for the pauses between attempts to dial.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: IReactorTime,
        *,
        listen: str | IStreamServerEndpoint = LISTEN,
        codec: ISessionCodec | None = None,
        on_message: Callable[[SessionMessage], object] | None = None,
        on_joined: Callable[[Member], object] | None = None,
        on_left: Callable[[Member, str], object] | None = None,
        threads: int = 0,
        heartbeat: float = 5.0,
        node: DurableRemotes | None = None,
        accept: Callable[[Hello, Inbound], object] = lambda hello, inbound: True,
        accept_hosts: Collection[str] = (),
        dial: Callable[[str, int], IStreamClientEndpoint] | None = None,
        tls: CertificateOptions | None = None,
        limits: SessionLimits | None = None,
        insecure: bool = False,
        logged_hello: bool = False,
        rng: Callable[[], float] = random.random,
    ) -> None:
        check_seconds(heartbeat=heartbeat)
        check_functions(on_joined=on_joined, on_left=on_left, dial=dial)
        check_methods("a function is needed", ("__call__",), accept=accept, rng=rng)
        if not (node is None or isinstance(node, DurableRemotes)):
            raise wrong("node", node, "DurableRemotes are needed")
        if isinstance(accept_hosts, str | bytes):
            raise TypeError("accept_hosts is one text: a list of hosts is needed")
        check_flags(logged_hello=logged_hello)
        self._reactor = timed(reactor)
        self._now, self._wall = monotonic_of(reactor), wall_of(reactor)
        self._listener = Listener(
            reactor,
            user=self,
            listen=listen,
            codec=codec,
            limits=limits,
            tls=tls,
            insecure=insecure,
        )
        self._codec, self._limits = self._listener.codec, self._listener.limits
        self._on_joined, self._on_left = on_joined, on_left
        self._heartbeat, self._beats = heartbeat, 0
        self._beating: IDelayedCall | None = None
        self._has_begun = self._has_ended = False
        self._ending: Waiters[None] | None = None  # of a wait that is cancelled nothing else is
        self._is_over = False
        self._durable = node
        self._logged_hello = logged_hello
        self._accept, self._accept_hosts = accept, frozenset(map(spelled, accept_hosts))
        # Whose hello `accept` has not decided, and what its connection gives meanwhile.
        self._asked: dict[Inbound, tuple[Deferred[Any], list[_Waited]]] = {}
        self._rng = rng
        self._dial = dial if dial is not None else self._by_name
        self._members: dict[Key, Member] = {}
        self._per_host: Counter[str] = Counter()  # so many of them
        self._heard_over: dict[Member, Inbound] = {}  # the connection of its hello, while it stands
        # Who says to be a remote that is joined, and what puts it in that one's place.
        self._candidates: dict[Key, tuple[Member, Inbound, Callable[[], None]]] = {}
        self._left = Departed(self._limits)
        self._joins: _Events[Member] = _Events()
        self._leaves: _Events[tuple[Member, str]] = _Events()
        self._handlers = Handlers(reactor, on_message, threads=threads, limits=self._limits)

    # --- start and end

    @property
    def address(self) -> tuple[str, int] | None:
        """The address where remotes say hello; None before `listen` has fired."""
        return self._listener.address

    def listen(self) -> Deferred[tuple[str, int]]:
        """Begin; fires with the address. Fails with `CannotListen`."""
        check_thread()
        if self._has_begun:
            return fail(RuntimeError("a central begins once; make another one"))
        self._has_begun = True
        Service.startService(self)
        d = self._listener.listen()
        return d.addCallbacks(self._listening, self._not_listening)

    def _begin(self) -> Deferred[tuple[str, int]]:
        return self.listen()

    def _listening(self, _: object) -> tuple[str, int]:
        if self.running and self._beating is None:
            self._beating = self._reactor.callLater(self._heartbeat, self._beat)
        address = self.address
        assert address is not None
        return address

    def _not_listening(self, failure: Failure) -> Failure:
        self._has_begun = self._has_ended  # it may begin at another time, unless it was stopped
        return failure

    def stopService(self) -> Deferred[None]:
        """End: no more hellos, what is written leaves, handlers that run end."""
        check_thread()
        super().stopService()
        self._has_begun = self._has_ended = True
        beating, self._beating = self._beating, None
        if beating is not None and beating.active():
            beating.cancel()
        if self._ending is None:
            self._ending = Waiters()
            ending = Deferred.fromCoroutine(self._stop())
            ending.addErrback(lambda f: self._log.failure("end of a central", f))
            ending.addCallback(self._ended)
        return self._ending.wait() if not self._is_over else succeed(None)

    def _ended(self, _: object) -> None:
        self._is_over = True
        self._joins.fail(NotJoined(ENDED))  # whatever went wrong meanwhile
        self._leaves.fail(NotJoined(ENDED))
        if self._ending is not None:
            self._ending.fire(None)

    async def _stop(self) -> None:
        for asked, _ in tuple(self._asked.values()):
            asked.cancel()
        closed = self._listener.stop()
        await self._handlers.stop()
        await closed
        for key in tuple(self._candidates):
            self._drop_candidate(key)
        members = list(self._members.values())
        # Before members leave: that the central ends is no attempt at what is under way.
        left_node = self._durable.stop() if self._durable is not None else succeed(None)
        await gatherResults([member.stop("the central ends") for member in members])
        await left_node

    # --- who is there

    @property
    def remotes(self) -> Mapping[Key, Member]:
        """The remotes, by their ids, else by the addresses of their servers. A copy."""
        return dict(self._members)

    def when_joined(self, key: Key | None = None) -> Deferred[Member]:
        """Fire with a member that is there: the next one to join; of a key, also one that is.

        Fails with `NotJoined` where the central ends.
        """
        check_thread()
        if self._has_ended:
            return fail(NotJoined(ENDED))
        member = self._members.get(key) if key is not None else None
        if member is not None and member.is_joined:
            return succeed(member)
        return self._joins.wait(key)

    def when_left(self, key: Key | None = None) -> Deferred[tuple[Member, str]]:
        """Fire with the next member that leaves, one of this key if it is given, and the reason.

        Fails with `NotJoined` where the central ends.
        """
        check_thread()
        if self._has_ended and not self._members:
            return fail(NotJoined(ENDED))
        return self._leaves.wait(key)

    # --- sending

    def send(self, key: Key, content: Any) -> Deferred[Any]:
        """Send to one remote; fires with a receipt: with a node and an id when it is on its disk.

        `receipt.acknowledged()` fires when the remote's handler has ended. Fails with `NotJoined`
        for a remote that is unknown, `QueueFull`, `MessageTooLarge`; `TypeError` for content that
        the codec does not know. Raises `RuntimeError` on a thread of handlers.
        """
        check_thread()
        try:
            return self._send(key, prepare(self._codec, content, self._limits))
        except Exception:
            return fail(Failure())

    def broadcast(self, content: Any) -> Deferred[dict[Key, Any]]:
        """Send to all remotes; fires with a receipt or an error for each, by its key."""
        check_thread()
        try:
            prepared = prepare(self._codec, content, self._limits)
        except Exception:
            return fail(Failure())
        told: dict[Key, Any] = {}

        def send(key: Key) -> Deferred[None]:
            d = maybeDeferred(self._send, key, prepared)
            d.addErrback(lambda failure: failure.value)
            return d.addCallback(lambda outcome: told.__setitem__(key, outcome))

        return gatherResults([send(key) for key in self._members]).addCallback(lambda _: told)

    def shutdown(self, key: Key, reason: str | None = None) -> Deferred[None]:
        """Tell a remote to end; fires when it has handled all before that and says so.

        Fails with `NotJoined` for one that is not there: nothing is kept for it then; with
        `QueueFull`, as a message; with `BadControl` for a reason of more than 1,000 characters.
        """
        check_thread()
        member = self._members.get(key)
        if member is None:
            return fail(NotJoined(f"{named(key)} is not joined"))
        try:
            if self._durable is not None and member.is_durable:
                return self._durable.shut_down(member, reason)
            return member.shut_down(reason).acknowledged()
        except Exception:
            return fail(Failure())

    def _send(self, key: Key, prepared: bytes) -> Deferred[Any]:
        member = self._members.get(key)
        if self._durable is not None and (
            isinstance(key, str) if member is None else member.is_durable
        ):
            return self._durable.send(str(key), prepared)
        if member is None:
            raise NotJoined(f"{named(key)} is not joined")
        entry = Entry(prepared)
        member.add(entry)
        return succeed(entry)

    # --- from the listener

    def connection_opened(self, inbound: Inbound) -> None:
        """See `ListenerUser`."""

    def connection_lost(self, inbound: Inbound, reason: str) -> None:
        """See `ListenerUser`. Its remote says hello again, if it is still there."""
        if inbound in self._asked:
            self._asked[inbound][1].append((None, lambda: self.connection_lost(inbound, reason)))
        member: Member | None = inbound.owner
        if member is not None:
            if self._heard_over.get(member) is inbound:
                del self._heard_over[member]
            member.unheard()
            if self._is_candidate(member):  # and so it can never say that it has joined
                self._drop_candidate(member.key)

    def item_received(self, inbound: Inbound, item: Item, size: int) -> None:
        """See `ListenerUser`."""
        if self._asked and inbound in self._asked:
            inbound.hold(size)  # until `_answered`
            self._asked[inbound][1].append((size, lambda: self.item_received(inbound, item, size)))
            return
        member: Member | None = inbound.owner
        try:
            if type(item) is Message:
                if (
                    member is None
                    and item.session is None
                    and item.failure is None
                    and item.logged is None
                ):
                    # Most that has no number is of who has said no hello: what somebody logged.
                    content, record = item.content, item.record
                    message = SessionMessage(content, None, inbound.peer, None, None, record)
                    outcome = self._handlers.submit(inbound, message)
                    if outcome is not None:
                        self._follow(inbound, None, None, None, size, outcome)
                    return
                if item.logged is not None and member is None and self._logged_hello:
                    logged = item.logged
                    # Our own ends write no hello as text, and nobody else acknowledges.
                    if isinstance(logged, Hello) and not logged.acks:
                        self._hello(inbound, logged)
                        return
                self._message(inbound, member, item, size)
                return
            match item:
                case Hello():
                    self._hello(inbound, item)
                case Joined() if member is not None:
                    if item.session == member.session and self._is_candidate(member):
                        self._install(member)
                    member.joined(item.session)
                    self._prove(inbound, member)
                case Ack() if member is not None:
                    self._prove(inbound, member)
                    member.acknowledged(item)
                case _:
                    inbound.abort(f"{type(item).__name__.lower()} has no meaning here")
        except (BadAck, BadPayload) as error:
            inbound.abort(str(error))

    def _prove(self, inbound: Inbound, member: Member) -> None:
        """Let what a remote that has joined says not wait for what others have.

        Unless it has something from an earlier connection that is not handled: by coming back
        nobody has more of that.
        """
        if member.acks and member.is_joined and member.account.incoming.is_idle:
            inbound.prove()

    def _message(self, inbound: Inbound, member: Member | None, item: Message, size: int) -> None:
        incoming = None
        if item.session is not None and item.number is not None:
            if member is None:
                raise BadPayload("a message of a session before any hello")
            incoming = member.account.incoming
            if not incoming.accept(item.session, item.number):
                member.handled(incoming)  # what comes again wants its answer again
                return
        elif member is not None and member.acks and not member.is_joined:
            member = None  # one that numbers says that so; who proves nothing may be anybody
        key = member.key if member is not None else None
        message = SessionMessage(
            item.content, key, inbound.peer, item.session, item.number, item.record
        )
        lane = member.account if member is not None else inbound
        outcome = (
            self._handlers.submit(lane, message)
            if item.failure is None
            else self._handlers.fail(lane, item.failure, inbound.peer)
        )
        if incoming is not None or outcome is not None:
            self._follow(inbound, member, incoming, item.number, size, outcome)

    def _follow(
        self,
        inbound: Inbound,
        member: Member | None,
        incoming: Incoming | None,
        number: int | None,
        size: int,
        outcome: Outcome,
    ) -> None:
        """Answer a message when its handler has ended, and count it until then."""
        waits = isinstance(outcome, Job)

        def ended(failure: str | None) -> None:
            if waits:
                inbound.release(size)
            if incoming is None or number is None or member is None:
                return
            incoming.done(number, failure)
            current = self._members.get(member.key)
            if current is not None:
                current.handled(incoming)
            elif failure is not None:
                self._left.count_failures(member.key, member.account)

        if isinstance(outcome, Job):
            inbound.hold(size)
            outcome.then(ended)
        else:
            ended(outcome)

    def _hello(self, inbound: Inbound, hello: Hello) -> None:
        host = spelled(hello.host or self._home_of(inbound))
        reason = self._refusal(inbound, hello, host)
        if reason is not None:
            inbound.abort(f"hello is refused: {reason}")
            return
        pause = 0.0
        given: Deferred[Any]
        if inbound.owner is None:
            given = maybeDeferred(self._accept, hello, inbound)
        elif inbound.is_lost:  # who said it is not heard any more, and says it on another one
            return
        else:  # each is dialled: many at once would hold up all others
            pause = HELLO_SECONDS
            given = deferLater(self._reactor, pause, maybeDeferred, self._accept, hello, inbound)
        asked: Deferred[Any] = Deferred(lambda _: given.cancel())
        self._asked[inbound] = asked, []
        given.addBoth(_hand_on, asked)
        asked.addTimeout(pause + self._limits.join_timeout, self._reactor)
        asked.addCallback(self._accepted, inbound, hello, host)
        asked.addErrback(self._not_accepted, inbound)
        asked.addCallback(self._answered, inbound)

    def _accepted(self, answer: object, inbound: Inbound, hello: Hello, host: str) -> bool:
        address = (host, hello.port)
        key: Key = hello.id if hello.id is not None else address
        reason = None
        if answer is not True:
            reason = "not accepted"
        elif not self.running:
            reason = "the central ends"
        elif inbound.owner is not None and inbound.owner.key != key:
            reason = "there was one of another remote on this connection"
        else:
            reason = self._has_no_place(key, host)
        if reason is not None:
            inbound.abort(f"hello is refused: {reason}")
            return False
        self._admit(inbound, hello, address, key)
        return True

    def _not_accepted(self, failure: Failure, inbound: Inbound) -> bool:
        if failure.check(BadAck) is not None:
            reason = failure.getErrorMessage()
        elif failure.check(CancelledError, TimeoutError) is not None:
            reason = f"accept has not answered within join_timeout = {self._limits.join_timeout} s"
        else:
            self._log.failure("a hello could not be answered", failure)
            reason = "a fault of our own"
        inbound.abort(f"hello is refused: {reason}")
        return False

    def _answered(self, is_let_in: bool, inbound: Inbound) -> None:
        waited = self._asked.pop(inbound)[1]
        try:
            for _, go_on in waited if is_let_in else ():
                go_on()
        finally:
            for size, _ in waited:
                if size is not None:
                    inbound.release(size)

    def _admit(self, inbound: Inbound, hello: Hello, address: tuple[str, int], key: Key) -> None:
        endpoint = self._dial(*address)  # it may raise, and nothing has changed then
        old = self._members.get(key)
        # Who is there stays, until the other one has proven to be the same: anybody can say so.
        has_to_prove = old is not None and old.acks and old.is_joined
        if has_to_prove and not hello.acks:
            inbound.abort("hello is refused: it acknowledges nothing, and who is joined does")
            return
        if old is not None and old.acks != hello.acks:  # what waits for the one is not the other's
            old.stop("it came back with acks changed")
            old = None
        account = old.account if old is not None else self._left.get(key) if hello.acks else None
        if account is None:
            account = Account(self._limits)
        session = secrets.token_hex(8)
        continues = hello.acks and account.knows(hello.previous)
        upto = hello.previous[1] if hello.previous is not None and continues else 0
        member = Member(
            self._reactor,
            key=key,
            hello=hello,
            address=address,
            session=session,
            previous=account.incoming.previous if continues else None,
            account=Account(self._limits) if has_to_prove else account,
            endpoint=endpoint,
            codec=self._codec,
            user=self,
            limits=self._limits,
            rng=self._rng,
        )

        def install() -> None:
            # It may raise, and nothing has changed then.
            account.begin(session, continues=continues, upto=upto)
            member.adopt(account)
            self._left.forget(key)
            old = self._members.get(key)
            if old is not None:
                old.replace()
            self._put(key, member)

        if has_to_prove and continues:
            account.announce(session)
        elif not has_to_prove:
            install()
        self._drop_candidate(key)
        if has_to_prove:
            self._candidates[key] = member, inbound, install
        if inbound.owner is not None:
            self._heard_over.pop(inbound.owner, None)
        inbound.owner = member
        self._heard_over[member] = inbound
        member.start()

    def _is_candidate(self, member: Member) -> bool:
        return self._candidates.get(member.key, (None,))[0] is member

    def _install(self, member: Member) -> None:
        """Put a candidate in the place of who was joined. Raises `BadAck`; it has ended then."""
        install = self._candidates.pop(member.key)[2]
        try:
            install()
        except BadAck:  # it has not left, since it was never there
            member.replace()
            raise

    def _drop_candidate(self, key: Key) -> None:
        if key in self._candidates:
            self._candidates.pop(key)[0].replace()

    def _refusal(self, inbound: Inbound, hello: Hello, host: str) -> str | None:
        if not self.running:
            return "the central ends"
        if host != self._home_of(inbound) and host not in self._accept_hosts:
            return "its host is not the address that it comes from, nor in accept_hosts"
        if hello.port < self._limits.port_min:
            return f"port {hello.port} is below port_min = {self._limits.port_min}"
        return None

    def _home_of(self, inbound: Inbound) -> str:
        """Return the host that somebody is at: over a Unix socket this one."""
        return "127.0.0.1" if inbound.host == UNIX else inbound.host

    def _put(self, key: Key, member: Member | None) -> None:
        """Let a member be the one of its key; None: nobody is."""
        old = self._members.pop(key, None)
        if old is not None:
            host = old.address[0]
            self._per_host[host] -= 1
            if not self._per_host[host]:
                del self._per_host[host]
        if member is not None:
            self._members[key] = member
            self._per_host[member.address[0]] += 1

    def _has_no_place(self, key: Key, host: str) -> str | None:
        """Return why there is no place for a remote, unless it has one."""
        places, members, per_host = self._limits.remotes_max, self._members, self._per_host[host]
        old = members.get(key)
        if old is not None and old.address[0] == host:
            return None
        if per_host >= self._limits.remotes_per_host:
            return f"remotes_per_host = {self._limits.remotes_per_host} reached"
        if old is not None:
            return None
        if len(members) >= places:
            return f"remotes_max = {places} reached"
        # Whoever can say hello could take all places with remotes that are not there.
        if per_host * 2 >= places:
            away = sum(1 for m in members.values() if not m.is_joined and m.address[0] == host)
            if away * 2 >= places:
                return f"half of remotes_max = {places} are of this host, and have not joined"
        return None

    def _by_name(self, host: str, port: int) -> IStreamClientEndpoint:
        return HostnameEndpoint(self._reactor, host, port, timeout=self._limits.dial_timeout)

    # --- from members

    def member_joined(self, member: Member) -> None:
        """See `MemberUser`."""
        if self._durable is not None and member.is_durable:
            self._durable.attach(member)
        self._tell(self._on_joined, member)
        self._joins.fire(member.key, member)

    def member_left(self, member: Member, reason: str) -> None:
        """See `MemberUser`."""
        if self._is_candidate(member):
            _, inbound, _ = self._candidates.pop(member.key)
            inbound.abort(f"it has not proven to be the remote that is joined: {reason}")
            return
        if self._members.get(member.key) is member:
            self._put(member.key, None)
            if not member.is_ending:  # else it would take itself for joined, and say no other hello
                self._end_hearing(member, f"its remote has left: {reason}")
            if member.account.was_confirmed:  # else who never joins would let others be forgotten
                self._left.keep(member.key, member.account)
            if self._durable is not None and member.is_durable:
                self._durable.detach(member)
        self._tell(self._on_left, member, reason)
        self._leaves.fire(member.key, (member, reason))

    def hear_no_more(self, member: Member) -> None:
        """See `MemberUser`."""
        self._end_hearing(
            member, "it did not say that it ends, and what was said to it may be lost"
        )

    def is_arriving(self, member: Member) -> bool:
        """See `MemberUser`."""
        inbound = self._heard_over.get(member)
        if inbound is None:
            return False
        heard = inbound.has_partial and self._now() - inbound.received_at < ARRIVING_SECONDS
        return heard or inbound.is_paused

    def _end_hearing(self, member: Member, reason: str) -> None:
        inbound = self._heard_over.pop(member, None)
        if inbound is not None:
            inbound.abort(reason)

    def _tell(self, function: Callable[..., object] | None, *arguments: object) -> None:
        if function is not None:
            d = maybeDeferred(function, *arguments)
            d.addErrback(lambda f: self._log.failure("an event of a central", f))

    def _beat(self) -> None:
        self._beating = self._reactor.callLater(self._heartbeat, self._beat)
        self._beats += 1
        payload = self._codec.control(Heartbeat(self._beats, self._wall() / 1000))
        now = self._now()
        for member in tuple(self._members.values()):
            member.beat(payload, now)


def _hand_on(result: Any, asked: Deferred[Any]) -> Any:
    """Give an answer of `accept` to a hello, unless that is too late, and leave it as it is.

    It may be the answer to others as well; and who catches that it is cancelled answers for ever.
    """
    if not asked.called:
        asked.callback(result)
    return None if isinstance(result, Failure) else result
