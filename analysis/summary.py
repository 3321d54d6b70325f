"""The few lines that end a run on a terminal: verdict, answer, a small table. Needs neither pandas nor pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from analysis.frame import read
from analysis.ladders import varied
from analysis.outages import sentences
from analysis.sign_in import cost_of_sign_in
from analysis.statistics import Statistics, by_rung, measure
from analysis.units import UNKNOWN, count, number, plain, seconds
from analysis.usage import bottleneck
from analysis.verdict import judge

_NOTES = 10


def summary(result: Path | str) -> str:
    """Return what a result says, in a few lines of plain text: verdict, answer, audit, notes, and a row per rung."""
    frame = read(result)
    statistics = measure(frame)
    verdict = judge(frame, statistics.steps)
    lines = [f"{finding.value}: {finding.evidence}" for finding in verdict.findings]
    lines += [verdict.answer, *(judgement.sentence for judgement in verdict.thresholds), verdict.audit]
    lines += sentences(frame)
    if sentence := bottleneck(frame, statistics.steps):
        lines.append(sentence)
    if sentence := cost_of_sign_in(frame, statistics.steps):
        lines.append(sentence)
    lines += [plain(note, 300) for note in frame.notes[:_NOTES]]
    if len(frame.notes) > _NOTES:
        lines.append(f"And {count(len(frame.notes) - _NOTES, 'more note')} in the report.")
    if statistics.steps:
        lines += ["", *aligned(_rows(statistics))]
    if len(statistics.steps) > len(statistics.climb.rungs):
        lines.append("Each figure is that of the worst repeat; failures are those of all repeats.")
    return "\n".join(lines) + "\n"


def _rows(statistics: Statistics) -> list[list[str]]:
    climbed = statistics.climb
    open_model = any(step.rate for step in statistics.steps)
    heads = [climbed.sizes, *climbed.options, "repeats", "duration", "answers/s", "p50", "p99"]
    rows = [[*heads, *(["late", "dropped"] if open_model else []), "failed"]]
    for rung, repeats in by_rung(statistics.steps, climbed.rungs).items():
        failed = sum(step.failed for step in repeats)
        tried = sum(step.requests + step.connect.count for step in repeats)
        values = varied(rung.variation)
        row = [f"{rung.size:,}", *(plain(values.get(name, UNKNOWN)) for name in climbed.options)]
        row += [
            str(len(repeats)),
            seconds(max(step.duration for step in repeats)),
            number(min(step.requests_per_second for step in repeats)),
            seconds(max(step.judged.p50.value for step in repeats)),
            seconds(max(step.judged.p99.value for step in repeats)),
        ]
        if open_model:
            row.append(seconds(max(step.waiting.p99.value for step in repeats)))
            row.append(f"{sum(step.dropped for step in repeats):,}")
        rows.append([*row, f"{failed:,} of {count(tried, 'attempt')}" if failed else "0"])
    return rows


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows of text with columns that stand below each other, each to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
