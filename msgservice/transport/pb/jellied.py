"""Jellied values: which of them a connection takes, and the errors that cross.

Twisted's jelly makes an instance of whatever any part of a process has registered for Perspective
Broker, before it asks which classes are allowed, and lets every type through whose name has a dot.
So what came is looked at here first: basic values, references where the connection takes them, and
the classes that its owner has named. Everything else is an error for who called.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from functools import lru_cache
from typing import Any, Final

from twisted.python.reflect import qual
from twisted.spread.jelly import SecurityOptions, jelly
from twisted.spread.pb import CopyableFailure

from msgservice.arguments import wrong
from msgservice.core.reasons import one_line
from msgservice.errors import (
    BadValue,
    MalformedFrame,
    MsgServiceError,
    RemoteFailed,
    RequestFailed,
    kind_of,
)
from msgservice.transport.pb.expressions import Encoded, encode

PARTS_MAX = 100_000  # lists of a value that is sent: more than a call has room for
SHOWN = 80  # characters of what the other side has said, in an error
REMOTE: Final = b"remote"  # an object of the other side, which can be called
LOCAL: Final = b"local"  # one of ours, which the other side gives back
UNPERSISTABLE: Final = b"unpersistable"  # in place of what has no form
CACHED: Final = b"cached"  # what updates itself here, and is here already
# By tag, how many values follow: a fixed number, or any.
_BASIC: Final[dict[bytes, int | None]] = {
    b"None": 0,
    b"boolean": 1,
    b"unicode": 1,
    b"list": None,
    b"tuple": None,
    b"dictionary": None,
}
_FAILURE: Final = qual(CopyableFailure).encode()
HIDDEN: Final = "the log of the other side says why"


def copyables(classes: Iterable[type]) -> tuple[type, ...]:
    """Return classes whose instances may cross. Raises `TypeError` for what is none."""
    if isinstance(classes, str | bytes | type) or not isinstance(classes, Iterable):
        raise wrong("classes", classes, "a list of classes is needed")
    return tuple(classes)


def security(*classes: type) -> SecurityOptions:
    """Return options of jelly's that allow basic values and instances of these classes alone."""
    for one in classes:
        if not isinstance(one, type):
            raise TypeError(f"classes has {one!r}, which is no class")
    options = SecurityOptions()
    options.allowTypes("None", "boolean", "unicode", "list", "tuple", "dictionary", REMOTE, LOCAL)
    options.allowInstancesOf(*classes)
    return options


_BASICS: Final = security()
# For `plain`.
CACHED_TEXT = 64  # characters: keys, and what is said again and again
_PAIR: Final = encode([0, 0])[:-4]
_FIXED: Final = {
    None: encode([b"None"]),
    True: encode([b"boolean", b"true"]),
    False: encode([b"boolean", b"false"]),
}


def check(value: Any, also: Collection[bytes] = ()) -> None:
    """Raise `BadValue` unless a jellied value is basic all through, or of the tags in `also`."""
    if not isinstance(value, list):
        return
    tag = value[0] if value else b""
    if not isinstance(tag, bytes):
        raise BadValue("argument", "is not jellied")
    if tag in _BASIC:
        count = _BASIC[tag]
        if count is not None and count != len(value) - 1:
            raise BadValue("argument", f"of type {shown(tag)} has {len(value) - 1} parts")
        if tag == b"dictionary":
            for pair in value[1:]:
                if not isinstance(pair, list) or len(pair) != 2:
                    raise BadValue("argument", "has a dictionary of other than pairs")
                check(pair[0], also)
                check(pair[1], also)
        elif tag in (b"unicode", b"boolean"):
            if not isinstance(value[1], bytes):
                raise BadValue("argument", f"of type {shown(tag)} is not bytes")
            if tag == b"boolean" and value[1] not in (b"true", b"false"):
                raise BadValue("argument", f"of type {shown(tag)} is neither true nor false")
        else:
            for part in value[1:]:
                check(part, also)
        return
    if tag == UNPERSISTABLE and len(value) == 2 and isinstance(value[1], bytes):
        # Jelly says so of what nobody has said a form for: "instance of class X deemed insecure".
        name = value[1].removeprefix(b"instance of class ").removesuffix(b" deemed insecure")
        raise BadValue("argument", f"is of {shown(name)}, which has no form that crosses")
    if tag not in also:
        raise BadValue("argument", f"is of type {shown(tag)}, which is not taken here")
    if tag in (REMOTE, LOCAL, CACHED):
        if len(value) != 2 or not isinstance(value[1], int):
            raise BadValue("argument", "is a reference to nothing")
        return
    for part in value[1:]:
        check(part, also)


def flattened(value: Any) -> Any:
    """Return a jellied value in which each list, tuple or dictionary stands where it is.

    Jelly says one that is there twice once, and then refers to that: in what comes a reference is
    not taken, since a few make very much. Raises `BadValue` for what contains itself.
    """
    return _flattened(value, {}, set(), [PARTS_MAX])


def _flattened(value: Any, known: dict[int, Any], inside: set[int], left: list[int]) -> Any:
    if not isinstance(value, list | tuple):
        return value
    left[0] -= 1
    if left[0] < 0:
        raise BadValue("argument", f"has more than {PARTS_MAX} parts")
    if value and value[0] == b"reference":
        _, number, value = value
        known[number] = value
    elif value and value[0] == b"dereference":
        number = value[1]
        if number in inside:
            raise BadValue("argument", "contains itself")
        value = known[number]
    else:
        return [_flattened(part, known, inside, left) for part in value]
    inside.add(number)
    found = _flattened(value, known, inside, left)
    inside.discard(number)
    return found


def plain(value: Any) -> Encoded:
    """Return a value as JSON has them jellied and encoded, in a fifth of the time that takes."""
    pieces: list[bytes] = []
    _plain(value, pieces.append)
    return Encoded(b"".join(pieces))


def _plain(value: Any, write: Callable[[bytes], object]) -> None:
    if isinstance(value, str):
        write(
            _text_of(value) if len(value) <= CACHED_TEXT else encode([b"unicode", value.encode()])
        )
    elif isinstance(value, dict):
        write(_opening(b"dictionary", len(value)))
        for key, item in value.items():
            write(_PAIR)
            _plain(key, write)
            _plain(item, write)
    elif isinstance(value, list):
        write(_opening(b"list", len(value)))
        for item in value:
            _plain(item, write)
    elif value is None or isinstance(value, bool):
        write(_FIXED[value])
    else:
        write(encode(value))


@lru_cache(maxsize=4096)
def _text_of(text: str) -> bytes:
    return encode([b"unicode", text.encode()])


def _opening(tag: bytes, count: int) -> bytes:
    """The beginning of a list of a tag, and as many more."""
    return encode([tag, *[0] * count])[: -2 * count or None]


def shown(name: bytes) -> str:
    """Return what the other side calls something, as it may stand in an error."""
    return one_line(name.decode(errors="replace"))[:SHOWN]


def told(error: BaseException) -> Any:
    """Return an error as it crosses, jellied: its type, and a sentence that anybody may read.

    Of one that is not ours nothing else is said: what is in it may be nobody's business.
    """
    state = CopyableFailure(error).getStateToCopy()
    is_ours = isinstance(error, MsgServiceError)
    state["value"] = one_line(str(error)) if is_ours else HIDDEN
    if isinstance(error, RequestFailed):  # a type is all that a program has there
        state["type"] = qual(kind_of(error)).encode()
        state["parents"] = [qual(kind) for kind in kind_of(error).__mro__]
    state["traceback"] = HIDDEN + "\n"
    return [_FAILURE, jelly(state, _BASICS)]


def failed(value: Any) -> RemoteFailed:
    """Return the error that the other side has answered with; `MalformedFrame` for none."""
    if not isinstance(value, list) or len(value) != 2 or value[0] != _FAILURE:
        raise MalformedFrame("an error that is no failure")
    state = value[1]
    if not isinstance(state, list) or not state or state[0] != b"dictionary":
        raise MalformedFrame("a failure without its state")
    known = {}
    for pair in state[1:]:
        if isinstance(pair, list) and len(pair) == 2:
            key = _text(pair[0])
            if key in ("type", "value"):
                known[key] = _text(pair[1])
    return RemoteFailed(known.get("type", ""), known.get("value", ""))


def _text(value: Any) -> str:
    if isinstance(value, list) and len(value) == 2 and value[0] == b"unicode":
        value = value[1]
    return one_line(value.decode(errors="replace")) if isinstance(value, bytes) else ""
