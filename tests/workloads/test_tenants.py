"""A fifth trains and the others browse, each time in some tenant's workspace: the requests, the matrix, whole jobs."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcstress import servers
from hpcstress.audit import audit_result
from hpcstress.clean import Cleaned, clean
from hpcstress.clients import Client, Lacking, Place
from hpcstress.clients.answer import Answer, Failed
from hpcstress.clients.api import Api
from hpcstress.clients.dial import way_to
from hpcstress.clients.requests import imagined
from hpcstress.content import SESSION_TAG, Content
from hpcstress.errors import UsageRefusal
from hpcstress.estimate import estimate
from hpcstress.plan import Plan
from hpcstress.ranks import World
from hpcstress.record import OPTIONAL, Operation, Outcome
from hpcstress.result import Result
from hpcstress.schedule import owned
from hpcstress.workloads import check, load, workspaces
from hpcstress.workspaces import places
from tests.fake_mlflow import Experiment, FakeMlflow, Faults, Model, serving
from tests.jobs import SMALL, Heard, play

# The amounts that mlflow-scale has published.
SEED = Plan(workload="tenants", users=(10,), metrics=3, params=5, artifacts=2, tenants=7)
TRAINING = {
    "create_experiment": 1,
    "create_prompt": 3,
    "create_prompt_version": 3,
    "create_run": 3,
    "log_metric": 9,
    "log_param": 15,
    "log_artifact": 6,
    "finish_run": 3,
}
BROWSING = {
    "list_workspaces": 1,
    "search_prompts": 1,
    "search_experiments": 1,
    "get_experiment": 5,
    "search_runs": 5,
    "get_run": 15,
    "list_artifacts": 15,
    "download_artifact": 15,
}


class Recorder(Client):
    """Write down what is asked for and where."""

    def __init__(self, place: Place, lacks: frozenset[Operation] = frozenset()) -> None:
        super().__init__(place, Lacking())
        self.asked: list[tuple[Operation, Any]] = []
        self.entered: list[str] = []
        self._lacks = lacks

    def enter_workspace(self, name: str) -> None:
        self.entered.append(name)

    async def _request(self, operation: Operation, payload: Any) -> Sequence[str]:
        self.asked.append((operation, payload))
        if operation in self._lacks:
            raise Failed(Answer(Outcome.not_supported, 404, 0, 0, 0, b""))
        return imagined(operation, payload)

    def close(self) -> None: ...


def played(plan: Plan, number: int, size: int = 10, **recorder: Any) -> Recorder:
    client = Recorder(recorder.pop("place", Place("1", workspaces=True)), **recorder)
    asyncio.run(load(plan.workload)(Content(plan, "session", size).run(0, number), client))
    return client


def counted(client: Recorder) -> dict[str, int]:
    return dict(Counter(operation.name for operation, _ in client.asked))


def trains(number: int, size: int) -> bool:
    return "create_run" in counted(played(SEED, number, size))


# What users do.


def test_a_training_is_the_seeds_43_requests_with_no_look_at_a_run_between_its_writes() -> None:
    told = counted(played(SEED, 0))
    assert told == TRAINING
    assert sum(told.values()) == 43


def test_browsing_is_up_to_58_requests() -> None:
    told = counted(played(SEED, 9))
    assert told == BROWSING
    assert sum(told.values()) == 58


def test_the_three_runs_of_a_training_hold_different_things() -> None:
    asked = played(SEED, 0).asked
    for operation in (Operation.log_metric, Operation.log_param, Operation.create_run):
        payloads = [str(payload) for done, payload in asked if done is operation]
        assert len(set(payloads)) == len(payloads)
    sums = {artifact.sha256() for done, artifact in asked if done is Operation.log_artifact}
    assert len(sums) == 6


def test_what_is_made_can_be_found_by_its_session() -> None:
    asked = played(SEED, 0).asked
    creating = {Operation.create_experiment, Operation.create_prompt, Operation.create_run}
    tags = [dict(payload[1]) for operation, payload in asked if operation in creating]
    assert len(tags) == 7
    assert {tag[SESSION_TAG] for tag in tags} == {"session"}


def test_without_artifacts_nobody_looks_for_some() -> None:
    assert "list_artifacts" not in counted(played(replace(SEED, artifacts=0), 9))


def test_a_server_without_prompts_is_asked_once_for_each_and_the_rest_goes_on() -> None:
    lacks = frozenset({Operation.create_prompt, Operation.create_prompt_version})
    assert counted(played(SEED, 0, lacks=lacks)) == TRAINING | {"create_prompt": 1, "create_prompt_version": 1}


# Who does it where.


@given(size=st.integers(5, 300), ranks=st.integers(1, 40))
def test_a_fifth_of_the_users_trains_and_each_rank_has_its_share_of_them(size: int, ranks: int) -> None:
    kinds = [trains(user, size) for user in range(size)]
    assert sum(kinds) == size // 5
    shares = [sum(kinds[user] for user in owned(size, rank, ranks)) for rank in range(ranks)]
    assert max(shares) - min(shares) <= 1


@given(user=st.integers(0, 9), iteration=st.integers(0, 1000))
def test_who_trains_trains_in_each_iteration(user: int, iteration: int) -> None:
    assert trains(user + iteration * 10, 10) == trains(user, 10)


def test_the_tenant_of_an_iteration_follows_from_seed_and_run_and_each_has_its_turn() -> None:
    def tenants(plan: Plan) -> list[str]:
        return [client.entered[0] for number in range(100) if (client := played(plan, number)).entered]

    told = tenants(SEED)
    assert set(told) == {f"tenant-{number}" for number in range(1, 8)}
    assert told == tenants(SEED)
    assert told != tenants(replace(SEED, seed=2))


def test_on_a_server_without_workspaces_nobody_enters_one() -> None:
    assert played(SEED, 0, place=Place("1")).entered == []


# The matrix.


@pytest.mark.parametrize("sizes", [{"users": (10, 4)}, {"users": (1,)}, {"users": (), "runs": (100, 3)}])
def test_a_cell_in_which_nobody_trains_is_refused(sizes: dict[str, Any]) -> None:
    with pytest.raises(UsageRefusal, match=r"of \d users one in 5 trains, which is nobody: take 5 users or more"):
        check(replace(SEED, **sizes))


def test_a_matrix_whose_cells_all_have_somebody_training_is_accepted() -> None:
    check(replace(SEED, users=(5, 10, 20, 50), sweep="tenants=1,10,100,500"))


def test_there_are_workspaces_for_the_largest_number_of_tenants() -> None:
    assert workspaces(SEED)[-1] == "tenant-7"
    assert len(workspaces(replace(SEED, sweep="tenants=1,10,3"))) == 10
    assert workspaces(Plan()) == ()


def test_an_estimate_counts_both_kinds_of_users() -> None:
    told = estimate(replace(SEED, warmup=0, repeats=1, iterations=3, prefill_experiments=2))
    assert told.requests_per_run == (TRAINING, BROWSING)
    assert told.requests == 3 * (2 * 43 + 8 * 58)
    assert told.prefill == 7 * 2 * 43


# Whole jobs.

JOB = replace(
    SMALL, workload="tenants", runs=(1,), users=(10,), iterations=2, tenants=3, artifacts=2, warmup=5, audit=1000
)


@pytest.fixture
def server() -> Iterator[FakeMlflow]:
    with serving(Faults()) as server:
        server.workspaces = {"default", "tenant-2", "others"}
        yield server


def job(server: FakeMlflow, folder: Path, plan: Plan = JOB) -> tuple[int, Result]:
    code = play(folder, plan, server.environment)
    return code, Result(folder / "result.h5")


def audited(result: Result) -> dict[str, int]:
    table = result.table("audit")
    return {name: int(table[name].sum()) for name in table.dtype.names or () if name != "step"}


def cleaned(server: FakeMlflow, result: Result, *, prefill: bool = False, plan: Plan = JOB) -> Cleaned:
    async def scene() -> Cleaned:
        async with Api(await way_to("", server.environment), 5.0) as api:
            there = places(plan, there=bool(result.facts["workspaces"]))
            return await clean(api, result.facts, str, prefill=prefill, places=there)

    return asyncio.run(scene())


def left(server: FakeMlflow) -> tuple[set[str], set[str]]:
    """Return the names of all active experiments and of all models."""
    experiments = {one.name for one in server.experiments.values() if one.stage == "active"}
    return experiments, {model.name for model in server.models.values()}


def test_what_tenants_have_made_is_in_their_workspaces_and_found_intact(server: FakeMlflow, tmp_path: Path) -> None:
    code, result = job(server, tmp_path / "job")
    assert code == 0
    assert audited(result) == {"checked": 12, "intact": 12, "missing": 0, "wrong": 0, "unread": 0, "ghosts": 0}
    own = [one for one in server.experiments.values() if SESSION_TAG in one.tags and one.tags["hpcstress.step"] == "0"]
    assert len(own) == 4
    assert {one.workspace for one in own} <= {"tenant-1", "tenant-2", "tenant-3"}
    assert len(server.models) == 3 * (4 + 1)  # one user of the warm-up trains, too


def test_every_request_of_the_load_names_a_tenants_workspace(server: FakeMlflow, tmp_path: Path) -> None:
    job(server, tmp_path / "job", replace(JOB, audit=0, warmup=0))
    assert len(server.load()) >= 4 * (43 - 7)
    assert {seen.workspace for seen in server.load()} <= {"tenant-1", "tenant-2", "tenant-3"}
    assert {seen.status for seen in server.requests if seen.workspace} == {200}


def test_a_result_can_be_audited_again(server: FakeMlflow, tmp_path: Path) -> None:
    _, result = job(server, tmp_path / "job")
    said: list[str] = []
    assert audit_result(World(), result.path, server.environment, said.append)
    assert said == ["step 1 (10 users): 12 of 12 runs read back are intact, no ghost run"]


@pytest.mark.parametrize("lie", ["forget_experiment", "forget_model"])
def test_a_lost_experiment_or_prompt_fails_the_iteration_or_is_found(tmp_path: Path, lie: str) -> None:
    with serving(Faults(**{lie: 3})) as server:
        server.workspaces = {"default"}
        _, result = job(server, tmp_path / "job", replace(JOB, warmup=0))
    assert audited(result)["missing"] > 0


@pytest.mark.parametrize(
    ("lie", "fault"),
    [
        ("forget_param", "missing"),
        ("change_metric", "wrong"),
        ("forget_artifact", "missing"),
        ("forget_run", "missing"),
    ],
)
def test_what_is_lost_or_changed_in_a_workspace_is_found(tmp_path: Path, lie: str, fault: str) -> None:
    with serving(Faults(**{lie: 2})) as server:
        server.workspaces = {"default"}
        code, result = job(server, tmp_path / "job", replace(JOB, warmup=0))
    struck = server.lied(lie)
    assert code == 3
    assert audited(result)[fault] == len(struck) > 0


def test_workspaces_that_are_missing_are_created_and_remembered(server: FakeMlflow, tmp_path: Path) -> None:
    _, result = job(server, tmp_path / "job")
    assert result.facts["workspaces_created"] == ["tenant-1", "tenant-3"]
    assert server.workspaces == {"default", "others", "tenant-1", "tenant-2", "tenant-3"}


def test_on_a_server_without_workspaces_all_is_in_one_place_and_a_note_says_so(tmp_path: Path) -> None:
    heard = Heard()
    with serving() as server:
        code = play(tmp_path / "job", JOB, server.environment, heard)
        result = Result(tmp_path / "job" / "result.h5")
        assert code == 0
        assert audited(result)["intact"] == audited(result)["checked"] == 12
        assert {seen.workspace for seen in server.requests} == {None}
        assert "The server has no workspaces: all tenants were in one place." in result.notes
        assert any("no workspaces" in sentence for sentence in heard.sentences)
        assert cleaned(server, result).experiments == 5


@pytest.mark.parametrize("client", ["wire", "stock"])
def test_nobody_asks_for_workspaces_that_the_server_is_known_not_to_have(tmp_path: Path, client: str) -> None:
    with serving() as server:
        # Were it asked for them, MLflow's client would try eight times.
        plan = replace(JOB, client=client, retries="none", warmup=0, iterations=1, artifacts=0)
        assert play(tmp_path / "job", plan, server.environment) == 0
        assert sum(seen.path.endswith("/workspaces") for seen in server.requests) == 1  # before the load
    with Result(tmp_path / "job" / "result.h5") as result:
        rows = result.rows(("op", "outcome"))
    assert set(rows["outcome"]) == {Outcome.ok}
    assert Operation.search_prompts in rows["op"]


def test_who_browses_asks_for_workspaces_where_there_are_some() -> None:
    asked = {there: counted(played(SEED, 9, place=Place("1", workspaces=there))) for there in (True, False)}
    assert asked[True] == BROWSING
    assert asked[False] == {name: times for name, times in BROWSING.items() if name != "list_workspaces"}


def test_without_prompts_each_step_tells_so_and_the_audit_knows(server: FakeMlflow, tmp_path: Path) -> None:
    server.has_registry = False
    for warmup in (0, 5):
        code, result = job(server, tmp_path / f"job-{warmup}", replace(JOB, warmup=warmup))
        assert code == 0
        assert audited(result)["intact"] == audited(result)["checked"] == 12
        rows = result.rows(("op", "outcome"))
        lacking = Counter(rows["op"][rows["outcome"] != Outcome.ok].tolist())
        assert set(lacking) <= OPTIONAL
        # Whatever a warm-up has found out: each step shows it again.
        assert lacking


# Cleaning up.


def test_cleaning_removes_what_the_job_has_made_and_the_workspaces_that_it_has_made(
    server: FakeMlflow, tmp_path: Path
) -> None:
    server.experiments["77"] = Experiment("77", "somebody's", "tenant-2")
    server.models["tenant-2", "theirs"] = Model("theirs", "tenant-2", {})
    _, result = job(server, tmp_path / "job")
    told = cleaned(server, result)
    assert (told.runs, told.artifacts, told.experiments, told.models, told.workspaces) == (15, 15, 5, 15, 2)
    assert left(server) == ({"Default", "somebody's"}, {"theirs"})
    assert server.workspaces == {"default", "others", "tenant-2"}
    assert server.artifacts == {}


@pytest.mark.parametrize("what", ["experiment", "deleted experiment", "prompt", "model"])
def test_a_workspace_with_something_of_somebody_else_stays(server: FakeMlflow, tmp_path: Path, what: str) -> None:
    _, result = job(server, tmp_path / "job")
    if "experiment" in what:
        stage = "deleted" if what.startswith("deleted") else "active"
        server.experiments["77"] = Experiment("77", "somebody's", "tenant-1", stage)
    else:
        tags = {"mlflow.prompt.is_prompt": "true"} if what == "prompt" else {}
        server.models["tenant-1", "theirs"] = Model("theirs", "tenant-1", tags)
    assert cleaned(server, result).workspaces == 1
    assert server.workspaces == {"default", "others", "tenant-1", "tenant-2"}


def test_a_workspace_that_another_job_uses_stays(server: FakeMlflow, tmp_path: Path) -> None:
    _, first = job(server, tmp_path / "first")
    _, second = job(server, tmp_path / "second")
    assert cleaned(server, first).workspaces == 0
    assert cleaned(server, second).workspaces == 0
    assert cleaned(server, first).workspaces == 2


def test_cleaning_reads_every_page(server: FakeMlflow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, result = job(server, tmp_path / "job")
    monkeypatch.setattr("hpcstress.workspaces._MODELS_PER_PAGE", 2)
    monkeypatch.setattr("hpcstress.clients.api.PAGE", 1)
    monkeypatch.setattr("hpcstress.workspaces._EXPERIMENTS_PER_SEARCH", 1)
    assert (cleaned(server, result).models, left(server)) == (15, ({"Default"}, set()))


def test_what_a_server_lists_of_others_is_left_alone(server: FakeMlflow, tmp_path: Path) -> None:
    prompt = {"mlflow.prompt.is_prompt": "true"}
    server.models["tenant-2", "theirs"] = Model("theirs", "tenant-2", prompt)
    server.experiments["77"] = Experiment("77", "somebody's", "tenant-2")
    _, result = job(server, tmp_path / "job")
    server.faults.list_all = 1
    cleaned(server, result)
    assert left(server) == ({"Default", "somebody's"}, {"theirs"})


def test_cleaning_twice_finds_nothing_more(server: FakeMlflow, tmp_path: Path) -> None:
    _, result = job(server, tmp_path / "job")
    cleaned(server, result)
    assert cleaned(server, result) == Cleaned()


# What is there before.

FILLED = replace(JOB, prefill_experiments=2, warmup=0)


def test_every_tenant_has_its_experiments_before_the_load_and_the_next_job_finds_them(
    server: FakeMlflow, tmp_path: Path
) -> None:
    _, first = job(server, tmp_path / "first", FILLED)
    before = Counter(one.workspace for one in server.experiments.values() if "-of-tenants" in one.name)
    assert before == {"tenant-1": 2, "tenant-2": 2, "tenant-3": 2}
    assert sum("-of-tenants" in name for name in left(server)[1]) == 6 * 3
    assert first.facts["prefill"]["made"] == 6
    cleaned(server, first, plan=FILLED)
    _, second = job(server, tmp_path / "second", FILLED)
    assert second.facts["prefill"]["made"] == 0
    assert audited(second)["intact"] == 12


@pytest.mark.parametrize("lost", ["prompt", "run", "experiment"])
def test_a_prefill_of_which_something_is_missing_is_completed(server: FakeMlflow, tmp_path: Path, lost: str) -> None:
    job(server, tmp_path / "first", FILLED)
    marker = next(one for one in server.experiments.values() if one.name.startswith("hpcstress-prefill-tenants"))
    del marker.tags["hpcstress.prefill-is-whole"]
    if lost == "prompt":
        del server.models[next(key for key in server.models if "-of-tenants" in key[1])]
    elif lost == "run":
        next(run for run in server.runs.values() if run.name == "prefill-1.2").stage = "deleted"
    else:
        next(one for one in server.experiments.values() if "-prefill-4-of-" in one.name).stage = "deleted"
    if lost == "experiment":
        next(one for one in server.experiments.values() if "-prefill-4-of-" in one.name).name = "away"
    _, second = job(server, tmp_path / "second", FILLED)
    assert second.facts["prefill"]["made"] == 1
    assert sum("-of-tenants" in name for name in left(server)[1]) == 6 * 3
    assert "hpcstress.prefill-is-whole" in marker.tags


def test_a_server_without_prompts_is_filled_with_all_else(server: FakeMlflow, tmp_path: Path) -> None:
    server.has_registry = False
    code, _ = job(server, tmp_path / "first", FILLED)
    assert code == 0
    _, second = job(server, tmp_path / "second", FILLED)
    assert second.facts["prefill"]["made"] == 0


def test_cleaning_with_prefill_leaves_nothing(server: FakeMlflow, tmp_path: Path) -> None:
    _, result = job(server, tmp_path / "job", FILLED)
    assert cleaned(server, result, plan=FILLED).workspaces == 0
    told = cleaned(server, result, prefill=True, plan=FILLED)
    assert (told.prefill, told.workspaces) == (18, 2)
    assert left(server) == ({"Default"}, set())
    assert server.artifacts == {}


@pytest.mark.slow
def test_a_real_server_has_tenants_keeps_what_they_make_and_gives_it_up_again(tmp_path: Path) -> None:
    plan = replace(FILLED, users=(5,), tenants=2, prefill_experiments=1, timeout=60)
    with servers.start("mlflow-sqlite,workers=2,workspaces", say=str) as server:
        code = play(tmp_path / "job", plan, server.environment)
        result = Result(tmp_path / "job" / "result.h5")
        assert code == 0
        assert audited(result) == {"checked": 6, "intact": 6, "missing": 0, "wrong": 0, "unread": 0, "ghosts": 0}
        rows = result.rows(("op", "outcome"))
        assert set(rows["outcome"]) == {Outcome.ok}
        assert {Operation[name] for name in (*TRAINING, *BROWSING)} <= set(rows["op"].tolist())

        async def scene() -> Cleaned:
            async with Api(await way_to("", server.environment), 60.0) as api:
                return await clean(api, result.facts, str, prefill=True, places=places(plan, there=True))

        told = asyncio.run(scene())
        assert (told.runs, told.artifacts, told.models, told.workspaces) == (6, 6, 6, 2)
