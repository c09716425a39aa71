"""Addresses: what is one, what is local, which transport serves it, who may listen where."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.address import HostnameAddress, IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.endpoints import (
    HostnameEndpoint,
    TCP4ClientEndpoint,
    TCP4ServerEndpoint,
    UNIXClientEndpoint,
    UNIXServerEndpoint,
)
from twisted.internet.interfaces import IAddress
from twisted.internet.testing import MemoryReactorClock
from twisted.plugin import IPlugin
from zope.interface import implementer
from zope.interface.verify import verifyObject

from msgservice.errors import BadAddress, InsecureListener
from msgservice.interfaces import ITransport
from msgservice.limits import Limits
from msgservice.testing.transport import ChecksNothing
from msgservice.transport import registry
from msgservice.transport.addresses import (
    check_listener,
    describe,
    is_local,
    is_local_host,
    parse_address,
    quote,
)
from msgservice.transport.registry import Transports
from msgservice.transport.tcp.endpoints import client_endpoint, server_endpoint
from msgservice.transport.udp.addresses import read_shared
from tests.kit.certificates import Authority
from tests.kit.channels import Recorder


def test_an_address_is_a_scheme_parts_and_options() -> None:
    address = parse_address(r"TLS:node.example:7410:trustRoots=C\:/ca.pem:hostname=n=1")
    assert address.scheme == "tls"
    assert address.parts == ("node.example", "7410")
    assert address.options == {"trustRoots": "C:/ca.pem", "hostname": "n=1"}


def test_brackets_hold_an_ipv6_address() -> None:
    assert parse_address("tcp:[::1]:7410").parts == ("::1", "7410")
    assert parse_address("tcp:7410:interface=[::1]").options == {"interface": "::1"}


# No path and no host has a zero byte: what has one is refused.
_TEXT = st.characters(exclude_categories=["Cs"], exclude_characters="\0")


@given(st.text(_TEXT, min_size=1, max_size=20), st.text(_TEXT, max_size=20))
def test_what_is_quoted_comes_out_as_it_was(part: str, value: str) -> None:
    address = parse_address(f"unix:{quote(part)}:option={quote(value)}")
    assert address.parts == (part,)
    assert address.options == {"option": value}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "expected SCHEME"),
        ("tcp", "expected SCHEME"),
        (":7410", "expected SCHEME"),
        ("a=b:7410", "expected SCHEME"),
        ("tcp:[::1:7410", "without"),
        ("tcp:a\0b:7410", "no address has a zero byte"),
        ("tcp:7410:backlog=1:backlog=2", "'backlog' twice"),
    ],
)
def test_what_is_no_address_is_refused(text: str, reason: str) -> None:
    with pytest.raises(BadAddress, match=reason) as caught:
        parse_address(text)
    assert text == caught.value.address


# --- dialling and listening


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("tcp:127.0.0.1:7410", TCP4ClientEndpoint),
        ("tcp:[::1]:7410", TCP4ClientEndpoint),
        ("tcp:node.example:7410:timeout=3", HostnameEndpoint),
        ("unix:/run/node.sock", UNIXClientEndpoint),
    ],
)
def test_an_address_that_can_be_dialled(text: str, kind: type) -> None:
    assert isinstance(client_endpoint(MemoryReactorClock(), text), kind)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("tcp:7410", "expected tcp:HOST:PORT"),
        ("tcp:h:1:2", "expected tcp:HOST:PORT"),
        ("tcp::7410", "expected tcp:HOST:PORT"),
        ("tcp:h:0", "port must be from 1 to 65535, not '0'"),
        ("tcp:h:65536", "not '65536'"),
        ("tcp:h:x", "not 'x'"),
        ("tcp:h:٣", "port must be"),
        ("tcp:h:1:retries=3", "unknown option 'retries' .known: timeout, bindAddress"),
        ("tcp:h:1:timeout=0", "timeout must be a number above 0"),
        ("tcp:h:1:timeout=soon", "timeout must be a number above 0"),
        ("unix:", "expected unix:PATH"),
        ("tls:h:1:trustRoots=/nonexistent/ca.pem", "cannot read /nonexistent/ca.pem"),
        ("tls:h:1:certificate=/nonexistent/me.pem", "cannot read"),
        ("tls:my_host:1", "'my_host' is no name that a certificate can be for .*hostname=NAME"),
        ("tls:a..b:1", "'a..b' is no name"),
        ("tls:h:1:hostname=*.example", "is no name"),
        ("tls:h:1:hostname=", "'' is no name"),
        ("nosuch:h:1", "nosuch"),
    ],
)
def test_an_address_that_cannot_be_dialled_is_refused_with_the_reason(
    text: str, reason: str
) -> None:
    with pytest.raises(BadAddress, match=reason):
        client_endpoint(MemoryReactorClock(), text)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("tcp:7410", TCP4ServerEndpoint),
        ("tcp:0:interface=127.0.0.1", TCP4ServerEndpoint),
        ("unix:/run/node.sock:mode=660", UNIXServerEndpoint),
    ],
)
def test_an_address_that_can_be_listened_on(text: str, kind: type) -> None:
    assert isinstance(server_endpoint(MemoryReactorClock(), text), kind)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("tcp:h:7410", "expected tcp:PORT"),
        ("tcp:-1", "port must be from 0"),
        ("tcp:1:mode=600", "unknown option 'mode'"),
        ("unix:/a:mode=9", "octal"),
        ("tcp:1:backlog=1.9", "backlog must be an integer from 1 to 2147483647, not '1.9'"),
        ("tcp:1:backlog=0", "backlog must be an integer"),
        (f"tcp:1:backlog={'9' * 5000}", "backlog must be an integer"),
        (f"unix:/{'a' * 107}", "longer than 107 bytes"),
        ("tls:7410", "privateKey=FILE is needed"),
        ("tls:7410:privateKey=/nonexistent/key.pem", "cannot read /nonexistent/key.pem"),
        ("nosuch:1", "nosuch"),
    ],
)
def test_an_address_that_cannot_be_listened_on_is_refused_with_the_reason(
    text: str, reason: str
) -> None:
    with pytest.raises(BadAddress, match=reason):
        server_endpoint(MemoryReactorClock(), text)


@pytest.mark.parametrize("number", ["1.9", "1e0", "0", "256", "true", "", "-1", "9" * 5000])
def test_the_number_of_a_key_is_an_integer(number: str) -> None:
    with pytest.raises(BadAddress, match="keyId must be an integer from 1 to 255, not"):
        read_shared(parse_address(f"udp:h:1:key=k:keyId={number}"))


def test_what_only_endpoints_of_twisted_know_is_not_said_to_be_known() -> None:
    with pytest.raises(BadAddress, match=r"\(known: pb, pbs, ssl, tcp, tls, udp, unix\)"):
        Transports().find("ftp:somewhere")


def test_a_file_that_is_no_certificate_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("nothing of the kind")
    with pytest.raises(BadAddress, match=r"ca\.pem holds no certificate"):
        client_endpoint(MemoryReactorClock(), f"tls:h:1:trustRoots={tmp_path}/ca.pem")


def test_a_folder_without_certificates_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadAddress, match=r"no \*\.pem in folder"):
        client_endpoint(MemoryReactorClock(), f"tls:h:1:trustRoots={tmp_path}")


def test_a_listener_is_on_loopback_unless_it_says_otherwise() -> None:
    reactor = MemoryReactorClock()
    transport = Transports().tcp
    transport.listen(reactor, "tcp:7410", Recorder, Limits())
    assert [(entry[0], entry[3]) for entry in reactor.tcpServers] == [(7410, "127.0.0.1")]


# --- SEMANTICS 32


def check(text: str, *, insecure: bool) -> None:
    check_listener(Transports().find(text), text, insecure=insecure)


@pytest.mark.parametrize(
    "text",
    [
        "tcp:7410",
        "tcp:7410:interface=127.0.0.1",
        "tcp:7410:interface=127.8.9.10",
        "tcp:7410:interface=[::1]",
        "tcp:7410:interface=localhost",
    ],
)
def test_a_local_listener_needs_no_permission(text: str) -> None:
    check(text, insecure=False)


BEYOND = [
    "tcp:7410:interface=0.0.0.0",
    "tcp:7410:interface=",
    "tcp:7410:interface=[::]",
    "tcp:7410:interface=192.0.2.7",
    "tcp:7410:interface=node.example",
    "tcp:7410:interface=localhost.example",
    "tcp6:7410:interface=\\:\\:1",  # Twisted's, of which nothing is known
]


@pytest.mark.parametrize("text", BEYOND)
def test_a_listener_beyond_loopback_is_refused(text: str) -> None:
    with pytest.raises(InsecureListener, match="insecure = true"):
        check(text, insecure=False)


@pytest.mark.parametrize("text", BEYOND)
def test_unless_the_operator_allowed_it(text: str) -> None:
    check(text, insecure=True)


def test_who_listens_with_files_needs_no_permission_either(tmp_path: Path) -> None:
    tls = Authority(tmp_path).listener()
    check(tls, insecure=False)
    check(f"unix:{tmp_path}/node.sock", insecure=False)
    with pytest.raises(InsecureListener):
        check(f"{tls}:interface=[2001:db8::1]", insecure=False)


@pytest.mark.parametrize(
    ("address", "local"),
    [
        (IPv4Address("TCP", "127.0.0.1", 1), True),
        (IPv4Address("TCP", "10.0.0.1", 1), False),
        (IPv6Address("TCP", "::1", 1), True),
        (IPv6Address("TCP", "::ffff:127.0.0.1", 1), True),
        (IPv6Address("TCP", "::ffff:10.0.0.1", 1), False),
        (IPv6Address("TCP", "fe80::1%eth0", 1), False),
        (UNIXAddress("/run/a"), True),
        (HostnameAddress(b"localhost", 1), False),
    ],
    ids=str,
)
def test_which_ends_are_on_this_machine(address: IAddress, local: bool) -> None:
    assert local is is_local(address)


def test_names_that_are_loopback() -> None:
    hosts = ["localhost", "LOCALHOST.", "a.localhost", "localhosts", "local", ""]
    assert [is_local_host(host) for host in hosts] == [True, True, True, False, False, False]


def test_addresses_for_people() -> None:
    assert describe(IPv4Address("TCP", "127.0.0.1", 7410)) == "tcp:127.0.0.1:7410"
    assert describe(IPv6Address("TCP", "::1", 7410), "tls") == "tls:[::1]:7410"
    assert describe(UNIXAddress("/run/a")) == "unix:/run/a"


# --- transports by scheme


@implementer(ITransport, IPlugin)
class Pigeon(ChecksNothing):
    schemes = ("pigeon",)

    def connector(self, reactor: Any, address: str, make_user: Any, limits: Any) -> Any:
        raise NotImplementedError

    def listen(self, reactor: Any, address: str, make_user: Any, limits: Any) -> Any:
        raise NotImplementedError


def test_the_tcp_transport_is_an_itransport() -> None:
    assert verifyObject(ITransport, Transports().tcp)


@pytest.mark.parametrize("text", ["tcp:h:1", "tls:h:1", "ssl:1", "unix:/a", "TCP:h:1"])
def test_byte_streams_are_served_by_tcp(text: str) -> None:
    transports = Transports()
    assert transports.tcp is transports.find(text)


def test_a_transport_of_ones_own_may_be_registered() -> None:
    pigeon = Pigeon()
    assert pigeon is Transports([pigeon]).find("pigeon:coop")


def test_a_transport_of_a_third_party_is_found_through_twisted_plugin(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pigeon = Pigeon()
    asked: list[Any] = []

    def get_plugins(interface: Any) -> list[Any]:
        asked.append(interface)
        return [pigeon] if interface is ITransport else []

    monkeypatch.setattr(registry, "getPlugins", get_plugins)
    transports = Transports()
    transports.find("tcp:h:1")
    assert asked == []
    assert pigeon is transports.find("pigeon:coop")


def test_a_scheme_of_a_twisted_endpoint_plugin_is_a_byte_stream() -> None:
    transports = Transports()
    assert transports.tcp is transports.find("systemd:domain=INET:index=0")


def test_a_scheme_that_nobody_knows_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(BadAddress, match=r"unknown scheme 'nosuch' \(known: .*tcp.*unix\)"):
        Transports().find("nosuch:h:1")


@pytest.mark.parametrize("address", [7410, None, b"tcp:127.0.0.1:7410"])
def test_an_address_is_text(address: Any) -> None:
    with pytest.raises(TypeError, match=f"^address is a str, not {type(address).__name__}$"):
        parse_address(address)


def test_an_address_without_its_scheme_is_told_so() -> None:
    with pytest.raises(BadAddress, match=r"; did you mean 'tcp:localhost:7410'\?$"):
        Transports().find("localhost:7410")
    with pytest.raises(BadAddress, match=r"\)$"):
        Transports().find("nosuch:somebody")
