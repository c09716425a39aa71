"""Components, their boxes and their scheduler, on virtual time and without any socket."""

import itertools
from collections.abc import Callable, Generator, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import LogEvent

from msgservice.faces import axon as Axon
from msgservice.faces.axon.AxonExceptions import (
    BadComponent,
    BoxAlreadyLinkedToDestination,
    Closed,
    noSpaceInBox,
)
from msgservice.faces.axon.Component import process_of
from msgservice.faces.axon.Ipc import producerFinished, shutdownMicroprocess
from msgservice.faces.axon.mailbox import BOX_BYTES_MAX, Mailbox
from msgservice.faces.axon.process import FRUITLESS_STEPS_MAX, State
from msgservice.faces.axon.scheduler import PAUSES_S, STEPS_PER_TURN, Scheduler

component = Axon.Component.component


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def scheduler(clock: Clock) -> Scheduler:
    return Scheduler(clock)


def turns(clock: Clock, number: int = 5) -> None:
    """Let the reactor turn without any time passing."""
    for _ in range(number):
        clock.advance(0)


class Collector(component):
    """Keeps what arrives in its inbox."""

    def __init__(self) -> None:
        super().__init__()
        self.got: list[Any] = []

    def main(self) -> Iterator[Any]:
        while True:
            self.got.extend(self.Inbox("inbox"))
            self.pause()
            yield 1


def running(main: Callable[[Any], Any], scheduler: Scheduler) -> Any:
    """Return an activated component whose `main` is this function."""
    made = type("Made", (component,), {"main": main})()
    made.activate(scheduler)
    return made


def collector(scheduler: Scheduler) -> Collector:
    return Collector().activate(scheduler)


# --- Boxes ----------------------------------------------------------------------------------------


def test_messages_come_out_in_the_order_they_went_in() -> None:
    box = Mailbox("inbox", None)
    for number in range(5):
        box.deliver(number)
    assert [box.take() for _ in range(5)] == [0, 1, 2, 3, 4]


def test_an_empty_box_raises_what_a_list_would() -> None:
    with pytest.raises(IndexError, match="inbox"):
        component().recv("inbox")


@pytest.mark.parametrize("use", ["recv", "dataReady", "send"])
def test_a_box_that_does_not_exist_is_named(use: str) -> None:
    made = component()
    with pytest.raises(KeyError, match="nope"):
        made.send(1, "nope") if use == "send" else getattr(made, use)("nope")


def test_what_was_sent_before_a_link_arrives_through_it() -> None:
    source, sink = component(), component()
    source.send("early", "outbox")
    source.link((source, "outbox"), (sink, "inbox"))
    assert sink.recv("inbox") == "early"


def test_an_unlinked_outbox_of_a_running_component_keeps_nothing(
    scheduler: Scheduler, clock: Clock
) -> None:
    source, sink = collector(scheduler), component()
    source.send("lost", "outbox")
    source.link((source, "outbox"), (sink, "inbox"))
    assert not sink.dataReady("inbox")


def test_passthrough_leads_through_a_parent_to_its_child_and_back() -> None:
    parent, child, sink = component(), component(), component()
    parent.addChildren(child)
    parent.link((parent, "inbox"), (child, "inbox"), passthrough=1)
    parent.link((child, "outbox"), (parent, "outbox"), passthrough=2)
    parent.link((parent, "outbox"), (sink, "inbox"))
    parent.inboxes["inbox"].deliver("in")
    child.send("out", "outbox")
    assert (child.recv("inbox"), sink.recv("inbox")) == ("in", "out")
    assert [child] == parent.childComponents()


def test_a_box_cannot_lead_to_two_places() -> None:
    a, b = component(), component()
    a.link((a, "outbox"), (b, "inbox"))
    with pytest.raises(BoxAlreadyLinkedToDestination):
        a.link((a, "outbox"), (b, "control"))


def test_a_chain_of_links_cannot_lead_back_to_its_beginning() -> None:
    a, b = component(), component()
    a.link((a, "inbox"), (b, "inbox"), passthrough=1)
    with pytest.raises(BoxAlreadyLinkedToDestination):
        b.link((b, "inbox"), (a, "inbox"), passthrough=1)


def test_unlink_ends_one_linkage_or_all_of_a_component() -> None:
    a, b = component(), component()
    first = a.link((a, "outbox"), (b, "inbox"))
    a.link((a, "signal"), (b, "control"))
    a.unlink(thelinkage=first)
    a.send(1, "outbox")
    a.send(2, "signal")
    assert (b.dataReady("inbox"), b.dataReady("control")) == (0, 1)
    a.unlink(thecomponent=b)
    a.send(3, "signal")
    assert b.dataReady("control") == 1


def test_a_box_with_a_size_refuses_what_is_beyond_it() -> None:
    a, b = component(), component()
    b.setInboxSize("inbox", 2)
    a.link((a, "outbox"), (b, "inbox"))
    a.send(1)
    a.send(2)
    with pytest.raises(noSpaceInBox) as refused:
        a.send(3)
    assert (refused.value.box, refused.value.held, refused.value.held_max) == ("inbox", 2, 2)
    assert list(b.Inbox("inbox")) == [1, 2]


def test_a_box_is_full_beyond_its_limit_and_no_longer_when_half_empty() -> None:
    box = Mailbox("inbox", None, bytes_max=100)
    roomy: list[str] = []
    for _ in range(4):
        box.deliver(b"x" * 30)
    assert box.full
    box.when_room(lambda: roomy.append("room"))
    box.take()
    box.take()
    assert box.full
    assert roomy == []
    box.take()
    assert not box.full
    assert roomy == ["room"]


def test_keywords_become_attributes() -> None:
    assert component(peer="10.0.0.1").peer == "10.0.0.1"  # type: ignore[attr-defined] # by keyword


def test_every_component_has_its_own_name() -> None:
    assert component().name != component().name


def test_boxes_can_be_added_and_deleted_under_free_names() -> None:
    made = Axon.AdaptiveCommsComponent.AdaptiveCommsComponent()
    assert made.addInbox("more") == "more"
    assert made.addInbox("more") == "more2"
    assert made.addOutbox("outbox") == "outbox2"
    made.deleteInbox("more")
    with pytest.raises(KeyError):
        made.deleteInbox("more")
    made.deleteOutbox("outbox2")
    assert list(made.outboxes) == ["outbox", "signal"]


def test_resources_are_found_by_their_boxes_until_they_are_forgotten() -> None:
    made = Axon.AdaptiveCommsComponent.AdaptiveCommsComponent()
    made.trackResource("socket", made.addInbox("more"))
    made.trackResourceInformation("other", ["inbox"], ["outbox"], 7)
    assert made.retrieveTrackedResource("more") == "socket"
    assert made.retrieveTrackedResourceInformation("other") == (["inbox"], ["outbox"], 7)
    made.ceaseTrackingResource("socket")
    with pytest.raises(KeyError):
        made.retrieveTrackedResource("more")
    with pytest.raises(KeyError):
        made.trackResource("socket", "nope")


# --- Generators -----------------------------------------------------------------------------------


def test_a_component_runs_at_once_when_something_arrives(scheduler: Scheduler) -> None:
    sink = collector(scheduler)
    scheduler.enter(sink.inboxes["inbox"].deliver, "data")
    assert sink.got == ["data"]


def test_a_component_woken_outside_runs_in_the_next_turn(
    scheduler: Scheduler, clock: Clock
) -> None:
    sink = collector(scheduler)
    turns(clock)
    sink._deliver("data")
    assert sink.got == []
    turns(clock)
    assert sink.got == ["data"]


def test_an_idle_yielder_is_resumed_after_pauses_that_double_to_a_second(
    scheduler: Scheduler, clock: Clock
) -> None:
    resumed: list[float] = []

    def main(self: Any) -> Iterator[Any]:
        while True:
            resumed.append(clock.seconds())
            yield 1

    running(main, scheduler)
    while clock.seconds() < 5:
        clock.advance(0.0005)
    pauses = [round(b - a, 3) for a, b in itertools.pairwise(resumed)]
    assert list(PAUSES_S) == pytest.approx(pauses[: len(PAUSES_S)], abs=0.002)
    assert all(abs(p - 1.024) < 0.002 for p in pauses[len(PAUSES_S) :])


def test_a_message_ends_the_pause_of_an_idle_yielder_at_once(
    scheduler: Scheduler, clock: Clock
) -> None:
    got: list[tuple[float, Any]] = []

    def main(self: Any) -> Iterator[Any]:
        while True:
            yield 1
            if self.dataReady("inbox"):
                got.append((clock.seconds(), self.recv("inbox")))

    made = running(main, scheduler)
    for _ in range(3000):
        clock.advance(0.001)
    now = clock.seconds()
    scheduler.enter(made.inboxes["inbox"].deliver, "data")
    assert [(now, "data")] == got


def test_five_thousand_idle_components_cost_one_timer(scheduler: Scheduler, clock: Clock) -> None:
    def main(self: Any) -> Iterator[Any]:
        while True:
            yield 1

    for _ in range(5000):
        running(main, scheduler)
    for _ in range(4000):
        clock.advance(0.001)
    assert len(clock.getDelayedCalls()) == 1


def test_a_component_that_pauses_costs_no_timer_at_all(scheduler: Scheduler, clock: Clock) -> None:
    collector(scheduler)
    turns(clock)
    assert clock.getDelayedCalls() == []


def test_a_component_that_always_has_something_to_do_leaves_the_reactor_its_turns(
    scheduler: Scheduler, clock: Clock
) -> None:
    steps = 0

    def main(self: Any) -> Iterator[Any]:
        nonlocal steps
        while True:
            steps += 1
            self.send("more", "outbox")
            yield 1

    made = running(main, scheduler)
    clock.callLater(0, made.stop)  # any other event of the reactor
    clock.advance(0)
    assert steps == STEPS_PER_TURN


def test_a_yielder_that_ignores_a_message_is_paused_in_the_end(
    scheduler: Scheduler, clock: Clock
) -> None:
    steps = 0

    def main(self: Any) -> Iterator[Any]:
        nonlocal steps
        while True:
            steps += 1
            yield 1

    made = running(main, scheduler)
    made._deliver("ignored", "control")
    turns(clock, FRUITLESS_STEPS_MAX * 2)
    assert steps == FRUITLESS_STEPS_MAX + 1


def test_pause_waits_for_a_message(scheduler: Scheduler, clock: Clock) -> None:
    resumed: list[float] = []

    def main(self: Any) -> Iterator[Any]:
        while True:
            resumed.append(clock.seconds())
            self.pause()
            yield 1

    made = running(main, scheduler)
    clock.advance(100)
    assert len(resumed) == 1
    made._deliver("data")
    turns(clock)
    assert len(resumed) == 2


def test_what_arrives_in_the_step_that_asks_for_a_pause_is_not_slept_through(
    scheduler: Scheduler, clock: Clock
) -> None:
    resumed = 0

    def main(self: Any) -> Iterator[Any]:
        nonlocal resumed
        while True:
            resumed += 1
            if resumed == 1:
                self._deliver("to myself")
            self.pause()
            yield 1

    running(main, scheduler)
    turns(clock)
    assert resumed == 2


def test_a_component_that_takes_one_message_and_pauses_gets_the_others_too(
    scheduler: Scheduler, clock: Clock
) -> None:
    got: list[Any] = []

    def main(self: Any) -> Iterator[Any]:
        while True:
            if self.dataReady("inbox"):
                got.append(self.recv("inbox"))
            self.pause()
            yield 1

    made = running(main, scheduler)
    turns(clock)
    for number in range(4):
        made._deliver(number)
    turns(clock)
    assert got == [0, 1, 2, 3]


def test_wait_complete_runs_another_generator_to_its_end_first(
    scheduler: Scheduler, clock: Clock
) -> None:
    order: list[str] = []

    def part() -> Iterator[Any]:
        order.append("part begins")
        yield 1
        order.append("part ends")

    def main(self: Any) -> Iterator[Any]:
        yield Axon.Ipc.WaitComplete(part())
        order.append("main")

    running(main, scheduler)
    clock.pump([0.001] * 20)
    assert order == ["part begins", "part ends", "main"]


def test_new_component_activates_what_it_carries(scheduler: Scheduler, clock: Clock) -> None:
    child = Collector()

    def main(self: Any) -> Iterator[Any]:
        yield Axon.Ipc.newComponent(child)

    running(main, scheduler)
    child._deliver("data")
    clock.pump([0.001] * 5)
    assert child.got == ["data"]


def test_a_component_activated_in_a_step_runs_on_the_same_scheduler(
    scheduler: Scheduler, clock: Clock
) -> None:
    child = Collector()

    def main(self: Any) -> Iterator[Any]:
        child.activate()
        yield 1

    running(main, scheduler)
    child._deliver("data")
    turns(clock)
    assert child.got == ["data"]


def test_main_may_be_made_of_three_parts(scheduler: Scheduler, clock: Clock) -> None:
    order: list[str] = []

    class Parts(component):
        left = 2

        def initialiseComponent(self) -> None:
            order.append("first")

        def mainBody(self) -> bool:
            order.append("body")
            self.left -= 1
            return self.left > 0

        def closeDownComponent(self) -> None:
            order.append("last")

    Parts().activate(scheduler)
    clock.pump([0.001] * 20)
    assert order == ["first", "body", "body", "last"]


# --- Ends and failures ----------------------------------------------------------------------------


def test_a_failure_ends_one_component_and_is_logged(
    scheduler: Scheduler, clock: Clock, logged_failures: list[LogEvent]
) -> None:
    def main(self: Any) -> Iterator[Any]:
        yield 1
        raise RuntimeError("boom")

    failing, other = running(main, scheduler), collector(scheduler)
    clock.pump([0.001] * 5)
    scheduler.enter(other.inboxes["inbox"].deliver, "data")
    assert failing._isStopped()
    assert other.got == ["data"]
    assert [str(e["log_failure"].value) for e in logged_failures] == ["boom"]
    logged_failures.clear()


def test_a_main_that_fails_before_it_yields_anything_is_logged(
    scheduler: Scheduler, clock: Clock, logged_failures: list[LogEvent]
) -> None:
    def main(self: Any) -> None:
        raise ValueError("no generator at all")

    made = running(main, scheduler)
    turns(clock)
    assert made._isStopped()
    assert len(logged_failures) == 1
    logged_failures.clear()


def test_stop_runs_the_finally_clauses(scheduler: Scheduler, clock: Clock) -> None:
    closed: list[str] = []

    def main(self: Any) -> Iterator[Any]:
        try:
            while True:
                yield 1
        finally:
            closed.append("closed")

    made = running(main, scheduler)
    turns(clock)
    made.stop()
    assert closed == ["closed"]
    assert made._isStopped()


def test_a_component_may_stop_itself(scheduler: Scheduler, clock: Clock) -> None:
    steps = 0

    def main(self: Any) -> Iterator[Any]:
        nonlocal steps
        while True:
            steps += 1
            self.stop()
            yield 1

    made = running(main, scheduler)
    clock.pump([0.01] * 5)
    assert (steps, made._isStopped()) == (1, True)


def test_what_is_sent_to_a_stopped_component_is_dropped(scheduler: Scheduler, clock: Clock) -> None:
    made = collector(scheduler)
    turns(clock)
    made.stop()
    made._deliver("late")
    assert not made.dataReady("inbox")


def test_nothing_is_left_on_the_clock_when_the_last_component_has_ended(
    scheduler: Scheduler, clock: Clock
) -> None:
    def main(self: Any) -> Iterator[Any]:
        while not self.dataReady("control"):
            yield 1

    quiet: list[str] = []
    made = running(main, scheduler)
    scheduler.when_quiet(lambda: quiet.append("quiet"))
    for _ in range(50):
        clock.advance(0.001)
    scheduler.enter(made.inboxes["control"].deliver, "end")
    turns(clock)
    assert (quiet, clock.getDelayedCalls()) == (["quiet"], [])


# --- Coroutines -----------------------------------------------------------------------------------


def test_a_coroutine_waits_for_its_messages(scheduler: Scheduler, clock: Clock) -> None:
    got: list[Any] = []

    async def main(self: Any) -> None:
        while True:
            got.append(await self.recv("inbox"))

    made = running(main, scheduler)
    turns(clock)
    for number in range(3):
        scheduler.enter(made.inboxes["inbox"].deliver, number)
    assert got == [0, 1, 2]
    assert clock.getDelayedCalls() == []


@pytest.mark.parametrize("message", [producerFinished(), shutdownMicroprocess()])
def test_recv_raises_closed_when_the_end_was_announced_and_the_box_is_empty(
    message: object, scheduler: Scheduler, clock: Clock
) -> None:
    got: list[Any] = []

    async def main(self: Any) -> None:
        try:
            while True:
                got.append(await self.recv("inbox"))
        except Closed as closed:
            got.append(closed.message)

    made = running(main, scheduler)
    made._deliver("not an end", "control")
    made._deliver(message, "control")
    made._deliver("last", "inbox")
    turns(clock)
    assert ["last", message] == got


def test_a_coroutine_that_lets_closed_pass_has_not_failed(
    scheduler: Scheduler, clock: Clock, logged_failures: list[LogEvent]
) -> None:
    async def main(self: Any) -> None:
        await self.recv("inbox")

    made = running(main, scheduler)
    made._deliver(producerFinished(), "control")
    turns(clock)
    assert (made._isStopped(), logged_failures) == (True, [])


def test_async_for_ends_with_the_producer(scheduler: Scheduler, clock: Clock) -> None:
    got: list[Any] = []

    async def main(self: Any) -> None:
        got.extend([message async for message in self.Inbox("inbox")])
        got.append("end")

    made = running(main, scheduler)
    for message in ("a", "b"):
        made._deliver(message)
    made._deliver(producerFinished(), "control")
    turns(clock)
    assert got == ["a", "b", "end"]


def test_a_coroutine_may_await_control_itself(scheduler: Scheduler, clock: Clock) -> None:
    got: list[Any] = []

    async def main(self: Any) -> None:
        got.append(await self.recv("control"))

    made = running(main, scheduler)
    end = producerFinished()
    made._deliver(end, "control")
    turns(clock)
    assert [end] == got


def test_awaiting_pause_waits_for_any_box(scheduler: Scheduler, clock: Clock) -> None:
    order: list[str] = []

    async def main(self: Any) -> None:
        await self.pause()
        order.append("resumed")

    made = running(main, scheduler)
    turns(clock)
    assert order == []
    made._deliver("x", "control")
    turns(clock)
    assert order == ["resumed"]


def test_a_coroutine_awaits_deferreds_and_their_failures(
    scheduler: Scheduler, clock: Clock
) -> None:
    first: Deferred[str] = Deferred()
    second: Deferred[str] = Deferred()
    got: list[Any] = []

    async def main(self: Any) -> None:
        got.append(await first)
        try:
            await second
        except ValueError as error:
            got.append(str(error))

    made = running(main, scheduler)
    turns(clock)
    made._deliver("a message does not end the wait for a Deferred")
    turns(clock)
    assert got == []
    first.callback("result")
    turns(clock)
    second.errback(ValueError("failure"))
    turns(clock)
    assert got == ["result", "failure"]


def test_what_cannot_be_awaited_is_a_clear_failure(
    scheduler: Scheduler, clock: Clock, logged_failures: list[LogEvent]
) -> None:
    class Foreign:
        def __await__(self) -> Generator[Any, Any, None]:
            yield "a future of another loop"

    async def main(self: Any) -> None:
        await Foreign()

    running(main, scheduler)
    turns(clock)
    assert [BadComponent] == [e["log_failure"].type for e in logged_failures]
    logged_failures.clear()


def test_stopping_a_coroutine_cancels_the_deferred_it_awaits(
    scheduler: Scheduler, clock: Clock
) -> None:
    cancelled: list[str] = []
    awaited: Deferred[None] = Deferred(lambda _: cancelled.append("cancelled"))

    async def main(self: Any) -> None:
        await awaited

    made = running(main, scheduler)
    turns(clock)
    made.stop()
    assert (cancelled, made._isStopped()) == (["cancelled"], True)


# --- Backpressure between components --------------------------------------------------------------


class Slow(component):
    """Takes nothing until it is told to."""

    take = False

    def main(self) -> Iterator[Any]:
        while True:
            if self.take:
                list(self.Inbox("inbox"))
            self.pause()
            yield 1


def flood(self: Any) -> Iterator[Any]:
    while True:
        self.send(b"x" * 65536, "outbox")
        yield 1


def test_a_producer_is_not_resumed_while_its_consumer_is_full(
    scheduler: Scheduler, clock: Clock
) -> None:
    slow = Slow().activate(scheduler)
    producer = type("Producer", (component,), {"main": flood})()
    producer.link((producer, "outbox"), (slow, "inbox"))
    producer.activate(scheduler)
    clock.pump([0.01] * 100)
    box = slow.inboxes["inbox"]
    assert box.bytes_held == BOX_BYTES_MAX
    assert State.BLOCKED is process_of(producer).state
    slow.take = True
    scheduler.enter(slow.unpause)
    assert box.taken >= 4
    assert box.bytes_held <= BOX_BYTES_MAX + 65536


def test_control_resumes_a_producer_whose_consumer_is_full(
    scheduler: Scheduler, clock: Clock
) -> None:
    def main(self: Any) -> Iterator[Any]:
        while not self.dataReady("control"):
            self.send(b"x" * 65536, "outbox")
            yield 1

    slow = Slow().activate(scheduler)
    producer = type("Producer", (component,), {"main": main})()
    producer.link((producer, "outbox"), (slow, "inbox"))
    producer.activate(scheduler)
    clock.pump([0.01] * 10)
    producer._deliver(shutdownMicroprocess(), "control")
    turns(clock)
    assert producer._isStopped()


def test_awaiting_send_waits_for_room(scheduler: Scheduler, clock: Clock) -> None:
    sent: list[int] = []

    async def main(self: Any) -> None:
        for number in range(100):
            await self.send(b"x" * 65536, "outbox")
            sent.append(number)

    slow = Slow().activate(scheduler)
    producer = type("Producer", (component,), {"main": main})()
    producer.link((producer, "outbox"), (slow, "inbox"))
    producer.activate(scheduler)
    turns(clock)
    assert len(sent) == 3
    slow.take = True
    slow.unpause()
    clock.pump([0.01] * 100)
    assert len(sent) == 100


def test_a_consumer_that_ends_frees_its_producer(scheduler: Scheduler, clock: Clock) -> None:
    slow = Slow().activate(scheduler)
    producer = type("Producer", (component,), {"main": flood})()
    producer.link((producer, "outbox"), (slow, "inbox"))
    producer.activate(scheduler)
    clock.pump([0.01] * 10)
    slow.stop()
    assert State.READY is process_of(producer).state


def test_a_ring_of_full_components_goes_on(scheduler: Scheduler, clock: Clock) -> None:
    class Doubler(component):
        seen = 0

        def main(self) -> Iterator[Any]:
            while self.seen < 200:
                yield 1
                for message in self.Inbox("inbox"):
                    self.seen += 1
                    self.send(message, "outbox")
                    self.send(message, "outbox")

    a, b = Doubler(), Doubler()
    a.link((a, "outbox"), (b, "inbox"))
    b.link((b, "outbox"), (a, "inbox"))
    a._deliver(b"x" * 65536)
    a.activate(scheduler)
    b.activate(scheduler)
    clock.pump([0.01] * 100)
    assert (a._isStopped(), b._isStopped()) == (True, True)


# --- Every state and every event ------------------------------------------------------------------

EVENTS: dict[str, Callable[[Any], object]] = {
    "message": lambda made: made._deliver("x", "inbox"),
    "control": lambda made: made._deliver("x", "control"),
    "pause over": lambda made: process_of(made).pause_over(process_of(made).pause_number),
    "stop": lambda made: made.stop(),
    "unpause": lambda made: made.unpause(),
    "activate": lambda made: made.activate(),
    "step": lambda made: process_of(made).step(),
}
# What is not listed changes nothing, but for "stop", which stops everything.
OUTCOMES = {
    (State.NEW, "activate"): State.READY,
    (State.READY, "step"): State.PAUSED,
    (State.PAUSED, "message"): State.READY,
    (State.PAUSED, "control"): State.READY,
    (State.PAUSED, "unpause"): State.READY,
    (State.PAUSED, "pause over"): State.READY,
    (State.WAITING, "message"): State.READY,
    (State.WAITING, "control"): State.READY,
    (State.WAITING, "unpause"): State.READY,
    (State.BLOCKED, "control"): State.READY,
}


def in_state(state: State, scheduler: Scheduler, clock: Clock) -> Any:
    def paused(self: Any) -> Iterator[Any]:
        while True:
            yield 1

    async def awaiting(self: Any) -> None:
        await Deferred()

    def waiting(self: Any) -> Iterator[Any]:
        while True:
            self.pause()
            yield 1

    if state is State.NEW:
        return component()
    if state is State.BLOCKED:
        made: Any = type("Producer", (component,), {"main": flood})()
        slow = Slow().activate(scheduler)
        made.link((made, "outbox"), (slow, "inbox"))
        made.activate(scheduler)
        clock.pump([0.001] * 10)
        return made
    mains = {State.AWAITING: awaiting, State.WAITING: waiting}
    made = running(mains.get(state, paused), scheduler)
    if state is not State.READY:
        clock.advance(0)
    if state is State.STOPPED:
        made.stop()
    return made


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("state", [s for s in State if s is not State.RUNNING])
def test_every_state_decides_every_event(
    state: State, event: str, scheduler: Scheduler, clock: Clock
) -> None:
    made = in_state(state, scheduler, clock)
    assert state is process_of(made).state
    scheduler.enter(lambda: None)
    if state is State.READY:  # it has run by now; make it so again
        made.unpause()
    expected = State.STOPPED if event == "stop" else OUTCOMES.get((state, event), state)
    if event == "activate":
        made.activate(scheduler)
    EVENTS[event](made)
    assert expected is process_of(made).state


# --- Order, whatever the boxes and the pauses -----------------------------------------------------


@given(
    sizes=st.lists(st.integers(0, 200_000), max_size=40),
    hops=st.integers(1, 4),
    coroutine=st.booleans(),
)
def test_nothing_is_lost_or_reordered_on_the_way_through_a_pipeline(
    sizes: list[int], hops: int, coroutine: bool
) -> None:
    clock = Clock()
    scheduler = Scheduler(clock)

    def relay(self: Any) -> Iterator[Any]:
        while True:
            yield 1
            if self.dataReady("inbox"):
                self.send(self.recv("inbox"), "outbox")

    async def co_relay(self: Any) -> None:
        async for message in self.Inbox("inbox"):
            await self.send(message, "outbox")

    sent = [bytes([n]) * size for n, size in enumerate(sizes)]

    def source(self: Any) -> Iterator[Any]:
        for message in sent:
            self.send(message, "outbox")
            yield 1

    parts: list[Any] = [type("Source", (component,), {"main": source})()]
    main = co_relay if coroutine else relay
    parts += [type("Relay", (component,), {"main": main})() for _ in range(hops)]
    end = Collector()
    parts.append(end)
    for before, after in itertools.pairwise(parts):
        before.link((before, "outbox"), (after, "inbox"))
    for part in reversed(parts):
        part.activate(scheduler)
    clock.pump([0.01] * 20)
    assert sent == end.got
