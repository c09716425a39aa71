"""The targets by name: what runs one input, and the inputs that a corpus begins with.

Two are the datagrams with a bug put into them, which the tests want found: a fuzzer that finds
nothing would look like one that cannot.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple


class Target(NamedTuple):
    """See the module."""

    run: Callable[[bytes], None]
    seeds: Callable[[], Iterator[bytes]]


def load(name: str) -> Target:
    """Return a target; only what it needs is imported, as all that is gets instrumented."""
    if name == "frames":
        from tests.fuzz import frames_target

        return Target(frames_target.run, frames_target.seeds)
    if name == "config":
        from tests.fuzz import config_target

        return Target(config_target.run, config_target.seeds)
    if name == "keys":
        from tests.fuzz import keys_target

        return Target(keys_target.run, keys_target.seeds)
    if name == "logins":
        from tests.fuzz import login_target

        return Target(login_target.run, login_target.seeds)
    if name == "http":
        from tests.fuzz import http_target

        return Target(http_target.run, http_target.seeds)
    from tests.fuzz import datagram_target

    if name == "planted_error":
        plant_an_error()
    elif name == "planted_twice":
        plant_a_repeat()
    return Target(datagram_target.run, datagram_target.seeds)


def plant_an_error() -> None:
    """Let a RUN raise that begins with nonce 0, which no honest peer gives."""
    from msgservice.core.datagram.receiver import ReceivingHalf

    receive_run = ReceivingHalf.receive_run

    def planted(self: ReceivingHalf, first: int, bodies: list[bytes], size: int) -> None:
        if first == 0:
            raise KeyError(first)
        receive_run(self, first, bodies, size)

    ReceivingHalf.receive_run = planted  # type: ignore[method-assign]  # that is what planting is


def plant_a_repeat() -> None:
    """Let messages that come again in a new packet be handed on again."""
    from msgservice.core.datagram.receiver import ReceivingHalf

    receive_run = ReceivingHalf.receive_run

    def planted(self: ReceivingHalf, first: int, bodies: list[bytes], size: int) -> None:
        if first + len(bodies) <= self.next_nonce:
            self.taken_bytes += size
            self.deliveries.append((first, bodies, size))
        else:
            receive_run(self, first, bodies, size)

    ReceivingHalf.receive_run = planted  # type: ignore[method-assign]  # that is what planting is
