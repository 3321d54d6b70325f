"""An event loop whose time leaps to the next timer: an hour takes no time, and the machine is as busy as told."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine, Iterator, Sequence
from itertools import cycle
from types import ModuleType
from typing import Any

import pytest

from hpcstress import pace, worker
from hpcstress.clients import null

# What a turn of the loop takes at least.
TICK_NS = 100_000


class Clock(selectors.SelectSelector):
    """Tell the time, and wait by moving it: by what was asked for, and by how late this machine wakes up."""

    def __init__(self, late: Sequence[int]) -> None:
        super().__init__()
        self.now = 1_000_000_000_000
        self._late: Iterator[int] = cycle(late)

    def monotonic_ns(self) -> int:
        """Return the time as `time.monotonic_ns` does."""
        return self.now

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert timeout is not None, "everybody waits for what will never happen"
        self.now += max(TICK_NS, round(timeout * 1e9)) + next(self._late)
        return []


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self._clock = clock

    def time(self) -> float:
        return self._clock.now / 1e9


def simulate(
    main: Coroutine[Any, Any, Any], late: Sequence[int] = (0,), modules: Sequence[ModuleType] = (pace, worker, null)
) -> Any:
    """Run a coroutine on a clock of its own, which wakes up late by so many nanoseconds again and again."""
    clock = Clock(late)
    with (
        pytest.MonkeyPatch.context() as patch,
        asyncio.Runner(loop_factory=lambda: _Loop(clock)) as runner,
    ):
        for module in modules:
            patch.setattr(module, "monotonic_ns", clock.monotonic_ns)
        return runner.run(main)
