"""Ask a Prometheus what it knows of somebody's server: before the load whether it answers, and more after each step.

Nothing is asked while load runs. What Prometheus fails to tell later is a note, and never costs a result.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlencode

import msgspec
import numpy as np

from hpcstress.clients.answer import Answer, Failed, said
from hpcstress.clients.api import MEANING, Api, refusal
from hpcstress.clients.dial import Dialer
from hpcstress.errors import Refusal, UsageRefusal
from hpcstress.plan import Plan
from hpcstress.quantity import ended, mask_password
from hpcstress.record import Outcome
from hpcstress.result import TABLES, Rows
from hpcstress.target import prometheus_target

# A report takes cpu (cores), memory (bytes), threads, files and connections for what a part of the server uses, and
# series of theirs with the same labels for the same part. A rate goes on for its five minutes after a series has ended:
# `and` ends it there.
DEFAULT_QUERIES: dict[str, str] = {
    "cpu": (
        "sum by (groupname) (irate(namedprocess_namegroup_cpu_seconds_total[5m])"
        " and namedprocess_namegroup_cpu_seconds_total)"
    ),
    "memory": 'sum by (groupname) (namedprocess_namegroup_memory_bytes{memtype="resident"})',
    "threads": "sum by (groupname) (namedprocess_namegroup_num_threads)",
    "files": "sum by (groupname) (namedprocess_namegroup_open_filedesc)",
    "mlflow_requests": "sum by (status) (irate(mlflow_http_request_total[5m]) and mlflow_http_request_total)",
    "mlflow_seconds": (
        "sum(irate(mlflow_http_request_duration_seconds_sum[5m]))"
        " / sum(irate(mlflow_http_request_duration_seconds_count[5m]))"
    ),
}

_PATIENCE = 10.0
_LARGEST_ANSWER = 1 << 24
_MOST_POINTS = 300
_MOST_SERIES = 100
_MOST_ROWS = 200_000
_LONGEST_LABELS = TABLES["prometheus"]["labels"].itemsize
_NOTICEABLE_OFFSET = 1.0
# Clocks are put right to about a second. Nanoseconds since 1970 are below the largest value, and a picture can hold it.
_LEEWAY = 2.0
_LARGEST_VALUE = 1e20

_MEANING = MEANING | {
    Outcome.not_supported: "does not know Prometheus's API",
    Outcome.malformed: "answered with something that is not Prometheus's JSON",
}
_ADVICE = {
    Outcome.refused: "start it, or correct --prometheus",
    Outcome.timeout: "is a firewall or proxy between?",
    Outcome.closed: "is that the right port, and http rather than https?",
    Outcome.tls: "set SSL_CERT_FILE to its authority, or correct the address",
    Outcome.auth: "set PROMETHEUS_USERNAME and PROMETHEUS_PASSWORD, or PROMETHEUS_TOKEN",
    Outcome.not_supported: "is that the address of a Prometheus?",
    Outcome.client_error: "is that the address of a Prometheus?",
    Outcome.malformed: "is that the address of a Prometheus?",
}


class _Data(msgspec.Struct, rename="camel"):
    result_type: str
    result: list[Any]


class _Told(msgspec.Struct):
    status: str
    data: _Data | None = None
    error: str = ""


class _Series(msgspec.Struct):
    values: list[tuple[float, str]]
    metric: dict[str, str] = {}


class _Wrong(Exception):
    """Tell what Prometheus has against a query."""


@dataclass
class Prometheus:
    """Hold the way to a Prometheus, what it is asked after each step, and what there is to be said of its answers.

    `offset` is what its clock shows more than this one, in seconds.
    """

    dialer: Dialer
    queries: Mapping[str, str]
    chosen: bool
    offset: float
    notes: list[str] = field(default_factory=list)
    _until: float | None = None
    _rows: int = 0
    _answered: set[str] = field(default_factory=set)
    _heard: set[str] = field(default_factory=set)

    @property
    def facts(self) -> dict[str, Any]:
        """Return what a result says of where its numbers are from."""
        return {
            "uri": self.dialer.target.uri,
            "queries": dict(self.queries),
            "clock_offset": round(self.offset, 3),
        }

    def look(self, began: float) -> Rows:
        """Return rows of `TABLES["prometheus"]` from where the last look ended, or from `began`, until now.

        Times are seconds since 1970 on this machine's clock. Nothing that goes wrong is raised: it becomes a note.
        """
        begin, end = began if self._until is None else self._until, time.time()
        self._until = end
        # A new loop may run after another has been closed: nothing of it is kept.
        return asyncio.run(self._look(begin, end))

    def farewell(self) -> list[str]:
        """Return the notes of the whole job, and which of the queries were answered and never with a value."""
        silent = [name for name in self.queries if name in self._answered - self._heard]
        if self.chosen and silent:
            self._note(f"Prometheus knows nothing of what these queries ask: {', '.join(silent)}.")
        elif len(silent) == len(self.queries):
            self._note(
                "Prometheus knows neither process-exporter's series nor MLflow's: "
                "say what to ask it with --prometheus-queries."
            )
        return self.notes

    async def _look(self, begin: float, end: float) -> Rows:
        pieces = [np.zeros(0, TABLES["prometheus"])]
        async with Api(self.dialer, _PATIENCE) as api:
            for name, query in self.queries.items():
                try:
                    series = await _range(api, query, begin + self.offset, end + self.offset)
                    rows = self._read(name, series, begin, end)
                except _Wrong as wrong:
                    self._note(f"Prometheus refused the query {name} after a step: {wrong}")
                    continue
                except Failed as failure:
                    told = refusal(api.target, failure.answer, f"asking Prometheus for {name}", _MEANING, _ADVICE)
                    self._note(f"After a step Prometheus did not tell what it knows. {told}")
                    # The others would wait as long, and in vain.
                    break
                self._rows += len(rows)
                pieces.append(rows)
        return np.concatenate(pieces)

    def _read(self, name: str, series: list[_Series], begin: float, end: float) -> Rows:
        """Return the finite values of series as rows, as many as there is room for, of the time that was asked for."""
        self._answered.add(name)
        if len(series) > _MOST_SERIES:
            self._note(f"The query {name} has {len(series):,} series, of which {_MOST_SERIES} are kept: sum some up.")
        rows: list[tuple[float, bytes, bytes, float]] = []
        known: set[bytes] = set()
        wrong = 0
        for one in series[:_MOST_SERIES]:
            labels = ", ".join(f"{key}={value}" for key, value in sorted(one.metric.items()))
            encoded = labels.encode(errors="replace")[:_LONGEST_LABELS]
            if encoded in known:
                self._note(f"Series of the query {name} cannot be told apart, and one of them is kept: sum them up.")
                continue
            known.add(encoded)
            for at, text in one.values:
                value, time_here = _number(text), at - self.offset
                if not math.isfinite(value):
                    continue
                if begin - _LEEWAY <= time_here <= end + _LEEWAY and abs(value) <= _LARGEST_VALUE:
                    rows.append((time_here, name.encode(), encoded, value))
                else:
                    wrong += 1
        if wrong:
            self._note(
                f"Values of the query {name} were left out, because they are of another time than was asked for, or "
                f"beyond {_LARGEST_VALUE:g}."
            )
        if rows:
            self._heard.add(name)
        room = _MOST_ROWS - self._rows
        if len(rows) > room:
            self._note(f"Of what Prometheus told, the first {_MOST_ROWS:,} values are kept: ask for less.")
        return np.array(rows[:room], TABLES["prometheus"])

    def _note(self, sentence: str) -> None:
        if sentence not in self.notes:
            self.notes.append(sentence)


def reach(plan: Plan, environment: Mapping[str, str]) -> Prometheus | None:
    """Return the plan's Prometheus, None if it has none; refuse one that does not answer, and queries that are none."""
    return asyncio.run(_reach(plan, environment)) if plan.prometheus else None


async def _reach(plan: Plan, environment: Mapping[str, str]) -> Prometheus:
    dialer = Dialer(prometheus_target(plan.prometheus, environment))
    await dialer.resolve()
    queries = dict(plan.prometheus_queries) or DEFAULT_QUERIES
    async with Api(dialer, _PATIENCE) as api:
        before = time.time()
        told = await _answer(api, "query", "time()")
        try:
            # A scalar is a pair: when it was asked, and what it is.
            offset = float(told.result[1]) - (before + time.time()) / 2
        except (IndexError, TypeError, ValueError):
            raise _refused(api, Failed(_nonsense(b"it does not tell the time"))) from None
        if not math.isfinite(offset):
            raise _refused(api, Failed(_nonsense(b"it does not tell the time")))
        for name, query in queries.items():
            await _answer(api, "query", query, name)
    notes = []
    if abs(offset) > _NOTICEABLE_OFFSET:
        ahead = "ahead of" if offset > 0 else "behind"
        notes.append(f"Prometheus's clock is {abs(offset):,.0f} s {ahead} rank 0's; its times were put right.")
    else:
        # Within the error of one question the clocks agree.
        offset = 0.0
    return Prometheus(dialer, queries, bool(plan.prometheus_queries), offset, notes)


async def _answer(api: Api, route: str, query: str, name: str = "") -> _Data:
    """Return what Prometheus answers before the load; refuse all else in a sentence."""
    try:
        return await _ask(api, route, query=query)
    except Failed as failure:
        raise _refused(api, failure) from None
    except _Wrong as wrong:
        if not name:
            raise _refused(api, Failed(_nonsense(str(wrong).encode()))) from None
        raise UsageRefusal(f"--prometheus-queries: Prometheus does not take {name} ({query!r}): {wrong}") from None


def _refused(api: Api, failure: Failed) -> Refusal:
    return refusal(api.target, failure.answer, "asking Prometheus for its time", _MEANING, _ADVICE)


async def _range(api: Api, query: str, begin: float, end: float) -> list[_Series]:
    step = max(1.0, math.ceil((end - begin) / _MOST_POINTS))
    data = await _ask(api, "query_range", query=query, start=f"{begin:.3f}", end=f"{end:.3f}", step=f"{step:g}")
    try:
        return msgspec.convert(data.result, list[_Series])
    except msgspec.ValidationError:
        raise Failed(_nonsense(b"its answer is no table of series")) from None


async def _ask(api: Api, route: str, **words: str) -> _Data:
    """Return the data of an answer; raise `_Wrong` with Prometheus's own words, `Failed` if there are none."""
    heard = bytearray()

    def take(piece: bytes) -> None:
        heard.extend(piece)
        if len(heard) > _LARGEST_ANSWER:
            # Who sends without end is not heard to the end of patience.
            api.close()

    answer = await api.ask("GET", f"/api/v1/{route}?{urlencode(words, quote_via=quote)}", None, take)
    if len(heard) > _LARGEST_ANSWER:
        raise Failed(_nonsense(b"its answer is too long: ask for less"))
    try:
        told = msgspec.json.decode(heard, type=_Told)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        if not answer.status:
            # Half an answer says nothing.
            raise Failed(answer) from None
        outcome = Outcome.malformed if answer.outcome is Outcome.ok else answer.outcome
        raise Failed(msgspec.structs.replace(answer, outcome=outcome, body=bytes(heard[:500]))) from None
    if told.error and answer.status in (400, 422, 503):
        raise _Wrong(ended(mask_password(said(api.target.masked(told.error.encode())))))
    if answer.outcome is not Outcome.ok or told.status != "success" or told.data is None:
        outcome = Outcome.malformed if answer.outcome is Outcome.ok else answer.outcome
        raise Failed(msgspec.structs.replace(answer, outcome=outcome, body=told.error.encode()))
    return told.data


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _nonsense(reason: bytes) -> Answer:
    return Answer(Outcome.malformed, 200, 0, 0, 0, reason)
