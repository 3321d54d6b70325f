"""Comparisons of real servers on several ranks, one of them killed in the middle."""

from __future__ import annotations

import csv
import signal
from pathlib import Path

import psutil
import pytest

from hpcstress.result import Result
from hpcstress.rounds import find
from tests.mpi.launch import launched, until

pytestmark = pytest.mark.slow

SERVERS = ("mlflow-sqlite,workers=1", "mlflow-sqlite,workers=1,auth=none")
LITTLE = (
    *("--runs=2,4", "--repeats=1", "--warmup=2", "--params=3", "--metrics=2", "--artifacts=1", "--artifact-size=1kB"),
    *("--sleep-time=0", "--timeout=60"),
)


def words(folder: Path) -> list[str]:
    servers = [word for server in SERVERS for word in ("--server", server)]
    return ["-m", "hpcstress", "compare", *servers, "--rounds=2", *LITTLE, "--output", str(folder)]


# It starts seven servers, one after the other.
@pytest.mark.timeout(900)
def test_two_servers_are_compared_on_two_ranks_though_the_job_is_killed_in_between(tmp_path: Path) -> None:
    folder = tmp_path / "all"
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    environment = {"TMPDIR": str(temporary)}
    with launched(2, *words(folder), cwd=tmp_path, **environment) as job:
        # The first turn is over, the second one under way.
        until(lambda: (folder / "compare.json").exists() and find(folder).done() != [], 240)
        match = find(folder)
        first, second = match.turns(2)[:2]
        until(lambda: match.folder(second).journal_files() != {}, 120)
        ranks = [int(pid) for pid in _ranks_of(job.process.pid)]
        for pid in ranks:
            psutil.Process(pid).send_signal(signal.SIGKILL)
        assert job.end()[0] != 0
        # The guards end their servers also then.
        job.until_gone()
        assert [*temporary.iterdir()] == []
    assert [done.turn for done in match.done()] == [first]
    kept = match.folder(first).result.read_bytes()

    with launched(2, *words(folder), cwd=tmp_path, **environment) as job:
        code, told, complaints = job.end()
        job.until_gone()
    assert code == 0, complaints
    assert "1 turn of it is there already, and kept." in complaints
    assert (match.folder(second).path.with_name(f"{match.folder(second).path.name}.left-1") / "journals").is_dir()
    assert match.folder(first).result.read_bytes() == kept
    assert len(match.done()) == 4
    for done in match.done():
        with Result(done.result) as result:
            assert result.complete
            assert result.facts["ranks"] == 2
            assert result.table("audit")["intact"].tolist() == [2, 4]
            assert result.facts["server"]["workers"] == 1
    # A port of its own for every deployment: none was left from the round before.
    assert f"Comparison: {folder}/comparison/compare.html" in told
    assert "All 10 intervals hold together" in told
    with (folder / "comparison" / "comparison.csv").open() as file:
        assert {(row["first_rounds"], row["second_rounds"]) for row in csv.DictReader(file)} == {("2", "2")}
    assert [*temporary.iterdir()] == []


def _ranks_of(launcher: int) -> list[int]:
    """Return the processes that are ranks: Python below the launcher, with a rank of its own."""
    return [
        process.pid
        for process in psutil.Process(launcher).children(recursive=True)
        if "-m" in process.cmdline() and "hpcstress" in process.cmdline() and "PMI_RANK" in process.environ()
    ]
