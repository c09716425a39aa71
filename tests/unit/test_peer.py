"""The stages of a node's connection: every stage with every event, and every short story of one."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from msgservice.core.frames import (
    BYE_CLOSING,
    BYE_PAUSED,
    BYE_REPLACED,
    VERSION,
    Ack,
    Hello,
    HelloOptions,
)
from msgservice.limits import Limits
from msgservice.node.greeting import Guest
from msgservice.node.peer import NEXT, Event, Peer, Stage
from msgservice.node.responders import Responders
from msgservice.records import Resume
from tests.kit.doubles import double
from tests.kit.passes import a_gate, at_home

ON_PURPOSE = (Stage.DRAINING, Stage.LEAVING)


class Seat:
    """An outlet: who feeds it, and how its connections ended."""

    def __init__(self) -> None:
        self.feeds = 0
        self.ends: list[bool] = []  # lost?
        self.answers = 0
        self.idle = False
        self.is_node = False
        self.last_error = "before"
        self.storing: list[Deferred[None]] = []

    def attach(self, connection: Any, resume: Resume, inbox: str | None) -> Seat:
        self.feeds += 1
        return self

    @property
    def outlet(self) -> Seat:
        return self

    @property
    def workers(self) -> int:
        return self.feeds

    def detach(self, reason: str, *, lost: bool) -> None:
        self.feeds -= 1
        self.ends.append(lost)

    def received(self, frame: Any) -> None:
        assert self.feeds, "an answer counts that its connection's successor asks for again"
        self.answers += 1

    def turn_ended(self) -> None:
        pass

    def stored(self) -> Deferred[None]:
        self.storing.append(Deferred())
        return self.storing[-1]

    @property
    def is_waited_for(self) -> bool:
        return any(not waiter.called for waiter in self.storing)


def a_seat() -> Any:
    return Seat()


class Scene:
    """A peer that was greeted as a receiver, and an outlet for it."""

    def __init__(self, *, is_dialled: bool = False) -> None:
        self.clock = Clock()
        self.outlet: Any = a_seat()
        hello = Hello(VERSION, "billing", "i1", HelloOptions())
        self.ends = 0
        self.connection = double(
            session=double(peer_hello=hello, failed=None),
            close=self.close,
            abort=self.close,
        )
        self.dispatch = double()
        self.register = double(opened=lambda peer: True, replace=lambda outlet, peer: True)
        self.peer = Peer(
            self.outlet if is_dialled else None,
            gate=a_gate(),
            greeter=double(),
            intake=double(),
            commits=double(),
            directory=double(),
            tracker=double(),
            dispatch=self.dispatch,
            register=self.register,
            requests=double(),
            responders=Responders(clock=self.clock, now=self.clock.seconds, limits=Limits()),
            clock=self.clock,
            limits=Limits(),
        )
        self.set_gone(False)
        self.peer.channel_up(self.connection)
        guest = Guest(
            "billing", "i1", self.outlet, None, was_paused=False, order="strict", allowed=at_home()
        )
        self.peer.admitted(guest)
        self.peer.answering(guest, 0)

    def set_gone(self, gone: bool) -> None:
        self.connection._attributes |= {"is_gone": gone, "may_send": not gone, "has_room": True}

    def close(self) -> None:
        self.ends += 1

    # --- what can happen

    def seated(self) -> None:
        if self.peer.stage is Stage.HERE:
            self.peer.seated(self.outlet, Resume())

    def leave(self) -> None:
        self.peer.leave(BYE_CLOSING, "the node stops")

    def replaced(self) -> None:
        self.peer.leave(BYE_REPLACED, "a newer one", lost=True)

    def dismissed(self) -> None:
        self.peer.dismiss(BYE_PAUSED, "paused")

    def parted(self) -> None:
        self.peer.part("being removed")

    def says_bye(self) -> None:
        if not self.peer.is_gone:
            self.peer.peer_leaves(self.connection, BYE_CLOSING, "done")

    def answers(self) -> None:
        if not self.peer.is_gone:
            self.peer.received(self.connection, Ack([(1, 1)]))
            self.outlet.idle = True
            self.peer.turn_ended(self.connection)

    def stored(self) -> None:
        for waiter in self.outlet.storing:
            if not waiter.called:
                waiter.callback(None)

    def lost(self) -> None:
        if not self.peer.is_gone:
            self.set_gone(True)
            self.peer.lost(self.connection, "cut")

    # --- what must hold

    def check(self, before: Stage, ends_before: list[bool]) -> None:
        peer = self.peer
        assert self.outlet.feeds == (peer.stage in (Stage.SEATED, Stage.DRAINING))
        byes = [code for code, _ in self.connection.told("bye")]
        assert 1 >= len([code for code in byes if code != BYE_REPLACED])
        assert peer.is_leaving is (peer.stage not in (Stage.HERE, Stage.SEATED, Stage.PARTED))
        assert peer.is_gone is (peer.stage is Stage.GONE)
        fed = [name for name, _ in self.dispatch.calls if name in ("connected", "disconnected")]
        assert fed == ["connected", "disconnected"][: len(fed)]
        if any(self.outlet.ends[len(ends_before) :]):
            # An attempt may have failed only where nobody had begun to end it on purpose.
            assert before is Stage.SEATED
        if peer.stage is Stage.PARTED:
            assert not byes
        if peer.stage in ON_PURPOSE:
            assert byes or (peer.stage is Stage.DRAINING and self.outlet.is_waited_for)
        if peer.stage is Stage.DRAINING and not self.outlet.is_waited_for:
            assert not self.outlet.idle or self.ends
        if peer.stage is not Stage.DRAINING:
            assert not self.outlet.is_waited_for


HAPPENINGS: dict[str, Callable[[Scene], None]] = {
    "seated": Scene.seated,
    "leave": Scene.leave,
    "replaced": Scene.replaced,
    "dismissed": Scene.dismissed,
    "parted": Scene.parted,
    "says bye": Scene.says_bye,
    "answers": Scene.answers,
    "stored": Scene.stored,
    "lost": Scene.lost,
}


@pytest.mark.parametrize("beginning", [*product(HAPPENINGS, repeat=2)], ids=" ".join)
def test_no_story_of_a_peer_feeds_who_has_left_or_blames_who_was_sent_away(
    beginning: tuple[str, str],
) -> None:
    for rest in product(HAPPENINGS, repeat=2):
        scene = Scene()
        for name in (*beginning, *rest):
            before, ends = scene.peer.stage, list(scene.outlet.ends)
            HAPPENINGS[name](scene)
            scene.check(before, ends)
        scene.lost()
        assert not scene.outlet.feeds
        assert [(scene.peer,)] == scene.register.told("gone")
        assert [] == scene.clock.getDelayedCalls()


@pytest.mark.parametrize("event", Event)
@pytest.mark.parametrize("stage", Stage)
def test_a_peer_is_seated_once_and_every_other_event_may_come_in_every_stage(
    stage: Stage, event: Event
) -> None:
    peer = Scene().peer
    peer.stage = stage
    if event is Event.SEATED and stage is not Stage.HERE:
        with pytest.raises(KeyError):
            peer._happens(event)
        assert stage is peer.stage
    else:
        peer._happens(event)
        assert NEXT[stage, event] is peer.stage


@pytest.mark.parametrize(
    ("happened", "error"),
    [
        ([], "cut"),
        (["parted"], "cut"),
        (["seated"], "before"),
        (["seated", "parted"], "before"),
        (["dismissed"], "before"),
        (["leave"], "before"),
    ],
)
def test_the_end_of_a_dialled_connection_is_its_receivers_error_if_it_was_never_seated(
    happened: list[str], error: str
) -> None:
    scene = Scene(is_dialled=True)
    for name in happened:
        HAPPENINGS[name](scene)
    scene.lost()
    assert error == scene.outlet.last_error  # the outlet itself notes why it was detached
