"""What has to hold of a job that has died, however it did."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from hpcstress.folder import RunFolder
from hpcstress.leftovers import held
from hpcstress.recover import recover
from hpcstress.result import Result
from tests.jobs import SMALL
from tests.mpi.launch import Launched, until
from tests.mpi.test_kills import journals, rows_of

# Rows come for longer than anybody waits, slowly or so fast that a journal's first window is soon full.
STEADY = replace(SMALL, client="null", null_delay=0.02, runs=(60,), repeats=1000)
HASTY = replace(SMALL, client="null", runs=(8000,), repeats=100)


def until_rows(folder: RunFolder, ranks: int, job: Launched) -> None:
    """Wait until every rank has measured something, or the job has ended."""

    def measured() -> bool:
        return len(journals(folder)) == ranks and all(journal.rows for journal in journals(folder))

    until(lambda: job.process.poll() is not None or measured())
    assert job.process.poll() is None, job.process.communicate()


def judge(folder: RunFolder, ranks: int) -> None:
    """See that every row of the journals is in the result, and that the missing ranks are named."""
    left = journals(folder)
    assert len(left) == ranks
    notes = recover(folder)
    with Result(folder.result) as result:
        assert not result.complete
        assert sorted(rows_of(result)) == sorted(row for journal in left for row in journal.rows)
    named = re.search(r"Incomplete ranks: ([\d, ]+) of (\d+)\.", " ".join(notes))
    assert named is not None, notes
    ended = {journal.rank for journal in left if journal.ended}
    assert {int(rank) for rank in named[1].split(", ")} == {*range(ranks)} - ended
    assert named[2] == str(ranks)


def memory_of(job: Launched) -> set[str]:
    """Return the shared memory that the processes of a job have."""
    return {str(path) for path in held(Path(f"/proc/{pid}") for pid in job.left()) if path.name.startswith("mpich_shm")}
