"""A socket that wakes a selector from another thread, one for the process.

Not part of the wire protocol: a pair of TCP sockets on loopback, one byte per wake-up.
"""

import contextlib
import random
import selectors
import socket
import threading
from typing import Any

PORTS_TRIED = 100


class Singleton(type):
    """A metaclass: a class has one instance, the first call makes it."""

    _instances: dict[type, Any] = {}
    _making = threading.RLock()

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        """Return the instance."""
        with Singleton._making:
            if cls not in Singleton._instances:
                Singleton._instances[cls] = super().__call__(*args, **kwargs)
            return Singleton._instances[cls]


class NotifierSock(metaclass=Singleton):
    """Wakes the selector that it was initialised with; before that, `notify` does nothing."""

    def __init__(self) -> None:
        self._selector: selectors.BaseSelector | None = None
        self._receiving: socket.socket | None = None
        self._sending: socket.socket | None = None

    def init(self, selector: selectors.BaseSelector, port: int = 26000) -> None:
        """Register with a selector; its owner calls `key.data.process_events(mask)` as for others.

        A port is taken from `port` on, on loopback only; 0 leaves it to the system. A pair for an
        earlier selector is closed.
        """
        self.close()
        with _listen(port) as listener:
            sending = socket.create_connection(listener.getsockname())
            while True:
                receiving, address = listener.accept()
                if address == sending.getsockname():
                    break
                receiving.close()  # somebody else of this machine was faster
        receiving.setblocking(False)
        sending.setblocking(False)
        self._selector, self._receiving, self._sending = selector, receiving, sending
        selector.register(receiving, selectors.EVENT_READ, data=self)

    def get_sock(self) -> socket.socket | None:
        """Return the socket that becomes readable, None before `init`."""
        return self._receiving

    def notify(self) -> None:
        """Wake the selector; from any thread."""
        sending = self._sending
        if sending is not None:
            # A full buffer means that it is awake already, a closed socket that nobody waits.
            with contextlib.suppress(OSError):
                sending.send(b"\0")

    def process_events(self, mask: int) -> None:
        """Take the wake-ups."""
        if mask & selectors.EVENT_READ and self._receiving is not None:
            with contextlib.suppress(BlockingIOError, InterruptedError):
                self._receiving.recv(4096)

    def close(self) -> None:
        """Leave the selector; `init` may be called again."""
        receiving, sending = self._receiving, self._sending
        self._receiving = self._sending = None
        if receiving is not None and self._selector is not None:
            with contextlib.suppress(KeyError, ValueError, RuntimeError):
                self._selector.unregister(receiving)
        for sock in (receiving, sending):
            if sock is not None:
                sock.close()


def _listen(port: int) -> socket.socket:
    ports = [port + random.randrange(PORTS_TRIED + 1) for _ in range(10)] if port else []
    for candidate in ports:
        if candidate < 65_536:
            with contextlib.suppress(OSError):
                return socket.create_server(("127.0.0.1", candidate))
    return socket.create_server(("127.0.0.1", 0))
