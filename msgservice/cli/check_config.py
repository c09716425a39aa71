"""`msgservice check-config`: is this file right? Starts nothing and asks no node."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

import click
import msgspec

from msgservice.cli.exit_codes import ExitCode
from msgservice.cli.output import CannotPrint, out
from msgservice.config.addresses import FACES
from msgservice.config.config import TLS_FILES, Config, ListenConfig, ReceiverConfig, load_config
from msgservice.errors import ConfigError
from msgservice.identity.rules import VERBS, Patterns
from msgservice.identity.users import User
from msgservice.limits import Limits, Rate
from msgservice.receiver_options import CONFIGURED
from msgservice.transport.tcp.profiles import TlsProfile, TlsProfiles


@click.command("check-config", short_help="Check a configuration FILE without starting anything.")
@click.argument("file", type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def check_config(file: str, as_json: bool) -> None:
    """Check a configuration FILE, whole, without starting anything.

    Prints what a node would do with it; or all that is wrong, and ends with exit code 2.
    """
    try:
        config = load_config(file)
    except ConfigError as error:
        if as_json:
            told = {
                "error": type(error).__name__,
                "message": str(error),
                "problems": error.problems,
            }
            click.echo(msgspec.json.encode(told), err=True)
        else:
            click.echo(error, err=True)
        raise SystemExit(ExitCode.USAGE) from None
    try:
        out(
            msgspec.json.encode(_object(config), enc_hook=str)
            if as_json
            else "\n".join(_lines(config))
        )
    except CannotPrint as error:
        click.echo(f"msgservice: {error}", err=True)
        raise SystemExit(ExitCode.REFUSED) from None


def _lines(config: Config) -> list[str]:
    lines = [f"name       {config.name or 'as the log says'}", f"data       {config.data}"]
    lines += [f"listens    {_listener(one)}" for one in config.listen]
    if config.tls != TlsProfiles():
        warned = f"warned of {config.tls.warn_days:g} days before the end"
        lines.append(f"tls        {_tls(config.tls.default)}; {warned}")
        lines += [f"tls.{name}: {_tls(one)}" for name, one in config.tls.named.items()]
    lines += [f"receiver   {_told(one, config.users)}" for one in config.receivers]
    lines += [f"user       {_user(one)}" for one in config.users]
    if config.users_file is not None:
        lines.append(f"users in   {config.users_file}")
    if config.rate is not None:
        lines.append(f"rate       {_rate(config.rate)}, of all receivers together")
    for limit in fields(Limits):
        value = getattr(config.limits, limit.name)
        if value != limit.default:
            lines.append(f"limit      {limit.name} = {value}")
    return lines


def _object(config: Config) -> dict[str, object]:
    """The configuration for programs, without what is kept of passwords."""
    told: dict[str, object] = {field.name: getattr(config, field.name) for field in fields(config)}
    return told | {"users": [_user_object(user) for user in config.users]}


def _user_object(user: User) -> dict[str, object]:
    return {
        "name": user.name,
        "password": user.password is not None,
        "certificates": user.certificates,
        "uids": user.uids,
        "names": user.patterns(),
        "rules": {verb: user.rules.patterns(verb) for verb in VERBS if verb != "relay"},
    }


def _user(user: User) -> str:
    known_by = ["a password"] if user.password is not None else []
    known_by += [*user.certificates, *(f"uid {uid}" for uid in user.uids)]
    told = [f"known by {', '.join(known_by) or 'what the users file says'}"]
    told.append(f"names {', '.join(user.patterns())}")
    rules = {verb: user.rules.patterns(verb) for verb in VERBS}
    told += [f"{verb} {', '.join(patterns)}" for verb, patterns in rules.items() if patterns]
    return f"{user.name}: {'; '.join(told)}"


def _tls(profile: TlsProfile) -> str:
    told = [
        f"{key} {getattr(profile, key)}" for key in TLS_FILES if getattr(profile, key) is not None
    ]
    return "; ".join([*told, f"TLS {profile.minimum_version} at least"])


def _listener(listener: ListenConfig) -> str:
    face = f"{listener.transport} at " if listener.transport in FACES else ""
    if listener.user is None:
        return f"{face}{listener.address}"
    return f"{face}{listener.address}; no login, all who come are {listener.user}"


def _told(receiver: ReceiverConfig, users: Sequence[User]) -> str:
    where = f"dialled at {receiver.address}" if receiver.address else "attaches"
    told = [where, ", ".join(receiver.subjects) or "what names it"]
    if receiver.user is not None:
        told.append(f"of user {receiver.user}{_cannot_attach(receiver, users)}")
    for option in CONFIGURED:
        value = getattr(receiver.options, option.name)
        if value != option.default or option.name == "order":
            told.append(f"{'.'.join(option.key)} {value}")
    if receiver.rate is not None:
        told.append(f"rate {_rate(receiver.rate)}")
    return f"{receiver.name}: {'; '.join(told)}"


def _cannot_attach(receiver: ReceiverConfig, users: Sequence[User]) -> str:
    """A clause about a receiver that nobody can be, since its user may not have its name."""
    (owner,) = [user for user in users if user.name == receiver.user]
    if receiver.address is not None or Patterns(owner.patterns()).allow(receiver.name):
        return ""
    return f", who cannot attach as it: {receiver.name} is none of its names"


def _rate(rate: Rate) -> str:
    told = [
        f"{value:g} {unit}/s"
        for value, unit in ((rate.messages, "messages"), (rate.bytes, "bytes"))
        if value is not None
    ]
    return f"{', '.join(told)} in bursts of {rate.burst_seconds:g} s"
