"""The usual mistakes, made with real commands and programs: who makes one reads what to do.

A command says so on standard error, without a traceback. A program is told by the exception that it
ends with, which is the last line of what Python prints, or on standard error while it waits.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.integration.command import Command
from tests.integration.daemon import PATIENCE, running
from tests.kit.certificates import Authority
from tests.kit.nest import run
from tests.kit.ports import free_port

PATIENCE_OF_IT = ("--timeout", "1.5")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Return a node with a page and users: its address, and the port of the page."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "node.toml").write_text(
        '[node]\nusers = "users.toml"\n[listen]\ntcp = "tcp:0"\nweb = "tcp:0"\n'
        '[[user]]\nname = "shop"\nnames = ["shop.>"]\nsend = ["orders.>"]\n'
    )
    made = Command("", folder)(
        *("passwd", "shop", "--users", "users.toml", "--iterations", "4096"),
        stdin=b"correct horse battery\n",
    )
    assert made.code == 0, made
    with running("msgservice", "node", "--config", "node.toml", cwd=folder) as node:
        at = node.wait_for(r"^  listens on  (\S+)$")[1]
        yield at, node.wait_for(r"^  page        http://127\.0\.0\.1:(\d+)/$")[1]


# --- commands


@dataclass(frozen=True)
class Mistake:
    """What is typed, how the command ends, and what is said: what is wrong, and what to do."""

    name: str
    words: tuple[str, ...]
    code: int
    said: tuple[str, ...]


TYPED = (
    Mistake(
        "a command that is misspelt", ("sned", "orders.new", "x"), 2, ("did you mean 'send'?",)
    ),
    Mistake(
        "an option that is misspelt", ("send", "orders.new", "x", "--tll", "5s"), 2, ("--ttl",)
    ),
    Mistake(
        "an address without its scheme",
        ("send", "orders.new", "x", "--node", "localhost:7410"),
        2,
        ("did you mean 'tcp:localhost:7410'?",),
    ),
    Mistake(
        "a port alone",
        ("send", "orders.new", "x", "--node", "7410"),
        2,
        ("as in tcp:127.0.0.1:7410",),
    ),
    Mistake("a pattern as a subject", ("send", "orders.*", "x"), 2, ("belong in patterns only",)),
    Mistake(
        "a profile that nobody made",
        ("send", "orders.new", "x", "--profile", "staging"),
        2,
        ("no profile 'staging'", "neither a table of", "nor a file"),
    ),
    Mistake(
        "a time without its unit",
        ("send", "orders.new", "x", "--ttl", "5 minutes"),
        2,
        ("a time as 30s, 5m, 2h or 7d",),
    ),
    Mistake(
        "a receiver that there is not",
        ("send", "orders.new", "x", "--to", "biling"),
        1,
        ("unknown receiver 'biling'", "receivers list shows those there are", "receivers add"),
    ),
    Mistake(
        "a secret that is not said",
        ("send", "orders.new", "x", "--user", "shop"),
        2,
        ("set MSGSERVICE_PASSWORD or MSGSERVICE_TOKEN",),
    ),
    Mistake(
        "no configuration", ("node", "--config", "none.toml"), 2, ("none.toml: cannot be read",)
    ),
    Mistake(
        "a data folder that cannot be",
        ("node", "--data", "/proc/nothere", "--listen", "tcp:0"),
        2,
        ("data folder /proc/nothere cannot be used",),
    ),
    Mistake(
        "a listener for the world",
        ("node", "--listen", "tcp:0:interface=0.0.0.0"),
        2,
        ("configure users", "or --insecure"),
    ),
)


def says(done: object, code: int, said: tuple[str, ...]) -> None:
    assert (done.code, done.out) == (code, ""), done  # type: ignore[attr-defined]
    for part in said:
        assert part in done.err, done  # type: ignore[attr-defined]


@pytest.mark.parametrize("mistake", TYPED, ids=lambda mistake: mistake.name)
def test_what_is_typed_wrong_is_said_with_what_is_meant(
    mistake: Mistake, msgservice: Command
) -> None:
    says(msgservice(*mistake.words), mistake.code, mistake.said)


def test_where_no_node_is_it_is_said_how_one_is_started(msgservice: Command) -> None:
    nowhere = f"tcp:127.0.0.1:{free_port()}"
    done = msgservice("send", "orders.new", "x", "--node", nowhere, *PATIENCE_OF_IT)
    says(done, 3, (nowhere, "refused", "`msgservice node` starts one", "(--node, --timeout)"))


def test_the_port_of_the_page_is_said_to_be_that(
    page: tuple[str, str], msgservice: Command
) -> None:
    at = f"tcp:127.0.0.1:{page[1]}"
    done = msgservice("send", "orders.new", "x", "--node", at)
    says(done, 1, (at, "speaks HTTP, and no node does", "the address of a page", "(--node)"))


def test_a_port_of_another_program_is_said_to_be_that(msgservice: Command) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        at = f"tcp:127.0.0.1:{listening.getsockname()[1]}"
        words = ("msgservice", "send", "orders.new", "x", "--node", at)
        with running(*words, cwd=msgservice.folder) as sending:
            there, _ = listening.accept()
            there.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")
            assert sending.ended() == 1
            there.close()
    assert "what came begins with 'SSH-': that is another protocol" in sending.said
    assert "(--node)" in sending.said


def test_tls_on_one_side_alone_is_said(msgservice: Command, tmp_path: Path) -> None:
    plain = msgservice.node
    wrong = plain.replace("tcp:", "tls:")
    done = msgservice("send", "orders.new", "x", "--node", wrong, *PATIENCE_OF_IT)
    says(done, 3, ("the other side speaks no TLS: is it an address without, tcp: or http:?",))
    authority = Authority(tmp_path)
    key, certificate = authority.issue("node")
    listen = f"tls:0:privateKey={key}:certificate={certificate}"
    with running("msgservice", "node", "--listen", listen, cwd=tmp_path) as node:
        port = node.wait_for(r"^  listens on  tls:127\.0\.0\.1:(\d+)$")[1]
        at = f"tcp:127.0.0.1:{port}"
        done = msgservice("send", "orders.new", "x", "--node", at, *PATIENCE_OF_IT)
        says(done, 3, ("without a word: it may want tls: in its address, or be no node",))


@pytest.mark.parametrize("secret", ["guessed", "correct horse batteryy"])
def test_a_wrong_password_is_said_at_once(
    secret: str, page: tuple[str, str], msgservice: Command
) -> None:
    done = run(
        ["msgservice", "send", "orders.new", "x", "--node", page[0], "--user", "shop"],
        cwd=msgservice.folder,
        env=os.environ | {"MSGSERVICE_PASSWORD": secret},
        timeout=PATIENCE,
    )
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"wrong user or password" in done.stderr
    assert secret.encode() not in done.stderr


def test_no_login_where_one_is_needed_is_said_with_how(
    page: tuple[str, str], msgservice: Command
) -> None:
    done = msgservice("send", "orders.new", "x", "--node", page[0])
    says(done, 1, ("give --user, and its secret in MSGSERVICE_PASSWORD or MSGSERVICE_TOKEN",))


def test_a_body_that_is_too_large_is_said_with_the_limit(msgservice: Command) -> None:
    (msgservice.folder / "large").write_bytes(bytes(2_000_000))
    done = msgservice("send", "orders.new", "--file", "large")
    says(done, 2, ("message of 2000000 bytes, at most 1047552 allowed", "max_batch"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[node]\nnmae = "x"\n', "node.toml:2: node.nmae: unknown key, did you mean 'name'?"),
        ("[node\n", "node.toml:1: expected ']'"),
        ('[limits]\nheartbeat = "soon"\n', "node.toml:2: limits.heartbeat: must be a number"),
        ('[listen]\ntcp = "7410"\n', "tcp:7410 may be meant"),
        ('[[receiver]]\nname = "billing"\nsubjects = "orders.>"\n', "must be a list"),
    ],
    ids=["an unknown key", "no TOML", "a wrong type", "no scheme", "text for a list"],
)
def test_a_configuration_that_is_wrong_is_said_with_its_line(
    text: str, said: str, tmp_path: Path
) -> None:
    (tmp_path / "node.toml").write_text(text)
    done = Command("", tmp_path)("node", "--config", "node.toml")
    says(done, 2, ("the configuration is wrong", said))
    assert not (tmp_path / "var").exists()


def test_a_port_and_a_folder_that_another_node_has_are_said(tmp_path: Path) -> None:
    at = f"tcp:{free_port()}:interface=127.0.0.1"
    with running("msgservice", "node", "--listen", at, cwd=tmp_path) as node:
        node.wait_for("^  stop")
        msgservice = Command("", tmp_path)
        taken = msgservice("node", "--listen", at, "--data", "other")
        says(taken, 1, (at, "stop what listens there, or listen somewhere else"))
        held = msgservice("node", "--listen", "tcp:0")
        says(held, 1, (f"is held by process {node.pid}: stop that first, or use another",))


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")
def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir(mode=0o755)
    program = (
        "import os, sys; from msgservice.tap import Options, build;"
        "os.setgid(65534); os.setuid(65534); options = Options();"
        f"options.update({{'data': {str(folder)!r}}}); options.opt_listen('tcp:0');"
        "from msgservice.tap import makeService; makeService(options)"
    )
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents[:3]:
        parent.chmod(0o755)
    done = run([sys.executable, "-c", program], cwd=tmp_path, timeout=PATIENCE)
    assert done.returncode == 1
    assert f"data folder {folder} cannot be used: {folder} is not writable" in done.stderr.decode()
    assert b"Traceback" not in done.stderr


def test_a_disk_that_is_full_is_said_and_what_helps(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    try:
        made = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=6m", "none", disk],
            capture_output=True,
            check=False,
        )
    except FileNotFoundError:
        pytest.skip("no mount command")
    if made.returncode:
        pytest.skip("this user may not mount a filesystem")
    try:
        limit = ("--limit", f"reserve_bytes={1024 * 1024}")
        words = ("msgservice", "node", "--listen", "tcp:0", "--data", disk / "data", *limit)
        with running(*words, cwd=tmp_path) as node:
            at = node.wait_for(r"^  listens on  (\S+)$")[1]
            msgservice = Command(at, tmp_path)
            assert msgservice("receivers", "add", "billing", "orders.>").code == 0
            (tmp_path / "body").write_bytes(os.urandom(400_000))
            sent = [
                msgservice("send", "orders.new", "--file", "body", *PATIENCE_OF_IT)
                for _ in range(15)
            ]
            refused = next(one for one in sent if one.code)
            says(refused, 3, ("log full", "free on the disk"))
            assert "Traceback" not in node.said
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_of_two_with_one_name_the_older_is_told(msgservice: Command) -> None:
    words = ("msgservice", "listen", "twice", "orders.>", "--node", msgservice.node)
    with running(*words, cwd=msgservice.folder) as older:
        while not is_connected(msgservice, "twice"):
            pass
        with running(*words, cwd=msgservice.folder) as newer:
            assert older.ended() == 1
            assert "stop one of the two, or give one another name" in older.said
            newer.send(signal.SIGINT)
            assert newer.ended() == 130


def test_a_receiver_that_is_removed_while_it_listens_is_told(msgservice: Command) -> None:
    words = ("msgservice", "listen", "gone", "orders.>", "--node", msgservice.node)
    with running(*words, cwd=msgservice.folder) as listening:
        while not is_connected(msgservice, "gone"):
            pass
        assert msgservice("receivers", "remove", "gone", "--yes").code == 0
        assert listening.ended() == 1
        assert "the receiver was removed from the node" in listening.said


def is_connected(msgservice: Command, name: str) -> bool:
    rows = msgservice.data("receivers", "list")["receivers"]
    return any(row["name"] == name and row["connected"] for row in rows)


# --- programs

REACTOR = "from twisted.internet import reactor\n"
REACT = """
from twisted.internet.task import react
from msgservice import Receiver, connect
async def main(reactor):
    client = await connect(reactor, NODE, name="shop")
    {}
react(main)
"""
WRITTEN: dict[str, tuple[str, tuple[str, ...]]] = {
    "a misspelt name": ("from msgservice import Recever", ("did you mean 'Receiver'?",)),
    "a misspelt module's name": ("import msgservice\nmsgservice.conect", ("mean 'connect'?",)),
    "a forgotten await": (
        f"{REACTOR}from msgservice import connect\n"
        "connect(reactor, NODE, name='shop').send('orders.new', 1)",
        ("connect() gives a Deferred of the client: await it first",),
    ),
    "a forgotten reactor": (
        "from msgservice import connect\nconnect(NODE, name='shop')",
        ("the reactor is missing: connect(reactor, address, name=...)", "blocking.connect need"),
    ),
    "a receiver without a reactor": (
        "from msgservice import Receiver\nReceiver(name='billing', handler=print)",
        ("the reactor is missing: Receiver(reactor, name=..., handler=...)",),
    ),
    "a receiver by places": (
        "from msgservice import Receiver\nReceiver('billing', print)",
        ("the reactor is missing: Receiver(reactor, name=..., handler=...)",),
    ),
    "a node without a reactor": (
        "from msgservice import Node\nNode('data')",
        ("the reactor is missing: Node(reactor, folder)",),
    ),
    "a forgotten decorator": (
        f"{REACTOR}from msgservice import Receiver\n"
        "def handle(message):\n    yield\n"
        "Receiver(reactor, name='billing', handler=handle)",
        ("decorate it with inlineCallbacks, or make it async def",),
    ),
    "a handler that takes nothing": (
        f"{REACTOR}from msgservice import Receiver\n"
        "def handle():\n    pass\n"
        "Receiver(reactor, name='billing', handler=handle)",
        ("handler handle() cannot be called with one argument, the message",),
    ),
    "a handler that takes too much": (
        f"{REACTOR}from msgservice import Receiver\n"
        "Receiver(reactor, name='billing', handler=lambda subject, body: None)",
        ("cannot be called with one argument, the message",),
    ),
    "a handler that is called": (
        f"{REACTOR}from msgservice import Receiver\n"
        "Receiver(reactor, name='billing', handler=print('x'))",
        ("handler must be callable, not None",),
    ),
    "text for a list of patterns": (
        f"{REACTOR}from msgservice import Receiver\n"
        "Receiver(reactor, name='billing', handler=print).attach(NODE, subjects='orders.>')",
        ("subjects is a list of patterns, not 'orders.>'",),
    ),
    "text for a list of receivers": (
        REACT.format("await client.send('orders.new', 1, to='billing')"),
        ("bad name 'billing': `to` is a list of names",),
    ),
    "one body for many": (
        REACT.format("await client.send_many('orders.new', 'abc')"),
        ("bodies is a list of contents, not str",),
    ),
    "a pattern for a subject": (
        REACT.format("await client.send('orders.*', 1)"),
        ("belong in patterns only",),
    ),
    "a number for a subject": (
        REACT.format("await client.send(17, 'orders.new')"),
        ("subject is a str, not int",),
    ),
    "a body without a form": (
        REACT.format("await client.send('orders.new', object())"),
        ("cannot be sent as JSON", "bytes are sent as they are"),
    ),
    "headers that are a list": (
        REACT.format("await client.send('orders.new', 1, headers=['a'])"),
        ("headers: a dict of names and values, not list",),
    ),
    "a client of Twisted under asyncio": (
        f"import asyncio\n{REACTOR}from msgservice import connect\n"
        "async def main():\n    await connect(reactor, NODE, name='shop')\n"
        "asyncio.run(main())",
        ("use msgservice.aio.connect(address, name=...)",),
    ),
    "a receiver of Twisted under asyncio": (
        f"import asyncio\n{REACTOR}from msgservice import Receiver\n"
        "async def main():\n    Receiver(reactor, name='billing', handler=print)\n"
        "asyncio.run(main())",
        ("use msgservice.aio.Receiver(name=..., handler=...)",),
    ),
    "a node of Twisted under asyncio": (
        f"import asyncio\n{REACTOR}from msgservice import Node\n"
        "async def main():\n    Node(reactor, 'data')\n"
        "asyncio.run(main())",
        ("use msgservice.aio.reactor() as the reactor",),
    ),
    "asyncio's client without a loop": (
        "from msgservice import aio\naio.connect(NODE, name='shop')",
        ("msgservice.blocking is for programs without one",),
    ),
    "a client of Twisted on the thread of a web framework": (
        REACT.format(
            "from twisted.internet.threads import deferToThread\n"
            "    await deferToThread(lambda: client.send('orders.new', 1) and None)"
        ),
        ("used on its reactor's thread alone", "msgservice.blocking"),
    ),
    "no node for a program that blocks": (
        "from msgservice import blocking\nblocking.connect(NOWHERE, name='shop', timeout=1)",
        ("within 1 s: is a node listening there?",),
    ),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_what_is_written_wrong_ends_with_what_to_do(name: str, msgservice: Command) -> None:
    program, said = WRITTEN[name]
    head = f"NODE = {msgservice.node!r}\nNOWHERE = 'tcp:127.0.0.1:{free_port()}'\n"
    done = run([sys.executable, "-c", head + program], cwd=msgservice.folder, timeout=PATIENCE)
    assert done.returncode == 1, done
    last = done.stderr.decode().rstrip().rpartition("\n")[2]
    assert all(part in last for part in said), done.stderr.decode()


WAITING = """
from twisted.internet.task import react
from msgservice import connect
async def main(reactor):
    await connect(reactor, "{}", name="shop")
react(main)
"""


def test_a_program_that_waits_for_no_node_says_so(tmp_path: Path) -> None:
    nowhere = f"tcp:127.0.0.1:{free_port()}"
    (tmp_path / "shop.py").write_text(WAITING.format(nowhere))
    with running("python", "shop.py", cwd=tmp_path) as program:
        program.wait_for(f"^msgservice: no connection to {nowhere}: .*refused.*tried again")


def test_a_program_at_the_port_of_the_page_says_so(page: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(WAITING.format(f"tcp:127.0.0.1:{page[1]}"))
    with running("python", "shop.py", cwd=tmp_path) as program:
        program.wait_for("^msgservice: .*what listens there speaks HTTP, and no node does")
