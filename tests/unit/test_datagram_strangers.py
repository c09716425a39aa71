"""What a peer of acknowledged UDP may leave before it is known who it is: pieces, and frames out of
turn, in the `unauthenticated_bytes` of the node. And what it may send afterwards."""

from __future__ import annotations

import random
from itertools import count

import pytest

from msgservice.core.datagram import wire
from msgservice.core.datagram.endpoint import Endpoint
from msgservice.core.datagram.limits import MESSAGE_COST
from msgservice.core.datagram.session import Session
from msgservice.limits import Limits
from msgservice.transport.udp.bearer import datagram_limits
from tests.simulation.datagram_paths import World

PEER = ("127.0.0.1", 5000)
IDENTIFIER = 7
SEAL = wire.ChecksumSeal()
LIMITS = datagram_limits(Limits())
STRANGERS = Limits().unauthenticated_bytes


class Stranger:
    """A peer that says what it likes to the endpoint of a bearer."""

    def __init__(self) -> None:
        rng = random.Random(1)
        self.numbers = count(1)
        self.endpoint = Endpoint(
            limits=LIMITS, entropy=rng.randbytes, jitter=rng.random, ordered=True, carry_over=False
        )
        terms = wire.TERMS.pack(bytes(16), 16_384, 4 << 20, 1 << 20, 65_000)
        self.say(wire.HELLO, terms + wire.NO_COOKIE)
        ((_, (cookie,)),) = self.endpoint.take_datagrams(1.0)
        self.say(wire.HELLO, terms + cookie[wire.HEADER_BYTES : -SEAL.overhead])
        ((_, (opened,)),) = self.endpoint.take_datagrams(1.0)
        self.terms = wire.decode_terms(opened, wire.HEADER_BYTES)
        session = self.endpoint.peers[PEER].session
        assert session is not None
        self.session: Session = session

    def say(self, letter: int, body: bytes) -> None:
        header = wire.HEADER.pack(letter, 1, 0, 0, IDENTIFIER, next(self.numbers))
        self.endpoint.receive_datagrams(SEAL.close(header, body), 0, PEER, 1.0)

    def leave_pieces(self, total: int, messages: int) -> None:
        for nonce in range(1, messages + 1):
            for offset in range(0, total - 50_000, 50_000):
                head = wire.FRAGMENT_HEAD.pack(wire.FRAGMENT, 0, nonce, total, offset, 50_000)
                self.say(wire.MESSAGES, head + bytes(50_000))

    @property
    def held_bytes(self) -> int:
        receiving = self.session.receiving
        return receiving.reassembly.size + receiving.taken_bytes - receiving.handled_bytes


def test_the_terms_of_a_bearer_grant_what_a_stranger_may_leave() -> None:
    terms = Stranger().terms
    assert (STRANGERS, STRANGERS // MESSAGE_COST) == (terms.bytes, terms.messages)
    assert LIMITS.message_bytes == terms.message_bytes_max


@pytest.mark.parametrize("total", [60_000, STRANGERS, 1_000_000])
def test_pieces_of_a_stranger_count_against_its_bytes(total: int) -> None:
    stranger = Stranger()
    stranger.leave_pieces(total, 100)
    assert stranger.held_bytes <= 2 * STRANGERS


def test_frames_of_a_stranger_out_of_turn_count_against_its_bytes() -> None:
    stranger = Stranger()
    for nonce in range(2, 200):  # the first is missing
        stranger.say(wire.MESSAGES, wire.encode_run(nonce, [bytes(60_000)]))
    assert stranger.held_bytes <= 2 * STRANGERS
    assert not stranger.endpoint.take_effects().deliveries


def test_empty_frames_of_a_stranger_out_of_turn_count_too() -> None:
    stranger = Stranger()
    for nonce in range(2, 16_000):
        stranger.say(wire.MESSAGES, wire.encode_run(nonce, [b""]))
    receiving = stranger.session.receiving
    assert receiving.taken.count <= STRANGERS // MESSAGE_COST


def test_an_established_peer_has_the_whole_window_and_is_told() -> None:
    stranger = Stranger()
    stranger.endpoint.establish(stranger.session)
    ((_, (datagram,)),) = stranger.endpoint.take_datagrams(1.0)
    credit = wire.CREDIT_BLOCK.pack(wire.CREDIT, LIMITS.window_messages, LIMITS.window_bytes)
    assert credit == datagram[wire.HEADER_BYTES : -SEAL.overhead]

    stranger.leave_pieces(1_000_000, 4)
    assert stranger.held_bytes > 3_000_000


def test_a_large_frame_behind_small_ones_arrives_when_both_are_established() -> None:
    world = World(1)
    a, b = (world.host(n, limits=LIMITS, ordered=True) for n in (1, 2))
    large = bytes(LIMITS.message_bytes)
    a.send(b.address, b"hello")
    a.send(b.address, large)
    world.run(5)
    assert [b"hello"] == b.handled

    session = b.endpoint.peers[a.address].session
    assert session is not None
    b.endpoint.establish(session)
    assert world.run(100, until=lambda: large in b.handled)
