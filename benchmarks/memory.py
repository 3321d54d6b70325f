"""Memory: what one rank needs that holds 10,000 runs at once.

The rank is `python -m hpcstress` with the workload parallel-runs. The server holds every request until all runs wait:
in each operation of the workload all of them are under way at the same time.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from typing import NamedTuple

from benchmarks.finding import Finding, NotMeasuredError, at_most
from benchmarks.machine import GENERATOR, server, use
from benchmarks.rounds import Say
from hpcstress.folder import open_files_limit
from hpcstress.plan import Plan
from hpcstress.result import Result

RUNS = 10_000
# Beside its connections, a process has other files open.
FILES = RUNS + 300

MB = 1e6


class Step(NamedTuple):
    """Hold what a rank felt in its only step; memory in bytes."""

    memory: int
    cpu_seconds: float
    wall_seconds: float


def play(runs: int, folder: Path) -> Step:
    """Run one job of a single step, and read in its result how much memory it had."""
    plan = Plan(runs=(runs,), repeats=1, warmup=0, audit=0)
    job = folder / f"job-{runs}"
    with server("gate", runs) as gate:
        environment = {"MLFLOW_TRACKING_URI": gate.uri, "MLFLOW_EXPERIMENT_ID": "1"}
        words = (*plan.to_argv(), "--output", str(job))
        used = use(GENERATOR, sys.executable, "-m", "hpcstress", *words, environment=environment)
    with Result(job / "result.h5") as result:
        (health,), (step,) = result.table("health"), result.table("steps")
    if step["runs_finished"] != runs:
        raise NotMeasuredError(f"Only {step['runs_finished']} of {runs} runs were finished: {used.output.decode()}")
    # A process inherits the high-water mark of the one that started it: this one has to stay below what it measures.
    if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 >= health["max_rss"]:
        raise NotMeasuredError("This process is larger than the rank: call `python -m benchmarks memory` alone.")
    return Step(int(health["max_rss"]), float(health["cpu_seconds"]), float(health["wall_seconds"]))


def measure(folder: Path, say: Say) -> Finding:
    """Let a rank hold one run, then all of them."""
    if (limit := open_files_limit()) < FILES:
        raise NotMeasuredError(f"This process may open {limit} files, and needs {FILES}: raise `ulimit -n`.")
    steps = {}
    for runs in (1, RUNS):
        say(f"{runs:,} at once")
        steps[runs] = play(runs, folder)
    most = steps[RUNS].memory / MB
    of_each = (steps[RUNS].memory - steps[1].memory) / (RUNS - 1)
    return Finding(
        question=f"How much memory does one rank need that holds {RUNS:,} runs at once?",
        columns=["runs at once", "resident MB", "CPU s", "wall s"],
        rows=[
            [f"{runs:,}", f"{step.memory / MB:.0f}", f"{step.cpu_seconds:.1f}", f"{step.wall_seconds:.1f}"]
            for runs, step in steps.items()
        ],
        goals=[at_most("resident memory", most, 120, " MB")],
        rounds={f"resident MB, {runs} runs": [step.memory / MB] for runs, step in steps.items()},
        notes=[
            "the largest resident size of the process until the end of the step, libraries included",
            f"each further run needs {of_each / 1e3:.1f} kB",
        ],
    )
