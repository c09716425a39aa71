"""A plan, played: everybody in virtual time, the operations, the end of all faults, the draining.

    shop, web ─► node ─► library, picky (library receivers), scripted (raw frames)
    wolf, stray: hostile peers; intruders say they are others

`World.play` returns what was found; the rules are in `checkers`.
"""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, cast

import apsw
from twisted.internet.defer import Deferred
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from twisted.python.failure import Failure

from msgservice.errors import (
    ClientClosed,
    LimitReached,
    LogFailed,
    LogUnavailable,
    LogWentBack,
    MessageTooLarge,
    NoReceiver,
    OutboxFull,
    PeerForgot,
    Refused,
    UnknownReceiver,
)
from msgservice.receiver_options import ReceiverOptions
from msgservice.records import ReceiverRow
from msgservice.testing.datagrams import datagram_net
from msgservice.testing.network import CALM, Faults, FaultyWorld
from tests.kit.limits import Limits
from tests.simulation.swarm.accounts import FORBIDDEN, Accounts, Thief
from tests.simulation.swarm.asking import Asking
from tests.simulation.swarm.checkers import Check
from tests.simulation.swarm.family import Family
from tests.simulation.swarm.keys import Keys
from tests.simulation.swarm.leaving import Leaving
from tests.simulation.swarm.letters import Letters
from tests.simulation.swarm.meter import Meter
from tests.simulation.swarm.parties import (
    LibraryParty,
    NodeParty,
    Party,
    ProducerParty,
    ReceiverParty,
    Sent,
)
from tests.simulation.swarm.plan import LATE, WATCHED, Part, Plan, limits_of
from tests.simulation.swarm.pools import PoolParty, Pools
from tests.simulation.swarm.promises import Promises
from tests.simulation.swarm.reasons import Reasons
from tests.simulation.swarm.retained import Retained
from tests.simulation.swarm.rewinds import Rewinds
from tests.simulation.swarm.scripted import Intruder, ScriptedParty, Stray, Wolf
from tests.simulation.swarm.surviving import Surviving
from tests.simulation.swarm.times import Delays, Lifetimes
from tests.simulation.swarm.undoing import Undos
from tests.simulation.swarm.witness import Violation, Witness
from tests.simulation.system import HandlerFault
from tests.simulation.udp_watch import UdpWatch

BESIDES = 120  # messages that come half a second apart while another kills their receiver
DEATHS_MAX = 15  # by one message, besides `max_losses`, until it is found: others come between
CPU_SECONDS = 60.0  # of a play that takes a second; virtual time cannot see an endless loop
WALL = 1_700_000_000.0
STEPS_MAX = 120_000  # events of one play: beyond it something spins


class Patterns:
    """What a receiver's patterns may have been, when: the test's own account of the directory.

    A change that runs is in force and not in force at the same time.
    """

    def __init__(self) -> None:
        self.spans: list[list[Any]] = []  # from, to, patterns: those that may be in force
        self.is_certain = True  # nothing was changed: they are in force

    def may(self, patterns: tuple[str, ...], at: float) -> None:
        """From now on they may be in force."""
        self.spans.append([at, None, patterns])

    def go_back(self, saved_at: float, at: float) -> None:
        """The node's log is that of an earlier moment: what may have been in force then is."""
        then = [one for start, end, one in self.spans if start <= saved_at <= (end or saved_at)]
        for one in dict.fromkeys(then):
            self.may(one, at)

    @property
    def now(self) -> list[tuple[str, ...]]:
        """What may be in force now."""
        return [one for _, end, one in self.spans if end is None]

    def end(self, at: float) -> None:
        """What may be in force now is not from now on."""
        for span in self.spans:
            if span[1] is None:
                span[1] = at


class World:
    """See the module."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        self.plan = plan
        self.limits = Limits(**limits_of(plan))
        weather = {name: getattr(CALM, name) for name in Faults.__dataclass_fields__} | plan.weather
        self.net = FaultyWorld(plan.seed, faults=Faults(**weather), limits=self.limits)
        self.world = self.net  # for what takes a `System`
        self.random: Random = self.net.random
        self._reads = Random(f"reads {plan.seed}")  # apart: the rest of a seed stays what it was
        self.witness = Witness(self.net.clock.seconds)
        self.witness.told_later = lambda reason: Check(self).refusal(reason)
        self.meter = Meter(lambda what: self.witness.note("too much work", what))
        self.is_healed = False
        self.skew = 0.0
        self.jumped_days = False
        self.sent: dict[bytes, Sent] = {}
        self.poison: dict[bytes, str] = {}
        # By which message, in which life of the node: a start of it begins the count anew.
        self.deaths: Counter[tuple[bytes, int]] = Counter()
        self.patterns: dict[str, Patterns] = {}
        self.removed: dict[str, list[float]] = {}
        self.log_restored_at = self.log_saved_at = -1.0
        self.log_gaps: list[tuple[float, float]] = []  # of what was stored then the log is without
        self.is_blocked = False  # by dead letters: what waits may wait on
        self.blocked: set[str] = set()  # whom they have paused
        self.steps = 0
        self._numbers = 0
        self._intruders: list[Intruder | Thief] = []
        self.blinded: set[str] = set()  # receivers that had fewer rights for a while
        self._blinded: list[Callable[[], None]] = []  # ends each time of fewer rights
        self.over_udp: set[str] = set(plan.world.get("udp", ()))  # whose links are UDP
        self.udp_watch = UdpWatch()
        self.datagrams = datagram_net(self.net)
        self.suspends: set[str] = set()  # receivers with on_full = "suspend"
        self.accounts: Accounts | None = None
        if plan.world.get("users"):
            names = [*(part.name for part in plan.cast), *LATE, "wolf", "stray", "thief"]
            self.accounts = Accounts(self, names)
            self.witness.is_barred = self.accounts.is_barred
        self.promises = Promises(self)
        self.surviving = Surviving(self)
        self.undos = Undos(self)
        self.families: tuple[Family, ...] = (
            Keys(self),
            Lifetimes(self),
            Delays(self),
            Letters(self),
            Retained(self),
            Rewinds(self),
            Leaving(self),
            Pools(self),
            Asking(self),
            self.promises,
            self.surviving,
            self.undos,
            Reasons(self),
        )
        self.witness.watches_times = any(op.kind in WATCHED for op in plan.ops)
        self.node = NodeParty(self, folder)
        self.producers: dict[str, ProducerParty] = {}
        self.receivers: dict[str, ReceiverParty] = {}
        for part in plan.cast:
            if part.kind == "producer":
                self.producers[part.name] = ProducerParty(self, part, folder)
            elif part.kind == "pool":
                self.receivers[part.name] = PoolParty(self, part)
            elif part.kind == "receiver":
                self.receivers[part.name] = LibraryParty(self, part, folder)
            else:
                self.receivers[part.name] = ScriptedParty(self, part)
        self.parties: dict[str, Party] = {
            "node": self.node,
            **self.receivers,
            **self.producers,
        }
        self.wolf: Wolf | None = None
        self.stray: Stray | None = None
        if any(op.kind == "wolf" for op in plan.ops):
            wide = plan.seed % 3 == 0
            self.wolf = Wolf(self, ("flood.>", "a.1") if wide else ("flood.>",))
        if any(op.kind == "stray" for op in plan.ops):
            self.stray = Stray(self)

    # --- addresses

    @property
    def node_addresses(self) -> list[str]:
        """Where the node listens."""
        return ["faulty:node", "udp:7410"] if self.over_udp else ["faulty:node"]

    def address_of_node(self, name: str) -> str:
        """What `name` dials."""
        return "udp:127.0.0.1:7410" if name in self.over_udp else "faulty:node"

    def address_of_receiver(self, name: str, *, dialled: bool) -> str:
        """Where the receiver `name` listens; how that is dialled."""
        if name not in self.over_udp:
            return f"faulty:{name}"
        # Of those that were there from the first: who joins later moves nobody.
        port = 7420 + sorted(part.name for part in self.plan.cast).index(name)
        return f"udp:127.0.0.1:{port}" if dialled else f"udp:{port}"

    @property
    def configured(self) -> list[ReceiverRow]:
        """The receivers of the node's configuration."""
        return [
            ReceiverRow(
                number=0,
                name=name,
                address=self.address_of_receiver(name, dialled=True),
                patterns=receiver.patterns,
                options=ReceiverOptions(order=receiver.order),
            )
            for name, receiver in self.receivers.items()
            if receiver.part.options.get("dialled") == "configured"
        ]

    def add_dialled(self, receiver: ReceiverParty) -> None:
        """Tell the node of a receiver that it is to dial, unless it knows it."""
        node = self.node
        if not (node.is_up and node.service.is_running) or self.row_of(receiver.name) is not None:
            return
        self._admin(
            lambda: node.service.add_receiver(
                receiver.name,
                receiver.patterns,
                ReceiverOptions(order=receiver.order),
                address=self.address_of_receiver(receiver.name, dialled=True),
            )
        )

    # --- getters

    @property
    def now(self) -> float:
        """Virtual seconds since the beginning."""
        return float(self.net.clock.seconds())

    def wall(self) -> int:
        """The wall clock of the node's machine, ms."""
        return int((WALL + self.now + self.skew) * 1000)

    @property
    def messages(self) -> list[Sent]:
        """All that was handed over."""
        others = [sent for family in self.families for sent in family.handed_over()]
        return [*self.sent.values(), *others]

    def join(self, part: Part) -> None:
        """Somebody joins who was never there; from when on it is in audiences is not known."""
        receiver = ScriptedParty(self, part)
        self.receivers[part.name] = self.parties[part.name] = receiver
        patterns = self.patterns[part.name] = Patterns()
        patterns.may(receiver.patterns, self.now)
        patterns.is_certain = False
        self.removed[part.name] = []
        receiver.start()

    def next_number(self) -> int:
        """Number the messages of all."""
        self._numbers += 1
        return self._numbers

    def read_delay(self) -> float:
        """How long the log's reader takes for the next page: some come late."""
        late = self.plan.world.get("late_reads", 0.0)
        # Not while it starts: who is to be there then would not be.
        is_late = late and self.node.service.is_running and not self.is_healed
        if is_late and self._reads.random() < 0.5:
            return self._reads.uniform(0.0, late)
        return float(self.plan.world.get("disk_delay", 0.003))

    # --- time

    def run(self, seconds: float) -> None:
        """Let time pass."""
        end = self.now + seconds
        while (due := self.net._next()) is not None and due <= end:
            self._step(due)
        self.net.clock.advance(max(0.0, end - self.now))

    def _step(self, due: float) -> None:
        self.steps += 1
        if self.steps > STEPS_MAX:
            raise Violation("it spins", f"{self.steps} events by {self.now:.3f}")
        self.net.clock.advance(max(0.0, due - self.now))
        found = self.witness.found
        if found:
            raise found[0]

    def run_until(self, condition: Callable[[], object], seconds_max: float) -> bool:
        """Let time pass until `condition()`, which is looked at each second; whether it came."""
        end = self.now + seconds_max
        while not condition():
            if self.now >= end:
                return False
            self.run(1.0)
        return True

    # --- what is told

    def refused(self, sent: Sent, error: Exception) -> None:
        """A send or its acceptance failed: with what it may fail with, or not."""
        if self.accounts is not None and self.accounts.may_fail(sent, error):
            return
        if any(family.may_fail(sent, error) for family in self.families):
            return
        if isinstance(error, LogWentBack | PeerForgot):
            party = self.producers[sent.producer]
            if sent.at <= max(self.log_restored_at, party.restored_at):
                return
        if isinstance(error, UnknownReceiver) and sent.to is not None:
            return
        if isinstance(error, NoReceiver | MessageTooLarge | LimitReached | OutboxFull):
            return
        if type(error) is Refused and sent.to is not None:
            return  # `to` names who was removed
        if type(error) is Refused and "nobody" in str(error):
            return
        if type(error) is Refused and "larger" in str(error):
            return
        if isinstance(error, ClientClosed):
            return  # a newer connection of its name: never, here; judged by what is lost
        self.witness.note("a send fails", f"{sent.body[:40]!r}: {type(error).__name__}: {error}")

    def die_of_poison(self, party: Party, body: bytes) -> None:
        """A message has killed the process that handled it."""
        if party.is_up:
            self.deaths[body, self.node.lives] += 1
            times = self.deaths[body, self.node.lives]
            if times > DEATHS_MAX + self.limits.max_losses:
                self.witness.note(
                    "a message kills for ever", f"{party.name}, {times} times: {body!r}"
                )
            party.kill()
            self.net.clock.callLater(self.random.uniform(0.2, 1.0), party.start)

    # --- the play

    def play(self) -> Witness:
        """Play the plan; raises the `Violation` that was found first."""

        def never_ends(*_: object) -> None:
            raise Violation("it never ends", f"{CPU_SECONDS} s of a core by {self.now:.3f}")

        # No class of its own: zope keeps classes that implement something, and all behind them.
        observer = cast("ILogObserver", self._logged)
        globalLogPublisher.addObserver(observer)
        before = signal.signal(signal.SIGVTALRM, never_ends)
        signal.setitimer(signal.ITIMER_VIRTUAL, CPU_SECONDS)
        try:
            self._play()
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            signal.signal(signal.SIGVTALRM, before)
            globalLogPublisher.removeObserver(observer)
            self.close()
        return self.witness

    def _logged(self, event: LogEvent) -> None:
        failure = event.get("log_failure")
        if isinstance(failure, Failure) and self._is_disk_s(failure):
            return
        if isinstance(failure, Failure) and not failure.check(HandlerFault):
            frames = failure.getTracebackObject()
            where = ""
            sign = "a failure is logged"
            while frames is not None:
                code = frames.tb_frame.f_code
                if "/simulation/swarm/" in code.co_filename and frames.tb_next is None:
                    sign = "the simulation itself fails"
                if "/msgservice/" in code.co_filename:
                    where = f"{code.co_filename.rpartition('/msgservice/')[2]} {code.co_name}"
                frames = frames.tb_next
            self.witness.note(sign, f"{type(failure.value).__name__}: {failure.value} in {where}")

    def _is_disk_s(self, failure: Failure) -> bool:
        """Whether it is what a faulty disk does: said in a dead process, or of syncs."""
        node = self.node
        if not node.is_stored:
            return False
        theirs = (apsw.Error, LogFailed, LogUnavailable)
        if not node.process.clock.alive and failure.check(*theirs):
            return True
        return bool(
            node.disk.sync_failed and failure.check(apsw.IOError, LogFailed, LogUnavailable)
        )

    def _play(self) -> None:
        self.node.start()
        for party in [*self.receivers.values(), *self.producers.values()]:
            party.start()
        for hostile in (self.wolf, self.stray):
            if hostile is not None:
                hostile.start()
        for name, receiver in self.receivers.items():
            self.patterns[name] = Patterns()
            self.patterns[name].may(receiver.patterns, 0.0)
            self.removed[name] = []
        calm, self.net.faults = self.net.faults, CALM
        self.run(0.5)
        for receiver in self.receivers.values():
            if receiver.is_dialled:
                receiver.comes_back()
        self.run(1.5)
        self.net.faults = calm
        for op in self.plan.ops:
            self.net.clock.callLater(op.at, self._do, op)
        self.net.clock.callLater(0.5, self._sample)
        self.run(self.plan.end + 0.01)
        self.run(2.0)
        self._heal()
        check = Check(self)
        check.drain()
        check.all()

    def _do(self, op: Any) -> None:
        if self.is_healed:
            return
        self.net.tell(f"{op.kind} {op.who} {op.args}")
        those = (self, *self.families)
        (one,) = [one for one in those if hasattr(one, f"do_{op.kind}")]
        getattr(one, f"do_{op.kind}")(op.who, *op.args)

    def _sample(self) -> None:
        """Look at what must be so at every moment."""
        if self.is_healed:
            return
        Check(self).now()
        self.net.clock.callLater(0.5, self._sample)

    def _heal(self) -> None:
        """No more faults, of nobody."""
        for over in list(self._blinded):
            self._sees_again(over)
        self.is_healed = True
        self.net.heal()
        self.meter.on = False
        self.node.disk.is_full = False
        self.node.disk.calm()
        if self.accounts is not None:
            self.accounts.heal()
        for hostile in (self.wolf, self.stray, *self._intruders):
            if hostile is not None:
                hostile.kill()
        for party in self.parties.values():
            party.hold(False, "both")
        self.run(12.0)  # those that leave have left; nobody is killed any more, but by poison
        for party in self.parties.values():
            if party.is_leaving:
                party.kill()
            party.start()
        self.run(0.5)
        for name, receiver in self.receivers.items():
            row = self.row_of(name)
            if row is not None and row.options.paused:
                self._admin(self.node.service.pause_receiver, name, False)
            if isinstance(receiver, ScriptedParty):
                receiver.hurry()
                if receiver.part.options.get("max_batch"):
                    receiver.cut()
        if self.wolf is not None and self.row_of("wolf") is not None:
            self._admin(self.node.service.remove_receiver, "wolf")
        self.run(0.5)
        for receiver in self.receivers.values():
            receiver.comes_back()
        if not self.plan.world.get("stays"):
            for producer in self.producers.values():
                producer.cut()  # what was told before is told again

    def close(self) -> None:
        """End what holds files."""
        for party in (*self.parties.values(), self.wolf, self.stray, *self._intruders):
            if party is not None:
                party.kill()
        self.node.disk.close()

    # --- operations

    def row_of(self, name: str) -> Any:
        """The node's row of a receiver that is there, or None."""
        service = self.node.service
        return service.parts.directory.get(name) if self.node.is_up and service.is_running else None

    def _admin(self, call: Callable[..., Any], *args: Any) -> Deferred[Any]:
        done: Deferred[Any] = Deferred.fromCoroutine(call(*args))
        done.addErrback(self.admin_failed)
        return done

    def admin_failed(self, failure: Failure) -> None:
        """An act of the operator's failed: with what it may fail with, or not."""
        failure.trap(ValueError, Exception)
        if failure.check(AssertionError, KeyError, AttributeError, IndexError, TypeError):
            self.witness.note("administration fails", failure.getTraceback()[-600:])

    def do_send(self, who: str, *args: Any) -> None:
        """Hand over some messages."""
        if not self.is_healed:
            self.producers[who].send(*args)

    def do_backlog(self, who: str, subject: str, count: int) -> None:
        """Hand over many messages, each a run of its own."""
        for _ in range(count):
            self.producers[who].send(subject, 1, 100, None, False)

    def do_names(self, who: str, count: int) -> None:
        """Hand over messages for many sets of names."""
        names = sorted(self.receivers)
        for index in range(count):
            some = [name for at, name in enumerate(names) if index >> at & 1] or names[:1]
            self.producers[who].send("a.1", 1, 0, tuple(some), False)
            service = self.node.service
            if service.is_running:
                name = f"extra{index % 7}"
                if service.parts.directory.get(name) is None:
                    self._admin(service.add_receiver, name, ("extra.>",))
                else:
                    self._admin(service.remove_receiver, name)

    def do_poison(self, who: str, subject: str, other: str, victim: str) -> None:
        """Hand over what kills a receiver; on another subject it has enough to do besides."""
        self.producers[who].poison(subject, victim)
        for index in range(BESIDES):
            self.net.clock.callLater(index * 0.5, self.do_send, who, other, 1, 0, None, False)

    def do_kill(self, who: str, seconds: float) -> None:
        """Kill, and start again after a while."""
        party = self.parties[who]
        party.kill()
        self.net.clock.callLater(seconds, party.start)

    def do_stop(self, who: str, seconds: float) -> None:
        """Stop in order, and start again after a while."""
        party = self.parties[who]
        party.leave()
        self.net.clock.callLater(max(seconds, 11.0), self._restart, party)

    def _restart(self, party: Party) -> None:
        if party.is_leaving:
            party.kill()
        party.start()

    def do_cut(self, who: str) -> None:
        """Break connections."""
        self.parties[who].cut()

    def do_hold(self, who: str, seconds: float, way: str) -> None:
        """Let nothing pass for a while."""
        party = self.parties[who]
        party.hold(True, way)
        self.net.clock.callLater(seconds, party.hold, False, way)

    def do_pause(self, who: str) -> None:
        """Pause a receiver."""
        if self.row_of(who) is not None:
            self._admin(self.node.service.pause_receiver, who, True)

    def do_unpause(self, who: str) -> None:
        """Resume a receiver."""
        if self.row_of(who) is not None:
            self._admin(self.node.service.pause_receiver, who, False)

    def do_remove(self, who: str, seconds: float) -> None:
        """Remove a receiver; it attaches again after a while."""
        row = self.row_of(who)
        receiver = self.receivers[who]
        if row is not None:
            self.removed[who].append(self.now)
            self.patterns[who].is_certain = False
            removing = self._admin(self.node.service.remove_receiver, who)
            removing.addBoth(lambda _: self._removed(who))
        self.net.clock.callLater(seconds + 0.2, receiver.comes_back)
        self.net.clock.callLater(seconds + 6.0, receiver.comes_back)

    def _removed(self, who: str) -> None:
        self.removed[who].append(self.now)
        self.patterns[who].end(self.now)
        self.patterns[who].may(self.receivers[who].patterns, self.now)

    def do_change(self, who: str, patterns: tuple[str, ...]) -> None:
        """Change a receiver's patterns; it says them itself from then on."""
        if self.row_of(who) is None:
            return
        receiver = self.receivers[who]
        self.patterns[who].is_certain = False
        self.patterns[who].may(patterns, self.now)
        self.patterns[who].may(receiver.patterns, self.now)
        self._admin(lambda: self.node.service.change_receiver(who, patterns=patterns))

    def do_reorder(self, who: str, order: str) -> None:
        """An operator changes a receiver's order; its program says that one from then on."""
        receiver = self.receivers[who]
        if self.row_of(who) is not None:
            receiver.order_changed |= receiver.order != order
            receiver.order = order
            self._admin(lambda: self.node.service.change_receiver(who, order=order))

    def do_intrude(self, who: str, patterns: tuple[str, ...], order: str | None) -> None:
        """Another program takes a receiver's name."""
        intruder = Intruder(self, who, patterns, order)
        self._intruders.append(intruder)
        receiver = self.receivers[who]
        intruder.start()

        def over() -> None:
            intruder.kill()
            if not intruder.was_refused:
                self.patterns[who].is_certain = False
                self.patterns[who].may(patterns, 0.0)

        if order is not None and order != receiver.order:
            receiver.order_changed = True
        self.net.clock.callLater(3.0, over)
        self.net.clock.callLater(5.0, receiver.comes_back)

    def do_lock(self, who: str, seconds: float) -> None:
        """Give a user another password for a while."""
        self._bar("lock", who, seconds)

    def do_revoke(self, who: str, seconds: float) -> None:
        """Take a user away for a while."""
        self._bar("revoke", who, seconds)

    def _bar(self, kind: str, who: str, seconds: float) -> None:
        if self.accounts is not None:
            if kind == "revoke" and who in self.patterns:
                # The receiver of a user that is not configured gets all that it asked for.
                for one in dict.fromkeys(one for _, _, one in self.patterns[who].spans):
                    self.patterns[who].may(one, self.now)
            self.accounts.bar(kind, who, barred=True)
            self._until_healed(seconds, self.accounts.bar, kind, who, False)
            self._until_healed(seconds + 0.2, self._comes_back, who)

    def _until_healed(self, seconds: float, call: Callable[..., Any], *args: Any) -> None:
        """Call it later, unless all faults are over then."""
        self.net.clock.callLater(seconds, lambda: None if self.is_healed else call(*args))

    def _comes_back(self, who: str) -> None:
        if who in self.receivers:
            self.receivers[who].comes_back()

    def do_narrow(self, who: str, seconds: float, allowed: tuple[str, ...]) -> None:
        """Let a producer send on these subjects alone, for a while."""
        if self.accounts is not None:
            self.accounts.narrow_sends(who, allowed)
            self._until_healed(seconds, self.accounts.narrow_sends, who, None)

    def do_blind(self, who: str, seconds: float, allowed: tuple[str, ...]) -> None:
        """Let a receiver receive these alone, for a while; it comes for what it came for before."""
        if self.accounts is None or self.accounts.is_gone(who):
            return
        patterns = self.patterns[who]
        patterns.is_certain = False
        self.blinded.add(who)
        before = patterns.now
        patterns.end(self.now)
        patterns.may(allowed, self.now)
        self.accounts.narrow_receives(who, allowed)

        def over() -> None:
            for one in [*before, self.receivers[who].patterns]:
                patterns.may(one, self.now)
            assert self.accounts is not None
            self.accounts.narrow_receives(who, None)
            self._comes_back(who)

        self._blinded.append(over)
        self.net.clock.callLater(seconds, self._sees_again, over)

    def _sees_again(self, over: Callable[[], None]) -> None:
        if over in self._blinded:
            self._blinded.remove(over)
            over()

    def do_forbidden(self, who: str, count: int) -> None:
        """Hand over what nobody may send."""
        if self.accounts is not None:
            self.producers[who].send(FORBIDDEN, count, 0, None, False)

    def do_thief(self, who: str, how: str) -> None:
        """Somebody comes by another's name."""
        if self.accounts is not None:
            thief = Thief(self, who, how)
            self._intruders.append(thief)
            thief.start()
            self.net.clock.callLater(3.0, thief.kill)

    def do_reload(self, who: str) -> None:
        """Read the same users anew."""
        if self.accounts is not None:
            self.accounts.read_anew()

    def do_disk(self, who: str, seconds: float) -> None:
        """Fill the node's disk for a while."""
        self.node.disk.is_full = True
        self.net.clock.callLater(seconds, setattr, self.node.disk, "is_full", False)

    def do_jump(self, who: str, seconds: float) -> None:
        """Let the wall clock jump."""
        self.skew += seconds
        self.jumped_days = True
        for party in self.parties.values():
            if party.lives and party.process.clock.alive and party.reactor is not None:
                party.reactor.jump(seconds)

    def do_save(self, who: str) -> None:
        """Copy what is on a disk."""
        self.parties[who].save()

    def do_restore(self, who: str, seconds: float) -> None:
        """Kill, put the copy back, start again after a while."""
        party = self.parties[who]
        party.kill()
        party.restore()
        self.net.clock.callLater(seconds, party.start)

    def log_went_back(self, saved_at: float) -> None:
        """The node's log is that of an earlier moment."""
        self.witness.log_went_back()
        self.log_restored_at = self.now
        self.log_gaps.append((saved_at, self.now))
        for patterns in self.patterns.values():
            patterns.go_back(saved_at, self.now)
        # What was accepted before every copy that was put back is in all of them.
        earlier = self.log_saved_at
        self.log_saved_at = saved_at if earlier < 0 else min(earlier, saved_at)

    def do_power(self, who: str, operations: int, seconds: float) -> None:
        """The power of the node's machine fails, at once or in one of the next operations."""
        node = self.node
        if not operations:
            node.disk.lose_power()
            self.do_kill("node", seconds)
            return
        lives = node.lives
        node.disk.lose_power_in(operations)

        def again() -> None:
            if node.lives == lives:
                node.kill()
                node.start()

        self.net.clock.callLater(seconds, again)

    def do_sync(self, who: str) -> None:
        """A sync of the node's log fails."""
        self.node.disk.fail_sync()

    def do_suspend(self, who: str, size: int) -> None:
        """From now on a receiver is left out of audiences while so many bytes wait for it."""
        if self.row_of(who) is None:
            return
        self.suspends.add(who)
        self.patterns[who].is_certain = False
        service = self.node.service
        self._admin(lambda: service.change_receiver(who, on_full="suspend", backlog_bytes=size))

    def do_wolf(self, who: str, *args: Any) -> None:
        """The hostile receiver does something."""
        assert self.wolf is not None
        if who == "remove":
            if self.row_of("wolf") is not None:
                self._admin(self.node.service.remove_receiver, "wolf")
            return
        self._meter_for(3.0)
        self.wolf.act(who, args)

    def do_stray(self, who: str, *args: Any) -> None:
        """The hostile sender does something."""
        assert self.stray is not None
        if who != "requests":
            self._meter_for(3.0)
        self.stray.act(who, args)

    def _meter_for(self, seconds: float) -> None:
        self.meter.on = True
        self.net.clock.callLater(seconds, setattr, self.meter, "on", False)
