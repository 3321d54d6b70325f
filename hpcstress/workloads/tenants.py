"""A fifth of the users trains, the others browse, each time in some tenant's workspace (mlflow-scale)."""

from __future__ import annotations

from dataclasses import replace

from hpcstress.clients import Client, Search
from hpcstress.content import Run
from hpcstress.errors import UsageRefusal
from hpcstress.plan import Plan
from hpcstress.record import Operation
from hpcstress.workloads import Prefill

_PROMPTS = 3
_RUNS = 3
_EXPERIMENTS_LISTED, _EXPERIMENTS_OPENED = 25, 5
_RUNS_LISTED, _RUNS_OPENED = 10, 3

_IS_PROMPT = ("mlflow.prompt.is_prompt", "true")
_ONE_IN = 5


def check(plan: Plan) -> None:
    """Refuse a cell of the matrix in which nobody trains."""
    for size in plan.users or plan.runs:
        if not _trainers(size):
            raise UsageRefusal(
                f"tenants: of {size} users one in {_ONE_IN} trains, which is nobody: take {_ONE_IN} users or more."
            )


def workspaces(plan: Plan) -> tuple[str, ...]:
    """Return the workspaces of all tenants that a plan has on any of its rungs."""
    most = max(plan.varied(variation).tenants for variation in {rung.variation for rung in plan.rungs})
    return tuple(_workspace(tenant) for tenant in range(most))


def kinds(plan: Plan, size: int) -> dict[int, int]:
    """Return one of the users who train and one of those who browse, and how many there are of each."""
    del plan
    training = _trainers(size)
    return {0: training, training: size - training} if training else {0: size}


def prefilled(plan: Plan) -> Prefill:
    """Return the experiments that each tenant has before the load, as many as a plan says."""
    tenants = len(workspaces(plan))
    holds = (
        f"tenants-{tenants}-experiments-{plan.prefill_experiments}-metrics-{plan.metrics}-params-{plan.params}-"
        f"artifacts-{plan.artifacts}-of-{plan.artifact_size}-seed-{plan.seed}"
    )
    return Prefill(tenants * plan.prefill_experiments, holds, _fill)


async def play(run: Run, client: Client) -> None:
    """Play one iteration of a user; which tenant's follows from the seed and the run."""
    _enter(client, run.choice("tenant", run.content.plan.tenants))
    # The first users: they go to the ranks in turn, so that each rank has its share.
    if run.number % run.content.size < _trainers(run.content.size):
        await _train(run, client)
    else:
        await _browse(run, client)


def _trainers(users: int) -> int:
    return users // _ONE_IN


async def _fill(run: Run, client: Client) -> None:
    _enter(client, run.number // run.content.plan.prefill_experiments)
    await _train(run, client)


def _enter(client: Client, tenant: int) -> None:
    if client.place.workspaces:
        client.enter_workspace(_workspace(tenant))


def _workspace(tenant: int) -> str:
    return f"tenant-{tenant + 1}"


async def _train(run: Run, client: Client) -> None:
    plan, name = run.content.plan, run.unique_name
    await client.create_experiment(name, run.tags)
    for number in range(_PROMPTS):
        prompt = f"{name}-prompt-{number}"
        text = f"Summarize experiment {name} results in one paragraph."
        told = (_IS_PROMPT, ("mlflow.prompt.text", text), ("mlflow.prompt.type", "text"), run.tags[0])
        await client.ask(Operation.create_prompt, (prompt, (_IS_PROMPT, *run.tags)))
        await client.ask(Operation.create_prompt_version, (prompt, "dummy-source", told))
    for number in range(_RUNS):
        # No batches, and no look at the run between its writes: that is what the seed's users do.
        await client.create_run(*run.part(number))
        for metric in run.series("metric", plan.metrics, 1, number):
            await client.log_metric(metric)
        for param in run.pairs("param", plan.params, number):
            await client.log_param(param)
        for artifact in run.artifacts:
            await client.put_artifact(replace(artifact, index=artifact.index + number * len(run.artifacts)))
        await client.set_terminated()


async def _browse(run: Run, client: Client) -> None:
    if client.place.workspaces:
        # MLflow's own client takes the 503 of a server without any for a passing trouble, and waits four minutes.
        await client.ask(Operation.list_workspaces, None)
    await client.ask(Operation.search_prompts, Search())
    opened = 0
    for experiment_id in (await client.search_experiments(Search(max_results=_EXPERIMENTS_LISTED)))[
        :_EXPERIMENTS_OPENED
    ]:
        await client.enter_experiment(experiment_id)
        await client.get_experiment()
        for run_id in (await client.search_runs(Search(max_results=_RUNS_LISTED)))[:_RUNS_OPENED]:
            await client.get_run(run_id)
            paths = await client.list_artifacts() if run.content.plan.artifacts else ()
            if paths:
                await client.download_artifact(paths[run.choice(f"artifact/{opened}", len(paths))])
            opened += 1
