"""`msgservice purge`: what waits for a receiver is cancelled, all or of a subject."""

from __future__ import annotations

from typing import Any

import click

from msgservice.administration import RECEIVERS_PURGE
from msgservice.cli.acts import Act, Done, Touched, act_options
from msgservice.cli.output import counted
from msgservice.cli.session import Session, node_options
from msgservice.clock import Reactor
from msgservice.core.subjects import check_name, check_pattern
from msgservice.errors import MsgServiceError


@click.command(short_help="Cancel what waits for a receiver.")
@click.argument("receiver")
@click.option("--subject", metavar="PATTERN", help="Only of this subject, or pattern.")
@node_options
@act_options
def purge(session: Session, act: Act, /, receiver: str, subject: str | None) -> None:
    """Cancel what waits for RECEIVER: it does not get it, and who sent it is told.

    What the receiver has been sent and has not answered stays. Pause it before, if nothing is to
    be sent to it meanwhile.
    """
    session.check(check_name, receiver)
    if subject is not None:
        session.check(check_pattern, subject)

    async def work(reactor: Reactor) -> None:
        async with session.client(reactor) as client:

            async def touch(**more: Any) -> tuple[dict[str, int], MsgServiceError | None]:
                """Have messages counted or cancelled in pages; return what ended that early too."""
                found = {"count": 0, "size": 0, "in_flight": 0, "end": 0}
                after: int | None = 0
                asked: dict[str, Any] = {"name": receiver, "subject": subject} | more
                while after is not None:
                    try:
                        page = await session.request(
                            reactor, client, RECEIVERS_PURGE, **(asked | {"after": after})
                        )
                    except MsgServiceError as error:
                        if not found["count"]:
                            raise
                        return found, error
                    after = page["next"]
                    for name in ("count", "size", "in_flight"):
                        found[name] += page[name]
                    # What comes meanwhile is not among what was counted first.
                    found["end"] = asked["end"] = page["end"]
                return found, None

            found, failed = await touch(dry_run=True)
            if failed is not None:
                raise failed
            count, in_flight = found["count"], found["in_flight"]
            of = receiver if subject is None else f"{receiver} with subject {subject}"
            what = (
                f"{counted(count, 'message')} for {of}, {found['size']:,} bytes, would be cancelled"
            )
            if not count:
                what = f"nothing waits for {of} that could be cancelled"
            stays = (
                f"; {counted(in_flight, 'message')} in flight, left to the answer"
                if in_flight
                else ""
            )

            async def do() -> Done:
                done, failed = await touch(end=found["end"])
                left = done["in_flight"]
                told = f"; {counted(left, 'message')} in flight, left to the answer" if left else ""
                fields = {
                    "count": done["count"],
                    "bytes": done["size"],
                    "in_flight": left,
                }
                sentence = f"cancelled: {counted(done['count'], 'message')} for {of}{told}"
                return Done(sentence=sentence, fields=fields, failed=failed)

            fields = {
                "bytes": found["size"],
                "in_flight": in_flight,
                "receiver": receiver,
                "subject": subject,
            }
            touched = Touched(count=count, sentence=what + stays, fields=fields)
            await act.carry_out(session, reactor, touched, do)

    session.run(work)
