"""Servers that are compared, each with its rounds: one result each, read once, of which the numbers stay."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from analysis.frame import OPERATIONS, Frame, option_of, read
from analysis.percentiles import Sample, merge
from analysis.published.labels import server_label
from analysis.statistics import OperationStatistics, Statistics, StepStatistics, by_rung, measure, run_spans
from analysis.units import plain
from analysis.verdict import measurement
from hpcstress.errors import UsageRefusal
from hpcstress.plan import USUAL_SERVER, Rung
from hpcstress.quantity import Scalar
from hpcstress.rounds import find, is_comparison

_RESULT = "result.h5"
_LONGEST_TEXT = 1000
# A picture cuts what has more than 48 signs (`style.text`), and there may be a number at the end.
_LONGEST_NAME = 44


@dataclass(frozen=True)
class Round:
    """Hold what one round of one server gave. `number` is None where nobody knows which rounds belong together."""

    number: int | None
    path: Path
    users: bool
    plan: Mapping[str, Scalar]
    facts: Mapping[str, Any]
    complete: bool
    notes: tuple[str, ...]
    findings: tuple[str, ...]
    statistics: Statistics
    run_durations: Mapping[Rung, float]
    """The mean over the runs of each rung, in seconds."""

    @property
    def began(self) -> float:
        """Return when the first step began, in seconds since 1970; nan where nobody knows."""
        return min((step.began for step in self.statistics.steps), default=math.nan)

    def steps(self, rung: Rung) -> tuple[StepStatistics, ...]:
        """Return the repeats of a rung."""
        return by_rung(self.statistics.steps, [rung])[rung]

    def operation(self, name: str, rung: Rung) -> OperationStatistics | None:
        """Return what an operation gave on a rung, None where it was not asked for."""
        rows = (row for row in self.statistics.operations if row.operation == name and row.rung == rung)
        return next(rows, None)

    @property
    def rungs(self) -> tuple[Rung, ...]:
        """Return the rungs that were played."""
        return self.statistics.climb.rungs

    def option(self, name: str, variation: str = "") -> Any:
        """Return an option of the plan as it is on the rungs of a variation; None of one that the plan has not."""
        return option_of(self.plan, name, variation)

    def throughput(self, rung: Rung) -> float | None:
        """Return the good answers per second of all repeats of a rung together; None where nobody knows."""
        steps = [step for step in self.steps(rung) if math.isfinite(step.requests_per_second)]
        seconds = sum(step.load_seconds for step in steps)
        return sum(step.requests_per_second * step.load_seconds for step in steps) / seconds if seconds else None


@dataclass(frozen=True)
class Rival:
    """Hold one server, by a name that no other has, and its rounds."""

    name: str
    rounds: tuple[Round, ...]

    @property
    def lacking(self) -> tuple[str, ...]:
        """Return the operations that the server does not have, so that its runs leave them out."""
        return tuple(sorted({name for one in self.rounds for step in one.statistics.steps for name in step.lacking}))

    def together(self, rungs: Collection[Rung]) -> Statistics:
        """Return the statistics of some rungs as if all rounds were repeats of one job."""
        steps = tuple(step for one in self.rounds for step in one.statistics.steps if step.rung in rungs)
        parts: dict[tuple[Rung, int], list[Sample]] = {}
        rows: dict[tuple[Rung, str], list[tuple[OperationStatistics, float]]] = {}
        for one in self.rounds:
            for key, sample in one.statistics.samples.items():
                if key[0] in rungs:
                    parts.setdefault(key, []).append(sample)
            for row in one.statistics.operations:
                own = sum(step.load_seconds for step in one.steps(row.rung))
                rows.setdefault((row.rung, row.operation), []).append((row, own))
        samples = {key: merge(of) for key, of in parts.items()}
        seconds = {rung: sum(step.load_seconds for step in steps if step.rung == rung) for rung in rungs}
        operations = []
        for (rung, code), sample in samples.items():
            of, load = rows[rung, OPERATIONS[code]], seconds[rung]
            operations.append(
                replace(
                    of[0][0],
                    attempts=len(sample),
                    good=sum(row.good for row, _ in of),
                    failed=sum(row.failed for row, _ in of),
                    per_second=sum(row.per_second * own for row, own in of) / load if load else math.nan,
                    answers_per_second=sum(row.answers_per_second * own for row, own in of) / load
                    if load
                    else math.nan,
                    mean=sample.mean(),
                    service=sample.percentiles(),
                )
            )
        return Statistics(steps, tuple(operations), samples)


def rivals_of(paths: Sequence[Path]) -> list[Rival]:
    """Return the servers of results, of job folders and of folders of `hpcstress compare`, with all their rounds.

    Results of one server are its rounds. Where all are of one server, each path is a rival of its own.
    """
    found = [(path, *entry) for path in paths for entry in _results(path)]
    if not found:
        raise UsageRefusal("There is nothing to compare: give at least two results, or the folder of a comparison.")
    for result, times in Counter(result.resolve() for *_, result in found).items():
        if times > 1:
            raise UsageRefusal(f"{result} is given twice: a result compared with itself says nothing.")
    read_in = [
        (given, *_read(name, number if len(paths) == 1 else None, result)) for given, name, number, result in found
    ]
    if len({name for _, name, _ in read_in}) == 1:
        read_in = [(given, _short(given, paths), one) for given, _, one in read_in]
    rounds: dict[str, list[Round]] = {}
    for _, name, one in read_in:
        rounds.setdefault(name, []).append(one)
    if len(rounds) < 2:
        raise UsageRefusal("There is one server only: give results of at least two, or two paths of one.")
    return [Rival(name, tuple(of)) for name, of in zip(told_apart(rounds), rounds.values(), strict=True)]


def told_apart(names: Iterable[str]) -> list[str]:
    """Return names as one line each, no two of them alike, of which a picture shows all.

    Long ones lose their middle: servers differ in their first words, in their last options, or by a number at the end.
    """
    found: list[str] = []
    for name in names:
        line = plain(name, _LONGEST_TEXT)
        short = told = line if len(line) <= _LONGEST_NAME else f"{line[:20]}…{line[-23:]}"
        number = 1
        while told in found:
            number += 1
            told = f"{short} #{number}"
        found.append(told)
    return found


def _results(path: Path) -> list[tuple[str, int | None, Path]]:
    if is_comparison(path):
        return [(done.turn.name, done.turn.round, done.result) for done in find(path).done()]
    if path.is_dir() and not (path / _RESULT).exists():
        raise UsageRefusal(f"{path} holds neither a {_RESULT} nor a comparison: give the path of a result.")
    return [("", None, path / _RESULT if path.is_dir() else path)]


def _name(frame: Frame) -> str:
    """Return the text by which a server was started, else what it is called."""
    started = isinstance(frame.facts.get("server"), Mapping)
    return str(frame.plan.get("server") or USUAL_SERVER) if started else server_label(frame.facts)


def _short(path: Path, among: Sequence[Path]) -> str:
    """Return the end of a path that tells it apart from others."""
    for parts in range(1, len(path.parts) + 1):
        ends = Counter("/".join(other.parts[-parts:]) for other in among)
        if ends["/".join(path.parts[-parts:])] == 1:
            return "/".join(path.parts[-parts:])
    return str(path)


def _read(name: str, number: int | None, path: Path) -> tuple[str, Round]:
    frame = read(path)
    return name or _name(frame), round_of(frame, number)


def round_of(frame: Frame, number: int | None = None) -> Round:
    """Return what stays of a result: its numbers, and no attempts."""
    statistics = measure(frame)
    durations: dict[Rung, list[np.ndarray[Any, Any]]] = {}
    for row, attempts in frame.by_step():
        due, _, end = run_spans(attempts)
        rung = Rung(int(row["size"]), row["variation"].decode("utf-8", "replace"))
        durations.setdefault(rung, []).append(end - due)
    means = {rung: np.concatenate(parts) for rung, parts in durations.items()}
    return Round(
        number=number,
        path=frame.path,
        users=frame.users,
        plan=frame.plan,
        facts=frame.facts,
        complete=frame.complete,
        notes=frame.notes,
        findings=tuple(dict.fromkeys(finding.value for finding in measurement(frame, statistics.steps))),
        statistics=statistics,
        run_durations={rung: float(values.mean()) / 1e9 for rung, values in means.items() if len(values)},
    )
