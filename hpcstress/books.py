"""What rank 0 writes down while a job goes on, and the result that comes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from hpcstress.audit import Report
from hpcstress.errors import INCOMPLETE, OK
from hpcstress.folder import RunFolder
from hpcstress.quantity import count, ended
from hpcstress.result import TABLES, ResultWriter
from hpcstress.schedule import Step
from hpcstress.worker import Health, Tally

if TYPE_CHECKING:
    from hpcstress.servers.part import Event


@dataclass
class Books:
    """Hold what rank 0 writes down while the job goes on."""

    writer: ResultWriter
    folder: RunFolder
    tables: dict[str, list[np.ndarray[Any, Any]]] = field(default_factory=lambda: {name: [] for name in TABLES})
    notes: list[str] = field(default_factory=list)
    said: dict[str, str] = field(default_factory=dict)
    losses: bool = False
    complete: bool = True

    def hear(self, step: Step, reports: list[tuple[Health, Tally]]) -> None:
        """Write down what every rank felt in a step, and what was said about failures."""
        for rank, (health, tally) in enumerate(reports):
            row = np.zeros(1, TABLES["health"])
            row["step"], row["rank"] = step.number, rank
            for name, value in asdict(health).items():
                row[name] = value
            self.tables["health"].append(row)
            for cause, words in tally.said.items():
                self.said.setdefault(cause, words)

    def settle(self, starts: list[dict[int, tuple[int, int]]]) -> None:
        """Write down when every rank truly began each step, and how wrong that can be, now that its drift is known."""
        for row in self.tables["health"]:
            row["began_ns"], row["clock_error_ns"] = starts[int(row["rank"][0])][int(row["step"][0])]

    def audited(self, step: Step, report: Report) -> None:
        """Write down what the audit of a step found."""
        row = report.row(step.number)
        self.tables["audit"].append(row)
        self.folder.note("audit", **{name: int(row[name][0]) for name in TABLES["audit"].names or ()})
        self.notes += [f"Audit of step {step.number + 1}: {example}" for example in report.examples]
        self.losses |= bool(report.missing or report.wrong)
        if report.unread:
            self.incomplete(f"The audit of step {step.number + 1} could not read {count(report.unread, 'run')} back.")

    def incomplete(self, sentence: str) -> None:
        """Write down why the job is not what the plan says."""
        self.complete = False
        # Before all examples: a terminal shows only the first notes.
        self.notes.insert(0, sentence)

    def heard_of(self, events: Sequence[Event]) -> None:
        """Write down what happened to parts of the server."""
        rows = np.zeros(len(events), TABLES["events"])
        for row, event in zip(rows, events, strict=True):
            row["time"], row["part"], row["told"] = event.time, event.part, event.told.encode()[:256]
        self.tables["events"].append(rows)

    def server_ended(self, obituary: str | None) -> None:
        """Write down how the server ended if it did so by itself, before all that followed from it."""
        self.notes[:0] = [obituary] if obituary else []

    def finish(self) -> int:
        """Write the result, drop the journals that it replaces, and return the exit code."""
        self.notes += [ended(f"First failure by {cause}: {words}") for cause, words in self.said.items()]
        tables = {name: np.concatenate([np.zeros(0, TABLES[name]), *rows]) for name, rows in self.tables.items()}
        self.writer.finish(tables, self.notes, self.complete)
        self.folder.remove_journals()
        return OK if self.complete and not self.losses else INCOMPLETE
