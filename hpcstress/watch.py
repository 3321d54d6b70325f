"""Ranks in a ring: each tells the next that it lives, and ends the job when the one before falls silent.

Launchers may let the others live when a rank is killed (`srun` without `--kill-on-bad-exit`), or not know of it (a node
without power); those would wait for its word for ever. A thread of its own does this, because a rank may be alive and
busy for long with anything. A second thread, which never speaks itself, sees whether the first one still does: MPI may
never return from a word to a rank that is dead, and burn a core meanwhile.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Protocol


class Ring(Protocol):
    """Speak to the next rank and hear the one before, without waiting."""

    def speak(self, word: str) -> None:
        """Send a word to the next rank."""

    def listen(self) -> list[str]:
        """Return what the rank before has said since the last time."""


# Its last word.
_GOODBYE = ""
_BEAT_SECONDS = 1.0
# A parallel file system may hold a whole node up for half a minute.
_SILENT_BEATS = 60


class Watch:
    """Say that this rank, called `name`, lives; call `end` with a name if the rank before falls silent.

    Call `hang` if this rank itself cannot speak any more. Silence is counted in beats of this rank's own: one that was
    itself held up has not listened meanwhile.
    """

    def __init__(
        self, ring: Ring, name: str, before: str, end: Callable[[str, float], Any], hang: Callable[[float], Any]
    ) -> None:
        self._ring = ring
        self._name = name
        self._before = before
        self._end = end
        self._hang = hang
        self._beats = 0
        self._silent = 0
        self._left = False
        self._over = threading.Event()
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._run, self._look)]

    def start(self) -> None:
        """Begin to speak and to listen."""
        # At once: one that dies soon is missed under its name.
        self._ring.speak(self._name)
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Say goodbye, so that nobody misses this rank, and listen no more."""
        self._over.set()
        for thread in self._threads:
            thread.join()
        self._ring.speak(_GOODBYE)

    def _run(self) -> None:
        while not self._over.wait(_BEAT_SECONDS):
            self.beat()
            self._beats += 1

    def _look(self) -> None:
        seen, still = 0, 0
        while not self._over.wait(_BEAT_SECONDS):
            seen, still = self._beats, still + 1 if seen == self._beats else 0
            if still > _SILENT_BEATS:
                self._hang(still * _BEAT_SECONDS)

    def beat(self) -> None:
        """Speak and listen once."""
        self._ring.speak(self._name)
        heard = self._ring.listen()
        self._before = next((word for word in reversed(heard) if word), self._before)
        self._left |= _GOODBYE in heard
        self._silent = 0 if heard else self._silent + 1
        if self._silent >= _SILENT_BEATS and not self._left:
            self._end(self._before, self._silent * _BEAT_SECONDS)
