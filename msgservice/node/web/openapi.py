"""The document of OpenAPI 3.1, made of the table of paths: what is asked and answered, and how.

It is made when it is asked for first, so that all who add to the table have done so.
"""

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

import msgspec

from msgservice.node.web.answers import Answer, Ask
from msgservice.node.web.events import EVENTS
from msgservice.node.web.paths import PathAt, Paths
from msgservice.node.web.problems import Problem

PATH = "/v1/openapi.json"
REFERENCE = "#/components/schemas/{name}"
LINES = "application/x-ndjson"
JSON = "application/json"
PROBLEM = "application/problem+json"
DESCRIPTION = (
    "A node of msgservice over HTTP. A message is on disk when its post is answered; what is"
    " refused is not kept. Errors are problem documents (RFC 9457)."
)


def openapi_path(paths: Paths, version: str) -> PathAt:
    """Return the path of the document, which describes all of these paths."""
    made: list[bytes] = []

    def answer(ask: Ask) -> Answer:
        ask.only()
        if not made:
            made.append(msgspec.json.encode(document(paths, version)))
        return Answer(200, made[0])

    return PathAt(
        method="GET",
        path=PATH,
        answer=answer,
        sentence="Says what is at which path, as a document of OpenAPI 3.1.",
        is_open=True,
    )


def document(paths: Iterable[PathAt], version: str) -> dict[str, Any]:
    """Return the document that describes these paths."""
    table = list(paths)
    kinds = [kind for one in table for kind in (one.asks, one.answers) if kind is not None]
    kinds = list(dict.fromkeys([Problem, *kinds]))
    schemas, components = msgspec.json.schema_components(kinds, ref_template=REFERENCE)
    of = dict(zip(kinds, schemas, strict=True))
    found: dict[str, dict[str, Any]] = {}
    for one in table:
        found.setdefault(one.path, {})[one.method.lower()] = _operation(one, of)
    return {
        "openapi": "3.1.0",
        "info": {"title": "msgservice", "version": version, "description": DESCRIPTION},
        "paths": found,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer"},
                "password": {"type": "http", "scheme": "basic"},
            },
        },
        "security": [{}, {"token": []}, {"password": []}],
    }


def _operation(one: PathAt, of: dict[Any, Any]) -> dict[str, Any]:
    named = [part[1:-1] for part in one.path.split("/") if part.startswith("{")]
    kinds = {} if one.asks is None else _kinds(one.asks)
    said: dict[str, Any] = {
        "summary": one.sentence,
        "operationId": one.operation or f"{one.method.lower()}{one.path}",
        "parameters": [
            *({**_parameter(name, kinds.get(name, str)), "in": "path"} for name in named),
            *(
                {
                    **_parameter(name, kinds.get(name, str)),
                    "in": "query",
                    "required": name in _required(one.asks),
                    **({"description": sentence} if sentence else {}),
                }
                for name, sentence in one.query.items()
            ),
        ],
        "responses": {
            str(one.status): _answer(one, of),
            "default": {
                "description": "A problem",
                "content": {PROBLEM: {"schema": of[Problem]}},
            },
        },
    }
    if one.takes:
        said["requestBody"] = {
            "required": bool(one.asks is not None and _required(one.asks, without=named)),
            "content": {kind: {"schema": _body(one, kind, of, named)} for kind in one.takes},
        }
    if one.is_open:
        said["security"] = [{}]
    return said


def _answer(one: PathAt, of: dict[Any, Any]) -> dict[str, Any]:
    answer: dict[str, Any] = {"description": HTTPStatus(one.status).phrase}
    if one.streams:
        answer["content"] = {EVENTS.decode(): {"schema": {"type": "string"}}}
    elif one.answers is not None:
        answer["content"] = {JSON: {"schema": of[one.answers]}}
    return answer


def _body(one: PathAt, kind: str, of: dict[Any, Any], named: list[str]) -> dict[str, Any]:
    """Return the schema of a body: what is asked, without what stands in the path."""
    if kind not in (JSON, LINES) or one.asks is None:
        return {"type": "string"}
    if not named:
        schema: dict[str, Any] = of[one.asks]
        return {"type": "string"} if kind == LINES else schema
    (whole,) = msgspec.json.schema_components([one.asks], ref_template=REFERENCE)[1:]
    own = dict(whole[one.asks.__name__])
    own["properties"] = {k: v for k, v in own["properties"].items() if k not in named}
    own["required"] = [name for name in own.get("required", []) if name not in named]
    own.pop("title", None)
    return own


def _parameter(name: str, kind: Any) -> dict[str, Any]:
    schema = msgspec.json.schema(kind)
    said: dict[str, Any] = {"name": name, "required": True, "schema": schema}
    if schema.get("type") == "array":
        said |= {"style": "form", "explode": False}
    elif schema == {"type": "string"}:
        schema["minLength"] = 1
    return said


def _kinds(asks: Any) -> dict[str, Any]:
    return {field.encode_name: field.type for field in msgspec.structs.fields(asks)}


def _required(asks: Any, without: Iterable[str] = ()) -> list[str]:
    if asks is None:
        return []
    fields = msgspec.structs.fields(asks)
    return [one.encode_name for one in fields if one.required and one.encode_name not in without]
