"""The one way in of messages: what rights allow, and a sender that has no session."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

import msgservice
from msgservice.connection import Connection
from msgservice.core.frames import Ack, Nack, Transfer
from msgservice.core.refusal import Refusal
from msgservice.errors import (
    Ambiguous,
    BadName,
    Forbidden,
    LimitReached,
    LogFailed,
    LogFull,
    LogUnavailable,
    NoReceiver,
    UnknownReceiver,
)
from msgservice.identity.principal import Principal
from msgservice.identity.rules import EVERYTHING
from msgservice.limits import BATCH_MESSAGES_MAX, Limits
from msgservice.log.memory import MemoryLog
from msgservice.message import (
    FLAG_REPLAY,
    FLAG_REQUIRE,
    FLAG_RETAIN,
    FLAG_RETAIN_ONLY,
    FLAG_RETAINED,
    Action,
    WireMessage,
)
from msgservice.node.gate import PROCESS, Gate, Pass
from msgservice.node.intake import LocalSender, refusal_for
from msgservice.node.rights import ANYONE
from msgservice.records import Batch, Outcome, RefusedBatch, Resume
from tests.kit.nodes import FailingLog, NodeWorld, ScriptedPeer

FORBIDDEN = Forbidden.refusal_code


class Only:
    """Rights to some things and no other; `asked` has each question."""

    def __init__(self, *allowed: tuple[str, str]) -> None:
        self.allowed = set(allowed)
        self.asked: list[tuple[str, str]] = []

    def allows(self, verb: str, name: str) -> bool:
        self.asked.append((verb, name))
        return (verb, name) in self.allowed


class Taking(ScriptedPeer):
    """A receiver that acknowledges what comes, and has it."""

    def turn_ended(self, connection: Connection) -> None:
        for transfer in self.take(Transfer):
            self.got = [*getattr(self, "got", []), transfer]
            self.ack(transfer)

    def bodies(self) -> list[bytes]:
        self.frames += getattr(self, "got", [])
        self.got = []
        return super().bodies()


class World(NodeWorld):
    """A node whose log can be held, and a sender there without a session."""

    def __init__(self, limits: Limits | None = None) -> None:
        clock = Clock()
        limits = limits or Limits()
        self.failing = FailingLog(MemoryLog(reactor=clock, limits=limits))
        super().__init__(limits, log=self.failing, clock=clock)
        self.intake = self.node.parts.intake
        self.http = self.intake.sender("http")
        self.told: list[Outcome | Failure] = []

    def receiver(self, name: str, *patterns: str) -> ScriptedPeer:
        return self.peer(name, receive={"subjects": list(patterns)}, kind=Taking)

    def batch(self, *bodies: bytes, subject: str = "orders.new", **more: Any) -> Batch:
        checked = self.http.check(ANYONE, subject, [WireMessage(body) for body in bodies], **more)
        assert isinstance(checked, Batch), checked
        return checked

    def submit(self, batch: Batch) -> Deferred[Outcome]:
        submitted = self.http.submit(batch)
        submitted.addBoth(self.told.append)
        return submitted

    def marks(self) -> Resume:
        return self.resume("http", self.batch(b"").incarnation)


@pytest.fixture
def world() -> World:
    return World()


def refused_for(checked: Batch | Refusal) -> tuple[Action, int, str]:
    assert isinstance(checked, Refusal), checked
    return checked.action, checked.code, checked.about


# --- rights, of a peer


@pytest.fixture
def rights(monkeypatch: pytest.MonkeyPatch) -> Only:
    only = Only()
    program = Principal(user="", how=PROCESS, generation=0)

    def allows(verb: str, name: str) -> bool:
        return verb not in ("send", "to") or only.allows(verb, name)

    allowed = Pass(program, EVERYTHING, address="", is_bound=False, allows=allows)
    monkeypatch.setattr(Gate, "admit", lambda *_: allowed)
    return only


def test_32_a_subject_that_is_not_allowed_is_refused_and_reaches_nobody(
    world: World, rights: Only
) -> None:
    rights.allowed = {("send", "orders.new")}
    billing = world.receiver("billing", ">")
    shop = world.peer("shop")
    shop.transfer(1, "orders.new", [b"one"])
    shop.transfer(2, "bills.new", [b"two"])
    world.settle()
    (nack,) = shop.take(Nack)
    assert (2, 2, Action.REFUSED, FORBIDDEN) == (nack.first, nack.last, nack.action, nack.code)
    assert "not allowed: send 'bills.new'" == nack.reason
    assert [[(1, 1)]] == [ack.ranges for ack in shop.take(Ack)]
    assert [b"one"] == billing.bodies()


def test_32_a_client_is_told_what_is_not_allowed(world: World, rights: Only) -> None:
    client = world.node.client("shop")
    failures: list[Failure] = []
    client.send("bills.new", b"x").addErrback(failures.append)
    world.settle(1)
    (failure,) = failures
    error = failure.value
    assert isinstance(error, Forbidden)
    assert ("send", "bills.new") == (error.verb, error.name)


def test_32_rights_are_asked_once_for_a_run(world: World, rights: Only) -> None:
    rights.allowed = {("send", "orders.new")}
    shop = world.peer("shop")
    shop.transfer(1, "orders.new", [b"x"] * 500)
    world.settle()
    assert [("send", "orders.new")] == rights.asked


def test_32_a_receiver_that_may_not_be_named_is_unknown_like_one_that_nobody_is(
    world: World, rights: Only
) -> None:
    rights.allowed = {("send", "a"), ("to", "billing"), ("to", "nobody")}
    billing, audit = world.receiver("billing"), world.receiver("audit")
    shop = world.peer("shop")
    for sequence, names in enumerate([["billing"], ["billing", "audit"], ["nobody"]], 1):
        shop.transfer(sequence, "a", [b"%d" % sequence], to=tuple(names))
        world.settle()
    forbidden, unknown = shop.take(Nack)
    assert "unknown receiver 'audit'" == forbidden.reason
    assert "unknown receiver 'nobody'" == unknown.reason
    assert (forbidden.code, forbidden.action) == (unknown.code, unknown.action)
    assert ("audit", "nobody") == (forbidden.about, unknown.about)
    assert ([b"1"], []) == (billing.bodies(), audit.bodies())


def test_32_what_was_stored_while_it_was_allowed_stays_stored(world: World, rights: Only) -> None:
    """A run that comes again, since its ACK was lost, is answered by that (SEMANTICS 2)."""
    rights.allowed = {("send", "orders.new")}
    billing = world.receiver("billing", ">")
    shop = world.peer("shop")
    shop.transfer(1, "orders.new", [b"one"])
    world.settle()
    shop.connection.abort()
    rights.allowed = set()
    shop = world.peer("shop")
    shop.transfer(1, "orders.new", [b"one"])
    shop.transfer(2, "orders.new", [b"two"])
    world.settle()
    assert [[(1, 1)]] == [ack.ranges for ack in shop.take(Ack)]
    assert [(2, FORBIDDEN)] == [(nack.first, nack.code) for nack in shop.take(Nack)]
    assert [b"one"] == billing.bodies()


def test_37_what_is_not_allowed_stays_so_when_receivers_change_before_its_group(
    world: World, rights: Only
) -> None:
    rights.allowed = {("send", "orders.new")}
    billing = world.receiver("billing", ">")
    shop = world.peer("shop")
    world.failing.hold = True
    shop.transfer(1, "orders.new", [b"one"])
    world.settle()
    shop.transfer(2, "bills.new", [b"two"])  # waits for the next group
    world.settle()
    late = world.receiver("late", ">")
    world.failing.release()
    world.settle()
    assert [(2, FORBIDDEN)] == [(nack.first, nack.code) for nack in shop.take(Nack)]
    assert ([b"one"], []) == (billing.bodies(), late.bodies())


# --- a sender without a session


def test_what_is_submitted_is_told_when_it_is_on_disk(world: World) -> None:
    billing = world.receiver("billing", "orders.>")
    world.failing.hold = True
    batch = world.batch(b"one", b"two")
    world.submit(batch)
    world.settle()
    assert ([], []) == (world.told, billing.bodies())
    world.failing.release()
    world.settle()
    assert [batch] == world.told
    assert ("http", 1, 2) == (batch.sender, batch.sequence, batch.count)
    assert [b"one", b"two"] == billing.bodies()


def test_what_is_submitted_in_one_turn_shares_a_group(world: World) -> None:
    groups: list[int] = []
    append = world.failing.append

    def noted(group: Any) -> Any:
        groups.append(len(group.batches))
        return append(group)

    world.failing.append = noted  # type: ignore[method-assign] # noted as it goes by
    for body in (b"1", b"2", b"3"):
        world.submit(world.batch(body))
    world.settle()
    assert [3] == groups
    assert 3 == len(world.told)


def test_batches_are_numbered_as_they_are_submitted_whatever_order_they_were_checked_in(
    world: World,
) -> None:
    billing = world.receiver("billing", ">")
    first, never, second = (world.batch(body) for body in (b"one", b"never", b"two"))
    world.submit(second)
    world.submit(first)
    world.settle()
    assert [second, first] == world.told
    assert (1, 2, 0) == (second.sequence, first.sequence, never.sequence)
    assert [b"two", b"one"] == billing.bodies()
    assert (3, ()) == (world.marks().floor, world.marks().ranges)


def test_a_batch_is_submitted_once(world: World) -> None:
    batch = world.batch(b"one")
    world.submit(batch)
    with pytest.raises(AssertionError):
        world.http.submit(batch)


def test_its_marks_have_no_holes_for_what_was_refused(world: World) -> None:
    """Nothing of it is kept to come again, so what was refused is settled."""
    world.receiver("billing", ">")
    world.failing.error = LogUnavailable("the disk says no")
    world.submit(world.batch(b"1"))
    world.settle()
    world.failing.hold = True
    world.submit(world.batch(b"2"))
    world.settle()
    world.failing.refuse()
    world.settle(2)
    refused = world.told[-1]
    assert isinstance(refused, RefusedBatch)
    assert isinstance(refused.error, LogUnavailable)
    for body in (b"3", b"4"):
        world.submit(world.batch(body))
        world.settle(1)
    assert (5, ()) == (world.marks().floor, world.marks().ranges)


def test_for_whom_a_batch_is_is_decided_when_it_is_submitted(world: World) -> None:
    """However long ago it was checked: who was removed since gets nothing, who came does."""
    gone = world.receiver("gone", ">")
    batch = world.batch(b"one")
    Deferred.fromCoroutine(world.node.remove_receiver("gone"))
    late = world.receiver("late", ">")
    world.settle(1)
    world.submit(batch)
    world.settle()
    assert [batch] == world.told
    assert ([], [b"one"]) == (gone.bodies(), late.bodies())


def test_who_was_to_have_it_may_be_gone_when_it_is_submitted(world: World) -> None:
    world.receiver("gone", ">")
    batches = [world.batch(b"1", to=("gone",)), world.batch(b"2", flags=FLAG_REQUIRE)]
    Deferred.fromCoroutine(world.node.remove_receiver("gone"))
    world.settle(1)
    for batch in batches:
        world.submit(batch)
    world.settle()
    kinds = [type(told.error) for told in world.told if isinstance(told, RefusedBatch)]
    assert [UnknownReceiver, NoReceiver] == kinds


@pytest.mark.parametrize(
    ("subject", "more", "action", "code", "about"),
    [
        ("secret.new", {}, Action.REFUSED, FORBIDDEN, "secret.new"),
        ("orders.new", {"to": ("audit",)}, Action.REFUSED, UnknownReceiver.refusal_code, "audit"),
        ("orders.new", {"to": ("nobody",)}, Action.REFUSED, UnknownReceiver.refusal_code, "nobody"),
        ("orders.new", {"flags": FLAG_REPLAY}, Action.REFUSED, 0, ""),
        ("orders.new", {"flags": FLAG_RETAIN_ONLY}, Action.REFUSED, 0, ""),
        ("orders.new", {"flags": FLAG_RETAINED}, Action.REFUSED, 0, ""),
        ("orders.new", {"flags": FLAG_RETAIN, "to": ("nobody",)}, Action.REFUSED, 0, ""),
        ("no..subject", {}, Action.REFUSED, 14, ""),
        ("x" * 100_000, {}, Action.REFUSED, 14, ""),
        ("$node.info", {}, Action.REFUSED, 0, ""),
    ],
)
def test_what_is_refused_is_said_at_once_and_leaves_nothing(
    world: World, subject: str, more: dict[str, Any], action: Action, code: int, about: str
) -> None:
    world.receiver("audit", ">")
    rights = Only(("send", "orders.new"), ("send", "$node.info"), ("to", "nobody"))
    checked = world.http.check(rights, subject, [WireMessage(b"x")], **more)
    assert (action, code, about) == refused_for(checked)
    world.submit(world.batch(b"one"))
    world.settle()
    (batch,) = world.told
    assert isinstance(batch, Batch)
    assert 1 == batch.sequence


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "0 messages in a run"),
        ([WireMessage(b"")] * (BATCH_MESSAGES_MAX + 1), f"1 to {BATCH_MESSAGES_MAX} allowed"),
        ([WireMessage(bytes(5000))], "at most 4096 allowed"),
        ([WireMessage(b"", id="x" * 5000)], "of length <= 255"),
        ([WireMessage("text")], "bytes"),  # type: ignore[arg-type] # the wrong type is the case
        ([WireMessage(b"", headers={"a": object()})], "no form"),  # type: ignore[dict-item] # …
        ([WireMessage(b"", key="k"), WireMessage(b"")], "travels alone, not in a run of 2"),
        ([WireMessage(b"", key="")], "1 to 255 bytes, not 0"),
        ([WireMessage(b"", key="é" * 200)], "1 to 255 bytes, not 400"),
    ],
)
def test_what_no_receiver_could_decode_is_refused(messages: Any, reason: str) -> None:
    world = World(Limits(max_batch=4096))
    checked = world.http.check(ANYONE, "orders.new", messages)
    assert isinstance(checked, Refusal)
    assert Action.REFUSED == checked.action
    assert reason in checked.reason


def test_more_than_is_allowed_uncommitted_is_for_later_and_pauses_the_senders() -> None:
    world = World(Limits(uncommitted_bytes=4096))
    shop = world.peer("shop")
    world.failing.hold = True
    for _ in range(2):
        world.submit(world.batch(bytes(3000)))
        world.settle()
    code = LimitReached.refusal_code
    checked = world.http.check(ANYONE, "orders.new", [WireMessage(b"x")])
    assert (Action.LATER, code, "uncommitted_bytes") == refused_for(checked)
    shop.transfer(1, "orders.new", [b"not read"])
    world.settle()
    world.failing.release()
    world.settle()
    assert [[(1, 1)]] == [ack.ranges for ack in shop.take(Ack)]
    assert isinstance(world.http.check(ANYONE, "orders.new", [WireMessage(b"x")]), Batch)


def test_a_full_log_is_for_later() -> None:
    world = World(Limits(max_bytes=4096, keep_seconds=3600))
    billing = world.peer("billing", receive={"subjects": [">"]})
    outcomes: list[Any] = []
    for _ in range(3):
        checked = world.http.check(ANYONE, "orders.new", [WireMessage(bytes(3000))])
        if isinstance(checked, Batch):
            world.submit(checked)
            world.settle()
            outcomes.append(world.told[-1])
        else:
            outcomes.append(checked)
    stored, *refused = outcomes
    assert isinstance(stored, Batch)
    refusals = [refusal_for(one.error) if isinstance(one, RefusedBatch) else one for one in refused]
    assert [(Action.LATER, LogFull.refusal_code)] * 2 == [(r.action, r.code) for r in refusals]
    assert 1 == len(billing.bodies())


def test_cancelling_ends_the_wait_and_takes_nothing_back(world: World) -> None:
    billing = world.receiver("billing", ">")
    world.submit(world.batch(b"one")).cancel()
    world.settle()
    (told,) = world.told
    assert isinstance(told, Failure)
    assert told.check(CancelledError)
    assert [b"one"] == billing.bodies()


def test_who_waits_when_the_node_stops_is_told(world: World) -> None:
    world.failing.hold = True
    world.submit(world.batch(b"one"))
    world.settle()
    world.submit(world.batch(b"two"))
    checked = world.batch(b"three")
    world.node.stopService()
    world.settle(60)
    world.submit(checked)
    assert [True] * 3 == [isinstance(t, Failure) and bool(t.check(Ambiguous)) for t in world.told]


def test_who_waits_when_the_log_cannot_go_on_is_told(world: World) -> None:
    world.failing.fail_always = True
    world.failing.error = LogFailed("the disk is gone")
    world.submit(world.batch(b"one"))
    world.settle()
    (told,) = world.told
    assert isinstance(told, Failure)
    assert told.check(Ambiguous)
    assert [LogFailed] == [type(error) for error in world.failures]


def test_what_it_is_told_with_may_submit_again(world: World) -> None:
    again: list[Outcome] = []

    def once_more(outcome: Outcome) -> Outcome:
        world.http.submit(world.batch(b"two")).addCallback(again.append)
        return outcome

    world.submit(world.batch(b"one")).addCallback(once_more)
    world.settle()
    assert [2] == [outcome.sequence for outcome in again if isinstance(outcome, Batch)]


def test_each_sender_without_a_session_numbers_alone(world: World) -> None:
    one, two = world.http, world.intake.sender("http")
    for sender in (one, two):
        checked = sender.check(ANYONE, "orders.new", [WireMessage(b"x")])
        assert isinstance(checked, Batch)
        sender.submit(checked).addCallback(world.told.append)
    world.settle()
    first, second = world.told
    assert isinstance(first, Batch)
    assert isinstance(second, Batch)
    assert (1, 1) == (first.sequence, second.sequence)
    assert first.incarnation != second.incarnation


def test_a_name_that_no_sender_may_have_is_refused(world: World) -> None:
    with pytest.raises(BadName):
        world.intake.sender("no such name\n")


# --- no way around it

NODE = Path(msgservice.__file__).parent / "node"


def known(path: Path) -> Iterator[str]:
    """Yield each name that a file imports, with its module: `acceptance.Acceptance`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module.rpartition('.')[2]}.{name.name}" for name in node.names)


def called(path: Path) -> Iterator[str]:
    """Yield each method that a file calls, with the last name of what it calls it on."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            on = node.func.value
            name = on.attr if isinstance(on, ast.Attribute) else getattr(on, "id", "")
            yield f"{name.strip('_')}.{node.func.attr}"


@pytest.mark.parametrize(
    ("of", "what", "files"),
    [
        (known, "acceptance.Acceptance", {"assembly.py", "intake.py"}),
        (called, "commits.batch", {"intake.py"}),
        (called, "acceptance.audience", {"intake.py"}),
        (called, "log.append", {"commits.py"}),
        (called, "intake.put", {"ingress.py"}),
    ],
)
def test_nothing_reaches_the_log_by_another_way(of: Any, what: str, files: set[str]) -> None:
    folder = NODE.parent
    found = {path.name for path in folder.rglob("*.py") if what in set(of(path))}
    assert files == found


def test_a_local_sender_is_what_an_intake_makes(world: World) -> None:
    assert isinstance(world.http, LocalSender)
    assert "http" == world.http.name
