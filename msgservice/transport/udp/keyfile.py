"""Files of keys for acknowledged UDP: one key, or the keys of many users of one listener.

`key=FILE` holds 64 hexadecimal digits. `keys=FILE` has a line for each key, `NUMBER USER KEY`:

    # the number stands in every datagram, the user is who holds the key
    1  shop     6b1d0f2e…
    2  billing  a0c9e417…

A key is worth what it opens, so a file of many is refused where anybody but its owner can use it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from msgservice.core.subjects import check_name
from msgservice.errors import BadName, ConfigError
from msgservice.identity.private_files import read_private

KEY_TEXT = re.compile(r"[0-9a-fA-F]{64}").fullmatch
NUMBER_TEXT = re.compile(r"[0-9]{1,3}").fullmatch
NUMBER_MAX = 255  # the key id of a datagram is one byte
# 255 lines with the longest names take a third of it; no more is read.
FILE_BYTES_MAX = 256 * 1024


class BadKeys(ValueError):
    """A file of keys that cannot be used; the text says which, and why, and no key."""


@dataclass(frozen=True, slots=True)
class SharedKeys:
    """The keys of an address by number, and who holds them where the file says so."""

    by_number: Mapping[int, bytes] = field(repr=False)
    users: Mapping[int, str] = field(default_factory=dict)

    def ended_by(self, new: SharedKeys) -> set[int]:
        """Return the numbers whose key or user is another in `new`, or is gone."""
        return {
            number
            for number, key in self.by_number.items()
            if new.by_number.get(number) != key or new.users.get(number) != self.users.get(number)
        }


def read_one_key(path: str, number: int) -> SharedKeys:
    """Return the key in the file of a `key=`; `BadKeys` where there is none."""
    text = "".join(_text(path, private=False).split())
    if KEY_TEXT(text) is None:
        raise BadKeys(f"{path} holds no key: 64 hexadecimal digits are needed")
    return SharedKeys({number: bytes.fromhex(text)})


def read_keys(path: str) -> SharedKeys:
    """Return the keys in the file of a `keys=`; `BadKeys` with the line that is wrong."""
    keys: dict[int, bytes] = {}
    users: dict[int, str] = {}
    lines: dict[int, int] = {}  # number -> the line that has it
    text = _text(path, private=True)
    if "\ufffd" in text:
        raise BadKeys(f"{path} is not UTF-8")
    for at, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        place = f"{path}:{at}"
        if len(words) != 3:
            raise BadKeys(f"{place}: must be NUMBER USER KEY")
        number, user, key = _line(place, *words)
        if number in lines:
            raise BadKeys(f"{place}: number {number} is that of line {lines[number]} already")
        for other, one in keys.items():
            if one == key:  # each of both users could speak as the other
                raise BadKeys(f"{place}: the key is that of line {lines[other]} already")
        keys[number], users[number], lines[number] = key, user, at
    if not keys:
        raise BadKeys(f"{path} holds no keys: lines of NUMBER USER KEY are needed")
    return SharedKeys(keys, users)


def _line(place: str, number: str, user: str, key: str) -> tuple[int, str, bytes]:
    """Return a line's values. No error repeats the user or the key: they may be in each other's
    place."""
    if NUMBER_TEXT(number) is None or not 1 <= int(number) <= NUMBER_MAX:
        raise BadKeys(f"{place}: the number must be from 1 to {NUMBER_MAX}, not {number[:16]!r}")
    if KEY_TEXT(key) is None:
        raise BadKeys(f"{place}: the key must be 64 hexadecimal digits, behind number and user")
    try:
        check_name(user)
    except BadName as error:
        raise BadKeys(f"{place}: the user has no name: {error.reason}") from None
    return int(number), user, bytes.fromhex(key)


def _text(path: str, *, private: bool) -> str:
    try:
        if private:
            data = read_private(Path(path))
        else:
            with Path(path).open("rb") as file:
                data = file.read(FILE_BYTES_MAX + 1)
    except ConfigError as error:
        raise BadKeys("; ".join(error.problems)) from error
    except OSError as error:
        raise BadKeys(f"cannot read {path}: {error.strerror}") from error
    if len(data) > FILE_BYTES_MAX:
        raise BadKeys(f"{path} is larger than {FILE_BYTES_MAX} bytes")
    return data.decode(errors="replace")
