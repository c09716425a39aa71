"""`msgservice dev`: what a developer sees, that it is true, and that it adds up however it ends."""

from __future__ import annotations

import json
import os
import select
import signal
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.integration.command import Command
from tests.integration.daemon import PATIENCE, Daemon, running
from tests.kit.ports import free_port

ANYWHERE = ("--listen", "tcp:0", "--page", "tcp:0:interface=127.0.0.1")
Event = dict[str, Any]


def dev(*words: str) -> tuple[str, ...]:
    return ("msgservice", "dev", *ANYWHERE, *words)


def events_of(program: Daemon) -> list[Event]:
    return [json.loads(line) for line in program.output]


def event_of(program: Daemon, name: str) -> Event:
    """Return the next event of this name."""
    program.wait_for(f'"event":"{name}"')
    event: Event = json.loads(program.output[-1])
    return event


def named(events: Sequence[Event], name: str) -> list[Event]:
    return [event for event in events if event["event"] == name]


def test_a_message_that_somebody_sends_is_seen_on_its_way(tmp_path: Path) -> None:
    with running(*dev("--every", "0"), cwd=tmp_path) as program:
        node = program.wait_for(r"^  node +(tcp:127\.0\.0\.1:\d+)$")[1]
        page = program.wait_for(r"^  page +(http://127\.0\.0\.1:\d+/)$")[1]
        folder = Path(program.wait_for(r"^  data +(/\S+), removed at the end$")[1])
        said = program.wait_for(r"^  send +msgservice (send \S+) 'one espresso' --node (\S+)$")
        assert said[2] == node
        program.wait_for(r"^  stop +Ctrl-C$")
        with urllib.request.urlopen(page, timeout=PATIENCE) as answer:
            assert b"<title>msgservice</title>" in answer.read()
        sent = Command(node, tmp_path)(*said[1].split(), "one espresso", "--id", "o-1", "--wait")
        assert (sent.code, "shipping  acknowledged" in sent.out) == (0, True), sent
        assert folder.is_dir()
        program.send(signal.SIGINT)
        assert program.ended() == 0
    for receiver in ("billing", "shipping"):
        assert f"o-1         {receiver:<9} took it\n" in program.said
        assert f"  {receiver:<8}" + "".join(f"{n:>11}" for n in (1, 1, 0, 0, 0)) in program.said
    assert "0 messages of its own: it adds up" in program.said
    assert "Traceback" not in program.said
    assert not folder.exists()


@pytest.mark.timeout(600)
def test_chaos_is_what_its_seed_draws_and_what_happens_is_what_was_drawn(tmp_path: Path) -> None:
    words = dev("--chaos", "--seed", "11", "--count", "18", "--every", "0.02", "--json")
    with running(*words, cwd=tmp_path) as one, running(*words, cwd=tmp_path) as other:
        assert one.ended() == other.ended() == 0
        plays = [events_of(one), events_of(other)]
    drawn = [{sent["message"]: sent["acts"] for sent in named(play, "sent")} for play in plays]
    assert drawn[0] == drawn[1]
    assert len(drawn[0]) == 18
    for play in plays:
        for receipt in named(play, "receipt"):
            for receiver, acts in drawn[0][receipt["message"]].items():
                state = receipt["receivers"][receiver]
                is_dead = acts == ["reject"] or acts == ["refuse"] * 3
                assert state["status"] == ("dead" if is_dead else "acknowledged"), receipt
        killed = {event["message"] for event in named(play, "killed")}
        assert killed == {who for who, acts in drawn[0].items() if "die" in acts["shipping"]}
        again = [event for event in named(play, "refused") if event["again"]]
        assert again
        assert {event["receiver"] for event in again} == {"billing", "shipping"}
        (account,) = named(play, "account")
        assert account["discrepancies"] == []
        assert (account["sent"], account["kills"]) == (18, len(killed))
        for row in account["receivers"].values():
            assert row["sent"] == 18 == row["delivered"] + row["dead"]
            assert row["waiting"] == row["other"] == row["unaccounted"] == 0
        pids = {event["pid"] for event in named(play, "back")}
        assert len(pids) == len(killed) == 2


def test_interrupted_in_the_midst_of_it_the_account_has_what_waits(tmp_path: Path) -> None:
    words = dev("--chaos", "--seed", "2", "--every", "0.05", "--json", "--data", "kept")
    with running(*words, cwd=tmp_path) as program:
        event_of(program, "killed")
        program.send(signal.SIGTERM)
        assert program.ended() == 0
    events = events_of(program)
    (account,) = named(events, "account")
    assert account["discrepancies"] == []
    for name, row in account["receivers"].items():
        assert row["sent"] == row["delivered"] + row["dead"] + row["waiting"]
        # An answer that was under way at the end counts, or does not.
        taken = [event["message"] for event in named(events, "took") if event["receiver"] == name]
        assert row["delivered"] <= len(taken)
    with running(*dev("--every", "0", "--data", "kept", "--json"), cwd=tmp_path) as program:
        waited = account["receivers"]["billing"]["waiting"]
        for _ in range(waited):
            event_of(program, "took")
        program.send(signal.SIGINT)
        assert program.ended() == 0
    assert (tmp_path / "kept" / "log.db").exists()


def test_a_second_time_its_numbers_go_on_where_the_log_ends(tmp_path: Path) -> None:
    sent: list[str] = []
    for _ in range(2):
        words = dev("--count", "3", "--every", "0.02", "--data", "kept", "--json")
        with running(*words, cwd=tmp_path) as program:
            assert program.ended() == 0
        events = events_of(program)
        (ready,) = named(events, "ready")
        mine = [event["message"] for event in named(events, "sent")]
        assert mine[0] == f"dev-{ready['first']}"
        sent += mine
    assert len(set(sent)) == 6


def test_the_folder_of_one_that_was_killed_is_removed_by_the_next(tmp_path: Path) -> None:
    above = {"TMPDIR": str(tmp_path)}
    others = tmp_path / "msgservice-dev-x"  # whoever's that is
    others.mkdir()
    with running(*dev("--every", "0", "--json"), cwd=tmp_path, environment=above) as lives:
        left = Path(event_of(lives, "ready")["data"])
        assert left.parent == tmp_path
        with running(*dev("--every", "0", "--json"), cwd=tmp_path, environment=above) as killed:
            folder = Path(event_of(killed, "ready")["data"])
            assert left.is_dir()
            killed.send(signal.SIGKILL)
            killed.ended()
        assert folder.is_dir()
        with running(*dev("--every", "0", "--json"), cwd=tmp_path, environment=above) as last:
            event_of(last, "ready")
            assert (folder.exists(), left.is_dir(), others.is_dir()) == (False, True, True)
            last.send(signal.SIGINT)
            assert last.ended() == 0
        lives.send(signal.SIGINT)
        assert lives.ended() == 0


def test_a_receiver_that_somebody_kills_comes_back_with_what_it_had(tmp_path: Path) -> None:
    with running(*dev("--every", "0.2", "--json"), cwd=tmp_path) as program:
        pid = event_of(program, "ready")["pid"]
        event_of(program, "took")
        os.kill(pid, signal.SIGKILL)
        assert event_of(program, "gone")["pid"] == pid
        assert event_of(program, "back")["pid"] != pid
        program.send(signal.SIGINT)
        assert program.ended() == 0
    (account,) = named(events_of(program), "account")
    assert (account["kills"], account["discrepancies"]) == (0, [])


def test_killed_itself_it_leaves_no_receiver_behind(tmp_path: Path) -> None:
    with running(*dev("--every", "0", "--json"), cwd=tmp_path) as program:
        receiver = os.pidfd_open(event_of(program, "ready")["pid"])
        program.send(signal.SIGKILL)
        assert program.ended() == -signal.SIGKILL
        assert select.select([receiver], [], [], PATIENCE)[0], "it runs on"
        os.close(receiver)


def test_what_it_cannot_begin_with_is_said(tmp_path: Path) -> None:
    msgservice = Command("", tmp_path)
    for words, code, said in (
        (("--seed", "1"), 2, "--seed draws the chaos: it needs --chaos"),
        (("--count", "1", "--every", "0"), 2, "--every 0 sends none"),
        (("--listen", "nonsense"), 2, "bad address 'nonsense'"),
        (("--data", "/proc/nothere"), 1, "data folder /proc/nothere cannot be used"),
    ):
        done = msgservice(*dev(*words)[1:])
        assert (done.code, done.out, said in done.err) == (code, "", True), done
    at = f"tcp:{free_port()}:interface=127.0.0.1"
    with running("msgservice", "node", "--listen", at, "--data", "one", cwd=tmp_path) as node:
        node.wait_for("^  stop")
        taken = msgservice("dev", "--listen", at)
        assert (taken.code, taken.out) == (1, "")
        assert "Address already in use: stop what listens there" in taken.err
        held = msgservice(*dev("--data", "one")[1:])
        assert (held.code, f"process {node.pid}: stop that first" in held.err) == (1, True), held
