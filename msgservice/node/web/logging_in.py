"""The paths of logins from the page's form (`logins`): to log in, and to log out.

They are open to all: what they take is the login itself. The gate throttles wrong ones, and takes
none where others could read it, as it does of every door.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import msgspec

from msgservice.errors import BadValue
from msgservice.identity.principal import Principal
from msgservice.node.web.access import Access
from msgservice.node.web.answers import Answer, Ask, as_json
from msgservice.node.web.logins import cookie
from msgservice.node.web.paths import PathAt

BODY_MAX = 4096  # bytes
JSON_BODY = ("application/json",)


class Gate(Protocol):
    """The gate of a node, as far as it is told here (`gate`)."""

    def left(self, principal: Principal, address: str) -> None:
        """Somebody has logged out."""


class LogIn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The request to log in: a user and its password, or a token."""

    user: str = ""
    password: str = ""
    token: str = ""

    def __repr__(self) -> str:
        return "LogIn(…)"


class LoggedIn(msgspec.Struct, frozen=True):
    """The answer to who has logged in."""

    user: str


def login_paths(
    access: Access, gate: Gate, end_what_holds_no_more: Callable[[], None]
) -> list[PathAt]:
    """Return the paths of logins. `end_what_holds_no_more`: ends connections of who has left."""

    async def log_in(ask: Ask) -> Answer:
        ask.only()
        said = msgspec.json.decode(ask.body, type=LogIn)
        if bool(said.token) == bool(said.user or said.password):
            raise BadValue("login", "is a user and its password, or a token")
        given, secret = await access.log_in(
            ask.request, user=said.user, password=said.password, token=said.token
        )
        headers = (cookie(ask.request.channel, secret),)
        return as_json(LoggedIn(given.principal.user))._replace(headers=headers)

    def log_out(ask: Ask) -> Answer:
        ask.only()
        channel = ask.request.channel
        if (principal := access.log_out(ask.request)) is not None:
            gate.left(principal, channel.credentials.address)
            end_what_holds_no_more()
        headers = (cookie(channel, None),)
        return as_json({})._replace(headers=headers)

    return [
        PathAt(
            method="POST",
            path="/v1/login",
            answer=log_in,
            sentence="Logs a browser in: its cookie is a login for the page.",
            takes=JSON_BODY,
            is_open=True,
            body_max=BODY_MAX,
            asks=LogIn,
            answers=LoggedIn,
        ),
        PathAt(
            method="POST",
            path="/v1/logout",
            answer=log_out,
            sentence="Ends the login of a browser's cookie.",
            takes=JSON_BODY,
            is_open=True,
            body_max=BODY_MAX,
        ),
    ]
