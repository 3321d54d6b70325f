"""Play a run on paper, and compare the paper with what a server says of the run.

What a run has left on the server follows from its workload: playing it against `Replay`, which stops where the
acknowledgements stopped, gives the state that has to be there. So every workload has its audit, and nobody keeps books.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple

import numpy as np

from hpcstress.clients import MOST_REQUESTS, Client, Lacking, Place
from hpcstress.clients.answer import Answer, Failed
from hpcstress.clients.requests import imagined, kept_at
from hpcstress.content import Artifact, Batch, Run
from hpcstress.quantity import count
from hpcstress.record import OPTIONAL, READS, Operation, Outcome
from hpcstress.training import Training
from hpcstress.workloads import Play

Counts = np.ndarray[Any, np.dtype[np.uint32]]


@dataclass
class State:
    """Hold what a run has on the server, or ought to have."""

    created: bool = False
    finished: bool = False
    params: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    artifacts: dict[str, Artifact] = field(default_factory=dict)


_OWNER = re.compile(r"user-([0-9]{1,10})-.*", re.ASCII | re.DOTALL)


def by_owner(found: State) -> dict[int, State]:
    """Take apart what is in a run that several share, by the run that has logged it; -1 is nobody."""
    owners: dict[int, State] = {}
    for what in ("params", "metrics", "tags"):
        for key, value in getattr(found, what).items():
            match = _OWNER.fullmatch(key)
            if what == "tags" and not match:
                # The server's, its clients' and hpcstress's own.
                continue
            getattr(owners.setdefault(int(match[1]) if match else -1, State()), what)[key] = value
    return owners


@dataclass
class Part:
    """Hold what acknowledged requests left of one MLflow run, and what the next request may have left.

    A run that is `free` has parameters and metrics that nobody here knows.
    """

    certain: State = field(default_factory=State)
    possible: State = field(default_factory=State)
    free: bool = False


_NOWHERE = Place("0")


class Replay(Client):
    """Play a run on paper, up to the last of its acknowledged writes; `parts` are the MLflow runs it has made.

    So many writes were acknowledged, and so many of them finished a run. `optional` ones are counted for themselves: of
    what not every server has, some is left out. `kept` are the paths where all that can be looked at which is certainly
    there beside runs, in the last workspace entered. Files that are uploaded together may have come `in_order`.
    """

    __slots__ = ("_finishes", "_in_order", "_lacked", "_optional", "_writes", "kept", "parts", "workspace")

    def __init__(
        self,
        writes: int,
        finishes: int = 0,
        optional: int = 0,
        lacked: Collection[int] = (),
        place: Place = _NOWHERE,
        *,
        in_order: bool = True,
    ) -> None:
        super().__init__(place, Lacking())
        self._in_order = in_order
        self._writes = writes
        self._finishes = finishes
        self._optional = optional
        self._lacked = lacked
        self.parts: list[Part] = []
        self.kept: list[str] = []
        self.workspace: str | None = None

    def enter_workspace(self, name: str) -> None:
        self.workspace = name

    async def turn(self) -> bool:
        """Tell whether another iteration follows: one does, unless all that is left is the acknowledged end."""
        if not self._writes and self.parts:
            # Nobody knows whether the next request was another iteration's or the end's.
            self.parts[-1].possible.finished = True
        # Iterations that only read would go on for ever.
        self._requests += 1
        return self._requests < MOST_REQUESTS and not self._writes == self._finishes == 1

    async def join_run(self) -> None:
        self.parts.append(Part())

    async def train(self, training: Training) -> None:
        """Train on paper; what a real training logs is its own matter, and all between creation and end is its own."""
        if not training.real:
            await super().train(training)
            return
        self.parts[-1].free = True
        self._writes, self._optional = min(self._writes, self._finishes), 0
        if not self._writes:
            self.parts[-1].possible.finished = True
            raise _over()

    async def _request(self, operation: Operation, payload: Any) -> Sequence[str]:
        if operation in READS or operation in self._lacked:
            return ()
        certain = self._optional if operation in OPTIONAL else self._writes
        if certain and (path := kept_at(operation, payload)) is not None:
            self.kept.append(path)
        if operation in OPTIONAL:
            self._optional = max(0, certain - 1)
            return imagined(operation, payload)
        if operation is Operation.create_run:
            self.parts.append(Part())
        if self.parts:
            part = self.parts[-1]
            _note(part.certain if self._writes else part.possible, operation, payload)
        if not self._writes:
            raise _over()
        self._writes -= 1
        self._finishes -= operation is Operation.finish_run
        return imagined(operation, payload)

    async def _request_each(self, operation: Operation, payloads: Sequence[Any], at_once: int) -> None:
        if operation in self._lacked:
            return
        if (at_once == 1 and self._in_order) or self._writes >= len(payloads):
            await super()._request_each(operation, payloads, at_once)
            return
        # Nobody knows which of them were acknowledged.
        for payload in payloads:
            _note(self.parts[-1].possible, operation, payload)
        raise _over()

    def close(self) -> None:
        """Hold nothing, let go of nothing."""


def _over() -> Failed:
    return Failed(Answer(Outcome.interrupted, 0, 0, 0, 0, b""))


def _note(state: State, operation: Operation, payload: Any) -> None:
    match operation:
        case Operation.create_run:
            state.created = True
            state.tags.update(payload[1])
        case Operation.log_params:
            state.params.update(payload)
        case Operation.log_param:
            state.params.update([payload])
        case Operation.log_metrics:
            state.metrics.update((metric.key, metric.value) for metric in payload)
        case Operation.log_metric:
            state.metrics[payload.key] = payload.value
        case Operation.set_tags:
            state.tags.update([payload])
        case Operation.log_artifact:
            state.artifacts[payload.path] = payload
        case Operation.finish_run:
            state.finished = True
        case _ if isinstance(payload, Batch):
            state.params.update(payload.params)
            state.metrics.update((metric.key, metric.value) for metric in payload.metrics)
            state.tags.update(payload.tags)


async def replay(
    play: Play,
    run: Run,
    writes: int,
    finishes: int = 0,
    optional: int = 0,
    lacked: Collection[int] = (),
    place: Place = _NOWHERE,
) -> Replay:
    """Return what a run has certainly and what it has possibly left, when so many of its writes were acknowledged."""
    # MLflow's client takes the files of a folder in the order in which the file system has them.
    paper = Replay(writes, finishes, optional, lacked, place, in_order=run.content.plan.client != "stock")
    try:
        await play(run, paper)
    except Failed:
        return paper
    return paper


_COUNTED = np.ones(256, np.bool_)
_COUNTED[[*READS, *OPTIONAL, Operation.end]] = False
_OPTIONAL = np.zeros(256, np.bool_)
_OPTIONAL[[*(OPTIONAL - READS)]] = True


class Acknowledged:
    """Count the acknowledged writes of each run of a step, and how many of them have finished a run of MLflow's.

    A run's first failure ends it: what was acknowledged of it are always its first writes. Writes that not every server
    knows are counted apart, and `lacked` are those that it said it does not know.
    """

    def __init__(self) -> None:
        self.writes = np.zeros(0, np.uint32)
        self.finishes = np.zeros(0, np.uint32)
        self._optional = np.zeros(0, np.uint32)
        self._granted: set[int] = set()
        self._lacked: frozenset[int] = frozenset()
        self._stored = self._left_to_clients = False

    def add(self, rows: np.ndarray[Any, Any]) -> None:
        """Count attempts of this step, in any order and in any pieces."""
        good = (rows["outcome"] == Outcome.ok) & (rows["attempt"] > 0)
        counted, optional = good & _COUNTED[rows["op"]], good & _OPTIONAL[rows["op"]]
        self.writes = _added(self.writes, rows["run"][counted])
        self.finishes = _added(self.finishes, rows["run"][counted & (rows["op"] == Operation.finish_run)])
        self._optional = _added(self._optional, rows["run"][optional])
        self._granted.update(np.unique(rows["op"][optional]).tolist())
        # Of what every server has, not even this answer says that others were not granted it.
        unknown = _OPTIONAL[rows["op"]] & (rows["outcome"] == Outcome.not_supported)
        self._lacked |= {*np.unique(rows["op"][unknown]).tolist()}
        uploads = rows["op"] == Operation.log_artifact
        self._stored |= bool((good & uploads).any())
        self._left_to_clients |= bool((uploads & (rows["outcome"] == Outcome.not_supported)).any())

    @property
    def lacked(self) -> frozenset[int]:
        """Return the operations that nothing is left of: uploads, too, where the server leaves all to its clients."""
        left = self._left_to_clients and not self._stored
        return self._lacked | {Operation.log_artifact} if left else self._lacked

    def of(self, run: int) -> tuple[int, int, int]:
        """Return how many writes of a run were acknowledged, how many have finished one, how many optional ones."""
        # Where some were granted what others were not, nobody knows whose is whose.
        optional = self._optional if self._granted.isdisjoint(self._lacked) else self._optional[:0]
        counts = self.writes, self.finishes, optional
        writes, finishes, others = (int(each[run]) if run < len(each) else 0 for each in counts)
        return writes, finishes, others

    @property
    def runs(self) -> np.ndarray[Any, np.dtype[np.intp]]:
        """Return the runs of which something was acknowledged."""
        longest = max(len(self.writes), len(self._optional))
        some = np.zeros(longest, np.bool_)
        for counts in (self.writes, self._optional):
            some[: len(counts)] |= counts > 0
        return np.flatnonzero(some)


def _added(counts: Counts, runs: np.ndarray[Any, Any]) -> Counts:
    if not len(runs):
        return counts
    if (most := int(runs.max()) + 1) > len(counts):
        # By half as much again, so that the steps of a long job do not copy it all each time.
        grown = np.zeros(max(most, len(counts) * 3 // 2), counts.dtype)
        grown[: len(counts)] = counts
        counts = grown
    np.add.at(counts, runs, 1)
    return counts


class Fault(Enum):
    """Say what kind of fault a finding is. A server that does not answer has not lost anything yet."""

    missing = 1
    wrong = 2
    unread = 3


class Finding(NamedTuple):
    """Hold what is not as it should be with one run."""

    fault: Fault
    sentence: str


def compare(name: str, part: Part, found: State) -> list[Finding]:
    """Compare what the server says of a run with the acknowledgements; artifacts have to be fetched to be compared."""
    findings = []
    certain, possible = part.certain, part.possible
    if certain.finished and not found.finished:
        findings.append(Finding(Fault.missing, f"{name}: FINISHED was acknowledged, the server says it is not."))
    if found.finished and not (certain.finished or possible.finished):
        findings.append(Finding(Fault.wrong, f"{name}: the server says FINISHED, which nobody has sent."))
    for what in ("param", "metric", "tag"):
        sure, maybe, there = (getattr(state, f"{what}s") for state in (certain, possible, found))
        if what == "tag":
            # The server, its clients and hpcstress itself add tags of their own.
            there = {key: value for key, value in there.items() if key in sure or key in maybe}
        absent = [key for key in sure if key not in there]
        if absent:
            are = "is" if len(absent) == 1 else "are"
            told = f"{count(len(absent), f'acknowledged {what}')} {are} missing{_example(absent)}"
            findings.append(Finding(Fault.missing, f"{name}: {told}."))
        # A server has tags of its own.
        keys = there if what != "tag" else [key for key in there if key in sure or key in maybe]
        if part.free and what != "tag":
            continue
        other = [key for key in keys if there[key] not in [state[key] for state in (sure, maybe) if key in state]]
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
            tags={str(tag["key"]): str(tag.get("value", "")) for tag in data.get("tags") or ()},
        )
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise ValueError(f"no description of a run: {error!r}") from None
