"""`msgservice audit`: of a node, and of a data folder that is in use, closed or damaged."""

from __future__ import annotations

import signal
from pathlib import Path

import apsw
import msgspec

from msgservice.log.copying import copy_log
from msgservice.log.sqlite import LOG_NAME
from tests.integration.command import Command
from tests.integration.daemon import running
from tests.kit.ports import free_port


def test_58_a_log_in_use_is_counted_by_its_node_and_from_outside(
    msgservice: Command, tmp_path: Path
) -> None:
    msgs = msgservice
    assert msgs("receivers", "add", "away", "orders.>").code == 0
    for number in range(3):
        assert msgs("send", "orders.new", f"text {number}").code == 0
    assert msgs("send", "orders.new", "later", "--delay", "1000").code == 0
    asked = msgs("audit")
    assert (asked.code, asked.out, asked.err) == (0, "it adds up\n", "")
    assert msgs.data("audit") == {"discrepancies": []}


def files_of(folder: Path, *, running: bool) -> dict[str, int]:
    """Names and sizes; a node that runs writes to its write-ahead log by itself."""
    return {
        path.name: 0 if running and path.name.endswith("-wal") else path.stat().st_size
        for path in folder.iterdir()
    }


def test_58_a_folder_is_counted_while_its_node_runs_and_after_kill_9(tmp_path: Path) -> None:
    data = tmp_path / "data"
    port = free_port()
    words = ("twist", "--log-format=text", "msgservice", "--data", data, "--listen", f"tcp:{port}")
    msgs = Command(f"tcp:127.0.0.1:{port}", tmp_path)
    with running(*words, cwd=tmp_path) as node:
        node.ports()
        assert msgs("receivers", "add", "away", "orders.>").code == 0
        for number in range(3):
            assert msgs("send", "orders.new", f"text {number}").code == 0
        assert msgs("send", "orders.new", "later", "--delay", "1000").code == 0
        for kill in (False, True):
            if kill:
                node.send(signal.SIGKILL)
                node.ended()
            before = files_of(data, running=not kill)
            told = msgs("audit", "--data", str(data))
            assert (told.code, told.err) == (0, ""), told
            assert "3 messages in 3 batches have their rows, 1 wait until they are due" in told.out
            assert told.out.endswith("it adds up\n")
            counted = msgspec.json.decode(msgs("audit", "--data", str(data), "--json").out)
            (away,) = counted["receivers"]
            assert (away["name"], away["routed"], away["open"]) == ("away", 3, 3)
            assert (away["unaccounted"], counted["unaccounted"]) == (0, 0)
            assert before == files_of(data, running=not kill)
    copy_log(data, tmp_path / "copy")
    assert msgs("audit", "--data", str(tmp_path / "copy")).code == 0
    db = apsw.Connection(str(tmp_path / "copy" / LOG_NAME))
    db.execute("update progress set cursor = cursor + 65536 where receiver >= 0")
    db.close()
    wrong = msgs("audit", "--data", str(tmp_path / "copy"))
    assert wrong.code == 1
    assert "receiver away: 3 messages were for it, " in wrong.out
    assert wrong.out.endswith("it does not add up\n")


def test_58_what_is_no_log_is_an_error_with_its_name(msgservice: Command, tmp_path: Path) -> None:
    empty = msgservice("audit", "--data", str(tmp_path / "nowhere"))
    assert (empty.code, empty.out) == (1, "")
    assert "there is no log.db in it" in empty.err
    assert str(tmp_path / "nowhere") in empty.err
    (tmp_path / LOG_NAME).write_bytes(b"no database " * 1000)
    other = msgservice("audit", "--data", str(tmp_path))
    assert (other.code, other.out) == (1, "")
    assert other.err.startswith("msgservice: ")
    assert "Traceback" not in other.err
