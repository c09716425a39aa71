"""A gateway of named peers, with doubles of the receivers that it attaches."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent

from msgservice.errors import NotAuthenticated
from msgservice.faces import gateway as gateway_module
from msgservice.faces.gateway import Gateway


class ReceiverDouble:
    """A receiver that ends when the test says so."""

    made: list[ReceiverDouble]

    def __init__(self, reactor: Any, *, name: str, handler: Any) -> None:
        self.name, self.handler = name, handler
        self.is_attached = False
        self.ended: Deferred[None] | None = None
        self.made.append(self)

    def stop(self) -> Deferred[None]:
        assert self.ended is None, "stopped once"
        self.ended = Deferred()
        return self.ended


class Scene:
    """A gateway, what it attached, and what it handed to whom."""

    def __init__(self) -> None:
        self.handed: list[tuple[str, object]] = []
        self.gateway: Gateway[str] = Gateway(Clock(), self.attach, self.hand)

    def attach(self, receiver: Any) -> None:
        receiver.is_attached = True

    def hand(self, peer: str, message: Any) -> Deferred[None]:
        self.handed.append((peer, message))
        return succeed(None)

    def there(self) -> list[str]:
        """The names of the receivers that the node has now, in the order they came."""
        return [one.name for one in ReceiverDouble.made if one.is_attached and not is_over(one)]


def is_over(receiver: ReceiverDouble) -> bool:
    return receiver.ended is not None and receiver.ended.called


def end(receiver: ReceiverDouble) -> None:
    assert receiver.ended is not None
    receiver.ended.callback(None)


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Scene:
    ReceiverDouble.made = []
    monkeypatch.setattr(gateway_module, "Receiver", ReceiverDouble)
    return Scene()


def test_a_message_for_a_name_is_handed_to_the_peer_that_has_it(scene: Scene) -> None:
    scene.gateway.add("c1", "drone-7")
    scene.gateway.add("c2", "drone-8")
    assert {"drone-7", "drone-8"} == scene.gateway.names
    for receiver in ReceiverDouble.made:
        receiver.handler(f"for {receiver.name}")
    assert [("c1", "for drone-7"), ("c2", "for drone-8")] == scene.handed


def test_a_receiver_ends_before_the_next_of_its_name_begins(scene: Scene) -> None:
    scene.gateway.add("c1", "drone-7")
    scene.gateway.add("c2", "drone-7")
    assert 1 == len(ReceiverDouble.made)
    end(ReceiverDouble.made[0])
    assert ["drone-7"] == scene.there()
    ReceiverDouble.made[1].handler("hello")
    assert [("c2", "hello")] == scene.handed


def test_of_two_that_waited_for_a_name_the_newest_has_it_alone(scene: Scene) -> None:
    scene.gateway.add("c1", "drone-7")
    scene.gateway.add("c2", "drone-7")
    scene.gateway.add("c3", "drone-7")
    end(ReceiverDouble.made[0])
    assert ["drone-7"] == scene.there()
    ReceiverDouble.made[-1].handler("hello")
    assert [("c3", "hello")] == scene.handed


def test_one_that_left_while_it_waited_gets_no_receiver(scene: Scene) -> None:
    scene.gateway.add("c1", "drone-7")
    scene.gateway.add("c2", "drone-7")
    scene.gateway.remove("c2")
    end(ReceiverDouble.made[0])
    assert [] == scene.there()
    assert set() == scene.gateway.names


def test_a_peer_that_may_not_be_attached_holds_up_no_other() -> None:
    def attach(receiver: Any) -> None:
        if receiver.name == "drone-7":
            raise NotAuthenticated("user 'drones' is not configured")

    gateway: Gateway[str] = Gateway(Clock(), attach, lambda peer, message: None)
    with capturedLogs() as logged:
        gateway.add("c1", "drone-7")
    gateway.add("c2", "drone-8")
    assert ["drone-7 is not attached to the node: user 'drones' is not configured"] == [
        formatEvent(event) for event in logged
    ]
    assert {"drone-7", "drone-8"} == gateway.names
    gateway.remove("c1")
    assert {"drone-8"} == gateway.names


def test_a_peer_that_never_had_a_name_leaves_nothing(scene: Scene) -> None:
    scene.gateway.remove("c1")
    assert [] == ReceiverDouble.made


def test_stopping_waits_for_all_receivers_and_begins_none(scene: Scene) -> None:
    scene.gateway.add("c1", "drone-7")
    scene.gateway.add("c2", "drone-8")
    scene.gateway.add("c3", "drone-8")
    stopped = scene.gateway.stop()
    end(ReceiverDouble.made[0])
    assert not stopped.called
    end(ReceiverDouble.made[1])
    assert stopped.called
    assert [] == scene.there()
    assert 2 == len(ReceiverDouble.made)


def test_a_receiver_that_cannot_end_is_logged_and_frees_its_name(
    scene: Scene, logged_failures: Any
) -> None:
    scene.gateway.add("c1", "drone-7")
    scene.gateway.add("c2", "drone-7")
    ended = ReceiverDouble.made[0].ended
    assert ended is not None
    ended.errback(OSError("no"))
    assert 2 == len(ReceiverDouble.made)
    assert ["drone-7"] == [event["name"] for event in logged_failures]
    logged_failures.clear()


def test_a_peer_that_gets_another_name_has_no_receiver_of_the_one_before(scene: Scene) -> None:
    scene.gateway.add("c1", "drone-7")
    scene.gateway.add("c1", "drone-8")
    end(ReceiverDouble.made[0])
    assert (["drone-8"], {"drone-8"}) == (scene.there(), scene.gateway.names)
    scene.gateway.remove("c1")
    end(ReceiverDouble.made[1])
    assert [] == scene.there()


def test_who_says_its_name_when_the_gateway_has_stopped_gets_no_receiver(scene: Scene) -> None:
    scene.gateway.stop()
    scene.gateway.add("c1", "drone-7")
    assert ([], set()) == (scene.there(), scene.gateway.names)
