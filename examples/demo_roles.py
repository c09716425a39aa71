"""The processes of the demo: a receiver and a producer, as a user would write them.

    python -m examples.demo_roles receiver --name billing --inbox billing.db --attach tcp:…
    python -m examples.demo_roles producer --address tcp:… --outbox shop.db --file lines.txt

Both may be killed at any time and started again with the same command: what they had said they
have, they have.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from twisted.internet import task
from twisted.internet.defer import Deferred

from msgservice import Receiver, connect

SUBJECT = "lines.new"
TABLE = "create table if not exists output (number integer primary key, line blob not null)"


def say(**fields: Any) -> None:
    print(json.dumps(fields), flush=True)


def receiver(reactor: Any, args: argparse.Namespace) -> Deferred[None]:
    """Write each line into the inbox's own database, in the transaction that marks it taken."""

    def handle(message: Any, transaction: Any) -> None:
        transaction.execute(TABLE)
        transaction.execute("insert into output (line) values (?)", (message.body,))

    made = Receiver(reactor, name=args.name, handler=handle, inbox=args.inbox)
    forever: Deferred[None] = Deferred()
    if args.attach:
        made.attach(args.attach, subjects=["lines.>"])
        say(started=args.name)
    else:
        made.listen(args.listen).addCallbacks(lambda _: say(started=args.name), forever.errback)
    return forever


def producer(reactor: Any, args: argparse.Namespace) -> Deferred[None]:
    return Deferred.fromCoroutine(produce(reactor, args))


async def produce(reactor: Any, args: argparse.Namespace) -> None:
    """Hand over each line of the file, going on where the outbox says that we were."""
    lines = args.file.read_bytes().splitlines(keepends=True)
    client = await connect(reactor, args.address, name="shop", outbox=args.outbox)
    at = client.sequence
    say(started="producer", at=at, of=len(lines))
    while at < len(lines):
        # Paced, so that there is time to kill somebody while it runs.
        part = lines[at : at + args.pace]
        await client.send_many(SUBJECT, part)
        at += len(part)
        await task.deferLater(reactor, 0.02, lambda: None)
    say(handed_over=at)
    while client.unanswered:  # the node may be away just now; what is on disk here waits for it
        await task.deferLater(reactor, 0.02, lambda: None)
    await client.close()
    say(accepted=at)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    roles = parser.add_subparsers(dest="role", required=True)
    of_receiver = roles.add_parser("receiver")
    of_receiver.add_argument("--name", required=True)
    of_receiver.add_argument("--inbox", required=True)
    of_receiver.add_argument("--attach")
    of_receiver.add_argument("--listen")
    of_producer = roles.add_parser("producer")
    of_producer.add_argument("--address", required=True)
    of_producer.add_argument("--outbox", required=True)
    of_producer.add_argument("--file", required=True, type=Path)
    of_producer.add_argument("--pace", type=int, default=40)
    args = parser.parse_args()
    task.react({"receiver": receiver, "producer": producer}[args.role], (args,))


if __name__ == "__main__":
    main()
