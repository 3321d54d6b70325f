"""A result file as data: the columns that a question needs, step by step, piece by piece, or as a pandas frame."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hpcstress.errors import Refusal, UsageRefusal
from hpcstress.plan import Plan
from hpcstress.quantity import Scalar, read_positive_seconds
from hpcstress.record import COLUMNS, RECORD, Operation, Outcome
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
    audit: Rows

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


def read(path: Path | str) -> Frame:
    """Read a result file; refuse one that is damaged."""
    with _Sliced(path) as result:
        options, objective = _options(result)
        attempts = {name: result.piece(name, 0, result.length) for name in NEEDED}
        return Frame(
            path=result.path,
            plan=options,
            facts=result.facts,
            notes=tuple(map(str, result.notes)),
            complete=result.complete,
            objective=objective,
            length=result.length,
            attempts=attempts,
            steps=_every_step(result.whole_table("steps"), attempts, options),
            ranks=result.whole_table("ranks"),
            health=result.whole_table("health"),
            server=result.whole_table("server"),
            audit=result.whole_table("audit"),
        )


def pieces(path: Path | str, rows: int = PIECE) -> Iterator[Columns]:
    """Yield all columns of all attempts, `rows` at a time, so that no file is too large to be read."""
    with _Sliced(path) as result:
        for start in range(0, result.length, rows):
            yield {name: result.piece(name, start, min(start + rows, result.length)) for name in COLUMNS}


def dataframe(path: Path | str, columns: Iterable[str] = COLUMNS) -> pd.DataFrame:
    """Return attempts as a pandas frame, operations and outcomes by name; its columns are those of the record."""
    import pandas as pd

    with _Sliced(path) as result:
        frame = pd.DataFrame({name: result.piece(name, 0, result.length) for name in columns}, copy=False)
    for column, names in (("op", OPERATIONS), ("outcome", OUTCOMES)):
        if column in frame:
            used, places = np.unique(frame[column], return_inverse=True)
            categories = pd.Index([names[code] for code in used], dtype=str)
            frame[column] = pd.Categorical.from_codes(places, categories)
    return frame


class _Sliced(Result):
    """Read parts of columns, too, and trust nothing about their shape."""

    def piece(self, name: str, start: int, stop: int) -> Rows:
        try:
            values: Rows = np.asarray(self._file[f"attempts/{name}"][start:stop])
        except (OSError, RuntimeError, KeyError, TypeError) as error:
            raise self._damaged(f"attempts/{name}", error) from None
        if values.dtype != RECORD[name] or values.shape != (stop - start,):
            raise self._damaged(f"attempts/{name}", f"{len(values)} values of type {values.dtype}")
        return values

    def whole_table(self, name: str) -> Rows:
        try:
            return self.table(name)
        except (ValueError, TypeError) as error:
            raise self._damaged(name, error) from None

    def _damaged(self, where: str, why: object) -> Refusal:
        first_line = str(why).strip().partition("\n")[0]
        return Refusal(
            f"{self.path} is damaged at /{where} ({first_line}): make it anew from its journals with "
            "`hpcstress recover DIR`, if they are still there."
        )


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
    ladder = options["runs"] if isinstance(options["runs"], list) else []
    added = np.zeros(len(unlisted), TABLES["steps"])
    for row, number in zip(added, unlisted, strict=True):
        mine = attempts["step"] == number
        acknowledged = attempts["outcome"][mine] == Outcome.ok
        row["step"] = number
        row["repeat"] = number // len(ladder) if ladder else 0
        row["size"] = ladder[number % len(ladder)] if ladder else len(np.unique(attempts["run"][mine]))
        row["began"] = np.nan
        row["first_start"] = attempts["start"][mine].min()
        row["first_done"] = row["last_done"] = -1
        row["attempts"] = np.count_nonzero(mine)
        row["failed"] = np.count_nonzero(~acknowledged)
        row["runs_finished"] = np.count_nonzero(acknowledged & (attempts["op"][mine] == Operation.finish_run))
    return np.concatenate([listed, added])
