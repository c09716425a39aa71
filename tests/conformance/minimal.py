"""A client and a receiver of a page each, right or wrong on purpose: what the kit is tested on."""

from __future__ import annotations

import socket
import threading
import zlib
from contextlib import suppress
from typing import Any

import msgspec

from tests.conformance.login import Client
from tests.conformance.wire import (
    ACK,
    BYE,
    ERROR,
    HELLO,
    NACK,
    PING,
    PONG,
    REPLY,
    REQUEST,
    RESUME,
    TRANSFER,
    Gone,
    Silent,
    Wire,
    Wrong,
    element,
    ranges,
)  # fmt: skip


class Minimal(threading.Thread):
    """Dials until `stop`; `fault` names what it does wrong, "" for nothing."""

    name_said = ""
    options: dict[str, Any] = {}

    login: tuple[str, str] | None = None

    def __init__(self, port: int, fault: str = "") -> None:
        super().__init__(daemon=True)
        self._port = port
        self.fault = fault
        self.stopped = False
        self.names_features = False  # and one of them nobody knows
        self._connections = 0

    def run(self) -> None:
        """Dial again and again."""
        while not self.stopped:
            try:
                connection = socket.create_connection(("127.0.0.1", self._port), 30.0)
            except OSError:
                return
            wire = Wire(connection, 0.2)
            self._connections += 1
            with suppress(Gone, Wrong):
                self.talk(wire)
            wire.close()

    def read(self, wire: Wire) -> list[Any]:
        """Return the next frame; patiently."""
        while True:
            try:
                return wire.read()
            except Silent:
                if self.stopped:
                    raise Gone from None
            except Wrong:
                if self.fault == "goes on after nonsense":
                    continue
                wire.send([ERROR, 5])
                raise Gone from None

    def talk(self, wire: Wire) -> None:
        """Open the session, then `live` it."""
        if self.login is not None:
            client = Client(wire, *self.login, self.fault)
            if not client.run(lambda: self.read(wire)):
                return
        number = self._connections if self.fault == "a new incarnation each time" else 0
        wire.send([HELLO, 1, self.name_said, f"i{number}", self.options | self._features()])
        if self.fault == "resumes too early":
            wire.send(self.resume("?"))
        hello = self.read(wire)
        if self.fault == "needs features" and "features" not in hello[4]:
            return
        if hello[1] != 1 and self.fault != "takes any version":
            wire.send([ERROR, 4])
            return
        self.opening(wire)
        if self.fault != "resumes too early":
            wire.send(self.resume(hello[3]))
        taken = self.read(wire)
        while taken[0] != RESUME:
            self.common(wire, taken)
            taken = self.read(wire)
        try:
            self.live(wire, hello, {n for a, b in ranges(taken[2], "") for n in range(a, b + 1)})
        except Wrong:
            wire.send([ERROR, 2])

    def _features(self) -> dict[str, Any]:
        """What its HELLO says of what it knows."""
        if self.fault == "names features without end":
            return {"features": [f"f{number}" for number in range(257)]}
        if self.fault == "names features that are no text":
            return {"features": [b"codes"]}
        return {"features": ["codes", "of its own"]} if self.names_features else {}

    def opening(self, wire: Wire) -> None:
        """What is said before RESUME."""

    def resume(self, incarnation: str) -> list[Any]:
        """What was taken."""
        return [RESUME, 0, []]

    def common(self, wire: Wire, frame: list[Any]) -> None:
        """Take what both take."""
        if frame[0] == PING and self.fault != "answers no ping":
            wire.send([PONG, 5 if self.fault == "answers another ping" else frame[1]])

    def live(self, wire: Wire, hello: list[Any], taken: set[int]) -> None:
        """Everything behind RESUME."""
        raise NotImplementedError


class MinimalClient(Minimal):
    """Sends runs of one message on one subject."""

    name_said = "minimal"

    def __init__(self, port: int, fault: str = "") -> None:
        super().__init__(port, fault)
        self._first = 1  # the lowest that is unanswered

    def opening(self, wire: Wire) -> None:
        """One that cannot wait."""
        if self.fault == "sends too early":
            self._send(wire, self._first, 0)

    def _send(self, wire: Wire, sequence: int, nacks: int) -> None:
        body = b"%d" % sequence
        if self.fault == "changes what it sends again":
            body += b" of connection %d" % self._connections
        if self.fault == "sends texts for bodies":
            wire.send([TRANSFER, sequence, "a.b", [[body.decode()]]])
        else:
            wire.send([TRANSFER, sequence, "a.b", [[body]], sequence - 1, 0, nacks])

    def live(self, wire: Wire, hello: list[Any], taken: set[int]) -> None:
        """Send what the window allows, take answers."""
        window = 50 if self.fault == "knows no window" else min(hello[4]["window"][0], 10)
        if self.fault == "forgets what is unanswered" and self._connections > 1:
            self._first += 20
        while self._first in taken and self.fault != "does not believe RESUME":
            self._first += 1
        at, nacks, leaving = self._first, 0, False
        while True:
            while at < self._first + window and not leaving:
                self._send(wire, at, nacks)
                at += 1
            frame = self.read(wire)
            self.common(wire, frame)
            if frame[0] == ACK:
                last = ranges(frame[1], "ACK")[-1][1]
                if last >= at and self.fault != "believes any ACK":
                    wire.send([ERROR, 10])
                    return
                self._first = max(self._first, min(last, at - 1) + 1)
            elif frame[0] == NACK:
                nacks += self.fault != "counts no NACK"
                at = frame[2] + 1 if self.fault == "goes on behind a NACK" else frame[1]
                self._first = at
            elif frame[0] == BYE:
                leaving = self.fault != "goes on after BYE"
                if self.fault == "ends what goes on":
                    wire.send([BYE, 4])


class MinimalReceiver(Minimal):
    """Acknowledges each run."""

    name_said = "minimal"
    options = {"receive": {"subjects": ["a.>"]}}

    def __init__(self, port: int, fault: str = "") -> None:
        super().__init__(port, fault)
        self._taken: dict[str, set[int]] = {}
        self._named: dict[str, list[int]] = {}
        self._held: dict[str, list[Any]] = {}  # a run that is being handled, as `last` names one

    def resume(self, incarnation: str) -> list[Any]:
        """What was taken of that incarnation."""
        if self.fault == "mixes incarnations up":
            incarnation = ""
        found = self._taken.setdefault(incarnation, set())
        self._now = found
        self._incarnation = incarnation
        taken = [] if self.fault == "forgets" else [[n, n] for n in sorted(found)]
        named = self._named.get(incarnation)
        if self.fault not in ("names no run", "names only what it has taken"):
            named = self._held.get(incarnation, named)
        return [RESUME, 0, taken] if named is None else [RESUME, 0, taken, named]

    def live(self, wire: Wire, hello: list[Any], taken: set[int]) -> None:
        """Take runs."""
        lowest = 0
        while True:
            frame = self.read(wire)
            self.common(wire, frame)
            if frame[0] == REQUEST and self.fault != "answers no request":
                wire.send([REPLY, [[frame[1], False, [b"no"]]]])
            elif frame[0] == TRANSFER:
                if frame[2].endswith(".slow") and not self._handled(wire, frame):
                    continue
                sequences = set(range(frame[1], frame[1] + len(frame[3])))
                known = sequences <= self._now
                self._now |= sequences
                self._remember(frame[1], frame[3], known)
                lowest = lowest or frame[1]
                if known and self.fault == "acknowledges once":
                    continue
                first = lowest if self.fault == "acknowledges gaps" else frame[1]
                last = frame[1] + len(frame[3]) - 1
                if element(frame, 4, None) is not None and self.fault == "acknowledges more":
                    last += 7
                if self.fault != "acknowledges nothing":
                    wire.send([ACK, [[first, last]]])

    def _handled(self, wire: Wire, frame: list[Any]) -> bool:
        """Whether a run that takes long is handled: not before it comes again."""
        last = frame[1] + len(frame[3]) - 1
        run = [frame[1], last, zlib.crc32(msgspec.msgpack.encode(frame[3]))]
        if self._held.pop(self._incarnation, None) == run:
            return True
        self._held[self._incarnation] = run
        return False

    def _remember(self, first: int, messages: list[Any], known: bool) -> None:
        """Remember a run that was taken as the newest, or what it says for it."""
        if self.fault == "names no run":
            return
        last = first + len(messages) - 1
        newest = self._named.get(self._incarnation)
        if self.fault == "names its first run" and newest is not None:
            return
        if known or (newest is not None and newest[1] >= last):
            return
        crc = zlib.crc32(msgspec.msgpack.encode(messages))
        if self.fault == "names another CRC":
            crc ^= 1
        if self.fault == "names more than came":
            last += 1
        self._named[self._incarnation] = [first, last, crc]
