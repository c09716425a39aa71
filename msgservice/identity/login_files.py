"""Files with the login of a node at another one: a user with a password, or a token.

They are read for each connection, so a new secret needs no restart; and only as private files are
(`private_files`). What is wrong with one keeps a node from logging in, and from nothing else.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from msgservice.credentials import Credentials
from msgservice.errors import BadValue, ConfigError, NotAuthenticated
from msgservice.identity.client_exchange import ClientExchange, Login
from msgservice.identity.private_files import read_private
from msgservice.identity.prover import LoginProver


class _Said(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    user: str = ""
    password: str | None = None
    token: str | None = None

    def __repr__(self) -> str:
        return f"Said({self.user!r})"


def read_login(path: Path) -> Login:
    """Return the login that a file has. `ConfigError`, which shows no secret, where it has none."""
    data = read_private(path)
    try:
        said = msgspec.convert(tomllib.loads(data.decode()), _Said)
        return Login(user=said.user, password=said.password, token=said.token)
    except UnicodeDecodeError:
        reason = "is not UTF-8"
    except tomllib.TOMLDecodeError as error:
        reason = f"is not TOML: {error}"
    except msgspec.ValidationError as error:
        reason = f"{error} (there are user, password and token)"
    except BadValue as error:
        reason = str(error)
    raise ConfigError([f"{path}: {reason}"])


class FileProver:
    """A login that a file has, as it is when a connection needs it (`connection.Prover`)."""

    def __init__(self, reactor: IReactorTime, file: Path) -> None:
        self._reactor, self._file = reactor, file
        self._login: Login | None = None
        self._prover: LoginProver | None = None

    def exchange(self, credentials: Credentials) -> ClientExchange:
        """Return this end of a login; `NotAuthenticated` where the file has none."""
        try:
            login = read_login(self._file)
        except ConfigError as error:
            raise NotAuthenticated(f"no login: {'; '.join(error.problems)}") from None
        if self._prover is None or login != self._login:
            self._login, self._prover = login, LoginProver(self._reactor, login)
        return self._prover.exchange(credentials)

    def compute(self, work: Callable[[], str]) -> Deferred[str]:
        """See `LoginProver`."""
        assert self._prover is not None  # an exchange has begun
        return self._prover.compute(work)
