"""A real MLflow inside a job on four hosts: on the first of them, for the ranks of this job, and gone with it."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from hpcstress.folder import RunFolder
from hpcstress.record import Outcome
from hpcstress.recover import recover
from hpcstress.result import Result
from tests.hosts.network import HOSTS, LOGIN, Network, address
from tests.hosts.test_hosts import stored
from tests.mpi.launch import ROOT, Launched, kill, shown, until
from tests.mpi.test_jobs import no_report
from tests.slurm.cluster import Cluster
from tests.slurm.test_scripts import sbatch

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

SERVER, POSTGRES = "mlflow-sqlite,workers=1", "mlflow-postgres,workers=1"
# As many users as ranks, for as long as somebody needs to look around.
LOAD = ["--users=4", "--repeats=1", "--warmup=0", "--params=5", "--artifact-size=1kB", "--sleep-time=0"]
_ASK = """
import sys, urllib.error, urllib.request
try:
    print(urllib.request.urlopen(sys.argv[1], timeout=20).status)
except urllib.error.HTTPError as error:
    print(error.code)
"""

Play = Callable[..., AbstractContextManager[Launched]]


@pytest.fixture(params=["srun", "mpiexec"])
def play(request: pytest.FixtureRequest, network: Network, tmp_path: Path) -> Play:
    """Play on one rank of each host, with what the server writes on its host's own disk."""
    environment = {**no_report(tmp_path), "TMPDIR": str(network.disk), "HOME": "/nonexistent"}
    if request.param == "mpiexec":
        return lambda *words: network.launched(
            len(HOSTS), "-m", "hpcstress", *words, "--output=job", cwd=tmp_path, **environment
        )
    slurm: Cluster = request.getfixturevalue("cluster")
    command = ["srun", "--mpi=pmi2", "-N4", "-n4", sys.executable, "-m", "hpcstress"]
    return lambda *words: slurm.running(*command, *words, "--output=job", cwd=tmp_path, **environment)


@pytest.fixture(autouse=True)
def _nothing_is_left(network: Network) -> Iterator[None]:
    before = {name: listening(network, name) for name in HOSTS}
    yield
    # Slurm's daemons listen on; a fixture of theirs may have started them since.
    for name in HOSTS:
        mine = listening(network, name) - before[name]
        assert not {one for one in mine if not one.startswith("0.0.0.0:")}
        assert network.call(name, f"ls -A {network.disk}") == ""


def listening(network: Network, name: str) -> set[str]:
    """Return where somebody listens on a host."""
    return {line.split()[3] for line in network.call(name, "ss -Hltn").splitlines()}


@contextmanager
def under_way(job: Launched, folder: RunFolder, ranks: int = len(HOSTS)) -> Iterator[str]:
    """Wait until the server has answered all ranks of a job; yield its address."""
    # One that submits a job has ended well by then.
    until(lambda: job.process.poll() or all(stored(folder, [*range(ranks)], Outcome.ok).values()), 120)
    assert not job.process.poll(), job.process.communicate()
    [job_itself] = [event for event in folder.events() if event["event"] == "job"]
    yield job_itself["facts"]["uri"]


def variables(pid: int) -> dict[str, str]:
    return dict(one.split("=", 1) for one in _texts(pid, "environ") if "=" in one)


def words(pid: int) -> list[str]:
    return _texts(pid, "cmdline")


def _texts(pid: int, what: str) -> list[str]:
    return shown(Path(f"/proc/{pid}"), what).decode().split("\0")


def password_of(job: Launched) -> str:
    """Return the password of a job's server, which only that server's processes have in their environment."""
    known = {pid: variables(pid).get("MLFLOW_AUTH_ADMIN_PASSWORD") for pid in job.left()}
    assert not any(known[pid] for pid in known if "hpcstress" in words(pid))
    [password] = {one for one in known.values() if one}
    return password


def shown_to_all(secret: str) -> list[str]:
    """Return the command lines of this machine that hold a secret."""
    lines = [shown(process, "cmdline").decode(errors="replace") for process in Path("/proc").glob("[0-9]*")]
    return [line for line in lines if secret in line]


def files_with(secret: str, folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]


def ask(network: Network, name: str, uri: str) -> str:
    """Return what a server answers to somebody on a host who has no password."""
    path = "/api/2.0/mlflow/experiments/get?experiment_id=0"
    return network.call(name, f"{sys.executable} -I -c '{_ASK}' '{uri}{path}'").strip()


@pytest.mark.parametrize(
    ("play", "server"), [("srun", SERVER), ("srun", POSTGRES), ("mpiexec", SERVER)], indirect=["play"]
)
def test_the_ranks_of_the_job_and_nobody_else_reach_the_server_on_its_first_host(
    network: Network, play: Play, server: str, tmp_path: Path
) -> None:
    folder = RunFolder(tmp_path / "job")
    with play(f"--server={server}", *LOAD, "--duration=8") as job:
        with under_way(job, folder) as uri:
            where = urlsplit(uri)
            assert where.hostname == address("h1")
            there = {one for one in listening(network, "h1") if one.endswith(f":{where.port}")}
            assert there == {f"{address('h1')}:{where.port}"}
            password = password_of(job)
            assert shown_to_all(password) == []
            ranks = [pid for pid in job.left() if {"hpcstress", "--output=job"} <= {*words(pid)}]
            assert len(ranks) >= len(HOSTS)
            assert not [pid for pid in ranks if password in variables(pid).values()]
            # What of it is in a file is its owner's alone, on the server's own host.
            assert files_with(password, tmp_path) == []
            assert [network.call(name, f"ls -A {network.disk}") != "" for name in HOSTS] == [True, False, False, False]
            assert network.call("h1", f"find {network.disk}/* -maxdepth 1 -perm /066") == ""
            assert [ask(network, name, uri) for name in ("h1", "h3", LOGIN)] == ["401"] * 3
        code, told, complaints = job.end()
        job.until_gone()
    assert code == 0, complaints
    assert password not in told + complaints
    assert "Traceback" not in complaints
    assert files_with(password, tmp_path) == []
    with Result(folder.result) as result:
        assert result.complete
        assert password not in str(result.facts) + str(result.notes)
        assert result.facts["server"]["server"] == server
        rows = result.attempts(["rank", "outcome"])
        assert {*rows["rank"].tolist()} == {0, 1, 2, 3}
        assert {*rows["outcome"].tolist()} == {Outcome.ok}
        audit = result.table("audit")
        assert audit["checked"].tolist() == audit["intact"].tolist()
        assert audit["checked"][0] > 0
        assert result.table("ranks")["host"].tolist() == [name.encode() for name in HOSTS]


def rank(job: Launched, number: int) -> int:
    """Return a rank's process."""
    names = ("PMI_RANK", "SLURM_PROCID")
    [found] = [
        pid
        for pid in job.left()
        if {"hpcstress", "--output=job"} <= {*words(pid)}
        and "python" in words(pid)[0]
        and any(variables(pid).get(name) == str(number) for name in names)
    ]
    return found


def test_the_server_ends_when_the_first_rank_is_killed(network: Network, play: Play, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "job")
    with play(f"--server={SERVER}", *LOAD, "--duration=200") as job:
        with under_way(job, folder):
            kill(rank(job, 0))
        # Under srun the others would wait for a minute to be sure of it.
        until(lambda: not [one for one in listening(network, "h1") if one.startswith(address("h1"))])
        until(lambda: network.call("h1", f"ls -A {network.disk}") == "")
        if job.process.poll() is None:
            job.process.send_signal(signal.SIGTERM)
        code, _, _ = job.end()
        job.until_gone()
    assert code != 0
    recover(folder)
    with Result(folder.result) as result:
        assert not result.complete
        assert 0 in result.attempts(["rank"])["rank"].tolist()


@pytest.mark.parametrize("words", [["--signal=USR1"], ["--signal=KILL"], []], ids=["warned", "killed", "cancelled"])
@pytest.mark.parametrize("play", ["srun"], indirect=True)
def test_the_server_ends_with_a_job_that_slurm_ends(
    cluster: Cluster, play: Play, tmp_path: Path, words: list[str]
) -> None:
    folder = RunFolder(tmp_path / "job")
    with play(f"--server={SERVER}", *LOAD, "--duration=200") as job:
        with under_way(job, folder):
            cluster.call("scancel", *words, cluster.call("squeue", "--noheader", "--format=%i").strip())
        code, _, complaints = job.end()
        job.until_gone()
    assert code != 0
    assert "Traceback" not in complaints
    if not folder.result.exists():
        recover(folder)
    with Result(folder.result) as result:
        assert not result.complete
        outcomes = {*result.attempts(["outcome"])["outcome"].tolist()}
        if words == ["--signal=USR1"]:
            # It has served until the load had ended, though Slurm tells every process of a step.
            assert outcomes <= {Outcome.ok, Outcome.interrupted}
            assert result.notes == ["Stopped by a signal in step 1 of 1."]


def test_a_server_on_a_node_of_its_own_serves_the_ranks_on_the_others(
    network: Network, cluster: Cluster, tmp_path: Path
) -> None:
    # What is on the hosts' own disks, the others do not see.
    environment = {"SERVER": SERVER, "TMPDIR": str(network.disk), "HOME": "/nonexistent", "MPI": "pmi2"}
    environment |= {"HTTP_PROXY": "http://proxy.invalid:3128", "http_proxy": "http://proxy.invalid:3128"}
    words = [":", "--nodes=3", "--ntasks-per-node=1", str(ROOT / "slurm" / "with-server.sbatch")]
    words += [*LOAD, "--duration=6", "--output=job"]
    passwords = []

    def look(job: Launched) -> None:
        with under_way(job, RunFolder(tmp_path / "job"), 3) as uri:
            assert urlsplit(uri).hostname == address("h1")
            passwords.append(password_of(job))
            assert shown_to_all(passwords[0]) == []
            assert [ask(network, name, uri) for name in ("h1", "h3")] == ["401"] * 2

    code, log = sbatch(cluster, tmp_path, *words, look=look, **environment)
    assert code == 0, log
    assert files_with(passwords[0], tmp_path) == []
    with Result(tmp_path / "job" / "result.h5") as result:
        assert result.complete
        # It was somebody else's for the ranks.
        assert result.facts["server"] is None
        assert result.table("ranks")["host"].tolist() == [b"h2", b"h3", b"h4"]
        audit = result.table("audit")
        assert audit["checked"].tolist() == audit["intact"].tolist()
        assert audit["checked"][0] > 0
        assert passwords[0] not in str(result.facts) + str(result.notes)


def test_the_exit_code_of_that_script_is_that_of_the_tool_or_of_the_server(
    network: Network, cluster: Cluster, tmp_path: Path
) -> None:
    disk, script = network.disk, str(ROOT / "slurm" / "with-server.sbatch")
    for server, words, told in (
        ("mlflow-sqlit", [], "There is no server 'mlflow-sqlit' that hpcstress can start."),
        ("mlflow-go-sqlite", [], "mlflow-go-sqlite has no sign-in"),
        (SERVER, ["--runs=ten"], "--runs: The ladder 'ten' is not a list of numbers"),
    ):
        (folder := tmp_path / server).mkdir()
        code, log = sbatch(
            cluster, folder, ":", "--nodes=1", "--ntasks-per-node=1", script, *words, SERVER=server, TMPDIR=str(disk)
        )
        assert code == 2, log
        assert told in log
        assert "Traceback" not in log
