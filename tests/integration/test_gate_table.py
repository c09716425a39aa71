"""Who may do what at which door: the whole table, each cell asked over a real door.

Verbs x subjects and names x doors x users. What must be so is computed here from the users' rules
by another way than the product's: patterns as regular expressions, and for `receive` by looking at
each subject of a small world. The peers say frames by hand (`tests/kit/knock.py`), so what is seen
is what the node answers, not what a client makes of it.
"""

from __future__ import annotations

import base64
import itertools
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_twisted

from msgservice.administration import OPERATIONS
from msgservice.core.frames import Ack, ErrorFrame, Hello, Nack
from msgservice.errors import Forbidden, NotAllowed, NotAuthenticated, UnknownReceiver
from msgservice.identity.client_exchange import Login
from msgservice.node.web.operations import place_of
from msgservice.records import Origin
from msgservice.transport.tcp.endpoints import client_endpoint
from tests.kit.house import (
    EVERYBODY,
    NOBODY,
    PASSWORD,
    ROWS,
    TABLE,
    TCP,
    TLS,
    UNIX,
    House,
    Who,
    address_of,
    dialled_name,
    reactor,
)
from tests.kit.http import HttpPeer
from tests.kit.knock import Knock

pytestmark = pytest.mark.timeout(120)

SUBJECTS = [
    "orders",
    "orders.new",
    "orders.eu.new",
    "ordersx.new",
    "stock.a.count",
    "stock.a.b.count",
    "stock.count",
    "bills.new",
    "$node.info",  # nobody's to send on
]
# billing and audit are there, nobody is not.
RECEIVERS = ["billing", "audit", "till.one", "till.one.two", "nobody"]
PATTERNS = [
    "orders.new",
    "orders.*",
    "orders.>",
    "orders.*.>",
    "*.new",
    "stock.*.count",
    "*.*",
    ">",
]
REQUESTS = [f"$node.{operation.name}" for operation in OPERATIONS]
OWN = {f"$node.{operation.name}" for operation in OPERATIONS if operation.own}


# Names that a peer may say it has, beside those of `ROWS`.
NAMES = ["shop", "shop.a", "shopper", "mute", "boss.x", "wide", "w.x", "w.x.y"]


# --- what must be so


def matches(pattern: str, name: str) -> bool:
    """Whether a rule's pattern allows a name: as the page says it, in other words."""
    if name.startswith("$") and not pattern.startswith("$"):
        return False
    tokens = [
        {"*": "[^.]+", ">": ".+"}.get(token, re.escape(token)) for token in pattern.split(".")
    ]
    return re.fullmatch(r"\.".join(tokens), name) is not None


WORDS = ["orders", "stock", "new", "count", "x"]
WORLD = [".".join(words) for n in (1, 2, 3, 4) for words in itertools.product(WORDS, repeat=n)]


def any_matches(patterns: list[str], name: str) -> bool:
    return any(matches(pattern, name) for pattern in patterns)


def all_allowed(patterns: list[str], asked: str) -> bool:
    """Whether one of these patterns has all subjects of the world that what is asked has."""
    wanted = [subject for subject in WORLD if matches(asked, subject)]
    return any(all(matches(pattern, subject) for subject in wanted) for pattern in patterns)


# --- the doors


@pytest_twisted.async_yield_fixture(scope="module")
async def house(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[House]:
    made = House(tmp_path_factory.mktemp("house"))
    await made.start()
    yield made
    await made.stop()


def run(coroutine: Any) -> Any:
    return pytest_twisted.ensureDeferred(coroutine)


def each(door_and_user: Any) -> Any:
    return pytest.mark.parametrize(
        ("door", "who"), TABLE, ids=[f"{door}-{who.name}" for door, who in TABLE]
    )(door_and_user)


def called(who: Who, text: str) -> str:
    """Return a name that the user's sender or receiver may have, with this text in it."""
    pattern = next(pattern for pattern in who.patterns if pattern[-1] in "*>")
    return pattern[:-1] + re.sub(r"\W", "", text)


# --- the table


@each
@run
async def test_the_cells_of_send_to_origin_and_request(house: House, door: str, who: Who) -> None:
    knock = house.knock(door, who)
    assert isinstance(await knock.come(called(who, "sender")), Hello)
    assert [] == await wrong_cells(knock, who)
    await knock.go()


@pytest.mark.parametrize("who", [*EVERYBODY, NOBODY], ids=lambda who: who.name or "nobody")
@run
async def test_a_receiver_that_is_dialled_may_what_its_user_may(house: House, who: Who) -> None:
    """The node has dialled it, so it has no login: it is whose the receiver is."""
    knock = house.knock_of_dialled(who)
    assert isinstance(await knock.come(dialled_name(who), again=True), Hello)
    assert [] == await wrong_cells(knock, who)
    await knock.go()


async def wrong_cells(knock: Knock, who: Who) -> list[str]:
    """Return the cells of one peer's verbs that are not as they must be."""
    wrong: list[str] = []

    def cell(verb: str, what: str, expected: bool, answer: object, code: int | None) -> None:
        allowed = isinstance(answer, Ack)
        is_right = allowed == expected and (allowed or code in (None, getattr(answer, "code", 0)))
        if not is_right:
            wrong.append(f"{verb} {what}: {answer}, not {expected}")

    for subject in SUBJECTS:
        expected = any_matches(who.send, subject) and not subject.startswith("$")
        code = None if subject.startswith("$") else Forbidden.refusal_code
        cell("send", subject, expected, await knock.send(subject), code)
    allowed = next((s for s in SUBJECTS if any_matches(who.send, s)), "orders.new")
    for name in RECEIVERS:
        is_there = name in ROWS
        expected = any_matches(who.send, allowed) and any_matches(who.to, name) and is_there
        code = UnknownReceiver.refusal_code if any_matches(who.send, allowed) else None
        answer = await knock.send(allowed, to=(name,))
        cell("to", name, expected, answer, code)
        if isinstance(answer, Nack) and code is not None:
            assert f"unknown receiver {name!r}" == answer.reason  # forbidden, or not there
    origin = Origin("another", 7, "0" * 16, ())
    # Whatever its user may: this peer has not said that it is a node.
    cell("origin", allowed, False, await knock.send(allowed, origin=origin), None)
    for subject in REQUESTS:
        ok, code, _ = await knock.ask(subject, b"{}")
        expected = any_matches(who.request, subject) or subject in OWN
        if (code != Forbidden.refusal_code) != expected:
            wrong.append(f"request {subject}: {ok}, {code}, not {expected}")
    return wrong


@each
@run
async def test_the_cells_of_relay(house: House, door: str, who: Who) -> None:
    """A node's HELLO is taken where the user has `relay`; `send` bounds what it passes on."""
    knock = house.knock(door, who)
    node_log = f"{TABLE.index((door, who)):016x}"
    answer = await knock.come(called(who, "node"), node_log=node_log)
    if not who.relay:
        assert isinstance(answer, ErrorFrame)
        assert NotAllowed.wire_code == answer.code
        await knock.go()
        return
    assert isinstance(answer, Hello)
    wrong: list[str] = []
    for number, subject in enumerate(SUBJECTS):
        origin = Origin("another", number + 1, "0" * 16, (node_log,))
        handed_in = await knock.send(subject, origin=origin)
        expected = any_matches(who.send, subject) and not subject.startswith("$")
        is_right = isinstance(handed_in, Ack) == expected
        if isinstance(handed_in, Nack) and not subject.startswith("$"):
            is_right = is_right and handed_in.code == Forbidden.refusal_code
        if not is_right:
            wrong.append(f"relay {subject}: {handed_in}, not {expected}")
    forged = Origin("another", 99, "0" * 16, ("f" * 16,))  # by way of a log that is not its own
    subject = next((s for s in SUBJECTS if any_matches(who.send, s)), "orders.new")
    if isinstance(await knock.send(subject, origin=forged), Ack):
        wrong.append("an origin that does not end with the node's own log")
    await knock.go()
    assert [] == wrong


@pytest.mark.parametrize("door", ["tcp by password", "tls by certificate"])
@run
async def test_who_is_nobody_relays_nothing(house: House, door: str) -> None:
    knock = house.knock(door, None)
    answer = await knock.come("shop", node_log="e" * 16)
    await knock.go()
    assert isinstance(answer, ErrorFrame)
    assert NotAuthenticated.wire_code == answer.code


WEB = ["http by password", "http by token", "https by certificate"]


@pytest.mark.parametrize("door", WEB)
@pytest.mark.parametrize("who", EVERYBODY, ids=lambda who: who.name)
@run
async def test_the_cells_over_http(house: House, door: str, who: Who) -> None:
    """There are no names and no receivers there: what is sent is of the user's own sender."""
    headers: dict[str, str] = {}
    address = f"tcp:127.0.0.1:{house.port('http')}"
    if door == "http by password":
        said = base64.b64encode(f"{who.name}:{PASSWORD}".encode()).decode()
        headers = {"Authorization": f"Basic {said}"}
    elif door == "http by token":
        headers = {"Authorization": f"Bearer {house.tokens[who.name]}"}
    else:
        key, chain = house.authority.issue(f"{who.name}.users")
        address = f"{TLS.format(port=house.port('https'), ca=house.authority.ca_file)}"
        address += f":privateKey={key}:certificate={chain}"
    peer = await HttpPeer.dial_at(client_endpoint(reactor, address))
    wrong: list[str] = []
    for subject in SUBJECTS:
        answer = await peer.ask("POST", "/v1/messages", {"subject": subject}, headers)
        expected = any_matches(who.send, subject) and not subject.startswith("$")
        if answer.status != (201 if expected else 422 if subject[0] == "$" else 403):
            wrong.append(f"send {subject}: {answer.status}, not {expected}")
    allowed = next((s for s in SUBJECTS if any_matches(who.send, s)), "orders.new")
    for name in RECEIVERS:
        message = {"subject": allowed, "to": [name]}
        answer = await peer.ask("POST", "/v1/messages", message, headers)
        may_send, may_name = any_matches(who.send, allowed), any_matches(who.to, name)
        status = 403 if not may_send else 201 if may_name and name in ROWS else 422
        if answer.status != status:
            wrong.append(f"to {name}: {answer.status}, not {status}")
    for operation in OPERATIONS:
        method, path = place_of(operation)
        path = re.sub(r"\{position\}", "1", re.sub(r"\{(name|receiver|id|subject)\}", "none", path))
        body = b"{}" if method in ("POST", "PATCH") else None
        answer = await peer.ask(method, path, body, headers)
        expected = any_matches(who.request, operation.right) or operation.own
        if (answer.status != 403) != expected:
            wrong.append(f"request {operation.name}: {answer.status}, not {expected}")
    await peer.go()
    assert [] == wrong


@each
@run
async def test_the_cells_of_receive(house: House, door: str, who: Who) -> None:
    wrong: list[str] = []
    for number, asked in enumerate(PATTERNS):
        knock = house.knock(door, who)
        answer = await knock.come(called(who, f"{who.name}{door}{number}"), [asked])
        await knock.go()
        expected = all_allowed(who.receive, asked)
        if isinstance(answer, Hello) != expected or not right_error(answer):
            wrong.append(f"receive {asked}: {answer}, not {expected}")
    assert [] == wrong


def right_error(answer: Hello | ErrorFrame) -> bool:
    return isinstance(answer, Hello) or answer.code == NotAllowed.wire_code


@each
@run
async def test_the_cells_of_senders_and_receivers_names(house: House, door: str, who: Who) -> None:
    wrong: list[str] = []
    for name in [*NAMES, *ROWS]:
        is_own = any_matches(who.patterns, name)
        knock = house.knock(door, who)
        answer = await knock.come(name)
        await knock.go()
        if isinstance(answer, Hello) != is_own or not right_error(answer):
            wrong.append(f"sender {name}: {answer}, not {is_own}")
    for name, (owner, pattern) in ROWS.items():
        expected = any_matches(who.patterns, name) and owner == who.name
        knock = house.knock(door, who)
        answer = await knock.come(name, again=True)
        await knock.go()
        if isinstance(answer, Hello) != expected or not right_error(answer):
            wrong.append(f"receiver {name} of {owner!r}, {pattern}: {answer}, not {expected}")
        if isinstance(answer, ErrorFrame):  # whether there is one, and whose it is, is not said
            assert f"user {who.name!r} may not be called {name!r}" == answer.reason
    assert [] == wrong


# --- who is nobody


@pytest.mark.parametrize("kind", ["http", "https"])
@run
async def test_who_is_nobody_gets_nothing_over_http(house: House, kind: str) -> None:
    address = f"tcp:127.0.0.1:{house.port('http')}"
    if kind == "https":
        key, chain = house.authority.issue("stranger.users")
        address = f"{TLS.format(port=house.port('https'), ca=house.authority.ca_file)}"
        address += f":privateKey={key}:certificate={chain}"
    peer = await HttpPeer.dial_at(client_endpoint(reactor, address))
    for path in house.node.parts.web.paths:
        asked = re.sub(r"\{\w+\}", "1", path.path)
        headers = {"Content-Type": path.takes[0]} if path.takes else {}
        answer = await peer.ask(path.method, asked, b"{}" if path.takes else None, headers)
        opened = 400 if asked == "/v1/login" else 200  # nobody logs in with nothing
        assert (path.method, asked, opened if path.is_open else 401) == (
            path.method,
            asked,
            answer.status,
        )
    await peer.go()


STRANGERS = ["tcp by password", "tls by password", "tls by certificate"]


@pytest.mark.parametrize("door", STRANGERS)
@run
async def test_who_is_nobody_gets_no_further_than_hello(house: House, door: str) -> None:
    receivers = [row.name for row in house.node.parts.directory]
    for name in ["shop", "audit", "nobody", "boss"]:
        for receive in (None, ["orders.>"]):
            knock = house.knock(door, None)
            answer = await knock.come(name, receive)
            await knock.go()
            assert isinstance(answer, ErrorFrame)
            assert NotAuthenticated.wire_code == answer.code
            assert "this node asks for a login" == answer.reason
    assert receivers == [row.name for row in house.node.parts.directory]


@pytest.mark.parametrize("kind", ["tcp", "tls", "unix"])
@pytest.mark.parametrize("name", ["shop", "nobody"])
@run
async def test_a_wrong_password_is_the_same_for_who_is_there_and_who_is_not(
    house: House, kind: str, name: str
) -> None:
    address = address_of(house, kind, {"tcp": TCP, "tls": TLS, "unix": UNIX}[kind])
    knock = Knock(house.dial(address), Login(user=name, password="guessed"))
    house.knocks.append(knock)
    answer = await knock.come(name)
    assert isinstance(answer, ErrorFrame)
    assert (NotAuthenticated.wire_code, "wrong user or password") == (answer.code, answer.reason)
