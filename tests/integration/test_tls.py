"""TLS that is refused: whatever is wrong, and whoever refuses, both sides say so; real sockets."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor as installed_reactor
from twisted.internet.interfaces import IListeningPort
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.internet.utils import getProcessOutputAndValue
from twisted.logger import LogEvent, LogLevel, formatEvent

from msgservice.errors import FrameTooLarge
from msgservice.interfaces import IConnector
from msgservice.limits import Limits
from msgservice.transport.registry import Transports
from msgservice.transport.tcp.profiles import TlsProfile, TlsProfiles
from tests.integration.daemon import BIN
from tests.kit.certificates import Authority
from tests.kit.channels import Recorder

reactor: Any = installed_reactor
pytestmark = pytest.mark.timeout(60)
QUICK = Limits(link_delay_min=0.05, link_delay_max=0.1, hello_timeout=5.0)
NOW = datetime.now(UTC)
PAST, LONG_AGO = NOW - timedelta(days=2), NOW - timedelta(days=20)
SOON, LATER = NOW + timedelta(days=2), NOW + timedelta(days=20)


class Place:
    """An authority that both sides trust, one that nobody does, and what was opened."""

    def __init__(self, folder: Path, logged: list[LogEvent]) -> None:
        self.authority = Authority(folder)
        (folder / "rogue").mkdir()
        self.rogue = Authority(folder / "rogue")
        self.accepted: list[Recorder] = []
        self._logged = logged
        self._ports: list[IListeningPort] = []
        self._connectors: list[IConnector] = []
        self.was_by_certificate: bool | None = None  # of the last one that was refused

    def certificate(self, name: str, authority: Authority | None = None, *when: datetime) -> str:
        """Issue one, from and to `when`, and return the options that name it."""
        begins, ends = when or (None, None)
        key, chain = (authority or self.authority).issue(name, begins=begins, ends=ends)
        return f":privateKey={key}:certificate={chain}"

    @property
    def trusting(self) -> str:
        return f":trustRoots={self.authority.ca_file}"

    async def listen(self, address: str, tls: TlsProfiles | None = None) -> int:
        """Listen in a transport of its own, and return the port."""
        port = await Transports(tls=tls).tcp.listen(reactor, address, self._accept, QUICK)
        self._ports.append(port)
        return int(port.getHost().port)  # type: ignore[attr-defined]  # of its address

    def _accept(self) -> Recorder:
        user = Recorder()
        user.on_opened = lambda channel: channel.established()
        user.on_frames = user.send_back
        user.on_failed = lambda error: user.send(b"ERROR")  # as a session does
        self.accepted.append(user)
        return user

    def dial(self, address: str, tls: TlsProfiles | None = None) -> tuple[Recorder, IConnector]:
        user = Recorder()
        connector = Transports(tls=tls).tcp.connector(reactor, address, lambda: user, QUICK)
        self._connectors.append(connector)
        connector.startService()
        return user, connector

    async def refused(self, address: str, tls: TlsProfiles | None = None) -> str:
        """Dial, say something as soon as that can be, and return why it failed."""
        user, connector = self.dial(address, tls)
        user.on_opened = lambda channel: channel.send(b"HELLO")
        await self.until(lambda: connector.failures > 0 or bool(user.frames))
        assert user.frames == [], "it was let in"
        self.was_by_certificate = getattr(connector, "is_by_certificate", None)
        await connector.stopService()
        return str(connector.last_error)

    async def works(self, address: str, tls: TlsProfiles | None = None) -> bool:
        user, connector = self.dial(address, tls)
        await user.until_opened()
        user.send(b"there?")
        await user.until_frames(1)
        await connector.stopService()
        return True

    async def turned_away(self) -> str:
        """Return the one line of the listener about who was turned away, when it is there."""

        def lines() -> list[str]:
            warned = [event for event in self._logged if event["log_level"] is LogLevel.warn]
            return [text for event in warned if "was turned away" in (text := formatEvent(event))]

        await self.until(lambda: bool(lines()))
        (line,) = lines()
        return line

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await deferLater(reactor, 0.005)

    async def close(self) -> None:
        for connector in self._connectors:
            await connector.stopService()
        for user in self.accepted:
            if user.channel is not None and not user.is_lost:
                user.channel.abort()
                await user.until_lost()
        for port in self._ports:
            stopped = port.stopListening()
            if stopped is not None:
                await stopped


@pytest_twisted.async_yield_fixture
async def place(tmp_path: Path, logged: list[LogEvent]) -> AsyncIterator[Place]:
    place = Place(tmp_path, logged)
    yield place
    await place.close()


# --- certificates


@pytest.mark.parametrize(
    ("when", "there", "here"),
    [
        (
            (LONG_AGO, PAST),
            f"the certificate of the other side has expired, on {PAST:%Y-%m-%d %H:%M} UTC",
            "our certificate has expired (certificate expired)",
        ),
        (
            (SOON, LATER),
            f"the certificate of the other side is not valid before {SOON:%Y-%m-%d %H:%M} UTC",
            "it does not take our certificate (bad certificate)",
        ),
    ],
    ids=["expired", "not yet"],
)
@pytest_twisted.ensureDeferred
async def test_a_server_whose_time_is_over_is_refused(
    place: Place, when: tuple[datetime, datetime], there: str, here: str
) -> None:
    port = await place.listen(f"tls:0{place.certificate('localhost', None, *when)}")
    assert f"TLS: {there}" == await place.refused(f"tls:localhost:{port}{place.trusting}")
    assert f"turned away: TLS: the other side broke off: {here}" in await place.turned_away()
    assert place.accepted == []


@pytest.mark.parametrize(
    ("when", "here", "there"),
    [
        (
            (LONG_AGO, PAST),
            f"the certificate of the other side has expired, on {PAST:%Y-%m-%d %H:%M} UTC",
            "our certificate has expired (certificate expired)",
        ),
        (
            (SOON, LATER),
            f"the certificate of the other side is not valid before {SOON:%Y-%m-%d %H:%M} UTC",
            "it does not take our certificate (bad certificate)",
        ),
    ],
    ids=["expired", "not yet"],
)
@pytest_twisted.ensureDeferred
async def test_a_client_whose_time_is_over_is_refused(
    place: Place, when: tuple[datetime, datetime], here: str, there: str
) -> None:
    port = await place.listen(f"tls:0{place.certificate('localhost')}{place.trusting}")
    own = place.certificate("client.example", None, *when)
    told = await place.refused(f"tls:localhost:{port}{place.trusting}{own}")
    assert f"TLS: the other side broke off: {there}" == told
    assert f"turned away: TLS: {here}" in await place.turned_away()
    assert place.accepted == []


@pytest_twisted.ensureDeferred
async def test_a_server_of_an_authority_that_is_not_trusted_is_refused(place: Place) -> None:
    port = await place.listen(f"tls:0{place.certificate('localhost', place.rogue)}")
    nobody = "TLS: the certificate of the other side is of nobody who is trusted here (trustRoots)"
    assert nobody == await place.refused(f"tls:localhost:{port}{place.trusting}")
    told = await place.turned_away()
    assert "broke off: it does not trust who signed our certificate (unknown ca)" in told
    assert place.was_by_certificate


@pytest_twisted.ensureDeferred
async def test_what_is_no_certificates_fault_or_passes_by_itself_is_not_taken_for_one(
    place: Place,
) -> None:
    port = await place.listen(f"tls:0{place.certificate('localhost', None, SOON, LATER)}")
    assert "not valid before" in await place.refused(f"tls:localhost:{port}{place.trusting}")
    assert place.was_by_certificate is False
    plain = await place.listen("tcp:0")
    await place.refused(f"tls:localhost:{plain}{place.trusting}")
    assert place.was_by_certificate is False


@pytest_twisted.ensureDeferred
async def test_a_command_ends_at_once_where_a_certificate_is_not_taken(place: Place) -> None:
    """It would be the same for all of --timeout, and longer."""
    untrusted = await place.listen(f"tls:0{place.certificate('localhost', place.rogue)}")
    asking = await place.listen(f"tls:0{place.certificate('localhost')}{place.trusting}")
    for address, told in (
        (f"tls:localhost:{untrusted}{place.trusting}", "is of nobody who is trusted here"),
        (f"tls:127.0.0.1:{asking}{place.trusting}", "is for another name than 127.0.0.1"),
        (f"tls:localhost:{asking}{place.trusting}", "it asks for a certificate, and we show none"),
    ):
        words = ["info", "--node", address, "--timeout", "600"]
        out, err, code = await getProcessOutputAndValue(str(BIN / "msgservice"), words, os.environ)
        assert (b"", 1) == (out, code), err
        assert told in err.decode()
        assert 1 == err.count(b"\n")


@pytest_twisted.ensureDeferred
async def test_who_dials_verifies_though_nothing_says_so(place: Place) -> None:
    port = await place.listen(f"tls:0{place.certificate('localhost')}")
    nobody = "TLS: the certificate of the other side is of nobody who is trusted here (trustRoots)"
    assert nobody == await place.refused(f"tls:localhost:{port}")
    assert place.accepted == []


@pytest_twisted.ensureDeferred
async def test_a_client_of_an_authority_that_is_not_trusted_is_refused(place: Place) -> None:
    port = await place.listen(f"tls:0{place.certificate('localhost')}{place.trusting}")
    own = place.certificate("client.example", place.rogue)
    told = await place.refused(f"tls:localhost:{port}{place.trusting}{own}")
    trust = "it does not trust who signed our certificate (unknown ca)"
    assert f"TLS: the other side broke off: {trust}" == told
    nobody = "the certificate of the other side is of nobody who is trusted here (trustRoots)"
    assert f"turned away: TLS: {nobody}" in await place.turned_away()


@pytest_twisted.ensureDeferred
async def test_a_client_without_a_certificate_is_refused_where_one_is_needed(place: Place) -> None:
    port = await place.listen(f"tls:0{place.certificate('localhost')}{place.trusting}")
    told = await place.refused(f"tls:localhost:{port}{place.trusting}")
    asks = "it asks for a certificate, and we show none (certificate required)"
    assert f"TLS: the other side broke off: {asks}" == told
    shows = "turned away: TLS: the other side shows no certificate, and one is needed here"
    assert shows in await place.turned_away()
    own = place.certificate("client.example")
    assert await place.works(f"tls:localhost:{port}{place.trusting}{own}")


@pytest.mark.parametrize(
    ("issued", "dialled", "hostname"),
    [
        ("localhost", "localhost", "other.example"),
        ("localhost", "127.0.0.1", None),
        ("127.0.0.1", "localhost", None),
        ("127.0.0.2", "127.0.0.1", None),
        ("*.localhost", "localhost", None),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_server_of_another_name_is_refused(
    place: Place, issued: str, dialled: str, hostname: str | None
) -> None:
    port = await place.listen(f"tls:0{place.certificate(issued)}")
    more = "" if hostname is None else f":hostname={hostname}"
    told = await place.refused(f"tls:{dialled}:{port}{place.trusting}{more}")
    name = hostname or dialled
    assert f"TLS: the certificate of the other side is for another name than {name}" == told
    assert "our certificate is for another name than it dialled" in await place.turned_away()
    assert place.accepted == []


@pytest_twisted.ensureDeferred
async def test_the_right_name_is_taken_be_it_an_ip_address(place: Place) -> None:
    port = await place.listen(f"tls:0{place.certificate('127.0.0.1')}")
    assert await place.works(f"tls:127.0.0.1:{port}{place.trusting}")


@pytest_twisted.ensureDeferred
async def test_a_name_that_is_not_in_ascii_is_judged_as_well(place: Place) -> None:
    port = await place.listen(f"tls:0{place.certificate('xn--bcher-kva.example')}")
    dialled = f"tls:127.0.0.1:{port}{place.trusting}"
    assert await place.works(f"{dialled}:hostname=bücher.example")
    told = await place.refused(f"{dialled}:hostname=bäcker.example")
    assert "TLS: the certificate of the other side is for another name" == told


@pytest_twisted.ensureDeferred
async def test_only_the_first_of_many_that_are_turned_away_is_told_for_now(place: Place) -> None:
    port = await place.listen(f"tls:0{place.certificate('localhost')}{place.trusting}")
    for _ in range(5):
        await place.refused(f"tls:localhost:{port}{place.trusting}")
    await place.turned_away()  # which fails where there are several


# --- versions


def old_client(place: Place, port: int, highest: ssl.TLSVersion) -> str:
    """Return what a client of Python's says that speaks no newer version."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(place.authority.ca_file)
    limit(context, highest)
    with socket.create_connection(("127.0.0.1", port), 20) as plain:
        try:
            context.wrap_socket(plain, server_hostname="localhost").close()
        except ssl.SSLError as error:
            return str(error.reason)
    return "it was let in"


def limit(context: ssl.SSLContext, highest: ssl.TLSVersion) -> None:
    context.set_ciphers("ALL:@SECLEVEL=0")
    if highest < ssl.TLSVersion.TLSv1_2:
        with pytest.warns(DeprecationWarning, match="TLSv1"):
            context.minimum_version = ssl.TLSVersion.TLSv1
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            context.maximum_version = highest
    else:
        context.maximum_version = highest


@contextmanager
def old_server(place: Place, highest: ssl.TLSVersion) -> Iterator[tuple[int, list[str]]]:
    """Run a server of Python's that speaks no newer version; what it says of its clients."""
    key, chain = place.authority.issue("localhost")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain, key)
    limit(context, highest)
    said: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            plain, _ = listening.accept()
            with plain:
                try:
                    context.wrap_socket(plain, server_side=True).close()
                    said.append("it was let in")
                except (ssl.SSLError, OSError) as error:
                    said.append(str(getattr(error, "reason", error)))

        serving = Thread(target=serve)
        serving.start()
        yield listening.getsockname()[1], said
        serving.join(20)


ANY_MINIMUM = [("", ssl.TLSVersion.TLSv1_1), (":minimumVersion=1.3", ssl.TLSVersion.TLSv1_2)]


@pytest_twisted.ensureDeferred
async def test_between_our_own_ends_the_newest_version_is_spoken(place: Place) -> None:
    port = await place.listen(f"tls:0{place.certificate('localhost')}")
    user, _ = place.dial(f"tls:localhost:{port}{place.trusting}")
    await user.until_opened()
    channel: Any = user.channel
    assert "TLSv1.3" == channel.transport.getHandle().get_protocol_version_name()


@pytest.mark.parametrize("is_dialled", [True, False], ids=["who dialled", "who listens"])
@pytest_twisted.ensureDeferred
async def test_a_side_that_reads_no_more_closes_in_good_order(
    place: Place, is_dialled: bool
) -> None:
    port = await place.listen(f"tls:0{place.certificate('localhost')}")
    dialling, _ = place.dial(f"tls:localhost:{port}{place.trusting}")
    await dialling.until_opened()
    dialling.send(b"there?")
    await dialling.until_frames(1)
    (listening,) = place.accepted
    closing = dialling if is_dialled else listening
    assert closing.channel is not None
    closing.channel.pause()
    closing.channel.close()
    await closing.until_lost()
    # It hears that the other side closes too; else it would have been aborted in the end.
    assert closing.events[-1] == ("lost", "Connection was closed cleanly")


@pytest.mark.parametrize(("option", "highest"), ANY_MINIMUM)
@pytest_twisted.ensureDeferred
async def test_a_client_of_an_old_version_is_refused(
    place: Place, option: str, highest: ssl.TLSVersion
) -> None:
    port = await place.listen(f"tls:0{place.certificate('localhost')}{option}")
    told = await deferToThread(old_client, place, port, highest)
    assert "ALERT_PROTOCOL_VERSION" in told
    here = "TLS: the other side speaks no version of TLS that is allowed here (minimumVersion)"
    assert f"turned away: {here}" in await place.turned_away()


@pytest.mark.parametrize(("option", "highest"), ANY_MINIMUM)
@pytest_twisted.ensureDeferred
async def test_a_server_of_an_old_version_is_refused(
    place: Place, option: str, highest: ssl.TLSVersion
) -> None:
    with old_server(place, highest) as (port, said):
        told = await place.refused(f"tls:localhost:{port}{place.trusting}{option}")
        await place.until(lambda: bool(said))
    assert told in (
        "TLS: the other side speaks no version of TLS that is allowed here (minimumVersion)",
        "TLS: the other side broke off: it takes no version of TLS that is spoken here"
        " (protocol version)",
    )
    assert "VERSION" in said[0] or "PROTOCOL" in said[0]


@pytest_twisted.ensureDeferred
async def test_a_client_of_1_2_is_told_that_it_needs_a_certificate(place: Place) -> None:
    port = await place.listen(f"tls:0{place.certificate('localhost')}{place.trusting}")
    told = await deferToThread(old_client, place, port, ssl.TLSVersion.TLSv1_2)
    assert "HANDSHAKE_FAILURE" in told
    assert "the other side shows no certificate" in await place.turned_away()


# --- one side without TLS


@pytest_twisted.ensureDeferred
async def test_a_plain_client_of_a_listener_with_tls_is_turned_away(place: Place) -> None:
    port = await place.listen(f"tls:0{place.certificate('localhost')}")
    user, _ = place.dial(f"tcp:localhost:{port}")
    await user.until_opened()
    user.send(b"a frame, and one that is no TLS")
    await user.until_lost()  # without a word: OpenSSL has none for who speaks no TLS
    assert "turned away: TLS: the other side speaks no TLS" in await place.turned_away()


@pytest_twisted.ensureDeferred
async def test_a_client_with_tls_of_a_plain_listener_is_told_at_both_ends(place: Place) -> None:
    port = await place.listen("tcp:0")
    told = await place.refused(f"tls:localhost:{port}{place.trusting}")
    assert "TLS: the other side speaks no TLS: is it an address without, tcp: or http:?" == told
    (error,) = place.accepted[0].values("failed")
    assert isinstance(error, FrameTooLarge)
    assert "what came looks like TLS: only one side has tls: in its address" in str(error)


# --- profiles


@pytest_twisted.ensureDeferred
async def test_what_addresses_leave_out_is_as_the_profiles_say(place: Place) -> None:
    key, chain = place.authority.issue("localhost")
    ca = str(place.authority.ca_file)
    own = TlsProfile(certificate=str(chain), private_key=str(key), trust_roots=ca)
    node = TlsProfiles(
        default=TlsProfile(
            certificate=str(chain), private_key=str(key), trust_roots=ca, client_roots=ca
        ),
        named={"open": own},
    )
    asking, open_to_all = (
        await place.listen("tls:0", node),
        await place.listen("tls:0:profile=open", node),
    )
    trusting = TlsProfiles(default=TlsProfile(trust_roots=ca), named={"own": own})
    assert await place.works(f"tls:localhost:{open_to_all}", trusting)
    told = await place.refused(f"tls:localhost:{asking}", trusting)
    assert "it asks for a certificate" in told
    assert await place.works(f"tls:localhost:{asking}:profile=own", trusting)
    told = await place.refused(f"tls:localhost:{asking}")
    assert "of nobody who is trusted here" in told
