"""Access over HTTP: who asks, by the connection or by what a request says in `Authorization`.

    Bearer TOKEN            a token, as `msgservice token add` makes it
    Basic USER:PASSWORD     a password
    nothing                 whom the connection shows: a certificate, a user id at a Unix socket,
                            whom a listener without login says; or anybody, where nobody is asked

A login holds for its connection as long as the same is said there again. Secrets are taken where
nobody else reads along, and never from an address.
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

    def ended(self, given: Pass) -> MsgServiceError:
        """Return what is said to who has a pass that holds no longer."""


@dataclass(frozen=True, slots=True)
class Visitor:
    """The one that a connection has let in last: what was said in `Authorization`, and its pass."""

    said: str | None
    given: Pass


class Access:
    """The access to a web listener."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    def enter(self, request: HttpRequest) -> Pass | Deferred[Pass]:
        """Return the pass of who makes a request, now or when it is known.

        Raises, or fails with, `NotAuthenticated` and the gate's other errors.
        """
        channel = request.channel
        said = request.header("authorization")
        visitor: Visitor | None = channel.state
        if visitor is not None and visitor.said == said and self._gate.holds(visitor.given):
            return visitor.given
        if said is None:
            return self._admit(None, channel, said)
        entering = self._login(said, channel.credentials)
        return entering.addCallback(self._admit, channel, said)

    def holds(self, given: Pass) -> bool:
        """Return whether a pass would be given again."""
        return self._gate.holds(given)

    def check(self, given: Pass) -> None:
        """Raise unless a pass would be given again."""
        if not self._gate.holds(given):
            raise self._gate.ended(given)

    def _admit(self, principal: Principal | None, channel: HttpChannel, said: str | None) -> Pass:
        given = self._gate.admit_web(principal, channel.credentials, channel.door)
        channel.state = Visitor(said, given)
        channel.identified()
        return given

    def _login(self, said: str, credentials: Credentials) -> Deferred[Principal]:
        scheme, _, secret = said.strip().partition(" ")
        if len(said) > SAID_CHARS_MAX:
            raise NotAuthenticated("an Authorization that is too long")
        if scheme.lower() == "bearer":
            step: Deferred[Any] = self._gate.login(credentials).receive(_TOKEN + secret.encode())
            return step.addCallback(_principal)
        if scheme.lower() == "basic":
            user, password = _user_and_password(secret)
            return self._gate.login_by_password(credentials, user, password)
        raise NotAuthenticated("a login is by Bearer TOKEN or Basic USER:PASSWORD")


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
