"""What one run does, one module per family, written once for every client.

A workload is a module with a coroutine function `play(run, client)`; the first line of its docstring is what
`hpcstress workloads` says of it. To add one, write the module and name it in `MODULES`.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from importlib import import_module
from types import ModuleType
from typing import Any, NamedTuple

from hpcstress.clients import Client
from hpcstress.content import Run
from hpcstress.errors import UsageRefusal
from hpcstress.plan import Plan
from hpcstress.quantity import nearest

Play = Callable[[Run, Client], Coroutine[Any, Any, None]]


class Prefill(NamedTuple):
    """Say what has to be on the server before the load: so many units, made by `play` one by one, in any order.

    `holds` names what the units together are, with amounts and seed: jobs that want the same find it there.
    """

    units: int
    holds: str
    play: Play


MODULES = {
    "parallel-runs": "parallel_runs",
    "log-batch": "log_batch",
    "create-run": "create_run",
    "parameters": "parameters",
    "artifacts": "artifacts",
    "search-runs": "search_runs",
    "search-experiments": "search_experiments",
    "logging": "logging_steps",
    "retrieval": "retrieval",
    "shared-run": "shared_run",
    "history": "history",
    "models": "models",
    "traces": "traces",
    "tenants": "tenants",
    "training": "training",
}


def load(name: str) -> Play:
    """Return the coroutine function that plays one run of a workload; refuse an unknown name, offering near ones."""
    play: Play = _module(name).play
    return play


def shares_a_run(name: str) -> bool:
    """Tell whether all users of a workload write to one run, which has to be there before."""
    return getattr(_module(name), "SHARED", False)


def leaves_runs_open(name: str) -> bool:
    """Tell whether a workload creates runs and finishes none of them."""
    return getattr(_module(name), "LEFT_OPEN", False)


def check(plan: Plan) -> None:
    """Refuse a plan that makes no sense for its workload, on any of its rungs."""
    checked: Callable[[Plan], None] | None = getattr(_module(plan.workload), "check", None)
    if checked is not None:
        for variation in dict.fromkeys(rung.variation for rung in plan.rungs):
            checked(plan.varied(variation))


def workspaces(plan: Plan) -> tuple[str, ...]:
    """Return the workspaces that a workload creates its experiments in, of a server that has some; none for most."""
    named: Callable[[Plan], tuple[str, ...]] | None = getattr(_module(plan.workload), "workspaces", None)
    return named(plan) if named is not None else ()


def kinds(plan: Plan, size: int) -> dict[int, int]:
    """Return a run of each kind that a workload plays in a step of a size, and how many there are of it."""
    told: Callable[[Plan, int], dict[int, int]] | None = getattr(_module(plan.workload), "kinds", None)
    return told(plan, size) if told is not None else {0: size}


def prefilled(plan: Plan) -> Prefill | None:
    """Return what a workload wants to find on the server, None if it does without."""
    wanted: Callable[[Plan], Prefill] | None = getattr(_module(plan.workload), "prefilled", None)
    prefill = wanted(plan) if wanted is not None else None
    return prefill if prefill is not None and prefill.units else None


def methods(plan: Plan, known: tuple[str, ...]) -> tuple[str, ...]:
    """Return which of a workload's methods are taken, in turn; refuse one that is not the workload's."""
    if plan.method not in ("all", *known):
        raise UsageRefusal(f"--method: {plan.workload} knows {', '.join(known)} and all, not {plan.method}.")
    return known if plan.method == "all" else (plan.method,)


def _module(name: str) -> ModuleType:
    if name not in MODULES:
        raise UsageRefusal(f"There is no workload {name!r}. {nearest(name, [*MODULES])}")
    return import_module(f"hpcstress.workloads.{MODULES[name]}")


def describe() -> dict[str, str]:
    """Return the first line of every workload's docstring by its name."""
    return {
        name: (import_module(f"hpcstress.workloads.{module}").__doc__ or "").split("\n")[0]
        for name, module in MODULES.items()
    }
