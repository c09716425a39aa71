"""The receiving side for asyncio: `Receiver`, with a handler or taken from by `async for`."""

from __future__ import annotations

import asyncio
from typing import Unpack

from msgservice.aio.around import Around, calls, waits
from msgservice.aio.handlers import on_loop
from msgservice.aio.loop import future_of, reactor
from msgservice.receiver import receiver as twisted
from msgservice.receiver.deliveries import Deliveries, Delivery, delivery_of, handling_of
from msgservice.receiver.receiver import ReceiverArguments
from msgservice.receiver.ways import Way


class Receiver(Around[twisted.Receiver]):
    """A named receiver of messages, with the arguments of Twisted's `Receiver` but its reactor.

    Its handler is a coroutine function, each call of which is a task, or a plain function. With
    `threads=` it is called on threads. Without a handler its messages are taken one by one:

        async for delivery in receiver:
            with delivery as message:
                ...

    The end of the `with` block acknowledges the message. It is stopped by `stop`, at the end of its
    `async with` block, and at the end of the event loop.
    """

    def __init__(self, **arguments: Unpack[ReceiverArguments]) -> None:
        self._deliveries: Deliveries | None = handling_of(arguments)
        if self._deliveries is None and not arguments.get("threads"):
            arguments["handler"] = on_loop(arguments["handler"])
        super().__init__(twisted.Receiver(reactor(), **arguments))

    # --- getters

    @property
    def name(self) -> str:
        """The name of the receiver."""
        return self.twisted.name

    @property
    def incarnation(self) -> str:
        """The life of this receiver that nodes hear of: its inbox file's, or one of this object."""
        return self.twisted.incarnation

    @property
    def connected(self) -> bool:
        """Whether messages can arrive from any node."""
        return self.twisted.connected

    @property
    def ways(self) -> list[Way]:
        """The nodes that it dials, and the addresses that it listens at."""
        return self.twisted.ways

    # --- verbs

    attach = calls(twisted.Receiver.attach)
    listen = waits(twisted.Receiver.listen)
    ready = waits(twisted.Receiver.ready)
    when_connected = waits(twisted.Receiver.when_connected)

    def stop(self) -> asyncio.Future[None]:
        """Take no more, let handlers end, send their answers, close; done when all is.

        As `stop` of Twisted's receiver. What `async for` has not given out comes again when the
        receiver is back, and who waits there is told that it is over.
        """
        loop = self._of_loop()
        stopping = self.twisted.stop()
        if self._deliveries is not None:
            self._deliveries.end()
        return future_of(stopping, loop, lambda _: None)

    # --- taking messages one by one

    async def take(self) -> Delivery | None:
        """Take the next message, when there is one; None when the receiver has stopped.

        Raises `TypeError` for a receiver with a handler. Whoever is cancelled takes nothing, be it
        at the moment when a message comes.
        """
        loop, deliveries = self._of_loop(), self._deliveries
        if deliveries is None:
            raise TypeError("this receiver has a handler, which gets its messages")
        while (taken := deliveries.take_now()) is None:
            if deliveries.is_over:
                return None
            waiting = future_of(deliveries.when_some(), loop, lambda _: None)
            try:
                await waiting
            except asyncio.CancelledError:
                if waiting.done() and not waiting.cancelled():
                    deliveries.look()  # what it was told of is another's
                raise
        return delivery_of(taken)

    def __aiter__(self) -> Receiver:
        return self

    async def __anext__(self) -> Delivery:
        delivery = await self.take()
        if delivery is None:
            raise StopAsyncIteration
        return delivery

    async def __aenter__(self) -> Receiver:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()
