"""Files of keys for acknowledged UDP: what may stand in them, whose session it is, and changes."""

from __future__ import annotations

from pathlib import Path

import pytest
from twisted.logger import LogEvent, formatEvent

from msgservice.errors import BadAddress
from msgservice.records import Reread
from msgservice.testing.datagrams import datagram_net
from msgservice.transport.addresses import check_listener
from msgservice.transport.registry import Transports
from msgservice.transport.udp.bearer import UdpChannel
from msgservice.transport.udp.keyfile import BadKeys, SharedKeys, read_keys
from tests.unit.test_udp_bearer import Net, Side

ONE, OTHER, THIRD = (bytes([n]) * 32 for n in (0xA1, 0xB2, 0xC3))


def write(path: Path, *lines: str) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines))
    path.chmod(0o600)
    return path


def line(number: int, user: str, key: bytes) -> str:
    return f"{number} {user} {key.hex()}"


# --- the file


def test_a_file_has_a_line_for_each_key(tmp_path: Path) -> None:
    file = write(
        tmp_path / "keys",
        "# who may speak",
        "",
        f"7\tshop   {ONE.hex().upper()}",
        line(255, "billing.eu", OTHER),
        line(8, "shop", THIRD),  # two keys of one user: the one before, while it is replaced
    )
    assert read_keys(str(file)) == SharedKeys(
        {7: ONE, 255: OTHER, 8: THIRD}, {7: "shop", 255: "billing.eu", 8: "shop"}
    )


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ([], "holds no keys: lines of NUMBER USER KEY are needed"),
        (["# none"], "holds no keys"),
        ([f"1 {ONE.hex()}"], ":1: must be NUMBER USER KEY"),
        (["", f"1 shop {ONE.hex()} x"], ":2: must be NUMBER USER KEY"),
        ([f"0 shop {ONE.hex()}"], ":1: the number must be from 1 to 255, not '0'"),
        ([f"256 shop {ONE.hex()}"], "not '256'"),
        ([f"٣ shop {ONE.hex()}"], "the number must be"),
        ([f"{'9' * 5000} shop {ONE.hex()}"], "the number must be"),
        ([f"1 $node {ONE.hex()}"], ":1: the user has no name: names that begin with '$'"),
        ([f"1 a/b {ONE.hex()}"], ":1: the user has no name: '/' is not allowed"),
        ([f"1 shop {ONE.hex()[:-1]}"], ":1: the key must be 64 hexadecimal digits"),
        ([f"1 {ONE.hex()} shop"], ":1: the key must be 64 hexadecimal digits"),
        (
            [line(1, "shop", ONE), line(1, "billing", OTHER)],
            ":2: number 1 is that of line 1 already",
        ),
        ([line(1, "a", ONE), line(2, "b", ONE)], ":2: the key is that of line 1 already"),
    ],
)
def test_a_line_that_cannot_be_is_told_and_no_key_with_it(
    tmp_path: Path, lines: list[str], reason: str
) -> None:
    file = write(tmp_path / "keys", *lines)
    with pytest.raises(BadKeys) as caught:
        read_keys(str(file))
    told = str(caught.value)
    assert told.startswith(str(file))
    assert reason in told
    assert ONE.hex()[:-1] not in told


def test_bytes_that_are_no_text_and_files_without_end_are_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "keys")
    file.write_bytes(b"1 sh\xff " + ONE.hex().encode())
    with pytest.raises(BadKeys, match="is not UTF-8"):
        read_keys(str(file))
    file.write_bytes(b"#" * (256 * 1024 + 1))
    with pytest.raises(BadKeys, match="is larger than 262144 bytes"):
        read_keys(str(file))
    with pytest.raises(BadKeys, match="absent: cannot be read: No such file"):
        read_keys(str(tmp_path / "absent"))
    with pytest.raises(BadKeys, match="cannot be read: Is a directory"):
        read_keys(str(tmp_path))


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o610, 0o602, 0o660, 0o777])
def test_a_file_that_is_open_to_others_is_refused(tmp_path: Path, mode: int) -> None:
    file = write(tmp_path / "keys", line(1, "shop", ONE))
    file.chmod(mode)
    with pytest.raises(BadKeys, match=r"has mode 0[0-7]{3}, others can use it: chmod 600"):
        read_keys(str(file))
    file.chmod(0o400)
    assert read_keys(str(file)).users == {1: "shop"}


def test_keys_are_not_in_what_is_shown_of_them() -> None:
    assert ONE.hex() not in repr(SharedKeys({1: ONE}, {1: "shop"}))
    assert repr(ONE) not in repr(SharedKeys({1: ONE}, {1: "shop"}))


# --- addresses


def test_many_keys_open_a_listener_beyond_loopback(tmp_path: Path) -> None:
    file = write(tmp_path / "keys", line(1, "shop", ONE))
    address = f"udp:0:interface=0.0.0.0:keys={file}"
    check_listener(Transports().find(address), address, insecure=False)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("keys={keys}:key={key}", "keys=FILE has all keys with their numbers"),
        ("keys={keys}:keyId=1", "keys=FILE has all keys with their numbers"),
        ("keys={key}", "must be NUMBER USER KEY"),
        ("key={keys}", "holds no key: 64 hexadecimal digits"),
    ],
)
def test_keys_and_key_are_not_mixed_up(tmp_path: Path, options: str, reason: str) -> None:
    keys = write(tmp_path / "keys", line(1, "shop", ONE))
    key = write(tmp_path / "key", ONE.hex())
    address = f"udp:0:{options.format(keys=keys, key=key)}"
    with pytest.raises(BadAddress, match=reason):
        Transports().find(address).check_listen(address)


def test_who_dials_has_one_key(tmp_path: Path) -> None:
    address = f"udp:127.0.0.1:1:keys={write(tmp_path / 'keys', line(1, 'shop', ONE))}"
    with pytest.raises(BadAddress, match="keys=FILE is a listener's: who dials has one"):
        Transports().find(address).check_dial(address)


# --- sessions


class Place:
    """A node that listens with a file of keys, and clients that dial it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.net = Net()
        self.node = Side(self.net, "node", echo=True)
        self.file = folder / "keys"

    def listen(self, *lines: str) -> None:
        self.write(*lines)
        self.node.listen(7410, f":keys={self.file}")

    def write(self, *lines: str) -> None:
        write(self.file, *lines)

    def dial(self, number: int, key: bytes) -> Side:
        side = Side(self.net, f"client {len(list(self.folder.iterdir()))}")
        file = write(self.folder / f"{number}.{key.hex()[:4]}.key", key.hex())
        side.dial(7410, options=f":key={file}:keyId={number}")
        self.net.run(5)
        return side

    def channel(self, at: int) -> UdpChannel:
        channel = self.node.users[at].channel
        assert isinstance(channel, UdpChannel)
        return channel

    def reload(self) -> list[Reread]:
        read = self.node.transport.reload()
        self.net.run(1)
        return read

    def address(self) -> str:
        return f"udp:7410:keys={self.file}"


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def works(side: Side, net: Net) -> bool:
    """Whether a frame on the last connection of a client comes back."""
    user = side.users[-1]
    count = len(user.frames)
    user.send(b"there?")
    net.run(2)
    return len(user.frames) == count + 1


def test_each_key_of_a_listener_says_whose_session_it_is(place: Place) -> None:
    place.listen(line(1, "shop", ONE), line(2, "billing", OTHER))
    for number, key, user in ((2, OTHER, "billing"), (1, ONE, "shop")):
        client = place.dial(number, key)
        assert works(client, place.net)
        channel = place.channel(-1)
        shown = channel.credentials
        assert (shown.key_user, shown.key_id, shown.is_private) == (user, number, True)
        assert channel.peer_address.endswith(f" ({user})")


def test_who_speaks_from_the_address_of_another_with_a_key_of_its_own_ends_nothing(
    place: Place,
) -> None:
    """Somebody on the path, who hears what the other is told and can use its address."""
    place.listen(line(1, "shop", ONE), line(2, "mallory", OTHER))
    shop = place.dial(1, ONE)
    net = datagram_net(place.net)
    (at,) = [number for number in net.ports if number != 7410]
    arrive = net._arrive

    def on_the_path(datagram: bytes, source: tuple[str, int], number: int) -> None:
        others = [port for port in net.ports if port not in (7410, at)]
        arrive(datagram, (source[0], at) if source[1] in others else source, number)
        for port in others if number == at else ():
            arrive(datagram, source, port)

    setattr(net, "_arrive", on_the_path)  # noqa: B010  # from here on
    mallory = place.dial(2, OTHER)
    assert works(mallory, place.net)
    assert works(shop, place.net)
    assert not shop.users[0].is_lost
    told = [place.channel(n).peer_address for n in (0, 1)]
    assert [f"udp:127.0.0.1:{at} (shop)", f"udp:127.0.0.1:{at} (mallory)"] == told


@pytest.mark.parametrize(("number", "key"), [(2, ONE), (1, OTHER), (3, ONE), (1, THIRD)])
def test_a_key_under_another_number_opens_nothing(place: Place, number: int, key: bytes) -> None:
    place.listen(line(1, "shop", ONE), line(2, "billing", OTHER))
    client = place.dial(number, key)
    place.net.run(120)
    assert ([], []) == (place.node.users, client.users)


def test_a_key_that_is_taken_out_ends_its_sessions_and_no_others(
    place: Place, logged: list[LogEvent]
) -> None:
    place.listen(line(1, "shop", ONE), line(2, "billing", OTHER))
    shop, billing = place.dial(1, ONE), place.dial(2, OTHER)
    place.write(line(2, "billing", OTHER))
    assert [Reread(place.address(), True, None)] == place.reload()
    assert ("lost", "its key is not in use any more") == place.node.users[0].events[-1]
    assert shop.users[0].is_lost  # it was told, and tries again in vain
    place.net.run(300)
    assert (2, 1) == (len(place.node.users), len(shop.users))
    assert not billing.users[0].is_lost
    assert works(billing, place.net)
    lines = [formatEvent(event) for event in logged]
    assert 1 == lines.count(f"keys of {place.address()} were read anew, which ended 1 session(s)")
    assert any("there is no key with keyId=1 here" in text for text in lines)


@pytest.mark.parametrize(
    "after", [line(1, "shop", THIRD), line(1, "other", ONE)], ids=["another key", "another user"]
)
def test_a_key_or_user_that_is_another_now_ends_the_session(place: Place, after: str) -> None:
    place.listen(line(1, "shop", ONE))
    client = place.dial(1, ONE)
    place.write(after)
    place.reload()
    assert place.node.users[0].is_lost
    assert client.users[0].is_lost


def test_a_key_that_is_put_in_counts_from_the_reload_on(place: Place) -> None:
    place.listen(line(1, "shop", ONE))
    shop = place.dial(1, ONE)
    billing = place.dial(2, OTHER)
    assert billing.users == []
    place.write(line(1, "shop", ONE), line(2, "billing", OTHER))
    assert [Reread(place.address(), True, None)] == place.reload()
    place.net.run(40)  # an attempt goes on, and is repeated
    assert works(billing, place.net)
    assert not shop.users[0].is_lost
    assert [Reread(place.address(), False, None)] == place.reload()


@pytest.mark.parametrize("fault", ["open", "wrong", "gone"])
def test_a_file_that_cannot_be_used_changes_nothing(
    place: Place, logged: list[LogEvent], fault: str
) -> None:
    place.listen(line(1, "shop", ONE))
    shop = place.dial(1, ONE)
    if fault == "open":
        place.write(line(2, "billing", OTHER))
        place.file.chmod(0o644)
    elif fault == "wrong":
        place.write(line(2, "billing", OTHER), "3 more")
    else:
        place.file.unlink()
    (read,) = place.reload()
    assert not read.changed
    assert str(place.file) in str(read.problem)
    assert works(shop, place.net)
    assert works(place.dial(1, ONE), place.net)
    told = [formatEvent(event) for event in logged if event["log_level"].name == "error"]
    assert [f"keys cannot be read, those before go on: {read.problem}"] == told


def test_a_listener_that_has_stopped_is_not_looked_at_any_more(place: Place) -> None:
    place.listen(line(1, "shop", ONE))
    (port,) = list(place.node.transport._ports)
    port.stopListening()
    assert [] == place.reload()


def test_the_one_key_of_a_listener_is_read_anew_as_well(tmp_path: Path) -> None:
    place = Place(tmp_path)
    file = write(tmp_path / "key", ONE.hex())
    place.node.listen(7410, f":key={file}")
    client = place.dial(1, ONE)
    assert works(client, place.net)
    write(file, OTHER.hex())
    assert [True] == [read.changed for read in place.reload()]
    assert client.users[0].is_lost
    assert works(place.dial(1, OTHER), place.net)


def test_who_dials_reads_its_key_for_each_attempt(tmp_path: Path, logged: list[LogEvent]) -> None:
    place = Place(tmp_path)
    place.listen(line(1, "shop", OTHER))
    client = Side(place.net, "client")
    own = write(tmp_path / "own", ONE.hex())
    connector = client.dial(7410, options=f":key={own}:timeout=3")
    place.net.run(10)
    assert connector.failures
    own.write_text("half of a k")
    place.net.run(60)
    told = [formatEvent(event) for event in logged if event["log_level"].name == "error"]
    assert 1 == len([text for text in told if "a key cannot be read, the one before" in text])
    write(own, OTHER.hex())
    place.net.run(60)
    assert works(client, place.net)
