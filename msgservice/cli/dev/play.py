"""The play of `msgservice dev`: a node, a sender, two receivers, and what becomes of messages.

All of it is the library's own: `Node` on a log on disk, sockets, a client, and `Receiver`s, one
here and one in a process of its own (`process`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import LoopingCall, deferLater
from twisted.python.failure import Failure

from msgservice.administration import AUDIT, RECEIVERS_LIST
from msgservice.cli.dev.chaos import MAX_ATTEMPTS, REMEMBERED, RETRY_SECONDS, Act, Kind, Script
from msgservice.cli.dev.child import facts_of
from msgservice.cli.dev.process import Child
from msgservice.client.client import Client
from msgservice.client.connect import connect
from msgservice.client.receipt import Receipt
from msgservice.errors import MsgServiceError, Reject, Retry
from msgservice.limits import Limits
from msgservice.node.node import Node
from msgservice.receiver.received import ReceivedMessage
from msgservice.receiver.receiver import Receiver
from msgservice.waiters import Waiters

HERE, APART = "billing", "shipping"  # the receivers
SENDER, SUBJECT, PATTERN = "dev", "orders.new", "orders.>"
BEGINS_AGAIN_SECONDS = 1.5  # after it was killed
LIVES_MAX = 3  # of a process that ends before it is connected
ACCOUNT_SECONDS = 10.0  # for each answer of the node at the end
OPEN_MAX = 1_000  # messages of its own that are not final: beyond that it sends no more

Tell = Callable[..., None]


class ChildFailed(MsgServiceError):
    """The receiver's process ends whenever it is begun."""

    def __init__(self, name: str, trouble: bytes) -> None:
        said = trouble.decode(errors="replace").strip()
        super().__init__(f"the process of {name} does not stay: {said or 'it says nothing'}")


class Play:
    """A play. `over` fires when `count` messages are final, and fails where it cannot
    go on.

    `listen`, `web`: addresses. `every`: seconds between two messages of its own, 0: it sends none.
    `tell(event, **fields)` is called with what happens.
    """

    def __init__(
        self,
        reactor: Any,
        folder: Path,
        *,
        listen: str,
        web: str,
        script: Script,
        every: float,
        count: int | None,
        tell: Tell,
    ) -> None:
        self.over: Deferred[None] = Deferred()
        self._reactor, self._script, self._tell = reactor, script, tell
        self._every, self._count = every, count
        self._node = Node(
            reactor,
            folder,
            name="dev",
            listen=[listen],
            web=[web],
            limits=Limits(max_attempts=MAX_ATTEMPTS),
            failed=self.fail,
        )
        self._client: Client | None = None
        self._here = Receiver(reactor, name=HERE, handler=self._handle)
        self._child: Child | None = None
        self._attached: Waiters[None] = Waiters()
        self._early_ends = self.kills = 0
        self._sending = LoopingCall(self._send)
        self._sending.clock = reactor
        self.first = 1  # the number of the first message of its own
        self._sent = self._open = 0
        self._is_held = self._is_ready = self._is_ending = self._is_failed = False
        self._others: OrderedDict[int, int] = (
            OrderedDict()
        )  # position -> number, of others' messages
        self._others_count = 0

    @property
    def address(self) -> str:
        """Where the node listens."""
        return self._node.listeners[0]

    @property
    def page(self) -> str:
        """Where its page is."""
        return self._node.listeners[1]

    @property
    def child(self) -> Child:
        """The newest life of the receiver that is a process of its own."""
        assert self._child is not None
        return self._child

    # --- beginning and ending

    async def begin(self) -> None:
        """Start the node and both receivers; return when they are connected."""
        self._node.startService()
        await self._node.when_ready()
        self._here.attach(self.address, subjects=[PATTERN])
        self._begin_child()
        self._client = await connect(self._reactor, self.address, name=SENDER)
        await self._here.when_connected()
        if not self.child.is_attached:
            await self._attached.wait()
        # Behind all that the log has had: no two messages have one id.
        known = await self._client.request(RECEIVERS_LIST.right, {}, timeout=ACCOUNT_SECONDS)
        self.first = 1 + max(row["routed"] for row in known["receivers"])
        self._is_ready = True

    def send_now_and_then(self) -> None:
        """Send messages from now on."""
        if self._every:
            self._sending.start(self._every).addErrback(self.fail)

    async def end(self) -> dict[str, Any] | None:
        """Stop all, and return the account; None where there was nothing to ask."""
        self._is_ending = True
        self.over.addErrback(lambda _: None)  # who waited for it has had it
        if self._sending.running:
            self._sending.stop()
        stopping: list[Deferred[Any]] = [self._here.stop()]
        if self._child is not None:
            stopping.append(self._child.stop(self._reactor))
        await gatherResults(stopping, consumeErrors=True)
        account = None
        if self._client is not None:
            try:
                if not self._is_failed:
                    account = await self._account(self._client)
            finally:
                await self._client.close()
        await self._node.stopService()
        return account

    async def _account(self, client: Client) -> dict[str, Any]:
        page = await client.request(RECEIVERS_LIST.right, {}, timeout=ACCOUNT_SECONDS)
        audit = await client.request(AUDIT.right, {}, timeout=ACCOUNT_SECONDS)
        rows = {}
        for row in page["receivers"]:
            settled = dict(row["settled"])
            delivered, dead = settled.pop("acknowledged", 0), settled.pop("dead", 0)
            rows[row["name"]] = {
                "sent": row["routed"],
                "delivered": delivered,
                "dead": dead,
                "waiting": row["queued"],
                "other": sum(settled.values()),
                "unaccounted": row["unaccounted"],
            }
        wrong = list(audit["discrepancies"])
        wrong += [
            f"{row['unaccounted']} of the messages of {name} are in no account"
            for name, row in rows.items()
            if row["unaccounted"]
        ]
        return {
            "sent": self._sent,
            "kills": self.kills,
            "receivers": rows,
            "discrepancies": wrong,
        }

    def fail(self, error: BaseException | Failure) -> None:
        """Something does not let it go on."""
        self._is_failed = True
        self._attached.fail(error)
        if not self.over.called:
            self.over.errback(error)

    # --- sending

    def _send(self) -> None:
        if self._sent == self._count:
            return
        if self._open >= OPEN_MAX:
            if not self._is_held:
                self._tell("held", open=self._open)
            self._is_held = True
            return
        self._is_held = False
        assert self._client is not None
        self._sent += 1
        self._open += 1
        number = self.first + self._sent - 1
        sending = self._client.send(SUBJECT, {"order": number}, id=f"{SENDER}-{number}")
        sending.addCallback(self._has_sent, number)
        sending.addCallback(self._is_final, number)
        sending.addErrback(self.fail)

    def _has_sent(self, receipt: Receipt, number: int) -> Deferred[Receipt]:
        self._tell(
            "sent",
            message=receipt.id,
            subject=SUBJECT,
            position=receipt.position,
            receivers=list(receipt.receivers),
            acts={
                name: [act.kind.value for act in self._script.acts(name, number)]
                for name in (HERE, APART)
            },
        )
        return receipt.settled().addCallback(lambda _: receipt)

    def _is_final(self, receipt: Receipt, number: int) -> None:
        self._open -= 1
        self._script.final(number)
        if self._is_ending:
            return  # it settles because the client is closed
        known = receipt.run.known_of(receipt.sequence)
        reasons = {change.receiver: change.reason for change in known.changes}
        self._tell(
            "receipt",
            message=receipt.id,
            receivers={
                name: {"status": status.name.lower(), "reason": reasons.get(name, "")}
                for name, status in receipt.statuses.items()
            },
        )
        if self._sent == self._count and not self._open and not self.over.called:
            self.over.callback(None)

    # --- receiving

    async def _handle(self, message: ReceivedMessage) -> None:
        """Do with a message what the script says: the receiver of this process."""
        facts = facts_of(message)
        act = self._script.next(HERE, self._number(facts))
        await deferLater(self._reactor, act.seconds)
        self._did(HERE, act, facts)
        if act.kind is Kind.REFUSE:
            raise Retry(RETRY_SECONDS, act.reason)
        if act.kind is Kind.REJECT:
            raise Reject(act.reason)

    def _begin_child(self) -> None:
        if self._is_ending:
            return
        self._child = Child(self._heard, self._child_ended)
        self._child.begin(self._reactor, self.address, APART, PATTERN)

    def _heard(self, child: Child, said: dict[str, Any]) -> None:
        """The receiver in a process of its own was given a message, or is connected."""
        if "attached" in said:
            self._early_ends = 0
            if self._is_ready:
                self._tell("back", receiver=APART, pid=child.pid)
            self._attached.fire(None)
            return
        self._script.given(APART, self._number(said), said["attempts"])
        act = self._script.next(APART, self._number(said))
        if act.kind is Kind.DIE:
            self._script.did(APART, self._number(said))
            self.kills += 1
            again = BEGINS_AGAIN_SECONDS
            self._tell("killed", message=_label(said), receiver=APART, pid=child.pid, again=again)
            child.kill()
            return
        waiting: Deferred[None] = deferLater(self._reactor, act.seconds)
        waiting.addCallback(self._answer, child, act, said)
        waiting.addErrback(self.fail)

    def _answer(self, _: object, child: Child, act: Act, said: dict[str, Any]) -> None:
        if child.is_over or child.is_killed:
            return  # killed meanwhile: it was given to nobody
        self._did(APART, act, said)
        if act.kind is Kind.REFUSE:
            child.tell(given=said["given"], retry=RETRY_SECONDS, reason=act.reason)
        elif act.kind is Kind.REJECT:
            child.tell(given=said["given"], reject=act.reason)
        else:
            child.tell(given=said["given"], take=True)

    def _child_ended(self, child: Child) -> None:
        if self._is_ending:
            return
        self._script.killed(APART)
        if not child.is_attached:
            self._early_ends += 1
            if self._early_ends == LIVES_MAX:
                self.fail(ChildFailed(APART, child.trouble))
                return
        if not child.is_killed:
            lines = child.trouble.decode(errors="replace").split("\n")
            trouble = next((line for line in reversed(lines) if line.strip()), "")
            again = BEGINS_AGAIN_SECONDS
            self._tell("gone", receiver=APART, pid=child.pid, trouble=trouble, again=again)
        self._reactor.callLater(BEGINS_AGAIN_SECONDS, self._begin_child)

    def _did(self, receiver: str, act: Act, facts: dict[str, Any]) -> None:
        """Tell what a receiver has done with a message."""
        self._script.did(receiver, self._number(facts))
        told = {"message": _label(facts), "receiver": receiver, "attempt": facts["attempts"] + 1}
        if act.kind is Kind.REFUSE:
            again = RETRY_SECONDS if told["attempt"] < MAX_ATTEMPTS else None
            self._tell("refused", reason=act.reason, attempts=MAX_ATTEMPTS, again=again, **told)
        elif act.kind is Kind.REJECT:
            self._tell("rejected", reason=act.reason, **told)
        else:
            self._tell("took", seconds=act.seconds, **told)

    def _number(self, facts: dict[str, Any]) -> int:
        """Return the number by which it is drawn what becomes of a message: of others' below 0."""
        name, dash, number = (facts["id"] or "").partition("-")
        if facts["sender"] == name == SENDER and dash and number.isdecimal():
            return int(number)
        position: int = facts["position"]
        if position not in self._others:
            self._others_count += 1
            self._others[position] = -self._others_count
            if len(self._others) > REMEMBERED:
                self._others.popitem(last=False)
        return self._others[position]


def _label(facts: dict[str, Any]) -> str:
    label: str = facts["id"] or f"log:{facts['position']}"
    return label
