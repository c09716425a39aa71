"""Keys of streams in their order, against a plain sorted set; a page looks at few of them."""

from __future__ import annotations

from itertools import islice
from random import Random

import pytest

from msgservice.faces.streams.keys import PART, SortedKeys


@pytest.mark.parametrize("seed", range(20))
def test_keys_are_as_of_a_sorted_set_whatever_comes_and_goes(seed: int) -> None:
    rng = Random(seed)
    keys, model = SortedKeys(), set[str]()
    share = rng.choice([0.3, 0.6, 0.9])
    for _ in range(4 * PART):
        if rng.random() < share or not model:
            key = f"{rng.randrange(10**6):x}"
            if key not in model:
                model.add(key)
                keys.add(key)
        else:
            key = rng.choice(sorted(model))
            model.remove(key)
            keys.remove(key)
        if rng.random() < 0.02:
            after = f"{rng.randrange(10**6):x}"
            assert list(keys.behind(after)) == sorted(one for one in model if one > after)
    assert list(keys.behind(None)) == sorted(model)
    for key in sorted(model):
        keys.remove(key)
    assert list(keys.behind(None)) == list(keys.behind("k")) == []


def test_a_page_compares_few_of_very_many() -> None:
    class Counted(str):
        """A key that counts how often it is compared."""

        __slots__ = ()
        compared = 0

        def __lt__(self, other: str) -> bool:
            Counted.compared += 1
            return str.__lt__(self, other)

    keys = SortedKeys()
    for number in range(100_000):
        keys.add(Counted(f"{number * 7919 % 100_003:06}"))
    Counted.compared = 0
    page = list(islice(keys.behind(Counted("050000")), 200))
    assert len(page) == 200
    assert page[0] > "050000"
    assert 0 < Counted.compared < 50
