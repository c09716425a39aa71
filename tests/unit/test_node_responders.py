"""Requests between peers of a node, seen from the node: DELIVERY 57.

Peers say exactly what a test has them say, so who is given what, and when, is seen frame by frame.
"""

from __future__ import annotations

from random import Random
from typing import Any

import msgspec
import pytest
from twisted.internet.task import Clock

from msgservice import errors
from msgservice.core.frames import BYE_SETTLED, Cancel, Reply, Request
from msgservice.errors import ERROR_HEADER
from msgservice.identity.rules import Rules
from msgservice.identity.users import User, Users
from msgservice.limits import INTEGER_MAX, Limits
from msgservice.log.memory import MemoryLog
from msgservice.message import WireMessage, decode_messages, encode_messages
from msgservice.node import responders
from msgservice.node.gate import Door
from tests.kit.nodes import FailingLog, NodeWorld, ScriptedPeer


def calls(number: int, subject: str, bodies: list[bytes], timeout: int = 30_000) -> Request:
    messages = encode_messages([WireMessage(body) for body in bodies])
    return Request(number, subject, msgspec.Raw(messages), timeout)


def ask(
    peer: ScriptedPeer, number: int, subject: str, *bodies: bytes, timeout: int = 30_000
) -> None:
    peer.connection.send(calls(number, subject, list(bodies), timeout))


def given(peer: ScriptedPeer) -> dict[int, bytes]:
    """The calls that came to a responder, by the node's numbers, taken out."""
    return {
        request.id + at: message.body
        for request in peer.take(Request)
        for at, message in enumerate(decode_messages(request.messages))
    }


def answer(peer: ScriptedPeer, *answers: tuple[int, bytes], ok: bool = True) -> None:
    said = [(n, ok, msgspec.Raw(msgspec.msgpack.encode([body]))) for n, body in answers]
    peer.connection.send(Reply(said))


def told(peer: ScriptedPeer) -> dict[int, bytes | int]:
    """What came to an asker, taken out: bodies, or codes of what its calls failed with."""
    found: dict[int, bytes | int] = {}
    for reply in peer.take(Reply):
        for number, ok, raw in reply.replies:
            assert number not in found, "answered twice"
            message = msgspec.msgpack.decode(raw, type=WireMessage)
            code = int((message.headers or {}).get(ERROR_HEADER, "0"))
            found[number] = message.body if ok else code
    return found


def settled(world: NodeWorld) -> None:
    """Nothing is left in the node of what was asked."""
    parts = world.node.parts.responders
    world.settle()
    assert 0 == parts.pending
    assert not parts._asked
    assert not parts._owed
    assert 0 == parts._runs
    for responder in parts._here:
        assert 0 == responder.pending
        assert not responder.runs
        assert not responder.queued


def test_57_a_call_is_given_to_who_answers_its_subject_and_answered_by_the_askers_number() -> None:
    world = NodeWorld()
    prices = world.peer("prices", respond=["prices.*"])
    world.peer("other", respond=["stock.>"])
    shop = world.peer("shop")
    ask(shop, 7, "prices.get", b"a", b"b", timeout=5000)
    world.settle()
    (request,) = prices.frames
    assert isinstance(request, Request)
    assert ("prices.get", 5000) == (request.subject, request.timeout)
    numbers = list(given(prices))
    answer(prices, (numbers[1], b"B"), (numbers[0], b"A"))
    world.settle()
    assert 1 == len(shop.frames)  # answers of one turn share a frame
    assert {7: b"A", 8: b"B"} == told(shop)
    settled(world)


def test_57_calls_on_different_subjects_are_shared_out_in_turn_as_well() -> None:
    world = NodeWorld(limits=Limits(subjects=2))  # as many are remembered
    workers = [world.peer(f"worker{n}", respond=["prices.*"]) for n in range(3)]
    world.peer("other", respond=["stock.*"])
    shop = world.peer("shop")
    for number in range(1, 10):
        ask(shop, number, f"prices.{number}", b"x")
        world.settle()
    calls_of = [given(worker) for worker in workers]
    assert [3, 3, 3] == [len(found) for found in calls_of]
    for worker, found in zip(workers, calls_of, strict=True):
        answer(worker, *[(number, b"y") for number in found])
    settled(world)


def test_57_turns_of_very_many_sets_of_responders_are_not_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(responders, "TURNS_MAX", 8)
    world = NodeWorld()
    for n in range(4):
        world.peer(f"worker{n}", respond=["all.*", f"all.{n}", f"one.{n}"])
    shop = world.peer("shop")
    for number, subject in enumerate([f"{kind}.{n}" for kind in ("all", "one") for n in range(4)]):
        ask(shop, number + 1, subject, b"x", timeout=1000)
    world.settle()
    parts = world.node.parts.responders
    assert sum(map(len, parts._among)) == parts._among_size <= 8
    world.settle(2)
    settled(world)


def test_57_what_the_node_alone_knows_no_responder_says() -> None:
    world = NodeWorld()
    worker, shop = world.peer("worker", respond=["a"]), world.peer("shop")
    kinds: list[type[errors.MsgServiceError]]
    kinds = [errors.NoResponder, errors.RequestTimeout, errors.ResponderLost, errors.Busy]
    for number, kind in enumerate(kinds, 1):
        ask(shop, number, "a", b"")
        world.settle()
        (call,) = given(worker)
        said = msgspec.msgpack.encode([b"so", {ERROR_HEADER: str(kind.refusal_code)}])
        worker.connection.send(Reply([(call, False, msgspec.Raw(said))]))
    world.settle()
    # Whoever takes no more calls says so itself.
    assert {1: 0, 2: 0, 3: 0, 4: errors.Busy.refusal_code} == told(shop)
    settled(world)


def test_57_nobody_answers_and_patterns_never_match_the_nodes_own() -> None:
    world = NodeWorld()
    shop, everything = world.peer("shop"), world.peer("all", respond=[">"])
    ask(shop, 1, "$node.info", b"{}")
    ask(shop, 2, "$other", b"")
    world.settle()
    found = told(shop)
    assert errors.NoResponder.refusal_code == found[2]
    assert isinstance(found[1], bytes)
    assert not everything.frames
    everything.connection.abort()
    world.settle()
    ask(shop, 3, "prices.get", b"")
    world.settle()
    assert {3: errors.NoResponder.refusal_code} == told(shop)
    settled(world)


@pytest.mark.parametrize(
    ("pattern", "code"),
    [
        ("$node.info", errors.BadSubject.wire_code),
        ("$node.>", errors.BadSubject.wire_code),
        ("a..b", errors.BadSubject.wire_code),
        (">.a", errors.BadSubject.wire_code),
    ],
)
def test_57_a_pattern_of_the_nodes_own_subjects_is_refused(pattern: str, code: int) -> None:
    world = NodeWorld()
    peer = world.peer("all", respond=["good", pattern])
    assert code == peer.connection.peer_error
    assert not len(world.node.parts.responders)


def test_57_a_wrong_subject_fails_that_request_alone() -> None:
    world = NodeWorld()
    shop = world.peer("shop")
    for number, subject in enumerate(["a..b", "a.*", "", "a b"], 1):
        ask(shop, number, subject, b"")
    world.settle()
    assert dict.fromkeys(range(1, 5), errors.BadSubject.refusal_code) == told(shop)
    assert shop.lost_because is None


def test_57_several_who_answer_are_asked_in_turn_and_a_frame_is_shared_among_them() -> None:
    world = NodeWorld()
    workers = [world.peer(f"w{n}", respond=["work"]) for n in range(3)]
    shop = world.peer("shop")
    for number in range(1, 7):
        ask(shop, number, "work", b"%d" % number)
        world.settle()
    assert [[b"1", b"4"], [b"2", b"5"], [b"3", b"6"]] == [
        list(given(worker).values()) for worker in workers
    ]
    ask(shop, 10, "work", *(b"%d" % n for n in range(10, 17)))
    world.settle()
    shared = [given(worker) for worker in workers]
    assert [3, 3, 1] == sorted(map(len, shared), reverse=True)
    for worker, part in zip(workers, shared, strict=True):
        answer(worker, *((number, body) for number, body in part.items()))
    world.settle()
    assert {n: b"%d" % n for n in range(10, 17)} == told(shop)


def test_57_who_has_as_many_as_it_takes_is_passed_over_and_all_busy_is_said_at_once() -> None:
    world = NodeWorld()
    one = world.peer("one", respond=["work"], requests=1)
    two = world.peer("two", respond=["work"], requests=2)
    shop = world.peer("shop")
    ask(shop, 1, "work", *[b"%d" % n for n in range(5)])
    world.settle()
    first = given(one)
    assert (1, 2) == (len(first), len(given(two)))
    assert {4: errors.Busy.refusal_code, 5: errors.Busy.refusal_code} == told(shop)
    answer(one, *first.items())
    world.settle()
    ask(shop, 6, "work", b"again")
    world.settle()
    assert [b"again"] == list(given(one).values())


def test_57_one_who_goes_before_it_was_written_to_is_asked_nothing_and_the_next_one_is() -> None:
    world = NodeWorld()
    one = world.peer("one", respond=["work"])
    two = world.peer("two", respond=["work"])
    shop = world.peer("shop")
    responders = world.node.parts.responders
    first = next(iter(responders._here))
    asked = calls(5, "work", [b"a"])
    peer = next(p for p in world.node.parts.connections.peers if p.name == "shop")
    assert peer._guest is not None
    responders.ask(peer, asked, peer._guest.allowed)
    assert first.queued  # given, and the turn is not over
    responders.lost(first)
    world.settle()
    assert not given(one)
    (number,) = given(two)
    answer(two, (number, b"done"))
    world.settle()
    assert {5: b"done"} == told(shop)
    settled(world)


def test_57_one_who_goes_afterwards_may_have_handled_it_and_nobody_else_is_asked() -> None:
    world = NodeWorld()
    one = world.peer("one", respond=["work"])
    shop = world.peer("shop")
    ask(shop, 1, "work", b"a", b"b", b"c")
    world.settle()
    two = world.peer("two", respond=["work"])
    numbers = list(given(one))
    answer(one, (numbers[1], b"B"))
    world.settle()
    assert {2: b"B"} == told(shop)
    one.connection.abort()
    world.settle()
    lost = errors.ResponderLost.refusal_code
    assert {1: lost, 3: lost} == told(shop)
    assert not given(two)
    settled(world)


def test_57_answers_late_twice_or_from_another_are_dropped_and_counted() -> None:
    world = NodeWorld()
    one, two = world.peer("one", respond=["a"]), world.peer("two", respond=["b"])
    silent = world.peer("silent")
    shop = world.peer("shop")
    ask(shop, 1, "a", b"", timeout=1000)
    world.settle()
    (number,) = given(one)
    answer(two, (number, b"not asked"))
    answer(silent, (number, b"answers nothing"))
    answer(one, (number + 1000, b"to nothing"))
    world.settle()
    parts = world.node.parts.responders
    assert (0, 2) == (parts.late, parts.stray)
    assert {} == told(shop)
    answer(one, (number, b"right"))
    world.settle()
    answer(one, (number, b"twice"))
    world.settle()
    assert {1: b"right"} == told(shop)
    assert (1, 2) == (parts.late, parts.stray)
    ask(shop, 2, "a", b"", timeout=1000)
    world.settle(1.1)
    (number,) = given(one)
    assert {2: errors.RequestTimeout.refusal_code} == told(shop)
    answer(one, (number, b"late"))
    world.settle()
    assert {} == told(shop)
    assert (2, 2) == (parts.late, parts.stray)
    assert shop.lost_because is one.lost_because is two.lost_because is None
    settled(world)


def test_57_an_asker_that_has_gone_leaves_nothing_and_its_answer_reaches_nobody() -> None:
    world = NodeWorld()
    one = world.peer("one", respond=["a"])
    shop, other = world.peer("shop"), world.peer("other")
    ask(shop, 1, "a", b"x")
    world.settle()
    shop.connection.abort()
    settled(world)
    again = world.peer("shop", incarnation="i2")
    (number,) = given(one)
    answer(one, (number, b"late"))
    world.settle()
    assert ({}, {}) == (told(other), told(again))
    assert 1 == world.node.parts.responders.late


def test_57_what_is_no_message_ends_who_said_it_and_nobody_else() -> None:
    world = NodeWorld()
    one = world.peer("one", respond=["a"])
    shop = world.peer("shop")
    ask(shop, 1, "a", b"x", b"y")
    world.settle()
    first, second = given(one)
    good = msgspec.Raw(msgspec.msgpack.encode([b"good"]))
    one.connection.send(Reply([(first, True, good), (second, True, msgspec.Raw(b"\x01"))]))
    world.settle()
    assert errors.MalformedFrame.wire_code == one.connection.peer_error
    assert {1: b"good", 2: errors.ResponderLost.refusal_code} == told(shop)
    shop.connection.send(Request(3, "a", msgspec.Raw(b"\x91\x01")))
    world.settle()
    assert errors.MalformedFrame.wire_code == shop.connection.peer_error


def test_57_frames_fit_who_gets_them_and_one_message_that_does_not_is_said() -> None:
    world = NodeWorld(Limits(max_batch=100_000))
    one = world.peer("one", respond=["a"], max_batch=4096)
    shop = world.peer("shop", max_batch=8192)
    ask(shop, 1, "a", *[b"x" * 1000] * 6, b"y" * 5000)
    world.settle()
    requests = [frame for frame in one.frames if isinstance(frame, Request)]
    assert all(len(bytes(request.messages)) <= 4096 for request in requests)
    numbers = list(given(one))
    assert 6 == len(numbers)
    assert {7: errors.MessageTooLarge.refusal_code} == told(shop)
    answer(one, *((number, b"z" * 3000) for number in numbers[:5]), (numbers[5], b"z" * 9000))
    world.settle()
    frames = shop.take(Reply)
    assert all(sum(len(raw) for _, _, raw in frame.replies) <= 8192 for frame in frames)
    shop.frames += frames
    found = told(shop)
    assert {b"z" * 3000} == {found[n] for n in range(1, 6)}
    assert errors.MessageTooLarge.refusal_code == found[6]
    settled(world)


def test_57_calls_are_bounded_for_one_asker_and_for_the_node() -> None:
    world = NodeWorld(Limits(requests=5, pending_requests=7))
    world.peer("one", respond=["a"])
    shop, other = world.peer("shop"), world.peer("other")
    ask(shop, 1, "a", *[b""] * 4)
    ask(shop, 5, "a", *[b""] * 2)
    world.settle()
    assert dict.fromkeys((5, 6), errors.LimitReached.refusal_code) == told(shop)
    ask(other, 1, "a", *[b""] * 4)
    world.settle()
    # `responding` and what a HELLO says bound one responder; the node has three places left.
    assert {2, 3, 4} >= set(found := told(other))
    assert set(found.values()) == {errors.Busy.refusal_code}


def test_57_what_others_answer_does_not_take_the_places_of_what_the_node_answers() -> None:
    world = NodeWorld(Limits(answering=2))
    world.peer("one", respond=["a"])
    shop = world.peer("shop")
    for number in range(1, 11):  # none of them is answered
        ask(shop, number, "a", b"")
        world.settle()
    ask(shop, 11, "$node.info", b"{}")
    world.settle()
    assert [11] == list(told(shop))


def test_57_who_says_goodbye_answers_what_it_has_and_gets_nothing_more() -> None:
    world = NodeWorld()
    one = world.peer("one", respond=["a"])
    shop = world.peer("shop")
    ask(shop, 1, "a", b"x")
    world.settle()
    one.connection.bye(BYE_SETTLED)
    ask(shop, 2, "a", b"y")
    world.settle()
    assert {2: errors.NoResponder.refusal_code} == told(shop)
    assert one.lost_because is None
    (number,) = given(one)
    answer(one, (number, b"X"))
    world.settle()
    assert {1: b"X"} == told(shop)
    assert one.lost_because is not None
    settled(world)


@pytest.mark.parametrize("ends", ["timeout", "asker"])
def test_57_who_says_goodbye_goes_when_nobody_waits_for_it_any_more(ends: str) -> None:
    world = NodeWorld()
    one = world.peer("one", respond=["a"])
    shop = world.peer("shop")
    ask(shop, 1, "a", b"x", timeout=2000)
    world.settle()
    one.connection.bye(BYE_SETTLED)
    world.settle()
    assert one.lost_because is None
    if ends == "asker":
        shop.connection.abort()
        world.settle()
    else:
        world.settle(2.1)
    assert one.lost_because is not None
    settled(world)


def test_57_a_peer_may_answer_itself_and_be_a_receiver_too() -> None:
    world = NodeWorld()
    both = world.peer("both", respond=["a"], receive={"subjects": ["a"]}, answering=True)
    ask(both, 1, "a", b"x")
    world.settle()
    (number,) = given(both)
    answer(both, (number, b"X"))
    world.settle()
    assert {1: b"X"} == told(both)
    world.peer("shop").transfer(1, "a", [b"message"])
    world.settle()
    ok, page = both.request("$node.receivers.list", {})
    assert (True, 0) == (ok, page["receivers"][0]["queued"])
    settled(world)


def users(**rules: Any) -> Users:
    return Users(
        [User(name=name, uids=(), rules=each) for name, each in rules.items()], secret=b"s" * 32
    )


def test_57_rights_are_asked_of_both_sides() -> None:
    world = NodeWorld(
        users=users(
            asker=Rules(request=["prices.>"]),
            worker=Rules(receive=["prices.*"]),
            nobody=Rules(send=[">"]),
        )
    )

    def door(user: str) -> Door:
        return Door(asks=False, user=user)

    worker = world.peer("worker", respond=["prices.get"], door=door("worker"))
    assert 1 == len(world.node.parts.responders)
    wide = world.peer("worker", incarnation="i2", respond=["prices.>"], door=door("worker"))
    assert errors.NotAllowed.wire_code == wide.connection.peer_error
    none = world.peer("nobody", respond=["prices.get"], door=door("nobody"))
    assert errors.NotAllowed.wire_code == none.connection.peer_error
    asker, nobody = (
        world.peer("asker", door=door("asker")),
        world.peer("nobody", door=door("nobody")),
    )
    ask(asker, 1, "prices.get", b"a")
    ask(asker, 2, "stock.get", b"a")
    ask(nobody, 1, "prices.get", b"b")
    world.settle()
    assert [b"a"] == list(given(worker).values())
    assert {2: errors.Forbidden.refusal_code} == told(asker)
    assert {1: errors.Forbidden.refusal_code} == told(nobody)


def test_57_too_many_patterns_find_no_room() -> None:
    world = NodeWorld(Limits(patterns=3, pattern_tokens=4))
    many = world.peer("many", respond=["a", "b", "c", "d"])
    assert errors.ConnectionLimit.wire_code == many.connection.peer_error
    world.peer("two", respond=["a.b", "c.d"])
    more = world.peer("more", respond=["e"])
    assert errors.ConnectionLimit.wire_code == more.connection.peer_error
    assert 1 == len(world.node.parts.responders)


def test_57_answers_that_are_not_read_go_beyond_no_window() -> None:
    world = NodeWorld(Limits(window_bytes=8192, max_batch=4096))
    one = world.peer("one", respond=["a"])
    shop = world.peer("shop")
    ask(shop, 1, "a", *[b""] * 20)
    world.settle()
    numbers = list(given(one))
    channel = shop.connection.channel
    assert channel is not None
    channel.pause()  # it does not read
    for number in numbers:
        answer(one, (number, b"x" * 2000))
        world.settle()
    assert one.lost_because is None
    channel.resume()
    world.settle()
    found = told(shop)
    assert set(range(1, 21)) == set(found)
    assert {b"x" * 2000, errors.LimitReached.refusal_code} == set(found.values())
    assert 4 <= sum(isinstance(each, bytes) for each in found.values()) <= 6
    settled(world)


def test_57_a_node_that_stops_leaves_no_timer_and_asks_nobody() -> None:
    world = NodeWorld()
    one = world.peer("one", respond=["a"])
    shop = world.peer("shop")
    ask(shop, 1, "a", b"x")
    world.settle()
    assert given(one)
    world.node.stopService()
    world.settle(20)
    assert shop.lost_because is not None
    assert one.lost_because is not None
    assert world.node.parts.responders._timer is None


# --- what nobody waits for any more


def give_up(peer: ScriptedPeer, *ranges: tuple[int, int]) -> None:
    peer.connection.send(Cancel([*ranges]))


def unwanted(peer: ScriptedPeer) -> list[tuple[int, int]]:
    """The calls that a responder heard nobody waits for, by the node's numbers, taken out."""
    return [each for frame in peer.take(Cancel) for each in frame.ranges]


LISTENS = ["cancel"]


def test_57_what_an_asker_gives_up_is_forgotten_at_once_and_a_late_answer_is_counted() -> None:
    world = NodeWorld()
    one, shop = world.peer("one", respond=["a"]), world.peer("shop")
    ask(shop, 1, "a", *(b"%d" % n for n in range(5)))
    world.settle()
    numbers = list(given(one))
    parts = world.node.parts.responders
    give_up(shop, (2, 2), (4, 5))
    world.settle()
    assert (2, 3) == (parts.pending, parts.given_up)
    answer(one, *((number, b"late") for number in numbers))
    world.settle()
    assert {1: b"late", 3: b"late"} == told(shop)
    assert (3, 0) == (parts.late, parts.stray)
    assert (3, 3) == (parts.counts().given_up, parts.counts().late)
    settled(world)


def test_57_what_is_given_up_makes_room_for_what_is_asked_behind_it() -> None:
    world = NodeWorld(Limits(requests=5))
    world.peer("one", respond=["a"])
    shop = world.peer("shop")
    for round_ in range(20):
        first = 10 * round_ + 1
        ask(shop, first, "a", *[b""] * 5)
        give_up(shop, (first, first + 4))
    ask(shop, 1000, "a", *[b""] * 5)
    ask(shop, 1005, "a", b"")
    world.settle()
    assert {1005: errors.LimitReached.refusal_code} == told(shop)
    assert 5 == world.node.parts.responders.pending


def test_57_what_is_given_up_before_it_was_written_is_withdrawn() -> None:
    world = NodeWorld()
    one = world.peer("one", respond=["a"], features=LISTENS)
    shop = world.peer("shop")
    ask(shop, 1, "a", *(b"%d" % n for n in range(1, 6)))
    ask(shop, 6, "a", b"6")
    give_up(shop, (1, 1), (3, 3), (6, 6))
    world.settle()
    assert [] == unwanted(one)
    asked = given(one)
    assert [b"2", b"4", b"5"] == list(asked.values())
    answer(one, *asked.items())
    world.settle()
    assert {2: b"2", 4: b"4", 5: b"5"} == told(shop)
    assert 0 == world.node.parts.responders.late
    settled(world)


def test_57_the_rest_of_what_was_not_written_goes_to_the_next_where_the_first_has_gone() -> None:
    world = NodeWorld()
    one = world.peer("one", respond=["a"])
    world.peer("shop")
    responders = world.node.parts.responders
    (first,) = responders._here
    peer = next(p for p in world.node.parts.connections.peers if p.name == "shop")
    assert peer._guest is not None
    responders.ask(peer, calls(1, "a", [b"1", b"2", b"3"]), peer._guest.allowed)
    assert 1 == responders.cancel(peer, [(2, 2)])  # and the turn is not over
    two = world.peer("two", respond=["a"])
    given(one)
    responders.ask(peer, calls(4, "a", [b"4", b"5", b"6", b"7"]), peer._guest.allowed)
    assert 2 == responders.cancel(peer, [(4, 4), (7, 7)])
    responders.lost(first)
    world.settle()
    assert not given(one)
    assert [b"5", b"6"] == sorted(given(two).values())


def test_57_who_was_asked_is_told_in_one_frame_ahead_of_what_it_is_asked_next() -> None:
    world = NodeWorld()
    one = world.peer("one", respond=["a"], requests=3, features=LISTENS)
    old = world.peer("old", respond=["b"])
    shop = world.peer("shop")
    ask(shop, 1, "a", b"1", b"2", b"3")
    ask(shop, 4, "b", b"4")
    world.settle()
    first, second, third = given(one)
    give_up(shop, (1, 1))
    give_up(shop, (3, 4))
    ask(shop, 5, "a", b"5", b"6")
    world.settle()
    cancel, request = one.frames
    assert Cancel([(first, first), (third, third)]) == cancel
    assert isinstance(request, Request)
    assert [b"5", b"6"] == list(given(one).values())
    assert [Request] == [type(frame) for frame in old.frames]  # it listens to no such thing
    assert {} == told(shop)
    answer(one, (second, b"B"))
    world.settle()
    assert {2: b"B"} == told(shop)


@pytest.mark.parametrize("ends", ["timeout", "gone"])
def test_57_who_was_asked_is_told_when_nobody_waits_any_more(ends: str) -> None:
    world = NodeWorld()
    one = world.peer("one", respond=["a"], features=LISTENS)
    shop = world.peer("shop")
    ask(shop, 1, "a", b"1", b"2", timeout=2000)
    world.settle()
    first, second = given(one)
    answer(one, (first, b"A"))
    world.settle()
    if ends == "gone":
        shop.connection.abort()
        world.settle()
    else:
        world.settle(2.1)
    assert [(second, second)] == unwanted(one)
    assert (ends == "gone") == world.node.parts.responders.given_up
    settled(world)


def test_57_a_goodbye_waits_for_nothing_that_was_given_up() -> None:
    world = NodeWorld()
    one = world.peer("one", respond=["a"])
    shop = world.peer("shop")
    ask(shop, 1, "a", b"1", b"2")
    world.settle()
    one.connection.bye(BYE_SETTLED)
    give_up(shop, (1, 1))
    world.settle()
    assert one.lost_because is None
    give_up(shop, (2, 2))
    world.settle()
    assert one.lost_because is not None
    settled(world)


@pytest.mark.parametrize(
    "ranges", [[(1, 1)], [(0, INTEGER_MAX)], [(4, INTEGER_MAX)], [(n, n) for n in range(1000)], []]
)
def test_57_nobody_gives_up_what_others_have_asked(ranges: list[tuple[int, int]]) -> None:
    world = NodeWorld()
    one = world.peer("one", respond=["a"], features=LISTENS)
    shop, thief = world.peer("shop"), world.peer("thief")
    ask(shop, 1, "a", b"1", b"2", b"3")
    ask(thief, 900, "a", b"own")
    world.settle()
    numbers = given(one)
    give_up(thief, *ranges)
    give_up(one, *ranges)  # nor who was asked: it has asked nothing
    give_up(thief, *ranges)
    world.settle()
    own = sum(low <= 900 <= high for low, high in ranges)
    assert 4 - own == world.node.parts.responders.pending
    assert own == len(unwanted(one))
    answer(one, *numbers.items())
    world.settle()
    assert {1: b"1", 2: b"2", 3: b"3"} == told(shop)
    assert ({} if own else {900: b"own"}) == told(thief)
    assert shop.lost_because is thief.lost_because is one.lost_because is None
    settled(world)


def test_57_a_cancel_that_contradicts_itself_ends_who_says_it_and_nobody_else() -> None:
    world = NodeWorld()
    one, shop, thief = world.peer("one", respond=["a"]), world.peer("shop"), world.peer("thief")
    ask(shop, 1, "a", b"x")
    world.settle()
    give_up(thief, (3, 2))
    world.settle()
    assert errors.MalformedFrame.wire_code == thief.connection.peer_error
    answer(one, *given(one).items())
    world.settle()
    assert {1: b"x"} == told(shop)


def test_57_what_the_node_itself_is_asked_and_given_up_takes_no_place_and_is_not_answered() -> None:
    clock, limits = Clock(), Limits(requests=3)
    log = FailingLog(MemoryLog(reactor=clock, limits=limits))
    world = NodeWorld(limits, log=log, clock=clock)
    shop = world.peer("shop")
    log.hold = True
    ask(
        shop,
        1,
        "$node.receivers.add",
        *(b'{"name": "%b", "subjects": ["a"]}' % n for n in (b"x", b"y")),
    )
    world.settle()
    assert {} == told(shop)
    give_up(shop, (0, 1))
    give_up(shop, (1, 1))  # again: it counts no second time
    ask(shop, 3, "a", b"", b"")
    ask(shop, 5, "a", *[b""] * 3)
    world.settle()
    nobody, limit = errors.NoResponder.refusal_code, errors.LimitReached.refusal_code
    assert {3: nobody, 4: nobody, 5: limit, 6: limit, 7: limit} == told(shop)
    log.release()
    world.settle()
    assert [2] == list(told(shop))
    assert {"x", "y"} == {outlet.name for outlet in world.node.parts.dispatch}  # it was done
    peer = next(p for p in world.node.parts.connections.peers if p.name == "shop")
    assert (0, 0, {}) == (peer._calls, peer._answering, peer._own)


class Book:
    """What is waited for, and what is at work, as a node with two askers and two workers has it."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.world = NodeWorld(Limits(requests=40))
        self.workers = [
            self.world.peer(f"w{n}", respond=["a"], features=LISTENS if n else None)
            for n in range(2)
        ]
        self.askers = [self.world.peer(f"shop{n}") for n in range(2)]
        self.waiting: dict[tuple[int, int], bytes] = {}  # by asker, and its number
        self.at_work: list[dict[int, bytes]] = [{}, {}]  # by the node's number
        self.next = [1, 1]

    def ask(self, who: int) -> None:
        room = 40 - sum(each == who for each, _ in self.waiting)
        count, first = min(self.random.randint(1, 12), room), self.next[who]
        if count:
            self.next[who] += count + self.random.randint(0, 3)
            bodies = {first + n: b"%d %d" % (who, first + n) for n in range(count)}
            ask(self.askers[who], first, "a", *bodies.values())
            self.waiting |= {(who, number): body for number, body in bodies.items()}

    def give_up(self, who: int) -> None:
        numbers = range(self.next[who] + 5)
        ends = sorted(self.random.sample(numbers, 2 * self.random.randint(1, 2)))
        ranges = [*zip(ends[::2], ends[1::2], strict=True)]
        give_up(self.askers[who], *ranges)
        for low, high in ranges:
            for number in range(low, high + 1):
                self.waiting.pop((who, number), None)

    def answer(self, at: int) -> None:
        work = self.at_work[at]
        done = self.random.sample(sorted(work), (len(work) + 1) // 2)
        answer(self.workers[at], *((number, work.pop(number)) for number in done))

    def settle(self) -> None:
        """Let all arrive: nothing is on its way any more, and all adds up."""
        self.world.settle()
        for worker, work in zip(self.workers, self.at_work, strict=True):
            frames, worker.frames = worker.frames, []
            for frame in frames:
                worker.frames = [frame]
                work |= given(worker)
                for low, high in unwanted(worker):
                    for number in range(low, high + 1):
                        del work[number]
        for who, asker in enumerate(self.askers):
            for number, body in told(asker).items():
                assert self.waiting.pop((who, number)) == body
        waited = sorted(self.waiting.values())
        quiet, listening = (sorted(work.values()) for work in self.at_work)
        assert set(waited) <= {*quiet, *listening}
        assert set(listening) <= set(waited)  # who listens has only what is waited for
        assert len(waited) == self.world.node.parts.responders.pending


@pytest.mark.parametrize("seed", range(20))
def test_57_whatever_is_asked_given_up_and_answered_in_any_order_adds_up(seed: int) -> None:
    book = Book(seed)
    for _ in range(60):
        for _ in range(book.random.randint(1, 4)):
            book.random.choice((book.ask, book.give_up))(book.random.randrange(2))
        book.settle()
        book.answer(book.random.randrange(2))
        book.settle()
    while any(book.at_work):
        for at in range(2):
            book.answer(at)
        book.settle()
    assert not book.waiting
    responders = book.world.node.parts.responders
    assert responders.given_up
    assert responders.late
    assert 0 == responders.stray
    settled(book.world)
