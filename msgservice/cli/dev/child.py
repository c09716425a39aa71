"""The receiver that is a process of its own: it does what it is told with each message.

    it says, a JSON object on a line    {"attached": true}
                                        {"given": 3, "id": "dev-7", "position": …, …}
    it is told, the same                {"given": 3, "take": true}
                                        {"given": 3, "retry": 1.0, "reason": "no database"}
                                        {"given": 3, "reject": "no such customer"}

It ends when nobody tells it anything any more. Who runs it may kill it at any time.
"""

from __future__ import annotations

import signal
import sys
from typing import Any

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.protocol import connectionDone
from twisted.protocols.basic import LineOnlyReceiver
from twisted.python.failure import Failure

from msgservice.errors import Reject, Retry
from msgservice.receiver.received import ReceivedMessage
from msgservice.receiver.receiver import Receiver
from msgservice.receiver_options import NONE

LINE_BYTES_MAX = 64 * 1024


def facts_of(message: ReceivedMessage) -> dict[str, Any]:
    """Return what is told of a message that a receiver was given."""
    return {
        "id": message.id,
        "sender": message.sender,
        "subject": message.subject,
        "position": message.position,
        "attempts": message.attempts,
    }


class Told(LineOnlyReceiver):
    """The end of this process towards who runs it: standard input and output."""

    delimiter = b"\n"
    MAX_LENGTH = LINE_BYTES_MAX

    def __init__(self) -> None:
        self.ended: Deferred[None] = Deferred()
        self._given: dict[int, Deferred[None]] = {}
        self._count = 0

    def say(self, **fields: Any) -> None:
        """Say something."""
        self.sendLine(msgspec.json.encode(fields))

    def handle(self, message: ReceivedMessage) -> Deferred[None]:
        """Ask what is to be done with a message; fires, or fails, as that is."""
        self._count += 1
        answer = self._given[self._count] = Deferred()
        self.say(given=self._count, **facts_of(message))
        return answer

    def lineReceived(self, line: bytes) -> None:
        """Do what is told."""
        told = msgspec.json.decode(line)
        answer = self._given.pop(told["given"])
        if "retry" in told:
            answer.errback(Retry(told["retry"], told["reason"]))
        elif "reject" in told:
            answer.errback(Reject(told["reject"]))
        else:
            answer.callback(None)

    def give_back(self) -> None:
        """Nothing is done with what was given any more: once the receiver stops, it comes again."""
        given, self._given = self._given, {}
        for answer in given.values():
            answer.cancel()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Nobody runs this any more."""
        self.ended.callback(None)


async def main(reactor: Any, address: str, name: str, pattern: str) -> None:
    """Be a receiver, until standard input ends."""
    from twisted.internet.stdio import StandardIO

    told = Told()
    StandardIO(told, reactor=reactor)
    receiver = Receiver(reactor, name=name, handler=told.handle, order=NONE)
    receiver.attach(address, subjects=[pattern])
    receiver.when_connected().addCallback(lambda _: told.say(attached=True))
    await told.ended
    stopped = receiver.stop()
    told.give_back()
    await stopped


def run() -> None:
    """Run it with the arguments of this process: address, name, pattern."""
    from twisted.internet.task import react

    # Ctrl-C is for who runs it, and would be heard by all that its terminal has.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    react(lambda reactor: Deferred.fromCoroutine(main(reactor, *sys.argv[1:])))


if __name__ == "__main__":
    run()
