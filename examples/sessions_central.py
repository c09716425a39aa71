"""A central that gives work out: `python -m examples.sessions_central [REMOTES]`.

It says at which port it listens; start remotes in other terminals with
`python -m examples.sessions_remote PORT NAME`. Each remote that joins gets three numbers to square,
and is told to end when it has answered; the central ends with the last of REMOTES (2).
"""

import sys
from typing import Any

from twisted.internet import task
from twisted.internet.defer import Deferred, ensureDeferred

from msgservice.faces.sessions import Central, Member, SessionMessage

JOBS = 3


async def main(reactor: Any, remotes: int) -> None:
    is_over: Deferred[None] = Deferred()
    answered: dict[Any, int] = {}

    async def give_work(remote: Member) -> None:
        print(f"{remote.key} has joined", flush=True)
        for number in range(JOBS):
            await central.send(remote.key, {"square": number})

    async def take_answer(message: SessionMessage) -> None:
        print(f"{message.key}: {message.content}", flush=True)
        answered[message.key] = answered.get(message.key, 0) + 1
        if answered[message.key] == JOBS:
            reactor.callLater(0, central.shutdown, message.key, "all is done")

    def tell_end(remote: Member, reason: str) -> None:
        print(f"{remote.key} has left: {reason}", flush=True)
        if len(answered) == remotes and not central.remotes:
            is_over.callback(None)

    central = Central(
        reactor, on_joined=give_work, on_message=take_answer, on_left=tell_end, heartbeat=1.0
    )
    _, port = await central.listen()
    print(f"listening on {port}", flush=True)
    await is_over
    await central.stopService()


if __name__ == "__main__":
    if len(sys.argv) > 2 or not all(word.isdigit() for word in sys.argv[1:]):
        raise SystemExit("usage: python -m examples.sessions_central [REMOTES]")
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 2
    task.react(lambda reactor: ensureDeferred(main(reactor, count)))
