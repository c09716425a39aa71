"""kill -9 of producer, receiver and node at each named point while promises and undos go on.

No promise is decided twice, nor told otherwise than it is stored; statuses never lie; what an undo
called cancelled is handled by nobody, and its account has one outcome for each receiver.
"""

from __future__ import annotations

import json
import signal
import sqlite3
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted

from msgservice import Promise, PromiseOutcome, Status
from msgservice.administration import UndoTold
from msgservice.errors import MsgServiceError
from tests.integration.acts_child import COUNT, SAID
from tests.integration.command import Command
from tests.integration.daemon import running
from tests.integration.test_named_points import World, decided_in
from tests.kit.logs import recounted
from tests.kit.ports import free_port
from tests.soak.points import NODE, ONCE_A_LIFE, PRODUCER, RECEIVER

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.timeout(240)
# Of the shop: at which visit of it. One that opens its outbox has nothing in it the first time.
SHOP_POINTS = [
    *((point, visit) for point in PRODUCER if point not in ONCE_A_LIFE for visit in (1, 3)),
    *((point, visit) for point in SAID for visit in (1, 2)),
]
BILLING_POINTS = [(point, visit) for point in RECEIVER for visit in (1, 2)]
WORDS = {
    "cancelled": "cancelled",
    "cancelled_before": "cancelled",
    "acknowledged": "acknowledged",
    "expired": "expired",
    "removed": "removed",
    "dead": "dead",
}


class Town:
    """A node in a process, and what the shop said in its lives."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.node = Command(f"tcp:127.0.0.1:{self.port}", folder)
        self.sent: list[str] = []
        self.undone: dict[str, list[dict[str, dict[str, int]]]] = {}
        self.decided: dict[str, set[str]] = {}

    def node_runs(self) -> Any:
        data, listen = self.folder / "node", f"tcp:{self.port}"
        words = ("twist", "--log-format=text", "msgservice", "--data", data, "--listen", listen)
        return running(*words, cwd=self.folder)

    def child(self, role: str, point: str, visit: int) -> Any:
        module = (sys.executable, "-m", "tests.integration.acts_child")
        return running(*module, role, self.node.node, self.folder, point, str(visit), cwd=ROOT)

    def heard(self, output: list[str]) -> bool:
        """Take what the shop has said in one life; return whether it was done."""
        for line in output:
            what, _, rest = line.rstrip("\n").partition(" ")
            name, _, rest = rest.partition(" ")
            if what == "sent":
                self.sent.append(name)
            elif what == "undone":
                self.undone.setdefault(name, []).append(json.loads(rest))
            elif what == "decided":
                self.decided.setdefault(name, set()).add(rest)
        return "done\n" in output

    def shop_lives(self, point: str, visit: int) -> bool:
        """Let the shop live, to its end or to the point; return whether it came to its end."""
        with self.child("shop", point, visit) as shop:
            code = shop.ended()
            is_done = self.heard(shop.output)
        assert code == (0 if is_done else -signal.SIGKILL), shop.said
        return is_done

    def handled(self, name: str) -> list[str]:
        with closing(sqlite3.connect(self.folder / f"{name}.db")) as db:
            if not db.execute("select 1 from sqlite_master where name = 'done'").fetchall():
                return []
            found = db.execute("select body from done order by rowid")
            return [f"m-{body.decode()}" for (body,) in found]

    def is_as_told(self) -> None:
        """Judge what the shop was told by what the node says now, and by what was handled."""
        shown = {name: self.node.data("status", name) for name in dict.fromkeys(self.sent)}
        while any(row["status"] == "queued" for one in shown.values() for row in rows_of(one)):
            shown = {name: self.node.data("status", name) for name in shown}
        handled = {name: self.handled(name) for name in ("billing", "away")}
        for name, of in handled.items():
            assert [one for one, count in Counter(of).items() if count > 1] == [], name
        for name, one in shown.items():
            assert self.decided.get(name, set()) <= {one["promise"]["outcome"]}, (name, one)
            states = {row["receiver"]: row["status"] for row in rows_of(one)}
            assert states.keys() == {"billing", "away"}
            for receiver, state in states.items():
                assert (name in handled[receiver]) == (state == "acknowledged"), (name, states)
            for account in self.undone.get(name, ()):
                assert account.keys() == states.keys()
                for receiver, outcomes in account.items():
                    ((word, count),) = outcomes.items()
                    assert count == 1
                    assert WORDS.get(word, states[receiver]) == states[receiver], (name, account)


def rows_of(status: Any) -> list[dict[str, Any]]:
    """The rows of a status, by receiver."""
    return [{"receiver": name, **row} for name, row in status["receivers"].items()]


def away_comes(town: Town, wanted: int) -> None:
    """Let the one that was away take what is left for it."""
    script = (
        "import sqlite3, sys\n"
        "from twisted.internet import reactor\n"
        "from msgservice import Receiver\n"
        "def handle(message, transaction):\n"
        "    transaction.execute('create table if not exists done(body)')\n"
        "    transaction.execute('insert into done values (?)', (message.body,))\n"
        "receiver = Receiver(reactor, name='away', handler=handle, inbox='away.db')\n"
        "receiver.attach(sys.argv[1], subjects=['s.>'])\n"
        "receiver.when_connected().addCallback(lambda _: print('here', flush=True))\n"
        "reactor.run()\n"
    )
    (town.folder / "away.py").write_text(script)
    with running("python", "away.py", town.node.node, cwd=town.folder) as away:
        away.wait_for("here")
        while town.node.receiver("away")["queued"]:
            pass
        away.stop()
    assert len(town.handled("away")) <= wanted


@pytest.mark.parametrize(("point", "visit"), SHOP_POINTS)
def test_a_producer_that_dies_has_no_promise_decided_twice_and_no_undo_undone(
    tmp_path: Path, point: str, visit: int
) -> None:
    town = Town(tmp_path)
    with town.node_runs() as node:
        node.ports()
        for name in ("billing", "away"):
            assert town.node("receivers", "add", name, "s.>").code == 0
        with town.child("billing", "never", 1) as billing:
            billing.wait_for("here")
            assert not town.shop_lives(point, visit)
            while not town.shop_lives("never", 1):
                pass
            while town.node.receiver("billing")["queued"]:
                pass
            billing.stop()
        away_comes(town, COUNT)
        town.is_as_told()
        decided = decided_in(tmp_path)
        assert sorted(decided) == list(range(1, COUNT + 1))
        assert {times for times, _ in decided.values()} == {1}
    assert recounted(tmp_path / "node") == []


@pytest.mark.parametrize(("point", "visit"), BILLING_POINTS)
def test_a_receiver_that_dies_keeps_promises_once_and_what_was_undone_stays_so(
    tmp_path: Path, point: str, visit: int
) -> None:
    """What it had when it died was left to its answer, and it gives that when it is back."""
    town = Town(tmp_path)
    with town.node_runs() as node:
        node.ports()
        for name in ("billing", "away"):
            assert town.node("receivers", "add", name, "s.>").code == 0
        if point in ONCE_A_LIFE:  # there is an inbox to be opened
            with town.child("billing", "never", 1) as billing:
                billing.wait_for("here")
                billing.stop()
            visit = 1
        with town.child("billing", point, visit) as first, town.child("shop", "never", 1) as shop:
            assert first.ended() == -signal.SIGKILL
            with town.child("billing", "never", 1) as billing:
                assert shop.ended() == 0, shop.said
                assert town.heard(shop.output)
                while town.node.receiver("billing")["queued"]:
                    pass
                billing.stop()
        away_comes(town, COUNT)
        town.is_as_told()
        decided = decided_in(tmp_path)
        assert sorted(decided) == list(range(1, COUNT + 1))
        assert {times for times, _ in decided.values()} == {1}
    assert recounted(tmp_path / "node") == []


# --- the node

# A log of a few messages is not checkpointed.
REACHED = [point for point in NODE if "checkpoint" not in point]
SENT_MAX = 5000


@pytest_twisted.async_yield_fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(tmp_path)
    try:
        yield world
    finally:
        await world.close()


@pytest.mark.parametrize("visit", ["1", "4"])
@pytest_twisted.ensureDeferred
async def test_a_node_that_dies_at_any_point_decides_once_and_undoes_what_it_said(
    world: World, visit: str
) -> None:
    outcomes: dict[bytes, PromiseOutcome] = {}
    accounts: dict[bytes, UndoTold] = {}
    kept, cancelling = (
        Promise(need="any", within=600),
        Promise(need=2, within=0.3, otherwise="cancel"),
    )

    def heard(outcome: PromiseOutcome, body: bytes) -> None:
        assert body not in outcomes
        outcomes[body] = outcome

    def undone(told: UndoTold, body: bytes) -> None:
        accounts[body] = told

    waiting = []
    stored: dict[int, tuple[int, int]] = {}
    await world.lives("never", "purge")
    await world.attach().when_connected()
    await world.ask("receivers.add", name="away", subjects=["s.>"])
    await world.dies()
    for point in REACHED:
        await world.lives(point, "1" if point in ONCE_A_LIFE else visit)
        assert world.process is not None
        number = 0
        while world.process.poll() is None:
            number += 1
            assert number < SENT_MAX, f"never comes to this point: {point}"
            body = f"{point} {number}".encode()
            await world.send("s.a", body, promise=cancelling if number % 3 else kept)
            receipt = world.receipts[body]
            waiting.append(receipt.promised().addCallback(heard, body))
            await world.or_death(receipt.accepted)
            if number % 2 and world.process.poll() is None:
                undoing = world.client.undo(receipt)
                undoing.addCallback(undone, body)
                undoing.addErrback(lambda failure: failure.trap(MsgServiceError) and None)
                await world.or_death(undoing)
        await world.died()
        now = decided_in(world.folder)
        assert stored.items() <= now.items(), "what was decided stays so"
        stored = now
    await world.lives("never", "purge")
    for waiter in waiting:
        await waiter
    decided = decided_in(world.folder)
    assert {receipt.sequence for receipt in world.receipts.values()} == decided.keys()
    assert {times for times, _ in decided.values()} == {1}
    for body, outcome in outcomes.items():
        _, status = decided[world.receipts[body].sequence]
        assert outcome.kept == (status == Status.ACKNOWLEDGED)
    await world.attach("away").when_connected()
    found = await world.settled()
    assert accounts, "nothing was undone"
    for body, told in accounts.items():
        assert told.messages == 1
        assert set(told.receivers) == set(found[body]), (body, told)
        for name, outcome_of in told.receivers.items():
            ((word, count),) = outcome_of.items()
            state = found[body][name].name.lower()
            assert (count, WORDS.get(word, state)) == (1, state), (body, told)
    for name in ("billing", "away"):
        handled = [body for body, states in found.items() if states[name] is Status.ACKNOWLEDGED]
        assert sorted(handled) == sorted(world.done(name))
    await world.is_whole()
