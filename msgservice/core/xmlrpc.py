"""Documents of XML-RPC, as others send them: read without what they may declare, and bounded.

What a document declares (DTD, entities) grows without end or names a file; it is refused where it
stands, in whatever encoding. What a call or an answer means is the business of who reads it.
"""

from __future__ import annotations

from typing import Any
from xmlrpc.client import ExpatParser, Unmarshaller

from msgservice.errors import BadValue

BUFFER = 64 * 1024  # bytes of text that are told at once: otherwise each line is, by itself


class Declared(BadValue):
    """A document that declares something."""

    def __init__(self) -> None:
        super().__init__("the document", "declares a type or an entity, which is not taken")


class Outline(Unmarshaller):
    """The values of a document, and its first two tags."""

    def __init__(self) -> None:
        super().__init__(use_datetime=False, use_builtin_types=False)
        self.tags: list[str] = []

    def start(self, tag: str, attrs: dict[str, str]) -> None:
        """Take the beginning of an element."""
        if len(self.tags) < 2:
            self.tags.append(tag)
        super().start(tag, attrs)


class _Parser(ExpatParser):
    """A parser of the standard library's, without declarations."""

    def __init__(self, target: Unmarshaller) -> None:
        super().__init__(target)
        parser: Any = self._parser  # type: ignore[attr-defined]  # expat's, which it keeps there
        parser.StartDoctypeDeclHandler = _declared
        parser.EntityDeclHandler = _declared
        parser.buffer_text = True
        parser.buffer_size = BUFFER


def _declared(*_: object) -> None:
    raise Declared


def feed(document: bytes, target: Unmarshaller, *, is_whole: bool = True) -> None:
    """Give a document to its reader. Raises `Declared`, `ExpatError` and what the reader does.

    `is_whole`: its end is there, too.
    """
    parser = _Parser(target)
    parser.feed(document)
    if is_whole:
        parser.close()


def xml_text(text: str) -> str:
    """Return a text without what no document of XML can have (XML 1.0, 2.2)."""
    return "".join(
        one
        if one in "\t\n\r"
        or " " <= one <= "\ud7ff"
        or "\ue000" <= one <= "\ufffd"
        or one > "\uffff"
        else "\ufffd"
        for one in text
    )
