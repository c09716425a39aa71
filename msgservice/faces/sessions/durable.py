"""Messages that wait in a node for remotes that are away.

    Central.send ─► node's log ─► outlet of `session.ID` ─► DurableRemotes ─► the member's queue

A remote that has an id and acknowledges is a receiver of the node from when it joins until it has
left. A message is acknowledged to the node when the remote says that its handler has ended; one
whose handler failed, or that nobody knows of, is tried again as of any receiver. A shutdown goes
the same way, behind what is stored; but what it is about only this process knows, so that nobody
is shut down by one that was not asked for in this session. Without a node, and for other remotes,
the queue in memory is all there is (`outgoing`).
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from msgservice.client.client import Client
from msgservice.client.receipt import Receipt
from msgservice.clock import timed
from msgservice.core.subjects import check_name
from msgservice.errors import HandlerFailed, MessageTooLarge, Reject, Retry
from msgservice.faces.gateway import Gateway
from msgservice.faces.sessions.envelope import ID_BYTES_MAX, check_reason
from msgservice.faces.sessions.errors import NotJoined, QueueFull, RemoteLeft
from msgservice.faces.sessions.handlers import check_thread
from msgservice.faces.sessions.hop import Account
from msgservice.faces.sessions.incoming import Incoming
from msgservice.faces.sessions.member import Member
from msgservice.faces.sessions.outgoing import Entry
from msgservice.receiver.received import ReceivedMessage
from msgservice.receiver.receiver import Receiver
from msgservice.waiters import Waiters

SUBJECT = "sessions."  # with the id, so that a remote that is full holds up no other
SHUTDOWN = {"session": "shutdown"}  # headers of what stands for a shutdown
_of_patterns = re.compile(r"[.*>]").sub
_PLAIN = {".": "/d", "*": "/s", ">": "/g"}  # no id has a slash, so each has a subject of its own
PREFIX = "session."  # of the names of receivers
SUBJECT_BYTES_MAX = len(PREFIX) + ID_BYTES_MAX  # as of a name
FULL_SECONDS = 1.0  # until what found no room in the queue is tried again
ATTACH_SECONDS = 5.0  # for how long what is sent waits until the node knows who has joined


class DurableReceipt:
    """The receipt of a message that a node has on disk for one remote."""

    def __init__(self, receipt: Receipt, name: str) -> None:
        self.receipt = receipt
        self._name = name

    def acknowledged(self) -> Deferred[Any]:
        """Fire when the remote's handler has ended; see `Receipt.acknowledged` for its failures."""
        check_thread()
        return self.receipt.acknowledged(self._name)


@dataclass(slots=True, eq=False)
class _Shutdown:
    """A shutdown that is stored behind what its member has still to handle."""

    account: Account
    process: Incoming  # of the account: another process begins with another one
    reason: str | None
    waiters: Waiters[None]


class DurableRemotes:
    """The remotes of one central as receivers of a node, by their ids.

    Args:
        reactor: clock and sockets of the receivers.
        client: sends to the node.
        attach: attaches a receiver to the node: `lambda r: r.attach("tcp:127.0.0.1:7410")`.
    """

    def __init__(
        self, reactor: IReactorTime, client: Client, attach: Callable[[Receiver], object]
    ) -> None:
        self._reactor = timed(reactor)
        self._client = client
        self._attach = attach
        self._gateway: Gateway[Account] = Gateway(self._reactor, self._begin, self._hand)
        self._members: dict[Account, Member] = {}
        # Names that the node may not know yet: what is sent to them waits, in order.
        self._attaching: dict[str, tuple[Waiters[None], IDelayedCall]] = {}
        self._shutdowns: dict[bytes, _Shutdown] = {}  # by what is stored of them
        # Who waits for a member to be there, or to have left.
        self._awaited: dict[Account, Waiters[None]] = {}
        self._is_stopped = False

    def send(self, remote: str, prepared: bytes) -> Deferred[DurableReceipt]:
        """Keep a message for a remote; fires when it is on the node's disk.

        Fails as `Client.send` does: with `UnknownReceiver` for an id that was never there; with
        `NotJoined` when the central has ended.
        """
        name = check_name(PREFIX + remote)
        return self._send(name, prepared).addCallback(DurableReceipt, name)

    def shut_down(self, member: Member, reason: str | None) -> Deferred[None]:
        """Tell a member to end, behind all that is stored for it; fires when it has said so.

        Fails with `NotJoined` where it is away, or leaves before its turn has come. Raises
        `BadControl` for a reason that cannot be one.
        """
        reason = check_reason(reason)
        if not member.is_joined or self._members.get(member.account) is not member:
            return fail(NotJoined(f"{member.id} is not joined"))
        stored = secrets.token_bytes(16)
        account = member.account
        shutdown = _Shutdown(account, account.incoming, reason, Waiters())
        self._shutdowns[stored] = shutdown
        told = shutdown.waiters.wait()
        name = PREFIX + str(member.id)

        def came_out(outcome: object) -> None:
            why = f"{name} was attached by another central meanwhile"
            if isinstance(outcome, Failure):  # an operator has removed it, say
                why = f"it was not told: {outcome.getErrorMessage()}"
            self._end([stored], NotJoined(why))

        def follow(receipt: Receipt) -> None:
            # Here it is told before it is acknowledged; another process knows nothing of it.
            receipt.acknowledged(name).addBoth(came_out)

        storing = self._send(name, stored, SHUTDOWN)
        storing.addCallbacks(follow, lambda failure: self._end([stored], failure.value))
        return told

    def attach(self, member: Member) -> None:
        """Let what waits for a member come: it is there, or there again."""
        account = member.account
        is_new = account not in self._members
        self._members[account] = member
        self._end_shutdowns(account, but=account.incoming)
        self._look_again(account)
        if self._is_stopped:
            return
        name = PREFIX + str(member.id)
        again = None if is_new else self._gateway.attach_again(account)
        if is_new or again is not None:
            self._attached(name)
            timer = self._reactor.callLater(ATTACH_SECONDS, self._attached, name)
            self._attaching[name] = (Waiters(), timer)
        if is_new:
            self._gateway.add(account, name)
        elif again is not None:
            again.when_connected().addCallback(lambda _: self._attached(name))

    def detach(self, member: Member) -> None:
        """Leave what is for a member in the node."""
        account = member.account
        if self._members.pop(account, None) is not None:
            self._gateway.remove(account)
            self._attached(PREFIX + str(member.id))
            self._end_shutdowns(account)
            self._look_again(account)

    def stop(self) -> Deferred[None]:
        """Leave the node; fires when all receivers have ended."""
        self._is_stopped = True
        for account in tuple(self._awaited):
            self._look_again(account)
        stopped = self._gateway.stop()
        for name in list(self._attaching):
            self._attached(name)
        return stopped

    # --- inside

    def _send(
        self, name: str, body: bytes, headers: dict[str, str] | None = None
    ) -> Deferred[Receipt]:
        if self._is_stopped:
            return fail(NotJoined("the central has ended"))
        attaching = self._attaching.get(name)
        if attaching is None:
            subject = _subject_of(name.removeprefix(PREFIX))
            return self._client.send(subject, body, to=[name], headers=headers)
        return attaching[0].wait().addCallback(lambda _: self._send(name, body, headers))

    def _begin(self, receiver: Receiver) -> None:
        self._attach(receiver)
        receiver.when_connected().addCallback(lambda _: self._attached(receiver.name))

    def _attached(self, name: str) -> None:
        waiters, timer = self._attaching.pop(name, (None, None))
        if waiters is None or timer is None:
            return
        if timer.active():
            timer.cancel()
        waiters.fire(None)

    async def _when_joined(self, account: Account) -> Member | None:
        """Return the member of an account when it is there; None where it has left."""
        while True:
            member = self._members.get(account)
            if member is None or member.is_joined or self._is_stopped:
                return member
            await self._awaited.setdefault(account, Waiters()).wait()

    def _look_again(self, account: Account) -> None:
        waiters = self._awaited.pop(account, None)
        if waiters is not None:
            waiters.fire(None)

    def _end(self, stored: list[bytes], error: Exception) -> None:
        for each in stored:
            shutdown = self._shutdowns.pop(each, None)
            if shutdown is not None:
                shutdown.waiters.fail(error)

    def _end_shutdowns(self, account: Account, but: Incoming | None = None) -> None:
        over = [
            stored
            for stored, shutdown in self._shutdowns.items()
            if shutdown.account is account and shutdown.process is not but
        ]
        self._end(over, NotJoined("it left before it was told to shut down"))

    async def _hand(self, account: Account, message: ReceivedMessage) -> None:
        try:
            if message.headers == SHUTDOWN:
                await self._tell(account, message.body)
                return
            member = await self._when_joined(account)  # what it takes is known then
            if member is None:
                raise NotJoined("the remote has left")
            entry = Entry(message.body, ends_with_process=True)
            member.add(entry)
            await entry.acknowledged()
        except HandlerFailed as error:
            raise Retry(reason=error.reason) from error
        except MessageTooLarge as error:
            raise Reject(str(error)) from error
        except QueueFull as error:
            raise Retry(FULL_SECONDS, reason=str(error)) from error
        except (NotJoined, RemoteLeft) as error:
            if isinstance(error, RemoteLeft) and not self._is_stopped:
                raise Retry(0, reason=str(error)) from error  # it may have ended of this one
            # No attempt at all. The receiver is stopped in this turn, and then that counts as none.
            await deferLater(self._reactor, 0)
            raise CancelledError from error

    async def _tell(self, account: Account, stored: bytes) -> None:
        """Shut a member down, unless this is not about its session; as soon as it is there."""
        if stored not in self._shutdowns:
            return
        member = await self._when_joined(account)  # its connection may be broken for a moment
        shutdown = self._shutdowns.pop(stored, None)
        if shutdown is None:
            return
        try:
            if member is None:
                raise NotJoined("the remote has left")
            entry = member.shut_down(shutdown.reason)
        except Exception as error:
            shutdown.waiters.fail(error)
            return
        entry.acknowledged().addCallbacks(shutdown.waiters.fire, shutdown.waiters.fail)
        try:
            await entry.acknowledged()  # nothing behind it is handed over before
        except (NotJoined, RemoteLeft):
            return


def _subject_of(remote: str) -> str:
    """Return the subject of what is for a remote: one for each, or they would wait together."""
    subject = SUBJECT + _of_patterns(lambda found: _PLAIN[found[0]], remote)
    if len(subject.encode()) <= SUBJECT_BYTES_MAX:
        return subject
    return f"{SUBJECT}//{sha256(remote.encode()).hexdigest()}"
