"""The few lines that end a run on a terminal: verdict, answer, a small table. Needs neither pandas nor pictures."""

from __future__ import annotations

from pathlib import Path

from analysis.frame import read
from analysis.statistics import StepStatistics, by_size, measure
from analysis.units import count, number, plain, seconds
from analysis.verdict import judge

_NOTES = 10


def summary(result: Path | str) -> str:
    """Return what a result says, in a few lines of plain text: verdict, answer, audit, notes, and a row per size."""
    frame = read(result)
    statistics = measure(frame)
    verdict = judge(frame, statistics.steps)
    lines = [f"{finding.value}: {finding.evidence}" for finding in verdict.findings]
    lines += [verdict.answer, verdict.audit]
    lines += [plain(note, 300) for note in frame.notes[:_NOTES]]
    if len(frame.notes) > _NOTES:
        lines.append(f"And {count(len(frame.notes) - _NOTES, 'more note')} in the report.")
    if statistics.steps:
        lines += ["", *_aligned(_rows(statistics.steps))]
    if len(statistics.steps) > len(by_size(statistics.steps)):
        lines.append("Each figure is that of the worst repeat; failures are those of all repeats.")
    return "\n".join(lines) + "\n"


def _rows(steps: tuple[StepStatistics, ...]) -> list[list[str]]:
    rows = [["runs", "repeats", "duration", "answers/s", "p50", "p99", "failed"]]
    for size, repeats in by_size(steps).items():
        failed = sum(step.failed for step in repeats)
        tried = sum(step.requests + step.connect.count for step in repeats)
        rows.append(
            [
                f"{size:,}",
                str(len(repeats)),
                seconds(max(step.duration for step in repeats)),
                number(min(step.requests_per_second for step in repeats)),
                seconds(max(step.service.p50.value for step in repeats)),
                seconds(max(step.service.p99.value for step in repeats)),
                f"{failed:,} of {count(tried, 'attempt')}" if failed else "0",
            ]
        )
    return rows


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
