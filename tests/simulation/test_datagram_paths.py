"""Acknowledged UDP over simulated paths: loss, a bottleneck, reordering, damage, dead peers."""

from __future__ import annotations

import pytest

from msgservice.core.datagram.chunks import Chunk
from msgservice.core.datagram.limits import DatagramLimits
from msgservice.errors import MessageTooLarge
from tests.simulation.datagram_paths import Address, Bottleneck, Host, Path, World

SETTLING = 5.0  # the figures hold after the first seconds


def pair(world: World, **options: object) -> tuple[Host, Host]:
    return world.host(1, **options), world.host(2, **options)


def feed(world: World, source: Host, to: Host, count: int, *, per_turn: int, every: float) -> None:
    """Send `count` numbered messages, some in each turn."""

    def turn(number: int) -> None:
        for n in range(number, min(number + per_turn, count)):
            source.send(to.address, b"%d" % n + bytes(400))
        source.turn()
        if number + per_turn < count:
            world.later(every, lambda: turn(number + per_turn))

    turn(0)


@pytest.mark.parametrize("loss", [0.0, 0.01, 0.1, 0.2, 0.3, 0.5])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_under_loss_all_are_handled_once_with_few_transmissions(loss: float, seed: int) -> None:
    world = World(seed)
    world.default = Path(delay=0.02, loss=loss)
    a, b = pair(world)
    feed(world, a, b, 400, per_turn=5, every=0.1)

    assert world.run(20_000, until=lambda: len(a.settled) == 400)

    assert len(b.handled) == len(set(b.handled)) == 400
    session = a.endpoint.peers[b.address].session
    assert session is not None
    assert session.packing.messages_sent / 400 <= 1.1 / (1 - loss) ** 2


@pytest.mark.parametrize("seed", range(6))
def test_duplicated_reordered_and_damaged_datagrams_change_nothing(seed: int) -> None:
    world = World(seed)
    world.default = Path(
        delay=0.01, loss=0.1, duplicate=0.2, damage=0.02, jitter=0.03, jitter_share=0.5
    )
    a, b = pair(world)
    b.handler = lambda body: body[:20] if body[0] % 2 else None
    feed(world, a, b, 300, per_turn=7, every=0.05)

    assert world.run(5000, until=lambda: len(a.settled) + len(a.replies) == 300)

    assert len(b.handled) == len(set(b.handled)) == 300
    assert all(token[:20] == reply for token, (_, reply) in a.replies.items())  # type: ignore[index]  # bytes here


@pytest.mark.parametrize("seed", range(4))
def test_large_messages_and_large_replies_cross_a_lossy_path_whole(seed: int) -> None:
    world = World(seed)
    world.default = Path(delay=0.01, loss=0.1)
    a, b = pair(world)
    b.handler = lambda body: body[::-1]
    bodies = [world.random.randbytes(size) for size in (1, 1165, 1166, 5000, 100_000, 400_000)]
    for body in bodies:
        a.send(b.address, body)

    assert world.run(2000, until=lambda: len(a.replies) == len(bodies))

    assert sorted(map(len, bodies)) == sorted(map(len, b.handled))
    assert {body: (1, body[::-1]) for body in bodies} == a.replies


def test_an_ordered_session_hands_on_in_the_order_sent() -> None:
    world = World(3)
    world.default = Path(delay=0.01, loss=0.2, jitter=0.05, jitter_share=0.5)
    a, b = pair(world, ordered=True)
    sent = [b"%d" % n + bytes(300 + 40 * (n % 90)) for n in range(300)]
    for body in sent:
        a.send(b.address, body)

    assert world.run(2000, until=lambda: len(a.settled) == 300)

    assert sent == b.handled


@pytest.mark.parametrize(("loss", "seconds"), [(0.1, 1.2), (0.25, 4.0)])
def test_three_thousand_messages_cross_a_path_of_heavy_loss_in_seconds(
    loss: float, seconds: float
) -> None:
    # Kernel TCP takes about 0.3 and 3 s on this path (bench/udp_loss.py).
    took = []
    for seed in range(7):
        world = World(seed)
        world.default = Path(delay=0.01, loss=loss)
        a, b = pair(world)
        for number in range(3000):
            a.send(b.address, b"%d" % number + bytes(252))
        assert world.run(100, until=lambda a=a: len(a.settled) == 3000)  # type: ignore[misc]  # bound now
        assert len(set(b.handled)) == len(b.handled) == 3000
        took.append(world.now)

    assert sorted(took)[3] <= seconds
    assert max(took) <= 10 * seconds


@pytest.mark.parametrize("queue_max", [3, 8])
def test_a_bottleneck_without_much_of_a_queue_is_not_taken_for_random_loss(queue_max: int) -> None:
    world = World(1)
    bottleneck = Bottleneck(rate=1.25e6, queue_max=queue_max)
    a, b = pair(world)
    world.paths[a.address, b.address] = Path(delay=0.02, bottleneck=bottleneck)
    world.paths[b.address, a.address] = Path(delay=0.02)
    stream(world, a, b, 1000)
    world.run(SETTLING)
    offered, dropped = bottleneck.offered_count, bottleneck.dropped_count

    world.run(20)

    lost = (bottleneck.dropped_count - dropped) / (bottleneck.offered_count - offered)
    assert lost <= 0.01


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_handshake_under_heavy_loss_is_repeated_at_an_even_pace(seed: int) -> None:
    world = World(seed)
    world.default = Path(delay=0.01, down=True)
    a, b = pair(world)
    a.send(b.address, b"one")
    world.run(4.5)  # three were lost or four
    tried = world.letters["H"]

    assert 4 <= tried <= 5


def stream(world: World, source: Host, to: Host, size: int) -> None:
    """Keep the source's queue full for ever."""
    peer = source.endpoint.peers.get(to.address)
    if peer is None or len(peer.queue) < 300:
        for _ in range(300):
            source.send(to.address, bytes(size))
        source.turn()
    world.later(0.05, lambda: stream(world, source, to, size))


@pytest.mark.parametrize("delay", [0.02, 0.04], ids=["rtt40ms", "oneway40ms"])
def test_a_bottleneck_is_used_and_hardly_overrun(delay: float) -> None:
    world = World(1)
    bottleneck = Bottleneck(rate=1.25e6, queue_max=64)
    a, b = pair(world)
    world.paths[a.address, b.address] = Path(delay=delay, bottleneck=bottleneck)
    world.paths[b.address, a.address] = Path(delay=delay)
    stream(world, a, b, 1000)
    world.run(SETTLING)
    carried, offered, dropped = (
        bottleneck.carried,
        bottleneck.offered_count,
        bottleneck.dropped_count,
    )

    world.run(20)

    assert (bottleneck.carried - carried) / 1.25e6 / 20 >= 0.85
    assert (bottleneck.dropped_count - dropped) / (bottleneck.offered_count - offered) <= 0.02


def test_two_flows_share_a_bottleneck() -> None:
    world = World(2)
    bottleneck = Bottleneck(rate=1.25e6, queue_max=64)
    receivers = []
    for number in (1, 3):
        a, b = world.host(number), world.host(number + 1)
        world.paths[a.address, b.address] = Path(delay=0.02, bottleneck=bottleneck)
        world.paths[b.address, a.address] = Path(delay=0.02)
        stream(world, a, b, 1000)
        receivers.append(b)
    world.run(SETTLING)
    before = [len(b.handled) for b in receivers]

    world.run(40)

    counts = [len(b.handled) - count for b, count in zip(receivers, before, strict=True)]
    assert 0.4 <= counts[0] / sum(counts) <= 0.6


@pytest.mark.parametrize("seed", [1, 2])
def test_reordering_is_learned_and_hardly_anything_is_sent_needlessly(seed: int) -> None:
    world = World(seed)
    bottleneck = Bottleneck(rate=1.25e6, queue_max=64)
    a, b = pair(world)
    world.paths[a.address, b.address] = Path(
        delay=0.02, bottleneck=bottleneck, jitter=0.025, jitter_share=0.3
    )
    world.paths[b.address, a.address] = Path(delay=0.02, jitter=0.025, jitter_share=0.3)
    stream(world, a, b, 1000)
    world.run(SETTLING)
    session = a.endpoint.peers[b.address].session
    assert session is not None
    spurious, sent = session.flight.recovery.spurious, session.flight.packets_sent

    world.run(20)

    needless = (session.flight.recovery.spurious - spurious) / (session.flight.packets_sent - sent)
    assert needless <= 0.02


def test_a_dead_peer_fails_after_patience_and_works_again_when_heard_from() -> None:
    world = World(1)
    a, b = pair(world, patience=6.0, retries=3)
    a.send(b.address, b"first")
    assert world.run(5, until=lambda: a.settled == [b"first"])
    world.default = Path(down=True)
    a.send(b.address, b"lost")
    began = world.now
    world.run(60, until=lambda: bool(a.failed))

    assert [(b.address, [b"lost"], True)] == a.failed
    assert world.now - began >= 6.0

    world.default = Path()
    a.send(b.address, b"again")
    assert world.run(100, until=lambda: b"again" in a.settled)


def test_node_failure_is_told_once_until_the_node_is_heard_from() -> None:
    world = World(1)
    a, b = pair(world, patience=3.0, retries=3)
    world.default = Path(down=True)
    for number in range(3):
        a.send(b.address, b"%d" % number)
        world.run(40)

    assert [True, False, False] == [first for _, _, first in a.failed]

    world.default = Path()
    a.send(b.address, b"back")
    assert world.run(60, until=lambda: b"back" in a.settled)
    world.default = Path(down=True)
    a.send(b.address, b"gone again")
    world.run(60)

    assert (b.address, [b"gone again"], True) == a.failed[-1]


def test_a_peer_that_lost_its_state_is_sent_again_what_it_had_not_answered() -> None:
    world = World(1)
    a, b = pair(world)
    b.delay_handling = 50.0
    a.send(b.address, b"one")
    world.run(3)
    assert [b"one"] == b.handled

    b.restart()
    b.delay_handling = 0.0

    assert world.run(100, until=lambda: a.settled == [b"one"])
    assert [b"one", b"one"] == b.handled


def test_a_repeated_probe_says_again_what_arrived() -> None:
    """Its acknowledgement was lost too, and the other side waits longer each time without one."""
    world = World(1)
    a, b = pair(world)
    a.send(b.address, b"first")
    assert world.run(5, until=lambda: a.settled == [b"first"])
    heard = world.now + 0.5  # from then on, a hears b again

    def cut(source: Address, to: Address, datagram: bytes) -> bytes | None:
        is_lost = b"second" in b.handled if source == a.address else world.now < heard
        return None if is_lost else datagram

    world.taps.append(cut)
    a.send(b.address, b"second")

    assert world.run(5, until=lambda: b"second" in a.settled)
    session = a.endpoint.peers[b.address].session
    assert session is not None
    session.flight.catch_up()
    in_flight = [item for sent in session.flight.recovery.in_flight.values() for item in sent[2]]
    assert all(item.received for item in in_flight if type(item) is Chunk)


def test_both_sides_may_begin_at_once_and_end_in_one_session() -> None:
    for seed in range(20):
        world = World(seed)
        world.default = Path(delay=0.02, loss=0.1, jitter=0.02, jitter_share=0.5)
        a, b = pair(world)
        a.send(b.address, b"from a")
        b.send(a.address, b"from b")

        assert world.run(200, until=lambda a=a, b=b: bool(a.settled and b.settled))  # type: ignore[misc]  # bound now

        assert ([b"from b"], [b"from a"]) == (a.handled, b.handled)
        one, other = a.endpoint.peers[b.address].session, b.endpoint.peers[a.address].session
        assert one is not None
        assert other is not None
        assert one.identifier == other.identifier


def test_unhandled_messages_are_asked_after_and_answered_late() -> None:
    world = World(1)
    a, b = pair(world)
    b.delay_handling = 20.0
    a.send(b.address, b"slow")

    assert world.run(60, until=lambda: a.settled == [b"slow"])

    session = a.endpoint.peers[b.address].session
    assert session is not None
    assert session.sending.asks.count == 3  # after 2, 6 and 14 seconds
    assert session.packing.messages_again == 0


def test_a_slow_handler_closes_the_window_and_memory_stays_bounded() -> None:
    limits = DatagramLimits(window_messages=64, window_bytes=64 * 1024)
    world = World(1)
    a, b = pair(world, limits=limits)
    b.delay_handling = 1.0
    for number in range(1000):
        a.send(b.address, b"%d" % number + bytes(100))
    worst = 0
    while len(a.settled) < 1000:
        world.run(0.1)
        session = b.endpoint.peers[a.address].session if a.address in b.endpoint.peers else None
        if session is not None:
            receiving = session.receiving
            worst = max(worst, receiving.next_nonce - 1 - receiving.handled_messages)
        assert world.now < 200

    assert 0 < worst <= 64 + 16  # the window, and what one datagram carries
    assert len(set(b.handled)) == len(b.handled) == 1000


def test_keepalive_asks_a_silent_peer_and_stays_quiet_otherwise() -> None:
    world = World(1)
    a, b = pair(world, limits=DatagramLimits(keepalive=5.0))
    a.send(b.address, b"hello")
    world.run(2)
    before = dict(world.letters)

    world.run(60)

    asked = world.letters["A"] - before["A"]
    assert 10 <= asked <= 60


def test_an_idle_session_is_forgotten_and_the_next_message_opens_another() -> None:
    world = World(1)
    a, b = pair(world, limits=DatagramLimits(idle_timeout=20.0))
    a.send(b.address, b"one")
    world.run(1)
    assert 1 == len(b.endpoint.peers)

    world.run(60)
    for host in (a, b):
        host.endpoint.receive_time(world.now)
    assert 0 == len(a.endpoint.peers) == len(b.endpoint.peers)

    a.send(b.address, b"two")
    assert world.run(10, until=lambda: a.settled == [b"one", b"two"])
    assert [b"one", b"two"] == b.handled


def test_A7_what_waits_behind_a_slow_handler_has_not_failed_with_what_was_asked_after() -> None:
    world = World(3)
    a = world.host(1, patience=6.0, retries=3)
    b = world.host(2, limits=DatagramLimits(window_messages=10))
    b.delay_handling = 40.0
    bodies = [b"%d" % number for number in range(30)]
    for body in bodies:
        a.send(b.address, body)
    world.run(25, until=lambda: bool(a.failed))

    (_, failed, _) = a.failed[0]
    assert bodies[:10] == failed  # taken, asked after three times, and not handled
    b.delay_handling = 0.0
    assert world.run(60, until=lambda: set(bodies[10:]) <= set(a.settled))
    assert 1 == len(a.failed)


def test_A7_the_retries_of_other_messages_do_not_count() -> None:
    world = World(4)
    a, b = world.host(1, patience=3.0, retries=20), world.host(2)
    a.send(b.address, b"warm")
    world.run(2)
    b.delay_handling = 30.0
    a.send(b.address, b"slow")
    world.run(1, until=lambda: b"slow" in b.handled)
    b.delay_handling = 0.0
    world.default = Path(loss=0.4)
    for number in range(60):
        a.send(b.address, b"%d" % number)
        world.run(0.4)
    session = a.endpoint.peers[b.address].session

    assert session is not None
    assert session.packing.messages_again > 20
    assert [] == a.failed
    world.default = Path()
    assert world.run(30, until=lambda: b"slow" in a.settled)
    assert [] == a.failed


def test_a_session_that_was_only_asked_for_takes_nothing_of_what_waits() -> None:
    """A peer that crashes twice: what had left in the session between was lost with it."""
    world = World(1)
    a, b = pair(world)
    a.send(b.address, b"first")
    assert world.run(5, until=lambda: a.settled == [b"first"])
    b.restart()
    sent = [b"%d" % number + bytes(1000) for number in range(200)]
    for body in sent:
        a.send(b.address, body)  # more than may be in flight: the rest waits
    world.taps.append(
        lambda source, to, datagram: None if datagram[:1] in (b"O", b"R") else datagram
    )
    b.send(a.address, b"I am back")
    world.run(0.5)
    world.taps.clear()
    b.restart()
    b.send(a.address, b"and again")

    assert world.run(200, until=lambda: len(a.settled) == 201)
    assert set(sent) <= set(b.handled)


SMALL = DatagramLimits(message_bytes=2000)


@pytest.mark.parametrize("ordered", [False, True])
def test_what_the_other_side_does_not_take_fails_when_the_session_begins_and_the_rest_goes_on(
    ordered: bool,
) -> None:
    world = World(1)
    a, b = world.host(1, ordered=ordered), world.host(2, limits=SMALL, ordered=ordered)
    b.handler = lambda body: body[:1]
    sizes = [10, 5000, 20, 2000, 2001, 30, 40]
    bodies = [bytes([48 + index]) * size for index, size in enumerate(sizes)]
    for body in bodies:
        a.send(b.address, body)

    assert world.run(5, until=lambda: len(a.replies) == 5)

    assert [(bodies[1], 5000, 2000), (bodies[4], 2001, 2000)] == a.too_large
    fitting = [body for body in bodies if len(body) <= 2000]
    assert sorted(fitting) == sorted(b.handled)
    assert {body: (1, body[:1]) for body in fitting} == a.replies
    assert 0 == a.endpoint.peers[b.address].queue.waiting_bytes
    assert [] == a.failed


def test_a_message_too_large_for_a_known_session_is_refused_at_once_and_ends_nothing() -> None:
    world = World(1)
    a, b = world.host(1), world.host(2, limits=SMALL)
    a.send(b.address, b"first")
    assert world.run(5, until=lambda: a.settled == [b"first"])
    session = a.endpoint.peers[b.address].session

    with pytest.raises(MessageTooLarge, match="2001 bytes, at most 2000"):
        a.send(b.address, bytes(2001))
    with pytest.raises(MessageTooLarge, match="2001 bytes, at most 2000"):
        a.endpoint.send_run(b.address, [b"x", bytes(2001)], [1, 2], world.now)
    a.send(b.address, b"second")

    assert world.run(5, until=lambda: a.settled == [b"first", b"second"])
    assert session is a.endpoint.peers[b.address].session


def test_what_was_put_back_and_is_too_large_for_the_next_session_fails_alone() -> None:
    """The other side comes back and takes less: each answer still finds its message."""
    world = World(1)
    a, b = world.host(1), world.host(2)
    b.handler = lambda body: body[:1]
    b.delay_handling = 50.0
    bodies = [bytes([48 + index]) * (3000 if index in (1, 4) else 30) for index in range(7)]
    for body in bodies[:3]:
        a.send(b.address, body)
    world.run(1)
    for body in bodies[3:]:
        a.send(b.address, body)
    b.restart(SMALL)
    b.delay_handling = 0.0

    assert world.run(100, until=lambda: len(a.replies) == 5)

    assert [bodies[1], bodies[4]] == [token for token, _, _ in a.too_large]
    b.restart()  # without limits of its own again
    a.send(b.address, b"and one more")
    assert world.run(100, until=lambda: b"and one more" in a.replies)
    a.send(b.address, bytes(3000))
    assert world.run(10, until=lambda: bytes(3000) in a.replies)


@pytest.mark.parametrize(("who", "seconds"), [("sender", 5.0), ("sender", 300.0), ("peer", 300.0)])
@pytest.mark.parametrize("seed", [1, 2])
def test_a_side_that_stood_still_does_not_poison_the_round_trip(
    who: str, seconds: float, seed: int
) -> None:
    world = World(seed)
    world.default = Path(delay=0.02)
    a, b = pair(world)
    feed(world, a, b, 100, per_turn=5, every=0.1)
    assert world.run(20, until=lambda: len(a.settled) == 100)
    for number in range(100):
        a.send(b.address, b"+%d" % number + bytes(1000))
    a.turn()
    world.run(0.03)  # some have arrived, and no answer yet
    session = a.endpoint.peers[b.address].session
    assert session is not None
    trip = session.flight.recovery.round_trip
    (a if who == "sender" else b).stand_still(seconds)
    world.run(seconds - 0.01)
    worst = (0.0, 0.0)
    for _ in range(500):
        world.run(0.01)
        worst = max(worst, (trip.smoothed, trip.timeout))

    assert worst[0] < 0.2
    assert worst[1] < 1.5
    assert world.run(20, until=lambda: len(a.settled) == 200)
    assert len(set(b.handled)) == len(b.handled)


def test_A7_answers_find_their_messages_after_others_that_waited_before_them_have_failed() -> None:
    world = World(1)
    a = world.host(1, patience=3.0, retries=3)
    b = world.host(2, limits=DatagramLimits(window_messages=6))
    b.handler = lambda body: body[:3]
    a.send(b.address, b"first")
    assert world.run(5, until=lambda: b"first" in a.replies)
    world.default = Path(down=True)
    bodies = [b"%03d" % number + bytes(1000) for number in range(20)]
    for body in bodies:
        a.send(b.address, body)
    assert world.run(60, until=lambda: bool(a.failed))
    session = a.endpoint.peers[b.address].session
    assert session is not None
    assert session.sending.open  # these were not retried as often, and go on
    failed = a.failed[0][1]
    assert bodies[-1] in failed  # it waited, and was never sent

    world.default = Path()
    more = [b"%03d" % number + bytes(1000) for number in range(20, 25)]
    for body in more:
        a.send(b.address, body)

    def settled() -> int:
        return len(a.replies) + sum(len(tokens) for _, tokens, _ in a.failed)

    assert world.run(200, until=lambda: settled() == 26)
    assert set(more) <= set(a.replies)
    assert all(token[:3] == reply for token, (_, reply) in a.replies.items())  # type: ignore[index]  # bytes here
