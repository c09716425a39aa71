"""The measurements of `bench.latency`, with few messages: they measure what they say."""

from __future__ import annotations

import pytest

from bench.latency import CALLS, main
from bench.processes import ROOT
from tests.kit.syscalls import works

WAYS = ("closed", "closed_handler", "open", "open_handler")
TIMES = {f"{way}_{share}_ms" for way in WAYS for share in ("p50", "p99")}
CPU = {"node_cpu_us", "producer_cpu_us", "receivers_cpu_us", "open_node_cpu_us"}
COUNTED = {f"{name}_calls" for name in (*CALLS, "all")} if works() else set()
FUNCTIONS = {
    f"{process}_{what}"
    for process in ("node", "producer", "receiver")
    for what in ("functions", "built_in")
}
FEW = ["--closed", "20", "--seconds", "0.1"]


def test_the_latency_of_messages_is_measured_with_what_it_costs() -> None:
    found = main(FEW)
    floor = {"floor_ms", "sync_ms", "round_trip_ms", "closed_ratio", "open_ratio"}
    assert TIMES | CPU | COUNTED | FUNCTIONS | floor == set(found)
    for way in WAYS:
        assert 0 < found[f"{way}_p50_ms"] <= found[f"{way}_p99_ms"]
    # A message is with a handler before its producer knows that all have it.
    assert found["closed_handler_p50_ms"] < found["closed_p99_ms"]
    if COUNTED:  # one write for each message at least, and one sync
        assert found["all_calls"] > found["sendto_calls"] >= 1
        assert found["fdatasync_calls"] >= 1


def test_calls_of_functions_are_counted_and_the_most_called_are_listed(
    capfd: pytest.CaptureFixture[str],
) -> None:
    found = main(["--functions", "3"])
    assert FUNCTIONS == set(found)
    lines = [line.split() for line in capfd.readouterr().err.splitlines()]
    listed = [line[0] for line in lines if line[-1].startswith(("msgservice.", "twisted."))]
    assert {"node", "producer", "receiver"} == set(listed)
    # One frame is read for a message by a receiver, and more by the node, which hears three.
    assert found["node_functions"] > found["receiver_functions"] > 10
    assert found["producer_functions"] > 10
    assert found["node_built_in"] > found["receiver_built_in"] > 10


def test_another_checkout_is_measured_in_turn() -> None:
    found = main([*FEW, "--rounds", "2", "--before", str(ROOT)])
    both = {
        f"{side} {figure}"
        for side in ("ours", "before")
        for figure in TIMES | CPU | COUNTED | FUNCTIONS
    }
    assert both | {"rounds"} <= set(found)
    assert {f"{figure} ratio" for figure in TIMES} <= set(found)
    assert all(value >= 0 for value in found.values())


@pytest.mark.parametrize(
    "arguments",
    [["--rounds", "0"], ["--closed", "0"], ["--seconds", "0"], ["--before", "/nowhere"]],
)
def test_what_cannot_be_measured_is_refused_before_anything_begins(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert arguments[0] in capsys.readouterr().err
