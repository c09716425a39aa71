"""`msgservice send`, without a process: what it says in the end, or when it is interrupted."""

from dataclasses import dataclass, field

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from msgservice.cli.exit_codes import ExitCode
from msgservice.cli.output import moment
from msgservice.cli.send import _seconds, _settled
from msgservice.cli.session import Interrupted, Session, exit_code
from msgservice.message import Status
from tests.kit.clients import error_of


@dataclass
class ReceiptDouble:
    position: int = 4711
    due: float | None = None
    statuses: dict[str, Status] = field(
        default_factory=lambda: {"billing": Status.SENT, "archive": Status.ACKNOWLEDGED}
    )

    def settled(self) -> Deferred[None]:
        return Deferred()


def test_an_interrupted_wait_says_where_the_message_is_and_who_has_it_not() -> None:
    receipt = ReceiptDouble()
    session = Session(as_json=True)  # where nothing was said before
    waiting = Deferred.fromCoroutine(
        _settled(session, Clock(), receipt)  # type: ignore[arg-type]  # as much as it needs
    )
    waiting.cancel()
    error = error_of(waiting, Interrupted)
    assert "interrupted; stored at log:4711; waiting for billing to acknowledge it" == str(error)
    assert ExitCode.INTERRUPTED is exit_code(error)


def test_an_interrupted_wait_says_until_when_a_message_waits() -> None:
    receipt = ReceiptDouble(due=1_800_000_000.0)
    waiting = Deferred.fromCoroutine(
        _settled(Session(as_json=True), Clock(), receipt)  # type: ignore[arg-type]  # as much as it needs
    )
    waiting.cancel()
    told = str(error_of(waiting, Interrupted))
    assert f"waiting until it is due, at {moment(1_800_000_000_000)}" in told


def test_what_took_no_tenth_of_a_second_is_not_told_as_nothing() -> None:
    assert ["0.043", "0.5", "1.0", "123.5"] == [_seconds(s) for s in (0.0432, 0.5, 1.0, 123.456)]
