"""Play a run on paper, and compare the paper with what a server says of the run.

What a run has left on the server follows from its workload: playing it against `Replay`, which stops where the
acknowledgements stopped, gives the state that has to be there. So every workload has its audit, and nobody keeps books.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple

import numpy as np

from hpcstress.clients import Client
from hpcstress.clients.answer import Answer, Failed
from hpcstress.content import Artifact, Run
from hpcstress.quantity import count
from hpcstress.record import Operation, Outcome
from hpcstress.workloads import Play


@dataclass
class State:
    """Hold what a run has on the server, or ought to have."""

    created: bool = False
    finished: bool = False
    params: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    artifacts: dict[str, Artifact] = field(default_factory=dict)


class Replay(Client):
    """Play a run on paper: `certain` is what acknowledged requests left, `possible` what the next one may have left."""

    __slots__ = ("_left", "certain", "possible")

    def __init__(self, acknowledged: int) -> None:
        super().__init__()
        self._left = acknowledged
        self.certain = State()
        self.possible = State()

    async def _request(self, operation: Operation, payload: Any) -> None:
        state = self.certain if self._left > 0 else self.possible
        match operation:
            case Operation.create_run:
                state.created = True
            case Operation.log_params:
                state.params.update(payload)
            case Operation.log_metrics:
                state.metrics.update((metric.key, metric.value) for metric in payload)
            case Operation.log_artifact:
                state.artifacts[payload.path] = payload
            case Operation.finish_run:
                state.finished = True
        if self._left == 0:
            raise Failed(Answer(Outcome.interrupted, 0, 0, 0, 0, b""))
        self._left -= 1

    def close(self) -> None:
        """Hold nothing, let go of nothing."""


async def replay(play: Play, run: Run, acknowledged: int) -> Replay:
    """Return what a run has certainly and what it has possibly left, when so many of its requests were acknowledged."""
    paper = Replay(acknowledged)
    try:
        await play(run, paper)
    except Failed:
        return paper
    return paper


def acknowledged_requests(rows: np.ndarray[Any, Any], size: int) -> np.ndarray[Any, np.dtype[np.uint32]]:
    """Count the acknowledged requests of each run; its first failure ends a run, so they are its first requests."""
    good = (rows["outcome"] == Outcome.ok) & (rows["op"] != Operation.connect)
    return np.bincount(rows["run"][good], minlength=size).astype(np.uint32)


class Fault(Enum):
    """Say what kind of fault a finding is. A server that does not answer has not lost anything yet."""

    missing = 1
    wrong = 2
    unread = 3


class Finding(NamedTuple):
    """Hold what is not as it should be with one run."""

    fault: Fault
    sentence: str


def compare(run: Run, paper: Replay, found: State) -> list[Finding]:
    """Compare what the server says of a run with the acknowledgements; artifacts have to be fetched to be compared."""
    findings = []
    certain, possible, name = paper.certain, paper.possible, run.name
    if certain.finished and not found.finished:
        findings.append(Finding(Fault.missing, f"{name}: FINISHED was acknowledged, the server says it is not."))
    if found.finished and not (certain.finished or possible.finished):
        findings.append(Finding(Fault.wrong, f"{name}: the server says FINISHED, which nobody has sent."))
    for what in ("param", "metric"):
        sure, maybe, there = (getattr(state, f"{what}s") for state in (certain, possible, found))
        absent = [key for key in sure if key not in there]
        if absent:
            are = "is" if len(absent) == 1 else "are"
            told = f"{count(len(absent), f'acknowledged {what}')} {are} missing{_example(absent)}"
            findings.append(Finding(Fault.missing, f"{name}: {told}."))
        allowed = {**maybe, **sure}
        other = [key for key, value in there.items() if key not in allowed or allowed[key] != value]
        if other:
            hold = "holds" if len(other) == 1 else "hold"
            told = f"{count(len(other), what)} {hold} what nobody has sent{_example(other)}"
            findings.append(Finding(Fault.wrong, f"{name}: {told}."))
    return findings


def _example(keys: list[str]) -> str:
    return f": {keys[0]!r}" if len(keys) == 1 else f", first {keys[0]!r}"


def found_state(answer: Mapping[str, Any]) -> State:
    """Read a run as the server describes it; raise ValueError where the description makes no sense."""
    try:
        info, data = answer["info"], answer.get("data") or {}
        return State(
            created=True,
            finished=info["status"] == "FINISHED",
            params={str(param["key"]): str(param.get("value", "")) for param in data.get("params") or ()},
            metrics={str(metric["key"]): float(metric["value"]) for metric in data.get("metrics") or ()},
        )
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise ValueError(f"no description of a run: {error!r}") from None
