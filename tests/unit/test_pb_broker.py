"""The broker of a connection, with strangers and others that break its rules at the other end."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import LogEvent
from twisted.python.failure import Failure
from twisted.spread import pb

from msgservice.errors import MsgServiceError
from msgservice.limits import Limits
from msgservice.transport.owners import Nobody
from msgservice.transport.pb.broker import State
from msgservice.transport.pb.channel import CALL_BYTES, HELD_BYTES_MAX, PbChannel, Root
from msgservice.transport.pb.expressions import Expressions, encode
from msgservice.transport.pb.jellied import told
from msgservice.transport.tcp.pacing import Turn
from tests.kit.channels import Recorder

LIMITS = Limits()
FAR = [b"remote", 1]


class Wire(StringTransport):
    """The transport of a listener's end; what it writes is for `Peer.heard`."""

    def abortConnection(self) -> None:
        self.disconnecting = True
        self.aborting = True

    aborting = False


class Peer:
    """The raw other side of a channel that was accepted."""

    def __init__(self, limits: Limits = LIMITS, make_root: Any = Root) -> None:
        self.clock = Clock()
        self.user = Recorder()
        self.wire = Wire()
        self.channel = PbChannel(
            reactor=self.clock,
            make_user=lambda: self.user,
            limits=limits,
            owner=Nobody(),
            turn=Turn(self.clock),
            make_root=make_root,
        )
        self.channel.makeConnection(self.wire)
        self._decoder = Expressions(lambda: 100 * 1024 * 1024)
        self.say(b"pb")
        self.say([b"version", 6])
        self.heard()

    def say(self, expression: Any) -> None:
        self.feed(encode(expression))

    def feed(self, data: bytes) -> None:
        self.channel.dataReceived(data)
        self.clock.advance(0)

    def heard(self) -> list[Any]:
        self._decoder.feed(self.wire.value())
        self.wire.clear()
        return list(self._decoder.take())

    def call(self, target: Any, name: bytes, *args: Any, kw: Any = None, number: int = 7) -> None:
        named = [b"dictionary"] if kw is None else kw
        self.say([b"message", number, target, name, 1, [b"tuple", *args], named])

    def open(self) -> int:
        """Open the channel, and return the number of the end that is to be called."""
        self.call(b"root", b"open", FAR)
        ((_, _, (_, end)),) = self.heard()
        return int(end)

    @property
    def is_ended(self) -> bool:
        return self.channel.state is not State.OPEN


def sentence(error: Any) -> str:
    """Return what a failure says that has crossed."""
    command, _, (_, state) = error
    assert command == b"error"
    said = {key[1] if isinstance(key, list) else key: value for key, value in state[1:]}
    value = said[b"value"]
    return str((value[1] if isinstance(value, list) else value).decode())


def test_a_peer_of_the_other_kind_opens_the_channel_and_says_frames() -> None:
    peer = Peer()
    end = peer.open()
    peer.call(end, b"frames", [b"list", b"a", b"b"])
    assert peer.user.frames == [b"a", b"b"]
    assert [[b"answer", 7, [b"None"]]] == peer.heard()


def test_a_stranger_who_says_little_again_and_again_ends_within_the_limit() -> None:
    peer = Peer()
    for _ in range(100):
        peer.call(b"root", b"nothing")
    assert peer.is_ended
    assert peer.channel._expressions.spent <= LIMITS.unauthenticated_bytes + 4096
    assert len(peer.wire.value()) < 200 * 1024


@pytest.mark.parametrize("piece", [b"\x00\x81", b"\x00\x80", b"\x00\x82", b"\x7f\x82" + bytes(127)])
def test_a_list_without_end_from_a_stranger_ends_its_connection(piece: bytes) -> None:
    peer = Peer()
    peer.feed(bytes((0x7F, 0x07, 0x80)))
    for _ in range(1100):
        peer.feed(piece)
        if peer.is_ended:
            break
    assert peer.is_ended


def test_who_is_known_has_no_limit_in_all() -> None:
    peer = Peer()
    end = peer.open()
    peer.channel.established()
    for _ in range(50):
        peer.call(end, b"frames", [b"list", bytes(10_000)])
    assert not peer.is_ended
    assert len(peer.user.frames) == 50


WRONG = {
    "no command": [b"hello"],
    "not a list": b"hello",
    "an empty list": [],
    "too few arguments": [b"message", 1],
    "an answer to nothing": [b"answer", 12, [b"None"]],
    "an error of nothing": [b"error", 12, [b"twisted.spread.pb.CopyableFailure", [b"dictionary"]]],
    "an error that is none": [b"error", 12, 3],
    "what is not there let go": [b"decref", 99],
    "the root let go": [b"decref", b"root"],
    "what is not cached let go": [b"decache", 1],
    "a message to nothing": [b"cachemessage", 1, 1, b"x", 0, [b"tuple"], [b"dictionary"]],
    "a method that is a list": [b"message", 1, b"root", [b"x"], 1, [b"tuple"], [b"dictionary"]],
    "an object that is a list": [b"message", 1, [b"x"], b"x", 1, [b"tuple"], [b"dictionary"]],
    "another version": [b"version", 5],
    "didNotUnderstand": [b"didNotUnderstand", b"x"],
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_what_breaks_the_rules_ends_the_connection_and_says_no_traceback(
    what: str, logged_failures: list[LogEvent]
) -> None:
    peer = Peer()
    peer.say(WRONG[what])
    assert peer.is_ended
    assert [] == logged_failures


class Other(pb.Copyable):
    """A class that is registered for Perspective Broker in this process, but not for this."""


class OtherCopy(pb.RemoteCopy):
    """What it becomes."""


pb.setUnjellyableForClass(Other, OtherCopy)

REFUSED = {
    "a class": [b"class", b"os.system"],
    "an instance of any class": [b"subprocess.Popen", [b"dictionary"]],
    "a registered class": [f"{__name__}.Other".encode(), [b"dictionary"]],
    "a function": [b"function", b"os.system"],
    "a module": [b"module", b"os"],
    "a failure": [b"twisted.spread.pb.CopyableFailure", [b"dictionary"]],
    "what is cached": [b"cached", 1],
    "what is cached there": [b"lcache", 1],
    "a cycle": [b"reference", 1, [b"list", [b"dereference", 1]]],
    "persistent": [b"persistent", b"x"],
    "an instance": [b"instance", [b"class", b"os.system"], [b"dictionary"]],
    "no tag": [[b"list"]],
    "nothing": [],
    "a dictionary of singles": [b"dictionary", [b"x"]],
    "a list as a key": [b"dictionary", [[b"list"], 1]],
    "deep within": [b"list", [b"dictionary", [b"a", [b"tuple", [b"class", b"os.system"]]]]],
    "a unicode without text": [b"unicode"],
    "a reference to a list": [b"remote", [b"list"]],
    "neither true nor false": [b"boolean", b"perhaps"],
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_a_value_of_another_type_is_an_error_for_the_caller_alone(
    what: str, logged_failures: list[LogEvent]
) -> None:
    peer = Peer()
    peer.call(b"root", b"open", REFUSED[what])
    (error,) = peer.heard()
    assert sentence(error)
    assert not peer.is_ended
    peer.open()
    assert [] == logged_failures


@pytest.mark.parametrize(
    ("target", "name", "args"),
    [
        (b"root", b"nothing", []),
        (b"root", b"open", []),
        (b"root", b"open", [1, 2]),
        (b"nobody", b"open", [FAR]),
        (99, b"open", [FAR]),
        (b"root", b"_channel", []),
        (b"root", b"\xff", []),
    ],
)
def test_a_call_of_what_is_not_there_is_an_error_for_the_caller(
    target: Any, name: bytes, args: list[Any], logged_failures: list[LogEvent]
) -> None:
    peer = Peer()
    peer.call(target, name, *args)
    (error,) = peer.heard()
    assert "is not there" in sentence(error) or "arguments" in sentence(error)
    assert not peer.is_ended
    assert [] == logged_failures


@pytest.mark.parametrize("named", [b"x", 5, [b"None"], [b"list"], [b"dictionary", [5, 5]]])
@pytest.mark.parametrize("target", [b"root", 1])
def test_named_arguments_that_are_none_are_an_error_for_the_caller_and_no_line_of_the_log(
    target: Any, named: Any, logged_failures: list[LogEvent]
) -> None:
    peer = Peer()
    peer.open()
    peer.call(target, b"open" if isinstance(target, bytes) else b"frames", [b"list"], kw=named)
    (error,) = peer.heard()
    assert "arguments" in sentence(error)
    assert not peer.is_ended
    assert [] == logged_failures


def slow_peer() -> tuple[Peer, list[int]]:
    """A peer of a root whose calls take four milliseconds each, and the calls."""
    called: list[int] = []

    class Slow(Root):
        def remote_slow(self, number: int) -> int:
            called.append(number)
            peer.clock.rightNow += 0.004
            return number

    peer = Peer(make_root=Slow)
    return peer, called


def test_calls_that_came_together_are_carried_out_in_several_turns_and_nothing_is_read() -> None:
    peer, called = slow_peer()
    calls = [
        encode([b"message", n, b"root", b"slow", 1, [b"tuple", n], [b"dictionary"]])
        for n in range(12)
    ]
    peer.channel.dataReceived(b"".join(calls[:10]))
    assert [0, 1, 2] == called  # ten milliseconds
    assert "paused" == peer.wire.producerState
    peer.channel.dataReceived(b"".join(calls[10:]))  # it was on its way
    assert [0, 1, 2] == called
    for _ in range(5):
        peer.clock.advance(0)
    assert list(range(12)) == called
    assert [[b"answer", n, n] for n in range(12)] == peer.heard()
    assert "producing" == peer.wire.producerState


def test_a_connection_that_ends_with_calls_behind_leaves_no_timer() -> None:
    peer, called = slow_peer()
    call = [b"message", 1, b"root", b"slow", 1, [b"tuple", 1], [b"dictionary"]]
    peer.channel.dataReceived(encode(call) * 10)
    peer.channel.connectionLost(Failure(ConnectionDone()))
    assert [] == peer.clock.getDelayedCalls()
    assert [1, 1, 1] == called


def test_what_is_uncached_is_not_let_go_a_second_time() -> None:
    peer = Peer()

    class Cache:
        broker: Any = peer.channel

    cache = Cache()
    peer.channel.cacheLocally(7, cache)
    peer.say([b"uncache", 7])
    assert cache.broker is None
    peer.say([b"uncache", 7])
    peer.say([b"uncache", [b"list"]])
    assert not peer.is_ended


def test_a_fault_of_ours_is_logged_here_and_says_nothing_there(
    logged_failures: list[LogEvent],
) -> None:
    class Faulty(Root):
        def remote_fails(self) -> None:
            raise RuntimeError("the secret is 17")

    peer = Peer(make_root=Faulty)
    peer.call(b"root", b"fails")
    (error,) = peer.heard()
    assert "secret" not in repr(error)
    assert b"RuntimeError" in repr(error).encode()
    assert 1 == len(logged_failures)
    logged_failures.clear()
    assert not peer.is_ended


def test_an_error_that_crossed_is_one_that_says_where() -> None:
    peer = Peer()
    asked = peer.channel.remoteForName("root").callRemote("anything")
    failed: list[Any] = []
    asked.addErrback(failed.append)
    peer.clock.advance(0)
    (call,) = peer.heard()
    peer.say([b"error", call[1], told(MsgServiceError("no such thing"))])
    assert ["MsgServiceError: no such thing"] == [str(one.value) for one in failed]
    assert "msgservice.errors.MsgServiceError" == failed[0].value.kind


FRAMES = {
    "no list": [b"dictionary"],
    "none": [b"list"],
    "text": [b"list", [b"unicode", b"x"]],
    "a number": [b"list", 1],
    "one too large for a stranger": [b"list", bytes(65 * 1024)],
}


@pytest.mark.parametrize("what", FRAMES)
def test_frames_that_are_none_end_the_connection_with_a_reason(what: str) -> None:
    peer = Peer()
    end = peer.open()
    peer.channel.identified()
    peer.call(end, b"frames", FRAMES[what])
    assert peer.is_ended
    assert "failed" in peer.user.names()
    assert not peer.user.frames


def test_a_second_channel_is_refused() -> None:
    peer = Peer()
    peer.open()
    peer.call(b"root", b"open", FAR)
    (error, *_) = peer.heard()
    assert "has its channel already" in sentence(error)


def test_frames_of_who_goes_on_though_nothing_is_answered_are_not_held_without_end() -> None:
    peer = Peer()
    end = peer.open()
    peer.channel.established()
    peer.channel.pause()
    for _ in range((HELD_BYTES_MAX + 1024 * 1024) // CALL_BYTES + 2):
        peer.call(end, b"frames", [b"list", bytes(CALL_BYTES)])
    assert peer.is_ended
    assert peer.user.frames == []


def test_what_was_held_is_handed_on_in_order_when_reading_goes_on_and_answered_then() -> None:
    peer = Peer()
    end = peer.open()
    peer.channel.pause()
    for number in (1, 2):
        peer.call(end, b"frames", [b"list", b"%d" % number], number=number)
    assert (peer.user.frames, peer.heard()) == ([], [])
    peer.channel.resume()
    peer.clock.advance(0)
    peer.clock.advance(0)
    assert peer.user.frames == [b"1", b"2"]
    assert [1, 2] == [answer[1] for answer in peer.heard()]


def test_parts_make_one_frame_with_what_comes_behind_them() -> None:
    peer = Peer()
    end = peer.open()
    peer.channel.established()
    peer.call(end, b"part", b"ab")
    peer.call(end, b"part", b"cd")
    peer.call(end, b"frames", [b"list", b"ef", b"gh"])
    assert peer.user.frames == [b"abcdef", b"gh"]


def test_parts_without_end_are_refused_at_the_limit_of_a_frame() -> None:
    peer = Peer()
    end = peer.open()
    peer.channel.established()
    for _ in range(LIMITS.frame_bytes // CALL_BYTES + 1):
        peer.call(end, b"part", bytes(CALL_BYTES))
    assert peer.is_ended


def test_a_part_whose_rest_does_not_come_ends_the_connection() -> None:
    peer = Peer()
    end = peer.open()
    peer.channel.established()
    peer.call(end, b"part", b"ab")
    for _ in range(40):
        peer.clock.advance(LIMITS.frame_timeout / 10)
    assert peer.is_ended
    assert "the rest of a frame" in str(peer.user.values("failed")[0])


def test_a_call_whose_rest_does_not_come_ends_the_connection() -> None:
    peer = Peer()
    peer.open()
    peer.channel.established()
    peer.feed(encode([b"version", 6])[:3])
    for _ in range(40):
        peer.clock.advance(LIMITS.frame_timeout / 10)
    assert peer.is_ended


def test_who_does_not_answer_frames_is_ended_when_the_deadline_is_over() -> None:
    peer = Peer()
    peer.open()
    peer.channel.established()
    peer.channel.send_now([b"x"])
    for _ in range(40):
        peer.clock.advance(LIMITS.write_timeout / 10)
    assert peer.wire.aborting


def test_a_stranger_who_says_nothing_more_is_ended_when_its_time_is_over() -> None:
    peer = Peer()
    peer.clock.advance(LIMITS.hello_timeout + 1)
    assert peer.wire.aborting


def test_a_side_sends_no_more_than_its_window_before_it_is_answered() -> None:
    peer = Peer()
    peer.open()
    peer.channel.established()
    for _ in range(20):
        peer.channel.send(bytes(CALL_BYTES // 2))
    peer.clock.advance(0)
    calls = peer.heard()
    assert len(calls) <= 4
    assert peer.user.values("writable") == [False]
    answered = len(calls)
    for call in calls:
        peer.say([b"answer", call[1], [b"None"]])
    peer.clock.advance(0)
    assert 0 < len(peer.heard()) <= answered
