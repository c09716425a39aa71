"""`ServerExchange`: the node's end of one login.

The first message says the mechanism, a zero byte, and what the mechanism says first: SCRAM-SHA-256
(RFC 5802, RFC 7677), the same with `-PLUS`, bound to the certificate of this TLS connection, or
TOKEN, whose only message is the token's secret. Over TLS only `-PLUS` is taken, so that who sits
between with a certificate of his own can pass nothing on.

A user that there is not goes the same way as one that there is, to the same end and in the same
words. No step computes for longer than some hundred microseconds: the hard part of SCRAM is the
client's, and what has many iterations here was computed when the password was set.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from unicodedata import ucd_3_2_0

from scramp import ScramException, ScramMechanism
from scramp.core import ScramServer

from msgservice.credentials import Credentials
from msgservice.errors import NotAuthenticated
from msgservice.identity.passwords import SCRAM, SCRAM_PLUS
from msgservice.identity.principal import Principal
from msgservice.identity.steps import AUTH_BYTES_MAX, Deny, Say, Welcome
from msgservice.identity.throttle import Throttle
from msgservice.identity.users import Users
from msgservice.limits import NAME_BYTES_MAX

TOKEN = "TOKEN"  # noqa: S105 - the name of the mechanism
BINDING = "tls-server-end-point"
_is_mechanism = re.compile(r"[A-Z0-9_-]{1,20}", re.ASCII).fullmatch  # RFC 4422
SEPARATOR = b"\0"  # behind the mechanism, in the first message of a login

Step = Say | Welcome | Deny


class ServerExchange:
    """One login, of one connection: bytes of AUTH frames in, a step out, and never an error raised.

    `credentials`: of the connection. `wall`: milliseconds of the wall clock, by which tokens
    expire. `now`: seconds of a monotonic clock, for the throttle.
    """

    def __init__(
        self,
        users: Users,
        credentials: Credentials,
        throttle: Throttle,
        *,
        wall: Callable[[], int],
        now: Callable[[], float],
    ) -> None:
        self._users, self._credentials, self._throttle = users, credentials, throttle
        self._wall, self._now = wall, now
        self._receive: Callable[[bytes], Step] = self._first
        self._user = ""
        self._scram: ScramServer | None = None

    def receive(self, data: bytes) -> Step:
        """Take the next message of the client. After a `Welcome` or `Deny` there is none."""
        if len(data) > AUTH_BYTES_MAX:
            step: Step = self._deny(
                f"AUTH of {len(data)} bytes, at most {AUTH_BYTES_MAX} allowed", "message too long"
            )
        else:
            step = self._receive(data)
        if not isinstance(step, Say):
            self._receive, self._scram = self._beyond, None
        return step

    def _first(self, data: bytes) -> Step:
        mechanism, separator, message = data.partition(SEPARATOR)
        try:
            name, text = mechanism.decode("ascii"), message.decode()
        except UnicodeDecodeError:
            return self._malformed("not UTF-8")
        if separator and name in (SCRAM, SCRAM_PLUS):
            return self._scram_first(name, text)
        if separator and name == TOKEN:
            return self._token(text)
        # What has not the form of a name may be a secret that was said in its place.
        said = repr(name) if _is_mechanism(name) else "something that is no mechanism's name"
        return self._deny(
            f"no login by {said}: by {SCRAM}, {SCRAM_PLUS} over TLS, or {TOKEN}",
            f"unknown mechanism: {said}",
        )

    # --- SCRAM

    def _scram_first(self, name: str, text: str) -> Step:
        binding = self._credentials.binding
        if binding is None and name == SCRAM_PLUS:
            return self._deny(
                f"no {SCRAM_PLUS} here: this connection has no TLS where it ends",
                "channel binding asked for, and no TLS",
            )
        if name == SCRAM and (binding is not None or self._credentials.how == "tls"):
            return self._deny(
                f"over TLS the login is {SCRAM_PLUS}", "no channel binding, though there is TLS"
            )
        if not _is_fit(_name_in(text)):
            return self._malformed("a user's name that is too long, or not normalised")
        scram = ScramMechanism(name).make_server(
            self._record, None if binding is None else (BINDING, binding)
        )
        try:
            scram.set_client_first(text)
            answer: str = scram.get_server_first()
        except ScramException as error:
            return self._malformed(error.args[0])
        if not self._may_try():
            return self._too_often()
        self._scram, self._receive = scram, self._scram_final
        return Say(answer.encode())

    def _record(self, user: str) -> tuple[bytes, bytes, bytes, int]:
        self._user = user
        record = self._users.record(user)
        return record.salt, record.stored_key, record.server_key, record.iterations

    def _scram_final(self, data: bytes) -> Step:
        assert self._scram is not None
        # Looked at again: many may have begun before the first of them failed.
        if not self._may_try():
            return self._too_often()
        try:
            self._scram.set_client_final(data.decode())
            answer: str = self._scram.get_server_final()
        except (ScramException, UnicodeDecodeError) as error:
            return self._failed("wrong user or password", f"no proof: {_reason(error)}")
        principal = self._users.by_password(self._user)
        if principal is None:
            return self._failed("wrong user or password", "no such user")
        return self._welcome(principal, answer.encode())

    # --- tokens

    def _token(self, secret: str) -> Step:
        if not self._credentials.is_private:
            return self._deny(
                "no token over a connection that others can read: use TLS",
                "a token was said where others can read it: revoke it",
            )
        token = self._users.token_of(secret)
        self._user = "" if token is None else token.user
        if not self._may_try():
            return self._too_often()
        principal = self._users.by_token(secret, self._wall())
        if principal is None:
            why = f"token {token.id} is wrong or has expired" if token else "no such token"
            return self._failed("the token is unknown, wrong or expired", why)
        return self._welcome(principal, b"")

    # --- ends

    def _may_try(self) -> bool:
        return self._throttle.allows(self._credentials.address, self._key, self._now())

    @property
    def _key(self) -> str:
        """The user's name as failures are counted by: no longer than names are."""
        return self._user[:NAME_BYTES_MAX]

    def _welcome(self, principal: Principal, data: bytes) -> Welcome:
        self._throttle.succeeded(self._credentials.address, self._key)
        return Welcome(principal, data)

    def _failed(self, sentence: str, why: str) -> Deny:
        self._throttle.failed(self._credentials.address, self._key, self._now())
        return self._deny(sentence, why)

    def _too_often(self) -> Deny:
        return self._deny("too many logins failed: try again in a minute", "too many failed before")

    def _malformed(self, why: str) -> Deny:
        return self._deny("this is no message of a login", f"malformed: {why}")

    def _beyond(self, _data: bytes) -> Deny:
        return self._deny("the login is over", "message after its end")

    def _deny(self, sentence: str, why: str) -> Deny:
        return Deny(NotAuthenticated(sentence), self._throttle.delay, why, self._key)


def _name_in(client_first: str) -> str:
    """The user's name in SCRAM's first message, as it is escaped; the library judges the rest."""
    bare = client_first.split(",", 2)[-1]
    return bare.partition(",")[0].removeprefix("n=")


def _is_fit(name: str) -> bool:
    """Whether the library may look at a name, which takes it 5 us for each character.

    Some characters become 18 in the preparation of names: 2 KB of them would take 50 ms. Users'
    names are prepared when they are configured, so clients say them so.
    """
    return (
        len(name) <= 3 * NAME_BYTES_MAX  # `,` and `=` are escaped as three
        and len(name.replace("=2C", ",").replace("=3D", "=").encode()) <= NAME_BYTES_MAX
        and ucd_3_2_0.is_normalized("NFKC", name)
    )


def _reason(error: Exception) -> str:
    return str(error.args[0]) if isinstance(error, ScramException) else "not UTF-8"
