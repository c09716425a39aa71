"""Files of log, outbox and inbox, as a kill or a close leaves them: damaged, and opened.

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

import apsw

from msgservice.client.outbox_file import OutboxFile
from msgservice.errors import LogError
from msgservice.log.sqlite import SqliteLog
from msgservice.receiver.inbox.file import InboxFile
from tests.kit.limits import Limits
from tests.kit.simdisk import SECTOR, SimDisk
from tests.powerloss.histories import InboxLife, LogLife, OutboxLife

STEPS = 40
DAMAGES = 20  # of one history
DRAWS = 4  # for each, since no place of a history is damaged twice in one way
# With the reserve of a power history the write-ahead log would be folded in after every group.
UNFOLDED = Limits(reserve_bytes=4 * 1024 * 1024, keep_seconds=0, keep_bytes=0)
CLOSED = 0.3  # how often files are as a clean close leaves them, and not a kill
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


@dataclass(frozen=True, slots=True)
class Drawn:
    """A damage, and the files that it leaves."""

    place: str
    left: dict[str, bytes]


@dataclass(slots=True)
class Damaged:
    """One file, its older copy (empty where there was none), and what is to happen to it."""

    name: str
    data: bytearray
    older: bytes
    random: Random
    is_missing: bool = False

    def pages(self) -> range:
        """Return where its pages begin; in a write-ahead log each is behind a header."""
        first, step = (56, PAGE + 24) if self.name.endswith("-wal") else (0, PAGE)
        return range(first, len(self.data) - PAGE + 1, step)


# --- damage --------------------------------------------------------------------------------------


def flip(file: Damaged) -> str:
    """Turn one bit."""
    at = file.random.randrange(len(file.data))
    bit = file.random.randrange(8)
    file.data[at] ^= 1 << bit
    return f"bit {bit} of byte {at}"


def cut(file: Damaged) -> str:
    """Cut the end off."""
    at = file.random.randrange(len(file.data))
    del file.data[at:]
    return f"from byte {at}"


def zero(file: Damaged) -> str:
    """Put zeroes into a sector or a page."""
    size = file.random.choice([SECTOR, PAGE])
    at = file.random.randrange(0, len(file.data), size)
    file.data[at : at + size] = bytes(len(file.data[at : at + size]))
    return f"{size} bytes at {at}"


def scribble(file: Damaged) -> str:
    """Write anything over a range of bytes."""
    at = file.random.randrange(len(file.data))
    size = min(file.random.choice([2, 8, 64, 1000, 10_000]), len(file.data) - at)
    file.data[at : at + size] = file.random.randbytes(size)
    return f"{size} bytes at {at}"


def swap(file: Damaged) -> str:
    """Put two sectors, or two pages, each in the other's place."""
    size = file.random.choice([SECTOR, PAGE])
    places = file.pages() if size == PAGE else range(0, len(file.data) - size + 1, size)
    if len(places) < 2:
        return flip(file)
    one, two = file.random.sample(places, 2)
    data = file.data
    first, second = data[one : one + size], data[two : two + size]
    data[one : one + size], data[two : two + size] = second, first
    return f"{size} bytes at {one} and {two}"


def age(file: Damaged) -> str:
    """Put one page of an older copy in the place that it had."""
    older = file.older
    changed = [
        at for at in file.pages() if older[at : at + PAGE] not in (b"", file.data[at : at + PAGE])
    ]
    if not changed:
        return flip(file)
    at = file.random.choice(changed)
    page = older[at : at + PAGE]
    file.data[at : at + len(page)] = page
    return f"the page at {at}"


def restore(file: Damaged) -> str:
    """Put the older copy of the file in its place."""
    file.data[:] = file.older
    return f"{len(file.older)} bytes"


def lose(file: Damaged) -> str:
    """Remove the file."""
    file.is_missing = True
    return "all of it"


KINDS: tuple[Callable[[Damaged], str], ...] = (
    flip,
    cut,
    zero,
    scribble,
    swap,
    age,
    restore,
    lose,
)


# --- lives ---------------------------------------------------------------------------------------


def _begun(kind: str, random: Random, told: Life | None = None) -> Life:
    """Return a history that has not begun, knowing what another had been told."""
    if kind == "log":
        log = LogLife(random, UNFOLDED)
        if isinstance(told, LogLife):
            log.history.model = deepcopy(told.history.model)
        return log
    if kind == "outbox":
        outbox = OutboxLife(random)
        if isinstance(told, OutboxLife):
            outbox.kept, outbox.settled = dict(told.kept), set(told.settled)
            outbox.told_to, outbox.incarnation = told.told_to, told.incarnation
            outbox.rows, outbox.dropped = dict(told.rows), set(told.dropped)
        return outbox
    inbox = InboxLife(random)
    if isinstance(told, InboxLife):
        inbox.told, inbox.inbox = set(told.told), told.inbox
    return inbox


def _close(life: Life) -> None:
    opened: SqliteLog | OutboxFile | InboxFile = (
        life.log if isinstance(life, LogLife) else life.file
    )
    life.driver.wait(opened.close())


def _end(life: Life, disk: SimDisk) -> None:
    """Close what may be open, however damaged it is."""
    with contextlib.suppress(Exception):  # a damaged file may not close cleanly, or is not open
        _close(life)
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
        older: dict[str, bytes] = {}
        steps = random.randint(5, STEPS)
        copied = random.randrange(steps)
        for number in range(steps):
            if number == copied:
                older = disk.copy()
            life.step()
        # Marks follow within milliseconds; only what they cover is promised to be missed.
        life.driver.clock.advance(1)
        if random.random() < CLOSED:
            _close(life)
        files = disk.copy()
        findings: dict[str, Finding] = {}  # by place: none counts twice
        for number in range(count * DRAWS):
            drawn = _draw(files, older, Random(f"{kind} {seed} {number}"))
            if drawn.place not in findings:
                findings[drawn.place] = _damage(kind, life, drawn, root / str(number), random)
            if len(findings) == count:
                break
        return [*findings.values()]
    finally:
        _end(life, disk)
        shutil.rmtree(root, ignore_errors=True)


def _draw(files: dict[str, bytes], older: dict[str, bytes], random: Random) -> Drawn:
    """Return what one damage leaves of the files."""
    names = {n for n, data in files.items() if data} | {n for n, data in older.items() if data}
    name = random.choice(sorted(n for n in names if n.endswith(ENDINGS)))
    file = Damaged(name, bytearray(files.get(name, b"")), older.get(name, b""), random)
    # Where a clean close has left nothing, an older copy can still be put.
    damage = random.choice(KINDS) if file.data else restore
    place = f"{damage.__name__} {name}: {damage(file)}"
    left = {**files, name: bytes(file.data)}
    left.pop("data/reserve", None)  # it holds nothing, and is made anew
    if file.is_missing:
        del left[name]
    return Drawn(place, left)


def _damage(kind: str, told: Life, drawn: Drawn, folder: Path, random: Random) -> Finding:
    disk = SimDisk(folder, random, drawn.left)
    life = _begun(kind, random, told)
    try:
        verdict, why = _verdict(life, disk)
    finally:
        _end(life, disk)
        shutil.rmtree(folder, ignore_errors=True)
    return Finding(verdict, drawn.place, why)


def _verdict(life: Life, disk: SimDisk) -> tuple[str, str]:
    """Open as the product does and read all; close, and the same once more."""
    try:
        life.begin(disk)
        _close(life)
        life.begin(disk)
    except LogError as error:
        return "reported", type(error).__name__
    except Exception as error:  # what the model says, or whatever damage made of our code
        why = f"{type(error).__name__}: {error}".splitlines()[0]
        if "msgservice" in Path(_raised_in(error)).parts:
            # To a handler SQLite speaks for itself; log and outbox have codes of their own.
            own = isinstance(life, InboxLife) and isinstance(error, apsw.Error)
            return "reported" if own else "raw", why
        if isinstance(error, apsw.Error):
            return "reported" if isinstance(life, InboxLife) else "raw", why
        if isinstance(life, LogLife) and life.notices:
            return "reported", f"notice: {life.notices[0]}"
        if isinstance(life, LogLife) and _audited(life):
            return "reported", "audit"
        return "silent", why
    return "harmless", ""


def _raised_in(error: BaseException) -> str:
    """Return the file of the code that raised it."""
    trace = error.__traceback__
    assert trace is not None
    while trace.tb_next is not None:
        trace = trace.tb_next
    # Not all of the path: a checkout may have any name.
    parts = Path(trace.tb_frame.f_code.co_filename).parts
    return str(Path(*parts[-3:]))


def _audited(life: LogLife) -> bool:
    """Whether the log itself says that it is damaged, when it is asked to look."""
    try:
        return bool(life.driver.wait(life.log.audit()))
    except LogError:
        return True
