"""`msgservice.aio` on event loops of all kinds, with a real node: what only asyncio has.

The calls themselves are in `test_programs`. Each program here is a process of its own, for this one
has a reactor installed that does not run on an event loop.
"""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import pytest

from tests.integration.daemon import PATIENCE
from tests.kit.nest import run

BEGIN = """
import asyncio, gc, os, sys, threading
from msgservice import Node, Receiver, Reject, Retry, aio
from msgservice.errors import ForeignReactor, NoReceiver
from msgservice.limits import Limits

ADDRESS = {node!r}

"""


@pytest.fixture
def play(node: str, tmp_path: Path) -> Play:
    return Play(node, tmp_path)


class Play:
    """Runs a program, and returns the lines that it has printed."""

    def __init__(self, node: str, folder: Path) -> None:
        self._node, self._folder = node, folder

    def __call__(self, program: str, said: str = "") -> list[str]:
        """Return what it prints; on standard error it says what has `said` in it, or nothing."""
        text = BEGIN.format(node=self._node) + textwrap.dedent(program)
        done = run([sys.executable, "-c", text], cwd=self._folder, timeout=PATIENCE)
        told = done.stderr.decode()
        assert (done.returncode, said in told, bool(told)) == (0, True, bool(said)), told
        return done.stdout.decode().splitlines()


def test_a_foreign_reactor_is_refused_with_what_to_do(play: Play) -> None:
    (told,) = play("""
        from twisted.internet import reactor

        async def main():
            try:
                await aio.connect(ADDRESS, name="shop")
            except ForeignReactor as error:
                print(error.kind, error)

        asyncio.run(main())
    """)
    assert told.startswith("EPollReactor Twisted's EPollReactor is installed in this process")
    assert "import nothing that imports twisted.internet.reactor before" in told


def test_without_an_event_loop_it_is_said_what_is_for_that(play: Play) -> None:
    (told,) = play("""
        try:
            aio.connect(ADDRESS, name="shop")
        except RuntimeError as error:
            print(error)
    """)
    assert "msgservice.blocking is for programs without one" in told


def test_a_client_that_nobody_has_awaited_says_so(play: Play) -> None:
    assert play("""
        async def main():
            dialling = aio.connect(ADDRESS, name="shop")
            for name in "send", "sned":
                try:
                    getattr(dialling, name)
                except AttributeError as error:
                    print(error)
            await (await dialling).close()

        asyncio.run(main())
    """) == [
        "what connect() returns has no attribute 'send': `await connect(...)`, or enter it by"
        " `async with`",
        "what connect() returns has no attribute 'sned'",
    ]


def test_a_reactor_that_a_program_has_put_on_its_loop_is_used(play: Play) -> None:
    told = play("""
        async def main():
            from twisted.internet import asyncioreactor
            asyncioreactor.install(asyncio.get_running_loop())
            from twisted.internet import reactor
            async with aio.connect(ADDRESS, name="shop") as client:
                print((await client.send("own.reactor", b"x")).sequence)
            print(aio.reactor() is reactor, reactor.running)

        asyncio.run(main())
    """)
    assert told == ["1", "True True"]


def test_each_loop_has_its_reactor_and_leaves_nothing_open(play: Play) -> None:
    told = play("""
        async def main(name):
            client = await aio.connect(ADDRESS.replace("127.0.0.1", "localhost"), name=name)
            receiver = aio.Receiver(name=name, handler=lambda message: None)
            receiver.attach(ADDRESS, subjects=[f"{name}.>"])
            await receiver.when_connected()
            await (await client.send(f"{name}.new", b"x")).acknowledged()
            from twisted.internet import reactor
            assert reactor is aio.reactor()
            return reactor  # and client and receiver are left open

        def open_files():
            gc.collect()
            return len(os.listdir("/proc/self/fd"))

        asyncio.run(asyncio.sleep(0))
        before = open_files()
        reactors = [asyncio.run(main(f"loop{n}")) for n in range(3)]
        print(len(set(reactors)), any(each.running for each in reactors))
        print(open_files() - before)
    """)
    assert told == ["3 False", "0"]


def test_loops_in_two_threads_have_a_reactor_each(play: Play) -> None:
    told = play("""
        async def main(name):
            async with aio.connect(ADDRESS, name=name) as client:
                arrived.wait()  # both are there at once
                return (await client.send("two.loops", b"x")).sequence

        arrived = threading.Barrier(2)
        sent = []
        work = lambda name: sent.append(asyncio.run(main(name)))
        threads = [threading.Thread(target=work, args=(f"thread{n}",)) for n in range(2)]
        for each in threads: each.start()
        for each in threads: each.join()
        print(sent)
    """)
    assert told == ["[1, 1]"]


def test_an_object_of_another_loop_is_refused(play: Play) -> None:
    (told,) = play("""
        async def use(client):
            try:
                await client.send("other.loop", b"x")
            except RuntimeError as error:
                print(error)

        async def main():
            async with aio.connect(ADDRESS, name="shop") as client:
                await asyncio.to_thread(lambda: asyncio.run(use(client)))

        asyncio.run(main())
    """)
    assert told.startswith("this Client belongs to the event loop of another thread")


def test_a_task_that_is_cancelled_ends_its_own_wait_and_no_other(play: Play) -> None:
    told = play("""
        async def main():
            async with aio.connect(ADDRESS, name="shop") as client:
                receiver = aio.Receiver(name="cancels", handler=lambda message: None)
                receiver.attach(ADDRESS, subjects=["cancels.>"])
                await receiver.when_connected()
                await receiver.stop()
                receipt = await client.send("cancels.new", b"x")

                async def wait():
                    await receipt.acknowledged()

                waiting = [asyncio.create_task(wait()) for _ in range(2)]
                await asyncio.sleep(0)
                waiting[0].cancel()
                await asyncio.wait([waiting[0]])
                print(waiting[0].cancelled())
                sending = client.send("cancels.new", b"y")
                sending.cancel()  # it is handed over all the same
                got = []
                again = aio.Receiver(name="cancels", handler=lambda m: got.append(m.body))
                again.attach(ADDRESS)
                await waiting[1]
                while len(got) < 2:
                    await asyncio.sleep(0.01)
                print(got)
                await again.stop()

        asyncio.run(main())
    """)
    assert told == ["True", "[b'x', b'y']"]


def test_handlers_are_coroutines_of_asyncio(play: Play) -> None:
    told = play("""
        async def main():
            running, most, seen = 0, 0, []

            async def handle(message):
                nonlocal running, most
                running += 1
                most = max(most, running)
                await asyncio.sleep(0.01)
                running -= 1
                if message.content == 3:
                    raise Reject("three")
                if message.content == 2 and not message.attempts:
                    raise Retry(0.01)
                seen.append(message.content)

            async with aio.connect(ADDRESS, name="shop") as client:
                async with aio.Receiver(name="tasks", handler=handle, order="none") as receiver:
                    receiver.attach(ADDRESS, subjects=["tasks.>"])
                    await receiver.when_connected()
                    sent = await asyncio.gather(*[client.send("tasks.new", n) for n in range(5)])
                    settled = [(await each.settled())["tasks"].name for each in sent]
            print(sorted(seen), most > 1, settled)

        asyncio.run(main())
    """)
    states = ["ACKNOWLEDGED"] * 3 + ["DEAD", "ACKNOWLEDGED"]
    assert told == [f"[0, 1, 2, 4] True {states}"]


def test_a_handler_that_runs_when_its_receiver_stops_is_cancelled_and_has_no_attempt(
    play: Play,
) -> None:
    told = play("""
        async def main():
            begun = asyncio.Event()

            async def handle(message):
                begun.set()
                try:
                    await asyncio.sleep(3600)
                except asyncio.CancelledError:
                    print("cancelled")
                    raise

            async with aio.connect(ADDRESS, name="shop") as client:
                receiver = aio.Receiver(
                    name="stops", handler=handle, limits=Limits(stop_timeout=0.1)
                )
                receiver.attach(ADDRESS, subjects=["stops.>"])
                await receiver.when_connected()
                receipt = await client.send("stops.new", b"x")
                await begun.wait()
                await receiver.stop()
                again = aio.Receiver(name="stops", handler=lambda m: print(m.attempts))
                again.attach(ADDRESS)
                await receipt.acknowledged()
                await again.stop()

        asyncio.run(main())
    """)
    assert told == ["cancelled", "0"]


def test_a_handler_that_cannot_run_is_refused(play: Play) -> None:
    told = play("""
        async def main():
            async def handle(message):
                yield message

            for each in (handle, None, "handle"):
                try:
                    aio.Receiver(name="wrong", handler=each)
                except TypeError as error:
                    print("generator" in str(error) or error)

        asyncio.run(main())
    """)
    expected = ["handler must be callable, not None", "handler must be callable, not 'handle'"]
    assert told == ["True", *expected]


def test_messages_are_taken_one_by_one(play: Play) -> None:
    told = play(
        """
        async def main():
            async with aio.connect(ADDRESS, name="shop") as client:
                receiver = aio.Receiver(name="taker", order="none")
                receiver.attach(ADDRESS, subjects=["taker.>"])
                await receiver.when_connected()
                sent = [await client.send("taker.new", n) for n in range(5)]
                taken = 0
                async for delivery in receiver:
                    try:
                        with delivery as message:
                            print(message.content, message.attempts)
                            if message.content == 1 and not message.attempts:
                                raise Retry(0.01)
                            if message.content == 2:
                                raise Reject("two")
                            if message.content == 3 and not message.attempts:
                                raise KeyError("a mistake")
                    except KeyError:
                        await client.send("taker.new", "after the mistake")
                    taken += 1
                    if taken == 7:
                        break
                # Nobody takes another one, and none is lost.
                waits = asyncio.ensure_future(receiver.take())
                await asyncio.sleep(0)
                await receiver.stop()
                print(await waits, await receiver.take())
                again = aio.Receiver(name="taker", order="none")
                again.attach(ADDRESS)
                async for delivery in again:
                    delivery.acknowledge()
                    if delivery.message.content == 3:
                        break
                print([(await each.settled())["taker"].name for each in sent])
                await again.stop()
                try:
                    await aio.Receiver(name="both", handler=print).take()
                except TypeError as error:
                    print(error)

        asyncio.run(main())
    """,
        said="KeyError: 'a mistake'",
    )
    assert sorted(told[:-3]) == ["0 0", "1 0", "1 1", "2 0", "3 0", "4 0", "after the mistake 0"]
    states = ["ACKNOWLEDGED", "ACKNOWLEDGED", "DEAD", "ACKNOWLEDGED", "ACKNOWLEDGED"]
    assert told[-3:] == [
        "None None",
        str(states),
        "this receiver has a handler, which gets its messages",
    ]


def test_a_node_inside_has_clients_of_asyncio(play: Play) -> None:
    told = play("""
        async def main():
            node = Node(aio.reactor(), "data")
            node.startService()
            await aio.awaited(node.when_ready())
            receiver = aio.Receiver(name="billing", handler=lambda m: print(m.content))
            node.attach(receiver.twisted, ["orders.>"])
            await receiver.when_connected()
            async with aio.Client(node.client("shop")) as client:
                receipt = await client.send("orders.new", {"id": 17})
                await receipt.acknowledged("billing")
            await receiver.stop()
            await aio.awaited(node.stopService())

        asyncio.run(main())
    """)
    assert told == ["{'id': 17}"]


def test_a_client_with_an_outbox_has_what_it_sends_on_its_own_disk(play: Play) -> None:
    told = play("""
        async def main():
            async with aio.connect(ADDRESS, name="box", outbox="outbox.db") as client:
                receipt = await client.send("box.new", b"x")
                print(receipt.sequence, (await receipt.accepted) is receipt, client.sequence)
                many = await client.send_many("box.new", [b"y"] * 10)
                print((await many.accepted) is many, many[9].sequence)

        asyncio.run(main())
    """)
    assert told == ["1 True 1", "True 11"]


def test_53_receipts_of_the_process_before_are_listed(play: Play) -> None:
    told = play("""
        async def main():
            async with aio.connect(ADDRESS, name="before", outbox="before.db") as client:
                await client.request("$node.receivers.add", {"name": "aio", "subjects": ["aio"]})
                await (await client.send("aio", b"1", id="one")).accepted
                await (await client.send("aio", b"2", id="two")).accepted
            async with aio.connect(ADDRESS, name="before", outbox="before.db") as client:
                one, two = await client.receipts()
                print(one.id, two.id)
                await two.forget()
                asyncio.get_running_loop().call_later(
                    0.1, client.request, "$node.receivers.remove", {"name": "aio", "confirm": 2}
                )
                async for change in one.changes():
                    print(change.receiver or "-", change.status and change.status.name)
                print(await client.receipts())

        asyncio.run(main())
    """)
    assert ["one two", "- None", "aio REMOVED", "[]"] == told


def test_an_error_that_nobody_awaits_is_told(play: Play) -> None:
    told = play("""
        async def main():
            loop = asyncio.get_running_loop()
            loop.set_exception_handler(lambda _, context: print(context["exception"]))
            async with aio.connect(ADDRESS, name="shop", require=True) as client:
                client.send("for.nobody", b"x")
                await asyncio.gather(client.send("for.nobody", b"y"), return_exceptions=True)
                gc.collect()

        asyncio.run(main())
    """)
    assert told == ["no receiver for subject 'for.nobody'"]


def test_handlers_with_an_inbox_are_coroutines_or_get_the_transaction(play: Play) -> None:
    told = play("""
        import apsw

        TABLE = "create table if not exists orders (number)"

        async def compute(message):
            await asyncio.sleep(0)
            return [TABLE, ("insert into orders values (?)", (message.content,))]

        def write(message, transaction):
            transaction.execute(TABLE)
            transaction.execute("insert into orders values (?)", (-message.content,))

        async def main():
            async with aio.connect(ADDRESS, name="shop") as client:
                for handler in (compute, write):
                    file = f"{handler.__name__}.db"
                    async with aio.Receiver(name=file, handler=handler, inbox=file) as receiver:
                        receiver.attach(ADDRESS, subjects=[f"{handler.__name__}.>"])
                        await receiver.when_connected()
                        sent = await client.send_many(f"{handler.__name__}.new", [1, 2])
                        await sent.acknowledged()
                    print(sorted(apsw.Connection(file).execute("select * from orders")))

        asyncio.run(main())
    """)
    assert told == ["[(1,), (2,)]", "[(-2,), (-1,)]"]


def test_whoever_is_cancelled_takes_no_message(play: Play) -> None:
    told = play("""
        import random

        async def take(receiver):
            return await receiver.take()

        async def work(receiver, chance, taken):
            while len(taken) < 500:
                taking = asyncio.create_task(take(receiver))
                for _ in range(chance.randrange(40)):
                    await asyncio.sleep(0)  # cancelled in any turn: before, as and after it comes
                if taking.cancel():
                    await asyncio.wait([taking])
                    if taking.cancelled():
                        continue
                with taking.result() as message:
                    taken.append(message.content)

        async def main():
            chance, taken = random.Random(1), []
            async with aio.connect(ADDRESS, name="shop") as client:
                receiver = aio.Receiver(name="cancelled-takers", order="none", concurrency=2)
                receiver.attach(ADDRESS, subjects=["cancelled-takers"])
                await receiver.when_connected()
                sent = await client.send_many("cancelled-takers", list(range(500)))
                async with asyncio.timeout(60):
                    await asyncio.gather(*[work(receiver, chance, taken) for _ in range(10)])
                    await sent.acknowledged()
                await receiver.stop()
            print(sorted(taken) == list(range(500)))

        asyncio.run(main())
    """)
    assert told == ["True"]


def test_a_request_whose_wait_is_over_takes_no_place_at_the_node(play: Play) -> None:
    told = play("""
        async def main():
            came, ended = asyncio.Event(), asyncio.Event()

            async def answer(asked):
                came.set()
                try:
                    await asyncio.Event().wait()
                finally:
                    ended.set()

            async with await aio.connect(ADDRESS, name="shop") as client:
                async with client.respond("never.answered", answer):
                    asked = client.request("never.answered", b"", timeout=3600)
                    await came.wait()
                    asked.cancel()
                    await ended.wait()
                    came.clear(); ended.clear()
                    try:
                        async with asyncio.timeout(0.05):
                            await client.request("never.answered", b"", timeout=3600)
                    except TimeoutError:
                        await ended.wait()
                    counted = (await client.request("$node.info", {}))["requests"]
                    print(counted["pending"], counted["given_up"])

        asyncio.run(main())
    """)
    assert told == ["0 2"]
