"""hpcstress as a process that a test may kill, and what is seen of the servers that it has started."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import psutil
import pytest

import hpcstress
from tests.jobs import mortal

REPOSITORY = Path(hpcstress.__file__).parent.parent
NO_NETWORK = "the packages cannot be had from here"


def environment(temporary: Path) -> dict[str, str]:
    foreign = ("MLFLOW_", "MANTIK_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return {**kept, "TMPDIR": str(temporary), "PYTHONPATH": str(REPOSITORY)}


def hpcstress_process(temporary: Path, *words: str) -> subprocess.Popen[bytes]:
    with (temporary / "said").open("w") as said:
        return subprocess.Popen(
            mortal([sys.executable, "-m", "hpcstress", *words]),
            env=environment(temporary),
            cwd=temporary,
            stdout=said,
            stderr=said,
        )


def until(holds: Callable[[], object], seconds: float, parent: subprocess.Popen[bytes], temporary: Path) -> None:
    """Wait until something holds; the deadline is there to end a test that fails, not to measure.

    Skip the test where there is no network to install from.
    """
    deadline = time.monotonic() + seconds
    while not holds():
        said = (temporary / "said").read_text()[-2000:]
        if NO_NETWORK in said:
            pytest.skip(said)
        assert parent.poll() is None, said
        assert time.monotonic() < deadline, said
        time.sleep(0.05)


def runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def listening(processes: list[psutil.Process]) -> set[tuple[str, int]]:
    return {
        (connection.laddr.ip, connection.laddr.port)
        for process in processes
        if runs(process)
        for connection in process.net_connections()
        if connection.status == psutil.CONN_LISTEN
    }


def words_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def there(pids: Iterable[int]) -> list[psutil.Process]:
    """Return the processes that have not ended meanwhile: those of a database come and go."""
    found = []
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            found.append(psutil.Process(pid))
    return found


def owners(processes: Iterable[psutil.Process]) -> set[str]:
    """Return whose processes are that have not ended meanwhile."""
    found = set()
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            found.add(process.username())
    return found


def taken(host: str, port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex((host, port)) == 0


@dataclass(frozen=True)
class Traces:
    """What a server that hpcstress runs is made of: what has to be gone when hpcstress is."""

    folder: Path
    processes: list[psutil.Process]
    ports: set[tuple[str, int]]

    @classmethod
    def of(cls, parent: subprocess.Popen[bytes], temporary: Path) -> Self:
        """Look at the only server of a process."""
        (folder,) = temporary.glob("hpcstress-*")
        processes = psutil.Process(parent.pid).children(recursive=True)
        return cls(folder, processes, listening(processes))

    def mounts(self) -> list[str]:
        """Return what is mounted below its folder."""
        mounted = (each.mountpoint for each in psutil.disk_partitions(all=True))
        return [point for point in mounted if str(self.folder) in point]

    def left(self) -> list[str]:
        """Return what there still is of it, as words."""
        sockets = [*map(str, Path("/tmp").glob("seaweedfs-*.sock"))]
        return [
            *(f"process {each.pid}: {words_of(each)}" for each in self.processes if runs(each)),
            *(f"mount {point}" for point in self.mounts()),
            *([f"folder {self.folder}"] if self.folder.exists() else []),
            *(f"port {port}" for host, port in self.ports if taken(host, port)),
            *(path for path in sockets for _, port in self.ports if path.endswith(f"-{port}.sock")),
        ]

    def vanish(self) -> None:
        """Wait until nothing is left; the deadline is there to end a test that fails, not to measure."""
        deadline = time.monotonic() + 60
        while left := self.left():
            assert time.monotonic() < deadline, left
            time.sleep(0.05)
