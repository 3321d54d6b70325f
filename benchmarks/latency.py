"""Latency: how far what is measured lies from the truth.

The server answers after 10 to 12 ms, and knows for each answer how long it really took. First so many runs ask it at
once that neither of the two has any rest; then so many fewer that the rate is half of that. The truth begins when the
server has read a request, and ends when its answer has left: what lies between that and the measured latency is the
system's two ways through loopback, and the tool's own error.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.finding import Finding, NotMeasuredError, at_most
from benchmarks.machine import server
from benchmarks.rank import play
from benchmarks.rounds import Say, in_turn, medians
from hpcstress.result import Rows

DELAY_MS, SCATTER_MS = 10.0, 2.0
MEAN_SECONDS = (DELAY_MS + SCATTER_MS / 2) / 1e3
MANY_RUNS = 1000
SECONDS = 3.0
ROUNDS = 3
# Connections are made first, all at once.
WARMUP_NS = 500_000_000

QUANTILES = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}

Nanoseconds = np.ndarray[Any, np.dtype[np.int64]]


def truth_of(rows: Rows, noted: Nanoseconds) -> Nanoseconds:
    """Return the true latency of each row, which are in the order of runs: a run's n-th is its connection's n-th.

    `noted` has columns run, instant, duration; what was under way at the end is noted, and has no row.
    """
    noted = noted[np.lexsort((noted[:, 1], noted[:, 0]))]
    runs, first = np.unique(noted[:, 0], return_index=True)
    answered = np.bincount(rows["run"])
    if not np.array_equal(runs, np.arange(len(answered))):
        raise NotMeasuredError("The server does not know the runs that asked it.")
    place = np.arange(len(rows)) - np.repeat(np.cumsum(answered) - answered, answered)
    instant, duration = noted[first[rows["run"]] + place, 1:].T
    if np.any(instant < rows["start"]) or np.any(instant > rows["end"]):
        raise NotMeasuredError("The server's answers do not belong to the requests.")
    latency: Nanoseconds = duration
    return latency


def compare(runs: int) -> dict[str, float]:
    """Return quantiles of true latencies, of measured ones, and of their differences, in ms, and the rate."""
    with server("delayed", DELAY_MS, SCATTER_MS) as delayed:
        rows = play(delayed.uri, "get", runs, SECONDS).rows
        noted = np.array(delayed.stop()).reshape(-1, 3)
    rows = rows[np.lexsort((rows["start"], rows["run"]))]
    true, measured = truth_of(rows, noted), rows["end"] - rows["start"]
    settled = rows["start"] >= rows["start"].min() + WARMUP_NS
    quantiles = {
        f"{kind} {name}": float(np.quantile(values[settled], share)) / 1e6
        for kind, values in {"true": true, "measured": measured, "difference": measured - true}.items()
        for name, share in QUANTILES.items()
    }
    seconds = float(rows["end"].max() - rows["start"].min()) / 1e9
    return {**quantiles, "rate": len(rows) / seconds}


def measure(folder: Path, say: Say) -> Finding:
    """Find the largest rate, and compare at half of it."""
    del folder
    say("the largest rate")
    largest = compare(MANY_RUNS)["rate"]
    runs = max(1, round(largest / 2 * MEAN_SECONDS))
    taken = in_turn({f"{runs} runs": lambda: compare(runs)}, ROUNDS, say)[f"{runs} runs"]
    rounds = {name: [each[name] for each in taken] for name in taken[0]}
    middle = medians(rounds)
    errors = {name: middle[f"measured {name}"] - middle[f"true {name}"] for name in QUANTILES}
    return Finding(
        question=f"How far is a measured latency from the truth, at half of the largest rate ({runs} runs at once)?",
        columns=["ms", *QUANTILES],
        rows=[
            [kind, *(f"{middle[f'{kind} {name}']:.3f}" for name in QUANTILES)]
            for kind in ("true", "measured", "difference")
        ],
        goals=[at_most(f"measured less true, {name}", abs(errors[name]), 0.2, " ms") for name in ("p50", "p99")],
        rounds={**rounds, "largest rate": [largest]},
        notes=[
            "difference: measured less true, request by request",
            f"{middle['rate']:,.0f} requests/s; the largest rate was {largest:,.0f}/s with {MANY_RUNS} runs",
        ],
    )
