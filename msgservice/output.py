"""Standard output and error of a node, which never wait for who reads them.

    log, print, traceback -> fd 1, 2: a pipe -> a thread, a bounded queue, a thread -> the real one

A terminal that is held, or a log driver that is stuck, blocks whoever writes to it; if that is the
reactor, the node stands still. Here only a thread does. What finds no room in the queue is dropped,
and a line says how much it was. A regular file is left alone: it has no reader.
"""

from __future__ import annotations

import os
import stat
import threading
from collections import deque
from collections.abc import Sequence

from twisted.internet.interfaces import IReactorCore

from msgservice.threads import begin_daemon

READ_BYTES = 64 * 1024
NOTE_BYTES = 100  # at most
LAST_SECONDS = 1.0  # that the end of the process gives what is still queued


class Pump:
    """Stands between some file descriptors, all of one file, and that file.

    From now on what is written to them is queued, at most `bytes_max` of it.
    """

    def __init__(self, fds: Sequence[int], bytes_max: int) -> None:
        self._fds = tuple(fds)
        self._bytes_max = bytes_max
        self._out = os.dup(self._fds[0])
        self._in, written = os.pipe()
        for fd in self._fds:
            os.dup2(written, fd)
        os.close(written)
        self._queue: deque[bytes] = deque()
        self._size = 0
        self._dropped = 0  # bytes, since the last that were not
        self._is_ended = False
        self._changed = threading.Condition()
        begin_daemon("output-in", self._read)
        self._writer = begin_daemon("output-out", self._write)

    def stop(self, seconds: float = LAST_SECONDS) -> None:
        """Write what is queued, and let the file descriptors be as before.

        Where that takes longer than so many seconds, what is written from now on is nobody's.
        """
        for fd in self._fds:
            os.dup2(self._out, fd)
        self._writer.join(seconds)
        if self._writer.is_alive():
            nowhere = os.open(os.devnull, os.O_WRONLY)
            for fd in self._fds:
                os.dup2(nowhere, fd)
            os.close(nowhere)

    def _read(self) -> None:
        while data := os.read(self._in, READ_BYTES):
            with self._changed:
                if self._size + len(data) + NOTE_BYTES > self._bytes_max:
                    self._dropped += len(data)
                    continue
                if self._dropped:
                    self._put(self._note())
                self._put(data)
                self._changed.notify()
        os.close(self._in)
        with self._changed:
            self._is_ended = True
            self._changed.notify()

    def _put(self, data: bytes) -> None:
        self._queue.append(data)
        self._size += len(data)

    def _note(self) -> bytes:
        dropped, self._dropped = self._dropped, 0
        return f"\nmsgservice: {dropped} bytes of output were dropped: nobody read them\n".encode()

    def _write(self) -> None:
        while data := self._next():
            rest = memoryview(data)
            try:
                while rest:
                    rest = rest[os.write(self._out, rest) :]
            except OSError:
                pass  # who read it has gone, or its disk is full: there is nobody to tell
            with self._changed:
                self._size -= len(data)

    def _next(self) -> bytes:
        with self._changed:
            while not (self._queue or self._dropped or self._is_ended):
                self._changed.wait()
            if self._queue:
                return self._queue.popleft()
            if not self._dropped:
                return b""
            note = self._note()
            self._size += len(note)
            return note


def keep_flowing(reactor: IReactorCore, bytes_max: int) -> None:
    """Let standard output and error never block, from when the reactor runs until it has stopped.

    Not earlier: twistd goes into the background before, and threads do not come with it.
    """
    if not hasattr(reactor, _BEGUN):  # by another node of this process
        setattr(reactor, _BEGUN, True)
        reactor.callWhenRunning(_begin, reactor, bytes_max)


_BEGUN = "_msgservice_output"


def _begin(reactor: IReactorCore, bytes_max: int) -> None:
    for fds in _with_readers((1, 2)):
        reactor.addSystemEventTrigger("during", "shutdown", Pump(fds, bytes_max).stop)


def _with_readers(fds: Sequence[int]) -> list[list[int]]:
    """Return those that somebody must read for them to take more, together where they are one."""
    files: dict[tuple[int, int], list[int]] = {}
    for fd in fds:
        try:
            found = os.fstat(fd)
        except OSError:
            continue  # closed
        is_terminal = stat.S_ISCHR(found.st_mode) and os.isatty(fd)
        if is_terminal or stat.S_ISFIFO(found.st_mode) or stat.S_ISSOCK(found.st_mode):
            files.setdefault((found.st_dev, found.st_ino), []).append(fd)
    return list(files.values())
