"""MLflow's API for everything but load: sign-in, experiments, search, artifacts to read back; nothing is recorded."""

from __future__ import annotations

import asyncio
import binascii
import re
import ssl
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from json import dumps
from time import monotonic_ns
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, urlencode

import msgspec

from hpcstress.clients.answer import Answer, Failed, said
from hpcstress.clients.connection import MAX_ANSWER, HeadedConnection
from hpcstress.clients.dial import Dialer
from hpcstress.clients.requests import API
from hpcstress.clients.wire import connect_outcome
from hpcstress.errors import Refusal
from hpcstress.quantity import ended, mask_password
from hpcstress.record import Outcome
from hpcstress.target import Target

PAGE = 200

# FastTrackML 0.6 cuts its tokens off after a multiple of three bytes, and so misses the bracket of each offset of five
# digits: nobody could read more than 10,000 runs there.
_CUT_OFF = re.compile(rb'\{"offset":\d+')
_DATE = re.compile(rb"\r\ndate:[ \t]*([ -~]*?)[ \t]*(?:\r\n|$)", re.IGNORECASE)


class _Page(msgspec.Struct):
    runs: list[dict[str, Any]] | None = None
    experiments: list[dict[str, Any]] | None = None
    next_page_token: str | None = None


class Api:
    """Ask a server questions on a connection of its own, one after the other."""

    def __init__(self, dialer: Dialer, timeout: float) -> None:
        self.target = dialer.target
        self._dialer = dialer
        self._timeout = timeout
        self._connection: HeadedConnection | None = None

    def enter(self, workspace: str | None) -> None:
        """Ask about a workspace from now on, about the one that the environment names with None."""
        target = self._dialer.target
        self.target = target if workspace is None else replace(target, workspace=workspace)

    async def ask(
        self, method: str, path: str, body: object = None, sink: Callable[[bytes], object] | None = None
    ) -> Answer:
        """Send one request and return its answer, of whatever kind."""
        try:
            async with asyncio.timeout(self._timeout):
                connection = self._connection
                if connection is None or not connection.usable:
                    _, dialled = await self._dialer.dial(HeadedConnection)
                    assert isinstance(dialled, HeadedConnection)
                    connection = self._connection = dialled
                request = self.target.head(method, path)
                if body is None:
                    request += b"\r\n"
                else:
                    text = dumps(body).encode()
                    request += b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(text) + text
                deadline = monotonic_ns() + round(self._timeout * 1e9)
                return await connection.exchange(request, deadline, MAX_ANSWER, sink)
        except (OSError, ssl.SSLError) as error:
            # TimeoutError is an OSError, too.
            self.close()
            return Answer(connect_outcome(error), 0, monotonic_ns(), 0, 0, str(error).encode())

    def clock(self) -> float | None:
        """Return what the server's clock said in the last answer, in seconds since 1970; None if it said nothing."""
        found = _DATE.search(self._connection.head) if self._connection is not None else None
        if found is None:
            return None
        try:
            told = datetime.strptime(found[1].decode(), "%a, %d %b %Y %H:%M:%S GMT").replace(tzinfo=UTC)
        except ValueError:
            return None
        return told.timestamp()

    async def call(self, method: str, path: str, body: object = None, kind: Any = dict[str, Any]) -> Any:
        """Return the JSON of an answer, an object; raise `Failed` unless there is one with 2xx."""
        answer = await self.ask(method, path, body)
        if answer.outcome is not Outcome.ok:
            raise Failed(answer)
        try:
            return msgspec.json.decode(answer.body, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise Failed(msgspec.structs.replace(answer, outcome=Outcome.malformed)) from None

    async def get(self, path: str, **query: str) -> Any:
        """Return the JSON that a GET below the API's path answers."""
        return await self.call("GET", f"{API}/{path}?{urlencode(query, quote_via=quote)}")

    async def post(self, path: str, body: Mapping[str, object]) -> Any:
        """Return the JSON that a POST below the API's path answers."""
        return await self.call("POST", f"{API}/{path}", body)

    async def search_runs(self, experiment_ids: Sequence[str], condition: str) -> AsyncIterator[dict[str, Any]]:
        """Yield all active runs of experiments that a filter matches, page by page."""
        question = {"experiment_ids": [*experiment_ids], "filter": condition, "run_view_type": "ACTIVE_ONLY"}
        async for page in self._pages("runs/search", question):
            for run in page.runs or ():
                yield run

    async def search_experiments(self, condition: str, view: str = "ACTIVE_ONLY") -> AsyncIterator[dict[str, Any]]:
        """Yield all experiments that a filter matches, page by page: the active, the deleted ones, or all."""
        async for page in self._pages("experiments/search", {"filter": condition, "view_type": view}):
            for experiment in page.experiments or ():
                yield experiment

    async def _pages(self, path: str, question: Mapping[str, object]) -> AsyncIterator[_Page]:
        token = ""
        while True:
            asked = {**question, "max_results": PAGE, **({"page_token": _whole(token)} if token else {})}
            page = await self.call("POST", f"{API}/{path}", asked, _Page)
            yield page
            if not page.next_page_token:
                return
            if page.next_page_token == token or not (page.runs or page.experiments):
                raise Failed(Answer(Outcome.malformed, 200, monotonic_ns(), 0, 0, b"pages without anything for ever"))
            token = page.next_page_token

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.abandon()
            self._connection = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _whole(token: str) -> str:
    """Return a token of a next page with the bracket that FastTrackML has cut off, any other as it is."""
    try:
        told = binascii.a2b_base64(token, strict_mode=True)
    except ValueError:
        return token
    return binascii.b2a_base64(told + b"}", newline=False).decode() if _CUT_OFF.fullmatch(told) else token


ADVICE = {
    Outcome.refused: "start it, or correct its address",
    Outcome.timeout: "is a firewall or proxy between? Try `hpcstress doctor`",
    Outcome.closed: "is that the right port, and http rather than https?",
    Outcome.tls: "set MLFLOW_TRACKING_SERVER_CERT_PATH to its authority, or correct the address",
    Outcome.auth: "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN",
    Outcome.not_supported: "is that the address of a tracking server?",
    Outcome.malformed: "is that the address of a tracking server?",
}

MEANING = {
    Outcome.refused: "cannot be reached",
    Outcome.timeout: "does not answer",
    Outcome.closed: "closed the connection without an answer",
    Outcome.tls: "has a certificate that is not trusted, or speaks no TLS",
    Outcome.auth: "refused the sign-in",
    Outcome.not_supported: "does not know MLflow's API",
    Outcome.malformed: "answered with something that is not MLflow's JSON",
}


def refusal(
    target: Target,
    answer: Answer,
    doing: str,
    meanings: Mapping[Outcome, str] = MEANING,
    advices: Mapping[Outcome, str] = ADVICE,
) -> Refusal:
    """Return the one sentence about a server that refuses before any load was made."""
    meaning = meanings.get(answer.outcome, f"answered {answer.status or answer.outcome.name}")
    advice = advices.get(answer.outcome, "look into the server's log")
    if answer.outcome is Outcome.auth and target.token is not None:
        advice = "is it Mantik's tracking server? Else unset MANTIK_USERNAME and MANTIK_PASSWORD"
    told = said(target.masked(answer.body))
    # Of what did not come from the server, this machine is the speaker.
    heard = ended(f" It said: {told!r}") if answer.received else f" ({told})"
    sentence = ended(f"The server {mask_password(target.uri)} {meaning} ({doing}): {advice}")
    return Refusal(f"{sentence}{heard if told else ''}")
