"""A receiver with `on_full = "suspend"`: left out while it is too far behind (SEMANTICS 18)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from twisted.logger import LogEvent, capturedLogs, formatEvent

from msgservice.core.frames import Ack, AudienceFrame, Nack, Routed, Transfer
from msgservice.errors import LogFull
from msgservice.limits import Limits
from msgservice.message import FLAG_REQUIRE, Action
from msgservice.node.node import Node
from msgservice.receiver_options import ReceiverOptions
from msgservice.records import ReceiverRow
from tests.kit.nodes import NodeWorld, ScriptedPeer

LIMIT = 1000


class Told:
    """What was logged of suspending, at the level of a warning."""

    def __init__(self, events: Sequence[LogEvent]) -> None:
        self._events = events

    @property
    def lines(self) -> list[str]:
        warnings = [event for event in self._events if event["log_level"].name == "warn"]
        return [text for text in map(formatEvent, warnings) if "suspended" in text]


@pytest.fixture
def told() -> Iterator[Told]:
    with capturedLogs() as events:
        yield Told(events)


class Scene:
    """A shop that sends, "slow" that suspends and is away, and "quick" that answers all."""

    def __init__(self, **of_slow: Any) -> None:
        self.world = NodeWorld(Limits(backlog_bytes=LIMIT))
        self.shop = self.world.peer("shop", status_from=1)
        of_slow = {"name": "slow", "subjects": ["orders.>"], "on_full": "suspend"} | of_slow
        assert self.shop.request("$node.receivers.add", of_slow)[0]
        self.quick = self.world.peer("quick", receive={"subjects": [">"]}, answering=True)
        self.sequence = 0
        self._restarts = 0
        self._names: dict[int, set[str]] = {}  # by audience

    def send(self, body: bytes, subject: str = "orders.new", **fields: Any) -> None:
        """Send one message, and let the backlogs be judged."""
        self.sequence += 1
        self.shop.transfer(self.sequence, subject, [body], **fields)
        self.world.settle(0.2)

    def slow(self, *, answering: bool = True) -> ScriptedPeer:
        """Connect "slow"."""
        peer = self.world.peer("slow", receive={}, answering=answering)
        self.world.settle(0.2)
        return peer

    def row(self, name: str = "slow") -> dict[str, Any]:
        """What the node tells of a receiver, without what passes by itself."""
        ok, answer = self.shop.request("$node.receivers.list", {})
        assert ok
        found: dict[str, Any] = next(r for r in answer["receivers"] if r["name"] == name)
        return found | {"since_s": None, "oldest_s": None, "health_s": None}

    def audiences(self) -> list[set[str]]:
        """Whom each message since the last call was routed to."""
        self._names |= {a.audience: set(a.receivers) for a in self.shop.take(AudienceFrame)}
        return [self._names[routed.audience] for routed in self.shop.take(Routed)]

    def restart(self, *configured: ReceiverRow, limits: Limits | None = None) -> None:
        """Stop the node and start another one on its log."""
        world = self.world
        world.node.stopService()
        world.settle(world.limits.stop_timeout + 1)
        world.node = Node(
            world.clock,
            world.log,
            limits=limits or world.limits,
            receivers=configured,
            rng=lambda: 1.0,
            failed=world.failures.append,
        )
        world.node.startService()
        world.settle()
        assert [] == world.failures
        self._restarts += 1
        # Another incarnation: what it sends is no duplicate.
        self.shop = world.peer("shop", incarnation=f"i{self._restarts + 1}", status_from=1)
        self.quick = world.peer("quick", receive={"subjects": [">"]}, answering=True)
        self.sequence, self._names = 0, {}


def test_18_who_is_too_far_behind_is_left_out_and_the_others_go_on(told: Told) -> None:
    scene = Scene()
    for body in (bytes(LIMIT), b"two", b"three"):
        scene.send(body)
    assert [{"slow", "quick"}, {"quick"}, {"quick"}] == scene.audiences()
    assert [] == scene.shop.take(Nack)
    assert (1, True) == (scene.row()["queued"], scene.row()["suspended"])
    quick = scene.row("quick")
    assert (3, 0, False) == (quick["routed"], quick["queued"], quick["suspended"])
    (line,) = told.lines
    assert "receiver slow is suspended" in line
    assert "its limit is 1000" in line


def test_18_who_has_caught_up_is_part_of_audiences_again(told: Told) -> None:
    scene = Scene()
    scene.send(bytes(LIMIT))
    scene.send(b"not for it")
    scene.audiences()
    slow = scene.slow(answering=False)
    (waited,) = slow.take(Transfer)
    assert scene.row()["suspended"]
    slow.ack(waited)
    scene.world.settle(0.2)
    assert (0, False) == (scene.row()["queued"], scene.row()["suspended"])
    scene.send(b"for it")
    assert [{"slow", "quick"}] == scene.audiences()
    assert [b"for it"] == slow.bodies()
    assert 2 == len(told.lines)
    assert "receiver slow is no longer suspended" in told.lines[1]


def test_18_it_has_caught_up_below_half_of_the_limit_and_not_before() -> None:
    scene = Scene()
    for _ in range(4):
        scene.send(bytes(LIMIT // 4))
    slow = scene.slow(answering=False)
    suspended = []
    for transfer in slow.take(Transfer):
        suspended.append(scene.row()["suspended"])
        slow.ack(transfer)
        scene.world.settle(0.2)
    assert [True, True, True, False] == suspended


def test_18_naming_who_is_suspended_is_refused_until_it_has_caught_up() -> None:
    scene = Scene()
    scene.send(bytes(LIMIT))
    scene.shop.take(Ack)
    scene.send(b"named", "other.new", to=["quick", "slow"])
    (nack,) = scene.shop.take(Nack)
    assert (scene.sequence, Action.LATER) == (nack.first, nack.action)
    assert nack.reason == "receiver 'slow' is suspended until it has caught up"
    assert [] == scene.shop.take(Ack)
    scene.audiences()
    scene.slow()
    scene.shop.transfer(scene.sequence, "other.new", [b"named"], to=["quick", "slow"], nacks=1)
    scene.world.settle()
    assert [] == scene.shop.take(Nack)
    assert [{"quick", "slow"}] == scene.audiences()


def test_18_where_only_suspended_ones_match_require_refuses() -> None:
    scene = Scene(subjects=["only.slow"])
    assert scene.shop.request("$node.receivers.remove", {"name": "quick", "confirm": 0})[0]
    scene.send(bytes(LIMIT), "only.slow")
    scene.audiences()
    scene.send(b"nobody", "only.slow")
    assert [set()] == scene.audiences()
    scene.send(b"nobody", "only.slow", flags=FLAG_REQUIRE)
    (nack,) = scene.shop.take(Nack)
    assert (scene.sequence, Action.REFUSED) == (nack.first, nack.action)


def test_18_who_refuses_is_never_left_out(told: Told) -> None:
    scene = Scene(on_full="refuse")
    scene.send(bytes(LIMIT))
    scene.send(b"two")
    (nack,) = scene.shop.take(Nack)
    assert (2, Action.LATER) == (nack.first, nack.action)
    assert not scene.row()["suspended"]
    assert [] == told.lines


def test_18_a_receiver_has_a_limit_of_its_own() -> None:
    scene = Scene(backlog_bytes=10 * LIMIT)
    assert scene.shop.request(
        "$node.receivers.add",
        {"name": "small", "subjects": [">"], "on_full": "suspend", "backlog_bytes": 10},
    )[0]
    scene.send(bytes(LIMIT))
    assert [False, True] == [scene.row(name)["suspended"] for name in ("slow", "small")]
    assert [10 * LIMIT, 10, LIMIT] == [
        scene.row(name)["backlog_bytes"] for name in ("slow", "small", "quick")
    ]


@pytest.mark.usefixtures("operators_limits")
@pytest.mark.parametrize(
    ("size", "told"),
    [
        (10, "backlog_bytes must be at least 65536, or 0, not 10"),
        (2**40, f"backlog_bytes must be at most max_bytes, which is {2**34}, not {2**40}"),
    ],
)
def test_18_a_limit_of_its_own_that_the_nodes_could_not_be_is_refused(size: int, told: str) -> None:
    world = NodeWorld()
    asker = world.peer("asker")
    limit = {"name": "small", "backlog_bytes": size}
    refused, said = asker.request("$node.receivers.add", limit | {"subjects": [">"]})
    assert (False, told) == (refused, said)
    assert asker.request("$node.receivers.add", {"name": "small", "subjects": [">"]})[0]
    refused, said = asker.request("$node.receivers.change", limit)
    assert (False, told) == (refused, said)


def test_18_what_is_changed_at_run_time_is_judged_at_once(told: Told) -> None:
    scene = Scene(on_full="refuse")
    scene.send(bytes(LIMIT))
    on_full = {"name": "slow", "on_full": "suspend"}
    assert scene.shop.request("$node.receivers.change", on_full)[0]
    assert scene.row()["suspended"]
    scene.send(b"two")
    assert [{"slow", "quick"}, {"quick"}] == scene.audiences()
    scene.send(b"named", "other.new", to=["slow"])
    (nack,) = scene.shop.take(Nack)
    assert "is suspended" in nack.reason
    change: dict[str, Any] = {"name": "slow", "backlog_bytes": 10 * LIMIT}
    assert scene.shop.request("$node.receivers.change", change)[0]
    row = scene.row()
    assert ("suspend", 10 * LIMIT, False) == (
        row["on_full"],
        row["backlog_bytes"],
        row["suspended"],
    )
    assert scene.shop.request("$node.receivers.change", change | {"backlog_bytes": 0})[0]
    assert scene.row()["suspended"]
    assert scene.shop.request("$node.receivers.change", on_full | {"on_full": "refuse"})[0]
    assert not scene.row()["suspended"]
    scene.send(b"named", "another.new", to=["slow"])
    (nack,) = scene.shop.take(Nack)
    queued = scene.row()["queued_bytes"]
    assert nack.reason == (
        f"log full: the backlog of receiver 'slow': {queued} bytes wait for it, its limit is"
        f" {LIMIT}"
    )
    assert nack.code == LogFull.refusal_code
    assert 4 == len(told.lines)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"on_full": "drop"}, "on_full must be 'refuse' or 'suspend', not 'drop'"),
        ({"backlog_bytes": -1}, "Expected `int` >= 0 - at `$.backlog_bytes`"),
        ({"backlog_bytes": 2**53}, f"Expected `int` <= {2**53 - 1} - at `$.backlog_bytes`"),
    ],
)
def test_a_wrong_policy_is_refused_and_changes_nothing(
    wrong: dict[str, Any], sentence: str
) -> None:
    scene = Scene()
    before = scene.row()
    for subject, name in (("add", "new"), ("change", "slow")):
        arguments = {"name": name, "subjects": ["x"]} | wrong
        ok, why = scene.shop.request(f"$node.receivers.{subject}", arguments)
        assert (False, True) == (ok, sentence in why)
    assert before == scene.row()


def test_18_it_is_suspended_still_after_a_restart_and_said_so(told: Told) -> None:
    scene = Scene()
    scene.send(bytes(LIMIT))
    scene.restart()
    assert scene.row()["suspended"]
    assert 2 == len(told.lines)
    scene.send(b"the first after it")
    assert [{"quick"}] == scene.audiences()


def test_18_between_half_and_all_of_the_limit_a_restart_changes_nothing() -> None:
    scene = Scene()
    for _ in range(4):
        scene.send(bytes(LIMIT // 4))
    slow = scene.slow(answering=False)
    slow.ack(slow.take(Transfer)[0])
    scene.world.settle(0.2)
    scene.restart()
    assert scene.row()["suspended"]


def test_18_the_first_batch_after_a_restart_is_judged_by_the_accounts() -> None:
    scene = Scene()
    scene.send(bytes(LIMIT // 2))
    assert not scene.row()["suspended"]
    scene.restart(limits=Limits(backlog_bytes=LIMIT // 2))
    scene.send(b"the first after it")
    assert [{"quick"}] == scene.audiences()
    scene.restart()  # the limit is higher again
    assert scene.row()["suspended"]  # 500 bytes are half of it, and more
    scene.restart(limits=Limits(backlog_bytes=10 * LIMIT))
    scene.send(b"the first after it")
    assert [{"slow", "quick"}] == scene.audiences()


def test_18_a_full_one_that_refuses_does_so_from_the_first_batch_after_a_restart() -> None:
    scene = Scene(on_full="refuse")
    scene.send(bytes(LIMIT))
    scene.restart()
    scene.send(b"the first after it")
    (nack,) = scene.shop.take(Nack)
    assert (1, Action.LATER) == (nack.first, nack.action)


def test_18_what_the_file_says_wins_at_start() -> None:
    scene = Scene(on_full="refuse")
    scene.send(bytes(LIMIT))
    suspend = ReceiverOptions(on_full="suspend")
    row = ReceiverRow(number=0, name="slow", patterns=("orders.>",), options=suspend)
    scene.restart(row)
    assert scene.row()["suspended"]
    row.options = ReceiverOptions(on_full="refuse", backlog_bytes=7)
    scene.restart(row)
    found = scene.row()
    assert ("refuse", 7, False) == (found["on_full"], found["backlog_bytes"], found["suspended"])


def test_18_what_was_settled_above_the_cursor_is_not_waited_for_after_a_restart() -> None:
    scene = Scene(order="none")
    for _ in range(4):
        scene.send(bytes(LIMIT // 4))
    slow = scene.slow(answering=False)
    first, *others = slow.take(Transfer)
    for transfer in others:
        slow.ack(transfer)
    scene.world.settle(0.2)
    assert not scene.row()["suspended"]
    scene.restart()
    assert not scene.row()["suspended"]
    assert scene.row()["queued_bytes"] < LIMIT // 2
    slow = scene.slow(answering=False)
    (again,) = slow.take(Transfer)
    assert first.sequence == again.sequence
    slow.ack(again)
    scene.world.settle(0.2)
    assert not scene.row()["suspended"]


def test_18_who_is_removed_while_suspended_comes_back_as_another() -> None:
    scene = Scene()
    scene.send(bytes(LIMIT))
    assert scene.shop.request("$node.receivers.remove", {"name": "slow", "confirm": 1})[0]
    scene.audiences()
    scene.send(b"without it")
    add = {"name": "slow", "subjects": ["orders.>"], "on_full": "suspend"}
    assert scene.shop.request("$node.receivers.add", add)[0]
    scene.send(b"with it")
    assert [{"quick"}, {"slow", "quick"}] == scene.audiences()
    assert not scene.row()["suspended"]


def test_23_every_message_is_accounted_for_while_one_is_suspended() -> None:
    scene = Scene()
    for body in (bytes(LIMIT), b"two", b"three"):
        scene.send(body)
    scene.slow()
    scene.send(b"four")
    row = scene.row()
    assert (2, {"acknowledged": 2}, 0) == (row["routed"], row["settled"], row["unaccounted"])
    assert (True, {"discrepancies": []}) == scene.shop.request("$node.audit", {})
