"""What Slurm says about jobs: waiting, running, over. Nothing here needs accounting."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from typing import NamedTuple

_WAITING = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT", "SUSPENDED")
_RUNNING = ("RUNNING", "COMPLETING", "STAGE_OUT", "SIGNALING", "RESIZING", "STOPPED")
# Reasons to wait that no time cures.
_HOPELESS = (
    *("AccountNotAllowed", "InvalidAccount", "InvalidQOS", "QOSNotAllowed", "PartitionTimeLimit", "PartitionNodeLimit"),
    *("BadConstraints", "DependencyNeverSatisfied"),
)
# Of some, Slurm writes a sentence: `Job's account not permitted to use this partition (fast allows ...)`.
_REFUSED = re.compile("Job's (account|QOS|group) ")
_SECONDS = 30


class State(NamedTuple):
    """Hold what Slurm says about one job, in its own words."""

    name: str
    nodes: str = ""
    reason: str = ""

    @property
    def waits(self) -> bool:
        """Tell whether the job has not begun."""
        return self.name in _WAITING

    @property
    def hopeless(self) -> bool:
        """Tell whether the job waits for what will never be."""
        return self.waits and (self.reason in _HOPELESS or _REFUSED.match(self.reason) is not None)

    @property
    def runs(self) -> bool:
        """Tell whether the job is being run."""
        return self.name in _RUNNING

    @property
    def over(self) -> bool:
        """Tell whether the job has ended, or is not known any more."""
        return not (self.waits or self.runs)


GONE = State("GONE", "", "Slurm does not know it any more")


def ask(jobs: Sequence[str]) -> dict[str, State] | None:
    """Return the states of the jobs that Slurm still knows, by their ids; None if it does not answer."""
    command = ["squeue", "--noheader", "--array", "--states=all", f"--jobs={','.join(jobs)}", "--format=%i|%T|%N|%r"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if answer.returncode:
        return {} if "Invalid job id" in answer.stderr else None
    lines = (line.strip().split("|", 3) for line in answer.stdout.splitlines())
    return {words[0]: State(*words[1:]) for words in lines if len(words) == 4}


def cancel(job: str) -> bool:
    """Cancel a job; one that is over already stays as it is. Return whether Slurm has taken it up."""
    try:
        return subprocess.run(["scancel", job], capture_output=True, timeout=_SECONDS).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False
