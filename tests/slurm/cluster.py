"""A real Slurm of four nodes on this machine: daemons of its own, in a folder and on ports of its own.

Its nodes share the machine's network, or each is a host of `tests.hosts.network`, with the controller on the login
node: then all that Slurm and the ranks say goes over cables.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.hosts.network import HOSTS, LOGIN, Network, address
from tests.jobs import mortal
from tests.mpi.launch import ROOT, Launched, launched_as, until

PROGRAMS = ("slurmctld", "slurmd", "srun", "sbatch", "squeue", "scancel", "scontrol", "sinfo")
NODES = ("n1", "n2", "n3", "n4")

_CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}({address})
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/none
CredType=cred/none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
TmpFS={folder}/tmp/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
KillWait=2
AccountingStorageType=accounting_storage/none
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP
PartitionName=short Nodes=ALL MaxTime=1 State=UP
PartitionName=paid Nodes=ALL AllowAccounts=payers State=UP
"""
_NODE = "NodeName={name} NodeHostname={host} NodeAddr={address} Port={port} CPUs=32 Boards=1 SocketsPerBoard=1 "
_NODE += "CoresPerSocket=32 ThreadsPerCore=1 RealMemory=4000 State=UNKNOWN\n"


def missing() -> str:
    """Return why there can be no cluster here, or nothing."""
    gone = [program for program in PROGRAMS if _found(program) is None]
    if gone:
        return f"{', '.join(gone)} not installed: `make system` installs Slurm on Debian"
    if os.geteuid() != 0:
        return "Slurm's daemons are started by root only"
    return ""


def _found(program: str) -> str | None:
    return shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


@dataclass
class Cluster:
    """A cluster that runs. What is in `login_only` its nodes do not see, and cannot write."""

    folder: Path
    login_only: Path
    network: Network | None = None
    nodes: dict[str, ExitStack] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        # Ranks on cables do not find each other over loopback.
        return {"SLURM_CONF": str(self.folder / "slurm.conf"), **({"FI_TCP_IFACE": "eth0"} if self.network else {})}

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the nodes."""
        return HOSTS if self.network else NODES

    def inside(self, name: str, cwd: Path = ROOT) -> list[str]:
        """Return what a command line begins with to run on a node, or on the login node."""
        return self.network.inside(name, cwd) if self.network else []

    def ask(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Call one of Slurm's programs on the login node."""
        words, environment = [*self.inside(LOGIN), *command], os.environ | self.environment
        return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60)

    def call(self, *command: str) -> str:
        """Call one of Slurm's programs and return what it says."""
        done = self.ask(*command)
        assert done.returncode == 0, done.stderr
        return done.stdout

    @contextmanager
    def running(self, *command: str, cwd: Path, **environment: str) -> Iterator[Launched]:
        """Run a command on the login node; when the block ends, nothing of it runs, here or on the nodes."""
        words = [*self.inside(LOGIN, cwd), *command]
        with launched_as(words, cwd=cwd, **{**self.environment, **environment}) as process:
            try:
                yield process
            finally:
                self.empty()

    def srun(self, *words: str, cwd: Path, **environment: str) -> tuple[int, str, str]:
        """Run Python on the nodes, with the options of srun before `--`; return exit code, output, complaints."""
        cut = words.index("--")
        command = ["srun", *words[:cut], sys.executable, *words[cut + 1 :]]
        with self.running(*command, cwd=cwd, **environment) as job:
            return job.end()

    def empty(self) -> None:
        """Cancel all jobs, and wait until the nodes are free."""
        if self.call("squeue", "--noheader"):
            self.call("scancel", "--user=root")
            until(lambda: not self.call("squeue", "--noheader"))
        until(self._idle)

    def start(self, name: str) -> None:
        """Switch a node on."""
        # A node has its own processes, which all end when it does: also the steps, which outlive slurmd. Where others
        # have the folder of the login node, it has an empty one, which it cannot write.
        hidden = f'mount -t tmpfs -o ro none {self.login_only} && "$@"'
        node = [*self.inside(name), "unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        node += ["sh", "-c", hidden, "sh"]
        node += [str(_found("slurmd")), "-D", "-f", self.environment["SLURM_CONF"], "-N", name]
        self.nodes[name] = ExitStack()
        self.nodes[name].enter_context(_daemon(node, self.folder / "log" / "daemons", signal.SIGKILL))

    def cut(self, name: str) -> None:
        """Take the power from a node: all that runs on it is gone in an instant, and says nothing."""
        self.nodes[name].close()

    def restore(self, name: str) -> None:
        """Switch a node on again that was cut off, and wait until it is idle."""
        self.call("scontrol", "update", f"nodename={name}", "state=down", "reason=cut")
        self.start(name)
        self.call("scontrol", "update", f"nodename={name}", "state=resume")
        until(self._idle)

    def _idle(self) -> bool:
        return self.call("sinfo", "--noheader", "--partition=debug", "--format=%T").split() == ["idle"]


def _ports(number: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for each in sockets:
            each.bind(("", 0))
        return [each.getsockname()[1] for each in sockets]


@contextmanager
def cluster(folder: Path, network: Network | None = None) -> Iterator[Cluster]:
    """Run a cluster in a folder until the block ends, on the hosts of a network; nothing of it is left then."""
    made = Cluster(folder, folder / "login", network)
    here = socket.gethostname().partition(".")[0]

    def place(name: str) -> dict[str, str]:
        return {"host": name, "address": address(name)} if network else {"host": here, "address": "127.0.0.1"}

    controllers, *nodes = _ports(1 + len(made.names))
    for name in ("state", "spool", "tmp", "log", "login"):
        (folder / name).mkdir()
    text = _CONFIGURATION.format(**place(LOGIN), port=controllers, folder=folder)
    for name, port in zip(made.names, nodes, strict=True):
        text += _NODE.format(name=name, **place(name), port=port)
    configuration = folder / "slurm.conf"
    configuration.write_text(text)
    controller = [*made.inside(LOGIN), str(_found("slurmctld")), "-D", "-f", str(configuration)]
    log = folder / "log" / "daemons"
    with ExitStack() as stack:
        stack.enter_context(_daemon(controller, log, signal.SIGTERM))
        for name in made.names:
            made.start(name)
            stack.callback(made.cut, name)
        until(lambda: _up(made))
        try:
            yield made
        finally:
            made.empty()


def _up(made: Cluster) -> bool:
    return made.ask("sinfo", "-h", "-p", "debug", "-o", "%D%T").stdout.strip() == f"{len(made.names)}idle"


@contextmanager
def _daemon(command: list[str], log: Path, end: signal.Signals) -> Iterator[None]:
    with log.open("ab") as file:
        process = subprocess.Popen(mortal(command, end), stdout=file, stderr=file, cwd=ROOT, start_new_session=True)
    try:
        yield
    finally:
        process.send_signal(end)
        process.wait(timeout=60)
