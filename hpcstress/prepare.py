"""What rank 0 prepares before load: output folder, server and the way to it, experiment, the facts of the day."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import secrets
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from socket import gethostname
from typing import TYPE_CHECKING, Any

from hpcstress import servers, workloads, workspaces
from hpcstress.clients import Place
from hpcstress.clients.answer import Answer, Failed
from hpcstress.clients.api import Api, refusal
from hpcstress.clients.dial import Dialer, way_to
from hpcstress.clients.requests import create_run_body
from hpcstress.content import SESSION_TAG, SHARED_TAG, STEP_TAG
from hpcstress.errors import UsageRefusal
from hpcstress.estimate import estimate
from hpcstress.folder import RunFolder, node_place
from hpcstress.plan import USUAL_SERVER, Plan
from hpcstress.prefill import Ground, find
from hpcstress.preflight import Experiment, check_open_files, check_ranks, check_sign_in, find_experiment, sign_in
from hpcstress.progress import Progress
from hpcstress.prometheus import Prometheus, reach
from hpcstress.quantity import count
from hpcstress.ranks import World
from hpcstress.record import Outcome
from hpcstress.schedule import Step
from hpcstress.servers import node
from hpcstress.stop import Stop
from hpcstress.target import Target, Token, is_named, store_of, without_address
from hpcstress.workloads import prefilled, shares_a_run

if TYPE_CHECKING:
    from hpcstress.servers.deployment import Deployment

_SLURM_FACTS = ("SLURM_JOB_ID", "SLURM_JOB_NAME", "SLURM_JOB_NUM_NODES", "SLURM_NTASKS", "SLURM_JOB_PARTITION")
_PACKAGES = ("hpcstress", "mpi4py", "numpy", "h5py", "uvloop", "httptools")


@dataclass
class Setup:
    """Hold what rank 0 has prepared for all.

    `environment` is how to reach and sign in at a server that rank 0 has started: it goes from rank to rank and nowhere
    else. For somebody's server every rank looks into its own; at Mantik rank 0 signs in for all, and `token` goes the
    same way. The server itself stays with rank 0, its parent; so do the Prometheus that rank 0 asks, and what is
    `missing` of what has to be there before.
    """

    session: str
    place: Place
    facts: dict[str, Any]
    environment: dict[str, str] | None = field(default=None, repr=False)
    server: Deployment | None = field(default=None, repr=False)
    token: Token | None = field(default=None, repr=False)
    missing: list[int] = field(default_factory=list, repr=False)
    notes: list[str] = field(default_factory=list)
    prometheus: Prometheus | None = field(default=None, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "server": None, "prometheus": None, "missing": []}


def prepare(
    plan: Plan,
    world: World,
    hosts: int,
    folder: RunFolder,
    environment: Mapping[str, str],
    progress: Progress,
    resources: ExitStack,
    stop: Stop,
) -> Setup:
    """Prepare a job on rank 0. What it opens is closed with `resources`; a refusal leaves nothing behind.

    A server that it starts listens on this machine alone, or where the ranks are on several hosts, at its address.
    """
    check_ranks(plan, world.size)
    told = estimate(plan)
    watched = reach(plan, environment)
    node_place("", environment)
    # MLflow's client has a file open for what it uploads, too.
    check_open_files(told.connections * (2 if plan.client == "stock" else 1), world.size)
    folder.create(told.journal_bytes)
    try:
        setup = _reach(plan, hosts, environment, progress, resources, stop)
        stop.check()
        setup.facts |= _facts(world, environment)
        if place := node_place(setup.session, environment):
            setup.facts["journals"] = place
        if watched is not None:
            setup.prometheus, setup.facts["prometheus"] = watched, watched.facts
        folder.write_plan(plan.to_toml())
        folder.note("job", facts=setup.facts, plan=plan.to_toml())
    except BaseException:
        folder.remove()
        raise
    if "uri" in setup.facts:
        started = f", which was started as {plan.server or USUAL_SERVER}" if setup.server is not None else ""
        progress.say(f"The load goes to {setup.facts['uri']}{started}")
    progress.say(f"Everything goes to {folder.path}")
    return setup


def _reach(
    plan: Plan, hosts: int, environment: Mapping[str, str], progress: Progress, resources: ExitStack, stop: Stop
) -> Setup:
    session = secrets.token_hex(6)
    if plan.server:
        # Who names a server to start does not mean the one that an address exported for others leads to.
        environment = without_address(environment)
    if plan.client == "null":
        return Setup(session, Place(""), {"session": session, "client": "null"})
    server = started = None
    if address := store_of(plan.uri, environment):
        return _open_store(plan, address, environment, session)
    if not is_named(plan.uri, environment):
        spec = servers.read(plan.server or USUAL_SERVER)
        if workloads.workspaces(plan) and spec.takes("workspaces"):
            spec = replace(spec, workspaces=True)
        host = "127.0.0.1"
        if hosts > 1:
            check_sign_in(spec)
            host = node.address(environment)
        server = resources.enter_context(servers.start(spec, say=progress.say, check=stop.check, host=host))
        environment = started = server.environment
    target, version_told, experiment, spaces, ground = asyncio.run(_arrive(plan, environment))
    facts: dict[str, Any] = {
        "session": session,
        "client": plan.client,
        **_client_facts(plan),
        "uri": target.uri,
        "server_version": version_told,
        "token_service": target.mantik.service.uri if target.mantik is not None else None,
        "server": server.facts if server is not None else None,
        "experiment_id": experiment.id,
        "experiment_created": experiment.created,
    }
    setup = Setup(session, Place(experiment.id), facts, started, server, target.token)
    if spaces is not None:
        facts |= {"workspaces": spaces.there, "workspaces_created": [*spaces.created]}
        setup.place = replace(setup.place, workspaces=spaces.there)
        if not spaces.there:
            setup.notes = ["The server has no workspaces: all tenants were in one place."]
            progress.say("The server has no workspaces: all tenants are in one place.")
    wanted = prefilled(plan)
    if wanted is None or ground is None:
        return setup
    facts["prefill"] = {"experiment_id": ground.experiment_id, "holds": wanted.holds, "made": len(ground.missing)}
    if ground.missing:
        progress.say(
            f"Making {len(ground.missing):,} of {count(wanted.units, 'unit')} of what has to be there before the load "
            f"({wanted.holds}). They stay for other jobs, until `hpcstress clean --prefill`."
        )
    setup.place, setup.missing = replace(setup.place, prefilled=ground.experiment_id), ground.missing
    return setup


def _open_store(plan: Plan, uri: str, environment: Mapping[str, str], session: str) -> Setup:
    """Open a database as MLflow's Python store, which brings its tables up to date: once, before the other ranks do."""
    if plan.client != "stock":
        raise UsageRefusal(f"{uri} is a store without a server, which only --client stock can open.")
    if shares_a_run(plan.workload):
        raise UsageRefusal(f"The users of {plan.workload} share a run, which needs a server: give the address of one.")
    if prefilled(plan) is not None:
        raise UsageRefusal(f"What {plan.workload} reads is made by way of a server: give the address of one.")
    if workloads.workspaces(plan):
        raise UsageRefusal(f"{plan.workload} is about the workspaces of a server: give the address of one.")
    if any("log_spans" in requests for requests in estimate(plan).requests_per_run):
        raise UsageRefusal(
            f"The spans of {plan.workload} go to a server, which a store does not have: give the address of one."
        )
    from hpcstress.clients.store import find_experiment

    experiment_id, created = find_experiment(uri, environment, plan.experiment)
    facts = {
        "session": session,
        "client": plan.client,
        **_client_facts(plan),
        "uri": uri,
        "server_version": "none: MLflow's Python store",
        "server": None,
        "experiment_id": experiment_id,
        "experiment_created": created,
    }
    return Setup(session, Place(experiment_id), facts)


def _client_facts(plan: Plan) -> dict[str, Any]:
    return {"client_version": _version("mlflow"), "retries": plan.patient} if plan.client == "stock" else {}


async def share_a_run(dialer: Dialer, setup: Setup, step: Step, timeout: float) -> tuple[str, str]:
    """Create the run that all users of a step write to; return its id and the address of its artifacts."""
    tags = {SESSION_TAG: setup.session, STEP_TAG: str(step.number), SHARED_TAG: "true"}
    body = create_run_body(
        setup.place.experiment_id, f"hpcstress-{step.number}-shared", list(tags.items()), time.time_ns() // 10**6
    )
    async with Api(dialer, timeout) as api:
        try:
            told = await api.post("runs/create", json.loads(body))
            return str(told["run"]["info"]["run_id"]), str(told["run"]["info"]["artifact_uri"])
        except Failed as failure:
            raise refusal(api.target, failure.answer, "creating the run that all users share") from None
        except (KeyError, TypeError):
            broken = Answer(Outcome.malformed, 200, 0, 0, 0, b"")
            raise refusal(api.target, broken, "creating the run that all users share") from None


async def _arrive(
    plan: Plan, environment: Mapping[str, str]
) -> tuple[Target, str, Experiment, workspaces.Spaces | None, Ground | None]:
    dialer, wanted = await way_to(plan.uri, environment), prefilled(plan)
    async with Api(dialer, min(30.0, plan.timeout)) as api:
        told = await sign_in(api)
        experiment = await find_experiment(api, api.target.experiment_id, plan.experiment)
        names = workloads.workspaces(plan)
        spaces = await workspaces.make(api, names) if names else None
        there = spaces is not None and spaces.there
        ground = None if wanted is None else await find(api, plan, wanted, there=there)
        return api.target, told, experiment, spaces, ground


def _facts(world: World, environment: Mapping[str, str]) -> dict[str, Any]:
    return {
        "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "host": gethostname(),
        "python": platform.python_version(),
        "system": platform.platform(),
        "processors": len(os.sched_getaffinity(0)),
        "mpi": world.library,
        "ranks": world.size,
        "packages": {name: _version(name) for name in _PACKAGES},
        "slurm": {name: environment[name] for name in _SLURM_FACTS if name in environment},
        "command": sys.argv[1:],
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
