"""mantik's three tables: how long parameters, artifacts and parallel runs take, each method on its own.

As there, a duration is that of a whole MLflow run, from before it is created until after it is finished; of parallel
runs, that of all of them. Three things differ. A failure is kept as what it is: `succeeded` is False also where it was
always True there, and the duration is divided by what had been logged until then, not by what was still to come. The
duration per parameter of parallel runs is divided by all parameters that they logged, and not by the number of runs.
Files have the size that they have, and not the one that their folder's name says.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import isnan
from typing import Any, NamedTuple

import numpy as np

from analysis.frame import Columns, Frame
from analysis.percentiles import Values
from analysis.statistics import failures
from analysis.tables import Row
from hpcstress.record import Operation, Outcome

WORKLOADS = ("parameters", "artifacts", "parallel-runs")

# In the order in which a run takes them in turn.
_METHODS = {"parameters": ("log_param", "log_params", "log_batch"), "artifacts": ("log_artifact", "log_artifacts")}
_LOGGING = {"log_param": Operation.log_param, "log_params": Operation.log_params, "log_batch": Operation.log_batch}
_PARAMS_PER_REQUEST = 100
_MB = 1e6


class Timing(NamedTuple):
    """Hold how long one measurement took, in seconds.

    `amount` is what was to be logged: parameters, megabytes, or runs. `logged` counts the parameters or megabytes that
    the server acknowledged, in so many `files`.
    """

    amount: float
    method: str
    duration: float
    logged: float
    files: int
    succeeded: bool

    @property
    def per_unit(self) -> float:
        """Return the duration per parameter or megabyte; nan where nothing was logged."""
        return self.duration / self.logged if self.logged else float("nan")

    @property
    def per_file(self) -> float:
        """Return the duration per file; nan where no file was logged."""
        return self.duration / self.files if self.files else float("nan")


def timings(frame: Frame) -> list[Timing]:
    """Return all measurements of a result whose workload is one of `WORKLOADS`, in the order of its steps."""
    workload = str(frame.plan["workload"])
    if workload == "artifacts":
        frame = frame.widened("sent")
    measured = _of_all_runs if workload == "parallel-runs" else _of_each_run
    return [
        timing
        for row, attempts in frame.by_step()
        if len(attempts["op"])
        for timing in measured(frame, row, attempts, workload)
    ]


def table(workload: str, timed: Iterable[Timing]) -> list[Row]:
    """Return the rows of the CSV file of a workload, with the columns that it has there."""
    if workload == "artifacts":
        return [
            {
                "total size [MB]": _plain(timing.amount),
                "method": timing.method,
                "duration": timing.duration,
                "duration per MB": _known(timing.per_unit),
                "duration per file": _known(timing.per_file),
                "succeeded": timing.succeeded,
            }
            for timing in timed
        ]
    return [
        {
            "# params" if workload == "parameters" else "# parallel runs": _plain(timing.amount),
            "method": timing.method,
            "duration": timing.duration,
            "duration per param": _known(timing.per_unit),
            "succeeded": timing.succeeded,
        }
        for timing in timed
    ]


def _known(duration: float) -> float | None:
    return None if isnan(duration) else duration


def _plain(amount: float) -> float | int:
    return int(amount) if amount == int(amount) else amount


def _of_all_runs(frame: Frame, row: Any, attempts: Columns, workload: str) -> Iterator[Timing]:
    del workload
    params = int(frame.option("params", row["variation"].decode()))
    logging = (attempts["op"] == Operation.log_params) & (attempts["outcome"] == Outcome.ok)
    requests = np.unique(attempts["run"][logging], return_counts=True)[1]
    files = np.count_nonzero((attempts["op"] == Operation.log_artifact) & (attempts["outcome"] == Outcome.ok))
    end = row["last_done"] if row["last_done"] >= 0 else attempts["end"].max()
    yield Timing(
        amount=int(row["size"]),
        method="log_params",
        duration=float(end) / 1e9,
        logged=float(np.minimum(params, _PARAMS_PER_REQUEST * requests).sum()),
        files=int(files),
        succeeded=bool(row["runs_finished"] >= row["size"]),
    )


def _of_each_run(frame: Frame, row: Any, attempts: Columns, workload: str) -> Iterator[Timing]:
    """Yield a timing for every MLflow run: a run of ours creates one for each of its methods."""
    variation = row["variation"].decode()
    order = np.lexsort((attempts["seq"], attempts["run"]))
    rows = {name: values[order] for name, values in attempts.items()}
    bad = failures(rows)
    begins = _begins(rows)
    ends = np.append(begins[1:], len(order)) - 1
    durations = np.maximum.reduceat(rows["end"], begins) - np.minimum.reduceat(rows["start"], begins)
    method, part, run = frame.option("method", variation) or "all", 0, -1
    for place, (first, last) in enumerate(zip(begins, ends, strict=True)):
        part = part + 1 if rows["run"][first] == run else 0
        run = rows["run"][first]
        chosen = _METHODS[workload][part % len(_METHODS[workload])] if method == "all" else str(method)
        amount, logged, files = _logged(frame, variation, rows, slice(first, last + 1), chosen)
        succeeded = bool(not bad[last] and rows["op"][last] == Operation.finish_run)
        yield Timing(amount, chosen, float(durations[place]) / 1e9, amount if succeeded else logged, files, succeeded)


def _begins(rows: Columns) -> Values:
    """Return where the rows of each MLflow run begin: where a run of ours does, or creates another one."""
    run = np.concatenate([[True], rows["run"][1:] != rows["run"][:-1]])
    create = rows["op"] == Operation.create_run
    # One that failed may be sent again; and what comes before a run's first one, a connection, belongs to it.
    created = create & (run | np.concatenate([[True], ~create[:-1]]))
    number = np.cumsum(created)
    before = np.maximum.accumulate(np.where(run, number - created, 0))
    begins: Values = np.flatnonzero(run | (created & (number - before > 1)))
    return begins


def _logged(frame: Frame, variation: str, rows: Columns, chosen: slice, method: str) -> tuple[float, float, int]:
    """Return how much was to be logged, how much was, and in how many files."""
    good = rows["outcome"][chosen] == Outcome.ok
    if method in _LOGGING:
        params = int(frame.option("params", variation))
        requests = int(np.count_nonzero(good & (rows["op"][chosen] == _LOGGING[method])))
        return params, min(params, requests * (1 if method == "log_param" else _PARAMS_PER_REQUEST)), 0
    upload = rows["op"][chosen] == Operation.log_artifact
    files = int(np.count_nonzero(good & upload))
    if frame.option("artifact_folder", variation):
        # Nobody but the records knows how large a user's own files were; the heads of requests are a few hundred bytes.
        sent = float(rows["sent"][chosen][good & upload].sum()) / _MB
        return round(sent, 3), sent, files
    size = int(frame.option("artifact_size", variation)) / _MB
    return size * int(frame.option("artifacts", variation)), size * files, files
