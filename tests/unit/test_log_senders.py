"""How often a log looks for senders to forget before their time: `log.senders` alone."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest

from msgservice.core.marks import SenderState
from msgservice.limits import Limits
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

    def counted(gone: Sequence[SenderState], count: int) -> bool:
        looked.append(count)
        return forget(gone, count)

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
    assert len(log.log._store.state.senders) <= away[-1] * 9 / 8 + 10
    log.close()
