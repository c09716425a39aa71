"""Logins from the page's form: who has logged in, by a cookie that only its browser can say.

    POST /v1/login      a user and its password, or a token: a cookie
    POST /v1/logout     the login ends, at all connections
    GET  …              is asked as that user, where the page says so

A login ends when it is ended, was not used for a while, is old, or when its user is gone, or has
another password or other rights; a new one ends that which its browser had before. Logins are kept
in memory alone, as the hash of what their cookies say: a node that starts anew knows none.

A browser says a cookie whoever's page has it ask, so by itself it is no login: a request must also
have the header `Msgservice-Page`, which no page of another origin can add unasked (CORS), and an
answer that would allow it is never given. That comes on top of what `transport.http.browsers`
turns away, and of SameSite, for which another port of the same machine is the same site.
"""

from __future__ import annotations

import hashlib
import secrets
from collections import OrderedDict
from collections.abc import Callable

from msgservice.errors import LimitReached
from msgservice.identity.principal import Principal
from msgservice.limits import Limits
from msgservice.transport.http.channel import HttpChannel, HttpRequest

HEADER = "Msgservice-Page"
SECRET_BYTES = 32
SECRET_CHARS = 43  # of those, in base64


class WebLogin:
    """A login of one browser. `key`: the hash of its secret; times by the monotonic clock."""

    __slots__ = ("began", "key", "principal", "used")

    def __init__(self, principal: Principal, key: bytes, now: float) -> None:
        self.principal = principal
        self.key = key
        self.began = self.used = now


class Logins:
    """The logins of all browsers, the one first that was not used for longest."""

    def __init__(self, now: Callable[[], float], limits: Limits) -> None:
        self._now = now
        self._limits = limits
        self._all: OrderedDict[bytes, WebLogin] = OrderedDict()

    def __len__(self) -> int:
        return len(self._all)

    def begin(self, principal: Principal) -> str:
        """Return the secret of a new login.

        A user that has `user_http_logins` loses the one that it has not used for longest. Raises
        `LimitReached` where all users have `http_logins`.
        """
        self.forget(lambda _: True)
        own = [key for key, login in self._all.items() if login.principal.user == principal.user]
        if len(own) >= self._limits.user_http_logins:
            del self._all[own[0]]
        if len(self._all) >= self._limits.http_logins:
            raise LimitReached("http_logins", self._limits.http_logins)
        secret = secrets.token_urlsafe(SECRET_BYTES)
        key = _key(secret)
        self._all[key] = WebLogin(principal, key, self._now())
        return secret

    def find(self, secret: str) -> WebLogin | None:
        """Return the login of a secret, which is used now; None: there is none, or it has ended."""
        login = self._all.get(_key(secret))
        return login if login is not None and self.use(login) else None

    def use(self, login: WebLogin) -> bool:
        """Return whether a login has not ended; then it is used now."""
        if self._all.get(login.key) is not login:
            return False
        if self._is_over(login):
            del self._all[login.key]
            return False
        login.used = self._now()
        self._all.move_to_end(login.key)
        return True

    def end(self, secret: str) -> Principal | None:
        """End the login of a secret; return whose it was; None: there is none."""
        login = self._all.pop(_key(secret), None)
        return None if login is None else login.principal

    def forget(self, holds: Callable[[Principal], bool]) -> None:
        """Forget the logins that are over, or whose principal holds no longer."""
        for key, login in list(self._all.items()):
            if self._is_over(login) or not holds(login.principal):
                del self._all[key]

    def _is_over(self, login: WebLogin) -> bool:
        now = self._now()
        return (
            now - login.used >= self._limits.http_login_idle
            or now - login.began >= self._limits.http_login_seconds
        )


def _key(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


def secret_of(request: HttpRequest) -> str | None:
    """Return what the cookie of a request says, whoever's page has asked; None: it has none."""
    name = cookie_name(request.channel)
    for line in request.requestHeaders.getRawHeaders(b"cookie", ()):
        for pair in line.decode("latin-1").split(";"):  # others of this host say theirs
            said, _, value = pair.strip().partition("=")
            if said == name and len(value) == SECRET_CHARS:
                return str(value)
    return None


def login_of(request: HttpRequest) -> str | None:
    """Return the secret by which a request of the page logs in; None: it does not."""
    return secret_of(request) if request.requestHeaders.hasHeader(HEADER.encode()) else None


def cookie_name(channel: HttpChannel) -> str:
    """Return the name of the cookie of a listener: cookies do not tell ports apart, names do."""
    port = getattr(channel.transport.getHost(), "port", "")
    name = f"msgservice-{port}" if port else "msgservice"
    return f"__Host-{name}" if channel.is_secure else name


def cookie(channel: HttpChannel, secret: str | None) -> tuple[bytes, bytes]:
    """Return the header that has a browser keep a secret until it is closed; None: forget it."""
    said = f"{cookie_name(channel)}={secret or ''}; Path=/; HttpOnly; SameSite=Strict"
    if channel.is_secure:
        said += "; Secure"
    if secret is None:
        said += "; Max-Age=0"
    return b"Set-Cookie", said.encode()
