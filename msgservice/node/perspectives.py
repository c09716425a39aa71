"""Perspectives: what plain Perspective Broker programs may call of a node, and how they log in.

    root.login(user) -> a challenge -> respond(answer, mind) -> the perspective
    root.loginAnonymous(mind)       -> the perspective, of whom the connection shows, or of anybody

Login is `twisted.cred`'s portal over the gate. A perspective hands in messages through the intake,
as every door does, and asks the same handler of requests as a session; there are no sequences, so
an answer that is lost leaves the outcome unknown. Frames over the same connection are the business
of `transport.pb`, and so is what a stranger may cost.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import msgspec
from twisted.cred.checkers import ICredentialsChecker
from twisted.cred.credentials import Anonymous, IAnonymous
from twisted.cred.portal import IRealm, Portal
from twisted.internet.defer import Deferred, succeed
from twisted.python.failure import Failure
from twisted.spread import pb
from zope.interface import implementer

from msgservice.administration import RECEIVERS_LIST
from msgservice.client.promise import Promise
from msgservice.clock import monotonic_of
from msgservice.codecs import CONTENT_TYPE, decode_content
from msgservice.core.frames import Reply, Request
from msgservice.core.reasons import one_line
from msgservice.core.refusal import Refusal
from msgservice.core.subjects import check_name, check_subject, is_reserved
from msgservice.credentials import Credentials
from msgservice.errors import (
    ERROR_HEADER,
    BadValue,
    LimitReached,
    LogUnavailable,
    MsgServiceError,
    NotAuthenticated,
    RequestFailed,
    code_said,
    refused,
    request_failed,
)
from msgservice.identity.principal import Principal
from msgservice.limits import NAME_BYTES_MAX, Limits
from msgservice.message import (
    FLAG_REQUIRE,
    PromiseOption,
    WireMessage,
    decode_messages,
    encode_messages,
)
from msgservice.node.gate import Door, Pass
from msgservice.node.intake import LocalSender
from msgservice.node.replies import JSON_TYPE
from msgservice.node.slices import Slices
from msgservice.node.view import ReceiversView
from msgservice.records import Batch, Outcome, RefusedBatch
from msgservice.transport.pb import jellied
from msgservice.transport.pb.broker import TURN_SECONDS, Service
from msgservice.transport.pb.channel import PbChannel, Root

CHALLENGE_BYTES = 16  # as Twisted's
LOGINS_MAX = 5  # of one connection: who fails so often dials again
ASKED_BYTES = 1024 * 1024  # of requests that wait; beyond it nothing is read
OPTIONS = ("headers", "id", "key", "promise", "require", "to")
PROMISE_FIELDS = ("need", "otherwise", "within")
_to_json = msgspec.json.Encoder().encode


class Gate(Protocol):
    """The gate of a node, as far as it is asked here (`gate`)."""

    def login_by_digest(
        self, credentials: Credentials, user: str, proves: Callable[[bytes], bool]
    ) -> Deferred[Principal | None]:
        """Fire with who a user is that has proved to know its digest."""

    def admit_named(
        self, principal: Principal | None, credentials: Credentials, door: Door, name: str
    ) -> tuple[Pass, str]:
        """Return the pass of who says no HELLO, and the name that it sends under."""

    def holds(self, given: Pass) -> bool:
        """Return whether a pass would be given again."""

    def ended(self, given: Pass) -> MsgServiceError:
        """Return what ends the connection of a peer whose pass holds no longer."""


class Intake(Protocol):
    """The intake of a node (`intake`)."""

    def sender(self, name: str, user: str) -> LocalSender:
        """Return a sender of this name, and of this user's, that has no session."""


class Requests(Protocol):
    """The handler of requests (`admin`)."""

    def answer(self, request: Request, who: Pass) -> Deferred[Reply]:
        """Answer each call of a request, as far as who asks may."""


class Perspectives:
    """The perspectives of one node, and the connections that have one.

    `instance`: an id of the node, which no other has.
    """

    def __init__(
        self,
        *,
        instance: str,
        gate: Gate,
        intake: Intake,
        requests: Requests,
        view: ReceiversView,
        limits: Limits,
    ) -> None:
        self.view = view
        self.instance = instance
        self.gate = gate
        self.intake = intake
        self._requests = requests
        self.limits = limits
        self.is_stopped = False
        # Of requests and of the form of their answers, for all connections together.
        self._slices = Slices(view.clock, monotonic_of(view.clock), TURN_SECONDS)
        self._here: dict[PbChannel, list[Perspective]] = {}

    def root(self, door: Door, channel: PbChannel) -> Root:
        """Return what a connection finds that came by a door."""
        return PlainRoot(self, door, channel)

    def came(self, channel: PbChannel, perspective: Perspective) -> None:
        """A connection has a perspective now."""
        here = self._here.setdefault(channel, [])
        if not here:
            channel.notifyOnDisconnect(lambda: self._here.pop(channel, None))
        here.append(perspective)

    def end_what_holds_no_more(self) -> None:
        """End the connections of those that would not be let in again as they are."""
        for channel, here in list(self._here.items()):
            if not all(self.gate.holds(perspective.allowed) for perspective in here):
                channel.close()

    def answer(self, request: Request, who: Pass) -> Deferred[Any]:
        """Fire with the answer to a request, as it is sent: some in each turn, the rest later."""
        run = self._slices.run
        asking: Deferred[Any] = run(lambda: self._requests.answer(request, who))
        return asking.addCallback(lambda reply: run(lambda: _answer(reply, request)))

    def stop(self) -> None:
        """End all connections that have a perspective; nothing is taken in any more."""
        self.is_stopped = True
        self.view.stop()
        self._slices.stop()
        for channel in list(self._here):
            channel.close()


@implementer(pb.IUsernameMD5Password)
class _Response:
    """An answer to a challenge, as `twisted.cred` has credentials."""

    def __init__(self, username: str, challenge: bytes, response: bytes) -> None:
        self.username = username
        self._challenge = challenge
        self._response = response

    def checkPassword(self, password: bytes) -> bool:
        """Whether the answer was made of this password."""
        return self.checkMD5Password(hashlib.md5(password, usedforsecurity=False).digest())

    def checkMD5Password(self, digest: bytes) -> bool:
        """Whether the answer was made of a password with this MD5."""
        right = hashlib.md5(digest + self._challenge, usedforsecurity=False).digest()
        return hmac.compare_digest(right, self._response)


@implementer(ICredentialsChecker)
class _Checker:
    """The checker of a connection's logins: a `Principal`; None for whom the connection shows."""

    credentialInterfaces = (pb.IUsernameMD5Password, IAnonymous)

    def __init__(self, gate: Gate, credentials: Credentials) -> None:
        self._gate = gate
        self._credentials = credentials

    def requestAvatarId(self, credentials: Any) -> Any:
        """Fire with who it is, and the name that was said."""
        if IAnonymous.providedBy(credentials):
            return succeed((None, ""))
        name = credentials.username
        found = self._gate.login_by_digest(self._credentials, name, credentials.checkMD5Password)
        return found.addCallback(lambda principal: (principal, name))


@implementer(IRealm)
class _Realm:
    """The perspectives of one connection."""

    def __init__(self, house: Perspectives, door: Door, channel: PbChannel) -> None:
        self._house = house
        self._door = door
        self._channel = channel

    def requestAvatar(
        self, avatarId: Any, mind: Any, *interfaces: Any
    ) -> tuple[Any, Perspective, Callable[[], None]]:
        """Return the perspective of who it was found to be."""
        if pb.IPerspective not in interfaces:
            raise NotImplementedError("there are perspectives of Perspective Broker alone")
        house, (principal, said) = self._house, avatarId
        if house.is_stopped:
            raise LogUnavailable("the node stops")
        allowed, name = house.gate.admit_named(
            principal, self._channel.credentials, self._door, said
        )
        sender = house.intake.sender(name, allowed.principal.user)
        perspective = Perspective(house, self._channel, allowed, sender)
        house.came(self._channel, perspective)
        self._channel.established()
        return pb.IPerspective, perspective, perspective.logout


class PlainRoot(Root):
    """The object that everybody finds at a listener: the channel of our own ends, and the login."""

    def __init__(self, house: Perspectives, door: Door, channel: PbChannel) -> None:
        super().__init__(channel)
        self._broker = channel
        self._house = house
        self._door = door
        self._logins = 0

    def remote_login(self, username: Any) -> tuple[bytes, pb.Referenceable]:
        """Begin a login: return a challenge, and who takes the answer."""
        name = username.decode(errors="replace") if isinstance(username, bytes) else username
        if not isinstance(name, str) or len(name.encode(errors="replace")) > NAME_BYTES_MAX:
            raise BadValue("username", f"is no name of up to {NAME_BYTES_MAX} bytes")
        self._count()
        challenge = secrets.token_bytes(CHALLENGE_BYTES)
        return challenge, _Challenger(self, name, challenge)

    def remote_loginAnonymous(self, mind: Any) -> Deferred[pb.Referenceable]:
        """Log in as whom the connection shows, or as anybody."""
        self._count()
        return self.enter(Anonymous(), mind)

    def _count(self) -> None:
        self._logins += 1
        if self._logins > LOGINS_MAX:
            error = NotAuthenticated(f"more than {LOGINS_MAX} logins on one connection")
            self._broker.fail(error)
            raise error

    def enter(self, credentials: Any, mind: Any) -> Deferred[pb.Referenceable]:
        """Fire with the perspective of who shows these credentials."""
        house, channel = self._house, self._broker
        portal = Portal(
            _Realm(house, self._door, channel), [_Checker(house.gate, channel.credentials)]
        )
        entering: Deferred[Any] = portal.login(credentials, mind, pb.IPerspective)
        return entering.addCallback(self._entered)

    def _entered(self, entered: tuple[Any, Perspective, Callable[[], None]]) -> pb.Referenceable:
        _, perspective, logout = entered
        if self._broker.disconnected:
            logout()
        else:
            self._broker.notifyOnDisconnect(logout)
        return perspective


class _Challenger(Service):
    """The one who takes the answer to a challenge, once."""

    def __init__(self, root: PlainRoot, username: str, challenge: bytes) -> None:
        self._root = root
        self._username = username
        self._challenge: bytes | None = challenge

    def remote_respond(self, response: Any, mind: Any = None) -> Deferred[pb.Referenceable]:
        """Log in with an answer."""
        challenge, self._challenge = self._challenge, None
        if challenge is None or not isinstance(response, bytes):
            raise NotAuthenticated("a challenge is answered once, with bytes")
        return self._root.enter(_Response(self._username, challenge, response), mind)


class _Asked(NamedTuple):
    """A request that waits for its turn: with the bytes of its content, and who waits for it."""

    request: Request
    size: int
    answer: Deferred[Any]


@implementer(pb.IPerspective)
class Perspective(Service):
    """The perspective of one login: what it may call. `allowed`: its pass."""

    prefix = "perspective_"

    def __init__(
        self, house: Perspectives, channel: PbChannel, allowed: Pass, sender: LocalSender
    ) -> None:
        self.allowed = allowed
        self._house = house
        self._channel = channel
        self._sender = sender
        self._asked: deque[_Asked] = deque()  # what is not being answered yet
        self._asked_bytes = 0
        self._answering = 0
        self._asking: dict[Deferred[Any], None] = {}  # of that, what others answer
        self._is_gone = False
        self._is_going_on = False  # or waits for room

    def perspectiveMessageReceived(self, broker: Any, message: str, args: Any, kw: Any) -> Any:
        """Take a call, as `remoteMessageReceived` does."""
        return self.remoteMessageReceived(broker, message, args, kw)

    def logout(self) -> None:
        """The connection has gone: nothing is kept for it."""
        self._is_gone = True
        self._asked.clear()
        for asking in list(self._asking):
            asking.cancel()  # who was asked may do it all the same; the node waits no longer

    def _check(self) -> None:
        if self._house.is_stopped:
            raise LogUnavailable("the node stops")
        if not self._house.gate.holds(self.allowed):
            self._channel.close()
            raise self._house.gate.ended(self.allowed)

    def perspective_send(self, subject: Any, body: Any, options: Any = None) -> Deferred[int | str]:
        """Fire with the position of a message, when it is on disk.

        Of one whose key had been used for what waits until it is due, and has none: with the name
        of that, SENDER/HASH/SEQUENCE.

        `body`: bytes, or text, which becomes UTF-8. `options`: a dictionary with any of `OPTIONS`.
        """
        self._check()
        said = _dictionary("options", options)
        unknown = sorted(set(said) - set(OPTIONS))
        if unknown:
            raise BadValue("options", f"has {unknown[0]!r} (known: {', '.join(OPTIONS)})")
        message = WireMessage(
            _bytes("body", body), _headers(said.get("headers")), _name(said, "id"),
            _name(said, "key"),
        )  # fmt: skip
        to = said.get("to")
        batch = self._sender.check(
            self.allowed,
            check_subject(_text("subject", subject)),
            [message],
            to=None if to is None else _names("to", to),
            flags=FLAG_REQUIRE if said.get("require") else 0,
            promise=_promise(said.get("promise")),
        )
        if isinstance(batch, Refusal):
            raise _refused(batch, _text("subject", subject))
        return self._sender.submit(batch).addCallback(_place)

    def perspective_request(self, subject: Any, content: Any = None) -> Deferred[Any]:
        """Fire with the answer to a request, `$node.info` say: basic values, as JSON has them."""
        self._check()
        name = _text("subject", subject)
        try:
            body = _to_json(_plain(content)) if content is not None else b""
        except (TypeError, ValueError, RecursionError, msgspec.MsgspecError) as error:
            raise BadValue("content", f"has no form in JSON: {error}") from None
        request = Request(1, name, msgspec.Raw(encode_messages([_json(body)])))
        asked = _Asked(request, len(body), Deferred())
        self._asked.append(asked)
        self._asked_bytes += asked.size
        if not self._is_going_on:
            self._go_on()
        if self._asked_bytes > ASKED_BYTES:
            self._channel.stop_reading(self._unanswered)
        return asked.answer

    @property
    def _unanswered(self) -> str:
        """Why its connection is not read from: what was asked waits, and takes room."""
        return f"requests of login {id(self)} wait"

    def _go_on(self) -> None:
        """Answer what was asked: so much at once, and nothing while answers are not read."""
        house, channel = self._house, self._channel
        self._is_going_on = True
        while self._asked and self._answering < house.limits.answering:
            if channel.disconnected:
                return
            if not channel.is_writable:
                channel.room().addCallback(lambda _: self._go_on())
                return
            request, size, answer = self._asked.popleft()
            self._asked_bytes -= size
            self._answering += 1
            asking = house.answer(request, self.allowed)
            if not is_reserved(request.subject):  # what the node itself does is done to its end
                self._asking[asking] = None
            asking.addBoth(self._answered, asking)
            asking.addCallbacks(answer.callback, self._failed, errbackArgs=(answer,))
        self._is_going_on = False
        if self._asked_bytes <= ASKED_BYTES:
            channel.read_on(self._unanswered)

    def _answered(self, result: Any, asking: Deferred[Any]) -> Any:
        self._answering -= 1
        self._asking.pop(asking, None)
        if not self._is_going_on:
            self._go_on()
        return result

    def _failed(self, failure: Failure, answer: Deferred[Any]) -> None:
        if not self._is_gone:  # else nobody hears it, and it would be logged
            answer.errback(failure)

    def perspective_hello(
        self, other: Any, number: Any = 1, live: Any = None, seen: Any = None
    ) -> str:
        """Answer the hello of a `PbPeer`: a node dials no peers, so whoever comes may stay."""
        self._check()
        return self._house.instance

    def perspective_ping(self) -> None:
        """Show that the node is here."""
        self._check()

    def perspective_watch(self) -> ReceiversView:
        """Return the view of all receivers, which updates itself from then on.

        It needs the right to list them.
        """
        self._check()
        if not self.allowed.allows("request", RECEIVERS_LIST.right):
            raise self.allowed.refusal(RECEIVERS_LIST.right)
        return self._house.view

    def perspective_status(self, id: Any) -> Deferred[Any]:  # noqa: A002  # its name in $node.status
        """Fire with what `$node.status` says of a message."""
        return self.perspective_request("$node.status", {"id": _text("id", id)})


def _json(body: bytes) -> WireMessage:
    """Return the message of a request: JSON, which says so to whoever answers."""
    return WireMessage(body, {CONTENT_TYPE: JSON_TYPE} if body else None)


def _place(outcome: Outcome) -> int | str:
    """Return where a message is, or as which it waits."""
    if isinstance(outcome, RefusedBatch):
        raise outcome.error
    if isinstance(outcome, Batch):
        return outcome.first
    return outcome.pieces[0].of or outcome.pieces[0].position


def _answer(reply: Reply, request: Request) -> Any:
    subject = request.subject
    ((_, ok, raw),) = reply.replies
    (message,) = decode_messages(msgspec.Raw(b"\x91" + bytes(raw)))
    if ok:
        try:
            return jellied.plain(decode_content(message.body, message.headers))
        except ValueError as error:  # a program's answer, which says of itself what it is not
            raise RequestFailed(f"{subject!r}: answer cannot be read: {error}") from None
    code = code_said((message.headers or {}).get(ERROR_HEADER, ""))
    text = message.body.decode(errors="replace")
    raise request_failed(code, text, subject, request.timeout / 1000)


def _refused(refusal: Refusal, subject: str) -> MsgServiceError:
    if refusal.code == LimitReached.refusal_code:
        return MsgServiceError(refusal.reason)
    return refused(refusal.code, refusal.about, refusal.reason, subject)


def _text(field: str, value: Any) -> str:
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise BadValue(field, "is not UTF-8") from None
    if not isinstance(value, str):
        raise BadValue(field, f"is {type(value).__name__}, not text")
    return value


def _bytes(field: str, value: Any) -> bytes:
    if isinstance(value, str):
        return value.encode(errors="surrogatepass")
    if not isinstance(value, bytes):
        raise BadValue(field, f"is {type(value).__name__}, not bytes or text")
    return value


def _dictionary(field: str, value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise BadValue(field, f"is {type(value).__name__}, not a dictionary")
    return {_text(field, key): item for key, item in value.items()}


def _headers(value: Any) -> dict[str, str] | None:
    if value is None:
        return None
    said = _dictionary("headers", value)
    return {key: _text("headers", item) for key, item in said.items()}


def _name(said: dict[str, Any], field: str) -> str | None:
    value = said.get(field)
    return None if value is None else check_name(_text(field, value))


def _names(field: str, value: Any) -> tuple[str, ...]:
    items = value if isinstance(value, list | tuple) else [value]
    return tuple([check_name(_text(field, item)) for item in items])


def _promise(value: Any) -> PromiseOption | None:
    if value is None:
        return None
    said = _dictionary("promise", value)
    unknown = sorted(set(said) - set(PROMISE_FIELDS))
    if unknown:
        raise BadValue("promise", f"has {unknown[0]!r} (known: {', '.join(PROMISE_FIELDS)})")
    if "within" not in said:
        raise BadValue("promise", "has no within: seconds until it is decided")
    asked: dict[str, Any] = {
        name: _text(name, item) if isinstance(item, bytes) else item for name, item in said.items()
    }
    return Promise(**asked).option


def _plain(value: Any) -> Any:
    """The value with text where a program of Python 2, or a careless one, has said bytes."""
    if isinstance(value, bytes):
        return one_line(_text("content", value))
    if isinstance(value, dict):
        return {_text("content", key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
