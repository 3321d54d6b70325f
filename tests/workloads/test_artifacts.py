from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from hpcstress.clients import Client
from hpcstress.errors import UsageRefusal
from hpcstress.estimate import estimate
from hpcstress.plan import Plan
from hpcstress.record import Operation
from hpcstress.workloads import check
from tests.workloads.paper import names, played, run_of

ARTIFACTS = Plan(workload="artifacts", artifacts=3, artifact_size=1000)


def test_files_go_one_by_one_and_then_as_a_folder_to_two_mlflow_runs() -> None:
    client = played(ARTIFACTS)
    run = ["create_run", "get_run", *["log_artifact"] * 3, "get_run", "finish_run"]
    assert names(client) == run * 2
    uploaded = [payload for operation, payload in client.requests if operation is Operation.log_artifact]
    assert uploaded == [*run_of(ARTIFACTS).artifacts] * 2


def test_only_log_artifacts_uploads_several_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    at_once: list[int] = []
    single = Client._request_each

    async def note(self: Client, operation: Operation, payloads: list[object], most: int) -> None:
        at_once.append(most)
        await single(self, operation, payloads, most)

    monkeypatch.setattr(Client, "_request_each", note)
    played(ARTIFACTS.with_options({"uploads": 8}))
    assert at_once == [8]


def test_every_upload_at_once_is_a_connection_to_be_opened() -> None:
    plan = ARTIFACTS.with_options({"runs": [10], "warmup": 0})
    assert estimate(plan).connections == 10
    assert estimate(plan.with_options({"uploads": 2})).connections == 20
    assert estimate(plan.with_options({"uploads": 8})).connections == 30
    assert estimate(plan.with_options({"uploads": 8, "method": "log_artifact"})).connections == 10


def test_the_files_of_a_folder_are_uploaded_under_their_own_paths(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "b.bin").write_bytes(b"two")
    (tmp_path / "a.bin").write_bytes(b"one")
    client = played(ARTIFACTS.with_options({"artifact_folder": str(tmp_path), "method": "log_artifact"}))
    uploaded = [payload for operation, payload in client.requests if operation is Operation.log_artifact]
    assert [(file.path, file.size, b"".join(file.chunks())) for file in uploaded] == [
        ("a.bin", 3, b"one"),
        ("deep/b.bin", 3, b"two"),
    ]
    assert [file.sha256() for file in uploaded] == [hashlib.sha256(text).hexdigest() for text in (b"one", b"two")]


def test_a_method_of_another_workload_is_refused() -> None:
    with pytest.raises(UsageRefusal, match=r"^--method: artifacts knows log_artifact, log_artifacts and all"):
        check(ARTIFACTS.with_options({"method": "log_params"}))
