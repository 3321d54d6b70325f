"""What can be seen of the scripts in `slurm/` without Slurm."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from hpcstress.site import named

SLURM = Path(__file__).parent.parent / "slurm"
SCRIPTS = sorted(path.name for path in SLURM.glob("*.sbatch"))


def options(name: str) -> dict[str, str]:
    """Return the options that a script tells sbatch."""
    return dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(.*))?$", (SLURM / name).read_text(), re.MULTILINE))


def test_there_are_scripts() -> None:
    assert SCRIPTS == ["array.sbatch", "generic.sbatch", "juwels-booster.sbatch", "with-server.sbatch"]


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_is_one(name: str) -> None:
    shell = shutil.which("bash")
    assert shell is not None
    assert subprocess.run([shell, "-n", SLURM / name], capture_output=True).stderr == b""


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_tells_srun_its_cores_hdf5_not_to_lock_and_slurm_not_to_start_it_twice(name: str) -> None:
    text = (SLURM / name).read_text()
    assert "export SRUN_CPUS_PER_TASK=" in text
    assert "export HDF5_USE_FILE_LOCKING=FALSE" in text
    assert {"no-requeue", "signal", "time", "nodes", "ntasks-per-node"} <= {*options(name)}


@pytest.mark.parametrize(
    ("number", "code", "told"),
    [
        ("1", 0, "-m hpcstress create-run --output results/7-1 --runs=4\n"),
        ("3", 2, "PLANS has no line for number 3: write one, or give --array fewer numbers.\n"),
    ],
)
def test_a_number_of_the_array_plays_its_plan_and_never_another(
    tmp_path: Path, number: str, code: int, told: str
) -> None:
    srun = tmp_path / "srun"
    srun.write_text('#!/bin/sh\nwhile [ "$1" != -m ]; do shift; done; echo "$@"\n')
    srun.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_ARRAY_TASK_ID": number, "SLURM_ARRAY_JOB_ID": "7"}
    done = subprocess.run(
        ["bash", SLURM / "array.sbatch", "--runs=4"], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout + done.stderr) == (code, told)


def test_script_and_profile_of_juwels_say_the_same() -> None:
    site, told = named("juwels-booster"), options("juwels-booster.sbatch")
    assert told["partition"] == site.partition
    assert told["gres"] == site.sbatch["gres"]
    assert int(told["ntasks-per-node"]) == site.cores_per_node
    assert f"module load {' '.join(site.modules)}\n" in (SLURM / "juwels-booster.sbatch").read_text()


def test_the_image_has_what_pip_needs_to_install_the_project() -> None:
    files = re.findall(r"^    (\S+) /opt/hpcstress/$", (SLURM / "hpcstress.def").read_text(), re.MULTILINE)
    assert {"pyproject.toml", "constraints.txt", "README.md", "hpcstress", "analysis"} == {*files}
    assert all((SLURM.parent / file).exists() for file in files)
