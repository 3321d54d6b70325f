from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from hpcstress.task import Launch, main, play, play_as_task
from tests.mpi.launch import until


def program(text: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", text]


def ended_with(tmp_path: Path, launch: Launch, text: str, name: str = "code") -> str:
    launch.run(program(text), tmp_path / name)
    return (tmp_path / name).read_text()


@pytest.mark.parametrize(
    ("text", "code"),
    [("", "0"), ("raise SystemExit(3)", "3"), ("import os; os.kill(os.getpid(), 9)", "137")],
)
def test_what_a_job_ended_with_is_written_down_as_shells_count(tmp_path: Path, text: str, code: str) -> None:
    assert ended_with(tmp_path, Launch(60), text) == code


PATIENT = """
import signal, sys, time
signal.signal(signal.SIGINT, lambda *_: sys.exit(3))
open({ready!r}, "w").close()
while True: time.sleep(0.01)
"""
STUBBORN = PATIENT.replace("lambda *_: sys.exit(3)", "signal.SIG_IGN")


@pytest.mark.parametrize(("text", "code"), [(PATIENT, "3"), (STUBBORN, "137")])
def test_a_job_whose_time_is_over_may_write_its_result_and_is_killed_if_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], text: str, code: str
) -> None:
    wait = subprocess.Popen.wait

    def over(process: subprocess.Popen[bytes], timeout: float | None = None) -> int:
        if timeout == 7:
            until((tmp_path / "ready").exists)
            raise subprocess.TimeoutExpired("it", timeout)
        return wait(process, timeout)

    monkeypatch.setattr(subprocess.Popen, "wait", over)
    launch = Launch(7, grace=30 if code == "3" else 0.05)
    assert ended_with(tmp_path, launch, text.format(ready=str(tmp_path / "ready"))) == code
    assert capsys.readouterr().err == "The time limit is reached.\n"


def test_a_stop_ends_what_runs_and_nothing_more_is_started(tmp_path: Path) -> None:
    launch = Launch(60)

    def stop() -> None:
        until((tmp_path / "ready").exists)
        launch.stop()

    stopper = threading.Thread(target=stop)
    stopper.start()
    assert ended_with(tmp_path, launch, PATIENT.format(ready=str(tmp_path / "ready"))) == "3"
    stopper.join()
    launch.run(program(""), tmp_path / "second")
    assert not (tmp_path / "second").exists()


def test_a_stop_that_comes_while_a_job_is_started_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    launch = Launch(5)

    class Stopped(subprocess.Popen[bytes]):
        def __init__(self, *words: Any, **options: Any) -> None:
            super().__init__(*words, **options)
            until((tmp_path / "ready").exists)
            launch.stop()

    monkeypatch.setattr(subprocess, "Popen", Stopped)
    assert ended_with(tmp_path, launch, PATIENT.format(ready=str(tmp_path / "ready"))) == "3"
    # It was not its time that ended it.
    assert capsys.readouterr().err == ""


def test_what_killed_ranks_leave_in_shared_memory_is_removed_after_a_job_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweeps: list[str] = []
    monkeypatch.setattr("hpcstress.task.sweep", lambda: sweeps.append("swept"))
    ended_with(tmp_path, Launch(60), "")
    assert sweeps == []
    ended_with(tmp_path, Launch(60), "raise SystemExit(3)")
    assert sweeps == ["swept"]


def test_a_rank_of_slurm_s_hears_the_signals_as_any_rank_does_and_the_warning_as_an_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    numbers = (signal.SIGTERM, signal.SIGCONT, signal.SIGUSR2)
    before = {number: signal.signal(number, lambda *_: None) for number in numbers}
    heard: list[object] = []

    def rank(words: list[str]) -> None:
        heard.extend([words, signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGCONT)])
        signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
        signal.raise_signal(signal.SIGUSR2)

    monkeypatch.setattr("hpcstress.task.play", rank)
    try:
        play_as_task(["--runs=4"])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert heard == [["--runs=4"], signal.SIG_DFL, signal.SIG_DFL, signal.SIGTERM]


def test_jobs_of_a_file_follow_each_other_and_signals_are_heard(tmp_path: Path) -> None:
    jobs = [
        {
            "command": program(f"import os; print(); os.mkdir({str(tmp_path / 'one')!r})"),
            "code_file": str(tmp_path / "1"),
        },
        {"command": program(f"import os; os.rmdir({str(tmp_path / 'one')!r})"), "code_file": str(tmp_path / "2")},
    ]
    (tmp_path / "jobs.json").write_text(json.dumps({"seconds": 60, "jobs": jobs}))
    heard: list[int] = []
    main(tmp_path / "jobs.json", listen=lambda number, _: heard.append(number))
    assert ((tmp_path / "1").read_text(), (tmp_path / "2").read_text()) == ("0", "0")
    assert heard == [signal.SIGINT, signal.SIGTERM]


LOYAL = """
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(pathlib.Path({ended!r}).touch()))
pathlib.Path({ready!r}).touch()
time.sleep(60)
"""


def test_what_runs_is_told_to_end_when_its_launcher_is_killed(tmp_path: Path) -> None:
    loyal = program(LOYAL.format(ended=str(tmp_path / "ended"), ready=str(tmp_path / "ready")))
    jobs = [{"command": loyal, "code_file": str(tmp_path / "code")}]
    (tmp_path / "jobs.json").write_text(json.dumps({"seconds": 60, "jobs": jobs}))
    with subprocess.Popen([sys.executable, "-m", "hpcstress.task", str(tmp_path / "jobs.json")]) as launcher:
        try:
            until((tmp_path / "ready").exists)
        finally:
            launcher.kill()
    until((tmp_path / "ended").exists)
    assert not (tmp_path / "code").exists()


@pytest.mark.filterwarnings("ignore:Cyclopts application invoked")
def test_a_task_is_the_tool_with_its_words_and_ends_with_its_code(capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.argv
    with pytest.raises(SystemExit) as end:
        play(["--runs=ten"])
    assert end.value.code == 2
    assert "The ladder 'ten'" in capsys.readouterr().err
    assert sys.argv is before
