"""Bodies of messages over HTTP: bytes to be saved, and never what a browser would show.

Who sent a message chose its body, and a browser that showed it would run it as the node's own page.
So it is said to be bytes, to be saved under a name of ours, and sandboxed all the same. They are
given out only where the configuration allows it; who may have one is who may ask for its message.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from msgservice.administration import DEAD_GET, PEEK_GET, RETAINED_GET, Operation
from msgservice.errors import BadValue, UnknownMessage, WebRefused
from msgservice.message import decode_messages
from msgservice.node.web.answers import Answer, Ask, as_json
from msgservice.node.web.operations import Requests, place_of
from msgservice.node.web.paths import PathAt

BYTES = b"application/octet-stream"
SANDBOX = (b"Content-Security-Policy", b"sandbox; default-src 'none'; frame-ancestors 'none'")
GIVEN: tuple[Operation[Any, Any], ...] = (DEAD_GET, PEEK_GET, RETAINED_GET)


class _Part(msgspec.Struct):
    """A part of a message, whichever of these operations answers it."""

    position: int
    message: bytes
    next: int | None


_part = msgspec.json.Decoder(_Part).decode


def body_paths(requests: Requests, *, allowed: bool) -> list[PathAt]:
    """Return the path of the body beside each message that can be asked for, and what says so."""

    def options(ask: Ask) -> Answer:
        ask.only()
        return as_json({"bodies": allowed})

    return [
        *(_path(operation, requests, allowed=allowed) for operation in GIVEN),
        PathAt(
            method="GET",
            path="/page/options.json",
            answer=options,
            sentence="What the page may show.",
            is_open=True,
        ),
    ]


def _path(operation: Operation[Any, Any], requests: Requests, *, allowed: bool) -> PathAt:
    _, path = place_of(operation)
    return PathAt(
        method="GET",
        path=f"{path}/body",
        answer=_answering(operation, requests, allowed=allowed),
        sentence=f"The body alone of what {operation.name} says, where [web] bodies allows it.",
    )


def _answering(
    operation: Operation[Any, Any], requests: Requests, *, allowed: bool
) -> Callable[[Ask], Awaitable[Answer]]:
    kinds = {field.encode_name: field.type for field in msgspec.structs.fields(operation.asks)}

    async def answer(ask: Ask) -> Answer:
        ask.only()
        if not allowed:
            raise WebRefused(403, "bodies are not given out by this node: bodies = true in [web]")
        asked: dict[str, Any] = {}
        for name, text in ask.parts.items():
            try:
                asked[name] = msgspec.convert(text, kinds[name], strict=False)
            except msgspec.ValidationError as error:
                raise BadValue(name, f"in the address: {error}") from None
        parts: list[_Part] = []
        offset: int | None = 0
        while offset is not None:
            said = msgspec.json.encode(asked | {"offset": offset})
            part = _part(await requests.ask(operation.right, said, ask.who))
            if parts and parts[0].position != part.position:
                # What is retained of a subject is another meanwhile.
                raise UnknownMessage(f"log:{parts[0].position}")
            ask.request.hold(len(part.message))
            parts.append(part)
            offset = part.next
        (message,) = decode_messages(b"".join([one.message for one in parts]))
        name = f'attachment; filename="message-{parts[0].position}.bin"'
        headers = ((b"Content-Disposition", name.encode()), SANDBOX)
        return Answer(200, bytes(message.body), BYTES, headers)

    return answer
