"""Messages that wait in a node for remotes that are away.

    Central.send ─► node's log ─► outlet of `session.ID` ─► DurableRemotes ─► the member's queue

A remote that has an id is a receiver of the node from when it joins until it has left. A message
is acknowledged to the node when the remote says that its handler has ended; one whose handler
failed, or that nobody knows of, is tried again as of any receiver. Without a node, and for remotes
without an id, the queue in memory is all there is (`outgoing`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from msgservice.client.client import Client
from msgservice.client.receipt import Receipt
from msgservice.clock import timed
from msgservice.core.subjects import check_name
from msgservice.errors import Retry
from msgservice.faces.gateway import Gateway
from msgservice.faces.sessions.errors import QueueFull, SessionError
from msgservice.faces.sessions.hop import Account
from msgservice.faces.sessions.member import Member
from msgservice.faces.sessions.outgoing import Entry
from msgservice.receiver.received import ReceivedMessage
from msgservice.receiver.receiver import Receiver

SUBJECT = "sessions.message"
PREFIX = "session."  # of the names of receivers
FULL_SECONDS = 1.0  # until what found no room in the queue is tried again


class DurableReceipt:
    """The receipt of a message that a node has on disk for one remote."""

    def __init__(self, receipt: Receipt, name: str) -> None:
        self.receipt = receipt
        self._name = name

    def acknowledged(self) -> Deferred[Any]:
        """Fire when the remote's handler has ended; see `Receipt.acknowledged` for its failures."""
        return self.receipt.acknowledged(self._name)


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
        self._client = client
        self._gateway: Gateway[Account] = Gateway(timed(reactor), attach, self._hand)
        self._members: dict[Account, Member] = {}

    def send(self, remote: str, prepared: bytes) -> Deferred[DurableReceipt]:
        """Keep a message for a remote; fires when it is on the node's disk.

        Fails as `Client.send` does: with `UnknownReceiver` for an id that was never there.
        """
        name = check_name(PREFIX + remote)
        d = self._client.send(SUBJECT, prepared, to=[name])
        return d.addCallback(DurableReceipt, name)

    def attach(self, member: Member) -> None:
        """Let what waits for a member come: it is there, or there again."""
        assert member.id is not None
        is_new = member.account not in self._members
        self._members[member.account] = member
        if is_new:
            self._gateway.add(member.account, PREFIX + member.id)

    def detach(self, member: Member) -> None:
        """Leave what is for a member in the node."""
        if self._members.pop(member.account, None) is not None:
            self._gateway.remove(member.account)

    def stop(self) -> Deferred[None]:
        """Leave the node; fires when all receivers have ended."""
        self._members.clear()
        return self._gateway.stop()

    async def _hand(self, account: Account, message: ReceivedMessage) -> None:
        member = self._members.get(account)
        if member is None:
            raise Retry(reason="the remote has left")
        entry = Entry(message.body)
        try:
            member.add(entry)
            await entry.acknowledged()
        except QueueFull as error:
            raise Retry(FULL_SECONDS, reason=str(error)) from error
        except SessionError as error:
            raise Retry(reason=str(error)) from error
