"""The connections of a node: which one counts for each name, dialling, pausing, ending them.

Newest connection wins: for senders per name and incarnation, for receivers per name (SEMANTICS 5,
27). What one connection says and does is in `peer`; who receives what is in `receivers`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from twisted.internet.defer import Deferred, gatherResults, succeed
from twisted.logger import Logger

from msgservice.clock import Time
from msgservice.connection import UNCOMMITTED, Connection, Prover
from msgservice.core.frames import BYE_CLOSING, BYE_REPLACED
from msgservice.core.subjects import exact
from msgservice.errors import BadAddress, BadValue, NameHeld
from msgservice.interfaces import IChannelUser, IConnector, INamingTransport
from msgservice.limits import Limits
from msgservice.node.dispatch import Dispatch
from msgservice.node.gate import LISTENER, Door, Gate
from msgservice.node.outlet import Outlet
from msgservice.node.peer import Peer
from msgservice.node.visits import Visits
from msgservice.records import ReceiverRow, Tried
from msgservice.transport.addresses import checked_way_to, ip_of, is_url, parse_address, way_to
from msgservice.transport.reach import NotReachable, Reach, ReachingReactor
from msgservice.transport.registry import Transports


def _subjects_asked(peer: Peer) -> set[str]:
    """Return the patterns that a peer's HELLO has asked for; none: those that the node has."""
    hello = peer.connection.session.peer_hello if peer.connection is not None else None
    receive = hello.options.receive if hello is not None else None
    return set(receive.subjects or ()) if receive is not None else set()


def _place_of(peer: Peer, outlet: Outlet) -> str:
    """Return which place of its receiver a peer wants: of one that is shared, its own."""
    hello = peer.connection.session.peer_hello if peer.connection is not None else None
    return hello.incarnation if hello is not None and outlet.row.options.shared else ""


def _same_program(older: Peer, newer: Peer) -> bool:
    """Whether one program came back: where no close travels, its last connection seems to live."""
    hellos = [each.connection.session.peer_hello for each in (older, newer) if each.connection]
    return len({hello.incarnation for hello in hellos if hello is not None}) == 1


class Connections:
    """The connections of a node.

    `make_peer(outlet)`: one more, of what was dialled or of None. `provers`: by the name of a node
    that is dialled, the login there.
    """

    _logger = Logger()

    def __init__(
        self,
        make_peer: Callable[[Outlet | None], Peer],
        *,
        dispatch: Dispatch,
        gate: Gate,
        visits: Visits,
        transports: Transports,
        reach: Reach,
        provers: Mapping[str, Prover],
        time: Time,
        limits: Limits,
    ) -> None:
        self.peers: dict[Peer, None] = {}
        self.links: dict[int, IConnector] = {}  # by receiver number
        # The address that the configuration has of each of its receivers, by name.
        self.configured: Mapping[str, str | None] = {}
        self.make_peer = make_peer
        self._dispatch = dispatch
        self._gate = gate
        self._visits = visits
        self._transports = transports
        self._reach = reach
        self._provers = provers
        self._time = time
        self._limits = limits
        self._peers_made = 0
        self._senders: dict[tuple[str, str], Peer] = {}
        # By receiver number: of one that is shared by incarnation, of any other there is one.
        self._receiving: dict[int, dict[str, Peer]] = {}
        # Not told to the log yet: senders that ended for ever, and those that were here since.
        self._left: dict[tuple[str, str], None] = {}
        self._seen: dict[tuple[str, str], None] = {}
        self._owing: dict[Peer, None] = {}  # gone, and what they sent still waits for its group
        self._replaced: dict[int, list[float]] = {}
        self._held: dict[int, float] = {}  # receiver number -> until when its name is held
        self.has_paused = False  # senders, since too much is taken in and not committed
        self._stopping = False
        self._peers_gone: Deferred[None] | None = None

    # --- making them

    def make_user(self, door: Door = LISTENER) -> IChannelUser:
        """Return the user of an accepted channel: a peer of this node that came by this door."""
        return self._connection(None, door)

    def _connection(self, dialled: Outlet | None, door: Door = LISTENER) -> Connection:
        peer, time = self.make_peer(dialled), self._time
        peer.door = door
        return Connection(
            peer,
            clock=time.clock,
            now=time.now,
            limits=self._limits,
            takes=peer.takes,
            prover=(
                self._provers.get(dialled.name) if dialled is not None and dialled.is_node else None
            ),
            arrivals=self._gate.arrivals,
            says_why=False,  # the visits do, however many there are
        )

    def dial(self, outlet: Outlet) -> None:
        """Keep a connection to a receiver that has an address, and is not paused nor removed."""
        row = outlet.row
        if row.address is None or row.options.paused or row.removed or row.number in self.links:
            return
        if outlet.is_going:
            return
        why = self._gate.why_not_dialled(row)
        if why is not None:
            outlet.last_error = f"not dialled: {why}"
            self._logger.error(
                "receiver {name} is not dialled: {why}", line="not-dialled", name=row.name, why=why
            )
            return
        try:
            link = self._connector(row.address, outlet)
        except BadAddress as error:
            # It comes from an older log or another machine: the others are served all the same.
            outlet.last_error = str(error)
            self._logger.error(
                "receiver {name} is not dialled: {error}",
                line="not-dialled",
                name=row.name,
                error=str(error),
            )
            return
        self.links[row.number] = link
        link.startService()

    def check(self, address: str, name: str) -> str:
        """Return the `exact` address; `BadAddress` unless this receiver could be dialled there.

        Of one that has a host by its name it is seen when it is dialled.
        """
        address = exact(address)
        self._connector(address, None)
        way = way_to(address)
        host = "" if is_url(way) else "".join(parse_address(way).parts[:1])
        if ip_of(host) is not None and self._is_given(name, address) and self._gate.asks:
            try:
                self._reach.check(host)
            except NotReachable as error:
                raise BadAddress(address, str(error)) from None
        return address

    def _is_given(self, name: str, address: str) -> bool:
        """Whether a receiver has an address that is not the configuration's, but a user's."""
        return self.configured.get(name) != address

    def _connector(self, address: str, dialled: Outlet | None) -> IConnector:
        clock: Any = self._time.clock
        if dialled is not None and self._is_given(dialled.name, address):
            clock = ReachingReactor(clock, self._reach, lambda: self._gate.asks)
        address = checked_way_to(address)
        transport, limits = self._transports.find(address), self._limits
        connector: IConnector
        if dialled is not None and INamingTransport.providedBy(transport):
            naming: INamingTransport = transport
            connector = naming.connector_to(
                self._time.clock, address, lambda: self._connection(dialled), limits, dialled.name
            )
        else:
            connector = transport.connector(
                clock, address, lambda: self._connection(dialled), limits
            )
        return connector

    def try_out(self, row: ReceiverRow) -> Deferred[Tried]:
        """Fire with what the endpoint of a receiver answers to a test (`INamingTransport`).

        Raises `BadValue` for a receiver that is at no web address, or may not be dialled.
        """
        transport = None if row.address is None else self._transports.find(way_to(row.address))
        if row.address is None or not INamingTransport.providedBy(transport):
            raise BadValue("name", f"{row.name} is at no web address: only webhooks are tested")
        if (why := self._gate.why_not_dialled(row)) is not None:
            raise BadValue("name", f"{row.name} is not dialled: {why}")
        naming: INamingTransport = transport
        tried: Deferred[Tried] = naming.try_out(self._time.clock, way_to(row.address), row.name)
        return tried

    def undial(self, outlet: Outlet) -> Deferred[Any]:
        """Dial it no more; fire when the connection that was dialled has gone."""
        link = self.links.pop(outlet.row.number, None)
        if link is None:
            return succeed(None)
        for peer in self._receiving.get(outlet.row.number, {}).values():
            if peer.is_dialled:
                peer.ended_by_us = True
        stopped: Deferred[Any] = link.stopService() or succeed(None)
        return stopped

    # --- their lives

    def up(self, peer: Peer) -> None:
        """A connection stands."""
        self._peers_made += 1
        peer.number = self._peers_made
        self.peers[peer] = None
        if self._stopping and peer.connection is not None:
            peer.connection.abort()

    def opened(self, peer: Peer) -> bool:
        """The session of a peer is open: the newest connection wins per (name, incarnation).

        Returns whether this is it; it is sent away otherwise.
        """
        assert peer.connection is not None
        hello = peer.connection.session.peer_hello
        assert hello is not None
        key = (hello.name, hello.incarnation)
        if peer.is_next_node:  # it sends nothing here: no sender of its name takes its place
            self._visits.came(peer)
            return True
        other = self._senders.get(key)
        if other is not None and other is not peer:
            # The newest is the one that was made last, not the one that opened last: the end of
            # a handshake may reach us long after its sender has given that connection up.
            older, newer = sorted((other, peer), key=lambda each: each.number)
            older.leave(BYE_REPLACED, "a newer connection of this sender")
            if newer is other:
                return False
        self._visits.came(peer)
        self._senders[key] = peer
        self._seen[key] = None
        self._left.pop(key, None)
        if self.has_paused and peer.outlet is None:  # not before: who it is must be heard in time
            peer.connection.pause(UNCOMMITTED)
        return True

    def gone(self, peer: Peer) -> None:
        """The connection of a peer has ended."""
        self.peers.pop(peer, None)
        self._visits.went(peer)
        connection = peer.connection
        hello = connection.session.peer_hello if connection is not None else None
        key = (hello.name, hello.incarnation) if hello is not None else ("", "")
        if peer.ingress is not None and peer.ingress.waiting:
            self._owing[peer] = None
        if self._senders.get(key) is peer:
            del self._senders[key]
            if peer.has_settled and peer.ingress is not None and not peer.ingress.waiting:
                self._left[key] = None
                self._seen.pop(key, None)
        if peer.outlet is not None:
            receiving = self._receiving.get(peer.outlet.row.number, {})
            place = _place_of(peer, peer.outlet)
            if receiving.get(place) is peer:
                del receiving[place]
                if not receiving:
                    del self._receiving[peer.outlet.row.number]
            else:
                self._have_come_again(peer, peer.outlet)
        if self._peers_gone is not None and not self.peers:
            gone, self._peers_gone = self._peers_gone, None
            gone.callback(None)

    def _have_come_again(self, gone: Peer, outlet: Outlet) -> None:
        """Let a receiver's other connection say its subjects again.

        One has gone that never had its place, and what it had said holds: subjects hold from HELLO
        on, so who is fed, or about to be, gets what another has asked for.
        """
        holds = set(outlet.row.patterns)
        if _subjects_asked(gone) != holds:
            return
        for other in self.peers:
            asked = _subjects_asked(other) if other.outlet is outlet else None
            if asked and asked != holds and other.connection is not None:
                other.connection.abort()

    def take_presence(self) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
        """Return the senders connected now or since the last call, and those that ended for good.

        Connected is who was told a RESUME, though its session may not be open yet, and of whom
        something waits to be stored. Ended is who needs nothing any more that the log knows of it,
        as it said itself.
        """
        left, here = self._left, self._seen
        self._left, self._seen = {}, {}
        self._owing = {peer: None for peer in self._owing if peer.ingress and peer.ingress.waiting}
        for peer in (*self.peers, *self._owing):
            if peer.ingress is not None:
                here[peer.ingress.sender] = None
        return list(here), list(left)

    def end_what_holds_no_more(self) -> None:
        """The users have changed: the connections of those that are gone or others now end."""
        for peer in list(self.peers):
            peer.look_again()

    # --- of receivers

    def receivers_here(self) -> set[int]:
        """The numbers of the receivers that have a connection: fed, or paused."""
        return {
            peer.outlet.row.number
            for peer in self.peers
            if peer.outlet is not None and peer.is_greeted and not peer.is_leaving
        }

    def next_node(self, number: int) -> Peer | None:
        """Return the connection to a node that messages are passed on to, while it stands."""
        for peer in self.peers:
            outlet = peer.outlet
            if outlet is not None and outlet.row.number == number and peer.is_next_node:
                return None if peer.is_leaving else peer
        return None

    def hold_check(self, outlet: Outlet) -> None:
        """Raise `NameHeld` while the name is held."""
        number = outlet.row.number
        until = self._held.get(number)
        if until is not None:
            left = until - self._time.now()
            if left > 0:
                raise NameHeld(outlet.name, math.ceil(left))
            del self._held[number]

    def replace(self, outlet: Outlet, peer: Peer) -> bool:
        """Let this peer be the receiver's connection; the older of two is sent away.

        Where it is shared, the connection of its incarnation. Returns whether it is.
        """
        receiving = self._receiving.setdefault(outlet.row.number, {})
        place = _place_of(peer, outlet)
        other = receiving.get(place)
        if other is None or other is peer:
            receiving[place] = peer
            return True
        older, newer = sorted((other, peer), key=lambda each: each.number)
        # Who dials again has not died. Another process may have come because the older one did, of
        # a message: where no close travels, nothing else shows it (SEMANTICS 14).
        same = _same_program(older, newer)
        older.leave(BYE_REPLACED, "a newer connection of this receiver", lost=not same)
        if newer is other:
            return False
        receiving[place] = peer
        if not same:
            self._count_replacement(outlet)
        return True

    def _count_replacement(self, outlet: Outlet) -> None:
        """Hold a name whose receivers replace each other too often."""
        number = outlet.row.number
        now, limits = self._time.now(), self._limits
        recent = [t for t in self._replaced.get(number, []) if t > now - limits.replacement_window]
        self._replaced[number] = [*recent, now]
        if len(recent) + 1 > limits.replacements:
            self._held[number] = now + limits.replacement_hold
            del self._replaced[number]
            self._logger.warn(
                "receiver {name} was replaced {count} times in {seconds} s: two programs have"
                " its name; it is held",
                line="receiver-contended",
                name=outlet.name,
                count=len(recent) + 1,
                seconds=limits.replacement_window,
            )

    def send_away(self, outlet: Outlet, code: int, reason: str) -> None:
        """Take nothing more from a receiver's connections, and let them end."""
        for peer in self._receiving.pop(outlet.row.number, {}).values():
            peer.dismiss(code, reason)

    def part(self, outlet: Outlet, reason: str) -> None:
        """Feed a receiver's connections nothing more, and take no more answers; they stay."""
        for peer in self._receiving.pop(outlet.row.number, {}).values():
            peer.part(reason)

    def dismiss_all(self, outlet: Outlet, code: int, reason: str) -> None:
        """Let all connections of a receiver end that were greeted; others hear of it then."""
        for peer in list(self.peers):
            if peer.outlet is outlet and peer.is_greeted:
                peer.dismiss(code, reason)

    def forget(self, outlet: Outlet) -> None:
        """The receiver was removed: nothing is noted of its number any more."""
        self._replaced.pop(outlet.row.number, None)
        self._held.pop(outlet.row.number, None)

    def give_up_place(self, outlet: Outlet, reason: str) -> None:
        """Send a receiver's connection away as a replaced one: another one of the name wants it."""
        receiving = self._receiving.pop(outlet.row.number, {})
        if receiving:
            self._count_replacement(outlet)
        for older in receiving.values():
            older.leave(BYE_REPLACED, reason)

    # --- flow

    def pause_senders(self) -> None:
        """Too much is taken in and not committed: read from no sender until `resume_senders`."""
        if not self.has_paused:
            self.has_paused = True
            for peer in self.peers:
                connection = peer.connection
                if connection is not None and connection.session.is_open and peer.outlet is None:
                    connection.pause(UNCOMMITTED)

    def resume_senders(self) -> None:
        """Uncommitted bytes are few again: senders that were paused may go on."""
        if self.has_paused:
            self.has_paused = False  # senders: too much is taken in and not committed
            for peer in list(self.peers):
                if peer.connection is not None:
                    peer.connection.resume_reading(UNCOMMITTED)
                    peer.connection.go_on_soon()

    # --- the end

    def refuse(self) -> None:
        """The node stops: who comes now is turned away."""
        self._stopping = True
        self._visits.stop()

    async def stop(self) -> None:
        """Say goodbye to all of them; return when they have gone, within `stop_timeout`."""
        gone: Deferred[None] = Deferred()
        self._peers_gone = gone
        links = [self.undial(outlet) for outlet in self._dispatch]
        # Not when all is stored: with a producer that goes on sending, that time never comes.
        for peer in list(self.peers):
            peer.leave(BYE_CLOSING, "the node stops")
        deadline = self._time.clock.callLater(self._limits.stop_timeout, self.abort)
        if self.peers:
            await gone
        await gatherResults(links)
        if deadline.active():
            deadline.cancel()

    def abort(self) -> None:
        """End all of them at once."""
        for peer in list(self.peers):
            peer.ended_by_us = True
            if peer.connection is not None:
                peer.connection.abort()
