"""A node that dials another logs in there, with what a private file says; and what refuses it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import pytest_twisted
from twisted.internet import reactor as installed_reactor
from twisted.internet.task import deferLater
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher

from msgservice import Limits, Node, Receiver
from msgservice.identity.passwords import PasswordRecord
from msgservice.identity.rules import Rules
from msgservice.identity.tokens import new_token
from msgservice.identity.users import User, Users
from msgservice.records import ReceiverRow
from msgservice.transport.tcp import channel
from msgservice.transport.tcp.shown import credentials_of

reactor: Any = installed_reactor
pytestmark = pytest.mark.timeout(60)
LIMITS = Limits(link_delay_min=0.02, link_delay_max=0.05, login_delay=0.05, login_failures=1000)
PASSWORD = "far too secret to be told"
RULES = Rules(send=["orders.>"], relay=True)


def written(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


class Pair:
    """An edge that passes on to a centre, which knows the user `edge`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lines: list[str] = []
        self.got: list[bytes] = []
        token, self.token = new_token("edge")
        self.users = Users(
            [User(name="edge", rules=RULES, password=PasswordRecord.of(PASSWORD, iterations=4096))],
            secret=bytes(32),
            tokens=[token],
        )
        self.centre = Node(
            reactor, folder / "centre", name="centre", listen=["tcp:0"], users=self.users,
            limits=LIMITS,
        )  # fmt: skip
        self.edge: Node | None = None

    def log(self, event: LogEvent) -> None:
        self.lines.append(repr(event))

    async def begin(self, login: Path | None, scheme: str = "tcp") -> Node:
        self.centre.startService()
        await self.centre.when_ready()
        receiver = Receiver(
            reactor, name="archive", handler=lambda message: self.got.append(bytes(message.body))
        )
        self.centre.attach(receiver, ["orders.>"])
        port = self.centre.ports[0].getHost().port  # type: ignore[attr-defined]  # of its address
        row = ReceiverRow(
            number=0, name="centre", address=f"node:{scheme}:127.0.0.1:{port}",
            patterns=("orders.>",), configured=True,
        )  # fmt: skip
        logins = {} if login is None else {"centre": login}
        self.edge = Node(
            reactor, self.folder / "edge", name="edge", receivers=[row], logins=logins,
            limits=LIMITS,
        )  # fmt: skip
        self.edge.startService()
        await self.edge.when_ready()
        return self.edge

    async def send(self, body: bytes) -> None:
        assert self.edge is not None
        await self.edge.client("shop").send("orders.new", body)

    def error(self) -> str:
        assert self.edge is not None
        outlets = self.edge.parts.dispatch.outlets.values()
        (outlet,) = [one for one in outlets if one.name == "centre"]
        return outlet.last_error or ""


async def until(condition: Callable[[], Any]) -> None:
    while not condition():
        await deferLater(reactor, 0.01)


@pytest_twisted.async_yield_fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    pair = Pair(tmp_path)
    observer = cast("ILogObserver", pair.log)
    globalLogPublisher.addObserver(observer)
    yield pair
    if pair.edge is not None:
        await pair.edge.stopService()
    await pair.centre.stopService()
    globalLogPublisher.removeObserver(observer)
    said = "\n".join(pair.lines)
    assert PASSWORD not in said
    assert pair.token not in said


@pytest_twisted.ensureDeferred
async def test_a_node_logs_in_with_a_password(pair: Pair, tmp_path: Path) -> None:
    await pair.begin(written(tmp_path / "login", f'user = "edge"\npassword = "{PASSWORD}"\n'))
    await pair.send(b"by a password")
    await until(lambda: pair.got)
    assert pair.got == [b"by a password"]


@pytest_twisted.ensureDeferred
async def test_a_node_logs_in_with_a_token(pair: Pair, tmp_path: Path) -> None:
    await pair.begin(written(tmp_path / "login", f'token = "{pair.token}"\n'))
    await pair.send(b"by a token")
    await until(lambda: pair.got)
    assert pair.got == [b"by a token"]


@pytest_twisted.ensureDeferred
async def test_a_wrong_password_says_so_and_a_new_file_needs_no_restart(
    pair: Pair, tmp_path: Path, logged_failures: list[LogEvent]
) -> None:
    login = written(tmp_path / "login", 'user = "edge"\npassword = "another"\n')
    await pair.begin(login)
    await pair.send(b"kept")
    await until(lambda: "wrong user or password" in pair.error())
    login.chmod(0o644)
    await until(lambda: "others can use it" in pair.error())
    written(login, f'user = "edge"\npassword = "{PASSWORD}"\n')
    await until(lambda: pair.got)
    assert pair.got == [b"kept"]


@pytest_twisted.ensureDeferred
async def test_without_a_login_nothing_is_passed_on(pair: Pair) -> None:
    await pair.begin(None)
    await until(pair.error)
    assert "login" in pair.error()


@pytest.mark.parametrize("secret", ["password", "token"])
@pytest_twisted.ensureDeferred
async def test_no_secret_is_said_where_others_may_read_it(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, secret: str
) -> None:
    monkeypatch.setattr(  # as to another machine without TLS
        channel,
        "credentials_of",
        lambda *args, **kw: replace(credentials_of(*args, **kw), is_private=False),
    )
    said = f'user = "edge"\npassword = "{PASSWORD}"\n'
    if secret == "token":
        said = f'token = "{pair.token}"\n'
    await pair.begin(written(tmp_path / "login", said))
    await until(pair.error)
    assert "TLS" in pair.error() or "insecure" in pair.error()
