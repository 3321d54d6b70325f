from __future__ import annotations

import base64
import csv
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree as ET

import matplotlib.image
import pytest

from analysis.frame import read
from analysis.report import write_report
from analysis.statistics import measure
from hpcstress.errors import Refusal, UsageRefusal
from tests.analysis import scripts
from tests.analysis.conftest import Told
from tests.analysis.results import BEGAN, rows, table, usual, write

HOSTILE = "<script>alert(1)</script>\"'><img src=http://evil.example/x onerror=alert(2)> $x_"


class Page(HTMLParser):
    """The page as a browser would take it: elements, what they load, and text by the heading above it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.handlers: list[str] = []
        self.text = ""
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attributes:
            if name.startswith("on"):
                self.handlers.append(name)
            if name in ("src", "href", "srcset", "data", "action", "poster"):
                self.loads.append(value or "")

    def handle_data(self, data: str) -> None:
        if self.tags[-1:] != ["style"]:
            self.text += data

    def handle_endtag(self, tag: str) -> None:
        self.text += " " if tag in ("td", "th") else ""


@pytest.fixture
def page(usual_report: Told) -> Path:
    return Path(usual_report.words.splitlines()[-1].removeprefix("The report is "))


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a result full of hostile strings, and of one without a single attempt."""
    folder = tmp_path_factory.mktemp("both")
    hostile = usual(
        folder / "hostile.h5",
        runs=(10,),
        repeats=1,
        faults=(),
        host=HOSTILE[:50],
        notes=(HOSTILE,),
        facts={"server": {"version": HOSTILE}, HOSTILE: [1, HOSTILE]},
        prometheus=table(
            "prometheus",
            [
                {"time": BEGAN + at, "query": query, "labels": f"name={HOSTILE}", "value": 3.0}
                for query in ("cpu", HOSTILE[:32])
                for at in range(3)
            ],
        ),
    )
    empty = write(folder / "empty.h5", rows([]), {}, plan=f"runs = [7]\nuri = '''{HOSTILE}'''")
    return write_report([hostile, empty], folder / "out")


def test_the_report_lies_beside_the_result(page: Path, usual_result: Path) -> None:
    assert page == usual_result.parent / "report" / "report.html"


def test_pictures_and_tables_lie_beside_the_page(page: Path) -> None:
    pictures = {path.name for path in page.parent.glob("*.png")}
    own = {"scaling.png", "operations.png", "percentiles.png", "timeline.png", "health.png", "usage.png"}
    assert pictures == {*own, "results-parallel-runs.png"}
    for name in pictures:
        height, width, _ = matplotlib.image.imread(page.parent / name).shape
        assert width > height / 2 > 200


def test_the_tables_hold_the_numbers_of_the_statistics(page: Path, usual_result: Path) -> None:
    statistics = measure(read(usual_result))
    with (page.parent / "steps.csv").open() as file:
        steps = [*csv.DictReader(file)]
    with (page.parent / "operations.csv").open() as file:
        operations = [*csv.DictReader(file)]

    assert [float(row["service_p99"]) for row in steps] == [step.service.p99.value for step in statistics.steps]
    assert [int(row["failed_requests_pool_exhausted"]) for row in steps] == [
        step.failed_requests.get("pool_exhausted", 0) for step in statistics.steps
    ]
    assert [(row["operation"], int(row["attempts"])) for row in operations] == [
        (row.operation, row.attempts) for row in statistics.operations
    ]


def test_the_verdict_and_the_answer_come_first_and_in_this_order(page: Path) -> None:
    text = page.read_text("utf-8")
    order = [
        "<b>VALID</b>",
        "Takes 30 parallel runs",
        "How it scales",
        ">Steps<",
        ">Operations<",
        "What happened when",
        ">Audit<",
        "Generator and clocks",
        ">Plan<",
        "All options",
        ">Facts<",
    ]

    places = [text.index(words) for words in order]

    assert places == sorted(places)


def test_the_page_says_what_was_run_where(page: Path) -> None:
    text = " ".join(Page(page).text.split())

    assert "server version 3.17.2" in text
    assert "ranks 4 on 1 host: node0000" in text
    assert "Every option has its default." in text
    assert "QueuePool limit of size 5 overflow 10 reached." in text


@pytest.mark.parametrize("name", ["page", "both"])
def test_the_page_needs_nothing_but_itself(name: str, request: pytest.FixtureRequest) -> None:
    page = Page(request.getfixturevalue(name))

    assert page.loads
    assert all(address.startswith(("data:image/svg+xml;base64,", "#result-")) for address in page.loads)
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & set(page.tags)
    assert not page.handlers


def test_the_pictures_within_the_page_hold_no_script_and_load_nothing(both: Path) -> None:
    for address in Page(both).loads:
        if address.startswith("data:"):
            picture = ET.fromstring(base64.b64decode(address.partition(",")[2]))
            for element in picture.iter():
                assert not element.tag.endswith(("script", "foreignObject"))
                for name, value in element.attrib.items():
                    assert not name.startswith("on")
                    if name.endswith("href"):
                        assert value.startswith(("#", "data:image/png;base64,"))


def test_what_others_said_is_text_and_never_markup(both: Path) -> None:
    page = Page(both)

    # In a note, two values and a name of facts, twice in the plan, as a part of the server; and once as far as a host's
    # name goes.
    assert page.text.count(HOSTILE) == 7
    assert page.text.count("<script>") == 8
    assert page.tags.count("img") == 12
    assert page.tags.count("style") == 1


def test_the_server_has_a_section_where_something_is_known_of_it(tmp_path: Path) -> None:
    told = table("prometheus", [{"time": BEGAN, "query": "cpu", "labels": "groupname=database", "value": 1.25}])
    known = [
        usual(tmp_path / "own.h5", runs=(10,), repeats=1, faults=()),
        usual(tmp_path / "foreign.h5", runs=(10,), repeats=1, faults=(), server=False, prometheus=told),
    ]
    neither = usual(tmp_path / "neither.h5", runs=(10,), repeats=1, faults=(), server=False)

    own, foreign, nothing = (Page(write_report([path], tmp_path / path.stem)) for path in (*known, neither))

    assert "postgres" in own.text.partition("The server ")[2]
    assert "database" in foreign.text
    assert (tmp_path / "foreign" / "usage.png").is_file()
    assert "Open files" not in nothing.text
    assert not (tmp_path / "neither" / "usage.png").exists()


def test_what_signing_in_costs_stands_below_the_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("analysis.report.cost_of_sign_in", lambda _, steps: f"It is dear at {steps[0].where}.")
    result = usual(tmp_path / "r.h5", runs=(10,), repeats=1, faults=())

    text = Page(write_report([result], tmp_path / "report")).text

    assert "It is dear at 10 runs (repeat 1)." in text.partition("How it scales")[0]


def test_several_results_have_a_section_each_and_a_table_above(both: Path) -> None:
    page = Page(both)

    assert page.tags.count("section") == 2
    assert [load for load in page.loads if load.startswith("#")] == ["#result-1", "#result-2"]
    assert {path.name for path in both.parent.iterdir()} == {"report.html", "1", "2", "results-parallel-runs.png"}
    assert (both.parent / "2" / "scaling.png").is_file()


def test_options_that_differ_from_their_default_stand_first(both: Path) -> None:
    text = " ".join(Page(both).text.split())
    changed = text.rpartition("Option Value Default Meaning")[2].partition("All options")[0]

    assert changed.strip().startswith("--runs 7 10,30,100 ")
    assert f"--uri {HOSTILE} " in changed
    assert "--seed" not in changed


def test_an_open_model_says_what_was_late_and_dropped_and_of_users_how_many_runs_they_began(tmp_path: Path) -> None:
    told = {"sizes": (4,), "users": True, "duration": 0.5, "rate": 20.0, "sweep": "params=10,100"}
    page = Page(write_report([scripts.job(tmp_path / "r.h5", scripts.batches, workload="log-batch", **told)]))

    heads = page.text.partition("Steps")[2].split()[:12]
    assert (
        heads
        == [
            "Users",
            "Params",
            "Repeat",
            "Runs",
            "Finished",
            "Failed",
            "Iterations",
            "Done",
            "after",
            "Per",
            "second",
            "Requests",
        ][:12]
    )
    assert "Throughput is that of the time given to the users" in page.text
    assert "dropped are those for which no user was free" in page.text


def test_runs_that_begin_at_once_have_no_columns_of_users(page: Path) -> None:
    text = page.read_text("utf-8")

    assert '<th rowspan="2">Runs</th>' in text
    assert text.count(">Runs<") == 2
    assert "dropped" not in text


def test_published_pictures_stand_in_the_section_of_one_result_and_before_those_of_several(
    page: Path, tmp_path: Path
) -> None:
    one = page.read_text("utf-8")
    assert one.index("How far the tail reaches") < one.index("mantik&#39;s figures") < one.index("What happened when")

    results = [
        scripts.job(tmp_path / f"{n}.h5", scripts.logging(n), sizes=(2,), workload="logging") for n in (1.0, 2.0)
    ]
    several = write_report(results, tmp_path / "out").read_text("utf-8")
    assert several.index("FastTrackML&#39;s panel") < several.index('id="result-1"')
    assert (tmp_path / "out" / "performanceReport.png").is_file()


def test_an_empty_result_is_said_to_be_empty(both: Path) -> None:
    text = both.read_text("utf-8")

    assert "The result holds no attempt at all." in text
    assert "There is no answer: no step was played." in text


def test_a_damaged_result_leaves_no_report(tmp_path: Path) -> None:
    damaged = tmp_path / "result.h5"
    damaged.write_bytes(b"nothing of the kind")

    with pytest.raises(Refusal):
        write_report([damaged], tmp_path / "out")

    assert not (tmp_path / "out" / "report.html").exists()


def test_a_report_on_nothing_is_refused() -> None:
    with pytest.raises(UsageRefusal):
        write_report([])
