"""A server and three drones in one process: `python -m examples.callbacks_fleet [FOLDER]`.

The server asks each drone for its name when it connects, sends it a file, and has all of them
start. Each drone has a folder of its own and a registry of its own.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

from twisted.internet import defer, task

from msgservice.faces.callbacks import Connection
from msgservice.faces.callbacks.files import FileRoot
from msgservice.faces.callbacks.registry import CallbackRegistry
from msgservice.faces.callbacks.service import CallbackClient, CallbackServer

DRONES = 3


def drone_registry(number: int, folder: Path) -> CallbackRegistry:
    registry = CallbackRegistry()
    registry.request_callback("id")(lambda connection: f"drone-{number}")

    @registry.message_callback("start")
    def start(connection: Connection, show: str) -> None:
        print(f"drone-{number} plays {(folder / show).read_text()}")
        connection.send_message("started", [f"drone-{number}"])

    return registry


async def main(reactor: Any) -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
    (folder / "show.txt").write_text("the opening figure")
    started: list[str] = []
    all_started: defer.Deferred[None] = defer.Deferred()
    registry = CallbackRegistry()

    @registry.message_callback("started")
    def hear(connection: Connection, name: str) -> None:
        started.append(name)
        if len(started) == DRONES:
            all_started.callback(None)

    async def greet(connection: Connection) -> None:
        name = await connection.request("id", timeout=5)
        sent = await connection.push_file(folder / "show.txt", "show.txt")
        print(f"{name} has {sent.size} bytes")
        connection.send_message("start", ["show.txt"])

    server = CallbackServer(
        reactor, "tcp:0:interface=127.0.0.1", registry=registry, on_connected=greet
    )
    address: Any = await server.listen()
    clients = []
    for number in range(DRONES):
        own = folder / f"drone-{number}"
        own.mkdir()
        clients.append(
            CallbackClient(
                reactor,
                port=address.port,
                registry=drone_registry(number, own),
                files=FileRoot(own),
            )
        )
        clients[-1].startService()
    await all_started
    for client in clients:
        await client.stopService()
    await server.stopService()
    print("done")


if __name__ == "__main__":
    task.react(lambda reactor: defer.ensureDeferred(main(reactor)))
