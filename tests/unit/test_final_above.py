"""What is final above an open message stays final, however its receiver comes, goes and comes."""

from __future__ import annotations

import msgspec
import pytest

from msgservice.core.backlog import Backlog
from msgservice.core.flight import Flight
from msgservice.core.frames import Ack, Transfer
from msgservice.core.refusal import Refusal
from msgservice.core.runs import Run
from msgservice.message import Action, decode_messages
from msgservice.records import Resume
from tests.kit.nodes import NodeWorld, ScriptedPeer

BODY = msgspec.msgpack.encode([[b"x"]])


def bodies(peer: ScriptedPeer) -> list[bytes]:
    return [m.body for one in peer.take(Transfer) for m in decode_messages(one.messages)]


@pytest.mark.parametrize("is_dead", [True, False])
def test_23_what_is_final_is_not_sent_again_behind_what_a_resume_settles(is_dead: bool) -> None:
    world = NodeWorld()
    shop = world.peer("shop", status_from=1)
    receive = {"subjects": [">"], "order": "none"}
    billing = world.peer("billing", receive=receive)
    shop.transfer(1, "a", [b"m1", b"m2", b"m3", b"m4", b"m5"])
    world.settle()
    (transfer,) = billing.take(Transfer)
    first = transfer.sequence
    billing.connection.send(Ack([(first + 2, first + 2)]))
    if is_dead:
        billing.nack(first + 4, first + 4, int(Action.DEAD), 0, "m5 is bad")
    else:
        billing.connection.send(Ack([(first + 4, first + 4)]))
    world.settle(1.0)
    for seconds in (1.0, 3.0):  # who was alone when it was lost waits twice as long
        billing.connection.abort()
        world.settle(40.0)  # so long that its backlog is unloaded
        resume = Resume(first, ((first, first + 2),))
        billing = world.peer("billing", receive=receive, resume=resume)
        world.settle(seconds)
        assert [b"m4"] == bodies(billing)
    billing.connection.send(Ack([(first + 3, first + 3)]))
    world.settle(1.0)
    assert [] == bodies(billing)


def test_20_a_message_tried_before_is_settled_while_a_letter_waits_though_no_order_is_kept() -> (
    None
):
    def run(sequence: int, lane: str | None) -> Run:
        return Run(sequence, 1, f"s.{lane}", lane, BODY, len(BODY), sequence - 1)

    def flight() -> Flight:
        return Flight(backlog, own_window=(100, 10**6), window=None, batch_max=10**6)

    backlog = Backlog(
        ordered=True, cursor=0, retry_delay=lambda tries: 1.0, max_attempts=20, keeps_letters=True
    )
    before = flight()
    for sequence, lane in ((1, "a"), (2, "b"), (3, "c")):
        backlog.offer(run(sequence, lane))
    before.take_transfers(0.0)
    before.receive_nack(2, 2, Refusal(Action.RETRY, "again"), 0, 0.0)
    before.receive_nack(1, 1, Refusal(Action.DEAD, "dead"), 0, 0.0)
    before.end(0.0, lost=False)
    backlog.unload()
    backlog.ordered = False
    after = flight()
    for sequence in (2, 3):
        backlog.offer(run(sequence, None))
    assert [2, 3] == [one.sequence for one in after.take_transfers(5.0)]
    after.receive_acks([(2, 2)])
    after.receive_acks([(3, 3)])
    assert 3 == backlog.cursor
