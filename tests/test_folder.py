from __future__ import annotations

import errno
import json
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from hpcstress.errors import Refusal, UsageRefusal
from hpcstress.folder import JOURNALS, RunFolder, default_path, node_place, open_files_limit
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
    assert folder.journal_files() == {}


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
    ranks = [11, 2, 1_000_000, 999_999, 0]
    for rank in ranks:
        folder.journal(rank).touch()
    for name in ("notes.txt", "rank-7.rows", "rank-000007 (copy).rows", "rank-.rows", "rank-000007.rows.gz"):
        (folder.journals / name).touch()
    assert [*folder.journal_files().items()] == [(rank, folder.journal(rank)) for rank in sorted(ranks)]


def test_the_default_name_says_when_what_was_played(tmp_path: Path) -> None:
    path = default_path("parallel-runs", 1_700_000_000.9)
    assert path.parent == Path("results")
    assert re.fullmatch(r"20231114-221320-parallel-runs-[0-9a-f]{8}", path.name)


def test_jobs_that_start_in_the_same_second_have_folders_of_their_own() -> None:
    assert len({default_path("parallel-runs", 1.7e9) for _ in range(100)}) == 100


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
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(Refusal, match=r"link cannot be written \(No such file or directory\)"):
        RunFolder(tmp_path / "link").create(0)


@pytest.mark.parametrize(("free", "enough"), [(164 * MIB, True), (164 * MIB - 1, False), (0, False)])
def test_a_disk_has_to_hold_the_rows_and_something_to_spare(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, free: int, enough: bool
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    if enough:
        folder.create(100 * MIB)
        assert folder.plan.exists()
    else:
        sentence = rf"has {free >> 20} MiB left, the job needs 164 MiB, 64 of them to spare: choose another"
        with pytest.raises(Refusal, match=sentence):
            folder.create(100 * MIB)
        assert not folder.path.parent.exists()


def test_what_is_needed_is_never_said_to_be_what_is_left(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=164 * MIB))
    with pytest.raises(Refusal, match="has 164 MiB left, the job needs 165 MiB"):
        folder.create(100 * MIB + 1)


def test_a_disk_that_cannot_be_asked_is_refused(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Path) -> None:
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(shutil, "disk_usage", fail)
    with pytest.raises(Refusal, match=r"cannot be written \(Stale file handle\): choose another"):
        folder.create(0)
    assert not folder.path.parent.exists()


def test_a_refusal_for_lack_of_room_takes_nothing_of_somebody_elses_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "thesis.tex").write_text("years")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    with pytest.raises(Refusal):
        RunFolder(tmp_path).create(1)
    assert content(tmp_path) == {"thesis.tex": b"years"}
    assert not (tmp_path / "journals").exists()


def test_a_refusal_leaves_no_folder_behind_that_was_not_there_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    for path in ("a/b/c", "mine/b/c", "mine"):
        with pytest.raises(Refusal):
            RunFolder(tmp_path / path).create(1)
        # The folder of the user stays, although it is empty.
        assert [*tmp_path.rglob("*")] == [tmp_path / "mine"]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Refusal):
        RunFolder(Path("results/x")).create(1)
    assert [*tmp_path.rglob("*")] == [tmp_path / "mine"]


def test_a_folder_that_cannot_be_made_to_its_end_is_not_left_half_made(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="File name too long"):
        RunFolder(tmp_path / "results" / ("x" * 300)).create(0)
    assert not [*tmp_path.iterdir()]


# What is removed.


@pytest.mark.parametrize("place", ["thesis.tex", "job/thesis.tex", "job/journals/thesis.tex"])
def test_what_others_have_put_next_to_what_was_made_stays(tmp_path: Path, place: str) -> None:
    folder = RunFolder(tmp_path / "results" / "job")
    folder.create(0)
    (tmp_path / "results" / place).write_text("years")
    folder.remove()
    assert content(tmp_path) == {f"results/{place}": b"years"}


def test_what_is_gone_already_needs_no_removal(folder: RunFolder) -> None:
    folder.create(0)
    shutil.rmtree(folder.path)
    folder.remove()
    assert not folder.path.parent.exists()


def test_a_folder_that_was_refused_is_not_removed_by_whoever_was_refused(folder: RunFolder) -> None:
    folder.create(0)
    again = RunFolder(folder.path)
    for refused in (folder, again):
        with pytest.raises(Refusal):
            refused.create(0)
        refused.remove()
        assert folder.plan.exists()
        assert folder.journals.is_dir()


def test_of_a_job_that_has_not_begun_nothing_is_left(folder: RunFolder) -> None:
    folder.create(0)
    folder.remove()
    assert not folder.path.parent.exists()
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


def test_files_of_others_between_the_journals_stay(folder: RunFolder) -> None:
    folder.create(0)
    folder.journal(0).touch()
    (folder.journals / "thesis.tex").write_text("years")
    folder.remove_journals()
    assert content(folder.journals) == {"thesis.tex": b"years"}


def test_journals_that_are_gone_need_no_removal(folder: RunFolder) -> None:
    folder.create(0)
    shutil.rmtree(folder.path)
    folder.remove_journals()


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


@pytest.mark.parametrize(
    "line", [b"3", b'"text"', b"[]", b"{}", b"null", b"\xff\xfe", b"", b'{"event": "st', b"[" * 100_000, b"9" * 5000]
)
def test_lines_that_are_no_events_are_passed_over_and_counted(folder: RunFolder, line: bytes) -> None:
    folder.create(0)
    folder.note("job", facts={})
    with folder.log.open("ab") as log:
        log.write(line + b"\n")
    folder.note("step", number=0)
    skipped: list[str] = []
    assert [event["event"] for event in folder.events(skipped.append)] == ["job", "step"]
    assert skipped == [line.decode("utf-8", "replace")]


def test_without_a_log_there_are_no_events(folder: RunFolder) -> None:
    assert list(folder.events()) == []


def test_a_log_that_cannot_be_written_is_refused_with_the_reason(folder: RunFolder) -> None:
    folder.create(0)
    with full_beyond(10), pytest.raises(Refusal, match=r"log\.jsonl cannot be written: File too large\."):
        folder.note("job", facts={})


def test_a_log_whose_folder_is_gone_is_refused_with_what_to_do(folder: RunFolder) -> None:
    folder.create(0)
    shutil.rmtree(folder.path)
    with pytest.raises(Refusal, match=r"cannot be written: No such file or directory\. .* find their folder, then"):
        folder.note("job", facts={})
    with pytest.raises(Refusal, match=r"plan\.toml cannot be written: No such file or directory\."):
        folder.write_plan("")


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


# Journals on the nodes.


def test_a_node_keeps_journals_where_its_own_variables_say(folder: RunFolder, tmp_path: Path) -> None:
    place = node_place("abc123", {JOURNALS: "${DISK}/jobs/", "DISK": "/elsewhere"})
    assert place == "${DISK}/jobs/hpcstress-abc123"
    (tmp_path / "jobs").mkdir()
    folder.keep_on_node(place, {"DISK": str(tmp_path)})
    assert folder.journal(7) == tmp_path / "jobs" / "hpcstress-abc123" / "rank-000007.rows"
    assert folder.journal(7).parent.stat().st_mode & 0o777 == 0o700


def test_without_the_variable_they_are_in_the_folder_of_the_job(folder: RunFolder) -> None:
    assert node_place("abc123", {}) is node_place("abc123", {JOURNALS: ""}) is None
    folder.keep_on_node(None, {})
    assert folder.journal(7).parent == folder.journals


def test_a_place_that_is_no_absolute_path_is_refused() -> None:
    for told in ("tmp", "$NOBODY/tmp", "."):
        with pytest.raises(UsageRefusal, match="is no folder that a node knows"):
            node_place("abc123", {JOURNALS: told})


def test_a_node_without_that_folder_refuses_and_so_does_one_where_it_is_somebody_elses(
    folder: RunFolder, tmp_path: Path
) -> None:
    with pytest.raises(Refusal, match="No such file or directory"):
        folder.keep_on_node(str(tmp_path / "none" / "hpcstress-abc"), {})
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "hpcstress-abc").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Refusal, match="it is somebody else's"):
        folder.keep_on_node(str(tmp_path / "hpcstress-abc"), {})


def test_a_nodes_last_journal_takes_their_folder_with_it(folder: RunFolder, tmp_path: Path) -> None:
    folder.create(0)
    folder.keep_on_node(str(tmp_path / "hpcstress-abc"), {})
    for rank in (3, 4):
        folder.journal(rank).write_bytes(b"")
    (folder.journals / "rank-000001.rows").write_bytes(b"")
    assert [*folder.journal_files()] == [1, 3, 4]
    folder.remove_local_journal(3)
    assert [*folder.journal_files()] == [1, 4]
    folder.remove_local_journal(4)
    assert not (tmp_path / "hpcstress-abc").exists()
    folder.remove_local_journal(4)


def test_what_was_copied_from_a_node_goes_before_what_lies_there(folder: RunFolder, tmp_path: Path) -> None:
    folder.create(0)
    folder.keep_on_node(str(tmp_path / "hpcstress-abc"), {})
    folder.journal(3).write_bytes(b"")
    (folder.journals / "rank-000003.rows").write_bytes(b"")
    assert folder.journal_files() == {3: folder.journals / "rank-000003.rows"}
