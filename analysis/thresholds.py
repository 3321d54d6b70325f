"""Whether a result has kept to its plan's thresholds. All attempts count, failures included, and each step for itself.

What many runs did must not hide what few did, or the other way round: the worst step decides.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from analysis.frame import OPERATIONS, Columns, Frame, read
from analysis.percentiles import Sample
from analysis.statistics import failures, run_spans
from analysis.units import seconds
from hpcstress import thresholds
from hpcstress.record import Operation
from hpcstress.thresholds import DURATIONS, FAILED, Threshold


@dataclass(frozen=True)
class Judgement:
    """Hold what came of one threshold: whether it was kept, and the sentence that says so."""

    kept: bool
    sentence: str


def kept(result: Path | str) -> bool:
    """Tell whether a result has kept to all thresholds of its plan."""
    return all(judgement.kept for judgement in judgements(read(result)))


def judgements(frame: Frame) -> tuple[Judgement, ...]:
    """Return what came of each threshold of a plan."""
    told = thresholds.read(str(frame.plan.get("threshold", "")))
    if not told:
        return ()
    # Each step once, whatever there are of thresholds: a step is what may be large.
    measured: list[list[tuple[int, float]]] = [[] for _ in told]
    for row, attempts in frame.by_step():
        for number, threshold in enumerate(told):
            measured[number] += ((int(row["step"]), value) for value in _measured(threshold, attempts))
    return tuple(_judgement(threshold, values) for threshold, values in zip(told, measured, strict=True))


def _judgement(threshold: Threshold, measured: list[tuple[int, float]]) -> Judgement:
    if not measured:
        return Judgement(kept=False, sentence=f"The threshold {threshold.text} was not kept: there was nothing of it.")
    step, worst = max(measured, key=lambda found: found[1])
    # In whole nanoseconds: as a number of seconds, 43 ms may lie above or below itself.
    limit = round(threshold.limit * 1e9)
    broken = sum(round(value * 1e9) >= limit for _, value in measured)
    told = seconds(worst) if threshold.level is not None else f"{worst:.2%}"
    if not broken:
        return Judgement(kept=True, sentence=f"The threshold {threshold.text} was kept: {told} in the worst step.")
    often = f", and in {broken} of {len(measured)} steps" if broken > 1 else ""
    sentence = f"The threshold {threshold.text} was not kept: {told} in step {step + 1}{often}."
    return Judgement(kept=False, sentence=sentence)


def _measured(threshold: Threshold, attempts: Columns) -> Iterator[float]:
    """Yield what a step has of a threshold's metric, nothing if there was no such thing in it."""
    operation, metric = attempts["op"], threshold.metric
    chosen = operation != Operation.connect
    if metric not in (*DURATIONS, FAILED):
        chosen = operation == OPERATIONS.index(metric)
    if threshold.level is None:
        # A connection that was not made is a failure, too.
        chosen = chosen if metric != FAILED else np.ones_like(chosen)
        if chosen.any():
            yield float(np.mean(failures(attempts)[chosen]))
        return
    if metric == "run_duration":
        due, _, end = run_spans(attempts)
        durations = end - due
    else:
        durations = (attempts["end"] - attempts["due" if metric == "response" else "start"])[chosen]
    if len(durations):
        yield Sample(durations).at(threshold.level)
