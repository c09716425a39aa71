"""Files of log, outbox and inbox as a kill leaves them, damaged in one place, and opened.

A history of `tests.powerloss` makes the files, and says what must be found in them: damage is
reported, with a code, or it is harmless. What comes back less or other without a word is `silent`;
an error that is none of the log's own is `raw`.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import apsw

from msgservice.errors import LogError
from msgservice.log.inbox_file import Transaction
from tests.powerloss.histories import InboxLife, LogLife, OutboxLife, written_by_handlers
from tests.simdisk import SECTOR, SimDisk

STEPS = 40
DAMAGES = 20  # of one history
PAGE = 4096
# The reserve and locks hold nothing; what is left are databases, their WALs and marks.
ENDINGS = (".db", ".db-wal", ".mark")
Life = LogLife | OutboxLife | InboxLife


@dataclass(frozen=True, slots=True)
class Finding:
    """What became of one damage: `reported`, `harmless`, `silent` or `raw`."""

    verdict: str
    place: str
    why: str = ""


# --- damage --------------------------------------------------------------------------------------


def flip(data: bytearray, random: Random) -> str:
    """Turn one bit."""
    at = random.randrange(len(data))
    bit = random.randrange(8)
    data[at] ^= 1 << bit
    return f"bit {bit} of byte {at}"


def cut(data: bytearray, random: Random) -> str:
    """Cut the end off."""
    at = random.randrange(len(data))
    del data[at:]
    return f"from byte {at}"


def zero(data: bytearray, random: Random) -> str:
    """Put zeroes into a sector or a page."""
    size = random.choice([SECTOR, PAGE])
    at = random.randrange(0, len(data), size)
    data[at : at + size] = bytes(len(data[at : at + size]))
    return f"{size} bytes at {at}"


def swap(data: bytearray, random: Random) -> str:
    """Put two sectors, or two pages, each in the other's place."""
    size = random.choice([SECTOR, PAGE])
    places = range(0, len(data) - size + 1, size)
    if len(places) < 2:
        return flip(data, random)
    one, two = random.sample(places, 2)
    first, second = data[one : one + size], data[two : two + size]
    data[one : one + size], data[two : two + size] = second, first
    return f"{size} bytes at {one} and {two}"


KINDS: tuple[Callable[[bytearray, Random], str], ...] = (flip, cut, zero, swap)


# --- lives ---------------------------------------------------------------------------------------


def _begun(kind: str, random: Random, told: Life | None = None) -> Life:
    """Return a history that has not begun, knowing what another had been told."""
    if kind == "log":
        log = LogLife(random)
        if isinstance(told, LogLife):
            log.history.model = deepcopy(told.history.model)
        return log
    if kind == "outbox":
        outbox = OutboxLife(random)
        if isinstance(told, OutboxLife):
            outbox.kept, outbox.settled = dict(told.kept), set(told.settled)
            outbox.told_to, outbox.incarnation = told.told_to, told.incarnation
        return outbox
    inbox = InboxLife(random)
    if isinstance(told, InboxLife):
        inbox.told, inbox.inbox = set(told.told), told.inbox
    return inbox


def _end(life: Life, disk: SimDisk) -> None:
    """Close what may be open, however damaged it is."""
    opened: Any = getattr(life, "log", None) or getattr(life, "file", None)
    if opened is not None:
        with contextlib.suppress(Exception):  # a damaged file may not close cleanly
            life.driver.wait(opened.close())
    disk.crash()
    with contextlib.suppress(apsw.Error):
        disk.close()


def play(kind: str, seed: int, count: int = DAMAGES) -> list[Finding]:
    """Make files from a seed; return what became of each of `count` damages to them."""
    root = Path(tempfile.mkdtemp(prefix="damage-"))
    random = Random(f"{kind} {seed}")
    disk = SimDisk(root / "made", random)
    life = _begun(kind, random)
    try:
        life.begin(disk)
        for _ in range(random.randint(5, STEPS)):
            life.step()
        # Marks follow within milliseconds; only what they cover is promised to be missed.
        life.driver.clock.advance(1)
        files = disk.copy()
        return [
            _damage(kind, life, files, root / str(number), Random(f"{kind} {seed} {number}"))
            for number in range(count)
        ]
    finally:
        _end(life, disk)
        shutil.rmtree(root, ignore_errors=True)


def _damage(
    kind: str, told: Life, files: dict[str, bytes], folder: Path, random: Random
) -> Finding:
    left = dict(files)
    name = random.choice(sorted(n for n, data in files.items() if n.endswith(ENDINGS) and data))
    data = bytearray(files[name])
    damage = random.choice(KINDS)
    where = damage(data, random)
    left[name] = bytes(data)
    place = f"{damage.__name__} {name}: {where}"
    disk = SimDisk(folder, random, left)
    life = _begun(kind, random, told)
    try:
        life.begin(disk)
        if isinstance(life, LogLife):
            assert not life.driver.wait(life.log.audit()), "only the audit told it"
    except LogError as error:
        return Finding("reported", place, type(error).__name__)
    except AssertionError as error:
        if "msgservice" in Path(_raised_in(error)).parts:
            return Finding("raw", place, f"an assertion of {Path(_raised_in(error)).name}")
        if isinstance(life, LogLife) and _audited(life):
            return Finding("reported", place, "audit")
        if isinstance(life, InboxLife) and isinstance(told, InboxLife) and _node_sees(life, told):
            return Finding("reported", place, "the node: forgotten positions")
        return Finding("silent", place, str(error).splitlines()[0] if str(error) else "assertion")
    except apsw.Error as error:
        # To a handler SQLite speaks for itself; log and outbox have codes of their own.
        verdict = "reported" if isinstance(life, InboxLife) else "raw"
        return Finding(verdict, place, f"{type(error).__name__}: {error}")
    except Exception as error:  # it is loud where the product raised it, but has no code
        verdict = "raw" if "msgservice" in Path(_raised_in(error)).parts else "silent"
        return Finding(verdict, place, f"{type(error).__name__}: {error}")
    finally:
        _end(life, disk)
    return Finding("harmless", place)


def _raised_in(error: BaseException) -> str:
    """Return the file of the code that raised it."""
    trace = error.__traceback__
    assert trace is not None
    while trace.tb_next is not None:
        trace = trace.tb_next
    # Not all of the path: a checkout may have any name.
    parts = Path(trace.tb_frame.f_code.co_filename).parts
    return str(Path(*parts[-3:]))


def _node_sees(life: InboxLife, told: InboxLife) -> bool:
    """Whether the node says so: the same inbox, as of an earlier moment (SEMANTICS 6).

    An inbox has no mark of its own. What its handlers wrote goes back together with the marks, so
    the node's memory of what was acknowledged tells it, where the node has not been started again
    since; what differs in itself nobody tells.
    """
    written = set(life.driver.wait(life.file.transaction(written_by_handlers)))
    resume = life.file.resume("node", "i1")
    highest = max([resume.floor - 1, *(last for _, last in resume.ranges)])
    inboxes = life.driver.wait(life.file.transaction(_inbox_ids))
    return (
        inboxes == [told.inbox]
        and written == set(range(1, highest + 1))
        and highest < max(told.told, default=0)
    )


def _inbox_ids(transaction: Transaction) -> list[str]:
    # Damage can put another page in the place of this table.
    return [str(row[0]) for row in transaction.execute("select inbox from msgservice_head")]


def _audited(life: LogLife) -> bool:
    """Whether the log itself says that it is damaged, when it is asked to look."""
    try:
        return bool(life.driver.wait(life.log.audit()))
    except LogError:
        return True
