"""A node that runs reads certificates and keys anew: by SIGHUP, and by `msgservice reload`."""

from __future__ import annotations

import signal
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.command import Command
from tests.integration.daemon import PATIENCE, Daemon, running
from tests.kit.certificates import Authority
from tests.unit.test_udp_keys import ONE, OTHER, line, write

pytestmark = pytest.mark.timeout(120)


class Place:
    """A node in a process of its own, with a TLS listener and one for keys."""

    def __init__(self, folder: Path, node: Daemon, authority: Authority) -> None:
        self.node = node
        self.authority = authority
        self.keys = folder / "keys"
        (tcp,) = node.ports()
        self.tls = int(node.wait_for(r"listening on tls:127\.0\.0\.1:(\d+)")[1])
        self.udp = int(node.wait_for(r"listening on udp:127\.0\.0\.1:(\d+)")[1])
        self.ask = Command(f"tcp:127.0.0.1:{tcp}", folder)
        self.over_tls = Command(f"tls:localhost:{self.tls}:trustRoots={authority.ca_file}", folder)

    def over_udp(self, number: int) -> Command:
        own = self.ask.folder / f"{number}.key"
        return Command(f"udp:127.0.0.1:{self.udp}:key={own}:keyId={number}", self.ask.folder)

    def connected(self) -> ssl.SSLSocket:
        context = ssl.create_default_context(cafile=str(self.authority.ca_file))
        plain = socket.create_connection(("127.0.0.1", self.tls), PATIENCE)
        return context.wrap_socket(plain, server_hostname="localhost")


def serial(shown: ssl.SSLSocket) -> object:
    certificate = shown.getpeercert()
    assert certificate is not None
    return certificate["serialNumber"]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    authority = Authority(tmp_path)
    authority.issue("localhost")
    write(tmp_path / "keys", line(1, "shop", ONE))
    for number, key in ((1, ONE), (2, OTHER)):
        write(tmp_path / f"{number}.key", key.hex())
    (tmp_path / "node.toml").write_text(
        "[listen]\n"
        'tcp = ["tcp:0", "tls:0:privateKey=localhost.key:certificate=localhost.crt"]\n'
        'udp = "udp:0:keys=keys"\n'
    )
    command = ("twist", "--log-format=text", "msgservice", "--config", "node.toml")
    with running(*command, cwd=tmp_path) as node:
        yield Place(tmp_path, node, authority)
        assert node.stop() in (0, -signal.SIGTERM)
        assert "Traceback" not in node.said


def test_a_hangup_reads_certificates_and_keys_and_drops_no_connection(place: Place) -> None:
    stands = place.connected()
    place.authority.issue("localhost")
    write(place.keys, line(1, "shop", ONE), line(2, "billing", OTHER))
    place.node.send(signal.SIGHUP)
    place.node.wait_for(
        r"SIGHUP: certificates and keys of 2 address\(es\) were read, 2 changed, 0 cannot be used"
    )
    with stands, place.connected() as later:
        assert serial(later) != serial(stands)
        stands.settimeout(0.2)
        with pytest.raises(TimeoutError):
            stands.recv(1)  # neither data nor an end
    assert 0 == place.over_udp(2)("info").code


def test_the_command_says_of_each_address_what_came_of_its_files(place: Place) -> None:
    tls = f"tls:0:privateKey={place.authority.folder}/localhost.key"
    udp = f"udp:0:keys={place.keys}"
    unchanged = place.ask("reload")
    assert (0, 2) == (unchanged.code, unchanged.out.count("unchanged"))
    place.authority.issue("localhost")
    place.keys.chmod(0o644)
    done = place.over_tls("reload", "--json")
    assert 1 == done.code
    files = {one["address"]: one for one in done.data["files"]}
    assert [udp] == [address for address in files if not address.startswith(tls)]
    assert [False, True] == sorted(one["changed"] for one in files.values())
    assert f"{place.keys}: has mode 0644, others can use it" in files[udp]["problem"]
    assert files[udp]["problem"] in done.err
    for_people = place.ask("reload")
    assert 1 == for_people.code
    assert "cannot be used" in for_people.out
    assert "what cannot be used was left as it was: bad address 'udp:0:keys=" in for_people.err
    assert 0 == place.over_udp(1)("info").code


def test_a_node_that_names_no_files_says_so(msgservice: Command) -> None:
    assert (0, "no address in use names a file\n") == (
        (done := msgservice("reload")).code,
        done.out,
    )
    assert {"files": []} == msgservice.data("reload")
