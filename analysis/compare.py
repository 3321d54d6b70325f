"""Servers side by side on one HTML page: how their plans differ, which one is faster, by how much; pictures, tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from analysis import figures
from analysis.comparison import MARGIN, Comparison, compare
from analysis.figures import style
from analysis.page import saved, template, writing
from analysis.published import operations
from analysis.rivals import Round, rivals_of
from analysis.summary import aligned
from analysis.tables import write_csv
from analysis.wording import headline, lines, method, notes, table, unlike
from hpcstress.plan import Rung
from hpcstress.rounds import is_comparison

PAGE = "compare.html"
_FOLDER = "comparison"


class Picture(NamedTuple):
    """Hold a picture of the page: the name of its file, what it shows, what has to be known to read it."""

    name: str
    shows: str
    words: str
    figure: Figure


def write_comparison(paths: Sequence[Path], folder: Path | None = None, margin: float = MARGIN) -> tuple[Path, str]:
    """Write the page of a comparison, pictures and a table beside it; return its path, and what is said on a terminal.

    By default all go into a folder `comparison`: within the folder of a comparison, else beside the first result.
    """
    comparison = compare(rivals_of(paths), margin)
    if folder is None:
        first = paths[0]
        folder = (first if first.is_dir() and is_comparison(first) else first.parent) / _FOLDER
    with writing(folder, "comparison"):
        folder.mkdir(parents=True, exist_ok=True)
        write_csv(folder / "comparison.csv", table(comparison))
        with style.context():
            pictures = [
                {"shows": each.shows, "words": each.words, "address": saved(each.figure, folder / f"{each.name}.png")}
                for each in _pictures(comparison)
            ]
        words = template(PAGE).render(**_said(comparison), pictures=pictures)
        (folder / PAGE).write_text(words, encoding="utf-8")
    return folder / PAGE, told(comparison)


def told(comparison: Comparison) -> str:
    """Return what a comparison says as plain text: how plans differ, the sentences, the notes, the tables."""
    text = [*unlike(comparison)]
    text += [headline(pair, comparison.climb) for pair in comparison.pairs]
    text += notes(comparison)
    for pair in comparison.pairs:
        text += ["", *aligned(lines(pair, comparison.climb))]
    return "\n".join([*text, "", method(comparison)]) + "\n"


def _said(comparison: Comparison) -> dict[str, Any]:
    return {
        "names": [rival.name for rival in comparison.rivals],
        "unlike": unlike(comparison),
        "headlines": [headline(pair, comparison.climb) for pair in comparison.pairs],
        "notes": notes(comparison),
        "method": method(comparison),
        "contrast": comparison.contrast,
        "tables": [
            {"pair": pair, "rows": lines(pair, comparison.climb), "answers": pair.answers} for pair in comparison.pairs
        ],
        "rounds": [
            (rival.name, number, one) for rival in comparison.rivals for number, one in enumerate(rival.rounds, 1)
        ],
    }


def _pictures(comparison: Comparison) -> Iterator[Picture]:
    climbed = comparison.climb
    for number, pair in enumerate(comparison.pairs, 1):
        name = f"forest-{number}" if len(comparison.pairs) > 1 else "forest"
        yield Picture(
            name,
            f"How many times as fast {pair.second.name} is as {pair.first.name}, with intervals",
            "All intervals hold together with 95 % confidence; the grey band is what is called the same.",
            figures.rivals.forest(pair, climbed, comparison.margin),
        )
    yield Picture(
        "scaling",
        "Throughput and duration of every server against the load",
        "Points are rounds, lines go through their medians, bands reach from the least to the largest.",
        figures.rivals.scaling(comparison),
    )
    cases = _cases(comparison)
    if not cases:
        return
    at = "" if _is_go(comparison) or len(climbed.rungs) == 1 else f" at {climbed.load(_highest(comparison))}"
    if not _is_go(comparison):
        shown = [*dict.fromkeys(case.operation for case in cases)]
        published = [name for name in operations.PANEL if name in shown]
        known = all(one.plan.get("workload") in operations.FAST_WORKLOADS for one in _rounds(comparison))
        yield Picture(
            "panel",
            f"Every operation on every server{at}, as FastTrackML draws it",
            "All rounds together, failures included.",
            figures.servers.panel(cases, published if known else shown),
        )
    yield Picture(
        "durations",
        f"How long a request takes on every server{at}, as mlflow-go draws it",
        "All rounds together, failures included.",
        figures.servers.durations(cases),
    )
    if _is_go(comparison):
        yield Picture(
            "iterations",
            "How many iterations were done well on every server, as mlflow-go draws it",
            "Failures do not count.",
            figures.servers.iterations(cases),
        )


def _rounds(comparison: Comparison) -> list[Round]:
    return [one for rival in comparison.rivals for one in rival.rounds]


def _is_go(comparison: Comparison) -> bool:
    """Tell whether it is about one of mlflow-go's cases, which consist of one operation in several sizes."""
    return all(one.plan.get("workload") in operations.GO_WORKLOADS for one in _rounds(comparison))


def _highest(comparison: Comparison) -> Rung:
    """Return the last rung that every server has been on, else the last one."""
    rungs = comparison.climb.rungs
    there = [rung for rung in rungs if all(any(rung in one.rungs for one in of.rounds) for of in comparison.rivals)]
    return (there or rungs)[-1]


def _cases(comparison: Comparison) -> list[operations.Case]:
    """Return the bars of all servers: mlflow-go's cases on all rungs, operations of other workloads on the highest."""
    if not comparison.climb.rungs:
        return []
    rungs = comparison.climb.rungs if _is_go(comparison) else [_highest(comparison)]
    return [
        case
        for rival in comparison.rivals
        for case in operations.cases_of(rival.rounds[0], rival.together(rungs), rival.name)
    ]
