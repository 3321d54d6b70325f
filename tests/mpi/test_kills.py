"""Whatever is killed, and when: every row that a journal has taken is in the result that is recovered from it."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import numpy as np
import pytest

from hpcstress.errors import Refusal
from hpcstress.folder import RunFolder
from hpcstress.plan import Plan
from hpcstress.record import COLUMNS, RECORD, Operation, Outcome
from hpcstress.recover import recover
from hpcstress.result import Result, Rows
from hpcstress.schedule import WARMUP
from tests.fake_mlflow import serving
from tests.jobs import SMALL, mortal
from tests.mpi.launch import ROOT, Launched, launched, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

RANKS = 3
# Rows come one by one, or so fast that windows of the journals are left behind: both for longer than anybody waits.
# One job is soon over, and may be met in its end. In one a server takes part.
STEADY = replace(SMALL, client="null", null_delay=0.02, runs=(60,), repeats=100, warmup=6)
HASTY = replace(SMALL, client="null", runs=(8000,), repeats=100)
SHORT = replace(STEADY, repeats=1)
SERVED = replace(SMALL, runs=(60,), repeats=5, artifact_size=10, audit=0, timeout=1)


class Left(NamedTuple):
    """What one journal's bytes hold, read without the code under test."""

    rank: int
    pid: int
    rows: list[bytes]
    torn: int
    ended: bool


def read(path: Path) -> Left:
    data = path.read_bytes()
    header, rows, torn = json.loads(data[:4092]), [], 0
    for start in range(4096, len(data) - 63, 64):
        fields, check = data[start : start + 60], data[start + 60 : start + 64]
        if crc32(fields) == int.from_bytes(check, "little"):
            rows.append(fields)
        else:
            torn += any(fields + check)
    ended = bool(rows) and rows[-1][56] == Operation.end
    warm_up = WARMUP.to_bytes(2, "little")
    kept = [row for row in rows if row[56] != Operation.end and row[48:50] != warm_up]
    return Left(header["rank"], header["pid"], kept, torn, ended)


def journals(folder: RunFolder) -> list[Left]:
    """Return what the journals of a job that is dead hold; a rank may have died before its header was written."""
    return [read(path) for path in sorted(folder.path.glob("journals/*")) if path.stat().st_size >= 4096]


def pids(folder: RunFolder) -> list[int]:
    """Return the processes of the ranks of a job that may be alive."""
    found = []
    for path in folder.path.glob("journals/*"):
        try:
            found.append(int(json.loads(path.read_bytes()[:4092])["pid"]))
        except (FileNotFoundError, ValueError):
            continue
    return found


def rows_of(result: Result) -> list[bytes]:
    rows = np.zeros(result.length, RECORD)
    for name, column in result.attempts(COLUMNS).items():
        rows[name] = column
    data = rows.tobytes()
    return [data[start : start + 60] for start in range(0, len(data), 64)]


def acknowledged(result: Result) -> int:
    rows: Rows = result.rows(("op", "outcome"))
    return int(np.count_nonzero((rows["outcome"] == Outcome.ok) & (rows["op"] != Operation.connect)))


@contextmanager
def playing(folder: RunFolder, plan: Plan, **environment: str) -> Iterator[Launched]:
    words = ["-m", "tests.mpi.job", str(folder.path), plan.to_json()]
    with launched(RANKS, *words, cwd=folder.path.parent, **environment) as job:
        yield job


def until_under_way(folder: RunFolder, job: Launched) -> None:
    """Wait until every rank has its journal, or the job has ended."""
    until(lambda: len(pids(folder)) == RANKS or job.process.poll() is not None)


def judge(folder: RunFolder) -> str:
    """See that the recovered result holds what the journals hold; return how far the job had come."""
    if folder.result.exists():
        with pytest.raises(Refusal, match="is there already"):
            recover(folder)
        with Result(folder.result) as result:
            assert result.complete
        return "over"
    if not [*folder.path.glob("journals/*")]:
        with pytest.raises(Refusal, match="There is no journal in"):
            recover(folder)
        return "not begun"
    left = journals(folder)
    notes = recover(folder)
    with Result(folder.result) as result:
        assert not result.complete
        assert sorted(rows_of(result)) == sorted(row for journal in left for row in journal.rows)
        assert result.notes == notes
        steps = result.table("steps")
        assert steps["attempts"].sum() == result.length
        assert WARMUP not in steps["step"]
        ranks = result.table("ranks")
        assert ranks["rank"].tolist() == [journal.rank for journal in left]
        assert ranks["pid"].tolist() == [journal.pid for journal in left]
        assert ranks["complete"].tolist() == [journal.ended for journal in left]
    torn = {journal.rank: journal.torn for journal in left if journal.torn}
    # A rank that was killed was within one row at most.
    assert [note for note in notes if "left out" in note] == [
        f"rank {rank}: 1 damaged row was left out." for rank in torn
    ]
    ended = {journal.rank for journal in left if journal.ended}
    named = re.search(r"Incomplete ranks: ([\d, ]+) of (\d+)\.", notes[-1])
    if len(ended) == RANKS:
        assert named is None
    else:
        assert named is not None
        assert {int(rank) for rank in named[1].split(", ")} == {*range(RANKS)} - ended
        assert named[2] == str(RANKS)
    with pytest.raises(Refusal, match="is there already"):
        recover(folder)
    return "under way" if any(journal.rows for journal in left) else "not loaded"


@pytest.mark.parametrize("victim", ["rank", "launcher"])
@pytest.mark.parametrize(("plan", "kills"), [(STEADY, 9), (HASTY, 8)], ids=["steady", "hasty"])
def test_whoever_is_killed_nothing_in_a_journal_is_lost(tmp_path: Path, plan: Plan, kills: int, victim: str) -> None:
    chance = random.Random(f"{victim}{kills}")
    came = []
    for number in range(kills):
        folder = RunFolder(tmp_path / str(number))
        with playing(folder, plan) as job:
            until_under_way(folder, job)
            time.sleep(chance.uniform(0, 1.5))
            ranks = pids(folder) if victim == "rank" else []
            job.kill(chance.choice(ranks or [job.process.pid]))
            came.append(judge(folder))
    # Most instants lie in the load, else this test has shown little.
    assert came.count("under way") >= kills // 2
    assert "over" not in came


@pytest.mark.parametrize("moment", ["begins", "ends"])
def test_a_job_that_is_killed_while_it_begins_or_ends_is_recovered_or_needs_no_recovery(
    tmp_path: Path, moment: str
) -> None:
    chance = random.Random(moment)
    for number in range(5):
        folder = RunFolder(tmp_path / str(number))
        with playing(folder, SHORT) as job:
            if moment == "ends":
                until_under_way(folder, job)
            time.sleep(chance.uniform(0.3, 0.9))
            job.kill(job.process.pid)
            judge(folder)


def test_what_a_server_has_acknowledged_is_in_the_result_but_for_what_was_on_its_way(tmp_path: Path) -> None:
    chance = random.Random(7)
    came = []
    for number in range(8):
        folder = RunFolder(tmp_path / str(number))
        with serving() as server, playing(folder, SERVED, **server.environment) as job:
            until_under_way(folder, job)
            time.sleep(chance.uniform(0.1, 1.4))
            job.kill(chance.choice([job.process.pid, *pids(folder)]))
            counted = sum(seen.status == 200 for seen in server.load())
        came.append(judge(folder))
        if came[-1] != "not begun":
            with Result(folder.result) as result:
                # Each run has one request on its way.
                assert 0 <= counted - acknowledged(result) <= SERVED.runs[0]
    assert came.count("under way") >= 4


def test_when_the_server_is_killed_the_job_ends_by_itself_with_all_that_was_acknowledged(tmp_path: Path) -> None:
    chance = random.Random(11)
    deaths = 0
    for number in range(6):
        folder, tally = RunFolder(tmp_path / str(number)), tmp_path / f"{number}.tally"
        server = subprocess.Popen(
            mortal([sys.executable, "-m", "tests.fake_mlflow", "--tally", str(tally)]),
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        try:
            assert server.stdout is not None
            uri = server.stdout.readline().strip()
            with playing(folder, SERVED, MLFLOW_TRACKING_URI=uri, HOME="/nonexistent") as job:
                until_under_way(folder, job)
                time.sleep(chance.uniform(0.1, 1.2))
                server.kill()
                code, told, complaints = job.end()
                job.until_gone()
        finally:
            server.kill()
            server.communicate()
        assert (told, complaints) == ("", "")
        with Result(folder.result) as result:
            assert 0 <= tally.stat().st_size - acknowledged(result) <= SERVED.runs[0]
            # A death in the last step is data, and no step is missing.
            assert code == (0 if result.complete else 3)
            assert result.complete == (len(result.table("steps")) == SERVED.repeats)
            assert any("did not come back" in note for note in result.notes) == (not result.complete)
            deaths += not result.complete
        assert not folder.journals.exists()
    assert deaths >= 3
