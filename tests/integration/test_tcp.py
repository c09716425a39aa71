"""Channels over real sockets: TCP, TLS, Unix; peers that misbehave; listeners that cannot be."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from twisted.internet import reactor as installed_reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.interfaces import IListeningPort
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.logger import LogLevel, capturedLogs, formatEvent

from msgservice.errors import BadAddress, CannotListen, DeadlinePassed, FrameTooLarge
from msgservice.interfaces import IConnector
from msgservice.limits import Limits
from msgservice.transport.registry import Transports
from tests.kit.certificates import Authority
from tests.kit.channels import Recorder
from tests.kit.ports import free_port

reactor: Any = installed_reactor
pytestmark = pytest.mark.timeout(30)
# Who does all in time may be on a machine that is busy elsewhere for seconds.
PATIENT = Limits(link_delay_min=0.01, link_delay_max=0.05, write_timeout=10.0, close_timeout=10.0)
QUICK = replace(PATIENT, write_timeout=0.5, frame_timeout=0.5, hello_timeout=0.5, close_timeout=1.0)


class Net:
    """What a test listened on and dialled, ended with it."""

    def __init__(self) -> None:
        self.transport = Transports().tcp
        self.accepted: list[Recorder] = []
        self.on_accept: Callable[[Recorder], object] = lambda user: None
        self.ports: list[IListeningPort] = []
        self.connectors: list[IConnector] = []
        self._waiting: list[tuple[int, Deferred[Recorder]]] = []

    def make_user(self) -> Recorder:
        user = Recorder()
        user.on_opened = lambda channel: channel.established()
        self.on_accept(user)
        self.accepted.append(user)
        reactor.callLater(0, self._look)
        return user

    def accept(self, number: int = 0) -> Deferred[Recorder]:
        """Fire with the user of the accepted connection with this number."""
        fired: Deferred[Recorder] = Deferred()
        self._waiting.append((number, fired))
        self._look()
        return fired

    def _look(self) -> None:
        for number, fired in list(self._waiting):
            if number < len(self.accepted):
                self._waiting.remove((number, fired))
                fired.callback(self.accepted[number])

    async def listen(self, address: str = "tcp:0", limits: Limits = PATIENT) -> int:
        port = await self.transport.listen(reactor, address, self.make_user, limits)
        self.ports.append(port)
        return int(getattr(port.getHost(), "port", 0))

    def dial(
        self, address: str, limits: Limits = PATIENT, user: Recorder | None = None
    ) -> tuple[Recorder, IConnector]:
        user = user or Recorder()
        user.on_opened = lambda channel: channel.established()
        connector = self.transport.connector(reactor, address, lambda: user, limits)
        self.connectors.append(connector)
        connector.startService()
        return user, connector

    async def close(self) -> None:
        await gatherResults([connector.stopService() for connector in self.connectors])
        for user in self.accepted:
            if user.channel is not None and not user.is_lost:
                user.channel.abort()
                await user.until_lost()
        for port in self.ports:
            await stop(port)


async def stop(port: IListeningPort) -> None:
    stopping = port.stopListening()
    if stopping is not None:
        await stopping


@pytest_twisted.async_yield_fixture
async def net() -> AsyncIterator[Net]:
    net = Net()
    yield net
    await net.close()


@pytest.fixture
def raw() -> Iterator[Callable[[int], socket.socket]]:
    """Makes blocking sockets; use them in threads."""
    made: list[socket.socket] = []

    def connect(port: int) -> socket.socket:
        made.append(socket.create_connection(("127.0.0.1", port), timeout=20))
        return made[-1]

    yield connect
    for each in made:
        each.close()


def framed(*frames: bytes) -> bytes:
    return b"".join(struct.pack("!I", len(frame)) + frame for frame in frames)


def read_all(sock: socket.socket) -> bytes:
    """Everything until the other side closes; raises ConnectionResetError if it resets."""
    data = b""
    while more := sock.recv(65_536):
        data += more
    return data


# --- TCP


@pytest_twisted.ensureDeferred
async def test_frames_of_all_sizes_arrive_whole_and_in_order(net: Net) -> None:
    port = await net.listen()
    client, _ = net.dial(f"tcp:127.0.0.1:{port}")
    await client.until_opened()
    frames = [bytes([n % 256]) * (n * n) for n in range(0, 1000, 10)]
    for frame in frames:
        client.send(frame)
    server = await net.accept()
    server.on_frames = server.send_back
    await client.until_frames(100)
    assert frames == server.frames == client.frames


@pytest_twisted.ensureDeferred
async def test_many_small_frames_travel_in_few_deliveries(net: Net) -> None:
    port = await net.listen()
    client, _ = net.dial(f"tcp:127.0.0.1:{port}")
    await client.until_opened()
    for number in range(5000):
        client.send(b"%d" % number)
    server = await net.accept()
    await server.until_frames(5000)
    assert len(server.values("frames")) < 50


@pytest_twisted.ensureDeferred
async def test_the_socket_is_told_what_we_need(net: Net) -> None:
    port = await net.listen()
    client, _ = net.dial(f"tcp:127.0.0.1:{port}")
    await client.until_opened()
    server = await net.accept()
    for user in (client, server):
        channel: Any = user.channel
        handle = channel.transport.getHandle()
        assert handle.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert handle.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert handle.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 20_000
        shown = channel.credentials
        assert ("plain", "127.0.0.1", True) == (shown.how, shown.address, shown.is_local)


@pytest_twisted.ensureDeferred
async def test_a_peer_that_goes_on_sending_still_reads_our_last_frame(
    net: Net, raw: Callable[[int], socket.socket]
) -> None:
    """A close with unread bytes would reset the connection and eat it."""
    net.on_accept = lambda user: setattr(
        user, "on_failed", lambda error: user.send(b"error: too large")
    )
    port = await net.listen()
    peer = raw(port)

    def misbehave() -> bytes:
        peer.sendall(b"\xff" * 4 + bytes(500_000))
        return read_all(peer)

    assert framed(b"error: too large") == await deferToThread(misbehave)
    server = await net.accept()
    peer.close()
    await server.until_lost()
    (error,) = server.values("failed")
    assert isinstance(error, FrameTooLarge)


@pytest_twisted.ensureDeferred
async def test_a_peer_that_does_not_read_is_dropped_and_others_are_not(
    net: Net, raw: Callable[[int], socket.socket]
) -> None:
    port = await net.listen(limits=QUICK)
    silent = raw(port)
    stuck = await net.accept(0)
    client, _ = net.dial(f"tcp:127.0.0.1:{port}")
    other = await net.accept(1)
    for _ in range(32):
        stuck.send(bytes(1024 * 1024))
    other.send(b"still here")
    await stuck.until_lost()
    await client.until_frames(1)
    (error,) = stuck.values("failed")
    assert isinstance(error, DeadlinePassed)
    assert stuck.values("writable") == [False]
    assert not client.is_lost
    silent.close()


@pytest_twisted.ensureDeferred
async def test_half_a_frame_is_not_waited_for_without_end(
    net: Net, raw: Callable[[int], socket.socket]
) -> None:
    net.on_accept = lambda user: setattr(user, "on_failed", lambda error: user.send(b"no"))
    port = await net.listen(limits=QUICK)
    peer = raw(port)
    await deferToThread(peer.sendall, framed(b"whole") + framed(b"half")[:6])
    assert framed(b"no") == await deferToThread(read_all, peer)
    server = await net.accept()
    assert server.frames == [b"whole"]
    peer.close()
    await server.until_lost()


@pytest_twisted.ensureDeferred
async def test_what_was_queued_before_close_arrives(net: Net) -> None:
    port = await net.listen()
    client, connector = net.dial(f"tcp:127.0.0.1:{port}")
    await client.until_opened()
    for _ in range(20):
        client.send(bytes(500_000))
    await connector.stopService()
    server = await net.accept()
    assert len(server.frames) == 20
    assert client.is_lost


@pytest_twisted.ensureDeferred
async def test_the_connector_comes_back_when_the_listener_does(net: Net) -> None:
    port = await net.listen(f"tcp:{free_port()}")
    client, connector = net.dial(f"tcp:127.0.0.1:{port}")
    await client.until_opened()
    server = await net.accept()
    await stop(net.ports.pop())
    assert server.channel is not None
    server.channel.abort()
    await client.until_lost()
    while connector.failures < 3:
        await deferLater(reactor, 0.01)
    assert "refused" in str(connector.last_error)
    assert connector.channel is None
    await net.listen(f"tcp:{port}")
    connector.poke()
    await net.accept(1)
    assert client.names().count("opened") == 2
    assert connector.last_error is None


@pytest_twisted.ensureDeferred
async def test_connections_beyond_the_limit_are_closed_at_once(
    net: Net, raw: Callable[[int], socket.socket]
) -> None:
    port = await net.listen(limits=Limits(connections=2))
    kept = [raw(port), raw(port)]
    await net.accept(1)
    refused = raw(port)

    def closed() -> bytes:
        try:
            return read_all(refused)
        except ConnectionResetError:
            return b""

    assert await deferToThread(closed) == b""
    assert len(net.accepted) == 2
    assert net.transport.accepted.refused == 1
    kept[0].close()
    await net.accepted[0].until_lost()
    raw(port)
    await net.accept(2)


@pytest_twisted.ensureDeferred
async def test_a_port_in_use_is_a_clear_error(net: Net) -> None:
    port = await net.listen()
    with pytest.raises(CannotListen, match="Address already in use") as caught:
        await net.listen(f"tcp:{port}")
    assert caught.value.listener == f"tcp:{port}"


@pytest_twisted.ensureDeferred
async def test_an_interface_that_is_not_ours_is_a_clear_error(net: Net) -> None:
    with pytest.raises(CannotListen, match="assign requested address"):
        await net.listen("tcp:0:interface=192.0.2.1")


# --- TLS


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


async def attempt_fails(connector: IConnector) -> str:
    while connector.failures < 1:
        await deferLater(reactor, 0.01)
    return str(connector.last_error)


@pytest_twisted.ensureDeferred
async def test_tls_carries_frames_both_ways(net: Net, authority: Authority) -> None:
    port = await net.listen(authority.listener())
    client, connector = net.dial(f"tls:localhost:{port}:trustRoots={authority.ca_file}")
    await client.until_opened()
    assert client.channel is not None
    assert client.channel.peer_address.startswith("tls:")
    frames = [bytes([n]) * 100_000 for n in range(40)]
    for frame in frames:
        client.send(frame)
    server = await net.accept()
    server.on_frames = server.send_back
    await client.until_frames(40)
    assert frames == client.frames
    await connector.stopService()
    assert client.is_lost
    await server.until_lost()


def served(port: int, authority: Authority) -> str:
    """Return the serial number of the certificate that a new connection is shown."""
    context = ssl.create_default_context(cafile=str(authority.ca_file))
    with (
        socket.create_connection(("127.0.0.1", port), 20) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as made,
    ):
        shown = made.getpeercert()
    assert shown is not None
    return str(shown["serialNumber"])


@pytest_twisted.ensureDeferred
async def test_a_renewed_certificate_is_served_without_a_restart(
    net: Net, authority: Authority
) -> None:
    port = await net.listen(authority.listener())
    client, _ = net.dial(f"tls:localhost:{port}:trustRoots={authority.ca_file}")
    await client.until_opened()
    first = await deferToThread(served, port, authority)
    assert first == await deferToThread(served, port, authority)
    authority.issue("localhost")
    assert first != await deferToThread(served, port, authority)
    assert not client.is_lost


@pytest_twisted.ensureDeferred
async def test_a_certificate_that_is_half_replaced_is_not_served(
    net: Net, authority: Authority
) -> None:
    port = await net.listen(authority.listener())
    first = await deferToThread(served, port, authority)
    key = authority.folder / "localhost.key"
    old_key = key.read_bytes()
    authority.issue("localhost")
    new_key = key.read_bytes()
    key.write_bytes(old_key)
    with capturedLogs() as events:
        assert first == await deferToThread(served, port, authority)
        assert first == await deferToThread(served, port, authority)
    assert 1 == sum("the key in" in event.get("error", "") for event in events)
    key.write_bytes(new_key)
    assert first != await deferToThread(served, port, authority)


def issue_weak(authority: Authority) -> None:
    """Let the files have a key that OpenSSL takes for too short: RSA of 1024 bits."""
    key = rsa.generate_private_key(65537, 1024)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    begin = datetime(2000, 1, 1, tzinfo=UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), 1)
        .not_valid_before(begin)
        .not_valid_after(begin + timedelta(days=36_500))
        .sign(key, hashes.SHA256())
    )
    pem = Encoding.PEM
    (authority.folder / "localhost.crt").write_bytes(made.public_bytes(pem))
    (authority.folder / "localhost.key").write_bytes(
        key.private_bytes(pem, PrivateFormat.PKCS8, NoEncryption())
    )


@pytest_twisted.ensureDeferred
async def test_a_certificate_that_openssl_does_not_take_is_not_served(
    net: Net, authority: Authority
) -> None:
    listener = authority.listener()
    port = await net.listen(listener)
    first = await deferToThread(served, port, authority)
    issue_weak(authority)
    with capturedLogs() as events:
        assert first == await deferToThread(served, port, authority)
        assert first == await deferToThread(served, port, authority)
    assert 1 == sum("ee key too small" in event.get("error", "") for event in events)
    with pytest.raises(BadAddress, match="ee key too small"):
        await net.listen(listener)
    key, chain = authority.folder / "localhost.key", authority.folder / "localhost.crt"
    with pytest.raises(BadAddress, match="ee key too small"):
        net.dial(f"tls:localhost:{port}:certificate={chain}:privateKey={key}")


@pytest_twisted.ensureDeferred
async def test_a_renewed_authority_is_trusted_by_who_dials_next(
    net: Net, authority: Authority
) -> None:
    port = await net.listen(authority.listener())
    good = authority.ca_file.read_bytes()
    trustme.CA().cert_pem.write_to_path(str(authority.ca_file))
    client, connector = net.dial(f"tls:localhost:{port}:trustRoots={authority.ca_file}")
    assert "of nobody who is trusted here" in await attempt_fails(connector)
    authority.ca_file.write_bytes(good)
    await client.until_opened()


@pytest_twisted.ensureDeferred
async def test_a_folder_of_authorities_will_do(net: Net, authority: Authority) -> None:
    port = await net.listen(authority.listener())
    client, _ = net.dial(f"tls:localhost:{port}:trustRoots={authority.folder}")
    await client.until_opened()


@pytest_twisted.ensureDeferred
async def test_a_certificate_for_another_name_is_refused(net: Net, authority: Authority) -> None:
    port = await net.listen(authority.listener())
    client, connector = net.dial(
        f"tls:localhost:{port}:trustRoots={authority.ca_file}:hostname=other.example"
    )
    assert "is for another name than other.example" in await attempt_fails(connector)
    assert client.events == []


@pytest_twisted.ensureDeferred
async def test_an_authority_that_we_do_not_trust_is_refused(net: Net, authority: Authority) -> None:
    port = await net.listen(authority.listener())
    client, connector = net.dial(f"tls:localhost:{port}")
    assert "of nobody who is trusted here" in await attempt_fails(connector)
    assert client.events == []


@pytest_twisted.ensureDeferred
async def test_a_client_without_the_certificate_asked_for_is_refused(
    net: Net, authority: Authority
) -> None:
    port = await net.listen(authority.listener(f":trustRoots={authority.ca_file}"))
    key, chain = authority.issue("client.example")
    trusting = f"tls:localhost:{port}:trustRoots={authority.ca_file}"
    _, without = net.dial(trusting)
    await attempt_fails(without)
    await without.stopService()
    assert net.accepted == []
    client, _ = net.dial(f"{trusting}:certificate={chain}:privateKey={key}")
    await net.accept()
    await client.until_opened()


@pytest_twisted.ensureDeferred
async def test_both_ends_of_tls_bind_to_the_same_certificate_and_the_server_sees_the_clients(
    net: Net, authority: Authority
) -> None:
    port = await net.listen(authority.listener(f":trustRoots={authority.ca_file}"))
    key, chain = authority.issue("client.example")
    trusting = f"tls:localhost:{port}:trustRoots={authority.ca_file}"
    client, _ = net.dial(f"{trusting}:certificate={chain}:privateKey={key}")
    server = await net.accept()
    await client.until_opened()
    ours, served = (
        x509.load_pem_x509_certificate(chain.read_bytes()),
        authority.folder / "localhost.crt",
    )
    theirs = x509.load_pem_x509_certificate(served.read_bytes())
    assert client.channel is not None
    assert server.channel is not None
    here, there = client.channel.credentials, server.channel.credentials
    assert ("tls", True, True) == (here.how, here.is_local, here.is_private)
    assert ("tls", "127.0.0.1") == (there.how, there.address)
    assert ours.public_bytes(Encoding.DER) == there.certificate
    assert theirs.public_bytes(Encoding.DER) == here.certificate
    # Trustme signs with SHA-256, and that is what RFC 5929 says then.
    assert theirs.fingerprint(hashes.SHA256()) == here.binding == there.binding


@pytest_twisted.ensureDeferred
async def test_a_client_of_tls_that_is_asked_for_no_certificate_shows_none(
    net: Net, authority: Authority
) -> None:
    port = await net.listen(authority.listener())
    net.dial(f"tls:localhost:{port}:trustRoots={authority.ca_file}")
    server = await net.accept()
    assert server.channel is not None
    assert server.channel.credentials.certificate is None
    assert server.channel.credentials.binding is not None


@pytest.mark.parametrize(
    ("rogue", "reason"),
    [
        (False, "TLS: the other side shows no certificate"),
        (True, "is of nobody who is trusted here"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_whoever_is_turned_away_by_tls_is_in_the_log_once(
    net: Net, authority: Authority, tmp_path: Path, rogue: bool, reason: str
) -> None:
    port = await net.listen(authority.listener(f":trustRoots={authority.ca_file}"))
    address = f"tls:localhost:{port}:trustRoots={authority.ca_file}"
    if rogue:
        (tmp_path / "rogue").mkdir()
        key, chain = Authority(tmp_path / "rogue").issue("client.example")
        address += f":certificate={chain}:privateKey={key}"
    with capturedLogs() as events:
        for _ in range(2):
            _, dialling = net.dial(address)
            await attempt_fails(dialling)
            await dialling.stopService()
        while net.transport.accepted.open:
            await deferLater(reactor, 0)
    lines = [formatEvent(event) for event in events if event["log_level"] is LogLevel.warn]
    told = [line for line in lines if "was turned away" in line]
    assert len(told) == 1
    assert told[0].startswith("tls:")
    assert reason in told[0]


@pytest_twisted.ensureDeferred
async def test_a_handshake_is_not_waited_for_without_end(
    net: Net, authority: Authority, raw: Callable[[int], socket.socket]
) -> None:
    port = await net.listen(authority.listener(), QUICK)

    def closed() -> bytes:
        try:
            return read_all(raw(port))
        except ConnectionResetError:
            return b""

    assert await deferToThread(closed) == b""
    assert net.accepted == []
    assert net.transport.accepted.open == 0


@pytest_twisted.ensureDeferred
async def test_old_versions_of_tls_are_refused(
    net: Net, authority: Authority, raw: Callable[[int], socket.socket]
) -> None:
    port = await net.listen(authority.listener())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(authority.ca_file)
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1"):
        context.minimum_version = ssl.TLSVersion.TLSv1
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(ssl.SSLError):
        await deferToThread(context.wrap_socket, raw(port), server_hostname="localhost")
    assert net.accepted == []


@pytest_twisted.ensureDeferred
async def test_a_peer_that_does_not_read_is_dropped_on_tls_too(
    net: Net, authority: Authority, raw: Callable[[int], socket.socket]
) -> None:
    port = await net.listen(authority.listener(), QUICK)
    context = ssl.create_default_context(cafile=str(authority.ca_file))
    silent = await deferToThread(context.wrap_socket, raw(port), server_hostname="localhost")
    stuck = await net.accept()
    for _ in range(32):
        stuck.send(bytes(1024 * 1024))
    await stuck.until_lost()
    (error,) = stuck.values("failed")
    assert isinstance(error, DeadlinePassed)
    silent.close()


# --- Unix sockets


@pytest_twisted.ensureDeferred
async def test_a_unix_socket_whose_lock_names_a_process_that_is_another_now_is_taken_over(
    net: Net, tmp_path: Path
) -> None:
    path = tmp_path / "a.sock"
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(path))
    left.close()  # as a killed process leaves it
    # In a container the node has the same id each time.
    (tmp_path / "a.sock.lock").symlink_to(str(os.getpid()))
    await net.listen(f"unix:{path}")
    client, _ = net.dial(f"unix:{path}")
    await client.until_opened()
    with pytest.raises(CannotListen):
        await net.listen(f"unix:{path}")


@pytest_twisted.ensureDeferred
async def test_unix_sockets_carry_frames_and_are_local(net: Net, tmp_path: Path) -> None:
    path = tmp_path / "node.sock"
    await net.listen(f"unix:{path}")
    client, _ = net.dial(f"unix:{path}")
    await client.until_opened()
    assert client.channel is not None
    client.send(b"abc")
    server = await net.accept()
    await server.until_frames(1)
    assert server.frames == [b"abc"]
    assert server.channel is not None
    assert server.channel.credentials.is_local
    assert client.channel.credentials.is_local
    assert (server.channel.peer_address, client.channel.peer_address) == ("unix", f"unix:{path}")
    for shown in (server.channel.credentials, client.channel.credentials):
        assert (os.getuid(), os.getgid(), os.getpid()) == (shown.uid, shown.gid, shown.pid)
        assert ("unix", f"uid {os.getuid()}", True) == (shown.how, shown.address, shown.is_private)


@pytest_twisted.ensureDeferred
async def test_only_the_user_of_the_node_may_connect_by_default(net: Net, tmp_path: Path) -> None:
    await net.listen(f"unix:{tmp_path}/a.sock")
    await net.listen(f"unix:{tmp_path}/b.sock:mode=660")
    modes = [(tmp_path / name).stat().st_mode & 0o777 for name in ("a.sock", "b.sock")]
    assert modes == [0o600, 0o660]


@pytest_twisted.ensureDeferred
async def test_a_socket_in_use_is_a_clear_error(net: Net, tmp_path: Path) -> None:
    await net.listen(f"unix:{tmp_path}/a.sock")
    with pytest.raises(CannotListen, match="another process listens there"):
        await net.listen(f"unix:{tmp_path}/a.sock")


@pytest_twisted.ensureDeferred
async def test_a_socket_left_by_a_killed_process_is_taken_over(net: Net, tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from twisted.internet import reactor\n"
        "from msgservice.limits import Limits\n"
        "from msgservice.transport.registry import Transports\n"
        f"d = Transports().tcp.listen(reactor, 'unix:{tmp_path}/a.sock', None, Limits())\n"
        "d.addCallback(lambda port: print('ready', flush=True))\n"
        "reactor.run()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        assert await deferToThread(process.stdout.readline) == b"ready\n"
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
    assert (tmp_path / "a.sock").exists()
    await net.listen(f"unix:{tmp_path}/a.sock")


@pytest_twisted.ensureDeferred
async def test_a_folder_that_is_not_there_is_a_clear_error(net: Net, tmp_path: Path) -> None:
    with pytest.raises(CannotListen, match="No such file or directory"):
        await net.listen(f"unix:{tmp_path}/none/a.sock")
