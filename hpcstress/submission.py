"""Plans as jobs of Slurm, or of this machine: submitted by submitit, one MPI rank per task, and watched until they end.

A task becomes `python -m hpcstress` with the plan in its words, so that it needs no file but the ones it writes. What a
job ended with is written down by its own script: no accounting is asked, and no result of a task is waited for.
"""

from __future__ import annotations

import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hpcstress import queue
from hpcstress.errors import FAILED, INCOMPLETE, INTERRUPTED, OK, THRESHOLD, USAGE, Interruption, Refusal, UsageRefusal
from hpcstress.folder import RunFolder, default_path
from hpcstress.launcher import promised_size
from hpcstress.plan import Plan, named
from hpcstress.quantity import count, nearest, read_positive, read_positive_seconds
from hpcstress.site import TCP, Site
from hpcstress.site import named as site_named
from hpcstress.workloads import MODULES, check

CLUSTERS = ("slurm", "local", "debug")
SCALINGS = ("strong", "weak")

_CODES = (OK, FAILED, USAGE, INCOMPLETE, THRESHOLD, INTERRUPTED)
_LOOK_SECONDS = 0.5
# Slurm's controller serves a whole site: it is asked this seldom, and a job that ends by itself is seen without it.
_ASK_SECONDS = 10.0
# What a dying job has written may come late over a network's file system.
_LAST_LOOKS = 4
_WARNING_SECONDS = 90
# When one rank has ended, for this long the others may go on: longer only where it was killed.
_END_SECONDS = 10


@dataclass
class Job:
    """Name one job: a plan on some nodes. `id` is Slurm's, or of the process that runs it on this machine."""

    label: str
    plan: Plan
    nodes: int
    ranks: int
    folder: RunFolder
    code_file: Path
    id: str = ""
    logs: tuple[Path, ...] = ()

    @property
    def words(self) -> list[str]:
        """Return the command line of the job: all of its plan, and where to write."""
        return ["--output", str(self.folder.path), *self.plan.to_argv()]

    def ended(self) -> int | None:
        """Return the exit code that the job has written down, None before it has."""
        try:
            return int(self.code_file.read_text("ascii"))
        except (OSError, ValueError):
            return None


@dataclass
class Submission:
    """Hold jobs that have been submitted. `wait` tells how they end; without it they go on alone."""

    folder: Path
    cluster: str
    jobs: list[Job]
    minutes: int
    _process: Any = field(default=None, repr=False)

    @property
    def results(self) -> list[Path]:
        """Return the result files that are there."""
        return [job.folder.result for job in self.jobs if job.folder.result.exists()]

    def wait(self, say: Callable[[str], object] | None = None, follow: Callable[[bytes], object] | None = None) -> int:
        """Wait until all jobs have ended and return the first exit code that is not 0; `follow` gets what they write.

        Each job's beginning and end is said. A job that dies is seen in seconds, whatever killed it.
        """
        say = say or (lambda _: None)
        watch = _Watch(self, say, follow)
        try:
            while not watch.over():
                time.sleep(_LOOK_SECONDS)
        except KeyboardInterrupt:
            if self.cluster == "slurm":
                ids = " ".join(job.id for job in self.jobs)
                raise Interruption(f"The jobs go on without you: `scancel {ids}` ends them.") from None
            raise
        return next((code for code in watch.codes.values() if code), OK)


class _Watch:
    """Look at jobs again and again: at their logs, at what they have written down, and seldom at the queue."""

    def __init__(
        self, submission: Submission, say: Callable[[str], object], follow: Callable[[bytes], object] | None
    ) -> None:
        self.codes: dict[str, int] = {}
        self._submission = submission
        self._say = say
        self._follow = follow
        self._read: dict[Path, int] = {}
        self._told: dict[str, str] = {}
        self._gone: dict[str, int] = {}
        self._asked = -math.inf
        self._states: dict[str, queue.State] = {}

    def over(self) -> bool:
        """Look once at every job; return whether all have ended."""
        left = [job for job in self._submission.jobs if job.id not in self.codes]
        self._ask(left)
        for job in left:
            # Before the log: what it wrote before its end is read then.
            code = job.ended()
            self._copy(job)
            if code is None:
                code = self._fate(job)
            else:
                self._say(_told_end(job, code))
            if code is not None:
                self.codes[job.id] = code if code in _CODES else _lost(job)
        return len(self.codes) == len(self._submission.jobs)

    def _ask(self, left: Sequence[Job]) -> None:
        if self._submission.cluster != "slurm" or time.monotonic() - self._asked < _ASK_SECONDS:
            return
        self._asked = time.monotonic()
        found = queue.ask([job.id for job in left])
        if found is None:
            self._once("slurm", "Slurm does not answer; the jobs may run all the same.")
            return
        self._states = {job.id: found.get(job.id, queue.GONE) for job in left}
        for job in left:
            state = self._states[job.id]
            if state.waits:
                self._once(job.id, f"Job {job.id} ({job.label}) waits in the queue: {state.reason}.")
            elif state.runs:
                self._once(job.id, f"Job {job.id} ({job.label}) runs on {state.nodes}.")

    def _fate(self, job: Job) -> int | None:
        """Return the exit code of a job that will write none down any more, None as long as it may."""
        if self._submission.cluster == "slurm":
            state = self._states.get(job.id)
            if state is not None and state.hopeless:
                queue.cancel(job.id)
                self._say(f"Job {job.id} was cancelled, because Slurm would never start it ({state.reason}): {_CURE}")
                return FAILED
            if state is None or not state.over:
                return None
        else:
            state = queue.GONE
            if self._submission._process.poll() is None:  # noqa: SLF001
                return None
        self._gone[job.id] = self._gone.get(job.id, 0) + 1
        if self._gone[job.id] < _LAST_LOOKS:
            return None
        self._say(self._obituary(job, state))
        return _lost(job)

    def _obituary(self, job: Job, state: queue.State) -> str:
        began = any(log.exists() for log in job.logs)
        name = f"Job {job.id} ({job.label})"
        if state.name == "CANCELLED" and not began:
            return f"{name} was cancelled while it waited in the queue: nothing was sent."
        if not began:
            return (
                f"{name} ended before it could write its log ({state.reason}): the compute nodes cannot write to "
                f"{self._submission.folder}. Choose an --output on a file system that they share."
            )
        why = {
            "CANCELLED": "was cancelled",
            "TIMEOUT": f"reached its time limit of {count(self._submission.minutes, 'minute')}: give more --time",
            "NODE_FAIL": "lost a node",
            "OUT_OF_MEMORY": "had too little memory: use fewer ranks per node",
        }.get(state.name, f"died ({state.name.lower()})")
        return f"{name} {why}. {_rescue(job)}"

    def _copy(self, job: Job) -> None:
        if self._follow is None:
            return
        for log in job.logs:
            with suppress(OSError), log.open("rb") as file:
                file.seek(self._read.get(log, 0))
                while piece := file.read(1 << 16):
                    self._follow(piece)
                self._read[log] = file.tell()

    def _once(self, about: str, sentence: str) -> None:
        if self._told.get(about) != sentence:
            self._told[about] = sentence
            self._say(sentence)


_CURE = "correct --account, --partition, --time or --nodes, or the site's profile."


def _lost(job: Job) -> int:
    return INCOMPLETE if job.folder.journals.exists() or job.folder.result.exists() else FAILED


def _rescue(job: Job) -> str:
    if job.folder.result.exists():
        return f"Its result is whole: {job.folder.result}"
    if job.folder.journals.exists():
        return f"What it had measured: hpcstress recover {job.folder.path}"
    return f"It had not begun to send; its log says more: {job.logs[-1]}"


def _told_end(job: Job, code: int) -> str:
    name = f"Job {job.id} ({job.label})"
    if job.folder.result.exists() and code in _CODES:
        return f"{name} has ended with exit code {code}: {job.folder.result}"
    killed = f", a rank of it was killed by {_signal(code - 128)}" if code > 128 and code != INTERRUPTED else ""
    said = _last_words(job) if not killed else ""
    return f"{name} has failed with exit code {code}{killed}. {said}{_rescue(job)}"


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _last_words(job: Job) -> str:
    """Return the sentence that a job refused with, if its log of errors holds one that is its own."""
    with suppress(OSError):
        lines = job.logs[-1].read_text("utf-8", "replace")[-4000:].splitlines()
        own = [line for line in lines if line and not line.startswith(("srun:", "slurmstepd", "submitit", " "))]
        return f"{own[-1]} " if own else ""
    return ""


# What is submitted.


def submit(
    plan: str | Plan | Sequence[str | Plan],
    *,
    nodes: int | Sequence[int] = 1,
    ranks_per_node: int = 1,
    site: str | Site = "generic",
    cluster: str = "slurm",
    scaling: str = "strong",
    minutes: float = 30,
    account: str = "",
    partition: str = "",
    output: Path | str | None = None,
    names: Sequence[str] | None = None,
    **options: Any,
) -> Submission:
    """Submit plans, each on every number of nodes; options of a plan change all of them. No job is waited for.

    Jobs follow each other, because they would falsify each other's figures: the plans of one number of nodes are an
    array of Slurm's. With weak scaling the runs grow as the nodes do. Raises a Refusal with a sentence.
    """
    plans = [plan] if isinstance(plan, (str, Plan)) else [*plan]
    sizes = [nodes] if isinstance(nodes, int) else [*nodes]
    for value, known, option in ((cluster, CLUSTERS, "--cluster"), (scaling, SCALINGS, "--scaling")):
        if value not in known:
            raise UsageRefusal(f"{option}: {value!r} is not known here. {nearest(value, known)}")
    environment = os.environ
    if (promised_size(environment) or 1) > 1:
        raise UsageRefusal("hpcstress submit starts the ranks itself: call it once, without mpiexec or srun.")
    profile = _profile(site, cluster, account, partition)
    ranks_per_node = read_positive(ranks_per_node)
    if profile.cores_per_node and ranks_per_node > profile.cores_per_node:
        raise UsageRefusal(
            f"--ranks-per-node: a node has {profile.cores_per_node} cores, {ranks_per_node} ranks would share them: "
            "take more nodes."
        )
    names = names or [entry.workload if isinstance(entry, Plan) else Path(entry).stem for entry in plans]
    if len({*names}) < len(names):
        names = [f"{place}-{name}" for place, name in enumerate(names, 1)]
    read = [*zip(names, (_plan(entry, options) for entry in plans), strict=True)]
    folder = Path(output) if output is not None else default_path(read[0][0], time.time())
    folder = folder.expanduser().absolute()
    jobs = list(_jobs(folder, read, sorted({read_positive(size) for size in sizes}), ranks_per_node, scaling))
    _check_tools(cluster, jobs, environment)
    _create(folder)
    order = _Order(folder, jobs, profile, max(1, math.ceil(read_positive_seconds(minutes))))
    try:
        return {"slurm": _to_slurm, "local": _to_this_machine, "debug": _to_this_process}[cluster](order)
    except Refusal:
        # Nothing of it runs.
        shutil.rmtree(folder)
        raise


@dataclass
class _Order:
    folder: Path
    jobs: list[Job]
    site: Site
    minutes: int

    @property
    def records(self) -> Path:
        """Return the folder for what submitit writes: scripts, pickles, logs."""
        return _records(self.folder)

    def submission(self, cluster: str, process: object = None) -> Submission:
        return Submission(self.folder, cluster, self.jobs, self.minutes, process)


def _records(folder: Path) -> Path:
    return folder / "submission"


def _profile(site: str | Site, cluster: str, account: str, partition: str) -> Site:
    profile = site_named(site) if isinstance(site, str) else site
    if cluster != "slurm":
        if site != "generic" or account or partition:
            raise UsageRefusal(
                f"--site, --account and --partition are Slurm's: leave them out with --cluster {cluster}."
            )
        return Site()
    return replace(profile, account=account or profile.account, partition=partition or profile.partition)


def _plan(entry: str | Plan, options: Mapping[str, Any]) -> Plan:
    plan = entry if isinstance(entry, Plan) else named(entry, [*MODULES], [])
    plan = plan.with_options(options)
    check(plan)
    return plan


def _jobs(
    folder: Path, plans: Sequence[tuple[str, Plan]], sizes: Sequence[int], ranks_per_node: int, scaling: str
) -> list[Job]:
    alone = len(plans) * len(sizes) == 1
    jobs = []
    for nodes in sizes:
        for name, plan in plans:
            ranks = nodes * ranks_per_node
            label = f"{name}-{nodes}x{ranks_per_node}"
            grown = _grown(plan, nodes, sizes[0]) if scaling == "weak" else plan
            if ranks > max(grown.steps):
                noun = "user" if grown.users else "run"
                raise UsageRefusal(
                    f"{count(ranks, 'rank')} on {count(nodes, 'node')} are more than the largest step of {name} has: "
                    f"{count(max(grown.steps), noun)}. Take fewer ranks, or give more --{noun}s."
                )
            place = folder if alone else folder / label
            jobs.append(Job(label, grown, nodes, ranks, RunFolder(place), _records(folder) / f"{label}.code"))
    return jobs


def _grown(plan: Plan, nodes: int, least: int) -> Plan:
    """Return a plan with as many times the runs, users and arrivals as there are times the nodes."""

    def grow(sizes: Sequence[int]) -> list[int]:
        return [-(-size * nodes // least) for size in sizes]

    return plan.with_options({"runs": grow(plan.runs), "users": grow(plan.users), "rate": plan.rate * nodes / least})


def _check_tools(cluster: str, jobs: Sequence[Job], environment: Mapping[str, str]) -> None:
    ranks = max(job.ranks for job in jobs)
    if cluster == "slurm":
        if not all(map(shutil.which, ("sbatch", "srun", "squeue"))):
            raise Refusal(
                "There is no Slurm here (sbatch, srun and squeue are not all on the PATH): call this on a login node, "
                "or use --cluster local."
            )
        if environment.get("SBATCH_EXPORT", "ALL").partition(",")[0] != "ALL":
            raise UsageRefusal(
                "SBATCH_EXPORT keeps the environment, in which the sign-in travels, from the job: unset it."
            )
    elif cluster == "local" and ranks > 1 and not _mpiexec().exists():
        raise Refusal(
            f"There is no {_mpiexec()}: install an MPI beside this Python with `pip install 'hpcstress[mpich]'`."
        )
    elif cluster == "debug" and (ranks > 1 or len(jobs) > 1):
        raise UsageRefusal(
            "--cluster debug plays one plan as the only rank of this process: leave --nodes and --ranks-per-node out."
        )
    try:
        import submitit  # noqa: F401
    except ImportError:
        raise Refusal("submitit is missing: pip install submitit") from None


def _create(folder: Path) -> None:
    try:
        if folder.exists() and any(folder.iterdir()):
            raise Refusal(f"{folder} is not empty, and a job has a folder of its own: choose another --output.")
        _records(folder).mkdir(parents=True)
    except OSError as error:
        raise Refusal(
            f"The output folder {folder} cannot be written ({error.strerror}): choose another --output."
        ) from None


def _to_slurm(order: _Order) -> Submission:
    os.environ.setdefault("SUBMITIT_LOG_LEVEL", "ERROR")
    from submitit import SlurmExecutor
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    before = ""
    for nodes in dict.fromkeys(job.nodes for job in order.jobs):
        together = [job for job in order.jobs if job.nodes == nodes]
        executor = SlurmExecutor(order.records, python=order.site.python or None)
        executor.update_parameters(**_parameters(order, together, before))
        try:
            tasks = executor.map_array(play_as_task, [job.words for job in together])
        except (FailedJobError, FailedSubmissionError) as error:
            if before:
                queue.cancel(before)
            raise Refusal(f"Slurm refused the job: {_reason(error)} If that is not it, {_CURE}") from None
        for job, task in zip(together, tasks, strict=True):
            job.id, job.logs = task.job_id, (task.paths.stdout, task.paths.stderr)
        before = tasks[0].job_id.partition("_")[0]
    return order.submission("slurm")


def _parameters(order: _Order, together: Sequence[Job], before: str) -> dict[str, Any]:
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
        "dependency": f"afterany:{before}" if before else None,
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
    lines = [line.removeprefix("sbatch: error: ").strip() for line in str(error).splitlines() if line.strip()]
    last = lines[-1] if lines else "sbatch said nothing"
    return f"{last.rstrip('.')}."


def _to_this_machine(order: _Order) -> Submission:
    os.environ.setdefault("SUBMITIT_LOG_LEVEL", "ERROR")
    from submitit import LocalExecutor

    executor = LocalExecutor(order.records)
    executor.update_parameters(timeout_min=order.minutes, signal_delay_s=min(_WARNING_SECONDS, order.minutes * 15))
    commands = [(_command(job), str(job.code_file)) for job in order.jobs]
    # One task for all: it starts one job after the other, each with ranks of its own.
    task = executor.submit(launch, commands)
    for number, job in enumerate(order.jobs):
        job.id = task.job_id if len(order.jobs) == 1 else f"{task.job_id}_{number}"
        job.logs = (task.paths.stdout, task.paths.stderr)
    return order.submission("local", getattr(task, "_process"))  # noqa: B009 (submitit does not give it a public name)


def _to_this_process(order: _Order) -> Submission:
    os.environ.setdefault("SUBMITIT_LOG_LEVEL", "ERROR")
    from submitit.local.debug import DebugExecutor

    [job] = order.jobs
    task = DebugExecutor(order.records).submit(play, job.words)
    job.id = "debug"
    try:
        task.result()
        code: object = OK
    except SystemExit as end:
        code = end.code or OK
    job.code_file.write_text(str(code), "ascii")
    return order.submission("debug")


def _mpiexec() -> Path:
    return Path(sys.prefix) / "bin" / "mpiexec"


def _command(job: Job) -> list[str]:
    hpcstress = [sys.executable, "-m", "hpcstress", *job.words]
    return hpcstress if job.ranks == 1 else [str(_mpiexec()), "-n", str(job.ranks), *hpcstress]


# What a task does.


def play(words: list[str]) -> None:
    """Be `python -m hpcstress` with these words, and end with its exit code."""
    import runpy

    sys.argv = ["hpcstress", *words]
    runpy.run_module("hpcstress", run_name="__main__", alter_sys=True)


def play_as_task(words: list[str]) -> None:
    """Be one rank of a job of Slurm's."""
    # Of submitit's handlers one keeps TERM from the job, one would have it started again before its time is over.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGCONT, signal.SIG_DFL)
    signal.signal(signal.SIGUSR2, lambda *_: signal.raise_signal(signal.SIGTERM))
    play(words)


def launch(commands: list[tuple[list[str], str]]) -> None:
    """Run command lines one after the other on this machine, and write down what each has ended with."""
    asked = []

    def stop(*_: object) -> None:
        asked.append(True)
        running.send_signal(signal.SIGINT)

    # Ranks of one machine talk over loopback and listen nowhere else.
    local = {**TCP, "FI_TCP_IFACE": "lo", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    for command, code_file in commands:
        if asked:
            return
        running = subprocess.Popen(command, env=local | os.environ)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
            signal.signal(number, stop)
        code = running.wait()
        Path(code_file).write_text(str(code if code >= 0 else 128 - code), "ascii")
