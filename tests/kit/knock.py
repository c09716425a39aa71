"""A peer that knocks at a door of a real node and says what a test tells it to, frame by frame.

knock = Knock(dial, Login(user="shop", password="…"))
answer = await knock.come("shop.a")          # the node's Hello, or an ErrorFrame
answer = await knock.send("orders.new")      # an Ack, or a Nack
await knock.go()

It has no session of its own and tries nothing twice, unlike a client: what the node says first is
the answer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import msgspec

from msgservice.core.frames import (
    VERSION,
    Ack,
    Auth,
    ErrorFrame,
    Frame,
    Hello,
    HelloOptions,
    Nack,
    ReceiveOptions,
    Reply,
    Request,
    ResumeFrame,
    Transfer,
    decode_frame,
    encode_frame,
)
from msgservice.identity.client_exchange import ClientExchange, Login
from msgservice.identity.steps import Compute, Say
from msgservice.interfaces import IChannel, IChannelUser, IConnector
from msgservice.message import WireMessage, encode_messages
from tests.kit.channels import Recorder

Dial = Callable[[Callable[[], IChannelUser]], IConnector]
F = TypeVar("F")


def run_of(*messages: WireMessage) -> msgspec.Raw:
    return msgspec.Raw(encode_messages(list(messages)))


class Lost(Exception):
    """The node, or the transport, ended the connection and said nothing."""


class Knock:
    """See the module. `dial` returns a connector with this user, not started."""

    def __init__(self, dial: Dial, login: Login | None = None) -> None:
        self.recorder = Recorder()
        self.connector = dial(lambda: self.recorder)
        self.login = login
        self.sequence = 0
        self._taken = 0  # of the frames that came

    # --- frames

    @property
    def channel(self) -> IChannel:
        assert self.recorder.channel is not None
        return self.recorder.channel

    def say(self, *frames: Frame) -> None:
        for frame in frames:
            self.channel.send(encode_frame(frame))

    async def hear(self, *kinds: type[F]) -> F:
        """Return the next frame of one of these kinds; the others are passed by."""
        recorder = self.recorder
        while True:
            await recorder.until(lambda: len(recorder.frames) > self._taken or recorder.is_lost)
            if len(recorder.frames) == self._taken:
                raise Lost(str(recorder.events[-1][1]))
            frame = decode_frame(recorder.frames[self._taken])
            self._taken += 1
            if isinstance(frame, kinds):
                return cast("F", frame)

    # --- what a session says

    async def connect(self) -> None:
        self.connector.startService()
        recorder = self.recorder
        await recorder.until(lambda: recorder.channel is not None or recorder.is_lost)

    async def log_in(self) -> ErrorFrame | None:
        """Log in; return the node's refusal, or None."""
        assert self.login is not None
        exchange = ClientExchange(self.login, self.channel.credentials)
        self.say(Auth(exchange.begin()))
        while True:
            heard: Any = await self.hear(Auth, ErrorFrame)
            if isinstance(heard, ErrorFrame):
                return heard
            step = exchange.receive(heard.data)
            if isinstance(step, Compute):
                step = exchange.resume(step.work())
            if not isinstance(step, Say):
                return None
            self.say(Auth(step.data))

    async def come(
        self,
        name: str,
        receive: list[str] | None = None,
        *,
        again: bool = False,
        node_log: str = "",
    ) -> Hello | ErrorFrame:
        """Connect, log in where there is a login, and say HELLO, as a receiver of these patterns.

        `again`: as one that is there already, with the patterns that it has. `node_log`: as a node
        whose log has this id, which hands in what others have sent.
        """
        await self.connect()
        if self.login is not None and (refused := await self.log_in()) is not None:
            return refused
        options = None if receive is None and not again else ReceiveOptions(receive)
        node = name if node_log else None
        incarnation = f"{node_log}.1" if node_log else "i1"
        self.say(Hello(VERSION, name, incarnation, HelloOptions(receive=options, node=node)))
        answer: Hello | ErrorFrame = await self.hear(Hello, ErrorFrame)
        if isinstance(answer, Hello):
            self.channel.established()
            # An error may still come behind a HELLO, for what only RESUME decides.
            resumed: ResumeFrame | ErrorFrame = await self.hear(ResumeFrame, ErrorFrame)
            if isinstance(resumed, ErrorFrame):
                return resumed
            self.say(ResumeFrame(1, []))
        return answer

    async def send(self, subject: str, **fields: Any) -> Ack | Nack:
        """Hand in one message."""
        self.sequence += 1
        self.say(Transfer(self.sequence, subject, run_of(WireMessage(b"{}")), **fields))
        heard: Ack | Nack | ErrorFrame = await self.hear(Ack, Nack, ErrorFrame)
        assert not isinstance(heard, ErrorFrame), heard
        return heard

    async def ask(self, subject: str, body: bytes = b"{}") -> tuple[bool, int, bytes]:
        """Ask a request; return whether it was answered, the code of its error, and its body."""
        self.say(Request(1, subject, run_of(WireMessage(body))))
        heard: Any = await self.hear(Reply, ErrorFrame)
        assert isinstance(heard, Reply), heard
        ((_, ok, raw),) = heard.replies
        message = msgspec.msgpack.decode(raw, type=WireMessage)
        code = (message.headers or {}).get("msgservice-error", "0")
        return ok, int(code), bytes(message.body)

    async def go(self) -> None:
        await self.connector.stopService()
