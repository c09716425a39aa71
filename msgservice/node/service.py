"""The service of `twistd msgservice`: a `Node` as its configuration says.

What a node is, and how programs embed one, is in `node`.
"""

from __future__ import annotations

import sys

from twisted.internet.interfaces import IReactorTime

from msgservice.config.config import Config
from msgservice.node.node import Node
from msgservice.records import ReceiverRow

SWITCH_INTERVAL = 0.0005  # seconds; the writer thread must win the interpreter back quickly


def build_service(config: Config, *, reactor: IReactorTime) -> Node:
    """Return the service of a configuration."""
    # A commit must win the interpreter back from a busy reactor for each of its steps; with the
    # default of 5 ms a group takes up to five times longer (bench/fanout.py).
    sys.setswitchinterval(SWITCH_INTERVAL)
    return Node(
        reactor,
        config.data,
        name=config.name or "",
        listen=[one.address for one in config.listen],
        receivers=[
            ReceiverRow(
                number=0,
                name=one.name,
                address=one.address,
                patterns=tuple(one.subjects),
                configured=True,
                options=one.options,
            )
            for one in config.receivers
        ],
        limits=config.limits,
        insecure=config.insecure,
        tls=config.tls,
        rate=config.rate,
        rates={one.name: one.rate for one in config.receivers if one.rate is not None},
    )
