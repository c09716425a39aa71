"""System calls of a process in the order in which they happened, as strace has told them.

`trace` is the command to put before a program; `read_calls` gives what it wrote. A call that other
threads interrupted is one `Call` with a beginning and an end: what it wrote counts from its
beginning, what it read, or made durable, from its end.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

CALLS = "recvfrom,read,recvmsg,sendto,sendmsg,write,writev,pwrite64,fsync,fdatasync"
_HEX = re.compile(r"\\x([0-9a-f]{2})")
_LINE = re.compile(r"(?P<thread>\d+) +(?P<rest>.*)")
_BEGUN = re.compile(r"(?P<name>\w+)\((?P<words>.*) <unfinished \.\.\.>")
_RESUMED = re.compile(r"<\.\.\. (?P<name>\w+) resumed>(?P<words>.*)\) += (?P<result>-?\d+)")
_WHOLE = re.compile(r"(?P<name>\w+)\((?P<words>.*)\) += (?P<result>-?\d+)")
_FILE = re.compile(r"(?P<number>\d+)<(?P<path>[^>]*)>")
_DATA = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')


def works() -> bool:
    """Whether strace is there, and may look at another process."""
    if shutil.which("strace") is None:
        return False
    done = subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True, check=False)
    return done.returncode == 0


def trace(output: Path) -> list[str]:
    """Return the words that trace the program behind them into `output`."""
    return ["strace", "-f", "-y", "-xx", "-s", "1000000", "-e", f"trace={CALLS}", "-o", str(output)]


@dataclass(frozen=True, slots=True)
class Call:
    """One call. `begun`, `ended`: places in the order of all that happened."""

    name: str
    path: str
    data: bytes
    result: int
    begun: int
    ended: int


def read_calls(lines: Iterable[str]) -> list[Call]:
    """Return the calls that succeeded, in the order of their beginnings."""
    return sorted(_calls(lines), key=lambda call: call.begun)


def _calls(lines: Iterable[str]) -> Iterator[Call]:
    begun: dict[str, tuple[int, str]] = {}
    for number, line in enumerate(lines):
        match = _LINE.match(line)
        if match is None:
            continue
        thread, rest = match["thread"], match["rest"]
        if unfinished := _BEGUN.match(rest):
            begun[thread] = number, unfinished["words"]
        elif resumed := _RESUMED.match(rest):
            start, words = begun.pop(thread)
            yield from _call(resumed, words + resumed["words"], start, number)
        elif whole := _WHOLE.match(rest):
            yield from _call(whole, whole["words"], number, number)


def _call(match: re.Match[str], words: str, begun: int, ended: int) -> Iterator[Call]:
    file = _FILE.match(words)
    result = int(match["result"])
    if file is None or result < 0:
        return
    data = b"".join(_bytes(found) for found in _DATA.findall(words[file.end() :]))
    if match["name"] not in ("fsync", "fdatasync"):
        data = data[:result]
    yield Call(match["name"], _bytes(file["path"]).decode(), data, result, begun, ended)


def _bytes(escaped: str) -> bytes:
    return bytes(int(digits, 16) for digits in _HEX.findall(escaped))


def durable_at(calls: Iterable[Call], name: str, marks: Iterable[bytes]) -> dict[bytes, int]:
    """Return when each mark was durable: written to the file `name`, and that synced after it."""
    waiting = set(marks)
    written: dict[bytes, int] = {}
    durable: dict[bytes, int] = {}
    for call in calls:
        if not call.path.endswith(name):
            continue
        if call.name in ("fsync", "fdatasync"):
            for mark in [mark for mark, ended in written.items() if ended <= call.begun]:
                durable[mark] = call.ended
                del written[mark]
        else:
            for mark in [mark for mark in waiting if mark in call.data]:
                waiting.remove(mark)
                written[mark] = call.ended
    return durable
