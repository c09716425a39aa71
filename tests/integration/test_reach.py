"""What a node dials where users give the addresses of receivers: real sockets of each transport."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor as installed_reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import DatagramProtocol, Factory, Protocol
from twisted.internet.task import deferLater

from msgservice import Limits, Node
from msgservice.errors import BadAddress, RequestFailed
from msgservice.identity.rules import Rules
from msgservice.identity.users import User, Users
from msgservice.records import ReceiverRow
from msgservice.transport.reach import networks_of
from tests.kit.passes import users_of

reactor: Any = installed_reactor
pytestmark = pytest.mark.timeout(60)
OPS = User(name="ops", rules=Rules(receive=[">"], request=["$node.>"]))
LIMITS = Limits(link_delay_min=0.01, link_delay_max=0.05, stop_timeout=2.0)
SCHEMES = ["tcp", "tls", "udp", "pb", "pbs", "node:tcp", "node:udp"]
REFUSED = "is no address that this node may dial, unless networks of [node] has it"


class Inside:
    """Something that only the node reaches, which says when somebody has come."""

    def __init__(self, scheme: str) -> None:
        self.came: Deferred[None] = Deferred()
        self.count = 0
        scheme = scheme.rpartition(":")[2]
        inside = self

        class Met(Protocol):
            def connectionMade(self) -> None:
                inside.meet()

        class Heard(DatagramProtocol):
            def datagramReceived(self, datagram: bytes, addr: Any) -> None:
                inside.meet()

        if scheme == "udp":
            self.port = reactor.listenUDP(0, Heard(), interface="127.0.0.1")
        else:
            self.port = reactor.listenTCP(0, Factory.forProtocol(Met), interface="127.0.0.1")

    def meet(self) -> None:
        self.count += 1
        if not self.came.called:
            self.came.callback(None)

    def at(self, scheme: str, host: str) -> str:
        more = ":insecure=yes" if scheme.endswith("udp") else ""
        return f"{scheme}:{host}:{self.port.getHost().port}{more}"


class Stage:
    """A node with users, or none, and what it might dial."""

    def __init__(self, folder: Path, scheme: str) -> None:
        self.folder, self.scheme = folder, scheme
        self.inside = Inside(scheme)
        self.node: Node | None = None

    async def start(
        self,
        *,
        users: Users | None,
        allowed: Sequence[str] = (),
        configured: Sequence[ReceiverRow] = (),
    ) -> Node:
        self.node = Node(
            reactor,
            self.folder / "node",
            users=users,
            networks=networks_of(allowed),
            receivers=configured,
            limits=LIMITS,
            failed=lambda error: pytest.fail(str(error)),
        )
        self.node.startService()
        await self.node.when_ready()
        return self.node

    async def gives(self, host: str, user: str = "ops") -> None:
        """A user gives the receiver `r` an address."""
        assert self.node is not None
        client = self.node.client("ops", principal=user)
        try:
            asked = {"name": "r", "subjects": [], "address": self.inside.at(self.scheme, host)}
            await client.request("$node.receivers.add", asked)
        finally:
            await client.close()

    async def error(self) -> str:
        """Return why what is dialled has no connection, once that is known."""
        assert self.node is not None
        (link,) = self.node.parts.connections.links.values()
        while link.last_error is None or link.failures < 2:
            await deferLater(reactor, 0.01)
        return str(link.last_error)

    async def stop(self) -> None:
        if self.node is not None:
            await self.node.stopService()
        await self.inside.port.stopListening()


@pytest_twisted.async_yield_fixture(params=SCHEMES)
async def stage(request: Any, tmp_path: Path) -> Any:
    made = Stage(tmp_path, request.param)
    yield made
    await made.stop()


def run(coroutine: Any) -> Any:
    return pytest_twisted.ensureDeferred(coroutine)


@run
async def test_an_address_of_a_user_that_only_the_node_reaches_is_refused(stage: Stage) -> None:
    await stage.start(users=users_of(OPS))
    for host in ("127.0.0.1", "169.254.169.254", "10.0.0.1"):
        with pytest.raises(RequestFailed, match="no address that this node may dial") as refused:
            await stage.gives(host)
        assert BadAddress.refusal_code == refused.value.code


@run
async def test_a_name_of_a_user_that_leads_to_what_only_the_node_reaches_is_not_dialled(
    stage: Stage,
) -> None:
    await stage.start(users=users_of(OPS))
    await stage.gives("localhost")
    assert REFUSED in await stage.error()
    assert 0 == stage.inside.count
    assert stage.node is not None
    row = await stage.node.parts.operations.receiver("r")
    assert (False, "away") == (row.connected, row.health)
    assert "to networks of [node]" in row.needs


@run
async def test_networks_that_the_operator_allows_are_dialled(stage: Stage) -> None:
    await stage.start(users=users_of(OPS), allowed=["127.0.0.0/8", "::1/128"])
    await stage.gives("127.0.0.1")
    await stage.inside.came


@run
async def test_an_address_of_the_configuration_is_dialled_until_a_user_gives_another(
    stage: Stage,
) -> None:
    address = stage.inside.at(stage.scheme, "127.0.0.1")
    row = ReceiverRow(number=0, name="r", address=address, configured=True)
    node = await stage.start(users=users_of(OPS), configured=[row])
    await stage.inside.came
    client = node.client("ops", principal="ops")
    other = {"name": "r", "address": stage.inside.at(stage.scheme, "localhost")}
    await client.request("$node.receivers.change", other)
    await client.close()
    assert REFUSED in await stage.error()


@run
async def test_where_nobody_is_configured_any_address_is_dialled_until_somebody_is(
    stage: Stage,
) -> None:
    node = await stage.start(users=None)
    await node.add_receiver("r", (), address=stage.inside.at(stage.scheme, "127.0.0.1"))
    await stage.inside.came
    node.reload_users(users_of(OPS))
    (row,) = node.parts.directory
    await node.parts.connections.undial(node.parts.dispatch.outlets[row.number])
    node.parts.receivers.judge_dialled()
    assert REFUSED in await stage.error()
