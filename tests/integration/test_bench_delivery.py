"""The measurements of `bench.delivery`, with few messages: they measure what they say."""

from __future__ import annotations

from typing import Any

import pytest

from bench.delivery import measure

SMALL: dict[str, tuple[list[str], dict[str, Any]]] = {
    "ttl": (["200"], {}),
    "delay": (["700"], {"runs": 700}),
    "expire": (["1000", "--receivers", "3", "--run", "100"], {"messages": 1000, "receivers": 3}),
    "rewind": (["3000", "--rounds", "1"], {"messages": 3000, "turns": 1}),
    "purge": (["2000"], {"messages": 2000, "purged": 2000}),
    "promise": (["2000", "--rounds", "1"], {}),
    "finished": (["3000"], {"forgotten": 2000}),
    "keys": (["300"], {"keys": 8701}),  # those of the pairs, and one
}


@pytest.mark.parametrize("what", SMALL)
def test_a_measurement_of_delivery_says_its_figures(what: str) -> None:
    options, same = SMALL[what]
    found = measure([what, *options])
    assert same == {name: found[name] for name in same}
    figures = [value for name, value in found.items() if name not in same]
    assert figures
    assert all(isinstance(value, int | float) for value in figures)
