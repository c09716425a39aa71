"""Features: names by which each side says in its HELLO what it knows beyond what all have known.

The names, and who asks for them, are here; how a HELLO carries them is in `frames`. A name that is
not known here says nothing to this side. What one of ours has to do without, where the other side
does not name it, is decided by who would use it (`client.gathering`).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from msgservice.message import FLAG_REQUIRE, FLAG_RETAIN, FLAG_RETAIN_ONLY, PLAIN, RunOptions

TO: Final = "to"  # a node takes the names of receivers with a TRANSFER
REQUIRE: Final = "require"  # a node refuses what is for nobody, where the flag 4 asks for that
KEYS: Final = "keys"  # a node takes a message with an idempotency key once
DELAY: Final = "delay"  # a node keeps messages until they are due, and cancels them before
RETAIN: Final = "retain"  # a node keeps the last message of a subject for who joins
RESPOND: Final = "respond"  # a node passes requests on to who says in its HELLO to answer them
CANCEL: Final = "cancel"  # a node, and who answers, hears that nobody waits for an answer any more
CODES: Final = "codes"  # refusals say which error they are: NACK, and REPLY in its header

FACTS: Final = "facts"  # a receiver is told when its messages were stored, and of their attempts
TTL: Final = "ttl"  # a node takes the time after which a message expires
PROMISES: Final = "promises"  # a node says in time whether so many receivers have acknowledged

OF_NODES: Final = (CANCEL, CODES, DELAY, KEYS, PROMISES, REQUIRE, RESPOND, RETAIN, TO, TTL)
OF_PEERS: Final = (CODES,)  # of clients and receivers
OF_RECEIVERS: Final = (*OF_PEERS, FACTS)
OF_RESPONDERS: Final = (CANCEL, *OF_PEERS)
# What those have who were made before there were names, and say none.
BEFORE: Final = frozenset({REQUIRE, TO})
ALL: Final = frozenset((*OF_NODES, *OF_RECEIVERS, *OF_RESPONDERS))


def features_of(said: Collection[str] | None) -> frozenset[str]:
    """The features that are known here, of those that a HELLO names; None: it has no such list."""
    return BEFORE if said is None else ALL.intersection(said)


def missing_for(options: RunOptions, features: Collection[str]) -> str | None:
    """The first feature that runs with these options need and a node does not have, or None."""
    if options is PLAIN:
        return None
    if options.to is not None and TO not in features:
        return TO
    if options.flags & FLAG_REQUIRE and REQUIRE not in features:
        return REQUIRE
    if options.ttl is not None and TTL not in features:
        return TTL
    if options.flags & (FLAG_RETAIN | FLAG_RETAIN_ONLY) and RETAIN not in features:
        return RETAIN
    if options.delay is not None and DELAY not in features:
        return DELAY
    if options.promise is not None and PROMISES not in features:
        return PROMISES
    return None
