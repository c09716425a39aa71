"""The other process of `test_callbacks_processes`: one side of a connection, of either kind.

`python -m tests.integration.callbacks_worker KIND ROLE PORT FOLDER`: KIND is `selectors` or
`twisted`, ROLE `server` or `client`. It serves the same names whatever it is, does everything that
the protocol can do to its peer, and prints what came of it as one JSON line. A server prints its
port first; both end with the connection.
"""

import json
import os
import selectors
import socket
import sys
from pathlib import Path
from typing import Any

from msgservice.faces import messaging
from msgservice.faces.callbacks.files import FileRoot

CONTENT = bytes(range(256)) * 1200
WANTED = {"request", "unicode", "nothing", "order", "pushed", "fetched", "empty", "counted"}
heard: list[Any] = []


@messaging.message_callback("note")
def note(connection: Any, *args: Any, **kwargs: Any) -> None:
    heard.append([list(args), kwargs])


@messaging.request_callback("heard")
def tell_heard(connection: Any) -> Any:
    return heard


@messaging.request_callback("echo")
def echo(connection: Any, *args: Any, **kwargs: Any) -> Any:
    return [list(args), kwargs]


@messaging.request_callback("square")
def square(connection: Any, n: int) -> int:
    return n * n


@messaging.request_callback("raises")
def raises(connection: Any) -> None:
    raise ValueError("on purpose")


@messaging.request_callback("has")
def has(connection: Any, name: str, size: int) -> bool:
    path = Path(name)
    return path.exists() and path.read_bytes() == CONTENT[:size]


class Exercise:
    """Everything that one side can do; both kinds of connection have these verbs."""

    def __init__(self, connection: Any, done: Any) -> None:
        self.connection, self.done = connection, done
        self.results: dict[str, Any] = {}

    def start(self) -> None:
        Path("source").write_bytes(CONTENT)
        Path("empty").write_bytes(b"")
        ask = self.connection.get_response
        for n in range(3):
            self.connection.send_message("note", [n, "zwölf"], {"k": [None, 1.5]})
        ask("echo", self.keep("request"), [1, "a"], {"k": {"n": None}}, ["own"], {"also": 1})
        ask("echo", self.keep("unicode"), ["€😀"])
        ask("raises", self.keep("raises"))
        ask("unknown", self.keep("unknown"))
        ask("heard", self.keep("nothing"))
        squares: list[int] = []

        def collect(connection: Any, value: int) -> None:
            squares.append(value)
            if len(squares) == 50:
                self.results["order"] = sorted(squares) == [n * n for n in range(50)]

        for n in range(50):
            ask("square", collect, [n])
        self.connection.send_file("source", "pushed")
        self.connection.send_file("empty", "pushed-empty")
        ask("has", self.keep("pushed"), ["pushed", len(CONTENT)])
        ask("has", self.keep("empty"), ["pushed-empty", 0])
        self.connection.get_file("source", "fetched", self.fetched, ["own"], {"also": 1})
        self.connection.get_file("missing", "fetched-missing", self.keep("missing"))
        self.connection.get_file("../source", "fetched-outside", self.keep("outside"))

    def keep(self, name: str) -> Any:
        def callback(connection: Any, value: Any, *args: Any, **kwargs: Any) -> None:
            self.results[name] = [value, list(args), kwargs]
            self.check()

        return callback

    def fetched(self, connection: Any, value: bool, own: str, filepath: str, also: int) -> None:
        is_whole = Path(filepath).read_bytes() == CONTENT
        self.results["fetched"] = [value, is_whole, own, also]
        self.connection.get_response("square", self.keep("counted"), [12])

    def check(self) -> None:
        if set(self.results) >= WANTED:
            self.done(self.results)


def report(results: dict[str, Any]) -> None:
    print(json.dumps(results), flush=True)


# --- on selectors ---------------------------------------------------------------------------------


def run_selectors(role: str, port: int) -> None:
    selector = selectors.DefaultSelector()
    connection = messaging.ConnectionManager()
    if role == "server":
        with socket.create_server(("127.0.0.1", 0)) as listener:
            print(listener.getsockname()[1], flush=True)
            sock, address = listener.accept()
    else:
        sock = socket.create_connection(("127.0.0.1", port))
        address = sock.getpeername()
    selector.register(sock, selectors.EVENT_READ | selectors.EVENT_WRITE, data=connection)
    connection.buffer_size = 4096
    connection.connect(selector, sock, address)
    Exercise(connection, report).start()
    while connection.socket is not None:
        for key, mask in selector.select(20):
            try:
                key.data.process_events(mask)
            except (RuntimeError, OSError):
                key.data.close()
    selector.close()


# --- on Twisted -----------------------------------------------------------------------------------


def run_twisted(role: str, port: int) -> None:
    from twisted.internet import reactor as any_reactor

    from msgservice.faces.callbacks.service import CallbackClient, CallbackServer

    reactor: Any = any_reactor
    options: dict[str, Any] = {"files": FileRoot(), "on_connected": begin}
    if role == "server":
        server = CallbackServer(
            reactor,
            "tcp:0:interface=127.0.0.1",
            on_disconnected=lambda connection: reactor.callLater(0, reactor.stop),
            **options,
        )

        def tell(address: Any) -> None:
            print(address.port, flush=True)

        server.listen().addCallback(tell)
    else:
        client = CallbackClient(
            reactor,
            port=port,
            on_disconnected=lambda connection: reactor.callLater(0, reactor.stop),
            **options,
        )
        client.startService()
    reactor.run()


def begin(connection: Any) -> None:
    Exercise(connection, report).start()


def main() -> None:
    kind, role, port, folder = sys.argv[1:]
    os.chdir(folder)
    {"selectors": run_selectors, "twisted": run_twisted}[kind](role, int(port))


if __name__ == "__main__":
    main()
