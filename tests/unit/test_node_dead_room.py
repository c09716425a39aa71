"""`dead_bytes` and `dead_bytes_total` hold: what has no room is not dead, and waits (12).

Its receiver is paused, and each time that it is resumed without being mended it is paused again.
"""

from __future__ import annotations

import pytest
from twisted.internet.defer import Deferred

from msgservice.core.frames import BYE_PAUSED, Transfer
from msgservice.limits import Limits
from msgservice.message import Action
from msgservice.node import commits
from msgservice.records import DEAD_OVERHEAD, Appended, Group
from tests.kit.inline import by_append
from tests.kit.limits import for_operators
from tests.kit.nodes import NodeWorld, ScriptedPeer, state_of

LIMIT = 5_000
LETTER = 1_000 + 4 + DEAD_OVERHEAD + len("no")  # each message is an array of a body and its header
ALL_DIE = LIMIT // LETTER + 1


class Rejecting:
    """A receiver that rejects a flight of 20 messages, far more than its letters may take."""

    def __init__(self, order: str = "strict", dead_bytes: int = LIMIT) -> None:
        limits = Limits(dead_bytes=dead_bytes, max_attempts=1, keep_seconds=0.0, keep_bytes=0)
        self.order = order
        self.world = NodeWorld(limits)
        self.shop = self.world.peer("shop", status_from=1)
        self.billing = self.attach()
        self.other = self.world.peer("other", receive={"subjects": [">"]}, answering=True)

    def attach(self, incarnation: str = "r1") -> ScriptedPeer:
        receive = {"subjects": [">"], "order": self.order}
        return self.world.peer("billing", incarnation=incarnation, receive=receive)

    def send(self, *counts: int) -> None:
        sequence = 1
        for count in counts:
            self.shop.transfer(sequence, "a", [bytes(1_000)] * count)
            sequence += count
        self.world.settle()

    def reject(self, each: int) -> None:
        """Say of all that came that it is rejected, of so many messages at once."""
        for transfer in self.billing.take(Transfer):
            last = transfer.sequence + len(transfer.messages) // 1_000 - 1
            for first in range(transfer.sequence, last + 1, each):
                self.billing.nack(first, min(last, first + each - 1), Action.DEAD, 0, "no")
        self.world.settle(1)

    @property
    def size(self) -> int:
        return self.world.log.dead_bytes(1)

    def resume(self) -> None:
        assert self.shop.request("$node.receivers.resume", {"name": "billing"})[0]

    def check(self) -> None:
        """All that has no room still waits, in its place, and nobody else is touched."""
        assert LIMIT <= self.size < LIMIT + LETTER
        state = state_of(self.world, "billing")
        assert state.paused
        assert state.last_error.startswith("paused: its dead letters take")
        assert (state.settled, state.queued) == ({"dead": ALL_DIE}, 20 - ALL_DIE)
        assert state_of(self.world, "other").settled == {"acknowledged": 20}


@pytest.mark.parametrize("order", ["strict", "none"])
@pytest.mark.parametrize("batches", [(20,), (1,) * 20, (3, 17)])
@pytest.mark.parametrize("each", [1, 4, 20])
def test_12_a_flight_that_is_rejected_whole_takes_no_more_than_dead_bytes(
    order: str, batches: tuple[int, ...], each: int
) -> None:
    scene = Rejecting(order)
    scene.send(*batches)
    scene.reject(each)
    scene.check()
    for number in range(2):  # a third connection that is lost with it alone would be an attempt
        scene.resume()
        scene.billing = scene.attach(f"again-{number}")
        assert scene.billing.bodies()[:1] == [bytes(1_000)]
        scene.billing = scene.attach(f"mute-{number}")
        assert scene.billing.frames
        scene.reject(each)
        assert scene.billing.bye is not None
        assert scene.billing.bye[0] == BYE_PAUSED
        scene.check()


@pytest.mark.parametrize("order", ["strict", "none"])
def test_12_a_receiver_that_was_mended_gets_what_had_no_room_when_it_is_resumed(order: str) -> None:
    scene = Rejecting(order)
    scene.send(20)
    scene.reject(4)
    scene.resume()
    scene.billing = scene.attach("mended")
    scene.billing.answering = True
    for transfer in scene.billing.take(Transfer):
        scene.billing.ack(transfer)
    scene.world.settle(1)
    state = state_of(scene.world, "billing")
    rest = {"dead": ALL_DIE, "acknowledged": 20 - ALL_DIE}
    assert (state.settled, state.paused) == (rest, False)


@pytest.mark.parametrize("order", ["strict", "none"])
def test_12_a_message_without_attempts_left_waits_for_room_as_well(order: str) -> None:
    scene = Rejecting(order)
    scene.send(20)
    (transfer,) = scene.billing.take(Transfer)
    scene.billing.nack(transfer.sequence, transfer.sequence + 19, Action.RETRY, 0, "no")
    scene.world.settle(1)
    scene.check()


def test_12_a_receiver_that_dies_of_each_message_is_paused_when_there_is_no_room_for_it() -> None:
    scene = Rejecting()
    scene.send(20)
    scene.reject(20)
    scene.resume()
    for number in range(30):
        if state_of(scene.world, "billing").paused:
            break
        scene.attach(f"dies-{number}").connection.abort()
        scene.world.settle(1)
    scene.check()


def test_12_a_larger_dead_bytes_lets_the_rest_become_dead() -> None:
    scene = Rejecting()
    scene.send(20)
    scene.reject(20)
    scene.world.node.stopService()
    scene.world.settle(10)
    scene.world.limits = Limits(dead_bytes=10 * LIMIT, max_attempts=1)
    scene.world.start()
    scene.shop = scene.world.peer("shop", incarnation="i2")
    scene.resume()
    scene.billing = scene.attach("r2")
    scene.reject(20)
    state = state_of(scene.world, "billing")
    assert (state.settled, state.paused) == ({"dead": 20}, False)


def test_12_resume_says_that_there_is_no_room_for_dead_letters() -> None:
    scene = Rejecting()
    scene.send(20)
    asked = {"name": "billing"}
    assert scene.shop.request("$node.receivers.resume", asked)[1]["full"] is None
    scene.reject(20)
    ok, answer = scene.shop.request("$node.receivers.resume", asked)
    assert ok
    assert answer == {
        "name": "billing",
        "paused": False,
        "full": f"its dead letters take {scene.size} bytes, dead_bytes = {LIMIT}",
    }


def test_nothing_is_left_of_a_pause_that_is_due_when_the_node_stops() -> None:
    scene = Rejecting()
    scene.send(20)
    scene.reject(20)
    scene.resume()
    scene.billing = scene.attach("r2")
    row = scene.world.node.parts.directory.named("billing")
    scene.world.node.parts.dead_letters.lacking(row)
    scene.world.node.parts.dead_letters.stop()
    scene.world.settle(1)
    assert not state_of(scene.world, "billing").paused


# --- of all receivers together

TOTAL = 20_000
MANY = 12


class RejectingTogether:
    """Receivers of one subject that reject all they get, and one that takes it."""

    def __init__(self, **limits: int) -> None:
        more = {"max_bytes": 2_000_000, "dead_bytes_total": TOTAL} | limits
        self.world = NodeWorld(Limits(max_attempts=1, keep_seconds=0.0, keep_bytes=0, **more))
        self.shop = self.world.peer("shop")
        self.world.peer("other", receive={"subjects": [">"]}, answering=True)
        self.names = [f"bad{number}" for number in range(MANY)]
        self.peers = {name: self.attach(name) for name in self.names}

    def attach(self, name: str, incarnation: str = "r1") -> ScriptedPeer:
        return self.world.peer(name, incarnation=incarnation, receive={"subjects": ["a"]})

    def reject(self, *names: str) -> None:
        for name in names or self.names:
            for transfer in self.peers[name].take(Transfer):
                last = transfer.sequence + len(transfer.messages) // 1_000 - 1
                self.peers[name].nack(transfer.sequence, last, Action.DEAD, 0, "no")
        self.world.settle(1)

    @property
    def size(self) -> int:
        rows = self.world.node.parts.directory
        return sum(self.world.log.dead_bytes(row.number) for row in rows)

    def paused(self) -> list[str]:
        states = [state_of(self.world, name) for name in self.names]
        return [state.last_error for state in states if state.paused]


def test_12_dead_letters_of_all_receivers_together_have_a_limit() -> None:
    scene = RejectingTogether()
    scene.shop.transfer(1, "a", [bytes(1_000)] * 5)
    scene.world.settle()
    scene.reject()
    assert TOTAL <= scene.size < TOTAL + LETTER
    reasons = scene.paused()
    assert len(reasons) >= MANY - TOTAL // (5 * LETTER) - 1
    told = f"dead letters of all receivers take {scene.size} bytes, dead_bytes_total = {TOTAL}"
    assert set(reasons) == {f"paused: {told}"}
    states = [state_of(scene.world, name) for name in scene.names]
    assert {state.queued + state.settled.get("dead", 0) for state in states} == {5}
    # Who rejects nothing goes on, and so does who sends to it.
    scene.shop.transfer(6, "b", [bytes(1_000)] * 50)
    scene.world.settle(1)
    assert state_of(scene.world, "other").settled == {"acknowledged": 55}


def test_12_the_limit_of_all_dead_letters_holds_over_a_restart_and_a_removal_makes_room() -> None:
    scene = RejectingTogether()
    scene.shop.transfer(1, "a", [bytes(1_000)] * 5)
    scene.world.settle()
    scene.reject()
    before = scene.size
    scene.world.node.stopService()
    scene.world.settle(10)
    scene.world.start()
    scene.shop = scene.world.peer("shop", incarnation="i2")
    last = scene.names[-1]
    _, answer = scene.shop.request("$node.receivers.resume", {"name": last})
    assert "dead_bytes_total" in answer["full"]
    scene.peers[last] = scene.attach(last, "r2")
    scene.reject(last)
    assert scene.size == before
    assert "dead_bytes_total" in state_of(scene.world, last).last_error
    Deferred.fromCoroutine(scene.world.node.remove_receiver(scene.names[0]))
    scene.world.settle(5)
    assert scene.shop.request("$node.receivers.resume", {"name": last})[1]["full"] is None
    scene.peers[last] = scene.attach(last, "r3")
    scene.reject(last)
    assert state_of(scene.world, last).settled == {"dead": 5}


def test_12_dead_letters_of_many_receivers_go_to_the_log_in_portions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scene = RejectingTogether(dead_bytes_total=1_000_000)
    scene.shop.transfer(1, "a", [bytes(1_000)] * 20)
    scene.world.settle()
    monkeypatch.setattr(commits, "GROUP_LETTERS", 5 * LETTER)
    append, groups = scene.world.log.append, []

    def counted(group: Group) -> Deferred[Appended]:
        groups.append(sum(letter.size for one in group.progress for letter in one.dead))
        return append(group)

    monkeypatch.setattr(scene.world.log, "append", counted)
    by_append(scene.world.log)
    scene.reject()
    assert sum(groups) == scene.size > MANY * 20 * LETTER
    assert 0 < max(groups) < 7 * LETTER  # the last one may reach beyond
    assert scene.paused() == []


def test_12_three_eighths_of_the_log_for_all_dead_letters_unless_said_otherwise() -> None:
    assert Limits(max_bytes=4_000_000).dead_bytes_total_max == 1_500_000
    assert Limits(max_bytes=4_000_000, dead_bytes=3_000_000).dead_bytes_total_max == 3_000_000
    with for_operators(), pytest.raises(ValueError, match="dead_bytes_total"):
        Limits(max_bytes=4_000_000, dead_bytes_total=4_000_000)
