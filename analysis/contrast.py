"""How the plans, hosts, versions and servers of several results differ, and what that forbids to compare."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from analysis.frame import texts
from analysis.rivals import Rival, Round
from analysis.units import UNKNOWN
from hpcstress.plan import flag

# What every job has for itself, and what a server's own facts say better.
_OWN = frozenset({"session", "began", "experiment_id", "experiment_created", "command", "slurm", "uri", "prefill"})
_OWN_OPTIONS = frozenset({"server", "uri"})

# The operations whose requests an option makes larger or smaller, or whose answers.
_SIZES: Mapping[str, tuple[str, ...]] = {
    "params": ("log_params", "log_param", "log_batch", "get_run", "search_runs"),
    "metrics": ("log_metrics", "log_metric", "log_batch", "get_run", "search_runs"),
    "points": ("log_metrics", "log_metric", "log_batch", "get_metric_history"),
    "tags": ("log_batch", "set_tags"),
    "spans": ("log_spans", "get_trace", "search_traces"),
    "artifact_size": ("log_artifact", "download_artifact", "log_model_artifact"),
    "artifact_folder": ("log_artifact", "download_artifact", "log_model_artifact"),
    "max_results": ("search_runs", "search_experiments", "search_models", "search_traces", "search_prompts"),
    "prefill_runs": ("search_runs",),
    "prefill_experiments": ("search_experiments",),
    "split": ("log_params", "log_metrics", "log_batch"),
}
# With these a whole run is another one, though each of its requests is as large as before.
_WHOLE = (
    *("workload", "artifacts", "method", "iterations", "think_time", "rate", "arrivals", "uploads", "retries"),
    *("tenants", *_SIZES),
)


@dataclass(frozen=True)
class Difference:
    """Hold one thing that is not the same for all servers, and what it is for each, in their order."""

    what: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Contrast:
    """Hold how servers differ in their plans and in all else, and what is not compared because of that."""

    plans: tuple[Difference, ...]
    facts: tuple[Difference, ...]
    forbidden: Mapping[str, str]
    """What is not compared, and because of which option: operations by name, `run` for durations and throughput."""


def contrast(rivals: Sequence[Rival]) -> Contrast:
    """Return how the plans and facts of servers differ; rounds of one server that differ are told, too."""
    swept = {name for rival in rivals for one in rival.rounds for name in _swept(one)}
    plans = _differences(rivals, lambda one: dict(texts(one.plan)), _OWN_OPTIONS)
    changed = {difference.what for difference in plans} - swept
    forbidden: dict[str, str] = {}
    for name in changed:
        for operation in _SIZES.get(name, ()):
            forbidden.setdefault(operation, flag(name))
        if name in _WHOLE:
            forbidden.setdefault("run", flag(name))
    return Contrast(
        plans=tuple(Difference(flag(difference.what), difference.values) for difference in plans),
        facts=tuple(_differences(rivals, lambda one: dict(texts(one.facts)), _OWN)),
        forbidden=forbidden,
    )


def _differences(
    rivals: Sequence[Rival], told: Callable[[Round], Mapping[str, str]], own: frozenset[str]
) -> list[Difference]:
    all_told = [[told(one) for one in rival.rounds] for rival in rivals]
    names = dict.fromkeys(name for rounds in all_told for one in rounds for name in one)
    found = []
    for name in names:
        if name.partition(" ")[0] in own:
            continue
        values = [[*dict.fromkeys(one.get(name, UNKNOWN) for one in rounds)] for rounds in all_told]
        if len({value for of in values for value in of}) > 1:
            found.append(Difference(name, tuple(" / ".join(of) for of in values)))
    return found


def _swept(one: Round) -> list[str]:
    return [part.partition("=")[0].replace("-", "_") for part in str(one.plan.get("sweep", "")).split()]
