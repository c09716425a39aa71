"""Metrics of a node in Prometheus' text format: what the sampler saw, as series.

Made when somebody asks, a family at a time, so that no turn is long. A receiver has series of its
own as long as there are not too many (`metrics_receivers`); of all together there are counts.

Names and units: https://prometheus.io/docs/practices/naming/
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector

from msgservice.administration import Observed, ObservedNode
from msgservice.node.observe import Seen
from msgservice.node.troubles import HEALTHS

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
LINES = 1_000  # of receivers, in one piece

# Of each receiver: the name of a series, what it is, and its value at a moment in ms.
_OF_RECEIVERS: tuple[tuple[str, str, Callable[[Observed, int], float]], ...] = (
    ("queued_messages", "Messages that wait for a receiver.", lambda one, _: one.queued),
    ("queued_bytes", "Bytes that wait for a receiver.", lambda one, _: one.queued_bytes),
    (
        "oldest_seconds",
        "How long the oldest message for a receiver has waited; 0 where none does.",
        lambda one, now: 0.0 if one.oldest is None else max(0, now - one.oldest.at) / 1000,
    ),
    ("connected", "1 while a receiver is connected.", lambda one, _: one.connected),
    ("attempts", "The most attempts of what is tried again.", lambda one, _: one.attempts),
    (
        "dead_letter_bytes",
        "Bytes of the dead letters of a receiver.",
        lambda one, _: one.dead_bytes,
    ),
)


class _One(Collector):
    """A collector of one family, for `generate_latest`, which wants a registry."""

    def __init__(self, family: Metric) -> None:
        self._family = family

    def collect(self) -> Iterable[Metric]:
        return (self._family,)


def metrics_of(seen: Seen, now: int, receivers_max: int) -> Iterator[bytes]:
    """Return the text of all metrics in pieces, of a few milliseconds each.

    `now`: wall clock, ms. `receivers_max`: receivers that have series of their own, the first by
    name.
    """
    # As they are now: the sampler goes on in between, and forgets who is removed.
    receivers = sorted(seen.receivers.values(), key=lambda one: one.name)
    shown = receivers[:receivers_max]
    for family in _families(seen.node, receivers, now, len(shown)):
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_One(family))
        yield generate_latest(registry)
    yield from _of_each(shown, now)
    process = CollectorRegistry()
    ProcessCollector(registry=process)
    yield generate_latest(process)


def _families(
    node: ObservedNode, receivers: list[Observed], now: int, shown: int
) -> Iterator[Metric]:
    yield from _of_node(node, now)
    yield from _of_all(receivers, now)
    yield _gauge(
        "receivers_without_series",
        "Receivers beyond metrics_receivers, that have no series of their own.",
        len(receivers) - shown,
    )


def _of_each(shown: list[Observed], now: int) -> Iterator[bytes]:
    """Yield the series of receivers, some at a time.

    Written here: the library's own writer, which makes a sample of each first, takes ten times as
    long (bench/http.py), and these are nearly all there is.
    """
    labels = [f'receiver="{_escaped(one.name)}"' for one in shown]
    slices = [slice(begin, begin + LINES) for begin in range(0, len(shown), LINES)]
    for name, told, value in _OF_RECEIVERS:
        series = f"msgservice_receiver_{name}"
        yield f"# HELP {series} {told}\n# TYPE {series} gauge\n".encode()
        for some in slices:
            pairs = zip(labels[some], shown[some], strict=True)
            lines = [f"{series}{{{of}}} {float(value(one, now))}\n" for of, one in pairs]
            yield "".join(lines).encode()
    series = "msgservice_receiver_settled_messages_total"
    told = "Messages of a receiver that have come to an end, by their final status."
    yield f"# HELP {series} {told}\n# TYPE {series} counter\n".encode()
    for some in slices:
        lines = [
            f'{series}{{{of},status="{status}"}} {float(count)}\n'
            for of, one in zip(labels[some], shown[some], strict=True)
            for status, count in one.settled.items()
        ]
        yield "".join(lines).encode()


def _escaped(text: str) -> str:
    """Return a label's value as the format has it."""
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _gauge(name: str, told: str, value: float) -> Metric:
    return GaugeMetricFamily(f"msgservice_{name}", told, value=value)


def _counter(name: str, told: str, value: float) -> Metric:
    return CounterMetricFamily(f"msgservice_{name}", told, value=value)


def _of_node(node: ObservedNode, now: int) -> Iterator[Metric]:
    room = node.room
    yield InfoMetricFamily(
        "msgservice_node",
        "The node.",
        value={"name": node.name, "version": node.version, "log_id": node.log_id},
    )
    yield _gauge("up_seconds", "How long this process has been up.", (now - node.started_at) / 1000)
    yield _gauge("connections", "Connections that are open.", node.connections)
    yield _counter("stored_messages", "Messages stored since the start.", node.stored)
    yield _counter("stored_bytes", "Bytes of messages stored since the start.", node.stored_bytes)
    yield _counter("refused_runs", "Runs that the log had no room for.", node.refused)
    yield _counter("looped_messages", "Messages that came back over other nodes.", node.looped)
    yield _gauge("loaded_bytes", "Bytes that are loaded for receivers.", node.loaded_bytes)
    yield _gauge("log_used_bytes", "Bytes of batches in the log.", room.used)
    yield _gauge("log_maximum_bytes", "Bytes of batches that the log may have.", room.maximum)
    yield _gauge("log_free_bytes", "Bytes that are free on its disk.", room.free)
    yield _gauge(
        "log_full", "1 while messages are refused for want of room.", room.full is not None
    )
    if node.dead_letters is not None:
        letters = node.dead_letters
        yield _counter("dead_letters_new", "Dead letters that were made.", letters.new)
        yield _counter("dead_letters_requeued", "Dead letters sent again.", letters.requeued)
        yield _counter("dead_letters_dropped", "Dead letters dropped.", letters.dropped)

    promises = node.promises
    yield _gauge("promises_open", "Messages whose promise is not decided.", promises.open)
    yield _counter("promises_kept", "Messages whose promise was kept.", promises.kept)
    yield _counter("promises_broken", "Messages whose promise was broken.", promises.broken)


def _of_all(receivers: list[Observed], now: int) -> Iterator[Metric]:
    healths = Counter(one.health for one in receivers)
    family = GaugeMetricFamily("msgservice_receivers", "Receivers by health.", labels=["health"])
    for health in HEALTHS:
        family.add_metric([health], healths[health])
    yield family
    troubles = Counter(trouble.kind for one in receivers for trouble in one.troubles)
    family = GaugeMetricFamily("msgservice_troubles", "Receivers in trouble.", labels=["kind"])
    for kind, count in sorted(troubles.items()):
        family.add_metric([kind], count)
    yield family
    yield _gauge(
        "unaccounted",
        "Messages of which nobody can say where they are: must be 0.",
        sum(one.unaccounted for one in receivers),
    )
    yield _gauge(
        "seen_seconds",
        "How old the oldest value of a receiver is.",
        max([max(0, now - one.at) / 1000 for one in receivers], default=0.0),
    )
