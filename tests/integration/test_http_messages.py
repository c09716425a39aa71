"""Messages and operations over HTTP, by real sockets: what is stored, refused, and stored once."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor as installed_reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater

from msgservice import Limits, Node, Receiver, Reject
from msgservice.administration import OPERATIONS
from msgservice.errors import LogFull
from msgservice.node.web import messages
from msgservice.node.web.operations import place_of
from tests.integration.test_http_listener import bearer, users
from tests.kit.house import BOSS, MUTE, SHOP
from tests.kit.http import HttpAnswer, HttpPeer
from tests.kit.inline import by_append

reactor: Any = installed_reactor
pytestmark = pytest.mark.timeout(60)
WEB = "tcp:0:interface=127.0.0.1"
LIMITS = Limits(stop_timeout=5, max_batch=64 * 1024, http_body_bytes=1024 * 1024)
LINES = {"Content-Type": "application/x-ndjson"}
ensure = pytest_twisted.ensureDeferred


class World:
    """A node with a web listener, a receiver of `orders.>`, and a peer."""

    def __init__(self, folder: Path, **options: Any) -> None:
        options.setdefault("limits", LIMITS)
        self.folder = folder
        self.options = options
        self.node = Node(reactor, folder / "node", web=[WEB], **options)
        self.peers: list[HttpPeer] = []
        self.got: list[Any] = []
        self._wanted = 0
        self._waiter: Deferred[None] | None = None
        self.receiver = Receiver(reactor, name="billing", handler=self._handle)

    def handle_by(self, handler: Callable[[Any], None]) -> None:
        """Have messages handled by another; before the start."""
        self.receiver = Receiver(reactor, name="billing", handler=handler)

    def _handle(self, message: Any) -> None:
        self.got.append(message)
        if self._waiter is not None and len(self.got) >= self._wanted:
            waiter, self._waiter = self._waiter, None
            waiter.callback(None)

    async def start(self, *, attach: bool = True) -> None:
        self.node.startService()
        await self.node.when_ready()
        if attach:
            principal = "boss" if self.node.parts.gate.asks else ""
            self.node.attach(self.receiver, ["orders.>"], principal=principal)
            await self.receiver.when_connected()
        self.peer = await self.dial()

    async def dial(self) -> HttpPeer:
        host: Any = self.node.ports[-1].getHost()
        peer = await HttpPeer.dial(int(host.port))
        self.peers.append(peer)
        return peer

    async def until(self, count: int) -> list[Any]:
        if len(self.got) < count:
            self._wanted, self._waiter = count, Deferred()
            await self._waiter
        return self.got

    async def post(self, message: Any, **headers: str) -> HttpAnswer:
        said = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.peer.ask("POST", "/v1/messages", message, said)

    async def lines(self, *messages: Any, **headers: str) -> HttpAnswer:
        body = b"".join(json.dumps(one).encode() + b"\n" for one in messages)
        return await self.post(body, **{"Content-Type": "application/x-ndjson", **headers})

    async def stop(self) -> None:
        for peer in self.peers:
            await peer.go()
        await self.receiver.stopService()
        await self.node.stopService()


@pytest_twisted.async_yield_fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path)
    await made.start()
    yield made
    await made.stop()


# --- one message


@pytest.mark.parametrize(
    ("said", "content"),
    [
        ({"body": ["1e999", 1e299, 10**280]}, ["1e999", 1e299, 10**280]),
        ({"body": {"id": 17, "of": ["a", None, 1.5]}}, {"id": 17, "of": ["a", None, 1.5]}),
        ({"body": "text"}, "text"),
        ({"body": None}, None),
        ({"text": "häl\0lo"}, "häl\0lo"),
        ({"base64": base64.b64encode(b"\x00\xff").decode()}, b"\x00\xff"),
        ({}, b""),
        ({"base64": "eyJ4IjoxfQ==", "headers": {"content-type": "application/json"}}, {"x": 1}),
    ],
    ids=repr,
)
@ensure
async def test_a_message_arrives_as_it_was_said(
    world: World, said: dict[str, Any], content: Any
) -> None:
    answer = await world.post({"subject": "orders.new", "id": "mine", **said})
    assert 201 == answer.status
    (got,) = await world.until(1)
    assert (content, "orders.new", "mine") == (got.content, got.subject, got.id)
    assert f"log:{answer.json['position']}" == answer.json["id"]


@ensure
async def test_a_message_is_on_disk_before_it_is_answered(world: World) -> None:
    answer = await world.post({"subject": "orders.new", "body": 1})
    found = await world.node.log.find(answer.json["id"], 0, 10)
    assert found is not None
    assert ("http", "orders.new") == (found.sender, found.subject)
    shown = await world.peer.ask("GET", f"/v1/messages/{answer.json['id']}")
    assert {"billing"} == set(shown.json["receivers"])


@ensure
async def test_posts_of_one_turn_are_one_group(world: World) -> None:
    appended: list[int] = []
    log: Any = world.node.log
    append = log.append

    def counted(group: Any) -> Any:
        appended.append(len(group.batches))
        return append(group)

    log.append = counted
    by_append(log)
    peers = [await world.dial() for _ in range(20)]
    for peer in peers:
        peer.say_request("POST", "/v1/messages", b'{"subject": "orders.new"}')
    answers = await gatherResults([Deferred.fromCoroutine(peer.answer()) for peer in peers])
    assert [201] * 20 == [answer.status for answer in answers]
    assert 20 == sum(appended)
    assert len([count for count in appended if count]) < 10


@pytest.mark.parametrize(
    ("said", "status", "error"),
    [
        (b"", 400, "BadValue"),
        (b"[]", 400, "BadValue"),
        (b'{"subject": "a"', 400, "BadValue"),
        (b'{"subject": "a", "body": "\xff"}', 400, "BadValue"),
        (b'{"subject": "a", "body": ' + b"[" * 200 + b"]" * 200 + b"}", 400, "BadValue"),
        (b'{"subject": "a", "body": ' + b"[" * 9000 + b"]" * 9000 + b"}", 400, "BadValue"),
        (b'{"subject": "a", "body": 1e999}', 400, "BadValue"),  # no receiver could read it
        (b'{"subject": "a", "body": [-12E+0999]}', 400, "BadValue"),
        (b'{"subject": "a", "body": ' + b"9" * 5000 + b"}", 400, "BadValue"),
        ({"body": 1}, 400, "BadValue"),
        ({"subject": "a", "colour": "red"}, 400, "BadValue"),
        ({"subject": "a..b"}, 400, "BadSubject"),
        ({"subject": "$node.info"}, 422, "Refused"),
        ({"subject": "orders.*"}, 400, "BadSubject"),
        ({"subject": "a", "body": 1, "text": "x"}, 400, "BadValue"),
        ({"subject": "a", "base64": "?"}, 400, "BadValue"),
        ({"subject": "a", "id": ""}, 400, "BadName"),
        ({"subject": "a", "key": "x" * 300}, 400, "BadName"),
        ({"subject": "a", "ttl": -1}, 400, "BadValue"),
        ({"subject": "a", "delay": 367 * 86400}, 400, "BadValue"),
        ({"subject": "a", "retain": "maybe"}, 400, "BadValue"),
        ({"subject": "a", "to": []}, 400, "BadValue"),
        ({"subject": "a", "to": ["nobody"]}, 422, "UnknownReceiver"),
        ({"subject": "a", "require": True}, 422, "NoReceiver"),
        ({"subject": "a", "delay": 1, "ttl": 1}, 400, "BadValue"),
        ({"subject": "a", "text": "x" * 70_000}, 413, "MessageTooLarge"),
        ({"subject": "a", "promise": {"within": 1}}, 422, "TooFewReceivers"),
        ({"subject": "orders.a", "promise": {"within": 1, "need": 2}}, 422, "TooFewReceivers"),
        ({"subject": "orders.a", "promise": {"within": 1, "need": 0}}, 400, "BadValue"),
        ({"subject": "orders.a", "promise": {"within": 1, "need": -1}}, 400, "BadValue"),
        ({"subject": "orders.a", "promise": {"within": 1, "need": "few"}}, 400, "BadValue"),
        ({"subject": "orders.a", "promise": {"within": 1, "need": 1.5}}, 400, "BadValue"),
        ({"subject": "orders.a", "promise": {"within": 0}}, 400, "BadValue"),
        ({"subject": "orders.a", "promise": {"within": -3}}, 400, "BadValue"),
        ({"subject": "orders.a", "promise": {"within": 367 * 86400}}, 400, "BadValue"),
        ({"subject": "orders.a", "promise": {"need": 1}}, 400, "BadValue"),
        ({"subject": "orders.a", "promise": {"within": 1, "else": 1}}, 400, "BadValue"),
        ({"subject": "orders.a", "promise": 60}, 400, "BadValue"),
        (
            {"subject": "orders.a", "promise": {"within": 1, "otherwise": "undo"}},
            400,
            "BadValue",
        ),
        ({"subject": "orders.a", "promise": {"within": 1}, "delay": 1}, 422, "Refused"),
        ({"subject": "orders.a", "promise": {"within": 1}, "key": "k"}, 422, "Refused"),
        ({"subject": "orders.a", "promise": {"within": 1}, "retain": "only"}, 422, "Refused"),
    ],
    ids=repr,
)
@ensure
async def test_what_is_refused_says_why_and_stores_nothing(
    world: World, said: Any, status: int, error: str
) -> None:
    before = world.node.parts.tail.next_number
    answer = await world.post(said)
    assert (status, error) == (answer.status, answer.json.get("error", ""))
    assert before == world.node.parts.tail.next_number
    assert 201 == (await world.post({"subject": "orders.new"})).status


@ensure
async def test_what_is_no_json_or_no_base64_is_called_so(world: World) -> None:
    for said, detail in (
        (b'{"subject": "a"', "the body is no JSON: Input data was truncated"),
        (b"", "the body is no JSON: Input data was truncated"),
        ({"subject": "a", "base64": "?"}, "base64 is no base64"),
    ):
        assert detail == (await world.post(said)).json["detail"]


@ensure
async def test_what_is_no_message_is_told_with_the_fields_of_one(world: World) -> None:
    for said, detail in (
        ({"subject": 5}, "Expected `str`, got `int` - at `$.subject`"),
        ({"subject": "a", "boddy": 1}, "Object contains unknown field `boddy`"),
    ):
        fields = "subject, body, text, base64, headers, id, key, to, require, ttl, delay, retain"
        told = (await world.post(said)).json["detail"]
        assert told.startswith(f"{detail} (fields: {fields}")


@ensure
async def test_a_key_with_a_delay_is_one_message_that_waits(world: World) -> None:
    keyed = {"subject": "orders.later", "body": 4, "delay": 3600, "ttl": 7200, "key": "k"}
    first, second = await world.post(keyed), await world.post(keyed)
    assert (201, None) == (first.status, first.json.get("position"))
    assert first.json["due"] == second.json["due"], "it waits until the first is due"
    assert second.json["by_key"]


@ensure
async def test_a_key_of_lines_with_a_delay_is_refused_with_what_to_say_instead(
    world: World,
) -> None:
    lines = b"\n".join(b'{"subject": "orders.later", "body": %d, "delay": 60}' % n for n in (1, 2))
    kind = {"Content-Type": "application/x-ndjson"}
    told = await world.peer.ask("POST", "/v1/messages", lines, kind | {"Idempotency-Key": "k"})
    assert (422, "Refused", 0) == (told.status, told.json["error"], told.json["accepted"])
    assert "each may be cancelled alone" in told.json["detail"]
    one = await world.peer.ask(
        "POST", "/v1/messages", lines.split(b"\n")[0], kind | {"Idempotency-Key": "k"}
    )
    assert (201, 1) == (one.status, one.json["accepted"])


@ensure
async def test_options_of_delivery_do_what_they_do_elsewhere(world: World) -> None:
    assert 201 == (await world.post({"subject": "else", "to": ["billing"], "body": 1})).status
    assert 201 == (await world.post({"subject": "orders.kept", "body": 2, "retain": True})).status
    delayed = await world.post({"subject": "orders.later", "body": 3, "delay": 3600})
    assert (201, None) == (delayed.status, delayed.json.get("position"))
    assert [1, 2] == [message.content for message in await world.until(2)]
    kept = await world.peer.ask("GET", "/v1/retained/orders.kept")
    assert "orders.kept" == kept.json["subject"]
    (waiting,) = (await world.peer.ask("GET", "/v1/delayed")).json["delayed"]
    assert delayed.json["due"] == waiting["due"]
    name = delayed.json["id"].replace("/", "%2F")
    assert "orders.later" == (await world.peer.ask("GET", f"/v1/messages/{name}")).json["subject"]
    cancelled = await world.peer.ask("POST", f"/v1/delayed/{name}/cancel", {})
    assert 1 == cancelled.json["cancelled"]


@ensure
async def test_no_room_is_said_at_once_and_nothing_is_kept(world: World) -> None:
    log: Any = world.node.log
    room = log.room
    log.room = lambda: type(room())(**{**vars_of(room()), "full": "the disk is full"})
    answer = await world.post({"subject": "orders.new"})
    assert (503, "LogFull") == (answer.status, answer.json["error"])
    assert int(answer.headers["retry-after"]) >= 1
    log.room = room
    assert 201 == (await world.post({"subject": "orders.new"})).status
    assert 1 == len(await world.until(1))


def vars_of(record: Any) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(record)


@ensure
async def test_what_is_taken_in_and_not_stored_is_bounded(world: World) -> None:
    commits = world.node.parts.commits
    commits.uncommitted_bytes += LIMITS.uncommitted_bytes + 1
    answer = await world.post({"subject": "orders.new"})
    commits.uncommitted_bytes -= LIMITS.uncommitted_bytes + 1
    assert (503, "uncommitted_bytes") == (answer.status, answer.json["about"])


# --- lines


@ensure
async def test_lines_are_runs_and_arrive_in_their_order(world: World) -> None:
    said = [{"subject": f"orders.{n // 50}", "body": n} for n in range(200)]
    answer = await world.lines(*said)
    assert (201, 200) == (answer.status, answer.json["accepted"])
    assert [(50, 1), (50, 51), (50, 101), (50, 151)] == [
        (run["count"], run["line"]) for run in answer.json["runs"]
    ]
    assert list(range(200)) == [message.content for message in await world.until(200)]


@ensure
async def test_lines_beyond_a_batch_are_several(world: World) -> None:
    said = [{"subject": "orders.big", "text": "x" * 1000} for _ in range(150)]
    answer = await world.lines(*said)
    assert (201, 150) == (answer.status, answer.json["accepted"])
    assert len(answer.json["runs"]) > 2
    await world.until(150)


@ensure
async def test_a_line_that_is_wrong_stores_none_of_them(world: World) -> None:
    before = world.node.parts.tail.next_number
    good = {"subject": "orders.a"}
    wrong = await world.lines(good, {"subject": "a..b"}, good)
    assert 400 == wrong.status
    assert "line 2" in wrong.json["detail"]
    assert ("BadSubject", 14, 2) == tuple(wrong.json[key] for key in ("error", "code", "line"))
    shapeless = await world.lines(good, {"subject": 5})
    assert (400, "BadValue", 12, 2) == (
        shapeless.status,
        *(shapeless.json[key] for key in ("error", "code", "line")),
    )
    unknown = await world.lines(good, {"subject": "orders.b", "to": ["nobody"]})
    assert (422, 2, 0) == (unknown.status, unknown.json["line"], unknown.json["accepted"])
    empty = await world.post(b"\n \n", Content_Type="application/x-ndjson")
    assert 400 == empty.status
    assert before == world.node.parts.tail.next_number


@ensure
async def test_lines_of_which_some_found_no_room_say_which_are_stored(world: World) -> None:
    log: Any = world.node.log
    append = log.append

    def half(group: Any) -> Any:
        def without(appended: Any) -> Any:
            from msgservice.records import Appended, RefusedBatch

            outcomes = list(appended.outcomes)
            outcomes[1:] = [RefusedBatch(LogFull("no more")) for _ in outcomes[1:]]
            return Appended(outcomes, appended.stored[:1])

        return append(group).addCallback(without if len(group.batches) > 1 else lambda it: it)

    log.append = half
    by_append(log)
    answer = await world.lines({"subject": "orders.a"}, {"subject": "orders.b"})
    assert (503, 1, 2) == (answer.status, answer.json["accepted"], answer.json["line"])
    assert [1] == [run["line"] for run in answer.json["runs"]]


@ensure
async def test_runs_of_very_many_are_stored_in_waves_and_in_their_order(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(messages, "WAVE", 3)
    submitted: list[int] = []
    store = messages.Posts._store

    async def noted(posts: Any, wave: Any) -> None:
        submitted.append(len(wave.batches))
        await store(posts, wave)

    monkeypatch.setattr(messages.Posts, "_store", noted)
    said = [{"subject": f"orders.{n % 2}", "body": n} for n in range(10)]
    answer = await world.lines(*said)
    assert (201, 10) == (answer.status, answer.json["accepted"])
    assert list(range(1, 11)) == [run["line"] for run in answer.json["runs"]]
    assert [*range(10)] == [got.content for got in await world.until(10)]
    assert [3, 3, 3, 1] == submitted
    wrong = await world.lines(*said, {"subject": "a..b"})
    assert (400, 11, 0) == (wrong.status, wrong.json["line"], wrong.json["accepted"])
    assert [3, 3, 3, 1] == submitted, "none of it is stored"


@pytest.mark.parametrize(
    ("body", "lines"),
    [
        (b"", []),
        (b"\n\n\n\n\n\n\n\n\n", []),
        (b"a", [(1, b"a")]),
        (b"a\nb\n", [(1, b"a"), (2, b"b")]),
        (b"\n\na\n\n\n\n\n\n\n\nb", [(3, b"a"), (11, b"b")]),
        (b"\n\n\n\n\n \n\nabcdefghi\n\n", [(6, b" "), (8, b"abcdefghi")]),
    ],
    ids=repr,
)
def test_lines_have_their_numbers(
    monkeypatch: pytest.MonkeyPatch, body: bytes, lines: list[tuple[int, bytes]]
) -> None:
    monkeypatch.setattr(messages, "EMPTY_AT_ONCE", 4)
    assert lines == [one for one in messages._lines_of(body) if one[1]]


@ensure
async def test_a_post_of_very_many_lines_leaves_others_their_turns(world: World) -> None:
    other = await world.dial()
    body = b'{"subject": "else"}\n' * 40_000
    world.peer.say_request("POST", "/v1/messages", body, LINES)
    slices = world.node.parts.posts._slices
    while not slices._waiting:
        await deferLater(reactor, 0, int)
    for _ in range(3):
        assert 200 == (await other.ask("GET", "/healthz")).status
    assert not world.peer.data, "the others were answered first"
    assert 40_000 == (await world.peer.answer()).json["accepted"]


@ensure
async def test_arguments_of_an_operation_are_bounded_as_requests_are(world: World) -> None:
    said = b'{"subjects": [' + b'"a",' * 20_000 + b'"a"]}'
    answer = await world.peer.ask("POST", "/v1/retained/clear", said)
    assert 413 == answer.status


# --- keys


@ensure
async def test_a_post_that_is_made_again_with_its_key_is_stored_once(world: World) -> None:
    said = {"subject": "orders.paid", "body": {"id": 1}}
    first = await world.post(said, Idempotency_Key="pay-1")
    again = await world.post(said, Idempotency_Key="pay-1")
    within = await world.post({**said, "key": "pay-1"})
    assert [201] * 3 == [one.status for one in (first, again, within)]
    assert 1 == len({one.json["id"] for one in (first, again, within)})
    other = await world.post({**said, "body": 2}, Idempotency_Key="pay-1")
    assert (422, "KeyReused") == (other.status, other.json["error"])
    await world.post({"subject": "orders.end"})
    assert 2 == len(await world.until(2))


@ensure
async def test_a_delayed_post_that_is_made_again_with_its_key_waits_once(world: World) -> None:
    said = {"subject": "orders.later", "delay": 3600}
    first = await world.post(said, Idempotency_Key="later")
    again = await world.post(said, Idempotency_Key="later")
    assert (201, first.json["due"]) == (again.status, again.json["due"])
    assert again.json["by_key"]
    assert first.json["id"] == again.json["id"]
    (waiting,) = (await world.peer.ask("GET", "/v1/delayed")).json["delayed"]
    assert waiting["sender"] == again.json["id"]
    name = again.json["id"].replace("/", "%2F")
    shown = await world.peer.ask("GET", f"/v1/messages/{name}")
    assert (200, first.json["due"]) == (shown.status, shown.json["due"])
    assert 200 == (await world.peer.ask("POST", f"/v1/delayed/{name}/cancel", {})).status
    assert [] == (await world.peer.ask("GET", "/v1/delayed")).json["delayed"]


@ensure
async def test_a_message_is_undone_by_the_key_that_it_was_handed_in_with(world: World) -> None:
    ask = world.peer.ask
    await ask("POST", "/v1/receivers", {"name": "idle", "subjects": ["idle.>"]})
    assert 201 == (await world.post({"subject": "idle.a", "body": 1, "key": "k1"})).status
    assert 201 == (await world.post({"subject": "idle.a"}, Idempotency_Key="k2")).status
    for key, outcome in (("k1", "cancelled"), ("k2", "cancelled"), ("k1", "cancelled_before")):
        told = await ask("POST", "/v1/undo", {"key": key, "reason": "wrong"})
        assert (200, {"idle": {outcome: 1}}) == (told.status, told.json["receivers"])
    unknown = await ask("POST", "/v1/undo", {"key": "k3"})
    assert (404, "UnknownMessage") == (unknown.status, unknown.json["error"])
    for said in ({}, {"id": "log:65536", "key": "k1"}, {"id": "log:65536"}):
        wrong = await ask("POST", "/v1/undo", said)
        assert (400, True) == (wrong.status, "/v1/messages/{id}/undo" in wrong.json["detail"])


@ensure
async def test_a_user_undoes_by_the_keys_of_its_own(tmp_path: Path) -> None:
    known, tokens = users(SHOP, BOSS)
    world = World(tmp_path, users=known)
    await world.start(attach=False)
    try:
        boss, its = ({"Authorization": f"Bearer {tokens[name]}"} for name in ("boss", "shop"))
        asked = {"name": "idle", "subjects": ["orders.>"]}
        assert 201 == (await world.peer.ask("POST", "/v1/receivers", asked, boss)).status
        said = {"subject": "orders.a", "body": 1, "key": "k1"}
        assert 201 == (await world.peer.ask("POST", "/v1/messages", said, its)).status
        nobodys = await world.peer.ask("POST", "/v1/undo", {"key": "k1"}, boss)
        assert 404 == nobodys.status
        told = await world.peer.ask("POST", "/v1/undo", {"key": "k1"}, its)
        assert (200, {"idle": {"cancelled": 1}}) == (told.status, told.json["receivers"])
        again = await world.peer.ask("POST", "/v1/undo", {"key": "k1", "sender": "shop"}, boss)
        assert {"idle": {"cancelled_before": 1}} == again.json["receivers"]
    finally:
        await world.stop()


@ensure
async def test_two_posts_with_one_key_at_once_are_one(world: World) -> None:
    peers = [await world.dial() for _ in range(10)]
    for peer in peers:
        peer.say_request(
            "POST", "/v1/messages", b'{"subject": "orders.x"}', {"Idempotency-Key": "k"}
        )
    answers = [await peer.answer() for peer in peers]
    assert 1 == len({answer.json["id"] for answer in answers})
    await world.post({"subject": "orders.end"})
    assert 2 == len(await world.until(2))


@ensure
async def test_lines_with_a_key_are_one_run_whole_or_not_at_all(world: World) -> None:
    said = [{"subject": "orders.many", "body": n} for n in range(100)]
    first = await world.lines(*said, Idempotency_Key="all")
    again = await world.lines(*said, Idempotency_Key="all")
    assert 201 == first.status == again.status
    assert [100] == [run["count"] for run in first.json["runs"]]
    assert [run["id"] for run in first.json["runs"]] == [run["id"] for run in again.json["runs"]]
    assert again.json["runs"][0]["by_key"]
    fewer = await world.lines(*said[:99], Idempotency_Key="all")
    assert (422, "KeyReused") == (fewer.status, fewer.json["error"])
    for wrong in (
        [*said, {"subject": "orders.else"}],
        [{"subject": "orders.many", "key": "own"}, {"subject": "orders.many"}],
    ):
        assert 422 == (await world.lines(*wrong, Idempotency_Key="else")).status
    too_long = [{"subject": "orders.l", "text": "x" * 1000} for _ in range(100)]
    assert 413 == (await world.lines(*too_long, Idempotency_Key="long")).status
    await world.post({"subject": "orders.end"})
    assert 101 == len(await world.until(101))


@ensure
async def test_each_line_may_have_a_key(world: World) -> None:
    said = [{"subject": "orders.k", "body": n, "key": f"k{n}"} for n in range(20)]
    for _ in range(2):
        assert 20 == (await world.lines(*said)).json["accepted"]
    await world.post({"subject": "orders.end"})
    assert 21 == len(await world.until(21))


# --- who may


@ensure
async def test_a_user_does_over_http_what_it_may_elsewhere(tmp_path: Path) -> None:
    known, tokens = users(SHOP, MUTE, BOSS)
    world = World(tmp_path, users=known)
    await world.start()
    try:
        shop = {"Authorization": f"Bearer {tokens['shop']}"}
        mute = {"Authorization": f"Bearer {tokens['mute']}"}
        boss = {"Authorization": f"Bearer {tokens['boss']}"}
        message = {"subject": "orders.new", "body": 1}
        ask = world.peer.ask
        stored = await ask("POST", "/v1/messages", message, shop)
        assert 201 == stored.status
        refused = await ask("POST", "/v1/messages", message, mute)
        assert (403, "Forbidden") == (refused.status, refused.json["error"])
        path = f"/v1/messages/{stored.json['id']}"
        assert 200 == (await ask("GET", path, None, shop)).status
        assert 404 == (await ask("GET", path, None, mute)).status
        shown = await ask("GET", path, None, boss)
        assert shown.json["sender"].startswith("http.shop/")
        assert 401 == (await ask("POST", "/v1/messages", message)).status
        # Keys of users do not meet.
        for who in (shop, boss):
            said = {**message, "body": len(who)}
            key = {**who, "Idempotency-Key": "same"}
            assert 201 == (await ask("POST", "/v1/messages", said, key)).status
        keyed = await ask("POST", "/v1/messages", {**message, "body": 9}, key)
        assert 422 == keyed.status
    finally:
        await world.stop()


@ensure
async def test_a_sender_over_http_is_another_after_a_restart(tmp_path: Path) -> None:
    seen = []
    for _ in range(2):
        world = World(tmp_path)
        await world.start(attach=False)
        answer = await world.post({"subject": "orders.x"})
        shown = await world.peer.ask("GET", f"/v1/messages/{answer.json['id']}")
        seen.append(shown.json["sender"])
        await world.stop()
    assert 2 == len({one.split("/")[1] for one in seen})
    assert {"1"} == {one.split("/")[2] for one in seen}


# --- operations


@ensure
async def test_receivers_are_made_changed_looked_at_and_removed(world: World) -> None:
    ask = world.peer.ask
    made = await ask("POST", "/v1/receivers", {"name": "aä", "subjects": ["stock.>"]})
    assert (201, {"name": "aä"}) == (made.status, made.json)
    path = "/v1/receivers/a%C3%A4"
    assert 409 == (await ask("POST", "/v1/receivers", {"name": "aä", "subjects": []})).status
    assert 200 == (await ask("PATCH", path, {"subjects": ["stock.*"]})).status
    listed = await ask("GET", "/v1/receivers?limit=1")
    assert ("aä", ["stock.*"]) == (
        listed.json["receivers"][0]["name"],
        listed.json["receivers"][0]["subjects"],
    )
    assert 200 == (await ask("POST", f"{path}/pause", {})).status
    assert 201 == (await world.post({"subject": "stock.a", "body": [1]})).status
    (peeked,) = (await ask("GET", f"{path}/next?limit=5")).json["messages"]
    shown = await ask("GET", f"{path}/next/{peeked['position']}")
    assert b"[1]" in base64.b64decode(shown.json["message"])
    purged = await ask("POST", f"{path}/purge", {"dry_run": True})
    assert (200, 1) == (purged.status, purged.json["count"])
    assert 409 == (await ask("DELETE", f"{path}?confirm=0")).status
    assert 200 == (await ask("DELETE", f"{path}?confirm=1")).status
    assert 404 == (await ask("POST", f"{path}/pause", {})).status


@ensure
async def test_a_receiver_goes_by_a_delete_where_nothing_goes_with_it(world: World) -> None:
    ask = world.peer.ask
    for name in ("idle", "behind"):
        await ask("POST", "/v1/receivers", {"name": name, "subjects": [f"{name}.>"]})
    assert 201 == (await world.post({"subject": "behind.a", "body": [1]})).status
    assert (200, {"removed": 0, "dead": 0}) == (
        (gone := await ask("DELETE", "/v1/receivers/idle")).status,
        gone.json,
    )
    assert 404 == (await ask("DELETE", "/v1/receivers/idle")).status
    kept = await ask("DELETE", "/v1/receivers/behind")
    assert (409, "NotConfirmed", 10, 1, 0) == (
        kept.status,
        *(kept.json[key] for key in ("error", "code", "queued", "dead")),
    )
    (one,) = (await ask("GET", "/v1/receivers?after=beh&limit=1")).json["receivers"]
    assert ("behind", 1) == (one["name"], one["queued"])
    gone = await ask("DELETE", f"/v1/receivers/behind?confirm={kept.json['queued']}")
    assert {"removed": 1, "dead": 0} == gone.json


@ensure
async def test_dead_letters_keep_a_receiver_from_a_delete(world: World) -> None:
    ask = world.peer.ask

    def reject(message: Any) -> None:
        raise Reject("no such customer")

    picky = Receiver(reactor, name="picky", handler=reject)
    world.node.attach(picky, ["picky.>"])
    await picky.when_connected()
    said = {"subject": "picky.a", "body": [1]}
    settled = await ask("POST", "/v1/messages?wait=acknowledged", said)
    assert (200, "dead") == (settled.status, settled.json["receivers"]["picky"]["status"])
    await picky.stopService()
    path = "/v1/receivers/picky"
    kept = await ask("DELETE", path)
    assert (409, 0, 1) == (kept.status, kept.json["queued"], kept.json["dead"])
    assert "it has 1 dead letter:" in kept.json["detail"]
    assert kept.json["detail"].endswith("; confirm=0 removes it with what it has")
    assert {"removed": 0, "dead": 1} == (await ask("DELETE", f"{path}?confirm=0")).json


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/receivers", {"subjects": ["a"]}),
        ("/v1/receivers", {"name": "a", "subjects": "a"}),
        ("/v1/receivers", {"name": "a", "subjects": ["a"], "colour": "red"}),
        ("/v1/receivers", b"{"),
        ("/v1/receivers", b'{"name": "\xff"}'),
        ("/v1/messages", {"subject": 5}),
        ("/v1/messages", b"["),
    ],
)
@ensure
async def test_what_has_another_shape_is_a_bad_value_to_programs(
    world: World, path: str, body: Any
) -> None:
    said = await world.peer.ask("POST", path, body)
    assert (400, "BadValue", 12) == (said.status, said.json["error"], said.json["code"])


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/v1/receivers?limit=x", None, 400),
        ("GET", "/v1/receivers?colour=red", None, 400),
        ("GET", "/v1/delayed?after=1", None, 400),
        ("GET", "/v1/delayed?after=1,2", None, 200),
        ("GET", "/v1/receivers/billing/dead/x", None, 400),
        ("GET", "/v1/receivers/billing/dead/7", None, 404),
        ("POST", "/v1/receivers/billing/pause", {"name": "else"}, 400),
        ("POST", "/v1/receivers/billing/pause?name=else", {}, 400),
        ("POST", "/v1/receivers/billing/pause", b"[]", 400),
        ("POST", "/v1/receivers/billing/purge", {"dry_run": "yes"}, 400),
        ("GET", "/v1/messages/log:999999999", None, 404),
        ("GET", "/v1/audit", None, 200),
        ("GET", "/v1/whoami", None, 200),
        ("GET", "/v1/node", None, 200),
    ],
)
@ensure
async def test_arguments_are_judged(
    world: World, method: str, path: str, body: Any, status: int
) -> None:
    assert status == (await world.peer.ask(method, path, body)).status


@ensure
async def test_a_field_that_is_not_known_is_told_with_those_that_are(world: World) -> None:
    asked = {"name": "other", "subject": ["a.>"]}
    wrong = await world.peer.ask("POST", "/v1/receivers", asked)
    assert (400, "BadValue") == (wrong.status, wrong.json["error"])
    assert "unknown field `subject` (fields: name, subjects, address" in wrong.json["detail"]
    nothing = await world.peer.ask("POST", "/v1/reload", {"all": True})
    assert "(fields: none)" in nothing.json["detail"]


@ensure
async def test_every_operation_has_a_path_of_its_own(world: World) -> None:
    places = [place_of(operation) for operation in OPERATIONS]
    assert len(set(places)) == len(places)
    there = {(path.method, path.path) for path in world.node.parts.web.paths}
    assert set(places) <= there


@ensure
async def test_one_receiver_is_the_row_of_the_list(world: World) -> None:
    (row,) = (await world.peer.ask("GET", "/v1/receivers")).json["receivers"]
    one = await world.peer.ask("GET", "/v1/receivers/billing")
    assert (200, "billing", row.keys()) == (one.status, one.json["name"], one.json.keys())
    unknown = await world.peer.ask("GET", "/v1/receivers/nobody")
    assert (404, "UnknownReceiver") == (unknown.status, unknown.json["error"])
    assert 400 == (await world.peer.ask("GET", "/v1/receivers/billing?after=a")).status


PAGE_OF_ATTACK = b"<script>alert(1)</script>" * 2_400  # more than one part of a message


@ensure
async def test_a_body_is_saved_where_that_is_allowed_and_never_run(tmp_path: Path) -> None:
    world = World(tmp_path, web_bodies=True)
    await world.start(attach=False)
    await world.node.add_receiver("billing", ["orders.>"])
    html = {"content-type": "text/html"}
    said = {"subject": "orders.a", "text": PAGE_OF_ATTACK.decode(), "headers": html}
    posted = await world.post(said | {"retain": True})
    assert 201 == posted.status
    place = posted.json["position"]
    for path in (f"receivers/billing/next/{place}", "retained/orders.a"):
        told = await world.peer.ask("GET", f"/v1/{path}/body")
        assert (200, PAGE_OF_ATTACK) == (told.status, told.body)
        assert "application/octet-stream" == told.headers["content-type"]
        assert f'attachment; filename="message-{place}.bin"' == told.headers["content-disposition"]
        assert told.headers["content-security-policy"].startswith("sandbox;")
        assert "nosniff" == told.headers["x-content-type-options"]
    assert 404 == (await world.peer.ask("GET", "/v1/retained/none/body")).status
    assert 400 == (await world.peer.ask("GET", "/v1/receivers/billing/next/x/body")).status
    assert {"bodies": True} == (await world.peer.ask("GET", "/page/options.json")).json
    await world.stop()


@ensure
async def test_bodies_that_are_not_read_have_the_bound_of_those_that_come(tmp_path: Path) -> None:
    size = 6_000_000  # more than sockets take
    limits = Limits(stop_timeout=5, max_batch=8 << 20, http_bytes=10_000_000)
    world = World(tmp_path, web_bodies=True, limits=limits)
    await world.start(attach=False)
    said = {"subject": "orders.a", "text": "x" * size, "retain": "only"}
    assert 201 == (await world.post(said)).status
    web = world.node.parts.web

    async def unread() -> None:
        while not any(one.is_in_pieces for one in web._channels):
            await deferLater(reactor, 0.01, int)

    slow = await world.dial()
    slow.transport.pauseProducing()
    slow.say_request("GET", "/v1/retained/orders.a/body")
    await unread()
    refused = await world.peer.ask("GET", "/v1/retained/orders.a/body")
    assert (503, "http_bytes") == (refused.status, refused.json["about"])
    slow.transport.resumeProducing()
    assert size == len((await slow.answer()).body)
    told = await world.peer.ask("GET", "/v1/retained/orders.a/body")
    assert (200, size) == (told.status, len(told.body))
    gone = await world.dial()
    gone.transport.pauseProducing()
    gone.say_request("GET", "/v1/retained/orders.a/body")
    await unread()
    await gone.go()
    await world.stop()
    assert 0 == web.held_bytes


@ensure
async def test_no_body_is_given_out_where_that_is_not_allowed(world: World) -> None:
    place = (await world.post({"subject": "orders.a", "text": "x"})).json["position"]
    for path in (f"receivers/billing/next/{place}", "receivers/billing/dead/1", "retained/a"):
        told = await world.peer.ask("GET", f"/v1/{path}/body")
        assert (403, True) == (told.status, "bodies = true" in told.json["detail"])
    assert {"bodies": False} == (await world.peer.ask("GET", "/page/options.json")).json


def test_tokens_are_said_in_a_header() -> None:
    assert {"Authorization": "Bearer x"} == bearer("x")


# --- promises


async def promised(world: World, within: float, **more: Any) -> HttpAnswer:
    message = {"subject": "orders.new", "promise": {"within": within, **more}}
    return await world.peer.ask("POST", "/v1/messages?wait=promised", message)


@ensure
async def test_55_a_post_waits_until_its_promise_is_kept_and_it_is_said_later(
    world: World,
) -> None:
    answer = await promised(world, 600)
    assert (200, {"billing"}) == (answer.status, set(answer.json["receivers"]))
    told = answer.json["promise"]
    assert ("kept", 1, 1, "notify", "") == tuple(
        told[name] for name in ("outcome", "need", "acknowledged", "otherwise", "reason")
    )
    assert told["decided_at"] <= told["until"]
    for path in ("", "/why"):
        later = await world.peer.ask("GET", f"/v1/messages/{answer.json['id']}{path}")
        assert told == later.json["promise"]
    plain = await world.post({"subject": "orders.new"})
    shown = await world.peer.ask("GET", f"/v1/messages/{plain.json['id']}")
    assert shown.json["promise"] is None
    node = await world.peer.ask("GET", "/v1/node")
    assert {"open": 0, "kept": 1, "broken": 0} == node.json["promises"]
    metrics = await world.peer.ask("GET", "/metrics")
    assert b"msgservice_promises_kept_total 1.0" in metrics.body


@ensure
async def test_55_a_post_is_answered_when_its_promise_is_broken(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.start(attach=False)
    add = {"name": "away", "subjects": ["orders.>"]}
    assert 201 == (await world.peer.ask("POST", "/v1/receivers", add)).status
    answer = await promised(world, 0.05, otherwise="cancel")
    told = answer.json["promise"]
    assert (200, "broken", "cancel") == (answer.status, told["outcome"], told["otherwise"])
    assert "the time of its promise was over" == told["reason"]
    assert ("cancelled", "its promise was broken") == (
        answer.json["receivers"]["away"]["status"],
        answer.json["receivers"]["away"]["reason"],
    )
    waits = {"subject": "orders.new", "promise": {"within": 600, "need": "any"}}
    open_ = await world.peer.ask("POST", "/v1/messages?wait=promised&timeout=0", waits)
    assert (202, "open", False) == (
        open_.status,
        open_.json["promise"]["outcome"],
        open_.json["final"],
    )
    await world.stop()


@ensure
async def test_55_only_what_has_a_promise_waits_for_one(world: World) -> None:
    message = {"subject": "orders.new"}
    answer = await world.peer.ask("POST", "/v1/messages?wait=promised", message)
    assert (400, "BadValue") == (answer.status, answer.json["error"])
    assert "the message has no promise" in answer.json["detail"]


@ensure
async def test_55_lines_with_other_promises_are_other_runs(world: World) -> None:
    one, other = {"within": 60}, {"within": 61}
    answer = await world.lines(
        *({"subject": "orders.new", "promise": promise} for promise in (one, one, other))
    )
    assert [2, 1] == [run["count"] for run in answer.json["runs"]]
    await world.until(3)
