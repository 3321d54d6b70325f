"""The guard of one part of a server: start it, sample it every second, end all of it when hpcstress ends, however.

    python guard.py ORDERS

It is a process and a session of its own, so that no signal to hpcstress reaches it, and holds the reading end of a pipe
that hpcstress keeps open: the end of that pipe is the end of hpcstress, by `stop` or by SIGKILL. ORDERS is JSON: the
fields of `Orders`. In the folder it writes `samples` (a line per second, see `census.py`) and, if the part ends by
itself, `ended` (how). It is run by its path and imports nothing of hpcstress: it starts fast and works from every
working directory.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import pwd
import runpy
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
# What Slurm sends to every process of a job whose time is nearly over: hpcstress ends its load then, and needs the
# server for that.
_WARNINGS = (signal.SIGUSR1, signal.SIGUSR2)
_GRACE = 5.0
_PERIOD = 1.0


@dataclass(frozen=True)
class Orders:
    """Say what is to be guarded, and how it ends."""

    parent: int
    """hpcstress: its death is the end."""
    folder: str
    keep: bool
    commands: list[list[str]]
    """All but the last have to end well before the next one begins; the last one serves."""
    user: str = ""
    """Whom the commands become; empty for nobody else."""
    signal: int = signal.SIGTERM
    """What asks them to end."""
    grace: float = _GRACE
    """How many seconds they get for it before they are killed."""
    after: tuple[tuple[str, ...], ...] = ()
    """Commands for when all have ended, such as one that unmounts; how they end is nobody's concern."""
    places: tuple[str, ...] = ()
    """Folders of the server as a whole, which its last guard removes."""


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


def end_all(look: Callable[[], list[psutil.Process]], ask: int = signal.SIGTERM, grace: float = _GRACE) -> int:
    """Ask every process that is found to end, kill those that have not after a grace; return how many were found."""
    found: set[psutil.Process] = set()
    for end in (ask, signal.SIGKILL):
        told: set[psutil.Process] = set()
        deadline = time.monotonic() + grace
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


def watch(orders: Orders) -> None:
    """Run the commands in the folder until hpcstress ends or closes its end of the pipe."""
    libc, folder = ctypes.CDLL(None), Path(orders.folder)
    # Orphans come to this process instead of to init: so the tree stays whole, whatever daemons and groups it makes.
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)
    woken, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    for number in _WARNINGS:
        # Whoever is started here ignores it, too, unless he has a use for it.
        signal.signal(number, signal.SIG_IGN)
    become: dict[str, Any] = {}
    if orders.user:
        account = pwd.getpwnam(orders.user)
        become = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}

    def start(command: list[str]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            process_group=0,  # a server that signals its own group does not mean the guard
            # The guard itself may be killed. It has no threads, so it may run code between fork and exec.
            preexec_fn=lambda: libc.prctl(_PR_SET_PDEATHSIG, orders.signal),  # noqa: PLW1509
            **become,
        )

    waiting = list(orders.commands)
    running: subprocess.Popen[bytes] | None = start(waiting.pop(0))
    # By its path, like the guard itself.
    room = runpy.run_path(str(Path(__file__).with_name("census.py")))
    census, due = room["Census"](os.getpid()), time.monotonic()
    with (folder / "samples").open("ab", buffering=0) as samples:
        # A child that hpcstress forked may hold the pipe open after its death: so look for the death itself, too.
        while os.getppid() == orders.parent:
            if (now := time.monotonic()) >= due:
                line = room["written"](census.take(), time.time())
                # A full disk is the server's to suffer and to report, not a reason to end it.
                with contextlib.suppress(OSError):
                    samples.write(f"\n{line}".encode())
                due = now + _PERIOD
            readable, _, _ = select.select([sys.stdin, woken], [], [], due - now)
            if sys.stdin in readable:
                return
            if woken in readable and {signal.SIGTERM, signal.SIGINT}.intersection(os.read(woken, 64)):
                return
            code = reap().get(running.pid) if running is not None else None
            if running is None or code is None:
                continue
            running.returncode = code
            if waiting and code == 0:
                running = start(waiting.pop(0))
                continue
            at = time.time()
            # What is left of it does not serve anybody. Its log stays for hpcstress to read.
            running = None
            end_all(below, orders.signal, orders.grace)
            (folder / "ended").write_text(how_ended(code))
            # The file's time is that of the end, which whoever was left may have outlived.
            os.utime(folder / "ended", (at, at))


def join(folder: Path) -> int:
    """Hold, with all guards of a server, a file in its folder until this process ends; return the descriptor."""
    descriptor = os.open(folder / "guards", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    # There are file systems that know no locks.
    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_SH)
    return descriptor


def is_last(descriptor: int, folder: Path) -> bool:
    """Let go of the file; tell whether no guard holds it any more."""
    try:
        # Of two that end at once, neither would get it alone while the other one holds it.
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return not any(path.is_dir() for path in folder.iterdir())
    return True


def main() -> None:
    """Guard what the orders name; leave no process and, unless told to keep it, no folder."""
    orders = Orders(**json.loads(sys.argv[1]))
    folder = Path(orders.folder)
    guards = join(folder.parent) if orders.places else None
    try:
        watch(orders)
    finally:
        end_all(below, orders.signal, orders.grace)
        for command in orders.after:
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                subprocess.run(command, stdin=subprocess.DEVNULL, cwd="/", timeout=_GRACE)
        if not orders.keep:
            shutil.rmtree(folder, ignore_errors=True)
        if guards is not None and is_last(guards, folder.parent):
            for place in orders.places:
                shutil.rmtree(place, ignore_errors=True)


if __name__ == "__main__":
    main()
