"""The service as `twistd`, `twist` and `.tac` files see it.

An edge: options become one `Config`, and the node is built from it. Everything heavy, and the
reactor, is imported inside the functions: this module is read to list plugins, before a reactor
has been chosen (importing one here would choose it).
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial
from types import FrameType
from typing import Any, Protocol
from weakref import WeakSet

from twisted.application.service import Application, IService
from twisted.internet.defer import Deferred, gatherResults
from twisted.logger import Logger, LogLevel
from twisted.python.components import Componentized
from twisted.python.usage import Options as UsageOptions
from twisted.python.usage import UsageError

from msgservice.clock import Reactor
from msgservice.config.addresses import STREAMS
from msgservice.config.config import Config, Flags, load_config
from msgservice.errors import BadValue, CannotListen, ConfigError, LogLocked
from msgservice.log_lines import escape_lines
from msgservice.output import keep_flowing
from msgservice.records import USERS, Reread

ENDING = (signal.SIGINT, signal.SIGTERM)


class Reloads(Protocol):
    """A node, as SIGHUP uses it."""

    def reload(self) -> Deferred[list[Reread]]:
        """Read its certificates, keys and users anew."""


_nodes: WeakSet[Reloads] = WeakSet()  # of this process: an application may have several


class Options(UsageOptions):
    """Options of `twistd msgservice`; what is given here wins over the file."""

    longdesc = "A messaging node: nothing accepted is lost. Every option: docs/configuration.md."
    optParameters = [
        [
            "config",
            "c",
            None,
            "Configuration file (TOML). Default: none, all is default.",
        ],
        ["name", "n", None, "Name of the node. Default: the one that its log was made with."],
        ["data", "d", None, "Folder of the log. Default: var/msgservice."],
    ]
    optFlags = [
        ["insecure", None, "Listen beyond this machine without authentication, if told to."],
    ]
    compData = None

    def __init__(self) -> None:
        super().__init__()
        self._listen: list[str] = []
        self._limits: dict[str, str] = {}

    def opt_listen(self, endpoint: str) -> None:
        """Listen here, and nowhere else. May be repeated. Default: tcp:7410:interface=127.0.0.1."""
        self._listen.append(endpoint)

    def opt_limit(self, setting: str) -> None:
        """Set a limit, as NAME=VALUE. May be repeated."""
        name, equals, value = setting.partition("=")
        if not equals:
            raise UsageError(f"--limit takes NAME=VALUE, not {setting!r}")
        self._limits[name] = value

    opt_l = opt_listen

    def config(self) -> Config:
        """Return what file and flags say together; raises `ConfigError`."""
        flags = Flags(
            name=self["name"],
            data=self["data"],
            listen=tuple(self._listen),
            insecure=True if self["insecure"] else None,
            limits=self._limits,
        )
        return load_config(self["config"], flags)


def makeService(options: Options) -> IService:
    """Return the node that `options` describe. Ends the process where they are wrong."""
    try:
        return build(options.config())
    except ConfigError as error:
        raise SystemExit(f"msgservice: the configuration is wrong:\n{error}") from None
    except (CannotListen, LogLocked) as error:
        raise SystemExit(f"msgservice: {error}") from None


def make_application(*files: str | os.PathLike[str]) -> Componentized:
    """Return an application with one node for each configuration file, for a `.tac`."""
    application: Componentized = Application("msgservice")
    for file in files:
        build(load_config(file)).setServiceParent(application)
    return application


Tell = Callable[[Deferred[None], Callable[[], Sequence[str]]], object]


def build(config: Config, *, tell: Tell | None = None) -> IService:
    """Return the node of a configuration, with its streams.

    Args:
        tell: given when it is ready, and what then lists its listeners; None: `tell_page`.

    Raises:
        ConfigError, CannotListen, LogLocked: it cannot begin, and why.
    """
    if sys.platform != "linux":
        # Not tested, and an fsync that does not reach the disk would make every ACK a lie.
        raise ConfigError([f"a node runs on Linux, not on {sys.platform} (docs/platforms.md)"])
    from msgservice.log.inline import inline_of_environment

    try:
        inline_of_environment()
    except BadValue as error:
        raise ConfigError([f"in the environment, {error}"]) from None
    from twisted.internet import reactor

    from msgservice.disk.folder import check_not_held
    from msgservice.node.service import build_service
    from msgservice.transport.registry import Transports

    # Here there is still a terminal to tell it, and an exit code: a daemon fails in its log alone.
    check_not_held(config.data)
    for listener in config.listen:
        Transports().find(listener.address).check_free(listener.address)

    bridge_logging()
    escape_lines()
    keep_flowing(reactor, config.limits.output_bytes)
    reactor.callWhenRunning(_expect_signals, reactor)
    node = build_service(config, reactor=reactor)
    _nodes.add(node)
    keep_from(node.when_ready())
    (tell or tell_page)(node.when_ready(), lambda: node.listeners)
    for listener in config.listen:
        if listener.transport == STREAMS:
            from msgservice.faces.streams.service import NodeWithStreams
            from msgservice.node.process import end_process

            tcp = node.transports.tcp  # whose files of TLS a reload reads
            return NodeWithStreams(
                reactor,
                node,
                tcp.endpoint(reactor, listener.address),
                described=listener.address,
                user=listener.user or "",
                limits=config.streams,
                insecure=config.insecure or tcp.asks_certificates(listener.address),
                failed=partial(end_process, reactor),
            )
    return node


def keep_from(ready: Deferred[None]) -> None:
    """Once a node is ready, let Python's garbage collector look no more at what there is then.

    That is code and configuration, which stay: some 60,000 objects that each full collection looked
    at for 40 ms, in which the reactor was away. For who owns the process.
    """

    def keep(_: None) -> None:
        gc.collect()
        gc.freeze()

    ready.addCallbacks(keep, lambda _failure: None)  # who did not start has said so


def tell_page(ready: Deferred[None], listeners: Callable[[], Sequence[str]]) -> None:
    """Once a node is ready, tell who started it at a terminal where its page is, plainly."""

    # Not what a runner has put in its place, to log what is said; and later it is no terminal, but
    # what keeps one from holding up the node.
    out = sys.__stdout__
    is_terminal = out is not None and out.isatty()

    def tell(_: None) -> None:
        page = next((one for one in listeners() if one.startswith(("http://", "https://"))), None)
        if page is not None and out is not None and is_terminal:
            out.write(f"\nThe page of this node is at {page}\n\n")
            out.flush()

    ready.addCallbacks(tell, lambda _failure: None)


def _expect_signals(reactor: Reactor) -> None:
    """Let SIGHUP, which many send after a renewal, read anew, and what ends be said once."""
    for number in ENDING:
        stop = signal.getsignal(number)
        if callable(stop):  # it is the reactor's, which cannot be stopped twice
            signal.signal(number, partial(_end, stop))
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # not where it is ignored, as by nohup
        signal.signal(signal.SIGHUP, lambda *_: reactor.callFromThread(_hung_up))


def _end(stop: Callable[[int, FrameType | None], Any], number: int, frame: Any) -> None:
    for each in ENDING:
        signal.signal(each, signal.SIG_IGN)
    stop(number, frame)


def _hung_up() -> None:
    logger = Logger(namespace=__name__)

    def tell(each: list[list[Reread]]) -> None:
        every = [one for rereads in each for one in rereads]
        read = [one for one in every if one.address != USERS]
        users = [one for one in every if one.address == USERS]
        told = "the users cannot be used" if any(one.problem for one in users) else "so were users"
        logger.info(
            "SIGHUP: certificates and keys of {count} address(es) were read, {changed} changed,"
            " {wrong} cannot be used{users}; what else the configuration says needs a restart",
            line="files-read",
            count=len(read),
            changed=sum(one.changed for one in read),
            wrong=sum(one.problem is not None for one in read),
            users=f"; {told}" if users else "",
        )

    told = gatherResults([node.reload() for node in list(_nodes)]).addCallback(tell)
    told.addErrback(lambda failure: logger.failure("reading anew", failure))


class _Bridge(logging.Handler):
    """Hands what libraries say through `logging` to Twisted's logger."""

    def emit(self, record: logging.LogRecord) -> None:
        Logger(namespace=record.name).emit(
            LogLevel.levelWithName("error" if record.levelno >= logging.ERROR else "warn"),
            "{text}",
            text=self.format(record),
        )


def bridge_logging() -> None:
    """Let warnings and errors of libraries that use `logging` reach the node's own log, once."""
    root = logging.getLogger()
    if not any(isinstance(handler, _Bridge) for handler in root.handlers):
        root.addHandler(_Bridge(logging.WARNING))
