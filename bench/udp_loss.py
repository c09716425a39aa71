"""`python -m bench.udp_loss`: acknowledged UDP beside the kernel's TCP on a path that loses.

Two processes, each in a network namespace of its own, whose only way to the other is a TUN device;
a relay between the two carries the IP packets of both protocols, late by `DELAY`, and drops each
with the probability that is measured: the same path, the same losses for TCP as for UDP. One sends
3,000 messages of 256 bytes, over a new connection each time; the time runs from the first packet of
the handshake until the last message is acknowledged by the other program. Runs alternate, and
medians count. It needs root and Linux (namespaces, /dev/net/tun, `ip`). The last line is JSON.
"""

from __future__ import annotations

import ctypes
import fcntl
import heapq
import json
import os
import random
import select
import socket
import statistics
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

MESSAGES = 3000
SIZE = 256
LOSSES = tuple(float(loss) for loss in os.environ.get("LOSS_SHARES", "0,0.1,0.25").split(","))
DELAY = float(os.environ.get("LOSS_DELAY", "0.01"))  # seconds, each way
RUNS = int(os.environ.get("LOSS_RUNS", "9"))
# Reno is told beside what the kernel uses by itself: BBR, the default of some, heeds no loss.
TCP = tuple(os.environ.get("LOSS_TCP", "default,reno").split(","))
RUN_TIMEOUT = 600.0
CLONE_NEWNET = 0x40000000
TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000
ADDRESSES = ("10.77.0.1", "10.77.0.2")
PORT = 7000


class Relay(threading.Thread):
    """Carries IP packets between the two devices: each late, and some not at all."""

    def __init__(self, devices: list[int]) -> None:
        super().__init__(daemon=True)
        self._devices = devices
        self.loss = 0.0
        self.random = random.Random(1)

    def run(self) -> None:
        """Relay until the process ends."""
        waiting: list[tuple[float, int, int, bytes]] = []
        count = 0
        while True:
            now = time.monotonic()
            while waiting and waiting[0][0] <= now:
                _, _, device, packet = heapq.heappop(waiting)
                os.write(device, packet)
            timeout = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
            for device in select.select(self._devices, [], [], timeout)[0]:
                packet = os.read(device, 65536)
                if self.random.random() >= self.loss:
                    other = self._devices[1 - self._devices.index(device)]
                    count += 1
                    due = time.monotonic() + DELAY
                    heapq.heappush(waiting, (due, count, other, packet))


def enter_namespace(number: int, control: socket.socket) -> None:
    """Move this process into a new network namespace, and hand its device to the relay."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare")
    device = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22x", b"loss0", IFF_TUN | IFF_NO_PI))
    here, there = ADDRESSES[number], ADDRESSES[1 - number]
    for command in (
        ["addr", "add", here, "peer", there, "dev", "loss0"],
        ["link", "set", "loss0", "up"],
        ["link", "set", "lo", "up"],
    ):
        subprocess.run(["ip", *command], check=True)
    socket.send_fds(control, [b"device"], [device])
    os.close(device)


def answer_tcp(listener: socket.socket) -> None:
    """Count the bytes of each connection, and say when all have come."""
    while True:
        connection, _ = listener.accept()
        left = MESSAGES * (SIZE + 4)
        while left and (data := connection.recv(65536)):
            left -= len(data)
        connection.sendall(b"+")
        connection.close()


def receiver(control: socket.socket) -> None:
    """Be the receiving side of both protocols."""
    from twisted.internet import reactor

    from msgservice.transport.udp.peer import DatagramPeer

    enter_namespace(1, control)
    listener = socket.create_server((ADDRESSES[1], PORT))
    threading.Thread(target=answer_tcp, args=(listener,), daemon=True).start()
    peer = DatagramPeer(reactor, insecure=True)
    peer.listen(PORT, ADDRESSES[1])
    control.sendall(b"ready\n")
    reactor.run()  # type: ignore[attr-defined]  # the real one


def send_tcp(congestion: str) -> float:
    """Send all over a new connection; return the seconds until the answer."""
    start = time.perf_counter()
    with socket.socket() as connection:
        if congestion != "default":
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, congestion.encode())
        connection.connect((ADDRESSES[1], PORT))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        frame = struct.pack(">I", SIZE) + bytes(SIZE)
        connection.sendall(frame * MESSAGES)
        connection.recv(1)
    return time.perf_counter() - start


def sender(control: socket.socket) -> None:
    """Do what the parent says, one run a line, and answer with its seconds."""
    from twisted.internet import reactor
    from twisted.internet.threads import blockingCallFromThread

    from msgservice.transport.udp.peer import DatagramPeer

    enter_namespace(0, control)
    control.sendall(b"ready\n")

    async def send_udp() -> float:
        start = time.perf_counter()
        peer = DatagramPeer(reactor, send_timeout=RUN_TIMEOUT, insecure=True)
        peer.listen(0, ADDRESSES[0])
        await peer.send_messages([bytes(SIZE)] * MESSAGES, (ADDRESSES[1], PORT))
        seconds = time.perf_counter() - start
        peer.close()
        return seconds

    def serve() -> None:
        from twisted.internet.defer import Deferred

        for line in control.makefile():
            kind = line.strip()
            if kind == "udp":
                seconds = blockingCallFromThread(
                    reactor, lambda: Deferred.fromCoroutine(send_udp())
                )
            else:
                seconds = send_tcp(kind)
            control.sendall(f"{seconds}\n".encode())
        reactor.callFromThread(reactor.stop)  # type: ignore[attr-defined]  # the real one

    reactor.callInThread(serve)  # type: ignore[attr-defined]  # as above
    reactor.run()  # type: ignore[attr-defined]  # as above


def measure() -> dict[str, Any]:
    """Let both protocols send over each path in turn; return medians and their ratios."""
    children, controls, devices = [], [], []
    for role in ("sender", "receiver"):
        ours, theirs = socket.socketpair()
        children.append(
            subprocess.Popen(
                [sys.executable, "-m", "bench.udp_loss", role, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
            )
        )
        theirs.close()
        ours.settimeout(RUN_TIMEOUT)
        controls.append(ours)
        devices += socket.recv_fds(ours, 16, 1)[1]
    if len(devices) != 2:
        raise SystemExit("no network namespaces with TUN devices here: this needs root")
    try:
        files = [control.makefile() for control in controls]
        assert [file.readline() for file in files] == ["ready\n"] * 2
        relay = Relay(devices)
        relay.start()
        result: dict[str, Any] = {"delay_ms": DELAY * 1000, "runs": RUNS}
        default = Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text()
        result["tcp_default"] = default.strip()
        for loss in LOSSES:
            relay.loss = loss
            seconds: dict[str, list[float]] = {kind: [] for kind in ("udp", *TCP)}
            for _ in range(RUNS):
                for kind, measured in seconds.items():
                    controls[0].sendall(f"{kind}\n".encode())
                    measured.append(float(files[0].readline()))
            row: dict[str, Any] = {}
            for kind, measured in seconds.items():
                row[kind + "_s"] = round(statistics.median(measured), 2)
                row[kind + "_max_s"] = round(max(measured), 2)
            for kind in TCP:
                row["of_" + kind] = round(row["udp_s"] / max(row[kind + "_s"], 0.01), 2)
            result[f"loss_{round(loss * 100)}"] = row
            print(f"{loss:.0%}: {row}", flush=True)
        return result
    finally:
        for child in children:
            child.terminate()
            child.wait()


if __name__ == "__main__":
    if len(sys.argv) > 2:
        control = socket.socket(fileno=int(sys.argv[2]))
        (sender if sys.argv[1] == "sender" else receiver)(control)
    else:
        print(json.dumps(measure()))
