"""`Paths`: the table of what is at which path of the web listener.

Whoever adds something to the listener adds a `PathAt` here: `Web.paths.add` (`node.web.listener`).
The document of OpenAPI is made from the same table, so it cannot forget one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote_to_bytes

from msgservice.errors import WebRefused
from msgservice.node.web.answers import Answer, Ask

Answering = Callable[[Ask], "Answer | Awaitable[Answer]"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PathAt:
    """One method at one path, and who answers there.

    Args:
        method: GET serves HEAD too, but where it `streams`: that has no end, and so no length.
        path: `/v1/messages/{id}`; what stands for a name in braces is one segment, decoded.
        answer: answers; raises what a problem document then says.
        sentence: what it is for.
        takes: media types of its body; none: it has no body.
        is_open: it is for everybody, also where a login is asked for.
        streams: `answer` gets a request that it answers by itself, in pieces (`Ask.request`), and
            its own answer is sent only where it raises.
        operation: the name of the operation that it asks for (`msgservice.administration`).
        query: names of its parameters, each with a sentence.
        body_max: bytes; None: `limits.http_body_bytes`.
    """

    method: str
    path: str
    answer: Answering
    sentence: str
    takes: tuple[str, ...] = ()
    is_open: bool = False
    streams: bool = False
    operation: str = ""
    query: dict[str, str] = field(default_factory=dict)
    body_max: int | None = None
    asks: Any = None  # the struct of its body, for the document of OpenAPI
    answers: Any = None  # … and of its answer
    status: int = 200


class Paths:
    """The paths of a listener."""

    def __init__(self) -> None:
        self._plain: dict[bytes, dict[str, PathAt]] = {}  # those without names, as they come
        self._named: dict[int, list[tuple[list[str], dict[str, PathAt]]]] = {}  # by segments

    def add(self, *paths: PathAt) -> None:
        """Add what is at some paths; `ValueError` where there is something already."""
        for one in paths:
            methods = self._methods(one.path)
            if one.method in methods:
                raise ValueError(f"{one.method} {one.path} is there already")
            methods[one.method] = one

    def _methods(self, path: str) -> dict[str, PathAt]:
        if "{" not in path:
            return self._plain.setdefault(path.encode(), {})
        segments = path.split("/")
        same = self._named.setdefault(len(segments), [])
        for known, methods in same:
            if known == segments:
                return methods
        new: dict[str, PathAt] = {}
        same.append((segments, new))
        same.sort(key=lambda one: sum(segment.startswith("{") for segment in one[0]))
        return new

    def __iter__(self) -> Iterator[PathAt]:
        """All of them, those of one path together."""
        for methods in self._plain.values():
            yield from methods.values()
        for same in self._named.values():
            for _, methods in same:
                yield from methods.values()

    def find(self, method: bytes, path: bytes) -> tuple[PathAt, dict[str, str]]:
        """Return what is at a path, and what stands for its names. Raises `WebRefused`.

        Where several fit that has the fewest names which is for this method.
        """
        name = method.decode("latin-1")
        is_head = name == "HEAD"
        name = "GET" if is_head else name
        there: set[str] = set()
        for methods, parts in self._fitting(path):
            found = methods.get(name)
            if found is not None and not (is_head and found.streams):
                return found, parts
            there |= methods.keys()
            if "GET" in methods and not methods["GET"].streams:
                there.add("HEAD")
        if not there:
            raise WebRefused(
                404,
                "nothing is at this path: /v1/openapi.json has all that there are,"
                " and a slash in a name is %2F",
            )
        raise NotThisMethod(sorted(there))

    def _fitting(self, path: bytes) -> Iterator[tuple[dict[str, PathAt], dict[str, str]]]:
        plain = self._plain.get(path)
        if plain is not None:
            yield plain, {}
        segments = path.split(b"/")
        for names, methods in self._named.get(len(segments), ()):
            parts = _parts(names, segments)
            if parts is not None:
                yield methods, parts


class NotThisMethod(WebRefused):
    """A path that is there, and not for this method; `allowed`: for these."""

    def __init__(self, allowed: list[str]) -> None:
        super().__init__(405, f"this path is for {', '.join(allowed)}")
        self.allowed = allowed


def _parts(names: list[str], segments: list[bytes]) -> dict[str, str] | None:
    parts: dict[str, str] = {}
    for name, segment in zip(names, segments, strict=True):
        if not name.startswith("{"):
            if name.encode() != segment:
                return None
            continue
        try:
            parts[name[1:-1]] = unquote_to_bytes(segment).decode()
        except UnicodeDecodeError:
            raise WebRefused(400, "a path that is no UTF-8") from None
    return parts
