"""A server on `selectors` and its client in a thread: `python -m examples.callbacks_selectors`.

No Twisted: this is how a program for the original looks, with another import.
"""

import selectors
import socket
import threading
from typing import Any

from msgservice.faces import messaging

finished = threading.Event()


@messaging.request_callback("square")
def square(connection: Any, n: int) -> int:
    return n * n


@messaging.message_callback("say")
def say(connection: Any, text: str) -> None:
    print(f"{connection.whoami} hears {text!r}")
    finished.set()


def serve(listener: socket.socket) -> None:
    """Accept one client, and serve it until it goes."""
    selector = selectors.DefaultSelector()
    connection = messaging.ConnectionManager(whoami="server")
    sock, address = listener.accept()
    messaging.set_keepalive(sock)
    selector.register(sock, selectors.EVENT_READ, data=connection)
    connection.connect(selector, sock, address)
    run(selector, connection)


def run(selector: selectors.BaseSelector, connection: messaging.ConnectionManager) -> None:
    while connection.socket is not None:
        for key, mask in selector.select(1):
            try:
                key.data.process_events(mask)
            except (RuntimeError, ValueError, OSError):
                key.data.close()
    selector.close()


def main() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(target=serve, args=(listener,))
        server.start()
        sock = socket.create_connection(listener.getsockname())
        selector = selectors.DefaultSelector()
        connection = messaging.ConnectionManager(whoami="client")
        selector.register(sock, selectors.EVENT_READ, data=connection)
        connection.connect(selector, sock, listener.getsockname())

        def show(connection: Any, value: int, label: str) -> None:
            print(f"{label} {value}")
            connection.send_message("say", ["goodbye"])
            connection.close()

        connection.get_response("square", show, request_args=(12,), callback_args=("twelve:",))
        run(selector, connection)
        server.join(10)
    assert finished.is_set()
    print("done")


if __name__ == "__main__":
    main()
