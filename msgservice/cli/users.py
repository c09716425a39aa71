"""`msgservice passwd`, `token` and `can`: who may log in, and what each may do. They ask no node.

Secrets come from a terminal or a pipe and go to standard output: on a command line others would see
them, and the shell would keep them.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from hashlib import md5
from pathlib import Path
from typing import Concatenate, ParamSpec

import click
import msgspec

from msgservice.administration import OPERATIONS
from msgservice.cli.exit_codes import ExitCode
from msgservice.cli.output import out, plain_table
from msgservice.cli.session import Whole
from msgservice.config.config import load_config
from msgservice.config.users import users_file_of
from msgservice.core.subjects import check_name, check_pattern, check_subject
from msgservice.errors import BadName, BadSubject, BadValue, ConfigError, MsgServiceError
from msgservice.identity.passwords import (
    ITERATIONS,
    ITERATIONS_MAX,
    ITERATIONS_MIN,
    PASSWORD_BYTES_MAX,
    PasswordRecord,
    check_password,
)
from msgservice.identity.rules import VERBS, Patterns
from msgservice.identity.tokens import Token, new_token
from msgservice.identity.users import User
from msgservice.identity.users_file import (
    NEVER,
    UsersFile,
    change_users_file,
    read_users_file,
    time_text,
)

DAYS = 90  # until a token expires
DAYS_MAX = 3660
_DAY_MS = 86_400_000
# What everybody may ask: by no rule, so in the place of one.
OWN = {
    one.right: f"every user may ask {one.name}, of what is its own" for one in OPERATIONS if one.own
}
AFTERWARDS = "msgservice reload tells a node that runs"

P = ParamSpec("P")


@contextmanager
def _ending(as_json: bool) -> Iterator[None]:
    """The end of a command that fails: one sentence, or one object, and an exit code."""
    try:
        yield
    except (MsgServiceError, OSError) as error:
        sentence = str(error) if isinstance(error, MsgServiceError) else _told(error)
        if as_json:
            told = {"error": type(error).__name__, "message": sentence}
            click.echo(msgspec.json.encode(told), err=True)
        else:
            click.echo(f"msgservice: {sentence}", err=True)
        is_usage = isinstance(error, ConfigError | BadValue | BadName | BadSubject)
        raise SystemExit(ExitCode.USAGE if is_usage else ExitCode.REFUSED) from None


def _told(error: OSError) -> str:
    return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)


def _file_options(
    command: Callable[Concatenate[Path | None, Path | None, P], None],
) -> Callable[..., None]:
    """Add the options that say which users file; the command gets both paths, first."""

    @click.option(
        "--config",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="The node's configuration, which names the users file.",
    )
    @click.option(
        "--users", type=click.Path(path_type=Path), metavar="FILE", help="The users file itself."
    )
    @wraps(command)
    def with_files(
        config: Path | None, users: Path | None, *args: P.args, **kwargs: P.kwargs
    ) -> None:
        if config is not None and users is not None:
            raise click.UsageError("--config names the users file: --users is one too many")
        command(config, users, *args, **kwargs)

    return with_files


def _users_file(config: Path | None, users: Path | None, user: str | None = None) -> Path:
    """Return the users file; where the configuration names it, `user` must be one of its users."""
    if users is not None:
        return users
    if config is None:
        raise click.UsageError("which users file? --config FILE or --users FILE")
    return users_file_of(config, user)


@click.command(short_help="Set the password of a user.")
@click.argument("name")
@click.option(
    "--iterations",
    type=Whole(ITERATIONS_MIN, ITERATIONS_MAX),
    default=ITERATIONS,
    show_default=True,
    metavar="N",
    help="What each try of a stolen record costs, and each login its client.",
)
@click.option("--remove", is_flag=True, help="Take the password away instead.")
@click.option("--pb", is_flag=True, help="The one for Perspective Broker, kept as an MD5.")
@_file_options
def passwd(
    config: Path | None, users: Path | None, name: str, iterations: int, remove: bool, pb: bool
) -> None:
    """Set the password of the user NAME, in the users file.

    It is asked for on a terminal, or the first line of standard input. Without --config and --users
    the record is printed, for `password` of a [[user]]. What is kept is a record that logins are
    checked by, not the password. With --pb it is one of its own for plain Perspective Broker
    programs, whose login can be checked by its MD5 alone: as good as the password, for who reads
    the file.
    """
    with _ending(as_json=False):
        User(name=name)  # it can be one
        if remove:
            file = _users_file(config, users)
            change_users_file(
                file,
                lambda kept: kept.without_digest(name) if pb else kept.without_password(name),
            )
            click.echo(f"removed; {AFTERWARDS}", err=True)
            return
        # Before anybody types: whether it can be kept.
        path = None if config is None and users is None else _users_file(config, users, name)
        if pb:
            path = path or _users_file(config, users, name)
            password = _asked(name)
            check_password(password)
            digest = md5(password.encode(), usedforsecurity=False).digest()
            change_users_file(path, lambda kept: kept.with_digest(name, digest))
            click.echo(f"set in {path}; {AFTERWARDS}", err=True)
            return
        record = PasswordRecord.of(_asked(name), iterations=iterations)
        if path is None:
            out(record.text().encode())
            return
        change_users_file(path, lambda kept: kept.with_password(name, record))
        click.echo(f"set in {path}; {AFTERWARDS}", err=True)


def _asked(name: str) -> str:
    """Return the password that is typed twice, or the first line of what is piped in."""
    if sys.stdin.isatty():
        typed: str = click.prompt(
            f"Password of {name}", hide_input=True, confirmation_prompt=True, err=True
        )
        return typed
    line = sys.stdin.buffer.readline(PASSWORD_BYTES_MAX + 2)  # one more than it may have, and \n
    try:
        return line.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise BadValue("password", "is not UTF-8") from None


@click.group(short_help="Tokens, which programs log in with instead of passwords.")
def token() -> None:
    """Make, revoke and list tokens, which programs log in with instead of passwords."""


@token.command(short_help="Make a token of a user, and print it.")
@click.argument("name")
@click.option(
    "--days",
    type=Whole(1, DAYS_MAX),
    default=DAYS,
    show_default=True,
    metavar="N",
    help="Until it expires.",
)
@click.option("--never", is_flag=True, help="It does not expire.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
@_file_options
def add(
    config: Path | None, users: Path | None, name: str, days: int, never: bool, as_json: bool
) -> None:
    """Make a token of the user NAME, and print it: it is kept nowhere, and is not shown again.

    A user has two that are valid at most: one in use, and the one that takes its place.
    """
    with _ending(as_json):
        User(name=name)
        path = _users_file(config, users, name)
        now = _now()
        made, secret = new_token(name, expires=None if never else _whole(now + days * _DAY_MS))
        change_users_file(path, lambda kept: kept.with_token(made, now))
        if as_json:
            out(msgspec.json.encode(_object(made, now) | {"token": secret}))
            return
        out(secret.encode())
        until = "does not expire" if made.expires is None else f"expires {time_text(made.expires)}"
        click.echo(f"token {made.id} of {name} {until}; {AFTERWARDS}", err=True)


@token.command(short_help="Revoke a token by its id.")
@click.argument("id_", metavar="ID")
@_file_options
def revoke(config: Path | None, users: Path | None, id_: str) -> None:
    """Revoke the token ID: what logged in with it ends as soon as the node is told."""
    with _ending(as_json=False):
        path = _users_file(config, users)
        change_users_file(path, lambda kept: kept.without_token(id_))
        click.echo(f"revoked; {AFTERWARDS}", err=True)


@token.command("list", short_help="List tokens.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
@_file_options
def list_(config: Path | None, users: Path | None, as_json: bool) -> None:
    """List all tokens: ids, users and when they expire. The tokens themselves are kept nowhere."""
    with _ending(as_json):
        kept: UsersFile = read_users_file(_users_file(config, users))
        now = _now()
        if as_json:
            out(msgspec.json.encode([_object(one, now) for one in kept.tokens]))
            return
        table = plain_table("id", "user", "expires", "")
        for one in kept.tokens:
            expires = NEVER if one.expires is None else time_text(one.expires)
            table.add_row(one.id, one.user, expires, "" if one.is_valid(now) else "expired")
        out(table)


@click.command(short_help="Say whether a user may do something, and by which rule.")
@click.argument("user")
@click.argument("verb", type=click.Choice([*VERBS[:-1], "name"]))
@click.argument("name")
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FILE",
    help="The node's configuration.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def can(user: str, verb: str, name: str, config: Path, as_json: bool) -> None:
    """Say whether USER may `send` to the subject NAME, `request` it, send `to` the receiver NAME,
    `receive` the pattern NAME, or have the `name` NAME; and by which rule of the configuration.

    Ends with 1 where it may not. A node that runs goes by what it read last.
    """
    with _ending(as_json):
        found = {one.name: one for one in load_config(config).users}.get(user)
        if found is None:
            raise ConfigError([f"{config}: there is no [[user]] named {user!r}"])
        rule = _rule(found, verb, name)
        if as_json:
            told = {"user": user, "verb": verb, "name": name, "allowed": rule is not None}
            out(msgspec.json.encode(told | {"rule": rule}))
        else:
            out(f"yes: {rule}" if rule else f"no: no rule of {user} allows {verb} {name}")
    if rule is None:
        raise SystemExit(ExitCode.REFUSED)


def _rule(user: User, verb: str, name: str) -> str | None:
    """Return the rule that allows it; raises `BadName` and `BadSubject`."""
    match verb:
        case "send":
            return user.rules.deciding("send", check_subject(name))
        case "to":
            return user.rules.deciding("to", check_name(name))
        case "receive":
            return user.rules.deciding("receive", check_pattern(name))
        case "request":
            rule = user.rules.deciding("request", check_pattern(name))
            return rule if rule is not None else OWN.get(name)
        case _:
            pattern = Patterns(user.patterns()).deciding(check_name(name))
            return None if pattern is None else f'names = "{pattern}"'


def _object(one: Token, now: int) -> dict[str, object]:
    """A token as programs are told of it, without its secret, and without what is kept of that."""
    return {
        "id": one.id,
        "user": one.user,
        "expires": None if one.expires is None else time_text(one.expires),
        "valid": one.is_valid(now),
    }


def _now() -> int:
    """The wall clock, in ms."""
    return time.time_ns() // 1_000_000


def _whole(wall: int) -> int:
    """A time to the second, as the file has it."""
    return wall // 1000 * 1000
