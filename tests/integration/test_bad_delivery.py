"""What may be said of a message, said wrongly, at each door: a program, raw frames, a command.

One table: what is wrong, how it is said at each door where it can be said, and the error. Nothing
is stored of it, its connection goes on unless the frame itself cannot be, and a message of somebody
else's is taken and delivered behind it.
"""

from __future__ import annotations

import math
import secrets
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_twisted
from twisted.internet import reactor as installed_reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread

from msgservice import Limits, Node, Receiver, Status, connect
from msgservice.errors import (
    BadName,
    BadValue,
    ClientClosed,
    LimitReached,
    MalformedFrame,
    MsgServiceError,
    Refused,
    RequestFailed,
    UnknownDeadLetter,
    UnknownMessage,
    UnknownReceiver,
)
from tests.conformance.wire import ERROR, HELLO, NACK, REPLY, REQUEST, RESUME, TRANSFER, Wire
from tests.integration.command import Command
from tests.kit.ports import free_port

reactor: Any = installed_reactor
pytestmark = pytest.mark.timeout(120)

LIMITS = Limits(link_delay_min=0.05, link_delay_max=0.2, stop_timeout=5)
DAY = 24 * 3600
TOO_LONG = 366 * DAY + 1  # seconds
FAR = 1 << 52  # a position that no log has
LATER = 4
REFUSE = 3  # the action of a NACK: never
JSON = {"content-type": "application/json"}


@dataclass(frozen=True)
class Case:
    """`call`: options of `send`, or (operation, arguments); `frame`: elements of TRANSFER by place.

    `words`: of the command line. What is None cannot be said at that door. `code`: the exit code.
    """

    name: str
    error: type[MsgServiceError]
    says: str
    send: dict[str, Any] | None = None
    ask: tuple[str, dict[str, Any]] | None = None
    frame: dict[int, Any] | None = None
    words: tuple[str, ...] | None = None
    code: int = 2
    on_the_wire: type[MsgServiceError] | None = None
    message: list[Any] = field(default_factory=lambda: [b"bad"])


TO, TTL, DELAY, FLAGS = 7, 8, 9, 10
SEND = ("send", "bad.a", "bad")
ACT = ("--yes",)

CASES = [
    # --- times
    Case("a-ttl-below-0", BadValue, "ttl", {"ttl": -1}, None, {TTL: -1}, (*SEND, "--ttl=-1"),
         on_the_wire=MalformedFrame),
    Case("a-ttl-of-more-than-a-year", BadValue, "366 days", {"ttl": TOO_LONG}, None,
         {TTL: TOO_LONG * 1000}, (*SEND, "--ttl", "367d"), on_the_wire=Refused),
    Case("a-ttl-that-is-no-number", BadValue, "ttl", {"ttl": math.nan}, None, {TTL: "soon"},
         (*SEND, "--ttl", "soon"), on_the_wire=MalformedFrame),
    Case("an-infinite-ttl", BadValue, "ttl", {"ttl": math.inf}, None, {TTL: 1 << 60},
         (*SEND, "--ttl", "inf"), on_the_wire=MalformedFrame),
    Case("a-delay-below-0", BadValue, "delay", {"delay": -0.5}, None, {DELAY: -1},
         (*SEND, "--delay=-1"), on_the_wire=MalformedFrame),
    Case("a-delay-of-more-than-a-year", BadValue, "366 days", {"delay": TOO_LONG}, None,
         {DELAY: TOO_LONG * 1000}, (*SEND, "--delay", "367d"), on_the_wire=Refused),
    Case("a-delay-that-is-no-number", BadValue, "delay", {"delay": "soon"}, None, {DELAY: "soon"},
         (*SEND, "--delay", "soon"), on_the_wire=MalformedFrame),
    Case("a-ttl-that-is-over-with-its-delay", BadValue, "ttl", {"delay": 60, "ttl": 60}, None,
         None, (*SEND, "--delay", "60", "--ttl", "1m")),
    # --- what does not go together
    Case("to-with-retain", Refused, "'?`?to", {"to": ["neighbour"], "retain": True}, None,
         {TO: ["neighbour"], FLAGS: 1}, (*SEND, "--to", "neighbour", "--retain")),
    Case("to-with-retain-and-a-delay", Refused, "'?`?to",
         {"to": ["neighbour"], "retain": True, "delay": 60}, None,
         {TO: ["neighbour"], FLAGS: 1, DELAY: 60_000},
         (*SEND, "--to", "neighbour", "--retain", "--delay", "60")),
    Case("kept-alone-and-not-kept", Refused, "retain", None, None, {FLAGS: 8}),
    Case("a-flag-that-nobody-knows", Refused, "flags", None, None, {FLAGS: 1 << 20}),
    Case("to-nobody-that-is-known", UnknownReceiver, "nobody", {"to": ["nobody"], "delay": 60},
         None, {TO: ["nobody"], DELAY: 60_000}, (*SEND, "--to", "nobody", "--delay", "60"), code=1),
    # --- keys
    Case("a-key-that-is-too-long", BadName, "255", {"idempotency_key": "k" * 256}, None, {},
         (*SEND, "--key", "k" * 256), on_the_wire=MalformedFrame,
         message=[b"bad", {}, None, "k" * 256]),
    Case("a-key-that-is-empty", BadName, "key", {"idempotency_key": ""}, None, {},
         (*SEND, "--key", ""), message=[b"bad", {}, None, ""]),
    # --- what is not there
    Case("a-cancel-of-what-never-was", UnknownMessage, "o-404", None,
         ("delayed.cancel", {"id": "o-404"}), None, ("delayed", "cancel", "o-404"), code=1),
    Case("a-cancel-of-no-text", BadValue, "id", None, ("delayed.cancel", {"id": 5})),
    Case("a-cancel-of-more-than-a-run", BadValue, "count", None,
         ("delayed.cancel", {"id": "o-404", "count": 0}), None,
         ("delayed", "cancel", "o-404", "--count", "0")),
    Case("the-status-of-what-never-was", UnknownMessage, "o-404", None,
         ("status", {"id": "o-404"}), None, ("status", "o-404"), code=1),
    Case("what-is-retained-of-nothing", UnknownMessage, "bad.b", None,
         ("retained.get", {"subject": "bad.b"}), None, ("retained", "show", "bad.b"), code=1),
    Case("a-letter-that-never-was", UnknownDeadLetter, "404", None,
         ("dead.get", {"receiver": "neighbour", "position": 404}), None,
         ("dead", "show", "neighbour", "o-404"), code=1),
    Case("a-letter-of-nobody", UnknownReceiver, "nobody", None,
         ("dead.list", {"receiver": "nobody"}), None, ("dead", "list", "nobody"), code=1),
    Case("a-requeue-to-nobody", UnknownReceiver, "nobody", None,
         ("dead.requeue", {"receiver": "neighbour", "to": "nobody"}), None,
         ("dead", "requeue", "neighbour", "--all", "--to", "nobody", *ACT), code=1),
    Case("a-requeue-from-nobody", UnknownReceiver, "nobody", None,
         ("dead.requeue", {"receiver": "nobody"}), None,
         ("dead", "requeue", "nobody", "--all", *ACT), code=1),
    Case("a-purge-of-nobody", UnknownReceiver, "nobody", None,
         ("receivers.purge", {"name": "nobody"}), None, ("purge", "nobody", *ACT), code=1),
    Case("a-rewind-of-nobody", UnknownReceiver, "nobody", None,
         ("receivers.rewind", {"name": "nobody", "first": "first"}), None,
         ("rewind", "nobody", *ACT), code=1),
    Case("a-rewind-from-what-never-was", UnknownMessage, "o-404", None,
         ("receivers.rewind", {"name": "neighbour", "first": "o-404"}), None,
         ("rewind", "neighbour", "--from", "o-404", *ACT), code=1),
    Case("a-rewind-from-beyond-the-log", BadValue, "first", None,
         ("receivers.rewind", {"name": "neighbour", "first": FAR}), None,
         ("rewind", "neighbour", "--from", str(FAR), *ACT), code=1),
    Case("a-rewind-to-before-it-begins", BadValue, "end", None,
         ("receivers.rewind", {"name": "neighbour", "first": 1 << 16, "end": 1}), None,
         ("rewind", "neighbour", "--from", str(1 << 16), "--to", "1", *ACT), code=1),
    Case("a-rewind-from-no-time", BadValue, "time", None,
         ("receivers.rewind", {"name": "neighbour", "first": "@soon"}), None,
         ("rewind", "neighbour", "--from", "@soon", *ACT)),
]  # fmt: skip

BY_CALL = [case for case in CASES if case.send is not None or case.ask is not None]
BY_FRAME = [case for case in CASES if case.frame is not None]
BY_REQUEST = [case for case in CASES if case.ask is not None]
BY_COMMAND = [case for case in CASES if case.words is not None]


def named(cases: list[Case]) -> Any:
    return pytest.mark.parametrize("case", cases, ids=[case.name for case in cases])


class Peer:
    """A connection that speaks frames and nothing else."""

    def __init__(self, address: str) -> None:
        host, port = address.removeprefix("tcp:").rsplit(":", 1)
        self.wire = Wire(socket.create_connection((host, int(port)), 20), 20)
        options = {"features": ["codes"], "heartbeat": 20_000}
        self.wire.send([HELLO, 1, "frames", secrets.token_hex(8), options])
        self.wire.next(HELLO)
        self.wire.send([RESUME, 0, [], None, False])
        self.wire.next(RESUME)

    def transfer(self, sequence: int, message: list[Any], more: dict[int, Any]) -> list[Any]:
        """Send one message; return the frame that answers."""
        frame = [TRANSFER, sequence, "bad.a", [message], None, 0, 0, None, None, 0, 0, None]
        for place, value in more.items():
            frame[place] = value
        self.wire.send(frame)
        return self._answer()

    def _answer(self) -> list[Any]:
        while True:
            frame = self.wire.read()
            if frame[0] in (NACK, ERROR, 3, REPLY):
                return frame

    def ask(self, operation: str, arguments: dict[str, Any]) -> tuple[bool, bytes, dict[str, str]]:
        """Request an operation; return whether it was done, the answer, and its headers."""
        body = msgspec.json.encode(arguments)
        self.wire.send([REQUEST, 1, f"$node.{operation}", [[body, JSON]], 10_000])
        ((_, ok, message),) = self._answer()[1]
        return ok, message[0], message[1] if len(message) > 1 else {}

    def goes_on(self, sequence: int) -> None:
        """What is right is taken behind what was not."""
        ok, _, _ = self.ask("info", {})
        assert ok
        assert self.transfer(sequence, [b"good"], {2: "good.a"})[0] == 3

    def close(self) -> None:
        self.wire.close()


@pytest.fixture
def peer(node: str) -> Iterator[Peer]:
    made = Peer(node)
    yield made
    made.close()


@pytest.fixture(scope="module", autouse=True)
def neighbour(node: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Somebody else, who gets what is right, and nothing of what is wrong."""
    msgservice = Command(node, tmp_path_factory.mktemp("neighbour"))
    assert msgservice("receivers", "add", "neighbour", "good.>", "bad.>").code == 0
    yield
    assert msgservice("send", "good.a", "the last one").code == 0
    waiting = msgservice.receiver("neighbour")["queued"]
    got = msgservice("listen", "neighbour", "--count", str(waiting)).out.splitlines()
    assert (got[-1], "bad" in got) == ("the last one", False)
    assert msgservice.data("delayed", "list")["delayed"] == []
    assert msgservice.data("retained", "list")["retained"] == []


@named(BY_CALL)
@pytest_twisted.ensureDeferred
async def test_a_program_is_told(node: str, case: Case) -> None:
    client = await connect(reactor, node, name="shop", limits=LIMITS)
    try:
        if case.send is not None:
            said: Deferred[Any] = client.send("bad.a", b"bad", **case.send)
        else:
            assert case.ask is not None
            said = client.request(f"$node.{case.ask[0]}", case.ask[1], timeout=10)
        with pytest.raises(MsgServiceError, match=case.says) as caught:
            await said
        if case.ask is None:
            assert type(caught.value) is case.error
        else:
            assert caught.value.code == case.error.refusal_code  # type: ignore[attr-defined]
        assert (await client.send("good.b", b"behind it")).position
    finally:
        await client.close()


@named(BY_FRAME)
def test_raw_frames_are_told(node: str, peer: Peer, case: Case) -> None:
    assert case.frame is not None
    error = case.on_the_wire or case.error
    answer = peer.transfer(1, case.message, case.frame)
    if error is MalformedFrame:
        assert (answer[0], answer[1]) == (ERROR, error.wire_code)
        again = Peer(node)
        again.goes_on(1)
        again.close()
        return
    assert (answer[0], answer[1:4]) == (NACK, [1, 1, REFUSE])
    if error.refusal_code is not None and error not in (Refused, BadName):
        assert answer[6] == error.refusal_code
    peer.goes_on(2)


@named(BY_REQUEST)
def test_a_raw_request_is_told(peer: Peer, case: Case) -> None:
    assert case.ask is not None
    ok, said, headers = peer.ask(*case.ask)
    assert not ok
    assert headers["msgservice-error"] == str(case.error.refusal_code)
    assert case.says.removeprefix("'?`?") in said.decode()
    peer.goes_on(1)


@named(BY_COMMAND)
def test_a_command_is_told(msgservice: Command, case: Case) -> None:
    assert case.words is not None
    told = msgservice(*case.words, *(("--json",) if case.code == 1 else ()))
    assert (told.code, told.out) == (case.code, "")
    if case.code == 1:
        assert msgspec.json.decode(told.err)["error"] == case.error.__name__
    else:
        assert told.err.count("\n") <= 4, "a sentence, below how the command is used"


# --- limits, and what happens meanwhile


async def node_with(folder: Path, **limits: Any) -> tuple[Node, str]:
    port = free_port()
    node = Node(
        reactor,
        folder / "node",
        listen=[f"tcp:{port}:interface=127.0.0.1"],
        limits=Limits(link_delay_min=0.05, link_delay_max=0.2, stop_timeout=5, **limits),
    )
    node.startService()
    await node.when_ready()
    return node, f"tcp:127.0.0.1:{port}"


async def refusal_of(client: Any) -> str:
    """Wait until the node has refused something for now; return what it said."""
    while True:
        why = client.why()
        if why is not None and why.refusal:
            return str(why.refusal)
        await deferLater(reactor, 0.05)


@pytest_twisted.ensureDeferred
async def test_keys_beyond_the_limit_wait_and_name_it(tmp_path: Path) -> None:
    node, address = await node_with(tmp_path, idempotency_keys=1)
    client = await connect(reactor, address, name="shop", limits=LIMITS)
    assert (await client.send("bad.a", b"one", idempotency_key="k-1")).position
    waiting = client.send("bad.a", b"two", idempotency_key="k-2")
    assert "idempotency_keys = 1" in await refusal_of(client)
    assert (await client.send("good.a", b"without")).position

    def by_frame() -> list[Any]:
        peer = Peer(address)
        answer = peer.transfer(1, [b"three", {}, None, "k-3"], {})
        peer.goes_on(2)
        peer.close()
        return answer

    answer = await deferToThread(by_frame)
    assert (answer[0], answer[3]) == (NACK, LATER)
    assert answer[6:8] == [LimitReached.refusal_code, "idempotency_keys"]
    words = ("send", "bad.b", "four", "--key", "k-4", "--timeout", "2")
    told = await deferToThread(Command(address, tmp_path), *words)
    assert told.code != 0
    assert "idempotency_keys = 1" in told.err
    await client.close()
    with pytest.raises(ClientClosed):
        await waiting
    await node.stopService()


@pytest_twisted.ensureDeferred
async def test_what_is_due_comes_though_the_log_is_full(tmp_path: Path) -> None:
    node, address = await node_with(tmp_path, max_bytes=200_000, keep_bytes=0, keep_seconds=0)
    client = await connect(reactor, address, name="shop", limits=LIMITS)
    await client.request("$node.receivers.add", {"name": "away", "subjects": ["big.>"]}, timeout=9)
    came: Deferred[bytes] = Deferred()
    receiver = Receiver(
        reactor, name="here", handler=lambda m: came.callback(m.body), limits=LIMITS
    )
    receiver.attach(address, subjects=["due.>"])
    await receiver.when_connected()
    later = await client.send("due.a", b"it was taken", delay=3.0, retain=True)
    for at in range(8):
        sent = client.send(f"big.{at}", bytes(30_000))
        sent.addErrback(lambda failure: failure.trap(ClientClosed))
    assert "bytes are used" in await refusal_of(client)
    told = await deferToThread(
        Command(address, tmp_path), "send", "big.a", "x" * 60_000, "--delay", "1h", "--timeout", "2"
    )
    assert (told.code, "bytes are used" in told.err) == (3, True)
    assert await came == b"it was taken"
    await later.acknowledged("here")
    page = await client.request("$node.retained.list", {}, timeout=9)
    assert [one["subject"] for one in page["retained"]] == ["due.a"]
    await receiver.stop()
    await client.close()
    await node.stopService()


@pytest_twisted.ensureDeferred
async def test_a_purge_of_who_takes_its_messages_leaves_each_one_state(tmp_path: Path) -> None:
    node, address = await node_with(tmp_path)
    client = await connect(reactor, address, name="shop", limits=LIMITS)
    await client.request("$node.receivers.add", {"name": "here", "subjects": ["a"]}, timeout=9)
    receipts = await client.send_many("a", [b"%d" % number for number in range(5000)])
    handled: list[bytes] = []
    receiver = Receiver(
        reactor, name="here", handler=lambda message: handled.append(message.body), limits=LIMITS
    )
    receiver.attach(address)
    await receiver.when_connected()
    command = Command(address, tmp_path)
    by_command = deferToThread(command, "purge", "here", "--yes")
    page = await client.request("$node.receivers.purge", {"name": "here"}, timeout=9)
    told = await by_command
    assert (told.code, page["count"] >= 0) == (0, True)
    await receipts.settled()
    states = [receipt.statuses["here"] for receipt in receipts]
    assert {*states} <= {Status.ACKNOWLEDGED, Status.CANCELLED}
    assert states.count(Status.ACKNOWLEDGED) == len(handled) == len({*handled})
    row = (await client.request("$node.receivers.list", {}, timeout=9))["receivers"][0]
    assert (row["queued"], row["unaccounted"]) == (0, 0)
    await receiver.stop()
    await client.close()
    await node.stopService()


@pytest_twisted.ensureDeferred
async def test_a_rewind_beyond_what_is_kept_says_what_is_kept(tmp_path: Path) -> None:
    node, address = await node_with(tmp_path, keep_bytes=0, keep_seconds=0)
    client = await connect(reactor, address, name="shop", limits=LIMITS)
    receiver = Receiver(reactor, name="here", handler=lambda message: None, limits=LIMITS)
    receiver.attach(address, subjects=["a"])
    await receiver.when_connected()
    first = await client.send("a", b"1")
    await first.acknowledged("here")
    asked = {"name": "here", "first": first.position, "end": first.position}
    counting = {"name": "here", "first": first.position}
    while True:  # until retention has passed it
        told = await client.request("$node.receivers.rewind_count", counting, timeout=9)
        if told["replay"]["first"] > first.position:
            break
        await (await client.send("a", b"2")).acknowledged("here")
    with pytest.raises(RequestFailed, match="nothing is kept before") as caught:
        await client.request("$node.receivers.rewind", asked, timeout=9)
    assert caught.value.code == BadValue.refusal_code
    at = str(first.position)
    words = ("rewind", "here", "--from", at, "--to", at, "--yes", "--json")
    by_command = await deferToThread(Command(address, tmp_path), *words)
    assert (by_command.code, msgspec.json.decode(by_command.err)["error"]) == (1, "BadValue")
    await receiver.stop()
    await client.close()
    await node.stopService()
