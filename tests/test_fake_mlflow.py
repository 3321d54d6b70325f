from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hpcstress.errors import Refusal
from tests.fake_mlflow import serving
from tests.jobs import REQUESTS, SMALL, mortal, play

STOCK = """
import os, sys, warnings
warnings.simplefilter("ignore")
import mlflow
from mlflow.entities import Metric, Param, RunTag
client = mlflow.MlflowClient()
experiment = client.create_experiment("stock")
assert client.get_experiment_by_name("stock").experiment_id == experiment
runs = [client.create_run(experiment, tags={"half": str(number % 2)}, run_name=f"run-{number}") for number in range(5)]
for run in runs:
    client.log_batch(run.info.run_id, [Metric("m", 0.5, 0, 0)], [Param("p", "v")], [])
    client.log_artifact(run.info.run_id, sys.argv[1])
    client.set_terminated(run.info.run_id)
back = client.get_run(runs[0].info.run_id)
assert (back.info.status, back.data.params, back.data.metrics) == ("FINISHED", {"p": "v"}, {"m": 0.5})
found = client.search_runs([experiment], "tags.`half` = '1'", max_results=1)
assert [run.info.run_name for run in found] == ["run-3"] and found.token
client.delete_run(runs[3].info.run_id)
assert [run.info.run_name for run in client.search_runs([experiment], "tags.`half` = '1'")] == ["run-1"]
client.rename_experiment(experiment, "old")
client.delete_experiment(experiment)
assert client.get_experiment(experiment).lifecycle_stage == "deleted"
"""


@pytest.mark.slow
def test_the_stock_client_takes_it_for_mlflow(tmp_path: Path) -> None:
    (tmp_path / "file.bin").write_bytes(b"bytes")
    with serving(password="correct-horse") as server:
        settings = os.environ | server.environment | {"MLFLOW_DISABLE_TELEMETRY": "true"}
        command = [sys.executable, "-c", STOCK, str(tmp_path / "file.bin")]
        told = subprocess.run(command, env=settings, cwd=tmp_path, capture_output=True, text=True)
        assert told.returncode == 0, told.stderr
        assert server.refused_sign_ins == 0
        assert sorted(server.artifacts.values()) == [b"bytes"] * 5


def test_as_a_process_of_its_own_it_says_where_it_is_and_counts_what_it_acknowledges(tmp_path: Path) -> None:
    tally = tmp_path / "tally"
    switches = ["--tally", str(tally), "--unavailable", "5", "--at", "runs/create"]
    process = subprocess.Popen(
        mortal([sys.executable, "-m", "tests.fake_mlflow", *switches]),
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[1],
        env=os.environ | {"FAKE_MLFLOW_PASSWORD": "correct-horse"},
        text=True,
    )
    try:
        assert process.stdout is not None
        environment = {
            "MLFLOW_TRACKING_URI": process.stdout.readline().strip(),
            "MLFLOW_TRACKING_USERNAME": "fake",
            "MLFLOW_TRACKING_PASSWORD": "correct-horse",
            "HOME": "/nonexistent",
        }
        assert play(tmp_path / "job", SMALL, environment) == 0
        assert tally.stat().st_size == 5 * REQUESTS  # of six runs one was not created
        with pytest.raises(Refusal, match="refused the sign-in"):
            play(tmp_path / "again", SMALL, environment | {"MLFLOW_TRACKING_PASSWORD": "battery-staple"})
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate()
