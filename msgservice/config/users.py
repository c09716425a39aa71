"""The `[[user]]` tables: who may log in, by what each is known, and what each may do.

Judged as all of the configuration: each value alone, and what two users cannot both be known by.
What stands in the users file is judged with it (`identity.users_file`).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from msgservice.config.reader import Reader, Table, read_text
from msgservice.config.toml import KeyPath, parse_document
from msgservice.core.subjects import check_pattern
from msgservice.errors import BadName, BadSubject, BadValue, ConfigError
from msgservice.identity.passwords import PasswordRecord
from msgservice.identity.rules import VERBS, Rules
from msgservice.identity.users import User, check_certificate, check_uid, folded
from msgservice.identity.users_file import read_users_file
from msgservice.limits import Limits

USER_KEYS = ("name", "password", "certificate", "uid", "names", *VERBS)
_PASSWORD_WANTED = "must be the record that `msgservice passwd` prints, a string"  # noqa: S105 - a sentence

V = TypeVar("V", str, int)


def read_users(reader: Reader, limits: Limits) -> tuple[User, ...]:
    """Return the users that can be; what is wrong with the others is noted."""
    tables = reader.value(("user",), list[Table], [])
    found: list[User] = []
    taken: dict[object, KeyPath] = {}
    for index in range(len(tables)):
        path = ("user", index)
        user = _user(reader, path, limits)
        if user is None:
            continue
        known = [("name", user.name)]
        known += [("certificate", folded(name)) for name in user.certificates]
        known += [("uid", str(uid)) for uid in user.uids]
        for key, value in known:
            if (key, value) in taken:
                first = reader.place(taken[key, value])
                reader.problem((*path, key), f"{value!r} is another user's, at {first}")
            taken.setdefault((key, value), (*path, key))
        found.append(user)
    return tuple(found)


def check_users_file(reader: Reader, path: KeyPath, file: Path, users: tuple[User, ...]) -> None:
    """Note what is wrong with a users file, and where it and the configuration disagree."""
    try:
        said = read_users_file(file)
    except ConfigError as error:
        for problem in error.problems:
            reader.problem(path, problem)
        return
    if not users:
        # The node would ask nobody to log in, though somebody meant it to.
        reader.problem(path, "there is no [[user]], so nobody would be asked to log in")
    for user in users:
        if user.password is not None and user.name in said.passwords:
            reader.problem(path, f"{file} has a password of {user.name!r} too: one must go")


def users_file_of(file: Path, user: str | None = None) -> Path:
    """Return the users file that a configuration names, which need not be there yet.

    For commands that write it; of the configuration nothing else is judged. `ConfigError` where it
    names none, or has not this user.
    """
    document = parse_document(read_text(file, str(file)))
    reader = Reader(str(file), document, {})
    named = reader.value(("node", "users"), str, None)
    if reader.problems:
        raise ConfigError(reader.problems)
    if named is None:
        raise ConfigError([f"{file}: node.users: is missing; it names the users file"])
    tables = reader.value(("user",), list[Table], [])
    if user is not None and user not in [table.get("name") for table in tables]:
        raise ConfigError([f"{file}: there is no [[user]] named {user!r}"])
    return Path(os.path.abspath(file.parent / named))  # noqa: PTH100 - as `absolute_path` has it


def _user(reader: Reader, path: KeyPath, limits: Limits) -> User | None:
    """Return the user at `path`; None where it has no usable name."""
    reader.table(path, USER_KEYS)
    name = reader.required((*path, "name"), str)
    has_name = name is not None and _is_right(reader, (*path, "name"), lambda: User(name=name))
    certificates = _several(reader, (*path, "certificate"), str | list[str], check_certificate)
    uids = _several(reader, (*path, "uid"), int | list[int], check_uid)
    password = _password(reader, (*path, "password"))
    names = _patterns(reader, (*path, "names"), limits)
    rules = Rules(
        send=_patterns(reader, (*path, "send"), limits),
        to=_patterns(reader, (*path, "to"), limits),
        receive=_patterns(reader, (*path, "receive"), limits),
        request=_patterns(reader, (*path, "request"), limits),
        relay=reader.value((*path, "relay"), bool, False),
    )
    if name is None or not has_name:
        return None
    return User(
        name=name, password=password, certificates=certificates, uids=uids, rules=rules, names=names
    )


def _is_right(reader: Reader, path: KeyPath, make: Callable[[], object]) -> bool:
    """Whether a value can be made; what is wrong with it is noted."""
    try:
        make()
    except (BadValue, BadName, BadSubject) as error:
        reader.problem(path, error.reason if isinstance(error, BadValue) else str(error))
        return False
    return True


def _password(reader: Reader, path: KeyPath) -> PasswordRecord | None:
    text = reader.value(path, Any, None)
    if text is None:
        return None
    if not isinstance(text, str):  # no sentence of the reader's, which would show it
        reader.problem(path, _PASSWORD_WANTED)
        return None
    try:
        return PasswordRecord.parse(text)
    except BadValue as error:
        reader.problem(path, error.reason)
        return None


def _several(reader: Reader, path: KeyPath, kind: Any, check: Callable[[V], None]) -> tuple[V, ...]:
    """Return what is said at `path`, one or a list, each once; without what cannot be."""
    value = reader.value(path, kind, [])
    values: list[V] = value if isinstance(value, list) else [value]
    return tuple(
        one for one in dict.fromkeys(values) if _is_right(reader, path, partial(check, one))
    )


def _patterns(reader: Reader, path: KeyPath, limits: Limits) -> tuple[str, ...]:
    """Return the patterns at `path` that can be used, as many as a receiver may have."""
    patterns = reader.value(path, list[str], [])
    if len(patterns) > limits.patterns:
        reader.problem(
            path, f"{len(patterns)} patterns, at most {limits.patterns} allowed (patterns)"
        )
    found: list[str] = []
    for pattern in patterns:
        if not reader.check(path, check_pattern, pattern):
            continue
        if pattern in found:
            reader.problem(path, f"{pattern!r} is there twice")
        found.append(pattern)
    return tuple(found)
