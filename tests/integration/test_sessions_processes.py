"""Sessions as processes: the application of the examples, tac files under twistd, and kills."""

from __future__ import annotations

import signal
import socket
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.integration.daemon import Daemon, running
from tests.kit.ports import free_port

ROOT = Path(__file__).resolve().parents[2]

CENTRAL = """
import sys
from twisted.internet import task
from twisted.internet.defer import Deferred
from msgservice.faces.sessions import Central

async def joined(member):
    print("joined", member.key, member.address[1], flush=True)
    receipt = await central.send(member.key, "work")
    await receipt.acknowledged()
    print("acknowledged", member.key, flush=True)

async def main(reactor):
    global central
    central = Central(
        reactor,
        listen=f"tcp:{sys.argv[1]}:interface=127.0.0.1",
        heartbeat=0.2,
        on_joined=joined,
        on_left=lambda member, reason: print("left", member.key, reason, flush=True),
        on_message=lambda message: print("heard", message.content, flush=True),
    )
    _, port = await central.listen()
    print("listening on", port, flush=True)
    await Deferred()

task.react(lambda reactor: task.ensureDeferred(main(reactor)))
"""

REMOTE = """
import os, signal, sys
from twisted.internet import task
from msgservice.faces.sessions import Remote

step = sys.argv[2] if len(sys.argv) > 2 else ""

def die(here):
    if here == step:
        os.kill(os.getpid(), signal.SIGKILL)

def handle(message):
    die("message")
    print("got", message.content, flush=True)

async def main(reactor):
    remote = Remote(
        reactor,
        ("127.0.0.1", int(sys.argv[1])),
        id="shop",
        on_message=handle,
        on_joined=lambda: (die("joined"), remote.send("early"))[1],
        heartbeat_timeout=float(sys.argv[3]) if len(sys.argv) > 3 else 60.0,
    )
    connected, welcome = remote.sender_connected, remote._welcome
    remote.sender_connected = lambda: (connected(), die("hello"))
    remote._welcome = lambda inbound, item: (die("welcome"), welcome(inbound, item))
    await remote.start()
    die("listening")
    print("started", flush=True)
    await remote.send("early")
    ended = await remote.when_shut_down()
    print("ended by", ended.by, flush=True)

task.react(lambda reactor: task.ensureDeferred(main(reactor)))
"""


def test_the_application_of_the_examples_as_processes_in_the_four_steps() -> None:
    with running(sys.executable, "-m", "examples.sessions_central", "2", cwd=ROOT) as central:
        port = central.wait_for(r"listening on (\d+)")[1]
        command = [sys.executable, "-m", "examples.sessions_remote", port]
        with (
            running(*command, "a", cwd=ROOT) as first,
            running(*command, "b", cwd=ROOT) as second,
        ):
            for name, remote in (("a", first), ("b", second)):
                assert remote.ended() == 0
                assert f"{name} ends, by central: all is done" in remote.said
        assert central.ended() == 0
        for name in ("a", "b"):
            lines = [line for line in central.output if line.startswith(name)]
            assert lines[0] == f"{name} has joined\n"
            answers = [f"{name}: {{'number': {n}, 'square': {n * n}}}\n" for n in range(3)]
            assert lines[1:-1] == answers
            assert lines[-1] == f"{name} has left: told to shut down\n"


def tac(name: str, folder: Path, port: int) -> Path:
    file = folder / name
    file.write_text((ROOT / "tac" / name).read_text().replace("1602", str(port)))
    return file


def test_the_tac_files_start_under_twistd_and_speak(tmp_path: Path) -> None:
    port = free_port()
    begin = ["twistd", "-n", "--pidfile=", "-y"]
    with running(*begin, tac("central.tac", tmp_path, port), cwd=tmp_path) as central:
        central.wait_for("starting on|Starting|listening")
        with running(*begin, tac("remote.tac", tmp_path, port), cwd=tmp_path) as remote:
            central.wait_for("worker has joined")
            assert central.wait_for(r"worker: \{'pid': (\d+)\}")[1] == str(remote.pid)
            assert remote.stop() == -signal.SIGTERM
        assert central.stop() == -signal.SIGTERM
        assert "Traceback" not in central.said + remote.said


@pytest.mark.parametrize("name", ["central.tac", "remote.tac"])
def test_a_tac_file_that_cannot_listen_ends_twistd(tmp_path: Path, name: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        file = tac(name, tmp_path, port)
        if name == "remote.tac":  # its own server is at a port that the kernel chooses
            text = file.read_text()
            told = text.replace(
                'id="worker"', f'id="worker", listen="tcp:{port}:interface=127.0.0.1"'
            )
            assert told != text
            file.write_text(told)
        with running("twistd", "-n", "--pidfile=", "-y", file, cwd=tmp_path) as process:
            assert process.ended() == 1
            assert "Address already in use" in process.said


def test_a_remote_that_is_killed_at_a_step_and_begun_again_joins() -> None:
    """Kills of the remote at each of the four steps leave a state from which it recovers.

    Each process comes further than the one before, so what that left behind did no harm.
    """
    with running(sys.executable, "-c", CENTRAL, "0", cwd=ROOT) as central:
        port = central.wait_for(r"listening on (\d+)")[1]
        for step in ("listening", "hello", "welcome", "joined", "message"):
            with running(sys.executable, "-c", REMOTE, port, step, cwd=ROOT) as remote:
                assert remote.ended() == -signal.SIGKILL
        with running(sys.executable, "-c", REMOTE, port, cwd=ROOT) as last:
            last.wait_for("got work")
            central.wait_for("acknowledged shop")


def killed_central(port: int, pattern: str | None) -> None:
    with running(sys.executable, "-c", CENTRAL, str(port), cwd=ROOT) as central:
        central.wait_for(f"listening on {port}")
        if pattern is not None:
            central.wait_for(pattern)
        central.send(signal.SIGKILL)
        assert central.ended() == -signal.SIGKILL


def test_a_central_that_is_killed_and_begun_again_has_its_remotes() -> None:
    """Kills of the central at each of the four steps leave a state from which it recovers.

    The remote lives through all of them, and each central comes further than the one before.
    """
    port = free_port()
    with running(sys.executable, "-c", REMOTE, str(port), cwd=ROOT) as remote:
        remote.wait_for("started")
        for pattern in (None, "joined shop", "heard early", "acknowledged shop"):
            killed_central(port, pattern)
        with running(sys.executable, "-c", CENTRAL, str(port), cwd=ROOT) as central:
            central.wait_for("acknowledged shop")
        assert "ended" not in remote.said


def test_sigkill_of_the_central_ends_the_remote_by_itself() -> None:
    # The central is there first: the silence of one that is still starting counts as well.
    with running(sys.executable, "-c", CENTRAL, "0", cwd=ROOT) as central:
        port = central.wait_for(r"listening on (\d+)")[1]
        with running(sys.executable, "-c", REMOTE, port, "", "5.0", cwd=ROOT) as remote:
            central.wait_for("acknowledged shop")
            central.send(signal.SIGKILL)
            assert central.ended() == -signal.SIGKILL
            remote.wait_for("ended by silence")
            assert remote.ended() == 0


DURABLE_CENTRAL = """
import sys
from twisted.internet import task
from twisted.internet.defer import Deferred, gatherResults
from msgservice import connect
from msgservice.faces.sessions import Central, DurableRemotes

async def main(reactor):
    address = sys.argv[1]
    client = await connect(reactor, address, name="central")
    remotes = DurableRemotes(reactor, client, lambda receiver: receiver.attach(address))
    central = Central(reactor, node=remotes)
    _, port = await central.listen()
    print("listening on", port, flush=True)
    await central.when_joined("shop")
    left = central.when_left("shop")
    await central.shutdown("shop")
    await left
    for numbers in (range(20), range(20, 40)):
        receipts = [await central.send("shop", number) for number in numbers]
        print("stored", len(receipts), flush=True)
        await gatherResults([receipt.acknowledged() for receipt in receipts])
        print("acknowledged", len(receipts), flush=True)
    await central.shutdown("shop", "enough")

task.react(lambda reactor: task.ensureDeferred(main(reactor)))
"""

DURABLE_REMOTE = """
import sys
from twisted.internet import task
from msgservice.faces.sessions import Remote

async def main(reactor):
    async def handle(message):
        print("got", message.content, flush=True)
        if message.content == 25:
            await task.deferLater(reactor, 1.0)  # long enough for a kill

    remote = Remote(reactor, ("127.0.0.1", int(sys.argv[1])), id="shop", on_message=handle)
    await remote.start()
    print("ended by", (await remote.when_shut_down()).by, flush=True)

task.react(lambda reactor: task.ensureDeferred(main(reactor)))
"""


def test_a_node_that_is_killed_between_the_store_and_the_delivery_loses_nothing(
    tmp_path: Path,
) -> None:
    port = free_port()
    begin = ("twist", "--log-format=text", "msgservice", "--listen", f"tcp:{port}")
    with ExitStack() as stack:

        def run(*command: str, cwd: Path = ROOT) -> Daemon:
            return stack.enter_context(running(*command, cwd=cwd))

        def run_node() -> Daemon:
            node = run(*begin, cwd=tmp_path)
            node.ports()
            return node

        def kill(node: Daemon) -> None:
            node.send(signal.SIGKILL)
            assert node.ended() == -signal.SIGKILL

        node = run_node()
        central = run(sys.executable, "-c", DURABLE_CENTRAL, f"tcp:127.0.0.1:{port}")
        remote = (sys.executable, "-c", DURABLE_REMOTE, central.wait_for(r"listening on (\d+)")[1])
        assert run(*remote).ended() == 0  # known to the node, and away
        central.wait_for("stored 20")
        kill(node)
        node = run_node()
        last = run(*remote)
        central.wait_for("acknowledged 20")
        central.wait_for("stored 20")
        last.wait_for("got 25")  # in its hands
        kill(node)
        run_node()
        central.wait_for("acknowledged 20")
        assert last.ended() == 0
        got = [int(line.split()[1]) for line in last.output if line.startswith("got")]
        # In order; what was not acknowledged on disk may have come twice.
        assert list(dict.fromkeys(got)) == list(range(40))
        assert central.ended() == 0
