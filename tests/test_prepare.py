from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

import pytest

from hpcstress.clients import Place
from hpcstress.errors import Interruption, Refusal, UsageRefusal
from hpcstress.folder import RunFolder
from hpcstress.plan import Plan, from_toml
from hpcstress.prepare import Setup, prepare
from hpcstress.progress import Progress
from hpcstress.ranks import World
from hpcstress.servers import Spec, read
from hpcstress.stop import Stop
from tests.fake_mantik import FakeMantik
from tests.fake_mlflow import Faults, served, serving
from tests.jobs import SMALL, Heard


def prepared(
    folder: Path, plan: Plan, environment: Mapping[str, str], progress: Progress | None = None, hosts: int = 1
) -> Setup:
    with ExitStack() as resources:
        return prepare(plan, World(), hosts, RunFolder(folder), environment, progress or Progress(), resources, Stop())


def refused(folder: Path, plan: Plan, environment: Mapping[str, str]) -> str:
    with pytest.raises(Refusal) as refusal:
        prepared(folder, plan, environment)
    return str(refusal.value)


def test_what_is_prepared_is_written_down_before_load(tmp_path: Path) -> None:
    with serving(password="correct-horse") as server:
        environment = server.environment | {"SLURM_JOB_ID": "42", "SLURM_JWT": "secret"}
        setup = prepared(tmp_path / "job", SMALL, environment)
    folder = RunFolder(tmp_path / "job")
    assert from_toml(folder.plan.read_text()) == SMALL
    [event] = folder.events()
    assert event == {"event": "job", "facts": json.loads(json.dumps(setup.facts)), "plan": SMALL.to_toml()}
    assert setup.facts["experiment_id"] == setup.place.experiment_id
    assert setup.facts["slurm"] == {"SLURM_JOB_ID": "42"}
    assert {"began", "host", "python", "system", "processors", "packages", "command"} <= setup.facts.keys()
    assert not server.load()


def test_sign_in_and_experiment_take_four_requests(tmp_path: Path) -> None:
    with serving() as server:
        prepared(tmp_path / "first", SMALL, server.environment)
        assert [seen.path.rpartition("/")[2] for seen in server.requests] == [
            "search",
            "version",
            "get-by-name",
            "create",
        ]
        prepared(tmp_path / "second", SMALL, server.environment)
        assert len(server.requests) == 4 + 3


def test_no_two_jobs_have_the_same_session(tmp_path: Path) -> None:
    plan = replace(SMALL, client="null")
    assert len({prepared(tmp_path / str(number), plan, {}).session for number in range(5)}) == 5


def test_a_number_in_the_environment_goes_before_a_name_in_the_plan(tmp_path: Path) -> None:
    with serving() as server:
        setup = prepared(tmp_path / "job", SMALL, server.environment | {"MLFLOW_EXPERIMENT_ID": "0"})
        assert (setup.place.experiment_id, setup.facts["experiment_created"]) == ("0", False)
        assert len(server.experiments) == 1


def test_an_address_in_the_plan_goes_before_one_in_the_environment(tmp_path: Path) -> None:
    with serving() as server:
        elsewhere = server.environment | {"MLFLOW_TRACKING_URI": "http://127.0.0.1:1"}
        setup = prepared(tmp_path / "job", replace(SMALL, uri=server.uri), elsewhere)
    assert setup.facts["uri"] == server.uri


@dataclass
class Started:
    """A server that was started here."""

    environment: dict[str, str]
    facts: dict[str, str] = field(default_factory=dict)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Be gone."""


@pytest.mark.parametrize("exported", ["MLFLOW_TRACKING_URI", "Mantik"])
@pytest.mark.parametrize("name", ["mlflow-sqlite", "mlflow-postgres,workers=1"])
def test_a_server_that_is_named_goes_before_an_address_in_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, exported: str
) -> None:
    heard = Heard()
    with serving() as here, serving() as production:
        monkeypatch.setattr("hpcstress.servers.start", lambda spec, **_: {read(name): Started(here.environment)}[spec])
        monkeypatch.setattr("hpcstress.target._MANTIK", production.uri)
        mantik = {"MANTIK_USERNAME": "me", "MANTIK_PASSWORD": "correct-horse"}
        environment = mantik if exported == "Mantik" else production.environment
        setup = prepared(tmp_path / "job", replace(SMALL, server=name), environment, heard)
        assert production.requests == []
    assert setup.facts["uri"] == here.uri
    assert setup.environment == here.environment
    assert f"The load goes to {here.uri}, which was started as {name}" in heard.sentences


def test_where_the_load_goes_is_said_before_it_whoever_names_the_address(tmp_path: Path) -> None:
    with serving() as server:
        for number, (plan, environment) in enumerate(
            [(SMALL, server.environment), (replace(SMALL, uri=server.uri), {"HOME": "/nonexistent"})]
        ):
            heard = Heard()
            prepared(tmp_path / str(number), plan, environment, heard)
            assert f"The load goes to {server.uri}" in heard.sentences


def test_what_rank_0_has_prepared_travels_without_the_server_and_is_not_shown_with_secrets() -> None:
    server = object()
    setup = Setup("session", Place("7"), {}, {"MLFLOW_TRACKING_PASSWORD": "correct-horse"}, server)  # type: ignore[arg-type]
    told = pickle.loads(pickle.dumps(setup))
    assert told == replace(setup, server=None)
    assert "correct-horse" not in repr(setup)


# A refusal leaves nothing behind, and comes before the next thing is begun.


def test_a_wrong_password_is_tried_once(tmp_path: Path) -> None:
    with serving(password="correct-horse") as server:
        wrong = server.environment | {"MLFLOW_TRACKING_PASSWORD": "battery-staple"}
        assert "refused the sign-in" in refused(tmp_path / "job", SMALL, wrong)
        assert server.refused_sign_ins == len(server.requests) == 1
    assert not (tmp_path / "job").exists()


def test_who_signs_in_at_mantik_does_so_once_and_before_anything_else(tmp_path: Path) -> None:
    with served(FakeMantik()) as server:
        setup = prepared(tmp_path / "job", SMALL, server.environment)
        assert len(server.sign_ins) == 1
        assert server.refused_sign_ins == 0
        assert setup.token is not None
        assert [*server.expiry] == [setup.token.access]
    assert setup.facts["token_service"] == server.uri
    assert setup.environment is None
    assert not [secret for secret in server.secrets() if secret in repr(setup)]


def test_who_signs_in_at_mantik_and_names_no_server_means_mantik_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(FakeMantik()) as server:
        monkeypatch.setattr("hpcstress.target._MANTIK", server.uri)
        nameless = {name: value for name, value in server.environment.items() if name != "MLFLOW_TRACKING_URI"}
        setup = prepared(tmp_path / "job", SMALL, nameless)
    assert (setup.facts["uri"], setup.facts["server"]) == (server.uri, None)


def test_a_wrong_password_of_mantik_s_is_tried_once(tmp_path: Path) -> None:
    with served(FakeMantik()) as server:
        wrong = server.environment | {"MANTIK_PASSWORD": "battery-staple"}
        assert "correct MANTIK_USERNAME and MANTIK_PASSWORD" in refused(tmp_path / "job", SMALL, wrong)
        assert len(server.sign_ins) == len(server.requests) == 1
    assert not (tmp_path / "job").exists()


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"MLFLOW_EXPERIMENT_ID": "77"}, "There is no experiment '77'"),
        ({"MLFLOW_TRACKING_URI": "http://127.0.0.1:1"}, "cannot be reached"),
        ({"MLFLOW_TRACKING_URI": "http://no-such-host.invalid"}, "cannot be resolved"),
        ({"MLFLOW_TRACKING_URI": "mlflow.example"}, "does not begin with http"),
        ({"MLFLOW_TRACKING_INSECURE_TLS": "maybe"}, "write true or false"),
    ],
)
def test_a_server_that_cannot_be_used_is_refused(tmp_path: Path, environment: dict[str, str], sentence: str) -> None:
    with serving() as server:
        assert sentence in refused(tmp_path / "job", SMALL, server.environment | environment)
        assert not server.load()
    assert not (tmp_path / "job").exists()


def test_an_experiment_of_the_plans_name_that_is_deleted_is_refused(tmp_path: Path) -> None:
    with serving() as server:
        server.experiments["0"].stage = "deleted"
        assert "is deleted on the server" in refused(
            tmp_path / "job", replace(SMALL, experiment="Default"), server.environment
        )
    assert not (tmp_path / "job").exists()


def test_a_server_that_fails_later_is_refused_too(tmp_path: Path) -> None:
    with serving(Faults(hang_up=1, at="get-by-name")) as server:
        assert "closed the connection without an answer" in refused(tmp_path / "job", SMALL, server.environment)
    assert not (tmp_path / "job").exists()


def test_files_of_others_in_the_folder_survive_a_refusal(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    refused(tmp_path, SMALL, {"MLFLOW_TRACKING_URI": "http://127.0.0.1:1"})
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_folder_with_a_job_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    with serving() as server:
        prepared(tmp_path / "job", SMALL, server.environment)
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        server.requests.clear()
        assert "already holds a job" in refused(tmp_path / "job", SMALL, server.environment)
        assert server.requests == []
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with serving() as server:
        sentence = refused(tmp_path / "file" / "job", SMALL, server.environment)
        assert server.requests == []
    assert sentence.endswith("cannot be written (Not a directory): choose another --output.")


def test_a_disk_without_room_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    plan = replace(SMALL, runs=(10_000,), repeats=60_000, artifacts=10_000)
    with serving() as server:
        assert "choose another --output, or make room" in refused(tmp_path / "job", plan, server.environment)
        assert server.requests == []
    assert not (tmp_path / "job").exists()


@pytest.mark.parametrize("larger", [{"runs": (10, 10**9)}, {"users": (10, 10**9)}, {"warmup": 10**9}])
def test_more_runs_at_once_than_files_can_be_opened_are_refused_before_anything_is_written(
    tmp_path: Path, larger: dict[str, object]
) -> None:
    with serving() as server:
        assert "1,000,000,000 runs at once" in refused(tmp_path / "job", SMALL.with_options(larger), server.environment)
        assert server.requests == []
    assert not (tmp_path / "job").exists()


def test_a_signal_before_any_load_is_an_interruption_that_leaves_nothing(tmp_path: Path) -> None:
    stop = Stop()
    stop.asked = True
    with serving() as server, ExitStack() as resources, pytest.raises(Interruption):
        prepare(SMALL, World(), 1, RunFolder(tmp_path / "job"), server.environment, Progress(), resources, stop)
    assert not (tmp_path / "job").exists()


# A server that is started for the job.


@pytest.mark.parametrize(("hosts", "listens"), [(1, "127.0.0.1"), (2, "10.0.0.7")])
def test_a_server_listens_where_all_ranks_reach_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hosts: int, listens: str
) -> None:
    heard = []

    def start(spec: Spec, *, host: str, **_: object) -> None:
        heard.append((str(spec), host))
        raise Refusal("That is enough.")

    monkeypatch.setattr("hpcstress.servers.start", start)
    monkeypatch.setattr("hpcstress.servers.node.address", lambda _: "10.0.0.7")
    with pytest.raises(Refusal, match="That is enough"):
        prepared(tmp_path / "job", replace(SMALL, server="mlflow-postgres"), {}, hosts=hosts)
    assert heard == [("mlflow-postgres", listens)]


@pytest.mark.parametrize("server", ["mlflow-sqlite,auth=none", "mlflow-go-postgres"])
def test_a_server_without_sign_in_is_not_started_for_several_hosts(tmp_path: Path, server: str) -> None:
    with pytest.raises(UsageRefusal, match=rf"{server} has no sign-in, and where other nodes reach it everybody"):
        prepared(tmp_path / "job", replace(SMALL, server=server), {}, hosts=3)
    assert not (tmp_path / "job").exists()
