"""docs/peers.md: its example runs against a real daemon, with and without users."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.daemon import running

CHECKOUT = Path(__file__).resolve().parents[2]
CONFIG = """
[node]
data = "data"
users = "users"
[listen]
pb = "pb:0"
[[user]]
name = "shop"
send = ["orders.>"]
request = ["$node.status"]
"""
PRINTED = ["True", "refused, as it should be: msgservice.errors.BadSubject"]


def example(name: str, *arguments: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-m", f"examples.{name}", *arguments],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert 0 == done.returncode, done.stderr + done.stdout
    return done.stdout.splitlines()


@pytest.mark.timeout(120)
def test_a_plain_program_sends_where_nobody_is_configured(tmp_path: Path) -> None:
    command = ("twist", "--log-format=text", "msgservice", "--listen", "pb:0")
    with running(*command, cwd=tmp_path) as daemon:
        port = daemon.wait_for(r"listening on pb:127\.0\.0\.1:(\d+)")[1]
        first, *rest = example("pb_client", port)
    assert first.startswith("stored at ")
    assert PRINTED == rest


@pytest.mark.timeout(120)
def test_a_plain_program_logs_in_with_the_password_that_the_command_has_set(
    tmp_path: Path,
) -> None:
    (tmp_path / "node.toml").write_text(CONFIG)
    subprocess.run(
        [Path(sys.executable).parent / "msgservice", "passwd", "shop", "--pb", "--config",
         "node.toml"],
        cwd=tmp_path, input=b"secret\n", check=True, timeout=60, capture_output=True,
    )  # fmt: skip
    command = ("twist", "--log-format=text", "msgservice", "--config", "node.toml")
    with running(*command, cwd=tmp_path) as daemon:
        port = daemon.wait_for(r"listening on pb:127\.0\.0\.1:(\d+)")[1]
        _, *rest = example("pb_client", port, "shop", "secret")
        assert PRINTED == rest
        with pytest.raises(AssertionError, match="wrong user or password"):
            example("pb_client", port, "shop", "other")


@pytest.mark.timeout(120)
def test_two_processes_call_each_other(tmp_path: Path) -> None:
    with running(sys.executable, "-m", "examples.pb_peer", "listen", "0", cwd=CHECKOUT) as one:
        port = one.wait_for(r"listening on (\d+)")[1]
        assert ["double of 21 is 42"] == example("pb_peer", "dial", port)
        one.wait_for("double of 21 is 42")
        assert 0 == one.ended()
