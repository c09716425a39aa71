"""`msgservice listen` prints what it acknowledges, and acknowledges what it prints."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from msgservice.administration import PAGE_ROWS
from tests.integration.command import Command
from tests.integration.daemon import BIN, PATIENCE, running


def start(msgservice: Command, *words: str, **more: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # type: ignore[call-overload,no-any-return]  # more: what Popen takes
        [BIN / "msgservice", *words],
        cwd=msgservice.folder,
        env=os.environ | {"MSGSERVICE_NODE": msgservice.node},
        stdout=subprocess.PIPE,
        **more,
    )


def test_lines_come_out_as_they_went_in(msgservice: Command) -> None:
    lines = b"".join(b"line %d \xc3\xa4\xff\n" % number for number in range(5_000))
    msgservice("receivers", "add", "whole", "whole")
    msgservice("send", "whole", stdin=lines)
    done = subprocess.run(
        [BIN / "msgservice", "listen", "whole", "--count", "5000", "--node", msgservice.node],
        capture_output=True,
        timeout=PATIENCE,
        check=True,
    )
    assert lines == done.stdout
    while msgservice.receiver("whole")["queued"]:
        pass  # the command does not wait until the node has counted its answers


def test_count_takes_so_many_and_leaves_the_rest_uncounted(msgservice: Command) -> None:
    msgservice("receivers", "add", "some", "some")
    msgservice("send", "some", stdin=b"1\n2\n3\n4\n5\n")
    assert msgservice("listen", "some", "--count", "2").out == "1\n2\n"
    while (row := msgservice.receiver("some"))["queued"] == 5:
        pass  # as above
    assert (3, 0) == (row["queued"], row["attempts"])
    assert msgservice("listen", "some", "--count", "3").out == "3\n4\n5\n"


def test_json_says_all_of_a_message(msgservice: Command) -> None:
    msgservice("receivers", "add", "json", "json.>")
    sent = msgservice.data("send", "json.x", "text", "--id", "j-1", "--header", "colour=red")
    (msgservice.folder / "raw").write_bytes(b"\xff\x00")
    msgservice("send", "json.y", "--file", "raw")
    told = msgservice("listen", "json", "--count", "2", "--json").out
    first, second = map(json.loads, told.splitlines())
    assert (first["subject"], first["text"], first["id"]) == ("json.x", "text", "j-1")
    assert first["position"] == sent["position"]
    assert first["headers"]["colour"] == "red"
    assert first["sender"].startswith("msgservice-cli/")
    assert (first["replay"], first["retained"]) == (False, False)
    assert (second["subject"], second["base64"]) == ("json.y", "/wA=")


def test_the_sender_is_told(msgservice: Command) -> None:
    msgservice("receivers", "add", "told", "told")
    sending = start(msgservice, "send", "told", "hello", "--wait", "--json")
    assert msgservice("listen", "told", "--count", "1").out == "hello\n"
    out, _ = sending.communicate(timeout=PATIENCE)
    assert sending.returncode == 0
    assert json.loads(out)["receivers"] == {"told": "acknowledged"}


def test_a_receiver_stays_unless_it_is_to_be_forgotten(msgservice: Command) -> None:
    for forget in ((), ("--forget",)):
        listening = start(msgservice, "listen", "stays", "stays.>", "--count", "1", *forget)
        while "stays" not in msgservice("receivers", "list").out:
            assert listening.poll() is None
        msgservice("send", "stays.x", "one")
        listening.communicate(timeout=PATIENCE)
        assert listening.returncode == 0
        assert ("stays" in msgservice("receivers", "list").out) is not bool(forget)


def test_an_interrupt_ends_it_cleanly(msgservice: Command) -> None:
    listening = start(msgservice, "listen", "stopped", "stopped", stderr=subprocess.PIPE)
    while "stopped" not in msgservice("receivers", "list").out:
        assert listening.poll() is None
    msgservice("send", "stopped", "one")
    assert listening.stdout is not None
    assert listening.stdout.readline() == b"one\n"
    listening.send_signal(signal.SIGINT)
    _, err = listening.communicate(timeout=PATIENCE)
    assert (130, b"") == (listening.returncode, err)
    row = msgservice.receiver("stopped")
    assert (0, False) == (row["queued"], row["connected"])


def test_the_end_of_a_pipe_ends_it(msgservice: Command) -> None:
    msgservice("receivers", "add", "pipe", "pipe")
    msgservice("send", "pipe", stdin=b"a line\n" * 100_000)
    with start(msgservice, "listen", "pipe", stderr=subprocess.PIPE) as listening:
        assert listening.stdout is not None
        assert listening.stderr is not None
        assert listening.stdout.readline() == b"a line\n"
        listening.stdout.close()
        assert listening.stderr.read() == b""
        assert listening.wait(PATIENCE) == 0
    assert 0 < msgservice.receiver("pipe")["queued"] < 100_000


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_an_output_that_takes_nothing_ends_it_and_costs_no_message_an_attempt(
    msgservice: Command, form: tuple[str, ...]
) -> None:
    name = f"full-{len(form)}"
    msgservice("receivers", "add", name, name)
    msgservice("send", name, stdin=b"a line\n" * 100)
    with Path("/dev/full").open("wb") as full:
        ended = subprocess.run(
            [BIN / "msgservice", "listen", name, "--node", msgservice.node, *form],
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=PATIENCE,
        )
    assert 1 == ended.returncode
    assert b"No space left on device" in ended.stderr
    assert 1 == ended.stderr.count(b"\n")
    row = msgservice.receiver(name)
    assert (100, 0) == (row["queued"], row["attempts"])
    assert not any(row["settled"].values())
    assert 100 == msgservice("listen", name, "--count", "100").out.count("a line")


def test_one_that_is_replaced_ends(msgservice: Command) -> None:
    first = start(msgservice, "listen", "twice", "twice", stderr=subprocess.PIPE)
    while "twice" not in msgservice("receivers", "list").out:
        assert first.poll() is None
    second = start(msgservice, "listen", "twice", "twice", "--count", "1")
    _, err = first.communicate(timeout=PATIENCE)
    assert first.returncode == 1
    assert b"a newer connection has this receiver's name" in err
    msgservice("send", "twice", "one")
    assert second.communicate(timeout=PATIENCE)[0] == b"one\n"


def test_what_the_node_refuses_is_told(tmp_path: Path) -> None:
    (tmp_path / "node.toml").write_text(
        '[listen]\ntcp = "tcp:0"\n[[receiver]]\nname = "fixed"\nsubjects = ["orders.>"]\n'
    )
    command = ("twist", "--log-format=text", "msgservice", "--config", "node.toml")
    with running(*command, cwd=tmp_path) as node:
        msgservice = Command(f"tcp:127.0.0.1:{node.ports()[0]}", tmp_path)
        told = msgservice("listen", "fixed", "other.>")
        assert told.code == 1
        assert "configured" in told.err
        msgservice("send", "orders.new", "one")
        assert msgservice("listen", "fixed", "--count", "1").out == "one\n"


def test_it_goes_on_when_the_node_comes_back(tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/node.sock"
    command = ("twist", "--log-format=text", "msgservice", "--listen", "unix:node.sock")
    msgservice = Command(address, tmp_path)
    with running(*command, cwd=tmp_path) as node:
        node.wait_for("listening on unix")
        msgservice("receivers", "add", "back", "back")  # it is on disk when the node is killed
        listening = start(msgservice, "listen", "back", "back", stderr=subprocess.PIPE)
        while not msgservice.receiver("back")["connected"]:
            assert listening.poll() is None
        node.send(signal.SIGKILL)
        node.ended()
        assert listening.stderr is not None
        assert listening.stderr.readline().startswith(b"msgservice: ")  # what is wrong
    with running(*command, cwd=tmp_path) as node:
        node.wait_for("listening on unix")
        msgservice("send", "back", "one")
        assert listening.stdout is not None
        assert listening.stdout.readline() == b"one\n"
        assert any(line == b"msgservice: connected again\n" for line in listening.stderr)
        listening.send_signal(signal.SIGINT)
        listening.communicate(timeout=PATIENCE)


@pytest.mark.parametrize("subject", ["a..b", "x" * 300])
def test_a_bad_subject_is_wrong_usage(msgservice: Command, subject: str) -> None:
    assert msgservice("listen", "bad", subject).code == 2


def test_a_mistyped_name_is_told(msgservice: Command) -> None:
    command = ("msgservice", "listen", "mistyped", "--node", msgservice.node)
    with running(*command, cwd=msgservice.folder) as listening:
        listening.wait_for("'mistyped' is new to the node, and no SUBJECT is given")
        while msgservice("send", "x", "for you", "--to", "mistyped").code:
            pass
        listening.wait_for("for you")
        listening.send(signal.SIGINT)
        assert listening.ended() == 130
    msgservice("send", "x", "and again", "--to", "mistyped")
    known = msgservice("listen", "mistyped", "--count", "1")
    assert (known.out, known.err) == ("and again\n", "")


def test_what_has_a_type_goes_as_it_is_written_by_whichever_way(
    msgservice: Command, tmp_path: Path
) -> None:
    body = '{"id": 2}'
    file = tmp_path / "body.json"
    file.write_text(body)
    msgservice("receivers", "add", "typed", "typed")
    typed = ("--header", "Content-Type=application/json")
    msgservice("send", "typed", body, *typed)
    msgservice("send", "typed", "--file", str(file), *typed)
    msgservice("send", "typed", *typed, stdin=body.encode() + b"\n")
    assert msgservice("listen", "typed", "--count", "3").out == f"{body}\n" * 3


def test_a_receiver_behind_the_first_page_is_not_new(tmp_path: Path) -> None:
    rows = "".join(f'[[receiver]]\nname = "r{n:04}"\nsubjects = []\n' for n in range(PAGE_ROWS + 2))
    (tmp_path / "node.toml").write_text('[listen]\ntcp = "tcp:0"\n' + rows)
    command = ("twist", "--log-format=text", "msgservice", "--config", "node.toml")
    with running(*command, cwd=tmp_path) as node:
        msgservice = Command(f"tcp:127.0.0.1:{node.ports()[0]}", tmp_path)
        patient = ("--timeout", "100")  # a machine that is busy elsewhere is no node that is away
        last = f"r{PAGE_ROWS + 1:04}"
        while msgservice("send", "x", "for the last", "--to", last, *patient).code:
            pass  # until it is stored: that is not waited for
        told = msgservice("listen", last, "--count", "1", *patient)
        assert (told.code, told.out, told.err) == (0, "for the last\n", "")
        for name in ("r0500x", "s"):
            listening = start(msgservice, "listen", name, *patient, stderr=subprocess.PIPE)
            assert listening.stderr is not None
            assert b"is new to the node" in listening.stderr.readline()
            listening.send_signal(signal.SIGINT)
            listening.communicate(timeout=PATIENCE)
