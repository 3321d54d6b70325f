"""Whole small jobs in this process: one rank, a real event loop, a server in a thread."""

from __future__ import annotations

import signal
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from hpcstress.folder import RunFolder
from hpcstress.job import run_job
from hpcstress.plan import Plan
from hpcstress.progress import Progress
from hpcstress.ranks import World
from hpcstress.record import Operation
from hpcstress.result import Result, Rows

SMALL = Plan(
    runs=(6,),
    repeats=1,
    warmup=0,
    params=5,
    metrics=3,
    artifacts=1,
    artifact_size=1000,
    sleep_time=0,
    timeout=5,
)
REQUESTS = 7  # create, params, metrics, get, artifact, get, finish


class Heard(Progress):
    """Keep what is told."""

    def __init__(self) -> None:
        self.sentences: list[str] = []

    def say(self, sentence: str) -> None:
        self.sentences.append(sentence)


def play(folder: Path, plan: Plan, environment: Mapping[str, str], progress: Progress | None = None) -> int:
    """Play a plan as the only rank; return the exit code."""
    with pytest.MonkeyPatch.context() as patch:
        # Nobody else has to hear of the common start.
        patch.setattr("hpcstress.job._LEAD_NS", 5_000_000)
        patch.setattr("hpcstress.preflight._PAUSE_SECONDS", 0.05)
        return run_job(plan, World(), RunFolder(folder), environment, progress or Progress(), 0.25)


_DIE_WITH_PARENT = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, int(sys.argv[1]))
os.execvp(sys.argv[2], sys.argv[2:])
"""


def mortal(command: list[str], number: int = signal.SIGTERM) -> list[str]:
    """Return a command line whose process is ended by a signal when its parent has ended, however that was.

    A test that takes too long is not interrupted, because uvloop loses exceptions of signal handlers: all tests are
    ended at once, and no `finally` of theirs is reached.
    """
    return [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, str(int(number)), *command]


def requests(result: Result) -> Rows:
    """Return the attempts that were requests."""
    rows = result.rows(("step", "run", "op", "outcome", "status", "attempt"))
    sent: Rows = rows[rows["op"] != Operation.connect]
    return sent
