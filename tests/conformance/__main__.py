"""`python -m tests.conformance ADDRESS`: what an implementation of a client or receiver got wrong.

ADDRESS is `tcp:HOST:PORT` or `unix:PATH`. The kit listens there as a node, and the implementation
dials it again and again; with `--dial` the kit dials, as a node does to a receiver that listens.
Exit code 0: nothing was wrong; 1: something was; 2: nobody came.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
import time

from tests.conformance.kit import Kit


def listening(address: str) -> socket.socket:
    """A socket that listens at the address."""
    kind, _, rest = address.partition(":")
    if kind == "unix":
        made = socket.socket(socket.AF_UNIX)
        made.bind(rest)
        made.listen()
        return made
    host, _, port = rest.rpartition(":")
    return socket.create_server((host or "127.0.0.1", int(port)))


def dialled(address: str, timeout: float) -> socket.socket:
    """A connection to the address; it is tried until the time is over."""
    kind, _, rest = address.partition(":")
    until = time.monotonic() + timeout
    while True:
        made = socket.socket(socket.AF_UNIX if kind == "unix" else socket.AF_INET)
        host, _, port = rest.rpartition(":")
        try:
            made.connect(rest if kind == "unix" else (host or "127.0.0.1", int(port)))
        except OSError:
            made.close()
            if time.monotonic() > until:
                raise
            time.sleep(0.1)
        else:
            return made


def main() -> int:
    """Run the kit."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description=__doc__)
    parser.add_argument("address")
    parser.add_argument("--dial", action="store_true", help="dial a receiver that listens there")
    parser.add_argument("--user", help="who logs in, with MSGSERVICE_PASSWORD")
    parser.add_argument("--timeout", type=float, default=10.0, help="seconds for each answer")
    parser.add_argument("--patience", type=float, default=60.0, help="seconds for a connection")
    options = parser.parse_args()
    login = (options.user, os.environ["MSGSERVICE_PASSWORD"]) if options.user else None
    if options.dial:
        kit = Kit(lambda: dialled(options.address, options.patience), options.timeout)
    else:
        listener = listening(options.address)
        listener.settimeout(options.patience)
        print(f"listening on {options.address}", flush=True)
        kit = Kit(lambda: listener.accept()[0], options.timeout, login)
    try:
        right = kit.run(lambda text: print(text, flush=True))
    except OSError as error:
        print(f"no connection: {error}")
        return 2
    print(f"{len(kit.passed)} right, {len(kit.wrong)} wrong")
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
