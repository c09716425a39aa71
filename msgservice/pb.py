"""`PbPeer`: one end of a Perspective Broker connection of which both ends are the same.

Either dials, or both, and each calls what the other exposes, over the one connection that stays. At
the other end is another `PbPeer`, or a node, whose perspective it calls then.

    dialled   login at the other's root -> its end -> hello -> usable
    accepted  login, hello, judged here           -> usable

*Both may dial at once.* Whoever is dialled judges by what the dialler says in its hello: who it is,
which connection it holds, and which of this one's dials it has seen last. Of two that cross, the
one stays that was dialled by the smaller instance id; in any other case the newest does. A
connection is usable only when it was judged, so the one that goes has carried no call.

Frames are not its business (`transport.pb.channel`), logins at a node are `node.perspectives`'s.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any
from weakref import ref

from twisted.internet.defer import Deferred, fail, gatherResults, succeed
from twisted.internet.interfaces import IDelayedCall, IListeningPort, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.python.reflect import qual
from twisted.spread import pb

from msgservice.arguments import check_flags, check_kind, check_methods
from msgservice.clock import timed
from msgservice.core.subjects import check_name, exact
from msgservice.errors import (
    Ambiguous,
    BadAddress,
    BadValue,
    InsecureListener,
    MalformedFrame,
    MsgServiceError,
    NotAuthenticated,
    NotConnected,
    ProtocolError,
    RemoteFailed,
    check_runs,
)
from msgservice.identity.throttle import Throttle
from msgservice.limits import Limits
from msgservice.transport.addresses import check_listener
from msgservice.transport.dialling import Connector
from msgservice.transport.owners import ChannelOwner
from msgservice.transport.pb import jellied
from msgservice.transport.pb.broker import (
    CALL_BYTES_MAX,
    CALL_OVERHEAD,
    ENDED,
    NAME_BYTES_MAX,
    BoundedBroker,
    Service,
)
from msgservice.transport.pb.expressions import Encoded, cost_of, encode
from msgservice.transport.pb.transport import PbTransport
from msgservice.transport.registry import Transports
from msgservice.transport.tcp.pacing import Turn
from msgservice.unlogged import speak
from msgservice.waiters import Waiters

CHALLENGE_BYTES = 16
LOGINS_MAX = 5  # of one connection
VIEW = b"msgservice.ReceiversView"  # the tag of a node's view
NUMBER_MAX = 2**53 - 1
INSTANCE_MAX = 64  # characters of an id
OWN = ("hello", "ping")  # what a peer's end has itself


class PbPeer:
    """One end of a connection. `name`: of this one, for people.

    `classes`: of `pb.Copyable`, whose instances are taken as arguments and results, as Twisted's
    `setUnjellyableForClass` says; of no others any is, whoever registered them. `instance`: the id
    of this process's end, new by default. `delay` of a wrong login is `limits.login_delay`.
    """

    _logger = Logger()

    def __init__(
        self,
        reactor: IReactorTime,
        *,
        name: str,
        limits: Limits | None = None,
        classes: Iterable[type] = (),
        instance: str = "",
        transports: Transports | None = None,
    ) -> None:
        speak()
        self.reactor = timed(reactor)
        self.name = check_name(name)
        self.limits = Limits() if limits is None else limits
        check_kind(Limits, "Limits are needed", limits=self.limits)
        if len(exact(instance, "instance")) > INSTANCE_MAX:
            raise BadValue("instance", f"has more than {INSTANCE_MAX} characters")
        self.instance = instance or secrets.token_hex(8)
        self.exposed: dict[str, Callable[..., Any]] = {}
        classes = jellied.copyables(classes)
        self.security = jellied.security(*classes)
        self.also = frozenset(
            (jellied.REMOTE, jellied.CACHED, VIEW, *(qual(one).encode() for one in classes))
        )
        self.security.allowTypes(jellied.CACHED)
        self.turn = Turn(self.reactor)
        found = Transports() if transports is None else transports
        check_methods("Transports are needed", ("find",), transports=found)
        transport = found.find("pb:")
        assert isinstance(transport, PbTransport)
        self._transport = transport
        self._connector: Connector | None = None
        self._ports: list[IListeningPort] = []
        self._live: PeerBroker | None = None
        self._dialling: PeerBroker | None = None  # its hello was said, and not answered
        self._dials = 0
        self._seen: tuple[str, int] | None = None  # who has dialled last, and its number of that
        self._openings: Waiters[None] = Waiters()
        self._views: list[ref[ReceiversView]] = []  # of the connection that is live
        self._is_stopped = False
        self._denied: NotAuthenticated | None = None  # the last time
        self.throttle = Throttle(
            pair_max=self.limits.login_failures,
            address_max=self.limits.address_failures,
            delay=self.limits.login_delay,
        )

    # --- getters

    @property
    def connected(self) -> bool:
        """Whether the other end can be called."""
        return self._live is not None and self._live.is_usable

    @property
    def other(self) -> str:
        """The instance id of the other end; empty while there is none."""
        return "" if self._live is None else self._live.other

    def why(self) -> MsgServiceError | None:
        """Return why there is no connection, as an error; None while there is one.

        `NotAuthenticated` where the other end takes no such login, or may not be told it;
        `NotConnected` otherwise, whose `reason` says what has failed last, or what is waited for.
        It goes on dialling whatever it is.
        """
        if self.connected:
            return None
        connector = self._connector
        if self._is_stopped:
            return NotConnected(self.name, "it was stopped")
        if connector is None:
            waits = "nobody has dialled yet" if self._ports else "it neither dials nor listens"
            return NotConnected(self.name, waits)
        denied, last = self._denied, connector.last_error
        if denied is not None and last == str(denied):
            return denied
        return NotConnected(self.name, f"{connector.address}: {last or 'it is being dialled'}")

    def denied(self, error: NotAuthenticated) -> None:
        """Take note that the other end has taken no login of this one."""
        self._denied = error

    def when_connected(self) -> Deferred[None]:
        """Fire when the other end can be called; at once if so. `why` says why it does not."""
        return succeed(None) if self.connected else self._openings.wait()

    # --- verbs

    def expose(self, name: str, function: Callable[..., Any] | None = None) -> Any:
        """Let the other end call a function by this name; without one, return a decorator.

        It may return a Deferred or be a coroutine. What it raises of msgservice's own crosses with
        its sentence, of other errors the type alone.
        """
        if function is None:
            return partial(self.expose, name)
        if name in OWN or not exact(name, "name").isidentifier():
            raise BadValue("name", f"{name!r} cannot be exposed")
        if not callable(function):
            raise TypeError(f"function must be callable, not {function!r}")
        check_runs(function, "exposed function")
        self.exposed[name] = function
        return function

    def call(self, name: str, /, *args: Any, **kw: Any) -> Deferred[Any]:
        """Call what the other end exposes; fires with what that returns.

        Fails with `RemoteFailed` for an error there, with `NotConnected` where nobody is there,
        with `BadValue` for arguments that cannot cross, and with `Ambiguous` where the connection
        ends before the answer: it may have been done. Raises `TypeError` for a name that is no
        text.
        """
        name = exact(name, "name")
        live = self._live
        if live is None or live.far is None or not live.is_usable:
            return fail(self.why() or NotConnected(self.name))
        return live.call(name, args, kw).addErrback(_in_our_words, self.name)

    def send(self, subject: str, body: bytes | str, **options: Any) -> Deferred[int]:
        """Hand a message to the node at the other end; fires with its position, when on disk.

        `options`: as of `perspective_send`. Another peer gets it as a call of what it exposes as
        `send`. Nothing is kept here: where it fails with `Ambiguous`, it may be stored.
        """
        return self.call("send", exact(subject, "subject"), body, options)

    def watch(self) -> Deferred[Any]:
        """Fire with a view of the receivers of the node at the other end, which updates itself.

        Until its connection ends: it is over then (`ReceiversView.is_over`), and the next one is
        watched for once there is another connection.
        """
        return self.call("watch").addCallback(self._watching, self._live)

    def _watching(self, view: Any, live: PeerBroker | None) -> Any:
        if isinstance(view, ReceiversView):
            if live is self._live:
                self._views = [one for one in self._views if one() not in (None, view)]
                self._views.append(ref(view))
            else:
                view.over()
        return view

    def dial(self, address: str, *, user: str = "", password: str = "") -> None:
        """Dial the other end, again and again, while there is no connection.

        `user`, `password`: the login there; over TLS and on this machine only. Raises `BadAddress`,
        `BadValue` where one of the two is missing, and `TypeError` for what is no text.
        """
        user, password = exact(user, "user"), exact(password, "password")
        if bool(user) != bool(password):
            missing = "password" if user else "user"
            raise BadValue(missing, "is missing: a login is a user and a password")
        if self._connector is not None:
            raise BadValue("address", f"is {self._connector.address} already")
        self._connector = self._transport.connector_with(
            self.reactor,
            address,
            lambda owner: PeerBroker(
                self,
                owner=owner,
                reactor=self.reactor,
                limits=self.limits,
                turn=self.turn,
                login=(user, password),
            ),
            self.limits,
        )
        self._connector.startService()

    def listen(
        self, address: str, *, users: Mapping[str, str] | None = None, insecure: bool = False
    ) -> Deferred[IListeningPort]:
        """Let the other end dial; fire with the port.

        `users`: who may log in, with their passwords; None: everybody on this machine. Fails with
        `CannotListen`, `BadAddress`, or `InsecureListener` beyond loopback without users and TLS;
        and with `TypeError` where one of these is of another type.
        """
        try:
            check_flags(insecure=insecure)
            check_listener(self._transport, address, insecure=insecure, asks=users is not None)
            digests = None if users is None else _digests(users)
        except (InsecureListener, BadAddress, BadValue, TypeError) as error:
            return fail(error)

        def make_channel(
            *,
            reactor: IReactorTime,
            make_user: Any,
            limits: Limits,
            owner: ChannelOwner,
            turn: Turn,
        ) -> PeerBroker:
            return PeerBroker(
                self, owner=owner, reactor=reactor, limits=limits, turn=turn, digests=digests,
                asks=users is not None,
            )  # fmt: skip

        listening = self._transport.listen_for(self.reactor, address, make_channel, self.limits)
        return listening.addCallback(self._listens)

    def _listens(self, port: IListeningPort) -> IListeningPort:
        self._ports.append(port)
        return port

    def stop(self) -> Deferred[None]:
        """Dial and listen no more, and close the connection."""
        self._is_stopped = True
        stops: list[Deferred[Any]] = []
        if self._connector is not None:
            stops.append(self._connector.stopService())
        stops += [port.stopListening() or succeed(None) for port in self._ports]
        live, self._live = self._live, None
        self._views_over()
        if live is not None and not live.is_dialled:
            stops.append(live.when_gone())
            live.close()
        self._openings.take().fail(Failure(NotConnected(self.name)))
        return gatherResults(stops).addCallback(lambda _: None)

    # --- from its connections

    def begin_hello(self, dialled: PeerBroker) -> tuple[str, int, int | None, list[Any] | None]:
        """Say who this is, on a connection that it has dialled."""
        self._dials += 1
        dialled.number = self._dials
        self._dialling = dialled
        live = None if self._live is None else self._live.number
        return self.instance, self._dials, live, None if self._seen is None else [*self._seen]

    def judge(self, came: PeerBroker, other: str, number: int, live: int | None, seen: Any) -> bool:
        """Take a connection that the other end has dialled; False: another one stays.

        Raises `BadValue` where this peer has dialled itself.
        """
        if self._is_stopped:
            raise NotConnected(self.name)
        if other == self.instance:
            raise BadValue("instance", "is that of this peer: it has dialled itself")
        self._seen = (other, number)
        mine = self._live
        crossed = self._dialling is not None
        if not crossed and mine is not None and mine.other == other and mine.is_dialled:
            # Where it had not seen that one when it dialled, the two have crossed; else, where it
            # does not hold it, that one is dead.
            crossed = seen is None or seen[0] != self.instance or seen[1] < mine.number
            crossed = crossed or live is not None
        if crossed and other > self.instance:
            return False
        dialling, self._dialling = self._dialling, None
        if dialling is not None:
            dialling.abort()
        came.other, came.number, came.is_judged = other, number, True
        self._take(came)
        return True

    def concluded(self, dialled: PeerBroker, other: str) -> None:
        """The other end has taken the connection."""
        if self._dialling is dialled:
            self._dialling = None
            dialled.other = other
            self._take(dialled)

    def _take(self, live: PeerBroker) -> None:
        before, self._live = self._live, live
        if before is not live:
            self._views_over()
        if before is not None and before is not live:
            before.close()
        if not live.is_dialled and self._connector is not None and self._connector.running:
            # Not while somebody else's stands.
            self._connector.stopService().addErrback(self._fault)
        if live.is_dialled:
            self._opened(live)
        else:
            # Behind the answer to the hello: before, the other end takes no call.
            self.reactor.callLater(0, self._opened, live)

    def _opened(self, live: PeerBroker) -> None:
        if self._live is live:
            live.usable()
            self._openings.take().fire(None)

    def gone(self, broker: PeerBroker) -> None:
        """A connection has ended."""
        if self._dialling is broker:
            self._dialling = None
        if self._live is broker:
            self._live = None
            self._views_over()
            if self._connector is not None and not self._is_stopped:
                self._connector.startService()

    def _views_over(self) -> None:
        views, self._views = self._views, []
        for known in views:
            view = known()
            if view is None:
                continue
            try:
                view.over()
            except Exception:  # of the program's `changed`: what else follows from the end does
                self._logger.failure("{name}: a view that is over", name=self.name)

    def _fault(self, failure: Failure) -> None:
        self._logger.failure("{name} stops dialling", failure, name=self.name)


def _digests(users: Mapping[str, str]) -> dict[str, bytes]:
    """Digests by user, which their logins are checked by."""
    if not isinstance(users, Mapping):
        raise TypeError(f"users has passwords by name, and is not {type(users).__name__}")
    return {
        exact(user, "user"): hashlib.md5(
            exact(password, f"password of {user!r}").encode(), usedforsecurity=False
        ).digest()
        for user, password in users.items()
    }


def _in_our_words(failure: Failure, name: str) -> Failure:
    if failure.check(pb.DeadReferenceError):
        return Failure(NotConnected(name))
    if failure.check(pb.PBConnectionLost):
        return Failure(Ambiguous("the connection ended before the answer: it may have been done"))
    return failure


class ReceiversView(pb.RemoteCache):
    """The receivers of a node, as they are: `rows` has a dictionary for each, by name.

    `connected`, `paused`, `suspended`, `refuses`, `cursor`, the position up to which all is
    settled, `workers`, and `health`. It updates itself while the connection stands and somebody
    keeps it; `is_complete`: all were told, and it is not over. `changed(names)`, if it is set, is
    called after each update, and when it is over.
    """

    is_over = False  # its connection has ended: `rows` are what was told before that

    rows: dict[str, dict[str, Any]]
    is_complete: bool
    changed: Callable[[list[str]], object] | None = None

    def setCopyableState(self, state: Any) -> None:
        """Begin with what was told first."""
        self.rows = {}
        self.is_complete = bool(isinstance(state, dict) and state.get("is_complete"))

    def observe_rows(self, rows: Any, gone: Any, is_complete: Any) -> None:
        """Take an update."""
        if not isinstance(rows, dict) or not isinstance(gone, list):
            raise BadValue("rows", "are none")
        self.rows.update(rows)
        for name in gone:
            self.rows.pop(name, None)
        self.is_complete = bool(is_complete)
        if self.changed is not None:
            self.changed([*rows, *gone])

    def over(self) -> None:
        """End the view: its connection has ended, and nothing more is told."""
        if not self.is_over:
            self.is_over, self.is_complete = True, False
            if self.changed is not None:
                self.changed([])


pb.setUnjellyableForClass(VIEW.decode(), ReceiversView)


class PeerBroker(BoundedBroker):
    """One connection of a peer, dialled or accepted. `far`: the other's end, which is called.

    `login`: of who has dialled; `digests`: of who may log in here, if that is asked.
    """

    _logger = Logger()

    def __init__(
        self,
        peer: PbPeer,
        *,
        owner: ChannelOwner,
        reactor: IReactorTime,
        limits: Limits,
        turn: Turn,
        login: tuple[str, str] | None = None,
        digests: Mapping[str, bytes] | None = None,
        asks: bool = False,
    ) -> None:
        super().__init__(
            reactor=reactor,
            limits=limits,
            owner=owner,
            turn=turn,
            is_dialled=login is not None,
            security=peer.security,
            also=peer.also,
        )
        self.peer = peer
        self.other = ""
        self.number = 0
        self.far: pb.RemoteReference | None = None
        self.is_judged = False  # the other end may call
        self.is_usable = False  # this one may
        self.end = _End(self)
        self.refused: str | None = None
        self.digests = digests
        self.asks = asks
        self._login = login
        self._pinging: IDelayedCall | None = None
        self._timers: list[IDelayedCall] = []
        self._goings: Waiters[None] = Waiters()
        if login is None:
            self.setNameForLocal("root", _Root(self))

    @property
    def refusal(self) -> str | None:
        """Why the other end has sent this one away, where that does not pass by itself."""
        return self.refused

    def when_gone(self) -> Deferred[None]:
        """Fire when the connection has ended."""
        return self._goings.wait()

    # --- who dials

    def opened(self) -> None:
        """Log in, and say hello."""
        if self._login is not None:
            opening = Deferred.fromCoroutine(self._open(*self._login))
            opening.addErrback(self._not_opened)

    async def _open(self, user: str, password: str) -> None:
        root = self.remoteForName("root")
        if not user:
            far = await root.callRemote("loginAnonymous", self.end)
        else:
            if not self.credentials.is_private:
                raise NotAuthenticated("a password is said over TLS and on this machine alone")
            challenge, challenger = await root.callRemote("login", user)
            answer = pb.respond(challenge, password.encode())
            far = await challenger.callRemote("respond", answer, self.end)
        if not isinstance(far, pb.RemoteReference):
            raise MalformedFrame("a login that ends with nothing to call")
        self.far = far
        other = await far.callRemote("hello", *self.peer.begin_hello(self))
        if other is None:
            self.close()  # the one that the other end has dialled stays
        elif isinstance(other, str):
            self.peer.concluded(self, other)
        else:
            raise MalformedFrame("a hello without an instance")

    def _not_opened(self, failure: Failure) -> None:
        if self.state in ENDED or failure.check(pb.PBConnectionLost, pb.DeadReferenceError):
            return
        error = failure.value
        if isinstance(error, RemoteFailed) and error.kind == qual(NotAuthenticated):
            error = NotAuthenticated(error.reason)
        if isinstance(error, NotAuthenticated):
            self.peer.denied(error)
        self.refused = str(error)
        self.fail(error if isinstance(error, ProtocolError) else ProtocolError(str(error)))

    # --- both

    def usable(self) -> None:
        """Both ends may call from now on."""
        self.is_judged = self.is_usable = True
        self.established()
        self._ping_later()

    def call(self, name: str, args: tuple[Any, ...], kw: Mapping[str, Any]) -> Deferred[Any]:
        """Call the other end; what it would not take fails here, and hurts no connection."""
        said = name.encode(errors="replace")
        if not 0 < len(said) <= NAME_BYTES_MAX:
            return fail(BadValue("name", f"has {len(said)} bytes, 1 to {NAME_BYTES_MAX} allowed"))
        try:
            arguments, named = self._crossing([args, kw])
        except BadValue as error:
            return fail(error)
        assert self.far is not None
        return self.call_jellied(b"message", self.far.luid, said, arguments, named)

    def as_sent(self, jellied_value: Any) -> Any:
        """See `BoundedBroker`."""
        (result,) = self._checked("result", [jellied_value])
        return result

    def _crossing(self, values: Sequence[Any]) -> list[Any]:
        """Return arguments jellied; `BadValue` where the other end would not take them."""
        try:
            return self._checked("argument", [self.serialize(value) for value in values])
        except BadValue as error:
            raise BadValue("argument", error.reason) from None
        except (ValueError, RecursionError) as error:
            raise BadValue("argument", f"has no form that crosses: {error}") from None

    def _checked(self, what: str, jellied_values: Sequence[Any]) -> list[Any]:
        found = []
        try:
            for value in jellied_values:
                found.append(jellied.flattened(value))
                jellied.check(found[-1], self.also)
            size = cost_of(found)
        except BadValue as error:
            raise BadValue(what, error.reason) from None
        most = CALL_BYTES_MAX - CALL_OVERHEAD
        if size > most:
            raise BadValue(
                what, f"takes {size} bytes, lists and numbers too, at most {most} allowed"
            )
        return [Encoded(encode(flat)) for flat in found]

    def may_enter(self, user: str, challenge: bytes, response: bytes) -> bool:
        """Whether this is the answer of a user to a challenge, which it may try from here."""
        address, throttle = self.credentials.address, self.peer.throttle
        digest = self.digests.get(user) if self.digests is not None else None
        right = hashlib.md5((digest or bytes(16)) + challenge, usedforsecurity=False).digest()
        is_right = hmac.compare_digest(right, response) and digest is not None
        if not (self.credentials.is_private and throttle.allows(address, user, self._now())):
            return False
        if is_right:
            throttle.succeeded(address, user)
        else:
            throttle.failed(address, user, self._now())
        return is_right

    def later(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Call a function after `login_delay`, unless the connection has ended before."""
        self._timers = [timer for timer in self._timers if timer.active()]
        self._timers.append(self._reactor.callLater(self._limits.login_delay, function, *arguments))

    def _ping_later(self) -> None:
        self._pinging = self._reactor.callLater(self._limits.heartbeat, self._ping)

    def _ping(self) -> None:
        self._pinging = None
        silence = self._now() - self.heard_at
        if silence >= self._limits.heartbeat * self._limits.silence:
            self._error = self._error or ProtocolError(f"nothing heard for {silence:g} s")
            self.abort()
        elif self.far is not None:
            self.far.callRemote("ping").addErrback(lambda _: None)  # it ends, and that is told
            self._ping_later()

    def has_failed(self, error: ProtocolError) -> None:
        """See `BoundedBroker`; of a stranger its owner tells."""
        if self.is_known:
            self._logger.warn("{peer}: {error}", peer=self.peer_address, error=str(error))

    def has_gone(self, reason: str) -> None:
        """See `BoundedBroker`."""
        if self._pinging is not None:
            self._pinging.cancel()
            self._pinging = None
        for timer in self._timers:
            if timer.active():
                timer.cancel()
        self.peer.gone(self)
        self._goings.take().fire(None)


class _End(Service):
    """The end of a peer that the other one calls: hello, and what is exposed."""

    prefix = "perspective_"

    def __init__(self, broker: PeerBroker) -> None:
        self._broker = broker

    def remoteMessageReceived(self, broker: Any, message: str, args: Any, kw: Any) -> Any:
        """Call what is exposed; nothing but hello before the connection was judged."""
        if message in OWN:
            return super().remoteMessageReceived(broker, message, args, kw)
        if not self._broker.is_judged:
            raise NotAuthenticated("a connection is usable when both have said hello")
        function = self._broker.peer.exposed.get(message)
        if function is None:
            raise BadValue("method", f"{message!r} is not exposed")
        return self.run(function, broker, message, args, kw)

    def perspective_hello(self, other: Any, number: Any, live: Any, seen: Any) -> str | None:
        """Judge a connection that the other end has dialled; None: another one stays."""
        saw = seen if isinstance(seen, list) and len(seen) == 2 else [None, None]
        ids = [other] + ([] if seen is None else [saw[0]])
        numbers = [number] + ([] if live is None else [live]) + ([] if seen is None else [saw[1]])
        right = all(isinstance(one, str) and 0 < len(one) <= INSTANCE_MAX for one in ids)
        if not right or not all(type(one) is int and 0 < one <= NUMBER_MAX for one in numbers):
            raise BadValue("hello", "is none: an instance, a number, and what was seen")
        if self._broker.is_judged or self._broker.is_dialled:
            raise BadValue("hello", "is said once, by who has dialled")
        peer = self._broker.peer
        return peer.instance if peer.judge(self._broker, other, number, live, seen) else None

    def perspective_ping(self) -> None:
        """Show that somebody is here."""


class _Root(Service):
    """The object that who dials a peer finds: the login."""

    def __init__(self, broker: PeerBroker) -> None:
        self._broker = broker
        self._logins = 0

    def remote_loginAnonymous(self, mind: Any) -> pb.Referenceable:
        """Take whoever comes, where nobody is asked."""
        if self._broker.asks:
            raise NotAuthenticated("this peer asks for a login")
        return self.enter(mind)

    def remote_login(self, username: Any) -> tuple[bytes, pb.Referenceable]:
        """Begin a login."""
        name = username.decode(errors="replace") if isinstance(username, bytes) else username
        if not isinstance(name, str) or len(name) > 255:
            raise BadValue("username", "is no name of up to 255 characters")
        self._logins += 1
        if self._logins > LOGINS_MAX:
            error = NotAuthenticated(f"more than {LOGINS_MAX} logins on one connection")
            self._broker.fail(error)
            raise error
        challenge = secrets.token_bytes(CHALLENGE_BYTES)
        return challenge, _Challenger(self, self._broker, name, challenge)

    def enter(self, mind: Any) -> pb.Referenceable:
        """Return this end to who has logged in, once, and has one of its own."""
        if not isinstance(mind, pb.RemoteReference):
            raise BadValue("mind", "is no end that can be called")
        if self._broker.far is not None:
            raise BadValue("login", "is done once on a connection")
        self._broker.far = mind
        return self._broker.end


class _Challenger(Service):
    """The one who takes the answer to a challenge, once."""

    def __init__(self, root: _Root, broker: PeerBroker, user: str, challenge: bytes) -> None:
        self._root = root
        self._broker = broker
        self._user = user
        self._challenge: bytes | None = challenge

    def remote_respond(self, response: Any, mind: Any) -> Any:
        """Log in with an answer; a wrong one is told after a while, and ends the connection."""
        challenge, self._challenge = self._challenge, None
        broker = self._broker
        if challenge is None or not isinstance(response, bytes):
            raise NotAuthenticated("a challenge is answered once, with bytes")
        if broker.may_enter(self._user, challenge, response):
            return self._root.enter(mind)
        denied: Deferred[Any] = Deferred()
        broker.later(denied.errback, Failure(NotAuthenticated("wrong user or password")))
        return denied
