"""The measurements of `bench.latency`, with few messages: they measure what they say."""

from __future__ import annotations

from bench.latency import CALLS, main
from bench.processes import ROOT
from tests.kit.syscalls import works

WAYS = ("closed", "closed_handler", "open", "open_handler")
TIMES = {f"{way}_{share}_ms" for way in WAYS for share in ("p50", "p99")}
CPU = {"node_cpu_us", "producer_cpu_us", "receivers_cpu_us", "open_node_cpu_us"}
COUNTED = {f"{name}_calls" for name in (*CALLS, "all")} if works() else set()
FEW = ["--closed", "20", "--seconds", "0.1"]


def test_the_latency_of_messages_is_measured_with_what_it_costs() -> None:
    found = main(FEW)
    floor = {"floor_ms", "sync_ms", "round_trip_ms", "closed_ratio", "open_ratio"}
    assert TIMES | CPU | COUNTED | floor == set(found)
    for way in WAYS:
        assert 0 < found[f"{way}_p50_ms"] <= found[f"{way}_p99_ms"]
    # A message is with a handler before its producer knows that all have it.
    assert found["closed_handler_p50_ms"] < found["closed_p99_ms"]
    if COUNTED:  # one write for each message at least, and one sync
        assert found["all_calls"] > found["sendto_calls"] >= 1
        assert found["fdatasync_calls"] >= 1


def test_another_checkout_is_measured_in_turn() -> None:
    found = main([*FEW, "--rounds", "2", "--before", str(ROOT)])
    both = {f"{side} {figure}" for side in ("ours", "before") for figure in TIMES | CPU | COUNTED}
    assert both | {"rounds"} <= set(found)
    assert {f"{figure} ratio" for figure in TIMES} <= set(found)
    assert all(value >= 0 for value in found.values())
