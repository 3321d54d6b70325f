"""The servers of several parts, each started for real: loaded, audited, killed, and nothing left of them."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

import hpcstress
from analysis.frame import read as read_frame
from analysis.outages import outages, sentences
from hpcstress import servers
from hpcstress.errors import Refusal, UsageRefusal
from hpcstress.folder import RunFolder
from hpcstress.record import Outcome
from hpcstress.result import Result
from tests.jobs import SMALL, mortal, play

REPOSITORY = Path(hpcstress.__file__).parent.parent
MLFLOW = re.compile(r"^export (MLFLOW_\w+)=(.*)$", re.MULTILINE)


@pytest.fixture
def temporary() -> Iterator[Path]:
    """Make a folder for temporary files that everybody may enter: PostgreSQL is not root."""
    with tempfile.TemporaryDirectory(prefix="hpcstress-test-", dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.fixture(params=["local", "single-az", "multi-az", "multi-az-nfs"])
def name(request: pytest.FixtureRequest) -> str:
    if lacking := servers.lack(request.param):
        pytest.skip(lacking)
    return str(request.param)


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
    """Wait until something holds; the deadline is there to end a test that fails, not to measure."""
    deadline = time.monotonic() + seconds
    while not holds():
        said = (temporary / "said").read_text()[-2000:]
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


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_it_takes_a_small_plan_with_a_clean_audit_and_nothing_is_left_when_hpcstress_is_killed(
    name: str, temporary: Path, tmp_path: Path
) -> None:
    with hpcstress_process(temporary, "serve", f"{name},workers=1") as parent:
        try:
            until(lambda: "runs until Ctrl-C" in (temporary / "said").read_text(), 240, parent, temporary)
            said = (temporary / "said").read_text()
            exported = {name: shlex.split(value)[0] for name, value in MLFLOW.findall(said)}
            assert play(tmp_path / "result", SMALL, exported) == 0
            with Result(RunFolder(tmp_path / "result").result) as result:
                (audit,) = result.table("audit")
                assert (audit["checked"], audit["intact"], audit["ghosts"]) == (6, 6, 0)
            processes = psutil.Process(parent.pid).children(recursive=True)
            ports = listening(processes)
            assert {address for address, _ in ports} == {"127.0.0.1"}
            secret = exported["MLFLOW_TRACKING_PASSWORD"]
            assert not any(secret in words_of(process) for process in psutil.process_iter())
            (folder,) = temporary.glob("hpcstress-*")
            for file in [*folder.rglob("s3.json"), *folder.rglob("auth.ini"), *folder.rglob("password")]:
                assert stat.S_IMODE(file.stat().st_mode) == 0o600
            assert bool([each for each in psutil.disk_partitions(all=True) if str(folder) in each.mountpoint]) == (
                name == "multi-az-nfs"
            )
        finally:
            parent.kill()
    deadline = time.monotonic() + 60
    while any(map(runs, processes)) or folder.exists():
        assert time.monotonic() < deadline, ([*filter(None, map(words_of, processes))], [*temporary.rglob("*")])
        time.sleep(0.05)
    assert not [each for each in psutil.disk_partitions(all=True) if str(folder) in each.mountpoint]
    for address in ports:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)
    sockets = [str(path) for path in Path("/tmp").glob("seaweedfs-*.sock")]
    assert not [path for path in sockets for _, port in ports if path.endswith(f"-{port}.sock")]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_replica_that_is_killed_in_mid_run_leaves_a_gap_that_is_told_and_nothing_acknowledged_is_lost(
    temporary: Path,
) -> None:
    if lacking := servers.lack("multi-az"):
        pytest.skip(lacking)
    plan = ("--users", "8", "--duration", "15", "--repeats", "1", "--warmup", "2", "--sleep-time", "0")
    sizes = ("--params", "5", "--metrics", "3", "--artifacts", "1", "--artifact-size", "1kB")
    place = temporary / "result"
    with hpcstress_process(
        temporary, "--server", "multi-az,workers=1,pool=80", *plan, *sizes, "--output", str(place)
    ) as parent:
        try:
            under_load = re.compile(r"step 1/1 .*?(\d\d+|\d,\d+) attempts")
            until(lambda: under_load.search((temporary / "said").read_text()), 240, parent, temporary)
            victims = [
                process
                for process in psutil.Process(parent.pid).children(recursive=True)
                if Path(process.cwd()).name == "tracking-2"
            ]
            assert victims
            for process in victims:
                process.send_signal(signal.SIGKILL)
            # An attempt or two may have failed, which is no failure of the job.
            assert parent.wait() == 0, (temporary / "said").read_text()
        finally:
            parent.kill()
    frame = read_frame(RunFolder(place).result)
    assert len(frame.audit)
    assert frame.audit["missing"].sum() == frame.audit["wrong"].sum() == frame.audit["unread"].sum() == 0
    assert frame.audit["checked"].sum() > 0
    began = float(frame.steps["began"][0])
    (outage,) = outages(frame, began)
    assert (outage.part, outage.told, outage.step) == ("tracking-2", "was killed by SIGKILL", 0)
    assert [(who, words.split(";")[0]) for _, who, words in outage.noticed] == [("balancer", "took tracking-2 out")]
    # The other one went on.
    after = frame.attempts["end"] / 1e9 > outage.time + outage.silent + outage.longest
    assert (frame.attempts["outcome"][after] == Outcome.ok).any()
    (sentence,) = sentences(frame)
    assert "tracking-2 was killed by SIGKILL. Balancer took tracking-2 out" in sentence
    assert not [*temporary.glob("hpcstress-*")]


def test_kubernetes_is_not_started_but_written() -> None:
    with pytest.raises(UsageRefusal, match="serve kubernetes --write FOLDER writes its manifests"):
        servers.start("kubernetes")


def test_s3_without_boto3_is_refused_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from hpcstress.servers import mlflow, zones

    monkeypatch.setattr(mlflow, "own_with_postgres", lambda: mlflow.Program(sys.executable, "3.17.2"))
    monkeypatch.setattr(zones, "find_spec", lambda _: None)
    with pytest.raises(Refusal, match=r"boto3, which is not installed: run `pip install 'hpcstress\[server\]'`"):
        zones.own_with_s3()


def test_a_shared_folder_of_ones_own_goes_with_the_server_unless_it_is_kept(tmp_path: Path) -> None:
    from hpcstress.servers import zones
    from hpcstress.servers.deployment import Deployment

    spec = servers.read(f"multi-az-nfs,shared={tmp_path}")
    for keep in (False, True):
        site = Deployment(spec.name, tmp_path / f"server-{keep}" if keep else None, keep=keep)
        try:
            kept = zones._shared(spec, site)
            assert Path(kept.place).parent == tmp_path
            assert stat.S_IMODE(Path(kept.place).stat().st_mode) == 0o700
            assert kept.after == (() if keep else (("rm", "-rf", kept.place),))
        finally:
            site.stop()
