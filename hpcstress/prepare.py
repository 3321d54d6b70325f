"""What rank 0 prepares before load: output folder, server and the way to it, experiment, the facts of the day."""

from __future__ import annotations

import asyncio
import os
import platform
import secrets
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from socket import gethostname
from typing import Any

from hpcstress import servers
from hpcstress.clients.api import Api
from hpcstress.clients.dial import way_to
from hpcstress.estimate import estimate
from hpcstress.folder import RunFolder
from hpcstress.plan import Plan
from hpcstress.preflight import Experiment, check_open_files, find_experiment, sign_in
from hpcstress.progress import Progress
from hpcstress.ranks import World
from hpcstress.stop import Stop
from hpcstress.target import Target

_SLURM_FACTS = ("SLURM_JOB_ID", "SLURM_JOB_NAME", "SLURM_JOB_NUM_NODES", "SLURM_NTASKS", "SLURM_JOB_PARTITION")
_PACKAGES = ("hpcstress", "mpi4py", "numpy", "h5py", "uvloop", "httptools")


@dataclass
class Setup:
    """Hold what rank 0 has prepared for all.

    `environment` is how to reach and sign in at a server that rank 0 has started: it goes from rank to rank and nowhere
    else. For somebody's server every rank looks into its own. The server itself stays with rank 0, its parent.
    """

    session: str
    experiment_id: str
    facts: dict[str, Any]
    environment: dict[str, str] | None = field(default=None, repr=False)
    server: servers.Server | None = field(default=None, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "server": None}


def prepare(
    plan: Plan,
    world: World,
    folder: RunFolder,
    environment: Mapping[str, str],
    progress: Progress,
    resources: ExitStack,
    stop: Stop,
) -> Setup:
    """Prepare a job on rank 0. What it opens is closed with `resources`; a refusal leaves nothing behind."""
    check_open_files(max(plan.warmup, *plan.runs), world.size)
    folder.create(estimate(plan).journal_bytes)
    try:
        setup = _reach(plan, environment, progress, resources, stop)
        stop.check()
        setup.facts |= _facts(world, environment)
        folder.write_plan(plan.to_toml())
        folder.note("job", facts=setup.facts, plan=plan.to_toml())
    except BaseException:
        folder.remove()
        raise
    progress.say(f"Everything goes to {folder.path}")
    return setup


def _reach(plan: Plan, environment: Mapping[str, str], progress: Progress, resources: ExitStack, stop: Stop) -> Setup:
    session = secrets.token_hex(6)
    if plan.client == "null":
        return Setup(session, "", {"session": session, "client": "null"})
    server = started = None
    if not plan.uri and not any(environment.get(name) for name in ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_URL")):
        server = resources.enter_context(servers.start(plan.server, say=progress.say, check=stop.check))
        environment = started = server.environment
    target, version_told, experiment = asyncio.run(_arrive(plan, environment))
    facts = {
        "session": session,
        "client": plan.client,
        "uri": target.uri,
        "server_version": version_told,
        "server": server.facts if server is not None else None,
        "experiment_id": experiment.id,
        "experiment_created": experiment.created,
    }
    return Setup(session, experiment.id, facts, started, server)


async def _arrive(plan: Plan, environment: Mapping[str, str]) -> tuple[Target, str, Experiment]:
    dialer = await way_to(plan.uri, environment)
    async with Api(dialer, min(30.0, plan.timeout)) as api:
        told = await sign_in(api)
        return api.target, told, await find_experiment(api, api.target.experiment_id, plan.experiment)


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
