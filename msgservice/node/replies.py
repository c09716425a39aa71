"""Replies of a node to requests of its peers: their messages, and what is said instead of them."""

from __future__ import annotations

from collections.abc import Iterator

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


def cut_answers(answers: list[Answer], size_max: int) -> Iterator[Reply]:
    """Return answers in frames whose messages have so many bytes at most.

    One that is larger alone is not passed on: it is said what it is too large for.
    """
    for at, (number, _, raw) in enumerate(answers):
        size = len(raw) + ANSWER_BYTES
        if size > size_max:
            error = MessageTooLarge(size, size_max)
            answers[at] = (number, False, refusal(f"the answer: {error}", error.refusal_code))
    return replies_of(answers, size_max)


def busy(request: Request, calls: int, limit: int) -> list[Reply]:
    """Return the answer to calls beyond what a connection may have unanswered: not now."""
    text = f"limit requests = {limit} reached: wait for answers"
    said = refusal(text, LimitReached.refusal_code, limit="requests")
    return refusals(range(request.id, request.id + calls), said)
