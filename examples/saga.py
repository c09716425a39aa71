"""A saga: hotel and airline both book a trip in time, or what was booked is given back.

    python -m examples.saga

All of it in one process: a node on a folder that is gone afterwards, two receivers, and the desk.
"""

import tempfile

from twisted.internet import defer, task

from msgservice import Node, Promise, Receiver


def booking(name):
    """Return a handler that says what it does."""

    def handle(message):
        what = "books" if message.subject == "trips.book" else "gives back"
        print(f"{name} {what} trip {message.content['trip']}", flush=True)

    return handle


async def book(client, trip, within):
    """Return whether all have booked it; who has it where not all have gives it back."""
    promise = Promise(need="all", within=within, otherwise="cancel")
    receipt = await client.send("trips.book", {"trip": trip}, promise=promise)
    outcome = await receipt.promised()
    if outcome.kept:
        print(f"trip {trip} is booked", flush=True)
        return True
    print(f"trip {trip} is not booked: {outcome.reason}", flush=True)
    # Whom it was cancelled at never gets it. Who has not answered may have it.
    may_have = [name for name, status in outcome.receivers.items() if status.name != "CANCELLED"]
    if may_have:
        back = await client.send("trips.give_back", {"trip": trip}, to=may_have)
        await back.settled()
    return False


async def main(reactor):
    with tempfile.TemporaryDirectory() as folder:
        node = Node(reactor, folder)
        node.startService()
        await node.when_ready()
        receivers = {}
        for name in ("hotel", "airline"):
            receivers[name] = Receiver(reactor, name=name, handler=booking(name))
            node.attach(receivers[name], ["trips.book"])
            await receivers[name].when_connected()
        client = node.client("desk")
        await book(client, 1, within=60)
        await receivers["airline"].stop()
        await book(client, 2, within=1)
        await client.close()
        await receivers["hotel"].stop()
        await node.stopService()


if __name__ == "__main__":
    task.react(lambda reactor: defer.ensureDeferred(main(reactor)))
