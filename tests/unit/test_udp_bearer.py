"""The bearer of frames over acknowledged UDP, on simulated datagrams: whose session it is."""

from __future__ import annotations

from pathlib import Path

import pytest
from twisted.internet.defer import Deferred
from twisted.logger import LogEvent, formatEvent

from msgservice.errors import FrameTooLarge
from msgservice.limits import Limits
from msgservice.testing.datagrams import Address, DatagramPort, datagram_net
from msgservice.testing.network import CALM, FaultyWorld
from msgservice.testing.transport import Process
from msgservice.transport.dialling import Connector
from msgservice.transport.udp.transport import UdpTransport
from tests.kit.channels import Recorder

LIMITS = Limits()


class Net(FaultyWorld):
    """A calm world that remembers who sent what kind of datagram: (from port, to port, letter)."""

    def __init__(self) -> None:
        super().__init__(1, faults=CALM, limits=LIMITS)
        self.datagrams: list[tuple[int, int, str]] = []
        net = datagram_net(self)
        carry = net.carry

        def remember(source: DatagramPort, datagram: bytes, to: Address) -> None:
            self.datagrams.append((source.address[1], to[1], chr(datagram[0])))
            carry(source, datagram, to)

        setattr(net, "carry", remember)  # noqa: B010  # watched from here on


class Side:
    """A process with a UDP transport, and the users of its channels."""

    def __init__(self, net: Net, name: str, *, echo: bool = False, limits: Limits = LIMITS) -> None:
        random = net.random
        self._limits = limits
        self.process = Process(net, name)
        self.transport = UdpTransport(rng=random.random, entropy=random.randbytes)
        self.users: list[Recorder] = []
        self._echo = echo

    def user(self) -> Recorder:
        made = Recorder()
        made.on_opened = lambda channel: channel.established()
        if self._echo:
            made.on_frames = made.send_back
        self.users.append(made)
        return made

    def listen(self, port: int, options: str = "") -> None:
        address = f"udp:{port}{options}"
        self.transport.listen(self.process.clock, address, self.user, self._limits)

    def dial(self, port: int, host: str = "127.0.0.1", options: str = "") -> Connector:
        made = self.transport.connector(
            self.process.clock, f"udp:{host}:{port}{options}", self.user, self._limits
        )
        assert isinstance(made, Connector)
        made.startService()
        return made


def test_what_is_said_to_a_session_that_has_just_ended_begins_no_other() -> None:
    net = Net()
    node, client = Side(net, "node", echo=True), Side(net, "client")
    node.listen(7410)
    connector = client.dial(7410)
    net.run(1)
    # One read brings the last frame and the end behind it: the answer is for nobody.
    client.users[0].send(b"last words")
    connector.stopService()
    channel = client.users[0].channel
    assert channel is not None
    channel.send_now([])
    channel.abort()
    net.datagrams.clear()
    net.run(120)

    assert [b"last words"] == node.users[0].frames
    assert node.users[0].is_lost
    assert 1 == len(node.users)
    assert [] == [letter for source, _, letter in net.datagrams if source == 7410]


def test_one_that_was_refused_for_good_dials_only_now_and_then() -> None:
    net = Net()
    node, client = Side(net, "node"), Side(net, "client")
    node.listen(7410)
    connector = client.dial(7410)
    net.run(1)
    client.users[0].refusal = "another name is configured"
    assert node.users[0].channel is not None
    node.users[0].channel.close()
    net.run(1)
    assert client.users[0].is_lost
    assert connector.last_error == "another name is configured"
    waits = connector.next_attempt_in
    assert waits is not None
    assert waits >= Limits().link_delay_max / 2 - 1
    net.run(Limits().link_delay_max)
    assert len(client.users) == 2


def test_one_that_is_started_while_it_closes_dials_when_it_has_closed() -> None:
    net = Net()
    node, client = Side(net, "node"), Side(net, "client")
    node.listen(7410)
    connector = client.dial(7410)
    net.run(1)
    stopped: list[None] = []
    connector.stopService().addCallback(stopped.append)
    connector.startService()
    net.run(2)
    assert (stopped, len(client.users), connector.failures) == ([None], 2, 0)
    assert client.users[0].is_lost
    assert connector.channel is client.users[1].channel
    connector.stopService().addCallback(stopped.append)
    connector.startService()
    connector.stopService()
    net.run(120)
    assert (stopped, len(client.users), connector.channel) == ([None, None], 2, None)


def test_a_name_that_is_found_late_is_dialled_once() -> None:
    net = Net()
    node, client = Side(net, "node"), Side(net, "client")
    node.listen(7410)
    looked_up: list[Deferred[str]] = []

    def resolve(name: str) -> Deferred[str]:
        looked_up.append(Deferred())
        return looked_up[-1]

    client.process.clock.resolve = resolve  # type: ignore[attr-defined]  # as a reactor has it
    connector = client.dial(7410, "localhost")
    for _ in range(2):
        connector.stopService()
        connector.startService()
        connector.startService()
        net.run(0.1)
    for found in looked_up:
        found.callback("127.0.0.1")
    net.run(2)
    assert (len(looked_up), len(client.users), len(node.users)) == (3, 1, 1)
    senders = {source for source, to, _ in net.datagrams if to == 7410}
    assert len(senders) == 1
    connector.stopService()
    net.run(60)
    assert connector.channel is None


def test_a_connector_hears_nobody_but_whom_it_dials() -> None:
    net = Net()
    node, client, stranger = Side(net, "node"), Side(net, "client"), Side(net, "stranger")
    node.listen(7410)
    connector = client.dial(7410)
    net.run(1)
    channel = connector.channel
    (port,) = {source for source, to, _ in net.datagrams if to == 7410}
    net.datagrams.clear()
    stranger.dial(port)
    net.run(5)

    assert [] == [letter for source, _, letter in net.datagrams if source == port]
    assert [] == stranger.users
    assert 1 == len(client.users)
    assert channel is connector.channel
    client.users[0].send(b"still here")
    net.run(1)
    assert [b"still here"] == node.users[0].frames


def test_a_frame_that_the_other_side_does_not_take_is_refused_by_its_limit() -> None:
    net = Net()
    small = Limits(max_batch=4096)
    node, client = Side(net, "node", limits=small), Side(net, "client")
    node.listen(7410)
    client.dial(7410)
    net.run(1)

    with pytest.raises(FrameTooLarge, match=f"at most {small.frame_bytes} allowed"):
        client.users[0].send(bytes(small.frame_bytes + 1))
    client.users[0].send(b"still here")
    client.users[0].send(bytes(small.frame_bytes))
    net.run(1)

    assert [b"still here", bytes(small.frame_bytes)] == node.users[0].frames
    assert not client.users[0].is_lost


def test_part_of_a_frame_counts_as_heard() -> None:
    net = Net()
    node, client = Side(net, "node"), Side(net, "client")
    node.listen(7410)
    client.dial(7410)
    net.run(10)
    channel = node.users[0].channel
    assert channel is not None
    before = channel.heard_at
    carried = len(net.datagrams)
    client.users[0].send(bytes(900_000))
    while len(net.datagrams) < carried + 20:
        net.run(0.001)
    assert [] == node.users[0].frames
    assert channel.heard_at > before


def test_one_that_takes_nothing_of_what_waits_for_it_is_let_go_though_it_is_heard() -> None:
    net = Net()
    node, client = Side(net, "node"), Side(net, "client")
    node.listen(7410)
    client.dial(7410)
    net.run(1)
    near, far = node.users[0], client.users[0]
    assert near.channel is not None
    assert far.channel is not None
    far.channel.pause()
    for _ in range(30):
        near.send(bytes(500_000))
    for _ in range(int(LIMITS.write_timeout) - 2):
        net.run(1)
        far.send(b"a sign of life")
    assert not near.is_lost
    assert near.channel.heard_at > LIMITS.write_timeout - 5
    net.run(10)
    assert near.is_lost
    assert "reading what was sent not within 30 s" in str(near.events)


def test_one_that_takes_a_little_of_it_now_and_then_is_kept() -> None:
    net = Net()
    node, client = Side(net, "node"), Side(net, "client")
    node.listen(7410)
    client.dial(7410)
    net.run(1)
    near, far = node.users[0], client.users[0]
    assert far.channel is not None
    far.channel.pause()
    for _ in range(30):
        near.send(bytes(500_000))
    for _ in range(4):
        net.run(LIMITS.write_timeout - 5)
        far.channel.resume()  # which takes what has come
        far.channel.pause()
    assert not near.is_lost


def _warnings(logged: list[LogEvent], text: str) -> list[str]:
    said = [formatEvent(event) for event in logged if event["log_level"].name == "warn"]
    return [line for line in said if text in line]


@pytest.mark.parametrize(
    ("here", "there", "reason"),
    [
        (":key={0}", ":key={1}", "its key with keyId=1 is not the one that is here"),
        (":key={0}", ":key={0}:keyId=7", "there is no key with keyId=7 here"),
        (":key={0}", "", "it has no key, and one is needed here"),
        ("", ":key={0}", "it has a key (keyId=1), and none was given here"),
    ],
)
def test_a_peer_with_another_key_is_told_at_both_ends_and_not_with_every_datagram(
    tmp_path: Path, logged: list[LogEvent], here: str, there: str, reason: str
) -> None:
    keys = [tmp_path / "one.key", tmp_path / "other.key"]
    for number, key in enumerate(keys):
        key.write_text(f"{number:064x}")
    net = Net()
    node, client = Side(net, "node"), Side(net, "client")
    node.listen(7410, here.format(*keys))
    connector = client.dial(7410, options=there.format(*keys))
    net.run(29)  # not one whole attempt

    assert len(net.datagrams) > 2
    (line,) = _warnings(logged, "is not answered")
    assert reason in line
    assert line.startswith("udp:127.0.0.1:")
    silence = "no answer (nobody is there, or has this key) for 1.5 s"
    (line,) = _warnings(logged, "no connection to")
    assert silence in line
    assert connector.last_error == silence
    net.run(120)
    assert 2 <= len(_warnings(logged, "is not answered")) <= 3  # one a minute
    assert 1 == len(_warnings(logged, "no connection to"))
