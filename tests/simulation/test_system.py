"""The whole service in virtual time: everybody crashes, every link fails, over TCP and UDP.

What must be so at the end is in `system.System.check`: nothing that was accepted is lost, nobody
handles anything twice, lanes keep their order, receipts are complete and true, the accounts add
up, and every UDP session carried what was put into it. The planted bugs at the end of this file
prove that a run which breaks one of these fails.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.task import Clock
from twisted.logger import LogEvent

from msgservice.client.outbox_file import OutboxFile
from msgservice.core.datagram.receiver import ReceivingHalf
from msgservice.core.inbox import Inbox
from msgservice.core.marks import Marks
from msgservice.message import Status
from msgservice.receiver.inbox.file import InboxFile
from msgservice.testing.network import CALM, Faults
from msgservice.transport.udp import bearer as udp_bearer
from msgservice.transport.udp import endpoint as udp_endpoint
from msgservice.transport.udp import transport as udp
from tests.kit.simdisk import SimThreads, close_as_killed
from tests.simulation.seeds import seeds
from tests.simulation.system import HandlerFault, System

MESSAGES = 150
WEATHERS = {
    "rough": Faults(),
    "storm": Faults(cut=0.12, hold=0.05, half_open=20.0, loss=0.2, reorder=0.8, partition=0.004),
}
NO_REACTOR: Any = None  # its threads are simulated
EVERYBODY = ("node", "shop", "attached", "picky", "dialled")


@pytest.fixture(autouse=True)
def forgiven_handlers(logged_failures: list[LogEvent]) -> Iterator[None]:
    """Let what handlers raise by order of the test be no failure of it."""
    yield
    logged_failures[:] = [
        event for event in logged_failures if not event["log_failure"].check(HandlerFault)
    ]


@pytest.mark.parametrize("order", ["strict", "none"])
@pytest.mark.parametrize("seed", seeds(8))
def test_everybody_crashes_and_links_of_both_kinds_fail(
    seed: int, order: str, tmp_path: Path
) -> None:
    system = System(seed, tmp_path, order=order, mortal=EVERYBODY, handlers_fail=0.05)
    system.play(MESSAGES)


@pytest.mark.parametrize("seed", seeds(8))
def test_over_udp_alone_what_a_stored_inbox_has_taken_is_handled_once_across_crashes(
    seed: int, tmp_path: Path
) -> None:
    system = System(seed, tmp_path, kinds=["udp"], mortal=EVERYBODY, inbox=True, handlers_fail=0.02)
    system.play(MESSAGES)


def check_all_is_acknowledged(system: System) -> None:
    """Everything was accepted, acknowledged by all, and handled once in a single life."""
    for producer in system.producers.values():
        assert producer.sent == set(producer.accepted)
        for receipt in producer.accepted.values():
            assert {Status.ACKNOWLEDGED} == set(receipt.statuses.values())
    for name, party in system.receivers.items():
        (handled,) = party.histories()
        assert system.expected(name) == set(handled)


@pytest.mark.parametrize("weather", WEATHERS)
@pytest.mark.parametrize("seed", seeds(6))
def test_semantics_1_to_5_under_a_network_that_fails(
    seed: int, weather: str, tmp_path: Path
) -> None:
    system = System(seed, tmp_path, faults=WEATHERS[weather])
    system.play(MESSAGES)
    check_all_is_acknowledged(system)


@pytest.mark.parametrize("weather", ["calm", *WEATHERS])
@pytest.mark.parametrize("seed", seeds(6))
def test_semantics_2_and_6_with_a_node_that_is_killed(
    seed: int, weather: str, tmp_path: Path
) -> None:
    system = System(seed, tmp_path, faults=WEATHERS.get(weather, CALM), mortal=["node"])
    system.play(MESSAGES)
    check_all_is_acknowledged(system)


@pytest.mark.parametrize("weather", WEATHERS)
@pytest.mark.parametrize("seed", seeds(6))
def test_semantics_3_and_14_with_handlers_that_fail_too(
    seed: int, weather: str, tmp_path: Path
) -> None:
    system = System(seed, tmp_path, faults=WEATHERS[weather], handlers_fail=0.15)
    system.play(MESSAGES)
    for name, party in system.receivers.items():
        (handled,) = party.histories()
        assert not set(handled) & party.rejected, f"{name} handled what it had rejected"
        statuses = [
            receipt.statuses[name]
            for producer in system.producers.values()
            for receipt in producer.accepted.values()
            if name in receipt.statuses
        ]
        assert len(handled) == statuses.count(Status.ACKNOWLEDGED)
        assert len(party.rejected) == statuses.count(Status.DEAD)


def rough(seed: int, folder: Path) -> System:
    """Play a history over UDP alone in which every kind of fault is common."""
    folder.mkdir()
    system = System(seed, folder, faults=Faults(), kinds=["udp"], mortal=EVERYBODY)
    system.play(MESSAGES)
    return system


LOSSY = replace(CALM, delay=(0.01, 0.01), loss=0.3)
# Half of all round trips are lost then, and what is asked again waits twice as long each time: 1,
# 2, 4 and 8 s for a HELLO, 10 s until a session that has not opened is given up, and as much for
# the next one. A stall would be as long as the run.
LOSSY_SECONDS = 60


@pytest.mark.parametrize("seed", range(20))
def test_udp_that_loses_three_in_ten_each_way_carries_all_within_a_minute(
    seed: int, tmp_path: Path
) -> None:
    system = System(seed, tmp_path, faults=LOSSY, kinds=["udp"])
    world = system.world
    world.run_until(lambda: system.knows_all, seconds_max=LOSSY_SECONDS)
    world.run(1)
    system.send_all(20)
    producers = system.producers.values()
    world.run_until(lambda: all(party.is_done for party in producers), seconds_max=LOSSY_SECONDS)
    system.heal()
    system.check()


def test_a_killed_process_leaves_no_file_open(tmp_path: Path) -> None:
    clock = Clock()
    outbox = OutboxFile(tmp_path / "o.db", reactor=NO_REACTOR, threads=SimThreads(clock))
    inbox = InboxFile(tmp_path / "i.db", reactor=NO_REACTOR, threads=SimThreads(clock))
    for box in (outbox, inbox):
        box.open()
        clock.pump([0.01] * 5)
    assert len(open_below(tmp_path)) > 2
    for box in (outbox, inbox):
        close_as_killed(box._file)
        close_as_killed(box._file)  # nothing is left to do
    assert [] == open_below(tmp_path)


def open_below(folder: Path) -> list[str]:
    """Return the files of a folder that this process has open."""
    found = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            found.append(str(descriptor.readlink()))
    return [name for name in found if name.startswith(str(folder))]


def test_one_seed_is_one_history(tmp_path: Path) -> None:
    one, other = rough(1, tmp_path / "one"), rough(1, tmp_path / "other")
    assert one.world.story == other.world.story
    assert one.net.counts == other.net.counts
    assert one.watch.frames == other.watch.frames


def test_every_fault_of_datagrams_happens_and_everybody_is_killed(tmp_path: Path) -> None:
    happened: Counter[str] = Counter()
    kinds = {"lost", "doubled", "damaged", "partitions", "cut off", "for nobody",
             "several in one read", *EVERYBODY}  # fmt: skip
    for seed in range(8):
        system = rough(seed, tmp_path / str(seed))
        happened.update(system.net.counts)
        happened.update(system.kills)
        if kinds <= set(happened):
            return
    pytest.fail(f"never: {kinds - set(happened)}")


# --- planted bugs --------------------------------------------------------------------------------


def forgets_what_it_took(patch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A session hands on a message again when it comes again."""

    receive = ReceivingHalf.receive_run

    def receive_run(self: ReceivingHalf, first: int, bodies: list[bytes], size: int) -> None:
        if first + len(bodies) <= self.next_nonce:
            self.deliveries.append((first, bodies, size))
        receive(self, first, bodies, size)

    patch.setattr(ReceivingHalf, "receive_run", receive_run)
    return {}


def acknowledges_first(patch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The bearer says that frames are taken, and hands them to their user a little later."""
    deliver = udp_bearer.UdpChannel.deliver

    def acknowledge(self: udp_bearer.UdpChannel, deliveries: list[Any]) -> None:
        bearer = self._bearer
        for first, bodies, size in deliveries:
            bearer.handled(self.session, first, first + len(bodies) - 1, size)
        with pytest.MonkeyPatch.context() as already:
            already.setattr(bearer, "handled", lambda *_: None)
        self._later(0.05, lambda: hand_on(self, deliveries))

    def hand_on(self: udp_bearer.UdpChannel, deliveries: list[Any]) -> None:
        if self.is_gone:
            return
        handled, self._bearer.handled = self._bearer.handled, lambda *_: None  # type: ignore[method-assign]  # said before
        deliver(self, deliveries)
        self._bearer.handled = handled  # type: ignore[method-assign]  # as it was
        self._turns.flush()

    patch.setattr(udp_bearer.UdpChannel, "deliver", acknowledge)
    return {}


def carries_over(patch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a lost session still had to send leaves in the next one."""

    class Carrying(udp_bearer.Bearer):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self.turns.endpoint.table._carry_over = True

    for module in (udp, udp_endpoint):
        patch.setattr(module, "Bearer", Carrying)
    return {}


def takes_everything(patch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A receiver forgets what it has taken whenever its node is back."""
    receive = Inbox.receive_transfer

    def receive_transfer(self: Inbox, *args: Any) -> Any:
        self.marks = Marks()
        return receive(self, *args)

    patch.setattr(Inbox, "receive_transfer", receive_transfer)
    return {"mortal": ["node"]}  # a receiver that was killed has forgotten anyway


def acknowledges_before_it_is_done(patch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Handlers return, and do their work a little later."""
    return {"early": True}


PLANTED: list[tuple[Callable[[pytest.MonkeyPatch], dict[str, Any]], str]] = [
    (forgets_what_it_took, "are not those that were sent"),
    (acknowledges_first, "its user was not given it"),
    (carries_over, "are not those that were sent"),
    (takes_everything, "handled some twice"),
    (acknowledges_before_it_is_done, "has lost some"),
]


@pytest.mark.parametrize(("plant", "sign"), PLANTED, ids=[plant.__name__ for plant, _ in PLANTED])
def test_a_planted_bug_is_found(
    plant: Callable[[pytest.MonkeyPatch], dict[str, Any]],
    sign: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    logged_failures: list[LogEvent],
) -> None:
    options = {"mortal": EVERYBODY} | plant(monkeypatch)
    for seed in range(60):
        (tmp_path / str(seed)).mkdir()
        system = System(seed, tmp_path / str(seed), kinds=["udp"], **options)
        try:
            system.play(MESSAGES)
        except AssertionError as found:
            if sign in str(found):
                break
    else:
        pytest.fail("not found")
    logged_failures.clear()
