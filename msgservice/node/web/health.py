"""Whether the node is there, for those that watch over it: without a login, and without details."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from msgservice.node.web.answers import Answer, Ask, as_json
from msgservice.node.web.paths import PathAt

READY, DEGRADED, FAILED = "ready", "degraded", "failed"


class Health(msgspec.Struct, frozen=True):
    """The health of a node, in a word."""

    status: str


def health_paths(
    *, listens: Callable[[], bool], failed: Callable[[], bool], full: Callable[[], bool]
) -> list[PathAt]:
    """Return the two paths. `failed`: whether the log cannot go on; `full`: whether it has no room.

    `/healthz` asks none of these: whoever restarts a process that does not answer there would make
    nothing better where a disk is full.
    """

    def alive(ask: Ask) -> Answer:
        ask.only()
        return as_json(Health("ok"))

    def ready(ask: Ask) -> Answer:
        ask.only()
        if failed() or not listens():
            return as_json(Health(FAILED), 503)
        return as_json(Health(DEGRADED if full() else READY))

    return [
        PathAt(
            method="GET",
            path="/healthz",
            answer=alive,
            sentence="Says that the process answers, whatever its log does.",
            is_open=True,
            answers=Health,
        ),
        PathAt(
            method="GET",
            path="/readyz",
            answer=ready,
            sentence="Says whether the node takes messages: ready, degraded (no room), or failed.",
            is_open=True,
            answers=Health,
        ),
    ]
