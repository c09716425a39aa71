"""Running handlers: in which order, how many at once, and what their outcome means.

A run that arrives becomes *work* (one for each of its new parts) in its *lane*. A lane with work
is *ready*; `_pump` takes one step of one ready lane after the other, until the turn has lasted
`SLICE_SECONDS`, or `concurrency` calls run. A *unit* is what one call of the handler gets: a
message, or with `batch` a part of a run. A call ends at once (a plain handler), or is kept until
its Deferred fires or its thread comes back. In a lane that keeps order (key not None) one unit at
a time; without order a lane does not wait for its calls.

What the handler said becomes marks and answers in the node's `core.inbox.Inbox`; answers of one
turn leave together. A plain handler costs no Deferred and no bookkeeping for each message: a loop
over the run, and one `taken` at its end.

Connections are the business of `receiver`, threads and transactions that of the modules beside.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from types import CoroutineType
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from msgservice.core.inbox import Arrival
from msgservice.core.refusal import Refusal
from msgservice.errors import GENERATORS, has_not_run
from msgservice.message import Action
from msgservice.receiver.handling.coroutines import begin
from msgservice.receiver.handling.outcomes import describe_failure, judge
from msgservice.receiver.handling.work import HandlerCall, Lane, NodeIncarnation, Work
from msgservice.receiver.received import ReceivedMessage
from msgservice.waiters import Failed, failure_of

SLICE_SECONDS = 0.05  # handlers run so long in one turn of the reactor, then others have theirs
# Messages between two looks at the clock: as many as took about a quarter of a slice last time.
CHUNK_MAX = 256
LOOK_EVERY = 64  # messages of a chunk, in case that those behind are slower
CHUNK_SECONDS = SLICE_SECONDS / 4
LANES_KEPT = 1000  # lanes without work, of one node, that are kept for when there is some

Handler = Callable[[Any], Any]
PENDING = (Deferred, CoroutineType)
UNFINISHED = (*PENDING, *GENERATORS)


class Handling:
    """The scheduler of handler calls. `now`: monotonic seconds."""

    _logger = Logger()

    def __init__(
        self,
        handler: Handler,
        *,
        name: str,
        clock: IReactorTime,
        now: Callable[[], float],
        batch: bool,
        concurrency: int,
    ) -> None:
        self.nodes: dict[tuple[str, str], NodeIncarnation] = {}
        self.is_stopping = False
        self._handler = handler
        self._name = name
        self._clock = clock
        self.seconds = self._now = now
        self._batch = batch
        self._step = self._step_batch if batch else self._step_each
        self._concurrency = concurrency
        self._ready: deque[Lane] = deque()
        self._calls: set[HandlerCall] = set()
        self._left: set[HandlerCall] = set()  # of those: given up by a stop, and never ended
        self._touched: set[NodeIncarnation] = set()
        self._chunk = 1
        self._until = 0.0  # when the slice of the turn that runs is over; 0: it has not begun
        self._is_turn = False  # `_turn` runs
        self._step_until = 0.0  # when the slice of the steps that run is over
        self._is_pumping = False
        self._begun: list[ReceivedMessage] = []  # what the step that runs has still to handle
        self._is_inside = False  # a connection's turn: `turn_ended` follows
        self._turn_call: IDelayedCall | None = None
        self._idle: Deferred[None] | None = None

    # --- from the world

    def take(
        self,
        node: NodeIncarnation,
        arrival: Arrival,
        messages: list[ReceivedMessage],
        size: int,
    ) -> None:
        """Handle the new parts of a run (`size` in bytes), in their turn.

        To be called while a connection's turn runs, at whose end `turn_ended` is called.
        """
        if self.is_stopping:
            return  # the node has it, and sends it again
        key = arrival.lane
        lane = node.lanes.get(key)
        if lane is None:
            lane = node.lanes[key] = Lane(node, key)
        for first, last in arrival.parts:
            work = Work(node, arrival, messages, first, last, size)
            size = 0
            lane.queue.append(work)
            node.hold(work)
        if not lane.is_ready and not lane.behind and (key is None or not lane.running):
            lane.is_ready = True
            self._ready.append(lane)
        self._is_inside = True
        try:
            self._pump()
        finally:
            self._is_inside = False

    def turn_ended(self, node: NodeIncarnation) -> None:
        """The connection's turn is over: its answers leave."""
        self._until = 0.0
        self._touched.add(node)
        self._flush()

    def reconnected(self, node: NodeIncarnation, *, ordered: bool) -> None:
        """A new connection of the node: bring its marks up to date before they are told.

        `ordered`: whether the order is strict on it. Where that was another, lanes were others:
        nothing more is begun of what came before, and until it has ended nothing new is taken.

        Earlier incarnations of the same node that have no connection any more are over: the node
        has removed the receiver since, or its log was put back. What is left of them would be
        handled among what comes now.
        """
        self._tell_all(node)
        node.is_paused = node.is_leaving = False
        is_changed = node.inbox.ordered is not ordered
        node.inbox.ordered = ordered
        if is_changed or node.is_changing:
            self._change(node)
        else:
            for lane in node.lanes.values():
                lane.is_over = False
        node.inbox.reconnect()
        for elder in self.nodes.values():
            is_over = elder.connection is None and elder is not node
            if is_over and elder.name == node.name:
                self._succeed(elder, node)

    def _change(self, node: NodeIncarnation) -> None:
        self._end_lanes(node)
        node.is_changing = node.is_paused = node.works > 0
        if not node.is_changing:
            node.end_change()

    def _succeed(self, elder: NodeIncarnation, node: NodeIncarnation) -> None:
        """Nothing more of an earlier incarnation is begun; what runs goes before what comes."""
        if not elder.works:
            return
        for lane in list(elder.lanes.values()):
            self._abandon(lane)
            lane.is_over = True
            if lane.running and lane.key is not None:
                later = node.lanes.get(lane.key)
                if later is None:
                    later = node.lanes[lane.key] = Lane(node, lane.key)
                if later not in lane.followers:
                    lane.followers += (later,)
                    later.behind += 1

    def removed(self, node: NodeIncarnation) -> None:
        """The receiver was removed at the node: nothing more of what it had sent is begun.

        That was settled as removed, and whoever sent it was told. What runs may end; its answer
        goes nowhere.
        """
        self._end_lanes(node)

    def _end_lanes(self, node: NodeIncarnation) -> None:
        for lane in node.lanes.values():
            self._abandon(lane)
            lane.is_over = True

    def lost(self, node: NodeIncarnation | None) -> None:
        """A connection has gone, perhaps in the middle of its turn.

        `node`: whose only one it was, or None. Where the node has come since as another
        incarnation, of a log that was put back, that takes its place now.
        """
        if node is not None:
            later = None
            for other in self.nodes.values():  # who came last is last
                if other is node:
                    later = None
                elif other.name == node.name:
                    later = other
            if later is not None:
                self._succeed(node, later)
        if self._touched or self._ready:
            self._schedule()

    # --- verbs

    def start(self) -> None:
        """Take work from here on.

        Calls that a stop gave up take the place of no new ones. Their lanes wait for them.
        """
        self.is_stopping = False
        self._left = set(self._calls)

    def stop(self, timeout: float) -> Deferred[None]:
        """Start no handler any more; fire when those that run have ended, or were cancelled.

        After `timeout` seconds they are: what a cancelled one had is sent again later, without
        having counted. Threads cannot be cancelled; they are left alone. Called by a handler, it
        waits for that one too: what its step has handled is answered first.
        """
        self.is_stopping = True
        if self._is_pumping:
            self._begun.clear()  # which ends the loop over it
        else:
            self._abandon_all()
            if not self._calls:
                self._flush_all()
                return succeed(None)
        idle: Deferred[None] = Deferred()
        self._idle = idle
        deadline = self._clock.callLater(timeout, self._cancel)

        def ended(result: Any) -> Any:
            if deadline.active():
                deadline.cancel()
            return result

        return idle.addBoth(ended)

    def stop_threads(self) -> None:
        """Let go of the threads that handlers run on, where there are any."""

    def _cancel(self) -> None:
        for call in list(self._calls):
            if call.deferred is not None:
                call.deferred.cancel()
        if self._calls:
            self._logger.warn(
                "receiver {receiver}: {count} handlers do not end",
                receiver=self._name,
                count=len(self._calls),
            )
        self._is_idle()

    def _is_idle(self) -> None:
        idle, self._idle = self._idle, None
        if idle is not None:
            self._flush_all()
            idle.callback(None)

    def _flush_all(self) -> None:
        """The last answers leave, also where the transport has no room: there is no later."""
        self._flush()
        for node in self.nodes.values():
            node.flush(is_last=True)

    # --- turns

    def _touch(self, node: NodeIncarnation) -> None:
        """Acknowledgements are owed to a node: they leave at the end of this turn."""
        self._touched.add(node)
        if not self._is_inside:
            self._schedule()

    def _schedule(self) -> None:
        if self._turn_call is None:
            self._turn_call = self._clock.callLater(0, self._turn)

    def _turn(self) -> None:
        self._turn_call = None
        self._until = 0.0
        self._is_turn = True
        if self._idle is not None:  # a handler has stopped the receiver, and its step is over
            self._abandon_all()
            if not self._calls:
                self._is_idle()
        try:
            self._pump()
        finally:
            self._is_turn = False
            self._until = 0.0
        self._flush()

    def _flush(self) -> None:
        touched, self._touched = self._touched, set()
        for node in touched:
            try:
                if node.dirty:
                    self._tell_all(node)
                node.flush()
                if node.is_paused:
                    node.go_on()
            except Exception:
                self._start_over(node, Failure())

    def _pump(self) -> None:
        """Take steps of ready lanes. Never inside itself, whatever a handler sets off."""
        if self._is_pumping or not self._ready:
            return
        began = self._now()
        until = self._until
        if not until:
            # Of all the frames of a read together; else of all the calls that end in this turn.
            until = self._until = began + SLICE_SECONDS
            if not (self._is_inside or self._is_turn):
                self._schedule()  # which ends it
        elif began >= until:
            self._schedule()
            return
        self._is_pumping = True
        self._step_until = until
        try:
            ready, calls, left = self._ready, self._calls, self._left
            while ready and len(calls) - len(left) < self._concurrency and not self.is_stopping:
                lane = ready.popleft()
                lane.is_ready = False
                if not lane.queue or lane.behind or (lane.running and lane.key is not None):
                    continue  # something that the handler set off got it ready meanwhile
                work = lane.queue[0]
                at = work.at
                try:
                    self._advance(lane, self._step(lane, work))
                except Exception:  # not the handler's: see the steps
                    self._start_over(lane.node, Failure())
                if ready:
                    ended = self._now()
                    self._pace(ended - began, work.at - at)
                    if ended >= until:
                        self._schedule()
                        return
                    began = ended
        finally:
            self._is_pumping = False
            self._begun = []  # keeps no message in memory
            if self.is_stopping:
                self._schedule()

    def _pace(self, seconds: float, handled: int) -> None:
        """Choose how many messages are handled between two looks at the clock.

        That short runs were fast says nothing of long ones.
        """
        if seconds > CHUNK_SECONDS * 2:
            self._chunk = max(1, min(self._chunk, int(handled * CHUNK_SECONDS / seconds)))
        elif seconds < CHUNK_SECONDS / 4 and handled >= self._chunk and self._chunk < CHUNK_MAX:
            self._chunk *= 2

    def _advance(self, lane: Lane, goes_on: bool) -> None:
        """Tell what a step has ended, and get the lane ready for its next if it goes on."""
        queue = lane.queue
        if queue:
            work = queue[0]
            if work.at == work.stop:
                queue.popleft()
                first, work.told = work.told, work.at  # as `_tell`
                if work.at > first:
                    self._taken(work, first, work.at)
            elif work.at > work.told:
                work.node.dirty.add(work)
                self._touch(work.node)
        if queue:
            if goes_on and not lane.is_ready and not self.is_stopping:
                lane.is_ready = True
                self._ready.append(lane)
        elif len(lane.node.lanes) > LANES_KEPT and not lane.running:
            lane.node.lanes.pop(lane.key, None)

    # --- steps: each returns whether the lane may go on

    def _step_each(self, lane: Lane, work: Work) -> bool:
        handler, at = self._handler, work.at
        stop = min(at + self._chunk, work.stop)
        try:
            while True:
                self._begun = messages = work.messages[at : min(at + LOOK_EVERY, stop)]
                for message in messages:
                    result = handler(message)
                    if result is not None and isinstance(result, UNFINISHED):
                        if isinstance(result, CoroutineType):
                            result = begin(result)
                        elif isinstance(result, GENERATORS):
                            raise has_not_run(result)
                        if result is not None:
                            if not self._wait_for(lane, work, at, at + 1, result):
                                return False
                            calls = len(self._calls) - len(self._left)
                            if work.at != at + 1 or calls >= self._concurrency:
                                return True  # it has failed, or no more calls may run
                    at += 1
                if at >= stop or self.is_stopping or self._now() >= self._step_until:
                    break
        except BaseException:  # as a Deferred would: no handler may end the reactor
            self._failed(lane, work, at, at + 1, Failure())
            return True
        work.at = at
        return True

    def _step_batch(self, lane: Lane, work: Work) -> bool:
        first, stop = work.at, work.stop
        try:
            result = self._handler(work.messages[first:stop])
            if isinstance(result, CoroutineType):
                result = begin(result)
            elif isinstance(result, GENERATORS):
                raise has_not_run(result)
        except BaseException:  # see `_step_each`
            self._failed(lane, work, first, stop, Failure())
            return True
        if isinstance(result, Deferred):
            return self._wait_for(lane, work, first, stop, result)
        work.at = stop
        return True

    # --- calls

    def _wait_for(
        self, lane: Lane, work: Work, first: int, stop: int, pending: Deferred[Any]
    ) -> bool:
        """Wait for a Deferred, unless it has fired already."""
        work.at = first
        call = HandlerCall(lane, work, first, stop)
        pending.addBoth(self._call_ended, call)
        if call.outcome is not None:
            failure = call.outcome[0]
            if failure is None:
                work.at = stop
            else:
                try:
                    self._failed(lane, work, first, stop, failure)
                except Exception:  # not the handler's, in whose step this is
                    self._start_over(lane.node, Failure())
            return True
        call.deferred = pending
        return self._started(call)

    def _started(self, call: HandlerCall) -> bool:
        lane, work = call.lane, call.work
        self._calls.add(call)
        lane.running += 1
        if lane.key is not None:
            return False
        self._tell(work)
        work.told = work.at = call.stop
        return True

    def _call_ended(self, result: Any, call: HandlerCall) -> Failed | None:
        failure = failure_of(result)
        if call not in self._calls:
            call.outcome = (failure,)  # it has ended before it was kept
        else:
            done = 0 if failure is not None else call.stop - call.first
            try:
                self._ended(call, done, failure, call.stop - call.first)
            except Exception:  # a Deferred would swallow it
                self._end_failed(call)
        # The same Deferred may be the outcome of other messages, and those have failed too.
        return Failed(failure) if failure is not None else None

    def _end_failed(self, call: HandlerCall) -> None:
        """The end of a call failed by a fault of our own, the error that is handled now."""
        if call in self._calls:
            self._calls.discard(call)
            self._left.discard(call)
            call.lane.running -= 1
        self._start_over(call.lane.node, Failure())

    def _ended(self, call: HandlerCall, done: int, failure: Failure | None, unit: int) -> None:
        """The first `done` messages of a call were handled, the `unit` after them failed."""
        lane, work = call.lane, call.work
        at = call.first + done
        if lane.key is not None:
            work.at = at
            if failure is not None:
                self._failed(lane, work, at, at + unit, failure)
        else:
            if done:
                self._taken(work, call.first, at)
            if failure is not None:
                self._refused(work, at, at + unit, failure)
                if at + unit < call.stop:
                    lane.queue.append(work.node.cut(work, at + unit, call.stop))
        self._forget(call)

    def _forget(self, call: HandlerCall) -> None:
        """The call is over; what waited for it may go on."""
        self._calls.discard(call)
        self._left.discard(call)
        lane = call.lane
        lane.running -= 1
        if lane.followers and not lane.running:
            self._release(lane)
        is_ending = self.is_stopping and not self._is_pumping  # else the end of the step is
        if is_ending or lane.is_over:
            # With order, at the end of its last call: with a stored inbox it has thousands.
            if lane.key is None or not lane.running:
                self._abandon(lane)
            self._touch(lane.node)  # it may wait for that
        self._advance(lane, goes_on=True)
        if not self.is_stopping:
            self._pump()
        elif is_ending and not self._calls:
            self._is_idle()

    def _release(self, lane: Lane) -> None:
        """The last call of a lane is over: the lanes that took its place go on."""
        followers, lane.followers = lane.followers, ()
        for later in followers:
            later.behind -= 1
            if later.queue and not later.behind and not later.is_ready and not self.is_stopping:
                later.is_ready = True
                self._ready.append(later)

    # --- faults of our own

    def _start_over(self, node: NodeIncarnation, fault: Failure) -> None:
        """Begin nothing of what a node has sent: its connection ends, and it sends that again.

        What has come to its accounts is not known. What runs may end, and counts.
        """
        connection = node.connection
        if connection is not None:
            connection.fault(f"node {node.name!r}", fault)
        else:
            self._logger.failure("handling what {name} sent", fault, name=node.name)
        calls = [call for call in self._calls if call.lane.node is node]
        node.start_over(calls)
        for lane in node.lanes.values():
            if lane.followers and not lane.running:
                self._release(lane)
        self._touch(node)
        self._schedule()  # for the others, and for who waits for the end of all

    # --- outcomes

    def _tell(self, work: Work) -> None:
        """Messages that have ended in a row are taken."""
        first, work.told = work.told, work.at
        if work.at > first:
            self._taken(work, first, work.at)

    def _tell_all(self, node: NodeIncarnation) -> None:
        dirty, node.dirty = node.dirty, set()
        for work in dirty:
            self._tell(work)

    def _taken(self, work: Work, first: int, stop: int) -> None:
        node = work.node
        node.inbox.taken(work.arrival, work.base + first, work.base + stop - 1)
        node.release(work, stop - first)
        self._touched.add(node)  # as `_touch`
        if not self._is_inside:
            self._schedule()

    def _failed(self, lane: Lane, work: Work, first: int, stop: int, failure: Failure) -> None:
        """The handler failed: what came before is taken, these are not; in order, none behind."""
        work.at = first
        self._tell(work)
        action = self._refused(work, first, stop, failure)
        work.told = work.at = stop
        if action is not Action.DEAD and lane.key is not None:
            self._give_up(lane, set())

    def _refused(self, work: Work, first: int, stop: int, failure: Failure) -> Action:
        node = work.node
        action, delay_ms, reason = self._judge(failure, work, first)
        refusal = Refusal(action, reason)
        at, last = work.base + first, work.base + stop - 1
        node.inbox.refused(work.arrival, at, last, refusal, delay_ms)
        node.release(work, stop - first)
        self._touch(node)
        return action

    def _abandon_all(self) -> None:
        for node in self.nodes.values():
            for lane in node.lanes.values():
                lane.is_ready = False
                self._abandon(lane)
        self._ready.clear()

    def _abandon(self, lane: Lane) -> None:
        """The lane is given up: nothing more of it is begun, the node retransmits it."""
        called: set[Work] = set()
        if lane.key is not None and lane.running:
            called = {call.work for call in self._calls if call.lane is lane}
        self._give_up(lane, called)

    def _give_up(self, lane: Lane, but: set[Work]) -> None:
        kept = []
        for work in lane.queue:
            if work in but:
                kept.append(work)
                continue
            self._tell(work)
            if work.at < work.stop:
                node, base = work.node, work.base
                node.inbox.abandoned(base + work.at, base + work.stop - 1)
                node.release(work, work.stop - work.at)
                work.told = work.at = work.stop
        lane.queue.clear()
        lane.queue.extend(kept)

    def _judge(self, failure: Failure, work: Work, first: int) -> tuple[Action, int, str]:
        outcome = judge(failure)
        if outcome is not None:
            return outcome
        if self.is_stopping and failure.check(CancelledError):
            # As soon as it is back (0 would be a backoff, longer with each stop).
            return Action.LATER, 1, f"receiver {self._name} stops"
        self._logger.failure(
            "handler of {receiver} failed at position {position}",
            failure,
            receiver=self._name,
            position=work.base + first,
        )
        return Action.RETRY, 0, describe_failure(failure)
