"""What a rank loads: 10,000 of them read every module from a file system that they share."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.fake_mlflow import serving

ROOT = Path(__file__).parent.parent

HELP = """
import sys
from hpcstress.cli import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    assert not end.code, end.code
print(*sys.modules, file=sys.stderr)
"""

# A whole job of a rank, up to where the report begins.
JOB = """
import os, sys
from pathlib import Path
from hpcstress.folder import RunFolder
from hpcstress.job import run_job
from hpcstress.plan import Plan
from hpcstress.progress import Progress
from hpcstress.ranks import world

plan = Plan(client=sys.argv[1], runs=(2,), repeats=1, warmup=0, artifacts=1, artifact_size=100, timeout=10)
with world({}) as ranks:
    assert run_job(plan, ranks, RunFolder(Path(sys.argv[2])), os.environ, Progress(), 0.0) == 0
print(*sys.modules, file=sys.stderr)
"""


def loaded(program: str, *words: str, environment: dict[str, str] | None = None) -> set[str]:
    """Return the modules that a program has loaded, and the packages they belong to."""
    process = subprocess.run(
        [sys.executable, "-c", program, *words],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", **(environment or {})},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    modules = process.stderr.splitlines()[-1].split()
    assert "hpcstress" in modules
    return {*modules, *(module.partition(".")[0] for module in modules)}


@pytest.mark.parametrize("words", ["--help", "--version", "doctor --help", "submit --help"])
def test_help_is_told_without_loading_what_only_a_job_needs(words: str) -> None:
    packages = loaded(HELP, *words.split())
    heavy = {
        "numpy",
        "mpi4py",
        "h5py",
        "mlflow",
        "pandas",
        "matplotlib",
        "uvloop",
        "httptools",
        "psutil",
        "analysis",
        "submitit",
    }
    assert not packages & heavy


@pytest.mark.parametrize("client", ["null", "wire"])
def test_a_rank_that_plays_loads_no_mlflow_no_pandas_no_matplotlib_and_alone_no_mpi(
    client: str, tmp_path: Path
) -> None:
    with serving() as server:
        environment = {"MLFLOW_TRACKING_URI": server.uri}
        packages = loaded(JOB, client, str(tmp_path / "job"), environment=environment)
        assert len(server.runs) == (2 if client == "wire" else 0)
    assert {"numpy", "h5py", "uvloop"} <= packages
    assert not packages & {"mlflow", "pandas", "matplotlib", "analysis", "mpi4py", "requests", "aiohttp", "submitit"}
    # How servers are started only rank 0 needs to know, and only if it starts one.
    assert not packages & {"hpcstress.servers.part", "hpcstress.servers.mlflow", "psutil"}
