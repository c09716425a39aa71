"""A listener with a key for each user, and one user who attacks the others: as `make fuzz`."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.keys_stage import NODE, SHOP, Stage
from tests.fuzz.keys_target import run, seeds


@pytest.mark.parametrize("part", range(4))
def test_nobody_speaks_for_another_or_ends_its_session(part: int) -> None:
    for play in list(seeds())[part::4]:
        run(play)


@given(st.binary(max_size=200))
def test_no_play_of_a_user_against_the_others_breaks_what_must_be_so(play: bytes) -> None:
    run(play)


def test_a_key_that_was_taken_out_opens_nothing_though_its_holder_goes_on() -> None:
    stage = Stage()
    stage.say(SHOP, 1)
    stage.pass_all()
    stage.change(1)
    thief = stage.ghost(SHOP, 1)
    assert thief.number == 1
    thief.say(1)
    stage.pass_all()
    peer = thief.endpoint.peers[NODE]
    assert peer.session is None
    assert [b"shop"] == [body.partition(b":")[0] for body in stage.node.handled]
    stage.finish()
    assert 2 == len({body for body in stage.node.handled if body.startswith(b"shop")})
