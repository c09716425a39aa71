"""Actions that wait in a node for peers that are away.

    DurableActions.send_message -> node's log -> outlet of the peer -> ActionGateway -> Connection

The program that commands hands an action to the node. Where the peers connect, each of them is a
receiver of the node while it is there (`faces.gateway`); what an action is, and when it is handled,
is said here. An action counts as delivered when the peer has answered a request that was sent after
it, since peers handle what they get in order; a connection that breaks off before that has the
action sent again. The protocol itself has no such promise.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from msgservice.client.client import Client
from msgservice.client.receipt import Receipt
from msgservice.clock import timed
from msgservice.core.subjects import check_name
from msgservice.errors import (
    FrameTooLarge,
    MsgServiceError,
    Reject,
    RequestFailed,
    Retry,
)
from msgservice.faces.callbacks.connection import Connection
from msgservice.faces.gateway import Gateway
from msgservice.receiver.received import ReceivedMessage
from msgservice.receiver.receiver import Receiver

SUBJECT = "callbacks.action"


class DurableActions:
    """Sends actions to peers by their names, through a node."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def send_message(
        self,
        peer: str,
        action: str,
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> "Deferred[Receipt]":
        """Have `peer` run the callback of `action`, whenever it is there.

        Fires when the node has it on disk; `receipt.acknowledged(peer)` fires when the peer has
        handled it. Fails as `Client.send`: with `UnknownReceiver` for a peer that was never there
        and is not configured.
        """
        content = {"action": action, "args": list(args), "kwargs": dict(kwargs or {})}
        return self._client.send(SUBJECT, content, to=[peer])


class ActionGateway:
    """Brings actions from a node to the peers that are connected.

    `CallbackServer(..., on_connected=gateway.connected, on_disconnected=gateway.disconnected)`.

    Args:
        reactor: clock and sockets.
        attach: attaches a receiver to the node: `lambda r: r.attach("tcp:127.0.0.1:7410")`.
        name_request: the request that peers answer with their name, as the original's do.
        barrier: the request that a peer answers after an action; any that it knows, and between
            our own peers even one that it does not know.
        seconds_max: for the answer to either.
        accept: says whether a connection may have this name; by default it may.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: IReactorTime,
        attach: Callable[[Receiver], Any],
        *,
        name_request: str = "id",
        barrier: str = "id",
        seconds_max: float = 30.0,
        accept: Callable[[Connection, str], bool] = lambda connection, name: True,
    ) -> None:
        self._gateway: Gateway[Connection] = Gateway(timed(reactor), attach, self._pass_on)
        self._name_request, self._barrier = name_request, barrier
        self._seconds_max = seconds_max
        self._accept = accept

    @property
    def peers(self) -> set[str]:
        """The names of those that are connected."""
        return self._gateway.names

    def connected(self, connection: Connection) -> None:
        """Ask the peer for its name, and let the node send to it."""
        d = Deferred.fromCoroutine(self._begin(connection))
        d.addErrback(lambda f: self._log.failure("a peer of the gateway", f))

    async def _begin(self, connection: Connection) -> None:
        try:
            name = await connection.request(self._name_request, timeout=self._seconds_max)
            check_name(name if isinstance(name, str) else str(name))
        except MsgServiceError as error:
            self._log.warn(
                "{peer} has no name, so it gets no durable actions: {reason}",
                peer=connection.peer_address,
                reason=str(error),
            )
            return
        name = str(name)
        if not self._accept(connection, name):
            self._log.warn("{peer} may not be {name}", peer=connection.peer_address, name=name)
        elif connection.is_connected:
            self._gateway.add(connection, name)

    def disconnected(self, connection: Connection) -> None:
        """Leave what is for the peer in the node."""
        self._gateway.remove(connection)

    def stop(self) -> "Deferred[None]":
        """Leave the node; fires when it is done."""
        return self._gateway.stop()

    async def _pass_on(self, connection: Connection, message: ReceivedMessage) -> None:
        match message.content:
            case {"action": str(action), "args": list(args), "kwargs": dict(kwargs)}:
                pass
            case _:
                raise Reject("not an action: an object with action, args and kwargs is needed")
        try:
            connection.send_message(action, args, kwargs)
            await connection.request(self._barrier, timeout=self._seconds_max)
        except (TypeError, ValueError, FrameTooLarge) as error:
            raise Reject(f"cannot be written: {error}") from error
        except RequestFailed:
            pass  # it said so after it had handled the action
        except MsgServiceError as error:
            raise Retry(reason=f"the peer went away: {error}") from error
