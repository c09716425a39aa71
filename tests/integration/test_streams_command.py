"""`msgservice streams` as it is called, at a node and at streams without one."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from msgservice.limits import MAX_BATCH_MAX
from tests.integration.command import Command
from tests.integration.daemon import Daemon, running
from tests.kit.nest import Forked
from tests.kit.ports import free_port

CONFIG = """
[listen]
tcp = "tcp:{node}:interface=127.0.0.1"
streams = "tcp:{streams}"

[streams]
line_bytes = 1_000_000

[limits]
max_batch = 65536
"""


@dataclass(frozen=True, slots=True)
class Place:
    """A node with streams, and the command there."""

    command: Command
    at: str
    daemon: Daemon

    def __call__(self, *words: str, stdin: bytes = b"") -> Any:
        return self.command("streams", *words, "--at", self.at, stdin=stdin)

    def listening(self, key: str, *words: str) -> subprocess.Popen[bytes]:
        """Begin to listen, and return when that is on."""
        command = ["msgservice", "streams", "listen", key, "--at", self.at, *words]
        process = Forked(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        while not any(one["stream"] == key for one in self.listed()):
            assert process.poll() is None
        return process

    def listed(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self("list", "--json").data["streams"]
        return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder: Path = tmp_path_factory.mktemp("streams")
    ports = {"node": free_port(), "streams": free_port()}
    (folder / "node.toml").write_text(CONFIG.format(**ports))
    command = ("twist", "--log-format=text", "msgservice", "--config", "node.toml")
    with running(*command, cwd=folder) as daemon:
        daemon.wait_for(f"streams at tcp:127.0.0.1:{ports['streams']}")
        node = f"tcp:127.0.0.1:{ports['node']}"
        yield Place(Command(node, folder), f"tcp:127.0.0.1:{ports['streams']}", daemon)


def test_what_is_put_is_printed_by_who_listens_a_line_each(place: Place) -> None:
    process = place.listening("job", "--count", "4")
    assert place.listed() == [{"stream": "job", "listeners": 1, "behind": 0, "lag": 0.0}]
    assert place("list").out.splitlines()[1].split() == ["job", "1", "0", "0"]
    (listener,) = place("list", "job", "--json").data["listeners"]
    assert (listener["waiting"], listener["lag"]) == (0, 0.0)
    assert place("list", "job").out.splitlines()[1].split() == [listener["peer"], "0", "0"]
    assert place("list", "nobody's").out == "nobody listens\n"
    assert place("put", "job", '{"k": 3, "é": null}').out == "1 put into job\n"
    done = place("put", "job", "--json", stdin=b'[1, 2.5]\n\n"x"\n7\n')
    assert done.data == {"stream": "job", "put": 3}
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert out.decode().splitlines() == ['{"k":3,"é":null}', "[1,2.5]", '"x"', "7"]


def test_what_waits_for_room_is_not_taken_for_a_port_without_streams(place: Place) -> None:
    few = ("--backlog-bytes", "65536")
    assert place.command("receivers", "add", "behind", "streams.behind", *few).code == 0
    for _ in range(2):
        assert place("put", "behind", "0" * 40_000, "--text").code == 0
    # Changing anything has all backlogs judged before it is answered.
    assert place.command("receivers", "change", "behind", *few).code == 0
    waits = place("put", "behind", "more", "--text", "--timeout", "3")
    assert waits.code == 3
    assert "what was put waits" in waits.err
    assert "are streams there" not in waits.err
    assert place.command("receivers", "remove", "behind", "--yes").code == 0


def test_what_was_put_is_stored_when_the_command_ends(place: Place) -> None:
    place.command.data("receivers", "add", "all", "streams.kept")
    assert place("put", "kept", "plain words", "--text").code == 0
    shown = place.command.data("peek", "all", "--body")["messages"]
    assert [json.loads(one["text"]) for one in shown] == ["plain words"]


def test_listen_ends_with_the_stream_and_tells_programs_of_which_it_is(place: Place) -> None:
    process = place.listening("ends", "--json")
    assert place("put", "ends", "1").code == 0
    place.command("send", "streams.ends", "", "--header", "stream=close")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert json.loads(out) == {"stream": "ends", "message": 1}


def test_what_the_node_never_takes_is_refused_with_its_reason(place: Place) -> None:
    done = place("put", "big", json.dumps("x" * 70_000))
    assert done.code == 1, done
    assert "64512" in done.err.replace(",", "")
    done = place("put", "é" * 3000, "1")  # too long for a subject
    assert done.code == 1, done
    assert "not taken" in done.err


def test_a_line_may_be_as_long_as_the_configuration_says(place: Place) -> None:
    message = json.dumps("x" * 900_000)  # more than the default, which would end the connection
    done = place("put", "big", stdin=message.encode())
    assert done.code == 1, done
    assert "64512" in done.err.replace(",", "")
    message = json.dumps("x" * 1_100_000)
    done = place("put", "big", stdin=message.encode())
    assert done.code == 3, done
    assert "may be more than its line_bytes" in done.err


@pytest.mark.parametrize("message", ["{", "NaN", "[" * 1000, "1e999"])
def test_what_is_no_json_is_used_wrongly_and_nothing_is_put(place: Place, message: str) -> None:
    done = place("put", "wrong", message)
    assert done.code == 2
    assert "--text" in done.err


def test_a_line_that_is_no_json_stops_and_what_came_before_it_is_put(place: Place) -> None:
    process = place.listening("wrong", "--count", "3")
    done = place("put", "wrong", stdin=b'{"a":1}\n\n{"b":2}\nnot JSON\n{"c":3}\n')
    assert done.code == 1
    assert "line 4" in done.err
    assert "2 messages were put before" in done.err
    done = place("put", "wrong", stdin=b"not JSON\n")
    assert "0 messages were put before" in done.err
    assert place("put", "wrong", "7").code == 0
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert out.decode().splitlines() == ['{"a":1}', '{"b":2}', "7"]


def test_lines_that_are_never_taken_say_how_many_were_put_before(place: Place) -> None:
    small, large = (json.dumps("x" * size).encode() + b"\n" for size in (1_000, 70_000))
    done = place("put", "big", stdin=small * 300 + large)  # more than a pipe holds: in some parts
    assert done.code == 1, done
    assert "64512" in done.err.replace(",", "")
    before = int(done.err.replace(",", "").split(" messages were put before")[0].split()[-1])
    assert 0 < before < 301


def test_a_line_that_does_not_end_says_which_it_is_and_what_was_put(place: Place) -> None:
    done = place("put", "endless", stdin=b"1\n" + b"[" * (MAX_BATCH_MAX + 300_000))
    assert done.code == 1, done
    assert "line 2" in done.err
    assert "1 message was put before" in done.err


@pytest.mark.parametrize("at", ["tcp:7412", "tls:7412", "pb:a:1", "nothing", "tcp:h:0"])
def test_a_wrong_address_is_told_before_anything_is_done(place: Place, at: str) -> None:
    assert place.command("streams", "list", "--at", at).code == 2


def test_where_nothing_listens_or_no_streams_are_there_is_no_answer(place: Place) -> None:
    nobody = f"tcp:127.0.0.1:{free_port()}"
    for words in (("list",), ("put", "k", "1"), ("listen", "k")):
        assert place.command("streams", *words, "--at", nobody).code == 3
    node = place.command.node
    done = place.command("streams", "list", "--at", node, "--timeout", "1")
    assert done.code == 3
    assert node in done.err
