"""The guard of one server: start it, sample it every second, end all of it when hpcstress ends, however that happens.

    python guard.py PARENT FOLDER keep|remove COMMAND...

It is a process and a session of its own, so that no signal to hpcstress reaches it, and holds the reading end of a pipe
that hpcstress keeps open: the end of that pipe is the end of hpcstress, by `stop` or by SIGKILL. In FOLDER it writes
`samples` (a line per second: time, processes, CPU seconds, resident bytes) and, if the server ends by itself, `ended`
(how). It is run by its path and imports nothing of hpcstress: it starts fast and works from every working directory.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_GRACE = 5.0
_PERIOD = 1.0


def census(least_cpu: float) -> tuple[int, float, int]:
    """Return number, CPU seconds (at least `least_cpu`) and resident bytes of all processes below this one.

    The seconds of processes that have ended are those their parents, at last this process, have inherited by waiting
    for them. A process that ends while it is being counted may be missed once: the sum must not fall for that.
    """
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    processes, cpu, rss = 0, ended.ru_utime + ended.ru_stime, 0
    for process in psutil.Process().children(recursive=True):
        try:
            times, memory = process.cpu_times(), process.memory_info()
        except psutil.NoSuchProcess:
            continue
        processes += 1
        cpu += times.user + times.system + times.children_user + times.children_system
        rss += memory.rss
    return processes, max(cpu, least_cpu), rss


def reap() -> dict[int, int]:
    """Wait for every child that has ended, orphans of the server among them; return pid -> exit code, or -signal."""
    codes: dict[int, int] = {}
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return codes
        if pid == 0:
            return codes
        codes[pid] = os.waitstatus_to_exitcode(status)


def how_ended(code: int) -> str:
    """Return what became of a process with this exit code, or -signal, as the rest of a sentence."""
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def end_all(look: Callable[[], list[psutil.Process]]) -> int:
    """Ask every process that is found to end, kill those that have not after a grace; return how many were found."""
    found: set[psutil.Process] = set()
    for end in (signal.SIGTERM, signal.SIGKILL):
        told: set[psutil.Process] = set()
        deadline = time.monotonic() + _GRACE
        # A process may start another one while it is being ended: look again until there is none.
        while (left := {*look(), *filter(_runs, told)}) and time.monotonic() < deadline:
            for process in left - told:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(end)
            told |= left
            time.sleep(0.02)
        found |= told
    return len(found)


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def below() -> list[psutil.Process]:
    """Return every process below this one that has not ended."""
    reap()
    return psutil.Process().children(recursive=True)


def watch(parent: int, folder: Path, command: list[str]) -> None:
    """Run the command in the folder until hpcstress, the process `parent`, ends or closes its end of the pipe."""
    libc = ctypes.CDLL(None)
    # Orphans come to this process instead of to init: so the tree stays whole, whatever daemons and groups it makes.
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)
    woken, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    server = subprocess.Popen(
        command,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        process_group=0,  # a server that signals its own group does not mean the guard
        # The guard itself may be killed. It has no threads, so it may run code between fork and exec.
        preexec_fn=lambda: libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM),  # noqa: PLW1509
    )
    cpu, due = 0.0, time.monotonic()
    with (folder / "samples").open("ab", buffering=0) as samples:
        # A child that hpcstress forked may hold the pipe open after its death: so look for the death itself, too.
        while os.getppid() == parent:
            if (now := time.monotonic()) >= due:
                processes, cpu, rss = census(cpu)
                # A full disk is the server's to suffer and to report, not a reason to end it.
                with contextlib.suppress(OSError):
                    samples.write(f"\n{time.time():.3f} {processes} {cpu:.2f} {rss} .".encode())
                due = now + _PERIOD
            readable, _, _ = select.select([sys.stdin, woken], [], [], due - now)
            if sys.stdin in readable:
                return
            if woken in readable and {signal.SIGTERM, signal.SIGINT}.intersection(os.read(woken, 64)):
                return
            code = reap().get(server.pid)
            if code is not None:
                server.returncode = code
                # What is left of it does not serve anybody. Its log stays for hpcstress to read.
                end_all(below)
                (folder / "ended").write_text(how_ended(code))


def main() -> None:
    """Guard what the command line names; leave no process and, unless told to keep it, no folder."""
    parent, place, fate, *command = sys.argv[1:]
    folder = Path(place)
    try:
        watch(int(parent), folder, command)
    finally:
        end_all(below)
        if fate == "remove":
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
