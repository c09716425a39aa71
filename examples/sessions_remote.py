"""A remote that squares numbers: `python -m examples.sessions_remote PORT NAME`.

PORT is the central's, of `python -m examples.sessions_central`. It ends when the central says so,
or has sent no heartbeat for five seconds.
"""

import sys
from typing import Any

from twisted.internet import task
from twisted.internet.defer import ensureDeferred

from msgservice.faces.sessions import Remote, SessionMessage


async def main(reactor: Any, port: int, name: str) -> None:
    async def square(message: SessionMessage) -> None:
        number = message.content["square"]
        await remote.send({"number": number, "square": number * number})

    remote = Remote(reactor, ("127.0.0.1", port), id=name, on_message=square, heartbeat_timeout=5.0)
    await remote.start()
    ended = await remote.when_shut_down()
    print(f"{name} ends, by {ended.by}: {ended.reason}", flush=True)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit("usage: python -m examples.sessions_remote PORT NAME")
    task.react(lambda reactor: ensureDeferred(main(reactor, int(sys.argv[1]), sys.argv[2])))
