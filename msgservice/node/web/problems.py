"""Errors as HTTP says them: a status, and a problem document (RFC 9457) with the error's own code.

One table says which error has which status; a failed request to `$node.*` has a code alone, so the
same table is asked by code.
"""

from __future__ import annotations

from http import HTTPStatus

import msgspec

from msgservice.errors import (
    Ambiguous,
    BadAddress,
    BadName,
    BadSubject,
    BadValue,
    Busy,
    Forbidden,
    KeyReused,
    LimitReached,
    LogFull,
    LoginEnded,
    LogUnavailable,
    MalformedFrame,
    MessageTooLarge,
    MsgServiceError,
    NoReceiver,
    NoResponder,
    NotAllowed,
    NotAuthenticated,
    NotConfirmed,
    NotYetBuilt,
    ReceiverExists,
    Refused,
    ReplayRuns,
    RequestFailed,
    RequestTimeout,
    ResponderLost,
    TooFewReceivers,
    UnknownDeadLetter,
    UnknownMessage,
    UnknownReceiver,
    WebRefused,
)
from msgservice.node.web.answers import Answer

PROBLEM_TYPE = b"application/problem+json"
ERRORS = MsgServiceError.__module__
RETRY_AFTER = 1.0  # seconds, where nothing says another time
# Of an error its own status, or that of the first class in its ancestry that has one.
STATUSES: dict[type[MsgServiceError], int] = {
    Ambiguous: 503,
    BadAddress: 400,
    BadName: 400,
    BadSubject: 400,
    BadValue: 400,
    Busy: 503,
    Forbidden: 403,
    KeyReused: 422,
    TooFewReceivers: 422,
    LimitReached: 429,
    LogFull: 503,
    LogUnavailable: 503,
    LoginEnded: 401,
    MalformedFrame: 400,
    MessageTooLarge: 413,
    NoReceiver: 422,
    NoResponder: 404,
    NotAllowed: 403,
    NotAuthenticated: 401,
    NotConfirmed: 409,
    NotYetBuilt: 501,
    ReceiverExists: 409,
    Refused: 422,
    ReplayRuns: 409,
    RequestFailed: 502,
    RequestTimeout: 504,
    ResponderLost: 502,
    UnknownDeadLetter: 404,
    UnknownMessage: 404,
    UnknownReceiver: 404,
}
SHARED = ("http_bytes", "idempotency_keys", "uncommitted_bytes")  # limits of all who ask together
LATER = (LogFull, LimitReached, LogUnavailable)  # … after which the same may be taken
# What does not decode, or has another shape than it must: a value that cannot be, to who said it.
SHAPELESS = (UnicodeDecodeError, msgspec.MsgspecError)
BY_CODE = {error.refusal_code: error for error in STATUSES if error.refusal_code}


class Problem(msgspec.Struct, frozen=True, omit_defaults=True):
    """A problem document. `error`: the error's name in docs/errors.md, `code`: its number there.

    `about`: the receiver, limit or key that it concerns. `queued`, `dead`: what would go with a
    receiver, where that was not confirmed. Its `type` is `about:blank`, which need not be said.
    """

    title: str
    status: int
    detail: str
    error: str = ""
    code: int = 0
    about: str = ""
    queued: int | msgspec.UnsetType = msgspec.UNSET
    dead: int | msgspec.UnsetType = msgspec.UNSET


def status_of(error: Exception) -> int:
    """Return the status of the answer to what has raised this."""
    if isinstance(error, WebRefused):
        return error.status
    if isinstance(error, LimitReached) and error.limit in SHARED:
        return 503
    for kind in type(error).__mro__:
        if kind in STATUSES:
            return STATUSES[kind]
    return 400 if isinstance(error, SHAPELESS) else 500


def problem_of(error: Exception, status: int | None = None) -> Problem:
    """Return the document that says an error; what no client may know is not in it.

    `status`: in place of the error's own.
    """
    status = status_of(error) if status is None else status
    is_ours = isinstance(error, MsgServiceError)
    name, code = "", 0
    detail = "internal error: see the node's log"
    if is_ours or status == 400:
        detail = str(error)
    if isinstance(error, SHAPELESS):
        if type(error) is msgspec.DecodeError:  # a ValidationError says where it is wrong
            detail = f"the body is no JSON: {detail}"
        name, code = BadValue.__name__, BadValue.refusal_code
    elif isinstance(error, MsgServiceError) and not isinstance(error, WebRefused):
        name, code = name_of(error), error.refusal_code
        if isinstance(error, RequestFailed):
            code = error.code
    return Problem(
        title=HTTPStatus(status).phrase,
        status=status,
        detail=detail,
        error=name,
        code=code,
        about=error.about if isinstance(error, MsgServiceError) else "",
        queued=error.queued if isinstance(error, NotConfirmed) else msgspec.UNSET,
        dead=error.dead if isinstance(error, NotConfirmed) else msgspec.UNSET,
    )


def name_of(error: Exception) -> str:
    """Return the name of an error in docs/errors.md, or of what it is a kind of."""
    kinds = type(error).__mro__
    return next((kind.__name__ for kind in kinds if kind.__module__ == ERRORS), "")


def answer_of(error: Exception, *, from_browser: bool = False, status: int | None = None) -> Answer:
    """Return the answer that says an error. `status`: in place of the error's own."""
    problem = problem_of(error, status)
    headers: list[tuple[bytes, bytes]] = []
    if problem.status == 401:
        headers.append((b"WWW-Authenticate", b'Bearer realm="msgservice"'))
        if not from_browser:  # which would ask for a password by itself, of whatever page
            headers.append((b"WWW-Authenticate", b'Basic realm="msgservice", charset="UTF-8"'))
    if isinstance(error, LATER) or problem.status == 503:
        delay = error.delay if isinstance(error, LogFull) else RETRY_AFTER
        headers.append((b"Retry-After", b"%d" % max(1, round(delay))))
    return Answer(problem.status, msgspec.json.encode(problem), PROBLEM_TYPE, headers)
