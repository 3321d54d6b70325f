"""What MLflow's own client costs: what it hides below its calls, and how it compares with bare requests on one plan.

A call is one operation as a user writes it. The stock client's are rows of their own, behind those of the attempts that
they consisted of; the wire client has none. But both send the same requests of each run in the same order, so that the
wire client's calls are those of its requests that belong to the same place in their run.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from analysis.frame import OPERATIONS, Frame
from analysis.percentiles import Percentiles, Sample, Values
from analysis.statistics import failures
from hpcstress.record import Operation
from hpcstress.result import Result

_COLUMNS = ("step", "run", "seq", "op", "outcome", "attempt", "start", "end")
# Options that do not change what is sent.
_WHEREVER = frozenset(
    {
        "client",
        "retries",
        "uri",
        "server",
        "prometheus",
        "prometheus_queries",
        "experiment",
        "audit",
        "objective",
        "sleep_time",
        "timeout",
        "warmup",
    }
)
_BESIDES = (Operation.connect, Operation.server_info, Operation.other)


@dataclass(frozen=True)
class Calls:
    """Hold the calls of one operation of MLflow's client. Times are seconds; the last three add up to all calls' time.

    `requests` were sent at least once, `attempts` were sent in all, `most` times the most stubborn of them. `waited` is
    the time in attempts, `paused` that between two attempts of a request, `own` what the client did besides.
    """

    operation: str
    calls: int
    failed: int
    requests: int
    attempts: int
    most: int
    time: Percentiles
    waited: float
    paused: float
    own: float

    @property
    def repeated(self) -> int:
        """Return how many attempts were repetitions."""
        return self.attempts - self.requests


@dataclass(frozen=True)
class Pair:
    """Hold how long the calls of one operation took with each client, of those that both have made."""

    operation: str
    calls: int
    wire: Percentiles
    stock: Percentiles
    wire_mean: float
    stock_mean: float

    @property
    def factor(self) -> float:
        """Return how many times as long a call takes with MLflow's client."""
        return self.stock_mean / self.wire_mean if self.wire_mean > 0 else float("nan")


@dataclass(frozen=True)
class Cost:
    """Hold what one client's whole job took: CPU of the generator in seconds, memory of a rank in bytes at most."""

    client: str
    calls: int
    requests: int
    attempts: int
    failed: int
    cpu_seconds: float
    memory: int
    ghosts: int

    @property
    def cpu_per_call(self) -> float:
        """Return the generator's CPU seconds for one call."""
        return self.cpu_seconds / self.calls if self.calls else float("nan")

    @property
    def attempts_per_call(self) -> float:
        """Return how many attempts a call took."""
        return self.attempts / self.calls if self.calls else float("nan")


@dataclass(frozen=True)
class Tax:
    """Hold the comparison of both clients on one plan."""

    pairs: tuple[Pair, ...]
    wire: Cost
    stock: Cost


@dataclass(frozen=True)
class _Rows:
    """Hold a result's rows in the order in which each run wrote them, and what can be told of each of them.

    `call` is the number of the call that a row belongs to, as many as there are calls for none. `asks` tells requests
    from calls and connections, `begins` a request from its repetitions. `place` is a request's number in its run, also
    that of the connection made for it; it is -1 for calls, and for requests of which no workload knows.
    """

    columns: Mapping[str, Values]
    calls: Values
    call: Values
    asks: Values
    begins: Values
    place: Values

    def __getitem__(self, name: str) -> Values:
        return self.columns[name]

    def keys(self, rows: Values, place: Values) -> Values:
        """Return numbers that stand for step, run and place, in the order of the rows."""
        step, run = self["step"][rows].astype(np.uint64), self["run"][rows].astype(np.uint64)
        # A row has two bytes for the number of its request.
        return (step << np.uint64(48)) | (run << np.uint64(16)) | place.astype(np.uint64)


def calls_of(frame: Frame) -> tuple[Calls, ...]:
    """Return what the calls of MLflow's client consisted of, by operation; nothing for other clients."""
    rows = _read(frame)
    chosen = np.flatnonzero(rows.calls)
    took, attempt = rows["end"] - rows["start"], rows["attempt"]
    pause = np.where(attempt > 1, rows["start"] - np.concatenate([[0], rows["end"][:-1]]), 0)
    waited, paused, requests, attempts = (
        np.bincount(rows.call, weights=values * ~rows.calls, minlength=len(chosen))[: len(chosen)]
        for values in (took, np.maximum(0, pause), rows.begins, rows.asks)
    )
    most = np.zeros(len(chosen) + 1, np.int64)
    np.maximum.at(most, rows.call, attempt)
    whole, failed = took[chosen], failures(rows.columns)[chosen]
    return tuple(
        Calls(
            operation=OPERATIONS[code],
            calls=int(these.sum()),
            failed=int(failed[these].sum()),
            requests=int(requests[these].sum()),
            attempts=int(attempts[these].sum()),
            most=int(most[:-1][these].max()),
            time=Sample(whole[these]).percentiles(),
            waited=float(waited[these].sum()) / 1e9,
            paused=float(paused[these].sum()) / 1e9,
            own=float(np.maximum(0, whole - waited - paused)[these].sum()) / 1e9,
        )
        for code, these in _each(rows["op"][chosen])
    )


def compare(wire: Frame, stock: Frame) -> Tax:
    """Return how the stock client compares with the wire client on the same plan."""
    mine, theirs = _read(stock), _read(wire)
    calls = np.flatnonzero(mine.calls)
    first, last = _bounds(mine, len(calls))
    sent = last >= 0
    known = np.flatnonzero(theirs.place >= 0)
    keys = theirs.keys(known, theirs.place[known])
    begun = np.searchsorted(keys, mine.keys(calls[sent], first[sent]), side="left")
    ended = np.searchsorted(keys, mine.keys(calls[sent], last[sent]), side="right")
    # The wire client has played on to this place in this run.
    both = begun < ended
    begun, ended, places = known[begun[both]], known[ended[both] - 1], calls[sent][both]
    by_wire = theirs["end"][ended] - theirs["start"][begun]
    by_stock = mine["end"][places] - mine["start"][places]
    pairs = tuple(
        Pair(
            operation=OPERATIONS[code],
            calls=int(these.sum()),
            wire=Sample(by_wire[these]).percentiles(),
            stock=Sample(by_stock[these]).percentiles(),
            wire_mean=float(by_wire[these].mean()) / 1e9,
            stock_mean=float(by_stock[these].mean()) / 1e9,
        )
        for code, these in _each(mine["op"][places])
    )
    requests, per_call = (int(np.count_nonzero(rows.begins & (rows.place >= 0))) for rows in (theirs, mine))
    return Tax(
        pairs,
        _cost(wire, theirs, round(requests * len(calls) / per_call) if per_call else 0),
        _cost(stock, mine, len(calls)),
    )


def _each(codes: Values) -> Iterator[tuple[int, Values]]:
    """Yield each code that there is, and where it is."""
    for code in np.unique(codes):
        yield int(code), codes == code


def same_load(first: Frame, second: Frame) -> bool:
    """Tell whether two results are of plans that send the same."""
    return {name: value for name, value in first.plan.items() if name not in _WHEREVER} == {
        name: value for name, value in second.plan.items() if name not in _WHEREVER
    }


def pairs_of(frames: Iterable[Frame]) -> list[tuple[Frame, Frame]]:
    """Return every result of the stock client with the first one of the wire client that has sent the same."""
    frames = list(frames)
    wires = [frame for frame in frames if frame.plan.get("client") == "wire"]
    stocks = [frame for frame in frames if frame.plan.get("client") == "stock"]
    found = ((next((wire for wire in wires if same_load(wire, stock)), None), stock) for stock in stocks)
    return [(wire, stock) for wire, stock in found if wire is not None]


def _read(frame: Frame) -> _Rows:
    with Result(frame.path) as result:
        columns: Mapping[str, Values] = result.attempts(_COLUMNS)
    order = np.lexsort((columns["seq"], columns["run"], columns["step"]))
    columns = {name: values[order] for name, values in columns.items()}
    op, attempt = columns["op"], columns["attempt"]
    calls, asks = attempt == 0, (attempt > 0) & (op != Operation.connect)
    connections = np.flatnonzero((attempt > 0) & (op == Operation.connect))
    # A connection is made for the request that follows. It is the request's beginning if it was tried for the first
    # time: then a request that got no further than connecting before begins with a later number.
    asking = _next(columns, connections, np.flatnonzero(asks))
    begins = asks & (attempt == 1)
    begins[asking[(attempt[connections] == 1) & (asking >= 0)]] = True
    known = asks & ~np.isin(op, _BESIDES)
    total = np.cumsum(begins & known)
    opens = np.ones(len(op), np.bool_)
    opens[1:] = ~_same_run(columns, np.arange(1, len(op)), np.arange(len(op) - 1))
    place = np.where(known, total - 1 - np.maximum.accumulate(np.where(opens, total - (begins & known), 0)), -1)
    place[connections[asking >= 0]] = place[asking[asking >= 0]]
    chosen = np.flatnonzero(calls)
    # An attempt belongs to the call that follows; that of one which was cut off does not come.
    of_call = _next(columns, np.arange(len(op)), chosen)
    call = np.where(of_call >= 0, np.searchsorted(chosen, of_call), len(chosen))
    return _Rows(columns, calls, call, asks, begins, place)


def _next(columns: Mapping[str, Values], rows: Values, others: Values) -> Values:
    """Return the first of some other rows that follows each row in its run or is itself one of them, -1 for none."""
    if not len(others):
        return np.full(len(rows), -1)
    following = np.searchsorted(others, rows)
    found = others[np.minimum(following, len(others) - 1)]
    return np.where((following < len(others)) & _same_run(columns, rows, found), found, -1)


def _same_run(columns: Mapping[str, Values], rows: Values, others: Values) -> Values:
    same: Values = (columns["run"][rows] == columns["run"][others]) & (columns["step"][rows] == columns["step"][others])
    return same


def _bounds(rows: _Rows, calls: int) -> tuple[Values, Values]:
    """Return the places of each call's first and last request, -1 for calls that sent nothing of their own."""
    first, last = np.full(calls, np.iinfo(np.int64).max), np.full(calls, -1)
    mine = np.flatnonzero((rows.call < calls) & rows.asks & (rows.place >= 0))
    np.minimum.at(first, rows.call[mine], rows.place[mine])
    np.maximum.at(last, rows.call[mine], rows.place[mine])
    return first, last


def _cost(frame: Frame, rows: _Rows, calls: int) -> Cost:
    return Cost(
        client=str(frame.plan.get("client", "")),
        calls=calls,
        requests=int(np.count_nonzero(rows.begins)),
        attempts=int(np.count_nonzero(rows.asks)),
        failed=int(np.count_nonzero(rows.asks & failures(rows.columns))),
        cpu_seconds=float(frame.health["cpu_seconds"].sum()),
        memory=int(frame.health["max_rss"].max(initial=0)),
        ghosts=int(frame.audit["ghosts"].sum()),
    )
