from __future__ import annotations

from pathlib import Path

import pytest

from hpcstress.queue import GONE, State, ask, cancel
from tests.fake_slurm import FakeSlurm, install


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    return install(tmp_path / "bin", monkeypatch)


def test_slurm_is_asked_once_for_all_jobs(slurm: FakeSlurm) -> None:
    slurm.queue("17_0|RUNNING|n[1-2]|None", "17_1|PENDING||JobArrayTaskLimit", "18|COMPLETED|n1|None")
    assert ask(["17_0", "17_1", "18"]) == {
        "17_0": State("RUNNING", "n[1-2]", "None"),
        "17_1": State("PENDING", "", "JobArrayTaskLimit"),
        "18": State("COMPLETED", "n1", "None"),
    }
    asked = (slurm.folder / "asked").read_text().splitlines()
    assert len(asked) == 1
    assert "--jobs=17_0,17_1,18" in asked[0]


def test_lines_that_are_none_are_left_out(slurm: FakeSlurm) -> None:
    slurm.queue("a note of the site", "18|RUNNING|n1|a | b")
    assert ask(["18"]) == {"18": State("RUNNING", "n1", "a | b")}


def test_a_slurm_that_does_not_answer_is_no_end_of_a_job(slurm: FakeSlurm) -> None:
    assert ask(["18"]) is None


def test_a_job_that_slurm_has_forgotten_is_over(slurm: FakeSlurm) -> None:
    (slurm.folder / "squeue").write_text(
        "#!/bin/sh\necho 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1"
    )
    assert ask(["18"]) == {}
    assert GONE.over


def test_without_slurm_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert ask(["18"]) is None


def test_a_job_is_cancelled_by_its_number(slurm: FakeSlurm) -> None:
    assert cancel("18") is True
    assert slurm.cancelled == ["18"]


@pytest.mark.parametrize("text", ["exit 1", "exec sleep 60"], ids=["refuses", "hangs"])
def test_a_job_that_slurm_does_not_cancel_is_not_waited_for(
    slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setattr("hpcstress.queue._SECONDS", 0.05 if "sleep" in text else 30)
    (slurm.folder / "scancel").write_text(f"#!/bin/sh\n{text}\n")
    assert cancel("18") is False
    (slurm.folder / "scancel").unlink()
    monkeypatch.setenv("PATH", str(slurm.folder))
    assert cancel("18") is False


@pytest.mark.parametrize(
    ("state", "is_so"),
    [
        (State("PENDING", "", "Resources"), "waits"),
        (State("PENDING", "", "AccountNotAllowed"), "waits hopeless"),
        (State("PENDING", "", "Job's account not known, so it can't use this partition"), "waits hopeless"),
        *((State(name), "waits") for name in ("CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT", "SUSPENDED")),
        (State("RUNNING"), "runs"),
        (State("RUNNING", "", "AccountNotAllowed"), "runs"),
        *((State(name), "runs") for name in ("COMPLETING", "STAGE_OUT", "SIGNALING", "RESIZING", "STOPPED")),
        (State("COMPLETED"), "over"),
        (State("CANCELLED"), "over"),
        (State("NODE_FAIL"), "over"),
    ],
)
def test_a_job_waits_or_runs_or_is_over(state: State, is_so: str) -> None:
    assert [word for word in ("waits", "runs", "over", "hopeless") if getattr(state, word)] == is_so.split()
