from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from hpcstress.errors import Refusal
from hpcstress.folder import RunFolder, open_files_limit
from tests.disk import full_beyond

MIB = 1 << 20


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "results" / "job")


def content(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


# A new one.


def test_a_folder_is_made_with_its_parents_and_room_for_the_journals(folder: RunFolder) -> None:
    folder.create(1000)
    assert folder.journals.is_dir()
    assert folder.plan.read_text() == ""
    assert folder.journal_files() == []


def test_a_folder_that_holds_something_else_is_taken_and_nothing_in_it_is_touched(tmp_path: Path) -> None:
    (tmp_path / "slurm-1.out").write_text("log")
    RunFolder(tmp_path).create(1000)
    assert (tmp_path / "slurm-1.out").read_text() == "log"


def test_every_file_has_its_name(folder: RunFolder) -> None:
    assert folder.result.name == "result.h5"
    assert folder.plan.name == "plan.toml"
    assert folder.journal(42).parent == folder.journals


def test_journals_are_listed_in_the_order_of_the_ranks(folder: RunFolder) -> None:
    folder.create(0)
    ranks = [11, 2, 100_000, 0]
    for rank in ranks:
        folder.journal(rank).touch()
    (folder.journals / "notes.txt").touch()
    assert folder.journal_files() == [folder.journal(rank) for rank in sorted(ranks)]


# What is never overwritten.


def test_a_folder_of_a_job_is_never_taken_again(folder: RunFolder) -> None:
    folder.create(0)
    folder.journal(0).write_bytes(b"rows")
    before = content(folder.path)
    with pytest.raises(Refusal, match=r"job already holds a job, which is never overwritten: choose another --output"):
        folder.create(0)
    assert content(folder.path) == before


@pytest.mark.parametrize("name", ["plan.toml", "log.jsonl", "result.h5", "report/report.html", "journals/rank-0.rows"])
def test_any_file_of_a_job_is_enough_to_refuse_and_the_folder_stays_as_it_was(folder: RunFolder, name: str) -> None:
    path = folder.path / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    before = sorted(folder.path.rglob("*"))
    with pytest.raises(Refusal, match="already holds a job"):
        folder.create(0)
    assert sorted(folder.path.rglob("*")) == before
    assert path.read_text() == "mine"


# What cannot be written.


def test_a_place_that_cannot_be_written_is_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Refusal, match=r"file/job cannot be written \(Not a directory\): choose another --output\."):
        RunFolder(tmp_path / "file" / "job").create(0)
    with pytest.raises(Refusal, match=r"file cannot be written \(Not a directory\)"):
        RunFolder(tmp_path / "file").create(0)
    with pytest.raises(Refusal, match=r"cannot be written \(File name too long\)"):
        RunFolder(tmp_path / ("x" * 300)).create(0)


@pytest.mark.parametrize(("free", "enough"), [(164 * MIB, True), (164 * MIB - 1, False), (0, False)])
def test_a_disk_has_to_hold_the_rows_and_something_to_spare(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, free: int, enough: bool
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    if enough:
        folder.create(100 * MIB)
        assert folder.plan.exists()
    else:
        with pytest.raises(Refusal, match=rf"has {free >> 20} MiB left, the job writes up to 100 MiB: choose another"):
            folder.create(100 * MIB)
        assert not folder.path.exists()


def test_a_refusal_for_lack_of_room_takes_nothing_of_somebody_elses_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "thesis.tex").write_text("years")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    with pytest.raises(Refusal):
        RunFolder(tmp_path).create(1)
    assert content(tmp_path) == {"thesis.tex": b"years"}
    assert not (tmp_path / "journals").exists()


# What is removed.


def test_of_a_job_that_has_not_begun_nothing_is_left(folder: RunFolder) -> None:
    folder.create(0)
    folder.remove()
    assert not folder.path.exists()
    folder.create(0)


def test_what_others_have_put_into_the_folder_stays(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    (tmp_path / "thesis.tex").write_text("years")
    (tmp_path / "data").mkdir()
    folder.create(0)
    folder.remove()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "thesis.tex"]


def test_journals_go_and_everything_else_stays(folder: RunFolder) -> None:
    folder.create(0)
    folder.journal(0).touch()
    folder.remove_journals()
    assert [path.name for path in folder.path.iterdir()] == ["plan.toml"]


def test_a_result_goes_only_if_it_was_never_finished(folder: RunFolder) -> None:
    folder.create(0)
    for name in ("result.h5", "result.h5.17.part", "other.part"):
        (folder.path / name).touch()
    folder.remove_unfinished()
    assert sorted(path.name for path in folder.path.iterdir()) == ["journals", "other.part", "plan.toml", "result.h5"]


# The log.


def test_the_log_has_a_line_for_each_event_in_order(folder: RunFolder) -> None:
    folder.create(0)
    folder.note("job", facts={"ranks": 4, "said": "größer\n\u2028"})
    folder.note("step", number=0)
    assert list(folder.events()) == [
        {"event": "job", "facts": {"ranks": 4, "said": "größer\n\u2028"}},
        {"event": "step", "number": 0},
    ]
    assert len(folder.log.read_bytes().splitlines()) == 2


def test_a_log_that_was_cut_off_ends_before_the_cut(folder: RunFolder) -> None:
    folder.create(0)
    folder.note("job", facts={})
    whole = len(folder.log.read_bytes())
    folder.note("step", number=0)
    data = folder.log.read_bytes()
    for cut in range(whole, len(data) - 1):
        folder.log.write_bytes(data[:cut])
        assert [event["event"] for event in folder.events()] == ["job"]
    folder.log.write_bytes(data[:whole] + b"\xff\xfe\n" + data[whole:])
    assert [event["event"] for event in folder.events()] == ["job"]


def test_lines_that_are_no_events_are_passed_over(folder: RunFolder) -> None:
    folder.create(0)
    folder.note("job", facts={})
    with folder.log.open("a") as log:
        log.write('3\n"text"\n[]\n{}\nnull\n')
    folder.note("step", number=0)
    assert [event["event"] for event in folder.events()] == ["job", "step"]


def test_without_a_log_there_are_no_events(folder: RunFolder) -> None:
    assert list(folder.events()) == []


def test_a_log_that_cannot_be_written_is_refused_with_the_reason(folder: RunFolder) -> None:
    folder.create(0)
    with full_beyond(10), pytest.raises(Refusal, match=r"log\.jsonl cannot be written: File too large\."):
        folder.note("job", facts={})


# Open files.

RAISE = """
import resource
from hpcstress.folder import open_files_limit
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (100, 400))
print(open_files_limit(), *resource.getrlimit(resource.RLIMIT_NOFILE))
"""


def test_the_limit_of_open_files_is_raised_as_far_as_it_may(tmp_path: Path) -> None:
    told = subprocess.run([sys.executable, "-c", RAISE], check=True, capture_output=True, text=True)
    assert told.stdout == "400 400 400\n"


def test_the_limit_of_open_files_is_a_number_of_files() -> None:
    assert open_files_limit() == resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 0


def test_events_are_json_for_other_programs(folder: RunFolder) -> None:
    folder.create(0)
    folder.note("audit", step=1)
    assert json.loads(folder.log.read_text()) == {"event": "audit", "step": 1}
