from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from hpcstress.errors import Interruption
from hpcstress.folder import RunFolder
from hpcstress.plan import Plan
from hpcstress.submission import Job, Submission
from tests.fake_slurm import FakeSlurm, install


@pytest.fixture(autouse=True)
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """Slurm's programs; both they and the files are looked at without a pause."""
    monkeypatch.setattr("hpcstress.submission._LOOK_SECONDS", 0)
    monkeypatch.setattr("hpcstress.submission._ASK_SECONDS", 0)
    fake = install(tmp_path / "bin", monkeypatch)
    fake.queue()
    return fake


def job(folder: Path, name: str = "17") -> Job:
    """Return a job that has been submitted, of which nothing is to be seen yet."""
    folder.mkdir(exist_ok=True)
    place = folder / name
    logs = (folder / f"{name}.out", folder / f"{name}.err")
    return Job(f"plan-{name}", Plan(), 1, 4, RunFolder(place), folder / f"{name}.code", name, logs)


def submitted(folder: Path, *jobs: Job) -> Submission:
    return Submission(folder, "slurm", [*jobs], 30)


def end(one: Job, code: int, *, log: str = "", result: bool = False, journals: bool = False) -> None:
    """Leave what a job leaves that has ended."""
    for path in one.logs:
        path.write_text(log)
    if result or journals:
        one.folder.path.mkdir()
    if result:
        one.folder.result.touch()
    if journals:
        one.folder.journals.mkdir()
    one.code_file.write_text(f"{code}\n")


def waited(submission: Submission, acts: dict[str, Callable[[], object]] | None = None) -> tuple[int, list[str]]:
    """Wait; when a sentence with a word is said, do what belongs to the word. Return code and sentences."""
    said: list[str] = []

    def say(sentence: str) -> None:
        said.append(sentence)
        for word, act in (acts or {}).items():
            if word in sentence:
                act()

    return submission.wait(say), said


# Jobs that end by themselves.


@pytest.mark.parametrize("code", [0, 3, 99])
def test_a_job_with_a_result_ends_with_the_exit_code_of_the_tool(tmp_path: Path, code: int) -> None:
    one = job(tmp_path)
    end(one, code, result=True)
    submission = submitted(tmp_path, one)
    assert waited(submission) == (code, [f"Job 17 (plan-17) has ended with exit code {code}: {one.folder.result}"])
    assert submission.results == [one.folder.result]


def test_what_a_job_refused_with_is_told_and_what_srun_said_to_it_is_not(tmp_path: Path) -> None:
    one = job(tmp_path)
    end(one, 2, log="There is no such plan.\nsrun: error: n1: task 0: Exited with exit code 2\n")
    code, [sentence] = waited(submitted(tmp_path, one))
    assert code == 2
    assert sentence == (
        "Job 17 (plan-17) has failed with exit code 2. There is no such plan. "
        f"It had not begun to send; its log says more: {one.logs[1]}"
    )


def test_a_rank_that_was_killed_is_told_with_its_signal_and_what_it_had_measured(tmp_path: Path) -> None:
    one = job(tmp_path)
    end(one, 137, journals=True)
    code, [sentence] = waited(submitted(tmp_path, one))
    assert code == 3
    assert sentence == (
        "Job 17 (plan-17) has failed with exit code 137, a rank of it was killed by SIGKILL. "
        f"What it had measured: hpcstress recover {one.folder.path}"
    )


SRUN = """srun: error: n1: task 0: {end}
no provider found
srun: First task exited 10s ago
srun: StepId=1.0 tasks 1-2: running
srun: launch/slurm: _step_signal: Terminating StepId=1.0
srun: error: n2: task 1: Killed
"""


def test_where_srun_killed_ranks_that_waited_for_one_that_had_ended_the_first_is_told_with_the_last_words(
    tmp_path: Path,
) -> None:
    one = job(tmp_path)
    end(one, 137, log=SRUN.format(end="Exited with exit code 15"))
    code, [sentence] = waited(submitted(tmp_path, one))
    assert code == 1
    assert sentence == (
        "Job 17 (plan-17) has failed with exit code 137: n1: task 0 had ended with exit code 15, and srun killed the "
        f"others. no provider found. It had not begun to send; its log says more: {one.logs[1]}"
    )


@pytest.mark.parametrize(
    "log",
    [SRUN.format(end="Killed"), "srun: error: n1: task 0: Exited with exit code 3\nsrun: error: n2: task 1: Killed"],
)
def test_where_a_rank_was_killed_before_srun_killed_any_that_is_told(tmp_path: Path, log: str) -> None:
    one = job(tmp_path)
    end(one, 137, log=log)
    _, [sentence] = waited(submitted(tmp_path, one))
    assert "exit code 137, a rank of it was killed by SIGKILL. It had not" in sentence


def test_who_was_interrupted_was_not_killed(tmp_path: Path) -> None:
    one = job(tmp_path)
    end(one, 130, log="Interrupted before the first step.\n")
    code, [sentence] = waited(submitted(tmp_path, one))
    assert code == 130
    assert sentence.startswith(
        "Job 17 (plan-17) has failed with exit code 130. Interrupted before the first step. It had not begun"
    )


def test_a_job_of_this_process_that_refused_has_said_so_itself_and_has_no_log(tmp_path: Path) -> None:
    one = replace(job(tmp_path), logs=())
    end(one, 1)
    code, [sentence] = waited(replace(submitted(tmp_path, one), cluster="debug"))
    assert (code, sentence) == (1, "Job 17 (plan-17) has failed with exit code 1. It had not begun to send.")


def test_what_is_no_exit_code_of_the_tool_is_a_failure(tmp_path: Path) -> None:
    one = job(tmp_path)
    end(one, 250)
    code, [sentence] = waited(submitted(tmp_path, one))
    assert code == 1
    assert "exit code 250, a rank of it was killed by signal 122." in sentence


@pytest.mark.parametrize("word", [True, False], ids=["with its word", "without"])
@pytest.mark.parametrize("journals", [True, False], ids=["journals", "nothing"])
def test_a_job_that_ended_well_but_left_no_result_has_failed(
    tmp_path: Path, slurm: FakeSlurm, word: bool, journals: bool
) -> None:
    one = job(tmp_path)
    end(one, 0, journals=journals)
    if not word:
        one.code_file.unlink()
    slurm.queue("17|COMPLETED|n1|None")
    code, [said] = waited(submitted(tmp_path, one))
    assert code == (3 if journals else 1)
    assert said == (
        "Job 17 (plan-17) has failed: it ended with exit code 0, but there is no result. "
        "Look whether `setup` or `python` of the site's profile ends it early. "
        + (
            f"What it had measured: hpcstress recover {one.folder.path}"
            if journals
            else f"It had not begun to send; its log says more: {one.logs[1]}"
        )
    )


def test_a_result_may_come_a_little_later_than_the_word_that_all_is_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = job(tmp_path)
    end(one, 0)

    def look(_seconds: float) -> None:
        one.folder.path.mkdir(exist_ok=True)
        one.folder.result.touch()

    monkeypatch.setattr("hpcstress.submission.time.sleep", look)
    code, [said] = waited(submitted(tmp_path, one))
    assert (code, said) == (0, f"Job 17 (plan-17) has ended with exit code 0: {one.folder.result}")


def test_of_several_jobs_the_first_code_that_is_not_0_counts(tmp_path: Path) -> None:
    jobs = [job(tmp_path, name) for name in ("17_0", "17_1", "17_2")]
    for one, code in zip(jobs, (0, 99, 3), strict=True):
        end(one, code, result=True)
    assert waited(submitted(tmp_path, *jobs))[0] == 99


# The queue.


def test_waiting_running_and_ending_are_told_once_each(tmp_path: Path, slurm: FakeSlurm) -> None:
    one = job(tmp_path)
    slurm.queue("17|PENDING||Resources")
    acts = {
        "waits": lambda: slurm.queue("17|RUNNING|n[1-2]|None"),
        "runs on": lambda: end(one, 0, result=True),
    }
    code, said = waited(submitted(tmp_path, one), acts)
    assert code == 0
    assert said[:2] == [
        "Job 17 (plan-17) waits in the queue: Resources.",
        "Job 17 (plan-17) runs on n[1-2].",
    ]
    assert len(said) == 3


def test_a_slurm_that_is_silent_for_a_while_ends_nothing(tmp_path: Path, slurm: FakeSlurm) -> None:
    one = job(tmp_path)
    slurm.silent()
    acts = {"does not answer": lambda: end(one, 0, result=True)}
    code, said = waited(submitted(tmp_path, one), acts)
    assert (code, said[0]) == (0, "Slurm does not answer; the jobs may run all the same.")


@pytest.mark.parametrize("reason", ["AccountNotAllowed", "PartitionTimeLimit", "InvalidQOS"])
def test_a_job_that_would_never_start_is_cancelled(tmp_path: Path, slurm: FakeSlurm, reason: str) -> None:
    slurm.queue(f"17|PENDING||{reason}")
    code, said = waited(submitted(tmp_path, job(tmp_path)))
    assert (code, slurm.cancelled) == (1, ["17"])
    assert said[-1].startswith(
        f"Job 17 was cancelled, because Slurm would never start it ({reason}): correct --account"
    )


def test_a_job_that_would_never_start_and_cannot_be_cancelled_is_left_to_its_owner(
    tmp_path: Path, slurm: FakeSlurm
) -> None:
    slurm.queue("17|PENDING||InvalidQOS")
    (slurm.folder / "scancel").write_text("#!/bin/sh\nexit 1\n")
    code, said = waited(submitted(tmp_path, job(tmp_path)))
    assert code == 1
    assert said[-1].startswith(
        "Job 17 has to be cancelled (`scancel 17`), because Slurm would never start it (InvalidQOS): correct"
    )


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("17|CANCELLED||None", "Job 17 (plan-17) was cancelled while it waited in the queue: nothing was sent."),
        ("17|FAILED|n1|RaisedSignal:53(Real-time_signal_19)", "ended before it could write its log (RaisedSignal:53"),
        (
            "",
            "ended before it could write its log (Slurm does not know it any more): the compute nodes cannot write to",
        ),
    ],
)
def test_a_job_that_ended_before_it_began_is_told(tmp_path: Path, slurm: FakeSlurm, line: str, sentence: str) -> None:
    slurm.queue(line)
    code, [said] = waited(submitted(tmp_path, job(tmp_path)))
    assert code == 1
    assert sentence in said


@pytest.mark.parametrize(
    ("state", "sentence"),
    [
        ("CANCELLED", "was cancelled."),
        ("TIMEOUT", "reached its time limit of 30 minutes: give more --time."),
        ("NODE_FAIL", "lost a node."),
        ("OUT_OF_MEMORY", "had too little memory: use fewer ranks per node."),
        ("BOOT_FAIL", "died (boot_fail)."),
    ],
)
@pytest.mark.parametrize("journals", [True, False])
def test_a_job_whose_script_was_killed_is_told_and_never_waited_for(
    tmp_path: Path, slurm: FakeSlurm, state: str, sentence: str, journals: bool
) -> None:
    one = job(tmp_path)
    end(one, 0, journals=journals)
    one.code_file.unlink()
    slurm.queue(f"17|{state}|n1|None")
    code, [said] = waited(submitted(tmp_path, one))
    assert said.startswith(f"Job 17 (plan-17) {sentence} ")
    assert code == (3 if journals else 1)
    assert (f"hpcstress recover {one.folder.path}" in said) is journals


def test_what_a_dying_job_has_written_may_come_a_little_late(
    tmp_path: Path, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = job(tmp_path)
    slurm.queue("17|FAILED|n1|NonZeroExitCode")
    looks: list[float] = []

    def look(_seconds: float) -> None:
        looks.append(_seconds)
        if len(looks) == 2:
            end(one, 99, result=True)

    monkeypatch.setattr("hpcstress.submission.time.sleep", look)
    code, [said] = waited(submitted(tmp_path, one))
    assert (code, "has ended with exit code 99" in said) == (99, True)


def test_a_job_that_slurm_saw_completed_has_ended_well_also_where_its_word_does_not_come(
    tmp_path: Path, slurm: FakeSlurm
) -> None:
    one = job(tmp_path)
    end(one, 0, result=True)
    one.code_file.unlink()
    slurm.queue("17|COMPLETED|n1|None")
    code, [said] = waited(submitted(tmp_path, one))
    assert (code, said) == (0, f"Job 17 (plan-17) has ended with exit code 0: {one.folder.result}")


# Following, and giving up.


def test_what_jobs_write_is_followed_to_its_last_byte_and_once(tmp_path: Path, slurm: FakeSlurm) -> None:
    one = job(tmp_path)
    slurm.queue("17|RUNNING|n1|None")
    one.logs[0].write_bytes(b"first\n")
    heard: list[bytes] = []

    def follow(piece: bytes) -> None:
        heard.append(piece)
        if piece == b"first\n":
            end(one, 0, log="first\nlast\xff\n", result=True)
            one.logs[1].write_text("")

    assert submitted(tmp_path, one).wait(None, follow) == 0
    assert heard == [b"first\n", "last\xff\n".encode()]


def test_who_gives_up_waiting_is_told_how_to_end_the_jobs(tmp_path: Path, slurm: FakeSlurm) -> None:
    jobs = [job(tmp_path, name) for name in ("17_0", "17_1", "18")]
    slurm.queue("17_0|RUNNING|n1|None")

    def give_up(_sentence: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(Interruption, match="The jobs go on without you: `scancel 17 18` ends them"):
        submitted(tmp_path, *jobs).wait(give_up)


# On this machine.


@pytest.mark.parametrize(
    ("end", "sentence"),
    [
        ("pass", "was not begun, because the process 17 that starts the jobs had been told to end: nothing was sent."),
        (
            "os.kill(os.getpid(), 9)",
            "was ended, because the process 17 that starts the jobs was killed by SIGKILL. {rest}",
        ),
        (
            "sys.exit(1)",
            "was ended, because the process 17 that starts the jobs ended with exit code 1. {rest}",
        ),
    ],
)
def test_a_job_of_this_machine_is_over_when_the_process_that_starts_it_is(
    tmp_path: Path, end: str, sentence: str
) -> None:
    one = replace(job(tmp_path), id="17_1")
    one.logs[1].write_text("")
    process = subprocess.Popen([sys.executable, "-I", "-S", "-c", f"import os, sys; {end}"])
    submission = replace(submitted(tmp_path, one), cluster="local", process=process)
    rest = f"It had not begun to send; its log says more: {one.logs[1]}"
    assert waited(submission) == (1, [f"Job 17_1 (plan-17) {sentence.format(rest=rest)}"])
