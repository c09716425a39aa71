"""`msgservice node`: what it says of itself, how it ends, and what it refuses to begin with."""

import json
import signal
from pathlib import Path

import pytest

from tests.integration.command import Command
from tests.integration.daemon import running
from tests.kit.ports import free_port


def configured(folder: Path, more: str = "") -> tuple[str, ...]:
    (folder / "node.toml").write_text(f'[listen]\ntcp = "tcp:0"\nweb = "tcp:0"\n{more}')
    return ("msgservice", "node", "--config", "node.toml")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_says_what_somebody_at_a_terminal_wants_to_know(
    tmp_path: Path, number: signal.Signals
) -> None:
    with running(*configured(tmp_path), cwd=tmp_path) as node:
        node.wait_for(rf"^  data        {tmp_path}/var/msgservice$")
        at = node.wait_for(r"^  listens on  (tcp:127\.0\.0\.1:\d+)$")[1]
        node.wait_for(r"^  page        http://127\.0\.0\.1:\d+/$")
        node.wait_for(r"^  who may     everybody on this machine")
        node.wait_for(r"^  stop        Ctrl-C")
        assert Command(at, tmp_path)("send", "a.b", "one").code == 0
        node.send(number)
        assert node.ended() == 0
        assert "stopped" in node.said


def test_who_may_is_said_as_it_is_configured(tmp_path: Path) -> None:
    user = '[[user]]\nname = "shop"\nuid = 0\n'
    with running(*configured(tmp_path, user), cwd=tmp_path) as node:
        node.wait_for("^  who may     1 configured user, each after a login$")
    with running(*configured(tmp_path), "--insecure", cwd=tmp_path) as node:
        node.wait_for(
            "^  who may     whoever reaches these addresses: insecure, as it was asked for"
        )


def test_with_json_each_line_is_an_object(tmp_path: Path) -> None:
    with running(*configured(tmp_path), "--log-format", "json", cwd=tmp_path) as node:
        node.wait_for("listening on")
        node.wait_for("listening on")
        node.send(signal.SIGTERM)
        node.ended()
        assert all(isinstance(json.loads(line), dict) for line in node.output)


def test_what_it_cannot_begin_with_is_said_and_told_by_the_exit_code(tmp_path: Path) -> None:
    msgservice = Command("", tmp_path)
    for words, said in (
        (("--limit", "x"), "--limit takes NAME=VALUE, not 'x'"),
        (("--limit", "x=1"), "limits.x: unknown key (all are in docs/configuration.md)"),
        (("--limit", "max_byte=1"), "limits.max_byte: unknown key, did you mean 'max_bytes'?"),
        (("--listen", "nonsense"), "listen.nonsense"),
        (("--listen", "7499"), "bad address '7499': has no scheme, tcp:7499 may be meant"),
        (("--listen", "localhost:7499"), "tcp:7499:interface=localhost may be meant"),
        (("--listen", "tcp:0.0.0.0:7499"), "behind it: tcp:7499:interface=0.0.0.0"),
        (("--listen", "http://127.0.0.1:7480"), "HTTP is served in a configuration: web = "),
        (("--config", "none.toml"), "none.toml"),
        (
            ("--listen", "tcp:0:interface=0.0.0.0"),
            "configure users ([[user]]), or allow it by insecure = true in [node], or --insecure",
        ),
    ):
        done = msgservice("node", *words)
        assert (done.code, done.out, said in done.err) == (2, "", True), done
    at = f"tcp:{free_port()}:interface=127.0.0.1"
    with running("msgservice", "node", "--listen", at, "--data", "one", cwd=tmp_path) as node:
        node.wait_for("^  stop")
        taken = msgservice("node", "--listen", at, "--data", "two")
        assert (taken.code, at in taken.err) == (1, True), taken
        assert "Address already in use: stop what listens there" in taken.err
        held = msgservice("node", "--listen", "tcp:0", "--data", "one")
        assert (held.code, f"process {node.pid}: stop that first" in held.err) == (1, True), held
