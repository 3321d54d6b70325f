from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from analysis.__main__ import main
from analysis.summary import summary
from hpcstress.errors import FAILED, OK, USAGE
from tests.analysis.conftest import Told


def test_report_prints_the_summary_and_where_the_page_is(usual_report: Told, usual_result: Path) -> None:
    assert usual_report.code == OK
    assert usual_report.words.startswith(summary(usual_result))
    assert usual_report.words.splitlines()[-1] == f"The report is {usual_result.parent}/report/report.html"


def test_export_prints_the_files_that_it_wrote(usual_result: Path, tmp_path: Path, capsys) -> None:
    assert main(["export", str(usual_result), "--format", "parquet", "--output", str(tmp_path)]) == OK

    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == str(tmp_path / "attempts.parquet")
    assert all(Path(path).is_file() for path in printed)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["report"], USAGE),
        (["report", "--depth", "3"], USAGE),
        (["export", "result.h5", "--format", "xlsx"], USAGE),
        (["frobnicate"], USAGE),
        (["report", "result.h5", "--output="], USAGE),
        (["export", "result.h5", "--output", " "], USAGE),
        (["report", "missing.h5"], FAILED),
        (["export", "missing.h5"], FAILED),
    ],
)
def test_what_cannot_be_done_is_one_line_and_a_code(words: list[str], code: int, capsys) -> None:
    assert main(words) == code

    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.strip().splitlines()) == 1


def test_an_address_in_place_of_a_file_does_not_give_its_password_away(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["report", "http://me:pa55word@mlflow.example/result.h5"]) == FAILED
    assert main(["report", "--outputt=http://mlflow.example/?pa55word"]) == USAGE

    err = capsys.readouterr().err
    assert "http:/***@mlflow.example/result.h5" in err
    assert "http://mlflow.example/?***" in err
    assert "pa55word" not in err
    assert [*tmp_path.iterdir()] == []


def test_a_folder_that_cannot_be_written_is_one_line(usual_result: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "file").touch()

    assert main(["export", str(usual_result), "--output", str(tmp_path / "file")]) == FAILED

    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert str(tmp_path / "file") in err


def test_a_package_that_is_not_installed_is_named(usual_result: Path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "analysis.export", None)
    monkeypatch.setitem(sys.modules, "pyarrow", None)

    assert main(["export", str(usual_result)]) == FAILED

    assert "pip install 'hpcstress[analysis]'" in capsys.readouterr().err


def test_a_damaged_file_is_one_sentence_without_a_traceback(tmp_path: Path) -> None:
    damaged = tmp_path / "result.h5"
    damaged.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(500))

    done = subprocess.run(
        [sys.executable, "-m", "analysis", "report", damaged], capture_output=True, text=True, check=False
    )

    assert done.returncode == FAILED
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1
    assert "hpcstress recover" in done.stderr
