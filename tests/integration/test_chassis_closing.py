"""The chassis on real sockets: how connections, handlers and servers end."""

from collections.abc import Iterator
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.error import ConnectError
from twisted.logger import LogEvent

from msgservice.errors import CannotListen
from msgservice.faces import axon as Axon
from msgservice.faces.axon.Ipc import (
    producerFinished,
    serverShutdown,
    shutdownMicroprocess,
    socketShutdown,
)
from msgservice.faces.chassis import ChassisLimits, ServerCore
from tests.integration.chassis_peer import Peer, Stage, co_echo, echo, handler, idle, server_of

pytest_plugins = ("tests.integration.chassis_stage",)

BIG = 8 * 1024 * 1024


# --- The peer ends it -----------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_socket_shutdown_comes_once_and_after_all_data(stage: Stage) -> None:
    def main(self: Any) -> Iterator[Any]:
        while True:  # never ends by itself, and looks at control first
            for box in ("control", "inbox"):
                if self.dataReady(box):
                    self.note(box)
            yield 1

    made = handler(main)
    server = await stage.start(server_of(made, limits=ChassisLimits(stop_deadline=0)))
    peer = await stage.connect(server)
    sent = bytes(1_000_000)
    peer.transport.write(sent)
    peer.transport.loseConnection()
    await stage.until(lambda: bool(made.made) and bool(made.made[0].control()))
    await stage.until(lambda: not server.connections)
    one = made.made[0]
    assert one.data() == sent
    assert [type(m) for m in one.control()] == [socketShutdown]
    assert one.seen[-1][0] == "control"


@pytest_twisted.ensureDeferred
async def test_a_handler_that_leaves_its_data_unread_is_told_all_the_same(stage: Stage) -> None:
    made = handler(idle)
    peer = await stage.connect(await stage.start(server_of(made)))
    peer.transport.write(b"never taken")
    peer.half_close()
    assert await peer.end() == b""
    assert [type(m) for m in made.made[0].control()] == [socketShutdown]


@pytest_twisted.ensureDeferred
async def test_a_reset_is_told_to_its_handler_only(stage: Stage) -> None:
    made = handler(echo)
    server = await stage.start(server_of(made))
    bad = await stage.connect(server)
    bad.transport.write(b"x" * 1000)
    await bad.gets(b"x" * 1000)
    good = await stage.connect(server)
    bad.transport.abortConnection()
    await made.made[0].until_seen(lambda h: bool(h.control()))
    assert [type(m) for m in made.made[0].control()] == [socketShutdown]
    good.transport.write(b"y")
    await good.gets(b"y")


@pytest_twisted.ensureDeferred
async def test_a_reset_while_much_is_being_written_is_told_to_its_handler_only(
    stage: Stage,
) -> None:
    def main(self: Any) -> Iterator[Any]:
        while not self.dataReady("control"):
            self.send(b"a" * 65536, "outbox")
            yield 1
        self.note("control")

    made = handler(main)
    server = await stage.start(server_of(made))
    bad, good = await stage.connect(server), await stage.connect(server)
    await bad.until(lambda: len(bad.received) > BIG)
    bad.transport.abortConnection()
    await stage.until(lambda: any(one.control() for one in made.made))
    await good.until(lambda: len(good.received) > BIG)
    assert sorted(len(one.control()) for one in made.made) == [0, 1]


@pytest.mark.parametrize("main", [echo, co_echo])
@pytest_twisted.ensureDeferred
async def test_a_half_closed_peer_gets_the_replies_that_were_pending(
    main: Any, stage: Stage
) -> None:
    peer = await stage.connect(await stage.serve(main))
    sent = bytes(range(256)) * 4096
    peer.transport.write(sent)
    peer.half_close()
    assert await peer.end() == sent


@pytest_twisted.ensureDeferred
async def test_a_reply_that_takes_long_reaches_a_half_closed_peer(stage: Stage) -> None:
    async def main(self: Any) -> None:
        question = await self.recv("inbox")
        await stage.turn(0.1)
        await self.send(b"answer to " + question, "outbox")
        await stage.turn(0.1)
        await self.send(b", and more", "outbox")

    peer = await stage.connect(await stage.serve(main))
    peer.transport.write(b"question")
    peer.half_close()
    assert await peer.end() == b"answer to question, and more"


@pytest_twisted.ensureDeferred
async def test_what_is_sent_in_the_step_that_takes_the_shutdown_is_delivered(stage: Stage) -> None:
    def main(self: Any) -> Iterator[Any]:
        while True:
            self.pause()
            yield 1
            if self.dataReady("control"):
                self.note("control")
                self.send(b"bye", "outbox")

    peer = await stage.connect(await stage.serve(main, limits=ChassisLimits(stop_deadline=0)))
    peer.half_close()
    assert await peer.end() == b"bye"


@pytest_twisted.ensureDeferred
async def test_a_half_closed_connection_that_nobody_answers_is_closed_by_its_deadline(
    stage: Stage,
) -> None:
    def main(self: Any) -> Iterator[Any]:
        while True:  # looks at nothing
            self.pause()
            yield 1

    limits = ChassisLimits(half_close_deadline=0.05, stop_deadline=0)
    peer = await stage.connect(await stage.serve(main, limits=limits))
    peer.half_close()
    assert await peer.end() == b""


# --- The handler ends it --------------------------------------------------------------------------


@pytest.mark.parametrize("signal", [producerFinished, shutdownMicroprocess])
@pytest_twisted.ensureDeferred
async def test_both_signals_close_after_everything_queued_is_delivered(
    signal: Any, stage: Stage
) -> None:
    def main(self: Any) -> Iterator[Any]:
        self.send(b"a" * BIG, "outbox")
        self.send(signal(), "signal")
        self.send(b"in the same step", "outbox")
        yield 1
        self.send(b"one step later", "outbox")
        while not self.dataReady("control"):
            self.pause()
            yield 1
        self.note("control")

    made = handler(main)
    peer = await stage.connect(await stage.start(server_of(made)))
    peer.transport.pauseProducing()
    peer.transport.write(b"unread by the handler: the close must be no reset all the same")
    await stage.turn(0.1)
    peer.transport.resumeProducing()
    assert await peer.end() == b"a" * BIG + b"in the same step"
    assert await peer.lost()
    await stage.until(lambda: bool(made.made[0].control()))
    assert [type(m) for m in made.made[0].control()] == [socketShutdown]


@pytest_twisted.ensureDeferred
async def test_a_signal_that_is_no_end_changes_nothing(stage: Stage) -> None:
    def main(self: Any) -> Iterator[Any]:
        self.send("something else", "signal")
        yield from echo(self)

    peer = await stage.connect(await stage.serve(main))
    peer.transport.write(b"x")
    await peer.gets(b"x")


@pytest_twisted.ensureDeferred
async def test_a_handler_that_returns_closes_its_connection(stage: Stage) -> None:
    def main(self: Any) -> Iterator[Any]:
        self.send(b"goodbye", "outbox")
        yield 1

    peer = await stage.connect(await stage.serve(main))
    assert await peer.end() == b"goodbye"


@pytest.mark.parametrize("closing", [True, False])
@pytest_twisted.ensureDeferred
async def test_a_peer_that_takes_nothing_is_dropped_by_the_write_deadline(
    closing: bool, stage: Stage
) -> None:
    def main(self: Any) -> Iterator[Any]:
        self.send(b"a" * 4 * BIG, "outbox")
        if closing:
            self.send(producerFinished(), "signal")
        yield from idle(self)

    made = handler(main)
    server = await stage.start(server_of(made, limits=ChassisLimits(write_deadline=0.1)))
    peer = await stage.connect(server)
    peer.transport.pauseProducing()
    await stage.until(lambda: bool(made.made) and not server.connections)
    peer.transport.resumeProducing()
    assert len(await peer.end()) < 4 * BIG


@pytest_twisted.ensureDeferred
async def test_a_slow_peer_gets_all_of_what_takes_longer_than_the_write_deadline(
    stage: Stage,
) -> None:
    def main(self: Any) -> Iterator[Any]:
        self.send(b"a" * 4 * BIG, "outbox")
        self.send(producerFinished(), "signal")
        yield 1

    class InBursts(Peer):
        def dataReceived(self, data: bytes) -> None:
            super().dataReceived(data)
            self.transport.pauseProducing()
            stage.reactor.callLater(0.003, self.transport.resumeProducing)

    # A machine that is busy elsewhere for half a second is no peer that takes nothing.
    deadline, began = 1.0, stage.reactor.seconds()
    server = await stage.serve(main, limits=ChassisLimits(write_deadline=deadline))
    peer = await stage.connect(server, InBursts())
    assert len(await peer.end()) == 4 * BIG
    assert stage.reactor.seconds() - began > deadline


@pytest_twisted.ensureDeferred
async def test_a_peer_that_never_ends_its_side_is_left_after_the_linger_deadline(
    stage: Stage,
) -> None:
    class Stubborn(Peer):
        def readConnectionLost(self) -> None:
            self.ended = True
            self.look()

    def main(self: Any) -> Iterator[Any]:
        self.send(b"all", "outbox")
        yield 1

    server = await stage.serve(main, limits=ChassisLimits(linger_deadline=0.05))
    peer = await stage.connect(server, Stubborn())
    assert await peer.end() == b"all"
    await stage.until(lambda: not server.connections)


# --- Failures -------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [RuntimeError, ValueError, StopIteration])
@pytest_twisted.ensureDeferred
async def test_a_failing_handler_ends_its_own_connection_only(
    error: type[Exception], stage: Stage, logged_failures: list[LogEvent]
) -> None:
    def main(self: Any) -> Iterator[Any]:
        while not self.dataReady("inbox"):
            yield 1
        if self.recv("inbox") == b"fail":
            self.send(b"sent before", "outbox")
            raise error("boom")
        yield from echo(self)

    server = await stage.serve(main)
    bad, good = await stage.connect(server), await stage.connect(server)
    good.transport.write(b"first")
    bad.transport.write(b"fail")
    assert await bad.end() == b"sent before"
    good.transport.write(b"second")
    await good.until(lambda: b"second" in good.received)
    assert len(logged_failures) == 1
    logged_failures.clear()


@pytest.mark.parametrize("result", [RuntimeError("boom"), None, object()])
@pytest_twisted.ensureDeferred
async def test_a_failing_factory_ends_its_own_connection_only(
    result: Any, stage: Stage, logged_failures: list[LogEvent]
) -> None:
    made = handler(echo)
    results = iter([result])

    def factory() -> Any:
        for first in results:
            if isinstance(first, Exception):
                raise first
            return first
        return made()

    server = await stage.start(server_of(factory))
    bad = await stage.connect(server)
    assert await bad.end() == b""
    good = await stage.connect(server)
    good.transport.write(b"x")
    await good.gets(b"x")
    assert len(logged_failures) == 1
    logged_failures.clear()


@pytest_twisted.ensureDeferred
async def test_a_handler_without_the_four_boxes_is_refused_by_name(
    stage: Stage, logged_failures: list[LogEvent]
) -> None:
    class NoSignal(Axon.Component.component):
        Outboxes = ("outbox",)

    peer = await stage.connect(await stage.start(server_of(NoSignal)))
    assert await peer.end() == b""
    assert "signal" in str(logged_failures[0]["log_failure"].value)
    logged_failures.clear()


# --- The server ends it ---------------------------------------------------------------------------


def by_stop(server: ServerCore) -> None:
    server.stop()


def by_server_shutdown(server: ServerCore) -> None:
    server._deliver(serverShutdown(), "control")


def by_shutdown_microprocess(server: ServerCore) -> None:
    server._deliver(shutdownMicroprocess(), "control")


@pytest.mark.parametrize("way", [by_stop, by_server_shutdown, by_shutdown_microprocess])
@pytest_twisted.ensureDeferred
async def test_shutdown_tells_every_handler_closes_all_and_stops_listening(
    way: Any, stage: Stage
) -> None:
    made = handler(idle)
    server = await stage.start(server_of(made))
    address: Any = server.address
    peers = [await stage.connect(server) for _ in range(5)]
    await stage.until(lambda: len(made.made) == 5)
    way(server)
    assert [await peer.end() for peer in peers] == [b""] * 5
    await stage.until(server._isStopped)
    assert [[type(m) for m in h.control()] for h in made.made] == [[socketShutdown]] * 5
    assert (server.address, server.connections) == (None, set())
    with pytest.raises(ConnectError, match="refused"):
        await stage.connect_to(TCP4ClientEndpoint(stage.reactor, "127.0.0.1", address.port))


@pytest_twisted.ensureDeferred
async def test_shutdown_delivers_the_answers_to_what_was_taken(stage: Stage) -> None:
    made = handler(echo)
    server = await stage.start(server_of(made))
    peer = await stage.connect(server)
    sent = bytes(range(256)) * 4000
    peer.transport.write(sent)
    await peer.until(lambda: len(peer.received) > 0)
    stopped = server.stop()
    echoed = await peer.end()
    await stopped
    assert echoed == made.made[0].data()
    assert sent.startswith(echoed)


@pytest_twisted.ensureDeferred
async def test_a_handler_may_say_goodbye_at_shutdown(stage: Stage) -> None:
    def main(self: Any) -> Iterator[Any]:
        while not self.dataReady("control"):
            self.pause()
            yield 1
        self.send(b"goodbye", "outbox")

    server = await stage.serve(main)
    peer = await stage.connect(server)
    await stage.until(lambda: bool(server.connections))
    stopped = server.stop()
    assert await peer.end() == b"goodbye"
    await stopped


@pytest_twisted.ensureDeferred
async def test_shutdown_ends_a_handler_that_ignores_it(stage: Stage) -> None:
    def main(self: Any) -> Iterator[Any]:
        while True:
            yield 1

    made = handler(main)
    server = await stage.start(server_of(made, limits=ChassisLimits(stop_deadline=0.1)))
    peer = await stage.connect(server)
    await stage.until(lambda: bool(server.connections))
    await server.stop()
    assert await peer.end() == b""
    assert made.made[0]._isStopped()


@pytest_twisted.ensureDeferred
async def test_shutdown_aborts_a_peer_that_does_not_read(stage: Stage) -> None:
    def main(self: Any) -> Iterator[Any]:
        self.send(b"a" * 4 * BIG, "outbox")
        yield from idle(self)

    server = await stage.serve(main, limits=ChassisLimits(stop_deadline=0.1))
    peer = await stage.connect(server)
    peer.transport.pauseProducing()
    await stage.until(lambda: bool(server.connections))
    await server.stop()
    peer.transport.resumeProducing()
    assert len(await peer.end()) < 4 * BIG


@pytest_twisted.ensureDeferred
async def test_other_messages_on_the_servers_control_are_ignored(stage: Stage) -> None:
    server = await stage.serve(echo)
    for message in (producerFinished(), "text", None, socketShutdown()):
        server._deliver(message, "control")
    peer = await stage.connect(server)
    peer.transport.write(b"x")
    await peer.gets(b"x")


@pytest_twisted.ensureDeferred
async def test_a_handlers_serversignal_reaches_the_servers_control(stage: Stage) -> None:
    def main(self: Any) -> Iterator[Any]:
        while not self.anyReady():
            yield 1
        if self.dataReady("inbox"):
            self.send(b"stopping", "outbox")
            self.send(serverShutdown(), "serversignal")
        yield from idle(self)

    made = handler(main)
    made.Outboxes = {"outbox": "", "signal": "", "serversignal": ""}
    server = await stage.start(server_of(made))
    peer, other = await stage.connect(server), await stage.connect(server)
    await stage.until(lambda: len(made.made) == 2)
    peer.transport.write(b"stop")
    assert (await peer.end(), await other.end()) == (b"stopping", b"")
    await stage.until(server._isStopped)


@pytest_twisted.ensureDeferred
async def test_stop_is_safe_before_the_start_and_twice(stage: Stage) -> None:
    never = server_of(handler(echo))
    await never.stop()
    never.activate()
    with pytest.raises(CannotListen):
        await never.when_listening()
    server = await stage.serve(echo)
    first, second = server.stop(), server.stop()
    await first
    await second
    await server.stop()


@pytest_twisted.ensureDeferred
async def test_cancelling_the_wait_for_a_stop_stops_all_the_same(stage: Stage) -> None:
    server = await stage.serve(echo)
    waiting = server.stop()
    waiting.addErrback(lambda _: None)
    waiting.cancel()
    await server.stop()
    assert server._isStopped()


# --- Handlers made of parts -----------------------------------------------------------------------


class Stepwise(Axon.Component.component):
    """Passes data on, one message a step, and the end after it, as Kamaelia's filters do."""

    def change(self, data: bytes) -> bytes:
        return data

    def main(self) -> Iterator[Any]:
        while True:
            yield 1
            if self.dataReady("inbox"):
                self.send(self.change(self.recv("inbox")), "outbox")
            elif self.dataReady("control"):
                self.send(self.recv("control"), "signal")
                return


class Upper(Stepwise):
    def change(self, data: bytes) -> bytes:
        return data.upper()


class Pipeline(Axon.Component.component):
    def main(self) -> Iterator[Any]:
        first, last = Upper(), Stepwise()
        self.addChildren(first, last)
        self.link((self, "inbox"), (first, "inbox"), passthrough=1)
        self.link((self, "control"), (first, "control"), passthrough=1)
        self.link((first, "outbox"), (last, "inbox"))
        self.link((first, "signal"), (last, "control"))
        self.link((last, "outbox"), (self, "outbox"), passthrough=2)
        self.link((last, "signal"), (self, "signal"), passthrough=2)
        for child in self.childComponents():
            child.activate()
        while not all(child._isStopped() for child in self.childComponents()):
            yield 1


@pytest_twisted.ensureDeferred
async def test_a_handler_may_be_a_pipeline_of_components(stage: Stage) -> None:
    peer = await stage.connect(await stage.start(server_of(Pipeline)))
    peer.transport.write(b"abc" * 100_000)
    peer.half_close()
    assert await peer.end() == b"ABC" * 100_000


@pytest_twisted.ensureDeferred
async def test_shutdown_lets_a_pipeline_end_by_itself(stage: Stage) -> None:
    server = await stage.start(server_of(Pipeline))
    peer = await stage.connect(server)
    peer.transport.write(b"abc")
    await peer.gets(b"ABC")
    await server.stop()
    assert await peer.end() == b"ABC"
