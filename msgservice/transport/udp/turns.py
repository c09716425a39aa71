"""One endpoint in the reactor: its socket, its timer, and the turns in which it speaks.

What `udp.peer` and `udp.bearer` both have. In a turn all that came is handed to the owner at once,
and what is then to be said leaves together. The socket is `udp.socket`'s where the reactor watches
descriptors, else a port of Twisted's own (`udp.port`). Not here: what messages mean.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Collection, Container, Mapping, Sequence
from typing import Protocol, cast

from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IDelayedCall, IReactorFDSet, IReactorTime, IReactorUDP
from twisted.logger import Logger

from msgservice.clock import monotonic_of, timed
from msgservice.core.datagram.cookie import Address
from msgservice.core.datagram.endpoint import Endpoint
from msgservice.core.datagram.keys import Keys
from msgservice.core.datagram.limits import DatagramLimits
from msgservice.core.datagram.peers import Effects
from msgservice.core.datagram.unopened import Unopened
from msgservice.errors import CannotListen, InsecureListener, PeerClosed, Refused
from msgservice.transport.udp.port import PortAdapter
from msgservice.transport.udp.socket import DatagramSocket

# Linux doubles it; an ordinary user gets at most net.core.rmem_max, which the log shows.
BUFFER_BYTES = 4 * 1024 * 1024
GRAIN = 1e-6


class Socket(Protocol):
    """A socket, as turns use it."""

    @property
    def address(self) -> Address:
        """Where it is bound."""

    @property
    def writable(self) -> bool:
        """Whether nothing waits for the kernel."""

    def send(self, address: Address, datagrams: Sequence[bytes]) -> None:
        """Send datagrams to one address."""

    def close(self) -> None:
        """Close it; what waits is gone."""


class Turns:
    """The turns of one endpoint.

    `take`: is given the effects of each turn that has some. `stopped`: is told when a port of
    Twisted's own was closed by somebody else. The rest: see `DatagramPeer`, and `Endpoint`.

    Fields without an underscore are read by the owner, and changed here only.
    """

    _log = Logger(namespace="msgservice.transport.udp")

    def __init__(
        self,
        reactor: IReactorTime,
        take: Callable[[Effects], None],
        stopped: Callable[[], None],
        *,
        key: bytes | Mapping[int, bytes] | None,
        insecure: bool,
        limits: DatagramLimits,
        entropy: Callable[[int], bytes],
        jitter: Callable[[], float],
        ordered: bool,
        carry_over: bool,
        by_key: bool = False,
        patience: float | None = None,
        retries: int = 3,
        seconds: Callable[[], float] | None = None,
    ) -> None:
        self.reactor = timed(reactor)
        self.seconds: Callable[[], float] = seconds or monotonic_of(reactor)
        self._open = key is None and not insecure
        self._is_keyed = key is not None
        keys = None
        if key is not None:
            keys = Keys(key if isinstance(key, Mapping) else {1: key}, ChaCha20Poly1305)
        self.endpoint = Endpoint(
            limits=limits,
            entropy=entropy,
            jitter=jitter,
            keys=keys,
            patience=patience,
            retries=retries,
            ordered=ordered,
            carry_over=carry_over,
            by_key=by_key,
            now=self.seconds(),
        )
        self._unopened = self.endpoint.unopened.due  # looked at in each turn
        self.awaited = False  # a turn runs, or is due: what is queued now leaves with it
        self.closed = False
        self._take = take
        self._stopped = stopped
        self._socket: Socket | None = None
        self._only: Address | None = None
        self._in_turn = False
        self._call: IDelayedCall | None = None
        self._timer: IDelayedCall | None = None
        self._timer_at = 0.0

    # --- the socket

    @property
    def address(self) -> Address:
        """The address that is listened at: (host, port)."""
        if self._socket is None:
            raise PeerClosed("not listening")
        return self._socket.address

    def listen(
        self,
        port: int,
        interface: str,
        *,
        offload: bool = True,
        make: Callable[..., Socket] = DatagramSocket,
    ) -> Address:
        """Open the socket and return its (host, port); see `DatagramPeer.listen`. `make`: the kind
        of it, where the reactor watches descriptors."""
        self.check_interface(interface, port)
        if IReactorFDSet.providedBy(self.reactor):
            self._socket = make(
                self.reactor,
                receive=self.receive,
                turn=self.turn,
                known=self.knows(),
                ignores=self.ignores,
                interface=interface,
                port=port,
                buffer_bytes=BUFFER_BYTES,
                offload=offload,
            )
        else:
            try:
                cast("IReactorUDP", self.reactor).listenUDP(
                    port, self.adapter(), interface=interface, maxPacketSize=65_535
                )
            except CannotListenError as reason:
                raise CannotListen(f"udp:{port}:interface={interface}", str(reason)) from reason
        return self.address

    def adapter(self) -> PortAdapter:
        """Return the protocol for a port of Twisted's own, which is the socket once it is open."""
        return PortAdapter(self)

    def attach(self, opened: Socket) -> None:
        """Let a port that is open be the socket."""
        self._socket = opened

    def detach(self) -> None:
        """Take note that the port was closed."""
        self._stopped()

    def knows(self) -> Container[Address]:
        """Return the addresses that are no strangers: a view."""
        return self.endpoint.table.known

    def check_interface(self, interface: str, port: int) -> None:
        """Raise `InsecureListener` where an interface may not be listened at without a key."""
        if self._open and not is_loopback(interface):
            raise InsecureListener(
                f"udp:{port}:interface={interface}",
                "beyond loopback a key is needed (or insecure = true)",
            )

    def check(self, address: Address) -> Address:
        """Return an address as the socket writes it; `Refused` where it may not be spoken to, or
        without a socket, `PeerClosed` after the end."""
        if self.closed:
            raise PeerClosed("peer closed")
        if self._socket is None:
            raise Refused("this peer has no socket yet: call listen() before it sends")
        try:
            host, port = address
        except ValueError:
            raise Refused(f"an address is (host, port), not {address!r}") from None
        try:
            parsed = ipaddress.ip_address(host)
        except ValueError:
            raise Refused(f"{host!r} is no IP address: names are not looked up here") from None
        if not 0 < port < 65_536:
            raise Refused(f"port {port} must be from 1 to 65535")
        if self._open and not parsed.is_loopback:
            raise Refused(f"{host} is beyond loopback: a key is needed (or insecure = true)")
        return as_written(parsed), port

    def hear_only(self, address: Address) -> None:
        """Ignore from now on what comes from anywhere else."""
        self._only = address

    def change_keys(self, keys: Mapping[int, bytes], ended: Collection[int]) -> None:
        """Use these keys, from the next datagram on; the sessions of those in `ended` end.

        For an endpoint that had keys: one without is another kind of listener.
        """
        assert self._is_keyed
        self.endpoint.change_keys(Keys(keys, ChaCha20Poly1305), ended, self.seconds())
        self.soon()

    def close(self) -> list[object]:
        """Tell all peers, and close the socket; return the tokens of what was under way."""
        if self.closed:
            return []
        self.closed = True
        tokens: list[object] = []
        now = self.seconds()
        for peer in list(self.endpoint.peers):
            tokens += self.endpoint.close(peer, now)
        self._write()
        for call in (self._timer, self._call):
            if call is not None and call.active():
                call.cancel()
        self._timer = self._call = None  # a turn may run, whose effects have brought this about
        if self._socket is not None:
            self._socket.close()
        return tokens

    # --- from the socket

    def receive(self, data: bytes, segment: int, address: Address) -> None:
        """Take datagrams of one source, `segment` bytes each; a turn is to follow."""
        if self._only is None or address == self._only:
            self.endpoint.receive_datagrams(data, segment, address, self.seconds())

    def ignores(self, letter: int) -> bool:
        """Whether what begins with this byte and comes from a stranger is ignored unread."""
        return self.endpoint.ignores(letter, self.seconds())

    # --- turns

    def turn(self) -> None:
        """Hand on what came, then send all that is to be said, once."""
        if self._in_turn or self.closed:
            return
        endpoint = self.endpoint
        if endpoint.has_effects:
            self._in_turn = self.awaited = True
            try:
                self._take(endpoint.take_effects())
            finally:
                self._in_turn = self.awaited = False
        if self._call is not None:
            self._call.cancel()
            self._call = None
        self.awaited = False
        if self._unopened:
            self._tell_unopened()
        if not self.closed:
            self._write()
            endpoint.catch_up()
            if endpoint.rescheduled:
                self._arm()

    def _tell_unopened(self) -> None:
        """Say who is heard and not understood: to both ends it looks as if nobody were there."""
        for hello in self.endpoint.unopened.take():
            host, port = hello.address
            self._log.warn(
                "udp:{host}:{port} is not answered: {reason} ({untold} more since the last such"
                " line)",
                line="udp-not-answered",
                host=f"[{host}]" if ":" in host else host,
                port=port,
                reason=_why_unopened(hello, is_keyed=self._is_keyed),
                untold=hello.untold,
            )

    def soon(self) -> None:
        """Let a turn follow, unless one does anyway."""
        if not self.awaited and not self.closed:
            self.awaited = True
            self._call = self.reactor.callLater(0, self._called)

    def _called(self) -> None:
        self._call = None
        self.turn()

    def act(self, act: Callable[[], None]) -> None:
        """Do something in a turn of its own, and send what follows from it."""

        def turn() -> None:
            if not self.closed:
                act()
                self.turn()

        self.reactor.callLater(0, turn)

    def flush(self) -> None:
        """Send what is queued now; the owner is told of what came at the end of the turn, not in
        here."""
        if not self._in_turn and not self.closed:
            self._write()
            if self.endpoint.rescheduled:
                self._arm()

    def _write(self) -> None:
        own = self._socket
        if own is not None and own.writable:
            for address, datagrams in self.endpoint.take_datagrams(self.seconds()):
                own.send(address, datagrams)

    # --- the timer

    def _arm(self) -> None:
        due = self.endpoint.next_deadline()
        if due is None:
            return
        timer = self._timer
        if timer is not None and timer.active():
            if self._timer_at <= due:
                return  # it fires early, finds nothing, and is armed again
            timer.cancel()
        self._timer_at = due
        # A little late rather than a rounding error early, which would find nothing due.
        self._timer = self.reactor.callLater(max(0.0, due - self.seconds()) + GRAIN, self._fire)

    def _fire(self) -> None:
        self._timer = None
        self.endpoint.receive_time(self.seconds())
        self.endpoint.rescheduled = True
        self.turn()


def as_written(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    """Return an IP address as a socket writes it: answers come from there, whatever zeros the
    caller's way of writing has."""
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    host = socket.inet_ntop(socket.AF_INET6, address.packed)
    return f"{host}%{address.scope_id}" if address.scope_id else host


def is_loopback(interface: str) -> bool:
    """Whether an interface (an IP address) is reached from this machine only."""
    try:
        return ipaddress.ip_address(interface).is_loopback
    except ValueError:
        return False


def _why_unopened(hello: Unopened, *, is_keyed: bool) -> str:
    if hello.key_id == 0:
        return "it has no key, and one is needed here"
    if not is_keyed:
        return f"it has a key (keyId={hello.key_id}), and none was given here"
    if not hello.is_known:
        return f"there is no key with keyId={hello.key_id} here"
    return f"its key with keyId={hello.key_id} is not the one that is here"
