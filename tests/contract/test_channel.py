"""What every `IChannel` keeps, whatever carries it: TCP, UDP, one process, the tests' own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from twisted.internet.protocol import Factory
from twisted.internet.task import Clock
from twisted.test.iosim import FakeTransport, connect
from zope.interface.verify import verifyObject

from msgservice.credentials import Credentials
from msgservice.errors import FrameTooLarge
from msgservice.interfaces import IChannel
from msgservice.limits import Limits
from msgservice.testing.network import CALM, FaultyWorld
from msgservice.testing.transport import Process
from msgservice.transport.owners import Nobody
from msgservice.transport.pb.channel import PbChannel
from msgservice.transport.tcp.channel import FrameProtocol
from msgservice.transport.tcp.pacing import Turn
from msgservice.transport.udp.bearer import UdpChannel
from msgservice.transport.udp.endpoint import UdpEndpoint
from msgservice.transport.udp.transport import UdpTransport
from tests.kit.channels import Recorder, connect_locally

LIMITS = Limits()


class Stage:
    """Two users, `left` and `right`, with a channel between; `settle` lets all happen."""

    def __init__(self, settle: Callable[[], object]) -> None:
        self.left, self.right = Recorder(), Recorder()
        self.settle = settle

    def send(self, *frames: bytes) -> None:
        for frame in frames:
            self.left.send(frame)

    @property
    def channel(self) -> IChannel:
        assert self.left.channel is not None
        return self.left.channel

    @property
    def far(self) -> IChannel:
        assert self.right.channel is not None
        return self.right.channel


Prepare = Callable[[Stage], None]
Maker = Callable[[Prepare], Stage]


def nothing(stage: Stage) -> None:
    """Prepare nothing."""


def over_tcp(prepare: Prepare = nothing) -> Stage:
    clock = Clock()
    stage = Stage(lambda: pump.flush())
    prepare(stage)

    def protocol(user: Recorder) -> FrameProtocol:
        return FrameProtocol(
            reactor=clock,
            make_user=lambda: user,
            limits=LIMITS,
            owner=Nobody(),
            turn=Turn(clock),
        )

    near, far = protocol(stage.left), protocol(stage.right)
    pump = connect(
        far, FakeTransport(far, isServer=True), near, FakeTransport(near, isServer=False),
        clock=clock,
    )  # fmt: skip
    return stage


def over_pb(prepare: Prepare = nothing) -> Stage:
    clock = Clock()
    stage = Stage(lambda: pump.flush())
    prepare(stage)

    def protocol(user: Recorder, *, is_dialled: bool) -> PbChannel:
        return PbChannel(
            reactor=clock,
            make_user=lambda: user,
            limits=LIMITS,
            owner=Nobody(),
            turn=Turn(clock),
            is_dialled=is_dialled,
        )

    near, far = protocol(stage.left, is_dialled=True), protocol(stage.right, is_dialled=False)
    pump = connect(
        far, FakeTransport(far, isServer=True), near, FakeTransport(near, isServer=False),
        clock=clock,
    )  # fmt: skip
    return stage


def inside_one_process(prepare: Prepare = nothing) -> Stage:
    clock = Clock()
    stage = Stage(lambda: clock.pump([0] * 20))
    prepare(stage)
    connect_locally(stage.left, stage.right, clock=clock, limits=LIMITS, name="node")
    return stage


def over_the_faulty_world(prepare: Prepare = nothing) -> Stage:
    world = FaultyWorld(1, faults=CALM, limits=LIMITS)
    stage = Stage(lambda: world.run(1))
    prepare(stage)
    world.connect(stage.left, stage.right)
    return stage


def over_udp(prepare: Prepare = nothing) -> Stage:
    world = FaultyWorld(1, faults=CALM, limits=LIMITS)
    stage = Stage(lambda: world.run(5))
    prepare(stage)
    rng, entropy = world.random.random, world.random.randbytes
    UdpTransport(rng=rng, entropy=entropy).listen(
        Process(world, "right").clock, "udp:7410", lambda: stage.right, LIMITS
    )
    endpoint = UdpEndpoint(
        Process(world, "left").clock, "udp:127.0.0.1:7410", LIMITS, rng=rng, entropy=entropy
    )
    endpoint.connect(Factory.forProtocol(lambda: UdpChannel(lambda: stage.left, LIMITS, Nobody())))
    return stage


MAKERS = [over_tcp, over_udp, over_pb, inside_one_process, over_the_faulty_world]


@pytest.fixture(params=MAKERS)
def stage(request: pytest.FixtureRequest) -> Stage:
    stage: Stage = request.param(nothing)
    stage.settle()
    return stage


def test_each_side_is_told_of_its_channel_first(stage: Stage) -> None:
    for user in (stage.left, stage.right):
        assert user.names() == ["opened"]
        assert verifyObject(IChannel, user.channel)
        assert user.channel is not None
        assert isinstance(user.channel.credentials, Credentials)


def test_a_channel_has_its_credentials_when_its_user_is_told_of_it() -> None:
    for make in MAKERS:
        seen: list[Credentials] = []

        def look(stage: Stage, seen: list[Credentials] = seen) -> None:
            for user in (stage.left, stage.right):
                user.on_opened = lambda channel: seen.append(channel.credentials)

        stage = make(look)
        stage.settle()
        here, there = stage.channel.credentials, stage.far.credentials
        assert seen in ([here, there], [there, here])


def test_frames_arrive_in_order(stage: Stage) -> None:
    stage.send(*(b"%d" % n for n in range(100)))
    stage.settle()
    stage.send(b"more")
    stage.settle()
    assert stage.right.frames == [*(b"%d" % n for n in range(100)), b"more"]


def test_frames_of_one_turn_arrive_together(stage: Stage) -> None:
    stage.send(b"a", b"b", b"c")
    stage.settle()
    assert stage.right.values("frames") == [[b"a", b"b", b"c"]]


def test_what_is_sent_now_comes_behind_what_was_queued(stage: Stage) -> None:
    stage.send(b"a", b"b")
    stage.channel.send_now([b"c", b"d"])
    stage.send(b"e")
    stage.settle()
    assert stage.right.frames == [b"a", b"b", b"c", b"d", b"e"]


def test_a_frame_that_is_too_large_leaves_those_before_it_queued(stage: Stage) -> None:
    with pytest.raises(FrameTooLarge):
        stage.channel.send_now([b"a", bytes(LIMITS.frame_bytes + 1), b"b"])
    stage.settle()
    assert stage.right.frames == [b"a"]


@pytest.mark.parametrize("make", MAKERS)
def test_frames_may_be_sent_as_soon_as_the_channel_is_opened(make: Maker) -> None:
    def prepare(stage: Stage) -> None:
        stage.left.on_opened = lambda channel: channel.send(b"hello")

    stage = make(prepare)
    stage.settle()
    assert stage.right.frames == [b"hello"]


def test_nobody_is_called_from_inside_send(stage: Stage) -> None:
    stage.left.channel_writable = stage.right.frames_received = pytest.fail  # type: ignore[assignment,method-assign]  # it must not happen
    for _ in range(40):
        stage.channel.send(bytes(LIMITS.frame_bytes))


def test_a_frame_too_large_is_refused_and_the_others_go(stage: Stage) -> None:
    stage.send(b"a")
    with pytest.raises(FrameTooLarge) as caught:
        stage.channel.send(bytes(LIMITS.frame_bytes + 1))
    stage.send(b"b")
    stage.settle()
    assert LIMITS.frame_bytes == caught.value.size_max
    assert stage.right.frames == [b"a", b"b"]


def test_a_frame_of_the_largest_size_goes_to_a_peer_that_knows_us(stage: Stage) -> None:
    stage.far.established()
    stage.send(bytes(LIMITS.frame_bytes))
    stage.settle()
    assert [LIMITS.frame_bytes] == [len(frame) for frame in stage.right.frames]


def test_established_may_be_said_twice(stage: Stage) -> None:
    for _ in range(2):
        stage.channel.established()
        stage.far.established()
    stage.send(b"a")
    stage.settle()
    assert stage.right.frames == [b"a"]


def test_close_lets_what_was_sent_arrive_and_ends_both_sides_once(stage: Stage) -> None:
    stage.send(b"last")
    stage.channel.close()
    stage.channel.close()
    stage.settle()
    assert stage.right.names() == ["opened", "frames", "lost"]
    assert stage.left.names() == ["opened", "lost"]
    assert stage.right.frames == [b"last"]


def test_nothing_is_received_after_close(stage: Stage) -> None:
    stage.right.send(b"late")
    stage.channel.close()
    stage.settle()
    assert stage.left.names() == ["opened", "lost"]


def test_abort_ends_both_sides_once(stage: Stage) -> None:
    stage.channel.abort()
    stage.channel.abort()
    stage.settle()
    assert stage.left.names() == stage.right.names() == ["opened", "lost"]


def test_the_end_is_never_told_from_inside_close_or_abort(stage: Stage) -> None:
    stage.channel.close()
    stage.channel.abort()
    assert stage.left.names() == stage.right.names() == ["opened"]


def test_what_is_done_after_the_end_does_nothing(stage: Stage) -> None:
    stage.channel.abort()
    stage.settle()
    for verb in (
        stage.channel.established,
        stage.channel.pause,
        stage.channel.resume,
        stage.channel.close,
        stage.channel.abort,
        lambda: stage.channel.send(b"late"),
    ):
        verb()
        stage.settle()
    assert stage.left.names() == stage.right.names() == ["opened", "lost"]


def test_the_user_may_end_the_channel_while_it_receives(stage: Stage) -> None:
    stage.right.on_frames = lambda frames: stage.far.abort()
    stage.send(b"a")
    stage.settle()
    assert stage.right.names() == ["opened", "frames", "lost"]
    assert stage.left.names() == ["opened", "lost"]
