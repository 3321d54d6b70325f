"""What a task of a job does: be one rank under srun, or start all ranks of jobs on this machine."""

from __future__ import annotations

import ctypes
import json
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from hpcstress.leftovers import sweep

# What a job has for writing its result when its time is over.
_GRACE_SECONDS = 60
_PR_SET_PDEATHSIG = 1


def play(words: list[str]) -> None:
    """Be `python -m hpcstress` with these words, and end with its exit code."""
    before, sys.argv = sys.argv, ["hpcstress", *words]
    try:
        runpy.run_module("hpcstress", run_name="__main__", alter_sys=True)
    finally:
        sys.argv = before


def play_as_task(words: list[str]) -> None:
    """Be one rank of a job of Slurm's."""
    # Of submitit's handlers one keeps TERM from the job, one would have it started again before its time is over.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGCONT, signal.SIG_DFL)
    signal.signal(signal.SIGUSR2, lambda *_: signal.raise_signal(signal.SIGTERM))
    play(words)


class Launch:
    """Run command lines one after the other, each no longer than some seconds, until it is told to stop."""

    def __init__(self, seconds: float, grace: float = _GRACE_SECONDS) -> None:
        self.stopped = False
        self._seconds = seconds
        self._grace = grace
        self._running: subprocess.Popen[bytes] | None = None

    def run(self, command: Sequence[str], code_file: Path) -> None:
        """Run one command line, and write down what it has ended with, as shells count signals."""
        if self.stopped:
            return
        # Who kills this process means the job: mpiexec tells its ranks. Between fork and exec is no other thread.
        libc = ctypes.CDLL(None)
        self._running = subprocess.Popen(
            command,
            start_new_session=True,
            preexec_fn=lambda: libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM),  # noqa: PLW1509
        )
        if self.stopped:
            self._signal(signal.SIGINT)
        code = self._wait(self._running)
        self._running = None
        if code:
            sweep()
        code_file.write_text(str(code if code >= 0 else 128 - code), "ascii")

    def stop(self, *_: object) -> None:
        """Let what runs end its load and keep what was measured, and start nothing more."""
        self.stopped = True
        self._signal(signal.SIGINT)

    def _wait(self, running: subprocess.Popen[bytes]) -> int:
        try:
            return running.wait(self._seconds)
        except subprocess.TimeoutExpired:
            print("The time limit is reached.", file=sys.stderr, flush=True)
        self._signal(signal.SIGINT)
        try:
            return running.wait(self._grace)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)
            return running.wait()

    def _signal(self, number: signal.Signals) -> None:
        # As a terminal does: to every process of the job, not to its launcher alone.
        if self._running is not None and self._running.poll() is None:
            os.killpg(self._running.pid, number)


def main(path: Path, listen: Callable[..., object] = signal.signal) -> None:
    """Run the jobs that a file names: `seconds` for each, and of each the command line and the file for its code."""
    told = json.loads(path.read_text("utf-8"))
    launch = Launch(told["seconds"])
    for number in (signal.SIGINT, signal.SIGTERM):
        listen(number, launch.stop)
    for job in told["jobs"]:
        launch.run(job["command"], Path(job["code_file"]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
