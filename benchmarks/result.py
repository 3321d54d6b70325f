"""Results: how long 10 million attempts take to be written, and to be summarised."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter

import numpy as np

from analysis.summary import summary
from benchmarks.finding import Finding, at_most
from benchmarks.rounds import Say
from hpcstress.plan import Plan
from hpcstress.record import RECORD, Operation
from hpcstress.result import TABLES, ResultWriter, Rows

ROWS = 10_000_000
STEPS = 10
# As journals are read.
PIECE = 1 << 16
RUNS = 10_000
OPERATIONS = (
    Operation.create_run,
    Operation.log_params,
    Operation.log_metrics,
    Operation.get_run,
    Operation.finish_run,
)


def piece(step: int, first: int, count: int, chance: np.random.Generator) -> Rows:
    """Return rows as a journal holds them, in the order of their ends: latencies scatter, now and then one fails."""
    number = np.arange(first, first + count)
    rows = np.zeros(count, RECORD)
    rows["run"], rows["seq"] = number % RUNS, number // RUNS
    rows["op"] = np.array(OPERATIONS)[rows["seq"] % len(OPERATIONS)]
    rows["step"], rows["attempt"] = step, 1
    rows["start"] = number * 20_000 + chance.integers(0, 1_000_000, count)
    rows["due"] = rows["start"] - chance.integers(1_000, 100_000, count)
    rows["end"] = rows["start"] + chance.lognormal(17, 0.5, count).astype(np.int64)
    failed = chance.random(count) < 1e-4
    rows["status"], rows["outcome"] = np.where(failed, 500, 200), np.where(failed, 10, 0)
    rows["sent"], rows["received"] = chance.integers(300, 900, count), 180
    return rows[np.argsort(rows["end"])]


def write(path: Path, say: Say) -> float:
    """Write a result, and return the seconds that its writer took."""
    plan = Plan(runs=(RUNS,) * STEPS, repeats=1)
    chance = np.random.default_rng(1)
    steps = np.zeros(STEPS, TABLES["steps"])
    seconds = 0.0
    each = ROWS // STEPS
    with ResultWriter(path, plan.to_toml(), {}) as writer:
        for step in range(STEPS):
            say(f"step {step + 1} of {STEPS}")
            for first in range(0, each, PIECE):
                rows = piece(step, first, min(PIECE, each - first), chance)
                began = perf_counter()
                writer.append(rows)
                seconds += perf_counter() - began
            for name, value in {
                "step": step,
                "size": RUNS,
                "began": 1.7e9 + 100 * step,
                "first_done": 10**10,
                "last_done": 3 * 10**10,
                "attempts": each,
                "runs_finished": RUNS,
                "runs_begun": RUNS,
            }.items():
                steps[name][step] = value
        began = perf_counter()
        writer.finish({"steps": steps}, [], complete=True)
        return seconds + perf_counter() - began


def measure(folder: Path, say: Say) -> Finding:
    """Write once and summarise once: ten million of anything vary little."""
    path = folder / "result.h5"
    written = write(path, say)
    say("summarising")
    began = perf_counter()
    summary(path)
    summarised = perf_counter() - began
    size = path.stat().st_size
    return Finding(
        question=f"How long do {ROWS:,} attempts take to be written to a result, and to be summarised?",
        columns=["", "seconds", "rows/s"],
        rows=[
            ["written", f"{written:.2f}", f"{ROWS / written:,.0f}"],
            ["summarised", f"{summarised:.2f}", f"{ROWS / summarised:,.0f}"],
        ],
        goals=[at_most("written", written, 10.0, " s"), at_most("summarised", summarised, 5.0, " s")],
        rounds={"written s": [written], "summarised s": [summarised], "bytes per row": [size / ROWS]},
        notes=[f"the file has {size / 1e6:,.0f} MB, {size / ROWS:.1f} bytes for a row of {RECORD.itemsize}"],
    )
