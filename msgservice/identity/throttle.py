"""`Throttle`: how often a login may fail before it is not tried any more.

Counted by user and address together, and by address alone. By user alone nothing is: a stranger
could keep a user out by failing in its name. For the same reason a user that has logged in from an
address is still let try from there when others at that address, behind one proxy say, have used up
what the address has.

Memory: one record for each failure of the last `window` seconds, the oldest forgotten beyond
`failures_max`, and one for each of the `KNOWN_MAX` newest pairs of user and address that got in.
Forgetting lets somebody try more often; refusing all instead would let strangers keep users out.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from ipaddress import IPv6Address, ip_network
from typing import TypeVar

T = TypeVar("T")

KNOWN_MAX = 10_000
_NETWORK_BITS = 64  # of an IPv6 address: what is behind them is one subscriber's to choose


class Throttle:
    """Failures of logins, and who may try again. Times are seconds of a monotonic clock.

    `pair_max`, `address_max`: failures within `window` seconds, of a user from an address, and of
    an address. `delay`: seconds that whoever failed waits for the answer. `failures_max`: records.
    """

    def __init__(
        self,
        *,
        pair_max: int = 10,
        address_max: int = 100,
        window: float = 60.0,
        delay: float = 1.0,
        failures_max: int = 20_000,
    ) -> None:
        self.delay = delay
        self._pair_max, self._address_max = pair_max, address_max
        self._window, self._failures_max = window, failures_max
        self._failures: deque[tuple[float, str, str]] = deque()
        self._pairs: Counter[tuple[str, str]] = Counter()
        self._addresses: Counter[str] = Counter()
        self._known: OrderedDict[tuple[str, str], None] = OrderedDict()

    @property
    def records(self) -> int:
        """The number of failures that are remembered."""
        return len(self._failures)

    def allows(self, address: str, user: str, now: float) -> bool:
        """Return whether this user's login may be tried from this address."""
        self._expire(now)
        place = _place(address)
        if self._pairs[place, user] >= self._pair_max:
            return False
        return self._addresses[place] < self._address_max or (place, user) in self._known

    def failed(self, address: str, user: str, now: float) -> None:
        """A login failed."""
        place = _place(address)
        self._failures.append((now, place, user))
        self._pairs[place, user] += 1
        self._addresses[place] += 1
        if len(self._failures) > self._failures_max:
            self._forget()

    def succeeded(self, address: str, user: str) -> None:
        """A login went well: the user is known at this address from now on."""
        place = _place(address)
        self._known[place, user] = None
        self._known.move_to_end((place, user))
        if len(self._known) > KNOWN_MAX:
            self._known.popitem(last=False)

    def _expire(self, now: float) -> None:
        while self._failures and self._failures[0][0] <= now - self._window:
            self._forget()

    def _forget(self) -> None:
        _, place, user = self._failures.popleft()
        _less(self._pairs, (place, user))
        _less(self._addresses, place)


def _less(counter: Counter[T], key: T) -> None:
    if counter[key] > 1:
        counter[key] -= 1
    else:
        del counter[key]


def _place(address: str) -> str:
    """The address as it is counted: of IPv6 the network, and an IPv4 one inside as itself."""
    try:
        parsed = IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ip_network((parsed, _NETWORK_BITS), strict=False))
