"""Logins from the page's form over real sockets: the cookie, what it is good for, and its ends."""

from __future__ import annotations

from pathlib import Path

import pytest
import pytest_twisted
from twisted.logger import LogEvent

from msgservice import Limits
from msgservice.errors import LimitReached
from msgservice.identity.passwords import ITERATIONS_MIN, PasswordRecord
from msgservice.identity.principal import Principal
from msgservice.identity.users import Users
from msgservice.node.web.logins import HEADER, Logins
from msgservice.transport.tcp.endpoints import client_endpoint
from tests.integration.test_http_listener import LIMITS, Here, Make, bearer, make, reactor, users
from tests.kit.certificates import Authority
from tests.kit.house import BOSS, MUTE, PASSWORD, SHOP
from tests.kit.http import HttpAnswer, HttpPeer

__all__ = ["make"]
pytestmark = pytest.mark.timeout(60)
ensure = pytest_twisted.ensureDeferred
SAID = {"user": "shop", "password": PASSWORD}


async def log_in(peer: HttpPeer, said: object = SAID, cookie: str = "") -> HttpAnswer:
    return await peer.ask("POST", "/v1/login", said, {"Cookie": cookie} if cookie else None)


def cookie_of(answer: HttpAnswer) -> str:
    return answer.headers["set-cookie"].partition(";")[0]


def page(cookie: str) -> dict[str, str]:
    return {"Cookie": cookie, HEADER: "1"}


async def who(peer: HttpPeer, cookie: str) -> str | int:
    answer = await peer.ask("GET", "/who/x/is", headers=page(cookie))
    return str(answer.json[1]) if answer.status == 200 else answer.status


async def logged_in(here: Here, said: object = SAID) -> tuple[HttpPeer, str]:
    peer = await here.peer()
    answer = await log_in(peer, said)
    assert answer.status == 200, answer
    return peer, cookie_of(answer)


@ensure
async def test_a_cookie_is_a_login_for_the_page_at_every_connection(make: Make) -> None:
    known, tokens = users(SHOP, MUTE)
    here = await make(users=known)
    peer = await here.peer()
    answer = await log_in(peer)
    name, _, rest = answer.headers["set-cookie"].partition("=")
    secret, *options = rest.split("; ")
    assert f"msgservice-{here.port()}" == name
    assert len(secret) == 43
    assert {"Path=/", "HttpOnly", "SameSite=Strict"} == set(options)
    assert {"user": "shop"} == answer.json
    other = await here.peer()
    for one in (peer, other, peer):
        assert "shop" == await who(one, f"x=1; {name}={secret}; y=2")
    by_token = cookie_of(await log_in(other, {"token": tokens["mute"]}))
    assert "mute" == await who(peer, by_token)
    assert "shop" == await who(peer, f"{name}={secret}")


@ensure
async def test_cookies_of_other_programs_say_what_they_like(make: Make) -> None:
    here = await make(users=users(SHOP)[0])
    peer, cookie = await logged_in(here)
    peer.say(
        b"GET /who/x/is HTTP/1.1\r\nHost: localhost\r\n%b: 1\r\n" % HEADER.encode()
        + b"Cookie: other=caf\xe9; %b\r\n\r\n" % cookie.encode()
    )
    answer = await peer.answer()
    assert (200, "shop") == (answer.status, answer.json[1])


@ensure
async def test_a_cookie_alone_is_nobody_whatever_the_connection_was_let_in_by(make: Make) -> None:
    """A page of another port is the same site: its browser says the cookie, and no header."""
    known, tokens = users(SHOP, MUTE)
    here = await make(users=known)
    peer, cookie = await logged_in(here)
    assert "shop" == await who(peer, cookie)
    secret = cookie.partition("=")[2]
    for headers in (
        {"Cookie": cookie},
        {"Cookie": cookie, "Authorization": secret},
        {HEADER: "1"},
        page(cookie.replace(f"-{here.port()}", "")),
        page(cookie[:-1] + ("A" if cookie[-1] != "A" else "B")),
        page(cookie) | {"Origin": "http://localhost:1"},
        page(cookie) | {"Sec-Fetch-Site": "same-site"},
    ):
        answer = await peer.ask("POST", "/echo", b"{}", headers)
        assert answer.status in (401, 403), headers
    assert [] == here.bodies
    other = await peer.ask("GET", "/who/x/is", headers={**page(cookie), **bearer(tokens["mute"])})
    assert "mute" == other.json[1]  # what is said comes first


@ensure
async def test_no_form_of_another_site_logs_anybody_in_or_out(make: Make) -> None:
    known, _ = users(SHOP)
    here = await make(users=known)
    peer, cookie = await logged_in(here)
    for path in ("/v1/login", "/v1/logout"):
        said = {"Cookie": cookie, "Content-Type": "text/plain"}
        assert 415 == (await peer.ask("POST", path, SAID, said)).status
        said = {"Cookie": cookie, "Origin": "http://evil.example"}
        assert 403 == (await peer.ask("POST", path, SAID, said)).status
    assert "shop" == await who(peer, cookie)


@ensure
async def test_a_login_ends_the_one_before_and_logging_out_ends_all_its_connections(
    make: Make, logged: list[LogEvent]
) -> None:
    known, _ = users(SHOP)
    here = await make(users=known)
    peer, first = await logged_in(here)
    second = cookie_of(await log_in(peer, cookie=first))
    assert first != second
    assert (401, "shop") == (await who(peer, first), await who(peer, second))
    other = await here.peer()
    reader = await here.peer()
    assert "shop" == await who(other, second)
    reader.say_request("GET", "/v1/events", headers=page(second))
    assert 403 == (await reader.answer()).status  # it may not look; the login is taken
    out = await peer.ask("POST", "/v1/logout", b"{}", {"Cookie": second})
    assert 200 == out.status
    assert "Max-Age=0" in out.headers["set-cookie"]
    await other.until_closed()
    again = await here.peer()
    assert 401 == await who(again, second)
    assert 200 == (await again.ask("POST", "/v1/logout", b"{}", {"Cookie": second})).status


@ensure
async def test_events_end_with_the_login(make: Make) -> None:
    known, _ = users(BOSS)
    here = await make(users=known)
    _, cookie = await logged_in(here, {"user": "boss", "password": PASSWORD})
    reader, peer = await here.peer(), await here.peer()
    reader.say_request("GET", "/v1/events", headers=page(cookie))
    assert 200 == (await reader.head()).status
    await reader.until(lambda: b"event: state" in reader.data)
    await peer.ask("POST", "/v1/logout", b"{}", {"Cookie": cookie})
    await reader.until_closed()


@pytest.mark.parametrize("what", ["gone", "another password", "fewer rights"])
@ensure
async def test_a_user_that_is_changed_is_logged_out(make: Make, what: str) -> None:
    known, _ = users(SHOP, MUTE)
    here = await make(users=known)
    peer, cookie = await logged_in(here)
    _, stays = await logged_in(here, {"user": "mute", "password": PASSWORD})
    assert "shop" == await who(peer, cookie)
    kept = PasswordRecord.of(PASSWORD, iterations=ITERATIONS_MIN)
    mute = known.all["mute"]
    of_shop = {
        "gone": [],
        "another password": [SHOP.user(password=kept)],
        "fewer rights": [MUTE.user(password=known.all["shop"].password)],
    }[what]
    if what == "fewer rights":
        from dataclasses import replace

        of_shop = [replace(known.all["shop"], rules=mute.rules)]
    here.node.reload_users(Users([mute, *of_shop], secret=b"s" * 32))
    await peer.until_closed()
    again = await here.peer()
    assert (401, "mute") == (await who(again, cookie), await who(again, stays))


@ensure
async def test_guesses_at_the_form_are_throttled_with_all_others(make: Make) -> None:
    known, _ = users(SHOP)
    here = await make(users=known)
    peer = await here.peer()
    for _ in range(LIMITS.login_failures):
        answer = await log_in(peer, {"user": "shop", "password": "guess"})
        assert (401, "wrong user or password") == (answer.status, answer.json["detail"])
        assert "set-cookie" not in answer.headers
    answer = await log_in(peer)
    assert (401, "too many logins failed: try again in a minute") == (
        answer.status,
        answer.json["detail"],
    )


@pytest.mark.parametrize(
    ("said", "status"),
    [
        ({}, 400),
        ({"user": "shop", "password": PASSWORD, "token": "x"}, 400),
        ({"user": "shop", "password": PASSWORD, "more": 1}, 400),
        ({"user": ["shop"]}, 400),
        ({"user": "shop"}, 401),
        ({"token": "x"}, 401),
        ({"user": "shop", "password": "x" * 5000}, 413),
    ],
    ids=str,
)
@ensure
async def test_what_is_no_login_is_refused(make: Make, said: object, status: int) -> None:
    known, _ = users(SHOP)
    here = await make(users=known)
    answer = await log_in(await here.peer(), said)
    assert status == answer.status
    assert PASSWORD.encode() not in answer.body


@ensure
async def test_nobody_logs_in_where_nobody_is_asked(make: Make) -> None:
    here = await make()
    peer = await here.peer()
    answer = await log_in(peer)
    assert (401, "no login is offered here") == (answer.status, answer.json["detail"])
    assert "" == await who(peer, f"msgservice-{here.port()}={'x' * 43}")


@ensure
async def test_over_tls_it_never_goes_without(make: Make, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    private, chain = authority.issue("localhost")
    tls = f"tls:0:interface=127.0.0.1:privateKey={private}:certificate={chain}"
    known, _ = users(SHOP)
    here = await make(users=known, web=[tls])
    where = f"tls:localhost:{here.port()}:trustRoots={authority.ca_file}"
    peer = await HttpPeer.dial_at(client_endpoint(reactor, where))
    here.peers.append(peer)
    said = (await log_in(peer)).headers["set-cookie"]
    assert said.startswith(f"__Host-msgservice-{here.port()}=")
    assert "Secure" in said.split("; ")
    assert "shop" == await who(peer, said.partition(";")[0])


# --- their bounds


class Hours:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def principal(user: str = "shop") -> Principal:
    return Principal(user=user, how="password", generation=1)


def test_a_login_ends_when_it_is_not_used_and_when_it_is_old() -> None:
    now = Hours()
    logins = Logins(now, Limits(http_login_idle=10, http_login_seconds=35))
    used, left = logins.begin(principal()), logins.begin(principal())
    for _ in range(3):
        now.now += 9
        assert logins.find(used) is not None
    assert logins.find(left) is None
    assert 1 == len(logins)
    now.now += 8  # 35 seconds old
    assert logins.find(used) is None
    assert 0 == len(logins)


def test_logins_of_one_user_and_of_all_are_bounded() -> None:
    logins = Logins(Hours(), Limits(http_logins=5, user_http_logins=3))
    own = [logins.begin(principal()) for _ in range(3)]
    assert logins.find(own[0]) is not None  # so the second is the one that is used least
    own.append(logins.begin(principal()))
    assert [True, False, True, True] == [logins.find(one) is not None for one in own]
    for user in ("a", "b"):
        logins.begin(principal(user))
    with pytest.raises(LimitReached):
        logins.begin(principal("c"))
    assert 5 == len(logins)


def test_logins_that_are_over_make_room() -> None:
    now = Hours()
    logins = Logins(now, Limits(http_logins=1, user_http_logins=1, http_login_idle=10))
    logins.begin(principal("a"))
    now.now += 10
    assert logins.find(logins.begin(principal("b"))) is not None
