"""The configuration: one frozen `Config`, read from one TOML file and checked once, whole.

Everything that is wrong is told at once, each with its line, its key and what is allowed. A value
may also come from a flag of `twistd`, which wins over the file and is named instead of a line.
`docs/configuration.md` is this module for people, and a test compares the two.

Here stand the values and the rules for them; `config.reader` finds them and their lines.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from msgservice.config.addresses import (
    FACES,
    LISTENERS,
    PATH_OPTIONS,
    SCHEMES_UNDER,
    STREAMS,
    WEB,
    absolute_address,
    check_face_address,
    check_listener_address,
    check_receiver_address,
    check_web_address,
    key_of,
    listener_meant,
    listeners,
)
from msgservice.config.reader import Reader, Table, read_text, shown
from msgservice.config.toml import Document, KeyPath, parse_document
from msgservice.config.users import USER_KEYS as USER_KEYS
from msgservice.config.users import check_users_file, read_users
from msgservice.core.subjects import EVERY_STREAM, check_name, check_pattern, streams_of
from msgservice.disk.filesystem import check_folder
from msgservice.errors import BadValue, ConfigError
from msgservice.identity.login_files import read_login
from msgservice.identity.rules import Patterns
from msgservice.identity.users import User
from msgservice.limits import ORDERED, PARTS, Limits, Rate, contradictions, wrong_with
from msgservice.receiver_options import CONFIGURED, DEFAULTS, ReceiverOptions
from msgservice.stream_limits import STREAMS_KEYS as STREAMS_KEYS
from msgservice.stream_limits import StreamLimits, wrong_with_stream
from msgservice.transport.addresses import PLAIN_NEEDS, is_node, is_plain, parse_address
from msgservice.transport.reach import Network, Reach, networks_of
from msgservice.transport.registry import Transports
from msgservice.transport.tcp.profiles import VERSIONS, WARN_DAYS, TlsProfile, TlsProfiles
from msgservice.transport.tcp.tls import check_profile
from msgservice.webhooks.options import (
    CONCURRENCY,
    HOOK_SECONDS_MAX,
    TIMEOUT,
    WebhookOptions,
    WebhooksOptions,
    check_headers,
    check_readable,
    secrets_of,
)
from msgservice.webhooks.signing import SECRETS_MAX

DATA_DEFAULT = "var/msgservice"

SECTIONS = (
    "node",
    "listen",
    "web",
    "streams",
    "tls",
    "login",
    "webhook",
    "receiver",
    "user",
    "rate",
    "limits",
)
NODE_KEYS = ("name", "data", "users", "insecure", "networks")
WEB_KEYS = ("hosts", "bodies")
CHECKS_OF_FACES = {STREAMS: check_face_address, WEB: check_web_address}
RECEIVER_KEYS = (
    "name",
    "address",
    "subjects",
    "user",
    *dict.fromkeys(option.key[0] for option in CONFIGURED),
    "rate",
)
LISTEN_KEYS = ("address", "face", "login", "user")  # of a [[listen]]
LOGINS = ASKED, NO_LOGIN = "asked", "none"
# Of the tables inside a [[receiver]], `window` for one: their keys.
RECEIVER_TABLES = {
    table: tuple(option.key[1] for option in CONFIGURED if option.key[0] == table)
    for table in dict.fromkeys(option.key[0] for option in CONFIGURED if len(option.key) > 1)
}
TLS_FILES = ("certificate", "private_key", "trust_roots", "client_roots")
PROFILE_KEYS = (*TLS_FILES, "minimum_version")  # of [tls] and of each [tls.NAME]
TLS_KEYS = (*PROFILE_KEYS, "warn_days")
WARN_DAYS_MAX = 3650
HOOK_KEYS = ("secrets", "headers", "certificate", "private_key", "trust_roots")  # of [webhook.NAME]
HOOKS_KEYS = ("networks", "timeout", "concurrency")  # of [webhook]
HOOK_CALLS_MAX = 100
RATE_KEYS = ("messages", "bytes", "burst_seconds")
_HTTP = 'HTTP is served in a configuration: web = "tcp:7480:interface=127.0.0.1" of [listen]'
LISTENER_HINTS = {
    "http": _HTTP,
    "https": _HTTP,
    **{scheme: f"{scheme}: addresses stand under {key!r}" for scheme, key in SCHEMES_UNDER.items()},
}
SECTION_HINTS = {
    "receivers": "each receiver is a [[receiver]] of its own",
    "users": "each user is a [[user]] of its own, and the users file is named in [node]",
    "retention": "retention is set in [limits]: keep_seconds, keep_bytes, sender_days",
}
is_host = re.compile(r"[A-Za-z0-9_.-]{1,253}|[0-9A-Fa-f:]{2,45}", re.ASCII).fullmatch
STREAM_DEFAULTS = StreamLimits()
LIMIT_DEFAULTS = {f.name: f.default for f in fields(Limits)}
LIMIT_KEYS = tuple(LIMIT_DEFAULTS)


def _places() -> dict[str, str]:
    """Return where each key of a configuration belongs, for who wrote it elsewhere."""
    found: dict[str, list[str]] = {}
    tables = {
        "[node]": NODE_KEYS,
        "[listen]": (*LISTENERS, *FACES),
        "a [[listen]]": tuple(key for key in LISTEN_KEYS if key not in SECTIONS),
        "[web]": WEB_KEYS,
        "[streams]": STREAMS_KEYS,
        "[tls]": TLS_KEYS,
        "[webhook]": HOOKS_KEYS,
        "[limits]": LIMIT_KEYS,
        "[rate]": RATE_KEYS,
        "a [[receiver]]": tuple(key for key in RECEIVER_KEYS if key not in SECTIONS),
        **{f"a [[receiver]]'s {table}": keys for table, keys in RECEIVER_TABLES.items()},
        "a [[receiver]]'s rate": RATE_KEYS,
        "a [[user]]": USER_KEYS,
        **{
            f"an address, {scheme}:…:{option}=FILE": (option,)
            for option, scheme in PATH_OPTIONS.items()
        },
    }
    for place, keys in tables.items():
        for key in keys:
            found.setdefault(key, []).append(place)
    return {key: " or ".join(places) for key, places in found.items()}


PLACES = _places()


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenConfig:
    """One listener: the transport that serves it, where, and whom it takes who comes for."""

    transport: str  # its key in [listen]: "tcp", "unix"; or a face: "streams", "web"
    address: str  # server endpoint string
    user: str | None = None  # whom everybody is who comes there; None: a login is asked for


LISTEN_DEFAULT = (
    ListenConfig(transport="tcp", address="tcp:7410:interface=127.0.0.1"),
    ListenConfig(transport=WEB, address="tcp:7480:interface=127.0.0.1"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiverConfig:
    """One [[receiver]]. What it says wins over what an attach asks for (SEMANTICS 27)."""

    name: str
    address: str | None = None  # client endpoint string that the node dials; None: it attaches
    user: str | None = None  # whose it is; None: as it was given at run time, or nobody's
    subjects: tuple[str, ...] = ()  # patterns; none: it gets only what names it in `to`
    options: ReceiverOptions = DEFAULTS
    rate: Rate | None = None  # None: as fast as it takes them


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The configuration of a node. Its paths are absolute: `twistd` changes directory."""

    name: str | None = None  # None: the name that the log was made with
    data: Path = field(default_factory=lambda: Path(DATA_DEFAULT))
    insecure: bool = False  # listeners beyond this machine may open without authentication
    # That receivers may be dialled in besides public addresses, where users give their addresses.
    networks: tuple[Network, ...] = ()
    listen: tuple[ListenConfig, ...] = LISTEN_DEFAULT
    web_hosts: tuple[str, ...] = ()  # names by which HTTP is asked, besides localhost and addresses
    web_bodies: bool = False  # of messages, to be saved by who may ask for these
    streams: StreamLimits = field(default_factory=StreamLimits)  # of the listener of streams
    tls: TlsProfiles = field(default_factory=TlsProfiles)  # what addresses with TLS leave out
    logins: Mapping[str, Path] = field(default_factory=dict)  # of nodes that are dialled, by name
    webhooks: WebhooksOptions = field(default_factory=WebhooksOptions)  # receivers at URLs
    receivers: tuple[ReceiverConfig, ...] = ()
    users: tuple[User, ...] = ()  # as soon as there is one, every listener asks who is there
    users_file: Path | None = None  # passwords and tokens of these users
    rate: Rate | None = None  # of all receivers together
    limits: Limits = field(default_factory=Limits)
    file: Path | None = None  # where it was read from

    def __post_init__(self) -> None:
        """Make `data` absolute."""
        object.__setattr__(self, "data", absolute_path(self.data))


@dataclass(frozen=True, slots=True, kw_only=True)
class Flags:
    """Command-line overrides of the file. None, or empty: no override."""

    name: str | None = None
    data: str | None = None
    listen: tuple[str, ...] = ()  # server endpoint strings; any replaces the whole of [listen]
    insecure: bool | None = None
    limits: Mapping[str, str] = field(default_factory=dict)  # field of Limits -> its value as text


def absolute_path(path: str | os.PathLike[str]) -> Path:
    """Return `path` from the root, links left alone."""
    return Path(os.path.abspath(path))  # noqa: PTH100 - Path.resolve() follows links


def load_config(file: str | os.PathLike[str] | None = None, flags: Flags | None = None) -> Config:
    """Return the configuration of `file` (None: the defaults), with `flags` put over it.

    Relative paths in the file, and the default one, begin at the file's own folder, so that the
    same data is found wherever the node is started; without a file, and in flags, they begin at
    the current folder. Raises `ConfigError` with all that is wrong.
    """
    path = None if file is None else absolute_path(file)
    document = Document({}) if path is None else parse_document(read_text(path, str(file)))
    reader = Reader(str(file), document, PLACES)
    _put_flags_over(reader, flags or Flags())
    config = _read(reader, Path.cwd() if path is None else path.parent)
    if reader.problems:
        raise ConfigError(reader.problems)
    return replace(config, file=path)


def _put_flags_over(reader: Reader, flags: Flags) -> None:
    here = Path.cwd()
    if flags.name is not None:
        reader.put(("node", "name"), flags.name, "--name")
    if flags.data is not None:
        reader.put(("node", "data"), str(absolute_path(flags.data)), "--data")
    if flags.insecure is not None:
        reader.put(("node", "insecure"), flags.insecure, "--insecure")
    for name, text in flags.limits.items():
        reader.put(("limits", name), _number(text), "--limit")
    if flags.listen:
        listen: dict[str, list[str]] = {}
        for address in flags.listen:
            if (meant := listener_meant(address)) is not None:
                raise ConfigError([f"--listen: {meant}"])
            listen.setdefault(key_of(address), []).append(absolute_address(address, here))
        reader.put(("listen",), listen, "--listen")


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _read(reader: Reader, folder: Path) -> Config:
    reader.table((), SECTIONS, hints=SECTION_HINTS)
    reader.table(("node",), NODE_KEYS)
    name = reader.value(("node", "name"), str, None)
    if name is not None:
        reader.check(("node", "name"), check_name, name)
    data = reader.value(("node", "data"), str, DATA_DEFAULT)
    if not data:
        reader.problem(("node", "data"), "must name a folder")
    else:
        reader.check(
            ("node", "data"), lambda path: check_folder(absolute_path(path)), folder / data
        )
    insecure = reader.value(("node", "insecure"), bool, False)
    limits = _limits(reader)
    users, users_file = _users(reader, folder, limits)
    tls = _tls(reader, folder)
    webhooks = _webhooks(reader, folder, insecure)
    transports = Transports(tls=tls)
    check = partial(
        check_receiver_address,
        transports=transports,
        plain=insecure,
        webhooks=Reach(webhooks.networks),
    )
    receivers = _receivers(reader, folder, limits, check, users, insecure)
    return Config(
        name=name,
        data=absolute_path(folder / data),
        insecure=insecure,
        networks=_networks(reader, ("node", "networks")),
        listen=_listen(reader, folder, users, insecure, transports),
        web_hosts=_web_hosts(reader),
        web_bodies=reader.value(("web", "bodies"), bool, False),
        streams=_streams(reader),
        tls=tls,
        webhooks=webhooks,
        receivers=receivers,
        logins=_logins(reader, folder, receivers),
        users=users,
        users_file=users_file,
        rate=_rate(reader, ("rate",)),
        limits=limits,
    )


def _users(reader: Reader, folder: Path, limits: Limits) -> tuple[tuple[User, ...], Path | None]:
    users = read_users(reader, limits)
    users_file = reader.value(("node", "users"), str, None)
    if users_file is not None:
        users_file = absolute_path(folder / users_file)
        check_users_file(reader, ("node", "users"), users_file, users)
    return users, users_file


def load_users_of(file: Path, limits: Limits) -> tuple[tuple[User, ...], Path | None]:
    """Return the users of a configuration file as it is now, and their users file.

    For a node that runs with these limits, and reads them anew: all else needs a restart, and is
    not judged. Raises `ConfigError` with all that is wrong with them.
    """
    reader = Reader(str(file), parse_document(read_text(file, str(file))), PLACES)
    users = _users(reader, file.parent, limits)
    if reader.problems:
        raise ConfigError(reader.problems)
    return users


def _limits(reader: Reader) -> Limits:
    """Return the limits; each is judged alone, and those that can be against each other."""
    given: dict[str, Any] = {}
    if reader.table(("limits",), LIMIT_KEYS):
        for limit in fields(Limits):
            path = ("limits", limit.name)
            value = reader.value(path, type(limit.default), None)
            if value is None:
                continue
            reason = wrong_with(limit.name, value)
            if reason is None:
                given[limit.name] = value
            else:
                reader.problem(path, reason)
    found = contradictions(SimpleNamespace(**LIMIT_DEFAULTS | given))
    for wrong in found:
        # One of them at least was said, for the defaults contradict nothing.
        if wrong.name in given:
            reader.problem(("limits", wrong.name), wrong.reason)
        else:
            reader.problem(("limits", wrong.other), wrong.other_reason)
    if found:  # the rest is judged with the defaults of all that bound each other
        bound = {name for pair in (*ORDERED, *PARTS) for name in pair}
        given = {name: value for name, value in given.items() if name not in bound}
    return Limits(**given)


def _streams(reader: Reader) -> StreamLimits:
    """Return the limits of streams; the default in place of what cannot be."""
    given: dict[str, Any] = {}
    if reader.table(("streams",), STREAMS_KEYS):
        for key in STREAMS_KEYS:
            default = getattr(STREAM_DEFAULTS, key)
            value = reader.value(("streams", key), type(default), default)
            reason = wrong_with_stream(key, value)
            if reason is None:
                given[key] = value
            else:
                reader.problem(("streams", key), reason)
    return StreamLimits(**given)


def _tls(reader: Reader, folder: Path) -> TlsProfiles:
    """Return the profiles of TLS: [tls] itself, and each table in it."""
    table = reader.value(("tls",), Table, {})
    names = [key for key, value in table.items() if key not in TLS_KEYS and type(value) is dict]
    reader.table(("tls",), (*TLS_KEYS, *names))
    for name in names:
        reader.table(("tls", name), PROFILE_KEYS)
        reader.check(("tls", name), check_name, name)
    days = reader.value(("tls", "warn_days"), float, WARN_DAYS)
    if not 0 <= days <= WARN_DAYS_MAX:
        reader.problem(("tls", "warn_days"), f"must be from 0 to {WARN_DAYS_MAX}, not {days}")
    return TlsProfiles(
        default=_profile(reader, ("tls",), folder),
        named={name: _profile(reader, ("tls", name), folder) for name in names},
        warn_days=days,
    )


def _logins(reader: Reader, folder: Path, receivers: Sequence[ReceiverConfig]) -> dict[str, Path]:
    """Return the files of [login], each by the name of the node that it is for."""
    addresses = {one.name: one.address for one in receivers}
    found: dict[str, Path] = {}
    for name in map(str, reader.value(("login",), Table, {})):
        path = ("login", name)
        said = reader.value(path, str, None)
        if said == "":
            reader.problem(path, "must name a file")
        if not (reader.check(path, check_name, name) and said):
            continue
        found[name] = absolute_path(folder / said)
        if name in addresses and not is_node(addresses[name]):
            reader.problem(path, f"receiver {shown(name)} is no node that is dialled, at node:…")
        try:
            read_login(found[name])
        except ConfigError as error:
            for problem in error.problems:
                reader.problem(path, problem)
    return found


def _profile(reader: Reader, path: KeyPath, folder: Path) -> TlsProfile:
    """Return the profile at `path`; nothing in place of what cannot be used."""
    files = {}
    for key in TLS_FILES:
        value = reader.value((*path, key), str, None)
        if value == "":
            reader.problem((*path, key), "must name a file")
        elif value is not None:
            files[key] = str(absolute_path(folder / value))
    version = reader.value((*path, "minimum_version"), str, VERSIONS[0])
    if version not in VERSIONS:
        allowed = " or ".join(map(shown, VERSIONS))
        reader.problem((*path, "minimum_version"), f"must be {allowed}, not {shown(version)}")
        version = VERSIONS[-1]
    profile = TlsProfile(**files, minimum_version=version)
    for wrong in check_profile(profile):
        # A certificate that has its key in the same file names no other.
        key = wrong.key if wrong.key in files else "certificate"
        reader.problem((*path, key), str(wrong))
        unusable: dict[str, Any] = {wrong.key: None}
        profile = replace(profile, **unusable)
    return profile


def _networks(reader: Reader, path: KeyPath) -> tuple[Network, ...]:
    """Return the networks at `path`, without what is none."""
    networks: list[Network] = []
    for text in reader.value(path, list[str], []):
        if reader.check(path, lambda said: networks_of([said]), text):
            networks += networks_of([text])
    return tuple(networks)


def _webhooks(reader: Reader, folder: Path, insecure: bool) -> WebhooksOptions:
    """Return the options of webhooks: [webhook] itself, and each table in it, of a receiver."""
    table = reader.value(("webhook",), Table, {})
    names = [key for key, value in table.items() if key not in HOOKS_KEYS and type(value) is dict]
    reader.table(("webhook",), (*HOOKS_KEYS, *names))
    timeout = reader.value(("webhook", "timeout"), float, TIMEOUT)
    if not 0 < timeout <= HOOK_SECONDS_MAX:
        allowed = f"must be above 0, and {HOOK_SECONDS_MAX} at most, not {timeout}"
        reader.problem(("webhook", "timeout"), allowed)
        timeout = TIMEOUT
    calls = reader.value(("webhook", "concurrency"), int, CONCURRENCY)
    if not 1 <= calls <= HOOK_CALLS_MAX:
        allowed = f"must be from 1 to {HOOK_CALLS_MAX}, not {calls}"
        reader.problem(("webhook", "concurrency"), allowed)
        calls = CONCURRENCY
    return WebhooksOptions(
        networks=_networks(reader, ("webhook", "networks")),
        timeout=timeout,
        concurrency=calls,
        plain=insecure,
        own={name: _webhook(reader, ("webhook", name), folder) for name in names},
    )


def _webhook(reader: Reader, path: KeyPath, folder: Path) -> WebhookOptions:
    reader.table(path, HOOK_KEYS)
    reader.check(path, check_name, str(path[-1]))
    files: dict[str, Path] = {}
    for key in ("certificate", "private_key", "trust_roots"):
        value = reader.value((*path, key), str, None)
        if value is not None:
            files[key] = absolute_path(folder / value)
    secrets = reader.value((*path, "secrets"), str | list[str], [])
    secrets = [secrets] if isinstance(secrets, str) else secrets
    if len(secrets) > SECRETS_MAX:
        reader.problem((*path, "secrets"), f"has {len(secrets)} files, allowed are {SECRETS_MAX}")
    headers = reader.value((*path, "headers"), Table, {})
    reader.check((*path, "headers"), lambda _: check_headers(headers), "")
    options = WebhookOptions(
        secrets=tuple([absolute_path(folder / file) for file in secrets[:SECRETS_MAX]]),
        headers={str(name).lower(): str(value) for name, value in headers.items()},
        **files,
    )
    if options.secrets:
        reader.check((*path, "secrets"), lambda _: secrets_of(options, None), "")
    if options.private_key is not None and options.certificate is None:
        reader.problem((*path, "private_key"), "needs the certificate that it belongs to")
    for key, file in files.items():
        reader.check((*path, key), check_readable, str(file))
    return options


def _listen(
    reader: Reader, folder: Path, users: Sequence[User], insecure: bool, transports: Transports
) -> tuple[ListenConfig, ...]:
    said = reader.value(("listen",), Table | list[Table], None)
    if said is None:
        return LISTEN_DEFAULT
    found: list[ListenConfig] = []
    places = _listeners_of(reader, said) if isinstance(said, dict) else _each(reader, said, users)
    for path, transport, text, user in places:
        meant = listener_meant(text, transport if transport in ("udp", "pb") else "tcp")
        if meant is not None:
            reader.problem(path, meant)
            continue
        listener = ListenConfig(
            transport=transport, address=absolute_address(text, folder), user=user
        )
        asks = bool(users) and user is None
        checking: Any = CHECKS_OF_FACES.get(transport) or partial(check_listener_address, transport)
        check = partial(checking, insecure=insecure, asks=asks, transports=transports)
        if not reader.check(path, check, listener.address):
            continue
        if transport == STREAMS:
            for one in users:
                if one.name == user:
                    _check_streams_user(reader, (*path[:-1], "user"), one)
        if transport == STREAMS and transport in [other.transport for other in found]:
            reader.problem(path, f"{transport} may be served at one address only")
        is_chosen = parse_address(listener.address).parts[:1] == ("0",)  # the port, by the system
        same = [other for other in found if other.address == listener.address]
        if same and not is_chosen:
            reader.problem(path, f"{text!r} is there twice")
        elif any(other.user != user for other in same):
            # Who comes in where is known by the address, as it is said.
            reader.problem(
                path, f"{text!r} is there twice, for others: say ports, or interfaces, that differ"
            )
        found.append(listener)
    return tuple(found)


def _web_hosts(reader: Reader) -> tuple[str, ...]:
    """Return the names of [web] hosts, in lower case."""
    reader.table(("web",), WEB_KEYS)
    hosts = reader.value(("web", "hosts"), list[str], [])
    for host in hosts:
        if is_host(host) is None:
            reader.problem(
                ("web", "hosts"), f"{shown(host)} is no name of a host: without scheme and port"
            )
    return tuple([host.lower() for host in hosts])


def _check_streams_user(reader: Reader, path: KeyPath, user: User) -> None:
    """Note what the gate would not let streams do that are served for a user."""
    name = streams_of(user.name)
    if not Patterns(user.patterns()).allow(name):
        told = f"user {shown(user.name)} has not the name {shown(name)}, of the receiver of streams"
        reader.problem(path, told)
    if not user.rules.allows("receive", EVERY_STREAM):
        told = f"user {shown(user.name)} may not receive {shown(EVERY_STREAM)}"
        reader.problem(path, told)


def _listeners_of(reader: Reader, table: Table) -> Iterator[tuple[KeyPath, str, str, str | None]]:
    """Yield the listeners of [listen]: where it is said, its transport, address, and no user."""
    known = listeners(table)
    reader.table(("listen",), known, hints=LISTENER_HINTS)
    for transport in known:
        path = ("listen", transport)
        value = reader.value(path, str | list[str], [])
        for text in [value] if isinstance(value, str) else value:
            yield path, transport, text, None


def _each(
    reader: Reader, tables: list[Table], users: Sequence[User]
) -> Iterator[tuple[KeyPath, str, str, str | None]]:
    """Yield the listeners of each [[listen]], as `_listeners_of` does."""
    for index in range(len(tables)):
        path: KeyPath = ("listen", index)
        reader.table(path, LISTEN_KEYS)
        text = reader.required((*path, "address"), str)
        login = reader.value((*path, "login"), str, ASKED)
        user = _user_named(reader, (*path, "user"), users)
        if login not in LOGINS:
            reader.problem((*path, "login"), f"must be {shown(ASKED)} or {shown(NO_LOGIN)}")
        elif login == ASKED and user is not None:
            reader.problem((*path, "user"), f'is whom all are who come where login = "{NO_LOGIN}"')
        elif login == NO_LOGIN and "user" not in tables[index]:
            reader.problem(
                (*path, "login"),
                "needs user = NAME: whom all are who come here" if users else _NO_USERS,
            )
        face = reader.value((*path, "face"), str, None)
        if face is not None and face not in FACES:
            reader.problem((*path, "face"), f"must be {' or '.join(map(shown, FACES))}")
        if text is not None:
            key = face if face in FACES else key_of(text)
            yield (*path, "address"), key, text, user if login == NO_LOGIN else None


_NO_USERS = "there is no [[user]]: no login is asked for anywhere"


def _user_named(reader: Reader, path: KeyPath, users: Sequence[User]) -> str | None:
    """Return the user that is named at `path`, if any, and note where there is none of it."""
    name: str | None = reader.value(path, str, None)
    if name is not None and name not in [user.name for user in users]:
        reader.problem(path, f"there is no [[user]] named {shown(name)}")
    return name


def _receivers(
    reader: Reader,
    folder: Path,
    limits: Limits,
    check_address: Callable[[str], None],
    users: Sequence[User],
    insecure: bool,
) -> tuple[ReceiverConfig, ...]:
    tables = reader.value(("receiver",), list[Table], [])
    if len(tables) > limits.receivers:
        reader.problem(
            ("receiver",), f"{len(tables)} receivers, at most {limits.receivers} allowed"
        )
    found: list[ReceiverConfig] = []
    named: dict[str, KeyPath] = {}
    for index in range(len(tables)):
        path = ("receiver", index)
        receiver = _receiver(reader, path, folder, limits, check_address)
        if receiver is None:
            continue
        _check_rights(reader, path, receiver, users, insecure)
        if receiver.name in named:
            first = reader.place(named[receiver.name])
            reader.problem((*path, "name"), f"{receiver.name!r} is another receiver's, at {first}")
        named.setdefault(receiver.name, (*path, "name"))
        found.append(receiver)
    return tuple(found)


def _receiver(
    reader: Reader,
    path: KeyPath,
    folder: Path,
    limits: Limits,
    check_address: Callable[[str], None],
) -> ReceiverConfig | None:
    """Return the receiver at `path`; None where it has no usable name."""
    reader.table(path, RECEIVER_KEYS)
    name = reader.required((*path, "name"), str)
    named = name is not None and reader.check((*path, "name"), check_name, name)
    address = reader.value((*path, "address"), str, None)
    if address is not None:
        address = absolute_address(address, folder)
        reader.check((*path, "address"), check_address, address)
    receiver = ReceiverConfig(
        name=name or "",
        address=address,
        user=reader.value((*path, "user"), str, None),
        subjects=_subjects(reader, (*path, "subjects"), limits),
        options=_options(reader, path, limits),
        rate=_rate(reader, (*path, "rate")),
    )
    return receiver if named else None


def _check_rights(
    reader: Reader, path: KeyPath, receiver: ReceiverConfig, users: Sequence[User], insecure: bool
) -> None:
    """Note what the gate would not let a receiver have, or be dialled for."""
    _user_named(reader, (*path, "user"), users)
    for user in users:
        if user.name == receiver.user:
            for pattern in receiver.subjects:
                if not user.rules.allows("receive", pattern):
                    reader.problem(
                        (*path, "subjects"),
                        f"{shown(pattern)}: user {shown(user.name)} may not receive it",
                    )
    if users and not insecure and receiver.address is not None and is_plain(receiver.address):
        reader.problem((*path, "address"), PLAIN_NEEDS)


def _options(reader: Reader, path: KeyPath, limits: Limits) -> ReceiverOptions:
    """Return the options of the receiver at `path`; defaults for what cannot be."""
    for table, keys in RECEIVER_TABLES.items():
        reader.table((*path, table), keys)
    given = {}
    for option in CONFIGURED:
        value = reader.value((*path, *option.key), option.kind, option.default)
        wrong = option.wrong(value, shown)
        if wrong is None:
            given[option.name] = value
        else:
            reader.problem((*path, *option.key), wrong)
    options = ReceiverOptions(**given)
    try:
        options.check_against(limits)
    except BadValue as error:
        reader.problem((*path, error.field), error.reason)
    return options


def _subjects(reader: Reader, path: KeyPath, limits: Limits) -> tuple[str, ...]:
    subjects = reader.required(path, list[str]) or []
    if len(subjects) > limits.patterns:
        reader.problem(path, f"{len(subjects)} patterns, at most {limits.patterns} allowed")
    seen: set[str] = set()
    for subject in subjects:
        if reader.check(path, check_pattern, subject) and subject in seen:
            reader.problem(path, f"{subject!r} is there twice")
        seen.add(subject)
    return tuple(subjects)


def _rate(reader: Reader, path: KeyPath) -> Rate | None:
    """Return the rate at `path`; each key is judged alone, by `Rate` itself."""
    if not reader.table(path, RATE_KEYS):
        return None
    given = {}
    for key in RATE_KEYS:
        value = reader.value((*path, key), float, None)
        if value is None:
            continue
        try:
            Rate(**{key: value})
        except BadValue as error:
            reader.problem((*path, key), error.reason)
        else:
            given[key] = value
    table = reader.value(path, Table, {})
    if "messages" not in table and "bytes" not in table:
        reader.problem(path, "must say messages, bytes or both")
    return Rate(**given)
