"""The notebook, executed as Jupyter would: cell after cell in a fresh process, the last line of each shown."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.analysis import scripts

NOTEBOOK = Path(__file__).parents[2] / "analysis" / "results.ipynb"

# Stands in for a kernel: what a cell ends with is shown as HTML or as a picture, if it knows how, and else as text.
KERNEL = """
import ast, json, sys, warnings
warnings.simplefilter("error")
world = {"__name__": "__main__"}
for cell in json.load(open(sys.argv[1], encoding="utf-8"))["cells"]:
    if cell["cell_type"] != "code":
        continue
    body = ast.parse("".join(cell["source"])).body
    last = body.pop() if isinstance(body[-1], ast.Expr) else None
    exec(compile(ast.Module(body, []), cell["id"], "exec"), world)
    shown = eval(compile(ast.Expression(last.value), cell["id"], "eval"), world) if last else None
    if hasattr(shown, "_repr_png_"):
        print("PNG" if shown._repr_png_().startswith(b"\\x89PNG") else "broken")
    elif hasattr(shown, "_repr_html_"):
        print("HTML " + shown._repr_html_().replace("\\n", " "))
"""


def executed(result: Path | None) -> list[str]:
    environment = {name: value for name, value in os.environ.items() if name != "HPCSTRESS_RESULT"}
    environment["PYTHONPATH"] = str(NOTEBOOK.parents[1])
    if result is not None:
        environment["HPCSTRESS_RESULT"] = str(result)
    done = subprocess.run(
        [sys.executable, "-c", KERNEL, NOTEBOOK],
        cwd=NOTEBOOK.parent,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    path = tmp_path_factory.mktemp("notebook") / "result.h5"
    scripts.job(path, scripts.parameters, sizes=(1,), sweep="params=10,300", workload="parameters")
    return executed(path)


def test_it_tells_the_answer(shown: list[str]) -> None:
    assert "Takes at least 1 parallel run (params=300), the largest step tried" in "\n".join(shown)


def test_it_draws_the_scaling_curves_and_all_else_that_a_report_has(shown: list[str]) -> None:
    assert shown.count("PNG") == 6


def test_it_draws_the_published_pictures(shown: list[str]) -> None:
    (gallery,) = [line for line in shown if "mantik" in line]

    assert gallery.startswith("HTML <h3>mantik&#x27;s figures</h3>")
    assert gallery.count("<img") == 1


def test_it_shows_the_numbers(shown: list[str]) -> None:
    steps, operations = [line for line in shown if line.startswith("HTML") and "<table" in line]

    assert "service_p99" in steps
    assert "log_batch" in operations


def test_without_a_result_it_reads_the_one_that_comes_along() -> None:
    shown = executed(None)

    assert shown[0].startswith("VALID")
    assert shown.count("PNG") == 6


def test_it_is_stored_without_what_was_shown() -> None:
    notebook = json.loads(NOTEBOOK.read_text("utf-8"))

    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None
