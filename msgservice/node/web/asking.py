"""Requests over HTTP: a question to whoever answers its subject now, and the answer.

As by `Client.request`: nothing is stored, it is asked once at most, and answered once or failed.
What is answered was chosen by who answers, so it comes as JSON, whatever it says that it is.

    POST /v1/requests/{subject}    a body of JSON, or bytes; `timeout` in seconds
"""

from __future__ import annotations

from typing import Protocol

import msgspec
from twisted.internet.defer import CancelledError, Deferred

from msgservice.codecs import CONTENT_TYPE, JsonCodec, TextCodec, content_type_of
from msgservice.core.frames import Reply, Request
from msgservice.core.subjects import check_subject, is_reserved
from msgservice.errors import (
    ERROR_HEADER,
    BadSubject,
    BadValue,
    LimitReached,
    MessageTooLarge,
    code_said,
    request_failed,
)
from msgservice.limits import Limits
from msgservice.message import Headers, WireMessage, decode_message, encode_messages
from msgservice.node.gate import Pass
from msgservice.node.web.answers import Answer, Ask, as_json
from msgservice.node.web.paths import PathAt

JSON, BYTES = "application/json", "application/octet-stream"
SECONDS, SECONDS_MAX = 30.0, 600.0
_json = JsonCodec()
_text = TextCodec()


class Responders(Protocol):
    """The responders of a node (`responders`)."""

    def answer(self, request: Request, who: Pass) -> Deferred[Reply]:
        """Answer each call of a request, as far as who asks may."""


class Answered(msgspec.Struct, frozen=True, omit_defaults=True):
    """An answer: its content as `body`, `text` or `base64`, as its type says; and its headers."""

    body: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    text: str | msgspec.UnsetType = msgspec.UNSET
    base64: bytes | msgspec.UnsetType = msgspec.UNSET
    headers: Headers | None = None


class Asking:
    """The requests that are asked over HTTP. So many wait at once as `limits.http_waits` says."""

    def __init__(self, responders: Responders, limits: Limits) -> None:
        self._responders, self._limits = responders, limits
        self._waiting = 0

    def paths(self) -> list[PathAt]:
        """Return the path of requests."""
        return [
            PathAt(
                method="POST",
                path="/v1/requests/{subject}",
                answer=self._ask,
                sentence="Asks who answers requests on a subject now; nothing is stored.",
                takes=(JSON, BYTES),
                query={"timeout": "Seconds to wait at most, 30 where it is not said."},
                answers=Answered,
            )
        ]

    async def _ask(self, ask: Ask) -> Answer:
        seconds = _seconds(ask.only("timeout").get("timeout"))
        subject = check_subject(ask.parts["subject"])
        if is_reserved(subject):
            raise BadSubject(subject, "what is asked of the node itself has paths of its own")
        if not ask.who.allows("request", subject):
            raise ask.who.refusal(subject)
        if self._waiting >= self._limits.http_waits:
            raise LimitReached("http_waits", self._limits.http_waits)
        asking = self._given(ask, subject, seconds)
        # It may wait long: others have no room meanwhile, and who has gone wants no answer.
        ask.request.drop_body()
        ask.request.notifyFinish().addBoth(lambda _: asking.cancel())
        self._waiting += 1
        try:
            reply = await asking
        except CancelledError:
            return Answer(503)  # to nobody: its asker has gone
        finally:
            self._waiting -= 1
        ((_, ok, said),) = reply.replies
        message = decode_message(said)
        if ok:
            return as_json(_answered(message))
        code = code_said((message.headers or {}).get(ERROR_HEADER, ""))
        raise request_failed(code, message.body.decode(errors="replace"), subject, seconds)

    def _given(self, ask: Ask, subject: str, seconds: float) -> Deferred[Reply]:
        """Give a request to who answers it. Nothing of its content is kept here."""
        body, headers = ask.body, None
        if len(body) > self._limits.body_bytes:
            raise MessageTooLarge(len(body), self._limits.body_bytes)
        if ask.media_type == JSON and body:
            try:
                _json.decode(body)
            except ValueError as error:
                raise BadValue("the body", str(error)) from None
            headers = {CONTENT_TYPE: JSON}
        raw = encode_messages([WireMessage(body, headers)])
        request = Request(1, subject, msgspec.Raw(raw), timeout=round(seconds * 1000))
        return self._responders.answer(request, ask.who)


def _seconds(said: str | None) -> float:
    try:
        seconds = SECONDS if said is None else float(said)
    except ValueError:
        seconds = 0.0
    if not 0.001 <= seconds <= SECONDS_MAX:
        raise BadValue("timeout", f"must be from 0.001 to {SECONDS_MAX:g} seconds")
    return seconds


def _answered(message: WireMessage) -> Answered:
    """Return an answer as JSON has it; what is not of the type that it says is bytes."""
    kind, body = (content_type_of(message.headers) or "").partition(";")[0].strip(), message.body
    try:
        if kind == JSON:
            _json.decode(body)
            return Answered(body=msgspec.Raw(body), headers=message.headers)
        if kind == _text.content_type.partition(";")[0]:
            return Answered(text=body.decode(), headers=message.headers)
    except ValueError:
        pass
    return Answered(base64=body, headers=message.headers)
