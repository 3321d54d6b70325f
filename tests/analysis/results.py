"""Results as hpcstress writes them, made up from a seed: several steps, repeats and ranks, and servers that fail."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from analysis.frame import NEEDED, Frame
from hpcstress.plan import Plan
from hpcstress.record import RECORD, Operation, Outcome
from hpcstress.result import TABLES, ResultWriter

BEGAN = 1_760_000_000.0
MS = 1_000_000
SECOND = 1_000_000_000

# What `parallel-runs` does, and how long each takes on an idle server, in seconds.
WORKLOAD = (
    (Operation.connect, 0.0004),
    (Operation.create_run, 0.018),
    (Operation.log_params, 0.030),
    (Operation.log_metrics, 0.022),
    (Operation.get_run, 0.006),
    (Operation.log_artifact, 0.011),
    (Operation.get_run, 0.006),
    (Operation.finish_run, 0.014),
)


@dataclass(frozen=True)
class Fault:
    """Let a share of the runs of a size fail at an operation, after some seconds, in some of the repeats."""

    size: int
    operation: Operation
    outcome: Outcome
    share: float
    after: float
    repeats: tuple[int, ...] = (0, 1, 2)


@dataclass(frozen=True)
class Outage:
    """Let the server die within the steps of a size, and come back."""

    size: int
    begin: float
    end: float


def rows(attempts: Iterable[dict[str, Any]]) -> np.ndarray:
    """Return attempts given field by field; by default each is a good create_run of 10 ms."""
    default = {"op": Operation.create_run, "end": 10 * MS, "status": 200, "attempt": 1, "seq": 1}
    made = []
    for fields in attempts:
        row = np.zeros((), RECORD)
        for name, value in {**default, **fields}.items():
            row[name] = value
        made.append(row)
    return np.array(made, RECORD) if made else np.zeros(0, RECORD)


def table(name: str, records: Iterable[dict[str, Any]]) -> np.ndarray:
    """Return rows of one of the result's tables, given field by field."""
    records = list(records)
    made = np.zeros(len(records), TABLES[name])
    for row, fields in zip(made, records, strict=True):
        for field, value in fields.items():
            row[field] = value
    return made


def steps_of(attempts: np.ndarray, sizes: Sequence[int], repeats: Sequence[int] | None = None) -> np.ndarray:
    """Return the table of steps that belongs to attempts; the steps follow each other a second apart."""
    records, began = [], BEGAN
    for number, size in enumerate(sizes):
        mine = attempts[attempts["step"] == number]
        good = mine["outcome"] == Outcome.ok
        last_done = int(mine["end"].max(initial=0))
        records.append(
            {
                "step": number,
                "repeat": repeats[number] if repeats else 0,
                "size": size,
                "began": began,
                "first_start": int(mine["start"].min(initial=0)),
                "first_done": last_done * 3 // 4,
                "last_done": last_done,
                "attempts": len(mine),
                "failed": np.count_nonzero(~good),
                "runs_finished": max(0, size - len(np.unique(mine["run"][~good]))),
            }
        )
        began += last_done / SECOND + 1
    return table("steps", records)


def frame_of(attempts: np.ndarray, steps: np.ndarray, **parts: Any) -> Frame:
    """Return what `read` would return of a file with these attempts and steps, without a file."""
    empty = {name: table(name, []) for name in ("ranks", "health", "server", "events", "prometheus", "audit")}
    return Frame(
        **{
            "path": Path("result.h5"),
            "plan": Plan().as_mapping(),
            "facts": {},
            "notes": (),
            "complete": True,
            "objective": 1.0,
            "length": len(attempts),
            "attempts": {name: np.ascontiguousarray(attempts[name]) for name in NEEDED},
            "steps": steps,
            **empty,
            **parts,
        }
    )


def write(
    path: Path,
    attempts: np.ndarray,
    tables: dict[str, np.ndarray],
    *,
    plan: str | None = None,
    facts: dict[str, object] | None = None,
    notes: Sequence[str] = (),
    complete: bool = True,
) -> Path:
    """Write a result file of these rows."""
    with ResultWriter(path, Plan().to_toml() if plan is None else plan, facts or {}) as writer:
        writer.append(attempts)
        writer.finish(tables, notes, complete)
    return path


def played(
    rng: np.random.Generator,
    number: int,
    size: int,
    repeat: int,
    ranks: int,
    *,
    capacity: float,
    spread: float,
    faults: Sequence[Fault],
    outage: Outage | None,
    speed: float = 1.0,
) -> np.ndarray:
    """Return the attempts of one step against a server that slows down with the number of runs per `capacity`."""
    due = np.sort(rng.uniform(0, spread, size)) if spread else np.zeros(size)
    now, alive = due.copy(), np.ones(size, bool)
    made = []
    for seq, (operation, usual) in enumerate(WORKLOAD):
        late = rng.exponential(40e-6, size)
        service = usual / speed * (1 + size / capacity) * rng.lognormal(0, 0.35, size)
        start, end, outcome = now + late, now + late + service, np.zeros(size, int)
        for fault in faults:
            if fault.size == size and fault.operation is operation and repeat in fault.repeats:
                hit = rng.random(size) < fault.share
                end = np.where(hit, start + fault.after, end)
                outcome = np.where(hit, int(fault.outcome), outcome)
        if outage and outage.size == size:
            cut = (start < outage.begin) & (end > outage.begin)
            shut = (start >= outage.begin) & (start < outage.end)
            end = np.where(cut, outage.begin + rng.exponential(0.002, size), np.where(shut, start + 0.001, end))
            outcome = np.where(cut, int(Outcome.closed), np.where(shut, int(Outcome.refused), outcome))
        row = np.zeros(size, RECORD)
        row["run"], row["rank"], row["step"], row["seq"] = np.arange(size), np.arange(size) % ranks, number, seq
        row["op"], row["outcome"], row["attempt"] = operation, outcome, 1
        row["status"] = np.where(outcome == Outcome.ok, 200 * (operation != Operation.connect), 0)
        row["due"], row["start"], row["end"] = now * SECOND, start * SECOND, end * SECOND
        row["sent"], row["received"] = rng.integers(200, 4000, size), rng.integers(100, 900, size)
        made.append(row[alive])
        alive &= outcome == Outcome.ok
        now = end
    return np.concatenate(made)


def story(
    path: Path,
    *,
    runs: tuple[int, ...] = (10, 30, 100),
    repeats: int = 2,
    ranks: int = 4,
    capacity: float = 40.0,
    spread: float = 0.0,
    objective: float = 1.0,
    faults: Sequence[Fault] = (),
    outage: Outage | None = None,
    server: bool = True,
    prometheus: np.ndarray | None = None,
    seed: int = 1,
    host: str = "node",
    notes: Sequence[str] = (),
    facts: dict[str, object] | None = None,
    speed: float = 1.0,
    began: float = 0.0,
    **options: Any,
) -> Path:
    """Write the result of a whole job, of a server so many times as fast as usual; the plan may have more options."""
    rng = np.random.default_rng(seed)
    sizes, climbs = runs * repeats, [number // len(runs) for number in range(len(runs) * repeats)]
    attempts = np.concatenate(
        [
            played(
                rng,
                number,
                size,
                climbs[number],
                ranks,
                capacity=capacity,
                spread=spread,
                faults=faults,
                outage=outage,
                speed=speed,
            )
            for number, size in enumerate(sizes)
        ]
    )
    steps = steps_of(attempts, sizes, climbs)
    steps["began"] += began
    wall = steps["last_done"] / SECOND
    tables = {
        "steps": steps,
        "ranks": table(
            "ranks",
            (
                {
                    "rank": rank,
                    "host": f"{host}{rank // 16:04}",
                    "pid": 4000 + rank,
                    "offset_ns": int(rng.integers(-40_000, 40_000)) if rank else 0,
                    "error_ns": int(rng.integers(3_000, 20_000)) if rank else 0,
                    "drift_ppm": float(rng.normal(0, 0.5)) if rank else 0.0,
                    "import_seconds": 0.4,
                    "complete": True,
                }
                for rank in range(ranks)
            ),
        ),
        "health": table(
            "health",
            (
                {
                    "step": step["step"],
                    "rank": rank,
                    "cpu_seconds": 0.02 + 0.0008 * step["size"],
                    "wall_seconds": step["last_done"] / SECOND,
                    "lag_p50_ns": int(rng.integers(60_000, 120_000)),
                    "lag_p99_ns": int(rng.integers(200_000, 700_000)),
                    "lag_max_ns": int(rng.integers(1 * MS, 3 * MS)),
                    "max_rss": 60_000_000,
                    "began_ns": int(rng.integers(20_000, 300_000)),
                    "clock_error_ns": int(rng.integers(3_000, 20_000)),
                }
                for step in steps
                for rank in range(ranks)
            ),
        ),
        "audit": table(
            "audit",
            (
                {"step": step["step"], "checked": step["runs_finished"], "intact": step["runs_finished"]}
                for step in steps
            ),
        ),
    }
    if server:
        tables["server"] = server_use(steps, wall, outage)
    if prometheus is not None:
        tables["prometheus"] = prometheus
    plan = Plan(runs=runs, repeats=repeats, objective=objective, **options).to_toml()
    return write(path, attempts, tables, plan=plan, facts=facts, notes=notes)


def server_use(steps: np.ndarray, wall: np.ndarray, outage: Outage | None) -> np.ndarray:
    """Return what an MLflow server and its database used, a row per second and part."""
    records = []
    spent = {"mlflow": 12.0, "postgres": 2.0}
    for second in range(int(steps["began"][-1] + wall[-1] - BEGAN) + 2):
        time = BEGAN + second - 0.3
        busy = [
            step
            for step, length in zip(steps, wall, strict=True)
            if step["began"] - 0.5 <= time <= step["began"] + length + 0.2
        ]
        for part, cores, processes in (("mlflow", 3.1, 4), ("postgres", 0.8, 2)):
            spent[part] += cores if busy else 0.05
            dead = bool(outage and busy and busy[0]["size"] == outage.size and part == "mlflow")
            rss = (4e8 if dead else 9e8) + second * 4e6 if part == "mlflow" else 2e8
            records.append({"time": time, "part": part, "cpu_seconds": 3.0})
            records += [
                {
                    "time": time,
                    "part": part,
                    "pid": 100 * processes + number,
                    "command": {"mlflow": "python", "postgres": "postgres"}[part],
                    "cpu_seconds": spent[part] / processes,
                    "rss": rss / processes,
                    "threads": 41 if part == "mlflow" else 1,
                    "files": 30 + len(busy) * 10,
                    # Not counted each second.
                    "connections": 5 + len(busy) * 10 if second % 3 else -1,
                }
                for number in range(processes)
            ]
    return table("server", records)


def usual(path: Path, **changes: Any) -> Path:
    """Write the result that most people will see: fine up to 30 runs, a connection pool that breaks at 100."""
    story_of = {
        "faults": (
            Fault(100, Operation.log_params, Outcome.pool_exhausted, 0.12, 30.0),
            Fault(100, Operation.finish_run, Outcome.timeout, 0.02, 2.0),
            Fault(100, Operation.connect, Outcome.refused, 0.01, 0.001),
        ),
        "facts": {
            "hpcstress": "1.0.0",
            "python": "3.11.7",
            "server": {"name": "mlflow", "version": "3.17.2", "started": True},
            "hosts": ["jwb0001", "jwb0002"],
            "slurm": {"SLURM_JOB_ID": "8123456", "SLURM_NTASKS": "4"},
            "started": "2025-10-09T08:53:20Z",
        },
        "notes": ("The server answered 400: QueuePool limit of size 5 overflow 10 reached.",),
    }
    return story(path, **{**story_of, **changes})
