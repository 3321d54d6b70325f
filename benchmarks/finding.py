"""What a measurement has found: a table, the goals and whether they held, every number behind them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path


class NotMeasuredError(Exception):
    """Tell in one sentence why something could not be measured here, and what to do."""


@dataclass(frozen=True)
class Goal:
    """Hold what was hoped for and what was found; `held` is None where it was not measured."""

    name: str
    hoped: str
    found: str
    held: bool | None


def at_least(name: str, value: float, bound: float, unit: str = "") -> Goal:
    """Return a goal that a value reaches from above; nan is a value that was not measured."""
    return _goal(name, f"at least {bound:g}{unit}", value, unit, held=value >= bound)


def at_most(name: str, value: float, bound: float, unit: str = "") -> Goal:
    """Return a goal that a value reaches from below; nan is a value that was not measured."""
    return _goal(name, f"at most {bound:g}{unit}", value, unit, held=value <= bound)


def _goal(name: str, hoped: str, value: float, unit: str, *, held: bool) -> Goal:
    if math.isnan(value):
        return Goal(name, hoped, "not measured", None)
    return Goal(name, hoped, f"{value:.3g}{unit}", held)


@dataclass(frozen=True)
class Finding:
    """Hold the answer to one question; `rounds` is every single value, by what was measured, in the order of time."""

    question: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    goals: Sequence[Goal]
    rounds: Mapping[str, Sequence[float]]
    notes: Sequence[str] = field(default=())

    def text(self) -> str:
        """Return the finding for a terminal."""
        marks = {True: "held", False: "MISSED", None: "open"}
        lines = [self.question, "", *_aligned([self.columns, *self.rows]), ""]
        lines += [f"  goal {marks[goal.held]:7}{goal.name}: {goal.found}, hoped {goal.hoped}" for goal in self.goals]
        lines += [f"  note   {note}" for note in self.notes]
        return "\n".join(lines) + "\n"

    def write(self, path: Path, machine: Mapping[str, object]) -> None:
        """Write the finding and where it was made as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"machine": machine, **asdict(self)}, indent=2) + "\n", "utf-8")


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
        lines.append("  " + "  ".join(cells).rstrip())
    return lines
