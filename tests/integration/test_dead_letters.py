"""Dead letters as an operator meets them: in the list, each with its body, and at a removal."""

from __future__ import annotations

import json

from tests.integration.command import Command
from tests.integration.daemon import running

REJECTING = """
import sys
from twisted.internet import reactor
from msgservice import Receiver, Reject

def handle(message):
    raise Reject(f"no customer {message.headers['customer']}" + message.headers.get("more", ""))

receiver = Receiver(reactor, name=sys.argv[2], handler=handle)
receiver.attach(sys.argv[1], subjects=[sys.argv[2]])
reactor.run()
"""


def rejected(msgservice: Command, name: str, *bodies: bytes) -> list[int]:
    """Have a receiver reject these; return where they are stored."""
    assert msgservice("receivers", "add", name, name).code == 0
    stored = []
    for number, body in enumerate(bodies, 1):
        (msgservice.folder / "body").write_bytes(body)
        header = f"customer={number}"
        words = ("send", name, "--file", "body", "--header", header, "--id", f"o-{number}")
        stored.append(msgservice.data(*words)["position"])
    file = msgservice.folder / "rejecting.py"
    file.write_text(REJECTING)
    wait = ("send", name, "last", "--header", "customer=0", "--wait")
    with running("python", str(file), msgservice.node, name, cwd=msgservice.folder):
        done = msgservice(*wait)
    assert done.code == 1, done
    return stored


def test_46_dead_letters_are_listed_shown_whole_and_go_with_their_receiver(
    msgservice: Command,
) -> None:
    binary = bytes(range(256)) * 2000  # more than one answer of the node
    first, second = rejected(msgservice, "letters", b"one \x1b[31mred\n", binary)
    table = msgservice("receivers", "list").out
    headings, *lines = table.splitlines()
    (line,) = [line for line in lines if line.startswith("letters ")]
    assert line[headings.index("dead") :].split()[0] == "3"
    told = msgservice("dead", "list", "letters").out
    assert "no customer 1" in told
    assert str(second) in told
    one, two, _ = msgservice.data("dead", "list", "letters")["dead"]
    assert (one["position"], one["id"], one["subject"]) == (first, "o-1", "letters")
    assert (one["reason"], one["attempts"]) == ("no customer 1", 0)
    assert two["sender"].endswith(f"/{two['sequence']}")
    page = msgservice("dead", "show", "letters", str(first)).out
    assert "one \\x1b[31mred" in page
    assert "customer=1" in page
    shown = msgservice.data("dead", "show", "letters", str(first))
    assert (shown["text"], shown["headers"]["customer"]) == ("one \x1b[31mred\n", "1")
    shown = msgservice.data("dead", "show", "letters", str(second))
    assert (shown["size"] > len(binary), "base64" in shown) == (True, True)
    assert msgservice("dead", "show", "letters", str(first), "--body").out == "one \x1b[31mred\n"
    asked = msgservice("receivers", "remove", "letters", stdin=b"n\n")
    assert "3 dead letters of letters will be gone. Remove it?" in asked.err
    asked = msgservice("receivers", "remove", "letters", stdin=b"")
    assert asked.err.endswith("\nmsgservice: not removed; --yes says so unasked\n")
    asked = msgservice("receivers", "remove", "letters", "--json", stdin=b"y\n")
    told = json.loads(asked.err)["message"]
    assert told == "not removed: 3 dead letters of letters will be gone. Remove it? --yes says so"
    assert "messages wait" not in asked.err
    removed = msgservice("receivers", "remove", "letters", "--yes").out
    assert removed == "removed letters; 0 messages not delivered, 3 dead letters gone\n"


def test_46_the_list_has_of_each_reason_a_line_and_what_is_shown_has_all(
    msgservice: Command,
) -> None:
    """Of a handler that fails there is a traceback."""
    assert msgservice("receivers", "add", "lines", "lines").code == 0
    file = msgservice.folder / "rejecting.py"
    file.write_text(REJECTING)
    words = ("send", "lines", "x", "--id", "l-1", "--header", "customer=1", "--wait")
    with running("python", str(file), msgservice.node, "lines", cwd=msgservice.folder):
        assert msgservice(*words, "--header", "more=\n  File 1\n  File 2").code == 1
    headings, line = msgservice("dead", "list", "lines").out.splitlines()
    assert line[headings.index("reason") :].rstrip() == "no customer 1"
    shown = msgservice("dead", "show", "lines", "l-1").out
    assert "File 1" in shown
    assert "File 2" in shown
    whole = "no customer 1\n  File 1\n  File 2"
    (one,) = msgservice.data("dead", "list", "lines")["dead"]
    assert one["reason"] == whole
    # So has every table, and all that `--json` says has all of it.
    told = msgservice("status", "l-1").out
    assert ("no customer 1" in told, "File" in told) == (True, False)
    assert msgservice.data("status", "l-1")["receivers"]["lines"]["reason"] == whole


def test_46_who_waits_for_what_is_rejected_is_told_the_first_line(msgservice: Command) -> None:
    assert msgservice("receivers", "add", "brief", "brief").code == 0
    file = msgservice.folder / "rejecting.py"
    file.write_text(REJECTING)
    words = ("send", "brief", "x", "--header", "customer=1", "--header", "more=\n  File 1")
    with running("python", str(file), msgservice.node, "brief", cwd=msgservice.folder):
        waited = msgservice(*words, "--wait")
        # Before that it may have said that it waits.
        assert waited.err.endswith("not delivered to 'brief': dead (no customer 1)\n")
        told = json.loads(msgservice(*words, "--wait", "--json").err)
    assert told["message"] == "not delivered to 'brief': dead (no customer 1\n  File 1)"


def test_46_a_dead_letter_has_one_size_for_all_commands(msgservice: Command) -> None:
    first, second = rejected(msgservice, "sized", b"one", b"two" * 1000)
    letters = msgservice.data("dead", "list", "sized")["dead"]
    sizes = [one["size"] for one in letters]
    assert sizes[0] == msgservice.data("dead", "show", "sized", str(first))["size"]
    would = msgservice.data("dead", "drop", "sized", str(second), "--dry-run")
    assert (would["would"]["count"], would["would"]["bytes"]) == (1, sizes[1])
    rows = msgservice.data("receivers", "list")["receivers"]
    (row,) = [row for row in rows if row["name"] == "sized"]
    assert row["dead_bytes"] == sum(sizes)


def test_what_is_no_dead_letter_is_told_so(msgservice: Command) -> None:
    msgservice("receivers", "add", "well", "well")
    assert msgservice("dead", "list", "well").out == "no dead letters\n"
    assert msgservice.data("dead", "list", "well") == {"dead": []}
    told = msgservice("dead", "show", "well", "65536")
    assert (told.code, told.err) == (1, "msgservice: no dead letter 65536 of receiver 'well'\n")
    assert "receivers add makes one" in msgservice("dead", "list", "nobody").err


def test_46_dead_letters_are_sent_again_and_dropped(msgservice: Command) -> None:
    msgs = msgservice
    first, second = rejected(msgs, "again", b"one", b"two")
    assert msgs("receivers", "add", "other").code == 0
    would = msgs("dead", "requeue", "again", "o-1", "--to", "other", "--dry-run")
    assert (would.code, would.err) == (0, "")
    assert would.out.startswith("1 dead letter of again, ")
    assert would.out.endswith(" bytes, would be sent again to other\n")
    asked = msgs("dead", "requeue", "again", "o-1", "--to", "other")
    assert asked.code == 1
    assert asked.err.startswith("msgservice: nothing was done: 1 dead letter of again, ")
    told = msgs.data("dead", "requeue", "again", "o-1", "--to", "other", "--yes")
    assert (told["dry_run"], told["would"]["count"], told["done"]["count"]) == (False, 1, 1)
    assert (told["would"]["receiver"], told["would"]["to"]) == ("again", "other")
    heard = msgs.data("listen", "other", "--count", "1")
    assert (heard["text"], heard["subject"], heard["id"]) == ("one", "again", "o-1")
    assert heard["headers"]["msgservice-replay-of"] == f"log:{first}"
    left = msgs.data("dead", "list", "again")["dead"]
    assert [row["id"] for row in left] == ["o-2", None]
    assert left[0]["position"] == second
    found = msgs.data("dead", "list", "again", "--reason", "customer 2")["dead"]
    assert [row["id"] for row in found] == ["o-2"]
    assert msgs.data("dead", "list", "again", "--since", "2199-01-01")["dead"] == []
    dropped = msgs("dead", "drop", "again", "--subject", "again", "--reason", "customer 2", "--yes")
    assert dropped.out == "dropped: 1 dead letter of again\n"
    assert msgs("dead", "drop", "again", "--all", "--yes").code == 0
    nothing = msgs("dead", "drop", "again", "--all")
    assert (nothing.code, nothing.out) == (0, "no dead letters of again\n")
    row = msgs.receiver("again")
    assert (row["dead"], row["dead_bytes"], row["settled"]["dead"] > 2) == (0, 0, True)
    assert {"removed": 0, "dead": 0} == msgs.data("receivers", "remove", "again")
    assert msgs.data("info")["dead_letters"]["dropped"] >= 2


def test_46_what_cannot_be_sent_again_or_dropped_is_told_so(msgservice: Command) -> None:
    rejected(msgservice, "kept", b"one")
    for words, code, said in (
        (("dead", "drop", "kept"), 2, "say which, or --all"),
        (("dead", "drop", "kept", "o-1", "--all"), 2, "say either --all, or which"),
        (("dead", "drop", "kept", "o-9", "--yes"), 1, "no dead letter o-9 of receiver 'kept'"),
        (("dead", "drop", "kept", "1", "--yes"), 1, "no dead letter 1 of receiver 'kept'"),
        (("dead", "drop", "nobody", "--all", "--yes"), 1, "receivers add makes one"),
        (("dead", "requeue", "kept", "--all", "--to", "nobody", "--yes"), 1, "'nobody'"),
        (("dead", "requeue", "kept", "--all", "--to", "a b"), 2, "bad name 'a b'"),
        (("dead", "requeue", "kept", "--subject", "a..b"), 2, "bad subject 'a..b'"),
        (("dead", "requeue", "kept", "--since", "soon"), 2, "is no time"),
        (("dead", "requeue", "kept", "--all", "--yes", "--dry-run"), 2, "--dry-run does nothing"),
        (("dead", "show", "kept", "o-9"), 1, "no dead letter o-9 of receiver 'kept'"),
    ):
        told = msgservice(*words)
        assert told.code == code, (words, told)
        assert said in told.err, (words, told)
    assert len(msgservice.data("dead", "list", "kept")["dead"]) == 2


def test_46_dead_letters_are_told_as_events(msgservice: Command) -> None:
    assert msgservice("receivers", "add", "watcher", "$dead.>").code == 0
    rejected(msgservice, "told", b"one")
    events = [
        json.loads(json.loads(line)["text"])
        for line in msgservice("listen", "watcher", "--count", "2", "--json").out.splitlines()
    ]
    assert [event["receiver"] for event in events] == ["told", "told"]
    assert events[0]["reason"] == "no customer 1"


def test_49_what_waits_is_looked_at_and_stays(msgservice: Command) -> None:
    assert msgservice("receivers", "add", "waits", "waits").code == 0
    assert msgservice("peek", "waits").out == "no messages wait\n"
    msgservice("send", "waits", "one", "--header", "colour=red", "--id", "w-1")
    msgservice("send", "waits", "two")
    rows = msgservice.data("peek", "waits")["messages"]
    assert [(row["id"], row["status"]) for row in rows] == [("w-1", "queued"), (None, "queued")]
    (row,) = msgservice.data("peek", "waits", "-n", "1", "--body")["messages"]
    assert (row["text"], row["headers"]["colour"]) == ("one", "red")
    told = msgservice("peek", "waits", "--body").out
    assert "colour=red" in told
    assert "two" in told
    assert "w-1" in msgservice("peek", "waits").out
    assert msgservice.receiver("waits")["queued"] == 2
    assert "receivers add makes one" in msgservice("peek", "nobody").err
