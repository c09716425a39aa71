"""`msgservice.blocking` in threads, forks and at the end of processes, with a real node.

The calls themselves are in `test_programs`.
"""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import pytest

from tests.integration.daemon import PATIENCE
from tests.kit.nest import run

BEGIN = """
import asyncio, multiprocessing, os, signal, sys, threading, time
from msgservice import Reject, Retry, blocking
from msgservice.errors import ForkedProcess
from msgservice.limits import Limits

ADDRESS = {node!r}

"""


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


@pytest.fixture
def play(node: str, tmp_path: Path) -> Play:
    return Play(node, tmp_path)


def test_many_threads_send_by_one_client(play: Play) -> None:
    told = play("""
        def work(number):
            sent = [client.send(f"threads.n{number}", b"x") for _ in range(50)]
            positions = [receipt.position for receipt in sent]
            in_order.append(positions == sorted(positions))
            all_positions.update(positions)

        in_order, all_positions = [], set()
        with blocking.connect(ADDRESS, name="shop") as client:
            threads = [threading.Thread(target=work, args=(n,)) for n in range(16)]
            for each in threads: each.start()
            for each in threads: each.join()
        print(in_order == [True] * 16, len(all_positions))
    """)
    assert told == ["True 800"]


def test_a_fork_is_noticed_and_connects_anew(play: Play) -> None:
    told = play("""
        client = blocking.connect(ADDRESS, name="parent")
        receiver = blocking.Receiver(name="parents", handler=print)
        receipt = client.send("forks.new", b"x")
        pid = os.fork()
        if not pid:
            for call in (lambda: client.send("forks.new", b"x"), client.why,
                         receipt.acknowledged, lambda: receiver.attach(ADDRESS)):
                try:
                    call()
                except ForkedProcess as error:
                    print(error.made_in == os.getppid(), error.here == os.getpid())
            client.close()  # which does nothing here
            receiver.stop()
            with blocking.connect(ADDRESS, name="child") as own:
                print("child", own.send("forks.new", b"y").sequence, flush=True)
            sys.exit()
        assert os.waitpid(pid, 0)[1] == 0
        print("parent", client.connected, client.send("forks.new", b"z").sequence)
        client.close()
        receiver.stop()
    """)
    assert told == ["True True"] * 4 + ["child 1", "parent True 2"]


def test_a_pool_of_processes_sends(play: Play) -> None:
    told = play("""
        def work(number):
            with blocking.connect(ADDRESS, name=f"worker{number}") as client:
                return client.send("pool.new", number).sequence

        with blocking.connect(ADDRESS, name="shop") as client:
            client.send("pool.new", b"x")
            with multiprocessing.get_context("fork").Pool(3) as pool:
                print(pool.map(work, range(6)))
    """)
    assert told == ["[1, 1, 1, 1, 1, 1]"]


def test_an_outbox_is_not_harmed_by_a_fork_that_ends(play: Play) -> None:
    told = play("""
        with blocking.connect(ADDRESS, name="box", outbox="outbox.db") as client:
            client.send("box.new", b"x")
            pid = os.fork()
            if not pid:
                sys.exit()
            assert os.waitpid(pid, 0)[1] == 0
            print(client.send("box.new", b"y").accepted.sequence)
        with blocking.connect(ADDRESS, name="box", outbox="outbox.db") as client:
            print(client.sequence)
    """)
    assert told == ["2", "2"]


def test_53_receipts_of_the_process_before_are_listed(play: Play) -> None:
    told = play("""
        with blocking.connect(ADDRESS, name="before", outbox="before.db") as client:
            client.request("$node.receivers.add", {"name": "blocks", "subjects": ["blocks"]})
            client.send("blocks", b"1", id="one").accepted
            client.send("blocks", b"2", id="two").accepted
        with blocking.connect(ADDRESS, name="before", outbox="before.db") as client:
            one, two = client.receipts()
            print(one.id, two.id)
            two.forget()
            changes = one.changes()
            print(next(changes))
            client.request("$node.receivers.remove", {"name": "blocks", "confirm": 2})
            for change in changes:
                print(change.receiver, change.status.name)
            print(client.receipts())
    """)
    assert [
        "one two",
        "Change(receiver='', status=None, reason='')",
        "blocks REMOVED",
        "[]",
    ] == told


def test_an_interrupt_ends_a_wait_and_the_client_goes_on(play: Play) -> None:
    told = play("""
        with blocking.connect(ADDRESS, name="shop") as client:
            with blocking.Receiver(name="away", handler=print) as receiver:
                receiver.attach(ADDRESS, subjects=["away.>"])
                receiver.when_connected()
            receipt = client.send("away.new", b"x")
            try:
                threading.Timer(0.1, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
                receipt.acknowledged()
            except KeyboardInterrupt:
                print("interrupted")
            print(client.send("away.new", b"y").sequence)
    """)
    assert told == ["interrupted", "2"]


def test_what_takes_too_long_is_a_timeout(play: Play) -> None:
    told = play(
        """
        def told(call):
            try:
                call()
            except TimeoutError as error:
                print(error)

        told(lambda: blocking.connect("tcp:127.0.0.1:1", name="shop", timeout=0.1))
        with blocking.connect(ADDRESS, name="shop", timeout=30) as client:
            with blocking.Receiver(name="slow", handler=print) as receiver:
                receiver.attach(ADDRESS, subjects=["slow.>"])
                receiver.when_connected()
            receipt = client.send("slow.new", b"x")
            told(lambda: receipt.acknowledged(timeout=0.1))
            told(lambda: receipt.settled(timeout=0.1))
            told(lambda: client.within(0.2).send("slow.new", b"x").acknowledged())
            print(client.timeout, client.within(0.2).timeout, client.send("slow.new", 1).sequence)
            with blocking.Receiver(name="nothing") as taker:
                told(lambda: taker.take(timeout=0.1))
    """,
        said="no connection to tcp:127.0.0.1:1",
    )
    late = [f"not within {each} s; what was begun may still happen" for each in (0.1, 0.2)]
    assert told == [
        "no connection to tcp:127.0.0.1:1 within 0.1 s: is a node listening there?"
        " (standard error says why, where the program has no log)",
        late[0],
        late[0],
        late[1],
        "30 0.2 3",
        late[0],
    ]


def test_a_call_on_the_thread_of_the_reactor_is_refused(play: Play) -> None:
    (told,) = play("""
        def incarnation():
            try:
                client.send("own.thread", b"x")
            except RuntimeError as error:
                print(error)
            return "0" * 32

        with blocking.connect(ADDRESS, name="shop") as client:
            blocking.connect(ADDRESS, name="other", new_incarnation=incarnation).close()
    """)
    assert told == (
        "a call of msgservice.blocking on the thread of its reactor would wait for itself"
    )


def test_handlers_run_on_threads_and_may_call_the_client(play: Play) -> None:
    told = play("""
        def handle(message):
            assert threading.current_thread() is not threading.main_thread()
            if message.content == "bad":
                raise Reject("bad")
            client.send("steps.second", message.content)

        def handle_second(message):
            done.append(message.content)

        done = []
        with blocking.connect(ADDRESS, name="shop") as client:
            with (
                blocking.Receiver(name="first", handler=handle) as first,
                blocking.Receiver(name="second", handler=handle_second, threads=1) as second,
            ):
                attached = first.attach(ADDRESS, subjects=["steps.first"])
                second.attach(ADDRESS, subjects=["steps.second"])
                first.when_connected()
                second.when_connected()
                print(attached.connected, repr(attached.error), attached.is_over)
                sent = client.send_many("steps.first", ["a", "bad", "c"])
                print({state.name: n for state, n in sent.settled()["first"].items()})
                while len(done) < 2:
                    time.sleep(0.01)
                print(done)
    """)
    assert told == ["True '' False", "{'ACKNOWLEDGED': 2, 'DEAD': 1}", "['a', 'c']"]


def test_messages_are_taken_one_by_one_by_several_threads(play: Play) -> None:
    told = play(
        """
        def work():
            for delivery in receiver:
                try:
                    with delivery as message:
                        if message.content == 7 and not message.attempts:
                            raise Retry(0.01)
                        if message.content == 8:
                            raise Reject("eight")
                        if message.content == 9 and not message.attempts:
                            raise KeyError("nine")
                        taken.append(message.content)
                except KeyError:
                    failed.append(message.content)

        taken, failed = [], []
        with blocking.connect(ADDRESS, name="shop") as client:
            receiver = blocking.Receiver(name="takers", order="none")
            receiver.attach(ADDRESS, subjects=["takers.>"])
            receiver.when_connected()
            threads = [threading.Thread(target=work) for _ in range(4)]
            for each in threads: each.start()
            sent = client.send_many("takers.new", list(range(20)))
            print({state.name: n for state, n in sent.settled()["takers"].items()})
            receiver.stop()
            for each in threads: each.join()
        print(sorted(taken) == [n for n in range(20) if n != 8], failed)
    """,
        said="KeyError: 'nine'",
    )
    assert told == ["{'ACKNOWLEDGED': 19, 'DEAD': 1}", "True [9]"]


def test_requests_are_answered_on_threads(play: Play) -> None:
    told = play("""
        def answer(asked):
            time.sleep(0.01)
            return {"of": asked.content, "main": threading.current_thread().name == "MainThread"}

        with blocking.connect(ADDRESS, name="shop") as client:
            with client.respond("answers.>", answer) as responder:
                print(client.request("answers.get", 5), responder.connected)
    """)
    assert told == ["{'of': 5, 'main': False} True"]


def test_it_works_beside_a_reactor_and_an_event_loop_of_the_main_thread(play: Play) -> None:
    told = play("""
        def work(name):
            with blocking.connect(ADDRESS, name=name) as client:
                return client.send("beside.new", b"x").sequence

        async def main():
            print(await asyncio.to_thread(work, "from-asyncio"))

        asyncio.run(main())
        from twisted.internet.task import react
        from twisted.internet.threads import deferToThread

        react(lambda _: deferToThread(work, "from-twisted").addCallback(print))
    """)
    assert told == ["1", "1"]


def test_a_port_of_a_receiver_is_opened_and_closed(play: Play) -> None:
    told = play("""
        with blocking.Receiver(name="listens", handler=print) as receiver:
            listening = receiver.listen("tcp:0:interface=127.0.0.1")
            print(listening.host.host, listening.host.port > 0)
            listening.close()
    """)
    assert told == ["127.0.0.1 True"]


def test_a_process_ends_whose_threads_still_wait(play: Play) -> None:
    told = play("""
        client = blocking.connect(ADDRESS, name="shop")
        receiver = blocking.Receiver(name="ends")
        receiver.attach(ADDRESS, subjects=["ends.>"])
        receiver.when_connected()
        threading.Thread(target=lambda: [print("taken") for _ in receiver], daemon=True).start()
        print("ends")
    """)
    assert told == ["ends"]


def test_a_client_that_was_closed_is_kept_by_nobody(play: Play) -> None:
    told = play("""
        import gc, weakref

        def use(number):
            with blocking.connect(ADDRESS, name=f"kept{number}") as client:
                client.send("kept.new", b"x")
                return weakref.ref(client.twisted)

        used = [use(number) for number in range(5)]
        with blocking.connect(ADDRESS, name="last") as last:  # what the turns before had is gone
            gc.collect()
            print([each() for each in used])
    """)
    assert told == ["[None, None, None, None, None]"]


def test_a_handler_with_an_inbox_returns_its_writes(play: Play) -> None:
    told = play("""
        def handle(message):
            return [TABLE, ("insert into orders values (?)", (message.content,))]

        import apsw

        TABLE = "create table if not exists orders (number)"
        with blocking.Receiver(name="inbox", handler=handle, inbox="inbox.db") as receiver:
            receiver.attach(ADDRESS, subjects=["inbox.>"])
            receiver.when_connected()
            with blocking.connect(ADDRESS, name="shop") as client:
                client.send_many("inbox.new", [1, 2, 3]).acknowledged()
        print(sorted(apsw.Connection("inbox.db").execute("select * from orders")))
    """)
    assert told == ["[(1,), (2,), (3,)]"]


def test_a_request_that_is_interrupted_takes_no_place_at_the_node(play: Play) -> None:
    told = play("""
        def answer(asked):
            os.kill(os.getpid(), signal.SIGINT)
            goes_on.wait()

        goes_on = threading.Event()
        with blocking.connect(ADDRESS, name="shop") as client:
            with client.respond("never.answered", answer):
                try:
                    client.request("never.answered", b"", timeout=3600)
                except KeyboardInterrupt:
                    counted = client.request("$node.info", {})["requests"]
                    print(counted["pending"], counted["given_up"])
                goes_on.set()
    """)
    assert told == ["0 1"]
