"""A `MessageStream` in one process: the table of operations, rule 5.8, and progress messages."""

from __future__ import annotations

import queue
import threading
from typing import Any

import pytest
from twisted.internet.defer import DeferredQueue, QueueOverflow

from msgservice.faces.streams import (
    Join,
    MessageStream,
    Monitor,
    MonitorMessage,
    Progress,
    message_stream,
)


class Kept(list[Any]):
    """A queue that keeps what is put."""

    def put(self, message: Any) -> None:
        self.append(message)


def test_a_header_is_none_without_one_and_asking_never_raises() -> None:
    stream = MessageStream()
    assert stream["unknown"] is None
    assert stream[["not", "hashable"]] is None  # type: ignore[index]  # what is tested
    stream["k"] = "header"
    assert stream["k"] == "header"
    stream["k"] = None
    assert stream["k"] is None


def test_setting_a_header_tells_those_who_listen_nothing() -> None:
    stream, before, after = MessageStream(), Kept(), Kept()
    stream.listen("k", before)
    stream["k"] = 1
    stream.listen("k", after)
    assert (before, after) == ([], [1])


def test_put_gives_the_bare_message_to_all_in_the_order_in_which_they_came() -> None:
    stream, order = MessageStream(), Kept()

    class Named(Kept):
        def put(self, message: Any) -> None:
            order.append((self, message))

    queues = [Named([number]) for number in range(3)]
    for one in queues:
        stream.listen("k", one)
    stream.put("other", 0)
    stream.put("k", {"m": 1})
    assert order == [(one, {"m": 1}) for one in queues]


def test_a_message_that_nobody_listens_for_is_gone() -> None:
    stream, late = MessageStream(), Kept()
    stream.put("k", 1)
    stream.listen("k", late)
    stream.put("k", 2)
    assert late == [2]


def test_a_queue_may_listen_twice_and_to_several_streams() -> None:
    stream, one = MessageStream(), Kept()
    stream.listen("a", one)
    stream.listen("a", one)
    stream.listen("b", one)
    stream.put("a", 1)
    stream.put("b", 2)
    assert one == [1, 1, 2]
    stream.hangup("a", one)
    stream.put("a", 3)
    assert one == [1, 1, 2, 3]
    stream.hangup(None, one)
    stream.put("a", 4)
    stream.put("b", 5)
    assert one == [1, 1, 2, 3]


def test_hanging_up_ignores_what_is_unknown_and_leaves_the_header() -> None:
    stream, one = MessageStream(), Kept()
    stream["k"] = 1
    stream.hangup("k", one)
    stream.hangup("unknown", one)
    stream.hangup(None, one)
    stream.listen("k", one)
    stream.hangup("k", one)
    assert stream["k"] == 1
    assert stream.keys() == ["k"]


def test_deleting_forgets_header_and_listeners_and_touches_no_queue() -> None:
    stream, one = MessageStream(), Kept()
    del stream["unknown"]
    stream["k"] = "h"
    stream.listen("k", one)
    stream.put("k", 1)
    del stream["k"]
    stream.put("k", 2)
    assert one == ["h", 1]
    assert stream["k"] is None
    assert stream.keys() == []


def test_closing_forgets_the_listeners_and_keeps_the_header() -> None:
    stream, one = MessageStream(), Kept()
    stream["k"] = "h"
    stream.listen("k", one)
    stream.close("k")
    stream.put("k", 1)
    assert (one, stream["k"]) == (["h"], "h")


@pytest.mark.parametrize("make", [queue.Queue, queue.SimpleQueue, DeferredQueue])
def test_any_object_with_put_is_a_queue(make: Any) -> None:
    stream, one = MessageStream(), make()
    stream.listen("k", one)
    stream.put("k", 1)
    got = one.get()
    assert (got.result if isinstance(one, DeferredQueue) else got) == 1


def test_decision_17_a_key_in_process_is_anything_hashable() -> None:
    stream, one = MessageStream(), Kept()
    keys: list[Any] = [1, ("a", 2), frozenset({3}), None.__class__]
    for key in keys:
        stream.listen(key, one)
        stream.put(key, key)
    assert one == [1, ("a", 2), frozenset({3}), None.__class__]


def test_rule_5_8_one_that_raises_hurts_nobody(logged_failures: list[Any]) -> None:
    stream, before, after = MessageStream(), Kept(), Kept()

    class Raising:
        def put(self, message: Any) -> None:
            raise RuntimeError("mine")

    stream.listen("k", before)
    stream.listen("k", Raising())
    stream.listen("k", after)
    stream.put("k", 1)
    stream.put("k", 2)
    assert (before, after) == ([1, 2], [1, 2])
    assert len(logged_failures) == 2
    logged_failures.clear()


def test_rule_5_8_one_that_raises_for_the_header_does_not_listen() -> None:
    stream = MessageStream()
    stream["k"] = 1
    with pytest.raises(QueueOverflow):
        stream.listen("k", DeferredQueue(size=0))
    stream["k"] = None
    assert stream.keys() == []


def test_rule_5_8_what_a_queue_puts_while_it_is_given_the_header_comes_to_it_behind_that() -> None:
    stream, other = MessageStream(), Kept()

    class Echo(Kept):
        def put(self, message: Any) -> None:
            super().put(message)
            if message == "header":
                stream.put("k", 1)
                stream.put("k", 2)

    stream["k"] = "header"
    stream.listen("k", other)
    echo = Echo()
    stream.listen("k", echo)
    assert echo == other == ["header", 1, 2]
    stream.put("k", 3)
    assert echo == other == ["header", 1, 2, 3]


def test_rule_5_8_one_that_hangs_up_while_it_is_given_the_header_gets_nothing_more() -> None:
    stream = MessageStream()

    class Once(Kept):
        def put(self, message: Any) -> None:
            super().put(message)
            stream.put("k", "never")
            stream.hangup("k", self)

    stream["k"] = "header"
    once = Once()
    stream.listen("k", once)
    stream.put("k", "never")
    assert once == ["header"]


def test_rule_5_8_what_a_listener_puts_reaches_all_in_one_order() -> None:
    stream, before, after = MessageStream(), Kept(), Kept()

    class Echo(Kept):
        def put(self, message: Any) -> None:
            super().put(message)
            if message < 3:
                stream.put("k", message + 1)

    echo = Echo()
    stream.listen("k", before)
    stream.listen("k", echo)
    stream.listen("k", after)
    stream.put("k", 0)
    assert before == echo == after == [0, 1, 2, 3]


def test_rule_5_8_who_listens_or_hangs_up_while_a_message_is_given() -> None:
    stream, late, gone = MessageStream(), Kept(), Kept()

    class Changing(Kept):
        def put(self, message: Any) -> None:
            super().put(message)
            if message == 0:
                stream.put("k", 1)  # before `late` listens: not for it
                stream.listen("k", late)
                stream.hangup("k", gone)

    changing = Changing()
    stream.listen("k", changing)
    stream.listen("k", gone)
    stream.put("k", 0)
    stream.put("k", 2)
    assert (changing, late, gone) == ([0, 1, 2], [2], [])


def test_rule_5_8_threads_put_and_join_without_gap_or_duplicate() -> None:
    stream = MessageStream()
    count, threads = 2_000, 4
    joined: list[Kept] = []

    def putting(name: int) -> None:
        for number in range(count):
            with stream.lock:  # the header stands for what was put
                stream["k"] = {**(stream["k"] or {}), name: number}
                stream.put("k", (name, number))

    def joining() -> None:
        for _ in range(200):
            kept = Kept()
            stream.listen("k", kept)
            joined.append(kept)

    workers = [threading.Thread(target=putting, args=(name,)) for name in range(threads)]
    workers += [threading.Thread(target=joining) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for kept in joined:
        last = kept.pop(0) if kept and isinstance(kept[0], dict) else {}
        for name, number in kept:
            assert number == last.get(name, -1) + 1
            last = {**last, name: number}
        assert last == stream["k"]


def test_the_stream_of_this_process_is_one() -> None:
    one = Kept()
    message_stream.listen("k", one)
    message_stream.put("k", 1)
    message_stream.hangup("k", one)
    assert one == [1]


def test_a_monitor_has_a_method_for_each_class_and_one_for_the_rest() -> None:
    got: list[Any] = []

    class Terminal(Monitor):
        def onMonitorProgress(self, message: Progress) -> None:
            got.append(("progress", message.complete, message.total, message.units))

        def onMonitorMessage(self, message: MonitorMessage) -> None:
            got.append(message)

    stream = MessageStream()
    stream["k"] = Join(1, 10, "best")
    stream.listen("k", Terminal())
    stream.put("k", Progress(2, 10, "steps"))
    stream.put("k", "text")
    assert got == [Join(1, 10, "best"), ("progress", 2, 10, "steps"), "text"]
    Monitor().put(Progress(1, 2))  # nothing is overridden: nothing happens
