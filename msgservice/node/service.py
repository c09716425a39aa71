"""The service of `twistd msgservice`: a `Node` as its configuration says.

What a node is, and how programs embed one, is in `node`.
"""

from __future__ import annotations

import sys
from functools import partial

from twisted.internet.interfaces import IReactorTime

from msgservice.config.addresses import FACES, WEB
from msgservice.config.config import Config, load_users_of
from msgservice.identity.users import Users
from msgservice.identity.users_file import load_users
from msgservice.node.node import Node
from msgservice.records import ReceiverRow

SWITCH_INTERVAL = 0.0005  # seconds; the writer thread must win the interpreter back quickly


def read_users(config: Config) -> Users:
    """Return the users that the file of a configuration says now; waits for the disk.

    Raises `ConfigError` with all that is wrong with them, `BadValue` or `OSError`.
    """
    users, users_file = config.users, config.users_file
    if config.file is not None:
        users, users_file = load_users_of(config.file, config.limits)
    return load_users(users, users_file, config.data)


def build_service(config: Config, *, reactor: IReactorTime) -> Node:
    """Return the service of a configuration."""
    # A commit must win the interpreter back from a busy reactor for each of its steps; with the
    # default of 5 ms a group takes up to five times longer (bench/fanout.py).
    sys.setswitchinterval(SWITCH_INTERVAL)
    return Node(
        reactor,
        config.data,
        name=config.name or "",
        listen=[one.address for one in config.listen if one.transport not in FACES],
        web=[one.address for one in config.listen if one.transport == WEB],
        web_hosts=config.web_hosts,
        web_bodies=config.web_bodies,
        receivers=[
            ReceiverRow(
                number=0,
                name=one.name,
                address=one.address,
                patterns=tuple(one.subjects),
                configured=True,
                owner=one.user or "",
                options=one.options,
            )
            for one in config.receivers
        ],
        limits=config.limits,
        insecure=config.insecure,
        networks=config.networks,
        read_users=partial(read_users, config),
        without_login={one.address: one.user for one in config.listen if one.user is not None},
        tls=config.tls,
        logins=config.logins,
        webhooks=config.webhooks,
        rate=config.rate,
        rates={one.name: one.rate for one in config.receivers if one.rate is not None},
    )
