"""Access over HTTP: who asks, by the connection or by what a request says in `Authorization`.

    Bearer TOKEN            a token, as `msgservice token add` makes it
    Basic USER:PASSWORD     a password
    nothing, from the page  whose cookie the browser has (`logins`)
    nothing                 whom the connection shows: a certificate, a user id at a Unix socket,
                            whom a listener without login says; or anybody, where nobody is asked

What is said in `Authorization` holds for its connection as long as the same is said there again.
Secrets are taken where nobody else reads along, and never from an address.
"""

from __future__ import annotations

import binascii
from base64 import b64decode
from dataclasses import dataclass
from typing import Any, Protocol

from twisted.internet.defer import Deferred

from msgservice.credentials import Credentials
from msgservice.errors import MsgServiceError, NotAuthenticated
from msgservice.identity.principal import Principal
from msgservice.identity.steps import Say, Welcome
from msgservice.node.gate import Door, Login, Pass
from msgservice.node.web.logins import Logins, login_of, secret_of
from msgservice.transport.http.channel import HttpChannel, HttpRequest

SAID_CHARS_MAX = 4096
_TOKEN = b"TOKEN\0"


class Gate(Protocol):
    """The gate of a node, as far as it is asked here (`gate`)."""

    def login(self, credentials: Credentials) -> Login:
        """Return a new dialogue; `NotAuthenticated` where no login is offered."""

    def login_by_password(
        self, credentials: Credentials, user: str, password: str
    ) -> Deferred[Principal]:
        """Fire with who a user is that has said its password."""

    def admit_web(self, principal: Principal | None, credentials: Credentials, door: Door) -> Pass:
        """Return the pass of who asks over HTTP."""

    def holds(self, given: Pass) -> bool:
        """Return whether a pass would be given again."""

    def knows(self, principal: Principal) -> bool:
        """Return whether a principal would be found again."""

    def ended(self, given: Pass) -> MsgServiceError:
        """Return what is said to who has a pass that holds no longer."""


@dataclass(frozen=True, slots=True)
class Visitor:
    """The one that a connection has let in last, and its pass.

    `said`: what stood in `Authorization`, or the bytes of a cookie; None: neither.
    """

    said: str | bytes | None
    given: Pass

    def has_said(self, said: str | bytes | None) -> bool:
        """Whether this is what was said, in the same place."""
        return type(self.said) is type(said) and self.said == said


class Access:
    """The access to a web listener. `logins`: of browsers, from the form of the page."""

    def __init__(self, gate: Gate, logins: Logins) -> None:
        self._gate = gate
        self._logins = logins

    def enter(self, request: HttpRequest) -> Pass | Deferred[Pass]:
        """Return the pass of who makes a request, now or when it is known.

        Raises, or fails with, `NotAuthenticated` and the gate's other errors.
        """
        channel = request.channel
        said = request.header("authorization")
        if said is None and (secret := login_of(request)) is not None:
            return self._enter_by_cookie(secret, channel)
        visitor: Visitor | None = channel.state
        if visitor is not None and visitor.has_said(said) and self._gate.holds(visitor.given):
            return visitor.given
        if said is None:
            return self._admit(None, channel, said)
        entering = self._login(said, channel.credentials)
        return entering.addCallback(self._admit, channel, said)

    def _enter_by_cookie(self, secret: str, channel: HttpChannel) -> Pass:
        login = self._logins.find(secret)
        if login is None:
            return self._admit(None, channel, None)
        said, visitor = secret.encode(), channel.state
        if visitor is not None and visitor.has_said(said) and self._gate.holds(visitor.given):
            given: Pass = visitor.given
            return given
        given = self._admit(login.principal, channel, said)
        given.goes_on = lambda: self._logins.use(login)
        return given

    def log_in(
        self, request: HttpRequest, *, user: str = "", password: str = "", token: str = ""
    ) -> Deferred[tuple[Pass, str]]:
        """Fire with the pass and the secret of a new login, by a token or a password.

        It ends the login that the browser had. Fails with, or raises, what `enter` does.
        """
        channel = request.channel

        def proven(principal: Principal) -> tuple[Pass, str]:
            given = self._admit(principal, channel, None)
            channel.state = None  # the next request says who it is
            self.log_out(request)
            return given, self._logins.begin(principal)

        if token:
            return self._by_token(token, channel.credentials).addCallback(proven)
        proving = self._gate.login_by_password(channel.credentials, user, password)
        return proving.addCallback(proven)

    def log_out(self, request: HttpRequest) -> Principal | None:
        """End the login that a request's cookie says; return whose it was; None: there is none."""
        secret = secret_of(request)
        return None if secret is None else self._logins.end(secret)

    def forget_what_holds_no_more(self) -> None:
        """Forget the logins of those that would not be let in again as they are."""
        self._logins.forget(self._gate.knows)

    def holds(self, given: Pass) -> bool:
        """Return whether a pass would be given again."""
        return self._gate.holds(given)

    def check(self, given: Pass) -> None:
        """Raise unless a pass would be given again."""
        if not self._gate.holds(given):
            raise self._gate.ended(given)

    def _admit(
        self, principal: Principal | None, channel: HttpChannel, said: str | bytes | None
    ) -> Pass:
        given = self._gate.admit_web(principal, channel.credentials, channel.door)
        channel.state = Visitor(said, given)
        channel.identified()
        return given

    def _login(self, said: str, credentials: Credentials) -> Deferred[Principal]:
        scheme, _, secret = said.strip().partition(" ")
        if len(said) > SAID_CHARS_MAX:
            raise NotAuthenticated("an Authorization that is too long")
        if scheme.lower() == "bearer":
            return self._by_token(secret, credentials)
        if scheme.lower() == "basic":
            user, password = _user_and_password(secret)
            return self._gate.login_by_password(credentials, user, password)
        raise NotAuthenticated("a login is by Bearer TOKEN or Basic USER:PASSWORD")

    def _by_token(self, token: str, credentials: Credentials) -> Deferred[Principal]:
        step: Deferred[Any] = self._gate.login(credentials).receive(_TOKEN + token.encode())
        return step.addCallback(_principal)


def _principal(step: Say | Welcome) -> Principal:
    assert isinstance(step, Welcome), "a token is one step"
    return step.principal


def _user_and_password(secret: str) -> tuple[str, str]:
    try:
        user, colon, password = b64decode(secret.strip(), validate=True).decode().partition(":")
    except (binascii.Error, ValueError):
        user = colon = password = ""
    if not colon:
        raise NotAuthenticated("Basic is the base64 of USER:PASSWORD in UTF-8")
    return user, password
