"""The node that an implementation meets: its scenarios, one a connection, and what they find.

A scenario is a function that gets the connection behind HELLO (`Meeting`); it raises `Wrong`, or
returns. What was learned of the implementation, and what it was promised, is kept from one
connection to the next, as a node would keep it.
"""

from __future__ import annotations

import secrets
import socket
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from tests.conformance.login import LOGINS, Login
from tests.conformance.wire import (
    ACK,
    AUDIENCE,
    BYE,
    ERROR,
    HELLO,
    NACK,
    PING,
    PONG,
    REPLY,
    REQUEST,
    RESUME,
    ROUTED,
    TRANSFER,
    Gone,
    Silent,
    Wire,
    Wrong,
    element,
    integer,
    name,
    name_of,
    ranges,
    subject,
)  # fmt: skip

NODE = "conformance"
TEST, SLOW = "conformance.test", "conformance.slow"
HELLO_SECONDS = 10.0  # at least, for the first word of who is just being started
BATCH = 1 << 16  # sequences of a node towards a receiver are positions: batch << 16 | index


class Memory:
    """What a node remembers of the implementation between connections."""

    def __init__(self) -> None:
        self.incarnation = secrets.token_hex(8)
        self.sender = ""  # of the implementation, with its incarnation
        self.content: dict[int, tuple[str, Any]] = {}  # by sequence, of a client
        self.taken: set[int] = set()
        self.batch = 0  # the newest that a receiver was sent
        self.answered: set[int] = set()
        self.runs: dict[int, int] = {}  # that a receiver was sent: first sequence -> last
        self.held: range | None = None  # of these, one on SLOW that is still with its handlers
        self.names = False  # whether a RESUME has named a run


class Meeting:
    """A connection whose HELLO has come."""

    def __init__(self, wire: Wire, hello: list[Any], memory: Memory) -> None:
        self.wire = wire
        self.hello = hello
        self.memory = memory
        self.options: dict[str, Any] = element(hello, 4, {})
        self.open: set[int] = set()  # sequences that came here and are unanswered
        self.sent: set[int] = set()  # sequences that a receiver was sent here
        self.holes: set[int] = set()  # where gaps begin that `after` said to be empty
        self.resume: tuple[int, list[tuple[int, int]]] = (0, [])
        self.named: list[int] | None = None  # the run that its RESUME named
        self.names_features = True  # of which it knows not all

    # --- opening

    def greet(self, each_byte: bool = False, **options: Any) -> None:
        """Say HELLO and RESUME, take the implementation's."""
        self.say_hello(each_byte, **options)
        self.take_resume()
        self.say_resume(each_byte)

    def say_hello(self, each_byte: bool = False, **options: Any) -> None:
        """Say who this side is, with an option that nobody knows."""
        said = {"max_batch": 1 << 20, "heartbeat": 20_000, "window": [65_536, 1 << 24]} | options
        said["conformance-unknown"] = [1, {"a": None}]
        if self.names_features:
            said["features"] = ["codes", "conformance-unknown", "require", "to", "ttl"]
        if "receive" in self.options:
            said["receive"] = {"order": self.options["receive"].get("order") or "strict"}
        hello = [HELLO, 1, NODE, self.memory.incarnation, said]
        self.wire.send(hello, each_byte=each_byte)

    def take_resume(self) -> None:
        """Take the implementation's RESUME frames."""
        floor, found, more = 0, [], True
        while more:
            frame = self.wire.next(RESUME)
            if len(frame) < 3:
                raise Wrong("a RESUME of fewer than three elements")
            floor = max(floor, integer(frame[1], "the floor of RESUME"))
            found += ranges(frame[2], "RESUME")
            if len(frame[2]) > 1000:
                raise Wrong("a RESUME of more than 1,000 ranges")
            last = element(frame, 3, None)
            if last is not None:
                self._look_at_last(last)
                self.named, self.memory.names = last, True
            more = bool(element(frame, 4, False))
        self.resume = (floor, found)

    def _look_at_last(self, last: Any) -> None:
        """It names a run that came, up to the newest message that was taken."""
        if not isinstance(last, list) or len(last) != 3:
            raise Wrong(f"RESUME's last is {last!r}")
        first, end, crc = last
        if first not in self.memory.runs or not first <= end <= self.memory.runs[first]:
            raise Wrong(f"RESUME's last is {last}, no such run was sent")
        if end < max(self.memory.answered, default=0):
            raise Wrong(f"RESUME's last is {last}, {max(self.memory.answered)} was acknowledged")
        if crc != zlib.crc32(msgspec.msgpack.encode(_messages(range(first, end + 1)))):
            raise Wrong(f"RESUME's last is {last}, the CRC is another")

    def say_resume(self, each_byte: bool = False) -> None:
        """Say what was taken, as it is."""
        taken = list(runs_of(self.memory.taken))
        self.wire.send([RESUME, 0, taken, None, False, "more than was asked"], each_byte=each_byte)
        if "status_from" in self.options:
            self.wire.send([AUDIENCE, 0, []])
        for first, last in taken:
            self.route(first, last)

    def route(self, first: int, last: int) -> None:
        """Say that nobody receives these, to one who asked for it."""
        from_here = self.options.get("status_from")
        if from_here is not None and last >= from_here:
            self.wire.send([ROUTED, max(first, from_here), last, 0, 0])

    # --- of a client

    def transfer(self, timeout: float | None = None) -> range:
        """Take the next TRANSFER; return its sequences."""
        frame = self.wire.next(TRANSFER, timeout=timeout)
        if len(frame) < 4:
            raise Wrong("a TRANSFER of fewer than four elements")
        first = integer(frame[1], "the sequence", 1)
        topic = subject(frame[2])
        messages = frame[3]
        if not isinstance(messages, list) or not 1 <= len(messages) <= 4096:
            raise Wrong("the messages of a TRANSFER are no array of 1 to 4,096")
        after = integer(element(frame, 4, first - 1), "after", 0, first - 1)
        integer(element(frame, 5, 0), "floor", 0, first)
        memory = self.memory
        found = range(first, first + len(messages))
        for sequence in sorted(memory.content):
            if after < sequence < first and sequence not in memory.taken | self.open:
                raise Wrong(f"after = {after} at {first}, but {sequence} is open")
        for sequence, message in zip(found, messages, strict=True):
            if not isinstance(message, list) or not message or not isinstance(message[0], bytes):
                raise Wrong(f"message {sequence} is no array that begins with bytes")
            if sequence in memory.taken:
                raise Wrong(f"{sequence} came again; ACK or RESUME had said that it was taken")
            known = memory.content.setdefault(sequence, (topic, message))
            if known != (topic, message):
                raise Wrong(f"{sequence} came again with other content")
            self.open.add(sequence)
        return found

    def ack(self, sequences: range) -> None:
        """Take responsibility; with an element that nobody knows."""
        self.memory.taken |= set(sequences)
        self.open -= set(sequences)
        self.route(sequences[0], sequences[-1])
        self.wire.send([ACK, [[sequences[0], sequences[-1]]], "more than was asked"])

    # --- of a receiver

    def give(self, count: int = 1, after: int | None = None, topic: str = TEST) -> range:
        """Send a run of the next batch."""
        memory = self.memory
        memory.batch += 1
        first = memory.batch * BATCH
        return self.give_again(range(first, first + count), after, topic)

    def give_again(self, sequences: range, after: int | None = None, topic: str = TEST) -> range:
        """Send these sequences; the same always have the same content."""
        messages = _messages(sequences)
        self.wire.send([TRANSFER, sequences[0], topic, messages, after, 0, 0])
        self.memory.runs[sequences[0]] = sequences[-1]
        self.sent |= set(sequences)
        if after is not None:
            self.holes.add(after + 1)
        return sequences

    def answers(self, sequences: range) -> None:
        """All of these must be acknowledged, and nothing that was not sent here or is a hole."""
        left = set(sequences) - self.memory.answered
        while left:
            try:
                frame = self.wire.next(ACK)
            except Silent:
                raise Wrong(f"no ACK for {sorted(left)}") from None
            for first, last in ranges(element(frame, 1, None), "ACK"):
                for end in (first, last):
                    if end not in self.sent | self.holes:
                        raise Wrong(f"ACK of {end}, which was not sent on this connection")
                self.memory.answered |= {n for n in self.sent if first <= n <= last}
                left -= set(range(first, last + 1))


def _messages(sequences: range) -> list[list[bytes]]:
    return [[b"message %d" % sequence] for sequence in sequences]


def runs_of(numbers: set[int]) -> Iterator[tuple[int, int]]:
    """The numbers as ranges that rise."""
    first = last = None
    for number in sorted(numbers):
        if first is None or last is None or number != last + 1:
            if first is not None and last is not None:
                yield first, last
            first = number
        last = number
    if first is not None and last is not None:
        yield first, last


# --- scenarios of both --------------------------------------------------------------------------


def waits_for_hello(meeting: Meeting) -> None:
    """It says nothing behind HELLO before the node's HELLO, and no TRANSFER before its RESUME."""
    meeting.wire.stays_quiet("the node's HELLO")
    meeting.say_hello()
    meeting.take_resume()
    meeting.wire.stays_quiet("the node's RESUME")
    meeting.say_resume()


def takes_single_bytes(meeting: Meeting) -> None:
    """It takes frames that come a byte at a time, and several that come at once."""
    meeting.greet(each_byte=True)
    meeting.wire.send([PING, 1], [PING, 2], [PING, 3])
    _pongs(meeting, [1, 2, 3])


def answers_pings(meeting: Meeting) -> None:
    """It answers a PING with its token."""
    meeting.greet()
    meeting.wire.send([PING, 4711])
    _pongs(meeting, [4711])


def takes_a_node_without_features(meeting: Meeting) -> None:
    """It takes a node that names no features, as nodes of before do."""
    meeting.names_features = False
    meeting.greet()
    meeting.wire.send([PING, 12])
    _pongs(meeting, [12])


def _pongs(meeting: Meeting, tokens: list[int]) -> None:
    try:
        while tokens:
            frame = meeting.wire.read()
            if frame[0] == PONG:
                expected = tokens.pop(0)
                if element(frame, 1, 0) != expected:
                    raise Wrong(f"PONG {frame[1:]} where {expected} was asked")
            elif frame[0] == ERROR:
                raise Wrong(f"said ERROR {frame[1:]!r:.200} to a PING")
    except Silent:
        raise Wrong("no PONG for a PING") from None


def refuses_another_version(meeting: Meeting) -> None:
    """It ends a connection with a node of another version."""
    meeting.wire.send([HELLO, 2, NODE, meeting.memory.incarnation, {}])
    _ended_with(meeting.wire.ends("a HELLO of version 2"), 4)


def refuses_a_range_that_ends_before_it_begins(meeting: Meeting) -> None:
    """It ends a connection whose RESUME contradicts itself."""
    meeting.say_hello()
    meeting.take_resume()
    meeting.wire.send([RESUME, 0, [[9, 3]]])
    _ended_with(meeting.wire.ends("a RESUME with the range [9, 3]"), 2)


def refuses_what_is_no_frame(meeting: Meeting) -> None:
    """It ends a connection on which something comes that is no frame."""
    meeting.greet()
    meeting.wire.send([99, "no such kind"])
    _ended_with(meeting.wire.ends("a frame of kind 99"), 5)


def _ended_with(said: list[Any] | None, code: int) -> None:
    if said is not None and element(said, 1, 0) != code:
        raise Wrong(f"said ERROR {said[1:]!r:.200}, the code is {code}")


# --- scenarios of a client ----------------------------------------------------------------------


def sends_well_formed_runs(meeting: Meeting) -> None:
    """Its TRANSFERs are well-formed, and it goes on when they are acknowledged."""
    meeting.greet()
    for _ in range(3):
        meeting.ack(meeting.transfer())


def sends_again_what_is_unanswered(meeting: Meeting) -> None:
    """It keeps what was not answered when the connection ends."""
    meeting.greet()
    meeting.transfer()


def sent_again_what_was_unanswered(meeting: Meeting) -> None:
    """It sends again, first and under the same sequences, what was not answered before."""
    expected = min(set(meeting.memory.content) - meeting.memory.taken, default=None)
    meeting.greet()
    found = meeting.transfer()
    if expected is not None and found[0] != expected:
        raise Wrong(f"began with {found[0]}, but {expected} is unanswered")
    meeting.memory.taken |= set(found)  # and no ACK: it will be told by RESUME


def believes_resume(meeting: Meeting) -> None:
    """It does not send again what RESUME says was taken, and goes on behind it."""
    meeting.greet()
    meeting.ack(meeting.transfer())


def keeps_to_the_window(meeting: Meeting) -> None:
    """It sends no more than the window, but for one run when nothing is unanswered."""
    meeting.greet(window=[2, 1 << 20])
    runs = 0
    try:
        while True:
            meeting.transfer(timeout=1.0)
            runs += 1
            if len(meeting.open) > 2 and runs > 1:
                raise Wrong(f"{len(meeting.open)} messages unanswered, the window has 2")
    except Silent:
        if not runs:
            raise Wrong("nothing was sent") from None


def takes_a_lane_back(meeting: Meeting) -> None:
    """What a NACK took back it sends again, before what follows of the lane, and counts it."""
    meeting.greet(window=[1, 1 << 20])
    found = meeting.transfer()
    topic = meeting.memory.content[found[0]][0]
    meeting.open -= set(found)
    meeting.wire.send([NACK, found[0], found[-1], 4, 100, "conformance: later"])
    while True:
        frame = meeting.wire.next(TRANSFER)
        if frame[2] == topic:
            break
        meeting.ack(range(frame[1], frame[1] + len(frame[3])))
    if frame[1] != found[0]:
        raise Wrong(f"{frame[1]} of the lane came, but {found[0]} was to come again first")
    if element(frame, 6, 0) != 1:
        raise Wrong(f"nacks is {element(frame, 6, 0)} in what was sent again, not 1")
    meeting.ack(range(frame[1], frame[1] + len(frame[3])))


def stops_at_bye(meeting: Meeting) -> None:
    """After a BYE it sends nothing new, and takes the answers that still come.

    It comes back under the same incarnation, so it does not say that this one has ended.
    """
    meeting.greet(window=[1, 1 << 20])
    found = meeting.transfer()
    meeting.wire.send([BYE, 0, "conformance: the node stops"])
    meeting.ack(found)
    while True:
        try:
            frame = meeting.wire.read(1.0)
        except (Gone, Silent):
            return  # it may close, or leave that to who said BYE
        if frame[0] == TRANSFER:
            raise Wrong("a TRANSFER came after BYE and the ACK behind it")
        if frame[0] == BYE and element(frame, 1, 0) == 4:
            raise Wrong("BYE 4 ends an incarnation, and this one has more to send")


def refuses_an_answer_to_what_it_never_sent(meeting: Meeting) -> None:
    """It ends a connection on which sequences are acknowledged that it did not send."""
    meeting.greet()
    meeting.transfer()
    meeting.wire.send([ACK, [[2**40, 2**40 + 1]]])
    _ended_with(meeting.wire.ends("an ACK of what was never sent"), 10)


# --- scenarios of a receiver --------------------------------------------------------------------


def acknowledges_what_came(meeting: Meeting) -> None:
    """It acknowledges all that it was sent, and nothing else."""
    meeting.greet()
    newest = meeting.memory.batch * BATCH
    first = meeting.give(3, after=newest)
    meeting.answers(first)
    again = meeting.give(2, after=first[-1])
    meeting.answers(again)


def leaves_a_hole_alone(meeting: Meeting) -> None:
    """It acknowledges no range over a gap of which `after` did not speak."""
    meeting.greet()
    first = meeting.give()
    second = meeting.give()  # `after` left out: what lies between may still come
    left = {first[0], second[0]}
    while left:
        try:
            frame = meeting.wire.next(ACK)
        except Silent:
            raise Wrong(f"no ACK for {sorted(left)}") from None
        for low, high in ranges(element(frame, 1, None), "ACK"):
            if low <= first[0] and high >= second[0]:
                raise Wrong(f"ACK of [{low}, {high}] over a gap that may still be filled")
            left = {number for number in left if not low <= number <= high}
    meeting.memory.answered |= {first[0], second[0]}


def remembers_what_it_acknowledged(meeting: Meeting) -> None:
    """Its RESUME says what it has acknowledged of this incarnation."""
    meeting.say_hello()
    meeting.take_resume()
    floor, found = meeting.resume
    for sequence in sorted(meeting.memory.answered):
        if sequence >= floor and not any(low <= sequence <= high for low, high in found):
            raise Wrong(f"RESUME without {sequence}, which it had acknowledged")
    highest = max(floor - 1, *(high for _, high in found), 0)
    if highest > (meeting.memory.batch + 1) * BATCH:
        raise Wrong(f"RESUME goes up to {highest}, which was never sent")
    meeting.say_resume()


def acknowledges_again_what_comes_again(meeting: Meeting) -> None:
    """It acknowledges once more what comes again, for its first ACK may be lost."""
    meeting.greet()
    first = meeting.give(2)
    meeting.answers(first)
    meeting.memory.answered -= set(first)
    meeting.give_again(first)
    meeting.answers(first)


def takes_a_run_that_lasts(meeting: Meeting) -> None:
    """It takes a run whose handlers may last longer than the connection."""
    meeting.greet()
    held = meeting.give(2, topic=SLOW)
    meeting.wire.send([PING, 5])
    frame = meeting.wire.next(PONG, ACK)
    if frame[0] == PONG:  # it has read the run, and answered nothing
        meeting.memory.held = held
    else:
        meeting.memory.answered |= {n for a, b in ranges(frame[1], "ACK") for n in range(a, b + 1)}


def names_what_it_still_handles(meeting: Meeting) -> None:
    """Its RESUME names what its handlers still have, the newest run; ACK follows when they end."""
    meeting.say_hello()
    meeting.take_resume()
    held, named = meeting.memory.held, meeting.named
    meeting.say_resume()
    if held is None:
        return
    if meeting.memory.names and (named is None or named[:2] != [held[0], held[-1]]):
        raise Wrong(f"RESUME's last is {named}, its handlers have {held[0]} to {held[-1]}")
    meeting.give_again(held, topic=SLOW)
    other = meeting.give()
    meeting.answers(other)
    meeting.answers(held)


def answers_requests(meeting: Meeting) -> None:
    """It answers a REQUEST, be it with a refusal."""
    meeting.greet()
    meeting.wire.send([REQUEST, 7, "conformance.ask", [[b""]], 5000])
    frame = meeting.wire.next(REPLY)
    found = [reply[0] for reply in element(frame, 1, [])]
    if found != [7]:
        raise Wrong(f"REPLY to {found}, asked was 7")


def answers_after_bye(meeting: Meeting) -> None:
    """After a BYE it still answers what it has."""
    meeting.greet()
    sequences = meeting.give(2)
    meeting.wire.send([BYE, 0, "conformance: the node stops"])
    meeting.answers(sequences)


def knows_another_incarnation(meeting: Meeting) -> None:
    """To a new incarnation of the node its RESUME is empty."""
    memory = meeting.memory
    memory.incarnation = secrets.token_hex(8)
    memory.batch = 0
    memory.runs.clear()
    memory.answered.clear()
    meeting.say_hello()
    meeting.take_resume()
    floor, found = meeting.resume
    if floor > 1 or found:
        raise Wrong(f"RESUME says {floor} and {found} of an incarnation that sent nothing")
    meeting.say_resume()


def _look_at_features(said: Any) -> None:
    if not isinstance(said, list) or len(said) > 256:
        raise Wrong("the features of HELLO are no array of at most 256 names")
    for feature in said:
        if not isinstance(feature, str) or len(feature) > 64:
            raise Wrong(f"a feature is no text of at most 64 characters: {feature!r:.100}")


REASONS: dict[type[Exception], str] = {
    Gone: "it closed the connection",
    Silent: "nothing came in time",
}
Scenario = Callable[[Meeting], None]
BOTH: list[Scenario] = [
    waits_for_hello,
    takes_single_bytes,
    answers_pings,
    takes_a_node_without_features,
]
REFUSALS: list[Scenario] = [
    refuses_another_version,
    refuses_a_range_that_ends_before_it_begins,
    refuses_what_is_no_frame,
]
CLIENT: list[Scenario] = [
    *BOTH,
    sends_well_formed_runs,
    sends_again_what_is_unanswered,
    sent_again_what_was_unanswered,
    believes_resume,
    keeps_to_the_window,
    takes_a_lane_back,
    stops_at_bye,
    refuses_an_answer_to_what_it_never_sent,
    *REFUSALS,
]
RECEIVER: list[Scenario] = [
    *BOTH,
    acknowledges_what_came,
    remembers_what_it_acknowledged,
    leaves_a_hole_alone,
    acknowledges_again_what_comes_again,
    takes_a_run_that_lasts,
    names_what_it_still_handles,
    answers_requests,
    answers_after_bye,
    *REFUSALS,
    knows_another_incarnation,
]


class Kit:
    """All scenarios of one implementation, each on a connection that `connect` gives."""

    def __init__(
        self,
        connect: Callable[[], socket.socket],
        timeout: float,
        login: tuple[str, str] | None = None,
    ) -> None:
        """`login`: the user and password by which it logs in, on every connection."""
        self._connect = connect
        self._login = login
        self._timeout = timeout
        self._memory = Memory()
        self.wrong: dict[str, str] = {}
        self.passed: list[str] = []

    def run(self, say: Callable[[str], None] = print) -> bool:
        """Run them; return whether nothing was wrong."""
        scenarios: list[Scenario] | None = None
        at = 0
        if self._login is not None:
            self.run_logins(say)
        while scenarios is None or at < len(scenarios):
            wire = Wire(self._connect(), self._timeout)
            label, text = "says_hello", "It says HELLO first, and who it is."
            try:
                hello = self._hello(wire)
                if scenarios is None:
                    receives = "receive" in element(hello, 4, {})
                    scenarios = RECEIVER if receives else CLIENT
                    say(f"a {'receiver' if receives else 'client'}: {hello[2]}")
                label, text = scenarios[at].__name__, str(scenarios[at].__doc__)
                scenarios[at](Meeting(wire, hello, self._memory))
                say(f"ok     {text}")
                self.passed.append(label)
            except (Wrong, Gone, Silent) as error:
                self.wrong[label] = REASONS.get(type(error), str(error))
                say(f"WRONG  {text}  {self.wrong[label]}")
                if scenarios is None:
                    return False
            finally:
                wire.close()
            at += 1
        return not self.wrong

    def run_logins(self, say: Callable[[str], None] = print) -> None:
        """Run the scenarios in which no login ends well."""
        for scenario in LOGINS:
            self._log_in(scenario, say)

    def _log_in(self, scenario: Callable[[Login, Wire], None], say: Callable[[str], None]) -> None:
        assert self._login is not None
        wire = Wire(self._connect(), self._timeout)
        try:
            scenario(Login(wire, *self._login), wire)
            say(f"ok     {scenario.__doc__}")
            self.passed.append(scenario.__name__)
        except (Wrong, Gone, Silent) as error:
            self.wrong[scenario.__name__] = REASONS.get(type(error), str(error))
            say(f"WRONG  {scenario.__doc__}  {self.wrong[scenario.__name__]}")
        finally:
            wire.close()

    def _hello(self, wire: Wire) -> list[Any]:
        if self._login is not None:
            Login(wire, *self._login).all()
        frame = wire.read(max(self._timeout, HELLO_SECONDS))
        if frame[0] != HELLO:
            raise Wrong(f"{name_of(frame)} came first")
        if len(frame) < 4:
            raise Wrong("a HELLO of fewer than four elements")
        if integer(frame[1], "the version") != 1:
            raise Wrong(f"version {frame[1]}")
        sender = f"{name(frame[2], 'the name')}/{name(frame[3], 'the incarnation')}"
        if not isinstance(element(frame, 4, {}), dict):
            raise Wrong("the options of HELLO are no map")
        said = element(frame, 4, {}).get("features")
        if said is not None:
            _look_at_features(said)
        memory = self._memory
        if memory.sender not in ("", sender):
            raise Wrong(f"it was {memory.sender} and is {sender}: its memory is not gone")
        memory.sender = sender
        return frame
