"""Streams with a node: rules 5.1 to 5.9 on a real node with a log in memory, and decision 24."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from msgservice.errors import BadValue
from msgservice.faces.streams import StreamLimits, StreamServer
from msgservice.faces.streams.durable import BEHIND_PART, NodeStreams, key_of, subject_of
from msgservice.identity.rules import Rules
from msgservice.identity.users import User, Users
from msgservice.limits import Limits
from msgservice.log import queries
from msgservice.log.memory import MemoryLog
from msgservice.receiver.receiver import Receiver
from tests.kit.nodes import FailingLog, NodeWorld, state_of
from tests.kit.passes import users_of
from tests.kit.streams_world import Endpoint, Peer, Reactor, puts

KEYS = ["k", "a.b", "a b", " ", "*", ">", "new\nline", "", "%", "%41", "\0", "é𝄞", "a/b", "$node"]


class World:
    """A node, its streams behind a port, and their clock."""

    def __init__(
        self,
        limits: Limits | None = None,
        stream_limits: StreamLimits | None = None,
        users: Users | None = None,
    ) -> None:
        self._acts_for = {"principal": "board", "name": "board.streams"} if users else {}
        self.reactor = Reactor()
        limits = Limits() if limits is None else limits
        self.log = FailingLog(MemoryLog(reactor=self.reactor, limits=limits))
        self.nodes = NodeWorld(limits=limits, log=self.log, clock=self.reactor, users=users)
        self._limits = stream_limits
        self._peers = 0
        self.start()

    def start(self) -> None:
        self._endpoint = Endpoint()
        self.streams = NodeStreams(self.reactor, self.nodes.node, **self._acts_for)
        self.server = StreamServer(
            self.reactor,
            self.streams,
            listen=self._endpoint,
            limits=self._limits or StreamLimits(listener_bytes=BEHIND_PART * 20_000),
        )
        self.server.startService()
        self.settle()

    def settle(self, seconds: float = 0.5) -> None:
        self.nodes.settle(seconds)

    def peer(self) -> Peer:
        self._peers += 1
        return Peer(self._endpoint.factory, number=self._peers)

    def listener(self, key: str = "k", **more: Any) -> Peer:
        peer = self.peer()
        listen(peer, key, **more)
        self.settle()
        return peer

    def put(self, *messages: Any, key: str = "k") -> None:
        peer = self.peer()
        for message in messages:
            peer.say("put", key, message=message)
        self.settle()
        peer.leave()

    def stop(self) -> None:
        stopped = self.server.stopService()
        self.settle(70)
        assert stopped.called

    def again(self) -> None:
        """Stop the server and the node, and start both anew on the log that is there."""
        self.stop()
        ended: Deferred[None] = self.nodes.node.stopService()
        self.settle(20)
        assert ended.called
        self.nodes.node.startService()
        self.settle()
        self.start()


NOW: dict[str, Any] = {"from": None}  # from now on, with tokens


def listen(peer: Peer, key: str = "k", **more: Any) -> None:
    peer.say("listen", key, **more)


def closed(reason: str, key: str = "k") -> list[dict[str, Any]]:
    return [{"action": "close", "stream": key, "reason": reason}]


def read_all(world: World, peer: Peer) -> list[dict[str, Any]]:
    """Read until nothing more comes."""
    found: list[dict[str, Any]] = []
    while lines := peer.lines():
        found += lines
        world.settle()
    return found


# --- what is put is stored first


def test_decision_24_a_line_reaches_listeners_only_after_its_commit() -> None:
    world = World()
    listener = world.listener()
    world.put("first")  # the receiver is known from here on
    assert listener.messages() == ["first"]
    world.log.hold = True
    world.peer().say("put", "k", message="second")
    world.settle()
    assert listener.lines() == []
    world.log.release()
    world.settle()
    assert listener.messages() == ["second"]


def test_decision_24_the_lines_of_one_read_are_one_batch() -> None:
    world = World()
    world.put("first")
    peer = world.peer()
    peer.send(b"".join(b'{"action":"put","stream":"k","message":%d}\n' % n for n in range(50)))
    world.settle()
    found: list[Any] = []
    world.log.of_stream("streams.k", None, 1_000_000).addCallback(found.append)
    world.settle()
    assert [batch.count for batch in found[0].batches] == [1, 50]


def test_the_very_first_lines_are_stored_in_their_order_though_the_receiver_is_new() -> None:
    world = World()
    listener, peers = world.listener(), [world.peer() for _ in range(3)]
    for number in range(10):
        for name, peer in enumerate(peers):
            peer.say("put", "k", message=[name, number])
    world.settle()
    told = listener.messages()
    for name in range(3):
        assert [number for one, number in told if one == name] == list(range(10))


def test_what_a_client_of_the_node_sends_to_a_stream_is_put_there() -> None:
    world = World()
    listener = world.listener()
    client = world.nodes.node.client("shop")
    client.send("streams.k", {"a": 1})
    client.send("streams.k.more", {"b": 1})  # no key has such a subject
    client.send("streams.k", b"not JSON")
    client.send("streams.k", b"2")
    world.settle()
    assert listener.messages() == [{"a": 1}, 2]
    client.close()
    world.settle()


def test_a_client_ends_a_stream_by_a_header_that_says_so_and_by_no_other() -> None:
    world = World()
    listener = world.listener(**NOW)
    client = world.nodes.node.client("shop")
    client.send("streams.k", {"a": 1}, headers={"stream": "video"})
    client.send("streams.k", b"", headers={"stream": "close"})
    client.send("streams.k", {"a": 2})
    world.settle()
    lines = listener.lines()
    assert puts(lines) == [("k", {"a": 1}), ("k", "close")]
    client.send("streams.l", {"b": 1}, headers={"stream": "CLOSE"})
    world.settle()
    resumed = world.listener("l", **{"from": lines[0]["token"]})
    assert resumed.messages() == [{"b": 1}]
    client.close()
    world.settle()


def test_decision_19_a_message_that_makes_too_long_a_line_is_left_out_and_logged(
    logged: list[Any],
) -> None:
    world = World(stream_limits=StreamLimits(line_bytes=1_000))
    listener = world.listener(**NOW)
    client = world.nodes.node.client("shop")
    client.send("streams.k", {"a": 1})
    client.send("streams.k", {"a": "x" * 2_000})
    client.send("streams.k", {"h": "x" * 2_000}, retain="only")
    client.send("streams.k", {"a": 2})
    world.settle()
    lines = listener.lines()
    assert [line["message"] for line in lines] == [{"a": 1}, {"a": 2}]
    assert world.listener().messages() == []
    resumed = world.listener(**{"from": lines[0]["token"]})
    assert resumed.messages() == [{"a": 2}]
    world.settle(11)
    first, others = [event for event in logged if "left out" in event["log_format"]]
    assert "line_bytes = 1000" in first["why"]
    assert others["count"] == 2
    client.close()
    world.settle()


# --- 5.1: listeners are cursors


def test_of_many_messages_that_no_line_can_say_the_log_has_few_lines(logged: list[Any]) -> None:
    world = World()
    shop = world.nodes.peer("shop")
    listener = world.listener("k")
    for number in range(1, 301):
        shop.transfer(number, "streams.k", [b"no JSON"])
    world.settle()
    for _ in range(5):
        world.listener("k", **{"from": f"{world.nodes.log.log_id}:0"})
    world.settle(30)
    assert [] == listener.lines()
    found = [event for event in logged if "left out" in event["log_format"]]
    assert 2 == len(found)
    assert 6 * 300 - 1 == found[1]["count"]


def test_rule_5_1_a_receiver_that_somebody_removes_is_made_again_and_nothing_is_missed() -> None:
    world = World()
    listener, asked = world.listener(), world.listener(**NOW)
    world.put(0)
    slow = world.listener()
    slow.is_reading = False
    world.put(*[[n, "x" * 1_000] for n in range(100)])
    Deferred.fromCoroutine(world.nodes.node.parts.operations.remove("streams"))
    world.nodes.settle(0.1)
    client = world.nodes.node.client("shop")
    client.send("streams.k", {"while": "away"})
    world.nodes.settle(0.1)
    world.settle(3)
    world.put("after")
    expected = [{"while": "away"}, "after"]
    assert listener.messages()[101:] == asked.messages()[101:] == expected
    assert [line["message"] for line in read_all(world, slow)][100:] == expected
    assert state_of(world.nodes, "streams").subjects == ("streams.>",)
    client.close()
    world.settle()


@pytest.mark.parametrize("action", ["listen", "list", "hangup"])
def test_rule_5_2_what_a_removed_receiver_never_gets_is_not_waited_for(action: str) -> None:
    world = World()
    world.put(0)
    receivers = world.nodes.node.parts.receivers
    for act in (lambda: receivers.pause("streams", paused=True), None):
        if act is not None:
            Deferred.fromCoroutine(act())
        world.settle()
    peer, listener = world.peer(), world.listener("k", **NOW)
    peer.say("put", "k", message=1)
    peer.say(action, "k" if action == "listen" else None)
    peer.say("put", "k", message=2)
    world.settle(3)
    Deferred.fromCoroutine(receivers.remove("streams"))
    world.settle(5)
    assert [1, 2] == [line["message"] for line in listener.lines()]


def test_rule_5_1_a_hundred_listeners_are_one_receiver_of_the_node() -> None:
    world = World()
    peers = [world.peer() for _ in range(100)]
    for peer in peers:
        listen(peer)
    world.put(1, 2)
    assert all(peer.messages() == [1, 2] for peer in peers)
    found: list[Any] = []
    asked = Deferred.fromCoroutine(world.nodes.node.parts.operations.receivers("", 1000))
    asked.addCallback(found.append)
    world.settle()
    assert [state.name for state in found[0][0]] == ["streams"]
    state = state_of(world.nodes, "streams")
    assert state.subjects == ("streams.>",)
    assert state.queued == 0


def test_rule_5_9_streams_are_listed_with_listeners_and_how_many_are_behind() -> None:
    world = World()
    slow, _ = world.listener("k"), world.listener("k")
    world.listener("l")
    slow.is_reading = False
    world.put(*["x" * 1_000] * 200)
    assert sorted(one[:3] for one in world.server.streams()) == [("k", 2, 1), ("l", 1, 0)]
    slow.is_reading = True
    slow.read()
    world.settle()
    assert sorted(one[:3] for one in world.server.streams()) == [("k", 2, 0), ("l", 1, 0)]


def test_rule_5_9_who_listens_is_listed_with_how_long_it_is_behind() -> None:
    world = World()
    slow, _ = world.listener("k"), world.listener("k")
    slow.is_reading = False
    world.put(*["x" * 1_000] * 200)
    world.settle(5)
    first, second = world.server.listeners("k")
    assert (first.peer, second.lag) == (slow.protocol.peer, 0.0)
    assert 5 <= first.lag <= 10
    assert first.waiting == slow.protocol.waiting_bytes > 0
    read_all(world, slow)
    assert [one.lag for one in world.server.listeners("k")] == [0.0, 0.0]


# --- 5.2: one order, of lines of one connection too


@pytest.mark.parametrize("seed", range(12))
def test_rule_5_2_no_gap_and_no_duplicate_while_listeners_join_resume_and_read_slowly(
    seed: int,
) -> None:
    rng = random.Random(seed)
    world = World()
    publisher = world.peer()
    sent = 0
    size = 400 if seed % 2 else 1
    live: list[tuple[Peer, list[int]]] = []
    tokens: list[tuple[str, list[int]]] = []  # where somebody was when the connection was lost

    def take(peer: Peer, had: list[int]) -> str | None:
        token: str | None = None
        for line in peer.lines():
            assert line["action"] == "put"
            number = line["message"][0]
            assert not had or number == had[-1] + 1, (had[-5:], number)
            had.append(number)
            token = line["token"]
        return token

    for _ in range(250):
        match rng.randrange(8):
            case 0:
                peer = world.peer()
                peer.is_reading = rng.random() < 0.3
                listen(peer, **NOW)
                live.append((peer, []))
            case 1 if tokens:
                token, had = tokens.pop(rng.randrange(len(tokens)))
                peer = world.peer()
                peer.is_reading = rng.random() < 0.3
                listen(peer, **{"from": token})
                live.append((peer, had))
            case 2 if live:
                peer, had = live.pop(rng.randrange(len(live)))
                last = take(peer, had)
                peer.leave()
                if last is not None:
                    tokens.append((last, had))
            case 3:
                world.nodes.settle()
            case _:
                for _ in range(rng.randint(1, 20)):
                    publisher.say("put", "k", message=[sent, "x" * size])
                    sent += 1
    world.settle()
    for token, had in tokens:
        peer = world.peer()
        listen(peer, **{"from": token})
        live.append((peer, had))
    world.settle()
    seen = 0
    for peer, had in live:
        take(peer, had)
        for _ in range(100):
            world.nodes.settle()
            take(peer, had)
        if had:
            assert had[-1] == sent - 1
            seen += len(had)
    assert seen > 200
    assert tokens


def test_rule_5_2_a_listen_takes_effect_behind_what_its_connection_has_put() -> None:
    world = World()
    peer = world.peer()
    peer.say("put", "k", message="before")
    peer.say("listen", "k")
    peer.say("put", "k", message="after")
    world.settle()
    assert peer.messages() == ["after"]


def test_rule_5_2_hangup_and_close_take_effect_behind_what_their_connection_has_put() -> None:
    world = World()
    peer = world.listener()
    peer.say("put", "k", message=1)
    peer.say("hangup", "k")
    peer.say("put", "k", message=2)
    world.settle()
    assert peer.messages() == [1]
    peer.say("listen", "k")
    peer.say("put", "k", message=3)
    peer.say("close", None)
    world.settle()
    assert peer.messages() == [3]
    assert peer.is_lost


# --- 5.3: ends are stored; headers are not built


@pytest.mark.parametrize("action", ["close", "delete"])
def test_rule_5_3_an_end_is_stored_behind_the_puts_before_it(action: str) -> None:
    world = World()
    resumes = world.listener(**NOW)
    world.put(0)
    (line,) = resumes.lines()
    resumes.leave()
    live = world.listener()
    peer = world.peer()
    peer.say("put", "k", message=1)
    peer.say(action, "k")
    peer.say("put", "k", message="later")
    world.settle()
    assert puts(live.lines()) == [("k", 1), ("k", "close")]
    late = world.listener(**{"from": line["token"]})
    told = late.lines()
    assert puts(told) == [("k", 1), ("k", "close")]
    assert "reason" not in told[-1]
    assert puts(world.listener(**{"from": told[-1]["token"]}).lines()) == [("k", "later")]


def set_header(world: World, header: Any, key: str = "k") -> None:
    peer = world.peer()
    peer.say("header", key, message=header)
    world.settle()
    assert not peer.is_lost
    peer.leave()


def test_rule_5_3_who_listens_gets_the_header_first_and_then_what_is_put() -> None:
    world = World()
    early = world.listener()
    set_header(world, {"k": 3})
    world.put("one")
    late, other = world.listener(), world.listener("l")
    world.put("two")
    set_header(world, {"k": 4})
    assert early.messages() == ["one", "two"]  # they who listen are told nothing of headers
    assert late.messages() == [{"k": 3}, "two"]
    assert other.messages() == []
    assert world.listener().messages() == [{"k": 4}]


def test_decision_11_to_listen_twice_is_to_listen_once_and_the_header_comes_once() -> None:
    world = World()
    set_header(world, "header")
    peer = world.listener()
    listen(peer)
    world.settle()
    world.put(1)
    assert peer.messages() == ["header", 1]
    assert world.server.streams() == [("k", 1, 0, 0.0)]


def test_rule_5_3_a_header_is_there_after_a_restart_and_delivered_to_nobody() -> None:
    world = World()
    set_header(world, "header")
    world.again()
    assert world.listener().messages() == ["header"]


@pytest.mark.parametrize("message", [{"message": None}, {}])
def test_decision_5_a_header_that_is_null_or_none_is_no_header(message: dict[str, Any]) -> None:
    world = World()
    set_header(world, "header")
    world.peer().say("header", "k", **message)
    world.settle()
    assert world.listener().messages() == []


def test_rule_5_3_delete_forgets_the_header_and_close_keeps_it() -> None:
    world = World()
    set_header(world, "header")
    listener = world.listener()
    for action, left in (("close", ["header"]), ("delete", [])):
        world.peer().say(action, "k")
        world.settle()
        listener = world.listener()
        assert listener.messages() == left
    world.put(1)
    assert listener.messages() == [1]


def test_rule_5_3_a_header_has_the_token_from_which_all_that_follows_comes() -> None:
    world = World()
    world.put("before")
    set_header(world, "header")
    (line,) = world.listener(**NOW).lines()
    assert line["message"] == "header"
    world.put("behind")
    set_header(world, "another")  # who resumes gets what was put, and no header
    resumed = world.listener(**{"from": line["token"]})
    assert resumed.messages() == ["behind"]


def test_rule_5_2_what_is_put_while_a_header_is_read_comes_once_and_behind_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World()
    set_header(world, "header")
    world.put("before")
    asked: list[Deferred[None]] = []
    read = world.log.stream_header

    def late(subject: str) -> Any:
        found = read(subject)  # as of now, and told later
        asked.append(Deferred())
        return asked[-1].addCallback(lambda _: found)

    monkeypatch.setattr(world.log, "stream_header", late, raising=False)
    listener = world.listener()
    assert world.server.streams() == []  # it does not listen yet
    world.put("one", "two")
    asked[0].callback(None)
    world.settle()
    assert world.server.streams() == [("k", 1, 0, 0.0)]
    world.put("three")
    assert listener.messages() == ["header", "one", "two", "three"]


def test_rule_5_2_what_was_put_before_a_header_is_read_is_in_its_past(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World()
    world.put("before")
    reads, told = Deferred[None](), Deferred[None]()
    read = world.log.stream_header

    def late(subject: str) -> Any:
        found = reads.addCallback(lambda _: read(subject))
        return told.addCallback(lambda _: found)

    monkeypatch.setattr(world.log, "stream_header", late, raising=False)
    listener = world.listener()
    world.put("one")
    set_header(world, "header")
    reads.callback(None)
    world.settle()
    world.put("two")  # behind the header, so it is looked for from there
    told.callback(None)
    world.settle()
    assert listener.messages() == ["header", "two"]


def test_rule_5_2_what_the_receiver_has_not_handed_on_before_the_header_is_read_is_before_it() -> (
    None
):
    world = World()
    world.put("before")
    set_header(world, "header")
    peer = world.peer()
    peer.send(
        b'{"action":"put","stream":"k","message":1}\n{"action":"header","stream":"k","message":2}\n'
        b'{"action":"listen","stream":"k"}\n{"action":"put","stream":"k","message":3}\n'
    )
    world.settle()
    assert peer.messages() == [2, 3]


def test_rule_5_3_a_header_that_has_expired_is_none() -> None:
    world = World()
    client = world.nodes.node.client("shop")
    client.send("streams.k", {"k": 3}, retain="only", ttl=10)
    world.settle()
    assert world.listener().messages() == [{"k": 3}]
    world.settle(20)
    assert world.listener().messages() == []


def test_rule_5_9_a_header_with_a_ttl_is_none_when_that_is_over() -> None:
    world = World()
    world.peer().say("header", "k", message={"k": 3}, ttl=10)
    world.peer().say("header", "k", ttl=10)
    world.peer().say("header", "l", message={"l": 3}, ttl=10)
    world.settle()
    assert world.listener("l").messages() == [{"l": 3}]
    world.settle(20)
    assert world.listener("l").messages() == []
    world.settle(60)
    left: list[Any] = []
    world.log.retained("", 10).addCallback(left.append)
    world.settle()
    assert left == [[]]


# --- 5.4: tokens


def test_rule_5_4_tokens_are_in_the_lines_of_those_who_asked_and_go_on_from_there() -> None:
    world = World()
    plain, asked = world.listener(), world.listener(**NOW)
    world.put("a", "b", "c")
    assert all(line.keys() == {"action", "stream", "message"} for line in plain.lines())
    lines = asked.lines()
    assert [line["message"] for line in lines] == ["a", "b", "c"]
    log_id = world.nodes.node.log_id
    assert all(line["token"].startswith(f"{log_id}:") for line in lines)
    for number, line in enumerate(lines):
        peer = world.listener(**{"from": line["token"]})
        assert [one["message"] for one in peer.lines()] == ["b", "c"][number:]
        world.settle()
        peer.leave()
    resumed = world.listener(**{"from": lines[2]["token"]})
    world.put("d")
    assert puts(resumed.lines()) == [("k", "d")]


def test_rule_5_4_tokens_are_good_after_a_restart() -> None:
    world = World()
    listener = world.listener(**NOW)
    world.put(1)
    (line,) = listener.lines()
    world.put(2)
    world.again()
    world.put(3)
    resumed = world.listener(**{"from": line["token"]})
    world.put(4)
    assert puts(resumed.lines()) == [("k", 2), ("k", 3), ("k", 4)]


@pytest.mark.parametrize(
    "token", ["", "x", "{id}", "{id}:", "{id}:x", "{id}:-1", "{id}:1.0", "{id}:٣", "0" * 32 + ":1",
              "{id}:99999999999999", "{id}:" + "9" * 19, "{id}:" + "9" * 5_000, "\n", "{id} :1"]
)  # fmt: skip
def test_rule_5_4_a_token_that_is_foreign_or_of_the_future_is_a_gap(token: str) -> None:
    world = World()
    world.put(1)
    token = token.replace("{id}", world.nodes.node.log_id)
    peer = world.listener(**{"from": token})
    assert peer.lines() == closed("gap")
    world.put(2)
    assert peer.lines() == []
    listen(peer)
    world.put(3)
    assert peer.messages() == [3]


KEEP_NOTHING = Limits(keep_seconds=0, keep_bytes=0, reserve_bytes=64 * 1024)


def test_rule_5_4_a_token_older_than_what_is_kept_is_a_gap() -> None:
    world = World(KEEP_NOTHING)
    listener = world.listener(**NOW)
    world.put(1)
    (line,) = listener.lines()
    world.put(2)
    world.put(3)
    world.settle(10)
    assert world.listener(**{"from": line["token"]}).lines() == closed("gap")


def test_rule_5_4_a_token_in_the_midst_of_a_batch_that_has_gone_is_a_gap() -> None:
    world = World(KEEP_NOTHING)
    listener = world.listener(**NOW)
    world.put(0)
    peer = world.peer()
    peer.send(b"".join(b'{"action":"put","stream":"k","message":%d}\n' % n for n in range(50)))
    world.settle()
    lines = listener.lines()
    assert [line["message"] for line in lines] == [0, *range(50)]
    world.settle(10)
    assert world.listener(**{"from": lines[10]["token"]}).lines() == closed("gap")


def test_rule_5_4_what_was_put_behind_many_headers_is_not_missed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(queries, "PAGE_ROWS", 5)
    world = World()
    listener = world.listener(**NOW)
    world.put("before")
    (line,) = listener.lines()
    for number in range(12):
        set_header(world, number)
    world.put("behind")
    resumed = world.listener(**{"from": line["token"]})
    world.put("last")
    assert resumed.messages() == ["behind", "last"]


def test_rule_5_1_who_resumes_gets_what_who_listened_got_and_nothing_for_others() -> None:
    world = World()
    other = Receiver(world.reactor, name="other", handler=lambda message: None)
    world.nodes.node.attach(other, ["orders.>"])
    listener = world.listener(**NOW)
    world.put("before")
    (line,) = listener.lines()
    client = world.nodes.node.client("shop")
    client.send("streams.k", {"for": "other"}, to=["other"])
    client.send("streams.k", {"for": "all"}, ttl=60)
    world.settle()
    assert listener.messages() == [{"for": "all"}]
    resumed = world.listener(**{"from": line["token"]})
    assert resumed.messages() == [{"for": "all"}]
    world.settle(100)
    world.put("after")
    resumed = world.listener(**{"from": line["token"]})
    assert resumed.messages() == ["after"]  # the other has expired
    client.close()
    other.stop()
    world.settle()


# --- 5.5: who is slow


def test_rule_5_5_and_decision_14_a_slow_listener_pages_from_the_log_and_nothing_waits() -> None:
    world = World()
    slow, fast = world.listener(), world.listener()
    slow.is_reading = False
    for start in range(0, 2_000, 100):
        world.put(*[[number, "x" * 1_000] for number in range(start, start + 100)])
        assert world.server.held_bytes < 200_000
    assert [number for number, _ in fast.messages()] == list(range(2_000))
    slow.is_reading = False
    told = read_all(world, slow)
    assert [line["message"][0] for line in told] == list(range(2_000))
    world.put([2_000, ""])
    assert [line["message"][0] for line in read_all(world, slow)] == [2_000]


def test_rule_5_5_who_is_a_little_behind_is_served_from_memory_that_all_share() -> None:
    world = World(stream_limits=StreamLimits())
    slow = [world.listener() for _ in range(20)]
    for peer in slow:
        peer.is_reading = False
    world.put(*[[number, "x" * 1_000] for number in range(1_000)])
    assert world.server.streams() == [("k", 20, 0, 0.0)]
    assert 900_000 < world.server.held_bytes < 1_200_000
    for peer in slow:
        assert [line["message"][0] for line in read_all(world, peer)] == list(range(1_000))
    assert world.server.held_bytes == 0


def test_rule_5_5_a_slow_listener_pins_nothing_and_is_told_of_the_gap() -> None:
    world = World(KEEP_NOTHING)
    slow = world.listener()
    slow.is_reading = False
    for start in range(0, 400, 50):
        world.put(*[[number, "x" * 1_000] for number in range(start, start + 50)])
        world.settle(3)
    world.settle(20)
    told = read_all(world, slow)
    had = [line["message"][0] for line in told[:-1]]
    assert had == list(range(len(had)))
    assert len(had) < 400
    assert told[-1:] == closed("gap")


def test_rule_5_5_one_that_resumes_many_streams_is_given_them_one_after_the_other() -> None:
    world = World(stream_limits=StreamLimits(listener_bytes=400_000))
    listener = world.listener(**NOW)
    world.put("before")
    (line,) = listener.lines()
    keys = [f"k{number}" for number in range(30)]
    for key in keys:
        world.put(*[[number, "x" * 1_000] for number in range(60)], key=key)
    peer = world.peer()
    peer.is_reading = False
    for key in keys:
        listen(peer, key, **{"from": line["token"]})
    world.settle(2)
    assert not peer.protocol.is_over
    assert peer.protocol.waiting_bytes < 200_000
    told = read_all(world, peer)
    for key in keys:
        numbers = [line["message"][0] for line in told if line["stream"] == key]
        assert numbers == list(range(60))
    assert not world.streams._pages


def test_rule_5_4_a_token_is_judged_at_once_though_nothing_can_be_written() -> None:
    world = World()
    world.put(0, key="l")
    slow = world.listener("l", **NOW)
    slow.is_reading = False
    world.put(*["x" * 1_000] * 100, key="l")
    assert slow.protocol.is_full
    future = f"{world.nodes.node.log_id}:{100 << 16}"
    listen(slow, "k", **{"from": future})
    world.settle()
    world.put(*range(200))  # it would not be the future any more
    assert read_all(world, slow)[-1:] == closed("gap")


# --- 5.6: keys


@pytest.mark.parametrize("key", KEYS, ids=[ascii(key) for key in KEYS])
def test_rule_5_6_a_key_is_one_token_of_a_subject(key: str) -> None:
    subject = subject_of(key)
    assert subject.count(".") == 1
    assert key_of(subject) == key
    world = World()
    listener, other = world.listener(key, **NOW), world.listener("other")
    world.put(1, 2, key=key)
    lines = listener.lines()
    assert puts(lines) == [(key, 1), (key, 2)]
    assert puts(world.listener(key, **{"from": lines[0]["token"]}).lines()) == [(key, 2)]
    assert other.lines() == []


def test_rule_5_6_each_key_has_a_subject_of_its_own() -> None:
    assert len({subject_of(key) for key in KEYS}) == len(KEYS)


@pytest.mark.parametrize("subject", ["streams.a.b", "streams.%zz", "streams.%ff", "streams.%41"])
def test_rule_5_6_other_subjects_are_no_stream(subject: str) -> None:
    assert key_of(subject) is None


@pytest.mark.parametrize("key", ["k" * 10_000, "é" * 200, "." * 100])
def test_rule_5_6_a_key_that_is_too_long_is_refused_with_that_reason(
    key: str, logged: list[Any]
) -> None:
    with pytest.raises(BadValue, match="stream cannot be kept by a node"):
        subject_of(key)
    world = World()
    peer = world.listener(key)
    assert peer.lines() == closed("refused", key)
    peer.say("put", key, message=1)
    world.settle()
    assert not peer.is_lost
    assert any("cannot be kept" in event.get("reason", "") for event in logged)


# --- 5.7: who publishes


def test_rule_5_7_a_publisher_is_not_read_from_beyond_what_may_be_uncommitted() -> None:
    world = World()
    listener = world.listener()
    world.put("first")
    world.log.hold = True
    peer, other = world.peer(), world.peer()
    for number in range(15):
        peer.say("put", "k", message=[number, "x" * 100_000])
    other.say("put", "k", message="other")
    world.settle()
    assert peer.is_paused
    assert not other.is_paused
    publisher = world.streams._publishers[peer.protocol]
    assert 1024 * 1024 < publisher.size < 1024 * 1024 + 200_000
    world.log.release()
    world.settle()
    assert not peer.is_paused
    numbers = [message[0] for message in listener.messages() if isinstance(message, list)]
    assert numbers == list(range(15))


@pytest.mark.parametrize("action", ["put", "close", "delete", "header"])
def test_rule_5_7_small_messages_and_ends_count_as_well(action: str) -> None:
    world = World()
    world.put("first")
    world.log.hold = True
    peer = world.peer()
    said = 0
    while not peer.is_paused:
        peer.say(action, "k", **({"message": 1} if action == "put" else {}))
        said += 1
        assert said < 20_000
    assert said > 1_000
    world.log.release()
    world.settle()
    assert not peer.is_paused


def test_rule_5_7_what_was_stored_and_not_handed_on_takes_no_memory() -> None:
    world = World()
    world.put("first")
    peer, asking = world.peer(), world.peer()
    operations = world.nodes.node.parts.operations
    Deferred.fromCoroutine(operations.pause("streams", True))
    world.settle()
    for number in range(1_000):
        peer.say("put", "k", message=number)
    asking.say("put", "k", message="asks")
    asking.send(b'{"action":"list"}\n')
    world.settle()
    assert asking.lines() == []
    publisher = world.streams._publishers[peer.protocol]
    assert (publisher.open, publisher.size) == (0, 0)
    assert len(world.streams._not_handed_on) == 1  # who waits
    Deferred.fromCoroutine(operations.pause("streams", False))
    world.settle(5)
    assert [line["action"] for line in asking.lines()] == ["list"]
    assert not world.streams._not_handed_on


def test_rule_5_7_what_the_node_refuses_for_now_counts_and_is_stored_later() -> None:
    world = World()
    listener = world.listener()
    world.put("first")
    world.log.fail_always = True
    peer = world.peer()
    for number in range(15):
        peer.say("put", "k", message=[number, "x" * 100_000])
    world.settle(3)
    assert peer.is_paused
    assert len(listener.messages()) == 1
    world.log.fail_always = False
    world.settle(30)
    assert not peer.is_paused
    assert [message[0] for message in listener.messages()] == list(range(15))


def test_rule_5_7_a_final_refusal_closes_the_publisher_with_the_reason() -> None:
    world = World(stream_limits=StreamLimits(line_bytes=2_000_000))
    world.put("first")
    other = world.listener()
    peer = world.peer()
    peer.say("put", "k", message="x" * 1_100_000)
    peer.say("put", "k", message="never")
    world.settle()
    (line,) = peer.lines()
    assert line["action"] == "close"
    assert line["reason"].startswith("refused: ")
    assert "message of 1100002 bytes" in line["reason"]
    assert peer.is_lost
    assert other.lines() == []


def test_a_publisher_that_leaves_at_once_has_put_what_it_sent() -> None:
    world = World()
    listener = world.listener()
    peer = world.peer()
    peer.send(
        b"".join(
            json.dumps({"action": "put", "stream": "k", "message": number}).encode() + b"\n"
            for number in range(300)
        )
    )
    world.settle()
    peer.leave()
    world.settle()
    assert listener.messages() == list(range(300))


def test_a_server_that_stops_stores_what_was_put() -> None:
    world = World()
    listener = world.listener(**NOW)
    world.put("first")
    (line,) = listener.lines()
    world.peer().say("put", "k", message="last")
    world.again()
    assert puts(world.listener(**{"from": line["token"]}).lines()) == [("k", "last")]


# --- the gate: all is done as a user


def board(**rules: Any) -> Users:
    return users_of(User(name="board", rules=Rules(**rules)))


def test_decision_21_what_comes_by_lines_is_done_with_the_rights_of_a_user() -> None:
    world = World(users=board(send=["streams.mine"], receive=["streams.>"]))
    listener = world.listener("mine", **NOW)
    world.put(1, 2, key="mine")
    lines = listener.lines()
    assert puts(lines) == [("mine", 1), ("mine", 2)]
    assert puts(world.listener("mine", **{"from": lines[0]["token"]}).lines()) == [("mine", 2)]
    peer = world.peer()
    peer.say("put", "other", message=1)
    world.settle()
    (line,) = peer.lines()
    assert line["reason"].startswith("refused: ")
    assert peer.is_lost


def test_decision_21_who_may_receive_no_streams_gets_none_and_reads_none(
    logged_failures: list[Any],
) -> None:
    world = World(users=board(send=["streams.>"], receive=["orders.>"]))
    listener = world.listener()
    world.put(1)
    world.settle(20)
    assert listener.lines() == closed("refused")
    token = f"{world.nodes.node.log_id}:0"
    assert world.listener(**{"from": token}).lines() == closed("refused")
    logged_failures.clear()


@pytest.mark.parametrize(
    "later",
    [
        User(name="board", rules=Rules(send=["streams.>"], receive=["orders.>"])),
        User(name="other", rules=Rules(receive=["streams.>"])),
    ],
    ids=["less", "gone"],
)
def test_decision_21_whose_right_is_taken_away_is_told_and_not_left_to_wait(
    later: User, logged_failures: list[Any]
) -> None:
    users = board(send=["streams.>"], receive=["streams.>"])
    world = World(users=users)
    listener = world.listener(**NOW)
    world.put(1)
    listener.lines()
    world.nodes.node.reload_users(users_of(later))
    world.settle(30)
    assert listener.lines() == closed("refused")
    assert world.server.streams() == []
    world.nodes.node.reload_users(users)
    world.settle(60)
    listener = world.listener(**NOW)
    world.put(2)
    assert listener.messages() == [2]
    logged_failures.clear()


def test_rule_5_9_a_list_comes_when_all_that_its_connection_has_put_is_stored() -> None:
    world = World()
    world.put("first")  # the receiver is known from here on
    listener = world.listener()
    world.log.hold = True
    peer = world.peer()
    peer.say("put", "k", message=1)
    peer.send(b'{"action":"list"}\n')
    world.settle()
    assert peer.lines() == []
    world.log.release()
    world.settle()
    state = {"stream": "k", "listeners": 1, "behind": 0, "lag": 0.0}
    assert peer.lines() == [{"action": "list", "streams": [state], "next": None, "ignored": 0}]
    assert listener.messages() == [1]
