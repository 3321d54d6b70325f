from __future__ import annotations

import csv
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.image
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.__main__ import main
from analysis.compare import write_comparison
from analysis.figures import style
from analysis.rivals import rivals_of, told_apart
from hpcstress.errors import Refusal, UsageRefusal
from hpcstress.plan import Plan
from hpcstress.rounds import begin
from tests.analysis.results import story

HOSTILE = "<script>alert(1)</script>$x$"
Said = Callable[..., tuple[int, str, str]]


def result(path: Path, server: str, seed: int, speed: float = 1.0, **changes: object) -> Path:
    """Write the result of one round of a server."""
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = {"server": {"name": server, "version": "1.2"}, "host": "node"}
    return story(
        path,
        **{  # type: ignore[arg-type]
            "runs": (3, 6),
            "repeats": 1,
            "seed": seed,
            "speed": speed,
            "server": False,
            "facts": facts,
            **changes,
        },
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a comparison of three servers in four rounds; one turn is not over."""
    path = tmp_path_factory.mktemp("all") / "comparison"
    match = begin(path, Plan(), ["mlflow-sqlite", "mlflow-postgres", "fasttrackml-sqlite"])
    for number, turn in enumerate(match.turns(4)):
        speed = {"mlflow-sqlite": 1.0, "mlflow-postgres": 1.05}.get(turn.server, 10.0)
        result(match.folder(turn).result, turn.server, number, speed)
        if number < 11:
            match.over(turn, 0)
    return path


@pytest.fixture(scope="module")
def page(folder: Path) -> Path:
    return write_comparison([folder])[0]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Keep the names of pictures, and spend no time on the pictures themselves."""
    names: list[str] = []

    def saved(_figure: object, path: Path) -> str:
        names.append(path.name)
        return "data:,"

    monkeypatch.setattr("analysis.compare.saved", saved)
    return names


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str], drawn: list[str]) -> Said:
    def run(*words: object) -> tuple[int, str, str]:
        code = main(["compare", *map(str, words)])
        told = capsys.readouterr()
        return code, told.out, told.err

    return run


class Text(HTMLParser):
    """Collect the words of a page and the names of its elements."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.words, self.elements = "", list[str]()
        self.feed(page.read_text("utf-8"))

    def handle_data(self, data: str) -> None:
        self.words += data

    def handle_starttag(self, tag: str, _: object) -> None:
        self.elements.append(tag)


# Which results belong together.


def test_a_comparison_has_its_servers_as_they_were_named_and_only_the_turns_that_are_over(folder: Path) -> None:
    rivals = rivals_of([folder])
    assert [rival.name for rival in rivals] == ["mlflow-sqlite", "mlflow-postgres", "fasttrackml-sqlite"]
    assert sum(len(rival.rounds) for rival in rivals) == 11
    assert all(sorted(one.number or 0 for one in rival.rounds) in ([1, 2, 3, 4], [1, 2, 3]) for rival in rivals)


def test_results_of_one_server_are_its_rounds(tmp_path: Path) -> None:
    paths = [result(tmp_path / str(seed) / "result.h5", "one", seed) for seed in (1, 2)]
    other = tmp_path / "other" / "result.h5"
    other.parent.mkdir()
    story(other, runs=(3, 6), repeats=1, server=False, facts={"uri": "https://elsewhere"})
    rivals = rivals_of([*paths, other.parent])
    assert [(rival.name, len(rival.rounds)) for rival in rivals] == [("mlflow-sqlite", 2), ("https://elsewhere", 1)]
    # Nobody knows which of them were measured together.
    assert {one.number for rival in rivals for one in rival.rounds} == {None}


def test_where_all_are_of_one_server_each_path_stands_for_itself(tmp_path: Path) -> None:
    paths = [result(tmp_path / name / "result.h5", "one", 1) for name in ("before", "after")]
    assert [rival.name for rival in rivals_of(paths)] == ["before/result.h5", "after/result.h5"]


ZONES = "multi-az-nfs@3.17.0,workers=2,pool=80,replicas=3,shared=/scratch/"


@pytest.mark.parametrize("servers", [[f"{ZONES}a", f"{ZONES}b"], [ZONES, ZONES]])
def test_servers_with_long_names_are_told_apart_in_words_and_pictures(tmp_path: Path, servers: list[str]) -> None:
    path = tmp_path / "comparison"
    match = begin(path, Plan(), servers)
    for number, turn in enumerate(match.turns(1)):
        result(match.folder(turn).result, turn.name, number, 1.0)
        match.over(turn, 0)
    names = [rival.name for rival in rivals_of([path])]
    assert len({style.text(name) for name in names}) == 2
    assert names[0].startswith("multi-az-nfs@3.17.0,")
    assert names[1].endswith("/scratch/b" if servers[0] != servers[1] else "/scratch/ #2")


@given(st.lists(st.text("ab#2…", min_size=1, max_size=120) | st.integers(40, 120).map("a".__mul__), unique=True))
def test_no_two_servers_have_one_name_and_a_picture_shows_all_of_it(names: list[str]) -> None:
    found = told_apart(names)
    assert len({style.text(name) for name in found}) == len(names)
    for name, short in zip(names, found, strict=True):
        assert short == name or len(name) > 44


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    one = result(tmp_path / "a" / "result.h5", "one", 1)
    with pytest.raises(UsageRefusal, match="There is nothing to compare"):
        rivals_of([])
    with pytest.raises(UsageRefusal, match="There is one server only"):
        rivals_of([one])
    with pytest.raises(UsageRefusal, match="is given twice"):
        rivals_of([one, one.parent])
    with pytest.raises(UsageRefusal, match="holds neither"):
        rivals_of([one, tmp_path])
    with pytest.raises(Refusal, match="There is no result"):
        rivals_of([one, tmp_path / "none.h5"])


# The page.


@pytest.mark.slow
def test_the_page_begins_with_a_sentence_for_every_two_servers(page: Path) -> None:
    words = Text(page).words
    places = [
        words.index(told)
        for told in (
            "fasttrackml-sqlite is faster than mlflow-sqlite in 6 of 6 operations",
            "How many times as fast mlflow-postgres is",
            "How they scale",
            "Numbers",
            "How plans, hosts and servers differ",
            "Rounds",
        )
    ]
    assert places == sorted(places)
    assert "UNLIKE" not in words


@pytest.mark.slow
def test_pictures_and_the_table_lie_beside_the_page(page: Path, folder: Path) -> None:
    assert page == folder / "comparison" / "compare.html"
    pictures = {path.name for path in page.parent.glob("*.png")}
    forests = {f"forest-{number}.png" for number in (1, 2, 3)}
    assert pictures == {*forests, "scaling.png", "panel.png", "durations.png"}
    for name in pictures:
        height, width, _ = matplotlib.image.imread(page.parent / name).shape
        assert width > height > 200
    with (page.parent / "comparison.csv").open() as file:
        rows = [*csv.DictReader(file)]
    assert len(rows) == 3 * (6 + 4)
    first = rows[0]
    numbers = [[float(value) for value in first[f"{side}_values"].split()] for side in ("first", "second")]
    assert [len(of) for of in numbers] == [int(first["first_rounds"]), int(first["second_rounds"])]
    assert float(first["low"]) < float(first["times_as_fast"]) < float(first["high"])


@pytest.mark.slow
def test_the_page_says_how_servers_differ_and_where_the_rounds_are(page: Path, folder: Path) -> None:
    words = " ".join(Text(page).words.split())
    assert "server namemlflow-sqlitemlflow-postgresfasttrackml-sqlite" in words
    assert f"{folder}/round-1/mlflow-sqlite/result.h5" in words


def test_what_others_said_is_text_and_nothing_else(tmp_path: Path, drawn: list[str]) -> None:
    match = begin(tmp_path / "all", Plan(), [HOSTILE, "other"])
    for number, turn in enumerate(match.turns(2)):
        facts = {"server": {HOSTILE: turn.server}, "began": HOSTILE, "host": HOSTILE + str(number)}
        result(match.folder(turn).result, turn.server, number, facts=facts, notes=(HOSTILE,))
        match.over(turn, 0)
    page = write_comparison([tmp_path / "all"], tmp_path / "page")[0]
    text = Text(page)
    assert "script" not in text.elements
    assert "<script>alert(1)</script>" in text.words
    assert "http" not in page.read_text("utf-8").replace("http-equiv", "")


def test_plans_that_differ_are_told_before_anything_else(tmp_path: Path, drawn: list[str]) -> None:
    paths = [
        result(tmp_path / name / "result.h5", "one", number, params=params)
        for number, (name, params) in enumerate((("before", 50), ("after", 60)))
    ]
    page, told = write_comparison(paths)
    assert page == tmp_path / "before" / "comparison" / "compare.html"
    assert told.startswith("The plans differ. --params: 50 (before/result.h5), 60 (after/result.h5).\n")
    words = Text(page).words
    assert words.index("UNLIKE") < words.index("Nothing is decided")


def test_one_operation_in_several_sizes_has_the_bars_of_mlflow_go(tmp_path: Path, drawn: list[str]) -> None:
    paths = [
        result(tmp_path / name / "result.h5", "one", number, workload="create-run")
        for number, name in enumerate(("before", "after"))
    ]
    write_comparison(paths)
    assert drawn == ["forest.png", "scaling.png", "durations.png", "iterations.png"]


# The command.


def test_the_command_says_who_is_faster_in_a_sentence_and_a_table(said: Said, folder: Path, tmp_path: Path) -> None:
    code, told, complaints = said(folder, "--output", tmp_path / "page")
    assert (code, complaints) == (0, "")
    assert "fasttrackml-sqlite is faster than mlflow-sqlite in 6 of 6 operations" in told
    assert "throughput, 6 parallel runs" in told
    assert "All 30 intervals hold together with 95 % confidence." in told
    assert f"The comparison is {tmp_path}/page/compare.html" in told


def test_a_wide_margin_makes_servers_the_same(said: Said, folder: Path, tmp_path: Path) -> None:
    told = said(folder, "--output", tmp_path / "page", "--margin", "100%")[1]
    assert re.match(
        "Neither mlflow-sqlite nor mlflow-postgres is surely faster in any of 6 operations; [1-6] the same", told
    )
    assert " the same" not in said(folder, "--output", tmp_path / "page")[1].partition("\n\n")[0]
    assert "within 100 %" in told


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--margin", "0"], "--margin: Nothing is exactly the same"),
        (["--margin", "much"], "'much' is not a share"),
        (["none.h5"], "There is no result none.h5"),
        ([], "There is nothing to compare"),
    ],
    ids=["no margin", "bad margin", "no result", "nothing"],
)
def test_wrong_usage_is_a_sentence(said: Said, words: list[str], sentence: str) -> None:
    code, told, complaints = said(*words)
    assert code in (1, 2)
    assert told == ""
    assert sentence in complaints
