"""What is submitted: plans on nodes, as jobs that follow each other, all refused here that can be refused before.

A job is `python -m hpcstress` with the plan in its words, so that it needs no file but the ones it writes.
"""

from __future__ import annotations

import asyncio
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from hpcstress import executors
from hpcstress.errors import Refusal, UsageRefusal
from hpcstress.executors import Order
from hpcstress.folder import RunFolder, default_path
from hpcstress.launcher import promised_size
from hpcstress.plan import USUAL_SERVER, Plan, named
from hpcstress.preflight import check_ranks, check_sign_in
from hpcstress.quantity import (
    count,
    nearest,
    quoted,
    read_ladder,
    read_optional,
    read_positive,
    read_positive_seconds,
    read_text,
)
from hpcstress.servers.spec import read
from hpcstress.site import Site
from hpcstress.site import named as site_named
from hpcstress.submission import Job, Submission
from hpcstress.target import is_named
from hpcstress.workloads import MODULES, check

T = TypeVar("T")
V = TypeVar("V")

CLUSTERS = {"slurm": executors.slurm, "local": executors.local, "debug": executors.debug}
SCALINGS = ("strong", "weak")

# What of the environment sbatch takes before the words of its script, though submit promises something else.
_BROKEN_BY = (
    *("SBATCH_ARRAY_INX", "SBATCH_CLUSTERS", "SBATCH_ERROR", "SBATCH_GET_USER_ENV", "SBATCH_OUTPUT", "SBATCH_REQUEUE"),
    *("SBATCH_SIGNAL", "SBATCH_TIMELIMIT", "SBATCH_WAIT"),
)
_SLURM = ("sbatch", "srun", "squeue", "scancel")


def submit(
    plan: str | Plan | Sequence[str | Plan],
    *,
    nodes: int | str | Iterable[int] = 1,
    ranks_per_node: int | str = 1,
    site: str | Site = "generic",
    cluster: str = "slurm",
    scaling: str = "strong",
    time_limit: str | float = "30m",
    account: str = "",
    partition: str = "",
    output: Path | str | None = None,
    names: Sequence[str] = (),
    **options: Any,
) -> Submission:
    """Submit plans, each on every number of nodes; options of a plan change all of them. No job is waited for.

    Jobs follow each other, because they would falsify each other's figures: the plans of one number of nodes are an
    array of Slurm's. With weak scaling the runs grow as the nodes do. Each job may take as long as the time limit
    says, in seconds or as `2h`. Raises a Refusal with a sentence.
    """
    for value, known, option in ((cluster, [*CLUSTERS], "--cluster"), (scaling, SCALINGS, "--scaling")):
        if value not in known:
            raise UsageRefusal(f"{option}: {quoted(value)} is not known here. {nearest(str(value), known)}")
    if (promised_size(os.environ) or 1) > 1:
        raise UsageRefusal("hpcstress submit starts the ranks itself: call it once, without mpiexec or srun.")
    profile = _profile(site, cluster, account, partition)
    minutes = math.ceil(_checked("--time", read_positive_seconds, time_limit) / 60)
    plans = _named(_entries(plan), names, options)
    sizes = _sizes(nodes)
    folder = _folder(output, next(iter(plans)), cluster)
    ranks = _checked("--ranks-per-node", read_positive, ranks_per_node)
    if profile.cores_per_node and ranks > profile.cores_per_node:
        raise UsageRefusal(
            f"--ranks-per-node: a node has {profile.cores_per_node} cores, {ranks} ranks would share them: "
            "take more nodes."
        )
    jobs = _jobs(folder, plans, sizes, ranks, scaling)
    {"slurm": _check_slurm, "local": _check_local, "debug": _check_debug}[cluster](jobs)
    made = _create(folder)
    try:
        return CLUSTERS[cluster](Order(folder, _records(folder), jobs, profile, minutes))
    except Refusal:
        # Nothing of it runs.
        shutil.rmtree(_records(folder), ignore_errors=True)
        for path in made:
            # In a folder above, somebody else may have a job by now.
            with suppress(OSError):
                path.rmdir()
        raise


def _folder(output: Path | str | None, workload: str, cluster: str) -> Path:
    """Return where all is written, as a path that Slurm and its scripts take as it is."""
    if output is None:
        folder = default_path(workload, time.time())
    else:
        folder = Path(_checked("--output", read_text, str(output) if isinstance(output, Path) else output))
    try:
        folder = folder.expanduser().absolute()
    except RuntimeError:
        raise UsageRefusal(f"--output: nobody knows the home of {folder.parts[0]} here: give the whole path.") from None
    _checked("--output", read_text, str(folder))
    if cluster == "slurm" and (found := re.search(r"[%\\]", str(folder))):
        raise UsageRefusal(
            f"--output: Slurm puts words of its own for a {found[0]} in the name of a log: "
            f"choose a path without one, not {folder}."
        )
    return folder


def _records(folder: Path) -> Path:
    return folder / "submission"


def _listed(value: Any) -> Any:
    """Return what somebody gave as a list, where it holds several values; a text is one."""
    return [*value] if isinstance(value, Iterable) and not isinstance(value, (str, bytes)) else value


def _sizes(nodes: int | str | Iterable[int]) -> list[int]:
    told = _listed(nodes)
    try:
        return sorted({*read_ladder(told)})
    except UsageRefusal:
        raise UsageRefusal(f"--nodes: {quoted(told)} is no list of numbers such as 1,2,4.") from None


def _entries(plan: str | Plan | Sequence[str | Plan]) -> list[str | Plan]:
    told = _listed(plan)
    entries = told if isinstance(told, list) else [told]
    for entry in entries:
        if not isinstance(entry, (str, Plan)):
            raise UsageRefusal(
                f"{quoted(entry)} is no plan: give a name such as parallel-runs, the path of a .toml file as a text, "
                "or a hpcstress.plan.Plan."
            )
    return entries


def _profile(site: str | Site, cluster: str, account: str, partition: str) -> Site:
    if cluster == "slurm":
        if not isinstance(site, (str, Site)):
            raise UsageRefusal(f"--site: {quoted(site)} is no profile: give its name, or a hpcstress.site.Site.")
        profile = site_named(site) if isinstance(site, str) else site
        for option, value in (("--account", account), ("--partition", partition)):
            _checked(option, read_optional, value)
            name = option.replace("--", "SBATCH_").upper()
            if value and os.environ.get(name, value) != value:
                raise UsageRefusal(f"sbatch would take {name} before {option}: unset it, or leave {option} out.")
        return replace(profile, account=account or profile.account, partition=partition or profile.partition)
    if site != "generic" or account or partition:
        raise UsageRefusal(f"--site, --account and --partition are Slurm's: leave them out with --cluster {cluster}.")
    return Site()


def _checked(place: str, check: Callable[[V], T], value: V) -> T:
    """Check or read a value; a refusal names its place, such as an option."""
    try:
        return check(value)
    except UsageRefusal as refusal:
        raise UsageRefusal(f"{place}: {refusal}") from None


def _named(plans: Sequence[str | Plan], names: Sequence[str], options: Mapping[str, Any]) -> dict[str, Plan]:
    """Return the plans under names that can be those of folders, no two alike."""
    if not plans:
        raise UsageRefusal("There is no plan to submit: name one, such as parallel-runs.")
    if names:
        _check_names(_listed(names), len(plans))
    names = names or [entry.workload if isinstance(entry, Plan) else Path(entry).stem for entry in plans]
    names = [re.sub(r"[^\w.-]+", "-", name) for name in names]
    if len({*names}) < len(names):
        names = [f"{place}-{name}" for place, name in enumerate(names, 1)]
    return dict(zip(names, (_plan(entry, options) for entry in plans), strict=True))


def _check_names(names: object, plans: int) -> None:
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UsageRefusal(f"names: {quoted(names)} is no list of texts: give a name for each plan.")
    if len(names) != plans:
        raise UsageRefusal(f"names: {count(len(names), 'name')} for {count(plans, 'plan')}: give one for each.")


def _plan(entry: str | Plan, options: Mapping[str, Any]) -> Plan:
    plan = entry if isinstance(entry, Plan) else named(entry, [*MODULES], [])
    plan = plan.with_options(options)
    check(plan)
    return plan


def _jobs(
    folder: Path, plans: Mapping[str, Plan], sizes: Sequence[int], ranks_per_node: int, scaling: str
) -> list[Job]:
    alone = len(plans) * len(sizes) == 1
    jobs = []
    for nodes in sizes:
        for name, plan in plans.items():
            ranks = nodes * ranks_per_node
            label = f"{name}-{nodes}x{ranks_per_node}"
            grown = _grown(plan, nodes, sizes[0]) if scaling == "weak" else plan
            _checked(label, partial(check_ranks, grown), ranks)
            place = folder if alone else folder / label
            jobs.append(Job(label, grown, nodes, ranks, RunFolder(place), _records(folder) / f"{label}.code"))
    return jobs


def _grown(plan: Plan, nodes: int, least: int) -> Plan:
    """Return a plan with as many times the runs, users and arrivals as there are times the nodes."""
    if any(variation.startswith("rate=") for variation in plan.sweep.split()):
        raise UsageRefusal("--scaling weak: the rates of a --sweep would not grow with the nodes: give one --rate.")

    def grow(sizes: Sequence[int]) -> list[int]:
        return [-(-size * nodes // least) for size in sizes]

    return plan.with_options({"runs": grow(plan.runs), "users": grow(plan.users), "rate": plan.rate * nodes / least})


def _check_slurm(jobs: Sequence[Job]) -> None:
    missing = [program for program in _SLURM if shutil.which(program) is None]
    if missing:
        raise Refusal(
            f"There is no Slurm here ({', '.join(missing)} not on the PATH): call this on a login node, "
            "or use --cluster local."
        )
    try:
        import submitit  # noqa: F401
    except ImportError:
        raise Refusal("submitit is missing, which submits to Slurm: pip install submitit") from None
    if os.environ.get("SBATCH_EXPORT", "ALL").partition(",")[0] != "ALL":
        raise UsageRefusal("SBATCH_EXPORT keeps the environment, in which the sign-in travels, from the job: unset it.")
    if found := [name for name in _BROKEN_BY if name in os.environ]:
        raise UsageRefusal(f"sbatch would take {found[0]} before what hpcstress tells it: unset it.")
    for job in jobs:
        starts = job.plan.client != "null" and (job.plan.server or not is_named(job.plan.uri, os.environ))
        if starts and job.nodes > 1:
            check_sign_in(read(job.plan.server or USUAL_SERVER))


def _check_local(jobs: Sequence[Job]) -> None:
    launcher = executors.mpiexec()
    if max(job.ranks for job in jobs) > 1 and not launcher.exists():
        raise Refusal(f"There is no {launcher}: install an MPI beside this Python, `pip install 'hpcstress[mpich]'`.")


def _check_debug(jobs: Sequence[Job]) -> None:
    if len(jobs) > 1 or jobs[0].ranks > 1:
        raise UsageRefusal(
            "--cluster debug plays one plan as the only rank of this process: leave --nodes and --ranks-per-node out."
        )
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise UsageRefusal(
        "--cluster debug plays in this process, where an event loop runs already, as in every notebook: "
        "take --cluster local, or a process of its own."
    )


def _create(folder: Path) -> list[Path]:
    """Make the folder of all records, and return what was made for it, the innermost first."""
    try:
        made = [path for path in (_records(folder), folder, *folder.parents) if not path.exists()]
        if folder.exists() and any(folder.iterdir()):
            raise Refusal(f"{folder} is not empty, and a job has a folder of its own: choose another --output.")
        _records(folder).mkdir(parents=True)
    except OSError as error:
        raise Refusal(
            f"The output folder {folder} cannot be written ({error.strerror}): choose another --output."
        ) from None
    return made
