"""Ranks whose clocks are shifted by minutes and drift on purpose: what is measured of them is true."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest

from hpcstress.result import Result
from tests.jobs import SMALL
from tests.mpi.launch import launched
from tests.mpi.shifted import Shown

pytestmark = pytest.mark.slow

RANKS = 6
PLAN = replace(SMALL, client="null", null_delay=0.05, runs=(12,), repeats=3)


def test_clocks_that_are_wrong_are_known_within_the_error_and_so_is_when_ranks_truly_began(tmp_path: Path) -> None:
    zero = time.monotonic_ns()
    words = ["-m", "tests.mpi.shifted", "job", PLAN.to_json()]
    with launched(RANKS, *words, cwd=tmp_path, ZERO=str(zero)) as job:
        assert job.end() == (0, "", "")
    clocks = [Shown(rank, zero) for rank in range(RANKS)]
    noted = [json.loads((tmp_path / f"true-{rank}.json").read_text()) for rank in range(RANKS)]
    for clock, note in zip(clocks, noted, strict=True):
        # Before the job, before each step, after the last.
        assert len(note["readings"]) == 2 + PLAN.repeats
        for offset, error, at in note["readings"]:
            # Rank 0's clock is right.
            assert abs(offset - (clock.truth(at) - at)) <= error + 1
    with Result(tmp_path / "job" / "result.h5") as result:
        ranks, health = result.table("ranks"), result.table("health")
    for rank, clock in enumerate(clocks):
        readings = noted[rank]["readings"]
        elapsed = readings[-1][2] - readings[0][2]
        slack = (readings[0][1] + readings[-1][1]) / elapsed * 1e6
        assert ranks["drift_ppm"][rank] == pytest.approx(-clock.ppm / (1 + clock.ppm / 1e6), abs=slack + 0.01)
        assert ranks["offset_ns"][rank] == readings[0][0]
        assert ranks["error_ns"][rank] == max(error for _, error, _ in readings)
    assert len(health) == RANKS * PLAN.repeats
    for row in health:
        origin, began = noted[row["rank"]]["starts"][str(row["step"])]
        start, _ = noted[0]["starts"][str(row["step"])]
        true = clocks[row["rank"]].truth(origin + began) - start
        assert abs(int(row["began_ns"]) - true) <= int(row["clock_error_ns"]) + 1
