"""What became of a step: counts and instants, added up piece by piece while the rows pass by."""

from __future__ import annotations

from typing import Any

import numpy as np

from hpcstress.record import Operation, Outcome
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
        self._runs_finished = 0
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
        self._runs_finished += int(np.count_nonzero(good & (rows["op"] == Operation.finish_run)))

    def row(self, finished: int | None = None) -> Rows:
        """Return the row of the result's table; instants are -1 where nothing happened.

        How many runs came to their end only the ranks know; without them, those are counted that said so to the server.
        """
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
                    self._runs_finished if finished is None else finished,
                    self._runs_begun,
                    self._step.variation.encode(),
                )
            ],
            TABLES["steps"],
        )
