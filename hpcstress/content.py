"""What a run logs, from `(seed, run)` alone: parameters, metrics, tags, artifact bytes and their checksums.

Any rank can make it, any other rank can check it, and a repeated run sends the same bytes. Nothing is kept: with
10,000 runs in flight, their parameters would be the largest thing in memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple, overload

from hpcstress.plan import Plan

# Metrics carry a fixed instant (2023-11-14T22:13:20Z), so that a repeated run sends the same bytes.
METRIC_TIME_MS = 1_700_000_000_000

CHUNK = 1 << 18
_STAMP = 24


class Metric(NamedTuple):
    """Hold one metric as MLflow takes it; the timestamp is in milliseconds since 1970."""

    key: str
    value: float
    timestamp: int
    step: int


def _stream(seed: int, run: int, what: str, length: int) -> bytes:
    return hashlib.shake_128(f"{seed}/{run}/{what}".encode()).digest(length)


@cache
def _param_keys(count: int) -> list[str]:
    return [f"param-{i}" for i in range(count)]


class Params(Sequence[tuple[str, str]]):
    """Hold a run's parameters as a sequence of (key, value) that is made while it is read."""

    __slots__ = ("_count", "_run", "_seed")

    def __init__(self, seed: int, run: int, count: int) -> None:
        self._seed, self._run, self._count = seed, run, count

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> tuple[str, str]: ...
    @overload
    def __getitem__(self, index: slice) -> list[tuple[str, str]]: ...
    def __getitem__(self, index: int | slice) -> tuple[str, str] | list[tuple[str, str]]:
        if isinstance(index, int):
            return self[range(self._count)[index] :][0]
        start, stop, stride = index.indices(self._count)
        digits = _stream(self._seed, self._run, "params", 4 * max(start + 1, stop)).hex()
        keys = _param_keys(self._count)
        return [(keys[i], digits[8 * i : 8 * i + 8]) for i in range(start, stop, stride)]


class Metrics(Sequence[Metric]):
    """Hold a run's metrics as a sequence that is made while it is read; values lie in [0, 1)."""

    __slots__ = ("_count", "_run", "_seed")

    def __init__(self, seed: int, run: int, count: int) -> None:
        self._seed, self._run, self._count = seed, run, count

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Metric: ...
    @overload
    def __getitem__(self, index: slice) -> list[Metric]: ...
    def __getitem__(self, index: int | slice) -> Metric | list[Metric]:
        if isinstance(index, int):
            return self[range(self._count)[index] :][0]
        start, stop, stride = index.indices(self._count)
        data = _stream(self._seed, self._run, "metrics", 4 * max(start + 1, stop))
        return [
            Metric(f"metric-{i}", int.from_bytes(data[4 * i : 4 * i + 4], "little") / 2**32, METRIC_TIME_MS, 0)
            for i in range(start, stop, stride)
        ]


@cache
def _block(seed: int) -> memoryview:
    # Twice the length of a chunk: any window of a chunk's size is a slice, not a copy.
    return memoryview(hashlib.shake_128(f"{seed}/artifacts".encode()).digest(2 * CHUNK))


@dataclass(frozen=True, slots=True)
class Artifact:
    """Describe one artifact: its path below the run's artifacts, its size, and where its bytes come from."""

    path: str
    size: int
    seed: int
    run: int
    index: int

    def chunks(self) -> Iterator[bytes | memoryview]:
        """Yield the bytes in pieces: incompressible, different in every chunk of every artifact, `size` in all."""
        block = _block(self.seed)
        for number, offset in enumerate(range(0, self.size, CHUNK)):
            length = min(CHUNK, self.size - offset)
            yield _stream(self.seed, self.run, f"artifact/{self.index}/{number}", min(_STAMP, length))
            if length > _STAMP:
                # A prime stride moves the window, so that equal chunks do not lie at equal distances.
                window = (self.run * 7919 + self.index * 104_729 + number * 15_485_863) % CHUNK
                yield block[window : window + length - _STAMP]

    def sha256(self) -> str:
        """Return the checksum of the bytes as hexadecimal digits."""
        digest = hashlib.sha256()
        for chunk in self.chunks():
            digest.update(chunk)
        return digest.hexdigest()


SESSION_TAG = "hpcstress.session"
STEP_TAG = "hpcstress.step"
RUN_TAG = "hpcstress.run"


@dataclass(frozen=True, slots=True)
class Run:
    """Describe one run: how it is found again, and what it logs. All of it is made when it is asked for."""

    content: Content
    step: int
    number: int

    @property
    def name(self) -> str:
        """Return the name that people see."""
        return f"hpcstress-{self.step}-{self.number}"

    @property
    def tags(self) -> tuple[tuple[str, str], ...]:
        """Return the tags by which the run is found again."""
        return (SESSION_TAG, self.content.session), (STEP_TAG, str(self.step)), (RUN_TAG, str(self.number))

    @property
    def params(self) -> Params:
        """Return the parameters."""
        return Params(self.content.plan.seed, self.number, self.content.plan.params)

    @property
    def metrics(self) -> Metrics:
        """Return the metrics."""
        return Metrics(self.content.plan.seed, self.number, self.content.plan.metrics)

    @property
    def artifacts(self) -> tuple[Artifact, ...]:
        """Return the artifacts; their bytes are made while they are read."""
        plan = self.content.plan
        return tuple(
            Artifact(f"artifact-{index}.bin", plan.artifact_size, plan.seed, self.number, index)
            for index in range(plan.artifacts)
        )


@dataclass(frozen=True, slots=True)
class Content:
    """Make the runs of one job: the amounts come from the plan, the session marks them as this job's."""

    plan: Plan
    session: str

    def run(self, step: int, number: int) -> Run:
        """Return what run `number` of a step logs."""
        return Run(self, step, number)
