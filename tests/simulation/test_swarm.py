"""The swarm: few seeds of it in `make test`, as many as wanted by `make simulate`.

What must be so is in `swarm.checkers`. The planted bugs here prove that a seed that breaks a rule
is found, made small, and printed as a test that fails.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from twisted.logger import LogEvent

from msgservice.core.datagram.receiver import ReceivingHalf
from msgservice.core.flight import Flight
from msgservice.core.frames import StatusFrame
from msgservice.core.inbox import Inbox
from msgservice.core.marks import Marks
from msgservice.identity.rules import Rules
from msgservice.identity.users import Users
from msgservice.limits import INTEGER_MAX
from msgservice.log.base import StoreLog
from msgservice.log.store import Store
from msgservice.message import Status
from msgservice.node import status_frames
from msgservice.node.connections import Connections
from msgservice.node.directory import Directory
from msgservice.node.gate import OPEN, Door, Gate
from msgservice.node.outlet import Outlet
from msgservice.records import Audience, ReceiverRow
from tests.simulation.seeds import seeds
from tests.simulation.swarm.plan import Op, Part, Plan, draw
from tests.simulation.swarm.shrink import Shrinker, as_test, fails
from tests.simulation.swarm.witness import Violation
from tests.simulation.swarm.world import World

ROOT = Path(__file__).resolve().parents[2]
SEEDS = 60


@pytest.fixture(autouse=True)
def forgiven(logged_failures: list[LogEvent]) -> Iterator[None]:
    """A run looks at what is logged by itself."""
    yield
    logged_failures.clear()


@pytest.mark.parametrize("seed", seeds(SEEDS))
def test_every_rule_holds(seed: int) -> None:
    assert fails(draw(seed)) is None


@pytest.mark.parametrize("seed", [3, 5])
def test_one_seed_is_one_history(seed: int, tmp_path: Path) -> None:
    digests = []
    for turn in ("one", "two"):
        (tmp_path / turn).mkdir()
        digests.append(World(draw(seed), tmp_path / turn).play().digest)
    assert digests[0] == digests[1]


def test_seeds_differ_in_what_they_turn_on() -> None:
    plans = [draw(seed) for seed in range(300)]
    kinds = [frozenset(op.kind for op in plan.ops) for plan in plans]
    assert len(set(kinds)) > 200
    for kind in frozenset.union(*kinds):
        assert 3 < sum(kind in some for some in kinds), f"{kind} is hardly ever drawn"


def test_the_command_plays_seeds_in_processes_of_its_own() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.simulation.swarm", "2", "--jobs", "1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert 0 == done.returncode, done.stderr
    assert "2 seeds, 0 violations" == done.stdout.splitlines()[-1]


# --- planted bugs -------------------------------------------------------------------------------


def _forgets(patch: pytest.MonkeyPatch) -> None:
    """A receiver forgets what it has taken whenever a transfer comes."""
    receive = Inbox.receive_transfer

    def receive_transfer(self: Inbox, *args: Any) -> Any:
        self.marks = Marks()
        return receive(self, *args)

    patch.setattr(Inbox, "receive_transfer", receive_transfer)


def _stands_still(patch: pytest.MonkeyPatch) -> None:
    """After a connection was lost nothing is loaded any more."""
    end = Flight.end

    def lost(self: Flight, *args: Any, **kw: Any) -> Any:
        result = end(self, *args, **kw)
        self._backlog.behind_max = 0
        return result

    patch.setattr(Flight, "end", lost)


# And a seed that is not far before the first that shows it: those in between cost time.
PLANTED = [(_forgets, "handled twice", 56), (_stands_still, "a receiver stalls", 0)]


@pytest.mark.parametrize(
    ("plant", "sign", "near"), PLANTED, ids=[one.__name__ for one, *_ in PLANTED]
)
def test_a_planted_bug_is_found_and_shrunk_to_a_test_of_a_few_lines(
    plant: Any, sign: str, near: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    for seed in range(near, near + 100):
        plan = draw(seed, options=False)
        found = fails(plan)
        if found is not None and found.sign == sign:
            break
    else:
        pytest.fail("not found")
    smallest = Shrinker(plan, sign, tries_max=100).shrink()
    assert len(smallest.ops) < len(plan.ops)
    assert len(smallest.ops) <= 6
    text = as_test(smallest, found)
    assert len(text.splitlines()) < 40
    scope: dict[str, Any] = {}
    exec(compile(text, "shrunk", "exec"), scope)
    with pytest.raises(AssertionError):
        scope[f"test_seed_{seed}"]()
    monkeypatch.undo()
    scope[f"test_seed_{seed}"]()  # without the bug it holds


def _syncs_nothing(patch: pytest.MonkeyPatch) -> None:
    """The log is never synced."""
    connect = Store.connect

    def connected(self: Store) -> None:
        connect(self)
        self.db.execute("pragma synchronous = off")

    patch.setattr(Store, "connect", connected)


def _hands_on_again(patch: pytest.MonkeyPatch) -> None:
    """A session of datagrams hands on again what comes again."""
    receive = ReceivingHalf.receive_run

    def receive_run(self: ReceivingHalf, first: int, bodies: list[bytes], size: int) -> None:
        if first + len(bodies) <= self.next_nonce:
            self.deliveries.append((first, bodies, size))
        receive(self, first, bodies, size)

    patch.setattr(ReceivingHalf, "receive_run", receive_run)


def _stays_suspended(patch: pytest.MonkeyPatch) -> None:
    """Who was suspended once is left out of audiences for ever."""

    def suspend(self: Directory, row: ReceiverRow, suspended: bool) -> None:
        row.suspended = suspended
        self._suspended.add(row.number)
        self._by_subject.clear()

    patch.setattr(Directory, "set_suspended", suspend)


ADDED = [
    (_syncs_nothing, "the node ends"),
    (_hands_on_again, "a session of datagrams lies"),
    (_stays_suspended, "left out for ever"),
]


@pytest.mark.parametrize(("plant", "sign"), ADDED, ids=[plant.__name__ for plant, _ in ADDED])
def test_a_bug_planted_where_the_swarm_was_widened_is_found(
    plant: Any, sign: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    kinds = {"_syncs_nothing": "power", "_stays_suspended": "suspend"}
    for seed in range(300):
        plan = draw(seed, options=False)
        kind = kinds.get(plant.__name__)
        if kind in {op.kind for op in plan.ops} if kind else plan.world.get("udp"):
            found = fails(plan)
            if found is not None and found.sign == sign:
                return
    pytest.fail("not found")


def test_a_page_that_passes_over_a_new_set_of_receivers_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Pages are read late, and held what was stored meanwhile."""
    plan = draw(120000, options=False)
    read = StoreLog.read

    def without_end(self: Any, audiences: Any, after: int, to: int, *rest: int) -> Any:
        return read(self, audiences, after, INTEGER_MAX, *rest)

    monkeypatch.setattr(StoreLog, "read", without_end)
    found = fails(plan)
    assert found is not None
    assert found.sign == "a receiver stalls"


def test_a_node_that_keeps_another_order_than_it_says_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Operators change the order of receivers, which take lanes back by what the node says."""
    monkeypatch.setattr(Outlet, "set_order", lambda self, order: self.backlog.unload())
    found = fails(draw(742, options=False))
    assert found is not None
    assert found.sign == "a receiver stalls"


def _leaves_out(patch: pytest.MonkeyPatch) -> None:
    """The audience of a subject lacks one of those that it is for."""
    audience = Directory.audience

    def lacking(self: Directory, subject: str, path: Sequence[str] = ()) -> Audience:
        members = audience(self, subject, path).members
        return self._intern(members[:-1] if len(members) > 1 else members)

    patch.setattr(Directory, "audience", lacking)


def _says_acknowledged(patch: pytest.MonkeyPatch) -> None:
    """Senders are told that what was rejected is acknowledged."""

    def told(incarnation: str, receiver: str, state: int, *more: Any) -> StatusFrame:
        state = Status.ACKNOWLEDGED if state == Status.DEAD else state
        return StatusFrame(incarnation, receiver, state, *more)

    patch.setattr(status_frames, "StatusFrame", told)


AFTER = [(_leaves_out, "a wrong audience"), (_says_acknowledged, "acknowledged, and was not")]


@pytest.mark.parametrize(("plant", "sign"), AFTER, ids=[plant.__name__ for plant, _ in AFTER])
def test_a_bug_that_begins_when_an_older_log_was_put_back_is_found(
    plant: Any, sign: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    went_back = World.log_went_back
    for seed in range(600):
        plan = draw(seed, options=False)
        if all((op.kind, op.who) != ("restore", "node") for op in plan.ops):
            continue
        with monkeypatch.context() as patch:

            def planted(self: World, saved_at: float) -> None:
                went_back(self, saved_at)
                plant(patch)

            patch.setattr(World, "log_went_back", planted)
            found = fails(plan)
        if found is not None and found.sign == sign:
            return
    pytest.fail("not found")


def _ends_nobody(patch: pytest.MonkeyPatch) -> None:
    """Who is let in stays, whatever became of its user."""
    patch.setattr(Connections, "end_what_holds_no_more", lambda self: None)


def _ends_all(patch: pytest.MonkeyPatch) -> None:
    """A reload ends the connections of all users, and loses nothing."""
    patch.setattr(Gate, "holds", lambda self, given: not given.is_bound)


def _routes_on(patch: pytest.MonkeyPatch) -> None:
    """Receivers get what their users may receive no more."""
    patch.setattr(Gate, "receivable", lambda self, row: row.patterns)


def _sees_never_again(patch: pytest.MonkeyPatch) -> None:
    """Who could receive less for a while never receives more."""
    receivable = Gate.receivable
    before: dict[int, set[str]] = {}

    def least(self: Gate, row: ReceiverRow) -> Any:
        now = before.setdefault(row.number, set(row.patterns)) & set(receivable(self, row))
        before[row.number] = now
        return tuple(one for one in row.patterns if one in now)

    patch.setattr(Gate, "receivable", least)


def _takes_all(patch: pytest.MonkeyPatch) -> None:
    """Whoever is let in may send what nobody may."""
    allow = Rules.allows
    patch.setattr(
        Rules, "allows", lambda self, verb, name="": verb == "send" or allow(self, verb, name)
    )


def _knows_no_names(patch: pytest.MonkeyPatch) -> None:
    """A user may have others' names, and their receivers."""
    patch.setattr(Users, "may_be_called", lambda self, user, name: True)


def _proves_nothing(patch: pytest.MonkeyPatch) -> None:
    """HELLO is taken without a login."""
    pass_of = Gate._pass_of

    def believed(self: Gate, principal: Any, credentials: Any, door: Door) -> Any:
        if principal is None and self.asks and door.asks:
            return self._believed(OPEN, credentials)
        return pass_of(self, principal, credentials, door)

    patch.setattr(Gate, "_pass_of", believed)


AMONG_USERS = [
    (_ends_nobody, "who is barred is told", {"lock", "revoke"}),
    (_ends_all, "a reload ends another's connection", {"reload"}),
    (_routes_on, "a wrong audience", {"blind"}),
    (_sees_never_again, "left out for ever", {"blind"}),
    (_takes_all, "what is forbidden is taken", {"forbidden"}),
    (_knows_no_names, "a thief is let in", {"thief"}),
    (_proves_nothing, "a thief is let in", {"thief"}),
]


@pytest.mark.parametrize(
    ("plant", "sign", "kinds"), AMONG_USERS, ids=[plant.__name__ for plant, *_ in AMONG_USERS]
)
def test_32_a_user_that_gets_what_it_may_not_is_found(
    plant: Any, sign: str, kinds: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    for seed in range(600):
        plan = draw(seed, options=False)
        if plan.world.get("users") and kinds & {op.kind for op in plan.ops}:
            found = fails(plan)
            if found is not None and found.sign == sign:
                return
    pytest.fail("not found")


def test_what_does_not_matter_goes_faults_first() -> None:
    plan = draw(7)
    culprits = (
        Op(3.0, "kill", "node", (1.0,)),
        Op(4.0, "send", "shop", ("a.1", 20, 3000, None, False)),
    )
    plan = replace(plan, ops=(*plan.ops, *culprits), weather={"cut": 0.1, "split": 0.5})
    tried: list[Plan] = []

    def check(one: Plan) -> Violation | None:
        tried.append(one)
        kinds = {op.kind for op in one.ops if op.who in ("node", "shop")}
        return Violation("a sign", "what") if {"kill", "send"} <= kinds else None

    smallest = Shrinker(plan, "a sign", check=check).shrink()
    assert {} == tried[0].weather
    assert ["kill", "send"] == [op.kind for op in smallest.ops]
    assert ({}, {}) == (smallest.weather, smallest.limits)
    assert all(part.options.keys() <= {"patterns"} for part in smallest.cast)


def test_another_fault_is_not_mistaken_for_the_one_that_is_shrunk() -> None:
    plan = Plan(1, {}, {}, (Part("producer", "shop"),), (Op(1.0, "cut", "shop"),))

    def check(one: Plan) -> Violation | None:
        return Violation("the sign" if one.ops else "another", "")

    assert plan.ops == Shrinker(plan, "the sign", check=check).shrink().ops
