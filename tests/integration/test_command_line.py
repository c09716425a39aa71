"""`msgservice` as people and programs use it: real processes against a real node."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.command import Command
from tests.integration.daemon import BIN, PATIENCE, running
from tests.kit.nest import Forked


def test_a_receiver_is_added_changed_paused_resumed_and_removed(msgservice: Command) -> None:
    assert msgservice("receivers", "add", "life", "life.>", "other.*").code == 0
    row = msgservice.receiver("life")
    assert (row["subjects"], row["order"], row["paused"]) == (
        ["life.>", "other.*"],
        "strict",
        False,
    )
    assert msgservice("receivers", "change", "life", "life.only", "--order", "none").code == 0
    row = msgservice.receiver("life")
    assert (row["subjects"], row["order"]) == (["life.only"], "none")
    assert msgservice("receivers", "pause", "life").out == "paused life\n"
    assert msgservice.receiver("life")["paused"]
    assert msgservice("receivers", "resume", "life").code == 0
    assert not msgservice.receiver("life")["paused"]
    assert msgservice.data("receivers", "remove", "life") == {"removed": 0, "dead": 0}
    assert "life" not in msgservice("receivers", "list").out


def test_18_a_receiver_that_is_too_far_behind_is_shown_as_suspended(msgservice: Command) -> None:
    assert msgservice("receivers", "add", "full", "full", "--on-full", "suspend").code == 0
    assert msgservice.receiver("full")["on_full"] == "suspend"
    assert msgservice("receivers", "change", "full", "--backlog-bytes", "65536").code == 0
    sent = msgservice.data("send", "full", "0" * 65536)
    assert sent["receivers"] == {"full": "queued"}
    # Changing anything has all backlogs judged before it is answered.
    assert msgservice("receivers", "change", "full", "--on-full", "suspend").code == 0
    row = msgservice.receiver("full")
    assert (row["suspended"], row["backlog_bytes"], row["queued"]) == (True, 65536, 1)
    table = msgservice("receivers", "list").out
    (line,) = [line for line in table.splitlines() if line.split()[:1] == ["full"]]
    assert re.search(r"suspended \d+ s, away \d+ s", line)
    assert msgservice.data("send", "full", "not for it")["receivers"] == {}
    assert msgservice("receivers", "change", "full").code == 2
    assert msgservice("receivers", "change", "full", "--on-full", "refuse").code == 0
    assert not msgservice.receiver("full")["suspended"]
    assert msgservice("receivers", "remove", "full", "--yes").code == 0


def test_a_node_that_takes_nothing_for_now_is_not_said_to_be_away(msgservice: Command) -> None:
    few = ("--backlog-bytes", "65536")
    assert msgservice("receivers", "add", "behind", "behind", *few).code == 0
    assert msgservice("send", "behind", "0" * 65536).code == 0
    while (refused := msgservice("send", "behind", "more")).code == 0:
        pass  # backlogs are judged twice a second
    assert refused.code == 3
    said, ended = refused.err.splitlines()
    assert said.startswith("msgservice: the node takes nothing for now: ")
    assert "behind" in said
    assert f"{msgservice.node} has not taken it within 5 s: " in ended
    assert "behind" in refused.err
    assert "is a node there" not in refused.err
    assert msgservice("receivers", "remove", "behind", "--yes").code == 0


def test_removing_a_receiver_with_a_backlog_asks_first(msgservice: Command) -> None:
    msgservice("receivers", "add", "asked", "asked")
    msgservice("send", "asked", "one")
    for answer in (b"n\n", b""):
        refused = msgservice("receivers", "remove", "asked", stdin=answer)
        assert "1 message waits for asked and will not be delivered" in refused.err
        assert refused.code == 1
        assert msgservice.receiver("asked")["queued"] == 1
    assert msgservice("receivers", "remove", "asked", stdin=b"y\n").code == 0


def test_removing_with_yes_does_not_ask(msgservice: Command) -> None:
    msgservice("receivers", "add", "yes", "yes")
    msgservice("send", "yes", "one")
    assert msgservice.data("receivers", "remove", "yes", "--yes") == {"removed": 1, "dead": 0}


def test_13_a_receiver_is_sent_again_what_it_has_had(msgservice: Command) -> None:
    assert msgservice("receivers", "add", "again", "again").code == 0
    for n in (1, 2, 3):
        assert msgservice("send", "again", f"m{n}", "--id", f"again-{n}").code == 0
    assert msgservice("listen", "again", "--count", "3").out == "m1\nm2\nm3\n"
    assert msgservice.receiver("again")["settled"] == {"acknowledged": 3}
    dry = msgservice("rewind", "again", "--from", "again-2", "--dry-run")
    assert dry.code == 0
    assert "2 messages that again has acknowledged" in dry.out
    refused = msgservice("rewind", "again", stdin=b"y\n")  # nobody is at a terminal
    assert (refused.code, "3 messages that again has acknowledged" in refused.err) == (1, True)
    refused = msgservice("rewind", "again", "--json")
    assert (refused.code, "--yes says so" in json.loads(refused.err)["message"]) == (1, True)
    told = msgservice.data("rewind", "again", "--from", "again-2", "--to", "again-2", "--yes")
    assert (told["would"]["count"], told["done"]["replay"]["over"]) == (1, True)
    assert told["done"]["replay"]["copied"] == 1
    assert msgservice("listen", "again", "--count", "1").out == "m2\n"
    assert msgservice("rewind", "again", "--yes").out == "again: sent again, 3 messages copied\n"
    assert msgservice("listen", "again", "--count", "3").out == "m1\nm2\nm3\n"
    assert msgservice("rewind", "again", "--cancel").out == "again: no replay runs\n"
    assert "unknown receiver" in msgservice("rewind", "nobody", "--yes").err
    assert "no-such" in msgservice("rewind", "again", "--from", "no-such", "--yes").err
    for words in (("--from", "@soon"), ("--from", "1", "--suspended"), ("--cancel", "--dry-run")):
        assert msgservice("rewind", "again", *words).code == 2
    assert msgservice("rewind", "again", "--suspended").code == 1
    assert msgservice("receivers", "remove", "again", "--yes").code == 0


def test_13_a_signal_ends_the_command_and_not_the_rewind(msgservice: Command) -> None:
    few = ("--backlog-bytes", "65536")
    assert msgservice("receivers", "add", "slow", "slow", *few).code == 0
    for _ in range(4):
        assert msgservice("send", "slow", "x" * 15_000).code == 0
    assert msgservice("listen", "slow", "--count", "4").code == 0
    words = ["msgservice", "rewind", "slow", "--yes", "--json"]
    env = os.environ | {"MSGSERVICE_NODE": msgservice.node}
    with Forked(words, env=env, stderr=subprocess.PIPE) as rewind:
        while msgservice.receiver("slow")["replay"] is None:
            assert rewind.poll() is None
        rewind.send_signal(signal.SIGINT)
        _, said = rewind.communicate(timeout=PATIENCE)
    assert rewind.returncode == 130
    assert b"the node goes on" in said
    assert not msgservice.receiver("slow")["replay"]["over"]
    assert "rewind at" in msgservice("receivers", "list").out
    told = msgservice.data("rewind", "slow", "--cancel")["replay"]
    assert (told["over"], 0 < told["copied"] < 4) == (True, True)
    assert msgservice("receivers", "remove", "slow", "--yes").code == 0


def test_9_a_new_receiver_begins_where_it_says(msgservice: Command) -> None:
    assert msgservice("receivers", "add", "keeper", "history").code == 0
    sent = [msgservice.data("send", "history", f"h{n}")["position"] for n in (1, 2, 3)]
    first = ("--start", "first", "--count", "3", "--forget")
    assert msgservice("listen", "one", "history", *first).out == "h1\nh2\nh3\n"
    from_there = ("--start", str(sent[1]), "--count", "2", "--forget")
    assert msgservice("listen", "two", "history", *from_there).out == "h2\nh3\n"
    assert msgservice("listen", "three", "history", "--start", "yesterday").code == 2
    beyond = msgservice("listen", "three", "history", "--start", str(2**50))
    assert (beyond.code, "not in the log" in beyond.err) == (1, True)
    assert msgservice("receivers", "remove", "keeper", "--yes").code == 0


def test_7_a_message_is_found_by_its_id_its_position_and_its_identity(msgservice: Command) -> None:
    msgservice("receivers", "add", "found", "found.>")
    sent = msgservice.data("send", "found.x", "body", "--id", "f-1", "--header", "colour=red")
    assert sent["receivers"] == {"found": "queued"}
    identity = msgservice.data("status", "f-1")["sender"]
    for name in ("f-1", f"log:{sent['position']}", identity):
        status = msgservice.data("status", name)
        assert sent["position"] == status["position"]
        assert status["subject"] == "found.x"
        assert status["receivers"]["found"]["status"] == "queued"
    people = msgservice("status", "f-1").out
    assert "found.x" in people
    assert "queued" in people


def test_a_file_is_one_message_and_its_lines_are_many(msgservice: Command) -> None:
    (msgservice.folder / "file").write_bytes(b"one\ntwo\n\nfour")
    msgservice("receivers", "add", "files", "files")
    msgservice.data("send", "files", "--file", "file")
    assert msgservice.receiver("files")["queued"] == 1
    assert msgservice.data("send", "files", "--lines", "file")["sent"] == 4
    assert msgservice.receiver("files")["queued"] == 5


def test_lines_of_standard_input_are_messages(msgservice: Command) -> None:
    msgservice("receivers", "add", "lines", "lines")
    lines = b"".join(b"line %d\n" % number for number in range(10_000))
    told = msgservice.data("send", "lines", stdin=lines)
    assert (10_000, len(lines)) == (told["sent"], told["bytes"])
    assert msgservice.receiver("lines")["queued"] == 10_000
    assert told["for_nobody"] == 0


def test_lines_that_nobody_receives_are_said_to_be_so(msgservice: Command) -> None:
    done = msgservice("send", "for.nobody", stdin=b"one\ntwo\n")
    assert done.code == 0
    assert done.out.endswith("; nobody receives 2 of them\n")
    assert msgservice.data("send", "for.nobody", stdin=b"three\n")["for_nobody"] == 1


def sending(msgservice: Command, *words: str) -> subprocess.Popen[bytes]:
    """Start `msgservice send`, with lines still to come."""
    return Forked(
        ["msgservice", "send", *words],
        env=os.environ | {"MSGSERVICE_NODE": msgservice.node},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def give(process: subprocess.Popen[bytes], line: bytes) -> None:
    assert process.stdin is not None
    process.stdin.write(line + b"\n")
    process.stdin.flush()


def wait_until_queued(
    msgservice: Command, name: str, count: int, process: subprocess.Popen[bytes]
) -> None:
    while msgservice.receiver(name)["queued"] != count:
        assert process.poll() is None


def test_lines_are_sent_as_they_come(msgservice: Command) -> None:
    msgservice("receivers", "add", "slowly", "slowly")
    with sending(msgservice, "slowly") as process:
        give(process, b"first")
        # The end of the input has not come and may never come; the line is there all the same.
        wait_until_queued(msgservice, "slowly", 1, process)
        assert process.communicate(timeout=PATIENCE)[0].startswith(b"1 messages stored")
        assert process.returncode == 0


def test_an_interrupt_ends_sending_while_it_waits_for_a_line(msgservice: Command) -> None:
    msgservice("receivers", "add", "cut", "cut")
    with sending(msgservice, "cut") as process:
        give(process, b"first")
        wait_until_queued(msgservice, "cut", 1, process)
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 130
        assert process.stderr is not None
        told = b"msgservice: interrupted; 1 messages were stored before\n"
        assert process.stderr.read() == told


def test_a_refused_line_ends_sending_while_it_waits_for_the_next(msgservice: Command) -> None:
    with sending(msgservice, "x", "--to", "nobody") as process:
        give(process, b"first")
        assert process.wait(PATIENCE) == 1
        assert process.stderr is not None
        told = process.stderr.read()
        assert told.startswith(b"msgservice: unknown receiver 'nobody'; 0 messages were stored")


def test_sending_goes_on_when_the_node_comes_back(tmp_path: Path) -> None:
    command = ("twist", "--log-format=text", "msgservice", "--listen", "unix:node.sock")
    msgservice = Command(f"unix:{tmp_path}/node.sock", tmp_path)
    with running(*command, cwd=tmp_path) as node:
        node.wait_for("listening on unix")
        msgservice("receivers", "add", "on", "on")
        process = sending(msgservice, "on")
        give(process, b"first")
        wait_until_queued(msgservice, "on", 1, process)
        node.send(signal.SIGKILL)
        node.ended()
    give(process, b"second")
    with running(*command, cwd=tmp_path) as node, process:
        node.wait_for("listening on unix")
        wait_until_queued(msgservice, "on", 2, process)
        out, err = process.communicate(timeout=PATIENCE)
        assert (0, b"") == (process.returncode, err)
        assert out.startswith(b"2 messages stored")
        assert msgservice("listen", "on", "--count", "2").out == "first\nsecond\n"


def test_a_terminal_sees_a_progress_bar(msgservice: Command) -> None:
    (msgservice.folder / "file").write_bytes(b"line\n" * 50_000)
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [BIN / "msgservice", "send", "bar", "--lines", "file"],
        cwd=msgservice.folder,
        env=os.environ | {"MSGSERVICE_NODE": msgservice.node, "TERM": "xterm"},
        stdout=subprocess.DEVNULL,
        stderr=theirs,
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # Linux says so when the other side has closed a terminal
            break
        shown += piece
    os.close(ours)
    assert process.wait(PATIENCE) == 0
    assert b"messages stored" in shown
    assert "━".encode() in shown


def test_a_pipe_sees_no_progress_bar(msgservice: Command) -> None:
    done = msgservice("send", "bar", stdin=b"one\ntwo\n")
    assert done.err == ""
    assert done.out.startswith("2 messages stored")


def test_info_names_the_listener(msgservice: Command) -> None:
    assert msgservice.data("info")["listeners"] == [msgservice.node]
    assert msgservice.node in msgservice("info").out


PROMISE = ("send", "no.one", "y", "--within", "1m")


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (("send", "x", "y", "--to", "nobody"), 1, "unknown receiver 'nobody'"),
        (("send", "nobody.at.all", "y", "--require"), 1, "no receiver for subject"),
        (("send", "x..y", "z"), 2, "bad subject 'x..y': empty token"),
        (("send", "x", "y", "--name", "a b"), 2, "bad name 'a b'"),
        (("send", "x", "y", "--within", "0"), 2, "within is above 0, and at most 366 days"),
        (("send", "x", "y", "--within", "367d"), 2, "within is above 0, and at most 366 days"),
        ((*PROMISE, "--need", "0"), 2, "need is 'all', 'any' or a number from 1 on, not 0"),
        ((*PROMISE, "--need", "-1"), 2, "need is 'all', 'any' or a number from 1 on, not -1"),
        ((*PROMISE, "--need", "some"), 2, "or a number from 1 on, not 'some'"),
        ((*PROMISE, "--need", "1.5"), 2, "or a number from 1 on, not '1.5'"),
        ((*PROMISE, "--need", "9" * 5000), 2, "need is 'all', 'any' or a number"),
        ((*PROMISE, "--otherwise", "undo"), 2, "otherwise is 'notify' or 'cancel', not 'undo'"),
        ((*PROMISE, "--key", "k"), 2, "a promise and a key together are not supported"),
        ((*PROMISE, "--delay", "1s"), 2, "a promise and a delay together are not supported"),
        ((*PROMISE, "--retain-only"), 2, "a promise beside retain='only'"),
        (PROMISE, 1, "the promise needs all receivers, and the message is for nobody"),
        ((*PROMISE, "--need", "3"), 1, "the promise needs 3 receivers, the message is for 0"),
        (("status", "no-such-id"), 1, "no message 'no-such-id'"),
        (("receivers", "pause", "nobody"), 1, "unknown receiver 'nobody'"),
        (("receivers", "add", "x", "a..b"), 2, "bad subject 'a..b': empty token"),
        (("receivers", "add", "a b", "a"), 2, "bad name 'a b'"),
        (("receivers", "change", "x", "--address", "tcp:host"), 2, "expected tcp:HOST:PORT"),
        (("receivers", "list", "--node", "fax:1"), 2, "unknown scheme 'fax'"),
        (
            ("info", "--node", "tcp:127.0.0.1:1", "--timeout", "0.1"),
            3,
            "within 0.1 s: Connection was refused by other side: 111: Connection refused; is a node"
            " there? `msgservice node` starts one (--node",
        ),
    ],
)
def test_what_goes_wrong_is_one_sentence_and_an_exit_code(
    msgservice: Command, words: tuple[str, ...], code: int, sentence: str
) -> None:
    told = msgservice(*words)
    assert code == told.code
    assert sentence in told.err
    assert told.err.startswith("msgservice: ")
    assert told.err.count("\n") == 1
    assert told.out == ""
    for_programs = msgservice(*words, "--json")
    assert code == for_programs.code
    assert sentence in json.loads(for_programs.err)["message"]


@pytest.mark.parametrize(
    "words",
    [
        ("send", "x", "y", "--file", "/dev/null"),
        ("send", "x", "--wait"),
        ("send", "x", "--within", "1m"),
        ("send", "x", "y", "--need", "2"),
        ("send", "x", "y", "--otherwise", "cancel"),
        ("send", "x", "y", "--within", "1m", "--wait"),
        ("send", "x", "y", "--within", "soon"),
        ("send", "x", "y", "--header", "novalue"),
        ("send", "x", "y", "--timeout", "0"),
        ("send", "x", "y", "--timeout", "nan"),
        ("info", "--timeout", "inf"),
        ("receivers", "change", "x"),
        ("receivers", "add", "x", "--order", "sometimes"),
        ("listen",),
        ("nonsense",),
        ("status",),
    ],
)
def test_wrong_usage_is_exit_code_2(msgservice: Command, words: tuple[str, ...]) -> None:
    told = msgservice(*words)
    assert told.code == 2
    assert "Usage: msgservice" in told.err


def test_a_status_of_nothing_names_the_command_that_was_meant(msgservice: Command) -> None:
    told = msgservice("status").err
    assert "Missing argument 'ID' of a message" in told
    assert "msgservice info" in told


@pytest.mark.parametrize(
    "words",
    [
        ("send", "x", "y", "--to", "nobody"),
        ("send", "x", "--to", "nobody", "--lines", "lines"),
        ("receivers", "change", "nobody", "a"),
        ("receivers", "pause", "nobody"),
        ("receivers", "resume", "nobody"),
        ("receivers", "remove", "nobody"),
    ],
)
def test_an_unknown_receiver_is_told_with_how_one_is_added(
    msgservice: Command, words: tuple[str, ...]
) -> None:
    (msgservice.folder / "lines").write_text("a line\n")
    told = msgservice(*words)
    assert told.code == 1
    assert "unknown receiver 'nobody'" in told.err
    assert "msgservice receivers add" in told.err
    assert told.err.count("\n") == 1
    assert "receivers add" not in json.loads(msgservice(*words, "--json").err)["message"]


def test_a_right_configuration_is_told(msgservice: Command) -> None:
    file = msgservice.folder / "node.toml"
    file.write_text(
        '[[receiver]]\nname = "billing"\nsubjects = ["orders.>"]\norder = "none"\n'
        "window = { messages = 5 }\nrate = { messages = 2 }\n"
        "[rate]\nbytes = 1000\n[limits]\nheartbeat = 5\n"
    )
    told = msgservice("check-config", "node.toml")
    assert told.code == 0
    billing = "billing: attaches; orders.>; order none; window.messages 5; rate 2 messages/s"
    assert f"{billing} in bursts of 1 s\n" in told.out
    assert "rate       1000 bytes/s in bursts of 1 s, of all receivers together\n" in told.out
    assert told.out.endswith("limit      heartbeat = 5.0\n")
    assert msgservice.data("check-config", "node.toml")["receivers"][0]["name"] == "billing"


def test_a_wrong_configuration_is_told_whole(msgservice: Command) -> None:
    (msgservice.folder / "node.toml").write_text("[node]\nnmae = 1\n[limits]\nheartbeat = 0\n")
    told = msgservice("check-config", "node.toml")
    assert (told.code, told.out) == (2, "")
    assert [int(line.split(":")[1]) for line in told.err.splitlines()] == [2, 4]
    for_programs = msgservice("check-config", "node.toml", "--json")
    assert for_programs.code == 2
    error = json.loads(for_programs.err)
    assert ("ConfigError", "", 2) == (error["error"], for_programs.out, len(error["problems"]))
    assert told.err == error["message"] + "\n"


def test_the_version_is_the_packages(msgservice: Command) -> None:
    assert "msgservice" in msgservice("--version").out


def test_help_starts_no_reactor() -> None:
    code = (
        "import sys; from click.testing import CliRunner; from msgservice.cli.main import main;"
        "assert CliRunner().invoke(main, ['--help']).exit_code == 0;"
        "print('twisted.internet.reactor' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize(
    "words",
    [
        ("info",),
        ("receivers", "list"),
        ("receivers", "list", "--json"),
        ("send", "unread", "one", "--json"),
        ("check-config", "/dev/null"),
    ],
    ids=" ".join,
)
def test_what_cannot_be_printed_ends_a_command_in_order(
    msgservice: Command, words: tuple[str, ...]
) -> None:
    read, written = os.pipe()
    os.close(read)
    assert (141, "") == printing_to(written, msgservice, *words)
    code, told = printing_to(os.open("/dev/full", os.O_WRONLY), msgservice, *words)
    assert (1, 1) == (code, told.count("\n"))
    assert "cannot print: No space left on device" in told


@pytest.mark.parametrize("words", [("info",), ("listen", "closed", "closed")], ids=" ".join)
def test_a_standard_output_that_is_closed_is_no_traceback(
    msgservice: Command, words: tuple[str, ...]
) -> None:
    msgservice("receivers", "add", "closed", "closed")
    msgservice("send", "closed", "one")
    command: list[str | Path] = [BIN / "msgservice", *words, "--node", msgservice.node]
    done = subprocess.run(
        ["sh", "-c", '"$@" >&-', "sh", *command],
        stderr=subprocess.PIPE,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (1, 1) == (done.returncode, done.stderr.count("\n"))
    assert "cannot print: Bad file descriptor" in done.stderr


def printing_to(descriptor: int, msgservice: Command, *words: str) -> tuple[int, str]:
    """Run a command with this standard output, which is closed; return its exit code and errors."""
    done = subprocess.run(
        [BIN / "msgservice", *words],
        env=os.environ | {"MSGSERVICE_NODE": msgservice.node},
        stdout=descriptor,
        stderr=subprocess.PIPE,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    os.close(descriptor)
    return done.returncode, done.stderr


def test_who_waits_is_told_where_it_is_and_for_whom(msgservice: Command) -> None:
    msgservice("receivers", "add", "asleep", "asleep")
    command = ("msgservice", "send", "asleep", "one", "--wait", "--node", msgservice.node)
    with running(*command, cwd=msgservice.folder) as waiting:
        position = waiting.wait_for(r"stored at log:(\d+); waiting for asleep to acknowledge")[1]
        assert msgservice.data("status", f"log:{position}")["subject"] == "asleep"
        waiting.send(signal.SIGINT)
        assert waiting.ended() == 130


def test_55_a_promise_that_is_kept_ends_with_who_acknowledged(msgservice: Command) -> None:
    for name in ("hotel", "flight"):
        msgservice("receivers", "add", name, "trips.>")
    command = ("msgservice", "send", "trips.book", "7", "--need", "any", "--within", "1h", "--json")
    listening = ("msgservice", "listen", "hotel", "--count", "1", "--node", msgservice.node)
    with running(*listening, cwd=msgservice.folder) as hotel:
        sent = msgservice.data(*command[1:-1])
        assert hotel.ended() == 0
    assert ("kept", "", 1) == tuple(sent["promise"][one] for one in ("outcome", "reason", "need"))
    assert "acknowledged" == sent["receivers"]["hotel"]
    status = msgservice("status", f"log:{sent['position']}").out
    assert "promise   kept at " in status
    assert "1 receiver until " in status
    assert "Its promise was kept at " in msgservice("why", f"log:{sent['position']}").out
    assert "1 kept, 0 broken" in msgservice("info").out
    for name in ("hotel", "flight"):
        msgservice("receivers", "remove", name, "--yes")


def test_55_a_promise_that_is_broken_has_an_exit_code_of_its_own(msgservice: Command) -> None:
    msgservice("receivers", "add", "train", "rails.>")
    words = ("send", "rails.book", "7", "--within", "0.05", "--otherwise", "cancel")
    broken = msgservice(*words)
    assert broken.code == 4
    first, second = broken.out.splitlines()
    assert first.startswith("stored at log:")
    assert first.endswith("; its promise was broken: the time of its promise was over")
    assert second.split() == ["train", "cancelled"]
    assert broken.err == (
        "msgservice: the promise was broken: the time of its promise was over; 0 of the 1 that it"
        " needs have acknowledged the message\n"
    )
    told = msgservice(*words, "--json")
    assert (told.code, json.loads(told.err)["error"]) == (4, "PromiseBroken")
    assert told.data["receivers"] == {"train": "cancelled"}
    assert told.data["promise"]["outcome"] == "broken"
    status = msgservice.data("status", f"log:{told.data['position']}")
    assert status["promise"]["outcome"] == "broken"
    assert status["promise"]["otherwise"] == "cancel"
    refused = msgservice(*words, "--need", "2")
    assert (refused.code, refused.out) == (1, "")
    assert "the promise needs 2 receivers, the message is for 1" in refused.err
    msgservice("receivers", "remove", "train", "--yes")


def test_55_who_waits_for_a_promise_is_told_for_whom(msgservice: Command) -> None:
    msgservice("receivers", "add", "ferry", "sea.>")
    command = ("msgservice", "send", "sea.book", "7", "--within", "1h", "--node", msgservice.node)
    with running(*command, cwd=msgservice.folder) as waiting:
        said = r"stored at log:(\d+); its promise waits for ferry"
        position = waiting.wait_for(said)[1]
        assert "promise   open: 1 receiver until " in msgservice("status", f"log:{position}").out
        waiting.send(signal.SIGINT)
        assert waiting.ended() == 130
    assert msgservice.data("status", f"log:{position}")["promise"]["outcome"] == "open"
    msgservice("receivers", "remove", "ferry", "--yes")


def test_a_second_interrupt_is_no_traceback(msgservice: Command) -> None:
    msgservice("receivers", "add", "twice", "twice")
    command = ("msgservice", "send", "twice", "one", "--wait", "--node", msgservice.node)
    with running(*command, cwd=msgservice.folder) as waiting:
        waiting.wait_for("waiting for twice")
        waiting.send(signal.SIGINT)
        waiting.send(signal.SIGTERM)
        assert waiting.ended() == 130
        assert "Traceback" not in waiting.said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("module", ["click", "msgservice.cli.send"])
def test_a_signal_at_the_very_beginning_is_no_traceback(
    number: signal.Signals, module: str
) -> None:
    code = (
        "import os, sys\n"
        "class Finder:\n"
        "    def find_spec(name, *_):\n"
        f"        if name == {module!r}:\n"
        f"            os.kill(os.getpid(), {int(number)})\n"
        "sys.meta_path.insert(0, Finder)\n"
        "from msgservice.cli import run\n"
        "run()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "send", "x", "y"],
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (130, b"") == (done.returncode, done.stderr)


def test_a_signal_at_the_very_end_does_not_change_the_exit_code(msgservice: Command) -> None:
    msgservice("receivers", "add", "late", "late")
    # What `sys` holds goes after the interpreter has given up the handlers that Python code has.
    code = (
        "import os, signal, sys\n"
        "class Late:\n"
        "    def __del__(self, kill=os.kill, me=os.getpid(), number=signal.SIGTERM):\n"
        "        kill(me, number)\n"
        "sys.late = Late()\n"
        "from msgservice.cli import run\n"
        "run()\n"
    )
    words = ("send", "late", "one", "--wait", "--node", msgservice.node)
    with running(sys.executable, "-c", code, *words, cwd=msgservice.folder) as waiting:
        waiting.wait_for("waiting for late")
        waiting.send(signal.SIGINT)
        assert waiting.ended() == 130


@pytest.mark.parametrize("words", [("one",), ("--lines", "lines")])
def test_one_that_is_refused_ends_with_the_signal_and_says_why(
    tmp_path: Path, words: tuple[str, ...]
) -> None:
    command = ("twist", "--log-format=text", "msgservice", "--listen", "unix:node.sock")
    (tmp_path / "lines").write_text("one\ntwo\n")
    with running(*command, cwd=tmp_path) as node:
        node.wait_for("listening on unix")
        msgservice = Command(f"unix:{tmp_path}/node.sock", tmp_path)
        msgservice("receivers", "add", "full", "full", "--backlog-bytes", "65536")
        while msgservice("send", "full", "0" * 65536).code == 0:
            pass  # backlogs are judged twice a second
        send = ("msgservice", "send", "full", *words, "--json", "--timeout", "100", "--verbose")
        with running(*send, "--node", msgservice.node, cwd=tmp_path) as refused:
            refused.wait_for("the node takes no more for now")
            refused.send(signal.SIGINT)
            assert refused.ended() == 130
            (line,) = [line for line in refused.said.splitlines() if line.startswith("{")]
            told = json.loads(line)
    assert "Interrupted" == told["error"]
    assert "takes nothing for now: " in told["message"]
    assert "full" in told["message"]
    if len(words) > 1:
        assert told["message"].endswith("; 0 messages were stored before, 2 more may be")


@pytest.mark.parametrize("group", [(), ("receivers",), ("dead",)])
def test_every_command_is_told_in_a_whole_sentence(
    msgservice: Command, group: tuple[str, ...]
) -> None:
    told = msgservice(*group, "--help").out.partition("Commands:")[2]
    assert "..." not in told


def test_47_what_a_rewind_refuses_names_its_options(msgservice: Command) -> None:
    assert msgservice("receivers", "add", "rewound", "rewound").code == 0
    for words in (["--from", str(1 << 40)], ["--from", str(1 << 16), "--to", "1"]):
        refused = msgservice("rewind", "rewound", *words, "--yes")
        assert refused.code == 1
        assert refused.err.endswith(" (first is --from, end is --to)\n")
