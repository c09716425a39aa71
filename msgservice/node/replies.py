"""Replies of a node to requests of its peers: their messages, and what is said instead of them."""

from __future__ import annotations

import msgspec

from msgservice.codecs import TextCodec
from msgservice.core.frames import Reply, Request, refusals
from msgservice.message import WireMessage

JSON_TYPE = "application/json"

_encode = msgspec.msgpack.Encoder().encode


def message(ok: bool, body: bytes, **headers: str) -> msgspec.Raw:
    """Return the message of one answer: JSON, or a sentence where it is not `ok`."""
    kind = JSON_TYPE if ok else TextCodec.content_type
    return msgspec.Raw(_encode(WireMessage(body, {"content-type": kind, **headers})))


def refusal_of(reply: Reply, reason: str) -> list[Reply]:
    """Return what is said in place of a reply that cannot be sent."""
    refusal = message(False, reason.encode())
    return refusals((number for number, _, _ in reply.replies), refusal)


def busy(request: Request, calls: int, limit: int) -> list[Reply]:
    """Return the answer to calls beyond what a connection may have unanswered: not now."""
    text = f"limit requests = {limit} reached: wait for answers".encode()
    refusal = message(False, text, limit="requests")
    return refusals(range(request.id, request.id + calls), refusal)
