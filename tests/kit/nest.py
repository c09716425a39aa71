"""Processes of ours that begin at once: forked from one that has imported all that they need.

    node = Forked(["twist", "msgservice", "--config", "node.toml"], cwd=folder)
    node.kill()
    done = run(["msgservice", "info"], cwd=folder, env={...})

Each is a process of its own, with its own reactor, files and sockets, as if it had been executed:
only the half second is left out that an interpreter takes to import everything, of which half of
the suite would be made otherwise. What must be executed (a console script, a traced program, what
is imported at the beginning) is: with `subprocess`. Run as a program this module is the nest.
"""

from __future__ import annotations

import importlib
import inspect
import io
import json
import os
import pkgutil
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
# What is started by its name; a Python with `-m`, `-c` or a file is too.
PROGRAMS = ("twist", "twistd", "msgservice")
_LENGTH = 4


def is_of_the_nest(command: Sequence[str | os.PathLike[str]]) -> bool:
    """Tell whether a nest can begin it: one of `PROGRAMS` by its bare name, or a plain Python."""
    program, *words = command
    if program != sys.executable:
        return program in PROGRAMS
    return bool(words) and (words[0] in ("-c", "-m") or not str(words[0]).startswith("-"))


class Forked(subprocess.Popen[Any]):
    """A `subprocess.Popen` whose process is forked by the nest, which collects it too."""

    _handle: int | None = None

    # --- what `Popen` calls

    def _execute_child(self, *given: Any) -> None:
        """Have the nest begin the process, with the pipes that `Popen` has made."""
        bound = _asked_of.bind(self, *given).arguments
        nest = _nest()
        pipes = [bound[name] for name in _PIPES]
        theirs = (bound["p2cread"], bound["c2pwrite"], bound["errwrite"])
        try:
            self.pid = nest.start(
                list(map(os.fspath, bound["args"])),
                os.fspath(bound["cwd"] or Path.cwd()),
                dict(os.environ if bound["env"] is None else bound["env"]),
                [own if given == -1 else given for own, given in enumerate(theirs)],
            )
        finally:
            self._close_pipe_fds(*pipes)  # type: ignore[attr-defined]  # those of the other side
        self._handle = os.pidfd_open(self.pid)
        self._nest = nest
        self._child_created = True

    def _internal_poll(self, *_: Any, **__: Any) -> int | None:
        with self._waitpid_lock:  # type: ignore[attr-defined]  # theirs, untyped
            if self.returncode is None and self._handle is not None and self._has_ended(0):
                self._collect()
        return self.returncode

    def _wait(self, timeout: float | None) -> int:
        ends = None if timeout is None else time.monotonic() + timeout
        while self.poll() is None:
            left = None if ends is None else ends - time.monotonic()
            if left is not None and left <= 0:
                assert timeout is not None
                raise subprocess.TimeoutExpired(self.args, timeout)
            self._has_ended(1.0 if left is None else min(left, 1.0))
        assert self.returncode is not None
        return self.returncode

    # --- the process

    def _has_ended(self, patience: float) -> bool:
        handle = self._handle
        if handle is None:
            return True
        poll = select.poll()  # `select` takes no descriptor above 1,023
        poll.register(handle, select.POLLIN)
        return bool(poll.poll(patience * 1000))

    def _collect(self) -> None:
        assert self._handle is not None
        self.returncode = self._nest.collect(self.pid)
        os.close(self._handle)
        self._handle = None


_asked_of = inspect.signature(subprocess.Popen._execute_child)  # type: ignore[attr-defined]  # theirs
_PIPES = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")


def run(
    command: Sequence[str | os.PathLike[str]], *, stdin: bytes = b"", timeout: float, **more: Any
) -> subprocess.CompletedProcess[bytes]:
    """Run a program to its end (`subprocess.run` with what it prints)."""
    pipe = subprocess.PIPE
    with Forked(command, stdin=pipe, stdout=pipe, stderr=pipe, **more) as process:
        try:
            out, err = process.communicate(stdin, timeout)
        except BaseException:
            process.kill()
            raise
    assert process.returncode is not None
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


# --- the way to the nest


class _Nest:
    """The process that forks the others, and what is said to it."""

    def __init__(self) -> None:
        self._ours, theirs = socket.socketpair()
        self._lock = threading.Lock()
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.kit.nest", str(theirs.fileno())],
            cwd=ROOT,
            env=environment,
            pass_fds=[theirs.fileno()],
        )
        theirs.close()

    def start(
        self, words: list[str], folder: str, environment: Mapping[str, str], files: list[int]
    ) -> int:
        return self._ask({"words": words, "cwd": folder, "environment": environment}, files)

    def collect(self, pid: int) -> int:
        return self._ask({"collect": pid})

    def _ask(self, what: Mapping[str, Any], files: Sequence[int] = ()) -> int:
        said = json.dumps(what).encode()
        with self._lock:
            head = len(said).to_bytes(_LENGTH, "big")
            try:
                socket.send_fds(self._ours, [head], files) if files else self._ours.sendall(head)
                self._ours.sendall(said)
                return int.from_bytes(_read(self._ours, _LENGTH), "big", signed=True)
            except BaseException:
                # A timeout of the test came in between: each later answer would be another's.
                self._ours.close()
                self._process.wait()  # which ends by that
                if _nests.get(os.getpid()) is self:
                    del _nests[os.getpid()]
                raise


_nests: dict[int, _Nest] = {}  # by process: a test that forks has a nest of its own


def _nest() -> _Nest:
    if os.getpid() not in _nests:
        _nests[os.getpid()] = _Nest()
    return _nests[os.getpid()]


def _read(file: socket.socket, count: int) -> bytes:
    read = b""
    while len(read) < count:
        if not (more := file.recv(count - len(read))):
            raise EOFError
        read += more
    return read


# --- the nest


def _import_all() -> None:
    import rich.console
    import rich.table
    from twisted.application.service import IServiceMaker
    from twisted.application.twist import _twist
    from twisted.internet import epollreactor, udp, unix
    from twisted.plugin import getPlugins
    from twisted.scripts import twistd

    import msgservice

    assert all((rich, _twist, twistd, epollreactor, udp, unix))
    list(getPlugins(IServiceMaker))
    for module in pkgutil.walk_packages(msgservice.__path__, "msgservice."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    # A reactor has files and a process of its own.
    assert "twisted.internet.reactor" not in sys.modules


def _serve(asking: socket.socket) -> None:
    """Fork what is asked for until nobody asks; returns in no child."""
    while True:
        try:
            head, files, _, _ = socket.recv_fds(asking, _LENGTH, 3)
            if not head:
                return
            head += _read(asking, _LENGTH - len(head))
            asked = json.loads(_read(asking, int.from_bytes(head, "big")))
        except EOFError:
            return
        if "collect" in asked:
            _, status = os.waitpid(asked["collect"], 0)
            answer = os.waitstatus_to_exitcode(status)
        else:
            pid = os.fork()
            if not pid:
                asking.close()
                _be(asked, files)
            for file in files:
                os.close(file)
            answer = pid
        asking.sendall(answer.to_bytes(_LENGTH, "big", signed=True))


def _be(asked: Any, files: Sequence[int]) -> None:
    """Be the process that was asked for, to its end."""
    for number, file in enumerate(files):
        os.dup2(file, number)
    for file in set(files) - {0, 1, 2}:
        os.close(file)
    os.environ.clear()
    os.environ.update(asked["environment"])
    sys.path[1:1] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    _open_streams(bool(os.environ.get("PYTHONUNBUFFERED")))
    code = 1
    try:
        os.chdir(asked["cwd"])
        _run(asked["words"])
        code = 0
    except SystemExit as ended:
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
        else:
            code = ended.code or 0
    except KeyboardInterrupt:
        sys.excepthook(*sys.exc_info())
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        sys.stderr.flush()
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        _end(code)


def _open_streams(at_once: bool) -> None:
    """Have a new interpreter's streams, where a module has kept those of the nest too."""
    was = (sys.stdin, sys.stdout, sys.stderr)
    sys.stdin = io.TextIOWrapper(open(0, "rb"), encoding="utf-8")  # noqa: SIM115
    sys.stdout = _printed(1, at_once)
    sys.stderr = _printed(2, at_once, "backslashreplace")
    for module in list(sys.modules.values()):
        for name, old in zip(("stdin", "stdout", "stderr"), was, strict=True):
            if vars(module).get(name) is old:
                setattr(module, name, getattr(sys, name))


def _printed(number: int, at_once: bool, errors: str = "strict") -> io.TextIOWrapper:
    raw: Any = open(number, "wb", 0)  # noqa: SIM115
    return io.TextIOWrapper(
        raw if at_once else io.BufferedWriter(raw),
        encoding="utf-8",
        errors=errors,
        line_buffering=raw.isatty() or number == 2,
        write_through=at_once,
    )


def _run(words: list[str]) -> None:
    program, *rest = words
    # `argv` stays the same list, which is a default of functions.
    main = sys.modules["__main__"] = type(sys)("__main__")
    if program in PROGRAMS:
        sys.argv[:] = [str(BIN / program), *rest]
        sys.path[0] = str(BIN)
        return _main_of(program)
    kind, *rest = rest
    sys.path[0] = (
        "" if kind == "-c" else str(Path.cwd()) if kind == "-m" else str(Path(kind).parent)
    )
    if kind == "-c":
        sys.argv[:] = ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), main.__dict__)
    elif kind == "-m":
        sys.argv[:] = ["-m", *rest[1:]]
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv[:] = [kind, *rest]
        runpy.run_path(kind, run_name="__main__")
    return None


def _main_of(program: str) -> None:
    if program == "twist":
        from twisted.application.twist._twist import Twist

        Twist.main()
    elif program == "twistd":
        from twisted.scripts.twistd import run as run_twistd

        run_twistd()
    else:
        from msgservice.cli import run as run_command

        run_command()


def _end(code: int) -> None:
    """End as an interpreter does, without taking the modules to pieces."""
    import atexit

    try:
        threading._shutdown()  # type: ignore[attr-defined]  # what an interpreter calls
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            if stream is not None and not stream.closed:
                stream.flush()
    except BaseException:
        code = code or 120
    os._exit(code & 0xFF)


if __name__ == "__main__":
    import gc

    _import_all()
    gc.collect()
    gc.freeze()
    _serve(socket.socket(fileno=int(sys.argv[1])))
