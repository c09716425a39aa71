"""Calls of a webhook: what one message is over HTTP, and what an answer means.

    POST /…   webhook-id, webhook-timestamp, webhook-signature; content-type as the message's;
              msgservice-subject, msgservice-sender, msgservice-identity, msgservice-message-id,
              msgservice-header-NAME, as in a URL (percent-encoded); the body is the message's

By XML-RPC a message is the call `receive(message)`, a struct with subject, sender, identity, id,
headers and body.
"""

from __future__ import annotations

import secrets as randomness
import xmlrpc.client
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any
from urllib.parse import quote
from xml.parsers.expat import ExpatError

from msgservice.core.xmlrpc import Declared, Outline, feed, xml_text
from msgservice.receiver.received import ReceivedMessage
from msgservice.webhooks.signing import message_id, signature

METHOD = "receive"
TEST_SUBJECT = "$test"  # of no message: names that begin so are the node's
OCTETS = "application/octet-stream"
ANSWER_MAX = 4096  # bytes of an answer that are read
ANSWER_SHOWN = 200  # characters of it that people are told
HEADER_MAX = 2048  # characters of one header: what is longer is left out, with a mark
# A message is wrong, not the endpoint: attempts are counted. After any other answer the endpoint
# is not well, and all wait: one that says 404 while it is deployed would fill the dead letters.
OF_THE_MESSAGE = frozenset({400, 413, 415, 422, 431})
GONE = 410
# How an answer of XML-RPC begins: by that one is known of which the end is not read.
RETURNED, FAULTY = ["methodResponse", "params"], ["methodResponse", "fault"]
Pair = tuple[bytes, bytes]


class Verdict(Enum):
    """The verdict of one answer."""

    TAKEN = "taken"
    WRONG = "wrong"  # it does not take this message
    GONE = "gone"  # it wants no more, ever
    UNWELL = "unwell"  # it takes nothing now


@dataclass(frozen=True, slots=True)
class Call:
    """One call: headers and body, signed."""

    headers: Sequence[Pair] = field(repr=False)  # there are secrets of the operator's
    body: bytes = field(repr=False)


def call_of(
    message: ReceivedMessage,
    *,
    is_xmlrpc: bool,
    secrets: Sequence[bytes],
    timestamp: int,
    more: Mapping[str, str],
    agent: str,
) -> Call:
    """Return the call of a message. `timestamp`: seconds, of this attempt. `more`: headers."""
    headers = _told(message)
    if is_xmlrpc:
        headers, body = {}, _xmlrpc_of(message)
        kind = "text/xml"
    else:
        body, kind = bytes(message.body), message.headers.get("content-type") or OCTETS
    id_ = message_id(message.identity)
    return _signed(headers, body, kind, id_, secrets, timestamp, more, agent)


def test_call(
    name: str,
    *,
    is_xmlrpc: bool,
    secrets: Sequence[bytes],
    timestamp: int,
    more: Mapping[str, str],
    agent: str,
) -> Call:
    """Return the call that tries the endpoint of a receiver out: signed as all are, of no message.

    Arguments are as `call_of` has them.
    """
    headers = {"msgservice-test": "1", "msgservice-subject": TEST_SUBJECT}
    body, kind = b'{"test": true}', "application/json"
    id_ = message_id(f"test/{name}/{randomness.token_hex(16)}")
    if is_xmlrpc:
        said = {
            "subject": TEST_SUBJECT,
            "sender": "",
            "identity": "",
            "id": "",
            "headers": {"msgservice-test": "1"},
            "body": xmlrpc.client.Binary(body),
        }
        body, kind = xmlrpc.client.dumps((said,), METHOD, encoding="utf-8").encode(), "text/xml"
    return _signed(headers, body, kind, id_, secrets, timestamp, more, agent)


def _signed(
    headers: dict[str, str],
    body: bytes,
    kind: str,
    id_: str,
    secrets: Sequence[bytes],
    timestamp: int,
    more: Mapping[str, str],
    agent: str,
) -> Call:
    headers |= more
    headers |= {
        "content-type": _safe(kind),
        "user-agent": agent,
        "webhook-id": id_,
        "webhook-timestamp": str(timestamp),
    }
    if secrets:
        headers["webhook-signature"] = signature(secrets, id_, timestamp, body)
    return Call([(name.encode(), value.encode("latin-1")) for name, value in headers.items()], body)


def _told(message: ReceivedMessage) -> dict[str, str]:
    told = {
        "msgservice-subject": message.subject,
        "msgservice-sender": message.sender,
        "msgservice-identity": message.identity,
    }
    if message.id is not None:
        told["msgservice-message-id"] = message.id
    if message.replay:
        told["msgservice-replay"] = "1"
    for name, value in message.headers.items():
        if name != "content-type":
            told[f"msgservice-header-{quote(name, safe='')}"] = value
    return {name: _encoded(value) for name, value in told.items() if len(name) <= HEADER_MAX}


def _encoded(text: str) -> str:
    encoded = quote(text, safe=" !#$&'()*+,-./:;<=>?@[]^_`{|}~")
    return encoded if len(encoded) <= HEADER_MAX else "(too long)"


def _safe(text: str) -> str:
    """Return a content type as a header may be: what is no such text is not passed on."""
    is_plain = text.isascii() and text.isprintable() and len(text) <= HEADER_MAX
    return text if is_plain else OCTETS


def _xmlrpc_of(message: ReceivedMessage) -> bytes:
    said: dict[str, Any] = {
        "subject": xml_text(message.subject),
        "sender": xml_text(message.sender),
        "identity": xml_text(message.identity),
        "id": xml_text(message.id or ""),
        "headers": {xml_text(name): xml_text(value) for name, value in message.headers.items()},
        "body": xmlrpc.client.Binary(bytes(message.body)),
    }
    text = xmlrpc.client.dumps((said,), METHOD, encoding="utf-8")
    return text.encode()


def verdict_of(code: int, answer: bytes, *, is_xmlrpc: bool) -> tuple[Verdict, str]:
    """Return what an answer means, and why, for people. `answer`: as much of it as was read."""
    if code == GONE:
        return Verdict.GONE, f"the endpoint says 410: it wants no more{_shown(answer)}"
    if code in OF_THE_MESSAGE:
        return Verdict.WRONG, f"the endpoint says {code}{_shown(answer)}"
    if not 200 <= code < 300:
        return Verdict.UNWELL, f"the endpoint says {code}{_shown(answer)}"
    if is_xmlrpc:
        return _xmlrpc_verdict(answer)
    return Verdict.TAKEN, ""


def _xmlrpc_verdict(answer: bytes) -> tuple[Verdict, str]:
    """Return what an answer of XML-RPC means; of one that was cut off, by how it begins."""
    outline, is_cut = Outline(), len(answer) >= ANSWER_MAX
    try:
        feed(answer, outline, is_whole=not is_cut)
        if not is_cut:
            outline.close()
    except Declared:
        return Verdict.UNWELL, "the endpoint's answer has a declaration, which no XML-RPC has"
    except xmlrpc.client.Fault as fault:
        why = f"the endpoint says fault {fault.faultCode}: {fault.faultString}"
        return Verdict.WRONG, why[:ANSWER_SHOWN]
    except (
        ExpatError,
        xmlrpc.client.Error,
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        OverflowError,
    ):
        return Verdict.UNWELL, f"the endpoint's answer is no XML-RPC{_shown(answer)}"
    if outline.tags == RETURNED or not is_cut:
        return Verdict.TAKEN, ""
    if outline.tags == FAULTY:
        return Verdict.WRONG, f"the endpoint says a fault{_shown(answer)}"
    return Verdict.UNWELL, f"the endpoint's answer is no XML-RPC{_shown(answer)}"


def _shown(answer: bytes) -> str:
    text = " ".join(answer.decode(errors="replace").split())[:ANSWER_SHOWN]
    return f": {text}" if text else ""
