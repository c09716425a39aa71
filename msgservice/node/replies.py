"""Replies of a node to requests of its peers: their messages, and what is said instead of them."""

from __future__ import annotations

import msgspec

from msgservice.codecs import TextCodec
from msgservice.core.frames import ANSWER_BYTES, Answer, Reply, Request, refusals, replies_of
from msgservice.errors import ERROR_HEADER, LimitReached, MessageTooLarge
from msgservice.message import WireMessage

JSON_TYPE = "application/json"

_encode = msgspec.msgpack.Encoder().encode


def message(body: bytes) -> msgspec.Raw:
    """Return the message of an answer: JSON."""
    return msgspec.Raw(_encode(WireMessage(body, {"content-type": JSON_TYPE})))


def refusal(reason: str, code: int = 0, **headers: str) -> msgspec.Raw:
    """Return the message of an answer that is not ok: a sentence, and a code where there is one."""
    if code:
        headers[ERROR_HEADER] = str(code)
    kind = {"content-type": TextCodec.content_type}
    return msgspec.Raw(_encode(WireMessage(reason.encode(), kind | headers)))


def refusal_of(reply: Reply, reason: str) -> list[Reply]:
    """Return what is said in place of a reply that cannot be sent."""
    return refusals((number for number, _, _ in reply.replies), refusal(reason))


def cut_answers(answers: list[Answer], size_max: int) -> list[Reply]:
    """Return answers in frames whose messages have so many bytes at most.

    One that is larger alone is not passed on: it is said what it is too large for.
    """
    if max([len(raw) for _, _, raw in answers], default=0) + ANSWER_BYTES > size_max:
        answers = [_fitting(one, size_max) for one in answers]
    return replies_of(answers, size_max)


def _fitting(answer: Answer, size_max: int) -> Answer:
    number, _, raw = answer
    size = len(raw) + ANSWER_BYTES
    if size <= size_max:
        return answer
    error = MessageTooLarge(size, size_max)
    return number, False, refusal(f"the answer: {error}", error.refusal_code)


def busy(request: Request, calls: int, limit: int) -> list[Reply]:
    """Return the answer to calls beyond what a connection may have unanswered: not now."""
    text = f"limit requests = {limit} reached: wait for answers"
    said = refusal(text, LimitReached.refusal_code, limit="requests")
    return refusals(range(request.id, request.id + calls), said)
