"""The jobs of the tests end with the tests, and leave nothing behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hpcstress.leftovers import held, leftovers
from tests.mpi.launch import ROOT, Launched, launched, until

pytestmark = pytest.mark.slow

JOINED = "from mpi4py import MPI; open(f'joined-{MPI.COMM_WORLD.rank}', 'w').close(); import time; time.sleep(600)"
ABANDONED = f"""
import os, pathlib
from tests.mpi.launch import launched, until
with launched(2, "-c", {JOINED!r}, cwd=pathlib.Path.cwd()) as job:
    until(lambda: len([*pathlib.Path.cwd().glob("joined-*")]) == 2)
    print(job.mark, flush=True)
    os._exit(1)
"""


def test_a_job_ends_with_the_tests_that_have_started_it_also_if_they_end_in_an_instant(tmp_path: Path) -> None:
    tests = subprocess.Popen(
        [sys.executable, "-c", ABANDONED],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    told, _ = tests.communicate(timeout=60)
    assert tests.returncode == 1
    Launched(tests, told.strip()).until_gone()


def test_of_a_killed_job_files_are_left_over_and_those_of_a_living_one_are_not(tmp_path: Path) -> None:
    for name in ("dead", "alive"):
        (tmp_path / name).mkdir()
    with (
        launched(2, "-c", JOINED, cwd=tmp_path / "alive") as alive,
        launched(2, "-c", JOINED, cwd=tmp_path / "dead") as dead,
    ):
        until(lambda: len([*tmp_path.glob("*/joined-*")]) == 4)
        kept, lost = (held(Path(f"/proc/{pid}") for pid in job.left()) for job in (alive, dead))
        assert not leftovers() & (kept | lost)
        dead.kill(dead.process.pid)
        assert leftovers() & lost
        assert not leftovers() & kept
