"""Answers of `$node.*` in pages: any number of receivers, none told twice, none left out."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from msgservice import Limits
from msgservice.administration import OPERATIONS
from msgservice.core.frames import Routed
from msgservice.errors import (
    BadAddress,
    BadName,
    BadSubject,
    BadValue,
    MsgServiceError,
    NotConfirmed,
    ReceiverExists,
    RequestFailed,
    UnknownDeadLetter,
    UnknownMessage,
    UnknownReceiver,
)
from msgservice.log.memory import MemoryLog
from msgservice.message import Action
from msgservice.node.node import Node
from msgservice.records import ReceiverRow
from tests.kit.nodes import NodeWorld, ScriptedPeer

MANY = 20_000
LIMITS = Limits(receivers=MANY)


class ManyReceivers(NodeWorld):
    """A node that is configured with many receivers of the same subjects."""

    def start(self) -> None:
        rows = [
            ReceiverRow(number=0, name=f"receiver-{n}", patterns=("orders.>",), cursor=-1)
            for n in range(self.limits.receivers)
        ]
        self.node = Node(
            self.clock,
            self.log,
            limits=self.limits,
            receivers=rows,
            rng=lambda: 1.0,
            failed=self.failures.append,
        )
        self.node.startService()
        self.settle()


@pytest.fixture(scope="module")
def world() -> ManyReceivers:
    clock = Clock()
    return ManyReceivers(LIMITS, MemoryLog(reactor=clock, limits=LIMITS), clock)


def names(count: int = MANY) -> set[str]:
    return {f"receiver-{n}" for n in range(count)}


def pages(peer: ScriptedPeer, subject: str, **question: Any) -> list[dict[str, Any]]:
    """All pages, as a client asks for them."""
    found = []
    while True:
        ok, answer = peer.request(subject, question)
        assert ok, answer
        found.append(answer)
        if answer["next"] is None:
            return found
        question["after"] = answer["next"]


def test_twenty_thousand_receivers_are_listed_in_pages(world: ManyReceivers) -> None:
    shop = world.peer("asker")
    told = [
        row["name"] for page in pages(shop, "$node.receivers.list") for row in page["receivers"]
    ]
    assert told == sorted(names())


def test_the_status_at_twenty_thousand_receivers_comes_in_pages(world: ManyReceivers) -> None:
    shop = world.peer("shop", status_from=1)
    shop.transfer(1, "orders.new", [b"one"])
    world.settle()
    (routed,) = shop.take(Routed)
    found = pages(shop, "$node.status", id=f"log:{routed.position}")
    told = [name for page in found for name in page["receivers"]]
    assert len(told) == len(set(told))
    assert set(told) == names()
    assert {at["status"] for page in found for at in page["receivers"].values()} == {"queued"}


def test_a_page_has_as_many_receivers_as_were_asked_for() -> None:
    world = NodeWorld()
    for n in range(7):
        world.peer(f"receiver-{n}", receive={"subjects": ["orders.>"]})
    shop = world.peer("shop", status_from=1)
    shop.transfer(1, "orders.new", [b"one"])
    world.settle()
    found = pages(shop, "$node.receivers.list", limit=3)
    assert [len(page["receivers"]) for page in found] == [3, 3, 1]
    (routed,) = shop.take(Routed)
    found = pages(shop, "$node.status", id=f"log:{routed.position}", limit=3)
    assert [len(page["receivers"]) for page in found] == [3, 3, 1]
    found = pages(shop, "$node.receivers.list", limit=0)
    assert [len(page["receivers"]) for page in found] == [1] * 7
    _, answer = shop.request("$node.receivers.list", {"after": "z"})
    assert answer == {"receivers": [], "next": None}


def test_of_a_receiver_of_the_configuration_its_removal_says_so() -> None:
    limits, clock = Limits(receivers=1), Clock()
    world = ManyReceivers(limits, MemoryLog(reactor=clock, limits=limits), clock)
    operator = world.peer("operator")
    for question in ({}, {"confirm": 0}):
        ok, told = operator.request("$node.receivers.remove", {"name": "receiver-0", **question})
        assert (ok, told["configured"]) == (True, True)
    assert operator.request("$node.receivers.add", {"name": "own", "subjects": ["a"]})[0]
    assert operator.request("$node.receivers.remove", {"name": "own", "confirm": 0}) == (
        True,
        {"removed": 0, "dead": 0},
    )


@pytest.mark.parametrize("wrong", [-1, 2**53, 2**63, 2**64, 2**70])
@pytest.mark.parametrize(
    ("subject", "arguments", "field"),
    [
        ("receivers.list", {}, "limit"),
        ("receivers.add", {"name": "new", "subjects": ["x"]}, "backlog_bytes"),
        ("receivers.change", {"name": "billing"}, "backlog_bytes"),
        ("receivers.remove", {"name": "billing"}, "confirm"),
        ("status", {"id": "log:65536"}, "after"),
        ("status", {"id": "log:65536"}, "limit"),
        ("dead.list", {"receiver": "billing"}, "after"),
        ("dead.list", {"receiver": "billing"}, "limit"),
        ("dead.get", {"receiver": "billing"}, "position"),
        ("dead.get", {"receiver": "billing", "position": 65536}, "offset"),
    ],
)
def test_an_integer_that_cannot_be_is_refused_by_the_name_of_its_field(
    subject: str, arguments: dict[str, Any], field: str, wrong: int
) -> None:
    world = NodeWorld()
    world.peer("billing", receive={"subjects": ["orders.>"]})
    shop = world.peer("shop")
    ok, why = shop.request(f"$node.{subject}", arguments | {field: wrong})
    assert (False, True) == (ok, f"at `$.{field}` (fields: " in why), why
    before = [row["name"] for row in shop.request("$node.receivers.list", {})[1]["receivers"]]
    assert before == ["billing"]


def test_every_integer_of_a_request_is_bounded() -> None:
    bounded = set()
    for struct in {operation.asks for operation in OPERATIONS}:
        info = msgspec.inspect.type_info(struct)
        assert isinstance(info, msgspec.inspect.StructType)
        for field in info.fields:
            for kind in getattr(field.type, "types", [field.type]):
                if isinstance(kind, msgspec.inspect.IntType):
                    assert kind.ge in (0, 1), (struct, field.name)
                    assert kind.le == 2**53 - 1, (struct, field.name)
                    bounded.add(field.name)
    assert bounded == {
        *(
            "after",
            "away_max",
            "max_attempts",
            "retry_delay_min",
            "retry_delay_max",
            "backlog_bytes",
            "confirm",
            "end",
            "first",
            "limit",
            "offset",
            "position",
        ),
        *("code", "count", "since", "until"),
    }


def test_long_rows_make_short_pages() -> None:
    world = NodeWorld()
    subjects = [f"{n}.{'x' * 240}" for n in range(400)]
    for n in range(7):  # of 100 kB each: no frame holds them all
        Deferred.fromCoroutine(world.node.add_receiver(f"receiver-{n}", subjects))
    world.settle()
    found = pages(world.peer("shop"), "$node.receivers.list")
    assert [len(page["receivers"]) for page in found] == [2, 2, 2, 1]
    told = {row["name"] for page in found for row in page["receivers"]}
    assert told == names(7)


def test_a_receiver_that_goes_between_two_pages_takes_no_other_with_it() -> None:
    world = NodeWorld()
    for n in range(4):
        world.peer(f"receiver-{n}", receive={"subjects": ["orders.>"]}).connection.abort()
    shop = world.peer("shop")
    _, first = shop.request("$node.receivers.list", {"limit": 2})
    assert first["next"] == "receiver-1"
    Deferred.fromCoroutine(world.node.remove_receiver("receiver-1"))
    world.settle()
    _, second = shop.request("$node.receivers.list", {"limit": 2, "after": first["next"]})
    assert [row["name"] for row in second["receivers"]] == ["receiver-2", "receiver-3"]


def test_dead_letters_are_told_in_pages_however_long_their_reasons() -> None:
    world = NodeWorld()
    billing = world.peer("billing", receive={"subjects": ["a"]})
    shop = world.peer("shop")
    shop.transfer(1, "a", [b"x"] * 1200)
    world.settle()
    billing.nack(1 << 16, (1 << 16) + 1199, Action.DEAD, 0, "\N{GREEK SMALL LETTER OMEGA}" * 1000)
    world.settle(1)
    told: list[int] = []
    after, pages = 0, 0
    while after is not None:
        ok, answer = shop.request(
            "$node.dead.list", {"receiver": "billing", "after": after, "limit": 1000}
        )
        assert ok, answer
        told += [one["position"] for one in answer["dead"]]
        after = answer["next"]
        pages += 1
    assert told == list(range(1 << 16, (1 << 16) + 1200))
    assert pages > 2


@pytest.mark.parametrize(
    ("subject", "question", "error"),
    [
        ("receivers.add", {"name": "billing", "subjects": []}, ReceiverExists),
        ("receivers.add", {"name": "n", "subjects": ["a", "a"]}, BadSubject),
        ("receivers.add", {"name": "n", "subjects": ["a..b"]}, BadSubject),
        ("receivers.add", {"name": "", "subjects": ["a"]}, BadName),
        ("receivers.add", {"name": "n", "subjects": [], "address": "ftp:x"}, BadAddress),
        (
            "receivers.add",
            {"name": "n", "subjects": [], "address": "node:http://[::1]/"},
            BadAddress,
        ),
        ("receivers.add", {"name": "n", "subjects": [], "order": "odd"}, BadValue),
        ("receivers.add", {"name": "n"}, BadValue),
        ("receivers.change", {"name": "billing", "order": "odd"}, BadValue),
        ("receivers.change", {"name": "nobody"}, UnknownReceiver),
        ("receivers.pause", {"name": "nobody"}, UnknownReceiver),
        ("receivers.remove", {"name": "nobody"}, UnknownReceiver),
        ("receivers.remove", {"name": "billing", "confirm": 0}, NotConfirmed),
        ("status", {"id": "log:7"}, UnknownMessage),
        ("dead.list", {"receiver": "nobody"}, UnknownReceiver),
        ("dead.get", {"receiver": "nobody", "position": 65536}, UnknownReceiver),
        ("dead.get", {"receiver": "billing", "position": 65536}, UnknownDeadLetter),
        ("dead.get", {"receiver": "billing", "position": 0}, UnknownDeadLetter),
    ],
)
def test_what_an_operator_asks_in_vain_is_told_with_a_code(
    subject: str, question: dict[str, Any], error: type[MsgServiceError]
) -> None:
    world = NodeWorld()
    world.peer("billing", receive={"subjects": ["orders.>"]})
    shop = world.peer("shop")
    shop.transfer(1, "orders.new", [b"one"])
    world.settle()
    failed: list[Failure] = []
    client = world.node.client("asker")
    client.request(f"$node.{subject}", question, timeout=5).addErrback(failed.append)
    world.settle()
    told = failed[0].value
    assert isinstance(told, RequestFailed)
    assert (told.code, bool(str(told))) == (error.refusal_code, True)
