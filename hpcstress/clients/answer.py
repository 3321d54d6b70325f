"""What an answer of an MLflow server means: the outcome of one attempt from its status and body."""

from __future__ import annotations

import msgspec

from hpcstress.record import Outcome


class Answer(msgspec.Struct, frozen=True, gc=False):
    """Hold how one request ended. `end` is in nanoseconds of the monotonic clock; a failure has an end, too."""

    outcome: Outcome
    status: int
    end: int
    sent: int
    received: int
    body: bytes


class Failed(Exception):
    """Tell that an operation was not acknowledged, and why; it ends its run, as it would end a user's job."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.outcome.name, answer.status, answer.body[:500])
        self.answer = answer


_QUOTED, _SHOWN = 500, 200


class _Error(msgspec.Struct):
    message: str


_BY_STATUS = {
    401: Outcome.auth,
    403: Outcome.auth,
    408: Outcome.timeout,
    413: Outcome.client_error,
    429: Outcome.throttled,
    501: Outcome.not_supported,
    502: Outcome.gateway,
    503: Outcome.gateway,
    504: Outcome.gateway,
}


# As PostgreSQL, the system, SQLite and a quota say it.
_FULL = (b"DiskFull", b"No space left on device", b"database or disk is full", b"Disk quota exceeded")
_LACKING = (b"ENDPOINT_NOT_FOUND", b"FEATURE_DISABLED", b"running without workspaces support")


def outcome_of(status: int, body: bytes) -> Outcome:
    """Return the cause that a status and the beginning of a body name.

    MLflow answers 400 when its own connection pool is exhausted or its database has no disk left, 404 with
    ENDPOINT_NOT_FOUND (or with a page of HTML, Go servers with `Cannot POST /path`) for a route that it does not have,
    500 with FEATURE_DISABLED for a workspace header that it does not understand, and 503 in plain words when it is
    asked for its workspaces and has none.
    """
    if 200 <= status < 300:
        return Outcome.ok
    if b"QueuePool limit" in body:
        return Outcome.pool_exhausted
    if any(words in body for words in _FULL):
        return Outcome.disk_full
    if any(words in body for words in _LACKING):
        return Outcome.not_supported
    # As Flask says it, and as the Go servers do.
    if status == 404 and (body.lstrip()[:1] == b"<" or body.startswith(b"Cannot ")):
        return Outcome.not_supported
    if status in _BY_STATUS:
        return _BY_STATUS[status]
    if status < 400:
        return Outcome.malformed
    return Outcome.client_error if status < 500 else Outcome.server_error


def said(body: bytes) -> str:
    """Return what a server said in one printable line: the message of MLflow's JSON, else how the body begins."""
    text = body[:_QUOTED].decode("utf-8", "replace")
    try:
        message = msgspec.json.decode(body, type=_Error).message
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        message = text
    return " ".join("".join(c if c.isprintable() else " " for c in message[:_QUOTED]).split())[:_SHOWN]


def heard(answer: Answer) -> str:
    """Return what was said of a failure: the server is quoted with what has come from it, and with nothing else."""
    words = said(answer.body)
    if not words:
        return "no words came with it"
    return f"the server said {words!r}" if answer.received else words
