"""The login of a command, and the node that a profile names. No secret is ever an argument.

    secret   MSGSERVICE_PASSWORD or MSGSERVICE_TOKEN, else the profile's, else asked for
    user     --user, else MSGSERVICE_USER, else the profile's
    node     --node, else MSGSERVICE_NODE, else the profile's, else the default

The profile's secret is its own user's: who names another is not logged in with it. A profile is a
file of its owner alone, like all files with secrets (`identity.private_files`). Without --profile
it is `msgservice.toml` in the folder of one's configuration; tables there are profiles with names.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from msgservice.cli.variables import PASSWORD, TOKEN, default_profile
from msgservice.config.addresses import absolute_address
from msgservice.errors import BadValue, ConfigError
from msgservice.identity.client_exchange import Login
from msgservice.identity.private_files import read_private


class _Profile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    node: str | None = None
    user: str | None = None
    password: str | None = None
    token: str | None = None

    def __repr__(self) -> str:
        return f"Profile({self.node!r}, {self.user!r})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """The node of a profile, if it has one, and the login of a command, if there is one."""

    node: str | None = None
    login: Login | None = field(default=None, repr=False)


def is_name(profile: str) -> bool:
    """Return whether a --profile is a table of the default file: else it is a file's path."""
    return "/" not in profile and not profile.endswith(".toml") and not Path(profile).exists()


def choose(
    profile: str | Path | None,
    user: str | None,
    *,
    environ: Mapping[str, str],
    ask: Callable[[str], str] | None,
) -> Chosen:
    """Return who a command is. `ask` asks people for a user's password; None: there are none.

    `profile`: a file, or the name of a table in the default file; None: the default file, if it is
    there. Raises `ConfigError`, which shows no secret.
    """
    said, profile = _chosen_profile(profile, default_profile(environ))
    password, token = environ.get(PASSWORD) or None, environ.get(TOKEN) or None
    where = f"{PASSWORD} and {TOKEN}"
    if password is None and token is None and user in (None, said.user):
        password, token, where = said.password, said.token, str(profile)
    if password is not None and token is not None:
        raise ConfigError([f"{where}: a password and a token, only one can be the login"])
    if user is None and (token is None or token == said.token):
        user = said.user  # which says nothing of a token that came with the environment
    if password is None and token is None:
        if user is None:
            return Chosen(node=said.node)
        if ask is None:
            raise ConfigError(
                [f"user {user!r} has no password: set {PASSWORD} or {TOKEN}, or give --profile"]
            )
        password = ask(user)
    if password is not None and not user:
        whose = "give --user, MSGSERVICE_USER, or user in the profile"
        raise ConfigError([f"a password, and nobody says whose: {whose}"])
    try:
        login = Login(user=user or "", password=password, token=token)
    except BadValue as error:
        raise ConfigError([f"the login cannot be used: {error}"]) from None
    return Chosen(node=said.node, login=login)


def _chosen_profile(profile: str | Path | None, default: Path) -> tuple[_Profile, Path | None]:
    """Return the profile, and the file that it stands in."""
    if profile is None:
        return (_read(default), default) if default.exists() else (_Profile(), None)
    if isinstance(profile, str) and is_name(profile):
        if not default.exists():
            raise ConfigError(
                [
                    f"there is no profile {profile!r}: neither a table of {default},"
                    " which is not there, nor a file"
                ]
            )
        return _read(default, profile), default
    return _read(Path(profile)), Path(profile)


def _read(path: Path, table: str | None = None) -> _Profile:
    data = read_private(path)
    try:
        values = tomllib.loads(data.decode())
        tables = {name for name, value in values.items() if isinstance(value, dict)}
        if table is None:
            values = {name: value for name, value in values.items() if name not in tables}
        elif table in tables:
            values = values[table]
        else:
            there = ", ".join(sorted(tables)) or "none"
            raise ConfigError([f"{path} has no profile {table!r}: there is {there}"])
        said = msgspec.convert(values, _Profile)
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        reason = "not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
        raise ConfigError([f"{path}: {reason}"]) from None
    except msgspec.ValidationError as error:
        raise ConfigError([f"{path}: {error} (there are node, user, password and token)"]) from None
    if said.node is None:
        return said
    return msgspec.structs.replace(said, node=absolute_address(said.node, path.absolute().parent))
