"""Secrets are in no line of a log, in no traceback, no `repr`, and in no frame of a node's.

Everybody comes by every door, rightly and wrongly, with clients, receivers and frames by hand; some
of it fails in the middle of what has a secret in its hands. Then all that was logged, at whatever
level, as text, as JSON and as the values of each event, is searched for each secret in each form.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable, Hashable, Iterator
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor as installed_reactor
from twisted.internet.task import deferLater
from twisted.logger import (
    ILogObserver,
    LogEvent,
    eventAsJSON,
    formatEventAsClassicLogText,
    globalLogPublisher,
)
from twisted.python.failure import Failure
from zope.interface import implementer

from msgservice import Receiver, connect
from msgservice.core.frames import Auth, ErrorFrame, Hello
from msgservice.credentials import THIS_PROCESS
from msgservice.errors import BadValue, ConfigError
from msgservice.identity.client_exchange import ClientExchange, Login
from msgservice.identity.passwords import PasswordRecord
from msgservice.identity.prover import LoginProver
from msgservice.identity.server_exchange import ServerExchange
from msgservice.identity.users_file import UsersFile
from msgservice.node.seldom import Seldom
from tests.kit.house import (
    DOORS,
    EVERYBODY,
    LIMITS,
    PASSWORD,
    SHOP,
    TABLE,
    TCP,
    TLS,
    UNIX,
    House,
    address_of,
)
from tests.kit.knock import Knock, Lost

reactor: Any = installed_reactor
pytestmark = pytest.mark.timeout(120)
WRONG = "not the battery staple of a horse"
INCARNATION = "0123456789abcdef0123456789abcdef"


@implementer(ILogObserver)
class Lines:
    """Everything that is logged, in every form in which somebody may see it."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def __call__(self, event: LogEvent) -> None:
        self.said += [
            formatEventAsClassicLogText(event) or "",
            eventAsJSON(event),
            repr(event),
            *(str(value) for value in event.values()),
        ]
        failure = event.get("log_failure")
        if isinstance(failure, Failure):
            self.said += [failure.getTraceback(), failure.getTraceback(detail="verbose")]

    def found(self, secrets: dict[str, set[str]]) -> list[str]:
        """Return which secrets are somewhere, with the beginning of where."""
        return [
            f"{name}: {text[:300]}"
            for text in self.said
            for name, forms in secrets.items()
            if any(form in text for form in forms)
        ]


@pytest.fixture
def lines() -> Iterator[Lines]:
    made = Lines()
    globalLogPublisher.addObserver(made)
    yield made
    globalLogPublisher.removeObserver(made)


@pytest_twisted.async_yield_fixture
async def house(tmp_path: Any) -> AsyncIterator[House]:
    made = House(tmp_path)
    await made.start()
    yield made
    await made.stop()


def run(coroutine: Any) -> Any:
    return pytest_twisted.ensureDeferred(coroutine)


def forms_of(secret: bytes) -> set[str]:
    """The forms in which a secret may be written."""
    return {
        secret.hex(),
        base64.b64encode(secret).decode(),
        base64.urlsafe_b64encode(secret).decode().rstrip("="),
        repr(secret)[2:-1],
    }


def secrets_of(house: House) -> dict[str, set[str]]:
    record: PasswordRecord = house.users.record(SHOP.name)
    made = {
        "the password": forms_of(PASSWORD.encode()),
        "a wrong password": forms_of(WRONG.encode()),
        "an incarnation": {INCARNATION},
        "the stored key": forms_of(record.stored_key),
        "the server's key": forms_of(record.server_key),
        "the node's own secret": forms_of(house.secret),
    }
    for who in EVERYBODY:
        key = (house.folder / f"{who.name}.udpkey").read_text()
        made[f"the key of {who.name}"] = forms_of(bytes.fromhex(key)) | {key}
        random = house.tokens[who.name].split("_", 2)[2]
        made[f"the token of {who.name}"] = {random, random[:20], random[20:]}
    return made


def say_each(
    seldom: Seldom, thing: Hashable, tell: Callable[[int], None], count: int = 1, **_how: Hashable
) -> None:
    """Stand for `Seldom.say`: nothing is held back."""
    tell(count)


async def until(condition: Any) -> None:
    """Let the reactor turn until something holds; the test's own timeout is the limit."""
    while not condition():
        await deferLater(reactor, 0.01, lambda: None)


@run
async def test_a_full_run_says_no_secret(
    house: House, lines: Lines, logged_failures: list[LogEvent], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Every line of those, of which some are held back, and every reason.
    monkeypatch.setattr(Seldom, "say", say_each)
    secrets = secrets_of(house)
    heard: list[bytes] = []
    incarnations = (f"{INCARNATION}{number}" for number in itertools.count())
    # By every door, as it should be.
    for door, who in TABLE:
        knock = house.knock(door, who)
        await knock.come(f"{who.patterns[0]}.{'x' if who.names else 'a'}".replace("*", "b"))
        await knock.go()
        heard += knock.recorder.frames
    # Clients and receivers of the library, with the right login and with wrong ones.
    for kind, address in (("tcp", TCP), ("tls", TLS), ("unix", UNIX)):
        to = address_of(house, kind, address)
        options: dict[str, Any] = {"limits": LIMITS, "new_incarnation": lambda: next(incarnations)}
        client = await connect(
            reactor, to, name="shop.c", user="shop", password=PASSWORD, **options
        )
        await client.send("orders.new", b"{}")
        handled: list[Any] = []
        receiver = Receiver(reactor, name="shop.mine", handler=handled.append, limits=LIMITS)
        way = receiver.attach(to, token=house.tokens["shop"])
        receiver.startService()
        await until(lambda way=way: way.connected)
        logins: list[dict[str, Any]] = [
            {"user": "shop", "password": WRONG},
            {"user": "nobody", "password": PASSWORD},
            {"token": house.tokens["shop"][:-2] + "xx"},
        ]
        for login in logins:
            connecting = connect(reactor, to, name="shop.w", **login, **options)
            other = Receiver(reactor, name="shop.o", handler=handled.append, limits=LIMITS)
            denied = other.attach(to, subjects=["orders.>"], **login)
            other.startService()
            await until(lambda denied=denied: denied.error)
            lines.said += [str(denied.error), repr(denied), repr(other)]
            connecting.addErrback(lambda failure: lines.said.append(str(failure.value)))
            connecting.cancel()
            await other.stopService()
        lines.said += [repr(client), repr(receiver), repr(way), str(client.why())]
        await receiver.stopService()
        await client.close()
    # Frames by hand: a login in the wrong place, cut short, and not one at all.
    tcp = house.dial(address_of(house, "tcp", TCP))
    token = house.tokens["shop"].encode()
    for said in (
        [Auth(b"TOKEN\0" + token + b"x"), Hello(1, "shop", INCARNATION)],
        [Auth(b"PLAIN\0\0shop\0" + PASSWORD.encode())],
        [Auth(token)],
        [Auth(PASSWORD.encode())],
        [Auth(b"SCRAM-SHA-256\0n,,n=shop,r=" + PASSWORD.encode())],
        [Hello(1, "shop", INCARNATION), Auth(b"TOKEN\0" + token)],
    ):
        knock = Knock(tcp)
        house.knocks.append(knock)
        await knock.connect()
        knock.say(*said)
        with contextlib.suppress(Lost):
            await knock.hear(ErrorFrame)
        heard += knock.recorder.frames
        await knock.go()
    # A fault of ours in the middle of it, with the secret in its hands.
    for where, method in ((ServerExchange, "receive"), (ClientExchange, "receive")):
        with monkeypatch.context() as patch:

            def fail(self: object, data: bytes) -> None:
                held = (data, PASSWORD, house.tokens["shop"])  # what a frame may have
                raise RuntimeError(f"a fault of {len(held)} things")

            patch.setattr(where, method, fail)
            before = len(logged_failures)
            connecting = connect(
                reactor,
                address_of(house, "tcp", TCP),
                name="shop.f",
                user="shop",
                password=PASSWORD,
                **options,
            )
            await until(lambda before=before: len(logged_failures) > before)
            connecting.addErrback(lambda failure: None)
            connecting.cancel()
    assert logged_failures
    logged_failures.clear()
    assert [] == lines.found(secrets)
    assert len(lines.said) > 1000  # it was a full run
    # What a node says to others: of a login the salt and its own nonce, and no other secret.
    told = Lines()
    told.said = [repr(frame)[2:-1] for frame in heard]
    assert [] == told.found(secrets)


@run
async def test_the_repr_of_what_has_a_secret_does_not_say_it(house: House) -> None:
    secrets = secrets_of(house)
    login = Login(user="shop", password=PASSWORD)
    by_token = Login(token=house.tokens["shop"])
    exchange = ClientExchange(login, THIS_PROCESS)
    begun = exchange.begin()
    record = house.users.record("shop")
    kept = UsersFile((f"password shop {record.text()}",))
    lines = Lines()
    for one in (
        login,
        by_token,
        exchange,
        Auth(begun + PASSWORD.encode()),
        LoginProver(reactor, login),
        record,
        kept,
        house.users,
        house.users.all,
        house.users.tokens,
        [house.users.all[name] for name in house.users.all],
        house.node.parts.gate,
        [port.getHost() for port in house.node.ports],
        *house.node.parts.connections.peers,
    ):
        lines.said += [repr(one), str(one), f"{one}"]
    assert [] == lines.found(secrets)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Login(user="shop", password=PASSWORD, token="ms_x"),
        lambda: Login(password=PASSWORD),
        lambda: Login(token=PASSWORD),
        lambda: Login(user="shop", password=PASSWORD * 100),
        lambda: PasswordRecord.parse(PASSWORD),
        lambda: PasswordRecord.of(PASSWORD + "\0"),
        lambda: UsersFile((f"password shop {PASSWORD}",)),
        lambda: UsersFile((PASSWORD,)),
        lambda: UsersFile((f"token shop {PASSWORD} x never",)),
    ],
)
def test_an_error_about_a_secret_does_not_repeat_it(make: Any) -> None:
    with pytest.raises((BadValue, ConfigError)) as caught:
        make()
    failure = Failure(caught.value)
    for text in (str(caught.value), repr(caught.value), failure.getTraceback()):
        assert PASSWORD not in text


def test_all_doors_are_in_the_run() -> None:
    assert {door for door, _ in TABLE} == set(DOORS)
