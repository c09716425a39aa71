"""XML-RPC at `POST /xmlrpc`: messages handed in, and what became of them.

    send(subject, body)                → the id of the message, when it is on disk
    send(subject, body, [names])       … for these receivers, in place of those that match
    status(id)                         → its subject, its sender, and its state at each receiver

Text is sent as text, base64 as bytes, and what else XML-RPC has as JSON. What a document declares
(DTD, entities) is refused before it is looked at, so that none grows or names a file.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any
from xml.parsers.expat import ExpatError
from xmlrpc.client import Binary, DateTime, Fault, ResponseError, dumps

from twisted.logger import Logger

from msgservice.codecs import encode_content
from msgservice.core.subjects import check_name, check_subject
from msgservice.core.xmlrpc import Declared, Outline, feed, xml_text
from msgservice.errors import BadValue, MessageTooLarge, MsgServiceError
from msgservice.limits import Limits
from msgservice.message import WireMessage
from msgservice.node.web.answers import Answer, Ask
from msgservice.node.web.following import states_of
from msgservice.node.web.messages import Posts
from msgservice.node.web.operations import Requests
from msgservice.node.web.paths import PathAt

XML = "text/xml"
TAGS_MAX = 10_000  # of one call: each is looked at by itself
OVERHEAD = 4096  # bytes of a call besides its body in base64
# Faults that are no error of a message (https://xmlrpc-epi.sourceforge.net/specs/rfc.fault_codes.php).
NOT_WELL_FORMED, NO_METHOD, BAD_ARGUMENTS = -32700, -32601, -32602
APPLICATION_ERROR = -32500


def call_of(body: bytes) -> tuple[str, tuple[Any, ...]]:
    """Return the method and arguments of a call. Raises `BadValue` where it is none."""
    if body.count(b"<") > 2 * TAGS_MAX:
        raise BadValue("the document", f"has more than {TAGS_MAX} elements")
    target = Outline()
    try:
        feed(body, target)
        arguments = target.close()
        method = target.getmethodname()
    except Declared:
        raise
    except (ExpatError, ResponseError, Fault, ValueError, TypeError, LookupError, OverflowError):
        raise BadValue("the document", "is no call of XML-RPC") from None
    if not isinstance(method, str):
        raise BadValue("the document", "names no method")
    return method, tuple(arguments)


# The arguments of each method, for who has given others.
TAKES = {
    "send": "subject, body, or subject, body, names of receivers",
    "status": "id",
    "system.listMethods": "none",
}


class XmlRpc:
    """The calls of XML-RPC."""

    _logger = Logger()

    def __init__(self, posts: Posts, requests: Requests, limits: Limits) -> None:
        self._posts = posts
        self._requests = requests
        self._limits = limits
        self._methods: dict[str, Callable[..., Awaitable[Any]]] = {
            "send": self._send,
            "status": self._status,
            "system.listMethods": self._list,
        }

    def paths(self) -> list[PathAt]:
        """Return the path of the calls."""
        return [
            PathAt(
                method="POST",
                path="/xmlrpc",
                answer=self._answer,
                sentence="Takes calls of XML-RPC: send, status.",
                takes=(XML,),
                body_max=self._limits.max_batch * 3 // 2 + OVERHEAD,
            )
        ]

    async def _answer(self, ask: Ask) -> Answer:
        ask.only()
        try:
            said = dumps((await self._call(ask),), methodresponse=True, allow_none=True)
        except Fault as fault:
            said = dumps(fault, methodresponse=True)
        except MsgServiceError as error:
            code = error.refusal_code or APPLICATION_ERROR
            said = dumps(Fault(code, xml_text(str(error))), methodresponse=True)
        return Answer(200, said.encode(), b"text/xml; charset=utf-8")

    async def _call(self, ask: Ask) -> Any:
        try:
            method, arguments = call_of(ask.body)
        except BadValue as error:
            raise Fault(NOT_WELL_FORMED, str(error)) from None
        known = self._methods.get(method)
        if known is None:
            there = ", ".join(sorted(self._methods))
            raise Fault(NO_METHOD, f"no method {xml_text(method[:64])!r}, there are: {there}")
        try:
            calling = known(ask, *arguments)
        except TypeError:
            takes = f"{method} takes ({TAKES[method]}), not {len(arguments)} arguments"
            raise Fault(BAD_ARGUMENTS, takes) from None
        return await calling

    async def _send(self, ask: Ask, subject: Any, body: Any, to: Any = None) -> str | None:
        content = body.data if isinstance(body, Binary) else body
        try:
            encoded, headers = encode_content(_plain(content))
        except RecursionError:
            raise Fault(BAD_ARGUMENTS, "body: is nested too deeply") from None
        except TypeError as error:
            raise Fault(BAD_ARGUMENTS, f"body: {error}") from None
        if len(encoded) > self._limits.body_bytes:
            raise MessageTooLarge(len(encoded), self._limits.body_bytes)
        names = None
        if to:
            names = tuple([check_name(_text("to", name)) for name in _several(to)])
        sender = self._posts.sender_of(ask.who)
        message = WireMessage(encoded, headers)
        batch = sender.batch(ask.who, check_subject(_text("subject", subject)), [message], to=names)
        return (await self._posts.store(sender, batch)).id

    async def _status(self, ask: Ask, id_: Any) -> dict[str, Any]:
        states = await states_of(self._requests, _text("id", id_), ask.who)
        return {
            "id": xml_text(states.id),
            "subject": xml_text(states.subject),
            "receivers": {
                xml_text(name): {
                    "status": one.status,
                    "attempts": one.attempts,
                    "reason": xml_text(one.reason),
                }
                for name, one in states.receivers.items()
            },
        }

    async def _list(self, ask: Ask) -> list[str]:
        return sorted(self._methods)


def _text(field: str, value: Any) -> str:
    if not isinstance(value, str):
        raise Fault(BAD_ARGUMENTS, f"{field} is {type(value).__name__}, not text")
    return value


def _several(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _plain(value: Any) -> Any:
    """The value without what is XML-RPC's own."""
    if isinstance(value, Binary):
        raise TypeError("bytes are a body by themselves, and nothing within another")
    if isinstance(value, DateTime):
        return str(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value
