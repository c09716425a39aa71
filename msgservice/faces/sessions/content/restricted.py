"""A restricted unpickler: containers, scalars, dates, and classes that were registered; no code.

The opcodes are walked before anything is built, since the C unpickler alone is not safe with bytes
of a stranger: it sets aside memory for whatever index of its memo is named, takes extensions from a
cache without asking, and what it builds may be nested deeper than the interpreter can hash, or
shared so often that it never ends to hash it. What has classes is then loaded by an `Unpickler`
that knows a few by name. The opcodes are those of pickle's protocols 0 to 5 (PEP 307, PEP 3154,
PEP 574; `pickletools`).
"""

from __future__ import annotations

import datetime as dt
import decimal
import io
import pickle
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from struct import Struct
from types import MemberDescriptorType
from typing import Any, NoReturn

from msgservice.faces.sessions.errors import BadPayload

DEPTH_MAX = 100
TUPLES_MAX = 1_000  # so many may be one in the other without a closer look
SHARED_MAX = 16  # so many references to what is there already, too
HASHED_MAX = 100_000  # values in keys, counted as often as they are hashed; and for each byte:
HASHED_PER_BYTE = 4
# Numbers, and what is made of them, hash as whoever chose them wishes: all to the same, if so
# meant, and each is compared with each. There may be so many as keys of one mapping or members of
# one set; of more mappings and sets less in each, so that the sum of squares is no larger.
NUMBERS_MAX = 5_000
NUMBER_BYTES = 64  # of text beside numbers count as one more: it takes longer to compare
# Values of all, counted as often as who prints or compares it meets them; and for each byte:
VALUES_MAX = 1_000_000
VALUES_PER_BYTE = 16
TEXT_BYTES = 4  # of text or bytes in others count as one value more, where anything is shared
DIGITS_MAX = 39  # of an integer of 128 bits, as text: a UUID is one
LONG_BYTES_MAX = 17

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

_STOP, _TEXT, _GET, _PUT, _GLOBAL, _LONG_PUT = b".Xhqcr"
_LONG1, _MEMOIZE = 0x8A, 0x94
# Text of Python 2 is bytes. What is no UTF-8 stays in it as `os.fsdecode` has it: dates need it.
_ERRORS = "surrogateescape"
# What `_walk` counts: tuples and frozensets, which may be keys with others inside; and in the upper
# half what is met again, by the memo or by DUP.
# and above that values that are no text, which may be keys chosen to collide.
_BITS = 28
_COUNTS = (1 << _BITS) - 1
_TEXTS = b"UXTSVCB\x8c\x8d\x8e"
_COUNTED = [
    (opcode in b"t\x85\x86\x87\x91")
    + ((opcode in b"ghj2") << _BITS)
    + ((opcode in b"ghj2NKMJGFIL)\x88\x89\x8a\x8b\x85\x86\x87tR") << 2 * _BITS)
    for opcode in range(256)
]


def loads(payload: bytes, classes: Mapping[tuple[str, str], Any] | None = None) -> Any:
    """Return what a pickle stands for.

    `classes`: callables by module and name, for classes that are registered (`registered`). Raises
    `BadPayload` for anything that is not allowed, and for bytes that are no pickle.
    """
    try:
        has_classes, tuples, shared, numbers = _walk(payload)
    except IndexError:
        _refuse("it ends too early")
    if (
        tuples > TUPLES_MAX
        or numbers > NUMBERS_MAX
        or (shared > SHARED_MAX and (has_classes or tuples > 1))
    ):
        try:
            _check_keys(payload)
        except BadPayload:
            raise
        except (IndexError, ValueError):  # no value on the stack; no number of the memo
            _refuse("an opcode without a value to work on")
    kinds: frozenset[type] = _NESTING
    try:
        if has_classes:
            classes = classes or {}
            value = _Restricted(payload, classes).load()
            kinds = _NESTING_AND_MADE.union(known.cls for known in classes.values())
        else:
            # No opcode of it makes, calls or looks up anything.
            value = pickle.loads(payload, encoding="utf-8", errors=_ERRORS)  # noqa: S301
        _check_values(value, kinds, VALUES_MAX + VALUES_PER_BYTE * len(payload), shared)
    except BadPayload:
        raise
    except BaseException as error:  # whatever bytes, and classes that were given them, can raise
        _refuse(type(error).__name__)
    return value


def registered(cls: type) -> Mapping[tuple[str, str], Any]:
    """Return what lets instances of a class be loaded: pickled by protocols 0 and 1, as its state.

    Its `__init__` is not called; its `__setstate__`, if any, and its `__new__` are, and where it
    has methods of a list or a mapping (`append`, `extend`, `__setitem__`, `add`), a pickle can call
    those. How long its `__hash__` takes is its own matter. Raises `TypeError` for a class whose
    instances can be called: a pickle could do that, with whatever it holds.
    """
    if any("__call__" in vars(base) for base in cls.__mro__):
        raise TypeError(
            f"instances of {cls.__qualname__} can be called, and a pickle could call them"
        )
    return {(cls.__module__, cls.__qualname__): _Class(cls)}


def stand_ins(classes: Mapping[tuple[str, str], Any]) -> Mapping[tuple[str, str], Any]:
    """Return what lets a pickle be read as with these classes, though no instance is made."""
    return dict.fromkeys(classes, _Class(_StandIn))


def _refuse(reason: str) -> NoReturn:
    raise BadPayload(f"a pickle is refused: {reason}")


# --- opcodes


def _walk(payload: bytes) -> tuple[bool, int, int, int]:
    """Check every opcode; return whether there are classes, and what `_COUNTED` counts.

    Raises `IndexError` where the bytes end first.
    """
    arguments, length4, counted = _ARGUMENT, _length4, _COUNTED
    at = counts = 0
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
        counts += counted[opcode]
    if at != len(payload):
        _refuse("bytes behind its end")
    return has_classes, counts & _COUNTS, counts >> _BITS & _COUNTS, counts >> 2 * _BITS


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
                _refuse("an integer of more than 128 bits")
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
    """Check the index of a memo: the unpickler sets aside room for all below it.

    They are given one after the other, from 0 or 1, and each takes three bytes at least.
    """
    if opcode == _LONG_PUT:
        payload[at + 3]
        index, end = int(_length4(payload, at)[0]), at + 4
    else:
        end = _line(payload, at)
        text = payload[at : end - 1]
        index = int(text) if len(text) <= DIGITS_MAX and text.isdigit() else at
    if index > at // 3 + 1:
        _refuse("an index of the memo beyond what it can hold")
    return end


def _long(payload: bytes, at: int, opcode: int) -> int:
    if opcode == _LONG1:
        size, at = payload[at], at + 1
    else:
        payload[at + 3]
        size, at = int(_length4(payload, at)[0]), at + 4
    if size > LONG_BYTES_MAX:
        _refuse("an integer of more than 128 bits")
    return at + size


def _check_keys(payload: bytes) -> None:
    """Refuse keys and members of sets that it would take too deep a stack, or too long, to hash.

    A tuple does not remember its hash. Nested deep it overflows the C stack; a few dozen, each of
    the one before twice, never end. So this follows the unpickler's stack: of each value, how deep
    it is in tuples, and how many values are in it, a shared one as often as it is met. So nothing
    may grow that is in something else already; a pickler finishes what it puts into another.
    """
    arguments, effects = _ARGUMENT, _EFFECTS
    hashed_max = HASHED_MAX + HASHED_PER_BYTE * len(payload)
    collisions_max = NUMBERS_MAX**2
    hashed = collisions = 0
    stack: list[_Weight] = []
    marks: list[int] = []
    memo: dict[int, _Weight] = {}
    at = 0
    while True:
        opcode = payload[at]
        at += 1
        if opcode == _GET:
            stack.append(memo.get(payload[at], _PLAIN))
            at += 1
            continue
        if opcode == _PUT:
            memo[payload[at]] = stack[-1]
            at += 1
            continue
        begin, argument, effect = at, arguments[opcode], effects[opcode]
        at = at + argument if argument >= 0 else _skip(payload, at, opcode, argument)
        if effect == " ":
            stack.append(_PLAIN)
        elif effect == '"':
            size = at - begin
            stack.append(_TEXT_VALUE if size < NUMBER_BYTES else _text(size))
        elif effect == "p":
            memo[_index(payload, begin, at, opcode, len(memo))] = stack[-1]
        elif effect == "g":
            stack.append(memo.get(_index(payload, begin, at, opcode, 0), _PLAIN))
        elif effect == "(":
            marks.append(len(stack))
        elif effect == "t":
            base = len(stack) - (opcode - 0x84) if opcode >= 0x80 else marks.pop()
            if base < 0:
                raise IndexError
            items = stack[base:]
            del stack[base:]
            depth = count = numbers = sizes = 0
            for item in items:
                below, inside, inside_numbers, _, _, size = item
                depth = max(depth, below)
                count += inside
                numbers += inside_numbers
                sizes += size
                item[_IS_SEALED] = 1
            if depth >= DEPTH_MAX:
                _refuse(f"it is nested more than {DEPTH_MAX} deep")
            if not items:
                numbers = 1
            if numbers:  # of texts alone nobody knows the hash
                numbers, sizes = numbers + sizes, 0
            count, numbers = min(count + 1, _COUNT_MAX), min(numbers, _COUNT_MAX)
            stack.append([depth + 1, count, numbers, 0, 1, min(sizes, _COUNT_MAX)])
        else:
            values, compared = _follow(effect, stack, marks)
            hashed += values
            if hashed > hashed_max:
                _refuse("keys that share their values too often")
            collisions += compared
            if collisions > collisions_max:
                _refuse(f"more than {NUMBERS_MAX} numbers as keys or members")
            if effect == ".":
                return


# How deep, how many values, how many of these are no text, how many such it has as keys or members,
# whether it may grow no more, and for how many numbers its text counts where it is beside some. A
# list, as containers grow.
_Weight = list[int]
_DEPTH, _COUNT, _NUMBERS, _KEYS, _IS_SEALED, _SIZE = range(6)
_PLAIN: _Weight = [0, 1, 1, 0, 1, 0]
_TEXT_VALUE: _Weight = [0, 1, 0, 0, 1, 0]
_COUNT_MAX = 2**62  # above any limit, and counting goes no further

# What opcodes do to the stack: nothing, push a value, or as the opcode that stands for them.
_EFFECTS = [" "] * 256
for _opcodes, _effect in (
    (b"\x80\x95", "-"),
    (_TEXTS, '"'),
    (b"qrp\x94", "p"),
    (b"hjg", "g"),
    (b"t\x85\x86\x87", "t"),
    (b"]}\x8f", "]"),
    (b"\x91", "f"),
    (b"\x90", "A"),
    (b"\x93", "c"),
    (b"ab", "a"),
    (b"(", "("),
):
    for _opcode in _opcodes:
        _EFFECTS[_opcode] = _effect
for _opcode in b".lde1us0R2":
    _EFFECTS[_opcode] = chr(_opcode)


def _follow(effect: str, stack: list[_Weight], marks: list[int]) -> tuple[int, int]:
    """Do to the stack what an opcode does; return how many values it hashes, and may compare."""
    hashed: list[_Weight] = []
    match effect:
        case "l" | "d" | "f" | "e" | "u" | "A" | "1":
            base = marks.pop()
            items = stack[base:]
            del stack[base:]
            if effect in "ldf":
                stack.append(_container())
            if effect != "1":
                _grow(stack[-1], items)
            if effect in "fA":
                hashed = items
            elif effect in "du":
                hashed = items[::2]
        case "a":
            item = stack.pop()
            _grow(stack[-1], [item])
        case "s":
            value, key = stack.pop(), stack.pop()
            _grow(stack[-1], [key, value])
            hashed = [key]
        case "R":
            hashed = [stack.pop()]
            stack[-1] = _container()
            _grow(stack[-1], hashed)
        case "c":
            stack.pop()
            stack[-1] = _PLAIN
        case "]":
            stack.append(_container())
        case "2":
            stack.append(stack[-1])
        case "0":
            if marks and marks[-1] == len(stack):
                marks.pop()
            else:
                stack.pop()
    if not hashed:
        return 0, 0
    numbers = sum([item[_NUMBERS] for item in hashed])
    before = stack[-1][_KEYS]
    keys = stack[-1][_KEYS] = min(before + numbers, _COUNT_MAX)
    return sum([item[_COUNT] for item in hashed]), keys**2 - before**2


def _container() -> _Weight:
    return [0, 1, 0, 0, 0, 0]


def _text(size: int) -> _Weight:
    return [*_TEXT_VALUE[:_SIZE], size // NUMBER_BYTES]


def _grow(container: _Weight, items: list[_Weight]) -> None:
    if not items:
        return
    if container[_IS_SEALED]:
        _refuse("something put into what holds nothing, or is in something else already")
    count, numbers, sizes = container[_COUNT], container[_NUMBERS], container[_SIZE]
    for item in items:
        count += item[_COUNT]
        numbers += item[_NUMBERS]
        sizes += item[_SIZE]
        item[_IS_SEALED] = 1
    if numbers:
        numbers, sizes = numbers + sizes, 0
    container[_COUNT], container[_NUMBERS] = min(count, _COUNT_MAX), min(numbers, _COUNT_MAX)
    container[_SIZE] = min(sizes, _COUNT_MAX)


def _index(payload: bytes, at: int, end: int, opcode: int, next_index: int) -> int:
    if opcode == _MEMOIZE:
        return next_index
    if opcode in b"pg":
        return int(payload[at : end - 1])
    return int.from_bytes(payload[at:end], "little")


def _check_values(value: Any, kinds: frozenset[type], values_max: int, shared: int) -> None:
    """Refuse what is nested deeper than `DEPTH_MAX` or contains itself, and what is no value.

    And what has more than `values_max` values, counted as often as they are met: who prints it
    would never end. `kinds`: the types to look into. `shared`: how many values are what is there
    already. What is shared is looked at once.
    """
    if (
        shared <= SHARED_MAX
        and type(value) is dict
        and kinds.isdisjoint(map(type, (*value, *value.values())))
    ):
        return  # a log record
    if type(value) not in kinds:
        return
    # How deep it is below a value, 0: not known yet; and how many values it stands for.
    known = {id(value): (0, 0)}
    has_shared = shared > 0
    inside, count = _inside(value, kinds, has_shared)
    path = [(value, iter(inside))]
    totals = [[0, count]]  # for each of the path, of what is below it
    while path:
        item, children = path[-1]
        for child in children:
            height, count = known.get(id(child), (None, 0))
            if height == 0:
                _refuse("it contains itself")
            if len(path) + (height or 1) > DEPTH_MAX + 1:
                _refuse(f"it is nested more than {DEPTH_MAX} deep")
            if height is None:
                below, count = _inside(child, kinds, has_shared)
                if below:
                    known[id(child)] = 0, 0
                    path.append((child, iter(below)))
                    totals.append([0, count])
                    break
                known[id(child)] = height, count = 1, count
            total = totals[-1]
            total[0] = max(total[0], height)
            total[1] += count
        else:
            path.pop()
            height, count = totals.pop()
            if count > values_max:
                _refuse("it shares its values too often")
            known[id(item)] = height + 1, count
            if totals:
                totals[-1][0] = max(totals[-1][0], height + 1)
                totals[-1][1] += count


def _inside(item: Any, kinds: frozenset[type], has_shared: bool) -> tuple[list[Any], int]:
    """Return what is in a value that is to be looked into, and how many values are in it at all."""
    kind = type(item)
    found: Any
    if kind is dict:
        found = [*item, *item.values()]
    elif kind in _CONTAINERS:
        found = item
    elif kind is _Callable or kind is _Class:
        _refuse("a class or function where a value belongs")
    elif kind is uuid.UUID:
        if type(item.int) is not int or not 0 <= item.int < 1 << 128:
            _refuse("a UUID of something else")
        return [], 1
    else:
        found = _inside_instance(item)
    count = len(found) + 1
    if has_shared:
        count += sum([len(child) for child in found if type(child) in _STRINGS]) // TEXT_BYTES
    return [child for child in found if type(child) in kinds], count


@cache
def _slots_of(cls: type) -> tuple[Any, ...]:
    members = [value for base in cls.__mro__ for value in vars(base).values()]
    return tuple(member for member in members if type(member) is MemberDescriptorType)


def _inside_instance(item: Any) -> list[Any]:
    """Return what is in an instance of a registered class, without a call of its methods."""
    found: list[Any] = []
    with suppress(AttributeError):  # it has slots alone
        found += object.__getattribute__(item, "__dict__").values()
    cls: Any = type(item)
    for slot in _slots_of(cls):
        with suppress(AttributeError):  # it was never set
            found.append(slot.__get__(item))
    if isinstance(item, dict):
        found += [*dict.keys(item), *dict.values(item)]
    for kind in _CONTAINERS:
        if isinstance(item, kind):
            found += kind.__iter__(item)
    return found


_STRINGS = frozenset({str, bytes, bytearray})
_CONTAINERS = frozenset({list, tuple, set, frozenset})
_NESTING: frozenset[type] = _CONTAINERS | {dict}

# --- classes


class _Callable:
    """A callable that a pickle may name, and cannot change."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setstate__(self, state: Any) -> NoReturn:
        """Refuse BUILD, which else sets attributes, slots too."""
        _refuse("a class or function that is changed (BUILD)")


class _Class(_Callable):
    """A registered class: named by a pickle, made by `copyreg._reconstructor` only."""

    __slots__ = ("cls",)

    def __init__(self, cls: type) -> None:
        super().__init__(self._none)
        self.cls = cls

    @staticmethod
    def _none(*arguments: Any) -> NoReturn:
        _refuse("a registered class that is called (REDUCE)")


class _StandIn:
    """A value where an instance of a registered class is to be: it has the state of that."""

    def __setstate__(self, state: Any) -> None:
        """Keep what an instance would, where its class does not say how."""
        if type(state) is tuple and len(state) == 2:  # the second has what is in slots
            state = state[0]
        self.__dict__.update(state if type(state) is dict else {"": state})

    def append(self, item: object) -> None:
        """Take what an instance may; `add`, `extend` and `__setitem__` as well."""

    add = extend = append

    def __setitem__(self, key: object, value: object) -> None:
        """Take what an instance may, as `append` does."""


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
        if arguments and type(arguments[0]) is str:  # bytes, as Python 2 has them
            arguments = (arguments[0].encode("utf-8", _ERRORS), *arguments[1:])
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
    ("uuid", "UUID"): _Class(uuid.UUID),
}
_NESTING_AND_MADE = _NESTING | {_Callable, _Class, uuid.UUID}


class _Restricted(pickle.Unpickler):
    """The unpickler that knows these names, and those that were registered."""

    def __init__(self, payload: bytes, classes: Mapping[tuple[str, str], Any]) -> None:
        super().__init__(io.BytesIO(payload), encoding="utf-8", errors=_ERRORS)
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
