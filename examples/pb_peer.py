"""Two peers that call each other over one connection, whoever of them has dialled.

python -m examples.pb_peer listen PORT
python -m examples.pb_peer dial PORT
"""

import sys

from twisted.internet import defer, task

from msgservice import PbPeer


async def main(reactor, role, port):
    peer = PbPeer(reactor, name=role)
    asked = defer.Deferred()

    @peer.expose("double")
    def double(number):
        reactor.callLater(0.1, asked.callback, None)  # when the answer has left
        return 2 * number

    if role == "listen":
        listening = await peer.listen(f"pb:{port}")
        print("listening on", listening.getHost().port, flush=True)
    else:
        peer.dial(f"pb:127.0.0.1:{port}")
    connected = peer.when_connected()
    if role == "dial":
        connected.addTimeout(10, reactor)
    try:
        await connected
    except defer.TimeoutError:
        raise SystemExit(f"pb_peer: {peer.why()}") from None
    print("double of 21 is", await peer.call("double", 21), flush=True)
    await asked
    await peer.stop()


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in ("listen", "dial"):
        raise SystemExit("usage: python -m examples.pb_peer listen|dial PORT")
    task.react(lambda reactor, *args: defer.ensureDeferred(main(reactor, *args)), sys.argv[1:])
