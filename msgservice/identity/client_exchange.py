"""`ClientExchange`: the client's end of one login.

It says `-PLUS` wherever the connection is TLS, never less, and ends well only when the server has
proved that it knows the user's record: whoever listens at a node's address is not the node by that.
A token proves nothing of the server, and is said only where nobody can read it, over TLS whose
certificate was verified say.

The server's salt and iterations decide what the client computes. `ITERATIONS_MIN` and `_MAX` bound
it, and `Compute` gives it to a thread. What was computed is kept in memory, for the same salt and
iterations, once the server has proved that it knows the record (`RememberedKeys`; RFC 5802 allows
it): a connection that is made again costs a few hashes.
"""

from __future__ import annotations

import hashlib
import hmac
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from scramp import ScramClient, ScramException
from scramp.utils import saslprep

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


@dataclass(frozen=True, slots=True)
class ScramKeys:
    """The keys of a password under one salt and so many iterations (RFC 5802, section 3).

    `scramp` computes them anew for each login, and gives none away: so what is made of them is made
    here. A test compares it with what `scramp` says.
    """

    password: str = field(repr=False)
    salt: bytes = field(repr=False)
    iterations: int
    client_key: bytes = field(repr=False)
    server_key: bytes = field(repr=False)

    @classmethod
    def derive(cls, password: str, salt: bytes, iterations: int) -> ScramKeys:
        """Compute them: 100,000 iterations take some 35 ms."""
        prepared = saslprep(password).encode()
        salted = hashlib.pbkdf2_hmac("sha256", prepared, salt, iterations)
        client_key, server_key = _mac(salted, b"Client Key"), _mac(salted, b"Server Key")
        return cls(password, salt, iterations, client_key, server_key)

    def proof(self, said: bytes) -> bytes:
        """Return what proves that the client has them, of all that both have said."""
        signature = _mac(hashlib.sha256(self.client_key).digest(), said)
        return bytes(a ^ b for a, b in zip(self.client_key, signature, strict=True))

    def signature(self, said: bytes) -> bytes:
        """Return what the server proves with that it knows the record."""
        return _mac(self.server_key, said)


class RememberedKeys:
    """The keys of the last login that a server has proved, in memory only: one salt's, no more.

    They are as secret as the password is for this user's record, and live as long as who logs in.
    """

    __slots__ = ("_kept",)

    def __init__(self) -> None:
        self._kept: ScramKeys | None = None

    def known(self, password: str, salt: bytes, iterations: int) -> ScramKeys | None:
        """Return those of this password for this salt and so many iterations, if they are there."""
        kept, asked = self._kept, (password, salt, iterations)
        if kept is None or (kept.password, kept.salt, kept.iterations) != asked:
            return None
        return kept

    def keep(self, keys: ScramKeys) -> None:
        """Keep these, and no others: the server has proved that it knows their record."""
        self._kept = keys


def _mac(key: bytes, data: bytes) -> bytes:
    return hmac.digest(key, data, "sha256")


class ClientExchange:
    """One login, of one connection. Failures are `NotAuthenticated`, with a sentence for people.

    `insecure`: a password may be used over a connection that others can read (a token may not).
    `keys`: of logins before this one, of the same `Login`.
    """

    def __init__(
        self,
        login: Login,
        credentials: Credentials,
        *,
        insecure: bool = False,
        keys: RememberedKeys | None = None,
    ) -> None:
        self._login, self._credentials, self._insecure = login, credentials, insecure
        self._remembered = RememberedKeys() if keys is None else keys
        self._receive: Callable[[bytes], Step] = self._unasked
        self._scram: ScramClient | None = None
        self._header, self._bare = "", ""  # of the first message
        self._keys: ScramKeys | None = None
        self._signature = b""  # that the server must have

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
        flag, identity, self._bare = first.split(",", 2)
        self._header = f"{flag},{identity},"
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

    def _server_first(self, data: bytes) -> Say | Compute:
        scram, password = self._scram, self._login.password
        assert scram is not None
        assert password is not None
        with _in_words("the server's answer is no login"):
            told = data.decode()
            scram.set_server_first(told)
        iterations = int(scram.iterations)
        if not ITERATIONS_MIN <= iterations <= ITERATIONS_MAX:
            raise NotAuthenticated(
                f"the server asks for {iterations} iterations,"
                f" {ITERATIONS_MIN} to {ITERATIONS_MAX} are computed"
            )
        salt, nonce = bytes(scram.salt), str(scram.nonce)
        self._scram = None
        known = self._remembered.known(password, salt, iterations)
        if known is not None:
            return self.resume(self._client_final(known, told, nonce))

        def compute() -> str:
            keys = ScramKeys.derive(password, salt, iterations)
            return self._client_final(keys, told, nonce)

        return Compute(compute)

    def _client_final(self, keys: ScramKeys, told: str, nonce: str) -> str:
        """Return the last message, which says no password, but proves that its keys are there."""
        binding = self._header.encode()
        if self._header.startswith("p="):
            assert self._credentials.binding is not None
            binding += self._credentials.binding
        final = f"c={_base64(binding)},r={nonce}"
        said = f"{self._bare},{told},{final}".encode()
        self._keys, self._signature = keys, keys.signature(said)
        return f"{final},p={_base64(keys.proof(said))}"

    def _server_final(self, data: bytes) -> Proven:
        assert self._keys is not None
        wrong = "the server does not know this password either: it is another one"
        proved, _, _ = data.partition(b",")
        if proved.startswith(b"e="):
            raise NotAuthenticated(f"{wrong}: the server returned an error")
        if not hmac.compare_digest(proved, b"v=" + _base64(self._signature).encode()):
            raise NotAuthenticated(f"{wrong}: the server's signature does not match")
        self._remembered.keep(self._keys)
        self._keys = None
        return Proven()

    def _taken(self, data: bytes) -> Proven:
        if data:
            raise NotAuthenticated("the server's answer to a token is no login")
        return Proven()

    def _unasked(self, _data: bytes) -> Step:
        raise NotAuthenticated("the server says more than a login has")


def _base64(data: bytes) -> str:
    return b64encode(data).decode()


@contextmanager
def _in_words(sentence: str) -> Iterator[None]:
    """Failures of the library as ours, without what was looked at: it may be a secret."""
    try:
        yield
    except (ScramException, UnicodeDecodeError) as error:
        reason = error.args[0] if isinstance(error, ScramException) else "not UTF-8"
        raise NotAuthenticated(f"{sentence}: {reason}") from None
