"""Output that never waits for its reader."""

from __future__ import annotations

import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from msgservice.output import Pump, _with_readers

MIB = 1024 * 1024
NOTE = rb"\nmsgservice: (\d+) bytes of output were dropped: nobody read them\n"


def read_all(fd: int) -> bytes:
    parts = []
    while data := os.read(fd, MIB):
        parts.append(data)
    os.close(fd)
    return b"".join(parts)


def lines(first: int, count: int) -> list[bytes]:
    return [b"line %07d %s\n" % (n, b"x" * 100) for n in range(first, first + count)]


def write(fd: int, some: list[bytes]) -> None:
    for line in some:
        assert len(line) == os.write(fd, line)


def test_what_is_read_comes_out_as_it_went_in() -> None:
    read, written = os.pipe()
    pump = Pump([written], MIB)
    some = lines(0, 100)
    write(written, some)
    pump.stop()
    os.close(written)
    os.close(pump._out)
    assert b"".join(some) == read_all(read)


def test_what_nobody_reads_blocks_nobody_and_is_bounded_and_counted() -> None:
    read, written = os.pipe()
    pump = Pump([written], 200_000)
    many = lines(0, 20_000)
    write(written, many)  # 2.3 MB, of which a pipe takes 64 KiB
    assert pump._size <= 200_000
    told = b""
    while b"were dropped" not in told:
        told += os.read(read, 1000)
    while pump._size > 100_000:  # else the last line may find no room either
        told += os.read(read, 1000)
    write(written, [b"the end\n"])
    # Read beside it: what waits is more than a pipe takes, and is written before `stop` is over.
    with ThreadPoolExecutor(1) as reader:
        rest_of_it = reader.submit(read_all, read)
        pump.stop(60.0)
        os.close(written)
        os.close(pump._out)
        told += rest_of_it.result()
    assert told.startswith(many[0])
    assert told.endswith(b"the end\n")
    notes = re.findall(NOTE, told)
    rest = re.sub(NOTE, b"", told)
    assert len(b"".join(many)) + len(b"the end\n") == len(rest) + sum(map(int, notes))


def test_an_end_that_nobody_reads_does_not_last() -> None:
    read, written = os.pipe()
    pump = Pump([written], MIB)
    write(written, lines(0, 5000))
    pump.stop(0.01)
    write(written, lines(0, 5000))  # blocks nobody either
    os.close(written)
    os.close(read)


def test_a_reader_that_has_gone_ends_nothing() -> None:
    read, written = os.pipe()
    pump = Pump([written], MIB)
    os.close(read)
    write(written, lines(0, 5000))
    pump.stop()
    os.close(written)


def test_only_what_has_a_reader_is_stood_between(tmp_path: Path) -> None:
    read, written = os.pipe()
    again = os.dup(written)
    file = os.open(tmp_path / "log", os.O_CREAT | os.O_WRONLY)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    assert [[written, again]] == _with_readers([file, written, nowhere, again, 9999])
    for fd in (read, written, again, file, nowhere):
        os.close(fd)
