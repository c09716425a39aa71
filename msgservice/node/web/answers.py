"""`Ask` and `Answer`: the values between the web listener and what is at its paths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar
from urllib.parse import parse_qsl

import msgspec

from msgservice.errors import BadValue, NotAuthenticated
from msgservice.node.gate import Pass
from msgservice.transport.http.channel import HttpRequest

T = TypeVar("T")
JSON = b"application/json"
QUERY_FIELDS_MAX = 100
_to_json = msgspec.json.Encoder().encode


class Answer(NamedTuple):
    """A whole answer: status, body, its content type, and further headers."""

    status: int
    body: bytes = b""
    content_type: bytes = JSON
    headers: Sequence[tuple[bytes, bytes]] = ()


def as_json(value: object, status: int = 200) -> Answer:
    """Return the answer that has a value as JSON."""
    return Answer(status, _to_json(value))


class Ask:
    """A request to a path, whose asker may ask it.

    `parts`: what stands for the `{names}` of its path. `media_type`: of its body, one of those that
    its path takes. `request`: for what answers in pieces alone (`PathAt.streams`).
    """

    __slots__ = ("_query", "_who", "media_type", "parts", "request")

    def __init__(
        self, request: HttpRequest, who: Pass | None, parts: Mapping[str, str], media_type: str
    ) -> None:
        self.request = request
        self.parts = parts
        self.media_type = media_type
        self._who = who
        self._query: dict[str, str] | None = None

    @property
    def who(self) -> Pass:
        """The pass of who asks; there is none at paths that are open to all."""
        if self._who is None:
            raise NotAuthenticated("this needs a login")
        return self._who

    @property
    def body(self) -> bytes:
        """The body."""
        return self.request.body

    @property
    def query(self) -> Mapping[str, str]:
        """The fields of the query. Raises `BadValue` for one that comes twice, or is no UTF-8."""
        if self._query is None:
            self._query = query_of(self.request.uri)
        return self._query

    def only(self, *known: str) -> Mapping[str, str]:
        """Return the query. Raises `BadValue` where it has fields other than these."""
        query = self.query
        for name in query:
            if name not in known:
                allowed = ", ".join(known) or "none"
                raise BadValue(name[:64], f"is no parameter here (known: {allowed})")
        return query


def query_of(uri: bytes) -> dict[str, str]:
    """Return the fields of an address's query. Raises as `Ask.query`."""
    _, _, text = uri.partition(b"?")
    if not text:
        return {}
    found: dict[str, str] = {}
    try:
        fields = parse_qsl(
            text.decode("ascii"),
            keep_blank_values=True,
            errors="strict",
            max_num_fields=QUERY_FIELDS_MAX,
        )
    except ValueError:
        raise BadValue("query", "is not ASCII, is no UTF-8, or has too many fields") from None
    for name, value in fields:
        if name in found:
            raise BadValue(name[:64], "is said twice")
        found[name] = value
    return found
