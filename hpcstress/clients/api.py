"""MLflow's API for everything but load: sign-in, experiments, search, artifacts to read back; nothing is recorded."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from json import dumps
from time import monotonic_ns
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, urlencode

import msgspec

from hpcstress.clients.answer import Answer, Failed, said
from hpcstress.clients.connection import Connection
from hpcstress.clients.dial import Dialer
from hpcstress.clients.wire import API, connect_outcome
from hpcstress.errors import Refusal
from hpcstress.quantity import ended, mask_password
from hpcstress.record import Outcome
from hpcstress.target import Target

# A page of runs with 10,000 parameters each is the largest honest answer; more is not read.
MAX_ANSWER = 1 << 26
PAGE = 200


class _Page(msgspec.Struct):
    runs: list[dict[str, Any]] | None = None
    next_page_token: str | None = None


class Api:
    """Ask a server questions on a connection of its own, one after the other."""

    def __init__(self, dialer: Dialer, timeout: float) -> None:
        self.target = dialer.target
        self._dialer = dialer
        self._timeout = timeout
        self._connection: Connection | None = None

    async def ask(
        self, method: str, path: str, body: object = None, sink: Callable[[bytes], object] | None = None
    ) -> Answer:
        """Send one request and return its answer, of whatever kind."""
        try:
            async with asyncio.timeout(self._timeout):
                connection = self._connection
                if connection is None or not connection.usable:
                    _, dialled = await self._dialer.dial(Connection)
                    assert isinstance(dialled, Connection)
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

    async def search_runs(self, experiment_id: str, condition: str) -> AsyncIterator[dict[str, Any]]:
        """Yield all active runs of an experiment that a filter matches, page by page."""
        token = ""
        while True:
            question = {
                "experiment_ids": [experiment_id],
                "filter": condition,
                "run_view_type": "ACTIVE_ONLY",
                "max_results": PAGE,
                **({"page_token": token} if token else {}),
            }
            page = await self.call("POST", f"{API}/runs/search", question, _Page)
            for run in page.runs or ():
                yield run
            if not page.next_page_token:
                return
            if page.next_page_token == token or not page.runs:
                raise Failed(Answer(Outcome.malformed, 200, monotonic_ns(), 0, 0, b"pages without runs for ever"))
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


_ADVICE = {
    Outcome.refused: "start it, or correct --uri",
    Outcome.timeout: "is a firewall or proxy between? Try `hpcstress doctor`",
    Outcome.closed: "is that the right port, and http rather than https?",
    Outcome.tls: "set MLFLOW_TRACKING_SERVER_CERT_PATH to its authority, or correct the address",
    Outcome.auth: "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN",
    Outcome.not_supported: "is that the address of a tracking server?",
    Outcome.malformed: "is that the address of a tracking server?",
}

_MEANING = {
    Outcome.refused: "cannot be reached",
    Outcome.timeout: "does not answer",
    Outcome.closed: "closed the connection without an answer",
    Outcome.tls: "has a certificate that is not trusted, or speaks no TLS",
    Outcome.auth: "refused the sign-in",
    Outcome.not_supported: "does not know MLflow's API",
    Outcome.malformed: "answered with something that is not MLflow's JSON",
}


def refusal(target: Target, answer: Answer, doing: str) -> Refusal:
    """Return the one sentence about a server that refuses before any load was made."""
    meaning = _MEANING.get(answer.outcome, f"answered {answer.status or answer.outcome.name}")
    advice = _ADVICE.get(answer.outcome, "look into the server's log")
    told = said(target.masked(answer.body))
    # Of what did not come from the server, this machine is the speaker.
    heard = ended(f" It said: {told!r}") if answer.received else f" ({told})"
    sentence = ended(f"The server {mask_password(target.uri)} {meaning} ({doing}): {advice}")
    return Refusal(f"{sentence}{heard if told else ''}")
