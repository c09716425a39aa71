"""`UsersFile`: the passwords and tokens of users, in a file that commands write and a node reads.

What users may do stands in the configuration; here is only what they are known by, one line each:

    password NAME SCRAM-SHA-256$ITERATIONS:SALT$STORED_KEY:SERVER_KEY
    token NAME ID SHA256 2027-01-01T00:00:00Z        # or `never`
    pb NAME MD5                                      # for Perspective Broker, which has no better

The file is its owner's alone, or it is refused. Lines that begin with `#`, and empty ones, stay as
they are when it is written anew.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from fcntl import LOCK_EX, flock
from pathlib import Path
from types import MappingProxyType
from typing import Final

from msgservice.core.subjects import check_name
from msgservice.errors import BadName, BadValue, ConfigError
from msgservice.identity.passwords import PasswordRecord
from msgservice.identity.private_files import read_private, secret_of, write_private
from msgservice.identity.tokens import VALID_MAX, Token
from msgservice.identity.users import User, Users

NEVER: Final = "never"
NO_SECRET: Final = bytes(32)  # where nobody is configured no login gets so far
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_TIME = "%Y-%m-%dT%H:%M:%SZ"
_is_md5 = re.compile("[0-9a-f]{32}", re.ASCII).fullmatch
PROBLEMS_MAX = 20  # of one file that are told


@dataclass(frozen=True, slots=True)
class UsersFile:
    """A users file: its lines, and what they say. A value; each change returns another."""

    lines: tuple[str, ...] = field(default=(), repr=False)
    passwords: MappingProxyType[str, PasswordRecord] = field(init=False, repr=False)
    tokens: tuple[Token, ...] = field(init=False)
    digests: MappingProxyType[str, bytes] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        passwords: dict[str, PasswordRecord] = {}
        tokens: dict[str, Token] = {}
        digests: dict[str, bytes] = {}
        problems = []
        for number, line in enumerate(self.lines, 1):
            try:
                _take(line, passwords, tokens, digests)
            except (BadValue, BadName) as error:
                problems.append(f"line {number}: {error}")
        if problems:
            raise ConfigError(problems[:PROBLEMS_MAX])
        object.__setattr__(self, "passwords", MappingProxyType(passwords))
        object.__setattr__(self, "tokens", tuple(tokens.values()))
        object.__setattr__(self, "digests", MappingProxyType(digests))

    def with_password(self, user: str, record: PasswordRecord) -> UsersFile:
        """The file where this is the user's password, in the place of another one of his."""
        check_name(user)
        return self._replaced(["password", user], f"password {user} {record.text()}")

    def without_password(self, user: str) -> UsersFile:
        """The file where the user has no password. Raises `BadValue` where there was none."""
        if user not in self.passwords:
            raise BadValue("password", f"of {user!r}: there is none")
        return self._replaced(["password", user], None)

    def with_digest(self, user: str, digest: bytes) -> UsersFile:
        """The file where this is the user's MD5 for Perspective Broker, in the place of another."""
        check_name(user)
        return self._replaced(["pb", user], f"pb {user} {digest.hex()}")

    def without_digest(self, user: str) -> UsersFile:
        """The file where the user has none. Raises `BadValue` where there was none."""
        if user not in self.digests:
            raise BadValue("password", f"of {user!r} for Perspective Broker: there is none")
        return self._replaced(["pb", user], None)

    def with_token(self, token: Token, wall: int) -> UsersFile:
        """The file with one token more, and without those of its user that have expired.

        Raises `BadValue` where the user has as many that are valid as it may, at this time of the
        wall clock in ms.
        """
        check_name(token.user)
        others = [other for other in self.tokens if other.user == token.user]
        valid = [other.id for other in others if other.is_valid(wall)]
        if len(valid) >= VALID_MAX:
            raise BadValue(
                "token",
                f"is one too many: {token.user!r} has {' and '.join(valid)},"
                f" at most {VALID_MAX} are valid at a time: revoke one",
            )
        made = self
        for other in others:
            if other.id not in valid:
                made = made.without_token(other.id)
        expires = NEVER if token.expires is None else time_text(token.expires)
        line = f"token {token.user} {token.id} {token.digest.hex()} {expires}"
        return UsersFile((*made.lines, line))

    def without_token(self, id_: str) -> UsersFile:
        """The file without this token. Raises `BadValue` where there is none of this id."""
        for token in self.tokens:
            if token.id == id_:
                return self._replaced(["token", token.user, id_], None)
        raise BadValue("token", f"{id_!r}: there is none of this id")

    def _replaced(self, words: list[str], line: str | None) -> UsersFile:
        """The file with a line in the place of the one that begins with these words."""
        lines: list[str] = []
        is_written = line is None
        for old in self.lines:
            if old.split()[: len(words)] != words:
                lines.append(old)
            elif line is not None and not is_written:
                lines.append(line)
                is_written = True
        if line is not None and not is_written:
            lines.append(line)
        return UsersFile(tuple(lines))

    def text(self) -> str:
        """The file as it is kept."""
        return "".join(f"{line}\n" for line in self.lines)


def _take(
    line: str,
    passwords: dict[str, PasswordRecord],
    tokens: dict[str, Token],
    digests: dict[str, bytes],
) -> None:
    match line.split():
        case []:
            pass
        case [first, *_] if first.startswith("#"):
            pass
        case ["password", user, record]:
            if user in passwords:
                raise BadValue("password", f"of {user!r} is said twice")
            passwords[check_name(user)] = PasswordRecord.parse(record)
        case ["pb", user, digest]:
            if user in digests:
                raise BadValue("pb", f"of {user!r} is said twice")
            if _is_md5(digest) is None:
                raise BadValue("pb", f"of {user!r} is no MD5 in hex")
            digests[check_name(user)] = bytes.fromhex(digest)
        case ["token", user, id_, digest, expires]:
            if id_ in tokens:
                raise BadValue("token", f"{id_!r} is said twice")
            try:
                hashed = bytes.fromhex(digest)
            except ValueError:
                raise BadValue("token", f"{id_!r} has a SHA-256 that is no hex") from None
            until = None if expires == NEVER else time_of(expires)
            tokens[id_] = Token(id=id_, digest=hashed, user=check_name(user), expires=until)
        case _:
            # The line may hold a secret that somebody pasted in: it is not repeated.
            raise BadValue(
                "it", "is no `password NAME RECORD`, `token NAME ID SHA256 TIME` or `pb NAME MD5`"
            )


def read_users_file(path: Path) -> UsersFile:
    """Return what a users file says. `ConfigError` with all that is wrong with it, or its mode."""
    data = read_private(path)
    try:
        return UsersFile(tuple(data.decode().removesuffix("\n").split("\n")))
    except UnicodeDecodeError:
        raise ConfigError([f"{path}: not UTF-8"]) from None
    except ConfigError as error:
        raise ConfigError([f"{path}: {problem}" for problem in error.problems]) from None


def load_users(users: Iterable[User], users_file: Path | None, folder: Path) -> Users:
    """Return these users with what a users file says of them; waits for the disk.

    `folder`: the data folder, whose secret is made where there is a user and none yet. Raises
    `ConfigError` for a file that cannot be used, `BadValue` where users and file disagree, and
    `OSError` where the secret cannot be written.
    """
    users = tuple(users)
    if not users:
        return Users(secret=NO_SECRET)
    file = UsersFile() if users_file is None else read_users_file(users_file)
    return Users(
        users,
        secret=secret_of(folder),
        passwords=file.passwords,
        tokens=file.tokens,
        digests=file.digests,
    )


def change_users_file(path: Path, change: Callable[[UsersFile], UsersFile]) -> UsersFile:
    """Write a users file anew, made when there is none, and return what it holds now.

    Two commands at a time wait for each other. `ConfigError` as for reading, `OSError` where it
    cannot be written, and what `change` raises: then it is as it was.
    """
    path = path.resolve()
    with _locked(path):
        changed = change(read_users_file(path))
        write_private(path, changed.text().encode())
    return changed


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """The file is this process's to write anew: the lock is on the file that has the name now."""
    while True:
        descriptor = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            flock(descriptor, LOCK_EX)
            if _has_name(descriptor, path):
                yield
                return
        finally:
            os.close(descriptor)


def _has_name(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def time_text(wall: int) -> str:
    """The text of a time of the wall clock in ms, UTC, to the second."""
    return (_EPOCH + timedelta(milliseconds=wall)).strftime(_TIME)


def time_of(text: str) -> int:
    """The time that a text says, in ms of the wall clock; `BadValue`."""
    try:
        parsed = datetime.strptime(text, _TIME).replace(tzinfo=UTC)
    except ValueError:
        raise BadValue("time", f"{text[:32]!r} is none like 2027-01-01T00:00:00Z") from None
    return (parsed - _EPOCH) // timedelta(milliseconds=1)
