"""Jobs that have been submitted: what there is of each, and how they end.

What a job ended with is written down by its own script: no accounting is asked, and no result of a task is waited for.
"""

from __future__ import annotations

import math
import re
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from hpcstress import queue
from hpcstress.errors import FAILED, INCOMPLETE, INTERRUPTED, OK, THRESHOLD, USAGE, Interruption
from hpcstress.folder import RunFolder
from hpcstress.plan import Plan
from hpcstress.quantity import count, ended

CURE = "correct --account, --partition, --time or --nodes, or the site's profile."

_CODES = (OK, FAILED, USAGE, INCOMPLETE, THRESHOLD, INTERRUPTED)
_LOOK_SECONDS = 0.5
# Slurm's controller serves a whole site: it is asked this seldom, and a job that ends by itself is seen without it.
_ASK_SECONDS = 10.0
# What a dying job has written may come late over a network's file system.
_LAST_LOOKS = 4


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
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

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
            if self.process is not None:
                # It has nothing left to do but to end.
                self.process.wait()
        except KeyboardInterrupt:
            ids = " ".join(dict.fromkeys(job.id.partition("_")[0] for job in self.jobs))
            program = "kill" if self.process else "scancel"
            raise Interruption(f"The jobs go on without you: `{program} {ids}` ends them.") from None
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
        self._looks: dict[str, int] = {}
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
            elif code == OK and not job.folder.result.exists() and self._may_come(job):
                continue
            else:
                self._say(_told_end(job, code))
            if code is not None:
                kept = code in _CODES and (code != OK or job.folder.result.exists())
                self.codes[job.id] = code if kept else _lost(job)
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
                why = f": {state.reason}" if state.reason != "None" else ""
                self._once(job.id, f"Job {job.id} ({job.label}) waits in the queue{why}.")
            elif state.runs:
                self._once(job.id, f"Job {job.id} ({job.label}) runs on {state.nodes}.")

    def _fate(self, job: Job) -> int | None:
        """Return the exit code of a job that will write none down any more, None as long as it may."""
        if self._submission.cluster == "slurm":
            state = self._states.get(job.id)
            if state is not None and state.hopeless:
                done = "was cancelled" if queue.cancel(job.id) else f"has to be cancelled (`scancel {job.id}`)"
                self._say(f"Job {job.id} {done}, because Slurm would never start it ({state.reason}): {CURE}")
                return FAILED
            if state is None or not state.over:
                return None
        else:
            state = queue.GONE
            process = self._submission.process
            if process is not None and process.poll() is None:
                return None
        if self._may_come(job):
            return None
        if state.name == "COMPLETED":
            # The script ends as the tool did; its word is still on its way, or found no room.
            self._say(_told_end(job, OK))
            return OK
        self._say(self._obituary(job, state))
        return _lost(job)

    def _may_come(self, job: Job) -> bool:
        """Count a look at a job that is over; tell whether what it wrote last may still be on its way."""
        self._looks[job.id] = self._looks.get(job.id, 0) + 1
        return self._looks[job.id] < _LAST_LOOKS

    def _obituary(self, job: Job, state: queue.State) -> str:
        if self._submission.process is not None:
            return _local_obituary(job, self._submission.process.returncode)
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


def _local_obituary(job: Job, code: int) -> str:
    name = f"Job {job.id} ({job.label})"
    process = f"the process {job.id.partition('_')[0]} that starts the jobs"
    if code == OK:
        return f"{name} was not begun, because {process} had been told to end: nothing was sent."
    end = f"was killed by {_signal(-code)}" if code < 0 else f"ended with exit code {code}"
    return f"{name} was ended, because {process} {end}. {_rescue(job)}"


def _lost(job: Job) -> int:
    return INCOMPLETE if job.folder.journals.exists() or job.folder.result.exists() else FAILED


def _rescue(job: Job) -> str:
    if job.folder.result.exists():
        return f"Its result holds what was measured until then: {job.folder.result}"
    if job.folder.journals.exists():
        return f"What it had measured: hpcstress recover {job.folder.path}"
    return f"It had not begun to send{f'; its log says more: {job.logs[-1]}' if job.logs else '.'}"


def _told_end(job: Job, code: int) -> str:
    name = f"Job {job.id} ({job.label})"
    if job.folder.result.exists() and code in _CODES:
        return f"{name} has ended with exit code {code}: {job.folder.result}"
    if code == OK:
        # Hpcstress itself never ends so: it was not what ran, or was not all of it.
        return (
            f"{name} has failed: it ended with exit code 0, but there is no result. Look whether `setup` or `python` "
            f"of the site's profile ends it early. {_rescue(job)}"
        )
    text = _log(job)
    if code <= 128 or code == INTERRUPTED:
        why = f"{name} has failed with exit code {code}. {_last_words(text)}"
    elif ended_first := _ended_by_srun(text):
        why = f"{name} has failed with exit code {code}: {ended_first}, and srun killed the others. {_last_words(text)}"
    else:
        why = f"{name} has failed with exit code {code}, a rank of it was killed by {_signal(code - 128)}. "
    return f"{why}{_rescue(job)}"


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _log(job: Job) -> str:
    """Return what a job has logged of errors, as far as that can be read."""
    with suppress(OSError):
        return job.logs[-1].read_text("utf-8", "replace") if job.logs else ""
    return ""


def _ended_by_srun(log: str) -> str:
    """Return which rank had ended by itself, where srun then ended all others, such as those that wait for it in MPI.

    The exit code is that of the others then, and says nothing about the first.
    """
    first = re.search(r"^srun: error: (\S+: tasks? \S+): (.*)$", log, re.MULTILINE)
    if first is None or "srun: First task exited" not in log or not first[2].startswith("Exited with exit code "):
        return ""
    return f"{first[1]} had ended with {first[2].removeprefix('Exited with ')}"


def _last_words(log: str) -> str:
    """Return the sentence that a job refused with, if its log of errors holds one that is its own."""
    own = [line for line in log.splitlines() if line and not line.startswith(("srun:", "slurmstepd", "submitit", " "))]
    return f"{ended(own[-1])} " if own else ""
