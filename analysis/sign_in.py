"""What signing in costs a server that works out the hash of the password for every request."""

from __future__ import annotations

import numpy as np

from analysis.frame import Columns, Frame
from analysis.statistics import StepStatistics
from analysis.units import seconds
from hpcstress.record import Operation, Outcome

_SETTING = "auth_cache_ttl_seconds"
# A hash that is worth anything takes this long. Shorter steps have too few samples of CPU.
_HASH = 0.05
_SHORTEST = 3.0


def cost_of_sign_in(frame: Frame, steps: tuple[StepStatistics, ...]) -> str:
    """Say what each request cost where MLflow's verdicts on passwords are not cached; else nothing.

    That they are not is known of a server that hpcstress has started; of somebody's server it would be a guess. It is
    told if the numbers show it: the CPU time of a request, and the quickest good answer, which waited least for others.
    """
    settings = (frame.facts.get("server") or {}).get("settings") or {}
    if settings.get("sign-in") != "basic-auth" or settings.get(_SETTING) != 0:
        return ""
    of = {int(row["step"]): attempts for row, attempts in frame.by_step()}
    long = [step for step in steps if step.duration >= _SHORTEST and step.requests]
    if not long:
        return ""
    step = max(long, key=lambda step: step.requests)
    cost, quickest = cpu_per_request(frame, step), _quickest(of[step.step])
    if not min(cost, quickest) >= _HASH:
        return ""
    return (
        f"Signing in is dear: at {step.where} each request cost the tracking server {seconds(cost)} of CPU (the "
        f"quickest good answer took {seconds(quickest)}). MLflow works out the hash of the password for every request, "
        f"because {_SETTING} is 0, as it ships: set {_SETTING} = 60 in its basic_auth.ini, from MLflow 3.17 on; a "
        "server started with --server has that with auth=basic."
    )


def cpu_per_request(frame: Frame, step: StepStatistics) -> float:
    """Return the CPU seconds that all tracking servers together used in a step, for each of its requests."""
    spent = 0.0
    for part in np.unique(frame.server["part"]):
        if part.startswith(b"tracking"):
            rows = frame.server[frame.server["part"] == part]
            times, places = np.unique(rows["time"], return_inverse=True)
            used = np.bincount(places, rows["cpu_seconds"])
            begin, end = np.interp([step.began, step.began + step.duration], times, used)
            spent += float(end - begin)
    return spent / step.requests


def _quickest(attempts: Columns) -> float:
    good = (attempts["outcome"] == Outcome.ok) & (attempts["op"] != Operation.connect)
    took = (attempts["end"] - attempts["start"])[good]
    return float(took.min()) / 1e9 if len(took) else float("nan")
