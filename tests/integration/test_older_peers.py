"""Peers of a version from before features, owners and logins, as they spoke: their bytes on TCP.

They were recorded between a node, a producer `shop` and a receiver `billing` of that version, which
handed over b"one" and b"two" on `orders.new`. Nobody of theirs is needed here, and nothing of ours
makes the bytes: what a newer version says to them is read by msgpack alone.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
import pytest_twisted
from twisted.internet import reactor as installed_reactor
from twisted.internet.defer import CancelledError
from twisted.internet.threads import deferToThread

import msgservice
from msgservice.message import Status

reactor: Any = installed_reactor
pytestmark = pytest.mark.timeout(30)

HELLO, TRANSFER, ACK, STATUS, ROUTED = 1, 2, 3, 5, 6
REQUEST, BYE, AUDIENCE, RESUME = 7, 12, 14, 16

OLD_PRODUCER_HELLO = bytes.fromhex(
    "00000054950101a473686f70d920316439653365633563326234356236623363626431376539353830366261"
    "626483a96d61785f6261746368ce00100000a9686561727462656174cd4e20ab7374617475735f66726f6d01"
)

OLD_PRODUCER_RESUME_AND_RUN = bytes.fromhex(
    "0000000695100190c0c2000000239c0201aa6f72646572732e6e65779291c4036f6e6591c40374776fc00100"
    "c0c0c000c0"
)

OLD_RECEIVER_HELLO = bytes.fromhex(
    "0000008f950101a762696c6c696e67d920343464386661346633363234346235333833643263643230303536"
    "386362623284a96d61785f6261746368ce00100000a9686561727462656174cd4e20a677696e646f7792ce00"
    "010000ce01000000a77265636569766583a87375626a6563747391a86f72646572732e3ea57374617274a36e"
    "6577a56f72646572a6737472696374"
)

OLD_RECEIVER_RESUME = bytes.fromhex("0000000695100190c0c2")

OLD_RECEIVER_ACK = bytes.fromhex("0000000e92039192ce00010000ce00010001")

OLD_NODE_HELLO_AND_RESUME = bytes.fromhex(
    "0000006e950101ad6e6f64652d3838356233653235d920383835623365323538633437336566616137336462"
    "633737616661323632666184a96d61785f6261746368ce00100000a9686561727462656174cd4e20a677696e"
    "646f7792ce00010000ce01000000a87265717565737473cd03e80000000695100190c0c2"
)

OLD_NODE_ANSWERS = bytes.fromhex(
    "0000000d940e0191a762696c6c696e67c20000000a9506010201ce0001000000000006920391920102000000"
    "329605d9203164396533656335633262343562366233636264313765393538303662616264a762696c6c696e"
    "670391920102a0"
)

OLD_NODE_TO_RECEIVER = bytes.fromhex(
    "00000086950101ad6e6f64652d3838356233653235d922383835623365323538633437336566616137336462"
    "63373761666132363266612e3185a96d61785f6261746368ce00100000a9686561727462656174cd4e20a677"
    "696e646f7792ce00010000ce01000000a87265717565737473cd03e8a77265636569766581a56f72646572a6"
    "7374726963740000000695100190c0c2"
)

OLD_NODE_RUN = bytes.fromhex(
    "000000659c02ce00010000aa6f72646572732e6e65779291c4036f6e6591c40374776fc0ce0001000000c0c0"
    "c00094a473686f7001b03037313538383239313437306236323891d920383835623365323538633437336566"
    "6161373364626337376166613236326661"
)
OLD_INCARNATION = "1d9e3ec5c2b45b6b3cbd17e95806babd"  # of the producer, whose states the node tells
POSITION = 1 << 16  # of the first message, in a log that has no other


class Old:
    """One end of a connection, in a thread: what was recorded goes out, and what comes is read."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(10)
        self._connection = connection
        self._stream = connection.makefile("rb")

    def say(self, recorded: bytes) -> None:
        self._connection.sendall(recorded)

    def until(self, kind: int) -> list[list[Any]]:
        """All frames up to the first of this kind."""
        frames = [self._read()]
        while frames[-1][0] != kind:
            frames.append(self._read())
        return frames

    def _read(self) -> list[Any]:
        size = int.from_bytes(self._stream.read(4), "big")
        assert size, "it has closed the connection"
        frame = msgspec.msgpack.decode(self._stream.read(size))
        assert isinstance(frame, list)
        return frame

    def close(self) -> None:
        self._stream.close()
        self._connection.close()


def dialled(address: str) -> Old:
    _, host, port = address.split(":")
    return Old(socket.create_connection((host, int(port)), 10))


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)
        yield listener


def address_of(listener: socket.socket) -> str:
    return f"tcp:127.0.0.1:{listener.getsockname()[1]}"


def test_40_an_old_producer_and_an_old_receiver_are_served_by_a_node_of_now(node: str) -> None:
    receiver, producer = dialled(node), dialled(node)
    try:
        receiver.say(OLD_RECEIVER_HELLO)
        hello = receiver.until(RESUME)[0]
        assert [HELLO, 1] == hello[:2]
        assert {"order": "strict"} == hello[4]["receive"]
        receiver.say(OLD_RECEIVER_RESUME)
        producer.say(OLD_PRODUCER_HELLO)
        said = producer.until(RESUME)[0][4]["features"]
        assert [
            *(
                "cancel",
                "codes",
                "delay",
                "keys",
                "promises",
                "require",
                "respond",
                "retain",
                "to",
                "ttl",
            )
        ] == said
        producer.say(OLD_PRODUCER_RESUME_AND_RUN)
        audience, routed, ack = producer.until(ACK)
        assert [AUDIENCE, 1, ["billing"]] == audience[:3]
        assert [ROUTED, 1, 2, 1, POSITION] == routed[:5]
        assert [ACK, [[1, 2]]] == ack
        run = receiver.until(TRANSFER)[-1]
        assert [TRANSFER, POSITION, "orders.new", [[b"one"], [b"two"]]] == run[:4]
        receiver.say(OLD_RECEIVER_ACK)
        (status,) = producer.until(STATUS)
        assert [STATUS, OLD_INCARNATION, "billing", int(Status.ACKNOWLEDGED), [[1, 2]]] == status[
            :5
        ]
    finally:
        receiver.close()
        producer.close()


@pytest_twisted.ensureDeferred
async def test_40_a_producer_of_now_hands_over_to_an_old_node(listener: socket.socket) -> None:
    heard: list[list[Any]] = []

    def old_node() -> None:
        old = Old(listener.accept()[0])
        heard.extend(old.until(HELLO))
        old.say(OLD_NODE_HELLO_AND_RESUME)
        heard.extend(old.until(TRANSFER))
        old.say(OLD_NODE_ANSWERS)
        heard.extend(old.until(BYE))  # it is not gone before that has come
        old.close()

    ended = deferToThread(old_node)
    client = await msgservice.connect(
        reactor, address_of(listener), name="shop", new_incarnation=lambda: OLD_INCARNATION
    )
    # What an old node takes, though it does not say so.
    receipts = await client.send_many("orders.new", [b"one", b"two"], require=True, to=["billing"])
    assert {"billing": {Status.ACKNOWLEDGED: 2}} == await receipts.settled()
    await client.close()
    await ended
    hello, _resume, transfer = heard[:3]
    assert [HELLO, 1, "shop", OLD_INCARNATION] == hello[:4]
    assert [TRANSFER, 1, "orders.new", [[b"one"], [b"two"]]] == transfer[:4]


@pytest_twisted.ensureDeferred
async def test_40_an_old_node_is_not_told_that_a_request_is_given_up(
    listener: socket.socket,
) -> None:
    heard: list[list[Any]] = []

    def old_node() -> None:
        old = Old(listener.accept()[0])
        old.until(HELLO)
        old.say(OLD_NODE_HELLO_AND_RESUME)
        heard.extend(old.until(REQUEST))
        reactor.callFromThread(asked.cancel)
        heard.extend(old.until(TRANSFER))  # which is sent behind that
        old.say(OLD_NODE_ANSWERS)
        heard.extend(old.until(BYE))
        old.close()

    ended = deferToThread(old_node)
    client = await msgservice.connect(reactor, address_of(listener), name="shop")
    asked = client.request("prices.get", b"x", timeout=60)
    assert await asked.addErrback(lambda failure: failure.trap(CancelledError)) is CancelledError
    await client.send_many("orders.new", [b"one", b"two"])
    await client.close()
    await ended
    assert {RESUME, REQUEST, TRANSFER, BYE} == {frame[0] for frame in heard}


@pytest_twisted.ensureDeferred
async def test_40_a_receiver_of_now_is_fed_by_an_old_node(listener: socket.socket) -> None:
    bodies: list[Any] = []
    acked: list[list[Any]] = []

    def old_node() -> None:
        old = Old(listener.accept()[0])
        old.until(HELLO)
        old.say(OLD_NODE_TO_RECEIVER)
        old.until(RESUME)
        old.say(OLD_NODE_RUN)
        acked.extend(frame for frame in old.until(ACK) if frame[0] == ACK)
        old.close()

    ended = deferToThread(old_node)
    receiver = msgservice.Receiver(
        reactor, name="billing", handler=lambda message: bodies.append(message.body)
    )
    receiver.attach(address_of(listener), subjects=["orders.>"])
    await ended
    await receiver.stop()
    assert [b"one", b"two"] == bodies
    assert [[ACK, [[POSITION, POSITION + 1]]]] == acked
