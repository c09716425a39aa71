"""The content of lines: JSON, with objects of registered classes in it; the codec that is replaced.

An object travels as `{".class": name, ".version": text, ".state": {…}}`. Names are looked up among
those that were registered and nowhere else: nothing is imported because a peer has named it, and
what is unknown stays a plain dict. What lines are is `wire`'s.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import msgspec

from msgservice.arguments import check_kind, check_methods
from msgservice.errors import BadValue

NESTING_MAX = 200
"""Arrays and objects within each other, in what is encoded or decoded."""
CLASS, VERSION, STATE = ".class", ".version", ".state"
_OBJECT = frozenset((CLASS, VERSION, STATE))
# One that does not end goes to the end, or each quote in it would be tried as a beginning.
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)', re.DOTALL)
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_SQUARE = bytes.maketrans(b"{}", b"[]")
OPEN = ord("[")
_RUNS = re.compile(rb"\[+|\]+").finditer
# As bytes of a line; a peer may write the dot as an escape.
_MAY_BE_OBJECT = re.compile(rb'"(?:\.|\\u002[eE])').search


_PLAIN = (dict, list, tuple, str, int, float)  # what JSON has a word for is never asked about


class StreamCodec(Protocol):
    """A codec of lines: two functions, which a class may have as static methods."""

    @staticmethod
    def encode(value: Any) -> bytes | str:
        """Return a value, plain data and registered objects, as text without a newline in it.

        Any exception says that it cannot be encoded.
        """

    @staticmethod
    def decode(data: bytes) -> Any:
        """Return the value of one line, which comes without its end.

        Any exception says that it is malformed.
        """


def check_codec(codec: Any) -> StreamCodec:
    """Return a codec. Raises `TypeError` for what is none."""
    check_methods("an object with encode and decode is needed", ("encode", "decode"), codec=codec)
    found: StreamCodec = codec
    return found


class _Registered(NamedTuple):
    cls: type
    name: str
    version: str


_by_name: dict[str, _Registered] = {}
_by_class: dict[type, _Registered] = {}


def register(cls: type, name: str = "", version: str = "0.0") -> type:
    """Let objects of this class travel, and be restored where they arrive; returns the class.

    `name`: what it is called on the wire, by default its module and name. Restoring calls nothing
    of it, neither `__new__` nor `__init__`: the state becomes its attributes. Raises `BadValue` for
    a name that another class has, and for a class whose objects cannot be restored so: what is a
    dict, list, text or number itself, has no attributes of its own (`__slots__`), or is abstract;
    `TypeError` for what is no class, and for names that are no text.
    """
    check_kind(type, "a class is needed", cls=cls)
    check_kind(str, "text is needed", name=name, version=version)
    _check_class(cls)
    entry = _Registered(cls, name or f"{cls.__module__}.{cls.__qualname__}", version)
    other = _by_name.get(entry.name)
    if other is not None and other.cls is not cls:
        raise BadValue("name", f"{entry.name!r} is registered for {other.cls.__qualname__}")
    _by_name[entry.name] = _by_class[cls] = entry
    return cls


def _check_class(cls: type) -> None:
    if issubclass(cls, _PLAIN):
        raise BadValue("class", f"{cls.__qualname__} is plain data, and would arrive as that")
    try:
        vars(object.__new__(cls))
    except TypeError as error:
        raise BadValue("class", f"{cls.__qualname__} cannot be restored: {error}") from None


def _plain(value: Any) -> dict[str, Any]:
    entry = _by_class.get(type(value))
    if entry is None:
        name = type(value).__qualname__
        raise BadValue("message", f"has an instance of {name}, which is not registered")
    return {CLASS: entry.name, VERSION: entry.version, STATE: vars(value)}


_encode: Callable[[Any], str] = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_plain
).encode
_decode = msgspec.json.Decoder().decode


class JsonCodec:
    """The codec of streams: strict JSON in UTF-8, without NaN, and registered objects."""

    @staticmethod
    def encode(value: Any) -> bytes:
        """See `StreamCodec`. Raises `BadValue`."""
        try:
            data = _encode(value).encode()
        except BadValue:
            raise
        except (TypeError, ValueError, RecursionError) as error:  # NaN, circles, half characters
            raise BadValue("message", f"cannot be encoded: {error}") from None
        _check_nesting(data)
        return data

    @staticmethod
    def decode(data: bytes) -> Any:
        """See `StreamCodec`. Raises `BadValue`."""
        _check_nesting(data)
        try:
            value = _decode(data)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise BadValue("line", f"is not JSON as it is taken here: {error}") from None
        return _restored(value) if _MAY_BE_OBJECT(data) else value


def _check_nesting(data: bytes) -> None:
    if data.count(b"[") + data.count(b"{") <= NESTING_MAX:
        return
    rest = _STRING.sub(b"", data).translate(_SQUARE, _NOT_BRACKETS)
    depth = 0
    # Where many have nothing within them, it is much shorter without these, and less deep by one.
    # Where they are few there are few runs, however long it is.
    while rest.count(b"[]") > len(rest) // 8:
        rest = rest.replace(b"[]", b"")
        depth += 1
    for run in _RUNS(rest):
        size = run.end() - run.start()
        depth += size if rest[run.start()] == OPEN else -size
        if depth > NESTING_MAX:
            raise BadValue(
                "line", f"has more than {NESTING_MAX} arrays and objects within each other"
            )


def _restored(value: Any) -> Any:
    if isinstance(value, list):
        return [_restored(one) for one in value]
    if not isinstance(value, dict):
        return value
    value = {name: _restored(one) for name, one in value.items()}
    entry = _by_name.get(name) if isinstance(name := value.get(CLASS), str) else None
    state = value.get(STATE)
    if entry is None or not isinstance(state, dict) or not value.keys() <= _OBJECT:
        return value
    if not all(name.isidentifier() and not name.startswith("__") for name in state):
        return value
    made: Any = object.__new__(entry.cls)
    vars(made).update(state)
    return made
