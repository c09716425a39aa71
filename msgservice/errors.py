"""The error tree: every error that msgservice raises on purpose, and its code on the wire.

`ProtocolError` and what is below it is the fault of the other side of a connection; it ends that
connection with an ERROR frame that carries `wire_code`; `passes` says whether the same may be said
again later, and be taken. `Refused` and what is below it is about
one message that was never accepted. Errors carry facts as attributes; the sentence is for people.
`docs/errors.md` lists them all, and a test compares it with this module.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Sequence
from typing import Any, ClassVar


class MsgServiceError(Exception):
    """Anything that msgservice raises on purpose.

    `refusal_code`: what a NACK or a failed REPLY carries for this error, 0 where it has none of its
    own; `about`: the name that it concerns, sent beside the code.
    """

    refusal_code: ClassVar[int] = 0

    @property
    def about(self) -> str:
        """The name of the receiver or limit that the error concerns, empty for most."""
        return ""


# The first four bytes of requests.
HTTP_METHODS = (b"GET ", b"POST", b"PUT ", b"HEAD", b"PATC", b"DELE", b"OPTI", b"PRI ")


# --- The other side of a connection broke the protocol (PROTOCOL: ERROR frames) ---------------


class ProtocolError(MsgServiceError):
    """The peer sent what it may not send; this connection ends, no other is touched."""

    wire_code: ClassVar[int] = 1
    passes: ClassVar[bool] = False


class MalformedFrame(ProtocolError):
    """A frame that does not decode: not msgpack, wrong shape, wrong type, integer out of range."""

    wire_code = 2


def _spoken(size: int) -> str:
    """Return what other protocol is spoken there, where what was read as a length says so."""
    if size >> 16 in (0x1603, 0x1503):  # a handshake, and an alert
        return "what came looks like TLS: only one side has tls: in its address; read as a "
    first = size.to_bytes(4, "big") if size < 2**32 else b""
    if first == b"HTTP":
        return (
            "what listens there speaks HTTP, and no node does: it may be the address of a page"
            " (web); read as a "
        )
    if first in HTTP_METHODS:
        return "what came is a request by HTTP, which is for an address of web; read as a "
    if first.isascii() and first.decode().isprintable() and first:
        return f"what came begins with {first.decode()!r}: that is another protocol; read as a "
    return ""


class FrameTooLarge(ProtocolError):
    """A frame longer than the limit, on its way in or out."""

    wire_code = 3

    def __init__(self, size: int, size_max: int) -> None:
        super().__init__(f"{_spoken(size)}frame of {size} bytes, at most {size_max} allowed")
        self.size, self.size_max = size, size_max


class WrongVersion(ProtocolError):
    """The peer speaks another version of the protocol."""

    wire_code = 4

    def __init__(self, version: int, supported: int) -> None:
        super().__init__(f"protocol version {version}, this side speaks version {supported}")
        self.version, self.supported = version, supported


class UnknownKind(ProtocolError):
    """A frame of a kind that this version does not know."""

    wire_code = 5

    def __init__(self, kind: object) -> None:
        super().__init__(f"unknown frame kind {kind!r}")
        self.kind = kind


class UnexpectedFrame(ProtocolError):
    """A known frame at a moment when it may not come, a TRANSFER before HELLO say."""

    wire_code = 6

    def __init__(self, kind: str, state: str) -> None:
        super().__init__(f"{kind} frame while {state}")
        self.kind, self.state = kind, state


class DeadlinePassed(ProtocolError):
    """The peer took longer than allowed, for its HELLO, half a frame, or reading; or this side did,
    for its answer to a HELLO."""

    wire_code = 7
    passes = True

    def __init__(self, what: str, seconds: float) -> None:
        super().__init__(f"{what} not within {seconds:g} s")
        self.what, self.seconds = what, seconds


class BadName(ProtocolError):
    """A name that is empty, too long, or holds characters that names may not have.

    So is the id of a message, or an idempotency key: `what` it is.
    """

    wire_code = 8
    refusal_code = 13

    def __init__(self, name: str, reason: str, what: str = "name") -> None:
        super().__init__(f"bad {what} {name[:64]!r}: {reason}")
        self.name, self.reason = name, reason


class BadSubject(ProtocolError):
    """A subject or pattern that breaks the rules of subjects."""

    wire_code = 9
    refusal_code = 14

    def __init__(self, subject: str, reason: str) -> None:
        super().__init__(f"bad subject {subject[:64]!r}: {reason}")
        self.subject, self.reason = subject, reason


class NeverSent(ProtocolError):
    """The peer answered sequences that were not sent on this connection."""

    wire_code = 10

    def __init__(self, first: int, last: int) -> None:
        super().__init__(f"answer for sequences {first} to {last}, never sent on this connection")
        self.first, self.last = first, last


class ContentChanged(ProtocolError):
    """The same sequence came again with other content (SEMANTICS 4)."""

    wire_code = 11

    def __init__(self, first: int, last: int) -> None:
        super().__init__(f"sequences {first} to {last} were sent before with other content")
        self.first, self.last = first, last


class NameMismatch(ProtocolError):
    """The peer is not who it must be (SEMANTICS 27)."""

    wire_code = 12


class NotAuthenticated(ProtocolError):
    """The listener asks for a login, or the login failed; or it is for local connections."""

    wire_code = 13
    refusal_code = 16


class HalfOpen(ProtocolError):
    """The peer is silent: nothing was heard from it for 2.5 heartbeats."""

    wire_code = 14
    passes = True

    def __init__(self, seconds: float) -> None:
        super().__init__(f"nothing heard for {seconds:g} s")
        self.seconds = seconds


class NotSupported(ProtocolError):
    """Something of the protocol that this build does not offer; refused, never ignored."""

    wire_code = 15

    def __init__(self, what: str) -> None:
        super().__init__(f"{what} is not supported")
        self.what = what


class WindowExceeded(ProtocolError):
    """The peer sent more than the window allows unanswered; `unit`: "messages" or "bytes"."""

    wire_code = 16

    def __init__(self, unit: str, unanswered: int, limit: int) -> None:
        super().__init__(f"{unanswered} {unit} unanswered, at most {limit} allowed (window_{unit})")
        self.unit, self.unanswered, self.limit = unit, unanswered, limit


class NameHeld(ProtocolError):
    """A receiver's name was replaced too often, and is held for a while (SEMANTICS 5)."""

    wire_code = 17
    passes = True

    def __init__(self, name: str, seconds: float) -> None:
        super().__init__(f"receiver {name!r} was replaced too often: it is held for {seconds:g} s")
        self.name, self.seconds = name, seconds


class ConfiguredOtherwise(ProtocolError):
    """A receiver asks for patterns or an order other than those that the node has configured."""

    wire_code = 18

    def __init__(self, name: str, what: str) -> None:
        super().__init__(f"the {what} of {name!r} is configured, and another one")
        self.name, self.what = name, what


class SharedOtherwise(ProtocolError):
    """A receiver is shared by several connections, and this one would have it alone; or not."""

    wire_code = 22

    def __init__(self, name: str, *, shared: bool) -> None:
        how = "is shared, and this connection" if shared else "is not shared, and this connection"
        says = "does not say" if shared else "says"
        super().__init__(f"receiver {name!r} {how} {says} shared (`shared=True`, or --shared)")
        self.name, self.shared = name, shared


class ConnectionLimit(ProtocolError):
    """A limit of the node, named, leaves this connection no room."""

    wire_code = 19
    passes = True

    def __init__(self, limit: str, value: int) -> None:
        super().__init__(f"limit {limit} = {value} reached")
        self.limit, self.value = limit, value


class NotAllowed(ProtocolError):
    """A user may not be who it says it is, or receive what it asks for: `what` it may not.

    The same for a receiver's name that is somebody else's, nobody's, or none of its names.
    """

    wire_code = 20

    def __init__(self, user: str, what: str) -> None:
        super().__init__(f"user {user!r} may not {what}")
        self.user, self.what = user, what


class LoginEnded(ProtocolError):
    """The login of a user has ended: its rights have changed, or its token has expired."""

    wire_code = 21
    passes = True

    def __init__(self, user: str) -> None:
        super().__init__(f"the login of user {user!r} has ended: log in again")
        self.user = user


# Codes after which a connection is made again as after any other end: what they stand for passes
# by itself, may be a fault inside the other side (1), or is mended by a new incarnation (11).
SOON_AGAIN = frozenset(
    {error.wire_code for error in ProtocolError.__subclasses__() if error.passes}
    | {ProtocolError.wire_code, ContentChanged.wire_code}
)


def stays_refused(code: int) -> bool:
    """Whether an ERROR with this code comes again until somebody changes something."""
    return code not in SOON_AGAIN


# --- One message was not accepted ---------------------------------------------------------------


class Refused(MsgServiceError):
    """The node did not accept the message; nothing was stored and nothing will be delivered."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class MessageTooLarge(Refused):
    """The message is larger than a batch may be. `of`: whose limit that is, for people."""

    refusal_code = 1

    def __init__(self, size: int, size_max: int, of: str = "") -> None:
        whose = f" ({of})" if of else ""
        super().__init__(f"message of {size} bytes, at most {size_max} allowed{whose}")
        self.size, self.size_max = size, size_max


class UnknownReceiver(Refused):
    """`to` names a receiver that the node does not know."""

    refusal_code = 2

    def __init__(self, name: str) -> None:
        super().__init__(f"unknown receiver {name!r}")
        self.name = name

    @property
    def about(self) -> str:
        """See `MsgServiceError`."""
        return self.name


class NoReceiver(Refused):
    """Nobody's patterns match the subject."""

    refusal_code = 3

    def __init__(self, subject: str) -> None:
        super().__init__(f"no receiver for subject {subject!r}")
        self.subject = subject


class TooFewReceivers(Refused):
    """A promise wants more receivers than the message is for.

    `counts`: how many it wants, of how many there are, as `3/2`.
    """

    refusal_code = 24

    def __init__(self, counts: str) -> None:
        need, _, found = counts.partition("/")
        super().__init__(
            f"the promise needs {need} receivers, the message is for {found}"
            if need != "0"
            else "the promise needs all receivers, and the message is for nobody"
        )
        self.counts = counts

    @property
    def about(self) -> str:
        """See `MsgServiceError`."""
        return self.counts


class KeyReused(Refused):
    """The idempotency key was used for another message: other subject, `to`, body or content-type.

    Nothing was stored; what the key was used for first stays as it is.
    """

    refusal_code = 19

    def __init__(self, key: str) -> None:
        super().__init__(
            f"the idempotency key {key!r} was used for another message:"
            " of another subject, `to`, body or content-type"
        )
        self.key = key

    @property
    def about(self) -> str:
        """See `MsgServiceError`."""
        return self.key


class PathTooLong(Refused):
    """A message has passed so many nodes of a chain that it is passed on no further."""

    refusal_code = 21

    def __init__(self, length: int, length_max: int) -> None:
        super().__init__(f"path of {length} nodes, at most {length_max} allowed")
        self.length, self.length_max = length, length_max


class Forbidden(Refused):
    """The rules of whoever asks do not allow it. `verb`: what, `send` say; `name`: on what."""

    refusal_code = 18

    def __init__(self, verb: str, name: str) -> None:
        super().__init__(f"not allowed: {verb} {name!r}")
        self.verb, self.name = verb, name

    @property
    def about(self) -> str:
        """See `MsgServiceError`."""
        return self.name


class Expired(Refused):
    """The message's ttl was over before the node was given it: it was sent to nobody."""


class OutboxFull(Refused):
    """The producer's disk outbox is at its limit."""

    def __init__(self, size: int, size_max: int) -> None:
        super().__init__(f"outbox holds {size} bytes, at most {size_max} allowed")
        self.size, self.size_max = size, size_max


class NotYetBuilt(Refused):
    """An option that this version does not offer; refused, never ignored."""

    refusal_code = 4

    def __init__(self, option: str) -> None:
        super().__init__(f"{option} is not supported by this version")
        self.option = option

    @property
    def about(self) -> str:
        """See `MsgServiceError`."""
        return self.option


class PathRefused(Refused):
    """A peer named a file outside of the root it is confined to, or one that may not be touched."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"path {path[:256]!r} refused: {reason}")
        self.path, self.reason = path, reason


# --- What became of an accepted message ---------------------------------------------------------


class NotDelivered(MsgServiceError):
    """The message reached another final state at this receiver than *acknowledged*."""

    def __init__(self, receiver: str, state: str, reason: str | None) -> None:
        super().__init__(
            f"not delivered to {receiver!r}: {state}" + (f" ({reason})" if reason else "")
        )
        self.receiver, self.state, self.reason = receiver, state, reason


class Ambiguous(MsgServiceError):
    """The call ended before its outcome was known; it may have happened.

    A retry of the same call may do it twice, unless an outbox or a key makes it once.
    """


class ClientClosed(Ambiguous):
    """The client was closed while this was under way."""


class NoResponder(MsgServiceError):
    """Nobody answers requests on this subject."""

    refusal_code = 7

    def __init__(self, subject: str) -> None:
        super().__init__(f"nobody answers requests on {subject!r}")
        self.subject = subject


class Busy(MsgServiceError):
    """All who answer requests on this subject have as many as they take; nothing was asked."""

    refusal_code = 22

    def __init__(self, subject: str) -> None:
        super().__init__(f"all who answer requests on {subject!r} are busy")
        self.subject = subject


class ResponderLost(Ambiguous):
    """The connection of who was asked was lost before the answer; it may have been handled."""

    refusal_code = 23

    def __init__(self, subject: str) -> None:
        super().__init__(f"who was asked on {subject!r} has gone; it may have been handled")
        self.subject = subject


class RequestFailed(MsgServiceError):
    """The other side answered the request with an error, and its code if that has one."""

    def __init__(self, reason: str, code: int = 0) -> None:
        super().__init__(reason)
        self.code = code


class RequestTimeout(MsgServiceError):
    """No answer within the time given."""

    refusal_code = 8

    def __init__(self, subject: str, seconds: float) -> None:
        super().__init__(f"no answer on {subject!r} within {seconds:g} s")
        self.subject, self.seconds = subject, seconds


class TransferFailed(MsgServiceError):
    """A file did not arrive whole: refused, not writable, or its checksum differs."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"file {path[:256]!r}: {reason}")
        self.path, self.reason = path, reason


class NodeFailure(Ambiguous):
    """A peer of acknowledged UDP did not answer; whether it handled the message is not known."""

    def __init__(self, address: tuple[str, int], seconds: float) -> None:
        super().__init__(f"{address[0]}:{address[1]} did not answer within {seconds:g} s")
        self.address, self.seconds = address, seconds


class PeerClosed(Ambiguous):
    """The datagram peer was closed while this message was under way."""


class HandlerFailed(MsgServiceError):
    """The other side's handler raised; the message was handled and will not be sent again.

    `replies`, of a run: what each message was answered, bytes or a `HandlerFailed` of its own.
    """

    def __init__(self, reason: str, replies: Sequence[bytes | HandlerFailed] | None = None) -> None:
        super().__init__(reason)
        self.reason, self.replies = reason, replies


class RemoteFailed(MsgServiceError):
    """A call of the other side of a Perspective Broker connection failed there.

    `kind`: the full name of the error's type there; `reason`: what it says for people.
    """

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(f"{kind.rpartition('.')[2]}: {reason}" if kind else reason)
        self.kind, self.reason = kind, reason


class NotConnected(MsgServiceError):
    """The other end of a peer is not there: nothing was asked of it. `reason`: why it is not."""

    def __init__(self, name: str, reason: str = "") -> None:
        why = f" ({reason})" if reason else ""
        super().__init__(f"peer {name!r} is not connected: nothing was called{why}")
        self.name, self.reason = name, reason


# --- What a handler says ------------------------------------------------------------------------


class HandlerOutcome(MsgServiceError):
    """Raised by a handler to say what shall happen with the message."""


class Retry(HandlerOutcome):
    """Try this message again, after `delay` seconds (None: the sender's own backoff)."""

    def __init__(self, delay: float | None = None, reason: str = "retry asked for") -> None:
        super().__init__(reason)
        self.delay, self.reason = delay, reason


class Reject(HandlerOutcome):
    """Never send this message again: to the dead letters with it."""

    def __init__(self, reason: str = "rejected") -> None:
        super().__init__(reason)
        self.reason = reason


# --- The log ------------------------------------------------------------------------------------


class LogError(MsgServiceError):
    """Something about the durable store."""


class LogFull(LogError):
    """No room; nothing was written. Accepted again when there is room (SEMANTICS 18, 19)."""

    refusal_code = 5

    def __init__(self, reason: str, *, delay: float = 1.0) -> None:
        super().__init__(f"log full: {reason}")
        self.reason, self.delay = reason, delay


class LogUnavailable(LogError):
    """The log cannot be written now; nothing was acknowledged."""


class LogFailed(LogError):
    """A sync failed and the log could not be made whole: the process must end (SEMANTICS 19).

    Of an outbox or inbox: it is to be opened again, and the message says by what. Whether what
    failed with this is in the file is seen then.
    """


class LogReplaced(LogFailed):
    """Other files lie where those were that a running node has open (SEMANTICS 33).

    What it acknowledged since is in the files that it has open, and nowhere else.
    """


class LogLocked(LogError):
    """Another process holds the data folder, outbox or inbox (SEMANTICS 26, 33)."""

    def __init__(
        self,
        path: str,
        holder: str,
        help: str = ": stop that first, or use another",  # noqa: A002
    ) -> None:
        super().__init__(f"{path} is held by {holder}{help}")
        self.path, self.holder = path, holder


class OutboxOfAnother(LogError):
    """An outbox holds what another sender has handed over: `path`, `sender`."""

    def __init__(self, path: str, sender: str, name: str) -> None:
        super().__init__(
            f"{path} is the outbox of the sender {sender!r}, and has messages of it whose fate is"
            f" open: {name!r} would send them again, or call them lost. Be {sender!r}, or use"
            " another file"
        )
        self.path, self.sender = path, sender


class OutboxTableTaken(MsgServiceError):
    """An outbox table is not this relay's: another outbox has it, or this one is another table's.

    `table`: its name.
    """

    def __init__(self, table: str, reason: str) -> None:
        super().__init__(f"the outbox table {table} {reason}")
        self.table = table


class LogTooNew(LogError):
    """The log, outbox or inbox was written by a newer program, and is left as it is."""

    def __init__(self, version: int, supported: int, file: str = "log") -> None:
        super().__init__(
            f"{file} has schema version {version}, this program knows up to {supported}:"
            " use the newer program"
        )
        self.version, self.supported = version, supported


class LogDamaged(LogError):
    """The log holds less than, or other than, what it acknowledged (SEMANTICS 21, 22).

    `first`, `last`: the batches (an outbox: sequences) that it is about; 0, 0: none by number.
    """

    def __init__(self, reason: str, first: int, last: int) -> None:
        where = f" (batches {first} to {last})" if last else ""
        super().__init__(f"log damaged: {reason}{where}")
        self.reason, self.first, self.last = reason, first, last


class DataFolderUnusable(LogError):
    """The data folder is not writable, cannot hold a log, or has files with other names."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"data folder {path} cannot be used: {reason}")
        self.path, self.reason = path, reason


class LogWentBack(LogError):
    """This side's own log is older than what the other side has seen of it (SEMANTICS 6)."""

    def __init__(self, peer: str, own: int, seen: int) -> None:
        super().__init__(f"{peer!r} has seen sequence {seen}, this log's highest is {own}")
        self.peer, self.own, self.seen = peer, own, seen


class PeerForgot(LogError):
    """The other side no longer has what it acknowledged (SEMANTICS 6)."""

    def __init__(self, peer: str, first: int, last: int) -> None:
        super().__init__(
            f"{peer!r} has forgotten sequences {first} to {last}, which it had acknowledged"
        )
        self.peer, self.first, self.last = peer, first, last


# --- What an operator asked cannot be done ------------------------------------------------------


class ReceiverExists(MsgServiceError):
    """A receiver of this name is there already."""

    refusal_code = 9

    def __init__(self, name: str) -> None:
        super().__init__(f"receiver {name!r} is there already: change it, or remove it first")
        self.name = name


class NotConfirmed(MsgServiceError):
    """More messages wait for a receiver than whoever removes it knows of."""

    refusal_code = 10

    def __init__(self, name: str, queued: int, confirmed: int, dead: int = 0) -> None:
        letters = f", and it has {dead} dead letter{'s' * (dead != 1)}" if dead else ""
        waits = "1 message waits" if queued == 1 else f"{queued} messages wait"
        super().__init__(
            f"{waits} for {name!r} by now{letters}: {confirmed} confirmed;"
            f" confirm={queued} removes it with what it has"
        )
        self.name, self.queued, self.confirmed, self.dead = name, queued, confirmed, dead


MESSAGE_IDS = "the sender's own, or SENDER/HASH/SEQUENCE"


class UnknownMessage(MsgServiceError):
    """No message of this id is in the log. `said`: a sentence that says so better."""

    refusal_code = 11

    def __init__(self, id_: str, said: str | None = None) -> None:
        ids = "" if id_.startswith("log:") else f" (an id is {MESSAGE_IDS}, or log:POSITION)"
        super().__init__(said or f"no message {id_!r} in the log{ids}")
        self.id = id_


class UnknownDeadLetter(MsgServiceError):
    """A receiver has no dead letter at this position, or with this name of its message."""

    refusal_code = 17

    def __init__(self, receiver: str, position: int | str) -> None:
        super().__init__(f"no dead letter {position} of receiver {receiver!r}")
        self.receiver, self.position = receiver, position


class ReplayRuns(MsgServiceError):
    """A replay runs for this receiver: there is one at a time (DELIVERY 47)."""

    refusal_code = 20

    def __init__(self, name: str) -> None:
        super().__init__(f"a replay to receiver {name!r} runs already: let it end, or call it off")
        self.name = name


class BadValue(MsgServiceError, ValueError):
    """A value that its field cannot have: an option, a limit, a rate. `reason` names no field."""

    refusal_code = 12

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field} {reason}")
        self.field, self.reason = field, reason


# --- Configuration and start --------------------------------------------------------------------


class ConfigError(MsgServiceError):
    """The configuration is wrong; `problems` has every one of them, with its line."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


class BadAddress(MsgServiceError):
    """An address that cannot be used: unknown scheme, missing or unknown part, unreadable file."""

    refusal_code = 15

    def __init__(self, address: str, reason: str) -> None:
        super().__init__(f"bad address {address!r}: {reason}")
        self.address, self.reason = address, reason


class CannotListen(MsgServiceError):
    """A listener could not be opened: port in use, or not allowed."""

    def __init__(self, listener: str, reason: str) -> None:
        super().__init__(f"cannot listen on {listener}: {reason}")
        self.listener, self.reason = listener, reason


class InsecureListener(CannotListen):
    """A listener beyond loopback without authentication (SEMANTICS 32)."""


class ForeignReactor(MsgServiceError):
    """Another reactor of Twisted is installed in this process than the one that would be needed."""

    def __init__(self, kind: str) -> None:
        super().__init__(
            f"Twisted's {kind} is installed in this process and does not run on this event loop:"
            " import nothing that imports twisted.internet.reactor before msgservice.aio has its"
            " own, or use msgservice.connect with the reactor that there is, or msgservice.blocking"
        )
        self.kind = kind


class ForkedProcess(MsgServiceError):
    """An object of `msgservice.blocking` was made before this process was forked from another."""

    def __init__(self, made_in: int, here: int) -> None:
        super().__init__(
            f"this was made in process {made_in}, of which {here} is a fork: its connection and its"
            " thread are there; call connect, or make a receiver, in this process too"
        )
        self.made_in, self.here = made_in, here


class LimitReached(MsgServiceError):
    """A configured limit was reached; names it."""

    refusal_code = 6

    def __init__(self, limit: str, value: int) -> None:
        super().__init__(f"limit {limit} = {value} reached")
        self.limit, self.value = limit, value

    @property
    def about(self) -> str:
        """See `MsgServiceError`."""
        return self.limit


# --- A request of HTTP ---------------------------------------------------------------------------


class WebRefused(MsgServiceError):
    """A request of HTTP that breaks a rule of the web listener; `status`: of the answer."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


# --- What a code on the wire stands for ---------------------------------------------------------

ERROR_HEADER = "msgservice-error"  # of a REPLY that is not ok: the code of the error
CODE_DIGITS_MAX = 9


def code_said(text: str) -> int:
    """Return the code that a header says; 0 where it says none."""
    is_one = text.isascii() and text.isdecimal() and len(text) <= CODE_DIGITS_MAX
    return int(text) if is_one else 0


def refused(code: int, about: str, reason: str, subject: str) -> Refused:
    """Return the error that a NACK stands for, by its code; a plain `Refused` where it has none.

    `subject`: of the run that was refused.
    """
    match code:
        case UnknownReceiver.refusal_code if about:
            return UnknownReceiver(about)
        case NoReceiver.refusal_code:
            return NoReceiver(subject)
        case Forbidden.refusal_code:
            return Forbidden("send", subject)
        case KeyReused.refusal_code:
            return KeyReused(about)
        case TooFewReceivers.refusal_code if about:
            return TooFewReceivers(about)
        case NotYetBuilt.refusal_code if about.isidentifier():
            return NotYetBuilt(about)
    return Refused(reason)


# The codes of failed REPLYs that are errors of their own: each says whether somebody was asked.
TYPED_CODES = frozenset(
    kind.refusal_code for kind in (NoResponder, RequestTimeout, Busy, ResponderLost)
)


def request_failed(code: int, reason: str, subject: str, seconds: float) -> MsgServiceError:
    """Return the error that a failed REPLY stands for, by its code; else `RequestFailed`.

    `subject`, `seconds`: of the request, and how long it was to wait.
    """
    match code:
        case NoResponder.refusal_code:
            return NoResponder(subject)
        case RequestTimeout.refusal_code:
            return RequestTimeout(subject, seconds)
        case Busy.refusal_code:
            return Busy(subject)
        case ResponderLost.refusal_code:
            return ResponderLost(subject)
    return RequestFailed(reason, code)


def refusal_codes() -> dict[str, int]:
    """Return the code of each error that a refusal may be, by its name (docs/errors.md)."""
    found: dict[str, int] = {}
    kinds = list(MsgServiceError.__subclasses__())
    for kind in kinds:
        if kind.refusal_code:
            found[kind.__name__] = kind.refusal_code
        kinds += kind.__subclasses__()
    return found


def kind_of(error: MsgServiceError) -> type[MsgServiceError]:
    """Return the kind of an error for who knows it by name: of a failed answer, what its code is.

    The kind of `RequestFailed` itself where the answer has no code, or one that is not known.
    """
    code = error.code if isinstance(error, RequestFailed) else 0
    kinds = list(MsgServiceError.__subclasses__()) if code else []
    for kind in kinds:
        if kind.refusal_code == code:
            return kind
        kinds += kind.__subclasses__()
    return type(error)


# --- A function of a program's that can never do what it was given for -------------------------

# What a function returns that has not run at all: nobody would ever ask it for anything.
GENERATORS = (types.GeneratorType, types.AsyncGeneratorType)
CURE = "its body does not run by itself: decorate it with inlineCallbacks, or make it async def"


def check_runs(function: Callable[..., Any], what: str = "handler") -> None:
    """Raise `TypeError` for a function whose body would never run, though each call succeeds."""
    for called in (function, type(function).__call__):
        if inspect.isgeneratorfunction(called) or inspect.isasyncgenfunction(called):
            raise TypeError(f"{what} {function!r} is a generator function: {CURE}")


def check_takes(function: Callable[..., Any], given: str, what: str = "handler") -> None:
    """Raise `TypeError` for a function that cannot be called with one argument, `given`.

    One of which nobody can say what it takes, as some in C, passes.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(None)
    except TypeError:
        name = getattr(function, "__qualname__", repr(function))
        raise TypeError(
            f"{what} {name}{signature} cannot be called with one argument, {given}: that is what"
            " it gets"
        ) from None


def has_not_run(result: object, what: str = "handler") -> TypeError:
    """Return what a handler, or another function, fails with that has returned a generator."""
    return TypeError(f"a {what} returned a {type(result).__name__}: {CURE}")
