"""The processes that a measurement starts: `python -m bench.roles node|producer|receiver …`.

Each says on standard output what happened, a JSON object a line, and goes on when a line comes
on standard input. Only the public API is used.
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import json
import os
import resource
import struct
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import CodeType
from typing import Any

if sys.argv[1:2] == ["node"]:  # the reactor that `msgservice node` has, where the checkout has one
    with suppress(ImportError):
        from msgservice.cli.reactor import install

        install()

from twisted.internet import reactor as installed_reactor
from twisted.internet.defer import Deferred, DeferredQueue
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.stdio import StandardIO
from twisted.internet.task import deferLater, react
from twisted.logger import LogLevel, globalLogPublisher
from twisted.protocols.basic import LineReceiver

from msgservice import Node, Promise, Receiver, connect
from msgservice.limits import Limits
from msgservice.records import ReceiverRow
from msgservice.tap import keep_from

reactor: Any = installed_reactor
SUBJECT = "orders.new"
STAMP = struct.Struct("<d")  # when a message was sent, by the monotonic clock


def say(**fields: Any) -> None:
    used = resource.getrusage(resource.RUSAGE_SELF)
    fields["cpu_s"] = round(used.ru_utime + used.ru_stime, 3)
    os.set_blocking(1, True)  # `StandardIO` has it otherwise, and a long line would be cut
    print(json.dumps(fields), flush=True)


def rss_mib() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return round(int(line.split()[1]) / 1024, 1)
    return 0.0


class Commands(LineReceiver):
    """Lines of standard input call `act`.

    But for two that every role knows: `profile` begins to count calls on the reactor's thread, and
    `profiled` says of each function how often it was called since then, and how often it has called
    what is built in.
    """

    delimiter = b"\n"

    def __init__(self, act: Callable[[str], None]) -> None:
        self.act = act
        self.profile = cProfile.Profile()

    def lineReceived(self, line: bytes) -> None:
        if line == b"profile":
            say(profiling=True)
            self.profile.enable()
        elif line == b"profiled":
            self.profile.disable()
            say(calls=calls_of(self.profile))
        else:
            self.act(line.decode())


def calls_of(profile: cProfile.Profile) -> dict[str, list[int]]:
    """Return of each function the calls of it, and its calls of functions that are built in."""
    calls: dict[str, list[int]] = {}
    for entry in profile.getstats():
        if not isinstance(entry.code, str):
            counts = calls.setdefault(named(entry.code), [0, 0])
            counts[0] += entry.callcount
            for called in entry.calls or ():
                if isinstance(called.code, str):
                    counts[1] += called.callcount
    profile.clear()
    return calls


def named(code: CodeType) -> str:
    """Return the module and the name of a function."""
    parts = Path(code.co_filename).with_suffix("").parts
    for package in ("msgservice", "twisted", "bench"):
        if package in parts:
            parts = parts[len(parts) - 1 - parts[::-1].index(package) :]
            break
    return f"{'.'.join(parts[-4:])}.{code.co_qualname}"


def listen_to(act: Callable[[str], None]) -> None:
    StandardIO(Commands(act))


# --- node


def node(args: argparse.Namespace) -> None:
    sys.setswitchinterval(0.0005)
    started = time.monotonic()
    options: dict[str, Any] = {"users": users_of(args)} if args.users else {}
    if args.name:
        options["name"] = args.name
    if args.onward:
        name, _, address = args.onward.partition("=")
        options["receivers"] = [ReceiverRow(number=0, name=name, address=address, patterns=(">",))]
    limits = Limits(**json.loads(args.limits))
    service = Node(reactor, args.data, listen=[args.listen], limits=limits, **options)
    gap = Gap()

    def ready(_: None) -> None:
        port = service.ports[0].getHost().port
        scheme = args.listen.partition(":")[0]
        seconds = round(time.monotonic() - started, 3)
        say(address=f"{scheme}:127.0.0.1:{port}", start_s=seconds, rss_mib=rss_mib())

    def act(line: str) -> None:
        if line == "gap":
            longest, busiest = gap.take()
            say(gap_ms=round(longest * 1000, 1), turn_cpu_ms=round(busiest * 1000, 1))
        else:
            say(rss_mib=rss_mib())

    service.startService()
    keep_from(service.when_ready())  # as twistd's does
    service.when_ready().addCallback(ready)
    listen_to(act)
    reactor.addSystemEventTrigger("before", "shutdown", service.stopService)
    reactor.run()


class Gap:
    """The longest time between two turns of the reactor, since it was last asked for.

    And the longest that its thread has worked in between: what of the time was its own, and not of
    others on a busy machine.
    """

    def __init__(self) -> None:
        self._longest = self._busiest = 0.0
        # None: nobody has asked yet, and nothing is measured.
        self._before: tuple[float, float] | None = None

    def take(self) -> tuple[float, float]:
        found = self._longest, self._busiest
        self._longest = self._busiest = 0.0
        if self._before is None:
            self._before = time.monotonic(), time.thread_time()
            self._turn()
        return found

    def _turn(self) -> None:
        now, worked = time.monotonic(), time.thread_time()
        assert self._before is not None
        self._longest = max(self._longest, now - self._before[0])
        self._busiest = max(self._busiest, worked - self._before[1])
        self._before = now, worked
        reactor.callLater(0.001, self._turn)


def users_of(args: argparse.Namespace) -> Any:
    """Return so many users, each with so many patterns; one of them is the one of `--user`."""
    from msgservice.identity.passwords import ITERATIONS, PasswordRecord
    from msgservice.identity.rules import Rules
    from msgservice.identity.users import User, Users

    record = PasswordRecord.of(args.password, iterations=args.iterations or ITERATIONS)
    last = ["orders.>"]  # the one that counts is the last of them
    made = []
    for number in range(args.users):
        others = [f"area{number}.n{n}.*.>" for n in range(args.patterns - 1)]
        rules = Rules(send=others + last, receive=others + last)
        name = args.user if number == args.users // 2 else f"user{number}"
        made.append(User(name=name, password=record, rules=rules))
    return Users(made, secret=os.urandom(32))


# --- receiver


def login_of(args: argparse.Namespace) -> dict[str, Any]:
    return {"user": args.user, "password": args.password} if args.user else {}


def receiver(args: argparse.Namespace) -> None:
    """Takes everything; says when it is attached, and when it has `--count`.

    `--stamped`: messages say when they were sent, and `handled` how long each took since then.
    """
    seen, last = 0, 0.0
    count = args.count
    handled: list[float] = []

    def handle(message: Any) -> None:
        nonlocal seen, last
        if args.stamped:
            handled.append(time.monotonic() - STAMP.unpack_from(message.body)[0])
        if args.sleep:
            time.sleep(args.sleep / 1000)
        seen += 1
        last = time.monotonic()
        if seen == count:
            say(end=time.monotonic(), count=seen)

    made = Receiver(
        reactor,
        name=args.name,
        handler=handle,
        window=(args.window, 64 * 1024 * 1024) if args.window else None,
        order="none" if args.shared else "strict",
        shared=args.shared,
    )
    attachment = made.attach(
        args.address, subjects=args.subjects.split(","), start=args.start, **login_of(args)
    )

    def act(line: str) -> None:
        nonlocal count, seen
        if line.startswith("count"):
            seen, count = 0, int(line.split()[1])
            say(counting=count)
        elif line == "handled":
            say(handled_ms=[round(one * 1000, 3) for one in handled])
            handled.clear()
        else:
            say(seen=seen, last=last)

    def attached() -> None:
        if attachment.connected:
            say(attached=True)
        else:
            reactor.callLater(0.01, attached)

    listen_to(act)
    attached()
    reactor.run()


# --- producer


PACE = 200  # every so many messages one is waited for: what the program does with a receipt


class Producer:
    """Keeps `window` messages in flight until `count` were accepted.

    Every message has its Deferred; as in the bare reference, only some of them have a callback,
    so that what is measured is the service and not the program.
    """

    def __init__(self, client: Any, args: argparse.Namespace) -> None:
        self.client = client
        self.count = args.count
        self.window = args.window
        self.pace = min(PACE, max(1, args.window // 4))
        self.body = b"x" * args.body
        # Not even named where none is wanted: what is measured may be an older client.
        self.options: dict[str, Any] = {}
        if args.promise:
            self.options = {"promise": Promise(need="all", within=args.promise)}
        self.subjects = [SUBJECT]
        if args.subjects_count > 1:
            self.subjects = [f"orders.n{i}" for i in range(args.subjects_count)]
        self.sent = 0
        self.accepted = 0
        self.done: Deferred[None] = Deferred()
        self.pausing = False

    def start(self) -> Deferred[None]:
        self.go()
        return self.done

    def go(self) -> None:
        body, subjects = self.body, self.subjects
        send = partial(self.client.send, **self.options) if self.options else self.client.send
        many = len(subjects)
        while self.sent < self.count:
            part = min(self.pace, self.count - self.sent)
            if self.sent + part - self.accepted > self.window:
                break
            if many == 1:
                subject = subjects[0]
                for _ in range(part):
                    accepted = send(subject, body)
            else:
                for i in range(self.sent, self.sent + part):
                    accepted = send(subjects[i % many], body)
            accepted.addCallback(self.part_accepted, part)
            self.sent += part

    def part_accepted(self, receipt: Any, part: int) -> None:
        self.accepted += part
        if not self.pausing:
            # What one acknowledgement freed is refilled in one go, when its turn is over.
            self.pausing = True
            reactor.callLater(0, self.refill)

    def refill(self) -> None:
        self.pausing = False
        if self.accepted >= self.count:
            self.done.callback(None)
        else:
            self.go()


class ProducerOfRuns(Producer):
    """The same with `send_many`, 200 messages a run."""

    run = 200

    def go(self) -> None:
        bodies = [self.body] * self.run
        while self.sent < self.count and self.sent - self.accepted < self.window:
            sent = self.client.send_many(SUBJECT, bodies, **self.options)
            sent.addCallback(self.run_accepted)
            self.sent += self.run

    def run_accepted(self, receipts: Any) -> None:
        self.accepted += self.run
        if self.accepted >= self.count:
            self.done.callback(None)
        else:
            self.go()


async def produce(args: argparse.Namespace) -> None:
    kind = ProducerOfRuns if args.many else Producer
    clients = [
        await connect(
            reactor, args.address, name=f"{args.name}{i}", outbox=args.outbox, **login_of(args)
        )
        for i in range(args.producers)
    ]
    per_client = args.count // args.producers
    started: Deferred[str] = Deferred()
    listen_to(lambda line: started.callback(line) if not started.called else None)
    say(connected=True)
    await started
    start = time.monotonic()
    args.count = per_client
    producers = [kind(client, args) for client in clients]
    for done in [producer.start() for producer in producers]:
        await done
    say(start=start, end=time.monotonic(), rss_mib=rss_mib())
    for client in clients:
        await client.close()


def producer(args: argparse.Namespace) -> None:
    react(lambda _: Deferred.fromCoroutine(produce(args)))


# --- one that sends as it is told


async def send_as_told(args: argparse.Namespace) -> None:
    """Each line is JSON: `count` messages, in runs of `run` (1: with `send`, a subject each).

    `ttl`, `delay`: of all alike seconds from now, so that they are over together. `keyed`: each has
    a key of its own; `named`: an id. `alone`: each is waited for before the next. Says how
    long it took.
    """
    client = await connect(reactor, args.address, name=args.name)
    asked: DeferredQueue[str] = DeferredQueue()
    listen_to(asked.put)
    say(connected=True)
    body, keys = b"x" * args.body, 0
    while True:
        wanted = json.loads(await asked.get())
        count, run = wanted["count"], wanted.get("run", 1)
        turn = 1 if wanted.get("alone") else wanted.get("subjects", 500)
        subjects = [f"{args.subject}{n}" for n in range(turn)]
        begin = time.monotonic()
        sent = 0
        while sent < count:
            options: dict[str, Any] = {}
            for name in ("ttl", "delay"):
                if name in wanted:
                    options[name] = max(0.001, begin + wanted[name] - time.monotonic())
            waiting = []
            if run > 1:
                for _ in range(min(20, (count - sent) // run)):
                    waiting.append(client.send_many(subjects[0], [body] * run, **options))
                    sent += run
            else:
                for subject in subjects[: count - sent]:
                    if wanted.get("keyed"):
                        options["idempotency_key"] = f"order-{keys}-paid"
                        keys += 1
                    if wanted.get("named"):
                        options["id"] = f"order-{keys}"
                        keys += 1
                    waiting.append(client.send(subject, body, **options))
                    sent += 1
            for each in waiting:
                last = await each
        if wanted.get("settled"):
            await last.settled()
        say(begin=begin, seconds=time.monotonic() - begin)


def sender(args: argparse.Namespace) -> None:
    react(lambda _: Deferred.fromCoroutine(send_as_told(args)))


# --- logins


async def log_in(args: argparse.Namespace) -> None:
    """Log in and go again, `--at-once` at a time, for `--seconds`."""
    count = failed = 0
    started: Deferred[str] = Deferred()
    listen_to(lambda line: started.callback(line) if not started.called else None)
    say(ready=True)
    await started
    begin = time.monotonic()
    end = begin + args.seconds

    async def again(number: int) -> None:
        nonlocal count, failed
        while time.monotonic() < end:
            try:
                name = f"{args.user}.n{os.getpid()}.{number}"
                client = await connect(reactor, args.address, name=name, **login_of(args))
            except Exception:
                failed += 1
                continue
            count += 1
            await client.close()

    for one in [Deferred.fromCoroutine(again(number)) for number in range(args.at_once)]:
        await one
    say(count=count, failed=failed, seconds=time.monotonic() - begin)


def logins(args: argparse.Namespace) -> None:
    react(lambda _: Deferred.fromCoroutine(log_in(args)))


# --- latency


class Latency:
    """From `send` to the acknowledgement of the whole audience, in milliseconds.

    Messages begin with when they were sent, by the clock that all processes have.
    """

    def __init__(self, client: Any, subject: str) -> None:
        self.client = client
        self.subject = subject
        self.rest = b"x" * (256 - STAMP.size)
        self.taken: list[float] = []

    async def one(self, begin: float) -> None:
        receipt = await self.client.send(self.subject, STAMP.pack(begin) + self.rest)
        await receipt.acknowledged()
        self.taken.append((time.monotonic() - begin) * 1000)

    async def closed(self, count: int) -> None:
        for _ in range(count):
            await self.one(time.monotonic())

    async def opened(self, rate: int, seconds: float) -> None:
        """Send at a fixed rate, whatever comes back; late is measured from when it was due.

        A collector's pass over all that is kept here until the end takes 40 ms, more than once in a
        hundred messages of some seconds: that would be what is measured. There is none meanwhile.
        """
        gc.collect()
        gc.disable()
        try:
            await self._opened(rate, seconds)
        finally:
            gc.enable()

    async def _opened(self, rate: int, seconds: float) -> None:
        begin, sent = time.monotonic(), 0
        total = int(rate * seconds)
        under_way: list[Deferred[None]] = []
        while sent < total:
            due = min(total, int((time.monotonic() - begin) * rate) + 1)
            times = [begin + n / rate for n in range(sent, due)]
            under_way += [Deferred.fromCoroutine(self.one(at)) for at in times]
            sent = due
            await deferLater(reactor, 0.0005, lambda: None)
        for each in under_way:
            await each

    def percentiles(self) -> dict[str, float]:
        taken, self.taken = sorted(self.taken), []
        p99 = taken[min(len(taken) - 1, int(len(taken) * 0.99))]
        return {"p50_ms": round(taken[len(taken) // 2], 3), "p99_ms": round(p99, 3)}


class Echo(Protocol):
    def connectionMade(self) -> None:
        self.transport.setTcpNoDelay(True)

    def dataReceived(self, data: bytes) -> None:
        self.transport.write(data)


class Pinger(Protocol):
    """Round trips of a bare Twisted TCP echo."""

    def connectionMade(self) -> None:
        self.transport.setTcpNoDelay(True)
        self.taken: list[float] = []
        self.done: Deferred[float] = Deferred()
        self.ping()

    def ping(self) -> None:
        self.begin = time.monotonic()
        self.transport.write(b"x" * 256)

    def dataReceived(self, data: bytes) -> None:
        self.taken.append((time.monotonic() - self.begin) * 1000)
        if len(self.taken) < 1000:
            self.ping()
        else:
            self.done.callback(sorted(self.taken)[500])


def sync_ms(folder: str) -> float:
    """The median of a 4 KiB append and its fdatasync, in milliseconds."""
    taken = []
    with Path(folder, "floor").open("ab", buffering=0) as file:
        for _ in range(200):
            begin = time.monotonic()
            file.write(bytes(4096))
            os.fdatasync(file.fileno())
            taken.append((time.monotonic() - begin) * 1000)
    return sorted(taken)[100]


def echo(args: argparse.Namespace) -> None:
    port = reactor.listenTCP(0, Factory.forProtocol(Echo), interface="127.0.0.1")
    say(port=port.getHost().port)
    reactor.run()


async def measure_latency(args: argparse.Namespace) -> None:
    """Lines: `floor FOLDER PORT`, `closed COUNT`, `open RATE SECONDS`, `cpu`, `end`."""
    client = await connect(reactor, args.address, name="latency")
    waiting: list[str] = []
    wake: list[Deferred[None]] = []

    def act(line: str) -> None:
        waiting.append(line)
        for waiter in wake[:]:
            wake.remove(waiter)
            waiter.callback(None)

    listen_to(act)
    say(connected=True)
    latency = Latency(client, args.subject)
    while True:
        if not waiting:
            wake.append(Deferred())
            await wake[-1]
        what, *values = waiting.pop(0).split()
        if what == "floor":
            endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", int(values[1]))
            pinger: Any = await endpoint.connect(Factory.forProtocol(Pinger))
            round_trip = await pinger.done
            pinger.transport.loseConnection()
            sync = sync_ms(values[0])
            floor = round(2 * (round_trip + sync), 3)
            say(floor_ms=floor, round_trip_ms=round(round_trip, 3), sync_ms=round(sync, 3))
        elif what == "closed":
            await latency.closed(int(values[0]))
            say(**latency.percentiles())
        elif what == "open":
            await latency.opened(int(values[0]), float(values[1]))
            say(**latency.percentiles())
        elif what == "cpu":
            say()
        else:
            break
    await client.close()


def latency(args: argparse.Namespace) -> None:
    react(lambda _: Deferred.fromCoroutine(measure_latency(args)))


# --- from one node to another


async def measure_through(args: argparse.Namespace) -> None:
    """Lines: how many messages, one at a time, from `send` at one node to a handler at another."""
    arrived: list[Deferred[None]] = []

    def handle(message: Any) -> None:
        arrived.pop().callback(None)

    receiver = Receiver(reactor, name="through", handler=handle)
    attachment = receiver.attach(args.far, subjects=["orders.>"])
    while not attachment.connected:
        await deferLater(reactor, 0.01)
    client = await connect(reactor, args.address, name="prober")
    asked: DeferredQueue[int] = DeferredQueue()
    listen_to(lambda line: asked.put(int(line)))
    say(connected=True)
    while True:
        taken = []
        for _ in range(await asked.get()):
            arrived.append(Deferred())
            waiter, begin = arrived[0], time.monotonic()
            client.send("orders.new", b"x" * 100).addErrback(waiter.errback)
            await waiter
            taken.append((time.monotonic() - begin) * 1000)
        say(p50_ms=round(sorted(taken)[len(taken) // 2], 3))


def through(args: argparse.Namespace) -> None:
    react(lambda _: Deferred.fromCoroutine(measure_through(args)))


# --- administration


async def administer(args: argparse.Namespace) -> None:
    """Add `--receivers` receivers that are away, all with the same pattern."""
    client = await connect(reactor, args.address, name="admin")
    adding = [
        client.request("$node.receivers.add", {"name": f"away{i}", "subjects": ["orders.>"]})
        for i in range(args.receivers)
    ]
    for each in adding:
        await each
    say(added=len(adding))
    await client.close()


def admin(args: argparse.Namespace) -> None:
    react(lambda _: Deferred.fromCoroutine(administer(args)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    roles = parser.add_subparsers(dest="role", required=True)
    of_node = roles.add_parser("node")
    of_node.add_argument("--data", required=True)
    of_node.add_argument("--listen", default="tcp:0:interface=127.0.0.1")
    of_node.add_argument("--users", type=int, default=0)
    of_node.add_argument("--name")
    of_node.add_argument("--onward", help="NAME=ADDRESS of the next node of a chain")
    of_node.add_argument("--patterns", type=int, default=1)
    of_node.add_argument("--iterations", type=int)
    of_node.add_argument("--limits", default="{}", help="JSON")
    of_through = roles.add_parser("through")
    of_through.add_argument("--address", required=True)
    of_through.add_argument("--far", required=True)
    of_logins = roles.add_parser("logins")
    of_logins.add_argument("--address", required=True)
    of_logins.add_argument("--seconds", type=float, default=10.0)
    of_logins.add_argument("--at-once", type=int, default=8)
    of_receiver = roles.add_parser("receiver")
    of_receiver.add_argument("--address", required=True)
    of_receiver.add_argument("--name", required=True)
    of_receiver.add_argument("--count", type=int, default=0)
    of_receiver.add_argument("--subjects", default="orders.>")
    of_receiver.add_argument("--window", type=int, default=0)
    of_receiver.add_argument("--start", default="new")
    of_receiver.add_argument("--shared", action="store_true")
    of_receiver.add_argument("--stamped", action="store_true")
    of_receiver.add_argument("--sleep", type=float, default=0.0, help="ms of each handler")
    of_sender = roles.add_parser("sender")
    of_sender.add_argument("--address", required=True)
    of_sender.add_argument("--name", default="shop")
    of_sender.add_argument("--subject", default="orders.n")
    of_sender.add_argument("--body", type=int, default=100)
    of_producer = roles.add_parser("producer")
    of_producer.add_argument("--address", required=True)
    of_producer.add_argument("--count", type=int, required=True)
    of_producer.add_argument("--window", type=int, default=20_000)
    of_producer.add_argument("--body", type=int, default=256)
    of_producer.add_argument("--many", action="store_true")
    of_producer.add_argument("--subjects-count", type=int, default=1)
    of_producer.add_argument("--producers", type=int, default=1)
    of_producer.add_argument("--outbox")
    of_producer.add_argument("--promise", type=float, default=0.0, help="seconds; 0: none")
    of_producer.add_argument("--name", default="producer")
    for each in (of_node, of_receiver, of_producer, of_logins):
        each.add_argument("--user")
        each.add_argument("--password")
    of_latency = roles.add_parser("latency")
    of_latency.add_argument("--address", required=True)
    of_latency.add_argument("--subject", default=SUBJECT)
    roles.add_parser("echo")
    of_admin = roles.add_parser("admin")
    of_admin.add_argument("--address", required=True)
    of_admin.add_argument("--receivers", type=int, required=True)
    args = parser.parse_args()

    def complain(event: Any) -> None:
        if event["log_level"] >= LogLevel.warn:
            from twisted.logger import formatEvent

            print(formatEvent(event), file=sys.stderr, flush=True)

    globalLogPublisher.addObserver(complain)
    ROLES[args.role](args)


ROLES = {
    "node": node,
    "receiver": receiver,
    "producer": producer,
    "sender": sender,
    "latency": latency,
    "through": through,
    "logins": logins,
    "echo": echo,
    "admin": admin,
}


if __name__ == "__main__":
    main()
