"""A program that has Twisted and nothing of msgservice: one message by Perspective Broker.

python -m examples.pb_client PORT [USER PASSWORD]
"""

import sys

from twisted.cred.credentials import Anonymous, UsernamePassword
from twisted.internet import defer, endpoints, task
from twisted.spread import pb


async def main(reactor, port, user="", password=""):
    factory = pb.PBClientFactory()
    await endpoints.TCP4ClientEndpoint(reactor, "127.0.0.1", int(port)).connect(factory)
    who = UsernamePassword(user.encode(), password.encode()) if user else Anonymous()
    perspective = await factory.login(who)
    position = await perspective.callRemote("send", "orders.new", b"one", {"id": "order-1"})
    print("stored at", position)
    print((await perspective.callRemote("status", "order-1"))["position"] == position)
    try:
        await perspective.callRemote("send", "orders..new", b"two")
    except pb.RemoteError as error:
        print("refused, as it should be:", error.remoteType.decode())
    factory.disconnect()


if __name__ == "__main__":
    if len(sys.argv) not in (2, 4):
        raise SystemExit("usage: python -m examples.pb_client PORT [USER PASSWORD]")
    task.react(lambda reactor, *args: defer.ensureDeferred(main(reactor, *args)), sys.argv[1:])
