"""How often a log looks for senders to forget before their time: `log.senders` alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from msgservice.limits import Limits
from msgservice.records import Known
from tests.kit.logs import Driver, make_batch

FEW = Limits(reserve_bytes=64 * 1024, keep_seconds=0, keep_bytes=0, incarnations=10)


@pytest.mark.parametrize("goodbye", [False, True], ids=["cut off", "goodbye"])
def test_5_a_crowd_whose_messages_wait_is_not_looked_through_for_each_that_comes(
    goodbye: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look costs as much as there are senders, and finds nobody while their messages wait."""
    log = Driver("memory", tmp_path, FEW).open()
    log.receivers(1)
    audience = log.log.audience([1])
    looked: list[int] = []
    senders = log.log._retention.senders
    forget = senders._forget

    def counted(seen_to: int, left: Sequence[int], count: int) -> bool:
        looked.append(count)
        return forget(seen_to, left, count)

    log.wait(log.log.retain(0))
    monkeypatch.setattr(senders, "_forget", counted)
    for second in range(1, 51):
        new = [f"s{second:02}-{number}" for number in range(10)]
        log.append(*[make_batch(audience, incarnation=name) for name in new])
        left = [("shop", name) for name in new] if goodbye else []
        while log.wait(log.log.retain(second * 1000, (), left)):
            pass
    away = [count + FEW.incarnations for count in looked]
    begin = 2 if goodbye else 11 * FEW.incarnations
    grown = [two / one for one, two in pairwise(away) if one >= begin]
    assert min(grown) >= 9 / 8
    state = log.log._store.state
    assert len(state.senders) + len(state.asleep) <= away[-1] * 9 / 8 + 10
    log.close()


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_5_memory_holds_who_is_here_and_few_of_those_that_are_away(
    kind: str, tmp_path: Path
) -> None:
    """A command in cron, a web request each: the file remembers them, memory has eight bytes."""
    limits = replace(FEW, keep_seconds=3600.0, keep_bytes=1 << 30)  # their messages stay
    log = Driver(kind, tmp_path, limits).open()
    audience = log.log.audience([])
    here = [("shop", "stays")]
    log.append(make_batch(audience, incarnation="stays"))
    names = [f"s{number:03}" for number in range(300)]
    for second in range(30):
        new = names[10 * second : 10 * second + 10]
        log.append(*[make_batch(audience, incarnation=name) for name in new])
        log.wait(log.log.retain(second * 1000, here))
        state = log.log._store.state
        assert len(state.senders) <= limits.incarnations + len(here)
        assert len(state.senders_by_id) == len(state.senders)
        assert here[0] in state.senders
    assert len(state.senders) + len(state.asleep) == len(names) + 1
    for name in names[:20]:
        (outcome,) = log.append(make_batch(audience, incarnation=name))
        assert isinstance(outcome, Known)
    assert len(state.senders) + len(state.asleep) == len(names) + 1
    for name in names[20:40]:
        assert log.resume("shop", name).floor == 2
    assert len(state.senders) + len(state.asleep) == len(names) + 1
    log.close()
