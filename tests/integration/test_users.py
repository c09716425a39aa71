"""A node with users on real sockets: each way in, what it opens, and how that is taken back."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.task import deferLater

from msgservice import Client, Limits, Node, Receiver, connect
from msgservice.errors import Forbidden, RequestFailed, UnknownReceiver
from msgservice.identity.passwords import ITERATIONS_MIN, PasswordRecord
from msgservice.identity.rules import Rules
from msgservice.identity.tokens import new_token
from msgservice.identity.users import User, Users
from tests.integration.command import Command
from tests.integration.daemon import running
from tests.kit.certificates import Authority
from tests.kit.passes import users_of
from tests.unit.test_udp_keys import ONE, line, write

pytestmark = pytest.mark.timeout(120)
LIMITS = Limits(
    link_delay_min=0.02, link_delay_max=0.1, stop_timeout=5, login_delay=0.02, login_failures=1000
)
SHOP = User(
    name="shop",
    password=PasswordRecord.of("correct horse", iterations=ITERATIONS_MIN),
    certificates=("dns:shop.example.org",),
    uids=(os.getuid(),),
    rules=Rules(send=["orders.>"], to=["billing"]),
)
BILLING = User(
    name="billing",
    password=PasswordRecord.of("battery staple", iterations=ITERATIONS_MIN),
    rules=Rules(receive=["orders.>"]),
)


def run(coroutine: Any) -> Any:
    return pytest_twisted.ensureDeferred(coroutine)


class Site:
    """A node with a listener of each kind, and who dials it."""

    def __init__(self, reactor: Any, folder: Path) -> None:
        self.reactor = reactor
        self.folder = folder
        self.authority = Authority(folder)
        self.authority.issue("shop.example.org")
        self.authority.issue("other.example.org")
        write(folder / "keys", line(1, "shop", ONE))
        write(folder / "own.key", ONE.hex())
        self.closing: list[Any] = []

    async def start(self, users: Users) -> None:
        tls = self.authority.listener()
        self.node = Node(
            self.reactor,
            self.folder / "node",
            listen=[
                "tcp:0",
                tls,
                f"{tls}:trustRoots={self.authority.ca_file}",
                f"unix:{self.folder}/node.sock",
                f"udp:0:keys={self.folder}/keys",
            ],
            users=users,
            limits=LIMITS,
            failed=lambda error: pytest.fail(str(error)),
        )
        self.node.startService()
        await self.node.when_ready()
        ports = [getattr(port.getHost(), "port", 0) for port in self.node.ports]
        folder = self.folder
        trusting = f"trustRoots={self.authority.ca_file}"
        shown = "certificate={0}/{1}.crt:privateKey={0}/{1}.key"
        self.addresses = {
            "tcp": f"tcp:127.0.0.1:{ports[0]}",
            "tls": f"tls:localhost:{ports[1]}:{trusting}",
            "unix": f"unix:{folder}/node.sock",
            "udp": f"udp:127.0.0.1:{ports[4]}:key={folder}/own.key:keyId=1",
            **{
                who: f"tls:localhost:{ports[2]}:{trusting}:"
                + shown.format(folder, f"{who}.example.org")
                for who in ("shop", "other")
            },
        }

    async def client(self, by: str, name: str = "shop", **login: Any) -> Client:
        opening = connect(self.reactor, self.addresses[by], name=name, limits=LIMITS, **login)
        client = await opening
        self.closing.append(client.close)
        return client

    async def until(self, condition: Any) -> None:
        while not condition():
            await deferLater(self.reactor, 0.01)

    async def stop(self) -> None:
        for close in reversed(self.closing):
            await close()
        await self.node.stopService()


@pytest_twisted.async_yield_fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    from twisted.internet import reactor

    made = Site(reactor, tmp_path)
    await made.start(users_of(SHOP, BILLING))
    yield made
    await made.stop()


WAYS: dict[str, tuple[str, dict[str, Any], str]] = {
    "password here": ("tcp", {"user": "shop", "password": "correct horse"}, "password"),
    "password over TLS": ("tls", {"user": "shop", "password": "correct horse"}, "password"),
    "certificate": ("shop", {}, "certificate dns:shop.example.org"),
    "Unix": ("unix", {}, f"unix {os.getuid()}"),
    "UDP": ("udp", {}, "udp 1"),
}


@pytest.mark.parametrize("way", WAYS, ids=str)
@run
async def test_each_way_in_makes_its_user_with_its_rights(site: Site, way: str) -> None:
    by, login, how = WAYS[way]
    client = await site.client(by, **login)
    told = await client.request("$node.whoami", {})
    assert ("shop", how) == (told["user"], told["how"])
    assert (await client.send("orders.new", b"one")).position
    with pytest.raises(Forbidden):
        await client.send("bills.new", b"two")
    with pytest.raises(UnknownReceiver):
        await client.send("orders.new", b"three", to=["audit"])
    with pytest.raises(RequestFailed) as refused:
        await client.request("$node.receivers.list", {})
    assert Forbidden.refusal_code == refused.value.code


@pytest.mark.parametrize(
    ("by", "name", "login", "reason"),
    [
        ("tcp", "shop", {}, "this node asks for a login"),
        ("tls", "shop", {}, "this node asks for a login"),
        ("other", "shop", {}, "this node asks for a login"),
        ("tcp", "shop", {"user": "shop", "password": "wrong horse"}, "wrong user or password"),
        ("tls", "shop", {"user": "nobody", "password": "wrong horse"}, "wrong user or password"),
        ("unix", "billing", {}, "user 'shop' may not be called 'billing'"),
        ("udp", "billing", {}, "user 'shop' may not be called 'billing'"),
    ],
)
@run
async def test_who_is_not_let_in_is_told_why_and_keeps_what_it_has(
    site: Site, by: str, name: str, login: dict[str, Any], reason: str
) -> None:
    opening = connect(
        site.reactor,
        site.addresses[by],
        name=name,
        limits=LIMITS,
        outbox=site.folder / "outbox.db",
        **login,
    )
    client = await opening
    site.closing.append(client.close)
    receipt = await client.send("orders.new", b"one")
    await site.until(lambda: reason in (client.why().error or ""))
    accepted = receipt.accepted
    accepted.addErrback(lambda closed: None)
    assert not accepted.called
    log = await site.node.log.accounts()
    assert [] == log


@run
async def test_a_receiver_gets_what_its_user_may_and_is_its_own(site: Site) -> None:
    handled: list[bytes] = []
    login: dict[str, Any] = {"user": "billing", "password": "battery staple"}
    receiver = Receiver(
        site.reactor, name="billing", handler=lambda m: handled.append(m.body), limits=LIMITS
    )
    site.closing.append(receiver.stopService)
    receiver.attach(site.addresses["tls"], subjects=["orders.>"], **login)
    await receiver.when_connected()
    client = await site.client("tcp", user="shop", password="correct horse")
    receipt = await client.send("orders.new", b"one")
    await receipt.acknowledged("billing")
    assert [b"one"] == handled
    greedy = Receiver(site.reactor, name="billing.all", handler=print, limits=LIMITS)
    site.closing.append(greedy.stopService)
    attachment = greedy.attach(site.addresses["tcp"], subjects=[">"], **login)
    await site.until(lambda: attachment.error)
    assert "may not receive '>'" in attachment.error


@run
async def test_a_password_that_is_changed_ends_the_session_and_the_new_one_goes_on(
    site: Site,
) -> None:
    client = await site.client("tls", user="shop", password="correct horse")
    await client.send("orders.new", b"one")
    other = PasswordRecord.of("another horse", iterations=ITERATIONS_MIN)
    site.node.reload_users(users_of(replace(SHOP, password=other), BILLING))
    await site.until(lambda: "wrong user or password" in (client.why().error or ""))
    held = client.send("orders.new", b"two")
    site.node.reload_users(users_of(SHOP, BILLING))
    assert (await held).position


@run
async def test_a_token_that_is_revoked_ends_its_session_and_no_other(site: Site) -> None:
    token, secret = new_token("shop", expires=None)
    site.node.reload_users(users_of(SHOP, BILLING, tokens=[token]))
    by_token = await site.client("tls", name="shop.a", token=secret)
    by_password = await site.client("tls", name="shop.b", user="shop", password="correct horse")
    site.node.reload_users(users_of(SHOP, BILLING))
    await site.until(lambda: "token is unknown" in (by_token.why().error or ""))
    assert (await by_password.send("orders.new", b"one")).position
    assert by_password.why().error is None


# --- a node of its configuration, and the command line


CONFIGURATION = """
[node]
users = "users"

[[listen]]
address = "unix:node.sock"

[[listen]]
address = "tcp:0"
login = "none"
user = "shop"

[[user]]
name = "ops"
uid = {uid}
names = ["ops", "msgservice-cli"]
request = ["$node.>"]

[[user]]
name = "shop"
names = ["shop", "msgservice-cli"]
send = ["{sends}"]
"""


def test_a_configured_node_is_administered_by_who_may_and_reads_its_users_anew(
    tmp_path: Path,
) -> None:
    file = tmp_path / "node.toml"
    file.write_text(CONFIGURATION.format(uid=os.getuid(), sends="orders.>"))
    write(tmp_path / "users", "")
    command = ("twist", "--log-format=text", "msgservice", "--config", "node.toml")
    with running(*command, cwd=tmp_path) as node:
        (port,) = node.ports()
        ops = Command(f"unix:{tmp_path}/node.sock", tmp_path)
        shop = Command(f"tcp:127.0.0.1:{port}", tmp_path)
        assert 0 == ops("receivers", "add", "billing", ">").code
        assert "" == ops.receiver("billing")["owner"]
        assert "billing is shop's now\n" == ops("receivers", "own", "billing", "shop").out
        assert "shop" == ops.receiver("billing")["owner"]
        unknown = ops("receivers", "own", "billing", "nobody")
        assert (1, True) == (unknown.code, "'nobody' is not configured" in unknown.err)
        assert 2 == ops("receivers", "own", "billing").code
        refused = shop("receivers", "list")
        assert (1, True) == (refused.code, "not allowed: request" in refused.err)
        assert 0 == shop("send", "orders.new", "one").code
        assert 1 == shop("send", "bills.new", "two").code
        nameless = ("send", "orders.new", "one", "--name", "till", "--timeout", "60")
        refused = shop(*nameless)
        assert (1, True) == (refused.code, "may not be called 'till' (code 20)\n" in refused.err)
        assert "no answer" not in refused.err
        assert '"error":"Refused"' in shop(*nameless, "--json").err
        file.write_text(CONFIGURATION.format(uid=os.getuid(), sends="bills.>"))
        node.send(signal.SIGHUP)
        node.wait_for(r"SIGHUP: .*; so were users;")
        assert 1 == shop("send", "orders.new", "one").code
        assert 0 == shop("send", "bills.new", "two").code
        file.write_text("[[user]]\nname = 7\n")
        wrong = ops("reload")
        assert (1, True) == (wrong.code, "name: must be a string" in wrong.err)
        assert 0 == shop("send", "bills.new", "two").code
        assert (
            "\nbilling is nobody's now\n"
            == "\n" + ops("receivers", "own", "billing", "--nobody").out
        )
        assert node.stop() in (0, -signal.SIGTERM)
        assert "Traceback" not in node.said
        assert "user ops (unix" in node.said
        assert "users cannot be read, those before go on" in node.said


def test_insecure_is_said_at_each_start(tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text('[node]\ninsecure = true\n[listen]\ntcp = "tcp:0"\n')
    command = ("twist", "--log-format=text", "msgservice", "--config", "node.toml")
    with running(*command, cwd=tmp_path) as node:
        node.wait_for("insecure = true: .*nobody is configured, so names are believed")
        node.ports()
        assert node.stop() in (0, -signal.SIGTERM)
