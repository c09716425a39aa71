"""A restricted unpickler: containers, scalars, dates, and classes that were registered; no code.

The opcodes are walked before anything is built, since the C unpickler alone is not safe with bytes
of a stranger: it sets aside memory for whatever index of its memo is named, takes extensions from a
cache without asking, and what it builds may be nested deeper than the interpreter can hash. What
has classes is then loaded by an `Unpickler` that knows a few by name. The opcodes are those of
pickle's protocols 0 to 5 (PEP 307, PEP 3154, PEP 574; `pickletools`).
"""

from __future__ import annotations

import datetime as dt
import decimal
import io
import pickle
from collections.abc import Callable, Mapping
from struct import Struct
from typing import Any, NoReturn

from msgservice.faces.sessions.errors import BadPayload

DEPTH_MAX = 100
TUPLES_MAX = 1_000  # so many may be one in the other without a closer look
DIGITS_MAX = 20  # of an integer of 64 bits, as text
LONG_BYTES_MAX = 9

_length4 = Struct("<I").unpack_from
_length8 = Struct("<Q").unpack_from

# What follows an opcode: so many bytes; or one of these.
_LENGTH1, _LENGTH4, _LENGTH8, _LINE, _DECIMAL, _MEMO, _LONG, _CLASS, _NO = range(-1, -10, -1)
_ARGUMENT: list[int] = [_NO] * 256
_REASONS: dict[int, str] = {}


def _are(opcodes: bytes, argument: int) -> None:
    for opcode in opcodes:
        _ARGUMENT[opcode] = argument


def _refused(opcodes: bytes, reason: str) -> None:
    for opcode in opcodes:
        _REASONS[opcode] = reason


_are(b".(012Naed}l]t)su\x85\x86\x87\x88\x89\x8f\x90\x91\x94", 0)
_are(b"Khq\x80", 1)
_are(b"M", 2)
_are(b"Jj", 4)
_are(b"G\x95", 8)
_are(b"UC\x8c", _LENGTH1)
_are(b"TXB", _LENGTH4)
_are(b"\x8d\x8e\x96", _LENGTH8)
_are(b"FSV", _LINE)
_are(b"ILg", _DECIMAL)
_are(b"rp", _MEMO)
_are(b"\x8a\x8b", _LONG)
_are(b"c\x93Rb", _CLASS)
_refused(b"\x82\x83\x84", "an extension (EXT1, EXT2, EXT4)")
_refused(b"PQ", "a persistent id (PERSID, BINPERSID)")
_refused(b"io", "an instance of a classic class (INST, OBJ)")
_refused(b"\x81\x92", "an instance of a class (NEWOBJ, NEWOBJ_EX)")
_refused(b"\x97\x98", "a buffer out of band (NEXT_BUFFER, READONLY_BUFFER)")

_STOP, _TEXT, _PUT, _TUPLE, _GLOBAL, _LONG_PUT = b".Xqtcr"
_LONG1, _MEMOIZE = 0x8A, 0x94
_TUPLES = frozenset(b"t\x85\x86\x87")


def loads(payload: bytes, classes: Mapping[tuple[str, str], Any] | None = None) -> Any:
    """Return what a pickle stands for.

    `classes`: callables by module and name, for classes that are registered (`registered`). Raises
    `BadPayload` for anything that is not allowed, and for bytes that are no pickle.
    """
    try:
        has_classes, nests = _walk(payload)
    except IndexError:
        _refuse("it ends too early")
    if nests:
        _check_tuples(payload)
    try:
        if has_classes:
            value = _Restricted(payload, classes or {}).load()
        else:
            # No opcode of it makes, calls or looks up anything.
            value = pickle.loads(payload, encoding="utf-8", errors="replace")  # noqa: S301
    except BadPayload:
        raise
    except Exception as error:  # whatever bytes, and constructors that were given them, can raise
        _refuse(type(error).__name__)
    _check_depth(value)
    return value


def registered(cls: type) -> Mapping[tuple[str, str], Any]:
    """Return what lets instances of a class be loaded: pickled by protocols 0 and 1, as its state.

    Its `__init__` is not called; its `__setstate__`, if any, and its `__new__` are.
    """
    return {(cls.__module__, cls.__qualname__): _Class(cls)}


def _refuse(reason: str) -> NoReturn:
    raise BadPayload(f"a pickle is refused: {reason}")


# --- opcodes


def _walk(payload: bytes) -> tuple[bool, bool]:
    """Check every opcode; return whether there are classes, and tuples enough to be nested deep.

    Raises `IndexError` where the bytes end first.
    """
    arguments, length4 = _ARGUMENT, _length4
    at = tuples = 0
    has_classes = False
    while True:
        opcode = payload[at]
        at += 1
        if opcode == _TEXT:  # a log record is made of these, each put into the memo
            payload[at + 3]
            at += 4 + length4(payload, at)[0]
            if payload[at] == _PUT:
                at += 2
            continue
        argument = arguments[opcode]
        if argument < 0:
            has_classes = has_classes or argument == _CLASS
            at = _skip(payload, at, opcode, argument)
        elif opcode == _STOP:
            break
        else:
            at += argument
            if opcode in _TUPLES:
                tuples += 1
    if at != len(payload):
        _refuse("bytes behind its end")
    return has_classes, tuples > TUPLES_MAX


def _skip(payload: bytes, at: int, opcode: int, argument: int) -> int:
    """Return where the argument of an opcode ends, that begins at `at`; it is checked."""
    match argument:
        case _ if argument == _LENGTH1:
            return at + 1 + payload[at]
        case _ if argument == _LENGTH4:
            payload[at + 3]
            return at + 4 + int(_length4(payload, at)[0])
        case _ if argument == _LENGTH8:
            payload[at + 7]
            size = int(_length8(payload, at)[0])
            if size > len(payload):
                _refuse("a string longer than the pickle")
            return at + 8 + size
        case _ if argument == _LINE:
            return _line(payload, at)
        case _ if argument == _DECIMAL:
            end = _line(payload, at)
            if end - at > DIGITS_MAX + 3:  # a sign, an `L`, and the end of the line
                _refuse("an integer of more than 64 bits")
            return end
        case _ if argument == _MEMO:
            return _memo(payload, at, opcode)
        case _ if argument == _LONG:
            return _long(payload, at, opcode)
        case _ if argument == _CLASS:
            return _line(payload, _line(payload, at)) if opcode == _GLOBAL else at
    _refuse(_REASONS.get(opcode, f"opcode {opcode:#04x}"))


def _line(payload: bytes, at: int) -> int:
    end = payload.find(b"\n", at) + 1
    if not end:
        raise IndexError
    return end


def _memo(payload: bytes, at: int, opcode: int) -> int:
    """Check the index of a memo: the unpickler sets aside room for all below it."""
    if opcode == _LONG_PUT:
        payload[at + 3]
        index, end = int(_length4(payload, at)[0]), at + 4
    else:
        end = _line(payload, at)
        text = payload[at : end - 1]
        index = int(text) if len(text) <= DIGITS_MAX and text.isdigit() else len(payload)
    if index >= len(payload):
        _refuse("an index of the memo beyond what it can hold")
    return end


def _long(payload: bytes, at: int, opcode: int) -> int:
    if opcode == _LONG1:
        size, at = payload[at], at + 1
    else:
        payload[at + 3]
        size, at = int(_length4(payload, at)[0]), at + 4
    if size > LONG_BYTES_MAX:
        _refuse("an integer of more than 64 bits")
    return at + size


def _check_tuples(payload: bytes) -> None:
    """Refuse tuples nested deeper than `DEPTH_MAX`: as keys they would overflow the C stack.

    How deep each value on the unpickler's stack is, counted in tuples; all else has no hash, or
    knows its own.
    """
    stack: list[int] = []
    marks: list[int] = []
    memo: dict[int, int] = {}
    at = 0
    while True:
        opcode = payload[at]
        at += 1
        begin, argument = at, _ARGUMENT[opcode]
        at = at + argument if argument >= 0 else _skip(payload, at, opcode, argument)
        match chr(opcode):
            case ".":
                return
            case "(":
                marks.append(len(stack))
            case "t" | "l" | "d" | "\x91":
                base = marks.pop()
                depth = 1 + max(stack[base:], default=0) if opcode == _TUPLE else 0
                del stack[base:]
                stack.append(depth)
            case "\x85" | "\x86" | "\x87":
                count = opcode - 0x84
                depth = 1 + max(stack[-count:])
                del stack[-count:]
                stack.append(depth)
            case "e" | "u" | "\x90" | "1":
                del stack[marks.pop() :]
            case "a" | "0" | "b":
                stack.pop()
            case "s":
                del stack[-2:]
            case "R" | "\x93":
                del stack[-2:]
                stack.append(0)
            case "2":
                stack.append(stack[-1])
            case "q" | "r" | "p" | "\x94":
                memo[_index(payload, begin, at, opcode, len(memo))] = stack[-1]
            case "h" | "j" | "g":
                stack.append(memo.get(_index(payload, begin, at, opcode, 0), 0))
            case "\x80" | "\x95":
                pass
            case _:
                stack.append(0)
        if stack and stack[-1] > DEPTH_MAX:
            _refuse(f"it is nested more than {DEPTH_MAX} deep")


def _index(payload: bytes, at: int, end: int, opcode: int, next_index: int) -> int:
    if opcode == _MEMOIZE:
        return next_index
    if opcode in b"pg":
        return int(payload[at : end - 1])
    return int.from_bytes(payload[at:end], "little")


def _check_depth(value: Any) -> None:
    """Refuse what is nested deeper than `DEPTH_MAX`. What is shared is looked at once."""
    if type(value) is dict and _NESTING.isdisjoint(map(type, (*value, *value.values()))):
        return  # a log record
    seen: set[int] = set()
    level = [value]
    for _ in range(DEPTH_MAX + 1):
        below: list[Any] = []
        for item in level:
            kind = type(item)
            if kind is dict:
                below += item.keys()
                below += item.values()
            elif kind in _CONTAINERS:
                below += item
        level = []
        for item in below:
            if type(item) in _NESTING and id(item) not in seen:
                seen.add(id(item))
                level.append(item)
        if not level:
            return
    _refuse(f"it is nested more than {DEPTH_MAX} deep")


_CONTAINERS = frozenset({list, tuple, set, frozenset})
_NESTING = _CONTAINERS | {dict}

# --- classes


class _Callable:
    """A callable that a pickle may name. Without attributes, so that nothing can be put there."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)


class _Class(_Callable):
    """A registered class: named by a pickle, made by `copyreg._reconstructor` only."""

    __slots__ = ("cls",)

    def __init__(self, cls: type) -> None:
        super().__init__(self._none)
        self.cls = cls

    @staticmethod
    def _none(*arguments: Any) -> NoReturn:
        _refuse("a registered class that is called (REDUCE)")


def _reconstructor(cls: Any, base: Any, state: Any) -> Any:
    if type(cls) is not _Class or base is not _object or state is not None:
        _refuse("a class that is not registered")
    made: Any = cls.cls
    return made.__new__(made)


def _bytes(*arguments: Any) -> bytes:
    match arguments:
        case ():
            return b""
        case (str(text), str(encoding)) if encoding in ("latin1", "latin-1"):
            return text.encode("latin-1")
        case (list(numbers),):
            return bytes(numbers)
    _refuse("bytes of something else")


def _bytearray(*arguments: Any) -> bytearray:
    match arguments:
        case (bytes(data),):
            return bytearray(data)
    return bytearray(_bytes(*arguments))


def _set_of(make: Callable[[Any], Any]) -> Callable[..., Any]:
    def function(members: Any = ()) -> Any:
        if type(members) not in (list, tuple):
            _refuse("a set of something else")
        return make(members)

    return function


def _decimal(text: Any) -> decimal.Decimal:
    if type(text) is not str or len(text) > DEPTH_MAX:
        _refuse("a decimal of something else")
    return decimal.Decimal(text)


def _date(cls: type) -> Callable[..., Any]:
    def function(*arguments: Any) -> Any:
        return cls(*arguments)

    return function


_object = _Callable(lambda: None)
_NAMES: dict[tuple[str, str], Any] = {
    **{
        (module, name): _Callable(function)
        for module in ("builtins", "__builtin__")
        for name, function in {
            "set": _set_of(set),
            "frozenset": _set_of(frozenset),
            "bytearray": _bytearray,
            "bytes": _bytes,
        }.items()
    },
    **{(module, "object"): _object for module in ("builtins", "__builtin__")},
    **{(module, "_reconstructor"): _Callable(_reconstructor) for module in ("copyreg", "copy_reg")},
    ("_codecs", "encode"): _Callable(_bytes),
    **{
        ("datetime", cls.__name__): _Callable(_date(cls))
        for cls in (
            dt.datetime,
            dt.date,
            dt.time,
            dt.timedelta,
            dt.timezone,
        )
    },
    ("decimal", "Decimal"): _Callable(_decimal),
}


class _Restricted(pickle.Unpickler):
    """The unpickler that knows these names, and those that were registered."""

    def __init__(self, payload: bytes, classes: Mapping[tuple[str, str], Any]) -> None:
        super().__init__(io.BytesIO(payload), encoding="utf-8", errors="replace")
        self._classes = classes

    def find_class(self, module: str, name: str) -> Any:
        found = self._classes.get((module, name)) or _NAMES.get((module, name))
        if found is None:
            raise BadPayload(
                "a pickle is refused: a class or function that is not registered (GLOBAL)"
            )
        return found

    def persistent_load(self, pid: Any) -> NoReturn:
        _refuse("a persistent id")
