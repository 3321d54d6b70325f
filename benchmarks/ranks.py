"""What ranks cost: start-up, memory, words among them, clocks, gathering, and a job of theirs that talks to nobody.

python -m benchmarks.ranks FOLDER [ROWS], under mpiexec: be one of the ranks, which hand over so many rows each at the
end; rank 0 tells what it was like as JSON.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.finding import Finding, NotMeasuredError, at_most
from benchmarks.machine import ROOT
from benchmarks.rounds import Say
from hpcstress.folder import RunFolder
from hpcstress.job import run_job
from hpcstress.launcher import seconds_since_start
from hpcstress.plan import Plan
from hpcstress.progress import Progress
from hpcstress.ranks import World, world
from hpcstress.record import RECORD
from hpcstress.result import Result, ResultWriter

RANKS = (1, 16, 32, 64)
MB = 1e6

# A rank's rows in the first gathering, and in the second, which must not need more memory of rank 0.
_ROWS = (10_000, 50_000)
_PIECE = 1 << 16
_WORDS = 20
_PATIENCE_SECONDS = 400.0
# Ranks that share one machine talk over loopback and listen nowhere else.
_LOCAL = {
    "MPIR_CVAR_CH4_NETMOD": "ofi",
    "FI_PROVIDER": "tcp",
    "FI_TCP_IFACE": "lo",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
# A user on each rank, who waits for answers of 20 ms, or thinks: there is time to notice who is late.
_PLAN = {
    "client": "null",
    "workload": "log-batch",
    "duration": 10,
    "think_time": 0.1,
    "null_delay": 0.02,
    "repeats": 1,
    "warmup": 0,
    "sleep_time": 0,
}


def measure(folder: Path, say: Say) -> Finding:
    """Start worlds of several sizes on this machine's cores, one after the other."""
    told: dict[int, dict[str, float]] = {}
    for ranks in RANKS:
        say(f"{ranks} ranks")
        told[ranks] = play(ranks, folder / str(ranks))
    columns = {
        "first request s": ("first_request", 1.0),
        "CPU s to join": ("cpu", 1.0),
        "PSS MB": ("pss", 1e-6),
        "tell µs/rank": ("tell", 1e6),
        "collect µs/rank": ("collect", 1e6),
        "beat µs": ("beat", 1e6),
        "same clock ms/rank": ("offset", 1e3),
        "own clocks ms/rank": ("clocks", 1e3),
        "their error µs": ("clock_error", 1e6),
        "first empty gather ms/rank": ("gather_first", 1e3),
        "another ms/rank": ("gather_nothing", 1e3),
        "rows/s": ("rows_per_second", 1.0),
        "rank 0 grows MB": ("growth", 1e-6),
        "lag p99 ms": ("lag_p99", 1e3),
    }
    return Finding(
        question="What does a rank cost, and what do many cost rank 0?",
        columns=["ranks", *columns],
        rows=[
            [f"{ranks}", *(f"{found[name] * factor:,.3g}" for name, factor in columns.values())]
            for ranks, found in told.items()
        ],
        goals=[
            at_most("memory of a rank (proportional share, 16 ranks)", told[16]["pss"] / MB, 45, " MB"),
            at_most("loop's lateness p99 while 32 ranks report to rank 0", told[32]["lag_p99"] * 1e3, 2, " ms"),
            at_most("what rank 0 grows by for five times the rows", told[64]["growth"] / MB, 20, " MB"),
        ],
        rounds={f"{name}, {ranks} ranks": [value] for ranks, found in told.items() for name, value in found.items()},
        notes=[
            "first request: from the start of mpiexec to the first request of any rank, a job's preparations included",
            "same clock: that of one kernel, handed over by one rank; own clocks: as if each had one, by ping-pong",
            f"rows/s: {_ROWS[1]:,} rows of each rank into the HDF5 file of rank 0",
            "lag: of the rank that is latest, while each has a user that waits for answers of 20 ms and thinks",
        ],
    )


def play(ranks: int, folder: Path) -> dict[str, float]:
    """Start so many ranks, and return what they found, in seconds and bytes."""
    mpiexec = Path(sys.prefix, "bin", "mpiexec")
    if not mpiexec.exists():
        raise NotMeasuredError(f"There is no {mpiexec}: pip install 'hpcstress[mpich]'.")
    folder.mkdir()
    command = [str(mpiexec), "-n", str(ranks), sys.executable, "-m", "benchmarks.ranks", str(folder)]
    began = time.time()
    try:
        done = subprocess.run(
            ["setpriv", "--pdeathsig", "TERM", *command],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=os.environ | _LOCAL,
            timeout=_PATIENCE_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise NotMeasuredError(f"{ranks} ranks took longer than {_PATIENCE_SECONDS:g} s.") from None
    if done.returncode:
        raise NotMeasuredError(f"{ranks} ranks ended with {done.returncode}: {done.stderr.strip()[-200:]}")
    found: dict[str, float] = json.loads(done.stdout)
    with Result(folder / "job" / "result.h5") as result:
        [step] = result.table("steps")
        health = result.table("health")
    return found | {
        "first_request": float(step["began"]) + float(step["first_start"]) / 1e9 - began,
        "lag_p99": float(health["lag_p99_ns"].max()) / 1e9,
    }


def main(folder: Path, many: int = _ROWS[1]) -> None:
    """Be one rank, with many rows in the second gathering."""
    with world() as ranks:
        found = {"joined": seconds_since_start(), "cpu": time.process_time(), "size": float(ranks.size)}
        others = max(1, ranks.size - 1)
        _together(ranks)
        found["tell"] = _timed(lambda: [ranks.tell(0) for _ in range(_WORDS)]) / _WORDS / others
        _together(ranks)
        found["collect"] = _timed(lambda: [ranks.collect(0) for _ in range(_WORDS)]) / _WORDS / others
        _together(ranks)
        fresh = ranks.anew()
        found["beat"] = _timed(lambda: _beat(fresh)) / _WORDS / others
        _together(ranks)
        found["offset"] = _timed(ranks.offset) / others
        empty = [_gather_nothing(ranks) / others for _ in range(_WORDS)]
        found["gather_first"], found["gather_nothing"] = empty[0], float(np.median(empty))
        plan = Plan(users=(ranks.size,), **_PLAN)  # type: ignore[arg-type]
        run_job(plan, ranks, RunFolder(folder / "job"), {}, Progress(), found["joined"])
        found["pss"] = _proportional_memory()
        found["clocks"], found["clock_error"] = _ping_pong(ranks)
        found["clocks"] /= others
        sizes = [_gather(ranks, folder, rows) for rows in (_ROWS[0], many)]
        found["rows_per_second"] = many * ranks.size / sizes[1][0]
        found["growth"] = sizes[1][1] - sizes[0][1]
        everybody = ranks.collect(found)
        if ranks.rank == 0:
            for name in ("joined", "cpu", "pss"):
                found[name] = sum(told[name] for told in everybody) / ranks.size
            found["clock_error"] = max(told["clock_error"] for told in everybody)
            print(json.dumps(found))


def _together(ranks: World) -> None:
    ranks.collect(None)
    ranks.tell(0)


def _beat(ranks: World) -> None:
    """Let every rank tell rank 0 some times how far it is, until rank 0 has heard it all."""
    heard: dict[int, Any] = {}
    for number in range(_WORDS):
        heard = ranks.beat(number)
    while ranks.rank == 0 and heard != dict.fromkeys(range(ranks.size), _WORDS - 1):
        heard = ranks.beat(_WORDS - 1)


def _ping_pong(ranks: World) -> tuple[float, float]:
    """Measure clocks as if each rank had its own; return the seconds until all are done, and this one's error."""
    # No rank of a job has this in its memory, which has been measured before.
    from unittest.mock import patch

    fresh = ranks.anew()
    with patch("hpcstress.ranks.clock_name", lambda: f"{ranks.rank}"):
        _together(ranks)
        began = time.monotonic()
        measured = fresh.offset()
        _together(ranks)
    return time.monotonic() - began, measured.error_ns / 1e9


def _gather_nothing(ranks: World) -> float:
    _together(ranks)
    return _timed(lambda: ranks.gather_rows(iter(()), _drop))


def _timed(act: Callable[[], object]) -> float:
    began = time.monotonic()
    act()
    return time.monotonic() - began


def _drop(rows: np.ndarray[Any, Any]) -> None:
    del rows


def _gather(ranks: World, folder: Path, rows: int) -> tuple[float, float]:
    """Gather so many rows of each rank into a result; return the seconds, and rank 0's largest size so far."""

    def mine() -> Iterator[np.ndarray[Any, Any]]:
        random = np.random.default_rng(ranks.rank)
        for first in range(0, rows, _PIECE):
            piece = np.zeros(min(_PIECE, rows - first), RECORD)
            piece["start"] = np.arange(first, first + len(piece)) * 1_000_000 + random.integers(0, 1 << 20, len(piece))
            piece["end"] = piece["start"] + random.integers(0, 1 << 24, len(piece))
            piece["rank"] = ranks.rank
            yield piece

    _together(ranks)
    if ranks.rank:
        return _timed(lambda: ranks.gather_rows(mine(), _drop)), 0.0
    with ResultWriter(folder / f"{rows}.h5", "", {}) as writer:
        seconds = _timed(lambda: ranks.gather_rows(mine(), writer.append))
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def _proportional_memory() -> float:
    lines = Path("/proc/self/smaps_rollup").read_text("ascii").splitlines()
    return next(float(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
