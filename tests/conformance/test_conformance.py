"""The kit finds what is wrong, and nothing where nothing is; ours are right."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import zlib

import msgspec
import pytest

from tests.conformance.kit import Kit, Meeting, Memory
from tests.conformance.minimal import Minimal, MinimalClient, MinimalReceiver
from tests.conformance.wire import HELLO, RESUME, Wire, Wrong
from tests.kit.ports import free_port

CLIENT_FAULTS = {
    "names features without end": "says_hello",
    "names features that are no text": "says_hello",
    "needs features": "takes_a_node_without_features",
    "sends too early": "waits_for_hello",
    "resumes too early": "waits_for_hello",
    "answers no ping": "answers_pings",
    "answers another ping": "answers_pings",
    "sends texts for bodies": "sends_well_formed_runs",
    "a new incarnation each time": "says_hello",
    "changes what it sends again": "sent_again_what_was_unanswered",
    "forgets what is unanswered": "sent_again_what_was_unanswered",
    "does not believe RESUME": "believes_resume",
    "knows no window": "keeps_to_the_window",
    "counts no NACK": "takes_a_lane_back",
    "goes on behind a NACK": "takes_a_lane_back",
    "goes on after BYE": "stops_at_bye",
    "ends what goes on": "stops_at_bye",
    "believes any ACK": "refuses_an_answer_to_what_it_never_sent",
    "takes any version": "refuses_another_version",
    "goes on after nonsense": "refuses_what_is_no_frame",
}
RECEIVER_FAULTS = {
    "needs features": "takes_a_node_without_features",
    "answers no ping": "answers_pings",
    "acknowledges nothing": "acknowledges_what_came",
    "acknowledges more": "acknowledges_what_came",
    "acknowledges gaps": "leaves_a_hole_alone",
    "acknowledges once": "acknowledges_again_what_comes_again",
    "forgets": "remembers_what_it_acknowledged",
    "mixes incarnations up": "knows_another_incarnation",
    "names its first run": "remembers_what_it_acknowledged",
    "names another CRC": "remembers_what_it_acknowledged",
    "names more than came": "remembers_what_it_acknowledged",
    "names only what it has taken": "names_what_it_still_handles",
    "answers no request": "answers_requests",
}


LOGIN_FAULTS = {
    "goes on without a login": "goes_nowhere_without_a_login",
    "takes a HELLO for a proof": "believes_no_hello",
    "takes nothing for a proof": "believes_no_silence",
    "checks no signature": "believes_no_other_signature",
    "computes too little": "computes_no_single_iteration",
    "knows not its nonce": "knows_its_nonce",
    "guesses its nonce": "says_hello",
    "proves nothing": "says_hello",
    "does not wait for its login": "says_hello",
}
LOGIN = ("shop", "correct horse")


def found(
    kind: type[Minimal],
    fault: str,
    login: tuple[str, str] | None = None,
    *,
    logins_only: bool = False,
    names_features: bool = False,
) -> dict[str, str]:
    """What the kit says of it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(60)
        peer = kind(listener.getsockname()[1], fault)
        peer.login = login
        peer.names_features = names_features
        peer.start()
        kit = Kit(lambda: listener.accept()[0], 1.5, login)
        run = kit.run_logins if logins_only else kit.run
        run(lambda text: None)
        peer.stopped = True
    return kit.wrong


@pytest.mark.parametrize("kind", [MinimalClient, MinimalReceiver])
def test_nothing_is_wrong_with_who_keeps_to_the_page(kind: type[Minimal]) -> None:
    assert {} == found(kind, "")


@pytest.mark.parametrize("kind", [MinimalClient, MinimalReceiver])
def test_who_names_features_that_nobody_knows_is_right(kind: type[Minimal]) -> None:
    assert {} == found(kind, "", names_features=True)


def test_who_names_no_newest_run_is_right() -> None:
    assert {} == found(MinimalReceiver, "names no run")


def test_who_has_taken_a_run_in_part_names_it_up_to_there() -> None:
    memory = Memory()
    memory.runs[1], memory.answered = 4, {1, 2}
    a_part = [1, 2, zlib.crc32(msgspec.msgpack.encode([[b"message 1"], [b"message 2"]]))]
    here, there = socket.socketpair()
    with here, there:
        wire = Wire(there, 1.0)
        for said in ([RESUME, 0, [[1, 2]], a_part], [RESUME, 0, [[1, 2]], [1, 1, a_part[2]]]):
            wire.send(said)
        meeting = Meeting(Wire(here, 1.0), [HELLO, 1, "r", "i", {}], memory)
        meeting.take_resume()
        assert (0, [(1, 2)]) == meeting.resume
        with pytest.raises(Wrong, match="2 was acknowledged"):
            meeting.take_resume()


@pytest.mark.parametrize(("fault", "scenario"), CLIENT_FAULTS.items())
def test_what_a_client_does_wrong_is_found(fault: str, scenario: str) -> None:
    assert scenario in found(MinimalClient, fault)


@pytest.mark.parametrize(("fault", "scenario"), RECEIVER_FAULTS.items())
def test_what_a_receiver_does_wrong_is_found(fault: str, scenario: str) -> None:
    assert scenario in found(MinimalReceiver, fault)


@pytest.mark.parametrize("kind", [MinimalClient, MinimalReceiver])
def test_nothing_is_wrong_with_who_logs_in_as_the_page_says(kind: type[Minimal]) -> None:
    assert {} == found(kind, "", LOGIN)


@pytest.mark.parametrize(("fault", "scenario"), LOGIN_FAULTS.items())
def test_what_is_wrong_with_a_login_is_found(fault: str, scenario: str) -> None:
    assert scenario in found(MinimalClient, fault, LOGIN, logins_only=scenario != "says_hello")


@pytest.mark.parametrize(
    ("role", "login"),
    [
        ("client", False),
        ("receiver", False),
        ("listener", False),
        ("client", True),
        ("receiver", True),
    ],
)
def test_ours_are_right(role: str, login: bool) -> None:
    port, environ = str(free_port()), dict(os.environ)
    kit = [sys.executable, "-m", "tests.conformance", f"tcp:127.0.0.1:{port}"]
    if login:
        environ |= {"MSGSERVICE_USER": LOGIN[0], "MSGSERVICE_PASSWORD": LOGIN[1]}
        kit += ["--user", LOGIN[0]]
    words = [sys.executable, "-m", "tests.conformance.ours", role, port]
    ours = subprocess.Popen(words, env=environ)
    try:
        if role == "listener":
            kit.append("--dial")
        done = subprocess.run(kit, env=environ, stdout=subprocess.PIPE, text=True, timeout=300)
    finally:
        ours.terminate()
        ours.wait()
    assert "0 wrong" in done.stdout, done.stdout
    assert 0 == done.returncode
