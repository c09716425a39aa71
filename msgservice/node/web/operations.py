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
    OPERATIONS,
    RECEIVERS_ADD,
    RECEIVERS_LIST,
    RECEIVERS_REMOVE,
    UNDO,
    AskUndo,
    Operation,
    ReceiverState,
    Removal,
    UndoTold,
)
from msgservice.errors import BadValue, NotConfirmed
from msgservice.node.gate import Pass, web_sender
from msgservice.node.web.answers import Answer, Ask
from msgservice.node.web.paths import PathAt

JSON_BODY = ("application/json",)
RECEIVER = "/v1/receivers/{name}"
OF = "/v1/receivers/{receiver}"
UNDO_BY_KEY = "/v1/undo"

# Where each operation is, by its name: method and path. Names in braces are its arguments.
PLACES: dict[str, tuple[str, str]] = {
    "info": ("GET", "/v1/node"),
    "receivers.list": ("GET", "/v1/receivers"),
    "receivers.add": ("POST", "/v1/receivers"),
    "receivers.change": ("PATCH", RECEIVER),
    "receivers.pause": ("POST", f"{RECEIVER}/pause"),
    "receivers.resume": ("POST", f"{RECEIVER}/resume"),
    "receivers.remove": ("DELETE", RECEIVER),
    "receivers.purge": ("POST", f"{RECEIVER}/purge"),
    "receivers.own": ("POST", f"{RECEIVER}/own"),
    "receivers.test": ("POST", f"{RECEIVER}/test"),
    "receivers.rewind": ("POST", f"{RECEIVER}/rewind"),
    "receivers.rewind_count": ("POST", f"{RECEIVER}/rewind/count"),
    "receivers.rewind_cancel": ("DELETE", f"{RECEIVER}/rewind"),
    "receivers.replay": ("GET", f"{RECEIVER}/replay"),
    "status": ("GET", "/v1/messages/{id}"),
    "why": ("GET", "/v1/messages/{id}/why"),
    "receivers.why": ("GET", f"{RECEIVER}/why"),
    "dead.list": ("GET", f"{OF}/dead"),
    "dead.get": ("GET", f"{OF}/dead/{{position}}"),
    "dead.requeue": ("POST", f"{OF}/dead/requeue"),
    "dead.drop": ("POST", f"{OF}/dead/drop"),
    "peek": ("GET", f"{OF}/next"),
    "peek.get": ("GET", f"{OF}/next/{{position}}"),
    "retained.list": ("GET", "/v1/retained"),
    "retained.get": ("GET", "/v1/retained/{subject}"),
    "retained.clear": ("POST", "/v1/retained/clear"),
    "delayed.list": ("GET", "/v1/delayed"),
    "delayed.cancel": ("POST", "/v1/delayed/{id}/cancel"),
    "retell": ("GET", "/v1/messages/{id}/retell"),
    "undo": ("POST", "/v1/messages/{id}/undo"),
    "reload": ("POST", "/v1/reload"),
    "audit": ("GET", "/v1/audit"),
    "whoami": ("GET", "/v1/whoami"),
}


class Requests(Protocol):
    """The handler of requests to `$node.*` (`admin`)."""

    async def ask(self, subject: str, arguments: bytes, who: Pass) -> bytes:
        """Return the answer to one call, both as JSON. Raises what it is refused for."""


class _Rows(msgspec.Struct):
    receivers: list[msgspec.Raw]


def place_of(operation: Operation[Any, Any]) -> tuple[str, str]:
    """Return the method and path of an operation; of one without a place, made of its name."""
    named = f"/v1/{operation.name.replace('.', '/')}"
    return PLACES.get(operation.name) or ("POST" if operation.changes else "GET", named)


def operation_paths(requests: Requests, body_max: int) -> list[PathAt]:
    """Return the path of each operation. `body_max`: bytes of its arguments."""
    paths = [_path(operation, requests, body_max) for operation in OPERATIONS]
    return [*paths, _path_of_receiver(requests), _path_of_undo(requests, body_max)]


def _path_of_receiver(requests: Requests) -> PathAt:
    """Return the path of one receiver: a row of `receivers.list`."""

    async def answer(ask: Ask) -> Answer:
        ask.only()
        asked = msgspec.json.encode({"name": ask.parts["name"]})
        said = await requests.ask(RECEIVERS_LIST.right, asked, ask.who)
        (row,) = msgspec.json.decode(said, type=_Rows).receivers
        return Answer(200, bytes(row))

    return PathAt(
        method="GET",
        path=RECEIVER,
        answer=answer,
        sentence="Tells of one receiver what the list of them does.",
        answers=ReceiverState,
    )


def _path_of_undo(requests: Requests, body_max: int) -> PathAt:
    """Return the path of `undo` for who knows the idempotency key of a message, and not its id.

    What was handed in here without a user has the keys of the sender `http`.
    """

    async def answer(ask: Ask) -> Answer:
        ask.only()
        given = _members(ask.body)
        if "id" in given or "key" not in given:
            raise BadValue("key", f"is to be said here; an id stands in {PLACES[UNDO.name][1]}")
        if not ask.who.principal.user:
            given.setdefault("sender", web_sender(""))
        return Answer(200, await requests.ask(UNDO.right, msgspec.json.encode(given), ask.who))

    return PathAt(
        method="POST",
        path=UNDO_BY_KEY,
        answer=answer,
        sentence="Undoes, as `undo`, the message that was handed in with an idempotency key.",
        takes=JSON_BODY,
        body_max=body_max,
        asks=AskUndo,
        answers=UndoTold,
    )


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
