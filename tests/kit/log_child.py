"""A process that appends to a log until it is killed; says what it was told, line by line.

    python -m tests.kit.log_child FOLDER

Each line: `stored SEQUENCE` after the append's Deferred fired, or `settled POSITION`.
"""

from __future__ import annotations

import sys

from twisted.internet import reactor
from twisted.internet.defer import ensureDeferred
from twisted.python.failure import Failure

from msgservice.log.sqlite import SqliteLog
from msgservice.message import Status
from msgservice.records import Batch, Group, Progress, ReceiverRow
from tests.kit.limits import Limits
from tests.kit.logs import NOW, append, make_batch

LIMITS = Limits(reserve_bytes=64 * 1024, keep_seconds=0, keep_bytes=20_000)


async def main(folder: str) -> None:
    log = SqliteLog(folder, reactor=reactor, limits=LIMITS)  # type: ignore[arg-type]  # the module
    snapshot = await log.open()
    if not snapshot.receivers:
        row = ReceiverRow(number=1, name="r1", cursor=-1)
        await append(log, Group(now=NOW, receivers=[row]))
    audience = log.audience([1])
    sequence = (await log.resume("shop", "i1")).floor
    (account,) = await log.accounts()
    unsettled = account.queued
    progress: list[Progress] = []
    round_number = 0
    while True:
        round_number += 1
        group: list[Batch] = []
        for _ in range(1 + round_number % 20):
            bodies = [b"%d" % (sequence + i) for i in range(1 + sequence % 5)]
            group.append(make_batch(audience, sequence, bodies))
            sequence += len(bodies)
        appended = await append(log, Group(now=NOW, batches=group, progress=progress))
        assert appended.outcomes == appended.stored == group
        print("stored", sequence - 1, flush=True)
        for step in progress:
            print("settled", step.cursor, flush=True)
        unsettled += sum(batch.count for batch in group)
        progress = []
        if round_number % 3 == 0:
            settled = {int(Status.ACKNOWLEDGED): unsettled}
            progress = [Progress(receiver=1, cursor=group[-1].last, settled=settled)]
            unsettled = 0
        if round_number % 10 == 0:
            await log.retain(NOW + 1)


def failed(failure: Failure) -> None:
    failure.printTraceback()
    reactor.stop()


if __name__ == "__main__":
    ensureDeferred(main(sys.argv[1])).addErrback(failed)
    reactor.run()
