"""Receivers of the configuration against what the log already knows (SEMANTICS 27)."""

from __future__ import annotations

from msgservice.node.node import NodeService
from msgservice.records import ReceiverRow
from tests.nodes import NodeWorld


def restart(world: NodeWorld, *rows: ReceiverRow) -> None:
    world.node.stopService()
    world.settle(world.limits.stop_timeout + 1)
    world.node = NodeService(
        world.clock,
        log=world.log,
        limits=world.limits,
        receivers=rows,
        rng=lambda: 1.0,
        failed=world.failures.append,
    )
    world.node.startService()
    world.settle()
    assert [] == world.failures


def row(**fields: object) -> ReceiverRow:
    made = ReceiverRow(number=0, name="billing", patterns=("orders.>",))
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def test_what_the_file_says_is_made_and_then_kept() -> None:
    world = NodeWorld()
    restart(world, row())
    number = world.node.directory.named("billing").number
    restart(world, row(patterns=("orders.new",)))
    found = world.node.directory.named("billing")
    assert (number, ("orders.new",), True) == (found.number, found.patterns, found.configured)


def test_an_address_that_the_file_no_longer_has_is_not_dialled() -> None:
    world = NodeWorld()
    restart(world, row(address="unix:/nowhere/at/all", paused=True))
    restart(world, row())
    assert world.node.directory.named("billing").address is None
    assert {} == world.node.connections.links


def test_a_receiver_that_the_file_no_longer_has_stays_and_may_change_itself() -> None:
    world = NodeWorld()
    restart(world, row())
    restart(world)
    assert world.peer("billing", receive={"subjects": ["other.>"]}).lost_because is None
    assert ("other.>",) == world.node.directory.named("billing").patterns


def test_paused_at_run_time_stays_paused() -> None:
    world = NodeWorld()
    restart(world, row())
    shop = world.peer("shop")
    assert shop.request("$node.receivers.pause", {"name": "billing"})[0]
    restart(world, row())
    assert world.node.directory.named("billing").paused
