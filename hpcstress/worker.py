"""One rank's loop: wait until a run is due, play it, record it, and watch how late the loop itself is."""

from __future__ import annotations

import asyncio
import gc
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic_ns
from typing import Protocol

from hpcstress.clients import Client
from hpcstress.clients.answer import Failed, heard
from hpcstress.content import Content
from hpcstress.schedule import Step, due
from hpcstress.workloads import Play

_PULSE_SECONDS = 0.1
_LAG_SECONDS = 0.01
_LAG_UNIT_NS = 100_000
# The event loop's timers count milliseconds: the last bit before the common start is waited for actively.
_SPIN_NS = 3_000_000
_STARTS_PER_TURN = 64


class Clients(Protocol):
    """Make the clients of a rank."""

    def client(self, run: int, due: int) -> Client:
        """Return the client of one run that is due at an instant of the local monotonic clock (nanoseconds)."""

    def expire(self) -> None:
        """Fail every request whose time is over."""


@dataclass
class Tally:
    """Count what has become of a rank's runs in one step, and keep the first words about each cause of failure."""

    owned: int
    finished: int = 0
    failed: int = 0
    said: dict[str, str] = field(default_factory=dict)

    def count(self, failure: Failed) -> None:
        """Count a run that has ended with a failed operation."""
        self.failed += 1
        cause = failure.answer.outcome.name
        if cause not in self.said:
            self.said[cause] = heard(failure.answer)


@dataclass(frozen=True)
class Health:
    """Say what a rank itself felt in one step: CPU and wall seconds, lateness of its event loop, memory in bytes."""

    cpu_seconds: float
    wall_seconds: float
    lag_p50_ns: int
    lag_p99_ns: int
    lag_max_ns: int
    max_rss: int


class Lag:
    """Collect how late the event loop wakes up, in steps of 0.1 ms: bounded, however long the step lasts."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()

    async def watch(self) -> None:
        """Sleep for 10 ms again and again, and note how much longer it took."""
        while True:
            before = monotonic_ns()
            await asyncio.sleep(_LAG_SECONDS)
            self.note(monotonic_ns() - before - round(_LAG_SECONDS * 1e9))

    def note(self, lag_ns: int) -> None:
        """Count one lateness in nanoseconds."""
        self._counts[max(0, lag_ns) // _LAG_UNIT_NS] += 1

    def quantile(self, share: float) -> int:
        """Return the lateness in nanoseconds that a share of all wake-ups did not exceed; 0 if there were none."""
        left = share * self._counts.total()
        for lag in sorted(self._counts):
            left -= self._counts[lag]
            if left <= 0:
                return (lag + 1) * _LAG_UNIT_NS
        return 0


class Worker:
    """Play a rank's share of a step."""

    def __init__(self, play: Play, content: Content, clients: Clients, timeout: float) -> None:
        self._play = play
        self._content = content
        self._clients = clients
        self._expiry_seconds = min(1.0, max(0.02, timeout / 100))

    async def play_step(
        self, step: Step, runs: Iterable[int], origin: int, tally: Tally, pulse: Callable[[], bool]
    ) -> Health:
        """Play runs of a step whose common start is the local monotonic nanosecond `origin`.

        `pulse` is called ten times a second; when it returns True, the runs in flight are interrupted and recorded so.
        """
        lag = Lag()
        gc.collect()
        await _sleep_until(origin)
        cpu, wall = time.process_time(), time.monotonic()
        chores = [asyncio.create_task(chore) for chore in (lag.watch(), self._expire())]
        load = asyncio.create_task(self._play_all(step, runs, origin, tally))
        # With 10,000 runs the collector would stop all of them for 50 to 200 ms at a time, and find nothing.
        gc.disable()
        try:
            while not (await asyncio.wait([load], timeout=_PULSE_SECONDS))[0]:
                if pulse():
                    load.cancel()
                    await asyncio.wait([load])
            if not load.cancelled() and (error := load.exception()) is not None:
                raise _first(error)
        finally:
            gc.enable()
            for chore in chores:
                chore.cancel()
            await asyncio.gather(*chores, return_exceptions=True)
        return Health(
            cpu_seconds=time.process_time() - cpu,
            wall_seconds=time.monotonic() - wall,
            lag_p50_ns=lag.quantile(0.5),
            lag_p99_ns=lag.quantile(0.99),
            lag_max_ns=lag.quantile(1.0),
            max_rss=_peak_memory(),
        )

    async def _play_all(self, step: Step, runs: Iterable[int], origin: int, tally: Tally) -> None:
        async with asyncio.TaskGroup() as group:
            for started, run in enumerate(runs, 1):
                instant = origin + due(run)
                if instant > monotonic_ns():
                    await _sleep_until(instant)
                group.create_task(self._play_run(step.number, run, instant, tally))
                if started % _STARTS_PER_TURN == 0:
                    await asyncio.sleep(0)

    async def _play_run(self, step: int, run: int, instant: int, tally: Tally) -> None:
        client = self._clients.client(run, instant)
        try:
            await self._play(self._content.run(step, run), client)
            tally.finished += 1
        except Failed as failure:
            tally.count(failure)
        finally:
            client.close()

    async def _expire(self) -> None:
        while True:
            await asyncio.sleep(self._expiry_seconds)
            self._clients.expire()


def _first(error: BaseException) -> BaseException:
    # What the tool itself could not do is one failure, however many runs met it.
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _peak_memory() -> int:
    # Not `ru_maxrss`: a process inherits that from the one that started it.
    status = Path("/proc/self/status").read_text("ascii", "replace")
    return int(status.partition("VmHWM:")[2].split(maxsplit=1)[0]) * 1024


async def _sleep_until(instant: int) -> None:
    while (left := instant - monotonic_ns()) > 0:
        await asyncio.sleep((left - _SPIN_NS) / 1e9 if left > _SPIN_NS else 0)
