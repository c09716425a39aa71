"""What one seed does, as explicit data: who takes part, limits, weather, and timed operations.

Everything that is drawn is drawn here, so that a plan can be cut (`shrink`), printed and played
again without its seed's other choices. Each seed turns on a random subset of the operations, of the
faults and of the small limits: what all seeds do, no seed shows alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any, NamedTuple

SUBJECTS = ("a.1", "a.2", "b.1", "nobody")
HOUR = 3600.0
DAY = 24 * HOUR


class Op(NamedTuple):
    """One thing that happens at a time: `world.World.do_<kind>(who, *args)`."""

    at: float
    kind: str
    who: str = ""
    args: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Part:
    """Somebody who takes part, and how."""

    kind: str  # producer, receiver, scripted
    name: str
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """See the module. `weather`: what differs from a calm network (`testing.network.Faults`)."""

    seed: int
    limits: dict[str, Any]
    weather: dict[str, Any]
    cast: tuple[Part, ...]
    ops: tuple[Op, ...]
    world: dict[str, Any] = field(default_factory=dict)

    @property
    def end(self) -> float:
        """When the last operation begins."""
        return max((op.at for op in self.ops), default=0.0)


# --- small limits: each is drawn or left at its default -----------------------------------------

SMALL: dict[str, tuple[Any, ...]] = {
    "exceptions": (4, 10, 40),
    "window_messages": (1, 3, 10, 60),
    "window_bytes": (5_000, 30_000),
    "audiences": (4, 8, 20),
    "receivers": (8, 20),
    "batch_messages": (1, 3, 20),
    "max_batch": (4_096, 8_192, 30_000),
    "max_bytes": (30_000, 60_000, 150_000),
    "backlog_bytes": (8_000, 40_000),
    "keep_bytes": (0, 3_000),
    "keep_seconds": (0.0, 0.0, 5.0),
    "tail_bytes": (4_000, 20_000),
    "uncommitted_bytes": (2_000, 16_384),
    "requests": (5, 50),
    "max_attempts": (2, 4),
    "retry_delay_max": (1.5, 10.0),
    "heartbeat": (2.0, 5.0),
    "hello_timeout": (3.0,),
}
# What else is other than by default, so that no hours pass without anything to see.
ALWAYS: dict[str, Any] = {
    "link_delay_max": 3.0,
    "retry_delay_max": 5.0,
    "asked_delay_max": 20.0,
    "max_attempts": 1000,
    "replacement_hold": 10.0,
}


def _limits(random: Random) -> dict[str, Any]:
    limits: dict[str, Any] = {}
    chance = random.choice((0.1, 0.25, 0.5))
    for name, values in SMALL.items():
        if random.random() < chance:
            limits[name] = random.choice(values)
    return limits


def limits_of(plan: Plan) -> dict[str, Any]:
    """All limits that are in force, with what must go together."""
    limits = ALWAYS | plan.limits
    if "max_bytes" in limits:
        # A run must fit into the log, and into half of it: what one receiver may have waiting.
        limits["max_batch"] = min(limits.get("max_batch", 8_192), 8_192)
    return limits


# --- weather: some kinds never, so that others are seen alone -----------------------------------


def _weather(random: Random) -> dict[str, Any]:
    pick = random.choice
    if random.random() < 0.35:
        return {}
    drawn = {
        "delay": (0.001, pick([0.002, 0.05, 0.2])),
        "split": pick([0.0, 0.5]),
        "hold": pick([0.0, 0.0, 0.02]),
        "cut": pick([0.0, 0.0, 0.01, 0.05]),
        "half_open": pick([0.0, 5.0]),
        "redial": (0.01, pick([0.01, 3.0])),
    }
    return {name: value for name, value in drawn.items() if value != 0.0}


# --- the cast -----------------------------------------------------------------------------------


def _producer(random: Random, name: str) -> Part:
    options: dict[str, Any] = {}
    if random.random() < 0.4:
        options["outbox"] = True
    return Part("producer", name, options)


def _receiver(random: Random, name: str) -> Part:
    pick, chance = random.choice, random.random
    options: dict[str, Any] = {"patterns": pick([(">",), ("a.*", "b.>"), ("a.1",), ("a.*",)])}
    if chance() < 0.35:
        options["order"] = "none"
    if chance() < 0.3:
        options["inbox"] = True
    if chance() < 0.25:
        options["batch"] = True
    if chance() < 0.4:
        options["concurrency"] = pick([1, 3])
    if chance() < 0.3:
        options["window"] = pick([(1, 1), (2, 3_000), (20, 20_000)])
    if chance() < 0.5:
        options["pause"] = pick([0.0, 0.02, 0.3])
    if chance() < 0.4:
        options["fails"] = pick([0.03, 0.15, 0.4])
    return Part("receiver", name, options)


def _scripted(random: Random, name: str) -> Part:
    pick, chance = random.choice, random.random
    options: dict[str, Any] = {"patterns": pick([(">",), ("a.*",), ("a.1", "b.1")])}
    if chance() < 0.5:
        options["order"] = "none"
    if chance() < 0.3:
        options["window"] = pick([(0, 10_000), (5, 0), (0, 0), (1, 1), (4, 3_000), (50, 10**6)])
    if chance() < 0.15:
        options["max_batch"] = pick([1, 200, 1_000, 5_000])
    if chance() < 0.6:
        options["nacks"] = pick([0.05, 0.2, 0.4])
    if chance() < 0.5:
        options["actions"] = pick([(1,), (4,), (1, 4), (1, 2, 4), (2, 3), (2,)])
    if chance() < 0.5:
        options["slow"] = (pick([0.1, 0.3, 0.6]), pick([1.0, 20.0, 300.0]))
    if chance() < 0.3:
        options["asks"] = pick([0, 10, 5_000])  # ms, of a NACK
    return Part("scripted", name, options)


def _cast(random: Random) -> tuple[Part, ...]:
    cast = [_producer(random, "shop")]
    if random.random() < 0.5:
        cast.append(_producer(random, "web"))
    names = ("library", "picky")[: random.choice((0, 1, 1, 2))]
    cast += [_receiver(random, name) for name in names]
    if random.random() < 0.6 or all(part.kind == "producer" for part in cast):
        cast.append(_scripted(random, "scripted"))
    return tuple(cast)


# --- operations ---------------------------------------------------------------------------------

# kind: (chance that a seed has it at all, how many at most)
KINDS: dict[str, tuple[float, int]] = {
    "kill": (0.4, 4),
    "stop": (0.3, 3),
    "cut": (0.35, 6),
    "hold": (0.3, 3),
    "pause": (0.2, 3),
    "remove": (0.25, 4),
    "change": (0.2, 3),
    "intrude": (0.2, 4),
    "disk": (0.2, 3),
    "jump": (0.25, 3),
    "restore": (0.2, 2),
    "poison": (0.2, 2),
    "wolf": (0.35, 6),
    "stray": (0.25, 5),
    "names": (0.15, 3),
    "backlog": (0.3, 2),
}
WOLF: tuple[tuple[str, tuple[Any, ...]], ...] = (
    ("flood", (50, 300)),
    ("flood", (4096, 0)),
    ("nack", (2,)),
    ("nack", (1,)),
    ("nack", (4,)),
    ("nack_each", (1,)),
    ("nack_each", (2,)),
    ("ack_odd", ()),
    ("ack_inverted", ()),
    ("ack_inverted", ()),
    ("nack_inverted", (1,)),
    ("nack_inverted", (2,)),
    ("resume_inverted", ()),
    ("remove", ()),
    ("away", (40.0,)),
)
STRAY: tuple[tuple[str, tuple[Any, ...]], ...] = (
    ("origin", (3,)),
    ("origin", (20,)),
    ("again", ("subject",)),
    ("again", ("cut",)),
    ("again", ("body",)),
    ("requests", (5, 3)),
    ("requests", (100, 12)),
    ("garbage", ()),
)


def _ops(random: Random, cast: tuple[Part, ...]) -> list[Op]:
    pick, chance = random.choice, random.random
    span = pick((5.0, 40.0, 40.0, 150.0))
    producers = [p.name for p in cast if p.kind == "producer"]
    receivers = [p.name for p in cast if p.kind != "producer"]
    stored = [p.name for p in cast if p.options.get("outbox") or p.options.get("inbox")]
    ops: list[Op] = []
    # Some seeds crowd: what meets within the time of a commit is met by no chance elsewhere.
    crowds = [random.uniform(0, span) for _ in range(random.randint(1, 4))]
    crowded = pick((0.0, 0.0, 0.8))

    def at() -> float:
        if random.random() < crowded:
            return round(pick(crowds) + random.uniform(0, 0.2), 3)
        return round(random.uniform(0, span), 3)

    uses_to, requires = chance() < 0.3, chance() < 0.15
    sizes = pick([(0,), (0, 0, 300), (0, 300, 3_000), (1_000, 3_000), (0, 20_000)])
    subjects = SUBJECTS[: pick((1, 2, 3, 4))]
    for _ in range(random.randint(3, 40)):
        to = None
        if uses_to and chance() < 0.6:
            to = tuple(sorted(random.sample(receivers, random.randint(1, len(receivers)))))
        count = pick((1, 1, 2, 5, 20))
        ops.append(
            Op(
                at(),
                "send",
                pick(producers),
                (pick(subjects), count, pick(sizes), to, requires and chance() < 0.5),
            )
        )
    for kind, (share, most) in KINDS.items():
        if chance() >= share:
            continue
        for _ in range(random.randint(1, most)):
            ops += _one(random, kind, at(), span, [*producers, *receivers, "node"], cast, stored)
    return sorted(ops, key=lambda op: op.at)


def _one(
    random: Random,
    kind: str,
    at: float,
    span: float,
    everybody: list[str],
    cast: tuple[Part, ...],
    stored: list[str],
) -> list[Op]:
    pick = random.choice
    producers = [p.name for p in cast if p.kind == "producer"]
    receivers = [p.name for p in cast if p.kind != "producer"]
    seconds = round(pick((0.05, 1.0, 5.0, 35.0, 90.0)) * random.uniform(0.7, 1.3), 3)
    match kind:
        case "kill" | "stop":
            return [Op(at, kind, pick(everybody), (seconds,))]
        case "cut":
            return [Op(at, kind, pick(everybody))]
        case "hold":
            return [Op(at, kind, pick(everybody[:-1]), (seconds, pick(("in", "out", "both"))))]
        case "pause":
            return [Op(at, kind, pick(receivers)), Op(at + seconds, "unpause", pick(receivers))]
        case "remove":
            return [Op(at, kind, pick(receivers), (pick((0.0, 0.01, 1.0, 20.0)),))]
        case "change":
            patterns = pick([(">",), ("a.1",), ("b.>",), ("a.*", "b.1")])
            return [Op(at, kind, pick(receivers), (patterns,))]
        case "intrude":
            who = pick(receivers)
            patterns = pick([("a.2",), ("b.>",), (">",), ("never",)])
            first = [Op(max(0.0, at - 1.0), "pause", who), Op(at + 1.0, "unpause", who)]
            one = Op(at, kind, who, (patterns, pick(("strict", "none", None))))
            return [*first, one] if random.random() < 0.5 else [one]
        case "disk":
            return [Op(at, kind, "", (seconds,))]
        case "jump":
            far = pick((HOUR, -HOUR, 2 * DAY, 8 * DAY, 30 * DAY, -8 * DAY))
            return [Op(at, kind, "", (far,))]
        case "restore":
            who = pick([*stored, *stored, "node"])
            later = round(random.uniform(at, span), 3)
            return [Op(at, "save", who), Op(later, kind, who, (round(random.uniform(0, 5), 3),))]
        case "poison":
            return [
                Op(at, kind, pick(producers), (*random.sample(SUBJECTS[:3], 2), pick(receivers)))
            ]
        case "wolf":
            what, args = pick(WOLF)
            found = [Op(at, kind, what, args)]
            if not what.startswith("flood"):
                found.insert(0, Op(max(0.0, at - 0.5), kind, "flood", pick([(30, 10), (300, 0)])))
            return found
        case "stray":
            return [Op(at, kind, *pick(STRAY))]
        case "names":
            return [Op(at, kind, pick(producers), (pick((5, 30)),))]
        case "backlog":
            return [Op(at, kind, pick(producers), (pick(SUBJECTS[:3]), pick((40, 150))))]
    raise AssertionError(kind)


# --- what was added later: drawn apart, so that the rest of a seed stays what it was -------------

# Small limits that only some histories come near.
SMALLER: dict[str, tuple[Any, ...]] = {
    "dead_bytes": (500, 20_000),
    "incarnations": (1, 3),
    "sender_ranges": (3, 50),
    "to_audiences": (2, 5),
    "sender_audiences": (1, 4),
    "removed_receivers": (1, 3),
    "answer_bytes": (2_000,),
    "answering": (1, 3),
    "subjects": (1, 2),
    "replacements": (1,),
    "write_timeout": (5.0,),
    "close_timeout": (1.0,),
    "link_healthy": (0.5,),
    "loaded_bytes": (2_000, 30_000),
}
DEAD_BYTES_TOTAL = (1_000, 20_000)
SQLITE = 1 / 8  # of the seeds have the real log on a simulated disk
RESERVE_BYTES = 64 * 1024  # so that it checkpoints every 16 KiB


def _widen(random: Random, plan: Plan) -> Plan:
    pick, chance = random.choice, random.random
    world, limits, weather = dict(plan.world), dict(plan.limits), dict(plan.weather)
    cast, ops = list(plan.cast), list(plan.ops)
    span = max(plan.end, 5.0)

    def at() -> float:
        return round(random.uniform(0, span), 3)

    if chance() < 0.4:
        share = pick((0.1, 0.4))
        limits |= {name: pick(some) for name, some in SMALLER.items() if chance() < share}
    if chance() < SQLITE:
        world["log"] = "sqlite"
        limits["reserve_bytes"] = RESERVE_BYTES
        if chance() < 0.7:
            for _ in range(random.randint(1, 3)):
                operations = pick((0, random.randint(1, 20), random.randint(1, 300)))
                ops.append(Op(at(), "power", "", (operations, round(random.uniform(0.1, 20), 3))))
        if chance() < 0.3:
            ops += [Op(at(), "sync") for _ in range(random.randint(1, 3))]
    receivers = [part for part in cast if part.kind == "receiver"]
    dialled = set()
    if receivers and chance() < 0.3:
        for part in receivers:
            if chance() < 0.7:
                options = part.options | {"dialled": pick(("added", "configured"))}
                cast[cast.index(part)] = Part(part.kind, part.name, options)
                dialled.add(part.name)
        # Who takes the name of one that is dialled changes it for good: that is not meant here.
        ops = [op for op in ops if op.kind != "intrude" or op.who not in dialled]
    if chance() < 0.3:
        world["udp"] = tuple(part.name for part in cast if chance() < 0.6)
        weather |= _datagrams(random)
    if chance() < 0.15:
        who = pick([part.name for part in cast if part.kind != "producer"])
        ops.append(Op(0.0, "suspend", who, (pick((300, 3_000, 20_000)),)))
    return replace(
        plan,
        limits=limits,
        weather=weather,
        cast=tuple(cast),
        ops=tuple(sorted(ops, key=lambda op: op.at)),
        world=world,
    )


# How late pages of the log may be read, seconds: longer than a commit, so that what is stored
# meanwhile is there when they are.
LATE_READS = (0.2, 1.0, 4.0)


def _read_late(random: Random, plan: Plan) -> Plan:
    """A reader that is late; and some who are sent to by name, for there are new sets then."""
    if random.random() >= 0.25:
        return plan
    world = plan.world | {"late_reads": random.choice(LATE_READS)}
    receivers = [part.name for part in plan.cast if part.kind != "producer"]
    producers = [part.name for part in plan.cast if part.kind == "producer"]
    ops = list(plan.ops)
    if random.random() < 0.5:
        share = random.choice((0.1, 0.4))
        for place, op in enumerate(ops):
            if op.kind == "send" and random.random() < share:
                to = tuple(sorted(random.sample(receivers, random.randint(1, len(receivers)))))
                ops[place] = op._replace(args=(*op.args[:3], to, *op.args[4:]))
    for _ in range(random.choice((0, 1, 3))):
        # Behind a restart all that waits is read, and much may come before it is.
        at, who = random.uniform(2.0, max(plan.end, 5.0)), random.choice(producers)
        subject = random.choice(SUBJECTS[:3])
        ops += [
            Op(round(at, 3), "backlog", who, (subject, random.choice((5, 40)))),
            Op(round(at + random.uniform(0.0, 0.3), 3), "kill", "node", (0.05,)),
        ]
        for _ in range(random.randint(1, 6)):
            later = round(at + random.uniform(0.3, 6.0), 3)
            to = tuple(sorted(random.sample(receivers, random.randint(1, len(receivers)))))
            ops.append(Op(later, "send", who, (subject, 1, 0, random.choice((None, to)), False)))
    return replace(plan, ops=tuple(sorted(ops, key=lambda op: op.at)), world=world)


def _few_letters(random: Random, plan: Plan) -> Plan:
    """Little room for the dead letters of all receivers together."""
    if random.random() >= 0.15:
        return plan
    total = random.choice(DEAD_BYTES_TOTAL)
    return replace(plan, limits=plan.limits | {"dead_bytes_total": total})


KEPT_BATCHES = (20, 60, 200)


def _keep_few(random: Random, plan: Plan) -> Plan:
    """Few rows may stay behind a batch that is waited for."""
    if random.random() >= 0.12:
        return plan
    return replace(plan, limits=plan.limits | {"kept_batches": random.choice(KEPT_BATCHES)})


def _reorder(random: Random, plan: Plan) -> Plan:
    """An operator changes the order of receivers, whatever is in flight or was refused."""
    if random.random() >= 0.15:
        return plan
    ops, receivers = list(plan.ops), [part.name for part in plan.cast if part.kind != "producer"]
    for _ in range(random.randint(1, 6)):
        at = round(random.uniform(0, max(plan.end, 5.0)), 3)
        order = random.choice(("strict", "none"))
        ops.append(Op(at, "reorder", random.choice(receivers), (order,)))
    return replace(plan, ops=tuple(sorted(ops, key=lambda op: op.at)))


POOL = "pool"  # the receiver that workers share
KEYED = 100  # the first slot of a key that comes with other options
UNDONE = 200  # … and of one that is used to take back what was sent with it
OVER = 300  # … and of one whose message is settled without an answer
THEFTS = ("guess", "skip", "name")


def _meanwhile(random: Random, at: float, seconds: float, producers: list[str]) -> list[Op]:
    """Some messages while something else lasts."""
    return [
        Op(
            round(at + random.uniform(0, seconds), 3),
            "send",
            random.choice(producers),
            (random.choice(SUBJECTS[:3]), 1, 0, None, False),
        )
        for _ in range(3)
    ]


def _log_in(random: Random, plan: Plan) -> Plan:
    """Users are configured: all log in, and who may do what changes while the traffic goes on."""
    if random.random() >= 0.25 or plan.world.get("udp"):
        return plan
    if any(part.options.get("dialled") for part in plan.cast):
        return plan  # who is dialled logs in to nobody
    pick = random.choice
    span = max(plan.end, 5.0)
    producers = [part.name for part in plan.cast if part.kind == "producer"]
    receivers = [part.name for part in plan.cast if part.kind != "producer"]
    kinds = ("lock", "revoke", "narrow", "blind", "forbidden", "thief", "reload")
    ops = list(plan.ops)
    for kind in [kind for kind in kinds if random.random() < 0.5]:
        for _ in range(random.randint(1, 4)):
            at = round(random.uniform(0, span), 3)
            seconds = round(pick((0.05, 1.0, 5.0, 35.0)) * random.uniform(0.7, 1.3), 3)
            match kind:
                case "lock" | "revoke":
                    ops.append(Op(at, kind, pick([*producers, *receivers]), (seconds,)))
                case "narrow":
                    allowed = tuple(sorted(random.sample(SUBJECTS[:3], pick((0, 1, 2)))))
                    who = pick(producers)
                    ops.append(Op(at, kind, who, (seconds, allowed)))
                    ops += _meanwhile(random, at, seconds, [who])
                case "blind":
                    allowed = pick(((), ("a.1",), ("b.>",), ("a.*",)))
                    ops.append(Op(at, kind, pick(receivers), (seconds, allowed)))
                    ops += _meanwhile(random, at, seconds, producers)
                case "forbidden":
                    ops.append(Op(at, kind, pick(producers), (pick((1, 5)),)))
                case "thief":
                    ops.append(Op(at, kind, pick([*producers, *receivers]), (pick(THEFTS),)))
                case _:
                    ops.append(Op(at, kind))
    return replace(
        plan, ops=tuple(sorted(ops, key=lambda op: op.at)), world=plan.world | {"users": True}
    )


def _datagrams(random: Random) -> dict[str, Any]:
    pick = random.choice
    drawn = {
        "loss": pick([0.0, 0.05, 0.3]),
        "duplicate": pick([0.0, 0.1]),
        "reorder": pick([0.0, 0.3, 0.8]),
        "damage": pick([0.0, 0.02]),
        "busy": pick([0.0, 0.3]),
        "partition": pick([0.0, 0.0, 0.002]),
    }
    return {name: value for name, value in drawn.items() if value != 0.0}


# --- options of messages: each family by itself, and what may go wrong in the midst of it ---------

FAMILY = 0.25  # of the seeds have each
MISHAPS = ("kill", "kill", "cut", "stop")


LATE = ("late0", "late1", "late2", "late3", "late4")  # who joins late
FIRST_LATE = 3  # of these, among what is retained without more
# Those that fall due, or expire.
TIMED = (
    "short",
    "later",
    "keep_later",
    "keep_short",
    "later_short",
    "keyed_later",
    "keyed_short",
    "leave",
    "promise",
)
# … and those for which it is noted what the node sends.
WATCHED = (*TIMED, "undo", "undo_key", "why")


@dataclass
class Drawing:
    """What options are drawn into: `cast` and `limits` may be changed."""

    random: Random
    span: float
    cast: list[Part]
    limits: dict[str, Any]

    @property
    def producers(self) -> list[str]:
        """The names of the producers."""
        return [part.name for part in self.cast if part.kind == "producer"]

    @property
    def receivers(self) -> list[str]:
        """The names of the receivers."""
        return [part.name for part in self.cast if part.kind != "producer"]

    def at(self) -> float:
        """Return any moment."""
        return round(self.random.uniform(0, self.span), 3)


def _say_more(
    random: Random, plan: Plan, families: tuple[Callable[[Drawing], list[Op]], ...]
) -> Plan:
    """Messages with options, of some of these families."""
    drawing = Drawing(random, max(plan.end, 5.0), list(plan.cast), dict(plan.limits))
    ops = list(plan.ops)
    if not drawing.producers:
        return plan
    for family in families:
        if random.random() >= FAMILY:
            continue
        some = family(drawing)
        for op in random.sample(some, min(len(some), random.choice((0, 1, 1, 3)))):
            seconds = round(random.choice((0.05, 1.0, 5.0, 35.0)) * random.uniform(0.7, 1.3), 3)
            who = random.choice(("node", "node", op.who, *drawing.receivers))
            kind = random.choice(MISHAPS)
            at = round(op.at + random.uniform(0.0, 0.1), 3)
            if who not in LATE:
                some.append(Op(at, kind, who, () if kind == "cut" else (seconds,)))
        ops += some
    if any(op.kind in TIMED for op in ops):
        # By a clock that was set back for days, what is due then is due in days.
        ops = [op for op in ops if op.kind != "jump"]
    ops.sort(key=lambda op: op.at)
    return replace(plan, limits=drawing.limits, cast=tuple(drawing.cast), ops=tuple(ops))


def _keys(drawing: Drawing) -> list[Op]:
    """Each key comes again and again: at once, after what went wrong, and much later."""
    random, producers = drawing.random, drawing.producers
    ops: list[Op] = []
    for slot in range(random.randint(1, 4)):
        at, who = random.uniform(0, drawing.span), random.choice(producers)
        for _ in range(random.randint(2, 6)):
            variant = int(random.random() < 0.1)
            ops.append(Op(round(at, 3), "keyed", who, (slot, variant)))
            at += random.choice((0.0, 0.0, 0.05, 1.0, 8.0, 60.0)) * random.uniform(0.5, 1.5)
    if random.random() < 0.3:
        # What was taken by a key counts as long as its message is in the log.
        drawing.limits |= {
            "idempotency_keys": random.choice((1, 2, 4)),
            "idempotency_key_seconds": random.choice((10.0, 30.0)),
            "keep_seconds": 0.0,
            "keep_bytes": 0,
        }
    return ops


def _lifetimes(drawing: Drawing) -> list[Op]:
    random, producers, receivers = drawing.random, drawing.producers, drawing.receivers
    pick = random.choice
    ops: list[Op] = []
    for _ in range(random.randint(2, 12)):
        at, size = drawing.at(), pick((0, 0, 300, 3_000))
        ttl = round(pick((0.0, 0.05, 0.5, 3.0, 20.0, 200.0)) * random.uniform(0.7, 1.3), 3)
        args = (pick(SUBJECTS[:3]), pick((1, 1, 3, 10)), size, ttl)
        ops.append(Op(at, "short", pick(producers), args))
    for op in random.sample(ops, min(3, len(ops))):
        if random.random() < 0.5:  # somebody is away meanwhile
            seconds = round(random.uniform(1.0, 40.0), 3)
            ops.append(
                Op(max(0.0, op.at - 0.05), pick(("kill", "stop")), pick(receivers), (seconds,))
            )
    return ops


def _delays(drawing: Drawing) -> list[Op]:
    random, producers, receivers = drawing.random, drawing.producers, drawing.receivers
    pick = random.choice
    ops: list[Op] = []
    for _ in range(random.randint(2, 12)):
        at, who = drawing.at(), pick(producers)
        delay = round(
            pick((0.01, 0.5, 3.0, 3.0, 20.0, 100.0)) * pick((1.0, 1.0, random.random())), 3
        )
        to = (pick(receivers),) if receivers and random.random() < 0.15 else None
        ops.append(Op(at, "later", who, (pick(SUBJECTS[:3]), pick((1, 1, 3, 10)), delay, to)))
        if random.random() < 0.4:
            # Long before, or in the moment when it is due.
            near = pick((random.uniform(0.0, delay), delay + random.uniform(-0.1, 0.1)))
            ops.append(
                Op(round(at + max(0.01, near), 3), "call_back", who, (random.randint(0, 3),))
            )
        if random.random() < 0.15:
            ops.append(
                Op(round(at + delay, 3), "kill", "node", (round(random.uniform(0.05, 3), 3),))
            )
    return ops


def _letters(drawing: Drawing) -> list[Op]:
    """Receivers fail, and an operator sends again what is dead, or drops it."""
    random, receivers = drawing.random, drawing.receivers
    pick = random.choice
    for place, part in enumerate(drawing.cast):
        if part.kind == "receiver" and random.random() < 0.7:
            drawing.cast[place] = replace(part, options=part.options | {"fails": 0.4})
        elif part.kind == "scripted" and random.random() < 0.7:
            fails = {"nacks": 0.4, "actions": pick([(2,), (2, 3), (1, 2)])}
            drawing.cast[place] = replace(part, options=part.options | fails)
    if random.random() < 0.5:
        drawing.limits["max_attempts"] = pick((2, 4))
    ops: list[Op] = []
    for _ in range(random.randint(1, 6)):
        to = pick(receivers) if random.random() < 0.2 else None
        drops = random.random() < 0.2
        ops.append(
            Op(drawing.at(), "drop", pick(receivers))
            if drops
            else Op(drawing.at(), "requeue", pick(receivers), (to,))
        )
    for op in list(ops):
        for _ in range(random.randint(0, 3)):
            at = max(0.0, round(op.at - random.uniform(0.0, 5.0), 3))
            args = (pick(SUBJECTS[:3]), pick((1, 5)), pick((0, 300)), None, False)
            ops.append(Op(at, "send", pick(drawing.producers), args))
    return ops


def _retained(drawing: Drawing) -> list[Op]:
    """Subjects of which a message is retained, replaced and cleared; and who joins meanwhile."""
    random, producers = drawing.random, drawing.producers
    pick = random.choice
    ops: list[Op] = []
    for _ in range(random.randint(2, 10)):
        how = pick(("keep", "keep", "keep", "only", "clear"))
        ops.append(Op(drawing.at(), "keep", pick(producers), (pick(SUBJECTS[:3]), how)))
    for name in LATE[: random.randint(1, FIRST_LATE)]:
        patterns = pick([(">",), ("a.*",), ("a.1", "b.1"), ("b.>",)])
        at = drawing.at()
        ops.append(Op(at, "join", name, (patterns,)))
        for _ in range(random.choice((0, 2, 6))):  # much comes in that moment
            near = max(0.0, round(at + random.uniform(-0.05, 0.05), 3))
            subject, how = pick(SUBJECTS[:3]), pick(("keep", "keep", "clear", "send"))
            args = (subject, 1, 0, None, False) if how == "send" else (subject, how)
            ops.append(Op(near, "send" if how == "send" else "keep", pick(producers), args))
    return ops


def _share(random: Random, plan: Plan) -> Plan:
    """Workers that share a receiver: each is killed, cut and stopped by itself."""
    if random.random() >= 0.25:
        return plan
    pick, chance = random.choice, random.random
    options: dict[str, Any] = {
        "patterns": pick([(">",), ("a.*", "b.>"), ("a.1",)]),
        "workers": pick((2, 2, 3, 5)),
    }
    if chance() < 0.5:
        options["concurrency"] = pick([1, 2, 10])
    if chance() < 0.3:
        options["window"] = pick([(1, 1), (2, 3_000), (20, 20_000)])
    if chance() < 0.8:
        options["pause"] = pick([0.02, 0.3, 3.0])
    if chance() < 0.4:
        options["fails"] = pick([0.03, 0.15, 0.4])
    ops = list(plan.ops)
    span = max(plan.end, 5.0)
    for _ in range(random.randint(1, 12)):
        at, worker = round(random.uniform(0.0, span), 3), random.randrange(options["workers"])
        seconds = round(pick((0.05, 1.0, 5.0)) * random.uniform(0.7, 1.3), 3)
        ops.append(
            pick(
                (
                    Op(at, "kill_worker", POOL, (worker, seconds)),
                    Op(at, "kill_worker", POOL, (worker, seconds)),
                    Op(at, "cut_worker", POOL, (worker,)),
                    Op(at, "stop_worker", POOL, (worker, seconds)),
                )
            )
        )
        for _ in range(random.choice((0, 2, 6))):  # there is something that it has in hand
            near = max(0.0, round(at - random.uniform(0.0, 0.5), 3))
            who = pick([part.name for part in plan.cast if part.kind == "producer"])
            args = (pick(SUBJECTS[:3]), pick((1, 5, 20)), pick((0, 300)), None, False)
            ops.append(Op(near, "send", who, args))
    for _ in range(random.choice((0, 0, 1, 2))):
        at = round(random.uniform(0.0, span), 3)
        ops.append(
            pick(
                (
                    Op(at, "kill", POOL, (1.0,)),
                    Op(at, "remove", POOL, (pick((0.0, 1.0)),)),
                    Op(at, "pause", POOL),
                    Op(at, "hold", POOL, (5.0, pick(("in", "out", "both")))),
                )
            )
        )
        ops.append(Op(round(at + 5.0, 3), "unpause", POOL))
    if chance() < 0.4:
        who = pick([part.name for part in plan.cast if part.kind == "producer"])
        at = round(random.uniform(0.0, span), 3)
        ops.append(Op(at, "poison", who, (*random.sample(SUBJECTS[:3], 2), POOL)))
    return replace(
        plan,
        cast=(*plan.cast, Part("pool", POOL, options)),
        ops=tuple(sorted(ops, key=lambda op: op.at)),
    )


def _together(drawing: Drawing) -> list[Op]:
    """Options that are said of one message: a delay with `retain` or a ttl, `retain` with a ttl."""
    random, producers = drawing.random, drawing.producers
    pick = random.choice
    ops: list[Op] = []
    for _ in range(random.randint(2, 10)):
        at, who, subject = drawing.at(), pick(producers), pick(SUBJECTS[:3])
        delay = round(pick((0.05, 0.5, 3.0, 20.0)) * random.uniform(0.7, 1.3), 3)
        ttl = round(pick((0.05, 0.5, 3.0, 20.0)) * random.uniform(0.7, 1.3), 3)
        match pick(("keep_later", "keep_later", "keep_short", "later_short", "keep")):
            case "keep_later":
                how = pick(("keep", "keep", "only", "clear"))
                over = pick((None, None, round(delay + ttl, 3))) if how != "clear" else None
                ops.append(Op(at, "keep_later", who, (subject, how, delay, over)))
                if random.random() < 0.5:  # what is sent meanwhile, or when it is due, is older
                    near = round(at + pick((delay * random.random(), delay)), 3)
                    ops.append(Op(near, "keep", pick(producers), (subject, "keep")))
                if random.random() < 0.3:
                    near = round(at + delay * random.uniform(0.2, 1.02), 3)
                    ops.append(Op(near, "call_back", who, (random.randint(0, 3),)))
            case "keep_short":
                ops.append(Op(at, "keep_short", who, (subject, ttl)))
            case "later_short":
                args = (subject, pick((1, 3)), delay, round(delay + ttl, 3))
                ops.append(Op(at, "later_short", who, args))
            case _:
                ops.append(Op(at, "keep", who, (subject, pick(("keep", "clear")))))
    for op in random.sample(ops, min(4, len(ops))):
        if random.random() < 0.4:  # nobody moves what is due, or lets go of what is over
            seconds = round(random.uniform(0.2, 15.0), 3)
            ops.append(Op(round(op.at + 0.02, 3), "kill", "node", (seconds,)))
    for name in LATE[FIRST_LATE:]:
        patterns = pick([(">",), ("a.*",), ("a.1", "b.1")])
        ops.append(Op(drawing.at(), "join", name, (patterns,)))
    return ops


def _rewinds(drawing: Drawing) -> list[Op]:
    """An operator has sent again what receivers have acknowledged: all of it, or the last."""
    random, pick = drawing.random, drawing.random.choice
    ops: list[Op] = []
    for _ in range(random.randint(1, 4)):
        at, who = drawing.at(), pick(drawing.receivers)
        ops.append(Op(at, "rewind", who, (pick((1.0, 1.0, 0.3)),)))
        for _ in range(random.choice((0, 2, 6))):  # there is something, and something new
            near = max(0.0, round(at + random.uniform(-5.0, 0.5), 3))
            args = (pick(SUBJECTS[:3]), pick((1, 5, 20)), pick((0, 300)), None, False)
            ops.append(Op(near, "send", pick(drawing.producers), args))
    return ops


def _keyed_more(drawing: Drawing) -> list[Op]:
    """Keys of what is retained, and of what waits until it is due: said again and again."""
    random, pick = drawing.random, drawing.random.choice
    ops: list[Op] = []
    for slot in range(KEYED, KEYED + random.randint(1, 4)):
        at, who = random.uniform(0, drawing.span), pick(drawing.producers)
        is_kept = random.random() < 0.5
        for _ in range(random.randint(2, 5)):
            variant = int(random.random() < 0.1)
            if is_kept:
                ops.append(Op(round(at, 3), "keyed_keep", who, (slot, variant)))
                if random.random() < 0.6:  # which is newer, whatever is said again
                    near = round(at + random.uniform(0.0, 1.0), 3)
                    ops.append(Op(near, "keep", who, (SUBJECTS[slot % 3], pick(("keep", "clear")))))
            else:
                delay = round(pick((0.05, 1.0, 5.0, 20.0)) * random.uniform(0.7, 1.3), 3)
                ops.append(Op(round(at, 3), "keyed_later", who, (slot, variant, delay)))
            at += pick((0.0, 0.05, 1.0, 8.0, 30.0)) * random.uniform(0.5, 1.5)
    late = [name for name in LATE[:FIRST_LATE] if random.random() < 0.4]
    patterns = [(">",), ("a.*",)]
    return [*ops, *(Op(drawing.at(), "join", name, (pick(patterns),)) for name in late)]


def _keyed_over(drawing: Drawing) -> list[Op]:
    """Keys that a program says again in its next life, of what nobody is there to answer.

    It is taken back then, or expires: who said it last waits for that as who said it first.
    """
    random, pick = drawing.random, drawing.random.choice
    away = [part.name for part in drawing.cast if part.kind in ("receiver", "scripted")]
    ops: list[Op] = []
    for slot in range(OVER, OVER + random.randint(1, 4)):
        who, expires = pick(drawing.producers), random.random() < 0.5
        # Behind all else nobody connects again, and is told then.
        at = pick((drawing.at(), drawing.span + random.uniform(0.0, 3.0)))
        for name in away:
            if random.random() < 0.7:
                seconds = round(pick((3.0, 10.0, 30.0)) * random.uniform(0.7, 1.3), 3)
                ops.append(Op(round(at, 3), pick(("kill", "stop")), name, (seconds,)))
        ttl = round(pick((2.0, 8.0)) * random.uniform(0.7, 1.3), 3)
        kind, args = ("keyed_short", (slot, 0, ttl)) if expires else ("keyed", (slot, 0))
        at += random.uniform(0.05, 0.5)
        for _ in range(random.choice((1, 2, 2, 3))):
            ops.append(Op(round(at, 3), kind, who, args))
            if random.random() < 0.7:
                at += random.uniform(0.01, 0.3)
                seconds = round(random.uniform(0.05, 0.5), 3)
                ops.append(Op(round(at, 3), "kill", who, (seconds,)))
                at += seconds
            at += random.uniform(0.05, 1.0)
        if not expires:
            ops.append(Op(round(at + pick((0.0, 0.5, 3.0)), 3), "undo_key", who, (slot,)))
    return ops


def _leaving(drawing: Drawing) -> list[Op]:
    """Receivers that may be away for so long, and are, or not quite."""
    random, pick = drawing.random, drawing.random.choice
    there = [
        part.name
        for part in drawing.cast
        if part.kind != "producer" and not part.options.get("dialled")
    ]
    ops: list[Op] = []
    for _ in range(random.randint(1, 3) if there else 0):
        at, who, away_max = drawing.at(), pick(there), pick((3, 10, 30))
        seconds = round(away_max * pick((0.3, 0.9, 1.1, 2.0)) + pick((0.0, 25.0)), 3)
        ops.append(Op(at, "leave", who, (away_max, seconds)))
        for _ in range(random.choice((1, 4))):  # it has something waiting, or is sent something
            near = max(0.0, round(at + random.uniform(-0.5, seconds + 1.0), 3))
            args = (pick(SUBJECTS[:3]), pick((1, 5)), pick((0, 300)), None, False)
            ops.append(Op(near, "send", pick(drawing.producers), args))
    return ops


def _promises(drawing: Drawing) -> list[Op]:
    """Promises that are kept, or not in time, and receivers that are away meanwhile, or go."""
    random, pick = drawing.random, drawing.random.choice
    ops: list[Op] = []
    for _ in range(random.randint(2, 12)):
        at = drawing.at()
        within = round(pick((0.05, 0.5, 3.0, 20.0)) * random.uniform(0.7, 1.3), 3)
        args = (pick(SUBJECTS[:3]), pick((1, 1, 3, 10)), pick((0, 1, 1, 2)), within)
        ops.append(Op(at, "promise", pick(drawing.producers), (*args, random.random() < 0.5)))
        if random.random() < 0.3 and drawing.receivers:
            seconds = round(within * random.uniform(0.3, 2.0), 3)
            near = max(0.0, round(at + random.uniform(-0.1, 0.1), 3))
            ops.append(Op(near, pick(("kill", "stop")), pick(drawing.receivers), (seconds,)))
    return ops


def _receipts(drawing: Drawing) -> list[Op]:
    """A producer with a file is killed again and again, and lists what its lives have left."""
    random, pick = drawing.random, drawing.random.choice
    who = pick(drawing.producers)
    for place, part in enumerate(drawing.cast):
        if part.name == who:
            drawing.cast[place] = replace(part, options=part.options | {"outbox": True})
    ops: list[Op] = []
    for _ in range(random.randint(1, 5)):
        at = drawing.at()
        for _ in range(random.randint(1, 4)):
            near = max(0.0, round(at - random.uniform(0.0, 2.0), 3))
            args = (pick(SUBJECTS[:3]), pick((1, 1, 3, 10)), pick((0, 300)), None, False)
            ops.append(Op(near, "send", who, args))
        if random.random() < 0.8:
            seconds = pick((0.05, 0.5, 3.0, 20.0))
            ops.append(Op(at, pick(("kill", "kill", "stop")), who, (seconds,)))
            at += seconds + pick((0.01, 0.2, 2.0, 10.0))
        for _ in range(random.choice((1, 1, 2))):
            ops.append(Op(round(at, 3), "list", who, (random.random() < 0.3,)))
            at += random.uniform(0.0, 3.0)
        if random.random() < 0.5:
            ops.append(Op(round(at, 3), "forget", who, (random.randint(0, 9),)))
    return ops


def _undos(drawing: Drawing) -> list[Op]:
    """Programs take back what they sent, while receivers are away, held up, or lost with it."""
    random, pick = drawing.random, drawing.random.choice
    ops: list[Op] = []
    for _ in range(random.randint(2, 10)):
        at, who = drawing.at(), pick(drawing.producers)
        for _ in range(random.choice((1, 1, 2, 4))):
            near = max(0.0, round(at - random.uniform(0.0, 0.5), 3))
            args = (pick(SUBJECTS[:3]), pick((1, 1, 5, 20)), pick((0, 300)), None, False)
            ops.append(Op(near, "send", who, args))
        ops += _trouble(drawing, at)
        if random.random() < 0.3:
            slot = random.randint(UNDONE, UNDONE + 2)
            near = max(0.0, round(at - pick((0.05, 0.5, 20.0)), 3))
            ops.append(Op(near, "keyed", who, (slot, 0)))
            ops.append(Op(at, "undo_key", who, (slot,)))
        count = pick((1, 1, 1, 2, 10, 200))
        for _ in range(random.choice((1, 1, 2))):
            how, which = pick(("receipt", "receipt", "position")), random.randint(0, 7)
            ops.append(Op(round(at, 3), "undo", who, (how, which, count)))
            at += pick((0.0, 0.05, 1.0, 10.0))
    return ops


def _reasons(drawing: Drawing) -> list[Op]:
    """Programs ask why a message is where it is, while it waits for whatever reason."""
    random, pick = drawing.random, drawing.random.choice
    ops: list[Op] = []
    for _ in range(random.randint(2, 10)):
        at, who = drawing.at(), pick(drawing.producers)
        for _ in range(random.choice((0, 1, 2))):
            near = max(0.0, round(at - random.uniform(0.0, 0.5), 3))
            args = (pick(SUBJECTS[:3]), pick((1, 1, 5)), pick((0, 300)), None, False)
            ops.append(Op(near, "send", who, args))
        ops += _trouble(drawing, at)
        for _ in range(random.choice((1, 2, 4))):
            ops.append(Op(round(at, 3), "why", who, (random.randint(0, 7), random.random() < 0.4)))
            at += pick((0.0, 0.01, 0.05, 1.0, 10.0))
    return ops


def _trouble(drawing: Drawing, at: float) -> list[Op]:
    """What keeps messages from a receiver for a while, just before a moment; or nothing."""
    random, pick = drawing.random, drawing.random.choice
    receivers = [part.name for part in drawing.cast if part.kind not in ("producer", "pool")]
    what = pick(("", "kill", "stop", "pause", "lose", "node"))
    seconds = round(pick((0.5, 3.0, 10.0)) * random.uniform(0.7, 1.3), 3)
    near = max(0.0, round(at - random.uniform(0.0, 0.3), 3))
    if what == "node":
        return [Op(near, "kill", "node", (round(random.uniform(0.05, 1.0), 3),))]
    if not what or not receivers:
        return []
    who = pick(receivers)
    if what == "pause":
        return [Op(near, "pause", who), Op(round(near + seconds, 3), "unpause", who)]
    if what == "lose":  # its answers do not arrive, and then its connection is lost
        earlier = max(0.0, round(near - 0.6, 3))
        return [Op(earlier, "hold", who, (0.5, "out")), Op(near, "kill", who, (seconds,))]
    return [Op(near, what, who, (seconds,))]


def _ask(random: Random, plan: Plan) -> Plan:
    """Producers that answer requests, and others that ask them, while all goes on as it does."""
    producers = [part.name for part in plan.cast if part.kind == "producer"]
    if random.random() >= 0.15 or not producers or plan.world.get("users"):
        return plan
    pick, ops, span = random.choice, list(plan.ops), max(plan.end, 5.0)
    for _ in range(random.randint(1, 5)):
        at, who = round(random.uniform(0.0, span), 3), pick(producers)
        pattern = pick(("ask.a", "ask.b", "ask.*", ">"))
        ops.append(Op(at, "answer", who, (pattern, pick((1, 3, 100)))))
        for _ in range(random.randint(1, 6)):
            near = round(at + random.uniform(-0.1, 5.0), 3)
            timeout = pick((0.05, 1.0, 5.0, 15.0))
            args = (pick(("ask.a", "ask.b", "ask.c")), pick((1, 1, 5, 30)), timeout)
            ops.append(Op(max(0.0, near), "ask", pick(producers), args))
        if random.random() < 0.5:
            who, seconds = pick((who, "node")), round(random.uniform(0.05, 3.0), 3)
            ops.append(Op(round(at + random.uniform(0.1, 5.0), 3), "kill", who, (seconds,)))
    return replace(plan, ops=tuple(sorted(ops, key=lambda op: op.at)))


def _give_up(random: Random, plan: Plan) -> Plan:
    """Of what is asked some is given up: in the same turn, a moment later, or when it is late."""
    ops = list(plan.ops)
    for op in plan.ops:
        if op.kind == "ask" and random.random() < 0.5:
            later = random.choice((0.0, 0.001, random.uniform(0.0, 4.0)))
            share = random.choice((0.2, 0.5, 1.0))
            ops.append(Op(round(op.at + later, 3), "give_up", op.who, (share,)))
    return replace(plan, ops=tuple(sorted(ops, key=lambda op: op.at)))


def _requests(seed: int, plan: Plan) -> Plan:
    return _give_up(Random(f"giving up {seed}"), _ask(Random(f"asking {seed}"), plan))


def draw(seed: int, *, options: bool = True) -> Plan:
    """Return what this seed does; without `options` of messages it is what it was before them."""
    random = Random(f"swarm {seed}")
    cast = _cast(random)
    limits = _limits(random)
    world: dict[str, Any] = {"disk_delay": random.choice((0.001, 0.003, 0.05))}
    if random.random() < 0.25:
        world["timers"] = "wall"
    if options:
        world["inline"] = Random(f"inline {seed}").choice(("on", "off"))
        if Random(f"stays {seed}").random() < 0.5:
            # Producers keep their connections at the end: what was not told them never is.
            world["stays"] = True
    plan = Plan(
        seed=seed,
        limits=limits,
        weather=_weather(random),
        cast=cast,
        ops=tuple(_ops(random, cast)),
        world=world,
    )
    plan = _widen(Random(f"wider {seed}"), plan)
    plan = _read_late(Random(f"late {seed}"), plan)
    plan = _few_letters(Random(f"letters {seed}"), plan)
    plan = _keep_few(Random(f"kept {seed}"), plan)
    plan = _reorder(Random(f"orders {seed}"), plan)
    plan = _log_in(Random(f"users {seed}"), plan)
    if not options:
        return plan
    plan = _say_more(Random(f"options {seed}"), plan, (_keys, _lifetimes, _delays))
    if any(op.kind in ("restore", "power") and op.who in ("node", "") for op in plan.ops):
        # A log that went back, or may: what was dead or retained then is not told apart.
        return _requests(seed, _share(Random(f"shared {seed}"), plan))
    plan = _say_more(Random(f"more options {seed}"), plan, (_letters, _retained))
    plan = _say_more(Random(f"together {seed}"), plan, (_together,))
    plan = _say_more(Random(f"keyed more {seed}"), plan, (_keyed_more,))
    plan = _say_more(Random(f"promises {seed}"), plan, (_promises,))
    plan = _say_more(Random(f"receipts {seed}"), plan, (_receipts,))
    plan = _say_more(Random(f"undos {seed}"), plan, (_undos,))
    plan = _say_more(Random(f"keyed over {seed}"), plan, (_keyed_over,))
    plan = _say_more(Random(f"reasons {seed}"), plan, (_reasons,))
    kinds = {op.kind for op in plan.ops}
    if "poison" not in kinds and "intrude" not in kinds:
        plan = _say_more(Random(f"rewinds {seed}"), plan, (_rewinds,))
        if not plan.world.get("users"):
            plan = _say_more(Random(f"leaving {seed}"), plan, (_leaving,))
    return _requests(seed, _share(Random(f"shared {seed}"), plan))
