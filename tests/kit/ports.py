"""A port for a program that is killed and comes back to it, or that is told it before it listens.

A program that listens once is told port 0, and says which one it got.
"""

from __future__ import annotations

import random
import socket

# Below those that the kernel gives to who asks for any: while the program is down, one of the tests
# that run beside this one would sooner or later be given its port.
PORTS = range(20_000, 32_000)
_given: set[int] = set()


def free_port(kind: socket.SocketKind = socket.SOCK_STREAM) -> int:
    """Return a port of 127.0.0.1 that nobody has, and that nobody is given by chance."""
    while True:
        port = random.choice(PORTS)
        if port in _given:
            continue
        with socket.socket(socket.AF_INET, kind) as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        _given.add(port)
        return port
