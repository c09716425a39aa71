"""Announcements: the datagram, every three seconds, and the older server that wins."""

from typing import Any

import pytest
from twisted.internet.task import Clock

from msgservice.errors import MalformedFrame
from msgservice.faces.callbacks.discovery import ServerBeacon, ServerWatch
from msgservice.faces.callbacks.net import ServerAddress, parse_server_ip
from msgservice.faces.callbacks.protocol.wire import Encoder
from tests.kit.callbacks_vectors import VECTORS

ADDRESS = ServerAddress(host="192.168.1.101", port=25000, server_id="0042", start_time=1700000000.5)


def server(server_id: str, start_time: float) -> ServerAddress:
    return ServerAddress(host="10.0.0.1", port=1, server_id=server_id, start_time=start_time)


class UdpClock(Clock):
    """A clock with UDP ports that keep what is sent."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[tuple[float, bytes, tuple[str, int]]] = []
        self.protocols: list[Any] = []
        self.stopped = 0
        self.broadcast = False
        self.error: OSError | None = None

    def listenUDP(self, port: int, protocol: Any, **options: Any) -> "UdpClock":
        protocol.transport = self
        self.protocols.append(protocol)
        return self

    def setBroadcastAllowed(self, allowed: bool) -> None:
        self.broadcast = allowed

    def write(self, datagram: bytes, address: tuple[str, int]) -> None:
        if self.error is not None:
            raise self.error
        self.sent.append((self.seconds(), datagram, address))

    def stopListening(self) -> None:
        self.stopped += 1


def test_datagram_is_byte_for_byte_the_captured_one() -> None:
    assert VECTORS["udp_server_ip"] == ADDRESS.datagram()


def test_captured_datagram_is_understood() -> None:
    assert ADDRESS == parse_server_ip(VECTORS["udp_server_ip"])


WRONG = {
    "empty": b"",
    "cut": VECTORS["udp_server_ip"][:-1],
    "twice": VECTORS["udp_server_ip"] * 2,
    "another action": VECTORS["message_empty"],
    "no message": b"hello",
    "no host": Encoder("little").action("server_ip", (), {"port": "1"}),
    "port 0": VECTORS["udp_server_ip"].replace(b"25000", b"00000"),
    "port too high": VECTORS["udp_server_ip"].replace(b"25000", b"99999"),
    "port no number": VECTORS["udp_server_ip"].replace(b"25000", b"x5000"),
    "never began": VECTORS["udp_server_ip"].replace(b"1700000000.5", b"         nan"),
    "host no string": Encoder("little").action(
        "server_ip", (), {"host": 5, "port": "1", "id": "1", "start_time": "1"}
    ),
}


@pytest.mark.parametrize("datagram", WRONG.values(), ids=WRONG.keys())
def test_datagram_that_is_no_announcement_is_refused(datagram: bytes) -> None:
    with pytest.raises(MalformedFrame):
        parse_server_ip(datagram)


def test_server_announces_itself_every_three_seconds_after_the_first_three() -> None:
    clock = UdpClock()
    beacon = ServerBeacon(clock, ADDRESS)
    beacon.startService()
    assert clock.broadcast
    for _ in range(100):
        clock.advance(0.1)
    assert [round(at) for at, _, _ in clock.sent] == [3, 6, 9]
    assert {(VECTORS["udp_server_ip"], ("255.255.255.255", 8181))} == {
        (datagram, address) for _, datagram, address in clock.sent
    }
    beacon.stopService()
    clock.advance(100)
    assert len(clock.sent) == 3
    assert clock.stopped == 1


def test_network_that_is_away_does_not_end_the_announcements() -> None:
    clock = UdpClock()
    ServerBeacon(clock, ADDRESS).startService()
    clock.error = OSError("network is unreachable")
    clock.advance(3)
    clock.error = None
    clock.advance(3)
    assert len(clock.sent) == 1


@pytest.mark.parametrize(
    ("other", "gives_way"),
    [
        (server("0001", 99.0), True),
        (server("0001", 100.0), True),  # as old: the smaller id stays
        (server("9999", 100.0), False),
        (server("0001", 101.0), False),
        (server("0500", 1.0), False),  # itself
    ],
)
def test_older_server_wins(other: ServerAddress, gives_way: bool) -> None:
    clock = UdpClock()
    older: list[ServerAddress] = []
    beacon = ServerBeacon(clock, server("0500", 100.0), on_older=older.append)
    beacon.startService()
    beacon.hear(other)
    assert older == ([other] if gives_way else [])
    assert bool(beacon.running) is not gives_way


def test_of_two_servers_exactly_one_stays() -> None:
    for a, b in [("1", "2"), ("2", "1")]:
        clock = UdpClock()
        watch = ServerWatch(clock)
        watch.startService()
        one, two = (ServerBeacon(clock, server(i, 5.0), watch=watch) for i in (a, b))
        one.startService()
        two.startService()
        for beacon in (one, two):
            clock.protocols[0].datagramReceived(beacon.own.datagram(), ("10.0.0.1", 1))
        assert [bool(one.running), bool(two.running)] == [a == "1", b == "1"]


def test_wait_for_an_announcement_ends_with_it_or_in_time() -> None:
    clock = UdpClock()
    heard: list[ServerAddress] = []
    watch = ServerWatch(clock, heard.append)
    watch.startService()
    results: list[Any] = []
    watch.next_address(4.0).addCallback(results.append)
    clock.protocols[0].datagramReceived(b"noise", ("10.0.0.1", 1))
    assert not results
    clock.protocols[0].datagramReceived(VECTORS["udp_server_ip"], ("10.0.0.1", 1))
    assert [ADDRESS] == results == heard
    watch.next_address(4.0).addCallback(results.append)
    clock.advance(4.0)
    assert [ADDRESS, None] == results
    watch.next_address(4.0).addCallback(results.append)
    watch.stopService()
    assert [ADDRESS, None, None] == results
    assert not clock.getDelayedCalls()
