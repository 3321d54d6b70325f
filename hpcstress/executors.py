"""The three ways to start jobs: Slurm, where submitit writes the scripts, this machine's mpiexec, and this process."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcstress import queue
from hpcstress.errors import OK, Interruption, Refusal
from hpcstress.quantity import ended, quoted
from hpcstress.site import TCP, Site
from hpcstress.submission import CURE, Job, Submission
from hpcstress.task import play, play_as_task

# So long before a job's time is over, it is told to end its load.
_WARNING_SECONDS = 90
# When one rank has ended, for this long the others may go on: longer only where it was killed.
_END_SECONDS = 10


@dataclass(frozen=True)
class Order:
    """Hold what is to be started. In `records` are the scripts, pickles and logs of all jobs."""

    folder: Path
    records: Path
    jobs: list[Job]
    site: Site
    minutes: int


def slurm(order: Order) -> Submission:
    """Submit jobs to Slurm: those on the same number of nodes as an array, the next after it has ended."""
    from submitit import SlurmExecutor
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    accepted: list[str] = []
    for nodes in dict.fromkeys(job.nodes for job in order.jobs):
        together = [job for job in order.jobs if job.nodes == nodes]
        executor = SlurmExecutor(order.records, python=order.site.python or None)
        executor.update_parameters(**_parameters(order, together, accepted[-1:]))
        try:
            tasks = executor.map_array(play_as_task, [job.words for job in together])
        except (FailedJobError, FailedSubmissionError) as error:
            raise Refusal(f"{_reason(error)}{_cancelled(accepted)}") from None
        except KeyboardInterrupt:
            raise Interruption(
                "sbatch had not answered: `squeue --me` shows whether there is a job all the same, and `scancel` ends "
                f"it.{_cancelled(accepted)}"
            ) from None
        for job, task in zip(together, tasks, strict=True):
            job.id, job.logs = task.job_id, (task.paths.stdout, task.paths.stderr)
        accepted.append(tasks[0].job_id.partition("_")[0])
    return Submission(order.folder, "slurm", order.jobs, order.minutes)


def _cancelled(accepted: Sequence[str]) -> str:
    """Cancel jobs whose successor there will not be, and return what is to be said of those that go on."""
    left = [job_id for job_id in accepted if not queue.cancel(job_id)]
    return f" Those before it go on: `scancel {' '.join(left)}` ends them." if left else ""


def _parameters(order: Order, together: Sequence[Job], before: Sequence[str]) -> dict[str, Any]:
    """Return what submitit is to write into the script of jobs on the same number of nodes."""
    site, job = order.site, together[0]
    # An array has one script: which job an element is, it knows by its number.
    codes = " ".join(shlex.quote(str(entry.code_file)) for entry in together)
    return {
        "job_name": f"hpcstress-{job.label}" if len(together) == 1 else f"hpcstress-{job.nodes}",
        "time": order.minutes,
        "nodes": job.nodes,
        "ntasks_per_node": job.ranks // job.nodes,
        "cpus_per_task": 1,
        "partition": site.partition or None,
        "account": site.account or None,
        "dependency": f"afterany:{before[0]}" if before else None,
        "array_parallelism": 1,
        "wckey": None,
        "signal_delay_s": min(_WARNING_SECONDS, order.minutes * 15),
        # A second start would find the folder taken, and load somebody's server that nobody looks at any more.
        "additional_parameters": {"no-requeue": True, "export": "ALL", **site.sbatch},
        "setup": [*site.preamble(), "export SUBMITIT_LOG_LEVEL=ERROR"],
        # One log for all ranks: ten thousand files each would be a load on the file system of their own.
        "srun_args": [
            *([f"--mpi={site.mpi}"] if site.mpi else []),
            # All ranks end together, each with the exit code of the tool: killing on the first bad one would lose it.
            "--kill-on-bad-exit=0",
            f"--wait={_END_SECONDS}",
            "--output=all",
            "--error=all",
        ],
        "teardown": [
            "code=$?",
            f"codes=({codes})",
            'echo "$code" > "${codes[${SLURM_ARRAY_TASK_ID:-0}]}"',
            'exit "$code"',
        ],
    }


def _reason(error: Exception) -> str:
    """Return what Slurm said of a job, in a sentence."""
    told = re.search(r'Could not make sense of sbatch output "(.*)"\nJob instance', str(error), re.DOTALL)
    if told is not None:
        return (
            f"sbatch was content, but gave the job no number: it said {quoted(told[1])}. "
            "If there is a job all the same, `squeue --me` shows it, and `scancel` ends it."
        )
    lines = [line.removeprefix("sbatch: error: ").strip() for line in str(error).splitlines() if line.strip()]
    last = lines[-1] if lines else "sbatch said nothing"
    return f"Slurm refused the job: {ended(last)} If that is not it, {CURE}"


def local(order: Order) -> Submission:
    """Start one job after the other on this machine, in a session of its own that outlives this process."""
    # submitit would start as many worlds of one rank, and has a second for a job that it ends.
    jobs = [{"command": _command(job), "code_file": str(job.code_file)} for job in order.jobs]
    path = order.records / "jobs.json"
    path.write_text(json.dumps({"seconds": order.minutes * 60, "jobs": jobs}, indent=2), "utf-8")
    logs = (order.records / "local.out", order.records / "local.err")
    # Ranks of one machine talk over loopback and listen nowhere else.
    loopback = {**TCP, "FI_TCP_IFACE": "lo", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    with logs[0].open("wb") as told, logs[1].open("wb") as complaints:
        process = subprocess.Popen(
            [sys.executable, "-m", "hpcstress.task", str(path)],
            stdin=subprocess.DEVNULL,
            stdout=told,
            stderr=complaints,
            env=loopback | os.environ,
            start_new_session=True,
        )
    for number, job in enumerate(order.jobs):
        job.id = f"{process.pid}" if len(order.jobs) == 1 else f"{process.pid}_{number}"
        job.logs = logs
    return Submission(order.folder, "local", order.jobs, order.minutes, process)


def mpiexec() -> Path:
    """Return the launcher of this environment: another one on the PATH may not know its library."""
    return Path(sys.prefix) / "bin" / "mpiexec"


def _command(job: Job) -> list[str]:
    hpcstress = [sys.executable, "-m", "hpcstress", *job.words]
    return hpcstress if job.ranks == 1 else [str(mpiexec()), "-n", str(job.ranks), *hpcstress]


def debug(order: Order) -> Submission:
    """Play the only job as the only rank of this process, where a debugger can look at it."""
    [job] = order.jobs
    job.id = "debug"
    code: object = OK
    try:
        play(job.words)
    except SystemExit as end:
        code = end.code or OK
    job.code_file.write_text(str(code), "ascii")
    return Submission(order.folder, "debug", order.jobs, order.minutes)
