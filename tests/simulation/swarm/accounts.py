"""Users in a swarm: whom the node is told to know, and the test's own account of what each may do.

Everybody who takes part logs in as a user of its own name. While the traffic goes on, users are
taken away, get other passwords or fewer rights, and are read anew; who has another's name in mind,
and not its password, comes by. What is judged here goes by when the node was told of it:

    barred        from then on nothing is said to its connections but why they end
    `FORBIDDEN`   nobody may send it at any time: it is refused, and reaches nobody
    fewer rights  what was sent from then on is refused, or is not for the receiver
"""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import TYPE_CHECKING, Any

from msgservice.connection import Connection
from msgservice.core.frames import VERSION, Hello, HelloOptions, ReceiveOptions
from msgservice.errors import Forbidden
from msgservice.identity.passwords import ITERATIONS_MIN, PasswordRecord
from msgservice.identity.rules import Rules
from msgservice.identity.users import User, Users
from tests.kit.logins import QuickProver
from tests.simulation.swarm.parties import password_of
from tests.simulation.swarm.scripted import RawParty, RawPeer

if TYPE_CHECKING:
    from tests.simulation.swarm.parties import Sent
    from tests.simulation.swarm.world import World

SECRET = b"the same in all lives of the node"
FORBIDDEN = "secret.1"
SENT = ("a.*", "b.*", "nobody", "extra.>", "flood.>")  # what everybody may send otherwise


@cache
def _record(password: str) -> PasswordRecord:
    return PasswordRecord.of(password, iterations=ITERATIONS_MIN)


class Accounts:
    """See the module."""

    def __init__(self, world: World, names: list[str]) -> None:
        self._world = world
        self._names = names
        self._gone: Counter[str] = Counter()
        self._locked: Counter[str] = Counter()  # whose password is another
        self._sends: dict[str, tuple[str, ...]] = {}
        self._receives: dict[str, tuple[str, ...]] = {}
        # (name, subject or pattern) -> from when until when it was forbidden to send
        self.bans: dict[str, list[list[Any]]] = {name: [] for name in names}

    # --- what the node is told

    def users(self) -> Users:
        """Return whom the node is to know now."""
        some = [name for name in self._names if not self._gone[name]]
        return Users(
            [
                User(
                    name=name,
                    password=_record("another" if self._locked[name] else password_of(name)),
                    rules=Rules(
                        send=self._sends.get(name, SENT),
                        to=[">"],
                        receive=self._receives.get(name, (">",)),
                    ),
                )
                for name in [*some, "nobody-else"]  # who is always there
            ],
            secret=SECRET,
        )

    def is_gone(self, name: str) -> bool:
        """Whether there is no such user now."""
        return bool(self._gone[name])

    def is_barred(self, name: str) -> bool:
        """Whether nobody may be logged in as this user."""
        return bool(self._gone[name] or self._locked[name])

    def read_anew(self) -> None:
        """Tell the node that runs; who is no other than before notices nothing."""
        world = self._world
        node = world.node
        if not node.lives or not node.process.clock.alive:
            return
        here = [tap for tap in node.taps if tap.peer and not (tap.is_gone or tap.is_ending)]
        same = [tap for tap in here if self._same(tap.peer)]
        node.service.reload_users(self.users())
        self._told = self._state()
        for tap in same:
            if tap.is_ending:
                world.witness.note("a reload ends another's connection", tap.peer)

    def begin(self) -> Users:
        """Return whom a node knows that starts now."""
        self._told = self._state()
        return self.users()

    def _state(self) -> dict[str, Any]:
        return {
            name: (
                bool(self._gone[name]),
                bool(self._locked[name]),
                self._sends.get(name),
                self._receives.get(name),
            )
            for name in self._names
        }

    def _same(self, name: str) -> bool:
        return self._state().get(name) == self._told.get(name)

    # --- what is changed

    def bar(self, kind: str, name: str, barred: bool) -> None:
        """Take a user away, or its password; or give it back."""
        counter = self._gone if kind == "revoke" else self._locked
        counter[name] += 1 if barred else -1
        self.read_anew()

    def narrow_sends(self, name: str, allowed: tuple[str, ...] | None) -> None:
        """Let a user send these alone; None: all again."""
        now, bans = self._world.now, self.bans[name]
        if bans and bans[-1][1] is None:
            bans[-1][1] = now
        if allowed is None:
            self._sends.pop(name, None)
        else:
            self._sends[name] = allowed
            bans.append([now, None, allowed])
        self.read_anew()

    def narrow_receives(self, name: str, allowed: tuple[str, ...] | None) -> None:
        """Let a user receive these alone; None: all again."""
        if allowed is None:
            self._receives.pop(name, None)
        else:
            self._receives[name] = allowed
        self.read_anew()

    def heal(self) -> None:
        """Everybody may everything again."""
        self._gone.clear()
        self._locked.clear()
        self._receives.clear()
        for name in list(self._sends):
            self.narrow_sends(name, None)
        self.read_anew()

    # --- what is judged

    def was_forbidden(self, sent: Sent, *, all_the_time: bool) -> bool:
        """Whether its sender might not send it: once since it was sent, or until it was told."""
        if sent.subject == FORBIDDEN:
            return True
        end = sent.accepted_at if sent.accepted_at is not None else self._world.now
        for begun, over, allowed in self.bans[sent.producer]:
            if any(one == sent.subject for one in allowed):
                continue
            over = self._world.now + 1 if over is None else over
            if all_the_time and begun < sent.at and end < over:
                return True
            if not all_the_time and begun <= end and sent.at <= over:
                return True
        return False

    def may_fail(self, sent: Sent, error: Exception) -> bool:
        """Whether a send may have been refused with this."""
        return isinstance(error, Forbidden) and self.was_forbidden(sent, all_the_time=False)


class Thief(RawParty):
    """Somebody who says that it is another, and cannot prove it.

    `how`: "guess": by a wrong password; "skip": without a login; "name": as another user, which it
    is, by a name that is not its own.
    """

    def __init__(self, world: World, victim: str, how: str) -> None:
        super().__init__(world, "thief", "other")
        self.victim = victim
        self.how = how

    def prover(self) -> Any:
        """See `RawParty`."""
        if self.how == "skip":
            return None
        if self.how == "name":
            return QuickProver("thief", password=password_of("thief"))
        return QuickProver(self.victim, password="guessed")

    def hello(self) -> Hello:
        """See `RawParty`."""
        receive = ReceiveOptions(subjects=[">"], order="none")
        return Hello(VERSION, self.victim, "thief", HelloOptions(receive=receive))

    def make_peer(self) -> RawPeer:
        """See `RawParty`."""
        thief = self

        class Peer(RawPeer):
            def greeted(self, connection: Connection, hello: Hello) -> None:
                thief.world.witness.note(
                    "a thief is let in", f"as {thief.victim}, who wants to {thief.how}"
                )
                connection.abort()

        return Peer(self)
