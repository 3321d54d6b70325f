"""Four hosts on this machine: network, name, address and clock of their own, cables that can be cut.

Nothing of it has a name outside: every namespace belongs to one process, and is gone with it, however that ends.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.jobs import mortal
from tests.mpi.launch import MPIEXEC, ROOT, Launched, launched_as, until

HOSTS = ("h1", "h2", "h3", "h4")
# The login node: all cables end in it.
LOGIN = "login"
_ADDRESS = "10.211.7."
_NAMESPACES = ("--net", "--uts", "--mount", "--time")
# So many seconds more than this machine's clock shows that of a host.
SHIFTS = {"login": 0, "h1": 5_000, "h2": 0, "h3": 31_536_000, "h4": 5_001}


def address(name: str) -> str:
    """Return the address of a host."""
    return f"{_ADDRESS}{HOSTS.index(name) + 1 if name in HOSTS else 254}"


@cache
def missing() -> str:
    """Return why there can be no such network here, or nothing."""
    gone = [program for program in ("ip", "nsenter", "unshare", "mount") if shutil.which(program) is None]
    if gone:
        return f"{', '.join(gone)} not installed: on Debian, apt-get install iproute2 util-linux mount"
    if os.geteuid() != 0:
        return "only root may make network namespaces and cables between them"
    tried = "ip link add name cable type veth peer name end && ip link add name switch type bridge"
    made = subprocess.run(["unshare", *_NAMESPACES, "sh", "-c", tried], capture_output=True, text=True)
    return f"this kernel makes no cables and switches: {made.stderr.strip()}" if made.returncode else ""


@dataclass
class Network:
    """A network that is up. `keepers` are the processes whose namespaces the hosts are.

    What is in `disk` is another folder on each host, which everybody may enter; all else they share.
    """

    keepers: dict[str, int]
    agent: Path
    disk: Path = Path("/media")

    def inside(self, name: str, cwd: Path = ROOT) -> list[str]:
        """Return what a command line begins with to run on a host, in a folder that all hosts share."""
        return ["nsenter", f"--target={self.keepers[name]}", *_NAMESPACES, f"--wdns={cwd}"]

    def call(self, name: str, command: str) -> str:
        """Run a line of shell on a host and return what it says."""
        done = subprocess.run([*self.inside(name), "sh", "-ec", command], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def cut(self, name: str) -> None:
        """Cut the cable of a host."""
        self.call(LOGIN, f"ip link set to-{name} down")

    def mend(self, name: str) -> None:
        """Make the cable of a host whole again."""
        self.call(LOGIN, f"ip link set to-{name} up")
        # That somebody did not answer is remembered for seconds, and then told to who connects.
        for each in (LOGIN, *HOSTS):
            self.call(each, "ip neighbour flush all")

    def sent(self, name: str) -> int:
        """Return how many bytes a host has sent over its cable."""
        return int(self.call(LOGIN, f"cat /proc/net/dev | sed -n 's/^ *to-{name}: *//p'").split()[0])

    @contextmanager
    def launched(self, ranks: int, *words: str, cwd: Path, **environment: str) -> Iterator[Launched]:
        """Run Python on all hosts, started from the login node, with as many ranks on each."""
        where = ",".join(f"{name}:{ranks // len(HOSTS)}" for name in HOSTS)
        command = [*self.inside(LOGIN, cwd), MPIEXEC, "-launcher", "rsh"]
        command += ["-launcher-exec", str(self.agent), "-localhost", address(LOGIN), "-hosts", where]
        command += ["-n", str(ranks), sys.executable, *words]
        with launched_as(command, cwd=cwd, FI_TCP_IFACE="eth0", **environment) as job:
            yield job

    @contextmanager
    def serving(self, name: str, *words: str) -> Iterator[dict[str, str]]:
        """Run a fake MLflow server on a host; yield what a job has to know of it."""
        command = [*self.inside(name), sys.executable, "-m", "tests.fake_mlflow"]
        process = subprocess.Popen(
            mortal([*command, "--host", address(name), *words]), stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        try:
            assert process.stdout is not None
            yield {"MLFLOW_TRACKING_URI": process.stdout.readline().strip(), "HOME": "/nonexistent"}
        finally:
            process.kill()
            process.communicate()


@contextmanager
def network(folder: Path) -> Iterator[Network]:
    """Keep a network up until the block ends."""
    names = folder / "hosts"
    names.write_text("".join(f"{address(name)} {name}\n" for name in (LOGIN, *HOSTS)) + "127.0.0.1 localhost\n")
    with ExitStack() as stack:
        keepers = {name: stack.enter_context(_keeper(shift)) for name, shift in SHIFTS.items()}
        made = Network(keepers, folder / "agent")
        # What hydra calls in place of rsh: HOST and then the words of a command line.
        choices = "".join(f'{name}) shift; exec {shlex.join(made.inside(name)[:-1])} sh -c "$*";;\n' for name in HOSTS)
        made.agent.write_text(f'#!/bin/sh\ncase $1 in\n{choices}esac\necho "no host $1" >&2; exit 1\n')
        made.agent.chmod(0o700)
        made.call(LOGIN, "ip link add switch type bridge && ip link set switch up && ip link set lo up")
        made.call(LOGIN, f"ip address add {address(LOGIN)}/24 dev switch")
        for name in (LOGIN, *HOSTS):
            made.call(name, f"hostname {name} && mount --bind {shlex.quote(str(names))} /etc/hosts")
        for name in HOSTS:
            made.call(LOGIN, f"ip link add to-{name} type veth peer name eth0 netns {keepers[name]}")
            made.call(LOGIN, f"ip link set to-{name} master switch up")
            made.call(name, f"mount -t tmpfs none {made.disk}")
            made.call(name, f"ip address add {address(name)}/24 dev eth0 && ip link set eth0 up && ip link set lo up")
        yield made


@contextmanager
def _keeper(shift: int) -> Iterator[int]:
    """Have a process with namespaces of its own, whose clock is shifted; yield its number."""
    command = ["unshare", *_NAMESPACES, f"--monotonic={shift}", "sleep", "infinity"]
    process = subprocess.Popen(mortal(command), start_new_session=True)
    try:
        until(lambda: Path(f"/proc/{process.pid}/comm").read_text() == "sleep\n")
        yield process.pid
    finally:
        process.kill()
        process.wait()
