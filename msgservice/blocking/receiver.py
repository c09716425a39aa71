"""The receiving side for programs that block: `Receiver`, with a handler or taken from by `for`."""

from __future__ import annotations

from typing import Unpack

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress

from msgservice.blocking.around import Around, blocks, blocks_for, calls, calls_for
from msgservice.blocking.client import THREADS
from msgservice.blocking.thread import ReactorThread, reactor_thread
from msgservice.receiver import receiver as twisted
from msgservice.receiver.deliveries import Deliveries, Delivery, Taken, answer, handling_of
from msgservice.receiver.receiver import ReceiverArguments
from msgservice.receiver.ways import Attachment as TwistedAttachment
from msgservice.receiver.ways import Listening as TwistedListening


class Attachment(Around[TwistedAttachment]):
    """A node that the receiver dials, again and again, and what became of it."""

    @property
    def connected(self) -> bool:
        """Whether messages can arrive now."""
        return self.thread.call(lambda: self.twisted.connected)

    @property
    def error(self) -> str:
        """Why there is no connection, for people; empty while there is one, or none was tried."""
        return self.thread.call(lambda: self.twisted.error)

    @property
    def node(self) -> str | None:
        """The name of the node that was there last."""
        return self.twisted.node

    @property
    def is_over(self) -> bool:
        """Whether it does not come back by itself; `start` dials again."""
        return self.twisted.is_over

    @property
    def is_replaced(self) -> bool:
        """Whether that is so because a newer connection took the receiver's name."""
        return self.twisted.is_replaced

    start = calls(TwistedAttachment.start)


class Listening(Around[TwistedListening]):
    """A port on which nodes dial the receiver."""

    @property
    def host(self) -> IAddress:
        """The address of the port, as Twisted has it."""
        host: IAddress = self.twisted.getHost()
        return host

    close = blocks(TwistedListening.stopListening)


class Receiver(Around[twisted.Receiver]):
    """A named receiver of messages, with the arguments of Twisted's `Receiver` but its reactor.

    Its handler is a plain function that may block: it runs on `threads` threads of the receiver, 4
    if that is left out. Without a handler its messages are taken one by one, by any thread:

        for delivery in receiver:
            with delivery as message:
                ...

    The end of the `with` block acknowledges the message. It is stopped by `stop`, at the end of
    its `with` block, and at the end of the process.
    """

    def __init__(self, **arguments: Unpack[ReceiverArguments]) -> None:
        self._deliveries: Deliveries | None = handling_of(arguments)
        if self._deliveries is None:
            arguments.setdefault("threads", THREADS)
        thread = reactor_thread()
        made: twisted.Receiver = thread.call(lambda: twisted.Receiver(thread.reactor, **arguments))
        super().__init__(made, thread)

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
        return self.thread.call(lambda: self.twisted.connected)

    # --- verbs

    attach = calls_for(
        twisted.Receiver.attach, lambda self, made: Attachment(made, self.thread, self.timeout)
    )
    listen = blocks_for(
        twisted.Receiver.listen, lambda self, made: Listening(made, self.thread, self.timeout)
    )
    ready = blocks(twisted.Receiver.ready)
    when_connected = blocks(twisted.Receiver.when_connected)

    def stop(self) -> None:
        """Take no more, let handlers end, send their answers, close.

        As `stop` of Twisted's receiver. What nobody has taken comes again when the receiver is
        back, and who waits for a message is told that it is over. In a process that was forked
        since, nothing is done.
        """
        if self.thread.is_usable:
            self.thread.wait(self._stop)

    def _stop(self) -> Deferred[None]:
        stopping = self.twisted.stop()
        if self._deliveries is not None:
            self._deliveries.end()
        return stopping

    # --- taking messages one by one

    def take(self, timeout: float | None = None) -> Delivery | None:
        """Take the next message, when there is one; None when the receiver has stopped.

        Raises `TimeoutError` after `timeout` seconds, and `TypeError` for a receiver with a
        handler.
        """
        deliveries = self._deliveries
        if deliveries is None:
            raise TypeError("this receiver has a handler, which gets its messages")
        taken: Taken | None = self.thread.wait(deliveries.take, timeout, deliveries.put_back)
        return None if taken is None else _delivery(self.thread, taken)

    def __iter__(self) -> Receiver:
        return self

    def __next__(self) -> Delivery:
        delivery = self.take()
        if delivery is None:
            raise StopIteration
        return delivery

    def __enter__(self) -> Receiver:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def _delivery(thread: ReactorThread, taken: Taken) -> Delivery:
    message, answered = taken

    def settle(error: BaseException | None) -> None:
        thread.tell(lambda: answer(answered, error))

    return Delivery(message, settle)
