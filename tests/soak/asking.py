"""One request to a node, printed as JSON: `python -m tests.soak.asking ADDRESS SUBJECT`."""

from __future__ import annotations

import json
import sys
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import react

from msgservice import connect


async def main(reactor: Any, address: str, subject: str) -> None:
    """Ask, print, leave."""
    client = await connect(reactor, address, name="asking")
    reply = await client.request(subject, {}, timeout=20)
    print(json.dumps(reply))
    await client.close()


if __name__ == "__main__":
    react(lambda reactor, *argv: Deferred.fromCoroutine(main(reactor, *argv)), sys.argv[1:])
