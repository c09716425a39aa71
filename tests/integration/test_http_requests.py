"""Requests asked over HTTP, by real sockets, of responders of the same process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred

from msgservice import Limits
from tests.integration.test_http_listener import users
from tests.integration.test_http_messages import World
from tests.kit.house import BOSS, MUTE
from tests.kit.http import HttpAnswer

pytestmark = pytest.mark.timeout(60)
ensure = pytest_twisted.ensureDeferred
BYTES = {"Content-Type": "application/octet-stream"}


@pytest_twisted.async_yield_fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path, limits=Limits(stop_timeout=5, close_timeout=0.5, http_waits=1))
    await made.start(attach=False)
    yield made
    await made.stop()


async def answered_by(world: World, handler: Any) -> None:
    """Let requests on `prices.get` be answered."""
    desk = world.node.client("desk")
    await desk.respond("prices.get", handler).when_ready()


async def asked(world: World, said: Any, path: str = "prices.get", **more: Any) -> HttpAnswer:
    return await world.peer.ask("POST", f"/v1/requests/{path}", said, **more)


@ensure
async def test_what_is_answered_comes_by_its_type(world: World) -> None:
    answers: dict[str, Any] = {"json": {"price": 7}, "text": "dear", "bytes": b"\x00<script>"}
    await answered_by(world, lambda one: answers[one.content["as"]])
    told = {kind: (await asked(world, {"as": kind})) for kind in answers}
    assert [200] * 3 == [one.status for one in told.values()]
    assert ["application/json"] * 3 == [one.headers["content-type"] for one in told.values()]
    assert {"price": 7} == told["json"].json["body"]
    assert "dear" == told["text"].json["text"]
    assert "ADxzY3JpcHQ+" == told["bytes"].json["base64"]


@ensure
async def test_bytes_are_asked_as_they_are(world: World) -> None:
    got: list[Any] = []
    await answered_by(world, lambda one: got.append((one.body, dict(one.headers))))
    assert 200 == (await asked(world, b"\xff\x00", headers=BYTES)).status
    assert [(b"\xff\x00", {})] == got


@ensure
async def test_what_fails_says_why(world: World, logged_failures: list[Any]) -> None:
    nobody = await asked(world, {})
    assert (404, "NoResponder") == (nobody.status, nobody.json["error"])
    never: Deferred[None] = Deferred()

    def handle(one: Any) -> Any:
        if one.content == "wait":
            return never
        raise ValueError("no such article")

    await answered_by(world, handle)
    failed = await asked(world, "x")
    assert (502, "RequestFailed") == (failed.status, failed.json["error"])
    late = await asked(world, "wait", "prices.get?timeout=0.05")
    assert (504, "RequestTimeout") == (late.status, late.json["error"])
    for path in ("prices.get?timeout=0", "prices.get?timeout=601", "a..b", "$node.info"):
        assert 400 == (await asked(world, {}, path)).status
    assert 400 == (await asked(world, b"{", headers={"Content-Type": "application/json"})).status
    assert 415 == (await asked(world, b"a", headers={"Content-Type": "text/plain"})).status
    never.callback(None)
    assert ["no such article"] == [str(one["log_failure"].value) for one in logged_failures]
    logged_failures.clear()


@ensure
async def test_no_more_wait_at_once_than_the_limit(world: World) -> None:
    came: Deferred[None] = Deferred()
    goes_on: Deferred[str] = Deferred()

    def handle(_: Any) -> Deferred[str]:
        came.callback(None)
        return goes_on

    await answered_by(world, handle)
    other = await world.dial()
    other.say_request("POST", "/v1/requests/prices.get", b'"first"')
    await came
    refused = await asked(world, "second")
    assert (429, "http_waits") == (refused.status, refused.json["about"])
    goes_on.callback("done")
    await other.until(lambda: b'"done"' in other.data)


@ensure
async def test_who_has_gone_waits_no_more_and_no_wait_keeps_its_body(world: World) -> None:
    came: list[Any] = []
    ended: Deferred[None] = Deferred()
    never: Deferred[None] = Deferred(lambda _: ended.callback(None))
    got: Deferred[None] = Deferred()

    def handle(one: Any) -> Any:
        came.append(one.content)
        if one.content == "still there":
            return "done"
        got.callback(None)
        return never

    await answered_by(world, handle)
    parts = world.node.parts
    other = await world.dial()
    other.say_request("POST", "/v1/requests/prices.get?timeout=600", b'"%b"' % (b"x" * 100_000))
    await got
    assert (1, 0) == (parts.responders.pending, parts.web.held_bytes)
    channel = next(one for one in parts.web._channels if one.is_answering)
    gone = channel.requests[0].notifyFinish()
    await other.go()
    await gone.addErrback(lambda _: None)
    assert (0, 1) == (parts.responders.pending, parts.responders.given_up)
    await ended  # who was asked is told
    assert "done" == (await asked(world, "still there")).json["text"]


@ensure
async def test_who_may_not_request_a_subject_is_refused(tmp_path: Path) -> None:
    known, tokens = users(MUTE, BOSS)
    world = World(tmp_path, users=known)
    await world.start(attach=False)
    try:
        mute = {"Authorization": f"Bearer {tokens['mute']}"}
        refused = await asked(world, {}, headers=mute)
        assert (403, "Forbidden") == (refused.status, refused.json["error"])
        assert 401 == (await asked(world, {})).status
    finally:
        await world.stop()
