"""What became of a step: counts and instants, added up piece by piece while the rows pass by."""

from __future__ import annotations

from typing import Any

import numpy as np

from hpcstress.record import OPTIONAL, Operation, Outcome
from hpcstress.result import TABLES
from hpcstress.schedule import Step

Rows = np.ndarray[Any, np.dtype[Any]]


class StepSummary:
    """Add up the attempts of one step, in any order and in any pieces."""

    def __init__(self, step: Step, began: float) -> None:
        self._step = step
        self._began = began
        self._first_start: int | None = None
        self._done: dict[int, int] = {}
        self._attempts = 0
        self._failed = 0
        self._runs_begun = 0

    def add(self, rows: Rows) -> None:
        """Add attempts of this step; whole calls of MLflow's client are no attempts, and left out."""
        rows = rows[rows["attempt"] > 0]
        if not len(rows):
            return
        first = int(rows["start"].min())
        self._first_start = first if self._first_start is None else min(first, self._first_start)
        ranks, places = np.unique(rows["rank"], return_inverse=True)
        ends = np.full(len(ranks), np.iinfo(np.int64).min)
        np.maximum.at(ends, places, rows["end"])
        for rank, end in zip(ranks.tolist(), ends.tolist(), strict=True):
            self._done[rank] = max(end, self._done.get(rank, end))
        good = rows["outcome"] == Outcome.ok
        self._attempts += len(rows)
        self._runs_begun += int(np.count_nonzero(rows["seq"] == 0))
        self._failed += int(np.count_nonzero(~good))

    def row(self, finished: int) -> Rows:
        """Return the row of the result's table; `finished` runs came to their end. Instants that were not are -1."""
        done = self._done.values()
        return np.array(
            [
                (
                    self._step.number,
                    self._step.repeat,
                    self._step.size,
                    self._began,
                    -1 if self._first_start is None else self._first_start,
                    min(done, default=-1),
                    max(done, default=-1),
                    self._attempts,
                    self._failed,
                    finished,
                    self._runs_begun,
                    self._step.variation.encode(),
                )
            ],
            TABLES["steps"],
        )


class Ends:
    """Count the runs of one step that came to their end, from the rows of one rank after the other, each in order.

    That is a run whose last attempt went well, and which has finished every MLflow run that it created; unless its
    workload leaves them open. The ranks of a job know better, but not where it was cut off.
    """

    def __init__(self, *, left_open: bool) -> None:
        self._left_open = left_open
        self._pieces: list[tuple[Rows, Rows, Rows]] = []

    def add(self, rows: Rows) -> None:
        """Add attempts of this step; whole calls of MLflow's client are no attempts, and left out."""
        rows = rows[rows["attempt"] > 0]
        lacking = (rows["outcome"] == Outcome.not_supported) & np.isin(rows["op"], [*OPTIONAL])
        good = ((rows["outcome"] == Outcome.ok) | lacking) & (rows["op"] != Operation.connect)
        made = (rows["op"] == Operation.create_run).astype(np.int8) - (rows["op"] == Operation.finish_run)
        self._pieces.append((rows["run"].copy(), good, np.where(good, made, 0).astype(np.int8)))

    def count(self) -> int:
        """Return how many runs came to their end."""
        if not self._pieces:
            return 0
        run, good, made = (np.concatenate(parts) for parts in zip(*self._pieces, strict=True))
        # Of several the first place is told: looked at from the end, that is the last attempt.
        _, last, number = np.unique(run[::-1], return_index=True, return_inverse=True)
        closed = np.bincount(number, made[::-1], len(last)) == 0
        return int(np.count_nonzero(good[::-1][last] & (closed | self._left_open)))
