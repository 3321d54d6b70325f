"""What one run does, one module per family, written once for every client.

A workload is a module with a coroutine function `play(run, client)`; the first line of its docstring is what
`hpcstress workloads` says of it. To add one, write the module and name it in `MODULES`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib import import_module

from hpcstress.clients import Client
from hpcstress.content import Run
from hpcstress.errors import UsageRefusal
from hpcstress.quantity import nearest

Play = Callable[[Run, Client], Awaitable[None]]

MODULES = {"parallel-runs": "parallel_runs"}


def load(name: str) -> Play:
    """Return the coroutine function that plays one run of a workload; refuse an unknown name, offering near ones."""
    if name not in MODULES:
        raise UsageRefusal(f"There is no workload {name!r}. {nearest(name, [*MODULES])}")
    play: Play = import_module(f"hpcstress.workloads.{MODULES[name]}").play
    return play


def describe() -> dict[str, str]:
    """Return the first line of every workload's docstring by its name."""
    return {
        name: (import_module(f"hpcstress.workloads.{module}").__doc__ or "").split("\n")[0]
        for name, module in MODULES.items()
    }
