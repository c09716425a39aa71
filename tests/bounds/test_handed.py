"""A run whose messages are dead, each for a reason of its own, is told of in short turns."""

from __future__ import annotations

from msgservice.client.handed import AudienceNames, HandedRun, Piece
from msgservice.client.receipt import Wait
from msgservice.client.runs import HandedRuns
from msgservice.errors import NotDelivered
from msgservice.message import Status
from tests.bounds.meter import Meter

COUNT = 4096  # messages that a run may have


def test_a_run_of_which_each_message_is_dead_for_a_reason_of_its_own() -> None:
    runs, run = HandedRuns(), HandedRun("s", COUNT, None)
    runs.add(run, 1)
    run.routed(Piece(1, COUNT, 1 << 16, AudienceNames(["r"])))
    run.accepted(1, COUNT)
    failed: dict[int, str] = {}
    for number in range(1, COUNT + 1):

        def note(failure: object, number: int = number) -> None:
            failed[number] = str(failure)

        run.watch(Wait.ACKNOWLEDGED, number, number).addErrback(note)
    for number in range(COUNT, 0, -1):  # in whatever order they come
        runs.receive_status("r", Status.DEAD, [(number, number)], f"reason {number}.")
    told, asked = Meter(), Meter()
    with told.turn("told"):
        runs.tell_news()
    with asked.turn("asked"):
        assert {"r": {Status.DEAD: COUNT}} == run.counts()
    assert COUNT == len(failed)
    assert all(f"reason {number}." in why for number, why in failed.items())
    assert NotDelivered.__name__ in failed[1]
