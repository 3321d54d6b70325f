"""One rank of hpcstress as a process of its own: worker, wire client and journal as in a job, with a tiny workload.

python -m benchmarks.rank URI JOURNAL WORKLOAD RUNS SECONDS ARTIFACT_SIZE
"""

from __future__ import annotations

import itertools
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic_ns
from typing import Any

import numpy as np
import uvloop

from benchmarks.finding import NotMeasuredError
from benchmarks.machine import GENERATOR, Used, use
from hpcstress.clients import Client, Place
from hpcstress.clients.dial import Dialer
from hpcstress.clients.wire import Wire
from hpcstress.content import Content, Params, Run
from hpcstress.journal import Journal, JournalFile
from hpcstress.plan import Plan
from hpcstress.record import RECORD, Operation, Outcome
from hpcstress.schedule import Step
from hpcstress.target import from_environment
from hpcstress.worker import Share, Tally, Worker

PARAMS = 10


@dataclass(frozen=True)
class Played:
    """Hold what a rank did: what its process used from start to end, what the load alone used, its acknowledged rows.

    The rows' times are nanoseconds of the machine's monotonic clock.
    """

    used: Used
    load_cpu_seconds: float
    rows: np.ndarray[Any, np.dtype[Any]]


def play(uri: str, workload: str, runs: int, seconds: float, artifact_size: int = 1) -> Played:
    """Run a rank on the generator's core; one whose requests failed was not measured."""
    with TemporaryDirectory() as folder:
        journal = Path(folder, "journal")
        words = (uri, journal, workload, runs, seconds, artifact_size)
        used = use(GENERATOR, sys.executable, "-m", "benchmarks.rank", *map(str, words), environment={"HOME": folder})
        rows = np.concatenate([np.zeros(0, RECORD), *JournalFile(journal, 0).rows()])
    told = json.loads(used.output)
    rows = rows[(rows["op"] != Operation.connect) & (rows["outcome"] != Outcome.interrupted)]
    if told["failed"] or np.any(rows["outcome"] != Outcome.ok):
        raise NotMeasuredError(f"Requests of hpcstress failed: {told['said']}")
    return Played(used, told["cpu_seconds"], rows)


async def get(run: Run, client: Client) -> None:
    """Ask for the same run again and again."""
    await client.create_run(run.name, run.tags)
    while True:
        await client._request(Operation.get_run, None)  # noqa: SLF001 (workloads have no use for it alone)


async def log_batch(run: Run, client: Client) -> None:
    """Log other parameters again and again."""
    await client.create_run(run.name, run.tags)
    for number in itertools.count(run.number, 1 << 10):
        await client.log_params(Params(1, number, PARAMS))


async def upload(run: Run, client: Client) -> None:
    """Upload the run's artifacts."""
    await client.create_run(run.name, run.tags)
    for artifact in run.artifacts:
        await client.log_artifact(artifact)


WORKLOADS = {"get": get, "log-batch": log_batch, "upload": upload}


async def main(uri: str, journal_path: Path, workload: str, runs: int, seconds: float, artifact_size: int) -> None:
    """Play until the workload or the time ends; say how that was as JSON."""
    content = Content(Plan(artifacts=1, artifact_size=artifact_size), session="bench")
    target = from_environment(uri, {})
    dialer = Dialer(target)
    await dialer.resolve()
    with Journal(journal_path, 0, {}) as journal:
        wire = Wire(dialer, journal, Place("1"), timeout=30.0)
        tally = Tally(runs)
        # Rows that count from zero carry the machine's own clock.
        journal.begin(0, 0)
        origin = monotonic_ns()
        end = origin + round(seconds * 1e9)
        worker = Worker(WORKLOADS[workload], wire, 30.0)
        share = Share(Step(0, 0, runs), content, 0, 1)
        health = await worker.play_step(share, origin, tally, lambda: monotonic_ns() > end)
    print(json.dumps({**asdict(tally), **asdict(health)}))


if __name__ == "__main__":
    uri, journal, workload, runs, seconds, artifact_size = sys.argv[1:]
    uvloop.run(main(uri, Path(journal), workload, int(runs), float(seconds), int(artifact_size)))
