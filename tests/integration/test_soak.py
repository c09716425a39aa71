"""A short soak of real processes, and its judge against ledgers that lie (RELIABILITY I1 to I9)."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.soak.judge import Evidence, audience_of, expects, lost, wrong
from tests.soak.points import Place, arm, every_point, find
from tests.soak.soak import ENOUGH, soak

KILLS = 4  # `make soak` does 200


def test_nothing_promised_is_lost_whoever_is_killed(tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    said: list[str] = [f"seed {seed}"]
    try:
        verdict = soak(tmp_path, KILLS, seed, said.append)
    except BaseException:
        print("\n".join(said))
        raise
    assert [] == verdict.found, said
    assert verdict.promised >= KILLS * ENOUGH


@pytest.mark.parametrize(
    "place",
    every_point().values(),
    ids=lambda place: f"{place[2]} {place[3]}",
)
def test_every_named_point_is_a_method_of_the_product(place: Place) -> None:
    _, _, method = find(place)
    assert callable(method)


@pytest.mark.parametrize("side", ["before", "after"])
def test_an_armed_point_ends_the_process_at_the_visit_it_was_given(
    side: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from msgservice.log.store import Store

    visits: list[str] = []
    monkeypatch.setattr(Store, "save", lambda self: visits.append("save"))
    arm(("msgservice.log.store", "Store", "save", side), 2, lambda: visits.append("died"))
    for _ in range(3):
        Store.save(object())  # type: ignore[arg-type]  # the stand-in above looks at nothing
    assert {"before": ["save", "died", "save", "save"], "after": ["save", "save", "died", "save"]}[
        side
    ] == visits


def ledgers() -> tuple[list[str], list[str], list[str]]:
    """Return what a producer and two receivers write where all is well, for numbers below 200."""
    numbers = range(1, 200)
    shop = [f"told {n}" for n in numbers]
    for n in numbers:
        states = " ".join(
            f"{name}={'ACKNOWLEDGED' if expects(name, n) else 'DEAD'}" for name in audience_of(n)
        )
        shop.append(f"final {n} {states}")
    dialled = ["life", *(f"handled shop {n} {n % 3}" for n in numbers)]
    udp = ["life", *(f"handled shop {n} {n % 3}" for n in numbers if expects("udp", n))]
    return shop, dialled, udp


def evidence_of(shop: list[str], dialled: list[str], udp: list[str]) -> Evidence:
    evidence = Evidence()
    evidence.read_producer("shop", shop)
    evidence.read_receiver("dialled", dialled)
    evidence.read_receiver("udp", udp)
    evidence.table = [("shop", n, n % 3) for n in range(1, 200) if expects("once", n)]
    return evidence


def test_the_judge_finds_nothing_where_all_is_well() -> None:
    evidence = evidence_of(*ledgers())
    assert [] == lost(evidence) + wrong(evidence)


def test_the_judge_finds_a_promised_message_that_never_came() -> None:
    shop, dialled, udp = ledgers()
    dialled.remove("handled shop 7 1")
    udp.remove("handled shop 9 0")
    evidence = evidence_of(shop, dialled, udp)
    evidence.table.remove(("shop", 10, 1))
    assert {
        "udp never got shop's 9",
        "once never got shop's 10",
        "dialled never got shop's 7",
    } == set(lost(evidence))


def test_the_judge_forgives_what_comes_again_in_another_life_but_not_in_the_same() -> None:
    shop, dialled, udp = ledgers()
    again = [*udp, "life", "handled shop 8 2"]
    assert [] == wrong(evidence_of(shop, dialled, again))
    twice = [*udp, "handled shop 199 1"]
    assert ["udp in life 0 has shop's 199 2 times"] == wrong(evidence_of(shop, dialled, twice))


def test_the_judge_finds_what_the_table_has_twice_out_of_order_or_by_mistake() -> None:
    evidence = evidence_of(*ledgers())
    evidence.table += [("shop", 5, 2), ("shop", 97, 1)]
    found = wrong(evidence)
    assert "once's table has shop's 5 2 times" in found
    assert "once handled shop's 97, which is not for it" in found
    assert any("lane 2 of shop out of order" in line for line in found)


def test_the_judge_finds_what_failed_within_a_process() -> None:
    evidence = evidence_of(*ledgers())
    evidence.read_output("node", "12:00 [msgservice.node#info] listening\n")
    assert [] == wrong(evidence)
    evidence.read_output("node", "12:00 [msgservice.connection#critical] it failed\n\tTraceback\n")
    evidence.read_output("udp", "Unhandled error in Deferred:\n")
    assert [
        "node printed: 12:00 [msgservice.connection#critical] it failed",
        "udp printed: Unhandled error in Deferred:",
    ] == wrong(evidence)


def test_the_judge_finds_a_final_state_that_is_not_true() -> None:
    shop, dialled, udp = ledgers()
    shop = [line.replace("udp=DEAD", "udp=ACKNOWLEDGED") for line in shop]
    shop.append("failed 3 it broke")
    found = wrong(evidence_of(shop, dialled, udp))
    assert "shop: failed 3 it broke" in found
    assert any("shop's 97 was told" in line for line in found)
