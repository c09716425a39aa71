"""The gate of a node: who a peer is, and what it may do. Every door asks here (SEMANTICS 32).

    a login, if it says one    `login`: a dialogue, which ends with a principal
    its HELLO                  `admit`: by that, or by what its connection shows: a `Pass`
    what it asks for then      `Pass`: its rules, names, and the receivers that are its user's

Where nobody is configured whoever gets in is believed, and only this machine administrates. From
the first user on every listener asks, but for those that say whom everybody is who comes by them.
Who the users are and how they prove it is `msgservice.identity`'s; what is decided here is only
asked for elsewhere in the node: nothing else there knows of users.

Everything that a login or a change of the node is about has a line in the log, under a namespace
of its own.
"""

from __future__ import annotations

import hmac
import secrets
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, cast

from twisted.internet.defer import Deferred, DeferredSemaphore, succeed
from twisted.internet.interfaces import IReactorFromThreads, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from msgservice.clock import Time
from msgservice.core.reasons import one_line
from msgservice.core.subjects import check_name, is_reserved
from msgservice.credentials import THIS_PROCESS, Credentials
from msgservice.errors import (
    BadValue,
    Forbidden,
    LimitReached,
    LoginEnded,
    MsgServiceError,
    NotAllowed,
    NotAuthenticated,
)
from msgservice.identity.principal import Principal
from msgservice.identity.rules import EVERYTHING, Rules, Verb
from msgservice.identity.server_exchange import ServerExchange
from msgservice.identity.steps import Deny, Say, Welcome
from msgservice.identity.throttle import Throttle
from msgservice.identity.users import Users
from msgservice.limits import NAME_BYTES_MAX, Limits
from msgservice.node.seldom import Seldom
from msgservice.node.slices import Slices
from msgservice.records import ReceiverRow
from msgservice.threads import in_daemon_thread
from msgservice.transport.addresses import PLAIN_NEEDS, is_plain

NAMESPACE = f"{__name__.partition('.')[0]}.access"
SHOWN = 200  # characters of what somebody said, in a line
DAY_MS = 86_400_000
# Seconds of each turn for who comes: steps of logins, HELLOs, RESUMEs and their answers. Some
# thousand may come together, back from a node's restart say, at a fifth of a millisecond each.
ARRIVALS_SECONDS = 0.01
CHECKS = 2  # passwords that are compared at once, each in a thread
PROVEN_MAX = 1000  # that were right, and are known again
LOOK_MS = 3_600_000  # between two looks at all tokens, while logins come by tokens
SOON_DAYS = 7  # before a token expires that is a warning, once a day at most

# How a principal was known where no `Users` say it.
OPEN = "nobody is configured"
PROCESS = "process"
NO_LOGIN = "no login"
DIALLED = "dialled"
ANYBODY = "anybody"  # the name of who says none, where names are believed

WEB = "http"  # what the senders of those begin with who ask over HTTP; nobody else's do

_logger = Logger(namespace=NAMESPACE)  # a class's own would have its name
_NAMELESS = {OPEN: "somebody", PROCESS: "this program", DIALLED: "a receiver without a user"}
_NOTHING: Final = Rules()


def _whatever(name: str) -> bool:
    return True


def _none(name: str) -> bool:
    return False


def _always() -> bool:
    return True


def web_sender(user: str) -> str:
    """Return the name of the sender of what a user hands in over HTTP; "": of who is believed."""
    return f"{WEB}.{user}" if user else WEB


@dataclass(frozen=True, slots=True)
class Door:
    """The door that a connection came by: a listener, or a program that has the node.

    `asks`: for a login, of whom its connection does not show who it is. `user`: whom all are who
    come by one that does not; empty, in this process alone: the node's own program, which may do
    all.
    """

    asks: bool = True
    user: str = ""


LISTENER: Final = Door()
OWN: Final = Door(asks=False)


class Pass:
    """The pass of one peer: what it may do from its HELLO on, as its principal or as anybody.

    `is_bound`: it may only have its user's names, patterns and receivers; one that is not is
    believed. `allows` is asked once for each batch.
    """

    __slots__ = ("address", "allows", "goes_on", "is_bound", "may_be_called", "principal", "rules")

    def __init__(
        self,
        principal: Principal,
        rules: Rules,
        *,
        address: str,
        is_bound: bool = True,
        allows: Callable[[Verb, str], bool] | None = None,
        may_be_called: Callable[[str], bool] = _whatever,
    ) -> None:
        self.principal = principal
        self.rules = rules
        self.address = address
        self.is_bound = is_bound
        self.allows: Callable[[Verb, str], bool] = allows or rules.allows
        self.may_be_called = may_be_called
        self.goes_on: Callable[[], bool] = _always  # False: its login has ended by itself

    def __str__(self) -> str:
        if self.principal.user:
            return f"user {self.principal}"
        return _NAMELESS[self.principal.how]

    @property
    def owner(self) -> str:
        """The user whose the receivers are that it makes; empty: nobody's."""
        return self.principal.user if self.is_bound else ""

    @property
    def sees_all(self) -> bool:
        """Whether it may know what became of everybody's messages, and why."""
        return self.allows("request", "$node.status")

    def has_sent(self, sender: str) -> bool:
        """Return whether what this sender has sent is its own, by whichever door."""
        if sender.startswith(f"{WEB}."):
            return not self.is_bound or sender == web_sender(self.principal.user)
        return self.may_be_called(sender)

    def check_name(self, name: str, owner: str | None) -> None:
        """Raise `NotAllowed` unless it may be the receiver of this name.

        `owner`: whose the name is; None: it is new. What belongs to nobody is not given to who
        comes first.
        """
        if self.is_bound and owner is not None and owner != self.principal.user:
            raise NotAllowed(self.principal.user, f"be called {name!r}")

    def check_receives(self, patterns: Iterable[str]) -> None:
        """Raise `NotAllowed` for the first of these patterns that it may not receive."""
        for pattern in patterns:
            if not self.allows("receive", pattern):
                raise NotAllowed(self.principal.user, f"receive {pattern!r}")

    def check_responds(self, patterns: Iterable[str]) -> None:
        """Raise `NotAllowed` for the first of these on which it may not answer requests.

        Who answers a subject sees what is asked on it: it needs the right to receive it.
        """
        for pattern in patterns:
            if not self.allows("receive", pattern):
                raise NotAllowed(self.principal.user, f"answer requests on {pattern!r}")

    def refusal(self, subject: str) -> MsgServiceError:
        """Return why a request on this subject, which is not allowed, is refused."""
        if self.is_bound:
            return Forbidden("request", subject)
        return NotAuthenticated("administration is open to local connections only")


class Gate:
    """The gate of one node.

    `users`: who is configured; None or none: nobody. `insecure`: a login may also travel where
    others read along, and where nobody is configured peers need not be local, nor prove a key. It
    never gives a right.
    """

    def __init__(
        self, users: Users | None, *, insecure: bool, time: Time, limits: Limits, seldom: Seldom
    ) -> None:
        self.insecure = insecure
        self._users = users or None
        self._time = time
        self._seldom = seldom
        self.arrivals = Slices(time.clock, time.now, ARRIVALS_SECONDS)
        # Of those that were asked for since users were read: thousands may have one principal.
        self._holding: dict[Principal, bool] = {}
        self._looked = 0  # wall clock
        self._warned: dict[str, int] = {}  # token -> wall clock, of the last warning of its end
        self._secret = secrets.token_bytes(32)
        self._proven: OrderedDict[bytes, Principal] = OrderedDict()  # of passwords that were right
        self._checks = DeferredSemaphore(CHECKS)
        self._checking = 0
        self._login_checks = limits.login_checks
        self._throttle = Throttle(
            pair_max=limits.login_failures,
            address_max=limits.address_failures,
            delay=limits.login_delay,
        )
        self._warn_of_tokens()

    # --- getters

    @property
    def asks(self) -> bool:
        """Whether anybody is configured, so that it is asked who comes."""
        return self._users is not None

    def names(self, user: str) -> tuple[str, ...]:
        """Return the patterns of names that a user may have; none of one that is unknown."""
        return () if self._users is None else self._users.names(user)

    def senders(self, user: str) -> tuple[str, ...]:
        """Return the patterns of the senders whose messages are a user's own."""
        names = self.names(user)
        return (*names, web_sender(user)) if names else ()

    # --- who comes

    def login(self, credentials: Credentials) -> Login:
        """Return a new dialogue; `NotAuthenticated` where no login is offered."""
        if self._users is None:
            raise NotAuthenticated("no login is offered here")
        if not credentials.is_private and not self.insecure:
            raise NotAuthenticated(
                "logins are taken over TLS, Unix sockets, acknowledged UDP with a key and on this"
                " machine; plain tcp: elsewhere needs insecure = true in the node's configuration"
            )
        exchange = ServerExchange(
            self._users, credentials, self._throttle, wall=self._time.wall, now=self._time.now
        )
        return Login(exchange, credentials.address, self._time.clock, self.arrivals, self._denied)

    def login_by_digest(
        self, credentials: Credentials, user: str, proves: Callable[[bytes], bool]
    ) -> Deferred[Principal | None]:
        """Fire with who a user is that has proved to know the MD5 of its password.

        None where nobody is configured: whoever says a name is believed, as with HELLO. `proves`:
        says whether it has, of an MD5. Fails with `NotAuthenticated`, a while after a wrong one;
        cancelling ends the wait. MD5 hides a password from nobody who reads along, so it is only
        taken where nobody does, `insecure` or not.
        """
        users = self._users
        if users is None:
            return succeed(None)
        key, address, now = user[:NAME_BYTES_MAX], credentials.address, self._time.now()
        if not credentials.is_private:
            error, why = "this login is taken over TLS and on this machine alone", "no TLS"
            return self._deny_later(Deny(NotAuthenticated(error), 0.0, why, key), address)
        if not self._throttle.allows(address, key, now):
            error, why = "too many logins failed: try again in a minute", "too many failed before"
            denied = Deny(NotAuthenticated(error), self._throttle.delay, why, key)
            return self._deny_later(denied, address)
        principal = users.by_digest(user, proves)
        if principal is None:
            self._throttle.failed(address, key, now)
            error, why = "wrong user or password", "wrong, or no such user"
            denied = Deny(NotAuthenticated(error), self._throttle.delay, why, key)
            return self._deny_later(denied, address)
        self._throttle.succeeded(address, key)
        return succeed(principal)

    def login_by_password(
        self, credentials: Credentials, user: str, password: str
    ) -> Deferred[Principal]:
        """Fire with who a user is that has said its password.

        It is compared in a thread; one that was right before is known again at once. Fails with
        `NotAuthenticated`, a while after a wrong one, and where others could read it; cancelling
        ends the wait. Raises that where no login is offered, `LimitReached` where too many wait.
        """
        users = self._users
        if users is None:
            raise NotAuthenticated("no login is offered here")
        key, address = user[:NAME_BYTES_MAX], credentials.address
        if not credentials.is_private:
            error, why = "no password over a connection that others can read: use TLS", "no TLS"
            return self._refuse_later(Deny(NotAuthenticated(error), 0.0, why, key), address)
        if not self._throttle.allows(address, key, self._time.now()):
            return self._refuse_throttled(key, address)
        mark = hmac.digest(self._secret, f"{user}\0{password}".encode(), "sha256")
        known = self._proven.get(mark)
        if known is not None and users.holds(known, self._time.wall()):
            return succeed(known)
        if self._checking >= self._login_checks:
            raise LimitReached("login_checks", self._login_checks)
        self._checking += 1
        record, reactor = users.record(user), cast("IReactorFromThreads", self._time.clock)

        def compare() -> Deferred[bool | None]:
            # Of many guesses that came at once those are counted by now that were compared before.
            if not self._throttle.allows(address, key, self._time.now()):
                return succeed(None)
            compared: Deferred[bool | None] = in_daemon_thread(
                reactor, lambda: record.is_of(password)
            )
            return compared

        checking: Deferred[bool | None] = self._checks.run(compare)
        return checking.addBoth(self._checked, key, address, mark)

    def _checked(
        self, is_right: bool | Failure | None, user: str, address: str, mark: bytes
    ) -> Deferred[Principal]:
        self._checking -= 1
        if isinstance(is_right, Failure):
            is_right.raiseException()
        if is_right is None:
            return self._refuse_throttled(user, address)
        principal = self._users.by_password(user) if self._users and is_right else None
        if principal is None:
            self._throttle.failed(address, user, self._time.now())
            error, why = "wrong user or password", "wrong, or no such user"
            denied = Deny(NotAuthenticated(error), self._throttle.delay, why, user)
            return self._refuse_later(denied, address)
        self._throttle.succeeded(address, user)
        self._proven[mark] = principal
        if len(self._proven) > PROVEN_MAX:
            self._proven.popitem(last=False)
        return succeed(principal)

    def _refuse_throttled(self, user: str, address: str) -> Deferred[Principal]:
        error, why = "too many logins failed: try again in a minute", "too many failed before"
        denied = Deny(NotAuthenticated(error), self._throttle.delay, why, user)
        return self._refuse_later(denied, address)

    def _refuse_later(self, denied: Deny, address: str) -> Deferred[Principal]:
        return cast("Deferred[Principal]", self._deny_later(denied, address))

    def admit_web(self, principal: Principal | None, credentials: Credentials, door: Door) -> Pass:
        """Return what somebody may do who asks over HTTP, and says no name; raises as `admit`."""
        found = self._pass_of(principal, credentials, door)
        if found.is_bound:
            self._came(found, web_sender(found.owner))
        return found

    def _deny_later(self, denied: Deny, address: str) -> Deferred[Principal | None]:
        self._denied(denied, address)
        failing: Deferred[Principal | None] = Deferred(lambda _: timer.cancel())
        timer = self._time.clock.callLater(denied.delay, failing.errback, Failure(denied.error))
        return failing

    def admit_named(
        self, principal: Principal | None, credentials: Credentials, door: Door, name: str
    ) -> tuple[Pass, str]:
        """Return what a peer may do that says no HELLO, and the name that it sends under.

        That is its user's; of whoever is believed, the one that it says, or `ANYBODY`. Raises as
        `admit` does.
        """
        found = self._pass_of(principal, credentials, door)
        called = found.owner or check_name(name or ANYBODY)
        if not found.may_be_called(called):
            error = NotAllowed(found.principal.user, f"be called {called!r}")
            self.turned_away(found, f"{error}: that is none of its names")
            raise error
        if found.is_bound:
            self._came(found, called)
        return found, called

    def admit(
        self, principal: Principal | None, credentials: Credentials, door: Door, name: str
    ) -> Pass:
        """Return what a peer may do that says HELLO under this name.

        `principal`: whom its login has shown it to be, or None. Nothing was looked up yet. Raises
        `NotAuthenticated`, `NotAllowed` or `LoginEnded`.
        """
        found = self._pass_of(principal, credentials, door)
        if not found.may_be_called(name):
            error = NotAllowed(found.principal.user, f"be called {name!r}")
            self.turned_away(found, f"{error}: that is none of its names")
            raise error
        if found.is_bound:
            self._came(found, name)
        return found

    def _pass_of(self, principal: Principal | None, credentials: Credentials, door: Door) -> Pass:
        users, in_process = self._users, credentials.how == "process"
        if in_process and not (door.asks or door.user):
            return self._believed(PROCESS, credentials)
        if users is None:
            if principal is not None or door.user:
                raise NotAuthenticated(f"no user is configured, {door.user!r} neither")
            # Where a peer is proves him only where nobody else can be; a key does everywhere.
            proven = credentials.is_local or credentials.key_id is not None
            if not (proven or self.insecure):
                raise NotAuthenticated("this listener takes local connections only")
            return self._believed(OPEN, credentials)
        principal = principal or users.principal(credentials)
        if principal is None and credentials.key_user is not None:
            principal = self._named(users, credentials.key_user, f"udp {credentials.key_id}")
        if principal is None and not door.asks:
            if not (credentials.is_private or self.insecure):
                raise NotAuthenticated(
                    "a listener without login is for TLS, Unix sockets and this machine; plain"
                    " tcp: elsewhere needs insecure = true in [node]"
                )
            principal = self._named(users, door.user, PROCESS if in_process else NO_LOGIN)
        if principal is None:
            raise NotAuthenticated("this node asks for a login")
        if not users.holds(principal, self._time.wall()):
            raise LoginEnded(principal.user)
        return self._bound(users, principal, credentials.address)

    def _believed(self, how: str, credentials: Credentials) -> Pass:
        """Return the pass of whoever is believed; administration is for this machine alone."""
        return Pass(
            Principal(user="", how=how, generation=0),
            EVERYTHING,
            address=credentials.address,
            is_bound=False,
            allows=_anything if credentials.is_local else _anything_but_administration,
        )

    def _bound(self, users: Users, principal: Principal, address: str) -> Pass:
        user = principal.user
        return Pass(
            principal,
            users.rules(user),
            address=address,
            may_be_called=lambda name: users.may_be_called(user, name),
        )

    def _named(self, users: Users, user: str, how: str) -> Principal:
        try:
            return users.named(user, how)
        except KeyError:
            raise NotAuthenticated(f"user {user!r} is not configured") from None

    def admit_dialled(self, owner: str, credentials: Credentials) -> Pass:
        """Return what a receiver may do that the node has dialled, besides receiving.

        Its address is the operator's word for it. `owner`: whose it is; of nobody's nothing is
        taken where it is asked who comes.
        """
        users = self._users
        if users is None:
            return self._believed(OPEN, credentials)
        if owner in users:
            return self._bound(users, users.named(owner, DIALLED), credentials.address)
        nobody = Principal(user="", how=DIALLED, generation=0)
        return Pass(nobody, _NOTHING, address=credentials.address, may_be_called=_none)

    def acting_for(self, user: str) -> Pass:
        """Return what a part of this process may do that acts for a user, without a connection.

        Empty: for the program itself. It is asked anew for each thing that is done: whoever keeps
        what it returned is not told when users change. Raises `NotAuthenticated` where there is no
        such user.
        """
        return self._pass_of(None, THIS_PROCESS, Door(asks=False, user=user))

    # --- receivers

    def check_user(self, user: str) -> None:
        """Raise `BadValue` unless this user is configured."""
        if self._users is None or user not in self._users:
            raise BadValue("user", f"{user!r} is not configured")

    def check_subjects(self, owner: str, patterns: Iterable[str]) -> None:
        """Raise `BadValue` for the first of these that the owner of a receiver may not receive."""
        if self._users is not None and owner:
            rules = self._users.rules(owner)
            for pattern in patterns:
                if not rules.allows("receive", pattern):
                    raise BadValue("subjects", f"{pattern!r}: user {owner!r} may not receive it")

    def receivable(self, row: ReceiverRow) -> Sequence[str]:
        """Return the patterns of a receiver that its owner may receive now.

        All of one that is nobody's, or whose user is not configured: it is given to nobody, and
        judged when it is somebody's.
        """
        if self._users is None or row.owner not in self._users:
            return row.patterns
        rules = self._users.rules(row.owner)
        return tuple([one for one in row.patterns if rules.allows("receive", one)])

    def may_receive(self, row: ReceiverRow) -> Sequence[str] | None:
        """Return the patterns of all that a receiver's owner may receive now.

        None: whatever it is, of one that is nobody's, or whose user is not configured.
        """
        if self._users is None or row.owner not in self._users:
            return None
        return self._users.rules(row.owner).patterns("receive")

    def why_not_dialled(self, row: ReceiverRow) -> str | None:
        """Return why a receiver with an address may not be dialled, or None."""
        users = self._users
        if users is None or row.address is None:
            return None
        if row.owner:
            if row.owner not in users:
                return f"its user {row.owner!r} is not configured"
            try:
                self.check_subjects(row.owner, row.patterns)
            except BadValue as error:
                return error.reason
        return PLAIN_NEEDS if not self.insecure and is_plain(row.address) else None

    # --- changes

    def replace(self, users: Users) -> None:
        """Let these users in from now on, and no others; who of the others is here is asked next.

        Raises `BadValue` where there were users, and none is left: then nobody would be asked.
        """
        if self._users is not None and not users:
            raise BadValue(
                "user", "is in no configuration any more: start the node anew to ask nobody"
            )
        before, self._users = self._users, users or None
        self._holding.clear()
        self._proven.clear()
        changed = () if before is None else sorted(before.replaced_by(users))
        _logger.info(
            "users were read anew: {count} are configured; gone or changed: {changed}",
            line="users-read",
            count=len(users),
            changed=", ".join(changed) or "none",
        )
        self._warn_of_tokens()

    def holds(self, given: Pass) -> bool:
        """Return whether a pass would be given again."""
        users = self._users
        if not given.goes_on():
            return False
        if not given.is_bound:
            return given.principal.how == PROCESS or users is None
        if users is None or not given.principal.user:
            return users is not None
        principal = given.principal
        if principal.until is not None:
            return users.holds(principal, self._time.wall())
        if principal not in self._holding:
            self._holding[principal] = users.holds(principal, self._time.wall())
        return self._holding[principal]

    def knows(self, principal: Principal) -> bool:
        """Return whether a principal would be found again."""
        return self._users is not None and self._users.holds(principal, self._time.wall())

    def seconds_left(self, given: Pass) -> float | None:
        """Return how long the login still holds by which a pass was given; None: no end is set."""
        until = given.principal.until
        return None if until is None else (until - self._time.wall()) / 1000

    def ended(self, given: Pass) -> LoginEnded | NotAuthenticated:
        """Return what ends the connection of a peer whose pass holds no longer."""
        user = given.principal.user
        if user and (self._users is None or user not in self._users):
            return NotAuthenticated("this login is not known any more")
        return LoginEnded(user)

    # --- what is told

    def changed(self, who: Pass, what: str) -> None:
        """Somebody changes something of the node by a request, which was allowed."""
        _logger.info(
            "{who} at {address}: {what}",
            line="operation",
            who=str(who),
            address=who.address,
            what=one_line(what)[:SHOWN],
        )

    def left(self, principal: Principal, address: str) -> None:
        """Somebody has logged out."""
        _logger.info(
            "user {who} at {address} logs out", line="logout", who=str(principal), address=address
        )

    def turned_away(self, who: Pass, why: str) -> None:
        """A peer that is known is not let in; it may be told less than this."""
        shown, address = one_line(why)[:SHOWN], who.address

        def tell(count: int) -> None:
            _logger.warn(
                "{who} at {address} was not let in{times}: {why}",
                line="not-allowed",
                who=str(who),
                address=address,
                why=shown,
                times="" if count == 1 else f" {count} times, the last time",
            )

        self._seldom.say(("turned away", address, shown), tell, kind=who.principal.user)

    def _warn_of_tokens(self) -> None:
        """Say which tokens expire soon; looked at when read, and as logins by tokens come."""
        now, tokens = self._time.wall(), () if self._users is None else self._users.tokens
        self._looked = now
        soon = [token for token in tokens if token.expires is not None]
        self._warned = {one.id: self._warned.get(one.id, 0) for one in soon}
        for token in soon:
            assert token.expires is not None
            left = token.expires - now
            if left < SOON_DAYS * DAY_MS and not 0 <= now - self._warned[token.id] < DAY_MS:
                self._warned[token.id] = now
                _logger.warn(
                    "token {id} of user {user} {end}: make another one (msgservice token add)",
                    line="token-expires",
                    id=token.id,
                    user=token.user,
                    end=f"expires in {left / DAY_MS:.1f} days" if left > 0 else "has expired",
                )

    def _came(self, who: Pass, name: str) -> None:
        address = who.address
        is_by_token = who.principal.until is not None
        # Not with each: all tokens of all users are looked at.
        if is_by_token and not 0 <= self._time.wall() - self._looked < LOOK_MS:
            self._warn_of_tokens()

        def tell(count: int) -> None:
            _logger.info(
                "{who} at {address} is {name}{times}",
                line="login",
                who=str(who),
                address=address,
                name=name,
                times="" if count == 1 else f" ({count} times)",
            )

        thing = ("came", who.principal.how, address, name)
        self._seldom.say(thing, tell, kind=who.principal.user)

    def _denied(self, denied: Deny, address: str) -> None:
        user, why = one_line(denied.user)[:SHOWN], one_line(denied.why)[:SHOWN]

        def tell(count: int) -> None:
            _logger.warn(
                "login of user {user!r} at {address} failed{times}: {why}",
                line="login-failed",
                user=user,
                address=address,
                times="" if count == 1 else f" {count} times, the last time",
                why=why,
            )

        # Whoever makes up names keeps no line about a user that there is out of the log, nor does
        # who guesses one user's password from many addresses those about another.
        is_known = self._users is not None and denied.user in self._users
        whose = denied.user if is_known else ""
        self._seldom.say(("denied", user, address), tell, kind=("denied", whose))

    def stop(self) -> None:
        """Tell what was counted; from now on nothing is told of who comes, and no timer is left."""
        self._seldom.stop()
        self.arrivals.stop()


class Login:
    """The dialogue of one login; `denied(step, address)` is told of one that fails."""

    def __init__(
        self,
        exchange: ServerExchange,
        address: str,
        clock: IReactorTime,
        steps: Slices,
        denied: Callable[[Deny, str], None],
    ) -> None:
        self._exchange = exchange
        self._address = address
        self._clock = clock
        self._steps = steps
        self._denied = denied

    def receive(self, data: bytes) -> Deferred[Say | Welcome]:
        """Fire with the next step. Fails with `NotAuthenticated`, a while after a wrong one.

        Cancelling it ends the wait.
        """
        return self._steps.run(lambda: self._exchange.receive(data)).addCallback(self._told)

    def _told(self, step: Say | Welcome | Deny) -> Deferred[Say | Welcome]:
        if not isinstance(step, Deny):
            return succeed(step)
        self._denied(step, self._address)
        failing: Deferred[Say | Welcome] = Deferred(lambda _: timer.cancel())
        timer = self._clock.callLater(step.delay, failing.errback, Failure(step.error))
        return failing


def _anything(verb: Verb, name: str) -> bool:
    return True


def _anything_but_administration(verb: Verb, name: str) -> bool:
    return verb != "request" or not is_reserved(name)
