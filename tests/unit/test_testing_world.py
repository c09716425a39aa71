"""The world of `msgservice.testing`: time that passes when it is told to, faults, and kills."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred

from msgservice import Status
from msgservice.errors import NotDelivered, UnknownReceiver
from msgservice.testing import CALM, Faults, World


def test_time_passes_when_it_is_told_to() -> None:
    world = World()
    client = world.client("shop")
    receipt = world.wait(client.send("later.new", b"x", delay=3600))
    assert receipt.due is not None
    began = world.clock.seconds()
    world.run(1800)
    assert (receipt.due is not None, world.clock.seconds() - began) == (True, 1800)
    world.run(1801)
    assert receipt.due is None
    world.close()


def test_what_does_not_happen_in_time_says_the_seed() -> None:
    world = World(seed=4711)
    cancelled: list[object] = []
    with pytest.raises(TimeoutError, match="not within 5 s of virtual time, seed 4711"):
        world.wait(Deferred(cancelled.append), 5)
    assert len(cancelled) == 1
    with pytest.raises(AssertionError, match="seed 4711"):
        world.run_until(lambda: False, 5)
    world.close()


def test_what_fails_is_raised() -> None:
    world = World()
    with pytest.raises(UnknownReceiver):
        world.wait(world.client("shop").send("orders.new", b"x", to=["nobody"]))

    async def fails() -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        world.wait(fails())
    world.close()


def history(seed: int) -> list[str]:
    world = World(seed, faults=Faults(cut=0.2))
    world.receiver(["orders.>"], name="billing", handler=lambda _: None)
    client = world.client("shop")
    for number in range(10):
        world.wait(client.send("orders.new", number))
    world.close()
    return world.network.story


def test_the_same_seed_is_the_same_history() -> None:
    assert history(3) == history(3) != history(4)


@pytest.mark.parametrize("seed", range(5))
def test_what_was_accepted_outlives_a_kill_of_the_node_between_any_two_events(seed: int) -> None:
    world = World(seed, faults=Faults())
    handled: list[Any] = []
    receiver = world.receiver(
        ["orders.>"], name="billing", handler=lambda message: handled.append(message.content)
    )
    world.wait(receiver.when_connected())
    client = world.client("shop")
    sent = [client.send("orders.new", number) for number in range(30)]
    world.run(world.network.random.uniform(0, 3))
    world.kill_node()
    world.run(1)
    world.start_node()
    for each in sent:
        world.wait(world.wait(each).acknowledged())
    assert handled == list(range(30))
    world.close()


def test_a_killed_receiver_leaves_its_messages_to_the_next_of_its_name() -> None:
    world = World()
    held: list[Deferred[None]] = []

    def hold(_: object) -> Deferred[None]:
        held.append(Deferred())
        return held[-1]

    world.wait(world.receiver(["orders.>"], name="billing", handler=hold).when_connected())
    receipt = world.wait(world.client("shop").send("orders.new", b"x"))
    world.run_until(lambda: held)
    with pytest.raises(ValueError, match="there is a 'billing' already"):
        world.receiver(name="billing", handler=hold)
    world.kill("billing")
    world.receiver(name="billing", handler=lambda _: None)
    world.wait(receipt.acknowledged())
    assert receipt.statuses == {"billing": Status.ACKNOWLEDGED}
    world.close()


def test_a_killed_client_takes_with_it_what_it_had_not_handed_in() -> None:
    world = World()
    client = world.client("shop")
    world.wait(client.when_connected())
    world.kill_node()
    client.send("orders.new", b"gone")
    world.kill("shop")
    world.start_node()
    again = world.client("shop")
    receipt = world.wait(again.send("orders.new", b"kept"))
    assert receipt.sequence == 1
    world.close()


def test_a_connection_that_is_cut_is_made_again() -> None:
    world = World()
    client = world.client("shop")
    world.wait(client.when_connected())
    world.cut("shop")
    world.run_until(lambda: not client.connected)
    world.wait(client.when_connected())
    assert "cut" in "\n".join(world.network.story)
    world.close()


def test_weather_changes() -> None:
    world = World()
    assert world.faults is CALM
    world.faults = Faults(cut=1.0, half_open=0.0)
    client = world.client("shop")
    world.run(5)
    assert len(world.network.links) > 1
    world.faults = CALM
    world.wait(client.send("orders.new", b"x"))
    world.close()


def test_a_node_that_is_stopped_comes_back_with_its_log() -> None:
    world = World()
    world.wait(world.receiver(["orders.>"], name="billing", handler=print).when_connected())
    world.kill("billing")
    receipt = world.wait(world.client("shop").send("orders.new", b"x"))
    world.stop_node()
    assert world.node is None
    world.start_node()
    with pytest.raises(RuntimeError, match="the node runs"):
        world.start_node()

    def reject(_: object) -> None:
        from msgservice import Reject

        raise Reject("no")

    world.receiver(name="billing", handler=reject)
    with pytest.raises(NotDelivered):
        world.wait(receipt.acknowledged())
    world.close()
