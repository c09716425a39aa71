"""Every program on docs/chassis.md runs, and answers as the page says."""

import re
import socket
import subprocess
import sys
import time
from dataclasses import MISSING, fields
from pathlib import Path

import pytest

from msgservice.faces.chassis import ChassisLimits
from tests.kit.ports import free_port

CHECKOUT = Path(__file__).resolve().parents[2]
PAGE = (CHECKOUT / "docs" / "chassis.md").read_text()
PROGRAM = re.compile(
    r'<!-- sends "(?P<sends>.*?)" gets "(?P<gets>.*?)"(?P<ends> ends)? -->\n'
    r"```python\n(?P<program>.*?)```",
    re.DOTALL,
)
PROGRAMS = list(PROGRAM.finditer(PAGE))


def connect(port: int, process: "subprocess.Popen[bytes]") -> socket.socket:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        try:
            client = socket.create_connection(("127.0.0.1", port), timeout=60)
        except ConnectionRefusedError:
            continue
        # Nothing listens yet if the kernel gave the client the very port that it asks for.
        if client.getsockname() != client.getpeername():
            return client
        client.close()
    raise AssertionError(f"nothing listens: {process.poll()}")


def test_every_program_on_the_page_is_run() -> None:
    assert len(PROGRAMS) == PAGE.count("```python") > 0


@pytest.mark.parametrize("found", PROGRAMS, ids=range(len(PROGRAMS)))
def test_a_program_answers_as_the_page_says(found: "re.Match[str]") -> None:
    port = free_port()
    assert "12345" in found["program"]
    program = found["program"].replace("12345", str(port))
    with subprocess.Popen([sys.executable, "-c", program], cwd=CHECKOUT) as process:
        try:
            with connect(port, process) as client:
                client.sendall(found["sends"].encode())
                client.shutdown(socket.SHUT_WR)
                got = b"".join(iter(lambda: client.recv(4096), b""))
            assert got.startswith(found["gets"].encode())
            if found["ends"]:
                assert process.wait(timeout=60) == 0
        finally:
            process.kill()


def test_the_limits_on_the_page_are_those_of_the_code() -> None:
    told = dict(re.findall(r"^\| `(\w+)` \| ([\d.]+) \|", PAGE, re.MULTILINE))
    told.pop("port")
    real = {f.name: str(f.default) for f in fields(ChassisLimits) if f.default is not MISSING}
    assert real == told
