"""The glossary of docs/architecture.md has each central term, once, and defines it in words."""

import re
from collections import Counter
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "architecture.md"

CENTRAL = [
    "message",
    "subject",
    "batch",
    "run",
    "options",
    "piece",
    "lane",
    "position",
    "log",
    "group",
    "entry",
    "mark",
    "receiver",
    "way",
    "peer",
    "audience",
    "incarnation",
    "epoch",
    "window",
    "outbox",
    "outbox table",
    "backlog",
    "flight",
    "inbox",
    "floor",
    "attempt",
    "hop",
    "link",
    "delivery",
    "outlet",
    "receipt",
    "request",
    "responder",
    "replay",
    "status",
    "settled",
]


def glossary() -> list[tuple[str, str]]:
    """Return the rows of the table below *Words*: (word, meaning)."""
    part = PAGE.read_text().partition("\n## Words\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| ([^|]+?) \| (.+) \|$", part, re.MULTILINE)
    assert ("word", "meaning") == rows[0]
    return [row for row in rows[1:] if set(row[0]) != {"-"}]


@pytest.mark.parametrize("word", CENTRAL)
def test_a_central_term_is_in_the_glossary(word: str) -> None:
    assert word in dict(glossary())


def test_each_term_of_the_glossary_has_one_row() -> None:
    assert [] == [
        word for word, times in Counter(word for word, _ in glossary()).items() if 1 < times
    ]


def test_no_meaning_of_the_glossary_is_empty_or_given_twice() -> None:
    meanings = [meaning for _, meaning in glossary()]
    assert len(set(meanings)) == len(meanings)
    assert [] == [word for word, meaning in glossary() if len(meaning.split()) < 5]


def test_the_glossary_keeps_no_word_that_the_test_forgot() -> None:
    assert sorted(CENTRAL) == sorted(dict(glossary()))
