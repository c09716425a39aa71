"""Two sides over a link that cuts anywhere and breaks at any byte, from one seed.

The link loses nothing that it reported as sent, so with both settings on everything has to arrive
exactly once, in order, and every request has to be answered once, however often it breaks.
"""

import random

import pytest

from msgservice.faces.callbacks.protocol.events import (
    ActionReceived,
    Failed,
    FileData,
    FileEnded,
    FileInterrupted,
    FilePushed,
    RequestReceived,
    ResponseReceived,
)
from msgservice.faces.callbacks.protocol.peer import CallbackPeer
from msgservice.faces.callbacks.protocol.sending import FilePiece

MESSAGES = 20
SEEDS = range(40)


class Side:
    """A peer, what it is still to hand to the link, and what it got."""

    def __init__(self, rng: random.Random, *, announce: bool) -> None:
        self.rng = rng
        self.peer = CallbackPeer(
            byteorder="little",
            first_id=rng.randrange(10_000),
            resume_queue=True,
            announce=announce,
        )
        self.output = b""
        self.actions: list[int] = []
        self.answers: dict[int, int] = {}
        self.files: list[bytes] = []
        self.file: bytearray | None = None
        self.breaks = 0

    def send_everything(self) -> None:
        for n in range(MESSAGES):
            self.peer.send_message("n", [n, "ä" * self.rng.randrange(50)])
            self.peer.request("square", [n], token=n)
            if n % 10 == 0:
                content = self.rng.randbytes(self.rng.randrange(3000))
                self.peer.send_file(f"f{n}", content, len(content))

    def give(self, count: int) -> bytes:
        """Up to `count` bytes, reported as sent."""
        if not self.output:
            for piece in self.peer.take_output(self.rng.randrange(1, 2000)):
                if isinstance(piece, FilePiece):
                    self.output += piece.source[piece.offset : piece.offset + piece.length]
                    if piece.last:
                        self.peer.finish_file(piece.source, "00")
                else:
                    self.output += piece
        data, self.output = self.output[:count], self.output[count:]
        self.peer.sent(len(data))
        return data

    def take(self, data: bytes) -> None:
        for event in self.peer.receive_data(data):
            match event:
                case ActionReceived(args=[n, _]):
                    self.actions.append(n)
                case RequestReceived(name, request_id, args=[n]):
                    self.peer.respond(name, request_id, n * n)
                case ResponseReceived(request, value):
                    assert request.token not in self.answers
                    self.answers[request.token] = value
                case FilePushed():
                    self.file = bytearray()
                case FileData(data=chunk):
                    assert self.file is not None
                    self.file += chunk
                case FileEnded():
                    assert self.file is not None
                    self.files.append(bytes(self.file))
                    self.file = None
                case Failed(error):
                    raise AssertionError(error)

    def break_off(self) -> None:
        self.output = b""
        if any(isinstance(event, FileInterrupted) for event in self.peer.disconnected()):
            self.file = None


@pytest.mark.parametrize("announce", [(False, False), (True, True), (True, False)])
@pytest.mark.parametrize("seed", SEEDS)
def test_everything_arrives_once_however_often_the_link_breaks(
    seed: int, announce: tuple[bool, bool]
) -> None:
    rng = random.Random(seed)
    a, b = (Side(rng, announce=each) for each in announce)
    for side in (a, b):
        side.peer.connected()
        side.send_everything()
    breaks = 0
    for _ in range(100_000):
        if a.peer.is_drained and b.peer.is_drained and not a.output and not b.output:
            break
        sender, receiver = rng.sample([a, b], 2)
        receiver.take(sender.give(rng.randrange(1, 700)))
        if breaks < 20 and rng.random() < 0.02:
            breaks += 1
            for side in (a, b):
                side.break_off()
            for side in (a, b):
                side.peer.connected()
    for side in (a, b):
        assert side.actions == list(range(MESSAGES))
        assert side.answers == {n: n * n for n in range(MESSAGES)}
        assert len(side.files) == 2
        assert not side.peer.pending
