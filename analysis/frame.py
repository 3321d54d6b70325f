"""A result file as data: the columns that a question needs, step by step, piece by piece, or as a pandas frame."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from os.path import realpath
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from analysis.ladders import value_of, varied
from hpcstress.errors import Refusal, UsageRefusal
from hpcstress.plan import KINDS, Plan, Rung
from hpcstress.quantity import Scalar, read_positive_seconds
from hpcstress.record import COLUMNS, Operation, Outcome
from hpcstress.result import TABLES, Result, Rows

if TYPE_CHECKING:
    import pandas as pd

# What statistics and timelines are made from; the other columns stay unread.
NEEDED = ("step", "run", "seq", "op", "outcome", "due", "start", "end")

PIECE = 1 << 18

Columns = dict[str, Rows]


def _names(codes: type[IntEnum]) -> tuple[str, ...]:
    names = [f"{codes.__name__.lower()} {code}" for code in range(256)]
    for code in codes:
        names[code] = code.name
    return tuple(names)


# By code; a code that only a newer hpcstress knows is shown as a number.
OPERATIONS = _names(Operation)
OUTCOMES = _names(Outcome)


class Planned(Protocol):
    """Be something that was measured by a plan."""

    @property
    def plan(self) -> Mapping[str, Scalar]:
        """Return the options of the plan."""

    def option(self, name: str, variation: str = "") -> Any:
        """Return an option of the plan as it is on the rungs of a variation; None of one that the plan has not."""


@dataclass(frozen=True)
class Frame:
    """Hold what one result file says: its tables, and the `NEEDED` columns of its attempts."""

    path: Path
    plan: Mapping[str, Scalar]
    facts: Mapping[str, Any]
    notes: tuple[str, ...]
    complete: bool
    objective: float
    length: int
    attempts: Columns
    steps: Rows
    ranks: Rows
    health: Rows
    server: Rows
    events: Rows
    prometheus: Rows
    audit: Rows

    @property
    def users(self) -> bool:
        """Tell whether the sizes of steps count users, and not runs that begin at once."""
        return bool(self.plan.get("users"))

    def option(self, name: str, variation: str = "") -> Any:
        """Return an option of the plan as it is on the rungs of a variation; None of one that the plan has not."""
        return option_of(self.plan, name, variation)

    def widened(self, *names: str) -> Frame:
        """Return this frame with more columns of its attempts, read anew from the file."""
        with Result(self.path) as result:
            more = _chosen(result.attempts(names), result.column("attempt") > 0)
        return replace(self, attempts={**self.attempts, **more})

    def by_step(self) -> Iterator[tuple[Any, Columns]]:
        """Yield each row of `steps` with the attempts of that step."""
        step = self.attempts["step"]
        # A file that was written while the job ran is in order already; one made from journals is not.
        order = None if np.all(step[1:] >= step[:-1]) else np.argsort(step, kind="stable")
        in_order = step if order is None else step[order]
        for row in self.steps:
            first, last = np.searchsorted(in_order, [row["step"], row["step"] + 1])
            chosen = slice(first, last) if order is None else order[first:last]
            yield row, {name: values[chosen] for name, values in self.attempts.items()}


def see_that_each_is_another(results: Sequence[Path]) -> None:
    """Refuse a result that is given twice, by whatever names: its rows would count twice."""
    known: dict[str, Path] = {}
    for result in results:
        if (place := realpath(result)) in known:
            raise UsageRefusal(f"{known[place]} is given twice: give each result once.")
        known[place] = result


def text_of(value: object) -> str:
    """Return an option or a fact as one reads it."""
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def texts(told: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the names and texts of options or facts; what lies within another one has both names."""
    for name, value in told.items():
        if isinstance(value, Mapping):
            yield from texts(value, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", text_of(value)


def option_of(plan: Mapping[str, Scalar], name: str, variation: str) -> Any:
    """Return an option of a plan as it is on the rungs of a variation; None of one that the plan has not."""
    return value_of(name, varied(variation).get(name, plan.get(name)))


def read(path: Path | str) -> Frame:
    """Read a result file; refuse one that is damaged."""
    with Result(path) as result:
        options, objective = _options(result)
        attempts = _chosen(result.attempts(NEEDED), result.column("attempt") > 0)
        return Frame(
            path=result.path,
            plan=options,
            facts=result.facts,
            notes=tuple(map(str, result.notes)),
            complete=result.complete,
            objective=objective,
            length=len(attempts["op"]),
            attempts=attempts,
            steps=_every_step(result.table("steps"), attempts, options),
            ranks=result.table("ranks"),
            health=result.table("health"),
            server=result.table("server"),
            events=result.table("events"),
            prometheus=result.table("prometheus"),
            audit=result.table("audit"),
        )


def pieces(path: Path | str, rows: int = PIECE) -> Iterator[Columns]:
    """Yield all columns of all rows, `rows` at a time, so that no file is too large to be read.

    These are the file's rows as they are: one with `attempt` 0 is no attempt, but a whole operation of a client that
    hides its attempts below it. Whoever counts or times requests leaves it out, as all else here does.
    """
    with Result(path) as result:
        for start in range(0, result.length, rows):
            yield {name: result.column(name, start, start + rows) for name in COLUMNS}


def dataframe(path: Path | str, columns: Iterable[str] = COLUMNS) -> pd.DataFrame:
    """Return attempts as a pandas frame, operations and outcomes by name; its columns are those of the record."""
    import pandas as pd

    with Result(path) as result:
        frame = pd.DataFrame(_chosen(result.attempts(columns), result.column("attempt") > 0), copy=False)
    for column, names in (("op", OPERATIONS), ("outcome", OUTCOMES)):
        if column in frame:
            used, places = np.unique(frame[column], return_inverse=True)
            categories = pd.Index([names[code] for code in used], dtype=str)
            frame[column] = pd.Categorical.from_codes(places, categories)
    return frame


def _chosen(columns: Columns, chosen: Rows) -> Columns:
    """Return the rows that are attempts: one with the number 0 is a whole call of MLflow's client."""
    return columns if chosen.all() else {name: values[chosen] for name, values in columns.items()}


def _options(result: Result) -> tuple[dict[str, Scalar], float]:
    """Return the plan's options, defaults included, and its objective in seconds."""
    # Not through `Plan` itself: a result outlives the options of the hpcstress that wrote it.
    try:
        # A plan that was lost says nothing: its ladder least of all.
        unknown: dict[str, Scalar] = {} if result.plan_toml else {"runs": []}
        options = {**Plan().as_mapping(), **unknown, **tomllib.loads(result.plan_toml)}
        return options, read_positive_seconds(options["objective"])
    except (tomllib.TOMLDecodeError, UsageRefusal) as error:
        raise Refusal(f"{result.path} is damaged at its plan ({str(error).rstrip('.')}).") from None


def _every_step(steps: Rows, attempts: Columns, options: Mapping[str, Scalar]) -> Rows:
    """Return the table of steps, with rows for those that only the attempts know: their job ended too soon."""
    # Nobody plays a step of no runs: a size of zero is what `recover` writes where it does not know.
    listed = steps[steps["size"] > 0]
    unlisted = np.setdiff1d(np.flatnonzero(np.bincount(attempts["step"])), listed["step"])
    if not len(unlisted):
        return listed
    ladder = _rungs(options)
    added = np.zeros(len(unlisted), TABLES["steps"])
    for row, number in zip(added, unlisted, strict=True):
        mine = attempts["step"] == number
        acknowledged = attempts["outcome"][mine] == Outcome.ok
        row["step"] = number
        row["repeat"] = number // len(ladder) if ladder else 0
        rung = ladder[number % len(ladder)] if ladder else Rung(len(np.unique(attempts["run"][mine])), "")
        row["size"], row["variation"] = rung.size, rung.variation.encode()
        row["began"] = np.nan
        row["first_start"] = attempts["start"][mine].min()
        row["first_done"] = row["last_done"] = -1
        row["attempts"] = np.count_nonzero(mine)
        row["failed"] = np.count_nonzero(~acknowledged)
        row["runs_finished"] = np.count_nonzero(acknowledged & (attempts["op"][mine] == Operation.finish_run))
    return np.concatenate([listed, added])


def _rungs(options: Mapping[str, Scalar]) -> tuple[Rung, ...]:
    try:
        return Plan().with_options({name: value for name, value in options.items() if name in KINDS}).rungs
    except UsageRefusal:
        return ()
