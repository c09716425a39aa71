"""The application's callbacks: what runs for an action, a request and an answer.

Called by `faces.callbacks.driver` with the events of the core. A callback may return a value, a
Deferred or a coroutine, and may raise: that is logged, told to a peer of ours, and never ends a
connection. Peers of others are told nothing, since that is how they know a failure.
"""

from collections.abc import Callable, Coroutine, Mapping, Sequence
from inspect import iscoroutine
from typing import Any
from typing import Protocol as Shape

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from msgservice.errors import (
    GENERATORS,
    Ambiguous,
    LimitReached,
    MsgServiceError,
    ProtocolError,
    RequestFailed,
    RequestTimeout,
    check_runs,
    has_not_run,
)
from msgservice.faces.callbacks.incoming import Fetching
from msgservice.faces.callbacks.protocol.events import (
    ActionReceived,
    FileRequested,
    RequestLost,
    RequestReceived,
    RequestRefused,
    RequestTimedOut,
    ResponseReceived,
)
from msgservice.faces.callbacks.protocol.peer import CallbackPeer
from msgservice.faces.callbacks.registry import CallbackRegistry
from msgservice.waiters import followed

REFUSE_AT = 10  # times running_max


class Call:
    """The token of a request whose answer goes to a callback."""

    __slots__ = ("args", "callback", "kwargs")

    def __init__(
        self,
        callback: Callable[..., Any] | None,
        args: Sequence[Any],
        kwargs: Mapping[str, Any] | None,
    ) -> None:
        if callback is not None:
            check_runs(callback, "callback")
        self.callback, self.args, self.kwargs = callback, args, kwargs or {}


class IDriver(Shape):
    """The driver as it is used here: what it has to send to, and when."""

    @property
    def generation(self) -> int:
        """Which of its wires it has now, 0: none."""

    def flush(self) -> None:
        """Send what there is, unless events are being handled: then it is sent after them."""

    def abort(self) -> None:
        """End the wire."""


class Dispatcher:
    """The dispatcher of an application's callbacks: actions, requests and answers.

    `connection` is what callbacks get as their first argument.
    """

    _log = Logger()

    def __init__(
        self, connection: object, registry: CallbackRegistry, core: CallbackPeer, driver: IDriver
    ) -> None:
        self._connection = connection
        self._registry = registry
        self._core = core
        self._driver = driver
        self._running_max = core.limits.running_max
        self.running = 0  # callbacks that have not finished

    @property
    def is_busy(self) -> bool:
        """Whether more callbacks run than should."""
        return self.running > self._running_max

    def action(self, event: ActionReceived) -> None:
        """Run the callback of an action."""
        callback = self._registry.message(event.action)
        if callback is None:
            self._log.warn("no callback for action {action}", action=event.action[:64])
            self._refuse("no-callback", "no callback has that name", {"action": event.action})
            return
        try:
            result = _run(callback, self._connection, *event.args, **event.kwargs)
        except BaseException as error:  # as a Deferred would: no callback may end a connection
            self._action_failed(Failure(error), event.action)
            return
        if isinstance(result, Deferred) or iscoroutine(result):
            self.running += 1
            d = deferred(result)
            d.addErrback(self._action_failed, event.action)
            d.addErrback(lambda f: self._log.failure("the end of a callback", f))
            d.addBoth(self._ran)

    def _action_failed(self, failure: Failure, action: str) -> None:
        self._log.failure("callback of action {action}", failure, action=action[:64])
        reason = f"{_kind(failure)} in the callback"
        self._refuse("callback-failed", reason, {"action": action})

    def request(self, event: RequestReceived, generation: int) -> None:
        """Run the callback of a request, and answer, if the same connection is still there."""
        if generation != self._driver.generation:
            return  # there is nobody to answer
        callback = self._registry.request(event.requested_value)
        if callback is None:
            self.refuse_request(event, "no-callback", "no callback has that name")
            return
        if self.running >= REFUSE_AT * self._running_max:
            self.refuse_request(event, "busy", f"running_max = {self._running_max}")
            return
        try:
            result = _run(callback, self._connection, *event.args, **event.kwargs)
        except BaseException as error:  # as a Deferred would: no callback may end a connection
            self._request_failed(Failure(error), event, generation)
            return
        if isinstance(result, Deferred) or iscoroutine(result):
            self.running += 1
            d = deferred(result)
            d.addCallback(self._respond, event, generation)
            d.addErrback(self._request_failed, event, generation)
            d.addErrback(lambda f: self._log.failure("the end of a callback", f))
            d.addBoth(self._ran)
        else:
            self._respond(result, event, generation)

    def _respond(self, value: object, event: RequestReceived, generation: int) -> None:
        if generation != self._driver.generation:
            return
        try:
            self._core.respond(event.requested_value, event.request_id, value)
        except (TypeError, ValueError, ProtocolError) as error:
            self.refuse_request(event, "bad-result", str(error))
        except LimitReached as error:
            self._log.warn("dropping a peer that does not read: {reason}", reason=str(error))
            self._driver.abort()
        else:
            self._driver.flush()

    def _ran(self, _: object) -> None:
        self.running -= 1

    def _request_failed(self, failure: Failure, event: RequestReceived, generation: int) -> None:
        self._log.failure(
            "callback of request {request}", failure, request=event.requested_value[:64]
        )
        if generation == self._driver.generation:
            reason = f"{_kind(failure)} in the callback"
            self.refuse_request(event, "callback-failed", reason, logged=True)

    def refuse_request(
        self,
        event: RequestReceived | FileRequested,
        kind: str,
        reason: str,
        *,
        logged: bool = False,
    ) -> None:
        """Do not answer; say so to a peer of ours."""
        name = event.requested_value if isinstance(event, RequestReceived) else "filetransfer"
        if not logged:
            self._log.warn(
                "request {request} not answered: {reason}", request=name[:64], reason=reason
            )
        about = {"requested_value": name, "request_id": event.request_id}
        self._refuse(kind, reason, about)

    def _refuse(self, kind: str, reason: str, about: Mapping[str, object]) -> None:
        try:
            self._core.refuse(kind, reason, about)
        except (TypeError, ValueError, ProtocolError):
            self._log.warn("error about a message whose name cannot be written")
        self._driver.flush()

    def response(self, event: ResponseReceived) -> None:
        """Hand over an answer."""
        token = event.request.token
        if isinstance(token, Deferred):
            if not token.called:
                token.callback(event.value)
        else:
            self.run_callback(token, event.value)

    def run_callback(self, call: Call, value: object) -> None:
        """Run the callback that waits for an answer."""
        if call.callback is None:
            return
        d = maybeDeferred(
            awaited, call.callback, self._connection, value, *call.args, **call.kwargs
        )
        d.addErrback(lambda f: self._log.failure("callback of an answer", f))

    def refused(self, event: RequestRefused) -> None:
        """Hand over what a peer of ours says instead of an answer."""
        name = event.request.requested_value
        self.fail_request(
            event.request.token, RequestFailed(f"{name!r}: {event.kind}: {event.reason}")
        )

    def timed_out(self, event: RequestTimedOut) -> None:
        """Say that no answer came in time."""
        error = RequestTimeout(event.request.requested_value, event.seconds)
        self.fail_request(event.request.token, error)

    def lost(self, event: RequestLost) -> None:
        """Say that no answer can come."""
        name = event.request.requested_value
        self.fail_request(
            event.request.token, Ambiguous(f"{name!r}: the connection ended before the answer")
        )

    def fail_request(self, token: Any, error: MsgServiceError) -> None:
        """Say why a request of ours has no answer."""
        if isinstance(token, Deferred):
            if not token.called:
                token.errback(error)
        elif isinstance(token, Fetching):
            token.fail(error)
        else:
            self._log.warn("request without answer: {reason}", reason=str(error))


def awaited(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call; a coroutine that is returned is run."""
    result = _run(function, *args, **kwargs)
    return deferred(result) if isinstance(result, Deferred) or iscoroutine(result) else result


def _run(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    result = function(*args, **kwargs)
    if isinstance(result, GENERATORS):
        raise has_not_run(result, "callback")
    return result


def deferred(result: "Deferred[Any] | Coroutine[Any, Any, Any]") -> "Deferred[Any]":
    """Return the Deferred of what a callback returned: the same may be returned for others too."""
    return followed(result) if isinstance(result, Deferred) else Deferred.fromCoroutine(result)


def _kind(failure: Failure) -> str:
    return failure.type.__name__ if failure.type is not None else "an error"
