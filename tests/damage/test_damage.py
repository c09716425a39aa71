"""Damage in drawn places is reported or harmless, and the looking does find what is not."""

from __future__ import annotations

from pathlib import Path
from random import Random

import apsw
import pytest

from msgservice.disk import guarded
from msgservice.disk.mark import Mark
from msgservice.disk.pages import PageSums
from msgservice.errors import LogDamaged
from msgservice.receiver.inbox.file import InboxFile
from tests.damage.damages import play
from tests.kit.simdisk import SimDisk
from tests.powerloss.histories import InboxLife

SEEDS = {"log": 4, "outbox": 3, "inbox": 3}  # `make damage` looks at 2,000 places


@pytest.mark.parametrize("kind", SEEDS)
def test_damage_is_reported_or_harmless(kind: str) -> None:
    findings = [finding for seed in range(SEEDS[kind]) for finding in play(kind, seed)]
    missed = [finding for finding in findings if finding.verdict in ("silent", "raw")]
    assert missed == []
    # The damage did hit something.
    assert any(finding.verdict == "reported" for finding in findings)


def test_an_outbox_without_its_mark_would_be_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    def blind(path: Path) -> Mark | None:
        return Mark("outbox", 0, 0, 0) if path.exists() else None

    monkeypatch.setattr(guarded, "read_mark", blind)
    findings = [finding for seed in range(6) for finding in play("outbox", seed)]
    assert any(finding.verdict == "silent" for finding in findings)


def test_an_inbox_without_its_mark_would_be_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(InboxFile, "_check_head", lambda *_: None)
    findings = [finding for seed in range(3) for finding in play("inbox", seed)]
    assert any(finding.verdict == "silent" for finding in findings)


@pytest.mark.parametrize(("kind", "seed"), [("log", 8), ("outbox", 43), ("inbox", 71)])
def test_pages_without_sums_would_be_silent(
    kind: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PageSums, "look", lambda _: False)
    assert any(finding.verdict == "silent" for finding in play(kind, seed))


def test_damage_reaches_write_ahead_logs_that_are_not_folded_in() -> None:
    findings = [finding for seed in range(4) for finding in play("log", seed)]
    found = {f.verdict for f in findings if "log.db-wal" in f.place and "restore" not in f.place}
    assert "reported" in found


def test_an_inbox_whose_id_is_unreadable_is_damaged(tmp_path: Path) -> None:
    random = Random(1)
    disk = SimDisk(tmp_path / "whole", random)
    life = InboxLife(random)
    life.begin(disk)
    life.driver.wait(life.file.close())
    db = apsw.Connection(str(disk.folder / "inbox.db"))
    db.execute("update msgservice_head set inbox = x'00'")
    db.close()
    left = {"inbox.db": (disk.folder / "inbox.db").read_bytes()}
    again = InboxLife(random)
    with pytest.raises(LogDamaged, match="the id of the inbox is unreadable"):
        again.begin(SimDisk(tmp_path / "damaged", random, left))
