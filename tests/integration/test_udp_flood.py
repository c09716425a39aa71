"""A flood of 100,000 datagrams from the loopback net on real sockets, while a peer goes on.

How much of its rate the peer keeps is printed by `python -m bench.udp_flood`, and not asserted.
"""

from __future__ import annotations

from bench import udp_flood


def test_a_flood_takes_no_memory_gets_less_than_it_brings_and_the_peer_is_served() -> None:
    found = udp_flood.measure()

    assert found["bytes_in"] > 5_000_000
    assert found["bytes_out"] <= found["bytes_in"]
    assert found["rss_growth_kib"] < 16 * 1024
    assert found["under_flood_s"] > 0
