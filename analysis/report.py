"""One HTML page that needs nothing but itself: the verdict, the answer, pictures, tables, the plan, the facts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from analysis import efficiency, figures, units
from analysis.client_tax import calls_of, compare, pairs_of
from analysis.figures import style
from analysis.frame import Frame, read, see_that_each_is_another, text_of, texts
from analysis.gallery import Gallery
from analysis.ladders import varied
from analysis.outages import outages, sentences
from analysis.page import saved, template, writing
from analysis.percentiles import Estimate, middle
from analysis.sign_in import cost_of_sign_in
from analysis.statistics import Statistics, measure
from analysis.summary import summary
from analysis.tables import flat, tables, write_csv
from analysis.timeline import timeline
from analysis.usage import bottleneck, peaks, told, usage
from analysis.verdict import judge
from hpcstress.errors import UsageRefusal
from hpcstress.plan import OPTIONS, Plan, flag

__all__ = ["summary", "write_report"]

PAGE = "report.html"


def write_report(results: Sequence[Path], folder: Path | None = None) -> Path:
    """Write the page of one or several results, pictures and tables beside it, and return the page's path.

    By default all go into a folder `report` beside the first result; the files of several results go into numbered
    folders within.
    """
    if not results:
        raise UsageRefusal("There is nothing to report on: give the path of at least one result.")
    see_that_each_is_another(results)
    folder = results[0].parent / "report" if folder is None else folder
    page = folder / PAGE
    with writing(folder, "report"):
        sections, gallery = [], Gallery()
        for number, path in enumerate(results, 1):
            home = folder if len(results) == 1 else folder / str(number)
            sections.append(
                _section(
                    path, home, str(home.relative_to(folder)), f"result-{number}", gallery, several=len(results) > 1
                )
            )
        words = _template().render(
            sections=sections,
            taxes=_taxes([section["frame"] for section in sections], folder),
            scaling=_scaling([step for section in sections for step in section["measured"]], folder),
            published=_published(gallery, folder),
        )
        page.write_text(words, encoding="utf-8")
    return page


def _template() -> Any:
    return template(
        PAGE,
        filters={"estimate": _estimate, "unbroken": _unbroken, "median": middle},
        interval=units.interval,
        varied=varied,
    )


def _section(path: Path, home: Path, beside: str, anchor: str, gallery: Gallery, *, several: bool) -> dict[str, Any]:
    frame = read(path)
    statistics = measure(frame)
    gallery.add(frame, statistics)
    verdict = judge(frame, statistics.steps)
    # Where there is no result, nothing is made.
    home.mkdir(parents=True, exist_ok=True)
    for name, rows in tables(statistics).items():
        write_csv(home / f"{name}.csv", rows)
    return {
        "anchor": anchor,
        "title": f"{path.parent.name}/{path.name}" if path.parent.name else path.name,
        "beside": beside,
        # Of several results the attempts would be too much, and all that is said of them has been said.
        "frame": replace(frame, attempts={}),
        "verdict": verdict,
        "measured": efficiency.measured(frame, statistics.steps) if several else [],
        "steps": statistics.steps,
        "climb": statistics.climb,
        "users": frame.users,
        "timed": any(step.timed for step in statistics.steps),
        "open_model": any(step.rate for step in statistics.steps),
        "operations": statistics.operations,
        "calls": calls_of(frame),
        "pictures": _pictures(frame, statistics, home),
        "outages": sentences(frame),
        "bottleneck": bottleneck(frame, statistics.steps),
        "sign_in": cost_of_sign_in(frame, statistics.steps),
        "peaks": peaks(frame, statistics.steps),
        "few": any(not step.service.p99.enough for step in statistics.steps),
        "changed": [row for row in _plan(frame.plan) if row["changed"]],
        "options": _plan(frame.plan),
        "facts": [*texts(frame.facts), ("attempts", f"{frame.length:,}"), ("ranks", _ranks(frame))],
    }


def _taxes(frames: Sequence[Frame], folder: Path) -> list[dict[str, Any]]:
    """Return what is told of each pair of results that compares both clients on one plan."""
    taxes = []
    for number, (wire, stock) in enumerate(pairs_of(frames), 1):
        tax, calls = compare(wire, stock), calls_of(stock)
        with style.context():
            picture = saved(figures.client_tax(tax, calls), folder / f"client-tax-{number}.png")
        write_csv(folder / f"client-tax-{number}.csv", map(flat, tax.pairs))
        taxes.append({"tax": tax, "calls": calls, "picture": picture, "names": (str(wire.path), str(stock.path))})
    return taxes


def _scaling(steps: Sequence[efficiency.Measured], folder: Path) -> dict[str, Any] | None:
    """Return what is told of results that differ in their numbers of ranks, nothing where none do."""
    found, apart = efficiency.curves(steps), efficiency.apart(steps)
    if not found:
        return {"curves": found, "apart": apart} if apart else None
    with style.context():
        picture = saved(figures.efficiency(found), folder / "efficiency.png")
    write_csv(folder / "efficiency.csv", efficiency.rows(found))
    return {"curves": found, "picture": picture, "apart": apart}


def _pictures(frame: Frame, statistics: Statistics, home: Path) -> dict[str, str]:
    """Draw every figure of one result, save it as PNG, and return its address."""
    line = timeline(frame)
    parts = usage(frame, line.origin)
    with style.context():
        drawn = {
            "scaling": figures.scaling(statistics.steps, frame.objective),
            "operations": figures.operations(statistics),
            "percentiles": figures.percentiles(statistics, frame.objective),
            "timeline": figures.timeline(line),
            "health": figures.health(frame, statistics.steps),
        }
        more = told(frame, line.origin)
        if line.spans and (parts or more):
            deaths = outages(frame, line.origin)
            cores = int(frame.facts.get("processors") or 0) if len(frame.server) else 0
            drawn["usage"] = figures.usage(timeline(frame, alike=True), parts, more, cores, deaths)
    return {name: saved(figure, home / f"{name}.png") for name, figure in drawn.items()}


def _published(gallery: Gallery, home: Path) -> list[dict[str, Any]]:
    with style.context():
        return [
            {
                "title": section.title,
                "words": section.words,
                "pictures": [
                    {"caption": shown.caption, "address": saved(shown.figure, home / f"{shown.name}.png")}
                    for shown in section.pictures
                ],
            }
            for section in gallery.sections()
        ]


def _estimate(estimate: Estimate) -> str:
    return units.seconds(estimate.value) + ("" if estimate.enough or estimate.value != estimate.value else "\u2009†")


def _unbroken(text: str) -> str:
    """Return text in which no line ends between a duration and its unit, or within the name of an option."""
    return re.sub(r"(?<=\d) (?=(?:s|ms|µs)\b)", "\u00a0", text).replace("--", "\u2060-\u2060-\u2060")


def _plan(options: Mapping[str, Any]) -> list[dict[str, Any]]:
    default = Plan().as_mapping()
    return [
        {
            "flag": flag(name),
            "value": text_of(value),
            "default": text_of(default[name]) if name in default else units.UNKNOWN,
            "changed": name not in default or value != default[name],
            "help": OPTIONS[name].metadata["help"] if name in OPTIONS else "An option of another hpcstress.",
        }
        for name, value in options.items()
    ]


def _ranks(frame: Frame) -> str:
    hosts = [bytes(host).decode("utf-8", "replace") for host in np.unique(frame.ranks["host"])]
    where = f" on {units.count(len(hosts), 'host')}: {', '.join(hosts)}" if hosts else ""
    return f"{len(frame.ranks):,}{where}"
