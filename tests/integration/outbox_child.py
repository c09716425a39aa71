"""A producer that opens an outbox which an earlier one left, and says what that takes.

python outbox_child.py ADDRESS OUTBOX TAKEN

Prints `opened UNANSWERED MIB` when it is open, and `taken UNANSWERED MIB` when the node has taken
TAKEN messages of it; MIB is by how much the process has grown at most.
"""

import sys
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater, react

import msgservice.client.disk  # noqa: F401 - what the modules take is not what is measured
from msgservice import connect
from msgservice.client.client import Client


def peak() -> int:
    # Not `ru_maxrss`, which begins with that of the process that started this one.
    [line] = [n for n in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in n]
    return int(line.split()[1]) // 1024


async def main(reactor: Any, address: str, outbox: str, taken: str) -> None:
    before = peak()
    client: Client = await connect(reactor, address, name="left", outbox=outbox)
    left = client.unanswered
    print("opened", left, peak() - before, flush=True)
    while client.unanswered > left - int(taken):
        await deferLater(reactor, 0.05)
    print("taken", client.unanswered, peak() - before, flush=True)


if __name__ == "__main__":
    react(lambda reactor, *argv: Deferred.fromCoroutine(main(reactor, *argv)), sys.argv[1:])
