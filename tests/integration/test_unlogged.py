"""Programs that begin no log: what they wait for is said on standard error, by itself."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.daemon import PATIENCE, running
from tests.kit.ports import free_port

SENDS = """
from twisted.internet.task import react
from msgservice import connect


async def main(reactor):
    client = await connect(reactor, {address!r}, name="shop")
    print("connected")
    await client.close()


react(main)
"""
RECEIVES = """
from twisted.internet import reactor
from msgservice import Receiver

receiver = Receiver(reactor, name="billing", handler=print)
receiver.attach({address!r}, subjects=["orders.>"])
reactor.run()
"""
LOGS = """
import sys
from twisted.logger import globalLogBeginner, textFileLogObserver

globalLogBeginner.beginLoggingTo([textFileLogObserver(sys.stderr)], redirectStandardIO=False)
"""


@pytest.mark.parametrize("program", [SENDS, RECEIVES], ids=["sends", "receives"])
def test_a_program_without_a_log_says_what_it_waits_for(program: str, tmp_path: Path) -> None:
    port = free_port()
    address = f"tcp:127.0.0.1:{port}"
    with running(sys.executable, "-c", program.format(address=address), cwd=tmp_path) as waiting:
        waiting.wait_for(rf"^msgservice: no connection to {address}: .*refused.*tried again")
        listen = ("twist", "--log-format=text", "msgservice", "--listen", f"tcp:{port}")
        with running(*listen, cwd=tmp_path) as node:
            node.ports()
            waiting.wait_for(rf"^msgservice: connected to {address} again$")


def test_a_node_that_does_not_answer_is_told(tmp_path: Path) -> None:
    with socket.socket() as silent:  # whose connections are made, and have nobody behind them
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"tcp:127.0.0.1:{silent.getsockname()[1]}"
        code = SENDS.format(address=address)
        with running(sys.executable, "-c", code, cwd=tmp_path) as waiting:
            waiting.wait_for(rf"^msgservice: no connection to {address}: no answer")


def test_a_program_with_a_log_has_it_there_and_nowhere_else(tmp_path: Path) -> None:
    port = free_port()
    address = f"tcp:127.0.0.1:{port}"
    code = LOGS + SENDS.format(address=address)
    with running(sys.executable, "-c", code, cwd=tmp_path) as waiting:
        waiting.wait_for(rf"no connection to {address}")
        assert "msgservice: " not in waiting.said


def test_standard_output_is_the_programs_alone(tmp_path: Path) -> None:
    port = free_port()
    address = f"tcp:127.0.0.1:{port}"
    code = SENDS.format(address=address)
    begun = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert begun.stderr is not None
        assert f"no connection to {address}" in begun.stderr.readline()
    finally:
        begun.kill()
        out, _ = begun.communicate(timeout=PATIENCE)
    assert out == ""


def test_a_program_without_standard_error_goes_on(tmp_path: Path) -> None:
    port = free_port()
    address = f"tcp:127.0.0.1:{port}"
    closed = "import sys\nsys.stderr = None\n"
    code = closed + SENDS.format(address=address)
    with running(sys.executable, "-c", code, cwd=tmp_path) as waiting:
        listen = ("twist", "--log-format=text", "msgservice", "--listen", f"tcp:{port}")
        with running(*listen, cwd=tmp_path) as node:
            node.ports()
            waiting.wait_for("^connected$")
