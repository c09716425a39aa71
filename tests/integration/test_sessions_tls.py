"""Sessions over TLS, both ways, with the certificates of clients verified."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import pytest_twisted
import trustme
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint, connectProtocol, wrapClientTLS
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.ssl import (
    Certificate,
    PrivateCertificate,
    optionsForClientTLS,
    trustRootFromCertificates,
)
from twisted.internet.task import deferLater

from msgservice.errors import InsecureListener
from msgservice.faces.sessions.central import Central
from msgservice.faces.sessions.content.objects import ObjectsCodec
from msgservice.faces.sessions.content.safe import SafeCodec
from msgservice.faces.sessions.envelope import Hello
from msgservice.faces.sessions.limits import SessionLimits
from msgservice.faces.sessions.remote import Remote
from msgservice.faces.sessions.sender import Sender

# Twisted hands a client's certificate to pyOpenSSL in a form that the latter deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:Passing pyOpenSSL:DeprecationWarning")

HOST = "127.0.0.1"
OPEN = "tcp:0:interface=0.0.0.0"


class Authority:
    """An authority, and one certificate of it."""

    def __init__(self) -> None:
        ca = trustme.CA()
        issued = ca.issue_cert(HOST)
        pem = issued.private_key_pem.bytes() + issued.cert_chain_pems[0].bytes()
        self.mine = PrivateCertificate.loadPEM(pem)
        self.certificate = Certificate.loadPEM(ca.cert_pem.bytes())

    def server(self) -> Any:
        """Return options that verify the certificates of clients."""
        return self.mine.options(self.certificate)

    def dial(self, host: str, port: int) -> Any:
        roots = trustRootFromCertificates([self.certificate])
        options = optionsForClientTLS(HOST, trustRoot=roots, clientCertificate=self.mine)
        return wrapClientTLS(options, HostnameEndpoint(reactor, host, port))


@pytest.mark.parametrize("make", [None, ObjectsCodec])
@pytest_twisted.ensureDeferred
async def test_tls_both_ways_with_verified_clients_on_all_interfaces(make: Any) -> None:
    authority = Authority()
    heard: Deferred[Any] = Deferred()
    codec = make() if make is not None else None
    central = Central(
        reactor,
        listen=OPEN,
        tls=authority.server(),
        dial=authority.dial,
        codec=codec,
        on_message=lambda message: heard.callback(message.content),
    )
    _, port = await central.listen()
    got: list[Any] = []
    remote = Remote(
        reactor,
        authority.dial(HOST, port),
        listen=OPEN,
        tls=authority.server(),
        id="shop",
        codec=codec,
        on_message=lambda message: got.append(message.content),
    )
    await remote.start()
    await central.when_joined("shop")
    await (await remote.send("up")).acknowledged()
    assert await heard == "up"
    big = "x" * 3_000_000
    await (await central.send("shop", big)).acknowledged()
    assert got == [big]
    await central.shutdown("shop")
    await remote.when_shut_down()
    await central.stopService()


@pytest_twisted.ensureDeferred
async def test_a_certificate_of_another_authority_is_refused() -> None:
    authority, other = Authority(), Authority()
    other.certificate = authority.certificate  # it trusts the central, and has its own certificate
    central = Central(reactor, listen=OPEN, tls=authority.server(), dial=authority.dial)
    _, port = await central.listen()
    remote = Remote(
        reactor, other.dial(HOST, port), id="shop", heartbeat_timeout=1.0, tls=other.server()
    )
    await remote.start()
    ended = await remote.when_shut_down()
    assert ended.by == "silence"
    assert remote.session is None
    assert central.remotes == {}
    await central.stopService()


@pytest.mark.parametrize("verifies", [False, True])
@pytest_twisted.ensureDeferred
async def test_a_listener_open_to_others_needs_verified_clients(verifies: bool) -> None:
    authority = Authority()
    tls = authority.server() if verifies else authority.mine.options()
    central = Central(reactor, listen=OPEN, tls=tls)
    if verifies:
        await central.listen()
    else:
        with pytest.raises(InsecureListener):
            await central.listen()
    await central.stopService()


@pytest_twisted.ensureDeferred
async def test_nobody_is_joined_over_a_connection_without_tls() -> None:
    authority = Authority()
    central = Central(reactor, tls=authority.server(), dial=authority.dial)
    address = await central.listen()
    remote = Remote(reactor, address, id="shop", heartbeat_timeout=0.5)
    await remote.start()
    assert (await remote.when_shut_down()).by == "silence"
    assert remote.session is None
    await central.stopService()
    assert central.remotes == {}


class Mute(Protocol):
    """A server that accepts a connection and says nothing, so that no handshake ends."""

    all: ClassVar[list[Mute]] = []

    def connectionMade(self) -> None:
        self.all.append(self)

    def connectionLost(self, reason: Any = None) -> None:
        self.all.remove(self)


@pytest_twisted.ensureDeferred
async def test_a_handshake_that_never_ends_is_given_up_and_its_side_ends_in_time() -> None:
    authority = Authority()
    mute: Any = Factory.forProtocol(Mute)
    port: Any = reactor.listenTCP(0, mute, interface=HOST)
    limits = SessionLimits(dial_timeout=0.2, redial_seconds=1.0)
    central = Central(reactor, dial=authority.dial, limits=limits)
    left = central.when_left("away")
    hello = SafeCodec().control(Hello(port.getHost().port, id="away"))
    peer = await connectProtocol(HostnameEndpoint(reactor, *await central.listen()), Protocol())
    peer.transport.write(len(hello).to_bytes(4, "big") + hello)
    remote = Remote(
        reactor,
        authority.dial(HOST, port.getHost().port),
        heartbeat_timeout=1.0,
        limits=limits,
    )
    await remote.start()
    assert (await remote.when_shut_down()).by == "silence"
    assert "not reached for 1.0 s" in (await left)[1]
    while Mute.all:
        await deferLater(reactor, 0.01, lambda: None)
    await central.stopService()
    await port.stopListening()
    peer.transport.abortConnection()


class Waits:
    """The user of a sender that writes once it is connected, and looks at once what waits."""

    def __init__(self) -> None:
        self.sender: Any = None
        self.seen: Deferred[int] = Deferred()

    def sender_connected(self) -> None:
        self.sender.write([b"x" * 100])
        self.seen.callback(self.sender.kernel_waits())

    def sender_writable(self) -> None:
        pass

    def sender_lost(self, reason: str) -> None:
        pass

    def sender_gave_up(self, reason: str) -> None:
        pass


@pytest_twisted.ensureDeferred
async def test_what_tls_has_not_encrypted_yet_is_not_taken_for_what_the_peer_has() -> None:
    authority = Authority()
    central = Central(reactor, tls=authority.server())
    host, port = await central.listen()
    user = Waits()
    user.sender = Sender(
        reactor, authority.dial(host, port), user, limits=SessionLimits(), redial_seconds=None
    )
    user.sender.start()
    assert await user.seen >= 104
    while user.sender.kernel_waits():
        await deferLater(reactor, 0.01, lambda: None)
    await user.sender.stop()
    await central.stopService()


class Silent(Protocol):
    """A client that connects and never shakes hands."""

    def __init__(self) -> None:
        self.lost: Deferred[None] = Deferred()

    def connectionLost(self, reason: Any = None) -> None:
        self.lost.callback(None)


@pytest_twisted.ensureDeferred
async def test_who_never_shakes_hands_takes_no_place_for_ever() -> None:
    authority = Authority()
    limits = SessionLimits(first_seconds=0.3, connections_max=2)
    central = Central(
        reactor, listen=OPEN, tls=authority.server(), dial=authority.dial, limits=limits
    )
    _, port = await central.listen()
    silent = [Silent(), Silent()]
    for each in silent:
        await connectProtocol(HostnameEndpoint(reactor, HOST, port), each)
    for each in silent:
        await each.lost.addTimeout(20, reactor)
    remote = Remote(
        reactor, authority.dial(HOST, port), listen=OPEN, tls=authority.server(), id="shop"
    )
    await remote.start()
    await central.when_joined("shop").addTimeout(20, reactor)
    await remote.stopService()
    await central.stopService()
