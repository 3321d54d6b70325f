from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from analysis.summary import summary
from tests.analysis import scripts
from tests.analysis.results import rows, story, write


def test_the_summary_is_the_verdict_the_answer_the_audit_the_notes_and_a_small_table(usual_result: Path) -> None:
    verdict, answer, audit, server, note, empty, head, *table, worst = summary(usual_result).splitlines()

    assert verdict.startswith("VALID: 4 ranks delivered every attempt")
    assert answer.startswith("Takes 30 parallel runs")
    assert audit.startswith("The audit read back 252 runs: everything")
    assert server.startswith(
        "No part of the server used all of its cores: the busiest, mlflow, used 3.1 cores at 100 runs"
    )
    assert note == "The server answered 400: QueuePool limit of size 5 overflow 10 reached."
    assert empty == ""
    assert head.split() == ["runs", "repeats", "duration", "answers/s", "p50", "p99", "failed"]
    assert [line.split()[0] for line in table] == ["10", "30", "100"]
    assert len({len(line) for line in [head, *table]}) == 1
    assert worst == "Each figure is that of the worst repeat; failures are those of all repeats."


def test_where_nothing_was_repeated_nothing_is_said_of_repeats(tmp_path: Path) -> None:
    assert summary(story(tmp_path / "r.h5", runs=(2, 3), repeats=1)).splitlines()[-1].split()[0] == "3"


def test_of_a_sweep_and_an_open_model_the_table_has_the_columns(tmp_path: Path) -> None:
    told = {"sizes": (4,), "users": True, "duration": 0.3, "rate": 20.0, "sweep": "params=10,100"}
    *_, head, first, second = summary(
        scripts.job(tmp_path / "r.h5", scripts.batches, workload="log-batch", **told)
    ).splitlines()

    columns = ["users", "params", "repeats", "duration", "answers/s", "p50", "p99", "late", "dropped", "failed"]
    assert head.split() == columns
    assert [line.split()[:3] for line in (first, second)] == [["4", "10", "1"], ["4", "100", "1"]]


def test_what_servers_said_does_not_reach_the_terminal_as_commands(tmp_path: Path) -> None:
    text = summary(write(tmp_path / "r.h5", rows([]), {}, notes=["\x1b]0;gone\x07 twice\nover"] * 50))

    assert "\x1b" not in text
    assert text.count("]0;gone twice over\n") == 10


@pytest.mark.parametrize(("notes", "more"), [(10, None), (11, "1 more note"), (1010, "1,000 more notes")])
def test_notes_that_are_not_shown_are_counted(tmp_path: Path, notes: int, more: str | None) -> None:
    lines = summary(write(tmp_path / "r.h5", rows([]), {}, notes=["word"] * notes)).splitlines()

    assert lines.count("word") == 10
    assert lines[13:] == ([f"And {more} in the report."] if more else [])


def test_the_summary_of_nothing_is_short(tmp_path: Path) -> None:
    lines = summary(write(tmp_path / "r.h5", rows([]), {})).splitlines()

    assert lines[0] == "INCOMPLETE: The result holds no attempt at all."
    assert len(lines) == 3


def test_the_summary_needs_nothing_that_a_rank_does_not_have(usual_result: Path) -> None:
    program = (
        "import sys, analysis.summary; analysis.summary.summary(sys.argv[1]); "
        "print({'pandas', 'matplotlib', 'jinja2', 'pyarrow', 'mpi4py', 'mlflow'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", program, usual_result], capture_output=True, text=True, check=True)

    assert done.stdout == "set()\n"
