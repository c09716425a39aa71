"""A node whose output nobody reads any more."""

import os
import socket
import subprocess
from pathlib import Path

from tests.integration.command import Command
from tests.integration.daemon import BIN, PATIENCE


def test_a_node_goes_on_when_its_output_is_not_read(tmp_path: Path) -> None:
    read, written = os.pipe()
    address = tmp_path / "node.sock"
    node = subprocess.Popen(
        [BIN / "twist", "--log-format=text", "msgservice", "--listen", f"unix:{address}"],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        stdout=written,
        stderr=written,
    )
    os.close(written)
    try:
        told = b""
        while b"listening on unix" not in told:
            said = os.read(read, 1000)
            assert said, told  # it ended
            told += said
        for _ in range(700):  # each is good for a line and a half
            with socket.socket(socket.AF_UNIX) as peer:
                peer.settimeout(PATIENCE)
                peer.connect(str(address))
                peer.sendall(b"GET / HTTP/1.0\r\n\r\n")
                peer.recv(1000)  # when it was answered, it was logged
        assert 0 == Command(f"unix:{address}", tmp_path)("send", "orders.new", "one").code
        node.terminate()
        node.wait(PATIENCE)  # it ends as well
    finally:
        node.kill()
        node.wait()
        os.close(read)
