"""Make the HDF5 file from the journals of a job that did not come to its end, and say which ranks are incomplete."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from itertools import islice, pairwise
from typing import Any

import numpy as np

from hpcstress import workloads
from hpcstress.errors import Refusal
from hpcstress.folder import RunFolder, expanded
from hpcstress.journal import JournalFile
from hpcstress.leftovers import sweep
from hpcstress.lock import held
from hpcstress.result import TABLES, ResultWriter, Rows, rank_row
from hpcstress.schedule import PREFILL, Step
from hpcstress.summary import Ends, StepSummary

# Seconds since 1970 that a calendar still knows.
_LATEST = 1e11
_RANKS_LISTED = 20
# Ranks that are killed together stop within less.
_SILENT_NS = 10 * 10**9


def recover(folder: RunFolder) -> list[str]:
    """Write the result of a job from its journals, with every row that was stored; return what is to be said of it."""
    if folder.result.exists():
        raise Refusal(f"{folder.result} is there already, nothing has to be recovered.")
    log = _read_log(folder)
    nodes = _on_nodes(folder, log.facts.get("journals"))
    files = folder.journal_files()
    if not files:
        raise Refusal(
            f"There is no journal in {folder.journals}: "
            f"{nodes or 'give the output folder of a job that was interrupted.'}"
        )
    if any(held(path) for path in (*files.values(), *folder.unfinished())):
        raise Refusal(
            f"The job in {folder.path} is still running: wait until it ends, or end it, then recover it. "
            "If its machine has died, recover a copy of the folder."
        )
    plan, notes = _plan(folder, log.plan)
    if not log.facts:
        notes.append(f"{folder.log} does not say what the job was: steps are known from their rows alone.")
    if log.senseless:
        notes.append(f"{folder.log}: {_counted(len(log.senseless), 'line makes', 'lines make')} no sense.")
    summaries, ranks, complete = log.steps, [], set()
    left_open, ends = _left_open(plan), dict[int, Ends]()
    newest: dict[int, tuple[int, int]] = {}
    size = max(int(log.facts.get("ranks", 1)), max(files) + 1)
    with ResultWriter(folder.result, plan, log.facts) as writer:
        for rank, path in files.items():
            try:
                journal = JournalFile(path, rank)
            except Refusal as refusal:
                notes.append(str(refusal))
                continue
            for piece in journal.rows():
                rows = piece[piece["step"] < PREFILL]
                writer.append(rows)
                for number in np.unique(rows["step"]).tolist():
                    summary = summaries.setdefault(number, StepSummary(Step(number, 0, 0), 0.0))
                    mine = rows[rows["step"] == number]
                    summary.add(mine)
                    ends.setdefault(number, Ends(left_open=left_open)).add(mine)
                    newest[rank] = max(newest.get(rank, (0, 0)), (number, int(mine["end"].max())))
            notes += journal.damage()
            if journal.complete:
                complete.add(rank)
            if journal.header:
                size = max(size, int(journal.header.get("ranks", 1)))
                ranks.append(rank_row(rank, journal.header, complete=journal.complete))
        if nodes and len(files) < size:
            notes.append(f"Of {size} journals, {len(files)} are here: {nodes}")
        hosts = {int(row["rank"][0]): row["host"][0].decode() for row in ranks}
        notes += _who_is_missing(size, complete, newest, hosts)
        finished = {number: of.count() for number, of in ends.items()}
        tables = {
            "steps": _table("steps", [summaries[number].row(finished.get(number, 0)) for number in sorted(summaries)]),
            "ranks": _table("ranks", ranks),
            "audit": _table("audit", log.audits),
        }
        writer.finish(tables, notes, complete=False)
    folder.remove_unfinished()
    sweep()
    return notes


def _on_nodes(folder: RunFolder, place: object) -> str:
    """Look for journals in the nodes' own folder, too, if this is such a node; return how to bring them together."""
    if not isinstance(place, str) or not re.fullmatch(r"[/$](.*/)?hpcstress-[0-9a-f]+", place):
        return ""
    folder.local = expanded(place, os.environ)
    return (
        f"each node has kept those of its ranks in {place}. Copy them together before you recover, such as by "
        f'`srun --ntasks-per-node=1 sh -c \'cp "{place}"/*.rows "{folder.journals.absolute()}"\'` on the job\'s nodes.'
    )


def _plan(folder: RunFolder, logged: str) -> tuple[str, list[str]]:
    """Return the plan as the log has it, else as its file has it, and what is wrong with it."""
    if logged:
        # What was played; somebody may have changed the file since.
        return logged, []
    try:
        text = folder.plan.read_text("utf-8")
        tomllib.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        return "", [f"{folder.plan} cannot be read ({why}): nobody knows the plan, and nothing can be read back."]
    return text, []


def _left_open(plan: str) -> bool:
    name = tomllib.loads(plan).get("workload")
    return isinstance(name, str) and name in workloads.MODULES and workloads.leaves_runs_open(name)


@dataclass
class _Log:
    """Hold what the log of a job says, and the lines that say nothing."""

    facts: dict[str, Any] = field(default_factory=dict)
    plan: str = ""
    steps: dict[int, StepSummary] = field(default_factory=dict)
    audits: list[Rows] = field(default_factory=list)
    senseless: list[object] = field(default_factory=list)


def _read_log(folder: RunFolder) -> _Log:
    log, steps, audits = _Log(), TABLES["steps"], TABLES["audit"]
    for event in folder.events(log.senseless.append):
        match event:
            case {"event": "job", "facts": dict(facts)} if _fits(facts.get("ranks", 1), TABLES["ranks"]["rank"]):
                log.facts = facts
                log.plan = _readable(event.get("plan"))
            case {"event": "step", "number": number, "repeat": repeat, "size": size, "began": began} if (
                _fits(number, steps["step"])
                and number < PREFILL
                and _fits(repeat, steps["repeat"])
                and _fits(size, steps["size"])
                and _fits(began, steps["began"])
            ):
                log.steps[number] = StepSummary(Step(number, repeat, size, str(event.get("variation", ""))), began)
            case {"event": "audit"} if all(_fits(event.get(name), audits[name]) for name in audits.names or ()):
                log.audits.append(_audit_row(event))
            case {"event": "job" | "step" | "audit"}:
                log.senseless.append(event)
    return log


def _readable(plan: object) -> str:
    try:
        return plan if isinstance(plan, str) and tomllib.loads(plan) else ""
    except (ValueError, RecursionError):
        return ""


def _fits(value: object, kind: np.dtype[Any]) -> bool:
    """Tell whether a value of the log is a number that a column can hold."""
    if kind.kind == "f":
        return type(value) in (int, float) and 0 <= value < _LATEST  # type: ignore[operator]
    return type(value) is int and 0 <= value <= np.iinfo(kind).max


def _table(name: str, rows: list[Rows]) -> Rows:
    return np.concatenate([np.zeros(0, TABLES[name]), *rows])


def _audit_row(event: Mapping[str, Any]) -> Rows:
    row = np.zeros(1, TABLES["audit"])
    for name in TABLES["audit"].names or ():
        row[name] = event[name]
    return row


def _who_is_missing(
    size: int, complete: Collection[int], newest: Mapping[int, tuple[int, int]], hosts: Mapping[int, str]
) -> list[str]:
    if len(complete) == size:
        return ["Recovered from journals. Every rank had come to its end; the gathering had not."]
    incomplete = f"Recovered from journals. Incomplete ranks: {_listed(size, complete)} of {size}."
    return [*filter(None, (incomplete, _who_fell_silent(newest, hosts)))]


def _who_fell_silent(newest: Mapping[int, tuple[int, int]], hosts: Mapping[int, str]) -> str:
    """Say which few ranks stopped long before all others, by the step and the end (ns) of the newest row of each."""
    last_step = max((step for step, _ in newest.values()), default=0)
    # Who has no row of the last step had none since its beginning.
    stopped = sorted((end if step == last_step else 0, rank) for rank, (step, end) in newest.items())
    gaps = [(after[0] - before[0], place) for place, (before, after) in enumerate(pairwise(stopped), 1)]
    gap, few = max(gaps, default=(0, 0))
    if gap < _SILENT_NS or few * 2 > len(stopped):
        return ""
    named = [f"{rank} on {hosts[rank]}" if rank in hosts else f"{rank}" for _, rank in stopped[:few]]
    more = f" and {few - _RANKS_LISTED} more" if few > _RANKS_LISTED else ""
    who = f"{', '.join(named[:_RANKS_LISTED])}{more}"
    return f"The newest row of rank {who} is {gap / 1e9:.0f} s older than that of any other: look there first."


def _listed(size: int, complete: Collection[int]) -> str:
    incomplete = size - len(complete)
    shown = list(islice((rank for rank in range(size) if rank not in complete), _RANKS_LISTED))
    more = incomplete - len(shown)
    return ", ".join(map(str, shown)) + (f" and {more} more" if more else "")


def _counted(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"
