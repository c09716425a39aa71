"""Plays of attack on acknowledged UDP, written by bytes; `datagram_stage` says what must be so.

An input is: who attacks and how the hosts are set up (one byte), the scene that the play begins
with (one byte), then acts until its end. A scene brings target and friend into one state of a
session; the acts send, lose, repeat and forge datagrams from there.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

from msgservice.core.datagram import wire
from tests.fuzz.choices import Choices
from tests.fuzz.datagram_stage import FRIEND, HEALTHY, TARGET, Held, Stage
from tests.simulation.datagram_paths import Address, Host

ACTS_MAX = 30
WAITS = (0.001, 0.03, 0.3, 1.6, 5.0, 31.0, 130.0, 700.0)
SIZES = (0, 1, 2, 3, 4, 30, 200, 600, 700, 1500, 5900)
KEYED, INSIDER, ORDERED, PATIENT = 1, 2, 4, 8


def run(data: bytes) -> None:
    """Play one play, and check what must be so after any."""
    choices = Choices(data)
    setting = choices.byte()
    stage = Stage(
        keyed=bool(setting & KEYED),
        insider=bool(setting & INSIDER),
        ordered=bool(setting & ORDERED),
        patience=4.0 if setting & PATIENT else None,
    )
    stage.send(stage.healthy, stage.target, 1)
    stage.pass_all()
    choices.of(SCENES)(stage)
    for _ in range(ACTS_MAX):
        if not choices.left:
            break
        choices.of(ACTS)(stage, choices)
    stage.finish()


# --- scenes ---------------------------------------------------------------------------------------


def strangers(stage: Stage) -> None:
    """Target and friend do not know each other."""


def target_says_hello(stage: Stage) -> None:
    """The target has begun a handshake."""
    stage.send(stage.target, stage.friend, 30)


def target_has_a_cookie(stage: Stage) -> None:
    """The target has shown its cookie."""
    stage.send(stage.target, stage.friend, 30)
    stage.pass_on()
    stage.pass_on()


def friend_gets_a_cookie(stage: Stage) -> None:
    """The friend has begun, and the target has answered without keeping anything."""
    stage.send(stage.friend, stage.target, 30)
    stage.pass_on()


def target_has_opened(stage: Stage) -> None:
    """The target has made a session; the friend does not know yet."""
    friend_gets_a_cookie(stage)
    stage.pass_on()
    stage.pass_on()


def friend_began(stage: Stage) -> None:
    """A session that the friend began; all was said."""
    stage.send(stage.friend, stage.target, 30)
    stage.pass_all()


def target_began(stage: Stage) -> None:
    """A session that the target began; all was said."""
    stage.send(stage.target, stage.friend, 30)
    stage.pass_all()


def both_begin(stage: Stage) -> None:
    """Two handshakes at once."""
    stage.send(stage.target, stage.friend, 30)
    stage.send(stage.friend, stage.target, 30)
    stage.pass_on()
    stage.pass_on()


def in_the_middle(stage: Stage) -> None:
    """Messages, parts of large ones, replies and acknowledgements are under way both ways."""
    stage.target.delay_handling = 2.0
    for source, to in ((stage.friend, stage.target), (stage.target, stage.friend)):
        for size in (1, 2, 3, 2600, 4, 1700):
            stage.send(source, to, size)
    for index in (0, 0, 1, 0, 2, 0, 1, 1):
        if index < len(stage.wire):
            stage.pass_on(index)


def busy_after_friend(stage: Stage) -> None:
    """The friend began, and much is under way."""
    friend_began(stage)
    in_the_middle(stage)


def busy_after_target(stage: Stage) -> None:
    """The target began, and much is under way."""
    target_began(stage)
    in_the_middle(stage)


def friend_comes_back(stage: Stage) -> None:
    """The friend has lost its state and opened another session, next to the busy one."""
    friend_began(stage)
    in_the_middle(stage)
    stage.restart_friend()
    stage.wire.clear()
    stage.send(stage.friend, stage.target, 30)
    stage.pass_on()
    stage.pass_on()
    stage.pass_on()


def target_comes_back(stage: Stage) -> None:
    """The target has lost its state; the friend does not know."""
    friend_began(stage)
    in_the_middle(stage)
    stage.restart_target()


SCENES: tuple[Callable[[Stage], None], ...] = (
    strangers,
    target_says_hello,
    target_has_a_cookie,
    friend_gets_a_cookie,
    target_has_opened,
    friend_began,
    target_began,
    both_begin,
    busy_after_friend,
    busy_after_target,
    friend_comes_back,
    target_comes_back,
)


# --- acts -----------------------------------------------------------------------------------------


def pass_on(stage: Stage, choices: Choices) -> None:
    """Some datagrams arrive, not always the first."""
    for _ in range(1 + choices.below(8)):
        if stage.wire:
            stage.pass_on(min(choices.below(3), len(stage.wire) - 1))


def lose(stage: Stage, choices: Choices) -> None:
    """Some datagrams are lost."""
    for _ in range(1 + choices.below(4)):
        if stage.wire:
            del stage.wire[choices.below(len(stage.wire))]


def wait(stage: Stage, choices: Choices) -> None:
    """Time passes."""
    stage.wait(choices.of(WAITS))


def send(stage: Stage, choices: Choices) -> None:
    """A host sends messages."""
    pairs = (
        (stage.friend, stage.target),
        (stage.target, stage.friend),
        (stage.healthy, stage.target),
        (stage.target, stage.healthy),
    )
    source, to = choices.of(pairs)
    for _ in range(1 + choices.below(6)):
        stage.send(source, to, choices.of(SIZES))


def slow_down(stage: Stage, choices: Choices) -> None:
    """A handler takes its time from now on."""
    choices.of(stage.hosts).delay_handling = choices.of((0.0, 0.1, 3.0))


def come_back(stage: Stage, choices: Choices) -> None:
    """The friend loses its state."""
    stage.restart_friend()


def leave(stage: Stage, choices: Choices) -> None:
    """The friend closes its session; what it had not settled is its loss."""
    stage.friend_restarted = True
    stage.friend.endpoint.close(TARGET, stage.world.now)
    stage.friend.turn()


def repeat(stage: Stage, choices: Choices) -> None:
    """Datagrams that were seen arrive again, from where they came or from elsewhere."""
    for _ in range(1 + choices.below(4)):
        if stage.seen:
            held = stage.seen[_index(choices, len(stage.seen))]
            to, source = victim(stage, choices, held)
            stage.inject(held.datagram, source, to)


def echo(stage: Stage, choices: Choices) -> None:
    """What was answered to a stranger arrives at others, as if it were meant for them."""
    if stage.echoes:
        held = stage.echoes[_index(choices, len(stage.echoes))]
        to, source = choices.of(((stage.friend, TARGET), (stage.target, FRIEND)))
        stage.inject(held.datagram, source, to)


def ask_for_an_echo(stage: Stage, choices: Choices) -> None:
    """A datagram that arrived comes from elsewhere; the answer is sent on to who said it."""
    if not stage.arrived:
        return
    held = stage.arrived[_index(choices, len(stage.arrived))]
    before = len(stage.echoes)
    stage.inject(held.datagram, stranger(choices), stage.world.hosts[held.to])
    for answer in stage.echoes[before:]:
        stage.inject(answer.datagram, held.to, stage.world.hosts[held.source])


def forge(stage: Stage, choices: Choices) -> None:
    """A datagram that was seen arrives changed; an insider seals it again."""
    if not stage.seen:
        return
    held = stage.seen[_index(choices, len(stage.seen))]
    datagram = held.datagram
    body = stage.opened(datagram) if stage.insider and choices.byte() % 4 else None
    if body is not None:
        header = changed_header(choices, datagram[: wire.HEADER_BYTES])
        forged = stage.sealed(header, changed(stage, choices, body))
        stage.inject(forged, FRIEND, stage.target)
        return
    to, source = victim(stage, choices, held)
    stage.inject(changed(stage, choices, datagram), source, to)


def raw(stage: Stage, choices: Choices) -> None:
    """Any bytes arrive, alone or as a train."""
    segment = choices.byte() * 3
    source = choices.of((FRIEND, HEALTHY, stranger(choices)))
    stage.inject(choices.take(choices.below(1200)), source, stage.target, segment)


def train(stage: Stage, choices: Choices) -> None:
    """Several datagrams that were seen arrive in one read."""
    if stage.seen:
        first = stage.seen[_index(choices, len(stage.seen))]
        parts = [first.datagram]
        parts += [
            stage.seen[_index(choices, len(stage.seen))].datagram
            for _ in range(1 + choices.below(5))
        ]
        to, source = victim(stage, choices, first)
        stage.inject(b"".join(parts), source, to, len(first.datagram))


def hello(stage: Stage, choices: Choices) -> None:
    """A well-formed H comes, from the friend's address if it is one who can seal it."""
    terms = wire.TERMS.pack(
        choices.take(16).ljust(16, b"\0"),
        choices.number(),
        choices.number(),
        choices.number() & 0xFFFFFFFF,
        choices.number() & 0xFFFFFFFF,
    )
    identifier = choices.number(_identifiers(stage))
    key_id = choices.of((1, 2, 3, 0)) if stage.keyed else choices.of((0, 0, 1))
    cookie = wire.NO_COOKIE
    if choices.byte() % 2:
        cookies = [h for h in stage.seen if h.datagram[0] == wire.COOKIE and h.to == FRIEND]
        body = stage.opened(cookies[-1].datagram) if cookies else None
        cookie = body or wire.NO_COOKIE
        if body is not None and choices.byte() % 2:
            identifier = wire.HEADER.unpack_from(cookies[-1].datagram)[4]
    header = wire.HEADER.pack(
        wire.HELLO, wire.VERSION, key_id, choices.below(2), identifier, choices.number()
    )
    known = stage.keys.handshake_seal(key_id, wire.HELLO)
    if stage.insider and known is not None:
        # Whose cookie it is does not matter: it serves one address and one session.
        source = choices.of((FRIEND, stranger(choices)))
        stage.inject(known.close(header, terms + cookie), source, stage.target)
    else:
        datagram = wire.ChecksumSeal().close(header, terms + cookie)
        stage.inject(datagram, stranger(choices), stage.target)


def packet(stage: Stage, choices: Choices) -> None:
    """An insider seals a packet of blocks with anything in them."""
    session = stage.session_of_friend()
    if session is None or not stage.insider:
        raw(stage, choices)
        return
    letter = choices.of(b"WA")
    number = choices.number((session.flight.recovery.next_number, 2**32, 2**33))
    header = wire.HEADER.pack(
        letter, wire.VERSION, session.key_id, session.role, session.identifier, number
    )
    parts = [block(stage, choices) for _ in range(1 + choices.below(6))]
    stage.inject(stage.sealed(header, b"".join(parts)[:1300]), FRIEND, stage.target)


def reset(stage: Stage, choices: Choices) -> None:
    """An insider resets a session for a packet that may be in flight."""
    if not stage.insider:
        raw(stage, choices)
        return
    header = wire.HEADER.pack(
        wire.RESET,
        wire.VERSION,
        stage.keys.current,
        choices.below(2),
        choices.number(_identifiers(stage)),
        choices.number(),
    )
    body = wire.RESET_BODY.pack(choices.number(_in_flight(stage)))
    stage.inject(stage.sealed(header, body), FRIEND, stage.target)


ACTS: tuple[Callable[[Stage, Choices], None], ...] = (
    pass_on,
    lose,
    wait,
    send,
    slow_down,
    come_back,
    leave,
    repeat,
    echo,
    ask_for_an_echo,
    forge,
    raw,
    train,
    hello,
    packet,
    reset,
    pass_on,
    forge,
    packet,
)


# --- parts of acts --------------------------------------------------------------------------------


def _index(choices: Choices, count: int) -> int:
    """A place in a list, near its end more often: what was said last matters most."""
    value = choices.byte()
    return count - 1 - value % min(count, 16) if value < 192 else (value - 192) % count


def stranger(choices: Choices) -> Address:
    """An address that never showed that it is one."""
    return (f"127.0.{choices.below(3)}.9", 40_000 + choices.below(4))


def victim(stage: Stage, choices: Choices, held: Held) -> tuple[Host, Address]:
    """Whom a datagram that was seen is sent to, and from which address it seems to come.

    Not from a healthy address that did not say it, where a checksum is all that protects: that is
    a lie which only a key can find out.
    """
    kind = choices.below(8)
    to, source = held.to, held.source
    if kind == 6:
        to, source = source, to
    elif kind == 7 or HEALTHY in (to, source):
        if kind >= 4:
            source = stranger(choices)
    elif kind == 5:
        source = FRIEND if held.to == TARGET else TARGET
    if stage.insider and to == FRIEND:
        to, source = TARGET, FRIEND
    return stage.world.hosts[to], source


def _identifiers(stage: Stage) -> list[int]:
    peer = stage.target.endpoint.peers.get(FRIEND)
    if peer is None:
        return []
    known = [s.identifier for s in (peer.session, peer.candidate) if s is not None]
    return known + ([peer.opening.identifier] if peer.opening is not None else [])


def _in_flight(stage: Stage) -> list[int]:
    peer = stage.target.endpoint.peers.get(FRIEND)
    return list(peer.session.flight.recovery.in_flight) if peer is not None and peer.session else []


def changed(stage: Stage, choices: Choices, data: bytes) -> bytes:
    """Return bytes cut, flipped, spliced or grown, up to four times."""
    for _ in range(1 + choices.below(4)):
        place = choices.below(len(data) + 1) if data else 0
        kind = choices.below(7)
        if kind == 0:
            data = data[:place]
        elif kind == 1:
            data = data[:place] + bytes([data[place] ^ 1 << choices.below(8)]) + data[place + 1 :] \
                if place < len(data) else data  # fmt: skip
        elif kind == 2:
            data = data[:place] + bytes([choices.byte()]) + data[place + 1 :]
        elif kind == 3:
            other = stage.seen[_index(choices, len(stage.seen))].datagram
            data = data[:place] + other[choices.below(len(other)) :]
        elif kind == 4:
            data += choices.take(choices.below(40))
        elif kind == 5:
            data = data[:place] + struct.pack("!Q", choices.number()) + data[place + 8 :]
        else:
            data = data[:place] + data[choices.below(len(data) + 1) :]
    return data[:2000]


def changed_header(choices: Choices, header: bytes) -> bytes:
    """Return a header with one field changed, or none; with a new packet number mostly."""
    fields = list(wire.HEADER.unpack(header))
    kind = choices.below(10)
    if kind < 6:
        bits = 64 if kind > 3 else 8
        fields[kind] = choices.number((fields[kind],)) % 2**bits
    elif kind < 9:
        fields[5] = min(fields[5] + 1 + choices.below(40), 2**64 - 1)
    return wire.HEADER.pack(*fields)


def block(stage: Stage, choices: Choices) -> bytes:
    """Return one block of a packet, with anything in its fields."""
    session = stage.session_of_friend()
    assert session is not None
    nonces = (session.sending.next_nonce, session.receiving.next_nonce, 24, 48)
    kind = choices.below(11)
    if kind == 0:
        bodies = [bytes(choices.of(SIZES) % 700) for _ in range(1 + choices.below(30))]
        return wire.encode_run(choices.number(nonces), bodies)
    if kind == 1:
        count = choices.below(40)
        return wire.RUN_HEAD.pack(wire.RUN, count, choices.number(nonces)) + choices.take(count)
    if kind in (2, 3):
        nonce, status = choices.number(nonces), choices.below(4)
        total = choices.of((100, 1000, 3000, 6000, choices.number() & 0xFFFFFFFF))
        offset = choices.of((0, 1, 50, 500, 550, 1100, choices.number() & 0xFFFFFFFF))
        piece = bytes(choices.of((0, 1, 49, 50, 500, 550)))
        length = len(piece) if choices.byte() % 8 else choices.below(65_536)
        head = wire.FRAGMENT_HEAD.pack(wire.FRAGMENT, status, nonce, total, offset, length)
        return head + piece
    if kind == 4:
        ranges = [(choices.number(nonces), choices.number(nonces)) for _ in range(choices.below(4))]
        return wire.encode_handled(ranges)
    if kind == 5:
        data = bytes(choices.of(SIZES) % 700)
        length = len(data) if choices.byte() % 8 else choices.below(65_536)
        nonce = choices.number(nonces)
        return wire.REPLY_HEAD.pack(wire.REPLY, choices.below(4), nonce, length) + data
    if kind == 6:
        further = choices.below(5)
        near = (1, *_in_flight(stage)[-8:])
        head = wire.RECEIVED_HEAD.pack(
            wire.RECEIVED,
            further,
            choices.number() & 0xFFFFFFFF,
            choices.number(near),
            choices.number() & 0xFFFFFFFF,
        )
        gaps = [(choices.number() & 0xFFFFFFFF, choices.number() & 0xFFFFFFFF)
                for _ in range(further)]  # fmt: skip
        return head + b"".join([wire.GAP.pack(*gap) for gap in gaps])
    if kind == 7:
        return wire.CREDIT_BLOCK.pack(wire.CREDIT, choices.number(nonces), choices.number())
    if kind == 8:
        return wire.ASK_BLOCK.pack(wire.ASK, choices.number(nonces))
    if kind == 9:
        return bytes([wire.CLOSE])
    return choices.take(1 + choices.below(30))


# --- seeds ----------------------------------------------------------------------------------------


def seeds() -> Iterator[bytes]:
    """Every scene with every act, every block from an insider, the datagrams of a conversation."""
    for scene in range(len(SCENES)):
        for setting in range(16):
            rest = b"".join([bytes([act, 7 * act + scene, 3, 1, 200, 2]) for act in range(19)])
            yield bytes([setting, scene]) + rest
    for keyed in (0, KEYED):
        for kind in range(11):
            # In the packet that the friend would send next, with the nonce that would be next.
            act = bytes([ACTS.index(packet), 0, 129, 4, 0, kind, 128, 4, 1, 2, 1])
            yield bytes([keyed | INSIDER, SCENES.index(busy_after_friend)]) + act * 3
    for keyed in (False, True):
        stage = Stage(keyed=keyed, insider=False)
        busy_after_friend(stage)
        stage.pass_all()
        for held in stage.seen:
            size = len(held.datagram)
            act = bytes([ACTS.index(raw), 0, 0, 0, 0]) + size.to_bytes(2, "big")
            yield bytes([KEYED * keyed, SCENES.index(busy_after_friend)]) + act + held.datagram
