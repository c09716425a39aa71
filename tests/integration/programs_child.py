"""A program by each way of calling msgservice, which plays a scenario: the same for all three.

python programs_child.py twisted|aio|blocking SCENARIO ADDRESS

A scenario is a coroutine function that gets a `Way`, whose calls it awaits: Deferreds, futures, or
what a blocking call has returned already. What it learns it prints, a line each.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any

from msgservice import Promise, Reject, Retry
from msgservice.limits import Limits

QUICK = Limits(link_delay_min=0.05, link_delay_max=0.2, stop_timeout=2.0)
MOMENT = 0.05  # seconds between two looks


def say(*words: object) -> None:
    print(*words, flush=True)


class Way:
    """A way to call msgservice. What `call` begins goes on by itself until it is awaited."""

    def connect(self, address: str, **options: Any) -> Awaitable[Any]:
        raise NotImplementedError

    def receiver(self, **options: Any) -> Any:
        raise NotImplementedError

    def begin(self, call: Callable[[], Any]) -> Awaitable[Any]:
        raise NotImplementedError

    def within(self, seconds: float, receipt: Any) -> Awaitable[None]:
        """Wait no longer than this until it is acknowledged."""
        raise NotImplementedError

    def pause(self, seconds: float) -> Awaitable[None]:
        raise NotImplementedError

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await self.pause(MOMENT)

    def run(self, main: Callable[[], Coroutine[Any, Any, None]]) -> None:
        raise NotImplementedError


class TwistedWay(Way):
    reactor: Any

    def connect(self, address: str, **options: Any) -> Awaitable[Any]:
        from msgservice import connect

        return connect(self.reactor, address, **options)

    def receiver(self, **options: Any) -> Any:
        from msgservice import Receiver

        return Receiver(self.reactor, **options)

    def begin(self, call: Callable[[], Any]) -> Awaitable[Any]:
        begun: Awaitable[Any] = call()
        return begun

    def within(self, seconds: float, receipt: Any) -> Awaitable[None]:
        waited: Awaitable[None] = receipt.acknowledged().addTimeout(seconds, self.reactor)
        return waited

    def pause(self, seconds: float) -> Awaitable[None]:
        from twisted.internet.task import deferLater

        return deferLater(self.reactor, seconds)

    def run(self, main: Callable[[], Coroutine[Any, Any, None]]) -> None:
        from twisted.internet import reactor
        from twisted.internet.defer import Deferred
        from twisted.internet.task import react

        self.reactor = reactor
        react(lambda _: Deferred.fromCoroutine(main()))


class AioWay(Way):
    def connect(self, address: str, **options: Any) -> Awaitable[Any]:
        from msgservice import aio

        return aio.connect(address, **options)

    def receiver(self, **options: Any) -> Any:
        from msgservice import aio

        return aio.Receiver(**options)

    def begin(self, call: Callable[[], Any]) -> Awaitable[Any]:
        begun: Awaitable[Any] = call()
        return begun

    def within(self, seconds: float, receipt: Any) -> Awaitable[None]:
        waited: asyncio.Future[None] = receipt.acknowledged()
        return asyncio.wait_for(waited, seconds)

    def pause(self, seconds: float) -> Awaitable[None]:
        return asyncio.sleep(seconds)

    def run(self, main: Callable[[], Coroutine[Any, Any, None]]) -> None:
        asyncio.run(main())


class Done:
    """What a call has returned, to be awaited; and the calls of it, if it has any."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def __await__(self) -> Generator[Any, None, Any]:
        yield from ()
        return shown(self._value)


class Blocking:
    """An object of `msgservice.blocking`, whose calls block, and can be awaited when they return.

    What raises does so when it is awaited, as with the other ways.
    """

    def __init__(self, inside: Any) -> None:
        self.inside = inside

    def __len__(self) -> int:
        return len(self.inside)

    def __getitem__(self, at: int) -> Any:
        return shown(self.inside[at])

    def __getattr__(self, name: str) -> Any:
        if name == "accepted":
            return Done(self.inside.accepted)
        value = getattr(self.inside, name)
        if not callable(value):
            return value

        def call(*args: Any, **kwargs: Any) -> Any:
            inside = [one.inside if isinstance(one, Blocking) else one for one in args]
            try:
                result = value(*inside, **kwargs)
            except Exception as error:
                return Raised(error)
            return result if name in AT_ONCE else Done(result)

        return call


AT_ONCE = ("attach", "why")  # calls that wait for nothing, of any way


class Raised:
    def __init__(self, error: Exception) -> None:
        self._error = error

    def __await__(self) -> Generator[Any, None, Any]:
        yield from ()
        raise self._error


def shown(value: Any) -> Any:
    from msgservice import blocking

    kinds = (blocking.Client, blocking.Receipt, blocking.Receipts, blocking.Responder)
    return Blocking(value) if isinstance(value, kinds) else value


class Begun:
    """A call in a thread of its own."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call = call
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        self._result = self._call()

    def __await__(self) -> Generator[Any, None, Any]:
        self._thread.join()
        return (yield from self._result.__await__())


class BlockingWay(Way):
    def connect(self, address: str, **options: Any) -> Awaitable[Any]:
        from msgservice import blocking

        return Done(blocking.connect(address, **options))

    def receiver(self, **options: Any) -> Any:
        from msgservice import blocking

        return Blocking(blocking.Receiver(**options))

    def begin(self, call: Callable[[], Any]) -> Awaitable[Any]:
        return Begun(call)

    def within(self, seconds: float, receipt: Any) -> Awaitable[None]:
        waited: Awaitable[None] = receipt.acknowledged(timeout=seconds)
        return waited

    def pause(self, seconds: float) -> Awaitable[None]:
        time.sleep(seconds)
        return Done(None)

    def run(self, main: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            main().send(None)
        except StopIteration:
            return
        raise AssertionError("a scenario awaits nothing but what has returned")


# --- the scenarios


async def on_disk(way: Way, address: str) -> None:
    client = await way.connect(address, name="shop")
    receipt = await client.send("orders.new", {"id": 17}, id="o-17")
    say("stored", receipt.position, receipt.sequence, receipt.id)
    await client.close()


async def node_killed(way: Way, address: str) -> None:
    handled = []
    receiver = way.receiver(
        name="billing", handler=lambda message: handled.append(message.body), limits=QUICK
    )
    receiver.attach(address, subjects=["orders.>"])
    await receiver.when_connected()
    client = await way.connect(address, name="shop", limits=QUICK)
    say("connected")
    await way.until(lambda: not client.connected)
    sending = way.begin(lambda: client.send("orders.new", b"while it is away"))
    await way.until(lambda: client.unanswered == 1)
    say("handed over")
    receipt = await sending
    say("stored", receipt.position)
    await receipt.acknowledged("billing")
    say("acknowledged", handled)
    await receiver.stop()
    await client.close()


async def receipts(way: Way, address: str) -> None:
    failed: set[bytes] = set()

    def handle(message: Any) -> None:
        if message.body == b"bad":
            raise Reject("no such customer")
        if message.body == b"again" and message.body not in failed:
            failed.add(message.body)
            raise Retry(0.01)

    receiver = way.receiver(name="billing", handler=handle)
    receiver.attach(address, subjects=["orders.>"])
    await receiver.when_connected()
    client = await way.connect(address, name="shop")
    receipt = await client.send("orders.new", b"good")
    await receipt.accepted
    await receipt.acknowledged("billing")
    say(receipt.receivers, receipt.statuses, receipt.due)
    again = await client.send("orders.again", b"again")
    await again.acknowledged()
    say(await again.settled())
    bad = await client.send("orders.bad", b"bad")
    try:
        await bad.acknowledged()
    except Exception as error:
        told: Any = error
        say(type(error).__name__, told.receiver, told.state, told.reason)
    say(await bad.settled())
    many = await client.send_many("orders.many", [b"x"] * 1000)
    await many.acknowledged()
    say(len(many), many.sequence, many[999].sequence, await many.settled())
    promise = Promise(need=1, within=60)
    kept = await client.send("orders.new", b"promised", promise=promise)
    say(await kept.promised())
    await receiver.stop()
    await client.close()


async def errors(way: Way, address: str) -> None:
    client = await way.connect(address, name="shop", require=True)

    async def say_error(call: Callable[[], Any]) -> None:
        try:
            await call()
        except Exception as error:
            say(type(error).__name__, getattr(error, "refusal_code", "-"), error)
        else:
            say("no error")

    await say_error(lambda: client.send("orders..new", b"x"))
    await say_error(lambda: client.send("orders.new", object()))
    await say_error(lambda: client.send("orders.new", b"x", ttl=-1))
    await say_error(lambda: client.send("orders.new", b"x" * 2_000_000))
    await say_error(lambda: client.send("orders.new", b"x"))
    await say_error(lambda: client.send("orders.new", b"x", to=["nobody"]))
    await say_error(lambda: client.send_many("orders.new", [b"x"], to=["nobody"]))
    await say_error(lambda: client.request("nobody.answers", {}))
    await say_error(lambda: client.request("$node.nothing", {}))
    await say_error(lambda: client.request("nobody.answers", {}, timeout=-1))
    await say_error(lambda: client.cancel("no such message"))
    await say_error(lambda: client.explain("no such message"))
    await say_error(lambda: client.undo())
    many = await client.send_many("orders.new", [])
    await say_error(lambda: client.undo(many))
    await client.close()
    await say_error(lambda: client.send("orders.new", b"x"))
    await say_error(client.when_connected)


async def acts(way: Way, address: str) -> None:
    """What is asked about messages that were sent."""
    client = await way.connect(address, name="shop")
    receiver = way.receiver(name="acts", handler=lambda message: None)
    receiver.attach(address, subjects=["acts.>"])
    await receiver.when_connected()
    await receiver.stop()  # from here on they wait
    late = await client.send("acts.late", b"x", delay=3600)
    say(late.due is not None, late.position is not None)
    say(await client.cancel(late, "changed my mind"), await late.settled())
    waiting = await client.send("acts.now", b"x", id="a-1")
    (cause,) = await client.explain(waiting)
    say(cause.receiver, cause.kind, [each.kind for each in await client.explain("a-1")])
    say(await client.undo(waiting, reason="wrong price"))
    say(await waiting.settled())
    say(client.name, client.connected, client.blocked, client.sequence, client.unanswered)
    say(client.why().connected)
    await client.close()


async def requests(way: Way, address: str) -> None:
    client = await way.connect(address, name="shop")
    responder = client.respond("prices.>", lambda asked: {"of": asked.content})
    if isinstance(responder, Done):
        responder = await responder
    await responder.when_ready()
    say(responder.connected, responder.unanswered, responder.last_error == "")
    say(await client.request("prices.get", {"sku": "x"}))
    info = await client.request("$node.info", {})
    say(sorted(info) != [])
    await responder.close()
    try:
        await client.request("prices.get", 1)
    except Exception as error:
        say(type(error).__name__)
    await client.close()


async def given_up(way: Way, address: str) -> None:
    """Who stops waiting ends no other wait, and takes nothing back."""
    client = await way.connect(address, name="shop")
    receiver = way.receiver(name="late", handler=lambda message: None)
    receiver.attach(address, subjects=["late.>"])
    await receiver.when_connected()
    await receiver.stop()
    receipt = await client.send("late.new", b"x")
    other = way.begin(receipt.acknowledged)
    try:
        await way.within(0.1, receipt)
    except Exception as error:
        say(type(error).__name__)
    back = way.receiver(name="late", handler=lambda message: None)
    back.attach(address)
    await other
    await receipt.acknowledged()
    say(receipt.statuses)
    await back.stop()
    await client.close()


async def closing(way: Way, address: str) -> None:
    """A client that is closed with something pending, whose node is away."""
    client = await way.connect(address, name="shop", limits=QUICK)
    say("connected")
    await way.until(lambda: not client.connected)
    sending = way.begin(lambda: client.send("orders.new", b"x"))
    await way.until(lambda: client.unanswered == 1)
    await client.close()
    try:
        await sending
    except Exception as error:
        say(type(error).__name__, error)


async def left_open(way: Way, address: str) -> None:
    """A program that ends and has closed nothing."""
    receiver = way.receiver(name="open", handler=lambda message: None)
    receiver.attach(address, subjects=["open.>"])
    await receiver.when_connected()
    # A host by its name: the thread that resolves it must not keep the process.
    client = await way.connect(address.replace("127.0.0.1", "localhost"), name="shop")
    receipt = await client.send("open.new", b"x")
    await receipt.acknowledged()
    say("acknowledged")


async def not_there(way: Way, address: str) -> None:
    receiver = way.receiver(name="waiting", handler=lambda message: None)
    receiver.attach(address, subjects=["waiting"])
    await receiver.when_connected()
    await receiver.stop()


SCENARIOS = {
    one.__name__: one
    for one in (
        on_disk,
        node_killed,
        receipts,
        errors,
        acts,
        requests,
        given_up,
        closing,
        left_open,
        not_there,
    )
}
WAYS: dict[str, type[Way]] = {"twisted": TwistedWay, "aio": AioWay, "blocking": BlockingWay}


def main(name: str, scenario: str, address: str) -> None:
    way = WAYS[name]()

    async def play() -> None:
        await SCENARIOS[scenario](way, address)
        say("done")

    way.run(play)


if __name__ == "__main__":
    main(*sys.argv[1:])
