"""Remotes that have left: their accounts, by which they may come back and go on where they were.

How many are kept, and how much of what they have not heard, is bounded; the rest begins anew.
"""

from __future__ import annotations

from collections import OrderedDict

from msgservice.faces.sessions.hop import Account
from msgservice.faces.sessions.limits import SessionLimits
from msgservice.faces.sessions.member import Key


class Departed:
    """The accounts of a central's remotes that have left; the oldest is forgotten first.

    Those that have failures of which their remotes have not heard are counted by the bytes of
    these: a departure costs the same however many are kept.
    """

    def __init__(self, limits: SessionLimits) -> None:
        self._accounts_max, self._failed_max = limits.sessions_kept, limits.queue_bytes
        self._accounts: OrderedDict[Key, Account] = OrderedDict()
        self._failed: OrderedDict[Key, int] = OrderedDict()  # bytes, of those that have any
        self._failed_bytes = 0  # of all

    def get(self, key: Key) -> Account | None:
        """Return the account of a remote, if it is kept."""
        return self._accounts.get(key)

    def keep(self, key: Key, account: Account) -> None:
        """Keep the account of a remote that has left."""
        self.forget(key)
        self._accounts[key] = account
        while len(self._accounts) > self._accounts_max:
            self.forget(next(iter(self._accounts)))
        self.count_failures(key, account)

    def forget(self, key: Key) -> None:
        """Keep the account of a remote no longer: it is back, or there are too many."""
        if self._accounts.pop(key, None) is not None:
            self._failed_bytes -= self._failed.pop(key, 0)

    def count_failures(self, key: Key, account: Account) -> None:
        """Count what has failed of an account, if it is kept; where that is too much, forget."""
        size = account.incoming.failed_bytes
        if self._accounts.get(key) is not account or not size:
            return
        self._failed_bytes += size - self._failed.get(key, 0)
        self._failed[key] = size
        while self._failed_bytes > self._failed_max:
            self.forget(next(iter(self._failed)))
