"""A member: one remote as its central has it, from a hello until the next one or until it has left.

    hello ─► DIALLING ─ connected ─► GREETING ─ Joined ─► JOINED ─ lost ─► DIALLING (the same again)
                 │  redial_seconds are over                  │ shut down
                 └──────────────► LEFT ◄─────────────────────┘

A remote that acknowledges nothing is joined once it is connected, and what its kernel has counts
as acknowledged. Numbers, and what waits, are in the `Account` (`hop`), which goes on with the next
member of the same remote. Who may be a member, and what becomes of its messages, is `central`'s.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime, IStreamClientEndpoint
from twisted.logger import Logger

from msgservice.faces.sessions.content.codec import ISessionCodec
from msgservice.faces.sessions.envelope import Ack, Hello, Previous, Welcome, check_reason
from msgservice.faces.sessions.errors import NotJoined
from msgservice.faces.sessions.hop import Account, Hop
from msgservice.faces.sessions.incoming import Incoming
from msgservice.faces.sessions.limits import SessionLimits
from msgservice.faces.sessions.outgoing import Entry
from msgservice.faces.sessions.sender import Sender

Key = str | tuple[str, int]  # the id of a remote, else the address of its server


class State(Enum):
    """The state of a member (picture of the module)."""

    DIALLING = "dialling"
    GREETING = "greeting"
    JOINED = "joined"
    LEFT = "left"


class MemberUser(Protocol):
    """The owner of a member."""

    def member_joined(self, member: Member) -> None:
        """Take note that it is there: again, where it was there before."""

    def member_left(self, member: Member, reason: str) -> None:
        """Take note that it is gone for good; what waits for it fails behind that."""

    def hear_no_more(self, member: Member) -> None:
        """End the connection of its hello: it says another one, if it is there."""

    def is_arriving(self, member: Member) -> bool:
        """Whether something that it says is on its way, so that it cannot be heard yet."""


class Member:
    """One remote: its client, and what leaves over that."""

    _log = Logger()

    def __init__(
        self,
        reactor: IReactorTime,
        *,
        key: Key,
        hello: Hello,
        address: tuple[str, int],
        session: str,
        previous: Previous | None,
        account: Account,
        endpoint: IStreamClientEndpoint,
        codec: ISessionCodec,
        user: MemberUser,
        limits: SessionLimits,
        rng: Callable[[], float],
    ) -> None:
        self.key, self.address = key, address
        self.id, self.acks = hello.id, hello.acks
        self.session = session
        self.account = account
        self.state = State.DIALLING
        self.last_heartbeat: float | None = None
        self._reactor = reactor
        self._hello = hello
        self._previous = previous
        self._user = user
        self._limits = limits
        self._timer: IDelayedCall | None = None  # of joining, and of ending
        self._is_heard = True
        self._is_asked = False  # whether it is there, since it did not answer that it is to end
        self._unheard: IDelayedCall | None = None  # until who is heard no more has left
        self._shutdown: Entry | None = None
        self._sender = Sender(
            reactor,
            endpoint,
            self,
            limits=limits,
            redial_seconds=limits.redial_seconds,
            rng=rng,
        )
        self._hop = Hop(
            reactor,
            account=account,
            sender=self._sender,
            codec=codec,
            limits=limits,
            acks=hello.acks,
            on_shutdown=self._was_shut_down,
        )

    @property
    def is_joined(self) -> bool:
        """Whether messages can leave now."""
        return self.state is State.JOINED

    @property
    def is_ending(self) -> bool:
        """Whether it has been told to shut down."""
        return self._hop.is_ending

    @property
    def is_durable(self) -> bool:
        """Whether what is for it can wait in a node: it has an id, and says what it handled."""
        return self.id is not None and self.acks

    @property
    def queued(self) -> int:
        """Messages for it that are not acknowledged."""
        return self.account.outgoing.messages

    def adopt(self, account: Account) -> None:
        """Go on with the account of the member that it replaces: it has proven to be the same."""
        self.account = account
        self._hop.adopt(account)

    def start(self) -> None:
        """Dial back."""
        self._sender.start()

    # --- from the central

    def add(self, entry: Entry) -> None:
        """Send a message as soon as the remote is there. Raises `QueueFull`, `MessageTooLarge`."""
        self._hop.add(entry)

    def beat(self, payload: bytes, now: float) -> None:
        """Write a heartbeat ahead of all that waits, if the remote is there."""
        # One that was there may have much on its way before its `joined`, and hears nobody else.
        is_back = self.state is State.GREETING and self.account.was_confirmed
        if self.state is State.JOINED or is_back:
            self._hop.write(payload)
            self.last_heartbeat = now

    def shut_down(self, reason: str | None) -> Entry:
        """Tell the remote to end, behind all that waits for it.

        Raises `NotJoined`, `QueueFull`; `BadControl` for a reason that cannot be one.
        """
        reason = check_reason(reason)
        if self.state is not State.JOINED or self._hop.is_ending:
            raise NotJoined(f"{named(self.key)} is not joined")
        self._shutdown = entry = Entry((reason or "").encode(), is_shutdown=True)
        self._hop.add(entry)
        return entry

    def joined(self, session: str) -> None:
        """Take the remote's word that the connection dialled back is its own."""
        if self.state is State.GREETING and session == self.session:
            self.account.confirmed(self._hello.payload_bytes, self._hello.window)
            self._join()

    def acknowledged(self, ack: Ack) -> None:
        """Take the remote's word on what was handled. Raises `BadAck`."""
        self._hop.acknowledged(ack)

    def handled(self, incoming: Incoming) -> None:
        """Acknowledge soon: a handler of the remote's messages has ended."""
        self._hop.handled(incoming)

    def unheard(self) -> None:
        """Take note that the connection of its hello has ended: it says nothing any more."""
        self._is_heard = False
        if self.acks and self.state is not State.LEFT and self._unheard is None:
            self._unheard = self._reactor.callLater(self._unheard_seconds, self._is_unheard)
        if self.state is State.DIALLING and self._hop.is_ending and not self._is_asked:
            self._stop_timer()
            self._wait_for_hello()

    def replace(self) -> None:
        """End, since the same remote has said hello again; what waits goes on with the next."""
        if self.state is not State.LEFT:
            self._end(State.LEFT)
            self._sender.abort()

    def leave(self, reason: str) -> None:
        """End for good: what waits has failed."""
        if self.state is State.LEFT:
            return
        self._end(State.LEFT)
        # Who sends again where a receipt fails must not find it here.
        self._user.member_left(self, reason)
        self.account.end(f"{named(self.key)} left ({reason})")

    def stop(self, reason: str) -> Deferred[None]:
        """Leave once what is written has left; fires then."""
        self._hop.end()
        self.leave(reason)
        return self._sender.stop()

    # --- from its client

    def sender_connected(self) -> None:
        """See `SenderUser`."""
        self._hop.connected()
        if not self.acks:
            self._join()
            return
        self.state = State.GREETING
        limits, nonce = self._limits, self._hello.nonce
        self._hop.control(
            Welcome(self.session, self._previous, nonce, limits.payload_bytes, limits.window)
        )
        self._wait_for_joined()

    def _wait_for_joined(self) -> None:
        self._timer = self._reactor.callLater(self._limits.join_timeout, self._not_joined)

    def sender_writable(self) -> None:
        """See `SenderUser`."""
        self._hop.writable()

    def sender_lost(self, reason: str) -> None:
        """See `SenderUser`."""
        if self.state is State.LEFT:
            return
        self._end(State.DIALLING)
        if not self._hop.is_ending:
            return
        self._sender.abort()  # until the next hello nobody dials
        if not self.acks:
            self._not_answered()
        elif self._is_heard:
            # Its last word comes over its own client, and that connection ends behind it.
            self._timer = self._reactor.callLater(self._limits.join_timeout, self._ask)
        else:
            self._wait_for_hello()

    def sender_gave_up(self, reason: str) -> None:
        """See `SenderUser`."""
        self.leave(reason)

    # --- inside

    def _join(self) -> None:
        self._stop_timer()
        self.state = State.JOINED
        self._hop.open()
        self._user.member_joined(self)

    def _not_joined(self) -> None:
        self._timer = None
        if self.account.was_confirmed and self._user.is_arriving(self):
            self._wait_for_joined()
            return
        self._sender.abort()
        self.leave(f"no answer to welcome within join_timeout = {self._limits.join_timeout} s")

    def _is_unheard(self) -> None:
        self._unheard = None
        self._sender.abort()
        seconds = self._unheard_seconds
        self.leave(f"its own connection has ended, and it said no other hello for {seconds} s")

    @property
    def _unheard_seconds(self) -> float:
        """For how long it may be without its own connection: what is said to it goes unanswered."""
        return self._limits.redial_seconds + self._limits.join_timeout

    def _wait_for_hello(self) -> None:
        """Wait for the next hello of who neither says nor hears anything: it may not have ended."""
        self._timer = self._reactor.callLater(self._limits.join_timeout, self._not_answered)

    def _ask(self) -> None:
        """Let a remote that may not have got its shutdown say hello: it is told again then."""
        self._is_asked = True
        self._wait_for_hello()
        self._user.hear_no_more(self)

    def _not_answered(self) -> None:
        self._timer = None
        if not self.acks and self._shutdown is not None:
            self._shutdown.settle()  # it has ended, and that is all that it can say
        self.leave("told to shut down, and the connection ended")

    def _was_shut_down(self) -> None:
        if self.state is not State.LEFT:
            self._sender.stop().addErrback(lambda f: self._log.failure("end of a client", f))
            self.leave("told to shut down")

    def _end(self, state: State) -> None:
        self.state = state
        self._stop_timer()
        if state is State.LEFT and self._unheard is not None:
            self._unheard.cancel()
            self._unheard = None
        self._hop.close()

    def _stop_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()


def named(key: Key) -> str:
    """Return a key as text, for people."""
    return ":".join(map(str, key)) if isinstance(key, tuple) else str(key)
