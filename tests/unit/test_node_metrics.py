"""The metrics of a node, read by the parser of the library that Prometheus' users have."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace
from prometheus_client.parser import text_string_to_metric_families

from msgservice.limits import Limits
from msgservice.node import metrics
from msgservice.node.metrics import metrics_of
from msgservice.node.observe import Seen
from tests.unit.test_node_observe import ORDERS, World

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def samples(world: World, receivers_max: int = 1000) -> Samples:
    world.clock.advance(2.1)
    world.settle()
    pieces = list(metrics_of(world.look(), int(world.clock.seconds() * 1000), receivers_max))
    families = text_string_to_metric_families(b"".join(pieces).decode())
    found: Samples = {}
    for family in families:
        assert family.documentation
        for sample in family.samples:
            key = sample.name, frozenset(sample.labels.items())
            assert key not in found
            found[key] = sample.value
    return found


def of(found: Samples, name: str, **labels: Any) -> float:
    return found[f"msgservice_{name}", frozenset(labels.items())]


def test_what_waits_and_what_was_settled_is_told_by_receiver() -> None:
    world = World()
    world.peer("billing", receive=ORDERS, answering=True)
    world.peer("audit", receive=ORDERS).connection.abort()
    world.send(3)
    world.settle(seconds=10.0)
    found = samples(world)
    assert 3 == of(found, "stored_messages_total")
    assert 3 == of(found, "receiver_queued_messages", receiver="audit")
    assert 0 == of(found, "receiver_queued_messages", receiver="billing")
    assert 10 <= of(found, "receiver_oldest_seconds", receiver="audit") < 15
    assert 0 == of(found, "receiver_oldest_seconds", receiver="billing")
    assert (0, 1) == (
        of(found, "receiver_connected", receiver="audit"),
        of(found, "receiver_connected", receiver="billing"),
    )
    settled = "receiver_settled_messages_total"
    assert 3 == of(found, settled, receiver="billing", status="acknowledged")
    assert (1, 1) == (of(found, "receivers", health="up"), of(found, "receivers", health="away"))
    assert 1 == of(found, "troubles", kind="away")
    assert 0 == of(found, "unaccounted")


def test_receivers_beyond_the_limit_are_counted_and_have_no_series() -> None:
    world = World()
    for number in range(5):
        world.peer(f"billing-{number}", receive=ORDERS)
    found = samples(world, 2)
    named = {dict(labels).get("receiver") for _, labels in found} - {None}
    assert {"billing-0", "billing-1"} == named
    assert 3 == of(found, "receivers_without_series")
    assert 5 == of(found, "receivers", health="up")


@pytest.mark.parametrize("count", [0, 300])
def test_metrics_come_in_pieces_however_many_receivers(count: int) -> None:
    world = World()
    for number in range(count):
        world.peer(f"billing-{number}", receive=ORDERS)
    pieces = list(metrics_of(world.look(), 0, 1000))
    assert len(pieces) > 10
    most = max(piece.count(b"\n") for piece in pieces)
    assert most <= count + 20


def test_a_log_that_is_full_is_told() -> None:
    world = World(limits=Limits(max_bytes=20_000, backlog_bytes=20_000))
    world.peer("billing", receive=ORDERS)
    for _ in range(10):
        world.send(300)
    world.settle(seconds=2.0)
    found = samples(world)
    assert 1 == of(found, "log_full")
    assert of(found, "refused_runs_total") > 0
    assert 20_000 == of(found, "log_maximum_bytes")


def test_names_are_escaped_and_long_lists_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "LINES", 2)
    world = World()
    world.peer("billing", receive=ORDERS)
    seen = world.look()
    names = ['a"b', "c\\d", "e\\nf", "g\nh", "plain"]
    rows = {name: replace(seen.receivers["billing"], name=name) for name in names}
    pieces = list(metrics_of(Seen(seen.node, rows), 0, 10))
    (family,) = [
        one
        for one in text_string_to_metric_families(b"".join(pieces).decode())
        if one.name == "msgservice_receiver_queued_messages"
    ]
    assert ("gauge", names) == (family.type, [one.labels["receiver"] for one in family.samples])
    assert 2 == max(piece.count(b"msgservice_receiver_queued_messages{") for piece in pieces)


def test_who_is_removed_while_the_pieces_are_made_is_told_as_it_was() -> None:
    world = World()
    for number in range(3):
        world.peer(f"billing-{number}", receive=ORDERS)
    seen = world.look()
    pieces = metrics_of(seen, 0, 10)
    text = next(pieces)
    del seen.receivers["billing-1"]  # the sampler's own: it has looked again in between
    text += b"".join(pieces)
    for count in (
        b"msgservice_receivers_without_series 0.0\n",
        b'msgservice_receiver_connected{receiver="billing-1"} 1.0\n',
    ):
        assert count in text
