"""`ClientExchange`: the client's end of one login.

It says `-PLUS` wherever the connection is TLS, never less, and ends well only when the server has
proved that it knows the user's record: whoever listens at a node's address is not the node by that.
A token proves nothing of the server, and is said only where nobody can read it, over TLS whose
certificate was verified say.

The server's salt and iterations decide what the client computes. `ITERATIONS_MIN` and `_MAX` bound
it, and `Compute` gives it to a thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from scramp import ScramClient, ScramException

from msgservice.credentials import Credentials
from msgservice.errors import BadValue, NotAuthenticated
from msgservice.identity.passwords import (
    ITERATIONS_MAX,
    ITERATIONS_MIN,
    SCRAM,
    SCRAM_PLUS,
    check_password,
    check_user_name,
)
from msgservice.identity.server_exchange import BINDING, SEPARATOR, TOKEN
from msgservice.identity.steps import AUTH_BYTES_MAX, Compute, Proven, Say
from msgservice.identity.tokens import token_id

Step = Say | Compute | Proven


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """The user that a client logs in as, with a password or a token.

    With a token the user need not be said: the token knows it. Raises `BadValue`, which says no
    secret, for what can be no login.
    """

    user: str = ""
    password: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if (self.password is None) == (self.token is None):
            raise BadValue("login", "needs a password or a token, and not both")
        if self.token is not None:
            if token_id(self.token) is None:
                raise BadValue("token", "is none: it has the form ms_ID_RANDOM")
            return
        assert self.password is not None
        if not self.user:
            raise BadValue("user", "is missing, whose password it is")
        check_user_name(self.user)
        check_password(self.password)


class ClientExchange:
    """One login, of one connection. Failures are `NotAuthenticated`, with a sentence for people.

    `insecure`: a password may be used over a connection that others can read (a token may not).
    """

    def __init__(self, login: Login, credentials: Credentials, *, insecure: bool = False) -> None:
        self._login, self._credentials, self._insecure = login, credentials, insecure
        self._receive: Callable[[bytes], Step] = self._unasked
        self._scram: ScramClient | None = None

    def begin(self) -> bytes:
        """Return the first message."""
        if not self._credentials.is_private and (self._login.token or not self._insecure):
            what = "token" if self._login.token else "password"
            raise NotAuthenticated(
                f"a {what} is not used on a connection without TLS to another machine"
            )
        if self._login.token is not None:
            self._receive = self._taken
            return TOKEN.encode() + SEPARATOR + self._login.token.encode()
        assert self._login.password is not None
        mechanism, binding = SCRAM, None
        if self._credentials.how == "tls":
            if self._credentials.binding is None:
                raise NotAuthenticated(
                    "the server's certificate has no hash that a login could be bound to"
                )
            mechanism, binding = SCRAM_PLUS, (BINDING, self._credentials.binding)
        self._scram = ScramClient([mechanism], self._login.user, self._login.password, binding)
        self._receive = self._server_first
        first: str = self._scram.get_client_first()
        return mechanism.encode() + SEPARATOR + first.encode()

    def receive(self, data: bytes) -> Step:
        """Take the next message of the server. After `Proven`, or an error, there is none."""
        receive, self._receive = self._receive, self._unasked
        if len(data) > AUTH_BYTES_MAX:
            raise NotAuthenticated(
                f"the server says {len(data)} bytes in a login, at most {AUTH_BYTES_MAX} allowed"
            )
        return receive(data)

    def resume(self, result: str) -> Say:
        """Return what is said next, with the result of the work that `Compute` asked for."""
        self._receive = self._server_final
        return Say(result.encode())

    def _server_first(self, data: bytes) -> Compute:
        assert self._scram is not None
        with _in_words("the server's answer is no login"):
            self._scram.set_server_first(data.decode())
        iterations = int(self._scram.iterations)
        if not ITERATIONS_MIN <= iterations <= ITERATIONS_MAX:
            raise NotAuthenticated(
                f"the server asks for {iterations} iterations,"
                f" {ITERATIONS_MIN} to {ITERATIONS_MAX} are computed"
            )
        return Compute(self._scram.get_client_final)

    def _server_final(self, data: bytes) -> Proven:
        assert self._scram is not None
        with _in_words("the server does not know this password either: it is another one"):
            self._scram.set_server_final(data.decode())
        self._scram = None
        return Proven()

    def _taken(self, data: bytes) -> Proven:
        if data:
            raise NotAuthenticated("the server's answer to a token is no login")
        return Proven()

    def _unasked(self, _data: bytes) -> Step:
        raise NotAuthenticated("the server says more than a login has")


@contextmanager
def _in_words(sentence: str) -> Iterator[None]:
    """Failures of the library as ours, without what was looked at: it may be a secret."""
    try:
        yield
    except (ScramException, UnicodeDecodeError) as error:
        reason = error.args[0] if isinstance(error, ScramException) else "not UTF-8"
        raise NotAuthenticated(f"{sentence}: {reason}") from None
