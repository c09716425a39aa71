"""Items: what crosses the wire of a session, as values, and the checks of control messages.

How an item becomes bytes is a codec's (`content/`); what is done with it, `central`'s and
`remote`'s.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from msgservice.core.subjects import check_name
from msgservice.errors import BadName
from msgservice.faces.sessions.errors import BadControl

HOST_MAX = 255  # characters, as of a name in DNS (RFC 1035)
ID_MAX = 200  # characters
ID_BYTES_MAX = 247  # the name of its receiver at a node has a prefix of 8, and 255 in all
SESSION_MAX = 64
REASON_MAX = 1_000
FAILED_MAX = 10_000  # in one acknowledgement
NUMBER_MAX = 2**53  # exact in JSON, too
TEXT_MAX = 4_096  # of a control message that came as text

Previous = tuple[str, int]  # a session, and up to which number of it was handled
Window = tuple[int, int]  # messages and bytes that a side takes unanswered, one at least


class Message(msgspec.Struct, frozen=True):
    """A message of the application. Without a session: from a side that numbers nothing.

    `record`: all of the log record that carried it, where one did. `failure`: why there is no
    content, where only its number could be read. `logged`: the control message that its text is,
    where it was logged; for sides that take the word of a logger.
    """

    content: Any
    session: str | None = None
    number: int | None = None
    record: Mapping[str, Any] | None = None
    failure: str | None = None
    logged: Control | None = None


@dataclass(frozen=True, slots=True)
class Hello:
    """A remote's first word: where its own server listens, and who it is.

    `host`: None for the address that the connection comes from. `acks`: it numbers its messages and
    acknowledges. `previous`: what it has handled in the session that it had before.
    `payload_bytes`: the largest payload that it takes. `window`: how much it takes unanswered.
    """

    port: int
    host: str | None = None
    id: str | None = None
    acks: bool = False
    previous: Previous | None = None
    nonce: str | None = None
    payload_bytes: int | None = None
    window: Window | None = None


@dataclass(frozen=True, slots=True)
class Welcome:
    """The central's first word on the connection that it dialled back: the session's name.

    `previous`: what it has handled in a session before whose numbers go on; None: all is numbered
    anew. `nonce`: that of the hello, since anybody can connect to a remote's server.
    `payload_bytes`: the largest payload that the central takes. `window`: how much unanswered.
    """

    session: str
    previous: Previous | None = None
    nonce: str | None = None
    payload_bytes: int | None = None
    window: Window | None = None


@dataclass(frozen=True, slots=True)
class Joined:
    """A remote's answer to `Welcome`, over its own client: it is the one that said hello."""

    session: str


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """A sign of life of the central. `time`: seconds since 1970 by its clock."""

    seq: int
    time: float


@dataclass(frozen=True, slots=True)
class Ack:
    """An acknowledgement: the handlers of all up to `upto` have ended, those of `failed` badly.

    `heard`: up to which of its own messages the side that says this knows the answers.
    """

    session: str
    upto: int
    failed: tuple[tuple[int, str], ...] = ()
    heard: int | None = None


@dataclass(frozen=True, slots=True)
class Shutdown:
    """The end of a remote, wished by its central; numbered as a message of its session."""

    session: str | None = None
    number: int | None = None
    reason: str | None = None


Control = Hello | Welcome | Joined | Heartbeat | Ack | Shutdown
Item = Message | Control


def control_of(content: object) -> Control | None:
    """Return the control message that `content` is: a mapping with a known `type`, or text of one.

    None for anything else. Raises `BadControl` for one whose fields cannot be.
    """
    if isinstance(content, str):
        if content[:1] != "{":
            return None
        content = _read_text(content)
    if not isinstance(content, dict):
        return None
    kind = content.get("type")
    parse = _PARSERS.get(kind) if isinstance(kind, str) else None
    return parse(content) if parse is not None else None


def fields_of(item: Control) -> dict[str, Any]:
    """Return the mapping that stands for a control message on the wire; `None`s are left out."""
    fields: dict[str, Any] = {"type": _TYPES[type(item)]}
    for name in item.__slots__:
        value = getattr(item, name)
        if value is not None and value != () and value is not False:
            fields[name] = value
    return fields


def _read_text(text: str) -> object:
    if len(text) > TEXT_MAX or '"type"' not in text.replace("'", '"'):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None


def check_numbering(session: object, number: object) -> tuple[str, int]:
    """Return the session and number that came with a message. Raises `BadControl`."""
    fields = {"session": session}
    return _text(fields, "session", SESSION_MAX), _integer("number", number, 1, NUMBER_MAX)


def check_id(value: object) -> str:
    """Return the id of a remote. Raises `BadControl` for its size, `BadName` for its characters."""
    name = check_name(_text({"id": value}, "id", ID_MAX))
    if len(name.encode()) > ID_BYTES_MAX:
        raise BadControl("id", f"{len(name.encode())} bytes, at most {ID_BYTES_MAX} are possible")
    return name


def check_host(value: object) -> str | None:
    """Return the host that a hello announces, None for an empty one. Raises `BadControl`."""
    return _host({"host": value})


def check_reason(value: object) -> str | None:
    """Return the reason of a shutdown, None for an empty one. Raises `BadControl`."""
    return _optional_text({"reason": value}, "reason", REASON_MAX)


# --- fields


def _text(fields: Mapping[str, Any], name: str, size_max: int) -> str:
    value = fields.get(name)
    if type(value) is not str:
        raise BadControl(name, f"text is needed, not {type(value).__name__}")
    if not 0 < len(value) <= size_max:
        raise BadControl(name, f"{len(value)} characters, 1 to {size_max} are needed")
    if not value.isascii() and _has_surrogates(value):
        raise BadControl(name, "text that is no UTF-8")
    return value


_has_surrogates = re.compile("[\ud800-\udfff]").search


def _optional_text(fields: Mapping[str, Any], name: str, size_max: int) -> str | None:
    value = fields.get(name)
    if value is None or (type(value) is str and not value):
        return None
    return _text(fields, name, size_max)


def _host(fields: Mapping[str, Any]) -> str | None:
    host = _optional_text(fields, "host", HOST_MAX)
    if host is not None and (not host.isprintable() or " " in host):  # it is logged
        raise BadControl("host", "characters that no host has")
    return host


def _integer(name: str, value: object, least: int, most: int) -> int:
    if type(value) is not int:
        raise BadControl(name, f"an integer is needed, not {type(value).__name__}")
    if not least <= value <= most:
        raise BadControl(name, f"not within {least} and {most}")
    return value


def _previous(fields: Mapping[str, Any]) -> Previous | None:
    value = fields.get("previous")
    if value is None:
        return None
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise BadControl("previous", "a session and a number are needed")
    session = _text({"previous": value[0]}, "previous", SESSION_MAX)
    return session, _integer("previous", value[1], 0, NUMBER_MAX)


def _window(fields: Mapping[str, Any]) -> Window | None:
    value = fields.get("window")
    if value is None:
        return None
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise BadControl("window", "a number of messages and one of bytes are needed")
    messages, size = (_integer("window", part, 1, NUMBER_MAX) for part in value)
    return messages, size


def _optional_integer(fields: Mapping[str, Any], name: str, least: int) -> int | None:
    value = fields.get(name)
    return None if value is None else _integer(name, value, least, NUMBER_MAX)


def _hello(fields: Mapping[str, Any]) -> Hello:
    name = _optional_text(fields, "id", ID_MAX)
    if name is not None:
        try:
            name = check_id(name)
        except BadName:
            raise BadControl("id", "no name that a receiver can have") from None
    acks = fields.get("acks", False)
    if type(acks) is not bool:
        raise BadControl("acks", f"true or false is needed, not {type(acks).__name__}")
    return Hello(
        port=_integer("port", fields.get("port"), 1, 65_535),
        host=_host(fields),
        id=name,
        acks=acks,
        previous=_previous(fields),
        nonce=_optional_text(fields, "nonce", SESSION_MAX),
        payload_bytes=_optional_integer(fields, "payload_bytes", 1),
        window=_window(fields),
    )


def _welcome(fields: Mapping[str, Any]) -> Welcome:
    return Welcome(
        _text(fields, "session", SESSION_MAX),
        _previous(fields),
        _optional_text(fields, "nonce", SESSION_MAX),
        _optional_integer(fields, "payload_bytes", 1),
        _window(fields),
    )


def _joined(fields: Mapping[str, Any]) -> Joined:
    return Joined(_text(fields, "session", SESSION_MAX))


def _heartbeat(fields: Mapping[str, Any]) -> Heartbeat:
    time = fields.get("time", 0.0)
    if type(time) not in (int, float):
        raise BadControl("time", f"a number is needed, not {type(time).__name__}")
    if not -NUMBER_MAX <= time <= NUMBER_MAX:  # nor is a NaN
        raise BadControl("time", "no time")
    return Heartbeat(_integer("seq", fields.get("seq", 0), 0, NUMBER_MAX), float(time))


def _ack(fields: Mapping[str, Any]) -> Ack:
    failed = fields.get("failed", ())
    if not isinstance(failed, list | tuple) or len(failed) > FAILED_MAX:
        raise BadControl("failed", f"a list of at most {FAILED_MAX} is needed")
    pairs = []
    for pair in failed:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise BadControl("failed", "pairs of a number and a reason are needed")
        number = _integer("failed", pair[0], 1, NUMBER_MAX)
        pairs.append((number, _text({"failed": pair[1]}, "failed", REASON_MAX)))
    upto = _integer("upto", fields.get("upto"), 0, NUMBER_MAX)
    session, heard = _text(fields, "session", SESSION_MAX), _optional_integer(fields, "heard", 0)
    return Ack(session, upto, tuple(pairs), heard)


def _shutdown(fields: Mapping[str, Any]) -> Shutdown:
    return Shutdown(
        _optional_text(fields, "session", SESSION_MAX),
        _optional_integer(fields, "number", 1),
        _optional_text(fields, "reason", REASON_MAX),
    )


_PARSERS: dict[str, Callable[[Mapping[str, Any]], Control]] = {
    "hello": _hello,
    "welcome": _welcome,
    "joined": _joined,
    "heartbeat": _heartbeat,
    "ack": _ack,
    "shutdown": _shutdown,
}
_TYPES = {
    Hello: "hello",
    Welcome: "welcome",
    Joined: "joined",
    Heartbeat: "heartbeat",
    Ack: "ack",
    Shutdown: "shutdown",
}
