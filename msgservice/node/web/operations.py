"""Every operation of a node as a path: one table, from which the document of OpenAPI is made too.

An argument stands in the path, in the query where nothing is written, or in a body of JSON. What is
asked and answered is said in `msgservice.administration`; who may ask, and what is done, is as for
a request to `$node.*` (`node.admin`). An operation that is not in the table has a path too.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

import msgspec

from msgservice.administration import (
    AUDIT,
    DEAD_DROP,
    DEAD_GET,
    DEAD_LIST,
    DEAD_REQUEUE,
    DELAYED_CANCEL,
    DELAYED_LIST,
    INFO,
    OPERATIONS,
    PEEK,
    PEEK_GET,
    RECEIVERS_ADD,
    RECEIVERS_CHANGE,
    RECEIVERS_LIST,
    RECEIVERS_OWN,
    RECEIVERS_PAUSE,
    RECEIVERS_PURGE,
    RECEIVERS_REMOVE,
    RECEIVERS_REPLAY,
    RECEIVERS_RESUME,
    RECEIVERS_REWIND,
    RECEIVERS_REWIND_CANCEL,
    RECEIVERS_REWIND_COUNT,
    RECEIVERS_TEST,
    RECEIVERS_WHY,
    RELOAD,
    RETAINED_CLEAR,
    RETAINED_GET,
    RETAINED_LIST,
    STATUS,
    UNDO,
    WHOAMI,
    WHY,
    Operation,
    Removal,
)
from msgservice.errors import BadValue, NotConfirmed
from msgservice.node.gate import Pass
from msgservice.node.web.answers import Answer, Ask
from msgservice.node.web.paths import PathAt

JSON_BODY = ("application/json",)
RECEIVER = "/v1/receivers/{name}"
OF = "/v1/receivers/{receiver}"

# Where each operation is: method and path. Names in braces are its arguments.
PLACES: dict[Operation[Any, Any], tuple[str, str]] = {
    INFO: ("GET", "/v1/node"),
    RECEIVERS_LIST: ("GET", "/v1/receivers"),
    RECEIVERS_ADD: ("POST", "/v1/receivers"),
    RECEIVERS_CHANGE: ("PATCH", RECEIVER),
    RECEIVERS_PAUSE: ("POST", f"{RECEIVER}/pause"),
    RECEIVERS_RESUME: ("POST", f"{RECEIVER}/resume"),
    RECEIVERS_REMOVE: ("DELETE", RECEIVER),
    RECEIVERS_PURGE: ("POST", f"{RECEIVER}/purge"),
    RECEIVERS_OWN: ("POST", f"{RECEIVER}/own"),
    RECEIVERS_TEST: ("POST", f"{RECEIVER}/test"),
    RECEIVERS_REWIND: ("POST", f"{RECEIVER}/rewind"),
    RECEIVERS_REWIND_COUNT: ("POST", f"{RECEIVER}/rewind/count"),
    RECEIVERS_REWIND_CANCEL: ("DELETE", f"{RECEIVER}/rewind"),
    RECEIVERS_REPLAY: ("GET", f"{RECEIVER}/replay"),
    STATUS: ("GET", "/v1/messages/{id}"),
    WHY: ("GET", "/v1/messages/{id}/why"),
    RECEIVERS_WHY: ("GET", f"{RECEIVER}/why"),
    DEAD_LIST: ("GET", f"{OF}/dead"),
    DEAD_GET: ("GET", f"{OF}/dead/{{position}}"),
    DEAD_REQUEUE: ("POST", f"{OF}/dead/requeue"),
    DEAD_DROP: ("POST", f"{OF}/dead/drop"),
    PEEK: ("GET", f"{OF}/next"),
    PEEK_GET: ("GET", f"{OF}/next/{{position}}"),
    RETAINED_LIST: ("GET", "/v1/retained"),
    RETAINED_GET: ("GET", "/v1/retained/{subject}"),
    RETAINED_CLEAR: ("POST", "/v1/retained/clear"),
    DELAYED_LIST: ("GET", "/v1/delayed"),
    DELAYED_CANCEL: ("POST", "/v1/delayed/{id}/cancel"),
    UNDO: ("POST", "/v1/messages/{id}/undo"),
    RELOAD: ("POST", "/v1/reload"),
    AUDIT: ("GET", "/v1/audit"),
    WHOAMI: ("GET", "/v1/whoami"),
}


class Requests(Protocol):
    """The handler of requests to `$node.*` (`admin`)."""

    async def ask(self, subject: str, arguments: bytes, who: Pass) -> bytes:
        """Return the answer to one call, both as JSON. Raises what it is refused for."""


def place_of(operation: Operation[Any, Any]) -> tuple[str, str]:
    """Return the method and path of an operation; of one without a place, made of its name."""
    named = f"/v1/{operation.name.replace('.', '/')}"
    return PLACES.get(operation) or ("POST" if operation.changes else "GET", named)


def operation_paths(requests: Requests, body_max: int) -> list[PathAt]:
    """Return the path of each operation. `body_max`: bytes of its arguments."""
    return [_path(operation, requests, body_max) for operation in OPERATIONS]


def _path(operation: Operation[Any, Any], requests: Requests, body_max: int) -> PathAt:
    method, path = place_of(operation)
    kinds = {field.encode_name: field.type for field in msgspec.structs.fields(operation.asks)}
    named = [part[1:-1] for part in path.split("/") if part.startswith("{")]
    has_body = method in ("POST", "PATCH")
    beside = [name for name in kinds if name not in named]
    return PathAt(
        method=method,
        path=path,
        answer=_answering(operation, requests, kinds, has_body),
        sentence=operation.sentence,
        takes=JSON_BODY if has_body else (),
        operation=operation.name,
        body_max=body_max,
        query={} if has_body else dict.fromkeys(beside, ""),
        asks=operation.asks,
        answers=operation.answers,
        status=201 if operation is RECEIVERS_ADD else 200,
    )


def _answering(
    operation: Operation[Any, Any], requests: Requests, kinds: Mapping[str, Any], has_body: bool
) -> Callable[[Ask], Awaitable[Answer]]:
    status = 201 if operation is RECEIVERS_ADD else 200

    async def answer(ask: Ask) -> Answer:
        given: dict[str, Any] = {}
        if has_body:
            ask.only()
            given = _members(ask.body)
        else:
            for name, text in ask.query.items():
                if name not in kinds or name in ask.parts:
                    known = ", ".join(one for one in kinds if one not in ask.parts) or "none"
                    raise BadValue(name[:64], f"is no parameter here (known: {known})")
                given[name] = _value(name, text, kinds[name])
        for name, text in ask.parts.items():
            if name in given:
                raise BadValue(name, "stands in the path, and nowhere else")
            given[name] = _value(name, text, kinds[name])
        if operation is RECEIVERS_REMOVE and given.get("confirm") is None:
            given["confirm"] = await _goes_alone(given["name"], requests, ask.who)
        said = await requests.ask(operation.right, msgspec.json.encode(given), ask.who)
        return Answer(status, said)

    return answer


async def _goes_alone(name: str, requests: Requests, who: Pass) -> int:
    """Return that nothing may go with a receiver; a DELETE removes, it does not only look.

    Raises `NotConfirmed` where something would.
    """
    asked = msgspec.json.encode({"name": name})
    said = await requests.ask(RECEIVERS_REMOVE.right, asked, who)
    found = msgspec.json.decode(said, type=Removal)
    if found.queued or found.dead:
        raise NotConfirmed(name, found.queued or 0, 0, found.dead)
    return 0


def _members(body: bytes) -> dict[str, Any]:
    """Return what a body says, an object of JSON; nothing, where there is none."""
    if not body.strip():
        return {}
    try:
        members: dict[str, Any] = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except RecursionError:
        raise BadValue("the body", "is nested too deeply") from None
    return members


def _value(name: str, text: str, kind: Any) -> Any:
    """Return what a text in an address says, as an argument of this type. Raises `BadValue`."""
    said: Any = text.split(",") if _is_several(kind) else text
    try:
        return msgspec.convert(said, kind, strict=False)
    except msgspec.ValidationError as error:
        raise BadValue(name, f"in the address: {error}") from None


def _is_several(kind: Any) -> bool:
    """Whether a type is a tuple or a list, or may be one."""
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        return any(_is_several(one) for one in typing.get_args(kind))
    if origin is typing.Annotated:
        return _is_several(typing.get_args(kind)[0])
    return origin in (tuple, list)
