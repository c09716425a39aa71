"""A configuration file with anything in it, and subjects against patterns.

Any text is read to a configuration or to a `ConfigError` that names the file; nothing else. A
matcher of many patterns finds what each pattern finds by itself.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from msgservice.config.config import load_config
from msgservice.config.toml import parse_document
from msgservice.core.subjects import (
    SubjectMatcher,
    check_name,
    check_pattern,
    check_subject,
    matches,
)
from msgservice.errors import BadName, BadSubject, ConfigError
from tests.fuzz.choices import Choices

SEED = """\
[node]
name = "n"
data = "var"
[listen]
tcp = "tcp:7410:interface=127.0.0.1"
[[receiver]]
name = "billing"
subjects = ["orders.>", "a.*.b"]
rate = { messages = 100, burst_seconds = 2 }
window = { messages = 10, bytes = 1_000_000 }
order = "none"
[[user]]
name = "shop"
password = "SCRAM-SHA-256$4096:AAAAAAAAAAAAAAAA$AAAA:AAAA"
certificate = ["dns:shop.example.org", "uri:spiffe://a/b"]
uid = 1000
names = ["shop", "till.*"]
send = ["orders.>"]
request = ["$node.status"]
[rate]
messages = 5000.5
[limits]
frame_bytes = 0x10000
keep_seconds = 1e3
"""


def run(data: bytes) -> None:
    """One input: the first byte says whether it is a file or patterns and a subject."""
    choices = Choices(data)
    if choices.byte() < 192:
        check_file(choices.rest())
    else:
        texts = choices.rest().decode("utf-8", "surrogateescape")
        check_subjects(texts.split("\n"))


def check_file(content: bytes) -> None:
    """Read a file; its errors are sentences with its name."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "node.toml")
        path.write_bytes(content)
        problems: tuple[str, ...] | None = None
        try:
            load_config(path)
        except ConfigError as error:
            problems = error.problems
        if problems is None:
            assert [] == parse_document(content.decode("utf-8-sig")).problems
        else:
            assert problems
            assert all(problem.startswith(os.fspath(path)) for problem in problems)


def check_subjects(texts: list[str]) -> None:
    """Take the first text as a subject, the others as patterns."""
    subject, *patterns = texts
    matcher: SubjectMatcher[int] = SubjectMatcher()
    good: dict[int, str] = {}
    for number, pattern in enumerate(patterns[:20]):
        try:
            check_pattern(pattern)
        except BadSubject:
            continue
        matcher.add(pattern, number)
        good[number] = pattern
    with suppress(BadName):
        check_name(subject)
    try:
        check_subject(subject)
    except BadSubject:
        return
    expected = {number for number, pattern in good.items() if matches(pattern, subject)}
    assert expected == matcher.match(subject)
    for number, pattern in good.items():
        assert matcher.remove(pattern, number)
    assert set() == matcher.match(subject)
    assert 0 == len(matcher)


def seeds() -> Iterator[bytes]:
    """A file, its lines alone, and patterns."""
    yield b"\0" + SEED.encode()
    for part in SEED.split("[")[1:]:
        yield b"\0[" + part.encode()
    yield b"\xff" + b"orders.new.one\norders.>\norders.*.one\n*.*\n>\norders.new"
    yield b"\xff" + "a.ü\na.*\n*.ü".encode()
