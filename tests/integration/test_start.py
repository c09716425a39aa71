"""A node is one command: it says what it listens on, stops cleanly, or says why it cannot start."""

import shutil
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from tests.integration.daemon import BIN, PATIENCE, running

CHECKOUT = Path(__file__).resolve().parents[2]
LOOPBACK = "127.0.0.1"

TWIST = ("twist", "--log-format=text", "msgservice")
TWISTD = ("twistd", "--nodaemon", "--pidfile=", "msgservice")


def accepts(port: int) -> bool:
    socket.create_connection((LOOPBACK, port), timeout=PATIENCE).close()
    return True


@pytest.mark.parametrize("command", [TWIST, TWISTD], ids=["twist", "twistd"])
def test_node_says_what_it_listens_on_and_stops_cleanly(
    command: tuple[str, ...], tmp_path: Path
) -> None:
    listen = ("--listen", "tcp:0", "--listen", "unix:node.sock")
    with running(*command, *listen, cwd=tmp_path) as node:
        (port,) = node.ports()
        node.wait_for(rf"listening on unix:{tmp_path}/node\.sock")
        assert accepts(port)
        assert node.stop() in (0, -signal.SIGTERM)
        assert sum("listening on" in line for line in node.output) == 2
        assert "Traceback" not in node.said
    assert not (tmp_path / "node.sock").exists()
    assert (tmp_path / "var" / "msgservice").is_dir()


@pytest.mark.parametrize("command", [TWIST, TWISTD], ids=["twist", "twistd"])
def test_a_hangup_ends_nothing(command: tuple[str, ...], tmp_path: Path) -> None:
    with running(*command, "--listen", "tcp:0", cwd=tmp_path) as node:
        (port,) = node.ports()
        node.send(signal.SIGHUP)
        node.wait_for("SIGHUP: certificates and keys of 0 address")
        assert accepts(port)
        assert node.stop() in (0, -signal.SIGTERM)


def test_signals_behind_the_one_that_ends_a_node_are_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "node.toml").write_text('[listen]\ntcp = "tcp:0"\n')
    (tmp_path / "node.tac").write_text(
        "import os, signal\n"
        "from twisted.internet import reactor\n"
        "from msgservice.tap import make_application\n"
        "def end():\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "application = make_application('node.toml')\n"
        "reactor.callWhenRunning(end)\n"
        "reactor.addSystemEventTrigger('before', 'shutdown', end)\n"
    )
    with running("twistd", "--nodaemon", "--pidfile=", "-y", "node.tac", cwd=tmp_path) as node:
        assert node.ended() == -signal.SIGTERM
    assert "Traceback" not in node.said
    assert "Received SIGTERM, shutting down" in node.said


def test_configuration_file_is_found_wherever_the_node_is_started(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "node.toml").write_text('[node]\ndata = "data"\n[listen]\ntcp = "tcp:0"\n')
    with running(*TWISTD, "--config", "../node.toml", cwd=elsewhere) as node:
        node.ports()
        assert node.stop() in (0, -signal.SIGTERM)
    assert (tmp_path / "data").is_dir()
    assert list(elsewhere.iterdir()) == []


def test_daemon_that_changes_directory_keeps_its_paths(tmp_path: Path) -> None:
    rundir = tmp_path / "rundir"
    rundir.mkdir()
    (tmp_path / "node.toml").write_text('[node]\ndata = "data"\n[listen]\nunix = "unix:m.sock"\n')
    command = (
        "twistd", "--nodaemon", "--rundir", rundir, "--pidfile", tmp_path / "node.pid",
        "msgservice", "--config", "node.toml",
    )  # fmt: skip
    with running(*command, cwd=tmp_path) as node:
        node.wait_for(rf"listening on unix:{tmp_path}/m\.sock")
        assert node.pid == int((tmp_path / "node.pid").read_text())
        assert node.stop() in (0, -signal.SIGTERM)
    assert (tmp_path / "data").is_dir()
    assert list(rundir.iterdir()) == []


@pytest.mark.parametrize(("tac", "nodes"), [("single", 1), ("pair", 2)])
def test_application_files_run(tac: str, nodes: int, tmp_path: Path) -> None:
    folder = tmp_path / "tac"
    shutil.copytree(CHECKOUT / "tac", folder)
    for settings in folder.glob("*.toml"):
        text = settings.read_text()
        assert "tcp:741" in text
        settings.write_text(text.replace("tcp:7410:", "tcp:0:").replace("tcp:7411:", "tcp:0:"))
    with running(
        "twistd", "--nodaemon", "--pidfile=", "-y", folder / f"{tac}.tac", cwd=Path("/")
    ) as node:
        ports = node.ports(nodes)
        assert nodes == len(set(ports))
        assert all(accepts(port) for port in ports)
        assert node.stop() in (0, -signal.SIGTERM)
        assert "Traceback" not in node.said
    assert nodes == len(list((tmp_path / "var").iterdir()))


@pytest.mark.parametrize("command", [TWIST, TWISTD], ids=["twist", "twistd"])
def test_wrong_configuration_is_told_whole_and_nothing_is_started(
    command: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "node.toml").write_text("[node]\nnmae = 'x'\n[limits]\nheartbeat = 'soon'\n")
    with running(*command, "--config", "node.toml", cwd=tmp_path) as node:
        assert node.ended() != 0
        assert "node.toml:2: node.nmae: unknown key, did you mean 'name'?" in node.said
        assert "node.toml:4: limits.heartbeat: must be a number" in node.said
        assert "Traceback" not in node.said
    assert [path.name for path in tmp_path.iterdir()] == ["node.toml"]


def test_32_listener_beyond_this_machine_is_refused(tmp_path: Path) -> None:
    with running(*TWIST, "--listen", "tcp:0:interface=0.0.0.0", cwd=tmp_path) as node:
        assert node.ended() != 0
        assert "insecure = true" in node.said
        assert "Traceback" not in node.said
    assert list(tmp_path.iterdir()) == []


def test_port_in_use_ends_the_start_with_a_sentence(tmp_path: Path) -> None:
    with socket.create_server((LOOPBACK, 0)) as taken:
        port = taken.getsockname()[1]
        with running(*TWIST, "--listen", f"tcp:{port}", cwd=tmp_path) as node:
            assert node.ended() not in (0, -signal.SIGTERM)
            assert f"cannot listen on tcp:{port}" in node.said
            assert "Traceback" not in node.said


def in_background(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Start a node as a daemon, as an operator does; return what the shell sees of it."""
    command = ("twistd", "--pidfile=node.pid", "--logfile=node.log", "msgservice", *words)
    return subprocess.run(
        [BIN / command[0], *command[1:]],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


@pytest.mark.parametrize("scheme", ["tcp", "udp", "unix"])
def test_a_daemon_whose_listener_is_taken_says_so_before_it_leaves_the_terminal(
    scheme: str, tmp_path: Path
) -> None:
    kind = socket.SOCK_DGRAM if scheme == "udp" else socket.SOCK_STREAM
    family = socket.AF_UNIX if scheme == "unix" else socket.AF_INET
    with socket.socket(family, kind) as taken:
        taken.bind(str(tmp_path / "s") if scheme == "unix" else (LOOPBACK, 0))
        if scheme != "udp":
            taken.listen()
        where = f"unix:{tmp_path}/s" if scheme == "unix" else f"{scheme}:{taken.getsockname()[1]}"
        ended = in_background(tmp_path, "--listen", where)
    assert ended.returncode not in (0, -signal.SIGTERM)
    assert ended.stderr.startswith(f"msgservice: cannot listen on {where}: ")
    assert ended.stderr.count("\n") == 1
    assert not (tmp_path / "node.pid").exists()


def test_a_daemon_whose_folder_is_held_says_so_before_it_leaves_the_terminal(
    tmp_path: Path,
) -> None:
    with running(*TWIST, "--listen", "tcp:0", cwd=tmp_path) as first:
        first.ports()
        ended = in_background(tmp_path, "--listen", "tcp:0")
        assert ended.returncode not in (0, -signal.SIGTERM)
        assert ended.stderr.strip().endswith(
            f"is held by process {first.pid}: stop that first, or use another"
        )
        assert not (tmp_path / "node.pid").exists()


def test_a_daemon_whose_folder_cannot_be_made_says_so_before_it_leaves_the_terminal(
    tmp_path: Path,
) -> None:
    ended = in_background(tmp_path, "--listen", "tcp:0", "--data", "/proc/nothere")
    assert ended.returncode not in (0, -signal.SIGTERM)
    assert "--data: node.data: " in ended.stderr
    assert not (tmp_path / "node.pid").exists()


@pytest.mark.parametrize("command", [TWIST, TWISTD], ids=["twist", "twistd"])
def test_33_folder_of_another_process_is_refused_and_names_it(
    command: tuple[str, ...], tmp_path: Path
) -> None:
    with running(*TWIST, "--listen", "tcp:0", cwd=tmp_path) as first:
        (port,) = first.ports()
        with running(*command, "--listen", "tcp:0", cwd=tmp_path) as second:
            assert second.ended() not in (0, -signal.SIGTERM)
            assert f"{tmp_path}/var/msgservice is held by process {first.pid}" in second.said
            assert "Traceback" not in second.said
        assert accepts(port)


@pytest.mark.parametrize("folder", ["file/data", "/proc/msgservice"])
def test_folder_that_cannot_be_made_is_refused(folder: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with running(*TWIST, "--listen", "tcp:0", "--data", folder, cwd=tmp_path) as node:
        assert node.ended() not in (0, -signal.SIGTERM)
        assert f"data folder {tmp_path / folder} cannot be used" in node.said
        assert "Traceback" not in node.said
