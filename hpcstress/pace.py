"""When the users of a rank begin their iterations: as soon as they can, or when arrivals are due."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sized
from itertools import takewhile
from time import monotonic_ns

# The event loop's timers count milliseconds: the last bit before an instant is waited for actively.
_SPIN_NS = 3_000_000


class Pace:
    """Give one user after the other the instant of its next iteration, until time, iterations or arrivals are over.

    Instants are nanoseconds of the local monotonic clock. With arrivals (an open model) an iteration is due when its
    arrival is, whether or not a user is free: it may begin late, never early; what no user could begin before the end
    is dropped. Without (a closed model) it is due when the user is done with the one before, and has thought.
    """

    def __init__(
        self, origin: int, duration: float, iterations: int, think_time: float, due: Iterator[int] | None = None
    ) -> None:
        end = self._end = origin + round(duration * 1e9) if duration else None
        self._iterations = iterations or (None if duration else 1)
        self._think_seconds = think_time
        self._arrivals = None
        if due is not None:
            assert end is not None
            self._arrivals = takewhile(lambda instant: instant < end, (origin + after for after in due))

    async def turn(self, before: int, further: int = 0) -> int | None:
        """Return when the next iteration of a user is due, at that instant; None at the end.

        The user has done so many iterations before, and `further` ones in the run that it is playing.
        """
        done = before + further
        if self._iterations is not None and done >= self._iterations:
            return None
        if done and self._think_seconds:
            if self._think_seconds >= self._left_seconds():
                # Whoever would think beyond the end has no further iteration.
                return None
            await asyncio.sleep(self._think_seconds)
        if self._arrivals is not None:
            return await self._arrival(self._arrivals)
        return monotonic_ns() if self._left_seconds() else None

    def drop(self) -> int:
        """Return how many arrivals before the end nobody has taken, now that all users are done."""
        return sum(1 for _ in self._arrivals or ())

    async def _arrival(self, arrivals: Iterator[int]) -> int | None:
        instant = next(arrivals, None) if self._left_seconds() else None
        if instant is not None:
            await sleep_until(instant)
        return instant

    def _left_seconds(self) -> float:
        return float("inf") if self._end is None else max(0, self._end - monotonic_ns()) / 1e9


class Supply(Pace):
    """Let users begin as long as there is something left to do, each thing in a run of its own."""

    def __init__(self, left: Sized) -> None:
        super().__init__(0, 0.0, 0, 0.0)
        self._left = left

    async def turn(self, before: int, further: int = 0) -> int | None:
        """Return when the next run is due: now, None at the end."""
        del before
        return monotonic_ns() if self._left and not further else None


async def sleep_until(instant: int) -> None:
    """Sleep until an instant of the local monotonic clock in nanoseconds; the last milliseconds awake."""
    while (left := instant - monotonic_ns()) > 0:
        await asyncio.sleep((left - _SPIN_NS) / 1e9 if left > _SPIN_NS else 0)
