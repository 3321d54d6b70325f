"""What a run logs, from `(seed, run)` alone: parameters, metrics, tags, artifact bytes and their checksums.

Any rank can make it, any other rank can check it, and a repeated run sends the same bytes. Nothing is kept: with
10,000 runs in flight, their parameters would be the largest thing in memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from operator import le
from pathlib import Path
from struct import Struct
from typing import NamedTuple, overload

from hpcstress import files
from hpcstress.errors import Refusal
from hpcstress.plan import Plan

# Metrics carry a fixed instant (2023-11-14T22:13:20Z), so that a repeated run sends the same bytes.
METRIC_TIME_MS = 1_700_000_000_000

CHUNK = 1 << 18
_STAMP = 24
_ITEMS_PER_REQUEST = 1000
_MADE_AT_ONCE = 100
_WORD = Struct("<I")


class Metric(NamedTuple):
    """Hold one metric as MLflow takes it; the timestamp is in milliseconds since 1970."""

    key: str
    value: float
    timestamp: int
    step: int


class Batch(NamedTuple):
    """Hold what one request logs together; `about` says of each metric what data and which model it is about."""

    metrics: Sequence[Metric] = ()
    params: Sequence[tuple[str, str]] = ()
    tags: Sequence[tuple[str, str]] = ()
    about: tuple[tuple[str, str], ...] = ()

    def fits(self, metrics: int, params: int, tags: int) -> bool:
        """Tell whether one request may hold it."""
        amounts = len(self.metrics), len(self.params), len(self.tags)
        return sum(amounts) <= _ITEMS_PER_REQUEST and all(map(le, amounts, (metrics, params, tags)))

    def split(self, metrics: int, params: int, tags: int) -> Iterator[Batch]:
        """Yield the batches that MLflow's client makes of this one: at most so many of each kind, and 1000 in all."""
        metric = param = tag = 0
        while metric < len(self.metrics) or param < len(self.params) or tag < len(self.tags):
            told = Batch((), self.params[param : param + params], self.tags[tag : tag + tags], self.about)
            room = min(metrics, _ITEMS_PER_REQUEST - len(told.params) - len(told.tags))
            yield told._replace(metrics=self.metrics[metric : metric + room])
            metric, param, tag = metric + room, param + params, tag + tags


def _stream(seed: int, run: int, what: str, length: int) -> bytes:
    return hashlib.shake_128(f"{seed}/{run}/{what}".encode()).digest(length)


@lru_cache(maxsize=64)
def _keys(name: str, count: int) -> list[str]:
    return [f"{name}-{i}" for i in range(count)]


def _shares(data: bytes) -> list[float]:
    return [word / 2**32 for (word,) in _WORD.iter_unpack(data)]


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
            return self[(place := range(self._count)[index]) : place + 1][0]
        start, stop, stride = index.indices(self._count)
        digits = _stream(self._seed, self._run, "params", 4 * max(start + 1, stop)).hex()
        keys = _keys("param", self._count)
        return [(keys[i], digits[8 * i : 8 * i + 8]) for i in range(start, stop, stride)]

    def __iter__(self) -> Iterator[tuple[str, str]]:
        # One by one, each would cost what all before it cost.
        for start in range(0, self._count, _MADE_AT_ONCE):
            yield from self[start : start + _MADE_AT_ONCE]


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
            return self[(place := range(self._count)[index]) : place + 1][0]
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


@dataclass(frozen=True, slots=True)
class ModelFile(Artifact):
    """Describe a file of a logged model, which lies beside the runs."""

    model_id: str = ""


class Trace(NamedTuple):
    """Hold one trace: its number (32 hexadecimal digits), its session, how many spans it has, when it began."""

    number: str
    session: str
    spans: int
    start_ns: int

    @property
    def trace_id(self) -> str:
        """Return the id that MLflow gives it."""
        return f"tr-{self.number}"


@cache
def _digest(source: Path, size: int, changed_ns: int) -> str:
    del size, changed_ns
    with source.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True, slots=True)
class OwnFile(Artifact):
    """Describe an artifact that is a file of the user's."""

    source: Path = Path()

    def chunks(self) -> Iterator[bytes | memoryview]:
        """Yield the bytes in pieces, as many as the file had when its folder was read."""
        left = self.size
        try:
            with self.source.open("rb") as file:
                while left and (piece := file.read(min(CHUNK, left))):
                    left -= len(piece)
                    yield piece
        except OSError as error:
            raise self._refusal(error) from None
        if left:
            raise Refusal(f"{self.source} has become shorter since the job began: let nobody change it meanwhile.")

    def sha256(self) -> str:
        """Return the checksum of the file as it is now; it is read anew only when it has changed."""
        try:
            now = self.source.stat()
            return _digest(self.source, now.st_size, now.st_mtime_ns)
        except OSError as error:
            raise self._refusal(error) from None

    def _refusal(self, error: OSError) -> Refusal:
        return Refusal(
            f"{self.source} cannot be read ({error.strerror}): every node has to see it, during the audit, too."
        )


# Of a workload that creates several runs in one, all but the first carry their number.
PART_TAG = "hpcstress.part"
# A run that several write to has this tag, and no number.
SHARED_TAG = "hpcstress.shared"
SESSION_TAG = "hpcstress.session"
# What was there before the load belongs to no job: it is marked by what it holds.
PREFILL_TAG = "hpcstress.prefill"
STEP_TAG = "hpcstress.step"
RUN_TAG = "hpcstress.run"


def owner(run: int) -> str:
    """Return what stands before every key that a run logs to an MLflow run which several share."""
    return f"user-{run}-"


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
    def unique_name(self) -> str:
        """Return a name for what may be there only once on a server."""
        return f"{self.name}-{self.content.session}"

    @property
    def tags(self) -> tuple[tuple[str, str], ...]:
        """Return the tags by which the run is found again."""
        return (SESSION_TAG, self.content.session), (STEP_TAG, str(self.step)), (RUN_TAG, str(self.number))

    def part(self, number: int) -> tuple[str, tuple[tuple[str, str], ...]]:
        """Return name and tags of one of several MLflow runs that this run creates, the first being number 0."""
        if not number:
            return self.name, self.tags
        return f"{self.name}.{number}", (*self.tags, (PART_TAG, str(number)))

    def batch(self, number: int, owner: str = "") -> Batch:
        """Return what one iteration logs: the next points of every metric, new parameters, new values of the tags.

        Where several share a run, the owner's name comes before every key.
        """
        plan, points = self.content.plan, self.content.plan.points
        data = _stream(
            plan.seed, self.number, f"batch/{number}", 4 * max(plan.metrics * points, plan.params, plan.tags)
        )
        words, keys = data.hex(), _keys(f"{owner}metric", plan.metrics)
        shares = iter(_shares(data[: 4 * plan.metrics * points]))
        return Batch(
            [
                Metric(key, next(shares), METRIC_TIME_MS, number * points + point)
                for point in range(points)
                for key in keys
            ],
            [(f"{owner}param-{number}-{i}", words[8 * i : 8 * i + 8]) for i in range(plan.params)],
            [(key, words[8 * i : 8 * i + 8]) for i, key in enumerate(_keys(f"{owner}tag", plan.tags))],
        )

    def trace(self, number: int) -> Trace:
        """Return what one iteration logs as a trace; its id is this job's own."""
        content = self.content
        words = f"{content.session}/{self.step}/{self.number}/trace/{number}"
        return Trace(
            hashlib.shake_128(words.encode()).hexdigest(16), content.session, content.plan.spans, METRIC_TIME_MS * 10**6
        )

    def series(self, name: str, keys: int, each: int, number: int = 0) -> list[Metric]:
        """Return points of so many metrics, `each` of every one; the same name and number give the same values."""
        values = iter(_shares(_stream(self.content.plan.seed, self.number, f"{name}/{number}", 4 * keys * each)))
        return [
            Metric(key, next(values), METRIC_TIME_MS + step, step) for step in range(each) for key in _keys(name, keys)
        ]

    def pairs(self, name: str, count: int, number: int = 0) -> list[tuple[str, str]]:
        """Return so many parameters; the same name and number give the same values."""
        digits = _stream(self.content.plan.seed, self.number, f"{name}/{number}", 4 * count).hex()
        return [(key, digits[8 * i : 8 * i + 8]) for i, key in enumerate(_keys(name, count))]

    def choice(self, name: str, count: int) -> int:
        """Return one of so many numbers from 0, each as likely; the same name gives the same one."""
        return int.from_bytes(_stream(self.content.plan.seed, self.number, f"choice/{name}", 8), "little") % count

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
        """Return the artifacts; their bytes are made, or read from the user's folder, while they are sent."""
        plan = self.content.plan
        if plan.artifact_folder:
            return tuple(
                OwnFile(file.path, file.size, plan.seed, self.number, index, file.source)
                for index, file in enumerate(files.listed(plan.artifact_folder))
            )
        return tuple(
            Artifact(f"artifact-{index}.bin", plan.artifact_size, plan.seed, self.number, index)
            for index in range(plan.artifacts)
        )


@dataclass(frozen=True, slots=True)
class Unit(Run):
    """Describe one piece of what is on the server before the load; it is marked by what all pieces together hold."""

    holds: str = ""

    @property
    def name(self) -> str:
        """Return the name that people see."""
        return f"prefill-{self.number}"

    @property
    def unique_name(self) -> str:
        """Return a name for what may be there only once on a server."""
        return f"hpcstress-{self.name}-of-{self.holds}"

    @property
    def tags(self) -> tuple[tuple[str, str], ...]:
        """Return the tags by which any job finds it again."""
        return (PREFILL_TAG, self.holds), (RUN_TAG, str(self.number))


@dataclass(frozen=True, slots=True)
class Content:
    """Make the runs of one job: the amounts come from the plan, the session marks them as this job's.

    `size` is that of the step: how many runs or users all ranks have together.
    """

    plan: Plan
    session: str
    size: int = 0

    def run(self, step: int, number: int) -> Run:
        """Return what run `number` of a step logs."""
        return Run(self, step, number)

    def unit(self, number: int, holds: str) -> Unit:
        """Return one piece of what is on the server before the load."""
        return Unit(self, -1, number, holds)
