"""One rank's loop: wait until a run is due, play it, record it, and watch how late the loop itself is."""

from __future__ import annotations

import asyncio
import gc
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import monotonic_ns
from typing import Protocol

from hpcstress.clients import Client, Lacking, Place, Turn
from hpcstress.clients.answer import Failed, heard
from hpcstress.content import Content, Run, Unit
from hpcstress.pace import Pace, Supply, sleep_until
from hpcstress.schedule import WARMUP, Step, arrivals, due, owned
from hpcstress.workloads import Play

_PULSE_SECONDS = 0.1
_LAG_SECONDS = 0.01
_LAG_UNIT_NS = 100_000
_STARTS_PER_TURN = 64
_FILLING_USERS = 8


class Clients(Protocol):
    """Make the clients of a rank, which do what they do at one place of the server."""

    place: Place
    lacking: Lacking

    def client(self, run: int, due: int, turn: Turn) -> Client:
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
    """Say what a rank itself felt in one step: CPU and wall seconds, lateness of its event loop, memory in bytes.

    `began_ns` is when it truly began, after the common start, by what its own clock then knew of rank 0's.
    `dropped` counts iterations that became due while no user was free, until the step was over; 0 if it was stopped.
    """

    cpu_seconds: float
    wall_seconds: float
    lag_p50_ns: int
    lag_p99_ns: int
    lag_max_ns: int
    max_rss: int
    dropped: int
    began_ns: int


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


@dataclass(frozen=True)
class Share:
    """Hold one rank's share of a step: its places (runs that begin at once, or users), and what they log."""

    step: Step
    content: Content
    rank: int
    ranks: int

    @property
    def users(self) -> int:
        """Return how many users all ranks have together, 0 where runs begin at once."""
        return self.step.size if self.content.plan.users and self.step.number != WARMUP else 0

    @property
    def places(self) -> range:
        """Return the rank's own runs or users."""
        return owned(self.step.size, self.rank, self.ranks)

    def run(self, number: int) -> Run:
        """Return what a run logs."""
        return self.content.run(self.step.number, number)

    def pace(self, origin: int) -> Pace:
        """Return when iterations begin, with the common start at a local monotonic nanosecond."""
        plan = self.content.plan
        if not self.users:
            return Pace(origin, 0.0, 1 if self.step.number == WARMUP else plan.iterations, 0.0)
        due = arrivals(plan.rate, plan.arrivals, plan.seed, self.users, self.rank, self.ranks) if plan.rate else None
        return Pace(origin, plan.duration, plan.iterations, plan.think_time, due)


@dataclass(frozen=True)
class Filling(Share):
    """Hold one rank's share of what is made before the load: its units, played one by one by a few users at once."""

    units: deque[Unit]

    @property
    def users(self) -> int:
        """Return how many users the rank has: few, so that any server can take them."""
        return max(1, _FILLING_USERS // self.ranks)

    @property
    def places(self) -> range:
        """Return the rank's own users."""
        return range(self.users)

    def run(self, number: int) -> Run:
        """Return the next unit, whatever the number."""
        del number
        return self.units.popleft()

    def pace(self, origin: int) -> Pace:
        """Return when units begin: as long as there are some."""
        del origin
        return Supply(self.units)


class Worker:
    """Play a rank's share of a step."""

    def __init__(self, play: Play, clients: Clients, timeout: float) -> None:
        self._play = play
        self._clients = clients
        self._expiry_seconds = min(1.0, max(0.02, timeout / 100))

    async def play_step(self, share: Share, origin: int, tally: Tally, pulse: Callable[[], bool]) -> Health:
        """Play a share of a step whose common start is the local monotonic nanosecond `origin`.

        `pulse` is called ten times a second; when it returns True, the runs in flight are interrupted and recorded so.
        """
        lag = Lag()
        gc.collect()
        await sleep_until(origin)
        began = monotonic_ns()
        cpu, wall = time.process_time(), time.monotonic()
        chores = [asyncio.create_task(chore) for chore in (lag.watch(), self._expire())]
        pace = share.pace(origin)
        load = asyncio.create_task(self._play_all(share, pace, origin, tally))
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
            dropped=0 if load.cancelled() else pace.drop(),
            began_ns=began - origin,
        )

    async def _play_all(self, share: Share, pace: Pace, origin: int, tally: Tally) -> None:
        async with asyncio.TaskGroup() as group:
            for started, place in enumerate(share.places, 1):
                if share.users:
                    group.create_task(self._play_user(share, pace, place, tally))
                else:
                    instant = origin + due(place)
                    if instant > monotonic_ns():
                        await sleep_until(instant)
                    run = share.run(place)
                    group.create_task(self._play_run(run, self._clients.client(place, instant, pace.turn), tally))
                if started % _STARTS_PER_TURN == 0:
                    await asyncio.sleep(0)

    async def _play_user(self, share: Share, pace: Pace, user: int, tally: Tally) -> None:
        number, done, last = user, 0, None
        try:
            while (instant := await pace.turn(done)) is not None:
                run = share.run(number)
                client = self._clients.client(run.number, instant, partial(pace.turn, done))
                if last is not None:
                    client.take_over(last)
                    last.close()
                last = client
                await self._play_run(run, client, tally, goes_on=True)
                done += client.turns
                # Users take turns: run numbers of one lie as far apart as there are users.
                number += share.users
        finally:
            if last is not None:
                last.close()

    async def _play_run(self, run: Run, client: Client, tally: Tally, *, goes_on: bool = False) -> None:
        try:
            await self._play(run, client)
            tally.finished += 1
        except Failed as failure:
            tally.count(failure)
        finally:
            if not goes_on:
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
