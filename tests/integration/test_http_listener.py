"""The web listener over real sockets: who is let in, what is turned away, and how it is bounded."""

from __future__ import annotations

import base64
import os
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor as installed_reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.logger import LogEvent

from msgservice import Limits, Node
from msgservice.errors import BadAddress, InsecureListener
from msgservice.identity.passwords import ITERATIONS_MIN, PasswordRecord
from msgservice.identity.tokens import new_token
from msgservice.identity.users import Users
from msgservice.node.gate import CHECKS
from msgservice.node.web.answers import Answer, Ask, as_json
from msgservice.node.web.paths import PathAt
from msgservice.transport.tcp.endpoints import client_endpoint
from tests.kit.certificates import Authority
from tests.kit.house import BOSS, MUTE, PASSWORD, SHOP, Who
from tests.kit.http import HttpPeer

reactor: Any = installed_reactor
pytestmark = pytest.mark.timeout(60)
WEB = "tcp:0:interface=127.0.0.1"
LIMITS = Limits(
    hello_timeout=0.4,
    frame_timeout=0.5,
    close_timeout=0.5,
    write_timeout=0.5,
    http_idle=0.6,
    http_body_bytes=200_000,
    http_bytes=400_000,
    login_delay=0.05,
    stop_timeout=2,
)
ensure = pytest_twisted.ensureDeferred
JSON = ("application/json",)


class Here:
    """A node with a web listener, and some paths of the test's."""

    def __init__(self, folder: Path, **options: Any) -> None:
        options.setdefault("web", [WEB])
        options.setdefault("limits", LIMITS)
        self.node = Node(reactor, folder / "node", **options)
        self.peers: list[HttpPeer] = []
        self.bodies: list[bytes] = []
        self.waiting: Deferred[Answer] = Deferred()

    async def start(self) -> None:
        self.node.startService()
        await self.node.when_ready()
        self.node.parts.web.paths.add(
            PathAt(method="POST", path="/echo", answer=self._echo, sentence="", takes=JSON),
            PathAt(method="GET", path="/who/{name}/is", answer=_who, sentence=""),
            PathAt(method="GET", path="/wait", answer=self._wait, sentence=""),
            PathAt(method="GET", path="/fault", answer=_fault, sentence=""),
        )

    def _echo(self, ask: Ask) -> Answer:
        self.bodies.append(ask.body)
        return as_json(len(ask.body))

    async def _wait(self, ask: Ask) -> Answer:
        return await self.waiting

    def port(self, index: int = -1) -> int:
        host: Any = self.node.ports[index].getHost()
        return int(host.port)

    async def peer(self, where: int | str | None = None) -> HttpPeer:
        peer = await HttpPeer.dial(self.port() if where is None else where)
        self.peers.append(peer)
        return peer

    async def stop(self) -> None:
        for peer in self.peers:
            await peer.go()
        await self.node.stopService()


def _who(ask: Ask) -> Answer:
    return as_json([ask.parts["name"], ask.who.principal.user, dict(ask.query)])


def _fault(ask: Ask) -> Answer:
    raise ZeroDivisionError("a secret")


Make = Callable[..., Any]


@pytest_twisted.async_yield_fixture
async def make(tmp_path: Path) -> AsyncIterator[Make]:
    made: list[Here] = []

    async def start(**options: Any) -> Here:
        here = Here(tmp_path / str(len(made)), **options)
        made.append(here)
        await here.start()
        return here

    yield start
    for here in made:
        await here.stop()


# --- that it answers


@ensure
async def test_health_and_readiness_need_no_login_and_say_no_details(make: Make) -> None:
    here = await make()
    peer = await here.peer()
    for path, said in (("/healthz", {"status": "ok"}), ("/readyz", {"status": "ready"})):
        answer = await peer.ask("GET", path)
        assert (200, said) == (answer.status, answer.json)
        assert "application/json" == answer.headers["content-type"]
        assert "nosniff" == answer.headers["x-content-type-options"]
        assert "access-control-allow-origin" not in answer.headers
    head = await peer.ask("HEAD", "/healthz")
    assert (200, b"") == (head.status, head.body)


@ensure
async def test_a_full_log_is_degraded_and_alive(make: Make) -> None:
    here = await make()
    here.node.parts.upkeep._refusing = True
    here.node.parts.upkeep._refused_because = "no room"
    peer = await here.peer()
    assert {"status": "degraded"} == (await peer.ask("GET", "/readyz")).json
    assert 200 == (await peer.ask("GET", "/healthz")).status


@ensure
async def test_a_log_that_cannot_go_on_is_not_ready(make: Make) -> None:
    here = await make()
    here.node.parts.commits.stop()
    peer = await here.peer()
    assert 503 == (await peer.ask("GET", "/readyz")).status
    assert 200 == (await peer.ask("GET", "/healthz")).status


@ensure
async def test_paths_methods_and_names_in_paths(make: Make) -> None:
    here = await make()
    peer = await here.peer()
    found = await peer.ask("GET", "/who/a%2Fb%20%C3%A4/is?x=1&y=a%20b")
    assert ["a/b ä", "", {"x": "1", "y": "a b"}] == found.json
    nothing = await peer.ask("GET", "/who/else")
    assert 404 == nothing.status
    assert "/v1/openapi.json has all that there are" in nothing.json["detail"]
    wrong = await peer.ask("DELETE", "/echo")
    assert (405, "POST") == (wrong.status, wrong.headers["allow"])
    assert 400 == (await peer.ask("GET", "/who/%ff/is")).status
    twice = await peer.ask("GET", "/who/x/is?x=1&x=2")
    assert (400, "BadValue", 12) == (twice.status, twice.json["error"], twice.json["code"])
    assert "application/problem+json" == twice.headers["content-type"]


@ensure
async def test_requests_that_come_together_are_answered_in_their_order(make: Make) -> None:
    here = await make()
    peer = await here.peer()
    for number in range(20):
        peer.say_request("GET", f"/who/{number}/is")
    for number in range(20):
        assert str(number) == (await peer.answer()).json[0]


@ensure
async def test_a_fault_is_said_in_the_log_alone(
    make: Make, logged_failures: list[LogEvent]
) -> None:
    here = await make()
    peer = await here.peer()
    answer = await peer.ask("GET", "/fault")
    assert 500 == answer.status
    assert b"secret" not in answer.body
    (failure,) = logged_failures
    assert failure["log_failure"].check(ZeroDivisionError)
    logged_failures.clear()


@ensure
async def test_a_unix_socket_serves_it_too(make: Make, tmp_path: Path) -> None:
    path = str(tmp_path / "web.socket")
    here = await make(web=[f"unix:{path}"])
    peer = await here.peer(path)
    assert 200 == (await peer.ask("GET", "/readyz")).status
    assert [f"http+unix:{path}"] == here.node.listeners


# --- browsers of other sites


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "localhost:7480"}, 200),
        ({"Host": "127.0.0.1"}, 200),
        ({"Host": "node.example:7480"}, 200),
        ({"Host": "evil.example"}, 421),
        ({"Host": "192.0.2.7"}, 421),
        ({"Host": "localhost.evil.example"}, 421),
        ({"Origin": "http://localhost"}, 200),
        ({"Origin": "https://localhost"}, 403),
        ({"Origin": "http://localhost:81"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "none"}, 200),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({"Content-Type": "application/json; charset=utf-8"}, 200),
    ],
    ids=str,
)
@ensure
async def test_a_page_of_another_site_writes_nothing(
    make: Make, headers: dict[str, str], status: int
) -> None:
    here = await make(web_hosts=["Node.example"])
    peer = await here.peer()
    answer = await peer.ask("POST", "/echo", b"{}", headers)
    assert status == answer.status
    assert ([b"{}"] if status == 200 else []) == here.bodies
    assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize("hosts", [b"", b"Host: localhost\r\nHost: evil.example\r\n"])
@ensure
async def test_a_host_is_said_once(make: Make, hosts: bytes) -> None:
    here = await make()
    peer = await here.peer()
    peer.say(b"GET /readyz HTTP/1.1\r\n%b\r\n" % hosts)
    assert 400 == (await peer.answer()).status


@pytest.mark.parametrize("length", [b"9" * 5000, b"-1", b"+1", b"1_0", "\u0661".encode()])
@ensure
async def test_a_length_that_is_no_number_is_told(make: Make, length: bytes) -> None:
    here = await make()
    peer = await here.peer()
    peer.say(b"GET /who HTTP/1.1\r\nHost: localhost\r\nContent-Length: %b\r\n\r\n" % length)
    assert 400 == (await peer.answer()).status
    await peer.until_closed()


# --- bounds


@ensure
async def test_a_body_that_is_too_long_is_not_read(make: Make) -> None:
    here = await make()
    peer = await here.peer()
    peer.say_request("POST", "/echo", b"", {"Content-Length": str(10**9)})
    answer = await peer.answer()
    assert (413, "close") == (answer.status, answer.headers["connection"])
    await peer.until_closed()
    assert [] == here.bodies


@ensure
async def test_a_gigabyte_in_chunks_ends_where_the_limit_is(make: Make) -> None:
    here = await make()
    peer = await here.peer()
    peer.say(
        b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n40000000\r\n"
    )
    while not peer.is_closed and b"\r\n\r\n" not in peer.data:
        peer.say(b"x" * 50_000)
        assert here.node.parts.web.held_bytes <= LIMITS.http_body_bytes + 2 * 65536
        await deferLater(reactor, 0, int)
    assert 413 == (await peer.answer()).status
    await peer.until_closed()
    assert (0, []) == (here.node.parts.web.held_bytes, here.bodies)


@ensure
async def test_a_body_in_chunks_is_read_to_its_end(make: Make) -> None:
    here = await make()
    peer = await here.peer()
    peer.say(
        b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n3\r\n[1,\r\n"
    )
    peer.say(b"3\r\n2]\n\r\n0\r\n\r\n")
    assert 6 == (await peer.answer()).json
    assert [b"[1,2]\n"] == here.bodies
    assert 200 == (await peer.ask("GET", "/readyz")).status  # the connection goes on
    assert 0 == here.node.parts.web.held_bytes


@ensure
async def test_bodies_of_all_connections_have_one_limit(make: Make) -> None:
    here = await make()
    first, second, third = [await here.peer() for _ in range(3)]
    for peer in (first, second):
        peer.say_request("POST", "/echo", b"x" * 190_000, {"Content-Length": "200000"})
    await until(lambda: here.node.parts.web.held_bytes == 380_000)
    third.say_request("POST", "/echo", b"", {"Content-Length": "100000"})
    answer = await third.answer()
    assert (503, "http_bytes") == (answer.status, answer.json["about"])
    assert "retry-after" in answer.headers
    first.say(b"x" * 10_000)
    assert 200 == (await first.answer()).status
    assert 190_000 == here.node.parts.web.held_bytes
    await second.go()
    await until(lambda: here.node.parts.web.held_bytes == 0)


@pytest.mark.parametrize("in_chunks", [False, True])
@ensure
async def test_bodies_that_come_together_have_one_limit_too(make: Make, in_chunks: bool) -> None:
    here = await make()
    peers = [await here.peer() for _ in range(3)]
    length = b"Transfer-Encoding: chunked" if in_chunks else b"Content-Length: 200000"
    for peer in peers:  # all are announced while nothing is held
        peer.say(
            b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            + length
            + b"\r\n\r\n"
            + (b"30d40\r\n" if in_chunks else b"")
        )
    await until(lambda: sum(one.is_answering for one in here.node.parts.web._channels) == 3)
    for peer in peers:
        peer.say(b"x" * 190_000)
    await until(lambda: any(peer.data for peer in peers))
    (full,) = [peer for peer in peers if peer.data]
    answer = await full.answer()
    assert (503, "http_bytes") == (answer.status, answer.json["about"])
    assert here.node.parts.web.held_bytes <= LIMITS.http_bytes
    for peer in peers:
        if peer is not full:
            peer.say(b"x" * 10_000 + (b"\r\n0\r\n\r\n" if in_chunks else b""))
            assert 200 == (await peer.answer()).status


@ensure
async def test_a_body_in_chunks_of_a_byte_takes_what_it_is_long(make: Make) -> None:
    here = await make()
    peer = await here.peer()
    peer.say(
        b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n" + b"2\r\n  \r\n" * 5_000
    )
    await until(lambda: here.node.parts.web.held_bytes == 10_000)
    (channel,) = here.node.parts.web._channels
    held = vars(channel.requests[0])
    assert sum(sys.getsizeof(one) for one in held.values()) < 30_000
    assert not any(isinstance(one, list) and len(one) > 100 for one in held.values())
    peer.say(b"0\r\n\r\n")
    assert 10_000 == (await peer.answer()).json


@ensure
async def test_who_asks_much_in_a_row_and_reads_nothing_fills_no_memory(make: Make) -> None:
    here = await make()
    answered: list[int] = []
    whole = b"x" * 50_000

    def large(_: Ask) -> Answer:
        answered.append(len(whole))
        return Answer(200, whole)

    here.node.parts.web.paths.add(PathAt(method="GET", path="/large", answer=large, sentence=""))
    peer = await here.peer()
    peer.transport.pauseProducing()
    peer.say(b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n" * 1000)
    await until(lambda: bool(answered) and not here.node.parts.web._channels)  # it is cut off
    assert sum(answered) < 20_000_000, "what the kernel takes, and one more"


@ensure
async def test_all_that_was_asked_in_a_row_is_answered_as_it_is_read(make: Make) -> None:
    here = await make()
    peer = await here.peer()
    for number in range(200):
        peer.say_request("POST", "/echo", b"x" * number)
    peer.say_request("GET", "/page/page.js", headers={"Connection": "close"})
    for number in range(200):
        assert number == (await peer.answer()).json
    assert b"The page" in (await peer.answer()).body
    await peer.until_closed()


@ensure
async def test_whoever_expects_100_is_told_to_go_on_or_why_not(make: Make) -> None:
    here = await make()
    peer = await here.peer()
    peer.say_request("POST", "/echo", b"", {"Content-Length": "2", "Expect": "100-continue"})
    assert 100 == (await peer.answer()).status
    peer.say(b"{}")
    assert 200 == (await peer.answer()).status
    peer.say_request("POST", "/echo", b"", {"Content-Length": "999999", "Expect": "100-continue"})
    assert 413 == (await peer.answer()).status


@pytest.mark.parametrize("said", [b"", b"G", b"GET /readyz HTTP/1.1\r\nHost: loc"])
@ensure
async def test_a_head_that_does_not_come_ends_the_connection(make: Make, said: bytes) -> None:
    here = await make()
    peer = await here.peer()
    peer.say(said)
    if b"\r\n" in said:
        assert 408 == (await peer.answer()).status
    await peer.until_closed()


@ensure
async def test_a_head_of_a_byte_at_a_time_ends_the_connection(make: Make) -> None:
    here = await make()
    peer = await here.peer()
    for _ in range(100):
        if peer.is_closed or peer.data:
            break
        peer.say(b"X")
        await deferLater(reactor, 0.02, int)
    await peer.until_closed()


@ensure
async def test_a_body_of_a_byte_at_a_time_ends_the_connection(make: Make) -> None:
    here = await make()
    peer = await here.peer()
    peer.say_request("POST", "/echo", b"", {"Content-Length": "100000"})
    for _ in range(100):
        if peer.data:
            break
        peer.say(b"X")
        await deferLater(reactor, 0.02, int)
    assert peer.data, "as long as it came, it was waited for"
    assert 408 == (await peer.answer()).status
    await peer.until_closed()
    assert [] == here.bodies


@ensure
async def test_a_body_that_comes_on_may_take_its_time(make: Make) -> None:
    here = await make()
    peer = await here.peer()
    peer.say_request("POST", "/echo", b"", {"Content-Length": "200000"})
    for _ in range(4):  # in all longer than `frame_timeout`, each part within it
        peer.say(b"x" * 40_000)
        await deferLater(reactor, 0.2, int)
    peer.say(b"x" * 40_000)
    assert 200 == (await peer.answer()).status


@ensure
async def test_a_connection_that_asks_nothing_more_is_closed(make: Make) -> None:
    here = await make()
    peer = await here.peer()
    assert 200 == (await peer.ask("GET", "/readyz")).status
    await peer.until_closed()


@ensure
async def test_an_answer_may_take_longer_than_anything_else(make: Make) -> None:
    here = await make()
    peer = await here.peer()
    peer.say_request("GET", "/wait")
    await deferLater(reactor, 1.0, int)
    here.waiting.callback(as_json("at last"))
    assert "at last" == (await peer.answer()).json


@ensure
async def test_who_does_not_read_his_answer_is_cut_off(make: Make) -> None:
    here = await make()
    peer = await here.peer()
    peer.transport.pauseProducing()
    peer.say_request("GET", "/wait")
    await until(lambda: bool(here.node.parts.web.paths))
    here.waiting.callback(Answer(200, b"x" * 30_000_000))
    await until(lambda: not here.node.parts.web._channels)
    peer.transport.resumeProducing()
    await peer.until_closed()


@pytest.mark.parametrize(
    "head",
    [
        b"GET /readyz\r\n\r\n",
        b"GET /readyz HTTP/1.1\r\nHost localhost\r\n\r\n",
        b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n",
    ],
    ids=repr,
)
@ensure
async def test_what_is_no_request_is_answered_once_and_ends(make: Make, head: bytes) -> None:
    here = await make()
    peer = await here.peer()
    peer.say(head + b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n")
    answer = await peer.answer()
    assert (400, 400) == (answer.status, answer.json["status"])
    await peer.until_closed()
    assert b"" == peer.data


@pytest.mark.parametrize(
    "said", [b"\0\0\0\x2a\x93\xc0", b"\x16\x03\x01\x02\0\x01"], ids=["frame", "tls"]
)
@ensure
async def test_what_is_no_text_is_answered_before_a_line_could_end(make: Make, said: bytes) -> None:
    here = await make(limits=replace(LIMITS, hello_timeout=60.0))
    peer = await here.peer()
    peer.say(said)
    assert (await peer.answer()).status == 400
    await peer.until_closed()


@ensure
async def test_web_connections_count_with_all_others(make: Make) -> None:
    limits = Limits(connections=2, hello_timeout=5, stop_timeout=2)
    here = await make(limits=limits, listen=[WEB])
    first, second = await here.peer(), await here.peer()
    assert 200 == (await first.ask("GET", "/who/x/is")).status
    assert 200 == (await second.ask("GET", "/who/x/is")).status
    third = await here.peer()
    await third.until_closed()
    assert 2 == here.node.transports.tcp.accepted.open


# --- stopping


@ensure
async def test_a_stop_answers_what_is_asked_and_takes_nothing_more(make: Make) -> None:
    here = await make()
    idle, busy = await here.peer(), await here.peer()
    assert 200 == (await idle.ask("GET", "/readyz")).status
    busy.say_request("GET", "/wait")
    await until(lambda: any(c.requests for c in here.node.parts.web._channels))
    stopping = here.node.stopService()
    await idle.until_closed()
    here.waiting.callback(as_json("done"))
    answer = await busy.answer()
    assert (200, "close") == (answer.status, answer.headers["connection"])
    await busy.until_closed()
    await stopping


# --- who asks


def users(*whom: Who, secret: bytes = b"s" * 32) -> tuple[Users, dict[str, str]]:
    record = PasswordRecord.of(PASSWORD, iterations=ITERATIONS_MIN)
    tokens, secrets = [], {}
    for who in whom:
        token, secrets[who.name] = new_token(who.name)
        tokens.append(token)
    made = Users(
        [
            who.user(
                password=record,
                certificates=(f"dns:{who.name}.users",),
                uids=(os.getuid(),) if who is SHOP else (),
            )
            for who in whom
        ],
        secret=secret,
        tokens=tokens,
    )
    return made, secrets


def basic(user: str, password: str = PASSWORD) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@ensure
async def test_a_user_is_known_by_password_and_by_token(make: Make) -> None:
    known, tokens = users(SHOP, MUTE)
    here = await make(users=known)
    peer = await here.peer()
    for headers, user in (
        (basic("shop"), "shop"),
        (bearer(tokens["mute"]), "mute"),
        (basic("mute"), "mute"),
        (bearer(tokens["shop"]), "shop"),
    ):
        assert user == (await peer.ask("GET", "/who/x/is", headers=headers)).json[1]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer ms_aaaaaaaaaaaa_" + "x" * 43},
        {"Authorization": "Bearer "},
        {"Authorization": "Digest x"},
        {"Authorization": "Basic !!!"},
        {"Authorization": "Basic c2hvcA=="},
        {"Authorization": "Bearer " + "x" * 5000},
        basic("shop", "guessed"),
        basic("nobody"),
    ],
    ids=str,
)
@ensure
async def test_who_is_nobody_learns_nothing(make: Make, headers: dict[str, str]) -> None:
    known, _ = users(SHOP)
    here = await make(users=known)
    peer = await here.peer()
    answer = await peer.ask("POST", "/echo", b"{}", headers=headers)
    assert (401, "NotAuthenticated") == (answer.status, answer.json["error"])
    assert "www-authenticate" in answer.headers
    assert [] == here.bodies
    assert 200 == (await peer.ask("GET", "/readyz")).status  # which is open to all


@ensure
async def test_a_wrong_password_ends_the_login_of_its_connection(make: Make) -> None:
    known, _ = users(SHOP)
    here = await make(users=known)
    peer = await here.peer()
    assert 200 == (await peer.ask("GET", "/who/x/is", headers=basic("shop"))).status
    assert 401 == (await peer.ask("GET", "/who/x/is", headers=basic("shop", "no"))).status
    assert 401 == (await peer.ask("GET", "/who/x/is")).status


@ensure
async def test_a_long_body_of_nobody_is_not_read(make: Make) -> None:
    known, _ = users(SHOP)
    here = await make(users=known)
    for headers in ({}, basic("shop", "guessed")):
        peer = await here.peer()
        peer.say_request("POST", "/echo", b"x" * 150_000, headers)
        assert 401 == (await peer.answer()).status
        await peer.until_closed()
    assert ([], 0) == (here.bodies, here.node.parts.web.held_bytes)


@ensure
async def test_a_body_that_comes_before_the_password_was_compared_is_there(make: Make) -> None:
    known, _ = users(SHOP)
    here = await make(users=known)
    peer = await here.peer()
    for size in (2, 150_000):
        assert size == (await peer.ask("POST", "/echo", b"x" * size, headers=basic("shop"))).json


@ensure
async def test_guessing_is_throttled(make: Make) -> None:
    known, _ = users(SHOP)
    here = await make(users=known)
    peer = await here.peer()
    for _ in range(LIMITS.login_failures):
        await peer.ask("GET", "/who/x/is", headers=basic("shop", "guess"))
    answer = await peer.ask("GET", "/who/x/is", headers=basic("shop"))
    assert (401, "too many logins failed: try again in a minute") == (
        answer.status,
        answer.json["detail"],
    )


@ensure
async def test_guesses_that_come_at_once_are_throttled_too(make: Make) -> None:
    known, _ = users(SHOP)
    here = await make(users=known)
    peers = [await here.peer() for _ in range(40)]
    for peer in peers:
        peer.say_request("GET", "/who/x/is", headers=basic("shop", "guess"))
    said = [(await peer.answer()).json["detail"] for peer in peers]
    looked_at = said.count("wrong user or password")
    assert LIMITS.login_failures <= looked_at <= LIMITS.login_failures + CHECKS
    assert len(said) - looked_at == said.count("too many logins failed: try again in a minute")


@ensure
async def test_who_is_gone_is_out_at_once(make: Make) -> None:
    known, tokens = users(SHOP, MUTE)
    here = await make(users=known)
    gone, stays = await here.peer(), await here.peer()
    for peer, name in ((gone, "shop"), (stays, "mute")):
        assert 200 == (await peer.ask("GET", "/who/x/is", headers=bearer(tokens[name]))).status
    fewer = Users([known.all["mute"]], secret=b"s" * 32, tokens=known.tokens)
    here.node.reload_users(fewer)
    await gone.until_closed()
    assert 200 == (await stays.ask("GET", "/who/x/is", headers=bearer(tokens["mute"]))).status
    again = await here.peer()
    assert 401 == (await again.ask("GET", "/who/x/is", headers=bearer(tokens["shop"]))).status


@ensure
async def test_a_certificate_and_a_user_id_are_logins(make: Make, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    private, chain = authority.issue("localhost")
    socket = tmp_path / "web.socket"
    tls = (
        f"tls:0:interface=127.0.0.1:privateKey={private}:certificate={chain}"
        f":trustRoots={authority.ca_file}"
    )
    known, _ = users(SHOP, BOSS)
    here = await make(users=known, web=[tls, f"unix:{socket}"])
    key, certificate = authority.issue("boss.users")
    endpoint = client_endpoint(
        reactor,
        f"tls:localhost:{here.port(0)}:trustRoots={authority.ca_file}:privateKey={key}"
        f":certificate={certificate}",
    )
    peer = await HttpPeer.dial_at(endpoint)
    here.peers.append(peer)
    origin = {"Origin": "https://localhost"}
    assert "boss" == (await peer.ask("GET", "/who/x/is", headers=origin)).json[1]
    peer = await here.peer(str(socket))
    assert "shop" == (await peer.ask("GET", "/who/x/is")).json[1]


@ensure
async def test_a_listener_without_login_is_its_user(make: Make) -> None:
    known, _ = users(SHOP)
    here = await make(users=known, without_login={WEB: "shop"})
    peer = await here.peer()
    assert "shop" == (await peer.ask("GET", "/who/x/is")).json[1]


def test_no_name_of_a_user_is_that_of_another_users_messages() -> None:
    known, _ = users(BOSS, Who("http"))
    assert not known.may_be_called("boss", "http.shop")  # who may have any name
    assert not known.may_be_called("http", "http.shop")
    assert known.may_be_called("http", "http")


@pytest.mark.parametrize(
    ("address", "error"),
    [
        ("tcp:0:interface=", InsecureListener),
        ("udp:0:interface=127.0.0.1", BadAddress),
        ("tcp:x", BadAddress),
    ],
)
@ensure
async def test_where_it_may_not_listen(tmp_path: Path, address: str, error: type) -> None:
    failed: list[Exception] = []
    node = Node(reactor, tmp_path / "n", web=[address], limits=LIMITS, failed=failed.append)
    node.startService()
    with pytest.raises(error):
        await node.when_ready()
    await node.stopService()


async def until(is_so: Callable[[], bool]) -> None:
    """Return when something lasting is so."""
    while not is_so():
        await deferLater(reactor, 0.01, int)
