"""The endpoint of a webhook: when a call is made, and when it is tried again.

While the endpoint is well each message is a call at once. When a call finds it unwell all wait, and
one of them is the next try, after a delay that grows as a link's does; what it asks for with
Retry-After is for the endpoint, not for the message, whose attempts are not counted. One whose ttl
ends while it waits is given back: the node says what becomes of it. What an answer means is
`calls`', how it is made is given.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import NamedTuple, Protocol

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as Late
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from msgservice.core.backoff import delay_of
from msgservice.errors import Retry
from msgservice.receiver.handling.outcomes import Later
from msgservice.receiver.received import ReceivedMessage
from msgservice.transport.reach import NotReachable
from msgservice.transport.tcp.refusals import told
from msgservice.webhooks.calls import Call, Verdict, verdict_of

DELAY_MIN, DELAY_MAX = 0.5, 300.0  # seconds between two tries of an endpoint that is unwell


class Answer(NamedTuple):
    """The answer to a call. `retry_after`: the header, or empty. `body`: the beginning of it."""

    code: int
    body: bytes
    retry_after: str = ""


class Post(Protocol):
    """The way to make one call: fires with an `Answer`; fails with why there is none."""

    def __call__(self, call: Call) -> Deferred[Answer]:
        """Make it."""


class Endpoint:
    """The endpoint of one receiver; `deliver` is its handler.

    `make_call`: of a message, now. `gone`: called when it says that it wants no more.
    `asked_max`: seconds that it may ask for. `rng`: floats from 0 to 1.
    """

    _logger = Logger()

    def __init__(
        self,
        url: str,
        *,
        make_call: Callable[[ReceivedMessage], Call],
        post: Post,
        gone: Callable[[str], None],
        clock: IReactorTime,
        wall: Callable[[], int],
        rng: Callable[[], float],
        asked_max: float,
        is_xmlrpc: bool = False,
    ) -> None:
        self.url = url
        self.trouble: str | None = None  # why nothing is taken now, for people
        self.unwell_since: float | None = None  # seconds of the clock, while that is so
        self.forbidden = ""  # the option that would let it be dialled, where that is why
        self._make_call, self._post, self._gone = make_call, post, gone
        self._clock, self._wall, self._rng = clock, wall, rng
        self._asked_max, self._is_xmlrpc = asked_max, is_xmlrpc
        self._failures = 0  # in a row
        self._waiting: deque[Deferred[None]] = deque()
        self._timer: IDelayedCall | None = None  # until the next try
        self._is_trying = False  # one is under way
        self._trouble = 0  # how often it was unwell: a try that is late is not one of this time
        self._is_stopped = False

    @property
    def next_try_in(self) -> float | None:
        """Seconds until it is tried again, while it is unwell and none is under way."""
        if self._timer is None:
            return None
        return max(0.0, self._timer.getTime() - self._clock.seconds())

    async def deliver(self, message: ReceivedMessage) -> None:
        """Return when the endpoint has taken the message, however long it does not.

        Raises `Retry` where it does not take this one: that is an attempt; `Later` where its time
        is over, which is none.
        """
        tried: int | None = None  # which trouble this is a try of
        while True:
            tried = await self._turn_in_time(message, tried is not None)
            verdict, why, asked, forbidden = Verdict.UNWELL, "", "", ""
            try:
                answer = await self._post(self._make_call(message))
                verdict, why = verdict_of(answer.code, answer.body, is_xmlrpc=self._is_xmlrpc)
                asked = answer.retry_after
            except (CancelledError, GeneratorExit):
                if self._ends_try(tried):  # it says nothing of the endpoint: another is the next
                    self._unwell(self.trouble or "", "", self.forbidden)
                raise
            except Exception as error:
                why = reason_of(error)
                forbidden = error.key if isinstance(error, NotReachable) else ""
            self._ends_try(tried)
            self._judge(verdict, why, asked, forbidden)
            if verdict is Verdict.TAKEN:
                return
            if verdict is Verdict.WRONG:
                raise Retry(None, why)
            if verdict is Verdict.GONE:
                self._gone(why)
                raise Retry(None, why)

    def _ends_try(self, tried: int | None) -> bool:
        """Whether what ends was the try that is under way: of a trouble before it is none."""
        if not self._is_trying or tried != self._trouble:
            return False
        self._is_trying = False
        return True

    async def _turn_in_time(self, message: ReceivedMessage, first: bool) -> int | None:
        """Return when a call of a message may be made, as `_turn` says; raises `Later`."""
        over = message.expires_at
        if over is None:
            return await self._turn(first)
        left = over - self._wall() / 1000
        if left > 0:
            turn = self._turn(first)
            if not turn.called:
                turn.addTimeout(left, self._clock)
            try:
                return await turn
            except Late:
                pass
        raise Later("its ttl was over before the endpoint took it")

    def _turn(self, first: bool) -> Deferred[int | None]:
        """Fire when a call may be made: with the trouble of which it is a try, if it is one."""
        waiting: Deferred[None] = Deferred(self._waiting_cancelled)
        was_unwell = self.trouble is not None
        if not was_unwell and not self._is_stopped:
            waiting.callback(None)
        elif first:
            self._waiting.appendleft(waiting)  # as it was: whoever came later waits behind it
        else:
            self._waiting.append(waiting)
        return waiting.addCallback(
            lambda _: self._trouble if was_unwell and self.trouble is not None else None
        )

    def _waiting_cancelled(self, waiting: Deferred[None]) -> None:
        if waiting in self._waiting:
            self._waiting.remove(waiting)

    def _judge(self, verdict: Verdict, why: str, asked: str, forbidden: str) -> None:
        """An attempt has ended: the endpoint is well, or all wait until it is tried again."""
        if verdict in (Verdict.TAKEN, Verdict.WRONG):
            self._well()
        elif not self._is_trying and self._timer is None:
            self._unwell(why, asked, forbidden)

    def _well(self) -> None:
        if self.trouble is None:
            return
        self._logger.info(
            "webhook {url} takes messages again", line="webhook-answers", url=self.url
        )
        self.trouble, self.unwell_since, self.forbidden, self._failures = None, None, "", 0
        self._is_trying = False  # a try that is still under way decides nothing any more
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        waiting, self._waiting = self._waiting, deque()
        for one in waiting:
            one.callback(None)

    def _unwell(self, why: str, asked: str, forbidden: str) -> None:
        if self._is_stopped:
            return
        if self.trouble is None:
            self._trouble += 1
            self.unwell_since = self._clock.seconds()
            self._logger.warn(
                "webhook {url} takes nothing, its messages wait: {why}",
                line="webhook-fails",
                url=self.url,
                why=why,
            )
        self.trouble, self.forbidden = why, forbidden
        self._failures += 1
        delay = delay_of(
            self._failures,
            delay_min=DELAY_MIN,
            delay_max=DELAY_MAX,
            jitter=0.5 + self._rng() / 2,
        )
        delay = max(delay, min(seconds_asked(asked, self._wall()), self._asked_max))
        self._timer = self._clock.callLater(delay, self._try)

    def _try(self) -> None:
        """Let one that waits be the next try; where none does, whoever comes is."""
        self._timer = None
        if self._waiting:
            self._is_trying = True
            self._waiting.popleft().callback(None)
        else:
            self.trouble, self.unwell_since, self.forbidden = None, None, ""

    def stop(self) -> None:
        """Let all that wait go: their messages were not taken, and are sent again later."""
        self._is_stopped = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        waiting, self._waiting = self._waiting, deque()
        for one in waiting:
            one.cancel()


def seconds_asked(text: str, wall: int) -> float:
    """Return the seconds of a Retry-After (RFC 9110, 10.2.3): a number, or a date; 0: neither.

    `wall`: the wall clock, ms.
    """
    text = text.strip()
    if text.isascii() and text.isdecimal():
        return float(text[:9])
    try:
        at: datetime = parsedate_to_datetime(text)
        return max(0.0, at.timestamp() - wall / 1000)
    except (TypeError, ValueError, OverflowError, IndexError):
        return 0.0


def reason_of(error: Exception) -> str:
    """Return why a call has no answer, for people."""
    of_tls = told(error)
    text = f"TLS: {of_tls}" if of_tls is not None else str(error).rstrip(".")
    text = text or type(error).__name__
    return " ".join(text.split())[:300]
