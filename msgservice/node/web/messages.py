"""Messages handed in over HTTP: one, or many as lines of JSON; answered when they are on disk.

They go through the intake, as by every door. What is refused is said at once: nothing is kept here
to be tried again. Whoever must not store a message twice says a key: then a post that is made again
finds what the first has stored.

    ?wait=acknowledged   answered when nothing of it will change, or after `timeout` seconds
    ?wait=promised       answered when its promise is decided, or after `timeout` seconds
    POST /v1/messages    one message; or lines, of which those that follow each other on one subject
                         with the same options are one run
    Idempotency-Key      of the post as a whole: one run then, of one subject, whole or not at all
    key                  … of one message, in its own line
"""

from __future__ import annotations

import binascii
import re
from base64 import b64decode
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from functools import partial
from typing import Annotated, NamedTuple, Protocol, cast

import msgspec
from twisted.internet.defer import Deferred, gatherResults

from msgservice.administration import PromiseTold, StatusTold
from msgservice.client.promise import Promise
from msgservice.clock import Time
from msgservice.codecs import CONTENT_TYPE, DEPTH_MAX, JsonCodec, TextCodec
from msgservice.core.subjects import check_key, check_name, check_subject
from msgservice.errors import (
    BadValue,
    LimitReached,
    MessageTooLarge,
    MsgServiceError,
    UnknownReceiver,
    WebRefused,
)
from msgservice.limits import BATCH_MESSAGES_MAX, TIME_DAYS_MAX, Limits
from msgservice.message import (
    FLAG_REQUIRE,
    FLAG_RETAIN,
    FLAG_RETAIN_ONLY,
    Headers,
    PromiseOption,
    WireMessage,
)
from msgservice.node.gate import Pass, web_sender
from msgservice.node.intake import LocalSender
from msgservice.node.slices import Slices
from msgservice.node.web.answers import Answer, Ask, as_json
from msgservice.node.web.following import Following, States, Tracker
from msgservice.node.web.operations import Requests
from msgservice.node.web.paths import PathAt
from msgservice.node.web.problems import Problem, answer_of, problem_of
from msgservice.records import Batch, Outcome, RefusedBatch

JSON, LINES = "application/json", "application/x-ndjson"
UNPROCESSABLE = 422
SECONDS = 0.01  # of each turn for lines of all posts; so many of one are looked at in a row:
LINES_AT_ONCE = 100
EMPTY_AT_ONCE = 1 << 20
WAVE = 500  # runs of one post that are stored at once
WAIT_SECONDS, WAIT_SECONDS_MAX = 30.0, 600.0
LINE_OVERHEAD = 64  # bytes that a message may take in a run beside its body and headers
Seconds = Annotated[float, msgspec.Meta(ge=0, le=TIME_DAYS_MAX * 86400)]


class PromisePost(msgspec.Struct, forbid_unknown_fields=True, frozen=True, gc=False):
    """The promise of a message: within so many seconds so many receivers have acknowledged it.

    `need`: "all", "any", or a number. `otherwise`: "notify", or "cancel": where it is broken, what
    is surely not sent yet is cancelled.
    """

    within: float
    need: int | str = "all"
    otherwise: str = "notify"


class Post(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """A message that is handed in.

    `body`: any value of JSON, which is its content; `text` or `base64` in place of it: text, or
    bytes. `to`: names of receivers, in place of those whose patterns match. `ttl`, `delay`:
    seconds. `retain`: true, or "only".
    """

    subject: str
    body: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    text: str | msgspec.UnsetType = msgspec.UNSET
    base64: str | msgspec.UnsetType = msgspec.UNSET
    headers: Headers | None = None
    id: str | None = None
    key: str | None = None
    to: tuple[str, ...] | None = None
    require: bool = False
    ttl: Seconds | None = None
    delay: Seconds | None = None
    retain: bool | str = False
    promise: PromisePost | None = None


class Accepted(msgspec.Struct, frozen=True, omit_defaults=True):
    """A message that is on disk. `id`: by which it can be asked about; `due`: wall clock, ms.

    None where it was taken by its key long ago, and has gone.
    """

    id: str | None
    position: int | None = None
    due: int | None = None
    by_key: bool = False


class Settled(Accepted, frozen=True, omit_defaults=False, kw_only=True):
    """A message that was waited for. `final`: nothing of it will change any more."""

    receivers: dict[str, StatusTold]
    final: bool
    promise: PromiseTold | None = None


class AcceptedRun(Accepted, frozen=True, omit_defaults=False):
    """Messages that follow each other. `id`, `position`: of the first; `line`: where it stood."""

    count: int = 1
    line: int = 1


class AcceptedRuns(msgspec.Struct, frozen=True):
    """All messages of a post."""

    accepted: int
    runs: list[AcceptedRun]


class _WrongLine(Exception):
    """A line that cannot be a message, and why."""

    def __init__(self, error: Exception, line: int) -> None:
        super().__init__(line)
        self.error, self.line = error, line


class PartlyAccepted(Problem, frozen=True, omit_defaults=False):
    """A problem with a part of a post: what is stored of it, and the line that it begins at."""

    line: int = 0
    accepted: int = 0
    runs: list[AcceptedRun] = []


class _Wave:
    """So many batches of a post as are stored at once, and what became of those before."""

    def __init__(self, sender: LocalSender) -> None:
        self.sender = sender
        self.batches: list[tuple[Batch, int]] = []  # and the first line of each
        self.stored: list[AcceptedRun] = []
        self.failed: tuple[Exception, int] | None = None


class Intake(Protocol):
    """The intake of a node (`intake`)."""

    def sender(self, name: str, user: str) -> LocalSender:
        """Return a sender of this name, and of this user's, that has no session."""


class _Options(NamedTuple):
    """The options of a run, as a TRANSFER has them."""

    to: tuple[str, ...] | None
    ttl: int | None
    delay: int | None
    flags: int
    promise: PromiseOption | None = None


class _Run(NamedTuple):
    """Messages that become one batch, and the line of the first."""

    subject: str
    options: _Options
    messages: list[WireMessage]
    line: int


_some_line = re.compile(rb"[^\n]").search
# A number of JSON that its receivers may not be able to read: all others are below 1e300.
_may_be_out_of_range = re.compile(rb"[0-9][0-9.]{299}|[0-9][eE][+-]?[0-9]{3}").search
_decode = msgspec.json.Decoder(Post).decode
_FIELDS = ", ".join(Post.__struct_encode_fields__)
_json = JsonCodec()
_TYPE_OF_JSON = {CONTENT_TYPE: JsonCodec.content_type}
_TYPE_OF_TEXT = {CONTENT_TYPE: TextCodec.content_type}


class Posts:
    """The posts of a node. Each user has one sender, from the first post to the end of the node."""

    def __init__(
        self, intake: Intake, *, requests: Requests, tracker: Tracker, time: Time, limits: Limits
    ) -> None:
        self._intake = intake
        self._requests = requests
        self._tracker = tracker
        self._time = time
        self._limits = limits
        self._waits: dict[Following, None] = {}
        self._slices = Slices(time.clock, time.now, SECONDS)
        self._senders: dict[str, LocalSender] = {}

    def paths(self) -> list[PathAt]:
        """Return the path at which messages are handed in."""
        return [
            PathAt(
                method="POST",
                path="/v1/messages",
                answer=self._post,
                sentence="Hands in a message, or lines of messages; answers when they are on disk.",
                takes=(JSON, LINES),
                query={
                    "wait": (
                        "acknowledged: answer when nothing of it will change; promised: when its"
                        " promise is decided (of one message)."
                    ),
                    "timeout": "Seconds to wait at most; then it is 202 with the states so far.",
                },
                asks=Post,
                answers=Accepted,
                status=201,
            )
        ]

    def sender_of(self, who: Pass) -> LocalSender:
        """Return the sender of what somebody hands in over HTTP."""
        user = who.owner
        found = self._senders.get(user)
        if found is None:
            found = self._senders[user] = self._intake.sender(web_sender(user), user)
        return found

    async def _post(self, ask: Ask) -> Answer:
        try:
            return await self._handed_in(ask)
        except UnknownReceiver as error:  # in `to`; the path is there
            return answer_of(error, status=UNPROCESSABLE)

    async def _handed_in(self, ask: Ask) -> Answer:
        for_promise, seconds = self._wait_of(ask)
        key = ask.request.header("idempotency-key")
        if key is not None:
            key = check_key(key)
        if ask.media_type == LINES:
            if seconds is not None:
                raise BadValue("wait", "is for one message")
            return await self._lines(ask, key)
        try:
            run = self._run(ask.body, 1)
        except RecursionError:
            raise BadValue("the body", "is nested too deeply") from None
        sender = self.sender_of(ask.who)
        if for_promise and run.options.promise is None:
            raise BadValue("wait", "is promised, and the message has no promise")
        batch = self._checked(sender, ask.who, run, key)
        if seconds is None:
            return as_json(await self.store(sender, batch), 201)
        waiting = Following(self._requests, self._tracker, ask.who)
        self._waits[waiting] = None
        ask.request.notifyFinish().addBoth(lambda _: waiting.stop())  # also when it goes meanwhile
        try:
            accepted = await self.store(sender, batch)
            ask.request.drop_body()  # it may wait long, and others have no room meanwhile
            return await self._settled(accepted, waiting, seconds, for_promise=for_promise)
        finally:
            del self._waits[waiting]
            waiting.stop()

    # --- until it is acknowledged

    def _wait_of(self, ask: Ask) -> tuple[bool, float | None]:
        """Return whether it is a promise that is waited for, and seconds; None: not at all."""
        query = ask.only("wait", "timeout")
        said, wait = query.get("timeout"), query.get("wait")
        if wait is None:
            if said is not None:
                raise BadValue("timeout", "is for wait=acknowledged and wait=promised")
            return False, None
        if wait not in ("acknowledged", "promised"):
            raise BadValue("wait", f"is acknowledged or promised, not {wait[:64]!r}")
        try:
            seconds = WAIT_SECONDS if said is None else float(said)
        except ValueError:
            seconds = -1.0
        if not 0 <= seconds <= WAIT_SECONDS_MAX:
            raise BadValue("timeout", f"must be from 0 to {WAIT_SECONDS_MAX:g} seconds")
        if len(self._waits) >= self._limits.http_waits:
            raise LimitReached("http_waits", self._limits.http_waits)
        return wait == "promised", seconds

    async def _settled(
        self, accepted: Accepted, waiting: Following, seconds: float, *, for_promise: bool
    ) -> Answer:
        """Return the states of a message when they are final, or time is over.

        `for_promise`: when its promise is decided.
        """
        if accepted.id is None:  # it has gone long ago, with all that was known of it
            return as_json(Settled(None, by_key=True, receivers={}, final=True), 200)
        timer = self._time.clock.callLater(seconds, waiting.stop)
        try:
            states = await waiting.first(accepted.id)
            while not _is_done(states, for_promise) and await waiting.news():
                states = await waiting.again()
        finally:
            if timer.active():
                timer.cancel()
        told = Settled(
            accepted.id,
            accepted.position,
            accepted.due,
            accepted.by_key,
            receivers=states.receivers,
            final=states.is_final,
            promise=states.promise,
        )
        return as_json(told, 200 if _is_done(states, for_promise) else 202)

    def stop(self) -> None:
        """Wait for nothing any more: who waits is told the states so far."""
        for waiting in list(self._waits):
            waiting.stop()
        self._slices.stop()

    # --- storing it

    async def store(self, sender: LocalSender, batch: Batch) -> Accepted:
        """Return where a batch is, when it is on disk. Raises what it is refused for."""
        return accepted_of(sender, batch, await sender.submit(batch))

    # --- lines

    async def _lines(self, ask: Ask, key: str | None) -> Answer:
        sender, who = self.sender_of(ask.who), ask.who
        wave, count = _Wave(sender), 0
        try:
            async for run in self._runs(ask.body, key):  # all of it, before any of it is stored
                try:
                    batch = self._checked(sender, who, run, key)
                except MsgServiceError as error:
                    raise _WrongLine(error, run.line) from None
                count += 1
                if count <= WAVE:
                    wave.batches.append((batch, run.line))
                await self._slices.run(_nothing)
        except _WrongLine as wrong:
            return _partly(wrong.error, wrong.line, [])
        await self._store(wave)
        if count > WAVE:  # a batch for each would be many times what was posted: made once more
            at = 0
            async for run in self._runs(ask.body, key):
                at += 1
                if at <= WAVE:
                    continue
                try:
                    wave.batches.append((self._checked(sender, who, run, key), run.line))
                except MsgServiceError as error:  # it has become wrong meanwhile
                    wave.failed = wave.failed or (error, run.line)
                await self._slices.run(_nothing)
                if len(wave.batches) >= WAVE:
                    await self._store(wave)
            await self._store(wave)
        if wave.failed is not None:
            return _partly(*wave.failed, wave.stored)
        return as_json(AcceptedRuns(sum(run.count for run in wave.stored), wave.stored), 201)

    async def _store(self, wave: _Wave) -> None:
        """Store what a wave has, and note what became of it."""
        batches, wave.batches = wave.batches, []
        waiting = []
        for batch, _ in batches:
            waiting.append(await self._slices.run(partial(_submitted, wave.sender, batch)))
        outcomes = cast("list[Outcome | Exception]", await _all_of(one.done for one in waiting))
        for (batch, line), outcome in zip(batches, outcomes, strict=True):
            try:
                if isinstance(outcome, Exception):
                    raise outcome
                one = accepted_of(wave.sender, batch, outcome)
            except MsgServiceError as error:
                wave.failed = wave.failed or (error, line)
                continue
            wave.stored.append(
                AcceptedRun(one.id, one.position, one.due, one.by_key, batch.count, line)
            )

    async def _runs(self, body: bytes, key: str | None) -> AsyncIterator[_Run]:
        """Yield the runs that lines become. Raises `_WrongLine`."""
        last: _Run | None = None
        size = 0
        for at, (line, text) in enumerate(_lines_of(body), 1):
            if not at % LINES_AT_ONCE or not text:
                await self._slices.run(_nothing)
            if not text.strip():
                continue
            try:
                run = self._run(text, line)
            except (MsgServiceError, msgspec.MsgspecError, UnicodeDecodeError) as error:
                raise _WrongLine(error, line) from None
            except RecursionError:
                raise _WrongLine(BadValue("it", "is nested too deeply"), line) from None
            (message,) = run.messages
            grows = len(text) + LINE_OVERHEAD
            joins = (
                last is not None
                and last.subject == run.subject
                and last.options == run.options
                and (key is not None or not (message.key or last.messages[-1].key))
                and (key is not None or size + grows <= self._limits.max_batch)
                and len(last.messages) < BATCH_MESSAGES_MAX
            )
            if joins and last is not None:
                last.messages.append(message)
                size += grows
                continue
            if last is not None:
                if key is not None:
                    raise WebRefused(
                        422,
                        "what has an Idempotency-Key is one run: up to 4,096 messages of one"
                        " subject with the same options; more have a key in each line",
                    )
                yield last
            last, size = run, grows
        if last is None:
            raise BadValue("the body", "has no message")
        if key is not None and any(message.key is not None for message in last.messages):
            raise WebRefused(422, "a key in a line, beside the Idempotency-Key of all of them")
        yield last

    # --- one message

    def _run(self, text: bytes, line: int) -> _Run:
        """Return what a text of JSON hands in."""
        try:
            post = _decode(text)
        except msgspec.ValidationError as error:
            raise msgspec.ValidationError(f"{error} (fields: {_FIELDS})") from None
        subject = check_subject(post.subject)
        body, headers = _content(post, self._limits.body_bytes)
        if post.id is not None:
            check_name(post.id)
        if post.key is not None:
            check_key(post.key)
        message = WireMessage(body, headers, post.id, post.key)
        return _Run(subject, _options(post), [message], line)

    def _checked(self, sender: LocalSender, who: Pass, run: _Run, key: str | None) -> Batch:
        """Return the batch of a run. Raises what it is refused for."""
        messages, run_key = run.messages, None
        if key is not None:
            if len(messages) > 1:
                run_key = key
            else:
                (message,) = messages
                if message.key is not None:
                    raise WebRefused(422, "a key in the message, beside an Idempotency-Key")
                messages = [msgspec.structs.replace(message, key=key)]
        options = run.options
        return sender.batch(
            who,
            run.subject,
            messages,
            to=options.to,
            ttl=options.ttl,
            delay=options.delay,
            flags=options.flags,
            key=run_key,
            promise=options.promise,
        )


def accepted_of(sender: LocalSender, batch: Batch, outcome: Outcome) -> Accepted:
    """Return where a batch is. Raises what it was refused for when it was to be stored."""
    if isinstance(outcome, RefusedBatch):
        raise outcome.error
    by_key = not isinstance(outcome, Batch)
    piece = None if isinstance(outcome, Batch) else outcome.pieces[0]
    due = batch.due_at if piece is None else piece.due
    if due:  # it has no position yet, and is asked about by what was handed in first
        own = f"{sender.name}/{sender.hash}/{batch.sequence}"
        return Accepted((piece and piece.of) or own, due=due, by_key=by_key)
    position = batch.first if piece is None else piece.position
    if not position:
        return Accepted(None, by_key=by_key)
    return Accepted(f"log:{position}", position, by_key=by_key)


def _content(post: Post, size_max: int) -> tuple[bytes, Headers | None]:
    """Return the body of a message, and its headers with the type of that.

    Raises `BadValue`, and `MessageTooLarge`, before a body is looked into.
    """
    body, headers = _body(post)
    if len(body) > size_max:
        raise MessageTooLarge(len(body), size_max)
    if isinstance(post.body, msgspec.Raw):
        body.decode()  # JSON is UTF-8, and what is kept raw was not looked at
        if body.count(b"[") + body.count(b"{") > DEPTH_MAX or _may_be_out_of_range(body):
            try:
                _json.decode(body)
            except ValueError as error:
                raise BadValue("body", str(error)) from None
    return body, headers


def _body(post: Post) -> tuple[bytes, Headers | None]:
    headers = post.headers
    said = [name for name in ("body", "text", "base64") if getattr(post, name) is not msgspec.UNSET]
    if len(said) > 1:
        raise BadValue("a message", f"has one of body, text and base64, not {' and '.join(said)}")
    if isinstance(post.body, msgspec.Raw):
        return bytes(post.body), _with_type(headers, _TYPE_OF_JSON)
    if isinstance(post.text, str):
        return post.text.encode(), _with_type(headers, _TYPE_OF_TEXT)
    if isinstance(post.base64, str):
        try:
            return b64decode(post.base64, validate=True), headers
        except (binascii.Error, ValueError):
            raise BadValue("base64", "is no base64") from None
    return b"", headers


def _with_type(headers: Headers | None, content_type: Headers) -> Headers:
    if not headers:
        return content_type
    if any(name.lower() == CONTENT_TYPE for name in headers):
        return headers
    return {**headers, **content_type}


def _options(post: Post) -> _Options:
    flags = FLAG_REQUIRE if post.require else 0
    if post.retain:
        if post.retain is not True and post.retain != "only":
            raise BadValue("retain", f'is true or "only", not {post.retain[:64]!r}')
        flags |= FLAG_RETAIN if post.retain is True else FLAG_RETAIN | FLAG_RETAIN_ONLY
    to = post.to
    if to is not None:
        if not to:
            raise BadValue("to", "names nobody")
        to = tuple([check_name(name) for name in to])
    ttl, delay = _ms(post.ttl), _ms(post.delay) or None
    if ttl is not None and delay is not None and ttl <= delay:
        raise BadValue("ttl", "is over when the delay is: it must be above it")
    promise = None
    if post.promise is not None:
        promise = Promise(**msgspec.structs.asdict(post.promise)).option
    return _Options(to, ttl, delay, flags, promise)


def _is_done(states: States, for_promise: bool) -> bool:
    """Return whether what is waited for is there."""
    if for_promise:
        return states.promise is None or states.promise.outcome != "open"
    return states.is_final


class _Submitted(NamedTuple):
    """A batch that was submitted. A slice that fired with the `Deferred` itself would wait for it.

    What it fires with is an `Outcome`, or it fails with why there is none.
    """

    done: Deferred[Outcome]


def _submitted(sender: LocalSender, batch: Batch) -> _Submitted:
    return _Submitted(sender.submit(batch))


def _lines_of(body: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the lines of a body that are not empty, each with its number.

    One at a time: there may be as many as it has bytes. An empty one now and then, where a long
    piece has nothing else.
    """
    line, begin = 1, 0
    while begin < len(body):
        beyond = begin + EMPTY_AT_ONCE
        found = _some_line(body, begin, beyond)
        at = min(beyond, len(body)) if found is None else found.start()
        line += body.count(b"\n", begin, at)
        begin = at
        if found is None:
            yield line, b""
            continue
        end = body.find(b"\n", at)
        begin = len(body) if end < 0 else end
        yield line, body[at:begin]


def _nothing() -> None:
    """Stand for work that was done."""


def _ms(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * 1000)


def _partly(error: Exception, line: int, stored: Sequence[AcceptedRun]) -> Answer:
    """Return the answer to lines of which one, at least, was refused."""
    status = UNPROCESSABLE if isinstance(error, UnknownReceiver) else None
    problem = problem_of(error, status)
    said = PartlyAccepted(
        **msgspec.structs.asdict(problem) | {"detail": f"line {line}: {problem.detail}"},
        line=line,
        accepted=sum(run.count for run in stored),
        runs=list(stored),
    )
    return answer_of(error, status=status)._replace(body=msgspec.json.encode(said))


def _all_of(waiting: Iterable[Deferred[Outcome]]) -> Deferred[list[object]]:
    """Fire with what each has fired with, or has failed with."""
    return gatherResults([one.addErrback(lambda failure: failure.value) for one in waiting])
