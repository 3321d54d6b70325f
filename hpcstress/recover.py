"""Make the HDF5 file from the journals of a job that did not come to its end, and say which ranks are incomplete."""

from __future__ import annotations

from typing import Any

import numpy as np

from hpcstress.errors import Refusal
from hpcstress.folder import RunFolder
from hpcstress.journal import JournalFile
from hpcstress.result import TABLES, ResultWriter
from hpcstress.schedule import WARMUP, Step
from hpcstress.summary import StepSummary


def recover(folder: RunFolder) -> list[str]:
    """Write the result of a job from its journals, with every row that was stored; return what is to be said of it."""
    if folder.result.exists():
        raise Refusal(f"{folder.result} is there already, nothing has to be recovered.")
    files = folder.journal_files()
    if not files:
        raise Refusal(
            f"There is no journal in {folder.journals}: give the output folder of a job that was interrupted."
        )
    events = list(folder.events())
    facts: dict[str, Any] = next((dict(event["facts"]) for event in events if event["event"] == "job"), {})
    plan = folder.plan.read_text("utf-8") if folder.plan.exists() else ""
    summaries = {
        int(event["number"]): StepSummary(Step(event["number"], event["repeat"], event["size"]), event["began"])
        for event in events
        if event["event"] == "step"
    }
    notes, ranks = [], []
    size = max(int(facts.get("ranks", 1)), len(files))
    with ResultWriter(folder.result, plan, facts) as writer:
        for path in files.values():
            try:
                journal = JournalFile(path)
            except Refusal as refusal:
                notes.append(str(refusal))
                continue
            for piece in journal.rows():
                rows = piece[piece["step"] != WARMUP]
                writer.append(rows)
                for number in np.unique(rows["step"]).tolist():
                    summary = summaries.setdefault(number, StepSummary(Step(number, 0, 0), 0.0))
                    summary.add(rows[rows["step"] == number])
            size = max(size, int(journal.header.get("ranks", 1)))
            ranks.append(_rank_row(journal))
        complete = {int(row["rank"][0]) for row in ranks if row["complete"][0]}
        incomplete = [rank for rank in range(size) if rank not in complete]
        if incomplete:
            notes.append(f"Recovered from journals. Incomplete ranks: {_listed(incomplete)} of {size}.")
        else:
            notes.append("Recovered from journals. Every rank had come to its end; the gathering had not.")
        audits = [_audit_row(event) for event in events if event["event"] == "audit"]
        tables = {
            "steps": _table("steps", [summaries[number].row() for number in sorted(summaries)]),
            "ranks": _table("ranks", ranks),
            "audit": _table("audit", audits),
        }
        writer.finish(tables, notes, complete=False)
    folder.remove_unfinished()
    return notes


def _table(name: str, rows: list[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    return np.concatenate([np.zeros(0, TABLES[name]), *rows])


def _rank_row(journal: JournalFile) -> np.ndarray[Any, Any]:
    row = np.zeros(1, TABLES["ranks"])
    for name in ("host", "pid", "offset_ns", "error_ns", "import_seconds"):
        if name in journal.header:
            row[name] = journal.header[name]
    row["rank"], row["complete"] = journal.rank, journal.complete
    return row


def _audit_row(event: Any) -> np.ndarray[Any, Any]:
    row = np.zeros(1, TABLES["audit"])
    for name in TABLES["audit"].names or ():
        row[name] = event[name]
    return row


def _listed(ranks: list[int]) -> str:
    shown = ", ".join(map(str, ranks[:20]))
    return shown if len(ranks) <= 20 else f"{shown} and {len(ranks) - 20} more"
