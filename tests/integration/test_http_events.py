"""Events, waits and XML-RPC over HTTP, by real sockets."""

from __future__ import annotations

import json
import xmlrpc.client
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from msgspec.structs import replace
from twisted.internet import reactor as installed_reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread

from msgservice import Limits, Reject
from msgservice.core.xmlrpc import Outline, feed
from msgservice.errors import LogUnavailable
from msgservice.node.observe import replace_at
from msgservice.node.web import events, following
from tests.integration.test_http_listener import users
from tests.integration.test_http_messages import World
from tests.kit.house import MUTE, SHOP
from tests.kit.http import HttpPeer

reactor: Any = installed_reactor
pytestmark = pytest.mark.timeout(60)
LIMITS = Limits(
    stop_timeout=5,
    write_timeout=0.5,
    close_timeout=0.5,
    http_readers=2,
    http_events=50,
    http_waits=2,
)
ensure = pytest_twisted.ensureDeferred


class Stream:
    """The events that a peer is told, one after the other."""

    def __init__(self, peer: HttpPeer) -> None:
        self.peer = peer
        self._text = b""
        self.is_ended = False

    @classmethod
    async def of(cls, world: World, path: str, **headers: str) -> Stream:
        peer = await world.dial()
        said = {name.replace("_", "-"): value for name, value in headers.items()}
        peer.say_request("GET", path, None, said)
        head = await peer.head()
        assert (200, "text/event-stream") == (head.status, head.headers["content-type"])
        return cls(peer)

    async def next(self) -> tuple[str, Any, str]:
        """Return the next event: its name, what it says, and its id."""
        while b"\n\n" not in self._text:
            await self._chunk()
        one, _, self._text = self._text.partition(b"\n\n")
        fields = dict(line.split(": ", 1) for line in one.decode().split("\n"))
        return fields["event"], json.loads(fields["data"]), fields.get("id", "")

    async def named(self, name: str) -> tuple[Any, str]:
        """Return the next event of this name; others are passed over."""
        while True:
            found, said, id_ = await self.next()
            if found == name:
                return said, id_

    async def ended(self) -> None:
        while not self.is_ended:
            await self._chunk()
        await self.peer.until_closed()

    async def _chunk(self) -> None:
        peer = self.peer
        await peer.until(lambda: b"\r\n" in peer.data)
        size, _, rest = peer.data.partition(b"\r\n")
        count = int(size, 16)
        self.is_ended = not count
        await peer.until(lambda: len(peer.data) >= len(size) + 4 + count)
        _, _, rest = peer.data.partition(b"\r\n")
        self._text, peer.data = self._text + rest[:count], rest[count + 2 :]


@pytest_twisted.async_yield_fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path, limits=LIMITS)
    await made.start()
    yield made
    await made.stop()


# --- the view


@ensure
async def test_the_state_comes_first_and_then_what_changes(world: World) -> None:
    stream = await Stream.of(world, "/v1/events")
    name, state, id_ = await stream.next()
    assert ("state", ["billing"], False) == (
        name,
        [one["name"] for one in state["receivers"]],
        state["more"],
    )
    assert id_
    await world.post({"subject": "orders.new"})
    while True:
        change, _ = await stream.named("change")
        if change["changed"] and change["changed"][0]["settled"].get("acknowledged") == 1:
            break
    await world.node.remove_receiver("billing", 0)
    while not change["gone"]:
        change, _ = await stream.named("change")
    assert ["billing"] == change["gone"]


@ensure
async def test_who_comes_back_goes_on_where_it_was(world: World) -> None:
    stream = await Stream.of(world, "/v1/events")
    await stream.named("state")
    await world.node.add_receiver("one", ["x"])
    _, last = await stream.named("change")
    await stream.peer.go()
    await world.node.add_receiver("more", ["x"])
    again = await Stream.of(world, "/v1/events", Last_Event_ID=last)
    while True:
        name, change, _ = await again.next()
        assert "change" == name
        if "more" in [one["name"] for one in change["changed"]]:
            return


@pytest.mark.parametrize("last", ["x", "ffffffff.7", "{start}.999999999", "{start}.-1"])
@ensure
async def test_an_id_that_is_not_known_is_a_reset_and_the_state(world: World, last: str) -> None:
    first = await Stream.of(world, "/v1/events")
    _, id_ = await first.named("state")
    last = last.format(start=id_.partition(".")[0])
    stream = await Stream.of(world, f"/v1/events?last_event_id={last}")
    assert ("reset", {}, "") == await stream.next()
    assert "state" == (await stream.next())[0]


@ensure
async def test_a_reader_that_is_overtaken_gets_a_reset(world: World) -> None:
    stream = await Stream.of(world, "/v1/events")
    await stream.named("state")
    (reader,) = world.node.parts.web_events._readers
    reader.pauseProducing()
    events = world.node.parts.web_events
    node = events.seen().node
    for _ in range(LIMITS.http_events + 10):
        events.observed(node, [], ["x"])
    reader.resumeProducing()
    assert {} == (await stream.named("reset"))[0]
    assert ["billing"] == [one["name"] for one in (await stream.named("state"))[0]["receivers"]]


@ensure
async def test_what_is_kept_for_who_comes_back_is_bounded_in_bytes(tmp_path: Path) -> None:
    kept = 64 * 1024
    made = World(tmp_path, limits=Limits(stop_timeout=5, http_event_bytes=kept))
    await made.start()
    stream = await Stream.of(made, "/v1/events")
    await stream.named("state")
    events = made.node.parts.web_events
    node = events.seen().node
    for number in range(200):
        events.observed(node, [], [f"{number:03}" + "x" * 1_000])
    assert kept / 2 < sum(map(len, events.ring)) == events.ring_bytes <= kept
    events.observed(node, [], ["y" * 2 * kept])
    assert 1 == len(events.ring)  # one that is longer is kept alone
    events.observed(node, [], ["z"])
    assert ["z"] == json.loads(events.ring[0].partition(b"data: ")[2])["gone"]
    await made.stop()
    assert 0 == events.ring_bytes


@ensure
async def test_many_receivers_come_in_pages(world: World) -> None:
    for number in range(230):
        await world.node.add_receiver(f"r{number:03}", ["x"])
    stream = await Stream.of(world, "/v1/events")
    names: list[str] = []
    sizes = []
    while True:
        state, id_ = await stream.named("state")
        names += [one["name"] for one in state["receivers"]]
        sizes.append(len(state["receivers"]))
        assert bool(id_) != state["more"]
        if not state["more"]:
            break
    assert [100, 100, 31] == sizes
    assert sorted(["billing", *(f"r{n:03}" for n in range(230))]) == names


@ensure
async def test_a_reader_that_stops_reading_is_cut_off(world: World) -> None:
    stream = await Stream.of(world, "/v1/events")
    await stream.named("state")
    stream.peer.transport.pauseProducing()
    events = world.node.parts.web_events
    node = events.seen().node
    names = ["x" * 200] * 2000
    while events._readers:
        events.observed(node, [], names)
        await deferLater(reactor, 0.01, int)
    assert 0 == events._reading
    stream.peer.transport.resumeProducing()
    await stream.peer.until_closed()


@ensure
async def test_more_readers_than_the_limit_are_refused_and_others_let_in_again(
    world: World,
) -> None:
    first = await Stream.of(world, "/v1/events")
    await first.named("state")
    second = await Stream.of(world, "/v1/events")
    await second.named("state")
    refused = await world.peer.ask("GET", "/v1/events")
    assert (429, "http_readers") == (refused.status, refused.json["about"])
    await first.peer.go()
    while True:
        peer = await world.dial()
        peer.say_request("GET", "/v1/events")
        if (await peer.head()).status == 200:
            return


@ensure
async def test_nobody_without_the_right_sees_it_and_who_loses_it_is_out(tmp_path: Path) -> None:
    from msgservice.identity.users import Users

    known, tokens = users(SHOP, MUTE)
    world = World(tmp_path, limits=LIMITS, users=known)
    await world.start(attach=False)
    try:
        for name in ("shop", "mute"):
            headers = {"Authorization": f"Bearer {tokens[name]}"}
            refused = await world.peer.ask("GET", "/v1/events", None, headers)
            assert 403 == refused.status
        stored = await world.peer.ask(
            "POST", "/v1/messages", {"subject": "orders.x", "delay": 3600},
            {"Authorization": f"Bearer {tokens['shop']}"},
        )  # fmt: skip
        path = f"/v1/messages/{stored.json['id'].replace('/', '%2F')}/events"
        stream = await Stream.of(world, path, Authorization=f"Bearer {tokens['shop']}")
        state, _ = await stream.named("state")
        assert state["due"]
        other = await world.peer.ask(
            "GET", path, None, {"Authorization": f"Bearer {tokens['mute']}"}
        )
        assert 404 == other.status
        fewer = Users([known.all["mute"]], secret=b"s" * 32, tokens=known.tokens)
        world.node.reload_users(fewer)
        await stream.peer.until_closed()
    finally:
        await world.stop()


@ensure
async def test_a_stop_of_the_node_ends_the_events(tmp_path: Path) -> None:
    world = World(tmp_path, limits=LIMITS)
    await world.start()
    stream = await Stream.of(world, "/v1/events")
    await stream.named("state")
    stopping = world.node.stopService()
    await stream.ended()
    await stopping
    await world.stop()


# --- a message


@ensure
async def test_what_becomes_of_a_message_is_told_to_its_end(world: World) -> None:
    await world.node.pause_receiver("billing", True)
    await world.node.add_receiver("audit", ["orders.>"])
    stored = await world.post({"subject": "orders.new"})
    stream = await Stream.of(world, f"/v1/messages/{stored.json['id']}/events")
    state, _ = await stream.named("state")
    assert {"billing", "audit"} == set(state["receivers"])
    await world.node.pause_receiver("billing", False)
    while True:
        change, _ = await stream.named("change")
        if change["receivers"].get("billing", {}).get("status") == "acknowledged":
            break
    await world.node.remove_receiver("audit", 1)
    change, _ = await stream.named("change")
    assert "removed" == change["receivers"]["audit"]["status"]
    assert {} == (await stream.named("end"))[0]
    await stream.ended()


@ensure
async def test_events_of_a_message_that_fail_are_cut_off_and_no_other_answer_is_in_them(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.node.pause_receiver("billing", True)
    stored = await world.post({"subject": "orders.new"})
    stream = await Stream.of(world, f"/v1/messages/{stored.json['id']}/events")
    await stream.named("state")

    async def failing(*_: Any) -> Any:
        raise LogUnavailable("the log has failed")

    monkeypatch.setattr(following, "states_of", failing)
    await world.node.pause_receiver("billing", False)
    await stream.peer.until_closed()
    assert b"HTTP/1.1" not in stream.peer.data


@ensure
async def test_a_message_that_is_done_is_told_so_at_once(world: World) -> None:
    stored = await world.post({"subject": "orders.new"})
    await world.peer.ask("GET", f"/v1/messages/{stored.json['id']}")
    waited = await world.peer.ask(
        "POST", "/v1/messages?wait=acknowledged", {"subject": "orders.new"}
    )
    stream = await Stream.of(world, f"/v1/messages/{waited.json['id']}/events")
    state, _ = await stream.named("state")
    assert "acknowledged" == state["receivers"]["billing"]["status"]
    assert "end" == (await stream.next())[0]
    assert 404 == (await world.peer.ask("GET", "/v1/messages/log:9999999/events")).status


@ensure
async def test_a_message_that_is_delayed_is_followed_until_it_is_due_and_done(
    world: World,
) -> None:
    stored = await world.post({"subject": "orders.later", "delay": 0.3})
    stream = await Stream.of(world, f"/v1/messages/{stored.json['id'].replace('/', '%2F')}/events")
    state, _ = await stream.named("state")
    assert state["due"]
    while True:
        change, _ = await stream.named("change")
        if change["receivers"].get("billing", {}).get("status") == "acknowledged":
            break
    await stream.ended()


# --- waiting


@ensure
async def test_a_post_may_wait_until_its_message_is_acknowledged(world: World) -> None:
    answer = await world.peer.ask(
        "POST", "/v1/messages?wait=acknowledged&timeout=20", {"subject": "orders.new"}
    )
    assert (200, True) == (answer.status, answer.json["final"])
    assert "acknowledged" == answer.json["receivers"]["billing"]["status"]
    nobody = await world.peer.ask("POST", "/v1/messages?wait=acknowledged", {"subject": "nobody"})
    assert (200, {}) == (nobody.status, nobody.json["receivers"])


@ensure
async def test_what_is_final_and_not_acknowledged_is_said(tmp_path: Path) -> None:
    world = World(tmp_path, limits=LIMITS)

    def reject(message: Any) -> None:
        raise Reject("not mine")

    world.handle_by(reject)
    await world.start()
    try:
        answer = await world.peer.ask(
            "POST", "/v1/messages?wait=acknowledged", {"subject": "orders.new"}
        )
        told = answer.json["receivers"]["billing"]
        assert (200, "dead", "not mine") == (answer.status, told["status"], told["reason"])
    finally:
        await world.stop()


@ensure
async def test_when_time_is_over_it_is_202_with_the_states(world: World) -> None:
    await world.node.pause_receiver("billing", True)
    for seconds in ("0", "0.1"):
        answer = await world.peer.ask(
            "POST", f"/v1/messages?wait=acknowledged&timeout={seconds}", {"subject": "orders.a"}
        )
        assert (202, False) == (answer.status, answer.json["final"])
        assert "queued" == answer.json["receivers"]["billing"]["status"]
    assert {} == world.node.parts.tracker._followers


@ensure
async def test_who_goes_before_its_message_is_stored_waits_no_longer(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.node.pause_receiver("billing", True)
    posts = world.node.parts.posts
    store, stored = posts.store, Deferred[None]()

    async def late(sender: Any, batch: Any) -> Any:
        done = await store(sender, batch)
        await stored
        return done

    monkeypatch.setattr(posts, "store", late)
    peer = await world.dial()
    path = "/v1/messages?wait=acknowledged&timeout=600"
    peer.say_request("POST", path, b'{"subject": "orders.a"}')
    while not posts._waits:
        await deferLater(reactor, 0.01, int)
    await peer.go()
    while len(world.node.parts.web._channels) > 1:
        await deferLater(reactor, 0.01, int)
    stored.callback(None)
    while posts._waits:  # until the test's time is over
        await deferLater(reactor, 0.01, int)
    assert {} == world.node.parts.tracker._followers


@ensure
async def test_who_waits_holds_no_body(world: World) -> None:
    await world.node.pause_receiver("billing", True)
    body = b'{"subject": "orders.a", "text": "%b"}' % (b"x" * 10_000)
    world.peer.say_request("POST", "/v1/messages?wait=acknowledged", body)
    while not world.node.parts.tracker._followers:
        await deferLater(reactor, 0.01, int)
    assert 0 == world.node.parts.web.held_bytes


@ensure
async def test_who_is_told_nothing_hears_that_nothing_has_ended(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "QUIET", 0.05)
    await world.node.pause_receiver("billing", True)
    posted = await world.post({"subject": "orders.a"})
    peer = await world.dial()
    peer.say_request("GET", f"/v1/messages/{posted.json['id']}/events")
    await peer.until(lambda: peer.data.count(b"3\r\n:\n\n\r\n") >= 3)
    assert b"event: state" in peer.data
    await world.node.pause_receiver("billing", False)
    await peer.until(lambda: b"event: end" in peer.data)
    await peer.until_closed()


@ensure
async def test_a_look_at_which_only_time_has_passed_is_no_event(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "QUIET", 0.05)
    peer = await world.dial()
    peer.say_request("GET", "/v1/events")
    await peer.until(lambda: b"event: state" in peer.data)
    view = world.node.parts.web_events
    node, looked = view.seen().node, view.number
    for later in range(1, 5):
        view.observed(replace_at(node, node.at + later), [], [])
    first = view.number - looked  # what was told before may be another node, or none
    view.observed(replace_at(node, node.at), [], ["one"])
    view.observed(replace_at(replace(node, connections=7), node.at), [], [])
    assert (True, first + 2) == (first <= 1, view.number - looked)
    await peer.until(lambda: peer.data.count(b"3\r\n:\n\n\r\n") >= 3)


@pytest.mark.parametrize("path", ["/v1/events", "/v1/messages/log:65536/events"])
@ensure
async def test_what_has_no_end_has_no_head_alone(world: World, path: str) -> None:
    assert 201 == (await world.post({"subject": "orders.a"})).status
    answer = await world.peer.ask("HEAD", path)
    assert (405, "GET") == (answer.status, answer.headers["allow"])
    assert 200 == (await world.peer.ask("HEAD", "/readyz")).status, "the connection goes on"


@ensure
async def test_waits_are_bounded_before_anything_is_stored(world: World) -> None:
    await world.node.pause_receiver("billing", True)
    peers = [await world.dial() for _ in range(2)]
    for peer in peers:
        peer.say_request("POST", "/v1/messages?wait=acknowledged", b'{"subject": "orders.a"}')
    while len(world.node.parts.tracker._followers) < 2:
        await deferLater(reactor, 0.01, int)
    before = world.node.parts.tail.next_number
    refused = await world.peer.ask(
        "POST", "/v1/messages?wait=acknowledged", {"subject": "orders.a"}
    )
    assert (429, "http_waits") == (refused.status, refused.json["about"])
    assert before == world.node.parts.tail.next_number
    await peers[0].go()
    await world.node.pause_receiver("billing", False)
    assert 200 == (await peers[1].answer()).status
    assert {} == world.node.parts.tracker._followers


@pytest.mark.parametrize(
    "query",
    ["wait=stored", "timeout=1", "wait=acknowledged&timeout=x", "wait=acknowledged&timeout=nan"],
)
@ensure
async def test_what_cannot_be_waited_for_is_refused(world: World, query: str) -> None:
    answer = await world.peer.ask("POST", f"/v1/messages?{query}", {"subject": "orders.a"})
    assert 400 == answer.status
    assert 1 == world.node.parts.tail.next_number


# --- XML-RPC


def call(world: World, method: str, *arguments: Any, who: str = "") -> Any:
    """Fire with the answer to a call of the standard library's client, in a thread."""
    host: Any = world.node.ports[-1].getHost()

    def calling() -> Any:
        address = f"http://{who}127.0.0.1:{host.port}/xmlrpc"
        with xmlrpc.client.ServerProxy(address, allow_none=True) as proxy:
            return getattr(proxy, method)(*arguments)

    return deferToThread(calling)


@pytest.mark.parametrize(
    ("body", "content"),
    [
        ("häl lo", "häl lo"),
        (xmlrpc.client.Binary(b"\x00\xff"), b"\x00\xff"),
        ({"id": 17, "of": [1.5, True, None]}, {"id": 17, "of": [1.5, True, None]}),
        (5, 5),
    ],
    ids=["text", "bytes", "json", "number"],
)
@ensure
async def test_the_standard_librarys_client_sends(world: World, body: Any, content: Any) -> None:
    id_ = await call(world, "send", "orders.new", body)
    (got,) = await world.until(1)
    assert (content, "orders.new") == (got.content, got.subject)
    told: Any = await call(world, "status", id_)
    assert ("orders.new", {"billing"}) == (told["subject"], set(told["receivers"]))


@ensure
async def test_it_names_receivers_and_hears_why_not(world: World) -> None:
    await call(world, "send", "else", "x", ["billing"])
    assert 1 == len(await world.until(1))
    methods: Any = await call(world, "system.listMethods")
    assert ["send", "status", "system.listMethods"] == methods
    for method, arguments, code, said in (
        ("send", ["a", "x", ["nobody"]], 2, "'nobody'"),
        ("send", ["a..b", "x"], 14, "a..b"),
        ("status", ["log:99999999"], 11, "log:99999999"),
        ("send", ["a"], -32602, "send takes (subject, body, or subject, body, names of receivers)"),
        ("status", [], -32602, "status takes (id), not 0 arguments"),
        ("send", [5, "a"], -32602, "subject is int, not text"),
        ("nothing", [], -32601, "'nothing', there are: send, status, system.listMethods"),
    ):
        with pytest.raises(xmlrpc.client.Fault) as caught:
            await call(world, method, *arguments)
        assert (code, True) == (caught.value.faultCode, said in caught.value.faultString)


LAUGHS = b"".join(
    b'<!ENTITY l%d "%b">' % (n, b"&l%d;" % (n - 1) * 10 if n else b"lol") for n in range(12)
)
CALL = b"<methodCall><methodName>send</methodName><params>%b</params></methodCall>"
STRING = b"<param><value><string>%b</string></value></param>"


@pytest.mark.parametrize(
    "body",
    [
        b"<!DOCTYPE x [" + LAUGHS + b"]>" + CALL % (STRING % b"&l11;" * 2),
        b'<!DOCTYPE x SYSTEM "file:///etc/passwd">' + CALL % (STRING % b"a" * 2),
        b'<?xml version="1.0" encoding="utf-16"?><a/>',
        ('<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "b">]>' + "<methodCall/>").encode("utf-16"),
        CALL % (b"<param><value><i4>x</i4></value></param>" * 2),
        b"<methodResponse/>",
        b"<",
        b"",
        CALL % (STRING % b"a" * 9000),
    ],
    ids=lambda body: repr(body[:40]),
)
@ensure
async def test_bombs_and_what_is_no_call_are_faults(world: World, body: bytes) -> None:
    answer = await world.peer.ask("POST", "/xmlrpc", body, {"Content-Type": "text/xml"})
    assert 200 == answer.status
    with pytest.raises(xmlrpc.client.Fault) as caught:
        xmlrpc.client.loads(answer.body)
    assert -32700 == caught.value.faultCode
    assert b"root:" not in answer.body


@pytest.mark.parametrize(
    ("begin", "end"),
    [
        (b"<array><data><value>", b"</value></data></array>"),
        (b"<struct><member><name>a</name><value>", b"</value></member></struct>"),
    ],
    ids=["arrays", "structs"],
)
@ensure
async def test_what_is_nested_too_deeply_is_a_fault(world: World, begin: bytes, end: bytes) -> None:
    deep = b"<param><value>%b</value></param>" % (begin * 2000 + b"<int>1</int>" + end * 2000)
    body = CALL % (STRING % b"orders.new" + deep)
    answer = await world.peer.ask("POST", "/xmlrpc", body, {"Content-Type": "text/xml"})
    with pytest.raises(xmlrpc.client.Fault, match="nested too deeply"):
        xmlrpc.client.loads(answer.body)


@ensure
async def test_what_no_xml_can_have_is_told_all_the_same(world: World) -> None:
    posted = await world.post({"subject": "orders.\ufffe", "text": "x"})
    states: Any = await call(world, "status", posted.json["id"])
    assert "orders.\ufffd" == states["subject"]


def test_lines_of_a_text_are_not_looked_at_one_by_one() -> None:
    told: list[str] = []

    class Told(Outline):
        def data(self, text: str) -> None:
            told.append(text)
            super().data(text)

    body = CALL % (STRING % (b"a\n&lt;" * 20_000))
    feed(body, Told())
    assert len(told) < 100


@ensure
async def test_a_user_is_known_by_its_password_there(tmp_path: Path) -> None:
    from tests.kit.house import PASSWORD

    known, _ = users(SHOP, MUTE)
    world = World(tmp_path, limits=LIMITS, users=known)
    await world.start(attach=False)
    try:
        password = PASSWORD.replace(" ", "%20")
        id_ = await call(world, "send", "orders.new", "x", who=f"shop:{password}@")
        assert id_
        with pytest.raises(xmlrpc.client.Fault) as caught:
            await call(world, "send", "orders.new", "x", who=f"mute:{password}@")
        assert 18 == caught.value.faultCode
        with pytest.raises(xmlrpc.client.ProtocolError) as refused:
            await call(world, "send", "orders.new", "x")
        assert 401 == refused.value.errcode
    finally:
        await world.stop()
