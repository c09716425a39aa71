"""The faulty network of the tests: reproducible, honest about what TCP promises, and no better."""

from __future__ import annotations

import itertools

import pytest

from msgservice.testing.network import CALM, Faults, FaultyPair, FaultyWorld, lossless
from tests.kit.channels import Recorder

SEEDS = range(40)


class Chatter(Recorder):
    """Sends `NAME-CONNECTION-NUMBER`, one each second, while its connection stands."""

    def __init__(self, world: FaultyWorld, name: str, connection: int) -> None:
        super().__init__()
        self.sent: list[bytes] = []
        self._world = world
        self._prefix = f"{name}-{connection}"
        self.on_opened = lambda channel: self._say()

    def _say(self) -> None:
        if not self.is_lost and len(self.sent) < 50:
            for _ in range(self._world.random.randint(0, 3)):
                self.sent.append(f"{self._prefix}-{len(self.sent)}".encode())
                self.send(self.sent[-1])
            self._world.clock.callLater(0.3, self._say)


class Chat:
    def __init__(self, seed: int, faults: Faults | None = None) -> None:
        self.world = FaultyWorld(seed, faults=faults)
        self.left: list[Chatter] = []
        self.right: list[Chatter] = []
        self.pair: FaultyPair = self.world.keep_connected(
            lambda: self._make(self.left, "left"), lambda: self._make(self.right, "right")
        )

    def _make(self, side: list[Chatter], name: str) -> Chatter:
        side.append(Chatter(self.world, name, len(side)))
        return side[-1]


@pytest.mark.parametrize("seed", SEEDS)
def test_what_arrives_is_a_beginning_of_what_was_sent(seed: int) -> None:
    chat = Chat(seed)
    chat.world.run(120)
    for left, right in zip(chat.left, chat.right, strict=True):
        assert right.frames == left.sent[: len(right.frames)]
        assert left.frames == right.sent[: len(left.frames)]


@pytest.mark.parametrize("seed", SEEDS)
def test_every_user_is_told_of_beginning_and_end_once(seed: int) -> None:
    chat = Chat(seed)
    chat.world.run(120)
    chat.pair.stop()
    chat.pair.cut()
    chat.world.run(60)
    for user in [*chat.left, *chat.right]:
        assert user.names()[0] == "opened"
        assert user.names()[-1] == "lost"
        assert user.names().count("opened") == user.names().count("lost") == 1


@pytest.mark.parametrize("seed", SEEDS)
def test_after_healing_everything_of_the_last_connection_arrives(seed: int) -> None:
    chat = Chat(seed)
    chat.world.run(60)
    chat.world.heal()
    chat.world.run(120)
    assert not chat.left[-1].is_lost
    assert chat.left[-1].sent == chat.right[-1].frames
    assert chat.right[-1].sent == chat.left[-1].frames


def test_one_seed_is_one_history() -> None:
    def story(seed: int) -> list[str]:
        chat = Chat(seed)
        chat.world.run(200)
        return chat.world.story

    assert story(3) == story(3)
    assert story(3) != story(4)


def test_the_faults_do_happen() -> None:
    stories = []
    for seed in SEEDS:
        chat = Chat(seed)
        chat.world.run(120)
        stories += chat.world.story
    told = "\n".join(stories)
    assert "nothing reaches" in told
    assert " cut, [0, " in told  # all was lost
    assert any(f" cut, [{n}, " in told for n in range(1, 9))  # a part was


def test_a_dialler_may_be_back_before_the_other_side_has_missed_it() -> None:
    overlaps = 0
    for seed in SEEDS:
        chat = Chat(seed)
        chat.world.run(120)
        lines = [line.split(maxsplit=1)[1] for line in chat.world.story]
        for older, newer in itertools.pairwise(range(1, chat.pair.dialled + 1)):
            ends = [n for n, line in enumerate(lines) if line.startswith(f"link {older}: faulty")]
            overlaps += len(ends) == 2 and ends[1] > lines.index(f"link {newer} stands")
    assert overlaps > 0


def test_calm_weather_loses_nothing() -> None:
    chat = Chat(1, CALM)
    chat.world.run(120)
    assert chat.pair.dialled == 1
    assert chat.left[0].sent == chat.right[0].frames


def test_weather_without_cuts_loses_nothing_either() -> None:
    chat = Chat(1, lossless(Faults()))
    chat.world.run(300)
    assert chat.pair.dialled == 1
    assert chat.left[0].sent == chat.right[0].frames


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_side_that_crashes_hears_nothing_more_and_the_other_learns_of_it(side: str) -> None:
    chat = Chat(5, CALM)
    chat.world.run(5)
    crashed, other = (chat.left, chat.right) if side == "left" else (chat.right, chat.left)
    already = list(crashed[0].events)
    if side == "left":
        chat.pair.crash_left()
    else:
        chat.pair.crash_right()
    chat.world.run(5)
    assert already == crashed[0].events
    assert other[0].is_lost
    assert chat.pair.dialled == 2


def test_a_condition_that_does_not_come_fails_with_the_seed() -> None:
    world = FaultyWorld(17)
    with pytest.raises(AssertionError, match="seed 17"):
        world.run_until(lambda: False, seconds_max=10)


def test_a_user_that_raises_fails_the_run() -> None:
    def boom(channel: object) -> None:
        raise RuntimeError("a fault of the user")

    world = FaultyWorld(1)
    user = Recorder()
    user.on_opened = boom
    world.connect(user, Recorder())
    with pytest.raises(RuntimeError, match="a fault of the user"):
        world.run(1)
