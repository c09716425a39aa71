"""A central of sessions on port 1602: `twistd -ny tac/central.tac`. Each message is logged."""

from twisted.application.service import Application
from twisted.internet import reactor
from twisted.logger import Logger

from msgservice.faces.sessions import Central

log = Logger("central")


def heard(message):
    log.info("{key}: {content}", key=message.key, content=message.content)


def joined(remote):
    log.info("{key} has joined", key=remote.key)


application = Application("central")
central = Central(
    reactor,
    listen="tcp:1602:interface=127.0.0.1",
    on_message=heard,
    on_joined=joined,
    on_left=lambda remote, reason: log.info("{key} has left: {why}", key=remote.key, why=reason),
)
central.setServiceParent(application)
