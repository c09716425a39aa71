"""A node with users, and a listener of every kind: each user comes by each door that knows it.

house = House(folder)
await house.start()
knock = house.knock("tls by password", SHOP)
answer = await knock.come("shop.a")
await house.stop()
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from twisted.internet import reactor as installed_reactor

from msgservice import Limits, Node
from msgservice.identity.client_exchange import Login
from msgservice.identity.passwords import ITERATIONS_MIN, PasswordRecord
from msgservice.identity.rules import Rules
from msgservice.identity.tokens import Token, new_token
from msgservice.identity.users import User, Users
from msgservice.records import ReceiverRow
from msgservice.transport.registry import Transports
from tests.kit.certificates import Authority
from tests.kit.channels import Recorder
from tests.kit.knock import Dial, Knock

reactor: Any = installed_reactor
LIMITS = Limits(login_delay=0.05, stop_timeout=5, link_delay_min=0.05, link_delay_max=0.5)
PASSWORD = "correct horse battery staple"


@dataclass(frozen=True)
class Who:
    """A user, and its rules as plain lists of patterns."""

    name: str
    send: list[str] = field(default_factory=list)
    to: list[str] = field(default_factory=list)
    receive: list[str] = field(default_factory=list)
    request: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    relay: bool = False

    def user(self, **known_by: Any) -> User:
        rules = Rules(
            send=self.send,
            to=self.to,
            receive=self.receive,
            request=self.request,
            relay=self.relay,
        )
        return User(name=self.name, rules=rules, names=tuple(self.names), **known_by)

    @property
    def patterns(self) -> list[str]:
        return self.names or [self.name, f"{self.name}.>"]


SHOP = Who(
    "shop",
    send=["orders.>", "stock.*.count"],
    to=["billing", "till.*"],
    receive=["orders.>", "stock.*.count"],
    request=["$node.info", "$node.receivers.*"],
    relay=True,
)
MUTE = Who("mute", relay=True)
BOSS = Who(
    "boss",
    send=[">"],
    to=[">"],
    receive=[">"],
    request=[">", "$node.>"],
    names=[">"],
)
WIDE = Who("wide", send=[">"], to=["*"], receive=["*.*"], request=[">"], names=["wide", "w.*"])
EVERYBODY = [SHOP, MUTE, BOSS, WIDE]
NOBODY = Who("")  # whose a receiver is that no user has
ME = os.getuid()

# The receivers that there are: whose each is, and its pattern.
ROWS = {
    "billing": ("", "orders.>"),
    "audit": ("boss", "log.>"),
    "shop.old": ("", "orders.>"),
    "shop.mine": ("shop", "orders.>"),
    "shop.theirs": ("boss", "orders.>"),
    "till.one": ("shop", "orders.>"),
    "w.r": ("shop", "orders.>"),
}


# --- the doors


class House:
    """A node with users and a listener of every kind."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = Authority(folder)
        self.secret = os.urandom(32)
        self.knocks: list[Knock] = []
        self.dialled: dict[str, Dialled] = {}
        self.failed: list[Exception] = []  # why the node cannot go on

    async def start(self) -> None:
        folder, authority = self.folder, self.authority
        record = PasswordRecord.of(PASSWORD, iterations=ITERATIONS_MIN)
        self.tokens = {}
        kept: list[Token] = []
        for who in EVERYBODY:
            token, self.tokens[who.name] = new_token(who.name)
            kept.append(token)
        keys = folder / "keys"
        lines = []
        for number, who in enumerate(EVERYBODY, 1):
            key = os.urandom(32).hex()
            (folder / f"{who.name}.udpkey").write_text(key)
            lines.append(f"{number} {who.name} {key}\n")
        (folder / "stranger.udpkey").write_text(os.urandom(32).hex())
        keys.write_text("".join(lines))
        keys.chmod(0o600)
        private, chain = authority.issue("localhost")
        tls = f"tls:0:interface=127.0.0.1:privateKey={private}:certificate={chain}"
        self.listen = {
            "tcp": "tcp:0:interface=127.0.0.1",
            "tls": tls,
            "tls with certificates": f"{tls}:trustRoots={authority.ca_file}",
            "unix": f"unix:{folder}/socket",
            "udp": f"udp:0:interface=127.0.0.1:keys={keys}",
            "no login": "tcp:0:interface=127.0.0.1:backlog=49",
        }
        self.web = {
            "http": "tcp:0:interface=127.0.0.1:backlog=51",
            "https": f"{tls}:trustRoots={authority.ca_file}:backlog=52",
        }
        self.users = users = Users(
            [
                who.user(
                    password=record,
                    certificates=(f"dns:{who.name}.users",),
                    uids=(ME,) if who is SHOP else (),
                )
                for who in EVERYBODY
            ],
            secret=self.secret,
            tokens=kept,
        )
        rows = [
            ReceiverRow(number=0, name=name, patterns=(pattern,), owner=owner, cursor=-1)
            for name, (owner, pattern) in ROWS.items()
        ]
        for who in [*EVERYBODY, NOBODY]:
            dialled = self.dialled[who.name] = Dialled()
            address = await dialled.listen()
            rows.append(
                ReceiverRow(
                    number=0, name=dialled_name(who), address=address, owner=who.name, cursor=-1
                )
            )
        self.node = Node(
            reactor,
            folder / "node",
            listen=list(self.listen.values()),
            web=list(self.web.values()),
            receivers=rows,
            users=users,
            without_login={self.listen["no login"]: SHOP.name},
            limits=LIMITS,
            failed=self.failed.append,
        )
        self.node.startService()
        await self.node.when_ready()
        self.ports = dict(zip([*self.listen, *self.web], self.node.ports, strict=True))

    def port(self, kind: str) -> int:
        host: Any = self.ports[kind].getHost()
        return int(host.port)

    def dial(self, address: str) -> Dial:
        return lambda make_user: (
            Transports().find(address).connector(reactor, address, make_user, LIMITS)
        )

    async def stop(self) -> None:
        for knock in self.knocks:
            await knock.go()
        await self.node.stopService()
        for dialled in self.dialled.values():
            await dialled.port.stopListening()
        assert [] == self.failed

    # --- how each user comes by each door

    def knock(self, door: str, who: Who | None) -> Knock:
        """Return a peer that comes by this door as this user; None: as nobody."""
        made = Knock(*DOORS[door](self, who))
        self.knocks.append(made)
        return made

    def knock_of_dialled(self, who: Who) -> Knock:
        """Return a peer at an address that the node dials, for a receiver of this user's."""
        made = Knock(self.dialled[who.name].dial)
        self.knocks.append(made)
        return made


class Dialled:
    """An address that a node dials: stands for a connector, whose user is who is dialled next."""

    def __init__(self) -> None:
        self._make_user: Callable[[], Any] | None = None
        self._user: Any = None

    async def listen(self) -> str:
        address = "tcp:0:interface=127.0.0.1"
        self.port: Any = (
            await Transports().find(address).listen(reactor, address, self._accept, LIMITS)
        )
        host: Any = self.port.getHost()
        return f"tcp:127.0.0.1:{host.port}"

    def dial(self, make_user: Callable[[], Any]) -> Any:
        self._make_user = make_user
        return self

    def _accept(self) -> Any:
        user = Recorder()
        if self._make_user is None:
            user.on_opened = lambda channel: channel.abort()  # nobody is there yet
            return user
        self._user, self._make_user = self._make_user(), None
        return self._user

    def startService(self) -> None:
        """It is dialled whenever the node does."""

    async def stopService(self) -> None:
        if self._user is not None and not self._user.is_lost:
            self._user.channel.abort()
            await self._user.until_lost()


def dialled_name(who: Who) -> str:
    return f"dialled.{who.name or 'nobody'}"


Way = tuple[Dial, Login | None]


def by_password(kind: str, address: str) -> Callable[[House, Who | None], Way]:
    def way(house: House, who: Who | None) -> Way:
        login = None if who is None else Login(user=who.name, password=PASSWORD)
        return house.dial(address_of(house, kind, address)), login

    return way


def by_token(kind: str, address: str) -> Callable[[House, Who | None], Way]:
    def way(house: House, who: Who | None) -> Way:
        login = None if who is None else Login(token=house.tokens[who.name])
        return house.dial(address_of(house, kind, address)), login

    return way


def address_of(house: House, kind: str, address: str) -> str:
    port = "" if kind == "unix" else house.port(kind)
    return address.format(port=port, ca=house.authority.ca_file, folder=house.folder)


TCP, TLS, UNIX = (
    "tcp:127.0.0.1:{port}",
    "tls:localhost:{port}:trustRoots={ca}",
    "unix:{folder}/socket",
)


def by_certificate(house: House, who: Who | None) -> Way:
    name = "stranger" if who is None else who.name
    key, chain = house.authority.issue(f"{name}.users")
    address = address_of(house, "tls with certificates", TLS)
    return house.dial(f"{address}:privateKey={key}:certificate={chain}"), None


def by_key(house: House, who: Who | None) -> Way:
    assert who is not None, "a datagram with no key of the listener's is not answered"
    number = EVERYBODY.index(who) + 1
    key = house.folder / f"{who.name}.udpkey"
    return house.dial(f"udp:127.0.0.1:{house.port('udp')}:key={key}:keyId={number}"), None


def by_uid(house: House, who: Who | None) -> Way:
    assert who is SHOP, "this process has one user id"
    return house.dial(address_of(house, "unix", UNIX)), None


def without_login(house: House, who: Who | None) -> Way:
    assert who is SHOP, "the user whom everybody is there"
    return house.dial(address_of(house, "no login", TCP)), None


def in_process(house: House, who: Who | None) -> Way:
    assert who is not None, "the program itself may do all"
    return lambda make_user: house.node.connector(make_user, "a test", who.name), None


DOORS: dict[str, Callable[[House, Who | None], Way]] = {
    "in this process": in_process,
    "unix by uid": by_uid,
    "unix by password": by_password("unix", UNIX),
    "tcp by password": by_password("tcp", TCP),
    "tcp by token": by_token("tcp", TCP),
    "tcp without login": without_login,
    "tls by password": by_password("tls", TLS),
    "tls by token": by_token("tls", TLS),
    "tls by certificate": by_certificate,
    "udp by key": by_key,
}
ONLY_SHOP = {"unix by uid", "tcp without login"}
TABLE = [(door, who) for door in DOORS for who in EVERYBODY if who is SHOP or door not in ONLY_SHOP]
