"""The live view: a bar on a terminal, a line every few seconds in a job's log."""

from __future__ import annotations

import atexit
import time
from collections.abc import Sequence
from typing import NamedTuple

from hpcstress.quantity import count
from hpcstress.schedule import PREFILL, WARMUP, Step

_LINE_SECONDS = 2.0
_BAR = 24


class Beat(NamedTuple):
    """Hold how far one rank is in a step."""

    step: int
    owned: int
    finished: int
    failed: int
    attempts: int
    done: bool
    stop: bool


class Progress:
    """Show nothing: what every rank but the first does."""

    def say(self, sentence: str) -> None:
        """Tell something that is not about a step's progress."""

    def begin(self, step: Step, of: int, seconds: float = 0.0) -> None:
        """Tell that a step begins; with users how long it goes on, infinity where nobody knows, else 0."""

    def update(self, step: Step, beats: Sequence[Beat]) -> None:
        """Tell how far the ranks are."""

    def end(self) -> None:
        """Tell that a step is over."""


class Shown(Progress):
    """Show the progress on standard error: one line in place on a terminal, else a line every two seconds."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        # However the job ends, the terminal gets its cursor back.
        atexit.register(self._live.stop)
        self._of = 0
        self._began = self._shown = self._seconds = 0.0
        self._last = ""

    def say(self, sentence: str) -> None:
        self._console.print(sentence, markup=False)

    def begin(self, step: Step, of: int, seconds: float = 0.0) -> None:
        self._of = of
        self._seconds = seconds
        self._began = self._shown = time.monotonic()
        self._last = line(step, of, [], 0.0, seconds)
        if self._console.is_terminal:
            self._live.start()

    def update(self, step: Step, beats: Sequence[Beat]) -> None:
        from rich.text import Text

        self._last = line(step, self._of, beats, time.monotonic() - self._began, self._seconds)
        if self._console.is_terminal:
            self._live.update(Text(self._last, no_wrap=True, overflow="ellipsis"), refresh=True)
        elif time.monotonic() - self._shown >= _LINE_SECONDS:
            self._shown = time.monotonic()
            self.say(self._last)

    def end(self) -> None:
        self._live.stop()
        self.say(self._last)


def line(step: Step, of: int, beats: Sequence[Beat], seconds: float, of_seconds: float = 0.0) -> str:
    """Return one line about a step: how many of its runs are over, or how much of its time, and what was sent."""
    finished = sum(beat.finished for beat in beats)
    failed = sum(beat.failed for beat in beats)
    attempts = sum(beat.attempts for beat in beats)
    done, whole = (seconds, of_seconds) if of_seconds else (finished + failed, max(1, step.size))
    filled = min(_BAR, int(_BAR * done // whole))
    bar = "█" * filled + "·" * (_BAR - filled)
    trouble = f", {failed:,} failed" if failed else ""
    name = {PREFILL: "prefill", WARMUP: "warm-up"}.get(step.number, f"step {step.number + 1}/{of}")
    of_all = f"{finished:,}/{count(step.size, 'run')}"
    runs = f"{count(step.size, 'user')}, {count(finished, 'run')}" if of_seconds else of_all
    # Making a connection is an attempt, too.
    return f"{name}  {bar}  {runs} finished{trouble}, {count(attempts, 'attempt')}, {seconds:.1f} s"
