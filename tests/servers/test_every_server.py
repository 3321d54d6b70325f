"""Every server that has a name, for real: loaded, audited, killed with hpcstress, and nothing left of it."""

from __future__ import annotations

import re
import shlex
import stat
import subprocess
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from hpcstress import servers
from hpcstress.errors import Refusal
from hpcstress.folder import RunFolder
from hpcstress.result import Result
from hpcstress.servers.mlflow import answers
from hpcstress.servers.spec import SERVERS
from tests.jobs import SMALL, play
from tests.servers.processes import NO_NETWORK, Traces, hpcstress_process, until, words_of

SOURCED = re.compile(r"^\. (.*)$", re.MULTILINE)
EXPORTED = re.compile(r"^export (MLFLOW_\w+)=(.*)$", re.MULTILINE)
STARTED = [name for name in servers.NAMES if name != "kubernetes"]
# Installing a server may take minutes, once.
PATIENCE = 600


def asked_for(name: str) -> str:
    """Return what a server is asked for with, as small as it can be; skip one that this machine cannot have."""
    if lacking := servers.lack(name):
        pytest.skip(lacking)
    return f"{name},workers=1" if "workers" in SERVERS[name].options else name


def await_words(words: str, parent: subprocess.Popen[bytes], public: Path) -> str:
    """Wait until a process has said something, and return all that it said."""
    until(lambda: re.search(words, (public / "said").read_text()), PATIENCE, parent, public)
    return (public / "said").read_text()


@pytest.mark.slow
@pytest.mark.timeout(PATIENCE + 100)
@pytest.mark.parametrize("name", STARTED)
def test_it_takes_a_small_plan_with_a_clean_audit_and_nothing_is_left_when_hpcstress_is_killed(
    name: str, public: Path, tmp_path: Path
) -> None:
    with hpcstress_process(public, "serve", asked_for(name)) as parent:
        try:
            said = await_words("until Ctrl-C", parent, public)
            (file,) = map(Path, shlex.split(SOURCED.search(said)[1]))
            exported = {variable: shlex.split(value)[0] for variable, value in EXPORTED.findall(file.read_text())}
            # FastTrackML leaves artifacts to its clients.
            plan = replace(SMALL, artifacts=0) if name.startswith("fasttrackml") else SMALL
            assert play(tmp_path / "result", plan, exported) == 0
            with Result(RunFolder(tmp_path / "result").result) as result:
                (audit,) = result.table("audit")
                assert (audit["checked"], audit["intact"], audit["ghosts"]) == (6, 6, 0)
            traces = Traces.of(parent, public)
            assert {address for address, _ in traces.ports} == {"127.0.0.1"}
            # mlflow-go has no sign-in.
            assert ("MLFLOW_TRACKING_PASSWORD" in exported) == ("auth" in SERVERS[name].options)
            secret = exported.get("MLFLOW_TRACKING_PASSWORD", "no secret at all")
            assert secret not in said
            assert not any(secret in words_of(process) for process in psutil.process_iter())
            for pattern in ("s3.json", "auth.ini", "password", "client.sh"):
                for file in traces.folder.rglob(pattern):
                    assert stat.S_IMODE(file.stat().st_mode) == 0o600
            assert bool(traces.mounts()) == (name == "multi-az-nfs")
        finally:
            parent.kill()
    traces.vanish()


@pytest.mark.slow
@pytest.mark.timeout(PATIENCE + 100)
@pytest.mark.parametrize("name", ["mlflow-sqlite", "fasttrackml-postgres", "mlflow-go-sqlite"])
def test_nothing_is_left_of_it_when_hpcstress_is_killed_in_a_run(name: str, public: Path) -> None:
    plan = ("--users", "2", "--duration", "600", "--repeats", "1", "--warmup", "0", "--sleep-time", "0")
    sizes = ("--params", "2", "--metrics", "2", "--artifacts", "0")
    with hpcstress_process(
        public, "--server", asked_for(name), *plan, *sizes, "--output", str(public / "result")
    ) as parent:
        try:
            await_words(r"step 1/1 .*?(\d\d+|\d,\d+) attempts", parent, public)
            traces = Traces.of(parent, public)
            assert traces.ports
        finally:
            parent.kill()
    traces.vanish()


@pytest.mark.slow
@pytest.mark.timeout(PATIENCE + 100)
@pytest.mark.parametrize("name", ["fasttrackml-sqlite", "mlflow-go-sqlite", "mlflow-sqlite"])
def test_it_is_waited_for_where_it_listens(name: str, public: Path) -> None:
    try:
        server = servers.start(asked_for(name), public / "server", str, host="127.0.0.2")
    except Refusal as refusal:
        if NO_NETWORK in str(refusal):
            pytest.skip(str(refusal))
        raise
    with server:
        address, port = urlsplit(server.uri).netloc.split(":")
        assert address == "127.0.0.2"
        assert answers(int(port), address)
        assert not answers(int(port))
