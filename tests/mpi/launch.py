"""Start MPI jobs on this machine, and see that nothing of them is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.jobs import mortal

MPIEXEC = str(Path(sys.prefix) / "bin" / "mpiexec")
ROOT = Path(__file__).parents[2]
# Ranks talk over loopback and listen nowhere else.
LOCAL = {"MPIR_CVAR_CH4_NETMOD": "ofi", "FI_PROVIDER": "tcp", "FI_TCP_IFACE": "lo"}
_MARK = "HPCSTRESS_TEST_JOB"


@dataclass
class Launched:
    """A job that runs: `process` is its launcher."""

    process: subprocess.Popen[str]
    mark: str
    seen: set[int] = field(default_factory=set)

    def left(self) -> list[int]:
        """Return the processes of the job that are still there; whoever their parents are, they have its mark."""
        # One that is ending has no environment any more, and still holds its files: it may be the job's.
        self.seen |= {
            int(folder.name)
            for folder in Path("/proc").glob("[0-9]*")
            if self.mark.encode() in shown(folder, "environ") or _is_ending(folder)
        }
        return [pid for pid in self.seen if _there(pid)]

    def kill(self, pid: int) -> None:
        """Kill one of the job's processes, and wait until all are gone."""
        self.left()
        kill(pid)
        self.process.communicate(timeout=60)
        self.until_gone()

    def end(self) -> tuple[int, str, str]:
        """Wait until the launcher ends; return exit code, standard output, standard error."""
        told, complaints = self.process.communicate(timeout=240)
        return self.process.returncode, told, complaints

    def until_gone(self) -> None:
        """Wait until no process of the job is left."""
        until(lambda: not self.left())


@contextmanager
def launched(ranks: int, *words: str, cwd: Path, **environment: str) -> Iterator[Launched]:
    """Run Python on several ranks; when the block ends, the job has ended or is ended."""
    with launched_as([MPIEXEC, "-n", str(ranks), sys.executable, *words], cwd=cwd, **environment) as job:
        yield job


@contextmanager
def launched_as(command: list[str], *, cwd: Path, **environment: str) -> Iterator[Launched]:
    """Run a command line as it is; when the block ends, the job has ended or is ended."""
    mark = uuid.uuid4().hex
    # A session of its own: signals to its group are those of its terminal.
    process = subprocess.Popen(
        mortal(command),
        env=os.environ | LOCAL | {"PYTHONPATH": str(ROOT), _MARK: mark} | environment,
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    job = Launched(process, mark)
    try:
        yield job
    finally:
        for pid in job.left():
            kill(pid)
        process.communicate()
        job.until_gone()


def shown(process: Path, what: str) -> bytes:
    """Return a file of a process, or of a thread, in /proc: nothing of one that is ending, or has ended meanwhile."""
    try:
        return (process / what).read_bytes()
    except OSError:
        return b""


def _fields(process: Path) -> list[bytes]:
    """Return the fields of proc_pid_stat from the third on, a process's or a thread's; none where it is gone."""
    return shown(process, "stat").rpartition(b")")[2].split()


def _is_ending(process: Path) -> bool:
    """Tell whether a process has begun to end (PF_EXITING of Linux, in the ninth field)."""
    fields = _fields(process)
    return bool(fields) and bool(int(fields[6]) & 0x4)


def _there(pid: int) -> bool:
    """Tell whether any thread of a process is more than a zombie."""
    threads = map(_fields, Path(f"/proc/{pid}/task").glob("*"))
    return any(fields and fields[0] not in (b"Z", b"X") for fields in threads)


def kill(pid: int) -> None:
    """Kill a process at once, if it is still there."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def until(holds: Callable[[], object], seconds: float = 60) -> None:
    """Wait until something holds; the deadline is there to end a test that fails, not to measure."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it never came to hold"
        time.sleep(0.005)
