"""What a peer, or somebody who claims to be one, may send: never an exception, never state."""

from __future__ import annotations

import operator
import zlib
from collections.abc import Iterator
from functools import partial

import pytest
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from hypothesis import example, given, settings
from hypothesis import strategies as st

from msgservice.core.datagram import wire
from msgservice.core.datagram.endpoint import Endpoint
from msgservice.core.datagram.keys import Keys
from msgservice.core.datagram.limits import DatagramLimits
from tests.fuzz.datagram_stage import TARGET, Stage
from tests.fuzz.datagram_target import INSIDER, KEYED, ORDERED, PATIENT, SCENES
from tests.fuzz.datagram_target import run as run_play
from tests.simulation.datagram_paths import Address, Host, Path, World

KEY = bytes(range(32))
STRANGER = ("127.0.0.1", 99)


def keys() -> Keys:
    return Keys({1: KEY}, ChaCha20Poly1305)


def two_hosts(*, keyed: bool) -> tuple[World, Host, Host]:
    world = World(1)
    return (
        world,
        world.host(1, keys=keys() if keyed else None),
        world.host(2, keys=keys() if keyed else None),
    )


def watch(world: World) -> list[bytes]:
    """Return all datagrams that are sent, as they come."""
    seen: list[bytes] = []

    def tap(source: Address, to: Address, datagram: bytes) -> bytes:
        seen.append(datagram)
        return datagram

    world.taps.append(tap)
    return seen


def conversation(*, keyed: bool, seed: int = 1) -> tuple[World, Host, Host, dict[str, list[bytes]]]:
    """Two hosts that have said everything once, and all datagrams by kind, with their direction."""
    world = World(seed)
    a = world.host(1, keys=keys() if keyed else None)
    b = world.host(2, keys=keys() if keyed else None)
    kinds: dict[str, list[bytes]] = {}

    def tap(source: Address, to: Address, datagram: bytes) -> bytes:
        kinds.setdefault(f"{chr(datagram[0])}{to[1]}", []).append(datagram)
        return datagram

    world.taps.append(tap)
    b.handler = lambda body: body[:2000] if len(body) % 2 else None
    for size in (10, 11, 4000, 4001):
        a.send(b.address, bytes(size))
    world.run(3)
    b.delay_handling = 9.0
    a.send(b.address, b"slow")
    world.run(20)
    # A reset: a session that the other side does not know any more.
    b.restart()
    a.send(b.address, b"after the restart")
    world.run(20)
    assert set("WAHCOR") == {kind[0] for kind in kinds}
    return world, a, b, kinds


def variants(datagram: bytes) -> Iterator[bytes]:
    """Every truncation and every bit flip."""
    for end in range(len(datagram)):
        yield datagram[:end]
    for place in range(min(len(datagram), 200)):
        for bit in range(8):
            yield datagram[:place] + bytes([datagram[place] ^ 1 << bit]) + datagram[place + 1 :]


@pytest.mark.parametrize("keyed", [False, True], ids=["checksum", "key"])
def test_every_truncation_and_bit_flip_of_every_kind_is_ignored(keyed: bool) -> None:
    world, a, b, kinds = conversation(keyed=keyed)
    world.taps.clear()
    handled, settled = len(b.handled), len(a.settled)
    for kind, datagrams in kinds.items():
        to, source = (a, b.address) if kind[1:] == "1" else (b, a.address)
        for datagram in {len(d): d for d in datagrams}.values():
            sent_before = world.letters.total()
            for count, variant in enumerate(variants(datagram)):
                to.endpoint.receive_datagrams(variant, 0, source, world.now)
                if count % 64 == 0:
                    to.turn()
            to.turn()
            assert world.letters.total() - sent_before <= 400, kind  # resets, within their budget

    a.send(b.address, b"still there?")
    assert world.run(20, until=lambda: b"still there?" in a.settled or "still there?" in a.replies)
    assert handled + 1 == len(b.handled)
    assert settled + 1 == len(a.settled)


def with_checksum(datagram: bytes) -> bytes:
    return datagram[:-4] + zlib.crc32(datagram[:-4]).to_bytes(4, "big")


SETTINGS = st.sampled_from(
    [who | how for who in (0, INSIDER) for how in (0, KEYED, ORDERED, KEYED | ORDERED, PATIENT)]
)


@settings(max_examples=400)
@given(setting=SETTINGS, scene=st.integers(0, len(SCENES) - 1), acts=st.binary(max_size=120))
# A responder closed a session that nothing had come in yet, and made it again, with another key, of
# an H that was repeated: each took what the other said for forged, for ever.
@example(setting=KEYED, scene=2, acts=bytes.fromhex("66020000000001 00ea00"))
def test_no_play_of_outsiders_and_insiders_breaks_what_must_be_so(
    setting: int, scene: int, acts: bytes
) -> None:
    # The same plays and rules as `make fuzz`, which knows what an act reaches; see there.
    run_play(bytes([setting, scene]) + acts)


@pytest.mark.parametrize("keyed", [False, True])
def test_a_session_that_ended_before_its_initiator_heard_of_it_makes_room_for_another(
    keyed: bool,
) -> None:
    stage = Stage(keyed=keyed, insider=False)
    stage.send(stage.target, stage.friend, 30)
    while not stage.friend.endpoint.peers:
        stage.pass_on()
    stage.wire.clear()  # the answer is lost, and so is what tells of the end
    stage.friend_restarted = True
    stage.friend.endpoint.close(TARGET, stage.world.now)
    stage.friend.turn()
    stage.finish()


@settings(max_examples=300)
@given(junk=st.binary(max_size=300), segment=st.integers(0, 80), keyed=st.booleans())
def test_arbitrary_bytes_from_a_stranger_make_no_state(
    junk: bytes, segment: int, keyed: bool
) -> None:
    stage = Stage(keyed=keyed, insider=False)
    stage.inject(junk, STRANGER, stage.target, segment)

    assert {} == stage.target.endpoint.peers
    stage.finish()


def test_replayed_datagrams_are_refused_with_a_key() -> None:
    world, a, b, kinds = conversation(keyed=True)
    world.taps.clear()
    handled, settled, replies = len(b.handled), len(a.settled), dict(a.replies)
    for datagrams in kinds.values():
        for datagram in datagrams:
            for source in (a.address, b.address, STRANGER):
                for host in (a, b):
                    host.receive(datagram, source)
    world.run(30)

    assert (handled, settled, replies) == (len(b.handled), len(a.settled), a.replies)
    assert STRANGER not in a.endpoint.peers
    assert STRANGER not in b.endpoint.peers


def test_a_forged_acknowledgement_settles_nothing_with_a_key() -> None:
    world = World(1)
    a, b = world.host(1, keys=keys()), world.host(2, keys=keys())
    b.delay_handling = 1000.0
    a.send(b.address, b"waits")
    world.run(3)
    session = a.endpoint.peers[b.address].session
    assert session is not None
    body = wire.encode_handled([(1, 1)])
    header = wire.HEADER.pack(wire.ACKNOWLEDGEMENT, 1, 1, wire.RESPONDER, session.identifier, 50)
    wrong = wire.session_seal(ChaCha20Poly1305, bytes(32), wire.RESPONDER, bytes(16), bytes(16))
    forged = [wrong.close(header, body), with_checksum(header + body + bytes(4)),
              header[:2] + b"\0" + header[3:] + body + bytes(16)]  # fmt: skip
    for datagram in forged:
        a.receive(datagram, b.address)
    world.run(1)

    assert [] == a.settled
    assert a.endpoint.counters["forged"] >= 1


def test_the_contents_cannot_be_read_with_a_key() -> None:
    world = World(1)
    a, b = world.host(1, keys=keys()), world.host(2, keys=keys())
    seen = watch(world)
    b.handler = lambda body: b"the reply is secret"
    a.send(b.address, b"the message is secret")
    assert world.run(3, until=lambda: bool(a.replies))

    assert b"secret" not in b"".join(seen)


def test_a_hello_is_answered_by_less_and_makes_no_state() -> None:
    world = World(1)
    a, b = world.host(1), world.host(2)
    b_out: list[bytes] = []
    world.taps.append(
        lambda source, to, datagram: datagram if source == a.address else b_out.append(datagram)
    )
    a.send(b.address, b"x")
    world.run(30)

    assert {} == b.endpoint.peers
    assert b_out
    assert {ord("C")} == {datagram[0] for datagram in b_out}
    assert b.sent_bytes < a.sent_bytes


def test_a_cookie_serves_its_own_address_session_and_time_only() -> None:
    from msgservice.core.datagram.cookie import CookieJar

    jar = CookieJar(b"s" * 32, 30.0)
    cookie = jar.make(("127.0.0.1", 5), 7, bytes(16), 100.0)

    assert jar.check(cookie, ("127.0.0.1", 5), 7, bytes(16), 129.9)
    assert not jar.check(cookie, ("127.0.0.1", 6), 7, bytes(16), 100.0)
    assert not jar.check(cookie, ("127.0.0.2", 5), 7, bytes(16), 100.0)
    assert not jar.check(cookie, ("127.0.0.1", 5), 8, bytes(16), 100.0)
    assert not jar.check(cookie, ("127.0.0.1", 5), 7, bytes([1]) * 16, 100.0)
    assert not jar.check(cookie, ("127.0.0.1", 5), 7, bytes(16), 130.1)
    assert not jar.check(cookie, ("127.0.0.1", 5), 7, bytes(16), 99.0)
    assert not jar.check(wire.NO_COOKIE, ("127.0.0.1", 5), 7, bytes(16), 100.0)


def flood_of(rng_seed: int, count: int) -> Iterator[tuple[Address, bytes]]:
    """Well-formed and other datagrams from ever new addresses of the loopback net."""
    import random

    rng = random.Random(rng_seed)
    for _ in range(count):
        address = (f"127.{rng.randrange(256)}.{rng.randrange(256)}.{rng.randrange(1, 255)}",
                   rng.randrange(1024, 65536))  # fmt: skip
        letter = rng.choice(b"HHHWACOR")
        body = rng.randbytes(wire.HELLO_BODY_BYTES if letter == 0x48 else rng.randrange(0, 200))
        header = wire.HEADER.pack(
            letter, 1, 0, rng.randrange(2), rng.getrandbits(64), rng.getrandbits(64)
        )
        yield address, with_checksum(header + body + bytes(4))


def test_a_flood_costs_no_memory_answers_less_than_it_brings_and_hurts_no_peer() -> None:
    import tracemalloc

    world = World(1)
    a, b = world.host(1), world.host(2)
    a.send(b.address, b"before")
    world.run(2)
    endpoint = b.endpoint
    bytes_in = bytes_out = 0
    tracemalloc.start()
    base = peak = 0
    for number, (address, datagram) in enumerate(flood_of(1, 20_000)):
        bytes_in += len(datagram)
        endpoint.receive_datagrams(datagram, 0, address, world.now + number / 20_000)
        for _, datagrams in endpoint.take_datagrams(world.now):
            bytes_out += sum(map(len, datagrams))
        if number == 2000:
            base = tracemalloc.get_traced_memory()[0]
    peak = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()

    assert 0 < bytes_out <= bytes_in
    assert peak - base < 200_000
    assert [a.address] == list(endpoint.peers)
    a.send(b.address, b"after")
    assert world.run(3, until=lambda: a.settled == [b"before", b"after"])


FLOODED = DatagramLimits(strangers_per_second=50, handshakes_per_second=50)


def test_what_the_driver_drops_unread_is_what_would_have_been_ignored_anyway() -> None:
    world = World(1)
    endpoint = world.host(1, limits=FLOODED).endpoint
    dropped = 0
    for number, (address, datagram) in enumerate(flood_of(2, 5_000)):
        now = number / 10_000
        drops = endpoint.ignores(datagram[0], now)
        dropped += drops
        before = dict(endpoint.counters)
        endpoint.receive_datagrams(datagram, 0, address, now)
        if drops:
            assert [] == endpoint.take_datagrams(now)
            before["ignored"] += 1
            assert before == endpoint.counters
        endpoint.take_datagrams(now)

    assert 4_000 < dropped < 5_000
    assert 0 < endpoint.counters["handshakes"] <= 76  # the bucket, and half a second's refill


def test_a_stranger_is_heard_again_when_the_flood_is_over() -> None:
    world = World(1)
    endpoint = world.host(1, limits=DatagramLimits(strangers_per_second=10)).endpoint
    for address, datagram in flood_of(3, 200):
        endpoint.receive_datagrams(datagram, 0, address, 1.0)
    assert endpoint.ignores(wire.HELLO, 1.09)
    assert not endpoint.ignores(wire.HELLO, 1.11)


def hello_from(endpoint: Endpoint, to: Address, now: float) -> bytes:
    """Return the hello that an endpoint sends next to an address that it begins with."""
    endpoint.receive_time(now)
    ((_, (datagram,)),) = endpoint.take_datagrams(now)
    return datagram


def test_a_flood_of_hellos_without_the_key_keeps_no_new_peer_out() -> None:
    world, a, b = two_hosts(keyed=True)
    junk = bytes([wire.HELLO, 1, 1, 0]) + bytes(100)
    for number in range(10_000):
        b.endpoint.receive_datagrams(junk, 0, ("10.0.0.1", 1 + number), world.now)
    assert not b.endpoint.ignores(wire.HELLO, world.now)
    a.endpoint.connect(b.address, world.now)
    hello = hello_from(a.endpoint, b.address, world.now)
    b.endpoint.receive_datagrams(hello, 0, a.address, world.now)

    ((_, (answer,)),) = b.endpoint.take_datagrams(world.now)
    assert wire.COOKIE == answer[0]


def test_a_flood_of_first_hellos_keeps_none_out_who_has_a_cookie() -> None:
    world, a, b = two_hosts(keyed=False)
    a.endpoint.connect(b.address, world.now)
    first = hello_from(a.endpoint, b.address, world.now)
    b.endpoint.receive_datagrams(first, 0, a.address, world.now)
    ((_, (cookie,)),) = b.endpoint.take_datagrams(world.now)
    for number in range(10_000):
        b.endpoint.receive_datagrams(first, 0, ("10.0.0.1", 1 + number), world.now)
    assert 2000 > len(b.endpoint.take_datagrams(world.now)) > 1000

    a.endpoint.receive_datagrams(cookie, 0, b.address, world.now)
    second = hello_from(a.endpoint, b.address, world.now)
    assert not b.endpoint.ignores(wire.HELLO, world.now)
    b.endpoint.receive_datagrams(second, 0, a.address, world.now)
    ((_, (answer,)),) = b.endpoint.take_datagrams(world.now)
    assert wire.OPENED == answer[0]


def test_a_flood_of_packets_with_a_wrong_checksum_takes_no_reset_from_others() -> None:
    world = World(1)
    endpoint = world.host(1).endpoint
    packet = with_checksum(wire.HEADER.pack(wire.MESSAGES, 1, 0, 0, 7, 1) + bytes(64))
    wrong = packet[:-1] + bytes([packet[-1] ^ 1])
    for number in range(5_000):
        endpoint.receive_datagrams(wrong, 0, ("10.0.0.1", 1 + number), world.now)
    assert not endpoint.ignores(wire.MESSAGES, world.now)
    endpoint.receive_datagrams(packet, 0, STRANGER, world.now)
    ((_, (answer,)),) = endpoint.take_datagrams(world.now)
    assert wire.RESET == answer[0]


def test_ten_thousand_peers_fit_in_memory_and_the_next_is_not_answered() -> None:
    import tracemalloc

    count = 1000  # a tenth: the figure is per peer
    world = World(1)
    server = world.host(1, limits=DatagramLimits(peers=count))
    tracemalloc.start()
    clients = []
    before = tracemalloc.get_traced_memory()[0]
    for number in range(count):
        client = world.host(10 + number)
        client.send(server.address, b"hello")
        clients.append(client)
    world.run(5)
    assert count == len(server.endpoint.peers) == len(server.handled)
    used = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert used / (2 * count) < 10_486  # a session at each end; 10,000 peers: 100 MiB

    late = world.host(5)
    late.send(server.address, b"one too many")
    world.run(10)
    assert [] == late.settled
    assert server.endpoint.counters["refused_peers"] > 0


@pytest.mark.parametrize("keyed", [False, True], ids=["checksum", "key"])
def test_a_repeated_packet_from_elsewhere_gets_no_reset_to_be_sent_on(keyed: bool) -> None:
    world, a, b = two_hosts(keyed=keyed)
    seen = watch(world)
    a.send(b.address, b"before")
    world.run(2)
    packets = [datagram for datagram in seen if datagram[0] == wire.MESSAGES]
    assert packets
    for packet in packets:
        b.receive(packet, STRANGER)

    assert 0 == b.endpoint.counters["resets"]


@pytest.mark.parametrize("keyed", [False, True], ids=["checksum", "key"])
def test_a_peer_whose_address_changed_is_told_and_goes_on(keyed: bool) -> None:
    world, a, b = two_hosts(keyed=keyed)
    a.send(b.address, b"before")
    world.run(2)
    a.address = ("127.0.0.1", 3)  # as behind a router that gave it another port
    world.hosts = {a.address: a, b.address: b}
    a.send(b.address, b"after")

    assert world.run(3, until=lambda: a.settled == [b"before", b"after"])
    assert [b"before", b"after"] == b.handled


@pytest.mark.parametrize("keyed", [False, True], ids=["checksum", "key"])
def test_a_repeated_hello_does_not_bring_back_a_session_that_ended(keyed: bool) -> None:
    world, a, b = two_hosts(keyed=keyed)
    seen = watch(world)
    a.send(b.address, b"before")
    world.run(2)
    b.endpoint.close(a.address, world.now)
    b.endpoint.take_datagrams(world.now)  # and what tells it is lost
    for datagram in [datagram for datagram in seen if datagram[0] == wire.HELLO]:
        b.receive(datagram, a.address)
    assert {} == b.endpoint.peers

    a.send(b.address, b"after")
    assert world.run(5, until=lambda: a.settled == [b"before", b"after"])
    assert [b"before", b"after"] == b.handled


def test_a_message_that_overtakes_the_answer_to_a_hello_resets_nothing() -> None:
    world = World(1)
    a, b = world.host(1), world.host(2)
    late: list[bytes] = []

    def hold_the_answer(source: Address, to: Address, datagram: bytes) -> bytes | None:
        if datagram[0] == wire.OPENED and not late:
            late.append(datagram)
            return None
        return datagram

    world.taps.append(hold_the_answer)
    a.send(b.address, b"from a")
    world.run(0.025)
    b.send(a.address, b"from b")
    world.run(0.05)
    assert late
    a.receive(late[0], b.address)

    assert world.run(2, until=lambda: [b"from a"] == a.settled and [b"from b"] == b.settled)
    assert 0 == a.endpoint.counters["resets"]


@pytest.mark.parametrize("ahead", [2**31 + 100, 2**32 + 2, 2**40, 2**64 - 1])
def test_a_packet_number_of_the_far_future_is_ignored(ahead: int) -> None:
    # It was acknowledged with a gap that has no room in its field, which ended the whole socket.
    world = World(1)
    a, b = world.host(1), world.host(2)
    a.send(b.address, b"before")
    world.run(2)
    session = a.endpoint.peers[b.address].session
    assert session is not None
    header = wire.HEADER.pack(wire.MESSAGES, 1, 0, wire.INITIATOR, session.identifier, ahead)
    b.receive(with_checksum(header + wire.encode_run(2, [b"later"]) + bytes(4)), a.address)
    a.send(b.address, b"after")

    assert world.run(5, until=lambda: a.settled == [b"before", b"after"])
    assert [b"before", b"after"] == b.handled


def test_a_reset_is_believed_only_for_a_packet_in_flight() -> None:
    world = World(1)
    a, b = world.host(1), world.host(2)
    a.send(b.address, b"x")
    world.run(2)
    session = a.endpoint.peers[b.address].session
    assert session is not None
    for number in (0, 1, 2**63):
        header = wire.HEADER.pack(wire.RESET, 1, 0, wire.RESPONDER, session.identifier, 5)
        a.receive(with_checksum(header + wire.RESET_BODY.pack(number) + bytes(4)), b.address)

    assert session is a.endpoint.peers[b.address].session


@pytest.mark.parametrize(("sealed_with", "ends"), [(2, True), (1, False)])
def test_a_reset_is_believed_only_when_sealed_with_the_key_of_its_session(
    sealed_with: int, ends: bool
) -> None:
    both = Keys({2: KEY[::-1], 1: KEY}, ChaCha20Poly1305)  # the old one is still understood
    world = World(1)
    a, b = world.host(1, keys=both), world.host(2, keys=both)
    a.send(b.address, b"x")
    world.run(2)
    session = a.endpoint.peers[b.address].session
    assert session is not None
    world.default = Path(down=True)
    a.send(b.address, b"y")
    a.turn()
    number = next(iter(session.flight.recovery.in_flight))
    seal = both.handshake_seal(sealed_with, wire.RESET)
    assert seal is not None
    header = wire.HEADER.pack(wire.RESET, 1, sealed_with, wire.RESPONDER, session.identifier, 5)
    a.receive(seal.close(header, wire.RESET_BODY.pack(number)), b.address)

    assert ends == (session is not a.endpoint.peers[b.address].session)


def test_more_than_the_granted_window_is_not_taken() -> None:
    world = World(1)
    limits = DatagramLimits(window_messages=10, window_bytes=10_000)
    a, b = world.host(1), world.host(2, limits=limits)
    b.delay_handling = 1000.0
    a.send(b.address, b"x")
    world.run(2)
    session = b.endpoint.peers[a.address].session
    assert session is not None
    sender = a.endpoint.peers[b.address].session
    assert sender is not None
    sender.sending.credit_messages = 10**6  # a peer that does not keep to what it was granted
    for number in range(1000):
        a.send(b.address, b"%d" % number)
    world.run(5)

    assert session.receiving.next_nonce - 1 <= 10
    assert session.refused > 0


def test_what_comes_from_a_peer_that_reads_no_replies_waits_until_it_does() -> None:
    world = World(1)
    a, b = world.host(1), world.host(2, limits=DatagramLimits(reply_bytes=30_000))
    b.handler = lambda body: bytes(10_000)
    a.send(b.address, b"first")
    assert world.run(5, until=lambda: b"first" in a.replies)
    world.paths[(b.address, a.address)] = Path(down=True)
    bodies = [b"%d" % number for number in range(8)]
    for body in bodies:
        a.send(b.address, body)
        world.run(0.1)
    assert [b"first", b"0", b"1", b"2"] == b.handled

    world.paths[(b.address, a.address)] = Path()
    assert world.run(60, until=lambda: len(a.replies) == 9)
    assert [b"first", *bodies] == b.handled


def test_a_path_that_comes_back_after_an_hour_still_works() -> None:
    world = World(1)
    a, b = world.host(1), world.host(2)
    a.send(b.address, b"x")
    world.run(2)
    world.default = Path(down=True)
    a.send(b.address, b"patient")
    world.run(3600)
    world.default = Path()

    assert world.run(70, until=lambda: b"patient" in a.settled)


def test_connections_that_ended_do_not_shut_out_others() -> None:
    world = World(1)
    server = world.host(1, limits=DatagramLimits(peers=3))
    for number in range(10, 20):
        client = world.host(number)
        client.send(server.address, b"short")
        assert world.run(0.5, until=partial(operator.contains, client.settled, b"short"))
        client.endpoint.close(server.address, world.now)
        client.turn()
        world.run(0.1)

    assert {} == server.endpoint.peers
    assert 10 == len(server.handled)


def next_packet(to: Host, body: bytes) -> bytes:
    """Return the packet that the only session of a host would get next."""
    (session,) = to.endpoint.table.sessions.values()
    header = wire.HEADER.pack(
        wire.MESSAGES,
        wire.VERSION,
        0,
        1 - session.role,
        session.identifier,
        session.receiving.largest + 1,
    )
    return wire.ChecksumSeal().close(header, body)


def test_a_packet_of_an_unknown_session_behind_others_of_a_read_delays_none_of_them() -> None:
    world = World(1)
    a, b = world.host(1), world.host(2)
    a.send(b.address, b"first")
    world.run(2)
    known = next_packet(b, wire.encode_run(2, [b"second"]))
    unknown = with_checksum(known[:4] + bytes(8) + known[12:])

    b.endpoint.receive_datagrams(known + unknown, len(known), a.address, world.now)
    b.turn()

    assert [b"first", b"second"] == b.handled


def test_a_read_that_ends_an_old_session_with_the_next_hands_on_what_came_in_both() -> None:
    world = World(1)
    a, b = world.host(1), world.host(2)
    a.send(b.address, b"first")
    world.run(2)
    train = next_packet(b, wire.encode_run(2, [b"second"]))
    a.restart()
    held: list[bytes] = []

    def hold(source: Address, to: Address, datagram: bytes) -> bytes | None:
        if datagram[:1] != b"W":
            return datagram
        held.append(datagram)
        return None

    world.taps.append(hold)
    a.send(b.address, b"third!")
    world.run(1, until=lambda: bool(held))
    assert len(held[0]) <= len(train)

    b.endpoint.receive_datagrams(train + held[0], len(train), a.address, world.now)
    b.turn()

    assert [b"first", b"second", b"third!"] == b.handled
