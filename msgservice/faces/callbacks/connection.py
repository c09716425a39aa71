"""The callback protocol on Twisted: a `Connection`, on which both sides act, ask and send files.

A `Connection` outlives what it runs on: the client of `faces.callbacks.service` gives it one
TCP connection after the other. Here is what the application says and is told; what happens by
itself is in `faces.callbacks.driver`. Methods with the names of the protocol's documentation take
callbacks and may be called from any thread; `request`, `push_file` and `fetch_file` return
Deferreds, in the reactor's thread.
"""

import random
import sys
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, fail, maybeDeferred, succeed
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IReactorFromThreads,
    IReactorTime,
)
from twisted.logger import Logger
from twisted.python import threadable
from twisted.python.failure import Failure

from msgservice.arguments import check_counts, check_flags, check_functions, check_kind
from msgservice.clock import timed
from msgservice.errors import (
    ClientClosed,
    MsgServiceError,
    Refused,
)
from msgservice.faces.callbacks.arrival import RunInThread
from msgservice.faces.callbacks.dispatch import Call, awaited
from msgservice.faces.callbacks.driver import Driver
from msgservice.faces.callbacks.files import FileRoot
from msgservice.faces.callbacks.outgoing import FileSent, Progress
from msgservice.faces.callbacks.protocol.events import CallbackLimits
from msgservice.faces.callbacks.protocol.peer import IDS, CallbackPeer
from msgservice.faces.callbacks.registry import DEFAULT, CallbackRegistry
from msgservice.faces.callbacks.stream import CallbackProtocol
from msgservice.waiters import Waiters

__all__ = ["Connection", "FileSent"]


class Connection:
    """One side; the other side is a `Connection` too, or a program that never heard of us.

    Args:
        reactor: clock and threads.
        registry: the callbacks, by default those of the process.
        files: the folder that the peer's files are confined to; None: no files for the peer.
        limits: see docs/callbacks.md.
        resume_queue, resend_requests: what a lost connection leaves for the next.
        announce: say hello to peers of ours, for errors, checksums and resumed files.
        allow_nan: write and accept NaN and infinities, as the original does.
        run_in_thread: like `twisted.internet.threads.deferToThread`.
        on_connected, on_disconnected, on_file: called with the connection, and with the path of
            a file that was pushed and is in its place.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: IReactorTime,
        *,
        registry: CallbackRegistry = DEFAULT,
        files: FileRoot | None = None,
        limits: CallbackLimits | None = None,
        resume_queue: bool = False,
        resend_requests: bool = True,
        announce: bool = True,
        allow_nan: bool = False,
        first_id: int | None = None,
        run_in_thread: RunInThread | None = None,
        on_connected: Callable[[Any], Any] | None = None,
        on_disconnected: Callable[[Any], Any] | None = None,
        on_file: Callable[[Any, str], Any] | None = None,
    ) -> None:
        limits = CallbackLimits() if limits is None else limits
        check_kind(CallbackRegistry, "a CallbackRegistry is needed", registry=registry)
        check_kind(CallbackLimits, "CallbackLimits are needed", limits=limits)
        if files is not None:
            check_kind(FileRoot, "a FileRoot is needed", files=files)
        check_flags(
            resume_queue=resume_queue,
            resend_requests=resend_requests,
            announce=announce,
            allow_nan=allow_nan,
        )
        check_functions(
            run_in_thread=run_in_thread,
            on_connected=on_connected,
            on_disconnected=on_disconnected,
            on_file=on_file,
        )
        if first_id is not None:
            check_counts(0, first_id=first_id)
        self._registry = registry
        self.limits = limits
        self._reactor = timed(reactor)
        self._core = CallbackPeer(
            byteorder=sys.byteorder,
            first_id=random.randrange(IDS) if first_id is None else first_id,
            resume_queue=resume_queue,
            resend_requests=resend_requests,
            announce=announce,
            allow_nan=allow_nan,
            limits=self.limits,
        )
        self._on_connected = on_connected
        self._on_disconnected = on_disconnected
        self._closed: Waiters[None] | None = None
        self._close_timer: IDelayedCall | None = None
        self._connect_waiters: Waiters[Connection] = Waiters()
        self._driver = Driver(
            self,
            registry,
            self._core,
            self._reactor,
            files=files,
            run_in_thread=run_in_thread,
            opened=self._opened,
            lost=self._lost,
            received=lambda path: self._tell(on_file, path),
        )

    @property
    def registry(self) -> CallbackRegistry:
        """The callbacks that it runs."""
        return self._registry

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection now."""
        return self._driver.wire is not None

    @property
    def generation(self) -> int:
        """Which of its connections it has now, counted from 1; 0: none."""
        return self._driver.generation

    @property
    def peer_address(self) -> IAddress | None:
        """The address of the peer, of the last connection."""
        return self._driver.peer_address

    @property
    def peer_is_ours(self) -> bool:
        """Whether the peer announced itself, so that errors come back and files resume."""
        return self._core.extension.is_ours

    @property
    def queued_bytes(self) -> int:
        """Bytes of memory that wait to be sent."""
        return self._core.queued_bytes

    @property
    def pending_count(self) -> int:
        """The number of requests that wait for their answers."""
        return len(self._core.pending)

    # --- the documentation's verbs: callbacks, any thread

    def send_message(
        self, action: str, args: Sequence[object] = (), kwargs: Mapping[str, object] | None = None
    ) -> None:
        """Have the peer run the callback of `action`; nothing comes back.

        Raises:
            Refused: there is no connection, and `resume_queue` is off.
            ClientClosed: after `close`.
            LimitReached: `queue_bytes_max`.
            TypeError, ValueError, FrameTooLarge: the arguments cannot be written as JSON.
        """
        if self._is_elsewhere():
            self._core.encoder.action(action, args, kwargs)  # errors belong to the caller
            self._call_in_reactor(self.send_message, action, args, kwargs)
            return
        self._check_can_keep()
        self._core.send_message(action, args, kwargs)
        self._driver.flush()

    def get_response(
        self,
        requested_value: str,
        callback: Callable[..., Any] | None,
        request_args: Sequence[object] = (),
        request_kwargs: Mapping[str, object] | None = None,
        callback_args: Sequence[object] = (),
        callback_kwargs: Mapping[str, object] | None = None,
        *,
        timeout: float | None = None,
    ) -> None:
        """Ask; `callback(connection, value, *callback_args, **callback_kwargs)` gets the answer.

        Without an answer, or with an error, the callback is not called; it is logged. Raises as
        `send_message`, and LimitReached for `pending_max`; it may be called while away.
        """
        if self._is_elsewhere():
            self._core.encoder.request(requested_value, "0000", request_args, request_kwargs)
            self._call_in_reactor(
                self.get_response,
                *(requested_value, callback, request_args, request_kwargs),
                *(callback_args, callback_kwargs),
                timeout=timeout,
            )
            return
        self._check_open()
        self._core.request(
            requested_value,
            request_args,
            request_kwargs,
            token=Call(callback, callback_args, callback_kwargs),
            timeout=timeout,
            now=self._reactor.seconds(),
        )
        self._driver.flush()

    def send_file(self, filepath: str | PathLike[str], dest_filepath: str) -> None:
        """Send a file; one that cannot be read or sent is only logged."""
        if self._is_elsewhere():
            self._call_in_reactor(self.send_file, filepath, dest_filepath)
            return
        self.push_file(filepath, dest_filepath).addErrback(self._log_transfer, "sent")

    def get_file(
        self,
        client_filepath: str,
        filepath: str | PathLike[str] | None = None,
        callback: Callable[..., Any] | None = None,
        callback_args: Sequence[object] = (),
        callback_kwargs: Mapping[str, object] | None = None,
        *,
        timeout: float | None = None,
    ) -> None:
        """Ask for a file; without `filepath` it goes to its base name under the root of files.

        Then `callback(connection, True, *callback_args, filepath=filepath, **callback_kwargs)`;
        False instead of True when the file could not be had or written.
        """
        if self._is_elsewhere():
            self._call_in_reactor(
                self.get_file,
                *(client_filepath, filepath, callback, callback_args, callback_kwargs),
                timeout=timeout,
            )
            return
        call = Call(callback, callback_args, {"filepath": filepath, **(callback_kwargs or {})})
        d = self.fetch_file(client_filepath, filepath, timeout=timeout)
        d.addErrback(self._log_transfer, "asked for")
        d.addCallback(lambda path: self._driver.dispatch.run_callback(call, path is not None))

    # --- Deferreds, in the reactor's thread

    def request(
        self,
        requested_value: str,
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
        *,
        timeout: float | None = None,
    ) -> "Deferred[Any]":
        """Ask; the Deferred fires with the answer. Cancelling it stops the waiting only.

        Fails with:
            RequestFailed: a peer of ours says why. Peers of others say nothing.
            RequestTimeout: no answer within `timeout` seconds.
            Ambiguous: the connection ended and `resend_requests` is off.
            ClientClosed: `close` was called.

        Raises as `get_response`.
        """
        self._check_open()
        d: Deferred[Any] = Deferred(lambda _: self._core.forget(pending))
        pending = self._core.request(
            requested_value, args, kwargs, token=d, timeout=timeout, now=self._reactor.seconds()
        )
        self._driver.flush()
        return d

    def push_file(
        self,
        filepath: str | PathLike[str],
        destination: str,
        *,
        progress: Progress | None = None,
    ) -> "Deferred[FileSent]":
        """Send a file to where the peer's root has `destination`.

        A peer of ours confirms it (`FileSent.confirmed`) once it is in its place with the right
        checksum; with others, the Deferred fires when the last byte is handed over. `progress` is
        called with (bytes done, bytes in all). A connection that breaks off resumes the file if
        `resume_queue` is on. Cancelling stops the waiting only.

        Fails with:
            OSError, PathRefused: it cannot be read here.
            TransferFailed: it was refused, changed while it was read, or did not arrive.
            Refused, ClientClosed, LimitReached, FrameTooLarge: as `send_message`.
        """
        try:
            self._check_can_keep()
            d = self._driver.outgoing.push(filepath, destination, progress)
        except (OSError, MsgServiceError, ValueError) as error:
            return fail(error)
        self._driver.flush()
        return d

    def fetch_file(
        self,
        remote: str,
        filepath: str | PathLike[str] | None = None,
        *,
        timeout: float | None = None,
        progress: Progress | None = None,
    ) -> "Deferred[Path]":
        """Ask for a file; the Deferred fires with where it is, complete.

        `timeout` is how long the peer may take to begin. A connection that breaks off resumes the
        file if `resend_requests` is on. Cancelling gives the file up.

        Fails with:
            PathRefused: without `filepath`, `remote` has no base name.
            TransferFailed: it could not be written, or its checksum differs.
            RequestFailed, RequestTimeout, Ambiguous, ClientClosed, LimitReached: as `request`.
        """
        try:
            self._check_open()
            d = self._driver.incoming.fetch(
                remote,
                filepath,
                timeout=timeout,
                progress=progress,
                now=self._reactor.seconds(),
            )
        except (MsgServiceError, ValueError) as error:
            return fail(error)
        self._driver.flush()
        return d

    def when_connected(self) -> "Deferred[Connection]":
        """Return a Deferred that fires with this object when it is connected.

        Fails with ClientClosed if that will not be. Cancelling ends the wait only.
        """
        if self._closed is not None:
            return fail(ClientClosed("the connection was closed"))
        if self._driver.wire is not None:
            return succeed(self)
        return self._connect_waiters.wait()

    def close(self) -> "Deferred[None]":
        """Send what is queued, then end; the Deferred fires when the connection is gone.

        A peer that does not take it within `close_seconds_max` is cut off. Requests without an
        answer fail with ClientClosed. Safe to call twice.
        """
        if self._closed is None:
            self._closed = Waiters()
            self._close_timer = self._reactor.callLater(self.limits.close_seconds_max, self.abort)
        d = self._closed.wait()
        if self._driver.wire is None:
            self._end()
        else:
            self._driver.finish()
        return d

    def abort(self) -> None:
        """End the connection that there is, at once; a client connects again."""
        self._driver.abort()

    # --- who connects, and what the driver says

    def protocol(self) -> CallbackProtocol:
        """Return a protocol for the next connection of this object."""
        return CallbackProtocol(self._driver)

    def when_settled(self) -> "Deferred[None]":
        """Return a Deferred that fires when no thread works on what an ended connection left.

        A request for a file that broke off is to be sent again with what is here of it.
        """
        return self._driver.when_settled()

    def _opened(self) -> None:
        self._tell(self._on_connected)
        self._connect_waiters.fire(self)

    def _lost(self) -> None:
        self._tell(self._on_disconnected)
        if self._closed is not None:
            self._end()

    def _end(self) -> None:
        """The connection has ended: nothing will come, and nothing will be sent."""
        if self._close_timer is not None and self._close_timer.active():
            self._close_timer.cancel()
        error = ClientClosed("the connection was closed")
        self._driver.end(error)
        self._connect_waiters.fail(error)
        if self._closed is None:
            self._closed = Waiters()
        self._closed.fire(None)

    def _tell(self, hook: Callable[..., Any] | None, *args: object) -> None:
        if hook is not None:
            d = maybeDeferred(awaited, hook, self, *args)
            d.addErrback(lambda f: self._log.failure("hook of a connection", f))

    def _check_open(self) -> None:
        if self._closed is not None:
            raise ClientClosed("the connection was closed")

    def _check_can_keep(self) -> None:
        self._check_open()
        if not self._core.resume_queue and self._driver.wire is None:
            raise Refused("not connected, and resume_queue is off")

    def _is_elsewhere(self) -> bool:
        return threadable.ioThread not in (None, threadable.getThreadID())

    def _call_in_reactor(self, verb: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        def call() -> None:
            try:
                verb(*args, **kwargs)
            except MsgServiceError as error:
                self._log.warn("from another thread: {reason}", reason=str(error))

        IReactorFromThreads(self._reactor).callFromThread(call)

    def _log_transfer(self, failure: Failure, what: str) -> None:
        self._log.warn("file not {what}: {reason}", what=what, reason=failure.getErrorMessage())
