"""Requests and replies over acknowledged UDP, in one process: `python -m examples.udp_rpc`.

The traceback that it shows is meant: what a handler raises is logged where it was raised, and the
other side gets its last line.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import gatherResults
from twisted.internet.task import react

from msgservice import DatagramPeer
from msgservice.errors import HandlerFailed

Address = tuple[str, int]


class Doubler(DatagramPeer):
    """Doubles numbers, and fails on what is none."""

    def handle_message(self, data: bytes, address: Address) -> bytes:
        return b"%d" % (2 * int(data))


async def main(reactor: Any) -> None:
    server, client = Doubler(reactor), DatagramPeer(reactor)
    to = server.listen()
    client.listen()

    print("twice 21 is", (await client.send_message(b"21", to)).decode())

    replies = await gatherResults([client.send_message(b"%d" % n, to) for n in range(5)])
    print("several at once:", b" ".join(replies).decode())

    run = await client.send_messages([b"%d" % n for n in range(10_000)], to)
    print("a run of", len(run), "ends with", run[-1].decode())

    try:
        await client.send_message(b"x", to)
    except HandlerFailed as failed:
        print("the handler's own error:", failed.reason)

    client.close()
    server.close()


if __name__ == "__main__":
    react(main)
