"""The servers of several parts: what they refuse, and what becomes of them without one of their replicas."""

from __future__ import annotations

import re
import signal
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from analysis.frame import read as read_frame
from analysis.outages import outages, sentences
from hpcstress import servers
from hpcstress.errors import Refusal, UsageRefusal
from hpcstress.folder import RunFolder
from hpcstress.record import Outcome
from hpcstress.servers import mlflow, zones
from hpcstress.servers.deployment import Deployment
from hpcstress.servers.part import Recipe
from tests.servers.processes import hpcstress_process, until


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_replica_that_is_killed_in_mid_run_leaves_a_gap_that_is_told_and_nothing_acknowledged_is_lost(
    public: Path,
) -> None:
    if lacking := servers.lack("multi-az"):
        pytest.skip(lacking)
    plan = ("--users", "8", "--duration", "15", "--repeats", "1", "--warmup", "2", "--sleep-time", "0")
    sizes = ("--params", "5", "--metrics", "3", "--artifacts", "1", "--artifact-size", "1kB")
    place = public / "result"
    with hpcstress_process(
        public, "--server", "multi-az,workers=1,pool=80", *plan, *sizes, "--output", str(place)
    ) as parent:
        try:
            under_load = re.compile(r"step 1/1 .*?(\d\d+|\d,\d+) attempts")
            until(lambda: under_load.search((public / "said").read_text()), 240, parent, public)
            victims = [
                process
                for process in psutil.Process(parent.pid).children(recursive=True)
                if Path(process.cwd()).name == "tracking-2"
            ]
            assert victims
            for process in victims:
                process.send_signal(signal.SIGKILL)
            # An attempt or two may have failed, which is no failure of the job.
            assert parent.wait() == 0, (public / "said").read_text()
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
    assert not [*public.glob("hpcstress-*")]


def test_kubernetes_is_not_started_but_written() -> None:
    with pytest.raises(UsageRefusal, match="serve kubernetes --write FOLDER writes its manifests"):
        servers.start("kubernetes")


def test_s3_without_boto3_is_refused_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow, "own_with_postgres", lambda: mlflow.Program(sys.executable, "3.17.2"))
    monkeypatch.setattr(zones, "find_spec", lambda _: None)
    with pytest.raises(Refusal, match=r"boto3, which is not installed: run `pip install 'hpcstress\[server\]'`"):
        zones.own_with_s3()


@pytest.mark.parametrize("text", ["multi-az,replicas=1000000", "multi-az,replicas=900", "local,workers=9999"])
def test_more_connections_than_a_database_can_have_are_refused_before_anything_is_started(text: str) -> None:
    with pytest.raises(UsageRefusal, match=r"connections to its database, and PostgreSQL takes 262,143 at most: give"):
        zones.check(servers.read(text))
    zones.check(servers.read("multi-az,replicas=100"))


@pytest.fixture
def sharing(tmp_path: Path, little: Callable[..., Recipe]) -> Callable[[Deployment], Path]:
    """Start two replicas with a folder in a directory of the site; return the folder."""

    def start(site: Deployment) -> Path:
        kept = zones._shared(servers.read(f"multi-az-nfs,shared={tmp_path}"), site)
        # Whoever is killed now leaves nothing: there is no guard yet.
        assert not Path(kept.place).exists()
        for name in ("tracking-1", "tracking-2"):
            site.add(name, little(before=kept.before), replica=True)
        (Path(kept.place) / "a.txt").touch()
        return Path(kept.place)

    return start


def test_a_shared_folder_is_of_the_server_alone_and_goes_with_its_last_part(
    sharing: Callable[[Deployment], Path], tmp_path: Path
) -> None:
    with Deployment("multi-az-nfs", tmp_path / "server") as site:
        folder = sharing(site)
        assert folder.parent == tmp_path
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        guard = psutil.Process(site.part("tracking-2").pids()[0]).parent()
        guard.terminate()
        site.part("tracking-2")._guard.wait()
        assert (folder / "a.txt").exists()
    assert [*tmp_path.iterdir()] == []


def test_a_shared_folder_of_a_server_whose_start_fails_is_not_left(
    little: Callable[..., Recipe], tmp_path: Path
) -> None:
    with Deployment("multi-az-nfs", tmp_path / "server") as site:
        zones._shared(servers.read(f"multi-az-nfs,shared={tmp_path}"), site)
        with pytest.raises(Refusal):
            site.add("database", little("raise SystemExit(1)"))
    assert [*tmp_path.iterdir()] == []


def test_a_shared_folder_of_a_server_that_is_kept_is_found_again(
    sharing: Callable[[Deployment], Path], tmp_path: Path
) -> None:
    (server := tmp_path / "kept" / "server").parent.mkdir()
    with Deployment("multi-az-nfs", server, keep=True) as site:
        folder = sharing(site)
    with Deployment("multi-az-nfs", server, keep=True) as site:
        assert zones._shared(servers.read(f"multi-az-nfs,shared={tmp_path}"), site).place == str(folder)
    assert (folder / "a.txt").exists()
