"""Results of the workloads of published benchmarks, made up run by run: what each sends, and how long it takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count, product
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w

from hpcstress.plan import Plan
from hpcstress.record import RECORD, Operation, Outcome
from tests.analysis.results import SECOND, server_use, steps_of, table, write

Attempts = list[tuple[Operation, float, Outcome]]
# Says what a run sends, given the options of its step, its number and how many runs or users the step has.
Script = Callable[[dict[str, Any], int, int, np.random.Generator], Iterator[tuple[Any, ...]]]

LATE = 50e-6


def job(
    path: Path,
    script: Script,
    *,
    sizes: tuple[int, ...],
    users: bool = False,
    duration: float = 0.0,
    sweep: str = "",
    repeats: int = 1,
    ranks: int = 2,
    server: bool = True,
    facts: dict[str, Any] | None = None,
    seed: int = 1,
    **options: Any,
) -> Path:
    """Write the result of a job whose runs do what a script says; users go on until the duration is over."""
    rng = np.random.default_rng(seed)
    swept = [(name, values.split(",")) for name, _, values in (part.partition("=") for part in sweep.split())]
    variations = [
        " ".join(words) for words in product(*([f"{name}={value}" for value in values] for name, values in swept))
    ]
    ladder = "users" if users else "runs"
    plan = {**Plan().as_mapping(), ladder: list(sizes), "duration": duration, "sweep": sweep, "repeats": repeats}
    plan |= options
    rungs = list(product(variations, sizes)) * repeats
    attempts, finished = [], []
    for number, (variation, size) in enumerate(rungs):
        of_step = {**plan, **dict(word.split("=") for word in variation.split())}
        made, done = _step(script, of_step, number, size, ranks, users=users, duration=duration, rng=rng)
        attempts.append(made)
        finished.append(done)
    rows = np.concatenate(attempts)
    steps = steps_of(
        rows, [size for _, size in rungs], [number // (len(rungs) // repeats) for number in range(len(rungs))]
    )
    steps["variation"] = [variation.encode() for variation, _ in rungs]
    steps["runs_finished"] = finished
    steps["runs_begun"] = [len(np.unique(made["run"])) for made in attempts]
    tables = {
        "steps": steps,
        "ranks": table("ranks", ({"rank": rank, "host": "node", "complete": True} for rank in range(ranks))),
        "health": table(
            "health",
            (
                {
                    "step": step["step"],
                    "rank": rank,
                    "cpu_seconds": 0.1 * step["last_done"] / SECOND,
                    "wall_seconds": step["last_done"] / SECOND,
                    "lag_p50_ns": 60_000,
                    "lag_p99_ns": 300_000,
                    "max_rss": 60_000_000,
                }
                for step in steps
                for rank in range(ranks)
            ),
        ),
    }
    if server:
        tables["server"] = server_use(steps, steps["last_done"] / SECOND, None)
    return write(path, rows, tables, plan=tomli_w.dumps(plan), facts=facts or server_facts())


def server_facts(name: str = "mlflow", version: str = "3.17.2", database: str = "sqlite") -> dict[str, Any]:
    """Return what a result knows of a server that hpcstress started."""
    return {"server": {"name": name, "version": version, "settings": {"database": database}}}


def _step(
    script: Script,
    options: dict[str, Any],
    number: int,
    size: int,
    ranks: int,
    *,
    users: bool,
    duration: float,
    rng: np.random.Generator,
) -> tuple[np.ndarray, int]:
    made: list[tuple[Any, ...]] = []
    finished = 0
    for place in range(size):
        now = 0.0
        for turn in count():
            run, seq, outcome = place + turn * size, 0, Outcome.ok
            for operation, seconds, *how in script(options, run, size, rng):
                outcome, start = how[0] if how else Outcome.ok, now + LATE
                made.append((run, place % ranks, number, seq, operation, outcome, now, start, start + seconds))
                now, seq = start + seconds, seq + 1
                if outcome is not Outcome.ok and not (len(how) > 1 and how[1]):
                    break
            finished += outcome is Outcome.ok
            if not users or now >= duration:
                break
    rows = np.zeros(len(made), RECORD)
    columns = ("run", "rank", "step", "seq", "op", "outcome", "due", "start", "end")
    for name, values in zip(columns, zip(*made, strict=True), strict=True):
        rows[name] = np.array(values) * SECOND if name in ("due", "start", "end") else values
    rows["attempt"], rows["status"], rows["sent"] = 1, 200, 500
    return rows, finished


def _noise(rng: np.random.Generator, usual: float) -> float:
    return float(usual * rng.lognormal(0, 0.25))


def parameters(options: dict[str, Any], run: int, size: int, rng: np.random.Generator) -> Iterator[tuple[Any, ...]]:
    """Log n parameters by each method, or by one."""
    n = int(options["params"])
    wanted = options.get("method", "all")
    yield Operation.connect, 0.0004
    for method in ("log_param", "log_params", "log_batch"):
        if wanted in ("all", method):
            yield Operation.create_run, _noise(rng, 0.02)
            each = 1 if method == "log_param" else 100
            for first in range(0, n, each):
                yield Operation[method], _noise(rng, 0.008 + 0.0002 * min(each, n - first))
            yield Operation.get_run, _noise(rng, 0.006)
            yield Operation.finish_run, _noise(rng, 0.012)


def failing_parameters(
    options: dict[str, Any], run: int, size: int, rng: np.random.Generator
) -> Iterator[tuple[Any, ...]]:
    """Log parameters, but for the last half of the largest amount, at which the server is gone."""
    n, sent = int(options["params"]), 0
    for operation, seconds, *_ in parameters(options, run, size, rng):
        sent += operation is Operation.log_params
        gone = n >= 1000 and sent > n / 200
        yield operation, seconds, Outcome.closed if gone else Outcome.ok


def artifacts(options: dict[str, Any], run: int, size: int, rng: np.random.Generator) -> Iterator[tuple[Any, ...]]:
    """Upload files by each method."""
    megabytes = float(str(options["artifact_size"]).removesuffix("MB"))
    for speed in (60, 80):
        yield Operation.create_run, _noise(rng, 0.02)
        for _ in range(int(options["artifacts"])):
            yield Operation.log_artifact, _noise(rng, 0.02 + megabytes / speed)
        yield Operation.finish_run, _noise(rng, 0.012)


def parallel_run(options: dict[str, Any], run: int, size: int, rng: np.random.Generator) -> Iterator[tuple[Any, ...]]:
    """Create a run, log 50 parameters and a file; beyond 500 runs at once some are refused."""
    slow = 1 + size / 40
    yield Operation.connect, 0.0004
    yield Operation.create_run, _noise(rng, 0.02 * slow)
    refused = size > 500 and run % 20 == 0
    yield Operation.log_params, _noise(rng, 0.03 * slow), Outcome.pool_exhausted if refused else Outcome.ok
    yield Operation.log_artifact, _noise(rng, 0.1 * slow)
    yield Operation.finish_run, _noise(rng, 0.015 * slow)


def tenants(options: dict[str, Any], run: int, size: int, rng: np.random.Generator) -> Iterator[tuple[Any, ...]]:
    """Train (one user of five) or browse."""
    slow = (1 + size / 30) * (1 + int(options["tenants"]) / 300)
    if run % size < size // 5:
        yield Operation.create_experiment, _noise(rng, 0.03 * slow)
        for _ in range(3):
            yield Operation.create_prompt, _noise(rng, 0.02 * slow)
            yield Operation.create_prompt_version, _noise(rng, 0.025 * slow)
        for _ in range(3):
            yield Operation.create_run, _noise(rng, 0.02 * slow)
            for _ in range(3):
                yield Operation.log_metric, _noise(rng, 0.012 * slow)
            for _ in range(5):
                yield Operation.log_param, _noise(rng, 0.011 * slow)
            failed = slow > 3 and rng.random() < 0.05
            yield (
                Operation.log_artifact,
                0.5 if failed else _noise(rng, 0.03),
                Outcome.gateway if failed else Outcome.ok,
            )
            yield Operation.finish_run, _noise(rng, 0.015 * slow)
        return
    yield (
        Operation.list_workspaces,
        _noise(rng, 0.005),
        Outcome.not_supported if run % size == size - 1 else Outcome.ok,
        True,
    )
    yield Operation.search_prompts, _noise(rng, 0.08 * slow)
    yield Operation.search_experiments, _noise(rng, 0.04 * slow)
    for _ in range(2):
        yield Operation.get_experiment, _noise(rng, 0.008 * slow)
        yield Operation.search_runs, _noise(rng, 0.06 * slow)
        yield Operation.get_run, _noise(rng, 0.01 * slow)
        yield Operation.list_artifacts, _noise(rng, 0.009 * slow)
        yield Operation.download_artifact, _noise(rng, 0.02 * slow)


def batches(options: dict[str, Any], run: int, size: int, rng: np.random.Generator) -> Iterator[tuple[Any, ...]]:
    """Log a few batches."""
    yield Operation.create_run, _noise(rng, 0.02)
    for _ in range(5):
        yield Operation.log_batch, _noise(rng, 0.01 + 0.0004 * (int(options["metrics"]) + int(options["params"])))
    yield Operation.finish_run, _noise(rng, 0.01)


def one(operation: Operation, usual: float, failing: float = 0.0) -> Script:
    """Return a script of one request, of which some fail."""

    def script(options: dict[str, Any], run: int, size: int, rng: np.random.Generator) -> Iterator[tuple[Any, ...]]:
        failed = rng.random() < failing
        yield operation, 0.005 if failed else _noise(rng, usual), Outcome.server_error if failed else Outcome.ok

    return script


def logging(slow: float) -> Script:
    """Return the script of FastTrackML's logging."""

    def script(options: dict[str, Any], run: int, size: int, rng: np.random.Generator) -> Iterator[tuple[Any, ...]]:
        for operation, usual in (
            (Operation.create_run, 0.02),
            (Operation.log_metric, 0.011),
            (Operation.log_40_metrics, 0.03),
            (Operation.log_400_metrics, 0.09),
            (Operation.log_1000_metrics, 0.2),
            (Operation.log_10_params, 0.02),
            (Operation.log_100_params, 0.05),
            (Operation.finish_run, 0.012),
        ):
            yield operation, _noise(rng, slow * usual)

    return script


def retrieval(slow: float) -> Script:
    """Return the script of FastTrackML's retrieval."""

    def script(options: dict[str, Any], run: int, size: int, rng: np.random.Generator) -> Iterator[tuple[Any, ...]]:
        yield Operation.search_runs, _noise(rng, slow * 0.05)
        yield Operation.search_experiments, _noise(rng, slow * 0.03)
        yield Operation.get_metric_history, _noise(rng, slow * 0.02)

    return script


MATRIX: dict[str, Any] = {
    "workload": "tenants",
    "sizes": (5, 10, 20, 50),
    "users": True,
    "duration": 3.0,
    "sweep": "tenants=1,10,100,500",
}
