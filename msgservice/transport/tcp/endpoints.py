"""Endpoints for addresses: who is dialled, where is listened, and with which certificates.

    dial     tcp:HOST:PORT              [timeout, bindAddress]
             tls:HOST:PORT (ssl: the same) [timeout, bindAddress, hostname, profile,
                                         trustRoots, certificate, privateKey, minimumVersion]
             unix:PATH                  [timeout]
    listen   tcp:PORT                   [interface, backlog]
             tls:PORT (ssl: the same)   [interface, backlog, profile, privateKey,
                                         certificate (certKey), trustRoots, minimumVersion]
             unix:PATH                  [mode, backlog]

Option names are those of Twisted's own endpoint strings. Listeners are on loopback unless
`interface` says otherwise. `trustRoots` is a file or a folder of PEM certificates: for a client,
who may have signed the server's certificate (default: the system's list); for a server, who must
have signed its clients' (default: clients need none). Any other scheme is handed to Twisted, so
that endpoint plugins work. What an address with TLS leaves out is as its `profile` says, or the
default one (`tcp.profiles`). `ssl:` is not: Twisted's client of that name checks no host name. What
is made of certificates and keys is `tcp.tls`.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

from twisted.internet.endpoints import (
    HostnameEndpoint,
    TCP4ClientEndpoint,
    TCP4ServerEndpoint,
    UNIXClientEndpoint,
    UNIXServerEndpoint,
    clientFromString,
    serverFromString,
    wrapClientTLS,
    wrapServerTLS,
)
from twisted.internet.interfaces import IReactorTime, IStreamClientEndpoint, IStreamServerEndpoint

from msgservice.clock import wall_of
from msgservice.errors import BadAddress
from msgservice.transport.addresses import LOOPBACK, Address, ip_of, parse_address
from msgservice.transport.tcp.profiles import OPTIONS as TLS_OPTIONS
from msgservice.transport.tcp.tls import Tls

CONNECT_TIMEOUT = 30.0  # seconds for one attempt to connect, Twisted's own default
# A node that comes back is dialled by all its peers at once; the kernel caps it at `somaxconn`.
BACKLOG = 1024
BACKLOG_MAX = 2**31 - 1  # what the kernel is asked with
# Whoever may open the socket file may claim any name, so by default only the node's own user.
UNIX_MODE = "600"
UNIX_PATH_BYTES = 107  # sun_path of unix(7), less its final NUL


class _UnixServerEndpoint(UNIXServerEndpoint):
    """Listens at a path whose lock may be one that a killed process has left.

    Twisted asks whether the process lives whose id is in the lock. That may be another by now; in
    a container it is this one, whose id is the same at each start. Whether somebody listens at the
    path is what tells.
    """

    def listen(self, protocolFactory: Any) -> Any:
        """See `IStreamServerEndpoint`."""
        path = Path(os.fsdecode(self._address))
        lock = path.with_name(f"{path.name}.lock")
        if lock.is_symlink() and not is_listened_at(path):
            with suppress(OSError):
                if path.is_socket():
                    path.unlink()
                lock.unlink()
        return super().listen(protocolFactory)


def is_listened_at(path: Path) -> bool:
    """Return whether somebody listens at a Unix socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except OSError:
            pass  # its queue is full, or it is not ours to ask
        return True


def check_socket(address: Address) -> None:
    """Raise `BadAddress` where no socket could be made at the path of a Unix address."""
    path = Path(address.parts[0])
    if not path.parent.is_dir():
        raise BadAddress(address.text, f"{path.parent} is not a folder")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise BadAddress(address.text, f"{path.parent} is not writable")
    if path.exists() and not path.is_socket():
        raise BadAddress(address.text, f"{path} is there and is no socket")


def client_endpoint(
    reactor: IReactorTime, text: str, tls: Tls | None = None, *, scheme: str = ""
) -> IStreamClientEndpoint:
    """Return the endpoint that dials this address; `BadAddress` where there is none.

    `tls`: makes what TLS needs, and keeps account of it; None: nobody does. `scheme`: it is as this
    one's, whatever it begins with.
    """
    address = parse_address(text)
    scheme = scheme or address.scheme
    if scheme == "tcp":
        address.only("timeout", "bindAddress")
        return _dial(reactor, address)
    if scheme in ("tls", "ssl"):
        address.only("timeout", "bindAddress", "hostname", *TLS_OPTIONS)
        creator = (tls or Tls()).client(address, wall_of(reactor))
        return wrapClientTLS(creator, _dial(reactor, address), reactor)
    if scheme == "unix":
        address.only("timeout")
        path = address.one_part("PATH")
        return UNIXClientEndpoint(reactor, path, address.number("timeout", CONNECT_TIMEOUT))
    try:
        dialled: IStreamClientEndpoint = clientFromString(reactor, text)
        return dialled
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise BadAddress(text, str(error)) from error


def server_endpoint(
    reactor: IReactorTime, text: str, tls: Tls | None = None, *, scheme: str = ""
) -> IStreamServerEndpoint:
    """Return the endpoint that listens on this address; `BadAddress` where there is none.

    `tls`, `scheme`: as for `client_endpoint`.
    """
    address = parse_address(text)
    scheme = scheme or address.scheme
    if scheme == "tcp":
        address.only("interface", "backlog")
        return _listen(reactor, address)
    if scheme in ("tls", "ssl"):
        address.only("interface", "backlog", "certKey", *TLS_OPTIONS)
        creator = (tls or Tls()).server(address, wall_of(reactor))
        return wrapServerTLS(creator, _listen(reactor, address), reactor)
    if scheme == "unix":
        address.only("mode", "backlog")
        path = address.one_part("PATH")
        if len(os.fsencode(path)) > UNIX_PATH_BYTES:
            # Found out by bind(), it would leave Twisted's lock file and socket behind.
            raise BadAddress(text, f"path longer than {UNIX_PATH_BYTES} bytes")
        mode = address.options.get("mode", UNIX_MODE)
        if not mode.isascii() or any(digit not in "01234567" for digit in mode) or len(mode) != 3:
            raise BadAddress(text, f"mode must be three octal digits, not {mode!r}")
        # wantPID: the lock beside the socket tells a stale one, left by a killed process.
        return _UnixServerEndpoint(reactor, path, _backlog(address), int(mode, 8), wantPID=True)
    try:
        listening: IStreamServerEndpoint = serverFromString(reactor, text)
        return listening
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise BadAddress(text, str(error)) from error


def _dial(reactor: IReactorTime, address: Address) -> IStreamClientEndpoint:
    host, port = address.host_and_port()
    timeout = address.number("timeout", CONNECT_TIMEOUT)
    bind = address.options.get("bindAddress")
    if ip_of(host) is not None:
        return TCP4ClientEndpoint(reactor, host, port, timeout, (bind, 0) if bind else None)
    # A name may have several addresses, of both families; this tries them in turn (RFC 8305).
    return HostnameEndpoint(reactor, host, port, timeout, (bind, 0) if bind else None)


def _listen(reactor: IReactorTime, address: Address) -> IStreamServerEndpoint:
    port = address.port(address.one_part("PORT"), port_min=0)
    interface = address.options.get("interface", LOOPBACK)
    return TCP4ServerEndpoint(reactor, port, _backlog(address), interface)


def _backlog(address: Address) -> int:
    return address.integer("backlog", BACKLOG, BACKLOG_MAX)
