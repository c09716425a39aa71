"""The real Kamaelia against our servers, and the same programs on its server and on ours.

Every side is a process of its own: Kamaelia's scheduler and the reactor do not share one.
"""

import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kit.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
# Kamaelia warns about its own syntax on newer Pythons.
PYTHON = [sys.executable, "-W", "ignore"]
SECONDS_MAX = 60

Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start processes that end with the test."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*arguments: str, **more: Any) -> "subprocess.Popen[bytes]":
        process = subprocess.Popen(
            [*PYTHON, *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def our_server(start: Start, what: str) -> int:
    """Start one of our servers and return its port."""
    process = start("-m", "tests.interop.chassis_programs", what)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.strip().isdigit(), process.communicate()
    return int(line)


def kamaelia(what: str, port: int, data: bytes = b"") -> bytes:
    """Run a Kamaelia program to its end, and return what it prints."""
    done = subprocess.run(
        [*PYTHON, "-m", "tests.interop.kamaelia_programs", what, str(port)],
        cwd=ROOT,
        input=data,
        capture_output=True,
        timeout=SECONDS_MAX,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def say(port: int, data: bytes) -> bytes:
    """Send `data` to a server and return as much as it has, with a plain socket."""
    with socket.create_connection(("127.0.0.1", port), timeout=SECONDS_MAX) as client:
        client.sendall(data)
        got = b""
        while len(got) < len(data) and (piece := client.recv(65536)):
            got += piece
        return got


def wait_for(port: int, process: "subprocess.Popen[bytes]") -> None:
    """Wait until something listens on `port`."""
    while process.poll() is None:
        with socket.socket() as probe:
            connected = probe.connect_ex(("127.0.0.1", port)) == 0
            # Nothing listens yet if the kernel gave the probe the very port that it asks for.
            if connected and probe.getsockname() != probe.getpeername():
                return
    pytest.fail(str(process.communicate()))


def test_their_client_gets_six_megabytes_back_exactly(start: Start) -> None:
    sent = b"".join(b"line %06d of six megabytes of data\r\n" % n for n in range(170_000))
    assert len(sent) > 6_000_000
    assert kamaelia("exchange", our_server(start, "echo"), sent) == sent


def test_their_client_is_greeted_with_its_own_addresses(start: Start) -> None:
    port = our_server(start, "greeter")
    # As much comes back as was sent, so 60 bytes of the greeting.
    greeting = kamaelia("exchange", port, b"x" * 60)
    expected = rb"Welcome! You have connected to 127\.0\.0\.1 on port %d from 1.*" % port
    assert re.fullmatch(expected, greeting), greeting


def test_their_client_gets_all_that_a_handler_sent_before_it_closed(start: Start) -> None:
    expected = b"".join(b"line %d\r\n" % number for number in range(1000))
    assert kamaelia("receive", our_server(start, "lines")) == expected


def test_a_pipeline_of_theirs_is_fed_by_ours(start: Start) -> None:
    expected = b"".join(b"LINE %d\r\n" % number for number in range(1000))
    assert kamaelia("pipeline", our_server(start, "lines")) == expected


def test_their_server_and_ours_answer_a_plain_client_alike(start: Start) -> None:
    port = free_port()
    wait_for(port, start("-m", "tests.interop.kamaelia_programs", "serve", str(port)))
    sent = bytes(range(256)) * 2000
    assert say(port, sent) == say(our_server(start, "echo"), sent) == sent


def test_the_examples_run_on_kamaelia_with_only_their_import_lines_changed(start: Start) -> None:
    port = free_port()
    source = (ROOT / "examples" / "chassis_echo.py").read_text()
    ours = re.compile(r"^from msgservice\..*$", re.MULTILINE)
    theirs = "import Axon.Component, Axon.Ipc\nfrom Kamaelia.Chassis.ConnectedServer import *"
    program = ours.sub("", source).replace("import sys", "import sys\n" + theirs)
    assert "msgservice" not in program
    process = start("-c", program.replace("12345", str(port)), "greeter")
    wait_for(port, process)
    with socket.create_connection(("127.0.0.1", port), timeout=SECONDS_MAX) as client:
        expected = "Welcome! You have connected to {} on port {} from {} on port {}"
        addresses = *client.getpeername(), *client.getsockname()
        assert client.recv(1000) == expected.format(*addresses).encode()
        client.sendall(b"hello")
        assert client.recv(1000) == b"hello"
