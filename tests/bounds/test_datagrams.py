"""No turn costs more than 50 ms, whatever blocks a peer of acknowledged UDP fills it with."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from itertools import count, islice

import pytest

from msgservice.core.datagram import wire
from msgservice.core.datagram.endpoint import Endpoint
from msgservice.core.datagram.limits import DatagramLimits
from msgservice.core.datagram.session import Session
from tests.bounds.meter import Meter, TooMuchWork

PEER = ("127.0.0.1", 5000)
IDENTIFIER = 7
SEAL = wire.ChecksumSeal()
ROOM = 1200 - wire.HEADER_BYTES - SEAL.overhead
TURN_DATAGRAMS = 54  # 64 KiB: what is taken before it is answered
REPLIES = 16_000
BIG = 1 << 62


class Stage:
    """An endpoint whose peer has all it may have outstanding: replies that it does not acknowledge,
    and messages that it took and does not answer."""

    def __init__(self) -> None:
        limits = DatagramLimits()
        rng = random.Random(1)
        self.now = 1.0
        self.numbers = count(1)
        self.endpoint = Endpoint(limits=limits, entropy=rng.randbytes, jitter=rng.random)
        terms = wire.TERMS.pack(bytes(16), BIG, BIG, 1 << 20, 1200)
        self.say(wire.HELLO, terms + wire.NO_COOKIE)
        ((_, (cookie,)),) = self.endpoint.take_datagrams(self.now)
        self.say(wire.HELLO, terms + cookie[wire.HEADER_BYTES : -SEAL.overhead])
        session = self.endpoint.peers[PEER].session
        assert session is not None
        self.session: Session = session
        self.turn()

    def say(self, letter: int, body: bytes) -> None:
        """Let a datagram come."""
        header = wire.HEADER.pack(letter, 1, 0, 0, IDENTIFIER, next(self.numbers))
        self.now += 0.001
        self.endpoint.receive_datagrams(SEAL.close(header, body), 0, PEER, self.now)

    def turn(self) -> None:
        self.endpoint.take_effects()
        self.endpoint.take_datagrams(self.now)
        self.endpoint.catch_up()

    def answer_all(self) -> None:
        """Requests are answered, and no reply is acknowledged."""
        for first in range(1, REPLIES, 400):
            self.say(wire.MESSAGES, wire.encode_run(first, [b""] * 400))
            for session, parts in self.endpoint.take_effects().deliveries:
                for nonce, bodies, _ in parts:
                    for at in range(len(bodies)):
                        self.endpoint.reply(session, nonce + at, wire.REPLY_OK, b"r", 0)
            self.turn()

    def handle_every_other(self) -> None:
        """More requests are handled, every other one: as many ranges as there can be."""
        start = REPLIES + 1
        self.say(wire.MESSAGES, wire.encode_run(start, [b""] * 380))
        self.turn()
        for nonce in range(start, start + 380, 2):
            self.endpoint.handle(self.session, nonce, nonce, 0)

    def have_open(self) -> None:
        """Messages of its own are taken by the peer, small ones and large ones, none is handled."""
        bodies = [b""] * 4000 + [bytes(1100)] * 3000
        messages = len(bodies)
        self.endpoint.send_run(PEER, bodies, [object()] * messages, self.now)
        while self.session.sending.next_nonce <= messages:
            self.now += 1.0
            self.endpoint.take_datagrams(self.now)
            told = self.session.flight.recovery.next_number - 1
            self.say(wire.ACKNOWLEDGEMENT, wire.encode_received(0, [(1, told)]))
            self.turn()


Blocks = Callable[[Stage], Iterator[bytes]]


def received(stage: Stage) -> Iterator[bytes]:
    newest = stage.session.flight.recovery.next_number - 1
    for top in count(0):
        last = newest - top % 8
        ranges = [(last - 2 * n, last - 2 * n) for n in range(64) if last - 2 * n >= 0]
        yield wire.encode_received(0, ranges)


# What one datagram may be full of, block by block.
BLOCKS: dict[str, Blocks] = {
    "RUN, new": lambda stage: (wire.encode_run(n, [b""]) for n in count(REPLIES + 1000)),
    "RUN, again": lambda stage: (wire.encode_run(1 + n * 3 % REPLIES, [b""]) for n in count()),
    "RUN, all again": lambda stage: (
        wire.encode_run(1 + n * 500 % REPLIES, [b""] * 500) for n in count()
    ),
    "FRAGMENT, of a message": lambda stage: (
        wire.FRAGMENT_HEAD.pack(wire.FRAGMENT, 0, REPLIES + 1000 + n, 2, 0, 1) + b"x"
        for n in count()
    ),
    "FRAGMENT, of a message again": lambda stage: (
        wire.FRAGMENT_HEAD.pack(wire.FRAGMENT, 0, 1 + n * 3 % REPLIES, 2, 0, 1) + b"x"
        for n in count()
    ),
    "FRAGMENT, of a reply": lambda stage: (
        wire.FRAGMENT_HEAD.pack(wire.FRAGMENT, wire.REPLY_OK, 1, 60_000, n, 1) + b"x"
        for n in count()
    ),
    "HANDLED, one range": lambda stage: (wire.encode_handled([(2, BIG)]) for n in count()),
    "HANDLED, many ranges": lambda stage: (wire.encode_handled([(2, BIG)] * 60) for n in count()),
    "HANDLED, within runs": lambda stage: (
        wire.encode_handled([(2 + at * 580, 560 + at * 580) for at in range(7)]) for n in count()
    ),
    "HANDLED, each alone": lambda stage: (
        wire.encode_handled([(n + at * 2, n + at * 2) for at in range(60)]) for n in count(2, 120)
    ),
    "REPLY": lambda stage: (
        wire.REPLY_HEAD.pack(wire.REPLY, wire.REPLY_OK, n, 0) for n in count(2)
    ),
    "RECEIVED": received,
    "CREDIT": lambda stage: (wire.CREDIT_BLOCK.pack(wire.CREDIT, n, n) for n in count()),
    "ASK, after all": lambda stage: (wire.ASK_BLOCK.pack(wire.ASK, 1) for n in count()),
    "ASK, rising": lambda stage: (wire.ASK_BLOCK.pack(wire.ASK, n) for n in count(1)),
    "ASK, beyond all": lambda stage: (wire.ASK_BLOCK.pack(wire.ASK, BIG) for n in count()),
    "CLOSE": lambda stage: (bytes([wire.CLOSE]) for n in count()),
}


def full(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Bodies that are full of these blocks."""
    body = b""
    for block in blocks:
        if len(body) + len(block) > ROOM:
            yield body
            body = b""
        body += block


@pytest.fixture(scope="module", params=BLOCKS)
def blocks(request: pytest.FixtureRequest) -> Blocks:
    return BLOCKS[request.param]


def ready() -> Stage:
    stage = Stage()
    stage.have_open()
    stage.answer_all()
    stage.handle_every_other()
    return stage


def test_a_turn_full_of_each_kind_of_block_with_replies_outstanding(blocks: Blocks) -> None:
    stage = ready()
    assert len(stage.session.receiving.replies) == REPLIES
    bodies = list(islice(full(blocks(stage)), TURN_DATAGRAMS))
    meter = Meter()
    try:
        with meter.turn("the read"):
            for body in bodies:
                stage.say(wire.MESSAGES, body)
            stage.turn()
    except TooMuchWork:
        pass
    assert meter.over is None, meter.over
