"""Making a client that dials: `connect`. What it is then, is in `client`."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypedDict, cast

from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IReactorFromThreads, IReactorTime
from twisted.python.failure import Failure

from msgservice.arguments import check_counts, check_flags, check_kind, check_methods, reactor_first
from msgservice.client.client import HELD_BYTES, HELD_MESSAGES, Client
from msgservice.client.receipt import OPEN_RECEIPTS
from msgservice.clock import check_reactor_runs
from msgservice.core.subjects import check_name
from msgservice.errors import BadValue, MsgServiceError
from msgservice.identity.prover import prover_of
from msgservice.interfaces import IChannelUser, IConnector
from msgservice.limits import Limits
from msgservice.transport.registry import Transports
from msgservice.unlogged import speak

if TYPE_CHECKING:
    from msgservice.client.disk import DiskOutbox


class ConnectArguments(TypedDict, total=False):
    """The arguments of `connect` that may be left out, for what connects by other means."""

    limits: Limits | None
    outbox: str | Path | None
    open_receipts: int
    window: tuple[int, int] | None
    held: tuple[int, int]
    require: bool
    user: str | None
    password: str | None
    token: str | None
    transports: Transports | None
    new_incarnation: Callable[[], str]


class Dialling(Deferred[Client]):
    """The Deferred of `connect`, which says what is missing to whom it takes for the client."""

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(
            not_yet(name, "connect() gives a Deferred of the client: await it first")
        )


def not_yet(name: str, cure: str) -> str:
    """Return why what `connect` returns has no such attribute; `cure`: for those of a client."""
    has_not = f"what connect() returns has no attribute {name!r}"
    return f"{has_not}: {cure}" if hasattr(Client, name) else has_not


@reactor_first(
    "connect(reactor, address, name=...)",
    "; msgservice.aio.connect and msgservice.blocking.connect need none",
)
def connect(
    reactor: IReactorTime,
    address: str,
    *,
    name: str,
    limits: Limits | None = None,
    outbox: str | Path | None = None,
    open_receipts: int = OPEN_RECEIPTS,
    window: tuple[int, int] | None = None,
    held: tuple[int, int] = (HELD_MESSAGES, HELD_BYTES),
    require: bool = False,
    user: str | None = None,
    password: str | None = None,
    token: str | None = None,
    transports: Transports | None = None,
    new_incarnation: Callable[[], str] = lambda: secrets.token_hex(16),
) -> Deferred[Client]:
    """Dial a node; fires with a `Client` when the first session stands.

    From then on the client reconnects by itself until `close`, and sends again what was not
    acknowledged. `address`: `tcp:127.0.0.1:7410`, `tls:…`, `unix:…`. `name`: of this sender.

    `outbox`: path of a file that keeps what is handed over until the node has it, across crashes
    of this process; `held` is its limit, and this Deferred fires as soon as the file is open,
    connected or not (`when_connected` tells the rest): from then on `send` works. The receipts of
    what is open are kept there too (`Client.receipts`), of `open_receipts` runs: beyond that the
    oldest are kept no more. A run is what one turn of the program has sent on one subject.

    `user` with `password`, or `token`: the login at the node. Nothing of this client is said, and
    nothing sent, to one that has not proved that it knows the user. A login that fails is tried
    again with each connection, at most every `link_delay_max`: what was handed over is kept, and
    `Client.why` has the reason.

    The others are as for `Client`. Raises `RuntimeError` in a coroutine that asyncio runs, unless
    the reactor runs there. Fails with `BadAddress`, `BadName`, `BadValue` for what can be
    no login; for the outbox with `LogLocked`, `OutboxOfAnother`, `LogTooNew`, `LogDamaged`,
    `DataFolderUnusable`. Cancelling stops dialling.
    """
    check_reactor_runs(reactor, "msgservice.aio.connect(address, name=...)")
    speak()
    limits = Limits() if limits is None else limits
    check_kind(Limits, "Limits are needed", limits=limits)
    check_flags(require=require)
    if transports is not None:
        check_methods("Transports are needed", ("find",), transports=transports)
    if outbox is not None:
        check_kind((str, Path), "the path of a file is needed", outbox=outbox)
    check_counts(0, open_receipts=open_receipts)
    try:
        prover = prover_of(reactor, user=user, password=password, token=token)
    except BadValue as error:
        return fail(error)

    def connector_factory(make_user: Callable[[], IChannelUser]) -> IConnector:
        transport = (Transports() if transports is None else transports).find(address)
        connector: IConnector = transport.connector(reactor, address, make_user, limits)
        return connector

    def begin(disk: DiskOutbox | None) -> Client:
        client = Client(
            reactor=reactor,
            name=name,
            connector_factory=connector_factory,
            limits=limits,
            new_incarnation=new_incarnation,
            window=window,
            held=held,
            require=require,
            outbox=disk,
            prover=prover,
        )
        client.start()
        return client

    if outbox is not None:
        # Only here: SQLite is none of the business of a producer that does not use it.
        from msgservice.client.disk import open_outbox

        threads = cast("IReactorFromThreads", reactor)
        try:
            check_name(name)
        except MsgServiceError as error:
            return fail(error)
        opening = open_outbox(
            threads, outbox, bytes_max=held[1], sender=name, receipts_max=open_receipts
        )
        return opening.addCallback(_with_disk, begin)
    try:
        client = begin(None)
    except MsgServiceError as error:
        return fail(error)
    waiting = client.when_connected()
    opened = Dialling(lambda _: _give_up(client, waiting))
    waiting.chainDeferred(opened)
    return opened


def _with_disk(disk: DiskOutbox, begin: Callable[[DiskOutbox], Client]) -> Any:
    try:
        return begin(disk)
    except Exception:  # wrong arguments too: nobody else could close the file
        failure = Failure()
        return disk.file.close().addBoth(lambda _: failure)


def _give_up(client: Client, waiting: Deferred[Client]) -> None:
    """Close a connection that nobody waits for any more; `close` cannot fail."""
    waiting.cancel()  # which fires, with `CancelledError`, what is chained to it
    client.close()
