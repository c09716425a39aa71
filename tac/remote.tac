"""A remote of the central in central.tac: `twistd -ny tac/remote.tac`. It ends with its session."""

import os

from twisted.application.service import Application
from twisted.internet import reactor
from twisted.logger import Logger

from msgservice.faces.sessions import Remote

log = Logger("remote")


def heard(message):
    log.info("{content}", content=message.content)


async def joined():
    await remote.send({"pid": os.getpid()})


def ended(end):
    log.info("ended by {by}: {reason}", by=end.by, reason=end.reason)
    if end.by != "stop":
        reactor.callLater(0, reactor.stop)


application = Application("remote")
remote = Remote(
    reactor, ("127.0.0.1", 1602), id="worker", on_message=heard, on_joined=joined, on_shutdown=ended
)
remote.setServiceParent(application)
