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
    raise Reject(f"no customer {message.headers['customer']}")

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
    assert asked.err.endswith("\nmsgservice: not removed\n")
    asked = msgservice("receivers", "remove", "letters", "--json", stdin=b"y\n")
    told = json.loads(asked.err)["message"]
    assert told == "not removed: 3 dead letters of letters will be gone. Remove it? --yes says so"
    assert "messages wait" not in asked.err
    removed = msgservice("receivers", "remove", "letters", "--yes").out
    assert removed == "removed letters; 0 messages not delivered, 3 dead letters gone\n"


def test_what_is_no_dead_letter_is_told_so(msgservice: Command) -> None:
    msgservice("receivers", "add", "well", "well")
    assert msgservice("dead", "list", "well").out == "no dead letters\n"
    assert msgservice.data("dead", "list", "well") == {"dead": []}
    told = msgservice("dead", "show", "well", "65536")
    assert (told.code, told.err) == (1, "msgservice: no dead letter 65536 of receiver 'well'\n")
    assert "receivers add makes one" in msgservice("dead", "list", "nobody").err
