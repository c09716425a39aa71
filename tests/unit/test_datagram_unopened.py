"""What is told of hellos that no key opens: something, and not more than so much."""

from __future__ import annotations

from msgservice.core.datagram.unopened import TOLD_HOSTS, TOLD_SECONDS, Unopened, UnopenedHellos


def test_a_host_is_told_once_in_a_while_whatever_its_port() -> None:
    hellos = UnopenedHellos()
    for port in range(1, 5):
        hellos.add(("10.0.0.1", port), 1, is_known=True, now=0.0)
    hellos.add(("10.0.0.2", 1), 2, is_known=False, now=1.0)
    assert [
        Unopened(("10.0.0.1", 1), 1, True, 0),
        Unopened(("10.0.0.2", 1), 2, False, 3),
    ] == hellos.take()
    assert [] == hellos.take()
    hellos.add(("10.0.0.1", 9), 1, is_known=True, now=TOLD_SECONDS)
    assert [Unopened(("10.0.0.1", 9), 1, True, 0)] == hellos.take()


def test_addresses_that_are_lies_bring_no_more_lines_and_take_no_memory() -> None:
    hellos = UnopenedHellos()
    for number in range(1000):
        hellos.add((f"10.0.{number // 256}.{number % 256}", 1), 1, is_known=True, now=1.0)
    assert TOLD_HOSTS == len(hellos.take())
    assert TOLD_HOSTS == len(hellos._hosts)
    hellos.add(("10.9.9.9", 1), 1, is_known=True, now=1.0 + TOLD_SECONDS)
    assert [1000 - TOLD_HOSTS] == [told.untold for told in hellos.take()]
