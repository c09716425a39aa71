"""One receiver that is attached to one node by several addresses: one works, the others stand by.

The node lets the connection win that was made last; in which order its HELLOs and its goodbyes
reach the receiver is another matter. SEMANTICS 5 and 27.
"""

from __future__ import annotations

import itertools
from functools import partial

import pytest

from msgservice.connection import Connection
from msgservice.core.frames import BYE_REMOVED, BYE_REPLACED, Hello
from msgservice.records import Resume
from tests.kit.receiver_world import Node, ThreadedClock, World


class Ordered(Node):
    """A node as the real one: whose channel was made last wins, whenever its HELLO arrives.

    `hello_after` and `bye_after`: how late they leave, by the number of the connection.
    """

    hello_after: tuple[float, ...] = ()
    bye_after: tuple[float, ...] = ()

    def channel_up(self, connection: Connection) -> None:
        self.__dict__.setdefault("made", []).append(connection)

    def number(self, connection: Connection) -> int:
        made: list[Connection] = self.__dict__["made"]
        return made.index(connection)

    def late(self, of: tuple[float, ...], connection: Connection) -> float:
        number = self.number(connection)
        return of[number] if number < len(of) else 0.0

    def greeted(self, connection: Connection, hello: Hello) -> None:
        tell = partial(super().greeted, connection, hello)
        self.clock.callLater(self.late(self.hello_after, connection), tell)

    def opened(self, connection: Connection, resume: Resume) -> None:
        current = self.connection
        if current is not None and self.number(current) > self.number(connection):
            self.replaced(connection)
            return
        self.connection = None
        if current is not None:
            self._end()
        super().opened(connection, resume)
        if current is not None:
            self.replaced(current)

    def replaced(self, older: Connection) -> None:
        def bye() -> None:
            older.bye(BYE_REPLACED, "replaced")
            older.close()

        self.clock.callLater(self.late(self.bye_after, older), bye)


TIMES = (0.0, 1.0, 2.0, 3.0)


@pytest.mark.parametrize("ways", [2, 3])
def test_27_of_several_addresses_exactly_one_works_in_whatever_order_things_happen(
    ways: int,
) -> None:
    for hello_after in itertools.permutations(TIMES, ways):
        for bye_after in itertools.product((0.0, 1.5), repeat=ways):
            node = Ordered(ThreadedClock())
            node.hello_after, node.bye_after = hello_after, bye_after
            world = World(node=node, attach=False)
            attached = [world.attach(node) for _ in range(ways)]
            world.run(30)
            order = (hello_after, bye_after)
            for n in range(ways):
                working = [way for way in attached if way.connected]
                waiting = [way for way in attached if way.is_replaced]
                assert (len(working), len(waiting)) == (1, ways - 1 - n), order
                assert all("newer connection" in way.error for way in waiting), order
                node.offer([b"%d" % n])
                world.run()
                assert world.handled[-1:] == [b"%d" % n], order
                working[0].stop()  # this one ends: another takes over
                attached.remove(working[0])
                world.run(10)
            assert len(world.handled) == ways, order


def test_27_one_that_stands_by_does_not_come_for_another_process_or_after_a_removal() -> None:
    for code in (BYE_REPLACED, BYE_REMOVED):
        node = Ordered(ThreadedClock())
        world = World(node=node)
        newer = world.attach(node)
        world.run(5)
        assert (world.attachment.is_replaced, newer.connected) == (True, True)
        assert node.connection is not None
        node.connection.bye(code, "sent away")
        world.run(60)
        assert [way.is_over for way in (world.attachment, newer)] == [True, True]


def test_27_one_that_stands_by_dials_where_the_preferred_one_does_not_come() -> None:
    node = Ordered(ThreadedClock())
    node.hello_after = (1.0, 0.0)  # the older channel's arrives last, and the node wants the newer
    world = World(node=node, attach=False)
    older, newer = world.attach(node), world.attach(node)
    while not older.is_replaced:
        world.run(0.05)
    newer.stop()  # as if nobody answered at that address any more
    world.run(world.limits.link_delay_max + 5)
    assert (older.is_over, older.connected) == (False, True)
    node.offer([b"x"])
    world.run()
    assert world.handled == [b"x"]


def test_27_one_that_stands_by_and_is_stopped_dials_no_more() -> None:
    node = Ordered(ThreadedClock())
    node.hello_after = (1.0, 0.0)
    world = World(node=node, attach=False)
    older, newer = world.attach(node), world.attach(node)
    while not older.is_replaced:
        world.run(0.05)
    newer.stop()
    older.stop()
    world.run(600)
    assert not older.connected
